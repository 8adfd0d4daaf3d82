"""`exchange describe`, `peers`, `routes`, `handlers` and `stats`: what an exchange says about itself."""

from collections.abc import Iterator
from typing import Any

import click

from .console import ask, emit, of_option, on_terminal, rows_of, run, show, url_option
from .pretty import listing, plain, table

PEERS = {
    "ID": "id", "AGENT": "agent", "RELAYS": "relay", "PENDING": "pending",
    "HANDLES": "handles", "SUBSCRIBES": "subscribes", "EXPORTS": "exports",
}  # fmt: skip
ROUTES = {"KIND": "kind", "TARGET": "target", "VIA": "via", "HOPS": "hops"}
# The lists in what an exchange says of its functions, each with its columns.
FUNCTIONS = {
    "handlers": {
        "HANDLER OF": "name", "FUNCTION": "function", "RUNNING": "running", "WAITING": "waiting",
        "CALLS": "calls", "FAILED": "failed", "SECONDS": "seconds",
    },
    "listeners": {"LISTENER TO": "name", "FUNCTION": "function", "PEER": "peer"},
    "subscribers": {"SUBSCRIBER TO": "pattern", "FUNCTION": "function"},
    "observers": {"OBSERVER OF": "pattern", "FUNCTION": "function", "MISSED": "missed"},
}  # fmt: skip


@click.command()
@url_option
@of_option
def describe(url: str, of: str) -> None:
    """Print what the exchange is, handles, exports and is linked to.

    \b
    exchange describe
    exchange describe | jq -r .interest.handles[]

    One JSON object, or a list on a terminal.
    """
    me, answer = run(ask(url, "exchange.describe", of=of))
    if isinstance(answer.get("peers"), list):
        answer["peers"] = [peer for peer in answer["peers"] if peer != me]
    _print(answer)


@click.command()
@url_option
@of_option
def stats(url: str, of: str) -> None:
    """Print what the exchange counts, and what it uses.

    \b
    exchange stats
    exchange stats | jq .outcomes.unhandled

    Messages and what became of them, what waits, what runs, and the process. One JSON object, or a list on a
    terminal. The counts begin with the exchange.
    """
    _print(run(ask(url, "exchange.stats", of=of))[1])


def _print(answer: dict[str, Any]) -> None:
    if on_terminal():
        show(listing(answer))
    else:
        emit(answer)


@click.command()
@url_option
@of_option
def peers(url: str, of: str) -> None:
    """Print who is linked to the exchange.

    \b
    exchange peers
    exchange peers | jq -r .id

    On a terminal it is a table, elsewhere one JSON object per line.
    """
    me, answer = run(ask(url, "exchange.peers", of=of))
    found = [peer for peer in rows_of(answer, "peers") if peer.get("id") != me]
    if not on_terminal():
        emit(*found)
    elif found:
        show(table(found, PEERS))
    else:
        show([f"nobody else is linked to {plain(str(answer.get('exchange')))}"])


@click.command()
@url_option
@of_option
@click.argument("target", required=False)
def routes(target: str | None, url: str, of: str) -> None:
    """Print where the exchange passes on what.

    \b
    exchange routes
    exchange routes compute.sum
    exchange routes | jq -r 'select(.hops > 1) | .target'

    TARGET is a name or an exchange: then only the way there. On a terminal it is a table, elsewhere one JSON
    object per line. Hops 0 is the exchange itself, 1 the
    peer that it goes via; more was found out, or learned from what passed.
    """
    me, answer = run(ask(url, "exchange.routes", None if target is None else {"target": target}, of))
    found = [route for route in rows_of(answer, "routes") if route.get("target") != me]
    if not on_terminal():
        emit(*found)
    elif found:
        show(table(found, ROUTES))
    else:
        show(["it knows no way, and would ask its peers"])
    if answer.get("cut"):
        click.echo("there are more: name a TARGET", err=True)


@click.command()
@url_option
@of_option
def handlers(url: str, of: str) -> None:
    """Print which functions run in the exchange, and how often.

    \b
    exchange handlers
    exchange handlers | jq 'select(.kind == "handler" and .failed > 0)'

    On a terminal there are tables, elsewhere one JSON object per line, with its kind: a handler, a
    listener, a subscriber or an observer.
    """
    _, answer = run(ask(url, "exchange.handlers", of=of))
    if on_terminal():
        show(_tables(answer))
        return
    for key in FUNCTIONS:
        emit(*({"kind": key.removesuffix("s"), **row} for row in rows_of(answer, key)))


def _tables(answer: dict[str, Any]) -> Iterator[str]:
    some = False
    for key, columns in FUNCTIONS.items():
        found = rows_of(answer, key)
        if not found:
            continue
        if some:
            yield ""
        yield from table(found, columns)
        some = True
    if not some:
        yield f"nothing runs in {plain(str(answer.get('exchange')))}"
