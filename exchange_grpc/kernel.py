"""The signal kernel: a queue and a dispatcher, and nothing else.

Law: this module imports nothing from the package and is frozen. Features are added as handlers
(state in `reactive.py`, routing in `routing.py`), never as changes here.

A *signal* is a name and a value. A name has at most one handler in each of two tables:

* `immediate`: runs at once, inside `sig`, and its result is what `sig` returns. What it raises
  reaches whoever signalled, as from a function call.
* `delayed`: runs later, by `step`, one generation of the queue at a time: what a step emits runs
  in the next step. What it raises goes to `failed`, and the rest of the generation still runs.

Where a name stands in both tables the immediate handler takes the signal. A queued signal whose
name stands in neither when its turn comes goes to `unhandled`; nothing ever leaves the loop.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

Sig = Callable[..., Any]  # sig(name, value=None)
Handler = Callable[[Any, Sig, Any], Any]  # handler(value, sig, state)

RUN_LIMIT = 1_000_000  # signals in one `run`: far above any real cascade, seconds before it is told

log = logging.getLogger(__name__)


class Overrun(RuntimeError):
    """`run` handled more signals than its limit: handlers that keep signalling each other."""


class Kernel:
    """A queue of signals, two tables of handlers, and the loop that brings them together.

    `state` is handed to every handler as it is. The two tables are public: adding a name to one
    adds the behaviour, deleting it takes the behaviour away. `unhandled(name, value)`,
    `failed(name, value, error)` and `hook(event, name, value)` may be replaced at any time; `hook`
    sees every signal as `"queued"`, `"immediate"`, `"delayed"`, `"unhandled"` or `"failed"`.
    """

    __slots__ = ("_queue", "_stepping", "delayed", "failed", "hook", "immediate", "state", "unhandled")

    def __init__(self, state: Any = None) -> None:
        self.state = state
        self.immediate: dict[str, Handler] = {}
        self.delayed: dict[str, Handler] = {}
        self.unhandled: Callable[[str, Any], None] = log_unhandled
        self.failed: Callable[[str, Any, Exception], None] = log_failed
        self.hook: Callable[[str, str, Any], None] | None = None
        self._queue: deque[tuple[str, Any]] = deque()
        self._stepping = False

    @property
    def waiting(self) -> int:
        """The number of signals that wait. (Not `len`: an idle kernel would count as false.)"""
        return len(self._queue)

    def sig(self, name: str, value: Any = None) -> Any:
        """Signal `name`: the result of its immediate handler, or None once it is queued."""
        handler = self.immediate.get(name)
        if self.hook is not None:
            self.hook("queued" if handler is None else "immediate", name, value)
        if handler is not None:
            return handler(value, self.sig, self.state)
        self._queue.append((name, value))
        return None

    def step(self) -> int:
        """Run the generation that waits now; the number of signals it had.

        Raises RuntimeError when called from inside a delayed handler: generations do not nest.
        """
        if self._stepping:
            raise RuntimeError("step() was called by a handler that step() is running")
        generation, self._queue = self._queue, deque()
        count = len(generation)
        sig, state, delayed, hook = self.sig, self.state, self.delayed, self.hook
        self._stepping = True
        try:
            while generation:
                name, value = generation.popleft()
                try:
                    handler = delayed.get(name)
                    if hook is not None:
                        hook("unhandled" if handler is None else "delayed", name, value)
                    if handler is None:
                        self.unhandled(name, value)
                    else:
                        handler(value, sig, state)
                except Exception as error:
                    if hook is not None:
                        hook("failed", name, value)
                    self.failed(name, value, error)
        finally:
            self._stepping = False
            if generation:  # interrupted (KeyboardInterrupt and its like): nothing queued is lost
                self._queue.extendleft(reversed(generation))
        return count

    def run(self, limit: int = RUN_LIMIT) -> int:
        """Step until nothing waits; the number of signals handled.

        Raises Overrun once more than `limit` signals were handled, with the rest still queued.
        """
        handled = 0
        while self._queue:
            handled += self.step()
            if handled > limit:
                raise Overrun(f"{handled} signals were handled and {self.waiting} still wait: a circle of handlers?")
        return handled


def log_unhandled(name: str, value: Any) -> None:
    """The default place for names that nobody handles."""
    log.warning("no handler for signal %r", name)


def log_failed(name: str, value: Any, error: Exception) -> None:
    """The default report of a delayed handler that raised."""
    log.error("the handler of signal %r failed", name, exc_info=error)
