"""The ledger: bounded, and a trace of a family."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_grpc import wire
from exchange_grpc.frames import Batch
from exchange_grpc.ledger import Ledger
from exchange_grpc.limits import LEDGER_EVENTS
from exchange_grpc.message import Context, Kind, Message, Origin, Outcome, Trace
from exchange_grpc.payload import encode_json


def messages(origin: Origin | None = None) -> Any:
    origin = origin or Origin("a", 1, 1_000.0)
    return lambda cause=None, name="x", **more: origin.make(
        Kind.REQUEST, name, Context() if cause is None else Context.of(cause), 5.0, **more
    )


def ids(trace: dict[str, Any] | None) -> list[str]:
    assert trace is not None
    return [span["id"] for span in trace["spans"]]


def test_a_trace_is_the_whole_family_in_order_of_arrival_whoever_is_asked_for() -> None:
    make, ledger = messages(), Ledger("a")
    root = make()
    stranger = make()
    child = make(root)
    grandchild = make(child)
    for message in (root, stranger, child, grandchild):
        ledger.note(message)
    for message in (root, child, grandchild):
        assert ids(ledger.trace(message.id)) == [root.id, child.id, grandchild.id]
    assert ids(ledger.trace(stranger.id)) == [stranger.id]
    assert ledger.trace("a.1.99") is None


def test_what_a_span_says() -> None:
    make, ledger = messages(), Ledger("b")
    cause = make()
    message = make(cause, to="b", name="sum")
    message.reply_to = cause.id
    message.hop_trace = message.hop_trace.at("b", 1_006.0)
    ledger.note(message)
    ledger.record(message.id, 1_006.5, Outcome.HANDLED, by="sum", seconds=0.25)
    ledger.record(message.id, 1_007.0, Outcome.FORWARDED, by="c", reason="because")
    trace = ledger.trace(message.id)
    encode_json(trace)
    assert trace == {
        "root": cause.id,
        "cut": False,
        "spans": [
            {
                "id": message.id,
                "name": "sum",
                "kind": "KIND_REQUEST",
                "from": "a",
                "to": "b",
                "causes": [cause.id],
                "hops": [{"exchange": "a", "at_us": 1_005_000_000}, {"exchange": "b", "at_us": 1_006_000_000}],
                "reply_to": cause.id,
                "events": [
                    {
                        "exchange": "b",
                        "at_us": 1_006_500_000,
                        "outcome": "OUTCOME_HANDLED",
                        "by": "sum",
                        "duration_us": 250_000,
                        "reason": "",
                    },
                    {
                        "exchange": "b",
                        "at_us": 1_007_000_000,
                        "outcome": "OUTCOME_FORWARDED",
                        "by": "c",
                        "duration_us": 0,
                        "reason": "because",
                    },
                ],
            }
        ],
    }


def test_a_root_that_never_came_here_can_be_asked_for() -> None:
    make, ledger = messages(), Ledger("a")
    root = make()
    child = make(root)
    ledger.note(child)
    assert ids(ledger.trace(root.id)) == [child.id]


def test_traffic_of_the_system_is_not_remembered() -> None:
    make, ledger = messages(), Ledger("a")
    message = make(name="exchange.trace")
    ledger.note(message)
    ledger.record(message.id, 1.0, Outcome.HANDLED)
    assert len(ledger) == 0
    assert ledger.trace(message.id) is None


def test_a_message_is_noted_once() -> None:
    make, ledger = messages(), Ledger("a")
    message = make()
    ledger.note(message)
    ledger.record(message.id, 1.0, Outcome.HANDLED)
    ledger.note(message)
    trace = ledger.trace(message.id)
    assert ids(trace) == [message.id]
    assert len(trace["spans"][0]["events"]) == 1  # type: ignore[index]


def test_nothing_of_what_a_message_carries_is_kept() -> None:
    """Neither its payload nor the frame it came in, which it keeps alive as long as it lives itself."""
    sent = messages()(payload=b"1", headers={"a": "b"})
    batch = wire.decode(wire.encode_batch(1, [(wire.pack_bytes(sent), 1_000_000)]), 5.0)
    assert isinstance(batch, Batch)
    (message,) = batch.messages
    assert isinstance(message, Message)
    ledger = Ledger("a")
    ledger.note(message)
    ledger.record(message.id, 1.0, Outcome.HANDLED, by="x")

    def kept(of: Any) -> set[type]:
        return set().union(*map(kept, of)) if isinstance(of, list | tuple) else {type(of)}

    assert kept(ledger._entries[message.id]) == {str, Kind, Outcome, float}


def test_the_oldest_go_first_and_the_trace_says_that_it_was_cut() -> None:
    make, ledger = messages(), Ledger("a", capacity=3)
    root = make()
    family = [root, *(make(root) for _ in range(4))]
    for message in family:
        ledger.note(message)
    assert len(ledger) == 3
    trace = ledger.trace(root.id)
    assert ids(trace) == [message.id for message in family[2:]]
    assert trace["cut"]  # type: ignore[index]
    for _ in range(3):
        ledger.note(make())
    assert ledger.trace(root.id) is None
    assert not ledger._cut


def test_the_events_of_one_message_are_bounded_and_the_trace_says_so() -> None:
    make, ledger = messages(), Ledger("a")
    message = make()
    ledger.note(message)
    for n in range(LEDGER_EVENTS):
        ledger.record(message.id, float(n), Outcome.FORWARDED, by="b")
    assert ledger.trace(message.id)["cut"] is False  # type: ignore[index]
    ledger.record(message.id, 99.0, Outcome.HANDLED)
    trace = ledger.trace(message.id)
    assert len(trace["spans"][0]["events"]) == LEDGER_EVENTS  # type: ignore[index]
    assert trace["cut"] is True  # type: ignore[index]


def test_a_reason_is_bounded() -> None:
    """It may come from a peer, and 20,000 messages with 64 events each are kept."""
    make, ledger = messages(), Ledger("a")
    message = make()
    ledger.note(message)
    ledger.record(message.id, 1.0, Outcome.DENIED, reason="x" * 2**20)
    assert len(str(ledger.trace(message.id))) < 2_000


def test_what_is_known_to_be_cut_is_bounded_too() -> None:
    make, ledger = messages(), Ledger("a", capacity=2)
    roots = [make() for _ in range(3)]
    for root in roots:
        ledger.note(root)
        for _ in range(LEDGER_EVENTS + 1):
            ledger.record(root.id, 1.0, Outcome.FORWARDED)
    assert len(ledger._cut) <= 2


def test_a_message_can_be_found_with_what_became_of_it() -> None:
    make, ledger = messages(), Ledger("a")
    cause = make()
    message = make(cause, to="b", name="sum", reply_to=cause.id)
    ledger.note(message)
    ledger.record(message.id, 1.0, Outcome.FORWARDED, by="b")
    span = ledger.find(message.id)
    assert span is not None
    assert span.was(Outcome.FORWARDED, "b")
    assert not span.was(Outcome.FORWARDED, "c")
    assert not span.was(Outcome.DENIED, "b")
    header = span.header()
    for field in ("id", "name", "kind", "from_", "to", "causes", "root", "hops", "reply_to"):
        assert getattr(header, field) == getattr(message, field)
    assert ledger.find("a.1.99") is None


@pytest.mark.parametrize("at", [2.0**63 / 1e6, -(2.0**63) / 1e6])
def test_times_of_a_foreign_clock_fit_their_field(at: float) -> None:
    make, ledger = messages(), Ledger("a")
    message = make()
    message.hop_trace = Trace().at("b", at)
    ledger.note(message)
    (hop,) = ledger.trace(message.id)["spans"][0]["hops"]  # type: ignore[index]
    assert -(2**63) <= hop["at_us"] < 2**63


def family_of(parents: list[int], make: Any) -> list[Message]:
    """One message for each entry: caused by the message with that number, or a beginning."""
    made: list[Message] = []
    for n, parent in enumerate(parents):
        made.append(make(made[parent] if parent < n else None))
    return made


@given(st.lists(st.integers(0, 40), max_size=40), st.integers(1, 12))
def test_it_holds_the_newest_and_nothing_else(parents: list[int], capacity: int) -> None:
    ledger = Ledger("a", capacity)
    made = family_of(parents, messages())
    for message in made:
        ledger.note(message)
    kept = made[-capacity:]
    assert len(ledger) == len(kept)
    for message in kept:
        family = [other.id for other in kept if other.root == message.root]
        trace = ledger.trace(message.id)
        assert ids(trace) == family
        lost_after = [other for other in made[:-capacity] if other.root == message.root]
        if not lost_after:
            assert trace["cut"] is False  # type: ignore[index]
    assert sum(len(members) for members in ledger._families.values()) <= len(kept)
    assert all(ledger._families.values())
    assert len(ledger._cut) <= capacity


class Plain:
    """The law of the ledger in the fewest words."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.kept: dict[str, tuple[str, list[Outcome]]] = {}  # id -> root, events
        self.cut: set[str] = set()

    def note(self, message: Message) -> None:
        if message.id not in self.kept:
            self.kept[message.id] = message.root, []
        if len(self.kept) > self.capacity:
            oldest = next(iter(self.kept))
            self.cut.add(self.kept.pop(oldest)[0])
        self.cut &= {root for root, _ in self.kept.values()}

    def record(self, id: str, outcome: Outcome) -> None:
        if id in self.kept:
            root, events = self.kept[id]
            if len(events) < LEDGER_EVENTS:
                events.append(outcome)
            else:
                self.cut.add(root)

    def family(self, root: str) -> list[str]:
        return [id for id, (its, _) in self.kept.items() if its == root]


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 19), st.sampled_from([0, 0, 0, 1, 2, 70])), max_size=60),
    st.integers(1, 6),
)
def test_it_tells_what_the_plainest_ledger_would(
    parents: list[int], steps: list[tuple[int, int]], capacity: int
) -> None:
    """Messages come in any order, some before their root, some again; some have events, a few too many."""
    made = family_of(parents, messages())
    ledger, plain = Ledger("a", capacity), Plain(capacity)
    heard: list[str] = []
    ledger.bad_end = lambda span, outcome, by, reason: heard.append(span.id)
    ends: list[str] = []
    for n, events in steps:
        message = made[n % len(made)]
        ledger.note(message)
        plain.note(message)
        for event in range(events):
            outcome = Outcome.FAILED if event % 2 else Outcome.FORWARDED
            ledger.record(message.id, 1.0, outcome)
            plain.record(message.id, outcome)
            ends += [message.id] if event % 2 else []
    assert heard == ends
    assert ledger.counts[Outcome.FAILED] == len(ends)
    assert len(ledger) == len(plain.kept)
    for message in made:
        family = plain.family(message.root)
        trace = ledger.trace(message.id, message.root)
        if not family:
            assert trace is None
            continue
        assert ids(trace) == family
        assert trace["cut"] == (message.root in plain.cut)  # type: ignore[index]
        for id in family:
            span = ledger.find(id)
            assert span is not None
            assert [event[1] for event in span.events] == plain.kept[id][1]
