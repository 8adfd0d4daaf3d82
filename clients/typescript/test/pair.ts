/** Two sessions and the wires between them, without any I/O. */
import { DEFAULT_LIMITS, type Limits } from "../src/limits.js";
import { FEATURES, type Introduction } from "../src/frames.js";
import { Kind, type Message, NO_CONTEXT, Origin } from "../src/message.js";
import { Session, type SessionEvent } from "../src/session.js";

export function introduction(exchange: string, more: Partial<Introduction> = {}): Introduction {
  return {
    exchange,
    epoch: 7n,
    protocol: 1,
    features: FEATURES,
    agent: "test",
    relay: false,
    revision: 0n,
    handles: [],
    subscribes: [],
    exports: [],
    messageBytes: 4 * 2 ** 20,
    frameBytes: 16 * 2 ** 20,
    session: "",
    token: new Uint8Array(),
    received: 0,
    receivedBytes: 0,
    credit: undefined,
    recovered: false,
    ...more,
  };
}

let drawn = 0;
const draw = (size: number): Uint8Array => new Uint8Array(size).fill(++drawn);

export function session(exchange: string, dialled: boolean, now = 0, limits: Partial<Limits> = {}): Session {
  return new Session(introduction(exchange), { dialled, now, limits: { ...DEFAULT_LIMITS, ...limits }, draw });
}

const origins = new Map<string, Origin>();

export function message(from: string, value: string, kind = Kind.SEND, more: object = {}): Message {
  const origin = origins.get(from) ?? new Origin(from, 7n, () => 1);
  origins.set(from, origin);
  const payload = new TextEncoder().encode(JSON.stringify(value));
  return origin.make(kind, "a.b", NO_CONTEXT, 0, 1_000, { payload, ...more });
}

/** What waits to be written, all of it. */
export function written(from: Session, now = 0): Uint8Array[] {
  const all: Uint8Array[] = [];
  for (let { frame } = from.dataToSend(now); frame; { frame } = from.dataToSend(now)) all.push(frame);
  return all;
}

/** Let `from` say all it has to say to `to`. */
export function say(from: Session, to: Session, now = 0): SessionEvent[] {
  return written(from, now).flatMap((frame) => to.receive(frame, now));
}

/** Two sessions that have met: who dialled, and who was. */
export function linked(limits: Partial<Limits> = {}): [Session, Session] {
  const [near, far] = [session("near", true, 0, limits), session("far", false, 0, limits)];
  say(near, far);
  far.welcome(introduction("far"));
  say(far, near);
  return [near, far];
}

/** The values that came. */
export function values(events: readonly SessionEvent[]): unknown[] {
  return events.flatMap((event) => (event.type === "received" ? event.messages.map(({ value }) => value) : []));
}
