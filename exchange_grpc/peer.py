"""One link's session, from Hello to Goodbye.

Law: sans-IO. Bytes that came in go into `receive`, which returns what they mean; what shall be said
goes into `send`, `announce`, `ask`, `tell` and `goodbye`, and comes out of `data_to_send` as bytes;
`tick` is told the time. No socket, clock or randomness: the same input gives the same output.

States: OPENING (the handshake) -> OPEN -> CLOSING (Goodbye said, queued messages leave first) -> CLOSED.

Control frames never wait behind messages: `data_to_send` gives them first, then one Batch with as many
of the queued messages as one write may carry. So batches form by themselves while a write is under way.

A link is never trusted about who it is. A message counts only if its last hop is the peer; and from a
peer that does not relay, only if the peer made it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from . import wire
from .errors import Code, InvalidMessage, LimitExceeded, RequestError
from .frames import (
    Answer,
    Batch,
    Frame,
    Goodbye,
    Hello,
    Interest,
    Introduction,
    Query,
    Refusal,
    Reject,
    Welcome,
)
from .limits import (
    BATCH_BYTES,
    BATCH_MESSAGES,
    CONTROL_FRAMES,
    HANDSHAKE_SECONDS,
    LINK_HIGH_WATER,
    LINK_HIGH_WATER_BYTES,
    LINK_QUEUE_BYTES,
    LINK_QUEUE_MESSAGES,
    NAMES_PER_PEER,
)
from .message import Message

_AROUND = 32  # bytes: a message's time left, its tag and length in the batch; and the frame around a batch
_LONGEST_US = 2**62  # of time left, far beyond any use: what lives for ever fits the field
_LAST_SEQ = 2**64 - 1
VALUE = "value"  # the feature: payloads are wanted as `value`


class Phase(Enum):
    """Where a session stands."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True, frozen=True)
class Opened:
    """The handshake is done: this is the peer."""

    peer: Introduction


@dataclass(slots=True, frozen=True)
class Received:
    """A message, with its last hop confirmed."""

    message: Message


@dataclass(slots=True, frozen=True)
class Rejected:
    """The peer refused a message of ours."""

    id: str
    error: RequestError


@dataclass(slots=True, frozen=True)
class Ended:
    """The session is over: as planned if `code` is OK. Nothing else follows. `by` is the id of who ended it."""

    code: Code
    reason: str
    by: str


Event = Opened | Received | Rejected | Interest | Query | Answer | Ended


class QueueFull(LimitExceeded):
    """The peer takes messages more slowly than they come, and the link's queue is full."""


class Session:
    """One side of a link.

    `me` is what Hello or Welcome will say. The side that `dialled` speaks first; the other side calls
    `welcome` once it has seen who it is (the `Opened` event), or `goodbye` to refuse.
    """

    def __init__(self, me: Introduction, *, dialled: bool, now: float) -> None:
        self.me = me
        self.dialled = dialled
        self.phase = Phase.OPENING
        self.peer: Introduction | None = None
        self.as_value = False
        self._handshake_until = now + HANDSHAKE_SECONDS
        self._control: deque[bytes] = deque()
        self._queue: deque[tuple[Message, bytes, int]] = deque()
        self._queued_bytes = 0
        self._sent = 0  # sequence number of the last message that left
        self._sent_ids: deque[tuple[int, str]] = deque(maxlen=BATCH_MESSAGES)  # for a Reject without an id
        self._received = 0
        self._revision = me.revision
        self._goodbye: bytes | None = None
        self._expected = 0  # revision of the peer's interest
        self._handles: set[str] = set()
        self._subscribes: set[str] = set()
        if dialled:
            self._control.append(wire.encode(Hello(me)))

    # -------------------------------------------------------------------------------------------- in

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What the bytes of one frame mean. A frame that breaks the protocol ends the session."""
        if self.phase is Phase.CLOSED:
            return []
        try:
            frame = wire.decode(data, now)
        except InvalidMessage as error:
            return self._broken(str(error))
        return self._introduced(frame) if self.peer is None else self._understood(frame)

    def _introduced(self, frame: Frame) -> list[Event]:
        if isinstance(frame, Goodbye):
            return self._end(frame.code, frame.message, by=frame.exchange)
        if self.phase is Phase.CLOSING:  # we have said goodbye already: who it was does not matter any more
            return []
        wanted = Welcome if self.dialled else Hello
        if not isinstance(frame, Hello | Welcome) or not isinstance(frame, wanted):
            return self._broken(f"the first frame is a {wanted.__name__}")
        peer = frame.me
        if peer.exchange == self.me.exchange:
            return self._refuse(Code.ALREADY_EXISTS, f"both ends of this link call themselves {peer.exchange}")
        if max(len(peer.handles), len(peer.subscribes), len(peer.exports)) > NAMES_PER_PEER:
            return self._broken(f"more than {NAMES_PER_PEER} names or patterns are declared")
        self.peer = peer
        self.as_value = VALUE in peer.features
        self._expected = peer.revision
        self._handles.update(peer.handles)
        self._subscribes.update(peer.subscribes)
        if self.dialled:
            self.phase = Phase.OPEN
        return [Opened(peer)]

    def _understood(self, frame: Frame) -> list[Event]:
        if isinstance(frame, Batch):
            return self._batch(frame)
        if isinstance(frame, Query | Answer):
            return [frame]
        if isinstance(frame, Interest):
            return self._interest(frame)
        if isinstance(frame, Reject):
            known = dict(self._sent_ids)
            return [Rejected(frame.id or known.get(frame.seq, ""), frame.error)]
        if isinstance(frame, Goodbye):
            return self._end(frame.code, frame.message, by=frame.exchange)
        if isinstance(frame, Hello | Welcome):
            return self._broken("an introduction comes once, as the first frame")
        return []

    def _batch(self, batch: Batch) -> list[Event]:
        self.as_value = self.as_value or batch.used_value
        if batch.seq:
            self._received = batch.seq - 1
        if self._received + len(batch.messages) > _LAST_SEQ:
            return self._broken("the sequence numbers ran over")
        events: list[Event] = []
        for message in batch.messages:
            self._received += 1
            if isinstance(message, Message):
                refusal = self._admit(message)
                if refusal is None:
                    events.append(Received(message))
                    continue
                message = Refusal(message.id, wire.refused(refusal))
            self.reject(self._received, message.id, message.error)
        return events

    def _admit(self, message: Message) -> InvalidMessage | None:
        """Confirm who sent it, and fill in what a simple peer leaves out."""
        peer = self.peer
        assert peer is not None
        if not message.way:
            message.reached(peer.exchange, message.timestamp)
        way = message.way
        if not message.from_:
            message.from_ = way[0]
        if not message.id and message.from_ != peer.exchange:
            return InvalidMessage("it is passed on, and has no id")
        if not message.id:
            message.id = f"{message.from_}.{peer.epoch}.{self._received}"
        if way[-1] != peer.exchange:
            return InvalidMessage(f"its last hop is {way[-1]}, but it came from {peer.exchange}")
        if way[0] != message.from_ or not message.id.startswith(message.from_ + "."):
            return InvalidMessage("its id, its `from` and its first hop do not agree")
        if len(way) > 1 and not peer.relay:
            return InvalidMessage(f"{peer.exchange} does not relay, so it cannot pass on a message of {message.from_}")
        return None

    def _interest(self, interest: Interest) -> list[Event]:
        if interest.revision != self._expected + 1 and interest.revision:
            return self._broken(f"interest revision {interest.revision} came after {self._expected}")
        self._expected = interest.revision
        self._handles.difference_update(interest.no_longer_handles)
        self._handles.update(interest.handles)
        self._subscribes.difference_update(interest.no_longer_subscribes)
        self._subscribes.update(interest.subscribes)
        if len(self._handles) > NAMES_PER_PEER or len(self._subscribes) > NAMES_PER_PEER:
            return self._broken(f"more than {NAMES_PER_PEER} names or patterns are declared")
        if interest.relay is not None and self.peer is not None:
            self.peer = replace(self.peer, relay=interest.relay)
        return [interest]

    def tick(self, now: float) -> list[Event]:
        """Tell the session the time: a handshake that takes too long ends it."""
        if self.phase is Phase.OPENING and now >= self._handshake_until:
            return self._refuse(Code.DEADLINE_EXCEEDED, f"no introduction within {HANDSHAKE_SECONDS:g} s")
        return []

    def _broken(self, reason: str) -> list[Event]:
        return self._refuse(Code.INVALID_ARGUMENT, reason)

    def _refuse(self, code: Code, reason: str) -> list[Event]:
        stay_away = code is Code.INVALID_ARGUMENT
        self._goodbye = wire.encode(Goodbye(code, reason, stay_away=stay_away, exchange=self.me.exchange))
        return self._end(code, reason, by=self.me.exchange)

    def _end(self, code: Code, reason: str, *, by: str) -> list[Event]:
        self.phase = Phase.CLOSED
        return [Ended(code, reason, by)]

    # ------------------------------------------------------------------------------------------- out

    def welcome(self, me: Introduction) -> None:
        """Answer the Hello: the link is open."""
        self.me, self._revision = me, me.revision
        self.phase = Phase.OPEN
        self._control.append(wire.encode(Welcome(me)))

    def send(self, message: Message) -> None:
        """Queue `message`. Raises QueueFull, and InvalidMessage if it cannot be said to this peer."""
        data = wire.pack_bytes(message, as_value=self.as_value)
        size = len(data) + _AROUND
        if len(self._queue) >= LINK_QUEUE_MESSAGES or self._queued_bytes + size > LINK_QUEUE_BYTES:
            raise QueueFull(f"more than {LINK_QUEUE_MESSAGES} messages or {LINK_QUEUE_BYTES} bytes wait on the link")
        if self.peer is not None and size > min(self.peer.message_bytes + _AROUND, self.peer.frame_bytes - _AROUND):
            raise LimitExceeded(f"the message is larger than {self.peer.exchange} takes")
        self._queued_bytes += size
        self._queue.append((message, data, size))

    @property
    def full(self) -> bool:
        """So much waits that whoever can wait should."""
        return len(self._queue) > LINK_HIGH_WATER or self._queued_bytes > LINK_HIGH_WATER_BYTES

    def load(self) -> tuple[int, int]:
        """How many messages wait to leave, and their bytes."""
        return len(self._queue), self._queued_bytes

    def announce(
        self,
        *,
        handles: Sequence[str] = (),
        subscribes: Sequence[str] = (),
        no_longer_handles: Sequence[str] = (),
        no_longer_subscribes: Sequence[str] = (),
        relay: bool | None = None,
    ) -> None:
        """Tell the peer that our interest has changed. One who reads none of it is told goodbye instead."""
        if len(self._control) >= CONTROL_FRAMES:
            self.goodbye(Code.RESOURCE_EXHAUSTED, f"more than {CONTROL_FRAMES} frames wait to be read")
        if self.phase not in (Phase.OPENING, Phase.OPEN):
            return
        self._revision += 1
        change = Interest(
            self._revision,
            tuple(handles),
            tuple(subscribes),
            tuple(no_longer_handles),
            tuple(no_longer_subscribes),
            relay,
        )
        self._control.append(wire.encode(change))

    def control(self, frame: Query | Answer | Reject) -> bool:
        """Queue a question, an answer or a refusal: False if so many wait that the peer cannot be reading."""
        if len(self._control) >= CONTROL_FRAMES:
            return False
        self._control.append(wire.encode(frame))
        return True

    def reject(self, seq: int, id: str, error: RequestError) -> None:
        """Refuse one message that was received; if very many such answers wait, this one is left out."""
        if len(self._control) < CONTROL_FRAMES:
            self._control.append(wire.encode(Reject(seq, id, error)))

    def goodbye(self, code: Code = Code.OK, reason: str = "", *, retry_after_ms: int = 0) -> None:
        """Say that the session ends, after what is queued."""
        if self.phase in (Phase.OPENING, Phase.OPEN):
            self.phase = Phase.CLOSING
            self._goodbye = wire.encode(Goodbye(code, reason, retry_after_ms, exchange=self.me.exchange))

    def data_to_send(self, now: float) -> tuple[bytes | None, list[Message]]:
        """The bytes of the next frame to write, or None; and messages whose time ended in the queue."""
        if self._control:
            return self._control.popleft(), []
        expired: list[Message] = []
        if self._queue and self.phase in (Phase.OPEN, Phase.CLOSING):
            batch: list[tuple[bytes, int]] = []
            room = BATCH_BYTES if self.peer is None else min(BATCH_BYTES, self.peer.frame_bytes - _AROUND)
            size = 0
            while self._queue and len(batch) < BATCH_MESSAGES:
                message, data, bytes_ = self._queue[0]
                if batch and size + bytes_ > room:
                    break
                self._queue.popleft()
                self._queued_bytes -= bytes_
                left = message.deadline - now
                if left <= 0:
                    expired.append(message)
                    continue
                size += bytes_
                self._sent += 1
                self._sent_ids.append((self._sent, message.id))
                batch.append((data, max(1, int(min(left * 1e6, _LONGEST_US)))))
            if batch:
                return wire.encode_batch(self._sent - len(batch) + 1, batch), expired
        if self._goodbye is not None and (not self._queue or self.phase is Phase.CLOSED):
            data, self._goodbye = self._goodbye, None
            if self.phase is Phase.CLOSING:
                self.phase = Phase.CLOSED
            return data, expired
        return None, expired

    def unsent(self) -> list[Message]:
        """The messages that never left: for whoever must be told when the link is lost."""
        messages = [message for message, _, _ in self._queue]
        self._queue.clear()
        self._queued_bytes = 0
        return messages
