"""Two sessions, whatever happens to the connection between them: what was sent arrives once and in order, or is told.

Each step is one thing that may happen: a message is sent, a frame is written, delivered or lost, the connection
breaks or is made again, time passes, and what was taken waits here or does not. After each step:

- what arrived in a session is a prefix of what left in it: in order, nothing missing, nothing twice;
- when a session was not recovered, what arrived of it and what is said to be unsent have nothing in common, and
  all that left and did not arrive is said to be uncertain;
- what is kept, and what waits at the receiver, is within its bounds, and credit is never overrun.
"""

from collections import deque
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from exchange_grpc.frames import Introduction
from exchange_grpc.limits import Limits
from exchange_grpc.message import Context, Kind, Message, Origin
from exchange_grpc.peer import FEATURES, Broken, Ended, Event, Forgotten, Missing, Opened, Phase, Received, Resumed
from exchange_grpc.peer import Session as _Session

LIMITS = Limits(credit_messages=5)
object.__setattr__(LIMITS, "credit_bytes", 4_000)  # less than the largest message of the world, but not of this test
KINDS = (Kind.SEND, Kind.PUBLISH, Kind.REQUEST, Kind.REPLY, Kind.CANCEL)
SIZES = (10, 300, 900)


class End:
    """One side: its session, the frames on their way to it, and what it sent and got."""

    def __init__(self, id: str, draw: Any) -> None:
        self.id, self.draw = id, draw
        self.origin = Origin(id, 1)
        self.session: _Session
        self.way: deque[bytes] = deque()
        self.sent: list[str] = []  # in this session, and not told of
        self.got: list[str] = []  # in this session
        self.kinds: dict[str, Kind] = {}
        self.waits: list[tuple[Message, int]] = []
        self.all_got: list[str] = []
        self.told: dict[str, str] = {}  # how it was said to have ended

    def introduction(self) -> Introduction:
        return Introduction(self.id, 1, features=FEATURES)

    def begin(self, now: float, *, dialled: bool) -> None:
        self.session = _Session(self.introduction(), dialled=dialled, now=now, limits=LIMITS, draw=self.draw)
        self.session.into.more_is_welcome = lambda: None

    def tell(self, ids: list[str], how: str) -> None:
        for id in ids:
            assert id not in self.told, f"{id} is {how} and {self.told[id]}"
            self.told[id] = how


class Sessions(RuleBasedStateMachine):
    """`a` dials `b`, again and again."""

    @initialize()
    def begin(self) -> None:
        self.now = 1_000.0
        self.count = 0
        self.a, self.b = End("a", self.draw), End("b", self.draw)
        self.a.begin(self.now, dialled=True)
        self.b.begin(self.now, dialled=False)
        self.connected = True
        self.pending: _Session | None = None  # at `b`, a connection that has not said who it is
        self.over = False
        self.settle(True)
        assert self.a.session.phase is self.b.session.phase is Phase.OPEN

    def draw(self, size: int) -> bytes:
        self.count += 1
        return self.count.to_bytes(size, "big")

    def other(self, end: End) -> End:
        return self.b if end is self.a else self.a

    # ------------------------------------------------------------------------------------------- what may happen

    @rule(from_a=st.booleans(), kind=st.sampled_from(KINDS), size=st.sampled_from(SIZES), count=st.integers(1, 4))
    def send(self, from_a: bool, kind: Kind, size: int, count: int) -> None:
        end = self.a if from_a else self.b
        if end.session.phase not in (Phase.OPEN, Phase.AWAY) or self.over or end.session.full:
            return
        for _ in range(count):
            more: dict[str, Any] = {}
            if kind is Kind.REPLY:
                more = {"reply_to": "x.1.1", "to": "x", "last": True}
            elif kind is Kind.CANCEL:
                requests = [id for id, of in end.kinds.items() if of is Kind.REQUEST]
                more = {"reply_to": requests[-1] if requests else "x.1.1"}
            message = end.origin.make(kind, "n", Context(), self.now, payload=b'"%s"' % (b"x" * size), **more)
            end.kinds[message.id] = kind
            end.session.send(message)

    @rule(from_a=st.booleans(), frames=st.integers(1, 5))
    def write(self, from_a: bool, frames: int) -> None:
        end = self.a if from_a else self.b
        speaker = self.pending if self.pending is not None and not from_a else end.session
        for _ in range(frames):
            if not self.connected:
                return
            before = speaker.out._sent
            data, expired = speaker.data_to_send(self.now)
            end.tell([message.id for message in expired], "expired")
            if speaker.out._sent > before:
                end.sent += [entry.message.id for entry in (*speaker.out._flight,)[before - speaker.out._sent :]]
            if data is None:
                break
            self.other(end).way.append(data)

    @rule(to_a=st.booleans(), frames=st.integers(1, 5))
    def deliver(self, to_a: bool, frames: int) -> None:
        end = self.a if to_a else self.b
        for _ in range(frames):
            if end.way:
                self.hear(end, end.way.popleft())

    def hear(self, end: End, data: bytes) -> None:
        if end is self.b and self.pending is not None:
            (event,) = self.pending.receive(data, self.now)
            assert isinstance(event, Opened)
            events = end.session.rejoin(event.peer, end.introduction(), self.now)
            assert events is not None, "it has the token, or we wait for it"
            self.pending = None
            self.understand(end, events)
        else:
            self.understand(end, end.session.receive(data, self.now))

    def understand(self, end: End, events: list[Event]) -> None:
        for event in events:
            assert not isinstance(event, Ended) or self.over, event
            if isinstance(event, Opened) and end is self.b:  # the first time
                end.session.welcome(end.introduction())
            elif isinstance(event, Received):
                end.got += [message.id for message in event.messages]
                end.all_got += [message.id for message in event.messages]
                for message in event.messages:
                    message.hold()
                    size = len(message.payload)
                    end.session.into.retain(size)
                    end.waits.append((message, size))
            elif isinstance(event, Broken) and self.connected:
                self.lose()
            elif isinstance(event, Missing):
                end.tell([message.id for message in event.unsent], "unsent")
            elif isinstance(event, Forgotten):
                self.anew(end, event.uncertain, [])
            elif isinstance(event, Resumed) and not event.recovered:
                self.anew(end, event.uncertain, event.unsent)

    def anew(self, end: End, uncertain: list[str], unsent: list[Message]) -> None:
        """A new session begins for this end: what it did not settle it must have told."""
        arrived = set(self.other(end).all_got)
        missing = [id for id in end.sent if id not in arrived]
        assert not set(missing) - set(uncertain), "nothing is lost without a word"
        assert set(uncertain) <= set(end.sent)
        end.tell(uncertain, "uncertain")
        end.tell([message.id for message in unsent], "unsent")
        end.sent = []
        self.other(end).got = []

    @precondition(lambda self: self.connected)
    @rule()
    def lose(self) -> None:
        """The connection breaks: what is on its way is lost, and both notice."""
        self.connected, self.pending = False, None
        for end in (self.a, self.b):
            end.way.clear()
            assert end.session.disconnected(self.now), "it is worth while to wait"

    @precondition(lambda self: not self.connected and not self.over)
    @rule(forgets=st.booleans())
    def redial(self, forgets: bool) -> None:
        """`a` dials again, perhaps without the right token: then a new session begins."""
        if forgets and self.a.session._token:
            self.a.session._token = b"forged"
        self.connected = True
        self.pending = _Session(self.b.introduction(), dialled=False, now=self.now)
        self.a.session.dial(self.a.introduction(), self.now)

    @rule(seconds=st.sampled_from((0.05, 0.5, 3.0, 6.0, 31.0)))
    def tick(self, seconds: float) -> None:
        until = self.now + seconds
        while True:  # as a loop does that is told when something is due
            due = min(self.a.session.next_deadline(), self.b.session.next_deadline())
            self.now = min(max(due, self.now), until)
            for end in (self.a, self.b):
                self.understand(end, end.session.tick(self.now))
            if self.pending is not None and self.pending.tick(self.now):
                self.lose()
            if self.now >= until:
                return

    @rule(at_a=st.booleans(), count=st.integers(1, 8))
    def release(self, at_a: bool, count: int) -> None:
        end = self.a if at_a else self.b
        for message, size in end.waits[:count]:
            end.session.into.release(size)
            message.let_go()
        del end.waits[:count]

    @rule(to_a=st.booleans())
    def settle(self, to_a: bool) -> None:
        """All that can be said is said."""
        for _ in range(10):
            for at_a in (to_a, not to_a):
                self.write(at_a, 50)
                self.deliver(not at_a, 1_000)
                self.release(not at_a, 1_000)

    # ------------------------------------------------------------------------------------------- what is always so

    @invariant()
    def in_order_and_once(self) -> None:
        for end in (self.a, self.b):
            sent = end.sent
            got = self.other(end).got
            assert got == sent[: len(got)]
            assert len({*self.other(end).all_got}) == len(self.other(end).all_got)

    @invariant()
    def unsent_is_unsent(self) -> None:
        for end in (self.a, self.b):
            unsent = {id for id, how in end.told.items() if how in ("unsent", "expired")}
            assert not unsent & {*self.other(end).all_got}

    @invariant()
    def bounded(self) -> None:
        for end in (self.a, self.b):
            into, out = end.session.into, end.session.out
            others = [message for message, _ in end.waits if message.kind is not Kind.CANCEL]
            assert len(others) <= LIMITS.credit_messages
            assert sum(size for _, size in end.waits) <= LIMITS.credit_bytes + 3 * max(SIZES)
            assert (into._retained, into._retained_bytes) == (len(end.waits), sum(size for _, size in end.waits))
            assert out.unacknowledged <= len(end.sent)
            assert out._flight_bytes == sum(entry.size for entry in out._flight)
            assert out._queued_bytes == sum(entry.size for entry in out._queue)
            assert out._cancels == sum(entry.message.kind is Kind.CANCEL for entry in out._queue)

    def teardown(self) -> None:
        """At the end, over a connection that lasts, all that is not told arrives."""
        if not hasattr(self, "a"):
            return
        if not self.connected:
            self.redial(forgets=False)
        for _ in range(20):
            self.settle(True)
            if not any(end.session.out.waits for end in (self.a, self.b)):
                break
            self.tick(0.5)
        assert self.a.session.phase is self.b.session.phase is Phase.OPEN
        for end in (self.a, self.b):
            assert not end.session.out.waits, "credit is told, and nothing stalls"
            cancelled = {id for id, kind in end.kinds.items() if kind in (Kind.REQUEST, Kind.CANCEL)}
            arrived = {*self.other(end).all_got}
            assert {*end.kinds} - arrived - {*end.told} <= cancelled
        self.say_goodbye()

    def say_goodbye(self) -> None:
        self.over = True
        self.a.session.goodbye()
        for _ in range(3):
            for at_a in (True, False):
                self.write(at_a, 50)
                self.deliver(not at_a, 1_000)
        assert self.a.session.phase is self.b.session.phase is Phase.CLOSED


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
