import { createConnection, createServer, type Server, type Socket } from "node:net";
import { fromJsonString, toJsonString } from "@bufbuild/protobuf";
import { FrameSchema } from "@exchange-grpc/proto";
import { afterEach, describe, expect, test } from "vitest";
import { WebSocket } from "ws";
import { AddressError, Exchange, LinkError, type Logger } from "../src/node.js";
import { browserWebSocket } from "../src/websocket-browser.js";

const quiet: Logger = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const ending: (() => unknown)[] = [];

afterEach(async () => {
  for (const end of ending.splice(0).reverse()) await end();
});

function exchange(id: string, limits = {}): Exchange {
  const app = new Exchange(id, { log: quiet, limits: { reconnectMinSeconds: 0.02, reconnectMaxSeconds: 0.05, ...limits } });
  ending.push(() => app.close());
  return app;
}

function socket(url: string, protocols: string[], options = {}): WebSocket {
  const opened = new WebSocket(url, protocols, options);
  opened.on("error", () => undefined);
  ending.push(() => opened.terminate());
  return opened;
}

const opens = (one: WebSocket): Promise<boolean> =>
  new Promise((resolve) => one.once("open", () => resolve(true)).once("close", () => resolve(false)));
const hears = (one: WebSocket): Promise<string> =>
  new Promise((resolve) => one.once("message", (data: Buffer) => resolve(data.toString())));

describe("who may connect", () => {
  test.each([
    ["no page", undefined, undefined, true],
    ["a page of the same origin", "same", undefined, true],
    ["another page", "http://evil.example", undefined, false],
    ["a page of the list", "http://good.example", ["http://good.example"], true],
    ["a page beside the list", "http://good.example:81", ["http://good.example"], false],
    ["the same origin, if it is not in the list", "same", ["http://good.example"], false],
  ])("%s", async (_, origin, origins, welcome) => {
    const url = await exchange("hub").listen("ws://127.0.0.1:0", origins ? { origins } : {});
    const said = origin === "same" ? `http://${new URL(url).host}` : origin;
    expect(await opens(socket(url, ["exchange.v1"], said ? { origin: said } : {}))).toBe(welcome);
  });

  test("nobody who speaks something else, or elsewhere", async () => {
    const url = await exchange("hub").listen("ws://127.0.0.1:0");
    expect(await opens(socket(url, ["chat"]))).toBe(false);
    expect(await opens(socket(url, []))).toBe(false);
    expect(await opens(socket(url.replace("peer", "other"), ["exchange.v1"]))).toBe(false);
  });
});

describe("the subprotocol", () => {
  test("for JSON is answered in JSON", async () => {
    const url = await exchange("hub").listen("ws://127.0.0.1:0");
    const peer = socket(url, ["exchange.v1.json"]);
    expect(await opens(peer)).toBe(true);
    peer.send(toJsonString(FrameSchema, fromJsonString(FrameSchema, '{"hello": {"exchange": "me"}}')));
    expect(JSON.parse(await hears(peer))).toMatchObject({ welcome: { exchange: "hub" } });
    peer.send('{"batch": {"messages": [{"kind": "KIND_REQUEST", "name": "exchange.describe", "value": null}]}}');
    expect(JSON.parse(await hears(peer))).toMatchObject({ batch: { messages: [{ replyTo: "me.0.1", value: { exchange: "hub" } }] } });
  });

  test("for protobuf has no text", async () => {
    const url = await exchange("hub").listen("ws://127.0.0.1:0");
    const peer = socket(url, ["exchange.v1"]);
    expect(await opens(peer)).toBe(true);
    peer.send("text");
    expect(await hears(peer)).toContain("exchange.v1 has no text messages");
  });
});

/** Carries connections to a port, until it is told to cut them, and perhaps to carry the next to another. */
async function cable(first: number): Promise<{ url: string; cut: (to?: number) => void }> {
  let port = first;
  const sockets = new Set<Socket>();
  const server: Server = createServer((near) => {
    const far = createConnection({ port, host: "127.0.0.1" });
    for (const [one, other] of [[near, far], [far, near]] as const) {
      sockets.add(one);
      one.on("error", () => undefined).on("close", () => other.destroy());
      one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = (to = port): void => {
    port = to;
    for (const one of sockets) one.destroy();
    sockets.clear();
  };
  ending.push(() => new Promise((resolve) => server.close(resolve)), () => cut());
  return { url: `ws://127.0.0.1:${(server.address() as { port: number }).port}`, cut };
}

describe("a link that is cut", () => {
  test("twenty times under load loses nothing and doubles nothing", async () => {
    const [hub, app] = [exchange("hub"), exchange("app")];
    const { url, cut } = await cable(Number(new URL(await hub.listen("ws://127.0.0.1:0")).port));
    const came: number[] = [];
    hub.handle<number>("count", ({ value }) => void came.push(value));
    const recovered: boolean[] = [];
    app.when("resumed", (event) => recovered.push(event.recovered));
    await app.connect(url);
    let sent = 0;
    for (let round = 0; round < 20; round++) {
      for (let n = 0; n < 200; n++) void app.send("count", sent++);
      await new Promise((resolve) => setTimeout(resolve, 30));
      cut();
    }
    while (came.length < sent) await new Promise((resolve) => setTimeout(resolve, 20));
    expect(came).toEqual(Array.from({ length: sent }, (_, n) => n));
    expect(recovered.every(Boolean)).toBe(true);
    expect(recovered.length).toBeGreaterThan(5);
  });

  test("to an exchange that was restarted tells what is uncertain", async () => {
    const [first, second, app] = [exchange("hub"), exchange("hub"), exchange("app")];
    const ports = await Promise.all([first, second].map((hub) => hub.listen("ws://127.0.0.1:0")));
    const [before = 0, after = 0] = ports.map((url) => Number(new URL(url).port));
    const { url, cut } = await cable(before);
    let end: (value?: unknown) => void = () => undefined;
    first.handle("slow", () => new Promise((resolve) => (end = resolve)));
    await app.connect(url);
    await app.request("exchange.describe", null, { to: "hub" });
    const resumed = new Promise<{ recovered: boolean }>((resolve) => void app.when("resumed", resolve));
    const asked = app.request("slow");
    await new Promise((resolve) => setTimeout(resolve, 50));
    cut(after);
    expect(await resumed).toMatchObject({ id: "hub", recovered: false });
    await expect(asked).rejects.toMatchObject({ code: 14, delivered: undefined });
    end();
  });
});

describe("addresses", () => {
  test.each(["ws://", "http://127.0.0.1", "nonsense", "grpc://127.0.0.1:50051"])("%s is none", async (url) => {
    await expect(exchange("app").connect(url)).rejects.toThrow(AddressError);
  });

  test("where nobody answers", async () => {
    await expect(exchange("app").connect("ws://127.0.0.1:1")).rejects.toThrow(LinkError);
  });

  test("that are taken", async () => {
    const hub = exchange("hub");
    const url = await hub.listen("ws://127.0.0.1:0");
    await expect(hub.listen(url)).rejects.toThrow(AddressError);
    await expect(hub.listen("wss://127.0.0.1:0")).rejects.toThrow("`cert` and a `key`");
  });
});

describe("a page", () => {
  test("cannot be connected to, nor set headers", async () => {
    await expect(browserWebSocket.listen("ws://127.0.0.1:0", {}, () => undefined)).rejects.toThrow(AddressError);
    expect(() => browserWebSocket.dial("ws://127.0.0.1", { headers: { a: "b" } })).toThrow(AddressError);
  });
});
