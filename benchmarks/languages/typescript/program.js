// The TypeScript client's program of benchmarks.languages, on Node; program.py says what it is told and what it says.

import { createInterface } from "node:readline";
import { Exchange } from "@exchange-grpc/client";
import { connect } from "@nats-io/transport-node";

const AT_ONCE = 64;
const PATIENCE = 20_000; // ms
const VALUE = { order: 4711, customer: "c-20230513", items: [3, 1, 4, 1, 5], paid: true, note: "x".repeat(22) };

const say = (what) => console.log(JSON.stringify(what));
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function untilTheEnd() {
  for await (const _ of process.stdin);
}

const LOADS = {
  async "one way"({ send, count }, last) {
    const before = await count();
    const start = performance.now();
    let sent = 0;
    for (; performance.now() < start + last; sent++) await send();
    for (let taken = before; taken < before + sent; taken = await count()) {
      if (performance.now() > start + last + PATIENCE) throw new Error(`${taken - before} of ${sent} arrived`);
      await wait(1);
    }
    return (sent * 1000) / (performance.now() - start);
  },
  async "at once"({ ask }, last) {
    const start = performance.now();
    let answered = 0;
    const keepAsking = async () => {
      for (; performance.now() < start + last; answered++) await ask();
    };
    await Promise.all(Array.from({ length: AT_ONCE }, keepAsking));
    return (answered * 1000) / (performance.now() - start);
  },
  async p50({ ask }, last) {
    const took = [];
    for (const start = performance.now(); performance.now() < start + last; ) {
      const begin = performance.now();
      await ask();
      took.push(performance.now() - begin);
    }
    took.sort((a, b) => a - b);
    return took[took.length >> 1] * 1000;
  },
};

async function obey(client) {
  say(null);
  for await (const line of createInterface({ input: process.stdin })) {
    const { load, seconds } = JSON.parse(line);
    try {
      say({ figure: await LOADS[load](client, seconds * 1000) });
    } catch (error) {
      say({ error: String(error) });
    }
  }
}

const ROLES = {
  exchange: {
    async sink(url) {
      let taken = 0;
      const app = new Exchange("sink");
      app.handle("bench.take", () => void taken++);
      app.handle("bench.count", () => taken);
      app.handle("bench.echo", (msg) => msg.value);
      if (url.endsWith(":0")) say(await app.listen(url));
      else {
        await app.connect(url);
        say(null);
      }
      await untilTheEnd();
      await app.close();
    },
    async source(url) {
      const app = new Exchange("source");
      await app.connect(url);
      await obey({
        send: () => app.send("bench.take", VALUE),
        ask: () => app.request("bench.echo", VALUE),
        count: () => app.request("bench.count"),
      });
      await app.close();
    },
  },
  nats: {
    async sink(url) {
      let taken = 0;
      const client = await connect({ servers: url });
      client.subscribe("bench.take", { callback: () => void taken++ });
      client.subscribe("bench.count", { callback: (_, msg) => msg.respond(JSON.stringify(taken)) });
      client.subscribe("bench.echo", { callback: (_, msg) => msg.respond(JSON.stringify(msg.json())) });
      await client.flush();
      say(null);
      await untilTheEnd();
      await client.close();
    },
    async source(url) {
      const client = await connect({ servers: url });
      const request = async (name, value) =>
        (await client.request(name, JSON.stringify(value ?? null), { timeout: PATIENCE })).json();
      let sent = 0;
      await obey({
        // It queues what is published and never waits; its documentation asks for a flush now and then.
        send: async () => {
          client.publish("bench.take", JSON.stringify(VALUE));
          if (++sent % 1024 === 0) await client.flush();
        },
        ask: () => request("bench.echo", VALUE),
        count: () => request("bench.count"),
      });
      await client.close();
    },
  },
};

const [side, role, url] = process.argv.slice(2);
await ROLES[side][role](url);
