import { describe, expect, test } from "vitest";
import { InvalidMessage, LimitExceeded } from "../src/errors.js";
import { decodeJson, encodeJson } from "../src/payload.js";

const text = (value: unknown): string => new TextDecoder().decode(encodeJson(value));
const value = (json: string): unknown => decodeJson(new TextEncoder().encode(json));
const nested = (levels: number): unknown => (levels === 0 ? 1 : [nested(levels - 1)]);

describe("whole numbers", () => {
  test("are numbers as long as they are exact, and bigints beyond", () => {
    expect(value("9007199254740991")).toBe(9007199254740991);
    expect(value("9007199254740993")).toBe(9007199254740993n);
    expect(value('{"a": [-9223372036854775808, 1.5, "12345678901234567890"]}')).toEqual({
      a: [-9223372036854775808n, 1.5, "12345678901234567890"],
    });
    expect(value('["#9007199254740993", 9007199254740993, "a\\"1234567890123456789"]')).toEqual([
      "#9007199254740993", 9007199254740993n, 'a"1234567890123456789',
    ]);
    expect(value("1.23456789012345678e3")).toBe(Number("1.23456789012345678e3"));
  });

  test("leave as they came", () => {
    expect(text({ big: 18446744073709551615n, small: 7 })).toBe('{"big":18446744073709551615,"small":7}');
  });

  test("are refused where they are not exact, or beyond 64 bits", () => {
    expect(() => text(2 ** 60)).toThrow(InvalidMessage);
    expect(() => text(2n ** 64n)).toThrow(InvalidMessage);
    expect(() => value("18446744073709551616")).toThrow(InvalidMessage);
    expect(text(1e300)).toBe("1e+300"); // no whole number in JSON
  });
});

test.each([NaN, Infinity, [undefined], new Date(), new Map(), () => 1, Symbol("s"), "\ud800", { "\ud800": 1 }])(
  "what JSON cannot say is refused: %s",
  (unsayable) => expect(() => text(unsayable)).toThrow(InvalidMessage),
);

test("what is absent is left out, or null", () => {
  expect(text({ a: undefined, b: 1 })).toBe('{"b":1}');
  expect(text({ a: undefined, b: 2n ** 60n })).toBe('{"b":1152921504606846976}');
  expect(text(undefined)).toBe("null");
});

test("thirty levels are enough", () => {
  expect(value(text(nested(30)))).toEqual(nested(30));
  expect(() => text(nested(31))).toThrow(LimitExceeded);
  expect(() => value(JSON.stringify(nested(31)))).toThrow(LimitExceeded);
});

test.each(["", "{", "nul", "\ufeff1", "NaN"])("what is no JSON is refused: %j", (json) => {
  expect(() => value(json)).toThrow(InvalidMessage);
});
