"""Processes for tests: they answer, they stop and start as they are told, and none outlives its test."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from processes import Child, child
from world import soon, until

PROGRAM = """
import asyncio, os
from processes import obey, play

async def parrot(word, ends=False):
    if ends:
        raise SystemExit(3)
    async def wait():
        await asyncio.sleep(60)
    await obey({"word": word, "pid": os.getpid()}, say=lambda what: [word, what], wait=wait, fail=lambda: 1 / 0)

play(parrot)
"""


def state_of(pid: int) -> str:
    """`R`, `S`, `T` (stopped) ... as `ps` says it; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def test_it_answers_until_it_is_gone() -> None:
    async with child(PROGRAM, "parrot", word="hello") as parrot:
        pid = parrot.pid
        assert parrot.ready == {"word": "hello", "pid": pid}
        assert await parrot.ask("say", what={"n": 1}) == ["hello", {"n": 1}]
        large = "x" * 1_000_000
        assert await parrot.ask("say", what=large) == ["hello", large]
        with pytest.raises(AssertionError, match="ZeroDivisionError"):
            await parrot.ask("fail")
        assert await asyncio.gather(*(parrot.ask("say", what=n) for n in range(9))) == [["hello", n] for n in range(9)]
    assert not state_of(pid)


async def test_it_is_killed_and_restarted_and_paused() -> None:
    async with child(PROGRAM, "parrot", word="hello") as parrot:
        first = parrot.pid
        asking = asyncio.create_task(parrot.ask("wait"))
        await asyncio.sleep(0)
        await parrot.kill()
        with pytest.raises(AssertionError, match="ended with -9"):
            await soon(asking)
        assert not state_of(first)
        await parrot.restart()
        assert parrot.pid != first
        parrot.pause()
        await until(lambda: state_of(parrot.pid) == "T")
        with pytest.raises(TimeoutError):
            await parrot.ask("say", what="early", patience=0.05)
        parrot.go_on()
        assert await parrot.ask("say", what="late") == ["hello", "late"]
        parrot.pause()  # it is killed all the same
        pid = parrot.pid
    assert not state_of(pid)


async def test_one_that_does_not_begin_says_so() -> None:
    with pytest.raises(AssertionError, match="ended with 3"):
        async with child(PROGRAM, "parrot", word="hello", ends=True):
            pass


@pytest.mark.parametrize("steps", [0, 1, 5, None])
async def test_it_is_gone_when_the_test_is_cancelled(steps: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = []
    ready = asyncio.Event()
    execute = asyncio.create_subprocess_exec

    async def watched(*args: str, **options: object) -> asyncio.subprocess.Process:
        process = await execute(*args, **options)  # type: ignore[arg-type]
        pids.append(process.pid)
        return process

    async def use() -> None:
        async with child(PROGRAM, "parrot", word="hello"):
            ready.set()
            await asyncio.Event().wait()

    monkeypatch.setattr("asyncio.create_subprocess_exec", watched)
    task = asyncio.create_task(use())
    if steps is None:
        await soon(ready.wait())
    for _ in range(steps or 0):
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(map(state_of, pids))


async def test_it_dies_with_its_parent() -> None:
    program = f"""
import asyncio
from processes import child

async def main():
    async with child({PROGRAM!r}, "parrot", word="hello") as parrot:
        parrot.pause()
        print(parrot.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE, env=env
    )
    assert parent.stdout is not None
    pid = int(await soon(parent.stdout.readline()))
    assert state_of(pid)
    parent.kill()
    await parent.communicate()
    await until(lambda: state_of(pid) in ("", "Z"))


def test_a_child_was_never_started() -> None:
    with pytest.raises(AssertionError, match="was not started"):
        _ = Child(("true",)).pid
