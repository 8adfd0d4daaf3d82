"""Discovery: the way to what is not next to us, by asking the relays and by remembering.

Law: sans-IO, like `routing.py`, which owns one `Discovery` and is its `Home`.

A *target* is a name that somebody handles, or the id of an exchange. `ways` says by which links it can
be reached and how many hops lie behind each; a way goes when its link goes or when the peer withdraws
what it said. A message for a target without a way is held while a question is out:

* A question that begins here asks all relays, and whoever wants to know the same waits for it, be it a
  message or a peer that does not relay.
* A relay's question is passed on under its own id, to all relays but the one it came from, and never
  waits for another question: so two questions cannot wait for each other in a circle. One that comes
  back to where it has been is answered "no" at once, because the other branch tells.
* The first yes lets go whoever it helps; later ones become further ways. It is "no" only if every branch
  said no; that is believed for a moment if we asked all relays. A branch that is lost, that cannot be
  asked, or is silent for `QUESTION_SECONDS` makes it "incomplete", which is never believed.
* While a relay is away, and for a moment after it came back without its memory, others may be on their way
  back too: then no message is given up. It rests, and so does what comes for the same target meanwhile; then all
  ask again.

Whatever waits for a target goes on as soon as there is a way, in the order in which it came.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from .frames import Answer, Found, Query, Target
from .limits import (
    HELD_MESSAGES,
    HOPS_OF_A_QUESTION,
    NO_SECONDS,
    OPEN_QUESTIONS,
    QUESTION_SECONDS,
    REPEAT_SECONDS,
    ROUTES,
    SEEN_IDS,
    SEEN_SECONDS,
)
from .message import Message


class Home(Protocol):
    """Who discovers: what discovery must know of it, and may ask of it. `Held` is whatever it gives to hold."""

    relay: bool

    def relays(self) -> Iterator[str]:
        """The linked peers that relay."""

    def patient(self, now: float) -> bool:
        """Whether somebody is expected back, so that "nobody" may soon be wrong."""

    def near(self, target: Target, without: str) -> int | None:
        """0 if the target is here, 1 if a linked peer other than `without` is it or offers it, else None."""

    def say(self, link: str, frame: Query | Answer) -> bool:
        """Put a question or an answer on a link; False if it takes no more."""

    def resume(self, held: "Held", now: float) -> bool:
        """Route it again, if there is a way for it now or nobody waits for it any more; False if not."""

    def give_up(self, held: "Held", target: Target, now: float, *, incomplete: bool) -> None:
        """Nobody is known to take it; `incomplete` if not everybody could be asked."""


class Held(Protocol):
    """A message that waits for an answer."""

    @property
    def message(self) -> Message:
        """The message."""


class Once:
    """A bounded memory of ids: each is new once, for `SEEN_SECONDS` or until `SEEN_IDS` newer ones came."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def first(self, id: str, now: float, link: str = "") -> bool:
        """Whether `id` is new, or comes once more by the link by which it came first; it is remembered."""
        until = self._until
        if id in until:
            return bool(link) and until[id][1] == link
        while until and (len(until) >= SEEN_IDS or next(iter(until.values()))[0] <= now):
            until.popitem(last=False)
        until[id] = now + SEEN_SECONDS, link
        return True


class Deadlines:
    """When things end. Most end long before: what is not `alive` any more is swept out now and then."""

    def __init__(self, alive: Callable[[str], bool], count: Callable[[], int]) -> None:
        self._heap: list[tuple[float, str]] = []
        self._alive = alive
        self._count = count

    def add(self, deadline: float, id: str) -> None:
        """`id` ends at `deadline`, unless it ends before."""
        heapq.heappush(self._heap, (deadline, id))
        if len(self._heap) > 2 * self._count() + 1_024:
            self._heap = [entry for entry in self._heap if self._alive(entry[1])]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """The earliest deadline, which may be of something that has ended."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[str]:
        """Whatever ends now, each taken out as it comes."""
        while self._heap and self._heap[0][0] <= now:
            yield heapq.heappop(self._heap)[1]


@dataclass(slots=True)
class Question:
    """A question under way."""

    id: str
    target: Target
    deadline: float
    ttl: int
    asked: set[str] = field(default_factory=set)  # relays whose answer is awaited
    askers: list[tuple[str, str]] = field(default_factory=list)  # who wants to know: link, id of its question
    held: list[Held] = field(default_factory=list)
    found: bool = False
    incomplete: bool = False


class Discovery:
    """What one exchange knows and asks of the mesh beyond its peers. Its ids begin with `prefix`."""

    def __init__(self, home: Home, prefix: str) -> None:
        self._home = home
        self._prefix = prefix
        self._ways: OrderedDict[Target, dict[str, int]] = OrderedDict()  # target -> link -> hops from here
        self._told: OrderedDict[Target, set[str]] = OrderedDict()  # to whom we said yes
        self._nobody: OrderedDict[Target, float] = OrderedDict()  # believed until
        self._questions: dict[str, Question] = {}
        self._own: dict[Target, Question] = {}
        self._seen = Once()
        self._held = 0
        self._resting: dict[Target, tuple[float, list[Held]]] = {}  # until when, the soonest first; what is tried then
        self._count = 0
        self._deadlines = Deadlines(self._questions.__contains__, self._questions.__len__)

    # ---------------------------------------------------------------------------------------------- what is known

    def ways(self, target: Target) -> dict[str, int]:
        """The links behind which the target is, with the hops from here."""
        return self._ways.get(target) or {}

    def known(self) -> Iterator[tuple[str, str, str, int]]:
        """Kind, key, link and hops of every way."""
        return ((*target, link, hops) for target, ways in self._ways.items() for link, hops in ways.items())

    def load(self) -> dict[str, int]:
        """How much is under way and remembered, by the names of `exchange.stats`."""
        return {"open_questions": len(self._questions), "held": self._held, "routes": len(self._ways)}

    def learn(self, target: Target, link: str, hops: int, now: float) -> None:
        """The target is that many hops from here by this link."""
        ways = self._ways.get(target)
        if ways is None:
            if len(self._ways) >= ROUTES:
                self._ways.popitem(last=False)
            self._ways[target] = {link: hops}
            self.turned_up(target, now)
        else:
            ways[link] = hops
            self._nobody.pop(target, None)

    def forget(self, target: Target, link: str) -> None:
        """The way to the target by this link has gone."""
        ways = self._ways.get(target)
        if ways is not None and link in ways:
            del ways[link]
            if not ways:
                del self._ways[target]
            self.withdraw(target)

    def withdraw(self, target: Target) -> None:
        """Something about the target has gone: take back a yes from those for whom there is no way left."""
        told = self._told.get(target)
        if told is None:
            return
        for link in [link for link in sorted(told) if self._hops(target, link) is None]:
            told.discard(link)
            self._home.say(link, Answer("", target, Found.NO))
        if not told:
            del self._told[target]

    def turned_up(self, target: Target, now: float) -> None:
        """There is a way to the target now: whoever waits for it need not wait for answers."""
        self._nobody.pop(target, None)
        question = self._asking(target)
        if question is not None:
            self._found(question, now)
        if target in self._resting:
            self._wake(target, now)

    def changed(self) -> None:
        """There is a new relay, behind which may be anybody."""
        self._nobody.clear()

    def back(self, link: str, now: float) -> None:
        """The link was broken: what it was told, and did not tell us, is not known. It is asked again."""
        self._forget_all(link)
        for question in self._questions.values():
            if link in question.asked:
                self._home.say(link, Query(question.id, question.target, question.ttl))

    def lost(self, link: str, now: float) -> None:
        """The link has gone, and with it all that was behind it."""
        self._forget_all(link)
        for question in list(self._questions.values()):
            question.askers = [asker for asker in question.askers if asker[0] != link]
            if link in question.asked:
                question.asked.discard(link)
                question.incomplete = True
                if not question.asked:
                    self._conclude(question, now)

    def _forget_all(self, link: str) -> None:
        for target in [target for target, ways in self._ways.items() if link in ways]:
            self.forget(target, link)
        for target, told in list(self._told.items()):
            told.discard(link)
            if not told:
                del self._told[target]

    def _hops(self, target: Target, asker: str) -> int | None:
        """How far the target is from here by a way that does not lead over `asker`; None if there is none."""
        near = self._home.near(target, asker)
        if near is not None or not self._home.relay:
            return near
        return min((hops for link, hops in self.ways(target).items() if link != asker), default=None)

    # --------------------------------------------------------------------------------------------------- asking

    def full(self) -> bool:
        """No further message can be held."""
        return self._held >= HELD_MESSAGES or len(self._questions) >= OPEN_QUESTIONS

    def ask_for(self, target: Target, held: Held, now: float) -> None:
        """Hold the message and ask, unless the answer is known to be no."""
        if self._nobody.get(target, 0.0) > now:
            self._nobody_takes(held, target, now, incomplete=False)
            return
        if target in self._resting:
            self._rest(target, held, now)
            return
        question = self._asking(target) or self._ask(target, now, HOPS_OF_A_QUESTION)
        if question.asked:
            self._held += 1
            question.held.append(held)
        else:
            self._nobody_takes(held, target, now, incomplete=question.incomplete)

    def _nobody_takes(self, held: Held, target: Target, now: float, *, incomplete: bool) -> None:
        """Give it up, unless that may soon be wrong."""
        if self._home.patient(now) and not self.full():
            self._rest(target, held, now)
        else:
            self._home.give_up(held, target, now, incomplete=incomplete)

    def _rest(self, target: Target, held: Held, now: float) -> None:
        self._held += 1
        _, resting = self._resting.setdefault(target, (now + REPEAT_SECONDS, []))
        resting.append(held)

    def _wake(self, target: Target, now: float) -> None:
        """Try again with what rests for this target."""
        _, resting = self._resting.pop(target)
        self._held -= len(resting)
        for held in resting:
            if not self._home.resume(held, now):
                self.ask_for(target, held, now)

    def _asking(self, target: Target) -> Question | None:
        """A question of ours that has not been answered yet. (One that was may have outlived its answer.)"""
        question = self._own.get(target)
        return None if question is None or question.found else question

    def _ask(self, target: Target, now: float, ttl: int) -> Question:
        """Begin a question of our own."""
        self._count += 1
        question = Question(f"{self._prefix}.q{self._count}", target, now + QUESTION_SECONDS, ttl)
        self._seen.first(question.id, now)
        self._put(question, Query(question.id, target, ttl), without="")
        if question.asked:
            self._own[target] = question
        return question

    def _put(self, question: Question, query: Query, *, without: str) -> None:
        for relay in self._home.relays():
            if relay == without:
                continue
            if self._home.say(relay, query):
                question.asked.add(relay)
            else:
                question.incomplete = True
        if question.asked:
            self._questions[question.id] = question
            self._deadlines.add(question.deadline, question.id)

    def query(self, link: str, query: Query, now: float, *, from_relay: bool) -> None:
        """A peer asks."""
        target, say = query.target, self._home.say
        if from_relay and not self._seen.first(query.id, now, link):
            say(link, Answer(query.id, target, Found.NO))
            return
        if query.id in self._questions:  # asked again, after a break: it is under way
            askers = self._questions[query.id].askers
            if (link, query.id) not in askers:
                askers.append((link, query.id))
            return
        if self._told_yes(target, link, query.id):
            return
        if not self._home.relay or self._nobody.get(target, 0.0) > now:
            say(link, Answer(query.id, target, Found.NO))
        elif query.ttl < 1 or len(self._questions) >= OPEN_QUESTIONS:
            say(link, Answer(query.id, target, Found.INCOMPLETE))
        else:
            if from_relay:
                question = Question(query.id, target, now + QUESTION_SECONDS, query.ttl - 1, askers=[(link, query.id)])
                self._put(question, Query(query.id, target, query.ttl - 1), without=link)
            else:  # no question ever goes to it, so it can wait for ours
                question = self._asking(target) or self._ask(target, now, query.ttl - 1)
                question.askers.append((link, query.id))
            if not question.asked:
                say(link, Answer(query.id, target, Found.INCOMPLETE if question.incomplete else Found.NO))

    def answer(self, link: str, answer: Answer, now: float) -> None:
        """A peer answers, or takes an earlier yes back."""
        if not answer.id:
            self.forget(answer.target, link)
            return
        question = self._questions.get(answer.id)
        if question is None or link not in question.asked or question.target != answer.target:
            return
        question.asked.discard(link)
        if answer.found is Found.YES:
            self.learn(question.target, link, answer.cost + 1, now)
            self._found(question, now)
        elif answer.found is Found.INCOMPLETE:
            question.incomplete = True
        if not question.asked:
            self._conclude(question, now)

    def next_deadline(self) -> float | None:
        """When `tick` is due."""
        due = self._deadlines.next()
        rested = next(iter(self._resting.values()), None)
        return due if rested is None else min(rested[0], inf if due is None else due)

    def tick(self, now: float) -> None:
        """Tell the time: who has not answered will not."""
        for id in self._deadlines.due(now):
            question = self._questions.get(id)
            if question is not None:
                question.incomplete = True
                self._conclude(question, now)
        while self._resting:
            target, (due, _) = next(iter(self._resting.items()))
            if due > now:
                break
            self._wake(target, now)

    def _found(self, question: Question, now: float) -> None:
        """There is a way: for those whom it helps the question is over. The others wait for the other branches."""
        question.found = True
        question.askers = [asker for asker in question.askers if not self._told_yes(question.target, *asker)]
        waiting, question.held = question.held, []
        question.held = [held for held in waiting if not self._home.resume(held, now)]
        self._held -= len(waiting) - len(question.held)

    def _conclude(self, question: Question, now: float) -> None:
        """All answers are there, or the time is over."""
        self._questions.pop(question.id, None)
        target, incomplete = question.target, question.incomplete
        own = self._own.get(target) is question
        if own:
            del self._own[target]
        # A relayed question left out the link it came by.
        if own and not question.found and not incomplete and not self._home.patient(now):
            if len(self._nobody) >= ROUTES:
                self._nobody.popitem(last=False)
            self._nobody[target] = now + NO_SECONDS
        self._found(question, now)  # somebody may have turned up whom no answer told of
        for link, id in question.askers:
            self._home.say(link, Answer(id, target, Found.INCOMPLETE if incomplete else Found.NO))
        self._held -= len(question.held)
        for held in question.held:
            self._nobody_takes(held, target, now, incomplete=incomplete)

    def _told_yes(self, target: Target, link: str, id: str) -> bool:
        """Tell the asker of a way that does not lead over it; False if there is none."""
        hops = self._hops(target, link)
        if hops is not None:
            self._say_yes(link, id, target, hops)
        return hops is not None

    def _say_yes(self, link: str, id: str, target: Target, hops: int) -> None:
        if target not in self._told and len(self._told) >= ROUTES:
            self._told.popitem(last=False)
        self._told.setdefault(target, set()).add(link)
        self._home.say(link, Answer(id, target, Found.YES, hops))
