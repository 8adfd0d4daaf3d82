import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { describe, expect, test } from "vitest";
import { LimitExceeded } from "../src/errors.js";
import { decodeFrame } from "../src/frames.js";
import { FRAME_MESSAGES, TEXT_ITEMS } from "../src/limits.js";
import { JSON_PROTOCOL, read } from "../src/websocket.js";

function times(bytes: number[], count: number): Uint8Array {
  return Uint8Array.from(Array.from({ length: count }, () => bytes).flat());
}

function field(number: number, content: Uint8Array): Uint8Array {
  return new BinaryWriter().tag(number, WireType.LengthDelimited).bytes(content).finish();
}

describe("a frame", () => {
  test.each([
    ["", [0x12, 0]],
    [", whose tags are longer than they need to be", [0x92, 0, 0]],
  ])("has only so many messages%s", (_, message) => {
    const { kind } = decodeFrame(field(3, times(message, FRAME_MESSAGES)));
    expect(kind.case === "batch" && kind.value.messages.length).toBe(FRAME_MESSAGES);
    expect(() => decodeFrame(field(3, times(message, FRAME_MESSAGES + 1)))).toThrow("more than 4096 messages");
  });

  test("has only so many in all its batches", () => {
    const half = field(3, times([0x12, 0], FRAME_MESSAGES / 2 + 1));
    expect(() => decodeFrame(Uint8Array.from([...half, ...half]))).toThrow("more than 4096 messages");
  });

  test("may have the same bytes in a payload, or in something else", () => {
    const bytes = times([0x12, 0], 2 * FRAME_MESSAGES);
    const { kind } = decodeFrame(field(3, field(2, field(6, bytes))));
    expect(kind.case === "batch" && kind.value.messages.length).toBe(1);
    expect(decodeFrame(field(99, bytes)).kind.case).toBeUndefined();
  });

  test("that is cut off is none", () => {
    const cut = field(3, times([0x12, 0], 2 * FRAME_MESSAGES)).subarray(0, 2 * FRAME_MESSAGES + 2);
    expect(() => decodeFrame(cut)).toThrow("cannot be parsed");
  });

  test("has only so many items as JSON", () => {
    const text = (count: number): string => `{"unknown":[${Array.from({ length: count }, () => 0).join(",")}]}`;
    expect(read(text(TEXT_ITEMS - 1), JSON_PROTOCOL)).toBeInstanceOf(Uint8Array);
    expect(read(text(TEXT_ITEMS), JSON_PROTOCOL)).toEqual(new LimitExceeded("the frame has more than 200000 items"));
  });
});
