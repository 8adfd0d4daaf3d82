/**
 * Frames <-> bytes. What they mean stands in `proto/exchange/v1/frame.proto`.
 *
 * Sequence numbers, sums of bytes and credit are `number`s here: those of a session never come near 2^53, and what a
 * peer says beyond that is only ever compared.
 *
 * @module
 */

import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import {
  type Answer,
  type Batch,
  BatchSchema,
  type Frame,
  FrameSchema,
  type Goodbye,
  type Hello,
  type Interest,
  MessageSchema,
  type Query,
  type Reject,
  type Welcome,
} from "@exchange-grpc/proto";
import { checkMessages } from "./count.js";
import { InvalidMessage, LimitExceeded } from "./errors.js";
import { FRAME_BYTES, HOPS, MESSAGE_BYTES, NAMES_PER_PEER } from "./limits.js";
import { checkId, checkName, checkPattern, shown } from "./patterns.js";

export type { Answer, Batch, Frame, Goodbye, Interest, Query, Reject };

export const PROTOCOL = 1;
export const VALUE = "value"; // the feature: payloads are wanted as `value`
export const RESUME = "resume"; // ... it acknowledges, and may resume
export const PING = "ping"; // ... it answers Ping
export const FEATURES: readonly string[] = [PING, RESUME]; // ours

const SESSION_ID = 64; // characters: ours are shorter
const TOKEN = 64; // bytes
const AGENT = 200;

/** So many messages, and bytes of Batch frames, will be taken in all of the session. */
export interface Credit {
  seq: number;
  bytes: number;
}

/** What is left of `credit` once so much was taken. */
export function beyond(credit: Credit, seq: number, bytes: number): Credit {
  return { seq: Math.max(0, credit.seq - seq), bytes: Math.max(0, credit.bytes - bytes) };
}

/** What Hello and Welcome have in common. */
export interface Introduction {
  exchange: string;
  epoch: bigint;
  protocol: number;
  features: readonly string[];
  agent: string;
  relay: boolean;
  revision: bigint;
  handles: readonly string[];
  subscribes: readonly string[];
  exports: readonly string[];
  messageBytes: number;
  frameBytes: number;
  session: string;
  token: Uint8Array;
  received: number;
  receivedBytes: number;
  credit: Credit | undefined;
  /** Of a Welcome: the session goes on. */
  recovered: boolean;
}

/** Names and patterns that are new, or gone. */
export interface Offers {
  handles?: string[];
  subscribes?: string[];
}

/** What a question looks for: somebody who handles a name, or the exchange with an id. */
export interface Target {
  kind: "name" | "exchange";
  key: string;
}

/** The frame in `data`. Throws InvalidMessage for one that cannot be taken as a whole. */
export function decodeFrame(data: Uint8Array): Frame {
  if (data.length > FRAME_BYTES) throw new LimitExceeded(`the frame is larger than ${FRAME_BYTES} bytes`);
  checkMessages(data);
  let frame: Frame;
  try {
    frame = fromBinary(FrameSchema, data);
  } catch {
    throw new InvalidMessage("the frame cannot be parsed");
  }
  const { kind } = frame;
  if (kind.case === "interest") checkInterest(kind.value);
  if (kind.case === "query") checkQuestion(kind.value.id);
  if (kind.case === "answer" && kind.value.id) checkQuestion(kind.value.id);
  return frame;
}

function checkInterest(interest: Interest): void {
  for (const set of [interest.added, interest.removed]) {
    set?.handles.forEach(checkName);
    set?.subscribes.forEach(checkPattern);
  }
}

function checkQuestion(id: string): void {
  if (!/^[\x20-\x7e]{1,128}$/.test(id)) throw new InvalidMessage(`${shown(id)} is no id of a question`);
}

/** What a Hello or a Welcome says. Throws InvalidMessage. */
export function readIntroduction(packed: Hello | Welcome): Introduction {
  const { interest, credit } = packed;
  const [handles, subscribes, exports] = [
    interest?.handles ?? [],
    interest?.subscribes ?? [],
    interest?.exports ?? [],
  ];
  checkCount(handles.length, subscribes.length, exports.length);
  return {
    exchange: checkId(packed.exchange),
    epoch: packed.epoch,
    protocol: packed.protocol || 1,
    features: packed.features,
    agent: packed.agent.slice(0, AGENT),
    relay: packed.relay,
    revision: interest?.revision ?? 0n,
    handles: handles.map(checkName),
    subscribes: subscribes.map(checkPattern),
    exports: exports.map(checkName),
    messageBytes: Number(packed.limits?.messageBytes ?? 0) || MESSAGE_BYTES,
    frameBytes: Number(packed.limits?.frameBytes ?? 0) || FRAME_BYTES,
    session: packed.session.slice(0, SESSION_ID),
    token: packed.resumeToken.slice(0, TOKEN),
    received: Number(packed.received),
    receivedBytes: Number(packed.receivedBytes),
    credit: credit && { seq: Number(credit.seq), bytes: Number(credit.bytes) },
    recovered: "recovered" in packed && packed.recovered,
  };
}

/** Throws InvalidMessage if a peer declares too much. */
export function checkCount(...counts: number[]): void {
  if (Math.max(...counts) > NAMES_PER_PEER) {
    throw new InvalidMessage(`more than ${NAMES_PER_PEER} names or patterns are declared`);
  }
}

/** What a question looks for. Throws InvalidMessage. */
export function readTarget(frame: Query | Answer): Target {
  const { case: kind, value } = frame.target;
  if (kind === "name") return { kind, key: checkName(value) };
  if (kind === "exchange") return { kind, key: checkId(value) };
  throw new InvalidMessage("a question names what it looks for");
}

/** How many more hops a question may go, no further than any message. */
export function hopsAtMost(hops: number): number {
  return Math.min(hops, HOPS);
}

type Init = NonNullable<MessageInitShape<typeof FrameSchema>["kind"]>;

/** The bytes of any frame but a Batch. */
export function encodeFrame(kind: Init): Uint8Array {
  return toBinary(FrameSchema, create(FrameSchema, { kind }));
}

/** The bytes of a Hello or a Welcome. */
export function encodeIntroduction(kind: "hello" | "welcome", me: Introduction): Uint8Array {
  const { handles, subscribes, exports, revision, credit } = me;
  const said = {
    exchange: me.exchange,
    epoch: me.epoch,
    protocol: me.protocol,
    features: [...me.features],
    agent: me.agent,
    relay: me.relay,
    interest: { revision, handles: [...handles], subscribes: [...subscribes], exports: [...exports] },
    limits: { messageBytes: BigInt(me.messageBytes), frameBytes: BigInt(me.frameBytes) },
    session: me.session,
    resumeToken: me.token,
    received: BigInt(me.received),
    receivedBytes: BigInt(me.receivedBytes),
    ...(credit && { credit: { seq: BigInt(credit.seq), bytes: BigInt(credit.bytes) } }),
  };
  return kind === "hello"
    ? encodeFrame({ case: kind, value: said })
    : encodeFrame({ case: kind, value: { ...said, recovered: me.recovered } });
}

const BATCH = FrameSchema.field.batch.number;
const SEQ = BatchSchema.field.seq.number;
const MESSAGES = BatchSchema.field.messages.number;
const TTL_US = MessageSchema.field.ttlUs.number;

/** The bytes of a Batch frame, of what `packMessage` gave and the microseconds that each message has left. */
export function encodeBatch(seq: number, messages: readonly { data: Uint8Array; leftUs: number }[]): Uint8Array {
  const writer = new BinaryWriter();
  writer.tag(BATCH, WireType.LengthDelimited).fork();
  writer.tag(SEQ, WireType.Varint).uint64(seq);
  for (const { data, leftUs } of messages) {
    writer.tag(MESSAGES, WireType.LengthDelimited).fork();
    writer.raw(data).tag(TTL_US, WireType.Varint).int64(leftUs);
    writer.join();
  }
  return writer.join().finish();
}
