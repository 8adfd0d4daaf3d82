"""Names, ids and patterns: what is well-formed, and what fits what.

A name is tokens separated by dots. A pattern is a name in which a token may be `*` (any one token)
or `**` (any number of tokens, none included); the pattern `*` alone fits everything.

Matching is linear in `len(pattern) * len(name)` whatever a peer sends: only the last `**` is ever
taken up again, as in shell globbing, so no pattern can make a match explode.
"""

import re
from collections.abc import Callable, Hashable, Iterator
from functools import lru_cache
from typing import Generic, TypeVar

from .errors import InvalidMessage, LimitExceeded
from .limits import ID_LENGTH, NAME_BYTES

RESERVED = "exchange."  # names of the system: answered by the exchange that is addressed
SET = "exchange.state.set"  # the one of them that changes something
LOCAL_EVENTS = frozenset({"message.unhandled"})  # signalled within one exchange, never sent

_TOKEN = r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff.*]+"  # half a surrogate pair has no UTF-8
_NAME = re.compile(rf"{_TOKEN}(?:\.{_TOKEN})*")
_PATTERN = re.compile(rf"(?:{_TOKEN}|\*\*?)(?:\.(?:{_TOKEN}|\*\*?))*")
_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{ID_LENGTH}}}")
_CACHED = 8_192  # names are few and come often

T = TypeVar("T", bound=Hashable)


def shown(text: str) -> str:
    """`text` for an error: quoted, without control characters, shortened."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def _length_checked(text: str, what: str) -> None:
    # Most names are short: the bytes are only counted where they could be too many.
    if len(text) * 4 > NAME_BYTES and len(text.encode("utf-8", "surrogatepass")) > NAME_BYTES:
        raise LimitExceeded(f"the {what} {shown(text)} is longer than {NAME_BYTES} bytes")


@lru_cache(_CACHED)
def check_name(name: str) -> str:
    """`name`, if a message may bear it. Raises InvalidMessage."""
    if not name:
        raise InvalidMessage("the name is empty")
    _length_checked(name, "name")
    if not _NAME.fullmatch(name):
        raise InvalidMessage(
            f"{shown(name)} is no name: it takes tokens separated by single dots, "
            "without white space, control characters or '*'"
        )
    return name


@lru_cache(_CACHED)
def check_pattern(pattern: str) -> str:
    """`pattern`, if it is one. Raises InvalidMessage."""
    if not pattern:
        raise InvalidMessage("the pattern is empty")
    _length_checked(pattern, "pattern")
    if not _PATTERN.fullmatch(pattern):
        raise InvalidMessage(f"{shown(pattern)} is no pattern: it takes tokens, '*' or '**', separated by single dots")
    return pattern


@lru_cache(_CACHED)
def check_id(exchange: str) -> str:
    """`exchange`, if it is an exchange id. Raises InvalidMessage."""
    if not _ID.fullmatch(exchange):
        raise InvalidMessage(f"{shown(exchange)} is no exchange id: it takes 1 to {ID_LENGTH} of A-Z a-z 0-9 _ -")
    return exchange


def is_traced(name: str) -> bool:
    """Whether messages of this name leave a trace: those of the system do not, unless they change something."""
    return not name.startswith(RESERVED) or name == SET


def is_pattern(text: str) -> bool:
    """Whether `text` has a wildcard."""
    return "*" in text


def fits(pattern: str, name: str) -> bool:
    """Whether `name` fits `pattern`."""
    if pattern in ("*", "**"):
        return True
    if "*" not in pattern:
        return pattern == name
    wanted, tokens = pattern.split("."), name.split(".")
    w = n = resume = 0
    star = -1  # where the last `**` stands
    while n < len(tokens):
        if w < len(wanted) and wanted[w] == "**":
            star, resume = w, n
            w += 1
        elif w < len(wanted) and (wanted[w] == "*" or wanted[w] == tokens[n]):
            w += 1
            n += 1
        elif star >= 0:  # let the last `**` take one token more
            resume += 1
            w, n = star + 1, resume
        else:
            return False
    return all(token == "**" for token in wanted[w:])


class PatternMap(Generic[T]):
    """Who registered which patterns; `match(name)` gives those that fit, each once, in order of registration.

    The answers are remembered per name until a pattern comes or goes.
    """

    def __init__(self, changed: Callable[[str, bool], None] | None = None) -> None:
        """`changed(pattern, True)` is called when a pattern is new here, with False when it is gone."""
        self._targets: dict[str, dict[T, int]] = {}  # pattern -> target -> how often
        self._cache: dict[str, tuple[T, ...]] = {}
        self._changed = changed

    def __len__(self) -> int:
        return len(self._targets)

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __contains__(self, pattern: str) -> bool:
        return pattern in self._targets

    def add(self, pattern: str, target: T) -> None:
        """Register `target` for `pattern`; several times count."""
        check_pattern(pattern)
        self._cache.clear()
        new = pattern not in self._targets
        targets = self._targets.setdefault(pattern, {})
        targets[target] = targets.get(target, 0) + 1
        if new and self._changed is not None:
            self._changed(pattern, True)

    def discard(self, pattern: str, target: T) -> None:
        """Take back one `add`; nothing happens if there was none."""
        targets = self._targets.get(pattern, {})
        if target not in targets:
            return
        self._cache.clear()
        targets[target] -= 1
        if not targets[target]:
            del targets[target]
        if not targets:
            del self._targets[pattern]
            if self._changed is not None:
                self._changed(pattern, False)

    def items(self) -> Iterator[tuple[str, T]]:
        """Each pattern with each of its targets."""
        return ((pattern, target) for pattern, targets in self._targets.items() for target in targets)

    def match(self, name: str) -> tuple[T, ...]:
        """The targets whose patterns fit `name`."""
        found = self._cache.get(name)
        if found is None:
            fitting = {t: None for pattern, targets in self._targets.items() if fits(pattern, name) for t in targets}
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            found = self._cache[name] = tuple(fitting)
        return found
