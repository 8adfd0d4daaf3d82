"""The examples, run as a reader runs them: each prints exactly what it promises, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
WAY = "['browser', 'server', 'worker', 'server', 'browser']"

PRINTED = {
    "local_peers": """\
request: 8
send: pizza.ready margherita by shop -> kitchen -> shop
publish: menu.today.changed ['margherita', 'marinara'] by kitchen -> shop
broadcast: kitchen.closing {'in_minutes': 10} by kitchen -> shop
""",
    "fake_server": """\
passed: test_shows_the_temperature
passed: test_has_no_idea_of_a_town_that_is_not_there
""",
    "reactive_distributed": """\
doubled is []
doubled is [2, 4, 6]
doubled is [10, 16]
set ['data'], recomputed ['doubled'], because of server.data by server -> app
set ['data'], recomputed ['doubled'], because of server.data by server -> app
""",
    "browser_server_worker": f"""\
local: the browser has 2 items
{WAY}
grpc: the browser has 2 items
{WAY}
""",
}


def run(name: str, *arguments: str) -> str:
    """What the example prints. It must end well, and complain of nothing."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", PRINTED)
def test_prints_what_it_promises(name: str) -> None:
    assert run(name) == PRINTED[name]


@pytest.mark.parametrize("transport", ["local", "grpc"])
def test_the_way_is_the_same_over_each_transport(transport: str) -> None:
    assert run("browser_server_worker", transport) == f"{transport}: the browser has 2 items\n{WAY}\n"


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == PRINTED.keys()
