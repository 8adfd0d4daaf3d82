"""The replies to a request to many, as whoever asked takes them."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from .errors import LimitExceeded
from .handlers import current
from .limits import BATCH_BYTES, REPLIES, REPLIES_BYTES
from .message import Message

_ENOUGH = 64  # replies that wait while a handler of this process may go on


class Replies:
    """The replies to a request to many, as they come: `async for reply in app.request_many(...)`.

    Each is a Message, with the `value`, or with the `error` of a handler that failed; `from_` says of whom it
    is. It ends when all who handle the name have ended, when there were `max`, or when the time is over; then
    `lost` names the exchanges whose replies are lost or did not all come. The request leaves with the first
    step. Leaving early, by `aclose()` or at the end of `async with`, cancels the handlers.
    """

    def __init__(
        self, ask: Callable[["Replies"], Message], withdraw: Callable[[Message], None], *, to_one: bool, max: int | None
    ) -> None:
        """`ask` sends the request, whose replies go to `take`; `withdraw` cancels it."""
        if max is not None and max < 1:
            raise ValueError("max is at least 1")
        self.lost: tuple[str, ...] = ()
        self.over = False  # nothing more will come
        self._ask = ask
        self._withdraw = withdraw
        self._to_one = to_one
        self._left = max
        self._request: Message | None = None
        self._waiting: deque[Message] = deque()
        self._bytes = 0
        self._error: Exception | None = None  # why nothing more will come
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Send the request, if it has not left."""
        if self._request is None and not self.over:
            self._request = self._ask(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        self.start()
        while not self._waiting and not self.over:
            self._changed.clear()
            try:
                await self._changed.wait()
            except asyncio.CancelledError:
                await self.aclose()
                raise
        if self._waiting:
            return await self._taken()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopAsyncIteration

    async def _taken(self) -> Message:
        reply = self._waiting.popleft()
        self._bytes -= len(reply.payload)
        self._changed.set()
        invocation = current.get()
        if invocation is not None:  # a further cause of what the handler does next
            invocation.after(reply)
        if self._left is not None:
            self._left -= 1
            if not self._left:
                await self.aclose()
        return reply

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Take no more of them."""
        self._waiting.clear()
        if not self.over:
            self.end(None)
            if self._request is not None:
                self._withdraw(self._request)

    def take(self, reply: Message) -> None:
        """One came."""
        if self.over:
            return
        if reply.lost is not None:
            self.lost = reply.lost
            self.end(reply.error)
        elif len(self._waiting) >= REPLIES or self._bytes > REPLIES_BYTES:
            self.end(LimitExceeded(f"more than {REPLIES} replies or {REPLIES_BYTES} bytes wait to be taken"))
            if self._request is not None:
                self._withdraw(self._request)
        else:
            self._waiting.append(reply)
            self._bytes += len(reply.payload)
            self._changed.set()
            if reply.last and self._to_one:
                self.end(None)

    def end(self, error: Exception | None) -> None:
        """No more will come."""
        self.over, self._error = True, error
        self._changed.set()

    async def room(self) -> None:
        """Wait until whoever asked has taken some."""
        while (len(self._waiting) >= _ENOUGH or self._bytes >= BATCH_BYTES) and not self.over:
            self._changed.clear()
            await self._changed.wait()
