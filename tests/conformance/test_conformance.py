"""Every implementation against every case: `pytest tests/conformance -k "Python and resume"`.

The cases of one implementation are played side by side, as one group: with xdist they belong to one worker
(`--dist loadgroup`).
"""

import pytest

from . import table
from .case import SUITES, Case, cases
from .implementation import Implementation, Missing, implementations, known_failures, required
from .play import Verdict
from .run import run

ALL = [(one, case) for one in implementations() for case in cases() if one.takes(case)]
_prepared: dict[str, str] = {}  # by implementation: why it is not there, or nothing
_verdicts: dict[str, dict[str, Verdict]] = {}


def _ready(implementation: Implementation) -> None:
    """Build it, once; skip where it cannot be."""
    if implementation.name not in _prepared:
        try:
            implementation.prepare()
            _prepared[implementation.name] = ""
        except Missing as missing:
            _prepared[implementation.name] = str(missing)
    if why := _prepared[implementation.name]:
        if required():
            pytest.fail(f"EXCHANGE_REQUIRE_ALL=1, and {why}", pytrace=False)
        pytest.skip(why)


def _played(request: pytest.FixtureRequest, implementation: Implementation, case: Case) -> Verdict:
    """How the case went, played together with all that were asked for."""
    if implementation.name not in _verdicts:
        asked = {item.name.split("@")[0] for item in request.session.items}
        mine = [other for one, other in ALL if one == implementation and f"test_case[{_id(one, other)}]" in asked]
        verdicts = run(implementation, mine)
        _verdicts[implementation.name] = {verdict.case.id: verdict for verdict in verdicts}
    return _verdicts[implementation.name][case.id]


def _id(implementation: Implementation, case: Case) -> str:
    return f"{implementation.name}-{case.id}"


@pytest.mark.timeout(1_200)  # the first one plays all of them, and may have to build
@pytest.mark.parametrize(
    ("implementation", "case"),
    [pytest.param(one, case, id=_id(one, case), marks=pytest.mark.xdist_group(one.name)) for one, case in ALL],
)
def test_case(request: pytest.FixtureRequest, implementation: Implementation, case: Case) -> None:
    _ready(implementation)
    verdict = _played(request, implementation, case)
    reason = known_failures().get(implementation.name, {}).get(case.id)
    if reason is not None:
        assert not verdict.passed, f"{case.id} is passed now: take it out of known_failures.yaml"
        pytest.xfail(reason)
    if not verdict.passed:
        pytest.fail(verdict.why, pytrace=False)


LEAST = {"wire": 30, "session": 40, "routing": 25, "requests": 35, "state": 15, "trace": 15, "limits": 30}


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_its_cases(suite: str) -> None:
    assert len([case for case in cases(suite) if not case.name.endswith("-listening")]) >= LEAST[suite]


def test_every_feature_has_a_row() -> None:
    assert {feature for case in cases() for feature in case.features} == set(table.FEATURES)


def test_the_table_is_the_one_of_the_page() -> None:
    assert table.committed() == table.expected(), "make conformance ARGS=--write"


def test_known_failures_are_cases() -> None:
    ids = {case.id for case in cases()}
    for name, known in known_failures().items():
        assert name in {one.name for one in implementations()}
        assert known.keys() <= ids
        assert all(known.values()), "each has a reason"
