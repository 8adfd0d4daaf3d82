/** Errors are told apart by name, in the log of a page too. */
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { expect, test } from "vitest";
import * as client from "../src/node.js";

const NAMES = [
  "AddressError", "Cancelled", "DeadlineExceeded", "ExchangeError", "HandlerFailed", "InvalidMessage", "LimitExceeded",
  "LinkError", "Refused", "RequestError", "Unavailable", "Unhandled",
] as const;

/** What a bundler makes of the errors, when it gives everything the shortest name. */
async function minified(): Promise<typeof client> {
  const entry = fileURLToPath(new URL("../src/errors.ts", import.meta.url));
  const { outputFiles } = await build({ entryPoints: [entry], bundle: true, minify: true, format: "esm", write: false });
  const script = Buffer.from(outputFiles[0]?.contents ?? "").toString("base64");
  return (await import(/* @vite-ignore */ `data:text/javascript;base64,${script}`)) as typeof client;
}

test.each(NAMES)("%s is called so, whatever a bundler makes of its class", async (name) => {
  for (const { [name]: Kind } of [client, await minified()]) {
    const error = new Kind("no");
    expect([error.name, String(error), error.stack?.split("\n")[0]]).toEqual([name, `${name}: no`, `${name}: no`]);
  }
});

test("an error of a program's own may have a name of its own", () => {
  class TooLate extends client.Refused {
    override name = "TooLate";
  }
  expect(String(new TooLate("no"))).toBe("TooLate: no");
});
