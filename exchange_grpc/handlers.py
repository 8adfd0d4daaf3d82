"""The public table: who handles, listens, subscribes and observes here, and how their functions run.

Law: what comes over a wire resolves in this table and nowhere else; the kernel's own signals are not
in it. `async def` functions run on the loop, plain `def` ones in a bounded pool of threads with the
context copied. Each function runs at most `HANDLER_CONCURRENCY` times at once; what comes then waits
in order of arrival, at most `HANDLER_QUEUE` of it.

While a function runs, `current` holds its *invocation*: the message, what stands behind whatever it
emits, and whether it may still answer. Child tasks and threads inherit it; once the function has
ended they keep the cause, not the right to answer.
"""

import asyncio
import contextvars
import functools
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import Code, HandlerFailed, InvalidMessage, Refused, RequestError
from .limits import DRAIN_SECONDS, HANDLER_CONCURRENCY, HANDLER_QUEUE, HANDLER_THREADS
from .message import Context, Kind, Message, Outcome
from .patterns import LOCAL_EVENTS, RESERVED, PatternMap, check_name, check_pattern
from .peer import QueueFull
from .wire import refused

Function = Callable[..., Any]
T = TypeVar("T", bound=Hashable)
log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Invocation:
    """One run of a function for one message."""

    message: Message
    link: str | None  # the peer it came from; None if it was emitted here
    answered: bool = False  # the first answer wins
    by: str = ""  # the function
    running: bool = True
    withdrawn: bool = False
    task: "asyncio.Task[None] | None" = None
    _context: Context | None = None

    @property
    def context(self) -> Context:
        """What stands behind whatever is emitted now."""
        if self._context is None:  # most functions that only look on never ask
            self._context = Context.of(self.message)
        return self._context

    def after(self, reply: Message) -> None:
        """A reply was awaited: a further cause of what follows."""
        self._context = self.context.then(reply)


current: contextvars.ContextVar[Invocation | None] = contextvars.ContextVar("exchange_invocation", default=None)


@dataclass(slots=True, eq=False)
class Registered:
    """A function with its queue."""

    call: Function
    arity: int  # how many of the arguments it takes
    label: str
    on_loop: bool
    generates: bool  # an async generator: each value that it yields is a reply
    most: int  # at once
    running: int = 0
    waiting: deque[tuple[Invocation, tuple[Any, ...], "Done"]] = field(default_factory=deque)
    missed: int = 0
    calls: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(slots=True, frozen=True)
class Ending:
    """How a run ended."""

    outcome: Outcome
    by: str
    seconds: float
    result: Any = None
    error: RequestError | None = None


Done = Callable[[Invocation, Ending], None]


def register(function: Function, arguments: int, most: int | None = None) -> Registered:
    """`function` ready to be called with as many of so many positional `arguments` as it takes.

    Raises TypeError if it is not callable or insists on more.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is not a function")
    inner = function.func if isinstance(function, functools.partial) else function
    forms = (inner, getattr(inner, "__call__", None))  # noqa: B004  # of a callable object
    label = getattr(inner, "__qualname__", type(inner).__name__)
    on_loop, generates = any(map(inspect.iscoroutinefunction, forms)), any(map(inspect.isasyncgenfunction, forms))
    return Registered(function, _arity(function, arguments), label, on_loop, generates, most or HANDLER_CONCURRENCY)


def _arity(function: Function, most: int) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return 1
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return most
    needed = sum(p.default is p.empty for p in positional)
    if needed > most or any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in parameters):
        raise TypeError(f"{function!r} is called with at most {most} arguments")
    # A parameter with a default keeps it: `def f(msg, name=name)` is how functions are made in a loop.
    return max(needed, min(1, len(positional)))


class Handlers:
    """The public table of one exchange."""

    def __init__(
        self,
        exchange: str,
        now: Callable[[], float],
        offer: Callable[[str, bool], None],
        subscribe: Callable[[str, bool], None],
        reply: Callable[[Invocation, Any], Awaitable[None]],
    ) -> None:
        """`reply(invocation, value)` sends one of many replies, and returns when there is room for more."""
        self._exchange = exchange
        self._now = now
        self._offer = offer
        self._reply = reply
        self._handlers: dict[str, Registered] = {}
        self._listeners: dict[str, list[tuple[str | None, Registered]]] = {}  # name -> (only this peer, function)
        self._subscribers: PatternMap[Registered] = PatternMap(subscribe)
        self._requests: dict[str, Invocation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool: ThreadPoolExecutor | None = None

    # ------------------------------------------------------------------------------------------- registering

    def handle(
        self, name: str, function: Function, *, system: bool = False, most: int | None = None
    ) -> Callable[[], None]:
        """The one function that answers `name`, so many at once if `most` says so. Returns what takes it away again."""
        check_name(name)
        if (name.startswith(RESERVED) or name in LOCAL_EVENTS) and not system:
            raise InvalidMessage(f"the name {name!r} is reserved for the system")
        if name in self._handlers:
            raise ValueError(f"{name!r} has a handler already: {self._handlers[name].label}")
        registered = self._handlers[name] = register(function, 3, most)
        if system:
            registered.label = name
        self._claim(name)

        def remove() -> None:
            if self._handlers.get(name) is registered:
                del self._handlers[name]
                self._claim(name)

        return remove

    def listen(self, name: str, function: Function, peer: str | None = None) -> Callable[[], None]:
        """A function that runs beside the handler of `name`, for what came over the link to `peer` if one is given."""
        check_name(name)
        if name.startswith(RESERVED):
            raise InvalidMessage(f"the name {name!r} is reserved for the system")
        entry = (peer, register(function, 3))
        self._listeners.setdefault(name, []).append(entry)
        self._claim(name)

        def remove() -> None:
            entries = self._listeners.get(name, [])
            if entry in entries:
                entries.remove(entry)
                if not entries:
                    del self._listeners[name]
                self._claim(name)

        return remove

    def subscribe(self, pattern: str, function: Function) -> Callable[[], None]:
        """A function for publications whose name fits, from anywhere in the mesh."""
        return added(self._subscribers, pattern, register(function, 3))

    def _claim(self, name: str) -> None:
        if name not in LOCAL_EVENTS:
            self._offer(name, name in self._handlers or name in self._listeners)

    # --------------------------------------------------------------------------------------------- delivering

    def deliver(self, message: Message, link: str | None, arguments: tuple[Any, ...], done: Done) -> bool:
        """Start what is registered for `message`; False if nothing is. `done` hears how the handler ended.

        Raises QueueFull if the handler's queue is.
        """
        if message.kind is Kind.PUBLISH:
            beside: Iterable[Registered] = self._subscribers.match(message.name)
            handler = None
        elif message.name in LOCAL_EVENTS:  # an event of this exchange is not for others to make
            return False
        else:
            beside = [f for peer, f in self._listeners.get(message.name, ()) if peer is None or peer == link]
            handler = self._handlers.get(message.name)
        if handler is None and not beside:  # perhaps a listener to another peer claims the name
            return False
        invocation = Invocation(message, link)
        if handler is not None:
            if message.kind is Kind.REQUEST:
                self._requests[message.id] = invocation
            self._start(handler, invocation, arguments, done)
        for listener in beside:
            self._beside(listener, Invocation(message, link, answered=True), arguments)
        if handler is None:
            done(invocation, Ending(Outcome.HANDLED, "listeners", 0.0))
        return True

    def signalled(self, event: Message, arguments: tuple[Any, ...]) -> None:
        """Run the listeners of an event of this exchange itself, such as `message.unhandled`."""
        for _, listener in self._listeners.get(event.name, ()):
            self._beside(listener, Invocation(event, None, answered=True), arguments)

    def withdraw(self, request: str) -> None:
        """Cancel the handler of a request: it sees CancelledError where it awaits."""
        invocation = self._requests.get(request)
        if invocation is not None:
            invocation.withdrawn = invocation.answered = True
            if invocation.task is not None:
                # Soon, not now: a task that is cancelled before its first step never gets to clean up.
                asyncio.get_running_loop().call_soon(invocation.task.cancel)
            else:  # it waits for its turn, which it will not get
                del self._requests[request]

    def _beside(self, function: Registered, invocation: Invocation, arguments: tuple[Any, ...]) -> None:
        try:
            self._start(function, invocation, arguments, _nothing)
        except QueueFull:
            missed(function)

    def _start(self, function: Registered, invocation: Invocation, arguments: tuple[Any, ...], done: Done) -> None:
        if function.running < function.most:
            self._run(function, invocation, arguments, done)
        elif len(function.waiting) < HANDLER_QUEUE:
            function.waiting.append((invocation, arguments, done))
        else:
            self._forget(invocation)
            raise QueueFull(f"more than {HANDLER_QUEUE} messages wait for {function.label}")

    def _run(self, function: Registered, invocation: Invocation, arguments: tuple[Any, ...], done: Done) -> None:
        function.running += 1
        function.calls += 1
        invocation.by = function.label
        task = asyncio.get_running_loop().create_task(self._call(function, invocation, arguments, done))
        invocation.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, function: Registered, invocation: Invocation, arguments: tuple[Any, ...], done: Done) -> None:
        current.set(invocation)
        message, started = invocation.message, self._now()
        outcome, result = Outcome.HANDLED, None
        error: RequestError | None = None
        try:
            _read(message)
            result = await self._result(function, invocation, arguments[: function.arity])
        except asyncio.CancelledError:
            outcome, error = Outcome.CANCELLED, HandlerFailed("the handler was stopped", at=self._exchange)
        except Refused as problem:  # raised on purpose, to be told
            problem.at = self._exchange
            outcome, error = Outcome.FAILED if problem.code is Code.INTERNAL else Outcome.DENIED, problem
        except (Exception, SystemExit) as problem:
            log.error("%s failed at %s %s", function.label, message.name, message.id, exc_info=problem)
            outcome = Outcome.FAILED
            error = HandlerFailed(f"the handler of {message.name} failed", at=self._exchange)
        finally:
            invocation.running = False
            self._forget(invocation)
            function.running -= 1
            function.failed += outcome is Outcome.FAILED
            function.seconds += self._now() - started
            while function.waiting and function.running < function.most:
                waiting = function.waiting.popleft()
                if not waiting[0].withdrawn:
                    self._run(function, *waiting)
        done(invocation, Ending(outcome, function.label, self._now() - started, result, error))

    def _forget(self, invocation: Invocation) -> None:
        if self._requests.get(invocation.message.id) is invocation:  # and no listener of the same message
            del self._requests[invocation.message.id]

    async def _result(self, function: Registered, invocation: Invocation, arguments: tuple[Any, ...]) -> Any:
        if function.on_loop:
            return await function.call(*arguments)
        if function.generates:
            return await self._generated(function.call(*arguments), invocation)
        call = functools.partial(contextvars.copy_context().run, function.call, *arguments)
        result = await asyncio.get_running_loop().run_in_executor(self.threads(), call)
        return await result if inspect.isawaitable(result) else result

    async def _generated(self, values: AsyncIterator[Any], invocation: Invocation) -> Any:
        """Each value is a reply to a request to many; any other request has the first of them."""
        async with aclosing(values) as generator:  # type: ignore[type-var]  # an async generator, as was looked at
            async for value in generator:
                if not invocation.message.many:
                    return value
                await self._reply(invocation, value)
        return None

    def threads(self) -> ThreadPoolExecutor:
        """Where plain functions run."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(HANDLER_THREADS, thread_name_prefix=f"{self._exchange}-handler")
        return self._pool

    # ------------------------------------------------------------------------------------------ introspection

    def described(self) -> dict[str, list[dict[str, Any]]]:
        """What is registered, in plain JSON: the shape of `exchange.handlers`."""
        return {
            "handlers": [
                {
                    "name": name,
                    "function": function.label,
                    "running": function.running,
                    "waiting": len(function.waiting),
                    "calls": function.calls,
                    "failed": function.failed,
                    "seconds": round(function.seconds, 6),
                }
                for name, function in sorted(self._handlers.items())
                if not name.startswith(RESERVED)
            ],
            "listeners": [
                {"name": name, "function": function.label, "peer": peer or ""}
                for name, entries in sorted(self._listeners.items())
                for peer, function in entries
            ],
            "subscribers": [
                {"pattern": pattern, "function": function.label} for pattern, function in self._subscribers.items()
            ],
        }

    def load(self) -> tuple[int, int]:
        """How many handlers run, and how many messages wait for one."""
        handlers = self._handlers.values()
        return sum(function.running for function in handlers), sum(len(function.waiting) for function in handlers)

    # ------------------------------------------------------------------------------------------------ ending

    async def wait(self, seconds: float) -> None:
        """Let what runs end, within `seconds`; then cancel it."""
        if tasks := self._others():
            await asyncio.wait(tasks, timeout=seconds)
        await self._cancel()

    async def close(self) -> None:
        """Cancel what runs, and start nothing any more."""
        await self._cancel()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    async def _cancel(self) -> None:
        if late := self._others():
            for task in late:
                task.cancel()
            _, stuck = await asyncio.wait(late, timeout=DRAIN_SECONDS)
            if stuck:
                log.error("%d handlers go on although they were cancelled", len(stuck))

    def _others(self) -> set[asyncio.Task[None]]:
        return self._tasks - {asyncio.current_task()}  # a handler may close the exchange it runs in


def missed(function: Registered, *, quietly: bool = False) -> None:
    """It is too slow, and has missed a message."""
    function.missed += 1
    if function.missed & (function.missed - 1) == 0 and not quietly:  # at 1, 2, 4, 8, ...
        log.warning("%s is too slow: it has missed %d messages", function.label, function.missed)


def added(patterns: PatternMap[T], pattern: str, function: T) -> Callable[[], None]:
    """Register `function`; what takes it away again."""
    patterns.add(check_pattern(pattern), function)
    registered = [function]

    def remove() -> None:
        if registered:  # twice takes nothing away from whoever registered the same
            patterns.discard(pattern, registered.pop())

    return remove


def _read(message: Message) -> None:
    """What cannot be read never reaches a handler."""
    try:
        message.value  # noqa: B018  # read once, here, and kept
    except InvalidMessage as problem:
        error = refused(problem)
        raise Refused(error.message, code=error.code, reason=error.reason) from None


def _nothing(invocation: Invocation, ending: Ending) -> None:
    """Listeners and observers answer to nobody."""
