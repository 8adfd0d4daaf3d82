/**
 * Message: the one noun that travels, and what it says of its way and its causes.
 *
 * The fields are those of `proto/exchange/v1/message.proto`, whose comments are the reference. Two are said differently
 * in memory: `deadline` is a point on the monotonic clock of this process, in seconds, where the wire has the time
 * left; and hops are two lists of equal length, `way` and `times`.
 *
 * @module
 */

import { blake2b } from "@noble/hashes/blake2.js";
import { bytesToHex, utf8ToBytes } from "@noble/hashes/utils.js";
import { Kind, Outcome } from "@exchange-grpc/proto";
import type { RequestError } from "./errors.js";
import { CAUSES, PATH, TRACE_BASE_BYTES } from "./limits.js";
import { decodeJson, JSON_TYPE, NULL } from "./payload.js";

export { Kind, Outcome };

/** Who takes a message, as a word. */
export type KindName = "send" | "request" | "reply" | "cancel" | "outcome" | "publish" | "broadcast";

/** One stop of a message: the exchange, and when it got there (microseconds since the Unix epoch, by its clock). */
export interface Hop {
  exchange: string;
  atUs: number;
}

/** The link by which a message came: it lets so much more come as does not wait here. */
export interface Keeper {
  release(size: number): void;
  retain(size: number): void;
  settle(seq: number): void;
}

const NOTHING: readonly string[] = [];
/** Of most messages. */
export const NO_HEADERS: Readonly<Record<string, string>> = Object.freeze({});

/** One message. Treat it as immutable. `T` is what its value is taken for: nobody has checked it. */
export class Message<T = unknown> {
  id = "";
  name = "";
  /** The id of the exchange that made it. */
  from = "";
  /** The id of the exchange it is for and no other, or empty. */
  to = "";
  /** Metadata that travels along. */
  headers: Readonly<Record<string, string>> = NO_HEADERS;
  /** The content type of the payload: `application/json`, unless it is bytes. */
  contentType = JSON_TYPE;
  /** What it carries, as bytes. */
  payload: Uint8Array = NULL;
  /** When the origin made it, in microseconds since the Unix epoch, by the origin's clock. */
  timestampUs = 0;
  /** The ids of the messages directly behind it, the newest last. */
  causes: readonly string[] = NOTHING;
  /** The request that is answered or withdrawn, or the send that an outcome tells of. */
  replyTo = "";
  /** Of a reply: why there is no value. */
  error: RequestError | undefined;

  /** @internal */ kindNumber: Kind = Kind.SEND;
  /** @internal */ deadline = Infinity;
  /** @internal */ way: readonly string[] = NOTHING;
  /** @internal */ times: readonly number[] = [];
  /** @internal */ rootId = "";
  /** @internal */ path: readonly string[] = NOTHING;
  /** @internal */ cut = false;
  /** @internal */ foreignParent = "";
  /** @internal */ last = false;
  /** @internal */ outcome: Outcome = Outcome.UNSPECIFIED;
  /** @internal */ many = false;
  /** @internal */ lost: readonly string[] | undefined;
  /** @internal */ packed: Uint8Array | undefined;
  /** @internal */ keeper: Keeper | undefined;
  /** @internal */ seq = 0;
  #value: unknown = UNREAD;

  /** Who takes it. */
  get kind(): KindName {
    return Kind[this.kindNumber].toLowerCase() as KindName;
  }

  /** The payload: what JSON says, or a Uint8Array if it is no JSON. Throws InvalidMessage if it cannot be read. */
  get value(): T {
    if (this.#value === UNREAD) {
      this.#value = this.contentType === JSON_TYPE ? decodeJson(this.payload) : this.payload;
    }
    return this.#value as T;
  }

  /** The exchanges visited, from the root along the newest cause to here. */
  get trace(): string[] {
    return merged([...this.path, ...this.way]);
  }

  /** Where this very message has been. */
  get hops(): Hop[] {
    return this.way.map((exchange, at) => ({ exchange, atUs: this.times[at] ?? 0 }));
  }

  /** The id of the message where it all began: its own if nothing stands behind it. */
  get root(): string {
    return this.rootId || this.id;
  }

  /** Its W3C trace context: what it says itself, or what follows from its root and its id. */
  get traceparent(): string {
    return this.foreignParent || childParent(`00-${digest(this.root, 16)}-`, this.id);
  }

  /** @internal */
  reached(exchange: string, atUs: number): void {
    this.way = [...this.way, exchange];
    this.times = [...this.times, atUs];
  }

  /** @internal Nobody here has to do anything with it any more. */
  settled(): void {
    this.keeper?.settle(this.seq);
  }
}

const UNREAD = Symbol("unread");

function merged(names: readonly string[]): string[] {
  return names.filter((name, at) => name !== names[at - 1]);
}

function digest(id: string, size: number): string {
  return bytesToHex(blake2b(utf8ToBytes(id), { dkLen: size }));
}

/** The W3C context of a message: that of `parent`, with a span of its own. */
function childParent(parent: string, id: string): string {
  return `${parent.slice(0, 36)}${digest(id, 8)}-${parent.slice(53) || "01"}`;
}

/** What stands behind a message that is emitted now. */
export interface Context {
  readonly causes: readonly string[];
  readonly root: string;
  readonly path: readonly string[];
  readonly cut: boolean;
  readonly foreignParent: string;
}

/** A beginning. */
export const NO_CONTEXT: Context = { causes: NOTHING, root: "", path: NOTHING, cut: false, foreignParent: "" };

/** The context of a handler that was given `message`. */
export function contextOf(message: Message): Context {
  const names = message.trace;
  return {
    causes: [message.id],
    root: message.root,
    path: names.slice(-PATH),
    cut: message.cut || names.length > PATH,
    foreignParent: message.foreignParent,
  };
}

/** The same context after `reply` was awaited in it: a further, newer cause. */
export function contextAfter(context: Context, reply: Message): Context {
  const names = reply.trace;
  const causes = [...context.causes, reply.id];
  return {
    causes: causes.slice(-CAUSES),
    root: context.root || reply.root,
    path: names.slice(-PATH),
    cut: context.cut || reply.cut || names.length > PATH || causes.length > CAUSES,
    foreignParent: context.foreignParent || reply.foreignParent,
  };
}

/** As much of the path, the newest last, as a trace has room for. */
function fitting(context: Context): { path: readonly string[]; cut: boolean } {
  let { path, cut } = context;
  const lengths = (texts: readonly string[]): number => texts.reduce((sum, text) => sum + text.length + 2, 0);
  let size = lengths(context.causes) + lengths(path) + context.root.length;
  while (path[0] !== undefined && size > TRACE_BASE_BYTES) {
    cut = true;
    size -= path[0].length + 2;
    path = path.slice(1);
  }
  return { path, cut };
}

/** What may be said of a new message; all else has a default. Spelt out, for the types of the package leave out what is internal. */
export interface Draft {
  to?: string;
  payload?: Uint8Array;
  contentType?: string;
  headers?: Readonly<Record<string, string>>;
  replyTo?: string;
  last?: boolean;
  error?: RequestError | undefined;
  outcome?: Outcome;
  many?: boolean;
  lost?: readonly string[] | undefined;
}

/** Makes the messages of one exchange. */
export class Origin {
  #count = 0;
  readonly #way: readonly string[];

  constructor(
    readonly exchange: string,
    readonly epoch: bigint,
    /** The time of day in microseconds. */
    private readonly wallUs: () => number,
  ) {
    this.#way = [exchange];
  }

  /** A new message, emitted now in `context`, with `seconds` to live. */
  make(kind: Kind, name: string, context: Context, now: number, seconds: number, draft: Draft): Message {
    const message = Object.assign(new Message(), draft);
    message.id = `${this.exchange}.${this.epoch}.${++this.#count}`;
    message.name = name;
    message.kindNumber = kind;
    message.from = this.exchange;
    message.timestampUs = this.wallUs();
    message.deadline = now + seconds;
    message.way = this.#way;
    message.times = [message.timestampUs];
    if (context !== NO_CONTEXT) {
      message.causes = context.causes;
      message.rootId = context.root;
      Object.assign(message, fitting(context));
      if (context.foreignParent) message.foreignParent = childParent(context.foreignParent, message.id);
    }
    return message;
  }

  /** The id of a new question. */
  question(): string {
    return `${this.exchange}.${this.epoch}.q${++this.#count}`;
  }
}
