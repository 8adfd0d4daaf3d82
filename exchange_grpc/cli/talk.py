"""`exchange send`, `publish`, `request` and `request-many`: what emits a message."""

from typing import Any

import click

from .. import DeadlineExceeded, Message, RequestError, Unhandled
from .console import (
    DEADLINE,
    FAILED,
    REFUSED,
    UNHANDLED,
    UNREACHABLE,
    Headers,
    emit,
    fail,
    jsonable,
    linked,
    message_arguments,
    read_headers,
    read_value,
    run,
    timeout_option,
    to_option,
)

# What comes back about a send has no code, only a reason.
_BY_REASON = {
    "UNHANDLED": UNHANDLED,
    "LOOP": UNHANDLED,
    "DEADLINE_EXCEEDED": DEADLINE,
    "UNAVAILABLE": UNREACHABLE,
    "INCOMPLETE": UNREACHABLE,
    "HANDLER_FAILED": FAILED,
}


@click.command()
@message_arguments
@to_option
def send(name: str, value: str | None, url: str, headers: Headers, to: str) -> None:
    """Send a message to one handler of NAME, and print its id.

    \b
    exchange send echo '{"number": 7}' --header tenant=blue
    echo "[1, 2]" | exchange send echo -
    exchange trace $(exchange send compute.sum '{"a": 1, "b": 2}')

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


@click.command()
@message_arguments
def publish(name: str, value: str | None, url: str, headers: Headers) -> None:
    """Send a message to all subscribers of NAME, and print its id.

    \b
    exchange publish price.changed '{"item": 7, "price": 24.5}'
    echo '{"item": 8}' | exchange publish price.changed - --header tenant=blue

    VALUE is JSON; - reads it from stdin; without one it is null.
    """
    emit(run(_publish(url, name, read_value(value), read_headers(headers))))


async def _publish(url: str, name: str, value: Any, headers: dict[str, str]) -> str:
    async with linked(url) as (app, _):
        return await app.publish(name, value, headers=headers)


@click.command()
@message_arguments
@to_option
@timeout_option
def request(name: str, value: str | None, url: str, headers: Headers, to: str, timeout: float | None) -> None:
    """Ask NAME, and print the answer.

    \b
    exchange request compute.sum '{"a":5,"b":3}'
    exchange request demo.items '{"limit": 2}' --timeout 5
    echo '[1, 2]' | exchange request echo -

    VALUE is JSON; - reads it from stdin; without one it is null. A negative number stands after --.
    The answer is printed as JSON, or as it is if it is bytes. Ctrl-C cancels the handler.
    """
    emit(run(_request(url, name, read_value(value), to=to, headers=read_headers(headers), timeout=timeout)))


async def _request(url: str, name: str, value: Any, **how: Any) -> Any:
    async with linked(url) as (app, peer):
        try:
            return await peer.request(name, value, **how)
        except DeadlineExceeded as error:
            late = f"no answer from {name} in time"
            if error.at in (app.id, peer.id):
                fail(DEADLINE, f"{late} (--timeout gives it more, or less)")
            fail(DEADLINE, f"{late}: {error}", error.at)


@click.command("request-many")
@message_arguments
@to_option
@timeout_option
@click.option("--max", "most", type=click.IntRange(1), metavar="N", help="End after so many replies.")
def request_many(
    name: str, value: str | None, url: str, headers: Headers, to: str, timeout: float | None, most: int | None
) -> None:
    """Ask all who handle NAME, and print each reply as it comes.

    \b
    exchange request-many demo.count '{"to": 3}'
    exchange request-many demo.count '{"to": 1000, "seconds": 0.1}' --max 2
    exchange request-many demo.count '{"to": 3}' --max 2 | jq .value

    A reply is a line: {"from": ..., "value": ...}, or {"from": ..., "error": {"reason": ..., "message": ...}}
    of a handler that failed; then the exit code is 1. Exchanges whose replies are lost, or did not all
    come in time, are named on stderr; then it is 3.
    """
    run(_request_many(url, name, read_value(value), to=to, headers=read_headers(headers), timeout=timeout, max=most))


async def _request_many(url: str, name: str, value: Any, **how: Any) -> None:
    failed = 0
    async with linked(url) as (_, peer), peer.request_many(name, value, **how) as replies:
        try:
            async for reply in replies:
                failed += reply.error is not None
                emit({"from": reply.from_, **_reply(reply)})
        except Unhandled as error:
            if error.at == peer.id or how["to"]:
                raise
            fail(UNHANDLED, f"nobody handles {name} within reach of {peer.id}")  # not of us, who are nobody
    if replies.lost:
        fail(UNREACHABLE, f"replies are lost, or did not come in time, of {', '.join(replies.lost)}")
    if failed:
        fail(FAILED, f"{failed} of the replies {'is an error' if failed == 1 else 'are errors'}")


def _reply(reply: Message) -> dict[str, Any]:
    if reply.error is not None:
        return {"error": _error(reply.error)}
    return {"value": jsonable(reply.value, reply.content_type)}


def _error(error: RequestError) -> dict[str, Any]:
    return {"code": error.code.name, "reason": error.reason, "message": error.message, "at": error.at}
