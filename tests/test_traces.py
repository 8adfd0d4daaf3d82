"""Traces put together of what several exchanges answer, true or not."""

import json
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh import Mesh, Several

from exchange_grpc.ledger import Ledger
from exchange_grpc.limits import CAUSES, HOPS, LEDGER_EVENTS, MESSAGE_BYTES, TRACE_ANSWER_BYTES
from exchange_grpc.message import Context, Kind, Message, Origin, Outcome
from exchange_grpc.payload import encode_json
from exchange_grpc.traces import lineage, merge, origin, passed, read


def event(exchange: str, at: int = 1, outcome: str = "HANDLED", by: str = "", reason: str = "") -> dict[str, Any]:
    return {
        "exchange": exchange,
        "at_us": at,
        "outcome": f"OUTCOME_{outcome}",
        "by": by,
        "duration_us": 0,
        "reason": reason,
    }


def span(id: str, *hops: str, at: int = 1, events: Any = (), **more: Any) -> dict[str, Any]:
    made = {
        "id": id,
        "name": "n",
        "kind": "KIND_SEND",
        "from": "a",
        "to": "",
        "causes": [],
        "hops": [{"exchange": hop, "at_us": at + n} for n, hop in enumerate(hops)],
        "reply_to": "",
        "events": list(events),
    }
    return {**made, **more}


def trace(root: str, *spans: dict[str, Any], cut: bool = False) -> dict[str, Any]:
    return {"root": root, "spans": list(spans), "cut": cut}


# ----------------------------------------------------------------------------------------------- the origin


@pytest.mark.parametrize(
    ("id", "exchange"),
    [
        ("a.1.2", "a"),
        ("shop-1_x.1700000000000000.7", "shop-1_x"),
        ("a.1.2.3", ""),
        ("a.b.2", ""),
        ("a", ""),
        ("", ""),
        (".", ""),
        ("a.", ""),
        (".1.2", ""),
        ("a b.1.2", ""),
        ("*.1.2", ""),
        ("a.-1.2", ""),
        ("ä.1.2", ""),
        ("total", ""),
        ("n.total", ""),
        ("a" * 65 + ".1.2", ""),
        ("a\n.1.2", ""),
    ],
)
def test_the_origin_of_an_id(id: str, exchange: str) -> None:
    assert origin(id) == exchange


@pytest.mark.parametrize("id", ["a.1.²", "a.①", "a.1.٣"])
def test_digits_of_other_scripts_are_no_id(id: str) -> None:
    assert origin(id) == ""


@given(st.text(max_size=80))
def test_the_origin_of_anything(id: str) -> None:
    found = origin(id)
    assert not found or id.startswith(found + ".")


# --------------------------------------------------------------------------------------- reading a stranger's

texts = st.text(max_size=20) | st.sampled_from(["a.1.1", "b.1.²", "x", "KIND_SEND", "OUTCOME_HANDLED", "b"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts
garbage = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))


def mostly(good: Any) -> Any:
    """What it should be, or anything."""
    return st.one_of(good, good, good, garbage)


FIELDS = ("id", "name", "kind", "from", "to", "causes", "hops", "reply_to", "events")
events = st.fixed_dictionaries(
    {},
    optional={
        "exchange": mostly(texts),
        "at_us": mostly(st.integers(0, 2**40)),
        "outcome": mostly(st.sampled_from(["OUTCOME_HANDLED", "OUTCOME_FORWARDED"])),
        "by": mostly(texts),
        "duration_us": mostly(st.integers()),
        "reason": mostly(texts),
        "more": garbage,
    },
)
hops = st.fixed_dictionaries({}, optional={"exchange": mostly(texts), "at_us": mostly(st.integers(0, 2**40))})


def answers_about(*ids: str) -> Any:
    """What somebody may answer."""
    spans = st.fixed_dictionaries(
        {"id": mostly(st.sampled_from(ids))},
        optional={
            "name": mostly(texts),
            "kind": mostly(st.sampled_from(["KIND_SEND", "KIND_REPLY", "KIND_NONE"])),
            "from": mostly(texts),
            "to": mostly(texts),
            "causes": mostly(st.lists(mostly(st.sampled_from(["a.1.1", "a.1.2", "b.1.1"])), max_size=3)),
            "hops": mostly(st.lists(mostly(hops), max_size=3)),
            "reply_to": mostly(texts),
            "events": mostly(st.lists(mostly(events), max_size=3)),
            "more": garbage,
        },
    )
    return st.fixed_dictionaries(
        {"root": mostly(st.just("a.1.1")), "spans": mostly(st.lists(mostly(spans), max_size=5))},
        optional={"cut": mostly(st.booleans()), "version": garbage, "exchange": garbage},
    )


answers = answers_about("a.1.1", "a.1.2", "b.1.1", "b.1.²")


def shaped(found: dict[str, Any]) -> bool:
    """Whether it has the shape of `TraceResponse`."""
    encode_json(found)
    return isinstance(found["root"], str) and all(
        tuple(said) == FIELDS
        and isinstance(said["id"], str)
        and said["id"]
        and all(isinstance(cause, str) for cause in said["causes"])
        and all(isinstance(hop["exchange"], str) and type(hop["at_us"]) is int for hop in said["hops"])
        and all(type(happened["at_us"]) is int for happened in said["events"])
        for said in found["spans"]
    )


@given(answer=mostly(answers))
@settings(max_examples=200, deadline=None)
def test_what_a_stranger_answers_is_read_or_left_and_speaks_for_nobody_else(answer: Any) -> None:
    found = read(answer, "b")
    if found is None:
        return
    assert found.keys() == {"root", "spans", "cut"}
    assert shaped(found)
    assert {happened["exchange"] for said in found["spans"] for happened in said["events"]} <= {"b"}
    assert all(len(said["causes"]) <= CAUSES and len(said["hops"]) <= HOPS + 1 for said in found["spans"])
    assert all(len(said["events"]) <= LEDGER_EVENTS for said in found["spans"])


@given(given=st.lists(answers, max_size=4), id=st.sampled_from(["a.1.1", "b.1.1", "b.1.²"]))
@settings(max_examples=150, deadline=None)
def test_whatever_strangers_answer_it_is_put_together(given: list[Any], id: str) -> None:
    found = [said for n, answer in enumerate(given) if (said := read(answer, f"x{n}")) is not None]
    merged = merge("a.1.1", found)
    assert shaped(merged)
    assert len({said["id"] for said in merged["spans"]}) == len(merged["spans"])
    assert all(isinstance(exchange, str) and exchange for exchange in passed(merged))
    line = lineage(merged, id)
    assert len({said["id"] for said in line}) == len(line)


@pytest.mark.parametrize(
    "answer",
    [
        None, 1, "x", [], {}, {"root": "a.1.1"}, {"spans": []}, {"root": "", "spans": []},
        {"root": 1, "spans": []}, {"root": "a.1.1", "spans": {}}, {"root": "a.1.1", "spans": None},
    ],
)  # fmt: skip
def test_what_is_no_trace(answer: Any) -> None:
    assert read(answer, "b") is None


def test_what_is_left_out_and_cut_off() -> None:
    found = read(
        {
            "root": "a.1.1",
            "cut": 1,
            "spans": [
                None,
                {"id": 7},
                {
                    "id": "a.1.1",
                    "name": "x" * 5_000,
                    "kind": "KIND_MAGIC",
                    "from": None,
                    "causes": ["c"] * 100,
                    "hops": [{"exchange": "a", "at_us": 2**63}, "a", {"exchange": [], "at_us": True}] * 20,
                    "events": [{"exchange": "judge", "outcome": "OUTCOME_GUILTY", "at_us": 1.5, "by": {}}] * 100,
                },
            ],
        },
        "a",
    )
    assert found is not None
    (said,) = found["spans"]
    assert (found["cut"], said["kind"], said["from"], len(said["name"])) == (False, "KIND_UNSPECIFIED", "", 1_000)
    assert len(said["causes"]) == CAUSES
    assert {(hop["exchange"], hop["at_us"]) for hop in said["hops"]} == {("a", 0), ("", 0)}
    assert len(said["events"]) == LEDGER_EVENTS
    assert said["events"][0] == event("a", 0, "UNSPECIFIED")


def test_an_honest_answer_is_read_as_it_is() -> None:
    at, ledger = Origin("a", 1, 1_000.0), Ledger("b")
    message = at.make(Kind.REQUEST, "sum", Context(("c.1.1", "c.1.2"), "c.1.1", ("c",)), 5.0, to="b")
    for hop in ("x", "b"):
        message.hop_trace = message.hop_trace.at(hop, 1_006.5)
    ledger.note(message)
    for outcome in Outcome:
        ledger.record(message.id, 1_007.0, outcome, by="sum", seconds=0.25, reason="because ä")
    said = ledger.trace(message.id)
    assert said is not None
    assert read(json.loads(json.dumps(said)), "b") == said


def test_a_reason_that_json_cannot_say_costs_nobody_the_trace() -> None:
    at, ledger = Origin("a", 1), Ledger("a")
    message = at.make(Kind.REQUEST, "n", Context(), 5.0)
    ledger.note(message)
    ledger.record(message.id, 1.0, Outcome.DENIED, reason="no such file: \udcff")
    found = ledger.trace(message.id)
    assert found is not None
    encode_json(found)


# ---------------------------------------------------------------------------------------------------- merging


def test_one_trace_of_several_answers() -> None:
    of_a = trace("a.1.1", span("a.1.1", "a", events=[event("a", 1, "FORWARDED", "b")]))
    of_b = trace(
        "a.1.1",
        span("a.1.1", "a", "b", events=[event("b", 3, "HANDLED", "n")]),
        span("b.1.1", "b", at=2, causes=["a.1.1"]),
    )
    other = trace("x.1.1", span("x.1.1", "x"), cut=True)
    found = merge("a.1.1", [of_b, other, of_a])
    assert (found["root"], found["cut"]) == ("a.1.1", False)
    assert [said["id"] for said in found["spans"]] == ["a.1.1", "b.1.1"]
    first = found["spans"][0]
    assert [hop["exchange"] for hop in first["hops"]] == ["a", "b"]
    assert [(happened["exchange"], happened["at_us"]) for happened in first["events"]] == [("a", 1), ("b", 3)]
    assert passed(found) == ["a", "b"]
    assert merge("a.1.1", [{**of_a, "cut": True}, of_b])["cut"]
    assert merge("a.1.1", []) == trace("a.1.1")
    assert of_a["spans"][0]["events"] == [event("a", 1, "FORWARDED", "b")], "the answers stay as they are"


def test_where_it_was_passed_on_to_is_named_even_if_nobody_answered_there() -> None:
    found = merge("a.1.1", [trace("a.1.1", span("a.1.1", "a", events=[event("a", 1, "FORWARDED", "gone")]))])
    assert passed(found) == ["a", "gone"]


def test_messages_without_hops_and_with_strange_numbers_are_sorted() -> None:
    ids = ["a.1.10", "a.1.9", "a", "", "a.1.x", "a.1." + "9" * 30]
    found = merge("r", [trace("r", *(span(id) for id in ids))])
    assert {said["id"] for said in found["spans"]} == {*ids}
    numbers = [said["id"] for said in found["spans"] if said["id"] in ("a.1.9", "a.1.10")]
    assert numbers == ["a.1.9", "a.1.10"]


@given(given=st.lists(answers_about("a.1.1", "b.1.1"), min_size=2, max_size=4), seed=st.integers(0, 2**16))
@settings(max_examples=150, deadline=None)
def test_the_order_of_the_answers_does_not_matter(given: list[Any], seed: int) -> None:
    found = [said for n, answer in enumerate(given) if (said := read(answer, f"x{n}")) is not None]
    shuffled = found.copy()
    random.Random(seed).shuffle(shuffled)
    assert merge("a.1.1", found) == merge("a.1.1", found[::-1]) == merge("a.1.1", shuffled)


def test_one_who_tells_another_story_is_believed_or_not_whatever_comes_first() -> None:
    honest = trace("a.1.1", span("a.1.1", "a", name="orders.new"))
    liar = trace("a.1.1", span("a.1.1", "a", name="orders.cancelled", kind="KIND_PUBLISH"))
    assert merge("a.1.1", [honest, liar]) == merge("a.1.1", [liar, honest])


def test_a_trace_of_many_large_answers_can_still_be_told() -> None:
    told = []
    for exchange in range(6):
        spans = [
            span(f"x{exchange}.1.{n}", f"x{exchange}", events=[event(f"x{exchange}", reason="r" * 200)] * 20)
            for n in range(TRACE_ANSWER_BYTES // 6_500)
        ]
        told.append(trace("x0.1.0", *spans))
        assert len(encode_json(told[-1])) < TRACE_ANSWER_BYTES
    found = merge("x0.1.0", told)
    assert len(encode_json(found)) < MESSAGE_BYTES
    assert found["cut"]


def test_an_id_is_no_longer_than_an_id() -> None:
    found = read({"root": "a.1.1", "spans": [{"id": "a" * 1_000_000}, {"id": "a.1.1"}]}, "b")
    assert found is not None
    assert len(encode_json(found)) < 10_000
    assert "a.1.1" in [said["id"] for said in found["spans"]]


# ---------------------------------------------------------------------------------------------------- lineage


def ids(line: list[dict[str, Any]]) -> list[str]:
    return [said["id"] for said in line]


def test_the_line_goes_along_the_newest_cause_that_is_known() -> None:
    found = trace(
        "a.1.1",
        span("a.1.1"),
        span("a.1.2", causes=["a.1.1"]),
        span("a.1.3", causes=["a.1.2", "a.1.1"]),
        span("a.1.4", causes=["a.1.3", "lost.1.1"]),
    )
    assert ids(lineage(found, "a.1.4")) == ["a.1.4", "a.1.3", "a.1.1"]
    assert lineage(found, "nobody.1.1") == []
    assert ids(lineage(trace("r", span("a.1.1", causes=["lost.1.1"])), "a.1.1")) == ["a.1.1"]


@pytest.mark.parametrize("length", [1, 2, 3, 50])
def test_a_line_that_is_a_circle_ends(length: int) -> None:
    found = trace("r", *(span(f"a.1.{n}", causes=[f"a.1.{(n + 1) % length}"]) for n in range(length)))
    assert ids(lineage(found, "a.1.0")) == [f"a.1.{n}" for n in range(length)]


@given(st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 12), max_size=4), max_size=10), st.integers(0, 12))
def test_any_line_ends_and_visits_nothing_twice(causes: dict[int, list[int]], start: int) -> None:
    found = trace("r", *(span(str(n), causes=list(map(str, behind))) for n, behind in causes.items()))
    line = lineage(found, str(start))
    assert len({*ids(line)}) == len(line)
    assert bool(line) == (start in causes)
    for said, behind in pairwise(line):
        assert behind["id"] in said["causes"]


# ------------------------------------------------------------------------------------------- of a real mesh


@given(seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_it_does_not_matter_who_asks(seed: int) -> None:
    dice = random.Random(seed)
    mesh = Mesh(framed=False, pick=lambda ends: dice.choice(ends))
    ids = [f"n{n}" for n in range(dice.randint(2, 5))]
    mesh.chain(*ids)
    for a, b in [(a, b) for a in ids for b in ids if a < b and dice.random() < 0.3 and b not in mesh[a].ends]:
        mesh.link(a, b)
    for id in ids:
        mesh[id].subscribe("note")

        def work(message: Message, id: str = id) -> Any:
            mesh[id].publish("note", context=Context.of(message))
            return Several([1, 2])

        mesh[id].handle("work", work)
    mesh.settle()
    request = mesh[dice.choice(ids)].request("work", many=True)
    mesh.settle()
    root = request
    told = {}
    for id in ids:
        said = mesh[id].ledger.trace(request, root)
        assert said is not None
        assert read(json.loads(json.dumps(said)), id) == said
        told[id] = said
    first = merge(root, told.values())
    for _ in ids:
        asker = dice.choice(ids)
        others = [read(told[id], id) for id in dice.sample(ids, len(ids)) if id != asker]
        assert merge(root, [told[asker], *filter(None, others)]) == first
    whole = {message.id for node in mesh.nodes.values() for _, message in node.observed if message.root == root}
    assert whole <= {said["id"] for said in first["spans"]}
    assert {*passed(first)} == {*ids}
    for said in first["spans"]:
        assert lineage(first, said["id"])[-1]["id"] == root
