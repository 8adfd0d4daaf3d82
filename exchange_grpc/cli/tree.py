"""A trace as a tree for people, from the answer to `exchange.trace`.

An edge leads from a message to what it caused. A message with several causes hangs under the newest
(an answer: under what it answers), which is the order in which things happened. What a trace says was
claimed by others, so it may be incomplete or go in a circle: every message is drawn exactly once.
Times count from the first message, by the clock of whoever saw them.
"""

from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from .. import ExchangeError
from .console import CLIENT
from .pretty import date, duration, outcome, plain, word

DEPTH = 60  # levels: beyond that nobody follows the lines, and a chain of thousands would fill the disk

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Event:
    """Something that happened to a message at one exchange."""

    exchange: str
    at_us: int
    outcome: str
    by: str
    duration_us: int
    reason: str


@dataclass(slots=True, frozen=True)
class Span:
    """What is known of one message."""

    id: str
    name: str
    kind: str
    from_: str
    to: str
    causes: list[str]
    hops: list[tuple[str, int]]
    reply_to: str
    events: list[Event]

    @property
    def made(self) -> int:
        """When, in microseconds; 0 if it is not known."""
        return self.hops[0][1] if self.hops else 0

    def above(self, known: Container[str]) -> str:
        """What it hangs under, if that is known."""
        for id in (self.reply_to, *reversed(self.causes)):
            if id in known and id != self.id:
                return id
        return ""


@dataclass(slots=True, frozen=True)
class Trace:
    """The messages with one root, and who could not be asked for more of them."""

    root: str
    spans: dict[str, Span]
    cut: bool
    missing: list[tuple[str, str]]


def read(answer: Any) -> Trace:
    """What an exchange answered to `exchange.trace`. Raises ExchangeError if that is no trace."""
    spans = [_span(span) for span in _get(answer, "spans", list[Any]())]
    missing = [(_get(lost, "exchange", ""), _get(lost, "reason", "")) for lost in _get(answer, "missing", list[Any]())]
    return Trace(_get(answer, "root", ""), {span.id: span for span in spans}, _get(answer, "cut", False), missing)


def _span(of: Any) -> Span:
    causes = _get(of, "causes", list[Any]())
    if not all(isinstance(cause, str) for cause in causes):
        raise ExchangeError("the answer is no trace: what stands in causes is no id")
    return Span(
        id=_get(of, "id", ""),
        name=_get(of, "name", ""),
        kind=word(of.get("kind", "")),
        from_=_get(of, "from", ""),
        to=_get(of, "to", ""),
        causes=causes,
        hops=[(_get(hop, "exchange", ""), _get(hop, "at_us", 0)) for hop in _get(of, "hops", list[Any]())],
        reply_to=_get(of, "reply_to", ""),
        events=[_event(event) for event in _get(of, "events", list[Any]())],
    )


def _event(of: Any) -> Event:
    return Event(
        exchange=_get(of, "exchange", ""),
        at_us=_get(of, "at_us", 0),
        outcome=word(of.get("outcome", "")),
        by=_get(of, "by", ""),
        duration_us=_get(of, "duration_us", 0),
        reason=_get(of, "reason", ""),
    )


def _get(of: Any, key: str, default: T) -> T:
    """What stands under `key`, which is of the type of `default`."""
    found = of.get(key, default) if isinstance(of, dict) else None
    if not isinstance(found, type(default)):
        raise ExchangeError(f"the answer is no trace: {key} is missing, or something else")
    return found


def draw(trace: Trace, asked: str = "") -> Iterator[str]:
    """The lines of the tree, styled for a terminal; the message `asked` is pointed out."""
    spans = trace.spans
    below: dict[str, list[str]] = defaultdict(list)
    for span in sorted(spans.values(), key=lambda span: span.made):
        below[span.above(spans)].append(span.id)
    start = min((at_us for span in spans.values() for _, at_us in span.hops), default=0)
    yield f"{len(spans)} message{'s' * (len(spans) != 1)} from {date(start)}"
    if trace.root not in spans:
        yield f"(where it all began is not known here: {plain(trace.root)})"
    drawn: set[str] = set()
    for top in (*below[""], *spans):  # then those whose causes go in a circle
        yield from _branch(top, spans, below, drawn, start, asked)
    if trace.cut:
        yield "(some of it was forgotten: ledgers and answers are bounded)"
    yield from unasked(trace)


def unasked(trace: Trace) -> Iterator[str]:
    """Who may know more: all but commands like this one, which are over by now."""
    for exchange, reason in trace.missing:
        if not exchange.startswith(CLIENT):
            yield f"({plain(exchange)} may know more, and could not be asked: {plain(reason)})"


def _branch(
    top: str,
    spans: dict[str, Span],
    below: dict[str, list[str]],
    drawn: set[str],
    start: int,
    asked: str,
) -> Iterator[str]:
    # A stack, not recursion: a chain of causes may be long. (id, what stands left of it, its own corner, level)
    stack = [(top, "", "", 0)]
    while stack:
        id, left, corner, level = stack.pop()
        if id in drawn:
            continue
        drawn.add(id)
        if level == DEPTH:
            yield f"{left}{corner}... deeper: see --json"
        children = [child for child in below[id] if child not in drawn]
        inner = left + {"├─ ": "│  ", "└─ ": "   "}.get(corner, "")
        if level < DEPTH:
            mark = click.style("  <- asked for", fg="cyan") if id == asked and id != top else ""
            yield f"{left}{corner}{head(spans[id])}{mark}"
            for line in _details(spans[id], start):
                yield f"{inner}{'│  ' if children else '   '}{line}"
        for child in reversed(children):
            stack.append((child, inner, "└─ " if child == children[-1] else "├─ ", level + 1))


def head(span: Span) -> str:
    """A message in one line: what it is, from whom to whom."""
    ran = (event.exchange for event in span.events if event.outcome == "handled" or event.duration_us)
    to = span.to or next(ran, "")
    name = click.style(plain(span.name), bold=True)
    way = f"{plain(span.from_)} → {plain(to) or 'whoever takes it'}"
    return f"{span.kind} {name}  {way}  {click.style(plain(span.id), dim=True)}"


def _details(span: Span, start: int) -> Iterator[str]:
    yield "way: " + " → ".join(f"{plain(exchange)} {_since(at_us, start)}" for exchange, at_us in span.hops)
    for event in span.events:
        yield f"{plain(event.exchange)} {_since(event.at_us, start)} {became(event)}"


def became(event: Event) -> str:
    """What became of a message at one exchange."""
    text = outcome(event.outcome)
    if event.by:
        text += f" {'to' if event.outcome == 'forwarded' else 'by'} {plain(event.by)}"
    if event.duration_us:
        text += f" in {duration(event.duration_us)}"
    if event.reason:
        text += f": {plain(event.reason)}"
    return text


def _since(at_us: int, start: int) -> str:
    # Another machine's clock may be behind: then it is a minus, and true to what was said.
    return f"{'-' if at_us < start else '+'}{duration(abs(at_us - start))}"
