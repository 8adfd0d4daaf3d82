"""Links under real failures: sockets that break inside frames, processes that are killed or stopped, peers that
never read. Each drill prints what it measured: `pytest -m drill -s tests/test_drills.py`.
"""

import asyncio
import gc
import itertools
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults import Proxy, steady_port
from processes import Child, child
from roles import PEER, Tally, first_answer, limits, linked
from world import soon, until

from exchange.v1 import frame_pb2
from exchange_grpc import Exchange, LinkError, RequestError

pytestmark = [pytest.mark.drill, pytest.mark.timeout(300)]

MIB = 2**20


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of messages go astray here, as they should: a report of the log would hide all else."""
    caplog.set_level("ERROR", "exchange_grpc")


def found(text: str) -> None:
    """A line of what was measured."""
    print(f"\n  {text}", end="", flush=True)


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[18]


class PeerEvents:
    """What an exchange says of its links."""

    def __init__(self, app: Exchange) -> None:
        self.seen: list[tuple[str, float, dict[str, Any]]] = []
        app.observe("exchange.event.peer.*", self._note)

    async def _note(self, msg: Any) -> None:
        self.seen.append((msg.name.rpartition(".")[2], time.monotonic(), msg.value))

    def __getitem__(self, kind: str) -> list[dict[str, Any]]:
        return [value for name, _, value in self.seen if name == kind]

    @property
    def there(self) -> bool:
        """As far as one knows."""
        return len(self["lost"]) == len(self["resumed"])

    async def lost(self, seconds: float) -> float:
        """When a link was first lost."""
        await until(lambda: self["lost"], seconds)
        return next(at for name, at, _ in self.seen if name == "lost")

    async def back(self, broken: int, seconds: float) -> None:
        """More links were lost than that, and all are there again."""
        await until(lambda: len(self["lost"]) > broken and self.there, seconds)


# ----------------------------------------------------------------------------------------- links that are cut

CUTS = 200
MESSAGES = 200_000
EACH = MESSAGES // CUTS  # so many after one cut comes the next, on average
BURST, PACE = 20, 10_000  # messages at once, and in a second


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
async def test_nothing_is_lost_or_doubled_when_a_link_is_cut_two_hundred_times(scheme: str) -> None:
    dice = random.Random(6)
    cuts = sent = 0
    async with (
        child("roles", "sink", scheme=scheme) as sink,
        Proxy(sink.ready["url"]) as proxy,
        Exchange("source") as source,
    ):
        events = PeerEvents(source)
        await source.connect(proxy.url)

        async def load() -> None:
            nonlocal sent
            for n in range(MESSAGES):
                await source.send("sink.take", n)
                sent = n + 1
                if sent % BURST == 0:
                    await asyncio.sleep(BURST / PACE)
                while sent >= (cuts + 2) * EACH:  # so that it lasts as long as the cuts
                    await asyncio.sleep(0.005)

        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(load())
            while cuts < CUTS:
                point = cuts * EACH + dice.randrange(EACH)
                while sent < point:
                    await asyncio.sleep(0.001)
                await until(lambda: events.there)
                broken = len(events["lost"])  # all that is broken by now: it cannot break again
                await break_somewhere(proxy, dice)
                await events.back(broken, 30)
                cuts += 1
        report = await sink.ask("report", patience=60, wanted=MESSAGES, seconds=10)
    away = [resumed["seconds"] for resumed in events["resumed"]]
    found(
        f"{len(away)} breaks under {MESSAGES:,} messages in {time.monotonic() - began:.0f} s: {report}, "
        f"away for {statistics.median(away) * 1_000:.0f} ms (median), {max(away) * 1_000:.0f} ms (longest)"
    )
    assert report == {"missing": 0, "doubled": 0, "disordered": 0}
    assert all(resumed["recovered"] and not resumed["uncertain"] for resumed in events["resumed"])
    assert len(away) >= CUTS


async def break_somewhere(proxy: Proxy, dice: random.Random) -> None:
    """Break the connection in one of the ways in which connections break; returns when it has happened."""
    where = dice.choice(["anywhere", "inside a frame", "inside the handshake"])
    reset = dice.random() < 0.5
    if where == "inside the handshake":
        proxy.reset()  # and then the connection that takes its place as well
    if where != "anywhere":
        cut = proxy.cut_after(dice.randrange(1, 1_000 if where == "inside the handshake" else 50_000), reset=reset)
        await asyncio.wait({cut}, timeout=1.0)
        if cut.done():
            return
    proxy.reset() if reset else proxy.cut()


# ------------------------------------------------------------------------------------------ hubs that are killed

KILLS = 25


class Load:
    """Numbers sent one after another: what became of each as far as its sender knows."""

    def __init__(self, app: Exchange) -> None:
        self.ids: dict[str, int] = {}
        self.raised: set[int] = set()
        self.unhandled: set[str] = set()
        self.count = 0
        self._over = False
        self._app = app
        app.on("message.unhandled", self._unhandled)

    async def _unhandled(self, msg: Any) -> None:
        self.unhandled.add(msg.value["id"])

    async def _run(self) -> None:
        while not self._over:
            n, self.count = self.count, self.count + 1
            try:
                self.ids[await self._app.send("sink.take", n)] = n
            except RequestError:
                self.raised.add(n)
            if n % 10 == 0:
                await asyncio.sleep(0.001)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
            self._over = True
            await asyncio.wait_for(task, 60)  # the last one as well is sent or not
        finally:
            task.cancel()

    def numbers(self, ids: set[str]) -> set[int]:
        return {self.ids[id] for id in ids if id in self.ids}


async def test_a_hub_that_is_killed_loses_nothing_in_silence() -> None:
    dice = random.Random(7)
    tally = Tally()
    async with child("roles", "hub", port=steady_port()) as hub, AsyncExitStack() as stack:
        (sink,) = await stack.enter_async_context(linked(hub.ready["url"], "sink"))
        (source,) = await stack.enter_async_context(linked(hub.ready["url"], "source"))
        sink.handle("sink.take", tally.take)
        sink.handle("sink.echo", lambda msg: msg.value)
        events, load = PeerEvents(source), Load(source)
        flows: list[float] = []
        async with load.running():
            for broken in range(KILLS):
                await asyncio.sleep(dice.uniform(0.05, 0.5))
                await hub.kill()
                await hub.restart()
                ready = time.monotonic()
                await events.back(broken, 10)
                flows.append(await first_answer(lambda: source.request("sink.echo", timeout=1.0), 10) - ready)
            after = load.count
            await until(lambda: load.count > after + 1_000, 10)
        await tally.report(load.count, 5)
    lost = set(range(load.count)) - tally.seen
    uncertain = {id for resumed in events["resumed"] for id in resumed["uncertain"]}
    told = load.numbers(uncertain) | load.numbers(load.unhandled) | load.raised
    found(
        f"{KILLS} kills under {load.count:,} messages: {len(lost)} lost, {len(lost - told)} of them in silence; "
        f"{len(uncertain)} uncertain, {len(load.raised)} raised, {len(load.unhandled)} unhandled; "
        f"from end to end again after {statistics.median(flows):.2f} s (median), {max(flows):.2f} s (longest)"
    )
    assert [resumed["recovered"] for resumed in events["resumed"]] == [False] * KILLS
    assert (tally.doubled, tally.disordered) == (0, 0)
    assert not lost - told
    assert not {n for n in lost if n >= after}


# ---------------------------------------------------------------------------------------------------- outages

OUTAGES = (1.0, 10.0, 60.0)
BACK_SECONDS = 1.5  # from the end of an outage to an answer, for 19 of 20
SEVERAL = 20  # clients, so that there are 19 of 20
MANY = 200  # clients, at an outage of 10 s


async def test_clients_are_back_in_service_soon_after_an_outage() -> None:
    async with child("roles", "hub") as hub:
        back = await asyncio.gather(*(outage(hub, seconds) for seconds in OUTAGES))
    for seconds, times in zip(OUTAGES, back, strict=True):
        found(f"back after {seconds:g} s: {p95(times):.2f} s (p95 of {len(times)}), {max(times):.2f} s (longest)")
    assert all(p95(times) <= BACK_SECONDS for times in back)


async def outage(hub: Child, seconds: float) -> list[float]:
    """How long after the end of one each client had an answer."""
    ids = [f"of-{seconds:g}-{n}" for n in range(SEVERAL)]
    async with Proxy(hub.ready["url"]) as proxy, linked(proxy.url, *ids) as apps:
        proxy.refuse()
        proxy.reset()
        await asyncio.sleep(seconds)
        proxy.restore()
        over = time.monotonic()
        asking = (first_answer(partial(app.request, "hub.echo", timeout=1.0)) for app in apps)
        return [at - over for at in await asyncio.gather(*asking)]


async def test_two_hundred_clients_do_not_come_back_all_at_once() -> None:
    async with child("roles", "hub") as hub, Proxy(hub.ready["url"]) as proxy, AsyncExitStack() as stack:
        farms = [
            await stack.enter_async_context(
                child("roles", "clients", url=proxy.url, name=name, count=MANY // 2)  # two processes, as two cores
            )
            for name in ("left", "right")
        ]
        assert await hub.ask("peers") == MANY
        proxy.turn_away()
        proxy.reset()
        began = time.monotonic()
        await asyncio.sleep(10)
        attempts = proxy.per_second(began, 10)
        proxy.restore()
        over = time.monotonic()
        answered = await asyncio.gather(*(farm.ask("answered", patience=90) for farm in farms))
        back = [at - over for at in itertools.chain(*answered)]
    rest = attempts[1:]
    found(
        f"{MANY} clients, attempts in each second: {attempts}; "
        f"back: {p95(back):.2f} s (p95), {max(back):.2f} s (longest)"
    )
    assert min(rest) > 0
    assert max(rest) <= 2 * statistics.mean(rest)
    assert p95(back) <= BACK_SECONDS


# ---------------------------------------------------------------------------------------- peers that are stopped

SETTINGS = {"defaults": ({}, 16.0), "quick": ({"heartbeat_seconds": 0.5, "silence_seconds": 1.2}, 1.5)}


async def test_a_peer_that_is_stopped_is_noticed() -> None:
    noticed = await asyncio.gather(*(stopped(changes) for changes, _ in SETTINGS.values()))
    for name, (lost, failed) in zip(SETTINGS, noticed, strict=True):
        found(f"stopped, with {name}: noticed after {lost:.2f} s, what waited failed after {failed:.2f} s")
    for (_, bound), times in zip(SETTINGS.values(), noticed, strict=True):
        assert max(times) <= bound


async def stopped(changes: dict[str, float]) -> tuple[float, float]:
    """How long it takes to notice that a peer is stopped, and until what waits on it fails."""
    async with (
        child("roles", "hub", **changes) as hub,
        Exchange("stays", **limits(**changes)) as stays,
        Exchange("leaves", **limits(**changes)) as leaves,
    ):
        events = PeerEvents(stays)
        await stays.connect(hub.ready["url"])
        await leaves.connect(hub.ready["url"], retry=0)
        waiting = asyncio.create_task(leaves.request("hub.hang", timeout=60))
        await leaves.request("hub.echo")  # by now the other one is there
        hub.pause()
        began = time.monotonic()
        with pytest.raises(RequestError) as failed:
            await waiting
        failed_after = time.monotonic() - began
        assert failed.value.reason == "UNAVAILABLE"
        assert failed.value.message
        assert failed.value.delivered is None, "nobody knows"
        lost_after = await events.lost(20) - began
        hub.go_on()
        await events.back(0, 10)
        await first_answer(lambda: stays.request("hub.echo", timeout=1.0), 5)
        return lost_after, failed_after


# --------------------------------------------------------------------------------------- peers that never read

DEAF = 50
FILL = (64 * 2**10, 320)  # bytes and times: 20 MiB to each, of which credit lets 8 MiB wait
FLOOD = (1_024, 200)  # bytes, and publications per second, each to all of them
GROWTH_MIB = 600
RUNS, RUN_SECONDS = 5, 3.0


def memory(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process in MiB; `VmHWM`: the most that it ever was."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) / 1_024


async def test_peers_that_never_read_cost_the_others_little() -> None:
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(child("roles", "hub"))
        url = hub.ready["url"]
        pair = await stack.enter_async_context(child("roles", "pair", url=url))
        alone = [await pair.ask("p99", seconds=RUN_SECONDS) for _ in range(RUNS)]
        before = memory(hub.pid)
        await stack.enter_async_context(child("roles", "deaf", url=url, count=DEAF))
        flood = await stack.enter_async_context(child("roles", "flood", url=url, count=DEAF))
        async with asyncio.timeout(10):
            while await hub.ask("peers") < DEAF + 3:
                await asyncio.sleep(0.05)
        filling = asyncio.create_task(flood.ask("fill", size=FILL[0], times=FILL[1], patience=120))
        during = await pair.ask("p99", seconds=RUN_SECONDS)
        refused = await filling
        await flood.ask("begin", size=FLOOD[0], per_second=FLOOD[1])
        beside = [await pair.ask("p99", seconds=RUN_SECONDS) for _ in range(RUNS)]
        grown, peers = memory(hub.pid, "VmHWM") - before, await hub.ask("peers")
    own, others = statistics.median(alone) * 1_000, statistics.median(beside) * 1_000
    found(
        f"{DEAF} peers that never read ({peers - 3} linked at the end): the hub grew by {grown:.0f} MiB; "
        f"a healthy pair: p99 {own:.1f} ms alone, {others:.1f} ms beside them, "
        f"{during * 1_000:.1f} ms while they were filled up ({refused} refused)"
    )
    assert grown <= GROWTH_MIB
    assert others <= max(2 * own, own + 10)


# ------------------------------------------------------------------------------------------------- come and go

ROUND = 1_000
AT_ONCE = 10
FLAT_MIB = 16  # what allocators keep


class Left:
    """What this process has now: descriptors (of which sockets), tasks, calls of gRPC."""

    def __init__(self) -> None:
        gc.collect()
        links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        self.counts = {
            "descriptors": len(links),
            "sockets": sum(link.startswith("socket:") for link in links),
            "tasks": len(asyncio.all_tasks()),
            "calls": sum(issubclass(type(thing), grpc.aio.Call) for thing in gc.get_objects()),
        }
        self.mib = memory(os.getpid())

    def beyond(self, other: "Left") -> dict[str, int]:
        more = {what: count - other.counts[what] for what, count in self.counts.items()}
        return {what: count for what, count in more.items() if count > 0}


async def come_and_close(url: str, n: int, dice: random.Random) -> None:
    async with Exchange(f"polite-{n}") as app:
        await soon(app.connect(url))


async def come_and_vanish(url: str, n: int, dice: random.Random) -> None:
    """Cancelled while it connects, or while it is linked and something is under way, or as a bare call."""
    if n % 2:
        async with grpc.aio.insecure_channel(url.removeprefix("grpc://")) as channel:
            call: Any = channel.stream_stream(PEER)()
            hello = frame_pb2.Frame(hello=frame_pb2.Hello(exchange=f"rude-{n}"))
            await call.write(hello.SerializeToString())
            if n % 4 == 1:
                await call.read()
            call.cancel()
        return

    async def use() -> None:
        async with Exchange(f"rude-{n}") as app:
            await app.connect(url)
            await app.request("hub.hang")

    task = asyncio.create_task(use())
    await asyncio.wait({task}, timeout=dice.uniform(0, 0.1))
    task.cancel()
    await soon(asyncio.wait({task}))


async def come_and_be_cut_off(url: str, n: int, dice: random.Random) -> None:
    """Closed while it tries to come back."""
    async with Proxy(url) as proxy, Exchange(f"cut-{n}") as app:
        await soon(app.connect(proxy.url))
        proxy.turn_away() if n % 2 else proxy.refuse()
        proxy.reset()
        await asyncio.sleep(dice.uniform(0, 0.3))


@pytest.mark.parametrize("come", [come_and_close, come_and_vanish, come_and_be_cut_off])
async def test_a_thousand_who_come_and_go_leave_nothing(come: Callable[..., Any]) -> None:
    dice = random.Random(8)
    async with Exchange("hub", handlers={"hub.hang": asyncio.Event().wait}) as hub:
        url = await hub.listen("grpc://127.0.0.1:0")

        async def round_of(numbers: range) -> Left:
            queue = iter(numbers)

            async def some() -> None:
                for n in queue:
                    await come(url, n, dice)

            await asyncio.gather(*(some() for _ in range(AT_ONCE)))
            await until(lambda: not hub.peers, 20)
            return Left()

        before = await round_of(range(-ROUND // 5, 0))  # gRPC keeps a little from its first calls on
        began = time.monotonic()
        after = await round_of(range(ROUND))
        each = (time.monotonic() - began) / ROUND
        await until(lambda: not Left().beyond(before), 20)
        found(f"{ROUND:,} who {come.__name__}: {each * 1_000:.1f} ms each, {after.mib - before.mib:+.1f} MiB")
        assert after.mib - before.mib <= FLAT_MIB


# --------------------------------------------------------------------------------- strangers who want it all

HUB_WITH_FEW_DESCRIPTORS = """
import asyncio, json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
from processes import obey
from exchange_grpc import Exchange

async def main():
    async with Exchange("hub") as hub:
        stats = lambda: hub.request("exchange.stats")
        await obey({"url": await hub.listen("grpc://127.0.0.1:0")}, stats=stats)

asyncio.run(main())
"""
AGAIN_SECONDS = 5.0  # within which others are served again
RESETS = 100_000
READ_BYTES = 64 * 2**20  # of what it answers


class Healthy:
    """A pair that talks through a hub all the while: the longest that it had to wait for an answer."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.answered = 0

    @asynccontextmanager
    async def through(self, url: str) -> AsyncIterator[None]:
        async def echo(msg: Any) -> Any:
            return msg.value

        async with Exchange("asks") as asks, Exchange("answers", handlers={"echo": echo}) as answers:
            await answers.connect(url)
            await asks.connect(url)

            async def talk() -> None:
                while True:
                    began = time.monotonic()
                    assert await asks.request("echo", self.answered, timeout=30) == self.answered
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.answered += 1
                    await asyncio.sleep(0.005)

            talking = asyncio.create_task(talk())
            try:
                yield
                assert not talking.done()
            finally:
                talking.cancel()
                await asyncio.wait({talking})


async def test_idle_connections_that_take_all_descriptors_do_not_keep_others_out() -> None:
    healthy, sockets = Healthy(), []
    async with child(HUB_WITH_FEW_DESCRIPTORS) as hub:
        url, address = hub.ready["url"], hub.ready["url"].removeprefix("grpc://").split(":")
        async with healthy.through(url):
            try:
                for _ in range(400):
                    sockets.append(await asyncio.open_connection(address[0], int(address[1])))
                began = time.monotonic()
                while True:  # who comes now is served as well, soon
                    try:
                        async with Exchange("newcomer") as newcomer:
                            await newcomer.connect(url, retry=0)
                            assert await newcomer.request("echo", 1, timeout=1) == 1
                        break
                    except (LinkError, RequestError):
                        assert time.monotonic() - began < AGAIN_SECONDS
                served = time.monotonic() - began
            finally:
                for _, writer in sockets:
                    writer.close()
        found(
            f"400 idle connections, 200 descriptors: {healthy.answered} answers, {healthy.longest * 1000:.0f} ms"
            f" at most; a newcomer is served after {served:.1f} s."
        )
    assert healthy.longest < AGAIN_SECONDS


def http2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of RFC 9113, section 4.1."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def opened_and_reset(stream: int) -> bytes:
    """The HEADERS of a call of `Peer`, in HPACK without tables of its own, and a RST_STREAM behind it."""
    path, kind = PEER.encode(), b"application/grpc"
    headers = (
        b"\x83\x86\x04" + bytes([len(path)]) + path + b"\x01\x04host"  # POST, http, path, authority
        + b"\x0f\x10" + bytes([len(kind)]) + kind + b"\x00\x02te\x08trailers"
    )  # fmt: skip
    return http2(1, 4, stream, headers) + http2(3, 0, stream, b"\0\0\0\x08")


async def test_a_hundred_thousand_resets_cost_the_others_little() -> None:
    healthy, sent, connections = Healthy(), 0, 0
    async with child(HUB_WITH_FEW_DESCRIPTORS) as hub:
        host, _, port = hub.ready["url"].removeprefix("grpc://").partition(":")
        async with healthy.through(hub.ready["url"]):
            while sent < RESETS:
                reader, writer = await asyncio.open_connection(host, int(port), limit=READ_BYTES)
                connections += 1
                writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + http2(4, 0, 0, b"") + http2(4, 1, 0, b""))
                try:
                    for stream in range(1, 2 * 10_000, 2):
                        writer.write(opened_and_reset(stream))
                        sent += 1
                        if stream % 200 == 1:
                            await writer.drain()
                            await asyncio.sleep(0)
                    writer.write(http2(6, 0, 0, b"all done"))
                    await asyncio.wait_for(reader.readuntil(http2(6, 1, 0, b"all done")), 60)  # it has read them all
                except (ConnectionError, asyncio.IncompleteReadError):
                    pass  # it has had enough of us
                finally:
                    writer.close()
            began = time.monotonic()
            answered = healthy.answered
            await until(lambda: healthy.answered > answered + 20, AGAIN_SECONDS)
            served = time.monotonic() - began
            stats = await hub.ask("stats")
        found(
            f"{sent} resets over {connections} connections, {stats['resets']} counted: {healthy.answered} answers,"
            f" {healthy.longest * 1000:.0f} ms at most; 20 more within {served:.2f} s after."
        )
    assert healthy.longest < AGAIN_SECONDS
    assert stats["resets"] > 0
