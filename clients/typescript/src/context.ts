/**
 * What a handler is given beside its message: whatever it emits through this carries its cause.
 *
 * @module
 */

import type { Emitter, EmitOptions, RequestOptions } from "./emitter.js";
import { type Context as Causes, contextAfter, contextOf, type Message } from "./message.js";
import type { Replies } from "./replies.js";

/** What stands behind the messages that one run of a handler emits. Internal to the package. */
export class Invocation {
  causes: Causes;
  answered = false;
  /** It need not go on. */
  aborted = false;
  #controller: AbortController | undefined; // few functions ask for their signal

  constructor(
    readonly message: Message,
    readonly link: string | undefined,
  ) {
    this.causes = contextOf(message);
  }

  get signal(): AbortSignal {
    this.#controller ??= new AbortController();
    if (this.aborted) this.#controller.abort();
    return this.#controller.signal;
  }

  abort(): void {
    this.aborted = true;
    this.#controller?.abort();
  }

  /** A reply was awaited: a further cause of what follows. */
  after(reply: Message): void {
    this.causes = contextAfter(this.causes, reply);
  }
}

/** What a handler is given beside its message.
 *
 * Whatever is emitted through it says that the message handled is its cause, and after a reply was awaited that one as
 * well. A request through it has, unless told, the time that is left to the request being handled, and is withdrawn
 * with it.
 */
export class HandlerContext {
  readonly #emitter: Emitter;
  readonly #invocation: Invocation;
  readonly #reply: (value: unknown) => Promise<void>;

  /** @internal */
  constructor(emitter: Emitter, invocation: Invocation, reply: (value: unknown) => Promise<void>) {
    this.#emitter = emitter;
    this.#invocation = invocation;
    this.#reply = reply;
  }

  /** Aborted when the caller withdraws the request, when its time is over, and when the exchange stops. */
  get signal(): AbortSignal {
    return this.#invocation.signal;
  }

  /** The ids of the messages that stand behind whatever is emitted now. */
  get causes(): readonly string[] {
    return this.#invocation.causes.causes;
  }

  /** As `Exchange.send`. */
  send(name: string, value?: unknown, options?: EmitOptions): Promise<string> {
    return this.#emitter.send(name, value, options, this.#invocation);
  }

  /** As `Exchange.publish`. */
  publish(name: string, value?: unknown, options?: Pick<EmitOptions, "headers">): Promise<string> {
    return this.#emitter.publish(name, value, options, this.#invocation);
  }

  /** As `Exchange.broadcast`. */
  broadcast(name: string, value?: unknown, options?: Pick<EmitOptions, "headers">): Promise<string> {
    return this.#emitter.broadcast(name, value, options, this.#invocation);
  }

  /** As `Exchange.request`. */
  request<T = unknown>(name: string, value?: unknown, options?: RequestOptions): Promise<T> {
    return this.#emitter.request<T>(name, value, { signal: this.signal, ...options }, this.#invocation);
  }

  /** As `Exchange.requestMany`. */
  requestMany<T = unknown>(name: string, value?: unknown, options?: RequestOptions): Replies<T> {
    return this.#emitter.requestMany<T>(name, value, { signal: this.signal, ...options }, this.#invocation);
  }

  /** Answer before the handler ends: of a request to many, as often as you like; any other request has one answer.
   *
   * Resolves when there is room for the next.
   */
  reply(value: unknown): Promise<void> {
    return this.#reply(value);
  }
}
