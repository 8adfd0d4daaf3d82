/**
 * Who may take a message: the linked peers that are addressed or offer the name, and the ways to others.
 *
 * @module
 */

import type { Target } from "./frames.js";
import type { Peer } from "./open.js";

const TURNS = 4_096; // sets of candidates whose turn is remembered

export class Candidates {
  #offered = new Map<string, readonly string[]>(); // name -> links that offer it
  #turns = new Map<string, number>();

  constructor(
    private readonly peers: ReadonlyMap<string, Peer>,
    private readonly ways: (target: Target) => ReadonlyMap<string, number>,
  ) {}

  /** The peer offers these names now; those of them that are new. */
  nowOffers(peer: Peer, names: readonly string[]): string[] {
    const fresh = names.filter((name) => !peer.handles.has(name));
    for (const name of fresh) {
      peer.handles.add(name);
      this.#offered.set(name, [...(this.#offered.get(name) ?? []), peer.id].sort());
    }
    return fresh;
  }

  /** ... and these no longer. */
  noLongerOffers(peer: Peer, names: readonly string[]): void {
    for (const name of names) {
      if (!peer.handles.delete(name)) continue;
      const rest = (this.#offered.get(name) ?? []).filter((id) => id !== peer.id);
      if (rest.length > 0) this.#offered.set(name, rest);
      else this.#offered.delete(name);
    }
  }

  /** The linked peers that are, or offer, the target. */
  nextTo({ kind, key }: Target): readonly string[] {
    if (kind === "exchange") return this.peers.has(key) ? [key] : [];
    return this.#present(this.#offered.get(key) ?? []);
  }

  /** The linked peers behind which the target is, those with the fewest hops. */
  behind(target: Target): readonly string[] {
    const hops = this.ways(target);
    const ways = this.#present([...hops.keys()].filter((link) => this.peers.has(link)));
    const nearest = Math.min(...ways.map((link) => hops.get(link) ?? Infinity));
    return ways.filter((link) => hops.get(link) === nearest).sort();
  }

  /** Those of them that are not away, if there are any. */
  #present(links: readonly string[]): readonly string[] {
    const present = links.filter((link) => !this.peers.get(link)?.away);
    return present.length > 0 ? present : links;
  }

  /** One of them: each has its turn. */
  inTurn(links: readonly string[]): string | undefined {
    if (links.length <= 1) return links[0];
    const set = links.join(" ");
    if (this.#turns.size >= TURNS) this.#turns.clear();
    const turn = this.#turns.get(set) ?? 0;
    this.#turns.set(set, (turn + 1) % links.length);
    return links[turn];
  }
}
