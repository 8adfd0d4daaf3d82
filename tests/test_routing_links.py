"""Routing over links that break, come back or are lost: what waits, what goes another way, and what is told."""

from typing import Any

import pytest
from mesh import NEVER, Mesh, Several
from test_routing import answers, at_rest, messages

from exchange_grpc.errors import Unavailable, Unhandled
from exchange_grpc.frames import Answer, Found, Query, Target
from exchange_grpc.limits import REPEAT_SECONDS, SETTLE_SECONDS
from exchange_grpc.message import Context, Kind, Outcome
from exchange_grpc.routing import Arrival, Lost, Neighbour

NAME = Target("name", "n")


# ------------------------------------------------------------------------------------------ links that are away


def test_who_is_away_is_not_preferred() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b", "caller")
    for leaf in ("a", "b"):
        mesh[leaf].handle("n")
    mesh.settle()
    mesh.pause("hub", "a")
    for _ in range(4):
        mesh["caller"].send("n")
    mesh.settle()
    assert (len(mesh["a"].handled), len(mesh["b"].handled)) == (0, 4)
    assert [peer["away"] for peer in mesh["hub"].router.peers()] == [True, False, False]
    mesh.pause("hub", "b")
    requests = [mesh["caller"].request("n", n) for n in range(4)]
    mesh.settle()
    assert (len(mesh["a"].handled), len(mesh["b"].handled)) == (0, 4), "where all are away, it waits"
    mesh.resume("hub", "a")
    mesh.resume("hub", "b")
    mesh.settle()
    assert [mesh["caller"].answer(request) for request in requests] == [None] * 4
    assert (len(mesh["a"].handled), len(mesh["b"].handled)) == (2, 6)
    assert [peer["away"] for peer in mesh["hub"].router.peers()] == [False] * 3
    at_rest(mesh)


def test_of_the_ways_to_what_is_far_those_that_are_away_are_not_preferred() -> None:
    mesh = Mesh()
    for relay in ("left", "right"):
        mesh.chain("a", relay, "end")
    mesh["end"].handle("n")
    mesh.settle()
    mesh["a"].send("n")
    mesh.settle()
    mesh.pause("a", "left")
    for _ in range(3):
        mesh["a"].send("n")
    mesh.settle()
    assert [message.way[1] for message in mesh["end"].handled][1:] == ["right"] * 3


def test_a_link_that_is_away_twice_is_back_once() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    for _ in range(2):
        mesh["a"].signal("peer.away", ("b", mesh.now))
    mesh["a"].signal("peer.away", ("c", mesh.now))
    assert mesh["a"].router._away == 1
    mesh.cut("a", "b")
    assert mesh["a"].router._away == 0


def test_what_never_left_goes_another_way() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b", "caller")
    mesh["a"].handle("n")
    mesh.settle()
    mesh.pause("hub", "a")
    mesh["b"].handle("n", lambda message: "from b")
    waiting = [mesh["caller"].request("n", to="a"), mesh["caller"].send("n", to="a")]
    mesh["b"].unhandle("n")
    mesh.settle()
    requests, sends = [mesh["caller"].request("n")], [mesh["caller"].send("n")]
    mesh.settle()
    mesh["b"].handle("n", lambda message: "from b")
    mesh.settle()
    mesh.cut("hub", "a")
    mesh.settle()
    assert [mesh["caller"].answer(request) for request in requests] == ["from b"]
    assert [message.id for message in mesh["b"].handled] == [*requests, *sends]
    error = mesh["caller"].error(waiting[0])
    assert isinstance(error, Unavailable)
    assert (error.at, error.delivered, error.message) == ("hub", False, "the link to a was lost")
    assert [(message.id, error.message) for message, error in mesh["caller"].unhandled] == [
        (waiting[1], "the link to a was lost")
    ]
    at_rest(mesh)


def test_what_never_left_is_asked_for() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.chain("a", "relay", "far")
    mesh["b"].handle("n", lambda message: "from b")
    mesh.settle()
    mesh.pause("a", "b")
    request = mesh["a"].request("n")
    mesh["far"].handle("n", lambda message: "from far")
    mesh.settle()
    mesh.cut("a", "b")
    mesh.settle()
    assert mesh["a"].answer(request) == "from far"
    at_rest(mesh)


def test_a_request_that_is_over_goes_no_other_way() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b")
    mesh["a"].handle("n")
    mesh.settle()
    mesh.pause("hub", "a")
    request = mesh["hub"].request("n")
    many = mesh["hub"].request("n", many=True)
    mesh["b"].handle("n")
    mesh["hub"].cancel(request)
    mesh.settle()
    mesh.cut("hub", "a")
    mesh.settle()
    assert mesh["b"].handled == []
    (end,) = mesh["hub"].replies[many]
    assert end.lost == ("a",)
    at_rest(mesh)


def test_what_belongs_to_the_lost_one_goes_to_it_or_nowhere() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    replies = [
        mesh["a"].origin.make(kind, "n", Context(), mesh.now, to="b", reply_to="b.1.1", last=True)
        for kind in (Kind.REPLY, Kind.PUBLISH)
    ]
    for reply in replies:
        reply.hold()
    mesh["a"].signal("reroute", ("b", replies[:1], mesh.now))
    mesh.settle()
    assert [message.id for message in messages(mesh, Kind.REPLY)] == [replies[0].id], "it is back already"
    mesh.cut("a", "b")
    mesh["a"].signal("reroute", ("b", replies[1:], mesh.now))
    mesh.settle()
    assert messages(mesh, Kind.PUBLISH) == []


def test_an_uncertain_send_is_told_to_whoever_sent_it() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    sends = [mesh["a"].send("n"), mesh["b"].send("n")]
    request = mesh["b"].request("n")
    mesh.settle()
    mesh["b"].signal("uncertain", ("c", [*sends, request, "x.1.1"], mesh.now))
    mesh.settle()
    for id, send in zip("ab", sends, strict=True):
        ((message, error),) = mesh[id].unhandled
        assert message.id == send
        assert isinstance(error, Unavailable)
        assert (error.at, error.reason, error.delivered) == ("b", "UNCERTAIN", None)
    assert mesh["b"].outcomes(request)[-1] is Outcome.DROPPED
    assert request not in mesh["b"].replies, "its link, when it goes, ends it"
    at_rest(mesh)


def test_what_made_room_is_told_to_whoever_waits_for_it() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: NEVER)
    mesh.settle()
    made = [mesh["a"].emit(kind, "n") for kind in (Kind.SEND, Kind.REQUEST, Kind.PUBLISH)]
    mesh["b"].send("n")
    mesh.settle()
    dropped = [message for message in mesh["c"].handled if message.from_ == "b"]
    dropped += [message for message in messages(mesh, made[0].kind, "b", "c") if message.from_ == "a"]
    dropped += messages(mesh, Kind.REQUEST, "b", "c") + messages(mesh, Kind.PUBLISH, "b", "c")
    for message in dropped:
        message.way = message.way[:-1]  # as it was at `b`
    mesh["b"].signal("dropped", ("c", dropped, "drop_oldest", mesh.now))
    mesh.settle()
    for node, id in (("a", made[0].id), ("b", "b.1.1")):
        ((message, error),) = mesh[node].unhandled
        assert message.id == id
        assert error.reason == "FULL"
        assert error.message == "it was dropped for newer ones: c reads too slowly (drop_oldest)"
    assert mesh["a"].error(made[1].id).reason == "FULL"
    assert mesh["b"].outcomes(made[2].id)[-1] is Outcome.DROPPED
    at_rest(mesh)


def test_a_send_that_went_another_way_in_vain_is_told() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.chain("a", "relay")
    mesh["b"].handle("n")
    mesh.settle()
    mesh.pause("a", "b")
    send = mesh["a"].send("n")
    mesh.cut("a", "b")
    mesh.settle()
    ((message, error),) = mesh["a"].unhandled
    assert message.id == send
    assert isinstance(error, Unhandled)
    at_rest(mesh)


def test_what_a_peer_says_when_it_is_back_takes_the_place_of_what_it_said() -> None:
    mesh = Mesh()
    mesh.add("a")
    mesh.add("b", handles=("old", "kept"), subscribes=("old.*", "kept.*"), relay=False)
    mesh.link("a", "b")
    mesh.pause("a", "b")
    for name in ("new", "old"):
        (mesh["b"].handle if name == "new" else mesh["b"].unhandle)(name)
        mesh["b"].subscribe(f"{name}.*", name == "new")
    mesh["b"].start_relaying()
    assert mesh["a"].router.peers()[0]["handles"] == ["kept", "old"]
    mesh.resume("a", "b")
    mesh.settle()
    (peer,) = mesh["a"].router.peers()
    assert peer == {
        "id": "b",
        "away": False,
        "relay": True,
        "handles": ["kept", "new"],
        "subscribes": ["kept.*", "new.*"],
        "pending": 0,
    }
    for name in ("new.x", "kept.x"):
        mesh["a"].publish(name)
    mesh.settle()
    assert [message.name for message in mesh["b"].published] == ["new.x", "kept.x"]


def test_a_peer_that_begins_to_relay_while_it_is_away_passes_on_what_it_has_not_got_yet() -> None:
    mesh = Mesh()
    mesh.add("b", relay=False, handles={"n": lambda message: Several([1]) if message.many else 1})
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: Several([2]))
    mesh.settle()
    mesh.pause("a", "b")
    many, single = mesh["a"].request("n", many=True), mesh["a"].request("n", to="b")
    mesh["b"].start_relaying()
    mesh.resume("a", "b")
    mesh.settle()
    values = [reply.value for reply in mesh["a"].replies[many] if reply.lost is None]
    assert sorted(values) == [1, 2]
    assert mesh["a"].answer(single) == 1
    at_rest(mesh)


# ----------------------------------------------------------------------------------- questions over broken links


@pytest.mark.parametrize("arrives", [False, True])
def test_a_question_is_asked_again(arrives: bool) -> None:
    """What was lost with the connection may be the question, or the answer: who asks cannot know."""
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: "found")
    mesh.settle()
    request = mesh["a"].request("n")
    if arrives:
        mesh.write()
        while not mesh.queries():
            mesh.step()
    mesh.pause("a", "b")
    mesh.resume("a", "b")
    mesh.settle()
    assert mesh["a"].answer(request) == "found"
    at_rest(mesh)


def test_a_question_that_is_under_way_is_answered_once() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c", "d")
    mesh["d"].handle("n", lambda message: "found")
    mesh.settle()
    mesh.end("c", "b").silent = True
    request = mesh["a"].request("n")
    mesh.settle()
    mesh.pause("a", "b")
    mesh.resume("a", "b")
    mesh.settle()
    mesh.end("c", "b").silent = False
    mesh.settle()
    assert mesh["a"].answer(request) == "found"
    assert [(a, b) for a, b, _, _ in answers(mesh)] == [("c", "b"), ("b", "a")]
    at_rest(mesh)


def test_who_asks_again_after_it_was_lost_is_answered() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh.end("c", "b").silent = True
    query = Query("a.1.q9", NAME, 5)
    b = mesh["b"]
    b.signal("peer.asked", ("a", query, mesh.now))
    (question,) = b.router._discovery._questions.values()
    question.askers.clear()  # as if the link to `a` had been lost
    b.signal("peer.asked", ("a", query, mesh.now))
    b.signal("peer.asked", ("a", query, mesh.now))
    assert question.askers == [("a", query.id)]
    b.signal("peer.asked", ("c", query, mesh.now))
    mesh.settle()
    assert [(b, answer.found) for a, b, answer in mesh.heard(Answer) if a == "b"] == [("c", Found.NO)]
    mesh.advance(1)


def test_ways_by_a_link_that_is_back_are_asked_for_anew() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n")
    mesh.settle()
    mesh["a"].send("n")
    mesh.settle()
    before = mesh.queries()
    mesh.pause("a", "b")
    mesh.resume("a", "b")
    mesh.settle()
    assert "n" not in [way["target"] for way in mesh["a"].router.routes()]
    mesh["a"].send("n")
    mesh.settle()
    assert mesh.queries() == before + 1
    assert len(mesh["c"].handled) == 2
    mesh["c"].unhandle("n")
    mesh.settle()
    assert mesh["a"].router.routes("n") == [], "and it is told when they go"


# --------------------------------------------------------------------------------------------------- patience


def test_nobody_is_given_up_while_a_relay_is_away() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("n", lambda message: "found")
    mesh.settle()
    mesh.pause("b", "c")
    request, send = mesh["a"].request("n"), mesh["b"].send("m")
    mesh.advance(2)
    assert request not in mesh["a"].replies or mesh["a"].replies[request]
    assert mesh["b"].unhandled == []
    assert mesh["b"].router.load()["held"] >= 1
    mesh["c"].handle("m")
    mesh.resume("b", "c")
    mesh.settle()
    assert [message.id for message in mesh["c"].handled if message.name == "m"] == [send]
    at_rest(mesh)


def test_what_rests_is_tried_again_now_and_then() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.chain("a", "c")
    mesh.pause("a", "b")
    send = mesh["a"].send("n")
    mesh.settle()
    asked = mesh.queries()
    discovery = mesh["a"].router._discovery
    assert discovery.next_deadline() is not None
    mesh.advance(3 * REPEAT_SECONDS)
    assert mesh.queries() > asked
    assert mesh["a"].unhandled == []
    mesh["a"].handle("n")
    assert [message.id for message in mesh["a"].handled] == [send], "at once when it turns up"
    mesh.resume("a", "b")
    at_rest(mesh)


def test_what_comes_while_others_rest_waits_behind_them() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.chain("a", "c")
    mesh["c"].start_relaying()
    mesh.pause("a", "b")
    sends = [mesh["a"].send("n")]
    mesh.settle()
    assert mesh["a"].router._discovery._resting, "c has said no"
    mesh.end("c", "a").silent = True
    mesh.advance(REPEAT_SECONDS / 2)
    sends.append(mesh["a"].send("n"))
    mesh.advance(REPEAT_SECONDS)
    sends.append(mesh["a"].send("n"))
    mesh["a"].handle("n")
    assert [message.id for message in mesh["a"].handled] == sends
    mesh.end("c", "a").silent = False
    mesh.resume("a", "b")
    at_rest(mesh)


def test_what_rests_leaves_as_soon_as_another_question_finds_a_way() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.chain("a", "c", "d")
    mesh.star("a", "leaf")
    mesh.pause("a", "b")
    send = mesh["a"].send("n")
    mesh.settle()
    assert mesh["a"].router._discovery._resting
    mesh["d"].handle("n")
    mesh.settle()
    later = mesh["leaf"].send("n")
    mesh.settle()
    assert [message.id for message in mesh["d"].handled] == [send, later]
    mesh.resume("a", "b")
    at_rest(mesh)


def test_what_waits_leaves_as_soon_as_whom_it_is_for_is_heard_of() -> None:
    mesh = Mesh()
    mesh.star("a", "b", "x")
    mesh["b"].start_relaying()
    mesh["x"].start_relaying()
    mesh["a"].handle("n")
    mesh.settle()
    mesh.end("b", "a").silent = True
    first = mesh["a"].send("n", to="c")
    mesh.add("c")
    mesh["c"].handle("n")
    mesh.link("c", "x")
    mesh.settle()
    mesh["c"].send("n", to="a")  # by which a learns where c is
    mesh.settle()
    later = mesh["a"].send("n", to="c")
    mesh.settle()
    assert [message.id for message in mesh["c"].handled] == [first, later]
    mesh.end("b", "a").silent = False
    mesh.settle()
    at_rest(mesh)


def test_what_is_withdrawn_while_it_rests_is_not_tried_again() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.chain("a", "c")
    mesh.pause("a", "b")
    request = mesh["a"].request("n")
    mesh.settle()
    mesh["a"].cancel(request)
    mesh.advance(1)
    assert mesh["a"].router.load()["held"] == 0
    mesh.resume("a", "b")
    at_rest(mesh)


def test_patience_ends_when_the_relay_is_back_and_nobody_is_there() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.pause("a", "b")
    send = mesh["a"].send("n")
    mesh.advance(1)
    assert mesh["a"].unhandled == []
    mesh.resume("a", "b")
    mesh.advance(1)
    ((message, error),) = mesh["a"].unhandled
    assert message.id == send
    assert isinstance(error, Unhandled)
    at_rest(mesh)


def test_no_patience_with_leaves() -> None:
    mesh = Mesh()
    mesh.star("hub", "a", "b")
    mesh.pause("hub", "a")
    mesh["b"].send("n")
    mesh.settle()
    assert len(mesh["b"].unhandled) == 1


def test_patience_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.discovery.HELD_MESSAGES", 3)
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh.pause("a", "b")
    for _ in range(4):
        mesh["a"].send("n")
    assert len(mesh["a"].unhandled) == 0
    assert mesh["a"].router.load()["held"] == 3
    mesh.advance(0.6)
    mesh.resume("a", "b")
    at_rest(mesh)


def test_others_are_expected_back_after_a_relay_that_has_lost_its_memory() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].start_relaying()
    a = mesh["a"]
    a.signal("peer.disconnect", Lost("b", [], mesh.now, expected=True))
    a.signal("peer.connect", Neighbour("b", True, (), (), mesh.now))
    request = a.request("n")
    mesh.advance(SETTLE_SECONDS / 2)
    assert request not in a.replies
    mesh.advance(SETTLE_SECONDS)
    assert isinstance(a.error(request), Unhandled)
    a.signal("peer.disconnect", Lost("b", [], mesh.now, expected=True))
    a.signal("peer.connect", Neighbour("b", False, (), (), mesh.now))
    again = a.request("n")
    mesh.advance(REPEAT_SECONDS)
    assert again in a.replies, "but not after a leaf"


def test_whoever_is_expected_back_is_named_to_whom_it_might_help() -> None:
    mesh = Mesh()
    a = mesh.add("a")
    for id in "dcbe":
        a.signal("peer.disconnect", Lost(id, [], mesh.now, expected=True))
    a.signal("peer.disconnect", Lost("e", [], mesh.now))
    error = a.error(a.request("n"))
    assert isinstance(error, Unavailable)
    assert error.message == "nobody handles n within reach of a, but the link to b and c and d is lost"
    assert error.delivered is False
    error = a.error(a.request("n", to="x"))
    assert error.message == "there is no exchange x within reach of a, but the link to b and c and d is lost"
    for id in "bcd":
        a.signal("peer.disconnect", Lost(id, [], mesh.now))
    assert isinstance(a.error(a.request("n")), Unhandled)


# ------------------------------------------------------------------------------------------------ in one frame


def test_a_mistake_with_one_message_of_a_frame_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    b = mesh["b"]
    b.handle("n")
    take = b.router._take_up
    mistake = ZeroDivisionError()

    def take_up(arrival: Arrival) -> None:
        if arrival.message.name == "bad":
            raise mistake
        take(arrival)

    monkeypatch.setattr(b.router, "_take_up", take_up)
    for name in ("n", "bad", "n"):
        mesh["a"].send(name, to="b")
    with pytest.raises(AssertionError):
        mesh.settle()
    assert [(id, name, error) for id, name, _, error in mesh.broken] == [("b", "arrived", mistake)]
    assert len(b.handled) == 2


def test_what_follows_the_end_of_its_link_in_a_frame_is_not_heard() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    b = mesh["b"]
    b.handle("n")
    mesh.settle()
    deliver = b.kernel.immediate["deliver"]

    def last(value: Any, sig: Any, state: Any) -> Any:
        del b.router.links["a"]
        return deliver(value, sig, state)

    b.kernel.immediate["deliver"] = last
    sent = [mesh["a"].send("n"), mesh["a"].send("n")]
    mesh.step()
    assert [message.id for message in b.handled] == sent[:1]


def test_a_name_that_is_claimed_for_other_links_takes_no_part() -> None:
    mesh = Mesh()
    mesh.chain("a", "b")
    mesh["b"].handle("n")
    mesh.settle()
    del mesh["b"].handlers["n"]
    request = mesh["a"].request("n", many=True)
    mesh.settle()
    (end,) = mesh["a"].replies[request]
    assert isinstance(end.error, Unhandled)
    at_rest(mesh)


def test_routes_and_load_say_what_is_known() -> None:
    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["a"].handle("here")
    mesh["b"].handle("near")
    mesh["c"].handle("far")
    mesh["b"].handle("exchange.x")
    mesh.settle()
    mesh["a"].send("far")
    mesh.settle()
    found = mesh["a"].router.routes()
    assert [(way["kind"], way["target"], way["via"], way["hops"]) for way in found] == [
        ("exchange", "a", "", 0),
        ("exchange", "b", "b", 1),
        ("name", "far", "b", 2),
        ("name", "here", "", 0),
        ("name", "near", "b", 1),
    ]
    assert mesh["a"].router.routes("near") == [{"kind": "name", "target": "near", "via": "b", "hops": 1}]
    assert len(mesh["a"].router.routes("exchange.x")) == 1
    assert mesh["a"].router.load() == {"open_questions": 0, "held": 0, "routes": 1}
    assert mesh["a"].router.open_requests == 0
