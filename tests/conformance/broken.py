"""Clients broken on purpose: the process under test of Python with one fault in it, each named by its function.

`python tests/conformance/broken.py never_acknowledges`. The suite is worth what it finds: see test_broken.py.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import python_client  # type: ignore[import-not-found]  # beside this file, which is a program

import exchange_grpc.exchange
from exchange_grpc import Kind, Message
from exchange_grpc.errors import HandlerFailed
from exchange_grpc.frames import Ping
from exchange_grpc.handlers import Handlers
from exchange_grpc.inbox import Inbox
from exchange_grpc.message import Context
from exchange_grpc.outbox import Outbox
from exchange_grpc.peer import Session
from exchange_grpc.routing import Router


def instead(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Put `function(original, *arguments)` in the place of a method."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: function(original, *given, **named))


def never_acknowledges() -> None:
    instead(Inbox, "ack_to_tell", lambda original, inbox, now: None)


def ignores_credit() -> None:
    instead(Outbox, "_may_leave", lambda original, outbox, size: True)


def sends_again_what_was_taken() -> None:
    def resumed(original: Any, outbox: Outbox, received: int, received_bytes: int) -> None:
        original(outbox, outbox._sent - outbox.unacknowledged, received_bytes)

    instead(Outbox, "resumed", resumed)


def takes_twice() -> None:
    def take(original: Any, inbox: Inbox, seq: int, messages: list[Any], size: int, now: float) -> Any:
        return original(inbox, inbox.received + 1, messages, size, now)

    instead(Inbox, "take", take)


def takes_a_gap() -> None:
    def take(original: Any, inbox: Inbox, seq: int, messages: list[Any], size: int, now: float) -> Any:
        inbox.received = max(inbox.received, seq - 1)
        return original(inbox, seq, messages, size, now)

    instead(Inbox, "take", take)


def forgets_the_token() -> None:
    instead(Session, "_introduction", lambda original, session: replace(original(session), session="", token=b""))


def never_says_pong() -> None:
    def understood(original: Any, session: Session, frame: Any, *rest: Any) -> Any:
        return [] if isinstance(frame, Ping) else original(session, frame, *rest)

    instead(Session, "_understood", understood)


def guards_against_no_loop() -> None:
    def admit(original: Any, router: Router, message: Message, link: str, now: float) -> bool:
        message.way = tuple(exchange for exchange in message.way if exchange != router.me)
        return bool(original(router, message, link, now))

    instead(Router, "_admit", admit)


def replies_by_another_link() -> None:
    def transmit(original: Any, app: Any, value: tuple[str, Message], *rest: Any) -> None:
        to, message = value
        others = [peer for peer in app._links.by_peer if peer != to]
        original(app, (others[0] if others and message.kind is Kind.REPLY else to, message), *rest)

    instead(exchange_grpc.exchange.Exchange, "_transmit", transmit)


def leaves_causes_out() -> None:
    Context.of = staticmethod(lambda message: Context())  # type: ignore[method-assign]


def tells_what_was_raised() -> None:
    def failed(text: str, **about: Any) -> HandlerFailed:
        return HandlerFailed(f"{text}: {sys.exc_info()[1]}", **about)

    sys.modules["exchange_grpc.handlers"].HandlerFailed = failed  # type: ignore[attr-defined]


def ignores_cancel() -> None:
    instead(Handlers, "withdraw", lambda original, handlers, request: None)


# The case that names the fault.
FAULTS: dict[Callable[[], None], str] = {
    never_acknowledges: "session/acknowledges",
    ignores_credit: "session/keeps-to-credit-in-messages",
    sends_again_what_was_taken: "session/what-was-not-taken-leaves-again",
    takes_twice: "session/nothing-is-taken-twice",
    takes_a_gap: "session/a-gap-breaks-the-stream-once",
    forgets_the_token: "session/resumes",
    never_says_pong: "session/pong",
    guards_against_no_loop: "routing/a-loop",
    replies_by_another_link: "routing/answers-by-the-way-asked",
    leaves_causes_out: "trace/what-a-handler-sends",
    tells_what_was_raised: "requests/a-handler-that-fails",
    ignores_cancel: "requests/is-cancelled",
}

if __name__ == "__main__":
    next(fault for fault in FAULTS if fault.__name__ == sys.argv[1])()
    asyncio.run(python_client.Client().run())
