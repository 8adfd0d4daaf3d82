"""The contract of `Transport`, one suite for every transport, and the URLs that lead to them."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults import steady_port

from exchange_grpc import AddressError, Exchange, LinkError, Message, Seen
from exchange_grpc.limits import FRAME_BYTES, HANDSHAKE_SECONDS
from exchange_grpc.service import PEER, SERVICE
from exchange_grpc.transports import End, Listener, Receive, Transport, register, scheme_of
from exchange_grpc.transports.local import LocalTransport

SOON = 10.0  # seconds that nothing here should ever take


class OneEnd:
    """One end of a connection under test: what came in, and how it ended. `gate` closed: it does not read on."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.frames: asyncio.Queue[bytes] = asyncio.Queue()
        self.ends: list[Exception | None] = []
        self.ended = asyncio.Event()
        self.gone = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.taking = 0
        transport.on_receive(self.receive, self.end)

    async def receive(self, frame: bytes) -> None:
        self.taking += 1
        assert self.taking == 1, "frames are awaited one after another"
        await self.gate.wait()
        self.frames.put_nowait(frame)
        self.taking -= 1

    def end(self, error: Exception | None) -> None:
        self.ends.append(error)
        self.ended.set()
        if error is not None:
            self.gone.set()

    async def take(self, count: int) -> list[bytes]:
        return [await asyncio.wait_for(self.frames.get(), SOON) for _ in range(count)]


class Accepting:
    """The host of a listener under test: it keeps every connection until that is gone or `let_go` is set."""

    id = "accepting"

    def __init__(self) -> None:
        self.ends: asyncio.Queue[OneEnd] = asyncio.Queue()
        self.let_go = asyncio.Event()
        self.keeps_half = False  # goes on once the other side will send no more
        self.gate = asyncio.Event()
        self.gate.set()

    async def accept(self, transport: Transport) -> None:
        end = OneEnd(transport)
        end.gate = self.gate
        self.ends.put_nowait(end)
        over = end.gone if self.keeps_half else end.ended
        waits = {asyncio.ensure_future(over.wait()), asyncio.ensure_future(self.let_go.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await transport.disconnect()

    async def relay_send(self, message: Message) -> str:
        raise NotImplementedError

    async def relay_request(self, message: Message, timeout: float | None) -> Message:
        raise NotImplementedError

    def watch(self, pattern: str, watcher: Callable[[Message, Seen], None]) -> Callable[[], None]:
        raise NotImplementedError


class Local:
    """Both ends come from `LocalTransport.pair`."""

    def __init__(self) -> None:
        self.host = Accepting()

    async def pair(self) -> tuple[OneEnd, OneEnd]:
        one, two = LocalTransport.pair()
        near, far = OneEnd(one), OneEnd(two)
        far.gate = self.host.gate
        await one.connect()
        await two.connect()
        return near, far

    async def vanish(self, end: OneEnd) -> None:
        await end.transport.disconnect()

    async def close(self) -> None:
        pass


class Remote:
    """One end dials, the other is what the listener hands to its host."""

    def __init__(self, url: str) -> None:
        self.asked = url
        self.host = Accepting()
        self.listener: Listener | None = None

    async def start(self) -> str:
        if self.listener is None:
            self.listener = await scheme_of(self.asked).listen(self.asked, self.host)
        return self.listener.url

    async def pair(self) -> tuple[OneEnd, OneEnd]:
        near = OneEnd(scheme_of(self.asked).dial(await self.start()))
        await near.transport.connect()
        return near, await asyncio.wait_for(self.host.ends.get(), SOON)

    async def vanish(self, end: OneEnd) -> None:
        transport: Any = end.transport  # as if the process had died: no goodbye on any level of ours
        transport._reader.cancel()
        await asyncio.wait({transport._reader})
        if self.asked.startswith("ws:"):
            transport._socket.abort()
            return
        transport._call.cancel()
        await transport._channel.close()

    async def close(self) -> None:
        self.host.let_go.set()
        if self.listener is not None:
            await self.listener.close()


Pairs = Local | Remote
URLS = {"grpc": "grpc://127.0.0.1:0", "unix": "unix:{}/s", "ws": "ws://127.0.0.1:0"}


@pytest.fixture(params=["local", *URLS])
async def pairs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pairs]:
    made: Pairs = Local() if request.param == "local" else Remote(URLS[request.param].format(tmp_path))
    yield made
    await made.close()


@pytest.fixture(params=URLS)
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Remote]:
    made = Remote(URLS[request.param].format(tmp_path))
    await made.start()
    yield made
    await made.close()


@pytest.fixture(params=["grpc", "unix"])
async def by_grpc(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Remote]:
    made = Remote(URLS[request.param].format(tmp_path))
    await made.start()
    yield made
    await made.close()


@asynccontextmanager
async def no_new_tasks() -> AsyncIterator[None]:
    """What runs afterwards ran before; a moment is given to what is ending already."""
    before = asyncio.all_tasks()
    yield
    for _ in range(200):
        left = {task for task in asyncio.all_tasks() - before if "AioServer" not in repr(task)}  # gRPC's own
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks are left: {left}")


def assert_gone_once(end: OneEnd) -> None:
    """`end(error)` once; before it perhaps `end(None)`, once."""
    assert [type(error) for error in end.ends] in ([LinkError], [type(None), LinkError])


async def test_frames_arrive_in_order_and_whole_both_ways(pairs: Pairs) -> None:
    near, far = await pairs.pair()
    frames = [bytes([n % 256]) * (n * 37 % 1_000) for n in range(300)]
    for one, other in ((near, far), (far, near)):
        sending = asyncio.create_task(_send_all(one, frames))
        assert await other.take(300) == frames
        await sending
    await near.transport.disconnect()


@pytest.mark.parametrize("size", [0, 1, 4 * 2**20 + 1, FRAME_BYTES])
async def test_a_frame_of_any_size_up_to_the_limit_passes(pairs: Pairs, size: int) -> None:
    near, far = await pairs.pair()
    frame = os.urandom(size)
    for one, other in ((near, far), (far, near)):
        await asyncio.wait_for(one.transport.send(frame), SOON)
        assert await other.take(1) == [frame]
    await near.transport.disconnect()


async def test_a_reader_that_does_not_return_stops_the_writer(pairs: Pairs) -> None:
    near, far = await pairs.pair()
    far.gate.clear()
    sent = 0

    async def send() -> None:
        nonlocal sent
        for _ in range(64):
            await near.transport.send(bytes(2**20))
            sent += 1

    sending = asyncio.create_task(send())
    before = -1
    while sent != before:  # until it stands still
        before = sent
        await asyncio.wait({sending}, timeout=0.3)
    assert sent < 32, "more than 32 MiB wait somewhere"
    far.gate.set()
    await asyncio.wait_for(sending, SOON)
    assert len(await far.take(64)) == 64
    await near.transport.disconnect()


async def test_what_was_sent_before_a_disconnect_arrives(pairs: Pairs) -> None:
    near, far = await pairs.pair()
    frames = [bytes([n]) for n in range(12)]
    await _send_all(near, frames)
    await near.transport.disconnect()
    assert await far.take(12) == frames


async def test_the_other_end_is_told_that_it_is_over_once(pairs: Pairs) -> None:
    near, far = await pairs.pair()
    await near.transport.disconnect()
    await asyncio.wait_for(far.ended.wait(), SOON)
    assert len(far.ends) == 1


async def test_a_peer_that_vanishes_is_noticed_once(pairs: Pairs) -> None:
    pairs.host.keeps_half = True
    near, far = await pairs.pair()
    await near.transport.send(b"one")
    await far.take(1)
    await pairs.vanish(near)
    await asyncio.wait_for(far.gone.wait(), SOON)
    assert_gone_once(far)


async def test_the_dialling_end_notices_that_the_other_left(pairs: Pairs) -> None:
    near, far = await pairs.pair()
    pairs.host.let_go.set()
    await far.transport.disconnect()
    await asyncio.wait_for(near.gone.wait(), SOON)
    assert len(near.ends) == 1

    async def send_on() -> None:
        while True:  # what the system buffers may still be taken
            await near.transport.send(b"too late")
            await asyncio.sleep(0.01)

    with pytest.raises(LinkError):
        await asyncio.wait_for(send_on(), SOON)
    await near.transport.disconnect()


async def test_disconnect_may_be_called_again_and_at_once(pairs: Pairs) -> None:
    async with no_new_tasks():
        near, far = await pairs.pair()
        await asyncio.gather(near.transport.disconnect(), near.transport.disconnect())
        await near.transport.disconnect()
        await asyncio.wait_for(far.ended.wait(), SOON)
        await far.transport.disconnect()
        await far.transport.disconnect()


async def test_sending_after_a_disconnect_is_a_link_error(pairs: Pairs) -> None:
    near, _ = await pairs.pair()
    await near.transport.disconnect()
    with pytest.raises(LinkError):
        await near.transport.send(b"late")


async def test_a_disconnect_ends_a_send_that_waits(pairs: Pairs) -> None:
    near, far = await pairs.pair()
    far.gate.clear()

    async def send() -> None:
        while True:
            await near.transport.send(bytes(2**20))

    sending = asyncio.create_task(send())
    await asyncio.wait({sending}, timeout=0.3)
    assert not sending.done()
    await asyncio.wait_for(near.transport.disconnect(), SOON)
    far.gate.set()
    with pytest.raises(LinkError):
        await asyncio.wait_for(sending, SOON)


async def test_a_disconnect_from_within_receive_ends_it(pairs: Pairs) -> None:
    near, far = await pairs.pair()
    done = asyncio.Event()

    async def leave(frame: bytes) -> None:
        await near.transport.disconnect()
        done.set()

    near.transport.on_receive(leave, near.end)
    await far.transport.send(b"go away")
    await asyncio.wait_for(done.wait(), SOON)
    await asyncio.wait_for(far.ended.wait(), SOON)


async def test_disconnecting_leaves_no_task_and_no_descriptor(pairs: Pairs) -> None:
    near, far = await pairs.pair()  # what a transport makes once, it makes now
    await near.transport.disconnect()
    await asyncio.wait_for(far.ended.wait(), SOON)
    descriptors = len(os.listdir("/proc/self/fd"))
    async with no_new_tasks():
        for _ in range(50):
            near, far = await pairs.pair()
            await near.transport.send(b"x")
            await far.take(1)
            await near.transport.disconnect()
            await asyncio.wait_for(far.ended.wait(), SOON)
    await _until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


async def test_half_a_close_leaves_the_other_half(by_grpc: Remote) -> None:
    by_grpc.host.keeps_half = True
    target = (await by_grpc.start()).removeprefix("grpc://")
    async with grpc.aio.insecure_channel(target) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{PEER}")()
        await call.write(b"question")
        await call.done_writing()
        far = await asyncio.wait_for(by_grpc.host.ends.get(), SOON)
        assert await far.take(1) == [b"question"]
        await asyncio.wait_for(far.ended.wait(), SOON)
        assert far.ends == [None]
        await far.transport.send(b"answer")
        assert await asyncio.wait_for(call.read(), SOON) == b"answer"
        call.cancel()
        await asyncio.wait_for(far.gone.wait(), SOON)
        assert [type(error) for error in far.ends] == [type(None), LinkError]


async def test_a_listener_that_closes_ends_what_is_left(served: Remote) -> None:
    near, _ = await served.pair()
    async with asyncio.timeout(SOON):
        assert served.listener is not None
        await served.listener.close()
        await near.gone.wait()
    await near.transport.disconnect()


# ------------------------------------------------------------------------------------------------ addresses


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_nobody_at_an_address_is_a_link_error_at_once(tmp_path: Path) -> None:
    nobody = Exchange("nobody")
    for url in (
        f"grpc://127.0.0.1:{free_port()}",
        f"unix:{tmp_path}/none",
        "grpc://nowhere.invalid:1",
        f"ws://127.0.0.1:{free_port()}",
        f"wss://localhost:{free_port()}",
        "ws://nowhere.invalid",
        f"ws://{'x' * 64}.invalid:1",
    ):
        async with asyncio.timeout(4), no_new_tasks():
            with pytest.raises(LinkError, match="nobody answers at"):
                await nobody.connect(url)
    await nobody.close()


@pytest.mark.parametrize(("scheme", "module"), [("grpc", "grpc"), ("ws", "websocket"), ("wss", "websocket")])
async def test_somebody_who_only_listens_is_a_link_error_within_seconds(
    scheme: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HANDSHAKE_SECONDS <= 5
    monkeypatch.setattr(f"exchange_grpc.transports.{module}.HANDSHAKE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dialling = Exchange("dialling")
        async with asyncio.timeout(3), no_new_tasks():
            with pytest.raises(LinkError, match=r"nobody answers at .* within"):
                await dialling.connect(f"{scheme}://127.0.0.1:{silent.getsockname()[1]}")
        await dialling.close()


async def test_a_grpc_server_that_is_no_exchange_is_a_link_error() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    dialling = Exchange("dialling")
    async with asyncio.timeout(SOON):
        with pytest.raises(LinkError):
            await dialling.connect(f"grpc://127.0.0.1:{port}")
    await dialling.close()
    await server.stop(0)


@pytest.mark.parametrize("scheme", ["grpc", "ws", "wss"])
async def test_a_connection_that_is_reset_during_the_handshake_is_a_link_error(scheme: str) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(reset, "127.0.0.1", 0)
    dialling = Exchange("dialling")
    async with asyncio.timeout(SOON):
        with pytest.raises(LinkError):
            await dialling.connect(f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await dialling.close()
    server.close()
    await server.wait_closed()


async def test_a_taken_address_is_an_address_error(served: Remote) -> None:
    url = await served.start()
    second = Exchange("second")
    with pytest.raises(AddressError, match="cannot listen at"):
        await second.listen(url)
    near, _ = await served.pair()  # and the first goes on
    await near.transport.disconnect()
    await second.close()


async def test_a_socket_file_that_nobody_listens_at_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with Exchange("heir") as heir, Exchange("guest") as guest:
        assert await heir.listen(f"unix:{path}") == f"unix:{path}"
        assert (await guest.connect(f"unix:{path}")).id == "heir"


BAD_URLS = (
    "",
    "127.0.0.1:50051",
    "grpc:",
    "grpc://",
    "grpc://127.0.0.1",
    "grpc://127.0.0.1:",
    "grpc://127.0.0.1:x",
    "grpc://127.0.0.1:65536",
    "grpc://127.0.0.1:99999",
    "grpc://:50051",
    "grpc://a b:50051",
    "grpc://host:1/path",
    "grpc://host:1?query",
    "grpc:/127.0.0.1:50051",
    "unix:",
    "unix://",
    "unix:" + "x" * 200,
    "pigeon://loft",
    "http//x",
    "\n",
)


@pytest.mark.parametrize("url", BAD_URLS)
async def test_a_bad_url_is_an_address_error(url: str) -> None:
    async with Exchange("e") as exchange:
        with pytest.raises(AddressError):
            await exchange.connect(url)
        with pytest.raises(AddressError):
            await exchange.listen(url)


async def test_an_address_that_is_not_ours_is_an_address_error(tmp_path: Path) -> None:
    async with Exchange("e") as exchange:
        for url in ("grpc://192.0.2.1:50051", f"unix:{tmp_path}/no/such/directory/s"):
            with pytest.raises(AddressError, match="cannot listen at"):
                await exchange.listen(url)


async def test_both_spellings_of_an_address() -> None:
    async with Exchange("a") as a, Exchange("b") as b, Exchange("c") as c, Exchange("d") as d:
        port = free_port()
        assert await a.listen(transport="grpc", port=port) == f"grpc://127.0.0.1:{port}"
        assert (await b.connect(transport="grpc", url=f"grpc://127.0.0.1:{port}")).id == "a"
        assert (await c.connect(transport="local", exchange=a)).id == "a"
        assert (await d.connect(url=f"grpc://localhost:{port}")).id == "a"
        with pytest.raises(AddressError):
            await b.connect(transport="unix", url=f"grpc://127.0.0.1:{port}")
        with pytest.raises(AddressError):
            await b.connect(a, transport="grpc")
        with pytest.raises(AddressError):
            await b.connect()
        with pytest.raises(AddressError):
            await b.connect(b)
        with pytest.raises(AddressError):
            await b.listen()


# ------------------------------------------------------------------------------------- a scheme of one's own


class PigeonScheme:
    """A transport as a user would write it: here a local pair behind a name."""

    def __init__(self) -> None:
        self.lofts: dict[str, Any] = {}

    def dial(self, url: str) -> Transport:
        if url not in self.lofts:
            raise AddressError(f"no pigeon knows {url}")
        near, far = LocalTransport.pair()
        return Pigeon(near, far, self.lofts[url])

    async def listen(self, url: str, host: Any) -> Listener:
        self.lofts[url] = host
        return Loft(url, self.lofts)


class Pigeon:
    """The end that dialled: it makes the other end known when it connects."""

    def __init__(self, near: LocalTransport, far: LocalTransport, host: Any) -> None:
        self.near, self.far, self.host = near, far, host
        self.accepting: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        await self.near.connect()

        async def accept() -> None:
            await self.far.connect()
            await self.host.accept(self.far)

        self.accepting = asyncio.create_task(accept())

    def on_receive(self, receive: Receive, end: End) -> None:
        self.near.on_receive(receive, end)

    async def send(self, frame: bytes) -> None:
        await self.near.send(frame)

    async def disconnect(self) -> None:
        await self.near.disconnect()
        if self.accepting is not None:
            await asyncio.wait({self.accepting})


class Loft:
    """Where pigeons arrive."""

    def __init__(self, url: str, lofts: dict[str, Any]) -> None:
        self.url, self._lofts = url, lofts

    async def stopping(self) -> None:
        pass

    async def close(self) -> None:
        self._lofts.pop(self.url, None)


async def test_a_registered_scheme_carries_an_exchange() -> None:
    register("pigeon", PigeonScheme())
    async with no_new_tasks(), Exchange("server", handlers={"double": lambda msg: msg.value * 2}) as server:
        assert await server.listen("pigeon://loft") == "pigeon://loft"
        async with Exchange("client") as client:
            peer = await client.connect("pigeon://loft")
            assert (peer.id, await peer.request("double", 21)) == ("server", 42)
            with pytest.raises(AddressError, match="no pigeon knows"):
                await client.connect("pigeon://elsewhere")


async def _send_all(end: OneEnd, frames: list[bytes]) -> None:
    for frame in frames:
        await end.transport.send(frame)


async def _until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not become true within 5 s")


# ---------------------------------------------------------------------------------------- whom one finds instead


@pytest.mark.parametrize("scheme", ["grpc", "ws"])
async def test_nobody_is_there(scheme: str) -> None:
    async with Exchange("caller") as caller:
        with pytest.raises(LinkError, match=r"^nobody answers at \w+://127.0.0.1:\d+(/v1/peer)?: Connection refused$"):
            await caller.connect(f"{scheme}://127.0.0.1:{steady_port()}")


async def test_somebody_else_is_there() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, Exchange("caller") as caller:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(LinkError, match=r"^nobody answers at grpc://127.0.0.1:\d+: it speaks no gRPC$"):
            await caller.connect(f"grpc://127.0.0.1:{port}")


async def test_there_is_no_such_host() -> None:
    async with Exchange("caller") as caller:
        with pytest.raises(
            LinkError, match=r"^nobody answers at grpc://nosuch.invalid:1: there is no host of that name$"
        ):
            await caller.connect("grpc://nosuch.invalid:1")
