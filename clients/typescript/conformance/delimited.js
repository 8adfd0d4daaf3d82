/** Messages after their length as a varint, as they stand on stdin and stdout. */

/** What calls `take` for each message, as bytes come in. @param {(message: Uint8Array) => void} take */
export function splitter(take) {
  let rest = Buffer.alloc(0);
  return (/** @type {Buffer} */ chunk) => {
    rest = Buffer.concat([rest, chunk]);
    for (;;) {
      let [size, at, shift] = [0, 0, 1];
      while (at < rest.length && rest[at] > 127) {
        size += (rest[at++] & 127) * shift;
        shift *= 128;
      }
      if (at >= rest.length) return;
      size += rest[at++] * shift;
      if (rest.length < at + size) return;
      take(Uint8Array.from(rest.subarray(at, at + size)));
      rest = rest.subarray(at + size);
    }
  };
}

/** A message with its length before it. @param {Uint8Array} message */
export function delimited(message) {
  const prefix = [];
  let size = message.length;
  for (; size > 127; size = Math.floor(size / 128)) prefix.push((size % 128) | 128);
  return Buffer.concat([Buffer.from([...prefix, size]), message]);
}
