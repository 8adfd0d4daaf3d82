"""The doors of `exchange.v1.ExchangeService` for callers who are no exchange: all of it but `Peer`.

Law: a door translates and calls; what it does is done by the exchange behind `Host`. Requests come as
bytes and are parsed here, so that one that cannot be parsed gets a reason. One place (`_door`) turns
every error into a status with a `google.rpc.ErrorInfo`; exception texts never leave the process.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from exchange.v1 import message_pb2, service_pb2

from . import wire
from .errors import Code, InvalidMessage, Refused, RequestError, Unhandled
from .limits import OBSERVER_QUEUE, REQUEST_SECONDS
from .message import Kind, Message, Seen, encode_value
from .payload import JSON, NULL, encode_json
from .transports import Host

SERVICE = "exchange.v1.ExchangeService"
PEER = "Peer"
log = logging.getLogger(__name__)

_NOT_YET = ("Why", "GetState", "SetState", "Describe")  # and WatchState, which streams


class Doors:
    """The unary and streaming methods of the service, for one exchange."""

    def __init__(self, host: Host) -> None:
        self.health = health.aio.HealthServicer()
        self._host = host
        self._watching: set[asyncio.Queue[service_pb2.ObserveResponse | None]] = set()

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods but `Peer`, for a gRPC server."""
        methods = {
            "Send": _unary(service_pb2.SendRequest, self._send),
            "Publish": _unary(service_pb2.PublishRequest, self._publish),
            "Request": _unary(service_pb2.RequestRequest, self._request),
            "Trace": _unary(service_pb2.TraceRequest, self._trace),
            "Observe": _stream(service_pb2.ObserveRequest, self._observe),
            "WatchState": grpc.unary_stream_rpc_method_handler(_not_yet("WatchState")),
            **{name: grpc.unary_unary_rpc_method_handler(_not_yet(name)) for name in _NOT_YET},
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def start(self) -> None:
        """Say that the service serves."""
        for service in ("", SERVICE):
            await self.health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """End the streams, and say that nothing is served."""
        await self.health.enter_graceful_shutdown()
        for queue in self._watching:
            _last(queue)

    async def _send(self, request: service_pb2.SendRequest, context: Any) -> Proto:
        message = self._read(request.message, Kind.SEND)
        return service_pb2.SendResponse(id=await self._host.relay_send(message))

    async def _publish(self, request: service_pb2.PublishRequest, context: Any) -> Proto:
        message = self._read(request.message, Kind.PUBLISH)
        return service_pb2.PublishResponse(id=await self._host.relay_send(message))

    async def _request(self, request: service_pb2.RequestRequest, context: Any) -> Proto:
        as_value = request.message.WhichOneof("payload") not in ("json", "data")
        message = self._read(request.message, Kind.REQUEST)
        reply = await self._host.relay_request(message, context.time_remaining())
        if reply.error is not None:
            raise reply.error
        try:
            return service_pb2.RequestResponse(message=wire.pack(reply, as_value=as_value))
        except InvalidMessage as error:
            raise Refused(f"the answer: {error}", code=Code.OUT_OF_RANGE, reason="ANSWER", at=self._host.id) from None

    async def _trace(self, request: service_pb2.TraceRequest, context: Any) -> Proto:
        payload = encode_json({"id": request.id})
        deadline = asyncio.get_running_loop().time() + REQUEST_SECONDS
        question = Message("", "exchange.trace", Kind.REQUEST, "", to=self._host.id, payload=payload, deadline=deadline)
        reply = await self._host.relay_request(question, context.time_remaining())
        if reply.error is not None:
            raise reply.error
        return ParseDict(reply.value, service_pb2.TraceResponse())

    async def _observe(
        self, request: service_pb2.ObserveRequest, context: Any
    ) -> AsyncIterator[service_pb2.ObserveResponse]:
        queue: asyncio.Queue[service_pb2.ObserveResponse | None] = asyncio.Queue(OBSERVER_QUEUE)
        missed = 0

        def show(message: Message, seen: Seen) -> None:
            nonlocal missed
            if queue.full():
                missed += 1
                return
            response = service_pb2.ObserveResponse(
                seen=int(seen),  # type: ignore[arg-type]  # the stub wants the enum's own type
                message=_shown(message, seen, as_value=request.as_value),
                missed=missed,
            )
            missed = 0
            queue.put_nowait(response)

        remove = self._host.watch(request.pattern or "*", show)
        self._watching.add(queue)
        try:
            await context.send_initial_metadata(())  # from here on nothing is missed
            while (response := await queue.get()) is not None:
                yield response
        finally:
            self._watching.discard(queue)
            remove()

    def _read(self, packed: message_pb2.Message, kind: Kind) -> Message:
        """What the caller wants to be emitted: of his message, only what is his to say."""
        mine = message_pb2.Message(
            name=packed.name,
            to=packed.to,
            ttl_us=packed.ttl_us,
            headers=packed.headers,
            kind=int(kind),  # type: ignore[arg-type]
        )
        form = packed.WhichOneof("payload")
        if form == "json":
            mine.json = packed.json
        elif form is not None:
            getattr(mine, form).CopyFrom(getattr(packed, form))
        mine.trace.traceparent = packed.trace.traceparent
        message = wire.read_message(mine, asyncio.get_running_loop().time())
        wire.check_size(mine)
        return message


def _shown(message: Message, seen: Seen, *, as_value: bool) -> wire.Packed:
    """`message` for an observer: a payload that cannot be said is left out."""
    if seen is Seen.SET:  # it carries the value as it is in this process
        with suppress(InvalidMessage):
            message.payload, message.content_type = encode_value(message.value)
    for attempt in (as_value, False):
        with suppress(InvalidMessage):
            return wire.pack(message, as_value=attempt)
    return wire.pack(replace(message, payload=NULL, content_type=JSON, wire=None))


def _last(queue: "asyncio.Queue[service_pb2.ObserveResponse | None]") -> None:
    while queue.full():
        queue.get_nowait()
    queue.put_nowait(None)


def _not_yet(name: str) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def answer(_: bytes, context: Any) -> bytes:
        text = f"{name} comes with a later version of this service"
        await _abort(context, Unhandled(text, reason="NOT_YET"))
        return b""

    return answer


def _unary(request: type[Any], door: Callable[[Any, Any], Awaitable[Proto]]) -> "grpc.RpcMethodHandler[bytes, bytes]":
    async def answer(data: bytes, context: Any) -> bytes:
        try:
            return (await door(_parsed(request, data), context)).SerializeToString()
        except Exception as error:
            await _abort(context, _told(error))
            return b""

    return grpc.unary_unary_rpc_method_handler(answer)


def _stream(
    request: type[Any], door: Callable[[Any, Any], AsyncIterator[Proto]]
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    async def answer(data: bytes, context: Any) -> AsyncIterator[bytes]:
        try:
            async for response in door(_parsed(request, data), context):
                yield response.SerializeToString()
        except Exception as error:
            await _abort(context, _told(error))

    return grpc.unary_stream_rpc_method_handler(answer)


def _parsed(request: type[Any], data: bytes) -> Any:
    try:
        return request.FromString(data)
    except DecodeError:
        raise InvalidMessage("the request cannot be parsed, or is nested too deeply") from None


def _told(error: Exception) -> RequestError:
    """What a caller hears of `error`: never more than was meant for him."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, InvalidMessage):
        return wire.refused(error)
    log.error("a door failed", exc_info=error)
    return RequestError("the exchange failed", code=Code.INTERNAL, reason="INTERNAL")


async def _abort(context: Any, error: RequestError) -> None:
    await context.abort_with_status(rpc_status.to_status(wire.status(error)))


def add_health_and_reflection(server: grpc.aio.Server, doors: Doors) -> None:
    """The standard services that tools look for."""
    health_pb2_grpc.add_HealthServicer_to_server(doors.health, server)
    names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server, _Pool())  # type: ignore[arg-type]  # it asks no more of a pool


class _Pool:
    """The default pool of descriptors, in which a method is found as well: its service is looked up for it."""

    def __getattr__(self, name: str) -> Any:
        return getattr(descriptor_pool.Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802  # the name that reflection calls
        pool = descriptor_pool.Default()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindFileContainingSymbol(symbol.rpartition(".")[0])
