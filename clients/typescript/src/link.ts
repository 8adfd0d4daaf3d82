/**
 * A link: a session, and what carries it, one connection after another. There is one, for all transports.
 *
 * A link outlives its connections. When one breaks, the link that was dialled dials again: at once, then after pauses that
 * grow; the other side waits. What the session makes of that is in `session.ts`.
 *
 * @module
 */

import { Backoff } from "./backoff.js";
import { type Carried, Connection } from "./connection.js";
import { Code, type InvalidMessage, LinkError } from "./errors.js";
import type { Introduction } from "./frames.js";
import { DIAL_SECONDS, DRAIN_SECONDS, type Limits } from "./limits.js";
import type { Logger } from "./log.js";
import type { Message } from "./message.js";
import type { Ended, Farewell, Session, SessionEvent } from "./session.js";
import { at, now, within } from "./time.js";
import type { Transport } from "./transport.js";

/** Who hears of a link: `links.ts`. */
export interface Owner {
  readonly log: Logger;
  /** What is said of the exchange now. */
  introduction(): Introduction;
  /** What one frame meant, or the time that has passed. */
  heard(link: Link, events: readonly SessionEvent[]): void;
  /** Messages whose time ended before they could be written. */
  late(expired: readonly Message[]): void;
  /** The connection is gone, and the session may go on over another. */
  broke(link: Link, reason: string): void;
  /** The session is over. `returns`: it will be dialled again, for a new one. */
  ended(link: Link, reason: string, returns: boolean): void;
  /** It is not waited for any more. */
  gaveUp(link: Link, reason: string): void;
  /** Nothing is left of it. */
  over(link: Link): void;
}

/** How a link is made again: how to make a transport, and for how many seconds after a break. */
export interface Redial {
  dial: () => Transport;
  seconds: number;
}

export class Link implements Carried {
  connection: Connection | undefined;
  ended: Ended | undefined;
  /** Resolves with the id of the peer once the handshake is done. */
  readonly opening: Promise<string>;
  /** Resolves when nothing is left of it. */
  readonly over: Promise<void>;
  #opened!: (id: string) => void;
  #refusedWith!: (error: LinkError) => void;
  #overNow!: () => void;
  #isOpen = false;
  readonly #backoff: Backoff;
  readonly #limits: Limits;
  #brokeAt = 0;
  #redialling: AbortController | undefined;
  #leaving = false; // by our own wish
  #finished = false;
  #connections = new Set<Connection>(); // that are not closed
  #room: (() => void)[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timerDue = 0;

  constructor(
    readonly session: Session,
    private readonly owner: Owner,
    limits: Limits,
    private readonly redial: Redial | undefined,
  ) {
    this.#limits = limits;
    this.#backoff = new Backoff(limits, Math.random);
    this.opening = new Promise((resolve, reject) => {
      this.#opened = resolve;
      this.#refusedWith = reject;
    });
    this.opening.catch(() => undefined); // who dialled may have gone, and nobody else asks
    this.over = new Promise((resolve) => (this.#overNow = resolve));
    session.into.moreIsWelcome = () => this.wake();
  }

  get log(): Logger {
    return this.owner.log;
  }

  now(): number {
    return now();
  }

  // ------------------------------------------------------------------------------------------------ connections

  /** A connection for this link, which is not connected yet: see `start`. */
  attach(transport: Transport): Connection {
    const connection = new Connection(transport, this);
    this.#connections.add(connection);
    return connection;
  }

  /** It is connected: go on over this one. */
  start(connection: Connection): void {
    this.connection = connection;
    connection.wake();
    this.#arm();
  }

  /** Go on over the connection of another link, of which nothing is left then. */
  takeOver(other: Link): void {
    const { connection } = other;
    const former = this.connection;
    if (!connection) return;
    other.connection = undefined;
    other.#connections.delete(connection);
    this.#connections.add(connection);
    connection.link = this;
    this.connection = connection;
    former?.drop("the peer has come back by another connection");
    this.#stopRedialling();
    connection.wake();
    this.#arm();
    other.#finishOff();
  }

  disconnected(connection: Connection, reason: string): void {
    if (connection !== this.connection) return;
    this.connection = undefined;
    if (this.session.disconnected(now())) {
      this.owner.broke(this, reason);
      this.#comeBack(reason, 0);
    } else {
      this.#sessionOver(reason);
    }
  }

  closed(connection: Connection): void {
    this.#connections.delete(connection);
    this.#checkOver();
  }

  #sessionOver(reason: string): void {
    const { ended } = this;
    const planned =
      ended &&
      !this.session.leaves &&
      !ended.stayAway &&
      ended.code !== Code.ALREADY_EXISTS &&
      ended.by !== this.session.me.exchange;
    if (!this.#isOpen) {
      this.#refuse(reason);
    } else if (this.redial && !this.#leaving && planned) {
      this.owner.ended(this, reason, true);
      this.session.revive(now());
      this.ended = undefined;
      this.#comeBack(reason, ended.retryAfterMs / 1_000);
      return;
    } else if (this.redial && !this.#leaving) {
      this.owner.gaveUp(this, reason);
    }
    this.owner.ended(this, reason, false);
    this.#finishOff();
  }

  #refuse(reason: string): void {
    const { ended } = this;
    this.#isOpen = true;
    if (ended?.code === Code.ALREADY_EXISTS && ended.by) {
      this.#opened(ended.by); // the two have dialled each other: the other link may be there
    } else {
      this.#refusedWith(new LinkError(`the link was refused or lost: ${reason}`));
    }
  }

  #finishOff(): void {
    if (this.#finished) return;
    this.#finished = true;
    this.#stopRedialling();
    clearTimeout(this.#timer);
    this.#makeRoom();
    this.#checkOver();
  }

  #checkOver(): void {
    if (this.#finished && this.#connections.size === 0) {
      this.#overNow();
      this.owner.over(this);
    }
  }

  // -------------------------------------------------------------------------------------------------- redialling

  /** The connection is gone: dial again, or wait for the peer to do so. */
  #comeBack(reason: string, pause: number): void {
    this.#arm();
    this.#backoff.broke(now());
    if (!this.redial || this.#redialling) return;
    this.#brokeAt ||= now();
    this.#redialling = new AbortController();
    void this.#redialUntilThere(this.redial, this.#redialling.signal, reason, pause);
  }

  #stopRedialling(): void {
    this.#redialling?.abort();
    this.#redialling = undefined;
  }

  async #redialUntilThere(redial: Redial, stopped: AbortSignal, reason: string, pause: number): Promise<void> {
    for (let least = pause; ; least = 0) {
      const seconds = Math.max(least, this.#backoff.next());
      if (now() + seconds - this.#brokeAt > redial.seconds) break;
      await new Promise((resolve) => setTimeout(resolve, seconds * 1_000));
      if (stopped.aborted || (await this.#connected(redial.dial, stopped)) || stopped.aborted) return;
    }
    this.#redialling = undefined;
    this.session.goodbye();
    this.owner.gaveUp(this, `${reason}, and it was not back within ${redial.seconds} s`);
    this.#finishOff();
  }

  /** One attempt. */
  async #connected(dial: () => Transport, stopped: AbortSignal): Promise<boolean> {
    const transport = dial();
    const connection = this.attach(transport);
    let there = false;
    const connecting = transport.connect().then(() => (there = true));
    const settled = await within(connecting, DIAL_SECONDS);
    if (settled && there && !stopped.aborted) {
      this.#redialling = undefined; // from here on, a break begins a new one
      this.session.dial(this.owner.introduction(), now());
      this.start(connection);
      return true;
    }
    await transport.disconnect();
    this.closed(connection);
    return false;
  }

  // ----------------------------------------------------------------------------------------------- what is said

  receive(frame: Uint8Array | InvalidMessage): void {
    this.#understand(this.session.receive(frame, now()));
    this.wake(); // an answer, a refusal or a goodbye may wait
    this.#arm();
  }

  nextFrame(): { frame: Uint8Array | undefined; again: boolean } {
    const { frame, expired } = this.session.dataToSend(now());
    if (expired.length > 0) this.owner.late(expired);
    if (!this.session.out.full) this.#makeRoom();
    return { frame, again: expired.length > 0 };
  }

  get mayRead(): boolean {
    return this.session.peer?.credit !== undefined || !this.session.into.crowded;
  }

  get isOver(): boolean {
    return this.session.phase === "closed";
  }

  get endReason(): string {
    return this.ended?.reason || "the link was closed";
  }

  /** The session has something to say. */
  wake(): void {
    if (this.connection) {
      this.connection.wake();
      this.connection.readOn();
    } else if (this.session.phase === "closed") {
      this.#finishOff(); // not to be dialled again either
    }
  }

  /** The handshake is done: who dialled has a link to `peer` now, this one or another. */
  settled(peer: string): void {
    this.#isOpen = true;
    this.#opened(peer);
  }

  /** Resolves when little enough is queued, or nobody should wait any more. */
  room(): Promise<void> {
    if (!this.session.out.full || this.#finished) return Promise.resolve();
    return new Promise((resolve) => this.#room.push(resolve));
  }

  #makeRoom(): void {
    if (this.#room.length === 0) return;
    const waiting = this.#room;
    this.#room = [];
    for (const resolve of waiting) resolve();
  }

  /** Say goodbye after what is queued, and end; within a bound, whatever the peer does. */
  async close(farewell: Farewell = {}): Promise<void> {
    this.#leaving = true;
    this.#stopRedialling();
    this.session.goodbye(farewell);
    if (!this.connection && !this.#finished) {
      this.owner.ended(this, farewell.reason ?? "the link was closed", false);
      this.#finishOff();
    }
    this.wake();
    if (await within(this.over, DRAIN_SECONDS)) return;
    this.connection?.drop("the peer did not take what was queued in time");
    await this.over;
  }

  #understand(events: readonly SessionEvent[]): void {
    if (events.length === 0) return;
    for (const event of events) {
      if (event.type === "ended") this.ended = event;
      if (event.type === "opened" || event.type === "resumed") {
        this.#backoff.made(now());
        this.#brokeAt = 0;
      }
    }
    this.owner.heard(this, events);
    for (const event of events) {
      if (event.type === "broken") this.#break(event.reason, event.retryAfterMs / 1_000);
      if (event.type === "forgotten" && !this.redial) {
        this.owner.gaveUp(this, `it was not back within ${this.#limits.resumeSeconds} s`);
        this.#finishOff();
      }
    }
    if (!this.session.out.full) this.#makeRoom();
  }

  #break(reason: string, pause: number): void {
    const { connection } = this;
    this.connection = undefined;
    connection?.drop(reason);
    this.#comeBack(reason, pause);
  }

  // --------------------------------------------------------------------------------------------------------- time

  #arm(): void {
    if (this.#finished) return;
    // A peer that does not read is noticed although its session has nothing to wait for.
    const due = Math.min(this.session.nextDeadline(), now() + this.#limits.silenceSeconds);
    if (this.#timer !== undefined) {
      if (this.#timerDue <= due) return;
      clearTimeout(this.#timer);
    }
    this.#timerDue = due;
    this.#timer = at(due, () => this.#tick());
  }

  #tick(): void {
    this.#timer = undefined;
    const time = now();
    try {
      this.#understand(this.session.tick(time));
    } catch (error) {
      this.log.error("a link failed", error); // a mistake of ours: the other links go on
      this.connection?.drop("the link failed");
    }
    const { connection } = this;
    const { silenceSeconds } = this.#limits;
    if (connection?.writingSince !== undefined && time - connection.writingSince > silenceSeconds) {
      connection.drop(`it has read nothing for ${silenceSeconds} s`);
    }
    this.wake();
    this.#arm();
  }
}
