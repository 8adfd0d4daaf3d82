// Follows a value of another exchange, and sets it: first it is as it was, then every change comes.
import { Exchange } from "@exchange-grpc/client";

const app = new Exchange();
const peer = await app.connect(process.env.EXCHANGE_URL ?? "ws://127.0.0.1:8080");

for await (const { value, snapshot } of peer.state.watch("goal")) {
  console.log("goal:", value);
  if (!snapshot) break;
  await peer.state.set("goal", value === 50 ? 60 : 50);
}
await app.close();
