/**
 * What WebSockets in browsers and in Node.js have in common: the address, the subprotocols and the two ways to write a frame.
 *
 * @module
 */

import { fromBinary, fromJsonString, toBinary, toJsonString } from "@bufbuild/protobuf";
import { FrameSchema } from "@exchange-grpc/proto";
import { checkItems } from "./count.js";
import { AddressError, InvalidMessage } from "./errors.js";

export const BINARY_PROTOCOL = "exchange.v1"; // a message is one Frame in protobuf
export const JSON_PROTOCOL = "exchange.v1.json"; // ... in proto JSON
export const PROTOCOLS: readonly string[] = [BINARY_PROTOCOL, JSON_PROTOCOL]; // the first is preferred
export const PATH = "/v1/peer"; // of a URL without one

/** `url` with its path. Throws AddressError. */
export function addressOf(url: string): URL {
  let address: URL;
  try {
    address = new URL(url);
  } catch {
    throw new AddressError(`'${url}' is no URL: ws://HOST:PORT`);
  }
  if (!address.hostname || address.hash) throw new AddressError(`'${url}' is no address: ws://HOST:PORT`);
  if (address.pathname === "/") address.pathname = PATH;
  return address;
}

/** An address as texts name it: without what may be secret, a password or the query. */
export function placeOf({ protocol, host, pathname }: URL): string {
  return `${protocol}//${host}${pathname}`;
}

/** A frame as it is written in a subprotocol. */
export function written(frame: Uint8Array, protocol: string): Uint8Array | string {
  return protocol === JSON_PROTOCOL ? toJsonString(FrameSchema, fromBinary(FrameSchema, frame)) : frame;
}

/** The frame that was read, or what is wrong with it. */
export function read(data: Uint8Array | string, protocol: string): Uint8Array | InvalidMessage {
  const isText = typeof data === "string";
  if (isText !== (protocol === JSON_PROTOCOL)) {
    return new InvalidMessage(`${protocol} has ${isText ? "no text" : "nothing but text"} messages`);
  }
  if (!isText) return data;
  try {
    checkItems(data);
    return toBinary(FrameSchema, fromJsonString(FrameSchema, data, { ignoreUnknownFields: true }));
  } catch (error) {
    return error instanceof InvalidMessage ? error : new InvalidMessage("the frame cannot be parsed");
  }
}
