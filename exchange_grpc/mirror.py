"""A mirror: plain values of the state here that follow exported ones of another exchange.

Each change there is one transaction here, of all that changed at once, with the cause that it had there: so
*why* goes on where the value came from. When the watch ends (a link is lost, the other exchange starts anew)
the values stay as they are, and it begins again with a snapshot.
"""

import asyncio
import logging
import random
from collections.abc import Mapping
from contextlib import aclosing

from .errors import RequestError, StateError
from .handlers import Invocation, current
from .limits import MIRROR_PAUSE_SECONDS
from .message import Kind, Message
from .remote import RemoteState, StateValue
from .tasks import State

log = logging.getLogger(__name__)


class Mirror:
    """Of the names of `remote` that are the keys of `names`; their values are the names here."""

    def __init__(self, remote: RemoteState, state: State, names: Mapping[str, str]) -> None:
        self._remote = remote
        self._state = state
        self._names = dict(names)
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._follow())

    async def start(self) -> None:
        """Wait for the first snapshot. Raises what stands against it."""
        try:
            await asyncio.shield(self._first)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Follow no more."""
        self._task.cancel()

    async def stopped(self) -> None:
        """Wait until nothing is left of it."""
        await asyncio.wait({self._task})

    async def _follow(self) -> None:
        pause = MIRROR_PAUSE_SECONDS / 10
        while True:
            try:
                async with aclosing(self._remote.transactions(*self._names)) as transactions:
                    async for states in transactions:
                        self._take(states)
                        pause = MIRROR_PAUSE_SECONDS / 10
                        if not self._first.done():
                            self._first.set_result(None)
            except RequestError as error:
                if not self._first.done():
                    self._first.set_exception(error)
                    return
                log.warning("the mirror of %s waits: %s", self._remote.exchange, error)
            await asyncio.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, MIRROR_PAUSE_SECONDS)

    def _take(self, states: list[StateValue]) -> None:
        newest = max(states, key=lambda state: state.transaction)
        cause = Message(newest.cause, "exchange.state.watch", Kind.REPLY, newest.exchange)
        by = f"the mirror of {newest.exchange}"
        token = current.set(Invocation(cause, None, answered=True, by=by) if newest.cause else None)
        try:
            self._state.update({self._names[state.name]: state.value for state in states})
        except StateError as error:  # a subscriber raised: the change stands
            log.error("%s met an error", by, exc_info=error)
        except Exception as error:
            log.error("%s cannot set what changed there", by, exc_info=error)
        finally:
            current.reset(token)
