/** The process under test in Node.js: commands from stdin, answers and events to stdout. */
import process from "node:process";
import { delimited, splitter } from "./delimited.js";
import { Process } from "./process.js";

const client = new Process((message) => void process.stdout.write(delimited(message)));
process.stdin.on("data", splitter((message) => void client.take(message)));
process.stdin.on("end", () => {
  void client.app.close().then(() => process.exit(0));
});
