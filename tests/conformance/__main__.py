"""`python -m conformance`, in tests/: play cases against the implementations, or against any command.

python -m conformance                                   all cases, all implementations; prints the table
python -m conformance --only Python --suite session     some of them
python -m conformance --command ./conformance-go --transport grpc --case a-reply-is-the-answer
python -m conformance --list                            what the cases say
python -m conformance --write                           the table of clients/README.md, anew
"""

import argparse
import shlex
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

from . import table
from .case import SUITES, Case, cases
from .implementation import Implementation, Missing, implementations, known_failures, required
from .play import Verdict
from .run import run


def main() -> int:
    asked = _arguments()
    chosen = [case for case in cases() if _wanted(case, asked)]
    if asked.list:
        for case in chosen:
            print(f"{case.id}: {case.rule} ({case.source})")
        return 0
    if not chosen:
        print("there is no such case", file=sys.stderr)
        return 2
    results: dict[str, list[Verdict]] = {}
    bad = 0
    for implementation in _implementations(asked):
        try:
            implementation.prepare()
        except Missing as missing:
            print(f"skipped: {missing}", file=sys.stderr)
            bad += required()
            continue
        began = time.perf_counter()
        mine = [case for case in chosen if implementation.takes(case)]
        verdicts = run(implementation, mine, lanes=asked.lanes)
        results[implementation.name] = verdicts
        wrong = _wrong(implementation, verdicts)
        bad += len(wrong)
        for why in wrong:
            print(why, end="\n\n", file=sys.stderr)
        passed, seconds = sum(verdict.passed for verdict in verdicts), time.perf_counter() - began
        if asked.slow:
            for verdict in sorted(verdicts, key=lambda verdict: -verdict.seconds)[:10]:
                print(f"  {verdict.seconds:.1f} s {verdict.case.id}")
        print(f"{implementation.name}: {passed} of {len(verdicts)} cases passed, in {seconds:.0f} s", flush=True)
    if not asked.command:
        print(table.of(results))
        bad += _page(table.of(results), asked)
    return 1 if bad else 0


def _page(made: str, asked: argparse.Namespace) -> bool:
    """Write the table into its page, or see that it is there; whether that is wrong. Only a whole run can tell."""
    if asked.write:
        table.write(made)
    if asked.only or asked.suite or asked.feature or asked.case or table.committed() == made:
        return False
    print("clients/README.md has another table: make conformance ARGS=--write", file=sys.stderr)
    return required()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--command", help="a process under test, in place of those that are declared")
    parser.add_argument("--transport", choices=("grpc", "websocket"), default="grpc", help="of that command")
    parser.add_argument("--can", default="", help="what that command can: `listen,int64`")
    parser.add_argument("--reuse", action="store_true", help="one process of that command plays many cases")
    parser.add_argument("--only", action="append", default=[], help="an implementation by its name")
    parser.add_argument("--suite", action="append", default=[], choices=SUITES)
    parser.add_argument("--feature", action="append", default=[], choices=table.FEATURES)
    parser.add_argument("--case", action="append", default=[], help="a case by its name; `*` stands for any text")
    parser.add_argument("--lanes", type=int, default=0, help="how many cases at once")
    parser.add_argument("--slow", action="store_true", help="say which cases took longest")
    parser.add_argument("--list", action="store_true", help="say what the cases are")
    parser.add_argument("--write", action="store_true", help="write the table of clients/README.md anew")
    return parser.parse_args()


def _wanted(case: Case, asked: argparse.Namespace) -> bool:
    if asked.suite and case.suite not in asked.suite:
        return False
    if asked.feature and not set(asked.feature) & set(case.features):
        return False
    return not asked.case or any(fnmatch(case.name, name) or fnmatch(case.id, name) for name in asked.case)


def _implementations(asked: argparse.Namespace) -> list[Implementation]:
    if not asked.command:
        return [one for one in implementations() if not asked.only or one.name in asked.only]
    can = frozenset(asked.can.split(",")) - {""}
    return [
        Implementation(
            asked.command, tuple(shlex.split(asked.command)), asked.transport, can, asked.reuse, place=Path.cwd()
        )
    ]


def _wrong(implementation: Implementation, verdicts: list[Verdict]) -> list[str]:
    """What is not as it should be: a failure that is not known, and a known one that has gone."""
    known = known_failures().get(implementation.name, {})
    wrong = [verdict.why for verdict in verdicts if not verdict.passed and verdict.case.id not in known]
    for verdict in verdicts:
        if verdict.passed and verdict.case.id in known:
            wrong.append(f"{verdict.case.id} is passed now: take it out of known_failures.yaml")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
