"""WebSocket: `ws://HOST:PORT`, `wss://HOST` for whoever dials, and the listener that browsers reach, at `/v1/peer`.

Law: thin. A binary message is a frame, a text message is one as JSON. Both ends are the same: around the core of
`websockets`, which has no I/O, and straight on the socket. So it is here that is said what waits where: one chunk of
the system's that was read and not yet taken, one frame that was written and has not yet left. What a peer can make
us hold beyond that is one message that is not complete.

Messages are not compressed: batches of small messages would gain, but each connection would cost 300 KB, and a
message could be a thousand times larger than what was sent for it.
"""

import asyncio
import functools
import logging
import os
import re
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import cast

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState, NegotiationError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, Protocol, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from .. import wire
from ..errors import AddressError, InvalidMessage, LinkError
from ..limits import HANDSHAKE_SECONDS, READ_BYTES, TEXT_FRAME_BYTES, TEXT_TURN_BYTES, WRITE_BUFFER_BYTES
from ..patterns import shown
from . import End, Host, Receive, register
from .http import HttpServer
from .origins import Origins

log = logging.getLogger(__name__)
_core_log = logging.getLogger(f"{__name__}.core")
_core_log.setLevel(logging.ERROR)  # it tells of each connection, and below that what is in the messages

PATH = "/v1/peer"
BINARY = Subprotocol("exchange.v1")
TEXT = Subprotocol("exchange.v1.json")
_NO_FRAME = b"\xff"  # no frame begins like this: what cannot be read is refused by the session, with its reason
_NORMAL, _GOING_AWAY = 1000, 1001
_CLOSE_SECONDS = 1.0  # for the other side to end the connection after goodbye
_URL = re.compile(r"(wss?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\[\]\s?#@]+)(:(?P<port>[0-9]{1,5}))?(?P<path>/[!-~]*)?")


def address_of(url: str) -> tuple[str, int | None, str]:
    """The host, the port and the path in `url`. Raises AddressError."""
    found = _URL.fullmatch(url)
    if found is None or int(found["port"] or 0) > 65_535 or set(found["path"] or "") & {"?", "#"}:
        raise AddressError(f"{shown(url)} is no address: ws://HOST:PORT")
    path = found["path"] or ""
    return found["host"].strip("[]"), int(found["port"]) if found["port"] else None, PATH if path in ("", "/") else path


class _Stream(asyncio.BufferedProtocol):
    """What both ends have in common: a `Transport`, and the protocol of its socket."""

    def __init__(self, core: Protocol) -> None:
        self._core = core
        self._socket: asyncio.Transport | None = None
        self._code = _NORMAL
        self._incoming: deque[tuple[bool, bytes]] = deque()  # whether it is text, and the message
        self._part: bytearray | None = None  # of a message that comes in fragments
        self._part_is_text = False
        self._arrived = asyncio.Event()
        self._paused = False
        self._buffer = memoryview(b"")
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._leaving = False
        self._linger: asyncio.TimerHandle | None = None
        self._reader: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------------------------------- as a transport

    def on_receive(self, receive: Receive, end: End) -> None:
        """See `Transport`."""
        self._receive, self._end = receive, end

    def _start(self) -> None:
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def send(self, frame: bytes) -> None:
        """See `Transport`."""
        try:
            if self._core.subprotocol == TEXT:
                self._core.send_text(await _elsewhere(wire.text_of, frame))
            else:
                self._core.send_binary(frame)
        except InvalidState:
            raise LinkError("the connection was closed") from None
        self._flush()
        await self._writable.wait()
        if self._gone.is_set():
            raise LinkError("the connection was closed")

    async def disconnect(self) -> None:
        """See `Transport`."""
        self._leaving = True
        reader = self._reader
        if self._socket is not None and not self._gone.is_set():
            with suppress(InvalidState):
                self._core.send_close(self._code)
                self._flush()
            self._incoming.clear()
            self._read_on()  # for the other side's goodbye
            self._end_soon()
            await self._gone.wait()
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
            await asyncio.wait({reader})

    async def _read(self) -> None:
        try:
            while not self._gone.is_set() or self._incoming:
                while self._incoming:
                    text, message = self._incoming.popleft()
                    await self._receive(await self._frame(message) if text else message)
                    if self._incoming:  # taking it may not have waited for anything
                        await asyncio.sleep(0)
                self._read_on()
                self._arrived.clear()
                if not self._gone.is_set():
                    await self._arrived.wait()
        finally:
            self._end(LinkError(self._why()))

    def _read_on(self) -> None:
        if self._paused and self._socket is not None:
            self._paused = False
            self._socket.resume_reading()

    async def _frame(self, text: bytes) -> bytes:
        try:
            return await _elsewhere(wire.frame_of, text)
        except InvalidMessage:
            return _NO_FRAME

    def _why(self) -> str:
        received = self._core.close_rcvd
        if received is None:
            return "the connection was lost"
        return f"the peer ended the connection, with the code {received.code}"

    # ---------------------------------------------------------------------------------- as the protocol of its socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._socket = cast(asyncio.Transport, transport)  # which that of uvloop does not say it is
        self._socket.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See asyncio."""
        self._buffer = memoryview(bytearray(READ_BYTES))
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """See asyncio."""
        data, self._buffer = self._buffer[:nbytes].tobytes(), memoryview(b"")  # many connections keep none
        self.data_received(data)

    def data_received(self, data: bytes) -> None:
        """So much has been read; from uvicorn, the request that it has read already."""
        self._core.receive_data(data)
        # A pong that cannot be written is left out: who pings and does not read could make us hold any number.
        held_up = self._core.state is State.OPEN and not self._writable.is_set()
        if held_up:
            self._core.data_to_send()
        for event in self._core.events_received():
            self._happened(event)
        self._flush()
        if self._core.close_expected():
            self._end_soon()

    def eof_received(self) -> None:
        """See asyncio: the socket is closed, once what was written has left."""
        self._core.receive_eof()
        self._flush()
        self._end_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._core.receive_eof()
        if self._linger is not None:
            self._linger.cancel()
        self._gone.set()
        self._writable.set()
        self._arrived.set()

    def pause_writing(self) -> None:
        """See asyncio."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio."""
        self._writable.set()

    def _happened(self, event: Event) -> None:
        if not isinstance(event, Frame):
            return
        if event.opcode is Opcode.CONT:
            assert self._part is not None
            self._part += event.data
            if event.fin:
                message, self._part = bytes(self._part), None
                self._arrives(self._part_is_text, message)
        elif event.opcode is Opcode.TEXT or event.opcode is Opcode.BINARY:
            text = event.opcode is Opcode.TEXT
            if event.fin:
                self._arrives(text, bytes(event.data))
            else:
                self._part, self._part_is_text = bytearray(event.data), text

    def _arrives(self, text: bool, message: bytes) -> None:
        if self._leaving:
            return
        self._incoming.append((text, message))
        self._arrived.set()
        if len(self._incoming) > 1 and not self._paused and self._socket is not None:
            self._paused = True
            self._socket.pause_reading()

    def _flush(self) -> None:
        assert self._socket is not None
        for data in self._core.data_to_send():
            if data:
                self._socket.write(data)
            elif self._socket.can_write_eof():
                self._socket.write_eof()
            else:  # TLS
                self._socket.close()

    def _end_soon(self) -> None:
        """Whatever the other side does, and however much it has not read."""
        if self._linger is None and self._socket is not None:
            self._linger = asyncio.get_running_loop().call_later(_CLOSE_SECONDS, self._socket.abort)


class WebSocketTransport(_Stream):
    """The end that dialled."""

    def __init__(self, url: str) -> None:
        self._host, port, path = address_of(url)
        self._url = url
        self._secure = url.startswith("wss:")
        self._port = port or (443 if self._secure else 80)
        host = f"[{self._host}]" if ":" in self._host else self._host
        uri = parse_uri(f"{'wss' if self._secure else 'ws'}://{host}:{self._port}{path}")
        self._client = ClientProtocol(uri, subprotocols=[BINARY], max_size=TEXT_FRAME_BYTES, logger=_core_log)
        super().__init__(self._client)
        self._answered = asyncio.Event()

    async def connect(self) -> None:
        """See `Transport`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                tls = _tls() if self._secure else None
                await loop.create_connection(lambda: self, self._host, self._port, ssl=tls)
                self._client.send_request(self._client.connect())
                self._flush()
                await self._answered.wait()
        except TimeoutError:
            raise LinkError(f"nobody answers at {self._url} within {HANDSHAKE_SECONDS:g} s") from None
        except (OSError, UnicodeError) as error:  # no such name, refused, no certificate that we trust
            raise LinkError(f"nobody answers at {self._url}: {_said(error)}") from None
        if self._client.state is not State.OPEN:
            raise LinkError(f"no exchange answers at {self._url}: {self._refusal()}")
        self._start()

    def _refusal(self) -> str:
        response = getattr(self._client.handshake_exc, "response", None)
        return f"HTTP {response.status_code}" if isinstance(response, Response) else "it speaks no WebSocket"

    def _happened(self, event: Event) -> None:
        if isinstance(event, Response):
            self._answered.set()
        super()._happened(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._answered.set()

    async def disconnect(self) -> None:
        """See `Transport`."""
        if self._socket is not None and self._client.state is State.CONNECTING:
            self._socket.abort()
        await super().disconnect()


class _Accepted(_Stream):
    """The end that was dialled."""

    def __init__(self, listener: "WebSocketListener") -> None:
        self._server = ServerProtocol(select_subprotocol=_chosen, max_size=TEXT_FRAME_BYTES, logger=_core_log)
        super().__init__(self._server)
        self._listener = listener
        self.address = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self.address = str((transport.get_extra_info("peername") or ("",))[0])

    async def connect(self) -> None:
        """It is connected: begin to read."""
        self._start()

    def go_away(self) -> None:
        """Give as the reason of its end that we stop."""
        self._code = _GOING_AWAY

    def _happened(self, event: Event) -> None:
        if isinstance(event, Request):
            refused = self._listener.refuses(event)
            response = self._server.reject(*refused) if refused else self._server.accept(event)
            self._server.send_response(response)
            if self._server.state is State.OPEN:
                self._listener.accepted(self)
        super()._happened(event)


class WebSocketListener:
    """An HTTP server, and the WebSockets that came of it."""

    def __init__(self, host: Host, origins: Origins) -> None:
        self.url = ""  # set when it listens
        self._host = host
        self._origins = origins
        self._stopping = self._closing = False
        self._streams: dict[asyncio.Task[None], _Accepted] = {}
        app = Starlette(routes=[Route(PATH, _upgrade_required)])
        app.router.redirect_slashes = False  # to wherever the header `Host` says
        self._server = HttpServer(app, lambda: _Accepted(self))

    async def start(self, url: str) -> None:
        """Listen at `url`. Raises AddressError."""
        name, port, path = address_of(url)
        if port is None or path != PATH or url.startswith("wss:"):
            raise AddressError(f"cannot listen at {shown(url)}: it takes ws://HOST:PORT; TLS is for a proxy before it")
        try:
            port = await self._server.start(name, port)
        except (OSError, UnicodeError):
            raise AddressError(f"cannot listen at {url}: the address is taken, or not one of this machine") from None
        self.url = f"ws://{f'[{name}]' if ':' in name else name}:{port}{PATH}"

    def refuses(self, request: Request) -> tuple[HTTPStatus, str] | None:
        """With what status and text this handshake is refused, if it is."""
        if request.path.partition("?")[0] != PATH:
            return HTTPStatus.NOT_FOUND, "Not Found"
        if self._closing:
            return HTTPStatus.SERVICE_UNAVAILABLE, "this exchange stops"
        origins, hosts = request.headers.get_all("Origin"), request.headers.get_all("Host")
        if not self._origins.permit(origins, hosts):
            log.warning("refused a page of %s: its origin is not listed (--origin)", shown(", ".join(origins)))
            return HTTPStatus.FORBIDDEN, "pages of this origin may not talk to this exchange"
        return None

    def accepted(self, stream: _Accepted) -> None:
        """It is open: run it until it is over."""
        if self._stopping:
            stream.go_away()
        task = asyncio.get_running_loop().create_task(self._run(stream))
        self._streams[task] = stream
        task.add_done_callback(self._streams.pop)

    async def _run(self, stream: _Accepted) -> None:
        await stream.connect()
        try:
            await self._host.accept(stream)
        finally:
            await stream.disconnect()

    async def stopping(self) -> None:
        """See `Listener`."""
        self._stopping = True
        for stream in self._streams.values():
            stream.go_away()

    async def close(self) -> None:
        """See `Listener`."""
        self._closing = True
        self._server.refuse()
        await self.stopping()
        await asyncio.gather(*(stream.disconnect() for stream in self._streams.values()))
        if self._streams:
            await asyncio.wait(set(self._streams))
        await self._server.close()


class WebSocketScheme:
    """`ws://HOST:PORT` and `wss://HOST:PORT`."""

    def dial(self, url: str) -> WebSocketTransport:
        """See `Scheme`."""
        return WebSocketTransport(url)

    async def listen(self, url: str, host: Host, *, origins: Iterable[str] = ()) -> WebSocketListener:
        """See `Scheme`. Pages of these origins may connect too."""
        listener = WebSocketListener(host, Origins(origins, address_of(url)[0]))
        await listener.start(url)
        return listener


def _chosen(server: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """What is spoken, of what a client offers: the first that we know."""
    for name in offered:
        if name in (BINARY, TEXT):
            return name
    if offered:
        raise NegotiationError(f"this exchange speaks {BINARY} and {TEXT}")
    return None


async def _upgrade_required(_: HttpRequest) -> PlainTextResponse:
    text = f"This is where exchanges link by WebSocket (subprotocols {BINARY} and {TEXT}).\n"
    return PlainTextResponse(text, HTTPStatus.UPGRADE_REQUIRED, {"Upgrade": "websocket", "Connection": "Upgrade"})


async def _elsewhere(turn: Callable[[bytes], bytes], data: bytes) -> bytes:
    """What becomes of `data`, in a thread if it takes long."""
    return turn(data) if len(data) <= TEXT_TURN_BYTES else await asyncio.to_thread(turn, data)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _said(error: Exception) -> str:
    """What the system says of an error, on one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    number = re.search(r"\[Errno (\d+)\]", str(error))  # asyncio says more of it: the call, the address, all attempts
    if number is not None:
        return os.strerror(int(number[1]))
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).splitlines()[0][:200]


_scheme = WebSocketScheme()
register("ws", _scheme)
register("wss", _scheme)
