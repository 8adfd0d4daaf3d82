"""The processes of a benchmark: started by exec, spoken to in lines of JSON, gone when whoever started them is."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def child(module: str, *args: str) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
    """`python -m MODULE ARGS`, as a `program`."""
    return program(sys.executable, "-m", module, *args)


@asynccontextmanager
async def program(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process on a pipe; it ends when its input does, so it never outlives us."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=ROOT)
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


async def asked(process: asyncio.subprocess.Process, *question: Any) -> Any:
    """What a child says to a line of JSON."""
    assert process.stdin is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    return await said(process)


def say(word: Any) -> None:
    """A line of ours, for `said`."""
    print(json.dumps(word), flush=True)


async def needed() -> None:
    """Until whoever started us needs us no more."""
    await asyncio.to_thread(sys.stdin.read)
