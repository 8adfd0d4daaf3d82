/**
 * The session of two exchanges, from Hello to Goodbye, over as many connections as it takes.
 *
 * Law: no I/O, no clock, no randomness: the same input gives the same output. Bytes that came in go into `receive`,
 * which returns what they mean; what shall be said goes into `send`, `announce`, `control` and `goodbye`, and comes out
 * of `dataToSend` as bytes; `tick` is told the time, at `nextDeadline` at the latest.
 *
 *     opening --Hello, Welcome--> open --goodbye--> closing --queue empty, Goodbye, Goodbye--> closed
 *        ^                         |
 *        +--dial / rejoin-- away <-+ the connection broke: what has left and was not acknowledged is kept
 *
 * A session is resumed by who has its token, which changes each time. `resumed.recovered` is true if it went on: nothing
 * was lost, nothing will be taken twice. Otherwise a new one has begun, and what is uncertain is told. A Goodbye is
 * answered by a Goodbye, so both know what the other has taken. Away for `awaySeconds`, the peer is `missing`: nobody
 * should wait for it any more. Away for `resumeSeconds`, the session is `forgotten`.
 *
 * Control frames never wait behind messages, and all messages that wait leave in one Batch: so batches form by
 * themselves while a write is under way. A link is never trusted about who it is: see `admission.ts`.
 *
 * @module
 */

import { Kind } from "@exchange-grpc/proto";
import { admitted } from "./admission.js";
import { Code, InvalidMessage, LimitExceeded, refused, type RequestError } from "./errors.js";
import * as frames from "./frames.js";
import type { Answer, Batch, Goodbye, Interest, Introduction, Query, Reject } from "./frames.js";
import { Gap, Inbox } from "./inbox.js";
import { ACK_SECONDS, CONTEST_SECONDS, CONTROL_FRAMES, type Limits } from "./limits.js";
import type { Message } from "./message.js";
import { AROUND, Outbox } from "./outbox.js";
import { packMessage, packStatus, readStatus } from "./wire.js";

export type Phase = "opening" | "open" | "away" | "closing" | "closed";

/** The session is over: as planned if `code` is OK. Nothing else follows. `by` is the id of who ended it. */
export interface Ended {
  type: "ended";
  code: Code;
  reason: string;
  by: string;
  retryAfterMs: number;
  stayAway: boolean;
}

/** What a frame, or the time that has passed, means. */
export type SessionEvent =
  | { type: "opened"; peer: Introduction }
  | { type: "resumed"; peer: Introduction; recovered: boolean; uncertain: string[]; unsent: Message[] }
  | { type: "received"; messages: Message[] }
  | { type: "rejected"; id: string; error: RequestError }
  | { type: "interest"; interest: Interest }
  | { type: "query"; query: Query }
  | { type: "answer"; answer: Answer }
  /** This connection is of no use any more; the session may be resumed over another. */
  | { type: "broken"; reason: string; retryAfterMs: number }
  /** Nobody should wait for the peer any more: what has not left goes another way, or fails. */
  | { type: "missing"; unsent: Message[] }
  /** The session cannot be resumed any more: nobody knows whether these messages arrived. */
  | { type: "forgotten"; uncertain: string[] }
  | Ended;

/** What a Goodbye says. */
export interface Farewell {
  code?: Code;
  reason?: string;
  retryAfterMs?: number;
  stayAway?: boolean;
}

interface Options {
  dialled: boolean;
  now: number;
  limits: Limits;
  /** Gives so many random bytes; without it no session of ours can be resumed. */
  draw?: (size: number) => Uint8Array;
}

const TOKEN_BYTES = 16;
const SESSION_BYTES = 8;
const NO_TOKEN: Uint8Array = new Uint8Array();

export class Session {
  phase: Phase = "opening";
  peer: Introduction | undefined;
  readonly out = new Outbox();
  readonly into: Inbox;
  readonly dialled: boolean;
  /** By our own wish. */
  leaves = false;
  readonly #limits: Limits;
  readonly #awaySeconds: number;
  readonly #draw: Options["draw"];
  #asValue = false;
  #met = false; // the peer has introduced itself on this connection
  #since: number; // this connection began
  #left: number; // the last one that was open broke
  #missing = false; // ... so long ago that this was told
  #forgotten = false;
  #session = "";
  #token = NO_TOKEN;
  #formerToken = NO_TOKEN; // counts until the peer is known to have the other
  #gapAt = 0;
  #heard: number;
  #pinged: number;
  #ticked: number;
  #contested: number | undefined;
  #ping: bigint | undefined;
  #pong: bigint | undefined;
  #control: Uint8Array[] = [];
  #rejects: Uint8Array[] = [];
  #revision: bigint;
  #goodbye: Farewell | undefined;
  #parting = false; // our Goodbye has left: nothing more is taken, and theirs is awaited
  #expected = 0n; // revision of the peer's interest
  #handles = new Set<string>();
  #subscribes = new Set<string>();

  constructor(
    public me: Introduction,
    options: Options,
  ) {
    const { dialled, now, limits } = options;
    this.dialled = dialled;
    this.into = new Inbox(limits);
    this.#limits = limits;
    this.#awaySeconds = Math.min(limits.awaySeconds, limits.resumeSeconds); // who is forgotten is missing
    this.#draw = options.draw;
    this.#since = this.#left = this.#heard = this.#pinged = this.#ticked = now;
    this.#revision = me.revision;
    if (dialled) this.#control.push(frames.encodeIntroduction("hello", this.#introduction()));
  }

  // ----------------------------------------------------------------------------------- connections come and go

  /** We who dialled have a new connection: Hello again. */
  dial(me: Introduction, now: number): void {
    this.me = me;
    this.#revision = me.revision;
    this.phase = "opening";
    this.#met = false;
    this.#since = this.#heard = this.#ticked = now;
    if (!this.#session) this.into.begin();
    this.#control = [frames.encodeIntroduction("hello", this.#introduction())];
  }

  /** The connection is gone. Whether it is worth while to wait for the peer: by `dial` or `rejoin` it goes on. */
  disconnected(now: number): boolean {
    if (this.phase === "open" && (this.dialled || this.#token.length > 0)) {
      this.#leave(now);
    } else if (this.phase === "opening" && this.peer && this.dialled) {
      this.phase = "away";
    } else if (this.phase !== "away") {
      this.phase = "closed";
    }
    return this.phase === "away";
  }

  #leave(now: number): void {
    this.phase = "away";
    this.#met = this.#missing = this.#forgotten = false;
    this.#left = now;
    this.#contested = this.#ping = this.#pong = undefined;
    this.#control = []; // said anew in Hello and Welcome, but for what was refused
  }

  /** After its end: we who dialled may dial again, for a new session. See `lost` for the old one. */
  revive(now: number): void {
    this.#leave(now);
    this.#goodbye = undefined;
    this.#parting = false;
    this.#missing = this.#forgotten = true;
  }

  /** The peer has dialled again, and says this. Undefined if the connection that we have may be alive.
   *
   * Then whoever dialled is to be refused: he may come back when the other one has had time to answer. If both dial
   * at the same time, the attempt of the smaller id counts.
   */
  rejoin(peer: Introduction, me: Introduction, now: number): SessionEvent[] | undefined {
    if (this.phase === "closing" || this.phase === "closed") return undefined;
    if (this.phase === "opening" && this.dialled && this.me.exchange < peer.exchange) return undefined;
    if (this.#provesItself(peer)) {
      try {
        this.out.resumed(peer.received, peer.receivedBytes);
      } catch {
        return this.#beginAnew(peer, me, now);
      }
      this.#formerToken = peer.token;
      this.#present(peer, me, now, true);
      return [{ type: "resumed", peer, recovered: true, uncertain: [], unsent: [] }];
    }
    const contestLost = this.#contested !== undefined && now >= this.#contested + CONTEST_SECONDS;
    if (this.phase !== "away" && !contestLost) {
      if (this.#contested === undefined && this.#answersPings) {
        this.#contested = now;
        this.#ask(now);
      }
      return undefined;
    }
    return this.#beginAnew(peer, me, now);
  }

  #provesItself(peer: Introduction): boolean {
    const same = this.peer?.exchange === peer.exchange && this.peer.epoch === peer.epoch;
    if (!same || this.#token.length === 0 || this.#forgotten || peer.session !== this.#session) return false;
    return equal(peer.token, this.#token) || (this.#formerToken.length > 0 && equal(peer.token, this.#formerToken));
  }

  #beginAnew(peer: Introduction, me: Introduction, now: number): SessionEvent[] {
    const { uncertain, unsent } = this.lost();
    this.into.begin();
    this.#present(peer, me, now, false);
    return [{ type: "resumed", peer, recovered: false, uncertain, unsent }];
  }

  /** The session is over: the ids of what is uncertain, and what never left. Nothing more is taken. */
  lost(): { uncertain: string[]; unsent: Message[] } {
    return { uncertain: this.#forget(), unsent: this.out.takeUnsent() };
  }

  #forget(): string[] {
    this.#session = "";
    this.#token = this.#formerToken = NO_TOKEN;
    this.#gapAt = 0;
    this.#rejects = [];
    this.#parting = this.phase === "closing"; // if its Goodbye has not left yet
    this.out.keeps = false;
    return this.out.takeUncertain();
  }

  /** Welcome the peer, whom we know, on a new connection. */
  #present(peer: Introduction, me: Introduction, now: number, recovered: boolean): void {
    this.#control = [];
    this.#contested = this.#ping = this.#pong = this.#goodbye = undefined;
    this.#since = this.#heard = this.#ticked = now;
    this.#meet(peer, recovered);
    this.welcome(me, recovered);
  }

  // ------------------------------------------------------------------------------------------------------ in

  /** What the bytes of one frame mean. A frame that breaks the protocol, or an error in place of one, ends the session. */
  receive(data: Uint8Array | InvalidMessage, now: number): SessionEvent[] {
    if (this.phase === "closed" || this.phase === "away") return [];
    this.#heard = now;
    this.#contested = undefined;
    try {
      if (data instanceof InvalidMessage) throw data;
      const { kind } = frames.decodeFrame(data);
      return this.#met ? this.#understood(kind, data.length, now) : this.#introduced(kind);
    } catch (error) {
      if (error instanceof InvalidMessage) return this.#broken(error.message);
      throw error;
    }
  }

  #introduced(kind: frames.Frame["kind"]): SessionEvent[] {
    if (kind.case === "goodbye") return this.#goodbyeHeard(kind.value);
    if (this.phase === "closing") return []; // we have said goodbye: who it was does not matter any more
    if (kind.case !== (this.dialled ? "welcome" : "hello")) {
      return this.#broken(`the first frame is a ${this.dialled ? "Welcome" : "Hello"}`);
    }
    const peer = frames.readIntroduction(kind.value);
    if (peer.exchange === this.me.exchange) {
      return this.#refuse(Code.ALREADY_EXISTS, `both ends of this link call themselves ${peer.exchange}`);
    }
    if (this.dialled && this.peer) return this.#welcomedBack(peer, this.peer);
    this.#meet(peer, false);
    return [{ type: "opened", peer }];
  }

  /** We have dialled again. */
  #welcomedBack(peer: Introduction, known: Introduction): SessionEvent[] {
    if (!peer.recovered) {
      const { uncertain, unsent } = this.lost();
      this.into.begin(true);
      this.#meet(peer, false);
      return [{ type: "resumed", peer, recovered: false, uncertain, unsent }];
    }
    const same = peer.exchange === known.exchange && peer.epoch === known.epoch && peer.session === this.#session;
    if (!this.#session || !same) return this.#broken("a session is resumed that is none of ours");
    this.out.resumed(peer.received, peer.receivedBytes);
    this.#meet(peer, true);
    return [{ type: "resumed", peer, recovered: true, uncertain: [], unsent: [] }];
  }

  /** This is the peer, and what it has said of itself. */
  #meet(peer: Introduction, recovered: boolean): void {
    this.peer = peer;
    this.#met = true;
    this.#missing = this.#forgotten = false;
    this.#asValue ||= peer.features.includes(frames.VALUE);
    this.#expected = peer.revision;
    this.#handles = new Set(peer.handles);
    this.#subscribes = new Set(peer.subscribes);
    const resumes = peer.features.includes(frames.RESUME) && this.me.features.includes(frames.RESUME);
    this.out.keeps = this.into.acknowledges = resumes;
    this.out.credit = peer.credit;
    if (!recovered) {
      this.out.begin();
      // What was said was said for the session that could have gone on.
      if (peer.credit) this.out.credit = frames.beyond(peer.credit, peer.received, peer.receivedBytes);
    }
    if (this.dialled) {
      this.#session = resumes ? peer.session : "";
      this.#token = resumes ? peer.token : NO_TOKEN;
      this.phase = "open";
    }
  }

  #understood(kind: frames.Frame["kind"], size: number, now: number): SessionEvent[] {
    // These may be said before our Welcome is heard; whatever else comes proves that the peer has its token.
    if (kind.case !== "interest" && kind.case !== "query" && kind.case !== "answer") this.#formerToken = NO_TOKEN;
    switch (kind.case) {
      case "batch":
        return this.#parting ? [] : this.#batch(kind.value, size, now);
      case "ack":
        this.out.acknowledged(Number(kind.value.seq));
        this.out.settled(Number(kind.value.settled));
        return [];
      case "credit":
        this.out.credited({ seq: Number(kind.value.seq), bytes: Number(kind.value.bytes) });
        return [];
      case "ping":
        this.#pong = kind.value.nonce;
        return [];
      case "query":
        frames.readTarget(kind.value);
        return [{ type: "query", query: kind.value }];
      case "answer":
        frames.readTarget(kind.value);
        return [{ type: "answer", answer: kind.value }];
      case "interest":
        return this.#interest(kind.value);
      case "reject":
        return this.#rejected(kind.value);
      case "goodbye":
        return this.#goodbyeHeard(kind.value);
      case "hello":
      case "welcome":
        return this.#broken("an introduction comes once, as the first frame");
      default:
        return []; // of a later version, or a Pong
    }
  }

  #rejected({ id, seq, status }: Reject): SessionEvent[] {
    const error = status ? readStatus(status) : refused(new InvalidMessage("no reason was given"));
    return [{ type: "rejected", id: id || this.out.idOf(Number(seq)), error }];
  }

  #batch(batch: Batch, size: number, now: number): SessionEvent[] {
    const { into } = this;
    let taken: ReturnType<typeof into.take<Batch["messages"][number]>>;
    try {
      taken = into.take(Number(batch.seq), batch.messages, size, now);
    } catch (error) {
      if (error instanceof Gap) return this.#gap(error.message, now);
      throw error;
    }
    const messages: Message[] = [];
    let counted = 0; // the last one that needs credit
    let seq = taken.first - 1;
    for (const packed of taken.fresh) {
      seq++;
      const { message, usedValue, refusal } = admitted(packed, size, this.peer as Introduction, seq, now);
      this.#asValue ||= usedValue;
      if (message && message.kindNumber !== Kind.CANCEL) counted = seq;
      if (message && !refusal) {
        message.keeper = into;
        message.seq = into.before + seq;
        messages.push(message);
      } else {
        into.settle(into.before + seq);
        this.#reject(seq, message?.id ?? packed.id.slice(0, 128), refused(refusal as InvalidMessage));
      }
    }
    if (counted > 0 && this.peer?.credit) {
      try {
        into.checkCredit(counted);
      } catch (error) {
        return this.#refuse(Code.RESOURCE_EXHAUSTED, (error as Error).message);
      }
    }
    return messages.length > 0 ? [{ type: "received", messages }] : [];
  }

  /** Once, the peer may send again what is missing. */
  #gap(reason: string, now: number): SessionEvent[] {
    const at = this.into.received + 1;
    if (this.#gapAt === at || this.#token.length === 0 || this.phase !== "open") {
      return this.#refuse(Code.DATA_LOSS, reason);
    }
    this.#gapAt = at;
    this.#leave(now);
    return [{ type: "broken", reason, retryAfterMs: 0 }];
  }

  #interest(interest: Interest): SessionEvent[] {
    const { revision, added, removed } = interest;
    if (revision !== this.#expected + 1n && revision !== 0n) {
      return this.#broken(`interest revision ${revision} came after ${this.#expected}`);
    }
    this.#expected = revision;
    removed?.handles.forEach((name) => this.#handles.delete(name));
    added?.handles.forEach((name) => this.#handles.add(name));
    removed?.subscribes.forEach((pattern) => this.#subscribes.delete(pattern));
    added?.subscribes.forEach((pattern) => this.#subscribes.add(pattern));
    frames.checkCount(this.#handles.size, this.#subscribes.size);
    if (interest.relay !== undefined && this.peer) this.peer = { ...this.peer, relay: interest.relay };
    return [{ type: "interest", interest }];
  }

  #goodbyeHeard(frame: Goodbye): SessionEvent[] {
    const error = frame.status ? readStatus(frame.status) : undefined;
    const reason = error?.message ?? "";
    if (this.phase === "opening" && !this.#met && this.peer && !frame.stayAway) {
      this.phase = "away"; // not now: we have dialled too soon
      return [{ type: "broken", reason, retryAfterMs: frame.retryAfterMs }];
    }
    if (this.#met && this.out.keeps) {
      try {
        this.out.refusedAfter(Number(frame.received));
      } catch (problem) {
        if (frame.received) throw problem;
      }
      if (!this.#parting) this.#goodbye = {};
    }
    const by = frame.exchange.slice(0, 64);
    const code = frame.status?.code === 0 ? Code.OK : (error?.code ?? Code.OK);
    return this.#end(code, reason, by, frame.retryAfterMs, frame.stayAway);
  }

  #broken(reason: string): SessionEvent[] {
    return this.#refuse(Code.INVALID_ARGUMENT, reason);
  }

  #refuse(code: Code, reason: string): SessionEvent[] {
    const stayAway = code === Code.INVALID_ARGUMENT;
    this.#goodbye = { code, reason, stayAway };
    return this.#end(code, reason, this.me.exchange, 0, stayAway);
  }

  #end(code: Code, reason: string, by: string, retryAfterMs: number, stayAway: boolean): SessionEvent[] {
    this.phase = "closed";
    return [{ type: "ended", code, reason, by, retryAfterMs, stayAway }];
  }

  // ---------------------------------------------------------------------------------------------------- time

  /** When `tick` is due, if nothing is heard before. */
  nextDeadline(): number {
    const limits = this.#limits;
    switch (this.phase) {
      case "away":
        if (!this.#missing) return this.#left + this.#awaySeconds;
        return this.#forgotten ? Infinity : this.#left + limits.resumeSeconds;
      case "opening":
        return this.#since + limits.handshakeSeconds;
      case "closed":
        return Infinity;
      default: {
        // What was due at the last tick is said when there is something to write on: no need to hurry.
        const ack = this.into.ackDue ?? Infinity;
        const due = ack > this.#ticked ? ack : this.#ticked + ACK_SECONDS;
        if (!this.#answersPings) return due;
        return Math.min(due, Math.max(this.#heard, this.#pinged) + limits.heartbeatSeconds, this.#silentAt);
      }
    }
  }

  /** Tell the session the time: what takes too long ends. */
  tick(now: number): SessionEvent[] {
    const slept = now - this.#ticked > this.#limits.silenceSeconds;
    this.#ticked = now;
    if (this.phase === "away") return this.#wait(now);
    if (this.phase === "opening") return this.#hurry(now);
    if (this.phase !== "closed" && this.#answersPings) return this.#listen(now, slept);
    return [];
  }

  get #answersPings(): boolean {
    return this.peer?.features.includes(frames.PING) ?? false;
  }

  get #silentAt(): number {
    const silent = this.#heard + this.#limits.silenceSeconds;
    return this.#contested === undefined ? silent : Math.min(silent, this.#contested + CONTEST_SECONDS);
  }

  /** Whether the peer is there: asked after a heartbeat of silence, and given up after a long one. */
  #listen(now: number, slept: boolean): SessionEvent[] {
    const { silenceSeconds, heartbeatSeconds } = this.#limits;
    // If it was we who did not listen, the peer has one more heartbeat to be heard.
    if (slept) this.#heard = Math.max(this.#heard, now - silenceSeconds + heartbeatSeconds);
    if (now >= this.#silentAt) {
      if (this.phase === "closing") {
        return this.#end(Code.UNAVAILABLE, "it did not take leave in time", this.me.exchange, 0, false);
      }
      const contested = this.#contested !== undefined ? ", and another claims its id" : "";
      this.#leave(now);
      const reason = `nothing was heard of it for ${Number((now - this.#heard).toPrecision(3))} s${contested}`;
      return [{ type: "broken", reason, retryAfterMs: 0 }, this.#giveUpWaiting()];
    }
    if (now >= Math.max(this.#heard, this.#pinged) + heartbeatSeconds) this.#ask(now);
    return [];
  }

  #ask(now: number): void {
    this.#pinged = now;
    this.#ping = (this.#ping ?? 0n) + 1n;
  }

  /** A handshake that takes too long. */
  #hurry(now: number): SessionEvent[] {
    const seconds = this.#limits.handshakeSeconds;
    if (now < this.#since + seconds) return [];
    const reason = `no introduction within ${seconds} s`;
    if (this.peer && this.dialled) {
      this.phase = "away";
      return [{ type: "broken", reason, retryAfterMs: 0 }];
    }
    return this.#refuse(Code.DEADLINE_EXCEEDED, reason);
  }

  /** Away: for how long is it waited for? */
  #wait(now: number): SessionEvent[] {
    const events: SessionEvent[] = [];
    if (!this.#missing && now >= this.#left + this.#awaySeconds) events.push(this.#giveUpWaiting());
    if (!this.#forgotten && now >= this.#left + this.#limits.resumeSeconds) {
      this.#forgotten = true;
      events.push({ type: "forgotten", uncertain: this.#forget() });
    }
    return events;
  }

  #giveUpWaiting(): SessionEvent {
    this.#missing = true;
    return { type: "missing", unsent: this.out.takeUnsent() };
  }

  // ----------------------------------------------------------------------------------------------------- out

  /** What Hello and Welcome say, with the session in it. */
  #introduction(): Introduction {
    return {
      ...this.me,
      session: this.#session,
      token: this.#token,
      received: this.into.received,
      receivedBytes: this.into.receivedBytes,
      credit: this.into.give(),
    };
  }

  /** Answer the Hello: the link is open. */
  welcome(me: Introduction, recovered = false): void {
    this.me = me;
    this.#revision = me.revision;
    this.phase = "open";
    if (this.#draw && this.into.acknowledges) {
      if (!recovered) this.#session = hex(this.#draw(SESSION_BYTES));
      this.#token = this.#draw(TOKEN_BYTES);
    }
    this.#control.push(frames.encodeIntroduction("welcome", { ...this.#introduction(), recovered }));
  }

  /** Queue `message`. Throws QueueFull, and InvalidMessage if it cannot be said to this peer. */
  send(message: Message): void {
    const data = packMessage(message, this.#asValue);
    const size = data.length + AROUND;
    const { peer } = this;
    if (peer && size > Math.min(peer.messageBytes + AROUND, peer.frameBytes - AROUND)) {
      throw new LimitExceeded(`the message is larger than ${peer.exchange} takes`);
    }
    this.out.put(message, data, size);
  }

  /** Tell the peer that our interest has changed. One who reads none of it is told goodbye instead. */
  announce(added: frames.Offers, removed: frames.Offers): void {
    if (this.#control.length >= CONTROL_FRAMES) {
      const reason = `more than ${CONTROL_FRAMES} frames wait to be read`;
      this.goodbye({ code: Code.RESOURCE_EXHAUSTED, reason });
    }
    if (this.phase !== "opening" && this.phase !== "open") return;
    this.#revision++;
    this.#control.push(frames.encodeFrame({ case: "interest", value: { revision: this.#revision, added, removed } }));
  }

  /** Queue a question or an answer: false if the peer cannot be reading. */
  control(frame: Parameters<typeof frames.encodeFrame>[0]): boolean {
    if (this.#control.length >= CONTROL_FRAMES || this.phase === "away") return false;
    this.#control.push(frames.encodeFrame(frame));
    return true;
  }

  /** Refuse one message that was received; if very many such answers wait, this one is left out. */
  #reject(seq: number, id: string, error: RequestError): void {
    if (this.#rejects.length >= CONTROL_FRAMES) return;
    const value = { seq: BigInt(seq), id, status: packStatus(error) };
    this.#rejects.push(frames.encodeFrame({ case: "reject", value }));
  }

  /** Say that the session ends, after what is queued, and when coming back is of use, if it is. */
  goodbye(farewell: Farewell = {}): void {
    this.leaves = true;
    if (this.phase === "opening" || this.phase === "open") {
      this.phase = "closing";
      this.#goodbye = farewell;
    } else if (this.phase === "away") {
      this.phase = "closed";
    }
  }

  /** The bytes of the next frame to write, if there is one; and messages whose time ended in the queue. */
  dataToSend(now: number): { frame: Uint8Array | undefined; expired: Message[] } {
    if (this.phase === "away") return { frame: undefined, expired: [] };
    const control = this.#nextControl(now);
    if (control) return { frame: control, expired: [] };
    let expired: Message[] = [];
    if (this.#met && this.peer && (this.phase === "open" || this.phase === "closing")) {
      const batch = this.out.batch(this.peer.frameBytes - AROUND, now);
      if (batch.frame) return batch;
      expired = batch.expired;
    }
    const last = !this.out.waits || !this.#met || this.phase === "closed";
    return { frame: this.#goodbye && last ? this.#farewell(this.#goodbye) : undefined, expired };
  }

  #farewell(goodbye: Farewell): Uint8Array {
    this.#goodbye = undefined;
    if (this.phase === "closing") {
      if (this.#met && this.out.keeps) this.#parting = true;
      else this.phase = "closed";
    }
    const { code = Code.OK, reason = "", retryAfterMs = 0, stayAway = false } = goodbye;
    // Before its Welcome it is not known whether the peer counts on or anew.
    const received = this.into.acknowledges && this.#met ? this.into.received : 0;
    const status = { code, message: reason };
    const value = { status, retryAfterMs, stayAway, exchange: this.me.exchange, received: BigInt(received) };
    return frames.encodeFrame({ case: "goodbye", value });
  }

  /** A frame that does not wait behind messages. */
  #nextControl(now: number): Uint8Array | undefined {
    const first = this.#control.shift() ?? (this.#met ? this.#rejects.shift() : undefined);
    if (first || !this.#met || this.phase === "closed") return first;
    if (this.#pong !== undefined) {
      const nonce = this.#pong;
      this.#pong = undefined;
      return frames.encodeFrame({ case: "pong", value: { nonce } });
    }
    if (this.#ping !== undefined) {
      const nonce = this.#ping;
      this.#ping = undefined;
      return frames.encodeFrame({ case: "ping", value: { nonce } });
    }
    const ack = this.into.ackToTell(now);
    if (ack) {
      return frames.encodeFrame({ case: "ack", value: { seq: BigInt(ack.seq), settled: BigInt(ack.settled) } });
    }
    const credit = this.peer?.credit ? this.into.creditToTell() : undefined;
    if (!credit) return undefined;
    const value = { seq: BigInt(credit.seq), bytes: BigInt(credit.bytes) };
    return frames.encodeFrame({ case: "credit", value });
  }
}

/** Whether two secrets are the same, in a time that does not tell how much of them is. */
function equal(one: Uint8Array, other: Uint8Array): boolean {
  if (one.length !== other.length) return false;
  return one.reduce((difference, byte, at) => difference | (byte ^ (other[at] ?? 0)), 0) === 0;
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
