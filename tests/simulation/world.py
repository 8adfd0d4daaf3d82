"""Time, chance, the exchanges, and what lies between them.

Law: nothing happens but events, in the order of their times, and of their making where those are equal. An event
belongs to an exchange: while that is frozen it waits, and when that has crashed it is forgotten.
"""

import heapq
import random
import struct
from collections import Counter, deque
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING

from .options import Options

if TYPE_CHECKING:
    from .invariants import Law
    from .node import Node
    from .wire import Wire

WALL = 1_700_000_000.0  # what the clock adds up to the time of day
DIAL_SECONDS = 2.0  # an attempt that nobody answers


class World:
    """All there is. `say` is told what happens, for people."""

    def __init__(
        self, options: Options, dice: random.Random, law: "Law", say: Callable[[str], None] | None = None
    ) -> None:
        self.options = options
        self.dice = dice
        self.law = law
        self.now = 1_000.0
        self.nodes: dict[str, Node] = {}
        self.wires: dict[Wire, None] = {}
        self.severed: set[frozenset[str]] = set()
        self.misbehaviour = 0.0
        self.transitions: Counter[str] = Counter()
        self.events = 0
        self._say = say
        self._heap: list[tuple[float, int, Node | None, Callable[[], None]]] = []
        self._soon: deque[tuple[Node, Callable[[], None]]] = deque()
        self._made = 0
        self._history = blake2b(digest_size=16)
        law.world = self

    # ---------------------------------------------------------------------------------------------- history

    @property
    def history(self) -> str:
        """All that has happened, as one number."""
        return self._history.copy().hexdigest()

    def note(self, what: bytes) -> None:
        """Something happened now."""
        self._history.update(struct.pack("<d", self.now))
        self._history.update(what)

    def say(self, text: str) -> None:
        """Something happened now that is worth a line."""
        self.note(text.encode())
        if self._say is not None:
            self._say(f"{self.now - 1_000:9.4f}  {text}")

    @property
    def talks(self) -> bool:
        """Somebody reads what is said."""
        return self._say is not None

    # ------------------------------------------------------------------------------------------------- time

    def at(self, when: float, node: "Node | None", call: Callable[[], None]) -> None:
        """Let this happen then, to this exchange."""
        self._made += 1
        heapq.heappush(self._heap, (when, self._made, node, call))

    def after(self, seconds: float, node: "Node | None", call: Callable[[], None]) -> None:
        """Let this happen in so many seconds."""
        self.at(self.now + seconds, node, call)

    def run(self, seconds: float) -> None:
        """Let so much time pass."""
        until = self.now + seconds
        heap, soon = self._heap, self._soon
        while True:
            while soon:
                self._at_once(*soon.popleft())
            if not heap or heap[0][0] > until:
                break
            when, _, node, call = heapq.heappop(heap)
            self.now = max(self.now, when)
            if node is not None:
                if not node.alive:
                    continue
                if node.frozen:
                    node.backlog.append(call)
                    continue
            self.events += 1
            call()
        self.now = until

    def _at_once(self, node: "Node", call: Callable[[], None]) -> None:
        if node.frozen:
            node.backlog.append(call)
        elif node.alive:
            self.events += 1
            call()

    def soon(self, node: "Node", call: Callable[[], None]) -> None:
        """Let this happen as soon as what happens now is over."""
        self._soon.append((node, call))

    # ----------------------------------------------------------------------------------- what lies between

    def passes(self, a: str, b: str) -> bool:
        """Whether anything gets from one to the other."""
        return frozenset((a, b)) not in self.severed

    def latency(self) -> float:
        """Of one frame."""
        low, high = self.options.latency
        return low if low == high else low + self.dice.random() * (high - low)

    def living(self) -> "list[Node]":
        """The exchanges that run."""
        return [node for node in self.nodes.values() if node.alive]
