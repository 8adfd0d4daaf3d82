/**
 * Transports: what moves frames between two exchanges. Thin: each knows nothing of routing.
 *
 * A frame is bytes, one write, complete and in order. To add a transport for a scheme of your own, {@link register} it.
 *
 * @module
 */

import { AddressError, type InvalidMessage } from "./errors.js";

/** One connection, in frames. */
export interface Transport {
  /** Establish it. Rejects with LinkError. Nothing is received before this resolves. */
  connect(): Promise<void>;
  /** Set, before `connect`, who takes what comes in (an error in place of what is no frame), and hears once that it is gone. */
  onReceive(receive: (frame: Uint8Array | InvalidMessage) => void, end: (reason: string) => void): void;
  /** Write one frame; resolves when more should be written. Rejects with LinkError. Not called concurrently. */
  send(frame: Uint8Array): Promise<void>;
  /** Read no more for now, where that can be done. */
  pause?(): void;
  /** ... and go on. */
  resume?(): void;
  /** Close it, once what was sent has left. May be called at any time and again. */
  disconnect(): Promise<void>;
}

/** A place where connections come in. */
export interface Listener {
  /** Where it listens, with the port it was given. */
  readonly url: string;
  /** Take no more connections, and end those that are left. */
  close(): Promise<void>;
}

/** Who may log in, and how it is kept secret. Only Node.js can set these: in a browser they belong to the page. */
export interface Credentials {
  /** Headers of the opening handshake, such as `authorization`; a function is asked anew for each attempt. */
  headers?: Record<string, string> | (() => Record<string, string>);
  /** Certificates and keys in PEM, as in `node:tls`. */
  tls?: {
    ca?: string | string[];
    cert?: string;
    key?: string;
    servername?: string;
    /** Whether the certificate of the other side must be trusted: true unless said. */
    rejectUnauthorized?: boolean;
  };
}

/** How to listen. */
export interface ListenOptions extends Credentials {
  /** The exact origins of the pages that may connect. Unless said: those of the same origin, and whoever is no page. */
  origins?: readonly string[];
}

/** A kind of transport: what stands before `://` in a URL. */
export interface Scheme {
  /** A transport to `url`, not connected yet. Throws AddressError. */
  dial(url: string, credentials: Credentials): Transport;
  /** Take connections at `url`. Rejects with AddressError. */
  listen(url: string, options: ListenOptions, accept: (transport: Transport) => void): Promise<Listener>;
}

const schemes = new Map<string, Scheme>();

/** Use `scheme` for URLs that begin with `name` and a colon. */
export function register(name: string, scheme: Scheme): void {
  schemes.set(name, scheme);
}

/** The transport for `url`. Throws AddressError. */
export function schemeOf(url: string): Scheme {
  const [name = ""] = url.split(":", 1);
  const scheme = schemes.get(name);
  if (scheme && name !== url) return scheme;
  const known = [...schemes.keys()].sort().join(", ");
  throw new AddressError(`no transport takes '${url}': a URL begins with one of ${known}`);
}
