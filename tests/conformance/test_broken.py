"""Clients that are broken on purpose each fail the case that names their fault, which the unbroken one passes."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # as it is for the process itself

from .broken import FAULTS  # noqa: E402
from .case import cases  # noqa: E402
from .implementation import implementations  # noqa: E402
from .play import Verdict  # noqa: E402
from .run import run  # noqa: E402

BY_ID = {case.id: case for case in cases()}
PYTHON = next(one for one in implementations() if one.name == "Python")


def played(command: tuple[str, ...], case: str) -> Verdict:
    [verdict] = run(PYTHON.with_command(command), [BY_ID[case]], within=2)
    return verdict


@pytest.mark.parametrize(("fault", "case"), [(fault.__name__, case) for fault, case in FAULTS.items()])
def test_a_broken_client_fails_the_case_that_names_its_fault(fault: str, case: str) -> None:
    verdict = played((sys.executable, str(HERE / "broken.py"), fault), case)
    assert not verdict.passed, f"{fault} goes unseen"
    assert "step" in verdict.why.splitlines()[1], f"it fails before the case begins: {verdict.why}"
    assert "the process has ended" not in verdict.why


def test_the_unbroken_client_passes_them() -> None:
    verdicts = run(PYTHON, [BY_ID[case] for case in FAULTS.values()])
    assert [verdict.why for verdict in verdicts if not verdict.passed] == []
