"""The real `exchange handle`: a shell command as a handler, and that nothing is left of it."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from command import PATIENCE, run, running, serving
from world import until

from exchange_grpc import Code, DeadlineExceeded, Exchange, HandlerFailed, Refused, RequestError
from exchange_grpc.cli import child
from exchange_grpc.cli.handle import answer_of


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("--id", "hub", "--grpc", "127.0.0.1:0") as (_, url, _):
        yield url


@asynccontextmanager
async def handling(url: str, *args: str) -> AsyncIterator[tuple[Exchange, subprocess.Popen[str]]]:
    """An exchange that may ask, and `exchange handle ARGS`, which is ready."""
    with running(url, "handle", *args) as process:
        await said(process, "is ready")
        async with Exchange() as app:
            await app.connect(url)
            yield app, process


async def said(process: subprocess.Popen[str], text: str) -> str:
    """What it says on stderr, up to the line with `text`."""
    assert process.stderr is not None
    lines = ""
    while text not in lines:
        line = await asyncio.wait_for(asyncio.to_thread(process.stderr.readline), PATIENCE)
        assert line, lines
        lines += line
    return lines


def children(process: subprocess.Popen[str]) -> list[str]:
    """The processes that it has started and that are not gone, zombies included."""
    return [pid for path in Path(f"/proc/{process.pid}/task").glob("*/children") for pid in path.read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# A command that tells its pid and that of a child of its own, in a file, and stays.
STAY = 'sleep 300 & echo $$ $! > "$0.new"; mv "$0.new" "$0"; wait'


async def pids(file: Path) -> list[int]:
    await until(file.exists, PATIENCE)
    return [int(pid) for pid in file.read_text().split()]  # noqa: ASYNC240  # a few bytes


def entries(directory: Path) -> int:
    return len(list(directory.iterdir()))


# --------------------------------------------------------------------------------------------------- answers


async def test_it_answers_with_what_the_command_prints(url: str) -> None:
    async with handling(url, "text.upper", "--id", "shell", "--", "tr", "a-zäö", "A-ZÄÖ") as (app, process):
        assert await app.request("text.upper", "abc") == "ABC"
        assert await app.request("text.upper", {"a": [1, None]}, to="shell") == '{"A":[1,NULL]}'
        assert await app.request("text.upper", b"x\n") == "X"
        answers = await asyncio.gather(*(app.request("text.upper", n) for n in range(50)))
        assert answers == list(range(50))
        assert children(process) == []
        process.send_signal(signal.SIGTERM)
        out, err = await asyncio.to_thread(process.communicate, None, PATIENCE)
    assert (process.returncode, out) == (0, "")
    assert json.loads(err)["text"] == "stopping"


@pytest.mark.parametrize(
    ("out", "answer"),
    [
        (b"", None), (b"\n", ""), (b"7", 7), (b'{"a": [1]}\n', {"a": [1]}), (b"two\nlines\n", "two\nlines"),
        (b"NaN\n", "NaN"), (b"\xff\x00", b"\xff\x00"), (b"\n\n", "\n"), (b"[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
def test_what_is_printed_is_json_or_text_or_bytes(out: bytes, answer: Any) -> None:
    assert answer_of(out) == answer


async def test_the_command_knows_the_message_and_runs_in_no_shell(url: str) -> None:
    code = 'import os, sys; print([os.environ[f"EXCHANGE_{key}"] for key in sys.argv[1:]])'
    asked = ("NAME", "MESSAGE_ID", "FROM", "$HOME *")
    async with handling(url, "who.asks", "--", "python3", "-c", code, *asked[:3]) as (app, _):
        name, id, from_ = (await app.request("who.asks")).strip("[]").replace("'", "").split(", ")
        assert (name, from_) == ("who.asks", app.id)
        assert id.startswith(f"{app.id}.")
    async with handling(url, "say", "--", "echo", *asked) as (app, _):
        assert await app.request("say") == "NAME MESSAGE_ID FROM $HOME *"


async def test_what_goes_wrong_is_told_without_its_stderr(url: str) -> None:
    async with handling(url, "fail", "--id", "failing", "--", "sh", "-c", "echo a secret >&2; exit 3") as (
        app,
        process,
    ):
        with pytest.raises(HandlerFailed, match=r"^sh exited with 3$") as raised:
            await app.request("fail")
        assert (raised.value.reason, raised.value.at) == ("COMMAND_FAILED", "failing")
        lines = await said(process, "exited with 3")
    assert "a secret\n" in lines
    assert json.loads(lines.splitlines()[-1])["level"] == "WARNING"
    async with handling(url, "crash", "--", "sh", "-c", "kill -SEGV $$") as (app, _):
        with pytest.raises(HandlerFailed, match=r"^sh was ended by signal 11$"):
            await app.request("crash")


async def test_a_command_that_is_gone_is_an_error(url: str, tmp_path: Path) -> None:
    file = tmp_path / "command"
    file.write_text("#!/bin/sh\necho 1\n")
    file.chmod(0o755)
    async with handling(url, "gone", "--", str(file)) as (app, _):
        assert await app.request("gone") == 1
        file.unlink()
        with pytest.raises(HandlerFailed, match="cannot be run"):
            await app.request("gone")


async def test_a_command_need_not_read_and_may_print_much(url: str) -> None:
    async with handling(url, "much", "--", "python3", "-c", "print('x' * 4_000_000)") as (app, _):
        assert await app.request("much", "x" * 1_000_000) == "x" * 4_000_000
    async with handling(url, "too.much", "--", "cat", "/dev/zero") as (app, process):
        with pytest.raises(Refused, match=r"^cat printed more than 4194304 bytes$") as raised:
            await app.request("too.much")
        assert raised.value.code is Code.RESOURCE_EXHAUSTED
        assert children(process) == []


# ---------------------------------------------------------------------------------------------------- ending


async def test_a_command_that_takes_too_long_is_killed_with_its_group(url: str, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with handling(url, "slow", "--timeout", "0.5", "--", "sh", "-c", STAY, str(file)) as (app, process):
        with pytest.raises(DeadlineExceeded, match=r"^sh took longer than 0.5 s$"):
            await app.request("slow")
        await until(lambda: not children(process))
    assert not any(map(alive, await pids(file)))


@pytest.mark.parametrize("steps", range(12))
async def test_what_is_cancelled_while_it_starts_leaves_nothing(steps: int) -> None:
    nap = f"{297 + steps / 100}"  # so that it is known by its arguments
    running = asyncio.create_task(child.run(["sh", "-c", f"sleep {nap} & wait"], b"", env=dict(os.environ), most=10))
    for _ in range(steps):
        await asyncio.sleep(0)
    if steps > 6:
        await until(lambda: naps(nap), PATIENCE)
    running.cancel()
    await asyncio.wait({running})
    await until(lambda: not naps(nap))


def naps(nap: str) -> list[Path]:
    """The processes that have this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if nap.encode() in path.read_bytes().split(b"\0"):
                found.append(path)
    return found


async def test_a_request_that_is_withdrawn_kills_the_command(url: str, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with handling(url, "long", "--", "sh", "-c", STAY, str(file)) as (app, process):
        request = asyncio.create_task(app.request("long"))
        started = await pids(file)
        assert all(map(alive, started))
        request.cancel()
        await until(lambda: not any(map(alive, started)))
        await until(lambda: not children(process))


async def test_what_a_command_leaves_behind_ends_with_it(url: str) -> None:
    async with handling(url, "leave", "--", "sh", "-c", "sleep 300 & echo $!") as (app, _):
        left = await app.request("leave")
        await until(lambda: not alive(left))
    async with handling(url, "late", "--", "bash", "-c", "(sleep 0.2; echo late) & echo soon") as (app, _):
        assert await app.request("late") == "soon\nlate"


async def test_so_many_run_at_once_and_no_more(url: str, tmp_path: Path) -> None:
    script = 'touch "$0/$$"; while [ ! -e "$0/go" ]; do sleep 0.02; done; echo $$'
    async with handling(url, "turns", "--concurrency", "2", "--", "sh", "-c", script, str(tmp_path)) as (app, _):
        requests = [asyncio.create_task(app.request("turns")) for _ in range(5)]
        await until(lambda: entries(tmp_path) == 2, PATIENCE)
        assert (await app.request("exchange.stats", to=next(iter(app.peers)).id))["open_requests"] >= 5
        assert entries(tmp_path) == 2
        requests.pop().cancel()  # one that waits
        (tmp_path / "go").touch()
        assert len(set(await asyncio.gather(*requests))) == 4
        assert entries(tmp_path) == 5


async def test_descriptors_are_given_back(url: str) -> None:
    async with handling(url, "count", "--", "true") as (app, process):

        async def open_ones() -> int:
            return len(os.listdir(f"/proc/{process.pid}/fd"))

        await asyncio.gather(*(app.request("count") for _ in range(20)))
        before = await open_ones()
        await asyncio.gather(*(app.request("count") for _ in range(100)))
        assert await open_ones() <= before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_lets_what_runs_end_when_it_is_stopped(url: str, number: signal.Signals, tmp_path: Path) -> None:
    script = 'touch "$0/on"; while [ ! -e "$0/go" ]; do sleep 0.02; done; echo done'
    async with handling(url, "last", "--", "sh", "-c", script, str(tmp_path)) as (app, process):
        request = asyncio.create_task(app.request("last"))
        await until((tmp_path / "on").exists, PATIENCE)
        process.send_signal(number)
        await said(process, "stopping")
        (tmp_path / "go").touch()
        assert await request == "done"
        await asyncio.to_thread(process.wait, PATIENCE)
        assert process.returncode == 0


async def test_a_second_signal_ends_it_at_once_and_leaves_nothing(url: str, tmp_path: Path) -> None:
    file = tmp_path / "pids"
    async with handling(url, "stuck", "--", "sh", "-c", STAY, str(file)) as (app, process):
        request = asyncio.create_task(app.request("stuck"))
        started = await pids(file)
        process.send_signal(signal.SIGTERM)
        await said(process, "stopping")
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, PATIENCE)
        await until(lambda: not any(map(alive, started)))
        assert process.returncode == 0
        with pytest.raises(RequestError):
            await request


async def test_it_is_there_again_when_its_exchange_is() -> None:
    with (
        serving("--id", "brief", "--grpc", "127.0.0.1:0") as (server, url, _),
        running(url, "handle", "text.upper", "--", "tr", "a-z", "A-Z") as process,
    ):
        await said(process, "is ready")
        server.kill()
        server.wait()
        with serving("--id", "brief", "--grpc", url.removeprefix("grpc://")):
            await until(lambda: run(url, "request", "text.upper", '"a"').code == 0)
            assert run(url, "request", "text.upper", '"again"').out == '"AGAIN"\n'
