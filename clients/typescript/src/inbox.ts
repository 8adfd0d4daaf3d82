/**
 * The incoming half of a session: what was taken, what is told of it, and how much more is welcome.
 *
 * Law: no I/O and no clock. Messages are taken in the order of their numbers, each once. What was taken is acknowledged now
 * and then, and so is what of it is *settled*: what would not be lost with us. A message that waits here for a
 * handler is *retained*; the credit that we give is always so much that no more than `creditMessages` and
 * `creditBytes` of this peer can wait.
 *
 * @module
 */

import { InvalidMessage, LimitExceeded } from "./errors.js";
import type { Credit } from "./frames.js";
import { beyond } from "./frames.js";
import { ACK_MESSAGES, ACK_SECONDS, type Limits } from "./limits.js";

/** A message is missing. */
export class Gap extends InvalidMessage {}

export class Inbox {
  /** The number of the last message that was taken. */
  received = 0;
  /** The bytes of Batch frames that were taken. */
  receivedBytes = 0;
  /** The credit that was told, if any was. */
  given: Credit | undefined;
  /** The peer wants to hear what was taken. */
  acknowledges = false;
  /** Called when there is credit to tell. */
  moreIsWelcome: () => void = () => undefined;
  /** How many were taken in former sessions: numbers are settled beyond that. */
  before = 0;
  /** When an acknowledgement is due. */
  ackDue: number | undefined;
  #retained = 0;
  #retainedBytes = 0;
  #told = { seq: 0, settled: 0 };
  #unsettled = new Set<number>(); // in order

  constructor(private readonly limits: Limits) {}

  /** Take a Batch of so many bytes: the number of the first message that is new, and the new ones.
   *
   * `seq` is the number of its first message, 0 if the sender does not count. Throws Gap.
   */
  take<T>(seq: number, messages: readonly T[], size: number, now: number): { first: number; fresh: readonly T[] } {
    const from = seq || this.received + 1;
    if (from > this.received + 1) throw new Gap(`message ${from} came after ${this.received}`);
    const fresh = messages.slice(this.received + 1 - from);
    const first = this.received + 1;
    this.received += fresh.length;
    if (fresh.length > 0) {
      this.receivedBytes += size; // a frame that comes twice was counted once by who sent it
      if (this.acknowledges) {
        for (let n = first; n <= this.received; n++) this.#unsettled.add(this.before + n);
        this.ackDue ??= now + ACK_SECONDS;
      }
    }
    return { first, fresh };
  }

  /** Throws LimitExceeded if the message with this number, or all bytes so far, are more than was welcome. */
  checkCredit(seq: number): void {
    const { given } = this;
    if (given && (seq > given.seq || this.receivedBytes > given.bytes)) {
      throw new LimitExceeded(
        `more was sent than there was credit for: ${given.seq} messages, ${given.bytes} bytes`,
      );
    }
  }

  /** A message that was taken waits here. */
  retain(size: number): void {
    this.#retained++;
    this.#retainedBytes += size;
  }

  /** ... and does not any more. */
  release(size: number): void {
    this.#retained--;
    this.#retainedBytes -= size;
    if (this.#hasGrown()) this.moreIsWelcome();
  }

  /** The message with this number, counted from the first session on, is not lost any more if we are. */
  settle(seq: number): void {
    this.#unsettled.delete(seq);
  }

  /** So much waits here that no more should be read from a peer that does not keep to credit. */
  get crowded(): boolean {
    return this.#retained >= this.limits.creditMessages || this.#retainedBytes >= this.limits.creditBytes;
  }

  /** The credit to tell in Hello or Welcome. It never becomes less. */
  give(): Credit {
    const seq = this.received + Math.max(0, this.limits.creditMessages - this.#retained);
    const bytes = this.receivedBytes + Math.max(0, this.limits.creditBytes - this.#retainedBytes);
    const { given } = this;
    this.given = given ? { seq: Math.max(seq, given.seq), bytes: Math.max(bytes, given.bytes) } : { seq, bytes };
    return this.given;
  }

  /** The credit, if it has grown by a quarter of the window since it was told. */
  creditToTell(): Credit | undefined {
    return this.#hasGrown() ? this.give() : undefined;
  }

  #hasGrown(): boolean {
    const { given, limits } = this;
    if (!given) return false;
    const seq = this.received + limits.creditMessages - this.#retained;
    const bytes = this.receivedBytes + limits.creditBytes - this.#retainedBytes;
    return 4 * (seq - given.seq) >= limits.creditMessages || 4 * (bytes - given.bytes) >= limits.creditBytes;
  }

  /** What to acknowledge, if that is due and new. */
  ackToTell(now: number): { seq: number; settled: number } | undefined {
    const due = this.ackDue;
    if (due === undefined || (now < due && this.received - this.#told.seq < ACK_MESSAGES)) return undefined;
    const oldest = this.#unsettled.values().next();
    const settled = (oldest.done ? this.before + this.received + 1 : oldest.value) - 1 - this.before;
    this.ackDue = settled === this.received ? undefined : now + ACK_SECONDS;
    if (this.received === this.#told.seq && settled === this.#told.settled) return undefined;
    this.#told = { seq: this.received, settled };
    return this.#told;
  }

  /** A new session: the numbers begin anew. What waits here still waits.
   *
   * `told`: the peer knows the credit, and counts what it was given beyond what was taken.
   */
  begin(told = false): void {
    this.given = told && this.given ? beyond(this.given, this.received, this.receivedBytes) : undefined;
    this.before += this.received;
    this.received = this.receivedBytes = 0;
    this.#told = { seq: 0, settled: 0 };
    this.#unsettled.clear();
    this.ackDue = undefined;
  }
}
