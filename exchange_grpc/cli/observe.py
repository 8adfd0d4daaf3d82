"""`exchange observe`: what passes an exchange, live, by its gRPC door, so that looking makes no traffic."""

import itertools
from typing import Any

import click
import grpc
import orjson

from exchange.v1 import message_pb2, service_pb2, service_pb2_grpc

from .console import (
    UNREACHABLE,
    USAGE,
    doors,
    emit,
    end_when_told,
    fail,
    full_url,
    jsonable,
    max_option,
    told,
    url_option,
)
from .pretty import word


@click.command()
@url_option
@max_option
@click.argument("pattern", default="*")
def observe(pattern: str, url: str, most: int | None) -> None:
    """Print all that passes the exchange, until Ctrl-C.

    \b
    exchange observe                    # everything there, its state included
    exchange observe 'compute.**'       # compute, compute.sum, compute.sum.late, ...
    exchange observe '*.sum' | jq .value
    exchange observe 'exchange.event.**'    # who comes and goes, and what went wrong

    Each is one JSON object on one line. In PATTERN, * is one token and ** any number of them; quote it
    from the shell. The exchange's own events are shown to patterns that begin with exchange.event.
    Observing takes nothing away from anybody. What you are too slow for is left out, and counted on stderr.
    """
    end_when_told()
    begun = False
    with told(), doors(url) as channel:
        try:
            call = service_pb2_grpc.ExchangeServiceStub(channel).Observe(service_pb2.ObserveRequest(pattern=pattern))
            call.initial_metadata()  # comes when it has begun
            begun = call.is_active()
            for response in itertools.islice(call, most):
                if response.missed:
                    click.echo(f"missed {response.missed} messages", err=True)
                emit(_line(response))
        except grpc.RpcError as error:
            _explain(error, url, begun=begun)
    if most is None:
        fail(UNREACHABLE, f"the exchange at {full_url(url)} has stopped")


def _explain(error: grpc.RpcError, url: str, *, begun: bool) -> None:
    code, details = getattr(error, "code", str)(), str(getattr(error, "details", str)())
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        fail(USAGE, details)
    if begun:
        fail(UNREACHABLE, f"the link to {full_url(url)} was lost: {details}")
    fail(UNREACHABLE, f"nobody answers at {full_url(url)}: {details} (is `exchange serve` running there?)")


def _line(response: service_pb2.ObserveResponse) -> dict[str, Any]:
    """What is printed of a message."""
    message = response.message
    path = itertools.chain(message.trace.path, (hop.exchange for hop in message.trace.hops))
    line: dict[str, Any] = {
        "seen": _word(service_pb2.Seen, response.seen),
        "id": message.id,
        "name": message.name,
        "from": getattr(message, "from"),
        "to": message.to,
        "kind": _word(message_pb2.Kind, message.kind),
        "value": orjson.Fragment(message.json or b"null"),
        "trace": [exchange for exchange, _ in itertools.groupby(path)],
        "causes": list(message.trace.causes),
        "root": message.trace.root or message.id,
        "timestamp": message.timestamp_us / 1e6,
    }
    if message.WhichOneof("payload") == "data":
        line["value"] = jsonable(message.data.content, message.data.content_type)
    if message.headers:
        line["headers"] = dict(message.headers)
    if message.reply_to:
        line["reply_to"] = message.reply_to
    if message.outcome:
        line["outcome"] = _word(message_pb2.Outcome, message.outcome)
    if message.HasField("error"):
        line["error"] = {"code": message.error.code, "message": message.error.message}
    return line


def _word(enum: Any, number: int) -> str:
    """The word for an enum's number: `request` for KIND_REQUEST. A number from the future stays one."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    return str(number) if value is None else word(value.name)
