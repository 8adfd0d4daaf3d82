"""A network that fails when it is told to: a TCP proxy between a client and a target.

    async with Proxy("grpc://127.0.0.1:50051") as proxy:
        await app.connect(proxy.url)
        await proxy.cut_after(10_000)  # most likely inside a frame

Law: it moves bytes and knows nothing of what they mean. It holds little, so that a receiver who does not
read holds up the sender. What it is told takes effect now or within the next turns of the loop, and holds for
the connections that are there and for those to come. When it is closed nothing is left of it.

Two ways lead through it: `up` from the client to the target, and `down` from there back.
"""

import asyncio
import random
import socket
import struct
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
PIECE = 16_384  # bytes, moved at once
PIECES = 16  # of one way of one connection, held at most: latency is served from them
CONNECTIONS = 4_096  # at once; beyond that they are reset
ATTEMPTS = 100_000  # remembered with their times
LINGER_SECONDS = 1.0  # for both sides to close what is cut in an orderly way
PIECE_SECONDS = 0.05  # a slow way moves smaller pieces, so that each takes about that long
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST


def steady_port() -> int:
    """A port that is free, and that nobody gets by chance while it is: whoever leaves it can come back to it.

    Those that the system gives out are no good for that. It gives them to clients too, and a client that
    dials a closed one again and again is some day linked to itself.
    """
    lowest = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 32_768
    while True:
        port = random.randrange(max(lowest - 16_384, 1_024), lowest)
        with suppress(OSError):
            socket.create_server((HOST, port)).close()
            return port


@dataclass
class Way:
    """One way through the proxy, of all its connections."""

    latency: float = 0.0  # seconds
    rate: float = inf  # bytes per second, of each connection
    bytes: int = 0  # that have passed


class Proxy:
    """The proxy in front of `target`, `grpc://HOST:PORT` or another URL. It listens at `url`, from `async with` on."""

    def __init__(self, target: str, port: int = 0) -> None:
        self.target = target
        self.port = port or steady_port()
        self.up, self.down = Way(), Way()
        self.attempts: deque[float] = deque(maxlen=ATTEMPTS)  # when each connection was made, by the loop's clock
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._listener: socket.socket | None = None
        self._turned_away: str | None = None
        self._connections: set[_Connection] = set()
        self._armed: tuple[asyncio.Future[None], bool] | None = None
        self._left = 0  # bytes, until the cut that is armed

    @property
    def url(self) -> str:
        """Where it listens, whether it does just now or not."""
        scheme, _, rest = self.target.partition("://")
        return f"{scheme}://{HOST}:{self.port}{rest[rest.index('/') :] if '/' in rest else ''}"

    @property
    def open(self) -> int:
        """How many connections lead through it."""
        return sum(connection.passing for connection in self._connections)

    def per_second(self, start: float, seconds: int) -> list[int]:
        """How many connections were made in each second from `start` on."""
        counts = [0] * seconds
        for at in self.attempts:
            if 0 <= at - start < seconds:
                counts[int(at - start)] += 1
        return counts

    # -------------------------------------------------------------------------------------- a bad connection

    def latency(self, seconds: float, *ways: Way) -> None:
        """Let what comes in from now on by these ways, or by both, arrive so much later."""
        for way in ways or (self.up, self.down):
            way.latency = seconds

    def slow(self, bytes_per_second: float, *ways: Way) -> None:
        """Let no more than that pass in each connection by these ways, or by both; `inf` ends it."""
        for way in ways or (self.up, self.down):
            way.rate = bytes_per_second

    def freeze(self) -> None:
        """Let nothing pass, not even an end; connections stay, and new ones are taken and lead nowhere."""
        self.flowing.clear()

    def thaw(self) -> None:
        """Let pass what was held up, and all that follows."""
        self.flowing.set()

    # ------------------------------------------------------------------------------------ a broken connection

    def cut(self) -> None:
        """Close all connections as one should (FIN); what has not passed by now is lost."""
        self._cut("close")

    def reset(self) -> None:
        """Break all connections off (RST)."""
        self._cut("reset")

    def cut_after(self, count: int, *, reset: bool = False) -> "asyncio.Future[None]":
        """Cut or reset all connections once so many more bytes have passed, both ways together.

        The future is done when that has happened, be it by `cut` or `reset`, and cancelled when the proxy is closed
        or another cut is armed before.
        """
        self._disarm()
        future = asyncio.get_running_loop().create_future()
        self._armed, self._left = (future, reset), count
        return future

    def _cut(self, how: str) -> None:
        if self._armed is not None and not self._armed[0].done():
            self._armed[0].set_result(None)
        self._armed = None
        for connection in self._connections:
            connection.end(how)

    def _disarm(self) -> None:
        if self._armed is not None:
            self._armed[0].cancel()
        self._armed = None

    def may_pass(self, wanted: int) -> int:
        """How many bytes may pass at once."""
        return min(wanted, max(self._left, 1)) if self._armed is not None else wanted

    def passed(self, way: Way, count: int) -> None:
        """So many have."""
        way.bytes += count
        if self._armed is not None:
            self._left -= count
            if self._left <= 0:
                self._cut("reset" if self._armed[1] else "close")

    # ---------------------------------------------------------------------------------------------- an outage

    def refuse(self) -> None:
        """Listen no more: who connects is refused, and not counted. Connections that are there stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def turn_away(self, *, reset: bool = True) -> None:
        """Take every connection, count it, and break it off at once. Those that are there stay."""
        self._turned_away = "reset" if reset else "close"

    def restore(self) -> None:
        """End an outage of either kind."""
        self._turned_away = None
        if self._listener is None:
            self._listener = socket.create_server((HOST, self.port), backlog=1_024)
            self._listener.setblocking(False)
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            self._take(client)

    def _take(self, client: socket.socket) -> None:
        client.setblocking(False)
        self.attempts.append(asyncio.get_running_loop().time())
        full = len(self._connections) >= CONNECTIONS
        connection = _Connection(self, client, "reset" if full else self._turned_away)
        self._connections.add(connection)
        connection.task.add_done_callback(lambda _: self._connections.discard(connection))

    # ------------------------------------------------------------------------------------------------- itself

    async def __aenter__(self) -> Self:
        self.restore()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._disarm()
        for connection in self._connections:
            connection.end("now")
        if tasks := {connection.task for connection in self._connections}:
            await asyncio.wait(tasks)
        await asyncio.sleep(0)  # for the sockets to be closed


class _Connection:
    """A client's connection, the one to the target behind it, and the task that moves bytes between the two."""

    def __init__(self, proxy: Proxy, client: socket.socket, end: str | None) -> None:
        self._proxy = proxy
        self._client = client
        self._target = socket.socket()
        self._target.setblocking(False)
        self._end = end  # how it is ended: by "close", "reset", or "now" for an end without ceremony
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.task.add_done_callback(self._close)

    @property
    def passing(self) -> bool:
        """Nobody has ended it."""
        return self._end is None

    def end(self, how: str) -> None:
        """Move nothing more, and end in this way."""
        if self._end is None or how == "now":
            self._end = how
            self.task.cancel()

    async def _run(self) -> None:
        if self._end is None:
            try:
                await self._pass_all()
            except* OSError:
                self._end = self._end or "reset"  # what one side breaks off is broken off for the other
            except* asyncio.CancelledError:
                pass  # by `end`
        if self._end == "close":
            await self._part()

    async def _pass_all(self) -> None:
        proxy, loop = self._proxy, asyncio.get_running_loop()
        await proxy.flowing.wait()
        host, _, port = proxy.target.partition("://")[2].partition("/")[0].rpartition(":")
        await loop.sock_connect(self._target, (host, int(port)))
        for one in (self._client, self._target):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        async with asyncio.TaskGroup() as group:
            for source, sink, way in (
                (self._client, self._target, proxy.up),
                (self._target, self._client, proxy.down),
            ):
                line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)
                group.create_task(self._read(source, line, way))
                group.create_task(self._write(line, sink, way))

    async def _read(self, source: socket.socket, line: "asyncio.Queue[tuple[float, bytes]]", way: Way) -> None:
        loop = asyncio.get_running_loop()
        data = b"begun"
        while data:
            try:
                data = await loop.sock_recv(source, PIECE)
            except OSError:
                await self._proxy.flowing.wait()
                raise
            await line.put((loop.time() + way.latency, data))

    async def _write(self, line: "asyncio.Queue[tuple[float, bytes]]", sink: socket.socket, way: Way) -> None:
        loop, proxy = asyncio.get_running_loop(), self._proxy
        while self._end is None:  # a task that is cancelled goes on until it has to wait
            due, data = await line.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            await proxy.flowing.wait()
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            while data and self._end is None:
                count = proxy.may_pass(min(len(data), max(1, int(min(way.rate * PIECE_SECONDS, PIECE)))))
                await loop.sock_sendall(sink, data[:count])
                proxy.passed(way, count)
                data = data[count:]
                if way.rate < inf:
                    await asyncio.sleep(count / way.rate)
                await proxy.flowing.wait()

    async def _part(self) -> None:
        """Say that nothing more will come, and wait for the others to say so: who closes earlier sends a reset."""
        loop = asyncio.get_running_loop()

        async def drain(one: socket.socket) -> None:
            with suppress(OSError):  # it is no more, or never was connected
                one.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(one, PIECE):
                    pass

        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await asyncio.gather(drain(self._client), drain(self._target))

    def _close(self, task: "asyncio.Task[None]") -> None:
        with ExitStack() as stack:
            for one in (self._client, self._target):
                stack.callback(one.close)
                if self._end == "reset":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
