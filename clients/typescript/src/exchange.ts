/**
 * The exchange: what programs use.
 *
 * @module
 */

// `await using` needs these types, in programs for an older standard too.
/// <reference lib="esnext.disposable" preserve="true" />

import { Kind, Outcome } from "@exchange-grpc/proto";
import { type EmitOptions, Emitter, type RequestOptions } from "./emitter.js";
import { AddressError, HandlerFailed, InvalidMessage, LinkError, type RequestError, Unavailable } from "./errors.js";
import { type Handler, Handlers, type Observer, type Owner, type Remove, type Run } from "./handlers.js";
import { Ledger } from "./ledger.js";
import * as limits from "./limits.js";
import type { Limits } from "./limits.js";
import { Link, type Redial } from "./link.js";
import { type LinkEvents, Links } from "./links.js";
import { consoleLog, type Logger } from "./log.js";
import { Message, Origin } from "./message.js";
import { checkId, RESERVED } from "./patterns.js";
import { Peer } from "./peer.js";
import { RemoteState } from "./remote.js";
import type { Replies } from "./replies.js";
import { type Host, Router } from "./router.js";
import type { Farewell } from "./session.js";
import { Session } from "./session.js";
import { System, type WhyAnswer } from "./system.js";
import { now, wallUs, within } from "./time.js";
import type { TraceAnswer } from "./traces.js";
import { type Credentials, type Listener, type ListenOptions, schemeOf } from "./transport.js";

export const AGENT = "typescript/0.1.0";

/** What an exchange may be told. */
export interface ExchangeOptions {
  /** Names and the functions that handle them. */
  handlers?: Record<string, Handler<never>>;
  /** Limits other than the defaults. */
  limits?: Partial<Limits>;
  /** Where it says what people should know: the console, unless said. */
  log?: Logger;
}

/** How to connect. */
export interface ConnectOptions extends Credentials {
  /** For how many seconds a link that breaks is dialled again: for ever, unless said; 0: never. */
  retrySeconds?: number;
}

/** What happens to an exchange itself. */
export interface ExchangeEvents extends LinkEvents {
  /** A send of ours was not handled: by whom, and why. */
  unhandled: { id: string; name: string; outcome: string; reason: string; text: string; at: string };
}

type Listeners = { [K in keyof ExchangeEvents]: Set<(event: ExchangeEvents[K]) => unknown> };

/** A process, a page, or a part of one, that handles, emits and asks messages.
 *
 * `id` names it in its mesh: 1 to 64 of `A-Z a-z 0-9 _ -`; made up if not given. It is a leaf: it passes on nothing of
 * what others send each other, though it may have several links, and in Node.js may be connected to.
 *
 * @example
 * ```ts
 * import { Exchange } from "@exchange-grpc/client";
 *
 * const shop = new Exchange("bread-shop");
 * shop.handle("bread.price", ({ value }) => (value === "rye" ? 4 : 3));
 * await shop.connect("ws://127.0.0.1:8080");
 * console.log(await shop.request("bread.price", "rye")); // 4
 * console.log(await shop.request("compute.sum", { a: 5, b: 3 })); // 8
 * await shop.close();
 * ```
 */
export class Exchange {
  readonly id: string;
  readonly limits: Readonly<Limits>;
  readonly #log: Logger;
  readonly #origin: Origin;
  readonly #ledger: Ledger;
  readonly #router: Router;
  readonly #emitter: Emitter;
  readonly #handlers: Handlers;
  readonly #links: Links<Peer>;
  readonly #system: System;
  readonly #listeners: Listener[] = [];
  readonly #events: Listeners = {
    connected: new Set(),
    lost: new Set(),
    resumed: new Set(),
    gaveUp: new Set(),
    unhandled: new Set(),
  };
  #closing: Promise<void> | undefined;

  constructor(id?: string, options: ExchangeOptions = {}) {
    this.id = checkId(id ?? `ts-${hex(crypto.getRandomValues(new Uint8Array(6)))}`);
    this.limits = limits.limitsWith(options.limits);
    this.#log = options.log ?? consoleLog;
    this.#origin = new Origin(this.id, BigInt(wallUs()), wallUs);
    this.#ledger = new Ledger(this.id, wallUs);
    this.#router = new Router(this.#origin, this.#ledger, this.#host());
    this.#emitter = new Emitter(this.#origin, this.#router, () => this.#links.byPeer.size);
    this.#handlers = new Handlers(this.#owner());
    const parts = { emitter: this.#emitter, handlers: this.#handlers, router: this.#router };
    this.#links = new Links<Peer>(
      this.id,
      this.#origin.epoch,
      AGENT,
      this.#router,
      (link, introduction) => new Peer(link, introduction, parts),
      (event, value) => this.#tell(event, value as ExchangeEvents[typeof event]),
      this.#log,
    );
    this.#system = new System(this.id, this.#ledger, this.#router, this.#links, this.#emitter);
    this.#system.install(this.#handlers);
    for (const [name, handler] of Object.entries(options.handlers ?? {})) this.handle(name, handler);
  }

  // ------------------------------------------------------------------------------------------------ registering

  /** Answer messages named `name`: the one function that claims it, run at most `concurrency` times at once.
   *
   * What it returns answers a request; an async generator answers a request to many once for each value. It says no by
   * throwing `Refused`; whatever else it throws reaches the caller as a fixed text, and the details the log.
   */
  handle<T = unknown>(name: string, handler: Handler<T>, options: { concurrency?: number } = {}): Remove {
    return this.#handlers.handle(name, handler, options);
  }

  /** Hear messages named `name` beside its handler. It claims the name, and answers nothing. */
  on<T = unknown>(name: string, listener: Handler<T>): Remove {
    return this.#handlers.listen(name, listener);
  }

  /** Hear every publication, anywhere in the mesh, whose name fits `pattern`. */
  subscribe<T = unknown>(pattern: string, subscriber: Handler<T>): Remove {
    return this.#handlers.subscribe(pattern, subscriber);
  }

  /** See all that is received and emitted here and fits `pattern`, but for what belongs to the system. It claims nothing. */
  observe(pattern: string, observer: Observer): Remove {
    return this.#handlers.observe(pattern, observer);
  }

  /** Hear what happens to this exchange itself. */
  when<K extends keyof ExchangeEvents>(event: K, listener: (event: ExchangeEvents[K]) => unknown): Remove {
    const listeners = this.#events[event];
    listeners.add(listener);
    return () => void listeners.delete(listener);
  }

  // ----------------------------------------------------------------------------------------------------- emitting

  /** Send a message to one exchange that handles `name` (here, next to here, or found by asking), or to `to`.
   *
   * Resolves with its id once it was taken here or put on its way; waits while the way is congested. Rejects with
   * Unhandled if nobody takes it, InvalidMessage for what cannot be sent. What goes wrong further on is the event
   * `unhandled`.
   */
  send(name: string, value?: unknown, options?: EmitOptions): Promise<string> {
    return this.#emitter.send(name, value, options);
  }

  /** Ask one exchange that handles `name`, or `to`. Rejects with a RequestError if it ends without an answer. */
  request<T = unknown>(name: string, value?: unknown, options?: RequestOptions): Promise<T> {
    return this.#emitter.request<T>(name, value, options);
  }

  /** Ask every exchange within reach that handles `name`, or `to`; each may answer many times. */
  requestMany<T = unknown>(name: string, value?: unknown, options?: RequestOptions): Replies<T> {
    return this.#emitter.requestMany<T>(name, value, options);
  }

  /** Send a message to every exchange of the mesh that subscribes to `name`, once each. Resolves with its id. */
  publish(name: string, value?: unknown, options?: Pick<EmitOptions, "headers">): Promise<string> {
    return this.#emitter.publish(name, value, options);
  }

  /** Send a message to every direct peer, one hop, interested or not. Resolves with its id. */
  broadcast(name: string, value?: unknown, options?: Pick<EmitOptions, "headers">): Promise<string> {
    return this.#emitter.broadcast(name, value, options);
  }

  /** What another exchange, anywhere in the mesh, shares of its state. */
  stateOf(exchange: string): RemoteState {
    return new RemoteState(checkId(exchange), this.#emitter);
  }

  /** All that is known of the message `id` and of those with the same root, here and where they have been. */
  trace(id: string): Promise<TraceAnswer> {
    return this.#system.trace(id, now() + limits.REQUEST_SECONDS);
  }

  /** Why a state name of `exchange` has its value; or, without `exchange`, what became of the message with this id. */
  why(key: string, exchange?: string): Promise<WhyAnswer> {
    if (exchange === undefined || exchange === this.id) return this.#system.why(key, now() + limits.REQUEST_SECONDS);
    return this.#emitter.request<WhyAnswer>("exchange.why", { key }, { to: exchange });
  }

  // -------------------------------------------------------------------------------------------------------- links

  /** The exchanges that are linked to this one. */
  get peers(): Peer[] {
    return [...this.#links.peers.values()];
  }

  /** Link to the exchange at `url`, `ws://HOST:PORT` or `wss://HOST:PORT`; without a path that is `/v1/peer`.
   *
   * Resolves with the peer; the existing one if the two are linked already. A link that breaks is made again. Rejects with
   * AddressError for a URL that is none, LinkError if nobody answers there or the link is refused.
   */
  async connect(url: string, options: ConnectOptions = {}): Promise<Peer> {
    this.#enter();
    const { retrySeconds = Infinity, ...credentials } = options;
    const scheme = schemeOf(url);
    const dial = (): ReturnType<typeof scheme.dial> => scheme.dial(url, credentials);
    const transport = dial();
    const link = this.#link(true, retrySeconds > 0 ? { dial, seconds: retrySeconds } : undefined);
    const connection = link.attach(transport);
    const connecting = transport.connect();
    if (!(await within(connecting, limits.CONNECT_SECONDS))) {
      void transport.disconnect();
      throw new LinkError(`nobody answered at ${url} within ${limits.CONNECT_SECONDS} s`);
    }
    await connecting;
    this.#enter(); // it may have been closed meanwhile
    this.#links.begun(link);
    link.start(connection);
    const id = await link.opening;
    const peer = this.#links.peers.get(id);
    if (!peer) throw new LinkError(`the link was refused or lost: ${link.endReason}`);
    return peer;
  }

  /** Let others link to this exchange at `url`, such as `ws://127.0.0.1:0`: port 0 takes a free one. Node.js only.
   *
   * Resolves with the URL, with the port. What peers send each other is not passed on: this exchange is a leaf.
   */
  async listen(url: string, options: ListenOptions = {}): Promise<string> {
    this.#enter();
    const listener = await schemeOf(url).listen(url, options, (transport) => {
      const link = this.#link(false);
      const connection = link.attach(transport);
      this.#links.begun(link);
      link.start(connection);
    });
    this.#listeners.push(listener);
    return listener.url;
  }

  /** Let running handlers end (within 10 s), say goodbye to all peers, and leave nothing behind. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await within(this.#handlers.idle(), limits.STOP_SECONDS);
    await this.#closeLinks();
    for (const listener of this.#listeners) await listener.close();
    await this.#closeLinks(); // those that came in meanwhile
    this.#handlers.close();
    this.#emitter.close((request) => {
      const error = new Unavailable(`the exchange ${this.id} was closed`, { at: this.id });
      return Object.assign(new Message(), { replyTo: request, error });
    });
    this.#router.open.stop();
    this.#router.discovery.close();
  }

  async #closeLinks(): Promise<void> {
    const farewell: Farewell = this.#listeners.length > 0 ? { retryAfterMs: limits.RETRY_AFTER_MS } : {};
    const closing = [...this.#links.all].map((link) => link.close(farewell));
    await within(Promise.all(closing), 3 * limits.DRAIN_SECONDS);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #enter(): void {
    if (this.#closing) throw new AddressError(`the exchange ${this.id} is closed`);
  }

  #link(dialled: boolean, redial?: Redial): Link {
    const draw = (size: number): Uint8Array => crypto.getRandomValues(new Uint8Array(size));
    const session = new Session(this.#links.introduction(), { dialled, now: now(), limits: this.limits, draw });
    return new Link(session, this.#links, this.limits, redial);
  }

  // ----------------------------------------------------------------------------------- what the parts say to us

  #tell<K extends keyof ExchangeEvents>(event: K, value: ExchangeEvents[K]): void {
    this.#log.debug(event, value);
    for (const listener of this.#events[event]) {
      queueMicrotask(() => {
        void (async () => {
          try {
            await listener(value);
          } catch (error) {
            this.#log.error(`a listener of ${event} failed`, error);
          }
        })();
      });
    }
  }

  #host(): Host {
    return {
      now,
      wallUs,
      deliver: (message, link) => this.#handlers.deliver(message, link),
      transmit: (to, message) => this.#emitter.transmitted(message, this.#links.send(to, message)),
      control: (to, frame) => this.#links.control(to, frame),
      announce: (added, removed) => this.#links?.announce(added, removed),
      resolve: (id, reply) => this.#emitter.resolve(id, reply),
      dispatched: (message, error) => this.#emitter.dispatched(message, error),
      withdraw: (id) => this.#handlers.withdraw(id),
      unhandled: (message, outcome, error) => this.#unhandled(message, outcome, error),
      observed: (seen, message) => this.#handlers.observed(seen, message),
    };
  }

  #unhandled({ id, name }: Message, outcome: Outcome, { message: text, reason, at }: RequestError): void {
    if (name.startsWith(RESERVED)) return; // we asked about a trace, and name in it whom we could not ask
    this.#log.debug(`${name} ${id} was not handled: ${text} (at ${at || this.id})`);
    this.#tell("unhandled", { id, name, outcome: Outcome[outcome], reason, text, at });
  }

  #owner(): Owner {
    return {
      id: this.id,
      log: this.#log,
      emitter: this.#emitter,
      offer: (name, offered) => this.#router.offer(name, offered),
      subscribe: (pattern, wanted) => this.#router.subscribe(pattern, wanted),
      replyMore: (run, value) => this.#replyMore(run, value),
      ended: (run) => this.#ended(run),
    };
  }

  /** One of many replies, or the one answer of any other request. */
  async #replyMore({ invocation }: Run, value: unknown): Promise<void> {
    const { message, link } = invocation;
    if (message.kindNumber !== Kind.REQUEST || invocation.answered) return;
    this.#emitter.answer(message, value, invocation, { last: !message.many });
    invocation.answered = !message.many;
    const out = link === undefined ? undefined : this.#links.byPeer.get(link);
    if (out?.session.out.full) await out.room();
    else await this.#emitter.room(message.id);
  }

  /** A handler has ended: record it, and answer what it left unanswered. */
  #ended(run: Run): void {
    const { invocation, registered, outcome, error, seconds } = run;
    const { message, link } = invocation;
    let reason = error?.message ?? "";
    if (message.kindNumber === Kind.REQUEST && !invocation.answered) {
      reason = this.#answer(run)?.message ?? reason;
    } else if (message.kindNumber === Kind.SEND && error) {
      this.#router.failed(message, link, outcome, error);
    }
    this.#ledger.record(message.id, reason && !error ? Outcome.FAILED : outcome, { by: registered.label, seconds, reason });
  }

  /** Answer a request with what its handler returned or threw; what went wrong with that, if anything did. */
  #answer({ invocation, result, error, registered }: Run): RequestError | undefined {
    const { message } = invocation;
    invocation.answered = true;
    try {
      // To many, who returned nothing has said all by now.
      const end = message.many && !error && result === undefined ? { lost: [] } : {};
      this.#emitter.answer(message, error ? undefined : result, invocation, { last: true, error, ...end });
      return undefined;
    } catch (problem) {
      if (!(problem instanceof InvalidMessage)) throw problem;
      this.#log.error(`the answer of ${registered.label} to ${message.id} cannot be sent`, problem);
      const text = `the answer of the handler of ${message.name} cannot be said in JSON`;
      const failed = new HandlerFailed(text, { reason: "ANSWER", at: this.id });
      this.#emitter.answer(message, undefined, invocation, { last: true, error: failed });
      return failed;
    }
  }
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

