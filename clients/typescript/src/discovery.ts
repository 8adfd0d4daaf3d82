/**
 * Discovery: the way to what is not next to us, by asking the relays and by remembering.
 *
 * Law: no I/O. A *target* is a name that somebody handles, or the id of an exchange. `ways` says by which links it can be
 * reached and how many hops lie behind each; a way goes when its link goes or when the peer withdraws what it said. What
 * is for a target without a way waits while a question is out: whoever wants to know the same waits for the same
 * question. The first yes lets go whoever it helps. It is "no" only if every relay said no, and is believed for a
 * moment; a relay that is lost, cannot be asked or is silent makes it "incomplete", which is never believed. While a
 * relay is away, and for a moment after it came back without its memory, nothing is given up, and we ask again.
 *
 * This exchange does not relay: it is asked only about itself.
 *
 * @module
 */

import { type Answer, Found, type Query } from "@exchange-grpc/proto";
import { hopsAtMost, readTarget, type Target } from "./frames.js";
import * as limits from "./limits.js";

/** Who discovers: what discovery must know of it, and may ask of it. */
export interface Home {
  /** The linked peers that relay. */
  relays(): string[];
  /** Whether somebody is expected back, so that "nobody" may soon be wrong. */
  patient(): boolean;
  /** Whether the target is here. */
  isHere(target: Target): boolean;
  /** The id of a new question. */
  question(): string;
  ask(link: string, id: string, target: Target, ttl: number): boolean;
  tell(link: string, id: string, target: Target, found: Found): void;
}

/** Something that waits for a way. */
export interface Held {
  target: Target;
  /** Go on, if there is a way now or nobody waits any more; false if not. */
  resume(): boolean;
  /** Nobody is known to take it; `incomplete` if not everybody could be asked. */
  giveUp(incomplete: boolean): void;
}

interface Question {
  id: string;
  target: Target;
  asked: Set<string>; // relays whose answer is awaited
  held: Held[];
  found: boolean;
  incomplete: boolean;
  timer: ReturnType<typeof setTimeout>;
}

const key = ({ kind, key: name }: Target): string => `${kind} ${name}`;

export class Discovery {
  #ways = new Map<string, Map<string, number>>(); // target -> link -> hops from here
  #told = new Map<string, { target: Target; links: Set<string> }>(); // to whom we said yes
  #nobody = new Map<string, number>(); // believed until
  #questions = new Map<string, Question>();
  #own = new Map<string, Question>(); // by target
  #resting = new Set<{ held: Held; timer: ReturnType<typeof setTimeout> }>();
  #heldCount = 0;

  constructor(
    private readonly home: Home,
    private readonly now: () => number,
  ) {}

  // ------------------------------------------------------------------------------------------------ what is known

  /** The links behind which the target is, with the hops from here. */
  ways(target: Target): ReadonlyMap<string, number> {
    return this.#ways.get(key(target)) ?? new Map<string, number>();
  }

  /** The target is that many hops from here by this link. */
  learn(target: Target, link: string, hops: number): void {
    const ways = this.#ways.get(key(target));
    if (ways) {
      ways.set(link, hops);
    } else {
      if (this.#ways.size >= limits.ROUTES) this.#ways.delete(this.#ways.keys().next().value as string);
      this.#ways.set(key(target), new Map([[link, hops]]));
    }
    this.#nobody.delete(key(target));
  }

  /** The way to the target by this link has gone. */
  forget(target: Target, link: string): void {
    this.#forgetKey(key(target), link);
  }

  #forgetKey(target: string, link: string): void {
    const ways = this.#ways.get(target);
    if (ways?.delete(link) && ways.size === 0) this.#ways.delete(target);
  }

  /** The target is next to us now: whoever waits for it need not wait for the answers. */
  turnedUp(target: Target): void {
    this.#nobody.delete(key(target));
    const question = this.#asking(target);
    if (question) this.#found(question);
    for (const rest of [...this.#resting]) if (key(rest.held.target) === key(target)) this.#tryAgain(rest);
  }

  /** There is a new relay, behind which may be anybody. */
  changed(): void {
    this.#nobody.clear();
  }

  /** The link was broken: what it was told, and did not tell us, is not known. It is asked again. */
  back(link: string): void {
    this.#forgetAll(link);
    for (const { id, target, asked } of this.#questions.values()) {
      if (asked.has(link)) this.home.ask(link, id, target, limits.HOPS);
    }
  }

  /** The link has gone, and with it all that was behind it. */
  lost(link: string): void {
    this.#forgetAll(link);
    for (const question of [...this.#questions.values()]) {
      if (question.asked.delete(link)) {
        question.incomplete = true;
        if (question.asked.size === 0) this.#conclude(question);
      }
    }
  }

  #forgetAll(link: string): void {
    for (const target of [...this.#ways.keys()]) this.#forgetKey(target, link);
    for (const { links } of this.#told.values()) links.delete(link);
  }

  /** The target is not here any more: take back our yes. */
  withdraw(target: Target): void {
    const told = this.#told.get(key(target));
    if (!told || this.home.isHere(target)) return;
    this.#told.delete(key(target));
    for (const link of told.links) this.home.tell(link, "", target, Found.NO);
  }

  // ------------------------------------------------------------------------------------------------------- asking

  /** No further message can be held. */
  get full(): boolean {
    return this.#heldCount >= limits.HELD_MESSAGES;
  }

  /** Hold this and ask, unless the answer is known to be no. */
  askFor(held: Held): void {
    const { target } = held;
    if ((this.#nobody.get(key(target)) ?? 0) > this.now()) {
      this.#nobodyTakes(held, false);
      return;
    }
    const question = this.#asking(target) ?? this.#ask(target);
    if (question.asked.size > 0) {
      this.#heldCount++;
      question.held.push(held);
    } else {
      this.#nobodyTakes(held, question.incomplete);
    }
  }

  /** Give it up, unless that may soon be wrong. */
  #nobodyTakes(held: Held, incomplete: boolean): void {
    if (!this.home.patient() || this.full) {
      held.giveUp(incomplete);
      return;
    }
    this.#heldCount++;
    const rest = { held, timer: setTimeout(() => this.#tryAgain(rest), limits.REPEAT_SECONDS * 1_000) };
    this.#resting.add(rest);
  }

  #tryAgain(rest: { held: Held; timer: ReturnType<typeof setTimeout> }): void {
    clearTimeout(rest.timer);
    if (!this.#resting.delete(rest)) return;
    this.#heldCount--;
    if (!rest.held.resume()) this.askFor(rest.held);
  }

  /** A question of ours that has not been answered yet. */
  #asking(target: Target): Question | undefined {
    const question = this.#own.get(key(target));
    return question?.found ? undefined : question;
  }

  #ask(target: Target): Question {
    const id = this.home.question();
    const timer = setTimeout(() => {
      question.incomplete = true;
      this.#conclude(question);
    }, limits.QUESTION_SECONDS * 1_000);
    const question: Question = { id, target, asked: new Set(), held: [], found: false, incomplete: false, timer };
    for (const relay of this.home.relays()) {
      if (this.home.ask(relay, id, target, limits.HOPS)) question.asked.add(relay);
      else question.incomplete = true;
    }
    if (question.asked.size > 0) {
      this.#questions.set(id, question);
      this.#own.set(key(target), question);
    } else {
      clearTimeout(timer);
    }
    return question;
  }

  /** A peer asks. */
  query(link: string, query: Query): void {
    const target = readTarget(query);
    if (!this.home.isHere(target)) {
      this.home.tell(link, query.id, target, Found.NO);
      return;
    }
    const told = this.#told.get(key(target));
    if (told) told.links.add(link);
    else this.#told.set(key(target), { target, links: new Set([link]) });
    this.home.tell(link, query.id, target, Found.YES);
  }

  /** A peer answers, or takes an earlier yes back. */
  answer(link: string, answer: Answer): void {
    const target = readTarget(answer);
    if (!answer.id) {
      this.forget(target, link);
      return;
    }
    const question = this.#questions.get(answer.id);
    if (!question || key(question.target) !== key(target) || !question.asked.delete(link)) return;
    if (answer.found === Found.YES) {
      this.learn(target, link, hopsAtMost(answer.cost) + 1);
      this.#found(question);
    } else if (answer.found !== Found.NO) {
      question.incomplete = true;
    }
    if (question.asked.size === 0) this.#conclude(question);
  }

  /** There is a way: for those whom it helps the question is over. The others wait for the other answers. */
  #found(question: Question): void {
    question.found = true;
    const waiting = question.held;
    question.held = waiting.filter((held) => !held.resume());
    this.#heldCount -= waiting.length - question.held.length;
  }

  /** All answers are there, or the time is over. */
  #conclude(question: Question): void {
    clearTimeout(question.timer);
    if (!this.#questions.delete(question.id)) return;
    const target = key(question.target);
    if (this.#own.get(target) === question) this.#own.delete(target);
    if (!question.found && !question.incomplete && !this.home.patient()) {
      if (this.#nobody.size >= limits.ROUTES) this.#nobody.clear();
      this.#nobody.set(target, this.now() + limits.NO_SECONDS);
    }
    this.#found(question); // somebody may have turned up whom no answer told of
    this.#heldCount -= question.held.length;
    for (const held of question.held) this.#nobodyTakes(held, question.incomplete);
  }

  /** Nothing is asked any more. */
  close(): void {
    for (const { timer } of [...this.#questions.values(), ...this.#resting]) clearTimeout(timer);
  }
}
