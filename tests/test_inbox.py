"""The incoming half of a session: what is taken, and how much more is welcome."""

import pytest

from exchange_grpc.errors import InvalidMessage, LimitExceeded
from exchange_grpc.frames import Ack, Credit
from exchange_grpc.inbox import Gap, Inbox
from exchange_grpc.limits import ACK_MESSAGES, ACK_SECONDS, Limits

NOW = 100.0
MIB = 2**20
LIMITS = Limits(credit_messages=8, credit_bytes=8 * MIB)


def inbox(*, acknowledges: bool = True) -> Inbox:
    into = Inbox(LIMITS)
    into.acknowledges = acknowledges
    return into


def took(into: Inbox, names: str, seq: int = 0, size: int = 10, now: float = NOW) -> tuple[int, str]:
    first, new = into.take(seq, list(names), size, now)
    return first, "".join(new)


def settle(into: Inbox, *numbers: int) -> None:
    for number in numbers:
        into.settle(number)


# ---------------------------------------------------------------------------------------------------- numbers


def test_each_is_taken_once_in_order() -> None:
    into = inbox()
    assert took(into, "abc", 1) == (1, "abc")
    assert took(into, "bcde", 2) == (4, "de")
    assert took(into, "ab", 1) == (6, "")
    assert took(into, "e", 5) == (6, "")
    assert took(into, "f", 6) == (6, "f")
    assert into.received == 6
    assert into.received_bytes == 30, "not of a frame that came twice: its sender counts it once"


def test_nobody_is_told_before_he_has_asked_for_it() -> None:
    into = Inbox(LIMITS)
    took(into, "a")
    assert into.ack_due is None


def test_who_does_not_count_is_counted() -> None:
    into = inbox()
    assert took(into, "ab") == (1, "ab")
    assert took(into, "c") == (3, "c")
    assert took(into, "d", 4) == (4, "d")


def test_a_gap_is_told_and_nothing_is_taken() -> None:
    into = inbox()
    took(into, "a", 1)
    with pytest.raises(Gap, match="message 3 came after 1"):
        took(into, "c", 3)
    assert (into.received, into.received_bytes) == (1, 10)


def test_an_empty_batch_takes_no_number() -> None:
    into = inbox()
    assert took(into, "", 1) == (1, "")
    assert into.received == 0
    assert into.ack_due is None


def test_the_numbers_end_somewhere() -> None:
    into = inbox()
    into.received = 2**64 - 3
    assert took(into, "ab", 2**64 - 2) == (2**64 - 2, "ab")
    with pytest.raises(InvalidMessage, match="ran over"):
        took(into, "c", 2**64 - 1 + 1)


# ------------------------------------------------------------------------------------------------------- Ack


def test_an_acknowledgement_waits_a_moment_for_more() -> None:
    into = inbox()
    assert into.ack_due is None
    took(into, "a")
    took(into, "b", now=NOW + 0.05)
    assert into.ack_due == NOW + ACK_SECONDS
    assert into.ack_to_tell(NOW + ACK_SECONDS - 0.001) is None
    settle(into, 1, 2)
    assert into.ack_to_tell(NOW + ACK_SECONDS) == Ack(2, 2)
    assert into.ack_due is None
    assert into.ack_to_tell(NOW + 10) is None, "said once"
    took(into, "", 1)
    took(into, "a", 1)
    assert into.ack_due is None, "nothing new"


def test_what_is_settled_is_told_later() -> None:
    into = inbox()
    took(into, "abcd")
    settle(into, 1, 3)
    assert into.ack_to_tell(NOW + 1) == Ack(4, 1)
    assert into.ack_due == NOW + 1 + ACK_SECONDS
    assert into.ack_to_tell(NOW + 2) is None, "nothing has changed"
    assert into.ack_due == NOW + 2 + ACK_SECONDS, "but it will"
    settle(into, 2)
    assert into.ack_to_tell(NOW + 3) == Ack(4, 3), "in order"
    settle(into, 4)
    assert into.ack_to_tell(NOW + 4) == Ack(4, 4)
    assert into.ack_due is None


def test_what_is_settled_after_its_session_is_none_of_the_next() -> None:
    into = inbox()
    took(into, "ab")
    into.begin()
    took(into, "abc")
    settle(into, 1, 2)
    assert into.ack_to_tell(NOW + 1) == Ack(3, 0)
    settle(into, 3, 4)
    assert into.ack_to_tell(NOW + 2) == Ack(3, 2)


def test_many_are_acknowledged_at_once() -> None:
    into = inbox()
    took(into, "a" * (ACK_MESSAGES - 1))
    assert into.ack_to_tell(NOW) is None
    took(into, "a")
    assert into.ack_to_tell(NOW) == Ack(ACK_MESSAGES, 0)
    took(into, "a" * (ACK_MESSAGES - 1))
    assert into.ack_to_tell(NOW) is None


def test_nobody_is_told_who_does_not_want_to_hear() -> None:
    into = inbox(acknowledges=False)
    took(into, "a" * 2 * ACK_MESSAGES)
    assert into.ack_due is None
    assert into.ack_to_tell(NOW + 10) is None


# ----------------------------------------------------------------------------------------------------- credit


def test_credit_is_what_was_taken_and_the_window() -> None:
    into = inbox()
    assert into.give() == Credit(8, 8 * MIB)
    took(into, "ab", size=100)
    assert into.credit() == Credit(10, 8 * MIB + 100)


def test_what_waits_here_is_not_welcome_twice_and_credit_never_becomes_less() -> None:
    into = inbox()
    into.give()
    took(into, "abcd", size=1_000)
    for _ in range(3):
        into.retain(300)
    assert into.credit() == Credit(9, 8 * MIB + 100)
    into.give()
    into.retain(300)
    assert into.credit() == Credit(9, 8 * MIB + 100)
    for _ in range(20):
        into.retain(MIB)
    assert into.credit() == Credit(9, 8 * MIB + 100)
    into.begin()
    assert into.credit() == Credit(0, 0), "more waits than may"


def test_credit_is_told_when_it_has_grown_by_a_quarter() -> None:
    into = inbox()
    assert into.credit_to_tell() is None, "before any was given"
    into.give()
    took(into, "a")
    assert into.credit_to_tell() is None
    took(into, "b")
    assert into.credit_to_tell() == Credit(10, 8 * MIB + 20)
    assert into.credit_to_tell() is None
    took(into, "c", size=2 * MIB - 1)
    assert into.credit_to_tell() is None
    took(into, "d", size=1)
    assert into.credit_to_tell() == Credit(12, 10 * MIB + 20)


def test_whoever_can_tell_it_is_told_that_more_is_welcome() -> None:
    into, told = inbox(), []
    into.retain(1)
    into.release(1)  # nobody wants to know
    into.give()
    into.more_is_welcome = lambda: told.append(into.credit())
    took(into, "abcd")
    for _ in range(4):
        into.retain(10)
    into.release(10)
    assert told == [], "not for each"
    into.release(10)
    assert told == [Credit(10, 8 * MIB)]


def test_more_than_was_welcome() -> None:
    into = inbox()
    into.check_credit(1_000)
    into.give()
    took(into, "a" * 8, size=8 * MIB)
    into.check_credit(8)
    with pytest.raises(LimitExceeded, match=f"8 messages, {8 * MIB} bytes"):
        into.check_credit(9)
    took(into, "b", size=1)
    with pytest.raises(LimitExceeded):
        into.check_credit(8)


@pytest.mark.parametrize(("size", "most"), [(1, 8), (4 * MIB, 2)])
def test_a_peer_without_credit_is_read_no_further_when_too_much_waits(size: int, most: int) -> None:
    into = inbox()
    for _ in range(most):
        assert not into.crowded
        into.retain(size)
    assert into.crowded
    into.release(size)
    assert not into.crowded


# ----------------------------------------------------------------------------------------------- a new session


def test_a_new_session_counts_anew_and_what_waits_still_waits() -> None:
    into = inbox()
    into.give()
    took(into, "abcd", size=400)
    into.retain(100)
    into.begin()
    assert (into.received, into.received_bytes, into.given, into.ack_due) == (0, 0, None, None)
    assert into.give() == Credit(7, 8 * MIB - 100)
    took(into, "a" * (ACK_MESSAGES - 1))
    assert into.ack_to_tell(NOW) is None


def test_what_was_told_of_a_new_session_holds() -> None:
    into = inbox()
    took(into, "abcd", size=400)
    into.begin(told=True)
    assert into.given is None
    into.give()
    took(into, "abcd", size=400)
    into.retain(100)
    into.begin(told=True)
    assert into.given == Credit(4, 8 * MIB - 400)
    assert into.give() == Credit(7, 8 * MIB - 100)
    took(into, "a" * 9, size=10 * MIB)
    into.begin(told=True)
    assert into.given == Credit(0, 0), "cancels may have come without credit"
