"""The real `exchange` command: what looks at an exchange, its state and its traces, and what checks and measures it."""

import asyncio
import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from command import PATIENCE, Done, on_a_terminal, run, run_all, running, serving, worker

from exchange_grpc import Exchange, ExchangeError
from exchange_grpc.cli import reason, tree


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving("--id", "hub", "--demo", "--grpc", "127.0.0.1:0") as (_, url, _):
        yield url


def lines_of(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


# ---------------------------------------------------------------------- describe, peers, routes, handlers, stats


async def test_what_an_exchange_says_about_itself_and_others(url: str) -> None:
    async with worker(url, "looked-at") as app:
        app.subscribe("news.**", lambda msg: None)
        app.observe("work.**", lambda msg: None)
        app.on("mail", lambda msg: None)
        await app.request("echo", to="hub")  # what it has said until now is known there
        peers, routes, route, handlers, describe, stats = await asyncio.to_thread(
            run_all,
            url,
            ("peers",),
            ("routes",),
            ("routes", "work.do"),
            ("handlers", "--of", "looked-at"),
            ("describe", "--of", "looked-at"),
            ("stats",),
        )
    for done in (peers, routes, route, handlers, describe, stats):
        assert (done.code, done.err) == (0, "")
    found = next(line for line in lines_of(peers.out) if line["id"] == "looked-at")
    names = ["mail", "work.bytes", "work.do", "work.fail", "work.headers", "work.noted"]
    assert (found["relay"], found["handles"], found["subscribes"], found["pending"]) == (False, names, ["news.**"], 0)
    assert found["agent"].startswith("python/")
    assert {"kind": "name", "target": "echo", "via": "", "hops": 0} in lines_of(routes.out)
    assert lines_of(route.out) == [{"kind": "name", "target": "work.do", "via": "looked-at", "hops": 1}]
    kinds = {(line["kind"], line.get("name") or line.get("pattern")) for line in lines_of(handlers.out)}
    assert {("handler", "work.do"), ("listener", "mail"), ("subscriber", "news.**"), ("observer", "work.**")} <= kinds
    [described] = lines_of(describe.out)
    assert (described["version"], described["exchange"], described["peers"]) == (1, "looked-at", ["hub"])
    assert described["interest"]["handles"] == names
    [counted] = lines_of(stats.out)
    assert counted["exchange"] == "hub"
    assert counted["outcomes"]["handled"] >= 1


async def test_on_a_terminal_there_are_tables(url: str) -> None:
    async with worker(url, "table-worker") as app:
        app.subscribe("news.**", lambda msg: None)
        await app.request("echo", to="hub")
        commands = (
            ("peers",),
            ("routes", "echo"),
            ("handlers", "--of", "table-worker"),
            ("stats",),
            ("describe",),
            ("state", "get", "goal"),
        )
        with ThreadPoolExecutor(4) as pool:
            showing = [pool.submit(on_a_terminal, url, *command) for command in commands]
            shown = [await asyncio.wrap_future(each) for each in showing]
    coloured, plain = shown, [re.sub(r"\x1b\[\d*m", "", each) for each in shown]
    assert all("\x1b[1m" in each for each in coloured)
    peers, routes, handlers, stats, describe, state = plain
    assert re.search(r"^ID +AGENT +RELAYS +PENDING +HANDLES +SUBSCRIBES +EXPORTS$", peers, re.M)
    assert re.search(r"^table-worker +python/\S+ +no +0 +work.bytes .* news\.\*\* +-$", peers, re.M)
    assert re.search(r"^KIND +TARGET +VIA +HOPS\nname +echo +- +0$", routes, re.M)
    assert re.search(r"^HANDLER OF +FUNCTION +RUNNING +WAITING +CALLS +FAILED +SECONDS$", handlers, re.M)
    assert re.search(r"^SUBSCRIBER TO +FUNCTION\nnews\.\*\* ", handlers, re.M)
    assert re.search(r"^outcomes\.handled +\d+$", stats, re.M)
    assert re.search(r"^accepts +goal$", describe, re.M)
    assert re.search(r"^NAME +VALUE +REVISION +CAUSED BY\ngoal +100 +0 +-$", state, re.M)


def test_no_color_takes_the_colours_away() -> None:
    with serving("--id", "alone", "--grpc", "127.0.0.1:0") as (_, url, _):
        assert on_a_terminal(url, "peers") == "nobody else is linked to alone\n"
        assert on_a_terminal(url, "handlers") == "nothing runs in alone\n"
        assert "\x1b" not in on_a_terminal(url, "routes", NO_COLOR="1")
        assert "\x1b" in on_a_terminal(url, "routes")


# ----------------------------------------------------------------------------------------------------- state


async def test_state_is_read_set_and_watched() -> None:
    with (
        serving("--id", "keeper", "--demo", "--grpc", "127.0.0.1:0") as (server, url, _),
        running(url, "state", "watch", "total", "goal") as watch,
    ):
        assert watch.stdout is not None
        snapshot = [json.loads(await asyncio.to_thread(watch.stdout.readline)) for _ in range(2)]
        added = await asyncio.to_thread(run, url, "request", "compute.sum", '{"a": 5, "b": 3}')
        assert added.out == "8\n"
        change = json.loads(await asyncio.to_thread(watch.stdout.readline))
        got, first, both = await asyncio.to_thread(
            run_all,
            url,
            ("state", "get", "total", "mean", "--of", "keeper"),
            ("state", "set", "goal", "20", "--expect", "0"),
            ("state", "get", "total", "count", "--value"),
        )
        server.terminate()
        _, err = await asyncio.to_thread(watch.communicate, None, PATIENCE)
    assert [(line["name"], line["value"], line["revision"], line["snapshot"]) for line in snapshot] == [
        ("goal", 100, 0, True), ("total", 0, 0, True),
    ]  # fmt: skip
    assert (change["name"], change["value"], change["revision"], change["snapshot"]) == ("total", 8, 1, False)
    total, mean = lines_of(got.out)
    assert total.keys() == {"exchange", "name", "value", "revision", "epoch", "cause", "transaction"}
    assert (total["exchange"], total["value"], mean["value"]) == ("keeper", 8, 8.0)
    assert total["cause"].startswith("cli-")
    assert total["transaction"] == mean["transaction"]
    assert lines_of(first.out)[0]["revision"] == 1
    assert both.out == "8\n1\n"
    assert (watch.returncode, err[:6]) == (3, "error:")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_watch_ends_when_it_is_told_to(url: str, number: signal.Signals) -> None:
    with running(url, "state", "watch") as watch:
        assert watch.stdout is not None
        assert [json.loads(watch.stdout.readline())["name"] for _ in range(5)] == [
            "count", "goal", "mean", "reached", "total",
        ]  # fmt: skip
        watch.send_signal(number)
        assert watch.communicate(timeout=PATIENCE) == ("", "")
        assert watch.returncode == 0


# ------------------------------------------------------------------------------------------- trace and why


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
    assert answer["missing"] == []


async def test_why_says_what_led_to_a_value() -> None:
    with serving("--id", "hub", "--demo", "--grpc", "127.0.0.1:0") as (_, url, _):
        async with worker(url, "reason") as app, Exchange("asker") as asker:
            await asker.connect(url)
            asked: list[str] = []

            async def note(msg: Any) -> None:
                asked.append(msg.id)

            app.observe("work.do", note)
            await asker.request("work.do", to="reason")
            mean, raw, goal, message = await asyncio.to_thread(
                run_all, url, ("why", "mean"), ("why", "mean", "--json"), ("why", "goal"), ("why", asked[0])
            )
    for done in (mean, raw, goal, message):
        assert (done.code, done.err) == (0, "")
    expected = rf"""mean is 3\.0, and was null: .*

mean     is 3\.0, at hub \(revision 1\)
change   null → 3\.0 \(from count, total\), in transaction 1
from     count 0 → 1
from     total 0 → 3
when     \d{{4}}-\d\d-\d\d .*
handler  compute_sum
message  request compute\.sum  reason → hub  reason\.\S+
root     request work\.do  asker → reason  {re.escape(asked[0])}
"""
    assert re.fullmatch(expected, mean.out), mean.out
    answer = json.loads(raw.out)
    assert (answer["version"], answer["key"], answer["exchange"]) == (1, "mean", "hub")
    assert answer["transaction"]["changes"][0]["name"] == "mean"
    assert goal.out.splitlines()[2:] == ["goal  is 100, at hub (revision 0)"]
    sentence, empty, *drawn = message.out.splitlines()
    assert sentence == f"work.do from asker was handled by {app_label(drawn)} at reason"
    assert empty == ""
    assert drawn[0].startswith("5 messages from ")
    assert drawn[1].startswith("request work.do  asker → reason")


def app_label(drawn: list[str]) -> str:
    return next(found[1] for line in drawn if (found := re.search(r"reason \S+ ms handled by (\S+do) in", line)))


# Values that are wrong in every way that a stranger may think of.
SPAN = {
    "name": "x\x1b[2J\n", "kind": "KIND_SEND", "from": "a", "to": "", "reply_to": "", "causes": [],
    "hops": [{"exchange": "a", "at_us": 2**62}], "events": [],
}  # fmt: skip


def drawn(spans: list[dict[str, Any]], **fields: Any) -> list[str]:
    return list(tree.draw(tree.read({"root": "a.1.0", "spans": spans, "cut": True, "new": 1, **fields})))


def test_a_tree_survives_what_strangers_claim() -> None:
    circle = [
        {**SPAN, "id": "a.1.1", "causes": ["a.1.2"]},
        {**SPAN, "id": "a.1.2", "causes": ["a.1.1"], "events": [{"exchange": "a", "outcome": 99}]},
        {**SPAN, "id": "a.1.3", "causes": ["a.1.3"], "kind": 77},
    ]
    lines = drawn(circle)
    assert sum("x [2J" in line for line in lines) == 3
    assert not any(c in line.replace("\x1b[1m", "") for line in lines for c in ("\x1b[2J", "\n"))
    chain = [{**SPAN, "id": f"a.1.{n}", "causes": [f"a.1.{n - 1}"]} for n in range(1, 5_000)]
    assert sum("deeper" in line for line in drawn(chain)) == 1


def test_a_tree_names_who_could_not_be_asked_but_for_commands_that_are_over() -> None:
    missing = [{"exchange": "cli-12", "reason": "gone"}, {"exchange": "till", "reason": "no answer\n"}]
    assert (
        drawn([{**SPAN, "id": "a.1.1"}], missing=missing)[-1]
        == "(till may know more, and could not be asked: no answer )"
    )


@pytest.mark.parametrize(
    "wrong",
    [None, "x", 7, {"spans": 1}, {"spans": [1]}, {"root": {}}, [], {"spans": [{**SPAN, "causes": [1]}]},
     {"spans": [{**SPAN, "hops": [{"at_us": "1"}]}]}, {"spans": [{**SPAN, "events": ["x"]}]}],
)  # fmt: skip
def test_an_answer_that_is_no_trace_is_said_to_be_none(wrong: Any) -> None:
    with pytest.raises(ExchangeError, match="the answer is no trace"):
        tree.read(wrong)


def test_a_reason_survives_what_strangers_claim() -> None:
    with pytest.raises(ExchangeError, match="does not say why"):
        list(reason.tell({"version": 1}))
    circle = [{**SPAN, "id": "a.1.1", "causes": ["a.1.2"]}, {**SPAN, "id": "a.1.2", "causes": ["a.1.1"]}]
    told = {
        "answer": "so\x1b[2J",
        "key": "k",
        "revision": 1,
        "value": "x" * 500,
        "trace": {"root": "a.1.0", "spans": circle},
    }
    transaction = {"changes": [{"new": {"a": 1}, "computed": True, "because": 7}, "x"], "cause": "a.1.1", "at_us": "?"}
    lines = list(reason.tell({**told, "transaction": transaction}))
    assert sum("request" in line or "send" in line for line in lines) == 2
    assert max(map(len, lines)) < 200
    assert "k\x1b[0m  is " in list(reason.tell({**told, "transaction": 7}))[-1]
    unsayable = {"answer": "so", "key": "k", "exchange": "a", "revision": 2}
    assert list(reason.tell(unsayable))[-1].endswith("is what JSON cannot say, at a (revision 2)")


# ------------------------------------------------------------------------------ doctor, bench and completion


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


def test_bench_measures_with_a_handler_of_its_own() -> None:
    with serving("--id", "bare", "--grpc", "127.0.0.1:0") as (_, url, _):
        done = run(url, "bench", "--seconds", "0.6", "--concurrency", "5", "--size", "10")
        shown = on_a_terminal(url, "bench", "--seconds", "0.3")
    with serving("--id", "deaf", "--no-relay", "--grpc", "127.0.0.1:0") as (_, url, _):
        assert run(url, "bench") == Done(
            4, "", "error: deaf passes nothing on to the handler behind it: it does not relay\n"
        )
    result = json.loads(done.out)
    assert (result["exchange"], result["size"]) == ("bare", 10)
    assert 0 < result["round_trips"]["p50_us"] <= result["round_trips"]["p99_us"]
    assert result["requests"]["per_second"] > 0
    assert result["messages"]["count"] == result["messages"]["arrived"] > 0
    assert re.search(r"^100 requests at once  \d+ answers a second$", shown, re.M)


def test_completion_completes() -> None:
    asked = {"COMP_WORDS": "exchange req", "COMP_CWORD": "1", "_EXCHANGE_COMPLETE": "bash_complete"}
    bash, completed = run("", "completion", "bash"), run("", **asked)
    assert "_EXCHANGE_COMPLETE=bash_complete" in bash.out
    assert completed.out == "plain,request\nplain,request-many\n"
    for shell in ("zsh", "fish"):
        assert f"_EXCHANGE_COMPLETE={shell}_complete" in run("", "completion", shell).out
