"""Message and Trace: the one noun that travels, and what it says of its way and its causes.

The fields are those of `proto/exchange/v1/message.proto`, whose comments are the reference. Two are
said differently in memory: `deadline` is a point on this process's monotonic clock where the wire
has the time left, and `timestamp` and hops are in seconds.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import blake2b
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from .errors import RequestError
from .limits import CAUSES, MESSAGE_SECONDS, PATH, TRACE_BASE_BYTES
from .payload import BINARY, JSON, NULL, Encoded, decode_json, encode_json


class Kind(IntEnum):
    """Who takes a message."""

    SEND = 1
    REQUEST = 2
    REPLY = 3
    CANCEL = 4
    OUTCOME = 5
    PUBLISH = 6
    BROADCAST = 7


class Outcome(IntEnum):
    """What became of a message at one exchange."""

    HANDLED = 1
    FORWARDED = 2
    UNHANDLED = 3
    LOOP = 4
    EXPIRED = 5
    CANCELLED = 6
    DENIED = 7
    DROPPED = 8
    FAILED = 9


class Seen(IntEnum):
    """Why an observer sees a message."""

    RECEIVED = 1
    FORWARDED = 2
    EMITTED = 3
    SET = 4


class Hop(NamedTuple):
    """One stop of a message: the exchange, and when it got there (seconds since the epoch, its clock)."""

    exchange: str
    at: float


@dataclass(slots=True, frozen=True)
class Trace:
    """Where a message has been (`hops`), and what stands behind it (all else)."""

    hops: tuple[Hop, ...] = ()
    causes: tuple[str, ...] = ()
    root: str = ""  # empty: the message itself
    path: tuple[str, ...] = ()
    cut: bool = False
    traceparent: str = ""

    def at(self, exchange: str, when: float) -> "Trace":
        """The trace once the message has reached `exchange`."""
        return Trace((*self.hops, Hop(exchange, when)), self.causes, self.root, self.path, self.cut, self.traceparent)

    def names(self) -> list[str]:
        """`path` and `hops` as ids, equal neighbours merged."""
        return merged((*self.path, *(hop.exchange for hop in self.hops)))


NO_TRACE = Trace()
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_UNREAD: Any = object()
_LATEST_US = 2**62  # far beyond any clock


class Keeper(Protocol):
    """The link by which a message came: it lets so much more come as does not wait here."""

    def retain(self, size: int) -> None:
        """A message of so many bytes waits."""

    def release(self, size: int) -> None:
        """... and does not any more."""


@dataclass(slots=True, eq=False)
class Message:
    """One message. Treat it as immutable: only the exchange that holds it rewrites `trace` and `deadline`."""

    id: str
    name: str
    kind: Kind
    from_: str
    to: str = ""
    payload: bytes = NULL
    content_type: str = JSON
    hop_trace: Trace = NO_TRACE
    timestamp: float = 0.0
    deadline: float = inf
    headers: Mapping[str, str] = field(default_factory=lambda: NO_HEADERS)  # read-only
    reply_to: str = ""
    last: bool = False
    error: RequestError | None = None
    outcome: Outcome | None = None
    many: bool = False  # a request to all who handle the name
    lost: tuple[str, ...] | None = None  # of the reply that ends those to many: whose replies are lost; no value
    keeper: Keeper | None = field(default=None, repr=False)  # who is told while it waits here; None: nobody asks
    wire: Any = field(default=None, repr=False)  # what `wire.py` read it from: keeps the fields that are not known here
    _value: Any = field(default=_UNREAD, repr=False)

    @property
    def value(self) -> Any:
        """The payload: any JSON value, or bytes if it is no JSON. Raises InvalidMessage if it cannot be read."""
        if self._value is _UNREAD:
            self._value = decode_json(self.payload) if self.content_type == JSON else self.payload
        return self._value

    @property
    def trace(self) -> list[str]:
        """The exchanges visited, from the root along the newest cause to here."""
        return self.hop_trace.names()

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Where this very message has been."""
        return self.hop_trace.hops

    @property
    def causes(self) -> tuple[str, ...]:
        """The ids of what stands directly behind it, the newest last."""
        return self.hop_trace.causes

    @property
    def root(self) -> str:
        """The id of the message where it all began: its own if nothing stands behind it."""
        return self.hop_trace.root or self.id


def encode_value(value: Any) -> tuple[bytes, str]:
    """Payload and content type of a Python value: bytes go as they are, all else as JSON."""
    if isinstance(value, Encoded):
        return value.data, JSON
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), BINARY
    return encode_json(value), JSON


@dataclass(slots=True, frozen=True)
class Context:
    """What stands behind a message that is emitted now. `Context()` is a beginning."""

    causes: tuple[str, ...] = ()
    root: str = ""
    path: tuple[str, ...] = ()
    cut: bool = False
    traceparent: str = ""

    @staticmethod
    def of(message: Message) -> "Context":
        """The context of a handler that was given `message`."""
        return Context((message.id,), message.root, *_path(message), message.hop_trace.traceparent)

    def then(self, message: Message) -> "Context":
        """The same context after `message` (a reply) was awaited in it: a further, newer cause."""
        path, cut = _path(message)
        causes = (*self.causes, message.id)
        return Context(
            causes[-CAUSES:],
            self.root or message.root,
            path,
            self.cut or cut or len(causes) > CAUSES,
            self.traceparent or message.hop_trace.traceparent,
        )

    def trace(self, id: str, exchange: str, when: float) -> Trace:
        """The trace of the message `id` that `exchange` emits in this context."""
        causes, path, cut = self.causes, self.path, self.cut
        size = sum(map(len, causes)) + sum(map(len, path)) + 2 * (len(causes) + len(path)) + len(self.root)
        while path and size > TRACE_BASE_BYTES:  # causes alone never are: their number and ids are bounded
            cut = True
            size -= len(path[0]) + 2
            path = path[1:]
        return Trace((Hop(exchange, when),), causes, self.root, path, cut, _traceparent(self.traceparent, id))


def microseconds(seconds: float) -> int:
    """A time of day for a field of 64 bits, which a peer may have filled to its edge."""
    return max(-_LATEST_US, min(_LATEST_US, round(seconds * 1e6)))


def merged(names: Iterable[str]) -> list[str]:
    """`names` with equal neighbours merged."""
    result: list[str] = []
    for name in names:
        if not result or result[-1] != name:
            result.append(name)
    return result


def _path(message: Message) -> tuple[tuple[str, ...], bool]:
    names = message.trace
    return tuple(names[-PATH:]), message.hop_trace.cut or len(names) > PATH


def _traceparent(parent: str, id: str) -> str:
    # W3C Trace Context: version, trace id of 16 bytes, span id of 8, flags. Both ids are digests of
    # message ids, so that they need no randomness and can be found again from the ledger.
    trace = parent[3:35] if parent else blake2b(id.encode(), digest_size=16).hexdigest()
    flags = parent[53:] if parent else "01"  # whether it is sampled is decided where it began
    return f"00-{trace}-{blake2b(id.encode(), digest_size=8).hexdigest()}-{flags}"


class Origin:
    """Makes the messages of one exchange. `now` is its monotonic clock, to which `wall` adds up to the time of day."""

    def __init__(self, exchange: str, epoch: int, wall: float = 0.0) -> None:
        self.exchange = exchange
        self.epoch = epoch
        self.wall = wall
        self._count = 0

    def make(
        self,
        kind: Kind,
        name: str,
        context: Context,
        now: float,
        *,
        to: str = "",
        payload: bytes = NULL,
        content_type: str = JSON,
        headers: Mapping[str, str] = NO_HEADERS,
        seconds: float = MESSAGE_SECONDS,
        reply_to: str = "",
        last: bool = False,
        error: RequestError | None = None,
        outcome: Outcome | None = None,
        many: bool = False,
        lost: tuple[str, ...] | None = None,
    ) -> Message:
        """A new message of this exchange, emitted now in `context`, with `seconds` to live."""
        self._count += 1
        id = f"{self.exchange}.{self.epoch}.{self._count}"
        at = now + self.wall
        return Message(
            id, name, kind, self.exchange, to, payload, content_type,
            context.trace(id, self.exchange, at), at, now + seconds, headers, reply_to, last, error, outcome,
            many, lost,
        )  # fmt: skip
