"""Which of several takes a message.

Law: sans-IO. A policy is a function from candidates and a message to one of the candidates, of which there is
at least one.
"""

from collections.abc import Callable
from hashlib import blake2b

from .message import Message

Choose = Callable[[tuple[str, ...], Message], str]

TURNS = 4_096  # sets of candidates whose turn is remembered


def policy(balance: str, *, pending: Callable[[str], int], draw: Callable[[int], int]) -> Choose:
    """`round_robin`, `least_pending`, `random` or `sticky:HEADER`, which sends equal headers the same way.

    `pending` says how many requests a candidate has not answered, `draw` goes from n to 0..n-1. Raises ValueError.
    """
    if balance == "round_robin":
        return _in_turn()
    if balance == "least_pending":
        return lambda candidates, message: min(candidates, key=pending)
    if balance == "random":
        return lambda candidates, message: candidates[draw(len(candidates))]
    sticky, _, header = balance.partition(":")
    if sticky == "sticky" and header:
        return _sticky(header)
    raise ValueError(f"balance is round_robin, least_pending, random or sticky:HEADER, not {balance!r}")


def _in_turn() -> Choose:
    """One turn for each set of candidates, not for each name."""
    turns: dict[tuple[str, ...], int] = {}

    def choose(candidates: tuple[str, ...], message: Message) -> str:
        if len(candidates) == 1:
            return candidates[0]
        if candidates not in turns and len(turns) >= TURNS:
            turns.clear()
        turn = turns.get(candidates, 0)
        turns[candidates] = (turn + 1) % len(candidates)
        return candidates[turn]

    return choose


def _sticky(header: str) -> Choose:
    """Rendezvous hashing: when a candidate goes, only what was stuck to it moves. Without the header, in turn."""
    in_turn = _in_turn()

    def choose(candidates: tuple[str, ...], message: Message) -> str:
        key = message.headers.get(header)
        if key is None:
            return in_turn(candidates, message)
        return max(candidates, key=lambda one: blake2b(f"{key}\0{one}".encode(), digest_size=8).digest())

    return choose
