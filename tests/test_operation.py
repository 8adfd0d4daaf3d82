"""An exchange in operation: what clients leave behind when they go, and how it stops."""

import asyncio
import gc
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from world import soon, until

from exchange.v1 import message_pb2, service_pb2, service_pb2_grpc
from exchange_grpc import Exchange
from exchange_grpc.limits import Limits

# Clients of every sort: each an exchange that asks, handles, watches and observes, or a caller of the doors.
CLIENTS = """
import asyncio, sys
import grpc
from exchange.v1 import message_pb2, service_pb2, service_pb2_grpc
from exchange_grpc import Exchange

async def exchange(url, n):
    app = Exchange(f"{sys.argv[2]}-{n}")
    app.handle(f"of.{app.id}", lambda msg: msg.value)
    app.subscribe("news", lambda: None)
    peer = await app.connect(url)
    changes = peer.state.watch("n")
    await anext(changes)
    assert await peer.request("echo", n) == n
    await app.publish("news", n)
    many = app.request_many("forever", to="hub")
    await anext(many)
    return app, changes, many

async def caller(url, n):
    channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"), [("grpc.use_local_subchannel_pool", 1)])
    stub = service_pb2_grpc.ExchangeServiceStub(channel)
    observing = stub.Observe(service_pb2.ObserveRequest())
    watching = stub.WatchState(service_pb2.WatchStateRequest(names=["n"]))
    await watching.read()
    await observing.initial_metadata()
    await stub.Request(service_pb2.RequestRequest(message=message_pb2.Message(name="echo")))
    return channel, observing, watching

async def main():
    url, _, count = sys.argv[1:]
    clients = []
    for n in range(int(count)):
        clients.append(await (caller if n % 5 == 0 else exchange)(url, n))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for client in clients:
        if isinstance(client[0], Exchange):
            await client[2].aclose()
            await client[1].aclose()
        else:
            client[1].cancel()
            client[2].cancel()
        await client[0].close()

asyncio.run(main())
"""


@asynccontextmanager
async def hub() -> AsyncIterator[tuple[Exchange, str]]:
    limits = Limits(away_seconds=0.5, resume_seconds=1)  # of those who were killed, nothing is kept for long
    async with Exchange("hub", state={"n": 0}, exports=["n"], limits=limits) as hub:

        async def echo(msg: Any) -> Any:
            return msg.value

        async def forever() -> AsyncIterator[int]:
            yield 1
            await asyncio.Event().wait()

        hub.handle("echo", echo)
        hub.handle("forever", forever)
        yield hub, await hub.listen("grpc://127.0.0.1:0")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def come_and_go(hub: Exchange, url: str, count: int) -> None:
    """So many clients: half of them leave as they should, half of them are gone from one moment to the next."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", CLIENTS, url, name, str(count // 2),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for name in ("polite", "rude")
    ]  # fmt: skip
    polite, rude = processes
    try:
        async with asyncio.timeout(90):
            for process in processes:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
            assert len(hub.peers) == 2 * (count // 2 - len(range(0, count // 2, 5)))
            hub.state.n += 1
            rude.kill()
            assert polite.stdin is not None
            polite.stdin.write(b"\n")
            assert await polite.wait() == 0
            await rude.wait()
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def back_at_the_start(hub: Exchange, files: int, tasks: int, log: str) -> None:
    def nothing_left() -> bool:
        gc.collect()
        return not hub._links.lines and descriptors() <= files and len(asyncio.all_tasks()) <= tasks

    assert "did not close" not in log
    try:
        await until(nothing_left, 20)
    except AssertionError:
        left = (len(hub._links.lines), descriptors() - files, len(asyncio.all_tasks()) - tasks)
        raise AssertionError(f"links, descriptors and tasks that are left: {left}") from None
    assert not hub._router.links
    assert not hub._router.open_requests
    assert hub._changes.watches == 0
    assert len(hub._observers) == 0
    assert not hub._router._offered
    stats = await hub.request("exchange.stats")
    assert (stats["links"], stats["queued"]["messages"], stats["handlers"]["waiting"]) == (0, 0, 0)


async def test_forty_clients_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with hub() as (home, url):
        await come_and_go(home, url, 10)  # gRPC itself keeps a few descriptors from its first calls on
        await until(lambda: not home._links.lines, 20)
        files, tasks = descriptors(), len(asyncio.all_tasks())
        await come_and_go(home, url, 40)
        await back_at_the_start(home, files, tasks, caplog.text)


@pytest.mark.drill
@pytest.mark.timeout(600)
async def test_five_hundred_clients_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with hub() as (home, url):
        home._ledger.capacity = 1_000  # full from the first round on, as it is in a process that lives long
        await come_and_go(home, url, 500)
        await until(lambda: not home._links.lines, 20)
        gc.collect()
        files, tasks, memory = descriptors(), len(asyncio.all_tasks()), resident()
        grown = []
        for _ in range(3):
            await come_and_go(home, url, 500)
            await back_at_the_start(home, files, tasks, caplog.text)
            grown.append((resident() - memory) / 2**20)
        print("MiB more than after the first 500:", [round(mib, 1) for mib in grown])
        assert max(grown) < 16  # what allocators keep; 500 links and their clients take twenty times that


async def test_a_stop_is_bounded_with_all_kinds_of_streams_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.exchange.STOP_SECONDS", 0.3)
    async with hub() as (home, url), Exchange("guest") as guest:
        channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"))
        stub, health = service_pb2_grpc.ExchangeServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        peer = await guest.connect(url)
        changes = peer.state.watch()
        await anext(changes)
        many = peer.request_many("forever")
        await anext(many)
        watching = stub.WatchState(service_pb2.WatchStateRequest())
        await watching.read()
        observing = stub.Observe(service_pb2.ObserveRequest())
        await observing.initial_metadata()
        checking = health.Watch(health_pb2.HealthCheckRequest())
        assert (await checking.read()).status == health_pb2.HealthCheckResponse.SERVING

        async def hang() -> None:
            await asyncio.Event().wait()

        home.handle("hang", hang)
        asking = stub.Request(service_pb2.RequestRequest(message=message_pb2.Message(name="hang")))
        await until(lambda: home._router.open_requests >= 4)
        began = time.monotonic()
        closing = asyncio.create_task(home.close())
        # It says at once that it serves no more, while it waits for its handlers.
        assert (await soon(checking.read())).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not closing.done()
        await soon(closing)
        assert time.monotonic() - began < 5
        while (seen := await soon(observing.read())) is not grpc.aio.EOF:
            assert seen.message.name in ("hang", "forever")
        assert await soon(watching.code()) is grpc.StatusCode.UNAVAILABLE
        assert await soon(asking.code()) is grpc.StatusCode.INTERNAL
        await channel.close()


async def test_two_servers_do_not_share_a_port() -> None:
    async with hub() as (_, url), Exchange("other") as other:
        with pytest.raises(Exception, match="the address is taken"):
            await other.listen(url)
