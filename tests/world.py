"""Real exchanges for a test: made here, linked by a real transport, and closed with a look at what is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any, TypeVar

from exchange_grpc import Exchange, Peer

SOON = 10.0  # seconds that nothing here should ever take

T = TypeVar("T")


class World:
    """The exchanges of one test. `link(a, b)` makes a dial b."""

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self._exchanges: dict[str, Exchange] = {}
        self._urls: dict[str, str] = {}

    def exchange(self, id: str, **options: Any) -> Exchange:
        made = self._exchanges[id] = Exchange(id, **options)
        return made

    async def url(self, exchange: Exchange) -> str:
        """Where it listens, from now on."""
        if exchange.id not in self._urls:
            self._urls[exchange.id] = await exchange.listen(f"{self.transport}://127.0.0.1:0")
        return self._urls[exchange.id]

    async def link(self, one: Exchange, other: Exchange) -> Peer:
        peer = await one.connect(other if self.transport == "local" else await self.url(other))
        await until(lambda: any(peer.id == one.id for peer in other.peers))
        return peer

    async def chain(self, *exchanges: Exchange) -> None:
        """Each dials the one after it."""
        for one, other in pairwise(exchanges):
            await self.link(one, other)

    async def close(self) -> None:
        await soon(asyncio.gather(*(exchange.close() for exchange in self._exchanges.values())))


@asynccontextmanager
async def world_of(transport: str) -> AsyncIterator[World]:
    """A world that ends with nothing left of it."""
    before = asyncio.all_tasks()
    world = World(transport)
    try:
        yield world
    finally:
        await world.close()
    left: set[Any] = set()

    def nothing_left() -> bool:
        nonlocal left
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        left = {task for task in left if "AioServer" not in repr(task)}  # gRPC's own
        return not left

    try:
        await until(nothing_left)
    except AssertionError:
        raise AssertionError(f"tasks are left: {left}") from None


async def until(true: Callable[[], Any], seconds: float = 5.0) -> None:
    """Wait for what no event tells of."""
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"it did not become true within {seconds:g} s")
        await asyncio.sleep(0.005)


async def soon(awaitable: Awaitable[T]) -> T:
    return await asyncio.wait_for(awaitable, SOON)
