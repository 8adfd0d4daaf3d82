"""A mesh of exchanges in memory: the shipped Router, Kernel, Ledger and Session, and a world around them.

Law: nothing here decides anything. The clock is a number that `advance` moves; a link is two queues of
frames, each delivered in order, and `pick` chooses which queue goes next (the oldest frame, unless a
test draws it); handlers are plain functions that run after the kernel came to rest. So the same calls
give the same history, and whoever wants delay, silence or chance brings it.

    mesh = Mesh()
    mesh.chain("a", "b", "c")
    mesh["c"].handle("sum", lambda message: sum(message.value))
    request = mesh["a"].request("sum", [1, 2])
    mesh.settle()
    assert mesh["a"].answer(request) == 3

`Mesh(framed=False)` leaves the sessions out: frames are the events themselves. Routing cannot tell.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from exchange_grpc import wire
from exchange_grpc.errors import HandlerFailed, RequestError
from exchange_grpc.frames import Answer, Interest, Introduction, Query
from exchange_grpc.kernel import Kernel
from exchange_grpc.ledger import Ledger
from exchange_grpc.message import NO_HEADERS, Context, Kind, Message, Origin, Outcome, Seen, encode_value
from exchange_grpc.outbox import QueueFull
from exchange_grpc.peer import FEATURES, Ended, Opened, Received, Rejected, Resumed, Session
from exchange_grpc.routing import HERE, Arrival, Failure, Lost, Neighbour, Rejection, Router

Handler = Callable[[Message], Any]
WALL = 1_700_000_000.0
NEVER = object()  # what a handler returns that hangs: the test answers for it, or nobody does


class Several(list[Any]):
    """What a handler returns that replies so many times to a request to many, and then ends in silence."""


class Plain:
    """A session without bytes: what `Session` says, said by handing over the events."""

    def __init__(self, me: Introduction, *, dialled: bool, now: float) -> None:
        self.peer: Introduction | None = None
        self._out: deque[Any] = deque([Opened(me)] if dialled else [])
        self._queue: deque[Message] = deque()

    def receive(self, event: Any, now: float) -> list[Any]:
        if isinstance(event, Opened):
            self.peer = event.peer
        return [event]

    def welcome(self, me: Introduction) -> None:
        self._out.append(Opened(me))

    def send(self, message: Message) -> None:
        self._queue.append(message)

    def control(self, frame: Query | Answer) -> bool:
        self._out.append(frame)
        return True

    def announce(self, **change: Any) -> None:
        self._out.append(Interest(0, **change))

    def data_to_send(self, now: float) -> tuple[Any, list[Message]]:
        if self._out:
            return self._out.popleft(), []
        if self._queue:
            message = self._queue.popleft()
            return (Received([copy(message)]), []) if message.deadline > now else (None, [message])
        return None, []

    def lost(self) -> tuple[list[Message], list[Message]]:
        left, self._queue = list(self._queue), deque()
        return [], left


@dataclass(eq=False)
class End:
    """One end of a link: the session there, and the frames on their way out of it."""

    node: "Node"
    session: Any
    other: "End" = None  # type: ignore[assignment]  # set at once, the two make each other
    wire: deque[tuple[int, Any]] = None  # type: ignore[assignment]
    silent: bool = False  # what it sends stays on the wire
    stuffed: bool = False  # it cannot write: what is to be sent stays queued in the session
    cut: bool = False

    def __post_init__(self) -> None:
        self.wire = deque()


class Book(Ledger):
    """A ledger that takes nothing for granted of what is written into it."""

    def __init__(self, mesh: "Mesh", exchange: str) -> None:
        super().__init__(exchange)
        self._mesh = mesh

    def record(
        self, id: str, at: float, outcome: Outcome, *, by: str = "", seconds: float = 0.0, reason: str = ""
    ) -> None:
        assert isinstance(id, str)
        assert abs(at - WALL - self._mesh.now) < 60, "everything is written down when it happens"
        assert isinstance(by, str)
        assert reason or outcome <= Outcome.FORWARDED, "what did not end well has a reason"
        super().record(id, at, outcome, by=by, seconds=seconds, reason=reason)


class Node:
    """One exchange of the mesh: the shipped core, and what a loop and handlers would be."""

    def __init__(self, mesh: "Mesh", id: str, relay: bool, balance: str, draw: Callable[[int], int]) -> None:
        self.mesh, self.id = mesh, id
        self.kernel, self.ledger, self.origin = Kernel(), Book(mesh, id), Origin(id, 1, WALL)
        self.router = Router(self.origin, self.kernel, self.ledger, balance=balance, draw=draw)
        self.router.relay = relay
        self.ends: dict[str, End] = {}
        self.handlers: dict[str, Handler] = {}
        self.crowded = False  # handlers take nothing: their queue is full
        self.handled: list[Message] = []  # sends and requests that a handler took
        self.published: list[Message] = []  # publications that were delivered
        self.broadcasts: list[Message] = []
        self.replies: dict[str, list[Message]] = defaultdict(list)  # request -> what came back
        self.dispatched: dict[str, list[RequestError | None]] = defaultdict(list)  # send -> what was said of it
        self.unhandled: list[tuple[Message, RequestError]] = []
        self.observed: list[tuple[Seen, Message]] = []
        self.withdrawn: list[str] = []
        self.rejected: list[Rejected] = []
        self._inbox: deque[tuple[Message, str | None]] = deque()
        self._revision = 0
        self.kernel.failed = self._broke
        self.kernel.unhandled = lambda name, value: self._broke(name, value, LookupError(name))
        self.kernel.immediate.update(
            {
                "deliver": lambda value, sig, state: self._deliver(*value),
                "transmit": lambda value, sig, state: self._transmit(*value),
                "control": lambda value, sig, state: self.ends[value[0]].session.control(value[1]),
                "announce": lambda value, sig, state: self._announce(*value),
                "resolve": lambda value, sig, state: self.replies[value[0]].append(value[1]),
                "dispatched": lambda value, sig, state: self.dispatched[value[0].id].append(value[1]),
                "withdraw": lambda value, sig, state: self.withdrawn.append(value),
                "message.unhandled": lambda value, sig, state: self.unhandled.append(value[:2]),
                "observed": lambda value, sig, state: self.observed.append((Seen(value[0]), value[1])),
            }
        )

    # ---------------------------------------------------------------------------------------- what a test says

    def handle(self, name: str, function: Handler = lambda message: None) -> None:
        self.handlers[name] = function
        self.signal("offer", (name, True, self.mesh.now))

    def unhandle(self, name: str) -> None:
        self.handlers.pop(name, None)
        self.signal("offer", (name, False, self.mesh.now))

    def subscribe(self, pattern: str, wanted: bool = True) -> None:
        self.signal("subscribe", (pattern, wanted))

    def start_relaying(self, relay: bool = True) -> None:
        self.router.relay = relay
        self._tell(relay=relay)
        self.mesh.write()

    def request(self, name: str, value: Any = None, **options: Any) -> str:
        return self.emit(Kind.REQUEST, name, value, **options).id

    def send(self, name: str, value: Any = None, **options: Any) -> str:
        return self.emit(Kind.SEND, name, value, **options).id

    def publish(self, name: str, value: Any = None, **options: Any) -> str:
        return self.emit(Kind.PUBLISH, name, value, **options).id

    def broadcast(self, name: str, value: Any = None, **options: Any) -> str:
        return self.emit(Kind.BROADCAST, name, value, **options).id

    def cancel(self, request: str) -> None:
        self.emit(Kind.CANCEL, "cancel", reply_to=request)

    def reply(
        self, request: Message, value: Any = None, error: RequestError | None = None, *, last: bool = True, **more: Any
    ) -> Message:
        """Answer a request that a handler here left open."""
        return self.emit(
            Kind.REPLY, request.name, value, to=request.from_, context=Context.of(request),
            reply_to=request.id, last=last, error=error, **more,
        )  # fmt: skip

    def end(self, request: Message) -> Message:
        """No more replies of a handler here to a request to many."""
        return self.reply(request, lost=())

    def emit(
        self,
        kind: Kind,
        name: str,
        value: Any = None,
        *,
        to: str = "",
        via: str | None = None,
        seconds: float = 30.0,
        headers: Mapping[str, str] = NO_HEADERS,
        context: Context = Context(),  # noqa: B008  # immutable
        **more: Any,
    ) -> Message:
        payload, content_type = encode_value(value)
        message = self.origin.make(
            kind, name, context, self.mesh.now, to=to, payload=payload, content_type=content_type,
            seconds=seconds, headers=headers, **more,
        )  # fmt: skip
        signal = "broadcast" if kind is Kind.BROADCAST else "route"
        self.signal(signal, Arrival(message, HERE, self.mesh.now, via))
        return message

    def answer(self, request: str) -> Any:
        """The value of the one reply to `request`. Raises its error."""
        (reply,) = self.replies[request]
        if reply.error is not None:
            raise reply.error
        return reply.value

    def error(self, request: str) -> RequestError:
        """The error that is the one reply to `request`."""
        (reply,) = self.replies[request]
        assert reply.error is not None, reply
        return reply.error

    def outcomes(self, id: str) -> list[Outcome]:
        """What the ledger here says became of a message."""
        span = self.ledger.find(id)
        return [] if span is None else [event[1] for event in span.events]

    def leftovers(self) -> dict[str, Any]:
        """What a router at rest has no business to hold."""
        router, discovery = self.router, self.router._discovery  # questions and ways are in exchange_grpc/discovery.py
        held: dict[str, Any] = {
            "open": router._open,
            "questions": discovery._questions,
            "own": discovery._own,
            "held": discovery._held,
            "deadlines": [*router._deadlines._heap, *discovery._deadlines._heap],
            "told nobody": [target for target, told in discovery._told.items() if not told],
            "told strangers": set().union(*discovery._told.values()) - router.links.keys(),
            "ways by strangers": set().union(*discovery._ways.values()) - router.links.keys(),
            "came": set().union(*(link.came for link in router.links.values())),
            "out": set().union(*(link.out for link in router.links.values())),
            "inbox": self._inbox,
        }
        return {what: found for what, found in held.items() if found}

    # ------------------------------------------------------------------------------------- what the core says

    def signal(self, name: str, value: Any) -> None:
        self.kernel.sig(name, value)
        self.run()

    def run(self) -> None:
        """Run the kernel and the handlers it started, until both rest."""
        self.kernel.run()
        while self._inbox:
            self._run_handler(*self._inbox.popleft())
            self.kernel.run()
        self.mesh.write()

    def _run_handler(self, message: Message, link: str | None) -> None:
        error: RequestError | None = None
        result = None
        function = self.handlers.get(message.name, lambda message: None)
        try:
            result = function(message)
        except Exception as problem:
            error = problem if isinstance(problem, RequestError) else HandlerFailed("it failed", at=self.id)
        now = self.mesh.now
        outcome = Outcome.HANDLED if error is None else Outcome.FAILED
        self.ledger.record(message.id, now + WALL, outcome, by=message.name, reason=str(error or ""))
        if message.kind is Kind.SEND and error is not None:
            self.kernel.sig("failed", Failure(message, link, outcome, error, now))
        elif message.kind is Kind.REQUEST and isinstance(result, Several) and message.many:
            for value in result:
                self.reply(message, value, last=False)
            self.end(message)
        elif message.kind is Kind.REQUEST and result is not NEVER:
            self.reply(message, result, error)

    def _deliver(self, message: Message, link: str | None) -> bool:
        if self.crowded and message.kind in (Kind.SEND, Kind.REQUEST):
            raise QueueFull(f"more than 0 messages wait for {message.name}")
        if message.kind is Kind.PUBLISH:
            self.published.append(message)
        elif message.kind is Kind.BROADCAST:
            self.broadcasts.append(message)
        elif message.name not in self.handlers:
            return False
        else:
            self.handled.append(message)
            self._inbox.append((message, link))
        return True

    def _transmit(self, to: str, message: Message) -> None:
        self.ends[to].session.send(message)

    def _announce(self, handles: Any, subscribes: Any, no_longer_handles: Any, no_longer_subscribes: Any) -> None:
        self._tell(
            handles=handles,
            subscribes=subscribes,
            no_longer_handles=no_longer_handles,
            no_longer_subscribes=no_longer_subscribes,
        )

    def _tell(self, **change: Any) -> None:
        self._revision += 1
        for end in self.ends.values():
            end.session.announce(**change)

    def introduction(self) -> Introduction:
        return Introduction(
            self.id,
            1,
            features=FEATURES,
            relay=self.router.relay,
            revision=self._revision,
            handles=tuple(sorted(self.router.offers)),
            subscribes=tuple(sorted(self.router.subscriptions)),
        )

    def hear(self, end: End, events: list[Any]) -> None:
        now = self.mesh.now
        peer = end.session.peer
        for event in events:
            if isinstance(event, Received):
                self.kernel.sig("arrived", (peer.exchange, event.messages, now))
            elif isinstance(event, Opened):
                self._opened(end, event.peer)
            elif isinstance(event, Resumed):
                self._present(event.peer)
            elif isinstance(event, Interest):
                self.kernel.sig("peer.interest", (peer.exchange, event, now))
            elif isinstance(event, Query):
                self.kernel.sig("peer.asked", (peer.exchange, event, now))
            elif isinstance(event, Answer):
                self.kernel.sig("peer.answered", (peer.exchange, event, now))
            elif isinstance(event, Rejected):
                self.rejected.append(event)
                self.kernel.sig("rejected", Rejection(peer.exchange, event.id, event.error, now))
            else:
                assert isinstance(event, Ended), event
                self.mesh.cut(self.id, peer.exchange)
        self.run()

    def _opened(self, end: End, peer: Introduction) -> None:
        if end is self.mesh.accepting.get(frozenset((self.id, peer.exchange))):
            end.session.welcome(self.introduction())
        self.ends[peer.exchange] = end
        self._present(peer)

    def _present(self, peer: Introduction) -> None:
        self.kernel.sig(
            "peer.connect", Neighbour(peer.exchange, peer.relay, peer.handles, peer.subscribes, self.mesh.now)
        )

    def lose(self, peer: str) -> None:
        end = self.ends.pop(peer, None)
        if end is not None:
            _, unsent = end.session.lost()
            self.kernel.sig("peer.disconnect", Lost(peer, unsent, self.mesh.now))
            self.signal("reroute", (peer, unsent, self.mesh.now))

    def late(self, expired: list[Message]) -> None:
        self.kernel.sig("expired", (expired, self.mesh.now))
        self.run()

    def _broke(self, name: str, value: Any, error: Exception) -> None:
        self.mesh.broken.append((self.id, name, value, error))


class Stranger(Node):
    """A peer that is no exchange of ours: it hears, and says what the test says, true or not."""

    def __init__(self, mesh: "Mesh", id: str, relay: bool, handles: Iterable[str]) -> None:
        super().__init__(mesh, id, relay, "round_robin", lambda n: 0)
        self.heard: list[Message] = []
        self.router.offers.update(handles)

    def hear(self, end: End, events: list[Any]) -> None:
        self.heard += [message for event in events if isinstance(event, Received) for message in event.messages]
        super().hear(end, [event for event in events if isinstance(event, Opened | Ended)])

    def got(self, kind: Kind = Kind.REQUEST) -> list[Message]:
        """What it was sent of one kind."""
        return [message for message in self.heard if message.kind is kind]

    def say(self, link: str, kind: Kind, name: str = "n", **fields: Any) -> Message:
        """Put a message on a link, as it is."""
        payload, content_type = encode_value(fields.pop("value", None))
        message = self.origin.make(
            kind, name, Context(), self.mesh.now, payload=payload, content_type=content_type, **fields
        )
        self.ends[link].session.send(message)
        self.mesh.write()
        return message

    def says(self, link: str, request: Message, value: Any = None, **fields: Any) -> Message:
        """Reply to a request that it heard, or did not."""
        return self.say(link, Kind.REPLY, request.name, value=value, to=request.from_, reply_to=request.id, **fields)


class Mesh:
    """The world: a clock, nodes, links, and the frames in flight."""

    def __init__(self, *, framed: bool = True, pick: Callable[[list[End]], End] | None = None) -> None:
        self.now = 1_000.0
        self.nodes: dict[str, Node] = {}
        self.framed = framed
        self.pick = pick or (lambda ends: min(ends, key=lambda end: end.wire[0][0]))
        self.ends: list[End] = []
        self.accepting: dict[frozenset[str], End] = {}
        self.log: list[tuple[str, str, Any]] = []  # every event that was delivered: from, to, event
        self.broken: list[tuple[str, str, Any, Exception]] = []  # delayed handlers of the core that raised
        self._frames = self._drawn = 0
        self._writing = False

    def __getitem__(self, id: str) -> Node:
        return self.nodes[id]

    # ------------------------------------------------------------------------------------------------ topology

    def add(
        self,
        id: str,
        *,
        relay: bool = True,
        handles: Iterable[str] | Mapping[str, Handler] = (),
        subscribes: Iterable[str] = (),
        balance: str = "round_robin",
        draw: Callable[[int], int] = lambda n: 0,
    ) -> Node:
        node = self.nodes[id] = Node(self, id, relay, balance, draw)
        for name in handles:
            node.handle(name, handles[name] if isinstance(handles, Mapping) else lambda message: message.value)
        for pattern in subscribes:
            node.subscribe(pattern)
        return node

    def stranger(self, id: str, *, relay: bool = False, handles: Iterable[str] = ()) -> Stranger:
        """Somebody who speaks the protocol, and is none of ours."""
        node = self.nodes[id] = Stranger(self, id, relay, handles)
        return node

    def link(self, a: str, b: str, *, settle: bool = True) -> None:
        """`a` dials `b`. The handshake is over at once, unless it shall take its time."""
        kind = partial(Session, draw=self._draw) if self.framed else Plain
        ends = [
            End(self[id], kind(self[id].introduction(), dialled=dialled, now=self.now))
            for id, dialled in ((a, True), (b, False))
        ]
        ends[0].other, ends[1].other = ends[1], ends[0]
        self.ends += ends
        self.accepting[frozenset((a, b))] = ends[1]
        self.write()
        if settle:
            self.settle()

    def _draw(self, size: int) -> bytes:
        self._drawn += 1
        return self._drawn.to_bytes(size, "big")

    def chain(self, *ids: str, **options: Any) -> None:
        for id in ids:
            if id not in self.nodes:
                self.add(id, **options)
        for a, b in pairwise(ids):
            self.link(a, b)

    def ring(self, *ids: str) -> None:
        self.chain(*ids, ids[0])

    def star(self, hub: str, *leaves: str) -> None:
        """`hub` relays; the leaves, added where they are not there yet, do not."""
        if hub not in self.nodes:
            self.add(hub)
        for leaf in leaves:
            if leaf not in self.nodes:
                self.add(leaf, relay=False)
            self.link(leaf, hub)

    def end(self, a: str, b: str) -> End:
        """The end at `a` of its link to `b`."""
        return self[a].ends[b]

    def linked(self) -> set[frozenset[str]]:
        return {frozenset((node.id, peer)) for node in self.nodes.values() for peer in node.ends}

    def cut(self, a: str, b: str) -> None:
        """The link breaks: what is in flight on it is lost, and both sides notice."""
        pair = frozenset((a, b))
        for end in self.ends:
            if end.node.id in pair and end.other.node.id in pair:
                end.cut = True
                end.wire.clear()
        self.ends = [end for end in self.ends if not end.cut]
        self.accepting.pop(pair, None)
        self[a].lose(b)
        self[b].lose(a)

    def pause(self, a: str, b: str) -> None:
        """The connection breaks, and the sessions are kept: what is in flight is lost, and both sides notice."""
        for end in (self.end(a, b), self.end(b, a)):
            end.wire.clear()
            end.stuffed = True
            assert end.session.disconnected(self.now)
        for id, peer in ((a, b), (b, a)):
            self[id].signal("peer.away", (peer, self.now))

    def resume(self, a: str, b: str) -> None:
        """The one who dialled dials again, and the sessions go on."""
        ends = (self.end(a, b), self.end(b, a))
        dials, other = ends if ends[0].session.dialled else reversed(ends)
        dials.session.dial(dials.node.introduction(), self.now)
        hello = wire.decode(dials.session.data_to_send(self.now)[0], self.now)
        events = other.session.rejoin(hello.me, other.node.introduction(), self.now)
        for end in ends:
            end.stuffed = False
        other.node.hear(other, events)

    # ---------------------------------------------------------------------------------------------------- time

    def write(self) -> None:
        """Every end writes what its session has to say."""
        if self._writing:
            return
        self._writing = True
        try:
            again = True
            while again:
                again = False
                for end in list(self.ends):
                    while not end.stuffed and not end.cut:
                        data, expired = end.session.data_to_send(self.now)
                        if data is not None:
                            self._frames += 1
                            end.wire.append((self._frames, data))
                        if expired:
                            end.node.late(expired)
                            again = True
                        if data is None and not expired:
                            break
        finally:
            self._writing = False

    def step(self) -> bool:
        """Deliver one frame; False if none can be."""
        ready = [end for end in self.ends if end.wire and not end.silent]
        if not ready:
            return False
        end = ready[0] if len(ready) == 1 else self.pick(ready)
        _, data = end.wire.popleft()
        events = end.other.session.receive(data, self.now)
        self.log += [(end.node.id, end.other.node.id, event) for event in events]
        end.other.node.hear(end.other, events)
        return True

    def settle(self, frames: int = 100_000) -> None:
        """Deliver frames until none is in flight. The clock stands still."""
        self.write()
        for _ in range(frames):
            if not self.step():
                break
        else:
            raise AssertionError("the frames do not come to an end")
        assert not self.broken, self.broken

    def advance(self, seconds: float) -> None:
        """Let time pass: frames arrive, and timers end in their order."""
        until = self.now + seconds
        self.settle()
        while True:
            due = [at for node in self.nodes.values() if (at := node.router.next_deadline()) is not None]
            if not due or min(due) > until:
                break
            self.now = max(self.now, min(due))
            for node in self.nodes.values():
                node.router.tick(self.now)
                node.run()
            self.settle()
        self.now = until
        self.settle()

    # ------------------------------------------------------------------------------------------- what happened

    def heard(self, kind: type) -> list[tuple[str, str, Any]]:
        """The events of one kind that were delivered: from, to, event."""
        return [entry for entry in self.log if isinstance(entry[2], kind)]

    def queries(self) -> int:
        return len(self.heard(Query))

    def leftovers(self) -> dict[str, Any]:
        return {id: left for id, node in self.nodes.items() if (left := node.leftovers())}
