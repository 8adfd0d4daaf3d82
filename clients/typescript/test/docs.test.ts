/** What the README and the samples say, run against a real exchange. */
import { execFile } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { transform } from "esbuild";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { demo, demoIsThere } from "./demo.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const run = promisify(execFile);
let place = "";
let server: Awaited<ReturnType<typeof demo>>;

const words = (text: string): string => text.split(/\s+/).filter(Boolean).join(" ");

describe.skipIf(!demoIsThere())("against an exchange in Python", () => {
  beforeAll(async () => {
    place = mkdtempSync(join(ROOT, ".docs-")); // within the package, so that it finds itself by its name
    server = await demo("demo");
  });

  afterAll(async () => {
    await server.stop();
    rmSync(place, { recursive: true });
  });

  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const comments = readFileSync(join(ROOT, "src/exchange.ts"), "utf8").replaceAll(/^ {0,3}\* ?/gm, "");
  const blocks = [readme, comments].flatMap((text) => [...text.matchAll(/^```ts\n(.*?)^```/gms)].map(([, code = ""]) => code));

  test.each(blocks.map((code, at) => [at + 1, code] as const))("block %i of the README and the sources prints what it says", async (at, code) => {
    const expected = [...code.matchAll(/console\.log\(.*\);?.*?\/\/ (.*)$/gm)].map(([, said = ""]) => said);
    const { code: script } = await transform(code.replaceAll("ws://127.0.0.1:8080", server.url), { loader: "ts", format: "esm" });
    const file = join(place, `block-${at}.mjs`);
    writeFileSync(file, script);
    const { stdout, stderr } = await run(process.execPath, [file]);
    expect(stderr).toBe("");
    expect(words(stdout)).toBe(words(expected.join(" ")));
  });

  test("the first answer takes ten lines at most", () => {
    expect(blocks[0]?.trim().split("\n").length).toBeLessThanOrEqual(10);
  });

  const samples: Record<string, RegExp> = {
    hello: /^hello from demo\n$/,
    request_reply: /^compute\.sum: 8\n$/,
    worker_pool: /^worker-1: 5\nworker-2: 5\n$/,
    live_state: /^goal: (50|100)\n$/,
    trace: /^compute\.sum: (\S+) -> demo\ncompute\.sum: demo -> \1\n$/,
  };

  test("every sample is looked at", () => {
    expect(readdirSync(join(ROOT, "samples")).sort()).toEqual(Object.keys(samples).map((name) => `${name}.js`).sort());
  });

  // As in every language, and again where an earlier run has left its mark.
  test.each(Object.entries(samples))("%s", async (name, expected) => {
    const env = { ...process.env, EXCHANGE_URL: server.url };
    for (let time = 0; time < 2; time++) {
      const { stdout, stderr } = await run(process.execPath, [join(ROOT, "samples", `${name}.js`)], { env });
      expect(stdout).toMatch(expected);
      expect(stderr).toBe("");
    }
  });
});
