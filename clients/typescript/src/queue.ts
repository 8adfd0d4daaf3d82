/** A first-in, first-out queue. `Array.shift` moves everything that stays; this moves it now and then. */
export class Queue<T> {
  #items: (T | undefined)[] = [];
  #head = 0;

  get length(): number {
    return this.#items.length - this.#head;
  }

  push(item: T): void {
    this.#items.push(item);
  }

  /** The first item, which stays. */
  peek(): T | undefined {
    return this.#items[this.#head];
  }

  shift(): T | undefined {
    const item = this.#items[this.#head];
    if (this.#head < this.#items.length) this.#items[this.#head++] = undefined;
    if (this.#head > 1_024 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return item;
  }

  /** Everything, in order; nothing is left. */
  drain(): T[] {
    const items = this.toArray();
    this.#items = [];
    this.#head = 0;
    return items;
  }

  /** Everything, in order. */
  toArray(): T[] {
    return this.#items.slice(this.#head) as T[];
  }

  /** Put these in front of everything. */
  unshift(items: readonly T[]): void {
    this.#items = [...items, ...this.toArray()];
    this.#head = 0;
  }
}
