"""The outgoing half of a session: what waits, what has left, and what must leave again.

Law: sans-IO. A message waits in the queue until credit lets it go; then it gets the next sequence number. If the
peer acknowledges what it takes, a message is kept until then. After a break what the peer has not taken
leaves again, under its number and before anything new. So the numbers have no gap, whatever breaks.

    queue --credit--> (numbered) flight --Ack--> ids --settled--> gone
      ^                  |
      |                  +--break, then resumed--> again --> flight
      +-- `unsent`: never numbered, so surely not delivered; `uncertain`: numbered and not settled

What is acknowledged is not sent again in this session. But if the peer loses its memory, what had not been settled
there is lost with it; so the ids are kept until then.
"""

from collections import deque
from typing import NamedTuple

from . import wire
from .errors import InvalidMessage, LimitExceeded
from .frames import Credit
from .limits import (
    BATCH_BYTES,
    BATCH_MESSAGES,
    LINK_HIGH_WATER,
    LINK_HIGH_WATER_BYTES,
    LINK_QUEUE_BYTES,
    LINK_QUEUE_MESSAGES,
    UNACKED_BYTES,
    UNACKED_MESSAGES,
    UNSETTLED_IDS,
)
from .message import Kind, Message

AROUND = 32  # bytes: a message's time left, its tag and length in the batch; and the frame around a batch
WAIT, DROP_OLDEST, DROP_NEWEST, DISCONNECT = POLICIES = ("wait", "drop_oldest", "drop_newest", "disconnect")
_LONGEST_US = 2**62  # of time left, far beyond any use: what lives for ever fits the field
_DROPPABLE = (Kind.SEND, Kind.REQUEST, Kind.PUBLISH, Kind.BROADCAST)  # others end what somebody waits for


class QueueFull(LimitExceeded):
    """The peer takes messages more slowly than they come, and the link's queue is full."""


class Entry(NamedTuple):
    """A message ready to leave."""

    message: Message
    data: bytes  # of the message, without its time left
    size: int  # in bytes, within a batch, at most


class Outbox:
    """What one session sends. `policy` says what is done with a message that comes while it is `full`."""

    def __init__(self, policy: str = WAIT) -> None:
        if policy not in POLICIES:
            raise ValueError(f"when_full is one of {', '.join(POLICIES)}, not {policy!r}")
        self.policy = policy
        self.keeps = False  # the peer acknowledges: what has left is kept until then
        self.credit: Credit | None = None  # None: no limit by credit
        self.dropped = 0  # by policy
        self._queue: deque[Entry] = deque()
        self._queued_bytes = 0
        self._cancels = 0  # in the queue
        self._flight: deque[Entry] = deque()
        self._flight_bytes = 0
        self._again: deque[Entry] = deque()
        self._sent = 0  # the number of the last message that ever left; `_again` and `_flight` end there
        self._sent_bytes = 0  # of Batch frames, as the receiver counts them
        self._last_ids: deque[tuple[int, str]] = deque(maxlen=BATCH_MESSAGES)  # for a Reject, if nothing is kept
        self._unsettled: deque[tuple[int, str]] = deque(maxlen=UNSETTLED_IDS)  # acknowledged

    # ------------------------------------------------------------------------------------------------ what waits

    @property
    def full(self) -> bool:
        """So much waits that whoever can wait should."""
        return len(self._queue) > LINK_HIGH_WATER or self._queued_bytes > LINK_HIGH_WATER_BYTES

    @property
    def is_first(self) -> bool:
        """What was put last waits behind nothing."""
        return len(self._queue) <= 1

    def load(self) -> tuple[int, int]:
        """How many messages wait to leave, and their bytes."""
        return len(self._queue), self._queued_bytes

    @property
    def waits(self) -> bool:
        """Whether something has yet to leave, as far as credit lets it."""
        return bool(self._queue or self._again)

    @property
    def unacknowledged(self) -> int:
        """How many messages have left and were not acknowledged."""
        return len(self._again) + len(self._flight)

    def put(self, message: Message, data: bytes, size: int) -> list[Message]:
        """Queue a message of so many bytes; those that made room for it, by policy. Raises QueueFull."""
        made_room: list[Message] = []
        if len(self._queue) >= LINK_QUEUE_MESSAGES or self._queued_bytes + size > LINK_QUEUE_BYTES:
            raise QueueFull(f"more than {LINK_QUEUE_MESSAGES} messages or {LINK_QUEUE_BYTES} bytes wait on the link")
        if self.policy != WAIT and self.full and message.kind in _DROPPABLE:
            if self.policy != DROP_OLDEST:
                self.dropped += 1
                raise QueueFull(f"the peer reads too slowly, and the policy of the link is {self.policy}")
            made_room = self._drop_oldest()
            self.dropped += len(made_room)
        self._queue.append(Entry(message, data, size))
        self._queued_bytes += size
        self._entered(message, size)
        return made_room

    def _entered(self, message: Message, size: int) -> None:
        message.hold()
        if message.keeper is not None:
            message.keeper.retain(size)
        if message.kind is Kind.CANCEL:
            self._cancels += 1

    def _drop_oldest(self) -> list[Message]:
        for at, entry in enumerate(self._queue):
            if entry.message.kind in _DROPPABLE:
                del self._queue[at]
                self._left(entry)
                entry.message.let_go()
                return [entry.message]
        return []

    def _left(self, entry: Entry) -> None:
        """It is not in the queue any more."""
        message, _, size = entry
        self._queued_bytes -= size
        if message.keeper is not None:
            message.keeper.release(size)
        if message.kind is Kind.CANCEL:
            self._cancels -= 1

    # ---------------------------------------------------------------------------------------------- what leaves

    def batch(self, room: int, now: float) -> tuple[bytes | None, list[Message]]:
        """A Batch frame of about `room` bytes at most, or None; and messages whose time ended in the queue."""
        if not self._queue and not self._again:
            return None, []
        room = min(room, BATCH_BYTES)
        if self._again:
            return self._resend(room, now), []
        batch, expired = self._take(room, now)
        if not batch and self._cancels and self._queue:
            batch = self._take_cancels(room)
        if not batch:
            return None, expired
        return self._frame(batch, self._sent - len(batch) + 1, now), expired

    def _take(self, room: int, now: float) -> tuple[list[Entry], list[Message]]:
        """The next messages that credit lets go, numbered; and those that have expired."""
        batch: list[Entry] = []
        expired: list[Message] = []
        size = 0
        while self._queue and len(batch) < BATCH_MESSAGES:
            entry = self._queue[0]
            alive = entry.message.deadline > now
            if alive and ((batch and size + entry.size > room) or not self._may_leave(size + entry.size)):
                break
            self._queue.popleft()
            self._left(entry)
            if alive:
                size += entry.size
                self._number(entry, batch)
            else:
                entry.message.let_go()
                expired.append(entry.message)
        return batch, expired

    def _may_leave(self, size: int) -> bool:
        credit = self.credit
        if credit is not None and (self._sent >= credit.seq or self._sent_bytes + size + AROUND > credit.bytes):
            return False
        return len(self._flight) < UNACKED_MESSAGES and self._flight_bytes < UNACKED_BYTES

    def _number(self, entry: Entry, batch: list[Entry]) -> None:
        self._sent += 1
        batch.append(entry)
        if self.keeps:
            self._flight.append(entry)
            self._flight_bytes += entry.size
        else:
            self._last_ids.append((self._sent, entry.message.id))
            entry.message.let_go()

    def _take_cancels(self, room: int) -> list[Entry]:
        """A cancel needs no credit. One whose request waits here as well takes that with it, and neither leaves."""
        cancelled = {entry.message.reply_to for entry in self._queue if entry.message.kind is Kind.CANCEL}
        waiting = {entry.message.id for entry in self._queue}
        queue, self._queue = self._queue, deque()
        batch: list[Entry] = []
        size = 0
        for entry in queue:
            if entry.message.kind is Kind.CANCEL:
                if entry.message.reply_to not in waiting:
                    size += entry.size
                    if batch and (size > room or len(batch) >= BATCH_MESSAGES):
                        self._queue.append(entry)  # for the next frame
                        continue
                    self._left(entry)
                    self._number(entry, batch)
                else:
                    self._left(entry)
                    entry.message.let_go()
            elif entry.message.id in cancelled:
                self._left(entry)
                entry.message.let_go()
            else:
                self._queue.append(entry)
        return batch

    def _resend(self, room: int, now: float) -> bytes:
        """What has left before leaves again. What has expired meanwhile does too: its number is taken."""
        first = self._sent - len(self._again) + 1
        batch: list[Entry] = []
        size = 0
        while self._again and len(batch) < BATCH_MESSAGES:
            entry = self._again[0]
            # A cancel may have left without credit: what needs credit shall not be counted together with it.
            free = entry.message.kind is Kind.CANCEL
            if batch and (size + entry.size > room or (free and batch[-1].message.kind is not Kind.CANCEL)):
                break
            self._again.popleft()
            size += entry.size
            batch.append(entry)
            self._flight.append(entry)
            self._flight_bytes += entry.size
        return self._frame(batch, first, now)

    def _frame(self, batch: list[Entry], seq: int, now: float) -> bytes:
        left = [max(1, int(min((message.deadline - now) * 1e6, _LONGEST_US))) for message, _, _ in batch]
        frame = wire.encode_batch(seq, [(entry.data, us) for entry, us in zip(batch, left, strict=True)])
        self._sent_bytes += len(frame)
        return frame

    # ------------------------------------------------------------------------------------- what the peer tells us

    def acknowledged(self, seq: int) -> None:
        """The peer has taken all up to this number. Raises InvalidMessage if that cannot be."""
        if seq > self._sent:
            raise InvalidMessage(f"message {seq} is acknowledged, and {self._sent} were sent")
        first = self._sent - self.unacknowledged + 1
        for number in range(first, seq + 1):
            if self._flight:
                entry = self._flight.popleft()
                self._flight_bytes -= entry.size
            else:
                entry = self._again.popleft()
            self._unsettled.append((number, entry.message.id))
            entry.message.let_go()

    def settled(self, seq: int) -> None:
        """What the peer has of the messages up to this number would not be lost with it."""
        while self._unsettled and self._unsettled[0][0] <= seq:
            self._unsettled.popleft()

    def credited(self, credit: Credit) -> None:
        """The peer takes so much. It never becomes less."""
        if self.credit is not None:
            self.credit = Credit(max(credit.seq, self.credit.seq), max(credit.bytes, self.credit.bytes))

    def id_of(self, seq: int) -> str:
        """The id of the message with this number, as far as it is remembered."""
        first = self._sent - self.unacknowledged + 1
        if self.keeps and first <= seq <= self._sent:
            return (*self._flight, *self._again)[seq - first].message.id
        return dict(self._last_ids).get(seq, "")

    # ------------------------------------------------------------------------------------------- breaks and ends

    def resumed(self, received: int, received_bytes: int) -> None:
        """The session goes on: the peer has taken so much. Raises InvalidMessage if that cannot be."""
        if received < self._sent - self.unacknowledged:
            raise InvalidMessage(f"the peer has taken {received} messages, and had acknowledged more")
        self.acknowledged(received)
        self._again.extendleft(reversed(self._flight))
        self._flight.clear()
        self._flight_bytes = 0
        self._sent_bytes = received_bytes

    def refused_after(self, received: int) -> None:
        """The peer has taken so much and takes no more: what was sent after that counts as never sent."""
        self.resumed(received, 0)
        for entry in reversed(self._again):
            self._queue.appendleft(entry)
            self._queued_bytes += entry.size
            self._entered(entry.message, entry.size)
            entry.message.let_go()
        self._again.clear()
        self._unsettled.clear()

    def take_unsent(self) -> list[Message]:
        """The messages that never left, which are not sent any more. Whoever takes them lets go of each."""
        queue, self._queue = self._queue, deque()
        for entry in queue:
            self._left(entry)
        return [entry.message for entry in queue]

    def take_uncertain(self) -> list[str]:
        """The ids of those that have left, and would be lost if the peer's memory was; none is sent any more."""
        uncertain = [id for _, id in self._unsettled]
        for entry in (*self._flight, *self._again):
            uncertain.append(entry.message.id)
            entry.message.let_go()
        self._unsettled.clear()
        self._flight.clear()
        self._again.clear()
        self._flight_bytes = 0
        return uncertain

    def begin(self) -> None:
        """A new session: the numbers begin anew."""
        self._last_ids.clear()
        self._sent = self._sent_bytes = 0
