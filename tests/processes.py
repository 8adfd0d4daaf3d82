"""Other processes for tests: started by exec, talked to in lines of JSON, killed, stopped, started again.

In the test, with a module of this directory or with a program as text:

    async with child("roles", "hub", port=port) as hub:
        await app.connect(hub.ready["url"])
        assert await hub.ask("peers") == ["app"]
        await hub.kill()  # -9
        await hub.restart()

In the child, which ends when it is told no more or its parent has died:

    async def hub(port):
        async with Exchange("hub") as app:
            url = await app.listen(f"grpc://127.0.0.1:{port}")
            await obey({"url": url}, peers=lambda: [peer.id for peer in app.peers])

    if __name__ == "__main__":
        play(hub)
"""

import asyncio
import ctypes
import inspect
import itertools
import json
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
PATIENCE = 30.0  # seconds, for a process to begin or to answer
LINE_BYTES = 64 * 2**20  # of one answer
_PR_SET_PDEATHSIG = 1

Role = Callable[..., Coroutine[Any, Any, None]]


class Child:
    """One process, and those that take its place when it is restarted. Made by `child`."""

    def __init__(self, command: tuple[str, ...]) -> None:
        self.ready: Any = None  # what it said first
        self._command = command
        self._process: Process | None = None
        self._asking = asyncio.Lock()
        self._numbers = itertools.count()

    @property
    def pid(self) -> int:
        """Of the process that runs."""
        return self._running.pid

    @property
    def _running(self) -> Process:
        assert self._process is not None, "it was not started, or was killed"
        return self._process

    async def start(self) -> None:
        """Start it; returns when it says that it is ready."""
        assert self._process is None, "it runs already"
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=PIPE, stdout=PIPE, limit=LINE_BYTES, env=_environment()
        )
        async with asyncio.timeout(PATIENCE):
            self.ready = await self._said()

    async def ask(self, command: str, *, patience: float = PATIENCE, **arguments: Any) -> Any:
        """What the command of the child returns. Raises AssertionError with what it raised."""
        async with asyncio.timeout(patience), self._asking:
            stdin = self._running.stdin
            assert stdin is not None
            number = next(self._numbers)
            stdin.write(json.dumps([number, command, arguments]).encode() + b"\n")
            with suppress(ConnectionError):  # it has ended: what it says then is how
                await stdin.drain()
            while (answer := await self._said())["to"] != number:
                pass  # of one that is waited for no more
            assert "error" not in answer, f"{command}: {answer['error']}"
            return answer["result"]

    def pause(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        self._running.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        self._running.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """SIGKILL, be it paused or ended already; returns when it is gone."""
        process, self._process = self._running, None
        if process.returncode is None:
            process.kill()
        async with self._asking:  # who asks reads as well
            await process.communicate()  # to the end: what is unread keeps its pipes open

    async def restart(self) -> None:
        """Start it with the arguments that it had, once it was killed."""
        await self.start()

    async def end(self) -> None:
        """Kill it, if there is anything to kill."""
        if self._process is not None:
            await self.kill()

    async def _said(self) -> Any:
        process = self._running
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise AssertionError(f"the process ended with {await process.wait()}; stderr says why")
        return json.loads(line)


@asynccontextmanager
async def child(program: str, role: str = "", **arguments: Any) -> AsyncIterator[Child]:
    """A process that runs a module of this directory, or a program as text. Whatever happens, it is gone then.

    `role` and `arguments` are for `play`. It may be started again with the same ones.
    """
    what = ("-c", program) if "\n" in program else (str(TESTS / f"{program}.py"),)
    started = Child((sys.executable, *what, role, json.dumps(arguments)))
    try:
        await started.start()
        yield started
    finally:
        await started.end()


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return {"GRPC_VERBOSITY": "ERROR", **os.environ, "PYTHONPATH": path}  # gRPC tells of each link that breaks


# -------------------------------------------------------------------------------------------------- in the child


def play(*roles: Role) -> None:
    """Run the one of these functions that the parent named, with the arguments that it gave."""
    if sys.platform == "linux":  # a parent that was killed cleans up nothing
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    logging.basicConfig(level=logging.ERROR)
    role = next(role for role in roles if role.__name__ == sys.argv[1])
    asyncio.run(role(**json.loads(sys.argv[2])))


async def obey(ready: Any, **commands: Callable[..., Any]) -> None:
    """Say that all is `ready`, then do as one is told, one command after another, until there are no more."""
    reader = asyncio.StreamReader(LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    _say(ready)
    while line := await reader.readline():
        number, command, arguments = json.loads(line)
        try:
            result = commands[command](**arguments)
            if inspect.isawaitable(result):
                result = await result
            _say({"to": number, "result": result})
        except Exception as error:
            _say({"to": number, "error": f"{type(error).__name__}: {error}"})


def _say(what: Any) -> None:
    print(json.dumps(what), flush=True)
