// Watches a value of another exchange, and sets it: first it is told as it is, then comes every change.
import { Exchange } from "@exchange-grpc/client";

const app = new Exchange();
const { state } = await app.connect(process.env.EXCHANGE_URL ?? "ws://127.0.0.1:8080");

for await (const { value, snapshot } of state.watch("goal")) {
  if (!snapshot) {
    console.log(`goal: ${String(value)}`);
    break;
  }
  await state.set("goal", value === 50 ? 100 : 50);
}
await app.close();
