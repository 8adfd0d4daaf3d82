import { SEEN_IDS, SEEN_SECONDS } from "./limits.js";
import { Queue } from "./queue.js";

/** A bounded memory of ids: each is new once, until it is forgotten, after a while or for newer ones. */
export class Once {
  #known = new Set<string>();
  #order = new Queue<{ id: string; end: number }>();

  /** Whether `id` is new; it is remembered. */
  first(id: string, now: number): boolean {
    if (this.#known.has(id)) return false;
    for (let oldest = this.#order.peek(); oldest; oldest = this.#order.peek()) {
      if (this.#order.length < SEEN_IDS && oldest.end > now) break;
      this.#order.shift();
      this.#known.delete(oldest.id);
    }
    this.#known.add(id);
    this.#order.push({ id, end: now + SEEN_SECONDS });
    return true;
  }
}
