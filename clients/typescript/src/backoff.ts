import type { Limits } from "./limits.js";

/** When to dial again: at once, then after a random part of a time that doubles up to a bound.
 *
 * `draw` gives a number from 0 to 1. A link that breaks right after it was made does not count as made.
 */
export class Backoff {
  #attempts = 0;
  #made = Infinity;

  constructor(
    private readonly limits: Limits,
    private readonly draw: () => number,
  ) {}

  /** The link is there. */
  made(now: number): void {
    this.#made = now;
  }

  /** ... and gone. */
  broke(now: number): void {
    if (now - this.#made >= this.limits.reconnectMinSeconds) this.#attempts = 0;
    this.#made = Infinity; // an attempt that comes to nothing was never made
  }

  /** The seconds until the next attempt. */
  next(): number {
    this.#attempts++;
    if (this.#attempts === 1) return 0;
    const most = this.limits.reconnectMinSeconds * 2 ** Math.min(this.#attempts - 2, 64);
    return this.draw() * Math.min(most, this.limits.reconnectMaxSeconds);
  }
}
