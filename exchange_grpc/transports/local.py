"""Local: two exchanges of one process, frame by frame, as over any other transport."""

import asyncio
from contextlib import suppress

from ..errors import LinkError
from . import End, Receive

_FRAMES = 16  # that wait between the two: a writer that is ahead of its reader waits


class LocalTransport:
    """One end of a pair; `pair` makes both."""

    def __init__(self) -> None:
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue(_FRAMES)
        self._other: LocalTransport = self
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    @classmethod
    def pair(cls) -> "tuple[LocalTransport, LocalTransport]":
        """Both ends."""
        one, two = cls(), cls()
        one._other, two._other = two, one
        return one, two

    def on_receive(self, receive: Receive, end: End) -> None:
        """See `Transport`."""
        self._receive, self._end = receive, end

    async def connect(self) -> None:
        """See `Transport`."""
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def send(self, frame: bytes) -> None:
        """See `Transport`."""
        if self._closed or self._other._closed:
            raise LinkError("the other end was closed")
        await self._other._inbox.put(frame)
        if self._closed or self._other._closed:
            raise LinkError("the other end was closed")

    async def disconnect(self) -> None:
        """See `Transport`."""
        if self._closed:
            return
        self._closed = True
        while not self._inbox.empty():  # whoever waits to send to us finds out
            self._inbox.get_nowait()
        with suppress(asyncio.QueueFull):  # then the other end has enough to read, and looks after each frame
            self._other._inbox.put_nowait(None)
        if self._reader is not None and self._reader is not asyncio.current_task():
            self._reader.cancel()
            await asyncio.wait({self._reader})

    async def _read(self) -> None:
        while not (self._other._closed and self._inbox.empty()):
            frame = await self._inbox.get()
            if frame is not None and not self._closed:
                await self._receive(frame)
        if not self._closed:
            self._end(LinkError("the other end was closed"))
