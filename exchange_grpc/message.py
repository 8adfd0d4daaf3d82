"""Message and Trace: the one noun that travels, and what it says of its way and its causes.

The fields are those of `proto/exchange/v1/message.proto`, whose comments are the reference. Two are
said differently in memory: `deadline` is a point on this process's monotonic clock where the wire
has the time left, and `timestamp` and hops are in seconds.
"""

from collections.abc import Iterable, Mapping
from enum import IntEnum
from hashlib import blake2b
from math import inf
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from .errors import RequestError
from .limits import CAUSES, ID_LENGTH, MESSAGE_SECONDS, PATH, TRACE_BASE_BYTES
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


class Trace(NamedTuple):
    """Where a message has been (`hops`), and what stands behind it (all else)."""

    hops: tuple[Hop, ...] = ()
    causes: tuple[str, ...] = ()
    root: str = ""  # empty: the message itself
    path: tuple[str, ...] = ()
    cut: bool = False
    traceparent: str = ""  # empty: the one that follows from the root and the id, see `Message.traceparent`

    def at(self, exchange: str, when: float) -> "Trace":
        """The trace once the message has reached `exchange`."""
        return Trace((*self.hops, Hop(exchange, when)), self.causes, self.root, self.path, self.cut, self.traceparent)

    def names(self) -> list[str]:
        """`path` and `hops` as ids, equal neighbours merged."""
        return merged((*self.path, *(hop.exchange for hop in self.hops)))


NO_TRACE = Trace()
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
UNREAD: Any = object()
_LATEST_US = 2**62  # far beyond any clock


Trail = tuple[tuple[str, ...], tuple[float, ...], tuple[str, ...], str, tuple[str, ...], bool, str]


class Keeper(Protocol):
    """The link by which a message came: it lets so much more come as does not wait here, and says what is settled."""

    def retain(self, size: int) -> None:
        """A message of so many bytes waits."""

    def release(self, size: int) -> None:
        """... and does not any more."""

    def settle(self, seq: int) -> None:
        """The message with this number needs us no longer."""


class Message:
    """One message. Treat it as immutable: only the exchange that holds it rewrites its hops and `deadline`.

    A hub makes and drops one for each message that passes, so it is slots and nothing that has to be made:
    the hops are two tuples, `way` and `times`, and become a `Trace` when somebody asks for `hop_trace`.
    """

    __slots__ = (
        "_holds", "_root", "_traceparent", "_value", "causes", "content_type", "cut", "deadline", "error", "from_",
        "headers", "id", "keeper", "kind", "known", "last", "lost", "many", "name", "outcome", "path", "payload",
        "reply_to", "seq", "times", "timestamp", "to", "way", "wire",
    )  # fmt: skip

    way: tuple[str, ...]  # the exchanges of its hops
    times: tuple[float, ...]  # when it got to each of them
    causes: tuple[str, ...]  # the ids of what stands directly behind it, the newest last
    path: tuple[str, ...]
    cut: bool
    keeper: Keeper | None  # who is told while it waits here; None: nobody asks
    seq: int  # its number there
    known: int  # how many of its hops are in `wire`
    _root: str
    _traceparent: str

    def __init__(
        self,
        id: str,
        name: str,
        kind: Kind,
        from_: str,
        to: str = "",
        payload: bytes = NULL,
        content_type: str = JSON,
        hop_trace: Trace = NO_TRACE,
        timestamp: float = 0.0,
        deadline: float = inf,
        headers: Mapping[str, str] = NO_HEADERS,  # read-only
        reply_to: str = "",
        last: bool = False,
        error: RequestError | None = None,
        outcome: Outcome | None = None,
        many: bool = False,  # a request to all who handle the name
        lost: tuple[str, ...] | None = None,  # of the reply that ends those to many: whose replies are lost; no value
        wire: bytes | None = None,  # what `wire.py` read it from or packed it into; None: to be packed anew
    ) -> None:
        self.id = id
        self.name = name
        self.kind = kind
        self.from_ = from_
        self.to = to
        self.payload = payload
        self.content_type = content_type
        self.timestamp = timestamp
        self.deadline = deadline
        self.headers = headers
        self.reply_to = reply_to
        self.last = last
        self.error = error
        self.outcome = outcome
        self.many = many
        self.lost = lost
        self.wire = wire
        self.keeper = None
        self.seq = self._holds = 0
        self.known = 0
        self._value: Any = UNREAD
        if hop_trace is NO_TRACE:
            self.way = self.times = self.causes = self.path = ()
            self.cut = False
            self._root = self._traceparent = ""
        else:
            self.hop_trace = hop_trace

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r}, {self.name!r}, {self.kind!r}, {self.from_!r}, {self.to!r})"

    def hold(self) -> None:
        """Somebody here has yet to do something with it: until `let_go` it would be lost with us."""
        self._holds += 1

    def let_go(self) -> None:
        """... and has done it."""
        self._holds -= 1
        if not self._holds and self.keeper is not None:
            self.keeper.settle(self.seq)

    @property
    def value(self) -> Any:
        """The payload: any JSON value, or bytes if it is no JSON. Raises InvalidMessage if it cannot be read."""
        if self._value is UNREAD:
            self._value = decode_json(self.payload) if self.content_type == JSON else self.payload
        return self._value

    @property
    def hop_trace(self) -> Trace:
        """Where it has been and what stands behind it, in one."""
        return Trace(self.hops, self.causes, self._root, self.path, self.cut, self._traceparent)

    @hop_trace.setter
    def hop_trace(self, trace: Trace) -> None:
        self.way = tuple([hop.exchange for hop in trace.hops])
        self.times = tuple([hop.at for hop in trace.hops])
        self.causes, self.path, self.cut = trace.causes, trace.path, trace.cut
        self._root, self._traceparent = trace.root, trace.traceparent

    @property
    def trail(self) -> Trail:
        """The same as it is kept: cheaper, for whoever only hands it on."""
        return self.way, self.times, self.causes, self._root, self.path, self.cut, self._traceparent

    @trail.setter
    def trail(self, trail: Trail) -> None:
        self.way, self.times, self.causes, self._root, self.path, self.cut, self._traceparent = trail

    def reached(self, exchange: str, when: float) -> None:
        """Write down that the message has reached `exchange`."""
        self.way += (exchange,)
        self.times += (when,)

    @property
    def trace(self) -> list[str]:
        """The exchanges visited, from the root along the newest cause to here."""
        return merged((*self.path, *self.way))

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Where this very message has been."""
        return tuple(map(Hop, self.way, self.times))

    @property
    def root(self) -> str:
        """The id of the message where it all began: its own if nothing stands behind it."""
        return self._root or self.id

    @property
    def traceparent(self) -> str:
        """Its W3C trace context: what it says itself, or what follows from its root and its id."""
        return self._traceparent or _traceparent(f"00-{_digest(self.root, 16)}-", self.id)


_RAW = (bytes, bytearray, memoryview)


def encode_value(value: Any) -> tuple[bytes, str]:
    """Payload and content type of a Python value: bytes go as they are, all else as JSON."""
    if isinstance(value, Encoded):
        return value.data, JSON
    if isinstance(value, _RAW):
        return bytes(value), BINARY
    return encode_json(value), JSON


class Context(NamedTuple):
    """What stands behind a message that is emitted now. `Context()` is a beginning."""

    causes: tuple[str, ...] = ()
    root: str = ""
    path: tuple[str, ...] = ()
    cut: bool = False
    traceparent: str = ""  # of a caller who brought his own

    @staticmethod
    def of(message: Message) -> "Context":
        """The context of a handler that was given `message`."""
        return Context((message.id,), message.root, *_path(message), message._traceparent)

    def then(self, message: Message) -> "Context":
        """The same context after `message` (a reply) was awaited in it: a further, newer cause."""
        path, cut = _path(message)
        causes = (*self.causes, message.id)
        return Context(
            causes[-CAUSES:],
            self.root or message.root,
            path,
            self.cut or cut or len(causes) > CAUSES,
            self.traceparent or message._traceparent,
        )

    def fitting(self) -> tuple[tuple[str, ...], bool]:
        """As much of `path`, the newest last, as a trace has room for; and whether anything was left out so far."""
        causes, path = self.causes, self.path
        if _LONGEST_ID * (len(causes) + 1) + _LONGEST_NAME * len(path) <= TRACE_BASE_BYTES:
            return path, self.cut
        size = sum(map(len, causes)) + sum(map(len, path)) + 2 * (len(causes) + len(path)) + len(self.root)
        cut = self.cut
        while path and size > TRACE_BASE_BYTES:  # causes alone never are: their number and ids are bounded
            cut = True
            size -= len(path[0]) + 2
            path = path[1:]
        return path, cut


_LONGEST_NAME = ID_LENGTH + 2  # with its tag and length
_LONGEST_ID = _LONGEST_NAME + 2 * 21


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
    return tuple(names[-PATH:]), message.cut or len(names) > PATH


def _traceparent(parent: str, id: str) -> str:
    # W3C Trace Context: version, trace id of 16 bytes, span id of 8, flags. Both ids are digests of
    # message ids, so that they need no randomness, can be found again from the ledger, and need not travel
    # as long as no caller brought a trace of his own.
    flags = parent[53:] or "01"  # whether it is sampled is decided where it began
    return f"{parent[:36]}{_digest(id, 8)}-{flags}"


def _digest(id: str, size: int) -> str:
    return blake2b(id.encode(), digest_size=size).hexdigest()


class Origin:
    """Makes the messages of one exchange. `now` is its monotonic clock, to which `wall` adds up to the time of day."""

    def __init__(self, exchange: str, epoch: int, wall: float = 0.0) -> None:
        self.exchange = exchange
        self.epoch = epoch
        self.wall = wall
        self._count = 0
        self._prefix = f"{exchange}.{epoch}."
        self._way = (exchange,)

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
        id = f"{self._prefix}{self._count}"
        at = now + self.wall
        message = Message(
            id, name, kind, self.exchange, to, payload, content_type,
            NO_TRACE, at, now + seconds, headers, reply_to, last, error, outcome, many, lost,
        )  # fmt: skip
        message.way = self._way
        message.times = (at,)
        causes, root, path, cut, traceparent = context
        if root or causes or path or cut:
            message.causes, message._root = causes, root
            message.path, message.cut = context.fitting() if path else (path, cut)
        if traceparent:
            message._traceparent = _traceparent(traceparent, id)
        return message
