"""The state of another exchange: what it exports can be read and watched, what it accepts can be set.

Over the public calls `request` and `request_many` alone, so any exchange of the mesh can be asked.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NamedTuple

from .errors import Unavailable
from .message import Message
from .patterns import SET

_FOR_EVER = float("inf")


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
        return self._read(await self._request("exchange.state.get", {"name": name}, to=self.exchange))

    async def set(self, name: str, value: Any, *, expected: int | None = None) -> StateValue:
        """Set an accepted name, if its revision is `expected` or none is given; as it is then.

        Raises Refused (`NOT_ACCEPTED`, `REVISION`), or a RequestError if it cannot be asked.
        """
        question = {"name": name, "value": value}
        if expected is not None:
            question["expected_revision"] = expected
        return self._read(await self._request(SET, question, to=self.exchange))

    async def watch(self, *names: str) -> AsyncIterator[StateValue]:
        """The exported names (all, if none is given) as they are, then every change in order, none left out.

        Goes on until it is left; use `contextlib.aclosing` to leave it early. Raises Refused (`NOT_EXPORTED`;
        `SLOW` if it is taken too slowly), Unavailable when the way to the exchange is lost.
        """
        replies = self._request_many("exchange.state.watch", {"names": names}, to=self.exchange, timeout=_FOR_EVER)
        async with aclosing(replies):  # type: ignore[type-var]  # it has `aclose`
            async for reply in replies:
                if reply.error is not None:
                    raise reply.error
                answer = reply.value
                for state in answer["states"]:
                    yield self._state(state, snapshot=answer["snapshot"])
        raise Unavailable(f"the watch on {self.exchange} ended", at=self.exchange)

    def _read(self, answer: Any) -> StateValue:
        return self._state(answer["state"], snapshot=True)

    def _state(self, state: dict[str, Any], *, snapshot: bool) -> StateValue:
        known = {key: value for key, value in state.items() if key in StateValue._fields}  # later ones may say more
        return StateValue(exchange=self.exchange, **known, snapshot=snapshot)
