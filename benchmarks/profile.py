"""`python -m benchmarks.profile`: what a message costs the hub that it passes through, by room and by function.

The processes are those of `messages.py`. A timer interrupts the hub every `EVERY` seconds; the processor time
of its main thread since the last time goes to the function of ours that is running, or on whose behalf
something else is: C code, dataclasses, asyncio. Nothing is traced, so nothing is slowed down by being
called often; what the timer itself costs is printed beside the rest. The threads of gRPC are counted whole.
"""

import argparse
import asyncio
import gc
import json
import signal
import sys
import time
from collections import Counter
from itertools import cycle
from types import FrameType
from typing import Any

from benchmarks import messages
from benchmarks.measure import versions
from benchmarks.messages import at_once, child, one_by_one, one_way, payloads, said, source_of
from exchange_grpc import Exchange

EVERY = 0.001
SECONDS = 4.0
FUNCTIONS = 12  # shown of each load
PACKAGE = "exchange_grpc."
COLLECTOR = "garbage collector"
LOADS = {"one way": "messages one way", "at once": f"requests, {messages.AT_ONCE} at once", "one by one": "one by one"}


class Sampler:
    """Where the processor time of the main thread goes."""

    def __init__(self) -> None:
        self._spent: Counter[tuple[str, str]] = Counter()  # (room, function) -> seconds
        self._thread = 0.0
        gc.callbacks.append(self._collected)

    def begin(self, sampling: bool) -> None:
        """Forget what was, and sample or only measure."""
        self._spent.clear()
        self._thread = self._began = time.thread_time()
        self._process = time.process_time()
        if sampling:
            signal.signal(signal.SIGALRM, self._sample)
            signal.setitimer(signal.ITIMER_REAL, EVERY, EVERY)

    def end(self) -> dict[str, Any]:
        """The seconds of the process, of its main thread, and of every function."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        return {
            "process": time.process_time() - self._process,
            "thread": time.thread_time() - self._began,
            "functions": [[room, name, seconds] for (room, name), seconds in self._spent.items()],
        }

    def _sample(self, number: int, frame: FrameType | None) -> None:
        now = time.thread_time()
        self._spent[_place(frame)] += now - self._thread
        self._thread = now

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        """A run of the collector goes to nobody else: it is not the fault of whoever allocated last."""
        if phase == "start":
            self._sample(0, sys._getframe().f_back)
        else:
            now = time.thread_time()
            self._spent[COLLECTOR, f"generation {info['generation']}"] += now - self._thread
            self._thread = now


def _place(frame: FrameType | None) -> tuple[str, str]:
    """Room and function: the innermost of ours, else the loop or gRPC."""
    grpc = False
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(PACKAGE):
            return module.removeprefix(PACKAGE), frame.f_code.co_qualname
        grpc = grpc or module.startswith("grpc")
        frame = frame.f_back
    return ("gRPC", "its own coroutines") if grpc else ("asyncio", "the loop, and what gRPC does on it")


# ------------------------------------------------------------------------------------------------- the processes


async def run_hub(sink: dict[str, str]) -> None:
    """The hub, which can be asked what it spent."""
    sampler = Sampler()
    hub = Exchange("hub")

    @hub.handle("profile.begin")
    async def begin(msg: Any) -> None:
        sampler.begin(msg.value)

    @hub.handle("profile.end")
    async def end() -> dict[str, Any]:
        return sampler.end()

    await messages.run_hub(sink, hub)


async def push(load: str, source: Exchange) -> int:
    """Put a load on the hub; how many messages passed it."""
    values = cycle(payloads()["100 bytes"])

    async def ask(value: Any) -> Any:
        return await source.request("bench.echo", value)

    if load == "one way":
        return (await one_way(source, values, SECONDS))[0]
    if load == "at once":
        return 2 * (await at_once(ask, values, SECONDS))[0]  # there and back
    return 2 * len(await one_by_one(ask, values, SECONDS))


async def profile(source: Exchange, load: str, *, sampling: bool) -> tuple[int, dict[str, Any]]:
    await source.request("profile.begin", sampling, to="hub")
    count = await push(load, source)
    return count, await source.request("profile.end", to="hub")


async def run_all() -> None:
    async with child("benchmarks.messages", "--role", "sink") as sink:
        sink_at = await said(sink)
        async with child("benchmarks.profile", "--hub-to", json.dumps(sink_at)) as hub:
            hub_at = await said(hub)
            async with source_of(hub_at["exchange"]) as source:
                for load in LOADS:
                    plain = await profile(source, load, sampling=False)
                    print("\n".join(("", *report(load, plain, await profile(source, load, sampling=True)))), flush=True)


# ------------------------------------------------------------------------------------------------------ the report


def report(load: str, plain: tuple[int, dict[str, Any]], sampled: tuple[int, dict[str, Any]]) -> list[str]:
    count, spent = plain
    sampled_count, sampled_spent = sampled
    each = 1e6 / sampled_count
    functions = {(room, name): seconds * each for room, name, seconds in sampled_spent["functions"]}
    rooms: Counter[str] = Counter()
    for (room, _), cost in functions.items():
        rooms[room] += cost
    whole = sum(rooms.values())
    threads = (sampled_spent["process"] - sampled_spent["thread"]) * each
    without = (spent["process"] * 1e6 / count, spent["thread"] * 1e6 / count)
    return [
        f"{LOADS[load]}: {sampled_count:,} messages through the hub, us each",
        f"without the timer {without[0]:.1f}, of which the main thread {without[1]:.1f}; with it {whole + threads:.1f}",
        f"{whole:>7.1f} {'':5}  main thread",
        *(f"{cost:>7.1f} {cost / whole:>5.0%}    {room}" for room, cost in rooms.most_common()),
        f"{threads:>7.1f} {'':5}  threads of gRPC",
        "its largest functions, and what they call that is not ours:",
        *(
            f"{cost:>7.1f} {cost / whole:>5.0%}    {room}: {name}"
            for (room, name), cost in Counter(functions).most_common(FUNCTIONS)
        ),
    ]


def main() -> int:
    print(f"{versions('exchange-grpc', 'grpcio', 'protobuf')}; {SECONDS:g} s each; ledgers on, and full")
    asyncio.run(run_all())
    return 0


def role() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hub-to", type=json.loads)
    hub_to = parser.parse_args().hub_to
    if hub_to is not None:
        asyncio.run(run_hub(hub_to))
    else:
        sys.exit(main())


if __name__ == "__main__":
    role()
