"""One run of a shell command as a child process: bytes in, bytes out, bounded, and nothing left of it.

Law: no shell and no fork of ours; it gets a process group of its own, which is killed when we are done
with it, whatever the reason.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

LINGER_SECONDS = 1.0  # for what it started, once it has ended itself: to write what it has to write


class Ran(NamedTuple):
    """How it ended: the exit code (a signal's number, negative, if that ended it), and what it printed."""

    code: int
    out: bytes


class TooMuch(Exception):
    """It printed more than was allowed, and was killed."""


async def run(command: Sequence[str], given: bytes, *, env: Mapping[str, str], most: int) -> Ran:
    """Run `command` with `given` on stdin; its stderr is ours.

    Raises TooMuch if it prints more than `most` bytes, OSError if it cannot be started. Cancelling this
    kills it and its process group.
    """
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(
        loop.subprocess_exec(lambda: _Child(most), *command, stderr=None, env=env, start_new_session=True)
    )
    try:
        transport, child = await asyncio.shield(starting)
    except asyncio.CancelledError:  # asyncio would kill it alone, and not what it may have started by now
        with suppress(OSError):
            await _end(*await starting)
        raise
    try:
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.write(given)  # it need not read it
        stdin.close()
        await asyncio.wait({child.ended, child.too_much}, return_when=asyncio.FIRST_COMPLETED)
        if child.ended.done():
            await asyncio.wait(
                {child.said_all, child.too_much}, timeout=LINGER_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
        if child.too_much.done():
            raise TooMuch
        code = transport.get_returncode()
        return Ran(0 if code is None else code, bytes(child.out))
    finally:
        await _end(transport, child)


async def _end(transport: asyncio.SubprocessTransport, child: "_Child") -> None:
    """Kill it and its process group."""
    with suppress(ProcessLookupError, PermissionError):  # nobody of the group is left
        os.killpg(transport.get_pid(), signal.SIGKILL)
    try:
        await asyncio.wait({child.ended}, timeout=LINGER_SECONDS)
    finally:
        transport.close()


class _Child(asyncio.SubprocessProtocol):
    def __init__(self, most: int) -> None:
        loop = asyncio.get_running_loop()
        self.out = bytearray()
        self.ended: asyncio.Future[None] = loop.create_future()
        self.said_all: asyncio.Future[None] = loop.create_future()
        self.too_much: asyncio.Future[None] = loop.create_future()
        self._most = most

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """See asyncio."""
        if len(self.out) + len(data) <= self._most:
            self.out += data
        elif not self.too_much.done():
            self.too_much.set_result(None)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """See asyncio."""
        if fd == 1 and not self.said_all.done():
            self.said_all.set_result(None)

    def process_exited(self) -> None:
        """See asyncio."""
        if not self.ended.done():
            self.ended.set_result(None)
