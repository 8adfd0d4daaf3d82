/**
 * What a message carries: values <-> JSON bytes, exact or refused.
 *
 * A whole number beyond 2^53 is a `bigint` in memory, both ways: JSON digits that a `number` could not hold exactly
 * arrive as `bigint`, and a `bigint` leaves as digits. A `number` that large may have been rounded before it
 * got here, so it is refused; so is all that JSON cannot say: NaN, infinity, `undefined` in a list, other objects.
 *
 * @module
 */

import { InvalidMessage, LimitExceeded } from "./errors.js";
import { PAYLOAD_DEPTH } from "./limits.js";
import { shown } from "./patterns.js";

/** Whatever JSON can say; whole numbers beyond 2^53 are `bigint`. */
export type Json = null | boolean | number | bigint | string | Json[] | { [key: string]: Json };

export const JSON_TYPE = "application/json";
export const BINARY = "application/octet-stream";
export const NULL = new Uint8Array([0x6e, 0x75, 0x6c, 0x6c]);

const MIN_INT = -(2n ** 63n);
const MAX_INT = 2n ** 64n - 1n;
const DIGITS_ONLY = 1e21; // below it, JSON.stringify writes a whole number as digits
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** `value` as JSON bytes. Throws InvalidMessage for what JSON cannot say, LimitExceeded for what is too deep. */
export function encodeJson(value: unknown): Uint8Array {
  if (value === undefined || value === null) return NULL;
  const large = check(value, 0);
  return encoder.encode(large ? written(value) : JSON.stringify(value));
}

/** The value of JSON bytes. Throws InvalidMessage for what is none, LimitExceeded for what is too deep. */
export function decodeJson(data: Uint8Array): Json {
  let text: string;
  let value: Json;
  try {
    text = decoder.decode(data);
    value = JSON.parse(text) as Json;
  } catch (error) {
    throw new InvalidMessage(`the payload is no JSON that can be read: ${shown((error as Error).message)}`);
  }
  if (/\d{16}/.test(text)) value = exact(text);
  if (mayBeDeep(data)) check(value, 0);
  return value;
}

function mayBeDeep(data: Uint8Array): boolean {
  let count = 0;
  for (const byte of data) if (byte === 0x5b || byte === 0x7b) count++;
  return count > PAYLOAD_DEPTH;
}

function unsayable(what: string): InvalidMessage {
  return new InvalidMessage(`the value cannot be said in JSON: ${what}`);
}

/** Throws if JSON cannot say it. Whether a bigint is in it. */
function check(value: unknown, depth: number): boolean {
  switch (typeof value) {
    case "string":
      if (!value.isWellFormed()) throw unsayable("half a surrogate pair, which UTF-8 cannot say");
      return false;
    case "boolean":
      return false;
    case "number":
      checkNumber(value);
      return false;
    case "bigint":
      if (value < MIN_INT || value > MAX_INT) throw unsayable("an integer is beyond 64 bits");
      return true;
    case "object":
      return value !== null && checkWithin(value, depth);
    default:
      throw unsayable(typeof value);
  }
}

function checkNumber(value: number): void {
  if (!Number.isFinite(value)) throw unsayable(String(value));
  if (Number.isInteger(value) && !Number.isSafeInteger(value) && Math.abs(value) < DIGITS_ONLY) {
    throw unsayable(`${value} is beyond 2^53, where a number is not exact: use a bigint`);
  }
}

function checkWithin(value: object, depth: number): boolean {
  if (depth === PAYLOAD_DEPTH) throw new LimitExceeded(`the payload is nested deeper than ${PAYLOAD_DEPTH} levels`);
  let large = false;
  if (Array.isArray(value)) {
    for (const item of value) large = check(item, depth + 1) || large;
    return large;
  }
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== null && Object.getPrototypeOf(prototype) !== null) {
    throw unsayable(`a ${value.constructor?.name ?? "strange object"}`);
  }
  for (const [key, item] of Object.entries(value)) {
    if (!key.isWellFormed()) throw unsayable("half a surrogate pair, which UTF-8 cannot say");
    if (item !== undefined) large = check(item, depth + 1) || large; // an absent member, as everywhere in JavaScript
  }
  return large;
}

/** JSON with bigints in it. */
function written(value: unknown): string {
  if (typeof value === "bigint") return value.toString();
  if (Array.isArray(value)) return `[${value.map(written).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const members = Object.entries(value).filter(([, item]) => item !== undefined);
  return `{${members.map(([key, item]) => `${JSON.stringify(key)}:${written(item)}`).join(",")}}`;
}

/** JSON text, valid and with long numbers, read so that none of them is rounded. */
function exact(text: string): Json {
  let mark = "#";
  while (text.includes(mark)) mark += "#";
  let marked = "";
  let from = 0;
  for (let at = 0; at < text.length; ) {
    if (text[at] === '"') {
      at = endOfString(text, at);
      continue;
    }
    const digits = wholeNumber(text, at);
    if (digits !== "" && !Number.isSafeInteger(Number(digits))) {
      marked += `${text.slice(from, at)}"${mark}${digits}"`;
      from = at + digits.length;
    }
    at += Math.max(1, lengthOfNumber(text, at));
  }
  marked += text.slice(from);
  const revive = (_: string, item: unknown): unknown =>
    typeof item === "string" && item.startsWith(mark) ? large(item.slice(mark.length)) : item;
  return JSON.parse(marked, revive) as Json;
}

function large(digits: string): bigint {
  const value = digits.length > 20 ? MAX_INT + 1n : BigInt(digits);
  if (value < MIN_INT || value > MAX_INT) {
    throw new InvalidMessage("the payload is no JSON that can be read: 'an integer is beyond 64 bits'");
  }
  return value;
}

function endOfString(text: string, at: number): number {
  for (at++; text[at] !== '"'; at++) if (text[at] === "\\") at++;
  return at + 1;
}

const NUMBER = /-?\d[\d.eE+-]*/y;

function lengthOfNumber(text: string, at: number): number {
  NUMBER.lastIndex = at;
  return NUMBER.exec(text)?.[0].length ?? 0;
}

function wholeNumber(text: string, at: number): string {
  NUMBER.lastIndex = at;
  const number = NUMBER.exec(text)?.[0] ?? "";
  return /[.eE]/.test(number) ? "" : number;
}
