"""Message, Trace and Context: where a message has been, and because of what."""

import itertools
from hashlib import blake2b
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange.v1.message_pb2 import Message as Packed
from exchange_grpc import wire
from exchange_grpc.errors import InvalidMessage
from exchange_grpc.limits import CAUSES, HOPS, ID_LENGTH, PATH, TRACE_BASE_BYTES, TRACE_BYTES
from exchange_grpc.message import Context, Hop, Kind, Message, Origin, Trace, encode_value, merged
from exchange_grpc.payload import BINARY, JSON

NOW, WALL = 100.0, 1_700_000_000.0


def made(exchange: str, context: Context = Context(), n: int = 0, **more: Any) -> Message:  # noqa: B008
    origin = Origin(exchange, 7, WALL)
    origin._count = n
    return origin.make(Kind.SEND, "a.b", context, NOW, **more)


def travel(message: Message, *exchanges: str) -> Message:
    """`message` after it has reached each of `exchanges`."""
    for exchange in exchanges:
        message.reached(exchange, NOW)
    return message


def test_an_origin_counts() -> None:
    origin = Origin("me", 7, WALL)
    first, second = (origin.make(Kind.REQUEST, "a", Context(), NOW, seconds=3) for _ in range(2))
    assert (first.id, second.id) == ("me.7.1", "me.7.2")
    assert first.deadline == NOW + 3
    assert first.timestamp == NOW + WALL
    assert first.from_ == "me"
    assert first.hops == (Hop("me", NOW + WALL),)


def test_a_beginning_is_its_own_root() -> None:
    message = made("a")
    assert (message.root, message.causes, message.trace) == (message.id, (), ["a"])


def test_what_a_handler_emits_has_the_message_as_cause() -> None:
    first = travel(made("a"), "b", "c")
    second = travel(made("c", Context.of(first)), "d")
    third = made("d", Context.of(second))
    assert second.causes == (first.id,)
    assert third.causes == (second.id,)
    assert first.root == second.root == third.root == first.id
    assert second.hops == (Hop("c", NOW + WALL), Hop("d", NOW))
    assert second.trace == ["a", "b", "c", "d"]
    assert third.trace == ["a", "b", "c", "d"]


def test_the_example_of_the_vision() -> None:
    """browser asks server, server asks worker, worker answers, server answers: nothing is dropped on the way."""
    to_server = travel(made("browser"), "server")
    to_worker = travel(made("server", Context.of(to_server)), "worker")
    from_worker = travel(made("worker", Context.of(to_worker)), "server")
    last = travel(made("server", Context.of(from_worker)), "browser")
    assert last.hop_trace.path == ("browser", "server", "worker", "server")
    assert [hop.exchange for hop in last.hops] == ["server", "browser"]
    assert last.trace == ["browser", "server", "worker", "server", "browser"]


def test_an_awaited_reply_is_a_further_and_newer_cause() -> None:
    to_server = travel(made("browser"), "server")
    to_worker = travel(made("server", Context.of(to_server)), "worker")
    from_worker = travel(made("worker", Context.of(to_worker)), "server")
    context = Context.of(to_server).then(from_worker)
    last = travel(made("server", context, n=5), "browser")
    assert last.causes == (to_server.id, from_worker.id)
    assert last.root == to_server.id
    assert last.trace == ["browser", "server", "worker", "server", "browser"]


def test_then_on_a_beginning_takes_root_and_trace_of_the_reply() -> None:
    reply = travel(made("b"), "a")
    message = made("a", Context().then(reply))
    assert message.root == reply.root
    assert message.traceparent[:36] == reply.traceparent[:36]


def test_direct_causes_are_bounded_the_oldest_go() -> None:
    context = Context.of(made("a"))
    replies = [made("b", n=n) for n in range(CAUSES + 5)]
    for n, reply in enumerate(replies):
        context = context.then(reply)
        assert context.cut is (n + 2 > CAUSES)
    message = made("a", context)
    assert message.causes == tuple(reply.id for reply in replies[-CAUSES:])
    assert message.hop_trace.cut


def test_the_path_is_bounded_the_oldest_go() -> None:
    message = made("e0")
    for n in range(1, PATH + 3):
        message = made(f"e{n}", Context.of(travel(message, f"e{n}")))
        assert message.hop_trace.cut is (n + 1 > PATH)
    assert message.hop_trace.path == tuple(f"e{n}" for n in range(3, PATH + 3))
    assert made("z", Context.of(message)).hop_trace.cut


@given(
    st.lists(st.integers(1, ID_LENGTH), max_size=PATH),
    st.lists(st.integers(1, ID_LENGTH), max_size=CAUSES),
    st.integers(0, ID_LENGTH),
)
def test_a_trace_fits_its_limit_even_after_all_its_hops(path: list[int], causes: list[int], root: int) -> None:
    longest = 2**64 - 1
    context = Context(
        tuple(f"{'c' * n}.{longest}.{longest}" for n in causes),
        f"{'r' * root}.{longest}.{longest}" if root else "",
        tuple(f"{'p' * n}" for n in path),
        False,
        "00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )
    message = made("o" * ID_LENGTH, context)
    trace = message.hop_trace
    assert trace.causes == context.causes
    assert trace.path == context.path[len(context.path) - len(trace.path) :]
    assert trace.cut == (trace.path != context.path)
    travel(message, *["h" * ID_LENGTH] * HOPS)
    assert wire.pack(message).trace.ByteSize() <= TRACE_BYTES


def test_the_oldest_of_a_long_path_go_first() -> None:
    path = tuple(f"{n:02}" + "p" * (ID_LENGTH - 2) for n in range(PATH))
    causes = tuple(f"{'c' * 50}.1.{n}" for n in range(CAUSES))
    trace = made("me", Context(causes, causes[0], path)).hop_trace
    assert trace.cut
    assert trace.causes == causes
    assert 0 < len(trace.path) < PATH
    assert trace.path == path[-len(trace.path) :]


def test_causes_alone_never_outgrow_the_trace() -> None:
    """Nothing but the path is ever left out for its size: the limits of the other fields leave room for them."""
    longest = ID_LENGTH + 2 * 21
    assert (CAUSES + 1) * (longest + 2) < TRACE_BASE_BYTES


@given(st.lists(st.sampled_from("abc"), max_size=20))
def test_merged(names: list[str]) -> None:
    result = merged(names)
    assert all(a != b for a, b in itertools.pairwise(result))
    assert set(result) == set(names)
    assert merged(result) == result


def test_every_message_has_a_span_of_one_w3c_trace() -> None:
    first = made("a")
    second = made("b", Context.of(first))
    other = made("a", n=1)
    version, trace, span, flags = first.traceparent.split("-")
    assert (version, len(trace), len(span), flags) == ("00", 32, 16, "01")
    assert int(trace, 16)
    assert int(span, 16)
    assert second.traceparent.split("-")[1] == trace
    assert second.traceparent.split("-")[2] != span
    assert other.traceparent.split("-")[1] != trace


def test_a_traceparent_is_what_the_schema_says_it_is() -> None:
    first = made("a")
    second = made("b", Context.of(first))
    for message in (first, second):
        trace = blake2b(first.id.encode(), digest_size=16).hexdigest()
        span = blake2b(message.id.encode(), digest_size=8).hexdigest()
        assert message.traceparent == f"00-{trace}-{span}-01"


def test_a_traceparent_that_follows_from_the_ids_does_not_travel_and_is_found_again() -> None:
    message = made("a", Context.of(made("b")))
    packed = Packed.FromString(wire.pack_bytes(message))
    assert packed.trace.traceparent == ""
    assert wire.read_message(packed, NOW).traceparent == message.traceparent
    assert wire.pack(message).trace.traceparent == message.traceparent, "at a door it is said"


def test_a_trace_of_open_telemetry_goes_on() -> None:
    parent = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    message = made("a", Context(traceparent=parent))
    assert message.traceparent.startswith("00-" + "1" * 32 + "-")
    there = wire.read_message(Packed.FromString(wire.pack_bytes(message)), NOW)
    assert there.traceparent == message.traceparent
    answer = made("b", Context.of(there))
    assert Packed.FromString(wire.pack_bytes(answer)).trace.traceparent == answer.traceparent
    assert answer.traceparent[:36] == message.traceparent[:36]
    assert len({parent, message.traceparent, answer.traceparent}) == 3
    assert Context().then(there).traceparent == message.traceparent


def test_values() -> None:
    assert encode_value({"a": 1}) == (b'{"a":1}', JSON)
    for raw in (b"raw", bytearray(b"raw"), memoryview(b"raw")):
        assert encode_value(raw) == (b"raw", BINARY)
    with pytest.raises(InvalidMessage):
        encode_value({1: 2})


def test_a_message_reads_its_payload_once_and_late() -> None:
    message = made("a", payload=b'{"a":[1]}')
    assert message.value is message.value
    assert message.value == {"a": [1]}
    assert made("a").value is None
    assert made("a", payload=b"\xff", content_type="image/png").value == b"\xff"
    with pytest.raises(InvalidMessage):
        _ = made("a", payload=b"\xff").value


def test_an_empty_trace() -> None:
    assert Trace().names() == []


def test_whether_it_is_sampled_is_decided_where_it_began() -> None:
    parent = f"00-{'a' * 32}-{'b' * 16}-00"
    child = made("a", Context(traceparent=parent)).traceparent
    assert (child[:36], child[-3:]) == (f"00-{'a' * 32}-", "-00")
    assert child != parent
