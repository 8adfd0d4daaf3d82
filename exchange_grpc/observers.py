"""The observers: who sees all that is received, forwarded, emitted or set here, and claims nothing.

Law: an observer costs those who work nearly nothing. It sees one message after another, in order, and
misses those for which its queue has no room. What the system says of itself (`exchange.event.**`) is seen
only by patterns that begin with `exchange.`: so nobody who observes everything sees himself.
"""

import asyncio
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from math import inf
from typing import Any

from .handlers import Function, Invocation, Registered, added, current, missed, register
from .limits import (
    DRAIN_SECONDS,
    OBSERVER_BURST,
    OBSERVER_PAUSE_SECONDS,
    OBSERVER_QUEUE,
    OBSERVER_QUEUE_BYTES,
    RECORDED_TEXT,
)
from .message import Message, Seen
from .patterns import RESERVED, PatternMap

Watcher = Callable[[Message, Seen], None]
LOG_EVENT = f"{RESERVED}event.log"
log = logging.getLogger(__name__)


class Observers:
    """Those of one exchange. Plain functions run on `threads()`. `changed()` is called when some come or go."""

    def __init__(self, threads: Callable[[], Executor], changed: Callable[[], None] = lambda: None) -> None:
        self._threads = threads
        self._all: PatternMap[Watcher] = PatternMap(lambda pattern, new: changed())
        self._of_events: PatternMap[Watcher] = PatternMap()
        self._functions: dict[_Observer, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._all)

    def __len__(self) -> int:
        return sum(1 for patterns in (self._all, self._of_events) for _ in patterns.items())

    def wants(self, event: str) -> bool:
        """Whether somebody observes this event of the system."""
        return bool(self._of_events and self._of_events.match(event))

    def watch(self, pattern: str, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` at once, on the loop: it misses nothing, and must neither wait nor raise."""
        return added(self._of_events if pattern.startswith(RESERVED) else self._all, pattern, watcher)

    def observe(self, pattern: str, function: Function) -> Callable[[], None]:
        """Call `function` soon, for one message after another. Returns what takes it away again."""
        registered = register(function, 2)
        if registered.generates:
            raise TypeError(f"{function!r} is an async generator, and nobody would take what it yields")
        observer = _Observer(registered, self._threads, self._tasks)
        remove = self.watch(pattern, observer.take)
        self._functions[observer] = pattern

        def forget() -> None:
            remove()
            if self._functions.pop(observer, None) is not None:
                observer.stop()

        return forget

    def observed(self, seen: Seen, message: Message) -> None:
        """Show `message` to those who observe it."""
        for watcher in (self._of_events if message.name.startswith(RESERVED) else self._all).match(message.name):
            watcher(message, seen)

    def described(self) -> list[dict[str, Any]]:
        """Those that are functions, in plain JSON."""
        return [
            {"pattern": pattern, "function": observer.function.label, "missed": observer.function.missed}
            for observer, pattern in self._functions.items()
        ]

    async def close(self) -> None:
        """Stop those that run."""
        tasks = self._tasks - {asyncio.current_task()}  # one may close the exchange that it observes
        for observer in self._functions:
            observer.stop()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=DRAIN_SECONDS)


class Backlog:
    """The messages that wait for one observer: so many and so large at most; others are counted as missed.

    With a `rate`, at most so many a second come in on average, whether they wait or not.
    """

    def __init__(self, rate: float = inf, now: Callable[[], float] = lambda: 0.0) -> None:
        self.missed = 0  # since the last that was taken
        self._waiting: deque[tuple[Message, Seen]] = deque()
        self._bytes = 0
        self._rate, self._now = rate, now
        self._may_come, self._since = float(OBSERVER_BURST), now()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Message, seen: Seen) -> bool:
        """Whether there was room for it."""
        size = len(message.payload)
        if (
            len(self._waiting) >= OBSERVER_QUEUE
            or (self._bytes + size > OBSERVER_QUEUE_BYTES and self._waiting)
            or (self._rate < inf and not self._may_pass())
        ):
            self.missed += 1
            return False
        self._waiting.append((message, seen))
        self._bytes += size
        return True

    def _may_pass(self) -> bool:
        if self._may_come < 1:
            now = self._now()
            self._may_come = min(OBSERVER_BURST, self._may_come + (now - self._since) * self._rate)
            self._since = now
            if self._may_come < 1:
                return False
        self._may_come -= 1
        return True

    def take(self) -> tuple[Message, Seen]:
        """The oldest."""
        message, seen = self._waiting.popleft()
        self._bytes -= len(message.payload)
        return message, seen


class LogEvents(logging.Handler):
    """Hands on what the package logs, without tracebacks: they are for those who run it."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """See logging."""
        try:
            text = record.getMessage()[:RECORDED_TEXT].encode("utf-8", "replace").decode()
            self._tell({"level": record.levelname.lower(), "logger": record.name, "text": text})
        except Exception:
            self.handleError(record)


class _Observer:
    """A function, and the messages that wait for it."""

    def __init__(self, function: Registered, threads: Callable[[], Executor], tasks: set[asyncio.Task[None]]) -> None:
        self.function = function
        self.task: asyncio.Task[None] | None = None
        self._threads = threads
        self._tasks = tasks
        self._stopped = False
        self._waiting = Backlog()

    def take(self, message: Message, seen: Seen) -> None:
        """See `Watcher`."""
        if not self._waiting.put(message, seen):
            missed(self.function, quietly=message.name == LOG_EVENT)
        elif self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._work())
            self._tasks.add(self.task)
            self.task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """It is called no more, but for what it is called for now."""
        self._stopped = True

    async def _work(self) -> None:
        waiting = self._waiting
        try:
            while waiting and not self._stopped:
                if self.function.on_loop:
                    message, seen = waiting.take()
                    await self._call_async(message, self.function.call(*(message, seen)[: self.function.arity]))
                else:  # many at a time: to go to a thread and back costs more than most functions
                    batch = deque(waiting.take() for _ in range(len(waiting)))
                    call = asyncio.get_running_loop().run_in_executor(self._threads(), self._call_all, batch)
                    left = await call
                    while left is not None:  # it wants to be awaited before it is called again
                        await self._call_async(*left)
                        call = asyncio.get_running_loop().run_in_executor(self._threads(), self._call_all, batch)
                        left = await call
                    await asyncio.sleep(OBSERVER_PAUSE_SECONDS)
        finally:
            self.task = None

    async def _call_async(self, message: Message, result: Awaitable[Any]) -> None:
        self._begin(message)
        try:
            await result
        except asyncio.CancelledError as problem:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._failed(message, problem)  # what it awaited was cancelled
        except (Exception, SystemExit) as problem:
            self._failed(message, problem)

    def _call_all(self, batch: deque[tuple[Message, Seen]]) -> tuple[Message, Awaitable[Any]] | None:
        """In a thread: call it for one after another, until there is something to be awaited."""
        context = contextvars.copy_context()
        while batch and not self._stopped:
            message, seen = batch.popleft()
            result = context.run(self._call, message, seen)
            if inspect.isawaitable(result):
                return message, result
        return None

    def _call(self, message: Message, seen: Seen) -> Any:
        self._begin(message)
        try:
            return self.function.call(*(message, seen)[: self.function.arity])
        except (Exception, SystemExit) as problem:
            self._failed(message, problem)

    def _begin(self, message: Message) -> None:
        current.set(Invocation(message, None, answered=True, by=self.function.label))

    def _failed(self, message: Message, problem: BaseException) -> None:
        if message.name != LOG_EVENT:  # or it would see its own failure, for ever
            log.error("%s failed at %s %s", self.function.label, message.name, message.id, exc_info=problem)
