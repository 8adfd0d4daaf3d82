/** The package in Node.js: WebSockets by `ws`. */
import { register } from "./transport.js";
import { nodeWebSocket } from "./websocket-node.js";

register("ws", nodeWebSocket);
register("wss", nodeWebSocket);

export * from "./index.js";
