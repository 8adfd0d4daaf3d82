"""Plays one case: against one process, step by step. See README.md for what a step may be."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .case import STEPS, BadCase, Case
from .drive import Died, Process
from .frames import Differs, fill, match, varint
from .partner import Partner
from .wires import CANNOT_DIAL

ME = "me"
NOWHERE = {"grpc": "grpc://127.0.0.1:1", "websocket": "ws://127.0.0.1:1/v1/peer"}
WITHIN = 8.0  # seconds that an expectation waits: long, for a machine that has much to do
START_WITHIN = 60.0
CLOSE_WITHIN = 12.0
QUICK = frozenset({"start", "listen", "handle", "unhandle", "on", "subscribe", "observe", "release", "close"})
# Of a process under test, unless the case says otherwise: all as is usual, but for dialling again soon.
LIMITS: dict[str, Any] = {"reconnect_min_seconds": 0.05, "reconnect_max_seconds": 0.2}


@dataclass(frozen=True)
class Verdict:
    """How a case went: `why` it failed, or nothing."""

    case: Case
    why: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """It went as the case says."""
        return not self.why


async def play(case: Case, process: Process, transport: str, within: float = WITHIN) -> Verdict:
    """Play the case; afterwards the process has no exchange. What is expected has so many seconds to come."""
    stage = Stage(case, process, transport, within)
    why = ""
    try:
        why = await stage.play()
    finally:
        hangs = await stage.clear()
    return Verdict(case, why or hangs)


class Stage:
    """What one case needs while it is played."""

    def __init__(self, case: Case, process: Process, transport: str, within: float) -> None:
        self.case = case
        self._within = within
        self.process = process
        self.partners = {id: Partner(id, said, transport) for id, said in case.peers.items()}
        self.bound: dict[str, Any] = {"me": ME, "nowhere": NOWHERE[transport]}
        self._commands: dict[str, str] = {}  # by the name that a step gave them
        self._last = ""  # the last command whose answer was not asked for
        self._started = False

    async def play(self) -> str:
        """Why it failed, or nothing."""
        at = "the beginning"
        self.process.events.clear()
        try:
            await self._begin()
            for number, step in enumerate(self.case.steps, 1):
                at = f"step {number} ({step})"
                await self._step(step)
        except TimeoutError:
            return self._told(f"{at}: nothing came in time")
        except (Differs, Died, *CANNOT_DIAL) as problem:
            return self._told(f"{at}: {problem}")
        except (KeyError, TypeError, ValueError, AssertionError, BadCase):
            return self._told(f"{at}: {traceback.format_exc()}")
        return ""

    def _told(self, why: str) -> str:
        said = [f"{self.case.id}: {self.case.rule} ({self.case.source})", why[:2_000], f"bound: {self.bound}"[:1_000]]
        for partner in self.partners.values():
            said += [f"{partner.id}:", *(f"  {line}" for line in partner.log)]
        said += ["events not asked for:", *(f"  {event}"[:400] for event in self.process.events)]
        if self.process.said:
            said += ["stderr:", self.process.said]
        return "\n".join(said)

    # --------------------------------------------------------------------------------- the beginning and the end

    async def _begin(self) -> None:
        case = self.case
        starting = await self.process.tell("start", {"id": ME, "limits": {**LIMITS, **case.limits}})
        await self._answered(starting, START_WITHIN)
        self._started = True
        for name, what in case.setup.get("handles", {}).items():
            await self._done("handle", {"name": name, **(what if isinstance(what, dict) else {"do": what})})
        for name in case.setup.get("on", ()):
            await self._done("on", {"name": name})
        for verb, key in (("subscribe", "subscribes"), ("observe", "observes")):
            for pattern in case.setup.get(key, ()):
                await self._done(verb, {"pattern": pattern})
        if case.side == "listen":
            scheme = "grpc" if self._transport() == "grpc" else "ws"
            path = "" if scheme == "grpc" else "/v1/peer"
            answer = await self._done("listen", {"url": f"{scheme}://127.0.0.1:0{path}"})
            self.bound["listening"] = answer["url"]
        for partner in self.partners.values():
            self.bound[f"url_{partner.id}"] = await partner.serve()
            self.bound.setdefault("url", self.bound[f"url_{partner.id}"])
            if case.linked:
                await self._link(partner)

    def _transport(self) -> str:
        return next(iter(self.partners.values())).transport

    async def _link(self, partner: Partner) -> None:
        if self.case.side == "listen":
            await self._dial(partner, {})
            return
        connecting = await self.process.tell("connect", {"url": self.bound[f"url_{partner.id}"]})
        await self._accept(partner, {})
        await self._answered(connecting, WITHIN)

    async def _done(self, verb: str, arguments: dict[str, Any]) -> Any:
        id = await self.process.tell(verb, arguments)
        return await self._answered(id, WITHIN)

    async def _answered(self, id: str, within: float) -> Any:
        async with asyncio.timeout(within):
            answer = await self.process.answer(id)
        if "error" in answer:
            raise Differs(f"it answered {answer['error']}")
        return answer["value"]

    async def clear(self) -> str:
        """Close the exchange of the process, whatever state it is in; why that could not be done."""
        hangs = ""
        leaving = [asyncio.create_task(self._take_leave(partner)) for partner in self.partners.values()]
        try:
            if self._started and self.process.code is None:
                with suppress(Differs, Died):
                    await self.process.tell("release", {})  # closing waits for handlers
                    id = await self.process.tell("close", {})
                    await self._answered(id, CLOSE_WITHIN)
        except TimeoutError:
            hangs = self._told(f"after the last step: it does not close within {CLOSE_WITHIN:g} s")
            self.process.kill()
        for task in leaving:
            task.cancel()
        await asyncio.gather(*(partner.close() for partner in self.partners.values()), return_exceptions=True)
        return hangs

    async def _take_leave(self, partner: Partner) -> None:
        """Answer a Goodbye, so that nobody waits for it."""
        if partner.wire is None or partner.over:
            return
        partner.forget()
        with suppress(Differs):
            while "the end" not in (frame := await partner.frame("goodbye")):
                if "goodbye" in frame:
                    await partner.say({"goodbye": {"exchange": partner.id, "received": partner.received}})
                    await partner.wire.end()
                    return

    # ----------------------------------------------------------------------------------------------------- steps

    async def _step(self, step: dict[str, Any]) -> None:
        if "repeat" in step:
            for _ in range(step["times"]):
                for inner in step["repeat"]:
                    await self._step(inner)
            return
        within = step.get("within", self._within)
        for verb in step:
            if verb in STEPS:
                method: Callable[..., Awaitable[None]] = getattr(self, f"_{verb}")
                await method(step[verb], step, within)

    def _partner(self, step: dict[str, Any]) -> Partner:
        return self.partners[step["by"]] if "by" in step else next(iter(self.partners.values()))

    # To the process.

    async def _do(self, verb: str, step: dict[str, Any], within: float) -> None:
        arguments = fill(step.get("with", {}), self.bound)
        id = await self.process.tell(verb, arguments)
        if verb in QUICK and not step.keys() & {"answer", "error", "answers", "as"}:
            await self._answered(id, within)
            return
        self._last = id
        if "as" in step:
            self._commands[step["as"]] = id

    def _command(self, step: dict[str, Any]) -> str:
        return self._commands[step["of"]] if "of" in step else self._last

    async def _next_answer(self, step: dict[str, Any], within: float) -> dict[str, Any]:
        async with asyncio.timeout(within):
            return await self.process.answer(self._command(step))

    async def _answer(self, expected: Any, step: dict[str, Any], within: float) -> None:
        answer = await self._next_answer(step, within)
        if "error" in answer:
            raise Differs(f"it answered {answer['error']}, and {answer['value']}")
        if expected is not None:
            match(expected, answer["value"], self.bound, "the answer")

    async def _error(self, expected: Any, step: dict[str, Any], within: float) -> None:
        answer = await self._next_answer(step, within)
        if "error" not in answer:
            raise Differs(f"it answered {answer['value']}, and no error")
        match(expected, answer["error"], self.bound, "the error")

    async def _answers(self, expected: list[Any], step: dict[str, Any], within: float) -> None:
        """Several answers, in any order."""
        found = [await self._next_answer(step, within) for _ in expected]
        for part in expected:
            self._take(found, part, lambda answer: answer["value"], "answer")

    async def _cancel(self, name: str | None, step: dict[str, Any], within: float) -> None:
        await self.process.cancel(self._commands[name] if name else self._last)

    async def _event(self, expected: dict[str, Any], step: dict[str, Any], within: float) -> None:
        [(name, body)] = expected.items()
        changed = self.process.changed
        async with asyncio.timeout(within), changed:
            while not self._take_event(name, body):
                if self.process.code is not None:
                    raise Died("the process has ended")
                await changed.wait()

    def _take_event(self, name: str, body: Any) -> bool:
        for event in self.process.events:
            if event[0] != name:
                continue
            bound = dict(self.bound)
            with suppress(Differs):
                match(body or {}, event[1], bound, name)
                self.bound.update(bound)
                self.process.events.remove(event)
                return True
        return False

    async def _no_event(self, expected: Any, step: dict[str, Any], within: float) -> None:
        """After a while there is no such event."""
        await asyncio.sleep(step.get("within", 0.2))
        name, body = next(iter(expected.items())) if isinstance(expected, dict) else (expected, {})
        if self._take_event(name, body):
            raise Differs(f"there was an event {name}")

    async def _exit(self, expected: int, step: dict[str, Any], within: float) -> None:
        """Its stdin ends, and it closes and ends."""
        partners = [asyncio.create_task(self._take_leave(partner)) for partner in self.partners.values()]
        code = await self.process.stop()
        for task in partners:
            task.cancel()
        if code != expected:
            raise Differs(f"it ended with {code}")

    # On a link.

    async def _say(self, spec: dict[str, Any], step: dict[str, Any], within: float) -> None:
        partner = self._partner(step)
        frame = fill(spec, self.bound)
        if "batch" in frame:
            batch = frame["batch"]
            partner.seq = max(partner.seq, batch.get("seq", partner.seq + 1) - 1 + len(batch.get("messages", ())))
        await partner.say(frame)

    async def _tell(self, spec: Any, step: dict[str, Any], within: float) -> None:
        """A Batch of one message, or of several, with all that is usual in them."""
        partner = self._partner(step)
        specs = fill(spec, self.bound)
        await partner.say(partner.messages(specs if isinstance(specs, list) else [specs]))
        self.bound["sent"] = f"{partner.id}.7.{partner.made}"
        self.bound["bytes"] = partner.bytes

    async def _reply(self, spec: dict[str, Any], step: dict[str, Any], within: float) -> None:
        """The last reply to the request `$id`, unless the step says otherwise."""
        usual = {"kind": "REPLY", "name": "a.b", "reply_to": self.bound.get("id"), "to": ME, "last": True}
        await self._tell({**usual, **spec}, step, within)

    async def _get_many(self, expected: list[Any], step: dict[str, Any], within: float) -> None:
        """Replies with these values, up to the last: which is the last value, or comes after it with an empty `end`."""
        partner = self._partner(step)
        values = []
        async with asyncio.timeout(within):
            while True:
                message = await partner.message()
                if "end" not in message:
                    values.append(message["json"])
                if message["last"]:
                    break
        match(expected, values, self.bound, "the replies")

    async def _raw(self, spec: Any, step: dict[str, Any], within: float) -> None:
        """A frame as bytes in hexadecimal; or `{nested: n}`, a frame so many levels deep; or `{zeros: n}`."""
        if not isinstance(spec, dict):
            data = bytes.fromhex(spec)
        elif "zeros" in spec:
            data = bytes(spec["zeros"])
        else:
            data = _nested(spec["nested"])
        await self._partner(step).raw(data)

    async def _hear(self, expected: Any, step: dict[str, Any], within: float) -> None:
        [(kind, body)] = expected.items()
        partner = self._partner(step)
        async with asyncio.timeout(within):
            while True:
                frame = await partner.frame(kind)
                if kind not in frame:
                    raise Differs(f"{frame} came, and no {kind}"[:1_500])
                bound = dict(self.bound)
                try:
                    match(body or {}, frame[kind], bound, kind)
                except Differs:
                    if kind in ("ack", "credit", "ping", "pong", "interest"):
                        continue  # they say how things stand: the right one may come next
                    raise
                self.bound.update(bound)
                return

    async def _get(self, expected: Any, step: dict[str, Any], within: float) -> None:
        """The next message, or the next ones."""
        partner = self._partner(step)
        for part in expected if isinstance(expected, list) else [expected]:
            async with asyncio.timeout(within):
                message = await partner.message()
            self._check_message(message)
            match(part, message, self.bound, "the message")

    async def _get_all(self, expected: list[Any], step: dict[str, Any], within: float) -> None:
        """The next messages, in any order."""
        partner = self._partner(step)
        found = []
        async with asyncio.timeout(within):
            for _ in expected:
                found.append(await partner.message())
        for part in expected:
            self._take(found, part, lambda message: message, "message")

    def _take(self, found: list[Any], part: Any, of: Callable[[Any], Any], what: str) -> None:
        for item in found:
            bound = dict(self.bound)
            with suppress(Differs):
                match(part, of(item), bound)
                self.bound.update(bound)
                found.remove(item)
                return
        raise Differs(f"no {what} is {part}: {found}"[:1_500])

    @staticmethod
    def _check_message(message: dict[str, Any]) -> None:
        """What every message of a leaf says."""
        hops = [hop["exchange"] for hop in message.get("trace", {}).get("hops", ())]
        if message["from"] not in ("", ME) or hops not in ([], [ME]):
            raise Differs(f"a leaf sends what is its own: from {message['from']!r}, hops {hops}")

    async def _silence(self, seconds: Any, step: dict[str, Any], within: float) -> None:
        """For a while nothing comes but what is skipped; with `of`, none of those either."""
        kinds = frozenset(step.get("of", ()))
        await asyncio.sleep(float(seconds))
        more = self._partner(step).heard_more(kinds)
        if more is not None:
            raise Differs(f"{more} came, and nothing should")

    async def _never(self, unwanted: Any, step: dict[str, Any], within: float) -> None:
        """For a while no such message comes, whatever else does."""
        with suppress(TimeoutError):
            async with asyncio.timeout(step.get("within", 0.3)):
                while True:
                    message = await self._partner(step).message()
                    try:
                        match(unwanted, message, dict(self.bound))
                    except Differs:
                        continue
                    raise Differs(f"{message} came, and should not"[:1_500])

    async def _check(self, expected: dict[str, Any], step: dict[str, Any], within: float) -> None:
        """What was bound fits."""
        for name, value in expected.items():
            match(fill(value, self.bound), self.bound[name], self.bound, name)

    async def _check_all(self, expected: Any, step: dict[str, Any], within: float) -> None:
        """All that was said on the link so far fits."""
        match(expected, list(self._partner(step).log), self.bound, "what was said")

    async def _event_in_turn(self, expected: list[dict[str, Any]], step: dict[str, Any], within: float) -> None:
        """These events, one after another."""
        names = {name for event in expected for name in event}
        changed = self.process.changed
        async with asyncio.timeout(within), changed:
            while len(found := [event for event in self.process.events if event[0] in names]) < len(expected):
                await changed.wait()
        match(expected, [{name: value} for name, value in found], self.bound, "the events")

    async def _wait(self, seconds: float, step: dict[str, Any], within: float) -> None:
        await asyncio.sleep(seconds)

    async def _mute(self, mute: bool, step: dict[str, Any], within: float) -> None:
        """Answer no Ping from now on."""
        self._partner(step).mute = mute

    # Connections.

    async def _cut(self, _: Any, step: dict[str, Any], within: float) -> None:
        await self._partner(step).cut()

    async def _end(self, _: Any, step: dict[str, Any], within: float) -> None:
        await self._partner(step).end()

    async def _ended(self, _: Any, step: dict[str, Any], within: float) -> None:
        """The process ends the connection."""
        partner = self._partner(step)
        async with asyncio.timeout(within):
            frame = await partner.frame("the end")
        if "the end" not in frame:
            raise Differs(f"{frame} came, and the connection should end"[:1_500])

    async def _accept(self, said: Any, step: dict[str, Any] | None = None, within: float = WITHIN) -> None:
        """The process dials: hear its Hello, and say Welcome (`welcome: false`: say nothing)."""
        partner = said if isinstance(said, Partner) else self._partner(step or {})
        spec = step if isinstance(said, Partner) else said
        spec = spec or {}
        async with asyncio.timeout(within):
            await partner.accept()
        await self._hear(
            {"hello": {"exchange": ME, "epoch": "$epoch", **spec.get("hello", {})}}, {"by": partner.id}, within
        )
        if spec.get("welcome", {}) is not False:
            await partner.say({"welcome": partner.introduction(fill(spec.get("welcome", {}), self.bound), hello=False)})
            if not spec.get("welcome", {}).get("recovered"):
                partner.seq = 0

    async def _dial(self, said: Any, step: dict[str, Any] | None = None, within: float = WITHIN) -> None:
        """Dial the process: say Hello, and hear its Welcome (`welcome: false`: hear nothing)."""
        partner = said if isinstance(said, Partner) else self._partner(step or {})
        spec = step if isinstance(said, Partner) else said
        spec = spec or {}
        async with asyncio.timeout(within):
            await partner.dial(self.bound["listening"])
        if spec.get("hello", {}) is not False:
            await partner.say({"hello": partner.introduction(fill(spec.get("hello", {}), self.bound), hello=True)})
        if spec.get("welcome", {}) is not False:
            expected = {"exchange": ME, "epoch": "$epoch", **spec.get("welcome", {})}
            if not spec.get("welcome", {}).get("recovered"):
                partner.seq = 0
            if "session" not in expected and "session" not in self.bound:
                expected |= {"session": "$session", "resume_token": "$token"}
            await self._hear({"welcome": expected}, {"by": partner.id}, within)

    async def _resume(self, said: dict[str, Any], step: dict[str, Any], within: float) -> None:
        """The session goes on over a new connection, whoever dials: `said` is what the runner says in that."""
        if self.case.side == "listen":
            proof = {"session": self.bound["session"], "resume_token": self.bound["token"]}
            await self._dial({"hello": {**proof, **said}, "welcome": {"recovered": True}}, step, within)
        else:
            hello = {"session": "session-1", "resume_token": "token-1"}
            welcome = {"recovered": True, "resume_token": "token-2", **said}
            await self._accept({"hello": hello, "welcome": welcome}, step, within)

    async def _end_server(self, _: Any, step: dict[str, Any], within: float) -> None:
        """Nobody is there any more to be dialled."""
        server = self._partner(step).server
        assert server is not None
        await server.close()

    async def _synchronise(self, _: Any, step: dict[str, Any], within: float) -> None:
        """All that was said on this link so far has been understood: a Ping is answered after it."""
        partner = self._partner(step)
        partner.pings += 1
        await partner.say({"ping": {"nonce": 1_000_000 + partner.pings}})
        await self._hear({"pong": {"nonce": 1_000_000 + partner.pings}}, step, within)

    async def _hear_last(self, expected: Any, step: dict[str, Any], within: float) -> None:
        """This frame comes, perhaps after others."""
        [(kind, body)] = expected.items()
        partner = self._partner(step)
        async with asyncio.timeout(within):
            while kind not in (frame := await partner.frame(kind)):
                if "the end" in frame:
                    raise Differs(f"the connection ended, and no {kind} came")
        match(body or {}, frame[kind], self.bound, kind)

    async def _no_answer(self, _: Any, step: dict[str, Any], within: float) -> None:
        """The process breaks off or says Goodbye: either will do."""
        partner = self._partner(step)
        async with asyncio.timeout(within):
            frame = await partner.frame("the end")
        if not frame.keys() & {"the end", "goodbye"}:
            raise Differs(f"{frame} came, and the session should end"[:1_500])

    async def _no_dial(self, seconds: float, step: dict[str, Any], within: float) -> None:
        """For a while the process does not dial."""
        await asyncio.sleep(seconds)
        if self._partner(step).dialled_again():
            raise Differs("it dialled, and should not")

    async def _open(self, _: Any, step: dict[str, Any], within: float) -> None:
        """Take what the process dials, and say nothing; or dial it, and say nothing."""
        partner = self._partner(step)
        async with asyncio.timeout(within):
            if self.case.side == "listen":
                await partner.dial(self.bound["listening"])
            else:
                await partner.accept()


def _nested(levels: int) -> bytes:
    """A Batch whose one message has lists in lists as its `value`, which no parser of protobuf reads to the end."""
    value = bytes.fromhex("0800")
    for _ in range(levels // 2):
        items = b"\x0a" + varint(len(value)) + value  # ListValue.values
        value = b"\x32" + varint(len(items)) + items  # Value.list_value
    message = b"\x12\x03a.b" + b"\x42" + varint(len(value)) + value
    batch = b"\x12" + varint(len(message)) + message
    return b"\x1a" + varint(len(batch)) + batch
