"""The Python program of `benchmarks.languages`: `python -m benchmarks.languages.program exchange|nats source|sink URL`.

A sink handles three names: `bench.take` only counts, `bench.count` answers how many that were, `bench.echo` reads the
JSON that it was asked with and answers it made anew. At a URL that ends in `:0` it listens, to any other it links.
Its first line is where it listens, or null. A source links to URL and says null; then it measures what each line
asks for, `{"load": "one way" or "at once" or "p50", "seconds": s}`, and says `{"figure": n}` or `{"error": "..."}`.
Each ends when its input does. A message is 100 bytes of JSON, made anew from a value for each.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from itertools import repeat
from typing import Any

import nats
import orjson

from benchmarks.loads import LAST_SECONDS, Ask, at_once, one_by_one, p50_and_p99, payloads
from benchmarks.processes import needed, say
from exchange_grpc import Exchange

VALUE = payloads()["100 bytes"][0]


async def one_way(send: Ask, count: Callable[[], Awaitable[int]], seconds: float) -> float:
    """Messages a second, until the last was taken."""
    before, sent, start = await count(), 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        await send(VALUE)
        sent += 1
    async with asyncio.timeout(LAST_SECONDS):
        while await count() < before + sent:  # noqa: ASYNC110  # it is far away
            await asyncio.sleep(0.001)
    return sent / (time.perf_counter() - start)


async def measure(load: str, seconds: float, send: Ask, ask: Ask, count: Callable[[], Awaitable[int]]) -> float:
    if load == "one way":
        return await one_way(send, count, seconds)
    if load == "at once":
        answered, took = await at_once(ask, repeat(VALUE), seconds)
        return answered / took
    return p50_and_p99(await one_by_one(ask, repeat(VALUE), seconds))[0]


async def obey(send: Ask, ask: Ask, count: Callable[[], Awaitable[int]]) -> None:
    say(None)
    while line := await asyncio.to_thread(sys.stdin.readline):
        wanted = json.loads(line)
        try:
            say({"figure": await measure(wanted["load"], wanted["seconds"], send, ask, count)})
        except Exception as error:
            say({"error": repr(error)})


async def exchange_sink(url: str) -> None:
    taken = 0
    async with Exchange("sink", relay=False) as app:

        @app.handle("bench.take")
        async def take() -> None:
            nonlocal taken
            taken += 1

        @app.handle("bench.count")
        async def count() -> int:
            return taken

        @app.handle("bench.echo")
        async def echo(msg: Any) -> Any:
            return msg.value

        if url.endswith(":0"):
            say(await app.listen(url))
        else:
            await app.connect(url)
            say(None)
        await needed()


async def exchange_source(url: str) -> None:
    async with Exchange("source") as app:
        await app.connect(url)
        await obey(
            lambda value: app.send("bench.take", value),
            lambda value: app.request("bench.echo", value),
            lambda: app.request("bench.count"),
        )


async def nats_sink(url: str) -> None:
    taken = 0
    client = await nats.connect(url)

    async def take(msg: Any) -> None:
        nonlocal taken
        taken += 1

    async def count(msg: Any) -> None:
        await msg.respond(orjson.dumps(taken))

    async def echo(msg: Any) -> None:
        await msg.respond(orjson.dumps(orjson.loads(msg.data)))

    for name, function in {"take": take, "count": count, "echo": echo}.items():
        await client.subscribe(f"bench.{name}", cb=function, pending_msgs_limit=0, pending_bytes_limit=0)
    await client.flush()
    say(None)
    await needed()
    await client.close()


async def nats_source(url: str) -> None:
    client = await nats.connect(url)

    async def request(name: str, value: Any = None) -> Any:
        return orjson.loads((await client.request(name, orjson.dumps(value), timeout=LAST_SECONDS)).data)

    await obey(
        lambda value: client.publish("bench.take", orjson.dumps(value)),
        lambda value: request("bench.echo", value),
        lambda: request("bench.count"),
    )
    await client.close()


if __name__ == "__main__":
    side, role, url = sys.argv[1:]
    asyncio.run(globals()[f"{side}_{role}"](url))
