"""Bugs that the simulation must find: each a small change of one method of the shipped code.

Were one of them found by none of the seeds, the law of `invariants.py` would not mean what it says.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from exchange_grpc import discovery, routing
from exchange_grpc.discovery import Discovery
from exchange_grpc.frames import Ack
from exchange_grpc.inbox import Inbox
from exchange_grpc.limits import HOPS
from exchange_grpc.links import Links
from exchange_grpc.message import Message
from exchange_grpc.outbox import Outbox
from exchange_grpc.routing import Router

Plant = Callable[[pytest.MonkeyPatch], None]
T = TypeVar("T")


def dropped_ack(patch: pytest.MonkeyPatch) -> None:
    """What was taken is never acknowledged."""

    def ack_to_tell(self: Inbox, now: float) -> Ack | None:
        return None

    patch.setattr(Inbox, "ack_to_tell", ack_to_tell)


def double_delivery(patch: pytest.MonkeyPatch) -> None:
    """What comes again is taken again."""
    take = Inbox.take

    def take_again(self: Inbox, seq: int, messages: list[T], size: int, now: float) -> tuple[int, list[T]]:
        if seq:
            self.received = min(self.received, seq - 1)
        return take(self, seq, messages, size, now)

    patch.setattr(Inbox, "take", take_again)


def credit_ignored(patch: pytest.MonkeyPatch) -> None:
    """Messages leave without credit."""

    def may_leave(self: Outbox, size: int) -> bool:
        return True

    patch.setattr(Outbox, "_may_leave", may_leave)


def resend_out_of_order(patch: pytest.MonkeyPatch) -> None:
    """What leaves once more leaves from its end on."""
    resumed = Outbox.resumed

    def resumed_backwards(self: Outbox, received: int, received_bytes: int) -> None:
        resumed(self, received, received_bytes)
        self._again.reverse()

    patch.setattr(Outbox, "resumed", resumed_backwards)


def stale_route_kept(patch: pytest.MonkeyPatch) -> None:
    """What was behind a link is still expected there when the link has gone."""

    def forget_all(self: Discovery, link: str) -> None:
        pass

    patch.setattr(Discovery, "_forget_all", forget_all)


def reply_by_a_wrong_link(patch: pytest.MonkeyPatch) -> None:
    """A reply counts from whatever link it comes."""
    reply = Router._reply

    def believe(self: Router, message: Message, link: str | None, now: float) -> None:
        asked = self._open.get(message.reply_to)
        reply(self, message, link if asked is None or link is None else asked.out, now)

    patch.setattr(Router, "_reply", believe)


def loop_guard_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """A message may make one hop more than it may."""
    patch.setattr(routing, "HOPS", HOPS + 1)


def lost_interest_on_resume(patch: pytest.MonkeyPatch) -> None:
    """What has changed between Hello and Welcome is never said."""

    def catch_up(self: Links[Any, Any], session: Any) -> None:
        pass

    patch.setattr(Links, "_catch_up", catch_up)


def unbounded_seen_set(patch: pytest.MonkeyPatch) -> None:
    """An id is never forgotten."""
    patch.setattr(discovery, "SEEN_SECONDS", 1e9)


def timer_not_rearmed(patch: pytest.MonkeyPatch) -> None:
    """Nobody is told when a question has waited long enough."""

    def next_deadline(self: Router) -> float | None:
        return self._deadlines.next()

    patch.setattr(Router, "next_deadline", next_deadline)


PLANTED: tuple[Plant, ...] = (
    dropped_ack,
    double_delivery,
    credit_ignored,
    resend_out_of_order,
    stale_route_kept,
    reply_by_a_wrong_link,
    loop_guard_off_by_one,
    lost_interest_on_resume,
    unbounded_seen_set,
    timer_not_rearmed,
)
