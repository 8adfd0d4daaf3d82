/**
 * WebSocket in browsers: the native one. A page cannot be connected to.
 *
 * @module
 */

import { AddressError, type InvalidMessage, LinkError } from "./errors.js";
import type { Credentials, Scheme, Transport } from "./transport.js";
import { addressOf, placeOf, PROTOCOLS, read, written } from "./websocket.js";

const BUFFERED_BYTES = 2 ** 20; // beyond this, the writer waits
const POLL_MS = 5; // a browser says nothing when the buffer has drained
const CLOSE_MS = 1_000; // how long a closing handshake is waited for

class BrowserTransport implements Transport {
  #socket: WebSocket | undefined;
  #receive: (frame: Uint8Array | InvalidMessage) => void = () => undefined;
  #end: (reason: string) => void = () => undefined;

  constructor(private readonly address: URL) {}

  onReceive(receive: (frame: Uint8Array | InvalidMessage) => void, end: (reason: string) => void): void {
    this.#receive = receive;
    this.#end = end;
  }

  async connect(): Promise<void> {
    const socket = this.#open();
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    await new Promise<void>((resolve, reject) => {
      const refused = (): void => reject(new LinkError(`nobody answers at ${placeOf(this.address)}${orRefuses()}`));
      socket.onclose = refused;
      socket.onopen = () => {
        socket.onclose = ({ code }) => {
          this.#end(code === 1000 ? "the peer ended the connection" : `the connection was lost (${code})`);
        };
        if (PROTOCOLS.includes(socket.protocol)) return resolve();
        socket.close();
        refused();
      };
      socket.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
        this.#receive(read(typeof data === "string" ? data : new Uint8Array(data), socket.protocol));
      };
    });
  }

  #open(): WebSocket {
    try {
      return new WebSocket(this.address, [...PROTOCOLS]);
    } catch (error) {
      // A page that came by https may not use ws, and some ports nobody may use.
      throw new LinkError(`the browser does not connect to ${placeOf(this.address)}: ${(error as Error).message}`);
    }
  }

  async send(frame: Uint8Array): Promise<void> {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN) throw new LinkError("the connection was lost");
    socket.send(written(frame, socket.protocol) as Uint8Array<ArrayBuffer> | string);
    await turn(); // what is said until the browser has had a turn leaves in one frame
    while (socket.readyState === WebSocket.OPEN && socket.bufferedAmount > BUFFERED_BYTES) await pause(POLL_MS);
  }

  async disconnect(): Promise<void> {
    const socket = this.#socket;
    if (!socket || socket.readyState === WebSocket.CLOSED) return;
    const closed = new Promise<void>((resolve) => (socket.onclose = () => resolve()));
    socket.close(1000);
    await Promise.race([closed, pause(CLOSE_MS)]);
  }
}

/** No page is told why there is no connection: this may be why. Not all that takes this for its WebSocket is a page. */
function orRefuses(): string {
  const page = globalThis.location as Location | undefined;
  return page ? `, or it refuses pages of ${page.origin}` : "";
}

const channel = new MessageChannel();
const turns: (() => void)[] = [];
channel.port1.onmessage = () => turns.shift()?.();

/** One turn of the event loop; a timer would take four milliseconds. */
function turn(): Promise<void> {
  return new Promise((resolve) => {
    turns.push(resolve);
    channel.port2.postMessage(undefined);
  });
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** `ws:` and `wss:` in browsers. */
export const browserWebSocket: Scheme = {
  dial(url: string, { headers, tls }: Credentials): Transport {
    if (headers || tls) {
      throw new AddressError("a page cannot set headers or certificates of a WebSocket: use cookies, or the query of the URL");
    }
    return new BrowserTransport(addressOf(url));
  },
  listen: () => Promise.reject(new AddressError("a page cannot be connected to: it can only connect")),
};
