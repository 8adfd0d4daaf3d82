"""Messages and frames <-> bytes, and `value` <-> `json`: the only door to generated code.

A message that was received keeps the bytes it was read from (`Message.wire`). One that is only passed
on is never written again: its bytes leave as they came, unknown fields included, with one more hop after
them. That works because protobuf joins what is concatenated: lists go on, of a single field the last
one counts. For the same reason a new message may be written in parts, those that all have by hand, and
the others by the generated code; the time left is the last part, added when it leaves.

All that must be checked is read at once, all else when somebody asks for it (`Received`).

A `google.protobuf.Value` lives no longer than this module: it becomes JSON when it is read, and JSON
becomes `Value` only for somebody who asked that way.
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import orjson
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
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
    FRAME_MESSAGES,
    HEADERS_BYTES,
    HOPS,
    ID_LENGTH,
    LOST_NAMES,
    MESSAGE_BYTES,
    MESSAGE_SECONDS,
    PATH,
    PAYLOAD_DEPTH,
    REQUEST_SECONDS,
    TEXT_ITEMS,
    TRACE_BYTES,
)
from .message import NO_HEADERS, UNREAD, Kind, Message, Outcome, microseconds
from .patterns import check_id, check_name, check_pattern, shown
from .payload import BINARY, JSON, NULL, decode_json, encode_json

Packed = message_pb2.Message

DOMAIN = "exchange"  # of google.rpc.ErrorInfo
EXACT = 2**53  # up to here a double tells every whole number from its neighbours
_KINDS = {0: Kind.SEND, **{int(kind): kind for kind in Kind}}
_OUTCOMES: dict[int, Outcome | None] = {0: None, **{int(outcome): outcome for outcome in Outcome}}
_LIFE = {kind: REQUEST_SECONDS if kind is Kind.REQUEST else MESSAGE_SECONDS for kind in Kind}
_MESSAGE_ID = re.compile(r"([A-Za-z0-9_-]{1,64})\.[0-9]{1,20}\.[0-9]{1,20}")
_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_REQUEST = Kind.REQUEST  # 3.11 takes ten times as long to find a member of an enum as a name
_ABOUT_ANOTHER = {Kind.REPLY, Kind.CANCEL, Kind.OUTCOME}
_new = object.__new__
_origins: dict[str, str] = {}  # what the ids of one exchange begin with -> its own id
_ORIGINS = 8_192  # of them are remembered
_LONG_TRACE = f"the trace has more than {HOPS} hops, {CAUSES} causes or {PATH} exchanges in its path"
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


class Received(Message):
    """A message that was read: what nobody had to check is read when it is asked for, once."""

    __slots__ = ("_packed", "used_value")

    _packed: Packed
    used_value: bool  # its payload came as `value`

    def __getattr__(self, name: str) -> Any:
        read = _LATE.get(name)
        if read is None:
            raise AttributeError(f"a message has no {name!r}")
        value = read(self)
        setattr(self, name, value)
        return value


def _payload(message: Received) -> bytes:
    packed = message._packed
    form = packed.WhichOneof("payload")
    return packed.json if form == "json" else packed.data.content if form == "data" else NULL


def _content_type(message: Received) -> str:
    packed = message._packed
    return packed.data.content_type or BINARY if packed.HasField("data") else JSON


def _error(message: Received) -> RequestError | None:
    packed = message._packed
    return read_status(packed.error) if packed.HasField("error") else None


def _parent(message: Received) -> str:
    text = message._packed.trace.traceparent
    return text if _TRACEPARENT.fullmatch(text) else ""  # W3C: one that cannot be read is not passed on


def _wire(message: Received) -> bytes:
    """Its bytes once more, where it has not brought them or something was filled in."""
    packed = message._packed
    packed.id = message.id
    setattr(packed, "from", message.from_)  # a keyword of Python
    return packed.SerializeToString()


_LATE: dict[str, Callable[[Received], Any]] = {
    "payload": _payload,
    "content_type": _content_type,
    "timestamp": lambda message: message._packed.timestamp_us / 1e6,
    "last": lambda message: message._packed.last,
    "many": lambda message: False,  # a request has it already
    "error": _error,
    "outcome": lambda message: _OUTCOMES.get(message._packed.outcome),
    "cut": lambda message: message._packed.trace.cut,
    "_traceparent": _parent,
    "wire": _wire,
    "keeper": lambda message: None,
    "seq": lambda message: 0,
    "_holds": lambda message: 0,
}


def read_message(packed: Packed, now: float, data: bytes | None = None) -> Received:
    """The message in `packed`, which was read from `data`. Raises InvalidMessage.

    `id`, `from_` and hops may still be empty: whoever knows the peer fills them in.
    """
    kind = _KINDS.get(packed.kind)
    if kind is None:
        raise InvalidMessage(f"no such kind of message: {packed.kind}")
    message = _new(Received)
    message._packed = packed
    message.kind = kind
    message.name = check_name(packed.name)
    message.id = id = packed.id
    message.from_ = from_ = getattr(packed, "from")
    message.to = to = packed.to
    message._value = UNREAD
    if id:
        origin = _origin(id)
        if from_ and from_ != origin:
            raise InvalidMessage(f"{shown(id)} is no message id of {from_}")
    elif from_:
        check_id(from_)
    if to:
        check_id(to)
    ttl = packed.ttl_us
    if ttl < 0:
        raise InvalidMessage("the time left (`ttl_us`) is negative")
    message.deadline = now + (ttl / 1e6 if ttl else _LIFE[kind])
    message.used_value = not packed.HasField("json") and _read_other_payload(packed)
    if data is not None and id and from_ and not message.used_value:
        message.wire = data  # else it is written anew
    _read_trace(message, packed.trace, (packed.ByteSize() if data is None else len(data)) > TRACE_BYTES)
    headers = packed.headers
    message.headers = check_headers(dict(headers)) if headers else NO_HEADERS
    if kind is _REQUEST:
        message.many = packed.many
    message.lost = None
    message.reply_to = reply_to = packed.reply_to
    if reply_to:
        _origin(reply_to)
        message.last = packed.last
        if packed.HasField("end"):
            message.lost = tuple(map(check_id, packed.end.lost[:LOST_NAMES]))
    elif kind in _ABOUT_ANOTHER:
        raise InvalidMessage(f"a {kind.name.lower()} must say what it belongs to (`reply_to`)")
    return message


def _origin(id: str) -> str:
    """The exchange that made the message with this id. Raises InvalidMessage if it is no id of a message."""
    maker, _, number = id.rpartition(".")
    origin = _origins.get(maker)
    if origin is not None and number.isdecimal() and number.isascii() and len(number) <= 20:
        return origin
    whole = _MESSAGE_ID.fullmatch(id)
    if whole is None:
        raise InvalidMessage(f"{shown(id)} is no message id: <exchange>.<epoch>.<n>")
    if len(_origins) >= _ORIGINS:
        _origins.clear()
    origin = _origins[maker] = whole[1]
    return origin


def _read_other_payload(packed: Packed) -> bool:
    """Check what is not `json`. True if it is `value`, which becomes `json`."""
    form = packed.WhichOneof("payload")
    if form == "value":
        packed.json = value_to_json(packed.value)
    elif form == "data" and len(packed.data.content_type) > CONTENT_TYPE_BYTES:
        raise LimitExceeded(f"the content type is longer than {CONTENT_TYPE_BYTES} bytes")
    return form == "value"


def _read_trace(message: Received, packed: message_pb2.Trace, may_be_large: bool) -> None:
    # A list of protobuf is asked for its length and its items: to iterate over it costs three times as much.
    if may_be_large and packed.ByteSize() > TRACE_BYTES:
        raise LimitExceeded(f"the trace is larger than {TRACE_BYTES} bytes")
    hops, causes, path = packed.hops, packed.causes, packed.path
    count = message.known = len(hops)
    if count == 1:
        hop = hops[0]
        message.way = (check_id(hop.exchange),)
        message.times = (hop.at_us / 1e6,)
    elif count <= HOPS:
        all_hops = hops[:]
        message.way = tuple([check_id(hop.exchange) for hop in all_hops])
        message.times = tuple([hop.at_us / 1e6 for hop in all_hops])
    else:
        raise LimitExceeded(_LONG_TRACE)
    message.causes = message.path = ()
    message._root = root = packed.root
    if root:
        _origin(root)
    if len(causes):
        if len(causes) > CAUSES:
            raise LimitExceeded(_LONG_TRACE)
        message.causes = tuple(causes[:])
        for id in message.causes:
            _origin(id)
    if len(path):
        if len(path) > PATH:
            raise LimitExceeded(_LONG_TRACE)
        message.path = tuple(map(check_id, path[:]))


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


def pack_bytes(message: Message, *, as_value: bool = False) -> bytes:
    """The bytes of `message`, without the time it has left. Raises InvalidMessage, LimitExceeded.

    They are kept: packing it once more, for another peer or after a further hop, costs next to nothing.
    """
    data, known, hops = message.wire, message.known, len(message.way)
    if data is None:
        data = message.wire = _pack_anew(message)
        message.known = hops
    elif known < hops:
        for at in range(known, hops):  # nearly always one
            data += _hop(message.way[at], message.times[at])
        message.wire = data
        message.known = hops
    if as_value and message.content_type == JSON:
        packed = Packed.FromString(data)
        packed.value.CopyFrom(json_to_value(message.payload))
        data = packed.SerializeToString()
    if len(data) + _TIME_LEFT_BYTES > MESSAGE_BYTES:
        raise LimitExceeded(f"the message is larger than {MESSAGE_BYTES} bytes")
    return data


def pack(message: Message, *, as_value: bool = False) -> Packed:
    """`message` as the doors show it: with its trace context, and without its time left.

    Raises InvalidMessage, LimitExceeded.
    """
    packed = Packed.FromString(pack_bytes(message, as_value=as_value))
    if message.id:
        packed.trace.traceparent = message.traceparent
        check_size(packed)
    return packed


def check_size(packed: Packed) -> None:
    """Raises LimitExceeded for a message that is too large."""
    if packed.ByteSize() > MESSAGE_BYTES:
        raise LimitExceeded(f"the message is larger than {MESSAGE_BYTES} bytes")


def _varint(number: int) -> bytes:
    out = bytearray()
    number &= _LARGEST  # of a negative one, the complement
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _key(of: Any, field: str) -> bytes:
    """What stands before the value of a field: its number, and that bytes or a number follow."""
    descriptor = of.DESCRIPTOR.fields_by_name[field]
    return _varint(descriptor.number << 3 | (0 if descriptor.type in _NUMBERS else 2))


def _field(key: bytes, content: bytes) -> bytes:
    size = len(content)
    return key + (_SIZES[size] if size < len(_SIZES) else _varint(size)) + content


def _text(key: bytes, text: str) -> bytes:
    return _field(key, text.encode()) if text else b""


_LARGEST = 2**64 - 1
_NUMBERS = {FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_BOOL}
_SIZES = [_varint(size) for size in range(1_024)]  # of nearly all that is written
_ID, _NAME, _FROM, _TO, _KIND, _JSON, _TRACE, _TIMESTAMP, _REPLY_TO, _LAST, _TIME_LEFT = (
    _key(Packed, field)
    for field in (
        "id", "name", "from", "to", "kind", "json", "trace", "timestamp_us", "reply_to", "last", "ttl_us",
    )
)  # fmt: skip
_HOPS, _CAUSES, _ROOT, _PATH = (_key(message_pb2.Trace, field) for field in ("hops", "causes", "root", "path"))
_EXCHANGE, _AT = (_key(message_pb2.Hop, field) for field in ("exchange", "at_us"))


@lru_cache(256)
def _when(seconds: float) -> bytes:
    return _varint(microseconds(seconds))


@lru_cache(256)  # all messages of a batch get here at once
def _hop(exchange: str, when: float) -> bytes:
    """A trace of one hop."""
    return _field(_TRACE, _field(_HOPS, _text(_EXCHANGE, exchange) + _AT + _when(when)))


def _time_left(us: int) -> bytes:
    if 2**21 <= us < 2**28:  # 2 seconds to 4 minutes, as nearly all have
        return _TIME_LEFT + bytes((us & 127 | 128, us >> 7 & 127 | 128, us >> 14 & 127 | 128, us >> 21))
    return _TIME_LEFT + _varint(us)


@lru_cache(4_096)
def _address(name: str, from_: str, to: str, kind: Kind) -> bytes:
    return _text(_NAME, name) + _text(_FROM, from_) + _text(_TO, to) + _KIND + _varint(kind)


def _pack_anew(message: Message) -> bytes:
    way, content_type, reply_to = message.way, message.content_type, message.reply_to
    data = _text(_ID, message.id) + _address(message.name, message.from_, message.to, message.kind)
    if content_type == JSON:
        data += _field(_JSON, message.payload)
    for at in range(len(way)):
        data += _hop(way[at], message.times[at])
    if message._root or message.causes or message.path:
        behind = [_text(_CAUSES, id) for id in message.causes]
        behind.append(_text(_ROOT, message._root))
        behind += [_text(_PATH, exchange) for exchange in message.path]
        data += _field(_TRACE, b"".join(behind))
    if message.timestamp:
        data += _TIMESTAMP + _when(message.timestamp)
    if reply_to:
        data += _text(_REPLY_TO, reply_to)
    if message.last:
        data += _LAST + b"\x01"
    if (
        message.headers
        or message.error is not None
        or content_type != JSON
        or message.many
        or message.outcome is not None
        or message.lost is not None
        or message.cut
        or message._traceparent
    ):
        data += _pack_rest(message)
    return data


def _pack_rest(message: Message) -> bytes:
    """What few messages have."""
    packed = Packed(many=message.many, headers=message.headers)
    if message.content_type != JSON:
        packed.data.content, packed.data.content_type = message.payload, message.content_type
    if message.error is not None:
        packed.error.CopyFrom(status(message.error))
    if message.outcome is not None:
        packed.outcome = int(message.outcome)  # type: ignore[assignment]  # the stub wants the enum's own type
    if message.lost is not None:
        packed.end.lost.extend(message.lost)
    if message.cut:
        packed.trace.cut = True
    if message._traceparent:
        packed.trace.traceparent = message._traceparent
    return packed.SerializeToString(deterministic=True)


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
    detail.Pack(info, deterministic=True)
    return Status(code=int(error.code), message=_sayable(error.message), details=[detail])


def _sayable(text: str) -> str:
    """A text of whoever raised the error, as far as it can be sent: an error must always reach its caller."""
    return text[:_TEXT].encode("utf-8", "replace").decode()


# ------------------------------------------------------------------------------------------------ frames


def _frame_of_bytes() -> Any:
    """The class of frames as the schema has them, but for this: the messages of a batch are left as bytes."""
    file = descriptor_pb2.FileDescriptorProto(name="exchange/v1/bytes.proto", package="exchange.v1.bytes")
    file.syntax = "proto3"
    for real in (frame_pb2.Batch, frame_pb2.Frame):
        real.DESCRIPTOR.CopyToProto(file.message_type.add())
    batch, frame = file.message_type
    (messages,) = (field for field in batch.field if field.name == "messages")
    messages.type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    messages.ClearField("type_name")
    (kind,) = (field for field in frame.field if field.name == "batch")
    kind.type_name = ".exchange.v1.bytes.Batch"
    kind.ClearField("oneof_index")
    del frame.field[:], frame.oneof_decl[:]
    frame.field.append(kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("exchange.v1.bytes.Frame"))


_Bytes = _frame_of_bytes()
_MESSAGES_KEYS = (b"\x12", b"\x92")  # one is before each message of a Batch: parsers take a longer varint as well


def decode(data: bytes, now: float) -> Frame:
    """The frame in `data`. Raises InvalidMessage for a frame that cannot be taken as a whole."""
    if len(data) > FRAME_BYTES:
        raise LimitExceeded(f"the frame is larger than {FRAME_BYTES} bytes")
    try:
        # Nearly always this is cheaper to know than how many there are.
        if sum(map(data.count, _MESSAGES_KEYS)) > FRAME_MESSAGES:
            _check_number(data)
        packed = frame_pb2.Frame.FromString(data)
    except DecodeError:
        raise InvalidMessage("the frame cannot be parsed") from None
    kind = packed.WhichOneof("kind")
    if kind == "batch":
        return _read_batch(packed.batch, data, now)
    if kind == "ack":
        return Ack(packed.ack.seq, packed.ack.settled)
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


def _check_number(data: bytes) -> None:
    """An empty message has two bytes, and takes a thousand times as much when it is parsed."""
    if len(_Bytes.FromString(data).batch.messages) > FRAME_MESSAGES:
        raise LimitExceeded(f"the frame has more than {FRAME_MESSAGES} messages")


def _read_batch(batch: frame_pb2.Batch, data: bytes, now: float) -> Batch:
    messages: list[Message | Refusal] = []
    used_value = False
    all_packed, all_bytes = batch.messages[:], _Bytes.FromString(data).batch.messages[:]
    if len(all_packed) != len(all_bytes):
        raise InvalidMessage("the frame is several frames in one")
    for packed, its in zip(all_packed, all_bytes, strict=True):
        try:
            if len(its) > MESSAGE_BYTES:
                check_size(packed)
            message = read_message(packed, now, its)
            messages.append(message)
            used_value = used_value or message.used_value
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


def encode_batch(seq: int, messages: Iterable[tuple[bytes, int]]) -> bytes:
    """The bytes of a Batch frame, of what `pack_bytes` gave and the microseconds that each has left."""
    frame = _Bytes()
    frame.batch.seq = seq
    frame.batch.messages.extend([data + _time_left(left) for data, left in messages])
    data: bytes = frame.SerializeToString()
    return data


def encode(frame: Frame) -> bytes:
    """The bytes of any frame but a Batch."""
    packed = frame_pb2.Frame()
    match frame:
        case Hello(me):
            _write_introduction(packed.hello, me)
        case Welcome(me):
            _write_introduction(packed.welcome, me)
        case Ack(seq, settled):
            packed.ack.SetInParent()
            packed.ack.seq, packed.ack.settled = seq, settled
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
    return packed.SerializeToString(deterministic=True)


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


# --------------------------------------------------------------------------------------- frames as proto JSON


def text_of(data: bytes) -> bytes:
    """The frame in `data` as proto JSON, with the names of the schema, in UTF-8."""
    packed = frame_pb2.Frame.FromString(data)
    try:
        fields = MessageToDict(packed, preserving_proto_field_name=True)
    except (
        TypeError,
        DecodeError,
        RecursionError,
    ):  # a detail of an error whose type nobody here knows: JSON has no bytes for it
        for status in _statuses(packed):
            known = [detail for detail in status.details if _is_known(detail)]
            del status.details[:]
            status.details.extend(known)
        fields = MessageToDict(packed, preserving_proto_field_name=True)
    text = orjson.dumps(fields)
    return orjson.dumps(_whole(fields)) if b".0" in text else text


def _whole(item: Any) -> Any:
    """Numbers of a `Value` that are whole without the `.0`, as all others write them."""
    if isinstance(item, dict):
        return {key: _whole(inner) for key, inner in item.items()}
    if isinstance(item, list):
        return [_whole(inner) for inner in item]
    return int(item) if isinstance(item, float) and item.is_integer() and abs(item) <= EXACT else item


def frame_of(text: bytes) -> bytes:
    """The frame that this proto JSON says, without fields that are unknown. Raises InvalidMessage."""
    if sum(map(text.count, (b",", b"{", b"["))) > TEXT_ITEMS:
        raise LimitExceeded(f"the frame has more than {TEXT_ITEMS} items")
    packed = frame_pb2.Frame()
    try:
        fields = orjson.loads(text)
        if not isinstance(fields, dict):
            raise ValueError
        ParseDict(fields, packed, ignore_unknown_fields=True)
    except (ParseError, ValueError, TypeError, AttributeError, RecursionError):  # its text lists all fields there are
        raise InvalidMessage("the frame cannot be parsed") from None
    return packed.SerializeToString()


def _statuses(packed: frame_pb2.Frame) -> Iterable[Status]:
    if packed.HasField("reject"):
        yield packed.reject.status
    elif packed.HasField("goodbye"):
        yield packed.goodbye.status
    for message in packed.batch.messages:
        if message.HasField("error"):
            yield message.error


def _is_known(detail: AnyPb) -> bool:
    try:
        MessageToDict(detail)
    except (TypeError, DecodeError, RecursionError):
        return False
    return True
