"""What has changed in a state: revisions, records, watches, and what a record keeps of a value."""

import json
import math
import random
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_grpc.changes import NEVER, Changes, Watch, answer, sketch
from exchange_grpc.errors import Code, Refused
from exchange_grpc.limits import BATCH_BYTES, MESSAGE_BYTES, RECORDED_ITEMS, RECORDED_TEXT, WATCH_QUEUE
from exchange_grpc.payload import encode_json
from exchange_grpc.reactive import State, Transaction

EPOCH = 7
FULL = {"a": 1, "b": 2, "sum": lambda s: s.a + s.b, "twice": lambda s: s.sum * 2, "sign": lambda s: s.a > 0}


def changes_of(values: Any, cause: Any = lambda: "m.1.1") -> tuple[State, Changes]:
    """A state whose commits are told, by a handler that is called `handler`."""
    state = State(values, cause=cause, now=lambda: 5.0)
    changes = Changes(state, EPOCH)
    state.on_commit(lambda transaction: changes.commit(transaction, "handler"))
    return state, changes


def said(states: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(state) for state in states]


def brief(states: list[bytes]) -> list[tuple[str, Any, int]]:
    return [(state["name"], state["value"], state["revision"]) for state in said(states)]


def nothing() -> None:
    """A wake that nobody needs."""


class Woken:
    """Counts how often it was woken."""

    times = 0

    def __call__(self) -> None:
        self.times += 1


# ------------------------------------------------------------------------------------- revisions and records


def test_revisions_count_the_changes_of_each_name() -> None:
    state, changes = changes_of(FULL)
    assert changes.last("a") == NEVER == (0, 0, "")
    assert changes.last("nobody") == NEVER
    assert changes.record("a") is None
    state.a = 5
    state.a = 5  # no change
    state.b = 3
    assert {name: changes.last(name).revision for name in state} == {"a": 1, "b": 1, "sum": 2, "twice": 2, "sign": 0}
    assert changes.last("sum") == (2, changes.last("b").transaction, "m.1.1")
    assert changes.last("a").transaction < changes.last("b").transaction
    with state.batch():
        state.a = 9
        state.a = 5  # there and back
    assert changes.last("a").revision == 1
    assert len(changes) == 2


def test_a_record_tells_how_it_came_about() -> None:
    state, changes = changes_of(FULL)
    state.update({"a": 10, "b": 20})
    record = changes.record("twice")
    assert record is not None
    assert record is changes.record("a")
    assert (record.at, record.cause, record.handler) == (5.0, "m.1.1", "handler")
    assert record.changes == {
        "a": (1, 10, False, (), 1),
        "b": (2, 20, False, (), 1),
        "sum": (3, 30, True, ("a", "b"), 1),
        "twice": (6, 60, True, ("sum",), 1),
    }
    state.b = 21
    record = changes.record("sum")
    assert record is not None
    assert record.changes["sum"].because == ("b",), "a did not change"


def test_no_cause_is_an_empty_text() -> None:
    state, changes = changes_of({"a": 0}, lambda: None)
    state.a = 1
    assert changes.last("a").cause == ""
    assert said([changes.state("a")])[0]["cause"] == ""


def test_old_records_are_forgotten_and_revisions_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.changes.TRANSACTIONS", 10)
    state, changes = changes_of({"a": 0, "b": 0})
    state.b = 1
    for n in range(1, 31):
        state.a = n
    assert len(changes) == 10
    assert changes.record("b") is None
    assert changes.last("b").revision == 1
    record = changes.record("a")
    assert record is not None
    assert record.changes["a"][:2] == (29, 30)


def test_because_is_of_the_transaction_that_it_tells_of() -> None:
    state, changes = changes_of({"pick": "x", "x": 1, "y": 1, "go": 0, "out": lambda s: s[s.pick]})

    def first(go: int) -> None:
        if go:
            state.x = 100 * go  # so `out` changed, because of x

    def second(go: int) -> None:
        if go:
            state.pick = "y"  # from now on it is computed from y

    state.subscribe("go", first)
    state.subscribe("go", second)
    state.go = 1
    record = changes._records[changes.last("x").transaction]
    assert record.changes["out"].because == ("x",)


def test_what_subscribers_set_has_a_record_of_its_own() -> None:
    state, changes = changes_of({"a": 0, "b": 0})
    state.subscribe("a", lambda a: setattr(state, "b", a))
    state.a = 3
    assert changes.last("a").transaction < changes.last("b").transaction
    record = changes.record("a")
    assert record is not None
    assert [*record.changes] == ["a"]


# ----------------------------------------------------------------------------------------------------- watches


def test_a_state_is_said() -> None:
    state, changes = changes_of(FULL)
    state.a = 5
    assert said([changes.state("sum")]) == [
        {"name": "sum", "value": 7, "revision": 1, "epoch": EPOCH, "cause": "m.1.1", "transaction": 1}
    ]


def test_a_snapshot_and_then_whole_transactions() -> None:
    state, changes = changes_of(FULL)
    state.a = 5
    woken = Woken()
    watch, snapshot = changes.watch(["twice", "a", "a"], woken)
    assert brief(snapshot) == [("a", 5, 1), ("twice", 14, 1)]
    assert (watch.take(), woken.times, changes.watches) == ([], 0, 1)
    state.update({"a": 1, "b": 1})
    state.b = 2
    assert woken.times == 1, "once until it has taken"
    assert brief(watch.take()) == [("a", 1, 2), ("twice", 4, 2), ("twice", 6, 3)]
    assert watch.take() == []
    state.b = 3
    assert woken.times == 2
    changes.unwatch(watch)
    changes.unwatch(watch)
    state.b = 4
    assert (changes.watches, changes._watches) == (0, {})
    assert brief(watch.take()) == [("twice", 8, 4)], "of what came before"


def test_an_answer_is_json() -> None:
    _, changes = changes_of({"a": "ä", "b": None})
    states = [changes.state("a"), changes.state("b")]
    whole = json.loads(answer("x", states, snapshot=True).data)
    assert whole == {"version": 1, "exchange": "x", "snapshot": True, "states": said(states)}
    assert json.loads(answer("x", [], snapshot=False).data)["states"] == []


def test_watches_of_the_same_names_are_not_each_other() -> None:
    state, changes = changes_of({"a": 0})
    watches = [changes.watch(["a"], nothing)[0] for _ in range(3)]
    changes.unwatch(watches[1])
    state.a = 1
    assert [len(watch.take()) for watch in watches] == [1, 0, 1]


def test_whoever_is_too_slow_is_told_and_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.changes.WATCH_QUEUE", 5)
    state, changes = changes_of({"a": 0})
    woken = Woken()
    slow, _ = changes.watch(["a"], woken)
    quick, _ = changes.watch(["a"], nothing)
    for n in range(1, 10):
        state.a = n
        assert brief(quick.take()) == [("a", n, n)]
    assert woken.times == 2, "when there was something, and when it was over"
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            slow.take()
        assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "SLOW")
    assert slow._waiting == type(slow._waiting)()


def test_bytes_are_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.changes.WATCH_QUEUE_BYTES", 1_000)
    state, changes = changes_of({"a": ""})
    watch, _ = changes.watch(["a"], nothing)
    for n in range(20):
        state.a = str(n) * 200
        assert len(watch.take()) == 1, "what was taken does not count"
    for n in range(20):
        state.a = f"{n}" * 200
    with pytest.raises(Refused, match="slowly"):
        watch.take()


def test_exactly_as_many_as_fit_may_wait() -> None:
    watch = Watch(frozenset("a"), nothing)
    for _ in range(WATCH_QUEUE):
        watch.put([b"1"], 1)
    assert len(watch.take()) == WATCH_QUEUE
    watch.put([b"1"], 1)
    assert watch.take() == [b"1"]


sizes = st.lists(st.lists(st.integers(0, BATCH_BYTES * 2), min_size=1, max_size=3), max_size=5)


@given(transactions=sizes)
@settings(max_examples=40, deadline=None)
def test_one_message_has_whole_transactions_and_no_more_than_it_should(transactions: list[list[int]]) -> None:
    watch = Watch(frozenset("a"), nothing)
    marked = [[bytes([n]) * size for size in one] for n, one in enumerate(transactions)]
    put = []
    for states in marked:
        watch.put(states, sum(map(len, states)))
        if watch.stopped is not None:
            with pytest.raises(Refused):
                watch.take()
            return
        put += states
    taken = []
    while states := watch.take():
        ends = [sum(map(len, marked[:n])) for n in range(len(marked) + 1)]
        assert len(taken) in ends
        assert len(taken) + len(states) in ends, "no transaction is divided"
        first = ends.index(len(taken))
        assert sum(map(len, states)) <= BATCH_BYTES or len(states) == len(marked[first])
        following = first + 1
        while following < len(marked) and ends[following] < len(taken) + len(states):
            following += 1
        if len(taken) + len(states) < len(put):
            more = marked[ends.index(len(taken) + len(states))]
            assert sum(map(len, states)) + sum(map(len, more)) > BATCH_BYTES, "as many as fit"
        taken += states
    assert taken == put
    assert watch._bytes == 0


def test_one_transaction_that_is_larger_than_a_message_is_whole() -> None:
    state, changes = changes_of({"a": "", "b": "", "c": 0})
    watch, _ = changes.watch(["a", "b", "c"], nothing)
    state.update({"a": "x" * BATCH_BYTES, "b": "y" * BATCH_BYTES})
    state.c = 1
    assert [name for name, _, _ in brief(watch.take())] == ["a", "b"]
    assert [name for name, _, _ in brief(watch.take())] == ["c"]


# --------------------------------------------------------------------------------------------- what is unsayable

UNSAYABLE = [object(), {1, 2}, b"bytes", math.nan, {1: 2}, 2**70, "\ud800", [math.inf], {"\udcff": 1}]


@pytest.mark.parametrize("value", UNSAYABLE, ids=lambda value: type(value).__name__)
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    state, changes = changes_of({"a": value, "b": 1})
    woken = Woken()
    with pytest.raises(Refused) as caught:
        changes.state("a")
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "ANSWER")
    with pytest.raises(Refused):
        changes.watch(["a", "b"], woken)
    assert (changes.watches, changes._watches) == (0, {})
    state.a = 1
    both, _ = changes.watch(["a", "b"], woken)
    alone, _ = changes.watch(["b"], nothing)
    state.update({"a": value, "b": 2})
    with pytest.raises(Refused, match="'a'"):
        both.take()
    assert woken.times == 1
    assert brief(alone.take()) == [("b", 2, 1)]
    state.b = 3
    assert brief(alone.take()) == [("b", 3, 2)]
    with pytest.raises(Refused):
        both.take()


def test_close_ends_all() -> None:
    state, changes = changes_of({"a": 0, "b": 0})
    woken = Woken()
    watches = [changes.watch(names, woken)[0] for names in ("a", "b", "ab", "ab")]
    state.a = 1
    woken.times = 0
    changes.close(Refused("it stops", code=Code.UNAVAILABLE, reason="STOPPING"))
    assert woken.times == 4
    for watch in watches:
        with pytest.raises(Refused, match="it stops"):
            watch.take()
    state.a = 2
    for watch in watches:
        changes.unwatch(watch)
    assert changes.watches == 0


def test_nobody_begins_to_watch_what_is_closed() -> None:
    _, changes = changes_of({"a": 0})
    changes.close(Refused("it stops", code=Code.UNAVAILABLE, reason="STOPPING"))
    with pytest.raises(Refused, match="it stops"):
        changes.watch(["a"], nothing)[0].take()


# ------------------------------------------------------------------------------------------------------ no gap

values = st.integers(-3, 3)
acts = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.dictionaries(st.sampled_from("ab"), values, min_size=1)),
        st.tuples(st.just("fail"), st.dictionaries(st.sampled_from("ab"), values, min_size=1)),
        st.tuples(st.just("watch"), st.sets(st.sampled_from(["a", "b", "sum", "twice", "sign"]), min_size=1)),
        st.tuples(st.just("unwatch"), st.integers(0, 9)),
        st.tuples(st.just("take"), st.integers(0, 9)),
    ),
    max_size=40,
)


class Follower:
    """Keeps what a watch tells, and checks that nothing is missing."""

    def __init__(self, changes: Changes, names: Any, wake: Any = nothing) -> None:
        self.watch, snapshot = changes.watch(names, wake)
        self.values: dict[str, Any] = {}
        self.revisions: dict[str, int] = {}
        self.transactions: dict[int, set[str]] = defaultdict(set)
        for state in said(snapshot):
            self.values[state["name"]], self.revisions[state["name"]] = state["value"], state["revision"]
        assert self.values.keys() == {*names}
        self._newest = max((state["transaction"] for state in said(snapshot)), default=0)

    def take(self) -> int:
        states = said(self.watch.take())
        for state in states:
            name = state["name"]
            assert state["revision"] == self.revisions[name] + 1, "gapless"
            assert state["value"] != self.values[name]
            assert state["transaction"] >= self._newest, "in order"
            assert name not in self.transactions[state["transaction"]]
            self._newest = state["transaction"]
            self.transactions[self._newest].add(name)
            self.values[name], self.revisions[name] = state["value"], state["revision"]
        return len(states)


@given(acts=acts)
@settings(max_examples=100, deadline=None)
def test_a_snapshot_and_the_changes_after_it_are_all_there_is(acts: list[Any]) -> None:
    state, changes = changes_of(FULL)
    followers: list[Follower] = []
    log: dict[int, Transaction] = {}
    state.on_commit(lambda transaction: log.update({transaction.id: transaction}))
    for act, what in acts:
        if act == "set":
            state.update(what)
        elif act == "fail":
            with suppress(ZeroDivisionError), state.batch():
                state.update(what)
                raise ZeroDivisionError
        elif act == "watch":
            followers.append(Follower(changes, what))
        elif followers and act == "unwatch":
            changes.unwatch(followers.pop(what % len(followers)).watch)
        elif followers:
            followers[what % len(followers)].take()
    for follower in followers:
        follower.take()
        assert follower.values == {name: state[name] for name in follower.watch.names}
        for number, names in follower.transactions.items():
            changed = {*log[number].sets, *log[number].updates}
            assert names == changed & follower.watch.names, "whole"
    for name in state:
        times = sum(name in transaction.sets or name in transaction.updates for transaction in log.values())
        assert changes.last(name).revision == times
    assert changes.watches == len(followers)


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns all the time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("seed", range(4))
def test_no_gap_for_those_who_watch_while_several_threads_set(seed: int) -> None:
    state, changes = changes_of({"a": 0, "b": 0, "c": 0, "all": lambda s: (s.a, s.b, s.c)})
    rounds, go, done = 150, threading.Barrier(5), threading.Event()
    problems: list[BaseException] = []

    def guarded(work: Any) -> Any:
        def run() -> None:
            try:
                go.wait(10)
                work()
            except BaseException as problem:
                problems.append(problem)

        return run

    def setter(name: str) -> Any:
        def work() -> None:
            for n in range(1, rounds + 1):
                state[name] = n

        return work

    def follow() -> None:
        dice = random.Random(seed)
        followers: list[Follower] = []
        while not done.is_set():
            if len(followers) < 20:
                followers.append(Follower(changes, dice.sample(["a", "b", "c", "all"], dice.randint(1, 4))))
            with changes.lock():
                followers[dice.randrange(len(followers))].take()
        for follower in followers:
            follower.take()
            assert follower.values == {
                name: list(state[name]) if name == "all" else state[name] for name in follower.watch.names
            }
            changes.unwatch(follower.watch)

    setters = [threading.Thread(target=guarded(setter(name))) for name in "abc"]
    followers = [threading.Thread(target=guarded(follow)) for _ in range(2)]
    for thread in setters + followers:
        thread.start()
    for thread in setters:
        thread.join(20)
    done.set()
    for thread in followers:
        thread.join(20)
    assert problems == []
    assert [changes.last(name).revision for name in ("a", "b", "c", "all")] == [rounds] * 3 + [3 * rounds]
    assert changes.watches == 0


@pytest.mark.usefixtures("restless")
def test_whoever_waits_is_woken_for_each_thread_that_sets() -> None:
    state, changes = changes_of({"a": 0, "b": 0})
    something = threading.Event()
    follower = Follower(changes, "ab", something.set)
    rounds, seen = 200, 0

    def work(name: str) -> None:
        for n in range(1, rounds + 1):
            state[name] = n

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    while seen < 2 * rounds:
        assert something.wait(10), f"it was not woken after {seen}"
        something.clear()
        while True:
            with changes.lock():
                count = follower.take()
            if not count:
                break
            seen += count
    for thread in threads:
        thread.join(10)
    assert follower.values == {"a": rounds, "b": rounds}


# --------------------------------------------------------------------------------------------- what is kept


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (None, None), (True, True), (7, 7), (-(2**63) + 1, -(2**63) + 1), (2**64, "<int>"), (1.5, 1.5),
        (math.nan, "<nan>"), (-math.inf, "<-inf>"), ("ä", "ä"), ("x" * RECORDED_TEXT, "x" * RECORDED_TEXT),
        ("x" * (RECORDED_TEXT + 1), f"<text of {RECORDED_TEXT + 1} characters>"),
        ([], []), ({}, {}), ((1, 2), [1, 2]), ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
        ([1] * RECORDED_ITEMS, f"<list of {RECORDED_ITEMS}>"), ([1] * (RECORDED_ITEMS - 1), [1] * (RECORDED_ITEMS - 1)),
        ({str(n): n for n in range(1_000)}, "<dict of 1000>"), ([[[[[1]]]]], "<list of 1>"), ({1: 2}, "<dict of 1>"),
        (b"x" * 1_000_000, "<bytes>"), ({1, 2}, "<set>"), (Colour.RED, "<Colour>"), (object(), "<object>"),
        ([object()], ["<object>"]), (int, "<type>"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_a_record_keeps(value: Any, kept: Any) -> None:
    found = sketch(value)
    assert found == kept or (found is kept)
    assert type(found) is type(kept)


@pytest.mark.parametrize("value", ["\ud800", ["\udcff"], {"\udcff": 1}, {"a": "\ud800"}], ids=ascii)
def test_a_record_keeps_nothing_that_json_cannot_say(value: Any) -> None:
    encode_json(sketch(value))


def test_a_record_keeps_no_long_keys() -> None:
    assert len(encode_json(sketch({"k" * 1_000_000: 1}))) < 2 * RECORDED_TEXT
    assert len(encode_json(sketch([{"k" * 1_000_000: 1}]))) < 2 * RECORDED_TEXT


def test_a_record_keeps_a_copy() -> None:
    value: list[Any] = [1, {"a": [2]}]
    kept = sketch(value)
    value[1]["a"].append(3)
    value.append(4)
    assert kept == [1, {"a": [2]}]


def test_a_value_that_contains_itself() -> None:
    circle: list[Any] = []
    circle.append(circle)
    assert sketch(circle) == "<list of 1>"
    table: dict[str, Any] = {}
    table["me"] = [table]
    assert sketch(table) == "<dict of 1>"


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=("Cs",)))
    | st.text("x", min_size=900, max_size=1_100)
    | st.binary(max_size=3)
    | st.builds(object),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.sets(st.integers())
        | st.dictionaries(st.text("ab", max_size=9) | st.integers(), inner)
    ),
    max_leaves=100,
)


@given(anything)
@settings(max_examples=150, deadline=None)
def test_a_record_keeps_little_and_what_can_be_said(value: Any) -> None:
    kept = encode_json(sketch(value))
    assert len(kept) < RECORDED_ITEMS * (RECORDED_TEXT + 20) < MESSAGE_BYTES
