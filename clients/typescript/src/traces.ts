/**
 * A trace put together of what several exchanges know of it.
 *
 * Law: no I/O, plain JSON. An answer is read as a stranger's: what is not of the shape is left out, and each exchange
 * tells only what happened at itself. The result depends neither on who asked nor on the order of the answers.
 *
 * @module
 */

import { Kind, Outcome } from "@exchange-grpc/proto";
import { CAUSES, HOPS, LEDGER_EVENTS, MESSAGE_BYTES, TRACE_EXCHANGES } from "./limits.js";
import { originOf } from "./patterns.js";

/** What happened to a message at one exchange. */
export interface SpanEvent {
  exchange: string;
  at_us: number;
  /** `OUTCOME_HANDLED`, `OUTCOME_FORWARDED`, ... */
  outcome: string;
  /** The handler, or the peer it was passed on to. */
  by: string;
  duration_us: number;
  reason: string;
}

/** One message of a trace. */
export interface Span {
  id: string;
  name: string;
  /** `KIND_SEND`, ... */
  kind: string;
  from: string;
  to: string;
  causes: string[];
  hops: { exchange: string; at_us: number }[];
  reply_to: string;
  events: SpanEvent[];
}

/** Everything with one root, as far as it is known. */
export interface Trace {
  root: string;
  spans: Span[];
  /** Something was left out or forgotten. */
  cut: boolean;
}

/** What `exchange.trace` answers. */
export interface TraceAnswer extends Trace {
  version: number;
  exchange: string;
  /** Who could not be asked, and why. */
  missing: { exchange: string; reason: string }[];
}

const WHOLE = MESSAGE_BYTES / 2; // of all that is told of one trace, so that an answer can carry it
const KINDS = new Set(Object.keys(Kind).map((name) => `KIND_${name}`));
const OUTCOMES = new Set(Object.keys(Outcome).map((name) => `OUTCOME_${name}`));

/** What `exchange` answered to `exchange.trace`, as far as it can be believed; undefined if that is no trace. */
export function readTrace(answer: unknown, exchange: string): Trace | undefined {
  if (!isRecord(answer) || !Array.isArray(answer.spans) || !text(answer, "root")) return undefined;
  const spans = answer.spans.filter(isRecord).filter((span) => text(span, "id"));
  return { root: text(answer, "root"), spans: spans.map((span) => readSpan(span, exchange)), cut: answer.cut === true };
}

/** One trace of all that was answered about `root`. */
export function mergeTraces(root: string, answers: Iterable<Trace>): Trace {
  const spans = new Map<string, Span>();
  let cut = false;
  for (const answer of answers) {
    if (answer.root !== root) continue;
    cut ||= answer.cut;
    for (const span of answer.spans) {
      const known = spans.get(span.id);
      const events = [...(known?.events ?? []), ...span.events];
      const better = !known || claim(span) > claim(known) ? span : known;
      spans.set(span.id, { ...better, events });
    }
  }
  for (const span of spans.values()) span.events.sort(byTime);
  const told: Span[] = [];
  let size = 0;
  for (const span of [...spans.values()].sort(byBeginning)) {
    size += JSON.stringify(span).length + 1;
    if (size > WHOLE) return { root, spans: told, cut: true };
    told.push(span);
  }
  return { root, spans: told, cut };
}

/** The exchanges where these messages were, or to which they were passed on. */
export function passed(trace: Trace): string[] {
  const found = new Set<string>();
  for (const span of trace.spans) {
    for (const hop of span.hops) found.add(hop.exchange);
    for (const event of span.events) if (event.outcome === "OUTCOME_FORWARDED") found.add(event.by);
  }
  found.delete("");
  return [...found].slice(0, 4 * TRACE_EXCHANGES);
}

/** What became of the message `id`, in one sentence. */
export function became(id: string, trace: Trace): string {
  const span = trace.spans.find((candidate) => candidate.id === id);
  if (!span) return `nothing is known of ${id} itself, only of others with the same root`;
  const head = `${span.name} from ${span.from}`;
  const ends = span.events.filter((event) => event.outcome !== "OUTCOME_FORWARDED");
  if (ends.length === 0) {
    const last = span.events.at(-1);
    return `${head} ${last ? `was passed on to ${last.by} by ${last.exchange}` : "was emitted"}; nothing more is known`;
  }
  return `${head} ${[...new Set(ends.map(ended))].join("; ")}`;
}

function ended(event: SpanEvent): string {
  const word = event.outcome.replace("OUTCOME_", "").toLowerCase();
  const by = event.by && (word === "handled" || word === "failed") ? ` by ${event.by}` : "";
  const how = word === "failed" && by ? `failed, run${by}` : `was ${word}${by}`;
  return `${how} at ${event.exchange}${event.reason ? `: ${event.reason}` : ""}`;
}

function claim(span: Span): string {
  return `${String(span.hops.length).padStart(3)} ${JSON.stringify({ ...span, events: [] })}`;
}

function byTime(one: SpanEvent, other: SpanEvent): number {
  const key = (event: SpanEvent): string => [event.exchange, event.outcome, event.by].join("\n");
  return one.at_us - other.at_us || compare(key(one), key(other));
}

/** What began first explains the rest. */
function byBeginning(one: Span, other: Span): number {
  const began = (span: Span): number => span.hops[0]?.at_us ?? 0;
  const number = (span: Span): number => (originOf(span.id) ? Number(span.id.slice(span.id.lastIndexOf(".") + 1)) : 0);
  return began(one) - began(other) || number(one) - number(other) || compare(one.id, other.id);
}

function compare(one: string, other: string): number {
  return one < other ? -1 : Number(one > other);
}

type Raw = Record<string, unknown>;

function readSpan(span: Raw, exchange: string): Span {
  const hops = records(span, "hops", HOPS + 1).map((hop) => ({ exchange: text(hop, "exchange"), at_us: number(hop, "at_us") }));
  return {
    id: text(span, "id"),
    name: text(span, "name"),
    kind: word(span, "kind", KINDS, "KIND_UNSPECIFIED"),
    from: text(span, "from"),
    to: text(span, "to"),
    causes: list(span, "causes", CAUSES).filter((cause) => typeof cause === "string"),
    hops: hops.at(-1)?.exchange === exchange ? hops : [], // it came as far as there
    reply_to: text(span, "reply_to"),
    events: records(span, "events", LEDGER_EVENTS).map((event) => ({
      exchange, // whatever it says: nobody speaks for another
      at_us: number(event, "at_us"),
      outcome: word(event, "outcome", OUTCOMES, "OUTCOME_UNSPECIFIED"),
      by: text(event, "by"),
      duration_us: number(event, "duration_us"),
      reason: text(event, "reason"),
    })),
  };
}

function isRecord(value: unknown): value is Raw {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function text(of: Raw, key: string): string {
  const value = of[key];
  return typeof value === "string" ? value.slice(0, 1_000) : "";
}

function number(of: Raw, key: string): number {
  const value = of[key];
  return Number.isSafeInteger(value) ? (value as number) : 0;
}

function word(of: Raw, key: string, words: ReadonlySet<string>, otherwise: string): string {
  const value = of[key];
  return typeof value === "string" && words.has(value) ? value : otherwise;
}

function list(of: Raw, key: string, most: number): unknown[] {
  const value = of[key];
  return Array.isArray(value) ? value.slice(0, most) : [];
}

function records(of: Raw, key: string, most: number): Raw[] {
  return list(of, key, most).filter(isRecord);
}
