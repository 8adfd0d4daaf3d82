/** What people read who are not let in, or knock at the wrong door. */
import { createServer as createHttp, type RequestListener } from "node:http";
import { type AddressInfo, createServer as createTcp, type Server } from "node:net";
import { afterEach, expect, test, vi } from "vitest";
import { Exchange, LinkError, type Logger } from "../src/node.js";
import { browserWebSocket } from "../src/websocket-browser.js";

const quiet: Logger = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const ending: (() => unknown)[] = [];

afterEach(async () => {
  vi.unstubAllGlobals();
  for (const end of ending.splice(0).reverse()) await end();
});

function exchange(id: string): Exchange {
  const app = new Exchange(id, { log: quiet });
  ending.push(() => app.close());
  return app;
}

async function listening(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  ending.push(() => server.close());
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

/** What `connect` says of a URL. */
async function said(url: string, headers = {}): Promise<string> {
  const error: unknown = await exchange("app").connect(url, { headers }).catch((problem: unknown) => problem);
  expect(error).toBeInstanceOf(LinkError);
  return (error as LinkError).message;
}

/** ... where a server of HTTP answers so. */
async function answered(answer: RequestListener): Promise<string> {
  const at = await listening(createHttp(answer));
  return (await said(`ws://${at}/v1/peer`)).replace(at, "HERE");
}

test("a page of another origin hears that it is refused, and why", async () => {
  const url = await exchange("hub").listen("ws://127.0.0.1:0");
  expect(await said(url, { origin: "http://evil.example" })).toBe(`${url} refused the connection: this origin may not connect (HTTP 403)`);
});

test("a path where nothing is", async () => {
  expect(await answered((_, response) => response.writeHead(404).end("Not Found"))).toBe("there is no exchange at ws://HERE/v1/peer (HTTP 404)");
});

test("of what a server says, the first line is told, and no more than a line's worth", async () => {
  expect(await answered((_, response) => response.writeHead(503).end("\n  this exchange\x07 stops\r\nand more"))).toBe(
    "ws://HERE/v1/peer refused the connection: this exchange stops (HTTP 503)",
  );
  expect(await answered((_, response) => response.writeHead(401).end())).toContain("refused the connection: Unauthorized (HTTP 401)");
  expect(await answered((_, response) => response.writeHead(502).end("<html><h1>Oh"))).toContain(": Bad Gateway (HTTP 502)");
  expect((await answered((_, response) => response.writeHead(500).end("x".repeat(1e6)))).length).toBeLessThan(300);
});

test("a server that never ends its answer is not waited for", async () => {
  const began = performance.now();
  const text = await answered((_, response) => void response.writeHead(403, { "content-length": 100 }).write("go"));
  expect(text).toContain("refused the connection: go (HTTP 403)");
  expect(performance.now() - began).toBeLessThan(3_000);
});

test("a server that has pages, and nothing else", async () => {
  expect(await answered((_, response) => response.end("welcome"))).toBe("no exchange answers at ws://HERE/v1/peer: it speaks no WebSocket");
});

test("another protocol at the port", async () => {
  const at = await listening(createTcp((socket) => socket.on("error", () => undefined).end("220 mail.example ready\r\n")));
  expect(await said(`ws://${at}`)).toBe(`no exchange answers at ws://${at}/v1/peer: it speaks no WebSocket`);
});

test("wss:// where there is no TLS", async () => {
  const at = await listening(createHttp());
  expect(await said(`wss://${at}`)).toBe(`no exchange answers at wss://${at}/v1/peer: it speaks no TLS`);
});

test("nobody at all, by a name of several addresses too; and what is secret in a URL is not repeated", async () => {
  expect(await said("ws://127.0.0.1:1")).toMatch(/^nobody answers at ws:\/\/127\.0\.0\.1:1\/v1\/peer: .*ECONNREFUSED/);
  expect(await said("ws://me:secret@localhost:1/?token=secret")).toMatch(/^nobody answers at ws:\/\/localhost:1\/v1\/peer: .*ECONNREFUSED/);
});

test("a page, which its browser tells nothing", async () => {
  class Closed {
    onclose = (): void => undefined;
    constructor() {
      setTimeout(() => this.onclose());
    }
  }
  vi.stubGlobal("WebSocket", Closed);
  vi.stubGlobal("location", { origin: "http://127.0.0.1:8090" });
  const dialled = browserWebSocket.dial("ws://127.0.0.1:8080", {});
  const expected = "nobody answers at ws://127.0.0.1:8080/v1/peer, or it refuses pages of http://127.0.0.1:8090";
  await expect(dialled.connect()).rejects.toThrow(new LinkError(expected));
});
