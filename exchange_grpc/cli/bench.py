"""`exchange bench`: how fast messages go through an exchange, with a handler of our own behind it."""

import asyncio
import secrets
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import click

from .. import Exchange, Message, Unhandled
from .console import UNHANDLED, emit, fail, full_url, linked, on_terminal, run, show, url_option

FENCE = 1_000  # sends between two looks at whether they have arrived: nothing is dropped on the way
FIND_SECONDS = 5.0  # for the first request, which finds the way


@click.command()
@url_option
@click.option(
    "--seconds", type=click.FloatRange(0, min_open=True), default=6.0, show_default=True, help="For all of it together."
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=100, show_default=True, metavar="N", help="Requests at once."
)
@click.option(
    "--size",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    metavar="BYTES",
    help="Of the value of each message.",
)
def bench(url: str, seconds: float, concurrency: int, size: int) -> None:
    """Measure how fast messages go through the exchange.

    \b
    exchange bench --seconds 1
    exchange bench --seconds 1 --concurrency 10 --size 10000
    exchange bench --seconds 1 | jq .round_trips.p99_us

    It brings two exchanges, links both to the exchange, and lets one send to a handler of the other: each
    message takes two hops. First round trips one after another, then requests at once, then messages without
    an answer. Both run in this one process, so where it is busier than the exchange, that is what is measured.
    On a terminal there are sentences, elsewhere one JSON object. All these messages are remembered there, and
    older ones forgotten for them.
    """
    result = run(_bench(url, seconds / 3, concurrency, size))
    if on_terminal():
        show(_told(result))
    else:
        emit(result)


async def _bench(url: str, seconds: float, concurrency: int, size: int) -> dict[str, Any]:
    name, arrived, value = f"bench.{secrets.token_hex(4)}", 0, "x" * size

    async def echo(msg: Message) -> Any:
        return msg.value

    async def count(msg: Message) -> int:
        nonlocal arrived
        arrived += 1
        return arrived

    handlers = {name: echo, f"{name}.count": count}
    async with linked(url, handlers=handlers), linked(url) as (app, peer):
        try:
            for each in handlers:
                await app.request(each, value, timeout=FIND_SECONDS)
        except Unhandled:
            fail(UNHANDLED, f"{peer.id} passes nothing on to the handler behind it: it does not relay")
        times = await _one_by_one(lambda: app.request(name, value), seconds)
        answered, took = await _at_once(lambda: app.request(name, value), seconds, concurrency)
        arrived = 0
        sent, sending = await _one_way(app, f"{name}.count", value, seconds)
        return {
            "url": full_url(url),
            "exchange": peer.id,
            "agent": peer.agent,
            "size": size,
            "round_trips": {"count": len(times), **_percentiles(times)},
            "requests": {"count": answered, "concurrency": concurrency, "per_second": round(answered / took)},
            "messages": {"count": sent, "arrived": arrived - 1, "per_second": round(sent / sending)},
        }


async def _one_by_one(request: Callable[[], Awaitable[Any]], seconds: float) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        await request()
        times.append(time.perf_counter() - start)
    return times


async def _at_once(request: Callable[[], Awaitable[Any]], seconds: float, concurrency: int) -> tuple[int, float]:
    start = time.perf_counter()
    answered = await asyncio.gather(*(_one_by_one(request, seconds) for _ in range(concurrency)))
    return sum(map(len, answered)), time.perf_counter() - start


async def _one_way(app: Exchange, name: str, value: str, seconds: float) -> tuple[int, float]:
    """How many were sent, and how long it took until all were there."""
    sent, start = 0, time.perf_counter()
    while not sent or time.perf_counter() < start + seconds:
        for _ in range(FENCE):
            await app.send(name, value)
        sent += FENCE
    await app.request(name, value)  # goes the same way: what was sent before it is there
    return sent, time.perf_counter() - start


def _percentiles(times: list[float]) -> dict[str, int]:
    cuts = statistics.quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {"p50_us": round(cuts[49] * 1e6), "p99_us": round(cuts[98] * 1e6)}


def _told(result: dict[str, Any]) -> Iterator[str]:
    trips, requests, messages = result["round_trips"], result["requests"], result["messages"]
    yield f"through {result['exchange']} at {result['url']}, with {result['size']} bytes each:"
    yield (
        f"one round trip after another  {trips['p50_us'] / 1e3:.2f} ms in the middle, "
        f"{trips['p99_us'] / 1e3:.2f} ms for 99 of 100  ({trips['count']} of them)"
    )
    yield f"{requests['concurrency']} requests at once  {requests['per_second']} answers a second"
    yield f"without an answer  {messages['per_second']} messages a second"
    yield click.style("Sender and handler share one process: the exchange alone may do more.", dim=True)
