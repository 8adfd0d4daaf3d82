"""The graph behind `State`: names, who reads whom, and how a change spreads.

Law: this module knows no transaction's beginning or end, no subscriber and no task; those are in
`reactive.py`. Everything here runs in one thread at a time, under the lock, but for `Graph.values`,
which any thread may read.

The algorithm, push then pull:

* A computed function gets a reader, which writes the name of each read on one `trail`. What a run wrote
  there are its dependencies, found anew each run; nested runs write behind it and clean up.
* Values are set in the nodes, and `undo` keeps the old ones. `spread` marks the dependents of what was
  set STALE and all that stands behind them PENDING, and puts them in dependency order (depth first, as of
  the last runs). `work` goes through that order: a STALE node runs, and makes its PENDING dependents
  STALE if its value changed; a node that is still PENDING at its turn did not change.
* A run that finds a new dependency which is not CLEAN yet has it settled on the spot. `settle` asks the
  dependencies of a PENDING node in the order they were read, and stops at the first that changed: what
  came before is the same, so the function would read it again. Nothing runs that need not.
* Such reads nest on Python's stack. From `DEPTH_LIMIT` on a run is abandoned instead, what it wanted is
  settled from a list, and it starts afresh: only there does a function run twice in one transaction.
* What fails inside a run fails the transaction (`fault`), also where another function catches it. `restore`
  puts values, dependencies and marks back.
"""

import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, NoReturn, Union

from .errors import SideEffect, StateError, UnknownName
from .kernel import Handler, Kernel

DEPTH_LIMIT = 50  # nested runs: about 200 Python frames, which leaves most of the usual 1,000 to the caller

CLEAN, PENDING, STALE, RUNNING = range(4)  # up to date; perhaps not; must run; runs or waits for what it reads

Compute = Callable[[Any], Any]


class _Restart(BaseException):
    """Abandons a run that nests too deep. Not an Exception, so that computed functions let it pass."""


class Subscription:
    """A function that is called until it is not `active` any more."""

    __slots__ = ("active", "fn")

    def __init__(self, fn: Callable[[Any], object]) -> None:
        self.fn, self.active = fn, True


class Node:
    """One name: its value as the transaction sees it, and its edges. `fn` is None for a plain value."""

    __slots__ = ("dependents", "fn", "mark", "name", "reads", "run", "subscriptions", "value", "visit")

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self.fn: Compute | None = value if callable(value) else None
        self.value = None if callable(value) else value
        self.reads: list[str] = []  # in the order of the first read of each; never changed in place
        self.dependents: dict[Node, None] = {}
        self.mark = CLEAN if self.fn is None else STALE
        self.visit = 0  # the number of the last `spread` that entered the node; negative once it left it
        self.subscriptions: dict[Subscription, None] = {}
        self.run: Run | None = None  # of an async computed value: the run whose result is awaited


class Run:
    """A run of an async computed value, whose result is awaited as long as it is its node's."""

    __slots__ = ("graph", "node")

    def __init__(self, graph: "Graph", node: Node) -> None:
        self.graph, self.node = graph, node


# The graph whose functions run in this context now, or the async run that this task belongs to.
computing: ContextVar[Union["Graph", Run, None]] = ContextVar("exchange_grpc_computing", default=None)


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


def _reader(graph: "Graph") -> Any:
    """What the computed functions of this graph get as their state: reads are recorded, sets raise SideEffect.

    A class for each graph, as `__getattribute__` cannot reach an attribute of its own object cheaply: with
    closures a read takes 0.1 microseconds, with `__getattr__` five times that. It has no methods but `keys`,
    and a state name goes before that.
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


class Graph:
    """The nodes, and what the open transaction has done to them so far."""

    def __init__(self, values: Mapping[str, Any], kernel: Kernel) -> None:
        for name in values:
            if not isinstance(name, str):
                raise StateError(f"a name must be a str, not {name!r}")
        self.kernel = kernel
        self.handlers: dict[str, Handler] = {}  # ours, as they were put in the kernel's table
        self.nodes = {name: Node(name, value) for name, value in values.items()}
        self.values = {name: node.value for name, node in self.nodes.items()}  # committed
        self.lock = threading.RLock()
        self.owner: int | None = None  # the thread whose transaction is open
        self.levels: list[dict[Node, Any]] = []  # for each open batch: what its sets replaced
        self.undo: dict[Node, Any] = {}  # values before the transaction, of nodes set or run in it
        self.unread: dict[Node, list[str]] = {}  # reads before it, where they are others now
        self.dirty: dict[Node, Any] = {}  # set since the last `spread`, with the value it knew
        self.pending = [node for node in self.nodes.values() if node.fn is not None]  # all that are not CLEAN
        self.again = False  # a node was given a value twice: it may have come back to its first
        self.visits = 0
        self.run: Callable[[Node], None] = self.compute
        self.chain: list[Node] = []  # nodes that run or wait, each for the next
        self.depth = 0  # of `settle` within runs
        self.trail: list[str] = []  # what unfinished runs have read so far, one behind the other
        self.reader = _reader(self)
        self.wanted: Node | None = None  # what an abandoned run has to read
        self.fault: BaseException | None = None  # what fails this transaction, also where a function catches it
        self.due: Node | None = None  # the node that the signal `run` is about
        self.launched: dict[Node, Coroutine[Any, Any, Any] | None] = {}  # async runs that begin at the commit

    def find(self, name: str) -> Node:
        try:
            return self.nodes[name]
        except (KeyError, TypeError):
            raise UnknownName(name) from None

    def require(self, name: str) -> None:
        """Refuse what a handler does that was taken away."""
        if name not in self.kernel.immediate:
            raise StateError(f"nothing handles {name!r}: its handler was taken from the kernel")

    def put(self, node: Node, value: Any) -> None:
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

    def spread(self, forced: Iterable[Node] = ()) -> list[Node]:
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

    def work(self, order: Iterable[Node]) -> None:
        """Bring the nodes up to date, in this order. An error leaves them marked, to be tried again or rolled back."""
        self.require("get")
        self.require("run")
        direct = self.kernel.immediate["run"] is self.handlers["run"] and self.kernel.hook is None
        self.run = run = self.compute if direct else self.run_by_signal
        token = computing.set(self)
        try:
            for node in order:
                if node.mark == STALE:
                    self.chain.append(node)
                    run(node)
                    self.chain.pop()
                elif node.mark == PENDING:
                    self.settle(node)
        except BaseException:
            self.unwind(0, 0, 0)
            raise
        finally:
            computing.reset(token)

    def run_by_signal(self, node: Node) -> None:
        """`compute`, by way of the kernel: somebody watches, or handles `run` instead of us."""
        self.due = node
        self.kernel.sig("run", node.name)
        if self.due is node:
            raise StateError(f"the handler of 'run' did not run {node.name!r}")

    def compute(self, node: Node) -> None:
        """Run one function and take its value; or return with `wanted` set, the node still RUNNING."""
        mark = len(self.trail)
        node.mark = RUNNING
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

    def supersede(self, node: Node, value: Any) -> None:
        """This run takes the place of an earlier one; when it is a coroutine it starts once we have committed."""
        earlier = self.launched.pop(node, None)
        if earlier is not None:
            earlier.close()
        if type(value) is CoroutineType:
            self.launched[node] = value
        elif node.run is not None:
            self.launched[node] = None

    def rewire(self, node: Node, reads: list[str]) -> None:
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

    def settle(self, node: Node) -> None:
        """Bring one node up to date, with all it needs for that. A RUNNING one closes a circle."""
        chain, nodes = self.chain, self.nodes
        if node.mark == RUNNING:
            if "check circle" in self.kernel.immediate:
                self.kernel.sig("check circle", node.name)
            return
        if self.depth >= DEPTH_LIMIT:
            self.wanted = node
            raise _Restart
        depth, length, mark = self.depth, len(chain), len(self.trail)
        self.depth += 1
        unread = [iter(node.reads)]
        chain.append(node)
        try:
            while unread:
                top = chain[-1]
                if top.mark == CLEAN:
                    chain.pop()
                    unread.pop()
                elif top.mark == PENDING:
                    top.visit = 0  # on the stack
                    for name in unread[-1]:
                        dependency = nodes[name]
                        if dependency.mark == RUNNING or (dependency.mark == PENDING and not dependency.visit):
                            top.mark = STALE  # it would read what waits for it: let it try, or take another way
                            break
                        if dependency.mark:
                            chain.append(dependency)
                            unread.append(iter(dependency.reads))
                            break
                    else:
                        top.mark = CLEAN
                else:
                    self.run(top)
                    if self.wanted is not None:
                        chain.append(self.wanted)
                        unread.append(iter(self.wanted.reads))
                        self.wanted = None
        except BaseException:
            self.unwind(depth, length, mark)
            raise
        self.depth = depth

    def unwind(self, depth: int, length: int, mark: int) -> None:
        """After an error: what ran, or waited in the middle of a run, must run again."""
        for node in self.chain[length:]:
            if node.mark == RUNNING:
                node.mark = STALE
        del self.chain[length:], self.trail[mark:]
        self.depth = depth
        self.wanted = self.due = None
        if not self.chain:
            self.fault = None

    def restore(self) -> None:
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

    # -- what readers and setters come to ----------------------------------------------------------

    def no_such_name(self, name: str) -> Any:
        if name in ("batch", "update"):
            self.refuse(name)
        if name == "keys":
            return self.nodes.keys
        raise UnknownName(name)

    def read_late(self, node: Node) -> Any:
        """A read after the function returned: by its coroutine, which then depends on it, or by who kept the reader."""
        self.require("get")
        name, run = node.name, computing.get()
        if type(run) is Run and run.graph is self:
            with self.lock:
                reading = run.node
                if reading.run is run and name not in reading.reads:
                    reading.reads = [*reading.reads, name]
                    node.dependents[reading] = None
        return self.values[name]

    def may_set(self, target: str) -> None:
        """Raise SideEffect inside a computed function, of this state or any other."""
        run = computing.get()
        if run is None:
            return
        if isinstance(run, Graph):
            run.refuse(target)
        elif run.node.run is run:
            raise SideEffect(run.node.name, target)

    def refuse(self, target: str) -> NoReturn:
        """Raise SideEffect: from within a run in such a way that catching it does not help."""
        if self.chain and self.owner == threading.get_ident():
            self.fault = SideEffect(self.chain[-1].name, target)
            raise self.fault
        run = computing.get()
        raise SideEffect(run.node.name if type(run) is Run else "a computed value", target)
