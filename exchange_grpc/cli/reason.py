"""Why a value is as it is, or what became of a message: lines for people from the answer to `exchange.why`.

    mean is 8.0, and was null: it was computed anew after ...    the answer, in one sentence

    mean     is 8.0, at hub (revision 1)
    change   null → 8.0 (from count, total), in transaction 1
    from     count 0 → 1
    from     total 0 → 8
    when     2025-01-31 12:00:00.123+00:00
    handler  compute_sum
    message  request compute.sum  cli-9 → hub  cli-9.17.1
    cause    request shop.pay  till → shop  till.17.4
    root     request shop.open  till → shop  till.17.1

Of a message: what became of it, and the tree.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import click

from .. import ExchangeError
from . import tree
from .pretty import date, plain, value

LONGEST = 50  # causes in a line: the tree has them all


def tell(answer: Mapping[str, Any]) -> Iterator[str]:
    """The lines, styled for a terminal. Raises ExchangeError if it is no such answer."""
    told, key = answer.get("answer"), answer.get("key")
    if not isinstance(told, str) or not isinstance(key, str):
        raise ExchangeError("the answer does not say why: is the exchange of another version?")
    yield click.style(plain(told), bold=True)
    trace = tree.read(answer["trace"]) if answer.get("trace") else None
    yield ""
    if "revision" in answer:
        rows = [*_facts(answer, key, trace)]
        width = max(len(label) for label, _ in rows)
        for label, text in rows:
            yield f"{click.style(label.ljust(width), dim=True)}  {text}"
        yield from tree.unasked(trace) if trace is not None else ()
    elif trace is not None:
        yield from tree.draw(trace, key)


def _facts(answer: Mapping[str, Any], key: str, trace: tree.Trace | None) -> Iterator[tuple[str, str]]:
    at, revision = plain(str(answer.get("exchange", ""))), plain(str(answer.get("revision", 0)))
    now = value(answer["value"]) if "value" in answer else "what JSON cannot say"
    yield plain(key), f"is {now}, at {at} (revision {revision})"
    transaction = answer.get("transaction")
    if not isinstance(transaction, dict):
        return
    listed = transaction.get("changes")
    changes = [change for change in listed if isinstance(change, dict)] if isinstance(listed, list) else []
    mine, others = changes[:1], changes[1:]
    yield "change", f"{_change(mine[0]) if mine else ''}, in transaction {plain(str(transaction.get('number', '')))}"
    for change in others:
        yield "from", f"{plain(str(change.get('name', '')))} {_change(change)}"
    yield "when", date(transaction.get("at_us"))
    if transaction.get("handler"):
        yield "handler", plain(str(transaction["handler"]))
    if transaction.get("cause"):
        yield from _chain(str(transaction["cause"]), trace)


def _change(of: Mapping[str, Any]) -> str:
    because = of.get("because")
    names = [plain(str(name)) for name in because] if isinstance(because, list) else []
    source = f" (from {', '.join(names)})" if names else " (computed)" if of.get("computed") else ""
    return f"{value(of.get('old'))} → {value(of.get('new'))}{source}"


def _chain(cause: str, trace: tree.Trace | None) -> Iterator[tuple[str, str]]:
    """The message, and what stands behind it, to where it all began."""
    spans = {} if trace is None else trace.spans
    id, label, seen = cause, "message", set[str]()
    while id not in seen and len(seen) < LONGEST:
        seen.add(id)
        span = spans.get(id)
        yield label, f"{plain(id)}, of which no more is known" if span is None else tree.head(span)
        causes = [] if span is None else span.causes
        above = next((cause for cause in reversed(causes) if cause in spans), next(reversed(causes), ""))
        if not above:
            return
        id, label = above, "root" if trace is not None and above == trace.root else "cause"
    yield "cause", "... longer: see --json"
