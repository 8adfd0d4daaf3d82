"""Reactive state: plain values, computed values, and transactions that happen whole or not at all.

Law: sans-IO. No loop, socket, clock or randomness in here: `tasks` runs coroutines, `now` tells the
time. `set`, `get`, `run` and `check circle` are immediate handlers on the signal kernel; delete one
and what it did is refused, for `s.x = 1` as for `sig("set", ...)`.

A transaction, in the thread that holds the lock: sets go to the nodes of the graph, which brings the
computed values up to date (`graph.py` has the algorithm); one `dict.update` makes them visible to
all; then listeners and subscribers are called, in the order of the commits. An exception before that
update leaves everything as it was, one after it changes nothing any more.
"""

import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, KeysView, Mapping
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Protocol

from .errors import CircularDependency, StateError, SubscriberError, UnknownName
from .graph import Graph, Node, Run, Subscription, computing, same
from .kernel import Kernel, Sig

CASCADE_LIMIT = 100  # transactions that subscribers of one set may cause: no useful cascade is that long

log = logging.getLogger(__name__)


class Transaction(NamedTuple):
    """What one transaction changed. `sets` and `updates` are `{name: (old, new)}`, of plain and computed values;
    `because` are those of the changed names that each computed value was computed from."""

    id: int
    timestamp: float
    sets: dict[str, tuple[Any, Any]]
    updates: dict[str, tuple[Any, Any]]
    cause: Any
    because: Mapping[str, tuple[str, ...]] = MappingProxyType({})


class Tasks(Protocol):
    """Where async computed values run. Both are called with the state locked: they must not block."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Run `coroutine`, now or later, then call `done(result, error)` once, never from within `spawn`."""

    def waiter(self) -> tuple[Callable[[], None], Awaitable[None]]:
        """A function that may be called from any thread, and an awaitable that ends when it was."""


class _Store(Graph):
    """The graph with its handlers, transactions, subscribers and async runs: all that `State` is a door to."""

    def __init__(
        self,
        values: Mapping[str, Any],
        kernel: Kernel,
        cause: Callable[[], object],
        now: Callable[[], float],
        tasks: Tasks | None,
    ) -> None:
        super().__init__(values, kernel)
        self.cause, self.now, self.tasks = cause, now, tasks
        self.commits = self.cascade = 0
        self.listeners: dict[Subscription, None] = {}
        self.calls: deque[tuple[Subscription, Any]] = deque()
        self.notifying = False
        self.runs = 0  # async results awaited
        self.failures: dict[str, Exception] = {}  # of async computed values, until `settled` tells
        self.waiters: list[Callable[[], None]] = []
        self.handlers = {"set": self.on_set, "get": self.on_get, "run": self.on_run, "check circle": self.on_circle}
        self.construct()

    def construct(self) -> None:
        """Take the kernel's names and compute everything once; a failure leaves the kernel as it was."""
        table = self.kernel.immediate
        if taken := self.handlers.keys() & table.keys():
            raise StateError(f"this kernel has a state already: {', '.join(sorted(taken))}")
        table.update(self.handlers)
        try:
            with self.lock:
                self.begin()
                self.work(self.pending)
                cause = self.cause() if self.launched else None
                self.values = {name: node.value for name, node in self.nodes.items()}
                self.close()
                self.launch(cause)
        except BaseException:
            self.rollback()
            for name in self.handlers:
                table.pop(name, None)
            raise

    # -- handlers on the kernel --------------------------------------------------------------------

    def on_set(self, value: Any, sig: Sig, state: Any) -> None:
        """`{"name": ..., "value": ...}`: set a plain value, in a transaction of its own unless a batch is open."""
        try:
            name, new = value["name"], value["value"]
        except (TypeError, KeyError, IndexError):
            raise StateError(f"set takes {{'name': ..., 'value': ...}}, not {value!r}") from None
        with self.lock:
            self.may_set(name)
            node = self.find(name)
            if node.fn is not None:
                raise StateError(f"{name!r} is a computed value and cannot be set")
            if self.owner is not None:
                self.put(node, new)
            else:
                self.transact(partial(self.put, node, new), self.cause)

    def on_get(self, value: Any, sig: Sig, state: Any) -> Any:
        """The value of a name."""
        return self.value_of(value)

    def on_run(self, value: Any, sig: Sig, state: Any) -> Any:
        """Run a computed function whether it is due or not, in a transaction of its own; its value."""
        with self.lock:
            node = self.find(value)
            if node.fn is None:
                raise StateError(f"{value!r} is a plain value and cannot be run")
            if self.due is node:
                self.due = None
                self.compute(node)
                return node.value
            self.may_set(value)
            if self.owner is not None:
                self.spread([node])
                self.work([node])
            else:
                self.transact(partial(self.spread, [node]), self.cause)
            return node.value

    def on_circle(self, value: Any, sig: Sig, state: Any) -> None:
        """Raise CircularDependency when the name is being computed now: to read it would close a circle."""
        names = [node.name for node in self.chain]
        if value in names:
            start = len(names) - 1 - names[::-1].index(value)
            self.fault = CircularDependency([*names[start:], value])
            raise self.fault

    # -- reading and setting from outside ----------------------------------------------------------

    def set(self, name: str, value: Any) -> None:
        """`s.name = value`: always as the signal `set`."""
        self.require("set")
        self.kernel.sig("set", {"name": name, "value": value})

    def read(self, name: str) -> Any:
        """`s.name`: as the signal `get`, called directly where nobody would see the difference."""
        kernel = self.kernel
        if kernel.immediate.get("get") is self.handlers["get"] and kernel.hook is None:
            return self.value_of(name)
        self.require("get")
        return kernel.sig("get", name)

    def value_of(self, name: str) -> Any:
        if self.owner is not None and self.owner == threading.get_ident():
            return self.reader[name] if self.chain else self.peek(name)
        run = computing.get()
        if type(run) is Run and run.graph is self:
            return self.read_late(self.find(name))
        try:
            return self.values[name]
        except (KeyError, TypeError):
            raise UnknownName(name) from None

    def peek(self, name: str) -> Any:
        """The value that the open transaction would commit; computed now when it is not CLEAN."""
        node = self.find(name)
        if node.fn is not None:
            if self.dirty:
                self.spread()
            if node.mark:
                self.work([node])
        return node.value

    # -- transactions ------------------------------------------------------------------------------

    def begin(self) -> None:
        self.owner = threading.get_ident()

    def close(self) -> None:
        """The transaction is over, one way or the other."""
        self.owner = None
        self.again = False
        self.undo.clear()
        self.unread.clear()
        self.dirty.clear()
        self.pending = []

    def transact(self, change: Callable[[], object], cause: Callable[[], object]) -> None:
        """One transaction, from the change to its subscribers."""
        self.begin()
        try:
            change()
            self.commit(cause)
        except BaseException:
            self.rollback()
            raise
        self.notify()

    def enter(self) -> None:
        """Open a batch, in a transaction of its own or within the one that is open."""
        self.lock.acquire()
        if self.owner is None:
            self.begin()
        self.levels.append({})

    def leave(self, failed: bool) -> None:
        """Close the innermost batch. One that failed is undone; the outermost is the transaction."""
        try:
            level = self.levels.pop()
            if self.levels:
                for node, old in level.items():
                    self.levels[-1].setdefault(node, old)
                    if failed:
                        self.put(node, old)
                return
            if failed:
                self.rollback()
                return
            try:
                self.commit(self.cause)
            except BaseException:
                self.rollback()
                raise
            self.notify()
        finally:
            self.lock.release()

    def commit(self, cause: Callable[[], object]) -> None:
        """Bring everything up to date and make it visible. Whoever calls rolls back when this raises."""
        if order := self.spread():
            self.work(order)
        changed = {node: old for node, old in self.undo.items() if node.value is not old}
        if self.again:  # what went there and back gets its first object again
            for node in [node for node, old in changed.items() if same(node.value, old)]:
                node.value = changed.pop(node)
        if not changed and not self.launched:
            return self.close()
        if self.notifying and self.cascade >= CASCADE_LIMIT:
            raise StateError(f"subscribers caused more than {CASCADE_LIMIT} following transactions: a circle of sets?")
        why = cause()
        now = self.now() if self.listeners else 0.0
        self.values.update({node.name: node.value for node in changed})  # one step: other threads see all or nothing
        self.close()
        self.commits += 1
        self.cascade += 1
        if self.launched:
            self.launch(why)
        if self.listeners and changed:
            sets = {node.name: (old, node.value) for node, old in changed.items() if node.fn is None}
            updates = {node.name: (old, node.value) for node, old in changed.items() if node.fn is not None}
            names = sets.keys() | updates.keys()  # read now: subscribers may set before listeners are told
            because = {node.name: tuple(sorted(names & set(node.reads))) for node in changed if node.fn is not None}
            record = Transaction(self.commits, now, sets, updates, why, because)
            self.calls.extend((listener, record) for listener in self.listeners)
        for node in changed:
            for subscription in node.subscriptions:
                self.calls.append((subscription, node.value))
        return None

    def rollback(self) -> None:
        """The transaction is over, and never was."""
        self.restore()
        self.levels.clear()
        self.close()

    def notify(self) -> None:
        """Call listeners and subscribers in the order of the commits; what they set is called for last."""
        if self.notifying or not self.calls:
            return
        self.notifying, self.cascade = True, 0
        errors = []
        try:
            while self.calls:
                subscription, value = self.calls.popleft()
                if subscription.active:
                    try:
                        subscription.fn(value)
                    except Exception as error:
                        errors.append(error)
        finally:
            self.notifying = False
        if errors:
            raise SubscriberError(errors)

    def cancel(self, subscriptions: dict[Subscription, None], subscription: Subscription) -> None:
        with self.lock:
            subscription.active = False
            subscriptions.pop(subscription, None)

    # -- async computed values ---------------------------------------------------------------------

    def supersede(self, node: Node, value: Any) -> None:
        super().supersede(node, value)
        if self.tasks is None and self.launched:
            raise StateError(f"{node.name!r} is async, and this state was given no `tasks` to run it on")

    def launch(self, cause: object) -> None:
        """Start the coroutines of the transaction just committed, which will deliver with its cause."""
        for node, coroutine in self.launched.items():
            self.runs -= node.run is not None
            node.run = None
            self.failures.pop(node.name, None)
            if coroutine is not None and self.tasks is not None:
                node.run = Run(self, node)
                self.runs += 1
                self.tasks.spawn(_drive(node.run, coroutine), partial(self.deliver, node.run, cause))
        self.launched.clear()
        self.wake()

    def deliver(self, run: Run, cause: object, value: Any, error: BaseException | None) -> None:
        """Take the result of a run unless it is out of date. What goes wrong is logged, and told by `settled`."""
        node = run.node
        with self.lock:
            if node.run is not run:
                return
            node.run = None
            self.runs -= 1
            try:
                if isinstance(error, Exception):
                    raise error
                if error is not None:
                    raise StateError(f"the run of {node.name!r} ended with {error!r}") from error
                if self.owner is not None:  # a batch that spans an await
                    self.put(node, value)
                else:
                    self.transact(partial(self.put, node, value), lambda: cause)
            except Exception as failure:
                self.failures[node.name] = failure
                log.error("async computed value %r failed", node.name, exc_info=failure)
            finally:
                self.wake()

    def wake(self) -> None:
        while self.waiters and not self.runs:
            self.waiters.pop()()

    async def settled(self) -> None:
        while True:
            with self.lock:
                if not self.runs or self.tasks is None:
                    failures, self.failures = list(self.failures.values()), {}
                    break
                wake, awaken = self.tasks.waiter()
                self.waiters.append(wake)
            await awaken
        if len(failures) == 1:
            raise failures[0]
        if failures:
            raise ExceptionGroup("async computed values failed", failures)


async def _drive(run: Run, coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run an async computed value, in a task of its own, such that reads and sets in it are known to be its."""
    computing.set(run)
    return await coroutine


class _Batch:
    """`with s.batch():`, as often as you like."""

    __slots__ = ("_store",)

    def __init__(self, store: _Store) -> None:
        self._store = store

    def __enter__(self) -> None:
        self._store.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._store.leave(failed=kind is not None)


class State:
    """Plain values, and computed values that follow them: `State({"a": 1, "twice": lambda s: s.a * 2})`.

    What is callable is a computed value: it gets this state to read, reads what it likes,
    sets nothing, and runs again when something it read has changed. `s.name` and `s["name"]` are the
    same, save for names that begin with an underscore or are methods of this class (`update`, `batch`,
    `keys` ...): those are reached as `s["name"]` only. Values are compared as `same` says; one that is
    changed in place has not changed, so set a new list rather than append to the old.

    A set, an `update` and a `batch` are transactions: all or nothing. Within a batch its own thread reads
    the new values, of computed ones too (which then run for that read, and once more if what they read is
    set again); every other thread reads the committed ones until the batch is over. Do not await in one.

    Any thread may read and set. Transactions wait for each other, and for the subscribers of the one
    before: a subscriber must not wait for another thread that sets.

    A coroutine function, or a function that returns a coroutine, is an async computed value. It shows its
    old value (None at first) until the result arrives and commits in a transaction of its own, with the
    cause of the one that started it. A result is dropped once something that its run has read changes,
    before an await or after one; the run itself is left to end. If it raises, its old value stands, the
    error is logged, and `settled` raises it. Reads and sets in its task, and in tasks that it starts, are
    known as its own as long as its result is awaited.

    `kernel` gets the handlers `set`, `get`, `run` and `check circle`. `cause` is asked once per transaction,
    `now` for the time of those that are listened to. Raises what the first run of a computed function
    raises, and CircularDependency for a circle.
    """

    __slots__ = ("__weakref__", "_store")
    _store: _Store

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        kernel: Kernel | None = None,
        cause: Callable[[], object] | None = None,
        now: Callable[[], float] | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        store = _Store(
            values, Kernel() if kernel is None else kernel, cause or (lambda: None), now or (lambda: 0.0), tasks
        )
        object.__setattr__(self, "_store", store)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise UnknownName(name)
        return self._store.read(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in _METHODS:
            raise UnknownName(name)
        self._store.set(name, value)

    def __getitem__(self, name: str) -> Any:
        return self._store.read(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._store.set(name, value)

    def __contains__(self, name: object) -> bool:
        return name in self._store.nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.nodes)

    def __len__(self) -> int:
        return len(self._store.nodes)

    def __bool__(self) -> bool:
        return True  # `state or default` must not lose one that has no names yet

    def __repr__(self) -> str:
        return f"State({self._store.values})"

    def keys(self) -> KeysView[str]:
        """The names, as declared. With it, `dict(s)` works."""
        return self._store.nodes.keys()

    def is_computed(self, name: str) -> bool:
        """Whether the name is a computed value. Raises UnknownName."""
        return self._store.find(name).fn is not None

    def snapshot(self) -> dict[str, Any]:
        """The committed values of one moment, by name."""
        return self._store.values.copy()

    def update(self, values: Mapping[str, Any]) -> None:
        """Set many in one transaction."""
        with self.batch():
            for name, value in values.items():
                self._store.set(name, value)

    def batch(self) -> AbstractContextManager[None]:
        """`with s.batch():` makes one transaction of all sets in the block; an exception undoes the block.

        A batch in a batch belongs to the outer transaction: only what it set itself is undone when it
        fails and the outer one goes on.
        """
        return _Batch(self._store)

    def subscribe(self, name: str, fn: Callable[[Any], object]) -> Callable[[], None]:
        """Call `fn(value)` now and once after each commit that changed the value, until the result is called.

        What `fn` raises now is raised here, and nothing is subscribed. Later errors are collected until
        all subscribers have run, and reach the setter as SubscriberError, the change standing. `fn` may
        set: that commits at once, and its subscribers are called after the ones of this transaction.
        """
        store = self._store
        subscription = Subscription(fn)
        with store.lock:
            node = store.find(name)
            node.subscriptions[subscription] = None
            try:
                fn(store.values[name])
            except BaseException:
                store.cancel(node.subscriptions, subscription)
                raise
        return partial(store.cancel, node.subscriptions, subscription)

    def on_commit(self, fn: Callable[[Transaction], object]) -> Callable[[], None]:
        """Call `fn(transaction)` after each commit, before its subscribers, until the result is called.

        What `fn` raises is treated as a subscriber's error.
        """
        store = self._store
        listener = Subscription(fn)
        with store.lock:
            store.listeners[listener] = None
        return partial(store.cancel, store.listeners, listener)

    def dependencies(self, name: str) -> frozenset[str]:
        """The names that the last run read: of a plain value none, of an async run those read so far."""
        with self._store.lock:
            return frozenset(self._store.find(name).reads)

    async def settled(self) -> None:
        """Wait until no async result is awaited. Raises what went wrong with them since the last call.

        One error is raised as it is, several as an ExceptionGroup.
        """
        await self._store.settled()


_METHODS = frozenset(name for name in vars(State) if not name.startswith("_"))
