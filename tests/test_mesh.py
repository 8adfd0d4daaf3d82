"""A mesh of real gRPC links: six exchanges in a chain, and two more that close a circle beside it.

    e1 -- e2 -- e3 -- e4 -- e5 -- e6
           \\                /
            a ----------- b

And a hub with two workers, four processes in all, on real messages.
"""

import asyncio
import collections
import itertools
import json
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exchange_grpc import Exchange, Message, Unhandled
from exchange_grpc.frames import Query

CHAIN = ["e1", "e2", "e3", "e4", "e5", "e6"]
LINKS = [*itertools.pairwise(CHAIN), ("e2", "a"), ("a", "b"), ("b", "e5")]


class Mesh:
    """The eight exchanges, and how many questions each has been asked."""

    def __init__(self) -> None:
        self.exchanges = {name: Exchange(name) for name in [*CHAIN, "a", "b"]}
        self.queries: collections.Counter[str] = collections.Counter()
        for name, exchange in self.exchanges.items():
            self._count(name, exchange)

    def __getitem__(self, name: str) -> Exchange:
        return self.exchanges[name]

    def _count(self, name: str, exchange: Exchange) -> None:
        asked = exchange.kernel.delayed["peer.asked"]

        def counting(value: Any, sig: Any, state: Any) -> None:
            assert isinstance(value[1], Query)
            self.queries[name] += 1
            asked(value, sig, state)

        exchange.kernel.delayed["peer.asked"] = counting

    async def link(self) -> None:
        urls = {name: await exchange.listen("grpc://127.0.0.1:0") for name, exchange in self.exchanges.items()}
        for one, two in LINKS:
            await self[one].connect(urls[two])


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        mesh = Mesh()
        for exchange in mesh.exchanges.values():
            await stack.enter_async_context(exchange)
        await mesh.link()
        yield mesh


async def test_a_request_finds_its_handler_at_the_far_end_and_is_not_asked_about_twice(mesh: Mesh) -> None:
    handled: list[Message] = []

    @mesh["e6"].handle("far.away")
    async def far_away(msg: Message) -> Any:
        handled.append(msg)
        return msg.value * 2

    assert await mesh["e1"].request("far.away", 4) == 8
    asked = mesh.queries.total()
    assert 0 < asked <= 2 * len(LINKS)
    assert await mesh["e1"].request("far.away", 5) == 10
    assert mesh.queries.total() == asked
    # Five hops along the chain, or as many beside it: nobody is on the way twice.
    for msg in handled:
        assert (msg.trace[0], msg.trace[-1], len(msg.trace)) == ("e1", "e6", 6)
        assert len(set(msg.trace)) == 6
    assert [msg.value for msg in handled] == [4, 5]


async def test_nobody_handles_a_message_twice(mesh: Mesh) -> None:
    handled: collections.Counter[str] = collections.Counter()
    for name in ("e4", "b", "e6"):
        mesh[name].handle("shared.work", lambda msg: handled.update([msg.id]))
    await asyncio.gather(*(mesh["e1"].request("shared.work", n) for n in range(50)))
    assert sorted(handled.values()) == [1] * 50


async def test_publish_reaches_each_subscriber_once(mesh: Mesh) -> None:
    got: collections.Counter[str] = collections.Counter()
    everybody = asyncio.Event()
    for name, exchange in mesh.exchanges.items():

        async def hear(msg: Message, name: str = name) -> None:
            got[name] += 1
            if got.total() == 20 * len(mesh.exchanges):
                everybody.set()

        exchange.subscribe("news.**", hear)
    for n in range(20):
        await mesh["e3"].publish("news.today", n)
    await asyncio.wait_for(everybody.wait(), 10)
    await mesh["e1"].request("exchange.peers", to="e6")  # whatever else is on the way has arrived after this
    assert got == dict.fromkeys(mesh.exchanges, 20)


async def test_an_unhandled_request_fails_at_once_and_says_where_and_why(mesh: Mesh) -> None:
    started = time.monotonic()
    with pytest.raises(Unhandled, match=r"nobody handles nobody\.home within reach of e1") as failed:
        await mesh["e1"].request("nobody.home", timeout=30)
    assert time.monotonic() - started < 1
    assert (failed.value.at, failed.value.reason, failed.value.delivered) == ("e1", "UNHANDLED", False)


async def test_a_request_that_is_unhandled_far_away_says_so_as_well(mesh: Mesh) -> None:
    started = time.monotonic()
    with pytest.raises(Unhandled, match="e6 does not handle it") as failed:
        await mesh["e1"].request("nobody.home", to="e6", timeout=30)
    assert time.monotonic() - started < 1
    assert failed.value.at == "e6"


async def test_a_cancelled_request_cancels_the_handler_at_the_far_end(mesh: Mesh) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @mesh["e6"].handle("for.ever")
    async def for_ever() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    request = asyncio.ensure_future(mesh["e1"].request("for.ever"))
    await asyncio.wait_for(began.wait(), 5)
    request.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await request


async def test_deadlines_shrink_along_the_way(mesh: Mesh) -> None:
    left: list[float] = []

    @mesh["e6"].handle("how.long")
    async def how_long(msg: Message) -> None:
        left.append(msg.deadline - time.monotonic())

    await mesh["e1"].request("how.long", timeout=20)
    assert 15 < left[0] < 20


WORKER = """
import asyncio, json, sys
from exchange_grpc import Exchange

async def main(id, url, names):
    async with Exchange(id) as worker:
        async def work(msg, sig):
            sig("done", {"by": id, "id": msg.id, "name": msg.name, "value": msg.value})
        for name in names:
            worker.handle(name, work)
        peer = await worker.connect(url)
        print("ready", flush=True)
        await peer.wait_closed()

asyncio.run(main(sys.argv[1], sys.argv[2], json.load(sys.stdin)))
"""


@asynccontextmanager
async def process(*command: str, stdin: bytes = b"") -> AsyncIterator[str]:
    """A process of our own, with the line that it prints when it is ready; it is told to stop at the end."""
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(stdin)
    running.stdin.close()
    try:
        async with asyncio.timeout(20):
            yield (await running.stdout.readline()).decode()
    finally:
        if running.returncode is None:
            running.terminate()
        await running.wait()


async def test_real_messages_are_shared_by_two_worker_processes(webhooks: list[tuple[str, Any]]) -> None:
    done: list[Any] = []
    everything = asyncio.Event()
    exchange = shutil.which("exchange", path=str(Path(sys.executable).parent))
    assert exchange is not None
    names = json.dumps(sorted({name for name, _ in webhooks})).encode()

    async def take(msg: Message) -> None:
        done.append(msg.value)
        if len(done) == len(webhooks):
            everything.set()

    async with AsyncExitStack() as stack:
        ready = await stack.enter_async_context(process(exchange, "serve", "--id", "hub", "--grpc", "127.0.0.1:0"))
        url = ready.split()[4]
        for worker in ("one", "two"):
            start = process(sys.executable, "-c", WORKER, worker, url, stdin=names)
            assert await stack.enter_async_context(start) == "ready\n"
        source = await stack.enter_async_context(Exchange("source", handlers={"done": take}))
        await source.connect(url)
        sent = {await source.send(name, value): (name, value) for name, value in webhooks}
        await asyncio.wait_for(everything.wait(), 20)

        assert len(done) == len(webhooks) == 200
        assert {msg["id"]: (msg["name"], msg["value"]) for msg in done} == sent
        shares = collections.Counter(msg["by"] for msg in done)
        assert all(90 <= shares[worker] <= 110 for worker in ("one", "two"))
        by = {msg["id"]: msg["by"] for msg in done}
        for id in [*sent][:: len(sent) // 3]:
            trace = await asyncio.create_subprocess_exec(
                exchange, "trace", id, "--url", url, stdout=asyncio.subprocess.PIPE
            )
            tree = (await trace.communicate())[0].decode()
            assert trace.returncode == 0
            assert f"send {sent[id][0]}  source → {by[id]}" in tree
            assert f"forwarded to {by[id]}" in tree
            assert f"{by[id]} " in tree
            assert "handled by" in tree
            assert f"└─ send done  {by[id]} → source" in tree
