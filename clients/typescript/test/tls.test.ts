/** wss:// with a certificate of our own, which only who was told trusts; and credentials in headers. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Exchange, LinkError, type Logger } from "../src/node.js";

const quiet: Logger = { debug: () => undefined, info: () => undefined, warn: () => undefined, error: () => undefined };
let cert = "";
let key = "";

beforeAll(() => {
  const place = mkdtempSync(join(tmpdir(), "exchange-tls-"));
  const subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"];
  const files = ["-keyout", join(place, "key.pem"), "-out", join(place, "cert.pem")];
  execFileSync("openssl", ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", ...subject, ...files], { stdio: "ignore" });
  [cert, key] = [readFileSync(join(place, "cert.pem"), "utf8"), readFileSync(join(place, "key.pem"), "utf8")];
  rmSync(place, { recursive: true });
});

const hub = new Exchange("hub", { log: quiet });
const app = new Exchange("app", { log: quiet });
afterAll(() => Promise.all([app.close(), hub.close()]));

test("a certificate counts if it is trusted", async () => {
  const url = await hub.listen("wss://127.0.0.1:0", { tls: { cert, key } });
  await expect(app.connect(url)).rejects.toThrow(LinkError);
  expect((await app.connect(url, { tls: { ca: cert } })).id).toBe("hub");
});

test("headers go with each attempt", async () => {
  const heard: unknown[] = [];
  const server = createServer();
  server.on("upgrade", ({ headers }, socket) => {
    heard.push(headers.authorization);
    socket.end("HTTP/1.1 401 Unauthorized\r\n\r\n");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}`;
  let attempt = 0;
  const headers = (): Record<string, string> => ({ authorization: `Bearer ${++attempt}` });
  await expect(app.connect(url, { headers })).rejects.toThrow("401");
  await expect(app.connect(url, { headers })).rejects.toThrow("401");
  expect(heard).toEqual(["Bearer 1", "Bearer 2"]);
  server.close();
});
