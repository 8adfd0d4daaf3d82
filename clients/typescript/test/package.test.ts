/** What is in the package: for browsers nothing of Node.js, for both the same names, and types for whoever installs it. */
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import * as node from "../src/node.js";
import * as browser from "../src/browser.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const run = promisify(execFile);

test("a page gets nothing of Node.js", async () => {
  const { metafile } = await build({
    entryPoints: [join(ROOT, "src/browser.ts")],
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

const PROGRAM = `
import { Exchange, type Message } from "@exchange-grpc/client";

await using app = new Exchange("app");
app.handle<{ a: number }>("add", ({ value }, { signal }) => (signal.aborted ? 0 : value.a + 1));
app.observe("**", (message: Message) => console.log(message.name, message.trace));
const sum: unknown = await app.request("add", { a: 1 }, { timeoutSeconds: 1 });
for await (const { value } of app.requestMany<number>("add", { a: 1 })) console.log(sum, value.toFixed());
`;

describe("what is packed", () => {
  let place = "";

  beforeAll(async () => {
    place = mkdtempSync(join(ROOT, ".packed-")); // within the package, so that the packages it needs are found
    const installed = join(place, "node_modules/@exchange-grpc/client");
    mkdirSync(installed, { recursive: true });
    // Not built again: other tests run what is there.
    const packed = await run("npm", ["pack", "--silent", "--ignore-scripts", "--pack-destination", place], { cwd: ROOT });
    await run("tar", ["-xzf", join(place, packed.stdout.trim()), "-C", installed, "--strip-components=1"]);
    writeFileSync(join(place, "package.json"), '{ "type": "module" }');
    writeFileSync(join(place, "program.ts"), PROGRAM);
  });

  afterAll(() => rmSync(place, { recursive: true }));

  test.each([[[]], [["--module", "esnext", "--moduleResolution", "bundler", "--customConditions", "browser"]]])(
    "has types that stand without skipLibCheck %j",
    async (more) => {
      const flags = ["--ignoreConfig", "--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", ...more];
      const compiled = run(process.execPath, [join(ROOT, "node_modules/typescript/bin/tsc"), ...flags, "program.ts"], { cwd: place });
      expect(await compiled.then(({ stdout }) => stdout, ({ stdout }: { stdout: string }) => stdout)).toBe("");
    },
  );

  test("is made a page of by the command in the README", async () => {
    const readme = readFileSync(join(ROOT, "README.md"), "utf8");
    const [, flags = ""] = /^\$ npx esbuild (.*)$/m.exec(readme) ?? [];
    const [, code = ""] = /^```ts\n(.*?)^```/ms.exec(readme) ?? [];
    writeFileSync(join(place, "page.ts"), code);
    await run(join(ROOT, "node_modules/.bin/esbuild"), flags.split(" "), { cwd: place });
    const page = readFileSync(join(place, "page.js"), "utf8");
    expect(page).toContain("compute.sum");
    expect(page).not.toMatch(/from "(node:|ws)/);
  });
});
