"""The pump of one session, over one wire after another: what `transports/link.py` does, in the time of the world.

Law: nothing is decided here that is not decided there. Where that awaits, there is an event here.
"""

from typing import TYPE_CHECKING

from exchange_grpc.errors import Code
from exchange_grpc.frames import Introduction
from exchange_grpc.limits import DRAIN_SECONDS
from exchange_grpc.peer import Backoff, Broken, Ended, Event, Forgotten, Opened, Phase, Resumed, Session

from .transitions import Count
from .wire import Wire

if TYPE_CHECKING:
    from .invariants import Channel
    from .node import Node


class Line:
    """A session, and what carries it: see `links.Line`. One that was dialled is dialled again for `retry` seconds."""

    def __init__(self, node: "Node", session: Session, *, target: str = "", retry: float = 0.0) -> None:
        self.node = node
        self.session = session
        self.target = target
        self.address = ""  # all are of one place
        self.slowed = 0
        self.read_all = False
        self.wire: Wire | None = None
        self.end = 0
        self.ended: Ended | None = None
        self.finished = False
        self.channel: Channel = node.world.law.channel(self)
        self.number = node.world.law.begun()  # in the order of their making
        self._world = node.world
        self._retry = retry
        self.count = Count(node.world.transitions, self)
        self._backoff = Backoff(node.limits, node.world.dice.random)
        self._settled = False
        self._leaving = False
        self._broke_at = 0.0
        self._redials = 0  # how many times it has begun to dial again
        self._redialling = False
        self._timer: float | None = None
        self._flushing = False
        self._writing: float | None = None  # since when the wire has taken no frame
        session.into.more_is_welcome = self.wake

    def __repr__(self) -> str:
        peer = self.session.peer
        return f"{self.node} to {peer.exchange if peer is not None else self.target or 'somebody'}"

    # ------------------------------------------------------------------------------------------------- wires

    def start(self, wire: "Wire", end: int) -> None:
        """Go on over this one."""
        self.wire, self.end, self.read_all, self._writing = wire, end, False, None
        self.wake()
        self._arm()

    def take_over(self, other: "Line") -> None:
        """See `links.Line`."""
        wire, former, end = other.wire, self.wire, self.end
        assert wire is not None
        self.count("takes over", self.session.phase)
        other.wire = None
        wire.lines[other.end] = self
        self.start(wire, other.end)
        if former is not None:
            former.close(end)
        self._redialling = False
        other._finish_off()

    def wire_ended(self, wire: "Wire", reason: str) -> None:
        """The other end has let go, or the connection was lost."""
        if self.wire is not wire:
            wire.close(wire.lines.index(self))  # nobody listens at this end any more
        elif reason or self.session.into.acknowledges:  # who resumes says goodbye before he ends
            self._drop(reason or "the peer ended the connection")
        elif not self.read_all:
            self.read_all = True
            self.node.links.half_closed(self)

    def _drop(self, reason: str) -> None:
        """It carries nothing any more."""
        wire, self.wire = self.wire, None
        assert wire is not None
        wire.close(self.end)
        before = self.session.phase
        waits = self.session.disconnected(self._world.now)
        self.count("disconnected", before)
        if waits:
            self.node.links.broke(self, reason)
            self._come_back()
        else:
            self._session_over(reason)

    def _session_over(self, reason: str) -> None:
        ended, links = self.ended, self.node.links
        if self._settled and self._retry and not self._leaving:
            if ended is not None and self.session.may_return(ended):
                links.ended(self, reason, returns=True)
                self.count("revived", self.session.phase)
                self.session.revive(self._world.now)
                self.ended = None
                self._come_back(ended.retry_after_ms / 1_000)
                return
            links.gave_up(self, reason)
        links.ended(self, reason, returns=False)
        self._finish_off()

    def _finish_off(self) -> None:
        if not self.finished:
            self.finished = True
            self._redialling = False
            self.node.links.over(self)
            self.node.line_is_over(self)

    # -------------------------------------------------------------------------------------------- redialling

    def _come_back(self, pause: float = 0.0) -> None:
        self._arm()
        self._backoff.broke(self._world.now)
        if self._retry and not self._redialling and not self.finished:
            self._broke_at = self._broke_at or self._world.now
            self._redialling = True
            self._redials += 1
            self._redial(pause)

    def _redial(self, pause: float = 0.0) -> None:
        seconds = max(pause, self._backoff.next())
        if self._world.now + seconds - self._broke_at > self._retry:
            self._redialling = False
            self.count("given up", self.session.phase)
            self.session.goodbye()
            self.node.links.gave_up(self, "it was not back in time")
            self._finish_off()
            return
        mine = self._redials
        self._world.after(seconds, self.node, lambda: self._attempt(mine))

    def _attempt(self, redial: int) -> None:
        """Dial once. In the meantime the peer may have come to us, and all this be over."""
        if self._redialling and self._redials == redial:
            self.node.reach(self.target, lambda host: self._reached(host, redial))

    def _reached(self, host: "Node | None", redial: int) -> None:
        if not self._redialling or self._redials != redial:
            return
        if host is None:
            self._redial()
            return
        self._redialling = False
        self.count("dials again", self.session.phase)
        self.session.dial(self.node.links.introduction(), self._world.now)
        self.start(Wire(self._world, self, host), 0)

    # ------------------------------------------------------------------------------------------ what is said

    def receive(self, data: bytes, wire: "Wire") -> None:
        """A frame came in."""
        if self.wire is not wire:
            return
        before = self.session.phase
        events = self.session.receive(data, self._world.now)
        self.count.heard(data, before, events)
        self._understand(events, wire.lines[1 - self.end])
        self.wake()
        self._arm()

    def wake(self) -> None:
        """See `links.Line`."""
        if self.wire is not None:
            if not self._flushing:
                self._flushing = True
                self._world.soon(self.node, self._flush)
        elif self.session.phase is Phase.CLOSED:
            self._finish_off()

    def settled(self, peer: str) -> None:
        """See `links.Line`."""
        self._settled = True

    def _flush(self) -> None:
        self._flushing = False
        wire, world, session = self.wire, self._world, self.session
        while wire is not None and self.wire is wire:
            if wire.full(self.end):
                self._writing = self._writing or world.now
                return
            self._writing = None
            data, expired = session.data_to_send(world.now)
            if expired:
                for message in expired:
                    self.channel.told(message.id, "expired")
                self.node.links.late(self, expired)
            if data is not None:
                wire.put(self.end, data)
                world.law.wrote(self)
            elif not expired:
                break
        if self.wire is not None and self.wire is wire and session.phase is Phase.CLOSED:
            self._drop(self.ended.reason if self.ended is not None else "the link was closed")

    def close(
        self, code: Code = Code.OK, reason: str = "", *, retry_after_ms: int = 0, stay_away: bool = False
    ) -> None:
        """Say goodbye after what is queued, and end, within a bound."""
        self._leaving, self._redialling = True, False
        self.count("closes", self.session.phase)
        self.session.goodbye(code, reason, retry_after_ms=retry_after_ms, stay_away=stay_away)
        if self.wire is None and not self.finished:
            self.node.links.ended(self, reason, returns=False)
            self._finish_off()
        self.wake()
        self._world.after(DRAIN_SECONDS, self.node, self._drained)

    def _drained(self) -> None:
        if self.wire is not None:
            self._drop("the peer did not take what was queued in time")

    def _understand(self, events: list[Event], sender: "Line | None" = None) -> None:
        if not events:
            return
        for event in events:
            if isinstance(event, Ended):
                self.ended = event
            elif isinstance(event, Opened | Resumed):
                self._backoff.made(self._world.now)
                self._broke_at = 0.0
        self._world.law.heard(self, events, sender)
        self.node.links.heard(self, events)
        for event in events:
            if isinstance(event, Broken):
                wire, self.wire = self.wire, None
                if wire is not None:
                    wire.close(self.end)
                self._come_back(event.retry_after_ms / 1_000)
            elif isinstance(event, Forgotten) and not self._retry:
                self.node.links.gave_up(self, "it was not back in time")
                self._finish_off()

    # -------------------------------------------------------------------------------------------------- time

    def _arm(self) -> None:
        if self.finished:
            return
        due = min(self.session.next_deadline(), self._world.now + self.node.limits.silence_seconds)
        if self._timer is None or due < self._timer:
            self._timer = due
            self._world.at(due, self.node, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if self._timer != due or self.finished:
            return
        self._timer = None
        now, before = self._world.now, self.session.phase
        events = self.session.tick(now)
        self.count.ticked(before, events)
        self._understand(events)
        if self.wire is not None and self._writing and now - self._writing > self.node.limits.silence_seconds:
            self.count("reads nothing", before)
            self._drop("it has read nothing for long")
        self.wake()
        self._arm()


def session_of(node: "Node", introduction: Introduction, *, dialled: bool) -> Session:
    """As `Exchange._link` makes it."""
    world = node.world
    return Session(
        introduction, dialled=dialled, now=world.now, limits=node.limits,
        when_full=world.options.policy, draw=world.dice.randbytes,
    )  # fmt: skip
