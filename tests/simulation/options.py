"""What a seed stands for: the shape of the mesh, the limits, what is done and what breaks."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import combinations, pairwise
from typing import Any

from exchange_grpc import discovery, inbox, outbox, routing
from exchange_grpc.limits import CREDIT_BYTES, CREDIT_MESSAGES, Limits
from exchange_grpc.outbox import POLICIES, WAIT
from exchange_grpc.peer import PING, RESUME

SHAPES = ("star", "chain", "ring", "random", "tree", "hubs", "long")
BALANCES = ("round_robin", "least_pending", "random", "sticky:key")
# Latencies in seconds, from and to, and how many frames a wire takes before it lets the writer wait. A question
# must find its answer within QUESTION_SECONDS, all along the mesh.
SPEEDS = (((0.0, 0.0), 1), ((0.001, 0.002), 2), ((0.001, 0.01), 8), ((0.005, 0.03), 64))
CROWDED = 8  # messages of credit: with so few, circles of links wait for each other until what waits has expired
LONG = 19  # exchanges in a row: more than a message may visit


@dataclass(frozen=True, slots=True)
class Options:
    """One world. `links` are who dials whom; both ways where the two dial each other."""

    seed: int
    exchanges: int
    shape: str
    links: tuple[tuple[str, str], ...]
    relays: frozenset[str]
    features: tuple[tuple[str, tuple[str, ...]], ...]  # of those that lack some
    limits: Limits
    policy: str
    balance: str
    latency: tuple[float, float]
    window: int
    small: int  # how much waits, is kept and leaves at once: the limits of a link, scaled down to what a seed can reach
    slow: float  # the share of exchanges whose handlers take their time
    misbehaviour: float  # the share of frames that the transport loses, doubles or delays
    messages: int
    faults: int
    seconds: float  # for which all that happens
    hush: float  # seconds of quiet before the end

    @property
    def ids(self) -> tuple[str, ...]:
        """The exchanges."""
        return tuple(f"n{n}" for n in range(self.exchanges))

    @property
    def simple(self) -> frozenset[str]:
        """The exchanges that cannot resume."""
        return frozenset(id for id, features in self.features if RESUME not in features)

    def __str__(self) -> str:
        return "\n".join(f"{field.name:>13}  {_shown(getattr(self, field.name))}" for field in fields(self))


def _shown(value: Any) -> str:
    return " ".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def draw(seed: int, dice: random.Random, **given: Any) -> Options:
    """What the seed stands for; `given` are options that are set by hand."""
    shape = given.pop("shape", None) or dice.choices(SHAPES, (3, 3, 3, 5, 3, 3, 1))[0]
    size = given.pop("exchanges", None) or (LONG if shape == "long" else dice.choice((5, 5, 5, 5, 6, 6, 7)))
    ids = [f"n{n}" for n in range(size)]
    pairs = _pairs(shape, ids, dice)
    links: list[tuple[str, str]] = []
    for a, b in pairs:
        way = dice.random()
        links += [(a, b)] if way < 0.45 else [(b, a)] if way < 0.9 else [(a, b), (b, a)]
    degree = {id: sum(id in pair for pair in pairs) for id in ids}
    relays = frozenset(id for id in ids if shape == "long" or degree[id] > 1 or dice.random() < 0.4)
    latency, window = dice.choice(SPEEDS[: 3 if shape == "long" else 4])
    limits = _limits(dice)
    options: dict[str, Any] = {
        "seed": seed,
        "exchanges": size,
        "shape": shape,
        "links": tuple(links),
        "relays": relays,
        "features": tuple((id, dice.choice(((PING,), (RESUME,), ()))) for id in ids if dice.random() < 0.08),
        "limits": limits,
        "policy": dice.choice((WAIT, WAIT, *POLICIES)),
        "balance": dice.choice(BALANCES),
        "latency": latency,
        "window": window,
        "small": dice.choice((4, 16, 64, 1_024)),
        "slow": dice.choice((0.0, 0.2, 0.6)),
        "misbehaviour": dice.choice((0.0, 0.0, 0.01, 0.05)),
        "messages": 200,
        "faults": dice.randrange(10, 16),
        "seconds": dice.choice((3.0, 6.0, 12.0)),
        "hush": 65.0 if dice.random() < 0.05 else 0.0,
    }
    return Options(**options | given)


def _pairs(shape: str, ids: list[str], dice: random.Random) -> list[tuple[str, str]]:
    """Who is linked to whom; everybody is within reach."""
    if shape == "star":
        return [(ids[0], id) for id in ids[1:]]
    if shape in ("chain", "long"):
        return list(pairwise(ids))
    if shape == "ring":
        return [*pairwise(ids), (ids[0], ids[-1])]
    if shape == "tree":
        return [(ids[(n - 1) // 2], ids[n]) for n in range(1, len(ids))]
    if shape == "hubs":  # three that know each other, and leaves with one or two of them
        hubs, leaves = ids[:3], ids[3:]
        return [
            *combinations(hubs, 2),
            *((hub, leaf) for leaf in leaves for hub in dice.sample(hubs, dice.choice((1, 2)))),
        ]
    spanning = [(ids[dice.randrange(n)], ids[n]) for n in range(1, len(ids))]
    more = [pair for pair in combinations(ids, 2) if pair not in spanning] if len(ids) < 50 else []
    return spanning + dice.sample(more, min(len(more), dice.randrange(len(ids))))


def _limits(dice: random.Random) -> Limits:
    credit = dice.choice((1, 2, 3, 8, 32, CREDIT_MESSAGES))
    heartbeat = (
        dice.choice((1.0, 2.0, 5.0, 5.0, 5.0)) if credit > CROWDED else 5.0
    )  # the longer a seed takes, the fewer
    limits = Limits(
        handshake_seconds=dice.choice((0.5, 2.0)),
        heartbeat_seconds=heartbeat,
        silence_seconds=heartbeat * (2 if heartbeat > 2 else dice.choice((2, 3))),
        away_seconds=dice.choice((0.2, 1.0, 4.0)),
        resume_seconds=dice.choice((1.0, 3.0, 6.0)),
        reconnect_min_seconds=0.1,
        reconnect_max_seconds=dice.choice((0.2, 1.0)),
        credit_messages=credit,
    )
    # Below what Limits allows, for the largest message must fit; ours have at most 2 KB.
    object.__setattr__(limits, "credit_bytes", dice.choice((4_096, 16_384, CREDIT_BYTES)))
    return limits


@contextmanager
def scaled(small: int) -> Iterator[None]:
    """The bounds of a link as small as a seed can reach them. Each module has its own name for each."""
    places: list[tuple[Any, str, int]] = [
        (outbox, "BATCH_MESSAGES", small),
        (outbox, "UNACKED_MESSAGES", 2 * small),
        (outbox, "LINK_HIGH_WATER", small),
        (outbox, "LINK_QUEUE_MESSAGES", 8 * small),
        (inbox, "ACK_MESSAGES", max(1, small // 4)),
        (discovery, "HELD_MESSAGES", 4 * small),
        (discovery, "OPEN_QUESTIONS", 4 * small),
        (routing, "OPEN_REQUESTS", 16 * small),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in places]
    try:
        for module, name, value in places:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
