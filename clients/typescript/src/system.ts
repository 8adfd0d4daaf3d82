/**
 * What this exchange answers of the names that begin with `exchange.`, and how traces are put together.
 *
 * @module
 */

import type { Emitter } from "./emitter.js";
import { Code, ExchangeError, InvalidMessage, Refused, RequestError } from "./errors.js";
import { PROTOCOL } from "./frames.js";
import type { Handlers } from "./handlers.js";
import type { Ledger } from "./ledger.js";
import { TRACE_EXCHANGES, TRACE_SECONDS } from "./limits.js";
import type { Links } from "./links.js";
import type { Message } from "./message.js";
import { originOf, shown } from "./patterns.js";
import type { Router } from "./router.js";
import { now } from "./time.js";
import { became, mergeTraces, passed, readTrace, type Trace, type TraceAnswer } from "./traces.js";

const VERSION = 1; // of the shapes of all answers
const SHARE = 0.8; // of the time left: the rest is for the answer to arrive

/** What `exchange.why` answers; of a state name it has more: see `docs/system.md`. */
export interface WhyAnswer {
  version: number;
  exchange: string;
  key: string;
  /** All of it in one sentence. */
  answer: string;
  trace?: TraceAnswer;
  [more: string]: unknown;
}

export class System {
  constructor(
    private readonly id: string,
    private readonly ledger: Ledger,
    private readonly router: Router,
    private readonly links: Links<unknown>,
    private readonly emitter: Emitter,
  ) {}

  /** Answer from now on. */
  install(handlers: Handlers): void {
    handlers.handle("exchange.describe", () => this.#describe(), { system: true });
    handlers.handle("exchange.peers", () => this.#peers(), { system: true });
    handlers.handle("exchange.trace", (message: Message) => this.#answerTrace(message), { system: true });
  }

  #said<T extends object>(fields: T): T & { version: number; exchange: string } {
    return { version: VERSION, exchange: this.id, ...fields };
  }

  #describe(): object {
    const { epoch, agent, relay, revision, handles, subscribes, exports } = this.links.introduction();
    const interest = { revision: Number(revision), handles, subscribes, exports };
    const peers = [...this.links.peers.keys()].sort();
    return this.#said({ epoch, agent, protocol: PROTOCOL, relay, interest, accepts: [], peers });
  }

  #peers(): object {
    const peers = [...this.router.peers.values()].map((peer) => {
      const session = this.links.byPeer.get(peer.id)?.session;
      return {
        id: peer.id,
        agent: session?.peer?.agent ?? "",
        away: peer.away,
        relay: peer.relay,
        handles: [...peer.handles].sort(),
        subscribes: [...peer.subscribes].sort(),
        exports: session?.peer?.exports ?? [],
        pending: peer.out.size,
        queued: session?.out.queued ?? 0,
        unacknowledged: session?.out.unacknowledged ?? 0,
        dropped: 0,
        slowed: 0,
      };
    });
    return this.#said({ peers });
  }

  // -------------------------------------------------------------------------------------------------------- trace

  async #answerTrace(message: Message): Promise<object> {
    const question = message.value;
    const { id, root, here } = (typeof question === "object" && question !== null ? question : {}) as Record<string, unknown>;
    if (typeof id !== "string") throw new Refused('exchange.trace takes {"id": "..."}', { reason: "INVALID_MESSAGE" });
    if (here !== true) return this.trace(id, message.deadline);
    const trace = this.ledger.trace(id, typeof root === "string" ? root : "");
    if (!trace) throw this.#unknown(id);
    return this.#said(trace);
  }

  /** All that is known of a message, here and where it has been; asked for until shortly before the deadline. */
  async trace(id: string, deadline: number): Promise<TraceAnswer> {
    const until = now() + Math.min(TRACE_SECONDS, Math.max(0, deadline - now()) * SHARE);
    const missing = new Map<string, string>();
    const answers = await this.#first(id, until, missing);
    const root = [...answers.values()][0]?.root ?? id;
    const mine = this.ledger.trace(id, root); // of others with this root
    if (mine) answers.set(this.id, mine);
    await this.#gather(id, root, until, answers, missing);
    const found = mergeTraces(root, answers.values());
    if (found.spans.length === 0) throw this.#unknown(id);
    const told = [...missing].sort(([one], [other]) => (one < other ? -1 : 1));
    return this.#said({ ...found, missing: told.map(([exchange, reason]) => ({ exchange, reason })) });
  }

  /** What became of a message. */
  async why(id: string, deadline: number): Promise<WhyAnswer> {
    const trace = await this.trace(id, deadline);
    return this.#said({ key: id, answer: became(id, trace), trace });
  }

  /** What somebody knows of it: this exchange, its origin, whoever relays, or those who are linked. */
  async #first(id: string, until: number, missing: Map<string, string>): Promise<Map<string, Trace>> {
    const mine = this.ledger.trace(id);
    if (mine) return new Map([[this.id, mine]]);
    const origin = originOf(id);
    if (origin === undefined) return new Map();
    if (origin !== this.id) {
      const answer = await this.#asked(origin, id, "", (now() + until) / 2, missing);
      if (answer) return new Map([[origin, answer]]);
    }
    try {
      const asked = { timeoutSeconds: Math.max(0, until - now()) / 2 };
      for await (const reply of this.emitter.requestMany("exchange.trace", { id, here: true }, asked)) {
        const heard = reply.error ? undefined : readTrace(reply.value, reply.from);
        if (heard) return new Map([[reply.from, heard]]);
      }
    } catch (error) {
      if (!(error instanceof ExchangeError)) throw error;
    }
    // Those who do not relay have not heard that. Of these, the ones next to us can be asked.
    const leaves = [...this.router.peers.values()].filter((peer) => !peer.relay).slice(0, TRACE_EXCHANGES);
    const known = await Promise.all(leaves.map((leaf) => this.#asked(leaf.id, id, "", until, new Map())));
    return new Map(leaves.flatMap((leaf, at) => (known[at] ? [[leaf.id, known[at]] as const] : [])));
  }

  /** Ask whoever may know more, all at once; what one answers may name others. */
  async #gather(
    id: string,
    root: string,
    until: number,
    answers: Map<string, Trace>,
    missing: Map<string, string>,
  ): Promise<void> {
    const asked = new Set([this.id, "", ...answers.keys()]);
    const ask = async (exchange: string): Promise<void> => {
      const answer = await this.#asked(exchange, id, root, until, missing);
      if (answer?.root !== root) return;
      answers.set(exchange, answer);
      await next();
    };
    const next = async (): Promise<void> => {
      const named = [originOf(id), originOf(root), ...[...answers.values()].flatMap(passed)];
      const running: Promise<void>[] = [];
      for (const exchange of named) {
        if (exchange === undefined || asked.has(exchange)) continue;
        asked.add(exchange);
        if (asked.size > TRACE_EXCHANGES) missing.set(exchange, `not asked: more than ${TRACE_EXCHANGES} exchanges are named`);
        else running.push(ask(exchange));
      }
      await Promise.all(running);
    };
    await next();
  }

  /** What one exchange knows; undefined if nothing. Notes in `missing` that it could not be asked. */
  async #asked(
    exchange: string,
    id: string,
    root: string,
    until: number,
    missing: Map<string, string>,
  ): Promise<Trace | undefined> {
    missing.delete(exchange);
    try {
      const asked = { to: exchange, timeoutSeconds: Math.max(0, until - now()) };
      const reply = await this.emitter.request("exchange.trace", { id, here: true, root }, asked);
      const trace = readTrace(reply, exchange);
      if (!trace) missing.set(exchange, "its answer is no trace");
      return trace;
    } catch (error) {
      if (error instanceof RequestError) {
        if (error.code !== Code.NOT_FOUND) missing.set(exchange, error.message);
      } else if (!(error instanceof InvalidMessage)) {
        throw error;
      }
      return undefined;
    }
  }

  #unknown(id: string): Refused {
    return new Refused(`${this.id} knows no message ${shown(id)}`, { code: Code.NOT_FOUND, reason: "NOT_FOUND" });
  }
}
