/**
 * Who says what: a link is never trusted about that. A message counts only if its last hop is the peer; and from a peer that
 * does not relay, only if the peer made it. What a simple peer leaves out is filled in here.
 *
 * @module
 */

import { toBinary } from "@bufbuild/protobuf";
import { type Message as Packed, MessageSchema } from "@exchange-grpc/proto";
import { InvalidMessage, LimitExceeded } from "./errors.js";
import type { Introduction } from "./frames.js";
import { MESSAGE_BYTES } from "./limits.js";
import type { Message } from "./message.js";
import { readMessage } from "./wire.js";

export interface Admitted {
  /** What could be read of it. */
  message?: Message;
  usedValue: boolean;
  /** Why it is refused, if it is. */
  refusal?: InvalidMessage;
}

/** The message number `seq` of `peer`, which came in a frame of so many bytes. */
export function admitted(packed: Packed, size: number, peer: Introduction, seq: number, now: number): Admitted {
  try {
    const { message, usedValue } = readMessage(packed, now);
    if (size > MESSAGE_BYTES && toBinary(MessageSchema, packed).length > MESSAGE_BYTES) {
      throw new LimitExceeded(`the message is larger than ${MESSAGE_BYTES} bytes`);
    }
    const refusal = confirm(message, peer, seq);
    return refusal ? { message, usedValue, refusal } : { message, usedValue };
  } catch (error) {
    if (!(error instanceof InvalidMessage)) throw error;
    return { usedValue: false, refusal: error };
  }
}

/** Confirm who sent it, and fill in what a simple peer leaves out. What is wrong with it, if anything is. */
function confirm(message: Message, peer: Introduction, seq: number): InvalidMessage | undefined {
  const id = peer.exchange;
  if (message.way.length === 0) message.reached(id, message.timestampUs);
  const [first = id] = message.way;
  message.from ||= first;
  if (!message.id) {
    if (message.from !== id) return new InvalidMessage("it is passed on, and has no id");
    message.id = `${id}.${peer.epoch}.${seq}`;
  }
  const last = message.way.at(-1);
  if (last !== id) return new InvalidMessage(`its last hop is ${last}, but it came from ${id}`);
  if (first !== message.from || !message.id.startsWith(`${message.from}.`)) {
    return new InvalidMessage("its id, its `from` and its first hop do not agree");
  }
  if (message.way.length > 1 && !peer.relay) {
    return new InvalidMessage(`${id} does not relay, so it cannot pass on a message of ${message.from}`);
  }
  return undefined;
}
