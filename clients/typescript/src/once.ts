import { SEEN_IDS, SEEN_SECONDS } from "./limits.js";

/** A bounded memory of ids: each is new once, until it is forgotten, after a while or for newer ones. */
export class Once {
  #until = new Map<string, number>(); // in order

  /** Whether `id` is new; it is remembered. */
  first(id: string, now: number): boolean {
    const until = this.#until;
    if (until.has(id)) return false;
    for (const [oldest, end] of until) {
      if (until.size < SEEN_IDS && end > now) break;
      until.delete(oldest);
    }
    until.set(id, now + SEEN_SECONDS);
    return true;
  }
}
