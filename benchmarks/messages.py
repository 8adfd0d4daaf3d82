"""Messages and requests: within a process, over gRPC and over WebSocket, straight and through a hub; beside plain
`grpc.aio`.

    source (this measures) -> sink          source -> hub -> sink

Over gRPC and WebSocket each is a process of its own, on loopback; locally they share one. The other side is what gRPC
itself costs: unary calls that carry the same payload as bytes, to an echo beside the sink and to a proxy beside the
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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle
from typing import Any, NamedTuple

import grpc

from benchmarks.loads import (
    AT_ONCE,
    LAST_SECONDS,
    SECONDS,
    Ask,
    Sender,
    Sink,
    at_once,
    one_by_one,
    one_way,
    p50_and_p99,
    payloads,
)
from benchmarks.measure import versions
from benchmarks.processes import child, needed, said, say
from exchange_grpc import Exchange
from exchange_grpc.limits import LEDGER_MESSAGES
from exchange_grpc.payload import encode_json

ROUNDS = 5
LOCAL_LINES = ("local, straight", "local, hub")
LINES = {"exchange": ("gRPC, straight", "gRPC, hub"), "websocket": ("WebSocket, straight", "WebSocket, hub")}
PLAIN = "  grpc.aio"  # below the line that it is compared with
ECHO = "/benchmark.Echo/Echo"

Figures = dict[str, dict[str, list[float]]]  # line -> column -> one for each round


class Line(NamedTuple):
    """One way to the sink: how to ask over it, and how to send (not over plain gRPC)."""

    ask: Ask
    sender: Sender | None = None


# ------------------------------------------------------------------------------------------------- measuring


async def measure(line: Line, values: Iterator[Any], raw: Iterator[bytes]) -> dict[str, float]:
    """One round of one line, by column."""
    found = {}
    gc.collect()  # nobody pays for the garbage of another; the collector stays on
    if line.sender is not None:
        sent, seconds = await one_way(line.sender, values)
        found["one way"] = sent / seconds
    carried = raw if line.sender is None else values
    answered, seconds = await at_once(line.ask, carried)
    found["at once"] = answered / seconds
    found["p50"], found["p99"] = p50_and_p99(await one_by_one(line.ask, carried))
    return found


# ----------------------------------------------------------------------------------------------- the processes


def sink_exchange() -> Exchange:
    """Takes what is sent and counts it; answers what is asked."""
    exchange, sink = Exchange("sink"), Sink()
    exchange.handle("bench.take")(sink.take)

    @exchange.handle("bench.begin")
    async def begin() -> None:
        sink.begin()

    @exchange.handle("bench.end")
    async def end(msg: Any) -> tuple[int, float]:
        return await sink.end(msg.value)

    @exchange.handle("bench.echo")
    async def echo(msg: Any) -> Any:
        return msg.value

    return exchange


async def serve(exchange: Exchange, answer: Callable[[bytes, Any], Awaitable[bytes]]) -> None:
    """An exchange, and beside it a plain gRPC server: say where they are, and serve until nobody needs us."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    _, service, method = ECHO.split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    url, websocket = [await exchange.listen(f"{scheme}://127.0.0.1:0") for scheme in ("grpc", "ws")]
    say({"exchange": url, "websocket": websocket, "grpc": f"127.0.0.1:{port}"})
    await needed()
    await server.stop(None)


async def run_sink() -> None:
    async def echo(data: bytes, context: Any) -> bytes:
        return data

    async with sink_exchange() as sink:
        await serve(sink, echo)


async def run_hub(sink: dict[str, str], hub: Exchange, by: str = "exchange") -> None:
    """`hub` between whoever links to it and the sink, and a proxy before the echo."""
    async with hub, grpc.aio.insecure_channel(sink["grpc"]) as channel:
        call = channel.unary_unary(ECHO)

        async def forward(data: bytes, context: Any) -> bytes:
            return await call(data)

        await hub.connect(sink[by])
        await serve(hub, forward)


def sender_of(source: Exchange) -> Sender:
    return Sender(
        lambda value: source.send("bench.take", value),
        lambda: source.request("bench.begin"),
        lambda sent: source.request("bench.end", sent, timeout=2 * LAST_SECONDS),
    )


@asynccontextmanager
async def source_of(to: str | Exchange) -> AsyncIterator[Exchange]:
    """An exchange that is linked, and knows the way to the sink, whose ledger and those on the way are full."""
    async with Exchange() as source:
        await source.connect(to)
        sender = sender_of(source)
        await sender.begin()
        for _ in range(LEDGER_MESSAGES):
            await sender.send(None)
        await sender.end(LEDGER_MESSAGES)
        yield source


@asynccontextmanager
async def line_to(to: str | Exchange) -> AsyncIterator[Line]:
    async with source_of(to) as source:
        yield Line(lambda value: source.request("bench.echo", value), sender_of(source))


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


async def run_source(sink: dict[str, str], hubs: dict[str, dict[str, str]]) -> None:
    """Measure all lines and say what was found: those of one process first, which are gone then."""
    async with sink_exchange() as one, sink_exchange() as other, Exchange("hub") as between:
        await between.connect(other)
        async with line_to(one) as straight, line_to(between) as through:
            found = await rounds(dict(zip(LOCAL_LINES, (straight, through), strict=True)))
    async with AsyncExitStack() as stack:
        lines = {}
        for by, names in LINES.items():
            for name, at in zip(names, (sink, hubs[by]), strict=True):
                lines[name] = await stack.enter_async_context(line_to(at[by]))
                if by == "exchange":
                    lines[name + PLAIN] = Line(grpc.aio.insecure_channel(at["grpc"]).unary_unary(ECHO))
        for called, figures in (await rounds(lines)).items():
            found[called] |= figures
    say(found)


async def run_all() -> dict[str, Figures]:
    """Start the processes; what the source found."""
    module = "benchmarks.messages"
    async with AsyncExitStack() as stack:
        sink = await stack.enter_async_context(child(module, "--role", "sink"))
        sink_at = json.dumps(await said(sink))
        hubs = {}
        for by in LINES:
            hub = await stack.enter_async_context(child(module, "--role", "hub", "--sink", sink_at, "--by", by))
            hubs[by] = await said(hub)
        role = ("--role", "source", "--sink", sink_at, "--hubs", json.dumps(hubs))
        return await said(await stack.enter_async_context(child(module, *role)))


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
    parser.add_argument("--by", choices=LINES, default="exchange")
    parser.add_argument("--hubs", type=json.loads)
    args = parser.parse_args()
    if args.role == "sink":
        asyncio.run(run_sink())
    elif args.role == "hub":
        asyncio.run(run_hub(args.sink, Exchange(f"hub-{args.by}"), args.by))
    elif args.role == "source":
        asyncio.run(run_source(args.sink, args.hubs))
    else:
        sys.exit(main())


if __name__ == "__main__":
    role()
