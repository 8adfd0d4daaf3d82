"""What carries frames between the runner and a process under test: gRPC or WebSocket, dialled or listening.

Law: a wire moves bytes and knows nothing of what they mean. Its queue holds what the other side sent, then None at
the end. `cut` breaks it without a word; `end` lets the other side see an ordinary end.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol

import grpc
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import serve as ws_serve
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

METHOD = "Peer"
SERVICE = "exchange.v1.ExchangeService"
SUBPROTOCOL = Subprotocol("exchange.v1")
PATH = "/v1/peer"
_LARGEST = 64 * 2**20  # a process that sends more than it may is to be seen doing so
_OPTIONS = [
    ("grpc.max_receive_message_length", _LARGEST),
    ("grpc.max_send_message_length", _LARGEST),
    ("grpc.so_reuseport", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.max_ping_strikes", 0),
]
_CALL_OVER = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)


class Wire(Protocol):
    """One connection."""

    frames: asyncio.Queue[bytes | None]

    async def send(self, data: bytes) -> None:
        """Send one frame."""

    async def cut(self) -> None:
        """Break it."""

    async def end(self) -> None:
        """End it in the ordinary way."""


Accept = Callable[[Wire], None]


class Server(Protocol):
    """What a client dials."""

    url: str

    async def close(self) -> None:
        """Listen no more."""


# ---------------------------------------------------------------------------------------------------------- gRPC


class _Accepted:
    """The server's side of a call."""

    def __init__(self, context: Any) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.over = asyncio.Event()
        self.broken = False
        self._context = context

    async def send(self, data: bytes) -> None:
        with suppress(*_CALL_OVER):
            await self._context.write(data)

    async def cut(self) -> None:
        self.broken = True
        self.over.set()

    async def end(self) -> None:
        self.over.set()

    async def read(self) -> None:
        with suppress(*_CALL_OVER):
            while (frame := await self._context.read()) is not grpc.aio.EOF:
                self.frames.put_nowait(frame)
        self.frames.put_nowait(None)


class _GrpcServer:
    def __init__(self, server: grpc.aio.Server, url: str) -> None:
        self._server = server
        self.url = url

    async def close(self) -> None:
        await self._server.stop(None)


async def _grpc_serve(accept: Accept) -> Server:
    async def peer(_: Any, context: Any) -> None:
        wire = _Accepted(context)
        reader = asyncio.create_task(wire.read())
        accept(wire)
        try:
            await wire.over.wait()
        finally:
            reader.cancel()
            wire.frames.put_nowait(None)
        if wire.broken:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the runner")

    server = grpc.aio.server(options=_OPTIONS)
    handler: Any = grpc.stream_stream_rpc_method_handler(peer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return _GrpcServer(server, f"grpc://127.0.0.1:{port}")


class _Dialled:
    """The client's side of a call."""

    def __init__(self, url: str) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._channel = grpc.aio.insecure_channel(url.removeprefix("grpc://"), options=_OPTIONS)
        self._call: Any = self._channel.stream_stream(f"/{SERVICE}/{METHOD}")()
        self._reader: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        await self._call.wait_for_connection()
        self._reader = asyncio.create_task(self._read())

    async def send(self, data: bytes) -> None:
        with suppress(*_CALL_OVER):
            await self._call.write(data)

    async def cut(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self._call.cancel()
        await self._channel.close()

    async def end(self) -> None:
        with suppress(*_CALL_OVER):
            await self._call.done_writing()

    async def _read(self) -> None:
        with suppress(*_CALL_OVER):
            while (frame := await self._call.read()) is not grpc.aio.EOF:
                self.frames.put_nowait(frame)
        self.frames.put_nowait(None)


async def _grpc_dial(url: str) -> Wire:
    wire = _Dialled(url)
    await wire.connect()
    return wire


# ----------------------------------------------------------------------------------------------------- WebSocket


class _Socket:
    """Either side of a WebSocket."""

    def __init__(self, socket: Any) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._socket = socket

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionClosed):
            await self._socket.send(data)

    async def cut(self) -> None:
        self._socket.transport.abort()

    async def end(self) -> None:
        await self._socket.close()

    async def read(self) -> None:
        with suppress(ConnectionClosed):
            while True:
                frame = await self._socket.recv()
                self.frames.put_nowait(frame if isinstance(frame, bytes) else b"text: " + frame.encode())
        self.frames.put_nowait(None)


class _WsServer:
    def __init__(self, server: Any, url: str) -> None:
        self._server = server
        self.url = url

    async def close(self) -> None:
        self._server.close(close_connections=True)
        await self._server.wait_closed()


async def _ws_serve(accept: Accept) -> Server:
    async def peer(socket: Any) -> None:
        if socket.request.path != PATH:
            await socket.close(1008, f"the path is {PATH}")
            return
        wire = _Socket(socket)
        accept(wire)
        await wire.read()

    server = await ws_serve(
        peer, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL], max_size=_LARGEST, compression=None, ping_interval=None,
        close_timeout=1,
    )  # fmt: skip
    port = next(iter(server.sockets)).getsockname()[1]
    return _WsServer(server, f"ws://127.0.0.1:{port}{PATH}")


async def _ws_dial(url: str) -> Wire:
    socket = await ws_connect(
        url, subprotocols=[SUBPROTOCOL], max_size=_LARGEST, compression=None, ping_interval=None, close_timeout=1
    )
    wire = _Socket(socket)
    wire.reader = asyncio.create_task(wire.read())  # type: ignore[attr-defined]  # kept from being collected
    return wire


# ---------------------------------------------------------------------------------------------------------------

_SERVE: dict[str, Callable[[Accept], Awaitable[Server]]] = {"grpc": _grpc_serve, "websocket": _ws_serve}
_DIAL: dict[str, Callable[[str], Awaitable[Wire]]] = {"grpc": _grpc_dial, "websocket": _ws_dial}
CANNOT_DIAL = (grpc.RpcError, OSError, WebSocketException)


async def serve(transport: str, accept: Accept) -> Server:
    """Listen on a port of its own; `accept` is called with each connection."""
    return await _SERVE[transport](accept)


async def dial(transport: str, url: str) -> Wire:
    """Dial a process that listens."""
    return await _DIAL[transport](url)
