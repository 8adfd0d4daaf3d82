"""`python -m simulation --seed 7`: play one seed, or several, and say what came of it."""

import argparse
import sys
import time
from collections import Counter
from typing import Any

from .invariants import Broken
from .play import play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=1, help="how many seeds")
    parser.add_argument("--exchanges", type=int, help="in place of what the seed says")
    parser.add_argument("--shape", help="in place of what the seed says")
    parser.add_argument("--tell", action="store_true", help="say all that happens")
    parser.add_argument("--transitions", action="store_true", help="count the transitions")
    asked = parser.parse_args()
    given: dict[str, Any] = {key: getattr(asked, key) for key in ("exchanges", "shape") if getattr(asked, key)}
    began, failed, messages = time.perf_counter(), 0, 0
    transitions: Counter[str] = Counter()
    for seed in range(asked.seed, asked.seed + asked.count):
        try:
            report = play(seed, print if asked.tell else None, **given)
        except Broken as broken:
            print(broken)
            failed += 1
            continue
        messages += report.messages
        transitions += report.transitions
        if asked.count == 1:
            print(report.options)
            print(
                f"{report.messages} messages, {report.events} events, {report.seconds:.0f} s; history {report.history}"
            )
    if asked.transitions:
        for name, count in sorted(transitions.items()):
            print(f"{count:>9}  {name}")
    if asked.count > 1:
        seconds = time.perf_counter() - began
        print(f"{asked.count} seeds, {failed} failed, {asked.count / seconds:.1f} seeds/s, {messages} messages")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
