// Asks whoever handles `compute.sum`, and prints the answer.
import { Exchange } from "@exchange-grpc/client";

const app = new Exchange();
await app.connect(process.env.EXCHANGE_URL ?? "ws://127.0.0.1:8080");
const sum = await app.request("compute.sum", { a: 5, b: 3 });
console.log("compute.sum:", sum);
await app.close();
