"""One connection between two exchanges.

Law: what a stream over TCP does. Frames arrive in order, each after its latency. A partition holds them until it is
over. When the connection is lost, of the frames under way some first ones still arrive, in each direction as many as
chance will have it, and each end hears of it, sooner or later.

A bad transport does more, to frames that stand it (`STANDS`):

* A Batch may be lost, doubled or overtaken: its number tells. At worst the connection breaks and the session goes on.
* An Ack may be: it is cumulative. So may a Pong and a Ping: they are asked again.
* A Credit may be doubled or overtaken, never lost: nobody says it again, and the sender would wait for ever.
* Sooner or later a transport that loses frames loses the connection: what is lost last has nothing behind it to tell.
* Every other frame is said once, on the promise that it arrives in order, or dies with the stream. Whoever loses one
  must end the stream; that is the loss of a connection.
"""

from collections import deque
from typing import TYPE_CHECKING

from .world import World

if TYPE_CHECKING:
    from .line import Line
    from .node import Node

BATCH, ACK, CREDIT, PING, PONG = 3, 4, 5, 9, 10  # the numbers of their fields in Frame: the first byte tells
STANDS = {BATCH: "lose double overtake", ACK: "lose double overtake", CREDIT: "double overtake"}
STANDS |= {PING: "lose double overtake", PONG: "lose double overtake"}
_END = b""  # in place of a frame: the other side has ended the connection


class Wire:
    """A connection: end 0 has dialled, end 1 was dialled."""

    def __init__(self, world: World, dialled: "Line", host: "Node") -> None:
        self.world = world
        self.nodes = (dialled.node, host)
        self.lines: list[Line | None] = [dialled, None]  # who was dialled takes note a moment later
        self.pair = frozenset((dialled.node.id, host.id))
        self._way: tuple[deque[tuple[float, bytes]], ...] = (deque(), deque())  # from end 0, from end 1
        self._moving = [False, False]
        self._blocked = [False, False]
        self._open = [True, True]  # this end has not let go
        self._lost = False
        self.has_lost = False  # a frame
        world.wires[self] = None
        self._from = world.now + world.latency()
        world.at(self._from, host, self._accepted)

    def _accepted(self) -> None:
        if not self._lost:
            self.lines[1] = self.nodes[1].accept(self)

    def full(self, end: int) -> bool:
        """Whoever writes at this end has to wait; he is woken."""
        self._blocked[end] = not self._lost and len(self._way[end]) >= self.world.options.window
        return self._blocked[end]

    def put(self, end: int, data: bytes) -> None:
        """Write a frame at this end."""
        if self._lost:
            return
        world, way = self.world, self._way[end]
        copies = 1
        stands = STANDS.get(data[0] >> 3, "") if world.misbehaviour and world.dice.random() < world.misbehaviour else ""
        if stands:
            fate = world.dice.choice(stands.split())
            if world.talks:
                world.say(f"{self.nodes[end]}: the transport does this to a frame: {fate} {data[0] >> 3}")
            if fate == "overtake" and way and "overtake" in STANDS.get((way[-1][1] or b"\0")[0] >> 3, ""):
                when, before = way.pop()
                way.append((when, data))
                data = before
            copies = {"lose": 0, "double": 2}.get(fate, 1)
            self.has_lost = self.has_lost or not copies
        for _ in range(copies):
            self._append(end, data)

    def _append(self, end: int, data: bytes) -> None:
        way = self._way[end]
        when = max(self._from, self.world.now + self.world.latency())
        way.append((max(when, way[-1][0]) if way else when, data))
        self._move(end)

    def _move(self, end: int) -> None:
        """Let the next frame from this end arrive in its time."""
        if not self._moving[end] and self._way[end]:
            self._moving[end] = True
            self.world.at(self._way[end][0][0], self.nodes[1 - end], lambda: self._arrive(end))

    def _arrive(self, end: int) -> None:
        self._moving[end] = False
        way, world = self._way[end], self.world
        if not way or not world.passes(*self.pair):
            return
        _, data = way.popleft()
        reader, writer = self.lines[1 - end], self.lines[end]
        if self._blocked[end] and len(way) * 2 <= world.options.window:
            self._blocked[end] = False
            if writer is not None:
                writer.wake()
        if data is _END:
            self._hears_of_the_end(1 - end, "")
        elif reader is not None:
            world.note(data)
            reader.receive(data, self)
        self._move(end)

    def healed(self) -> None:
        """What a partition has held up goes on."""
        for end in (0, 1):
            self._move(end)

    # ------------------------------------------------------------------------------------------------- ends

    def close(self, end: int) -> None:
        """This end lets go, after what it has written."""
        if self._open[end]:
            self._open[end] = False
            if not self._lost:
                self._append(end, _END)
            if not any(self._open):
                self.world.wires.pop(self, None)

    def lose(self) -> None:
        """The connection is lost: of what is under way some still arrives, and each end hears of it, in its time."""
        dice = self.world.dice
        self._lost = True
        self.world.wires.pop(self, None)
        for end in (0, 1):
            way = self._way[end]
            for _ in range(dice.randrange(len(way) + 1)):
                way.pop()
            hears = max([when for when, _ in way], default=self.world.now) + dice.choice((0.0, 0.0, 0.01, 0.5, 5.0))
            self.world.at(hears, self.nodes[1 - end], lambda end=end: self._resets(1 - end))

    def _resets(self, end: int) -> None:
        if self.world.passes(*self.pair):
            self._way[1 - end].clear()
            self._hears_of_the_end(end, "the connection was reset")
        else:
            self.world.after(0.2, self.nodes[end], lambda: self._resets(end))

    def _hears_of_the_end(self, end: int, reason: str) -> None:
        line = self.lines[end]
        self._open[end] = False
        if line is not None:
            line.wire_ended(self, reason)
        if not self._lost and not any(self._open):
            self.world.wires.pop(self, None)
