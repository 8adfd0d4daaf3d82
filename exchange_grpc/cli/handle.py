"""`exchange handle`: a shell command as a handler."""

import asyncio
import json
import os
import secrets
import shutil
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from .. import Code, Message, Refused
from ..limits import MESSAGE_BYTES
from . import child, logs
from .console import UNREACHABLE, USAGE, fail, full_url, linked, log, run, signalled, url_option


@click.command()
@url_option
@click.option("--id", metavar="ID", help="The name of this exchange in the mesh; made up if not given.")
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Kill COMMAND after so long."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    metavar="N",
    help="So many at once, others wait; as many as there are processors if not given.",
)
@logs.options
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARG]...")
def handle(
    name: str,
    command: tuple[str, ...],
    url: str,
    id: str | None,
    timeout: float | None,
    concurrency: int,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Handle NAME by running COMMAND, until SIGTERM or Ctrl-C.

    \b
    exchange handle text.upper -- tr a-z A-Z
    exchange handle disk.free --timeout 5 -- df --output=avail /
    exchange handle order.total -- jq 'map(.price) | add'

    For each message COMMAND is run once, by no shell, with the value as JSON on stdin (bytes as they are). What
    it prints is the answer: JSON if it is JSON, else the text without the newline at its end; nothing at all
    is null, and what is no text stays bytes. An exit code other than 0 is an error, with the reason
    COMMAND_FAILED. Its stderr is shown here, and nobody else sees it.

    It finds the message's name, id and sender in EXCHANGE_NAME, EXCHANGE_MESSAGE_ID and EXCHANGE_FROM. It is
    killed, with its process group, when it takes too long, prints more than 4 MiB, or when nobody waits for
    the answer any more; and what it leaves running in its group ends with it. When this is told to stop it
    lets what runs end first; told so twice it does not.
    """
    if shutil.which(command[0]) is None:
        fail(USAGE, f"there is no command {command[0]!r}")
    logs.set_up(log_level or "info", log_format or "auto")
    run(_handle(url, id or f"handle-{secrets.token_hex(4)}", Handler(name, command, timeout, concurrency)))


async def _handle(url: str, id: str, handler: "Handler") -> None:
    stop = signalled(signal.SIGTERM, signal.SIGINT, again=handler.stop)
    async with linked(url, id, {handler.name: handler}) as (_, peer):
        log.info("%s is ready: it handles %s with %s, linked to %s at %s",
            id, handler.name, handler.command[0], peer.id, full_url(url))  # fmt: skip
        ends = [asyncio.create_task(end) for end in (stop.wait(), peer.wait_closed())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        if not stop.is_set():
            handler.stop()
            fail(UNREACHABLE, f"the link to {peer.id} at {full_url(url)} is over")
        log.info("stopping")


class Handler:
    """The handler of `name`: runs `command` for each message, `concurrency` of them at once."""

    def __init__(self, name: str, command: Sequence[str], timeout: float | None, concurrency: int) -> None:
        self.name = name
        self.command = command
        self.__qualname__ = os.path.basename(command[0])  # what traces call it
        self._timeout = timeout
        self._turns = asyncio.Semaphore(concurrency)
        self._running: set[asyncio.Task[Any]] = set()

    async def __call__(self, msg: Message) -> Any:
        """What the command prints. Raises Refused."""
        given = msg.payload if isinstance(msg.value, bytes) else msg.payload + b"\n"
        names = {"EXCHANGE_NAME": msg.name, "EXCHANGE_MESSAGE_ID": msg.id, "EXCHANGE_FROM": msg.from_}
        async with self._turns:
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            try:
                async with asyncio.timeout(self._timeout):
                    ran = await child.run(self.command, given, env={**os.environ, **names}, most=MESSAGE_BYTES)
            except TimeoutError:
                self._refuse(msg, Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", f"took longer than {self._timeout:g} s")
            except child.TooMuch:
                self._refuse(msg, Code.RESOURCE_EXHAUSTED, "ANSWER", f"printed more than {MESSAGE_BYTES} bytes")
            except OSError as error:
                log.error("%s cannot be run: %s", self.command[0], error)
                self._refuse(msg, Code.INTERNAL, "COMMAND_FAILED", "cannot be run")
            finally:
                self._running.discard(task)
        if ran.code:
            how = f"exited with {ran.code}" if ran.code > 0 else f"was ended by signal {-ran.code}"
            self._refuse(msg, Code.INTERNAL, "COMMAND_FAILED", how)
        return answer_of(ran.out)

    def stop(self) -> None:
        """Kill what runs: nobody waits for an answer any more."""
        for task in self._running:
            task.cancel()

    def _refuse(self, msg: Message, code: Code, reason: str, how: str) -> NoReturn:
        log.warning("%s %s, for %s %s", self.command[0], how, msg.name, msg.id)
        raise Refused(f"{self.command[0]} {how}", code=code, reason=reason)


def answer_of(out: bytes) -> Any:
    """The value that a command says by what it prints."""
    if not out:
        return None
    try:
        text = out.decode()
    except UnicodeDecodeError:
        return out
    try:
        return json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return text.removesuffix("\n")


def _no_json(constant: str) -> NoReturn:
    raise ValueError(f"JSON has no {constant}")
