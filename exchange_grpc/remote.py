"""The state of another exchange: what it exports can be read and watched, what it accepts can be set.

Over the public calls `request` and `request_many` alone, so any exchange of the mesh can be asked.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from itertools import groupby
from math import inf
from typing import Any, NamedTuple

from .errors import RequestError, Unavailable
from .message import Message
from .patterns import SET


class StateValue(NamedTuple):
    """One state name of an exchange.

    `revision` counts the changes of the name since the exchange started, and compares only within one
    `epoch`. `cause` is the id of the message that caused the last change, or empty; `transaction` its number:
    what has the same number changed at once. `snapshot` says that it was not told because it changed.
    """

    exchange: str
    name: str
    value: Any
    revision: int
    epoch: int
    cause: str
    transaction: int
    snapshot: bool = False


_TOLD = StateValue._fields[1:-1]  # by the exchange itself


class RemoteState:
    """What `exchange` shares of its state. Made by `Exchange.state_of` and `Peer.state`."""

    def __init__(
        self, exchange: str, request: Callable[..., Awaitable[Any]], request_many: Callable[..., AsyncIterator[Message]]
    ) -> None:
        self.exchange = exchange
        self._request = request
        self._request_many = request_many

    def __repr__(self) -> str:
        return f"<RemoteState of {self.exchange}>"

    async def get(self, name: str) -> StateValue:
        """The value of an exported name. Raises Refused (`NOT_EXPORTED`), or a RequestError if it cannot be asked."""
        answer = await self._request("exchange.state.get", {"name": name}, to=self.exchange)
        return self._state(self._read(answer, "state"), snapshot=True)

    async def set(self, name: str, value: Any, *, expected: int | None = None) -> StateValue:
        """Set an accepted name, if its revision is `expected` or none is given; as it is then.

        Raises Refused (`NOT_ACCEPTED`, `REVISION`), or a RequestError if it cannot be asked.
        """
        question = {"name": name, "value": value}
        if expected is not None:
            question["expected_revision"] = expected
        answer = await self._request(SET, question, to=self.exchange)
        return self._state(self._read(answer, "state"), snapshot=True)

    async def watch(self, *names: str) -> AsyncGenerator[StateValue, None]:
        """The exported names (all, if none is given) as they are, then every change in order, none left out.

        Goes on until it is left; use `contextlib.aclosing` to leave it early. Raises Refused (`NOT_EXPORTED`;
        `SLOW` if it is taken too slowly), Unavailable when the way to the exchange is lost.
        """
        async with aclosing(self.transactions(*names)) as transactions:
            async for states in transactions:
                for state in states:
                    yield state

    async def transactions(self, *names: str) -> AsyncGenerator[list[StateValue], None]:
        """As `watch`, but what changed at once comes at once: first the snapshot, then each transaction."""
        replies = self._request_many("exchange.state.watch", {"names": names}, to=self.exchange, timeout=inf)
        async with aclosing(replies):  # type: ignore[type-var]  # it has `aclose`
            async for reply in replies:
                if reply.error is not None:
                    raise reply.error
                snapshot, states = self._read(reply.value, "snapshot"), self._read(reply.value, "states")
                told = [self._state(state, snapshot=bool(snapshot)) for state in states]
                if snapshot:
                    yield told
                    continue
                for _, together in groupby(told, lambda state: state.transaction):
                    yield list(together)
        raise Unavailable(f"the watch on {self.exchange} ended", at=self.exchange)

    def _read(self, answer: Any, key: str) -> Any:
        if not isinstance(answer, dict) or key not in answer:
            raise self._strange()
        return answer[key]

    def _state(self, state: Any, *, snapshot: bool) -> StateValue:
        try:
            told = {key: state[key] for key in _TOLD}  # a later version may say more
        except (KeyError, TypeError):
            raise self._strange() from None
        return StateValue(exchange=self.exchange, **told, snapshot=snapshot)

    def _strange(self) -> RequestError:
        return RequestError(f"what {self.exchange} answers is no state", reason="ANSWER", at=self.exchange)
