"""Names, ids and patterns."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_grpc.errors import InvalidMessage, LimitExceeded
from exchange_grpc.patterns import PatternMap, check_id, check_name, check_pattern, fits, is_pattern, shown

TOKENS = st.sampled_from(["a", "b", "c"])
NAMES = st.lists(TOKENS, min_size=1, max_size=7).map(".".join)
PATTERNS = st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=6).map(".".join)


@pytest.mark.parametrize("name", ["a", "user.login", "größe.日本.🚀", "a-b_c.d/e:f", "x" * 255, "é" * 127, "message"])
def test_well_formed_names(name: str) -> None:
    assert check_name(name) == name
    assert check_pattern(name) == name


BAD = ["", ".", "a.", ".a", "a..b", "a b", "a\n", "\x00", "a\tb", "a\x7f", "a\x85b", "a\u2028b", "a\u00a0b", "\ud800"]


@pytest.mark.parametrize("name", [*BAD, "*", "a.*", "a*"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidMessage):
        check_name(name)


@pytest.mark.parametrize("pattern", [*BAD, "a*", "*a", "***", "a.**b"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(InvalidMessage):
        check_pattern(pattern)


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "🚀" * 64, "a" * 10_000])
def test_the_limit_of_a_name_counts_bytes(name: str) -> None:
    for check in (check_name, check_pattern):
        with pytest.raises(LimitExceeded) as caught:
            check(name)
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize("id", ["a", "A-b_9", "x" * 64])
def test_ids(id: str) -> None:
    assert check_id(id) == id


@pytest.mark.parametrize("id", ["", "x" * 65, "a.b", "a b", "é", "a\n", "*"])
def test_what_is_no_id(id: str) -> None:
    with pytest.raises(InvalidMessage):
        check_id(id)


def test_an_error_shows_no_control_characters_and_is_short() -> None:
    assert shown("a\n\x00\x1b[31m") == r"'a\n\x00\x1b[31m'"
    assert len(shown("a" * 10_000)) == 62


def test_is_pattern() -> None:
    assert is_pattern("a.*")
    assert is_pattern("**")
    assert not is_pattern("a.b")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("*", "a.b.c", True),
        ("**", "a", True),
        ("a.b", "a.b", True),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.**", "a", True),
        ("a.**", "a.b.c", True),
        ("**.c", "a.b.c", True),
        ("a.**.c", "a.c", True),
        ("a.**.c", "a.c.b", False),
        ("a.**.b.**.c", "a.x.b.y.b.c", True),
        ("*.*", "a", False),
    ],
)
def test_what_fits(pattern: str, name: str, expected: bool) -> None:
    assert fits(pattern, name) is expected


def by_regex(pattern: str, name: str) -> bool:
    """The same, said by Python's regular expressions: each token with the dot before it."""
    if pattern == "*":
        return True
    tokens = {"*": r"\.[^.]+", "**": r"(?:\.[^.]+)*"}
    return re.fullmatch("".join(tokens.get(t, r"\." + t) for t in pattern.split(".")), "." + name) is not None


@given(PATTERNS, NAMES)
def test_fits_says_what_a_regular_expression_says(pattern: str, name: str) -> None:
    assert fits(pattern, name) == by_regex(pattern, name)


def test_no_pattern_makes_a_match_explode() -> None:
    # 85 times `**`: a backtracking matcher would not come back.
    assert not fits(".".join(["**", "a"] * 60), ".".join(["a"] * 120) + ".b")


@given(st.lists(st.tuples(st.booleans(), PATTERNS, st.integers(0, 3)), max_size=30), st.lists(NAMES, max_size=4))
def test_a_pattern_map_is_what_was_added_and_not_taken_back(
    steps: list[tuple[bool, str, int]], names: list[str]
) -> None:
    told: dict[str, bool] = {}
    patterns: PatternMap[int] = PatternMap(lambda pattern, new: told.update({pattern: new}))
    model: dict[tuple[str, int], int] = {}
    for add, pattern, target in steps:
        if add:
            patterns.add(pattern, target)
            model[pattern, target] = model.get((pattern, target), 0) + 1
        else:
            patterns.discard(pattern, target)
            model[pattern, target] = max(0, model.get((pattern, target), 0) - 1)
        for name in names:
            expected = {t for (p, t), count in model.items() if count and fits(p, name)}
            assert set(patterns.match(name)) == expected
            assert len(patterns.match(name)) == len(expected)
    alive = {pattern for (pattern, _), count in model.items() if count}
    assert set(patterns) == alive
    assert len(patterns) == len(alive)
    assert {pattern for pattern, new in told.items() if new} == alive
    assert all(pattern in patterns for pattern in alive)


def test_a_pattern_map_without_anybody_to_tell() -> None:
    patterns: PatternMap[str] = PatternMap()
    patterns.add("a.*", "x")
    patterns.add("a.*", "y")
    patterns.discard("a.*", "x")
    assert patterns.match("a.b") == ("y",)
    patterns.add("a.*", "y")
    patterns.discard("a.*", "y")
    assert patterns.match("a.b") == ("y",), "it was registered twice"
    patterns.discard("a.*", "y")
    assert patterns.match("a.b") == ()
    with pytest.raises(InvalidMessage):
        patterns.add("a..b", "x")


def test_the_answers_of_a_pattern_map_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.patterns._CACHED", 3)
    patterns: PatternMap[str] = PatternMap()
    patterns.add("a.*", "x")
    for n in range(10):
        assert patterns.match(f"a.{n}") == ("x",)
        assert len(patterns._cache) <= 3
