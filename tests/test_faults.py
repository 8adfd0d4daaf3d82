"""The proxy itself, on plain sockets: drills rely on it to fail as they say, and in no other way."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from math import inf

import pytest
from faults import HOST, PIECE, PIECES, Proxy, steady_port
from world import soon, until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Target:
    """A server that keeps its connections."""

    def __init__(self) -> None:
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()
        self.all: list[asyncio.StreamWriter] = []
        self.url = ""

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.all.append(writer)
        self.accepted.put_nowait((reader, writer))


class Client:
    """A client's connection, and the one of the target behind it."""

    def __init__(self, near: Streams, far: Streams) -> None:
        self.reader, self.writer = near
        self.far_reader, self.far_writer = far

    async def passes(self, data: bytes) -> None:
        """Both ways."""
        self.writer.write(data)
        assert await soon(self.far_reader.readexactly(len(data))) == data
        self.far_writer.write(data[::-1])
        assert await soon(self.reader.readexactly(len(data))) == data[::-1]


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    target = Target()
    server = await asyncio.start_server(target.accept, HOST, 0)
    target.url = f"grpc://{HOST}:{server.sockets[0].getsockname()[1]}"
    yield target
    for writer in target.all:
        writer.transport.abort()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def proxy(target: Target) -> AsyncIterator[Proxy]:
    async with Proxy(target.url) as proxy:
        yield proxy
    assert nothing_is_left()


@asynccontextmanager
async def dialled(proxy: Proxy) -> AsyncIterator[Streams]:
    reader, writer = await soon(asyncio.open_connection(HOST, proxy.port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


@asynccontextmanager
async def linked(proxy: Proxy, target: Target) -> AsyncIterator[Client]:
    async with dialled(proxy) as near:
        client = Client(near, await soon(target.accepted.get()))
        await client.passes(b"hello")
        yield client


def nothing_is_left() -> bool:
    return not [task for task in asyncio.all_tasks() if "faults.py" in repr(task) and "test_faults" not in repr(task)]


async def silent(reader: asyncio.StreamReader) -> bool:
    """Nothing comes for as long as it takes to be sure."""
    try:
        await asyncio.wait_for(reader.read(1), 0.05)
    except TimeoutError:
        return True
    return False


async def test_what_goes_in_comes_out_and_is_counted(proxy: Proxy, target: Target) -> None:
    data = bytes(range(256)) * 10_000
    async with linked(proxy, target) as one, linked(proxy, target) as other:
        assert proxy.open == 2
        await one.passes(data)
        await other.passes(b"x")
        await until(lambda: (proxy.up.bytes, proxy.down.bytes) == (len(data) + 11,) * 2)
        for writer in target.all:
            writer.close()
    await until(lambda: proxy.open == 0)
    first, second = proxy.attempts
    assert proxy.per_second(first, 2) in ([2, 0], [1, 1])
    assert 0 <= second - first < 5


async def test_an_end_passes_and_the_other_half_stays_open(proxy: Proxy, target: Target) -> None:
    async with linked(proxy, target) as client:
        client.writer.write(b"last")
        client.writer.write_eof()
        assert await soon(client.far_reader.read()) == b"last"
        client.far_writer.write(b"answer")
        client.far_writer.close()
        assert await soon(client.reader.read()) == b"answer"
        await until(lambda: proxy.open == 0)


async def test_a_reset_of_one_side_is_one_for_the_other(proxy: Proxy, target: Target) -> None:
    async with linked(proxy, target) as client:
        sock: socket.socket = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        with pytest.raises(ConnectionResetError):
            await soon(client.far_reader.read())


async def test_a_target_that_is_not_there_is_a_reset(proxy: Proxy) -> None:
    proxy.target = f"grpc://{HOST}:{steady_port()}"
    async with dialled(proxy) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await soon(reader.read())


async def test_latency_delays_and_does_not_hold_up(proxy: Proxy, target: Target) -> None:
    now = asyncio.get_running_loop().time
    async with linked(proxy, target) as client:
        proxy.latency(0.1, proxy.up)
        began = now()
        client.writer.write(b"x")
        for _ in range(PIECES // 2):  # each waits for its own time, not for the one before
            await asyncio.sleep(0.002)
            client.writer.write(b"x")
        await soon(client.far_reader.readexactly(1))
        assert now() - began >= 0.09
        await soon(client.far_reader.readexactly(PIECES // 2))
        assert now() - began < 0.09 * PIECES / 2
        began = now()
        client.far_writer.write(b"y")  # the other way is as fast as ever
        await soon(client.reader.readexactly(1))
        assert now() - began < 0.09


async def test_a_slow_way_has_its_rate_until_it_is_fast_again(proxy: Proxy, target: Target) -> None:
    now = asyncio.get_running_loop().time
    async with linked(proxy, target) as client:
        proxy.slow(100_000, proxy.up)
        began = now()
        client.writer.write(bytes(20_000))
        await soon(client.far_reader.readexactly(20_000))
        assert 0.1 < now() - began < 2
        proxy.slow(inf)
        await client.passes(bytes(5_000_000))


async def test_who_does_not_read_holds_up_who_sends(proxy: Proxy, target: Target) -> None:
    async with linked(proxy, target) as client:
        client.far_writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(bytes(64 * 2**20))
        await until(lambda: proxy.up.bytes > PIECE * PIECES)
        before = 0
        while before != (before := proxy.up.bytes):  # until it stands still
            await asyncio.sleep(0.05)
        assert before < 32 * 2**20


@pytest.mark.parametrize("unread", [b"", b"unread"])
async def test_a_cut_is_an_orderly_end(proxy: Proxy, target: Target, unread: bytes) -> None:
    async with linked(proxy, target) as client:
        proxy.freeze()  # so that it is the proxy that has not read it
        client.writer.write(unread)
        await asyncio.sleep(0)
        proxy.cut()
        assert proxy.open == 0
        assert await soon(client.reader.read()) == b""
        assert await soon(client.far_reader.read()) == b""
        proxy.thaw()
    async with linked(proxy, target):
        pass


async def test_a_reset_is_none(proxy: Proxy, target: Target) -> None:
    async with linked(proxy, target) as client:
        proxy.reset()
        for reader in (client.reader, client.far_reader):
            with pytest.raises(ConnectionResetError):
                await soon(reader.read())
    async with linked(proxy, target):
        pass


@pytest.mark.parametrize("reset", [False, True])
async def test_a_cut_after_so_many_bytes_is_exact(proxy: Proxy, target: Target, reset: bool) -> None:
    async with linked(proxy, target) as client:
        cut = proxy.cut_after(30_001, reset=reset)
        client.writer.write(bytes(30_000))
        assert len(await soon(client.far_reader.readexactly(30_000))) == 30_000
        assert not cut.done()
        client.writer.write(b"12")
        await soon(cut)
        assert proxy.up.bytes == 30_006
        if not reset:
            assert await soon(client.far_reader.read()) == b"1"
    async with linked(proxy, target) as client:
        await client.passes(bytes(100_000))  # once is enough


async def test_a_cut_that_is_armed_happens_with_another_or_never(target: Target) -> None:
    async with Proxy(target.url) as proxy, linked(proxy, target):
        first = proxy.cut_after(100)
        second = proxy.cut_after(100)
        proxy.cut()
        third = proxy.cut_after(100)
    assert (first.cancelled(), second.done(), second.cancelled(), third.cancelled()) == (True, True, False, True)


async def test_what_is_frozen_stays_and_nothing_passes(proxy: Proxy, target: Target) -> None:
    async with linked(proxy, target) as client, linked(proxy, target) as leaving:
        proxy.freeze()
        client.writer.write(b"later")
        client.far_writer.write(b"later")
        leaving.writer.transport.abort()
        async with dialled(proxy) as (reader, writer):
            writer.write(b"new")
            assert all(await asyncio.gather(*map(silent, (reader, client.far_reader, leaving.far_reader))))
            assert await silent(client.reader)
            assert target.accepted.empty()
            proxy.thaw()
            assert await soon(client.far_reader.readexactly(5)) == b"later"
            assert await soon(client.reader.readexactly(5)) == b"later"
            assert await soon(leaving.far_reader.read()) == b""
            far_reader, _ = await soon(target.accepted.get())
            assert await soon(far_reader.readexactly(3)) == b"new"


async def test_a_port_that_refuses_comes_back_as_the_same(proxy: Proxy, target: Target) -> None:
    async with linked(proxy, target) as client:
        for _ in range(3):
            proxy.refuse()
            proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(HOST, proxy.port)
            await client.passes(b"those that are there stay")
            proxy.restore()
            async with linked(proxy, target):
                pass
    assert len(proxy.attempts) == 4


@pytest.mark.parametrize("reset", [False, True])
async def test_who_is_turned_away_is_counted(proxy: Proxy, target: Target, reset: bool) -> None:
    proxy.turn_away(reset=reset)
    for _ in range(5):
        async with dialled(proxy) as (reader, _):
            if reset:
                with pytest.raises(ConnectionResetError):
                    await soon(reader.read())
            else:
                assert await soon(reader.read()) == b""
    assert target.accepted.empty()
    assert sum(proxy.per_second(proxy.attempts[0], 10)) == 5
    assert all(one <= other for one, other in pairwise(proxy.attempts))
    proxy.restore()
    async with linked(proxy, target):
        pass


async def test_closing_ends_whatever_is_under_way(target: Target) -> None:
    async with Proxy(target.url) as proxy, linked(proxy, target) as client, linked(proxy, target) as slow:
        proxy.slow(1)
        slow.writer.write(bytes(1_000))
        proxy.latency(1_000)
        client.writer.write(bytes(1_000))
        proxy.freeze()
        async with dialled(proxy):
            await until(lambda: len(proxy.attempts) == 3)
            proxy.cut()
            proxy.cut_after(1)
            proxy.refuse()
    assert nothing_is_left()


async def test_it_closes_when_it_is_cancelled(target: Target) -> None:
    ready = asyncio.Event()

    async def use() -> None:
        async with Proxy(target.url) as proxy, linked(proxy, target):
            ready.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(use())
    await soon(ready.wait())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert nothing_is_left()
