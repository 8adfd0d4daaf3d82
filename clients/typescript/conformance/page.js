/** The process under test in a page: commands and answers go through a WebSocket of the script that started the browser. */
import { Process } from "./process.js";

const bridge = new WebSocket(`ws://${location.host}/bridge`);
bridge.binaryType = "arraybuffer";
const client = new Process((message) => bridge.send(/** @type {Uint8Array<ArrayBuffer>} */ (message)));
bridge.onmessage = (/** @type {MessageEvent<ArrayBuffer | string>} */ { data }) => {
  if (typeof data === "string") void client.app.close().then(() => bridge.close());
  else void client.take(new Uint8Array(data));
};
