"""Routing, DESIGN section 5 whole, on a mesh in memory: see `mesh.py`."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh import NEVER, Mesh, Node

from exchange_grpc import balance
from exchange_grpc.errors import Code, HandlerFailed, Refused, RequestError, Unavailable, Unhandled
from exchange_grpc.frames import Answer, Found, Query, Target
from exchange_grpc.kernel import Kernel
from exchange_grpc.ledger import Ledger
from exchange_grpc.limits import HOPS, NO_SECONDS, QUESTION_SECONDS, REQUEST_SECONDS, SEEN_SECONDS
from exchange_grpc.message import Context, Hop, Kind, Message, Origin, Outcome, Seen
from exchange_grpc.peer import Received
from exchange_grpc.routing import HERE, Arrival, Failure, Lost, Router

NAME = Target("name", "n")


@pytest.fixture(params=[True, False], ids=["framed", "plain"])
def mesh(request: pytest.FixtureRequest) -> Mesh:
    return Mesh(framed=request.param)


def at_rest(mesh: Mesh) -> None:
    """After all deadlines nothing is left over."""
    mesh.advance(2 * REQUEST_SECONDS)
    assert mesh.leftovers() == {}


def messages(mesh: Mesh, kind: Kind, a: str = "", b: str = "") -> list[Message]:
    """The messages of a kind that were delivered, perhaps on one link in one direction."""
    return [
        message
        for source, target, event in mesh.heard(Received)
        for message in event.messages
        if message.kind is kind and (not a or (source, target) == (a, b))
    ]


def answers(mesh: Mesh) -> list[tuple[str, str, Found, int]]:
    return [(a, b, event.found, event.cost) for a, b, event in mesh.heard(Answer)]


# ------------------------------------------------------------------------------------------- the four steps


def test_step_1_here(mesh: Mesh) -> None:
    a = mesh.add("a", handles={"n": lambda message: message.value + 1})
    mesh.add("b", handles={"n": lambda message: "not here"})
    mesh.link("a", "b")
    request = a.request("n", 1)
    assert a.answer(request) == 2
    send = a.send("n")
    assert a.dispatched[send] == [None]
    mesh.settle()
    assert mesh["b"].handled == []
    at_rest(mesh)


def test_step_1_to_me_by_my_id(mesh: Mesh) -> None:
    a = mesh.add("a", handles={"n": lambda message: "here"})
    assert a.answer(a.request("n", to="a")) == "here"
    error = a.error(a.request("other", to="a"))
    assert isinstance(error, Unhandled)
    assert error.at == "a"
    at_rest(mesh)


def test_step_2_a_peer_that_offers_it_or_is_addressed(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b", "c")
    mesh["b"].handle("n", lambda message: "b")
    mesh["c"].handle("n", lambda message: "c")
    mesh.settle()
    requests = [mesh["a"].request("n", to=to) for to in ("b", "c", "b")]
    mesh.settle()
    assert [mesh["a"].answer(request) for request in requests] == ["b", "c", "b"]
    request = mesh["a"].request("n")
    mesh.settle()
    assert mesh["a"].answer(request) in ("b", "c")
    assert all(target != "a" for _, target, _ in mesh.heard(Query))
    at_rest(mesh)


def test_step_2_to_goes_to_nobody_else(mesh: Mesh) -> None:
    mesh.star("hub", "a", "b", "c")
    mesh["b"].handle("n")
    mesh.settle()
    request = mesh["a"].request("n", to="c")
    stranger = mesh["a"].request("n", to="nobody")
    mesh.settle()
    assert mesh["a"].error(request).at == "c"
    assert isinstance(mesh["a"].error(request), Unhandled)
    assert isinstance(mesh["a"].error(stranger), Unhandled)
    assert "no exchange nobody" in mesh["a"].error(stranger).message
    assert mesh["b"].handled == []
    at_rest(mesh)


def test_step_3_ask(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d", "e", "f")
    mesh["f"].handle("sum", lambda message: sum(message.value))
    mesh.settle()
    request = mesh["a"].request("sum", [1, 2, 3])
    mesh.settle()
    assert mesh["a"].answer(request) == 6
    assert mesh["f"].handled[0].trace == ["a", "b", "c", "d", "e", "f"]
    asked = mesh.queries()
    assert asked == 4, "e knows that f offers it"
    again = mesh["a"].request("sum", [4])
    mesh.settle()
    assert mesh["a"].answer(again) == 4
    assert mesh.queries() == asked, "the second time nobody is asked"
    at_rest(mesh)


def test_step_4_nobody(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    started = mesh.now
    request, send = mesh["a"].request("nowhere"), mesh["a"].send("nowhere")
    mesh.settle()
    assert mesh.now == started, "at once"
    error = mesh["a"].error(request)
    assert isinstance(error, Unhandled)
    assert (error.code, error.reason, error.at, error.delivered) == (Code.UNIMPLEMENTED, "UNHANDLED", "a", False)
    assert "nowhere" in error.message
    (told,) = mesh["a"].dispatched[send]
    assert isinstance(told, Unhandled)
    assert [message.id for message, _ in mesh["a"].unhandled] == [request, send]
    assert mesh["a"].outcomes(request) == [Outcome.UNHANDLED]
    at_rest(mesh)


def test_an_exchange_alone_knows_at_once() -> None:
    mesh = Mesh()
    a = mesh.add("a")
    assert isinstance(a.error(a.request("n")), Unhandled)
    assert isinstance(a.dispatched[a.send("n")][0], Unhandled)
    assert a.leftovers().keys() == {"deadlines"}
    at_rest(mesh)


# ------------------------------------------------------------------------------------------ sends and outcomes


def test_a_send_is_done_when_it_has_left_and_an_outcome_comes_back_if_it_was_not_handled(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d")
    mesh["d"].handle("n")
    mesh.settle()
    first = mesh["a"].send("n")
    mesh.settle()
    assert mesh["a"].dispatched[first] == [None]
    assert [message.id for message in mesh["d"].handled] == [first]
    mesh["d"].handlers.clear()

    def fail(message: Message) -> None:
        raise ValueError("inside")

    mesh["d"].handlers["n"] = fail
    second = mesh["a"].send("n")
    mesh.settle()
    ((message, error),) = mesh["a"].unhandled
    assert message.id == second
    assert isinstance(error, HandlerFailed)
    assert error.at == "d"
    (outcome, *_) = messages(mesh, Kind.OUTCOME, "b", "a")
    assert (outcome.outcome, outcome.reply_to, outcome.to) == (Outcome.FAILED, second, "a")
    assert outcome.hops[0].exchange == "d"
    at_rest(mesh)


def test_a_send_that_was_unhandled_far_away_is_told_and_asked_about_anew(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    mesh["a"].send("n")
    mesh.settle()
    mesh.end("c", "b").silent = True  # its Interest is on the way
    mesh["c"].unhandle("n")
    send = mesh["a"].send("n")
    mesh.settle()
    mesh.end("c", "b").silent = False
    mesh.settle()
    assert [message.id for message, _ in mesh["a"].unhandled] == [send]
    later = mesh["a"].send("n")
    mesh.settle()
    assert isinstance(mesh["a"].dispatched[later][0], Unhandled)
    at_rest(mesh)


def test_nothing_is_told_about_an_outcome_a_reply_a_publication_or_a_cancel(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    a = mesh["a"]
    request = f"b.1.{99}"
    for kind in (Kind.REPLY, Kind.OUTCOME, Kind.CANCEL):
        message = a.origin.make(kind, "n", Context(), mesh.now, to="b", reply_to=request)
        a.ends["b"].session.send(message)
    a.publish("n")
    a.broadcast("n")
    mesh.settle()
    assert messages(mesh, Kind.OUTCOME, "b", "a") == messages(mesh, Kind.REPLY, "b", "a") == []
    at_rest(mesh)


def test_an_outcome_whose_addressee_is_gone_ends(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    mesh["a"].send("n")
    mesh.settle()
    mesh.cut("a", "b")
    (message,) = mesh["c"].handled
    outcome = mesh["c"].emit(Kind.OUTCOME, "n", to="a", reply_to=message.id, outcome=Outcome.FAILED)
    mesh.settle()
    assert mesh["b"].outcomes(outcome.id) == [Outcome.DROPPED]
    lone = mesh["a"].emit(Kind.OUTCOME, "n", to="c", reply_to=message.id)
    assert mesh["a"].outcomes(lone.id) == [Outcome.DROPPED]
    at_rest(mesh)


def test_an_outcome_without_a_reason() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].emit(Kind.OUTCOME, "n", to="a", reply_to="a.1.1", outcome=Outcome.DROPPED)
    mesh.settle()
    ((_, error),) = mesh["a"].unhandled
    assert error.message == "no reason was given"
    mesh["a"].emit(Kind.OUTCOME, "n", to="a", reply_to="a.1.1", error=Refused("by myself"))
    assert mesh["a"].unhandled[1][1].message == "by myself"


def test_a_send_that_the_peer_rejects_is_told_to_its_origin() -> None:
    """As every refusal: by the event here, by an outcome there."""
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    error = Refused("too bad", at="c", reason="BAD")
    for origin in ("b", "a"):
        send = mesh[origin].send("n")
        mesh.settle()
        mesh["c"].ends["b"].session.reject(0, send, error)
        mesh["c"].ends["b"].session.reject(0, send, error)  # said twice, told once
        mesh.settle()
        ((message, told),) = mesh[origin].unhandled
        assert (message.id, told.reason) == (send, "BAD")
    mesh["c"].ends["b"].session.reject(0, "a.1.77", error)
    mesh["c"].ends["b"].session.reject(0, "", error)
    mesh.settle()
    assert len(mesh["a"].unhandled) == len(mesh["b"].unhandled) == 1
    at_rest(mesh)


def test_only_whom_it_was_passed_to_may_reject_it() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b", "bad")
    mesh["b"].handle("n", lambda message: NEVER)
    mesh.settle()
    send, request = mesh["a"].send("n"), mesh["a"].request("n")
    mesh.settle()
    for id in (send, request):
        mesh["bad"].ends["hub"].session.reject(0, id, Refused("ha"))
    mesh.settle()
    assert mesh["a"].unhandled == []
    assert mesh["a"].replies[request] == []
    mesh["b"].ends["hub"].session.reject(0, request, Refused("no", at="b"))
    mesh.settle()
    assert mesh["a"].error(request).at == "b"
    at_rest(mesh)


# ----------------------------------------------------------------------------------------------- reverse paths


def test_a_reply_goes_back_the_way_the_request_came() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c", "d")
    mesh["d"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    mesh.link("a", "d")  # a shorter way turns up meanwhile
    mesh["d"].reply(mesh["d"].handled[0], "late")
    mesh.settle()
    assert mesh["a"].answer(request) == "late"
    assert mesh["a"].replies[request][0].trace == ["a", "b", "c", "d", "c", "b", "a"]
    at_rest(mesh)


def test_a_reply_counts_only_from_the_link_the_request_went_out_by() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b", "bad")
    mesh["b"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    forged = mesh["bad"].origin.make(
        Kind.REPLY, "n", Context(), mesh.now, to="a", payload=b'"forged"', reply_to=request, last=True
    )
    mesh["bad"].ends["hub"].session.send(forged)
    mesh.settle()
    assert mesh["a"].replies[request] == []
    assert mesh["hub"].outcomes(forged.id) == [Outcome.DROPPED]
    mesh["b"].reply(mesh["b"].handled[0], "true")
    mesh["b"].reply(mesh["b"].handled[0], "twice")
    mesh.settle()
    assert mesh["a"].answer(request) == "true"
    at_rest(mesh)


def test_the_first_answer_wins() -> None:
    mesh = Mesh()
    a = mesh.add("a", handles={"n": lambda message: NEVER})
    request = a.request("n")
    a.reply(a.handled[0], 1)
    second = a.reply(a.handled[0], 2)
    assert a.answer(request) == 1
    assert a.outcomes(second.id) == [Outcome.DROPPED]


def test_an_error_of_a_handler_comes_back(mesh: Mesh) -> None:
    def refuse(message: Message) -> None:
        raise Refused("not you", at="c", code=Code.PERMISSION_DENIED, reason="NOT_YOU")

    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", refuse)
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    error = mesh["a"].error(request)
    assert (error.message, error.code, error.reason, error.at) == ("not you", Code.PERMISSION_DENIED, "NOT_YOU", "c")
    at_rest(mesh)


def test_an_answer_that_cannot_be_said_becomes_an_error_that_can() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b")
    mesh["b"].handle("large", lambda message: "x" * (4 * 2**20 - 300))
    mesh["b"].handle("exact", lambda message: 2**53 + 1)
    mesh.settle()
    a = mesh["hub"].ends["a"].session
    a.as_value = True
    request = mesh["a"].request("exact")
    mesh.settle()
    error = mesh["a"].error(request)
    assert (error.code, error.reason, error.at) == (Code.OUT_OF_RANGE, "ANSWER", "hub")
    a.as_value = False
    a.peer = type(a.peer)("a", message_bytes=1_000)
    request = mesh["a"].request("large")
    mesh.settle()
    assert mesh["a"].error(request).code is Code.RESOURCE_EXHAUSTED
    at_rest(mesh)


def test_an_outcome_that_cannot_be_said_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    mesh.end("b", "a").stuffed = True
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 0)
    outcome = mesh["b"].emit(Kind.OUTCOME, "n", to="a", reply_to="a.1.1")
    assert mesh["b"].outcomes(outcome.id) == [Outcome.DENIED]


def test_cancel_reaches_the_far_end(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d")
    mesh["d"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    mesh["a"].cancel(request)
    mesh.settle()
    assert mesh["d"].withdrawn == [request]
    assert [node.outcomes(request)[-1] for node in mesh.nodes.values()] == [Outcome.CANCELLED] * 4
    mesh["d"].reply(mesh["d"].handled[0], "too late")
    mesh.settle()
    assert mesh["a"].replies[request] == []
    mesh["a"].cancel(request)
    assert all(not node.router._open for node in mesh.nodes.values())
    at_rest(mesh)


def test_only_the_caller_cancels() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b", "bad")
    mesh["b"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    forged = mesh["bad"].origin.make(Kind.CANCEL, "n", Context(), mesh.now, reply_to=request)
    mesh["bad"].ends["hub"].session.send(forged)
    mesh.settle()
    assert mesh["b"].withdrawn == []
    assert mesh["hub"].outcomes(forged.id) == [Outcome.DROPPED]


def test_a_request_withdrawn_while_it_waits_for_an_answer_goes_nowhere(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    mesh.end("b", "a").silent = True
    request = mesh["a"].request("n")
    mesh.settle()
    mesh["a"].cancel(request)
    mesh.end("b", "a").silent = False
    mesh.settle()
    assert mesh["c"].handled == []
    nobody = mesh["a"].request("nobody")
    mesh["a"].cancel(nobody)
    mesh.settle()
    assert mesh["a"].replies[nobody] == []
    at_rest(mesh)


# --------------------------------------------------------------------------------------------------- deadlines


def test_deadlines_shrink_and_expire_everywhere() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n", seconds=5)
    mesh.end("a", "b").stuffed = True
    mesh["a"].request("n", seconds=5)
    mesh.now += 2
    mesh.end("a", "b").stuffed = False
    mesh.settle()
    assert all(message.deadline == pytest.approx(mesh.now + 3, abs=1e-3) for message in mesh["c"].handled[1:])
    mesh.advance(3.1)
    error = mesh["a"].error(request)
    assert error.code is Code.DEADLINE_EXCEEDED
    assert error.at == "a"
    assert request in mesh["c"].withdrawn
    assert not any(node.router._open for node in mesh.nodes.values())
    at_rest(mesh)


def test_a_request_that_expires_at_its_handler_is_answered_from_there() -> None:
    """The handler's exchange has the shorter clock: the reply is an error like any other."""
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n", seconds=5)
    mesh.settle()
    mesh["b"].router.tick(mesh.now + 6)
    mesh.write()
    mesh.settle()
    assert mesh["a"].error(request).at == "b"
    assert mesh["b"].withdrawn == [request]
    at_rest(mesh)


def test_what_waited_too_long_to_be_written(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    mesh["a"].send("n")
    mesh.settle()
    mesh.end("b", "c").stuffed = True
    send, request = mesh["a"].send("n", seconds=1), mesh["a"].request("n", seconds=1)
    mesh["b"].send("n", seconds=1)
    mesh.settle()
    mesh.advance(2)
    mesh.end("b", "c").stuffed = False
    mesh.settle()
    assert len(mesh["c"].handled) == 1
    assert [(message.id, error.code) for message, error in mesh["a"].unhandled] == [(send, Code.DEADLINE_EXCEEDED)]
    assert mesh["a"].error(request).code is Code.DEADLINE_EXCEEDED
    assert len(mesh["b"].unhandled) == 1
    at_rest(mesh)


def test_what_is_over_on_arrival_is_refused() -> None:
    mesh = Mesh(framed=False)
    mesh.chain("a", "b")
    mesh["b"].handle("n")
    mesh.settle()
    mesh.end("a", "b").silent = True
    send, request = mesh["a"].send("n", seconds=1), mesh["a"].request("n", seconds=1)
    mesh.now += 2
    mesh.end("a", "b").silent = False
    mesh.settle()
    assert mesh["b"].handled == []
    assert mesh["b"].outcomes(send) == mesh["b"].outcomes(request) == [Outcome.EXPIRED]
    assert [message.id for message, _ in mesh["a"].unhandled] == [send]
    assert mesh["a"].error(request).code is Code.DEADLINE_EXCEEDED


def test_timers_of_what_has_ended_are_swept_out() -> None:
    mesh = Mesh()
    a = mesh.add("a", handles={"n": lambda message: None})
    for _ in range(5_000):
        a.request("n")
    assert len(a.leftovers()["deadlines"]) < 1_100
    waiting = [a.request("n") for _ in range(3)]
    assert all(a.answer(request) is None for request in waiting)


def test_an_id_that_comes_again_keeps_its_own_time() -> None:
    mesh = Mesh()
    a = mesh.add("a", handles={"n": lambda message: None})
    request = a.request("n", seconds=5)
    a.handlers["n"] = lambda message: NEVER
    a.origin._count -= 2  # request and reply: the same id once more
    assert a.request("n", seconds=20) == request
    mesh.advance(6)
    assert len(a.replies[request]) == 1
    mesh.advance(15)
    assert len(a.replies[request]) == 2


# ------------------------------------------------------------------------------------------------- loops, hops


def arriving(node: Node, message: Message, link: str) -> None:
    """`message` as if it came over a link of `node`."""
    node.signal("arrived", (link, [message], node.mesh.now))
    node.mesh.settle()


def foreign(kind: Kind, *way: str, name: str = "n", n: int = 1, to: str = "") -> Message:
    """A message that has been where `way` says."""
    message = Origin(way[0], 1).make(kind, name, Context(), 1_000.0, to=to)
    message.id = f"{way[0]}.1.{n}"
    message.hop_trace = type(message.hop_trace)(tuple(Hop(exchange, 1.0) for exchange in way))
    return message


def test_a_message_that_comes_back_is_refused_as_loop() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    arriving(mesh["b"], foreign(Kind.SEND, "x", "b", "a", n=1), "a")
    arriving(mesh["b"], foreign(Kind.REQUEST, "x", "b", "a", n=2), "a")
    assert mesh["b"].outcomes("x.1.1") == mesh["b"].outcomes("x.1.2") == [Outcome.LOOP]
    (outcome,) = messages(mesh, Kind.OUTCOME, "b", "a")
    (reply,) = messages(mesh, Kind.REPLY, "b", "a")
    assert outcome.outcome is Outcome.LOOP
    assert reply.error is not None
    assert reply.error.reason == "LOOP"
    assert "x -> b -> a -> b" in reply.error.message
    at_rest(mesh)


def test_nothing_is_told_about_a_reply_that_comes_back() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    reply = foreign(Kind.REPLY, "x", "b", "a")
    reply.reply_to = "b.1.1"
    arriving(mesh["b"], reply, "a")
    assert mesh["b"].outcomes(reply.id) == [Outcome.LOOP]
    assert mesh.heard(Received) == []


def test_a_loop_does_not_end_the_request_that_is_open() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["a"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n")
    (message,) = mesh["a"].handled
    copy = foreign(Kind.REQUEST, "a", "b", n=int(request.rpartition(".")[2]))
    arriving(mesh["a"], copy, "b")
    mesh["a"].reply(message, "fine")
    assert mesh["a"].answer(request) == "fine"


def test_16_hops_and_not_one_more() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].handle("n")
    mesh.settle()
    ways = [[*(f"x{i}" for i in range(hops - 1)), "a"] for hops in (HOPS - 1, HOPS)]
    for n, way in enumerate(ways, 1):
        arriving(mesh["b"], foreign(Kind.SEND, *way, n=n), "a")
    arriving(mesh["b"], foreign(Kind.REQUEST, *ways[1], n=3), "a")
    assert [len(message.hops) for message in mesh["b"].handled] == [HOPS]
    (reply,) = messages(mesh, Kind.REPLY, "b", "a")
    assert reply.error is not None
    assert (reply.error.code, reply.error.reason) == (Code.OUT_OF_RANGE, "TOO_MANY_HOPS")
    assert mesh["b"].outcomes("x0.1.2") == [Outcome.DENIED]


def test_a_chain_as_long_as_the_limit() -> None:
    mesh = Mesh()
    names = [f"e{n}" for n in range(HOPS + 1)]
    mesh.chain(*names)
    mesh[names[-2]].handle("near")
    mesh[names[-1]].handle("far")
    mesh.settle()
    near, far = mesh["e0"].request("near", 1), mesh["e0"].request("far", 1)
    mesh.settle()
    assert mesh["e0"].answer(near) is None
    assert mesh["e0"].error(far).reason == "TOO_MANY_HOPS"
    assert mesh["e0"].error(far).at == names[-1]
    at_rest(mesh)


def test_the_same_request_twice_is_refused_and_the_first_goes_on() -> None:
    mesh = Mesh()
    mesh.add("b", handles={"n": lambda message: NEVER})
    for leaf in ("a", "c"):
        mesh.add(leaf)
        mesh.link(leaf, "b")
    arriving(mesh["b"], foreign(Kind.REQUEST, "x", "a"), "a")
    arriving(mesh["b"], foreign(Kind.REQUEST, "x", "c"), "c")
    assert len(mesh["b"].handled) == 1
    (reply,) = messages(mesh, Kind.REPLY)
    assert reply.error is not None
    assert (reply.error.code, reply.error.reason) == (Code.ALREADY_EXISTS, "DUPLICATE")
    own = foreign(Kind.REQUEST, "x")
    mesh["b"].signal("route", Arrival(own, HERE, mesh.now))
    assert len(mesh["b"].handled) == 1
    at_rest(mesh)


def test_what_comes_over_a_link_that_is_not_there_is_not_heard() -> None:
    mesh = Mesh()
    a = mesh.add("a", handles=("n",))
    now = mesh.now
    for name, value in {
        "arrived": ("x", [foreign(Kind.SEND, "x")], now),
        "peer.away": ("x", now),
        "peer.interest": ("x", None, now),
        "peer.asked": ("x", Query("x.1.q1", NAME, 1), now),
        "peer.answered": ("x", Answer("", NAME, Found.NO), now),
    }.items():
        a.signal(name, value)
    a.signal("peer.disconnect", Lost("x", [], now))
    assert a.handled == []
    assert mesh.broken == []


# --------------------------------------------------------------------------------------------- relays and leaves


def test_a_leaf_passes_nothing_on(mesh: Mesh) -> None:
    mesh.add("leaf", relay=False)
    mesh.chain("a", "leaf", "b")
    mesh["b"].handle("n")
    mesh.settle()
    request, send = mesh["a"].request("n"), mesh["a"].send("n")
    through = mesh["a"].request("n", via="leaf")
    mesh["a"].publish("n")
    mesh.settle()
    assert isinstance(mesh["a"].error(request), Unhandled)
    assert isinstance(mesh["a"].dispatched[send][0], Unhandled)
    assert mesh["a"].error(through).at == "leaf"
    assert "does not relay" in mesh["a"].error(through).message
    assert mesh["b"].handled == mesh["b"].published == []
    assert mesh.queries() == 0, "and is asked nothing"
    at_rest(mesh)


def test_a_leaf_that_is_asked_nevertheless_answers_for_itself_only() -> None:
    mesh = Mesh()
    mesh.add("leaf", relay=False, handles=("mine",))
    mesh.chain("a", "leaf", "b")
    mesh["b"].handle("n")
    mesh.settle()
    for n, target in enumerate(("n", "mine", "nobody")):
        mesh["a"].ends["leaf"].session.control(Query(f"a.1.q{n + 50}", Target("name", target), 5))
    for n, target in enumerate(("leaf", "b", "nobody")):
        mesh["a"].ends["leaf"].session.control(Query(f"a.1.q{n + 60}", Target("exchange", target), 5))
    mesh.settle()
    yes, no = Found.YES, Found.NO
    assert [found for _, _, found, _ in answers(mesh)] == [no, yes, no, yes, no, no]


def test_an_outcome_is_not_relayed_by_a_leaf() -> None:
    mesh = Mesh()
    mesh.add("leaf", relay=False)
    mesh.chain("a", "leaf", "b")
    outcome = foreign(Kind.OUTCOME, "a", to="b")
    outcome.reply_to = "b.1.1"
    arriving(mesh["leaf"], outcome, "a")
    assert mesh["leaf"].outcomes(outcome.id) == [Outcome.DROPPED]


def test_who_begins_to_relay_is_asked_from_then_on(mesh: Mesh) -> None:
    mesh.add("b", relay=False)
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: "c")
    mesh.settle()
    first = mesh["a"].request("n")
    mesh.settle()
    assert isinstance(mesh["a"].error(first), Unhandled)
    mesh["b"].start_relaying()
    mesh.settle()
    second = mesh["a"].request("n")
    mesh.settle()
    assert mesh["a"].answer(second) == "c"
    assert len(mesh["a"].publish("news")) > 0
    mesh.settle()
    assert messages(mesh, Kind.PUBLISH, "b", "c")
    at_rest(mesh)


def test_a_star_is_exact_and_nobody_is_asked() -> None:
    mesh = Mesh()
    mesh.star("hub", *(f"leaf{n}" for n in range(5)))
    mesh["leaf0"].handle("n")
    mesh.settle()
    for n in range(1, 5):
        mesh[f"leaf{n}"].request("n")
    nobody = mesh["hub"].request("nobody")
    mesh.settle()
    assert len(mesh["leaf0"].handled) == 4
    assert isinstance(mesh["hub"].error(nobody), Unhandled)
    assert {target for _, target, _ in mesh.heard(Query)} == {"hub"}, "leaves ask the hub, and are not asked"


def test_peer_send_fixes_the_first_link_only(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["a"].handle("n", lambda message: "a")
    mesh["c"].handle("n", lambda message: "c")
    mesh.settle()
    request = mesh["a"].request("n", via="b")
    mesh.settle()
    assert mesh["a"].answer(request) == "c"
    gone = mesh["a"].request("n", via="c")
    lost = mesh["a"].send("n", via="c")
    for error in (mesh["a"].error(gone), mesh["a"].dispatched[lost][0]):
        assert isinstance(error, Unavailable)
        assert error.delivered is False
    at_rest(mesh)


# ---------------------------------------------------------------------------------------------------- balancing


def workers(balance: str, count: int = 3, **options: Any) -> Mesh:
    mesh = Mesh()
    mesh.add("hub", balance=balance, **options)
    mesh.star("hub", *(f"w{n}" for n in range(count)))
    for n in range(count):
        mesh[f"w{n}"].handle("n", lambda message: None)
        mesh[f"w{n}"].handle("m", lambda message: None)
    mesh.settle()
    return mesh


def handled(mesh: Mesh) -> list[int]:
    mesh.settle()
    return [len(node.handled) for id, node in mesh.nodes.items() if id.startswith("w")]


def test_round_robin_by_the_set_of_candidates_not_by_name() -> None:
    mesh = workers("round_robin")
    for n in range(30):
        mesh["hub"].send("n" if n % 3 == 0 else "m")
    assert handled(mesh) == [10, 10, 10]
    assert [len([m for m in mesh[f"w{n}"].handled if m.name == "n"]) for n in range(3)] == [10, 0, 0]


def test_round_robin_over_names_that_come_once_each() -> None:
    mesh = workers("round_robin", 2)
    for n in range(40):
        for worker in ("w0", "w1"):
            mesh[worker].handle(f"job.{n}")
    mesh.settle()
    for n in range(40):
        mesh["hub"].send(f"job.{n}")
    assert handled(mesh) == [20, 20]


def test_turns_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "TURNS", 1)
    choose = balance.policy("round_robin", pending=lambda link: 0, draw=lambda n: 0)
    message = Message("a.1.1", "n", Kind.SEND, "a")
    assert [choose(("a", "b"), message) for _ in range(3)] == ["a", "b", "a"]
    assert choose(("c", "d"), message) == "c"
    assert choose(("a", "b"), message) == "a"  # whose turn it was is forgotten


def test_least_pending() -> None:
    mesh = workers("least_pending")
    for worker in ("w0", "w1", "w2"):
        mesh[worker].handlers["n"] = lambda message: NEVER
    for _ in range(6):
        mesh["hub"].request("n")
    assert handled(mesh) == [2, 2, 2]
    for message in list(mesh["w1"].handled):
        mesh["w1"].reply(message)
    mesh.settle()
    for _ in range(2):
        mesh["hub"].request("n")
    assert handled(mesh) == [2, 4, 2]
    assert [peer["pending"] for peer in mesh["hub"].router.peers()] == [2, 2, 2]


def test_random_is_drawn_from_outside() -> None:
    draws = iter([2, 0, 2, 1])
    asked = []
    mesh = workers("random", draw=lambda n: (asked.append(n), next(draws))[1])  # type: ignore[func-returns-value]
    for _ in range(4):
        mesh["hub"].send("n")
    assert handled(mesh) == [1, 1, 2]
    assert asked == [3, 3, 3, 3]


def test_sticky_stays_and_when_one_goes_only_its_own_moves() -> None:
    mesh = workers("sticky:user", 4)

    def placed() -> dict[str, str]:
        for node in mesh.nodes.values():
            node.handled.clear()
        for n in range(60):
            mesh["hub"].send("n", headers={"user": f"u{n}"})
        mesh.settle()
        return {m.headers["user"]: id for id, node in mesh.nodes.items() for m in node.handled}

    before, again = placed(), placed()
    assert before == again
    assert min(Counter(before.values()).values()) >= 5
    mesh.cut("hub", "w2")
    after = placed()
    assert all(after[user] == worker for user, worker in before.items() if worker != "w2")
    assert set(after.values()) == {"w0", "w1", "w3"}


def test_sticky_without_the_header_goes_in_turn() -> None:
    mesh = workers("sticky:user", 2)
    for _ in range(4):
        mesh["hub"].send("n")
    assert handled(mesh) == [2, 2]


@pytest.mark.parametrize("balance", ["", "fair", "sticky", "sticky:"])
def test_an_unknown_policy(balance: str) -> None:
    with pytest.raises(ValueError, match="round_robin"):
        Router(Origin("a", 1), Kernel(), Ledger("a"), balance=balance, draw=lambda n: 0)


# ---------------------------------------------------------------------------------------------------- discovery


def test_one_question_per_name_with_many_askers(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.star("a", "leaf")
    mesh["c"].handle("n", lambda message: message.value)
    mesh.settle()
    mine = [mesh["a"].request("n", n) for n in range(10)]
    theirs = [mesh["leaf"].request("n", n) for n in range(10)]
    mesh["a"].ends["leaf"].session.control(Query("a.1.q0", NAME, 5))
    mesh.settle()
    assert [mesh["a"].answer(request) for request in mine] == list(range(10))
    assert [mesh["leaf"].answer(request) for request in theirs] == list(range(10))
    assert len([1 for a, b, _ in mesh.heard(Query) if (a, b) == ("a", "b")]) == 1
    assert len([1 for a, b, _ in mesh.heard(Query) if (a, b) == ("leaf", "a")]) == 1
    at_rest(mesh)


def test_the_cost_of_a_way_counts_its_hops(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d", "e")
    mesh["e"].handle("n")
    mesh.settle()
    mesh["a"].request("n")
    mesh.settle()
    assert answers(mesh) == [("d", "c", Found.YES, 1), ("c", "b", Found.YES, 2), ("b", "a", Found.YES, 3)]


def test_the_nearest_of_several_ways_is_taken_and_equals_share(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "far")
    mesh.chain("a", "d", "near")
    mesh.chain("a", "e", "other")
    for name in ("far", "near", "other"):
        mesh[name].handle("n", lambda message: None)
    mesh.settle()
    for _ in range(2):
        mesh["a"].request("n")
        mesh.settle()
    for node in mesh.nodes.values():
        node.handled.clear()
    for _ in range(10):
        mesh["a"].request("n")
    mesh.settle()
    assert [len(mesh[name].handled) for name in ("far", "near", "other")] == [0, 5, 5]
    mesh.cut("a", "d")
    mesh.cut("a", "e")
    mesh["a"].request("n")
    mesh.settle()
    assert len(mesh["far"].handled) == 1, "later answers are candidates"
    at_rest(mesh)


def test_no_is_believed_for_a_moment(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["a"].request("n")
    mesh.settle()
    asked = mesh.queries()
    assert asked == 2
    for _ in range(3):
        assert isinstance(mesh["a"].error(mesh["a"].request("n")), Unhandled)
    mesh.settle()
    assert mesh.queries() == asked
    mesh.advance(NO_SECONDS + 0.01)
    mesh["a"].request("n")
    mesh.settle()
    assert mesh.queries() == 2 * asked


def test_no_is_cleared_by_an_offer_next_to_here_and_by_a_new_link(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh["a"].request("n")
    mesh.settle()
    mesh["b"].handle("n", lambda message: "b")
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    assert mesh["a"].answer(request) == "b"
    mesh["a"].request("m")
    mesh.settle()
    mesh.add("c", handles={"x": lambda message: None})
    mesh.chain("c", "d")
    mesh["d"].handle("m", lambda message: "d")
    mesh.settle()
    mesh.link("a", "c")
    request = mesh["a"].request("m")
    mesh.settle()
    assert mesh["a"].answer(request) == "d"


def test_a_relay_that_just_heard_no_says_so() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["b"].request("n")
    mesh.settle()
    before = mesh.queries()
    mesh["a"].request("n")
    mesh.settle()
    assert mesh.queries() == before + 1


def test_a_silent_branch_is_incomplete_and_not_believed(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.end("c", "b").silent = True
    request, send = mesh["a"].request("n"), mesh["a"].send("n")
    mesh.advance(QUESTION_SECONDS - 0.01)
    assert mesh["a"].replies[request] == []
    mesh.advance(0.02)
    error = mesh["a"].error(request)
    assert isinstance(error, Unavailable)
    assert (error.reason, error.at, error.delivered) == ("INCOMPLETE", "a", False)
    assert isinstance(mesh["a"].dispatched[send][0], Unavailable)
    mesh.end("c", "b").silent = False
    mesh["c"].handle("n", lambda message: "c")
    mesh.settle()
    again = mesh["a"].request("n")
    mesh.settle()
    assert mesh["a"].answer(again) == "c"
    at_rest(mesh)


def test_a_lost_branch_is_incomplete_and_the_other_may_still_say_yes(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.chain("a", "d", "e")
    mesh.end("c", "b").silent = mesh.end("e", "d").silent = True
    request = mesh["a"].request("n")
    mesh.settle()
    mesh.cut("b", "c")
    mesh.settle()
    assert mesh["a"].replies[request] == [], "d has not answered"
    mesh.cut("a", "d")
    mesh.settle()
    assert mesh["a"].error(request).reason == "INCOMPLETE"
    mesh.link("a", "d")
    mesh.link("b", "c")
    mesh.end("c", "b").silent = True
    mesh.end("e", "d").silent = False
    mesh["e"].handle("m", lambda message: "e")
    mesh.settle()
    request = mesh["a"].request("m")
    mesh.settle()
    assert mesh["a"].answer(request) == "e", "the first yes is enough"
    at_rest(mesh)


def test_an_offer_that_turns_up_ends_the_wait(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh.star("a", "leaf", "late")
    mesh.end("b", "a").silent = True
    mine, theirs = mesh["a"].request("n"), mesh["leaf"].request("n")
    mesh.settle()
    mesh["late"].handle("n", lambda message: "late")
    mesh.settle()
    assert mesh["a"].answer(mine) == mesh["leaf"].answer(theirs) == "late"
    mesh.end("b", "a").silent = False
    mesh.settle()
    at_rest(mesh)


def test_an_exchange_that_turns_up_ends_the_wait(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh.end("b", "a").silent = True
    request = mesh["a"].request("n", to="late")
    mesh.add("late", handles={"n": lambda message: "late"})
    mesh.link("late", "a")
    assert mesh["a"].answer(request) == "late"


def test_a_handler_that_turns_up_here_takes_what_waits(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh.end("b", "a").silent = True
    request = mesh["a"].request("n")
    mesh["a"].handle("n", lambda message: "here")
    mesh.end("b", "a").silent = False
    mesh.settle()
    mesh.advance(1)
    assert mesh["a"].answer(request) == "here"
    at_rest(mesh)


def test_who_asks_and_then_offers_it_itself_is_told_no(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh.star("a", "leaf")
    mesh.end("b", "a").silent = True
    request = mesh["leaf"].request("n")
    mesh.settle()
    mesh["leaf"].handle("n", lambda message: "leaf")
    mesh.settle()
    assert mesh["leaf"].answer(request) == "leaf"
    at_rest(mesh)


def test_a_withdrawn_offer_is_withdrawn_all_the_way(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d", "e")
    mesh["e"].handle("n", lambda message: "e")
    mesh.settle()
    mesh["a"].request("n")
    mesh.settle()
    before = mesh.queries()
    mesh["e"].unhandle("n")
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    assert isinstance(mesh["a"].error(request), Unhandled)
    assert mesh["a"].error(request).at == "a"
    assert mesh.queries() == before + 4
    assert mesh["d"].outcomes(request) == [], "no message went to find out"
    at_rest(mesh)


def test_a_way_that_is_left_keeps_the_yes(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh.star("b", "w1", "w2")
    for worker in ("w1", "w2"):
        mesh[worker].handle("n", lambda message: None)
    mesh.settle()
    mesh["a"].request("n")
    mesh.settle()
    before = mesh.queries()
    mesh["w1"].unhandle("n")
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    assert mesh["a"].answer(request) is None
    assert mesh.queries() == before
    assert not [event for _, _, event in mesh.heard(Answer) if not event.id]


def test_of_two_who_were_told_the_one_that_stays_hears_of_the_end(mesh: Mesh) -> None:
    mesh.chain("a", "hub", "far")
    mesh.chain("b", "hub")
    mesh["far"].handle("n", lambda message: None)
    mesh.settle()
    for id in ("a", "b"):
        mesh[id].request("n")
        mesh.settle()
    mesh.cut("a", "hub")
    mesh["far"].unhandle("n")
    mesh.settle()
    assert [(a, b) for a, b, event in mesh.heard(Answer) if not event.id] == [("hub", "b")]
    at_rest(mesh)


def test_a_link_lost_far_away_is_told(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d")
    mesh["d"].handle("n")
    mesh.settle()
    by_name, by_id = mesh["a"].request("n"), mesh["a"].request("n", to="d")
    mesh.settle()
    assert mesh["a"].answer(by_name) is mesh["a"].answer(by_id) is None
    mesh.cut("c", "d")
    mesh.settle()
    for options in ({}, {"to": "d"}):
        error = mesh["a"].request("n", **options)
        mesh.settle()
        assert mesh["a"].error(error).at == "a"
    at_rest(mesh)


def test_unhandled_from_a_stale_way_asks_once_more_and_finds_the_other(mesh: Mesh) -> None:
    mesh.chain("a", "b", "old")
    mesh.chain("a", "c", "new")
    mesh["old"].handle("n", lambda message: "old")
    mesh.settle()
    mesh["a"].request("n")
    mesh.settle()
    mesh["new"].handle("n", lambda message: "new")
    mesh.end("old", "b").silent = mesh.end("b", "a").silent = True
    mesh["old"].unhandle("n")
    mesh.settle()
    request, send = mesh["a"].request("n"), mesh["a"].send("n")
    mesh.settle()
    mesh.end("old", "b").silent = False
    mesh.settle()
    mesh.end("b", "a").silent = False
    mesh.settle()
    assert mesh["old"].handled[1:] == []
    replies = mesh["a"].replies[request]
    assert len(replies) == 1
    assert send
    at_rest(mesh)


def test_the_neighbour_of_the_stale_way_asks_again() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "old")
    mesh.chain("a", "c", "new")
    a, b = mesh["a"], mesh["b"]
    mesh["new"].handle("n", lambda message: "new")
    mesh.settle()
    a.router._discovery.learn(NAME, "b", 1, mesh.now)  # and b knows nothing of it
    b.router.relay = False
    request = a.request("n")
    mesh.settle()
    assert a.answer(request) == "new"
    assert b.outcomes(request) == [Outcome.UNHANDLED]
    at_rest(mesh)


def test_asked_again_once_and_not_more() -> None:
    mesh = Mesh()
    mesh.add("b", relay=False)
    mesh.add("c", relay=False)
    mesh.chain("b", "a", "c")
    for link in ("b", "c"):
        mesh["a"].router._discovery.learn(NAME, link, 1, mesh.now)
    request = mesh["a"].request("n")
    mesh.settle()
    assert isinstance(mesh["a"].error(request), Unhandled)
    assert len(messages(mesh, Kind.REQUEST)) == 2
    at_rest(mesh)


CHAIN = ["e1", "e2", "e3", "e4", "e5", "e6"]
LINKS = [*pairwise(CHAIN), ("e2", "x"), ("x", "y"), ("y", "e5")]


def circle(mesh: Mesh) -> Mesh:
    """The chain of six with two more that close a circle beside it."""
    for id in (*CHAIN, "x", "y"):
        mesh.add(id)
    for a, b in LINKS:
        mesh.link(a, b)
    return mesh


def test_a_circle_is_asked_once_and_nobody_handles_twice(mesh: Mesh) -> None:
    circle(mesh)["e6"].handle("n", lambda message: message.value)
    mesh.settle()
    first = mesh["e1"].request("n", 1)
    mesh.settle()
    asked = mesh.queries()
    assert mesh["e1"].answer(first) == 1
    assert 0 < asked <= 2 * len(LINKS)
    second = mesh["e1"].request("n", 2)
    mesh.settle()
    assert mesh["e1"].answer(second) == 2
    assert mesh.queries() == asked
    assert [message.id for message in mesh["e6"].handled] == [first, second]
    assert all(len(set(message.trace)) == len(message.trace) == 6 for message in mesh["e6"].handled)
    at_rest(mesh)


def test_a_question_that_comes_back_is_answered_no() -> None:
    mesh = Mesh()
    mesh.ring("a", "b", "c")
    request = mesh["a"].request("n")
    mesh.settle()
    assert isinstance(mesh["a"].error(request), Unhandled)
    assert mesh.queries() == 4, "a asks both, and they ask each other"
    assert {found for _, _, found, _ in answers(mesh)} == {Found.NO}


def test_two_questions_at_once_never_wait_for_each_other(mesh: Mesh) -> None:
    mesh.ring("a", "b", "c", "d")
    started = mesh.now
    requests = {id: mesh[id].request("n") for id in "abcd"}
    mesh.settle()
    assert mesh.now == started
    for id, request in requests.items():
        assert isinstance(mesh[id].error(request), Unhandled), "no, not incomplete"
    at_rest(mesh)


def test_two_questions_at_once_both_find() -> None:
    mesh = circle(Mesh())
    mesh["e4"].handle("n", lambda message: "e4")
    mesh.settle()
    requests = [(id, mesh[id].request("n")) for id in ("e1", "x", "e6", "y", "e2")]
    mesh.settle()
    assert [mesh[id].answer(request) for id, request in requests] == ["e4"] * 5


def test_a_question_goes_no_further_than_it_may() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c", "d")
    mesh["d"].handle("n")
    mesh.settle()
    for ttl in (0, 1, 2**32 - 1):
        mesh["a"].ends["b"].session.control(Query(f"a.1.q9{ttl}", NAME, ttl))
        mesh.settle()
    found = [found for a, b, found, _ in answers(mesh) if (a, b) == ("b", "a")]
    assert found == [Found.INCOMPLETE, Found.YES, Found.YES]
    assert all(event.ttl <= HOPS for _, _, event in mesh.heard(Query))


def test_a_cost_beyond_belief_harms_nobody() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "bad")
    mesh.end("bad", "b").silent = True
    request = mesh["a"].request("n")
    mesh.settle()
    (query,) = [event for _, b, event in mesh.heard(Query) if b == "bad"]
    mesh.end("bad", "b").wire.clear()
    mesh.end("bad", "b").silent = False
    mesh["bad"].ends["b"].session.control(Answer(query.id, NAME, Found.YES, 2**32 - 1))
    mesh.settle()
    assert len(mesh["a"].replies[request]) == 1
    at_rest(mesh)


def test_answers_that_nobody_asked_for_are_not_heard() -> None:
    mesh = Mesh()
    mesh.add("bad", relay=False)
    mesh.chain("bad", "a", "b")
    mesh.end("b", "a").silent = True
    request = mesh["a"].request("n")
    mesh.settle()
    (query,) = [event for _, _, event in mesh.heard(Query)]
    say = mesh["bad"].ends["a"].session.control
    say(Answer(query.id, NAME, Found.YES))
    say(Answer("a.1.q99", NAME, Found.YES))
    say(Answer("", NAME, Found.NO))
    mesh["b"].ends["a"].session.control(Answer(query.id, Target("name", "other"), Found.YES))
    mesh.settle()
    assert mesh["a"].router._discovery.ways(NAME) == {}
    mesh.advance(1)
    assert mesh["a"].error(request).reason == "INCOMPLETE"


def test_a_peer_that_takes_no_questions_makes_the_answer_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.end("a", "b").stuffed = True
    monkeypatch.setattr("exchange_grpc.peer.CONTROL_FRAMES", 0)
    request = mesh["a"].request("n")
    mesh.advance(1)
    assert mesh["a"].error(request).reason == "INCOMPLETE"
    monkeypatch.undo()
    mesh.end("a", "b").stuffed = False
    mesh["b"].handle("n", lambda message: "b")
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    assert mesh["a"].answer(request) == "b"


def test_whoever_asks_after_the_first_yes_is_answered_too() -> None:
    """A yes came and was withdrawn while another branch is silent: the leaf's question must not be lost."""
    mesh = Mesh()
    mesh.add("a")
    mesh.chain("a", "b", "b2")
    mesh.chain("a", "c")
    mesh.star("a", "leaf")
    mesh["b2"].handle("n")
    mesh.settle()
    mesh.end("c", "a").silent = True
    mesh["a"].request("n")
    mesh.settle()
    mesh["b2"].unhandle("n")
    mesh.settle()
    request = mesh["leaf"].request("n")
    mesh.settle()
    mesh.end("c", "a").silent = False
    mesh.settle()
    assert isinstance(mesh["leaf"].error(request), Unhandled)


def test_an_offer_that_turns_up_at_a_relay_that_was_asked_is_found() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh.end("c", "b").silent = True
    request = mesh["a"].request("n")
    mesh.settle()
    mesh.star("b", "late")
    mesh["late"].handle("n", lambda message: "late")
    mesh.settle()
    mesh.end("c", "b").silent = False
    mesh.settle()
    assert mesh["a"].answer(request) == "late"


def test_a_yes_that_leads_back_does_not_end_the_wait_for_the_others() -> None:
    """b was given the message by a, and a itself has another way: that is of no use to b."""
    mesh = Mesh()
    mesh.chain("x", "a", "b", "c", "y")
    for id in ("x", "y"):
        mesh[id].handle("n", lambda message, id=id: id)
    mesh.settle()
    mesh.end("c", "b").silent = True
    request = mesh["a"].request("n", via="b")
    mesh.settle()
    mesh.end("c", "b").silent = False
    mesh.settle()
    assert mesh["a"].answer(request) == "y"


def test_the_origin_of_a_message_lies_behind_the_link_it_came_by(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c", "d")
    mesh["a"].handle("back", lambda message: "a")
    mesh["d"].handle("n")
    mesh.settle()
    mesh["a"].request("n")
    mesh.settle()
    before = mesh.queries()
    request = mesh["d"].request("back", to="a")
    mesh.settle()
    assert mesh["d"].answer(request) == "a"
    assert mesh.queries() == before
    at_rest(mesh)


# ------------------------------------------------------------------------------------------- publish, broadcast


def test_a_publication_reaches_each_subscriber_once_in_a_circle(mesh: Mesh) -> None:
    circle(mesh)
    for node in mesh.nodes.values():
        node.subscribe("news.**")
    mesh.settle()
    for n in range(5):
        mesh["e3"].publish("news.today", n)
    mesh.settle()
    assert all([message.value for message in node.published] == list(range(5)) for node in mesh.nodes.values())
    assert len(messages(mesh, Kind.PUBLISH)) <= 5 * 2 * len(LINKS)
    at_rest(mesh)


def test_a_leaf_is_not_flooded_unless_interested(mesh: Mesh) -> None:
    mesh.chain("a", "b")
    mesh.star("b", "deaf", "keen", "fickle")
    mesh["keen"].subscribe("news.*")
    mesh["fickle"].subscribe("news.**")
    mesh["fickle"].subscribe("news.**")
    mesh.settle()
    mesh["fickle"].subscribe("news.**", False)
    mesh["fickle"].subscribe("news.**", False)
    mesh.settle()
    mesh["a"].publish("news.today")
    mesh["a"].publish("other")
    mesh["keen"].publish("news.mine")
    mesh.settle()
    assert [message.name for message in mesh["keen"].published] == ["news.mine", "news.today"]
    assert mesh["deaf"].published == mesh["fickle"].published == []
    assert [id for id in mesh.nodes if messages(mesh, Kind.PUBLISH, "b", id)] == ["a", "keen"]
    at_rest(mesh)


def test_a_publication_is_remembered_for_longer_than_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].subscribe("*")
    mesh.settle()
    for _ in range(2):
        arriving(mesh["b"], foreign(Kind.PUBLISH, "x", "a"), "a")
    assert len(mesh["b"].published) == 1
    mesh.advance(SEEN_SECONDS + 1)
    for n in range(2, 4):
        message = foreign(Kind.PUBLISH, "x", "a", n=n)
        message.deadline = mesh.now + 1
        arriving(mesh["b"], message, "a")
    assert len(mesh["b"].router._spread._until) == 2, "the old one is forgotten"
    monkeypatch.setattr("exchange_grpc.discovery.SEEN_IDS", 2)
    mesh["b"].publish("one")
    assert len(mesh["b"].router._spread._until) == 2


def test_a_publisher_hears_itself_if_it_subscribes() -> None:
    mesh = Mesh()
    a = mesh.add("a", subscribes=("n",))
    published = a.publish("n", 5)
    assert [message.value for message in a.published] == [5]
    assert a.dispatched[published] == [None]


def test_a_broadcast_goes_one_hop_to_everybody(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh.star("a", "leaf")
    broadcast = mesh["a"].broadcast("n", 1)
    mesh.settle()
    assert mesh["a"].dispatched[broadcast] == [None]
    assert [len(mesh[id].broadcasts) for id in ("a", "b", "c", "leaf")] == [0, 1, 0, 1]
    at_rest(mesh)


def test_what_one_peer_cannot_take_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.star("hub", "w0", "w1", "w2")
    for id in ("w0", "w1", "w2"):
        mesh[id].subscribe("*")
    mesh.settle()
    mesh["hub"].ends["w1"].session.as_value = True
    for emit in (mesh["hub"].publish, mesh["hub"].broadcast):
        id = emit("n", 2**60)
        mesh.settle()
        assert mesh["hub"].outcomes(id) == [Outcome.FORWARDED, Outcome.DROPPED, Outcome.FORWARDED]
    assert [len(mesh[id].published) for id in ("w0", "w1", "w2")] == [1, 0, 1]
    assert [len(mesh[id].broadcasts) for id in ("w0", "w1", "w2")] == [1, 0, 1]


# -------------------------------------------------------------------------------------------------- lost links


def test_a_lost_link_fails_what_waits_on_it_and_says_whether_it_was_delivered() -> None:
    mesh = Mesh()
    mesh.add("a", relay=False)
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    gone = mesh["a"].request("n")
    mesh.settle()
    mesh.end("b", "c").stuffed = True
    unsent, send = mesh["a"].request("n"), mesh["a"].send("n")
    mesh.settle()
    mine = mesh["b"].send("n")
    publication = mesh["b"].publish("news")
    mesh.cut("b", "c")
    mesh.settle()
    for request, delivered in ((gone, None), (unsent, False)):
        error = mesh["a"].error(request)
        assert isinstance(error, Unavailable)
        assert (error.at, error.delivered) == ("b", delivered)
    assert [message.id for message, _ in mesh["a"].unhandled] == [send]
    assert [message.id for message, _ in mesh["b"].unhandled] == [mine]
    assert mesh["b"].outcomes(send)[-1] is mesh["b"].outcomes(publication)[-1] is Outcome.DROPPED
    assert [message.id for message in mesh["c"].handled] == [gone]
    assert gone in mesh["c"].withdrawn, "and whoever has it stops"
    at_rest(mesh)


def test_a_caller_that_is_lost_cancels_what_it_asked_for() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    mesh.cut("a", "b")
    mesh.settle()
    assert mesh["c"].withdrawn == [request]
    assert isinstance(mesh["a"].error(request), Unavailable)
    assert mesh["b"].outcomes(request)[-1] is Outcome.CANCELLED
    at_rest(mesh)


def test_a_sender_that_is_lost_while_its_message_waits_is_told_nothing() -> None:
    mesh = Mesh()
    mesh.chain("b", "c")
    mesh.star("b", "leaf")
    mesh.end("c", "b").silent = True
    send = mesh["leaf"].send("n", via="b")
    mesh.settle()
    mesh.cut("leaf", "b")
    mesh.advance(1)
    assert mesh["b"].outcomes(send) == [Outcome.UNHANDLED]
    at_rest(mesh)


def test_a_caller_that_is_lost_while_it_is_itself_asked(mesh: Mesh) -> None:
    """b holds the request of a and awaits an answer of a: both go with the link, and all else stands."""
    mesh.chain("a", "b", "c")
    mesh["c"].handle("m", lambda message: NEVER)
    mesh.settle()
    other = mesh["b"].request("m", to="c")
    mesh.end("a", "b").silent = False
    held = mesh["a"].request("n", via="b")
    while not mesh["b"].router._open.get(held):
        mesh.step()
    out = mesh["b"].request("x", via="a")
    mesh.cut("b", "c")
    mesh.cut("a", "b")
    mesh.settle()
    assert isinstance(mesh["a"].error(held), Unavailable)
    assert isinstance(mesh["b"].error(other), Unavailable)
    assert len(mesh["b"].replies[out]) == 1
    assert mesh["b"].router._open == {}
    at_rest(mesh)


# ------------------------------------------------------------------------------------------------------- bounds


def test_open_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.routing.OPEN_REQUESTS", 2)
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].handle("n", lambda message: NEVER)
    mesh.settle()
    a, b = mesh["a"], mesh["b"]
    own = [b.request("n") for _ in range(2)]
    request = a.request("n")
    mesh.settle()
    error = a.error(request)
    assert (error.code, error.reason, error.at) == (Code.RESOURCE_EXHAUSTED, "FULL", "b")
    assert b.outcomes(request) == [Outcome.DROPPED]
    assert [b.replies[id] for id in own] == [[], []]
    assert b.error(b.request("n")).reason == "FULL"
    at_rest(mesh)


@pytest.mark.parametrize("limit", ["HELD_MESSAGES", "OPEN_QUESTIONS"])
def test_what_waits_for_answers_is_bounded(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"exchange_grpc.discovery.{limit}", 1)
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["a"].request("n")
    request, send = mesh["a"].request("m"), mesh["a"].send("m")
    assert mesh["a"].error(request).reason == "FULL"
    told = mesh["a"].dispatched[send][0]
    assert told is not None
    assert told.reason == "FULL"
    mesh.settle()
    at_rest(mesh)


def test_questions_passed_on_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.discovery.OPEN_QUESTIONS", 1)
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh.end("c", "b").silent = True
    mesh["b"].request("n")
    request = mesh["a"].request("m")
    mesh.settle()
    assert mesh["a"].error(request).reason == "INCOMPLETE"
    at_rest(mesh)


def test_ways_answers_and_noes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.discovery.ROUTES", 3)
    mesh = Mesh()
    mesh.chain("a", "b", "c", "d")
    for n in range(10):
        mesh["d"].handle(f"n{n}", lambda message: None)
    mesh.settle()
    for n in range(10):
        found, nobody = mesh["a"].request(f"n{n}"), mesh["a"].request(f"x{n}")
        mesh.settle()
        assert mesh["a"].answer(found) is None
        assert isinstance(mesh["a"].error(nobody), Unhandled)
    for node in mesh.nodes.values():
        discovery = node.router._discovery
        assert max(len(discovery._ways), len(discovery._told), len(discovery._nobody)) <= 3


@pytest.mark.parametrize("kind", [Kind.SEND, Kind.REQUEST])
def test_a_handler_that_takes_no_more(kind: Kind) -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].handle("n")
    mesh.settle()
    mesh["b"].crowded = True
    message = mesh["a"].emit(kind, "n")
    own = mesh["b"].emit(kind, "n")
    mesh.settle()
    if kind is Kind.REQUEST:
        assert mesh["a"].error(message.id).reason == mesh["b"].error(own.id).reason == "FULL"
    else:
        assert [error.reason for _, error in mesh["a"].unhandled] == ["FULL"]
        assert [error.reason for error in mesh["b"].dispatched[own.id] if error] == ["FULL"]
    assert mesh["b"].outcomes(message.id) == [Outcome.DROPPED]
    assert [seen for seen, seen_message in mesh["b"].observed if seen_message.id == message.id] == [Seen.RECEIVED]
    at_rest(mesh)


def test_a_name_that_is_listened_to_on_another_link_only_is_unhandled() -> None:
    """`peer.on(name)` claims the name, and hears one link: for all others nobody is there."""
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].handle("n")
    mesh.settle()
    mesh["b"].handlers.clear()
    request, send, own = mesh["a"].request("n"), mesh["a"].send("n"), mesh["b"].send("n")
    mesh.settle()
    assert isinstance(mesh["a"].error(request), Unhandled)
    assert [message.id for message, _ in mesh["a"].unhandled] == [send]
    assert isinstance(mesh["b"].dispatched[own][0], Unhandled)
    at_rest(mesh)


def test_a_full_or_fussy_link_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    mesh["a"].send("n")
    mesh.settle()
    session = mesh["b"].ends["c"].session
    session.as_value = True
    request, send = mesh["a"].request("n", 2**60), mesh["a"].send("n", 2**60)
    own = mesh["b"].send("n", 2**60)
    mesh.settle()
    assert (mesh["a"].error(request).reason, mesh["a"].error(request).at) == ("INVALID_MESSAGE", "b")
    assert [message.id for message, _ in mesh["a"].unhandled] == [send]
    assert mesh["b"].outcomes(send) == [Outcome.DENIED]
    assert mesh["b"].dispatched[own][0] is not None
    session.as_value = False
    session.peer = type(session.peer)("c", message_bytes=1)
    request = mesh["a"].request("n", 1)
    mesh.settle()
    assert mesh["a"].error(request).reason == "FULL"
    at_rest(mesh)


# -------------------------------------------------------------------------------------------- what can be seen


def test_what_observers_see(mesh: Mesh) -> None:
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    seen = {id: [what for what, message in node.observed if message.id == request] for id, node in mesh.nodes.items()}
    assert seen == {"a": [Seen.EMITTED], "b": [Seen.FORWARDED], "c": [Seen.RECEIVED]}
    (reply,) = mesh["a"].replies[request]
    seen = {id: [what for what, message in node.observed if message.id == reply.id] for id, node in mesh.nodes.items()}
    assert seen == {"a": [Seen.RECEIVED], "b": [Seen.FORWARDED], "c": [Seen.EMITTED]}


def test_the_ledgers_tell_the_story() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    request = mesh["a"].request("n")
    mesh.settle()
    assert mesh["a"].outcomes(request) == mesh["b"].outcomes(request) == [Outcome.FORWARDED]
    assert mesh["c"].outcomes(request) == [Outcome.HANDLED]
    trace = mesh["b"].ledger.trace(request)
    assert trace is not None
    assert [span["kind"] for span in trace["spans"]] == ["KIND_REQUEST", "KIND_REPLY"]
    assert trace["spans"][1]["causes"] == [request]


def test_peers_say_what_is_known_of_them() -> None:
    mesh = Mesh()
    mesh.star("hub", "leaf")
    mesh["leaf"].handle("b")
    mesh["leaf"].handle("a")
    mesh["leaf"].subscribe("x.*")
    mesh.settle()
    assert mesh["hub"].router.peers() == [
        {"id": "leaf", "away": False, "relay": False, "handles": ["a", "b"], "subscribes": ["x.*"], "pending": 0}
    ]


def test_saying_an_offer_or_interest_twice_changes_nothing() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    for _ in range(2):
        mesh["a"].handle("n")
        mesh["a"].subscribe("x")
    mesh["a"].ends["b"].session.announce(handles=["n"], subscribes=["x"])
    mesh["a"].ends["b"].session.announce(no_longer_handles=["never"], no_longer_subscribes=["never"])
    mesh.settle()
    assert mesh["b"].router.peers()[0]["handles"] == ["n"]
    for _ in range(2):
        mesh["a"].unhandle("n")
        mesh["a"].subscribe("x", False)
    mesh.settle()
    assert mesh["b"].router.peers()[0]["handles"] == mesh["b"].router.peers()[0]["subscribes"] == []
    assert len(mesh["b"].router._interested) == 0


def test_an_exchange_alone_has_no_deadline() -> None:
    assert Mesh().add("a").router.next_deadline() is None


def test_a_failure_at_a_request_is_not_told_twice() -> None:
    mesh = Mesh()
    a = mesh.add("a")
    message = foreign(Kind.REQUEST, "x")
    a.signal("failed", Failure(message, None, Outcome.FAILED, RequestError("x"), mesh.now))
    assert a.unhandled == []


# ------------------------------------------------------------------------------------------------ random meshes

IDS = [f"e{n}" for n in range(8)]
OFFERS = ["n0", "n1", "n2"]


@st.composite
def topologies(draw: st.DrawFn) -> tuple[list[str], list[tuple[str, str]], list[bool], list[list[str]], list[bool]]:
    """Exchanges, links between them, who relays, who offers what, who subscribes."""
    count = draw(st.integers(2, 8))
    ids = IDS[:count]
    possible = [(a, b) for i, a in enumerate(ids) for b in ids[i + 1 :]]
    links = draw(st.lists(st.sampled_from(possible), min_size=1, max_size=12, unique=True))
    relays = draw(st.lists(st.sampled_from([True, True, False]), min_size=count, max_size=count))
    offers = draw(st.lists(st.lists(st.sampled_from(OFFERS), max_size=2, unique=True), min_size=count, max_size=count))
    subscribes = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return ids, links, relays, offers, subscribes


def build(topology: Any, pick: Any = None, *, framed: bool = False) -> Mesh:
    ids, links, relays, offers, subscribes = topology
    mesh = Mesh(framed=framed)
    for id, relay, names, wants in zip(ids, relays, offers, subscribes, strict=True):
        mesh.add(id, relay=relay, handles=names, subscribes=["news"] if wants else [])
    for a, b in links:
        mesh.link(a, b)
    if pick is not None:
        mesh.pick = pick
    return mesh


def reachable(mesh: Mesh, start: str) -> set[str]:
    """Whom a message from `start` can reach: all in between relay."""
    found, todo = {start}, [start]
    while todo:
        for peer in mesh[todo.pop()].ends:
            if peer not in found:
                found.add(peer)
                if mesh[peer].router.relay:
                    todo.append(peer)
    return found


def nobody_twice(mesh: Mesh) -> None:
    ids = Counter(message.id for node in mesh.nodes.values() for message in node.handled)
    assert not ids or max(ids.values()) == 1
    for node in mesh.nodes.values():
        published = Counter(message.id for message in node.published)
        assert not published or max(published.values()) == 1


def question_costs(mesh: Mesh, links: int) -> None:
    asked = Counter(event.id for _, _, event in mesh.heard(Query))
    assert not asked or max(asked.values()) <= 2 * links


@given(topology=topologies(), order=st.randoms(use_true_random=False), framed=st.booleans())
@settings(max_examples=150, deadline=None)
def test_in_a_mesh_that_stands_everything_that_can_be_reached_is(topology: Any, order: Any, framed: bool) -> None:
    mesh = build(topology, order.choice, framed=framed)
    ids, links = topology[0], topology[1]
    for round_ in range(2):
        wanted = [(id, name, mesh[id].request(name, round_)) for id in ids for name in OFFERS]
        addressed = [(id, to, mesh[id].request("n0", to=to)) for id in ids for to in ids]
        sent = [(id, mesh[id].send("n1")) for id in ids]
        published = {id: mesh[id].publish("news") for id in ids}
        mesh.settle()
        for id, name, request in wanted:
            takers = [other for other in reachable(mesh, id) if name in mesh[other].handlers]
            (reply,) = mesh[id].replies[request]
            assert (reply.error is None) == bool(takers)
            if reply.error is not None:
                assert isinstance(reply.error, Unhandled)
        for id, to, request in addressed:
            (reply,) = mesh[id].replies[request]
            assert (reply.error is None) == (to in reachable(mesh, id) and "n0" in mesh[to].handlers)
        for id, send in sent:
            assert len(mesh[id].dispatched[send]) == 1
        for id in ids:
            hearers = {o for o in ids if any(m.id == published[id] for m in mesh[o].published)}
            assert hearers == {o for o in reachable(mesh, id) if mesh[o].router.subscriptions}
    nobody_twice(mesh)
    question_costs(mesh, len(links))
    assert mesh.broken == []
    at_rest(mesh)


ACTIONS = st.one_of(
    st.tuples(st.just("request"), st.sampled_from(IDS), st.sampled_from(OFFERS), st.sampled_from([0.3, 5.0])),
    st.tuples(st.just("hang"), st.sampled_from(IDS), st.sampled_from(OFFERS)),
    st.tuples(st.just("to"), st.sampled_from(IDS), st.sampled_from(IDS), st.sampled_from(OFFERS)),
    st.tuples(st.just("via"), st.sampled_from(IDS), st.sampled_from(IDS), st.sampled_from(OFFERS)),
    st.tuples(st.just("send"), st.sampled_from(IDS), st.sampled_from(OFFERS)),
    st.tuples(st.just("publish"), st.sampled_from(IDS)),
    st.tuples(st.just("cancel"), st.integers(0, 99)),
    st.tuples(st.just("offer"), st.sampled_from(IDS), st.sampled_from(OFFERS)),
    st.tuples(st.just("unoffer"), st.sampled_from(IDS), st.sampled_from(OFFERS)),
    st.tuples(st.just("cut"), st.integers(0, 99)),
    st.tuples(st.just("link"), st.sampled_from(IDS), st.sampled_from(IDS)),
    st.tuples(st.just("silent"), st.integers(0, 99)),
    st.tuples(st.just("stuffed"), st.integers(0, 99)),
    st.tuples(st.just("deliver"), st.integers(1, 12)),
    st.tuples(st.just("wait"), st.sampled_from([0.05, 0.5, 2.0])),
)


def act(mesh: Mesh, requests: list[tuple[str, str]], cancelled: set[str], action: tuple[Any, ...]) -> None:
    what, *rest = action
    node = mesh.nodes.get(rest[0]) if isinstance(rest[0], str) else None
    if isinstance(rest[0], str) and node is None:
        return
    if what in ("request", "hang", "to", "via"):
        assert node is not None
        if what == "request":
            id = node.request(rest[1], seconds=rest[2])
        elif what == "hang":
            id = node.request(rest[1], "hang", seconds=3.0)
        elif what == "to":
            id = node.request(rest[2], to=rest[1])
        else:
            id = node.request(rest[2], via=rest[1])
        requests.append((node.id, id))
    elif what == "cancel" and requests:
        id, request = requests[rest[0] % len(requests)]
        if not mesh[id].replies[request]:
            cancelled.add(request)
        mesh[id].cancel(request)
    elif what == "cut" and mesh.linked():
        mesh.cut(*sorted(sorted(map(sorted, mesh.linked()))[rest[0] % len(mesh.linked())]))
    elif what == "link" and node is not None:
        if rest[1] in mesh.nodes and rest[1] != node.id and rest[1] not in node.ends:
            mesh.link(node.id, rest[1], settle=False)
            while rest[1] not in node.ends or node.id not in mesh[rest[1]].ends:
                assert mesh.step()
    elif what in ("silent", "stuffed") and mesh.ends:
        end = mesh.ends[rest[0] % len(mesh.ends)]
        setattr(end, what, not getattr(end, what))
    elif what == "deliver":
        for _ in range(rest[0]):
            mesh.step()
    elif what == "wait":
        mesh.advance(rest[0])
    elif node is not None:
        if what == "send":
            node.send(rest[1])
        elif what == "publish":
            node.publish("news")
        elif what == "offer":
            node.handle(rest[1], hang)
        elif what == "unoffer":
            node.unhandle(rest[1])


def hang(message: Message) -> Any:
    return NEVER if message.value == "hang" else message.value


@given(
    topology=topologies(),
    actions=st.lists(ACTIONS, max_size=40),
    order=st.randoms(use_true_random=False),
    framed=st.booleans(),
)
@settings(max_examples=250, deadline=None)
def test_whatever_happens_every_request_ends_once_and_nothing_is_left(
    topology: Any, actions: list[tuple[Any, ...]], order: Any, framed: bool
) -> None:
    mesh = build(topology, order.choice, framed=framed)
    for node in mesh.nodes.values():
        for name in node.handlers:
            node.handlers[name] = hang
    requests: list[tuple[str, str]] = []
    cancelled: set[str] = set()
    for action in actions:
        act(mesh, requests, cancelled, action)
    for end in mesh.ends:
        end.silent = end.stuffed = False
    at_rest(mesh)
    for id, request in requests:
        replies = mesh[id].replies[request]
        if request in cancelled:
            assert replies == []
        else:
            assert len(replies) == 1, (id, request, replies)
    nobody_twice(mesh)
    question_costs(mesh, 28)
    assert mesh.broken == []
