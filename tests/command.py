"""The real `exchange` command for tests, as people run it: processes, a real port, real signals."""

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from exchange_grpc import Exchange

COMMAND = str(Path(sys.executable).with_name("exchange"))
PATIENCE = 30.0


class Done(NamedTuple):
    code: int
    out: str
    err: str


@contextmanager
def serving(*args: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`exchange serve` with `args`: the process, its URL and its ready line. Stopped afterwards."""
    process = subprocess.Popen(
        [COMMAND, "serve", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, **env},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        url = re.search(r"(?:grpc://|unix:|ws://)\S+", ready)
        assert url is not None, process.communicate(timeout=PATIENCE)[1]
        yield process, url[0], ready
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE)


def run(url: str, *args: str, stdin: str | None = None, **env: str) -> Done:
    """`exchange ARGS` with EXCHANGE_URL, to its end. An error is one line, and there is never a traceback."""
    ended = subprocess.run(
        [COMMAND, *args], input=stdin or "", capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "EXCHANGE_URL": url, **env},
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    if ended.returncode and "Usage:" not in ended.stderr and ended.stderr:
        *logged, error = ended.stderr.splitlines()
        assert re.fullmatch(r"error: .+", error), ended.stderr
        assert all(line.startswith("{") for line in logged), ended.stderr  # what `serve` and `handle` log
    return Done(ended.returncode, ended.stdout, ended.stderr)


def run_all(url: str, *commands: tuple[str, ...]) -> list[Done]:
    """Several at once: most of the time of each is Python starting."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda command: run(url, *command), commands))


@contextmanager
def running(url: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """`exchange ARGS` with EXCHANGE_URL, of a command that does not end by itself. Killed afterwards."""
    process = subprocess.Popen(
        [COMMAND, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "EXCHANGE_URL": url},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def on_a_terminal(url: str, *args: str, **env: str) -> str:
    """What `exchange ARGS` writes on a terminal, to its end."""
    main, other = pty.openpty()
    written = b""
    try:
        process = subprocess.Popen([COMMAND, *args], stdout=other, env={**os.environ, "EXCHANGE_URL": url, **env})
        while process.poll() is None or select.select([main], [], [], 0)[0]:
            if select.select([main], [], [], 0.05)[0]:
                written += os.read(main, 65_536)
        assert process.returncode == 0
        return written.decode().replace("\r\n", "\n")
    finally:
        os.close(main)
        os.close(other)


@asynccontextmanager
async def worker(url: str, id: str = "worker") -> AsyncIterator[Exchange]:
    """An exchange of this process behind the hub."""
    async with Exchange(id) as app:

        @app.handle("work.do")
        async def do(msg: Any) -> Any:
            await app.send("work.noted", msg.value)
            return await app.request("compute.sum", {"a": 1, "b": 2})

        @app.on("work.noted")
        async def noted(msg: Any) -> None:
            pass

        @app.handle("work.fail")
        async def broken(msg: Any) -> None:
            raise ValueError("a secret")

        @app.handle("work.bytes")
        async def data(msg: Any) -> bytes:
            return b"\x00\xff\n"

        @app.handle("work.headers")
        async def headers(msg: Any) -> dict[str, str]:
            return dict(msg.headers)

        await app.connect(url)
        yield app
