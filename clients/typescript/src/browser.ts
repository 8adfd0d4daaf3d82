/** The package in browsers: WebSockets by the browser itself. */
import { register } from "./transport.js";
import { browserWebSocket } from "./websocket-browser.js";

register("ws", browserWebSocket);
register("wss", browserWebSocket);

export * from "./index.js";
