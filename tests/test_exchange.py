"""The Python surface, over real links: local ones and gRPC on the loopback."""

import asyncio
import functools
import logging
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from typing import Any

import pytest
import uvloop
from world import World, soon, until, world_of

from exchange_grpc import (
    AddressError,
    Cancelled,
    Code,
    DeadlineExceeded,
    Exchange,
    ExchangeError,
    HandlerFailed,
    InvalidMessage,
    Kind,
    LimitExceeded,
    LinkError,
    Message,
    Refused,
    RequestError,
    Seen,
    Unavailable,
    Unhandled,
)
from exchange_grpc.limits import Limits
from exchange_grpc.version import AGENT


class Inbox:
    """A function to register that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[Message] = asyncio.Queue()

    async def __call__(self, msg: Message) -> None:
        self.messages.put_nowait(msg)

    async def next(self) -> Message:
        return await soon(self.messages.get())

    @property
    def empty(self) -> bool:
        return self.messages.empty()


# ------------------------------------------------------------------------------------------------- handlers


async def test_handlers_take_as_many_arguments_as_they_like(world: World) -> None:
    async def three(msg: Message, sig: Any, state: Any) -> Any:
        return [msg.value, state.n]

    class Object:
        async def __call__(self, msg: Message) -> Any:
            return msg.value + 1

    server = world.exchange(
        "server",
        state={"n": 7},
        handlers={
            "none": lambda: "none",
            "one": lambda msg: msg.value,
            "two": lambda msg, sig: msg.value * 2,
            "three": three,
            "rest": lambda *arguments: len(arguments),
            "object": Object(),
            "default": lambda msg, n=5: [msg.value, callable(n)],
        },
    )
    server.handle("partial.of.two", functools.partial(lambda n, msg: n * msg.value, 3))
    client = world.exchange("client")
    peer = await world.link(client, server)
    names = ("none", "one", "two", "three", "rest", "object", "default")
    answers = {name: await peer.request(name, 10) for name in names}
    assert answers == {
        "none": "none",
        "one": 10,
        "two": 20,
        "three": [10, 7],
        "rest": 3,
        "object": 11,
        "default": [10, False],  # a default is kept: that is how functions are made in a loop
    }
    assert await peer.request("partial.of.two", 4) == 12


async def test_what_cannot_be_a_handler_is_refused_when_it_is_registered() -> None:
    app = Exchange("app")
    for bad in (5, "name", lambda a, b, c, d: None, lambda *, needed: None):
        with pytest.raises(TypeError):
            app.handle("x", bad)  # type: ignore[arg-type]
    app.handle("x", lambda: None)
    with pytest.raises(ValueError, match="has a handler already"):
        app.handle("x", lambda: None)


async def test_decorators_give_the_function_back(world: World) -> None:
    app, client = world.exchange("app"), world.exchange("client")
    heard: list[tuple[str, Any]] = []

    @app.handle("compute.sum")
    async def compute_sum(msg: Message, sig: Any, state: Any) -> Any:
        return msg.value["a"] + msg.value["b"]

    @app.on("compute.sum")
    async def beside(msg: Message) -> None:
        heard.append(("on", msg.value))

    @app.subscribe("news.*")
    async def news(msg: Message) -> None:
        heard.append(("news", msg.value))

    assert all(map(asyncio.iscoroutinefunction, (compute_sum, beside, news)))
    peer = await world.link(client, app)
    assert await peer.request("compute.sum", {"a": 5, "b": 3}) == 8
    await client.publish("news.today", 1)
    await until(lambda: len(heard) == 2)
    assert heard == [("on", {"a": 5, "b": 3}), ("news", 1)]


async def test_async_handlers_run_on_the_loop_and_plain_ones_in_threads(world: World) -> None:
    threads: dict[str, int] = {}

    async def on_loop(msg: Message) -> None:
        threads["async"] = threading.get_ident()

    def in_thread(msg: Message) -> None:
        threads["plain"] = threading.get_ident()

    server = world.exchange("server", handlers={"async": on_loop, "plain": in_thread})
    peer = await world.link(world.exchange("client"), server)
    await peer.request("async")
    await peer.request("plain")
    assert threads["async"] == threading.get_ident() != threads["plain"]


async def test_a_plain_handler_does_not_stop_the_others(local: World) -> None:
    release = threading.Event()
    app = local.exchange("app", handlers={"blocks": lambda: release.wait(10), "quick": lambda: 1})
    blocked = asyncio.create_task(app.request("blocks"))
    assert await soon(app.request("quick")) == 1
    release.set()
    assert await soon(blocked) is True


async def test_what_a_message_says_to_its_handler(world: World) -> None:
    seen = Inbox()
    server, client = world.exchange("server"), world.exchange("client")
    server.handle("look", seen)
    peer = await world.link(client, server)
    before = time.time()
    assert await peer.request("look", {"ü": [1, 2.5, None, "\0"]}, headers={"n": "1"}, to="server") is None
    msg = await seen.next()
    assert (msg.name, msg.value, msg.from_, msg.to) == ("look", {"ü": [1, 2.5, None, "\0"]}, "client", "server")
    assert (msg.kind, dict(msg.headers)) == (Kind.REQUEST, {"n": "1"})
    assert msg.id == f"client.{client.epoch}.{msg.id.rpartition('.')[2]}"
    assert (msg.trace, msg.causes, msg.root) == (["client", "server"], (), msg.id)
    assert before - 1 <= msg.timestamp <= time.time() + 1


async def test_taking_a_handler_away(world: World) -> None:
    server, client = world.exchange("server"), world.exchange("client")
    remove = server.handle("x", lambda: 1)
    peer = await world.link(client, server)
    assert await peer.request("x") == 1
    remove()
    remove()  # twice does no harm
    await until(lambda: "x" not in peer.handles)
    with pytest.raises(Unhandled):
        await soon(client.request("x"))
    server.handle("x", lambda: 2)
    await until(lambda: "x" in peer.handles)
    assert await client.request("x") == 2


@pytest.mark.parametrize("name", ["exchange.mine", "exchange.peers", "message.unhandled"])
async def test_reserved_names_cannot_be_handled(name: str) -> None:
    with pytest.raises(InvalidMessage, match="reserved"):
        Exchange("app", handlers={name: lambda: None})


# -------------------------------------------------------------------------------------- beside the handlers


async def test_listeners_run_beside_the_handler_and_one_that_raises_harms_nobody(world: World) -> None:
    def broken(msg: Message) -> None:
        raise RuntimeError("a listener")

    inboxes = [Inbox(), Inbox()]
    server, client = world.exchange("server", handlers={"x": lambda: "handled"}), world.exchange("client")
    server.on("x", broken)
    for inbox in inboxes:
        server.on("x", inbox)
    peer = await world.link(client, server)
    assert await peer.request("x", 1) == "handled"
    assert [(await inbox.next()).value for inbox in inboxes] == [1, 1]


async def test_a_listener_alone_claims_the_name_until_it_is_taken_away(world: World) -> None:
    inbox = Inbox()
    server, client = world.exchange("server"), world.exchange("client")
    remove = server.on("x", inbox)
    peer = await world.link(client, server)
    await client.send("x", 1)
    assert (await inbox.next()).value == 1
    assert await client.request("x", 2) is None
    remove()
    await until(lambda: "x" not in peer.handles)
    with pytest.raises(Unhandled):
        await client.send("x", 3)


async def test_a_peers_listener_hears_that_peer_only(world: World) -> None:
    inbox = Inbox()
    server = world.exchange("server", handlers={"x": lambda: None})
    one, two = world.exchange("one"), world.exchange("two")
    await world.link(one, server)
    await world.link(two, server)
    next(peer for peer in server.peers if peer.id == "one").on("x", inbox)
    await two.request("x", "from two")
    await one.request("x", "from one")
    assert (await inbox.next()).value == "from one"
    assert inbox.empty


async def test_a_peers_listener_alone_leaves_others_unhandled_at_once(world: World) -> None:
    server, one, two = world.exchange("server"), world.exchange("one"), world.exchange("two")
    await world.link(one, server)
    other = await world.link(two, server)
    next(peer for peer in server.peers if peer.id == "one").on("x", lambda msg: None)
    await until(lambda: "x" in other.handles)
    assert await soon(one.request("x")) is None
    with pytest.raises(Unhandled):
        await asyncio.wait_for(two.request("x"), 2)


async def test_observers_see_all_that_happens_and_claim_nothing(world: World) -> None:
    hub, client = world.exchange("hub", state={"n": 0}), world.exchange("client")
    worker = world.exchange("worker", handlers={"job": lambda: "done"})
    seen: list[tuple[str, Seen]] = []

    async def look(msg: Message, how: Seen) -> None:
        seen.append((f"{msg.kind.name} {msg.name}", how))

    hub.on("*", look)
    peer = await world.link(client, hub)
    await world.link(worker, hub)
    assert await client.request("job") == "done"
    hub.state.n = 1
    await hub.send("job")
    with pytest.raises(Unhandled):
        await peer.request("nothing")
    await until(lambda: len(seen) >= 5)
    assert seen[:4] == [
        ("REQUEST job", Seen.FORWARDED),
        ("REPLY job", Seen.FORWARDED),
        ("SEND n", Seen.SET),
        ("SEND job", Seen.EMITTED),
    ]
    assert ("REQUEST nothing", Seen.RECEIVED) in seen


async def test_patterns_choose_what_is_observed(local: World) -> None:
    app = local.exchange("app", handlers={"orders.new": lambda: None, "orders.eu.new": lambda: None, "x": lambda: None})
    seen: dict[str, list[str]] = {pattern: [] for pattern in ("*", "**", "orders.*", "orders.**", "*.new", "x")}

    def observer(pattern: str) -> Any:
        async def look(msg: Message) -> None:
            seen[pattern].append(msg.name)

        return look

    removes = [app.observe(pattern, observer(pattern)) for pattern in seen]
    for name in ("orders.new", "orders.eu.new", "x"):
        await app.send(name)
    await until(lambda: len(seen["*"]) == 3)
    everything = ["orders.new", "orders.eu.new", "x"]
    assert seen == {
        "*": everything,
        "**": everything,
        "orders.*": ["orders.new"],
        "orders.**": ["orders.new", "orders.eu.new"],
        "*.new": ["orders.new"],
        "x": ["x"],
    }
    for remove in removes:
        remove()
        remove()
    await app.request("x")
    assert seen["*"] == everything


async def test_observing_before_and_after_the_loop_harms_nobody() -> None:
    app = Exchange("app", state={"n": 0})
    app.observe("*", lambda msg: None)

    def change() -> None:
        app.state.n += 1

    await asyncio.to_thread(change)  # no loop is known yet
    async with app:
        change()
    change()
    assert app.state.n == 3


async def test_a_state_set_in_a_thread_is_observed_on_the_loop(local: World) -> None:
    app = local.exchange("app", state={"n": 0, "twice": lambda s: s.n * 2})
    seen: list[tuple[str, Any, int]] = []

    async def look(msg: Message) -> None:
        seen.append((msg.name, msg.value, threading.get_ident()))

    app.observe("*", look)
    app.handle("bump", lambda msg, sig, state: setattr(state, "n", 5))
    await app.request("bump")
    await until(lambda: len([s for s in seen if s[0] in ("n", "twice")]) == 2)
    here = threading.get_ident()
    assert [s for s in seen if s[0] != "bump"] == [("n", 5, here), ("twice", 10, here)]


# ------------------------------------------------------------------------------------------ kinds of emission


async def test_send_reaches_one_handler_and_says_which_message_it_was(world: World) -> None:
    inbox = Inbox()
    server, client = world.exchange("server", handlers={"x": inbox}), world.exchange("client")
    peer = await world.link(client, server)
    ids = [await client.send("x", 1), await peer.send("x", 2), await client.send("x", 3, to="server")]
    got = [await inbox.next() for _ in ids]
    assert [(m.id, m.value, m.kind) for m in got] == [(id, n, Kind.SEND) for n, id in enumerate(ids, 1)]


async def test_messages_from_one_sender_arrive_in_order(world: World) -> None:
    inbox = Inbox()
    server, client = world.exchange("server", handlers={"x": inbox}), world.exchange("client")
    await world.link(client, server)
    for n in range(3_000):
        await client.send("x", n)
    assert [(await inbox.next()).value for _ in range(3_000)] == list(range(3_000))


async def test_a_local_handler_takes_it_without_any_link(local: World) -> None:
    app = local.exchange("app", handlers={"x": lambda msg: msg.value + 1})
    assert await app.request("x", 1) == 2
    assert await app.request("x", 1, to="app") == 2
    await app.send("x", 1)


async def test_nobody_to_send_to_is_told_at_once(world: World) -> None:
    server, client = world.exchange("server"), world.exchange("client")
    peer = await world.link(client, server)
    for emit in (client.send, client.request):
        with pytest.raises(Unhandled) as caught:
            await asyncio.wait_for(emit("nobody.has.it"), 1)
        assert (caught.value.code, caught.value.reason) == (Code.UNIMPLEMENTED, "UNHANDLED")
    with pytest.raises(Unhandled) as caught:
        await asyncio.wait_for(client.request("x", to="stranger"), 1)
    with pytest.raises(Unhandled) as caught:
        await asyncio.wait_for(peer.request("nobody.has.it"), 1)
    assert caught.value.at == "server"


async def test_a_send_that_fails_further_on_comes_back_as_an_event(world: World) -> None:
    def broken(msg: Message) -> None:
        raise ValueError("secret")

    inbox = Inbox()
    server, client = world.exchange("server", handlers={"broken": broken}), world.exchange("client")
    client.on("message.unhandled", inbox)
    peer = await world.link(client, server)
    for name, reason, outcome in (("nobody.has.it", "UNHANDLED", "UNHANDLED"), ("broken", "HANDLER_FAILED", "FAILED")):
        id = await peer.send(name)
        told = (await inbox.next()).value
        assert (told["id"], told["name"], told["reason"], told["at"]) == (id, name, reason, "server")
        assert told["outcome"] == outcome
        assert "secret" not in told["text"]


async def test_publish_reaches_every_subscriber_and_broadcast_every_peer(world: World) -> None:
    hub = world.exchange("hub")
    leaves = [world.exchange(f"leaf{n}") for n in range(4)]
    news, all_news, status = ([Inbox() for _ in leaves] for _ in range(3))
    for n, leaf in enumerate(leaves):
        leaf.on("app.status", status[n])
        if n < 2:
            leaf.subscribe("orders.*", news[n])
        leaf.subscribe("**" if n == 3 else "nothing", all_news[n])
        await world.link(leaf, hub)
    id = await leaves[0].publish("orders.new", {"n": 1})
    for inbox in (news[0], news[1], all_news[3]):
        assert (await inbox.next()).id == id
    await hub.broadcast("app.status", {"healthy": True})
    assert [(await inbox.next()).kind for inbox in status] == [Kind.BROADCAST] * 4
    assert all(inbox.empty for inbox in (*news, *all_news, *status))
    await leaves[0].broadcast("app.status")  # one hop: the hub, which has no use for it
    await hub.request("exchange.peers", to="leaf1")
    assert all(inbox.empty for inbox in status)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 2**53 + 1, -(2**63), 2**64 - 1, 0.1, "", "ü🚀\0", [], {}, {"a": [{"b": None}]}, b"", b"\x00\xff"],
)
async def test_values_arrive_as_they_were_sent(world: World, value: Any) -> None:
    server = world.exchange("server", handlers={"echo": lambda msg: msg.value})
    peer = await world.link(world.exchange("client"), server)
    answer = await peer.request("echo", value)
    assert (type(answer), answer) == (type(value), value)


@pytest.mark.parametrize("value", [object(), {1: 2}, {1, 2}, math.nan, [math.inf], 2**64, 1j])
async def test_what_json_cannot_say_is_refused_before_it_is_sent(local: World, value: Any) -> None:
    app = local.exchange("app", handlers={"x": lambda: None})
    for emit in (app.send, app.request, app.publish, app.broadcast):
        with pytest.raises(InvalidMessage):
            await emit("x", value)


@pytest.mark.parametrize("name", ["", ".", "a..b", "a b", "a\0b", "a\nb", "*", "a.*", "n" * 256, "n" * 10_000])
async def test_a_bad_name_is_refused_everywhere(name: str) -> None:
    async with Exchange("app") as app:
        for emit in (app.send, app.request, app.publish, app.broadcast):
            with pytest.raises(InvalidMessage):
                await emit(name)
        with pytest.raises(InvalidMessage):
            app.handle(name, lambda: None)


async def test_bad_ids_and_headers_are_refused(local: World) -> None:
    app = local.exchange("app", handlers={"x": lambda: None})
    for id in ("", "a b", "a.b", "ü", "x" * 65):
        with pytest.raises(InvalidMessage):
            Exchange(id)
        if id:
            with pytest.raises(InvalidMessage):
                await app.request("x", to=id)
    for headers in ({"": "x"}, {"a": 1}, {1: "a"}):
        with pytest.raises(InvalidMessage):
            await app.send("x", headers=headers)  # type: ignore[dict-item]
    with pytest.raises(LimitExceeded):
        await app.send("x", headers={"a": "x" * 9_000})


# --------------------------------------------------------------------------------------------- the rule of sig


async def test_sig_of_a_name_handled_here_stays_here(world: World) -> None:
    inbox = Inbox()

    async def job(msg: Message, sig: Any) -> str:
        sig("log.entry", msg.value)
        return "done"

    server = world.exchange("server", handlers={"job": job, "log.entry": inbox})
    client = world.exchange("client", handlers={"log.entry": lambda: pytest.fail("not here")})
    peer = await world.link(client, server)
    assert await peer.request("job", 5) == "done"
    entry = await inbox.next()
    assert (entry.value, entry.from_, entry.trace) == (5, "server", ["client", "server"])
    assert entry.causes == (entry.root,)


async def test_sig_of_any_other_name_goes_back_to_the_sender(world: World) -> None:
    inbox = Inbox()

    async def job(msg: Message, sig: Any) -> None:
        sig("job.result", msg.value * 2)

    server, client = world.exchange("server", handlers={"job": job}), world.exchange("client")
    bystander = world.exchange("bystander", handlers={"job.result": lambda: pytest.fail("not to anybody else")})
    client.on("job.result", inbox)
    await world.link(bystander, server)
    peer = await world.link(client, server)
    id = await peer.send("job", 21)
    result = await inbox.next()
    assert (result.value, result.from_, result.kind) == (42, "server", Kind.SEND)
    assert (result.causes, result.root, result.trace) == ((id,), id, ["client", "server", "client"])


@pytest.mark.parametrize("threaded", [False, True])
async def test_sig_to_a_request_is_its_reply_and_the_first_answer_wins(world: World, threaded: bool) -> None:
    def plain(msg: Message, sig: Any) -> str:
        sig("any.name", "first")
        sig("another", "second")
        return "third"

    async def on_loop(msg: Message, sig: Any) -> str:
        return plain(msg, sig)

    inbox = Inbox()
    server = world.exchange("server", handlers={"job": plain if threaded else on_loop})
    client = world.exchange("client", handlers={"another": inbox})
    peer = await world.link(client, server)
    assert await peer.request("job") == "first"
    assert (await inbox.next()).value == "second"  # answered already: an ordinary message to the sender
    await until(lambda: any("a second answer" in event["reason"] for event in _events(server)))


def _only_root(exchange: Exchange) -> str:
    (root,) = exchange._ledger._families
    return root


def _events(exchange: Exchange) -> list[Any]:
    trace = exchange._ledger.trace(_only_root(exchange))
    assert trace is not None
    return [event for span in trace["spans"] for event in span["events"]]


async def test_a_request_that_ends_without_an_answer_gets_an_empty_one(world: World) -> None:
    server = world.exchange("server", handlers={"job": lambda: None})
    peer = await world.link(world.exchange("client"), server)
    assert await soon(peer.request("job")) is None


async def test_sig_after_the_handler_ended_keeps_the_cause_not_the_right_to_answer(world: World) -> None:
    inbox, go = Inbox(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def job(msg: Message, sig: Any) -> None:
        async def later() -> None:
            await go.wait()
            sig("late", "late")

        tasks.append(asyncio.create_task(later()))

    server, client = world.exchange("server", handlers={"job": job}), world.exchange("client")
    client.on("late", inbox)
    peer = await world.link(client, server)
    assert await soon(peer.request("job")) is None
    go.set()
    late = await inbox.next()
    assert (late.kind, late.value, len(late.causes)) == (Kind.SEND, "late", 1)
    assert late.root == late.causes[0]
    await tasks[0]


async def test_a_child_task_may_answer_while_the_handler_runs(world: World) -> None:
    async def job(msg: Message, sig: Any) -> str:
        async def child() -> None:
            sig("answer", "from the child")

        await asyncio.create_task(child())
        return "too late"

    peer = await world.link(world.exchange("client"), world.exchange("server", handlers={"job": job}))
    assert await peer.request("job") == "from the child"


@pytest.mark.parametrize("threaded", [False, True])
async def test_sig_set_changes_the_state_because_of_the_message(world: World, threaded: bool) -> None:
    causes: list[Any] = []

    def plain(msg: Message, sig: Any, state: Any) -> Any:
        sig("set", {"name": "items", "value": [1, 2, 3]})
        state.note = msg.value
        return [state.count, sig("get", "count")]

    async def on_loop(msg: Message, sig: Any, state: Any) -> Any:
        return plain(msg, sig, state)

    state = {"items": [], "note": "", "count": lambda s: len(s.items)}
    server = world.exchange("server", state=state, handlers={"load": plain if threaded else on_loop})
    server.state.on_commit(lambda tx: causes.append((sorted(tx.sets), tx.cause)))
    peer = await world.link(world.exchange("client"), server)
    assert await peer.request("load", "hello") == [3, 3]
    assert (server.state["items"], server.state.note) == ([1, 2, 3], "hello")
    root = _only_root(server)
    assert causes == [(["items"], root), (["note"], root)]
    server.state.note = "outside"
    assert causes[-1] == (["note"], None)


async def test_sig_outside_of_a_handler_says_so() -> None:
    captured: list[Any] = []
    async with Exchange("app", handlers={"x": lambda msg, sig: captured.append(sig)}) as app:
        await app.request("x")
        with pytest.raises(ExchangeError, match="for handlers"):
            captured[0]("y")


async def test_sig_of_a_value_that_cannot_be_sent_raises_in_the_handler(world: World) -> None:
    raised: list[Exception] = []

    def job(msg: Message, sig: Any) -> str:
        for name, value in (("answer", object()), ("bad name", 1)):
            try:
                sig(name, value)
            except InvalidMessage as error:
                raised.append(error)
        return "still my answer"

    peer = await world.link(world.exchange("client"), world.exchange("server", handlers={"job": job}))
    assert await peer.request("job") == "still my answer"
    assert len(raised) == 2


# ------------------------------------------------------------------------------------------ causes and traces


async def test_causes_go_along_by_themselves(world: World) -> None:
    events = Inbox()
    server, client = world.exchange("server"), world.exchange("client")
    worker = world.exchange("worker", handlers={"compute": lambda msg: msg.value + 1, "event": events})

    async def job(msg: Message) -> Any:
        await server.send("event", "before")
        answer = await server.request("compute", msg.value)
        await asyncio.gather(server.send("event", "child"), asyncio.create_task(server.send("event", "child")))
        return answer

    server.handle("job", job)
    await world.link(client, server)
    await world.link(server, worker)
    outside = await client.send("event", "outside", to="worker")
    assert (await events.next()).causes == ()
    assert await client.request("job", 1) == 2
    before, *children = [await events.next() for _ in range(3)]
    assert before.causes == (before.root,)
    assert before.root.startswith(f"client.{client.epoch}.")
    assert before.root != outside
    assert before.trace == ["client", "server", "worker"]
    for child in children:
        assert child.root == before.root
        assert (child.causes[0], len(child.causes)) == (before.root, 2)  # the request, then the reply awaited
        assert child.causes[1].startswith("worker.")
        assert child.trace == ["client", "server", "worker", "server", "worker"]


async def test_a_plain_handlers_thread_carries_the_cause(world: World) -> None:
    events, loop = Inbox(), asyncio.get_running_loop()
    server, client = world.exchange("server"), world.exchange("client", handlers={"event": events})

    def job(msg: Message) -> None:
        asyncio.run_coroutine_threadsafe(server.send("event"), loop).result(5)

    server.handle("job", job)
    peer = await world.link(client, server)
    id = await peer.send("job")
    assert (await events.next()).causes == (id,)


async def test_the_trace_of_browser_server_worker(world: World) -> None:
    results = Inbox()
    browser, server = world.exchange("browser"), world.exchange("server")
    worker = world.exchange("worker", handlers={"compute.sum": lambda msg: sum(msg.value)})
    browser.on("data.result", results)

    async def fetch(msg: Message, sig: Any) -> None:
        sig("data.result", await server.request("compute.sum", msg.value))

    server.handle("data.fetch", fetch)
    peer = await world.link(browser, server)
    await world.link(worker, server)
    id = await peer.send("data.fetch", [1, 2, 3])
    result = await results.next()
    assert result.value == 6
    assert result.trace == ["browser", "server", "worker", "server", "browser"]
    assert [hop.exchange for hop in result.hops] == ["server", "browser"]
    assert result.root == id
    trace = await server.request("exchange.trace", {"id": result.id})
    assert [(span["name"], span["kind"]) for span in trace["spans"]] == [
        ("data.fetch", "KIND_SEND"),
        ("compute.sum", "KIND_REQUEST"),
        ("compute.sum", "KIND_REPLY"),
        ("data.result", "KIND_SEND"),
    ]
    assert trace["spans"][3]["causes"] == [id, trace["spans"][2]["id"]]


async def test_a_trace_nobody_knows_is_not_found(local: World) -> None:
    app = local.exchange("app")
    for value, code in (
        ({"id": "app.1.1"}, Code.NOT_FOUND),
        ({"id": "else.1.1", "here": True}, Code.NOT_FOUND),
        ({"id": "else.1.1"}, Code.NOT_FOUND),
        ({"id": "no id"}, Code.NOT_FOUND),
        ({"id": 5}, Code.INVALID_ARGUMENT),
        ({}, Code.INVALID_ARGUMENT),
        (None, Code.INVALID_ARGUMENT),
        ([1], Code.INVALID_ARGUMENT),
    ):
        with pytest.raises(Refused) as caught:
            await soon(app.request("exchange.trace", value))
        assert caught.value.code is code


async def test_asking_who_is_linked(world: World) -> None:
    hub, worker = world.exchange("hub"), world.exchange("worker", handlers={"job": lambda: None})
    worker.subscribe("news.**", lambda: None)
    await world.link(worker, hub)
    told = await worker.request("exchange.peers", to="hub")
    assert told == {
        "version": 1,
        "exchange": "hub",
        "peers": [
            {
                "id": "worker",
                "agent": AGENT,
                "away": False,
                "relay": False,
                "handles": ["job"],
                "subscribes": ["news.**"],
                "exports": [],
                "pending": 0,
                "queued": 0,
                "unacknowledged": 0,
                "dropped": 0,
                "slowed": 0,
            }
        ],
    }
    assert (await worker.request("exchange.peers"))["exchange"] == "worker"


# -------------------------------------------------------------------------------------- cancel and deadlines


class Hanging:
    """A handler that hangs until it is cancelled, and says when that was."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.seconds_left: list[float] = []

    async def __call__(self, msg: Message) -> None:
        self.seconds_left.append(msg.deadline - time.monotonic())
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def test_cancelling_reaches_the_far_handler_through_hubs(world: World) -> None:
    hanging = Hanging()
    client, one, two = (world.exchange(id, relay=True) for id in ("client", "hub1", "hub2"))
    worker = world.exchange("worker", relay=True, handlers={"hang": hanging})
    worker.observe("*", lambda msg: None)  # whatever runs beside it, for the same message
    worker.on("hang", lambda msg: None)
    await world.chain(client, one, two, worker)
    asking = asyncio.create_task(client.request("hang"))
    await soon(hanging.started.wait())
    asking.cancel()
    await soon(hanging.cancelled.wait())
    with pytest.raises(asyncio.CancelledError):
        await asking
    for exchange in (client, one, two, worker):
        await until(lambda exchange=exchange: not exchange._router._open)
    assert not worker._handlers._requests


async def test_a_request_withdrawn_before_it_began_leaves_nothing(world: World) -> None:
    hanging = Hanging()
    server, client = world.exchange("server", handlers={"hang": hanging, "echo": lambda: 1}), world.exchange("client")
    peer = await world.link(client, server)
    for _ in range(20):
        asking = [asyncio.create_task(peer.request("hang")) for _ in range(10)]
        await asyncio.sleep(0)  # the request and its cancel may leave in one batch
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    assert await soon(peer.request("echo")) == 1
    table = server._handlers
    await until(lambda: not table._requests and table._handlers["hang"].running == 0)
    assert not server._router._open


async def test_a_request_withdrawn_while_it_waits_its_turn_never_runs(
    local: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange_grpc.handlers.HANDLER_CONCURRENCY", 1)
    hanging, ran = Hanging(), []

    async def job(msg: Message) -> None:
        ran.append(msg.value)
        if msg.value == "first":
            await hanging(msg)

    app = local.exchange("app", handlers={"job": job})
    first, second, third = (asyncio.create_task(app.request("job", n)) for n in ("first", "second", "third"))
    await soon(hanging.started.wait())
    second.cancel()
    await asyncio.wait({second})
    first.cancel()
    assert await soon(third) is None
    assert ran == ["first", "third"]
    assert not app._handlers._requests


async def test_deadlines_shrink_along_the_way_and_are_inherited(world: World) -> None:
    hanging = Hanging()
    client, hub = world.exchange("client"), world.exchange("hub")
    worker = world.exchange("worker", handlers={"inner": hanging})
    outer_left: list[float] = []

    async def outer(msg: Message) -> Any:
        outer_left.append(msg.deadline - time.monotonic())
        await asyncio.sleep(0.05)
        return await hub.request("inner")

    hub.handle("outer", outer)
    await world.link(client, hub)
    await world.link(worker, hub)
    asked = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        await client.request("outer", timeout=0.6)
    assert 0.55 < time.monotonic() - asked < 1.6
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert 0 < outer_left[0] < 0.6
    assert 0 < hanging.seconds_left[0] < outer_left[0] - 0.04
    await soon(hanging.cancelled.wait())


async def test_a_request_says_its_own_deadline_or_gets_thirty_seconds(world: World) -> None:
    left: list[float] = []
    server = world.exchange("server", handlers={"x": lambda msg: left.append(msg.deadline - time.monotonic())})
    peer = await world.link(world.exchange("client"), server)
    await peer.request("x")
    await peer.request("x", timeout=5)
    for timeout in (math.inf, 1e300, 1e12):
        assert await soon(peer.request("x", timeout=timeout)) is None
    assert 29 < left[0] <= 30
    assert 4 < left[1] <= 5
    assert min(left[2:]) > 1e8
    assert not peer.closed


@pytest.mark.parametrize("timeout", [0, -1, -math.inf, 1e-9])
async def test_no_time_at_all_is_over_at_once(world: World, timeout: float) -> None:
    hanging = Hanging()
    peer = await world.link(world.exchange("client"), world.exchange("server", handlers={"hang": hanging}))
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(peer.request("hang", timeout=timeout), 2)
    assert not peer.closed


async def test_a_timeout_that_is_no_number_is_refused(local: World) -> None:
    app = local.exchange("app", handlers={"x": lambda: None})
    with pytest.raises(ValueError, match="NaN"):
        await app.request("x", timeout=math.nan)


# ---------------------------------------------------------------------------------------------------- errors


async def test_a_handler_that_raises_tells_nobody_outside_what(world: World, caplog: pytest.LogCaptureFixture) -> None:
    def value_error() -> None:
        raise ValueError("the password is 1234")

    async def exits() -> None:
        raise SystemExit("the password is 1234")

    async def nested() -> None:
        raise Unhandled("the password is 1234")

    server = world.exchange("server", handlers={"raise": value_error, "exit": exits, "nested": nested})
    peer = await world.link(world.exchange("client"), server)
    for name in ("raise", "exit", "nested"):
        caplog.clear()
        with pytest.raises(HandlerFailed) as caught:
            await peer.request(name)
        error = caught.value
        assert str(error) == f"the handler of {name} failed"
        assert (error.code, error.reason, error.at) == (Code.INTERNAL, "HANDLER_FAILED", "server")
        assert "the password is 1234" in caplog.text


async def test_what_a_handler_refuses_is_told(world: World) -> None:
    def refuse() -> None:
        raise Refused("the shop is closed", code=Code.FAILED_PRECONDITION, reason="CLOSED")

    peer = await world.link(world.exchange("client"), world.exchange("server", handlers={"buy": refuse}))
    with pytest.raises(Refused, match="the shop is closed") as caught:
        await peer.request("buy")
    assert (caught.value.code, caught.value.reason, caught.value.at) == (Code.FAILED_PRECONDITION, "CLOSED", "server")


@pytest.mark.parametrize("answer", [object(), {1: 2}, math.nan, {"deep": [{1, 2}]}, 2**70])
async def test_an_answer_that_json_cannot_say_is_an_error(world: World, answer: Any) -> None:
    peer = await world.link(world.exchange("client"), world.exchange("server", handlers={"x": lambda: answer}))
    with pytest.raises(HandlerFailed, match="cannot be said in JSON") as caught:
        await soon(peer.request("x"))
    assert (caught.value.reason, caught.value.at) == ("ANSWER", "server")


async def test_an_answer_that_is_too_large_is_an_error(world: World) -> None:
    server = world.exchange("server", handlers={"x": lambda: "x" * (5 * 2**20), "y": lambda: b"y" * (5 * 2**20)})
    peer = await world.link(world.exchange("client"), server)
    for name in ("x", "y"):
        with pytest.raises(RequestError, match="larger than") as caught:
            await soon(peer.request(name))
        assert caught.value.reason == "ANSWER"
    assert not peer.closed


# ------------------------------------------------------------------------------------------------ two tables

OURS = (
    "set", "get", "run", "route", "broadcast", "offer", "subscribe", "peer.connect", "peer.disconnect",
    "peer.interest", "peer.asked", "peer.answered", "rejected", "expired", "failed", "deliver", "transmit",
    "control", "announce", "resolve", "dispatched", "withdraw", "observed", "message.unhandled", "exchange.x",
)  # fmt: skip


@pytest.mark.parametrize("name", OURS)
async def test_a_remote_message_with_a_name_of_the_kernel_touches_nothing(local: World, name: str) -> None:
    events = Inbox()
    server, client = local.exchange("server", state={"n": 1}), local.exchange("client")
    bystander = local.exchange("bystander", handlers={"ping": lambda: "pong"})
    server.on("message.unhandled", events)
    peer = await local.link(client, server)
    await local.link(bystander, server)
    assert set(OURS[:23]) <= {*server.kernel.immediate, *server.kernel.delayed}
    with pytest.raises(Unhandled):
        await soon(peer.request(name, {"name": "n", "value": 2}, to="server"))
    told = await events.next()  # the server's own event, of the request; its listener ran for nothing else
    assert (told.from_, told.value["name"]) == ("server", name)
    await peer.send(name, {"name": "n", "value": 2}, to="server")
    await client.publish(name, {"name": "n", "value": 2})
    await client.broadcast(name, {"name": "n", "value": 2})
    assert await client.request("ping") == "pong"
    assert (server.state.n, len(server.peers)) == (1, 2)
    while not events.empty:
        assert (await events.next()).from_ == "server"


async def test_a_handler_may_have_the_name_of_a_signal(world: World) -> None:
    taken: list[Any] = []
    server = world.exchange("server", state={"n": 1}, handlers={"set": lambda msg: taken.append(msg.value)})
    peer = await world.link(world.exchange("client"), server)
    await peer.request("set", {"name": "n", "value": 2})
    assert (taken, server.state.n) == ([{"name": "n", "value": 2}], 1)


# ----------------------------------------------------------------------------------------------------- links


async def test_connecting_twice_gives_the_same_peer(world: World) -> None:
    server, client = world.exchange("server", handlers={"x": lambda: 1}), world.exchange("client")
    first = await world.link(client, server)
    assert await world.link(client, server) is first
    assert (await world.link(server, client)).id == "client"
    both = await asyncio.gather(*(world.link(client, server) for _ in range(5)))
    assert all(peer is first for peer in both)
    assert (len(client.peers), len(server.peers)) == (1, 1)
    assert await first.request("x") == 1
    await until(lambda: len(client._links.lines) == len(server._links.lines) == 1)


async def test_two_who_dial_each_other_at_once_keep_one_link(world: World) -> None:
    for n in range(10):
        a = world.exchange(f"a{n}", handlers={"who.a": lambda: "a"})
        b = world.exchange(f"b{n}", handlers={"who.b": lambda: "b"})
        if world.transport == "grpc":
            await world.url(a)
            await world.url(b)
        one, two = await soon(asyncio.gather(world.link(a, b), world.link(b, a)))
        assert (one.id, two.id) == (b.id, a.id)
        await until(lambda a=a, b=b: len(a._links.lines) == len(b._links.lines) == 1)
        assert await soon(a.request("who.b")) == "b"
        assert await soon(b.request("who.a")) == "a"
        assert (len(a.peers), len(b.peers)) == (1, 1)


async def test_two_processes_of_one_id_cannot_both_be_linked(world: World) -> None:
    server = world.exchange("server")
    await world.link(world.exchange("twin", handlers={"x": lambda: "first"}), server)
    async with Exchange("twin", handlers={"x": lambda: "second"}) as second:
        with pytest.raises(LinkError, match="twin is linked to server already"):
            await soon(second.connect(server if world.transport == "local" else await world.url(server)))
        assert not second.peers
    assert await server.request("x") == "first"


async def test_an_exchange_does_not_link_to_its_own_id(world: World) -> None:
    server = world.exchange("same")
    async with Exchange("same") as other:
        with pytest.raises(LinkError, match="call themselves same"):
            await soon(other.connect(server if world.transport == "local" else await world.url(server)))
    if world.transport == "grpc":
        with pytest.raises(LinkError, match="call themselves same"):
            await soon(server.connect(await world.url(server)))
    with pytest.raises(AddressError):
        await server.connect(server)


async def test_a_peer_that_leaves_is_gone_on_both_sides(world: World) -> None:
    server, client = world.exchange("server", handlers={"x": lambda: 1}), world.exchange("client")
    peer = await world.link(client, server)
    (other,) = server.peers
    assert (repr(peer), peer.handles, other.handles) == ("<Peer server>", {"x"}, frozenset())
    await peer.close()
    await peer.close()
    await soon(other.wait_closed())
    await soon(peer.wait_closed())
    assert (peer.closed, other.closed, client.peers, server.peers) == (True, True, (), ())
    assert (repr(peer), peer.handles) == ("<Peer server (closed)>", frozenset())
    with pytest.raises(Unavailable) as caught:
        await soon(peer.request("x"))
    assert caught.value.delivered is False
    with pytest.raises(Unavailable):
        await soon(peer.send("x"))
    again = await world.link(client, server)
    assert again is not peer
    assert await again.request("x") == 1


async def test_a_lost_link_fails_what_waits_on_it(world: World) -> None:
    hanging = Hanging()
    server, client = world.exchange("server", handlers={"hang": hanging}), world.exchange("client")
    peer = await world.link(client, server)
    asking = asyncio.create_task(peer.request("hang"))
    await soon(hanging.started.wait())
    await peer.close()
    with pytest.raises(Unavailable) as caught:
        await soon(asking)
    assert caught.value.delivered is None  # it may have been
    await soon(hanging.cancelled.wait())


KILLED = """
import asyncio, sys
from exchange_grpc import Exchange
async def main():
    async with Exchange("doomed") as app:
        await app.connect(sys.argv[1])
        await app.request("hang")
asyncio.run(main())
"""


async def test_what_a_killed_client_asked_is_cancelled_further_on() -> None:
    hanging = Hanging()
    async with world_of("grpc") as world:
        hub, worker = world.exchange("hub"), world.exchange("worker", handlers={"hang": hanging})
        await world.link(worker, hub)
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, await world.url(hub))
        await asyncio.wait_for(hanging.started.wait(), 20)
        process.send_signal(signal.SIGKILL)
        await soon(hanging.cancelled.wait())
        await process.wait()
        await until(lambda: len(hub.peers) == 1)
        assert not hub._router._open


# ----------------------------------------------------------------------------------------------------- close


async def test_what_was_sent_before_a_close_is_delivered(world: World) -> None:
    inbox = Inbox()
    server, client = world.exchange("server", handlers={"x": inbox}), world.exchange("client")
    await world.link(client, server)
    for n in range(5_000):
        await client.send("x", [n, "." * 100])
    await client.close()
    got = [(await inbox.next()).value[0] for _ in range(5_000)]
    assert got == list(range(5_000))


async def test_a_close_lets_handlers_end_and_their_answers_leave(world: World) -> None:
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        started.set()
        await go.wait()
        return "done"

    server, client = world.exchange("server", handlers={"slow": slow}), world.exchange("client")
    peer = await world.link(client, server)
    asking = asyncio.create_task(peer.request("slow"))
    await soon(started.wait())
    closing = asyncio.create_task(server.close())
    await asyncio.sleep(0)
    go.set()
    assert await soon(asking) == "done"
    await soon(closing)
    assert peer.closed


async def test_a_close_ends_what_hangs_here_and_what_is_asked_meanwhile(world: World) -> None:
    hanging = Hanging()
    server, client = world.exchange("server", handlers={"hang": hanging}), world.exchange("client")
    peer = await world.link(client, server)
    asking = [asyncio.create_task(peer.request("hang"))]
    await soon(hanging.started.wait())
    closing = asyncio.create_task(server.close())
    while not closing.done():
        asking.append(asyncio.create_task(client.request("hang")))
        await asyncio.wait({closing}, timeout=0.02)
    await soon(closing)
    answers = await soon(asyncio.gather(*asking, return_exceptions=True))
    assert all(isinstance(answer, RequestError) for answer in answers)
    assert not server._handlers._tasks


async def test_a_handler_may_close_its_exchange(local: World) -> None:
    closed = asyncio.Event()
    app, client = local.exchange("app"), local.exchange("client")

    async def stop() -> None:
        await app.close()
        closed.set()

    app.handle("stop", stop)
    await (await local.link(client, app)).send("stop")
    await asyncio.wait_for(closed.wait(), 3)


async def test_a_close_answers_what_the_exchange_itself_waits_for(world: World) -> None:
    hanging = Hanging()
    server, client = world.exchange("server", handlers={"hang": hanging}), world.exchange("client")
    await world.link(client, server)
    asking = asyncio.create_task(client.request("hang"))
    await soon(hanging.started.wait())
    await soon(client.close())
    with pytest.raises(Unavailable):
        await soon(asking)
    await soon(hanging.cancelled.wait())


async def test_closing_leaves_no_descriptor() -> None:
    async def once() -> None:
        async with world_of("grpc") as world:
            hub = world.exchange("hub", handlers={"x": lambda: 1})
            for n in range(10):
                await (await world.link(world.exchange(f"leaf{n}"), hub)).request("x")

    await once()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await once()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_a_closed_exchange_says_that_it_is(local: World) -> None:
    app = local.exchange("app", handlers={"x": lambda: 1})
    other = local.exchange("other")
    await app.close()
    await app.close()
    for use in (
        lambda: app.send("x"),
        lambda: app.request("x"),
        lambda: app.publish("x"),
        lambda: app.broadcast("x"),
        lambda: app.connect(other),
        lambda: other.connect(app),
        lambda: app.listen("grpc://127.0.0.1:0"),
        app.__aenter__,
    ):
        with pytest.raises(ExchangeError, match="the exchange app is closed"):
            await use()


async def test_a_connect_that_a_close_overtakes_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world_of("grpc") as world:
        server, client = world.exchange("server"), world.exchange("client")
        url = await world.url(server)
        connecting = asyncio.create_task(client.connect(url))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ExchangeError):
            await soon(connecting)
        await until(lambda: not server._links.lines)


def test_another_loop_is_refused() -> None:
    app = Exchange("app", handlers={"x": lambda: 1})

    async def use() -> Any:
        return await app.request("x")

    async def close() -> None:
        await app.close()

    assert asyncio.run(use()) == 1
    for again in (use, close):
        with pytest.raises(ExchangeError, match="belongs to another asyncio loop"):
            asyncio.run(again())


async def test_an_exchange_that_was_never_used_closes() -> None:
    await Exchange("idle").close()


async def test_what_has_no_id_gets_one() -> None:
    assert len({Exchange().id for _ in range(100)}) == 100


# ------------------------------------------------------------------------------- balance, interest and relays


async def _hub_with_workers(world: World, count: int, **options: Any) -> tuple[Exchange, Exchange, Counter[str]]:
    taken: Counter[str] = Counter()
    hub, client = world.exchange("hub", **options), world.exchange("client")
    for n in range(count):
        id = f"w{n}"

        def work(msg: Message, id: str = id) -> str:
            taken[id] += 1
            return id

        await world.link(world.exchange(id, handlers={"job": work, "task": work}), hub)
    await world.link(client, hub)
    return hub, client, taken


async def test_round_robin_takes_turns_over_all_names(world: World) -> None:
    _, client, taken = await _hub_with_workers(world, 3)
    for n in range(30):
        await client.request("job" if n % 2 else "task")
    assert taken == {"w0": 10, "w1": 10, "w2": 10}


async def test_random_takes_everybody_in_the_end(world: World) -> None:
    _, client, taken = await _hub_with_workers(world, 2, balance="random")
    for _ in range(60):
        await client.request("job")
    assert set(taken) == {"w0", "w1"}
    assert taken.total() == 60


async def test_sticky_keeps_equal_headers_together(world: World) -> None:
    _, client, taken = await _hub_with_workers(world, 3, balance="sticky:user")
    chosen = {
        user: {await client.request("job", headers={"user": user}) for _ in range(4)} for user in map(str, range(20))
    }
    assert all(len(workers) == 1 for workers in chosen.values())
    assert len(taken) == 3
    await client.request("job")  # without the header it is a turn like any other


async def test_least_pending_leaves_the_busy_alone(world: World) -> None:
    hanging = Hanging()
    hub, client = world.exchange("hub", balance="least_pending"), world.exchange("client")
    await world.link(world.exchange("busy", handlers={"job": lambda: "busy", "hang": hanging}), hub)
    await world.link(world.exchange("idle", handlers={"job": lambda: "idle"}), hub)
    await world.link(client, hub)
    asking = asyncio.create_task(client.request("hang"))
    await soon(hanging.started.wait())
    assert [await client.request("job") for _ in range(10)] == ["idle"] * 10
    asking.cancel()
    await asyncio.wait({asking})


@pytest.mark.parametrize("balance", ["", "fastest", "sticky", "sticky:"])
def test_an_unknown_balance_is_refused(balance: str) -> None:
    with pytest.raises(ValueError, match="balance is"):
        Exchange("app", balance=balance)


async def test_interest_may_change_while_linked(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.discovery.NO_SECONDS", 0.0)  # an offer far away does not clear a "nobody"
    inbox = Inbox()
    hub, client, worker = world.exchange("hub"), world.exchange("client"), world.exchange("worker")
    await world.link(client, hub)
    await world.link(worker, hub)
    with pytest.raises(Unhandled):
        await soon(client.request("job"))
    remove = worker.handle("job", lambda: 1)
    unsubscribe = worker.subscribe("news", inbox)
    at_hub = next(peer for peer in hub.peers if peer.id == "worker")
    await until(lambda: "job" in at_hub.handles)
    assert await soon(client.request("job")) == 1
    await client.publish("news", 1)
    assert (await inbox.next()).value == 1
    remove()
    unsubscribe()
    await until(lambda: "job" not in at_hub.handles)
    with pytest.raises(Unhandled):
        await soon(client.request("job"))
    await client.publish("news", 2)
    await worker.request("exchange.peers", to="hub")
    assert inbox.empty


async def test_interest_that_changes_during_the_handshake_is_not_lost(world: World) -> None:
    for n in range(10):
        server, client = world.exchange(f"server{n}"), world.exchange(f"client{n}")
        if world.transport == "grpc":
            await world.url(server)
        linking = asyncio.create_task(world.link(client, server))
        while not linking.done():
            for exchange in (server, client):
                name = f"name{len(exchange._router.offers)}"
                exchange.handle(name, lambda: None)
                exchange.subscribe(f"{name}.*", lambda: None)
            await asyncio.sleep(0)
        peer = await linking
        (other,) = server.peers
        expected = [frozenset(x for x in e._router.offers if "exchange." not in x) for e in (server, client)]
        await until(lambda p=peer, o=other, e=expected: [p.handles, o.handles] == e)


async def test_whoever_does_not_relay_passes_nothing_on(world: World) -> None:
    inbox = Inbox()
    middle = world.exchange("middle", relay=False, handlers={"mine": lambda: "mine"})
    client, worker = world.exchange("client"), world.exchange("worker", handlers={"job": lambda: 1})
    worker.subscribe("news", inbox)
    peer = await world.link(client, middle)
    await world.link(worker, middle)
    assert await peer.request("mine") == "mine"
    with pytest.raises(Unhandled):
        await soon(client.request("job"))
    with pytest.raises(Unhandled, match="middle does not handle it and does not relay"):
        await soon(peer.request("job"))
    await client.publish("news")
    assert await middle.request("job") == 1
    assert inbox.empty


async def test_a_mere_client_becomes_a_relay_when_it_listens(world: World) -> None:
    left, middle = world.exchange("left"), world.exchange("middle")
    right = world.exchange("right", relay=True, handlers={"job": lambda: 1})
    await world.link(middle, right)
    assert not middle._router.relay
    await world.link(left, middle)  # somebody connects to it
    assert await soon(left.request("job")) == 1


async def test_logging_is_quiet_where_all_goes_well(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "exchange_grpc"):
        server, client = world.exchange("server", handlers={"x": lambda: 1}), world.exchange("client")
        peer = await world.link(client, server)
        assert await peer.request("x") == 1
        await client.close()
        await server.close()
    assert [record.message for record in caplog.records if record.name.startswith("exchange_grpc")] == []


def test_cancelled_is_an_error_of_the_tree() -> None:
    assert issubclass(Cancelled, RequestError)


def test_any_loop_will_do() -> None:
    async def main() -> None:
        async with Exchange("one") as one, Exchange("two", handlers={"echo": lambda msg: msg.value}) as two:
            await one.connect(await two.listen("grpc://127.0.0.1:0"))
            for n in range(20):
                assert await one.request("echo", n, timeout=n / 1_000 + 5) == n

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("away", [False, True])
async def test_a_sender_waits_while_handlers_are_slow_and_the_others_do_not(
    away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credit, end to end: no more waits at the handler than its exchange takes, and nothing is lost."""
    monkeypatch.setattr("exchange_grpc.exchange.STOP_SECONDS", 0.5)
    limits = Limits(credit_messages=100)
    async with Exchange("hub", limits=limits) as hub, Exchange("slow", limits=limits) as slow, Exchange("fast") as fast:
        gate, taken = asyncio.Event(), []

        async def take(msg: Any) -> None:
            await gate.wait()
            taken.append(msg.value)

        slow._handlers.handle("take", take, most=1)
        fast.handle("echo", lambda msg: msg.value)
        url = await hub.listen("grpc://127.0.0.1:0")
        for exchange in (slow, fast):
            await exchange.connect(url)
        sender, asker = Exchange("sender"), Exchange("asker")
        async with sender, asker:
            peer = await sender.connect(url)
            await asker.connect(url)

            async def send() -> None:
                for n in range(5_000):
                    await sender.send("take", n)

            sending = asyncio.create_task(send())
            _, waiting = await asyncio.wait({sending}, timeout=0.5)
            assert waiting, "5,000 messages wait somewhere"
            assert slow._handlers.load()[1] <= 101
            assert await asker.request("echo", 7, timeout=5) == 7
            if away:
                sender._links.by_peer[peer.id].connection.drop("it is cut")  # type: ignore[union-attr]
            gate.set()
            await soon(sending)
            await until(lambda: len(taken) == 5_000, 20)
            assert taken == list(range(5_000))
