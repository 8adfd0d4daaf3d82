import { afterEach, describe, expect, test } from "vitest";
import { Cancelled, Data, Exchange, type ExchangeOptions, type Logger, Refused, Unavailable, Unhandled } from "../src/node.js";

const quiet: Logger = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
const all: Exchange[] = [];

function exchange(id: string, options: ExchangeOptions = {}): Exchange {
  const made = new Exchange(id, { log: quiet, limits: { reconnectMinSeconds: 0.02, reconnectMaxSeconds: 0.05 }, ...options });
  all.push(made);
  return made;
}

/** An exchange that others are linked to, and these. */
async function linked(...ids: string[]): Promise<[Exchange, ...Exchange[]]> {
  const hub = exchange("hub");
  const url = await hub.listen("ws://127.0.0.1:0");
  const others = ids.map((id) => exchange(id));
  for (const other of others) await other.connect(url);
  return [hub, ...others];
}

/** The next event of this name. */
function next<T>(register: (listener: (event: T) => void) => () => void): Promise<T> {
  return new Promise((resolve) => {
    const remove = register((event) => {
      remove();
      resolve(event);
    });
  });
}

const aborted = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => signal.addEventListener("abort", () => resolve()));

afterEach(async () => {
  await Promise.all(all.splice(0).map((one) => one.close()));
});

describe("a request", () => {
  test("is answered by who handles the name", async () => {
    const [hub, app] = await linked("app");
    hub.handle<{ a: number; b: number }>("compute.sum", ({ value }) => value.a + value.b);
    await app?.request("exchange.describe", null, { to: "hub" }); // what it answers now, it answers after it told of that
    expect(await app?.request("compute.sum", { a: 5, b: 3 })).toBe(8);
  });

  test("carries bytes, headers and large whole numbers", async () => {
    const [hub, app] = await linked("app");
    app?.handle("echo", ({ value, contentType, headers }) => {
      if (headers.n) return { n: headers.n };
      return value instanceof Uint8Array ? new Data(value, contentType) : value;
    });
    await hub.request("exchange.describe", null, { to: "app" });
    expect(await hub.request("echo", 2n ** 63n)).toBe(2n ** 63n);
    expect(await hub.request("echo", new Uint8Array([1, 2]))).toEqual(Buffer.from([1, 2]));
    expect(await hub.request("echo", 1, { headers: { n: "7" } })).toEqual({ n: "7" });
  });

  test("that nobody takes fails at once", async () => {
    const app = exchange("app");
    const message = "nobody handles nobody.home within reach of app (it is linked to nobody)";
    await expect(app.request("nobody.home")).rejects.toMatchObject({ name: "Unhandled", message, at: "app" });
    await expect(app.requestMany("nobody.home").next()).rejects.toMatchObject({ message });
    const there = "there is no exchange nobody within reach of app (it is linked to nobody)";
    await expect(app.send("any", null, { to: "nobody" })).rejects.toMatchObject({ message: there });
    const [hub] = await linked("other");
    await expect(hub.request("nobody.home")).rejects.toThrow(/within reach of hub$/);
  });

  test("that is not answered in time is named", async () => {
    const app = exchange("app");
    app.handle("slow", (_, { signal }) => aborted(signal));
    const message = "slow was not answered within 0.05 s";
    await expect(app.request("slow", null, { timeoutSeconds: 0.05 })).rejects.toMatchObject({ name: "DeadlineExceeded", message, at: "app" });
  });

  test("whose handler throws says nothing of why", async () => {
    const app = exchange("app");
    app.handle("fail", () => {
      throw new Error("secret");
    });
    app.handle("refuse", () => {
      throw new Refused("sold out", { reason: "SOLD_OUT" });
    });
    app.handle("strange", () => new Map());
    await expect(app.request("fail")).rejects.toMatchObject({ name: "HandlerFailed", message: "the handler of fail failed" });
    await expect(app.request("refuse")).rejects.toMatchObject({ message: "sold out", reason: "SOLD_OUT", at: "app", code: 3 });
    await expect(app.request("strange")).rejects.toMatchObject({ code: 13, reason: "ANSWER" });
  });

  test("is withdrawn by its signal, and its handler hears so", async () => {
    const [hub, app] = await linked("app");
    const withdrawn = new Promise<string>((resolve) => {
      hub.handle("wait", (_, { signal }) => aborted(signal).then(() => resolve("withdrawn")));
    });
    await app?.request("exchange.describe", null, { to: "hub" });
    const controller = new AbortController();
    const asked = app?.request("wait", null, { signal: controller.signal });
    setTimeout(() => controller.abort(), 50);
    await expect(asked).rejects.toThrow(Cancelled);
    expect(await withdrawn).toBe("withdrawn");
  });

  test("fails when the link is lost, and says that it may have been delivered", async () => {
    const [hub, app] = await linked("app");
    hub.handle("wait", (_, { signal }) => aborted(signal));
    await app?.request("exchange.describe", null, { to: "hub" });
    const asked = app?.request("wait");
    setTimeout(() => void app?.peers[0]?.disconnect(), 50);
    await expect(asked).rejects.toMatchObject({ code: 14, delivered: undefined });
    await expect(asked).rejects.toThrow(Unavailable);
  });
});

describe("a request to many", () => {
  test("has the replies of all, and ends", async () => {
    const [hub, one, two] = await linked("one", "two");
    one?.handle("offers", async function* () {
      yield await Promise.resolve(1);
      yield 2;
    });
    two?.handle("offers", (_, context) => context.reply(3));
    hub.handle("offers", () => 4);
    for (const to of ["one", "two"]) await hub.request("exchange.describe", null, { to });
    const found: unknown[] = [];
    const replies = hub.requestMany("offers");
    for await (const { value } of replies) found.push(value);
    expect(found.sort()).toEqual([1, 2, 3, 4]);
    expect(replies.lost).toEqual([]);
  });

  test("may have very many replies, here and over a link", async () => {
    const [hub, app] = await linked("app");
    app?.handle("count", async function* () {
      for (let n = 0; n < 10_000; n++) yield await Promise.resolve(n);
    });
    await hub.request("exchange.describe", null, { to: "app" });
    for (const asker of [hub, app]) {
      let count = 0;
      for await (const { value } of asker?.requestMany("count") ?? []) expect((value as number) - count++).toBe(0);
      expect(count).toBe(10_000);
    }
  });

  test("that nobody takes fails", async () => {
    const replies = exchange("app").requestMany("offers");
    await expect(replies.next()).rejects.toThrow(Unhandled);
  });
});

describe("what a handler emits", () => {
  test("carries its cause, and after an answer that as well", async () => {
    const [hub, app] = await linked("app");
    const heard = next<{ causes: readonly string[]; root: string; trace: string[] }>((listener) => hub.on("done", listener));
    hub.handle("price", () => 7);
    app?.handle("order", async (_, context) => {
      await context.request("price");
      await context.send("done");
    });
    await hub.request("exchange.describe", null, { to: "app" });
    await app?.request("exchange.describe", null, { to: "hub" });
    const id = await hub.send("order");
    const { causes, root, trace } = await heard;
    expect(causes).toHaveLength(2);
    expect(causes[0]).toBe(id);
    expect(root).toBe(id);
    expect(trace).toEqual(["hub", "app", "hub", "app", "hub"]);
    const told = await hub.trace(id);
    expect(told.missing).toEqual([]);
    expect(told.spans.map(({ name }) => name)).toEqual(["order", "price", "price", "done"]);
    expect((await hub.why(id)).answer).toBe("order from hub was handled by order at app");
  });
});

describe("publications and broadcasts", () => {
  test("reach who wants them", async () => {
    const [hub, app] = await linked("app");
    const published = next<{ value: unknown }>((listener) => app?.subscribe("news.*", listener) ?? (() => undefined));
    const said = next<{ value: unknown }>((listener) => app?.on("status", listener) ?? (() => undefined));
    await hub.request("exchange.describe", null, { to: "app" });
    await hub.publish("news.today", "rain");
    await hub.broadcast("status", "fine");
    expect((await published).value).toBe("rain");
    expect((await said).value).toBe("fine");
  });
});

describe("a send", () => {
  test("that fails is told of", async () => {
    const [hub, app] = await linked("app");
    app?.handle("fail", () => {
      throw new Error("secret");
    });
    await hub.request("exchange.describe", null, { to: "app" });
    const unhandled = next((listener) => hub.when("unhandled", listener));
    const id = await hub.send("fail");
    expect(await unhandled).toMatchObject({ id, name: "fail", outcome: "FAILED", reason: "HANDLER_FAILED", at: "app" });
  });

  test("passes through a crowd in order", async () => {
    const [hub, app] = await linked("app");
    const came: unknown[] = [];
    const done = new Promise<void>((resolve) => {
      hub.handle("count", ({ value }) => {
        came.push(value);
        if (came.length === 5_000) resolve();
      });
    });
    await app?.request("exchange.describe", null, { to: "hub" });
    for (let n = 0; n < 5_000; n++) await app?.send("count", n);
    await done;
    expect(came).toEqual(Array.from({ length: 5_000 }, (_, n) => n));
  });
});

describe("two who dial each other at once", () => {
  test("have one link", async () => {
    const [a, b] = [exchange("a"), exchange("b")];
    const [atA, atB] = [await a.listen("ws://127.0.0.1:0"), await b.listen("ws://127.0.0.1:0")];
    const [toB, toA] = await Promise.all([a.connect(atB), b.connect(atA)]);
    expect([toB.id, toA.id]).toEqual(["b", "a"]);
    a.handle("x", () => 1);
    await b.request("exchange.describe", null, { to: "a" });
    expect(await b.request("x")).toBe(1);
    expect(a.peers).toHaveLength(1);
  });
});

test("what is closed says so", async () => {
  const app = exchange("app");
  await app.close();
  await expect(app.send("a")).rejects.toThrow("app is closed");
  await expect(app.connect("ws://127.0.0.1:1")).rejects.toThrow("the exchange app is closed");
});
