"""The links of one exchange: one for each peer, made, broken, resumed and gone.

Law: sans-IO. What the sessions of the links understand comes in by `heard`, what befalls their connections by
`broke`, `ended` and `half_closed`; routing hears of it by the signals of `routing.py`, and puts messages on a
link by `send`. Whatever moves the bytes is a `Line`. What this exchange says of itself to a peer is put
together here as well.

A peer is in `peers` from its first handshake until it is gone: a link that is broken is kept there for
`away_seconds`. A line is in `by_peer` as long as its session may be resumed.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from .errors import Code
from .frames import PROTOCOL, Answer, Interest, Introduction, Query, Reject
from .kernel import Kernel
from .limits import CONTEST_SECONDS, LINKS, LINKS_PER_ADDRESS
from .message import Kind, Message
from .outbox import DISCONNECT, QueueFull
from .patterns import RESERVED
from .peer import (
    FEATURES,
    Broken,
    Ended,
    Event,
    Forgotten,
    Missing,
    Opened,
    Phase,
    Received,
    Rejected,
    Resumed,
    Session,
)
from .routing import Lost, Neighbour, Rejection, Router
from .version import AGENT


class Line(Protocol):
    """A session, and whatever carries its bytes."""

    session: Session
    read_all: bool  # the other side will send no more
    address: str  # the network address that the peer dialled from, as far as there is one

    @property
    def slowed(self) -> int:
        """How often the peer sent faster than it may."""

    def wake(self) -> None:
        """The session has something to say."""

    def take_over(self, other: Any) -> None:
        """Go on over the connection of another line, of which nothing is left then."""

    def settled(self, peer: str) -> None:
        """The handshake is done: who dialled has a link to `peer` now, this one or another."""


L = TypeVar("L", bound=Line)
P = TypeVar("P")  # what stands for a peer


class Links(Generic[L, P]):
    """All links of one exchange.

    `linked(line, introduction)` makes what stands for a peer in `peers`, `tell(event, value)` shows an event,
    and `run` runs what was signalled on the kernel.
    """

    def __init__(
        self,
        id: str,
        epoch: int,
        exports: tuple[str, ...],
        *,
        kernel: Kernel,
        router: Router,
        now: Callable[[], float],
        linked: Callable[[Any, Introduction], P],
        tell: Callable[[str, dict[str, Any]], None],
        run: Callable[[], None],
        per_address: int = LINKS_PER_ADDRESS,
    ) -> None:
        self.id = id
        self.epoch = epoch
        self.exports = exports
        self.revision = 0  # of what we handle, subscribe to and export
        self.by_peer: dict[str, L] = {}
        self.peers: dict[str, P] = {}
        self.lines: set[L] = set()  # that are not over
        self.resets = 0  # streams that were broken off before a Hello
        self._per_address = per_address
        self._from: Counter[str] = Counter()  # lines by address
        self._faces: dict[L, P] = {}
        self._broken: dict[L, float] = {}  # since when
        self._uncertain: dict[L, list[str]] = {}  # ids that were told to routing, and to nobody else so far
        self._linked = linked
        self._tell = tell
        self._run = run
        self._kernel = kernel
        self._router = router
        self._now = now

    # ------------------------------------------------------------------------------------------ what goes out

    def introduction(self, protocol: int = PROTOCOL) -> Introduction:
        """What we say of ourselves."""
        router = self._router
        return Introduction(
            self.id,
            self.epoch,
            min(protocol, PROTOCOL),
            FEATURES,
            agent=AGENT,
            relay=router.relay,
            revision=self.revision,
            handles=tuple(sorted(name for name in router.offers if not name.startswith(RESERVED))),
            subscribes=tuple(sorted(router.subscriptions)),
            exports=self.exports,
        )

    def introduction_of(self, id: str) -> Introduction:
        """What a peer has said of itself."""
        peer = self.by_peer[id].session.peer
        assert peer is not None  # only who has introduced himself is there
        return peer

    def announce(self, **change: Any) -> None:
        """Tell all peers what has changed of that."""
        self.revision += 1
        for line in self.by_peer.values():
            line.session.announce(**change)
            line.wake()

    def send(self, to: str, message: Message) -> L:
        """Put a message on a link, and return that. Raises InvalidMessage if that cannot be."""
        line = self.by_peer.get(to)
        if line is None:  # gone, and routing has yet to hear of it
            raise QueueFull(f"the link to {to} was lost")
        session = line.session
        try:
            dropped = session.send(message)
        except QueueFull as error:
            if session.out.policy == DISCONNECT and session.full:
                session.goodbye(Code.RESOURCE_EXHAUSTED, str(error))
                self._gone(line, str(error))
                line.wake()
            raise
        if dropped:
            self._kernel.sig("dropped", (to, dropped, session.out.policy, self._now()))
        # What waits behind others leaves with them; but a cancel needs no credit, if they do.
        if session.out.is_first or session.full or message.kind is Kind.CANCEL:
            line.wake()
        if line.read_all:
            self.half_closed(line)
        return line

    def control(self, to: str, frame: Query | Answer | Reject) -> bool:
        """Put a question or an answer on a link; False if it takes no more."""
        line = self.by_peer.get(to)
        if line is None:
            return False
        line.wake()
        return line.session.control(frame)

    # ----------------------------------------------------------------------------------- what lines say to us

    def begun(self, line: L) -> None:
        """We have dialled, or somebody has dialled us."""
        if not line.session.dialled:
            if len(self.lines) >= LINKS:
                line.session.goodbye(Code.RESOURCE_EXHAUSTED, f"{self.id} has {LINKS} links already")
            elif line.address and self._from[line.address] >= self._per_address:
                reason = f"{self.id} has {self._per_address} links from this address already"
                line.session.goodbye(Code.RESOURCE_EXHAUSTED, reason)
        self.lines.add(line)
        self._from[line.address] += 1

    def over(self, line: L) -> None:
        """Nothing is left of it."""
        if line not in self.lines:
            return
        self.lines.discard(line)
        self._from[line.address] -= 1
        if not self._from[line.address]:
            del self._from[line.address]

    def heard(self, line: L, events: list[Event]) -> None:
        """What one frame meant, or the time that has passed."""
        now = self._now()
        sig = self._kernel.sig
        for event in events:
            if isinstance(event, Received):
                sig("arrived", (self._id_of(line), event.messages, now))
            elif isinstance(event, Opened):
                self._opened(line, event.peer)
            elif isinstance(event, Resumed):
                self._resumed(line, event)
            elif isinstance(event, Interest):
                sig("peer.interest", (self._id_of(line), event, now))
            elif isinstance(event, Query):
                sig("peer.asked", (self._id_of(line), event, now))
            elif isinstance(event, Answer):
                sig("peer.answered", (self._id_of(line), event, now))
            elif isinstance(event, Rejected):
                sig("rejected", Rejection(self._id_of(line), event.id, event.error, now))
            elif isinstance(event, Broken):
                self.broke(line, event.reason)
            elif isinstance(event, Missing):
                self._missing(line, event.unsent)
            elif isinstance(event, Forgotten):
                self._uncertain_of(line, event.uncertain)
            else:
                assert isinstance(event, Ended), event
        self._run()

    def _id_of(self, line: L) -> str:
        peer = line.session.peer
        return peer.exchange if peer is not None and self.by_peer.get(peer.exchange) is line else ""

    def _opened(self, line: L, peer: Introduction) -> None:
        known = self.by_peer.get(peer.exchange)
        session = line.session
        if known is not None and not session.dialled:
            events = known.session.rejoin(peer, self.introduction(peer.protocol), self._now())
            if events is not None:
                known.take_over(line)
                self.heard(known, events)
                return
            reason = f"{peer.exchange} is linked to {self.id} already"
            session.goodbye(Code.ALREADY_EXISTS, reason, retry_after_ms=round(CONTEST_SECONDS * 1_000))
            known.wake()
            return
        if known is not None:
            # Two who dial each other at the same time keep the link that the smaller id dialled.
            open_ = known.session.phase is not Phase.AWAY
            if open_ and (known.session.dialled or self.id > peer.exchange):
                session.goodbye(Code.ALREADY_EXISTS, f"{peer.exchange} is linked to {self.id} already")
                line.settled(peer.exchange)
                return
            self._part(known, "another link to it takes its place")
        if not session.dialled:
            session.welcome(self.introduction(peer.protocol))
        elif session.me.revision != self.revision:  # what changed since the Hello was written
            self._catch_up(session)
        self._faces[line] = self._linked(line, peer)
        self._tell("peer.connected", {"id": peer.exchange, "agent": peer.agent, "relay": peer.relay})
        self._present(line, peer)
        line.settled(peer.exchange)

    def _resumed(self, line: L, event: Resumed) -> None:
        """It was broken, and is there again. If the session was not recovered, another life of the peer begins."""
        peer, now = event.peer, self._now()
        if not event.recovered:
            known = self.by_peer.get(peer.exchange) is line  # else it calls itself as somebody else now
            self._lose(line, event.unsent, event.uncertain, expected=known)
        taken = self.by_peer.get(peer.exchange)
        if taken is not None and taken is not line:
            self._reroute(peer.exchange, event.unsent)
            self._forget(line)
            line.session.goodbye(Code.ALREADY_EXISTS, f"{peer.exchange} is linked to {self.id} already")
            return
        if line.session.me.revision != self.revision:
            self._catch_up(line.session)
        since = self._broken.get(line, now)
        self._present(line, peer)
        self._reroute(peer.exchange, event.unsent)
        value = {
            "id": peer.exchange,
            "recovered": event.recovered,
            "uncertain": self._uncertain.pop(line, []),
            "seconds": round(now - since, 6),
        }
        self._tell("peer.resumed", value)

    def _present(self, line: L, peer: Introduction) -> None:
        """The link is open: routing may use it."""
        self._broken.pop(line, None)
        self.by_peer[peer.exchange] = line
        self.peers[peer.exchange] = self._faces[line]
        self._kernel.sig(
            "peer.connect", Neighbour(peer.exchange, peer.relay, peer.handles, peer.subscribes, self._now())
        )

    def _catch_up(self, session: Session) -> None:
        said, now = session.me, self.introduction()
        session.announce(
            handles=sorted({*now.handles} - {*said.handles}),
            subscribes=sorted({*now.subscribes} - {*said.subscribes}),
            no_longer_handles=sorted({*said.handles} - {*now.handles}),
            no_longer_subscribes=sorted({*said.subscribes} - {*now.subscribes}),
            relay=now.relay,
        )

    def _part(self, line: L, reason: str) -> None:
        line.session.goodbye(Code.ALREADY_EXISTS, reason)
        self._gone(line, reason)
        line.wake()

    def late(self, line: L, expired: list[Message]) -> None:
        """Messages whose time ended before they could be written."""
        self._kernel.sig("expired", (expired, self._now()))
        self._run()

    def half_closed(self, line: L) -> None:
        """The other side will send no more, but reads: what it asked is still answered, then the link ends."""
        peer = line.session.peer
        routed = self._router.links.get(peer.exchange) if peer is not None else None
        if routed is None or self.by_peer.get(routed.id) is not line or not routed.came:
            line.session.goodbye()
            line.wake()

    # ------------------------------------------------------------------------------------ breaks, losses and ends

    def broke(self, line: L, reason: str) -> None:
        """The connection is gone, and the session is kept: the peer may be back soon."""
        id = self._id_of(line)
        if id and line not in self._broken:
            now = self._now()
            self._broken[line] = now
            self._kernel.sig("peer.away", (id, now))
            self._tell("peer.lost", {"id": id, "reason": reason})
            self._run()

    def _missing(self, line: L, unsent: list[Message]) -> None:
        """It is not back, and nobody should wait."""
        id = self._id_of(line)
        self.peers.pop(id, None)
        self._kernel.sig("peer.disconnect", Lost(id, unsent, self._now(), expected=line.session.dialled))
        self._reroute(id, unsent)

    def _reroute(self, id: str, unsent: list[Message]) -> None:
        if unsent:
            self._kernel.sig("reroute", (id, unsent, self._now()))

    def _uncertain_of(self, line: L, uncertain: list[str]) -> None:
        id = self._id_of(line)
        self._uncertain.setdefault(line, []).extend(uncertain)
        if uncertain:
            self._kernel.sig("uncertain", (id, uncertain, self._now()))

    def ended(self, line: L, reason: str, *, returns: bool) -> None:
        """The session is over. `returns`: it will be dialled again, for a new one."""
        self._gone(line, reason, returns=returns)

    def gave_up(self, line: L, reason: str) -> None:
        """It was broken or ended, and is not waited for any more."""
        peer = line.session.peer
        known = line in self._faces
        self._gone(line, reason)
        self._forget(line)
        if peer is not None and known:
            if peer.exchange not in self.by_peer:  # routing still expects it back
                self._kernel.sig("peer.disconnect", Lost(peer.exchange, [], self._now()))
            self._tell("peer.gave_up", {"id": peer.exchange, "reason": reason})
        self._run()

    def _forget(self, line: L) -> None:
        self._faces.pop(line, None)
        self._uncertain.pop(line, None)
        self._broken.pop(line, None)

    def _gone(self, line: L, reason: str, *, returns: bool = False) -> None:
        id = self._id_of(line)
        if not id:
            return
        uncertain, unsent = line.session.lost()
        was_broken = line in self._broken
        if returns:
            self._broken.setdefault(line, self._now())
        self._lose(line, unsent, uncertain, expected=returns)
        self._reroute(id, unsent)
        if not returns:
            self._forget(line)
        if not was_broken:
            self._tell("peer.lost", {"id": id, "reason": reason})
        self._run()

    def _lose(self, line: L, unsent: list[Message], uncertain: list[str], *, expected: bool) -> None:
        """One life of the peer is over."""
        id = next((id for id, known in self.by_peer.items() if known is line), "")
        if not id:
            return
        del self.by_peer[id]
        self.peers.pop(id, None)
        self._kernel.sig("peer.disconnect", Lost(id, unsent, self._now(), expected=expected))
        self._uncertain.setdefault(line, []).extend(uncertain)
        if uncertain:
            self._kernel.sig("uncertain", (id, uncertain, self._now()))
