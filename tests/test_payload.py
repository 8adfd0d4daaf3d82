"""Python values <-> JSON bytes: exact, or refused."""

import datetime
import json
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_grpc.errors import InvalidMessage, LimitExceeded
from exchange_grpc.limits import PAYLOAD_DEPTH
from exchange_grpc.payload import decode_json, encode_json

TEXT = st.text(st.characters(exclude_categories=("Cs",)))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda below: st.lists(below, max_size=5) | st.dictionaries(TEXT, below, max_size=5),
    max_leaves=20,
)


def nested(depth: int, bottom: Any = None, *, dicts: bool = False) -> Any:
    """`depth` levels of lists or dicts around `bottom`, which counts as none."""
    for _ in range(depth):
        bottom = {"a": bottom} if dicts else [bottom]
    return bottom


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True are three values."""
    return repr(a) == repr(b)


@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    assert same(decode_json(encode_json(value)), value)


@given(VALUES)
def test_the_bytes_are_what_any_json_library_reads(value: Any) -> None:
    assert same(json.loads(encode_json(value)), value)


@given(VALUES)
def test_what_another_library_wrote_is_read(value: Any) -> None:
    assert same(decode_json(json.dumps(value, indent=1).encode()), value)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = decode_json(data)
    except InvalidMessage:
        return
    assert same(decode_json(encode_json(value)), value)


def test_a_tuple_is_a_list() -> None:
    assert decode_json(encode_json({"a": (1, (2, 3))})) == {"a": [1, [2, 3]]}


@dataclass
class Point:
    x: int = 1


class Text(str):
    __slots__ = ()


REFUSED = [
    float("nan"),
    float("inf"),
    [1, {"a": [float("-inf")]}],
    [None, float("nan")],
    (float("nan"),),
    2**64,
    -(2**63) - 1,
    [10**30],
    b"bytes",
    {"a": bytearray(b"bytes")},
    {1: "a"},
    {None: 1},
    {b"a": 1},
    {1, 2},
    Point(),
    Text("a"),
    datetime.datetime(2026, 1, 1),
    datetime.date(2026, 1, 1),
    object(),
    "\ud800",
    {"\udfff": 1},
    1j,
]


@pytest.mark.parametrize("value", REFUSED, ids=lambda value: type(value).__name__)
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(InvalidMessage):
        encode_json(value)


@pytest.mark.parametrize("text", ["null", "nullable", [None, "null"], {"null": None}])
def test_the_word_null_harms_nothing(text: Any) -> None:
    assert decode_json(encode_json(text)) == text


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 2**64 - 1, -(2**63), 10**18, 10**19])
def test_integers_within_64_bits_are_exact(number: int) -> None:
    assert same(decode_json(b'{"a": [%d]}' % number), {"a": [number]})
    assert same(decode_json(encode_json([number])), [number])


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**20, 10**30, -(10**25), 10**300, 10**400])
def test_integers_beyond_are_refused_not_rounded(number: int) -> None:
    with pytest.raises(InvalidMessage):
        decode_json(b'{"a": [%d]}' % number)


def test_digits_that_are_no_integer_harm_nothing() -> None:
    assert decode_json(b'["123456789012345678901234567890", 0.1234567890123456789012]') == [
        "123456789012345678901234567890",
        0.1234567890123456789012,
    ]
    assert same(decode_json(b"12345678901234567890123e-3"), 12345678901234567890.123)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"NaN", b"[Infinity]", b"-Infinity", b"1e999", b"'a'", b"[1,]", b"\xff", b'"\\ud800"', b"1 2"]
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage):
        decode_json(data)


@pytest.mark.parametrize("dicts", [False, True])
def test_the_deepest_that_is_taken(dicts: bool) -> None:
    value = nested(PAYLOAD_DEPTH, "null", dicts=dicts)
    data = encode_json(value)
    assert data == orjson.dumps(value)
    assert decode_json(data) == value


@pytest.mark.parametrize("depth", [PAYLOAD_DEPTH + 1, 200, 253, 300, 1_000, 2_000])
@pytest.mark.parametrize("dicts", [False, True])
def test_deeper_is_refused_in_both_directions(depth: int, dicts: bool) -> None:
    with pytest.raises(LimitExceeded):
        encode_json(nested(depth, dicts=dicts))
    data = b'{"a":' * depth + b"1" + b"}" * depth if dicts else b"[" * depth + b"]" * depth
    with pytest.raises(LimitExceeded):
        decode_json(data)


@pytest.mark.parametrize("depth", [31, 980, 1_010])
def test_deep_with_an_integer_that_is_read_exactly(depth: int) -> None:
    with pytest.raises(LimitExceeded):
        decode_json(b"[" * depth + b"1234567890123456789" + b"]" * depth)


def test_wide_is_not_deep() -> None:
    value = {"a": [[{"b": []}] for _ in range(1_000)], "c": "[[[[" * 100, "d": None}
    assert decode_json(encode_json(value)) == value


def test_a_value_that_contains_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(InvalidMessage):
        encode_json(circle)


def test_an_error_is_short() -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_json(b'{"' + b"x" * 100_000)
    assert len(str(caught.value)) < 300
