"""The blocking client: an exchange from scripts and notebooks, without asyncio.

    from exchange_grpc.blocking import connect

    with connect("grpc://127.0.0.1:50051") as ex:
        ex.request("compute.sum", {"a": 5, "b": 3})  # 8

Law: a client is no exchange. It says what it wants at the doors of one, waits for the answer, and does
nothing in between. What gRPC raises becomes an error of the tree in one place (`error_of`). Values are
exact: they travel as JSON or as bytes, never as doubles.
"""

import math
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from exchange.v1 import service_pb2, service_pb2_grpc

from . import wire
from .errors import Code, ExchangeError, InvalidMessage, LinkError, RequestError, Unavailable, request_error
from .limits import HANDSHAKE_SECONDS, REQUEST_SECONDS
from .message import NO_HEADERS, Kind, Message, Seen, encode_value
from .patterns import check_id, check_name, check_pattern, shown
from .payload import decode_json, encode_json
from .remote import StateValue
from .transports.grpc import said, target_of

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),  # what is observed or watched may be larger than one message
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, with no pause left over from an earlier client
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 20_000),  # else a stream from a machine that is gone would wait for ever
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)
_FOREVER = 1e9  # seconds: gRPC takes a much longer deadline for one that is over

T = TypeVar("T")


def connect(url: str) -> "Client":
    """A client of the exchange at `url`: `grpc://HOST:PORT` or `unix:PATH`.

        with connect("grpc://127.0.0.1:50051") as ex:
            ex.describe()["interest"]["handles"]

    Raises AddressError if that is no such URL, LinkError if no exchange answers there within 5 s. A
    connection that is lost later is made anew when a call needs it; while that fails, calls raise Unavailable.
    """
    client = Client(url, grpc.insecure_channel(target_of(url), options=_OPTIONS))
    try:
        client._meet(HANDSHAKE_SECONDS)
    except ExchangeError as error:
        client.close()
        raise LinkError(f"no exchange answers at {url}: {error}") from None
    except BaseException:
        client.close()
        raise
    return client


def error_of(error: grpc.RpcError) -> RequestError:
    """The error of the tree that a failed call stands for: what the exchange said, else what gRPC found."""
    call: Any = error  # gRPC raises the call itself
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # details that contradict the code beside them, or are none
        status = None
    if status is not None:
        return wire.read_status(status)
    code = Code(call.code().value[0])
    text = next(iter(str(call.details() or "").splitlines()), "")[:200] or "no reason was given"
    if code is Code.UNAVAILABLE:
        text = f"the connection failed: {said(call)}"
    elif code is Code.DEADLINE_EXCEEDED:
        text = "no answer in time"
    return request_error(code, text, reason=code.name)


class Client:
    """An exchange, for callers who are none: see `connect`. Any number of threads may use it at once.

    `id` is the id of the exchange. Every method raises a RequestError if the exchange cannot do what is
    asked (`Unavailable` if the connection is lost), InvalidMessage for what cannot be sent, before anything
    is sent, and ExchangeError once the client is closed. Ctrl-C withdraws what is waited for.
    """

    def __init__(self, url: str, channel: grpc.Channel) -> None:
        """Use `connect`, which also looks whether somebody is there."""
        self.url = url
        self.id = ""
        self.closed = False
        self.state = ClientState(self)
        self._epoch = 0
        self._channel = channel
        self._stub = service_pb2_grpc.ExchangeServiceStub(channel)

    def __repr__(self) -> str:
        return f"<Client of {self.id or '?'} at {self.url}{', closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection. Calls that wait in other threads fail; `observe` and `watch` end."""
        self.closed = True
        self._channel.close()

    # ----------------------------------------------------------------------------------------- messages

    def request(
        self,
        name: str,
        value: Any = None,
        *,
        to: str = "",
        timeout: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Any:
        """Ask one exchange that handles `name`, or `to`, and return the value of its answer.

            ex.request("compute.sum", {"a": 5, "b": 3}, timeout=5)
            ex.request("exchange.peers", to="hub")

        `value` is what JSON can say, or bytes; so is the answer. `timeout` is in seconds, 30 if none is
        given. Raises Unhandled at once if nobody handles it, DeadlineExceeded, HandlerFailed, Refused.
        """
        if timeout is not None and math.isnan(timeout):
            raise ValueError("timeout is a number of seconds, not NaN")
        seconds = REQUEST_SECONDS if timeout is None else min(max(timeout, 0.0), _FOREVER)
        message = _packed(Kind.REQUEST, name, value, to, headers)
        message.ttl_us = round(seconds * 1e6)  # unsaid, it would be 30 s even if we wait longer
        response = self._call(self._stub.Request, service_pb2.RequestRequest(message=message), seconds)
        return wire.read_message(response.message, time.monotonic()).value

    def send(self, name: str, value: Any = None, *, to: str = "", headers: Mapping[str, str] = NO_HEADERS) -> str:
        """Send a message to one exchange that handles `name`, or to `to`; return its id once it is on its way.

            ex.trace(ex.send("echo", "hello"))

        Raises Unhandled if nobody next to the exchange takes it; what goes wrong further on is in its trace.
        """
        message = _packed(Kind.SEND, name, value, to, headers)
        return str(self._call(self._stub.Send, service_pb2.SendRequest(message=message)).id)

    def publish(self, name: str, value: Any = None, *, headers: Mapping[str, str] = NO_HEADERS) -> str:
        """Send a message to every exchange that subscribes to `name`, and return its id."""
        message = _packed(Kind.PUBLISH, name, value, "", headers)
        return str(self._call(self._stub.Publish, service_pb2.PublishRequest(message=message)).id)

    def observe(self, pattern: str = "*") -> "Observation":
        """All that the exchange receives, forwards, emits or sets from now on, and whose name fits `pattern`.

            with ex.observe("order.**") as seen:
                for message, why in seen:
                    print(why.name, message.name, message.value)

        `*` is one token and `**` any number of them; `*` alone is everything.
        """
        request = service_pb2.ObserveRequest(pattern=check_pattern(pattern))
        return Observation(self, self._call(self._stub.Observe, request, None), shown(pattern))

    # -------------------------------------------------------------------------------------- explanations

    def trace(self, id: str) -> dict[str, Any]:
        """Where the message `id` came from and what came of it, from all exchanges that can be asked.

            for span in ex.trace(id)["spans"]:
                print(span["name"], [event["outcome"] for event in span["events"]])

        The shape is `TraceResponse` in service.proto, as JSON. Raises Refused if nobody knows that id.
        """
        return self._ask("exchange.trace", {"id": id})

    def why(self, key: str, *, of: str = "") -> dict[str, Any]:
        """Why the exported state name `key` has its value, or what became of the message `key`.

            ex.why("total")["answer"]

        `of` is the id of another exchange whose state is meant. The shape is `WhyResponse` in service.proto, as
        JSON. Raises Refused if there is no such key.
        """
        return self._ask("exchange.why", {"key": key}, of=of)

    def describe(self, *, of: str = "") -> dict[str, Any]:
        """What the exchange, or another one, is, handles, exports and is linked to: `DescribeResponse` as JSON."""
        return self._ask("exchange.describe", of=of)

    def state_of(self, exchange: str) -> "ClientState":
        """The state of another exchange, anywhere in the mesh: `state` is that of the one we are connected to.

        ex.state_of("stock").get("ropes").value
        """
        return ClientState(self, check_id(exchange))

    # ------------------------------------------------------------------------------------------- inside

    def _ask(self, name: str, value: Any = None, *, of: str = "", timeout: float | None = None) -> dict[str, Any]:
        """The answer of the exchange itself. Its doors for these say values as doubles; its messages do not."""
        answer = self.request(name, value, to=of, timeout=timeout)
        if not isinstance(answer, dict) or not isinstance(answer.get("exchange"), str):
            raise ExchangeError(f"the answer to {name} is not one of an exchange")
        return answer

    def _meet(self, timeout: float | None = None) -> None:
        about = self._ask("exchange.describe", timeout=timeout)
        self.id, self._epoch = about["exchange"], about.get("epoch", 0)

    def _call(self, method: Callable[..., T], request: Any, timeout: float | None = REQUEST_SECONDS) -> T:
        """What a door answers: interrupted by Ctrl-C, gRPC withdraws the call."""
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as error:
            raise error_of(error) from None
        except ValueError:  # what gRPC raises for a closed channel
            raise ExchangeError(f"the client of {self.id} is closed") from None


class ClientState:
    """The state of an exchange: what it exports can be read and watched, what it accepts can be set."""

    def __init__(self, client: Client, of: str = "") -> None:
        self._client = client
        self._of = of

    def __repr__(self) -> str:
        return f"<state of {self._of or self._client.id or '?'}>"

    def get(self, name: str) -> StateValue:
        """What stands there now: `.value`, with its `.revision` and the id of the message that was its `.cause`.

            ex.state.get("total").value

        Raises Refused (NOT_EXPORTED) if there is no such name for us.
        """
        request = _made(service_pb2.GetStateRequest, name=name, as_json=True, exchange=self._of)
        return self._value(self._client._call(self._client._stub.GetState, request).state)

    def set(self, name: str, value: Any, *, expected: int | None = None) -> StateValue:
        """Set a name, and return what stands there now.

            now = ex.state.get("target")
            ex.state.set("target", now.value + 1, expected=now.revision)

        With `expected` only if that is the revision still: else Refused (REVISION). Raises Refused
        (NOT_ACCEPTED) if that name is not ours to set.
        """
        request = _made(
            service_pb2.SetStateRequest,
            name=name,
            json=encode_json(value),
            expected_revision=expected,
            exchange=self._of,
        )
        return self._value(self._client._call(self._client._stub.SetState, request).state)

    def watch(self, *names: str) -> "Changes":
        """These names, or all that are exported: first as they are (`.snapshot`), then after every change.

            with ex.state.watch("total") as changes:
                for change in changes:
                    print(change.name, change.value, change.cause)

        No change is left out: who reads too slowly gets Refused (SLOW), and begins again with a snapshot.
        """
        request = _made(service_pb2.WatchStateRequest, names=names, as_json=True, exchange=self._of)
        call = self._client._call(self._client._stub.WatchState, request, None)
        changes = Changes(self, self._client, call, ", ".join(names) or "all that is exported")
        changes._fill()  # the snapshot, or why there is none
        return changes

    def _value(self, packed: service_pb2.StateValue, *, snapshot: bool = True) -> StateValue:
        if packed.epoch != self._client._epoch and not self._of:  # it was started anew, perhaps under another id
            self._client._meet()
        value = decode_json(packed.json)
        return StateValue(
            self._of or self._client.id,
            packed.name,
            value,
            packed.revision,
            packed.epoch,
            packed.cause,
            packed.transaction,
            snapshot,
        )


class Stream(ABC, Generic[T]):
    """What keeps coming from an exchange: an iterator that waits for more.

    It ends with `close()`, of itself or of its client, from any thread and at the end of a `with`. If the exchange
    stops or the connection is lost it raises Unavailable. Ctrl-C while it waits withdraws it: begin another one.
    """

    def __init__(self, client: Client, call: Any, what: str) -> None:
        self._client, self._call, self._what = client, call, what
        self._ready: deque[T] = deque()
        self._closed = False
        self._reading = threading.Lock()
        self._await(call.initial_metadata)  # so the exchange says that from here on nothing is left out

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._what} at {self._client.id}{', closed' if self.closed else ''}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._reading:  # gRPC takes one reader at a time
            while not self._ready and not self.closed:
                self._fill()
            if self.closed:
                raise StopIteration
            return self._ready.popleft()

    @property
    def closed(self) -> bool:
        """Whether it, or its client, was closed."""
        return self._closed or self._client.closed

    def close(self) -> None:
        """End it: a loop that waits for more, in any thread, ends."""
        self._closed = True
        self._call.cancel()

    def _fill(self) -> None:
        try:
            response = self._await(lambda: next(self._call, None))
            if response is None:
                raise Unavailable(f"{self._client.id} has stopped")
        except RequestError:
            if not self.closed:
                raise
        else:
            self._ready.extend(self._read(response))

    def _await(self, wait: Callable[[], Any]) -> Any:
        try:
            return wait()
        except grpc.RpcError as error:
            raise error_of(error) from None
        except BaseException:  # Ctrl-C: gRPC would still be reading, and could not begin to read again
            self._call.cancel()
            raise

    @abstractmethod
    def _read(self, response: Any) -> Iterator[T]: ...


class Observation(Stream[tuple[Message, Seen]]):
    """Messages, each with the reason why it is seen: see `Client.observe`.

    `missed` counts those that were left out so far, because we were too slow or cannot read them.
    """

    missed = 0

    def _read(self, response: service_pb2.ObserveResponse) -> Iterator[tuple[Message, Seen]]:
        self.missed += response.missed
        packed, name = response.message, response.message.name
        if response.seen == service_pb2.SEEN_SET:
            packed.name = "set"  # a state may have names that no message may bear
        try:
            message, seen = wire.read_message(packed, time.monotonic()), Seen(response.seen)
        except (InvalidMessage, ValueError):  # from a newer exchange
            self.missed += 1
            return
        message.name, message.wire = name, None
        yield message, seen


class Changes(Stream[StateValue]):
    """State names with their values: see `ClientState.watch`."""

    def __init__(self, state: ClientState, client: Client, call: Any, what: str) -> None:
        self._state = state
        super().__init__(client, call, what)

    def _read(self, response: service_pb2.WatchStateResponse) -> Iterator[StateValue]:
        for packed in response.states:
            yield self._state._value(packed, snapshot=response.snapshot)


def _packed(kind: Kind, name: str, value: Any, to: str, headers: Mapping[str, str]) -> wire.Packed:
    """A message for a door. Raises InvalidMessage."""
    payload, content_type = encode_value(value)
    message = Message("", check_name(name), kind, "", check_id(to) if to else "", payload, content_type)
    message.headers = wire.check_headers(dict(headers))
    return wire.pack(message)


def _made(kind: type[T], **fields: Any) -> T:
    """A request of these fields. Raises InvalidMessage for what protobuf cannot say."""
    try:
        return kind(**fields)
    except ValueError as error:  # half a surrogate pair, a negative revision
        raise InvalidMessage(shown(str(error))) from None
