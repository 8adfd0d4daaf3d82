"""The public table: who handles, listens, subscribes and observes here, and how their functions run.

Law: what comes over a wire resolves in this table and nowhere else; the kernel's own signals are not
in it. `async def` functions run on the loop, plain `def` ones in a bounded pool of threads with the
context copied. Each function starts in order of arrival and runs at most `HANDLER_CONCURRENCY` times
at once; at most `HANDLER_QUEUE` more messages wait for it.

A message costs no task of its own. A *worker* is a task that runs one function for one waiting message
after another, without a switch as long as none of the runs suspends. Where one does, and others wait,
the loop goes on with two more workers: so a burst whose runs all suspend has begun after a few turns.
What finds nothing to do ends: nothing idles, so nothing is left over. A worker that was cancelled takes
nothing more either, so that what was meant for one run never hits the next.

Each run has a context of its own, a copy of that of whoever delivered the message. In it `current` holds
the *invocation*: the message, what stands behind whatever is emitted, and whether it may still be answered.
Child tasks and threads inherit it; once the function has ended they keep the cause, not the right to answer.
"""

import asyncio
import contextvars
import functools
import inspect
import logging
import types
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .errors import Code, HandlerFailed, InvalidMessage, Refused, RequestError
from .limits import DRAIN_SECONDS, HANDLER_CONCURRENCY, HANDLER_QUEUE, HANDLER_THREADS, HANDLER_TURN_SECONDS
from .message import Context, Kind, Message, Outcome
from .outbox import QueueFull
from .patterns import LOCAL_EVENTS, RESERVED, PatternMap, check_name, check_pattern
from .wire import refused

Function = Callable[..., Any]
T = TypeVar("T", bound=Hashable)
log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Invocation:
    """What is done because of one message, by one function."""

    message: Message
    link: str | None  # the peer it came from; None if it was emitted here
    answered: bool = False  # the first answer wins
    by: str = ""  # the function
    running: bool = True  # it has not ended
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
    released: Callable[[Message], None] = lambda message: None  # hears when a message waits for it no more
    running: int = 0
    waiting: "OrderedDict[Run, contextvars.Context]" = field(default_factory=OrderedDict)
    ready: int = 0  # workers that will look at what waits as soon as the loop gets to them
    missed: int = 0
    calls: int = 0
    failed: int = 0
    seconds: float = 0.0


@dataclass(slots=True, eq=False, kw_only=True)
class Run(Invocation):
    """An invocation of a registered function, from its arrival to its end, and how it ended."""

    function: Registered
    arguments: tuple[Any, ...] = ()
    done: "Done" = lambda run: None  # who only listens answers to nobody
    task: "asyncio.Task[None] | None" = None  # the worker; None while it waits for its turn
    over: "asyncio.Future[None] | None" = None  # for those who wait for its end
    started: float = 0.0
    ended: float = 0.0
    outcome: Outcome = Outcome.HANDLED
    result: Any = None
    error: RequestError | None = None


Done = Callable[[Run], None]


@dataclass(slots=True, eq=False)
class Worker:
    """A task that runs a function for one message after another."""

    function: Registered
    ready: bool = True  # it counts among those of its function
    run: Run | None = None  # the last one it began


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
        held: Callable[[Message], None] = lambda message: None,
        released: Callable[[Message], None] = lambda message: None,
    ) -> None:
        """`reply(invocation, value)` sends one of many replies, and returns when there is room for more.

        `held(message)` is told of each message that has a handler when it comes, `released(message)` once
        after that: when the handler starts, or when it is settled that it never will.
        """
        self._exchange = exchange
        self._now = now
        self._offer = offer
        self._reply = reply
        self._held = held
        self._released = released
        self._handlers: dict[str, Registered] = {}
        self._listeners: dict[str, list[tuple[str | None, Registered]]] = {}  # name -> (only this peer, function)
        self._subscribers: PatternMap[Registered] = PatternMap(subscribe)
        self._requests: dict[str, Run] = {}
        self._tasks: dict[asyncio.Task[None], Worker] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

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
        registered.released = self._released
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
        """Let what is registered for `message` run soon; False if nothing is. `done` hears how the handler ended.

        Raises QueueFull if the handler's queue is.
        """
        beside: Iterable[Registered] = ()
        handler = None
        if message.kind is Kind.PUBLISH:
            beside = self._subscribers.match(message.name)
        elif message.name in LOCAL_EVENTS:  # an event of this exchange is not for others to make
            return False
        else:
            handler = self._handlers.get(message.name)
            if entries := self._listeners.get(message.name):
                beside = [function for peer, function in entries if peer is None or peer == link]
        if handler is not None:
            run = Run(message, link, by=handler.label, function=handler, arguments=arguments, done=done)
            if message.kind is Kind.REQUEST:
                self._requests[message.id] = run
            self._held(message)
            self._queue(run)
        elif not beside:  # perhaps a listener to another peer claims the name
            return False
        for listener in beside:
            self._beside(listener, message, link, arguments)
        if handler is None:
            now = self._now()
            done(Run(message, link, by="listeners", function=_NOBODY, started=now, ended=now))
        return True

    def signalled(self, event: Message, arguments: tuple[Any, ...]) -> None:
        """Run the listeners of an event of this exchange itself, such as `message.unhandled`."""
        for _, listener in self._listeners.get(event.name, ()):
            self._beside(listener, event, None, arguments)

    def withdraw(self, request: str) -> None:
        """Cancel the handler of a request: it sees CancelledError where it awaits. One that waits never starts."""
        run = self._requests.pop(request, None)
        if run is None:
            return
        run.answered = True
        if run.task is not None:
            run.task.cancel()
        else:
            del run.function.waiting[run]
            self._forget(run)

    def _beside(self, function: Registered, message: Message, link: str | None, arguments: tuple[Any, ...]) -> None:
        run = Run(message, link, answered=True, by=function.label, function=function, arguments=arguments)
        try:
            self._queue(run)
        except QueueFull:
            if not self._closed:
                missed(function)

    def _queue(self, run: Run) -> None:
        function = run.function
        if self._closed or function.running + len(function.waiting) >= function.most + HANDLER_QUEUE:
            self._forget(run)
            full = f"more than {HANDLER_QUEUE} messages wait for {function.label}"
            raise QueueFull(f"{self._exchange} is closed" if self._closed else full)
        function.waiting[run] = contextvars.copy_context()
        if not function.ready:
            self._wake(function)

    def _forget(self, run: Run) -> None:
        """It will never start."""
        self._over(run)
        run.function.released(run.message)

    def _over(self, run: Run) -> None:
        run.running = False
        if self._requests.get(run.message.id) is run:  # and no listener of the same message
            del self._requests[run.message.id]
        if run.over is not None:
            run.over.set_result(None)

    # ----------------------------------------------------------------------------------------------- working

    def _wake(self, function: Registered, count: int = 1) -> None:
        """Let so many more workers come, as far as there is something to do for them."""
        wanted = min(len(function.waiting), function.most - function.running) - function.ready
        for _ in range(min(wanted, count)):
            worker = Worker(function)
            function.ready += 1
            task = asyncio.get_running_loop().create_task(self._work(worker))
            self._tasks[task] = worker
            task.add_done_callback(self._gone)

    async def _work(self, worker: Worker) -> None:
        function, task, since = worker.function, asyncio.current_task(), self._now()
        assert task is not None
        # Cancelled, it ends: in Python 3.11 no `uncancel` calls back what is still to be thrown at the next await.
        while function.waiting and function.running < function.most and not task.cancelling():
            run, context = function.waiting.popitem(last=False)
            worker.run, run.task = run, task
            function.released(run.message)
            steps = self._call(run)
            try:
                awaited = context.run(steps.send, None)
            except StopIteration:  # it has ended, and never suspended
                pass
            else:
                self._rest(worker, 2)  # twice as many in each turn of the loop; one by one, a burst would take long
                await _remaining(steps, context, awaited)
                worker.ready = True
                function.ready += 1
                since = run.ended
            if run.ended - since > HANDLER_TURN_SECONDS:
                await asyncio.sleep(0)
                since = self._now()
        self._rest(worker)

    def _rest(self, worker: Worker, wake: int = 1) -> None:
        """It will not look at what waits, not soon at least: let so many others do so, if there is something."""
        function = worker.function
        if worker.ready:
            worker.ready = False
            function.ready -= 1
        if function.waiting:
            self._wake(function, wake)

    def _gone(self, task: asyncio.Task[None]) -> None:
        """However it ended, be it before its first step: others do what waits."""
        self._rest(self._tasks.pop(task))

    async def _call(self, run: Run) -> None:
        current.set(run)
        function, message = run.function, run.message
        function.running += 1
        function.calls += 1
        run.started = self._now()
        try:
            _read(message)
            arguments = run.arguments[: function.arity]
            run.result = await (function.call(*arguments) if function.on_loop else self._result(run, arguments))
        except asyncio.CancelledError:
            run.outcome, run.error = Outcome.CANCELLED, HandlerFailed("the handler was stopped", at=self._exchange)
        except Refused as problem:  # raised on purpose, to be told
            problem.at = self._exchange
            run.outcome = Outcome.FAILED if problem.code is Code.INTERNAL else Outcome.DENIED
            run.error = problem
        except (Exception, SystemExit) as problem:
            log.error("%s failed at %s %s", function.label, message.name, message.id, exc_info=problem)
            run.outcome = Outcome.FAILED
            run.error = HandlerFailed(f"the handler of {message.name} failed", at=self._exchange)
        finally:
            run.ended = self._now()
            function.running -= 1
            function.failed += run.outcome is Outcome.FAILED
            function.seconds += run.ended - run.started
            self._over(run)
        run.done(run)

    async def _result(self, run: Run, arguments: tuple[Any, ...]) -> Any:
        function = run.function
        if function.generates:
            return await self._generated(function.call(*arguments), run)
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
        """Let what runs and what waits now end, within `seconds`; then cancel what runs."""
        workers = self._others().values()
        busy = [worker.run for worker in workers if worker.run is not None and worker.run.running]
        waiting = [run for function in self._functions() for run in function.waiting]
        if ends := [_end(run) for run in (*busy, *waiting)]:
            await asyncio.wait(ends, timeout=seconds)
        await self._cancel()

    async def close(self) -> None:
        """Cancel what runs, and start nothing any more."""
        self._closed = True
        for function in self._functions():
            while function.waiting:
                self._forget(function.waiting.popitem()[0])
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

    def _others(self) -> dict[asyncio.Task[None], Worker]:
        own = asyncio.current_task()  # a handler may close the exchange it runs in
        return {task: worker for task, worker in self._tasks.items() if task is not own}

    def _functions(self) -> set[Registered]:
        """Those for which anything waits, taken away or not, and others: what waits has a worker."""
        return {worker.function for worker in self._tasks.values()}


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


def _end(run: Run) -> "asyncio.Future[None]":
    if run.over is None:
        run.over = asyncio.get_running_loop().create_future()
    return run.over


@types.coroutine
def _remaining(
    steps: Coroutine[Any, Any, None], context: contextvars.Context, awaited: Any
) -> Generator[Any, Any, None]:
    """Await what is left of a coroutine whose steps have a context of their own; it has `awaited` something."""
    step: Callable[[Any], Any]
    while True:
        try:
            given = yield awaited
            step = steps.send
        except BaseException as error:
            given, step = error, steps.throw
        try:  # outside of the `except`: what is raised now would be said to be because of the error
            awaited = context.run(step, given)
        except StopIteration:
            return


_NOBODY = register(lambda: None, 0)  # in the place of a handler where all only listen
