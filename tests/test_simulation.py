"""Any world keeps the law of `simulation/invariants.py`, whatever breaks; and bugs that are planted are found."""

import gc
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from simulation.invariants import Broken
from simulation.planted import PLANTED, Plant
from simulation.play import play
from simulation.transitions import EVERY

SEEDS = 2_000  # in each run of the tests
CHUNKS = 20  # which workers share
DRILL_SEEDS = int(os.environ.get("EXCHANGE_SEEDS", 50_000))  # two cores play about 30 a second
TESTS = Path(__file__).parent


def transitions_of(seeds: Iterable[int]) -> Counter[str]:
    """Play them all; what the sessions went through."""
    taken: Counter[str] = Counter()
    before = gc.get_threshold()
    gc.set_threshold(100_000)  # a world is one large circle, of which nothing is garbage before it ends
    try:
        for seed in seeds:
            taken += play(seed).transitions
    finally:
        gc.set_threshold(*before)
    return taken


def check_transitions(taken: Counter[str]) -> None:
    never = [transition for transition in EVERY if not taken[transition]]
    assert not never, f"these transitions were never taken: {never}"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A directory that all workers of this run have."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "transitions"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_seed_keeps_the_law(chunk: int, shared: Path, record_property: Callable[[str, object], None]) -> None:
    began = time.process_time()
    taken = transitions_of(range(chunk, SEEDS, CHUNKS))
    record_property("seeds", (SEEDS // CHUNKS, time.process_time() - began))
    written = shared / f"{chunk}.new"
    written.write_text("\n".join(f"{n} {what}" for what, n in taken.items()))
    written.rename(shared / f"{chunk}.txt")
    if len(parts := list(shared.glob("*.txt"))) == CHUNKS:  # we are the last
        every: Counter[str] = Counter()
        for part in parts:
            for line in part.read_text().splitlines():
                count, what = line.split(" ", 1)
                every[what] += int(count)
        check_transitions(every)


@pytest.mark.drill
@pytest.mark.timeout(14_400)
def test_very_many_seeds_keep_the_law(capsys: pytest.CaptureFixture[str]) -> None:
    began, size = time.monotonic(), 250
    end = SEEDS + DRILL_SEEDS
    chunks = [range(start, min(start + size, end)) for start in range(SEEDS, end, size)]
    taken: Counter[str] = Counter()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        for more in processes.map(transitions_of, chunks):
            taken += more
    seconds = time.monotonic() - began
    with capsys.disabled():
        print(f"{DRILL_SEEDS} seeds in {seconds:.0f} s, {DRILL_SEEDS / seconds:.0f} a second")
    check_transitions(taken)


def test_a_seed_is_a_history() -> None:
    assert play(3).history == play(3).history
    assert play(3).history != play(4).history


def test_a_seed_is_the_same_history_in_every_process() -> None:
    said = set()
    for hashed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hashed}
        ran = subprocess.run(
            [sys.executable, "-c", "from simulation.play import play; print([play(n).history for n in range(20, 35)])"],
            cwd=TESTS, env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        said.add(ran.stdout)
    assert len(said) == 1


def test_the_command_says_what_a_seed_stood_for() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "simulation", "--seed", "7"], cwd=TESTS, capture_output=True, text=True, check=True
    )
    report = play(7)
    assert str(report.options) in ran.stdout
    assert report.history in ran.stdout


def test_a_seed_is_large_enough_to_mean_something() -> None:
    for seed in range(50):
        report = play(seed)
        assert len(report.options.links) >= report.options.exchanges - 1 >= 4
        assert report.messages >= 200
        assert report.options.faults >= 10


@pytest.mark.timeout(300)
def test_a_thousand_exchanges_keep_the_law() -> None:
    report = play(1, exchanges=1_000, shape="tree", messages=50, latency=(0.0, 0.001))
    assert report.options.exchanges == 1_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        found = next((seed for seed in range(SEEDS) if breaks(seed)), None)
    assert found is not None, f"{SEEDS} seeds have not found it"
    print(f"found by seed {found}")
    assert not breaks(found)  # it was the bug


def breaks(seed: int) -> bool:
    try:
        play(seed)
    except Broken:
        return True
    return False
