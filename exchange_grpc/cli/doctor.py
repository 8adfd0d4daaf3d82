"""The checks of `exchange doctor`: each gives a line that says what was found, or raises `Failed`."""

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import click
import google.protobuf
import grpc
from google.protobuf.internal import api_implementation
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from exchange.v1 import service_pb2

from ..version import AGENT, VERSION
from .console import FAILED, UNREACHABLE, Failed, doors, fail, full_url, is_web, linked, run, url_option
from .pretty import plain

CHECK_SECONDS = 5.0  # for each question
ROUND_TRIPS = 20
PROTOBUF = (6, 33, 5)  # below: CVE-2025-4565, CVE-2026-0994
SERVICE = service_pb2.DESCRIPTOR.services_by_name["ExchangeService"].full_name


def examine(url: str) -> Iterator[tuple[int, str]]:
    """For each check an exit code, 0 if all is well, and what to say."""
    for check in CHECKS if not is_web(url) else CHECKS[:-2]:  # health and reflection are services of gRPC
        try:
            yield 0, check(url)
        except Failed as error:
            yield error.exit_code, error.message
            if error.exit_code == UNREACHABLE:  # the other checks need the exchange
                return


def _library(url: str) -> str:
    python = ".".join(map(str, sys.version_info[:3]))
    return f"python {python}, exchange-grpc {VERSION}, grpcio {version('grpcio')}, orjson {version('orjson')}"


def _protobuf(url: str) -> str:
    backend, found = api_implementation.Type(), google.protobuf.__version__
    if tuple(map(int, re.findall(r"\d+", found)[:3])) < PROTOBUF:
        least = ".".join(map(str, PROTOBUF))
        fail(FAILED, f"protobuf {found} has known holes: pip install 'protobuf>={least}'")
    if backend != "upb":
        fail(
            FAILED,
            f"protobuf {found} has the backend {backend!r}, many times slower than 'upb': unset "
            "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or install protobuf from a binary wheel",
        )
    return f"protobuf {found} with the backend upb"


def _link(url: str) -> str:
    id, agent, seconds = run(_round_trips(url))
    told = f"{agent}, as here" if agent == AGENT else f"{agent}, here {AGENT}"
    return f"linked to {id} at {full_url(url)} ({plain(told)}), round trip {seconds * 1e3:.2f} ms"


async def _round_trips(url: str) -> tuple[str, str, float]:
    async with linked(url) as (_, peer):
        taken = []
        for _ in range(ROUND_TRIPS):
            start = time.perf_counter()
            await peer.request("exchange.peers", to=peer.id, timeout=CHECK_SECONDS)
            taken.append(time.perf_counter() - start)
        return peer.id, peer.agent, statistics.median(taken)


def _health(url: str) -> str:
    with doors(url) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its types know no methods
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        status = _asked(lambda: stub.Check(request, timeout=CHECK_SECONDS).status, "health")
    said = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
    if said != "SERVING":
        fail(FAILED, f"health of {SERVICE} is {said}: is it stopping? See its log")
    return f"health: {said}"


def _reflection(url: str) -> str:
    with doors(url) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = _asked(lambda: next(stub.ServerReflectionInfo(iter([ask]), timeout=CHECK_SECONDS)), "reflection")
    if SERVICE not in (service.name for service in answer.list_services_response.service):
        fail(FAILED, f"reflection does not list {SERVICE}: is there a proxy before the exchange?")
    return f"reflection lists {SERVICE}"


def _asked(question: Callable[[], Any], what: str) -> Any:
    try:
        return question()
    except grpc.RpcError as error:
        code, details = getattr(error, "code", str)(), getattr(error, "details", str)()
        fail(FAILED, f"{what} does not answer: {getattr(code, 'name', code)} {details}: it is on in `exchange serve`")


CHECKS: tuple[Callable[[str], str], ...] = (_library, _protobuf, _link, _health, _reflection)


@click.command()
@url_option
def doctor(url: str) -> None:
    """Check this installation, the exchange, and the way to it.

    \b
    exchange doctor
    exchange doctor --url grpc://127.0.0.1:50051

    One line for each check, with what to do about it. The exit code is not 0 if something is wrong.
    """
    worst = 0
    for code, text in examine(url):
        worst = max(worst, code)
        click.echo(f"{click.style('BAD', fg='red') if code else click.style('ok ', fg='green')}  {text}")
    sys.exit(worst)
