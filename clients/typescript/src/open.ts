/**
 * The requests that await their reply: emitted here, or handled here for a peer.
 *
 * @module
 */

import { OPEN_REQUESTS } from "./limits.js";
import type { Message } from "./message.js";
import type { Scatter } from "./scatter.js";
import { at, now } from "./time.js";

/** The link of what was emitted here. */
export const HERE = undefined;

/** What routing knows of one linked peer. */
export interface Peer {
  id: string;
  relay: boolean;
  handles: Set<string>;
  subscribes: Set<string>;
  /** It is broken, and may be there again soon. */
  away: boolean;
  /** Open requests that were passed to it. */
  out: Set<string>;
  /** Open requests that came from it. */
  came: Set<string>;
}

/** A request that awaits its reply. */
export interface Open {
  request: Message;
  /** How long it may take. */
  seconds: number;
  /** Where the reply goes. */
  link: string | undefined;
  /** Who has it: a link, this exchange, or nobody yet. */
  out: string | undefined;
  /** Kept while it may have to be routed again. */
  message: Message | undefined;
  /** It was. */
  again: boolean;
  /** It went to several: then they have it, in place of `out`. */
  scatter: Scatter | undefined;
  timer: ReturnType<typeof setTimeout> | undefined;
}

export class OpenRequests {
  #open = new Map<string, Open>();

  constructor(
    private readonly peers: ReadonlyMap<string, Peer>,
    private readonly late: (entry: Open) => void,
  ) {}

  has(id: string): boolean {
    return this.#open.has(id);
  }

  get(id: string): Open | undefined {
    return this.#open.get(id);
  }

  /** Open a request that has so many seconds; why that cannot be, if it cannot. */
  add(request: Message, link: string | undefined, seconds: number): string | undefined {
    if (this.#open.size >= OPEN_REQUESTS) return `more than ${OPEN_REQUESTS} requests are open`;
    const nowhere = { out: undefined, message: undefined, again: false, scatter: undefined };
    const entry: Open = { request, seconds, link, ...nowhere, timer: undefined };
    if (Number.isFinite(seconds)) this.#arm(entry);
    this.#open.set(request.id, entry);
    if (link !== HERE) this.peers.get(link)?.came.add(request.id);
    return undefined;
  }

  #arm(entry: Open): void {
    entry.timer = at(entry.request.deadline, () => {
      if (entry.request.deadline <= now()) this.late(entry);
      else this.#arm(entry); // the timer cannot be set that far
    });
  }

  /** It does not await anything any more. */
  close(entry: Open): void {
    const { id } = entry.request;
    clearTimeout(entry.timer);
    this.#open.delete(id);
    if (entry.link !== HERE) this.peers.get(entry.link)?.came.delete(id);
    for (const holder of this.holders(entry)) this.peers.get(holder)?.out.delete(id);
  }

  /** Who has it and has not answered in full. */
  holders(entry: Open): string[] {
    if (entry.scatter) return [...entry.scatter.branches.keys()];
    return entry.out === undefined ? [] : [entry.out];
  }

  /** Nothing ends by its time any more. */
  stop(): void {
    for (const entry of this.#open.values()) clearTimeout(entry.timer);
  }
}
