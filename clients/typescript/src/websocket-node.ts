/**
 * WebSocket in Node.js, by the package `ws`: to connect, and to be connected to.
 *
 * @module
 */

import { createServer, type IncomingMessage, type Server } from "node:http";
import { createServer as createSecureServer } from "node:https";
import type { AddressInfo } from "node:net";
import { type ClientOptions, type RawData, WebSocket, WebSocketServer } from "ws";
import { AddressError, type InvalidMessage, LinkError } from "./errors.js";
import { DIAL_SECONDS, TEXT_FRAME_BYTES } from "./limits.js";
import { failureOf, refusalOf } from "./refusal-node.js";
import type { Credentials, Listener, ListenOptions, Scheme, Transport } from "./transport.js";
import { addressOf, PATH, PROTOCOLS, read, written } from "./websocket.js";

const CLOSE_MS = 1_000; // how long a closing handshake is waited for
const OPTIONS = { maxPayload: TEXT_FRAME_BYTES, perMessageDeflate: false };

class NodeTransport implements Transport {
  #socket: WebSocket | undefined;
  #receive: (frame: Uint8Array | InvalidMessage) => void = () => undefined;
  #end: (reason: string) => void = () => undefined;
  #error: Error | undefined;

  /** To an address, or of a socket that came in. */
  constructor(
    private readonly open: () => WebSocket,
    private readonly address?: URL,
  ) {}

  onReceive(receive: (frame: Uint8Array | InvalidMessage) => void, end: (reason: string) => void): void {
    this.#receive = receive;
    this.#end = end;
  }

  async connect(): Promise<void> {
    const socket = this.open();
    this.#socket = socket;
    socket.on("message", (data, isBinary) => this.#receive(read(isBinary ? bytesOf(data) : textOf(data), socket.protocol)));
    socket.on("error", (error) => (this.#error = error));
    socket.on("close", (code) => {
      this.#end(code === 1000 ? "the peer ended the connection" : (this.#error?.message ?? `the connection was lost (${code})`));
    });
    if (this.address) await this.#opened(socket, this.address);
  }

  async #opened(socket: WebSocket, address: URL): Promise<void> {
    let refusal = "";
    await new Promise<void>((resolve, reject) => {
      socket.once("open", resolve);
      socket.once("unexpected-response", (_, response) => {
        void refusalOf(address, response).then((text) => {
          refusal = text;
          socket.terminate();
        });
      });
      socket.once("close", () => reject(new LinkError(refusal || failureOf(address, this.#error ?? new Error("it closed")))));
    });
  }

  send(frame: Uint8Array): Promise<void> {
    const socket = this.#socket;
    return new Promise((resolve, reject) => {
      if (socket?.readyState !== WebSocket.OPEN) {
        reject(new LinkError("the connection was lost"));
        return;
      }
      const data = written(frame, socket.protocol);
      socket.send(data, (error) => (error ? reject(new LinkError(`the connection was lost: ${error.message}`)) : resolve()));
    });
  }

  pause(): void {
    this.#socket?.pause();
  }

  resume(): void {
    this.#socket?.resume();
  }

  async disconnect(): Promise<void> {
    const socket = this.#socket;
    if (!socket || socket.readyState === WebSocket.CLOSED) return;
    const late = setTimeout(() => socket.terminate(), CLOSE_MS);
    const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()));
    socket.resume(); // else the end is never read
    if (socket.readyState === WebSocket.CONNECTING) socket.terminate();
    else socket.close(1000);
    await closed;
    clearTimeout(late);
  }
}

function bytesOf(data: RawData): Uint8Array {
  if (Array.isArray(data)) return Buffer.concat(data);
  return data instanceof ArrayBuffer ? new Uint8Array(data) : data;
}

function textOf(data: RawData): string {
  return Buffer.from(bytesOf(data)).toString();
}

function optionsOf({ headers, tls }: Credentials): ClientOptions {
  const said = typeof headers === "function" ? headers() : headers;
  return { ...OPTIONS, ...tls, ...(said && { headers: said }), handshakeTimeout: DIAL_SECONDS * 5_000 };
}

class NodeListener implements Listener {
  constructor(
    readonly url: string,
    private readonly server: Server,
    private readonly sockets: WebSocketServer,
  ) {}

  async close(): Promise<void> {
    for (const socket of this.sockets.clients) socket.terminate();
    this.sockets.close();
    this.server.closeAllConnections();
    await new Promise<void>((resolve) => this.server.close(() => resolve()));
  }
}

/** Whether whoever wants to connect is no page, or one that may. */
function isWelcome({ headers, socket }: IncomingMessage, origins: readonly string[] | undefined): boolean {
  const { origin, host } = headers;
  if (origin === undefined) return true;
  if (origins) return origins.includes(origin);
  const scheme = "encrypted" in socket ? "https" : "http";
  return origin === `${scheme}://${host}`;
}

function listenAt(server: Server, address: URL): Promise<void> {
  const host = address.hostname.replace(/^\[|\]$/g, "");
  const port = Number(address.port || (address.protocol === "wss:" ? 443 : 80));
  return new Promise((resolve, reject) => {
    server.once("error", (error) => reject(new AddressError(`${address.host} cannot be listened at: ${error.message}`)));
    server.listen({ host, port, exclusive: true }, resolve);
  });
}

/** `ws:` and `wss:` in Node.js. */
export const nodeWebSocket: Scheme = {
  dial(url: string, credentials: Credentials): Transport {
    const address = addressOf(url);
    return new NodeTransport(() => new WebSocket(address, [...PROTOCOLS], optionsOf(credentials)), address);
  },

  async listen(url: string, options: ListenOptions, accept: (transport: Transport) => void): Promise<Listener> {
    const address = addressOf(url);
    const secure = address.protocol === "wss:";
    if (secure && !(options.tls?.cert && options.tls.key)) {
      throw new AddressError("to listen at wss://, `tls` with a `cert` and a `key` is needed");
    }
    const server = secure ? createSecureServer({ ...options.tls }) : createServer();
    server.on("request", (_, response) => response.writeHead(404).end());
    const sockets = new WebSocketServer({
      ...OPTIONS,
      server: server as Server,
      path: address.pathname || PATH,
      handleProtocols: (offered) => PROTOCOLS.find((protocol) => offered.has(protocol)) ?? false,
      verifyClient: ({ req }, answer) => {
        const offered = String(req.headers["sec-websocket-protocol"] ?? "").split(/\s*,\s*/);
        if (!isWelcome(req, options.origins)) answer(false, 403, "this origin may not connect");
        else if (!offered.some((protocol) => PROTOCOLS.includes(protocol))) answer(false, 400, "no subprotocol that is known");
        else answer(true);
      },
    });
    sockets.on("connection", (socket) => {
      const transport = new NodeTransport(() => socket);
      accept(transport);
      void transport.connect();
    });
    sockets.on("error", () => undefined); // it is the server's, which says it
    await listenAt(server, address);
    const { port } = server.address() as AddressInfo;
    address.port = String(port);
    return new NodeListener(address.href, server, sockets);
  },
};
