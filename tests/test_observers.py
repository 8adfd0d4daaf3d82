"""Observers: what they see, in which order, what it costs those who work, and the events of the system."""

import asyncio
import contextvars
import gc
import logging
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from world import World, soon, until

from exchange_grpc import DeadlineExceeded, Exchange, HandlerFailed, Refused, RequestError, Unhandled
from exchange_grpc.handlers import current
from exchange_grpc.message import Context, Kind, Message, Origin, Seen
from exchange_grpc.observers import LOG_EVENT, Backlog, LogEvents, Observers
from exchange_grpc.payload import encode_json

package_log = logging.getLogger("exchange_grpc")
maker = Origin("x", 1)


def message(name: str = "n", size: int = 4) -> Message:
    return maker.make(Kind.SEND, name, Context(), 0.0, payload=b"1" * size)


def messages(count: int, name: str = "n") -> list[Message]:
    return [message(name) for _ in range(count)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.observers.OBSERVER_PAUSE_SECONDS", 0.0, raising=False)
    monkeypatch.setattr("exchange_grpc.exchange.STOP_SECONDS", 0.5)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as made:
        yield made


@pytest.fixture
async def observers(pool: ThreadPoolExecutor) -> AsyncIterator[Observers]:
    made = Observers(lambda: pool)
    before = asyncio.all_tasks()
    yield made
    await soon(made.close())
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}, "nothing is left"


def show(observers: Observers, *shown: Message, seen: Seen = Seen.RECEIVED) -> None:
    for one in shown:
        observers.observed(seen, one)


def nothing() -> None:
    """An observer that looks at nothing."""


class Eye:
    """A function that observes, in one of three forms. It notes what it sees, and whether it is alone."""

    def __init__(self, form: str) -> None:
        self.ids: list[str] = []
        self.names: list[str] = []
        self.crowded = False
        self.threads: set[int] = set()
        self._busy = False
        self.function: Callable[..., Any] = {"async": self._async, "plain": self._plain, "mixed": self._mixed}[form]

    def _begin(self, msg: Message) -> None:
        self.crowded = self.crowded or self._busy
        self._busy = True
        self.ids.append(msg.id)
        self.names.append(msg.name)
        self.threads.add(threading.get_ident())

    async def _async(self, msg: Message) -> None:
        self._begin(msg)
        await asyncio.sleep(0)
        self._busy = False

    def _plain(self, msg: Message) -> None:
        self._begin(msg)
        self._busy = False

    def _mixed(self, msg: Message) -> Any:
        return self._async(msg)


FORMS = ["async", "plain", "mixed"]


# ------------------------------------------------------------------------------------------ order, one at a time


@pytest.mark.parametrize("form", FORMS)
async def test_one_message_after_another_in_order(observers: Observers, form: str) -> None:
    eye, other = Eye(form), Eye(form)
    observers.observe("*", eye.function)
    observers.observe("n", other.function)
    shown = messages(300)
    show(observers, *shown[:100])
    await until(lambda: len(eye.ids) > 10)
    for one in shown[100:]:
        show(observers, one)
        await asyncio.sleep(0)
    await until(lambda: len(eye.ids) == len(other.ids) == 300)
    assert eye.ids == other.ids == [one.id for one in shown]
    assert not eye.crowded
    assert not other.crowded
    assert (threading.get_ident() in eye.threads) == (form != "plain")
    assert [described["missed"] for described in observers.described()] == [0, 0]


async def test_nothing_runs_within_the_one_that_shows(observers: Observers) -> None:
    eye = Eye("async")
    observers.observe("*", eye.function)
    show(observers, *messages(3))
    assert eye.ids == []
    await until(lambda: len(eye.ids) == 3)


async def test_a_watcher_is_called_at_once(observers: Observers) -> None:
    seen: list[tuple[str, Seen]] = []
    remove = observers.watch("a.*", lambda msg, how: seen.append((msg.name, how)))
    show(observers, message("a.b"), message("b.b"), seen=Seen.EMITTED)
    assert seen == [("a.b", Seen.EMITTED)]
    remove()
    remove()
    show(observers, message("a.b"))
    assert len(seen) == 1
    assert not observers
    assert len(observers) == 0


async def test_a_function_takes_as_many_arguments_as_it_likes(observers: Observers) -> None:
    seen: list[Any] = []

    async def both(msg: Message, how: Seen) -> None:
        seen.append(("both", how))

    observers.observe("n", both)
    observers.observe("n", lambda: seen.append("none"))
    observers.observe("n", lambda *all_: seen.append(("all", len(all_))))
    observers.observe("n", lambda msg, how="mine": seen.append(("default", how)))
    observers.observe("n", partial(lambda mine, msg, how: seen.append((mine, how)), "partial"))
    show(observers, message(), seen=Seen.FORWARDED)
    await until(lambda: len(seen) == 5)
    assert set(seen) == {
        ("both", Seen.FORWARDED),
        "none",
        ("all", 2),
        ("default", "mine"),
        ("partial", Seen.FORWARDED),
    }
    with pytest.raises(TypeError):
        observers.observe("n", lambda one, two, three: None)


@pytest.mark.parametrize("form", FORMS)
async def test_what_it_emits_is_caused_by_what_it_sees(observers: Observers, form: str) -> None:
    causes: list[Any] = []

    def note() -> None:
        invocation = current.get()
        causes.append(invocation and (invocation.message.id, invocation.context.causes, invocation.answered))

    async def noted(msg: Message) -> None:
        note()

    functions: dict[str, Any] = {"async": noted, "plain": lambda msg: note(), "mixed": lambda msg: noted(msg)}
    observers.observe("n", functions[form])
    shown = messages(3)
    show(observers, *shown)
    await until(lambda: len(causes) == 3)
    assert causes == [(one.id, (one.id,), True) for one in shown]
    assert current.get() is None


# ---------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("problem", [ValueError("inside"), Refused("no"), KeyError("k"), TimeoutError()])
async def test_one_that_fails_sees_the_next(
    observers: Observers, form: str, problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def fail(msg: Message) -> None:
        seen.append(msg.id)
        raise problem

    async def fail_async(msg: Message) -> None:
        fail(msg)

    functions: dict[str, Any] = {"async": fail_async, "plain": fail, "mixed": lambda msg: fail_async(msg)}
    observers.observe("n", functions[form])
    shown = messages(4)
    show(observers, *shown)
    await until(lambda: len(seen) == 4)
    await until(lambda: len(caplog.records) == 4)
    assert all(record.exc_info is not None for record in caplog.records)


async def test_a_plain_one_that_exits_is_one_that_failed(
    observers: Observers, caplog: pytest.LogCaptureFixture
) -> None:
    def leave(msg: Message) -> None:
        raise SystemExit(3)

    observers.observe("n", leave)
    show(observers, *messages(2))
    await until(lambda: len(caplog.records) == 2)


def test_an_async_one_that_exits_is_one_that_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def leave(msg: Message) -> None:
        raise SystemExit(3)

    observers = Observers(lambda: pytest.fail("it needs no threads"))
    observers.observe("n", leave)
    (observer,) = observers._functions
    step = observer._call_async(message(), leave(message()))  # in no task: one that exits harms pytest, too
    try:
        contextvars.copy_context().run(step.send, None)
    except StopIteration:
        assert len(caplog.records) == 1
    except SystemExit:
        pytest.fail("it ended the loop")


@pytest.mark.parametrize("form", ["async", "mixed"])
async def test_one_that_awaits_what_is_cancelled_sees_the_next(observers: Observers, form: str) -> None:
    seen: list[str] = []

    async def await_cancelled(msg: Message) -> None:
        seen.append(msg.id)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    observers.observe("n", await_cancelled if form == "async" else lambda msg: await_cancelled(msg))
    show(observers, *messages(3))
    await until(lambda: len(seen) == 3, 1.0)


# ------------------------------------------------------------------------------------------------------- misses


async def test_one_that_is_too_slow_misses_and_the_misses_are_counted(
    observers: Observers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("exchange_grpc.observers.OBSERVER_QUEUE", 3)
    gate, seen = asyncio.Event(), []
    quick = Eye("async")

    async def slow(msg: Message) -> None:
        await gate.wait()
        seen.append(msg.id)

    observers.observe("n", slow)
    observers.observe("n", quick.function)
    shown = messages(12)
    for one in shown:
        show(observers, one)
        await until(lambda: len(quick.ids) == shown.index(one) + 1)  # noqa: B023
    described = {one["function"].rpartition(".")[2]: one["missed"] for one in observers.described()}
    assert described == {"slow": 8, "_async": 0}, "one runs, three wait"
    assert [record.args[1] for record in caplog.records] == [1, 2, 4, 8]  # type: ignore[index]
    gate.set()
    await until(lambda: len(seen) == 4)
    show(observers, message())
    await until(lambda: len(seen) == 5)
    assert seen[:4] == [one.id for one in shown[:4]]
    assert quick.ids[:12] == [one.id for one in shown]


def test_a_backlog_is_bounded_in_bytes_but_takes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.observers.OBSERVER_QUEUE_BYTES", 100)
    backlog = Backlog()
    large, small = message(size=1_000), message(size=50)
    assert backlog.put(large, Seen.SET)
    assert not backlog.put(small, Seen.SET)
    assert (len(backlog), backlog.missed) == (1, 1)
    assert backlog.take() == (large, Seen.SET)
    assert not backlog
    assert [backlog.put(small, Seen.SET) for _ in range(3)] == [True, True, False]
    assert backlog.missed == 2
    backlog.take()
    assert backlog.put(small, Seen.SET)
    assert not backlog.put(large, Seen.SET)


def test_a_backlog_with_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.observers.OBSERVER_BURST", 10)
    now = 100.0
    backlog = Backlog(2.0, lambda: now)

    def come(count: int) -> int:
        came = 0
        for _ in range(count):
            if backlog.put(message(), Seen.SET):
                came += 1
                backlog.take()
        return came

    assert come(50) == 10, "at once"
    now += 0.25
    assert come(50) == 0
    now += 0.25
    assert come(50) == 1
    for _ in range(100):
        now += 1.0
        assert come(50) == 2
    now += 1_000.0
    assert come(50) == 10, "what was not used does not pile up"


# ----------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("*", {"a", "a.b", "exchangers.x", "exchange"}),
        ("**", {"a", "a.b", "exchangers.x", "exchange"}),
        ("a.*", {"a.b"}),
        ("**.b", {"a.b"}),
        ("exchange", {"exchange"}),
        ("exchangers.*", {"exchangers.x"}),
        ("*.*.log", set()),
        ("**.log", set()),
        ("exchange.**", {"exchange.event.log", "exchange.event.peer.lost", "exchange.x"}),
        ("exchange.event.*", {"exchange.event.log"}),
        ("exchange.event.peer.*", {"exchange.event.peer.lost"}),
        ("exchange.event.log", {"exchange.event.log"}),
        ("exchange.*", {"exchange.x"}),
    ],
)
async def test_only_patterns_of_the_system_see_its_events(observers: Observers, pattern: str, fits: set[str]) -> None:
    seen: list[str] = []
    observers.watch(pattern, lambda msg, how: seen.append(msg.name))
    eye = Eye("async")
    observers.observe(pattern, eye.function)
    names = ["a", "a.b", "exchangers.x", "exchange", "exchange.event.log", "exchange.event.peer.lost", "exchange.x"]
    show(observers, *(message(name) for name in names))
    assert {*seen} == fits
    await until(lambda: len(eye.names) == len(fits))
    assert eye.names == seen
    assert bool(observers) == (not pattern.startswith("exchange.")), "sets of the state are made for those alone"
    assert observers.wants("exchange.event.log") == ("exchange.event.log" in fits)


# ------------------------------------------------------------------------------------------- removal and close


@pytest.mark.parametrize("form", FORMS)
async def test_removal_while_messages_wait(observers: Observers, form: str) -> None:
    eye = Eye(form)
    remove = observers.observe("n", eye.function)
    before, after = messages(50), messages(50)
    show(observers, *before)
    await until(lambda: eye.ids)
    remove()
    remove()
    show(observers, *after)
    last = Eye(form)
    observers.observe("n", last.function)
    show(observers, *messages(2))
    await until(lambda: len(last.ids) == 2)
    assert eye.ids == [one.id for one in before][: len(eye.ids)], "nothing of what came later"
    assert len(observers.described()) == 1


async def test_one_removes_itself(observers: Observers) -> None:
    seen: list[str] = []

    async def once(msg: Message) -> None:
        seen.append(msg.id)
        remove()

    remove = observers.observe("n", once)
    show(observers, message())
    await until(lambda: seen)
    show(observers, *messages(3))
    await asyncio.sleep(0)
    assert len(seen) == 1
    assert len(observers) == 0


async def test_one_that_was_removed_while_it_ran_is_stopped_by_the_close(observers: Observers) -> None:
    started, hangs = asyncio.Event(), asyncio.Event()

    async def hang(msg: Message) -> None:
        started.set()
        await hangs.wait()

    remove = observers.observe("n", hang)
    show(observers, *messages(2))
    await soon(started.wait())
    remove()
    await soon(observers.close())
    tasks = [task for task in asyncio.all_tasks() if "_work" in repr(task)]
    hangs.set()
    if tasks:
        await asyncio.wait(tasks)
    assert tasks == []


async def test_close_stops_what_runs_and_what_waits(observers: Observers) -> None:
    started, stopped = asyncio.Event(), []

    async def hang(msg: Message) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(msg.id)

    observers.observe("n", hang)
    shown = messages(5)
    show(observers, *shown)
    await soon(started.wait())
    await soon(observers.close())
    assert stopped == [shown[0].id]
    await soon(observers.close())


async def test_close_stops_a_plain_one_after_the_message_that_it_sees(pool: ThreadPoolExecutor) -> None:
    observers = Observers(lambda: pool)
    started, go, seen = threading.Event(), threading.Event(), []

    def slow(msg: Message) -> None:
        seen.append(msg.id)
        started.set()
        go.wait(10)

    observers.observe("n", slow)
    show(observers, *messages(10))
    await until(started.is_set)
    await soon(observers.close())
    go.set()
    await asyncio.to_thread(pool.shutdown, wait=True)
    assert len(seen) == 1


async def test_close_leaves_no_coroutine_that_was_never_awaited(pool: ThreadPoolExecutor) -> None:
    observers = Observers(lambda: pool)
    started = asyncio.Event()

    async def hang(msg: Message) -> None:
        started.set()
        await asyncio.Event().wait()

    observers.observe("n", lambda msg: hang(msg))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        show(observers, *messages(5))
        await soon(started.wait())
        await soon(observers.close())
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


async def test_a_plain_one_is_awaited_before_it_is_called_again(observers: Observers) -> None:
    told: list[str] = []
    loop = asyncio.get_running_loop()

    def begin(msg: Message) -> Any:
        told.append(f"begin {msg.value}")

        async def rest() -> None:
            await asyncio.sleep(0)
            told.append(f"end {msg.value}")

        return rest()

    observers.observe("n", begin)
    for value in range(3):
        one = message()
        one._value = value
        show(observers, one)
    await until(lambda: len(told) == 6)
    assert loop.is_running()
    assert told == [f"{what} {value}" for value in range(3) for what in ("begin", "end")]


async def test_one_that_closes_its_exchange(local: World) -> None:
    app = local.exchange("app", handlers={"hang": asyncio.Event().wait, "stop": lambda: None})
    closed = asyncio.Event()

    async def stop(msg: Message) -> None:
        await app.close()
        closed.set()

    app.observe("stop", stop)
    other = local.exchange("other")
    await local.link(app, other)
    waiting = asyncio.create_task(app.request("hang"))
    await until(lambda: app._router.open_requests)
    await app.send("stop")
    with pytest.raises(RequestError):
        await soon(waiting)
    await asyncio.wait_for(closed.wait(), 1.0)


# ------------------------------------------------------------------------------------------ events of the system


class Events:
    """Keeps the events of one exchange, in order."""

    def __init__(self, app: Exchange, pattern: str = "exchange.event.**") -> None:
        self.all: list[tuple[str, Any]] = []
        self.messages: list[Message] = []
        self.remove = app.observe(pattern, self._take)

    async def _take(self, msg: Message, seen: Seen) -> None:
        assert seen is Seen.EMITTED
        assert msg.name.startswith("exchange.event.")
        self.messages.append(msg)
        self.all.append((msg.name.removeprefix("exchange.event."), msg.value))

    def of(self, kind: str) -> list[Any]:
        return [value for name, value in self.all if name == kind]


async def test_peers_come_and_go(local: World) -> None:
    hub, client = local.exchange("hub"), local.exchange("client", relay=False)
    of_hub, of_client = Events(hub, "exchange.event.peer.*"), Events(client, "exchange.event.peer.*")
    everything = Eye("async")
    hub.observe("*", everything.function)
    peer = await local.link(client, hub)
    await until(lambda: of_hub.all and of_client.all)
    agent = peer.agent
    assert of_hub.all == [("peer.connected", {"id": "client", "agent": agent, "relay": False})]
    assert of_client.all == [("peer.connected", {"id": "hub", "agent": agent, "relay": True})]
    await peer.close()
    await until(lambda: len(of_hub.all) == len(of_client.all) == 2)
    for events, id in ((of_hub, "client"), (of_client, "hub")):
        (name, value) = events.all[1]
        assert (name, value["id"], type(value["reason"])) == ("peer.lost", id, str)
    assert everything.names == []


async def test_what_becomes_of_messages(local: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("inside")

    def refuse() -> None:
        raise Refused("closed today", reason="CLOSED")

    app = local.exchange(
        "app", handlers={"fail": fail, "refuse": refuse, "hang": asyncio.Event().wait, "good": lambda: 1}
    )
    client = local.exchange("client")
    await local.link(client, app)
    events = Events(app, "exchange.event.message.*")
    await client.request("good")
    for name, error in (("fail", HandlerFailed), ("refuse", Refused), ("nobody", Unhandled)):
        with pytest.raises(error):
            await client.request(name, to="app")
    with pytest.raises(DeadlineExceeded):
        await client.request("hang", timeout=0.05)
    task = asyncio.create_task(client.request("hang"))
    await until(lambda: app._router.open_requests)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await until(lambda: events.of("message.cancelled"))
    monkeypatch.setattr("exchange_grpc.routing.OPEN_REQUESTS", 0)
    with pytest.raises(RequestError):
        await app.request("good")

    def told(outcome: str) -> list[tuple[str, str, str]]:
        return [(value["name"], value["kind"], value["from"]) for value in events.of(f"message.{outcome}")]

    await until(lambda: ("good", "request", "app") in told("dropped"))
    assert told("failed") == [("fail", "request", "client")]
    assert told("denied") == [("refuse", "request", "client")]
    assert told("unhandled") == [("nobody", "request", "client")]
    assert ("hang", "request", "client") in told("expired") + told("cancelled")
    assert ("hang", "request", "client") in told("cancelled")
    assert told("handled") == told("forwarded") == []
    (failed,) = events.of("message.failed")
    assert (failed["by"].rpartition(".")[2], "inside" in failed["reason"]) == ("fail", False)
    assert events.of("message.denied")[0]["reason"] == "closed today"
    event = next(event for event in events.messages if event.name.endswith("failed"))
    assert event.causes == (failed["id"],)
    assert (event.from_, event.to) == ("app", "app")


async def test_traffic_of_the_system_is_no_event(local: World) -> None:
    app, client = local.exchange("app", state={"x": 1}, exports=("x",)), local.exchange("client")
    await local.link(client, app)
    events, everything = Events(app, "exchange.**"), Eye("async")
    app.observe("**", everything.function)
    assert (await client.state_of("app").get("x")).value == 1
    with pytest.raises(Refused):
        await client.state_of("app").get("y")
    with pytest.raises(Refused):
        await client.request("exchange.trace", {"id": "app.1.1"}, to="app")
    await app.publish("news")
    await until(lambda: everything.names)
    assert everything.names == ["news"]
    assert events.all == []


async def test_an_event_with_a_text_that_json_cannot_say_stops_nobody(
    local: World, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise Refused("no such file: \udcff")

    app = local.exchange("app", handlers={"refuse": refuse})
    events = Events(app)
    with pytest.raises(Refused):
        await app.request("refuse")
    await rounds(20)
    gc.collect()  # a task that failed unseen is told now, and not while pytest reads its source
    assert caplog.text == ""
    assert [value["name"] for value in events.of("message.denied")] == ["refuse"]


# --------------------------------------------------------------------------------------------------------- logs


async def test_what_is_logged_is_an_event(local: World) -> None:
    app = local.exchange("app", handlers={"fail": lambda: 1 / 0})
    events = Events(app, "exchange.event.log")
    await until(lambda: app._log is not None)
    with suppress(HandlerFailed):
        await app.request("fail")
    await asyncio.to_thread(package_log.warning, "from a thread %d", 7)
    package_log.error("x" * 5_000)
    await until(lambda: len(events.of("log")) == 3)
    first, second, third = events.of("log")
    assert (first["level"], first["logger"]) == ("error", "exchange_grpc.handlers")
    assert "Traceback" not in first["text"]
    assert second == {"level": "warning", "logger": "exchange_grpc", "text": "from a thread 7"}
    assert len(third["text"]) == 1_000


async def test_the_log_is_followed_as_long_as_somebody_observes_it() -> None:
    before = package_log.handlers.copy()
    async with Exchange("app") as app:
        app.observe("*", nothing)
        app.observe("exchange.event.peer.*", nothing)
        assert package_log.handlers == before
        removes = [app.observe(pattern, nothing) for pattern in ("exchange.event.log", "exchange.**")]
        assert len(package_log.handlers) == len(before) + 1
        removes[0]()
        assert len(package_log.handlers) == len(before) + 1
        removes[1]()
        assert package_log.handlers == before
        app.observe("exchange.event.log", nothing)
    assert package_log.handlers == before
    package_log.warning("after the close")


async def test_one_that_was_closed_before_it_ran_follows_no_log() -> None:
    before = package_log.handlers.copy()
    app = Exchange("never")
    app.observe("exchange.event.log", nothing)
    package_log.warning("before any loop")
    await app.close()
    after, package_log.handlers = package_log.handlers.copy(), before
    assert after == before


async def rounds(count: int = 300) -> None:
    """Let the loop do what it has to do, many times."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pattern", ["exchange.event.log", "exchange.**"])
async def test_an_observer_of_the_log_that_fails_does_not_see_its_own_failure(
    local: World, form: str, pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = local.exchange("app")
    seen: list[str] = []

    def fail(msg: Message) -> None:
        seen.append(msg.name)
        raise ValueError("inside")

    async def fail_async(msg: Message) -> None:
        fail(msg)

    functions: dict[str, Any] = {"async": fail_async, "plain": fail, "mixed": lambda msg: fail_async(msg)}
    app.observe(pattern, functions[form])
    app._enter()
    package_log.warning("one")
    await until(lambda: seen)
    await rounds()
    assert seen == [LOG_EVENT]
    assert len(caplog.records) == 1
    if pattern == "exchange.**":  # a failure at another event is logged, and that it sees once
        with suppress(Unhandled):
            await app.send("nobody")
        await until(lambda: len(seen) >= 4)
        await rounds()
        assert sorted(seen[1:]) == sorted(["exchange.event.message.unhandled", LOG_EVENT, LOG_EVENT])


async def test_an_observer_of_the_log_that_is_slow_is_told_nothing_of_it(
    local: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("exchange_grpc.observers.OBSERVER_QUEUE", 2)
    app = local.exchange("app")
    gate, seen = asyncio.Event(), []

    async def slow(msg: Message) -> None:
        await gate.wait()
        seen.append(msg.value["text"])

    app.observe("exchange.event.log", slow)
    await rounds(3)
    app._enter()
    for n in range(20):
        package_log.warning("%d", n)
        await rounds(3)
    assert [described["missed"] for described in app._observers.described()] == [17]
    gate.set()
    await until(lambda: len(seen) == 3)
    await rounds()
    assert seen == ["0", "1", "2"]
    assert len(caplog.records) == 20


async def test_an_observer_of_all_events_that_is_slow_does_not_feed_itself(
    local: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("exchange_grpc.observers.OBSERVER_QUEUE", 2)
    app = local.exchange("app")
    gate = asyncio.Event()

    async def slow(msg: Message) -> None:
        await gate.wait()

    app.observe("exchange.**", slow)
    app._enter()
    for _ in range(10):
        with suppress(Unhandled):
            await app.send("nobody")
        await rounds(20)
    await rounds()
    missed = sum("too slow" in record.getMessage() for record in caplog.records)
    assert missed <= 5, "at 1, 2, 4, 8 and 16"
    gate.set()


async def test_an_observer_of_the_log_that_sends_what_nobody_takes_does_not_feed_itself(local: World) -> None:
    app = local.exchange("app")
    seen: list[str] = []

    async def ship(msg: Message) -> None:
        seen.append(msg.value["text"])
        if len(seen) < 50:  # or this test would not end either
            with suppress(Unhandled):
                await app.send("log.collect", msg.value)

    app.observe("exchange.event.log", ship)
    app._enter()
    package_log.warning("one")
    await until(lambda: seen)
    await rounds(1_000)
    assert len(seen) < 5


def record(text: Any, *args: Any) -> logging.LogRecord:
    return logging.LogRecord("exchange_grpc.x", logging.WARNING, "x.py", 1, text, args, None)


def test_a_log_event_is_plain() -> None:
    told: list[dict[str, Any]] = []
    events = LogEvents(told.append)
    events.handle(record("%s and %s", 1, "x" * 2_000))
    assert told == [{"level": "warning", "logger": "exchange_grpc.x", "text": ("1 and " + "x" * 2_000)[:1_000]}]


def test_a_record_that_cannot_be_formatted_costs_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[dict[str, Any]] = []
    LogEvents(told.append).handle(record("%d", "no number"))
    assert told == [] or told[0]["level"] == "warning"


def test_a_log_text_that_json_cannot_say_is_told_all_the_same() -> None:
    told: list[dict[str, Any]] = []
    LogEvents(told.append).handle(record("no such file: %s", "\udcff"))  # not logged: pytest could not say it either
    (value,) = told
    assert encode_json(value)
    assert value["text"].startswith("no such file: ")


async def test_a_closed_exchange_is_told_nothing(local: World) -> None:
    app = local.exchange("app")
    events = Events(app)
    app._enter()
    await app.close()
    package_log.warning("late")
    await rounds()
    assert events.of("log") == []
