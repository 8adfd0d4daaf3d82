// Says hello to the exchange at EXCHANGE_URL (`exchange serve --demo --http 127.0.0.1:8080`), and tells whom it met.
import { Exchange } from "@exchange-grpc/client";

const app = new Exchange();
const peer = await app.connect(process.env.EXCHANGE_URL ?? "ws://127.0.0.1:8080");
await app.send("echo", "hello");
console.log(`hello from ${peer.id}`);
await app.close();
