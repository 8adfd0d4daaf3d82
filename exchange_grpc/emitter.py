"""What an exchange emits, and what it waits for afterwards.

Law: every message that begins here, for this exchange or for a caller who is none, is made here and given to
routing once. Whoever waits, waits in one of three tables: for a message to leave, for the reply to a request,
for the replies to a request to many. Routing says how it ended, always; and the end of the exchange ends all.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from .errors import ExchangeError
from .handlers import current
from .limits import MESSAGE_BYTES, MESSAGE_SECONDS, REQUEST_SECONDS
from .links import Links
from .message import NO_HEADERS, Context, Kind, Message, Origin, encode_value
from .patterns import check_id, check_name
from .replies import Replies
from .routing import HERE, Arrival
from .transports.link import Link
from .wire import check_headers, pack

_FOREVER = 1e9  # seconds: what the wire says of a longer timeout; it counts microseconds


class _Dispatch:
    """A message that is being sent: over which link it went, if it did, and how that ended."""

    __slots__ = ("done", "error", "future", "line")

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None
        self.future: asyncio.Future[None] | None = None  # for whoever waits for the end
        self.line: Link | None = None

    def end(self, error: Exception | None) -> None:
        """It has left, or cannot."""
        if not self.done:
            self.done, self.error = True, error
            if self.future is not None and not self.future.done():
                self.future.set_result(None)


class Emitter:
    """Makes messages and gives them to routing: `signal` does that. `enter` is the loop, if it is ours and open."""

    def __init__(
        self,
        origin: Origin,
        links: Links[Link, Any],
        *,
        now: Callable[[], float],
        enter: Callable[[], asyncio.AbstractEventLoop],
        signal: Callable[[str, Any], None],
    ) -> None:
        self._origin = origin
        self._links = links
        self._now = now
        self._enter = enter
        self._signal = signal
        self._dispatching: dict[str, _Dispatch] = {}
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._replies: dict[str, Replies] = {}
        self._over = False

    # ------------------------------------------------------------------------------------------ of this exchange

    async def send(
        self, kind: Kind, name: str, value: Any, to: str, headers: Mapping[str, str], via: str | None = None
    ) -> str:
        """A send, a publication or a broadcast: its id, when it has left and there is room for more."""
        message = self.compose(kind, name, value, to, headers, MESSAGE_SECONDS)
        await self._emit(message, via)
        return message.id

    async def ask(
        self,
        name: str,
        value: Any,
        to: str,
        timeout: float | None,
        headers: Mapping[str, str],
        via: str | None = None,
    ) -> Message:
        """A request: its reply. Raises the error of one that has it."""
        message = self.compose(Kind.REQUEST, name, value, to, headers, self._time_for(timeout))
        reply = await self._await_reply(message, via)
        invocation = current.get()
        if invocation is not None:
            invocation.after(reply)
        if reply.error is not None:
            raise reply.error
        return reply

    def ask_many(
        self,
        name: str,
        value: Any,
        to: str,
        max: int | None,
        timeout: float | None,
        headers: Mapping[str, str],
        via: str | None = None,
    ) -> Replies:
        """A request to many: its replies. It leaves when the first of them is asked for."""

        def ask(replies: Replies) -> Message:
            message = self.compose(Kind.REQUEST, name, value, to, headers, self._time_for(timeout), many=True)
            return self._ask_many(replies, message, via)

        return Replies(ask, self._withdraw, to_one=bool(to), max=max)

    def compose(
        self,
        kind: Kind,
        name: str,
        value: Any,
        to: str,
        headers: Mapping[str, str],
        seconds: float,
        *,
        many: bool = False,
    ) -> Message:
        """A message, caused by the one that is being handled. Raises InvalidMessage."""
        check_name(name)
        if to:
            check_id(to)
        payload, content_type = encode_value(value)
        invocation = current.get()
        message = self._origin.make(
            kind, name, Context() if invocation is None else invocation.context, self._now(),
            to=to, payload=payload, content_type=content_type, seconds=seconds, many=many,
            headers=check_headers(dict(headers)) if headers else NO_HEADERS,
        )  # fmt: skip
        if len(payload) > MESSAGE_BYTES // 2:  # a smaller one has room enough for all the rest
            pack(message)  # which refuses what is too large, here and not at each link
        return message

    def route(self, message: Message) -> None:
        """Let it go its way; nobody waits."""
        self._signal("route", Arrival(message, HERE, self._now()))

    def _time_for(self, timeout: float | None) -> float:
        """The seconds that a request has."""
        if timeout is not None:
            if math.isnan(timeout):
                raise ValueError("timeout is a number of seconds, not NaN")
            return min(timeout, _FOREVER)
        invocation = current.get()
        if invocation is None:
            return REQUEST_SECONDS
        return min(REQUEST_SECONDS, invocation.message.deadline - self._now())

    async def _emit(self, message: Message, via: str | None = None) -> None:
        loop = self._enter()
        dispatch = self._dispatching[message.id] = _Dispatch()
        try:
            name = "broadcast" if message.kind is Kind.BROADCAST else "route"
            self._signal(name, Arrival(message, HERE, self._now(), via))
            if not dispatch.done:  # nearly always it is
                dispatch.future = loop.create_future()
                await dispatch.future
        finally:
            del self._dispatching[message.id]
        if dispatch.error is not None:
            raise dispatch.error
        # Whoever sends much must let the writers run. A send waits for its link; what goes to many
        # must not wait for the slowest of them.
        line = dispatch.line
        if line is not None and line.session.full:
            if message.kind is Kind.SEND or len(self._links.by_peer) == 1:
                await line.room()
            else:
                await asyncio.sleep(0)

    async def _await_reply(self, message: Message, via: str | None = None) -> Message:
        loop = self._enter()
        future: asyncio.Future[Message] = loop.create_future()
        self._waiting[message.id] = future
        try:
            self._signal("route", Arrival(message, HERE, self._now(), via))
            return await future
        except asyncio.CancelledError:
            self._withdraw(message)
            raise
        finally:
            del self._waiting[message.id]

    def _ask_many(self, replies: Replies, message: Message, via: str | None = None) -> Message:
        self._enter()
        self._replies[message.id] = replies
        self._signal("route", Arrival(message, HERE, self._now(), via))
        return message

    def _withdraw(self, request: Message) -> None:
        """Nobody waits for the answer to this request any more."""
        self._replies.pop(request.id, None)
        if not self._over:
            cancel = self._origin.make(Kind.CANCEL, request.name, Context.of(request), self._now(), reply_to=request.id)
            self.route(cancel)

    # ----------------------------------------------------------------------------- for callers who are no exchange

    async def relay_send(self, message: Message) -> str:
        """See `transports.Host`."""
        emitted = self._adopt(message, message.kind)
        await self._emit(emitted)
        return emitted.id

    async def relay_request(self, message: Message, timeout: float | None) -> Message:
        """See `transports.Host`."""
        return await self._await_reply(self._adopt(message, Kind.REQUEST, timeout))

    def relay_many(self, message: Message, timeout: float | None) -> Replies:
        """See `transports.Host`."""
        request = self._adopt(message, Kind.REQUEST, timeout, many=True)
        replies = Replies(partial(self._ask_many, message=request), self._withdraw, to_one=bool(request.to), max=None)
        replies.start()
        return replies

    def _adopt(self, message: Message, kind: Kind, seconds: float | None = None, *, many: bool = False) -> Message:
        """A message of our own that carries what `message` does."""
        now = self._now()
        left = message.deadline - now
        return self._origin.make(
            kind, message.name, Context(traceparent=message.hop_trace.traceparent), now,
            to=message.to, payload=message.payload, content_type=message.content_type, headers=message.headers,
            seconds=left if seconds is None else min(left, seconds), many=many,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------- what becomes of them

    def left(self, id: str, line: Link) -> None:
        """A message has been put on this link."""
        if self._dispatching:
            dispatch = self._dispatching.get(id)
            if dispatch is not None:
                dispatch.line = line

    def dispatched(self, id: str, error: ExchangeError | None) -> None:
        """A message has left, or cannot."""
        dispatch = self._dispatching.get(id)
        if dispatch is not None:
            dispatch.end(error)

    def resolve(self, id: str, reply: Message) -> None:
        """A reply to this request came."""
        replies = self._replies.get(id)
        if replies is not None:
            replies.take(reply)
            if replies.over:
                self._replies.pop(id, None)
            return
        future = self._waiting.get(id)
        if future is not None and not future.done():
            future.set_result(reply)

    def replies_to(self, id: str) -> Replies | None:
        """Those to a request to many of ours that is open."""
        return self._replies.get(id)

    def fail(self, id: str, error: ExchangeError) -> None:
        """This message could not be routed."""
        self.dispatched(id, error)
        waiting = self._waiting.get(id)
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)
        replies = self._replies.pop(id, None)
        if replies is not None:
            replies.end(error)

    def close(self, error: ExchangeError) -> None:
        """The exchange is closed: nothing leaves any more, and whoever waits is told."""
        self._over = True
        for id in [*self._dispatching, *self._waiting, *self._replies]:
            self.fail(id, error)
