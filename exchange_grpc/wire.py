"""Messages and frames <-> bytes, and `value` <-> `json`: the only door to generated code.

A message that was received keeps the protobuf object it was read from (`Message.wire`), so that one
that is only passed on is never decoded, and its unknown fields travel on. A `google.protobuf.Value`
lives no longer than this module: it becomes JSON when it is read, and JSON becomes `Value` only for
somebody who asked that way.
"""

import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from exchange.v1 import frame_pb2, message_pb2

from .errors import Code, InvalidMessage, LimitExceeded, RequestError, request_error
from .frames import (
    Ack,
    Answer,
    Batch,
    Credit,
    Found,
    Frame,
    Goodbye,
    Hello,
    Interest,
    Introduction,
    Ping,
    Pong,
    Query,
    Refusal,
    Reject,
    Target,
    Unknown,
    Welcome,
)
from .limits import (
    CAUSES,
    CONTENT_TYPE_BYTES,
    FRAME_BYTES,
    HEADERS_BYTES,
    HOPS,
    ID_LENGTH,
    LOST_NAMES,
    MESSAGE_BYTES,
    MESSAGE_SECONDS,
    PATH,
    PAYLOAD_DEPTH,
    REQUEST_SECONDS,
    TRACE_BYTES,
)
from .message import NO_TRACE, Hop, Kind, Message, Outcome, Trace, microseconds
from .patterns import check_id, check_name, check_pattern, shown
from .payload import BINARY, JSON, NULL, decode_json, encode_json

Packed = message_pb2.Message  # a message ready to be put into a batch

DOMAIN = "exchange"  # of google.rpc.ErrorInfo
EXACT = 2**53  # up to here a double tells every whole number from its neighbours
_KINDS = {0: Kind.SEND, **{int(kind): kind for kind in Kind}}
_OUTCOMES: dict[int, Outcome | None] = {0: None, **{int(outcome): outcome for outcome in Outcome}}
_LIFE = {kind: REQUEST_SECONDS if kind is Kind.REQUEST else MESSAGE_SECONDS for kind in Kind}
_MESSAGE_ID = re.compile(r"([A-Za-z0-9_-]{1,64})\.[0-9]{1,20}\.[0-9]{1,20}")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_DELIVERED = {"no": False}
_TIME_LEFT_BYTES = 11  # of `ttl_us`, which is written when the message leaves, after its size was checked
_SESSION_ID, _TOKEN = 64, 64  # characters and bytes: ours are shorter
_TEXT = 1_000  # characters of an error that are sent: a sentence for people, whoever wrote it


# ---------------------------------------------------------------------------------------------- payload


def value_to_json(value: Value) -> bytes:
    """The JSON bytes of a `Value`. Raises InvalidMessage for numbers that are not exact, LimitExceeded for depth."""
    return encode_json(_from_value(value, PAYLOAD_DEPTH))


def _from_value(value: Value, depth: int) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        if number.is_integer():
            if abs(number) > EXACT:
                raise InvalidMessage(f"{number!r} is beyond 2^53, where `value` is not exact: send it as `json`")
            return int(number)
        if number != number or number in (float("inf"), float("-inf")):
            raise InvalidMessage(f"{number} cannot be said in JSON")
        return number
    if kind == "bool_value":
        return value.bool_value
    if kind is None or kind == "null_value":
        return None
    if depth == 0:
        raise LimitExceeded(f"the payload is nested deeper than {PAYLOAD_DEPTH} levels")
    if kind == "list_value":
        return [_from_value(item, depth - 1) for item in value.list_value.values]
    return {key: _from_value(item, depth - 1) for key, item in value.struct_value.fields.items()}


def json_to_value(data: bytes) -> Value:
    """The `Value` of JSON bytes. Raises InvalidMessage for integers beyond 2^53: they are never rounded."""
    value = Value()
    _into_value(decode_json(data), value)
    return value


def _into_value(item: Any, value: Value) -> None:
    if item is None:
        value.null_value = 0  # type: ignore[assignment]  # NULL_VALUE; the stub wants the enum's own type
    elif isinstance(item, bool):
        value.bool_value = item
    elif isinstance(item, str):
        value.string_value = item
    elif isinstance(item, int):
        if abs(item) > EXACT:
            raise InvalidMessage(f"{item} is beyond 2^53, where `value` is not exact: ask with `json`")
        value.number_value = item
    elif isinstance(item, float):
        value.number_value = item
    elif isinstance(item, dict):
        fields = value.struct_value.fields
        value.struct_value.SetInParent()
        for key, below in item.items():
            _into_value(below, fields[key])
    else:
        value.list_value.SetInParent()
        for below in item:
            _into_value(below, value.list_value.values.add())


# ---------------------------------------------------------------------------------------------- messages


def read_message(packed: Packed, now: float) -> Message:
    """The message in `packed`. Raises InvalidMessage. `id`, `from_` and hops may still be empty."""
    kind = _KINDS.get(packed.kind)
    if kind is None:
        raise InvalidMessage(f"no such kind of message: {packed.kind}")
    name, from_, to, id = check_name(packed.name), getattr(packed, "from"), packed.to, packed.id
    if from_:
        check_id(from_)
    if to:
        check_id(to)
    if id:
        origin = _MESSAGE_ID.fullmatch(id)
        if origin is None or (from_ and origin[1] != from_):
            raise InvalidMessage(f"{shown(id)} is no message id of {from_ or 'anybody'}: <exchange>.<epoch>.<n>")
    form = packed.WhichOneof("payload")
    payload, content_type = NULL, JSON
    if form == "json":
        payload = packed.json
    elif form == "value":
        payload = value_to_json(packed.value)
        packed.json = payload  # takes the place of `value`
    elif form == "data":
        payload, content_type = packed.data.content, packed.data.content_type or BINARY
        if len(content_type) > CONTENT_TYPE_BYTES:
            raise LimitExceeded(f"the content type is longer than {CONTENT_TYPE_BYTES} bytes")
    ttl = packed.ttl_us
    if ttl < 0:
        raise InvalidMessage("the time left (`ttl_us`) is negative")
    message = Message(
        id,
        name,
        kind,
        from_,
        to,
        payload,
        content_type,
        _read_trace(packed.trace) if packed.HasField("trace") else NO_TRACE,
        packed.timestamp_us / 1e6,
        now + (ttl / 1e6 if ttl else _LIFE[kind]),
        wire=packed,
    )
    if packed.headers:
        message.headers = check_headers(dict(packed.headers))
    if packed.reply_to:
        if not _MESSAGE_ID.fullmatch(packed.reply_to):
            raise InvalidMessage(f"{shown(packed.reply_to)} is no message id")
        message.reply_to = packed.reply_to
    elif kind in (Kind.REPLY, Kind.CANCEL, Kind.OUTCOME):
        raise InvalidMessage(f"a {kind.name.lower()} must say what it belongs to (`reply_to`)")
    message.last = packed.last
    if packed.HasField("error"):
        message.error = read_status(packed.error)
    message.outcome = _OUTCOMES.get(packed.outcome)
    message.many = packed.many and kind is Kind.REQUEST
    if packed.HasField("end"):
        message.lost = tuple(map(check_id, packed.end.lost[:LOST_NAMES]))
    return message


def _read_trace(packed: message_pb2.Trace) -> Trace:
    if packed.ByteSize() > TRACE_BYTES:
        raise LimitExceeded(f"the trace is larger than {TRACE_BYTES} bytes")
    hops = tuple([Hop(hop.exchange, hop.at_us / 1e6) for hop in packed.hops])
    if len(hops) > HOPS or len(packed.causes) > CAUSES or len(packed.path) > PATH:
        raise LimitExceeded(f"the trace has more than {HOPS} hops, {CAUSES} causes or {PATH} exchanges in its path")
    for hop in hops:
        check_id(hop.exchange)
    for exchange in packed.path:
        check_id(exchange)
    for id in (*packed.causes, packed.root):
        if id and not _MESSAGE_ID.fullmatch(id):
            raise InvalidMessage(f"{shown(id)} is no message id")
    traceparent = packed.traceparent
    if traceparent and not _TRACEPARENT.fullmatch(traceparent):
        traceparent = ""  # W3C: one that cannot be read is not passed on
    return Trace(hops, tuple(packed.causes), packed.root, tuple(packed.path), packed.cut, traceparent)


def check_headers(headers: dict[str, str]) -> dict[str, str]:
    """`headers`, if they are strings within their limit. Raises InvalidMessage."""
    size = 0
    for key, value in headers.items():
        if not isinstance(key, str) or not isinstance(value, str) or not key:
            raise InvalidMessage("headers are strings with keys that are not empty")
        try:
            size += len(key.encode()) + len(value.encode())
        except UnicodeEncodeError:
            raise InvalidMessage(f"the header {shown(key)} has half a surrogate pair, which UTF-8 cannot say") from None
    if size > HEADERS_BYTES:
        raise LimitExceeded(f"the headers are larger than {HEADERS_BYTES} bytes")
    return headers


def pack(message: Message, *, as_value: bool = False) -> Packed:
    """`message` as protobuf, with all but its time left. Raises InvalidMessage, LimitExceeded.

    What was received is packed into the object it was read from: only its new hops are added.
    """
    packed = message.wire if message.wire is not None else _pack_anew(message)
    message.wire = packed
    if not packed.id:
        packed.id = message.id
    if not getattr(packed, "from"):
        setattr(packed, "from", message.from_)
    known = len(packed.trace.hops)
    for hop in message.hop_trace.hops[known:]:
        packed.trace.hops.add(exchange=hop.exchange, at_us=microseconds(hop.at))
    if as_value and message.content_type == JSON:
        copy = Packed()
        copy.CopyFrom(packed)
        copy.value.CopyFrom(json_to_value(message.payload))
        packed = copy
    check_size(packed, more=_TIME_LEFT_BYTES)
    return packed


def check_size(packed: Packed, *, more: int = 0) -> None:
    """Raises LimitExceeded for a message that is too large, once `more` bytes are added."""
    if packed.ByteSize() + more > MESSAGE_BYTES:
        raise LimitExceeded(f"the message is larger than {MESSAGE_BYTES} bytes")


def _pack_anew(message: Message) -> Packed:
    trace = message.hop_trace
    packed = Packed(
        id=message.id,
        name=message.name,
        to=message.to,
        kind=int(message.kind),  # type: ignore[arg-type]  # the stub wants the enum's own type
        timestamp_us=microseconds(message.timestamp),
        reply_to=message.reply_to,
        last=message.last,
        trace=message_pb2.Trace(
            causes=trace.causes, root=trace.root, path=trace.path, cut=trace.cut, traceparent=trace.traceparent
        ),
    )
    setattr(packed, "from", message.from_)  # a keyword of Python
    if message.content_type == JSON:
        packed.json = message.payload
    else:
        packed.data.content = message.payload
        packed.data.content_type = message.content_type
    if message.headers:
        packed.headers.update(message.headers)
    if message.error is not None:
        packed.error.CopyFrom(status(message.error))
    if message.outcome is not None:
        packed.outcome = int(message.outcome)  # type: ignore[assignment]
    if message.many:
        packed.many = True
    if message.lost is not None:
        packed.end.lost.extend(message.lost)
    return packed


def read_status(packed: Status) -> RequestError:
    """The error that a `google.rpc.Status` stands for."""
    info = ErrorInfo()
    for detail in packed.details:
        try:
            if detail.Unpack(info):
                break
        except DecodeError:
            continue  # a foreign detail that lies about its type: the status itself still counts
    try:
        code = Code(packed.code)
    except ValueError:
        code = Code.UNKNOWN
    return request_error(
        code,
        packed.message,
        reason=info.reason or code.name,
        at=info.metadata.get("at", ""),
        delivered=_DELIVERED.get(info.metadata.get("delivered", "")),
    )


def status(error: RequestError) -> Status:
    """`error` as a `google.rpc.Status`."""
    info = ErrorInfo(reason=_sayable(error.reason), domain=DOMAIN)
    if error.at:
        info.metadata["at"] = error.at
    if error.code == Code.UNAVAILABLE:
        info.metadata["delivered"] = "no" if error.delivered is False else "unknown"
    detail = AnyPb()
    detail.Pack(info)
    return Status(code=int(error.code), message=_sayable(error.message), details=[detail])


def _sayable(text: str) -> str:
    """A text of whoever raised the error, as far as it can be sent: an error must always reach its caller."""
    return text[:_TEXT].encode("utf-8", "replace").decode()


# ------------------------------------------------------------------------------------------------ frames


def decode(data: bytes, now: float) -> Frame:
    """The frame in `data`. Raises InvalidMessage for a frame that cannot be taken as a whole."""
    if len(data) > FRAME_BYTES:
        raise LimitExceeded(f"the frame is larger than {FRAME_BYTES} bytes")
    try:
        packed = frame_pb2.Frame.FromString(data)
    except DecodeError:
        raise InvalidMessage("the frame cannot be parsed") from None
    kind = packed.WhichOneof("kind")
    if kind == "batch":
        return _read_batch(packed.batch, now, may_be_large=len(data) > MESSAGE_BYTES)
    if kind == "ack":
        return Ack(packed.ack.seq)
    if kind == "credit":
        return Credit(packed.credit.seq, packed.credit.bytes)
    if kind == "ping":
        return Ping(packed.ping.nonce)
    if kind == "pong":
        return Pong(packed.pong.nonce)
    if kind == "hello":
        return Hello(_read_introduction(packed.hello))
    if kind == "welcome":
        return Welcome(_read_introduction(packed.welcome))
    if kind == "interest":
        interest = packed.interest
        return Interest(
            interest.revision,
            tuple(map(check_name, interest.added.handles)),
            tuple(map(check_pattern, interest.added.subscribes)),
            tuple(map(check_name, interest.removed.handles)),
            tuple(map(check_pattern, interest.removed.subscribes)),
            interest.relay if interest.HasField("relay") else None,
        )
    if kind == "query":
        return Query(_check_question(packed.query.id), _read_target(packed.query), min(packed.query.ttl, HOPS))
    if kind == "answer":
        answer = packed.answer
        found = Found(answer.found) if answer.found in (1, 2) else Found.INCOMPLETE
        id = _check_question(answer.id) if answer.id else ""
        return Answer(id, _read_target(answer), found, min(answer.cost, HOPS))  # further than any message goes
    if kind == "reject":
        return Reject(packed.reject.seq, packed.reject.id, read_status(packed.reject.status))
    if kind == "goodbye":
        goodbye = packed.goodbye
        error = read_status(goodbye.status)
        return Goodbye(
            error.code,
            error.message,
            goodbye.retry_after_ms,
            goodbye.stay_away,
            goodbye.exchange[:ID_LENGTH],
            goodbye.received,
        )
    return Unknown(kind or "")


def _read_batch(batch: frame_pb2.Batch, now: float, *, may_be_large: bool) -> Batch:
    messages: list[Message | Refusal] = []
    used_value = False
    for packed in batch.messages:
        used_value = used_value or packed.HasField("value")
        try:
            if may_be_large:
                check_size(packed)
            messages.append(read_message(packed, now))
        except InvalidMessage as error:
            messages.append(Refusal(packed.id if len(packed.id) <= 128 else "", refused(error)))
    return Batch(batch.seq, messages, used_value)


def refused(error: InvalidMessage) -> RequestError:
    """What whoever sent a message hears when it broke a rule."""
    if isinstance(error, LimitExceeded):
        return request_error(Code.OUT_OF_RANGE, str(error), reason="LIMIT_EXCEEDED", delivered=False)
    return request_error(Code.INVALID_ARGUMENT, str(error), reason="INVALID_MESSAGE", delivered=False)


def _read_introduction(packed: frame_pb2.Hello | frame_pb2.Welcome) -> Introduction:
    return Introduction(
        check_id(packed.exchange),
        packed.epoch,
        packed.protocol or 1,
        tuple(packed.features),
        packed.agent[:200],
        packed.relay,
        packed.interest.revision,
        tuple(map(check_name, packed.interest.handles)),
        tuple(map(check_pattern, packed.interest.subscribes)),
        tuple(map(check_name, packed.interest.exports)),
        packed.limits.message_bytes or MESSAGE_BYTES,
        packed.limits.frame_bytes or FRAME_BYTES,
        packed.session[:_SESSION_ID],
        packed.resume_token[:_TOKEN],
        packed.received,
        packed.received_bytes,
        Credit(packed.credit.seq, packed.credit.bytes) if packed.HasField("credit") else None,
        isinstance(packed, frame_pb2.Welcome) and packed.recovered,
    )


def _read_target(packed: frame_pb2.Query | frame_pb2.Answer) -> Target:
    kind = packed.WhichOneof("target")
    if kind == "name":
        return Target("name", check_name(packed.name))
    if kind == "exchange":
        return Target("exchange", check_id(packed.exchange))
    raise InvalidMessage("a question names what it looks for")


def _check_question(id: str) -> str:
    if not id or len(id) > 128 or not id.isascii() or not id.isprintable():
        raise InvalidMessage(f"{shown(id)} is no id of a question")
    return id


def encode_batch(seq: int, messages: Iterable[Packed]) -> bytes:
    """The bytes of a Batch frame."""
    frame = frame_pb2.Frame()
    frame.batch.seq = seq
    frame.batch.messages.extend(messages)
    return frame.SerializeToString()


def encode(frame: Frame) -> bytes:
    """The bytes of any frame but a Batch."""
    packed = frame_pb2.Frame()
    match frame:
        case Hello(me):
            _write_introduction(packed.hello, me)
        case Welcome(me):
            _write_introduction(packed.welcome, me)
        case Ack(seq):
            packed.ack.SetInParent()
            packed.ack.seq = seq
        case Credit(seq, size):
            packed.credit.SetInParent()
            packed.credit.seq, packed.credit.bytes = seq, size
        case Ping(nonce):
            packed.ping.SetInParent()
            packed.ping.nonce = nonce
        case Pong(nonce):
            packed.pong.SetInParent()
            packed.pong.nonce = nonce
        case Interest():
            interest = packed.interest
            interest.revision = frame.revision
            interest.added.handles.extend(frame.handles)
            interest.added.subscribes.extend(frame.subscribes)
            interest.removed.handles.extend(frame.no_longer_handles)
            interest.removed.subscribes.extend(frame.no_longer_subscribes)
            if frame.relay is not None:
                interest.relay = frame.relay
        case Query(id, target, ttl):
            packed.query.id, packed.query.ttl = id, ttl
            setattr(packed.query, target.kind, target.key)
        case Answer(id, target, found, cost):
            packed.answer.id, packed.answer.cost = id, cost
            packed.answer.found = int(found)  # type: ignore[assignment]
            setattr(packed.answer, target.kind, target.key)
        case Reject(seq, id, error):
            packed.reject.seq, packed.reject.id = seq, id
            packed.reject.status.CopyFrom(status(error))
        case Goodbye():
            packed.goodbye.status.code, packed.goodbye.status.message = int(frame.code), frame.message
            packed.goodbye.retry_after_ms, packed.goodbye.stay_away = frame.retry_after_ms, frame.stay_away
            packed.goodbye.exchange, packed.goodbye.received = frame.exchange, frame.received
        case _:
            raise TypeError(f"not a frame that is sent: {frame!r}")
    return packed.SerializeToString()


def _write_introduction(packed: frame_pb2.Hello | frame_pb2.Welcome, me: Introduction) -> None:
    packed.exchange, packed.epoch, packed.protocol = me.exchange, me.epoch, me.protocol
    packed.features.extend(me.features)
    packed.agent, packed.relay = me.agent, me.relay
    packed.interest.revision = me.revision
    packed.interest.handles.extend(me.handles)
    packed.interest.subscribes.extend(me.subscribes)
    packed.interest.exports.extend(me.exports)
    packed.limits.message_bytes, packed.limits.frame_bytes = me.message_bytes, me.frame_bytes
    packed.session, packed.resume_token = me.session, me.token
    packed.received, packed.received_bytes = me.received, me.received_bytes
    if me.credit is not None:
        packed.credit.SetInParent()
        packed.credit.seq, packed.credit.bytes = me.credit.seq, me.credit.bytes
    if isinstance(packed, frame_pb2.Welcome):
        packed.recovered = me.recovered
