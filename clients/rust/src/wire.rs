//! Messages and frames <-> bytes: the only door to generated code.
//!
//! What all messages have is written by hand, without a copy; the rest by the generated code, behind it: protobuf
//! joins what is concatenated. The time left is the last part, added when the message leaves.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use exchange_proto::exchange::v1 as proto;
use exchange_proto::google::rpc::{ErrorInfo, Status};
use prost::Message as _;
use prost::encoding::{encode_varint, encoded_len_varint};

use crate::error::{Code, Delivered, Error, RequestError, Result};
use crate::limits::{
    CAUSES, CONTENT_TYPE_BYTES, HEADERS_BYTES, HOPS, LOST_NAMES, MESSAGE_BYTES, MESSAGE_SECONDS, PATH, TRACE_BYTES,
};
use crate::message::{Head, Hop, Kind, Message, Outcome, Time};
use crate::names::{check_id, check_name, check_origin, shown};
use crate::payload::Payload;

pub(crate) use proto::frame::Kind as Frame;

/// Of `ErrorInfo`.
const DOMAIN: &str = "exchange";
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
/// Characters of an error that are sent: a sentence for people, whoever wrote it.
const TEXT: usize = 1_000;
/// Of `ttl_us`, which is written when the message leaves, after its size was checked.
const TIME_LEFT_BYTES: usize = 11;
/// Far beyond any use: what lives for ever fits the field.
const LONGEST_US: f64 = 4.0e18;

// ------------------------------------------------------------------------------------------------ reading

/// The message in `packed`. `id`, `from` and hops may still be empty: whoever knows the peer fills them in.
/// The flag says that its payload came as `value`. One that breaks a rule is told by its id.
pub(crate) fn read(mut packed: proto::Message, now: Time) -> Result<(Message, bool), (String, Error)> {
    let read = check(&packed).and_then(|kind| Ok((kind, read_payload(packed.payload.take())?)));
    let (kind, (payload, used_value)) = match read {
        Ok(read) => read,
        Err(error) => return Err((packed.id, error)),
    };
    Ok((unpack(packed, kind, payload, now), used_value))
}

/// Whether all is well-formed.
fn check(packed: &proto::Message) -> Result<Kind> {
    let kind = match packed.kind {
        0 => Kind::Send,
        number => *usize::try_from(number - 1)
            .ok()
            .and_then(|index| Kind::ALL.get(index))
            .ok_or_else(|| Error::Invalid(format!("no such kind of message: {number}")))?,
    };
    check_name(&packed.name)?;
    if !packed.id.is_empty() {
        let origin = check_origin(&packed.id)?;
        if !packed.from.is_empty() && packed.from != origin {
            return Err(Error::Invalid(format!("{} is no message id of {}", shown(&packed.id), shown(&packed.from))));
        }
    }
    for id in [&packed.from, &packed.to] {
        if !id.is_empty() {
            check_id(id)?;
        }
    }
    if packed.ttl_us < 0 {
        return Err(Error::Invalid("the time left (`ttl_us`) is negative".into()));
    }
    check_headers(&packed.headers)?;
    if !packed.reply_to.is_empty() {
        check_origin(&packed.reply_to)?;
    } else if matches!(kind, Kind::Reply | Kind::Cancel | Kind::Outcome) {
        let kind = kind.name().to_lowercase();
        return Err(Error::Invalid(format!("a {kind} must say what it belongs to (`reply_to`)")));
    }
    if let Some(trace) = &packed.trace {
        check_trace(trace)?;
    }
    if let Some(end) = &packed.end {
        end.lost.iter().take(LOST_NAMES).try_for_each(|id| check_id(id))?;
    }
    Ok(kind)
}

fn unpack(packed: proto::Message, kind: Kind, payload: Payload, now: Time) -> Message {
    let trace = packed.trace.unwrap_or_default();
    let seconds = if packed.ttl_us == 0 { MESSAGE_SECONDS } else { microseconds_to_seconds(packed.ttl_us) };
    let head = Head {
        id: packed.id,
        name: packed.name,
        kind,
        from: packed.from,
        to: packed.to,
        reply_to: packed.reply_to,
        hops: trace.hops.into_iter().map(|hop| Hop { exchange: hop.exchange, at_us: hop.at_us }).collect(),
        causes: trace.causes,
        root: trace.root,
        path: trace.path,
        cut: trace.cut,
        traceparent: if is_traceparent(&trace.traceparent) { trace.traceparent } else { String::new() },
        timestamp_us: packed.timestamp_us,
        deadline: now + seconds,
        headers: packed.headers,
        many: packed.many && kind == Kind::Request,
    };
    let mut message = Message::new(head, payload);
    message.last = packed.last;
    message.error = packed.error.as_ref().map(read_status);
    message.outcome = usize::try_from(packed.outcome - 1).ok().and_then(|at| Outcome::ALL.get(at)).copied();
    message.lost = packed.end.map(|mut end| {
        end.lost.truncate(LOST_NAMES);
        end.lost
    });
    message
}

#[allow(clippy::cast_precision_loss)] // 2^53 microseconds are 285 years
fn microseconds_to_seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

fn read_payload(payload: Option<proto::message::Payload>) -> Result<(Payload, bool)> {
    use proto::message::Payload as P;
    Ok(match payload {
        None => (Payload::null(), false),
        Some(P::Json(bytes)) => (Payload::from_json(bytes), false),
        Some(P::Data(data)) if data.content_type.len() > CONTENT_TYPE_BYTES => {
            let text = format!("the content type is longer than {CONTENT_TYPE_BYTES} bytes");
            return Err(Error::LimitExceeded(text));
        }
        Some(P::Data(data)) => (Payload::data(data.content_type, data.content), false),
        Some(P::Value(value)) => (Payload::from_value(value)?, true),
    })
}

fn check_trace(trace: &proto::Trace) -> Result<()> {
    if trace.encoded_len() > TRACE_BYTES {
        return Err(Error::LimitExceeded(format!("the trace is larger than {TRACE_BYTES} bytes")));
    }
    if trace.hops.len() > HOPS || trace.causes.len() > CAUSES || trace.path.len() > PATH {
        let text = format!("the trace has more than {HOPS} hops, {CAUSES} causes or {PATH} exchanges in its path");
        return Err(Error::LimitExceeded(text));
    }
    trace.hops.iter().try_for_each(|hop| check_id(&hop.exchange))?;
    trace.path.iter().try_for_each(|id| check_id(id))?;
    let root = (!trace.root.is_empty()).then_some(&trace.root);
    trace.causes.iter().chain(root).try_for_each(|id| check_origin(id).map(drop))
}

/// W3C: one that cannot be read is not passed on.
fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str| part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    matches!(parts.as_slice(), ["00", trace, span, flags]
        if trace.len() == 32 && span.len() == 16 && flags.len() == 2
            && hex(trace) && hex(span) && hex(flags) && !zero(trace) && !zero(span))
}

/// Whether these headers may be sent.
pub(crate) fn check_headers(headers: &BTreeMap<String, String>) -> Result<()> {
    if headers.contains_key("") {
        return Err(Error::Invalid("headers are strings with keys that are not empty".into()));
    }
    if headers.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > HEADERS_BYTES {
        return Err(Error::LimitExceeded(format!("the headers are larger than {HEADERS_BYTES} bytes")));
    }
    Ok(())
}

/// Raised for a message that is too large.
pub(crate) fn too_large() -> Error {
    Error::LimitExceeded(format!("the message is larger than {MESSAGE_BYTES} bytes"))
}

// ------------------------------------------------------------------------------------------------ writing

/// Appends fields of a protobuf message.
struct Writer(BytesMut);

impl Writer {
    fn key(&mut self, tag: u32, wire_type: u32) {
        encode_varint(u64::from(tag << 3 | wire_type), &mut self.0);
    }

    fn text(&mut self, tag: u32, text: &str) {
        if !text.is_empty() {
            self.bytes(tag, text.as_bytes());
        }
    }

    fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        self.key(tag, 2);
        encode_varint(bytes.len() as u64, &mut self.0);
        self.0.put_slice(bytes);
    }

    fn number(&mut self, tag: u32, number: i64) {
        if number != 0 {
            self.key(tag, 0);
            encode_varint(number.cast_unsigned(), &mut self.0);
        }
    }
}

/// The bytes of a message of ours, without the time it has left.
pub(crate) fn pack(message: &Message, as_value: bool) -> Result<Bytes> {
    let head = &*message.head;
    let mut out = Writer(BytesMut::with_capacity(192 + message.payload.bytes().len()));
    out.text(1, &head.id);
    out.text(2, &head.name);
    out.text(3, &head.from);
    out.text(4, &head.to);
    out.number(5, i64::from(head.kind as i32));
    if message.payload.is_json() && !as_value {
        out.bytes(6, message.payload.bytes());
    }
    out.key(9, 2);
    encode_varint(trace_size(head) as u64, &mut out.0);
    pack_trace(head, &mut out);
    out.number(10, head.timestamp_us);
    out.text(13, &head.reply_to);
    out.number(14, i64::from(message.last));
    pack_rest(message, as_value, &mut out.0)?;
    if out.0.len() + TIME_LEFT_BYTES > MESSAGE_BYTES {
        return Err(too_large());
    }
    Ok(out.0.freeze())
}

/// Bytes of a field that `Writer::text` writes.
fn text_size(text: &str) -> usize {
    if text.is_empty() { 0 } else { 1 + encoded_len_varint(text.len() as u64) + text.len() }
}

fn number_size(number: i64) -> usize {
    if number == 0 { 0 } else { 1 + encoded_len_varint(number.cast_unsigned()) }
}

fn hop_size(hop: &Hop) -> usize {
    text_size(&hop.exchange) + number_size(hop.at_us)
}

fn trace_size(head: &Head) -> usize {
    let hops = head.hops.iter().map(|hop| 1 + encoded_len_varint(hop_size(hop) as u64) + hop_size(hop));
    let texts = head.causes.iter().chain(&head.path).chain([&head.root, &head.traceparent]).map(|text| text_size(text));
    hops.chain(texts).sum::<usize>() + number_size(i64::from(head.cut))
}

fn pack_trace(head: &Head, out: &mut Writer) {
    for hop in &head.hops {
        out.key(1, 2);
        encode_varint(hop_size(hop) as u64, &mut out.0);
        out.text(1, &hop.exchange);
        out.number(2, hop.at_us);
    }
    for cause in &head.causes {
        out.text(2, cause);
    }
    out.text(3, &head.root);
    for exchange in &head.path {
        out.text(4, exchange);
    }
    out.number(5, i64::from(head.cut));
    out.text(6, &head.traceparent);
}

/// What few messages have.
fn pack_rest(message: &Message, as_value: bool, out: &mut BytesMut) -> Result<()> {
    let head = &*message.head;
    let data = !message.payload.is_json();
    if !(data || as_value || head.many)
        && head.headers.is_empty()
        && message.error.is_none()
        && message.outcome.is_none()
        && message.lost.is_none()
    {
        return Ok(());
    }
    let payload = if data {
        let content_type = message.payload.content_type().to_owned();
        Some(proto::message::Payload::Data(proto::Data { content_type, content: message.payload.bytes().clone() }))
    } else if as_value {
        Some(proto::message::Payload::Value(message.payload.to_value()?))
    } else {
        None
    };
    let rest = proto::Message {
        headers: head.headers.clone(),
        many: head.many,
        error: message.error.as_ref().map(status),
        outcome: message.outcome.map_or(0, |outcome| outcome as i32),
        end: message.lost.clone().map(|lost| proto::End { lost }),
        payload,
        ..proto::Message::default()
    };
    rest.encode(out).map_err(|_| too_large())
}

/// The bytes of a Batch frame, of what `pack` gave and the deadline of each.
pub(crate) fn batch<'a>(seq: u64, now: Time, messages: impl Iterator<Item = (&'a Bytes, Time)> + Clone) -> Bytes {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it is clamped
    let left = |deadline: Time| ((deadline - now) * 1e6).clamp(1.0, LONGEST_US) as u64;
    let size_of = |data: &Bytes, us: u64| data.len() + 1 + encoded_len_varint(us);
    let inner: usize = messages.clone().fold(1 + encoded_len_varint(seq), |sum, (data, deadline)| {
        let size = size_of(data, left(deadline));
        sum + 1 + encoded_len_varint(size as u64) + size
    });
    let mut out = Writer(BytesMut::with_capacity(inner + 8));
    out.key(3, 2);
    encode_varint(inner as u64, &mut out.0);
    out.key(1, 0);
    encode_varint(seq, &mut out.0);
    for (data, deadline) in messages {
        let us = left(deadline);
        out.key(2, 2);
        encode_varint(size_of(data, us) as u64, &mut out.0);
        out.0.put_slice(data);
        out.key(11, 0);
        encode_varint(us, &mut out.0);
    }
    out.0.freeze()
}

/// The bytes of any frame.
pub(crate) fn encode(frame: Frame) -> Bytes {
    proto::Frame { kind: Some(frame) }.encode_to_vec().into()
}

// ----------------------------------------------------------------------------------------------- statuses

/// The error that a status stands for.
pub(crate) fn read_status(packed: &Status) -> RequestError {
    let infos = packed.details.iter().filter(|detail| detail.type_url.ends_with("/google.rpc.ErrorInfo"));
    let info = infos.filter_map(|detail| ErrorInfo::decode(detail.value.as_slice()).ok()).next().unwrap_or_default();
    let code = Code::from_number(packed.code);
    let reason = if info.reason.is_empty() { code.name() } else { &info.reason };
    let mut error = RequestError::new(code, reason, packed.message.clone());
    error.at = info.metadata.get("at").cloned().unwrap_or_default();
    if info.metadata.get("delivered").is_some_and(|word| word == "no") {
        error.delivered = Delivered::No;
    }
    error
}

/// An error as a status.
pub(crate) fn status(error: &RequestError) -> Status {
    let sayable = |text: &str| text.chars().take(TEXT).collect::<String>();
    let mut info = ErrorInfo { reason: sayable(&error.reason), domain: DOMAIN.into(), ..ErrorInfo::default() };
    if !error.at.is_empty() {
        info.metadata.insert("at".into(), error.at.clone());
    }
    if error.code == Code::Unavailable {
        let delivered = if error.delivered == Delivered::No { "no" } else { "unknown" };
        info.metadata.insert("delivered".into(), delivered.into());
    }
    let detail = prost_types::Any { type_url: ERROR_INFO.into(), value: info.encode_to_vec() };
    Status { code: error.code as i32, message: sayable(&error.message), details: vec![detail] }
}
