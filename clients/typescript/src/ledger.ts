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
import type { Span, SpanEvent, Trace } from "./traces.js";

const REASON = 200; // characters kept of a reason: a peer may have written it

/** What became of a message: by which handler or peer, in how many seconds, and why. */
export interface Happened {
  by?: string;
  seconds?: number;
  reason?: string;
}

interface Entry {
  message: Message; // without its payload
  events: SpanEvent[];
}

export class Ledger {
  #entries = new Map<string, Entry>(); // in order of arrival
  #families = new Map<string, Set<string>>(); // root -> ids
  #cut = new Set<string>(); // roots of which something was forgotten, and something is left

  constructor(
    private readonly exchange: string,
    private readonly wallUs: () => number,
    private readonly capacity = LEDGER_MESSAGES,
  ) {}

  /** Remember that `message` was here. Traffic of the system is not remembered, but for what changes something. */
  note(message: Message): void {
    if (this.#entries.has(message.id) || !isTraced(message.name)) return;
    this.#entries.set(message.id, { message: header(message), events: [] });
    const family = this.#families.get(message.root);
    if (family) family.add(message.id);
    else this.#families.set(message.root, new Set([message.id]));
    if (this.#entries.size > this.capacity) this.#forgetOldest();
  }

  #forgetOldest(): void {
    const oldest = this.#entries.values().next();
    if (oldest.done) return;
    const { id, root } = oldest.value.message;
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
    return this.#entries.get(id)?.message;
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
      this.#cut.add(entry.message.root);
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
    const wanted = this.#entries.get(id)?.message.root ?? (root || id);
    const family = this.#families.get(wanted);
    if (!family) return undefined;
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
      const message = this.find(next);
      if (!message) break;
      line.add(next);
      next = message.causes.findLast((cause) => this.#entries.has(cause));
    }
    return [...line];
  }
}

/** The name of an outcome, as traces say it. */
export function outcomeName(outcome: Outcome): string {
  return `OUTCOME_${Outcome[outcome]}`;
}

/** `message` without what it carried. */
function header(message: Message): Message {
  const { id, name, kindNumber, from, to, replyTo, rootId, causes, way, times } = message;
  return Object.assign(new Message(), { id, name, kindNumber, from, to, replyTo, rootId, causes, way, times });
}

function said({ message, events }: Entry): Span {
  return {
    id: message.id,
    name: message.name,
    kind: `KIND_${Kind[message.kindNumber]}`,
    from: message.from,
    to: message.to,
    causes: [...message.causes],
    hops: message.hops.map(({ exchange, atUs }) => ({ exchange, at_us: atUs })),
    reply_to: message.replyTo,
    events: [...events],
  };
}
