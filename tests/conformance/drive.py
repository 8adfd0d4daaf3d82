"""A process under test, driven over stdin and stdout as README.md says.

Law: a command is answered in any order and by any number of replies; an event stays here until somebody asks for it.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from google.protobuf.internal.decoder import _DecodeVarint32  # type: ignore[attr-defined]  # the only one there is

from exchange.v1.message_pb2 import KIND_CANCEL, KIND_REPLY, KIND_REQUEST, KIND_SEND, Message

from .frames import shown, varint

STOP_SECONDS = 15.0  # from the end of stdin to the end of the process
_LAST_LINES = 20  # of stderr, for people
_LARGEST = 5  # bytes of a length


class Died(Exception):
    """The process is gone."""


class Process:
    """One process under test."""

    def __init__(self, command: Sequence[str], cwd: str, environment: dict[str, str]) -> None:
        self._command = command
        self._cwd = cwd
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._count = 0
        self._answers: dict[str, asyncio.Queue[dict[str, Any]]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stderr: list[str] = []
        self.changed = asyncio.Condition()
        self.events: list[tuple[str, Any]] = []
        self.code: int | None = None  # once it has ended

    async def start(self) -> None:
        """Start it."""
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, cwd=self._cwd, env=self._environment, stdin=pipe, stdout=pipe, stderr=pipe, limit=2**26
        )
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._read_stderr())]

    @property
    def said(self) -> str:
        """The last lines of stderr."""
        return "\n".join(self._stderr[-_LAST_LINES:])

    # -------------------------------------------------------------------------------------------- what it says

    async def _read(self) -> None:
        assert self._process is not None
        stdout = self._process.stdout
        assert stdout is not None
        try:
            while True:
                prefix = await stdout.readexactly(1)
                while prefix[-1] & 128 and len(prefix) < _LARGEST:
                    prefix += await stdout.readexactly(1)
                size, _ = _DecodeVarint32(prefix, 0)
                await self._heard(Message.FromString(await stdout.readexactly(size)))
        except asyncio.IncompleteReadError:
            pass
        except Exception as problem:  # what it writes there is no message: a print that went astray
            self._stderr.append(f"(its stdout cannot be read: {problem!r})")
        async with self.changed:
            self.code = await self._process.wait()
            self.changed.notify_all()
        for answers in self._answers.values():
            answers.put_nowait({})

    async def _heard(self, message: Message) -> None:
        value = json.loads(message.json) if message.json else None
        if message.kind == KIND_REPLY:
            answer: dict[str, Any] = {"last": message.last, "value": value}
            if message.HasField("error"):
                answer["error"] = shown(message.error)
            self._answers.setdefault(message.reply_to, asyncio.Queue()).put_nowait(answer)
            return
        assert message.kind == KIND_SEND, f"a process says replies and events, not {message.kind}"
        async with self.changed:
            self.events.append((message.name, value))
            self.changed.notify_all()

    async def _read_stderr(self) -> None:
        assert self._process is not None
        stderr = self._process.stderr
        assert stderr is not None
        while line := await stderr.readline():
            self._stderr.append(line.decode(errors="replace").rstrip())
            del self._stderr[: -4 * _LAST_LINES]

    # ---------------------------------------------------------------------------------------- what it is told

    async def _write(self, message: Message) -> None:
        if self.code is not None or self._process is None or self._process.stdin is None:
            raise Died(f"the process has ended with {self.code}")
        data = message.SerializeToString()
        try:
            self._process.stdin.write(varint(len(data)) + data)
            await self._process.stdin.drain()
        except OSError:
            raise Died("the process has ended") from None

    async def tell(self, verb: str, arguments: dict[str, Any]) -> str:
        """Tell it to do something; the id of the command."""
        self._count += 1
        id = f"runner.1.{self._count}"
        self._answers[id] = asyncio.Queue()
        await self._write(Message(kind=KIND_REQUEST, id=id, name=verb, json=json.dumps(arguments).encode()))
        return id

    async def cancel(self, id: str) -> None:
        """Withdraw a command."""
        self._count += 1
        await self._write(Message(kind=KIND_CANCEL, id=f"runner.1.{self._count}", name="cancel", reply_to=id))

    async def answer(self, id: str) -> dict[str, Any]:
        """The next answer to a command: `value`, perhaps `error`, and whether it is the `last`."""
        answer = await self._answers[id].get()
        if not answer:
            raise Died(f"the process has ended with {self.code}")
        return answer

    def waiting(self, id: str) -> bool:
        """An answer to a command is here."""
        return not self._answers[id].empty()

    # --------------------------------------------------------------------------------------------- how it ends

    async def stop(self) -> int:
        """End its stdin, and wait for its end; its exit code."""
        process = self._process
        assert process is not None
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await process.wait()
                await asyncio.wait(self._tasks)
        except TimeoutError:
            self.kill()
            await process.wait()
        for task in self._tasks:
            task.cancel()
        return process.returncode if process.returncode is not None else -1

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
