"""What `exchange serve --demo` handles: enough to try everything that the command line can do.

    compute.sum   {"a": 5, "b": 3} -> 8; keeps a total, a count and their mean in the state
    echo          the value that came
    demo.items    rows of a real SQLite file; {"table": "items", "limit": 3} says how many
    demo.wait     {"seconds": 2} -> answers after so long: to try deadlines, cancelling, stopping
    demo.count    {"to": 3} -> 1, then 2, then 3, for `request-many`; {"to": 3, "seconds": 0.5} waits before each

Its state, exported to all, is what `compute.sum` keeps, and a `goal` that may be set, with `reached`.
Nothing here outlives the process: the file is in a temporary directory of its own.
"""

import asyncio
import logging
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .. import Message, Refused, State

Handlers = dict[str, Callable[..., Any]]
log = logging.getLogger("exchange_grpc")

LARGEST_SUM = 2**53  # up to here every JSON reader keeps the last digit
LONGEST_WAIT = 60.0  # seconds: a demo is no place to park requests
LARGEST_COUNT = 10_000

STATE: Mapping[str, Any] = {
    "total": 0,
    "count": 0,
    "mean": lambda s: s.total / s.count if s.count else None,
    "goal": 100,
    "reached": lambda s: s.total >= s.goal,
}
EXPORTS = tuple(STATE)
ACCEPTS = ("goal",)

ITEMS = (
    ("lantern", 24.5, 12),
    ("rope, 20 m", 18.0, 40),
    ("map of the coast", 7.25, 3),
    ("compass", 31.0, 8),
    ("kettle", 15.75, 0),
    ("blanket", 22.0, 17),
)


@contextmanager
def handlers() -> Iterator[Handlers]:
    """Names and functions for an Exchange that has the values of `STATE`; their file is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="exchange-demo-") as directory:
        path = Path(directory) / "items.sqlite3"
        _create(path)
        log.info("demo.items reads %s, which is removed at stop", path)
        yield {
            "compute.sum": compute_sum,
            "echo": echo,
            "demo.items": items_of(path),
            "demo.wait": wait,
            "demo.count": count,
        }


async def compute_sum(msg: Message, sig: Any, state: State) -> int | float:
    """The sum of two numbers."""
    value = msg.value
    numbers: list[Any] = [value.get("a"), value.get("b")] if isinstance(value, dict) else []
    if not numbers or not all(map(_is_number, numbers)):
        raise Refused('compute.sum takes two numbers: {"a": 5, "b": 3}')
    result: int | float = sum(numbers)
    if not abs(result) <= LARGEST_SUM:
        raise Refused("the sum is beyond 2^53, where not every JSON reader is exact")
    state.update({"total": state["total"] + result, "count": state["count"] + 1})
    return result


async def echo(msg: Message) -> Any:
    """What came."""
    return msg.value


async def wait(msg: Message) -> float:
    """Answer later."""
    seconds = msg.value.get("seconds", 1) if isinstance(msg.value, dict) else 1
    if not _is_number(seconds) or not 0 <= seconds <= LONGEST_WAIT:
        raise Refused(f'demo.wait takes {{"seconds": 2}}, at most {LONGEST_WAIT:g}')
    await asyncio.sleep(seconds)
    return float(seconds)


async def count(msg: Message) -> AsyncIterator[int]:
    """One reply for each number."""
    wanted = {"to": 3} if msg.value is None else msg.value
    to, seconds = (wanted.get("to"), wanted.get("seconds", 0)) if isinstance(wanted, dict) else (None, 0)
    if (
        type(to) is not int
        or not 0 <= to <= LARGEST_COUNT
        or not _is_number(seconds)
        or not 0 <= seconds <= LONGEST_WAIT
    ):
        raise Refused(f'demo.count takes {{"to": 3, "seconds": 0.5}}, to at most {LARGEST_COUNT}')
    for number in range(1, to + 1):
        await asyncio.sleep(seconds)
        yield number


def items_of(path: Path) -> Callable[[Message], list[dict[str, Any]]]:
    """The handler of `demo.items`: it blocks, so it is a plain function, which runs in a thread."""

    def demo_items(msg: Message) -> list[dict[str, Any]]:
        wanted = {} if msg.value is None else msg.value
        known = isinstance(wanted, dict) and wanted.keys() <= {"table", "limit"}
        limit = wanted.get("limit", len(ITEMS)) if known else None
        if not known or wanted.get("table", "items") != "items" or type(limit) is not int or not 0 <= limit < 2**63:
            raise Refused('demo.items takes nothing, or {"table": "items", "limit": 3}')
        # A connection of its own for each call, as SQLite's belong to one thread; nobody writes any more.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            database.row_factory = sqlite3.Row
            rows = database.execute("SELECT id, name, price, stock FROM items ORDER BY id LIMIT ?", (limit,))
            return [dict(row) for row in rows]

    return demo_items


def _create(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL, stock INTEGER)")
        database.executemany("INSERT INTO items (name, price, stock) VALUES (?, ?, ?)", ITEMS)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
