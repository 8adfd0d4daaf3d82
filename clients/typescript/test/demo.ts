/** `exchange serve --demo` with a WebSocket, for tests: the real thing, in Python. */
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const EXCHANGE = process.env.EXCHANGE_BIN ?? fileURLToPath(new URL("../../../.venv/bin/exchange", import.meta.url));

/** Whether there is one that speaks WebSocket. If there must be, its absence is an error. */
export function demoIsThere(): boolean {
  const there = existsSync(EXCHANGE) && execFileSync(EXCHANGE, ["serve", "--help"], { encoding: "utf8" }).includes("--http");
  if (!there && process.env.EXCHANGE_REQUIRE_ALL) throw new Error(`${EXCHANGE} does not serve WebSockets`);
  return there;
}

/** Start one; its URL, and what ends it. */
export async function demo(id: string): Promise<{ url: string; stop: () => Promise<void> }> {
  const args = ["serve", "--demo", "--id", id, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
  const child: ChildProcess = spawn(EXCHANGE, args, { stdio: ["ignore", "pipe", "ignore"] });
  const url = await new Promise<string>((resolve, reject) => {
    let told = "";
    child.stdout?.on("data", (chunk: Buffer) => {
      told += chunk.toString();
      const found = /ws:\/\/[^\s,]+/.exec(told);
      if (found) resolve(found[0]);
    });
    child.once("exit", (code) => reject(new Error(`it ended with ${code}`)));
  });
  const gone = new Promise<void>((resolve) => child.once("exit", () => resolve()));
  const stop = async (): Promise<void> => {
    child.kill();
    await gone;
  };
  return { url, stop };
}
