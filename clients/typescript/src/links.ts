/**
 * The links of one exchange: one for each peer, made, broken, resumed and gone.
 *
 * A peer is in `peers` from its first handshake until it is gone: a link that is broken is kept there for `awaySeconds`.
 * A link is in `byPeer` as long as its session may be resumed.
 *
 * @module
 */

import { Code } from "./errors.js";
import { FEATURES, type Introduction, type Offers, PROTOCOL } from "./frames.js";
import { CONTEST_SECONDS, FRAME_BYTES, LINKS, MESSAGE_BYTES } from "./limits.js";
import type { Link, Owner } from "./link.js";
import type { Logger } from "./log.js";
import type { Message } from "./message.js";
import { QueueFull } from "./outbox.js";
import { RESERVED } from "./patterns.js";
import type { Router } from "./router.js";
import type { Session, SessionEvent } from "./session.js";
import { now } from "./time.js";

/** What happens to links. */
export interface LinkEvents {
  /** A link is there for the first time. */
  connected: { id: string; agent: string; relay: boolean };
  /** A link has broken or ended. */
  lost: { id: string; reason: string };
  /** It is there again after so many seconds. If not recovered, nobody knows whether the messages with these ids arrived. */
  resumed: { id: string; recovered: boolean; uncertain: string[]; seconds: number };
  /** It is not waited for, or dialled, any more. */
  gaveUp: { id: string; reason: string };
}

export type Tell = <K extends keyof LinkEvents>(event: K, value: LinkEvents[K]) => void;

export class Links<P> implements Owner {
  /** Of what we handle and subscribe to. */
  revision = 0n;
  readonly byPeer = new Map<string, Link>();
  readonly peers = new Map<string, P>();
  readonly all = new Set<Link>(); // that are not over
  #faces = new Map<Link, P>();
  #broken = new Map<Link, number>(); // since when
  #uncertain = new Map<Link, string[]>(); // ids that were told to routing, and to nobody else so far

  constructor(
    private readonly id: string,
    private readonly epoch: bigint,
    private readonly agent: string,
    private readonly router: Router,
    private readonly linked: (link: Link, peer: Introduction) => P,
    private readonly tell: Tell,
    readonly log: Logger,
  ) {}

  // --------------------------------------------------------------------------------------------- what goes out

  introduction(protocol = PROTOCOL): Introduction {
    return {
      exchange: this.id,
      epoch: this.epoch,
      protocol: Math.min(protocol, PROTOCOL),
      features: FEATURES,
      agent: this.agent,
      relay: false,
      revision: this.revision,
      handles: [...this.router.offers].filter((name) => !name.startsWith(RESERVED)).sort(),
      subscribes: [...this.router.subscriptions].sort(),
      exports: [],
      messageBytes: MESSAGE_BYTES,
      frameBytes: FRAME_BYTES,
      session: "",
      token: new Uint8Array(),
      received: 0,
      receivedBytes: 0,
      credit: undefined,
      recovered: false,
    };
  }

  /** Tell all peers what has changed of that. */
  announce(added: Offers, removed: Offers): void {
    this.revision++;
    for (const link of this.byPeer.values()) {
      link.session.announce(added, removed);
      link.wake();
    }
  }

  /** Put a message on a link, and return that. Throws InvalidMessage if that cannot be. */
  send(to: string, message: Message): Link {
    const link = this.byPeer.get(to);
    if (!link) throw new QueueFull(`the link to ${to} was lost`); // and routing has yet to hear of it
    link.session.send(message);
    link.wake();
    return link;
  }

  /** Put a question or an answer on a link; false if it takes no more. */
  control(to: string, frame: Parameters<Session["control"]>[0]): boolean {
    const link = this.byPeer.get(to);
    const taken = link?.session.control(frame) ?? false;
    link?.wake();
    return taken;
  }

  // --------------------------------------------------------------------------------------- what links say to us

  /** We have dialled, or somebody has dialled us. */
  begun(link: Link): void {
    if (!link.session.dialled && this.all.size >= LINKS) {
      link.session.goodbye({ code: Code.RESOURCE_EXHAUSTED, reason: `${this.id} has ${LINKS} links already` });
    }
    this.all.add(link);
  }

  over(link: Link): void {
    this.all.delete(link);
  }

  heard(link: Link, events: readonly SessionEvent[]): void {
    for (const event of events) this.#hear(link, event);
  }

  #hear(link: Link, event: SessionEvent): void {
    const id = this.#idOf(link);
    switch (event.type) {
      case "received":
        return this.router.arrived(id, event.messages);
      case "opened":
        return this.#opened(link, event.peer);
      case "resumed":
        return this.#resumed(link, event);
      case "interest":
        return this.router.interest(id, event.interest);
      case "query":
        return this.router.discovery.query(id, event.query);
      case "answer":
        return this.router.discovery.answer(id, event.answer);
      case "rejected":
        return this.router.rejected(id, event.id, event.error);
      case "broken":
        return this.broke(link, event.reason);
      case "missing":
        return this.#missing(link, event.unsent);
      case "forgotten":
        return this.#uncertainOf(link, event.uncertain);
      default: // its end: see `ended`
    }
  }

  #idOf(link: Link): string {
    const id = link.session.peer?.exchange ?? "";
    return this.byPeer.get(id) === link ? id : "";
  }

  #opened(link: Link, peer: Introduction): void {
    const known = this.byPeer.get(peer.exchange);
    const { session } = link;
    if (known && !session.dialled) {
      this.#dialledAgain(link, known, peer);
      return;
    }
    if (known) {
      // Two who dial each other at the same time keep the link that the smaller id dialled.
      const open = known.session.phase !== "away";
      if (open && (known.session.dialled || this.id > peer.exchange)) {
        const reason = `${peer.exchange} is linked to ${this.id} already`;
        session.goodbye({ code: Code.ALREADY_EXISTS, reason });
        link.settled(peer.exchange);
        return;
      }
      this.#part(known, "another link to it takes its place");
    }
    if (!session.dialled) session.welcome(this.introduction(peer.protocol));
    else if (session.me.revision !== this.revision) this.#catchUp(session);
    this.#faces.set(link, this.linked(link, peer));
    this.#present(link, peer);
    this.tell("connected", { id: peer.exchange, agent: peer.agent, relay: peer.relay });
    link.settled(peer.exchange);
  }

  /** A peer whom we know has dialled us. */
  #dialledAgain(link: Link, known: Link, peer: Introduction): void {
    const events = known.session.rejoin(peer, this.introduction(peer.protocol), now());
    if (events) {
      known.takeOver(link);
      this.heard(known, events);
      return;
    }
    const reason = `${peer.exchange} is linked to ${this.id} already`;
    link.session.goodbye({ code: Code.ALREADY_EXISTS, reason, retryAfterMs: CONTEST_SECONDS * 1_000 });
    known.wake();
  }

  /** It was broken, and is there again. If the session was not recovered, another life of the peer begins. */
  #resumed(link: Link, event: Extract<SessionEvent, { type: "resumed" }>): void {
    const { peer, recovered, uncertain, unsent } = event;
    if (!recovered) {
      const known = this.byPeer.get(peer.exchange) === link; // else it calls itself as somebody else now
      this.#lose(link, unsent, uncertain, known);
    }
    const taken = this.byPeer.get(peer.exchange);
    if (taken && taken !== link) {
      this.router.reroute(peer.exchange, unsent);
      this.#forget(link);
      link.session.goodbye({ code: Code.ALREADY_EXISTS, reason: `${peer.exchange} is linked to ${this.id} already` });
      return;
    }
    if (link.session.me.revision !== this.revision) this.#catchUp(link.session);
    const since = this.#broken.get(link) ?? now();
    this.#present(link, peer);
    this.router.reroute(peer.exchange, unsent);
    const ids = this.#uncertain.get(link) ?? [];
    this.#uncertain.delete(link);
    const seconds = Math.round((now() - since) * 1e6) / 1e6;
    this.tell("resumed", { id: peer.exchange, recovered, uncertain: ids, seconds });
  }

  /** The link is open: routing may use it. */
  #present(link: Link, peer: Introduction): void {
    this.#broken.delete(link);
    this.byPeer.set(peer.exchange, link);
    const face = this.#faces.get(link);
    if (face) this.peers.set(peer.exchange, face);
    this.router.connected(peer);
  }

  /** Say what changed since our introduction was written. */
  #catchUp(session: Session): void {
    const said = session.me;
    const is = this.introduction();
    const without = (all: readonly string[], some: readonly string[]): string[] =>
      all.filter((name) => !some.includes(name));
    session.announce(
      { handles: without(is.handles, said.handles), subscribes: without(is.subscribes, said.subscribes) },
      { handles: without(said.handles, is.handles), subscribes: without(said.subscribes, is.subscribes) },
    );
  }

  #part(link: Link, reason: string): void {
    link.session.goodbye({ code: Code.ALREADY_EXISTS, reason });
    this.#gone(link, reason, false);
    link.wake();
  }

  late(expired: readonly Message[]): void {
    this.router.expired(expired);
  }

  // ---------------------------------------------------------------------------------- breaks, losses and ends

  broke(link: Link, reason: string): void {
    const id = this.#idOf(link);
    if (!id || this.#broken.has(link)) return;
    this.#broken.set(link, now());
    this.router.away(id);
    this.tell("lost", { id, reason });
  }

  /** It is not back, and nobody should wait. */
  #missing(link: Link, unsent: readonly Message[]): void {
    const id = this.#idOf(link);
    this.peers.delete(id);
    this.router.disconnected(id, unsent, link.session.dialled);
    this.router.reroute(id, unsent);
  }

  #uncertainOf(link: Link, uncertain: readonly string[]): void {
    this.#uncertain.set(link, [...(this.#uncertain.get(link) ?? []), ...uncertain]);
    this.router.uncertain(this.#idOf(link), uncertain);
  }

  ended(link: Link, reason: string, returns: boolean): void {
    this.#gone(link, reason, returns);
  }

  gaveUp(link: Link, reason: string): void {
    const id = link.session.peer?.exchange;
    const known = this.#faces.has(link);
    this.#gone(link, reason, false);
    this.#forget(link);
    if (id === undefined || !known) return;
    if (!this.byPeer.has(id)) this.router.disconnected(id, [], false); // routing still expects it back
    this.tell("gaveUp", { id, reason });
  }

  #forget(link: Link): void {
    this.#faces.delete(link);
    this.#uncertain.delete(link);
    this.#broken.delete(link);
  }

  #gone(link: Link, reason: string, returns: boolean): void {
    const id = this.#idOf(link);
    if (!id) return;
    const { uncertain, unsent } = link.session.lost();
    const wasBroken = this.#broken.has(link);
    if (returns && !wasBroken) this.#broken.set(link, now());
    this.#lose(link, unsent, uncertain, returns);
    this.router.reroute(id, unsent);
    if (!returns) this.#forget(link);
    if (!wasBroken) this.tell("lost", { id, reason });
  }

  /** One life of the peer is over. */
  #lose(link: Link, unsent: readonly Message[], uncertain: readonly string[], expected: boolean): void {
    const id = [...this.byPeer].find(([, known]) => known === link)?.[0];
    if (id === undefined) return;
    this.byPeer.delete(id);
    this.peers.delete(id);
    this.router.disconnected(id, unsent, expected);
    if (uncertain.length === 0) return;
    this.#uncertain.set(link, [...(this.#uncertain.get(link) ?? []), ...uncertain]);
    this.router.uncertain(id, uncertain);
  }
}
