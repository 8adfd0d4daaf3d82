"""Running an exchange as the main thing of a process: until it is told to stop, or a peer wants none of it."""

import asyncio
import signal
from collections.abc import Iterable
from typing import Any, Protocol

from .errors import AddressError, LinkError


class Peer(Protocol):
    """A link that was dialled."""

    @property
    def id(self) -> str:
        """Whose it is."""

    async def wait_closed(self) -> None:
        """Wait until it is gone."""


class Exchange(Protocol):
    """What is run."""

    async def listen(self, url: str) -> str:
        """See `exchange.Exchange`."""

    async def connect(self, target: str) -> Peer:
        """See `exchange.Exchange`."""

    async def close(self) -> None:
        """See `exchange.Exchange`."""


def run(exchange: Exchange, connect: Iterable[str], listen: Iterable[str]) -> None:
    """Listen, connect, and go on until SIGTERM, Ctrl-C, or a peer that was dialled wants us to stay away.

    Raises SystemExit with a sentence for people if it cannot begin, or ends for the loss of a link.
    """
    problem = asyncio.run(_run(exchange, connect, listen))
    if problem:
        raise SystemExit(problem)


async def _run(exchange: Exchange, connect: Iterable[str], listen: Iterable[str]) -> str:
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, told.set)
    try:
        for url in listen:
            await exchange.listen(url)
        peers = [await exchange.connect(url) for url in connect]
        ends: dict[asyncio.Task[Any], Peer] = {loop.create_task(peer.wait_closed()): peer for peer in peers}
        waits = {loop.create_task(told.wait()), *ends}
        done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in rest:
            wait.cancel()
        lost = [ends[end].id for end in done if end in ends]
        return "" if told.is_set() else f"the link to {' and '.join(lost)} is over"
    except (AddressError, LinkError) as error:
        return str(error)
    finally:
        for number in numbers:  # a second signal has its usual effect: it ends us
            loop.remove_signal_handler(number)
        await exchange.close()
