"""The law of the mesh: what holds whatever breaks. `Law` watches one world and raises `Broken` at once.

On a link, in one life of its session (`Channel`):
1. Messages are taken in the order in which they were put on the link. Only a cancel may overtake.
2. None is passed over, but for one that was told: dropped by policy, expired, refused, withdrawn before it left.
3. None is taken twice. One told as never sent is never taken. At the end of that life all that was not taken was
   told, as unsent or as uncertain: what is uncertain is more than what is lost, never less. (But to a peer that
   cannot resume: of what has left to it nobody knows.)
4. No session ends for a broken rule or for having overrun credit. What waits, is kept or retained is within its bound.

End to end:
5. A send or a request is handled at most once in all of the mesh, a request to many once by each, a publication once
   by each subscriber and life. Nothing makes an exception: what is uncertain is told, and never sent again.
6. A request ends exactly once, if whoever asked lives that long, by an answer of whoever was asked.
7. A send is handled, or somebody's ledger says what became of it; also if it was with an exchange that crashed, for
   who had sent it there knows that it was not settled. (But nobody does if whoever crashes has said goodbye, or
   cannot resume, or if two that had it crash.)
8. What one exchange sends to another under one name, by one way, is handled in order, as long as nothing happens to
   any link in the meantime.
9. No message makes more than 16 hops or visits an exchange twice. A broadcast makes one.

Of routing:
10. Its tables name nobody but linked peers. Its memory of ids holds nothing for longer than it should.

When all faults are over and all deadlines have passed:
11. All links are back, and each end knows of the other what that declares.
12. Nothing is left: no open request, no question, nothing held, queued, kept or retained.
13. What is asked or published then is answered, and reaches every subscriber.
"""

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from exchange_grpc import outbox, routing
from exchange_grpc.discovery import Once
from exchange_grpc.errors import Code, ExchangeError, RequestError
from exchange_grpc.limits import HOPS, SEEN_SECONDS
from exchange_grpc.message import Kind, Message, Outcome
from exchange_grpc.patterns import fits
from exchange_grpc.peer import Ended, Event, Phase, Received, Rejected

if TYPE_CHECKING:
    from .line import Line
    from .node import Node
    from .world import World

FORGED = "forged"  # of a reply to what was never asked
MALFORMED = "malformed"  # of a message that every peer refuses


class Broken(AssertionError):
    """The law was broken."""


class Channel:
    """What was put on one line, and what became of each: put, taken, told (and how)."""

    def __init__(self, law: "Law", line: "Line") -> None:
        self.line = line
        self._law = law
        self._waiting: dict[str, Message] = {}  # put, and neither taken nor told, in order
        self._fate: dict[str, str] = {}

    def put(self, message: Message) -> None:
        """It shall leave."""
        if message.id in self._waiting:
            self._law.breach(f"{message.id} was put twice on {self.line}")
        self._waiting[message.id] = message
        self._fate[message.id] = "put"
        self._law.asked(self.line, message)

    def take_back(self, message: Message) -> None:
        """It could not be put there."""
        self._waiting.pop(message.id, None)
        self._fate.pop(message.id, None)

    def leads_to(self, peer: str) -> bool:
        """Whether this peer is at the other end."""
        return self.line.session.peer is not None and self.line.session.peer.exchange == peer

    def told(self, id: str, fate: str) -> bool:
        """The sender was told what became of it; False if that was known."""
        waits = self._waiting.pop(id, None) is not None
        if waits:
            self._fate[id] = fate
        return waits

    def has_taken(self, id: str) -> bool:
        """Whether it arrived."""
        return self._fate.get(id) == "taken"

    def taken(self, message: Message) -> None:
        """It arrived."""
        fate = self._fate.get(message.id)
        if fate not in ("put", "uncertain"):
            self._law.breach(f"{message.id} on {self.line} was taken, and had been {fate or 'never put there'}")
        self._fate[message.id] = "taken"
        if fate == "put":
            if message.kind is not Kind.CANCEL:
                self._all_before(message.id)
            del self._waiting[message.id]

    def _all_before(self, id: str) -> None:
        while (first := next(iter(self._waiting))) != id:
            if not self._withdrawn(first):
                self._law.breach(f"{first} on {self.line} was passed over by {id}, and nobody was told")

    def _withdrawn(self, id: str) -> bool:
        """Whether it needs no account: it is refused, or waits to leave and so does its cancel; neither will.

        Nor does what was sent to a peer that acknowledges nothing: what has left is gone.
        """
        message = self._waiting[id]
        if message.name == MALFORMED or not self._keeps():
            self._law.excuse(id)
            del self._waiting[id]
            return True
        cancel = next(
            (other.id for other in self._waiting.values() if other.kind is Kind.CANCEL and other.reply_to == id), None
        )
        if cancel is None:
            return False
        del self._waiting[id], self._waiting[cancel]
        return True

    def _keeps(self) -> bool:
        peer = self.line.session.peer
        return peer is not None and {self.line.node.id, peer.exchange}.isdisjoint(self._law.world.options.simple)

    def left(self) -> list[str]:
        """What was put there, and nobody knows what became of it."""
        for id in list(self._waiting):
            if id in self._waiting:
                self._withdrawn(id)
        return list(self._waiting)


class Law:
    """Watches a world."""

    world: "World"

    def __init__(self) -> None:
        self.messages = 0
        self.requests: dict[str, Message] = {}
        self.sends: dict[str, Message] = {}
        self._origin: dict[str, Node] = {}
        self._ends: dict[str, int] = defaultdict(int)
        self._withdrawn: set[str] = set()
        self._handled: dict[str, set[Node]] = defaultdict(set)
        self._bad: dict[str, Outcome] = {}
        self._had: dict[Node, dict[str, tuple[Line, Line, str]]] = defaultdict(dict)  # by whom, in which session
        self._lies: dict[str, tuple[str, str]] = {}  # replies of somebody who had no such request: which, and who
        self._crashed: set[str] = set()  # they were with an exchange that has crashed
        self._excused: set[str] = set()
        self._last: dict[tuple[Any, ...], tuple[int, float]] = {}
        self._restless = 0.0  # when something has last happened to a link, or to what is offered
        self._channels: dict[Node, list[Channel]] = defaultdict(list)
        self._lines = 0
        self._expected: list[tuple[Message, Message, dict[str, int]]] = []

    def breach(self, text: str) -> None:
        """The law was broken."""
        raise Broken(f"seed {self.world.options.seed} at {self.world.now - 1_000:.4f}: {text}")

    # ------------------------------------------------------------------------------------------------- links

    def begun(self) -> int:
        """The number of the next line."""
        self._lines += 1
        return self._lines

    def channel(self, line: "Line") -> Channel:
        """A line begins."""
        channel = Channel(self, line)
        self._channels[line.node].append(channel)
        return channel

    def listen(self, node: "Node") -> None:
        """Hear what the links of an exchange tell its routing of messages."""
        delayed = node.kernel.delayed

        def tap(signal: str, fate: str) -> None:
            answer = delayed[signal]

            def tapped(value: Any, sig: Any, state: Any) -> None:
                for told in value[1]:
                    self._told(node, value[0], told if isinstance(told, str) else told.id, fate)
                answer(value, sig, state)

            delayed[signal] = tapped

        tap("uncertain", "uncertain")
        tap("reroute", "unsent")
        tap("dropped", "dropped")
        for signal in ("peer.connect", "peer.away", "peer.disconnect", "peer.interest"):
            self._note_unrest(delayed, signal)

    def _note_unrest(self, delayed: dict[str, Any], signal: str) -> None:
        answer = delayed[signal]

        def unrest(value: Any, sig: Any, state: Any) -> None:
            self._restless = self.world.now
            answer(value, sig, state)

        delayed[signal] = unrest

    def _told(self, node: "Node", link: str, id: str, fate: str) -> None:
        channels = [channel for channel in self._channels[node] if channel.leads_to(link)]
        told = any(channel.told(id, fate) for channel in channels)
        if fate == "unsent" and not told and any(channel.has_taken(id) for channel in channels):
            self.breach(f"{id} was taken by {link}, and told as unsent")

    def heard(self, line: "Line", events: list[Event], sender: "Line | None") -> None:
        """A line has understood a frame, which `sender` has written."""
        for event in events:
            if isinstance(event, Received) and sender is not None:
                had = self._had[line.node]
                for message in event.messages:
                    had[message.id] = (line, sender, sender.session._session)
                    if message.name == FORGED:
                        self._hears_a_lie(line, message)
                    sender.channel.taken(message)
            elif isinstance(event, Rejected):
                if event.error.reason not in ("INVALID_MESSAGE", "FULL"):
                    self.breach(f"{line} heard that {event.id} was refused: {event.error.message}")
            elif isinstance(event, Ended):
                overrun = "than there was credit for" in event.reason
                if overrun or event.code is Code.INVALID_ARGUMENT:
                    self.breach(f"{line}: {event.reason}")

    def _hears_a_lie(self, line: "Line", reply: Message) -> None:
        asked = line.node.router._open.get(reply.reply_to)
        liar = line.session.peer
        if asked is not None and liar is not None and liar.exchange not in asked.holders():
            self._lies[reply.id] = reply.reply_to, liar.exchange

    def asked(self, line: "Line", request: Message) -> None:
        """Whoever is asked may answer, and be it by what he said in the same breath that let the request go."""
        peer = line.session.peer
        if self._lies and peer is not None:
            about = request.id, peer.exchange
            self._lies = {reply: lie for reply, lie in self._lies.items() if lie != about}

    def wrote(self, line: "Line") -> None:
        """A line has written a frame: what it keeps is within its bounds."""
        out = line.session.out
        if out.unacknowledged > outbox.UNACKED_MESSAGES + outbox.BATCH_MESSAGES + outbox.LINK_QUEUE_MESSAGES:
            self.breach(f"{line} keeps {out.unacknowledged} messages that are not acknowledged")

    # ----------------------------------------------------------------------------------------------- messages

    def emitted(self, node: "Node", message: Message) -> None:
        """A message begins."""
        self.messages += 1
        self._origin[message.id] = node
        if message.kind is Kind.REQUEST:
            self.requests[message.id] = message
        elif message.kind is Kind.SEND:
            self.sends[message.id] = message

    def withdrawn(self, request: Message) -> None:
        """Whoever asked does not want to know any more."""
        self._withdrawn.add(request.id)

    def delivered(self, node: "Node", message: Message, link: str | None) -> None:
        """A handler has it."""
        self.world.note(message.id.encode())
        hops = message.way
        if len(hops) > HOPS or len(set(hops)) < len(hops) or hops[-1] != node.id:
            self.breach(f"{message.id} came to {node} by {' '.join(hops)}")
        kind, handled = message.kind, self._handled[message.id]
        if kind is Kind.BROADCAST and len(hops) != 2:
            self.breach(f"the broadcast {message.id} came to {node} by {' '.join(hops)}")
        alone = kind in (Kind.SEND, Kind.REQUEST) and not message.many
        if node in handled or (alone and handled):
            self.breach(f"{message.id} was handled by {sorted(n.id for n in handled)}, and by {node}")
        handled.add(node)
        if kind is Kind.SEND:
            self._in_order(node, message, hops)

    def _in_order(self, node: "Node", message: Message, hops: tuple[str, ...]) -> None:
        way = (node, message.from_, message.name, message.to, hops)
        epoch, number = map(int, message.id.split(".")[1:])
        number += epoch << 32
        last, emitted = self._last.get(way, (0, 0.0))
        self._last[way] = max((last, emitted), (number, message.timestamp))
        if number < last and self._restless + 1_700_000_000.0 < message.timestamp - 1.0:
            self.breach(f"{message.id} came to {node} by {' '.join(hops)}, after a later one")

    def resolved(self, node: "Node", request: str, reply: Message) -> None:
        """A reply came to whoever asked."""
        self.world.note(reply.id.encode())
        asked = self.requests.get(request)
        if asked is None or self._origin[request] is not node:
            self.breach(f"{node} has a reply to {request}, which it never asked")
            return
        if reply.id in self._lies:
            self.breach(f"{node} believed the forged reply of {reply.from_} to {request}")
        if asked.many and reply.lost is None and not (asked.to and reply.last):
            if self._ends[request]:
                self.breach(f"{node} has one more reply to {request}, which had ended")
            return
        self._ends[request] += 1
        if self._ends[request] > 1:
            self.breach(f"the request {request} has ended twice")

    def dispatched(self, node: "Node", message: Message, error: RequestError | None) -> None:
        """A send has left, or could not."""
        if error is not None:
            self._bad[message.id] = Outcome.UNHANDLED

    def unhandled(self, node: "Node", message: Message, error: RequestError) -> None:
        """Nobody has taken it."""
        self._bad[message.id] = Outcome.UNHANDLED

    def ended_badly(self, id: str, outcome: Outcome, reason: str) -> None:
        """A ledger says so."""
        self._bad[id] = outcome

    def failed(self, node: "Node", name: str, value: Any, error: Exception) -> None:
        """A handler of the kernel has raised: that is a mistake of the core, always."""
        if not isinstance(error, ExchangeError):
            raise error
        self.breach(f"{node}: the signal {name} failed: {error!r}")

    def expect(self, asked: Message, published: Message, reached: dict[str, int]) -> None:
        """All is well now: these will get to whoever is reached."""
        self._expected.append((asked, published, reached))

    def excuse(self, id: str) -> None:
        """Nobody can know what became of it."""
        self._excused.add(id)

    def crashed(self, node: "Node") -> None:
        """All that it had is gone with it."""
        self._restless = self.world.now
        for id, (line, sender, session) in self._had.pop(node, {}).items():
            unsettled = sender.session._session == session and not line.session.leaves
            if self.world.options.simple or not unsettled or id in self._crashed:
                self.excuse(id)
            self._crashed.add(id)
        self._channels.pop(node, None)

    # --------------------------------------------------------------------------------------------- now and then

    def look(self) -> None:
        """What holds at any time, between two events."""
        for node in self.world.living():
            router, discovery = node.router, node.router._discovery
            links = router.links.keys()
            if links != node.links.peers.keys():
                self.breach(f"{node} routes to {sorted(links)}, and has links to {sorted(node.links.peers)}")
            for what, known in (("ways", discovery._ways), ("told", discovery._told)):
                strangers = set().union(*known.values()) - links
                if strangers:
                    self.breach(f"the {what} of {node} name {sorted(strangers)}, who are not linked")
            if set().union(*router._offered.values()) - links:
                self.breach(f"{node} knows offers of somebody who is not linked")
            if len(router._open) > routing.OPEN_REQUESTS:
                self.breach(f"{node} has {len(router._open)} open requests")
            for line in node.links.lines:
                self._look_at(line)

    def _look_at(self, line: "Line") -> None:
        queued, _ = line.session.out.load()
        into = line.session.into
        if queued > outbox.LINK_QUEUE_MESSAGES:
            self.breach(f"{queued} messages wait on {line}")
        if into._retained < 0 or into._retained_bytes < 0:
            self.breach(f"{line} retains {into._retained} messages, {into._retained_bytes} bytes")

    def at_rest(self) -> None:
        """All faults are over, and all deadlines have passed: nothing is left, and all is known."""
        self.look()
        for node in self.world.living():
            self._links_are_back(node)
            left = {what: found for what, found in self._leftovers(node).items() if found}
            if left:
                self.breach(f"left at {node}: {left}")
            for once in (node.router._spread, node.router._discovery._seen):
                self._remembers_enough(node, once)
        for channels in self._channels.values():
            for channel in channels:
                if lost := channel.left():
                    self.breach(f"nobody knows what became of {lost[:3]} on {channel.line}")
        for id in self.requests:
            ends = self._ends[id]
            if ends != 1 and self._origin[id].alive and not (id in self._withdrawn and not ends):
                self.breach(f"the request {id} has ended {ends} times")
        for id in self.sends:
            told = id in self._bad or id in self._excused
            if not told and not self._handled.get(id) and self._origin[id].alive:
                self.breach(f"nobody has handled {id}, and nobody says why")

        for asked, published, reached in self._expected:
            self._all_reached(asked, published, reached)

    def _all_reached(self, asked: Message, published: Message, reached: dict[str, int]) -> None:
        nodes = [self.world.nodes[id] for id in reached]
        if any(asked.name in node.handles for node in nodes) and not self._handled.get(asked.id):
            self.breach(f"nobody has handled the request {asked.id} for {asked.name}: {self._bad.get(asked.id)}")
        for node in nodes:
            wants = any(fits(pattern, published.name) for pattern in node.router.subscriptions)
            if wants and node not in self._handled[published.id]:
                self.breach(f"the publication {published.id} of {published.name} never came to {node}")

    def _links_are_back(self, node: "Node") -> None:
        nodes = self.world.nodes
        for a, b in self.world.options.links:
            if node.id in (a, b) and nodes[a].alive and nodes[b].alive:
                peer = b if node.id == a else a
                line = node.links.by_peer.get(peer)
                link = node.router.links.get(peer)
                if line is None or link is None or link.away or line.session.phase is not Phase.OPEN:
                    self.breach(f"the link of {node} to {peer} is not back: {line}, {link}")
                    return
                other = nodes[peer].router
                known = (link.relay, sorted(link.handles), sorted(link.subscribes))
                says = (other.relay, sorted(other.offers), sorted(other.subscriptions))
                if known != says:
                    self.breach(f"{node} knows {known} of {peer}, which declares {says}")

    def _leftovers(self, node: "Node") -> dict[str, Any]:
        router, discovery = node.router, node.router._discovery
        lines = list(node.links.lines)
        return {
            "open requests": list(router._open),
            "questions": list(discovery._questions),
            "own questions": list(discovery._own),
            "held": discovery._held,
            "resting": len(discovery._resting),
            "deadlines": [*router._deadlines._heap, *discovery._deadlines._heap],
            "came": [id for link in router.links.values() for id in link.came],
            "out": [id for link in router.links.values() for id in link.out],
            "jobs": node.busy,
            "queued": [(line, line.session.out.load()) for line in lines if line.session.out.waits],
            "kept": [(line, line.session.out.unacknowledged) for line in lines if line.session.out.unacknowledged],
            "control": [line for line in lines if line.session._control or line.session._rejects],
            "retained": [(line, line.session.into._retained) for line in lines if line.session.into._retained],
            "lines": lines if len(lines) > len(node.links.by_peer) + len(node.wanted) else [],
            "signals": node.kernel.waiting,
        }

    def _remembers_enough(self, node: "Node", once: Once) -> None:
        until = [until for until, _ in once._until.values()]
        if until and until[0] <= until[-1] - SEEN_SECONDS:
            self.breach(f"{node} remembers an id for {until[-1] - until[0] + SEEN_SECONDS:.0f} s")
