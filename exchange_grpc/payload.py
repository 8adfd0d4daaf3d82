"""What a message carries: Python values <-> JSON bytes, exact or refused.

JSON can say None, bool, int, float, str, list, tuple and dict with str keys. What would come out
different at the other end is refused instead: NaN and infinity, integers beyond 64 bits, any other
type (but for an Enum and a UUID, which orjson says by value and as text). Nothing is rounded.

orjson is fast and quiet: it writes NaN as `null` and reads a large integer as a float. Both checks
below look first, at C speed, whether the bytes could hold such a thing, and walk the value only then.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

import orjson

from .errors import InvalidMessage, LimitExceeded
from .limits import PAYLOAD_DEPTH
from .patterns import shown

JSON = "application/json"
BINARY = "application/octet-stream"
NULL = b"null"

_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_DIGITS_TO_ZERO = bytes(ord("0") if 48 <= i <= 57 else i for i in range(256))
_LONG_INTEGER = b"0" * 19  # the shortest that can be beyond 64 bits
_TOO_DEEP = f"the payload is nested deeper than {PAYLOAD_DEPTH} levels"
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1


@dataclass(slots=True, frozen=True)
class Encoded:
    """A value that is JSON already, made by `encode_json` or put together of what it made."""

    data: bytes


def encode_json(value: Any) -> bytes:
    """`value` as JSON bytes. Raises InvalidMessage for what JSON cannot say, LimitExceeded for what is too deep."""
    try:
        data = orjson.dumps(value, option=_OPTIONS)
    except (TypeError, ValueError) as error:
        raise _refusal(error, f"the value cannot be said in JSON: {error}") from None
    if b"null" in data or _may_be_deep(data):
        _check(value)
    return data


def decode_json(data: bytes) -> Any:
    """The value of JSON bytes. Raises InvalidMessage for what is none, LimitExceeded for what is too deep."""
    try:
        value = orjson.loads(data)
        if _may_be_deep(data):
            _check(value)
        if _LONG_INTEGER in data.translate(_DIGITS_TO_ZERO):
            value = json.loads(data, parse_int=_exact_int)
    except ValueError as error:
        raise _refusal(error, f"the payload is no JSON that can be read: {shown(str(error))}") from None
    return value


def _refusal(error: Exception, text: str) -> InvalidMessage:
    """What it means that orjson would not: it stops at a depth of its own, far beyond ours."""
    if "limit" in str(error):  # "Recursion limit reached", "depth limit exceeded"
        return LimitExceeded(_TOO_DEEP)
    return InvalidMessage(text)


def _may_be_deep(data: bytes) -> bool:
    return data.count(b"[") + data.count(b"{") > PAYLOAD_DEPTH


def _exact_int(digits: str) -> int:
    if len(digits) > 20 or not _MIN_INT <= int(digits) <= _MAX_INT:
        raise ValueError("an integer is beyond 64 bits")
    return int(digits)


def _check(value: Any) -> None:
    """Refuse NaN, infinity and what is deeper than PAYLOAD_DEPTH, without recursion."""
    level: list[Any] = [value]
    for depth in range(PAYLOAD_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, float):
                if not math.isfinite(item):
                    raise InvalidMessage(f"the value cannot be said in JSON: {item}")
            elif isinstance(item, dict | list | tuple):
                if depth == PAYLOAD_DEPTH:
                    raise LimitExceeded(_TOO_DEEP)
                below.extend(item.values() if isinstance(item, dict) else item)
        level = below
