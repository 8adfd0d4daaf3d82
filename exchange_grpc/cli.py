"""The command line: `exchange serve`, and a command for each thing that one does with an exchange.

Law: nothing here that a user of the package could not write: it uses `Exchange`, `Peer`, the errors
and the generated stubs. Each client command is an exchange itself, `cli-...`, linked while it runs.
What commands share is in `console.py`.
"""

import asyncio
import itertools
import logging
import os
import signal
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any, NoReturn, TypeVar

# gRPC's own lines on stderr would stand beside ours. It reads this when it is imported: hence before.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import click
import grpc
import orjson

from exchange.v1 import message_pb2, service_pb2, service_pb2_grpc

from . import demo as demos
from . import tree
from .console import (
    CLIENT,
    DEADLINE,
    DEFAULT,
    EXIT_CODES,
    FAILED,
    REFUSED,
    UNHANDLED,
    UNREACHABLE,
    USAGE,
    doors,
    emit,
    fail,
    full_url,
    linked,
    log,
    read_headers,
    read_value,
    run,
)
from .doctor import examine
from .errors import AddressError, DeadlineExceeded, ExchangeError
from .exchange import Exchange
from .message import Message
from .version import VERSION

STOP_SECONDS = 20.0  # an exchange needs at most 10 s for its handlers, and a few for its links
ASK_SECONDS = 2.0  # for each other exchange that may know more of a trace
ASKED = 32  # such exchanges: enough for a mesh, and no way to make us ask a thousand

# What comes back about a send has no code, only a reason.
_BY_REASON = {
    "UNHANDLED": UNHANDLED,
    "LOOP": UNHANDLED,
    "DEADLINE_EXCEEDED": DEADLINE,
    "UNAVAILABLE": UNREACHABLE,
    "INCOMPLETE": UNREACHABLE,
    "HANDLER_FAILED": FAILED,
}

F = TypeVar("F", bound=Callable[..., Any])
Headers = tuple[str, ...]

_url = click.option(
    "--url",
    envvar="EXCHANGE_URL",
    default=f"grpc://{DEFAULT}",
    show_default=True,
    show_envvar=True,
    help="The exchange to link to: grpc://HOST:PORT or unix:PATH.",
)
_header = click.option("--header", "headers", multiple=True, metavar="KEY=VALUE", help="Travels with it; repeatable.")
_to = click.option("--to", default="", metavar="ID", help="The exchange with this id, and no other.")


def _message(command: F) -> F:
    """The arguments of a command that emits a message."""
    return click.argument("name")(click.argument("value", required=False)(_url(_header(command))))


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="exchange")
def main() -> None:
    """Serve an exchange, and talk to one.

    \b
    exchange serve --demo                            in one shell, and in another:
    exchange request compute.sum '{"a":5,"b":3}'     prints 8
    """
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a character gets its number
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")


# ---------------------------------------------------------------------------------------------------- serve


@main.command()
@click.option("--id", help="Its name in the mesh; made up if not given.")
@click.option(
    "--grpc",
    "address",
    default=DEFAULT,
    show_default=True,
    metavar="ADDR",
    help="Where to listen: HOST:PORT (port 0 takes a free one), grpc://HOST:PORT or unix:PATH.",
)
@click.option("--demo", is_flag=True, help="Handle compute.sum, echo, demo.items and demo.wait.")
def serve(id: str | None, address: str, demo: bool) -> None:
    """Run an exchange until SIGTERM or Ctrl-C.

    \b
    exchange serve --id hub --grpc 127.0.0.1:50051 --demo

    Others link to it, and it passes on what they send each other. Reflection and health are on. It
    prints one line when it is ready. When it is told to stop, it lets running handlers end first.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)
    run(_serve(id, full_url(address), demo))


async def _serve(id: str | None, url: str, demo: bool) -> None:
    stop = _signalled(signal.SIGTERM, signal.SIGINT)
    with demos.handlers() if demo else nullcontext(demos.Handlers()) as handlers:
        app = Exchange(id, state=demos.state() if demo else None, handlers=handlers)
        try:
            url = await app.listen(url)
        except AddressError as error:
            fail(FAILED, f"{error} (another --grpc? port 0 takes a free one)")
        names = ", ".join(sorted(handlers)) or "no handlers of its own"
        click.echo(f"{app.id} is ready at {url} (reflection and health on): {names}")
        await stop.wait()
        log.info("stopping")
        try:
            await asyncio.wait_for(app.close(), STOP_SECONDS)
        except TimeoutError:
            log.error("stopped after %g s, with something still running", STOP_SECONDS)


def _signalled(*numbers: signal.Signals) -> asyncio.Event:
    """An event that the first of these signals sets. A second one has its usual effect: it ends us."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def stop() -> None:
        event.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, stop)
    return event


# --------------------------------------------------------------------------------- send, publish and request


@main.command()
@_message
@_to
def send(name: str, value: str | None, url: str, headers: Headers, to: str) -> None:
    """Send a message to one handler of NAME, and print its id.

    \b
    exchange send order.placed '{"number": 7}' --header tenant=blue
    exchange send photo.taken - < photo.json

    VALUE is JSON; - reads it from stdin; without one it is null. A negative number stands after --.
    No answer is waited for, but you are told if nobody takes it.
    """
    id, verdicts = run(_send(url, name, read_value(value), to, read_headers(headers)))
    emit(id)  # in any case: `exchange trace` knows it now
    for verdict in verdicts:
        if verdict["id"] == id:
            fail(_BY_REASON.get(verdict["reason"], REFUSED), verdict["text"], verdict["at"])


async def _send(url: str, name: str, value: Any, to: str, headers: dict[str, str]) -> tuple[str, list[dict[str, str]]]:
    verdicts: list[dict[str, str]] = []

    async def hear(msg: Message) -> None:
        verdicts.append(msg.value)

    async with linked(url) as (app, peer):
        app.on("message.unhandled", hear)
        id = await peer.send(name, value, to=to, headers=headers)
        # What the peer says at once of the message comes before its answer to this.
        await peer.request("exchange.peers", to=peer.id)
    return id, verdicts


@main.command()
@_message
def publish(name: str, value: str | None, url: str, headers: Headers) -> None:
    """Send a message to all who subscribe to NAME, and print its id.

    \b
    exchange publish price.changed '{"item": 7, "price": 24.5}'

    VALUE is JSON; - reads it from stdin; without one it is null.
    """
    emit(run(_publish(url, name, read_value(value), read_headers(headers))))


async def _publish(url: str, name: str, value: Any, headers: dict[str, str]) -> str:
    async with linked(url) as (app, _):
        return await app.publish(name, value, headers=headers)


@main.command()
@_message
@_to
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="30 if not given.")
def request(name: str, value: str | None, url: str, headers: Headers, to: str, timeout: float | None) -> None:
    """Ask NAME, and print the answer.

    \b
    exchange request compute.sum '{"a":5,"b":3}'
    exchange request demo.items '{"limit": 2}' --timeout 5
    exchange request exchange.peers --to hub

    VALUE is JSON; - reads it from stdin; without one it is null. A negative number stands after --.
    The answer is printed as JSON, or as it is if it is bytes. Ctrl-C cancels the handler.
    """
    emit(run(_request(url, name, read_value(value), to=to, headers=read_headers(headers), timeout=timeout)))


async def _request(url: str, name: str, value: Any, **how: Any) -> Any:
    async with linked(url) as (_, peer):
        try:
            return await peer.request(name, value, **how)
        except DeadlineExceeded:
            fail(DEADLINE, f"no answer from {name} in time (--timeout gives it more, or less)")


# -------------------------------------------------------------------------------------------------- observe


@main.command()
@_url
@click.argument("pattern", default="*")
def observe(pattern: str, url: str) -> None:
    """Print all that passes the exchange, until Ctrl-C.

    \b
    exchange observe                  everything, state changes included
    exchange observe 'order.**'       order, order.placed, order.placed.late, ...
    exchange observe '*.placed' | jq .value

    Each is one JSON object on one line. In PATTERN, * is one token and ** any number of them; quote it
    from the shell. Observing takes nothing away from anybody. What you are too slow for is left out,
    and counted on stderr.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # at once, even while a pipe that nobody reads holds us up
        signal.signal(number, _leave)
    id = run(_server(url))
    with doors(url) as channel:
        try:
            stub = service_pb2_grpc.ExchangeServiceStub(channel)
            for response in stub.Observe(service_pb2.ObserveRequest(pattern=pattern)):
                if response.missed:
                    click.echo(f"missed {response.missed} messages", err=True)
                emit(_line(response))
        except grpc.RpcError as error:
            code, details = getattr(error, "code", str)(), getattr(error, "details", str)()
            fail(USAGE if code is grpc.StatusCode.INVALID_ARGUMENT else UNREACHABLE, str(details))
    fail(UNREACHABLE, f"{id} has stopped")


def _leave(number: int, frame: object) -> NoReturn:
    raise SystemExit(0)


async def _server(url: str) -> str:
    async with linked(url) as (_, peer):
        return peer.id


def _line(response: service_pb2.ObserveResponse) -> dict[str, Any]:
    """What is printed of a message."""
    message = response.message
    path = itertools.chain(message.trace.path, (hop.exchange for hop in message.trace.hops))
    line: dict[str, Any] = {
        "seen": tree.word(service_pb2.Seen, response.seen),
        "id": message.id,
        "name": message.name,
        "from": getattr(message, "from"),
        "to": message.to,
        "kind": tree.word(message_pb2.Kind, message.kind),
        "value": orjson.Fragment(message.json or b"null"),
        "trace": [exchange for exchange, _ in itertools.groupby(path)],
        "causes": list(message.trace.causes),
        "root": message.trace.root or message.id,
        "timestamp": message.timestamp_us / 1e6,
    }
    if message.WhichOneof("payload") == "data":
        content = b64encode(message.data.content).decode()
        line["value"] = {"content_type": message.data.content_type, "base64": content}
    if message.headers:
        line["headers"] = dict(message.headers)
    if message.reply_to:
        line["reply_to"] = message.reply_to
    if message.outcome:
        line["outcome"] = tree.word(message_pb2.Outcome, message.outcome)
    if message.HasField("error"):
        line["error"] = {"code": message.error.code, "message": message.error.message}
    return line


# ----------------------------------------------------------------------------------- peers, trace and doctor


@main.command()
@_url
def peers(url: str) -> None:
    """Print who is linked to the exchange.

    \b
    exchange peers
    exchange peers | jq -r .id

    On a terminal it is a table, elsewhere one JSON object per line.
    """
    me, server, answer = run(_peers(url))
    found = [peer for peer in answer["peers"] if peer["id"] != me]
    if not sys.stdout.isatty():
        emit(*found)
    elif found:
        click.echo("\n".join(_table(found)))
    else:
        click.echo(f"nobody else is linked to {server}")


async def _peers(url: str) -> tuple[str, str, dict[str, Any]]:
    async with linked(url) as (app, peer):
        return app.id, peer.id, await peer.request("exchange.peers", to=peer.id)


def _table(peers: list[dict[str, Any]]) -> Iterator[str]:
    rows = [["ID", "RELAYS", "PENDING", "HANDLES", "SUBSCRIBES"]]
    for peer in peers:
        names = [tree.plain(" ".join(peer[key])) or "-" for key in ("handles", "subscribes")]
        rows.append([tree.plain(peer["id"]), "yes" if peer["relay"] else "no", str(peer["pending"]), *names])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


@main.command()
@_url
@click.option("--json", "as_json", is_flag=True, help="The shape of TraceResponse instead of the tree.")
@click.argument("id")
def trace(id: str, url: str, as_json: bool) -> None:
    """Print where the message ID came from and what came of it.

    \b
    exchange trace $(exchange send echo 1 | jq -r .)
    exchange trace hub.1764000000000000.7 --json

    It is a tree from the root to the leaves. ID is what send, publish and observe print. Exchanges
    remember their newest messages; those that the messages have passed are asked as well.
    """
    known = run(_trace(url, id))
    if as_json:
        emit(tree.said(known))
    else:
        click.echo("\n".join(tree.draw(known, id)))


async def _trace(url: str, id: str) -> service_pb2.TraceResponse:
    async with linked(url) as (_, peer):
        known = tree.read(await peer.request("exchange.trace", {"id": id}, to=peer.id), peer.id)

        async def ask(exchange: str) -> None:
            with suppress(ExchangeError):  # it is gone, or has forgotten: then what the others know has to do
                answer = await peer.request("exchange.trace", {"id": known.root}, to=exchange, timeout=ASK_SECONDS)
                tree.merge(known, tree.read(answer, exchange))

        asked = {peer.id}
        # What one tells may name others. Commands like this one are over by now.
        while others := {name for name in tree.passed(known) - asked if not name.startswith(CLIENT)}:
            others = set(sorted(others)[: ASKED - len(asked)])
            if not others:
                break
            asked |= others
            await asyncio.gather(*map(ask, others))
        return known


@main.command()
@_url
def doctor(url: str) -> None:
    """Check this installation, the exchange, and the way to it.

    \b
    exchange doctor --url grpc://127.0.0.1:50051

    One line for each check, with what to do about it. The exit code is not 0 if something is wrong.
    """
    worst = 0
    for code, text in examine(url):
        worst = max(worst, code)
        click.echo(f"{click.style('BAD', fg='red') if code else click.style('ok ', fg='green')}  {text}")
    sys.exit(worst)
