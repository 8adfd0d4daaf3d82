"""An HTTP server on the loop that runs: uvicorn's protocol around a Starlette app, with bounds of our own.

Law: whoever connects has a few seconds to say what he wants, and who says nothing makes room for those who do. It
takes no signals, starts no task of its own and writes to no log of uvicorn's. What asks to be upgraded to a
WebSocket is handed on, connection and all.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..limits import HTTP_REQUEST_SECONDS, HTTP_WAITING

_log = logging.getLogger(f"{__name__}.uvicorn")
_log.setLevel(logging.ERROR)  # below that it tells of each request that is none
_BACKLOG = 1_024
_STOP_SECONDS = 1.0  # for requests that are being answered
_COMING = (h11.IDLE, h11.SEND_BODY)  # a client whose request is not there, or not all of it
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # `localhost` has an address that this machine has not


class HttpServer:
    """Serves `app`; what is to be a WebSocket goes to a protocol that `upgrade` makes."""

    def __init__(self, app: Starlette, upgrade: Callable[[], asyncio.BaseProtocol]) -> None:
        self._servers: list[asyncio.Server] = []
        self._state = ServerState()
        self._waiting: dict[_Connection, None] = {}  # no WebSockets, the oldest first

        def upgraded(**_: Any) -> asyncio.BaseProtocol:
            return upgrade()

        self._config = uvicorn.Config(
            app,
            http=_Connection,
            ws=upgraded,  # type: ignore[arg-type]  # it is called as the class would be
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        self._config.load()

    async def start(self, host: str, port: int) -> int:
        """Listen at all addresses of `host`; returns the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        absent: OSError | None = None
        try:
            for family, _, _, _, address in infos:
                try:
                    sockets.append(socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG))
                except OSError as error:
                    if error.errno not in _ABSENT:
                        raise
                    absent = error
                else:
                    port = sockets[0].getsockname()[1]
            if absent is not None and not sockets:
                raise absent
        except OSError:
            for one in sockets:
                one.close()
            raise
        for one in sockets:
            self._servers.append(await loop.create_server(self._connection, sock=one, backlog=_BACKLOG))
        return port

    def _connection(self) -> asyncio.Protocol:
        return _Connection(self._config, self._state, self._waiting)

    def refuse(self) -> None:
        """Take no more connections."""
        for server in self._servers:
            server.close()

    async def close(self) -> None:
        """... and end those that are there, once what they ask is answered."""
        self.refuse()
        for connection in list(self._waiting):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=_STOP_SECONDS)
        for task in self._state.tasks:
            task.cancel()
        while self._waiting:
            for connection in list(self._waiting):
                connection.transport.abort()
            await asyncio.sleep(0)  # they are lost in the next turn of the loop


class _Connection(H11Protocol):
    """One connection, until it is a WebSocket or gone."""

    def __init__(self, config: uvicorn.Config, state: ServerState, waiting: "dict[_Connection, None]") -> None:
        super().__init__(config, state, {})
        self.logger = _log
        self.access_log = False
        self._waiting = waiting
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        # asyncio does so only for sockets that name their protocol. Without it the system waits up to 40 ms for more.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self._waiting) >= HTTP_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.transport.abort()
        self._waiting[self] = None
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        if self not in self._waiting:  # it is a WebSocket now, or was dropped
            return
        if self.conn.their_state not in _COMING:
            self._expected()
        elif self._late is None and not self.transport.is_closing():
            self._expect()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """See uvicorn."""
        self._leave()
        super().handle_websocket_upgrade(event)

    def _leave(self) -> None:
        self._expected()
        self._waiting.pop(self, None)

    def _expect(self) -> None:
        self._late = self.loop.call_later(HTTP_REQUEST_SECONDS, self.transport.abort)

    def _expected(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
