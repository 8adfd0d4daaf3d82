"""The links of one exchange: made, broken, resumed and gone, and what routing hears of it."""

from collections.abc import Callable
from typing import Any

import pytest

from exchange_grpc.errors import Code, InvalidMessage
from exchange_grpc.frames import Answer, Found, Query, Target
from exchange_grpc.kernel import Kernel
from exchange_grpc.ledger import Ledger
from exchange_grpc.limits import AWAY_SECONDS, CONTEST_SECONDS, RESUME_SECONDS, SILENCE_SECONDS, Limits
from exchange_grpc.links import Links
from exchange_grpc.message import Context, Kind, Message, Origin
from exchange_grpc.outbox import QueueFull
from exchange_grpc.peer import Broken, Ended, Event, Phase, Session
from exchange_grpc.routing import Arrival, Router
from exchange_grpc.version import AGENT

SIGNALS = (
    "arrived", "peer.connect", "peer.away", "peer.disconnect", "peer.interest", "peer.asked", "peer.answered",
    "reroute", "uncertain", "expired", "dropped", "rejected",
)  # fmt: skip


class Line:
    """A session, and the line at the other end."""

    def __init__(self, side: "Side", session: Session, address: str) -> None:
        self.side, self.session = side, session
        self.read_all = False
        self.address, self.slowed = address, 0
        self.other: Line | None = None
        self.settled_as: str | None = None
        self.wakes = 0

    def wake(self) -> None:
        self.wakes += 1

    def settled(self, peer: str) -> None:
        self.settled_as = peer

    def take_over(self, other: "Line") -> None:
        assert other.other is not None
        self.cut()
        self.other, other.other.other, other.other = other.other, self, None
        self.side.links.over(other)

    def cut(self) -> None:
        if self.other is not None:
            self.other.other = self.other = None


class Side:
    """One exchange: a kernel that only notes what routing is told, unless it shall route."""

    def __init__(self, world: "World", id: str, *, epoch: int = 1, routes: bool = False, **links: Any) -> None:
        self.world, self.id = world, id
        self.kernel, self.origin = Kernel(), Origin(id, epoch, 0.0)
        self.router = Router(self.origin, self.kernel, Ledger(id), draw=lambda n: 0)
        self.signals: list[tuple[str, Any]] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.links: Links[Line, str] = Links(
            id, epoch, (), kernel=self.kernel, router=self.router, now=lambda: world.now,
            linked=lambda line, peer: f"the peer {peer.exchange}", tell=lambda *told: self.told.append(told),
            run=self.run, **links,
        )  # fmt: skip
        self.running = False
        self.kernel.unhandled = lambda name, value: self.signals.append((f"{name}, which nobody handles", value))
        for name in SIGNALS:
            self.kernel.delayed[name] = self.noting(name, self.kernel.delayed[name] if routes else None)
        self.kernel.immediate["transmit"] = lambda value, sig, state: self.links.send(*value)
        self.kernel.immediate["control"] = lambda value, sig, state: self.links.control(*value)
        for name in ("announce", "resolve", "dispatched", "withdraw", "message.unhandled", "observed"):
            self.kernel.immediate[name] = lambda value, sig, state: None

    def noting(self, name: str, then: Callable[..., Any] | None) -> Callable[..., Any]:
        def note(value: Any, sig: Any, state: Any) -> None:
            self.signals.append((name, value))
            if then is not None:
                then(value, sig, state)

        return note

    def run(self) -> None:
        if not self.running:
            self.running = True
            self.kernel.run()
            self.running = False

    def heard(self, name: str) -> list[Any]:
        """What routing was told by this signal; it is forgotten."""
        found = [value for known, value in self.signals if known == name]
        self.signals = [signal for signal in self.signals if signal[0] != name]
        return found

    def tellings(self) -> list[str]:
        """What was shown, in short; it is forgotten."""
        told, self.told = self.told, []
        return [f"{event} {value['id']}" for event, value in told]

    def send(self, to: str, name: str = "a", kind: Kind = Kind.SEND, **more: Any) -> Message:
        message = self.origin.make(kind, name, Context(), self.world.now, **more)
        self.links.send(to, message)
        self.run()
        return message

    def got(self) -> str:
        """The names of what arrived, one letter each."""
        return "".join(message.name for _, messages, _ in self.heard("arrived") for message in messages)


class World:
    """A clock, the sides, and connections that bring frames at once."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.lines: list[Line] = []
        self.count = 0

    def draw(self, size: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(size, "big")

    def line(self, side: Side, *, dialled: bool, when_full: str = "wait", address: str = "") -> Line:
        session = Session(
            side.links.introduction(), dialled=dialled, now=self.now, limits=Limits(credit_messages=4),
            when_full=when_full, draw=self.draw,
        )  # fmt: skip
        line = Line(side, session, address)
        self.lines.append(line)
        side.links.begun(line)
        return line

    def dial(self, a: Side, b: Side, **options: Any) -> Line:
        """`a` dials `b`, and both are settled: the line at `a`."""
        line = self.line(a, dialled=True, **options)
        self.connect(line, b, address=line.address)
        return line

    def redial(self, line: Line, b: Side, *, settle: bool = True) -> None:
        line.session.dial(line.side.links.introduction(), self.now)
        self.connect(line, b, settle=settle)

    def connect(self, line: Line, b: Side, *, settle: bool = True, address: str = "") -> None:
        other = self.line(b, dialled=False, address=address)
        line.other, other.other = other, line
        if settle:
            self.settle()

    def settle(self) -> None:
        """Bring all frames to where they go, until nobody says anything."""
        while sum(self.bring(line) for line in list(self.lines)):
            pass

    def bring(self, line: Line) -> bool:
        other = line.other
        if other is None:
            return False
        data, expired = line.session.data_to_send(self.now)
        if expired:
            line.side.links.late(line, expired)
        if data is not None:
            self.hear(other, other.session.receive(data, self.now))
        elif line.session.phase is Phase.CLOSED:
            self.lose(line)
        return data is not None or bool(expired)

    def hear(self, line: Line, events: list[Event]) -> None:
        line.side.links.heard(line, events)
        if any(isinstance(event, Broken) for event in events):
            self.lose(line)

    def lose(self, line: Line, reason: str = "it broke") -> None:
        """The connection of this line is gone, and both ends notice."""
        ends = [end for end in (line, line.other) if end is not None]
        line.cut()
        for end in ends:
            if end.session.disconnected(self.now):
                end.side.links.broke(end, reason)
            else:
                end.side.links.ended(end, reason, returns=False)
                end.side.links.over(end)

    def tick(self, seconds: float) -> None:
        """Let time pass for all sessions."""
        self.now += seconds
        for line in self.lines:
            self.hear(line, line.session.tick(self.now))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def pair(world: World) -> "Pair":
    """Two who are linked, `a` has dialled, and the line at `a`."""
    a, b = Side(world, "a"), Side(world, "b")
    line = world.dial(a, b)
    return a, b, line


Pair = tuple[Side, Side, Line]


# ------------------------------------------------------------------------------------------------- made and used


def test_a_link_is_told_of_and_used(pair: Pair) -> None:
    a, b, line = pair
    assert (a.links.peers, b.links.peers) == ({"b": "the peer b"}, {"a": "the peer a"})
    assert line.settled_as == "b"
    (neighbour,) = a.heard("peer.connect")
    assert (neighbour.id, neighbour.relay) == ("b", False)
    assert a.told == [("peer.connected", {"id": "b", "agent": AGENT, "relay": False})]
    assert b.tellings() == ["peer.connected a"]
    assert a.links.introduction_of("b").exchange == "b"
    woken = line.wakes
    a.send("b")
    assert line.wakes > woken
    line.side.world.settle()
    assert b.got() == "a"


def test_what_peers_say_is_signalled_with_their_id(world: World, pair: Pair) -> None:
    a, b, _ = pair
    query, answer = Query("a.1.q1", Target("name", "n"), 3), Answer("", Target("name", "n"), Found.NO)
    assert a.links.control("b", query)
    assert a.links.control("b", answer)
    a.links.announce(handles=("x",))
    world.settle()
    assert b.heard("peer.asked") == [("a", query, world.now)]
    assert b.heard("peer.answered") == [("a", answer, world.now)]
    ((id, interest, _),) = b.heard("peer.interest")
    assert (id, interest.handles) == ("a", ("x",))


def test_a_refusal_names_the_link(world: World, pair: Pair) -> None:
    a, _, _ = pair
    forged = a.origin.make(Kind.SEND, "b", Context(), world.now)
    forged.from_ = "far"
    a.links.send("b", forged)
    world.settle()
    (rejection,) = a.heard("rejected")
    assert (rejection.link, rejection.id, rejection.now) == ("b", forged.id, world.now)
    assert rejection.error.reason == "INVALID_MESSAGE"


def test_what_expired_is_told(world: World, pair: Pair) -> None:
    a, _, _ = pair
    message = a.send("b", seconds=1)
    world.now += 2
    world.settle()
    assert a.heard("expired") == [([message], world.now)]


def test_nothing_goes_to_who_is_not_there(pair: Pair) -> None:
    a, _, _ = pair
    with pytest.raises(QueueFull, match="the link to c was lost"):
        a.send("c")
    assert not a.links.control("c", Query("a.1.q1", Target("name", "n"), 3))


def test_there_are_so_many_links_and_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.links.LINKS", 1)
    hub, a, b = Side(world, "hub"), Side(world, "a"), Side(world, "b")
    world.dial(a, hub)
    refused = world.dial(b, hub)
    assert refused.session.phase is Phase.CLOSED
    assert list(hub.links.peers) == ["a"]
    assert len(hub.links.lines) == 1, "what is over is not kept"
    world.dial(hub, b)
    assert list(hub.links.peers) == ["a", "b"], "we may dial as many as we like"


# ------------------------------------------------------------------------------------------- the same peer twice


def test_a_second_link_to_the_same_peer_is_refused(world: World, pair: Pair) -> None:
    a, b, line = pair
    second = world.dial(a, b)
    assert second.settled_as == "b" or second.session.phase is Phase.CLOSED
    assert a.links.by_peer == {"b": line}
    assert line.session.phase is Phase.OPEN
    assert len(a.links.lines) == len(b.links.lines) == 1


@pytest.mark.parametrize(("first", "second"), [("a", "b"), ("b", "a")])
def test_two_who_dial_each_other_keep_the_link_of_the_smaller_id(world: World, first: str, second: str) -> None:
    sides = {id: Side(world, id) for id in "ab"}
    for id, to in ((first, second), (second, first)):
        world.connect(world.line(sides[id], dialled=True), sides[to], settle=False)
    for line in [line for line in world.lines if line.session.dialled]:
        assert world.bring(line), "each has said Hello before it is welcomed"
    world.settle()
    for id, other in (("a", "b"), ("b", "a")):
        (line,) = sides[id].links.by_peer.values()
        assert line.session.dialled is (id == "a")
        assert line.session.phase is Phase.OPEN
        assert sides[id].links.peers == {other: f"the peer {other}"}
    sides["a"].send("b", "x")
    sides["b"].send("a", "y")
    world.settle()
    assert (sides["a"].got(), sides["b"].got()) == ("y", "x")


def test_who_is_away_is_dialled_anew(world: World, pair: Pair) -> None:
    """By somebody who does not wait for the link that we have with it."""
    a, b, line = pair
    world.lose(line)
    unsent = a.send("b")
    again = world.dial(a, b)
    assert a.links.by_peer == {"b": again}
    assert line.session.phase is Phase.CLOSED
    assert a.heard("reroute") == [("b", [unsent], world.now)]
    assert a.tellings() == ["peer.connected b", "peer.lost b", "peer.connected b"]
    assert b.links.peers == {"a": "the peer a"}


def test_a_stranger_with_the_id_of_a_live_peer_is_told_when_to_come_back(world: World, pair: Pair) -> None:
    a, b, line = pair
    stranger = world.line(Side(world, "a"), dialled=True)
    world.connect(stranger, b, settle=False)
    while stranger.session.phase is not Phase.CLOSED:
        other = stranger.other
        assert other is not None
        world.bring(stranger)
        data, _ = other.session.data_to_send(world.now)
        if data is not None:
            (ended,) = stranger.session.receive(data, world.now)
            assert isinstance(ended, Ended)
            assert (ended.code, ended.reason) == (Code.ALREADY_EXISTS, "a is linked to b already")
            assert ended.retry_after_ms == CONTEST_SECONDS * 1_000
    world.settle()
    assert line.session.phase is Phase.OPEN
    line.other.other = None  # type: ignore[union-attr]  # what it says is not heard
    line.other = None
    world.connect(world.line(Side(world, "a"), dialled=True), b)
    world.now += CONTEST_SECONDS
    last = world.line(Side(world, "a"), dialled=True)
    world.connect(last, b)
    assert last.session.phase is Phase.OPEN
    assert b.tellings()[-1] == "peer.resumed a"
    assert a.id == "a"


# ------------------------------------------------------------------------------------------------ broken, resumed


def test_a_link_that_comes_back_goes_on(world: World, pair: Pair) -> None:
    a, b, line = pair
    a.tellings(), b.tellings(), a.heard("peer.connect")
    other = line.other
    world.lose(line, "no route")
    assert a.heard("peer.away") == [("b", world.now)]
    assert a.told == [("peer.lost", {"id": "b", "reason": "no route"})]
    world.lose(line)
    assert a.heard("peer.away") == [], "told once"
    a.send("b", "x")
    world.now += 1
    world.redial(line, b)
    assert b.got() == "x"
    assert b.links.by_peer == {"a": other}, "it has taken over the new connection"
    for side, id in ((a, "b"), (b, "a")):
        (_, value) = side.told[-1]
        assert value == {"id": id, "recovered": True, "uncertain": [], "seconds": 1.0}
        assert side.heard("peer.connect")[-1].id == id
        assert side.heard("peer.disconnect") == []
    assert len(b.links.lines) == 1


def test_what_changed_meanwhile_is_said(world: World, pair: Pair) -> None:
    a, b, line = pair
    world.lose(line)
    a.router.offers.update(("new", "exchange.hidden"))
    a.router.subscriptions.add("s.*")
    a.links.announce(handles=("new",), subscribes=("s.*",))
    a.heard("peer.connect"), b.heard("peer.connect")
    world.redial(line, b, settle=False)
    a.router.offers.discard("new")
    a.router.offers.add("newer")
    a.links.revision += 1  # announced while the line was not among those who are told
    world.settle()
    assert b.heard("peer.connect")[-1].handles == ("new",)
    ((_, interest, _),) = b.heard("peer.interest")
    assert (interest.handles, interest.no_longer_handles) == (("newer",), ("new",))
    a.links.announce(handles=("last",))
    world.settle()
    assert b.heard("peer.interest")[-1][1].handles == ("last",)


def test_a_peer_without_its_memory_begins_another_life(world: World, pair: Pair) -> None:
    a, b, line = pair
    a.heard("peer.connect")
    for _ in range(4):
        a.send("b", "x")  # no credit is left
    for_session = a.links.by_peer["b"].session
    data, _ = for_session.data_to_send(world.now)
    assert data is not None
    unsent = a.send("b", "y")
    world.lose(line)
    world.now += 1
    restarted = Side(world, "b", epoch=2)
    world.redial(line, restarted)
    (lost,) = a.heard("peer.disconnect")
    assert (lost.id, lost.unsent, lost.expected) == ("b", [unsent], True)
    assert [id for id, _, _ in a.heard("uncertain")] == ["b"]
    assert a.heard("reroute") == [("b", [unsent], world.now)]
    (_, value) = a.told[-1]
    assert (value["recovered"], len(value["uncertain"]), value["seconds"]) == (False, 4, 1.0)
    assert a.links.by_peer == {"b": line}
    assert b.id == "b"


def test_a_peer_that_is_missing_is_no_peer_until_it_is_back(world: World, pair: Pair) -> None:
    a, b, line = pair
    world.lose(line)
    unsent = a.send("b", "x")
    world.tick(AWAY_SECONDS)
    assert a.links.peers == b.links.peers == {}
    (lost,) = a.heard("peer.disconnect")
    assert (lost.id, lost.unsent, lost.expected) == ("b", [unsent], True)
    assert a.heard("reroute") == [("b", [unsent], world.now)]
    (lost,) = b.heard("peer.disconnect")
    assert (lost.id, lost.unsent, lost.expected) == ("a", [], False), "who has dialled us may not come back"
    assert b.heard("reroute") == []
    world.redial(line, b)
    assert a.links.peers == {"b": "the peer b"}
    assert a.told[-1][1]["recovered"] is True


def test_what_is_uncertain_is_told_when_the_session_is_forgotten(world: World, pair: Pair) -> None:
    a, b, line = pair
    message = a.send("b")
    line.session.data_to_send(world.now)
    world.lose(line)
    world.tick(AWAY_SECONDS)
    assert a.heard("uncertain") == []
    world.tick(RESUME_SECONDS)
    assert a.heard("uncertain") == [("b", [message.id], world.now)]
    assert b.heard("uncertain") == []
    world.redial(line, b)
    assert a.told[-1] == (
        "peer.resumed",
        {"id": "b", "recovered": False, "uncertain": [message.id], "seconds": AWAY_SECONDS + RESUME_SECONDS},
    )


def test_a_silent_peer_is_away_and_missing(world: World, pair: Pair) -> None:
    a, b, line = pair
    a.links.heard(line, line.session.tick(world.now + 1))
    line.session._limits = Limits(heartbeat_seconds=0.1, silence_seconds=0.5)
    for _ in range(5):
        world.now += 0.1
        a.links.heard(line, line.session.tick(world.now))
    assert [name for name, _ in a.told] == ["peer.connected", "peer.lost"]
    assert len(a.heard("peer.away")) == len(a.heard("peer.disconnect")) == 1
    assert SILENCE_SECONDS > 0.5
    assert b.links.peers


def test_a_peer_may_come_back_by_another_name(world: World, pair: Pair) -> None:
    """A hub that was restarted without a fixed id: nobody waits for the former one."""
    a, _, line = pair
    unsent = [a.send("b") for _ in range(5)][-1:]
    line.session.data_to_send(world.now)
    world.lose(line)
    world.redial(line, Side(world, "new"))
    assert (list(a.links.by_peer), list(a.links.peers)) == (["new"], ["new"])
    (lost,) = a.heard("peer.disconnect")
    assert (lost.id, lost.unsent, lost.expected) == ("b", unsent, False)
    assert a.heard("reroute") == [("new", unsent, world.now)]
    assert a.heard("peer.connect")[-1].id == "new"
    assert a.tellings() == ["peer.connected b", "peer.lost b", "peer.resumed new"]


def test_a_peer_cannot_come_back_by_the_name_of_another(world: World, pair: Pair) -> None:
    a, _, line = pair
    c = Side(world, "c")
    world.dial(a, c)
    world.lose(line)
    (unsent,) = [a.send("b")]
    world.redial(line, Side(world, "c", epoch=2))
    assert line.session.phase is Phase.CLOSED
    assert list(a.links.by_peer) == list(a.links.peers) == ["c"], "and nothing is left of the former one"
    (lost,) = a.heard("peer.disconnect")
    assert (lost.id, lost.unsent, lost.expected) == ("b", [unsent], False)
    assert a.heard("reroute") == [("c", [unsent], world.now)]
    assert not line.side.links._faces.keys() & {line}


# ----------------------------------------------------------------------------------------------------- the end


def test_a_goodbye_ends_the_link(world: World, pair: Pair) -> None:
    a, b, line = pair
    line.session.goodbye()
    world.settle()
    assert (a.links.by_peer, b.links.by_peer, a.links.peers, b.links.peers) == ({}, {}, {}, {})
    (lost,) = b.heard("peer.disconnect")
    assert (lost.id, lost.unsent, lost.expected) == ("a", [], False)
    assert (a.tellings()[-1], b.tellings()[-1]) == ("peer.lost b", "peer.lost a")
    assert not a.links.lines
    assert not b.links.lines


def test_who_ended_as_planned_is_expected_back(world: World, pair: Pair) -> None:
    a, b, line = pair
    unsent = [a.send("b") for _ in range(5)][-1:]
    line.session.data_to_send(world.now)
    b.links.by_peer["a"].session.goodbye(Code.UNAVAILABLE, "restart")
    other = line.other
    assert other is not None
    data, _ = other.session.data_to_send(world.now)
    while data is not None:
        a.links.heard(line, line.session.receive(data, world.now))
        data, _ = other.session.data_to_send(world.now)
    line.cut()
    line.session.disconnected(world.now)
    a.links.ended(line, "restart", returns=True)
    line.session.revive(world.now)
    assert a.links.by_peer == a.links.peers == {}
    (lost,) = a.heard("peer.disconnect")
    assert (lost.id, lost.expected) == ("b", True)
    assert lost.unsent[-1:] == unsent
    assert a.heard("reroute") == [("b", lost.unsent, world.now)]
    world.now += 2
    world.redial(line, Side(world, "b", epoch=2))
    assert a.links.by_peer == {"b": line}
    assert a.told[-1] == ("peer.resumed", {"id": "b", "recovered": False, "uncertain": [], "seconds": 2.0})
    assert a.tellings() == ["peer.connected b", "peer.lost b", "peer.resumed b"]


def test_who_is_given_up_is_not_expected_any_more(world: World, pair: Pair) -> None:
    a, _, line = pair
    world.lose(line)
    world.tick(AWAY_SECONDS)
    assert a.heard("peer.disconnect")[-1].expected
    line.session.goodbye()
    a.links.gave_up(line, "it was not back within 9 s")
    assert {name for name, _ in a.signals} <= {"peer.connect", "peer.away", "peer.disconnect"}
    assert not a.heard("peer.disconnect")[-1].expected
    assert a.told[-1] == ("peer.gave_up", {"id": "b", "reason": "it was not back within 9 s"})
    assert a.links.by_peer == a.links.peers == {}
    assert not a.links._faces
    assert not a.links._broken
    assert not a.links._uncertain
    a.links.gave_up(line, "again")
    assert a.tellings()[-1] == "peer.gave_up b"
    assert a.tellings() == []


def test_nothing_is_told_of_who_was_never_there(world: World) -> None:
    a, b = Side(world, "a"), Side(world, "b")
    line = world.line(a, dialled=True)
    a.links.gave_up(line, "no route")
    a.links.ended(line, "no route", returns=False)
    a.links.broke(line, "no route")
    assert a.told == a.signals == []
    assert b.id == "b"


def test_whoever_sends_no_more_gets_what_he_asked_for(world: World) -> None:
    a, b = Side(world, "a"), Side(world, "b", routes=True)
    b.router.offers.add("n")
    b.kernel.immediate["deliver"] = lambda value, sig, state: True
    line = world.dial(a, b)
    other = line.other
    assert other is not None
    request = a.send("b", "n", Kind.REQUEST)
    world.settle()
    other.read_all = True
    b.links.half_closed(other)
    assert other.session.phase is Phase.OPEN, "its answer is awaited"
    (entry,) = b.router._open.values()
    b.router._close(entry)
    b.send("a", "n", Kind.REPLY, reply_to=request.id, last=True)
    assert other.session.phase is Phase.CLOSING
    world.settle()
    assert a.got() == "n"
    assert other.session.phase is Phase.CLOSED


@pytest.mark.parametrize("known", [False, True])
def test_whoever_sends_no_more_and_asked_for_nothing_is_let_go(world: World, pair: Pair, known: bool) -> None:
    _, b, line = pair
    other = line.other if known else world.line(b, dialled=False)
    assert other is not None
    b.links.half_closed(other)
    assert other.session.phase is Phase.CLOSING


# ------------------------------------------------------------------------------------------------------ policies


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.LINK_HIGH_WATER", 1)


@pytest.mark.usefixtures("low")
def test_what_made_room_is_told(world: World) -> None:
    a, b = Side(world, "a"), Side(world, "b")
    world.dial(a, b, when_full="drop_oldest")
    first, _, _ = (a.send("b") for _ in range(3))
    assert a.heard("dropped") == [("b", [first], "drop_oldest", world.now)]


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("away", [False, True])
def test_a_peer_that_reads_too_slowly_may_be_let_go(world: World, away: bool) -> None:
    a, b = Side(world, "a"), Side(world, "b")
    line = world.dial(a, b, when_full="disconnect")
    if away:
        world.lose(line)
    unsent = [a.send("b"), a.send("b")]
    wakes = line.wakes
    with pytest.raises(QueueFull):
        a.send("b")
    a.run()
    assert line.wakes > wakes, "it has a goodbye to say, or nothing more"
    assert line.session.phase is (Phase.CLOSED if away else Phase.CLOSING)
    assert a.links.by_peer == a.links.peers == {}
    assert a.heard("reroute") == [("b", unsent, world.now)]
    with pytest.raises(InvalidMessage):
        a.send("b")
    if not away:
        data, _ = line.session.data_to_send(world.now)
        other = line.other
        assert other is not None
        (ended,) = other.session.receive(data or b"", world.now)
        assert ended.code is Code.RESOURCE_EXHAUSTED  # type: ignore[union-attr]


@pytest.mark.usefixtures("low")
def test_a_link_that_goes_while_routing_uses_it_harms_nobody_else(world: World) -> None:
    """Routing hears of it only after what it is about."""
    a = Side(world, "a", routes=True)
    broken: list[Any] = []
    a.kernel.failed = lambda *what: broken.append(what)
    sides = [Side(world, id) for id in "bc"]
    for side in sides:
        world.dial(a, side, when_full="disconnect" if side.id == "b" else "wait")
    for _ in range(5):
        a.kernel.sig("broadcast", arrival(a))
    a.run()
    assert broken == []
    assert list(a.router.links) == ["c"]
    world.settle()
    assert sides[1].got() == "n" * 5


def arrival(side: Side) -> Arrival:
    return Arrival(side.origin.make(Kind.BROADCAST, "n", Context(), side.world.now), None, side.world.now)


@pytest.mark.usefixtures("low")
def test_to_wait_lets_nobody_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Side(world, "a"), Side(world, "b")
    line = world.dial(a, b)
    for _ in range(10):
        a.send("b")
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 10)
    with pytest.raises(QueueFull):
        a.send("b")
    assert line.session.phase is Phase.OPEN
    assert b.id == "b"


def test_so_many_links_of_one_address(world: World) -> None:
    hub = Side(world, "hub", per_address=1)
    for id, address in (("a", "10.0.0.1"), ("b", "10.0.0.1"), ("c", "10.0.0.2"), ("d", ""), ("e", "")):
        world.dial(Side(world, id), hub, address=address)
    assert list(hub.links.peers) == ["a", "c", "d", "e"]
    first = hub.links.by_peer["a"]
    world.lose(first)
    first.session.goodbye()
    hub.links.gave_up(first, "it was not back")
    for _ in range(2):
        hub.links.over(first)  # said twice, it counts once
    for id in "fg":
        world.dial(Side(world, id), hub, address="10.0.0.1")
    assert list(hub.links.peers) == ["c", "d", "e", "f"]


def test_a_cancel_wakes_a_link_that_waits_for_credit(world: World, pair: Pair) -> None:
    a, b, line = pair
    request = a.send("b", "r", Kind.REQUEST)
    for _ in range(3):
        a.send("b")
    line.session.data_to_send(world.now)
    a.send("b")
    wakes = line.wakes
    a.send("b")
    assert line.wakes == wakes, "it leaves with what waits already"
    a.send("b", "c", Kind.CANCEL, reply_to=request.id)
    assert line.wakes == wakes + 1
    assert b.id == "b"


def test_what_was_offered_between_hello_and_welcome_is_said(world: World) -> None:
    a, b = Side(world, "a"), Side(world, "b")
    line = world.line(a, dialled=True)
    a.router.offers.add("new")
    a.links.announce(handles=("new",))
    world.connect(line, b)
    ((id, interest, _),) = b.heard("peer.interest")
    assert (id, interest.handles) == ("a", ("new",))


def test_who_is_given_up_while_another_link_to_it_is_there(world: World, pair: Pair) -> None:
    a, b, line = pair
    other = line.other
    assert other is not None
    line.cut()
    a.links.ended(line, "restart", returns=True)
    b.links.ended(other, "restart", returns=False)
    again = world.dial(b, a)
    a.heard("peer.disconnect")
    a.links.gave_up(line, "it was not back")
    assert a.heard("peer.disconnect") == [], "it is there"
    assert a.links.by_peer == {"b": again.other}
