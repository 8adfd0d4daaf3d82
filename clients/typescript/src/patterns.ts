/**
 * Names, ids and patterns: what is well-formed, and what fits what.
 *
 * A name is tokens separated by dots. A pattern is a name in which a token may be `*` (any one token) or `**` (any
 * number of tokens, none included); the pattern `*` alone fits everything. Matching takes time linear in the product of the
 * lengths: only the last `**` is ever taken up again.
 *
 * @module
 */

import { InvalidMessage, LimitExceeded } from "./errors.js";
import { NAME_BYTES } from "./limits.js";

/** Names of the system: answered by the exchange that is addressed. */
export const RESERVED = "exchange.";
/** The one of them that changes something. */
export const SET = "exchange.state.set";
/** Signalled within one exchange, never sent. */
export const LOCAL_EVENT = "message.unhandled";

// eslint-disable-next-line no-control-regex -- control characters are just what a token has none of
const TOKEN = /[^\s\u0000-\u001f\u007f-\u009f\ud800-\udfff.*]+/u.source;
const NAME = new RegExp(`^${TOKEN}(?:\\.${TOKEN})*$`, "u");
const PATTERN = new RegExp(`^(?:${TOKEN}|\\*\\*?)(?:\\.(?:${TOKEN}|\\*\\*?))*$`, "u");
const ID = /^[A-Za-z0-9_-]{1,64}$/;
const MESSAGE_ID = /^([A-Za-z0-9_-]{1,64})\.[0-9]{1,20}\.[0-9]{1,20}$/;
const CACHED = 8_192; // names are few and come often

const names = new Set<string>();
const origins = new Map<string, string>();
const encoder = new TextEncoder();

/** `text` for an error: quoted, without control characters, shortened. */
export function shown(text: string): string {
  const short = text.length <= 60 ? text : `${text.slice(0, 57)}...`;
  const escaped = JSON.stringify(short).slice(1, -1).replaceAll('\\"', '"').replaceAll("'", "\\'");
  return `'${escaped}'`;
}

function checkLength(text: string, what: string): void {
  // Most names are short: the bytes are only counted where they could be too many.
  if (text.length * 3 > NAME_BYTES && encoder.encode(text).length > NAME_BYTES) {
    throw new LimitExceeded(`the ${what} ${shown(text)} is longer than ${NAME_BYTES} bytes`);
  }
}

/** `name`, if a message may bear it. Throws InvalidMessage. */
export function checkName(name: string): string {
  if (names.has(name)) return name;
  if (typeof name !== "string" || !name) throw new InvalidMessage("the name is empty");
  checkLength(name, "name");
  if (!NAME.test(name)) {
    throw new InvalidMessage(
      `${shown(name)} is no name: it takes tokens separated by single dots, ` +
        "without white space, control characters or '*'",
    );
  }
  if (names.size >= CACHED) names.clear();
  names.add(name);
  return name;
}

/** `pattern`, if it is one. Throws InvalidMessage. */
export function checkPattern(pattern: string): string {
  if (!pattern) throw new InvalidMessage("the pattern is empty");
  checkLength(pattern, "pattern");
  if (!PATTERN.test(pattern)) {
    throw new InvalidMessage(
      `${shown(pattern)} is no pattern: it takes tokens, '*' or '**', separated by single dots`,
    );
  }
  return pattern;
}

/** `id`, if it is the id of an exchange. Throws InvalidMessage. */
export function checkId(id: string): string {
  if (!ID.test(id)) throw new InvalidMessage(`${shown(id)} is no exchange id: it takes 1 to 64 of A-Z a-z 0-9 _ -`);
  return id;
}

/** The exchange that made the message with this id, or undefined if that is no id of a message. */
export function originOf(id: string): string | undefined {
  const maker = id.slice(0, id.lastIndexOf("."));
  const known = origins.get(maker);
  if (known !== undefined && /^[0-9]{1,20}$/.test(id.slice(maker.length + 1))) return known;
  const origin = MESSAGE_ID.exec(id)?.[1];
  if (origin === undefined) return undefined;
  if (origins.size >= CACHED) origins.clear();
  origins.set(maker, origin);
  return origin;
}

/** As {@link originOf}, but throws InvalidMessage. */
export function checkMessageId(id: string): string {
  const origin = originOf(id);
  if (origin === undefined) throw new InvalidMessage(`${shown(id)} is no message id: <exchange>.<epoch>.<n>`);
  return origin;
}

/** Whether messages of this name leave a trace: those of the system do not, unless they change something. */
export function isTraced(name: string): boolean {
  return !name.startsWith(RESERVED) || name === SET;
}

/** Whether `name` fits `pattern`. */
export function fits(pattern: string, name: string): boolean {
  if (pattern === "*" || pattern === "**") return true;
  if (!pattern.includes("*")) return pattern === name;
  const wanted = pattern.split(".");
  const tokens = name.split(".");
  let w = 0;
  let n = 0;
  let star = -1; // where the last `**` stands
  let resume = 0;
  while (n < tokens.length) {
    if (wanted[w] === "**") {
      star = w++;
      resume = n;
    } else if (w < wanted.length && (wanted[w] === "*" || wanted[w] === tokens[n])) {
      w++;
      n++;
    } else if (star >= 0) {
      w = star + 1;
      n = ++resume; // the last `**` takes one token more
    } else {
      return false;
    }
  }
  return wanted.slice(w).every((token) => token === "**");
}
