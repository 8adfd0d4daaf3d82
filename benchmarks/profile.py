"""`python -m benchmarks.profile`: what a message costs the hub that it passes through, by room and by function.

The processes are those of `messages.py`. A timer interrupts the hub every `EVERY` seconds; the processor time
of its main thread since then goes to the function of ours that is running, or on whose behalf something else
is: C code, dataclasses, asyncio. No call is traced, so none costs more for being watched; the same without the
timer stands beside it. The threads of gRPC are counted whole, and runs of the garbage collector by themselves.
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
from benchmarks.loads import AT_ONCE, at_once, one_by_one, one_way, payloads
from benchmarks.measure import versions
from benchmarks.messages import sender_of, source_of
from benchmarks.processes import child, said
from exchange_grpc import Exchange

EVERY = 0.001
TURNS = 3  # with the timer and without it
SECONDS = 2.0  # each
FUNCTIONS = 12  # shown of each load
PACKAGE = "exchange_grpc."
COLLECTOR = "garbage collector"
LOADS = {"one way": "messages one way", "at once": f"requests, {AT_ONCE} at once", "one by one": "one by one"}


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
        spent, self._spent = self._spent, Counter()  # the collector may still add to it, at any moment
        return {
            "process": time.process_time() - self._process,
            "thread": time.thread_time() - self._began,
            "functions": [[room, name, seconds] for (room, name), seconds in spent.items()],
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
        return (await one_way(sender_of(source), values, SECONDS))[0]
    if load == "at once":
        return 2 * (await at_once(ask, values, SECONDS))[0]  # there and back
    return 2 * len(await one_by_one(ask, values, SECONDS))


class Spent:
    """What all turns of one load took together: messages, seconds, and seconds by room and function."""

    def __init__(self) -> None:
        self.count, self.process, self.thread = 0, 0.0, 0.0
        self.functions: Counter[tuple[str, str]] = Counter()

    async def turn(self, source: Exchange, load: str, *, sampling: bool) -> None:
        await source.request("profile.begin", sampling, to="hub")
        self.count += await push(load, source)
        spent = await source.request("profile.end", to="hub")
        self.process += spent["process"]
        self.thread += spent["thread"]
        for room, name, seconds in spent["functions"]:
            self.functions[room, name] += seconds


async def run_all() -> None:
    async with child("benchmarks.messages", "--role", "sink") as sink:
        sink_at = await said(sink)
        async with child("benchmarks.profile", "--hub-to", json.dumps(sink_at)) as hub:
            hub_at = await said(hub)
            async with source_of(hub_at["exchange"]) as source:
                for load in LOADS:
                    plain, sampled = Spent(), Spent()
                    for _ in range(TURNS):
                        await plain.turn(source, load, sampling=False)
                        await sampled.turn(source, load, sampling=True)
                    print("\n".join(("", *report(load, plain, sampled))), flush=True)


# ------------------------------------------------------------------------------------------------------ the report


def report(load: str, plain: Spent, sampled: Spent) -> list[str]:
    """All per message, in microseconds; the shares are those of the main thread."""
    each = 1e6 / sampled.count
    functions = Counter({place: seconds * each for place, seconds in sampled.functions.items()})
    rooms: Counter[str] = Counter()
    for (room, _), cost in functions.items():
        rooms[room] += cost
    main_thread = sampled.thread * each
    without = plain.process * 1e6 / plain.count
    return [
        f"{LOADS[load]}: {sampled.count:,} messages through the hub, us each",
        f"{sampled.process * each:>7.1f}        in all; {without:.1f} without the timer",
        f"{(sampled.process - sampled.thread) * each:>7.1f}        threads of gRPC",
        f"{main_thread:>7.1f}        main thread, by room:",
        *(f"{cost:>7.1f} {cost / main_thread:>5.0%}    {room}" for room, cost in rooms.most_common()),
        "its largest functions, with what they call that is not ours:",
        *(
            f"{cost:>7.1f} {cost / main_thread:>5.0%}    {room}: {name}"
            for (room, name), cost in functions.most_common(FUNCTIONS)
        ),
    ]


def main() -> int:
    print(f"{versions('exchange-grpc', 'grpcio', 'protobuf')}; {TURNS} times {SECONDS:g} s; ledgers on, and full")
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
