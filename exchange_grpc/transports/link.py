"""The pump: moves one session's bytes over one transport. There is one, for all transports.

One reader, which the transport calls, and one writer task. The writer takes from the session whatever
there is, one frame at a time, and waits for the transport after each: what is queued meanwhile leaves
in the next batch. A lone message is written at once.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ..errors import Code, LinkError
from ..limits import DRAIN_SECONDS, HANDSHAKE_SECONDS
from ..message import Message
from ..peer import Ended, Event, Phase, Session
from . import Transport

log = logging.getLogger(__name__)


class Owner(Protocol):
    """Who hears of a link: the exchange."""

    def heard(self, link: "Link", events: list[Event]) -> None:
        """What one frame meant."""

    def late(self, link: "Link", expired: list[Message]) -> None:
        """Messages whose time ended before they could be written."""

    def half_closed(self, link: "Link") -> None:
        """The other side will send no more, but reads."""

    def lost(self, link: "Link", reason: str) -> None:
        """Nothing passes over the link any more. Called once, whatever the reason."""

    def over(self, link: "Link") -> None:
        """... and its transport is closed: nothing is left of it."""


class Link:
    """One transport with its session."""

    def __init__(self, transport: Transport, session: Session, owner: Owner, now: Callable[[], float]) -> None:
        self.transport = transport
        self.session = session
        self.ended: Ended | None = None
        self.read_all = False  # the other side will send no more
        self.over = asyncio.Event()
        self._owner = owner
        self._now = now
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._writer: asyncio.Task[None] | None = None
        self._handshake: asyncio.TimerHandle | None = None
        self._lost = False
        self._finishing = False
        self._why = "the link was closed"
        transport.on_receive(self._receive, self._end)

    def start(self) -> None:
        """Begin to pump, once the transport is connected."""
        loop = asyncio.get_running_loop()
        self._writer = loop.create_task(self._write())
        self._handshake = loop.call_later(HANDSHAKE_SECONDS + 0.01, self._tick)
        self._wake.set()

    def wake(self) -> None:
        """The session has something to say."""
        self._wake.set()
        if self.session.full:
            self._room.clear()

    async def room(self) -> None:
        """Wait until little enough is queued, or the link is over."""
        await self._room.wait()

    async def close(self, code: Code = Code.OK, reason: str = "") -> None:
        """Say goodbye after what is queued, and end; within a bound, whatever the peer does."""
        self.session.goodbye(code, reason)
        self._wake.set()
        try:
            await asyncio.wait_for(self.over.wait(), DRAIN_SECONDS)
        except TimeoutError:
            self._lose("the peer did not take what was queued in time")
            await self.over.wait()

    async def _receive(self, frame: bytes) -> None:
        events = self.session.receive(frame, self._now())
        self._understand(events)

    def _tick(self) -> None:
        self._understand(self.session.tick(self._now()))

    def _understand(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Ended):
                self.ended = event
        if events:
            self._owner.heard(self, events)
        self._wake.set()  # a refusal or a goodbye may wait

    def _end(self, error: Exception | None) -> None:
        if error is not None:
            self._lose(str(error))
        elif not self.read_all:
            self.read_all = True
            self._owner.half_closed(self)

    async def _write(self) -> None:
        session, transport = self.session, self.transport
        reason = "the link was closed"
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while True:
                    data, expired = session.data_to_send(self._now())
                    if expired:
                        self._owner.late(self, expired)
                    if not session.full:
                        self._room.set()
                    if data is not None:
                        await transport.send(data)
                    elif not expired:
                        break
                if session.phase is Phase.CLOSED:
                    if self.ended is not None and self.ended.reason:
                        reason = self.ended.reason
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

    def _lose(self, reason: str) -> None:
        if self._writer is not None and not self._lost:
            self._lost, self._why = True, reason
            # Soon, not now: a task that is cancelled before its first step never gets to clean up.
            asyncio.get_running_loop().call_soon(self._stop_writing)

    def _stop_writing(self) -> None:
        if self._writer is not None and not self._finishing:  # it may have found out by itself
            self._writer.cancel()

    async def _finish(self, reason: str) -> None:
        self._lost = self._finishing = True
        if self._handshake is not None:
            self._handshake.cancel()
        self.session.phase = Phase.CLOSED
        self._owner.lost(self, reason)
        self._room.set()
        try:
            await asyncio.shield(asyncio.wait_for(self.transport.disconnect(), DRAIN_SECONDS))
        except (TimeoutError, asyncio.CancelledError):
            log.warning("a transport did not close within %g s", DRAIN_SECONDS)
        finally:
            self.over.set()
            self._owner.over(self)
