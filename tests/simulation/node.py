"""One exchange of the world: the shipped core, and what `exchange.py` and handlers would be.

Law: the signals of routing are answered as `exchange.py` does. A handler takes its message at once, or waits its turn
where handlers are slow; then it answers, answers late, fails, or never ends: `Answer` says which, by chance.
"""

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from exchange_grpc.errors import Code, HandlerFailed, RequestError
from exchange_grpc.frames import Introduction
from exchange_grpc.kernel import Kernel
from exchange_grpc.ledger import Ledger
from exchange_grpc.limits import RETRY_AFTER_MS
from exchange_grpc.links import Links
from exchange_grpc.message import Context, Kind, Message, Origin, Outcome
from exchange_grpc.outbox import QueueFull
from exchange_grpc.routing import HERE, Arrival, Failure, Router

from .invariants import FORGED
from .line import Line, session_of
from .wire import Wire
from .world import DIAL_SECONDS, WALL, World

_AROUND = 200  # bytes of a message beyond its payload, as a handler's queue counts it
_AT_ONCE = 2  # that a slow handler runs


@dataclass(slots=True, eq=False)
class Job:
    """A message that a handler has taken."""

    message: Message
    link: str | None
    waits: bool = True


class Says(Links[Line, "Peer"]):
    """Links that say of themselves what the features of this exchange are."""

    features: tuple[str, ...] | None = None

    def introduction(self, protocol: int = 1) -> Introduction:
        """See `links.Links`."""
        said = super().introduction(protocol)
        return said if self.features is None else replace(said, features=self.features)


class Peer:
    """Stands for a peer in `Links.peers`."""


class Node:
    """One life of one exchange: a restart makes a new one."""

    def __init__(self, world: World, id: str) -> None:
        options = world.options
        self.world, self.id, self.limits = world, id, options.limits
        self.alive, self.frozen, self.patient = True, False, False
        self.backlog: list[Callable[[], None]] = []
        self.handles: set[str] = set()
        self.slow = world.dice.random() < options.slow
        self.wanted: dict[str, float] = {}  # whom it is to dial, and for how long again after a break
        self.kernel, self.ledger = Kernel(), Ledger(id)
        self.origin = Origin(id, round((WALL + world.now) * 1e6), WALL)
        self.router = Router(self.origin, self.kernel, self.ledger, balance=options.balance, draw=world.dice.randrange)
        self.router.observed = False
        self.router.relay = id in options.relays
        self._jobs: deque[Job] = deque()
        self._running = 0
        self._timer: float | None = None
        self._runs = False
        law = world.law
        self.kernel.failed = partial(law.failed, self)
        self.kernel.unhandled = lambda name, value: law.failed(self, name, value, LookupError(name))
        self.ledger.bad_end = lambda span, outcome, by, reason: law.ended_badly(span.id, outcome, reason)
        self.links = Says(
            id, self.origin.epoch, (),
            kernel=self.kernel, router=self.router, now=lambda: world.now,
            linked=lambda line, peer: Peer(), tell=self._tell, run=self.run,
        )  # fmt: skip
        self.links.features = dict(options.features).get(id)
        self.kernel.immediate.update(
            {
                "deliver": lambda value, sig, state: self._deliver(*value),
                "transmit": lambda value, sig, state: self._transmit(*value),
                "control": lambda value, sig, state: self.links.control(*value),
                "announce": lambda value, sig, state: self._announce(*value),
                "resolve": lambda value, sig, state: law.resolved(self, *value),
                "dispatched": lambda value, sig, state: law.dispatched(self, *value),
                "withdraw": lambda value, sig, state: self._withdraw(value),
                "message.unhandled": lambda value, sig, state: law.unhandled(self, *value[:2]),
                "observed": lambda value, sig, state: None,
            }
        )
        law.listen(self)

    def __repr__(self) -> str:
        return self.id

    # ------------------------------------------------------------------------------------------ what it does

    def emit(self, kind: Kind, name: str, *, via: str | None = None, **more: Any) -> Message:
        """Send, request, publish or broadcast."""
        message = self.origin.make(kind, name, more.pop("context", Context()), self.world.now, **more)
        if self.world.talks:
            self.world.say(f"{self}: {kind.name.lower()} {name} {message.id} {more.get('to') or via or ''}")
        if kind is not Kind.REPLY:
            self.world.law.emitted(self, message)
        self._signal("broadcast" if kind is Kind.BROADCAST else "route", Arrival(message, HERE, self.world.now, via))
        return message

    def cancel(self, request: Message) -> None:
        """Withdraw a request of our own."""
        self.world.law.withdrawn(request)
        self.emit(Kind.CANCEL, request.name, context=Context.of(request), reply_to=request.id)

    def handle(self, name: str, wanted: bool = True) -> None:
        """Handle a name, or no longer."""
        (self.handles.add if wanted else self.handles.discard)(name)
        self._signal("offer", (name, wanted, self.world.now))

    def subscribe(self, pattern: str, wanted: bool = True) -> None:
        """Want what fits, or no longer."""
        self._signal("subscribe", (pattern, wanted))

    def start_relaying(self) -> None:
        """From now on, pass on what is for others."""
        if not self.router.relay:
            self.router.relay = True
            self.links.announce(relay=True)

    def forge(self, to: str, request: str) -> None:
        """Answer a request that we were never asked."""
        now = self.world.now
        reply = self.origin.make(
            Kind.REPLY, FORGED, Context(), now, reply_to=request, last=True, payload=b'"forged"', to=to
        )
        self.ledger.note(reply)
        with suppress(QueueFull):
            self._transmit(to, reply)
        self.run()

    def _signal(self, name: str, value: Any) -> None:
        self.kernel.sig(name, value)
        self.run()

    def run(self) -> None:
        """Run what was signalled."""
        if self._runs:
            return
        self._runs = True
        try:
            self.kernel.run()
        finally:
            self._runs = False
        due = self.router.next_deadline()
        if due is not None and (self._timer is None or due < self._timer):
            self._timer = due
            self.world.at(due, self, lambda: self._tick(due))

    def _tick(self, due: float) -> None:
        if self._timer == due:
            self._timer = None
            self.router.tick(self.world.now)
            self.run()

    # -------------------------------------------------------------------------------------- what routing says

    def _tell(self, event: str, value: dict[str, Any]) -> None:
        if self.world.talks:
            self.world.say(f"{self}: {event} {value}")

    def _transmit(self, to: str, message: Message) -> None:
        line = self.links.by_peer.get(to)
        if line is None:
            self.links.send(to, message)
            return
        line.channel.put(message)  # first: whatever the line does with it comes after
        before, dropped = line.session.phase, line.session.out.dropped
        try:
            self.links.send(to, message)
        except QueueFull:
            line.channel.take_back(message)
            full = line.session.out.dropped == dropped
            line.count("queue is full" if full else f"policy {line.session.out.policy}", before)
            raise
        if line.session.out.dropped > dropped:
            line.count(f"policy {line.session.out.policy}", before)

    def _announce(self, handles: Any, subscribes: Any, no_longer_handles: Any, no_longer_subscribes: Any) -> None:
        self.links.announce(
            handles=handles,
            subscribes=subscribes,
            no_longer_handles=no_longer_handles,
            no_longer_subscribes=no_longer_subscribes,
        )

    def _deliver(self, message: Message, link: str | None) -> bool:
        kind = message.kind
        if kind in (Kind.SEND, Kind.REQUEST) and message.name not in self.handles:
            return False
        self.world.law.delivered(self, message, link)
        if kind is not Kind.BROADCAST:
            job = Job(message, link)
            message.hold()
            if message.keeper is not None:
                message.keeper.retain(len(message.payload) + _AROUND)
            self._jobs.append(job)
            self.world.soon(self, self._start)
        return True

    def _withdraw(self, request: str) -> None:
        for job in self._jobs:
            if job.message.id == request:
                job.waits = False

    # ------------------------------------------------------------------------------------------------ handlers

    @property
    def busy(self) -> int:
        """How many messages wait for a handler, or have one."""
        return len(self._jobs) + self._running

    def _start(self) -> None:
        dice = self.world.dice
        while self._jobs and not (self.slow and self._running >= _AT_ONCE):
            job = self._jobs.popleft()
            if job.message.keeper is not None:
                job.message.keeper.release(len(job.message.payload) + _AROUND)
            job.message.let_go()
            if job.waits:
                self._running += 1
                seconds = dice.choice((0.01, 0.1, 0.5)) if self.slow and not self.patient else 0.0
                self.world.after(seconds, self, lambda job=job: self._finish(job))

    def _finish(self, job: Job) -> None:
        self._running -= 1
        message, dice = job.message, self.world.dice
        self.ledger.record(message.id, self.world.now + WALL, Outcome.HANDLED, by=message.name)
        if message.kind is Kind.REQUEST:
            self._answer(message)
        elif message.kind is Kind.SEND and not self.patient and dice.random() < 0.1:
            error: RequestError = HandlerFailed("it failed", at=self.id)
            self._signal("failed", Failure(message, job.link, Outcome.FAILED, error, self.world.now))
        self._start()

    def _answer(self, request: Message) -> None:
        dice = self.world.dice
        fate = 0.0 if self.patient else dice.random()
        if request.many:
            for _ in range(dice.randrange(3)):
                self._reply(request, last=False)
        if fate < 0.7:
            self._reply(request, lost=() if request.many and dice.random() < 0.5 else None)
        elif fate < 0.8:
            self._reply(request, error=HandlerFailed("it failed", at=self.id))
        elif fate < 0.95:
            self.world.after(dice.random() * 3.0, self, lambda: self._reply(request))

    def _reply(self, request: Message, *, last: bool = True, **more: Any) -> None:
        self.emit(
            Kind.REPLY, request.name, context=Context.of(request), to=request.from_, reply_to=request.id, last=last,
            payload=b'"%s"' % self.id.encode(), **more,
        )  # fmt: skip

    # --------------------------------------------------------------------------------------------------- links

    def reach(self, target: str, done: "Callable[[Node | None], None]") -> None:
        """Connect to whoever runs under this id: in a moment, or in vain."""

        def there() -> None:
            node = self.world.nodes.get(target)
            if not self.world.passes(self.id, target):
                self.world.after(DIAL_SECONDS, self, lambda: done(None))
            else:
                done(node if node is not None and node.alive else None)

        self.world.after(self.world.latency(), self, there)

    def dial(self, target: str, retry: float) -> None:
        """Link to another exchange, now and whenever the link is gone."""
        self.wanted[target] = retry
        self._dial(target, retry)

    def dial_once(self, target: str) -> None:
        """Link to another exchange, to which there may be a link already."""
        self._dial(target, 0.0)

    def _dial(self, target: str, retry: float) -> None:
        line = Line(self, session_of(self, self.links.introduction(), dialled=True), target=target, retry=retry)

        def done(host: "Node | None") -> None:
            if host is None:
                self.line_is_over(line)
                return
            self.links.begun(line)
            line.start(Wire(self.world, line, host), 0)

        self.reach(target, done)

    def accept(self, wire: Wire) -> Line:
        """Somebody has dialled us."""
        line = Line(self, session_of(self, self.links.introduction(), dialled=False))
        self.links.begun(line)
        line.start(wire, 1)
        return line

    def line_is_over(self, line: Line) -> None:
        """What an application does that wants the link: it connects again."""
        if line.target in self.wanted:
            self._again(line.target)

    def _again(self, target: str) -> None:
        self.world.after(0.5 + self.world.dice.random(), self, lambda: self._unless_linked(target))

    def _unless_linked(self, target: str) -> None:
        if target not in self.wanted or any(line.target == target for line in self.links.lines):
            return
        if target in self.links.by_peer:  # by the other's dialling: look again later
            self._again(target)
        else:
            self.dial(target, self.wanted[target])

    def part(self, peer: str, *, code: Code = Code.OK, stay_away: bool = False) -> None:
        """End one link; whoever dialled it may dial again."""
        line = self.links.by_peer.get(peer)
        if line is not None:
            line.close(code, "enough", retry_after_ms=RETRY_AFTER_MS, stay_away=stay_away)

    def stop(self) -> None:
        """Say goodbye to all."""
        self.wanted.clear()
        for line in sorted(self.links.lines, key=lambda line: line.number):
            line.close(retry_after_ms=RETRY_AFTER_MS)
