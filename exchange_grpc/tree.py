"""A trace as a tree for people, from `exchange.v1.TraceResponse`.

An edge leads from a message to what it caused. A message with several causes hangs under the newest
(an answer: under what it answers), which is the order in which things happened. What a trace says was
claimed by others, so it may be incomplete or go in a circle: every message is drawn exactly once.
Times count from the first message, by the clock of whoever saw them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import click
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from exchange.v1 import message_pb2, service_pb2

from .errors import ExchangeError

DEPTH = 60  # levels: beyond that nobody follows the lines, and a chain of thousands would fill the disk

_GOOD = ("handled", "forwarded")


def plain(text: str) -> str:
    """`text` of a stranger for a terminal: on one line, and without what would command it."""
    return "".join(c if c.isprintable() else " " for c in text)


def word(enum: Any, number: int) -> str:
    """The word for an enum's number: `request` for KIND_REQUEST. A number from the future stays one."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else str(value.name.partition("_")[2]).lower()


def read(answer: Any, exchange: str) -> service_pb2.TraceResponse:
    """What `exchange` answered to `exchange.trace`. Raises ExchangeError if that is no trace."""
    try:
        if isinstance(answer, dict):
            return ParseDict(answer, service_pb2.TraceResponse(), ignore_unknown_fields=True)
    except (ParseError, AttributeError, TypeError, ValueError):
        pass
    raise ExchangeError(f"the answer of {exchange} is no trace")


def said(trace: service_pb2.TraceResponse) -> dict[str, Any]:
    """The opposite of `read`: plain JSON, with times as numbers."""
    answer = MessageToDict(trace, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    for span in answer["spans"]:
        for moment in (*span["hops"], *span["events"]):
            moment.update({key: int(moment[key]) for key in ("at_us", "duration_us") if key in moment})
    return answer


def passed(trace: service_pb2.TraceResponse) -> set[str]:
    """The ids of the exchanges where the messages were, or to which they were passed on."""
    found: set[str] = set()
    for span in trace.spans:
        found.update(hop.exchange for hop in span.hops)
        found.update(event.by for event in span.events if _outcome(event) == "forwarded")
    return found - {""}


def merge(trace: service_pb2.TraceResponse, other: service_pb2.TraceResponse) -> None:
    """Add to `trace` what another exchange knows of the same: longer ways, and what happened there."""
    if other.root != trace.root:
        return
    spans = {span.id: span for span in trace.spans}
    for span in other.spans:
        known = spans.get(span.id)
        if known is None:
            trace.spans.append(span)
            continue
        if len(span.hops) > len(known.hops):
            del known.hops[:]
            known.hops.extend(span.hops)
        known.events.extend(span.events)
        known.events.sort(key=lambda event: event.at_us)
    trace.cut = trace.cut or other.cut


def draw(trace: service_pb2.TraceResponse, asked: str = "") -> Iterator[str]:
    """The lines of the tree, styled for a terminal; the message `asked` is pointed out."""
    spans = {span.id: span for span in trace.spans}
    below: dict[str, list[str]] = defaultdict(list)
    for span in sorted(spans.values(), key=_made):
        below[_above(span, spans)].append(span.id)
    start = min((hop.at_us for span in trace.spans for hop in span.hops), default=0)
    yield f"{len(spans)} message{'s' * (len(spans) != 1)} from {_date(start)}"
    if trace.root not in spans:
        yield f"(where it all began is not known here: {plain(trace.root)})"
    drawn: set[str] = set()
    for top in (*below[""], *spans):  # then those whose causes go in a circle
        yield from _branch(top, spans, below, drawn, start, asked)
    if trace.cut:
        yield "(some of it was forgotten: the ledger is bounded)"


def _made(span: service_pb2.Span) -> int:
    return span.hops[0].at_us if span.hops else 0


def _above(span: service_pb2.Span, spans: Iterable[str]) -> str:
    for id in (span.reply_to, *reversed(span.causes)):
        if id in spans and id != span.id:
            return id
    return ""


def _branch(
    top: str,
    spans: dict[str, service_pb2.Span],
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
            yield f"{left}{corner}{_head(spans[id])}{mark}"
            for line in _details(spans[id], start):
                yield f"{inner}{'│  ' if children else '   '}{line}"
        for child in reversed(children):
            stack.append((child, inner, "└─ " if child == children[-1] else "├─ ", level + 1))


def _head(span: service_pb2.Span) -> str:
    kind = word(message_pb2.Kind, span.kind)
    from_ = getattr(span, "from")
    to = span.to or next((event.exchange for event in span.events if _outcome(event) == "handled"), "")
    name = click.style(plain(span.name), bold=True)
    return f"{kind} {name}  {plain(from_)} → {plain(to) or 'whoever takes it'}  {click.style(plain(span.id), dim=True)}"


def _details(span: service_pb2.Span, start: int) -> Iterator[str]:
    yield "way: " + " → ".join(f"{plain(hop.exchange)} {_since(hop.at_us, start)}" for hop in span.hops)
    for event in span.events:
        outcome = _outcome(event)
        text = click.style(outcome, fg="green" if outcome in _GOOD else "red")
        if event.by:
            text += f" {'to' if outcome == 'forwarded' else 'by'} {plain(event.by)}"
        if event.duration_us:
            text += f" in {_span_of(event.duration_us)}"
        if event.reason:
            text += f": {plain(event.reason)}"
        yield f"{plain(event.exchange)} {_since(event.at_us, start)} {text}"


def _outcome(event: service_pb2.Event) -> str:
    return word(message_pb2.Outcome, event.outcome)


def _since(at_us: int, start: int) -> str:
    # Another machine's clock may be behind: then it is a minus, and true to what was said.
    return f"{'-' if at_us < start else '+'}{_span_of(abs(at_us - start))}"


def _span_of(microseconds: int) -> str:
    return f"{microseconds / 1e6:.2f} s" if microseconds >= 1_000_000 else f"{microseconds / 1e3:.1f} ms"


def _date(at_us: int) -> str:
    try:
        return datetime.fromtimestamp(at_us / 1e6).astimezone().isoformat(" ", "milliseconds")
    except (ValueError, OverflowError, OSError):  # a claim that no calendar has
        return f"{at_us} us"
