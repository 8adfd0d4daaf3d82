/**
 * Why there is no WebSocket, in words for people: what the server said, or what our side made of its silence.
 *
 * What a server says is a stranger's: one line of it is told, bounded and without control characters.
 *
 * @module
 */

import type { IncomingMessage } from "node:http";
import { placeOf } from "./websocket.js";

const TEXT_BYTES = 200; // of what a server says
const TEXT_MS = 1_000; // how long that is waited for

/** What an answer that opens no WebSocket means. */
export async function refusalOf(address: URL, response: IncomingMessage): Promise<string> {
  const { statusCode = 0, statusMessage } = response;
  const place = placeOf(address);
  if (statusCode === 404) return `there is no exchange at ${place} (HTTP 404)`;
  if (statusCode < 300) return `no exchange answers at ${place}: it speaks no WebSocket`;
  const text = firstLine(await beginningOf(response));
  const said = text === "" || text.startsWith("<") ? firstLine(statusMessage ?? "") : text; // nobody wants to read HTML
  return `${place} refused the connection: ${said} (HTTP ${statusCode})`;
}

async function beginningOf(response: IncomingMessage): Promise<string> {
  const late = setTimeout(() => response.destroy(), TEXT_MS);
  let text = "";
  try {
    for await (const chunk of response) {
      text += (chunk as Buffer).toString("latin1", 0, TEXT_BYTES);
      if (text.length >= TEXT_BYTES) break;
    }
  } catch {
    // it was cut: what came counts
  }
  clearTimeout(late);
  return Buffer.from(text.slice(0, TEXT_BYTES), "latin1").toString();
}

function firstLine(text: string): string {
  return (text.trim().split(/[\r\n]/, 1)[0] ?? "").replaceAll(/\p{Cc}/gu, "").slice(0, TEXT_BYTES);
}

/** What an error before there was any answer means. */
export function failureOf(address: URL, error: Error): string {
  // A name of several addresses fails with one error for each.
  const first: NodeJS.ErrnoException = error instanceof AggregateError ? (error.errors[0] as Error) : error;
  const place = placeOf(address);
  if (first.syscall === "connect" || first.syscall === "getaddrinfo") return `nobody answers at ${place}: ${first.message}`;
  return `no exchange answers at ${place}: ${meaningOf(first)}`;
}

function meaningOf({ code, message }: NodeJS.ErrnoException): string {
  if (code?.startsWith("HPE_")) return "it speaks no WebSocket"; // of Node's parser of HTTP
  const [, reason] = /:SSL routines:[^:]*:([^:]+)/.exec(message) ?? []; // between names of OpenSSL's functions and files
  if (reason === "wrong version number" || reason === "packet length too long") return "it speaks no TLS";
  return reason ?? message;
}
