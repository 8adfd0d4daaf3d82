"""Messages and frames <-> bytes; `value` <-> `json` at the edge."""

import copy
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyPb
from google.protobuf.struct_pb2 import Value
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from hypothesis import given, settings
from hypothesis import strategies as st
from test_payload import TEXT, VALUES, nested

from exchange.v1 import frame_pb2, message_pb2
from exchange_grpc import wire
from exchange_grpc.errors import (
    Cancelled,
    Code,
    DeadlineExceeded,
    HandlerFailed,
    InvalidMessage,
    LimitExceeded,
    Refused,
    RequestError,
    Unavailable,
    Unhandled,
)
from exchange_grpc.frames import (
    Ack,
    Answer,
    Batch,
    Credit,
    Found,
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
from exchange_grpc.limits import (
    CAUSES,
    CONTENT_TYPE_BYTES,
    FRAME_BYTES,
    FRAME_MESSAGES,
    HEADERS_BYTES,
    HOPS,
    MESSAGE_BYTES,
    MESSAGE_SECONDS,
    PATH,
    PAYLOAD_DEPTH,
    REQUEST_SECONDS,
)
from exchange_grpc.message import (
    Context,
    Hop,
    Kind,
    Message,
    Origin,
    Outcome,
    Trace,
    merged,
    microseconds,
)
from exchange_grpc.payload import BINARY, JSON, decode_json, encode_json

NOW, WALL = 100.0, 1_700_000_000.0
NAMES = st.lists(st.text("abc-_ß日", min_size=1, max_size=5), min_size=1, max_size=4).map(".".join)
PATTERNS = st.lists(st.sampled_from(["a", "ß", "*", "**"]), min_size=1, max_size=5).map(".".join)
IDS = st.text("abcXYZ019_-", min_size=1, max_size=64)


def made(kind: Kind = Kind.SEND, name: str = "a.b", context: Context = Context(), **more: Any) -> Message:  # noqa: B008
    return Origin("me", 7, WALL).make(kind, name, context, NOW, **more)


def there(message: Message) -> message_pb2.Message:
    """`message` as the other side gets it: parsed from bytes."""
    return message_pb2.Message.FromString(wire.pack_bytes(message))


def frame(**kind: Any) -> bytes:
    return frame_pb2.Frame(**kind).SerializeToString()


def packed(**fields: Any) -> message_pb2.Message:
    """A message as a peer may write it."""
    result = message_pb2.Message(name=fields.pop("name", "a"))
    for field, value in fields.items():
        if isinstance(value, dict):
            getattr(result, field).update(value)
        elif hasattr(value, "SerializeToString"):
            getattr(result, field).CopyFrom(value)
        else:
            setattr(result, field, value)
    return result


def tag(field: int, content: bytes) -> bytes:
    """A length-delimited field, for numbers that the schema does not know."""
    key, out = field << 3 | 2, b""
    for number in (key, len(content)):
        while number > 127:
            out += bytes([number & 127 | 128])
            number >>= 7
        out += bytes([number])
    return out + content


# ------------------------------------------------------------------------------------------- messages


@given(
    kind=st.sampled_from([Kind.SEND, Kind.REQUEST, Kind.PUBLISH, Kind.BROADCAST]),
    name=NAMES,
    to=IDS | st.just(""),
    value=VALUES,
    headers=st.dictionaries(TEXT.filter(bool), TEXT, max_size=4),
    seconds=st.floats(0.001, 1_000),
    cause=st.booleans(),
)
def test_a_message_comes_back_as_it_was(
    kind: Kind, name: str, to: str, value: Any, headers: dict[str, str], seconds: float, cause: bool
) -> None:
    context = Context.of(made()) if cause else Context()
    sent = made(kind, name, context, to=to, payload=encode_json(value), headers=headers, seconds=seconds)
    bytes_ = there(sent)
    bytes_.ttl_us = round(seconds * 1e6)
    got = wire.read_message(bytes_, NOW)
    for field in ("id", "name", "kind", "from_", "to", "payload", "content_type", "headers", "last", "reply_to"):
        assert getattr(got, field) == getattr(sent, field)
    assert got.hop_trace == sent.hop_trace
    assert got.timestamp == pytest.approx(sent.timestamp, abs=1e-6)
    assert got.deadline == pytest.approx(sent.deadline, abs=1e-6)
    assert repr(got.value) == repr(value)


def test_replies_and_outcomes_come_back_as_they_were() -> None:
    request = made(Kind.REQUEST)
    error = Unavailable("lost", at="far", delivered=False)
    reply = wire.read_message(there(made(Kind.REPLY, reply_to=request.id, last=True, error=error)), NOW)
    assert (reply.kind, reply.reply_to, reply.last) == (Kind.REPLY, request.id, True)
    assert isinstance(reply.error, Unavailable)
    outcome = wire.read_message(there(made(Kind.OUTCOME, reply_to=request.id, outcome=Outcome.LOOP)), NOW)
    assert outcome.outcome is Outcome.LOOP


def test_bytes_travel_as_data() -> None:
    got = wire.read_message(there(made(payload=b"\xff\x00", content_type="image/png")), NOW)
    assert (got.payload, got.content_type, got.value) == (b"\xff\x00", "image/png", b"\xff\x00")
    got = wire.read_message(packed(data=message_pb2.Data(content=b"x")), NOW)
    assert got.content_type == BINARY


def test_what_a_message_may_leave_out() -> None:
    got = wire.read_message(packed(), NOW)
    assert (got.kind, got.value, got.from_, got.id, got.to) == (Kind.SEND, None, "", "", "")
    assert got.deadline == NOW + MESSAGE_SECONDS
    assert wire.read_message(packed(kind=2), NOW).deadline == NOW + REQUEST_SECONDS
    assert got.hops == ()
    assert dict(got.headers) == {}


HOP = message_pb2.Hop(exchange="x")
BROKEN: dict[str, dict[str, Any]] = {
    "an empty name": {"name": ""},
    "a name with a newline": {"name": "a\n"},
    "a name with NUL": {"name": "a\x00"},
    "a pattern as name": {"name": "a.*"},
    "an unknown kind": {"kind": 99},
    "a bad to": {"to": "a b"},
    "a bad from": {"from": "a.b"},
    "an id of nobody": {"id": "x"},
    "an id of somebody else": {"id": "you.1.1", "from": "me"},
    "an id with more dots": {"id": "me.1.1.1"},
    "a negative time to live": {"ttl_us": -1},
    "a header without a key": {"headers": {"": "x"}},
    "a reply to nothing": {"kind": 3},
    "a cancel of nothing": {"kind": 4},
    "an outcome of nothing": {"kind": 5},
    "a reply to no id": {"kind": 3, "reply_to": "x"},
    "a hop that is no id": {"trace": message_pb2.Trace(hops=[message_pb2.Hop(exchange="a b")])},
    "a hop without a name": {"trace": message_pb2.Trace(hops=[message_pb2.Hop()])},
    "a path that is no id": {"trace": message_pb2.Trace(path=["a.b"])},
    "a cause that is no id": {"trace": message_pb2.Trace(causes=["a"])},
    "a root that is no id": {"trace": message_pb2.Trace(root="a\nb")},
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_a_rule_is_refused(what: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        wire.read_message(packed(**BROKEN[what]), NOW)
    assert not isinstance(caught.value, LimitExceeded)
    assert str(caught.value).isprintable()


LARGE: dict[str, dict[str, Any]] = {
    "a name": {"name": "a" * 256},
    "headers": {"headers": {"a": "x" * HEADERS_BYTES}},
    "a content type": {"data": message_pb2.Data(content_type="x" * (CONTENT_TYPE_BYTES + 1))},
    "hops": {"trace": message_pb2.Trace(hops=[HOP] * (HOPS + 1))},
    "causes": {"trace": message_pb2.Trace(causes=["a.1.1"] * (CAUSES + 1))},
    "a path": {"trace": message_pb2.Trace(path=["a"] * (PATH + 1))},
    "a trace": {"trace": message_pb2.Trace(traceparent="x" * 5_000)},
    "depth": {"value": json_format.Parse(json.dumps(nested(31)), Value())},
}


@pytest.mark.parametrize("what", LARGE)
def test_what_is_too_large_is_refused_and_says_so(what: str) -> None:
    with pytest.raises(LimitExceeded):
        wire.read_message(packed(**LARGE[what]), NOW)


def test_what_just_fits() -> None:
    trace = message_pb2.Trace(hops=[HOP] * HOPS, causes=["a.1.1"] * CAUSES, path=["a"] * PATH)
    headers = {"k": "v" * (HEADERS_BYTES - 1)}
    got = wire.read_message(packed(name="é" * 127, trace=trace, headers=headers), NOW)
    assert len(got.hops) == HOPS
    assert got.headers == headers


@pytest.mark.parametrize(
    "headers", [{"a": 1}, {1: "a"}, {"": "a"}, {"a": "\ud800"}, {"\ud800": "a"}, {"a": None}, {"a": b"x"}]
)
def test_headers_that_no_message_can_have(headers: Any) -> None:
    with pytest.raises(InvalidMessage):
        wire.check_headers(headers)


def test_a_traceparent_that_cannot_be_read_is_not_taken() -> None:
    good = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    for text, expected in ((good, good), ("nonsense", ""), (good.upper().replace("1", "G"), "")):
        got = wire.read_message(packed(trace=message_pb2.Trace(traceparent=text)), NOW)
        assert got.hop_trace.traceparent == expected


def test_an_unknown_outcome_is_none() -> None:
    assert wire.read_message(packed(kind=5, reply_to="a.1.1", outcome=77), NOW).outcome is None


@pytest.mark.parametrize("at", [2**63 - 1, -(2**63)])
def test_times_at_the_edge_of_their_field_travel_on(at: int) -> None:
    """A hop is written from the time of a message by whoever leaves hops out, and read by everybody."""
    message = wire.read_message(packed(id="me.1.1", timestamp_us=at), NOW)
    message.hop_trace = message.hop_trace.at("me", message.timestamp)
    there(message)


# -------------------------------------------------------------------------------- what is only passed on


def passed_on(data: bytes) -> message_pb2.Message:
    """What leaves an exchange that got a message of these bytes, from me, and passes it on."""
    message = wire.read_message(message_pb2.Message.FromString(data), NOW)
    message.id, message.from_ = message.id or "me.1.1", message.from_ or "me"
    message.reached("relay", 2_000.0)
    return there(message)


def test_unknown_fields_survive() -> None:
    trace = message_pb2.Trace(hops=[message_pb2.Hop(exchange="me", at_us=5)], root="me.1.1").SerializeToString()
    hop = tag(1, b"\x0a\x02me" + tag(90, b"in the hop"))
    data = (
        packed(id="me.1.2", json=b"1").SerializeToString()
        + tag(9, trace + tag(77, b"in the trace"))
        + tag(9, hop)
        + tag(1000, b"in the message")
        + tag(17, b"a reserved one")
    )
    out = passed_on(data)
    again = passed_on(out.SerializeToString()).SerializeToString()
    for bytes_ in (out.SerializeToString(), again):
        for unknown in (b"in the trace", b"in the hop", b"in the message", b"a reserved one"):
            assert unknown in bytes_
    assert [hop.exchange for hop in out.trace.hops] == ["me", "me", "relay"]


def test_only_the_hops_change() -> None:
    sent = made(context=Context.of(made()), headers={"a": "b"}, payload=b'{"a": 1}')
    before = there(sent)
    after = passed_on(before.SerializeToString())
    assert after.trace.hops[-1] == message_pb2.Hop(exchange="relay", at_us=2_000_000_000)
    del after.trace.hops[-1]
    assert after == before


MESSAGE_IDS = st.builds("{}.{}.{}".format, IDS, st.integers(0, 10**20 - 1), st.integers(0, 10**20 - 1))
TIMES = st.floats(-1e9, 4e12)
TRACES = st.builds(
    Trace,
    hops=st.lists(st.builds(Hop, IDS, TIMES), max_size=HOPS).map(tuple),
    causes=st.lists(MESSAGE_IDS, max_size=3).map(tuple),
    root=MESSAGE_IDS | st.just(""),
    path=st.lists(IDS, max_size=4).map(tuple),
    cut=st.booleans(),
    traceparent=st.just("") | st.just("00-" + "1" * 32 + "-" + "2" * 16 + "-01"),
)
HEADERS = st.dictionaries(st.text("abcß", min_size=1), st.text("abcß"), max_size=3)


@st.composite
def any_message(draw: st.DrawFn) -> Message:
    """A message of this process with any of its fields set: more than a real one ever has."""
    from_ = draw(IDS)
    content_type = draw(st.sampled_from([JSON, BINARY, "image/png"]))
    return Message(
        f"{from_}.{draw(st.integers(0, 10**20 - 1))}.{draw(st.integers(0, 10**20 - 1))}",
        draw(NAMES),
        draw(st.sampled_from(Kind)),
        from_,
        draw(IDS | st.just("")),
        draw(VALUES.map(encode_json)) if content_type == JSON else draw(st.binary()),
        content_type,
        draw(TRACES),
        draw(TIMES),
        headers=draw(HEADERS),
        reply_to=draw(MESSAGE_IDS),
        last=draw(st.booleans()),
        error=draw(st.sampled_from([None, *ERRORS])),
        outcome=draw(st.sampled_from([None, *Outcome])),
        many=draw(st.booleans()),
        lost=draw(st.none() | st.lists(IDS, max_size=3).map(tuple)),
    )


def by_generated_code(message: Message) -> message_pb2.Message:
    """What the schema makes of `message`."""
    trace = message.hop_trace
    result = message_pb2.Message(
        id=message.id,
        name=message.name,
        to=message.to,
        kind=int(message.kind),  # type: ignore[arg-type]
        timestamp_us=microseconds(message.timestamp),
        reply_to=message.reply_to,
        last=message.last,
        many=message.many,
        headers=message.headers,
        trace=message_pb2.Trace(
            hops=[message_pb2.Hop(exchange=exchange, at_us=microseconds(at)) for exchange, at in trace.hops],
            causes=trace.causes,
            root=trace.root,
            path=trace.path,
            cut=trace.cut,
            traceparent=trace.traceparent,
        ),
    )
    setattr(result, "from", message.from_)
    if message.content_type == JSON:
        result.json = message.payload
    else:
        result.data.CopyFrom(message_pb2.Data(content=message.payload, content_type=message.content_type))
    if message.error is not None:
        result.error.CopyFrom(wire.status(message.error))
    if message.outcome is not None:
        result.outcome = int(message.outcome)  # type: ignore[assignment]
    if message.lost is not None:
        result.end.lost.extend(message.lost)
        result.end.SetInParent()
    return result


def received(data: bytes, left: int = 1) -> Message:
    """The one message of a batch: as it is there, nothing has been asked of it."""
    got = wire.decode(wire.encode_batch(1, [(data, left)]), NOW)
    assert isinstance(got, Batch)
    (message,) = got.messages
    assert isinstance(message, Message), message
    return message


@given(any_message())
def test_what_is_written_by_hand_is_what_the_schema_says(message: Message) -> None:
    expected = by_generated_code(message)
    expected.trace.SetInParent()
    got = there(message)
    got.trace.SetInParent()
    assert got == expected


FIELDS = (
    "id", "name", "kind", "from_", "to", "payload", "content_type", "headers", "reply_to", "last", "outcome",
    "lost", "causes", "path", "cut", "root", "way", "traceparent",
)  # fmt: skip


@given(any_message(), st.permutations(FIELDS))
def test_what_is_read_late_is_what_was_sent_in_whatever_order_it_is_asked_for(sent: Message, order: list[str]) -> None:
    got = received(wire.pack_bytes(sent))
    for field in order:
        assert getattr(got, field) == getattr(sent, field), field
    assert got.many == (sent.many and sent.kind is Kind.REQUEST)
    assert got.error == sent.error or vars(got.error) == vars(sent.error)
    assert got.times == pytest.approx(sent.times, abs=1e-3)
    assert got.timestamp == pytest.approx(sent.timestamp, abs=1e-3)
    with pytest.raises(AttributeError):
        _ = got.no_such_field  # type: ignore[attr-defined]


@given(any_message(), st.lists(IDS, min_size=1, max_size=4), st.binary(max_size=20), st.integers(1, 2**62))
def test_on_its_way_a_message_gains_a_hop_at_each_exchange_and_nothing_else_changes(
    sent: Message, relays: list[str], unknown: bytes, left: int
) -> None:
    sent.hop_trace = sent.hop_trace._replace(hops=sent.hop_trace.hops[: HOPS - len(relays)])
    data = wire.pack_bytes(sent) + tag(1000, unknown)
    expected = message_pb2.Message.FromString(data)
    for n, relay in enumerate(relays):
        message = received(data, left)
        message.reached(relay, float(n))
        data = wire.pack_bytes(message)
        assert wire.pack_bytes(message) is data, "another peer costs nothing"
        expected.trace.hops.add(exchange=relay, at_us=n * 1_000_000)
        expected.ttl_us = left
        assert message_pb2.Message.FromString(data) == expected
        assert message.trace == merged([*sent.path, *sent.way, *relays[: n + 1]])


@given(any_message())
def test_a_copy_and_a_message_that_is_packed_anew_are_what_they_were(sent: Message) -> None:
    message = copy.copy(received(wire.pack_bytes(sent)))
    message.wire = None
    again = received(wire.pack_bytes(message))
    for field in FIELDS:
        assert getattr(again, field) == getattr(sent, field), field


@given(st.integers(0, 2**62))
def test_the_time_left_that_is_written_last_counts(left: int) -> None:
    data = wire.encode_batch(1, [(there(made()).SerializeToString() + tag_number(11, 5), left)])
    assert frame_pb2.Frame.FromString(data).batch.messages[0].ttl_us == left


def tag_number(field: int, number: int) -> bytes:
    return bytes([field << 3, number])


@pytest.mark.parametrize("payload", [b'{"b" : 1,  "a":1.0}', b"not json at all \xff", b"[" * 100_000, b""])
def test_a_payload_is_not_looked_at(payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*_: Any) -> Any:
        raise AssertionError("the payload was decoded")

    for module in ("exchange_grpc.wire", "exchange_grpc.message"):
        monkeypatch.setattr(f"{module}.decode_json", looked)
        monkeypatch.setattr(f"{module}.encode_json", looked)
    assert passed_on(packed(json=payload).SerializeToString()).json == payload


def test_value_is_turned_into_json_once() -> None:
    out = passed_on(packed(value=Value(number_value=5)).SerializeToString())
    assert out.WhichOneof("payload") == "json"
    assert out.json == b"5"


def test_a_copy_as_value_keeps_what_is_not_known() -> None:
    data = packed(id="me.1.1", json=b'{"a":1}').SerializeToString() + tag(1000, b"unknown")
    message = wire.read_message(message_pb2.Message.FromString(data), NOW)
    message.from_ = "me"
    said = wire.pack(message, as_value=True)
    assert b"unknown" in said.SerializeToString()
    assert said.value.struct_value.fields["a"].number_value == 1
    assert wire.pack(message).json == b'{"a":1}', "the original is as it was"


def test_bytes_stay_bytes_for_who_wants_value() -> None:
    assert wire.pack(made(payload=b"x", content_type=BINARY), as_value=True).data.content == b"x"


def test_a_message_that_is_too_large_is_refused_by_its_sender() -> None:
    with pytest.raises(LimitExceeded):
        wire.pack(made(payload=b"1" * MESSAGE_BYTES))


def test_what_a_sender_passes_its_receiver_takes_although_the_time_left_is_written_last() -> None:
    size = MESSAGE_BYTES - 400
    while True:
        try:
            data = wire.pack_bytes(made(payload=b"1" * size))
        except LimitExceeded:
            break
        size += 1
    got = wire.decode(wire.encode_batch(1, [(data, 2**62)]), NOW)
    assert isinstance(got, Batch)
    assert isinstance(got.messages[0], Message)


# --------------------------------------------------------------------------------------- value and json


@given(VALUES)
@settings(max_examples=200)
def test_json_becomes_value_and_back(value: Any) -> None:
    try:
        said = wire.json_to_value(encode_json(value))
    except InvalidMessage:
        assert "beyond 2^53" in str(value) or any(abs(n) > 2**53 for n in numbers(value))
        return
    assert json_format.MessageToDict(said) == value
    try:
        back = decode_json(wire.value_to_json(said))
    except InvalidMessage:
        assert any(abs(n) > 2**53 for n in numbers(value)), "only a whole float beyond 2^53 cannot go back"
    else:
        assert back == value


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for below in value.values() for n in numbers(below)]
    if isinstance(value, list):
        return [n for below in value for n in numbers(below)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.parametrize("number", [0, 1, -1, 2**53, -(2**53), 2**53 - 1])
def test_integers_up_to_2_to_the_53_are_exact(number: int) -> None:
    assert wire.value_to_json(Value(number_value=number)) == b"%d" % number
    assert wire.json_to_value(b"%d" % number).number_value == number


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**63, 2**64 - 1, -(2**63)])
def test_integers_beyond_are_refused_on_the_way_out(number: int) -> None:
    with pytest.raises(InvalidMessage, match=r"2\^53"):
        wire.json_to_value(b"[%d]" % number)


@pytest.mark.parametrize("number", [2.0**53 + 2, -(2.0**53) - 2, 1e16, 1e300])
def test_whole_numbers_beyond_are_refused_on_the_way_in(number: float) -> None:
    with pytest.raises(InvalidMessage, match=r"2\^53"):
        wire.value_to_json(Value(number_value=number))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused(number: float) -> None:
    value = Value()
    value.list_value.values.add(number_value=number)
    with pytest.raises(InvalidMessage):
        wire.value_to_json(value)


def test_absent_equals_null() -> None:
    assert wire.value_to_json(Value()) == b"null"
    value = Value()
    value.list_value.values.add()
    value.struct_value.fields["a"].SetInParent()
    assert wire.value_to_json(value) == b'{"a":null}'


@pytest.mark.parametrize("dicts", [False, True])
def test_depth_counts_the_same_as_value(dicts: bool) -> None:
    data = encode_json(nested(PAYLOAD_DEPTH, dicts=dicts))
    value = Value.FromString(wire.json_to_value(data).SerializeToString())
    assert wire.value_to_json(value) == data
    deep = data.replace(b"null", b"[]")
    with pytest.raises(LimitExceeded):
        wire.json_to_value(deep)
    with pytest.raises(LimitExceeded):
        wire.value_to_json(json_format.Parse(deep, Value()))


def test_empty_lists_and_objects_stay_what_they_are() -> None:
    data = b'{"a":[],"b":{},"c":[[],{}],"d":"","e":false}'
    assert decode_json(wire.value_to_json(wire.json_to_value(data))) == decode_json(data)


# --------------------------------------------------------------------------------------------- errors

ERRORS = [
    Unhandled("nobody", at="hub"),
    DeadlineExceeded("late", at="hub"),
    Unavailable("lost", at="hub", delivered=False),
    Unavailable("lost", at="hub"),
    Cancelled("no more"),
    Refused("bad", code=Code.NOT_FOUND, reason="NOT_FOUND", at="hub"),
    Refused("bad"),
    HandlerFailed("it failed", at="far"),
    RequestError("who knows"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.reason)
def test_an_error_is_a_status_with_error_info(error: RequestError) -> None:
    said = wire.status(error)
    info = ErrorInfo()
    assert said.details[0].Unpack(info)
    assert (said.code, said.message, info.domain, info.reason) == (
        int(error.code),
        error.message,
        "exchange",
        error.reason,
    )
    assert info.metadata.get("at", "") == error.at
    back = wire.read_status(Status.FromString(said.SerializeToString()))
    assert type(back) is type(error)
    assert vars(back) == vars(error)


def test_a_status_of_somebody_else() -> None:
    foreign = AnyPb(type_url="type.googleapis.com/somebody.Else", value=b"x")
    lying = AnyPb(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff\xff")
    error = wire.read_status(Status(code=14, message="m", details=[foreign, lying]))
    assert isinstance(error, Unavailable)
    assert (error.reason, error.at, error.delivered) == ("UNAVAILABLE", "", None)
    assert wire.read_status(Status(code=999)).code is Code.UNKNOWN


@pytest.mark.parametrize("text", ["\ud800", "a\x00b", "x" * 5 * 2**20])
def test_any_text_of_an_error_can_be_sent(text: str) -> None:
    error = Refused(text, reason=text, at="me")
    got = wire.read_message(there(made(Kind.REPLY, reply_to="a.1.1", error=error)), NOW)
    assert got.error is not None
    assert got.error.code is Code.INVALID_ARGUMENT


# --------------------------------------------------------------------------------------------- frames

TARGETS = st.builds(Target, st.just("name"), NAMES) | st.builds(Target, st.just("exchange"), IDS)
NUMBERS = st.integers(0, 2**32 - 1)
INTRODUCTIONS = st.builds(
    Introduction,
    exchange=IDS,
    epoch=st.integers(0, 2**64 - 1),
    protocol=st.integers(1, 2**32 - 1),
    features=st.lists(TEXT, max_size=3).map(tuple),
    agent=TEXT.map(lambda text: text[:200]),
    relay=st.booleans(),
    revision=st.integers(0, 2**64 - 1),
    handles=st.lists(NAMES, max_size=3).map(tuple),
    subscribes=st.lists(PATTERNS, max_size=3).map(tuple),
    message_bytes=st.integers(1, 2**64 - 1),
    frame_bytes=st.integers(1, 2**64 - 1),
)
QUESTION_IDS = st.builds(lambda id, n: f"{id}.1.q{n}", IDS, NUMBERS)
FRAMES = (
    st.builds(Hello, INTRODUCTIONS)
    | st.builds(Welcome, INTRODUCTIONS)
    | st.builds(
        Interest,
        st.integers(0, 2**64 - 1),
        *[st.lists(strategy, max_size=3).map(tuple) for strategy in (NAMES, PATTERNS, NAMES, PATTERNS)],
        st.none() | st.booleans(),
    )
    | st.builds(Query, QUESTION_IDS, TARGETS, st.integers(0, HOPS))
    | st.builds(Answer, QUESTION_IDS | st.just(""), TARGETS, st.sampled_from(Found), st.integers(0, HOPS))
    | st.builds(Goodbye, st.sampled_from(Code), TEXT, NUMBERS, st.booleans(), IDS | st.just(""))
)


@given(FRAMES)
def test_a_frame_comes_back_as_it_was(sent: Any) -> None:
    assert wire.decode(wire.encode(sent), NOW) == sent


def test_a_question_and_a_way_are_no_longer_than_a_message_may_go() -> None:
    query = wire.decode(wire.encode(Query("a.1.q1", Target("name", "n"), 2**32 - 1)), NOW)
    answer = wire.decode(wire.encode(Answer("a.1.q1", Target("name", "n"), Found.YES, 2**32 - 1)), NOW)
    assert isinstance(query, Query)
    assert isinstance(answer, Answer)
    assert query.ttl == answer.cost == HOPS


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.reason)
def test_a_reject_comes_back_as_it_was(error: RequestError) -> None:
    got = wire.decode(wire.encode(Reject(5, "me.1.1", error)), NOW)
    assert isinstance(got, Reject)
    assert (got.seq, got.id, vars(got.error)) == (5, "me.1.1", vars(error))


def test_a_batch_comes_back_as_it_was() -> None:
    sent = [made(payload=b"1"), made(Kind.REQUEST, payload=b"2")]
    got = wire.decode(wire.encode_batch(9, [(wire.pack_bytes(message), 1) for message in sent]), NOW)
    assert isinstance(got, Batch)
    assert got.seq == 9
    assert not got.used_value
    assert [message.payload for message in got.messages if isinstance(message, Message)] == [b"1", b"2"]


def test_a_bad_message_in_a_batch_costs_the_others_nothing() -> None:
    messages = [packed(), packed(name="", id="me.1.2"), packed(name="", id="x" * 200), packed(value=Value())]
    got = wire.decode(frame(batch=frame_pb2.Batch(seq=1, messages=messages)), NOW)
    assert isinstance(got, Batch)
    assert [isinstance(message, Message) for message in got.messages] == [True, False, False, True]
    assert [message.id for message in got.messages] == ["", "me.1.2", "", ""]
    assert got.used_value


def test_a_frame_that_is_several_in_one_is_refused() -> None:
    one = frame(batch=frame_pb2.Batch(messages=[packed()]))
    with pytest.raises(InvalidMessage):
        wire.decode(one + frame(hello=frame_pb2.Hello(exchange="a")) + one, NOW)
    got = wire.decode(one + one, NOW)  # to protobuf this is one batch
    assert isinstance(got, Batch)
    assert len(got.messages) == 2


def test_a_large_message_in_a_frame_is_refused_alone() -> None:
    messages = [packed(), packed(json=b"1" * MESSAGE_BYTES)]
    got = wire.decode(frame(batch=frame_pb2.Batch(messages=messages)), NOW)
    assert isinstance(got, Batch)
    refusal = got.messages[1]
    assert isinstance(refusal, Refusal)
    assert (refusal.error.code, refusal.error.reason) == (Code.OUT_OF_RANGE, "LIMIT_EXCEEDED")
    assert isinstance(got.messages[0], Message)


def test_a_frame_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(LimitExceeded):
        wire.decode(b"\x00" * (FRAME_BYTES + 1), NOW)


def test_a_frame_of_too_many_messages_is_not_parsed() -> None:
    messages = [message_pb2.Message()] * (FRAME_MESSAGES + 1)
    with pytest.raises(LimitExceeded, match="more than 4096 messages"):
        wire.decode(frame(batch=frame_pb2.Batch(messages=messages)), NOW)
    got = wire.decode(frame(batch=frame_pb2.Batch(messages=messages[1:])), NOW)
    assert isinstance(got, Batch)
    assert len(got.messages) == FRAME_MESSAGES
    with pytest.raises(LimitExceeded, match="more than 4096 messages"):  # keys that are longer than they need to be
        wire.decode(tag(3, b"\x92\x00\x00" * (FRAME_MESSAGES + 1)), NOW)
    full_of_keys = message_pb2.Message(name="a", json=b'"' + b"\x12" * (FRAME_MESSAGES + 1) + b'"')
    assert isinstance(wire.decode(frame(batch=frame_pb2.Batch(messages=[full_of_keys])), NOW), Batch)


@pytest.mark.parametrize("said", [Ack(0), Ack(7), Credit(0, 0), Credit(3, 2**40), Ping(0), Ping(1), Pong(0), Pong(9)])
def test_the_frames_of_a_session_are_what_they_were(said: Ack | Credit | Ping | Pong) -> None:
    assert wire.decode(wire.encode(said), NOW) == said


def test_frames_of_the_future_are_ignored() -> None:
    assert wire.decode(tag(99, b"whatever"), NOW) == Unknown("")
    assert wire.decode(b"", NOW) == Unknown("")
    with pytest.raises(TypeError):
        wire.encode(Unknown("x"))


BAD_FRAMES: dict[str, Callable[[], bytes]] = {
    "hello without an id": lambda: frame(hello=frame_pb2.Hello()),
    "hello with a bad id": lambda: frame(hello=frame_pb2.Hello(exchange="a b")),
    "hello with a bad name": lambda: frame(
        hello=frame_pb2.Hello(exchange="a", interest=frame_pb2.InterestSet(handles=["a.*"]))
    ),
    "interest in a bad pattern": lambda: frame(
        interest=frame_pb2.Interest(added=frame_pb2.InterestSet(subscribes=["a.b*"]))
    ),
    "a question without a target": lambda: frame(query=frame_pb2.Query(id="a.1.q1")),
    "a question without an id": lambda: frame(query=frame_pb2.Query(name="a")),
    "a question with a bad id": lambda: frame(query=frame_pb2.Query(id="a\n", name="a")),
    "a question with a long id": lambda: frame(query=frame_pb2.Query(id="a" * 129, name="a")),
    "a question for a bad exchange": lambda: frame(query=frame_pb2.Query(id="a", exchange="a.b")),
    "an answer without a target": lambda: frame(answer=frame_pb2.Answer(id="a")),
    "garbage": lambda: b"\xff" * 9,
    "text that is no UTF-8": lambda: tag(1, tag(1, b"\xff\xfe")),
    "200 levels of value": lambda: deep(200),
}


def deep(levels: int) -> bytes:
    value = b"\x08\x00"
    for _ in range(levels):
        value = tag(6, tag(1, value))
    return tag(3, tag(2, tag(2, b"a") + tag(8, value)))


@pytest.mark.parametrize("what", BAD_FRAMES)
def test_a_frame_that_breaks_the_protocol(what: str) -> None:
    with pytest.raises(InvalidMessage):
        wire.decode(BAD_FRAMES[what](), NOW)


def test_a_value_deeper_than_the_limit_is_refused_alone_as_far_as_protobuf_reads_it() -> None:
    got = wire.decode(deep(31), NOW)
    assert isinstance(got, Batch)
    assert isinstance(got.messages[0], Refusal)
    got = wire.decode(deep(30), NOW)
    assert isinstance(got, Batch)
    assert isinstance(got.messages[0], Message)


def test_an_answer_that_does_not_say_what_was_found_is_incomplete() -> None:
    for found in (0, 9):
        got = wire.decode(frame(answer=frame_pb2.Answer(id="a", name="n", found=found)), NOW)
        assert isinstance(got, Answer)
        assert got.found is Found.INCOMPLETE


@given(st.binary(max_size=300))
def test_garbage_is_a_frame_or_refused(data: bytes) -> None:
    with suppress(InvalidMessage):
        wire.decode(data, NOW)


MESSAGE = packed(
    id="me.1.1", json=b"[1]", headers={"a": "b"}, trace=message_pb2.Trace(hops=[HOP], causes=["a.1.1"], root="a.1.1")
)
SEEDS = [
    frame(batch=frame_pb2.Batch(seq=1, messages=[MESSAGE, packed(value=Value(number_value=1), error=Status(code=1))])),
    wire.encode(Hello(Introduction("a", 1, 1, ("value",), "x", True, 1, ("a.b",), ("a.*",)))),
    wire.encode(Answer("a.1.q1", Target("name", "a"), Found.YES, 3)),
    wire.encode(Goodbye(Code.UNAVAILABLE, "bye", 5, True, "a")),
    wire.encode(Reject(1, "a.1.1", Unavailable("x", at="y"))),
]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
@settings(max_examples=400)
def test_a_frame_with_some_bytes_changed_is_a_frame_or_refused(seed: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(seed)
    for at, byte in changes:
        data[at % len(data)] = byte
    try:
        got = wire.decode(bytes(data), NOW)
    except InvalidMessage:
        return
    if isinstance(got, Batch):
        for message in got.messages:
            if isinstance(message, Message):
                message.id, message.from_ = message.id or "me.1.1", message.from_ or "me"
                message.reached("relay", 1.0)
                message_pb2.Message.FromString(wire.pack_bytes(message))


def test_read_and_written_again_hops_are_what_they_were() -> None:
    hops = (Hop("a", 1.5), Hop("b", 1_700_000_000.123456))
    sent = made()
    sent.hop_trace = sent.hop_trace._replace(hops=hops)
    assert wire.read_message(there(sent), NOW).hops == hops


def test_json_is_the_type_of_json() -> None:
    assert wire.read_message(packed(json=b"1"), NOW).content_type == JSON


# --------------------------------------------------------------------------------------- frames as proto JSON


@pytest.mark.parametrize("seed", SEEDS)
def test_a_frame_as_text_is_the_same_frame(seed: bytes) -> None:
    text = wire.text_of(seed)
    assert json.loads(text) == json_format.MessageToDict(
        frame_pb2.Frame.FromString(wire.frame_of(text)), preserving_proto_field_name=True
    )


def test_text_has_the_names_of_the_schema_and_whole_numbers() -> None:
    packed = frame_pb2.Frame()
    message = packed.batch.messages.add(name="x", reply_to="a.1.2", json=b"1")
    json_format.ParseDict({"a": [5, 0.5, True, None, "5.0"]}, message.value)
    assert wire.text_of(packed.SerializeToString()) == (
        b'{"batch":{"messages":[{"name":"x","value":{"a":[5,0.5,true,null,"5.0"]},"reply_to":"a.1.2"}]}}'
    )


def in_itself(levels: int) -> tuple[str, bytes]:
    """An Any with an Any in it, and so on."""
    detail = AnyPb()
    for _ in range(levels):
        outer = AnyPb()
        outer.Pack(detail)
        detail = outer
    return detail.type_url, detail.value


@pytest.mark.parametrize(
    "detail",
    [
        ("type.googleapis.com/made.up", b""),
        ("", b""),
        (f"x/{ErrorInfo.DESCRIPTOR.full_name}", b"\xff"),
        in_itself(2_000),
    ],
)
def test_a_detail_that_json_cannot_say_is_left_out_and_nothing_else(detail: tuple[str, bytes]) -> None:
    packed = message_pb2.Message(name="x").error
    info = AnyPb()
    info.Pack(ErrorInfo(reason="WHY"))
    packed.details.extend([AnyPb(type_url=detail[0], value=detail[1]), info])
    packed.code = 5
    for frame in (
        frame_pb2.Frame(reject=frame_pb2.Reject(seq=1, status=packed)),
        frame_pb2.Frame(goodbye=frame_pb2.Goodbye(status=packed)),
        frame_pb2.Frame(
            batch=frame_pb2.Batch(messages=[message_pb2.Message(error=packed), message_pb2.Message(name="y")])
        ),
    ):
        kind = str(frame.WhichOneof("kind"))
        said = json.loads(wire.text_of(frame.SerializeToString()))[kind]
        status = said["messages"][0]["error"] if kind == "batch" else said["status"]
        assert status["code"] == 5
        assert [detail.get("reason") for detail in status["details"] if detail] == ["WHY"]
        assert kind != "batch" or said["messages"][1] == {"name": "y"}


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | VALUES.map(lambda value: json.dumps(value).encode())
)
@settings(max_examples=400)
def test_any_text_is_a_frame_or_refused(text: bytes) -> None:
    with suppress(InvalidMessage):
        wire.decode(wire.frame_of(text), NOW)
