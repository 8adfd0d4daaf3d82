"""The real `exchange serve`: its settings, its log, its links, and how it stops."""

import asyncio
import json
import logging
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from command import COMMAND, PATIENCE, run, run_all, running, serving

from exchange.v1 import service_pb2
from exchange_grpc import Exchange
from exchange_grpc.cli import logs

ANYWHERE = ("--grpc", "127.0.0.1:0")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def logged(err: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in err.splitlines()]


def settings(err: str) -> dict[str, str]:
    """What it says that it runs with: for each setting the value, and where that comes from."""
    texts = [line["text"] for line in logged(err)]
    return dict(found.groups() for text in texts if (found := re.fullmatch(r"(\w+): (.*)", text)))  # type: ignore[misc]


def test_a_taken_port_and_bad_addresses() -> None:
    with serving(*ANYWHERE) as (_, url, _):
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


def test_serve_websockets_alone() -> None:
    with serving("--demo", "--http", "127.0.0.1:0", "--id", "hub") as (server, url, ready):
        assert re.fullmatch(r"hub is ready at ws://127\.0\.0\.1:\d+/v1/peer \(WebSocket\): compute\.sum, .+\n", ready)
        answer, taken, observed, examined = run_all(
            url,
            ("request", "compute.sum", '{"a": 5, "b": 3}'),
            ("serve", "--http", url.removeprefix("ws://").removesuffix("/v1/peer")),
            ("observe",),
            ("doctor",),
        )
        server.terminate()
        assert server.communicate(timeout=PATIENCE)[0] == ""
        assert server.returncode == 0
    assert answer.out == "8\n"
    assert taken.code == 1
    assert "the address is taken, or not one of this machine (another --http? port 0 takes a free one)" in taken.err
    assert (observed.code, "this takes the gRPC address of an exchange" in observed.err) == (2, True)
    assert (examined.code, [line[:3] for line in examined.out.splitlines()]) == (0, ["ok "] * 3)


def test_serve_grpc_and_websockets_together(tmp_path: Path) -> None:
    port = free_port()
    with serving(*ANYWHERE, "--demo", EXCHANGE_HTTP=f"http://127.0.0.1:{port}") as (_, url, ready):
        web = f"ws://127.0.0.1:{port}/v1/peer"
        assert f" is ready at {url} (reflection and health on) and {web} (WebSocket): " in ready
        one, other = run_all(url, ("describe",), ("describe", "--url", f"ws://127.0.0.1:{port}"))
        assert json.loads(one.out)["exchange"] == json.loads(other.out)["exchange"]


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:99999", "127.0.0.1:0/x", "unix:/x", "grpc://127.0.0.1:0"])
def test_a_wrong_address_for_websockets(address: str) -> None:
    done = run("", "serve", "--http", address)
    assert done.code == 1
    assert "ws://HOST:PORT" in done.err


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
        ask.message.name, ask.message.json = "demo.wait", b'{"seconds": 4}'
        command = [COMMAND, "request", "demo.wait", '{"seconds": 4}', "--url", url]
        asking = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        answer = door.future(ask)
        while json.loads(run(url, "stats").out)["handlers"]["running"] < 3:  # both, and what asks this
            pass
        server.send_signal(number)
        assert asking.communicate(timeout=PATIENCE)[0] == "4.0\n"
        assert answer.result(timeout=PATIENCE).message.json == b"4.0"
        channel.close()
        out, err = server.communicate(timeout=PATIENCE)
        assert (server.returncode, out) == (0, "")
    assert "Traceback" not in err
    file = re.search(r"demo.items reads (\S+\.sqlite3)", err)
    assert file is not None
    assert not Path(file[1]).parent.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_open_streams_do_not_keep_it_from_stopping(number: signal.Signals) -> None:
    with (
        serving("--demo", *ANYWHERE) as (server, url, _),
        running(url, "observe") as observe,
        running(url, "state", "watch", "--max", "99") as watch,
    ):
        async with Exchange("linked") as app:
            await app.connect(url)
            assert watch.stdout is not None
            assert observe.stdout is not None
            await asyncio.to_thread(watch.stdout.readline)
            reading = asyncio.create_task(asyncio.to_thread(observe.stdout.readline))
            while not reading.done():
                await app.publish("seen.now")
                await asyncio.wait({reading}, timeout=0.1)
            server.send_signal(number)
            out, err = await asyncio.to_thread(server.communicate, None, 15)
        for process in (observe, watch):
            said = (await asyncio.to_thread(process.communicate, None, PATIENCE))[1]
            assert process.returncode == 3
            assert re.fullmatch(r"error: .+\n", said)
    assert (server.returncode, out) == (0, "")
    assert {line["level"] for line in logged(err)} == {"INFO"}


# -------------------------------------------------------------------------------------------------- settings

TOML = """
id = "from-file"
grpc = "127.0.0.1:0"
origins = ["https://app.example.com"]
relay = false
balance = "sticky:tenant"
log_level = "debug"
exports = ["total", "target"]
accepts = ["target"]

[limits]
silence_seconds = 20

[state]
total = 17_171_717
target = { amount = 100 }
"""


def test_settings_come_from_file_variable_and_flag_in_rising_order(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(TOML)
    env = {"EXCHANGE_ID": "from-env", "EXCHANGE_BALANCE": "random", "EXCHANGE_DEMO": "1"}
    env |= {"EXCHANGE_WHEN_FULL": "drop_oldest", "EXCHANGE_HTTP": "127.0.0.1:0"}
    with serving("--config", str(file), "--balance", "least_pending", "--no-demo", **env) as (server, url, ready):
        got = run(url, "state", "get", "total", "target")
        server.terminate()
        _, err = server.communicate(timeout=PATIENCE)
    assert ready.startswith("from-env is ready at grpc://127.0.0.1:")
    assert [json.loads(line)["value"] for line in got.out.splitlines()] == [17171717, {"amount": 100}]
    assert settings(err) == {
        "id": "from-env (EXCHANGE_ID)",
        "grpc": f"127.0.0.1:0 ({file})",
        "http": "127.0.0.1:0 (EXCHANGE_HTTP)",
        "origins": f"https://app.example.com ({file})",
        "demo": "false (--no-demo)",
        "relay": f"false ({file})",
        "balance": "least_pending (--balance)",
        "when_full": "drop_oldest (EXCHANGE_WHEN_FULL)",
        "connect": "none (default)",
        "log_level": f"debug ({file})",
        "log_format": "auto (default)",
        "exports": f"total, target ({file})",
        "accepts": f"target ({file})",
        "limits": f"silence_seconds = 20 ({file})",
        "state": f"total, target ({file})",
    }
    assert "17171717" not in err  # values of the state are nobody's business


def test_the_state_of_the_demo_and_of_the_file_are_there_together(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('grpc = "127.0.0.1:0"\ndemo = true\n[state]\ngoal = 5\nmine = 1\n')
    with serving(EXCHANGE_CONFIG=str(file)) as (_, url, _):
        assert run(url, "state", "get", "goal", "reached", "--value").out == "5\nfalse\n"
        assert run(url, "state", "get", "mine").code == 6  # it is not exported


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("prot = 1", "FILE: prot: there is no such setting"),
        ('conect = ["x"]', "FILE: conect: there is no such setting; did you mean connect?"),
        ("id = 7", "FILE: id: it is a text"),
        ('id = "two words"', "FILE: id: 'two words' is no exchange id"),
        ('demo = "yes"', "FILE: demo: it is true or false"),
        ('connect = "grpc://x:1"', "FILE: connect: it is a list of texts"),
        ('connect = ["nonsense"]', "FILE: connect: 'grpc://nonsense' is no address"),
        ('origins = "https://x.example"', "FILE: origins: it is a list of texts"),
        ('http = "127.0.0.1:0"\norigins = ["*"]', "FILE: origins: '\\*' is no origin as browsers send it"),
        ('origins = ["https://x.example"]', "FILE: origins: it is for pages that connect to"),
        ('balance = "fair"', "FILE: balance: balance is round_robin"),
        ('log_level = "loud"', "FILE: log_level: it is one of debug, info, warning, error"),
        ('exports = ["x"]', "FILE: exports: .*x"),
        ('demo = true\naccepts = ["total", "mean"]', "FILE: accepts: .*mean"),
        ('when_full = "shout"', "FILE: when_full: when_full is one of wait, drop_oldest"),
        ("[limits]\nsilence = 3", "FILE: limits: it is a table of limits, which are handshake_seconds"),
        ("[limits]\nsilence_seconds = 3", "FILE: limits: silence_seconds is at least two heartbeats"),
        ("state = 1", "FILE: state: it is a table"),
        ("[state]\nwhen = 1979-05-27", "FILE: state: it is a table .* JSON"),
        ("[state]\nmuch = inf", "FILE: state: it is a table .* JSON"),
        ('id = "x', "FILE: .*line 1"),
        (None, "FILE: No such file"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(toml: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    if toml is not None:
        file.write_text(f"{toml}\n")
    done = run("", "serve", "--config", str(file), *ANYWHERE)
    assert done.code == 2
    assert re.search(f"^error: {says.replace('FILE', re.escape(str(file)))}", done.err, re.M), done.err


def test_a_wrong_variable_or_flag_is_named() -> None:
    assert "error: EXCHANGE_ID: 'a b' is no exchange id" in run("", "serve", *ANYWHERE, EXCHANGE_ID="a b").err
    assert "error: --balance: balance is round_robin" in run("", "serve", *ANYWHERE, "--balance", "fair").err
    wrong = run("", "serve", "--http", "127.0.0.1:0", "--origin", "https://a.example", "--origin", "b.example")
    assert "error: --origin: 'b.example' is no origin" in wrong.err
    wrong = run("", "serve", *ANYWHERE, EXCHANGE_LOG_LEVEL="loud")
    assert wrong.code == 2
    assert "Invalid value for '--log-level'" in wrong.err


# ----------------------------------------------------------------------------------------------------- links


def test_it_links_to_others_at_the_start_and_again_when_a_link_is_gone() -> None:
    with (
        serving("--id", "one", "--demo", *ANYWHERE) as (first, url, _),
        serving("--id", "two", "--connect", url, *ANYWHERE) as (second, other, _),
    ):
        assert run(other, "request", "compute.sum", '{"a":1,"b":2}').out == "3\n"
        first.kill()
        first.communicate(timeout=PATIENCE)
        with serving("--id", "one", "--demo", "--grpc", url.removeprefix("grpc://")):
            while run(other, "request", "compute.sum", '{"a":1,"b":2}').out != "3\n":
                pass
        second.terminate()
        texts = [line["text"] for line in logged(second.communicate(timeout=PATIENCE)[1])]
    assert f"linked to one at {url}" in texts
    assert any(text.startswith("the link to one is lost: ") for text in texts)
    assert any(text.startswith("the link to one is there again after ") for text in texts)


def test_a_peer_that_is_not_there_is_said_to_be_not_there() -> None:
    done = run("", "serve", *ANYWHERE, EXCHANGE_CONNECT="grpc://127.0.0.1:1")
    assert (done.code, done.out) == (3, "")
    assert "error: EXCHANGE_CONNECT: nobody answers at grpc://127.0.0.1:1" in done.err


# ------------------------------------------------------------------------------------------------------- log


async def test_the_log_is_lines_of_json_without_payloads() -> None:
    with serving("--id", "hub", *ANYWHERE) as (server, url, _):
        async with Exchange("app") as app:
            await app.connect(url)
            done = await asyncio.to_thread(run, url, "send", "no.one", '"a secret"', "--header", "k=hidden")
            assert done.code == 4
        server.terminate()
        _, err = server.communicate(timeout=PATIENCE)
    for line in logged(err):
        assert line.keys() == {"time", "level", "logger", "text"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", line["time"])
        assert line["level"] in ("INFO", "WARNING")
        assert line["logger"].startswith("exchange_grpc")
    assert logged(err)[-1]["text"] == "stopping"
    assert "secret" not in err
    assert "hidden" not in err


def test_the_log_can_be_text_and_can_be_quieter() -> None:
    with serving("--log-format", "text", *ANYWHERE) as (server, _, _):
        server.terminate()
        _, err = server.communicate(timeout=PATIENCE)
    assert re.search(r"^\S+ INFO exchange_grpc: stopping$", err, re.M)
    with serving("--log-level", "error", *ANYWHERE) as (server, _, _):
        server.terminate()
        assert server.communicate(timeout=PATIENCE)[1] == ""


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_exception_is_logged_with_its_type_and_traceback_from_error_upwards(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.getLogger("exchange_grpc").level
    logs.set_up("debug", form)
    try:
        raise ValueError("broken\u2028here")
    except ValueError as error:
        logging.getLogger("exchange_grpc.x").error("it failed: %s", 7, exc_info=error)
        logging.getLogger("exchange_grpc.x").warning("it creaked", exc_info=error)
        logging.getLogger("somebody.else").info("not of interest")
    finally:
        logging.basicConfig(handlers=[], force=True)
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("exchange_grpc").setLevel(before)
    err = capsys.readouterr().err
    if form == "json":
        failed, creaked = logged(err)
        assert (failed["text"], failed["exception"]["type"]) == ("it failed: 7", "ValueError")
        assert "raise ValueError" in failed["exception"]["traceback"]
        assert (creaked["text"], "exception" in creaked) == ("it creaked", False)
    else:
        assert re.match(r"\S+ ERROR exchange_grpc.x: it failed: 7\nTraceback ", err)
        assert re.fullmatch(r"\S+ WARNING exchange_grpc.x: it creaked", err.splitlines()[-1])
