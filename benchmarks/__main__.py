"""`python -m benchmarks [name ...]`: run every benchmark, or those named. Fails when one of them does."""

import importlib
import sys

BENCHMARKS = ("kernel", "state", "messages", "observe", "nats", "languages")


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or BENCHMARKS:
        print(f"== {name}")
        if importlib.import_module(f"benchmarks.{name}").main():
            failed.append(name)
        print()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
