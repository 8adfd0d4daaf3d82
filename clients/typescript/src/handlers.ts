/**
 * The public table: who handles, listens, subscribes and observes here, and how their functions run.
 *
 * Law: what comes over a link resolves in this table and nowhere else. Each function starts in order of arrival, soon
 * after the frame was read, and runs at most `HANDLER_CONCURRENCY` times at once; at most `HANDLER_QUEUE` more messages
 * wait for it, and what waits holds back the credit of the peer it came from.
 *
 * @module
 */

import { Kind, Outcome } from "@exchange-grpc/proto";
import { HandlerContext, Invocation } from "./context.js";
import type { Emitter } from "./emitter.js";
import { Code, HandlerFailed, InvalidMessage, LimitExceeded, Refused, refused, type RequestError } from "./errors.js";
import { HANDLER_CONCURRENCY, HANDLER_QUEUE } from "./limits.js";
import type { Logger } from "./log.js";
import type { Message } from "./message.js";
import { checkName, checkPattern, fits, LOCAL_EVENT, RESERVED } from "./patterns.js";
import { Queue } from "./queue.js";
import type { Seen } from "./router.js";
import { now } from "./time.js";

/** A handler: what it returns answers a request; what it yields, if it is an async generator, one after the other. */
export type Handler<T = unknown> = (message: Message<T>, context: HandlerContext) => unknown;
/** Takes a registration away again. */
export type Remove = () => void;
/** Sees what passes here. */
export type Observer = (message: Message, seen: Seen) => unknown;

interface Registered {
  call: Handler<never>;
  label: string;
  most: number; // at once
  running: number;
  waiting: Queue<Run>;
}

/** A function and one message, from its arrival to its end. */
export interface Run {
  invocation: Invocation;
  registered: Registered;
  answers: boolean;
  withdrawn: boolean;
  seconds: number;
  outcome: Outcome;
  result: unknown;
  error: RequestError | undefined;
}

/** What the table asks of its exchange. */
export interface Owner {
  readonly id: string;
  readonly log: Logger;
  readonly emitter: Emitter;
  offer(name: string, offered: boolean): void;
  subscribe(pattern: string, wanted: boolean): void;
  /** One of many replies; resolves when there is room for the next. */
  replyMore(run: Run, value: unknown): Promise<void>;
  ended(run: Run): void;
}

export class Handlers {
  #handlers = new Map<string, Registered>();
  #listeners = new Map<string, { peer: string | undefined; registered: Registered }[]>();
  #subscribers: { pattern: string; registered: Registered }[] = [];
  #observers: { pattern: string; call: Observer }[] = [];
  #requests = new Map<string, Run>();
  #running = new Set<Run>();
  #ready = new Set<Registered>();
  #idle: (() => void)[] = [];
  #closed = false;

  constructor(private readonly owner: Owner) {}

  // -------------------------------------------------------------------------------------------------- registering

  handle(name: string, call: Handler<never>, { system = false, concurrency = HANDLER_CONCURRENCY } = {}): Remove {
    checkName(name);
    if ((name.startsWith(RESERVED) || name === LOCAL_EVENT) && !system) {
      throw new InvalidMessage(`the name '${name}' is reserved for the system`);
    }
    if (this.#handlers.has(name)) throw new TypeError(`'${name}' has a handler already`);
    const registered = registeredAs(call, system ? name : call.name || name, concurrency);
    this.#handlers.set(name, registered);
    this.#claim(name);
    return () => {
      if (this.#handlers.get(name) !== registered) return;
      this.#handlers.delete(name);
      this.#claim(name);
    };
  }

  listen(name: string, call: Handler<never>, peer?: string): Remove {
    checkName(name);
    if (name.startsWith(RESERVED)) throw new InvalidMessage(`the name '${name}' is reserved for the system`);
    const entry = { peer, registered: registeredAs(call, call.name || "listener", HANDLER_CONCURRENCY) };
    this.#listeners.set(name, [...(this.#listeners.get(name) ?? []), entry]);
    this.#claim(name);
    return () => {
      const rest = (this.#listeners.get(name) ?? []).filter((other) => other !== entry);
      if (rest.length > 0) this.#listeners.set(name, rest);
      else this.#listeners.delete(name);
      this.#claim(name);
    };
  }

  subscribe(pattern: string, call: Handler<never>): Remove {
    checkPattern(pattern);
    const entry = { pattern, registered: registeredAs(call, call.name || "subscriber", HANDLER_CONCURRENCY) };
    this.#subscribers.push(entry);
    this.owner.subscribe(pattern, true);
    return () => {
      this.#subscribers = this.#subscribers.filter((other) => other !== entry);
      if (!this.#subscribers.some((other) => other.pattern === pattern)) this.owner.subscribe(pattern, false);
    };
  }

  observe(pattern: string, call: Observer): Remove {
    checkPattern(pattern);
    const entry = { pattern, call };
    this.#observers.push(entry);
    return () => {
      this.#observers = this.#observers.filter((other) => other !== entry);
    };
  }

  #claim(name: string): void {
    this.owner.offer(name, this.#handlers.has(name) || this.#listeners.has(name));
  }

  // --------------------------------------------------------------------------------------------------- delivering

  /** See `router.Host`. */
  deliver(message: Message, link: string | undefined): "held" | "heard" | undefined {
    if (message.kindNumber === Kind.PUBLISH) {
      const found = this.#subscribers.filter(({ pattern }) => fits(pattern, message.name));
      for (const { registered } of found) this.#beside(registered, message, link);
      return "heard";
    }
    const handler = this.#handlers.get(message.name);
    const beside = this.#listeners.get(message.name)?.filter(({ peer }) => peer === undefined || peer === link) ?? [];
    if (handler) this.#queue(handler, message, link, true);
    for (const { registered } of beside) this.#beside(registered, message, link);
    if (!handler && beside.length > 0) this.#nobodyButListeners(message, link);
    return handler ? "held" : beside.length > 0 ? "heard" : undefined;
  }

  /** Where all only listen, a request is answered with nothing. */
  #nobodyButListeners(message: Message, link: string | undefined): void {
    const registered = registeredAs(() => undefined, "listeners", 1);
    const run = newRun(registered, message, link, true);
    queueMicrotask(() => this.owner.ended(run));
  }

  #beside(registered: Registered, message: Message, link: string | undefined): void {
    try {
      this.#queue(registered, message, link, false);
    } catch (error) {
      this.owner.log.warn(`a listener is too slow and misses messages: ${(error as Error).message}`);
    }
  }

  #queue(registered: Registered, message: Message, link: string | undefined, answers: boolean): void {
    if (this.#closed) throw new LimitExceeded(`${this.owner.id} is closed`);
    if (registered.waiting.length >= HANDLER_QUEUE) {
      throw new LimitExceeded(`more than ${HANDLER_QUEUE} messages wait for ${registered.label}`);
    }
    const run = newRun(registered, message, link, answers);
    if (answers) {
      message.keeper?.retain(message.payload.length);
      if (message.kindNumber === Kind.REQUEST) this.#requests.set(message.id, run);
    }
    registered.waiting.push(run);
    this.#wake(registered);
  }

  /** Let what waits start soon: not now, in the middle of what routing does. */
  #wake(registered: Registered): void {
    if (this.#ready.size === 0) queueMicrotask(() => this.#startAll());
    this.#ready.add(registered);
  }

  #startAll(): void {
    const ready = [...this.#ready];
    this.#ready.clear(); // what a handler sends to another here wakes it anew
    for (const registered of ready) {
      while (registered.waiting.length > 0 && registered.running < registered.most) {
        const run = registered.waiting.shift() as Run;
        released(run);
        if (!run.withdrawn) void this.#start(run);
      }
    }
  }

  async #start(run: Run): Promise<void> {
    const { registered, invocation } = run;
    registered.running++;
    this.#running.add(run);
    const began = now();
    try {
      run.result = await this.#call(run);
    } catch (error) {
      this.#failed(run, error);
    }
    run.seconds = now() - began;
    if (invocation.aborted) run.outcome = Outcome.CANCELLED;
    registered.running--;
    this.#running.delete(run);
    if (run.answers) this.#requests.delete(invocation.message.id);
    if (registered.waiting.length > 0) this.#wake(registered);
    if (run.answers) this.owner.ended(run);
    if (this.#running.size === 0) for (const wake of this.#idle.splice(0)) wake();
  }

  async #call(run: Run): Promise<unknown> {
    const { message } = run.invocation;
    readable(message);
    const context = new HandlerContext(this.owner.emitter, run.invocation, (value) => this.owner.replyMore(run, value));
    const result = await run.registered.call(message as Message<never>, context);
    if (!isAsyncIterable(result)) return result;
    for await (const value of result) {
      if (run.withdrawn) break;
      if (!message.many) return value;
      await this.owner.replyMore(run, value);
    }
    return undefined;
  }

  #failed(run: Run, error: unknown): void {
    const { message } = run.invocation;
    const at = this.owner.id;
    if (error instanceof Refused) {
      const { code, reason, delivered } = error;
      run.error = new Refused(error.message, { code, reason, delivered, at });
      run.outcome = code === Code.INTERNAL ? Outcome.FAILED : Outcome.DENIED;
      return;
    }
    run.outcome = Outcome.FAILED;
    run.error = new HandlerFailed(`the handler of ${message.name} failed`, { at });
    if (run.withdrawn) return; // it was told to stop, and how it does that is its own affair
    this.owner.log.error(`${run.registered.label} failed at ${message.name} ${message.id}`, error);
  }

  /** Cancel the handler of a request, which need not be answered any more. One that waits never starts. */
  withdraw(request: string): void {
    const run = this.#requests.get(request);
    if (!run) return;
    this.#requests.delete(request);
    run.withdrawn = run.invocation.answered = true;
    run.invocation.abort();
  }

  // ---------------------------------------------------------------------------------------------------- observing

  observed(seen: Seen, message: Message): void {
    if (this.#observers.length === 0 || message.name.startsWith(RESERVED)) return;
    for (const { pattern, call } of this.#observers) {
      if (fits(pattern, message.name)) queueMicrotask(() => void this.#show(call, message, seen));
    }
  }

  async #show(call: Observer, message: Message, seen: Seen): Promise<void> {
    try {
      await call(message, seen);
    } catch (error) {
      this.owner.log.error(`an observer failed at ${message.name} ${message.id}`, error);
    }
  }

  // ------------------------------------------------------------------------------------------------------- ending

  /** Resolves when nothing runs. */
  async idle(): Promise<void> {
    while (this.#running.size > 0 || this.#ready.size > 0) await new Promise<void>((resolve) => this.#idle.push(resolve));
  }

  /** Cancel what runs, and start nothing any more. */
  close(): void {
    this.#closed = true;
    for (const run of this.#running) {
      run.withdrawn = true;
      run.invocation.abort();
    }
  }
}

function registeredAs(call: Handler<never>, label: string, most: number): Registered {
  if (typeof call !== "function") throw new TypeError(`${String(call)} is not a function`);
  return { call, label, most, running: 0, waiting: new Queue() };
}

function newRun(registered: Registered, message: Message, link: string | undefined, answers: boolean): Run {
  const invocation = new Invocation(message, link);
  const rest = { withdrawn: false, seconds: 0, outcome: Outcome.HANDLED, result: undefined, error: undefined };
  return { invocation, registered, answers, ...rest };
}

/** It does not wait here any more. */
function released({ invocation: { message }, answers }: Run): void {
  if (!answers) return;
  message.keeper?.release(message.payload.length);
  message.settled();
}

/** What cannot be read never reaches a handler. */
function readable(message: Message): void {
  try {
    void message.value;
  } catch (error) {
    if (!(error instanceof InvalidMessage)) throw error;
    const { message: text, code, reason } = refused(error);
    throw new Refused(text, { code, reason });
  }
}

function isAsyncIterable(value: unknown): value is AsyncIterable<unknown> {
  return typeof value === "object" && value !== null && Symbol.asyncIterator in value;
}
