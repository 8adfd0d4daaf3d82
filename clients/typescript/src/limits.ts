/**
 * Every limit: a number, a name and a reason. Sizes are in bytes, times in seconds.
 *
 * What the protocol fixes is a constant here. What depends on the network and the machine can be set for each
 * exchange: see {@link Limits}.
 *
 * @module
 */

// What a message may be.
export const MESSAGE_BYTES = 4 * 2 ** 20; // all of one message
export const FRAME_BYTES = 16 * 2 ** 20; // one write on a link
export const TEXT_FRAME_BYTES = 24 * 2 ** 20; // ... as JSON: base64 makes four bytes of three, and fields have names
export const TEXT_ITEMS = 200_000; // commas and opening brackets of such a text
export const FRAME_MESSAGES = 4_096; // in one frame, from whoever writes more at once than we do
export const NAME_BYTES = 255; // fits one length byte everywhere
export const CONTENT_TYPE_BYTES = 255; // registered media types stay far below
export const HEADERS_BYTES = 8 * 2 ** 10; // what HTTP servers take
export const LOST_NAMES = 256; // exchanges named in the end of the replies to many
export const PAYLOAD_DEPTH = 30; // protobuf parsers stop at 100 levels, 33 of `Value`

// What a trace may be.
export const HOPS = 16; // a longer way is a mistake in the mesh
export const CAUSES = 16; // what stands directly behind one message
export const PATH = 32; // exchanges visited before
export const TRACE_BYTES = 4 * 2 ** 10; // all of a trace: it never outweighs what it explains
export const TRACE_BASE_BYTES = 2_560; // causes and path alone, so that 16 hops have room

// How long things live.
export const REQUEST_SECONDS = 30; // the deadline of a request that says none
export const MESSAGE_SECONDS = 30; // the life of any other message that says none
export const SEEN_SECONDS = 60; // ids of publications are remembered for twice their life
export const QUESTION_SECONDS = 0.5; // how long a discovery waits for its answers
export const NO_SECONDS = 1; // how long a "nobody" is believed
export const REPEAT_SECONDS = 0.1; // before a question is asked again, while somebody is expected back
export const SETTLE_SECONDS = 3; // so long others are expected back after a relay came back without its memory
export const CONTEST_SECONDS = 2; // of silence, while another connection claims the id: a live peer answers at once
export const ACK_SECONDS = 0.1; // before messages are acknowledged, if they are few
export const DIAL_SECONDS = 2; // one attempt to link again
export const CONNECT_SECONDS = 10; // the first attempt: nobody else knows better
export const RETRY_AFTER_MS = 500; // of a planned stop
export const DRAIN_SECONDS = 2; // how long a close waits for what was queued to leave
export const STOP_SECONDS = 10; // how long a close waits for running handlers
export const TRACE_SECONDS = 2; // how long the others are asked about a trace

// How much is kept.
export const NAMES_PER_PEER = 10_000; // what one peer may handle, and subscribe to
export const SEEN_IDS = 65_536; // ids remembered against coming twice
export const OPEN_REQUESTS = 65_536; // requests emitted or handled here, awaiting their reply
export const HELD_MESSAGES = 10_000; // messages that wait for a discovery
export const ROUTES = 65_536; // names and exchanges whose way was found out or learned
export const LINKS = 10_000; // linked at once
export const LEDGER_MESSAGES = 20_000; // messages that can be traced, about 1 KB each
export const LEDGER_EVENTS = 64; // events kept of one message
export const TRACE_EXCHANGES = 64; // exchanges that are asked about one trace
export const TRACE_ANSWER_BYTES = 2 ** 20; // what is told of one trace
export const REPLIES = 4_096; // of a request to many, waiting for whoever asked
export const REPLIES_BYTES = 64 * 2 ** 20; // the same in bytes

// How much waits on a link, and how much leaves it in one write.
export const LINK_QUEUE_MESSAGES = 65_536; // beyond either, what is emitted is refused
export const LINK_QUEUE_BYTES = 32 * 2 ** 20;
export const LINK_HIGH_WATER = 1_024; // beyond this many, a send waits
export const LINK_HIGH_WATER_BYTES = 2 * 2 ** 20;
export const UNACKED_MESSAGES = 4_096; // sent and not acknowledged, kept for a resume
export const UNACKED_BYTES = 16 * 2 ** 20;
export const UNSETTLED_IDS = 65_536; // acknowledged, and lost if the peer is
export const ACK_MESSAGES = 256; // taken before they are acknowledged at once
export const BATCH_MESSAGES = 1_024; // in one write
export const BATCH_BYTES = 2 ** 20; // in one write, but for a single larger message
export const CONTROL_FRAMES = 16_384; // questions, answers and changes of interest that wait on one link

// How much runs here.
export const HANDLER_CONCURRENCY = 1_024; // runs of one handler at once
export const HANDLER_QUEUE = 65_536; // messages that wait for one handler

/** The limits of one exchange that can be set. Each is a positive number. */
export interface Limits {
  /** From connection to Hello or Welcome. */
  handshakeSeconds: number;
  /** Of silence, before a peer is asked whether it is there. */
  heartbeatSeconds: number;
  /** Of silence, before a peer is taken for gone. */
  silenceSeconds: number;
  /** How long a broken link is waited for; then what waits for it fails or goes another way. */
  awaySeconds: number;
  /** How long a session is kept after a break. */
  resumeSeconds: number;
  /** A broken link is dialled at once, then after a random part of this, of twice this, and so on ... */
  reconnectMinSeconds: number;
  /** ... up to this. */
  reconnectMaxSeconds: number;
  /** Messages of one peer that may wait here for a handler. */
  creditMessages: number;
  /** The same in bytes. */
  creditBytes: number;
}

/** What holds unless something else is said. */
export const DEFAULT_LIMITS: Readonly<Limits> = {
  handshakeSeconds: 5,
  heartbeatSeconds: 5,
  silenceSeconds: 15,
  awaySeconds: 5,
  resumeSeconds: 30,
  reconnectMinSeconds: 0.1,
  reconnectMaxSeconds: 1,
  creditMessages: 1_024,
  creditBytes: 8 * 2 ** 20,
};

/** The defaults with some changed. Throws RangeError for what cannot work. */
export function limitsWith(changed: Partial<Limits> = {}): Limits {
  const limits = { ...DEFAULT_LIMITS, ...changed };
  for (const [name, value] of Object.entries(limits)) {
    if (!(value > 0)) throw new RangeError(`${name} is a positive number, not ${String(value)}`);
  }
  if (limits.heartbeatSeconds * 2 > limits.silenceSeconds) {
    throw new RangeError("silenceSeconds is at least two heartbeats: one may be late");
  }
  const least = MESSAGE_BYTES + DEFAULT_LIMITS.creditBytes / 4;
  if (limits.creditBytes < least) {
    throw new RangeError(`creditBytes is at least ${least}: the largest message must fit`);
  }
  return limits;
}
