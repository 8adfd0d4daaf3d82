"""What benchmarks put on a line, the same for every kind of line: messages one way, requests at once and one by one.

One-way messages are counted where they arrive, until the last is there; one that does not arrive is an error.
"""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from exchange_grpc.payload import encode_json

SECONDS = 0.4  # of each measurement: messages that pile up on the way are far from what a link holds
AT_ONCE = 64
LAST_SECONDS = 20.0  # for what was sent to arrive
WEBHOOKS = 200

Ask = Callable[[Any], Awaitable[Any]]


class Lost(Exception):
    """Not as many messages arrived as were sent."""


class Sender(NamedTuple):
    """How to send one way: `send` a value, and have the sink `begin` to count and `end` it."""

    send: Ask
    begin: Callable[[], Awaitable[Any]]
    end: Callable[[int], Awaitable[tuple[int, float]]]


class Sink:
    """Takes what is sent and counts it, without looking at it."""

    def __init__(self) -> None:
        self._taken = 0
        self._began = self._last = 0.0

    async def take(self, msg: Any) -> None:
        self._taken += 1
        self._last = time.perf_counter()

    def begin(self) -> None:
        self._taken, self._began = 0, time.perf_counter()

    async def end(self, sent: int) -> tuple[int, float]:
        """How many were taken of so many, and the seconds until the last was."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_SECONDS):
                while self._taken < sent:  # noqa: ASYNC110  # an event would cost each message something
                    await asyncio.sleep(0.001)
        return self._taken, self._last - self._began


async def one_way(to: Sender, values: Iterator[Any], seconds: float = SECONDS) -> tuple[int, float]:
    """How many messages were sent, and the seconds until the last had been taken. Raises Lost."""
    await to.begin()
    send = to.send
    sent, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        await send(next(values))
        sent += 1
    taken, took = await to.end(sent)
    if taken != sent:
        raise Lost(f"{sent:,} messages were sent and {taken:,} arrived")
    return sent, took


async def at_once(
    ask: Ask, values: Iterator[Any], seconds: float = SECONDS, number: int = AT_ONCE
) -> tuple[int, float]:
    """How many requests were answered, and the seconds that it took, with `number` under way all the time."""
    start = time.perf_counter()

    async def keep_asking() -> int:
        asked = 0
        while time.perf_counter() < start + seconds:
            await ask(next(values))
            asked += 1
        return asked

    return sum(await asyncio.gather(*(keep_asking() for _ in range(number)))), time.perf_counter() - start


async def one_by_one(ask: Ask, values: Iterator[Any], seconds: float = SECONDS) -> list[float]:
    """The seconds of each round trip."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        await ask(next(values))
        times.append(time.perf_counter() - start)
    return times


def p50_and_p99(times: list[float]) -> tuple[float, float]:
    """In microseconds."""
    cuts = statistics.quantiles(times, n=100)
    return cuts[49] * 1e6, cuts[98] * 1e6


def payloads() -> dict[str, list[Any]]:
    """What the messages carry, by what it is called."""
    small = {"order": 4711, "customer": "c-20230513", "items": [3, 1, 4, 1, 5], "paid": True, "note": ""}
    small["note"] = "x" * (100 - len(encode_json(small)))
    found = {"100 bytes": [small]}
    path = os.environ.get("EXCHANGE_WEBHOOKS")
    if path:
        lines = Path(path).read_text(encoding="utf-8").splitlines()[:WEBHOOKS]
        values = [json.loads(line)["value"] for line in lines]
        size = statistics.median(len(encode_json(value)) for value in values)
        found[f"webhooks of {size / 1000:.1f} KB"] = values
    return found
