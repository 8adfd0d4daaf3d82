/**
 * The state of another exchange: what it exports can be read and watched, what it accepts can be set.
 *
 * @module
 */

import type { Emitter } from "./emitter.js";
import { RequestError, Unavailable } from "./errors.js";
import type { Json } from "./payload.js";
import { SET } from "./patterns.js";

/** One state name of an exchange. */
export interface StateValue<T = unknown> {
  exchange: string;
  name: string;
  value: T;
  /** How often it has changed since that exchange started; compares only within one `epoch`. */
  revision: number;
  epoch: number;
  /** The id of the message that caused the last change, or empty. */
  cause: string;
  /** Its number: what has the same number changed at once. */
  transaction: number;
  /** It was not told because it changed. */
  snapshot: boolean;
}

/** How to ask for a state. */
export interface StateOptions {
  signal?: AbortSignal;
  timeoutSeconds?: number;
}

/** What an exchange, anywhere in the mesh, shares of its state. */
export class RemoteState {
  readonly #emitter: Emitter;

  /** @internal */
  constructor(
    /** Whose state it is. */
    readonly exchange: string,
    emitter: Emitter,
  ) {
    this.#emitter = emitter;
  }

  /** The value of an exported name. Rejects with Refused (`NOT_EXPORTED`), or a RequestError if it cannot be asked. */
  async get<T = unknown>(name: string, options: StateOptions = {}): Promise<StateValue<T>> {
    const answer = await this.#emitter.request("exchange.state.get", { name }, { ...options, to: this.exchange });
    return this.#state<T>(this.#read(answer, "state"), true);
  }

  /** Set an accepted name, if its revision is `expected` or none is given; as it is then.
   *
   * Rejects with Refused (`NOT_ACCEPTED`, `REVISION`), or a RequestError if it cannot be asked.
   */
  async set<T = unknown>(
    name: string,
    value: unknown,
    options: StateOptions & { expected?: number } = {},
  ): Promise<StateValue<T>> {
    const { expected, ...rest } = options;
    const question = { name, value, ...(expected !== undefined && { expected_revision: expected }) };
    const answer = await this.#emitter.request(SET, question, { ...rest, to: this.exchange });
    return this.#state<T>(this.#read(answer, "state"), true);
  }

  /** The exported names (all, if none is given) as they are, then every change in order, none left out.
   *
   * Goes on until the loop is left or `signal` is aborted. Rejects with Refused (`NOT_EXPORTED`; `SLOW` if it is taken
   * too slowly), with Unavailable when the way to the exchange is lost, with Cancelled when it was aborted.
   */
  async *watch<T = unknown>(
    names: string | readonly string[] = [],
    options: Pick<StateOptions, "signal"> = {},
  ): AsyncGenerator<StateValue<T>, void> {
    const wanted = typeof names === "string" ? [names] : [...names];
    const asked = { ...options, to: this.exchange, timeoutSeconds: Infinity };
    for await (const reply of this.#emitter.requestMany("exchange.state.watch", { names: wanted }, asked)) {
      if (reply.error) throw reply.error;
      const snapshot = Boolean(this.#read(reply.value, "snapshot"));
      const states = this.#read(reply.value, "states");
      if (!Array.isArray(states)) throw this.#strange();
      for (const state of states) yield this.#state<T>(state, snapshot);
    }
    throw new Unavailable(`the watch on ${this.exchange} ended`, { at: this.exchange });
  }

  #read(answer: unknown, key: string): unknown {
    if (typeof answer !== "object" || answer === null || !(key in answer)) throw this.#strange();
    return (answer as Record<string, unknown>)[key];
  }

  #state<T>(state: unknown, snapshot: boolean): StateValue<T> {
    const told = (key: string): Json => this.#read(state, key) as Json;
    return {
      exchange: this.exchange,
      name: told("name") as string,
      value: told("value") as T,
      revision: told("revision") as number,
      epoch: told("epoch") as number,
      cause: told("cause") as string,
      transaction: told("transaction") as number,
      snapshot,
    };
  }

  #strange(): RequestError {
    return new RequestError(`what ${this.exchange} answers is no state`, { reason: "ANSWER", at: this.exchange });
  }
}
