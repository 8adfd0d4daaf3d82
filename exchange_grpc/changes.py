"""What has changed in the state of one exchange: revisions, a record of transactions, and who watches.

Law: sans-IO. `commit` is told of each transaction by the thread that made it, while the state is locked; all
else holds `lock()` where it reads what `commit` writes. A record keeps small values as they were and of
larger ones a description, so that remembering costs no more than is worth remembering.
"""

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from .errors import Code, InvalidMessage, Refused
from .limits import BATCH_BYTES, RECORDED_ITEMS, RECORDED_TEXT, TRANSACTIONS, WATCH_QUEUE, WATCH_QUEUE_BYTES
from .payload import Encoded, encode_json
from .reactive import Transaction


class Source(Protocol):
    """The state, as far as it is asked here."""

    def __getitem__(self, name: str) -> Any:
        """The value of a name."""

    def batch(self) -> AbstractContextManager[None]:
        """While it is open nobody else changes anything."""

    def dependencies(self, name: str) -> frozenset[str]:
        """What the name was computed from."""


class Change(NamedTuple):
    """How one name changed. `because` are those it was computed from that had changed too."""

    old: Any
    new: Any
    computed: bool
    because: tuple[str, ...]
    revision: int


class Record(NamedTuple):
    """One transaction: its number, when (seconds since the epoch), the message and the handler that made it."""

    number: int
    at: float
    cause: str
    handler: str
    changes: dict[str, Change]


class Last(NamedTuple):
    """The last change of one name: which it was, of which transaction, because of which message."""

    revision: int = 0
    transaction: int = 0
    cause: str = ""


NEVER = Last()


class Watch:
    """The changes that wait for one watcher. `wake` is called, by any thread, when there is something to take."""

    def __init__(self, names: frozenset[str], wake: Callable[[], None]) -> None:
        self.names = names
        self.stopped: Refused | None = None
        self._wake = wake
        self._waiting: deque[list[bytes]] = deque()
        self._bytes = 0

    def put(self, states: list[bytes], size: int) -> None:
        """One transaction."""
        if self.stopped is not None:
            return
        if len(self._waiting) >= WATCH_QUEUE or self._bytes + size > WATCH_QUEUE_BYTES:
            self.stop(Refused("it was watched too slowly", code=Code.RESOURCE_EXHAUSTED, reason="SLOW"))
            return
        self._waiting.append(states)
        self._bytes += size
        if len(self._waiting) == 1:
            self._wake()

    def stop(self, reason: Refused) -> None:
        """There will be no more; what waits is dropped."""
        self.stopped = reason
        self._waiting.clear()
        self._wake()

    def take(self) -> list[bytes]:
        """States that changed, whole transactions, in order, as many as fit one message. Raises what stopped it."""
        states: list[bytes] = []
        size = 0
        while self._waiting:
            size += sum(map(len, self._waiting[0]))
            if states and size > BATCH_BYTES:
                break
            taken = self._waiting.popleft()
            self._bytes -= sum(map(len, taken))
            states += taken
        if self.stopped is not None:
            raise self.stopped
        return states


class Changes:
    """Of the state of one exchange, which started at `epoch`."""

    def __init__(self, state: Source, epoch: int) -> None:
        self.epoch = epoch
        self._state = state
        self._last: dict[str, Last] = {}
        self._records: dict[int, Record] = {}
        self._watches: dict[frozenset[str], set[Watch]] = {}
        self._closed: Refused | None = None

    def __len__(self) -> int:
        return len(self._records)

    @property
    def watches(self) -> int:
        """How many watch."""
        return sum(map(len, self._watches.values()))

    def lock(self) -> AbstractContextManager[None]:
        """While it is held nothing changes."""
        return self._state.batch()

    # ---------------------------------------------------------------------------------------------- writing

    def commit(self, transaction: Transaction, handler: str) -> None:
        """A transaction was committed, in a run of `handler`."""
        number, cause = transaction.id, transaction.cause or ""
        changed = {**transaction.sets, **transaction.updates}
        changes: dict[str, Change] = {}
        for name, (old, new) in changed.items():
            computed = name in transaction.updates
            because = transaction.because.get(name, ())
            revision = self._last.get(name, NEVER).revision + 1
            self._last[name] = Last(revision, number, cause)
            changes[name] = Change(sketch(old), sketch(new), computed, because, revision)
        self._records[number] = Record(number, transaction.timestamp, cause, handler, changes)
        if len(self._records) > TRANSACTIONS:
            del self._records[next(iter(self._records))]
        if self._watches:
            self._tell({name: new for name, (_, new) in changed.items()})

    def _tell(self, values: dict[str, Any]) -> None:
        said: dict[str, bytes] = {}
        for names, watches in self._watches.items():
            concerned = values.keys() & names
            if not concerned:
                continue
            try:
                for name in concerned - said.keys():
                    said[name] = self._said(name, values[name])
            except InvalidMessage as error:
                for watch in watches:
                    watch.stop(unsayable(name, error))
                continue
            states = [said[name] for name in values if name in concerned]
            size = sum(map(len, states))
            for watch in watches:
                watch.put(states, size)

    # ---------------------------------------------------------------------------------------------- reading

    def record(self, name: str) -> Record | None:
        """The transaction of the last change of a name; None if there was none, or it is forgotten."""
        return self._records.get(self.last(name).transaction)

    def last(self, name: str) -> Last:
        """The last change of a name."""
        return self._last.get(name, NEVER)

    def state(self, name: str) -> bytes:
        """The JSON of `exchange.v1.StateValue` for one name. Raises Refused if its value cannot be said."""
        with self.lock():
            try:
                return self._said(name, self._state[name])
            except InvalidMessage as error:
                raise unsayable(name, error) from None

    def _said(self, name: str, value: Any) -> bytes:
        last = self.last(name)
        return encode_json(
            {
                "name": name,
                "value": value,
                "revision": last.revision,
                "epoch": self.epoch,
                "cause": last.cause,
                "transaction": last.transaction,
            }
        )

    # --------------------------------------------------------------------------------------------- watching

    def watch(self, names: Iterable[str], wake: Callable[[], None]) -> tuple[Watch, list[bytes]]:
        """A watch, and the snapshot that its changes follow on without a gap. Raises Refused."""
        watch = Watch(frozenset(names), wake)
        with self.lock():
            if self._closed is not None:
                raise self._closed
            snapshot = [self.state(name) for name in sorted(watch.names)]
            self._watches.setdefault(watch.names, set()).add(watch)
        return watch, snapshot

    def unwatch(self, watch: Watch) -> None:
        """It is over."""
        with self.lock():
            watches = self._watches.get(watch.names, set())
            watches.discard(watch)
            if not watches:
                self._watches.pop(watch.names, None)

    def close(self, reason: Refused) -> None:
        """End all watches."""
        with self.lock():
            self._closed = reason
            for watches in self._watches.values():
                for watch in watches:
                    watch.stop(reason)


def answer(exchange: str, states: Collection[bytes], *, snapshot: bool) -> Encoded:
    """One answer of `exchange.state.watch`."""
    head = encode_json({"version": 1, "exchange": exchange, "snapshot": snapshot})[:-1]
    return Encoded(head + b',"states":[' + b",".join(states) + b"]}")


def unsayable(name: str, error: InvalidMessage) -> Refused:
    """What it means that JSON cannot say the value of a name."""
    return Refused(f"the value of {name!r}: {error}", code=Code.FAILED_PRECONDITION, reason="ANSWER")


def sketch(value: Any) -> Any:
    """`value` for a record: as it is if JSON can say it in little, else a text that describes it."""
    kind = type(value)
    if value is None or kind is bool or (kind is int and abs(value) < 2**63):
        return value
    if kind is float:
        return value if math.isfinite(value) else f"<{value}>"
    if kind is str:
        return value if _sayable(value) else f"<text of {len(value)} characters>"
    if kind in (dict, list, tuple):
        copy = _copied(value, [RECORDED_ITEMS], 4)
        return copy if copy is not _TOO_MUCH else f"<{kind.__name__} of {len(value)}>"
    return f"<{kind.__name__}>"


_TOO_MUCH: Any = object()


def _sayable(text: str) -> bool:
    """Short, and without half a surrogate pair."""
    return len(text) <= RECORDED_TEXT and (text.isascii() or text.encode("utf-8", "replace").decode() == text)


def _copied(value: Any, left: list[int], depth: int) -> Any:
    """A copy of `value`, which may have so many items and levels; else _TOO_MUCH."""
    left[0] -= 1
    if left[0] < 0 or not depth:
        return _TOO_MUCH
    if type(value) is dict:
        if len(value) > left[0] or any(type(key) is not str or not _sayable(key) for key in value):
            return _TOO_MUCH
        copy = {key: _copied(item, left, depth - 1) for key, item in value.items()}
        return _TOO_MUCH if any(item is _TOO_MUCH for item in copy.values()) else copy
    if type(value) in (list, tuple):
        if len(value) > left[0]:
            return _TOO_MUCH
        items = [_copied(item, left, depth - 1) for item in value]
        return _TOO_MUCH if any(item is _TOO_MUCH for item in items) else items
    return sketch(value)
