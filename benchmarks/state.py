"""State beside reaktiv, on the graph shapes of js-reactivity-benchmark.

Each shape is drawn once, by a function that knows neither library, and built by both from functions
written as a user of that library writes them: `s[name]` here, `signal()` there. Both are observed at
the leaves, by subscribers and by effects. One pass that is not timed compares what was observed after
every step and counts how often computed functions ran; the timed passes take turns.
"""

import random
import sys
from collections.abc import Callable, Iterable
from functools import partial
from statistics import geometric_mean
from typing import Any, Protocol

import reaktiv  # type: ignore[import-untyped]  # it brings no types

from benchmarks.measure import by_turns, versions
from exchange_grpc import State

ROUNDS = 9
TARGET = 5.0

# reaktiv 0.24 tells a node that it may be out of date once for every path that leads to it, so its time
# grows with the power of the layers where paths join again (30 of cellx do not end). So few layers that
# this does not make the whole figure; the mean is printed without those two shapes as well.
LAYERS = 6
JOINING = ("cellx", "dynamic")

Step = dict[str, int]


class Library(Protocol):
    """What a shape is drawn with. A node is called by its name; each method but the last two makes one."""

    def source(self, name: str, value: int) -> str: ...
    def plus(self, name: str, of: str, number: int) -> str: ...
    def negative(self, name: str, of: str) -> str: ...
    def total(self, name: str, of: list[str]) -> str: ...
    def difference(self, name: str, left: str, right: str) -> str: ...
    def again(self, name: str, of: str, times: int) -> str: ...
    def packed(self, name: str, of: list[str]) -> str: ...
    def picked(self, name: str, of: str, index: int) -> str: ...
    def either(self, name: str, condition: str, odd: str, even: str, times: int) -> str: ...
    def without_one(self, name: str, first: str, rest: list[str]) -> str: ...


class Counting:
    """Counts the runs of the functions of one side, when asked to."""

    def __init__(self, count: bool) -> None:
        self.count, self.runs = count, 0

    def counted(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if not self.count:
            return fn

        def counting(*args: Any) -> Any:
            self.runs += 1
            return fn(*args)

        return counting


class Ours(Counting):
    def __init__(self, count: bool) -> None:
        super().__init__(count)
        self.values: dict[str, Any] = {}
        self.seen: dict[str, Any] = {}

    def _add(self, name: str, fn: Callable[[Any], Any]) -> str:
        self.values[name] = self.counted(fn)
        return name

    def source(self, name: str, value: int) -> str:
        self.values[name] = value
        return name

    def plus(self, name: str, of: str, number: int) -> str:
        return self._add(name, lambda s: s[of] + number)

    def negative(self, name: str, of: str) -> str:
        return self._add(name, lambda s: -s[of])

    def total(self, name: str, of: list[str]) -> str:
        return self._add(name, lambda s: sum([s[each] for each in of]))

    def difference(self, name: str, left: str, right: str) -> str:
        return self._add(name, lambda s: s[left] - s[right])

    def again(self, name: str, of: str, times: int) -> str:
        return self._add(name, lambda s: sum([s[of] for _ in range(times)]))

    def packed(self, name: str, of: list[str]) -> str:
        return self._add(name, lambda s: dict(enumerate([s[each] for each in of])))

    def picked(self, name: str, of: str, index: int) -> str:
        return self._add(name, lambda s: s[of][index])

    def either(self, name: str, condition: str, odd: str, even: str, times: int) -> str:
        return self._add(name, lambda s: sum([s[odd] if s[condition] % 2 else s[even] for _ in range(times)]))

    def without_one(self, name: str, first: str, rest: list[str]) -> str:
        def compute(s: Any) -> int:
            total: int = s[first]
            skip = total % len(rest) if total % 2 else -1
            for index, each in enumerate(rest):
                if index != skip:
                    total += s[each]
            return total % 1_000_003

        return self._add(name, compute)

    def observe(self, leaves: Iterable[str]) -> None:
        self.state = State(self.values)
        for leaf in leaves:
            self.state.subscribe(leaf, partial(self.seen.__setitem__, leaf))

    def run(self, steps: list[Step]) -> None:
        state = self.state
        for step in steps:
            if len(step) == 1:
                for name, value in step.items():
                    state[name] = value
            else:
                state.update(step)


class Theirs(Counting):
    def __init__(self, count: bool) -> None:
        super().__init__(count)
        self.nodes: dict[str, Any] = {}
        self.seen: dict[str, Any] = {}

    def _add(self, name: str, fn: Callable[[], Any]) -> str:
        self.nodes[name] = reaktiv.Computed(self.counted(fn))
        return name

    def source(self, name: str, value: int) -> str:
        self.nodes[name] = reaktiv.Signal(value)
        return name

    def plus(self, name: str, of: str, number: int) -> str:
        node = self.nodes[of]
        return self._add(name, lambda: node() + number)

    def negative(self, name: str, of: str) -> str:
        node = self.nodes[of]
        return self._add(name, lambda: -node())

    def total(self, name: str, of: list[str]) -> str:
        nodes = [self.nodes[each] for each in of]
        return self._add(name, lambda: sum([node() for node in nodes]))

    def difference(self, name: str, left: str, right: str) -> str:
        a, b = self.nodes[left], self.nodes[right]
        return self._add(name, lambda: a() - b())

    def again(self, name: str, of: str, times: int) -> str:
        node = self.nodes[of]
        return self._add(name, lambda: sum([node() for _ in range(times)]))

    def packed(self, name: str, of: list[str]) -> str:
        nodes = [self.nodes[each] for each in of]
        return self._add(name, lambda: dict(enumerate([node() for node in nodes])))

    def picked(self, name: str, of: str, index: int) -> str:
        node = self.nodes[of]
        return self._add(name, lambda: node()[index])

    def either(self, name: str, condition: str, odd: str, even: str, times: int) -> str:
        which, a, b = self.nodes[condition], self.nodes[odd], self.nodes[even]
        return self._add(name, lambda: sum([a() if which() % 2 else b() for _ in range(times)]))

    def without_one(self, name: str, first: str, rest: list[str]) -> str:
        head, nodes = self.nodes[first], [self.nodes[each] for each in rest]

        def compute() -> int:
            total: int = head()
            skip = total % len(nodes) if total % 2 else -1
            for index, node in enumerate(nodes):
                if index != skip:
                    total += node()
            return total % 1_000_003

        return self._add(name, compute)

    def observe(self, leaves: Iterable[str]) -> None:
        def effect(leaf: str, node: Any, see: Callable[[str, Any], None]) -> Any:
            return reaktiv.Effect(lambda: see(leaf, node()))

        see = self.seen.__setitem__
        self.effects = [effect(leaf, self.nodes[leaf], see) for leaf in leaves]  # one that is not kept is disposed

    def run(self, steps: list[Step]) -> None:
        for step in steps:
            if len(step) == 1:
                for name, value in step.items():
                    self.nodes[name].set(value)
            else:
                with reaktiv.batch():
                    for name, value in step.items():
                        self.nodes[name].set(value)


# -- the shapes: draw one, say which nodes are its leaves and what happens to it --------------------------


def deep(lib: Library) -> tuple[list[str], list[Step]]:
    """A chain of 50."""
    node = lib.source("head", 0)
    for i in range(50):
        node = lib.plus(f"n{i}", node, 1)
    return [node], [{"head": i} for i in range(1, 51)]


def broad(lib: Library) -> tuple[list[str], list[Step]]:
    """One source, 50 chains of two, each observed."""
    head = lib.source("head", 0)
    leaves = [lib.plus(f"leaf{i}", lib.plus(f"n{i}", head, i), 1) for i in range(50)]
    return leaves, [{"head": i} for i in range(1, 51)]


def diamond(lib: Library) -> tuple[list[str], list[Step]]:
    """One source, five in between, one sum."""
    head = lib.source("head", 0)
    middle = [lib.plus(f"n{i}", head, 1) for i in range(5)]
    return [lib.total("sum", middle)], [{"head": i} for i in range(1, 251)]


def triangle(lib: Library) -> tuple[list[str], list[Step]]:
    """A chain of ten, and the sum of all its links."""
    links = [lib.source("head", 0)]
    for i in range(9):
        links.append(lib.plus(f"n{i}", links[-1], 1))
    return [lib.total("sum", links)], [{"head": i} for i in range(1, 101)]


def mux(lib: Library) -> tuple[list[str], list[Step]]:
    """100 sources packed into one value, which 100 take apart again: a change matters to one of them."""
    packed = lib.packed("mux", [lib.source(f"head{i}", 0) for i in range(100)])
    leaves = [lib.plus(f"leaf{i}", lib.picked(f"n{i}", packed, i), 1) for i in range(100)]
    return leaves, [{f"head{i}": i + k} for k in (1, 7) for i in range(10)]


def repeated(lib: Library) -> tuple[list[str], list[Step]]:
    """One computed value that reads its source 30 times."""
    head = lib.source("head", 0)
    return [lib.again("sum", head, 30)], [{"head": i} for i in range(1, 251)]


def unstable(lib: Library) -> tuple[list[str], list[Step]]:
    """What the sum reads changes with every step."""
    head = lib.source("head", 0)
    odd, even = lib.plus("more", head, 100), lib.negative("less", head)
    return [lib.either("sum", head, odd, even, 20)], [{"head": i} for i in range(1, 251)]


def cellx(lib: Library) -> tuple[list[str], list[Step]]:
    """Layers of four, every node observed, all four sources set in one batch."""
    a, b, c, d = (lib.source(f"source{i}", i + 1) for i in range(4))
    leaves = []
    for i in range(LAYERS):
        a, b, c, d = (
            lib.plus(f"a{i}", b, 0),
            lib.difference(f"b{i}", a, c),
            lib.total(f"c{i}", [b, d]),
            lib.plus(f"d{i}", c, 0),
        )
        leaves += [a, b, c, d]
    steps = [{f"source{i}": value + k for i, value in enumerate((4, 3, 2, 1))} for k in range(10)]
    return leaves, steps


def dynamic(lib: Library) -> tuple[list[str], list[Step]]:
    """A grid: each node reads six of the ten in the layer before; a quarter of them leaves one out at times."""
    choose = random.Random(7)
    layer = [lib.source(f"source{i}", i) for i in range(10)]
    for depth in range(LAYERS - 3):
        above, layer = layer, []
        for i in range(10):
            reads = [above[(i + k) % 10] for k in range(6)]
            name = f"n{depth}_{i}"
            if choose.random() < 0.75:
                layer.append(lib.total(name, reads))
            else:
                layer.append(lib.without_one(name, reads[0], reads[1:]))
    return layer, [{f"source{i % 10}": i + 1} for i in range(20)]


SHAPES = (deep, broad, diamond, triangle, mux, repeated, unstable, cellx, dynamic)


def build(side: Ours | Theirs, shape: Callable[[Library], tuple[list[str], list[Step]]]) -> list[Step]:
    leaves, steps = shape(side)
    side.observe(leaves)
    return steps


def compare(shape: Callable[[Library], tuple[list[str], list[Step]]]) -> tuple[int, int, str]:
    """The runs of both sides over all steps, and where they saw different values, if anywhere."""
    ours, theirs = Ours(count=True), Theirs(count=True)
    steps = build(ours, shape)
    build(theirs, shape)
    ours.runs = theirs.runs = 0
    for number, step in enumerate([{}, *steps]):
        if step:
            ours.run([step])
            theirs.run([step])
        if ours.seen != theirs.seen:
            leaf = next(leaf for leaf in ours.seen if ours.seen[leaf] != theirs.seen.get(leaf))
            return 0, 0, f"step {number}, {leaf}: {ours.seen[leaf]} and {theirs.seen.get(leaf)}"
    return ours.runs, theirs.runs, ""


def main() -> int:
    print(f"{versions('exchange-grpc', 'reaktiv')}; medians of {ROUNDS} runs by turns")
    print(f"{'':10} {'State':>11} {'reaktiv':>11} {'times':>7}   runs of computed functions, both")
    ratios: dict[str, float] = {}
    differences = []
    for shape in SHAPES:
        runs, their_runs, difference = compare(shape)
        if difference:
            differences.append(f"{shape.__name__}: {difference}")
            continue
        ours, theirs = Ours(count=False), Theirs(count=False)
        steps = build(ours, shape)
        build(theirs, shape)
        reset = dict.fromkeys({name for step in steps for name in step}, -1)  # so that every step is a change

        mine, other = by_turns(partial(ours.run, [reset, *steps]), partial(theirs.run, [reset, *steps]), ROUNDS)
        if ours.seen != theirs.seen:
            differences.append(f"{shape.__name__}: after the timed runs")
        ratios[shape.__name__] = other / mine
        print(
            f"{shape.__name__:10} {mine * 1e6:>8.0f} us {other * 1e6:>8.0f} us {other / mine:>7.1f}   "
            f"{runs} and {their_runs}"
        )
    for difference in differences:
        print(f"results differ, {difference}", file=sys.stderr)
    if not differences:
        plain = [ratio for name, ratio in ratios.items() if name not in JOINING]
        print(f"geometric mean: {geometric_mean(ratios.values()):.1f} times as fast (target: {TARGET:.0f}),")
        print(f"without {' and '.join(JOINING)} {geometric_mean(plain):.1f}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
