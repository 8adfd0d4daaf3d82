import { Kind, Outcome } from "@exchange-grpc/proto";
import { describe, expect, test } from "vitest";
import { Ledger } from "../src/ledger.js";
import { contextOf, type Message, NO_CONTEXT, Origin } from "../src/message.js";
import { mergeTraces, readTrace } from "../src/traces.js";

const origin = new Origin("me", 7n, () => 1);
const message = (behind?: Message): Message =>
  origin.make(Kind.SEND, "a.b", behind ? contextOf(behind) : NO_CONTEXT, 0, 30, {});

describe("the ledger", () => {
  test("tells of everything with one root, whichever is asked for", () => {
    const ledger = new Ledger("me", () => 5);
    const first = message();
    const second = message(first);
    const other = message();
    for (const one of [first, second, other]) ledger.note(one);
    ledger.record(second.id, Outcome.HANDLED, { by: "f", seconds: 0.001 });
    const trace = ledger.trace(second.id);
    expect(trace).toMatchObject({ root: first.id, cut: false, spans: [{ id: first.id }, { id: second.id }] });
    expect(trace?.spans[1]?.events).toEqual([
      { exchange: "me", at_us: 5, outcome: "OUTCOME_HANDLED", by: "f", duration_us: 1_000, reason: "" },
    ]);
    expect(ledger.trace(first.id)).toEqual(trace);
    expect(ledger.trace("me.7.99")).toBeUndefined();
  });

  test("forgets the oldest first, and says that something is missing", () => {
    const ledger = new Ledger("me", () => 5, 2);
    const first = message();
    const [second, third] = [message(first), message(first)];
    for (const one of [first, second, third]) ledger.note(one);
    expect(ledger.find(first.id)).toBeUndefined();
    expect(ledger.trace(third.id)).toMatchObject({ cut: true, spans: [{ id: second.id }, { id: third.id }] });
    for (let n = 0; n < 2; n++) ledger.note(message());
    expect(ledger.trace(third.id)).toBeUndefined();
  });

  test("keeps nothing of the system but what changes something", () => {
    const ledger = new Ledger("me", () => 5);
    const asked = origin.make(Kind.REQUEST, "exchange.trace", NO_CONTEXT, 0, 30, {});
    const set = origin.make(Kind.REQUEST, "exchange.state.set", NO_CONTEXT, 0, 30, {});
    ledger.note(asked);
    ledger.note(set);
    expect([ledger.find(asked.id)?.id, ledger.find(set.id)?.id]).toEqual([undefined, set.id]);
  });
});

describe("a trace of others", () => {
  const told = (hops: string[], events: object[] = []): unknown => ({
    root: "me.7.1",
    spans: [{ id: "me.7.1", name: "a.b", kind: "KIND_SEND", hops: hops.map((hop) => ({ exchange: hop, at_us: 1 })), events }],
  });

  test("is the longest way that somebody saw, with the events of all", () => {
    const handled = { exchange: "b", outcome: "OUTCOME_HANDLED", at_us: 2 };
    const answers = [readTrace(told(["me"]), "me"), readTrace(told(["me", "b"], [handled]), "b")];
    const merged = mergeTraces("me.7.1", answers.flatMap((answer) => answer ?? []));
    expect(merged.spans).toHaveLength(1);
    expect(merged.spans[0]).toMatchObject({ hops: [{ exchange: "me" }, { exchange: "b" }], events: [{ exchange: "b" }] });
  });

  test("is read as a stranger's", () => {
    const lie = { exchange: "somebody", outcome: "OUTCOME_WRONG", at_us: "late" };
    expect(readTrace(told(["me", "c"], [lie]), "b")?.spans[0]).toMatchObject({
      hops: [], // who tells was not there
      events: [{ exchange: "b", outcome: "OUTCOME_UNSPECIFIED", at_us: 0 }],
    });
    expect(readTrace("nonsense", "b")).toBeUndefined();
    expect(readTrace({ root: 1, spans: [] }, "b")).toBeUndefined();
  });
});
