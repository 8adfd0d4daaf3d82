"""Whether the tests of the session and of routing test them: they run every branch, and notice mistakes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
TESTS = [
    f"tests/test_{name}.py"
    for name in ("inbox", "links", "outbox", "peer", "peer_stateful", "routing", "routing_links", "scatter")
]
SAMPLE = ("*_7", "*[37]7")  # of the mutants, those whose number ends so: 1 in 20, for all take more than an hour
NOTICED = 85  # of a hundred: many of the others change a text, or what comes to the same

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]


def run(*command: str, cwd: Path = ROOT, **options: Any) -> str:
    """What a module of the tools says."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, text=True, capture_output=True, **options)
    assert not done.returncode, done.stdout[-8_000:] + done.stderr[-2_000:]
    return done.stdout


def test_every_branch_is_run(tmp_path: Path) -> None:
    data = f"--data-file={tmp_path / 'coverage'}"
    run("coverage", "run", data, "-m", "pytest", "-q", "-m", "not drill", "-p", "no:cacheprovider", *TESTS)
    print(run("coverage", "report", data))


def test_mistakes_are_noticed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for folder in ("exchange_grpc", "generated", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run("mutmut", "run", "--max-children", "2", *SAMPLE, cwd=tmp_path)
    run("mutmut", "export-cicd-stats", cwd=tmp_path)
    alive = [line.strip() for line in run("mutmut", "results", cwd=tmp_path).splitlines() if "not checked" not in line]
    counts = json.loads((tmp_path / "mutants" / "mutmut-cicd-stats.json").read_text())
    noticed = counts["killed"] + counts["timeout"]
    tried = noticed + counts["survived"] + counts["suspicious"] + counts["no_tests"]
    print(*alive, f"{noticed} of {tried} mistakes were noticed", sep="\n")
    assert tried > 200
    assert noticed * 100 >= tried * NOTICED, alive
