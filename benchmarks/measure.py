"""How the benchmarks measure: by turns, so that a slow moment of the machine hits both sides."""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

Work = Callable[[], object]


def by_turns(first: Work, second: Work, rounds: int) -> tuple[float, float]:
    """The median seconds of each, over `rounds` runs of both after one that does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    first(), second()
    for turn in range(rounds):
        for side in (0, 1) if turn % 2 else (1, 0):
            gc.collect()  # nobody pays for the garbage of the other; the collector stays on
            start = time.perf_counter()
            (first, second)[side]()
            times[side].append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def versions(*packages: str) -> str:
    """What was measured, for the record."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} from this tree")
    return ", ".join(found)
