//! Every bound, with its number and its reason. Those of the protocol are constants; the others can be set in
//! [`Limits`].

use std::time::Duration;

/// One message with all its fields: gRPC's own default for what is received.
pub const MESSAGE_BYTES: usize = 4 << 20;
/// One write on a link; a larger frame ends the session.
pub const FRAME_BYTES: usize = 16 << 20;
/// Messages in one frame that is taken, from whoever writes more at once than we do.
pub const FRAME_MESSAGES: usize = 4_096;
/// A name or a pattern, in UTF-8.
pub const NAME_BYTES: usize = 255;
/// An exchange id.
pub const ID_LENGTH: usize = 64;
/// The content type of a payload that is no JSON.
pub const CONTENT_TYPE_BYTES: usize = 255;
/// All keys and values of the headers together: what HTTP servers take.
pub const HEADERS_BYTES: usize = 8 << 10;
/// Exchanges named in the end of the replies to many.
pub const LOST_NAMES: usize = 256;
/// Levels of a payload: protobuf parsers stop at 100 levels of their own, 33 of `Value`.
pub const PAYLOAD_DEPTH: usize = 30;
/// Stops of one message; a longer way is a mistake in the mesh.
pub const HOPS: usize = 16;
/// Ids of what stands directly behind a message; the oldest are left out.
pub const CAUSES: usize = 16;
/// Exchanges visited before a message began; the oldest are left out.
pub const PATH: usize = 32;
/// All of a trace on the wire.
pub const TRACE_BYTES: usize = 4 << 10;
/// Causes and path alone, so that 16 hops have room.
pub const TRACE_BASE_BYTES: usize = 2_560;

/// Seconds that a request lives if it says nothing else, and any other message.
pub const MESSAGE_SECONDS: f64 = 30.0;
/// Publications are remembered for twice their life, against coming twice.
pub const SEEN_SECONDS: f64 = 60.0;
/// How many of them.
pub const SEEN_IDS: usize = 65_536;
/// How long a discovery waits for its answers.
pub const QUESTION_SECONDS: f64 = 0.5;
/// Before a question is asked again, while somebody is expected back.
pub const REPEAT_SECONDS: f64 = 0.1;
/// So long others are expected back as well, after a relay came back without its memory.
pub const SETTLE_SECONDS: f64 = 3.0;
/// How long a "nobody handles it" is believed: an offer far away does not clear it.
pub const NO_SECONDS: f64 = 1.0;
/// Of silence, before a peer is taken for gone while another connection claims its id.
pub const CONTEST_SECONDS: f64 = 2.0;
/// Before messages are acknowledged, if they are few: no write for each.
pub const ACK_SECONDS: f64 = 0.1;
/// One attempt to link again: the next may find the network as it was.
pub const DIAL_SECONDS: f64 = 2.0;
/// How long closing a link waits for what was queued.
pub const DRAIN_SECONDS: f64 = 2.0;
/// How long closing an exchange waits for running handlers.
pub const STOP_SECONDS: f64 = 10.0;
/// How long the other side has to end its half of a stream, so that it hears what was said last.
pub const CLOSE_SECONDS: f64 = 1.0;
/// When those who hear Goodbye from an exchange that stops are to come back, in milliseconds.
pub const RETRY_AFTER_MS: u32 = 500;
/// How long the others are asked about a trace.
pub const TRACE_SECONDS: f64 = 2.0;
/// How many of them.
pub const TRACE_EXCHANGES: usize = 64;
/// Bytes that one exchange tells of one trace.
pub const TRACE_ANSWER_BYTES: usize = 1 << 20;

/// Names that one peer may handle, and patterns it may subscribe to.
pub const NAMES_PER_PEER: usize = 10_000;
/// Connections that others made to this exchange.
pub const LINKS: usize = 10_000;
/// Requests under way here; further ones are refused.
pub const OPEN_REQUESTS: usize = 65_536;
/// Messages that wait for a discovery; further ones are refused.
pub const HELD_MESSAGES: usize = 10_000;
/// How far a question goes: a message could not go further anyway.
pub const HOPS_OF_A_QUESTION: u32 = 16;
/// Names and exchanges whose way is remembered.
pub const ROUTES: usize = 65_536;
/// Messages whose history can be asked for; the oldest are forgotten first.
pub const LEDGER_MESSAGES: usize = 20_000;
/// Events kept of one message.
pub const LEDGER_EVENTS: usize = 64;
/// Messages that wait for one listener, subscriber or observer; more are counted, not kept.
pub const LISTENER_QUEUE: usize = 1_024;
/// Events of an exchange that wait for whoever takes them; more are dropped.
pub const EVENT_QUEUE: usize = 4_096;
/// Replies to one request to many that wait for whoever asked; then it is withdrawn.
pub const REPLIES: usize = 4_096;

/// Messages: beyond this many that wait to leave, whoever sends waits.
pub const LINK_HIGH_WATER: usize = 1_024;
/// The same in bytes: two writes, more only waits.
pub const LINK_HIGH_WATER_BYTES: usize = 2 << 20;
/// Messages that may wait to leave at all.
pub const LINK_QUEUE_MESSAGES: usize = 65_536;
/// The same in bytes.
pub const LINK_QUEUE_BYTES: usize = 32 << 20;
/// Messages that were sent and not acknowledged, whatever credit there is.
pub const UNACKED_MESSAGES: usize = 4_096;
/// The same in bytes.
pub const UNACKED_BYTES: usize = 16 << 20;
/// Ids of messages that a peer has acknowledged, and that would be lost with it.
pub const UNSETTLED_IDS: usize = 65_536;
/// Messages taken, before they are acknowledged at once: a quarter of the credit.
pub const ACK_MESSAGES: u64 = 256;
/// Messages in one write.
pub const BATCH_MESSAGES: usize = 1_024;
/// Bytes in one write, but for a single larger message: larger writes gain nothing and delay control frames.
pub const BATCH_BYTES: usize = 1 << 20;
/// Questions, answers and refusals that wait on one link.
pub const CONTROL_FRAMES: usize = 16_384;

/// Runs of one handler at once.
pub const HANDLER_CONCURRENCY: usize = 1_024;
/// Messages that wait for one handler; further ones are refused with `FULL`.
pub const HANDLER_QUEUE: usize = 65_536;

/// The bounds that can be set for each exchange: see [`Builder::limits`](crate::Builder::limits).
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// From connection to Hello or Welcome.
    pub handshake: Duration,
    /// Of silence, before a peer is asked whether it is there.
    pub heartbeat: Duration,
    /// Of silence, before a peer is taken for gone; the same for one that reads nothing.
    pub silence: Duration,
    /// How long a broken link is waited for; then what waits for it fails or goes another way.
    pub away: Duration,
    /// How long a session is kept after a break, for its peer to come back.
    pub resume: Duration,
    /// A broken link is dialled at once, then after a random part of this, of twice this, and so on ...
    pub reconnect_min: Duration,
    /// ... up to this.
    pub reconnect_max: Duration,
    /// Messages of one peer that may wait here for a handler.
    pub credit_messages: u64,
    /// The same in bytes.
    pub credit_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            heartbeat: Duration::from_secs(5),
            silence: Duration::from_secs(15),
            away: Duration::from_secs(5),
            resume: Duration::from_secs(30),
            reconnect_min: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(1),
            credit_messages: 1_024,
            credit_bytes: 8 << 20,
        }
    }
}
