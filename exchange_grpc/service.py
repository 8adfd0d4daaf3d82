"""The doors of `exchange.v1.ExchangeService` for callers who are no exchange: all of it but `Peer`.

Law: a door translates and calls; what it does is done by the exchange behind `Host`. Requests come as
bytes and are parsed here, so that one that cannot be parsed gets a reason. One place (`_door`) turns
every error into a status with a `google.rpc.ErrorInfo`; exception texts never leave the process.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from copy import copy
from math import inf
from typing import Any, TypeVar

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
from .errors import Code, InvalidMessage, Refused, RequestError
from .limits import OBSERVER_RATE, REQUEST_SECONDS
from .message import Kind, Message, Seen, encode_value
from .observers import Backlog
from .patterns import SET, check_id
from .payload import JSON, NULL, decode_json, encode_json
from .transports import Host

SERVICE = "exchange.v1.ExchangeService"
PEER = "Peer"
Answered = TypeVar("Answered", bound=Proto)
log = logging.getLogger(__name__)


class Doors:
    """The unary and streaming methods of the service, for one exchange."""

    def __init__(self, host: Host) -> None:
        self.health = health.aio.HealthServicer()
        self._host = host
        self._observing: set[asyncio.Event] = set()
        self._closed = False

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods but `Peer`, for a gRPC server."""
        methods = {
            "Send": _unary(service_pb2.SendRequest, self._send),
            "Publish": _unary(service_pb2.PublishRequest, self._publish),
            "Request": _unary(service_pb2.RequestRequest, self._request),
            "Observe": _stream(service_pb2.ObserveRequest, self._observe),
            "Trace": _unary(service_pb2.TraceRequest, self._trace),
            "Why": _unary(service_pb2.WhyRequest, self._why),
            "GetState": _unary(service_pb2.GetStateRequest, self._get_state),
            "SetState": _unary(service_pb2.SetStateRequest, self._set_state),
            "WatchState": _stream(service_pb2.WatchStateRequest, self._watch_state),
            "Describe": _unary(service_pb2.DescribeRequest, self._describe),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def start(self) -> None:
        """Say that the service serves."""
        for service in ("", SERVICE):
            await self.health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """End the streams that observe, and say that nothing is served."""
        self._closed = True
        for something in self._observing:
            something.set()
        await self.health.enter_graceful_shutdown()

    async def _send(self, request: service_pb2.SendRequest, context: Any) -> Proto:
        message = self._read(request.message, Kind.SEND)
        return service_pb2.SendResponse(id=await self._host.relay_send(message))

    async def _publish(self, request: service_pb2.PublishRequest, context: Any) -> Proto:
        message = self._read(request.message, Kind.PUBLISH)
        return service_pb2.PublishResponse(id=await self._host.relay_send(message))

    async def _request(self, request: service_pb2.RequestRequest, context: Any) -> Proto:
        as_value = request.message.WhichOneof("payload") not in ("json", "data")
        message = self._read(request.message, Kind.REQUEST)
        left = context.time_remaining()
        if left is not None and not request.message.ttl_us:  # then the call's own deadline counts, be it more or less
            message.deadline = inf
        reply = await self._host.relay_request(message, left)
        if reply.error is not None:
            raise reply.error
        try:
            return service_pb2.RequestResponse(message=wire.pack(reply, as_value=as_value))
        except InvalidMessage as error:
            raise Refused(f"the answer: {error}", code=Code.OUT_OF_RANGE, reason="ANSWER", at=self._host.id) from None

    async def _trace(self, request: service_pb2.TraceRequest, context: Any) -> Proto:
        question = {"id": request.id, "here": request.here, "root": request.root}
        return _as_proto(await self._ask("exchange.trace", question, context), service_pb2.TraceResponse())

    async def _why(self, request: service_pb2.WhyRequest, context: Any) -> Proto:
        said = await self._ask("exchange.why", {"key": request.key}, context, request.exchange)
        if not _is_exact(said.get("value")):
            del said["value"]
        for change in said.get("transaction", {}).get("changes", ()):
            change.update({key: str(change[key]) for key in ("old", "new") if not _is_exact(change[key])})
        return _as_proto(said, service_pb2.WhyResponse())

    async def _describe(self, request: service_pb2.DescribeRequest, context: Any) -> Proto:
        return _as_proto(
            await self._ask("exchange.describe", None, context, request.exchange), service_pb2.DescribeResponse()
        )

    async def _get_state(self, request: service_pb2.GetStateRequest, context: Any) -> Proto:
        said = await self._ask("exchange.state.get", {"name": request.name}, context, request.exchange)
        return service_pb2.GetStateResponse(state=self._state(said["state"], as_json=request.as_json))

    async def _set_state(self, request: service_pb2.SetStateRequest, context: Any) -> Proto:
        as_json = bool(request.json)
        value = request.json if as_json else wire.value_to_json(request.value)
        question: dict[str, Any] = {"name": request.name, "value": decode_json(value)}
        if request.HasField("expected_revision"):
            question["expected_revision"] = request.expected_revision
        said = await self._ask(SET, question, context, request.exchange)
        return service_pb2.SetStateResponse(state=self._state(said["state"], as_json=as_json))

    async def _watch_state(
        self, request: service_pb2.WatchStateRequest, context: Any
    ) -> AsyncIterator[service_pb2.WatchStateResponse]:
        question = self._question("exchange.state.watch", {"names": list(request.names)}, request.exchange)
        replies = self._host.relay_many(question, inf)
        try:
            async for reply in replies:
                if reply.error is not None:
                    raise reply.error
                said = reply.value
                states = [self._state(state, as_json=request.as_json) for state in said["states"]]
                yield service_pb2.WatchStateResponse(states=states, snapshot=said["snapshot"])
        finally:
            await replies.aclose()

    def _state(self, state: dict[str, Any], *, as_json: bool) -> service_pb2.StateValue:
        payload = encode_json(state.pop("value"))
        said = service_pb2.StateValue(**state)
        if as_json:
            said.json = payload
            return said
        try:
            said.value.CopyFrom(wire.json_to_value(payload))
        except InvalidMessage as error:
            text = f"the value of {said.name}: {error}"
            raise Refused(text, code=Code.OUT_OF_RANGE, reason="ANSWER", at=self._host.id) from None
        return said

    async def _ask(self, name: str, value: Any, context: Any, to: str = "") -> Any:
        """What this exchange, or another, answers to a question about itself."""
        timeout = min(context.time_remaining() or REQUEST_SECONDS, REQUEST_SECONDS)
        reply = await self._host.relay_request(self._question(name, value, to), timeout)
        if reply.error is not None:
            raise reply.error
        return reply.value

    def _question(self, name: str, value: Any, to: str) -> Message:
        to = check_id(to) if to else self._host.id
        return Message("", name, Kind.REQUEST, "", to=to, payload=encode_json(value), deadline=inf)

    async def _observe(
        self, request: service_pb2.ObserveRequest, context: Any
    ) -> AsyncIterator[service_pb2.ObserveResponse]:
        backlog, something = Backlog(OBSERVER_RATE, asyncio.get_running_loop().time), asyncio.Event()

        def show(message: Message, seen: Seen) -> None:
            if backlog.put(message, seen):
                something.set()

        remove = self._host.watch(request.pattern or "*", show)
        self._observing.add(something)
        try:
            await context.send_initial_metadata(())  # from here on nothing is missed
            while not self._closed:
                await something.wait()
                something.clear()
                while backlog:
                    message, seen = backlog.take()
                    missed, backlog.missed = backlog.missed, 0
                    yield service_pb2.ObserveResponse(
                        seen=int(seen),  # type: ignore[arg-type]  # the stub wants the enum's own type
                        message=_shown(message, seen, as_value=request.as_value),
                        missed=missed,
                    )
        finally:
            self._observing.discard(something)
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
    shown = copy(message)
    shown.payload, shown.content_type, shown.wire = NULL, JSON, None
    return wire.pack(shown)


def _as_proto(said: dict[str, Any], into: Answered) -> Answered:
    """An answer of the system, which has the shape of `into` and more."""
    return ParseDict(said, into, ignore_unknown_fields=True)


def _is_exact(value: Any) -> bool:
    """Whether a `google.protobuf.Value` can say it."""
    try:
        wire.json_to_value(encode_json(value))
    except InvalidMessage:
        return False
    return True


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
