"""The incoming half of a session: what was taken, what is told of it, and how much more is welcome.

Law: sans-IO. Messages are taken in the order of their numbers, each once. What was taken is acknowledged now and
then, and so is what of it is *settled*: what would not be lost with us. A message that waits here, for a handler or
on another link, is *retained*; the credit that we give is always so much that no more than `credit_messages` and
`credit_bytes` from this peer can wait.
"""

from collections.abc import Callable
from typing import TypeVar

from .errors import InvalidMessage, LimitExceeded
from .frames import Ack, Credit
from .limits import ACK_MESSAGES, ACK_SECONDS, Limits

_LAST_SEQ = 2**64 - 1
T = TypeVar("T")


def _nothing() -> None:
    """Nobody wants to know."""


class Gap(InvalidMessage):
    """A message is missing."""


class Inbox:
    """What one session receives."""

    def __init__(self, limits: Limits) -> None:
        self.received = 0  # the number of the last message that was taken
        self.received_bytes = 0  # of Batch frames
        self.given: Credit | None = None  # the credit that was told; None: none was
        self.acknowledges = False  # the peer wants to hear what was taken
        self.more_is_welcome: Callable[[], None] = _nothing  # called when there is credit to tell
        self._limits = limits
        self._retained = self._retained_bytes = 0
        self._told = (0, 0)  # acknowledged, and settled
        self.before = 0  # how many were taken in former sessions: numbers are settled beyond that
        self._unsettled: dict[int, None] = {}  # in order
        self._ack_due: float | None = None

    def take(self, seq: int, messages: list[T], size: int, now: float) -> tuple[int, list[T]]:
        """Take a Batch of so many bytes: the number of the first message that is new, and the new ones.

        `seq` is the number of its first message, 0 if the sender does not count. Raises Gap, and InvalidMessage.
        """
        first = seq or self.received + 1
        if first > self.received + 1:
            raise Gap(f"message {first} came after {self.received}")
        if first + len(messages) - 1 > _LAST_SEQ:
            raise InvalidMessage("the sequence numbers ran over")
        new = messages[self.received + 1 - first :]
        first = self.received + 1
        self.received += len(new)
        if new:  # a frame that comes twice was counted once by who sent it
            self.received_bytes += size
        if self.acknowledges:
            self._unsettled.update(dict.fromkeys(range(self.before + first, self.before + self.received + 1)))
        if self._ack_due is None and self.acknowledges and new:
            self._ack_due = now + ACK_SECONDS
        return first, new

    def check_credit(self, seq: int) -> None:
        """Raises LimitExceeded if the message with this number, or all bytes so far, are more than was welcome."""
        given = self.given
        if given is not None and (seq > given.seq or self.received_bytes > given.bytes):
            raise LimitExceeded(f"more was sent than there was credit for: {given.seq} messages, {given.bytes} bytes")

    # ------------------------------------------------------------------------------------------ what waits here

    def retain(self, size: int) -> None:
        """A message that was taken waits here."""
        self._retained += 1
        self._retained_bytes += size

    def release(self, size: int) -> None:
        """... and does not any more."""
        self._retained -= 1
        self._retained_bytes -= size
        if self._grown():
            self.more_is_welcome()

    def settle(self, seq: int) -> None:
        """The message with this number, counted from the first session on, is not lost any more if we are."""
        self._unsettled.pop(seq, None)

    @property
    def crowded(self) -> bool:
        """So much waits here that no more should be read from a peer that does not keep to credit."""
        limits = self._limits
        return self._retained >= limits.credit_messages or self._retained_bytes >= limits.credit_bytes

    # --------------------------------------------------------------------------------------- what is to be told

    def credit(self) -> Credit:
        """What is welcome now. It never becomes less."""
        seq = self.received + max(0, self._limits.credit_messages - self._retained)
        size = self.received_bytes + max(0, self._limits.credit_bytes - self._retained_bytes)
        if self.given is None:
            return Credit(seq, size)
        return Credit(max(seq, self.given.seq), max(size, self.given.bytes))

    def give(self) -> Credit:
        """The credit to tell in Hello or Welcome."""
        self.given = self.credit()
        return self.given

    def credit_to_tell(self) -> Credit | None:
        """The credit, if it has grown by a quarter of the window since it was told."""
        if not self._grown():
            return None
        return self.give()

    def _grown(self) -> bool:
        told, limits = self.given, self._limits
        if told is None:
            return False
        seq = self.received + limits.credit_messages - self._retained
        size = self.received_bytes + limits.credit_bytes - self._retained_bytes
        return 4 * (seq - told.seq) >= limits.credit_messages or 4 * (size - told.bytes) >= limits.credit_bytes

    def ack_to_tell(self, now: float) -> Ack | None:
        """What to acknowledge, if that is due and new."""
        if self._ack_due is None or (now < self._ack_due and self.received - self._told[0] < ACK_MESSAGES):
            return None
        settled = next(iter(self._unsettled), self.before + self.received + 1) - 1 - self.before
        self._ack_due = None if settled == self.received else now + ACK_SECONDS
        if (self.received, settled) == self._told:
            return None
        self._told = (self.received, settled)
        return Ack(self.received, settled)

    @property
    def ack_due(self) -> float | None:
        """When an acknowledgement is due."""
        return self._ack_due

    def begin(self, *, told: bool = False) -> None:
        """A new session: the numbers begin anew. What waits here still waits.

        `told`: the peer knows the credit, and counts what it was given beyond what was taken.
        """
        given = self.given
        self.given = None
        if told and given is not None:
            self.given = given.beyond(self.received, self.received_bytes)
        self.before += self.received
        self.received = self.received_bytes = 0
        self._told = (0, 0)
        self._unsettled.clear()
        self._ack_due = None
