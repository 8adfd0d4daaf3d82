"""The real `exchange` command, as people run it: processes, a real port, real signals."""

import asyncio
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from click.testing import CliRunner

from exchange.v1 import service_pb2
from exchange_grpc import Exchange, ExchangeError, tree
from exchange_grpc.cli import main

COMMAND = str(Path(sys.executable).with_name("exchange"))
PATIENCE = 30.0
ID = re.compile(r'"(cli-[0-9a-f]{8}\.\d+\.\d+)"\n')


class Done(NamedTuple):
    code: int
    out: str
    err: str


@contextmanager
def serving(*args: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`exchange serve` with `args`: the process, its URL and its ready line. Stopped afterwards."""
    process = subprocess.Popen(
        [COMMAND, "serve", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        ready = process.stdout.readline()
        url = re.search(r"(?:grpc://|unix:)\S+", ready)
        assert url is not None, process.communicate(timeout=PATIENCE)[1]
        yield process, url[0], ready
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=PATIENCE)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("--id", "hub", "--demo", "--grpc", "127.0.0.1:0") as (_, url, _):
        yield url


def run(url: str, *args: str, stdin: str | None = None, **env: str) -> Done:
    """`exchange ARGS` with EXCHANGE_URL, to its end. An error is one line, and there is never a traceback."""
    ended = subprocess.run(
        [COMMAND, *args], input=stdin or "", capture_output=True, text=True, timeout=PATIENCE,
        env={**os.environ, "EXCHANGE_URL": url, **env},
    )  # fmt: skip
    assert "Traceback" not in ended.stderr
    if ended.returncode and "Usage:" not in ended.stderr and ended.stderr:
        assert re.fullmatch(r"error: .+\n", ended.stderr), ended.stderr
    return Done(ended.returncode, ended.stdout, ended.stderr)


def run_all(url: str, *commands: tuple[str, ...]) -> list[Done]:
    """Several at once: most of the time of each is Python starting."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda command: run(url, *command), commands))


@asynccontextmanager
async def worker(url: str, id: str = "worker") -> AsyncIterator[Exchange]:
    """An exchange of this process behind the hub."""
    async with Exchange(id) as app:

        @app.handle("work.do")
        async def do(msg: Any) -> Any:
            await app.send("work.noted", msg.value)
            return await app.request("compute.sum", {"a": 1, "b": 2})

        @app.on("work.noted")
        async def noted(msg: Any) -> None:
            pass

        @app.handle("work.fail")
        async def broken(msg: Any) -> None:
            raise ValueError("a secret")

        @app.handle("work.bytes")
        async def data(msg: Any) -> bytes:
            return b"\x00\xff\n"

        @app.handle("work.headers")
        async def headers(msg: Any) -> dict[str, str]:
            return dict(msg.headers)

        await app.connect(url)
        yield app


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


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
        (3, "no transport takes 'http://x'", ("request", "echo", "--url", "http://x")),
        (3, "is no address: grpc://HOST:PORT", ("peers", "--url", "nonsense")),
        (3, "nobody answers at grpc://127.0.0.1:1: .*exchange serve", ("publish", "x", "--url", "127.0.0.1:1")),
        (3, "nobody answers at unix:/nowhere", ("observe", "--url", "unix:/nowhere")),
        (4, "nobody handles no.one within reach of hub", ("request", "no.one")),
        (4, "nobody handles no.one within reach of hub", ("send", "no.one")),
        (4, "there is no exchange nobody", ("request", "echo", "--to", "nobody")),
        (5, "no answer from demo.wait in time", ("request", "demo.wait", '{"seconds": 9}', "--timeout", "0.2")),
        (6, "compute.sum takes two numbers.* \\(at hub\\)", ("request", "compute.sum", '"x"')),
        (6, "compute.sum takes two numbers", ("send", "compute.sum", "[]")),
        (6, "hub knows no message 'x'", ("trace", "x")),
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
    traced = run(url, "trace", json.loads(sent.out))
    assert "unhandled: nobody handles no.one.again" in traced.out


# --------------------------------------------------------------------------------------------------- observe


@contextmanager
def observing(url: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [COMMAND, "observe", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "EXCHANGE_URL": url},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


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
        with observing(url, "seen.*") as process:
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
        with observing(url) as process:
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
        with observing(url, "seen.*") as process:
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
        with observing(url, "seen.*") as process:
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
            with observing(url) as process:
                await first_line(app, process)
                server.terminate()
                _, err = await asyncio.to_thread(process.communicate, None, PATIENCE)
        assert (process.returncode, err) == (3, "error: brief has stopped\n")


# ------------------------------------------------------------------------------------------- peers and trace


def _peers(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(url, "peers").out.splitlines()]


async def test_peers_are_json_lines_or_a_table(url: str) -> None:
    async with worker(url, "table-worker") as app:
        app.subscribe("news.**", lambda msg: None)
        lines = await asyncio.to_thread(_peers, url)
        table = await asyncio.to_thread(_on_a_terminal, "peers", "--url", url)
    found = next(line for line in lines if line["id"] == "table-worker")
    handles = ["work.bytes", "work.do", "work.fail", "work.headers", "work.noted"]
    assert found == {"id": "table-worker", "relay": False, "handles": handles, "subscribes": ["news.**"], "pending": 0}
    assert re.search(r"^ID +RELAYS +PENDING +HANDLES +SUBSCRIBES\r?$", table, re.M)
    assert re.search(rf"^table-worker +no +0 +{' '.join(handles)} +news\.\*\*\r?$", table, re.M)


def _on_a_terminal(*args: str) -> str:
    main, other = pty.openpty()
    try:
        subprocess.run([COMMAND, *args], stdout=other, check=True, timeout=PATIENCE)
        return os.read(main, 65_536).decode()
    finally:
        os.close(main)
        os.close(other)


async def test_trace_draws_the_tree_over_hub_and_worker(url: str) -> None:
    async with worker(url, "traced") as app, Exchange("origin") as origin:
        await origin.connect(url)
        asked: list[str] = []

        async def note(msg: Any) -> None:
            asked.append(msg.id)

        app.observe("work.do", note)
        assert await origin.request("work.do", to="traced") == 3
        drawn, raw = await asyncio.gather(
            asyncio.to_thread(run, url, "trace", asked[0]),
            asyncio.to_thread(run, url, "trace", asked[0], "--json"),
        )
    assert (drawn.code, drawn.err) == (0, "")
    ms = r"[+-]\d+\.\d ms"
    expected = rf"""5 messages from \d{{4}}-\d\d-\d\d .*
request work\.do  origin → traced  origin\..*
│  way: origin \+0\.0 ms → hub {ms} → traced {ms}
(│  .*\n)*?│  hub {ms} forwarded to traced
(│  .*\n)*?│  traced {ms} handled by .*worker\.<locals>\.do in \d+\.\d ms
├─ send work\.noted  traced → traced  .*
(│  .*\n)*?├─ request compute\.sum  traced → hub  .*
│  │  way: traced {ms} → hub {ms}
(│  │  .*\n)*?│  │  hub {ms} handled by compute_sum in \d+\.\d ms
│  └─ reply compute\.sum  hub → traced .*
(│  .*\n)*?└─ reply work\.do  traced → origin .*
   +way: traced {ms} → hub {ms}.*
"""
    assert re.match(expected, drawn.out), drawn.out
    answer = json.loads(raw.out)
    assert answer["root"] == asked[0]
    assert {span["name"] for span in answer["spans"]} == {"work.do", "work.noted", "compute.sum"}
    request = next(span for span in answer["spans"] if span["id"] == asked[0])
    assert [hop["exchange"] for hop in request["hops"]] == ["origin", "hub", "traced"]


def test_a_tree_survives_what_strangers_claim() -> None:
    span = {"name": "x\x1b[2J\n", "kind": "KIND_SEND", "from": "a", "hops": [{"exchange": "a", "at_us": 2**62}]}
    circle = [
        {**span, "id": "a.1.1", "causes": ["a.1.2"]},
        {**span, "id": "a.1.2", "causes": ["a.1.1"], "events": [{"exchange": "a", "outcome": 99}]},
        {**span, "id": "a.1.3", "causes": ["a.1.3"], "kind": 77},
    ]
    lines = list(tree.draw(tree.read({"root": "a.1.0", "spans": circle, "cut": True, "new": 1}, "a")))
    assert sum("x [2J" in line for line in lines) == 3
    assert not any(c in line.replace("\x1b[1m", "") for line in lines for c in ("\x1b[2J", "\n"))
    chain = [{**span, "id": f"a.1.{n}", "causes": [f"a.1.{n - 1}"]} for n in range(1, 5_000)]
    assert sum("deeper" in line for line in tree.draw(tree.read({"root": "a.1.0", "spans": chain}, "a"))) == 1


@pytest.mark.parametrize("wrong", [None, "x", 7, {"spans": 1}, {"spans": [1]}, {"root": {}}, []])
def test_an_answer_that_is_no_trace_is_said_to_be_none(wrong: Any) -> None:
    with pytest.raises(ExchangeError, match="the answer of a is no trace"):
        tree.read(wrong, "a")


# ---------------------------------------------------------------------------------------------------- doctor


def test_doctor_finds_all_well(url: str) -> None:
    done = run(url, "doctor")
    assert (done.code, done.err) == (0, "")
    library, protobuf, link, health, reflection = done.out.splitlines()
    assert re.fullmatch(r"ok   python 3\S+, exchange-grpc \S+, grpcio \S+, orjson \S+", library)
    assert re.fullmatch(r"ok   protobuf \S+ with the backend upb", protobuf)
    assert re.fullmatch(rf"ok   linked to hub at {url} \(python/\S+, as here\), round trip \d+\.\d\d ms", link)
    assert health == "ok   health: SERVING"
    assert reflection == "ok   reflection lists exchange.v1.ExchangeService"


def test_doctor_finds_what_is_wrong(url: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))  # one that is no exchange
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        slow, nobody, stranger = (
            run(url, "doctor", PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python"),
            run("grpc://127.0.0.1:1", "doctor"),
            run(f"127.0.0.1:{port}", "doctor"),
        )
    finally:
        server.stop(None)
    assert slow.code == 1
    assert re.search(r"^BAD  protobuf \S+ has the backend 'python'.* unset PROTOCOL_BUFFERS_", slow.out, re.M)
    assert "ok   health: SERVING" in slow.out  # and the other checks went on
    for done in (nobody, stranger):
        assert done.code == 3
        assert re.fullmatch("BAD  .*is `exchange serve` running there.*", done.out.splitlines()[-1])


# ----------------------------------------------------------------------------------------------------- serve


def test_a_taken_port_and_bad_addresses(url: str) -> None:
    taken, bad, unwritable, id = run_all(
        url,
        ("serve", "--grpc", url),
        ("serve", "--grpc", "nonsense"),
        ("serve", "--grpc", "unix:/nowhere/x.sock"),
        ("serve", "--id", "two words"),
    )
    assert (taken.code, bad.code, unwritable.code, id.code) == (1, 1, 1, 2)
    assert "taken" in taken.err
    assert "port 0 takes a free one" in taken.err
    assert "is no address: grpc://HOST:PORT" in bad.err
    assert "cannot listen at unix:/nowhere/x.sock" in unwritable.err
    assert "'two words' is no exchange id" in id.err


def test_serve_at_a_unix_path_and_at_a_named_port(tmp_path: Path) -> None:
    port = free_port()
    with serving("--grpc", f"unix:{tmp_path}/x.sock") as (_, url, ready), serving("--grpc", f"localhost:{port}") as two:
        assert re.match(r"exchange-[0-9a-f]{8} is ready at unix:/", ready)
        assert two[1] == f"grpc://localhost:{port}"
        path = url.removeprefix("unix:")
        done = run_all(url, ("doctor",), ("doctor", "--url", f"unix://{path}"), ("doctor", "--url", two[1]))
        assert [d.code for d in done] == [0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_graceful(number: signal.Signals) -> None:
    with serving("--demo", "--grpc", "127.0.0.1:0") as (server, url, _):
        channel = grpc.insecure_channel(url.removeprefix("grpc://"))
        door = channel.unary_unary(
            "/exchange.v1.ExchangeService/Request",
            request_serializer=service_pb2.RequestRequest.SerializeToString,
            response_deserializer=service_pb2.RequestResponse.FromString,
        )
        ask = service_pb2.RequestRequest()
        ask.message.name, ask.message.json = "demo.wait", b'{"seconds": 2}'
        command = [COMMAND, "request", "demo.wait", '{"seconds": 2}', "--url", url]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while not _peers(url):  # the link of `asking`
            pass
        answer = door.future(ask)
        time.sleep(0.3)
        server.send_signal(number)
        assert asking.communicate(timeout=PATIENCE)[0] == "2.0\n"
        assert answer.result(timeout=PATIENCE).message.json == b"2.0"
        channel.close()
        out, err = server.communicate(timeout=PATIENCE)
        assert (server.returncode, out) == (0, "")
    assert "Traceback" not in err
    file = re.search(r"demo.items reads (\S+\.sqlite3)", err)
    assert file is not None
    assert not Path(file[1]).parent.exists()


def test_help_teaches_by_an_example() -> None:
    commands = ("serve", "send", "publish", "request", "observe", "peers", "trace", "doctor")
    all_of_it = run("", "--help")
    assert all_of_it.code == 0
    assert "Exit codes:" in all_of_it.out
    assert all(command in all_of_it.out for command in commands)
    assert CliRunner().invoke(main, ["--version"]).output.startswith("exchange, version ")
    for command in commands:
        assert f"\n  exchange {command}" in CliRunner().invoke(main, [command, "--help"]).output
