"""`exchange state get`, `set` and `watch`: what an exchange shares of its state."""

import itertools
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any

import click

from .console import (
    emit,
    end_when_told,
    linked,
    max_option,
    of_option,
    on_terminal,
    read_value,
    run,
    show,
    url_option,
)
from .pretty import table
from .pretty import value as shown

COLUMNS = {"NAME": "name", "VALUE": "value", "REVISION": "revision", "CAUSED BY": "cause"}


@click.group()
def state() -> None:
    """Read, set and watch the state that an exchange shares.

    \b
    exchange state get total
    exchange state set goal 20
    exchange state watch total mean

    An exchange shares the names that it exports, and takes values for those that it accepts. A name is one
    line: {"name", "value", "revision", "cause", "transaction", "epoch", "exchange"}. The revision counts its
    changes; what has the same transaction changed at once; `exchange why NAME` tells more of the cause.
    """


@state.command()
@url_option
@of_option
@click.option("--value", "bare", is_flag=True, help="The values alone.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def get(names: tuple[str, ...], url: str, of: str, bare: bool) -> None:
    """Print exported names as they are now.

    \b
    exchange state get total
    exchange state get total mean --value
    """
    found = run(_get(url, of, names))
    if bare:
        emit(*(line["value"] for line in found))
    else:
        _print(found)


async def _get(url: str, of: str, names: Iterable[str]) -> list[dict[str, Any]]:
    async with linked(url) as (app, peer):
        remote = app.state_of(of or peer.id)
        return [_line(await remote.get(name)) for name in names]


@state.command("set")
@url_option
@of_option
@click.option("--expect", type=click.IntRange(0), metavar="REVISION", help="Only if it is at this revision now.")
@click.argument("name")
@click.argument("value")
def set_(name: str, value: str, url: str, of: str, expect: int | None) -> None:
    """Set an accepted name, and print it.

    \b
    exchange state set goal 20
    exchange state set goal 30 --expect 1

    VALUE is JSON; - reads it from stdin. With --expect nobody else's change is overwritten unseen: the exit
    code is 6 if the name has another revision.
    """
    _print([run(_set(url, of, name, read_value(value), expect))])


async def _set(url: str, of: str, name: str, value: Any, expect: int | None) -> dict[str, Any]:
    async with linked(url) as (app, peer):
        return _line(await app.state_of(of or peer.id).set(name, value, expected=expect))


@state.command()
@url_option
@of_option
@max_option
@click.argument("names", nargs=-1, metavar="[NAME...]")
def watch(names: tuple[str, ...], url: str, of: str, most: int | None) -> None:
    """Print exported names as they are, then every change, until Ctrl-C. Without a NAME: all of them.

    \b
    exchange state watch total mean
    exchange state watch goal --max 1
    exchange state watch | jq -r '"\\(.name) is \\(.value)"'

    Each value is one line, with "snapshot": true if it is told because you have just come. No change is
    left out, and those with the same transaction happened at once.
    """
    end_when_told()
    run(_watch(url, of, names, most))


async def _watch(url: str, of: str, names: tuple[str, ...], most: int | None) -> None:
    async with linked(url) as (app, peer):
        counted = itertools.count(1)
        changes: Any = app.state_of(of or peer.id).watch(*names)
        async with aclosing(changes):
            async for change in changes:
                line = {**_line(change), "snapshot": change.snapshot}
                if on_terminal():
                    show([f"{click.style(change.name, bold=True)}  {shown(change.value)}  {change.cause}".rstrip()])
                else:
                    emit(line)
                if next(counted) == most:
                    return


def _line(of: Any) -> dict[str, Any]:
    line: dict[str, Any] = of._asdict()
    del line["snapshot"]
    return line


def _print(lines: list[dict[str, Any]]) -> None:
    if on_terminal():
        show(table([{**line, "value": shown(line["value"])} for line in lines], COLUMNS))
    else:
        emit(*lines)
