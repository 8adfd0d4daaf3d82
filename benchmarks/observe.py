"""What an observer of everything costs a busy hub: requests at once through it, beside one who observes nothing.

    source (this measures) -> hub -> sink          an observer at the hub

Each is a process of its own, on loopback. The observer reads what it is shown and does nothing with it; on the
other side it observes a name that nobody uses. Both take turns; the order changes from round to round.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
from contextlib import AsyncExitStack

import grpc

from benchmarks.loads import at_once, payloads
from benchmarks.measure import versions
from benchmarks.messages import line_to
from benchmarks.processes import child, said, say
from exchange.v1 import service_pb2, service_pb2_grpc

ROUNDS = 8
SECONDS = 1.0  # of each measurement
NOTHING = "nothing.of.this.name"


async def look(address: str, pattern: str) -> None:
    """Observe until told to stop; then say how much was seen, and how much missed."""
    async with grpc.aio.insecure_channel(address.removeprefix("grpc://")) as channel:
        stub = service_pb2_grpc.ExchangeServiceStub(channel)
        call = stub.Observe(service_pb2.ObserveRequest(pattern=pattern))
        await call.initial_metadata()
        seen = missed = 0

        async def read() -> None:
            nonlocal seen, missed
            async for response in call:
                seen += 1
                missed += response.missed

        reading = asyncio.create_task(read())
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)
        reading.cancel()
        say([seen, missed])


async def run_all() -> None:
    module = "benchmarks.messages"
    found: dict[bool, list[float]] = {False: [], True: []}
    ratios, seen, missed = [], 0, 0
    async with AsyncExitStack() as processes:
        sink = await processes.enter_async_context(child(module, "--role", "sink"))
        sink_at = json.dumps(await said(sink))
        hub = await processes.enter_async_context(child(module, "--role", "hub", "--sink", sink_at))
        url = (await said(hub))["exchange"]
        line = await processes.enter_async_context(line_to(url))
        values = itertools.cycle(payloads()["100 bytes"])
        for turn in range(ROUNDS):
            rate: dict[bool, float] = {}
            for observed in (False, True) if turn % 2 else (True, False):
                async with child("benchmarks.observe", "--look", url, "*" if observed else NOTHING) as observer:
                    await said(observer)
                    count, seconds = await at_once(line.ask, values, SECONDS)
                    assert observer.stdin is not None
                    observer.stdin.write(b"\n")
                    shown = await said(observer)
                rate[observed] = count / seconds
                found[observed].append(rate[observed])
                seen, missed = seen + shown[0], missed + shown[1]
            ratios.append(rate[True] / rate[False])
    print(f"{statistics.median(found[False]):>10,.0f} requests/s through the hub")
    print(f"{statistics.median(found[True]):>10,.0f} requests/s while everything is observed")
    print(f"{statistics.median(ratios):>10.2f} times as many, the median of {ROUNDS} pairs")
    print(f"{seen:>10,} messages were seen and {missed:,} counted as missed")


def main() -> int:
    print(f"{versions('exchange-grpc', 'grpcio', 'protobuf')}, {os.cpu_count()} cores; {SECONDS} s each, by turns")
    asyncio.run(run_all())
    return 0


def role() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--look", nargs=2)
    looking = parser.parse_args().look
    if looking is not None:
        asyncio.run(look(*looking))
    else:
        sys.exit(main())


if __name__ == "__main__":
    role()
