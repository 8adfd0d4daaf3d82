"""Routing: who takes a message, and the way back.

Law: sans-IO. What comes in is a signal on the kernel, with the time in it; what shall be done is a
signal too, answered by whoever owns the links and the handlers (`exchange.py`):

    in   route Arrival                    a message, emitted here
         arrived (link, messages, now)    messages that came over a link, in one frame
         broadcast Arrival                a message for every direct peer
         offer (name, bool, now), subscribe (pattern, bool)   a name is (no longer) handled here, a pattern wanted
         peer.connect Neighbour           a link is open, or open again: then with all that the peer says of itself now
         peer.away (id, now)              ... broken: what is for it waits, but goes to others where there are any
         peer.disconnect Lost             ... and gone
         peer.interest / peer.asked / peer.answered   its Interest, Query and Answer frames
         reroute (messages, now)          they were on a link that is gone, and never left
         uncertain (link, ids, now)       they have left on a link, and nobody will ever know whether they arrived
         expired (messages, now)          their time ended while they waited to be written
         dropped (link, messages, policy, now)   they had to make room for others
         rejected Rejection               the peer refused a message that was passed to it
         failed Failure                   a handler here failed at a send
    out  deliver (message, link)          run the handler and the listeners
         transmit (link, message)         put it on a link; raises InvalidMessage if that cannot be
         control (link, frame)            a Query, an Answer or a Reject
         announce (handles, subscribes, gone handles, gone subscribes)   to every peer
         resolve (id, reply)              the reply, or one of many, to a request that was emitted here
         dispatched (message, error)      a send emitted here has left, or was taken, or could not be
         withdraw id                      cancel the handler of this request
         message.unhandled (message, error, outcome)   nobody took it, or what became of it further on
         observed (seen, message)        if `observed` says that somebody wants to know

The four steps for a send or a request: handle it here; pass it to a linked peer that is addressed or
offers the name; ask the relays; tell the origin that nobody takes it.

Step three, and all that is known of the mesh beyond the peers, is in `discovery.py`.

A request to many skips them: it goes to whoever offers the name, here and next to here, and to all
relays, which do the same; `scatter.py` counts who has ended.

Replies go back the way the request came: `_open` remembers that, for a request passing through and
for one emitted or handled here alike.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .balance import policy
from .discovery import Deadlines, Discovery, Held, Once
from .errors import Code, InvalidMessage, LimitExceeded, RequestError, Unavailable, Unhandled, request_error
from .frames import Answer, Interest, Query, Reject, Target
from .kernel import Kernel, Sig
from .ledger import Ledger
from .limits import HOPS, LOST_NAMES, MESSAGE_SECONDS, OPEN_REQUESTS, QUESTION_SECONDS, SETTLE_SECONDS
from .message import Context, Kind, Message, Origin, Outcome, Seen, Trail
from .patterns import RESERVED, PatternMap, fits
from .scatter import NOBODY, Scatter

HERE = None  # the link of what was emitted here
# Of an enum's members Python 3.11 asks the metaclass; these are asked for each message.
_SEND, _REQUEST, _REPLY, _FORWARDED = Kind.SEND, Kind.REQUEST, Kind.REPLY, Outcome.FORWARDED
_ABOUT_OTHERS = (Kind.REPLY, Kind.OUTCOME)


class Arrival(NamedTuple):
    """A message that comes to be routed: from `link`, or emitted here (None), then perhaps `via` a given link."""

    message: Message
    link: str | None
    now: float
    via: str | None = None


class Neighbour(NamedTuple):
    """A link that is open: the peer's id, whether it relays, and what it declared."""

    id: str
    relay: bool
    handles: tuple[str, ...]
    subscribes: tuple[str, ...]
    now: float


class Lost(NamedTuple):
    """A link that is gone, and the messages that never left on it: they are to be routed again (`reroute`).

    `expected`: the peer may come back.
    """

    id: str
    unsent: list[Message]
    now: float
    expected: bool = False


class Rejection(NamedTuple):
    """The peer refused the message `id`."""

    link: str
    id: str
    error: RequestError
    now: float


class Failure(NamedTuple):
    """A send that a handler here took, and failed at."""

    message: Message
    link: str | None
    outcome: Outcome
    error: RequestError
    now: float


@dataclass(slots=True)
class Link:
    """What routing knows of one peer."""

    id: str
    relay: bool
    handles: set[str] = field(default_factory=set)
    subscribes: set[str] = field(default_factory=set)
    away: bool = False  # it is broken, and may be there again soon
    out: set[str] = field(default_factory=set)  # open requests that were passed to it
    came: set[str] = field(default_factory=set)  # open requests that came from it


@dataclass(slots=True)
class Open:
    """A request that awaits its reply."""

    id: str
    name: str
    from_: str
    trail: Trail
    link: str | None  # where the reply goes
    deadline: float
    out: str | None = None  # who has it: a link, this exchange, or nobody yet
    message: Message | None = None  # kept while it may have to be routed again
    again: bool = False  # it was
    many: bool = False  # it may have many replies
    scatter: Scatter | None = None  # ... from several: then they have it, in place of `out`

    def holders(self) -> tuple[str, ...]:
        """Who has it and has not answered in full."""
        if self.scatter is not None:
            return tuple(self.scatter.branches)
        return () if self.out is None else (self.out,)

    def header(self) -> Message:
        """The request without what it carried."""
        message = Message(self.id, self.name, Kind.REQUEST, self.from_, deadline=self.deadline, many=self.many)
        message.trail = self.trail
        return message


class Router:
    """The routing of one exchange, as handlers on its kernel.

    `balance` chooses among several that take a name, see `balance.policy`; `draw` is a function from n to 0..n-1.
    """

    def __init__(
        self,
        origin: Origin,
        kernel: Kernel,
        ledger: Ledger,
        *,
        balance: str = "round_robin",
        draw: Callable[[int], int],
    ) -> None:
        self.me = origin.exchange
        self.relay = False
        self.links: dict[str, Link] = {}
        self.offers: set[str] = set()
        self.subscriptions: set[str] = set()
        self._origin = origin
        self._sig = kernel.sig
        self._kernel = kernel
        self._ledger = ledger
        self._choose = policy(balance, pending=lambda link: len(self.links[link].out), draw=draw)
        self._offered: dict[str, tuple[str, ...]] = {}  # name -> links that offer it
        self._interested: PatternMap[str] = PatternMap()
        self._away = 0  # how many links are
        self._expected: set[str] = set()  # peers that are gone, and may come back
        self._settled = 0.0  # from then on, nobody is expected back with a relay that has come back
        self._spread = Once()  # publications and requests to many that were here
        self.emitted = self.received = 0  # messages so far
        self.observed = True  # somebody wants to be shown what passes
        self._open: dict[str, Open] = {}
        self._deadlines = Deadlines(self._open.__contains__, self._open.__len__)
        self._discovery = Discovery(self, f"{self.me}.{origin.epoch}")
        kernel.delayed.update(
            {
                "route": self._route,
                "arrived": self._arrived,
                "broadcast": self._broadcast,
                "peer.connect": self._connect,
                "peer.away": self._left_for_now,
                "peer.disconnect": self._disconnect,
                "peer.interest": self._interest,
                "peer.asked": self._query,
                "peer.answered": self._answer,
                "rejected": self._rejected,
                "reroute": self._reroute,
                "uncertain": self._uncertain,
                "expired": self._expired,
                "dropped": self._dropped,
                "failed": self._failed,
            }
        )
        kernel.immediate.update({"offer": self._offer, "subscribe": self._subscribe})

    # ------------------------------------------------------------------------------------- in: messages

    def _arrived(self, arrived: tuple[str, list[Message], float], sig: Sig, state: Any) -> None:
        link, messages, now = arrived
        for message in messages:
            if link not in self.links:  # one of them may have ended it
                return
            message.hold()
            try:
                if self._admit(message, link, now):
                    self._take_up(Arrival(message, link, now))
            except Exception as error:  # a mistake of ours: the others go on
                self._kernel.failed("arrived", Arrival(message, link, now), error)
            message.let_go()

    def _route(self, arrival: Arrival, sig: Sig, state: Any) -> None:
        self.emitted += 1
        self._ledger.note(arrival.message)
        self._show(Seen.EMITTED, arrival.message)
        self._take_up(arrival)

    def _show(self, seen: Seen, message: Message) -> None:
        if self.observed:
            self._sig("observed", (seen, message))

    def _take_up(self, arrival: Arrival) -> None:
        message, link, now, _ = arrival
        kind = message.kind
        if kind is _SEND:
            self._dispatch(arrival)
        elif kind is _REQUEST:
            if message.many and not message.to:
                self._scatter(arrival)
            elif self._remember(message, link, now):
                self._dispatch(arrival)
        elif kind is _REPLY:
            self._reply(message, link, now)
        elif kind is Kind.CANCEL:
            self._cancel(message, link, now)
        elif kind is Kind.OUTCOME:
            self._outcome(message, link, now)
        elif kind is Kind.PUBLISH:
            self._publish(message, link, now)
        else:
            self._show(Seen.RECEIVED, message)
            self._sig("deliver", (message, link))

    def _admit(self, message: Message, link: str, now: float) -> bool:
        """Whether a received message may go on; refuses it otherwise. Writes the hop to here."""
        self.received += 1
        hops = message.way
        visited = self.me in hops
        message.reached(self.me, now + self._origin.wall)
        self._ledger.note(message)
        if visited:
            self._fail(message, link, now, Outcome.LOOP, _loop(self.me, message))
        elif len(hops) >= HOPS and message.kind not in _ABOUT_OTHERS:  # these tell of just that
            text = f"it has made {HOPS} hops"
            error = request_error(Code.OUT_OF_RANGE, text, reason="TOO_MANY_HOPS", at=self.me, delivered=False)
            self._fail(message, link, now, Outcome.DENIED, error)
        elif message.deadline <= now:
            self._fail(message, link, now, Outcome.EXPIRED, self._too_late(message))
        else:
            if len(hops) > 1:  # like a switch: its origin lies behind this link
                self._discovery.learn(Target("exchange", message.from_), link, len(hops), now)
            return True
        return False

    def _remember(self, message: Message, link: str | None, now: float) -> bool:
        """Open a request; refuses it if it is open already or too many are."""
        if message.id in self._open:
            text = "a request with this id is open here already"
            error = request_error(Code.ALREADY_EXISTS, text, reason="DUPLICATE", at=self.me, delivered=False)
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DENIED, reason=text)
            if link is not HERE:
                self._answer_error(message, link, now, error)
            return False
        if len(self._open) >= OPEN_REQUESTS:
            self._fail(message, link, now, Outcome.DROPPED, self._full(f"more than {OPEN_REQUESTS} requests are open"))
            return False
        entry = Open(message.id, message.name, message.from_, message.trail, link, message.deadline, many=message.many)
        self._open[message.id] = entry
        if link is not HERE:
            self.links[link].came.add(message.id)
        self._deadlines.add(message.deadline, message.id)
        return True

    def _dispatch(self, arrival: Arrival) -> None:
        """The four steps, for a send or a request."""
        message, link, now, via = arrival
        to = message.to
        if via is None and (to == self.me or (not to and message.name in self.offers)):
            if message.name in self.offers:
                self._take(message, link, now)
            else:
                self._fail(message, link, now, Outcome.UNHANDLED, self._unhandled(f"{self.me} does not handle it"))
            return
        if link is not HERE and not self.relay:
            reason = f"{self.me} does not handle it and does not relay"
            self._fail(message, link, now, Outcome.UNHANDLED, self._unhandled(reason))
            return
        if via is not None:
            self._forward(message, link, now, via, learned=False)
            return
        target = self._target(message)
        candidates = self._next_to(target, message)
        learned = not candidates
        if learned:
            candidates = self._behind(target, message)
        if candidates:
            self._forward(message, link, now, self._choose(candidates, message), learned=learned)
        elif self._discovery.full():
            error = self._full("too many messages wait for an answer about who takes them")
            self._fail(message, link, now, Outcome.DROPPED, error)
        else:
            message.hold()
            self._discovery.ask_for(target, arrival, now)

    def _next_to(self, target: Target, message: Message) -> tuple[str, ...]:
        """The linked peers that are, or offer, the target, and were not visited."""
        if target.kind == "exchange":
            found: tuple[str, ...] = (target.key,) if target.key in self.links else ()
        else:
            found = self._offered.get(target.key, ())
        return self._present(_unvisited(found, message))

    def _behind(self, target: Target, message: Message) -> tuple[str, ...]:
        """The linked peers behind which the target is, those with the fewest hops."""
        hops = self._discovery.ways(target)
        if not hops:
            return ()
        ways = self._present(_unvisited(hops, message))
        if len(ways) <= 1:
            return ways
        nearest = min(hops[link] for link in ways)
        return tuple(sorted(link for link in ways if hops[link] == nearest))

    def _present(self, links: tuple[str, ...]) -> tuple[str, ...]:
        """Those of them that are not away, if there are any."""
        if not self._away:
            return links
        return tuple(link for link in links if not self.links[link].away) or links

    def _take(self, message: Message, link: str | None, now: float) -> None:
        """Step 1: it is handled here."""
        entry = self._open.get(message.id) if message.kind is _REQUEST else None
        if entry is not None:
            entry.out = self.me
        try:
            taken = self._sig("deliver", (message, link))
        except LimitExceeded as error:
            self._fail(message, link, now, Outcome.DROPPED, self._full(str(error)))
            return
        if taken is False:  # those who claim the name listen to other links only
            self._fail(message, link, now, Outcome.UNHANDLED, self._unhandled(f"{self.me} does not handle it"))
        elif link is not HERE:
            self._show(Seen.RECEIVED, message)
        elif entry is None:
            self._sig("dispatched", (message, None))

    def _forward(self, message: Message, link: str | None, now: float, to: str, *, learned: bool) -> None:
        """Step 2: a peer takes it."""
        peer = self.links.get(to)
        if peer is None:
            error = Unavailable(f"the link to {to} was lost", at=self.me, delivered=False)
            self._fail(message, link, now, Outcome.DROPPED, error)
            return
        try:
            self._sig("transmit", (to, message))
        except LimitExceeded as error:
            self._fail(message, link, now, Outcome.DROPPED, self._full(str(error)))
            return
        except InvalidMessage as error:
            text = str(error)
            refusal = request_error(Code.INVALID_ARGUMENT, text, reason="INVALID_MESSAGE", at=self.me, delivered=False)
            self._fail(message, link, now, Outcome.DENIED, refusal)
            return
        self._ledger.record(message.id, now + self._origin.wall, _FORWARDED, by=to)
        if message.kind is _REQUEST:
            entry = self._open[message.id]
            entry.out = to
            entry.message = message if learned and not entry.again else None
            peer.out.add(message.id)
        elif link is HERE:
            self._sig("dispatched", (message, None))
        if link is not HERE and self.observed:
            self._show(Seen.FORWARDED, message)

    def _scatter(self, arrival: Arrival) -> None:
        """A request to many: to all who handle it here and next to here, and to all relays."""
        message, link, now, via = arrival
        if not self._spread.first(message.id, now):
            error = Unhandled("it was here by another way", reason="LOOP", at=self.me, delivered=False)
            self._answer_error(message, link, now, error)  # no outcome: the first copy has one
            return
        if not self._remember(message, link, now):
            return
        entry = self._open[message.id]
        scatter = entry.scatter = Scatter()
        if via is not None:
            takers: Iterable[str] = (via,)
        elif link is HERE or self.relay:
            takers = [peer.id for peer in self.links.values() if peer.relay or message.name in peer.handles]
        else:
            takers = ()
        if via is None and message.name in self.offers:
            self._take_one_of_many(message, link, scatter, now)
        for to in _unvisited(takers, message):
            peer = self.links.get(to)
            if peer is not None and self._pass_on(to, message, now):
                scatter.branches[to] = peer.relay
                peer.out.add(message.id)
                if link is not HERE:
                    self._show(Seen.FORWARDED, message)
            else:
                scatter.lose(to)
        self._ended_one_of_many(entry, now)

    def _take_one_of_many(self, message: Message, link: str | None, scatter: Scatter, now: float) -> None:
        scatter.branches[self.me] = False
        try:
            if not self._sig("deliver", (message, link)):
                del scatter.branches[self.me]
            elif link is not HERE:
                self._show(Seen.RECEIVED, message)
        except LimitExceeded as error:
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DROPPED, reason=str(error))
            scatter.lose(self.me)

    def _ended_one_of_many(self, entry: Open, now: float) -> None:
        """If nobody has it any more, say so to whoever asked."""
        scatter = entry.scatter
        if scatter is None or scatter.branches or self._open.get(entry.id) is not entry:
            return
        self._close(entry)
        if scatter.taken or scatter.lost:
            self._answer_error(entry.header(), entry.link, now, None, tuple(scatter.lost))
            return
        error = self._unhandled(f"nobody handles {entry.name} within reach of {self.me}")
        if entry.link is HERE:  # elsewhere it is not for us to conclude: others have it too
            self._ledger.record(entry.id, now + self._origin.wall, Outcome.UNHANDLED, reason=error.message)
            self._sig("message.unhandled", (entry.header(), error, Outcome.UNHANDLED))
        self._answer_error(entry.header(), entry.link, now, error)

    # ---------------------------------------------------------------------------- in: what belongs to others

    def _reply(self, message: Message, link: str | None, now: float) -> None:
        entry = self._open.get(message.reply_to)
        holder = self.me if link is HERE else link
        if entry is None or holder not in entry.holders():
            if message.lost is None:  # who ended by a last reply may say so once more
                reason = "nobody waits for it, or not from there"
                self._ledger.record(message.id, now + self._origin.wall, Outcome.DROPPED, reason=reason)
            return
        if entry.many:  # it may wait for its way as long as the request may
            message.deadline = max(message.deadline, entry.deadline)
        if link is not HERE and entry.message is not None and _astray(message.error, link):
            self._discovery.forget(self._target(entry.message), link)
            request, entry.message, entry.again = entry.message, None, True
            self.links[link].out.discard(entry.id)
            entry.out = None
            self._dispatch(Arrival(request, entry.link, now))
            return
        scatter = entry.scatter
        if scatter is None:
            if message.last or message.lost is not None or not entry.many:
                self._close(entry)
        elif not scatter.heard(holder, message):
            self._left(holder, entry)
            self._ended_one_of_many(entry, now)
            return
        if entry.link is HERE:
            if link is not HERE:
                self._show(Seen.RECEIVED, message)
            self._sig("resolve", (entry.id, message))
        elif not self._pass_back(entry.link, message, now, link):
            if scatter is not None:
                scatter.miss(message.from_)
            elif self._open.get(entry.id) is entry:  # whoever asked hears no more: there is no gap
                reason = "a reply could not be passed on"
                self._abandon(entry, now, Outcome.DROPPED, reason)
                # No message: there may be no room for it, and whoever asked may have no deadline.
                self._sig("control", (entry.link, Reject(0, entry.id, self._full(reason))))
        if scatter is not None and holder not in scatter.branches:
            self._left(holder, entry)
            self._ended_one_of_many(entry, now)

    def _pass_back(self, to: str, message: Message, now: float, link: str | None) -> bool:
        """A reply or an outcome goes one hop back. What cannot be said becomes an error that can; False then."""
        try:
            self._sig("transmit", (to, message))
        except InvalidMessage as error:
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DENIED, reason=str(error))
            if message.error is None and message.kind is Kind.REPLY:
                code = Code.RESOURCE_EXHAUSTED if isinstance(error, LimitExceeded) else Code.OUT_OF_RANGE
                refusal = request_error(code, f"the answer cannot be sent: {error}", reason="ANSWER", at=self.me)
                request = Message(message.reply_to, message.name, Kind.REQUEST, message.to, hop_trace=message.hop_trace)
                self._answer_error(request, to, now, refusal)
            return False
        self._ledger.record(message.id, now + self._origin.wall, Outcome.FORWARDED, by=to)
        if link is not HERE:
            self._show(Seen.FORWARDED, message)
        return True

    def _cancel(self, message: Message, link: str | None, now: float) -> None:
        entry = self._open.get(message.reply_to)
        if entry is None or entry.link != link:
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DROPPED, reason="no such open request")
            return
        self._abandon(entry, now, Outcome.CANCELLED, "the caller withdrew it", message)

    def _abandon(self, entry: Open, now: float, outcome: Outcome, reason: str, cancel: Message | None = None) -> None:
        """Nobody waits for this request any more: tell whoever has it."""
        self._close(entry)
        self._ledger.record(entry.id, now + self._origin.wall, outcome, reason=reason)
        for holder in entry.holders():
            if holder == self.me:
                self._sig("withdraw", entry.id)
                continue
            if cancel is None:
                context = Context.of(entry.header())
                cancel = self._origin.make(Kind.CANCEL, entry.name, context, now, reply_to=entry.id)
                self._ledger.note(cancel)
            self._transmit_quietly(holder, cancel)

    def _outcome(self, message: Message, link: str | None, now: float) -> None:
        if link is not HERE and _astray(message.error, link):
            self._discovery.forget(Target("name", message.name), link)
        if message.to == self.me:
            if link is not HERE:
                self._show(Seen.RECEIVED, message)
            failed = Message(message.reply_to, message.name, Kind.SEND, self.me, hop_trace=message.hop_trace)
            error = message.error or self._unhandled("no reason was given")
            self._sig("message.unhandled", (failed, error, message.outcome))
            return
        target = Target("exchange", message.to)
        ways = self._next_to(target, message) or self._behind(target, message)
        if ways and (link is HERE or self.relay):
            self._pass_back(ways[0], message, now, link)
        else:
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DROPPED, reason="its addressee is gone")

    def _publish(self, message: Message, link: str | None, now: float) -> None:
        if not self._spread.first(message.id, now):
            return
        if link is not HERE:
            self._show(Seen.RECEIVED, message)
        if any(fits(pattern, message.name) for pattern in self.subscriptions):
            self._sig("deliver", (message, link))
        if link is HERE or self.relay:
            interested = self._interested.match(message.name)
            visited = message.way
            for peer in self.links.values():
                if peer.id not in visited and (peer.relay or peer.id in interested):
                    self._pass_on(peer.id, message, now)
        if link is HERE:
            self._sig("dispatched", (message, None))

    def _broadcast(self, arrival: Arrival, sig: Sig, state: Any) -> None:
        message, _, now, _ = arrival
        self._ledger.note(message)
        self._show(Seen.EMITTED, message)
        for peer in self.links:
            self._pass_on(peer, message, now)
        self._sig("dispatched", (message, None))

    def _pass_on(self, to: str, message: Message, now: float) -> bool:
        """One of several copies: what one peer cannot take costs the others nothing."""
        try:
            self._sig("transmit", (to, message))
        except InvalidMessage as error:
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DROPPED, by=to, reason=str(error))
            return False
        self._ledger.record(message.id, now + self._origin.wall, Outcome.FORWARDED, by=to)
        return True

    def _transmit_quietly(self, to: str, message: Message) -> None:
        if to in self.links:
            with suppress(InvalidMessage):  # the link's queue is full: whoever waits there has a deadline
                self._sig("transmit", (to, message))

    # ------------------------------------------------------------------------------------- how things fail

    def _fail(self, message: Message, link: str | None, now: float, outcome: Outcome, error: RequestError) -> None:
        """Step 4, and every refusal: recorded here, signalled here, and told to the origin."""
        self._ledger.record(message.id, now + self._origin.wall, outcome, reason=error.message)
        if outcome is Outcome.UNHANDLED or (link is HERE and self._had_left(message)):
            self._sig("message.unhandled", (message, error, outcome))
        entry = self._open.get(message.id) if message.kind is Kind.REQUEST else None
        if entry is not None and entry.link == link:
            self._close(entry)
        if link is not HERE:
            self._show(Seen.RECEIVED, message)
        if message.kind is Kind.REQUEST:
            self._answer_error(message, link, now, error)
        elif link is HERE:
            self._sig("dispatched", (message, error))
        elif message.kind is Kind.SEND:
            self._report(message, link, now, outcome, error)

    def _had_left(self, message: Message) -> bool:
        """A send that was routed before: whoever emitted it waits no more, and hears of it as of an outcome."""
        span = self._ledger.find(message.id)
        forwarded = span is not None and any(event[1] is Outcome.FORWARDED for event in span.events)
        return message.kind is Kind.SEND and forwarded

    def _answer_error(
        self, request: Message, link: str | None, now: float, error: RequestError | None, lost: tuple[str, ...] = ()
    ) -> None:
        """The reply of this exchange itself to a request that ends here; only one to many ends without an error."""
        reply = self._origin.make(
            Kind.REPLY, request.name, Context.of(request), now,
            to=request.from_, reply_to=request.id, last=True, error=error, lost=lost if request.many else None,
            seconds=max(MESSAGE_SECONDS, request.deadline - now) if request.many else MESSAGE_SECONDS,
        )  # fmt: skip
        self._ledger.note(reply)
        self._show(Seen.EMITTED, reply)
        if link is HERE:
            self._sig("resolve", (request.id, reply))
        else:
            self._transmit_quietly(link, reply)

    def _unhandled(self, reason: str) -> Unhandled:
        return Unhandled(reason, at=self.me, delivered=False)

    def _too_late(self, message: Message) -> RequestError:
        return request_error(Code.DEADLINE_EXCEEDED, f"the time for {message.name} was over at {self.me}", at=self.me)

    def _full(self, text: str) -> RequestError:
        return request_error(Code.RESOURCE_EXHAUSTED, text, reason="FULL", at=self.me, delivered=False)

    def _rejected(self, rejection: Rejection, sig: Sig, state: Any) -> None:
        link, id, error, now = rejection
        entry = self._open.get(id)
        if entry is not None and link in entry.holders():
            self._lose_holder(entry, link, now, error)
        span = self._ledger.find(id)
        passed = span is not None and span.was(Outcome.FORWARDED, link) and not span.was(Outcome.DENIED, link)
        if span is not None and passed and span.kind is Kind.SEND:
            message = span.header()
            self._report(message, _came_by(message), now, Outcome.DENIED, error)
        self._ledger.record(id, now + self._origin.wall, Outcome.DENIED, by=link, reason=error.message)

    def _failed(self, failure: Failure, sig: Sig, state: Any) -> None:
        message, link, outcome, error, now = failure
        if message.kind is Kind.SEND:
            self._report(message, link, now, outcome, error)

    def _expired(self, expired: tuple[list[Message], float], sig: Sig, state: Any) -> None:
        messages, now = expired
        for message in messages:
            self._ledger.record(message.id, now + self._origin.wall, Outcome.EXPIRED, reason="it waited too long")
            if message.kind is Kind.SEND:
                self._report(message, _came_by(message), now, Outcome.EXPIRED, self._too_late(message))

    def _report(self, message: Message, link: str | None, now: float, outcome: Outcome, error: RequestError) -> None:
        """Tell the origin of a send, which may be here, what became of it."""
        if link is HERE:
            self._sig("message.unhandled", (message, error, outcome))
            return
        report = self._origin.make(
            Kind.OUTCOME, message.name, Context.of(message), now,
            to=message.from_, reply_to=message.id, outcome=outcome, error=error,
        )  # fmt: skip
        self._ledger.note(report)
        self._show(Seen.EMITTED, report)
        self._transmit_quietly(link, report)

    # ---------------------------------------------------------------------------------------- open requests

    def _close(self, entry: Open) -> None:
        self._open.pop(entry.id, None)
        if entry.link is not HERE and entry.link in self.links:
            self.links[entry.link].came.discard(entry.id)
        for holder in entry.holders():
            self._left(holder, entry)

    def _left(self, holder: str, entry: Open) -> None:
        if holder in self.links:
            self.links[holder].out.discard(entry.id)

    def _lose_holder(self, entry: Open, holder: str, now: float, error: RequestError) -> None:
        """Who has it will not answer (any more)."""
        if entry.scatter is None:
            self._close(entry)
            self._answer_error(entry.header(), entry.link, now, error)
        else:
            self._left(holder, entry)
            entry.scatter.lose(holder)
            self._ended_one_of_many(entry, now)

    def next_deadline(self) -> float | None:
        """When `tick` is due: None if nothing waits."""
        mine, others = self._deadlines.next(), self._discovery.next_deadline()
        if mine is None or others is None:
            return others if mine is None else mine
        return min(mine, others)

    def tick(self, now: float) -> None:
        """Tell routing the time: what is over ends."""
        for id in self._deadlines.due(now):
            entry = self._open.get(id)
            if entry is not None and entry.deadline <= now:
                late = entry.holders()
                self._abandon(entry, now, Outcome.EXPIRED, "its time was over")
                if entry.scatter is None:
                    self._answer_error(entry.header(), entry.link, now, self._too_late(entry.header()))
                else:  # what has come so far counts, and whose replies have not is said
                    lost = (*late, *entry.scatter.lost)[:LOST_NAMES]
                    self._answer_error(entry.header(), entry.link, now, None, lost)
        self._discovery.tick(now)

    # ------------------------------------------------------------------------------------- links and interest

    def _connect(self, peer: Neighbour, sig: Sig, state: Any) -> None:
        link = self.links.get(peer.id)
        if link is None:
            link = self.links[peer.id] = Link(peer.id, peer.relay)
        else:  # it is there again, and says all anew
            self._back(link)
            self._no_longer_offers(link, link.handles - set(peer.handles))
            self._no_longer_wants(link, link.subscribes - set(peer.subscribes))
            self._relays(link, peer.relay)
            self._discovery.back(link.id, peer.now)
        if peer.id in self._expected and peer.relay:
            self._settled = peer.now + SETTLE_SECONDS
        self._expected.discard(peer.id)
        self._discovery.changed()
        self._now_offers(link, peer.handles, peer.now)
        self._now_wants(link, peer.subscribes)
        self._discovery.turned_up(Target("exchange", peer.id), peer.now)

    def _left_for_now(self, away: tuple[str, float], sig: Sig, state: Any) -> None:
        link = self.links.get(away[0])
        if link is not None and not link.away:
            link.away = True
            self._away += 1

    def _back(self, link: Link) -> None:
        if link.away:
            link.away = False
            self._away -= 1

    def _disconnect(self, lost: Lost, sig: Sig, state: Any) -> None:
        if lost.expected:
            self._expected.add(lost.id)
        else:
            self._expected.discard(lost.id)
        link = self.links.pop(lost.id, None)
        if link is None:
            return
        now = lost.now
        self._back(link)
        self._no_longer_offers(link, link.handles)
        self._no_longer_wants(link, link.subscribes)
        for id in sorted(link.came):  # before its questions end, which would answer what nobody waits for any more
            reason = f"the link to {link.id}, which asked, was lost"
            self._abandon(self._open[id], now, Outcome.CANCELLED, reason)
        waiting = {message.id for message in lost.unsent}
        for id in sorted(link.out):
            entry = self._open[id]
            if id in waiting and entry.scatter is None:  # it goes another way
                entry.out = None
                continue
            error = Unavailable(
                f"the link to {link.id} was lost", at=self.me, delivered=False if id in waiting else None
            )
            self._ledger.record(id, now + self._origin.wall, Outcome.DROPPED, by=link.id, reason=error.message)
            self._lose_holder(entry, link.id, now, error)
        self._discovery.withdraw(Target("exchange", link.id))
        self._discovery.lost(link.id, now)

    def _reroute(self, unsent: tuple[str, list[Message], float], sig: Sig, state: Any) -> None:
        """What never left on a link goes another way, if it is to anybody else, or fails."""
        lost, messages, now = unsent
        for message in messages:
            error = Unavailable(f"the link to {lost} was lost", at=self.me, delivered=False)
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DROPPED, by=lost, reason=error.message)
            arrival = Arrival(message, _came_by(message), now)
            if message.kind is Kind.SEND:
                self._dispatch_again(arrival, error)
            elif message.kind is Kind.REQUEST:
                entry = self._open.get(message.id)
                if entry is not None and entry.out is None and entry.scatter is None:
                    self._dispatch_again(arrival, error)
            elif lost in self.links:
                self._transmit_quietly(lost, message)
            message.let_go()  # of what the link held

    def _dispatch_again(self, arrival: Arrival, error: RequestError) -> None:
        message, link, now, _ = arrival
        target = self._target(message)
        others = self._next_to(target, message) or self._behind(target, message)
        if others or next(self.relays(), None) is not None:
            self._dispatch(arrival)
        else:
            self._fail(message, link, now, Outcome.DROPPED, error)

    def _uncertain(self, uncertain: tuple[str, list[str], float], sig: Sig, state: Any) -> None:
        link, ids, now = uncertain
        text = f"the link to {link} was lost: it may have arrived"
        error = Unavailable(text, reason="UNCERTAIN", at=self.me, delivered=None)
        for id in ids:
            self._ledger.record(id, now + self._origin.wall, Outcome.DROPPED, by=link, reason=text)
            span = self._ledger.find(id)
            if span is not None and span.kind is Kind.SEND:
                message = span.header()
                self._report(message, _came_by(message), now, Outcome.DROPPED, error)

    def _dropped(self, dropped: tuple[str, list[Message], str, float], sig: Sig, state: Any) -> None:
        link, messages, policy, now = dropped
        for message in messages:
            error = self._full(f"it was dropped for newer ones: {link} reads too slowly ({policy})")
            self._ledger.record(message.id, now + self._origin.wall, Outcome.DROPPED, by=link, reason=error.message)
            entry = self._open.get(message.id)
            if entry is not None and link in entry.holders():
                self._lose_holder(entry, link, now, error)
            elif message.kind is Kind.SEND:
                self._report(message, _came_by(message), now, Outcome.DROPPED, error)

    def _interest(self, change: tuple[str, Interest, float], sig: Sig, state: Any) -> None:
        id, interest, now = change
        link = self.links.get(id)
        if link is None:
            return
        self._no_longer_offers(link, interest.no_longer_handles)
        self._no_longer_wants(link, interest.no_longer_subscribes)
        self._now_wants(link, interest.subscribes)
        if interest.relay is not None:
            self._relays(link, interest.relay)
            self._discovery.changed()
        self._now_offers(link, interest.handles, now)

    def _relays(self, link: Link, relay: bool) -> None:
        link.relay = relay
        for open_ in link.out if relay else ():  # it passes on what it has not got yet
            scatter = self._open[open_].scatter
            if scatter is not None:
                scatter.branches[link.id] = True

    def _now_wants(self, link: Link, patterns: Iterable[str]) -> None:
        for pattern in patterns:
            if pattern not in link.subscribes:
                link.subscribes.add(pattern)
                self._interested.add(pattern, link.id)

    def _no_longer_wants(self, link: Link, patterns: Iterable[str]) -> None:
        for pattern in list(patterns):
            if pattern in link.subscribes:
                link.subscribes.discard(pattern)
                self._interested.discard(pattern, link.id)

    def _now_offers(self, link: Link, names: Iterable[str], now: float) -> None:
        for name in names:
            if name not in link.handles:
                link.handles.add(name)
                self._offered[name] = tuple(sorted((*self._offered.get(name, ()), link.id)))
                self._discovery.turned_up(Target("name", name), now)

    def _no_longer_offers(self, link: Link, names: Iterable[str]) -> None:
        for name in sorted(names):
            if name in link.handles:
                link.handles.discard(name)
                rest = tuple(id for id in self._offered[name] if id != link.id)
                if rest:
                    self._offered[name] = rest
                else:
                    del self._offered[name]
                self._discovery.withdraw(Target("name", name))

    def _offer(self, change: tuple[str, bool, float], sig: Sig, state: Any) -> None:
        name, offered, now = change
        target = Target("name", name)
        if offered and name not in self.offers:
            self.offers.add(name)
            self._sig("announce", ((name,), (), (), ()))
            self._discovery.turned_up(target, now)
        elif not offered and name in self.offers:
            self.offers.discard(name)
            self._sig("announce", ((), (), (name,), ()))
            self._discovery.withdraw(target)

    def _subscribe(self, change: tuple[str, bool], sig: Sig, state: Any) -> None:
        pattern, wanted = change
        if wanted and pattern not in self.subscriptions:
            self.subscriptions.add(pattern)
            self._sig("announce", ((), (pattern,), (), ()))
        elif not wanted and pattern in self.subscriptions:
            self.subscriptions.discard(pattern)
            self._sig("announce", ((), (), (), (pattern,)))

    # ----------------------------------------------------------------------------------- what discovery asks of us

    def _query(self, asked: tuple[str, Query, float], sig: Sig, state: Any) -> None:
        link, query, now = asked
        peer = self.links.get(link)
        if peer is not None:
            self._discovery.query(link, query, now, from_relay=peer.relay)

    def _answer(self, answered: tuple[str, Answer, float], sig: Sig, state: Any) -> None:
        link, answer, now = answered
        if link in self.links:
            self._discovery.answer(link, answer, now)

    def relays(self) -> Iterator[str]:
        """See `discovery.Home`."""
        return (link.id for link in self.links.values() if link.relay)

    def patient(self, now: float) -> bool:
        """See `discovery.Home`."""
        return now < self._settled or bool(self._away and any(peer.away and peer.relay for peer in self.links.values()))

    def near(self, target: Target, without: str) -> int | None:
        """See `discovery.Home`."""
        named = target.kind == "name"
        if target.key in self.offers if named else target.key == self.me:
            return 0
        if not self.relay:
            return None
        takers: Iterable[str] = self._offered.get(target.key, ()) if named else self.links.keys() & {target.key}
        return 1 if any(link != without for link in takers) else None

    def say(self, link: str, frame: Query | Answer) -> bool:
        """See `discovery.Home`."""
        return link in self.links and bool(self._sig("control", (link, frame)))

    def resume(self, held: Held, now: float) -> bool:
        """See `discovery.Home`."""
        assert isinstance(held, Arrival)
        message, target = held.message, self._target(held.message)
        withdrawn = message.kind is Kind.REQUEST and message.id not in self._open  # or its time was over
        mine = target.kind == "name" and target.key in self.offers
        if not withdrawn and not (mine or self._next_to(target, message) or self._behind(target, message)):
            return False
        if not withdrawn:
            self._dispatch(held._replace(now=now))
        message.let_go()
        return True

    def give_up(self, held: Held, target: Target, now: float, *, incomplete: bool) -> None:
        """See `discovery.Home`."""
        assert isinstance(held, Arrival)
        self._nobody_takes(held._replace(now=now), target, incomplete=incomplete)
        held.message.let_go()

    def _nobody_takes(self, arrival: Arrival, target: Target, *, incomplete: bool) -> None:
        message, link, now, _ = arrival
        what = f"nobody handles {target.key}" if target.kind == "name" else f"there is no exchange {target.key}"
        if self._expected:
            gone = " and ".join(sorted(self._expected)[:3])
            text = f"{what} within reach of {self.me}, but the link to {gone} is lost"
            error: RequestError = Unavailable(text, at=self.me, delivered=False)
        elif not incomplete:
            alone = "" if self.links else " (it is linked to nobody)"
            error = self._unhandled(f"{what} within reach of {self.me}{alone}")
        else:
            text = f"{what} next to {self.me}, and not all others answered within {QUESTION_SECONDS:g} s"
            error = Unavailable(text, reason="INCOMPLETE", at=self.me, delivered=False)
        self._fail(message, link, now, Outcome.UNHANDLED, error)

    @staticmethod
    def _target(message: Message) -> Target:
        return Target("exchange", message.to) if message.to else Target("name", message.name)

    # ------------------------------------------------------------------------------------------ introspection

    @property
    def open_requests(self) -> int:
        """How many requests await their reply."""
        return len(self._open)

    def load(self) -> dict[str, int]:
        """What waits for answers about who takes what, and how many ways are known."""
        return self._discovery.load()

    def routes(self, target: str = "") -> list[dict[str, Any]]:
        """The ways to names and exchanges, or to one target: from here, next to here, and found out or learned."""
        ways = [("exchange", self.me, "", 0), *(("name", name, "", 0) for name in self.offers)]
        for link in self.links.values():
            ways.append(("exchange", link.id, link.id, 1))
            ways += (("name", name, link.id, 1) for name in link.handles)
        ways += self._discovery.known()
        return [
            {"kind": kind, "target": key, "via": via, "hops": hops}
            for kind, key, via, hops in sorted(ways, key=lambda way: (way[1], way[3], way[2]))
            if key == target or (not target and not key.startswith(RESERVED))
        ]

    def peers(self) -> list[dict[str, Any]]:
        """What is known of every peer, in plain JSON."""
        return [
            {
                "id": link.id,
                "away": link.away,
                "relay": link.relay,
                "handles": sorted(link.handles),
                "subscribes": sorted(link.subscribes),
                "pending": len(link.out),
            }
            for link in self.links.values()
        ]


def _unvisited(links: Iterable[str], message: Message) -> tuple[str, ...]:
    visited = message.way
    if len(visited) == 1:  # here alone, which is no link
        return tuple(links)
    return tuple([link for link in links if link not in visited])


def _came_by(message: Message) -> str | None:
    """The link by which a message got here: the hop before ours."""
    return message.way[-2] if len(message.way) > 1 else HERE


def _astray(error: RequestError | None, link: str) -> bool:
    """The very peer from which we had the way says that it leads nowhere.

    Only its neighbour asks again: were everybody on the way to, each hop would double the attempts.
    """
    return error is not None and error.reason in NOBODY and error.at == link


def _loop(me: str, message: Message) -> RequestError:
    way = " -> ".join(message.way)
    return Unhandled(f"it came back to {me}: {way}", reason="LOOP", at=me, delivered=False)
