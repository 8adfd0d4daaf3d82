"""What the commands share: errors and their exit codes, values in and out, the link, and common options.

Law: results go to stdout, each as one line of JSON, or as a table if that is a terminal; everything
else to stderr; an expected error is one line there, never a traceback.
"""

import asyncio
import json
import logging
import os
import secrets
import signal
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn, TypeVar

import click
import grpc
import orjson

from .. import (
    AddressError,
    DeadlineExceeded,
    Exchange,
    ExchangeError,
    InvalidMessage,
    LinkError,
    Peer,
    Refused,
    RequestError,
    Unavailable,
    Unhandled,
)
from ..transports.grpc import target_of
from .pretty import plain

DEFAULT = "127.0.0.1:50051"
CLIENT = "cli-"  # the ids of commands begin with this
ASK_SECONDS = 10.0  # for what an exchange says about itself, and about others that it asks in turn

FAILED, USAGE, UNREACHABLE, UNHANDLED, DEADLINE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 5, 6, 130
EXIT_CODES = """\b
Exit codes:
  0    it was done
  1    a handler failed, or something else went wrong
  2    the command line is wrong: an option, a name, a URL, a value that is no JSON
  3    unreachable: nobody at that URL, or the way to a handler was lost
  4    nobody handles the name, or nobody has that id
  5    no answer in time
  6    refused: a rule, a bound, or the handler said no
  130  stopped with Ctrl-C, before it was done
"""
_BY_ERROR: tuple[tuple[type[ExchangeError], int], ...] = (
    (InvalidMessage, USAGE),
    (LinkError, UNREACHABLE),
    (AddressError, USAGE),
    (Unavailable, UNREACHABLE),
    (Unhandled, UNHANDLED),
    (DeadlineExceeded, DEADLINE),
    (Refused, REFUSED),
)

C = TypeVar("C", bound=Callable[..., Any])
T = TypeVar("T")
Headers = tuple[str, ...]
log = logging.getLogger("exchange_grpc")

url_option = click.option(
    "--url",
    envvar="EXCHANGE_URL",
    default=f"grpc://{DEFAULT}",
    show_default=True,
    show_envvar=True,
    help="The exchange to link to: grpc://HOST:PORT, ws://HOST:PORT or unix:PATH.",
)
header_option = click.option(
    "--header", "headers", multiple=True, metavar="KEY=VALUE", help="Travels with it; repeatable."
)
to_option = click.option("--to", default="", metavar="ID", help="The exchange with this id, and no other.")
of_option = click.option("--of", default="", metavar="ID", help="Of this exchange, in place of the one at --url.")
timeout_option = click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="30 if not given."
)
max_option = click.option("--max", "most", type=click.IntRange(1), metavar="N", help="End after so many lines.")


def message_arguments(command: C) -> C:
    """The arguments of a command that emits a message."""
    return click.argument("name")(click.argument("value", required=False)(url_option(header_option(command))))


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


@contextmanager
def told() -> Iterator[None]:
    """What is raised on purpose becomes a `Failed`."""
    try:
        yield
    except ExchangeError as error:
        code = next((code for kind, code in _BY_ERROR if isinstance(error, kind)), FAILED)
        if isinstance(error, Refused) and error.reason == "NOT_FOUND":
            code = UNHANDLED
        text = str(error)
        if isinstance(error, Unavailable):
            text += "; no handler has seen it" if error.delivered is False else "; it may have been handled"
        fail(code, text, error.at if isinstance(error, RequestError) else "")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` on a loop of its own; what it raises on purpose becomes a `Failed`."""
    if log.level == logging.NOTSET:  # a client: what it would log is what it says
        log.setLevel(logging.ERROR)
    try:
        with told():
            return asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def end_when_told() -> None:
    """SIGTERM and Ctrl-C end this command well: it goes on until then.

    At once, even while a pipe that nobody reads holds it up.
    """

    def leave(number: int, frame: object) -> NoReturn:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)


def signalled(*numbers: signal.Signals, again: Callable[[], None] | None = None) -> asyncio.Event:
    """An event that the first of these signals sets. A second one calls `again`, if that is given; after that
    they have their usual effect: they end us."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        if event.is_set() and again is not None:
            again()
        if event.is_set() or again is None:
            for number in numbers:
                loop.remove_signal_handler(number)
        event.set()

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return event


# ---------------------------------------------------------------------------------------------------- links


def full_url(address: str) -> str:
    """`address` as a URL: HOST:PORT alone means gRPC."""
    return address if "://" in address or address.startswith("unix:") else f"grpc://{address}"


def is_web(url: str) -> bool:
    """It leads to a WebSocket, where there are links and nothing else."""
    return url.startswith(("ws:", "wss:"))


@asynccontextmanager
async def linked(
    url: str, id: str | None = None, handlers: Mapping[str, Callable[..., Any]] | None = None
) -> AsyncIterator[tuple[Exchange, Peer]]:
    """An exchange of our own, and the peer at `url`, which knows what we handle. Raises AddressError, LinkError."""
    async with Exchange(id or f"{CLIENT}{secrets.token_hex(4)}", handlers=handlers, relay=False) as app:
        try:
            peer = await app.connect(full_url(url))
        except LinkError as error:
            hint = "" if "is linked to" in str(error) else " (is `exchange serve` running there?)"
            raise LinkError(f"{error}{hint}") from None
        yield app, peer


async def ask(url: str, name: str, value: Any = None, of: str = "") -> tuple[str, dict[str, Any]]:
    """Our own id, and what the exchange at `url`, or the one with the id `of`, answers to a message of the system."""
    async with linked(url) as (app, peer):
        answer = await peer.request(name, value, to=of or peer.id, timeout=ASK_SECONDS)
        if not isinstance(answer, dict):
            raise ExchangeError(f"{of or peer.id} answers {name} with what is no object")
        return app.id, answer


def rows_of(answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The list that stands under `key` in an answer."""
    found = answer.get(key)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        fail(FAILED, f"the answer has no list of {key}: is the exchange of another version?")
    return found


@contextmanager
def doors(url: str) -> Iterator[grpc.Channel]:
    """A channel to the gRPC services at `url`. It blocks, and waits for no connection. Raises AddressError."""
    if is_web(url):
        raise AddressError(f"this takes the gRPC address of an exchange, grpc://HOST:PORT, not {url!r}")
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


def jsonable(value: Any, content_type: str = "application/octet-stream") -> Any:
    """`value` for a line of JSON: bytes as an object that says what they are."""
    if not isinstance(value, bytes):
        return value
    return {"content_type": content_type, "base64": b64encode(value).decode()}


def on_terminal() -> bool:
    """A person looks at stdout."""
    return sys.stdout.isatty()


def emit(*values: Any) -> None:
    """Each value to stdout, as one line of JSON; bytes as they are."""
    for value in values:
        _write(value if isinstance(value, bytes) else orjson.dumps(value) + b"\n")


def show(lines: Iterable[str]) -> None:
    """Lines for people to stdout; their colours get no further than to a terminal."""
    styled = on_terminal() and click.get_current_context().color is not False
    for line in lines:
        text = line if styled else click.unstyle(line)
        _write(f"{text}\n".encode(sys.stdout.encoding, "backslashreplace"))


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
