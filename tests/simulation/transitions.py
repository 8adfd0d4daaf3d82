"""What sessions go through: in which phase what befell them, and in which phase they were then.

A transition is named `open: Broken by silence -> away`. `EVERY` are those that a run of all seeds must have taken.
"""

from collections import Counter
from typing import TYPE_CHECKING

from exchange_grpc.errors import Code
from exchange_grpc.frames import Introduction
from exchange_grpc.peer import Broken, Ended, Event, Opened, Phase, Resumed

if TYPE_CHECKING:
    from .line import Line

_FRAMES = (  # by the number of their field in Frame, from 1
    "", "Hello", "Welcome", "Batch", "Ack", "Credit",
    "Interest", "Query", "Answer", "Ping", "Pong", "Reject", "Goodbye",
)  # fmt: skip


class Count:
    """Counts what befalls one line."""

    def __init__(self, counter: Counter[str], line: "Line") -> None:
        self._counter = counter
        self._line = line
        self._rejoin = line.session.rejoin
        line.session.rejoin = self._rejoined  # type: ignore[method-assign]  # nobody else tells of it

    def __call__(self, what: str, before: Phase) -> None:
        self._counter[f"{before.value}: {what} -> {self._line.session.phase.value}"] += 1

    def heard(self, data: bytes, before: Phase, events: list[Event]) -> None:
        """A frame came in, and meant this."""
        for event in events:
            self(self._named(event), before)
        if not events:
            self(f"{_FRAMES[data[0] >> 3]} without effect" if data else "nothing", before)

    def ticked(self, before: Phase, events: list[Event]) -> None:
        """Time passed, and meant this."""
        for event in events:
            self(self._named(event), before)

    def _rejoined(self, peer: Introduction, me: Introduction, now: float) -> list[Event] | None:
        session = self._line.session
        before, former = session.phase, bool(session._former_token) and peer.token == session._former_token
        events = self._rejoin(peer, me, now)
        if events is not None:
            self(f"is rejoined{' by the former token' if former else ''}, {self._named(events[0])}", before)
        elif before is Phase.OPENING:
            self("refuses to be rejoined, for both dial", before)
        else:
            self("is contested" if before is Phase.OPEN else "cannot be rejoined", before)
        return events

    def _named(self, event: Event) -> str:
        if isinstance(event, Opened):
            return f"Opened, {'dialled' if self._line.session.dialled else 'was dialled'}"
        if isinstance(event, Resumed):
            return f"Resumed {'recovered' if event.recovered else 'anew'}"
        if isinstance(event, Broken):
            return f"Broken by {_cause(event.reason)}"
        if isinstance(event, Ended):
            mine = event.by == self._line.session.me.exchange
            return f"Ended by {'us' if mine else 'the peer'}, {Code(event.code).name}"
        return type(event).__name__


def _cause(reason: str) -> str:
    if "claims its id" in reason:
        return "silence while contested"
    if reason.startswith("nothing was heard"):
        return "silence"
    if reason.startswith("message "):
        return "a gap"
    if reason.startswith("no introduction"):
        return "a silent handshake"
    return "a refusal"


EVERY = (
    "away: Forgotten -> away",
    "away: Missing -> away",
    "away: closes -> away",
    "away: dials again -> away",
    "away: given up -> away",
    "away: is rejoined by the former token, Resumed recovered -> open",
    "away: is rejoined, Resumed anew -> open",
    "away: is rejoined, Resumed recovered -> open",
    "away: policy disconnect -> closed",
    "away: policy drop_newest -> away",
    "away: policy drop_oldest -> away",
    "closed: disconnected -> closed",
    "closed: revived -> closed",
    "closing: Batch without effect -> closing",
    "closing: Ended by the peer, ALREADY_EXISTS -> closed",
    "closing: Ended by the peer, OK -> closed",
    "closing: Ended by us, UNAVAILABLE -> closed",
    "closing: Received -> closing",
    "closing: cannot be rejoined -> closing",
    "closing: closes -> closing",
    "closing: disconnected -> closed",
    "open: Batch without effect -> open",
    "open: Broken by a gap -> away",
    "open: Broken by silence -> away",
    "open: Broken by silence while contested -> away",
    "open: Ended by the peer, ALREADY_EXISTS -> closed",
    "open: Ended by the peer, DATA_LOSS -> closed",
    "open: Ended by the peer, OK -> closed",
    "open: Ended by the peer, RESOURCE_EXHAUSTED -> closed",
    "open: Ended by the peer, UNAVAILABLE -> closed",
    "open: Ended by us, DATA_LOSS -> closed",
    "open: Missing -> away",
    "open: Received -> open",
    "open: Rejected -> open",
    "open: closes -> open",
    "open: disconnected -> away",
    "open: disconnected -> closed",
    "open: is contested -> open",
    "open: is rejoined, Resumed anew -> open",
    "open: is rejoined, Resumed recovered -> open",
    "open: policy disconnect -> closing",
    "open: policy drop_newest -> open",
    "open: policy drop_oldest -> open",
    "open: queue is full -> open",
    "opening: Broken by a refusal -> away",
    "opening: Broken by a silent handshake -> away",
    "opening: Ended by the peer, ALREADY_EXISTS -> closed",
    "opening: Ended by us, DEADLINE_EXCEEDED -> closed",
    "opening: Opened, dialled -> open",
    "opening: Opened, was dialled -> opening",
    "opening: Resumed anew -> open",
    "opening: Resumed recovered -> open",
    "opening: closes -> opening",
    "opening: disconnected -> away",
    "opening: disconnected -> closed",
    "opening: refuses to be rejoined, for both dial -> opening",
)
