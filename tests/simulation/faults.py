"""What befalls the exchanges and what lies between them: each fault begins, and is over after a while."""

from collections.abc import Callable

from exchange_grpc.errors import Code

from .node import Node
from .wire import Wire
from .world import World


class Faults:
    """Draws the faults of a seed. `furnish` makes a new life of an exchange what it is to be."""

    def __init__(self, world: World, furnish: Callable[[Node], None]) -> None:
        self._world = world
        self._dice = world.dice
        self._furnish = furnish
        self._over = False
        self._kinds = (
            self._lose, self._lose, self._lose, self._partition, self._isolate, self._freeze,
            self._crash, self._stop, self._part, self._dial_across,
        )  # fmt: skip

    def plan(self, seconds: float) -> None:
        """Let all faults of the seed begin within so many seconds."""
        for _ in range(self._world.options.faults):
            self._world.after(self._dice.random() * seconds, None, self._dice.choice(self._kinds))

    def over(self) -> None:
        """All are over: what was parted is together, what was frozen goes on, and who has crashed is there again."""
        world = self._world
        self._over = True
        world.misbehaviour = 0.0
        for wire in [wire for wire in world.wires if wire.has_lost]:
            wire.lose()
        for pair in sorted(map(sorted, world.severed)):
            self._heal(*pair)
        for node in list(world.nodes.values()):
            self._thaw(node)
            if not node.alive:
                self.start(node.id)

    def start(self, id: str) -> Node:
        """Begin a life of an exchange."""
        world = self._world
        node = world.nodes[id] = Node(world, id)
        world.say(f"{node}: starts")
        self._furnish(node)
        for a, b in world.options.links:
            if a == id:
                retry = self._dice.choice((0.0, 2.0, 1e9, 1e9, 1e9, 1e9))
                world.after(self._dice.choice((0.0, 0.0, 0.1)), node, lambda b=b, retry=retry: node.dial(b, retry))
        return node

    def _soon(self) -> float:
        return 0.05 if self._over else self._dice.choice((0.05, 0.3, 1.0, 3.0, 8.0))

    def _somebody(self) -> Node | None:
        living = [node for node in self._world.living() if not node.frozen]
        return self._dice.choice(living) if living else None

    # ----------------------------------------------------------------------------------------------- of wires

    def _lose(self) -> None:
        if self._world.wires:
            wire = self._dice.choice(list(self._world.wires))
            self._world.say(f"the connection of {' and '.join(sorted(wire.pair))} is lost")
            wire.lose()

    def _partition(self) -> None:
        a, b = self._dice.choice(self._world.options.links)
        self._sever(a, b, self._soon())

    def _isolate(self) -> None:
        alone, seconds = self._dice.choice(self._world.options.ids), self._soon()
        for a, b in self._world.options.links:
            if alone in (a, b):
                self._sever(a, b, seconds)

    def _sever(self, a: str, b: str, seconds: float) -> None:
        self._world.say(f"{a} and {b} are parted")
        self._world.severed.add(frozenset((a, b)))
        self._world.after(seconds, None, lambda: self._heal(a, b))

    def _heal(self, a: str, b: str) -> None:
        pair = frozenset((a, b))
        if pair not in self._world.severed:
            return
        self._world.say(f"{a} and {b} are together")
        self._world.severed.discard(pair)
        for wire in list(self._world.wires):
            if wire.pair == pair:
                wire.healed()

    # ------------------------------------------------------------------------------------------- of exchanges

    def _freeze(self) -> None:
        node = self._somebody()
        if node is not None:
            self._world.say(f"{node}: freezes")
            node.frozen = True
            self._world.after(self._soon(), None, lambda: self._thaw(node))

    def _thaw(self, node: Node) -> None:
        if not node.frozen:
            return
        self._world.say(f"{node}: goes on")
        node.frozen = False
        backlog, node.backlog = node.backlog, []
        for call in backlog:
            self._world.at(self._world.now, node, call)

    def _crash(self) -> None:
        node = self._somebody()
        if node is not None:
            self._end_of(node)
            self._world.after(self._soon(), None, lambda: self._again(node))

    def _end_of(self, node: Node) -> None:
        self._world.say(f"{node}: is gone")
        node.alive = False
        self._world.law.crashed(node)
        for wire in self._wires_of(node):
            wire.lose()

    def _again(self, node: Node) -> None:
        if self._world.nodes[node.id] is node and not node.alive:
            self.start(node.id)

    def _wires_of(self, node: Node) -> list[Wire]:
        return [wire for wire in self._world.wires if node in wire.nodes]

    def _stop(self) -> None:
        """A planned stop: goodbye to all, and a new life after a while."""
        node = self._somebody()
        if node is None:
            return
        self._world.say(f"{node}: stops")
        node.stop()

        def gone() -> None:
            if node.alive:
                self._end_of(node)
                self._world.after(self._soon(), None, lambda: self._again(node))

        self._world.after(2.5, None, gone)

    def _part(self) -> None:
        node = self._somebody()
        if node is not None and node.links.by_peer:
            peer = self._dice.choice(list(node.links.by_peer))
            self._world.say(f"{node}: parts from {peer}")
            node.part(peer, code=self._dice.choice((Code.OK, Code.UNAVAILABLE)), stay_away=self._dice.random() < 0.3)

    def _dial_across(self) -> None:
        """Somebody dials whom he is linked to already, or whoever dials him."""
        a, b = self._dice.choice(self._world.options.links)
        if self._dice.random() < 0.5:
            a, b = b, a
        node = self._world.nodes[a]
        if node.alive and not node.frozen:
            self._world.say(f"{node}: dials {b} as well")
            node.dial_once(b)
