/** Clocks and waiting. Seconds everywhere, but for the time of day. */

/** The monotonic clock of this process. */
export function now(): number {
  return performance.now() / 1_000;
}

/** The time of day in microseconds since the Unix epoch. */
export function wallUs(): number {
  return Math.round((performance.timeOrigin + performance.now()) * 1_000);
}

/** Whether `promise` settles within so many seconds. How it settles is for others to know. */
export async function within(promise: Promise<unknown>, seconds: number): Promise<boolean> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<boolean>((resolve) => (timer = setTimeout(() => resolve(false), seconds * 1_000)));
  const settled = promise.then(
    () => true,
    () => true,
  );
  const result = await Promise.race([settled, late]);
  clearTimeout(timer);
  return result;
}

/** A timer that is due at a point of {@link now}; `setTimeout` takes no more than 24 days. */
export function at(due: number, call: () => void): ReturnType<typeof setTimeout> {
  return setTimeout(call, Math.min(Math.max(0, Math.ceil((due - now()) * 1_000)), 2 ** 31 - 1));
}
