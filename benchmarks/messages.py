"""Messages and requests: within a process and over gRPC, straight and through a hub; beside plain `grpc.aio`.

    source (this measures) -> sink          source -> hub -> sink

Over gRPC each is a process of its own, on loopback; locally they share one. The other side is what gRPC itself
costs: unary calls that carry the same payload as bytes, to an echo beside the sink and to a proxy beside the
hub. One-way messages are counted where they arrive, until the last is there. Everything takes turns, round by
round, with full ledgers. EXCHANGE_WEBHOOKS may name a file of real payloads, as for the tests.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from benchmarks.measure import versions
from exchange_grpc import Exchange
from exchange_grpc.limits import LEDGER_MESSAGES
from exchange_grpc.payload import encode_json

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 5
SECONDS = 0.4  # of each measurement: messages that pile up on the way are far from what a link holds
AT_ONCE = 64
LAST_SECONDS = 20.0  # for what was sent to arrive
WEBHOOKS = 200
LOCAL_LINES = ("local, straight", "local, hub")
GRPC_LINES = ("gRPC, straight", "gRPC, hub")
PLAIN = "  grpc.aio"  # below the line that it is compared with
ECHO = "/benchmark.Echo/Echo"

Ask = Callable[[Any], Awaitable[Any]]
Figures = dict[str, dict[str, list[float]]]  # line -> column -> one for each round


class Line(NamedTuple):
    """One way to the sink: how to ask over it, and the exchange that sends (none over plain gRPC)."""

    ask: Ask
    source: Exchange | None = None


class Sink:
    """Takes what is sent and counts it; answers what is asked."""

    def __init__(self) -> None:
        self._taken = 0
        self._began = self._last = 0.0

    def exchange(self) -> Exchange:
        handlers = {"bench.take": self._take, "bench.echo": self._echo, "bench.begin": self._begin}
        return Exchange("sink", handlers={**handlers, "bench.end": self._end})

    async def _take(self) -> None:
        self._taken += 1
        self._last = time.perf_counter()

    async def _echo(self, msg: Any) -> Any:
        return msg.value

    async def _begin(self) -> None:
        self._taken, self._began = 0, time.perf_counter()

    async def _end(self, msg: Any) -> float:
        """The seconds until the last of so many was taken."""
        async with asyncio.timeout(LAST_SECONDS):
            while self._taken < msg.value:  # noqa: ASYNC110  # an event would cost each message something
                await asyncio.sleep(0.001)
        return self._last - self._began


# ------------------------------------------------------------------------------------------------- measuring


async def one_way(source: Exchange, values: Iterator[Any], seconds: float = SECONDS) -> tuple[int, float]:
    """How many messages were sent, and the seconds until the last had been taken."""
    await source.request("bench.begin")
    sent, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        await source.send("bench.take", next(values))
        sent += 1
    return sent, await source.request("bench.end", sent, timeout=2 * LAST_SECONDS)


async def at_once(ask: Ask, values: Iterator[Any], seconds: float = SECONDS) -> tuple[int, float]:
    """How many requests were answered, and the seconds that it took, with `AT_ONCE` under way all the time."""
    start = time.perf_counter()

    async def keep_asking() -> int:
        asked = 0
        while time.perf_counter() < start + seconds:
            await ask(next(values))
            asked += 1
        return asked

    return sum(await asyncio.gather(*(keep_asking() for _ in range(AT_ONCE)))), time.perf_counter() - start


async def one_by_one(ask: Ask, values: Iterator[Any], seconds: float = SECONDS) -> list[float]:
    """The seconds of each round trip."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        await ask(next(values))
        times.append(time.perf_counter() - start)
    return times


async def measure(line: Line, values: Iterator[Any], raw: Iterator[bytes]) -> dict[str, float]:
    """One round of one line, by column."""
    found = {}
    gc.collect()  # nobody pays for the garbage of another; the collector stays on
    if line.source is not None:
        sent, seconds = await one_way(line.source, values)
        found["one way"] = sent / seconds
    payloads = raw if line.source is None else values
    answered, seconds = await at_once(line.ask, payloads)
    found["at once"] = answered / seconds
    times = await one_by_one(line.ask, payloads)
    found["p50"], found["p99"] = (statistics.quantiles(times, n=100)[at] * 1e6 for at in (49, 98))
    return found


def payloads() -> dict[str, list[Any]]:
    """What the messages carry, by what it is called."""
    small = {"order": 4711, "customer": "c-20230513", "items": [3, 1, 4, 1, 5], "paid": True, "note": ""}
    small["note"] = "x" * (100 - len(encode_json(small)))
    found = {"100 bytes": [small]}
    path = os.environ.get("EXCHANGE_WEBHOOKS")
    if path:
        lines = Path(path).read_text(encoding="utf-8").splitlines()[:WEBHOOKS]
        values = [json.loads(line)["value"] for line in lines]
        size = statistics.median(len(encode_json(value)) for value in values)
        found[f"webhooks of {size / 1000:.1f} KB"] = values
    return found


# ----------------------------------------------------------------------------------------------- the processes


@asynccontextmanager
async def child(module: str, *args: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m MODULE ARGS` on a pipe; it ends when its input does, so it never outlives us."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *args, stdin=pipe, stdout=pipe, cwd=ROOT
    )
    assert process.stdin is not None
    try:
        yield process
    finally:
        process.stdin.close()
        await process.wait()


async def said(process: asyncio.subprocess.Process) -> Any:
    """The next line of a child, which is JSON."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process of the benchmark failed")
    return json.loads(line)


async def serve(exchange: Exchange, answer: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
    """An exchange, and beside it a plain gRPC server: say where they are, and serve until nobody needs us."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    _, service, method = ECHO.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    url = await exchange.listen("grpc://127.0.0.1:0")
    print(json.dumps({"exchange": url, "grpc": f"127.0.0.1:{port}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


async def run_sink() -> None:
    async def echo(data: bytes, context: Any) -> bytes:
        return data

    async with Sink().exchange() as sink:
        await serve(sink, echo)


async def run_hub(sink: dict[str, str], hub: Exchange) -> None:
    """`hub` between whoever links to it and the sink, and a proxy before the echo."""
    async with hub, grpc.aio.insecure_channel(sink["grpc"]) as channel:
        call = channel.unary_unary(ECHO)

        async def forward(data: bytes, context: Any) -> bytes:
            return await call(data)

        await hub.connect(sink["exchange"])
        await serve(hub, forward)


@asynccontextmanager
async def source_of(to: str | Exchange) -> AsyncIterator[Exchange]:
    """An exchange that is linked, and knows the way to the sink, whose ledger and those on the way are full."""
    async with Exchange("source") as source:
        await source.connect(to)
        await source.request("bench.begin")
        for _ in range(LEDGER_MESSAGES):
            await source.send("bench.take")
        await source.request("bench.end", LEDGER_MESSAGES, timeout=2 * LAST_SECONDS)
        yield source


@asynccontextmanager
async def line_to(to: str | Exchange) -> AsyncIterator[Line]:
    async with source_of(to) as source:
        yield Line(lambda value: source.request("bench.echo", value), source)


async def rounds(lines: dict[str, Line]) -> dict[str, Figures]:
    """All that is measured, by what the messages carry."""
    found: dict[str, Figures] = {}
    for called, values in payloads().items():
        raw = cycle([encode_json(value) for value in values])
        figures = found[called] = {name: {} for name in lines}
        for _ in range(ROUNDS):
            for name, line in lines.items():
                for column, figure in (await measure(line, cycle(values), raw)).items():
                    figures[name].setdefault(column, []).append(figure)
    return found


async def run_source(sink: dict[str, str], hub: dict[str, str]) -> None:
    """Measure all lines and say what was found: those of one process first, which are gone then."""
    async with Sink().exchange() as one, Sink().exchange() as other, Exchange("hub") as between:
        await between.connect(other)
        async with line_to(one) as straight, line_to(between) as through:
            found = await rounds(dict(zip(LOCAL_LINES, (straight, through), strict=True)))
    async with line_to(sink["exchange"]) as straight, line_to(hub["exchange"]) as through:
        lines = {}
        for name, line, plain in zip(GRPC_LINES, (straight, through), (sink["grpc"], hub["grpc"]), strict=True):
            lines[name] = line
            lines[name + PLAIN] = Line(grpc.aio.insecure_channel(plain).unary_unary(ECHO))
        for called, figures in (await rounds(lines)).items():
            found[called] |= figures
    print(json.dumps(found), flush=True)


async def run_all() -> dict[str, Figures]:
    """Start the three processes; what the source found."""
    module = "benchmarks.messages"
    async with child(module, "--role", "sink") as sink:
        sink_at = json.dumps(await said(sink))
        async with child(module, "--role", "hub", "--sink", sink_at) as hub:
            hub_at = json.dumps(await said(hub))
            async with child(module, "--role", "source", "--sink", sink_at, "--hub", hub_at) as source:
                return await said(source)


# ------------------------------------------------------------------------------------------------- the report


def table(called: str, figures: Figures) -> list[str]:
    """The medians; below plain gRPC, the line above it as a multiple of it."""
    said = [
        f"{called:22} {'one way':>12} {f'{AT_ONCE} at once':>12} {'one by one':>21}",
        f"{'':22} {'messages/s':>12} {'requests/s':>12} {'p50 us':>10} {'p99 us':>10}",
    ]
    above: dict[str, float] = {}
    for name, columns in figures.items():
        medians = {column: statistics.median(found) for column, found in columns.items()}
        plain = name.endswith(PLAIN)
        shown = f"{medians['one way']:>12,.0f}" if "one way" in medians else " " * 12
        shown += f" {medians['at once']:>12,.0f} {medians['p50']:>10,.0f} {medians['p99']:>10,.0f}"
        said.append(f"{PLAIN if plain else name:22} {shown}")
        if plain:
            times = [above[column] / medians[column] for column in ("at once", "p50", "p99")]
            said.append(f"{'    exchange / gRPC':22} {'':12} {times[0]:>12.2f} {times[1]:>10.2f} {times[2]:>10.2f}")
        above = medians
    return said


def main() -> int:
    print(f"{versions('exchange-grpc', 'grpcio', 'protobuf')}, {os.cpu_count()} cores;")
    print(f"medians of {ROUNDS} rounds, {SECONDS} s each, by turns; ledgers on, and full")
    for called, figures in asyncio.run(run_all()).items():
        print("\n".join(("", *table(called, figures))))
    return 0


def role() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--role", choices=("source", "hub", "sink"))
    parser.add_argument("--sink", type=json.loads)
    parser.add_argument("--hub", type=json.loads)
    args = parser.parse_args()
    if args.role == "sink":
        asyncio.run(run_sink())
    elif args.role == "hub":
        asyncio.run(run_hub(args.sink, Exchange("hub")))
    elif args.role == "source":
        asyncio.run(run_source(args.sink, args.hub))
    else:
        sys.exit(main())


if __name__ == "__main__":
    role()
