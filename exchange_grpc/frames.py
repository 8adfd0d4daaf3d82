"""What two peers say to each other on a link. The reference is `proto/exchange/v1/frame.proto`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from .errors import Code, RequestError
from .limits import FRAME_BYTES, MESSAGE_BYTES
from .message import Message

PROTOCOL = 1


class Target(NamedTuple):
    """What a question looks for: somebody who handles a name, or the exchange with an id."""

    kind: str  # "name" or "exchange"
    key: str


class Found(IntEnum):
    """What a question found out."""

    YES = 1
    NO = 2
    INCOMPLETE = 3


@dataclass(slots=True, frozen=True)
class Introduction:
    """What Hello and Welcome have in common."""

    exchange: str
    epoch: int = 0
    protocol: int = PROTOCOL
    features: tuple[str, ...] = ()
    agent: str = ""
    relay: bool = False
    revision: int = 0
    handles: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    message_bytes: int = MESSAGE_BYTES
    frame_bytes: int = FRAME_BYTES
    session: str = ""  # to resume, or that was opened; with its token, and what was taken in it
    token: bytes = field(default=b"", repr=False)
    received: int = 0
    received_bytes: int = 0
    credit: "Credit | None" = None
    recovered: bool = False  # of a Welcome: the session goes on


@dataclass(slots=True, frozen=True)
class Hello:
    """The side that dialled introduces itself."""

    me: Introduction


@dataclass(slots=True, frozen=True)
class Welcome:
    """The other side answers."""

    me: Introduction


@dataclass(slots=True, frozen=True)
class Refusal:
    """A message of a batch that could not be read: its id, as far as that could, and why."""

    id: str
    error: RequestError


@dataclass(slots=True, frozen=True)
class Batch:
    """Messages in order; `seq` is the number of the first, or 0 if the sender does not count."""

    seq: int
    messages: Sequence[Message | Refusal]
    used_value: bool = False  # a payload came as `value`: its sender wants answers that way


@dataclass(slots=True, frozen=True)
class Ack:
    """All messages up to this number were taken; those up to `settled` wait there no longer."""

    seq: int
    settled: int = 0


@dataclass(slots=True, frozen=True)
class Credit:
    """So many messages, and bytes of Batch frames, will be taken in all of the session."""

    seq: int
    bytes: int

    def beyond(self, seq: int, size: int) -> "Credit":
        """What is left of it once so much was taken."""
        return Credit(max(0, self.seq - seq), max(0, self.bytes - size))


@dataclass(slots=True, frozen=True)
class Ping:
    """Are you there?"""

    nonce: int


@dataclass(slots=True, frozen=True)
class Pong:
    """I am."""

    nonce: int


@dataclass(slots=True, frozen=True)
class Interest:
    """What the sender handles, subscribes to or relays has changed."""

    revision: int
    handles: tuple[str, ...] = ()
    subscribes: tuple[str, ...] = ()
    no_longer_handles: tuple[str, ...] = ()
    no_longer_subscribes: tuple[str, ...] = ()
    relay: bool | None = None


@dataclass(slots=True, frozen=True)
class Query:
    """Who handles this?"""

    id: str
    target: Target
    ttl: int


@dataclass(slots=True, frozen=True)
class Answer:
    """The answer to a Query; with an empty id, the withdrawal of an earlier yes."""

    id: str
    target: Target
    found: Found
    cost: int = 0


@dataclass(slots=True, frozen=True)
class Reject:
    """One message was refused."""

    seq: int
    id: str
    error: RequestError


@dataclass(slots=True, frozen=True)
class Goodbye:
    """The session ends here."""

    code: Code = Code.OK
    message: str = ""
    retry_after_ms: int = 0
    stay_away: bool = False
    exchange: str = ""
    received: int = 0


@dataclass(slots=True, frozen=True)
class Unknown:
    """A frame of a kind that this version has no use for. Ignored."""

    kind: str = field(default="")


Frame = Hello | Welcome | Batch | Ack | Credit | Interest | Query | Answer | Ping | Pong | Reject | Goodbye | Unknown
