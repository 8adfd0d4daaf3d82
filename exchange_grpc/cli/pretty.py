"""How things look to a person: one line each, in columns, with colours that say good or bad."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import click
import orjson

WIDE = 60  # characters of a value on a terminal; the whole of it is in the JSON

_GOOD = ("handled", "forwarded")


def plain(text: str) -> str:
    """`text` of a stranger for a terminal: on one line, and without what would command it."""
    return "".join(c if c.isprintable() else " " for c in text)


def word(name: Any) -> str:
    """The word for an enum as JSON says it: `request` for KIND_REQUEST. A number from the future stays one."""
    text = str(name)
    return plain(text.partition("_")[2].lower() if "_" in text else text)


def outcome(name: Any) -> str:
    """The word for what became of a message, green if all is well."""
    text = word(name)
    return click.style(text, fg="green" if text in _GOOD else "red")


def value(of: Any) -> str:
    """A value as JSON, cut to what a line can take."""
    text = plain(orjson.dumps(of, default=str).decode())
    return text if len(text) <= WIDE else f"{text[: WIDE - 1]}…"


def duration(microseconds: float) -> str:
    """So long: `0.4 ms`, `1.25 s`."""
    return f"{microseconds / 1e6:.2f} s" if microseconds >= 1_000_000 else f"{microseconds / 1e3:.1f} ms"


def date(at_us: Any) -> str:
    """The moment, in the time zone of whoever looks."""
    try:
        return datetime.fromtimestamp(at_us / 1e6).astimezone().isoformat(" ", "milliseconds")
    except (TypeError, ValueError, OverflowError, OSError):  # a claim that no calendar has
        return f"{plain(str(at_us))} us"


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Iterator[str]:
    """The lines of a table. `columns` are the headings, each with the key of what stands below it."""
    cells = [list(columns), *([_cell(row.get(key)) for key in columns.values()] for row in rows)]
    numbers = [all(_is_number(row.get(key)) for row in rows) for key in columns.values()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numbers, strict=True)
        ).rstrip()
        yield click.style(line, bold=True) if number == 0 else line


def listing(of: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The lines of an object: what stands deeper is named with dots."""
    flat = dict(_flat(of, above))
    width = max(map(len, flat), default=0)
    for key, cell in flat.items():
        yield f"{click.style(key.ljust(width), bold=True)}  {cell}"


def _flat(of: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for key, item in of.items():
        name = f"{above}.{plain(key)}" if above else plain(key)
        if isinstance(item, dict) and item:
            yield from _flat(item, name)
        else:
            yield name, _cell(item)


def _cell(item: Any) -> str:
    if isinstance(item, bool):
        return "yes" if item else "no"
    if item is None or item in ("", [], {}):
        return "-"
    if isinstance(item, list) and all(isinstance(part, str) for part in item):
        return plain(" ".join(item))
    return plain(item) if isinstance(item, str) else value(item)


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)
