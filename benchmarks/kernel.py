"""Kernel dispatch beside the least that could do the work: a `deque`, a `dict` and a loop.

The bare loop has no hook, no unhandled names, no generations, and dies with the first handler that
raises; what those cost is the ratio. The target is 5.
"""

import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from benchmarks.measure import by_turns, versions
from exchange_grpc.kernel import Kernel

SIGNALS = 50_000
ROUNDS = 11
TARGET = 5.0


class Bare:
    """The other side."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Any], None]] = {}
        self.queue: deque[tuple[str, Any]] = deque()

    def sig(self, name: str, value: Any) -> None:
        self.queue.append((name, value))

    def run(self) -> None:
        queue, handlers = self.queue, self.handlers
        while queue:
            name, value = queue.popleft()
            handlers[name](value)


def chain() -> tuple[Callable[[], None], Callable[[], None]]:
    """Each signal emits the next: every generation is one signal long."""
    kernel, bare = Kernel(), Bare()

    def kernel_handler(value: int, sig: Callable[..., Any], state: Any) -> None:
        if value:
            sig("next", value - 1)

    def bare_handler(value: int) -> None:
        if value:
            bare.sig("next", value - 1)

    kernel.delayed["next"] = kernel_handler
    bare.handlers["next"] = bare_handler

    def run_kernel() -> None:
        kernel.sig("next", SIGNALS - 1)
        kernel.run()

    def run_bare() -> None:
        bare.sig("next", SIGNALS - 1)
        bare.run()

    return run_kernel, run_bare


def burst() -> tuple[Callable[[], None], Callable[[], None]]:
    """All signals are there at once, under 10 names."""
    kernel, bare = Kernel(), Bare()
    names = [f"name.{i}" for i in range(10)]
    for name in names:
        kernel.delayed[name] = lambda value, sig, state: None
        bare.handlers[name] = lambda value: None

    def run_kernel() -> None:
        sig = kernel.sig
        for i in range(SIGNALS):
            sig(names[i % 10], i)
        kernel.run()

    def run_bare() -> None:
        sig = bare.sig
        for i in range(SIGNALS):
            sig(names[i % 10], i)
        bare.run()

    return run_kernel, run_bare


def immediate() -> tuple[Callable[[], None], Callable[[], None]]:
    """No queue: `sig` with an immediate handler beside a call through a dict."""
    kernel, bare = Kernel(), Bare()
    kernel.immediate["now"] = lambda value, sig, state: value
    bare.handlers["now"] = lambda value: value

    def run_kernel() -> None:
        sig = kernel.sig
        for i in range(SIGNALS):
            sig("now", i)

    def run_bare() -> None:
        handlers = bare.handlers
        for i in range(SIGNALS):
            handlers["now"](i)

    return run_kernel, run_bare


def main() -> int:
    print(f"{versions('exchange-grpc')}; {SIGNALS:,} signals, medians of {ROUNDS} runs by turns")
    print(f"{'':10} {'kernel':>12} {'bare loop':>12} {'times':>7}")
    worst = 0.0
    for shape in (chain, burst, immediate):
        kernel, bare = by_turns(*shape(), ROUNDS)
        worst = max(worst, kernel / bare)
        each = 1e9 / SIGNALS
        print(f"{shape.__name__:10} {kernel * each:>9.0f} ns {bare * each:>9.0f} ns {kernel / bare:>7.1f}")
    print(f"at most {worst:.1f} times the bare loop (target: {TARGET:.0f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
