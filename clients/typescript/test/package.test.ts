/** What is in the package: for browsers nothing of Node.js, for both the same names. */
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { expect, test } from "vitest";
import * as node from "../src/node.js";
import * as browser from "../src/browser.js";

test("a page gets nothing of Node.js", async () => {
  const { metafile } = await build({
    entryPoints: [fileURLToPath(new URL("../src/browser.ts", import.meta.url))],
    bundle: true,
    format: "esm",
    platform: "browser",
    minify: true,
    write: false,
    metafile: true,
    outfile: "bundle.js",
  });
  const inputs = Object.keys(metafile.inputs);
  expect(inputs.filter((name) => /node_modules\/ws\/|websocket-node|^node:/.test(name))).toEqual([]);
  expect(metafile.outputs["bundle.js"]?.bytes).toBeLessThan(250_000);
});

test("a page and Node.js have the same names", () => {
  expect(Object.keys(browser).sort()).toEqual(Object.keys(node).sort());
  expect(Object.keys(node).sort()).toEqual([
    "AGENT", "AddressError", "Cancelled", "Code", "Data", "DeadlineExceeded", "Exchange", "ExchangeError", "HandlerFailed",
    "InvalidMessage", "LimitExceeded", "LinkError", "Refused", "RequestError", "Unavailable", "Unhandled", "codeName",
    "decodeJson", "encodeJson", "register",
  ]);
});
