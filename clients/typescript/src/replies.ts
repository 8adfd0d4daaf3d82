/**
 * The replies to a request to many, as whoever asked takes them.
 *
 * @module
 */

import { LimitExceeded } from "./errors.js";
import { REPLIES, REPLIES_BYTES } from "./limits.js";
import type { Message } from "./message.js";
import { Queue } from "./queue.js";

const ENOUGH = 64; // replies that wait while a handler of this process may go on

/** The replies as they come: `for await (const reply of app.requestMany(...))`.
 *
 * Each is a Message, with the `value`, or with the `error` of a handler that failed; `from` says of whom it is. It ends
 * when all who handle the name have ended or when the time is over; then `lost` names the exchanges whose replies are
 * lost or did not all come. The request leaves with the first step. Leaving the loop early withdraws it.
 */
export class Replies<T = unknown> implements AsyncIterableIterator<Message<T>> {
  /** The exchanges whose replies are lost or did not all come: complete once the replies have ended. */
  lost: readonly string[] = [];
  /** @internal Nothing more will come. */
  over = false;
  #waiting = new Queue<Message>();
  #bytes = 0;
  #started: (() => void) | undefined;
  #error: Error | undefined;
  #wake: (() => void)[] = [];
  #full: (() => void)[] = [];

  /** @internal `ask` sends the request, whose replies go to `take`, and returns what withdraws it. */
  constructor(
    private readonly ask: (replies: Replies<T>) => () => void,
    private readonly toOne: boolean,
    private readonly taken: (reply: Message) => void,
  ) {}

  [Symbol.asyncIterator](): this {
    return this;
  }

  async next(): Promise<IteratorResult<Message<T>, undefined>> {
    if (!this.#started && !this.over) this.#started = this.ask(this);
    while (this.#waiting.length === 0 && !this.over) {
      await new Promise<void>((resolve) => this.#wake.push(resolve));
    }
    const reply = this.#waiting.shift();
    if (reply) {
      this.#bytes -= reply.payload.length;
      if (this.#waiting.length < ENOUGH) for (const wake of this.#full.splice(0)) wake();
      this.taken(reply);
      return { done: false, value: reply as Message<T> };
    }
    const error = this.#error;
    this.#error = undefined;
    if (error) throw error;
    return { done: true, value: undefined };
  }

  /** Take no more of them: whoever still answers is told. */
  return(): Promise<IteratorResult<Message<T>, undefined>> {
    this.#waiting.drain();
    this.#withdraw();
    return Promise.resolve({ done: true, value: undefined });
  }

  /** @internal One came. */
  take(reply: Message): void {
    if (this.over) return;
    if (reply.lost) {
      this.lost = reply.lost;
      this.end(reply.error);
    } else if (this.#waiting.length >= REPLIES || this.#bytes > REPLIES_BYTES) {
      this.#withdraw(new LimitExceeded(`more than ${REPLIES} replies or ${REPLIES_BYTES} bytes wait to be taken`));
    } else {
      this.#waiting.push(reply);
      this.#bytes += reply.payload.length;
      this.#changed();
      if (reply.last && this.toOne) this.end(undefined);
    }
  }

  /** @internal Resolves when whoever asked has taken some. */
  async room(): Promise<void> {
    if (this.#waiting.length >= ENOUGH && !this.over) await new Promise<void>((resolve) => this.#full.push(resolve));
  }

  /** @internal No more will come. */
  end(error: Error | undefined): void {
    this.over = true;
    this.#error = error;
    this.#changed();
    for (const wake of this.#full.splice(0)) wake();
  }

  #changed(): void {
    for (const wake of this.#wake.splice(0)) wake();
  }

  #withdraw(error?: Error): void {
    if (this.over) return;
    this.end(error);
    this.#started?.();
  }

  /** @internal The caller does not want it any more. */
  abort(error: Error): void {
    this.#withdraw(error);
  }
}
