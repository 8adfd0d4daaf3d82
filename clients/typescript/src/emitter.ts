/**
 * Emitting: from a value to a message that is routed, and from its reply back to a value.
 *
 * @module
 */

import { Kind } from "@exchange-grpc/proto";
import type { Invocation } from "./context.js";
import { Cancelled, ExchangeError, type RequestError } from "./errors.js";
import { MESSAGE_BYTES, MESSAGE_SECONDS, REQUEST_SECONDS } from "./limits.js";
import type { Link } from "./link.js";
import { type Draft, type Message, NO_CONTEXT, type Origin } from "./message.js";
import { checkId, checkName } from "./patterns.js";
import { BINARY, encodeJson, JSON_TYPE } from "./payload.js";
import { Replies } from "./replies.js";
import type { Router } from "./router.js";
import { now } from "./time.js";
import { checkHeaders, packMessage } from "./wire.js";

/** How a message is emitted. */
export interface EmitOptions {
  /** The exchange it is for, and no other. */
  to?: string;
  /** Strings that travel along. */
  headers?: Record<string, string>;
  /** The linked peer to send by: the first hop is fixed, and the peer may route on. */
  via?: string;
  /** Of a send: how long it may be under way, 30 s unless said. */
  timeoutSeconds?: number;
}

/** How a request is emitted. */
export interface RequestOptions extends EmitOptions {
  /** How long the answer is waited for: 30 s, or in a handler what is left to its request, unless said. */
  timeoutSeconds?: number;
  /** Aborting it withdraws the request: the handler is told. */
  signal?: AbortSignal;
}

/** Bytes with the name of their format: a value like any other. A plain Uint8Array is `application/octet-stream`. */
export class Data {
  constructor(
    readonly content: Uint8Array,
    readonly contentType: string,
  ) {}
}

/** The payload of a value. Throws InvalidMessage for what cannot be said. */
export function payloadOf(value: unknown): Pick<Draft, "payload" | "contentType"> {
  if (value instanceof Data) return { payload: value.content, contentType: value.contentType };
  if (value instanceof Uint8Array) return { payload: value, contentType: BINARY };
  return { payload: encodeJson(value), contentType: JSON_TYPE };
}

interface Dispatch {
  done: boolean;
  error: RequestError | undefined;
  link: Link | undefined;
  wake: () => void;
}

export class Emitter {
  #dispatching = new Map<string, Dispatch>();
  #waiting = new Map<string, (reply: Message) => void>();
  #replies = new Map<string, Replies>();
  #closed = false;

  constructor(
    private readonly origin: Origin,
    private readonly router: Router,
    private readonly linkCount: () => number,
  ) {}

  async send(name: string, value: unknown, options: EmitOptions = {}, by?: Invocation): Promise<string> {
    const seconds = options.timeoutSeconds ?? MESSAGE_SECONDS;
    return this.#emit(this.#compose(Kind.SEND, name, value, options, seconds, by), options.via);
  }

  async publish(name: string, value: unknown, options: EmitOptions = {}, by?: Invocation): Promise<string> {
    return this.#emit(this.#compose(Kind.PUBLISH, name, value, options, MESSAGE_SECONDS, by));
  }

  async broadcast(name: string, value: unknown, options: EmitOptions = {}, by?: Invocation): Promise<string> {
    return this.#emit(this.#compose(Kind.BROADCAST, name, value, options, MESSAGE_SECONDS, by));
  }

  async request<T>(name: string, value: unknown, options: RequestOptions = {}, by?: Invocation): Promise<T> {
    const { signal } = options;
    const message = this.#compose(Kind.REQUEST, name, value, options, secondsFor(options, by), by);
    if (signal?.aborted) throw withdrawn(signal);
    const reply = await new Promise<Message>((resolve, reject) => {
      const abort = (): void => {
        this.#withdraw(message);
        reject(withdrawn(signal));
      };
      this.#waiting.set(message.id, (answer) => {
        signal?.removeEventListener("abort", abort);
        this.#waiting.delete(message.id);
        resolve(answer);
      });
      signal?.addEventListener("abort", abort, { once: true });
      this.router.route(message, options.via);
    });
    by?.after(reply);
    if (reply.error) throw reply.error;
    return reply.value as T;
  }

  requestMany<T>(name: string, value: unknown, options: RequestOptions = {}, by?: Invocation): Replies<T> {
    const { signal } = options;
    const ask = (replies: Replies<T>): (() => void) => {
      const message = this.#compose(Kind.REQUEST, name, value, options, secondsFor(options, by), by, true);
      const abort = (): void => replies.abort(withdrawn(signal));
      signal?.addEventListener("abort", abort, { once: true });
      this.#replies.set(message.id, replies as unknown as Replies);
      this.router.route(message, options.via);
      return () => {
        signal?.removeEventListener("abort", abort);
        this.#withdraw(message);
      };
    };
    const replies = new Replies<T>(ask, Boolean(options.to), (reply) => by?.after(reply));
    if (signal?.aborted) replies.end(withdrawn(signal));
    return replies;
  }

  /** Put a reply on its way. */
  answer(request: Message, value: unknown, invocation: Invocation, draft: Draft): void {
    const { causes } = invocation;
    const whole = { ...payloadOf(value), to: request.from, replyTo: request.id, ...draft };
    this.router.route(this.origin.make(Kind.REPLY, request.name, causes, now(), MESSAGE_SECONDS, whole));
  }

  #compose(
    kind: Kind,
    name: string,
    value: unknown,
    options: EmitOptions,
    seconds: number,
    by: Invocation | undefined,
    many = false,
  ): Message {
    if (this.#closed) throw new ExchangeError(`${this.origin.exchange} is closed`);
    checkName(name);
    const { to = "", headers } = options;
    if (to) checkId(to);
    const draft: Draft = { ...payloadOf(value), to, many };
    if (headers) draft.headers = checkHeaders({ ...headers });
    const message = this.origin.make(kind, name, by?.causes ?? NO_CONTEXT, now(), seconds, draft);
    // A smaller one has room enough for all the rest. What is too large is refused here, and not at each link.
    if (message.payload.length > MESSAGE_BYTES / 2) packMessage(message, false);
    return message;
  }

  /** Route what is not answered; resolves when it has left and there is room for more. */
  async #emit(message: Message, via?: string): Promise<string> {
    const dispatch: Dispatch = { done: false, error: undefined, link: undefined, wake: () => undefined };
    this.#dispatching.set(message.id, dispatch);
    try {
      this.router.route(message, via);
      if (!dispatch.done) await new Promise<void>((resolve) => (dispatch.wake = resolve));
    } finally {
      this.#dispatching.delete(message.id);
    }
    if (dispatch.error) throw dispatch.error;
    // A send waits for its link; what goes to many must not wait for the slowest of them.
    const { link } = dispatch;
    if (link?.session.out.full) {
      const waits = message.kindNumber === Kind.SEND || this.linkCount() === 1;
      await (waits ? link.room() : new Promise((resolve) => setTimeout(resolve))); // at least the writers must run
    }
    return message.id;
  }

  /** Nobody waits for the answer to this request of ours any more. */
  #withdraw(request: Message): void {
    this.#waiting.delete(request.id);
    this.#replies.delete(request.id);
    if (this.#closed) return;
    const { id, name } = request;
    const context = { ...NO_CONTEXT, causes: [id], root: request.root };
    this.router.route(this.origin.make(Kind.CANCEL, name, context, now(), MESSAGE_SECONDS, { replyTo: id }));
  }

  // ------------------------------------------------------------------------------------ what routing says to us

  /** It was put on this link. */
  transmitted(message: Message, link: Link): void {
    const dispatch = this.#dispatching.get(message.id);
    if (dispatch) dispatch.link = link;
  }

  dispatched(message: Message, error?: RequestError): void {
    const dispatch = this.#dispatching.get(message.id);
    if (!dispatch) return;
    dispatch.done = true;
    dispatch.error = error;
    dispatch.wake();
  }

  resolve(id: string, reply: Message): void {
    const replies = this.#replies.get(id);
    if (replies) {
      replies.take(reply);
      if (replies.over) this.#replies.delete(id);
    } else {
      this.#waiting.get(id)?.(reply);
    }
  }

  /** Resolves when there is room for a further reply to a request that was emitted here. */
  room(id: string): Promise<void> {
    return this.#replies.get(id)?.room() ?? Promise.resolve();
  }

  /** Nothing is emitted any more; whoever waits hears so. */
  close(failed: (request: string) => Message): void {
    this.#closed = true;
    for (const [id, resolve] of [...this.#waiting]) resolve(failed(id));
    for (const [id, replies] of this.#replies) replies.end(failed(id).error);
    for (const dispatch of this.#dispatching.values()) dispatch.wake();
  }
}

function secondsFor({ timeoutSeconds }: RequestOptions, by: Invocation | undefined): number {
  if (timeoutSeconds !== undefined) {
    if (Number.isNaN(timeoutSeconds)) throw new RangeError("timeoutSeconds is a number of seconds, not NaN");
    return timeoutSeconds;
  }
  return by ? Math.min(REQUEST_SECONDS, by.message.deadline - now()) : REQUEST_SECONDS;
}

function withdrawn(signal: AbortSignal | undefined): Cancelled {
  return new Cancelled("the caller withdrew it", { cause: signal?.reason as unknown });
}
