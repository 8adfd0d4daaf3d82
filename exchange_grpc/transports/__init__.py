"""Transports: what moves frames between two exchanges. Thin: each knows nothing of routing.

To add one for a scheme of your own, write a `Transport`, an object with `dial` and `listen` for the
scheme, and `register` it:

    register("pigeon", PigeonScheme())
    await app.connect("pigeon://loft")

A frame is bytes, one write, complete and in order. What a transport must hold to is tested by
`tests/test_transports.py`, one suite for all of them.
"""

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from ..errors import AddressError
from ..message import Message, Seen

Receive = Callable[[bytes], Awaitable[None]]
End = Callable[[Exception | None], None]


class Transport(Protocol):
    """One connection, in frames.

    One that came in may say in `address` from which network address.
    """

    async def connect(self) -> None:
        """Establish it. Raises LinkError. Nothing is received before this returns."""

    def on_receive(self, receive: Receive, end: End) -> None:
        """Set, before `connect`, who takes what comes in.

        Frames are awaited one after another: while `receive` has not returned, no more are read.
        `end(None)` is called once when the other side will send no more but may still read,
        `end(error)` once when the connection is gone.
        """

    async def send(self, frame: bytes) -> None:
        """Write one frame; returns when more can be written. Raises LinkError. Not called concurrently."""

    async def disconnect(self) -> None:
        """Close it, once what was sent has left, and leave nothing behind. May be called at any time and again."""


class Listener(Protocol):
    """A place where connections come in."""

    @property
    def url(self) -> str:
        """Where it listens, with the port it was given."""

    async def stopping(self) -> None:
        """Say to whoever looks that it will close soon, and end what would never end by itself."""

    async def close(self) -> None:
        """Take no more connections, and end those that are left."""


class Replies(Protocol):
    """The replies to a request to many."""

    def __aiter__(self) -> AsyncIterator[Message]:
        """One after another."""

    async def aclose(self) -> None:
        """Take no more."""


class Host(Protocol):
    """What a listener may ask of the exchange that it listens for."""

    @property
    def id(self) -> str:
        """The exchange's id."""

    async def accept(self, transport: Transport) -> None:
        """Run a connection that came in, until it is over. The transport is connected already."""

    async def relay_send(self, message: Message) -> str:
        """Emit, for a caller who is no exchange, a send or a publication; returns its id."""

    async def relay_request(self, message: Message, timeout: float | None) -> Message:
        """Emit a request for such a caller and wait for its reply, which may be an error."""

    def relay_many(self, message: Message, timeout: float | None) -> Replies:
        """Emit a request to many for such a caller; its replies."""

    def watch(self, pattern: str, watcher: Callable[[Message, Seen], None]) -> Callable[[], None]:
        """Call `watcher` at once, on the loop, for all that happens here and fits. Returns what ends it."""


class Scheme(Protocol):
    """A kind of transport: what stands before `://` in a URL."""

    def dial(self, url: str) -> Transport:
        """A transport to `url`, not connected yet. Raises AddressError."""

    async def listen(self, url: str, host: Host) -> Listener:
        """Take connections at `url`. Raises AddressError."""


_schemes: dict[str, Scheme] = {}
_BUILT_IN = {"grpc": ".grpc", "unix": ".grpc", "ws": ".websocket", "wss": ".websocket"}  # imported when first used


def register(scheme: str, implementation: Scheme) -> None:
    """Use `implementation` for URLs that begin with `scheme` and a colon."""
    _schemes[scheme] = implementation


def scheme_of(url: str) -> Scheme:
    """The transport for `url`. Raises AddressError."""
    name, colon, _ = url.partition(":")
    if name not in _schemes and name in _BUILT_IN:
        importlib.import_module(_BUILT_IN[name], __name__)
    if not colon or name not in _schemes:
        known = ", ".join(sorted({*_schemes, *_BUILT_IN}))
        raise AddressError(f"no transport takes {url!r}: a URL begins with one of {known}")
    return _schemes[name]
