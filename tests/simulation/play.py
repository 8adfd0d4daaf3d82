"""One seed, from its beginning to its end.

First the links are made; then all happens at once, the workload and the faults; then the faults are over and the
deadlines pass, and nothing may be left; then everybody asks and publishes once more, and is answered.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from exchange_grpc.limits import HOPS, MESSAGE_SECONDS
from exchange_grpc.message import Kind

from .faults import Faults
from .invariants import Law
from .node import Node
from .options import CROWDED, Options, draw, scaled
from .workload import NAMES, Workload
from .world import World

_SPEAKERS = 8  # in a large world not everybody speaks in the end
_A_WHILE = 0.3
_SETTLE = 7.0  # seconds, beyond silence and resume: the longest deadline and the last dialling are over by then


@dataclass(frozen=True, slots=True)
class Report:
    """What a seed has come to."""

    options: Options
    history: str
    transitions: Counter[str]
    messages: int
    events: int
    seconds: float


def play(seed: int, say: Callable[[str], None] | None = None, **given: Any) -> Report:
    """Play one seed. Raises `invariants.Broken`."""
    dice = random.Random(seed)
    options = draw(seed, dice, **given)
    law = Law()
    world = World(options, dice, law, say)
    with scaled(options.small):
        _live(world)
    return Report(options, world.history, world.transitions, law.messages, world.events, world.now - 1_000)


def _live(world: World) -> None:
    options, law = world.options, world.law
    workload = Workload(world)
    faults = Faults(world, workload.furnish)
    for id in options.ids:
        faults.start(id)
    world.run(1.0)
    world.misbehaviour = options.misbehaviour
    workload.plan(options.seconds)
    faults.plan(options.seconds)
    for _ in range(10):
        world.run(options.seconds / 10)
        law.look()
    world.say("all faults are over")
    faults.over()
    limits = options.limits
    world.run(_SETTLE + limits.silence_seconds + limits.resume_seconds)
    if limits.credit_messages <= CROWDED:
        world.run(MESSAGE_SECONDS)
    world.run(options.hush)
    _once_more(world)
    world.run(5.0)
    law.at_rest()


def _once_more(world: World) -> None:
    """One after the other asks and publishes, and who can be reached is."""
    for node in world.living():
        node.patient = True
    speakers = world.living()
    for node in speakers if len(speakers) <= _SPEAKERS else world.dice.sample(speakers, _SPEAKERS):
        world.run(_A_WHILE)
        name = world.dice.choice(NAMES)
        asked = node.emit(Kind.REQUEST, name, seconds=4.0)
        published = node.emit(Kind.PUBLISH, name, seconds=4.0)
        reached = _reached(world, node)
        world.law.expect(asked, published, reached)


def _reached(world: World, node: Node) -> dict[str, int]:
    """Who can be reached from there, and the hops to each."""
    links = {id: set() for id in world.options.ids}  # type: dict[str, set[str]]
    for a, b in world.options.links:
        links[a].add(b)
        links[b].add(a)
    hops, edge = {node.id: 0}, [node.id]
    while edge:
        here = edge.pop(0)
        if here != node.id and not world.nodes[here].router.relay:
            continue
        for id in sorted(links[here]):
            if id not in hops and hops[here] < HOPS - 1:
                hops[id] = hops[here] + 1
                edge.append(id)
    return hops
