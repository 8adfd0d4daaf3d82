"""The session of one link, on plain bytes: what comes in, what it means, what goes out."""

from collections.abc import Iterator
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Value
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange.v1 import frame_pb2, message_pb2
from exchange_grpc import wire
from exchange_grpc.errors import Code, InvalidMessage, LimitExceeded, RequestError, Unavailable
from exchange_grpc.frames import (
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
    Reject,
    Target,
    Welcome,
)
from exchange_grpc.limits import (
    ACK_SECONDS,
    AWAY_SECONDS,
    CONTEST_SECONDS,
    CREDIT_BYTES,
    CREDIT_MESSAGES,
    HANDSHAKE_SECONDS,
    HEARTBEAT_SECONDS,
    REQUEST_SECONDS,
    RESUME_SECONDS,
    SILENCE_SECONDS,
    Limits,
)
from exchange_grpc.message import Context, Hop, Kind, Message, Origin
from exchange_grpc.outbox import QueueFull
from exchange_grpc.peer import (
    FEATURES,
    Backoff,
    Broken,
    Ended,
    Event,
    Forgotten,
    Missing,
    Opened,
    Phase,
    Received,
    Rejected,
    Resumed,
    Session,
)

NOW = 100.0
ORIGIN = {id: Origin(id, 7, 1_000.0) for id in ("me", "you", "far")}
NAME = Target("name", "a")


def intro(id: str, **more: Any) -> Introduction:
    return Introduction(id, 7, **more)


def made(exchange: str = "me", kind: Kind = Kind.SEND, name: str = "a", **more: Any) -> Message:
    return ORIGIN[exchange].make(kind, name, Context(), NOW, **more)


def out(session: Session, now: float = NOW) -> Iterator[bytes]:
    """All that the session has to write."""
    while True:
        data, expired = session.data_to_send(now)
        if data is not None:
            yield data
        elif not expired:
            return


def said(session: Session, now: float = NOW) -> list[Frame]:
    return [wire.decode(data, now) for data in out(session, now)]


def opened(*, dialled: bool = False, **peer: Any) -> Session:
    """An open session of `me` with `you`, and nothing left to say."""
    session = Session(intro("me"), dialled=dialled, now=NOW)
    you = intro("you", **peer)
    session.receive(wire.encode(Welcome(you) if dialled else Hello(you)), NOW)
    if not dialled:
        session.welcome(intro("me"))
    list(out(session))
    return session


def pair(**peer: Any) -> tuple[Session, Session]:
    """Two sessions that are open to each other: of `me`, who dialled, and of `you`."""
    me, you = Session(intro("me", **peer), dialled=True, now=NOW), Session(intro("you"), dialled=False, now=NOW)
    for data in out(me):
        assert isinstance(you.receive(data, NOW)[0], Opened)
    you.welcome(intro("you"))
    for data in out(you):
        assert isinstance(me.receive(data, NOW)[0], Opened)
    return me, you


def only(events: list[Event]) -> Message:
    """The one message in what was understood."""
    (event,) = events
    assert isinstance(event, Received)
    (message,) = event.messages
    return message


def received(events: list[Event]) -> list[Message]:
    """The messages in what was understood."""
    return [message for event in events if isinstance(event, Received) for message in event.messages]


def passed(a: Session, b: Session, now: float = NOW) -> list[Event]:
    """What `b` understands of all that `a` has to say."""
    return [event for data in out(a, now) for event in b.receive(data, now)]


def batch(*messages: message_pb2.Message, seq: int = 0) -> bytes:
    return frame_pb2.Frame(batch=frame_pb2.Batch(seq=seq, messages=messages)).SerializeToString()


def packed(name: str = "a", hops: tuple[str, ...] = (), **fields: Any) -> message_pb2.Message:
    result = message_pb2.Message(name=name)
    for field, value in fields.items():
        setattr(result, field.rstrip("_"), value)
    for hop in hops:
        result.trace.hops.add(exchange=hop)
    return result


# ------------------------------------------------------------------------------------------- the handshake


def test_hello_and_welcome() -> None:
    me = Session(intro("me", handles=("a",), relay=True), dialled=True, now=NOW)
    you = Session(intro("you", subscribes=("b.*",)), dialled=False, now=NOW)
    assert list(out(you)) == [], "whoever was dialled waits for Hello"
    (hello,) = out(me)
    assert list(out(me)) == []
    credit = Credit(CREDIT_MESSAGES, CREDIT_BYTES)
    assert you.receive(hello, NOW) == [Opened(intro("me", handles=("a",), relay=True, credit=credit))]
    assert you.phase is Phase.OPENING, "until it is welcomed, which the exchange decides"
    you.welcome(intro("you", subscribes=("b.*", "c")))
    (welcome,) = out(you)
    assert me.receive(welcome, NOW) == [Opened(intro("you", subscribes=("b.*", "c"), credit=credit))]
    assert me.phase is you.phase is Phase.OPEN
    assert me.tick(NOW + 1_000) == []


def ended(session: Session, events: list[Event], code: Code, *, tells: bool = True) -> Ended:
    (event,) = events
    assert isinstance(event, Ended)
    assert event.code is code
    assert session.phase is Phase.CLOSED
    assert session.receive(wire.encode(Hello(intro("you"))), NOW) == []
    goodbyes = [frame for frame in said(session) if isinstance(frame, Goodbye)]
    assert [frame.code for frame in goodbyes] == ([code] if tells else [])
    assert all(frame.exchange == "me" for frame in goodbyes)
    return event


FIRST = {
    "welcome": Welcome(intro("you")),
    "interest": Interest(1),
    "query": Query("you.7.q1", NAME, 3),
    "answer": Answer("you.7.q1", NAME, Found.NO),
    "reject": Reject(1, "", RequestError("x")),
}


@pytest.mark.parametrize("what", FIRST)
def test_the_first_frame_is_hello(what: str) -> None:
    session = Session(intro("me"), dialled=False, now=NOW)
    ended(session, session.receive(wire.encode(FIRST[what]), NOW), Code.INVALID_ARGUMENT)


def test_the_first_frame_is_welcome_for_who_dialled() -> None:
    for data in (batch(packed()), wire.encode(Hello(intro("you")))):
        session = Session(intro("me"), dialled=True, now=NOW)
        ended(session, session.receive(data, NOW), Code.INVALID_ARGUMENT)


def test_an_empty_frame_is_no_hello() -> None:
    session = Session(intro("me"), dialled=False, now=NOW)
    ended(session, session.receive(b"", NOW), Code.INVALID_ARGUMENT)


@pytest.mark.parametrize("dialled", [False, True])
def test_both_ends_with_one_id(dialled: bool) -> None:
    session = Session(intro("me"), dialled=dialled, now=NOW)
    first = Welcome(intro("me")) if dialled else Hello(intro("me"))
    event = ended(session, session.receive(wire.encode(first), NOW), Code.ALREADY_EXISTS)
    assert event.by == "me"


@pytest.mark.parametrize("dialled", [False, True])
def test_a_second_introduction_ends_the_session(dialled: bool) -> None:
    for again in (Hello(intro("you")), Welcome(intro("you"))):
        session = opened(dialled=dialled)
        ended(session, session.receive(wire.encode(again), NOW), Code.INVALID_ARGUMENT)


@pytest.mark.parametrize("dialled", [False, True])
def test_a_handshake_that_takes_too_long(dialled: bool) -> None:
    session = Session(intro("me"), dialled=dialled, now=NOW)
    assert session.tick(NOW + HANDSHAKE_SECONDS - 0.001) == []
    ended(session, session.tick(NOW + HANDSHAKE_SECONDS), Code.DEADLINE_EXCEEDED)
    assert session.tick(NOW + 1_000) == []


def test_a_refusal_instead_of_welcome() -> None:
    session = Session(intro("me"), dialled=True, now=NOW)
    list(out(session))
    data = wire.encode(Goodbye(Code.ALREADY_EXISTS, "linked already", exchange="you"))
    event = ended(session, session.receive(data, NOW), Code.ALREADY_EXISTS, tells=False)
    assert event == Ended(Code.ALREADY_EXISTS, "linked already", "you")


def test_an_introduction_may_be_refused() -> None:
    session = Session(intro("me"), dialled=False, now=NOW)
    session.receive(wire.encode(Hello(intro("you"))), NOW)
    session.goodbye(Code.ALREADY_EXISTS, "linked already")
    assert session.receive(wire.encode(Query("you.7.q1", NAME, 1)), NOW) == [Query("you.7.q1", NAME, 1)]
    assert said(session) == [Goodbye(Code.ALREADY_EXISTS, "linked already", exchange="me")]
    assert session.phase is Phase.CLOSED


@pytest.mark.parametrize("dialled", [False, True])
@pytest.mark.parametrize("frame", [batch(packed()), *map(wire.encode, FIRST.values())], ids=["batch", *FIRST])
def test_what_a_stranger_says_after_goodbye_is_not_heard(dialled: bool, frame: bytes) -> None:
    """The exchange closes while a link has not yet said Hello, or Welcome is on its way."""
    session = Session(intro("me"), dialled=dialled, now=NOW)
    session.goodbye()
    assert session.receive(frame, NOW) == []
    assert [data for data in said(session) if isinstance(data, Goodbye)] == [Goodbye(exchange="me")]


def test_a_stranger_may_say_goodbye_too() -> None:
    session = Session(intro("me"), dialled=True, now=NOW)
    session.goodbye()
    assert session.receive(wire.encode(Goodbye(exchange="you")), NOW) == [Ended(Code.OK, "", "you")]


def test_old_and_new_versions_are_welcome() -> None:
    for version in (0, 1, 2, 99):
        hello = frame_pb2.Frame(hello=frame_pb2.Hello(exchange="you", protocol=version)).SerializeToString()
        session = Session(intro("me"), dialled=False, now=NOW)
        (event,) = session.receive(hello, NOW)
        assert isinstance(event, Opened)
        assert event.peer.protocol == (version or 1)


# -------------------------------------------------------------------------------------------------- batches


def test_everything_queued_leaves_in_one_frame_and_control_frames_first() -> None:
    me, you = pair(relay=True)
    messages = [made() for _ in range(50)]
    for message in messages:
        me.send(message)
    me.announce(handles=["x"])
    assert me.control(Query("me.7.q1", NAME, 3))
    frames = said(me)
    assert [type(frame) for frame in frames] == [Interest, Query, Batch]
    assert isinstance(frames[2], Batch)
    assert frames[2].seq == 1
    assert [message.id for message in frames[2].messages] == [message.id for message in messages]
    me.send(made())
    (frame,) = said(me)
    assert isinstance(frame, Batch)
    assert frame.seq == 51
    assert you.peer is not None


def test_a_write_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.BATCH_MESSAGES", 3)
    me, you = pair()
    for _ in range(7):
        me.send(made())
    frames = said(me)
    assert [(frame.seq, len(frame.messages)) for frame in frames if isinstance(frame, Batch)] == [
        (1, 3),
        (4, 3),
        (7, 1),
    ]
    monkeypatch.setattr("exchange_grpc.outbox.BATCH_MESSAGES", 1_000)
    monkeypatch.setattr("exchange_grpc.outbox.BATCH_BYTES", 1_000)
    for _ in range(4):
        me.send(made(payload=b"1" * 300))
    assert [len(frame.messages) for frame in said(me) if isinstance(frame, Batch)] == [2, 2]
    assert you.peer is not None


def test_messages_arrive_in_order_and_as_they_were() -> None:
    me, you = pair()
    sent = [made(payload=b"%d" % n, headers={"n": str(n)}) for n in range(20)]
    for message in sent:
        me.send(message)
    got = received(passed(me, you))
    assert [message.payload for message in got] == [m.payload for m in sent]
    assert [message.id for message in got] == [m.id for m in sent]


def test_the_time_left_is_a_duration_without_the_wait() -> None:
    me, you = pair()
    me.send(made(seconds=10))
    (data,) = out(me, NOW + 4)
    assert only(you.receive(data, 5_000.0)).deadline == pytest.approx(5_006.0)


def test_what_expired_in_the_queue_does_not_leave() -> None:
    me, you = pair()
    short, long, shorter = made(seconds=1), made(seconds=9), made(seconds=1)
    for message in (short, long, shorter):
        me.send(message)
    data, expired = me.data_to_send(NOW + 1)
    assert expired == [short, shorter]
    assert data is not None
    assert only(you.receive(data, NOW)).id == long.id
    me.send(made(seconds=1))
    data, expired = me.data_to_send(NOW + 1)
    assert data is None
    assert len(expired) == 1
    assert me.data_to_send(NOW + 1) == (None, [])


@pytest.mark.parametrize("seconds", [float("inf"), 1e15, 2**63 / 1e6])
def test_a_message_that_lives_for_ever_harms_no_link(seconds: float) -> None:
    me, you = pair()
    me.send(made(seconds=seconds))
    assert only(passed(me, you)).deadline > NOW + 1e8


def test_the_longest_time_to_live_on_the_wire_can_be_passed_on() -> None:
    session, next_one = opened(), opened(dialled=True)
    message = only(session.receive(batch(packed(ttl_us=2**63 - 1, timestamp_us=2**63 - 1)), NOW))
    message.hop_trace = message.hop_trace.at("me", NOW)
    next_one.send(message)
    assert len(said(next_one)) == 1


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 3)
    me, _ = pair()
    for _ in range(3):
        me.send(made())
    with pytest.raises(QueueFull):
        me.send(made())
    list(out(me))
    me.send(made())
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_BYTES", 1_000)
    with pytest.raises(QueueFull):
        me.send(made(payload=b"1" * 1_000))
    assert me.out.load()[0] == 1
    assert len(me.out.take_unsent()) == 1
    assert me.out.take_unsent() == []
    assert me.out.load() == (0, 0)
    me.send(made(payload=b"1" * 500))


def test_whoever_can_wait_is_told_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.LINK_HIGH_WATER", 2)
    monkeypatch.setattr("exchange_grpc.outbox.LINK_HIGH_WATER_BYTES", 1_000)
    me, _ = pair()
    for full in (False, False, True):
        me.send(made())
        assert me.full is full
    list(out(me))
    assert not me.full
    me.send(made(payload=b"1" * 1_000))
    assert me.full
    me.out.take_unsent()
    assert not me.full


def test_control_frames_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.peer.CONTROL_FRAMES", 2)
    session = opened()
    assert session.control(Query("me.7.q1", NAME, 3))
    assert session.control(Answer("you.7.q1", NAME, Found.NO))
    assert not session.control(Query("me.7.q2", NAME, 3))
    session.reject(1, "x", RequestError("x"))
    assert [type(frame) for frame in said(session)] == [Query, Answer, Reject], "refusals wait elsewhere"


def test_a_peer_with_a_smaller_limit_gets_nothing_larger() -> None:
    session = opened(message_bytes=300)
    session.send(made())
    with pytest.raises(LimitExceeded):
        session.send(made(payload=b"1" * 300))
    assert len(said(session)) == 1


def test_frames_are_no_larger_than_the_peer_takes() -> None:
    session = opened(frame_bytes=1_000)
    for _ in range(10):
        session.send(made(payload=b"1" * 200))
    with pytest.raises(LimitExceeded):
        session.send(made(payload=b"1" * 1_000))
    frames = list(out(session))
    assert all(len(frame) <= 1_000 for frame in frames)
    assert 3 <= len(frames) < 10


def test_a_message_that_cannot_be_said_is_refused_at_once() -> None:
    session = opened(features=("value",))
    with pytest.raises(InvalidMessage):
        session.send(made(payload=b"9007199254740993"))
    with pytest.raises(InvalidMessage):
        session.send(made(payload=b"no json"))
    assert said(session) == []


# --------------------------------------------------------------------------------------- the simplest peer


def test_a_peer_that_says_only_hello_and_batch_takes_part() -> None:
    session = Session(intro("me"), dialled=False, now=NOW)
    hello = frame_pb2.Frame(hello=frame_pb2.Hello(exchange="you")).SerializeToString()
    assert session.receive(hello, NOW) == [Opened(Introduction("you"))]
    session.welcome(intro("me"))
    assert [type(frame) for frame in said(session)] == [Welcome]
    events = session.receive(batch(packed(json=b"1"), packed(kind=2)), NOW)
    messages = received(events)
    assert [message.id for message in messages] == ["you.0.1", "you.0.2"]
    assert [message.from_ for message in messages] == ["you", "you"]
    assert [[hop.exchange for hop in message.hops] for message in messages] == [["you"], ["you"]]
    assert [message.kind for message in messages] == [Kind.SEND, Kind.REQUEST]
    assert messages[1].deadline == NOW + REQUEST_SECONDS
    assert only(session.receive(batch(packed()), NOW)).id == "you.0.3"
    assert only(session.receive(batch(packed(), seq=4), NOW)).id == "you.0.4"
    assert said(session) == [], "neither Ack nor Credit nor Ping: nobody would read it"
    assert session.tick(NOW + 1_000) == [], "and its silence says nothing"
    assert said(session, NOW + 1_000) == []


def test_whoever_speaks_value_is_answered_so() -> None:
    session = opened()
    assert only(session.receive(batch(valued({"a": 1})), NOW)).payload == b'{"a":1}'
    session.send(made(payload=b'{"b":[2]}'))
    (data,) = out(session)
    (message,) = frame_pb2.Frame.FromString(data).batch.messages
    assert message.WhichOneof("payload") == "value"
    assert message.value.struct_value.fields["b"].list_value.values[0].number_value == 2


def valued(fields: dict[str, float]) -> message_pb2.Message:
    message = packed()
    for key, number in fields.items():
        message.value.struct_value.fields[key].CopyFrom(Value(number_value=number))
    return message


def test_whoever_wants_value_may_say_so_in_hello() -> None:
    session = opened(features=("value", "unknown"))
    session.send(made(payload=b"5"))
    (data,) = out(session)
    assert frame_pb2.Frame.FromString(data).batch.messages[0].value.number_value == 5


# ------------------------------------------------------------------------------------------ who may say what


def forged(**fields: Any) -> message_pb2.Message:
    hops = fields.pop("hops", ())
    message = packed(hops=hops, id=fields.get("id", ""))
    setattr(message, "from", fields.get("from_", ""))
    return message


FORGERIES: dict[str, dict[str, Any]] = {
    "from somebody else": {"from_": "far"},
    "an id of somebody else": {"id": "far.7.1"},
    "the last hop of somebody else": {"hops": ("far",)},
    "a first hop of somebody else": {"from_": "you", "id": "you.7.1", "hops": ("far", "you")},
    "passed on, from a leaf": {"from_": "far", "id": "far.7.1", "hops": ("far", "you")},
    "me as origin": {"from_": "me", "id": "me.7.1", "hops": ("me",)},
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_message_is_rejected_and_the_rest_of_the_batch_stands(what: str) -> None:
    session = opened()
    session.receive(batch(*[packed()] * 4), NOW)
    events = session.receive(batch(packed(name="one"), forged(**FORGERIES[what]), packed(name="two"), seq=5), NOW)
    assert [message.name for message in received(events)] == ["one", "two"]
    (reject,) = said(session)
    assert isinstance(reject, Reject)
    assert reject.seq == 6
    assert reject.error.code is Code.INVALID_ARGUMENT
    assert reject.error.reason == "INVALID_MESSAGE"
    assert session.phase is Phase.OPEN


def test_a_relay_may_pass_on_what_others_made() -> None:
    session = opened(relay=True)
    assert only(session.receive(batch(forged(from_="far", id="far.7.1", hops=("far", "you"))), NOW)).from_ == "far"
    events = session.receive(batch(forged(from_="far", id="far.7.1", hops=("far", "other"))), NOW)
    assert events == [], "but not what did not come by itself"
    assert only(session.receive(batch(forged(hops=("far", "you"), id="far.7.2")), NOW)).from_ == "far"


def test_a_peer_may_begin_to_relay_and_stop() -> None:
    session = opened()
    relayed = batch(forged(from_="far", id="far.7.1", hops=("far", "you")))
    assert session.receive(relayed, NOW) == []
    assert session.receive(wire.encode(Interest(1, relay=True)), NOW) == [Interest(1, relay=True)]
    assert len(session.receive(relayed, NOW)) == 1
    session.receive(wire.encode(Interest(2, handles=("x",))), NOW)
    assert len(session.receive(relayed, NOW)) == 1, "what is not said does not change"
    session.receive(wire.encode(Interest(3, relay=False)), NOW)
    assert session.receive(relayed, NOW) == []


def test_a_message_that_cannot_be_read_is_rejected_with_its_number_and_id() -> None:
    session = opened()
    events = session.receive(batch(packed(), packed(name="a b", id="you.7.9"), packed(name="x" * 300), seq=1), NOW)
    assert len(received(events)) == 1
    rejects = said(session)
    assert [(r.seq, r.id, r.error.reason) for r in rejects if isinstance(r, Reject)] == [
        (2, "you.7.9", "INVALID_MESSAGE"),
        (3, "", "LIMIT_EXCEEDED"),
    ]


def test_a_reject_names_the_message_by_id_or_number() -> None:
    me, you = pair()
    first, second = made(), made()
    me.send(first)
    me.send(second)
    list(out(me))
    error = Unavailable("no", at="you")
    (event,) = me.receive(wire.encode(Reject(1, first.id, error)), NOW)
    assert isinstance(event, Rejected)
    assert event.id == first.id
    assert event.error.message == "no"
    (event,) = me.receive(wire.encode(Reject(2, "", error)), NOW)
    assert isinstance(event, Rejected)
    assert event.id == second.id
    (event,) = me.receive(wire.encode(Reject(99, "", error)), NOW)
    assert isinstance(event, Rejected)
    assert event.id == ""
    assert you.peer is not None


@pytest.mark.parametrize("seq", [2**64 - 1, 2**64 - 2])
def test_numbers_that_run_over_the_edge_end_the_session(seq: int) -> None:
    session = opened()
    session.into.received = seq - 1
    bad = packed(name="")
    ended(session, session.receive(batch(bad, bad, bad, seq=seq), NOW), Code.INVALID_ARGUMENT)


def test_rejects_of_a_flood_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.peer.CONTROL_FRAMES", 10)
    session = opened()
    assert session.receive(batch(*[packed(name="")] * 100), NOW) == []
    assert len(said(session)) == 10
    assert len(session.receive(batch(packed()), NOW)) == 1


# ------------------------------------------------------------------------------------------------- interest


def test_interest_counts_its_revisions() -> None:
    session = opened(revision=4, handles=("a",))
    changes = [
        Interest(5, handles=("b",), subscribes=("c.*",)),
        Interest(6, no_longer_handles=("a",), no_longer_subscribes=("c.*", "never")),
    ]
    for change in changes:
        assert session.receive(wire.encode(change), NOW) == [change]
    ended(session, session.receive(wire.encode(Interest(8)), NOW), Code.INVALID_ARGUMENT)


def test_interest_of_a_peer_that_does_not_count() -> None:
    session = opened()
    for _ in range(3):
        assert session.receive(wire.encode(Interest(0, handles=("a",))), NOW)


def test_announcements_are_understood() -> None:
    me, you = pair(revision=7)
    me.announce(handles=["a"], subscribes=["b.*"])
    me.announce(no_longer_handles=["a"], no_longer_subscribes=["b.*"], relay=True)
    assert passed(me, you) == [
        Interest(8, ("a",), ("b.*",)),
        Interest(9, (), (), ("a",), ("b.*",), True),
    ]


@pytest.mark.parametrize("what", ["handles", "subscribes"])
def test_names_per_peer(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.peer.NAMES_PER_PEER", 3)
    names = ("a", "b", "c")
    session = Session(intro("me"), dialled=False, now=NOW)
    events = session.receive(wire.encode(Hello(intro("you", **{what: (*names, "d")}))), NOW)
    ended(session, events, Code.INVALID_ARGUMENT)
    session = opened(**{what: names})
    gone = {f"no_longer_{what}": ("a",)}
    assert session.receive(wire.encode(Interest(1, **{what: ("d",)}, **gone)), NOW)
    ended(session, session.receive(wire.encode(Interest(2, **{what: ("e",)})), NOW), Code.INVALID_ARGUMENT)


def test_questions_and_answers_are_handed_on() -> None:
    me, you = pair()
    frames = [
        Query("me.7.q1", NAME, 3),
        Answer("you.7.q1", Target("exchange", "x"), Found.YES, 2),
        Answer("", NAME, Found.NO),
    ]
    for frame in frames:
        assert isinstance(frame, Query | Answer)
        assert me.control(frame)
    assert passed(me, you) == frames


@pytest.mark.parametrize("kind", ["ack", "credit", "ping", "pong"])
def test_frames_of_the_session_are_no_events(kind: str) -> None:
    session = opened()
    assert session.receive(frame_pb2.Frame(**{kind: {}}).SerializeToString(), NOW) == []
    assert session.receive(b"", NOW) == [], "nor are frames of an unknown kind"
    assert session.phase is Phase.OPEN
    assert said(session) == ([Pong(0)] if kind == "ping" else [])


# -------------------------------------------------------------------------------------------------- the end


def test_goodbye_comes_after_what_is_queued() -> None:
    me, you = pair()
    me.send(made())
    me.goodbye(Code.OK, "that was all", retry_after_ms=50)
    assert me.phase is Phase.CLOSING
    me.goodbye(Code.INTERNAL, "said once")
    events = passed(me, you)
    assert [type(event) for event in events] == [Received, Ended]
    assert events[1] == Ended(Code.OK, "that was all", "me", retry_after_ms=50)
    assert me.phase is you.phase is Phase.CLOSED
    me.goodbye()
    assert list(out(me)) == []


def test_goodbye_waits_for_more_than_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.BATCH_MESSAGES", 1)
    me, you = pair()
    me.send(made())
    me.send(made())
    me.goodbye()
    assert [type(event) for event in passed(me, you)] == [Received, Received, Ended]


def test_goodbye_comes_although_all_that_was_queued_has_expired() -> None:
    me, _ = pair()
    me.send(made(seconds=1))
    me.goodbye()
    data, expired = me.data_to_send(NOW + 2)
    assert len(expired) == 1
    assert data is not None
    assert wire.decode(data, NOW) == Goodbye(exchange="me")
    assert me.phase is Phase.CLOSED


def test_while_closing_what_comes_is_still_understood() -> None:
    me, you = pair()
    me.goodbye()
    you.send(made("you"))
    only(passed(you, me))


@pytest.mark.parametrize(
    ("code", "stay_away", "returns"),
    [
        (Code.UNAVAILABLE, False, True),
        (Code.OK, False, True),
        (Code.OK, True, False),
        (Code.ALREADY_EXISTS, False, False),
    ],
)
def test_who_ended_it_may_be_dialled_again_unless_it_says_otherwise(code: Code, stay_away: bool, returns: bool) -> None:
    me, you = pair()
    you.goodbye(code, "so be it", stay_away=stay_away)
    (ended,) = [event for event in passed(you, me) if isinstance(event, Ended)]
    assert me.may_return(ended) is returns


def test_who_has_said_goodbye_does_not_return() -> None:
    me, you = pair()
    me.goodbye()
    you.goodbye()
    (ended,) = [event for event in passed(you, me) if isinstance(event, Ended)]
    assert not me.may_return(ended)


def test_goodbye_of_the_peer_ends_it_and_what_never_left_can_be_told() -> None:
    me, you = pair()
    message = made()
    me.send(message)
    you.goodbye(Code.UNAVAILABLE, "restart")
    assert passed(you, me) == [Ended(Code.UNAVAILABLE, "restart", "you")]
    assert me.phase is Phase.CLOSED
    assert list(out(me)) == []
    assert me.lost() == ([], [message])


def test_a_broken_frame_ends_the_session_with_a_reason() -> None:
    session = opened()
    session.send(made())
    event = ended(session, session.receive(b"\xff" * 9, NOW), Code.INVALID_ARGUMENT)
    assert "parsed" in event.reason
    assert [len(messages) for messages in session.lost()] == [0, 1]


def test_stay_away_after_a_mistake() -> None:
    session = opened()
    session.receive(b"\xff" * 9, NOW)
    (goodbye,) = said(session)
    assert isinstance(goodbye, Goodbye)
    assert goodbye.stay_away


# ---------------------------------------------------------------------------------------------- whatever comes

SEEDS = [
    batch(packed(json=b"1", hops=("you",), id="you.7.1"), valued({"a": 1}), seq=3),
    wire.encode(Hello(intro("you", handles=("a",), subscribes=("b.*",), relay=True))),
    wire.encode(Welcome(intro("you"))),
    wire.encode(Interest(1, ("a",), ("b",), ("c",), ("d",), True)),
    wire.encode(Query("you.7.q1", NAME, 3)),
    wire.encode(Answer("you.7.q1", NAME, Found.YES, 1)),
    wire.encode(Reject(1, "", RequestError("x"))),
    wire.encode(Goodbye(Code.OK, "", exchange="you")),
]
CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Random bytes, or a frame with some bytes changed, so that the reader gets further."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(max_size=100))
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for at, byte in draw(CHANGES):
        data[at % len(data)] = byte
    return bytes(data)


@given(
    dialled=st.booleans(),
    start=st.sampled_from(["new", "open", "goodbye", "new goodbye"]),
    relay=st.booleans(),
    data=st.lists(frames(), min_size=1, max_size=8),
)
@settings(max_examples=400, deadline=None)
def test_whatever_comes_is_an_event_or_the_end(dialled: bool, start: str, relay: bool, data: list[bytes]) -> None:
    session = Session(intro("me"), dialled=dialled, now=NOW) if "new" in start else opened(dialled=dialled, relay=relay)
    if "goodbye" in start:
        session.goodbye()
    closed = False
    for bytes_ in data:
        events = session.receive(bytes_, NOW)
        assert not (closed and events)
        for event in events:
            if isinstance(event, Opened) and not dialled:
                session.welcome(intro("me"))
        for message in received(events):
            assert message.hops[-1].exchange == session.peer.exchange  # type: ignore[union-attr]
            assert message.id.startswith(message.from_ + ".")
            message.hop_trace = message.hop_trace.at("me", NOW)
            other = opened(dialled=True)
            other.send(message)
            assert said(other)
        closed = closed or session.phase is Phase.CLOSED
        for sent in out(session):
            wire.decode(sent, NOW)
        closed = session.phase is Phase.CLOSED


def test_the_hop_of_a_simple_peer_is_from_its_timestamp() -> None:
    assert only(opened().receive(batch(packed(timestamp_us=5_000_000)), NOW)).hops == (Hop("you", 5.0),)


def test_what_is_passed_on_has_an_id() -> None:
    """One made up here might be that of another message of its origin."""
    session = opened(relay=True)
    assert session.receive(batch(forged(from_="far", id="", hops=("far", "you"))), NOW) == []
    (reject,) = said(session)
    assert isinstance(reject, Reject)
    assert "has no id" in reject.error.message


# ---------------------------------------------------------------------------------------- sessions that resume


class Tokens:
    """Random bytes, each different from those before."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, size: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(size, "big")


SMALL = Limits(credit_messages=4, credit_bytes=8 * 2**20)


class Two:
    """Two sessions that may resume, `me` who dialled and `you`, and what each has understood."""

    def __init__(self, *, me: str = "me", you: str = "you", limits: Limits = SMALL, when_full: str = "wait") -> None:
        self.now = NOW
        self.ids = me, you
        self.me = Session(self.intro(me), dialled=True, now=NOW, limits=limits, when_full=when_full)
        self.you = Session(self.intro(you), dialled=False, now=NOW, limits=limits, draw=Tokens())
        self.got: dict[Session, list[Event]] = {self.me: [], self.you: []}
        self.pass_on()

    @staticmethod
    def intro(id: str, **more: Any) -> Introduction:
        return intro(id, **{"features": FEATURES, **more})

    def heard(self, session: Session, data: bytes) -> None:
        events = session.receive(data, self.now)
        self.got[session] += events
        for event in events:
            if isinstance(event, Opened) and not session.dialled:
                session.welcome(self.intro(self.ids[1]))

    def pass_on(self, frames: int = 1_000) -> None:
        """Write and deliver, in turn, so many frames in all."""
        while frames:
            before = frames
            for a, b in ((self.me, self.you), (self.you, self.me)):
                data, _ = a.data_to_send(self.now)
                if data is not None and frames:
                    frames -= 1
                    self.heard(b, data)
            if frames == before:
                return

    def messages(self, session: Session) -> list[Message]:
        return received(self.got[session])

    def break_(self) -> None:
        assert self.me.disconnected(self.now)
        assert self.you.disconnected(self.now)

    def hello(self, **changes: Any) -> Introduction:
        """What `me` says when it dials again, on its way."""
        self.me.dial(self.intro(self.ids[0]), self.now)
        data, _ = self.me.data_to_send(self.now)
        assert data is not None
        frame = wire.decode(data, self.now)
        assert isinstance(frame, Hello)
        return replace(frame.me, **changes)

    def dial(self, **changes: Any) -> list[Event] | None:
        """`me` dials again, and gets no Welcome yet: what `you` makes of it."""
        return self.you.rejoin(self.hello(**changes), self.intro(self.ids[1]), self.now)

    def back(self, **changes: Any) -> tuple[Resumed, Resumed]:
        """`me` dials again, and both are there: what each understands."""
        events = self.dial(**changes)
        assert events is not None
        (yours,) = events
        data, _ = self.you.data_to_send(self.now)
        assert data is not None
        (mine,) = self.me.receive(data, self.now)
        assert isinstance(yours, Resumed)
        assert isinstance(mine, Resumed)
        self.pass_on()
        return mine, yours

    def send(self, *names: str, kind: Kind = Kind.SEND, **more: Any) -> list[Message]:
        """`me` sends."""
        sent = [made(self.ids[0], kind, name, **more) for name in names]
        for message in sent:
            self.me.send(message)
        return sent

    def names(self) -> str:
        """The names of what `you` has got, one letter each."""
        return "".join(message.name for message in self.messages(self.you))


def test_a_new_session_after_a_break_has_its_own_credit() -> None:
    """What was given counts beyond what was taken; or the peer would send too much, then stop for ever."""
    two = Two()
    for _ in range(10):
        two.you.send(made("you"))
        two.pass_on()
    two.break_()
    mine, yours = two.back(token=b"forged")
    assert not mine.recovered
    assert not yours.recovered
    for session in (two.me, two.you):
        assert session.out.credit == session_credit(other(two, session))
    for n in range(30):
        for session, id in ((two.me, "me"), (two.you, "you")):
            session.send(made(id))
            assert session.out.credit.seq <= n + SMALL.credit_messages
        two.pass_on()
    assert len(two.messages(two.you)) == 30
    assert len(two.messages(two.me)) == 40


def other(two: Two, session: Session) -> Session:
    return two.you if session is two.me else two.me


def session_credit(session: Session) -> Credit | None:
    return session.into.given


def test_a_new_session_after_the_old_one_was_forgotten_has_its_own_credit() -> None:
    two = Two()
    for _ in range(10):
        two.you.send(made("you"))
        two.pass_on()
    two.break_()
    two.now += RESUME_SECONDS
    assert [type(event) for event in two.me.tick(two.now)] == [Missing, Forgotten]
    hello = two.hello()
    assert (hello.session, hello.token, hello.received, hello.received_bytes) == ("", b"", 0, 0)
    assert hello.credit == Credit(SMALL.credit_messages, SMALL.credit_bytes)


def test_a_session_that_is_given_up_says_what_it_has_taken_and_takes_no_more() -> None:
    """Its peer must neither take that for uncertain, nor our end for a mistake of its own."""
    two = Two()
    two.you.send(made("you"))
    two.send("a")
    two.pass_on()
    two.me.goodbye(Code.RESOURCE_EXHAUSTED, "too slow")
    two.me.lost()
    two.you.send(made("you"))
    ack, more = wire.encode(Ack(1)), next(out(two.you))
    assert two.me.receive(ack, two.now) == two.me.receive(more, two.now) == []
    (goodbye,) = [frame for frame in said(two.me) if isinstance(frame, Goodbye)]
    assert (goodbye.code, goodbye.received) == (Code.RESOURCE_EXHAUSTED, 1)
    assert two.me.phase is Phase.CLOSED


def test_attempts_that_come_to_nothing_do_not_prolong_the_wait() -> None:
    two = Two()
    (waiting,) = two.send("a")
    two.break_()
    for _ in range(4):
        two.now += 1
        two.hello()
        assert two.me.disconnected(two.now)
    assert two.me.next_deadline() == NOW + AWAY_SECONDS
    two.now += 1
    assert two.me.tick(two.now) == [Missing([waiting])]
    two.hello()
    assert two.me.disconnected(two.now)
    assert two.me.next_deadline() == NOW + RESUME_SECONDS
    assert two.me.tick(NOW + RESUME_SECONDS) == [Forgotten([])]
    assert two.me.next_deadline() == inf


def test_what_an_attempt_has_not_said_is_not_said_by_the_next() -> None:
    """Hello is the first frame, and there is one."""
    two = Two()
    two.break_()
    two.me.dial(two.intro("me"), two.now)
    two.me.announce(handles=["x"])
    two.me.control(Query("me.7.q1", NAME, 3))
    assert two.me.disconnected(two.now)
    two.me.dial(two.intro("me"), two.now)
    assert [type(frame) for frame in said(two.me)] == [Hello]


# ------------------------------------------------------------------------------- whoever says goodbye stays away


def test_a_session_that_ends_is_not_taken_up_again() -> None:
    two = Two()
    two.you.goodbye()
    two.me.disconnected(two.now)
    assert two.dial() is None
    assert two.you.phase is Phase.CLOSING
    assert [type(frame) for frame in said(two.you)] == [Goodbye]
    two.you.disconnected(two.now)
    assert two.dial() is None
    assert two.you.phase is Phase.CLOSED


def test_whoever_leaves_while_dialling_again_is_not_told_to_come_back() -> None:
    two = Two()
    two.break_()
    two.hello()
    two.me.goodbye()
    (event,) = two.me.receive(wire.encode(Goodbye(Code.ALREADY_EXISTS, "too soon", 2_000, exchange="you")), NOW)
    assert event == Ended(Code.ALREADY_EXISTS, "too soon", "you", 2_000)
    assert two.me.phase is Phase.CLOSED


def test_a_peer_that_is_silent_while_we_leave_is_not_waited_for() -> None:
    two = Two()
    two.me.goodbye()
    assert [type(frame) for frame in said(two.me)] == [Goodbye]
    for seconds in range(1, int(SILENCE_SECONDS)):
        assert two.me.tick(NOW + seconds) == []
    (event,) = two.me.tick(NOW + SILENCE_SECONDS)
    assert isinstance(event, Ended)
    assert (event.code, event.by) == (Code.UNAVAILABLE, "me")
    assert two.me.phase is Phase.CLOSED


def test_a_gap_while_we_leave_ends_the_session() -> None:
    two = Two()
    two.send("a", "b")
    two.you.goodbye()
    (event,) = two.you.receive(batch(packed(), seq=2), NOW)
    assert isinstance(event, Ended)
    assert event.code is Code.DATA_LOSS


# ---------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "early", [Interest(1, handles=("x",)), Query("me.7.q1", NAME, 3), Answer("you.7.q1", NAME, Found.NO)]
)
def test_what_is_said_before_welcome_is_heard_does_not_end_the_former_token(early: Frame) -> None:
    two = Two()
    two.break_()
    token = two.me._token
    assert two.dial() is not None
    assert two.you.receive(wire.encode(early), two.now) == [early]
    two.break_()
    mine, yours = two.back()
    assert mine.recovered
    assert yours.recovered
    assert two.me._token != token


# -------------------------------------------------------------------------------------------- a contested id


def stranger(two: Two) -> list[Event] | None:
    """Somebody without the token claims to be `me`."""
    return two.you.rejoin(two.intro("me"), two.intro("you"), two.now)


def test_a_peer_that_is_alive_keeps_its_id() -> None:
    two = Two()
    assert stranger(two) is None
    two.pass_on()
    two.now += CONTEST_SECONDS
    assert two.you.tick(two.now) == []
    assert two.you.phase is Phase.OPEN
    assert stranger(two) is None, "and is asked anew each time"
    assert [type(frame) for frame in said(two.you)] == [Ping]


def test_a_peer_that_does_not_answer_loses_its_id() -> None:
    two = Two()
    two.send("a")
    assert stranger(two) is None
    assert [type(frame) for frame in said(two.you)] == [Ping]
    assert two.you.next_deadline() == NOW + CONTEST_SECONDS
    two.now += CONTEST_SECONDS
    broken, missing = two.you.tick(two.now)
    assert isinstance(broken, Broken)
    assert broken.reason == "nothing was heard of it for 2 s, and another claims its id"
    assert missing == Missing([])
    (event,) = stranger(two) or ()
    assert isinstance(event, Resumed)
    assert not event.recovered
    assert two.you.phase is Phase.OPEN


def test_whoever_comes_back_after_the_contest_need_not_wait_for_a_tick() -> None:
    two = Two()
    assert stranger(two) is None
    two.now += CONTEST_SECONDS - 0.001
    assert stranger(two) is None
    two.now += 0.001
    (event,) = stranger(two) or ()
    assert isinstance(event, Resumed)
    assert not event.recovered


def test_the_right_peer_that_comes_back_ends_the_contest() -> None:
    two = Two()
    assert stranger(two) is None
    two.now += 1
    mine, _ = two.back()
    assert mine.recovered
    two.now += CONTEST_SECONDS - 1
    assert two.you.tick(two.now) == []


def test_a_peer_that_answers_no_ping_keeps_its_id_while_its_connection_lasts() -> None:
    session = opened()
    assert session.next_deadline() == inf
    for seconds in (0, 10, 1_000):
        assert session.rejoin(intro("you"), intro("me"), NOW + seconds) is None
        assert said(session) == []
        assert session.tick(NOW + seconds) == []
    session.disconnected(NOW)
    assert session.phase is Phase.CLOSED, "it cannot resume"


# --------------------------------------------------------------------------------- two who dial at the same time


def test_of_two_who_dial_again_at_the_same_time_the_smaller_id_wins() -> None:
    two = Two()
    two.break_()
    assert two.you.rejoin(two.hello(), two.intro("you"), two.now) is not None
    two.break_()
    two.hello()
    assert two.me.rejoin(two.intro("you"), two.intro("me"), two.now) is None, "who is larger waits for us"
    assert two.me.phase is Phase.OPENING


def test_the_larger_id_lets_the_smaller_one_in() -> None:
    """It dials again, and is dialled by the peer, which has dialled before as well."""
    two = Two(me="z", you="a")
    two.break_()
    a = replace(two.intro("a"), session=two.me._session, token=two.me._token)
    two.hello()
    (event,) = two.me.rejoin(a, two.intro("z"), two.now) or ()
    assert isinstance(event, Resumed)
    assert event.recovered
    assert two.me.phase is Phase.OPEN
    assert [type(frame) for frame in said(two.me)] == [Welcome]


# ------------------------------------------------------------------------------------------------------- time


def test_what_cannot_be_written_is_not_due_again_and_again() -> None:
    """Or whoever waits for the next deadline would never sleep."""
    two = Two()
    two.send("a")
    two.you.receive(next(out(two.me)), NOW)
    assert two.you.next_deadline() == NOW + ACK_SECONDS
    two.you.tick(NOW + ACK_SECONDS)
    assert two.you.next_deadline() == pytest.approx(NOW + 2 * ACK_SECONDS)
    assert [type(frame) for frame in said(two.you, NOW + ACK_SECONDS)] == [Ack, Credit]
    two.you.receive(b"\xff" * 9, NOW)
    assert two.you.phase is Phase.CLOSED
    assert two.you.next_deadline() == inf


def test_a_deadline_that_has_passed_is_not_the_next() -> None:
    two = Two()
    while two.me.phase is Phase.OPEN or not two.me._forgotten:
        due = two.me.next_deadline()
        assert two.now < due < inf
        two.now = due
        two.me.tick(two.now)
    assert two.me.next_deadline() == inf


# ---------------------------------------------------------------------------------------------- dialling again


def test_the_first_attempt_is_at_once_and_the_pauses_grow() -> None:
    backoff = Backoff(Limits(reconnect_min_seconds=0.1, reconnect_max_seconds=1), lambda: 0.5)
    backoff.made(NOW)
    backoff.broke(NOW + 60)
    assert [backoff.next() for _ in range(7)] == pytest.approx([0, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5])
    for _ in range(5_000):
        assert 0 < backoff.next() <= 1


def test_a_link_that_lasts_begins_anew_with_its_pauses() -> None:
    backoff = Backoff(Limits(reconnect_min_seconds=0.1), lambda: 1.0)
    for lasted, first in ((60, True), (0.099, False), (0.101, True)):
        backoff.made(NOW)
        backoff.broke(NOW + lasted)
        assert (backoff.next() == 0) is first
        assert backoff.next() > 0


def test_attempts_that_are_refused_do_not_come_without_a_pause() -> None:
    backoff = Backoff(Limits(), lambda: 1.0)
    backoff.made(NOW)
    pauses = []
    for n in range(5):
        backoff.broke(NOW + 60 + n)
        pauses.append(backoff.next())
    assert pauses == pytest.approx([0, 0.1, 0.2, 0.4, 0.8])


# ------------------------------------------------------------------------------------ Welcome to one who is back


@pytest.mark.parametrize("changes", [{"session": "other"}, {"epoch": 8}, {"exchange": "far"}, {"received": 9}])
def test_a_session_that_is_none_of_ours_cannot_go_on(changes: dict[str, Any]) -> None:
    two = Two()
    session, token = two.me._session, two.me._token
    two.break_()
    two.hello()
    welcome = two.intro("you", session=session, token=token, recovered=True)
    (event,) = two.me.receive(wire.encode(Welcome(replace(welcome, **changes))), two.now)
    assert isinstance(event, Ended)
    assert event.code is Code.INVALID_ARGUMENT


def test_a_session_that_was_forgotten_cannot_go_on() -> None:
    two = Two()
    two.break_()
    two.me.tick(NOW + RESUME_SECONDS)
    two.hello()
    (event,) = two.me.receive(wire.encode(Welcome(two.intro("you", recovered=True))), two.now)
    assert isinstance(event, Ended)
    assert event.code is Code.INVALID_ARGUMENT


def test_what_is_queued_for_a_missing_peer_is_not_forgotten() -> None:
    two = Two()
    two.break_()
    assert two.me.tick(NOW + AWAY_SECONDS) == [Missing([])]
    (late,) = two.send("a", seconds=600)
    assert two.me.tick(NOW + RESUME_SECONDS) == [Forgotten([])]
    assert two.me.lost() == ([], [late])


# --------------------------------------------------------------------------------- resumed, wherever it broke off


def test_all_that_was_sent_arrives_once_wherever_the_connection_breaks() -> None:
    """After each frame of the handshake, of what is sent, and of the handshake after that."""
    for first in range(9):
        for second in range(7):
            two = Two()
            two.send(*"abcdef")
            two.you.send(made("you", name="x"))
            two.pass_on(first)
            two.break_()
            assert two.dial() is not None
            two.pass_on(second)
            two.break_()
            mine, yours = two.back()
            assert mine.recovered, (first, second)
            assert yours.recovered, (first, second)
            assert two.names() == "abcdef", (first, second)
            assert [message.name for message in two.messages(two.me)] == ["x"], (first, second)
            two.now += ACK_SECONDS
            two.pass_on()
            assert two.me.out.unacknowledged == two.you.out.unacknowledged == 0


def test_hello_and_welcome_say_where_the_session_stands() -> None:
    two = Two()
    two.send("a", "b")
    two.you.send(made("you"))
    two.pass_on()
    session, token = two.me._session, two.me._token
    two.break_()
    hello = two.hello()
    assert (hello.session, hello.token, hello.received) == (session, token, 1)
    assert hello.received_bytes == two.you.out._sent_bytes > 0
    assert hello.credit == Credit(1 + SMALL.credit_messages, hello.received_bytes + SMALL.credit_bytes)
    assert two.you.rejoin(hello, two.intro("you"), two.now) is not None
    (welcome,) = said(two.you)
    assert isinstance(welcome, Welcome)
    assert welcome.me.recovered
    assert (welcome.me.session, welcome.me.received) == (session, 2)
    assert welcome.me.token not in (token, b"")
    assert len(welcome.me.token) == 16


WRONG: dict[str, dict[str, Any]] = {
    "token": {"token": b"wrong"},
    "no token": {"token": b""},
    "session": {"session": "wrong"},
    "no session": {"session": ""},
    "epoch": {"epoch": 8},
    "more than was sent": {"received": 99},
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_prove_itself_begins_a_new_session(what: str) -> None:
    two = Two()
    sent = two.send(*"abcdef")
    two.pass_on(2)
    two.you.send(made("you", name="x"))
    two.break_()
    session = two.me._session
    mine, yours = two.back(**WRONG[what])
    assert not mine.recovered
    assert not yours.recovered
    assert two.me._session != session
    assert {*mine.uncertain} >= {message.id for message in sent[:4] if message.name not in two.names()}
    assert [message.name for message in mine.unsent] == list("ef")
    assert [message.name for message in yours.unsent] == ["x"]
    two.send("z")
    two.pass_on()
    assert two.names()[-1] == "z"
    two.break_()
    assert two.back(epoch=two.you.peer.epoch)[0].recovered, "and that can be resumed in turn"  # type: ignore[union-attr]


@pytest.mark.parametrize("which", ["former", "current", "older"])
def test_the_former_token_counts_until_the_peer_has_the_other(which: str) -> None:
    two = Two()
    tokens = [two.me._token]
    for _ in range(2):
        two.break_()
        assert two.dial(token=tokens[-1]) is not None
        tokens.append(two.you._token)
    two.break_()
    token = {"older": tokens[0], "former": tokens[1], "current": tokens[2]}[which]
    (event,) = two.dial(token=token) or ()
    assert isinstance(event, Resumed)
    assert event.recovered is (which != "older")


@pytest.mark.parametrize(
    "frame", [Ack(0), Credit(9, 9), Ping(1), Pong(1), Reject(0, "", RequestError("x")), Batch(1, [])]
)
def test_the_former_token_does_not_count_once_the_peer_has_the_other(frame: Frame) -> None:
    two = Two()
    two.break_()
    former = two.me._token
    assert two.dial() is not None
    data = batch(packed()) if isinstance(frame, Batch) else wire.encode(frame)
    two.you.receive(data, two.now)
    two.break_()
    (event,) = two.dial(token=former) or ()
    assert isinstance(event, Resumed)
    assert not event.recovered


def test_a_session_is_kept_for_so_long_and_no_longer() -> None:
    for seconds, recovered in ((RESUME_SECONDS - 0.001, True), (RESUME_SECONDS, False)):
        two = Two()
        (message,) = two.send("a", seconds=600)
        two.me.data_to_send(two.now)
        two.break_()
        assert two.you.next_deadline() == NOW + AWAY_SECONDS
        two.now = NOW + AWAY_SECONDS
        assert two.you.tick(two.now) == two.me.tick(two.now) == [Missing([])]
        assert two.me.tick(two.now) == [], "told once"
        assert two.you.next_deadline() == NOW + RESUME_SECONDS
        two.now = NOW + seconds
        forgotten = two.me.tick(two.now)
        assert two.you.tick(two.now) == ([] if recovered else [Forgotten([])])
        assert forgotten == ([] if recovered else [Forgotten([message.id])])
        assert two.me.tick(two.now) == []
        assert two.back()[0].recovered is recovered
        assert two.names() == ("a" if recovered else "")


def test_only_one_who_can_resume_is_waited_for() -> None:
    for features, waits in ((FEATURES, True), (("ping",), False)):
        session = Session(intro("me", features=FEATURES), dialled=False, now=NOW, draw=Tokens())
        session.receive(wire.encode(Hello(intro("you", features=features))), NOW)
        session.welcome(intro("me", features=FEATURES))
        assert session.disconnected(NOW) is waits
        assert session.phase is (Phase.AWAY if waits else Phase.CLOSED)
    session = Session(intro("me", features=FEATURES), dialled=False, now=NOW)
    session.receive(wire.encode(Hello(intro("you", features=FEATURES))), NOW)
    session.welcome(intro("me", features=FEATURES))
    assert not session.disconnected(NOW), "without tokens nobody can"


def test_whoever_dialled_comes_back_to_one_who_cannot_resume() -> None:
    me = opened(dialled=True)
    me.send(made())
    list(out(me))
    unsent = made()
    me.send(unsent)
    assert me.disconnected(NOW)
    assert me.tick(NOW + AWAY_SECONDS) == [Missing([unsent])]
    assert me.tick(NOW + RESUME_SECONDS) == [Forgotten([])], "nothing is known of what has left"
    assert me.next_deadline() == inf
    me.dial(intro("me"), NOW)
    (hello,) = said(me)
    assert isinstance(hello, Hello)
    assert (hello.me.session, hello.me.token) == ("", b"")
    (event,) = me.receive(wire.encode(Welcome(intro("you"))), NOW)
    assert event == Resumed(intro("you"), False)


def test_a_session_that_never_opened_is_not_waited_for() -> None:
    for dialled in (True, False):
        session = Session(intro("me"), dialled=dialled, now=NOW)
        assert not session.disconnected(NOW)
        assert session.phase is Phase.CLOSED


def test_nothing_is_said_or_heard_while_away() -> None:
    two = Two()
    two.break_()
    two.send("a")
    two.me.announce(handles=["x"])
    assert not two.me.control(Query("me.7.q1", NAME, 3))
    assert two.me.data_to_send(NOW) == (None, [])
    assert two.me.receive(wire.encode(Ping(1)), NOW) == []
    assert not two.me.disconnected(NOW) or two.me.phase is Phase.AWAY
    two.me.goodbye()
    assert two.me.phase is Phase.CLOSED
    assert said(two.me) == []


def test_a_refusal_survives_a_break() -> None:
    """Unlike all other control frames: nobody else says it anew."""
    two = Two()
    (forged_,) = [made("far")]
    two.me.send(forged_)
    assert two.you.receive(next(out(two.me)), NOW) == []
    two.break_()
    two.back()
    (rejected,) = [event for event in two.got[two.me] if isinstance(event, Rejected)]
    assert rejected.id == forged_.id


def test_a_dial_that_comes_too_soon_is_repeated() -> None:
    two = Two()
    two.break_()
    two.hello()
    goodbye = Goodbye(Code.ALREADY_EXISTS, "linked already", 2_000, exchange="you")
    assert two.me.receive(wire.encode(goodbye), NOW) == [Broken("linked already", 2_000)]
    assert two.me.phase is Phase.AWAY
    two.hello()
    (event,) = two.me.receive(wire.encode(replace(goodbye, stay_away=True)), NOW)
    assert isinstance(event, Ended)
    assert event.stay_away
    assert two.me.phase is Phase.CLOSED


def test_an_attempt_without_an_answer_is_repeated() -> None:
    two = Two()
    two.break_()
    two.now += 1
    two.hello()
    assert two.me.next_deadline() == two.now + HANDSHAKE_SECONDS
    assert two.me.tick(two.now + HANDSHAKE_SECONDS - 0.001) == []
    assert two.me.tick(two.now + HANDSHAKE_SECONDS) == [Broken("no introduction within 5 s")]
    assert two.me.phase is Phase.AWAY


def test_an_ended_session_may_be_dialled_anew() -> None:
    two = Two()
    two.send(*"abcdef")
    two.pass_on()
    session = two.me._session
    two.you.goodbye(Code.UNAVAILABLE, "restart", retry_after_ms=500)
    two.pass_on()
    (ended_,) = [event for event in two.got[two.me] if isinstance(event, Ended)]
    assert (ended_.code, ended_.retry_after_ms, ended_.stay_away) == (Code.UNAVAILABLE, 500, False)
    assert two.me.phase is two.you.phase is Phase.CLOSED
    assert two.me.lost() == ([], [])
    two.me.revive(two.now)
    assert two.me.phase is Phase.AWAY
    assert two.me.next_deadline() == inf, "all was told"
    assert two.me.tick(two.now + 1_000) == []
    hello = two.hello()
    assert (hello.session, hello.token, hello.received) == ("", b"", 0)
    two.you = Session(two.intro("you"), dialled=False, now=NOW, limits=SMALL, draw=Tokens())
    two.got[two.you] = []
    two.heard(two.you, wire.encode(Hello(hello)))
    two.pass_on()
    assert two.got[two.me][-1] == Resumed(two.me.peer, False)  # type: ignore[arg-type]
    two.send("z")
    two.pass_on()
    assert two.names() == "z"
    assert session


# ------------------------------------------------------------------------------------------------- gaps and overruns


def test_a_gap_breaks_the_stream_once_and_then_ends_the_session() -> None:
    two = Two()
    two.send("a")
    two.pass_on()
    (broken,) = two.you.receive(batch(packed(), seq=3), two.now)
    assert broken == Broken("message 3 came after 1")
    assert two.you.phase is Phase.AWAY
    assert two.me.disconnected(two.now)
    assert two.back()[0].recovered
    two.send("b")
    two.pass_on()
    assert two.names() == "ab"
    assert two.you.receive(batch(packed(), seq=4), two.now) == [Broken("message 4 came after 2")], "another place"
    two.me.disconnected(two.now)
    two.back()
    (event,) = two.you.receive(batch(packed(), seq=4), two.now)
    assert event == Ended(Code.DATA_LOSS, "message 4 came after 2", "you")


def test_a_gap_in_a_new_session_is_another_place() -> None:
    two = Two()
    two.you.receive(batch(packed(), seq=2), two.now)
    two.me.disconnected(two.now)
    assert not two.back(token=b"wrong")[0].recovered
    assert two.you.receive(batch(packed(), seq=2), two.now) == [Broken("message 2 came after 0")]


def test_a_gap_of_one_who_cannot_resume_ends_the_session() -> None:
    session = opened()
    ended(session, session.receive(batch(packed(), seq=2), NOW), Code.DATA_LOSS)


def test_what_was_taken_is_not_taken_again() -> None:
    session = opened()
    assert len(received(session.receive(batch(packed("a"), packed("b"), seq=1), NOW))) == 2
    assert session.receive(batch(packed("a"), packed("b"), seq=1), NOW) == []
    assert [m.name for m in received(session.receive(batch(packed("b"), packed("c"), seq=2), NOW))] == ["c"]


@pytest.mark.parametrize("frame", [Ack(2), Goodbye(received=2)])
def test_nobody_can_take_what_was_not_sent(frame: Frame) -> None:
    two = Two()
    two.send("a")
    two.pass_on()
    (event,) = two.me.receive(wire.encode(frame), NOW)
    assert isinstance(event, Ended)
    assert (event.code, event.stay_away) == (Code.INVALID_ARGUMENT, True)


def test_more_than_there_was_credit_for_ends_the_session() -> None:
    two = Two()
    sent = [packed(seq_name) for seq_name in "abcde"]
    assert len(received(two.you.receive(batch(*sent[:4]), NOW))) == 4
    (event,) = two.you.receive(batch(sent[4]), NOW)
    assert isinstance(event, Ended)
    assert event.code is Code.RESOURCE_EXHAUSTED


def test_cancels_come_without_credit() -> None:
    two = Two()
    cancels = [packed("c", kind=4, reply_to="me.7.1") for _ in range(50)]
    assert len(received(two.you.receive(batch(*cancels), NOW))) == 50
    (event,) = two.you.receive(batch(packed(), *cancels), NOW)
    assert isinstance(event, Ended), "but nothing else does"


def test_one_who_gave_no_credit_keeps_to_none() -> None:
    session = Session(intro("me"), dialled=False, now=NOW, limits=SMALL)
    session.receive(wire.encode(Hello(intro("you"))), NOW)
    session.welcome(intro("me"))
    list(out(session))
    assert len(received(session.receive(batch(*[packed()] * 50), NOW))) == 50
    assert said(session, NOW + 1) == [], "nor is any told"
    session.send(made())
    session.receive(wire.encode(Credit(0, 0)), NOW)
    assert len(said(session)) == 1


def test_credit_lets_more_leave() -> None:
    two = Two()
    two.send(*"abcdef")
    frames = [frame for frame in said(two.me) if isinstance(frame, Batch)]
    assert [len(frame.messages) for frame in frames] == [4]
    two.me.receive(wire.encode(Credit(5, 2**30)), NOW)
    (frame,) = said(two.me)
    assert isinstance(frame, Batch)
    assert (frame.seq, len(frame.messages)) == (5, 1)


# ------------------------------------------------------------------------------------------------- is anybody there


def test_a_heartbeat_of_silence_is_followed_by_a_ping() -> None:
    two = Two()
    assert two.me.next_deadline() == NOW + HEARTBEAT_SECONDS
    assert two.me.tick(NOW + HEARTBEAT_SECONDS - 0.001) == []
    assert said(two.me) == []
    assert two.me.tick(NOW + HEARTBEAT_SECONDS) == []
    (ping,) = said(two.me)
    assert isinstance(ping, Ping)
    two.now = NOW + HEARTBEAT_SECONDS
    two.heard(two.you, wire.encode(ping))
    assert said(two.you) == [Pong(ping.nonce)]
    assert two.me.next_deadline() == NOW + 2 * HEARTBEAT_SECONDS
    two.heard(two.me, wire.encode(Pong(ping.nonce)))
    assert two.me.tick(NOW + SILENCE_SECONDS) == [], "it was heard"


def test_whatever_is_heard_is_a_sign_of_life() -> None:
    two = Two()
    for seconds in range(0, 60, 4):
        two.me.receive(wire.encode(Credit(9, 9)), NOW + seconds)
        assert two.me.tick(NOW + seconds) == []
        assert said(two.me, NOW + seconds) == []


def test_one_who_is_silent_for_long_is_gone_and_missing() -> None:
    two = Two()
    two.send("a", seconds=600)
    for seconds in (5, 10, 14.999):
        assert two.me.tick(NOW + seconds) == []
    (unsent,) = [entry.message for entry in two.me.out._queue]
    broken, missing = two.me.tick(NOW + SILENCE_SECONDS)
    assert broken == Broken("nothing was heard of it for 15 s")
    assert missing == Missing([unsent])
    assert two.me.phase is Phase.AWAY
    assert two.me.next_deadline() == NOW + SILENCE_SECONDS + RESUME_SECONDS


def test_after_a_sleep_of_ours_the_peer_has_a_heartbeat_to_be_heard() -> None:
    two = Two()
    later = NOW + 3_600
    assert two.me.tick(later) == []
    assert [type(frame) for frame in said(two.me, later)] == [Ping]
    assert two.me.tick(later + HEARTBEAT_SECONDS - 0.001) == []
    assert [type(event) for event in two.me.tick(later + HEARTBEAT_SECONDS)] == [Broken, Missing]


def test_a_pong_is_the_one_of_the_last_ping() -> None:
    two = Two()
    for nonce in (7, 8):
        assert two.you.receive(wire.encode(Ping(nonce)), NOW) == []
    assert said(two.you) == [Pong(8)]
    assert said(two.you) == []


# ------------------------------------------------------------------------------------------------------ goodbyes


def test_a_goodbye_says_what_was_taken_so_that_the_rest_is_unsent() -> None:
    two = Two()
    sent = two.send(*"abcdef")
    (data,) = out(two.me)
    two.you.goodbye(Code.UNAVAILABLE, "restart")
    goodbye = next(out(two.you))
    (event,) = two.me.receive(goodbye, NOW)
    assert event == Ended(Code.UNAVAILABLE, "restart", "you")
    assert two.me.lost() == ([], sent), "it never took them"
    assert [type(frame) for frame in said(two.me)] == [Goodbye]
    assert data


def test_a_goodbye_is_answered_by_a_goodbye() -> None:
    two = Two()
    two.send("a")
    two.you.goodbye()
    for data in out(two.you):
        two.heard(two.me, data)
    assert two.you.phase is Phase.CLOSING, "until it has heard ours"
    two.pass_on()
    assert two.me.phase is two.you.phase is Phase.CLOSED
    assert two.got[two.you][-1] == Ended(Code.OK, "", "me")


def test_goodbyes_that_cross() -> None:
    two = Two()
    for session in (two.me, two.you):
        session.goodbye(Code.OK, "enough")
    frames = [next(out(session)) for session in (two.me, two.you)]
    assert [type(event) for event in two.me.receive(frames[1], NOW)] == [Ended]
    assert [type(event) for event in two.you.receive(frames[0], NOW)] == [Ended]
    assert said(two.me) == said(two.you) == [], "neither is answered"


def test_nothing_is_taken_after_our_goodbye() -> None:
    two = Two()
    two.you.goodbye()
    assert [type(frame) for frame in said(two.you)] == [Goodbye]
    two.send("a")
    assert two.you.receive(next(out(two.me)), NOW) == []
    assert two.you.into.received == 0


def test_one_who_reads_nothing_hears_no_more_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.peer.CONTROL_FRAMES", 2)
    session = opened()
    for name in "ab":
        session.announce(handles=[name])
    assert session.phase is Phase.OPEN
    session.announce(handles=["c"])
    assert session.phase is Phase.CLOSING
    frames = said(session)
    assert [type(frame) for frame in frames] == [Interest, Interest, Goodbye]
    assert isinstance(frames[-1], Goodbye)
    assert frames[-1].code is Code.RESOURCE_EXHAUSTED


def test_a_goodbye_that_does_not_say_what_was_taken_leaves_it_uncertain() -> None:
    two = Two()
    taken, sent = two.send("a")[0], made()
    two.now += ACK_SECONDS
    two.pass_on()
    two.now += ACK_SECONDS
    two.pass_on()
    assert two.me.out.unacknowledged == 0
    two.me.send(sent)
    list(out(two.me))
    assert two.me.receive(wire.encode(Goodbye(exchange="you")), two.now) == [Ended(Code.OK, "", "you")]
    assert two.me.lost() == ([taken.id, sent.id], [])
    assert [type(frame) for frame in said(two.me)] == [Goodbye]


def test_a_gap_is_waited_for_from_when_it_was_found() -> None:
    two = Two()
    two.you.receive(batch(packed(), seq=2), NOW + 3)
    assert two.you.next_deadline() == NOW + 3 + AWAY_SECONDS
