// Two exchanges handle the same name: a third that knows neither asks ten times, and each gets its share.
import { Exchange } from "@exchange-grpc/client";

const url = process.env.EXCHANGE_URL ?? "ws://127.0.0.1:8080";
const run = Math.random().toString(36).slice(2, 8); // an id is one exchange's own
const done = new Map([["worker-1", 0], ["worker-2", 0]]);

const workers = [...done.keys()].map((name) => {
  const worker = new Exchange(`${name}-${run}`);
  worker.handle("pool.work", () => {
    done.set(name, (done.get(name) ?? 0) + 1);
    return name;
  });
  return worker;
});
const boss = new Exchange(`boss-${run}`);
const everybody = [...workers, boss];
for (const app of everybody) await app.connect(url);

for (let job = 0; job < 10; job++) await boss.request("pool.work", { job });
for (const [name, count] of done) console.log(`${name}: ${count}`);
await Promise.all(everybody.map((app) => app.close()));
