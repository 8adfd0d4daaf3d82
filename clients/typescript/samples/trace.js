// Asks, and then asks which way the question and its answer went.
import { Exchange } from "@exchange-grpc/client";

const app = new Exchange();
await app.connect(process.env.EXCHANGE_URL ?? "ws://127.0.0.1:8080");

let id = "";
app.observe("compute.sum", (message) => (id ||= message.id));
await app.request("compute.sum", { a: 5, b: 3 });

const { spans } = await app.trace(id);
for (const { name, hops } of spans) console.log(`${name}: ${hops.map(({ exchange }) => exchange).join(" -> ")}`);
await app.close();
