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

_FRAMES = "- - Hello Welcome Batch Ack Credit Interest Query Answer Ping Pong Reject Goodbye".split()
_FRAMES = _FRAMES[1:]  # by the number of their field in Frame


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
        before = self._line.session.phase
        events = self._rejoin(peer, me, now)
        if events is None:
            both = before is Phase.OPENING
            self("refuses to be rejoined, for both dial" if both else "is contested", before)
        else:
            self("is rejoined, " + self._named(events[0]), before)
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


EVERY: tuple[str, ...] = ()
