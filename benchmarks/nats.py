"""Exchange beside NATS: messages one way and requests at once through a hub, round trips straight and through it.

    source -> hub -> sink          source -> nats-server -> sink          and straight, source -> sink

Each is a process of its own, on loopback. Both sides take turns, measurement by measurement, in changing order;
ratios are those of the pairs. They do the same work: the source makes JSON of a Python value by orjson; the sink
only counts what comes one way, and what is asked it reads, and makes JSON again, which the source reads. What is
one way and does not arrive is an error. NATS drops what a slow receiver leaves lying; here it has room for all.
"""

import argparse
import asyncio
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import nats
import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg

from benchmarks.loads import (
    LAST_SECONDS,
    SECONDS,
    Lost,
    Sender,
    Sink,
    at_once,
    one_by_one,
    one_way,
    p50_and_p99,
    payloads,
)
from benchmarks.measure import versions
from benchmarks.messages import Line, line_to
from benchmarks.processes import ROOT, asked, child, needed, said, say

ROUNDS = 7
STRAIGHT, WEBSOCKET, HUB, NATS = "straight", "straight by WebSocket", "hub", "NATS"
TIMES = ("p50", "p99")
CONFIG = """
listen: "127.0.0.1:-1"
max_pending: 4GB # by default it drops a client for which 64 MB wait
write_deadline: "60s"
"""
LISTENS = b"Listening for client connections on "
TOOLS = (ROOT / ".tools" / "bin", Path(sys.executable).parent)  # asked before PATH: here the versions are pinned

Measured = dict[str, float]
Figures = dict[tuple[str, str], list[float]]  # (line, column) -> one for each round


# ------------------------------------------------------------------------------------------------- measuring


async def messages(line: Line, values: Iterator[Any]) -> Measured:
    assert line.sender is not None
    sent, seconds = await one_way(line.sender, values)
    return {"one way": sent / seconds}


def requests(number: int) -> Callable[[Line, Iterator[Any]], Awaitable[Measured]]:
    async def measure(line: Line, values: Iterator[Any]) -> Measured:
        answered, seconds = await at_once(line.ask, values, number=number)
        return {f"{number} at once": answered / seconds}

    return measure


async def round_trips(line: Line, values: Iterator[Any]) -> Measured:
    return dict(zip(TIMES, p50_and_p99(await one_by_one(line.ask, values)), strict=True))


class Load(NamedTuple):
    """What is measured, and on which lines, one after the other."""

    measure: Callable[[Line, Iterator[Any]], Awaitable[Measured]]
    lines: tuple[str, ...]


LOADS = {
    "one way": Load(messages, (HUB, NATS)),
    "64 at once": Load(requests(64), (HUB, NATS)),
    "256 at once": Load(requests(256), (HUB, NATS)),
    "one by one": Load(round_trips, (STRAIGHT, NATS, WEBSOCKET, HUB)),
}


# ----------------------------------------------------------------------------------------------- the processes


async def obey(lines: dict[str, Line]) -> None:
    """Put on a line the load that is asked for, and say what was measured, until there are no more questions."""
    values = payloads()
    say("ready")
    while question := await asyncio.to_thread(sys.stdin.readline):
        line, load, called = json.loads(question)
        gc.collect()  # nobody pays for the garbage of another; the collector stays on
        try:
            say(await LOADS[load].measure(lines[line], cycle(values[called])))
        except Lost as lost:
            say(f"{line}, {load}, {called}: {lost}")


async def run_exchange(sink: dict[str, str], hub: dict[str, str]) -> None:
    async with (
        line_to(sink["exchange"]) as straight,
        line_to(sink["websocket"]) as websocket,
        line_to(hub["exchange"]) as through,
    ):
        await obey({STRAIGHT: straight, WEBSOCKET: websocket, HUB: through})


@asynccontextmanager
async def client_of(server: str) -> AsyncIterator[Client]:
    client = await nats.connect(server, allow_reconnect=False)
    try:
        yield client
    finally:
        await client.close()


async def run_nats(server: str) -> None:
    async with client_of(server) as client:

        async def request(name: str, value: Any = None) -> Any:
            answer = await client.request(name, orjson.dumps(value), timeout=2 * LAST_SECONDS)
            return orjson.loads(answer.data)

        async def ask(value: Any) -> Any:
            return await request("bench.echo", value)

        sender = Sender(
            lambda value: client.publish("bench.take", orjson.dumps(value)),
            lambda: request("bench.begin"),
            lambda sent: request("bench.end", sent),
        )
        await obey({NATS: Line(ask, sender)})


async def run_sink(server: str) -> None:
    sink = Sink()

    async def begin(msg: Msg) -> None:
        sink.begin()
        await msg.respond(b"null")

    async def end(msg: Msg) -> None:
        await msg.respond(orjson.dumps(await sink.end(orjson.loads(msg.data))))

    async def echo(msg: Msg) -> None:
        await msg.respond(orjson.dumps(orjson.loads(msg.data)))

    async with client_of(server) as client:
        for name, function in {"take": sink.take, "begin": begin, "end": end, "echo": echo}.items():
            await client.subscribe(f"bench.{name}", cb=function, pending_msgs_limit=0, pending_bytes_limit=0)
        await client.flush()
        say("ready")
        await needed()


async def run_server(path: str, config: Path) -> None:
    """nats-server, on a port of its choice."""
    server = await asyncio.create_subprocess_exec(path, "--config", config, stderr=asyncio.subprocess.PIPE)
    assert server.stderr is not None
    try:
        told = b""
        while LISTENS not in told:
            told = await server.stderr.readline()
            if not told:
                raise RuntimeError("nats-server does not start")
        say("nats://" + told.partition(LISTENS)[2].decode().strip())
        rest = asyncio.create_task(server.stderr.read())  # a full pipe would stop it
        await needed()
    finally:
        with suppress(ProcessLookupError):
            server.terminate()
        await server.wait()
    await rest


async def run_all(server: str | None) -> dict[str, Figures]:
    """Start the processes, of both sides or of Exchange alone, and take turns; what was found, by payload."""
    async with AsyncExitStack() as stack:

        async def start(module: str, *args: str) -> tuple[asyncio.subprocess.Process, Any]:
            process = await stack.enter_async_context(child(module, *args))
            return process, await said(process)

        _, sink = await start("benchmarks.messages", "--role", "sink")
        _, hub = await start("benchmarks.messages", "--role", "hub", "--sink", json.dumps(sink))
        source, _ = await start("benchmarks.nats", "--exchange", json.dumps([sink, hub]))
        sources = {STRAIGHT: source, WEBSOCKET: source, HUB: source}
        if server is not None:
            _, url = await start("benchmarks.nats", "--server", server)
            await start("benchmarks.nats", "--sink", url)
            sources[NATS], _ = await start("benchmarks.nats", "--nats", url)
        return {called: await rounds(sources, called) for called in payloads()}


async def rounds(sources: dict[str, asyncio.subprocess.Process], called: str) -> Figures:
    """All loads on all lines, by turns. Raises Lost."""
    found: Figures = {}
    for turn in range(ROUNDS):
        for load, (_, lines) in LOADS.items():
            for line in reversed(lines) if turn % 2 else lines:
                if line not in sources:
                    continue
                measured = await asked(sources[line], line, load, called)
                if isinstance(measured, str):
                    raise Lost(measured)
                for column, figure in measured.items():
                    found.setdefault((line, column), []).append(figure)
    return found


# ------------------------------------------------------------------------------------------------- the report


class Row(NamedTuple):
    """A column of a line, beside the same of NATS, and the goal for the ratio: of times at most, else at least."""

    title: str
    line: str
    column: str
    goal: float | None = None


ROWS = (
    Row("one way, hub, messages/s", HUB, "one way", 1.0),
    Row("64 at once, hub, requests/s", HUB, "64 at once", 2.0),
    Row("256 at once, hub, requests/s", HUB, "256 at once"),
    Row("one by one, straight, p50 us", STRAIGHT, "p50", 1.0),
    Row("one by one, straight, p99 us", STRAIGHT, "p99"),
    Row("one by one, WebSocket, p50 us", WEBSOCKET, "p50", 1.0),
    Row("one by one, WebSocket, p99 us", WEBSOCKET, "p99"),
    Row("one by one, hub, p50 us", HUB, "p50"),
    Row("one by one, hub, p99 us", HUB, "p99"),
)


def ratios(row: Row, figures: Figures) -> list[float]:
    """Exchange to NATS, pair by pair; none without NATS."""
    theirs = figures.get((NATS, row.column), [])
    return [mine / other for mine, other in zip(figures[row.line, row.column], theirs, strict=bool(theirs))]


def spread(figures: list[float], form: str) -> str:
    """The median, and between what it lies."""
    if not figures:
        return ""
    least, most = format(min(figures), form), format(max(figures), form)
    return f"{format(statistics.median(figures), form)} ({least}..{most})"


def table(called: str, figures: Figures) -> list[str]:
    said = [f"{called:30} {'Exchange':>26} {'NATS':>28} {'Exchange / NATS':>24}"]
    for row in ROWS:
        mine, other = figures[row.line, row.column], figures.get((NATS, row.column), [])
        ratio = spread(ratios(row, figures), ".2f")
        said.append(f"{row.title:30} {spread(mine, ',.0f'):>26} {spread(other, ',.0f'):>28} {ratio:>24}".rstrip())
    return said


def goals(called: str, figures: Figures) -> list[str]:
    said = []
    for row in ROWS:
        if row.goal is not None:
            ratio = statistics.median(ratios(row, figures))
            bound, met = ("most", ratio <= row.goal) if row.column in TIMES else ("least", ratio >= row.goal)
            verdict = f"goal at {bound} {row.goal:.1f}: {'met' if met else 'missed'}"
            said.append(f"{called}, {row.title}: {ratio:.2f} of NATS, {verdict}")
    return said


def main() -> int:
    server = nats_server()
    if server is None:
        missing = "nats-server is not in .tools/bin, beside python or on PATH (`make bench` builds it, by Go)"
        if os.environ.get("EXCHANGE_REQUIRE_ALL") == "1":
            print(f"EXCHANGE_REQUIRE_ALL=1, and {missing}", file=sys.stderr)
            return 1
        print(f"{missing}: Exchange alone")
    print(f"{versions('exchange-grpc', 'grpcio', 'protobuf', 'nats-py')}, {version_of(server)},")
    print(f"{os.cpu_count()} cores; medians of {ROUNDS} rounds, {SECONDS} s each, by turns, and (least..most);")
    print("ledgers on, and full")
    try:
        found = asyncio.run(run_all(server))
    except Lost as lost:
        print(f"lost: {lost}", file=sys.stderr)
        return 1
    for called, figures in found.items():
        print("\n".join(("", *table(called, figures))))
    if server is not None:
        print("\n".join(("", *(line for called, figures in found.items() for line in goals(called, figures)))))
    return 0


def nats_server() -> str | None:
    """Where the program is, if it is anywhere."""
    return shutil.which("nats-server", path=os.pathsep.join([*map(str, TOOLS), os.environ.get("PATH", "")]))


def version_of(server: str | None) -> str:
    if server is None:
        return "no nats-server"
    return subprocess.run([server, "--version"], check=True, capture_output=True, text=True).stdout.strip()


def role() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--exchange", type=json.loads, metavar="SINK_AND_HUB")
    parser.add_argument("--server", metavar="PATH")
    parser.add_argument("--sink", metavar="URL")
    parser.add_argument("--nats", metavar="URL")
    args = parser.parse_args()
    if args.exchange is not None:
        asyncio.run(run_exchange(*args.exchange))
    elif args.server is not None:
        with TemporaryDirectory() as place:
            config = Path(place, "config")
            config.write_text(CONFIG, encoding="utf-8")
            asyncio.run(run_server(args.server, config))
    elif args.sink is not None:
        asyncio.run(run_sink(args.sink))
    elif args.nats is not None:
        asyncio.run(run_nats(args.nats))
    else:
        sys.exit(main())


if __name__ == "__main__":
    role()
