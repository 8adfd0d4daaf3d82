/**
 * A request to many, while those who have it answer.
 *
 * Each copy is a *branch*: a linked peer, or this exchange itself for its own handler. A branch ends by its `end`; if
 * nobody behind it is asked in turn (our own handler, a peer that does not relay) also by its last reply. A branch that
 * says that nobody there handles the name was none. One that could not take it, for whatever reason, is lost.
 *
 * @module
 */

import { Code, type RequestError } from "./errors.js";
import { LOST_NAMES } from "./limits.js";
import type { Message } from "./message.js";

/** Whether an error says: this way leads nowhere. */
export function leadsNowhere(error: RequestError | undefined): boolean {
  return error?.code === Code.UNIMPLEMENTED && (error.reason === "UNHANDLED" || error.reason === "LOOP");
}

export class Scatter {
  /** Those that have not ended: who has it -> whether he relays. */
  readonly branches = new Map<string, boolean>();
  /** Whose replies are not all there. */
  readonly lost = new Set<string>();
  /** Somebody handles it. */
  taken = false;

  /** A reply came from this branch: whether it is one, and not only the branch's end. */
  heard(branch: string, reply: Message): boolean {
    const nobody = leadsNowhere(reply.error);
    this.taken ||= !nobody;
    const end = reply.lost !== undefined || nobody;
    for (const exchange of reply.lost ?? []) if (this.lost.size < LOST_NAMES) this.lost.add(exchange);
    if (end && reply.error && !nobody) this.lose(branch);
    if (end || (reply.last && !this.branches.get(branch))) this.branches.delete(branch);
    return !end;
  }

  /** Nothing more will come of this branch. */
  lose(branch: string): void {
    this.branches.delete(branch);
    this.lost.add(branch);
  }
}
