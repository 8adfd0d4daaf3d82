/**
 * The process under test in Chromium: serves a page with the client on loopback, starts the browser headless, and carries
 * commands from stdin to the page, and answers and events to stdout.
 *
 * @module
 */

import { spawn } from "node:child_process";
import { accessSync, constants, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";
import { WebSocketServer } from "ws";
import { delimited, splitter } from "./delimited.js";

const CLOSE_MS = 12_000; // how long the page may take to close its exchange
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
  "--remote-debugging-pipe", // nobody debugs: but when the pipe ends, because we were killed, so does the browser
];

/** The browser: what $CHROMIUM says, or the first that is in the path. */
function browser() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  const places = (process.env.PATH ?? "").split(delimiter);
  const found = ["chromium", "google-chrome"].flatMap((name) => places.map((place) => join(place, name))).find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
  if (found) return found;
  console.error("There is no chromium in the path: name one in $CHROMIUM.");
  process.exit(1);
}

const bundle = await build({
  entryPoints: [fileURLToPath(new URL("page.js", import.meta.url))],
  bundle: true, format: "esm", platform: "browser", conditions: ["browser"], write: false,
});
const script = bundle.outputFiles[0]?.text ?? "";
const server = createServer((request, response) => {
  const isScript = request.url === "/page.js";
  response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
  response.end(isScript ? script : '<!doctype html><title>Exchange</title><script type="module" src="/page.js"></script>');
});
const wanted = Number(process.env.PAGE_PORT ?? 0); // of an origin that somebody allows; 0: any that is free
await new Promise((resolve) => server.listen(wanted, "127.0.0.1", () => resolve(undefined)));
const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());

/** @type {Promise<import("ws").WebSocket>} */
const bridge = new Promise((resolve) => new WebSocketServer({ server, path: "/bridge" }).once("connection", resolve));
const profile = mkdtempSync(join(tmpdir(), "exchange-chromium-"));
const page = `http://127.0.0.1:${port}/`;
const child = spawn(browser(), [...FLAGS, `--user-data-dir=${profile}`, page], {
  stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
});
const gone = new Promise((resolve) => child.once("exit", resolve));

let stopping = false;

/** Let the browser go, and leave nothing of it. @param {number} code */
async function stop(code) {
  stopping = true;
  child.kill();
  await gone;
  rmSync(profile, { recursive: true, force: true, maxRetries: 10, retryDelay: 100 }); // its helpers may write a last word
  process.exit(code);
}

process.stdin.on("data", splitter((message) => void bridge.then((socket) => socket.send(message))));
process.stdin.on("end", () => {
  setTimeout(() => void stop(1), CLOSE_MS).unref();
  void bridge.then((socket) => {
    socket.once("close", () => void stop(0));
    socket.send("close");
  });
});
void bridge.then((socket) => {
  socket.on("message", (message) => process.stdout.write(delimited(/** @type {Buffer} */ (message))));
});
void gone.then(() => (stopping ? undefined : stop(1))); // before anybody wanted it to
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => void stop(1));
