"""What the commands share: errors and their exit codes, values in and out, and the link.

Law: results go to stdout, each as one line of JSON; everything else to stderr; an expected error is
one line there, never a traceback.
"""

import asyncio
import json
import logging
import os
import secrets
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn, TypeVar

import click
import grpc
import orjson

from .errors import (
    AddressError,
    DeadlineExceeded,
    ExchangeError,
    InvalidMessage,
    LinkError,
    Refused,
    RequestError,
    Unavailable,
    Unhandled,
)
from .exchange import Exchange, Peer
from .transports.grpc import target_of
from .tree import plain

DEFAULT = "127.0.0.1:50051"
CLIENT = "cli-"  # the ids of commands begin with this

FAILED, USAGE, UNREACHABLE, UNHANDLED, DEADLINE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130
EXIT_CODES = """\b
Exit codes:
  0    it was done
  1    the handler failed, or something else went wrong
  2    the command line is wrong: an option, a name, a value that is no JSON
  3    unreachable: nobody at that URL, or the way to the handler was lost
  4    nobody handles the name, or nobody has the id in --to
  5    no answer in time
  6    refused: a rule, a bound, or the handler said no
  130  stopped with Ctrl-C
"""
_BY_ERROR: tuple[tuple[type[ExchangeError], int], ...] = (
    (InvalidMessage, USAGE),
    (LinkError, UNREACHABLE),
    (AddressError, UNREACHABLE),
    (Unavailable, UNREACHABLE),
    (Unhandled, UNHANDLED),
    (DeadlineExceeded, DEADLINE),
    (Refused, REFUSED),
)

T = TypeVar("T")
log = logging.getLogger("exchange_grpc")


class Failed(click.ClickException):
    """What ends a command: one line on stderr and an exit code."""

    def __init__(self, code: int, text: str, at: str = "") -> None:
        # That it was we who concluded it says nothing: our id is made up.
        where = f" (at {plain(at)})" if at and at not in text and not at.startswith(CLIENT) else ""
        super().__init__(plain(text) + where)
        self.exit_code = code  # type: ignore[misc]  # click means one code for each class

    def show(self, file: Any = None) -> None:
        """See click."""
        click.echo(f"error: {self.message}", err=True)


def fail(code: int, text: str, at: str = "") -> NoReturn:
    """End the command."""
    raise Failed(code, text, at) from None


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` on a loop of its own; what it raises on purpose becomes a `Failed`."""
    if log.level == logging.NOTSET:  # a client: what it would log is what it says
        log.setLevel(logging.ERROR)
    try:
        return asyncio.run(work)
    except ExchangeError as error:
        code = next((code for kind, code in _BY_ERROR if isinstance(error, kind)), FAILED)
        fail(code, str(error), error.at if isinstance(error, RequestError) else "")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


# ---------------------------------------------------------------------------------------------------- links


def full_url(address: str) -> str:
    """`address` as a URL: HOST:PORT alone means gRPC."""
    return address if "://" in address or address.startswith("unix:") else f"grpc://{address}"


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[tuple[Exchange, Peer]]:
    """An exchange of our own, and the peer at `url`. Raises AddressError, LinkError."""
    url = full_url(url)
    async with Exchange(f"{CLIENT}{secrets.token_hex(4)}", relay=False) as app:
        try:
            peer = await app.connect(url)
        except LinkError as error:
            raise LinkError(f"{error} (is `exchange serve` running there?)") from None
        yield app, peer


@contextmanager
def doors(url: str) -> Iterator[grpc.Channel]:
    """A channel to the gRPC services at `url`. It blocks, and waits for no connection."""
    # What is observed may be as large as a message gets, and a little more.
    options = (("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0))
    with grpc.insecure_channel(target_of(full_url(url)), options=options) as channel:
        yield channel


# --------------------------------------------------------------------------------------------------- values


def read_value(text: str | None) -> Any:
    """What VALUE stands for: JSON, `-` for JSON on stdin, None if there is none."""
    if text is None:
        return None
    source, hint = ("stdin", "") if text == "-" else ("VALUE", """; quote it from the shell: '{"a": 5}', '"text"'""")
    try:
        return json.loads(sys.stdin.buffer.read() if text == "-" else text)
    except (ValueError, RecursionError) as error:
        fail(USAGE, f"{source} is no JSON: {error}{hint}")


def read_headers(pairs: Iterable[str]) -> dict[str, str]:
    """What the options `--header KEY=VALUE` say."""
    headers: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            fail(USAGE, f"--header takes KEY=VALUE, not {pair!r}")
        headers[key] = value
    return headers


def emit(*values: Any) -> None:
    """Each value to stdout, as one line of JSON; bytes as they are."""
    for value in values:
        _write(value if isinstance(value, bytes) else orjson.dumps(value) + b"\n")


def _write(data: bytes) -> None:
    # Without a buffer: a line is out when it is printed, and nothing is left that an interpreter would
    # have to flush at its end into a pipe that nobody reads any more.
    view = memoryview(data)
    try:
        sys.stdout.flush()
        while view:
            view = view[os.write(sys.stdout.fileno(), view) :]
    except BrokenPipeError:  # `| head` has what it wanted
        sys.exit(0)
