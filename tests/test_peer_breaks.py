"""What the simulation found in sessions that break, each as small as it gets."""

from collections.abc import Iterator
from dataclasses import replace

from exchange_grpc import wire
from exchange_grpc.errors import Code
from exchange_grpc.frames import Frame, Goodbye, Hello, Introduction, Welcome
from exchange_grpc.limits import RESUME_SECONDS, Limits
from exchange_grpc.message import Context, Kind, Message, Origin
from exchange_grpc.peer import FEATURES, Ended, Forgotten, Missing, Phase, Session

NOW = 100.0
ORIGIN = Origin("me", 7)


def intro(id: str, features: tuple[str, ...] = FEATURES) -> Introduction:
    return Introduction(id, 7, features=features)


def made() -> Message:
    return ORIGIN.make(Kind.SEND, "a", Context(), NOW)


def said(session: Session) -> Iterator[Frame]:
    while (data := session.data_to_send(NOW)[0]) is not None:
        yield wire.decode(data, NOW)


def session(me: Introduction, *, dialled: bool, limits: Limits | None = None) -> Session:
    return Session(me, dialled=dialled, now=NOW, limits=limits or Limits(), draw=lambda size: b"x" * size)


def dialled(you: Introduction, me: Introduction | None = None, limits: Limits | None = None) -> Session:
    """An open session with a peer that says this of itself."""
    made = session(me or intro("me"), dialled=True, limits=limits)
    made.receive(wire.encode(Welcome(replace(you, session="s", token=b"t"))), NOW)
    list(said(made))
    return made


def test_who_cannot_resume_keeps_nothing_for_it() -> None:
    me = dialled(intro("you"), intro("me", ()))
    me.send(made())
    list(said(me))
    assert me.out.unacknowledged == 0


def test_what_never_left_is_told_before_a_session_is_forgotten() -> None:
    limits = Limits(away_seconds=5, resume_seconds=1)
    me = dialled(intro("you"), limits=limits)
    me.disconnected(NOW)
    message = made()
    me.send(message)
    assert me.next_deadline() == NOW + 1
    assert me.tick(NOW + 1) == [Missing([message]), Forgotten([])]


def test_a_broken_session_that_nobody_can_resume_is_forgotten_as_well() -> None:
    me = dialled(intro("you", ()))
    assert me.disconnected(NOW)
    assert Forgotten([]) in me.tick(NOW + RESUME_SECONDS)


def test_a_goodbye_before_the_welcome_says_nothing_of_what_was_taken() -> None:
    """The peer may have begun anew: then it has sent less."""
    me = dialled(intro("you"))
    me.into.take(0, ["a", "b"], 10, NOW)
    me.disconnected(NOW)
    me.dial(intro("me"), NOW)
    me.goodbye()
    hello, goodbye = said(me)
    assert isinstance(hello, Hello)
    assert hello.me.received == 2
    assert isinstance(goodbye, Goodbye)
    assert goodbye.received == 0
    you = session(intro("you"), dialled=False)
    you.receive(wire.encode(hello), NOW)
    you.welcome(intro("you"))
    (ended,) = you.receive(wire.encode(goodbye), NOW)
    assert isinstance(ended, Ended)
    assert (ended.code, you.phase) == (Code.OK, Phase.CLOSED)
