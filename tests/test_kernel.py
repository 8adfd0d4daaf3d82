"""The signal kernel: two tables, one queue, generations, and what happens when a handler fails."""

import ast
import logging
from pathlib import Path
from typing import Any

import pytest

from exchange_grpc import kernel as module
from exchange_grpc.kernel import Kernel, Overrun


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def record(into: list[Any]) -> Any:
    return lambda value, sig, state: into.append(value)


def test_an_immediate_handler_runs_inside_sig_and_gives_its_result(kernel: Kernel) -> None:
    kernel.immediate["twice"] = lambda value, sig, state: value * 2
    assert kernel.sig("twice", 4) == 8
    assert kernel.waiting == 0


def test_the_value_is_none_when_none_is_given(kernel: Kernel) -> None:
    kernel.immediate["what"] = lambda value, sig, state: (value,)
    assert kernel.sig("what") == (None,)


def test_a_handler_gets_the_value_the_kernels_sig_and_its_state() -> None:
    kernel = Kernel(state={"shared": 1})
    kernel.immediate["all"] = lambda value, sig, state: (value, sig, state)
    assert kernel.sig("all", 5) == (5, kernel.sig, {"shared": 1})
    assert kernel.sig("all")[2] is kernel.state


def test_immediate_handlers_nest(kernel: Kernel) -> None:
    kernel.immediate["inner"] = lambda value, sig, state: value + 1
    kernel.immediate["outer"] = lambda value, sig, state: sig("inner", value) * 10
    assert kernel.sig("outer", 1) == 20


def test_what_an_immediate_handler_raises_reaches_whoever_signalled(kernel: Kernel) -> None:
    def fail(value: Any, sig: Any, state: Any) -> None:
        raise KeyError(value)

    kernel.immediate["fail"] = fail
    with pytest.raises(KeyError, match="x"):
        kernel.sig("fail", "x")


def test_a_delayed_handler_waits_for_step(kernel: Kernel) -> None:
    seen: list[int] = []
    kernel.delayed["later"] = record(seen)
    assert kernel.sig("later", 1) is None
    assert (seen, kernel.waiting) == ([], 1)
    assert kernel.step() == 1
    assert (seen, kernel.waiting) == ([1], 0)
    assert kernel.step() == 0


def test_signals_run_in_the_order_they_were_sent(kernel: Kernel) -> None:
    seen: list[Any] = []
    kernel.delayed["a"] = record(seen)
    kernel.delayed["b"] = record(seen)
    for name, value in (("a", 1), ("b", 2), ("a", 3), ("b", 4)):
        kernel.sig(name, value)
    assert kernel.step() == 4
    assert seen == [1, 2, 3, 4]


def test_what_a_step_emits_runs_in_the_next(kernel: Kernel) -> None:
    seen: list[int] = []

    def down(value: int, sig: Any, state: Any) -> None:
        seen.append(value)
        if value:
            sig("down", value - 1)

    kernel.delayed["down"] = down
    kernel.sig("down", 2)
    kernel.sig("down", 10)
    assert kernel.step() == 2
    assert seen == [2, 10]
    assert kernel.step() == 2
    assert seen == [2, 10, 1, 9]


def test_run_steps_until_nothing_waits_and_counts(kernel: Kernel) -> None:
    seen: list[int] = []

    def down(value: int, sig: Any, state: Any) -> None:
        seen.append(value)
        if value:
            sig("down", value - 1)

    kernel.delayed["down"] = down
    kernel.sig("down", 5)
    assert kernel.run() == 6
    assert seen == [5, 4, 3, 2, 1, 0]
    assert kernel.run() == 0


def test_run_stops_at_its_limit_with_the_rest_still_queued(kernel: Kernel) -> None:
    kernel.delayed["forever"] = lambda value, sig, state: sig("forever", value + 1)
    kernel.sig("forever", 0)
    with pytest.raises(Overrun, match=r"101 signals .* 1 still wait"):
        kernel.run(limit=100)
    assert kernel.waiting == 1
    assert kernel.step() == 1


def test_exactly_the_limit_is_allowed(kernel: Kernel) -> None:
    kernel.delayed["one"] = record([])
    for _ in range(100):
        kernel.sig("one")
    assert kernel.run(limit=100) == 100


def test_the_immediate_table_goes_first(kernel: Kernel) -> None:
    delayed: list[int] = []
    kernel.delayed["both"] = record(delayed)
    kernel.immediate["both"] = lambda value, sig, state: "now"
    assert kernel.sig("both", 1) == "now"
    assert (kernel.run(), delayed) == (0, [])


def test_the_tables_are_read_when_the_signal_is_sent_and_when_its_turn_comes(kernel: Kernel) -> None:
    seen: list[int] = []
    unhandled: list[Any] = []
    kernel.unhandled = lambda name, value: unhandled.append((name, value))
    kernel.sig("later", 1)  # nobody handles it yet
    kernel.delayed["later"] = record(seen)
    kernel.step()
    kernel.sig("later", 2)
    del kernel.delayed["later"]
    kernel.step()
    assert (seen, unhandled) == ([1], [("later", 2)])


def test_an_unknown_name_goes_to_unhandled_once_its_turn_comes(kernel: Kernel) -> None:
    unhandled: list[Any] = []
    kernel.unhandled = lambda name, value: unhandled.append((name, value))
    assert kernel.sig("nobody", 7) is None
    assert unhandled == []
    assert kernel.run() == 1
    assert unhandled == [("nobody", 7)]


def test_unhandled_is_logged_by_default(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    kernel.sig("nobody")
    with caplog.at_level(logging.WARNING, module.__name__):
        kernel.run()
    assert "nobody" in caplog.text


def test_a_handler_that_raises_is_reported_and_the_rest_of_the_generation_runs(kernel: Kernel) -> None:
    seen: list[int] = []
    failed: list[Any] = []

    def choke(value: int, sig: Any, state: Any) -> None:
        if value == 2:
            raise ValueError("two")
        seen.append(value)

    kernel.delayed["n"] = choke
    kernel.failed = lambda name, value, error: failed.append((name, value, str(error)))
    for value in (1, 2, 3):
        kernel.sig("n", value)
    assert kernel.step() == 3
    assert (seen, failed) == ([1, 3], [("n", 2, "two")])


def test_a_failing_unhandled_is_reported_too(kernel: Kernel) -> None:
    failed: list[Any] = []

    def unhandled(name: str, value: Any) -> None:
        raise LookupError(name)

    kernel.unhandled = unhandled
    kernel.failed = lambda name, value, error: failed.append((name, type(error)))
    kernel.sig("nobody")
    assert kernel.run() == 1
    assert failed == [("nobody", LookupError)]


def test_a_failure_is_logged_with_its_traceback_by_default(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    def fail(value: Any, sig: Any, state: Any) -> None:
        raise ZeroDivisionError("by nothing")

    kernel.delayed["fail"] = fail
    kernel.sig("fail")
    kernel.run()
    assert "'fail'" in caplog.text
    assert "by nothing" in caplog.text
    assert caplog.records[0].exc_info is not None


def test_generations_do_not_nest(kernel: Kernel) -> None:
    failed: list[Exception] = []
    kernel.delayed["nest"] = lambda value, sig, state: kernel.step()
    kernel.failed = lambda name, value, error: failed.append(error)
    kernel.sig("nest")
    kernel.run()
    assert [type(error) for error in failed] == [RuntimeError]
    assert kernel.step() == 0  # and the kernel is not stuck


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_step_loses_nothing_that_was_queued(kernel: Kernel, interruption: type[BaseException]) -> None:
    seen: list[int] = []

    def handle(value: int, sig: Any, state: Any) -> None:
        if value == 1:
            sig("n", 10)
        if value == 2 and 2 not in seen:
            seen.append(2)
            raise interruption
        seen.append(value)

    kernel.delayed["n"] = handle
    for value in (1, 2, 3):
        kernel.sig("n", value)
    with pytest.raises(interruption):
        kernel.step()
    assert (seen, kernel.waiting) == ([1, 2], 2)
    kernel.run()
    assert seen == [1, 2, 3, 10]  # what was left of the generation goes before what it emitted


def test_the_hook_sees_every_signal(kernel: Kernel) -> None:
    events: list[Any] = []
    kernel.hook = lambda event, name, value: events.append((event, name, value))
    kernel.failed = lambda name, value, error: None
    kernel.unhandled = lambda name, value: None
    kernel.immediate["now"] = lambda value, sig, state: None
    kernel.delayed["later"] = lambda value, sig, state: None
    kernel.delayed["fail"] = lambda value, sig, state: 1 / 0
    for name in ("now", "later", "fail", "nobody"):
        kernel.sig(name, name.upper())
    kernel.run()
    assert events == [
        ("immediate", "now", "NOW"),
        ("queued", "later", "LATER"),
        ("queued", "fail", "FAIL"),
        ("queued", "nobody", "NOBODY"),
        ("delayed", "later", "LATER"),
        ("delayed", "fail", "FAIL"),
        ("failed", "fail", "FAIL"),
        ("unhandled", "nobody", "NOBODY"),
    ]


def test_an_immediate_handler_may_queue_and_a_delayed_one_may_call(kernel: Kernel) -> None:
    seen: list[Any] = []
    kernel.immediate["add"] = lambda value, sig, state: value + 1
    kernel.immediate["plan"] = lambda value, sig, state: sig("do", value)
    kernel.delayed["do"] = lambda value, sig, state: seen.append(sig("add", value))
    assert kernel.sig("plan", 1) is None
    assert kernel.waiting == 1
    kernel.run()
    assert seen == [2]


def test_a_long_chain_of_signals_does_not_recurse(kernel: Kernel) -> None:
    kernel.delayed["down"] = lambda value, sig, state: sig("down", value - 1) if value else None
    kernel.sig("down", 20_000)
    assert kernel.run() == 20_001


def test_the_kernel_imports_nothing_from_the_package() -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert all(not isinstance(node, ast.ImportFrom) or node.level == 0 for node in ast.walk(tree))
    assert imported == {"logging", "collections", "collections.abc", "typing"}
