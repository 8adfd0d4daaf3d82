/**
 * The ledger: what happened here, and because of what.
 *
 * Law: bounded, and without payloads. It keeps the newest messages that were emitted or received here, and what became of
 * each; the oldest go first. A trace is answered from it: everything with the same root, as plain JSON.
 *
 * @module
 */

import { Kind, Outcome } from "@exchange-grpc/proto";
import { LEDGER_EVENTS, LEDGER_MESSAGES, TRACE_ANSWER_BYTES } from "./limits.js";
import { Message } from "./message.js";
import { isTraced } from "./patterns.js";
import { Queue } from "./queue.js";
import type { Span, SpanEvent, Trace } from "./traces.js";

const REASON = 200; // characters kept of a reason: a peer may have written it

/** What became of a message: by which handler or peer, in how many seconds, and why. */
export interface Happened {
  by?: string;
  seconds?: number;
  reason?: string;
}

type Header = Pick<Message, "id" | "name" | "kindNumber" | "from" | "to" | "replyTo" | "rootId" | "causes" | "way" | "times">;

interface Entry extends Header {
  root: string;
  events: SpanEvent[];
}

export class Ledger {
  #entries = new Map<string, Entry>();
  #order = new Queue<Entry>(); // a Map is slow to say what its first is, once many have gone
  #families = new Map<string, Set<string>>(); // root -> ids, if it is more than the root
  #cut = new Set<string>(); // roots of which something was forgotten, and something is left

  constructor(
    private readonly exchange: string,
    private readonly wallUs: () => number,
    private readonly capacity = LEDGER_MESSAGES,
  ) {}

  /** Remember that `message` was here. Traffic of the system is not remembered, but for what changes something. */
  note(message: Message): void {
    const { id, name, kindNumber, from, to, replyTo, rootId, causes, way, times, root } = message;
    if (this.#entries.has(id) || !isTraced(name)) return;
    const entry = { id, name, kindNumber, from, to, replyTo, rootId, causes, way, times, root, events: [] };
    this.#entries.set(id, entry);
    this.#order.push(entry);
    if (root !== id || this.#families.has(root)) this.#join(id, root);
    if (this.#order.length > this.capacity) this.#forgetOldest();
  }

  #join(id: string, root: string): void {
    const family = this.#families.get(root);
    if (family) family.add(id);
    else this.#families.set(root, new Set(this.#entries.has(root) ? [root, id] : [id]));
  }

  #forgetOldest(): void {
    const oldest = this.#order.shift();
    if (!oldest) return;
    const { id, root } = oldest;
    this.#entries.delete(id);
    const family = this.#families.get(root);
    family?.delete(id);
    if (family && family.size > 0) {
      this.#cut.add(root);
    } else {
      this.#families.delete(root);
      this.#cut.delete(root);
    }
  }

  /** The message with this id, without what it carried. */
  find(id: string): Message | undefined {
    const entry = this.#entries.get(id);
    if (!entry) return undefined;
    const { name, kindNumber, from, to, replyTo, rootId, causes, way, times } = entry;
    return Object.assign(new Message(), { id, name, kindNumber, from, to, replyTo, rootId, causes, way, times });
  }

  /** Whether this became of it, by whom. */
  was(id: string, outcome: Outcome, by?: string): boolean {
    const events = this.#entries.get(id)?.events ?? [];
    return events.some((event) => event.outcome === outcomeName(outcome) && (by === undefined || event.by === by));
  }

  /** Remember what became of the message `id`. */
  record(id: string, outcome: Outcome, { by = "", seconds = 0, reason = "" }: Happened = {}): void {
    const entry = this.#entries.get(id);
    if (!entry) return;
    if (entry.events.length >= LEDGER_EVENTS) {
      this.#cut.add(entry.root);
      return;
    }
    entry.events.push({
      exchange: this.exchange,
      at_us: this.wallUs(),
      outcome: outcomeName(outcome),
      by,
      duration_us: Math.round(seconds * 1e6),
      reason: reason.slice(0, REASON).toWellFormed(),
    });
  }

  /** Everything known here with the same root as the message `id`; undefined if nothing is.
   *
   * If it is too much for one answer, what led to `id` comes first.
   */
  trace(id: string, root = ""): Trace | undefined {
    const wanted = this.#entries.get(id)?.root ?? (root || id);
    const family = this.#families.get(wanted) ?? new Set(this.#entries.has(wanted) ? [wanted] : []);
    if (family.size === 0) return undefined;
    const spans = new Map<string, Span>();
    let size = 0;
    for (const member of new Set([...this.#lineage(id), ...family])) {
      const entry = this.#entries.get(member);
      if (!entry) continue;
      const span = said(entry);
      size += JSON.stringify(span).length + 1;
      if (size > TRACE_ANSWER_BYTES) break;
      spans.set(member, span);
    }
    const told = [...family].flatMap((member) => spans.get(member) ?? []);
    return { root: wanted, spans: told, cut: this.#cut.has(wanted) || told.length < family.size };
  }

  /** The message and its newest causes, as far back as they are known. */
  #lineage(id: string): string[] {
    const line = new Set<string>();
    let next: string | undefined = id;
    while (next !== undefined && !line.has(next)) {
      const entry: Entry | undefined = this.#entries.get(next);
      if (!entry) break;
      line.add(next);
      next = entry.causes.findLast((cause) => this.#entries.has(cause));
    }
    return [...line];
  }
}

/** The name of an outcome, as traces say it. */
export function outcomeName(outcome: Outcome): string {
  return `OUTCOME_${Outcome[outcome]}`;
}

function said({ id, name, kindNumber, from, to, causes, way, times, replyTo, events }: Entry): Span {
  return {
    id,
    name,
    kind: `KIND_${Kind[kindNumber]}`,
    from,
    to,
    causes: [...causes],
    hops: way.map((exchange, at) => ({ exchange, at_us: times[at] ?? 0 })),
    reply_to: replyTo,
    events: [...events],
  };
}
