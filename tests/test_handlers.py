"""The public table: in which order functions run, in which tasks and contexts, and what is left of them."""

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from world import soon, until

from exchange_grpc.handlers import Handlers, Run, current
from exchange_grpc.limits import HANDLER_TURN_SECONDS
from exchange_grpc.message import Kind, Message, Outcome
from exchange_grpc.outbox import QueueFull

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


def unheard(*_: Any) -> None: ...


class Table:
    """A table with what its exchange hears of it. `now` stands still unless a test advances it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ended: list[Run] = []
        self.released: list[Any] = []
        self.handlers = Handlers("app", lambda: self.now, unheard, unheard, self._reply, released=self._release)

    def _release(self, message: Message) -> None:
        self.released.append(message.value)

    async def _reply(self, invocation: Any, value: Any) -> None:
        raise AssertionError("nobody here asks many")

    def give(self, *values: Any, kind: Kind = Kind.REQUEST) -> None:
        """A batch of messages `x`; the id of each is its value."""
        for value in values:
            message = Message(str(value), "x", kind, "peer")
            message._value = value
            assert self.handlers.deliver(message, "peer", (message,), self.ended.append)

    def outcomes(self) -> dict[Any, Outcome]:
        return {run.message.value: run.outcome for run in self.ended}

    def counters(self) -> dict[str, Any]:
        (told,) = self.handlers.described()["handlers"]
        return {key: told[key] for key in ("running", "waiting", "calls", "failed")}


@pytest.fixture
async def table() -> AsyncIterator[Table]:
    """A table of which nothing is left in the end."""
    before = asyncio.all_tasks()
    made = Table()
    yield made
    await soon(made.handlers.close())
    assert asyncio.all_tasks() - before == {asyncio.current_task()} - before, "nothing is left"
    assert not made.handlers._requests
    assert all(count == 1 for count in Counter(made.released).values())


class Gate:
    """A handler that goes on when it is told."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.tasks: list[Any] = []
        self.open = asyncio.Event()

    async def __call__(self, msg: Message) -> None:
        self.started.append(msg.value)
        self.tasks.append(asyncio.current_task())
        await self.open.wait()


async def turn() -> None:
    await asyncio.sleep(0)


# ---------------------------------------------------------------------------------------- order and concurrency


async def test_a_batch_that_never_waits_runs_in_order_in_one_task_and_one_turn(table: Table) -> None:
    ran: list[tuple[Any, Any]] = []

    async def take(msg: Message) -> None:
        ran.append((msg.value, asyncio.current_task()))

    table.handlers.handle("x", take)
    table.give(*range(1_000))
    assert table.counters() == {"running": 0, "waiting": 1_000, "calls": 0, "failed": 0}
    await turn()
    assert [value for value, _ in ran] == [run.message.value for run in table.ended] == list(range(1_000))
    assert len({task for _, task in ran}) == 1
    assert table.counters() == {"running": 0, "waiting": 0, "calls": 1_000, "failed": 0}


async def test_a_batch_that_waits_starts_in_order_within_a_few_turns(table: Table) -> None:
    gate = Gate()
    table.handlers.handle("x", gate)
    table.give(*range(1_000))
    for _ in range(10):  # twice as many in each
        await turn()
    assert gate.started == list(range(1_000))
    assert len(set(gate.tasks)) == 1_000
    gate.open.set()
    await until(lambda: len(table.ended) == 1_000)


async def test_what_comes_while_one_waits_goes_on_at_once(table: Table) -> None:
    gate = Gate()
    table.handlers.handle("x", gate)
    for n in range(5):
        table.give(n)
        await turn()
        assert gate.started == list(range(n + 1))


async def test_at_most_so_many_run_at_once_and_the_rest_follows_in_order(table: Table) -> None:
    gates = [asyncio.Event() for _ in range(6)]
    started: list[int] = []

    async def take(msg: Message) -> None:
        started.append(msg.value)
        await gates[msg.value].wait()

    table.handlers.handle("x", take, most=2)
    table.give(*range(6))
    for ended, running in ((1, [0, 1, 2]), (2, [0, 1, 2, 3]), (0, [0, 1, 2, 3, 4])):
        gates[ended].set()
        await until(lambda running=running: started == running)
    assert table.counters() == {"running": 2, "waiting": 1, "calls": 5, "failed": 0}
    assert table.handlers.load() == (2, 1)
    for gate in gates:
        gate.set()
    await until(lambda: len(table.ended) == 6)
    assert started == list(range(6))


async def test_a_handler_may_have_others_started_and_wait_for_them(table: Table) -> None:
    ends: dict[int, asyncio.Event] = {n: asyncio.Event() for n in range(20)}

    async def nested(msg: Message) -> None:
        if msg.value < 19:
            table.give(msg.value + 1)
            await ends[msg.value + 1].wait()
        ends[msg.value].set()

    table.handlers.handle("x", nested)
    table.give(0)
    await soon(ends[0].wait())
    await until(lambda: len(table.ended) == 20)
    assert [run.message.value for run in table.ended] == list(range(19, -1, -1))


async def test_seconds_are_those_of_the_function_alone(table: Table) -> None:
    async def take(msg: Message) -> None:
        table.now += 2.0

    table.handlers.handle("x", take)
    table.give(1, 2)
    table.now += 100.0  # while they wait
    await until(lambda: len(table.ended) == 2)
    assert [(run.started, run.ended) for run in table.ended] == [(100.0, 102.0), (102.0, 104.0)]
    assert table.handlers.described()["handlers"][0]["seconds"] == 4.0


async def test_handlers_that_never_wait_do_not_starve_the_loop(table: Table) -> None:
    ran: list[int] = []

    async def take(msg: Message) -> None:
        ran.append(msg.value)
        table.now += HANDLER_TURN_SECONDS / 4

    table.handlers.handle("x", take)
    table.give(*range(1_000))
    most = 0
    while len(ran) < 1_000:
        before = len(ran)
        await turn()
        most = max(most, len(ran) - before)
    assert most == 5
    assert ran == list(range(1_000))


# ------------------------------------------------------------------------------------------ tasks and contexts


async def test_what_one_handler_sets_the_next_does_not_see(table: Table) -> None:
    seen: list[str] = []
    seen_later: list[str] = []

    async def take(msg: Message) -> None:
        seen.append(tenant.get())
        tenant.set(str(msg.value))
        if msg.value % 2:
            await turn()
            seen_later.append(tenant.get())
            tenant.set("later")

    table.handlers.handle("x", take, most=1)
    table.give(*range(10))
    await until(lambda: len(table.ended) == 10)
    assert seen == ["nobody"] * 10
    assert seen_later == ["1", "3", "5", "7", "9"]
    assert tenant.get() == "nobody"


async def test_a_handler_has_the_context_of_whoever_delivered_its_message(table: Table) -> None:
    seen: list[tuple[str, str]] = []

    async def take(msg: Message) -> None:
        seen.append((msg.value, tenant.get()))

    async def deliver(who: str) -> None:
        tenant.set(who)
        table.give(who)

    table.handlers.handle("x", take)
    await asyncio.gather(*(deliver(who) for who in "abc"))
    await until(lambda: len(seen) == 3)
    assert seen == [("a", "a"), ("b", "b"), ("c", "c")]


async def test_child_tasks_keep_the_cause_and_not_the_right_to_answer(table: Table) -> None:
    go = asyncio.Event()
    children: list[asyncio.Task[Any]] = []

    async def child() -> tuple[Any, bool, bool]:
        invocation = current.get()
        assert invocation is not None
        before = invocation.running
        await go.wait()
        assert current.get() is invocation
        return invocation.message.value, before, invocation.running

    async def take(msg: Message) -> None:
        children.append(asyncio.create_task(child()))
        await turn()
        await turn()

    table.handlers.handle("x", take)
    table.give(*range(3))
    await until(lambda: len(table.ended) == 3)
    go.set()
    assert await soon(asyncio.gather(*children)) == [(n, True, False) for n in range(3)]
    assert current.get() is None


async def test_timeouts_and_task_groups_work_in_every_handler_of_a_worker(table: Table) -> None:
    said: list[Any] = []

    async def fails() -> None:
        raise ValueError

    async def take(msg: Message) -> None:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        except TimeoutError:
            said.append("late")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails())
                await asyncio.Event().wait()
        except* ValueError:
            said.append("failed")
        task = asyncio.current_task()
        assert task is not None
        said.append(task.cancelling())

    table.handlers.handle("x", take, most=1)
    table.give(1, 2, 3)
    await until(lambda: len(table.ended) == 3)
    assert said == ["late", "failed", 0] * 3
    assert set(table.outcomes().values()) == {Outcome.HANDLED}


# -------------------------------------------------------------------------------------------------- cancelling


async def _awaits(table: Table, gate: asyncio.Event) -> None:
    await gate.wait()


async def _swallows(table: Table, gate: asyncio.Event) -> None:
    try:
        await gate.wait()
    except asyncio.CancelledError:
        return


async def _cleans_up(table: Table, gate: asyncio.Event) -> None:
    try:
        await gate.wait()
    finally:
        await turn()
        await turn()


async def _ends_at_once(table: Table, gate: asyncio.Event) -> None:
    await turn()
    table.handlers.withdraw("0")  # as a handler may that closes the link it was asked over


async def _never_waits(table: Table, gate: asyncio.Event) -> None:
    table.handlers.withdraw("0")


async def _cancels_itself(table: Table, gate: asyncio.Event) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def _raises(table: Table, gate: asyncio.Event) -> None:
    try:
        await gate.wait()
    except asyncio.CancelledError:
        raise ValueError("on its way out") from None


Form = Callable[[Table, asyncio.Event], Awaitable[None]]
FORMS = {
    _awaits: Outcome.CANCELLED,
    _swallows: Outcome.HANDLED,
    _cleans_up: Outcome.CANCELLED,
    _ends_at_once: Outcome.HANDLED,
    _never_waits: Outcome.HANDLED,
    _cancels_itself: Outcome.HANDLED,
    _raises: Outcome.FAILED,
}


@pytest.mark.parametrize("most", [1, 100])
@pytest.mark.parametrize("form", FORMS)
async def test_a_cancel_reaches_one_handler_and_no_other(table: Table, form: Form, most: int) -> None:
    gate, counts = asyncio.Event(), []

    async def take(msg: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        counts.append(task.cancelling())
        await (form(table, gate) if msg.value == 0 else turn())

    table.handlers.handle("x", take, most=most)
    table.give(*range(4))
    await turn()
    await turn()
    table.handlers.withdraw("0")
    table.handlers.withdraw("0")
    await until(lambda: len(table.ended) == 4)
    assert table.outcomes() == {0: FORMS[form], 1: Outcome.HANDLED, 2: Outcome.HANDLED, 3: Outcome.HANDLED}
    assert counts == [0, 0, 0, 0]
    assert table.counters() == {"running": 0, "waiting": 0, "calls": 4, "failed": FORMS[form] is Outcome.FAILED}


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancel_in_any_turn_around_the_end_hits_nothing_that_follows(table: Table, turns: int) -> None:
    async def take(msg: Message) -> None:
        for _ in range(2):
            await turn()

    table.handlers.handle("x", take, most=1)
    table.give(*range(3))
    for _ in range(turns):
        await turn()
    table.handlers.withdraw("0")
    await until(lambda: table.handlers.load() == (0, 0))
    outcomes = table.outcomes()
    assert outcomes.pop(0, None) in {None, Outcome.CANCELLED, Outcome.HANDLED}  # before it began, while it ran, after
    assert outcomes == {1: Outcome.HANDLED, 2: Outcome.HANDLED}
    assert table.released == [0, 1, 2]


async def test_a_cancel_together_with_what_was_awaited(table: Table) -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def take(msg: Message) -> Any:
        return await answer if msg.value == 0 else await turn()

    table.handlers.handle("x", take, most=1)
    table.give(0, 1, 2)
    await turn()
    answer.set_result(1)  # it is woken, and has not gone on yet
    table.handlers.withdraw("0")
    await until(lambda: len(table.ended) == 3)
    assert table.outcomes() == {0: Outcome.CANCELLED, 1: Outcome.HANDLED, 2: Outcome.HANDLED}


async def test_what_was_awaited_may_be_cancelled_by_others(table: Table) -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    tasks = []

    async def take(msg: Message) -> None:
        tasks.append(asyncio.current_task())
        if msg.value == 0:
            await answer

    table.handlers.handle("x", take, most=1)
    table.give(0, 1)
    await turn()
    answer.cancel()
    await until(lambda: len(table.ended) == 2)
    assert table.outcomes() == {0: Outcome.CANCELLED, 1: Outcome.HANDLED}
    assert tasks[0] is tasks[1]


async def test_a_worker_that_somebody_cancels_before_it_begins_is_replaced(table: Table) -> None:
    before = asyncio.all_tasks()

    async def take() -> None: ...

    table.handlers.handle("x", take)
    table.give(1, 2)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await until(lambda: len(table.ended) == 2)
    assert set(table.outcomes().values()) == {Outcome.HANDLED}


# ----------------------------------------------------------------------------------------------------- failing


@pytest.mark.parametrize("suspends", [False, True])
async def test_what_one_handler_raises_leaves_the_others_alone(table: Table, suspends: bool) -> None:
    async def take(msg: Message) -> None:
        if suspends:
            await turn()
        if msg.value == 1:
            raise ValueError
        if msg.value == 2:
            raise SystemExit

    table.handlers.handle("x", take, most=1)
    table.give(*range(4))
    await until(lambda: len(table.ended) == 4)
    assert list(table.outcomes().values()) == [Outcome.HANDLED, Outcome.FAILED, Outcome.FAILED, Outcome.HANDLED]
    assert table.counters() == {"running": 0, "waiting": 0, "calls": 4, "failed": 2}


async def test_errors_have_the_context_that_they_would_have_in_a_task(table: Table) -> None:
    errors: list[BaseException] = []

    async def take(msg: Message) -> None:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        await turn()
        try:
            raise ValueError
        except ValueError as error:
            errors.append(error)

    table.handlers.handle("x", take)
    table.give(1)
    await until(lambda: len(table.ended) == 1)
    assert errors[0].__context__ is None


@pytest.mark.parametrize("suspends", [False, True])
def test_after_an_interrupt_the_rest_goes_on(suspends: bool) -> None:
    loop = asyncio.new_event_loop()
    table = Table()

    async def take(msg: Message) -> None:
        if suspends:
            await turn()
        if msg.value == 0:
            raise KeyboardInterrupt

    async def give() -> None:
        table.give(0, 1, 2)
        await asyncio.sleep(1)

    table.handlers.handle("x", take, most=1)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(give())
    loop.run_until_complete(until(lambda: len(table.ended) == 2))
    assert table.counters() == {"running": 0, "waiting": 0, "calls": 3, "failed": 0}
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(table.handlers.close())
    loop.close()


# ---------------------------------------------------------------------------------------------------- released


async def test_a_message_is_released_when_its_handler_starts(table: Table) -> None:
    gate = Gate()
    table.handlers.handle("x", gate, most=2)
    table.handlers.listen("x", gate)  # who listens beside it changes nothing
    table.give(*range(4))
    assert table.released == []
    await until(lambda: len(gate.started) == 6)
    assert table.released == [0, 1]
    gate.open.set()
    await until(lambda: len(table.ended) == 4)
    assert table.released == [0, 1, 2, 3]


async def test_a_message_is_released_when_it_is_withdrawn_before_its_turn(table: Table) -> None:
    gate = Gate()
    table.handlers.handle("x", gate, most=1)
    table.give(*range(4))
    await until(lambda: gate.started == [0])
    table.handlers.withdraw("2")
    table.handlers.withdraw("2")
    assert table.released == [0, 2]
    assert table.counters() == {"running": 1, "waiting": 2, "calls": 1, "failed": 0}
    table.handlers.withdraw("0")
    gate.open.set()
    await until(lambda: len(table.ended) == 3)
    assert table.released == [0, 2, 1, 3]
    assert gate.started == [0, 1, 3]


async def test_a_message_is_released_when_there_is_no_room_for_it(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange_grpc.handlers.HANDLER_QUEUE", 2)
    gate = Gate()
    table.handlers.handle("x", gate, most=1)
    table.give(0, 1, 2)  # one may run, two may wait
    with pytest.raises(QueueFull, match="more than 2 messages"):
        table.give(3)
    assert table.released == [3]
    table.handlers.withdraw("1")
    table.give(4)
    gate.open.set()
    await until(lambda: len(table.ended) == 3)
    assert gate.started == [0, 2, 4]


async def test_what_has_no_handler_is_not_released(table: Table) -> None:
    ran: list[Any] = []
    table.handlers.listen("x", lambda msg: ran.append(msg.value))
    table.handlers.subscribe("**", lambda msg: ran.append(msg.value))
    table.give(1)
    table.give(2, kind=Kind.PUBLISH)
    await until(lambda: sorted(ran) == [1, 2])
    assert table.released == []
    assert [(run.by, run.outcome) for run in table.ended] == [("listeners", Outcome.HANDLED)] * 2


# ----------------------------------------------------------------------------------------------------- closing


async def test_nothing_idles(table: Table) -> None:
    before = asyncio.all_tasks()

    async def take(msg: Message) -> None:
        if msg.value % 2:
            await turn()

    table.handlers.handle("x", take)
    table.give(*range(100))
    await until(lambda: len(table.ended) == 100)
    await turn()
    assert asyncio.all_tasks() == before


async def test_a_wait_is_for_what_has_come_and_not_for_what_comes(table: Table) -> None:
    gate = Gate()

    async def take(msg: Message) -> None:
        if msg.value < 3:
            await gate(msg)
        else:
            table.give(msg.value + 1)  # there is always one more
            await turn()

    table.handlers.handle("x", take, most=2)
    table.give(*range(3))
    await turn()
    waiting = asyncio.create_task(table.handlers.wait(60))
    await turn()
    table.give(3)
    assert not waiting.done()
    gate.open.set()
    await soon(waiting)
    assert [table.outcomes()[n] for n in range(3)] == [Outcome.HANDLED] * 3


async def test_a_wait_cancels_what_takes_too_long(table: Table) -> None:
    gate = Gate()
    table.handlers.handle("x", gate, most=2)
    table.give(0, 1)
    await soon(table.handlers.wait(0.01))
    assert list(table.outcomes().values()) == [Outcome.CANCELLED] * 2


async def test_a_close_cancels_what_runs_and_starts_nothing_any_more(table: Table) -> None:
    gate = Gate()
    table.handlers.handle("x", gate, most=2)
    table.give(*range(4))
    await until(lambda: gate.started == [0, 1])
    closing = asyncio.create_task(table.handlers.close())
    waiting = asyncio.create_task(table.handlers.wait(60))
    await soon(asyncio.gather(closing, waiting))
    assert table.outcomes() == {0: Outcome.CANCELLED, 1: Outcome.CANCELLED}
    with pytest.raises(QueueFull, match="closed"):
        table.give(4)
    assert gate.started == [0, 1]
    assert sorted(table.released) == [0, 1, 2, 3, 4]


async def test_a_close_before_anything_began(table: Table) -> None:
    gate = Gate()
    table.handlers.handle("x", gate)
    table.give(*range(4))
    await table.handlers.close()
    assert (gate.started, table.ended, sorted(table.released)) == ([], [], [0, 1, 2, 3])
    assert not table.handlers._tasks


async def test_a_handler_may_close_the_table(table: Table) -> None:
    async def take(msg: Message) -> None:
        await table.handlers.wait(0.01)
        await table.handlers.close()

    table.handlers.handle("x", take, most=1)
    table.give(0, 1)
    await until(lambda: table.outcomes() == {0: Outcome.HANDLED})
    assert table.released == [0, 1]


# ------------------------------------------------------------------------------------------------ all together


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_each_message_is_released_once_and_nothing_is_left(table: Table, seed: int) -> None:
    rng = random.Random(seed)
    started: list[int] = []

    async def take(msg: Message) -> None:
        started.append(msg.value)
        for _ in range(rng.choice((0, 0, 0, 1, 3))):
            try:
                await turn()
            except asyncio.CancelledError:
                if rng.random() < 0.5:
                    raise
        if rng.random() < 0.1:
            table.handlers.withdraw(str(msg.value))
        if rng.random() < 0.1:
            raise ValueError
        table.now += rng.choice((0.0, HANDLER_TURN_SECONDS))

    table.handlers.handle("x", take, most=rng.choice((1, 2, 5, 1_000)))
    given = 0
    for _ in range(50):
        batch = rng.choice((1, 1, 2, 20))
        table.give(*range(given, given + batch))
        given += batch
        for _ in range(rng.randrange(3)):
            table.handlers.withdraw(str(rng.randrange(max(0, given - 30), given)))
        for _ in range(rng.randrange(3)):
            await turn()
    if seed % 2:
        await until(lambda: table.handlers.load() == (0, 0))
    await soon(table.handlers.close())
    assert started == sorted(started)
    assert sorted(table.released) == list(range(given))
    assert sorted(run.message.value for run in table.ended) == started
    assert table.handlers.load() == (0, 0)
    function = table.handlers._handlers["x"]
    assert (function.ready, len(function.waiting), len(table.handlers._tasks)) == (0, 0, 0)
