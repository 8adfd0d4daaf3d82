"""What strangers may do to a WebSocket, and to the HTTP server before it: see `test_abuse.py`."""

import asyncio
import os
import random
import resource
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from roles import echo
from test_abuse import batch, hello, kinds, request, undisturbed
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from world import soon, until

from exchange.v1 import frame_pb2
from exchange_grpc import Exchange, LinkError
from exchange_grpc.limits import (
    BATCH_BYTES,
    FRAME_BYTES,
    HTTP_WAITING,
    TEXT_FRAME_BYTES,
    WRITE_BUFFER_BYTES,
    Limits,
)
from exchange_grpc.transports.websocket import BINARY, TEXT, address_of

TEXT_FRAME, BINARY_FRAME, CONTINUED, PING, FIN = 1, 2, 0, 9, 0x80


@pytest.fixture
async def hub() -> AsyncIterator[tuple[Exchange, str]]:
    async with Exchange("hub", handlers={"echo": echo}) as hub:
        yield hub, await hub.listen("ws://127.0.0.1:0")


def streams(exchange: Exchange) -> list[Any]:
    """The server's ends of all WebSockets."""
    listener: Any = exchange._listeners[0]
    return list(listener._streams.values())


def waiting(exchange: Exchange) -> int:
    """Connections that are no WebSocket."""
    listener: Any = exchange._listeners[0]
    return len(listener._server._waiting)


def frame(opcode: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame of a client, as it is on the wire; it may lie about its length."""
    length = len(payload) if length is None else length
    size = struct.pack("!BQ", 0x80 | 127, length)
    mask = b"\0\0\0\0"
    return (
        bytes([opcode]) + size + mask + payload
        if opcode & 0x0F < 8
        else bytes([opcode, 0x80 | length]) + mask + payload
    )


@asynccontextmanager
async def raw(url: str, *, upgraded: bool = True) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A plain socket, which has shaken hands as a WebSocket if it is `upgraded`."""
    host, port, path = address_of(url)
    reader, writer = await soon(asyncio.open_connection(host, port))
    try:
        if upgraded:
            key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
            head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n"
            writer.write(head.encode())
            assert b" 101 " in await soon(reader.readuntil(b"\r\n\r\n"))
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def said(client: ClientConnection) -> list[frame_pb2.Frame]:
    """All that is said, to the end."""
    frames = []
    with suppress(ConnectionClosed):
        while True:
            data = await soon(client.recv())
            assert isinstance(data, bytes)
            frames.append(frame_pb2.Frame.FromString(data))
    return frames


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """So many may be open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[0] < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ----------------------------------------------------------------------------------------------------- large messages


async def test_a_message_over_the_limit_ends_its_session_with_a_reason(hub: tuple[Exchange, str]) -> None:
    _, url = hub
    async with undisturbed(url), connect(url) as client:
        await client.send(hello("large"))
        await client.send(os.urandom(FRAME_BYTES + 1))
        frames = await said(client)
        assert kinds(frames) == ["welcome", "goodbye"]
        assert frames[-1].goodbye.status.message == f"the frame is larger than {FRAME_BYTES} bytes"


@pytest.mark.parametrize("opcode", [TEXT_FRAME, BINARY_FRAME])
async def test_a_message_that_says_it_is_larger_still_is_not_even_read(hub: tuple[Exchange, str], opcode: int) -> None:
    _, url = hub
    async with undisturbed(url), raw(url) as (reader, writer):
        writer.write(frame(FIN | opcode, b"x", TEXT_FRAME_BYTES + 1))
        head = await soon(reader.readexactly(4))
        assert (head[0] & 0x0F, int.from_bytes(head[2:4])) == (8, 1009)
        assert await soon(reader.read()) is not None  # and it is over


async def test_a_text_may_be_larger_than_a_frame(hub: tuple[Exchange, str]) -> None:
    _, url = hub
    async with connect(url, subprotocols=[TEXT], max_size=None) as client:
        await client.send('{"hello": {"exchange": "text"}}')
        await soon(client.recv())
        await client.send('{"goodbye": {"status": {"message": "' + "x" * (TEXT_FRAME_BYTES - 100) + '"}}}')
        answer = await asyncio.wait_for(client.recv(), 30)
        assert "goodbye" in str(answer)


async def test_fragments_are_one_message_whatever_comes_between(hub: tuple[Exchange, str]) -> None:
    _, url = hub
    said_hello = hello("pieces")
    async with raw(url) as (reader, writer):
        writer.write(frame(BINARY_FRAME, said_hello[:3]) + frame(FIN | PING, b"?"))
        assert await soon(reader.readexactly(3)) == bytes([FIN | 10, 1]) + b"?"
        writer.write(b"".join(frame(CONTINUED) for _ in range(50_000)))
        writer.write(b"".join(frame(CONTINUED, bytes([byte])) for byte in said_hello[3:]) + frame(FIN | CONTINUED))
        head = await soon(reader.readexactly(4))
        assert head[0] == FIN | BINARY_FRAME
        size = int.from_bytes(head[2:4]) if head[1] == 126 else head[1]
        welcome = (b"" if head[1] == 126 else head[2:]) + await soon(reader.readexactly(size - (head[1] != 126) * 2))
        assert frame_pb2.Frame.FromString(welcome).welcome.exchange == "hub"


async def test_the_sum_of_fragments_is_bounded_and_they_cost_what_they_are(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    async with undisturbed(url), AsyncExitStack() as stack:
        before = set(streams(exchange))
        reader, writer = await stack.enter_async_context(raw(url))
        (stream,) = set(streams(exchange)) - before
        writer.write(frame(BINARY_FRAME))
        for _ in range(10):
            writer.write(frame(CONTINUED, b"xy") * 10_000)
            await writer.drain()
        await until(lambda: stream._part is not None and len(stream._part) == 200_000, 20)
        with suppress(OSError):
            while not reader.at_eof() and not reader._buffer:  # type: ignore[attr-defined]
                writer.write(frame(CONTINUED, bytes(2**20)))
                await writer.drain()
                await asyncio.sleep(0)
        head = await soon(reader.readexactly(4))
        assert (head[0] & 0x0F, int.from_bytes(head[2:4])) == (8, 1009)


# ------------------------------------------------------------------------------------------- those who do not read


async def test_whoever_pings_and_never_reads_is_not_answered_for_ever(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    async with undisturbed(url):
        before = set(streams(exchange))
        async with raw(url) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            (stream,) = set(streams(exchange)) - before
            pings = frame(FIN | PING, bytes(125)) * 1_000
            for _ in range(100):  # 13 MB
                writer.write(pings)
                await soon(writer.drain())
            await until(lambda: writer.transport.get_write_buffer_size() == 0)
            await until(lambda: not stream._writable.is_set())
            assert stream._socket.get_write_buffer_size() < WRITE_BUFFER_BYTES + 2**18 + 100_000


async def test_a_slow_reader_costs_a_write_and_is_let_go() -> None:
    quick = Limits(silence_seconds=1, heartbeat_seconds=0.4)
    async with Exchange("hub", handlers={"echo": echo}, limits=quick) as hub, Exchange("sends") as sends:
        url = await hub.listen("ws://127.0.0.1:0")
        await sends.connect(url)
        async with undisturbed(url):
            before = set(streams(hub))
            async with raw(url) as (_, writer):
                writer.transport.pause_reading()  # type: ignore[attr-defined]
                writer.write(
                    frame(FIN | BINARY_FRAME, hello("deaf", interest=frame_pb2.InterestSet(subscribes=["**"])))
                )
                await until(lambda: "deaf" in {peer.id for peer in hub.peers})
                (stream,) = set(streams(hub)) - before
                most = 0
                while not stream._gone.is_set():
                    await sends.publish("flood", "x" * 100_000)
                    most = max(most, stream._socket.get_write_buffer_size())
                assert most <= BATCH_BYTES + 2 * WRITE_BUFFER_BYTES + 200_000
            await until(lambda: "deaf" not in {peer.id for peer in hub.peers} and len(streams(hub)) == len(before))


# --------------------------------------------------------------------------------------------- those who say nothing


async def test_slow_requests_are_dropped(hub: tuple[Exchange, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.transports.http.HTTP_REQUEST_SECONDS", 0.3)
    exchange, url = hub
    now = asyncio.get_running_loop().time
    began = now()

    async def trickle(first: bytes) -> None:
        async with raw(url, upgraded=False) as (reader, writer):
            writer.write(first)
            ended = asyncio.create_task(reader.read())
            while not ended.done():
                writer.write(b"x")
                await asyncio.wait({ended}, timeout=0.02)
            with suppress(OSError):
                await ended

    first = (
        b"",
        b"GET /v1/peer HTTP/1.1\r\nX: ",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX: ",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
    )
    async with undisturbed(url):
        await soon(asyncio.gather(*(trickle(head) for head in first * 25)))
        await until(lambda: waiting(exchange) == 0)
    assert now() - began > 0.3


async def test_a_websocket_is_no_slow_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.transports.http.HTTP_REQUEST_SECONDS", 0.1)
    async with Exchange("hub", handlers={"echo": echo}) as hub, Exchange("client") as client:
        peer = await client.connect(await hub.listen("ws://127.0.0.1:0"))
        (stream,) = streams(hub)
        gone = asyncio.create_task(stream._gone.wait())
        await asyncio.wait({gone}, timeout=0.5)
        assert not gone.done()
        assert await peer.request("echo", 1) == 1
        gone.cancel()


async def test_who_says_nothing_makes_room(hub: tuple[Exchange, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.transports.http.HTTP_WAITING", 5)
    exchange, url = hub
    async with undisturbed(url), AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(raw(url, upgraded=False)) for _ in range(20)]
        await soon(asyncio.gather(*(reader.read() for reader, _ in idle[:10]), return_exceptions=True))
        async with raw(url):
            assert waiting(exchange) <= 5


@pytest.mark.drill
async def test_a_thousand_idle_sockets(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    with descriptors(4_096):
        async with undisturbed(url), AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(raw(url, upgraded=False)) for _ in range(1_000)]
            await until(lambda: waiting(exchange) <= HTTP_WAITING)
            async with connect(url, subprotocols=[BINARY]) as client:  # and there is room for one who speaks
                await client.send(hello("speaks"))
                assert frame_pb2.Frame.FromString(await soon(client.recv())).welcome.exchange == "hub"  # type: ignore[arg-type]
            await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in idle), return_exceptions=True), 20)
            assert waiting(exchange) == 0


@pytest.mark.drill
async def test_a_thousand_websockets_that_never_say_hello() -> None:
    with descriptors(4_096):
        async with Exchange("hub", handlers={"echo": echo}, limits=Limits(handshake_seconds=1)) as hub:
            url = await hub.listen("ws://127.0.0.1:0")
            async with undisturbed(url), AsyncExitStack() as stack:
                held = len(streams(hub))
                clients = [await stack.enter_async_context(connect(url, compression=None)) for _ in range(1_000)]
                told = await asyncio.wait_for(asyncio.gather(*map(said, clients)), 30)
                assert {kind for frames in told for kind in kinds(frames)} == {"goodbye"}
                await until(lambda: len(streams(hub)) == held)


async def test_links_from_one_address_are_bounded() -> None:
    async with Exchange("hub", limits=Limits(links_per_address=2)) as hub, Exchange("two") as two:
        url = await hub.listen("ws://127.0.0.1:0")
        async with undisturbed(url):
            with pytest.raises(LinkError, match="hub has 2 links from this address already"):
                await two.connect(url)


# -------------------------------------------------------------------------------------------------------- nonsense


async def test_ten_thousand_mutated_websocket_frames(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    dice = random.Random(2028)
    good = [
        frame(FIN | BINARY_FRAME, hello("vandal")),
        frame(FIN | BINARY_FRAME, batch(request("echo", json=b"1"))),
        frame(FIN | TEXT_FRAME, b'{"hello": {"exchange": "vandal"}}'),
        frame(BINARY_FRAME, b"part"),
        frame(FIN | CONTINUED, b"rest"),
        frame(FIN | PING, b"?"),
        frame(FIN | 10, b"!"),
        frame(FIN | 8, b"\x03\xe8"),
        frame(FIN | 8),
    ]

    def nonsense() -> bytes:
        data = bytearray(b"".join(dice.choices(good, k=10)))
        for _ in range(dice.randrange(4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        return bytes(data)

    async with undisturbed(url):
        held = len(streams(exchange))

        async def vandal() -> None:
            for _ in range(50):
                async with raw(url) as (reader, writer):
                    writer.write(nonsense())
                    writer.write_eof()
                    with suppress(OSError):
                        await soon(reader.read())

        await asyncio.gather(*(vandal() for _ in range(20)))
        await until(lambda: len(streams(exchange)) == held)


async def test_a_client_that_vanishes_leaves_nothing(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    began, ended = asyncio.Event(), asyncio.Event()

    @exchange.handle("hangs")
    async def hangs() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    before = asyncio.all_tasks()
    async with raw(url) as (_, writer):
        writer.write(frame(FIN | BINARY_FRAME, hello("ghost")) + frame(FIN | BINARY_FRAME, batch(request("hangs"))))
        await soon(began.wait())
    await soon(ended.wait())
    await until(lambda: not exchange.peers and asyncio.all_tasks() <= before)
