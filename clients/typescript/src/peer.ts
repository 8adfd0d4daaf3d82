/**
 * A linked exchange.
 *
 * @module
 */

import type { EmitOptions, Emitter, RequestOptions } from "./emitter.js";
import type { Handler, Handlers, Remove } from "./handlers.js";
import type { Introduction } from "./frames.js";
import type { Link } from "./link.js";
import { RemoteState } from "./remote.js";
import type { Replies } from "./replies.js";
import type { Router } from "./router.js";

/** What a peer is made of. */
interface Parts {
  emitter: Emitter;
  handlers: Handlers;
  router: Router;
}

/** A linked exchange. Made by `Exchange.connect`, or when somebody connects to this one. */
export class Peer {
  /** Its id. */
  readonly id: string;
  readonly #link: Link;
  readonly #introduction: Introduction;
  readonly #parts: Parts;

  /** @internal */
  constructor(link: Link, introduction: Introduction, parts: Parts) {
    this.id = introduction.exchange;
    this.#link = link;
    this.#introduction = introduction;
    this.#parts = parts;
  }

  /** Language and library version. */
  get agent(): string {
    return (this.#link.session.peer ?? this.#introduction).agent;
  }

  /** Whether it passes on messages of others. */
  get relay(): boolean {
    return this.#parts.router.peers.get(this.id)?.relay ?? this.#introduction.relay;
  }

  /** The names that it handles, sorted. */
  get handles(): string[] {
    return [...(this.#parts.router.peers.get(this.id)?.handles ?? [])].sort();
  }

  /** The patterns that it subscribes to, sorted. */
  get subscribes(): string[] {
    return [...(this.#parts.router.peers.get(this.id)?.subscribes ?? [])].sort();
  }

  /** What it shares of its state. */
  get state(): RemoteState {
    return new RemoteState(this.id, this.#parts.emitter);
  }

  /** As `Exchange.send`, by this link: the peer takes it, or routes it on. */
  send(name: string, value?: unknown, options?: EmitOptions): Promise<string> {
    return this.#parts.emitter.send(name, value, { ...options, via: this.id });
  }

  /** As `Exchange.request`, by this link. */
  request<T = unknown>(name: string, value?: unknown, options?: RequestOptions): Promise<T> {
    return this.#parts.emitter.request<T>(name, value, { ...options, via: this.id });
  }

  /** As `Exchange.requestMany`, by this link. */
  requestMany<T = unknown>(name: string, value?: unknown, options?: RequestOptions): Replies<T> {
    return this.#parts.emitter.requestMany<T>(name, value, { ...options, via: this.id });
  }

  /** As `Exchange.on`, for what comes over this link. */
  on<T = unknown>(name: string, listener: Handler<T>): Remove {
    return this.#parts.handlers.listen(name, listener, this.id);
  }

  /** Resolves when nothing is left of the link. */
  get closed(): Promise<void> {
    return this.#link.over;
  }

  /** Say goodbye, once what is queued has left, and end the link for good. */
  disconnect(): Promise<void> {
    return this.#link.close({ stayAway: true });
  }
}
