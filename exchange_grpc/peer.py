"""The session of two exchanges, from Hello to Goodbye, over as many connections as it takes.

Law: sans-IO. Bytes that came in go into `receive`, which returns what they mean; what shall be said
goes into `send`, `announce`, `control` and `goodbye`, and comes out of `data_to_send` as bytes;
`tick` is told the time, at `next_deadline` at the latest. No socket, clock or randomness: the same input gives
the same output.

    OPENING --Hello, Welcome--> OPEN --goodbye--> CLOSING --queue empty, Goodbye, Goodbye--> CLOSED
       ^                         |
       +--dial / rejoin-- AWAY <-+ the connection broke: what has left and was not acknowledged is kept

A session is resumed by who has its token, which changes each time. `Resumed.recovered` is true if the session
went on: nothing was lost, nothing will be taken twice. Otherwise a new one has begun, and what is uncertain
is told. A Goodbye is answered by a Goodbye, so both know what the other has taken. AWAY for `away_seconds`, the
peer is `Missing`: nobody should wait for it any more. AWAY for `resume_seconds`, the session is `Forgotten`.

Control frames never wait behind messages: `data_to_send` gives them first, then one Batch with as many
of the queued messages as one write may carry. So batches form by themselves while a write is under way.

A link is never trusted about who it is. A message counts only if its last hop is the peer; and from a
peer that does not relay, only if the peer made it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from hmac import compare_digest
from math import inf

from . import wire
from .errors import Code, InvalidMessage, LimitExceeded, RequestError
from .frames import (
    Ack,
    Answer,
    Batch,
    Credit,
    Frame,
    Goodbye,
    Hello,
    Interest,
    Introduction,
    Ping,
    Pong,
    Query,
    Refusal,
    Reject,
    Welcome,
)
from .inbox import Gap, Inbox
from .limits import ACK_SECONDS, CONTEST_SECONDS, CONTROL_FRAMES, NAMES_PER_PEER, Limits
from .message import Kind, Message
from .outbox import AROUND, WAIT, Outbox

VALUE = "value"  # the feature: payloads are wanted as `value`
RESUME = "resume"  # ... it acknowledges, and may resume
PING = "ping"  # ... it answers Ping
FEATURES = (PING, RESUME)  # ours
_TOKEN_BYTES = 16
_SESSION_BYTES = 8
_DEFAULTS = Limits()


class Phase(Enum):
    """Where a session stands."""

    OPENING = "opening"
    OPEN = "open"
    AWAY = "away"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(slots=True, frozen=True)
class Opened:
    """The first handshake is done: this is the peer."""

    peer: Introduction


@dataclass(slots=True, frozen=True)
class Resumed:
    """The peer is there again. If the session could not be recovered: what is uncertain, by id, and what never left."""

    peer: Introduction
    recovered: bool
    uncertain: list[str] = field(default_factory=list)
    unsent: list[Message] = field(default_factory=list)


@dataclass(slots=True, frozen=True)
class Received:
    """Messages, each with its last hop confirmed."""

    messages: list[Message]


@dataclass(slots=True, frozen=True)
class Rejected:
    """The peer refused a message of ours."""

    id: str
    error: RequestError


@dataclass(slots=True, frozen=True)
class Broken:
    """This connection is of no use any more; the session may be resumed over another, not before `retry_after_ms`."""

    reason: str
    retry_after_ms: int = 0


@dataclass(slots=True, frozen=True)
class Missing:
    """The peer has been away for so long that nobody should wait: what has not left goes another way, or fails."""

    unsent: list[Message]


@dataclass(slots=True, frozen=True)
class Forgotten:
    """The session cannot be resumed any more: nobody knows whether the messages with these ids arrived."""

    uncertain: list[str]


@dataclass(slots=True, frozen=True)
class Ended:
    """The session is over: as planned if `code` is OK. Nothing else follows. `by` is the id of who ended it."""

    code: Code
    reason: str
    by: str
    retry_after_ms: int = 0
    stay_away: bool = False


Event = (
    Opened | Resumed | Received | Rejected | Interest | Query | Answer | Broken | Missing | Forgotten | Ended
)  # fmt: skip


class Backoff:
    """When to dial again: at once, then after a random part of a time that doubles up to a bound.

    `draw` gives a number from 0 to 1. A link that breaks right after it was made does not count as made.
    """

    def __init__(self, limits: Limits, draw: Callable[[], float]) -> None:
        self._limits = limits
        self._draw = draw
        self._attempts = 0
        self._made = inf

    def made(self, now: float) -> None:
        """The link is there."""
        self._made = now

    def broke(self, now: float) -> None:
        """... and gone."""
        if now - self._made >= self._limits.reconnect_min_seconds:
            self._attempts = 0
        self._made = inf  # an attempt that comes to nothing was never made

    def next(self) -> float:
        """The seconds until the next attempt."""
        self._attempts += 1
        if self._attempts == 1:
            return 0.0
        most = self._limits.reconnect_min_seconds * 2.0 ** min(self._attempts - 2, 64)
        return self._draw() * min(most, self._limits.reconnect_max_seconds)


class Session:
    """One side of a link.

    `me` is what Hello or Welcome will say. The side that `dialled` speaks first; the other side calls
    `welcome` once it has seen who it is (the `Opened` event), or `goodbye` to refuse, or lets the session that
    it has with that peer already `rejoin`. `draw` gives so many random bytes; without it no session of ours
    can be resumed.
    """

    def __init__(
        self,
        me: Introduction,
        *,
        dialled: bool,
        now: float,
        limits: Limits = _DEFAULTS,
        when_full: str = WAIT,
        draw: Callable[[int], bytes] | None = None,
    ) -> None:
        self.me = me
        self.dialled = dialled
        self.phase = Phase.OPENING
        self.peer: Introduction | None = None
        self.as_value = False
        self.out = Outbox(when_full)
        self.into = Inbox(limits)
        self._limits = limits
        self._away_seconds = min(limits.away_seconds, limits.resume_seconds)  # who is forgotten is missing
        self._draw = draw
        self._met = False  # the peer has introduced itself on this connection
        self._since = now  # this connection began
        self._left = now  # the last one that was open broke
        self._missing = self._forgotten = False  # ... so long ago that this was told
        self._session = ""
        self._token = self._former_token = b""  # the former counts until the peer is known to have the other
        self._gap_at = 0  # a gap was found behind this number
        self._heard = self._pinged = self._ticked = now
        self._contested: float | None = None
        self._ping: int | None = None
        self._pong: int | None = None
        self._control: deque[bytes] = deque()
        self._rejects: deque[bytes] = deque()
        self._revision = me.revision
        self._goodbye: Goodbye | None = None
        self.leaves = False  # by our own wish
        self._parting = False  # our Goodbye has left: nothing more is taken, and theirs is awaited
        self._expected = 0  # revision of the peer's interest
        self._handles: set[str] = set()
        self._subscribes: set[str] = set()
        if dialled:
            self._control.append(wire.encode(Hello(self._introduction())))

    # ------------------------------------------------------------------------------- connections come and go

    def dial(self, me: Introduction, now: float) -> None:
        """We who dialled have a new connection: Hello again."""
        self.me, self._revision = me, me.revision
        self.phase, self._met, self._since = Phase.OPENING, False, now
        self._heard = self._ticked = now
        self._control.clear()  # of an attempt that came to nothing
        if not self._session:
            self.into.begin()
        self._control.append(wire.encode(Hello(self._introduction())))

    def disconnected(self, now: float) -> bool:
        """The connection is gone. Whether it is worth while to wait for the peer: by `dial` or `rejoin` it goes on."""
        if self.phase is Phase.OPEN and (self.dialled or self._token):
            self._leave(now)
        elif self.phase is Phase.OPENING and self.peer is not None and self.dialled:
            self.phase = Phase.AWAY
        elif self.phase is not Phase.AWAY:
            self.phase = Phase.CLOSED
        return self.phase is Phase.AWAY

    def _leave(self, now: float) -> None:
        self.phase, self._met, self._left = Phase.AWAY, False, now
        self._missing = self._forgotten = False
        self._contested = self._ping = self._pong = None
        self._control.clear()  # said anew in Hello and Welcome, but for what was refused

    def revive(self, now: float) -> None:
        """After its end: we who dialled may dial again, for a new session. See `lost` for the old one."""
        self._leave(now)
        self._goodbye, self._parting = None, False
        self._missing = self._forgotten = True

    def rejoin(self, peer: Introduction, me: Introduction, now: float) -> list[Event] | None:
        """The peer has dialled again, and says this. None if the connection that we have may be alive.

        Then whoever dialled is to be refused: he may come back when the other one has had time to answer. If both
        dial at the same time, the attempt of the smaller id counts.
        """
        if self.phase in (Phase.CLOSING, Phase.CLOSED):
            return None
        if self.phase is Phase.OPENING and self.dialled and self.me.exchange < peer.exchange:
            return None
        if self._proves_itself(peer):
            try:
                self.out.resumed(peer.received, peer.received_bytes)
            except InvalidMessage:
                return self._begin_anew(peer, me, now)
            return self._go_on(peer, me, now)
        if self.phase is not Phase.AWAY and not self._contest_lost(now):
            if self._contested is None and self._answers_pings():
                self._contested = now
                self._ask(now)
            return None
        return self._begin_anew(peer, me, now)

    def _contest_lost(self, now: float) -> bool:
        """Whether the peer that we have was asked because of this, and has not answered."""
        return self._contested is not None and now >= self._contested + CONTEST_SECONDS

    def _proves_itself(self, peer: Introduction) -> bool:
        known = self.peer
        same = known is not None and (known.exchange, known.epoch) == (peer.exchange, peer.epoch)
        if not same or not self._token or self._forgotten or peer.session != self._session:
            return False
        former = bool(self._former_token) and compare_digest(peer.token, self._former_token)
        return compare_digest(peer.token, self._token) or former

    def _go_on(self, peer: Introduction, me: Introduction, now: float) -> list[Event]:
        self._former_token = peer.token
        self._present(peer, me, now, recovered=True)
        return [Resumed(peer, True)]

    def _begin_anew(self, peer: Introduction, me: Introduction, now: float) -> list[Event]:
        uncertain, unsent = self.lost()
        self.into.begin()
        self._present(peer, me, now, recovered=False)
        return [Resumed(peer, False, uncertain, unsent)]

    def lost(self) -> tuple[list[str], list[Message]]:
        """The session is over: the ids of what is uncertain, and what never left. Nothing more is taken."""
        return self._forget(), self.out.take_unsent()

    def _forget(self) -> list[str]:
        self._session, self._token, self._former_token = "", b"", b""
        self._gap_at = 0
        self._rejects.clear()
        self._parting = self.phase is Phase.CLOSING  # if its Goodbye has not left yet
        self.out.keeps = False
        return self.out.take_uncertain()

    def _present(self, peer: Introduction, me: Introduction, now: float, *, recovered: bool) -> None:
        """Welcome the peer, whom we know, on a new connection."""
        self._control.clear()
        self._contested = self._ping = self._pong = self._goodbye = None
        self._since = self._heard = self._ticked = now
        self._meet(peer, recovered=recovered)
        self.welcome(me, recovered=recovered)

    # -------------------------------------------------------------------------------------------- in

    def receive(self, data: bytes, now: float) -> list[Event]:
        """What the bytes of one frame mean. A frame that breaks the protocol ends the session."""
        if self.phase in (Phase.CLOSED, Phase.AWAY):
            return []
        self._heard = now
        self._contested = None
        try:
            frame = wire.decode(data, now)
        except InvalidMessage as error:
            return self._broken(str(error))
        return self._understood(frame, len(data), now) if self._met else self._introduced(frame)

    def _introduced(self, frame: Frame) -> list[Event]:
        if isinstance(frame, Goodbye):
            return self._goodbye_heard(frame)
        if self.phase is Phase.CLOSING:  # we have said goodbye already: who it was does not matter any more
            return []
        wanted = Welcome if self.dialled else Hello
        if not isinstance(frame, Hello | Welcome) or not isinstance(frame, wanted):
            return self._broken(f"the first frame is a {wanted.__name__}")
        peer = frame.me
        if peer.exchange == self.me.exchange:
            return self._refuse(Code.ALREADY_EXISTS, f"both ends of this link call themselves {peer.exchange}")
        if max(len(peer.handles), len(peer.subscribes), len(peer.exports)) > NAMES_PER_PEER:
            return self._broken(f"more than {NAMES_PER_PEER} names or patterns are declared")
        if not self.dialled or self.peer is None:
            self._meet(peer)
            return [Opened(peer)]
        return self._welcomed_back(peer)

    def _welcomed_back(self, peer: Introduction) -> list[Event]:
        """We have dialled again."""
        if not peer.recovered:
            uncertain, unsent = self.lost()
            self.into.begin(told=True)
            self._meet(peer)
            return [Resumed(peer, False, uncertain, unsent)]
        known = self.peer
        assert known is not None
        ours = (known.exchange, known.epoch, self._session)
        if not self._session or (peer.exchange, peer.epoch, peer.session) != ours:
            return self._broken("a session is resumed that is none of ours")
        try:
            self.out.resumed(peer.received, peer.received_bytes)
        except InvalidMessage as error:
            return self._broken(str(error))
        self._meet(peer, recovered=True)
        return [Resumed(peer, True)]

    def _meet(self, peer: Introduction, *, recovered: bool = False) -> None:
        """This is the peer, and what it has said of itself."""
        self.peer, self._met = peer, True
        self._missing = self._forgotten = False
        self.as_value = self.as_value or VALUE in peer.features
        self._expected = peer.revision
        self._handles, self._subscribes = set(peer.handles), set(peer.subscribes)
        resumes = RESUME in peer.features and RESUME in self.me.features
        self.out.keeps = self.into.acknowledges = resumes
        self.out.credit = peer.credit
        if not recovered:
            self.out.begin()
            if peer.credit is not None:  # said for the session that could have gone on
                self.out.credit = peer.credit.beyond(peer.received, peer.received_bytes)
        if self.dialled:
            self._session, self._token = (peer.session, peer.token) if resumes else ("", b"")
            self.phase = Phase.OPEN

    def _understood(self, frame: Frame, size: int, now: float) -> list[Event]:
        if isinstance(frame, Batch):
            return [] if self._parting else self._batch(frame, size, now)
        if not isinstance(frame, Interest | Query | Answer):  # which may be said before our Welcome is heard
            self._former_token = b""
        if isinstance(frame, Ack):
            return self._acknowledged(frame)
        if isinstance(frame, Credit):
            self.out.credited(frame)
            return []
        if isinstance(frame, Ping):
            self._pong = frame.nonce
            return []
        if isinstance(frame, Query | Answer):
            return [frame]
        if isinstance(frame, Interest):
            return self._interest(frame)
        if isinstance(frame, Reject):
            return [Rejected(frame.id or self.out.id_of(frame.seq), frame.error)]
        if isinstance(frame, Goodbye):
            return self._goodbye_heard(frame)
        if isinstance(frame, Hello | Welcome):
            return self._broken("an introduction comes once, as the first frame")
        return []

    def _acknowledged(self, ack: Ack) -> list[Event]:
        try:
            self.out.acknowledged(ack.seq)
            self.out.settled(ack.settled)
        except InvalidMessage as error:
            return self._broken(str(error))
        return []

    def _batch(self, batch: Batch, size: int, now: float) -> list[Event]:
        self._former_token = b""
        self.as_value = self.as_value or batch.used_value
        into = self.into
        try:
            first, new = into.take(batch.seq, list(batch.messages), size, now)
        except Gap as error:
            return self._gap(str(error), now)
        except InvalidMessage as error:
            return self._broken(str(error))
        taken: list[Message] = []
        counted = 0  # the last one that needs credit
        for seq, message in enumerate(new, first):
            if isinstance(message, Message):
                if message.kind is not Kind.CANCEL:
                    counted = seq
                refusal = self._admit(message, seq)
                if refusal is None:
                    message.keeper, message.seq, message._holds = into, into.before + seq, 0
                    taken.append(message)
                    continue
                message = Refusal(message.id, wire.refused(refusal))
            into.settle(into.before + seq)
            self.reject(seq, message.id, message.error)
        if counted and self.peer is not None and self.peer.credit is not None:
            try:
                into.check_credit(counted)
            except LimitExceeded as error:
                return self._refuse(Code.RESOURCE_EXHAUSTED, str(error))
        return [Received(taken)] if taken else []

    def _gap(self, reason: str, now: float) -> list[Event]:
        """Once, the peer may send again what is missing."""
        at = self.into.received + 1
        if self._gap_at == at or not self._token or self.phase is not Phase.OPEN:
            return self._refuse(Code.DATA_LOSS, reason)
        self._gap_at = at
        self._leave(now)
        return [Broken(reason)]

    def _admit(self, message: Message, seq: int) -> InvalidMessage | None:
        """Confirm who sent it, and fill in what a simple peer leaves out."""
        peer = self.peer
        assert peer is not None
        if not message.way:
            message.reached(peer.exchange, message.timestamp)
        way = message.way
        if not message.from_:
            message.from_ = way[0]
        if not message.id and message.from_ != peer.exchange:
            return InvalidMessage("it is passed on, and has no id")
        if not message.id:
            message.id = f"{message.from_}.{peer.epoch}.{seq}"
        if way[-1] != peer.exchange:
            return InvalidMessage(f"its last hop is {way[-1]}, but it came from {peer.exchange}")
        if way[0] != message.from_ or not message.id.startswith(message.from_ + "."):
            return InvalidMessage("its id, its `from` and its first hop do not agree")
        if len(way) > 1 and not peer.relay:
            return InvalidMessage(f"{peer.exchange} does not relay, so it cannot pass on a message of {message.from_}")
        return None

    def _interest(self, interest: Interest) -> list[Event]:
        if interest.revision != self._expected + 1 and interest.revision:
            return self._broken(f"interest revision {interest.revision} came after {self._expected}")
        self._expected = interest.revision
        self._handles.difference_update(interest.no_longer_handles)
        self._handles.update(interest.handles)
        self._subscribes.difference_update(interest.no_longer_subscribes)
        self._subscribes.update(interest.subscribes)
        if len(self._handles) > NAMES_PER_PEER or len(self._subscribes) > NAMES_PER_PEER:
            return self._broken(f"more than {NAMES_PER_PEER} names or patterns are declared")
        if interest.relay is not None and self.peer is not None:
            self.peer = replace(self.peer, relay=interest.relay)
        return [interest]

    def _goodbye_heard(self, frame: Goodbye) -> list[Event]:
        if self.phase is Phase.OPENING and not self._met and self.peer is not None and not frame.stay_away:
            self.phase = Phase.AWAY  # not now: we have dialled too soon
            return [Broken(frame.message, retry_after_ms=frame.retry_after_ms)]
        if self._met and self.out.keeps:
            try:
                self.out.refused_after(frame.received)
            except InvalidMessage as error:
                if frame.received:
                    return self._broken(str(error))
            if not self._parting:
                self._goodbye = Goodbye()
        return self._end(frame.code, frame.message, frame.exchange, frame.retry_after_ms, stay_away=frame.stay_away)

    def _broken(self, reason: str) -> list[Event]:
        return self._refuse(Code.INVALID_ARGUMENT, reason)

    def _refuse(self, code: Code, reason: str) -> list[Event]:
        stay_away = code is Code.INVALID_ARGUMENT
        self._goodbye = Goodbye(code, reason, stay_away=stay_away)
        return self._end(code, reason, self.me.exchange, stay_away=stay_away)

    def _end(
        self, code: Code, reason: str, by: str, retry_after_ms: int = 0, *, stay_away: bool = False
    ) -> list[Event]:
        self.phase = Phase.CLOSED
        return [Ended(code, reason, by, retry_after_ms, stay_away)]

    # ------------------------------------------------------------------------------------------ time

    def next_deadline(self) -> float:
        """When `tick` is due, if nothing is heard before."""
        limits = self._limits
        if self.phase is Phase.AWAY:
            if not self._missing:
                return self._left + self._away_seconds
            return inf if self._forgotten else self._left + limits.resume_seconds
        if self.phase is Phase.OPENING:
            return self._since + limits.handshake_seconds
        if self.phase is Phase.CLOSED:
            return inf
        # What was due at the last tick is said when there is something to write on: no need to hurry.
        ack = self.into.ack_due
        due = [] if ack is None else [ack if ack > self._ticked else self._ticked + ACK_SECONDS]
        if self._answers_pings():
            due += [max(self._heard, self._pinged) + limits.heartbeat_seconds, self._silent_at()]
        return min(due, default=inf)

    def tick(self, now: float) -> list[Event]:
        """Tell the session the time: what takes too long ends."""
        slept = now - self._ticked > self._limits.silence_seconds
        self._ticked = now
        if self.phase is Phase.AWAY:
            return self._wait(now)
        if self.phase is Phase.OPENING:
            return self._hurry(now)
        if self.phase in (Phase.OPEN, Phase.CLOSING) and self._answers_pings():
            return self._listen(now, slept=slept)
        return []

    def _answers_pings(self) -> bool:
        return self.peer is not None and PING in self.peer.features

    def _silent_at(self) -> float:
        silent = self._heard + self._limits.silence_seconds
        return silent if self._contested is None else min(silent, self._contested + CONTEST_SECONDS)

    def _listen(self, now: float, *, slept: bool) -> list[Event]:
        """Whether the peer is there: asked after a heartbeat of silence, and given up after a long one."""
        if slept:  # it was we who did not listen: the peer has one more heartbeat to be heard
            self._heard = max(self._heard, now - self._limits.silence_seconds + self._limits.heartbeat_seconds)
        if now >= self._silent_at() and self.phase is Phase.CLOSING:
            return self._end(Code.UNAVAILABLE, "it did not take leave in time", self.me.exchange)
        if now >= self._silent_at():
            contested = self._contested is not None
            self._leave(now)
            reason = f"nothing was heard of it for {now - self._heard:.3g} s"
            return [Broken(f"{reason}, and another claims its id" if contested else reason), *self._give_up_waiting()]
        if now >= max(self._heard, self._pinged) + self._limits.heartbeat_seconds:
            self._ask(now)
        return []

    def _ask(self, now: float) -> None:
        self._pinged = now
        self._ping = (self._ping or 0) + 1

    def _hurry(self, now: float) -> list[Event]:
        """A handshake that takes too long."""
        seconds = self._limits.handshake_seconds
        if now < self._since + seconds:
            return []
        if self.peer is not None and self.dialled:
            self.phase = Phase.AWAY
            return [Broken(f"no introduction within {seconds:g} s")]
        return self._refuse(Code.DEADLINE_EXCEEDED, f"no introduction within {seconds:g} s")

    def _wait(self, now: float) -> list[Event]:
        """AWAY: for how long is it waited for?"""
        events: list[Event] = []
        if not self._missing and now >= self._left + self._away_seconds:
            events += self._give_up_waiting()
        if not self._forgotten and now >= self._left + self._limits.resume_seconds:
            self._forgotten = True
            events.append(Forgotten(self._forget()))
        return events

    def _give_up_waiting(self) -> list[Event]:
        self._missing = True
        return [Missing(self.out.take_unsent())]

    # ------------------------------------------------------------------------------------------- out

    def _introduction(self) -> Introduction:
        """What Hello and Welcome say, with the session in it."""
        return replace(
            self.me,
            session=self._session,
            token=self._token,
            received=self.into.received,
            received_bytes=self.into.received_bytes,
            credit=self.into.give(),
        )

    def welcome(self, me: Introduction, *, recovered: bool = False) -> None:
        """Answer the Hello: the link is open."""
        self.me, self._revision = me, me.revision
        self.phase = Phase.OPEN
        if self._draw is not None and self.into.acknowledges:
            if not recovered:
                self._session = self._draw(_SESSION_BYTES).hex()
            self._token = self._draw(_TOKEN_BYTES)
        self._control.append(wire.encode(Welcome(replace(self._introduction(), recovered=recovered))))

    def send(self, message: Message) -> list[Message]:
        """Queue `message`; the messages that were dropped for it, by policy.

        Raises QueueFull, and InvalidMessage if it cannot be said to this peer.
        """
        data = wire.pack_bytes(message, as_value=self.as_value)
        size = len(data) + AROUND
        if self.peer is not None and size > min(self.peer.message_bytes + AROUND, self.peer.frame_bytes - AROUND):
            raise LimitExceeded(f"the message is larger than {self.peer.exchange} takes")
        return self.out.put(message, data, size)

    @property
    def full(self) -> bool:
        """So much waits that whoever can wait should."""
        return self.out.full

    def announce(
        self,
        *,
        handles: Sequence[str] = (),
        subscribes: Sequence[str] = (),
        no_longer_handles: Sequence[str] = (),
        no_longer_subscribes: Sequence[str] = (),
        relay: bool | None = None,
    ) -> None:
        """Tell the peer that our interest has changed. One who reads none of it is told goodbye instead."""
        if len(self._control) >= CONTROL_FRAMES:
            self.goodbye(Code.RESOURCE_EXHAUSTED, f"more than {CONTROL_FRAMES} frames wait to be read")
        if self.phase not in (Phase.OPENING, Phase.OPEN):
            return
        self._revision += 1
        change = Interest(
            self._revision,
            tuple(handles),
            tuple(subscribes),
            tuple(no_longer_handles),
            tuple(no_longer_subscribes),
            relay,
        )
        self._control.append(wire.encode(change))

    def control(self, frame: Query | Answer | Reject) -> bool:
        """Queue a question, an answer or a refusal: False if the peer cannot be reading."""
        if len(self._control) >= CONTROL_FRAMES or self.phase is Phase.AWAY:
            return False
        self._control.append(wire.encode(frame))
        return True

    def reject(self, seq: int, id: str, error: RequestError) -> None:
        """Refuse one message that was received; if very many such answers wait, this one is left out."""
        if len(self._rejects) < CONTROL_FRAMES:
            self._rejects.append(wire.encode(Reject(seq, id, error)))

    def goodbye(
        self, code: Code = Code.OK, reason: str = "", *, retry_after_ms: int = 0, stay_away: bool = False
    ) -> None:
        """Say that the session ends, after what is queued, and when coming back is of use, if it is."""
        self.leaves = True
        if self.phase in (Phase.OPENING, Phase.OPEN):
            self.phase = Phase.CLOSING
            self._goodbye = Goodbye(code, reason, retry_after_ms, stay_away)
        elif self.phase is Phase.AWAY:
            self.phase = Phase.CLOSED

    def may_return(self, ended: Ended) -> bool:
        """Whether this end was the peer's wish, and dialling it again is of use."""
        refused = ended.stay_away or ended.code is Code.ALREADY_EXISTS
        return not refused and not self.leaves and ended.by != self.me.exchange

    def data_to_send(self, now: float) -> tuple[bytes | None, list[Message]]:
        """The bytes of the next frame to write, or None; and messages whose time ended in the queue."""
        if self.phase is Phase.AWAY:
            return None, []
        control = self._next_control(now)
        if control is not None:
            return control, []
        expired: list[Message] = []
        if self._met and self.phase in (Phase.OPEN, Phase.CLOSING):
            assert self.peer is not None
            data, expired = self.out.batch(self.peer.frame_bytes - AROUND, now)
            if data is not None:
                return data, expired
        if self._goodbye is not None and (not self.out.waits or not self._met or self.phase is Phase.CLOSED):
            goodbye, self._goodbye = self._goodbye, None
            if self.phase is Phase.CLOSING and self._met and self.out.keeps:
                self._parting = True
            elif self.phase is Phase.CLOSING:
                self.phase = Phase.CLOSED
            # Before its Welcome it is not known whether the peer counts on or anew.
            received = self.into.received if self.into.acknowledges and self._met else 0
            return wire.encode(replace(goodbye, exchange=self.me.exchange, received=received)), expired
        return None, expired

    def _next_control(self, now: float) -> bytes | None:
        """A frame that does not wait behind messages."""
        if self._control:
            return self._control.popleft()
        if self._met and self._rejects:
            return self._rejects.popleft()
        if not self._met or self.phase is Phase.CLOSED:
            return None
        if self._pong is not None:
            pong, self._pong = self._pong, None
            return wire.encode(Pong(pong))
        if self._ping is not None:
            ping, self._ping = self._ping, None
            return wire.encode(Ping(ping))
        ack = self.into.ack_to_tell(now)
        if ack is not None:
            return wire.encode(ack)
        credit = self.into.credit_to_tell() if self.peer is not None and self.peer.credit is not None else None
        return None if credit is None else wire.encode(credit)
