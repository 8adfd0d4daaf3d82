"""Requests to many: the count of branches by itself, and routing on a mesh in memory (see `mesh.py`)."""

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh import NEVER, Mesh, Node, Several, Stranger
from world import soon, until, world_of

from exchange_grpc import ExchangeError, LimitExceeded
from exchange_grpc.errors import Code, HandlerFailed, Refused, RequestError, Unavailable, Unhandled, request_error
from exchange_grpc.limits import HOPS, LOST_NAMES, REPLIES, REQUEST_SECONDS, SEEN_SECONDS
from exchange_grpc.message import Kind, Message, Outcome
from exchange_grpc.peer import Received
from exchange_grpc.routing import Rejection
from exchange_grpc.scatter import Scatter

NOBODY = Unhandled("nobody", at="x")


def reply(
    value: Any = None, *, last: bool = False, lost: tuple[str, ...] | None = None, error: RequestError | None = None
) -> Message:
    return Message("x.1.1", "n", Kind.REPLY, "x", reply_to="o.1.1", last=last, lost=lost, error=error)


def scatter(**branches: bool) -> Scatter:
    made = Scatter()
    made.branches.update(branches)
    return made


# --------------------------------------------------------------------------------------------- the count alone


def test_a_branch_that_relays_ends_by_its_end_only() -> None:
    it = scatter(relay=True, leaf=False)
    assert it.heard("relay", reply())
    assert it.heard("relay", reply(last=True)), "that was one handler behind it"
    assert it.branches == {"relay": True, "leaf": False}
    assert not it.heard("relay", reply(lost=()))
    assert (it.branches, it.taken, [*it.lost]) == ({"leaf": False}, True, [])


def test_a_branch_that_does_not_relay_ends_by_its_last_reply_or_its_end() -> None:
    it = scatter(one=False, other=False)
    assert it.heard("one", reply())
    assert it.heard("one", reply(last=True))
    assert it.branches == {"other": False}
    assert not it.heard("other", reply(lost=()))
    assert it.branches == {}


@pytest.mark.parametrize("reason", ["UNHANDLED", "LOOP"])
@pytest.mark.parametrize("lost", [None, ()])
def test_a_branch_where_nobody_is_was_none(reason: str, lost: tuple[str, ...] | None) -> None:
    it = scatter(relay=True)
    assert not it.heard("relay", reply(lost=lost, last=True, error=Unhandled("no", reason=reason)))
    assert (it.branches, it.taken, [*it.lost]) == ({}, False, [])


def test_a_branch_that_could_not_take_it_is_lost() -> None:
    it = scatter(relay=True)
    full = request_error(Code.RESOURCE_EXHAUSTED, "full", reason="FULL")
    assert not it.heard("relay", reply(lost=("far",), error=full))
    assert (it.branches, it.taken, {*it.lost}) == ({}, True, {"far", "relay"})


def test_a_handler_that_fails_has_replied() -> None:
    it = scatter(leaf=False, relay=True)
    assert it.heard("leaf", reply(last=True, error=HandlerFailed("it failed")))
    assert it.heard("relay", reply(last=True, error=HandlerFailed("it failed")))
    assert (it.branches, [*it.lost]) == ({"relay": True}, [])


def test_an_end_that_names_another_branch_does_not_end_that() -> None:
    it = scatter(me=False, b=True, c=True)
    assert not it.heard("b", reply(lost=("c", "me")))
    assert it.branches == {"me": False, "c": True}, "b has lost the way to them, and we have not"
    assert {*it.lost} >= {"c", "me"}


def test_an_end_that_names_thousands_is_bounded() -> None:
    it = scatter(liar=True, honest=True)
    it.heard("liar", reply(lost=tuple(f"x{n}" for n in range(10_000))))
    assert len(it.lost) == LOST_NAMES
    assert it.branches == {"honest": True}


def test_an_end_that_names_thousands_does_not_hide_what_is_lost_here() -> None:
    it = scatter(liar=True, honest=True)
    it.heard("liar", reply(lost=tuple(f"x{n}" for n in range(10_000))))
    it.lose("honest")
    assert "honest" in it.lost
    assert len(it.lost) <= LOST_NAMES


def test_a_handler_that_refuses_is_not_nobody() -> None:
    it = scatter(leaf=False, relay=True)
    refusal = Refused("the package would come back", reason="LOOP")
    assert it.heard("leaf", reply(last=True, error=refusal)), "it is a reply"
    assert it.heard("relay", reply(last=True, error=refusal)), "of somebody behind it"
    assert it.taken
    assert it.branches == {"relay": True}


events = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.booleans(),
        st.none() | st.lists(st.sampled_from(["x", "y", "z"]), max_size=3).map(tuple),
        st.sampled_from([None, None, NOBODY, HandlerFailed("failed")]),
        st.booleans(),
    ),
    max_size=30,
)


@given(relays=st.lists(st.booleans(), min_size=3, max_size=3), said=events)
@settings(max_examples=100, deadline=None)
def test_branches_only_end_and_each_ends_once(relays: list[bool], said: list[Any]) -> None:
    it = scatter(**dict(zip("abc", relays, strict=True)))
    for branch, last, lost, error, breaks in said:
        if branch not in it.branches:  # routing asks for that
            continue
        before = {*it.branches}
        if breaks:
            it.lose(branch)
            assert {*it.branches} == before - {branch}
            assert branch in it.lost
            continue
        is_reply = it.heard(branch, reply(last=last, lost=lost, error=error))
        assert is_reply == (lost is None and error is not NOBODY)
        assert {*it.branches} in (before, before - {branch})
        assert {*it.lost} >= {*(lost or ())}
        if lost is not None or error is NOBODY:
            assert branch not in it.branches


# ----------------------------------------------------------------------------------------------- on the mesh


@pytest.fixture(params=[True, False], ids=["framed", "plain"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    return Mesh(framed=request.param)


def ask(node: Node, name: str = "n", **options: Any) -> str:
    """A request to many."""
    return node.request(name, many=True, **options)


def heard(node: Node, request: str) -> tuple[Counter[tuple[str, Any]], tuple[str, ...]]:
    """The replies, and the lost that the end names, which came once and last."""
    *replies, end = node.replies[request]
    assert end.lost is not None, "the end comes"
    assert all(reply.lost is None for reply in replies), "... last and once"
    assert len({reply.id for reply in replies}) == len(replies)
    return Counter((reply.from_, reply.value) for reply in replies if reply.error is None), end.lost


def nothing_open(mesh: Mesh) -> None:
    """Nothing is left but deadlines that have lost their meaning."""
    assert {id: {*left} - {"deadlines"} for id, left in mesh.leftovers().items() if {*left} - {"deadlines"}} == {}


def at_rest(mesh: Mesh) -> None:
    """After all deadlines nothing is left over."""
    mesh.advance(4 * REQUEST_SECONDS)
    assert mesh.leftovers() == {}


def each(*values: Any) -> Any:
    return lambda message: Several(values)


def test_nobody(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.add("alone")
    for id in ("a", "b", "alone"):
        request = ask(mesh[id])
        mesh.settle()
        error = mesh[id].error(request)
        assert isinstance(error, Unhandled)
        assert error.at == id
        assert [message.id for message, _ in mesh[id].unhandled] == [request]
    assert mesh["c"].unhandled == [], "it is not for others to tell"
    nothing_open(mesh)
    at_rest(mesh)


def test_alone(mesh: Mesh) -> None:
    a = mesh.add("a", handles={"n": each(1, 2)})
    request = ask(a)
    assert heard(a, request) == ({("a", 1): 1, ("a", 2): 1}, ())
    at_rest(mesh)


def test_a_star_from_a_leaf_and_from_the_hub(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b", "c", "d")
    mesh["b"].handle("n", each(1, 2, 3))
    mesh["c"].handle("n", lambda message: "one")
    mesh["d"].handle("n", each())
    mesh.settle()
    expected = {("b", 1): 1, ("b", 2): 1, ("b", 3): 1, ("c", "one"): 1}
    for id in ("a", "hub"):
        request = ask(mesh[id])
        mesh.settle()
        assert heard(mesh[id], request) == (expected, ())
        nothing_open(mesh)
    assert [len(mesh[id].handled) for id in "abcd"] == [0, 2, 2, 2]
    assert mesh.queries() == 0, "nobody is asked who takes it"
    at_rest(mesh)


def test_what_goes_well_is_not_told_as_dropped(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b")
    mesh["b"].handle("n", lambda message: 1)
    mesh.settle()
    ask(mesh["a"])
    mesh.settle()
    counts = {id: node.ledger.counts[Outcome.DROPPED] for id, node in mesh.nodes.items()}
    assert counts == {"hub": 0, "a": 0, "b": 0}


@pytest.mark.parametrize("length", [2, 5, HOPS])
def test_a_chain_where_all_handle_it(mesh: Mesh, length: int) -> None:
    ids = [f"n{n}" for n in range(length)]
    mesh.chain(*ids)
    for id in ids:
        mesh[id].handle("n", each("x", "y"))
    mesh.settle()
    for id in (ids[0], ids[length // 2]):
        request = ask(mesh[id])
        mesh.settle()
        assert heard(mesh[id], request) == ({(id, value): 1 for id in ids for value in "xy"}, ())
        nothing_open(mesh)
    at_rest(mesh)


def test_a_chain_that_is_too_long_is_told_as_lost(mesh: Mesh) -> None:
    ids = [f"n{n}" for n in range(HOPS + 3)]
    mesh.chain(*ids)
    for id in ids:
        mesh[id].handle("n")
    mesh.settle()
    request = ask(mesh["n0"])
    mesh.settle()
    replies, lost = heard(mesh["n0"], request)
    assert {id for id, _ in replies} == {*ids[:HOPS]}
    assert lost == (ids[HOPS],)
    at_rest(mesh)


def test_a_circle_takes_it_once(mesh: Mesh) -> None:
    ids = ["a", "b", "c", "d", "e"]
    mesh.ring(*ids)
    for id in ids:
        mesh[id].handle("n", each(id, id))
    mesh.settle()
    for asker in ids:
        request = ask(mesh[asker])
        mesh.settle()
        assert heard(mesh[asker], request) == ({(id, id): 2 for id in ids}, ())
        nothing_open(mesh)
    assert all(len(mesh[id].handled) == 5 for id in ids)
    at_rest(mesh)


def test_all_linked_to_all(mesh: Mesh) -> None:
    ids = [f"n{n}" for n in range(6)]
    for id in ids:
        mesh.add(id, handles={"n": each(1)})
    for a in ids:
        for b in ids:
            if a < b:
                mesh.link(a, b)
    request = ask(mesh["n3"])
    mesh.settle()
    assert heard(mesh["n3"], request) == ({(id, 1): 1 for id in ids}, ())
    nothing_open(mesh)
    at_rest(mesh)


def test_a_leaf_with_two_hubs(mesh: Mesh) -> None:
    mesh.chain("a", "one", "leaf", "two")
    mesh.link("a", "two")
    mesh["leaf"].router.relay = False
    mesh["leaf"].start_relaying(False)
    mesh["leaf"].handle("n", each(1, 2))
    mesh.settle()
    for first, other in (("one", "two"), ("two", "one")):
        mesh.end(other, "leaf").silent = True
        request = ask(mesh["a"])
        mesh.settle()
        assert [message.value for message in mesh["a"].replies[request]] == [1, 2], first
        mesh.end(other, "leaf").silent = False
        mesh.settle()
        assert heard(mesh["a"], request) == ({("leaf", 1): 1, ("leaf", 2): 1}, ())
        nothing_open(mesh)
    at_rest(mesh)


def test_two_exchanges_ask_at_once(mesh: Mesh) -> None:
    mesh.ring("a", "b", "c", "d")
    for id in "abcd":
        mesh[id].handle("n", each(id))
    mesh.settle()
    requests = [(id, ask(mesh[id])) for id in "abcdabcd"]
    mesh.settle()
    for id, request in requests:
        assert heard(mesh[id], request) == ({(id, id): 1 for id in "abcd"}, ())
    nothing_open(mesh)


def test_only_those_who_handle_it_and_relays_are_asked(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b", "c")
    mesh.chain("hub", "far")
    mesh["b"].handle("n")
    mesh["c"].handle("other")
    mesh.settle()
    ask(mesh["a"])
    mesh.settle()
    heard = [(target, message) for _, target, event in mesh.heard(Received) for message in event.messages]
    asked = {target for target, message in heard if message.kind is Kind.REQUEST}
    assert asked == {"hub", "b", "far"}


def test_by_a_given_link_only(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.chain("a", "d")
    for id in "abcd":
        mesh[id].handle("n", each(id))
    mesh.settle()
    request = ask(mesh["a"], via="b")
    mesh.settle()
    assert heard(mesh["a"], request) == ({("b", "b"): 1, ("c", "c"): 1}, ())
    mesh.cut("a", "b")
    request = ask(mesh["a"], via="b")
    assert heard(mesh["a"], request) == ({}, ("b",))
    nothing_open(mesh)
    at_rest(mesh)


def test_one_exchange_by_its_id(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d")
    for id in "abcd":
        mesh[id].handle("n", each(1, 2))
    mesh.settle()
    for to in "abcd":
        request = ask(mesh["a"], to=to)
        mesh.settle()
        assert heard(mesh["a"], request) == ({(to, 1): 1, (to, 2): 1}, ())
        nothing_open(mesh)
    request = ask(mesh["a"], "other", to="c")
    mesh.settle()
    assert isinstance(mesh["a"].error(request), Unhandled)
    nothing_open(mesh)
    at_rest(mesh)


def test_replies_pass_as_they_come(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = ask(mesh["a"])
    mesh.settle()
    (message,) = mesh["c"].handled
    for value in range(3):
        mesh["c"].reply(message, value, last=False)
        mesh.settle()
        assert [reply.value for reply in mesh["a"].replies[request]] == list(range(value + 1))
    mesh["c"].end(message)
    mesh.settle()
    assert heard(mesh["a"], request) == ({("c", value): 1 for value in range(3)}, ())
    mesh["c"].reply(message, "too late")
    mesh.settle()
    heard(mesh["a"], request)
    nothing_open(mesh)
    at_rest(mesh)


def test_a_handler_that_fails_or_refuses_is_one_reply(mesh: Mesh) -> None:
    def refuse(message: Message) -> None:
        raise Refused("closed", code=Code.FAILED_PRECONDITION, reason="CLOSED")

    mesh.star("hub", "a", "b", "c")
    mesh["b"].handle("n", refuse)
    mesh["c"].handle("n", lambda message: 1 / 0)
    mesh.settle()
    request = ask(mesh["a"])
    mesh.settle()
    replies, lost = heard(mesh["a"], request)
    assert (replies, lost) == ({}, ())
    errors = {reply.from_: reply.error for reply in mesh["a"].replies[request] if reply.error is not None}
    assert {id: error.reason for id, error in errors.items()} == {"b": "CLOSED", "c": "HANDLER_FAILED"}
    at_rest(mesh)


# ------------------------------------------------------------------------------------------- what goes wrong


def hanging(mesh: Mesh, *ids: str) -> None:
    for id in ids:
        mesh[id].handle("n", lambda message: NEVER)
    mesh.settle()


def test_a_link_that_is_lost_midway_is_named_and_the_others_go_on(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d")
    hanging(mesh, "b", "c", "d")
    request = ask(mesh["a"])
    mesh.settle()
    for id in "bcd":
        mesh[id].reply(mesh[id].handled[0], id, last=False)
    mesh.settle()
    mesh.cut("c", "d")
    mesh.settle()
    assert mesh["d"].withdrawn == [request]
    for id in "bc":
        mesh[id].reply(mesh[id].handled[0], "more", last=False)
        mesh[id].end(mesh[id].handled[0])
    mesh.settle()
    replies, lost = heard(mesh["a"], request)
    assert replies == {("b", "b"): 1, ("c", "c"): 1, ("d", "d"): 1, ("b", "more"): 1, ("c", "more"): 1}
    assert lost == ("d",)
    nothing_open(mesh)
    at_rest(mesh)


def test_all_links_are_lost(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b", "c")
    hanging(mesh, "b", "c")
    request = ask(mesh["a"])
    mesh.settle()
    mesh.cut("hub", "b")
    mesh.cut("hub", "c")
    mesh.settle()
    replies, lost = heard(mesh["a"], request)
    assert (replies, {*lost}) == ({}, {"b", "c"})
    nothing_open(mesh)


def test_whoever_asked_is_lost(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    hanging(mesh, "b", "c")
    request = ask(mesh["a"])
    mesh.settle()
    mesh.cut("a", "b")
    mesh.settle()
    assert heard(mesh["a"], request) == ({}, ("b",))
    assert mesh["b"].withdrawn == mesh["c"].withdrawn == [request]
    nothing_open(mesh)
    at_rest(mesh)


def test_a_relay_that_loses_what_is_linked_here_too(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.link("a", "c")
    hanging(mesh, "c")
    mesh.end("b", "c").silent = True  # a's copy is the first at c
    request = ask(mesh["a"])
    mesh.settle()
    (message,) = mesh["c"].handled
    assert message.trace == ["a", "c"]
    mesh.cut("b", "c")
    mesh.settle()
    mesh["c"].reply(message, 1, last=False)
    mesh["c"].end(message)
    mesh.settle()
    replies, _ = heard(mesh["a"], request)
    assert replies == {("c", 1): 1}
    nothing_open(mesh)
    mesh.cut("a", "c")
    assert not mesh.broken
    at_rest(mesh)


def test_a_request_that_was_ended_by_name_does_not_break_the_end_of_a_link(mesh: Mesh) -> None:
    liar = mesh.stranger("liar", relay=True)
    mesh.chain("a", "c")
    mesh.link("liar", "a")
    hanging(mesh, "c")
    request = ask(mesh["a"])
    mesh.settle()
    liar.says("a", liar.got()[0], lost=("c",))
    mesh.settle()
    mesh.cut("a", "c")
    assert not mesh.broken
    mesh.settle()
    assert isinstance(mesh["a"].replies[request][-1].lost, tuple)
    nothing_open(mesh)


def test_an_end_that_names_the_asker_itself(mesh: Mesh) -> None:
    liar = mesh.stranger("liar", relay=True)
    mesh.add("a")
    mesh.link("liar", "a")
    hanging(mesh, "a")
    request = ask(mesh["a"])
    mesh.settle()
    liar.says("a", liar.got()[0], lost=("a",))
    mesh.settle()
    mesh["a"].reply(mesh["a"].handled[0], "mine")
    mesh.settle()
    replies, _ = heard(mesh["a"], request)
    assert replies == {("a", "mine"): 1}
    at_rest(mesh)


def test_silence_ends_at_the_deadline_and_is_named(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.chain("b", "d")
    hanging(mesh, "c")
    mesh["d"].handle("n", each(1))
    mesh.settle()
    request = ask(mesh["a"], seconds=5.0)
    mesh.settle()
    assert [reply.value for reply in mesh["a"].replies[request]] == [1]
    mesh.advance(4.9)
    assert len(mesh["a"].replies[request]) == 1
    mesh.advance(0.2)
    replies, lost = heard(mesh["a"], request)
    assert replies == {("d", 1): 1}
    assert {*lost} & {"b", "c"}
    assert mesh["c"].withdrawn == [request]
    nothing_open(mesh)
    at_rest(mesh)


def test_a_silent_link(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b", "c")
    mesh["b"].handle("n", each(1))
    mesh["c"].handle("n", each(2))
    mesh.settle()
    mesh.end("b", "hub").silent = True
    request = ask(mesh["a"], seconds=5.0)
    mesh.advance(6)
    replies, lost = heard(mesh["a"], request)
    assert replies == {("c", 2): 1}
    assert {*lost} & {"hub", "b"}
    mesh.end("b", "hub").silent = False
    mesh.settle()
    heard(mesh["a"], request)
    at_rest(mesh)


def test_cancel_reaches_all_who_have_it_and_nobody_else(mesh: Mesh) -> None:
    mesh.ring("a", "b", "c", "d")
    hanging(mesh, "a", "b", "c")
    mesh["d"].handle("n", each(1))
    mesh.settle()
    request = ask(mesh["a"])
    mesh.settle()
    mesh["a"].cancel(request)
    mesh.settle()
    assert [mesh[id].withdrawn for id in "abc"] == [[request]] * 3
    assert all(reply.lost is None for reply in mesh["a"].replies[request]), "whoever withdraws hears no end"
    nothing_open(mesh)
    mesh["c"].reply(mesh["c"].handled[0], "late")
    mesh.settle()
    nothing_open(mesh)
    at_rest(mesh)


def test_cancel_overtakes_nothing_and_leaves_nothing(mesh: Mesh) -> None:
    """Withdrawn while the copies are still on their way around the circle."""
    mesh.ring("a", "b", "c", "d", "e")
    hanging(mesh, "b", "c", "d", "e")
    request = ask(mesh["a"])
    for _ in range(3):
        mesh.step()
    mesh["a"].cancel(request)
    mesh.settle()
    for id in "bcde":
        assert mesh[id].withdrawn == [message.id for message in mesh[id].handled]
    nothing_open(mesh)
    at_rest(mesh)


def test_a_full_queue_of_a_handler_is_lost(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    for id in "abc":
        mesh[id].handle("n", each(id))
    mesh.settle()
    mesh["b"].crowded = True
    request = ask(mesh["a"])
    mesh.settle()
    assert heard(mesh["a"], request) == ({("a", "a"): 1, ("c", "c"): 1}, ("b",))
    mesh["a"].crowded = mesh["c"].crowded = True
    request = ask(mesh["a"])
    mesh.settle()
    replies, lost = heard(mesh["a"], request)
    assert (replies, {*lost}) == ({}, {"a", "b", "c"})
    nothing_open(mesh)
    at_rest(mesh)


def test_a_full_queue_of_a_link_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b", "c")
    mesh["b"].handle("n", each(1))
    mesh["c"].handle("n", each(2))
    mesh.settle()
    mesh.end("hub", "b").stuffed = True
    mesh["hub"].broadcast("x")  # what waits for b
    mesh.settle()
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 1)
    request = ask(mesh["a"])
    mesh.settle()
    assert heard(mesh["a"], request) == ({("c", 2): 1}, ("b",))
    nothing_open(mesh)


def test_too_many_open_requests_are_lost(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.chain("a", "b", "c")
    hanging(mesh, "b", "c")
    first = ask(mesh["b"])
    mesh.settle()
    mesh["b"].replies[first].clear()
    monkeypatch.setattr("exchange_grpc.routing.OPEN_REQUESTS", 1)
    request = ask(mesh["a"])
    mesh.settle()
    assert heard(mesh["a"], request) == ({}, ("b",))
    request = ask(mesh["b"])
    (end,) = mesh["b"].replies[request]
    assert end.error is not None
    assert (end.error.reason, end.lost) == ("FULL", ())


def test_a_rejected_copy_is_lost(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b", "c")
    hanging(mesh, "b", "c")
    request = ask(mesh["hub"])
    mesh.settle()
    error = request_error(Code.INVALID_ARGUMENT, "too strange", reason="INVALID_MESSAGE")
    for _ in range(2):  # it is told once
        mesh["hub"].signal("rejected", Rejection("b", request, error, mesh.now))
    mesh["hub"].signal("rejected", Rejection("a", request, error, mesh.now))  # who was not asked
    mesh["c"].reply(mesh["c"].handled[0], 1)
    mesh.settle()
    mesh["b"].reply(mesh["b"].handled[0], "taken all the same")
    mesh.settle()
    assert heard(mesh["hub"], request) == ({("c", 1): 1}, ("b",))
    nothing_open(mesh)
    at_rest(mesh)


def test_a_reply_that_cannot_be_passed_on_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    hanging(mesh, "b", "c")
    request = ask(mesh["a"], seconds=60.0)
    mesh.settle()
    (message,) = mesh["c"].handled
    mesh.end("b", "a").stuffed = True
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 1)
    for value in range(3):
        mesh["c"].reply(message, value, last=False)
        mesh.settle()
    mesh.end("b", "a").stuffed = False
    mesh["c"].reply(message, 3, last=False)
    mesh["c"].end(message)
    mesh["b"].end(mesh["b"].handled[0])
    mesh.settle()
    assert heard(mesh["a"], request) == ({("c", 0): 1, ("c", 3): 1}, ("c",))
    nothing_open(mesh)
    at_rest(mesh)


def test_a_reply_that_cannot_be_passed_on_ends_no_other_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c", "d")
    mesh.link("d", "b")
    hanging(mesh, "d")
    mesh.end("b", "d").silent = True  # c's copy is the first at d, and b's is on its way
    request = ask(mesh["a"], seconds=60.0)
    mesh.settle()
    (message,) = mesh["d"].handled
    assert message.trace == ["a", "b", "c", "d"]
    mesh.end("b", "a").stuffed = True
    mesh["b"].broadcast("x")
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 1)
    mesh["d"].reply(message, 1, last=False)
    mesh.settle()
    monkeypatch.undo()
    mesh.end("b", "a").stuffed = mesh.end("b", "d").silent = False
    mesh["d"].end(message)
    mesh.settle()
    assert heard(mesh["a"], request) == ({}, ("d",))
    nothing_open(mesh)


def test_one_who_was_asked_and_whose_reply_cannot_be_sent_is_withdrawn(mesh: Mesh) -> None:
    big = "x" * 5_000_000
    mesh.chain("a", "b")
    hanging(mesh, "b")
    request = ask(mesh["a"], to="b", seconds=1e9)
    mesh.settle()
    (message,) = mesh["b"].handled
    mesh["b"].reply(message, 1, last=False)
    if mesh.framed:
        mesh["b"].reply(message, big, last=False)
    else:
        mesh["a"].cancel(request)
    mesh.settle()
    assert mesh["b"].withdrawn == [request]
    nothing_open(mesh)


def test_replies_of_the_one_who_was_asked_have_no_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    hanging(mesh, "c")
    request = ask(mesh["a"], to="c", seconds=1e9)
    mesh.settle()
    (message,) = mesh["c"].handled
    mesh.end("b", "a").stuffed = True
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 1)
    for value in range(3):
        mesh["c"].reply(message, value, last=False)
        mesh.settle()
    mesh.end("b", "a").stuffed = False
    mesh["c"].reply(message, 3, last=False)
    mesh.settle()
    values = [reply.value for reply in mesh["a"].replies[request] if reply.error is None]
    assert values == list(range(len(values)))
    # ... and it is told that no more will come: it may wait for ever
    assert mesh["a"].replies[request][-1].error is not None
    assert mesh["c"].withdrawn == [request]
    nothing_open(mesh)


def test_a_reply_whose_time_ended_on_its_way_is_lost(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    hanging(mesh, "c")
    request = ask(mesh["a"], seconds=200.0)
    mesh.settle()
    (message,) = mesh["c"].handled
    mesh.end("b", "a").stuffed = True
    mesh["c"].reply(message, 1, last=False)
    mesh.advance(40)
    mesh.end("b", "a").stuffed = False
    mesh["c"].reply(message, 2, last=False)
    mesh["c"].end(message)
    mesh.settle()
    replies, lost = heard(mesh["a"], request)
    assert ("c", 1) in replies or "c" in lost
    nothing_open(mesh)


def test_a_reply_of_the_one_who_was_asked_whose_time_ended_leaves_no_gap(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    hanging(mesh, "c")
    request = ask(mesh["a"], to="c", seconds=1e9)
    mesh.settle()
    (message,) = mesh["c"].handled
    mesh["c"].reply(message, 0, last=False)
    mesh.settle()
    mesh.end("b", "a").stuffed = True
    mesh["c"].reply(message, 1, last=False)
    mesh.advance(40)
    mesh.end("b", "a").stuffed = False
    mesh["c"].reply(message, 2, last=False)
    mesh.settle()
    values = [reply.value for reply in mesh["a"].replies[request] if reply.error is None]
    assert values == list(range(len(values)))


def test_a_peer_that_begins_to_relay_while_it_is_asked(mesh: Mesh) -> None:
    mesh.add("b", relay=False)
    mesh.chain("a", "b", "c")
    mesh["b"].handle("n", each("b"))
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    mesh.end("a", "b").silent = True
    request = ask(mesh["a"])
    mesh["b"].handlers["n"] = lambda message: "b"
    mesh["b"].start_relaying()
    mesh.settle()
    mesh.end("a", "b").silent = False
    mesh.settle()
    for message in mesh["c"].handled:
        mesh["c"].reply(message, "c")
    mesh.settle()
    replies, lost = heard(mesh["a"], request)
    assert replies == {("b", "b"): 1, ("c", "c"): 1} or lost
    at_rest(mesh)


def test_it_is_remembered_that_it_was_here_for_as_long_as_it_may_come_again(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh["b"].handle("n", each(1))
    mesh.settle()
    mesh.end("a", "b").silent = True
    request = ask(mesh["a"])
    message = mesh.end("a", "b").wire[-1]
    mesh.end("a", "b").silent = False
    mesh.settle()
    assert len(mesh["b"].handled) == 1
    assert SEEN_SECONDS >= REQUEST_SECONDS
    mesh.end("a", "b").wire.append(message)  # the very same frame once more
    mesh.settle()
    assert len(mesh["b"].handled) == 1
    heard(mesh["a"], request)


# -------------------------------------------------------------------------------------- strangers and liars


def test_a_simple_peer_that_never_says_end(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b")
    simple = mesh.stranger("simple", handles=["n"])
    mesh.link("simple", "hub")
    mesh["b"].handle("n", each("b"))
    mesh.settle()
    request = ask(mesh["a"])
    mesh.settle()
    (message,) = simple.got()
    assert message.many
    for value in (1, 2):
        simple.says("hub", message, value)
    mesh.settle()
    assert len(mesh["a"].replies[request]) == 3
    simple.says("hub", message, 3, last=True)
    mesh.settle()
    expected = {("simple", 1): 1, ("simple", 2): 1, ("simple", 3): 1, ("b", "b"): 1}
    assert heard(mesh["a"], request) == (expected, ())
    nothing_open(mesh)
    at_rest(mesh)


def test_a_simple_peer_that_says_nothing_at_all(mesh: Mesh) -> None:
    simple = mesh.stranger("simple", handles=["n"])
    mesh.add("a")
    mesh.link("simple", "a")
    request = ask(mesh["a"], seconds=2.0)
    mesh.advance(3)
    assert heard(mesh["a"], request) == ({}, ("simple",))
    assert [message.reply_to for message in simple.got(Kind.CANCEL)] == [request]
    nothing_open(mesh)


def liars(mesh: Mesh) -> tuple[Stranger, Stranger]:
    """`a` asks one that relays and one that does not, and `honest`, which has not answered yet."""
    mesh.chain("a", "honest")
    hanging(mesh, "honest")
    relay, leaf = mesh.stranger("relay", relay=True), mesh.stranger("leaf", handles=["n"])
    mesh.link("relay", "a")
    mesh.link("leaf", "a")
    return relay, leaf


def test_end_twice_and_replies_after_the_end(mesh: Mesh) -> None:
    relay, leaf = liars(mesh)
    request = ask(mesh["a"])
    mesh.settle()
    for liar in (relay, leaf):
        (message,) = liar.got()
        liar.says("a", message, "before")
        liar.says("a", message, "with the end", lost=(), last=True)
        liar.says("a", message, "after", last=True)
        liar.says("a", message, lost=("nobody",), last=True)
        liar.says("a", message, error=NOBODY, lost=())
    mesh.settle()
    mesh["honest"].reply(mesh["honest"].handled[0], "honest")
    mesh.settle()
    expected = {("relay", "before"): 1, ("leaf", "before"): 1, ("honest", "honest"): 1}
    assert heard(mesh["a"], request) == (expected, ())
    for liar in (relay, leaf):
        liar.says("a", liar.got()[0], "after all is over", lost=())
    mesh.settle()
    heard(mesh["a"], request)
    nothing_open(mesh)
    at_rest(mesh)


def test_last_twice(mesh: Mesh) -> None:
    _, leaf = liars(mesh)
    request = ask(mesh["a"])
    mesh.settle()
    (message,) = leaf.got()
    for _ in range(3):
        leaf.says("a", message, "last", last=True)
    mesh.settle()
    assert [reply.value for reply in mesh["a"].replies[request]] == ["last"]
    at_rest(mesh)


def test_replies_from_a_branch_that_was_not_asked(mesh: Mesh) -> None:
    mesh.star("hub", "b")
    hanging(mesh, "b")
    stranger = mesh.stranger("stranger", handles=["other"])
    mesh.link("stranger", "hub")
    request = ask(mesh["hub"])
    mesh.settle()
    assert stranger.got() == []
    (message,) = mesh["b"].handled
    stranger.says("hub", message, "let me in")
    stranger.says("hub", message, lost=("b", "hub"))
    stranger.says("hub", message, error=NOBODY, last=True)
    stranger.say("hub", Kind.CANCEL, reply_to=request)
    mesh.settle()
    assert mesh["hub"].replies[request] == []
    assert mesh["b"].withdrawn == []
    mesh["b"].reply(message, 1)
    mesh.settle()
    assert heard(mesh["hub"], request) == ({("b", 1): 1}, ())
    nothing_open(mesh)


def test_an_end_that_names_thousands(mesh: Mesh) -> None:
    relay, leaf = liars(mesh)
    request = ask(mesh["a"])
    mesh.settle()
    relay.says("a", relay.got()[0], lost=tuple(f"x{n}" for n in range(5_000)))
    leaf.says("a", leaf.got()[0], last=True)
    mesh["honest"].end(mesh["honest"].handled[0])
    mesh.settle()
    replies, lost = heard(mesh["a"], request)
    assert replies == {("leaf", None): 1}
    assert len(lost) == LOST_NAMES
    nothing_open(mesh)


def test_an_end_with_names_that_are_none_is_refused_and_then_late() -> None:
    mesh = Mesh()
    relay, _ = liars(mesh)
    request = ask(mesh["a"], seconds=2.0)
    mesh.settle()
    relay.says("a", relay.got()[0], lost=("no id!",))
    mesh.advance(3)
    _, lost = heard(mesh["a"], request)
    assert {*lost} == {"relay", "leaf", "honest"}
    at_rest(mesh)


def test_an_error_of_a_peer_that_does_not_relay_is_its_reply(mesh: Mesh) -> None:
    _, leaf = liars(mesh)
    request = ask(mesh["a"], seconds=5.0)
    mesh.settle()
    leaf.says("a", leaf.got()[0], error=HandlerFailed("it broke"), last=True)
    mesh.settle()
    (failed,) = mesh["a"].replies[request]
    assert isinstance(failed.error, HandlerFailed)
    at_rest(mesh)


def test_an_end_without_last_ends_a_request_to_one(mesh: Mesh) -> None:
    simple = mesh.stranger("simple", handles=["n"])
    mesh.chain("a", "b")
    mesh.link("simple", "b")
    request = ask(mesh["a"], to="simple", seconds=1e9)
    mesh.settle()
    (message,) = simple.got()
    simple.says("b", message, 1)
    simple.says("b", message, lost=())
    mesh.settle()
    assert heard(mesh["a"], request) == ({("simple", 1): 1}, ())
    nothing_open(mesh)


def test_a_liar_that_says_end_to_an_ordinary_request(mesh: Mesh) -> None:
    simple = mesh.stranger("simple", handles=["n"])
    mesh.add("a")
    mesh.link("simple", "a")
    request = mesh["a"].request("n")
    mesh.settle()
    simple.says("a", simple.got()[0], 1, lost=("a", "b"))
    simple.says("a", simple.got()[0], 2, last=True)
    mesh.settle()
    assert len(mesh["a"].replies[request]) == 1
    nothing_open(mesh)


def test_a_simple_peer_may_ask_many(mesh: Mesh) -> None:
    simple = mesh.stranger("simple")
    mesh.chain("a", "b")
    mesh.link("simple", "a")
    mesh["a"].handle("n", each("a"))
    mesh["b"].handle("n", each("b", "b"))
    mesh.settle()
    first = simple.say("a", Kind.REQUEST, many=True)
    mesh.settle()
    replies = simple.got(Kind.REPLY)
    assert Counter(reply.from_ for reply in replies if reply.lost is None) == {"a": 1, "b": 2}
    assert [reply.lost for reply in replies if reply.lost is not None] == [()]
    assert replies[-1].lost == ()
    simple.heard.clear()
    simple.ends["a"].session.send(first)  # the same once more
    mesh.settle()
    (again,) = simple.got(Kind.REPLY)
    assert again.error is not None
    assert (again.error.reason, again.lost) == ("LOOP", ())
    nothing_open(mesh)


# --------------------------------------------------------------------------------------------- drawn meshes


@st.composite
def meshes(draw: st.DrawFn) -> tuple[Mesh, random.Random, list[str]]:
    """A mesh, linked and settled, whose frames are delivered in a drawn order; and the ids."""
    dice = random.Random(draw(st.integers(0, 2**32)))
    mesh = Mesh(framed=draw(st.booleans()), pick=lambda ends: dice.choice(ends))
    ids = [f"n{n}" for n in range(draw(st.integers(2, 7)))]
    for id in ids:
        mesh.add(id, relay=draw(st.sampled_from([True, True, False])))
    pairs = [(a, b) for a in ids for b in ids if a < b]
    for a, b in draw(st.lists(st.sampled_from(pairs), min_size=1, max_size=10, unique=True)):
        mesh.link(a, b)
    for id in ids:
        count = draw(st.sampled_from([None, 0, 1, 3]))
        if count is not None:
            quiet = draw(st.booleans())
            values = [f"{id}.{n}" for n in range(count)]
            mesh[id].handle("n", each(*values) if quiet or count != 1 else lambda message, v=values[0]: v)
    mesh.settle()
    return mesh, dice, ids


def within_reach(mesh: Mesh, origin: str) -> set[str]:
    """Those whom a request to many from `origin` is passed to."""
    reached, line = {origin}, [origin]
    for id in line:
        if id == origin or mesh[id].router.relay:
            for peer in sorted(mesh[id].ends):
                if peer not in reached and (mesh[peer].router.relay or "n" in mesh[peer].handlers):
                    reached.add(peer)
                    line.append(peer)
    return reached


@given(drawn=meshes(), askers=st.lists(st.integers(0, 6), min_size=1, max_size=3))
@settings(max_examples=120, deadline=None)
def test_any_mesh_asks_everybody_once_and_hears_everything_once(drawn: Any, askers: list[int]) -> None:
    mesh, _, ids = drawn
    requests = [(id, ask(mesh[id])) for id in (ids[n % len(ids)] for n in askers)]
    mesh.settle()
    for origin, request in requests:
        takers = {id for id in within_reach(mesh, origin) if "n" in mesh[id].handlers}
        taken = [node.id for node in mesh.nodes.values() for message in node.handled if message.id == request]
        assert sorted(taken) == sorted(takers)
        replies, lost = heard(mesh[origin], request)
        expected = Counter({(id, value): 1 for id in takers for value in values_of(mesh[id])})
        assert (replies, lost) == (expected, ())
        assert (mesh[origin].replies[request][-1].error is None) == bool(takers)
    nothing_open(mesh)
    at_rest(mesh)


def values_of(node: Node) -> list[Any]:
    """What the handler there replies."""
    result = node.handlers["n"](Message("x.1.1", "n", Kind.REQUEST, "x"))
    return [result] if isinstance(result, str) else list(result)


faults = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "cut", "silent", "loud", "reply", "reply", "end", "time", "crowd", "cancel"]),
        st.integers(0, 10_000),
    ),
    min_size=5,
    max_size=60,
)


@given(drawn=meshes(), asker=st.integers(0, 6), faults=faults)
@settings(max_examples=250, deadline=None)
def test_any_mesh_tells_of_what_is_lost(drawn: Any, asker: int, faults: list[tuple[str, int]]) -> None:
    mesh, _, ids = drawn
    for id in ids:
        if "n" in mesh[id].handlers:
            mesh[id].handlers["n"] = lambda message: NEVER
    origin = ids[asker % len(ids)]
    request = ask(mesh[origin], seconds=20.0)
    said: Counter[tuple[str, Any]] = Counter()
    hung: dict[str, Message] = {}
    cancelled = False
    for fault, n in faults:
        hung.update((id, message) for id in ids for message in mesh[id].handled if id not in hung)
        open_ = sorted(id for id, message in hung.items() if message is not NEVER)
        links = sorted(map(sorted, mesh.linked()))
        if fault == "step":
            for _ in range(n % 7):
                mesh.step()
        elif fault == "cut" and links:
            mesh.cut(*links[n % len(links)])
        elif fault in ("silent", "loud") and mesh.ends:
            mesh.ends[n % len(mesh.ends)].silent = fault == "silent"
        elif fault == "crowd":
            mesh[ids[n % len(ids)]].crowded = True
        elif fault == "time":
            mesh.advance(n % 3)
        elif fault in ("reply", "end") and open_:
            id = open_[n % len(open_)]
            if fault == "reply":
                value = said.total()
                said[id, value] += 1
                mesh[id].reply(hung[id], value, last=False)
            else:
                mesh[id].end(hung[id])
                hung[id] = NEVER  # type: ignore[assignment]
        elif fault == "cancel" and n % 10 == 0 and not cancelled:
            cancelled = not any(reply.lost is not None for reply in mesh[origin].replies[request])
            mesh[origin].cancel(request)
        assert not mesh.broken, mesh.broken
    mesh.settle()
    mesh.advance(25)
    for end in mesh.ends:
        end.silent = False
    mesh.settle()
    nothing_open(mesh)
    assert not mesh.broken
    for node in mesh.nodes.values():
        assert len(node.handled) <= 1, "everybody takes it once"
    if cancelled:
        assert all(reply.lost is None for reply in mesh[origin].replies[request])
        return
    replies, lost = heard(mesh[origin], request)
    assert max(replies.values(), default=1) == 1
    assert replies <= said
    for id in ids:
        mine = {reply for reply in said if reply[0] == id}
        ended = hung.get(id) is NEVER
        if mesh[id].handled and (not ended or not mine <= replies.keys()):
            way = {hop.exchange for hop in mesh[id].handled[0].hops} - {origin} or {origin}
            assert way & {*lost}, (id, way, lost)
    at_rest(mesh)


# --------------------------------------------------------------------------------------- the Python surface


async def gathered(replies: Any) -> list[tuple[str, Any]]:
    return [(reply.from_, reply.value) async for reply in replies]


async def test_replies_of_generators_of_many_exchanges() -> None:
    async with world_of("local") as world:
        hub = world.exchange("hub")
        closed = []

        async def count(msg: Message) -> Any:
            try:
                for n in range(3):
                    yield n
            finally:
                closed.append(n)

        for id in ("b", "c"):
            await world.link(world.exchange(id, handlers={"n": count}), hub)
        a = world.exchange("a")
        peer = await world.link(a, hub)
        replies = a.request_many("n")
        assert sorted(await soon(gathered(replies))) == [(id, n) for id in "bc" for n in range(3)]
        assert replies.lost == ()
        assert sorted(await soon(gathered(peer.request_many("n", to="b")))) == [("b", n) for n in range(3)]
        assert await soon(a.request("n")) == 0, "an ordinary request has the first of them"
        await until(lambda: len(closed) == 4)
        with pytest.raises(Unhandled):
            await soon(gathered(a.request_many("nobody")))
        for exchange in (hub, a):
            assert exchange._router.open_requests == 0
            assert exchange._emitter._replies == {}


async def test_leaving_early_stops_the_generators() -> None:
    async with world_of("local") as world:
        hub, a = world.exchange("hub"), world.exchange("a")
        stopped = []

        async def forever(msg: Message) -> Any:
            try:
                n = 0
                while True:
                    yield n
                    n += 1
            finally:
                stopped.append(msg.id)

        for id in ("b", "c"):
            await world.link(world.exchange(id, handlers={"n": forever}), hub)
        await world.link(a, hub)
        assert len(await soon(gathered(a.request_many("n", max=5)))) == 5
        await until(lambda: len(stopped) == 2)
        async with a.request_many("n") as replies:
            async for _ in replies:
                break
        await until(lambda: len(stopped) == 4)
        async for reply in a.request_many("n", timeout=0.2):
            assert reply.error is None
        await until(lambda: len(stopped) == 6)
        assert a._router.open_requests == hub._router.open_requests == 0


async def test_one_who_does_not_take_the_replies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.replies.REPLIES", 10)
    async with world_of("local") as world:
        hub, a = world.exchange("hub"), world.exchange("a")
        sent = 0

        async def forever(msg: Message) -> Any:
            nonlocal sent
            while True:
                yield sent
                sent += 1

        await world.link(world.exchange("b", handlers={"n": forever}), hub)
        await world.link(a, hub)
        replies = a.request_many("n")
        assert (await soon(anext(replies))).value == 0
        await until(lambda: replies.over)
        with pytest.raises(LimitExceeded):
            await soon(gathered(replies))
        await until(lambda: a._router.open_requests == hub._router.open_requests == 0)
        assert REPLIES > 10


@pytest.mark.parametrize("to", ["", "b"])
async def test_a_request_to_many_that_cannot_be_routed_is_told(to: str) -> None:
    async with world_of("local") as world:
        a = world.exchange("a")
        await world.link(a, world.exchange("b"))
        del a.kernel.delayed["route"]  # somebody took the behaviour away
        with pytest.raises(ExchangeError):
            await asyncio.wait_for(gathered(a.request_many("n", to=to)), 1.0)


@pytest.mark.parametrize("to", ["", "b"])
async def test_replies_live_as_long_as_their_request(to: str) -> None:
    async with world_of("local") as world:
        a = world.exchange("a")

        async def two(msg: Message) -> Any:
            yield 1
            yield 2

        b = world.exchange("b", handlers={"n": two})
        await world.link(a, b)
        sent = []
        b.watch("n", lambda message, seen: sent.append(message))
        await soon(gathered(a.request_many("n", to=to, timeout=1_000)))
        left = [message.deadline - b._now() for message in sent if message.kind is Kind.REPLY]
        assert len(left) >= 3, "with the end"
        assert min(left) > 900


async def test_a_watch_whose_changes_are_too_large_leaves_nothing() -> None:
    async with world_of("local") as world:
        b = world.exchange("b", state={"x": 0, "y": 0}, exports=("x", "y"))
        a = world.exchange("a")
        await world.link(a, b)
        watch = a.state_of("b").watch()
        assert [(await soon(anext(watch))).name for _ in range(2)] == ["x", "y"]
        b.state.update({"x": "x" * 3_000_000, "y": "y" * 3_000_000})
        with pytest.raises(RequestError):
            await soon(anext(watch))
        await until(lambda: b._changes.watches == 0, 2.0)
        assert b._router.open_requests == 0


async def test_a_watch_whose_link_is_lost_is_told_and_leaves_nothing() -> None:
    async with world_of("local") as world:
        b = world.exchange("b", state={"x": 0}, exports=("x",))
        a, hub = world.exchange("a"), world.exchange("hub")
        await world.link(a, hub)
        peer = await world.link(b, hub)
        watch = a.state_of("b").watch("x")
        assert (await soon(anext(watch))).value == 0
        b.state.x = 1
        assert (await soon(anext(watch))).value == 1
        await peer.close()
        with pytest.raises(Unavailable):
            await soon(anext(watch))
        await until(lambda: b._changes.watches == 0)
