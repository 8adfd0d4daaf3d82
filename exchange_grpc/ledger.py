"""The ledger: what happened here, and because of what.

Law: bounded, and without payloads. It keeps the newest `LEDGER_MESSAGES` messages that were emitted,
received or forwarded here, and what became of each; the oldest go first. A trace is answered from
it: everything with the same root. The answer is plain JSON, the shape of `TraceResponse` in
`proto/exchange/v1/service.proto`; `traces.py` puts those of several exchanges together.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from .limits import LEDGER_EVENTS, LEDGER_MESSAGES, TRACE_ANSWER_BYTES
from .message import Message, Outcome, Trace, microseconds
from .patterns import is_traced
from .payload import encode_json

_REASON = 200  # characters kept of a reason: a peer may have written it


class Span:
    """What this exchange knows of one message."""

    __slots__ = ("causes", "events", "from_", "hops", "id", "kind", "name", "reply_to", "root", "to")

    def __init__(self, message: Message) -> None:
        self.id = message.id
        self.name = message.name
        self.kind = message.kind
        self.from_ = message.from_
        self.to = message.to
        self.causes = message.causes
        self.hops = message.hops
        self.reply_to = message.reply_to
        self.root = message.root
        self.events: list[tuple[float, Outcome, str, float, str]] = []  # at, outcome, by, seconds, reason

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
        self._spans: OrderedDict[str, Span] = OrderedDict()
        self._families: dict[str, dict[str, None]] = {}  # root -> ids, in order of arrival
        self._cut: set[str] = set()  # roots of which something was forgotten, and something is left
        self.counts = dict.fromkeys(Outcome, 0)
        self.bad_end: Callable[[Span, Outcome, str, str], None] | None = None  # hears what did not end well

    def __len__(self) -> int:
        return len(self._spans)

    def note(self, message: Message) -> None:
        """Remember that `message` was here. Traffic of the system is not remembered, but for what changes something."""
        if message.id in self._spans or not is_traced(message.name):
            return
        span = self._spans[message.id] = Span(message)
        self._families.setdefault(span.root, {})[span.id] = None
        if len(self._spans) > self.capacity:
            self._forget_oldest()

    def find(self, id: str) -> Span | None:
        """What is known of the message `id`."""
        return self._spans.get(id)

    def record(
        self, id: str, at: float, outcome: Outcome, *, by: str = "", seconds: float = 0.0, reason: str = ""
    ) -> None:
        """Remember what became of the message `id`: `by` is its handler or the peer it was passed on to."""
        span = self._spans.get(id)
        if span is None:
            return
        reason = reason[:_REASON].encode("utf-8", "replace").decode()
        self.counts[outcome] += 1
        if self.bad_end is not None and outcome > Outcome.FORWARDED:
            self.bad_end(span, outcome, by, reason[:_REASON])
        if len(span.events) < LEDGER_EVENTS:
            span.events.append((at, outcome, by, seconds, reason[:_REASON]))
        else:
            self._cut.add(span.root)

    def trace(self, id: str, root: str = "") -> dict[str, Any] | None:
        """Everything known here with the same root as the message `id`; None if nothing is.

        If it is too much for one answer, what led to `id` comes first.
        """
        span = self._spans.get(id)
        root = span.root if span is not None else root or id
        family = self._families.get(root)
        if family is None:
            return None
        said: dict[str, dict[str, Any]] = {}
        size = 0
        for member in dict.fromkeys((*self._lineage(id), *family)):
            span_said = self._said(self._spans[member])
            size += len(encode_json(span_said)) + 1
            if size > TRACE_ANSWER_BYTES:
                break
            said[member] = span_said
        spans = [said[member] for member in family if member in said]
        return {"root": root, "spans": spans, "cut": root in self._cut or len(spans) < len(family)}

    def _lineage(self, id: str) -> list[str]:
        """The message and its newest causes, as far back as they are known."""
        line: dict[str, None] = {}
        span = self._spans.get(id)
        while span is not None and span.id not in line:
            line[span.id] = None
            span = next((self._spans[cause] for cause in reversed(span.causes) if cause in self._spans), None)
        return list(line)

    def _forget_oldest(self) -> None:
        id, span = self._spans.popitem(last=False)
        family = self._families[span.root]
        del family[id]
        if family:
            self._cut.add(span.root)
        else:
            del self._families[span.root]
            self._cut.discard(span.root)

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
