"""The runner's end of one link: it says frames, and keeps those it hears until a case asks for them.

Law: it does nothing by itself, but for this: it answers Ping (unless it is `mute`), and counts the numbers of its
Batches. It watches what no peer may do: a gap in the numbers of the Batches, and a frame that cannot be parsed.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError

from exchange.v1.frame_pb2 import Frame

from . import wires
from .frames import Differs, build, shown
from .wires import Wire

SKIPPED = frozenset({"ack", "credit", "ping", "pong", "interest"})  # unless they are asked for
EPOCH = 7
_LAST_FRAMES = 40
_SHOWN = 600  # of a frame, for people

WELCOME: dict[str, Any] = {
    "epoch": EPOCH,
    "protocol": 1,
    "features": ["ping", "resume"],
    "agent": "runner/1",
    "credit": {"seq": 10_000, "bytes": 2**30},
    "interest": {"revision": 1},
}
OFFERED = ("handles", "subscribes", "exports")  # of a peer: short for what stands in its `interest`
SESSION: dict[str, Any] = {"session": "session-1", "resume_token": "token-1"}


class Partner:
    """One peer that the runner plays, over one connection after another."""

    def __init__(self, id: str, said: dict[str, Any], transport: str) -> None:
        self.id = id
        interest = {key: said[key] for key in OFFERED if key in said}
        self.said = {key: value for key, value in said.items() if key not in OFFERED}  # in place of WELCOME
        if interest:
            self.said["interest"] = {"revision": 1, **interest}
        self.transport = transport
        self.server: wires.Server | None = None
        self.wire: Wire | None = None
        self.mute = False
        self.over = False  # the connection has ended
        self.seq = 0  # of the last message that we sent
        self.pings = 0  # of ours that ask whether something was understood
        self.made = 0  # messages of ours
        self.bytes = 0  # of all our Batch frames
        self.received = 0  # the number of the last message that we were sent
        self.log: deque[str] = deque(maxlen=_LAST_FRAMES)
        self._accepted: asyncio.Queue[Wire] = asyncio.Queue()
        self._heard: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._messages: deque[dict[str, Any]] = deque()
        self._reader: asyncio.Task[None] | None = None
        self._expected: int | None = None
        self._wrong: str | None = None

    # ----------------------------------------------------------------------------------------------- connections

    async def serve(self) -> str:
        """Listen for the process; the URL."""
        self.server = await wires.serve(self.transport, self._accepted.put_nowait)
        return self.server.url

    async def accept(self) -> None:
        """Wait until the process dials."""
        self._begin(await self._accepted.get())

    async def dial(self, url: str) -> None:
        """Dial the process."""
        self._begin(await wires.dial(self.transport, url))

    def dialled_again(self) -> bool:
        """The process has dialled, and nobody has accepted that yet."""
        return not self._accepted.empty()

    def _begin(self, wire: Wire) -> None:
        if self._reader is not None:
            self._reader.cancel()
        self.wire, self.over, self._expected = wire, False, None
        self._heard, self._messages = asyncio.Queue(), deque()
        self._reader = asyncio.create_task(self._read(wire, self._heard))

    async def cut(self) -> None:
        """Break the connection."""
        if self.wire is not None:
            self.log.append("-- cut")
            await self.wire.cut()

    async def end(self) -> None:
        """End our side of it."""
        if self.wire is not None:
            await self.wire.end()

    async def close(self) -> None:
        """The case is over."""
        if self._reader is not None:
            self._reader.cancel()
        if self.wire is not None:
            with suppress(Exception):
                await self.wire.cut()
        if self.server is not None:
            with suppress(Exception):
                await self.server.close()

    # ------------------------------------------------------------------------------------------------------- out

    async def say(self, spec: dict[str, Any]) -> None:
        """Send one frame."""
        self.log.append(f"-> {_brief(spec)}")
        assert self.wire is not None, f"{self.id} is not connected"
        frame = Frame()
        for kind, body in spec.items():
            build(frame, {"unknown": body}) if kind == "unknown" else build(frame, {kind: body or {}})
        data = frame.SerializeToString()
        if frame.WhichOneof("kind") == "batch":
            self.bytes += len(data)
        await self.wire.send(data)

    async def raw(self, data: bytes) -> None:
        """Send bytes."""
        self.log.append(f"-> {data[:60]!r}")
        assert self.wire is not None
        await self.wire.send(data)

    def introduction(self, change: dict[str, Any], *, hello: bool) -> dict[str, Any]:
        """What our Hello or Welcome says: the usual, but for what the peer or the step says. `null` leaves out."""
        said = {"exchange": self.id, **WELCOME, **({} if hello else SESSION), **self.said, **change}
        return {key: value for key, value in said.items() if value is not None}

    def messages(self, specs: list[dict[str, Any]]) -> dict[str, Any]:
        """A Batch of messages that say all that a careful peer says."""
        batch = []
        first = self.seq + 1
        for spec in specs:
            self.seq += 1
            self.made += 1
            whole = {
                "id": f"{self.id}.{EPOCH}.{self.made}",
                "from": self.id,
                "kind": "SEND",
                "json": None,
                "trace": {"hops": [{"exchange": self.id, "at_us": 1_700_000_000_000_000 + self.made}]},
                "timestamp_us": 1_700_000_000_000_000 + self.made,
                "ttl_us": 30_000_000,
                **spec,
            }
            if "data" in spec or "value" in spec:
                del whole["json"]
            batch.append({key: value for key, value in whole.items() if key not in ("unset", *spec.get("unset", ()))})
        return {"batch": {"seq": first, "messages": batch}}

    # -------------------------------------------------------------------------------------------------------- in

    async def _read(self, wire: Wire, heard: asyncio.Queue[dict[str, Any] | None]) -> None:
        while (data := await wire.frames.get()) is not None:
            try:
                packed = Frame.FromString(data)
            except DecodeError:
                heard.put_nowait({"unparsable": data})
                continue
            kind = packed.WhichOneof("kind")
            if kind is None:
                continue
            frame = shown(getattr(packed, kind))
            frame["$size"] = len(data)
            self.log.append(f"<- {kind} {_brief(frame)}")
            if kind == "ping" and not self.mute:
                await self.say({"pong": {"nonce": frame["nonce"]}})
            if kind == "batch":
                self._count(frame)
            heard.put_nowait({kind: frame})
        self.log.append("<- (the end)")
        heard.put_nowait(None)

    def _count(self, batch: dict[str, Any]) -> None:
        """The numbers of what we are sent have no gap."""
        if batch["seq"] == 0:
            return
        if self._expected is not None and batch["seq"] != self._expected:
            self._wrong = f"a Batch begins with {batch['seq']}, and {self._expected} was due"
        self._expected = batch["seq"] + len(batch["messages"])
        self.received = self._expected - 1

    async def frame(self, wanted: str) -> dict[str, Any]:
        """The next frame, but for those that are skipped."""
        if self._messages and wanted != "batch":
            raise Differs(f"a message was not expected: {_brief(self._messages[0])}")
        while True:
            frame = await self._heard.get()
            if self._wrong is not None:
                raise Differs(self._wrong)
            if frame is None:
                self.over = True
                self._heard.put_nowait(None)
                return {"the end": {}}
            kind = next(iter(frame))
            if kind == wanted or kind not in SKIPPED:
                return frame

    async def message(self) -> dict[str, Any]:
        """The next message."""
        while not self._messages:
            frame = await self.frame("batch")
            if "batch" not in frame:
                raise Differs(f"{_brief(frame)} came, and no message")
            self._messages.extend(frame["batch"]["messages"])
        return self._messages.popleft()

    def heard_more(self, kinds: frozenset[str]) -> str | None:
        """What is here, and was not asked for: of these kinds, or none of those that are skipped."""
        if self._messages:
            return _brief(self._messages[0])
        kept = []
        found = None
        while not self._heard.empty():
            frame = self._heard.get_nowait()
            kept.append(frame)
            kind = "the end" if frame is None else next(iter(frame))
            if found is None and (kind in kinds or kind not in SKIPPED):
                found = _brief(frame) if frame is not None else "the end of the connection"
        for frame in kept:
            self._heard.put_nowait(frame)
        return found

    def forget(self) -> None:
        """What has come so far does not matter."""
        self._messages.clear()
        while not self._heard.empty():
            if self._heard.get_nowait() is None:
                self._heard.put_nowait(None)
                return


def _brief(value: Any) -> str:
    text = repr(_without_empty(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        pairs = ((key, _without_empty(item)) for key, item in value.items() if not str(key).startswith("$"))
        return {key: item for key, item in pairs if item not in (None, "", 0, b"", [], {}, False)}
    if isinstance(value, list):
        return [_without_empty(item) for item in value[:_SHOWN]]
    return value[:_SHOWN] if isinstance(value, str | bytes) else value
