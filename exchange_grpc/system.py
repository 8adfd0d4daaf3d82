"""What every exchange answers: the names that begin with `exchange.`.

Ordinary requests, so that every language has them for free; the gRPC doors are thin over them. Each answer is a
JSON object with the `version` of its shape, which grows but does not change, and the `exchange` that gives it.
The shapes stand in docs/system.md, and where a door has one, it is that of the door.

Nothing of the state is told but what is exported, nothing is set but what is accepted.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from . import traces
from .changes import Changes, Record, answer
from .errors import Code, ExchangeError, InvalidMessage, Refused, RequestError, SubscriberError
from .frames import PROTOCOL
from .handlers import Handlers
from .ledger import Ledger
from .limits import TRACE_EXCHANGES, TRACE_SECONDS, WATCHERS
from .links import Links
from .message import Message, microseconds
from .observers import Observers
from .patterns import SET, shown
from .payload import Encoded, encode_json
from .routing import Router
from .tasks import State

VERSION = 1  # of the shapes of all answers
_SHARE = 0.8  # of the time left: the rest is for the answer to arrive
_ROUTES = 10_000  # told at once

log = logging.getLogger(__name__)

Ask = Callable[..., Awaitable[Any]]  # as Exchange.request
AskMany = Callable[..., AsyncIterator[Message]]  # as Exchange.request_many


@dataclass(slots=True, frozen=True, kw_only=True)
class System:
    """The system of one exchange: everything that it is made of, and how to ask others."""

    id: str
    exports: frozenset[str]
    accepts: frozenset[str]
    state: State
    changes: Changes
    ledger: Ledger
    router: Router
    handlers: Handlers
    observers: Observers
    links: Links[Any, Any]
    now: Callable[[], float]
    ask: Ask
    ask_many: AskMany

    def install(self) -> None:
        """Answer from now on."""
        answers: dict[str, Callable[..., Any]] = {
            "exchange.describe": self._describe,
            "exchange.peers": self._peers,
            "exchange.routes": self._routes,
            "exchange.handlers": self._handlers,
            "exchange.stats": self._stats,
            "exchange.trace": self._trace,
            "exchange.why": self._why,
            "exchange.state.get": self._get,
            SET: self._set,
        }
        for name, function in answers.items():
            self.handlers.handle(name, function, system=True)
        self.handlers.handle("exchange.state.watch", self._watch, system=True, most=WATCHERS)

    def _said(self, **fields: Any) -> dict[str, Any]:
        return {"version": VERSION, "exchange": self.id, **fields}

    # ---------------------------------------------------------------------------------------------- who is here

    async def _describe(self) -> dict[str, Any]:
        me = self.links.introduction()
        return self._said(
            epoch=me.epoch,
            agent=me.agent,
            protocol=PROTOCOL,
            relay=me.relay,
            interest={
                "revision": me.revision,
                "handles": list(me.handles),
                "subscribes": list(me.subscribes),
                "exports": list(me.exports),
            },
            accepts=sorted(self.accepts),
            peers=sorted(self.links.peers),
        )

    async def _peers(self) -> dict[str, Any]:
        peers = self.router.peers()
        for peer in peers:
            introduction = self.links.introduction_of(peer["id"])
            line = self.links.by_peer[peer["id"]]
            out = line.session.out
            peer.update(agent=introduction.agent, exports=list(introduction.exports))
            peer.update(
                queued=out.load()[0], unacknowledged=out.unacknowledged, dropped=out.dropped, slowed=line.slowed
            )
        return self._said(peers=peers)

    async def _routes(self, msg: Message) -> dict[str, Any]:
        target = _text(msg, "target", "") if msg.value is not None else ""
        routes = self.router.routes(target)
        return self._said(routes=routes[:_ROUTES], cut=len(routes) > _ROUTES)

    async def _handlers(self) -> dict[str, Any]:
        return self._said(**self.handlers.described(), observers=self.observers.described())

    async def _stats(self) -> dict[str, Any]:
        running, waiting = self.handlers.load()
        waits = [link.session.out.load() for link in self.links.by_peer.values()]
        return self._said(
            uptime_us=round(time.time() * 1e6) - self.links.epoch,
            outcomes={outcome.name.lower(): count for outcome, count in self.ledger.counts.items()},
            messages={"emitted": self.router.emitted, "received": self.router.received},
            links=len(self.links.lines),
            resets=self.links.resets,
            open_requests=self.router.open_requests,
            **self.router.load(),
            queued={"messages": sum(wait[0] for wait in waits), "bytes": sum(wait[1] for wait in waits)},
            handlers={"running": running, "waiting": waiting},
            observers=len(self.observers),
            watches=self.changes.watches,
            ledger={"messages": len(self.ledger), "transactions": len(self.changes)},
            process=_process(),
        )

    # ---------------------------------------------------------------------------------------------------- state

    async def _get(self, msg: Message) -> Encoded:
        return self._state(self._exported(_text(msg, "name")))

    async def _set(self, msg: Message) -> Encoded:
        name = _text(msg, "name")
        if name not in self.accepts:
            raise Refused(f"{self.id} accepts no state {shown(name)}", code=Code.NOT_FOUND, reason="NOT_ACCEPTED")
        expected = msg.value.get("expected_revision")
        if expected is not None and type(expected) is not int:
            raise _bad("expected_revision is a whole number")
        try:
            with self.changes.lock():  # so that nobody sets it between the look and the set
                revision = self.changes.last(name).revision
                if expected is not None and expected != revision:
                    text = f"{name} is at revision {revision}, not {expected}"
                    raise Refused(text, code=Code.ABORTED, reason="REVISION")
                self.state[name] = msg.value.get("value")
        except SubscriberError as error:  # the change stands, and that is what was asked for
            log.error("subscribers failed when %s was set by %s", name, msg.id, exc_info=error)
        return self._state(name)

    def _state(self, name: str) -> Encoded:
        head = encode_json(self._said())[:-1]
        return Encoded(head + b',"state":' + self.changes.state(name) + b"}")

    async def _watch(self, msg: Message) -> AsyncIterator[Encoded]:
        wanted = msg.value.get("names", []) if isinstance(msg.value, dict) else [] if msg.value is None else None
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise _bad("names is a list of state names")
        names = [self._exported(name) for name in wanted] or sorted(self.exports)
        loop, something, here = asyncio.get_running_loop(), asyncio.Event(), threading.get_ident()

        def wake() -> None:
            if threading.get_ident() == here:
                something.set()
            else:
                with suppress(RuntimeError):  # the loop was closed: nobody waits
                    loop.call_soon_threadsafe(something.set)

        watch, snapshot = self.changes.watch(names, wake)
        try:
            yield answer(self.id, snapshot, snapshot=True)
            while True:
                await something.wait()
                something.clear()
                while True:
                    with self.changes.lock():
                        states = watch.take()
                    if not states:
                        break
                    yield answer(self.id, states, snapshot=False)
        finally:
            self.changes.unwatch(watch)

    def _exported(self, name: str) -> str:
        if name not in self.exports:
            text = f"{self.id} exports no state {shown(name)}"
            if others := sorted(id for id in self.links.by_peer if name in self.links.introduction_of(id).exports):
                text += f", but {' and '.join(others[:3])} does"
            raise Refused(text, code=Code.NOT_FOUND, reason="NOT_EXPORTED")
        return name

    # ---------------------------------------------------------------------------------------------------- trace

    async def _trace(self, msg: Message) -> dict[str, Any]:
        id = _text(msg, "id")
        if msg.value.get("here") is True:
            trace = self.ledger.trace(id, _text(msg, "root", ""))
            if trace is None:
                raise self._unknown(id)
            return self._said(**trace)
        return await self.trace(id, msg.deadline)

    async def trace(self, id: str, deadline: float) -> dict[str, Any]:
        """All that is known of a message, here and where it has been; asked for until shortly before the deadline."""
        until = self.now() + min(TRACE_SECONDS, max(0.0, deadline - self.now()) * _SHARE)
        missing: dict[str, str] = {}
        answers = await self._first(id, until, missing)
        root = next((answer["root"] for answer in answers.values()), id)
        mine = self.ledger.trace(id, root)  # of others with this root
        if mine is not None:
            answers[self.id] = mine
        await self._gather(id, root, until, answers, missing)
        found = traces.merge(root, answers.values())
        if not found["spans"]:
            raise self._unknown(id)
        return self._said(
            **found, missing=[{"exchange": exchange, "reason": reason} for exchange, reason in sorted(missing.items())]
        )

    async def _first(self, id: str, until: float, missing: dict[str, str]) -> dict[str, dict[str, Any]]:
        """What somebody knows of it: this exchange, its origin, anybody who relays, or those who are linked."""
        mine = self.ledger.trace(id)
        if mine is not None:
            return {self.id: mine}
        origin = traces.origin(id)
        if not origin:
            return {}
        if origin != self.id:
            answered = await self._asked(origin, id, "", (self.now() + until) / 2, missing)
            if answered is not None:
                return {origin: answered}
        with suppress(ExchangeError):
            question = {"id": id, "here": True}
            async for reply in self.ask_many("exchange.trace", question, timeout=max(0.0, until - self.now()) / 2):
                heard = None if reply.error is not None else traces.read(reply.value, reply.from_)
                if heard is not None:
                    return {reply.from_: heard}
        # Those who do not relay have not heard that. Of these, the ones next to us can be asked.
        leaves = [link.id for link in self.router.links.values() if not link.relay][:TRACE_EXCHANGES]
        asked = await asyncio.gather(*(self._asked(leaf, id, "", until, {}) for leaf in leaves))
        return {leaf: known for leaf, known in zip(leaves, asked, strict=True) if known is not None}

    async def _gather(
        self, id: str, root: str, until: float, answers: dict[str, dict[str, Any]], missing: dict[str, str]
    ) -> None:
        """Ask whoever may know more, all at once; what one answers may name others."""
        running: set[asyncio.Task[None]] = set()
        asked = {self.id, "", *answers}

        async def ask(exchange: str) -> None:
            answered = await self._asked(exchange, id, root, until, missing)
            if answered is not None and answered["root"] == root:
                answers[exchange] = answered

        while True:
            named = [traces.origin(id), traces.origin(root)]
            named += (exchange for trace in answers.values() for exchange in traces.passed(trace))
            for exchange in dict.fromkeys(named):
                if exchange in asked:
                    continue
                asked.add(exchange)
                if len(asked) > TRACE_EXCHANGES:
                    missing[exchange] = f"not asked: more than {TRACE_EXCHANGES} exchanges are named"
                else:
                    running.add(asyncio.create_task(ask(exchange)))
            if not running:
                return
            _, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)

    async def _asked(
        self, exchange: str, id: str, root: str, until: float, missing: dict[str, str]
    ) -> dict[str, Any] | None:
        """What one exchange knows; None if nothing. Notes in `missing` that it could not be asked."""
        question = {"id": id, "here": True, "root": root}
        missing.pop(exchange, None)
        try:
            reply = await self.ask("exchange.trace", question, to=exchange, timeout=max(0.0, until - self.now()))
        except RequestError as error:
            if error.code is not Code.NOT_FOUND:
                missing[exchange] = error.message
            return None
        except ExchangeError:  # what it is called is no id: nobody can be asked
            return None
        trace = traces.read(reply, exchange)
        if trace is None:
            missing[exchange] = "its answer is no trace"
        return trace

    def _unknown(self, id: str) -> Refused:
        return Refused(f"{self.id} knows no message {shown(id)}", code=Code.NOT_FOUND, reason="NOT_FOUND")

    # ------------------------------------------------------------------------------------------------------ why

    async def _why(self, msg: Message) -> dict[str, Any]:
        key = _text(msg, "key")
        if key in self.exports:
            said = await self.why_value(key, msg.deadline, self.exports)
            try:
                encode_json(said["value"])
            except InvalidMessage:
                del said["value"]
            return said
        if key in self.state or not traces.origin(key):
            self._exported(key)
        return await self.why_message(key, msg.deadline)

    async def why_value(self, name: str, deadline: float, visible: frozenset[str] | None) -> dict[str, Any]:
        """Why a state name has its value. Changes of names that are not `visible` are left out; None: all are."""
        with self.changes.lock():
            value, last, record = self.state[name], self.changes.last(name), self.changes.record(name)
        said = self._said(key=name, value=value, revision=last.revision)
        head = f"{name} is {_short(value)}"
        if not last.revision:
            return {**said, "answer": f"{head}: {self.id} started with that"}
        if record is None:
            return {**said, "answer": f"{head}: it changed {last.revision} times, too long ago to be remembered"}
        said["transaction"] = self._transaction(record, name, visible)
        trace = None
        if record.cause:
            with suppress(Refused):
                trace = said["trace"] = await self.trace(record.cause, deadline)
        said["answer"] = f"{head}, and was {_short(record.changes[name].old)}: {_because(said['transaction'], trace)}"
        return said

    def _transaction(self, record: Record, name: str, visible: frozenset[str] | None) -> dict[str, Any]:
        """The transaction as far as it led to `name`, which comes first."""
        line = [name]
        for reached in line:  # it grows as it goes
            line += (other for other in record.changes[reached].because if other not in line)
        names = [other for other in line if visible is None or other in visible]
        return {
            "exchange": self.id,
            "number": record.number,
            "at_us": microseconds(record.at),
            "cause": record.cause,
            "handler": record.handler,
            "changes": [
                {
                    "name": changed,
                    "old": change.old,
                    "new": change.new,
                    "computed": change.computed,
                    "because": [other for other in change.because if other in names],
                    "revision": change.revision,
                }
                for changed in names
                for change in [record.changes[changed]]
            ],
        }

    async def why_message(self, id: str, deadline: float) -> dict[str, Any]:
        """What became of a message."""
        trace = await self.trace(id, deadline)
        return self._said(key=id, answer=_became(id, trace), trace=trace)


def _text(msg: Message, key: str, otherwise: str | None = None) -> str:
    """A text that the question must have."""
    value = msg.value.get(key, otherwise) if isinstance(msg.value, dict) else None
    if not isinstance(value, str):
        raise _bad(f'{msg.name} takes {{"{key}": "..."}}')
    return value


def _bad(text: str) -> Refused:
    return Refused(text, reason="INVALID_MESSAGE")


def _short(value: Any) -> str:
    try:
        text = encode_json(value).decode()
    except InvalidMessage:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."


def _because(transaction: dict[str, Any], trace: dict[str, Any] | None) -> str:
    """How the transaction came about, in half a sentence."""
    asked, others = transaction["changes"][0], transaction["changes"][1:]
    plain = [change["name"] for change in others if not change["computed"]]
    how = (
        "it was computed anew" + (f" after {', '.join(plain)} was set" if plain else "")
        if asked["computed"]
        else "it was set"
    )
    text = f"{how} in transaction {transaction['number']} of {transaction['exchange']}"
    cause = transaction["cause"]
    if not cause:
        return f"{text}, outside of any handler"
    line = traces.lineage(trace, cause) if trace is not None else []
    handler = transaction["handler"] or "what followed"
    if not line:
        return f"{text}, by {handler} for the message {cause}, of which no more is known"
    text += f", by {handler} for {line[0]['name']} {cause} from {line[0]['from']}"
    if len(line) > 1:
        text += f", which began with {line[-1]['name']} {line[-1]['id']} from {line[-1]['from']}"
    return text


def _became(id: str, trace: dict[str, Any]) -> str:
    """What became of the message `id`, in one sentence."""
    span = next((span for span in trace["spans"] if span["id"] == id), None)
    if span is None:
        return f"nothing is known of {id} itself, only of others with the same root"
    head = f"{span['name']} from {span['from']}"
    ends = [event for event in span["events"] if event["outcome"] != "OUTCOME_FORWARDED"]
    if not ends:
        last = span["events"][-1] if span["events"] else None
        where = f"was passed on to {last['by']} by {last['exchange']}" if last is not None else "was emitted"
        return f"{head} {where}; nothing more is known"
    told = []
    for event in ends:
        word = event["outcome"].removeprefix("OUTCOME_").lower()
        by = f" by {event['by']}" if event["by"] and word in ("handled", "failed") else ""
        how = f"failed, run{by}" if word == "failed" and by else f"was {word}{by}"
        reason = f": {event['reason']}" if event["reason"] else ""
        told.append(f"{how} at {event['exchange']}{reason}")
    return f"{head} {'; '.join(dict.fromkeys(told))}"


def _process() -> dict[str, int]:
    """What this process uses; 0 where the system does not say."""
    resident = descriptors = 0
    with suppress(OSError, ValueError):
        with open("/proc/self/statm", "rb") as statm:
            resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        descriptors = len(os.listdir("/proc/self/fd"))
    return {
        "resident_bytes": resident,
        "descriptors": descriptors,
        "threads": threading.active_count(),
        "tasks": len(asyncio.all_tasks()),
    }
