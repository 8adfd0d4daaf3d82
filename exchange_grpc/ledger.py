"""The ledger: what happened here, and because of what.

Law: bounded, and without payloads. It keeps the newest `LEDGER_MESSAGES` messages that were emitted,
received or forwarded here, and what became of each; the oldest go first. A trace is answered from
it: everything with the same root. The answer is plain JSON, the shape of `TraceResponse` in
`proto/exchange/v1/service.proto`; `traces.py` puts those of several exchanges together.

Every message that passes is written down, and few are ever asked for. So an entry is one list, its
events behind it, and becomes a `Span` when it is looked at; and a message that nothing came of yet is a
family by itself, without a table of its members.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from .limits import LEDGER_EVENTS, LEDGER_MESSAGES, TRACE_ANSWER_BYTES
from .message import Hop, Kind, Message, Outcome, Trace, microseconds
from .patterns import is_traced
from .payload import encode_json

_GOOD_ENDS = (Outcome.HANDLED, Outcome.FORWARDED)
_REASON = 200  # characters kept of a reason: a peer may have written it

Entry = list[Any]  # id, name, kind, from, to, reply_to, root, causes, way, times; then the events
Event = tuple[float, Outcome, str, float, str]  # at, outcome, by, seconds, reason
_ROOT = 6
_CAUSES = 7
_EVENTS = 10


class Span:
    """What this exchange knows of one message."""

    __slots__ = ("causes", "events", "from_", "hops", "id", "kind", "name", "reply_to", "root", "to")

    def __init__(self, entry: Entry) -> None:
        self.id: str
        self.name: str
        self.kind: Kind
        self.from_: str
        self.to: str
        self.reply_to: str
        self.root: str
        self.causes: tuple[str, ...]
        (
            self.id, self.name, self.kind, self.from_, self.to, self.reply_to, self.root, self.causes, way, times,
            *events,
        ) = entry  # fmt: skip
        self.hops = tuple(map(Hop, way, times))
        self.events: list[Event] = events

    def was(self, outcome: Outcome, by: str) -> bool:
        """Whether this became of it, and by whom."""
        return any(event[1] is outcome and event[2] == by for event in self.events)

    def header(self) -> Message:
        """The message without what it carried."""
        trace = Trace(self.hops, self.causes, self.root)
        return Message(self.id, self.name, self.kind, self.from_, self.to, hop_trace=trace, reply_to=self.reply_to)


class Ledger:
    """What one exchange remembers of its messages."""

    def __init__(self, exchange: str, capacity: int = LEDGER_MESSAGES) -> None:
        self.exchange = exchange
        self.capacity = capacity
        self._entries: dict[str, Entry] = {}
        self._order: deque[str] = deque()  # of arrival; a dict is slow to say what its first is, once many have gone
        self._families: dict[str, dict[str, None]] = {}  # root -> ids in order of arrival, if it is more than the root
        self._cut: set[str] = set()  # roots of which something was forgotten, and something is left
        self.counts = dict.fromkeys(Outcome, 0)
        self.bad_end: Callable[[Span, Outcome, str, str], None] | None = None  # hears what did not end well

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, message: Message) -> None:
        """Remember that `message` was here. Traffic of the system is not remembered, but for what changes something."""
        id, name, entries = message.id, message.name, self._entries
        if id in entries or not is_traced(name):
            return
        root = message.root
        entries[id] = [
            id, name, message.kind, message.from_, message.to, message.reply_to,
            root, message.causes, message.way, message.times,
        ]  # fmt: skip
        self._order.append(id)
        if root != id or root in self._families:
            self._join(id, root)
        if len(self._order) > self.capacity:
            self._forget_oldest()

    def _join(self, id: str, root: str) -> None:
        family = self._families.get(root)
        if family is None:
            family = self._families[root] = {root: None} if root in self._entries else {}
        family[id] = None

    def find(self, id: str) -> Span | None:
        """What is known of the message `id`."""
        entry = self._entries.get(id)
        return None if entry is None else Span(entry)

    def record(
        self, id: str, at: float, outcome: Outcome, *, by: str = "", seconds: float = 0.0, reason: str = ""
    ) -> None:
        """Remember what became of the message `id`: `by` is its handler or the peer it was passed on to."""
        entry = self._entries.get(id)
        if entry is None:
            return
        if reason:
            reason = reason[:_REASON].encode("utf-8", "replace").decode()
        self.counts[outcome] += 1
        if self.bad_end is not None and outcome not in _GOOD_ENDS:
            self.bad_end(Span(entry), outcome, by, reason)
        if len(entry) < _EVENTS + LEDGER_EVENTS:
            entry.append((at, outcome, by, seconds, reason))
        else:
            self._cut.add(entry[_ROOT])

    def trace(self, id: str, root: str = "") -> dict[str, Any] | None:
        """Everything known here with the same root as the message `id`; None if nothing is.

        If it is too much for one answer, what led to `id` comes first.
        """
        entry = self._entries.get(id)
        root = entry[_ROOT] if entry is not None else root or id
        family = self._families.get(root)
        if family is None:
            if root not in self._entries:
                return None
            family = {root: None}
        said: dict[str, dict[str, Any]] = {}
        size = 0
        for member in dict.fromkeys((*self._lineage(id), *family)):
            span_said = self._said(Span(self._entries[member]))
            size += len(encode_json(span_said)) + 1
            if size > TRACE_ANSWER_BYTES:
                break
            said[member] = span_said
        spans = [said[member] for member in family if member in said]
        return {"root": root, "spans": spans, "cut": root in self._cut or len(spans) < len(family)}

    def _lineage(self, id: str) -> list[str]:
        """The message and its newest causes, as far back as they are known."""
        line: dict[str, None] = {}
        entry = self._entries.get(id)
        while entry is not None and entry[0] not in line:
            line[entry[0]] = None
            causes = map(self._entries.get, reversed(entry[_CAUSES]))
            entry = next((cause for cause in causes if cause is not None), None)
        return list(line)

    def _forget_oldest(self) -> None:
        id = self._order.popleft()
        root = self._entries.pop(id)[_ROOT]
        family = self._families.get(root)
        if family is None:  # it was all of it
            self._cut.discard(root)
            return
        del family[id]
        if family:
            self._cut.add(root)
        else:
            del self._families[root]
            self._cut.discard(root)

    def _said(self, span: Span) -> dict[str, Any]:
        return {
            "id": span.id,
            "name": span.name,
            "kind": f"KIND_{span.kind.name}",
            "from": span.from_,
            "to": span.to,
            "causes": list(span.causes),
            "hops": [{"exchange": hop.exchange, "at_us": microseconds(hop.at)} for hop in span.hops],
            "reply_to": span.reply_to,
            "events": [
                {
                    "exchange": self.exchange,
                    "at_us": microseconds(at),
                    "outcome": f"OUTCOME_{outcome.name}",
                    "by": by,
                    "duration_us": round(seconds * 1e6),
                    "reason": reason,
                }
                for at, outcome, by, seconds, reason in span.events
            ],
        }
