import { describe, expect, test } from "vitest";
import { InvalidMessage } from "../src/errors.js";
import { checkId, checkName, checkPattern, fits, originOf } from "../src/patterns.js";

describe("patterns", () => {
  test.each([
    ["*", "a.b.c", true],
    ["a.*", "a.b", true],
    ["a.*", "a.b.c", false],
    ["a.**", "a", true],
    ["a.**", "a.b.c", true],
    ["**.c", "a.b.c", true],
    ["a.**.d", "a.b.c", false],
    ["a.b", "a.b", true],
    ["a.b", "a.c", false],
    ["**.a.**.a", "a.b.a.a", true],
  ])("%s and %s: %s", (pattern, name, expected) => expect(fits(pattern, name)).toBe(expected));

  test.each(["a.b", "ä.ö", "a-b.c_d"])("%s is a name", (name) => expect(checkName(name)).toBe(name));
  test.each(["", "a b", "a..b", ".a", "a.", "a.*", "a\u0000", "x".repeat(256)])("%j is none", (name) => {
    expect(() => checkName(name)).toThrow(InvalidMessage);
  });
  test.each(["", "a*", "a..b", "***"])("%j is no pattern", (pattern) => {
    expect(() => checkPattern(pattern)).toThrow(InvalidMessage);
  });
});

test("ids", () => {
  expect(checkId("a-Z_0")).toBe("a-Z_0");
  expect(() => checkId("a.b")).toThrow(InvalidMessage);
  expect(originOf("me.12.3")).toBe("me");
  expect(originOf("me.12.3")).toBe("me"); // remembered
  expect(originOf("me.12.x")).toBeUndefined();
  expect(originOf("me.12")).toBeUndefined();
});
