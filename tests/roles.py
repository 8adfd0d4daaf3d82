"""What the other processes of the drills do: `child("roles", "hub", port=...)`, see `processes.py`."""

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from processes import obey, play
from world import until

from exchange.v1 import frame_pb2
from exchange_grpc import Exchange, ExchangeError, RequestError

PEER = "/exchange.v1.ExchangeService/Peer"
PAUSE = 0.02  # seconds, between two tries or two requests
WARM = 50  # requests that do not count
DEEP = 0.1  # seconds: how far the flood may be ahead of its rate before it rests


class Tally:
    """Numbers that count up from 0, as they came."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.doubled = 0
        self.disordered = 0
        self._newest = -1

    def note(self, number: int) -> None:
        """One has come."""
        self.doubled += number in self.seen
        self.disordered += number < self._newest
        self._newest = max(number, self._newest)
        self.seen.add(number)

    async def report(self, wanted: int, seconds: float) -> dict[str, int]:
        """What came, once that many are there or so many seconds are over."""
        with contextlib.suppress(AssertionError):
            await until(lambda: len(self.seen) >= wanted, seconds)
        missing = wanted - len(self.seen & set(range(wanted)))
        return {"missing": missing, "doubled": self.doubled, "disordered": self.disordered}

    async def take(self, msg: Any) -> None:
        """A handler."""
        self.note(msg.value)


def limits(**changes: float) -> dict[str, Any]:
    """Options for an exchange: these limits of its links, or the defaults."""
    if not changes:
        return {}
    from exchange_grpc.limits import Limits

    return {"limits": Limits(**changes)}


async def first_answer(ask: Callable[[], Awaitable[Any]], seconds: float = 60.0) -> float:
    """When it was answered at last, by the clock that all processes have in common."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                await ask()
                return time.monotonic()
            except ExchangeError:
                await asyncio.sleep(PAUSE)


async def echo(msg: Any) -> Any:
    """A handler."""
    return msg.value


async def hang() -> None:
    """Another."""
    await asyncio.Event().wait()


async def hub(port: int = 0, **changes: float) -> None:
    """An exchange that listens, and passes on."""
    handlers: dict[str, Callable[..., Any]] = {"hub.echo": echo, "hub.hang": hang}
    async with Exchange("hub", handlers=handlers, **limits(**changes)) as app:
        url = await app.listen(f"grpc://127.0.0.1:{port}")
        await obey({"url": url}, peers=lambda: len(app.peers))


async def sink(scheme: str = "grpc") -> None:
    """An exchange that takes numbers."""
    tally = Tally()
    async with Exchange("sink", handlers={"sink.take": tally.take}) as app:
        await obey({"url": await app.listen(f"{scheme}://127.0.0.1:0")}, report=tally.report)


async def clients(url: str, name: str, count: int) -> None:
    """Many exchanges that are linked to one."""
    async with linked(url, *(f"{name}-{n}" for n in range(count))) as apps:

        async def answered() -> list[float]:
            asking = (first_answer(partial(app.request, "hub.echo", timeout=1.0)) for app in apps)
            return await asyncio.gather(*asking)

        await obey({}, answered=answered)


@asynccontextmanager
async def linked(url: str, *ids: str) -> AsyncIterator[list[Exchange]]:
    """Exchanges with these ids, each linked there."""
    async with contextlib.AsyncExitStack() as stack:
        apps = [await stack.enter_async_context(Exchange(id)) for id in ids]
        for app in apps:
            await app.connect(url)
        yield apps


async def pair(url: str) -> None:
    """Two exchanges that talk through a hub."""
    async with linked(url, "asks", "answers") as (asks, answers):
        answers.handle("pair.echo", echo)

        async def p99(seconds: float) -> float:
            times = []
            end = time.monotonic() + seconds
            for n in itertools.count(-WARM):
                began = time.monotonic()
                if began > end:
                    break
                assert await asks.request("pair.echo", n, timeout=10) == n
                if n >= 0:
                    times.append(time.monotonic() - began)
                await asyncio.sleep(PAUSE / 10)
            return statistics.quantiles(times, n=100)[98]

        await first_answer(lambda: asks.request("pair.echo", timeout=1))
        await obey({}, p99=p99)


async def flood(url: str, count: int) -> None:
    """One exchange that sends to many deaf ones: first each of them so many bytes, then all of them all the time."""
    async with linked(url, "flood") as (app,):
        tasks: set[asyncio.Task[None]] = set()
        refused = 0

        async def told() -> None:
            nonlocal refused
            refused += 1

        app.on("message.unhandled", told)

        async def fill(size: int, times: int) -> int:
            """Each of them; how many of the messages were refused."""
            nonlocal refused
            for _ in range(times):
                for n in range(count):
                    try:
                        await app.send(f"deaf.{n}", bytes(size))
                    except RequestError:
                        refused += 1
            return refused

        async def publish(size: int, per_second: int) -> None:
            began, sent = time.monotonic(), 0
            while True:
                await app.publish("flood.all", bytes(size))
                sent += 1
                if (ahead := began + sent / per_second - time.monotonic()) > DEEP:
                    await asyncio.sleep(ahead)

        def begin(size: int, per_second: int) -> None:
            tasks.add(asyncio.create_task(publish(size, per_second)))

        try:
            await obey({}, fill=fill, begin=begin)
        finally:
            for task in tasks:
                task.cancel()


async def deaf(url: str, count: int) -> None:
    """Peers that say what they want, and then never read. One that is thrown out comes back."""
    options = [("grpc.use_local_subchannel_pool", 1)]

    async def one(n: int) -> None:
        wants = frame_pb2.InterestSet(handles=[f"deaf.{n}"], subscribes=["flood.**"])
        hello = frame_pb2.Frame(hello=frame_pb2.Hello(exchange=f"deaf-{n}", interest=wants))
        while True:
            async with grpc.aio.insecure_channel(url.removeprefix("grpc://"), options=options) as channel:
                call: Any = channel.stream_stream(PEER)()
                with contextlib.suppress(grpc.RpcError, asyncio.InvalidStateError):
                    await call.write(hello.SerializeToString())
                    await call.code()
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(one(n)) for n in range(count)]
    try:
        await obey({})
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


if __name__ == "__main__":
    play(hub, sink, clients, pair, flood, deaf)
