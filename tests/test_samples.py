"""The samples of the Python client, run against a real `exchange serve --demo`: each prints what it promises."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import PATIENCE, serving

SAMPLES = Path(__file__).resolve().parent.parent / "clients" / "python" / "samples"
PRINTED = {
    "hello": r"hello from (?P<demo>[\w-]+)\n",
    "request_reply": r"compute\.sum: 8\n",
    "worker_pool": r"worker-1: 5\nworker-2: 5\n",
    "live_state": r"goal: (50|100)\n",
    "trace": r"compute\.sum: tracer -> (?P<demo>[\w-]+)\ncompute\.sum: (?P=demo) -> tracer\n",
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("--demo", "--grpc", "127.0.0.1:0") as (process, url, _):
        yield url
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize("time", ["once", "again"])
def test_a_sample_prints_what_it_promises(name: str, time: str, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SAMPLES / f"{name}.py")],
        capture_output=True, text=True, timeout=60, env={**os.environ, "EXCHANGE_URL": url},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(PRINTED[name], done.stdout), done.stdout


def test_every_sample_is_run_here() -> None:
    assert {path.stem for path in SAMPLES.glob("*.py")} == PRINTED.keys()
