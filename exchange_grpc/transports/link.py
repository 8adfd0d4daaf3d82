"""The pump: moves one session's bytes, over one transport after another. There is one, for all transports.

A `Connection` is one transport while it lasts: one reader, which the transport calls, and one writer task.
The writer takes from the session whatever there is, one frame at a time, and waits for the transport after
each: what is queued meanwhile leaves in the next batch. A lone message is written at once.

A `Link` outlives its connections. When one breaks, the link that was dialled dials again: at once, then after
pauses that grow; the other side waits. What the session makes of that is in `peer.py`.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from math import inf
from typing import Any, Protocol

from ..errors import Code, LinkError
from ..frames import Introduction
from ..limits import DIAL_SECONDS, DRAIN_SECONDS, FRAME_COST, Limits
from ..message import Message
from ..peer import Backoff, Broken, Ended, Event, Forgotten, Opened, Phase, Resumed, Session
from . import Transport

log = logging.getLogger(__name__)
_CROWDED_SECONDS = 0.01  # between two looks at whether a peer without credit may send on


class Owner(Protocol):
    """Who hears of a link: `links.Links`."""

    def introduction(self) -> Introduction:
        """What is said of the exchange now."""

    def heard(self, line: Any, events: list[Event]) -> None:
        """What one frame meant, or the time that has passed."""

    def late(self, line: Any, expired: list[Message]) -> None:
        """Messages whose time ended before they could be written."""

    def half_closed(self, line: Any) -> None:
        """The other side will send no more, but reads."""

    def broke(self, line: Any, reason: str) -> None:
        """The connection is gone, and the session may go on over another."""

    def ended(self, line: Any, reason: str, *, returns: bool) -> None:
        """The session is over. `returns`: it will be dialled again, for a new one."""

    def gave_up(self, line: Any, reason: str) -> None:
        """It is not waited for any more."""

    def over(self, line: Any) -> None:
        """Nothing is left of it."""


class Connection:
    """One transport, while it lasts, and the link that it carries."""

    def __init__(self, transport: Transport, link: "Link") -> None:
        self.link = link
        self.over = asyncio.Event()
        self.writing: float | None = None  # since when the transport has not taken a frame
        self._transport = transport
        self._writer: asyncio.Task[None] | None = None
        self._dropped = self._finishing = False
        self._why = "the link was closed"
        self._wake = asyncio.Event()
        transport.on_receive(self._receive, self._end)

    def start(self) -> None:
        """Begin to pump, once the transport is connected."""
        self._writer = asyncio.get_running_loop().create_task(self._write())
        self._wake.set()

    def wake(self) -> None:
        """There may be something to write."""
        self._wake.set()

    def drop(self, reason: str) -> None:
        """End it, whatever the peer does."""
        if self._writer is not None and not self._dropped:
            self._dropped, self._why = True, reason
            # Soon, not now: a task that is cancelled before its first step never gets to clean up.
            asyncio.get_running_loop().call_soon(self._stop_writing)

    def _stop_writing(self) -> None:
        if self._writer is not None and not self._finishing:  # it may have found out by itself
            self._writer.cancel()

    async def _receive(self, frame: bytes) -> None:
        link = self.link
        if link.connection is self:
            pause = link.receive(frame)
            if pause > 0:
                await asyncio.sleep(pause)
            # While nothing is read, the peer's writer waits.
            while link.connection is self and link.session.into.crowded and not link.keeps_to_credit:  # noqa: ASYNC110
                await asyncio.sleep(_CROWDED_SECONDS)

    def _end(self, error: Exception | None) -> None:
        if error is not None:
            self.drop(str(error))
        elif self.link.session.into.acknowledges:  # who resumes says goodbye before he ends
            self.drop("the peer ended the connection")
        elif self.link.connection is self:
            self.link.half_closed()

    async def _write(self) -> None:
        reason = "the link was closed"
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                await self._write_all()
                if self.link.connection is not self:
                    break
                if self.link.session.phase is Phase.CLOSED:
                    reason = self.link.end_reason
                    break
        except LinkError as error:
            reason = str(error)
        except asyncio.CancelledError:
            reason = self._why
        except Exception:
            log.exception("a link failed")
            reason = "the link failed"
        finally:
            await self._finish(reason)

    async def _write_all(self) -> None:
        """Write until the session has no more to say."""
        send = self._transport.send
        while self.link.connection is self:
            data, again = self.link.next_frame()
            if data is not None:
                self.writing = self.link.now()
                await send(data)
                self.writing = None
            elif not again:
                return

    async def _finish(self, reason: str) -> None:
        self._dropped = self._finishing = True
        self.link.disconnected(self, reason)
        try:
            await asyncio.shield(asyncio.wait_for(self._transport.disconnect(), DRAIN_SECONDS))
        except (TimeoutError, asyncio.CancelledError):
            log.warning("a transport did not close within %g s", DRAIN_SECONDS)
        finally:
            self.over.set()
            self.link.closed(self)


class Rate:
    """How fast a peer may go: what it may have at once fills up as time passes, up to that of one second."""

    def __init__(self, per_second: float, now: float) -> None:
        self.slowed = 0  # how often it was too fast
        self._per_second = self._left = per_second
        self._since = now

    def spend(self, cost: float, now: float) -> float:
        """The seconds to wait before the next time."""
        self._left = min(self._per_second, self._left + (now - self._since) * self._per_second) - cost
        self._since = now
        if self._left >= 0:
            return 0.0
        self.slowed += 1
        return -self._left / self._per_second


class Link:
    """A session, and what carries it.

    A link that was dialled is given `dial`, which makes transports to the same place, and dials again
    for `retry` seconds after a break, for a session that has opened once. See `links.Line`.
    """

    def __init__(
        self,
        session: Session,
        owner: Owner,
        now: Callable[[], float],
        limits: Limits,
        *,
        dial: Callable[[], Transport] | None = None,
        retry: float = 0.0,
        address: str = "",
    ) -> None:
        self.session = session
        self.address = address
        self.now = now
        self.connection: Connection | None = None
        self.ended: Ended | None = None
        self.read_all = False
        self.over = asyncio.Event()
        self.opening: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # the peer's id
        self._owner = owner
        self._limits = limits
        self._dial = dial
        self._retry = retry
        self._backoff = Backoff(limits, random.random)
        self._broke_at = 0.0
        self._redialling: asyncio.Task[None] | None = None
        self._leaving = False  # by our own wish
        self._finished = False
        self._connections: set[Connection] = set()  # that are not closed
        self._room = asyncio.Event()
        self._room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._rate = Rate(limits.messages_per_second, now())
        session.into.more_is_welcome = self.wake

    # --------------------------------------------------------------------------------------------- connections

    def attach(self, transport: Transport) -> Connection:
        """A connection for this link, which is not connected yet: see `start`."""
        connection = Connection(transport, self)
        self._connections.add(connection)
        return connection

    def start(self, connection: Connection) -> None:
        """It is connected: go on over this one."""
        self.connection = connection
        self.read_all = False
        connection.start()
        self._arm()

    def take_over(self, other: "Link") -> None:
        """See `links.Line`."""
        connection, former = other.connection, self.connection
        assert connection is not None
        other.connection = None
        other._connections.discard(connection)
        self._connections.add(connection)
        connection.link = self
        self.connection, self.read_all = connection, False
        if former is not None:
            former.drop("the peer has come back by another connection")
        self._stop_redialling()
        connection.wake()
        self._arm()
        other._finish_off()

    def disconnected(self, connection: Connection, reason: str) -> None:
        """It carries nothing any more."""
        if connection is not self.connection:
            return
        self.connection = None
        if self.session.disconnected(self.now()):
            self._owner.broke(self, reason)
            self._come_back(reason)
        else:
            self._session_over(reason)

    def closed(self, connection: Connection) -> None:
        """... and nothing is left of it."""
        self._connections.discard(connection)
        self._check_over()

    def _session_over(self, reason: str) -> None:
        ended = self.ended
        if not self.opening.done():
            self._refused(reason)
        elif self._retry and not self._leaving and ended is not None and self.session.may_return(ended):
            self._owner.ended(self, reason, returns=True)
            self.session.revive(self.now())
            self.ended = None
            self._come_back(reason, ended.retry_after_ms / 1_000)
            return
        elif self._retry and not self._leaving:
            self._owner.gave_up(self, reason)
        self._owner.ended(self, reason, returns=False)
        self._finish_off()

    def _refused(self, reason: str) -> None:
        ended = self.ended
        if ended is not None and ended.code is Code.ALREADY_EXISTS and ended.by:
            self.opening.set_result(ended.by)  # the two have dialled each other: the other link may be there
        else:
            self.opening.set_exception(LinkError(f"the link was refused or lost: {reason}"))
            self.opening.exception()  # who dialled may have gone, and nobody else asks

    def _finish_off(self) -> None:
        if self._finished:
            return
        self._finished = True
        self._stop_redialling()
        if self._timer is not None:
            self._timer.cancel()
        self._room.set()
        self._check_over()

    def _check_over(self) -> None:
        if self._finished and not self._connections:
            self.over.set()
            self._owner.over(self)

    # ------------------------------------------------------------------------------------------------ redialling

    def _come_back(self, reason: str, pause: float = 0.0) -> None:
        """The connection is gone: dial again, or wait for the peer to do so."""
        self._arm()
        self._backoff.broke(self.now())
        if self._dial is None:
            return
        if self._redialling is None:
            if not self._broke_at:
                self._broke_at = self.now()
            self._redialling = asyncio.get_running_loop().create_task(self._redial(reason, pause))

    def _stop_redialling(self) -> None:
        task, self._redialling = self._redialling, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _redial(self, reason: str, pause: float) -> None:
        try:
            while True:
                seconds = max(pause, self._backoff.next())
                pause = 0.0
                if self.now() + seconds - self._broke_at > self._retry:
                    break
                await asyncio.sleep(seconds)
                if await self._connected():
                    return
            self._redialling = None
            self.session.goodbye()
            self._owner.gave_up(self, f"{reason}, and it was not back within {self._retry:g} s")
            self._finish_off()
        finally:
            if self._redialling is asyncio.current_task():
                self._redialling = None

    async def _connected(self) -> bool:
        """One attempt."""
        assert self._dial is not None
        transport = self._dial()
        connection = self.attach(transport)
        done = False
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                await transport.connect()
            self._redialling = None  # from here on, a break begins a new one
            self.session.dial(self._owner.introduction(), self.now())
            self.start(connection)
            done = True
        except (LinkError, TimeoutError):
            pass
        finally:
            if not done:
                await transport.disconnect()
                self.closed(connection)
        return done

    # ------------------------------------------------------------------------------------------ what is said

    def receive(self, frame: bytes) -> float:
        """A frame came in. For how many seconds no more should be read."""
        now, before = self.now(), self.session.into.received
        self._understand(self.session.receive(frame, now))
        self.wake()  # an answer, a refusal or a goodbye may wait
        self._arm()
        return self._rate.spend(FRAME_COST + max(0, self.session.into.received - before), now)

    def next_frame(self) -> tuple[bytes | None, bool]:
        """What to write next, and whether to ask again."""
        data, expired = self.session.data_to_send(self.now())
        if expired:
            self._owner.late(self, expired)
        if not self.session.full:
            self._room.set()
        return data, bool(expired)

    def half_closed(self) -> None:
        """The other side will send no more, but reads."""
        if not self.read_all:
            self.read_all = True
            self._owner.half_closed(self)

    @property
    def slowed(self) -> int:
        """How often the peer sent faster than it may."""
        return self._rate.slowed

    @property
    def keeps_to_credit(self) -> bool:
        """The peer sends no more than it was given credit for."""
        peer = self.session.peer
        return peer is not None and peer.credit is not None

    @property
    def end_reason(self) -> str:
        """Why the session is over."""
        return self.ended.reason if self.ended is not None and self.ended.reason else "the link was closed"

    def wake(self) -> None:
        """See `links.Line`."""
        if self.connection is not None:
            self.connection.wake()
        elif self.session.phase is Phase.CLOSED:  # not to be dialled again either
            self._finish_off()
        if self.session.full:
            self._room.clear()

    def settled(self, peer: str) -> None:
        """See `links.Line`."""
        if not self.opening.done():
            self.opening.set_result(peer)

    async def room(self) -> None:
        """Wait until little enough is queued, or nobody should wait any more."""
        await self._room.wait()

    async def close(
        self, code: Code = Code.OK, reason: str = "", *, retry_after_ms: int = 0, stay_away: bool = False
    ) -> None:
        """Say goodbye after what is queued, and end; within a bound, whatever the peer does."""
        self._leaving = True
        self._stop_redialling()
        self.session.goodbye(code, reason, retry_after_ms=retry_after_ms, stay_away=stay_away)
        if self.connection is None and not self._finished:
            self._owner.ended(self, reason or "the link was closed", returns=False)
            self._finish_off()
        self.wake()
        try:
            await asyncio.wait_for(self.over.wait(), DRAIN_SECONDS)
        except TimeoutError:
            if self.connection is not None:
                self.connection.drop("the peer did not take what was queued in time")
            await self.over.wait()

    def _understand(self, events: list[Event]) -> None:
        if not events:
            return
        for event in events:
            if isinstance(event, Ended):
                self.ended = event
            elif isinstance(event, Opened | Resumed):
                self._backoff.made(self.now())
                self._broke_at = 0.0
        self._owner.heard(self, events)
        for event in events:
            if isinstance(event, Broken):
                self._break(event)
            elif isinstance(event, Forgotten) and self._dial is None:
                self._owner.gave_up(self, f"it was not back within {self._limits.resume_seconds:g} s")
                self._finish_off()
        if not self.session.full:
            self._room.set()

    def _break(self, event: Broken) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.drop(event.reason)
        self._come_back(event.reason, event.retry_after_ms / 1_000)

    # ------------------------------------------------------------------------------------------------------- time

    def _arm(self) -> None:
        if self._finished:
            return
        # A peer that does not read is noticed although its session has nothing to wait for.
        due = min(self.session.next_deadline(), self.now() + self._limits.silence_seconds)
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer, self._timer_due = asyncio.get_running_loop().call_at(due, self._tick), due

    def _tick(self) -> None:
        self._timer = None
        now = self.now()
        self._understand(self.session.tick(now))
        connection = self.connection
        if connection is not None and now - (connection.writing or inf) > self._limits.silence_seconds:
            connection.drop(f"it has read nothing for {self._limits.silence_seconds:g} s")
        self.wake()
        self._arm()
