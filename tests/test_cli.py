"""The real `exchange` command: what emits and what observes, every exit code, and what the help teaches."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from command import COMMAND, PATIENCE, Done, run, run_all, running, serving, worker

from exchange_grpc import Code, Exchange, Refused
from exchange_grpc.cli import main

ID = re.compile(r'"(cli-[0-9a-f]{8}\.\d+\.\d+)"\n')


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("--id", "hub", "--demo", "--grpc", "127.0.0.1:0") as (_, url, _):
        yield url


# ------------------------------------------------------------------------------------------- request and demo


def test_request_prints_the_answer_as_json(url: str) -> None:
    answers = run_all(
        url,
        ("request", "compute.sum", '{"a":5,"b":3}'),
        ("request", "compute.sum", '{"a":0.5,"b":-3}', "--timeout", "5"),
        ("request", "echo"),
        ("request", "echo", "--", "-5"),
        ("request", "echo", '{"größe": [1, null, "日本語"]}'),
        ("request", "echo", "18446744073709551615", "--to", "hub"),
    )
    assert [answer.out for answer in answers] == [
        "8\n", "-2.5\n", "null\n", "-5\n", '{"größe":[1,null,"日本語"]}\n', "18446744073709551615\n",
    ]  # fmt: skip
    assert all(answer.code == 0 and answer.err == "" for answer in answers)


def test_a_value_comes_from_stdin(url: str) -> None:
    assert run(url, "request", "echo", "-", stdin="[1,\n 2]\n").out == "[1,2]\n"
    wrong = run(url, "request", "echo", "-", stdin="")
    assert wrong.code == 2
    assert "stdin is no JSON" in wrong.err


def test_the_url_is_an_option_too(url: str) -> None:
    bare = url.removeprefix("grpc://")
    assert run("grpc://127.0.0.1:1", "request", "echo", "1", "--url", bare).out == "1\n"


def test_demo_items_reads_a_real_sqlite_file(url: str) -> None:
    whole, two, bad = run_all(
        url,
        ("request", "demo.items"),
        ("request", "demo.items", '{"table": "items", "limit": 2}'),
        ("request", "demo.items", '{"table": "users"}'),
    )
    rows = json.loads(whole.out)
    assert len(rows) > 3
    assert rows[0] == {"id": 1, "name": "lantern", "price": 24.5, "stock": 12}
    assert json.loads(two.out) == rows[:2]
    assert bad.code == 6
    assert bad.err.startswith("error: demo.items takes")


async def test_request_over_the_hub(url: str) -> None:
    async with worker(url, "other"):
        headers, data, failed = await asyncio.gather(
            asyncio.to_thread(run, url, "request", "work.headers", "--header", "k=v", "--header", "x=a=b"),
            asyncio.to_thread(subprocess.check_output, [COMMAND, "request", "work.bytes", "--url", url]),
            asyncio.to_thread(run, url, "request", "work.fail", "--to", "other"),
        )
    assert json.loads(headers.out) == {"k": "v", "x": "a=b"}
    assert data == b"\x00\xff\n"  # as they are
    assert failed == Done(1, "", "error: the handler of work.fail failed (at other)\n")


async def test_the_reason_of_a_late_handler_is_told(url: str) -> None:
    async with Exchange("tardy") as app:

        @app.handle("late.do")
        async def do(msg: Any) -> None:
            raise Refused("it is too late", code=Code.DEADLINE_EXCEEDED, reason="DEADLINE_EXCEEDED")

        await app.connect(url)
        done = await asyncio.to_thread(run, url, "request", "late.do")
    assert done == Done(5, "", "error: no answer from late.do in time: it is too late (at tardy)\n")


# ---------------------------------------------------------------------------------------------- request-many


def test_request_many_prints_each_reply(url: str) -> None:
    all_three, one, refused, late = run_all(
        url,
        ("request-many", "demo.count", '{"to": 3}'),
        ("request-many", "demo.count", '{"to": 1000, "seconds": 0.05}', "--max", "1"),
        ("request-many", "demo.count", '"x"'),
        ("request-many", "demo.wait", '{"seconds": 9}', "--timeout", "0.3"),
    )
    assert (all_three.code, all_three.err) == (0, "")
    assert [json.loads(line) for line in all_three.out.splitlines()] == [
        {"from": "hub", "value": 1}, {"from": "hub", "value": 2}, {"from": "hub", "value": 3},
    ]  # fmt: skip
    assert one == Done(0, '{"from":"hub","value":1}\n', "")
    reply = json.loads(refused.out)
    assert reply["from"] == "hub"
    assert (reply["error"]["reason"], reply["error"]["at"]) == ("REFUSED", "hub")
    assert reply["error"]["message"].startswith("demo.count takes")
    assert (refused.code, refused.err) == (1, "error: 1 of the replies is an error\n")
    assert late == Done(3, "", "error: replies are lost, or did not come in time, of hub\n")


async def test_request_many_asks_all(url: str) -> None:
    async with Exchange("one") as one, Exchange("two") as two, Exchange("three") as three:
        one.handle("all.ask", lambda msg: msg.headers["k"])
        two.handle("all.ask", lambda msg: b"\x00")

        @three.handle("all.ask")
        async def fail(msg: Any) -> None:
            raise ValueError("a secret")

        for app in (one, two, three):
            await app.connect(url)
        done, to_one = await asyncio.gather(
            asyncio.to_thread(run, url, "request-many", "all.ask", "--header", "k=v"),
            asyncio.to_thread(run, url, "request-many", "all.ask", "--header", "k=v", "--to", "one"),
        )
    replies = {line["from"]: line for line in map(json.loads, done.out.splitlines())}
    assert replies["one"] == {"from": "one", "value": "v"}
    assert replies["two"]["value"] == {"content_type": "application/octet-stream", "base64": "AA=="}
    assert replies["three"]["error"]["reason"] == "HANDLER_FAILED"
    assert len(replies) == 3
    assert done.code == 1
    assert to_one == Done(0, '{"from":"one","value":"v"}\n', "")


# -------------------------------------------------------------------------------------------------- exit codes


@pytest.mark.parametrize(
    ("code", "says", "command"),
    [
        (2, "VALUE is no JSON: .*; quote it from the shell", ("request", "echo", "{a: 1}")),
        (2, "--header takes KEY=VALUE, not 'k'", ("send", "echo", "1", "--header", "k")),
        (2, "'two words' is no name", ("request", "two words")),
        (2, "is no name", ("request", "half\udcff")),
        (2, "half a surrogate pair", ("request", "echo", "1", "--header", "k=\udcff")),
        (2, "cannot be said in JSON", ("request", "echo", "NaN")),
        (2, "deeper than 30", ("publish", "echo", "[" * 31 + "]" * 31)),
        (2, "is no exchange id", ("send", "echo", "--to", "a b")),
        (2, "is no pattern", ("observe", "a..b")),
        (2, "No such option", ("request", "echo", "--tmeout", "1")),
        (2, "Missing argument", ("send",)),
        (2, "Invalid value for '--timeout'", ("request", "echo", "--timeout", "0")),
        (2, "no transport takes 'http://x'", ("request", "echo", "--url", "http://x")),
        (2, "is no address: grpc://HOST:PORT", ("peers", "--url", "nonsense")),
        (3, "nobody answers at grpc://127.0.0.1:1: .*exchange serve", ("publish", "x", "--url", "127.0.0.1:1")),
        (3, "nobody answers at unix:/nowhere", ("observe", "--url", "unix:/nowhere")),
        (4, "nobody handles no.one within reach of hub", ("request", "no.one")),
        (4, "nobody handles no.one within reach of hub", ("send", "no.one")),
        (4, "there is no exchange nobody", ("request", "echo", "--to", "nobody")),
        (5, "no answer from demo.wait in time", ("request", "demo.wait", '{"seconds": 9}', "--timeout", "0.2")),
        (2, "is no name", ("handle", "two words", "--", "cat")),
        (2, "there is no command 'nosuch'", ("handle", "x", "--", "nosuch")),
        (2, "Invalid value for '--max'", ("request-many", "echo", "--max", "0")),
        (2, "VALUE is no JSON", ("state", "set", "goal", "{")),
        (2, "Missing argument", ("state", "get")),
        (2, "'tcsh' is not one of", ("completion", "tcsh")),
        (3, "nobody answers at grpc://127.0.0.1:1", ("handle", "x", "--url", "127.0.0.1:1", "--", "cat")),
        (3, "nobody answers at grpc://127.0.0.1:1", ("state", "watch", "--url", "127.0.0.1:1")),
        (2, "is no address: grpc://HOST:PORT", ("observe", "--url", "nonsense")),
        (4, "nobody handles no.one within reach of hub", ("request-many", "no.one")),
        (4, "there is no exchange nobody within reach of hub", ("request-many", "echo", "--to", "nobody")),
        (4, "there is no exchange nobody", ("state", "get", "total", "--of", "nobody")),
        (4, "there is no exchange nobody", ("stats", "--of", "nobody")),
        (6, "hub exports no state 'nope'", ("state", "get", "nope")),
        (6, "hub exports no state 'nope'", ("state", "watch", "nope")),
        (6, "hub accepts no state 'total'", ("state", "set", "total", "1")),
        (6, "goal is at revision \\d+, not 99", ("state", "set", "goal", "1", "--expect", "99")),
        (6, "hub exports no state 'nope'", ("why", "nope")),
        (6, "compute.sum takes two numbers.* \\(at hub\\)", ("request", "compute.sum", '"x"')),
        (6, "compute.sum takes two numbers", ("send", "compute.sum", "[]")),
        (4, "hub knows no message 'x'", ("trace", "x")),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_errors_have_one_line_and_a_code(url: str, code: int, says: str, command: tuple[str, ...]) -> None:
    done = run(url, *command)
    assert done.code == code
    assert re.search(says, done.err)
    assert done.out == "" or command[0] == "send"


async def test_ctrl_c_cancels_the_handler(url: str) -> None:
    async with Exchange("patient") as app:
        began, cancelled = asyncio.Event(), asyncio.Event()

        @app.handle("work.hang")
        async def hang(msg: Any) -> None:
            began.set()
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        await app.connect(url)
        command = (COMMAND, "request", "work.hang", "--url", url)
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        await asyncio.wait_for(began.wait(), PATIENCE)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(cancelled.wait(), PATIENCE)
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, out) == (130, b"")


# ------------------------------------------------------------------------------------------ send and publish


async def test_send_and_publish_print_the_id_and_deliver(url: str) -> None:
    async with Exchange("reader") as app:
        heard: asyncio.Queue[tuple[str, str, Any, dict[str, str]]] = asyncio.Queue()

        async def hear(msg: Any) -> None:
            heard.put_nowait((msg.id, msg.name, msg.value, dict(msg.headers)))

        app.on("mail.sent", hear)
        app.subscribe("news.**", hear)
        await app.connect(url)
        command = ("send", "mail.sent", '{"n": 1}', "--to", "reader", "--header", "k=v")
        sent = await asyncio.to_thread(run, url, *command)
        published = await asyncio.to_thread(run, url, "publish", "news.today", "[1]", "--header", "k=w")
        assert (sent.code, published.code) == (0, 0)
        ids = [ID.fullmatch(done.out) for done in (sent, published)]
        assert all(ids)
        assert [await asyncio.wait_for(heard.get(), PATIENCE) for _ in ids] == [
            (json.loads(sent.out), "mail.sent", {"n": 1}, {"k": "v"}),
            (json.loads(published.out), "news.today", [1], {"k": "w"}),
        ]


def test_an_unhandled_send_has_an_id_to_trace(url: str) -> None:
    sent = run(url, "send", "no.one.again")
    assert sent.code == 4
    traced = run(url, "trace", sent.out.strip())  # as it was printed
    assert "unhandled: nobody handles no.one.again" in traced.out


# --------------------------------------------------------------------------------------------------- observe


async def first_line(app: Exchange, process: subprocess.Popen[str]) -> dict[str, Any]:
    """What is printed first, while `app` publishes until it is seen: an observer does not say when it begins."""
    assert process.stdout is not None
    reading = asyncio.create_task(asyncio.to_thread(process.stdout.readline))
    while not reading.done():
        await app.publish("seen.now", {"n": 1})
        await asyncio.wait({reading}, timeout=0.1)
    line: dict[str, Any] = json.loads(await reading)
    return line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_observe_streams_until_it_is_told_to_stop(url: str, number: signal.Signals) -> None:
    async with Exchange("speaker") as app:
        await app.connect(url)
        with running(url, "observe", "seen.*") as process:
            line = await first_line(app, process)
            process.send_signal(number)
            _, err = await asyncio.to_thread(process.communicate, None, PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert line.pop("id").startswith("speaker.")
    assert line.pop("root").startswith("speaker.")
    assert line.pop("timestamp") == pytest.approx(time.time(), abs=PATIENCE)
    assert line == {
        "seen": "received", "name": "seen.now", "from": "speaker", "to": "", "kind": "publish",
        "value": {"n": 1}, "trace": ["speaker", "hub"], "causes": [],
    }  # fmt: skip


async def test_observe_shows_what_was_caused_by_what(url: str) -> None:
    async with Exchange("asker") as app:
        await app.connect(url)
        with running(url, "observe") as process:
            await first_line(app, process)
            await app.request("compute.sum", {"a": 5, "b": 3})
            lines: list[dict[str, Any]] = []
            assert process.stdout is not None
            while not lines or lines[-1]["kind"] != "reply":
                lines.append(json.loads(await asyncio.to_thread(process.stdout.readline)))
    asked = next(line for line in lines if line["kind"] == "request")
    caused = [line for line in lines if line["causes"] == [asked["id"]]]
    assert {line["name"] for line in caused if line["seen"] == "set"} == {"total", "count", "mean"}
    assert caused[-1]["value"] == 8
    assert caused[-1]["reply_to"] == asked["id"]


async def test_observe_ends_when_nobody_reads_any_more(url: str) -> None:
    async with Exchange("piper") as app:
        await app.connect(url)
        with running(url, "observe", "seen.*") as process:
            await first_line(app, process)
            assert process.stdout is not None
            process.stdout.close()
            while process.poll() is None:
                await app.publish("seen.now")
                await asyncio.sleep(0.05)
            assert process.stderr is not None
            assert (process.returncode, process.stderr.read()) == (0, "")


async def test_observe_counts_what_it_was_too_slow_for(url: str) -> None:
    async with Exchange("fast") as app:
        await app.connect(url)
        with running(url, "observe", "seen.*") as process:
            await first_line(app, process)
            process.send_signal(signal.SIGSTOP)
            for _ in range(3_000):  # far more than the exchange and the connection keep for one observer
                await app.publish("seen.much", "x" * 10_000)
            await app.request("exchange.peers", to="hub")  # it has taken them all
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            assert process.stderr is not None
            said = asyncio.create_task(asyncio.to_thread(process.stderr.readline))
            while not said.done():
                await app.publish("seen.now")
                await asyncio.to_thread(process.stdout.readline)
    assert re.fullmatch(r"missed \d+ messages\n", await said)


async def test_observe_says_when_the_exchange_stops() -> None:
    with serving("--id", "brief", "--grpc", "127.0.0.1:0") as (server, url, ready):
        assert "no handlers of its own" in ready
        async with Exchange("leaver") as app:
            await app.connect(url)
            with running(url, "observe") as process:
                await first_line(app, process)
                server.terminate()
                _, err = await asyncio.to_thread(process.communicate, None, PATIENCE)
        assert (process.returncode, err) == (3, f"error: the exchange at {url} has stopped\n")


async def test_observe_ends_after_as_many_lines_as_are_wanted(url: str) -> None:
    async with Exchange("brief") as app:
        await app.connect(url)
        with running(url, "observe", "seen.*", "--max", "1") as process:
            await first_line(app, process)
            out, err = await asyncio.to_thread(process.communicate, None, PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


async def test_observing_is_no_event_and_no_link(url: str) -> None:
    """Who looks at the events sees others come and go, but not those who look."""
    with running(url, "observe", "exchange.event.peer.*") as process:
        assert process.stdout is not None
        reading = asyncio.create_task(asyncio.to_thread(process.stdout.readline))
        while not reading.done():  # an observer does not say when it begins
            async with Exchange("comes-and-goes") as app:
                await app.connect(url)
            await asyncio.wait({reading}, timeout=0.1)
        lines = [json.loads(await reading)]
        async with Exchange("speaker") as app:
            await app.connect(url)
            with running(url, "observe", "seen.*") as other:
                await first_line(app, other)
        while lines[-1]["value"] != {"id": "speaker", "reason": lines[-1]["value"].get("reason")}:
            lines.append(json.loads(await asyncio.to_thread(process.stdout.readline)))
    assert {line["value"]["id"] for line in lines} == {"comes-and-goes", "speaker"}
    assert {line["name"] for line in lines} == {"exchange.event.peer.connected", "exchange.event.peer.lost"}


# --------------------------------------------------------------------------------------------------- the help


def every_command(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


COMMANDS = dict(every_command(main))
GOES_ON = {("serve",), ("handle",), ("observe",), ("state", "watch")}  # until they are told to end


def examples(path: tuple[str, ...]) -> list[str]:
    """The commands in the help of a command, as a shell takes them."""
    shown = CliRunner().invoke(main, [*path, "--help"], terminal_width=200)
    assert shown.exit_code == 0
    usage, _, _ = shown.output.partition("\nOptions:")
    return [line.strip() for line in usage.splitlines()[1:] if re.match(r"  (exchange|echo) ", line)]


def test_the_help_lists_all_commands_and_exit_codes() -> None:
    shown = run("", "--help")
    assert shown.code == 0
    assert re.findall(r"^    (\d+) ", shown.out, re.M) == ["0", "1", "2", "3", "4", "5", "6", "130"]
    assert all(re.search(rf"^  {path[0]} ", shown.out, re.M) for path in COMMANDS)
    assert not re.search(r"\.\.\.$", shown.out.partition("\n")[2], re.M)  # no sentence is cut
    assert CliRunner().invoke(main, ["--version"]).output.startswith("exchange, version ")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_examples_in_the_help_work(path: tuple[str, ...], tmp_path: Path) -> None:
    found = examples(path)
    assert len(found) >= 2
    assert all(" ".join(("exchange", *path)) in example for example in found)
    home = tmp_path / ".config" / "fish" / "completions"
    home.mkdir(parents=True)
    wanted = [example for example in found if path not in GOES_ON or "--max" in example]
    if path == ("state",):
        wanted = [example for example in wanted if "watch" not in example]
    if not wanted:
        return
    with serving("--demo", "--grpc", "127.0.0.1:0") as (_, url, _):
        for example in wanted:
            if shutil.which("jq") is None:
                example = example.partition(" | jq")[0]
            ended = subprocess.run(
                ["bash", "-c", f"set -eo pipefail; {example.replace('grpc://127.0.0.1:50051', url)}"],
                capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path,
                env={
                    **os.environ,
                    "EXCHANGE_URL": url,
                    "HOME": str(tmp_path),
                    "PATH": f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}",
                },
            )  # fmt: skip
            assert (ended.returncode, ended.stderr) == (0, ""), example
