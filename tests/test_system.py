"""What every exchange answers: who is here, traces and causes from several exchanges, and the state they share."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, nullcontext
from typing import Any

import grpc
import pytest
from world import World, soon, until

from exchange.v1 import service_pb2, service_pb2_grpc
from exchange_grpc import (
    Code,
    Exchange,
    InvalidMessage,
    LimitExceeded,
    Message,
    Refused,
    RequestError,
    StateError,
    StateValue,
    Unavailable,
    Unhandled,
    UnknownName,
)
from exchange_grpc.version import AGENT

# ------------------------------------------------------------------------------------------------ who is here


async def test_an_exchange_describes_itself(local: World) -> None:
    hub = local.exchange("hub", state={"n": 1, "m": 2}, exports=["n"], accepts=["m"], handlers={"job": lambda: None})
    guest = local.exchange("guest")
    hub.subscribe("news.**", lambda: None)
    await local.link(guest, hub)
    assert await guest.request("exchange.describe", to="hub") == {
        "version": 1,
        "exchange": "hub",
        "epoch": hub.epoch,
        "agent": AGENT,
        "protocol": 1,
        "relay": True,
        "interest": {"revision": 3, "handles": ["job"], "subscribes": ["news.**"], "exports": ["n"]},
        "accepts": ["m"],
        "peers": ["guest"],
    }
    assert (await guest.request("exchange.describe"))["exchange"] == "guest"
    (peer,) = (await guest.request("exchange.peers"))["peers"]
    assert (peer["id"], peer["exports"], peer["handles"]) == ("hub", ["n"], ["job"])


async def test_routes_are_told(local: World) -> None:
    a, b, c = (local.exchange(id, relay=True) for id in "abc")
    await local.chain(a, b, c)
    a.handle("near", lambda: 1)
    c.handle("far", lambda: 1)
    await a.request("far")

    async def told(**question: Any) -> list[tuple[Any, ...]]:
        answer = await b.request("exchange.routes", question or None, to="a")
        assert (answer["version"], answer["exchange"], answer["cut"]) == (1, "a", False)
        return [tuple(route.values()) for route in answer["routes"]]

    assert await told(target="far") == [("name", "far", "b", 2)]
    assert await told(target="near") == [("name", "near", "", 0)]
    assert await told(target="nothing") == []
    assert (await told())[:2] == [("exchange", "a", "", 0), ("exchange", "b", "b", 1)]
    assert ("name", "far", "b", 2) in await told()
    with pytest.raises(Refused) as caught:
        await told(target=5)
    assert caught.value.reason == "INVALID_MESSAGE"


async def test_handlers_are_told_with_what_they_did(local: World) -> None:
    app = local.exchange("app")

    async def job(msg: Message) -> Any:
        return 1 / msg.value

    app.handle("job", job)
    app.on("job", lambda: None)
    app.subscribe("news.*", lambda: None)
    app.observe("**", lambda: None)
    await app.request("job", 2)
    with pytest.raises(RequestError):
        await app.request("job", 0)
    told = await app.request("exchange.handlers")
    (handler,) = told["handlers"]
    assert handler.pop("seconds") > 0
    assert handler.pop("function").endswith("job")
    assert handler == {"name": "job", "running": 0, "waiting": 0, "calls": 2, "failed": 1}
    assert [listener["name"] for listener in told["listeners"]] == ["job"]
    assert [subscriber["pattern"] for subscriber in told["subscribers"]] == ["news.*"]
    assert [(observer["pattern"], observer["missed"]) for observer in told["observers"]] == [("**", 0)]


async def test_stats_count(local: World) -> None:
    app, peer = local.exchange("app", state={"n": 0}), local.exchange("peer")
    app.handle("job", lambda: None)
    await local.link(peer, app)
    before = await app.request("exchange.stats")
    await peer.request("job")
    with pytest.raises(Unhandled):
        await app.request("nobody")
    app.state.n = 1
    after = await app.request("exchange.stats")
    changed = {key: after["outcomes"][key] - before["outcomes"][key] for key in after["outcomes"]}
    assert {key: count for key, count in changed.items() if count} == {"handled": 1, "forwarded": 1, "unhandled": 1}
    assert after["messages"]["received"] == before["messages"]["received"] + 1
    assert after["messages"]["emitted"] > before["messages"]["emitted"]
    assert (after["links"], after["watches"], after["ledger"]["transactions"]) == (1, 0, 1)
    assert after["process"]["descriptors"] > 0
    assert after["process"]["resident_bytes"] > 2**20
    assert after["uptime_us"] > before["uptime_us"] > 0


# ----------------------------------------------------------------------------------------------- many replies


async def count(msg: Message) -> AsyncIterator[int]:
    for number in range(msg.value):
        yield number


async def test_all_who_handle_it_reply_as_often_as_they_like(world: World) -> None:
    a, b, c, d = (world.exchange(id, relay=True) for id in "abcd")
    await world.chain(a, b, c, d)
    await world.link(d, a)  # a circle
    leaf = world.exchange("leaf")
    await world.link(leaf, b)
    await world.link(leaf, c)  # twice next to somebody
    for exchange in (a, c, leaf):
        exchange.handle("count", count)
    d.handle("count", lambda msg: msg.value)
    await until(lambda: all("count" in peer.handles for peer in b.peers if peer.id == "leaf"))
    for asking in (a, b, d):
        replies = asking.request_many("count", 3)
        got = [(reply.from_, reply.value) async for reply in replies]
        assert sorted(got) == sorted([(id, n) for id in ("a", "c", "leaf") for n in range(3)] + [("d", 3)])
        assert [n for id, n in got if id == "c"] == [0, 1, 2]  # in the order of their sender
        assert replies.lost == ()


async def test_a_reply_by_sig_is_one_of_many(local: World) -> None:
    server, client = local.exchange("server"), local.exchange("client")
    await local.link(client, server)

    @server.handle("items")
    async def items(msg: Message, sig: Any) -> Any:
        sig("item", 1)
        sig("item", 2)
        return 3 if msg.value else None

    assert [(r.name, r.value, r.last) async for r in client.request_many("items", True)] == [
        ("item", 1, False),
        ("item", 2, False),
        ("items", 3, True),
    ]
    assert [r.value async for r in client.request_many("items", False)] == [1, 2]
    assert await client.request("items", True) == 1  # the first answer wins


async def test_to_one_and_nobody_else(local: World) -> None:
    one, two, client = local.exchange("one"), local.exchange("two"), local.exchange("client", relay=True)
    await local.link(one, client)
    await local.link(two, client)
    for exchange in (one, two):
        exchange.handle("count", count)
    assert [r.from_ async for r in client.request_many("count", 2, to="two")] == ["two", "two"]
    with pytest.raises(Unhandled):
        async for _ in client.request_many("count", 2, to="three"):
            pass
    peer = next(peer for peer in client.peers if peer.id == "one")
    assert [r.from_ async for r in peer.request_many("count", 2)] == ["one", "one"]


async def test_nobody_handles_it(local: World) -> None:
    a, b = local.exchange("a", relay=True), local.exchange("b", relay=True)
    await local.link(a, b)
    with pytest.raises(Unhandled, match="nobody handles count within reach of a"):
        async for _ in a.request_many("count", 2):
            pass
    with pytest.raises(InvalidMessage):
        async for _ in a.request_many("no name"):
            pass
    with pytest.raises(ValueError, match="max"):
        a.request_many("count", max=0)
    assert not a._router.open_requests
    assert not b._router.open_requests


async def test_what_follows_on_replies_is_caused_by_them(local: World) -> None:
    app, heard = local.exchange("app", handlers={"count": count}), asyncio.Queue[Message]()

    @app.handle("ask")
    async def ask() -> None:
        replies = [reply.id async for reply in app.request_many("count", 2)]
        await app.send("told", replies)

    app.handle("told", heard.put)
    id = await app.send("ask")
    msg = await soon(heard.get())
    assert msg.causes == (id, *msg.value)
    assert msg.root == id


async def test_who_fails_does_not_hide_the_others(local: World) -> None:
    hub = local.exchange("hub")
    good, bad = local.exchange("good", handlers={"count": count}), local.exchange("bad")

    async def fail(msg: Message) -> AsyncIterator[int]:
        yield 1
        raise Refused("enough", reason="ENOUGH")

    bad.handle("count", fail)
    await local.link(good, hub)
    await local.link(bad, hub)
    got = [(r.from_, r.error.reason if r.error else r.value) async for r in hub.request_many("count", 1)]
    assert set(got) == {("bad", 1), ("bad", "ENOUGH"), ("good", 0)}
    assert len(got) == 3


async def test_max_timeout_and_leaving_cancel_the_handlers(local: World) -> None:
    cancelled: asyncio.Queue[str] = asyncio.Queue()
    hub, client = local.exchange("hub", relay=True), local.exchange("client")
    server = local.exchange("server")

    @server.handle("ticks")
    async def ticks(msg: Message) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
            await asyncio.Event().wait()
        finally:
            cancelled.put_nowait(msg.id)

    await local.link(server, hub)
    await local.link(client, hub)
    assert [r.value async for r in client.request_many("ticks", max=2)] == [1, 2]
    await soon(cancelled.get())
    replies = client.request_many("ticks", timeout=0.05)
    assert [r.value async for r in replies] == [1, 2]
    assert replies.lost == ("hub",)
    await soon(cancelled.get())
    async with client.request_many("ticks") as replies:
        async for reply in replies:
            assert reply.value == 1
            break
    await soon(cancelled.get())
    waiting = asyncio.create_task(anext(aiter(client.request_many("never", to="server", timeout=5)), None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: not any(e._router.open_requests for e in (hub, client, server)))


async def test_a_branch_that_is_lost_is_named(local: World) -> None:
    hub, client = local.exchange("hub", relay=True), local.exchange("client")
    steady, shaky = local.exchange("steady"), local.exchange("shaky")
    started = asyncio.Event()

    async def forever(msg: Message) -> AsyncIterator[str]:
        yield "so far"
        started.set()
        await asyncio.Event().wait()

    steady.handle("work", lambda: "done")
    shaky.handle("work", forever)
    await local.link(steady, hub)
    await local.link(shaky, hub)
    await local.link(client, hub)
    replies = client.request_many("work")
    got = {(await anext(replies)).value, (await anext(replies)).value}
    assert got == {"so far", "done"}
    await soon(started.wait())
    await soon(next(peer for peer in hub.peers if peer.id == "shaky").close())
    assert [r async for r in replies] == []
    assert replies.lost == ("shaky",)


async def test_replies_that_nobody_takes_are_bounded(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.replies.REPLIES", 10)
    server, client = local.exchange("server", handlers={"count": count}), local.exchange("client")
    await local.link(client, server)
    replies = client.request_many("count", 1_000)
    first = await anext(replies)
    assert first.value == 0
    await until(lambda: replies.over)
    assert [(await anext(replies)).value for _ in range(10)] == list(range(1, 11))
    with pytest.raises(LimitExceeded, match="more than 10 replies"):
        await anext(replies)


async def test_a_handler_here_waits_for_who_takes_its_replies(local: World) -> None:
    app = local.exchange("app", handlers={"count": count})
    replies = app.request_many("count", 10_000)
    await anext(replies)
    for _ in range(200):
        await asyncio.sleep(0)
    assert len(replies._waiting) <= 65
    assert len([r async for r in replies]) == 9_999


# --------------------------------------------------------------------------------------------------- traces


async def five(world: World) -> tuple[list[Exchange], str]:
    """A chain of five, and a message that went from the first over the third to the fifth, and back."""
    exchanges = [world.exchange(id, relay=True) for id in ("a", "b", "c", "d", "e")]
    await world.chain(*exchanges)
    a, _, c, _, e = exchanges

    @c.handle("order")
    async def order(msg: Message, sig: Any) -> None:
        sig("order.done", await c.request("stock", msg.value))

    e.handle("stock", lambda msg: msg.value - 1)
    done: asyncio.Queue[Message] = asyncio.Queue()
    a.on("order.done", done.put)
    id = await a.send("order", 7)
    assert (await soon(done.get())).value == 6
    return exchanges, id


async def test_the_tree_is_the_same_whoever_is_asked(world: World) -> None:
    exchanges, id = await five(world)
    traces = [await soon(exchange.trace(id)) for exchange in exchanges]
    assert [span["name"] for span in traces[0]["spans"]] == ["order", "stock", "stock", "order.done"]
    assert [event["exchange"] for event in traces[0]["spans"][1]["events"]] == ["c", "d", "e"]
    assert [hop["exchange"] for hop in traces[0]["spans"][1]["hops"]] == ["c", "d", "e"]
    for exchange, trace in zip(exchanges, traces, strict=True):
        assert trace.pop("exchange") == exchange.id
        assert trace.pop("missing") == []
        assert trace == traces[0]
    # By any of its messages, and by a message to somebody far away.
    for span in traces[0]["spans"]:
        assert (await exchanges[1].trace(span["id"]))["spans"] == traces[0]["spans"]
    assert (await exchanges[4].request("exchange.trace", {"id": id}, to="b"))["spans"] == traces[0]["spans"]
    # And what one knows alone is less.
    here = await exchanges[0].request("exchange.trace", {"id": id, "here": True})
    assert [len(span["events"]) for span in here["spans"]] == [1, 1]


async def test_what_is_gone_is_said(world: World) -> None:
    exchanges, id = await five(world)
    whole = await exchanges[0].trace(id)
    await exchanges[4].close()
    rest = await soon(exchanges[1].trace(id))
    assert [entry["exchange"] for entry in rest["missing"]] == ["e"]
    assert "there is no exchange e" in rest["missing"][0]["reason"]
    without = [{**span, "events": [x for x in span["events"] if x["exchange"] != "e"]} for span in whole["spans"]]
    got = [{key: value for key, value in span.items() if key != "hops"} for span in rest["spans"]]
    assert got == [{key: value for key, value in span.items() if key != "hops"} for span in without]


FROZEN = """
import asyncio, sys
from exchange_grpc import Exchange

async def main():
    async with Exchange("frozen", relay=True) as app:
        app.handle("job", lambda msg: msg.value)
        await app.connect(sys.argv[1])
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_who_is_frozen_is_said_within_the_deadline(local: World) -> None:
    hub, client = local.exchange("hub"), local.exchange("client")
    url = await hub.listen("grpc://127.0.0.1:0")
    await local.link(client, hub)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", FROZEN, url, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert await soon(process.stdout.readline()) == b"ready\n"
        id = await client.send("job", 1)
        await until(lambda: hub._ledger.counts and any(p.id == "frozen" for p in hub.peers))
        whole = await soon(client.trace(id))
        assert whole["missing"] == []
        os.kill(process.pid, signal.SIGSTOP)
        for timeout in (0.5, 30.0):
            began = time.monotonic()
            rest = await client.request("exchange.trace", {"id": id}, to="hub", timeout=timeout)
            assert time.monotonic() - began < min(timeout, 3.0)
            assert [entry["exchange"] for entry in rest["missing"]] == ["frozen"]
            assert [span["id"] for span in rest["spans"]] == [id]
    finally:
        process.kill()
        await process.wait()


async def test_a_trace_is_bounded_and_says_that_it_is_cut(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.ledger.TRACE_ANSWER_BYTES", 20_000)
    app = local.exchange("app")
    last: list[str] = []

    @app.handle("many")
    async def many(msg: Message) -> None:
        for n in range(200):
            last.append(await app.send("one", n))

    app.handle("one", lambda: None)
    await app.request("many")
    trace = await app.trace(last[-1])
    assert trace["cut"]
    assert 20 < len(trace["spans"]) < 200
    assert last[-1] in [span["id"] for span in trace["spans"]]
    assert trace["root"] in [span["id"] for span in trace["spans"]]


# ------------------------------------------------------------------------------------------------------ why


async def test_why_goes_back_to_a_message_that_began_two_exchanges_away(world: World) -> None:
    browser, server = world.exchange("browser"), world.exchange("server", relay=True)
    worker = world.exchange(
        "worker",
        state={"items": [], "hidden": 1, "total": lambda s: sum(s["items"]) * s.hidden, "secret": lambda s: s.total},
        exports=["total"],
    )
    await world.link(browser, server)
    await world.link(worker, server)

    @server.handle("cart.add")
    async def cart_add(msg: Message) -> Any:
        return await server.request("item.store", msg.value)

    @worker.handle("item.store")
    async def item_store(msg: Message, sig: Any, state: Any) -> None:
        state["items"] = [*state["items"], msg.value]

    await browser.request("cart.add", 5)
    await browser.request("cart.add", 3)
    for ask in (browser, server, worker):
        why = await soon(ask.request("exchange.why", {"key": "total"}, to="worker"))
        assert (why["key"], why["exchange"], why["value"], why["revision"]) == ("total", "worker", 8, 2)
        (change,) = why["transaction"]["changes"]  # the others are not exported
        assert (change["name"], change["old"], change["new"]) == ("total", 5, 8)
        assert (change["computed"], change["because"]) == (True, [])
        assert why["transaction"]["number"] == 2
        assert why["transaction"]["handler"].endswith("item_store")
        store = next(span for span in why["trace"]["spans"] if span["id"] == why["transaction"]["cause"])
        add = next(span for span in why["trace"]["spans"] if span["id"] == why["trace"]["root"])
        assert (store["name"], store["from"], store["causes"]) == ("item.store", "server", [add["id"]])
        assert (add["name"], add["from"]) == ("cart.add", "browser")
        assert why["answer"] == (
            "total is 8, and was 5: it was computed anew in transaction 2 of worker, by "
            f"{why['transaction']['handler']} for item.store {store['id']} from server, "
            f"which began with cart.add {add['id']} from browser"
        )
    # In the process itself nothing is hidden.
    why = await worker.why("secret")
    assert [change["name"] for change in why["transaction"]["changes"]] == ["secret", "total", "items"]
    assert why["transaction"]["changes"][2]["old"] == [5]
    assert "after items was set" in why["answer"]


async def test_why_of_a_value_set_from_far_away_and_from_nowhere(local: World) -> None:
    far, hub = local.exchange("far"), local.exchange("hub", relay=True)
    home = local.exchange("home", state={"goal": 1}, exports=["goal"], accepts=["goal"])
    await local.chain(far, hub, home)
    assert (await home.why("goal"))["answer"] == "goal is 1: home started with that"
    home.state.goal = 2
    assert (await home.why("goal"))["answer"] == (
        "goal is 2, and was 1: it was set in transaction 1 of home, outside of any handler"
    )
    state = await far.state_of("home").set("goal", 3)
    why = await far.request("exchange.why", {"key": "goal"}, to="home")
    assert why["transaction"]["cause"] == state.cause
    assert [hop["exchange"] for hop in why["trace"]["spans"][0]["hops"]] == ["far", "hub", "home"]
    assert why["answer"].endswith(f"by exchange.state.set for exchange.state.set {state.cause} from far")


async def test_why_of_what_is_forgotten(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.changes.TRANSACTIONS", 2)
    app = local.exchange("app", state={"a": 0, "b": 0})
    app.state.a = 1
    for n in range(1, 3):
        app.state.b = n
    assert (await app.why("a"))["answer"] == "a is 1: it changed 1 times, too long ago to be remembered"
    with pytest.raises(Refused) as caught:
        await app.why("nothing")
    assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("good", 1, "was handled by good at app"),
        ("bad", 1, "failed, run by bad at app: the handler of bad failed"),
        ("nobody", 1, "was unhandled at app: nobody handles nobody within reach of app (it is linked to nobody)"),
    ],
)
async def test_why_of_a_message_says_what_became_of_it(local: World, name: str, value: Any, said: str) -> None:
    app = local.exchange("app")

    async def good() -> None:
        pass

    async def bad() -> None:
        raise ValueError("secret")

    good.__qualname__, bad.__qualname__ = "good", "bad"
    app.handle("good", good)
    app.handle("bad", bad)
    seen: list[Message] = []
    app.watch(name, lambda message, _: seen.append(message))
    with nullcontext() if name == "good" else pytest.raises(RequestError):
        await app.request(name, value)
    assert (await app.why(seen[0].id))["answer"] == f"{name} from app {said}"


# ---------------------------------------------------------------------------------------------------- state


def shared(world: World) -> tuple[Exchange, Exchange]:
    state = {"n": 1, "double": lambda s: s.n * 2, "note": "", "secret": 7}
    home = world.exchange("home", state=state, exports=["n", "double"], accepts=["n", "note"])
    return home, world.exchange("guest")


async def test_state_is_read_and_set_from_afar(world: World) -> None:
    home, guest = shared(world)
    hub = world.exchange("hub", relay=True)
    await world.link(home, hub)
    await world.link(guest, hub)
    remote = guest.state_of("home")
    assert await remote.get("n") == StateValue("home", "n", 1, 0, home.epoch, "", 0, snapshot=True)
    set_ = await remote.set("n", 5)
    assert (set_.value, set_.revision, set_.transaction, home.state.n) == (5, 1, 1, 5)
    assert set_.cause.startswith("guest.")
    double = await remote.get("double")
    assert (double.value, double.revision, double.cause, double.transaction) == (10, 1, set_.cause, 1)
    assert (await remote.set("n", 5)).revision == 1  # it has not changed
    assert (await remote.set("note", None)).value is None  # accepted, not exported
    assert (await remote.set("n", 6, expected=1)).revision == 2
    for expected in (0, 1, 3, 2**60):
        with pytest.raises(Refused) as caught:
            await remote.set("n", 7, expected=expected)
        assert (caught.value.code, caught.value.reason) == (Code.ABORTED, "REVISION")
        assert str(caught.value) == f"n is at revision 2, not {expected}"
    assert home.state.n == 6


@pytest.mark.parametrize("name", ["secret", "note", "nothing", "", "a b", "__class__"])
async def test_nothing_is_visible_that_was_not_exported(local: World, name: str) -> None:
    home, guest = shared(local)
    peer = await local.link(guest, home)
    for question, value in (("get", {"name": name}), ("watch", {"names": ["n", name]})):
        with pytest.raises(Refused) as caught:
            await peer.request(f"exchange.state.{question}", value)
        assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "NOT_EXPORTED")
    with pytest.raises(Refused) as caught:
        async for _ in peer.state.watch(name):
            pass
    assert caught.value.reason == "NOT_EXPORTED"
    with pytest.raises(Refused) as caught:
        await peer.request("exchange.why", {"key": name})
    assert caught.value.reason == "NOT_EXPORTED"


@pytest.mark.parametrize("name", ["secret", "double", "nothing", ""])
async def test_nothing_is_set_that_was_not_accepted(local: World, name: str) -> None:
    home, guest = shared(local)
    peer = await local.link(guest, home)
    before = dict(home.state)
    with pytest.raises(Refused) as caught:
        await peer.state.set(name, 9)
    assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, "NOT_ACCEPTED")
    assert dict(home.state) == before


@pytest.mark.parametrize("value", [None, 5, [], "n", {}, {"name": 5}, {"name": None}, {"names": ["n"]}])
async def test_a_bad_question_is_refused(local: World, value: Any) -> None:
    home, guest = shared(local)
    peer = await local.link(guest, home)
    for name in ("exchange.state.get", "exchange.state.set"):
        with pytest.raises(Refused) as caught:
            await peer.request(name, value)
        assert caught.value.code is Code.INVALID_ARGUMENT
    for names in ({"names": "n"}, {"names": [5]}, {"names": None}, [], 5):
        with pytest.raises(Refused) as caught:
            await peer.request("exchange.state.watch", names)
        assert caught.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(Refused) as caught:
        await peer.request("exchange.state.set", {"name": "n", "value": 1, "expected_revision": "1"})
    assert caught.value.code is Code.INVALID_ARGUMENT


async def test_what_is_shared_must_be_there() -> None:
    state = {"n": 1, "double": lambda s: s.n * 2, "no name": 1}
    with pytest.raises(UnknownName):
        Exchange("app", state=state, exports=["m"])
    with pytest.raises(UnknownName):
        Exchange("app", state=state, accepts=["m"])
    with pytest.raises(StateError, match="'double' is a computed value"):
        Exchange("app", state=state, accepts=["double"])
    with pytest.raises(InvalidMessage):
        Exchange("app", state=state, exports=["no name"])
    with pytest.raises(TypeError, match="lists of names"):
        Exchange("app", state=state, exports="n")


async def test_a_failing_subscriber_does_not_undo_what_was_set(local: World) -> None:
    home, guest = shared(local)
    peer = await local.link(guest, home)
    home.state.subscribe("n", lambda value: 1 // (value - 9))
    assert (await peer.state.set("n", 9)).value == 9
    assert home.state.n == 9


async def test_a_watch_is_a_snapshot_and_then_every_change(world: World) -> None:
    home, guest = shared(world)
    peer = await world.link(guest, home)
    home.state.n = 2
    async with aclosing(peer.state.watch()) as changes:
        first = [await soon(anext(changes)) for _ in range(2)]
        assert [(s.name, s.value, s.revision, s.snapshot) for s in first] == [("double", 4, 1, True), ("n", 2, 1, True)]
        home.state.note = "unseen"
        home.state.n = 3
        with home.state.batch():
            home.state.n = 4
            home.state.n = 5
        got = [await soon(anext(changes)) for _ in range(4)]
        assert [(s.name, s.value, s.revision) for s in got] == [
            ("n", 3, 2),
            ("double", 6, 2),
            ("n", 5, 3),
            ("double", 10, 3),
        ]
        assert [s.transaction for s in got] == [3, 3, 4, 4]
        assert not any(s.snapshot for s in got)
        set_ = await peer.state.set("n", 6)
        assert [(await soon(anext(changes))).cause for _ in range(2)] == [set_.cause] * 2
    await until(lambda: home._changes.watches == 0)


async def test_a_watch_ends_with_its_exchange(world: World) -> None:
    home, guest = shared(world)
    peer = await world.link(guest, home)
    changes = peer.state.watch("n")
    await anext(changes)
    closing = asyncio.create_task(home.close())
    with pytest.raises(Unavailable):
        await soon(anext(changes))
    await soon(closing)


async def test_a_value_that_cannot_be_said_ends_its_watch_only(local: World) -> None:
    home, guest = shared(local)
    peer = await local.link(guest, home)
    changes, others = peer.state.watch("n"), peer.state.watch("double")
    await anext(changes)
    await anext(others)
    home.state.n = 2**62
    assert (await soon(anext(changes))).value == 2**62
    assert (await soon(anext(others))).value == 2**63
    home.state.n = 2**63  # twice that is beyond 64 bits
    assert (await soon(anext(changes))).value == 2**63
    with pytest.raises(Refused) as caught:
        await soon(anext(others))
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, "ANSWER")
    with pytest.raises(Refused) as caught:
        await peer.state.get("double")
    assert caught.value.code is Code.FAILED_PRECONDITION
    await changes.aclose()


async def test_who_watches_too_slowly_is_told_and_nobody_else_waits(
    local: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange_grpc.changes.WATCH_QUEUE", 5)
    home, guest = shared(local)
    peer = await local.link(guest, home)
    changes = peer.state.watch("n")
    await anext(changes)
    for n in range(10, 20):  # without letting anybody run
        home.state.n = n
    with pytest.raises(Refused) as caught:
        await soon(_all(changes))
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "SLOW")
    assert (await peer.state.get("n")).value == 19
    assert home._changes.watches == 0


async def _all(changes: AsyncIterator[StateValue]) -> list[StateValue]:
    return [change async for change in changes]


async def watch_from_afar(remote: Any, last: int, ready: Callable[[], None]) -> int:
    """The revisions of `n` up to the last value: how many; fails at a gap."""
    seen: list[int] = []
    async with aclosing(remote.watch("n")) as changes:
        async for state in changes:
            assert not seen or state.revision == seen[-1] + 1
            if not seen:
                ready()
            seen.append(state.revision)
            if state.value == last:
                return len(seen)
    raise AssertionError("it ended")


async def test_a_thousand_watchers_see_a_thousand_changes_without_a_gap(local: World) -> None:
    home = local.exchange("home", state={"n": 0}, exports=["n"], accepts=["n"])
    url = await home.listen("grpc://127.0.0.1:0")
    guests = [local.exchange(f"guest{i}") for i in range(10)]
    for guest in guests:
        await guest.connect(url)
    ready = asyncio.Semaphore(0)
    watching = [
        asyncio.create_task(watch_from_afar(guests[i % 10].state_of("home"), 1_000, ready.release))
        for i in range(1_000)
    ]
    async with asyncio.timeout(100):
        for _ in range(500):  # half of them from the start, the others while it goes on
            await ready.acquire()
        for n in range(1, 1_001):
            home.state.n = n
            if n % 100 == 0:
                await asyncio.sleep(0)
        counts = await asyncio.gather(*watching)
    assert max(counts) == 1_001
    with pytest.raises(Refused) as caught:
        await guests[0].state_of("home").set("n", 5, expected=999)
    assert caught.value.reason == "REVISION"
    await until(lambda: home._changes.watches == 0)


@pytest.mark.drill
async def test_a_thousand_watchers_at_the_door(local: World) -> None:
    home = local.exchange("home", state={"n": 0}, exports=["n"])
    address = (await home.listen("grpc://127.0.0.1:0")).removeprefix("grpc://")
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(20)]
    ready = asyncio.Semaphore(0)

    async def watch(stub: Any) -> None:
        revisions: list[int] = []
        async for answer in stub.WatchState(service_pb2.WatchStateRequest(names=["n"])):
            assert answer.snapshot == (not revisions)
            if not revisions:
                ready.release()
            for state in answer.states:
                assert not revisions or state.revision == revisions[-1] + 1
                revisions.append(state.revision)
            if revisions[-1] == 1_000:
                return

    watching = [
        asyncio.create_task(watch(service_pb2_grpc.ExchangeServiceStub(channels[i % 20]))) for i in range(1_000)
    ]
    async with asyncio.timeout(200):
        for _ in range(1_000):
            await ready.acquire()
        for n in range(1, 1_001):
            home.state.n = n
            await asyncio.sleep(0)
        await asyncio.gather(*watching)
    for channel in channels:
        await channel.close()
    await until(lambda: home._changes.watches == 0)


# --------------------------------------------------------------------------------------------------- mirrors


async def test_a_mirror_follows_and_why_goes_on_behind_it(world: World) -> None:
    home, guest = shared(world)
    client = world.exchange("client")
    hub = world.exchange("hub", relay=True)
    for exchange in (home, guest, client):
        await world.link(exchange, hub)
    mine = world.exchange("mine", state={"n": 0, "m": 0, "sum": lambda s: s.n + s.m})
    await world.link(mine, hub)
    remove = await mine.mirror("home", {"n": "n", "double": "m"})
    assert dict(mine.state) == {"n": 1, "m": 2, "sum": 3}
    seen: list[int] = []
    mine.state.subscribe("sum", seen.append)
    set_ = await client.state_of("home").set("n", 5)
    await until(lambda: seen[-1] == 15)
    assert seen == [3, 15]  # never partial
    why = await mine.why("sum")
    assert [change["name"] for change in why["transaction"]["changes"]] == ["sum", "m", "n"]
    assert (why["transaction"]["cause"], why["transaction"]["handler"]) == (set_.cause, "the mirror of home")
    assert why["trace"]["spans"][0]["from"] == "client"
    assert why["answer"].endswith(f"by the mirror of home for exchange.state.set {set_.cause} from client")
    remove()
    await until(lambda: home._changes.watches == 0)
    home.state.n = 6
    assert mine.state.n == 5


async def test_a_mirror_comes_back_when_the_other_does(local: World) -> None:
    mine = local.exchange("mine", state={"n": 0})
    for n in (3, 4):
        home = Exchange("home", state={"n": n}, exports=["n"])
        await mine.connect(home)
        if n == 3:
            await mine.mirror("home", {"n": "n"})
        await until(lambda n=n: mine.state.n == n)
        await home.close()
        assert mine.state.n == n


async def test_what_cannot_be_mirrored_is_said(local: World) -> None:
    home, guest = shared(local)
    await local.link(guest, home)
    mine = local.exchange("mine", state={"n": 0, "computed": lambda s: s.n})
    await local.link(mine, home)
    with pytest.raises(UnknownName):
        await mine.mirror("home", {"n": "nothing"})
    with pytest.raises(StateError, match="'computed' is a computed value"):
        await mine.mirror("home", {"n": "computed"})
    with pytest.raises(Refused) as caught:
        await mine.mirror("home", {"secret": "n"})
    assert caught.value.reason == "NOT_EXPORTED"
    with pytest.raises(Unhandled):
        await mine.mirror("nowhere", {"n": "n"})
    assert not mine._mirrors


async def test_a_mirror_goes_on_behind_a_computed_value_that_fails(
    local: World, caplog: pytest.LogCaptureFixture
) -> None:
    home, _ = shared(local)
    mine = local.exchange("mine", state={"n": 1, "inverse": lambda s: 1 / s.n})
    await local.link(mine, home)
    await mine.mirror("home", {"n": "n"})
    home.state.n = 0
    await until(lambda: "the mirror of home cannot set what changed there" in caplog.text)
    assert dict(mine.state) == {"n": 1, "inverse": 1}
    home.state.n = 4
    await until(lambda: mine.state.n == 4)


@pytest.mark.parametrize("answer", [None, 5, [], {}, {"state": 5}, {"state": {"name": "n"}}, {"states": [1]}])
async def test_a_strange_answer_is_an_error_of_ours(local: World, answer: Any) -> None:
    home, guest = shared(local)
    peer = await local.link(guest, home)
    for name in ("get", "watch"):
        del home._handlers._handlers[f"exchange.state.{name}"]
        home._handlers.handle(f"exchange.state.{name}", lambda: answer, system=True)
    with pytest.raises(RequestError, match=r"is no state|ended"):
        await peer.state.get("n")
    with pytest.raises(RequestError, match=r"is no state|ended"):
        await anext(peer.state.watch("n"))


async def test_a_trace_is_found_by_asking_those_who_do_not_relay(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, worker, client = local.exchange("hub"), local.exchange("worker"), local.exchange("client")
    worker.handle("job", lambda: None)
    await local.link(worker, hub)
    await local.link(client, hub)
    id = await client.send("job")
    await until(lambda: worker._ledger.find(id) is not None)
    await client.close()
    for forgotten in (hub._ledger._entries, hub._ledger._order, hub._ledger._families):
        forgotten.clear()
    trace = await soon(hub.trace(id))
    assert [span["id"] for span in trace["spans"]] == [id]
    assert [entry["exchange"] for entry in trace["missing"]] == ["client"]


async def test_who_exports_a_name_that_is_asked_for_elsewhere_is_said(local: World) -> None:
    home, guest = shared(local)
    hub = local.exchange("hub", relay=True)
    await local.link(home, hub)
    await local.link(guest, hub)
    with pytest.raises(Refused, match="hub exports no state 'n', but home does"):
        await guest.state_of("hub").get("n")
