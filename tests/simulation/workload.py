"""What the exchanges do: the messages of a seed, and names and subscriptions that come and go."""

from exchange_grpc.message import Kind

from .invariants import MALFORMED
from .node import Node
from .world import World

NAMES = ("a", "b.c", "b.d", "e.f.g", "h")
PATTERNS = ("a", "b.*", "**", "e.**", "h", "*.d")
_PAYLOADS = (b"1", b'"%s"' % (b"x" * 30), b'"%s"' % (b"y" * 1_500))


class Workload:
    """Draws what is done, and does it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._dice = world.dice

    def furnish(self, node: Node) -> None:
        """What an exchange handles and wants as it starts."""
        for name in self._dice.sample(NAMES, self._dice.randrange(3)):
            node.handle(name)
        for pattern in self._dice.sample(PATTERNS, self._dice.choice((0, 0, 1, 2))):
            node.subscribe(pattern)

    def plan(self, seconds: float) -> None:
        """Let all messages of the seed be sent within so many seconds, some of them many at once."""
        world, left = self._world, self._world.options.messages
        while left > 0:
            burst = min(left, self._dice.choice((1, 1, 1, 2, 5, 20)))
            left -= burst
            world.after(self._dice.random() * seconds, None, lambda burst=burst: self._burst(burst))
        for _ in range(world.options.messages // 8):
            world.after(self._dice.random() * seconds, None, self._change)

    def _somebody(self) -> Node | None:
        living = [node for node in self._world.living() if not node.frozen]
        return self._dice.choice(living) if living else None

    def _burst(self, count: int) -> None:
        node = self._somebody()
        if node is None:
            return
        if count < 5:
            for _ in range(count):
                self._act(node)
            return
        kind, name = self._dice.choice((Kind.SEND, Kind.SEND, Kind.REQUEST, Kind.PUBLISH)), self._dice.choice(NAMES)
        for _ in range(count):
            self._emit(node, kind, name)

    def _act(self, node: Node) -> None:
        dice, chance = self._dice, self._dice.random()
        if chance < 0.30:
            self._emit(node, Kind.SEND, dice.choice(NAMES))
        elif chance < 0.60:
            self._emit(node, Kind.REQUEST, dice.choice(NAMES))
        elif chance < 0.70:
            node.emit(Kind.REQUEST, dice.choice(NAMES), many=True, seconds=self._seconds(), to=self._addressee(0.2))
        elif chance < 0.85:
            self._emit(node, Kind.PUBLISH, dice.choice(NAMES))
        elif chance < 0.90:
            node.emit(Kind.BROADCAST, dice.choice(NAMES), seconds=self._seconds())
        elif chance < 0.93:
            self._to_one_link(node)
        elif chance < 0.96:
            self._forge(node)
        else:
            self._cancel(node)

    def _emit(self, node: Node, kind: Kind, name: str) -> None:
        dice = self._dice
        to = self._addressee(0.15) if kind is not Kind.PUBLISH else ""
        headers = {"key": dice.choice("pqr")} if dice.random() < 0.2 else {}
        message = node.emit(kind, name, to=to, seconds=self._seconds(), headers=headers, payload=dice.choice(_PAYLOADS))
        if kind is Kind.REQUEST and dice.random() < 0.15:
            later = dice.choice((0.0, 0.02, 0.5))
            self._world.after(later, node, lambda: node.cancel(message))

    def _seconds(self) -> float:
        return self._dice.choice((0.05, 0.5, 2.0, 4.0, 4.0, 4.0))

    def _addressee(self, often: float) -> str:
        return self._dice.choice(self._world.options.ids) if self._dice.random() < often else ""

    def _to_one_link(self, node: Node) -> None:
        if node.router.links:
            name = self._dice.choice((*NAMES, MALFORMED))
            via = self._dice.choice(list(node.router.links))
            what = {"reply_to": "nobody"} if name == MALFORMED else {}  # no message id: the peer refuses it
            kind = self._dice.choice((Kind.SEND, Kind.REQUEST))
            node.emit(kind, name, via=via, seconds=self._seconds(), **what)

    def _cancel(self, node: Node) -> None:
        mine = [entry for entry in node.router._open.values() if entry.link is None and not entry.many]
        if mine:
            node.cancel(self._world.law.requests[self._dice.choice(mine).id])

    def _forge(self, node: Node) -> None:
        """A liar answers what a peer has asked of somebody else."""
        victims = [
            (victim, entry.id)
            for victim in self._world.living()
            if node.id in victim.router.links and victim.id in node.router.links
            for entry in victim.router._open.values()
            if node.id not in entry.holders()
        ]
        if victims:
            victim, request = self._dice.choice(victims)
            node.forge(victim.id, request)

    def _change(self) -> None:
        """A name or a subscription comes or goes."""
        node, dice = self._somebody(), self._dice
        if node is None:
            return
        chance = dice.random()
        if chance < 0.6:
            name = dice.choice(NAMES)
            node.handle(name, name not in node.handles)
        elif chance < 0.95:
            pattern = dice.choice(PATTERNS)
            node.subscribe(pattern, pattern not in node.router.subscriptions)
        else:
            node.start_relaying()
