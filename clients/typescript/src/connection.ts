/**
 * One transport, while it lasts, and the link that it carries.
 *
 * The writer takes from the session whatever there is, one frame at a time, and waits for the transport after each: what
 * is queued meanwhile leaves in the next batch. A lone message is written at once.
 *
 * @module
 */

import type { InvalidMessage } from "./errors.js";
import { DRAIN_SECONDS } from "./limits.js";
import type { Logger } from "./log.js";
import { within } from "./time.js";
import type { Transport } from "./transport.js";

/** What a connection needs of its link. */
export interface Carried {
  connection: Connection | undefined;
  readonly log: Logger;
  now(): number;
  /** Whether the peer may send on. */
  readonly mayRead: boolean;
  /** The session is over. */
  readonly isOver: boolean;
  readonly endReason: string;
  receive(frame: Uint8Array | InvalidMessage): void;
  nextFrame(): { frame: Uint8Array | undefined; again: boolean };
  disconnected(connection: Connection, reason: string): void;
  closed(connection: Connection): void;
}

export class Connection {
  /** Since when the transport has not taken a frame. */
  writingSince: number | undefined;
  /** Resolves when nothing is left of it. */
  readonly over: Promise<void>;
  #writing = false;
  #woken = false; // since the writer last looked
  #finished = false;
  #paused = false;
  #settle!: () => void;

  constructor(
    private readonly transport: Transport,
    public link: Carried,
  ) {
    this.over = new Promise((resolve) => (this.#settle = resolve));
    transport.onReceive(
      (frame) => this.#receive(frame),
      (reason) => this.drop(reason),
    );
  }

  /** There may be something to write. */
  wake(): void {
    this.#woken = true;
    if (!this.#writing && !this.#finished) {
      this.#writing = true;
      // Soon, not now: what is said in one turn leaves in one frame.
      queueMicrotask(() => void this.#write());
    }
  }

  /** End it, whatever the peer does. */
  drop(reason: string): void {
    if (!this.#finished) void this.#finish(reason);
  }

  /** Read on, if that was stopped and is welcome again. */
  readOn(): void {
    if (this.#paused && this.link.mayRead) {
      this.#paused = false;
      this.transport.resume?.();
    }
  }

  #receive(frame: Uint8Array | InvalidMessage): void {
    const { link } = this;
    if (link.connection !== this) return;
    try {
      link.receive(frame);
    } catch (error) {
      link.log.error("a link failed", error); // a mistake of ours: the other links go on
      this.drop("the link failed");
    }
    if (!link.mayRead && !this.#paused) {
      this.#paused = true; // its writer waits
      this.transport.pause?.();
    }
  }

  async #write(): Promise<void> {
    try {
      while (this.#woken) {
        this.#woken = false;
        await this.#writeAll();
      }
    } catch (error) {
      this.drop((error as Error).message);
      return;
    }
    this.#writing = false;
    if (this.link.connection === this && this.link.isOver) this.drop(this.link.endReason);
  }

  /** Write until the session has no more to say. */
  async #writeAll(): Promise<void> {
    while (this.link.connection === this && !this.#finished) {
      const { frame, again } = this.link.nextFrame();
      if (frame) {
        this.writingSince = this.link.now();
        await this.transport.send(frame);
        this.writingSince = undefined;
      } else if (!again) {
        return;
      }
    }
  }

  async #finish(reason: string): Promise<void> {
    this.#finished = true;
    this.link.disconnected(this, reason);
    const closing = this.transport.disconnect();
    if (!(await within(closing, DRAIN_SECONDS))) this.link.log.warn(`a transport did not close within ${DRAIN_SECONDS} s`);
    this.#settle();
    this.link.closed(this);
  }
}
