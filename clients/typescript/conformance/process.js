/**
 * The process under test, in Node.js and in a page alike: what tests/conformance/README.md asks for, over the public API.
 *
 * @module
 */

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { AddressError, Data, decodeJson, encodeJson, Exchange, InvalidMessage, LimitExceeded, LinkError, Refused, RequestError } from "@exchange-grpc/client";
import { ErrorInfoSchema, Kind, MessageSchema, StatusSchema } from "@exchange-grpc/proto";

/** @typedef {Record<string, any>} Given */
/** @typedef {import("@exchange-grpc/client").Message<any>} Message */
/** @typedef {import("@exchange-grpc/client").HandlerContext} Context */

/** @param {unknown} error @returns {{ code: number, reason: string, metadata?: Record<string, string> }} */
function described(error) {
  if (error instanceof RequestError) {
    const delivered = error.delivered === false ? "no" : "unknown";
    return { code: error.code, reason: error.reason, metadata: { at: error.at, ...(error.code === 14 && { delivered }) } };
  }
  if (error instanceof LimitExceeded) return { code: 11, reason: "LIMIT_EXCEEDED" };
  if (error instanceof InvalidMessage) return { code: 3, reason: "INVALID_MESSAGE" };
  if (error instanceof LinkError) return { code: 14, reason: "LINK" };
  if (error instanceof AddressError) return { code: error.message.startsWith("a page cannot be") ? 12 : 3, reason: "ADDRESS" };
  return { code: 2, reason: "UNKNOWN" };
}

/** @param {Given} given */
function payload(given) {
  if (given.data === undefined) return given.value;
  return new Data(Uint8Array.from(atob(given.data), (char) => char.charCodeAt(0)), given.content_type ?? "");
}

/** @param {unknown} value */
function said(value) {
  if (!(value instanceof Uint8Array)) return { value };
  return { data: btoa(Array.from(value, (byte) => String.fromCharCode(byte)).join("")) };
}

/** A message as a handler sees it. @param {Message} message */
function seen(message) {
  const { id, name, from, to, value, headers, trace, causes, root, timestampUs } = message;
  const format = value instanceof Uint8Array ? { content_type: message.contentType } : {};
  return { id, name, from, to, kind: message.kind.toUpperCase(), ...said(value), ...format, headers, trace, causes: [...causes], root, timestamp_us: timestampUs };
}

/** How to ask. @param {Given} given @param {AbortSignal} signal */
function asked({ to, via, headers, timeout }, signal) {
  return { to, via, headers, signal, ...(timeout !== undefined && { timeoutSeconds: timeout }) };
}

/** JSON, also of what is too deep for a message: here it stands within others. @param {unknown} value */
function toJson(value) {
  try {
    return encodeJson(value);
  } catch {
    return new TextEncoder().encode(JSON.stringify(value));
  }
}

/** @param {Uint8Array} json @returns {any} */
function fromJson(json) {
  try {
    return decodeJson(json);
  } catch {
    return JSON.parse(new TextDecoder().decode(json));
  }
}

export class Process {
  /** @type {Exchange} */ app = new Exchange();
  /** @type {Map<string, AbortController>} */ running = new Map();
  /** @type {Map<string, () => void>} */ handlers = new Map();
  release = () => {};
  /** @type {Promise<void>} */ released = Promise.resolve();

  /** @param {(message: Uint8Array) => void} write takes each message that shall go to stdout */
  constructor(write) {
    this.write = write;
  }

  /** @param {Uint8Array} data one message from stdin */
  async take(data) {
    const command = fromBinary(MessageSchema, data);
    if (command.kind === Kind.CANCEL) return void this.running.get(command.replyTo)?.abort();
    const controller = new AbortController();
    this.running.set(command.id, controller);
    try {
      const given = command.payload.case === "json" ? fromJson(command.payload.value) : {};
      const verb = /** @type {any} */ (this)[`do_${command.name.replace(".", "_")}`];
      const more = (/** @type {unknown} */ value, /** @type {unknown} */ error) => this.reply(command.id, false, value, error);
      this.reply(command.id, true, await verb.call(this, given, controller.signal, more));
    } catch (error) {
      this.reply(command.id, true, null, error);
    }
    this.running.delete(command.id);
  }

  /** @param {string} replyTo @param {boolean} last @param {unknown} value @param {unknown} [error] */
  reply(replyTo, last, value, error) {
    const reply = create(MessageSchema, { kind: Kind.REPLY, replyTo, last, payload: { case: "json", value: toJson(value) } });
    if (error) {
      const { code, reason, metadata = {} } = described(error);
      const details = [anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { domain: "exchange", reason, metadata }))];
      reply.error = create(StatusSchema, { code, message: String(/** @type {Error} */ (error).message), details });
    }
    this.write(toBinary(MessageSchema, reply));
  }

  /** @param {string} name @param {unknown} value */
  event(name, value) {
    const payload = { case: /** @type {const} */ ("json"), value: toJson(value) };
    this.write(toBinary(MessageSchema, create(MessageSchema, { kind: Kind.SEND, name, payload })));
  }


  /** @param {Given} given */
  async do_start({ id, limits = {} }) {
    const named = Object.entries(limits).map(([name, value]) => [name.replace(/_(.)/g, (_, letter) => letter.toUpperCase()), value]);
    this.app = new Exchange(id, { limits: Object.fromEntries(named) });
    await this.do_release();
    for (const name of /** @type {const} */ (["connected", "lost", "resumed", "gaveUp", "unhandled"])) {
      this.app.when(name, (event) => this.event(name === "gaveUp" ? "gave_up" : name, event));
    }
    return { agent: (await /** @type {Promise<Given>} */ (this.app.request("exchange.describe"))).agent };
  }

  do_listen = async (/** @type {Given} */ { url }) => ({ url: await this.app.listen(url) });
  do_connect = async (/** @type {Given} */ { url, retry }) => ({ peer: (await this.app.connect(url, { retrySeconds: retry })).id });
  do_disconnect = (/** @type {Given} */ { peer }) => this.app.peers.find(({ id }) => id === peer)?.disconnect();
  do_close = () => this.app.close();
  do_peers = async () => ({ peers: this.app.peers.map(({ id, relay, handles, subscribes }) => ({ id, relay, handles, subscribes })) });


  async do_handle(/** @type {Given} */ { name, do: what, with: given = {} }) {
    const handler = what === "many" ? this.many.bind(this, given) : (/** @type {Message} */ message, /** @type {Context} */ context) => {
      this.event("handling", seen(message));
      return /** @type {any} */ (this.doings)[what](message, context, given);
    };
    this.handlers.set(name, this.app.handle(name, handler));
  }

  doings = {
    echo: (/** @type {Message} */ message) => (message.value instanceof Uint8Array ? new Data(message.value, message.contentType) : message.value),
    see: seen,
    nothing: () => undefined,
    fail: () => { throw new Error("secret"); },
    refuse: (/** @type {Message} */ _, /** @type {Context} */ __, /** @type {Given} */ { code, reason, text }) => { throw new Refused(text, { code, reason }); },
    wait: async (/** @type {Message} */ message, /** @type {Context} */ { signal }) => {
      const withdrawn = new Promise((resolve) => signal.addEventListener("abort", () => resolve("withdrawn")));
      if ((await Promise.race([this.released, withdrawn])) === "withdrawn") this.event("cancelled", { id: message.id });
      return "released";
    },
    send: async (/** @type {Message} */ _, /** @type {Context} */ context, /** @type {Given} */ { name, value }) => void (await context.send(name, value)),
    publish: async (/** @type {Message} */ _, /** @type {Context} */ context, /** @type {Given} */ { name, value }) => void (await context.publish(name, value)),
    request: (/** @type {Message} */ _, /** @type {Context} */ context, /** @type {Given} */ { name, value }) => context.request(name, value),
  };

  async *many(/** @type {Given} */ { values }, /** @type {Message} */ message) {
    this.event("handling", seen(message));
    yield* values;
  }

  do_unhandle = async (/** @type {Given} */ { name }) => this.handlers.get(name)?.();
  do_release = async () => {
    this.release();
    this.released = new Promise((resolve) => (this.release = resolve));
  };
  heard = (/** @type {string} */ by) => (/** @type {Message} */ message) => this.event("heard", { by, ...seen(message) });
  do_on = async (/** @type {Given} */ { name }) => void this.app.on(name, this.heard("on"));
  do_subscribe = async (/** @type {Given} */ { pattern }) => void this.app.subscribe(pattern, this.heard("subscribe"));
  do_observe = async (/** @type {Given} */ { pattern }) => void this.app.observe(pattern, this.heard("observe"));


  do_send = async (/** @type {Given} */ given, /** @type {AbortSignal} */ signal) => ({ id: await this.app.send(given.name, payload(given), asked(given, signal)) });
  do_publish = async (/** @type {Given} */ given) => ({ id: await this.app.publish(given.name, payload(given), given) });
  do_broadcast = async (/** @type {Given} */ given) => ({ id: await this.app.broadcast(given.name, payload(given), given) });

  async do_request(/** @type {Given} */ given, /** @type {AbortSignal} */ signal) {
    return said(await this.app.request(given.name, payload(given), asked(given, signal)));
  }

  async do_request_many(/** @type {Given} */ given, /** @type {AbortSignal} */ signal, /** @type {(value: unknown, error?: unknown) => void} */ reply) {
    const replies = this.app.requestMany(given.name, payload(given), asked(given, signal));
    for await (const one of replies) reply({ from: one.from, ...(one.error ? {} : said(one.value)) }, one.error);
    return { lost: replies.lost };
  }

  do_state_get = (/** @type {Given} */ { exchange, name }) => this.app.stateOf(exchange).get(name);
  do_state_set = (/** @type {Given} */ { exchange, name, value, expected }) => this.app.stateOf(exchange).set(name, value, { expected });

  async do_state_watch(/** @type {Given} */ { exchange, names }, /** @type {AbortSignal} */ signal, /** @type {(value: unknown) => void} */ reply) {
    for await (const state of this.app.stateOf(exchange).watch(names, { signal })) reply(state);
    return null;
  }

  do_trace = (/** @type {Given} */ { id }) => this.app.trace(id);
  do_why = (/** @type {Given} */ { key, exchange }) => this.app.why(key, exchange);
}
