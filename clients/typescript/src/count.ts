/**
 * How many messages a frame has, before it is parsed: an empty message has two bytes, and takes a hundred times as much
 * when it is there.
 *
 * @module
 */

import { BinaryReader, WireType } from "@bufbuild/protobuf/wire";
import { BatchSchema, FrameSchema } from "@exchange-grpc/proto";
import { InvalidMessage, LimitExceeded } from "./errors.js";
import { FRAME_MESSAGES, TEXT_ITEMS } from "./limits.js";

const LEAST = 2; // bytes of an empty message, with what stands before it
const [COMMA, BRACE, BRACKET] = [",", "{", "["].map((character) => character.charCodeAt(0));

/** Throws InvalidMessage if this frame should not be parsed. */
export function checkMessages(frame: Uint8Array): void {
  if (frame.length <= LEAST * FRAME_MESSAGES) return;
  let count = 0;
  try {
    // Several batches would be read as one.
    each(frame, FrameSchema.field.batch.number, (batch) => {
      each(batch, BatchSchema.field.messages.number, () => {
        if (++count > FRAME_MESSAGES) throw new LimitExceeded(`the frame has more than ${FRAME_MESSAGES} messages`);
      });
    });
  } catch (error) {
    throw error instanceof LimitExceeded ? error : new InvalidMessage("the frame cannot be parsed");
  }
}

/** Look at what each field with this number contains. */
function each(data: Uint8Array, wanted: number, look: (content: Uint8Array) => void): void {
  const reader = new BinaryReader(data);
  while (reader.pos < reader.len) {
    const [number, wireType] = reader.tag();
    if (number === wanted && wireType === WireType.LengthDelimited) look(reader.bytes());
    else reader.skip(wireType, number);
  }
}

/** The same for a frame as JSON, in which whatever is there stands after a comma or a bracket. */
export function checkItems(text: string): void {
  if (text.length <= TEXT_ITEMS) return;
  let count = 0;
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === COMMA || code === BRACE || code === BRACKET) count++;
  }
  if (count > TEXT_ITEMS) throw new LimitExceeded(`the frame has more than ${TEXT_ITEMS} items`);
}
