"""Each client beside the NATS client of its language: messages one way, requests at once, round trips.

    source -> sink          source -> hub -> sink          source -> nats-server -> sink

Source and sink are one program of the language, which speaks both: `PROGRAM exchange|nats source|sink URL`. What
they say is in `program.py`, which is the Python one. All lines take turns, in changing order; ratios are those of the
pairs. The hub is `exchange serve`, in Python; the straight line shows what the clients do by themselves.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import versions
from benchmarks.nats import NATS, nats_server, spread, version_of
from benchmarks.processes import ROOT, child, program, said

HERE = Path(__file__).parent
ROUNDS = 5
SECONDS = 0.4  # of each measurement
STRAIGHT, HUB = "straight", "hub"
LINES = (STRAIGHT, HUB, NATS)
LOADS = {"one way": "messages/s one way", "at once": "requests/s, 64 at once", "p50": "round trip, p50 us"}
PATIENCE = 120.0  # seconds, for anything

Figures = dict[tuple[str, str], list[float]]  # (line, load) -> one for each round


class Failed(Exception):
    """A program said that something went wrong."""


@dataclass(frozen=True)
class Language:
    """One language: what its program needs, how that is built and started, and by which transport it dials."""

    name: str
    tool: str
    build: tuple[tuple[str, ...], ...]
    command: tuple[str, ...]
    transport: str = "grpc"


GO, RUST, NODE = HERE / "go", HERE / "rust", HERE / "typescript"
BUILT = ROOT / ".build" / "languages"
LANGUAGES = (
    Language("Go", "go", (("go", "-C", str(GO), "build", "-o", str(BUILT / "go"), "."),), (str(BUILT / "go"),)),
    Language(
        "Rust",
        "cargo",
        (("cargo", "build", "--quiet", "--release", "--manifest-path", str(RUST / "Cargo.toml"),
          "--target-dir", str(BUILT / "rust")),),
        (str(BUILT / "rust" / "release" / "languages"),),
    ),
    Language(
        "TypeScript (Node)",
        "npm",
        (
            ("npm", "--prefix", str(ROOT / "clients" / "typescript"), "run", "--silent", "build"),
            ("npm", "--prefix", str(NODE), "install", "--silent"),
        ),
        ("node", str(NODE / "program.js")),
        transport="websocket",
    ),
    Language("Python", sys.executable, (), (sys.executable, "-m", "benchmarks.languages.program")),
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- processes


@asynccontextmanager
async def hub() -> AsyncIterator[dict[str, str]]:
    """`exchange serve`: where it is, by transport."""
    serve = Path(sys.executable).with_name("exchange")
    process = await asyncio.create_subprocess_exec(
        str(serve), "serve", "--id", "hub", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-level", "warning",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    ready = (await process.stdout.readline()).decode()
    words = [word.strip(",;()") for word in ready.split()]
    try:
        yield {
            "grpc": next(word for word in words if word.startswith("grpc://")),
            "websocket": next(word for word in words if word.startswith("ws://")),
        }
    finally:
        process.terminate()
        await process.wait()


async def asked(source: asyncio.subprocess.Process, load: str) -> float:
    """What a source measures."""
    assert source.stdin is not None
    source.stdin.write(json.dumps({"load": load, "seconds": SECONDS}).encode() + b"\n")
    async with asyncio.timeout(PATIENCE):
        answer: Any = await said(source)
    if "error" in answer:
        raise Failed(answer["error"])
    return float(answer["figure"])


async def measure(language: Language, hubs: dict[str, str], server: str) -> Figures:
    """All loads on all lines of one language, by turns."""
    listens = "grpc://127.0.0.1:0" if language.transport == "grpc" else "ws://127.0.0.1:0"
    through = hubs[language.transport]
    found: Figures = {}
    async with AsyncExitStack() as stack:

        async def start(*args: str) -> tuple[asyncio.subprocess.Process, Any]:
            process = await stack.enter_async_context(program(*language.command, *args))
            async with asyncio.timeout(PATIENCE):
                return process, await said(process)

        _, url = await start("exchange", "sink", listens)
        await start("exchange", "sink", through)
        await start("nats", "sink", server)
        sources = {
            STRAIGHT: (await start("exchange", "source", url))[0],
            HUB: (await start("exchange", "source", through))[0],
            NATS: (await start("nats", "source", server))[0],
        }
        for line in LINES:
            await asked(sources[line], "at once")  # which does not count: some compile as they run
        for turn in range(ROUNDS):
            for load in LOADS:
                for line in reversed(LINES) if turn % 2 else LINES:
                    found.setdefault((line, load), []).append(await asked(sources[line], load))
    return found


# --------------------------------------------------------------------------------------------------- the report


def table(name: str, figures: Figures) -> list[str]:
    """The figures of one language."""
    said = [f"{name:26} {'Exchange':>26} {'NATS':>26} {'Exchange / NATS':>22}"]
    for load, title in LOADS.items():
        theirs = figures[NATS, load]
        for line in (STRAIGHT, HUB):
            mine = figures[line, load]
            ratio = [one / other for one, other in zip(mine, theirs, strict=True)]
            row = f"{title + ', ' + line:34}"
            said.append(f"{row:34} {spread(mine, ',.0f'):>26} {spread(theirs, ',.0f'):>26} {spread(ratio, '.2f'):>20}")
    return said


async def run(languages: list[Language], server: str) -> None:
    async with hub() as hubs, child("benchmarks.nats", "--server", server) as process:
        url = await said(process)
        for language in languages:
            print("\n".join(("", *table(language.name, await measure(language, hubs, url)))), flush=True)


def main() -> int:
    server = nats_server()
    missing = [] if server else ["nats-server (`make bench` builds it, by Go)"]
    languages = []
    for language in LANGUAGES:
        if subprocess.run([ROOT / "scripts" / "has", language.tool]).returncode:
            missing.append(f"{language.tool} that is new enough, for {language.name}")
            continue
        for command in language.build:
            subprocess.run(command, check=True)
        languages.append(language)
    for what in missing:
        print(f"There is no {what}: left out", file=sys.stderr)
    if missing and os.environ.get("EXCHANGE_REQUIRE_ALL") == "1":
        return 1
    if server is None:
        return 0
    print(f"{versions('exchange-grpc', 'grpcio', 'nats-py')}, {version_of(server)}, {os.cpu_count()} cores;")
    print(f"100 bytes of JSON; medians of {ROUNDS} rounds, {SECONDS} s each, by turns, and (least..most)")
    try:
        asyncio.run(run(languages, server))
    except Failed as failed:
        print(f"failed: {failed}", file=sys.stderr)
        return 1
    return 0
