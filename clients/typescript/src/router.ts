/**
 * Routing: who takes a message, and the way back.
 *
 * Law: no I/O. This exchange is a leaf: it takes what is for itself, emits what it makes, and passes nothing on. What it
 * emits takes four steps: handled here; to a linked peer that is addressed or offers the name, in turn if there are
 * several; to whoever the relays know of; else nobody takes it, and its origin is told at once.
 *
 * A request to many skips them: it goes to whoever offers the name, here and next to here, and to all relays.
 *
 * Replies come back by the way the request went: `open.ts` remembers that, for requests emitted and handled here.
 *
 * @module
 */

import { Found, type Interest, Kind, Outcome } from "@exchange-grpc/proto";
import { Candidates } from "./candidates.js";
import { Discovery, type Home } from "./discovery.js";
import {
  Code,
  InvalidMessage,
  LimitExceeded,
  refused,
  type RequestError,
  requestError,
  Unavailable,
  Unhandled,
} from "./errors.js";
import type { encodeFrame, Introduction, Offers, Target } from "./frames.js";
import type { Ledger } from "./ledger.js";
import { HOPS, MESSAGE_SECONDS, QUESTION_SECONDS, SETTLE_SECONDS } from "./limits.js";
import { contextOf, Message, type Origin } from "./message.js";
import { Once } from "./once.js";
import { HERE, type Open, OpenRequests, type Peer } from "./open.js";
import { fits } from "./patterns.js";
import { leadsNowhere, Scatter } from "./scatter.js";

/** Why an observer sees a message. */
export type Seen = "received" | "emitted";

/** What routing asks of whoever owns the links and the handlers. */
export interface Host {
  now(): number;
  wallUs(): number;
  /** Run the handler and the listeners, soon: "held" if it waits for a handler. Throws LimitExceeded. */
  deliver(message: Message, link: string | undefined): "held" | "heard" | undefined;
  /** Put it on a link. Throws InvalidMessage if that cannot be. */
  transmit(link: string, message: Message): void;
  control(link: string, frame: Parameters<typeof encodeFrame>[0]): boolean;
  announce(added: Offers, removed: Offers): void;
  /** The reply, or one of many, to a request that was emitted here. */
  resolve(id: string, reply: Message): void;
  /** A send emitted here has left, or was taken, or could not be. */
  dispatched(message: Message, error?: RequestError): void;
  /** Cancel the handler of this request. */
  withdraw(id: string): void;
  /** A send of ours was not handled. */
  unhandled(message: Message, outcome: Outcome, error: RequestError): void;
  observed(seen: Seen, message: Message): void;
}

export class Router implements Home {
  readonly me: string;
  readonly peers = new Map<string, Peer>();
  readonly offers = new Set<string>();
  readonly subscriptions = new Set<string>();
  readonly open: OpenRequests;
  readonly #discovery: Discovery;
  readonly #candidates: Candidates;
  #expected = new Set<string>(); // peers that are gone, and may come back
  #settled = 0; // from then on, nobody is expected back with a relay that has come back
  #spread = new Once(); // publications and requests to many that were here

  constructor(
    private readonly origin: Origin,
    private readonly ledger: Ledger,
    private readonly host: Host,
  ) {
    this.me = origin.exchange;
    this.#discovery = new Discovery(this, () => host.now());
    this.#candidates = new Candidates(this.peers, (target) => this.#discovery.ways(target));
    this.open = new OpenRequests(this.peers, (entry) => this.#late(entry));
  }

  // --------------------------------------------------------------------------------------------- in: messages

  /** Messages that came over a link. */
  arrived(link: string, messages: readonly Message[]): void {
    for (const message of messages) {
      if (!this.peers.has(link)) return; // one of them may have ended it
      const held = this.#admit(message, link) && this.#takeUp(message, link);
      if (!held) message.settled();
    }
  }

  /** Route a message that is emitted here, then perhaps `via` a given link. */
  route(message: Message, via?: string): void {
    this.ledger.note(message);
    this.host.observed("emitted", message);
    this.#takeUp(message, HERE, via);
  }

  /** Whether it waits for a handler here. */
  #takeUp(message: Message, link: string | undefined, via?: string): boolean {
    switch (message.kindNumber) {
      case Kind.SEND:
        return this.#dispatch(message, link, via);
      case Kind.REQUEST:
        if (message.many && !message.to) return this.#scatter(message, link, via);
        return this.#remember(message, link) && this.#dispatch(message, link, via);
      case Kind.REPLY:
        this.#reply(message, link);
        return false;
      case Kind.CANCEL:
        this.#cancel(message, link);
        return false;
      case Kind.OUTCOME:
        this.#outcome(message, link);
        return false;
      case Kind.PUBLISH:
        return this.#publish(message, link);
      default:
        if (link === HERE) this.#broadcast(message);
        else return this.#hear(message, link);
        return false;
    }
  }

  #hear(message: Message, link: string): boolean {
    this.host.observed("received", message);
    try {
      return this.host.deliver(message, link) === "held";
    } catch (error) {
      if (!(error instanceof LimitExceeded)) throw error;
      this.ledger.record(message.id, Outcome.DROPPED, { reason: error.message });
      return false;
    }
  }

  /** Whether a received message may go on; refuses it otherwise. Writes the hop to here. */
  #admit(message: Message, link: string): boolean {
    const hops = message.way;
    message.reached(this.me, this.host.wallUs());
    this.ledger.note(message);
    if (hops.includes(this.me)) {
      const text = `it came back to ${this.me}: ${message.way.join(" -> ")}`;
      this.#fail(message, link, Outcome.LOOP, new Unhandled(text, { reason: "LOOP", at: this.me, delivered: false }));
    } else if (hops.length >= HOPS && ![Kind.REPLY, Kind.OUTCOME].includes(message.kindNumber)) {
      const details = { reason: "TOO_MANY_HOPS", at: this.me, delivered: false } as const;
      this.#fail(message, link, Outcome.DENIED, requestError(Code.OUT_OF_RANGE, `it has made ${HOPS} hops`, details));
    } else if (message.deadline <= this.host.now()) {
      this.#fail(message, link, Outcome.EXPIRED, this.#tooLate(message));
    } else {
      // Like a switch: its origin lies behind this link.
      if (hops.length > 1) this.#discovery.learn({ kind: "exchange", key: message.from }, link, hops.length);
      return true;
    }
    return false;
  }

  /** Open a request; refuses it if it is open already or too many are. */
  #remember(message: Message, link: string | undefined): boolean {
    if (this.open.has(message.id)) {
      const text = "a request with this id is open here already";
      this.ledger.record(message.id, Outcome.DENIED, { reason: text });
      const details = { reason: "DUPLICATE", at: this.me, delivered: false } as const;
      if (link !== HERE) this.#answerError(message, link, requestError(Code.ALREADY_EXISTS, text, details));
      return false;
    }
    const full = this.open.add(message, link, message.deadline - this.host.now());
    if (full) this.#fail(message, link, Outcome.DROPPED, this.#full(full));
    return !full;
  }

  /** The four steps, for a send or a request. */
  #dispatch(message: Message, link: string | undefined, via?: string): boolean {
    const { to, name } = message;
    if (via === undefined && (to === this.me || (!to && this.offers.has(name)))) {
      if (this.offers.has(name)) return this.#take(message, link);
      this.#fail(message, link, Outcome.UNHANDLED, this.#unhandled(`${this.me} does not handle it`));
      return false;
    }
    if (link !== HERE) {
      const reason = `${this.me} does not handle it and does not relay`;
      this.#fail(message, link, Outcome.UNHANDLED, this.#unhandled(reason));
      return false;
    }
    const target = targetOf(message);
    const near = via === undefined ? this.#candidates.nextTo(target) : [via];
    const candidates = near.length > 0 ? near : this.#candidates.behind(target);
    const chosen = this.#candidates.inTurn(candidates);
    if (chosen !== undefined) {
      this.#forward(message, chosen, via === undefined && near.length === 0);
    } else if (this.#discovery.full) {
      this.#fail(message, HERE, Outcome.DROPPED, this.#full("too many messages wait for an answer about who takes them"));
    } else {
      this.#discovery.askFor({
        target,
        resume: () => this.#resume(message, target),
        giveUp: (incomplete) => this.#nobodyTakes(message, target, incomplete),
      });
    }
    return false;
  }

  /** Step 1: it is handled here. */
  #take(message: Message, link: string | undefined): boolean {
    const entry = message.kindNumber === Kind.REQUEST ? this.open.get(message.id) : undefined;
    if (entry) entry.out = this.me;
    let taken: ReturnType<Host["deliver"]>;
    try {
      taken = this.host.deliver(message, link);
    } catch (error) {
      if (!(error instanceof LimitExceeded)) throw error;
      this.#fail(message, link, Outcome.DROPPED, this.#full(error.message));
      return false;
    }
    if (!taken) {
      this.#fail(message, link, Outcome.UNHANDLED, this.#unhandled(`${this.me} does not handle it`));
    } else if (link !== HERE) {
      this.host.observed("received", message);
    } else if (!entry) {
      this.host.dispatched(message);
    }
    return taken === "held";
  }

  /** Step 2: a peer takes it. */
  #forward(message: Message, to: string, learned: boolean): void {
    const peer = this.peers.get(to);
    if (!peer) {
      this.#fail(message, HERE, Outcome.DROPPED, this.#lostError(to, false));
      return;
    }
    try {
      this.host.transmit(to, message);
    } catch (error) {
      if (!(error instanceof InvalidMessage)) throw error;
      const full = error instanceof LimitExceeded;
      this.#fail(message, HERE, full ? Outcome.DROPPED : Outcome.DENIED, full ? this.#full(error.message) : refused(error));
      return;
    }
    this.ledger.record(message.id, Outcome.FORWARDED, { by: to });
    const entry = message.kindNumber === Kind.REQUEST ? this.open.get(message.id) : undefined;
    if (entry) {
      entry.out = to;
      entry.message = learned && !entry.again ? message : undefined;
      peer.out.add(message.id);
    } else {
      this.host.dispatched(message);
    }
  }

  /** A request to many: to all who handle it here and next to here, and to all relays. */
  #scatter(message: Message, link: string | undefined, via?: string): boolean {
    if (!this.#spread.first(message.id, this.host.now())) {
      const error = new Unhandled("it was here by another way", { reason: "LOOP", at: this.me, delivered: false });
      this.#answerError(message, link, error); // no outcome: the first copy has one
      return false;
    }
    if (!this.#remember(message, link)) return false;
    const entry = this.open.get(message.id) as Open;
    const scatter = (entry.scatter = new Scatter());
    const held = via === undefined && this.offers.has(message.name) && this.#takeOneOfMany(message, link, scatter);
    const wants = (peer: Peer): boolean => peer.relay || peer.handles.has(message.name);
    const takers = via !== undefined ? [via] : [...this.peers.values()].filter(wants).map((peer) => peer.id);
    for (const to of link === HERE ? takers : []) {
      const peer = this.peers.get(to);
      if (peer && this.#passOn(to, message)) {
        scatter.branches.set(to, peer.relay);
        peer.out.add(message.id);
      } else {
        scatter.lose(to);
      }
    }
    this.#endedOneOfMany(entry);
    return held;
  }

  #takeOneOfMany(message: Message, link: string | undefined, scatter: Scatter): boolean {
    scatter.branches.set(this.me, false);
    try {
      const taken = this.host.deliver(message, link);
      if (!taken) scatter.branches.delete(this.me);
      else if (link !== HERE) this.host.observed("received", message);
      return taken === "held";
    } catch (error) {
      if (!(error instanceof LimitExceeded)) throw error;
      this.ledger.record(message.id, Outcome.DROPPED, { reason: error.message });
      scatter.lose(this.me);
      return false;
    }
  }

  /** If nobody has it any more, say so to whoever asked. */
  #endedOneOfMany(entry: Open): void {
    const { scatter, request, link } = entry;
    if (!scatter || scatter.branches.size > 0 || this.open.get(request.id) !== entry) return;
    this.open.close(entry);
    if (scatter.taken || scatter.lost.size > 0) {
      this.#answerError(request, link, undefined, [...scatter.lost]);
      return;
    }
    const error = this.#unhandled(`nobody handles ${request.name} ${this.#withinReach()}`);
    if (link === HERE) this.ledger.record(request.id, Outcome.UNHANDLED, { reason: error.message });
    this.#answerError(request, link, error);
  }

  // ------------------------------------------------------------------------------- in: what belongs to others

  #reply(message: Message, link: string | undefined): void {
    const entry = this.open.get(message.replyTo);
    const holder = link ?? this.me;
    if (!entry || !this.open.holders(entry).includes(holder)) {
      const reason = "nobody waits for it, or not from there";
      if (!message.lost) this.ledger.record(message.id, Outcome.DROPPED, { reason });
      return;
    }
    if (link !== HERE && entry.message && leadsNowhere(message.error) && message.error?.at === link) {
      this.#askAgain(entry, entry.message, link);
      return;
    }
    const { scatter } = entry;
    if (!scatter) {
      if (message.last || message.lost || !entry.request.many) this.open.close(entry);
    } else if (!scatter.heard(holder, message)) {
      this.peers.get(holder)?.out.delete(entry.request.id);
      this.#endedOneOfMany(entry);
      return;
    }
    this.#passBack(entry, message, link);
    if (scatter && !scatter.branches.has(holder)) {
      this.peers.get(holder)?.out.delete(entry.request.id);
      this.#endedOneOfMany(entry);
    }
  }

  /** A reply goes to whoever asked, here or one hop back. What cannot be said becomes an error that can. */
  #passBack(entry: Open, message: Message, link: string | undefined): void {
    if (entry.link === HERE) {
      if (link !== HERE) this.host.observed("received", message);
      this.host.resolve(entry.request.id, message);
      return;
    }
    try {
      this.host.transmit(entry.link, message);
      this.ledger.record(message.id, Outcome.FORWARDED, { by: entry.link });
    } catch (error) {
      if (!(error instanceof InvalidMessage)) throw error;
      this.ledger.record(message.id, Outcome.DENIED, { reason: error.message });
      if (message.error) return;
      const code = error instanceof LimitExceeded ? Code.RESOURCE_EXHAUSTED : Code.OUT_OF_RANGE;
      const text = `the answer cannot be sent: ${error.message}`;
      this.#answerError(entry.request, entry.link, requestError(code, text, { reason: "ANSWER", at: this.me }));
    }
  }

  /** The very peer from which we had the way says that it leads nowhere: ask once more. */
  #askAgain(entry: Open, request: Message, link: string): void {
    this.#discovery.forget(targetOf(request), link);
    entry.message = undefined;
    entry.again = true;
    entry.out = undefined;
    this.peers.get(link)?.out.delete(request.id);
    this.#dispatch(request, entry.link);
  }

  #cancel(message: Message, link: string | undefined): void {
    const entry = this.open.get(message.replyTo);
    if (entry && entry.link === link) this.#abandon(entry, Outcome.CANCELLED, "the caller withdrew it", message);
    else this.ledger.record(message.id, Outcome.DROPPED, { reason: "no such open request" });
  }

  /** Nobody waits for this request any more: tell whoever has it. */
  #abandon(entry: Open, outcome: Outcome, reason: string, cancel?: Message): void {
    const { request } = entry;
    const holders = this.open.holders(entry);
    this.open.close(entry);
    this.ledger.record(request.id, outcome, { reason });
    for (const holder of holders) {
      if (holder === this.me) {
        this.host.withdraw(request.id);
        continue;
      }
      this.#transmitQuietly(holder, cancel ?? this.#make(Kind.CANCEL, request, { replyTo: request.id }));
    }
  }

  #outcome(message: Message, link: string | undefined): void {
    if (message.to && message.to !== this.me) {
      this.ledger.record(message.id, Outcome.DROPPED, { reason: "its addressee is not here" });
      return;
    }
    if (link !== HERE && leadsNowhere(message.error) && message.error?.at === link) {
      this.#discovery.forget({ kind: "name", key: message.name }, link);
    }
    this.host.observed("received", message);
    const { replyTo: id, name, way, times } = message;
    const failed = Object.assign(new Message(), { id, name, from: this.me, way, times });
    this.host.unhandled(failed, message.outcome, message.error ?? this.#unhandled("no reason was given"));
  }

  #publish(message: Message, link: string | undefined): boolean {
    if (!this.#spread.first(message.id, this.host.now())) return false;
    if (link !== HERE) this.host.observed("received", message);
    const wanted = [...this.subscriptions].some((pattern) => fits(pattern, message.name));
    if (wanted) this.host.deliver(message, link);
    if (link === HERE) {
      for (const peer of this.peers.values()) {
        const interested = peer.relay || [...peer.subscribes].some((pattern) => fits(pattern, message.name));
        if (interested) this.#passOn(peer.id, message);
      }
      this.host.dispatched(message);
    }
    return false;
  }

  #broadcast(message: Message): void {
    for (const peer of this.peers.keys()) this.#passOn(peer, message);
    this.host.dispatched(message);
  }

  /** One of several copies: what one peer cannot take costs the others nothing. */
  #passOn(to: string, message: Message): boolean {
    try {
      this.host.transmit(to, message);
    } catch (error) {
      if (!(error instanceof InvalidMessage)) throw error;
      this.ledger.record(message.id, Outcome.DROPPED, { by: to, reason: error.message });
      return false;
    }
    this.ledger.record(message.id, Outcome.FORWARDED, { by: to });
    return true;
  }

  #transmitQuietly(to: string, message: Message): void {
    if (!this.peers.has(to)) return;
    try {
      this.host.transmit(to, message);
    } catch (error) {
      if (!(error instanceof InvalidMessage)) throw error; // the link's queue is full: whoever waits there has a deadline
    }
  }

  // -------------------------------------------------------------------------------------------- how things fail

  /** Step 4, and every refusal: recorded here, and told to the origin. */
  #fail(message: Message, link: string | undefined, outcome: Outcome, error: RequestError): void {
    const hadLeft = message.kindNumber === Kind.SEND && this.ledger.was(message.id, Outcome.FORWARDED);
    this.ledger.record(message.id, outcome, { reason: error.message });
    const entry = message.kindNumber === Kind.REQUEST ? this.open.get(message.id) : undefined;
    if (entry && entry.link === link) this.open.close(entry);
    if (link !== HERE) this.host.observed("received", message);
    if (message.kindNumber === Kind.REQUEST) {
      this.#answerError(message, link, error);
    } else if (link === HERE) {
      // Whoever emitted what had left before waits no more, and hears of it as of an outcome.
      if (hadLeft || outcome === Outcome.UNHANDLED) this.host.unhandled(message, outcome, error);
      this.host.dispatched(message, error);
    } else if (message.kindNumber === Kind.SEND) {
      this.#report(message, link, outcome, error);
    }
  }

  #make(kind: Kind, about: Message, draft: Parameters<Origin["make"]>[5], seconds = MESSAGE_SECONDS): Message {
    const made = this.origin.make(kind, about.name, contextOf(about), this.host.now(), seconds, draft);
    this.ledger.note(made);
    return made;
  }

  /** The reply of this exchange itself to a request that ends here; only one to many ends without an error. */
  #answerError(request: Message, link: string | undefined, error: RequestError | undefined, lost: string[] = []): void {
    const end = request.many ? { lost } : {};
    const draft = { to: request.from, replyTo: request.id, last: true, error, ...end };
    const seconds = request.many ? Math.max(MESSAGE_SECONDS, request.deadline - this.host.now()) : MESSAGE_SECONDS;
    const reply = this.#make(Kind.REPLY, request, draft, seconds);
    this.host.observed("emitted", reply);
    if (link === HERE) this.host.resolve(request.id, reply);
    else this.#transmitQuietly(link, reply);
  }

  #unhandled(reason: string): RequestError {
    return new Unhandled(reason, { at: this.me, delivered: false });
  }

  #withinReach(): string {
    return `within reach of ${this.me}${this.peers.size === 0 ? " (it is linked to nobody)" : ""}`;
  }

  #tooLate({ name }: Message): RequestError {
    return requestError(Code.DEADLINE_EXCEEDED, `the time of ${name} was over at ${this.me}`, { at: this.me });
  }

  #unanswered({ request, seconds }: Open): RequestError {
    const text = `${request.name} was not answered within ${Number(seconds.toFixed(3))} s`;
    return requestError(Code.DEADLINE_EXCEEDED, text, { at: this.me });
  }

  #full(text: string): RequestError {
    return requestError(Code.RESOURCE_EXHAUSTED, text, { reason: "FULL", at: this.me, delivered: false });
  }

  #lostError(link: string, delivered: false | undefined): RequestError {
    return new Unavailable(`the link to ${link} was lost`, { at: this.me, delivered });
  }

  /** The peer refused a message of ours. */
  rejected(link: string, id: string, error: RequestError): void {
    const entry = this.open.get(id);
    if (entry && this.open.holders(entry).includes(link)) this.#loseHolder(entry, link, error);
    const message = this.ledger.find(id);
    const passed = this.ledger.was(id, Outcome.FORWARDED, link) && !this.ledger.was(id, Outcome.DENIED, link);
    if (message?.kindNumber === Kind.SEND && passed) this.#report(message, cameBy(message), Outcome.DENIED, error);
    this.ledger.record(id, Outcome.DENIED, { by: link, reason: error.message });
  }

  /** A handler here failed at a send. */
  failed(message: Message, link: string | undefined, outcome: Outcome, error: RequestError): void {
    if (message.kindNumber === Kind.SEND) this.#report(message, link, outcome, error);
  }

  /** Messages whose time ended while they waited to be written. */
  expired(messages: readonly Message[]): void {
    for (const message of messages) {
      this.ledger.record(message.id, Outcome.EXPIRED, { reason: "it waited too long" });
      if (message.kindNumber === Kind.SEND) this.#report(message, cameBy(message), Outcome.EXPIRED, this.#tooLate(message));
    }
  }

  /** Tell the origin of a send, which may be here, what became of it. */
  #report(message: Message, link: string | undefined, outcome: Outcome, error: RequestError): void {
    if (link === HERE) {
      this.host.unhandled(message, outcome, error);
      return;
    }
    const report = this.#make(Kind.OUTCOME, message, { to: message.from, replyTo: message.id, outcome, error });
    this.host.observed("emitted", report);
    this.#transmitQuietly(link, report);
  }

  // -------------------------------------------------------------------------------------------- open requests

  /** Who has it will not answer (any more). */
  #loseHolder(entry: Open, holder: string, error: RequestError): void {
    if (!entry.scatter) {
      this.open.close(entry);
      this.#answerError(entry.request, entry.link, error);
    } else {
      this.peers.get(holder)?.out.delete(entry.request.id);
      entry.scatter.lose(holder);
      this.#endedOneOfMany(entry);
    }
  }

  /** The time of a request is over. */
  #late(entry: Open): void {
    const late = this.open.holders(entry);
    this.#abandon(entry, Outcome.EXPIRED, "its time was over");
    if (!entry.scatter) this.#answerError(entry.request, entry.link, this.#unanswered(entry));
    // What has come so far counts, and whose replies have not is said.
    else this.#answerError(entry.request, entry.link, undefined, [...new Set([...late, ...entry.scatter.lost])]);
  }

  // ---------------------------------------------------------------------------------------- links and interest

  /** A link is open, or open again: then with all that the peer says of itself now. */
  connected(introduction: Introduction): void {
    const { exchange: id, relay, handles, subscribes } = introduction;
    let peer = this.peers.get(id);
    if (peer) {
      peer.away = false;
      this.#candidates.noLongerOffers(peer, [...peer.handles].filter((name) => !handles.includes(name)));
      this.#relays(peer, relay);
      this.#discovery.back(id);
    } else {
      peer = { id, relay, handles: new Set(), subscribes: new Set(), away: false, out: new Set(), came: new Set() };
      this.peers.set(id, peer);
    }
    if (this.#expected.delete(id) && relay) this.#settled = this.host.now() + SETTLE_SECONDS;
    this.#discovery.changed();
    this.#nowOffers(peer, handles);
    peer.subscribes = new Set(subscribes);
    this.#discovery.turnedUp({ kind: "exchange", key: id });
  }

  /** A link is broken: what is for it waits, but goes to others where there are any. */
  away(id: string): void {
    const peer = this.peers.get(id);
    if (peer) peer.away = true;
  }

  /** A link is gone, and these messages never left on it. `expected`: the peer may come back. */
  disconnected(id: string, unsent: readonly Message[], expected: boolean): void {
    if (expected) this.#expected.add(id);
    else this.#expected.delete(id);
    const peer = this.peers.get(id);
    if (!peer) return;
    this.peers.delete(id);
    this.#candidates.noLongerOffers(peer, [...peer.handles]);
    for (const request of peer.came) {
      const entry = this.open.get(request);
      if (entry) this.#abandon(entry, Outcome.CANCELLED, `the link to ${id}, which asked, was lost`);
    }
    const waiting = new Set(unsent.map((message) => message.id));
    for (const request of peer.out) {
      const entry = this.open.get(request);
      if (!entry) continue;
      if (waiting.has(request) && !entry.scatter) {
        entry.out = undefined; // it goes another way
        continue;
      }
      const error = this.#lostError(id, waiting.has(request) ? false : undefined);
      this.ledger.record(request, Outcome.DROPPED, { by: id, reason: error.message });
      this.#loseHolder(entry, id, error);
    }
    this.#discovery.lost(id);
  }

  /** What never left on a link goes another way, if it is to anybody else, or fails. */
  reroute(lost: string, messages: readonly Message[]): void {
    for (const message of messages) {
      const error = this.#lostError(lost, false);
      this.ledger.record(message.id, Outcome.DROPPED, { by: lost, reason: error.message });
      const entry = this.open.get(message.id);
      const waits = message.kindNumber === Kind.REQUEST && entry && !entry.out && !entry.scatter;
      if (message.kindNumber === Kind.SEND || waits) this.#dispatchAgain(message, error);
      else if (message.kindNumber !== Kind.REQUEST && this.peers.has(lost)) this.#transmitQuietly(lost, message);
    }
  }

  #dispatchAgain(message: Message, error: RequestError): void {
    const target = targetOf(message);
    const others = this.#candidates.nextTo(target).length > 0 || this.#candidates.behind(target).length > 0 || this.relays().length > 0;
    if (others) this.#dispatch(message, HERE);
    else this.#fail(message, HERE, Outcome.DROPPED, error);
  }

  /** These have left on a link, and nobody will ever know whether they arrived. */
  uncertain(link: string, ids: readonly string[]): void {
    const reason = `the link to ${link} was lost: it may have arrived`;
    for (const id of ids) {
      this.ledger.record(id, Outcome.DROPPED, { by: link, reason });
      const message = this.ledger.find(id);
      const error = new Unavailable(reason, { reason: "UNCERTAIN", at: this.me });
      if (message?.kindNumber === Kind.SEND) this.#report(message, cameBy(message), Outcome.DROPPED, error);
    }
  }

  /** The interest of a peer has changed. */
  interest(id: string, { added, removed, relay }: Interest): void {
    const peer = this.peers.get(id);
    if (!peer) return;
    this.#candidates.noLongerOffers(peer, removed?.handles ?? []);
    removed?.subscribes.forEach((pattern) => peer.subscribes.delete(pattern));
    added?.subscribes.forEach((pattern) => peer.subscribes.add(pattern));
    if (relay !== undefined) {
      this.#relays(peer, relay);
      this.#discovery.changed();
    }
    this.#nowOffers(peer, added?.handles ?? []);
  }

  #relays(peer: Peer, relay: boolean): void {
    peer.relay = relay;
    for (const id of relay ? peer.out : []) {
      const branches = this.open.get(id)?.scatter?.branches; // it passes on what it has not got yet
      if (branches?.has(peer.id)) branches.set(peer.id, true);
    }
  }

  #nowOffers(peer: Peer, names: readonly string[]): void {
    for (const key of this.#candidates.nowOffers(peer, names)) this.#discovery.turnedUp({ kind: "name", key });
  }

  /** A name is handled here, or no longer. */
  offer(name: string, offered: boolean): void {
    if (offered === this.offers.has(name)) return;
    if (offered) this.offers.add(name);
    else this.offers.delete(name);
    this.host.announce(offered ? { handles: [name] } : {}, offered ? {} : { handles: [name] });
    if (offered) this.#discovery.turnedUp({ kind: "name", key: name });
    else this.#discovery.withdraw({ kind: "name", key: name });
  }

  /** A pattern is wanted here, or no longer. */
  subscribe(pattern: string, wanted: boolean): void {
    if (wanted === this.subscriptions.has(pattern)) return;
    if (wanted) this.subscriptions.add(pattern);
    else this.subscriptions.delete(pattern);
    this.host.announce(wanted ? { subscribes: [pattern] } : {}, wanted ? {} : { subscribes: [pattern] });
  }

  // -------------------------------------------------------------------------------------------------- discovery

  get discovery(): Pick<Discovery, "query" | "answer" | "close"> {
    return this.#discovery;
  }

  /** See `discovery.Home`. */
  relays(): string[] {
    return [...this.peers.values()].filter((peer) => peer.relay).map((peer) => peer.id);
  }

  /** See `discovery.Home`. */
  patient(): boolean {
    return this.host.now() < this.#settled || [...this.peers.values()].some((peer) => peer.away && peer.relay);
  }

  /** See `discovery.Home`. */
  isHere({ kind, key }: Target): boolean {
    return kind === "name" ? this.offers.has(key) : key === this.me;
  }

  /** See `discovery.Home`. */
  question(): string {
    return this.origin.question();
  }

  /** See `discovery.Home`. */
  ask(link: string, id: string, { kind, key }: Target, ttl: number): boolean {
    const target = kind === "name" ? { case: kind, value: key } : { case: kind, value: key };
    return this.host.control(link, { case: "query", value: { id, ttl, target } });
  }

  /** See `discovery.Home`. */
  tell(link: string, id: string, { kind, key }: Target, found: Found): void {
    const target = kind === "name" ? { case: kind, value: key } : { case: kind, value: key };
    this.host.control(link, { case: "answer", value: { id, found, target } });
  }

  #resume(message: Message, target: Target): boolean {
    const withdrawn = message.kindNumber === Kind.REQUEST && !this.open.has(message.id); // or its time was over
    if (withdrawn) return true;
    const mine = target.kind === "name" && this.offers.has(target.key);
    if (!mine && this.#candidates.nextTo(target).length === 0 && this.#candidates.behind(target).length === 0) return false;
    this.#dispatch(message, HERE);
    return true;
  }

  #nobodyTakes(message: Message, { kind, key }: Target, incomplete: boolean): void {
    const what = kind === "name" ? `nobody handles ${key}` : `there is no exchange ${key}`;
    let error = this.#unhandled(`${what} ${this.#withinReach()}`);
    if (this.#expected.size > 0) {
      const gone = [...this.#expected].sort().slice(0, 3).join(" and ");
      const text = `${what} within reach of ${this.me}, but the link to ${gone} is lost`;
      error = new Unavailable(text, { at: this.me, delivered: false });
    } else if (incomplete) {
      const text = `${what} next to ${this.me}, and not all others answered within ${QUESTION_SECONDS} s`;
      error = new Unavailable(text, { reason: "INCOMPLETE", at: this.me, delivered: false });
    }
    this.#fail(message, HERE, Outcome.UNHANDLED, error);
  }
}

function targetOf(message: Message): Target {
  return message.to ? { kind: "exchange", key: message.to } : { kind: "name", key: message.name };
}

/** The link by which a message got here: the hop before ours. */
function cameBy(message: Message): string | undefined {
  return message.way.at(-2);
}
