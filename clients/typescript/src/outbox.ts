/**
 * The outgoing half of a session: what waits, what has left, and what must leave again.
 *
 * Law: no I/O and no clock. A message waits in the queue until credit lets it go; then it gets the next sequence
 * number. If the peer acknowledges what it takes, a message is kept until then. After a break what the peer has not
 * taken leaves again, under its number and before anything new. So the numbers have no gap, whatever breaks.
 *
 *     queue --credit--> (numbered) flight --Ack--> ids --settled--> gone
 *       ^                  |
 *       |                  +--break, then resumed--> again --> flight
 *       +-- `unsent`: never numbered, so surely not delivered; `uncertain`: numbered and not settled
 *
 * What is acknowledged is not sent again in this session. But if the peer loses its memory, what had not been settled
 * there is lost with it; so the ids are kept until then.
 *
 * @module
 */

import { Kind } from "@exchange-grpc/proto";
import { InvalidMessage, LimitExceeded } from "./errors.js";
import { type Credit, encodeBatch } from "./frames.js";
import * as limits from "./limits.js";
import type { Message } from "./message.js";
import { Queue } from "./queue.js";

/** Bytes: a message's time left, its tag and length in the batch; and the frame around a batch. */
export const AROUND = 32;
const LONGEST_US = 2 ** 52; // of time left, far beyond any use

/** The peer takes messages more slowly than they come, and the link's queue is full. */
export class QueueFull extends LimitExceeded {}

interface Entry {
  message: Message;
  data: Uint8Array;
  size: number; // in bytes, within a batch, at most
}

interface Sent {
  seq: number;
  id: string;
}

export class Outbox {
  /** The peer acknowledges: what has left is kept until then. */
  keeps = false;
  /** Undefined: no limit by credit. */
  credit: Credit | undefined;
  #queue = new Queue<Entry>();
  #queuedBytes = 0;
  #cancels = 0; // in the queue
  #flight = new Queue<Entry>();
  #flightBytes = 0;
  #again = new Queue<Entry>();
  #sent = 0; // the number of the last message that ever left; `again` and `flight` end there
  #sentBytes = 0; // of Batch frames, as the receiver counts them
  #lastIds = new Queue<Sent>(); // for a Reject, if nothing is kept
  #unsettled = new Queue<Sent>(); // acknowledged

  /** So much waits that whoever can wait should. */
  get full(): boolean {
    return this.#queue.length > limits.LINK_HIGH_WATER || this.#queuedBytes > limits.LINK_HIGH_WATER_BYTES;
  }

  /** Whether something has yet to leave, as far as credit lets it. */
  get waits(): boolean {
    return this.#queue.length > 0 || this.#again.length > 0;
  }

  /** How many messages wait to leave. */
  get queued(): number {
    return this.#queue.length;
  }

  /** How many messages have left and were not acknowledged. */
  get unacknowledged(): number {
    return this.#again.length + this.#flight.length;
  }

  /** Queue a message of so many bytes. Throws QueueFull. */
  put(message: Message, data: Uint8Array, size: number): void {
    if (this.#queue.length >= limits.LINK_QUEUE_MESSAGES || this.#queuedBytes + size > limits.LINK_QUEUE_BYTES) {
      throw new QueueFull(
        `more than ${limits.LINK_QUEUE_MESSAGES} messages or ${limits.LINK_QUEUE_BYTES} bytes wait on the link`,
      );
    }
    this.#queue.push({ message, data, size });
    this.#entered(message, size);
  }

  #entered(message: Message, size: number): void {
    this.#queuedBytes += size;
    if (message.kindNumber === Kind.CANCEL) this.#cancels++;
  }

  #left(entry: Entry): void {
    this.#queuedBytes -= entry.size;
    if (entry.message.kindNumber === Kind.CANCEL) this.#cancels--;
  }

  // ---------------------------------------------------------------------------------------------- what leaves

  /** A Batch frame of about `room` bytes at most, if there is one; and messages whose time ended in the queue. */
  batch(room: number, now: number): { frame: Uint8Array | undefined; expired: Message[] } {
    const most = Math.min(room, limits.BATCH_BYTES);
    if (this.#again.length > 0) return { frame: this.#resend(most, now), expired: [] };
    const expired: Message[] = [];
    let batch = this.#take(most, now, expired);
    if (batch.length === 0 && this.#cancels > 0) batch = this.#takeCancels(most);
    if (batch.length === 0) return { frame: undefined, expired };
    return { frame: this.#frame(batch, this.#sent - batch.length + 1, now), expired };
  }

  /** The next messages that credit lets go, numbered. */
  #take(room: number, now: number, expired: Message[]): Entry[] {
    const batch: Entry[] = [];
    let size = 0;
    while (batch.length < limits.BATCH_MESSAGES) {
      const entry = this.#queue.peek();
      if (!entry) break;
      const alive = entry.message.deadline > now;
      if (alive && ((batch.length > 0 && size + entry.size > room) || !this.#mayLeave(size + entry.size))) break;
      this.#queue.shift();
      this.#left(entry);
      if (alive) {
        size += entry.size;
        this.#number(entry, batch);
      } else {
        expired.push(entry.message);
      }
    }
    return batch;
  }

  #mayLeave(size: number): boolean {
    const { credit } = this;
    if (credit && (this.#sent >= credit.seq || this.#sentBytes + size + AROUND > credit.bytes)) return false;
    return this.#flight.length < limits.UNACKED_MESSAGES && this.#flightBytes < limits.UNACKED_BYTES;
  }

  #number(entry: Entry, batch: Entry[]): void {
    this.#sent++;
    batch.push(entry);
    if (this.keeps) {
      this.#flight.push(entry);
      this.#flightBytes += entry.size;
    } else {
      this.#lastIds.push({ seq: this.#sent, id: entry.message.id });
      if (this.#lastIds.length > limits.BATCH_MESSAGES) this.#lastIds.shift();
    }
  }

  /** A cancel needs no credit. One whose request waits here as well takes that with it, and neither leaves. */
  #takeCancels(room: number): Entry[] {
    const queue = this.#queue.drain();
    const isCancel = (entry: Entry): boolean => entry.message.kindNumber === Kind.CANCEL;
    const cancelled = new Set(queue.filter(isCancel).map((entry) => entry.message.replyTo));
    const waiting = new Set(queue.map((entry) => entry.message.id));
    const batch: Entry[] = [];
    let size = 0;
    for (const entry of queue) {
      if (isCancel(entry) && waiting.has(entry.message.replyTo)) {
        this.#left(entry);
      } else if (isCancel(entry)) {
        size += entry.size;
        if (batch.length > 0 && (size > room || batch.length >= limits.BATCH_MESSAGES)) {
          this.#queue.push(entry); // for the next frame
        } else {
          this.#left(entry);
          this.#number(entry, batch);
        }
      } else if (cancelled.has(entry.message.id)) {
        this.#left(entry);
      } else {
        this.#queue.push(entry);
      }
    }
    return batch;
  }

  /** What has left before leaves again. What has expired meanwhile does too: its number is taken. */
  #resend(room: number, now: number): Uint8Array {
    const first = this.#sent - this.#again.length + 1;
    const batch: Entry[] = [];
    let size = 0;
    while (batch.length < limits.BATCH_MESSAGES) {
      const entry = this.#again.peek();
      if (!entry) break;
      // A cancel may have left without credit: what needs credit shall not be counted together with it.
      const free = entry.message.kindNumber === Kind.CANCEL;
      const mixed = free && batch.at(-1)?.message.kindNumber !== Kind.CANCEL;
      if (batch.length > 0 && (size + entry.size > room || mixed)) break;
      this.#again.shift();
      size += entry.size;
      batch.push(entry);
      this.#flight.push(entry);
      this.#flightBytes += entry.size;
    }
    return this.#frame(batch, first, now);
  }

  #frame(batch: readonly Entry[], seq: number, now: number): Uint8Array {
    const frame = encodeBatch(
      seq,
      batch.map(({ message, data }) => {
        const leftUs = Math.floor(Math.min((message.deadline - now) * 1e6, LONGEST_US));
        return { data, leftUs: Math.max(1, leftUs) };
      }),
    );
    this.#sentBytes += frame.length;
    return frame;
  }

  // ---------------------------------------------------------------------------------------- what the peer tells us

  /** The peer has taken all up to this number. Throws InvalidMessage if that cannot be. */
  acknowledged(seq: number): void {
    if (seq > this.#sent) throw new InvalidMessage(`message ${seq} is acknowledged, and ${this.#sent} were sent`);
    for (let number = this.#sent - this.unacknowledged + 1; number <= seq; number++) {
      const flown = this.#flight.shift();
      if (flown) this.#flightBytes -= flown.size;
      const entry = flown ?? this.#again.shift();
      if (entry) this.#unsettled.push({ seq: number, id: entry.message.id });
      if (this.#unsettled.length > limits.UNSETTLED_IDS) this.#unsettled.shift();
    }
  }

  /** What the peer has of the messages up to this number would not be lost with it. */
  settled(seq: number): void {
    for (let first = this.#unsettled.peek(); first && first.seq <= seq; first = this.#unsettled.peek()) {
      this.#unsettled.shift();
    }
  }

  /** The peer takes so much. It never becomes less. */
  credited(credit: Credit): void {
    const { credit: known } = this;
    if (known) {
      this.credit = { seq: Math.max(credit.seq, known.seq), bytes: Math.max(credit.bytes, known.bytes) };
    }
  }

  /** The id of the message with this number, as far as it is remembered. */
  idOf(seq: number): string {
    const first = this.#sent - this.unacknowledged + 1;
    if (this.keeps && first <= seq && seq <= this.#sent) {
      return [...this.#flight.toArray(), ...this.#again.toArray()][seq - first]?.message.id ?? "";
    }
    return this.#lastIds.toArray().find((sent) => sent.seq === seq)?.id ?? "";
  }

  // -------------------------------------------------------------------------------------------- breaks and ends

  /** The session goes on: the peer has taken so much. Throws InvalidMessage if that cannot be. */
  resumed(received: number, receivedBytes: number): void {
    if (received < this.#sent - this.unacknowledged) {
      throw new InvalidMessage(`the peer has taken ${received} messages, and had acknowledged more`);
    }
    this.acknowledged(received);
    this.#again.unshift(this.#flight.drain());
    this.#flightBytes = 0;
    this.#sentBytes = receivedBytes;
  }

  /** The peer has taken so much and takes no more: what was sent after that counts as never sent. */
  refusedAfter(received: number): void {
    this.resumed(received, 0);
    const back = this.#again.drain();
    this.#queue.unshift(back);
    for (const { message, size } of back) this.#entered(message, size);
    this.#unsettled.drain();
  }

  /** The messages that never left, which are not sent any more. */
  takeUnsent(): Message[] {
    const queue = this.#queue.drain();
    for (const entry of queue) this.#left(entry);
    return queue.map((entry) => entry.message);
  }

  /** The ids of those that have left, and would be lost if the peer's memory was; none is sent any more. */
  takeUncertain(): string[] {
    const kept = [...this.#flight.drain(), ...this.#again.drain()].map((entry) => entry.message.id);
    this.#flightBytes = 0;
    return [...this.#unsettled.drain().map((sent) => sent.id), ...kept];
  }

  /** A new session: the numbers begin anew. */
  begin(): void {
    this.#lastIds.drain();
    this.#sent = this.#sentBytes = 0;
  }
}
