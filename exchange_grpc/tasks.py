"""State as users get it: `reactive.State` with the clock of this machine and the loop of asyncio.

`reactive` imports neither, so that simulations bring their own. `from exchange_grpc import State` is
the one in here.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

from . import reactive
from .kernel import Kernel

Done = Callable[[Any, BaseException | None], None]


class LoopTasks:
    """Runs coroutines on an event loop: the running one, else the last one seen, else the first that waits for them.

    So a state may be made before there is a loop (its coroutines begin with the first `settled`), and be
    set from any thread.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself holds tasks weakly
        self._unstarted: list[tuple[Coroutine[Any, Any, Any], Done]] = []
        self._lock = threading.Lock()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], done: Done) -> None:
        """Run `coroutine` as a task, then call `done(result, error)` on its loop. Any thread may call this."""
        with self._lock:
            with suppress(RuntimeError):
                self._loop = asyncio.get_running_loop()
                self._start(coroutine, done)
                return
            try:
                if self._loop is None:
                    raise RuntimeError("no loop yet")
                self._loop.call_soon_threadsafe(self._start, coroutine, done)
            except RuntimeError:  # none, or closed
                self._unstarted.append((coroutine, done))

    def waiter(self) -> tuple[Callable[[], None], Awaitable[None]]:
        """A function for any thread that ends the awaitable; what had no loop before starts on this one."""
        loop = asyncio.get_running_loop()
        with self._lock:
            self._loop = loop
            unstarted, self._unstarted = self._unstarted, []
            for coroutine, done in unstarted:
                self._start(coroutine, done)
        arrived: asyncio.Future[None] = loop.create_future()

        def arrive() -> None:
            if not arrived.done():
                arrived.set_result(None)

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                loop.call_soon_threadsafe(arrive)

        return wake, arrived

    def _start(self, coroutine: Coroutine[Any, Any, Any], done: Done) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, done))

    def _ended(self, task: asyncio.Task[Any], done: Done) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            done(None, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            done(None, error)
        else:
            done(task.result(), None)


class State(reactive.State):
    """Reactive state whose async computed values run on asyncio, and whose transactions have the time of day."""

    __slots__ = ()

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        kernel: Kernel | None = None,
        cause: Callable[[], object] | None = None,
        now: Callable[[], float] = time.time,
        tasks: reactive.Tasks | None = None,
    ) -> None:
        super().__init__(values, kernel=kernel, cause=cause, now=now, tasks=tasks or LoopTasks())
