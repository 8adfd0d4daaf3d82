import { describe, expect, test } from "vitest";
import { encodeFrame } from "../src/frames.js";
import { Kind } from "../src/message.js";
import { InvalidMessage } from "../src/errors.js";
import { introduction, linked, message, say, session, values, written } from "./pair.js";

describe("a handshake", () => {
  test("tells both who the other is", () => {
    const [near, far] = [session("near", true), session("far", false)];
    expect(say(near, far)).toMatchObject([{ type: "opened", peer: { exchange: "near" } }]);
    far.welcome(introduction("far", { handles: ["a.b"] }));
    expect(say(far, near)).toMatchObject([{ type: "opened", peer: { exchange: "far", handles: ["a.b"] } }]);
    expect([near.phase, far.phase]).toEqual(["open", "open"]);
  });

  test("is refused between two of the same name", () => {
    const [near, far] = [session("same", true), session("same", false)];
    expect(say(near, far)).toMatchObject([{ type: "ended", code: 6 }]);
  });

  test("begins with an introduction", () => {
    const far = session("far", false);
    const events = far.receive(encodeFrame({ case: "ping", value: { nonce: 1n } }), 0);
    expect(events).toMatchObject([{ type: "ended", reason: "the first frame is a Hello", stayAway: true }]);
  });

  test("that takes too long is over", () => {
    const far = session("far", false);
    expect(far.tick(4.9)).toEqual([]);
    expect(far.tick(5)).toMatchObject([{ type: "ended", code: 4 }]);
  });
});

describe("messages", () => {
  test("that wait together leave in one frame, in order", () => {
    const [near, far] = linked();
    for (const value of ["one", "two", "three"]) near.send(message("near", value));
    const frames = written(near);
    expect(frames).toHaveLength(1);
    expect(values(frames.flatMap((frame) => far.receive(frame, 0)))).toEqual(["one", "two", "three"]);
  });

  test("are acknowledged soon, and at once when they are many", () => {
    const [near, far] = linked();
    near.send(message("near", "one"));
    say(near, far);
    expect(written(far, 0.05)).toHaveLength(0);
    expect(written(far, 0.1)).toHaveLength(1);
    for (let n = 0; n < 256; n++) near.send(message("near", "more"));
    say(near, far, 0.1);
    expect(written(far, 0.1)).toHaveLength(2); // and so much more credit is told
  });

  test("wait for credit, but a cancel does not", () => {
    const [near, far] = linked({ creditMessages: 2 });
    for (const value of ["one", "two", "three"]) near.send(message("near", value));
    near.send(message("near", "stop", Kind.CANCEL, { replyTo: "near.7.1" }));
    const came = say(near, far);
    expect(values(came)).toEqual(["one", "two", "stop"]);
  });

  test("expire while they wait", () => {
    const [near] = linked();
    const late = message("near", "late");
    near.send(late);
    expect(near.dataToSend(1_001).expired).toEqual([late]);
  });

  test("of a peer that does not relay are its own", () => {
    const [near, far] = linked();
    near.send(message("stranger", "forged"));
    expect(say(near, far)).toEqual([]);
    expect(say(far, near)).toMatchObject([{ type: "rejected", error: { code: 3 } }]);
  });

  test("that cannot be parsed end the session", () => {
    const [, far] = linked();
    const events = far.receive(new Uint8Array([255, 255, 255]), 0);
    expect(events).toMatchObject([{ type: "ended", reason: "the frame cannot be parsed" }]);
    const [, other] = linked();
    expect(other.receive(new InvalidMessage("it is text"), 0)).toMatchObject([{ type: "ended", reason: "it is text" }]);
  });
});

describe("a break", () => {
  test("loses nothing and doubles nothing", () => {
    const [near, far] = linked();
    near.send(message("near", "taken"));
    const [frame] = written(near);
    far.receive(frame, 0); // and its acknowledgement is lost
    near.send(message("near", "lost"));
    written(near);
    expect(near.disconnected(1)).toBe(true);
    expect(far.disconnected(1)).toBe(true);
    near.send(message("near", "meanwhile"));

    const knocking = session("far", false, 2);
    near.dial(introduction("near"), 2);
    const [hello] = written(near, 2);
    const [opened] = knocking.receive(hello, 2);
    if (opened?.type !== "opened") throw new Error("it was not opened");
    expect(far.rejoin(opened.peer, introduction("far"), 2)).toMatchObject([{ type: "resumed", recovered: true }]);
    expect(say(far, near, 2)).toMatchObject([{ type: "resumed", recovered: true }]);
    expect(values(say(near, far, 2))).toEqual(["lost", "meanwhile"]);
  });

  test("with a peer that has lost its memory tells what is uncertain", () => {
    const [near] = linked();
    const sent = message("near", "sent");
    const unsent = message("near", "unsent");
    near.send(sent);
    written(near);
    near.disconnected(1);
    near.send(unsent);
    near.dial(introduction("near"), 2);
    const reborn = session("far", false, 2);
    say(near, reborn, 2);
    reborn.welcome(introduction("far", { epoch: 8n }));
    expect(say(reborn, near, 2)).toMatchObject([
      { type: "resumed", recovered: false, uncertain: [sent.id], unsent: [{ id: unsent.id }] },
    ]);
  });

  test("is waited for, then not, then forgotten", () => {
    const [near] = linked();
    const unsent = message("near", "unsent");
    near.disconnected(0);
    near.send(unsent);
    expect(near.nextDeadline()).toBe(5);
    expect(near.tick(5)).toMatchObject([{ type: "missing", unsent: [{ id: unsent.id }] }]);
    expect(near.tick(30)).toMatchObject([{ type: "forgotten", uncertain: [] }]);
    expect(near.nextDeadline()).toBe(Infinity);
  });

  test("comes of a gap, once", () => {
    const [near, far] = linked();
    near.send(message("near", "one"));
    written(near);
    near.send(message("near", "two"));
    const [second] = written(near);
    expect(far.receive(second, 0)).toMatchObject([{ type: "broken" }]);
    expect(far.phase).toBe("away");
  });

  test("comes of silence, after a question", () => {
    const [near] = linked();
    near.tick(5);
    expect(written(near, 5)).toHaveLength(1);
    near.tick(10);
    expect(near.tick(15)).toMatchObject([{ type: "broken" }, { type: "missing" }]);
  });
});

describe("two who claim one id", () => {
  test("are told apart by whether the first still answers", () => {
    const [, far] = linked();
    const stranger = introduction("near", { epoch: 9n });
    expect(far.rejoin(stranger, introduction("far"), 1)).toBeUndefined();
    expect(written(far, 1)).toHaveLength(1); // it is asked whether it is there
    expect(far.rejoin(stranger, introduction("far"), 2)).toBeUndefined();
    expect(far.rejoin(stranger, introduction("far"), 3)).toMatchObject([{ type: "resumed", recovered: false }]);
  });
});

describe("a goodbye", () => {
  test("leaves after what was queued, and is answered", () => {
    const [near, far] = linked();
    near.send(message("near", "last"));
    near.goodbye();
    const events = say(near, far);
    expect(values(events)).toEqual(["last"]);
    expect(events.at(-1)).toMatchObject({ type: "ended", code: 0, by: "near" });
    expect(say(far, near)).toMatchObject([{ type: "ended", code: 0, by: "far" }]);
    expect([near.phase, far.phase]).toEqual(["closed", "closed"]);
  });

  test("says when to come back", () => {
    const [near, far] = linked();
    far.goodbye({ retryAfterMs: 500 });
    expect(say(far, near)).toMatchObject([{ type: "ended", retryAfterMs: 500 }]);
  });
});
