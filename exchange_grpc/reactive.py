"""Reactive state: plain values, computed values, and transactions that happen whole or not at all.

Law: sans-IO. No loop, socket, clock or randomness in here: `tasks` runs coroutines, `now` tells the
time. `set`, `get`, `run` and `check circle` are immediate handlers on the signal kernel; delete one
and what it did is refused, for `s.x = 1` as for `sig("set", ...)`.

The algorithm, push then pull:

* A computed function gets a `Reader`, which writes the name of each read on one `trail`. What a run
  wrote there are its dependencies, found anew each run; nested runs write behind it and clean up.
* A transaction writes to the nodes and keeps the old values in `undo`. `spread` marks the dependents
  of what was set STALE and all that stands behind them PENDING, and puts them in dependency order
  (depth first, as of the last runs). `work` goes through that order: a STALE node runs, and makes its
  PENDING dependents STALE when its value changed; a node still PENDING at its turn did not change.
* A run that finds a new dependency which is not CLEAN yet has it settled on the spot. `settle` asks the
  dependencies of a PENDING node in the order they were read, and stops at the first that changed: what
  came before is the same, so the function would read it again. Nothing runs that need not.
* Such reads nest on Python's stack. From `DEPTH_LIMIT` on a run is abandoned instead, what it wanted is
  settled from a list, and it starts afresh: only there does a function run twice in one transaction.
* The commit is one `dict.update` of `values`, which is all that other threads ever read.
"""

import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, KeysView, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial
from types import CoroutineType, TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol, Union

from .errors import CircularDependency, SideEffect, StateError, SubscriberError, UnknownName
from .kernel import Kernel, Sig

DEPTH_LIMIT = 50  # nested runs: about 200 Python frames, which leaves most of the usual 1,000 to the caller
CASCADE_LIMIT = 100  # transactions that subscribers of one set may cause: no useful cascade is that long

CLEAN, PENDING, STALE, RUNNING = range(4)  # up to date; perhaps not; must run; runs or waits for what it reads

log = logging.getLogger(__name__)

Compute = Callable[[Any], Any]
Subscriber = Callable[[Any], object]


class Transaction(NamedTuple):
    """What one transaction changed. `sets` and `updates` are `{name: (old, new)}`, of plain and computed values."""

    id: int
    timestamp: float
    sets: dict[str, tuple[Any, Any]]
    updates: dict[str, tuple[Any, Any]]
    cause: Any


class Tasks(Protocol):
    """Where async computed values run. Both are called with the state locked: they must not block."""

    def spawn(self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Run `coroutine`, now or later, then call `done(result, error)` once, never from within `spawn`."""

    def waiter(self) -> tuple[Callable[[], None], Awaitable[None]]:
        """A function that may be called from any thread, and an awaitable that ends when it was."""


class _Restart(BaseException):
    """Abandons a run that nests too deep. Not an Exception, so that computed functions let it pass."""


class _Subscription:
    """A function that is called until it is not `active` any more."""

    __slots__ = ("active", "fn")

    def __init__(self, fn: Callable[[Any], object]) -> None:
        self.fn, self.active = fn, True


class _Node:
    """One name: its value as the transaction sees it, and its edges. `fn` is None for a plain value."""

    __slots__ = ("dependents", "fn", "mark", "name", "reads", "run", "subscriptions", "value", "visit")

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.fn: Compute | None = value if callable(value) else None
        self.value = None if callable(value) else value
        self.reads: list[str] = []  # in the order of the first read of each; never changed in place
        self.dependents: dict[_Node, None] = {}
        self.mark = CLEAN if self.fn is None else STALE
        self.visit = 0  # the number of the last `spread` that entered the node; negative once it left it
        self.subscriptions: dict[_Subscription, None] = {}
        self.run: Run | None = None  # of an async computed value: the run whose result is awaited


class Run:
    """A run of an async computed value, whose result is awaited as long as it is its node's."""

    __slots__ = ("graph", "node")

    def __init__(self, graph: "_Graph", node: _Node) -> None:
        self.graph, self.node = graph, node


# The graph whose functions run in this context now, or the async run that this task belongs to.
_computing: ContextVar[Union["_Graph", Run, None]] = ContextVar("exchange_grpc_computing", default=None)


def same(new: Any, old: Any) -> bool:
    """Whether `new` in place of `old` is no change.

    Equal values of one type are the same (1, 1.0 and True are three values), and so are two NaN. What
    cannot be compared, or answers with anything but a bool (an array), counts as changed.
    """
    if new is old:
        return True
    if type(new) is not type(old):
        return False
    try:
        equal = new == old
        if equal is False:
            equal = (new != new) is True and (old != old) is True  # NaN, of any type
    except Exception:
        return False
    return equal is True


def _reader(graph: "_Graph") -> Any:
    """What the computed functions of this graph get as their state: reads are recorded, sets raise SideEffect.

    A class for each graph, as `__getattribute__` cannot reach an attribute of its own object cheaply: with
    closures a read takes 0.1 microseconds, with `__getattr__` five times that. It has no methods but
    `keys` and `snapshot`, and state names go before those.
    """
    nodes, chain, record, this_thread = graph.nodes, graph.chain, graph.trail.append, threading.get_ident

    def read(self: object, name: str) -> Any:
        try:
            node = nodes[name]
        except (KeyError, TypeError):
            return graph.no_such_name(name)
        if not chain or this_thread() != graph.owner:  # after the run, or in another thread during one
            return graph.read_late(node)
        if node.mark:
            graph.settle(node)
        record(name)
        return node.value

    def write(self: object, name: str, value: Any) -> None:
        graph.refuse(name)

    class Reader:
        __slots__ = ()
        __getattribute__ = __getitem__ = read
        __setattr__ = __setitem__ = write

        def __contains__(self, name: object) -> bool:
            return name in nodes

        def __iter__(self) -> Iterator[str]:
            return iter(nodes)

        def __len__(self) -> int:
            return len(nodes)

        def __repr__(self) -> str:
            return f"Reader({', '.join(nodes)})"

    return Reader()


class _Graph:
    """The nodes and the one transaction that may be open. Everything but `read` happens under `lock`."""

    def __init__(
        self,
        values: Mapping[str, Any],
        kernel: Kernel,
        cause: Callable[[], object],
        now: Callable[[], float],
        tasks: Tasks | None,
    ) -> None:
        for name in values:
            if not isinstance(name, str):
                raise StateError(f"a name must be a str, not {name!r}")
        self.kernel, self.cause, self.now, self.tasks = kernel, cause, now, tasks
        self.nodes = {name: _Node(name, value) for name, value in values.items()}
        self.values = {name: node.value for name, node in self.nodes.items()}  # committed
        self.lock = threading.RLock()
        self.owner: int | None = None  # the thread whose transaction is open
        self.levels: list[dict[_Node, Any]] = []  # for each open batch: what its sets replaced
        self.undo: dict[_Node, Any] = {}  # values before the transaction, of nodes set or run in it
        self.unread: dict[_Node, list[str]] = {}  # reads before it, where they are others now
        self.dirty: dict[_Node, Any] = {}  # set since the last `spread`, with the value it knew
        self.pending: list[_Node] = []  # the last order; every node that is not CLEAN is in it
        self.again = False  # a node was given a value twice: it may have come back to its first
        self.visits = 0
        self.run: Callable[[_Node], None] = self.compute
        self.chain: list[_Node] = []  # RUNNING nodes, each reading the next
        self.trail: list[str] = []  # what they have read so far, one run behind the other
        self.reader = _reader(self)
        self.wanted: _Node | None = None  # what an abandoned run has to read
        self.fault: BaseException | None = None  # what fails this transaction, also where a function catches it
        self.due: _Node | None = None  # the node that the signal `run` is about
        self.launched: dict[_Node, Coroutine[Any, Any, Any] | None] = {}  # async runs that begin at the commit
        self.commits = self.cascade = 0
        self.listeners: dict[_Subscription, None] = {}
        self.calls: deque[tuple[_Subscription, Any]] = deque()
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
        self.pending = [node for node in self.nodes.values() if node.fn is not None]
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
                del table[name]
            raise

    # -- handlers on the kernel ---------------------------------------------------------------------

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
            self.fault = CircularDependency([*names[names.index(value) :], value])
            raise self.fault

    def require(self, name: str) -> None:
        """Refuse what a handler does that was taken away."""
        if name not in self.kernel.immediate:
            raise StateError(f"nothing handles {name!r}: its handler was taken from the kernel")

    def set(self, name: str, value: Any) -> None:
        """`s.name = value`: always as the signal `set`."""
        self.require("set")
        self.kernel.sig("set", {"name": name, "value": value})

    # -- reading ------------------------------------------------------------------------------------

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
        run = _computing.get()
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

    def read_late(self, node: _Node) -> Any:
        """A read after the function returned: by its coroutine, whose dependency it becomes, or by who kept the reader."""
        self.require("get")
        name, run = node.name, _computing.get()
        if type(run) is Run and run.graph is self:
            with self.lock:
                reading = run.node
                if reading.run is run and name not in reading.reads:
                    reading.reads = [*reading.reads, name]
                    node.dependents[reading] = None
        return self.values[name]

    def find(self, name: str) -> _Node:
        try:
            return self.nodes[name]
        except (KeyError, TypeError):
            raise UnknownName(name) from None

    def no_such_name(self, name: str) -> Any:
        if name in ("batch", "update"):
            self.refuse(name)
        if name == "keys":
            return self.nodes.keys
        if name == "snapshot":
            return lambda: {each: self.reader[each] for each in self.nodes}
        raise UnknownName(name)

    # -- transactions -------------------------------------------------------------------------------

    def may_set(self, target: str) -> None:
        """Raise SideEffect inside a computed function, of this state or any other."""
        run = _computing.get()
        if run is None:
            return
        if isinstance(run, _Graph):
            run.refuse(target)
        elif run.node.run is run:
            raise SideEffect(run.node.name, target)

    def refuse(self, target: str) -> NoReturn:
        """Raise SideEffect: from within a run in such a way that catching it does not help."""
        if self.chain and self.owner == threading.get_ident():
            self.fault = SideEffect(self.chain[-1].name, target)
            raise self.fault
        run = _computing.get()
        raise SideEffect(run.node.name if type(run) is Run else "a computed value", target)

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

    def put(self, node: _Node, value: Any) -> None:
        old = node.value
        if same(value, old):
            return
        if self.levels:
            self.levels[-1].setdefault(node, old)
        if node in self.undo:
            self.again = True
        else:
            self.undo[node] = old
        self.dirty.setdefault(node, old)
        node.value = value

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
        self.launch(why)
        if self.listeners and changed:
            sets = {node.name: (old, node.value) for node, old in changed.items() if node.fn is None}
            updates = {node.name: (old, node.value) for node, old in changed.items() if node.fn is not None}
            record = Transaction(self.commits, now, sets, updates, why)
            self.calls.extend((listener, record) for listener in self.listeners)
        for node in changed:
            for subscription in node.subscriptions:
                self.calls.append((subscription, node.value))
        return None

    def rollback(self) -> None:
        """Values, dependencies and marks as they were before the transaction."""
        for node, value in self.undo.items():
            node.value = value
        for node, reads in list(self.unread.items()):
            self.rewire(node, reads)
        for node in self.pending:
            node.mark = CLEAN
        for coroutine in self.launched.values():
            if coroutine is not None:
                coroutine.close()
        self.launched.clear()
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

    # -- the algorithm ------------------------------------------------------------------------------

    def spread(self, forced: Iterable[_Node] = ()) -> list[_Node]:
        """Mark all that the sets since the last call may reach; every node that is not CLEAN, in dependency order."""
        stack = [node for node in self.pending if node.mark]
        for node in forced:
            node.mark = STALE
            stack.append(node)
        for node, old in self.dirty.items():
            if self.again and same(node.value, old):
                node.value = old
                continue
            for dependent in node.dependents:
                dependent.mark = STALE
            stack += node.dependents
        self.dirty.clear()
        self.visits = visit = self.visits + 1
        order = []
        while stack:
            node = stack[-1]
            if node.visit == visit:  # all behind it is placed
                node.visit = -visit
                order.append(stack.pop())
            elif node.visit == -visit:
                stack.pop()
            else:
                node.visit = visit
                if not node.mark:
                    node.mark = PENDING
                stack += node.dependents
        order.reverse()
        self.pending = order
        return order

    def work(self, order: Iterable[_Node]) -> None:
        """Bring the nodes up to date, in this order. An error leaves them marked, to be tried again or rolled back."""
        self.require("get")
        self.require("run")
        direct = self.kernel.immediate["run"] is self.handlers["run"] and self.kernel.hook is None
        self.run = run = self.compute if direct else self.run_by_signal
        token = _computing.set(self)
        try:
            for node in order:
                if node.mark == STALE:
                    run(node)
                elif node.mark == PENDING:
                    self.settle(node)
        except BaseException:
            self.unwind(0, 0)
            raise
        finally:
            _computing.reset(token)

    def run_by_signal(self, node: _Node) -> None:
        """`compute`, by way of the kernel: somebody watches, or handles `run` instead of us."""
        self.due = node
        self.kernel.sig("run", node.name)
        if self.due is node:
            raise StateError(f"the handler of 'run' did not run {node.name!r}")

    def compute(self, node: _Node) -> None:
        """Run one function and take its value; or return with `wanted` set, the node still RUNNING."""
        mark = len(self.trail)
        if node.mark != RUNNING:
            node.mark = RUNNING
            self.chain.append(node)
        value = None
        try:
            value = node.fn(self.reader)  # type: ignore[misc]  # only computed nodes are ever marked
        except BaseException as error:
            if self.wanted is None and self.fault is None:
                self.fault = error
        reads = self.trail[mark:]
        del self.trail[mark:]
        if self.wanted is not None or self.fault is not None:
            if type(value) is CoroutineType:
                value.close()
            if self.fault is None or self.wanted is not None:
                return
            raise self.fault  # also where the function caught it: the transaction fails all the same
        self.chain.pop()
        node.mark = CLEAN
        if reads != node.reads:
            self.rewire(node, list(dict.fromkeys(reads)))
        old = node.value
        if node not in self.undo:
            self.undo[node] = old
        elif old is not self.undo[node]:
            self.again = True
        if node.run is not None or self.launched or type(value) is CoroutineType:
            self.supersede(node, value)
            if type(value) is CoroutineType:
                return
        if not same(value, old):
            node.value = value
            for dependent in node.dependents:
                if dependent.mark == PENDING:
                    dependent.mark = STALE

    def rewire(self, node: _Node, reads: list[str]) -> None:
        """Give the node its new dependencies."""
        old = node.reads
        if reads == old:
            return
        self.unread.setdefault(node, old)
        node.reads = reads
        for name in set(old).difference(reads):
            self.nodes[name].dependents.pop(node, None)
        for name in set(reads).difference(old):
            self.nodes[name].dependents[node] = None

    def settle(self, node: _Node) -> None:
        """Bring one node up to date, with all it needs for that. A RUNNING one closes a circle."""
        chain, nodes = self.chain, self.nodes
        if node.mark == RUNNING:
            if "check circle" in self.kernel.immediate:
                self.kernel.sig("check circle", node.name)
            return
        if len(chain) >= DEPTH_LIMIT:
            self.wanted = node
            raise _Restart
        depth, mark = len(chain), len(self.trail)
        stack = [(node, iter(node.reads))]
        try:
            while stack:
                top, unasked = stack[-1]
                if top.mark == CLEAN:
                    stack.pop()
                elif top.mark == PENDING:
                    top.visit = 0  # on the stack
                    for name in unasked:
                        dependency = nodes[name]
                        if dependency.mark == RUNNING or (dependency.mark == PENDING and not dependency.visit):
                            top.mark = STALE  # it would read what waits for it: let it try, or take another way
                            break
                        if dependency.mark:
                            stack.append((dependency, iter(dependency.reads)))
                            break
                    else:
                        top.mark = CLEAN
                else:
                    self.run(top)
                    if self.wanted is not None:
                        stack.append((self.wanted, iter(self.wanted.reads)))
                        self.wanted = None
        except BaseException:
            self.unwind(depth, mark)
            raise

    def unwind(self, depth: int, mark: int) -> None:
        """After an error: the nodes that ran or waited must run again."""
        for node in self.chain[depth:]:
            node.mark = STALE
        del self.chain[depth:], self.trail[mark:]
        self.wanted = self.due = None
        if not self.chain:
            self.fault = None

    def cancel(self, subscriptions: dict[_Subscription, None], subscription: _Subscription) -> None:
        with self.lock:
            subscription.active = False
            subscriptions.pop(subscription, None)

    # -- async computed values ----------------------------------------------------------------------

    def supersede(self, node: _Node, value: Any) -> None:
        """This run takes the place of an earlier one; when it is a coroutine it starts once we have committed."""
        earlier = self.launched.pop(node, None)
        if earlier is not None:
            earlier.close()
        if type(value) is CoroutineType:
            self.launched[node] = value
            if self.tasks is None:
                raise StateError(f"{node.name!r} is async, and this state was given no `tasks` to run it on")
        elif node.run is not None:
            self.launched[node] = None

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
    _computing.set(run)
    return await coroutine


class _Batch:
    """`with s.batch():`, as often as you like."""

    __slots__ = ("_graph",)

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph

    def __enter__(self) -> None:
        self._graph.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._graph.leave(failed=kind is not None)


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
    error is logged, and `settled` raises it. Reads and sets in its task are known as its own; in other
    tasks or threads that it starts they are not.

    `kernel` gets the handlers `set`, `get`, `run` and `check circle`. `cause` is asked once per transaction,
    `now` for the time of those that are listened to. Raises what the first run of a computed function
    raises, and CircularDependency for a circle.
    """

    __slots__ = ("__weakref__", "_graph")
    _graph: _Graph

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        kernel: Kernel | None = None,
        cause: Callable[[], object] | None = None,
        now: Callable[[], float] | None = None,
        tasks: Tasks | None = None,
    ) -> None:
        graph = _Graph(values, kernel or Kernel(), cause or (lambda: None), now or (lambda: 0.0), tasks)
        object.__setattr__(self, "_graph", graph)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise UnknownName(name)
        return self._graph.read(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or name in _METHODS:
            raise UnknownName(name)
        self._graph.set(name, value)

    def __getitem__(self, name: str) -> Any:
        return self._graph.read(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._graph.set(name, value)

    def __contains__(self, name: object) -> bool:
        return name in self._graph.nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._graph.nodes)

    def __len__(self) -> int:
        return len(self._graph.nodes)

    def __repr__(self) -> str:
        return f"State({self._graph.values})"

    def keys(self) -> KeysView[str]:
        """The names, as declared. With it, `dict(s)` works."""
        return self._graph.nodes.keys()

    def snapshot(self) -> dict[str, Any]:
        """The committed values of one moment, by name."""
        return self._graph.values.copy()

    def update(self, values: Mapping[str, Any]) -> None:
        """Set many in one transaction."""
        with self.batch():
            for name, value in values.items():
                self._graph.set(name, value)

    def batch(self) -> AbstractContextManager[None]:
        """`with s.batch():` makes one transaction of all sets in the block; an exception undoes the block.

        A batch in a batch belongs to the outer transaction: only what it set itself is undone when it
        fails and the outer one goes on.
        """
        return _Batch(self._graph)

    def subscribe(self, name: str, fn: Subscriber) -> Callable[[], None]:
        """Call `fn(value)` now, and once after each commit that changed the value, until the function returned is called.

        What `fn` raises now is raised here, and nothing is subscribed. Later errors are collected until
        all subscribers have run, and reach the setter as SubscriberError, the change standing. `fn` may
        set: that commits at once, and its subscribers are called after the ones of this transaction.
        """
        graph = self._graph
        subscription = _Subscription(fn)
        with graph.lock:
            node = graph.find(name)
            node.subscriptions[subscription] = None
            try:
                fn(graph.values[name])
            except BaseException:
                graph.cancel(node.subscriptions, subscription)
                raise
        return partial(graph.cancel, node.subscriptions, subscription)

    def on_commit(self, fn: Callable[[Transaction], object]) -> Callable[[], None]:
        """Call `fn(transaction)` after each commit, before its subscribers, until the function returned is called.

        What `fn` raises is treated as a subscriber's error.
        """
        graph = self._graph
        listener = _Subscription(fn)
        with graph.lock:
            graph.listeners[listener] = None
        return partial(graph.cancel, graph.listeners, listener)

    def dependencies(self, name: str) -> frozenset[str]:
        """The names that the last run read: of a plain value none, of an async run those read so far."""
        with self._graph.lock:
            return frozenset(self._graph.find(name).reads)

    async def settled(self) -> None:
        """Wait until no async result is awaited. Raises what went wrong with them since the last call.

        One error is raised as it is, several as an ExceptionGroup.
        """
        await self._graph.settled()


_METHODS = frozenset(name for name in vars(State) if not name.startswith("_"))
