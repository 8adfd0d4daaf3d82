"""gRPC: the `Peer` stream, `grpc://HOST:PORT` and `unix:PATH`, and the server that carries it.

Frames travel as bytes and are parsed by the session, not by gRPC: one that cannot be parsed then ends
one session with a reason, where gRPC's own parser would kill the stream without one.
"""

import asyncio
import errno
import re
import socket
from contextlib import suppress
from typing import Any

import grpc

from ..errors import AddressError, LinkError
from ..limits import FRAME_BYTES, GRPC_HANDSHAKE_MS, HANDSHAKE_SECONDS, MESSAGE_BYTES, STREAMS_PER_CONNECTION
from ..service import PEER, SERVICE, Doors, add_health_and_reflection
from . import End, Host, Receive, register

# Room for the frame around what it carries: the limits themselves are checked by the session.
_LARGEST = FRAME_BYTES + MESSAGE_BYTES
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", _LARGEST),
    ("grpc.max_send_message_length", _LARGEST),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_CLIENT_OPTIONS = [
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: closing it closes it
    ("grpc.enable_http_proxy", 0),
]
_SERVER_OPTIONS = [
    *_OPTIONS,
    ("grpc.so_reuseport", 0),  # else a second server takes the same port without a word
    ("grpc.server_handshake_timeout_ms", GRPC_HANDSHAKE_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
]
_CLOSE_SECONDS = 1.0  # for the other side to end the call after goodbye
_UNIX_PATH_BYTES = 107  # sizeof sockaddr_un.sun_path, less the zero at its end
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\[\]\s]+):(?P<port>[0-9]{1,5})")


# What a call raises that is over: which of them depends on the moment.
_BROKEN = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError)


def target_of(url: str) -> str:
    """What gRPC calls the address in `url`. Raises AddressError."""
    if url.startswith("unix:"):
        path = url.removeprefix("unix://").removeprefix("unix:")
        if not path:
            raise AddressError(f"{url!r} has no path: unix:/run/exchange.sock")
        if len(path.encode()) > _UNIX_PATH_BYTES:
            raise AddressError(f"the path in {url!r} is longer than the {_UNIX_PATH_BYTES} bytes that the system takes")
        return f"unix:{path}"
    address = _HOST_PORT.fullmatch(url.removeprefix("grpc://").rstrip("/"))
    if not url.startswith("grpc://") or address is None or int(address["port"]) > 65_535:
        raise AddressError(f"{url!r} is no address: grpc://HOST:PORT")
    return address[0]


class _Stream:
    """What both ends have in common: a call to read from and write to."""

    def __init__(self) -> None:
        self._call: Any = None
        self._reader: asyncio.Task[None] | None = None

    def on_receive(self, receive: Receive, end: End) -> None:
        """See `Transport`."""
        self._receive, self._end = receive, end

    async def send(self, frame: bytes) -> None:
        """See `Transport`."""
        if self._call is None:
            raise LinkError("the connection was closed")
        try:
            await self._call.write(frame)
        except _BROKEN as error:
            raise LinkError(f"the peer cannot be written to: {said(error)}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise LinkError("the connection was closed") from None  # the call was cancelled, not this task

    async def _read(self) -> None:
        call = self._call
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                await self._receive(frame)
        except _BROKEN as error:
            self._end(LinkError(f"the connection was lost: {said(error)}"))
        else:
            self._ended()

    def _ended(self) -> None:
        self._end(None)


class GrpcTransport(_Stream):
    """The end that dialled."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._target = target_of(url)
        self._channel: grpc.aio.Channel | None = None

    async def connect(self) -> None:
        """See `Transport`."""
        self._channel = grpc.aio.insecure_channel(self._target, options=_CLIENT_OPTIONS)
        self._call = self._channel.stream_stream(f"/{SERVICE}/{PEER}")()
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):  # gRPC itself takes 20 s where somebody listens in silence
                await self._call.wait_for_connection()
        except grpc.RpcError as error:
            raise LinkError(f"nobody answers at {self._url}: {said(error)}") from None
        except TimeoutError:
            raise LinkError(f"nobody answers at {self._url} within {HANDSHAKE_SECONDS:g} s") from None
        self._reader = asyncio.get_running_loop().create_task(self._read())

    def _ended(self) -> None:
        self._end(LinkError("the peer ended the connection"))

    async def disconnect(self) -> None:
        """See `Transport`."""
        # In this order nothing leaks: let the other side end the call, stop reading, cancel, close.
        reader = self._reader
        if reader is not None and not reader.done() and reader is not asyncio.current_task():
            with suppress(grpc.RpcError, asyncio.InvalidStateError, TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):  # a write that waits for the peer comes first
                    await self._call.done_writing()
                    await asyncio.wait({reader})
            reader.cancel()
            await asyncio.wait({reader})
        call, channel = self._call, self._channel
        self._call = self._channel = None  # which hold the socket until they are collected
        if call is not None:
            call.cancel()
        if channel is not None:
            await channel.close()


class _Accepted(_Stream):
    """The end that was dialled: one call of `Peer`."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self._call = context
        kind, _, place = context.peer().partition(":")
        self.address = place.rpartition(":")[0] if kind in ("ipv4", "ipv6") else ""

    async def connect(self) -> None:
        """It is connected: begin to read."""
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def disconnect(self) -> None:
        """See `Transport`. The call ends when its handler returns."""
        reader = self._reader
        if reader is not None and reader is not asyncio.current_task():
            # Let the caller hear what was said last: gRPC fails a write to a call that has ended, and with it
            # the reads that were due. He has this long to say no more; what he still says is not looked at.
            await asyncio.wait({reader}, timeout=_CLOSE_SECONDS)
            reader.cancel()
            await asyncio.wait({reader})

    def vanished(self) -> None:
        """gRPC says that the caller is gone."""
        self._end(LinkError("the peer went away"))


class GrpcListener:
    """A gRPC server: `Peer` and the doors of the service, health and reflection."""

    def __init__(self, url: str, server: grpc.aio.Server, doors: Doors) -> None:
        self._url = url
        self._server = server
        self._doors = doors

    @property
    def url(self) -> str:
        """See `Listener`."""
        return self._url

    async def stopping(self) -> None:
        """See `Listener`."""
        await self._doors.close()

    async def close(self) -> None:
        """See `Listener`."""
        await self._server.stop(_CLOSE_SECONDS)


class GrpcScheme:
    """`grpc://HOST:PORT` and `unix:PATH`."""

    def dial(self, url: str) -> GrpcTransport:
        """See `Scheme`."""
        return GrpcTransport(url)

    async def listen(self, url: str, host: Host) -> GrpcListener:
        """See `Scheme`."""
        target = target_of(url)
        server = grpc.aio.server(options=_SERVER_OPTIONS)

        async def peer(_: Any, context: Any) -> None:
            transport = _Accepted(context)
            await transport.connect()
            try:
                await host.accept(transport)
            except asyncio.CancelledError:  # gRPC's way to say that the caller is gone
                transport.vanished()

        doors = Doors(host)
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, {PEER: grpc.stream_stream_rpc_method_handler(peer)}),
                doors.handler(),
            )
        )
        add_health_and_reflection(server, doors)
        try:
            port = 0 if _answers(target) else server.add_insecure_port(target)
        except RuntimeError:  # its text says no more
            port = 0
        if port == 0:
            raise AddressError(f"cannot listen at {url}: the address is taken, or not one of this machine")
        await server.start()
        await doors.start()
        if not target.startswith("unix:"):
            url = f"grpc://{target.rpartition(':')[0]}:{port}"
        return GrpcListener(url, server, doors)


def _answers(target: str) -> bool:
    """Whether somebody listens at this `unix:` path: gRPC would take it over without a word."""
    if not target.startswith("unix:"):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # connecting to a full queue of connections would wait
        return probe.connect_ex(target.removeprefix("unix:")) in (0, errno.EAGAIN)


def said(error: BaseException) -> str:
    """What gRPC says of an error, without its internals."""
    details = getattr(error, "details", None)
    text = details() if callable(details) else None
    told = str(text or "the stream is closed").splitlines()[0][:500]
    if "parsing HTTP/2" in told or "http1.x server" in told:
        return "it speaks no gRPC"
    if "errors resolving" in told or "DNS resolution failed" in told:
        return "there is no host of that name"
    if told.startswith("failed to connect to all addresses"):  # and then all that gRPC did, the cause at the end
        told = told.rpartition(": ")[2]
    return told[:200]


_scheme = GrpcScheme()
register("grpc", _scheme)
register("unix", _scheme)
