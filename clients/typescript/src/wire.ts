/**
 * Messages <-> bytes, and `value` <-> `json`: with `frames.ts` the only door to generated code.
 *
 * A new message is packed once. The time it has left is the last part of it, written when it leaves: protobuf joins what
 * is concatenated. A `google.protobuf.Value` lives no longer than this module: it becomes JSON when it is read, and JSON
 * becomes `Value` only for somebody who asked that way.
 *
 * @module
 */

import { create, fromJson, type JsonValue, toBinary } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { anyPack, anyUnpack, type Value, ValueSchema } from "@bufbuild/protobuf/wkt";
import {
  DataSchema,
  EndSchema,
  ErrorInfoSchema,
  HopSchema,
  Kind,
  type Message as Packed,
  MessageSchema,
  Outcome,
  type Status,
  StatusSchema,
  type Trace as PackedTrace,
  TraceSchema,
} from "@exchange-grpc/proto";
import { Code, codeName, InvalidMessage, LimitExceeded, RequestError, requestError } from "./errors.js";
import * as limits from "./limits.js";
import { Message, NO_HEADERS } from "./message.js";
import { checkId, checkMessageId, checkName, shown } from "./patterns.js";
import { BINARY, decodeJson, encodeJson, JSON_TYPE, NULL } from "./payload.js";

const DOMAIN = "exchange"; // of google.rpc.ErrorInfo
const TIME_LEFT_BYTES = 11; // of `ttl_us`, which is written after the size was checked
const TEXT = 1_000; // characters of an error that are sent: a sentence for people
const TRACEPARENT = /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/;
const encoder = new TextEncoder();

// ------------------------------------------------------------------------------------------------------ reading

/** The message in `packed`, and whether its payload came as `value`. Throws InvalidMessage.
 *
 * `id`, `from` and hops may still be empty: whoever knows the peer fills them in.
 */
export function readMessage(packed: Packed, now: number): { message: Message; usedValue: boolean } {
  const message = new Message();
  message.kindNumber = packed.kind === Kind.UNSPECIFIED ? Kind.SEND : packed.kind;
  if (Kind[message.kindNumber] === undefined) {
    throw new InvalidMessage(`no such kind of message: ${packed.kind}`);
  }
  message.name = checkName(packed.name);
  readIds(packed, message);
  if (packed.ttlUs < 0n) throw new InvalidMessage("the time left (`ttl_us`) is negative");
  message.deadline = now + (packed.ttlUs ? Number(packed.ttlUs) / 1e6 : limits.MESSAGE_SECONDS);
  const usedValue = readPayload(packed, message);
  if (packed.trace) readTrace(packed.trace, message);
  message.headers = checkHeaders(packed.headers);
  message.timestampUs = Number(packed.timestampUs);
  message.last = packed.last;
  message.many = packed.many && message.kindNumber === Kind.REQUEST;
  message.outcome = packed.outcome;
  if (packed.error) message.error = readStatus(packed.error);
  if (packed.end && message.replyTo) message.lost = packed.end.lost.slice(0, limits.LOST_NAMES).map(checkId);
  return { message, usedValue };
}

function readIds(packed: Packed, message: Message): void {
  const { id, from, to, replyTo } = packed;
  if (id) {
    const origin = checkMessageId(id);
    if (from && from !== origin) throw new InvalidMessage(`${shown(id)} is no message id of ${shown(from)}`);
  } else if (from) {
    checkId(from);
  }
  if (to) checkId(to);
  if (replyTo) {
    checkMessageId(replyTo);
  } else if ([Kind.REPLY, Kind.CANCEL, Kind.OUTCOME].includes(message.kindNumber)) {
    throw new InvalidMessage(`a ${message.kind} must say what it belongs to (\`reply_to\`)`);
  }
  Object.assign(message, { id, from, to, replyTo });
}

function readPayload(packed: Packed, message: Message): boolean {
  const { payload } = packed;
  switch (payload.case) {
    case "json":
      message.payload = payload.value;
      return false;
    case "data":
      if (payload.value.contentType.length > limits.CONTENT_TYPE_BYTES) {
        throw new LimitExceeded(`the content type is longer than ${limits.CONTENT_TYPE_BYTES} bytes`);
      }
      message.contentType = payload.value.contentType || BINARY;
      message.payload = payload.value.content;
      return false;
    case "value":
      message.payload = encodeJson(fromValue(payload.value, limits.PAYLOAD_DEPTH));
      return true;
    default:
      message.payload = NULL;
      return false;
  }
}

function fromValue(value: Value, depth: number): unknown {
  const { kind } = value;
  switch (kind.case) {
    case "numberValue":
      if (Number.isInteger(kind.value) && Math.abs(kind.value) >= 2 ** 53) return fromLarge(kind.value);
      if (!Number.isFinite(kind.value)) throw new InvalidMessage(`${kind.value} cannot be said in JSON`);
      return kind.value;
    case "stringValue":
    case "boolValue":
      return kind.value;
    case "listValue":
    case "structValue":
      if (depth === 0) {
        throw new LimitExceeded(`the payload is nested deeper than ${limits.PAYLOAD_DEPTH} levels`);
      }
      return kind.case === "listValue"
        ? kind.value.values.map((item) => fromValue(item, depth - 1))
        : Object.fromEntries(Object.entries(kind.value.fields).map(([key, item]) => [key, fromValue(item, depth - 1)]));
    default:
      return null;
  }
}

function fromLarge(number: number): bigint {
  if (Math.abs(number) === 2 ** 53) return BigInt(number);
  throw new InvalidMessage(`${number} is beyond 2^53, where \`value\` is not exact: send it as \`json\``);
}

function readTrace(packed: PackedTrace, message: Message): void {
  const { hops, causes, path, root } = packed;
  if (traceBytes(packed) > limits.TRACE_BYTES && toBinary(TraceSchema, packed).length > limits.TRACE_BYTES) {
    throw new LimitExceeded(`the trace is larger than ${limits.TRACE_BYTES} bytes`);
  }
  if (hops.length > limits.HOPS || causes.length > limits.CAUSES || path.length > limits.PATH) {
    throw new LimitExceeded(
      `the trace has more than ${limits.HOPS} hops, ${limits.CAUSES} causes or ${limits.PATH} exchanges in its path`,
    );
  }
  message.way = hops.map((hop) => checkId(hop.exchange));
  message.times = hops.map((hop) => Number(hop.atUs));
  causes.forEach(checkMessageId);
  if (root) checkMessageId(root);
  message.causes = causes;
  message.path = path.map(checkId);
  message.rootId = root;
  message.cut = packed.cut;
  if (TRACEPARENT.test(packed.traceparent)) message.foreignParent = packed.traceparent;
}

/** The size of a trace on the wire, no smaller than it is as long as its texts are ASCII, as all ids are. */
function traceBytes(packed: PackedTrace): number {
  const texts = packed.causes.concat(packed.path, packed.root, packed.traceparent);
  const size = texts.reduce((sum, text) => sum + text.length + 2, 0);
  return packed.hops.reduce((sum, hop) => sum + hop.exchange.length + 14, size);
}

/** `headers`, if they are strings within their limit. Throws InvalidMessage. */
export function checkHeaders(headers: Readonly<Record<string, string>>): Readonly<Record<string, string>> {
  let size = 0;
  for (const [key, value] of Object.entries(headers)) {
    if (!key || typeof value !== "string") {
      throw new InvalidMessage("headers are strings with keys that are not empty");
    }
    if (!key.isWellFormed() || !value.isWellFormed()) {
      throw new InvalidMessage(
        `the header ${shown(key)} has half a surrogate pair, which UTF-8 cannot say`,
      );
    }
    size += encoder.encode(key).length + encoder.encode(value).length;
  }
  if (size > limits.HEADERS_BYTES) {
    throw new LimitExceeded(`the headers are larger than ${limits.HEADERS_BYTES} bytes`);
  }
  return headers;
}

// ------------------------------------------------------------------------------------------------------ packing

/** The bytes of `message`, without the time it has left. Throws InvalidMessage, LimitExceeded. */
export function packMessage(message: Message, asValue: boolean): Uint8Array {
  const plain = !asValue || message.contentType !== JSON_TYPE;
  const data = plain && message.packed ? message.packed : pack(message, !plain);
  if (plain) message.packed = data;
  if (data.length + TIME_LEFT_BYTES > limits.MESSAGE_BYTES) {
    throw new LimitExceeded(`the message is larger than ${limits.MESSAGE_BYTES} bytes`);
  }
  return data;
}

/** What all messages have is written by hand, and what few have by generated code: that takes half the time. */
function pack(message: Message, asValue: boolean): Uint8Array {
  const writer = new BinaryWriter();
  writeText(writer, FIELD.id.number, message.id);
  writeText(writer, FIELD.name.number, message.name);
  writeText(writer, FIELD.from.number, message.from);
  writeText(writer, FIELD.to.number, message.to);
  writer.tag(FIELD.kind.number, WireType.Varint).int32(message.kindNumber);
  const isPlain = message.contentType === JSON_TYPE && !asValue;
  if (isPlain) writer.tag(FIELD.json.number, WireType.LengthDelimited).bytes(message.payload);
  writer.tag(FIELD.trace.number, WireType.LengthDelimited).fork();
  writeTrace(writer, message);
  writer.join();
  writer.tag(FIELD.timestampUs.number, WireType.Varint).int64(message.timestampUs);
  writeText(writer, FIELD.replyTo.number, message.replyTo);
  if (message.last) writer.tag(FIELD.last.number, WireType.Varint).bool(true);
  if (!isPlain || hasMore(message)) writer.raw(packRest(message, asValue));
  return writer.finish();
}

const FIELD = MessageSchema.field;
const OF_TRACE = TraceSchema.field;
const OF_HOP = HopSchema.field;

function writeText(writer: BinaryWriter, field: number, text: string): void {
  if (text) writer.tag(field, WireType.LengthDelimited).string(text);
}

function writeTrace(writer: BinaryWriter, message: Message): void {
  message.way.forEach((exchange, at) => {
    writer.tag(OF_TRACE.hops.number, WireType.LengthDelimited).fork();
    writeText(writer, OF_HOP.exchange.number, exchange);
    writer.tag(OF_HOP.atUs.number, WireType.Varint).int64(message.times[at] ?? 0);
    writer.join();
  });
  for (const cause of message.causes) writeText(writer, OF_TRACE.causes.number, cause);
  writeText(writer, OF_TRACE.root.number, message.rootId);
  for (const exchange of message.path) writeText(writer, OF_TRACE.path.number, exchange);
  if (message.cut) writer.tag(OF_TRACE.cut.number, WireType.Varint).bool(true);
  writeText(writer, OF_TRACE.traceparent.number, message.foreignParent);
}

function hasMore({ headers, outcome, many, error, lost }: Message): boolean {
  return headers !== NO_HEADERS || outcome !== Outcome.UNSPECIFIED || many || error !== undefined || lost !== undefined;
}

/** What few messages have. */
function packRest(message: Message, asValue: boolean): Uint8Array {
  const { headers, outcome, many, error, lost } = message;
  const packed = create(MessageSchema, { headers: { ...headers }, outcome, many });
  if (asValue || message.contentType !== JSON_TYPE) packed.payload = packPayload(message);
  if (error) packed.error = packStatus(error);
  if (lost) packed.end = create(EndSchema, { lost: [...lost] });
  return toBinary(MessageSchema, packed);
}

/** A payload that does not leave as `json`. */
function packPayload({ contentType, payload }: Message): Packed["payload"] {
  if (contentType !== JSON_TYPE) return { case: "data", value: create(DataSchema, { contentType, content: payload }) };
  return { case: "value", value: fromJson(ValueSchema, exactly(decodeJson(payload)) as JsonValue) };
}

/** The value, if a `Value` can say it: whole numbers up to 2^53. */
function exactly(item: unknown): unknown {
  if (typeof item === "bigint") {
    if (item === 2n ** 53n || item === -(2n ** 53n)) return Number(item);
    throw new InvalidMessage(`${item} is beyond 2^53, where \`value\` is not exact: ask with \`json\``);
  }
  if (Array.isArray(item)) return item.map(exactly);
  if (typeof item !== "object" || item === null) return item;
  return Object.fromEntries(Object.entries(item).map(([key, below]) => [key, exactly(below)]));
}

// ------------------------------------------------------------------------------------------------------- errors

/** The error that a `google.rpc.Status` stands for. */
export function readStatus(packed: Status): RequestError {
  const code = Object.values(Code).find((known) => known === packed.code) ?? Code.UNKNOWN;
  let reason = "";
  let metadata: Record<string, string> = {};
  for (const detail of packed.details) {
    try {
      const info = anyUnpack(detail, ErrorInfoSchema);
      if (info === undefined) continue;
      ({ reason, metadata } = info);
      break;
    } catch {
      continue; // a foreign detail that lies about its type: the status itself still counts
    }
  }
  return requestError(code, packed.message, {
    reason: reason || codeName(code),
    at: metadata.at ?? "",
    delivered: metadata.delivered === "no" ? false : undefined,
  });
}

/** `error` as a `google.rpc.Status`. */
export function packStatus(error: RequestError): Status {
  const metadata: Record<string, string> = {};
  if (error.at) metadata.at = error.at;
  if (error.code === Code.UNAVAILABLE) metadata.delivered = error.delivered === false ? "no" : "unknown";
  const info = create(ErrorInfoSchema, { reason: error.reason.toWellFormed(), domain: DOMAIN, metadata });
  const message = error.message.slice(0, TEXT).toWellFormed();
  return create(StatusSchema, { code: error.code, message, details: [anyPack(ErrorInfoSchema, info)] });
}

/** The text of an id that may be none, for whoever has to be told of it. */
export function idToTell(packed: Packed): string {
  return packed.id.length <= 128 ? packed.id : "";
}
