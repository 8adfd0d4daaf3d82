"""The exchange: handles messages, emits them, routes them. The public face, and the only loop.

Everything between bytes and handlers happens on one asyncio loop, the one that the exchange is first
used in:

    bytes -> Link -> Session -> kernel queue -> Router -> Handlers, or Session -> Link -> bytes

This module owns the clock and the timer, and answers the signals of `routing.py`; the links are in `links.py`,
what is said to those who ask about this exchange in `system.py`.
"""

import asyncio
import logging
import math
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from .changes import Changes
from .emitter import Emitter
from .errors import (
    AddressError,
    Code,
    ExchangeError,
    HandlerFailed,
    InvalidMessage,
    LinkError,
    Refused,
    RequestError,
    StateError,
    Unavailable,
    UnknownName,
)
from .frames import Answer, Introduction, Query, Reject
from .handlers import Handlers, Invocation, Run, current
from .kernel import Kernel
from .ledger import Ledger, Span
from .limits import MESSAGE_SECONDS, REQUEST_SECONDS, RETRY_AFTER_MS, STOP_SECONDS, Limits
from .links import Links
from .message import NO_HEADERS, Context, Kind, Message, Origin, Outcome, Seen, encode_value
from .mirror import Mirror
from .observers import LOG_EVENT, LogEvents, Observers
from .outbox import WAIT, Outbox
from .patterns import RESERVED, check_id, check_name, is_pattern
from .peer import Phase, Session
from .reactive import Transaction
from .remote import RemoteState
from .replies import Replies
from .routing import HERE, Arrival, Failure, Router
from .running import run
from .system import System
from .tasks import State
from .transports import Listener, Transport, scheme_of
from .transports.link import Link
from .transports.local import LocalTransport

F = TypeVar("F", bound=Callable[..., Any])
Remove = Callable[[], None]
STATE_SIGNALS = ("set", "get", "run", "check circle")  # what `sig` reaches of the kernel itself

log = logging.getLogger(__name__)
_package_log = logging.getLogger(__package__)


class Peer:
    """Another exchange, at the other end of a link. Made by `Exchange.connect` or by whoever connects to us."""

    def __init__(self, exchange: "Exchange", link: Link, introduction: Introduction) -> None:
        self._exchange = exchange
        self._link = link
        self._introduction = introduction

    def __repr__(self) -> str:
        state = "" if self.connected else " (closed)" if self._link.over.is_set() else " (away)"
        return f"<Peer {self.id}{state}>"

    @property
    def id(self) -> str:
        """Its id. Where a link is dialled again, somebody else may answer."""
        return (self._link.session.peer or self._introduction).exchange

    @property
    def agent(self) -> str:
        """Its language and the version of its library."""
        return (self._link.session.peer or self._introduction).agent

    @property
    def connected(self) -> bool:
        """The link is open now: neither broken nor gone."""
        return not self.closed and self._link.session.phase is Phase.OPEN

    @property
    def closed(self) -> bool:
        """The link is gone, and nothing waits for it; one that was dialled may come back: see `wait_closed`."""
        return self._exchange._links.peers.get(self.id) is not self

    @property
    def handles(self) -> frozenset[str]:
        """The names that it declares to handle now."""
        link = self._exchange._router.links.get(self.id)
        return frozenset(link.handles) if link is not None and not self.closed else frozenset()

    async def send(self, name: str, value: Any = None, *, to: str = "", headers: Mapping[str, str] = NO_HEADERS) -> str:
        """As `Exchange.send`, over this link first; the peer handles it or passes it on."""
        return await self._exchange._emitter.send(Kind.SEND, name, value, to, headers, via=self.id)

    async def request(
        self,
        name: str,
        value: Any = None,
        *,
        to: str = "",
        timeout: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Any:
        """As `Exchange.request`, over this link first; the peer handles it or passes it on."""
        return (await self._exchange._emitter.ask(name, value, to, timeout, headers, via=self.id)).value

    def request_many(
        self,
        name: str,
        value: Any = None,
        *,
        to: str = "",
        max: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Replies:
        """As `Exchange.request_many`, to this peer and whoever is behind it."""
        return self._exchange._emitter.ask_many(name, value, to, max, timeout, headers, via=self.id)

    @property
    def state(self) -> RemoteState:
        """What it shares of its state."""
        return self._exchange.state_of(self.id)

    def on(self, name: str, function: F | None = None) -> Any:
        """As `Exchange.on` with an exact name, for what comes over this link only."""
        if function is None:
            return lambda f: (self.on(name, f), f)[1]
        return self._exchange._handlers.listen(name, function, self.id)

    async def wait_closed(self) -> None:
        """Wait until the link is gone for good, and not dialled again either."""
        await self._link.over.wait()

    async def close(self) -> None:
        """Say goodbye, once what is queued has left, and end the link for good."""
        await self._link.close(stay_away=True)


class Exchange:
    """A process, or a part of one, that handles, emits and routes messages.

    `id` names it in its mesh (1 to 64 of `A-Z a-z 0-9 _ -`; made up if not given). `state` holds its
    reactive values: plain ones and callables, see `State`. `handlers` maps names to functions, see
    `handle`. `exports` are the names of the state that peers may read and watch, `accepts` those of its
    plain values that they may set; by default none. `relay` says whether it passes on messages of others:
    by default it does from when it listens, or another exchange of the process connects to it. `balance`
    chooses among several that handle a name: `round_robin`, `least_pending`, `random` or `sticky:HEADER`.
    `when_full` says what is done with what comes for a peer that reads too slowly: `wait` (whoever sends waits),
    `drop_oldest`, `drop_newest` or `disconnect`. `limits` are this exchange's own, see `limits.Limits`.

    Used within one asyncio loop; close it with `await app.close()` or `async with app:`.
    """

    def __init__(
        self,
        id: str | None = None,
        *,
        state: Mapping[str, Any] | None = None,
        handlers: Mapping[str, Callable[..., Any]] | None = None,
        exports: Iterable[str] = (),
        accepts: Iterable[str] = (),
        relay: bool | None = None,
        balance: str = "round_robin",
        when_full: str = WAIT,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._when_full = Outbox(when_full).policy
        self.id = check_id(id) if id is not None else f"exchange-{secrets.token_hex(4)}"
        self.epoch = time.time_ns() // 1_000
        self.kernel = Kernel()
        self.kernel.unhandled = self._unrouted
        self.kernel.failed = self._route_failed
        self._now = time.monotonic
        self._origin = Origin(self.id, self.epoch, time.time() - time.monotonic())
        self._ledger = Ledger(self.id)
        self._router = Router(self._origin, self.kernel, self._ledger, balance=balance, draw=random.randrange)
        self._handlers = Handlers(
            self.id, self._now, self._offer, self._subscribe, self._reply_more, _held, _released
        )  # fmt: skip
        self._observers = Observers(self._handlers.threads, self._observing)
        self._observing()
        self._relay = relay
        self._router.relay = bool(relay)
        self._accepting: set[asyncio.Task[None]] = set()
        self._listeners: list[Listener] = []
        self._mirrors: set[Mirror] = set()
        self._log: LogEvents | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0  # not every loop has timers that tell
        self._running = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self.kernel.immediate.update(
            {
                "deliver": self._deliver,
                "transmit": self._transmit,
                "control": self._control,
                "announce": self._announce,
                "resolve": self._resolve,
                "dispatched": self._dispatched,
                "withdraw": self._withdraw,
                "message.unhandled": self._unhandled,
                "observed": self._observed,
            }
        )
        self.state = State(dict(state or {}), kernel=self.kernel, cause=_current_id)
        self.kernel.state = self.state
        if isinstance(exports, str) or isinstance(accepts, str):
            raise TypeError('exports and accepts are lists of names: exports=["total"]')
        exported, accepted = frozenset(exports), frozenset(accepts)
        self._check_shared(exported, accepted)
        self._changes = Changes(self.state, self.epoch)
        self.state.on_commit(self._committed)
        self._links: Links[Link, Peer] = Links(
            self.id,
            self.epoch,
            tuple(sorted(exported)),
            kernel=self.kernel,
            router=self._router,
            now=self._now,
            linked=self._linked,
            tell=self._told_of_a_link,
            run=self._run,
            per_address=self.limits.links_per_address,
        )
        self._emitter = Emitter(self._origin, self._links, now=self._now, enter=self._enter, signal=self._signal)
        self._system = System(
            id=self.id,
            exports=exported,
            accepts=accepted,
            state=self.state,
            changes=self._changes,
            ledger=self._ledger,
            router=self._router,
            handlers=self._handlers,
            observers=self._observers,
            links=self._links,
            now=self._now,
            ask=self.request,
            ask_many=self.request_many,
        )
        self._system.install()
        self._ledger.bad_end = self._ended_badly
        for name, function in (handlers or {}).items():
            self.handle(name, function)

    def __repr__(self) -> str:
        return f"<Exchange {self.id}, {len(self._links.peers)} peers>"

    def _check_shared(self, exports: frozenset[str], accepts: frozenset[str]) -> None:
        for name in sorted(exports | accepts):
            check_name(name)
            if name not in self.state:
                raise UnknownName(name)
        if computed := sorted(name for name in accepts if self.state.is_computed(name)):
            raise StateError(f"{computed[0]!r} is a computed value and cannot be set, so it cannot be accepted")

    # ------------------------------------------------------------------------------------- handle and listen

    def handle(self, name: str, function: F | None = None) -> Any:
        """Answer `name` with `function(msg, sig, state)`, or decorate the function that does.

        The function may take fewer arguments, and may be async or plain (it then runs in a thread). What
        it returns answers a request, unless it has answered already by `sig`. What it raises becomes an
        error of fixed text; raise `Refused` to say more. One function answers a name.

        Given a function, returns what takes it away again. Raises InvalidMessage for a bad name,
        ValueError if the name has a handler, TypeError for what cannot be called so.
        """
        if function is None:
            return lambda f: (self.handle(name, f), f)[1]
        return self._handlers.handle(name, function)

    def on(self, name: str, function: F | None = None) -> Any:
        """Run `function(msg)` for messages of this name, beside their handler; claims the name.

        With a pattern it is `observe`, and claims nothing. `message.unhandled` is this exchange's own
        event. Returns what takes it away again; without a function, a decorator.
        """
        if function is None:
            return lambda f: (self.on(name, f), f)[1]
        return self.observe(name, function) if is_pattern(name) else self._handlers.listen(name, function)

    def observe(self, pattern: str, function: Callable[..., Any]) -> Remove:
        """Call `function(msg, seen)` for all that is received, forwarded, emitted or set here and fits.

        It claims nothing. `*` stands for one token, `**` for any number, `*` alone for everything. An
        observer that is too slow misses messages. Returns what takes it away again.
        """
        return self._with_log(self._observers.observe(pattern, function))

    def subscribe(self, pattern: str, function: F | None = None) -> Any:
        """Run `function(msg)` for every publication, anywhere in the mesh, whose name fits `pattern`.

        Returns what takes it away again; without a function, a decorator.
        """
        if function is None:
            return lambda f: (self.subscribe(pattern, f), f)[1]
        return self._handlers.subscribe(pattern, function)

    # -------------------------------------------------------------------------------------------------- emit

    async def send(self, name: str, value: Any = None, *, to: str = "", headers: Mapping[str, str] = NO_HEADERS) -> str:
        """Send a message to one exchange that handles `name` (here, next to here, or found by asking), or to `to`.

        `value` is what JSON can say, or bytes. Returns the message's id once it was taken here or has
        been put on its way; waits while the way is congested. Raises Unhandled if nobody takes it. What goes
        wrong further on comes back as the event `message.unhandled`. Raises InvalidMessage.
        """
        return await self._emitter.send(Kind.SEND, name, value, to, headers)

    async def request(
        self,
        name: str,
        value: Any = None,
        *,
        to: str = "",
        timeout: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Any:
        """Send a request to one exchange that handles `name`, or to `to`, and return the value of the reply.

        `timeout` is in seconds: 30, or what is left to the request being handled, if none is given.
        Cancelling the task that waits cancels the handler. Raises a RequestError if it ends without an
        answer (Unhandled at once), InvalidMessage for what cannot be sent.
        """
        return (await self._emitter.ask(name, value, to, timeout, headers)).value

    def request_many(
        self,
        name: str,
        value: Any = None,
        *,
        to: str = "",
        max: int | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> Replies:
        """Send a request to every exchange within reach that handles `name`, or to `to`: `async for` gives the replies.

        Each may reply many times, as a handler does that is an async generator. `max` is how many replies are
        wanted, `timeout` the seconds until no more are waited for: 30, or what is left to the request being handled,
        if none is given. The iteration raises Unhandled if nobody handles the name, InvalidMessage for what
        cannot be sent. See `Replies`.
        """
        return self._emitter.ask_many(name, value, to, max, timeout, headers)

    def state_of(self, exchange: str) -> RemoteState:
        """What another exchange, anywhere in the mesh, shares of its state."""
        return RemoteState(check_id(exchange), self.request, self.request_many)

    async def mirror(self, exchange: str, names: Mapping[str, str]) -> Remove:
        """Let plain values of the state follow exported ones of another exchange: `mirror("stock", {"ropes": "left"})`.

        Returns once they are as they are there, a function that ends it. Afterwards each change there is a
        transaction here, with the cause that it has there. They stay as they are while the other is out of reach,
        and then follow again. Raises UnknownName and StateError for names that cannot be set here, Refused
        (`NOT_EXPORTED`) for those that cannot be watched there, other RequestErrors if it cannot be asked.
        """
        self._enter()
        for name in names.values():
            if self.state.is_computed(name):
                raise StateError(f"{name!r} is a computed value and cannot be set, so it cannot follow another")
        mirror = Mirror(self.state_of(exchange), self.state, names)
        self._mirrors.add(mirror)
        try:
            await mirror.start()
        except BaseException:
            self._mirrors.discard(mirror)
            raise

        def remove() -> None:
            self._mirrors.discard(mirror)
            mirror.stop()

        return remove

    async def trace(self, id: str) -> dict[str, Any]:
        """All that is known of the message `id` and of those with the same root, here and where they have been.

        The shape is that of `exchange.trace`. Raises Refused (`NOT_FOUND`) if nobody knows it.
        """
        self._enter()
        return await self._system.trace(id, self._now() + REQUEST_SECONDS)

    async def why(self, key: str) -> dict[str, Any]:
        """Why a name of the state has its value, or what became of the message with this id.

        The shape is that of `exchange.why`. Raises Refused (`NOT_FOUND`) if there is neither.
        """
        self._enter()
        deadline = self._now() + REQUEST_SECONDS
        if key in self.state:
            return await self._system.why_value(key, deadline, None)
        return await self._system.why_message(key, deadline)

    async def publish(self, name: str, value: Any = None, *, headers: Mapping[str, str] = NO_HEADERS) -> str:
        """Send a message to every exchange of the mesh that subscribes to `name`, once each. Returns its id."""
        return await self._emitter.send(Kind.PUBLISH, name, value, "", headers)

    async def broadcast(self, name: str, value: Any = None, *, headers: Mapping[str, str] = NO_HEADERS) -> str:
        """Send a message to every direct peer, one hop, interested or not. Returns its id."""
        return await self._emitter.send(Kind.BROADCAST, name, value, "", headers)

    def watch(self, pattern: str, watcher: Callable[[Message, Seen], None]) -> Remove:
        """See `transports.Host`."""
        return self._with_log(self._observers.watch(pattern, watcher))

    async def relay_send(self, message: Message) -> str:
        """See `transports.Host`."""
        return await self._emitter.relay_send(message)

    async def relay_request(self, message: Message, timeout: float | None) -> Message:
        """See `transports.Host`."""
        return await self._emitter.relay_request(message, timeout)

    def relay_many(self, message: Message, timeout: float | None) -> Replies:
        """See `transports.Host`."""
        return self._emitter.relay_many(message, timeout)

    # ---------------------------------------------------------------------------------------- inside handlers

    def _sig(self, name: str, value: Any = None) -> Any:
        """What handlers get as `sig`: emit with the message handled as cause."""
        invocation = current.get()
        if invocation is None:
            raise ExchangeError("sig() is for handlers: use send() outside of them")
        if threading.get_ident() == self._thread:
            return self._signal_from(invocation, name, value)
        done: Future[Any] = Future()

        def call() -> None:
            try:
                done.set_result(self._signal_from(invocation, name, value))
            except Exception as error:
                done.set_exception(error)

        assert self._loop is not None
        self._loop.call_soon_threadsafe(call, context=copy_context())
        return done.result()

    def _signal_from(self, invocation: Invocation, name: str, value: Any) -> Any:
        request = invocation.message
        if name not in self._router.offers and name in STATE_SIGNALS:
            return self.kernel.sig(name, value)
        here = name in self._router.offers
        if not here and request.kind is Kind.REQUEST and invocation.running and not invocation.answered:
            check_name(name)
            self._answer(invocation, name, value, last=not request.many)
        else:
            to = "" if here else request.from_
            self._emitter.route(self._emitter.compose(Kind.SEND, name, value, to, NO_HEADERS, MESSAGE_SECONDS))
        return None

    def _answer(
        self,
        invocation: Invocation,
        name: str,
        value: Any,
        error: RequestError | None = None,
        *,
        last: bool = True,
        lost: tuple[str, ...] | None = None,
    ) -> None:
        """Reply to the request of this invocation. Raises InvalidMessage if the value cannot be sent."""
        request = invocation.message
        payload, content_type = encode_value(value)
        invocation.answered = last
        reply = self._origin.make(
            Kind.REPLY, name, invocation.context, self._now(), to=request.from_,
            payload=payload, content_type=content_type, reply_to=request.id, last=last, error=error, lost=lost,
        )  # fmt: skip
        self._emitter.route(reply)

    async def _reply_more(self, invocation: Invocation, value: Any) -> None:
        """One of many replies; returns when there is room for the next."""
        self._answer(invocation, invocation.message.name, value, last=False)
        line = self._links.by_peer.get(invocation.link or "")
        replies = self._emitter.replies_to(invocation.message.id)
        if line is not None and line.session.full:
            await line.room()
        elif replies is not None:
            await replies.room()
        await asyncio.sleep(0)  # a generator that never waits must let others run

    def _ended(self, run: Run) -> None:
        """A handler has ended: record it, and answer what it left unanswered."""
        message, error = run.message, run.error
        if message.kind is Kind.REQUEST and not run.answered:
            try:
                # To many, who returned nothing has said all by now.
                silent = message.many and error is None and run.result is None
                value = None if error else run.result
                self._answer(run, message.name, value, error, lost=() if silent else None)
            except InvalidMessage as problem:
                log.error("the answer of %s to %s cannot be sent: %s", run.by, message.id, problem)
                text = f"the answer of the handler of {message.name} cannot be said in JSON"
                error = HandlerFailed(text, reason="ANSWER", at=self.id)
                self._answer(run, message.name, None, error)
        elif message.kind is Kind.REQUEST and run.result is not None:
            self._record(run, Outcome.DROPPED, "a second answer: the first had gone")
        elif message.kind is Kind.SEND and error is not None:
            self._signal("failed", Failure(message, run.link, run.outcome, error, run.ended))
        outcome = Outcome.FAILED if error is not None and run.error is None else run.outcome
        self._record(run, outcome, error.message if error is not None else "")

    def _record(self, run: Run, outcome: Outcome, reason: str) -> None:
        at, seconds = run.ended + self._origin.wall, run.ended - run.started
        self._ledger.record(run.message.id, at, outcome, by=run.by, seconds=seconds, reason=reason)

    # ------------------------------------------------------------------------------------------------- links

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The exchanges that are linked to this one."""
        return tuple(self._links.peers.values())

    async def connect(
        self,
        target: "str | Exchange | None" = None,
        *,
        transport: str | None = None,
        url: str | None = None,
        exchange: "Exchange | None" = None,
        retry: float = math.inf,
    ) -> Peer:
        """Link to another exchange: to a URL, or to an Exchange of this process.

        URLs are `grpc://HOST:PORT`, `unix:PATH`, `ws://HOST:PORT` and `wss://HOST`. `transport`, which is "grpc",
        "websocket" or "local", with `url` or `exchange` says the same.
        Returns the peer; the existing one if the two are linked already. A link to a URL that breaks is made again,
        for `retry` seconds after each break; with 0 it is gone then. Raises AddressError for a URL
        that is none, LinkError if nobody answers there or the link is refused.
        """
        self._enter()
        if isinstance(target, Exchange):
            exchange = target
        elif isinstance(target, str):
            url = target
        if exchange is not None:
            if transport not in (None, "local"):
                raise AddressError(f"an exchange of this process is linked by 'local', not {transport!r}")
            if exchange is self:
                raise AddressError("an exchange does not link to itself")
            end, other = LocalTransport.pair()
            exchange._accept_local(other)
            return await self._dial(lambda: end, retry=0.0)
        if url is None:
            raise AddressError("connect() takes a URL or an Exchange")
        url = _with_scheme(url, transport)
        return await self._dial(partial(scheme_of(url).dial, url), retry=retry)

    async def listen(
        self,
        url: str | None = None,
        *,
        transport: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        origins: Iterable[str] = (),
    ) -> str:
        """Let others link to this exchange at `url`: `grpc://HOST:PORT`, `ws://HOST:PORT` or `unix:PATH`.

        `listen(transport="grpc", port=50051)` and `listen(transport="websocket", port=8080)` say the same; port 0 takes
        a free one. Web pages may connect to `ws://` if they come from this very server, or from one of the `origins`:
        `https://example.com`. Returns the URL, with the port. Raises AddressError if the address is taken or none.
        """
        self._enter()
        if url is None:
            if transport is None or port is None:
                raise AddressError("listen() takes a URL, or a transport and a port")
            url = f"{'ws' if transport == 'websocket' else transport}://{host}:{port}"
        url = _with_scheme(url, transport)
        listen: Any = scheme_of(url).listen  # that of most schemes knows of no origins
        allowed = tuple(origins)
        if allowed and not url.startswith("ws:"):
            raise AddressError(f"no web page comes by {url}: origins are for ws://")
        listener: Listener = await (listen(url, self, origins=allowed) if allowed else listen(url, self))
        self._listeners.append(listener)
        self._start_relaying()
        return listener.url

    def _accept_local(self, transport: LocalTransport) -> None:
        loop = self._enter()
        self._start_relaying()

        async def accept() -> None:
            await transport.connect()
            await self.accept(transport)

        task = loop.create_task(accept())
        self._accepting.add(task)
        task.add_done_callback(self._accepting.discard)

    async def _dial(self, dial: Callable[[], Transport], *, retry: float) -> Peer:
        self._enter()
        transport = dial()
        link = self._link(dial if retry > 0 else None, retry, dialled=True)
        connection = link.attach(transport)
        try:
            await transport.connect()
            self._enter()  # it may have been closed meanwhile
        except BaseException:
            await transport.disconnect()
            raise
        self._links.begun(link)
        link.start(connection)
        try:
            id = await asyncio.shield(link.opening)
        except asyncio.CancelledError:
            await link.close()
            raise
        peer = self._links.peers.get(id)
        if peer is None:
            raise LinkError(f"the link was refused or lost: {link.end_reason}")
        return peer

    async def accept(self, transport: Transport) -> None:
        """See `transports.Host`."""
        self._enter()
        link = self._link(address=getattr(transport, "address", ""))
        connection = link.attach(transport)
        self._links.begun(link)
        link.start(connection)
        try:
            await connection.over.wait()
        except asyncio.CancelledError:
            if link.session.peer is None:  # it was broken off before anything was said
                self._links.resets += 1
            raise

    def _link(
        self,
        dial: Callable[[], Transport] | None = None,
        retry: float = 0.0,
        *,
        dialled: bool = False,
        address: str = "",
    ) -> Link:
        session = Session(
            self._links.introduction(), dialled=dialled, now=self._now(),
            limits=self.limits, when_full=self._when_full, draw=secrets.token_bytes,
        )  # fmt: skip
        return Link(session, self._links, self._now, self.limits, dial=dial, retry=retry, address=address)

    def _start_relaying(self) -> None:
        if self._relay is None and not self._router.relay:
            self._router.relay = True
            self._links.announce(relay=True)

    def _linked(self, link: Link, peer: Introduction) -> Peer:
        return Peer(self, link, peer)

    def _told_of_a_link(self, name: str, value: dict[str, Any]) -> None:
        id, uncertain = value["id"], value.get("uncertain")
        if name == "peer.resumed":
            log.log(
                logging.WARNING if uncertain else logging.INFO, "the link to %s is there again after %.1f s%s", id,
                value["seconds"], f": {len(uncertain)} messages are uncertain" if uncertain else "",
            )  # fmt: skip
        elif name == "peer.gave_up" or (name == "peer.lost" and id in self._links.by_peer):  # not by a Goodbye
            log.info("the link to %s is %s: %s", id, name.removeprefix("peer.").replace("_", " "), value["reason"])
        self._event(name, value)

    # ------------------------------------------------------------------------------------------------ events

    def _with_log(self, remove: Remove) -> Remove:
        """The log of the package is followed as long as somebody observes it."""
        self._follow_log()

        def forget() -> None:
            remove()
            self._follow_log()

        return forget

    def _follow_log(self) -> None:
        wanted = self._observers.wants(LOG_EVENT) and not self._closed
        if wanted and self._log is None:
            self._log = LogEvents(self._logged)
            _package_log.addHandler(self._log)
        elif not wanted and self._log is not None:
            _package_log.removeHandler(self._log)
            self._log = None

    def _logged(self, value: dict[str, Any]) -> None:
        """A record was logged, by any thread."""
        invocation = current.get()
        if invocation is not None and invocation.message.name == LOG_EVENT:
            return  # by what an observer of the log does: it would feed itself
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop was closed
                self._loop.call_soon_threadsafe(self._event, "log", value)

    def _event(self, name: str, value: dict[str, Any], context: Context | None = None) -> None:
        """Something happened here: show it to those who observe events."""
        name = f"{RESERVED}event.{name}"
        if self._observers.wants(name):
            payload, _ = encode_value(value)
            event = self._origin.make(Kind.SEND, name, context or Context(), self._now(), to=self.id, payload=payload)
            self._observers.observed(Seen.EMITTED, event)

    def _ended_badly(self, span: Span, outcome: Outcome, by: str, reason: str) -> None:
        what = {"id": span.id, "name": span.name, "kind": span.kind.name.lower(), "from": span.from_}
        context = Context.of(span.header())
        self._event(f"message.{outcome.name.lower()}", {**what, "by": by, "reason": reason}, context)

    # ------------------------------------------------------------------------------ what routing says to us

    def _deliver(self, value: tuple[Message, str | None], sig: Any, state: Any) -> bool:
        message, link = value
        return self._handlers.deliver(message, link, (message, self._sig, self.state), self._ended)

    def _transmit(self, value: tuple[str, Message], sig: Any, state: Any) -> None:
        to, message = value
        self._emitter.left(message.id, self._links.send(to, message))

    def _control(self, value: tuple[str, Query | Answer | Reject], sig: Any, state: Any) -> bool:
        return self._links.control(*value)

    def _announce(self, value: tuple[tuple[str, ...], ...], sig: Any, state: Any) -> None:
        handles, subscribes, no_longer_handles, no_longer_subscribes = value
        self._links.announce(
            handles=handles,
            subscribes=subscribes,
            no_longer_handles=no_longer_handles,
            no_longer_subscribes=no_longer_subscribes,
        )

    def _resolve(self, value: tuple[str, Message], sig: Any, state: Any) -> None:
        self._emitter.resolve(*value)

    def _dispatched(self, value: tuple[Message, RequestError | None], sig: Any, state: Any) -> None:
        message, error = value
        self._emitter.dispatched(message.id, error)

    def _withdraw(self, id: str, sig: Any, state: Any) -> None:
        self._handlers.withdraw(id)

    def _unhandled(self, value: tuple[Message, RequestError, Outcome | None], sig: Any, state: Any) -> None:
        message, error, outcome = value
        if message.from_ == self.id and message.name.startswith(RESERVED):
            return  # we asked about a trace, and name in it whom we could not ask
        log.warning("%s %s was not handled: %s (at %s)", message.name, message.id, error.message, error.at or self.id)
        what = {"id": message.id, "name": message.name, "reason": error.reason, "text": error.message, "at": error.at}
        what["outcome"] = "" if outcome is None else outcome.name
        payload, _ = encode_value(what)
        event = self._origin.make(
            Kind.SEND, "message.unhandled", Context.of(message), self._now(), to=self.id, payload=payload
        )
        self._handlers.signalled(event, (event, self._sig, self.state))

    def _observing(self) -> None:
        self._router.observed = bool(self._observers)

    def _observed(self, value: tuple[Seen, Message], sig: Any, state: Any) -> None:
        seen, message = value
        if not message.name.startswith(RESERVED):
            self._observers.observed(seen, message)

    def _committed(self, transaction: Transaction) -> None:
        """The state has changed: remember it, tell those who watch, and show it to those who observe."""
        invocation = current.get()
        mine = invocation is not None and invocation.message.id == transaction.cause
        self._changes.commit(transaction, invocation.by if invocation is not None and mine else "")
        self._show_sets(transaction)

    def _show_sets(self, transaction: Transaction) -> None:
        if not self._observers or self._loop is None or not self._loop.is_running():
            return  # nobody looks, or nothing runs that could be shown it
        if threading.get_ident() != self._thread:
            self._loop.call_soon_threadsafe(self._show_sets, transaction, context=copy_context())
            return
        invocation = current.get()
        context = Context() if invocation is None else invocation.context
        for name, (_, new) in {**transaction.sets, **transaction.updates}.items():
            message = self._origin.make(Kind.SEND, name, context, self._now(), to=self.id)
            message._value = new  # as it is: an observer in this process needs no JSON
            self._observers.observed(Seen.SET, message)

    def _offer(self, name: str, offered: bool) -> None:
        if name.startswith(RESERVED):  # every exchange has it: it is not announced
            self._router.offers.add(name)
        else:
            self.kernel.sig("offer", (name, offered, self._now()))

    def _subscribe(self, pattern: str, wanted: bool) -> None:
        self.kernel.sig("subscribe", (pattern, wanted))

    def _unrouted(self, name: str, value: Any) -> None:
        """A signal that the kernel has no handler for: somebody took the behaviour away."""
        log.warning("no handler for signal %r", name)
        self._route_failed(name, value, ExchangeError(f"nothing handles the signal {name!r} here"))

    def _route_failed(self, name: str, value: Any, error: Exception) -> None:
        """One message could not be routed, by a mistake of ours: only its own sender suffers."""
        if not isinstance(error, ExchangeError):
            log.error("routing failed at signal %r", name, exc_info=error)
        if isinstance(value, Arrival) and value.link is HERE:
            told = error if isinstance(error, ExchangeError) else ExchangeError("the message was not routed")
            self._emitter.fail(value.message.id, told)

    # ---------------------------------------------------------------------------------------------- the loop

    def _enter(self) -> asyncio.AbstractEventLoop:
        """The loop of this exchange. Raises ExchangeError if it is closed, or belongs to another loop."""
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ExchangeError(f"the exchange {self.id} is closed")
        if self._loop is None:
            self._loop, self._thread = loop, threading.get_ident()
        elif self._loop is not loop:
            raise ExchangeError(f"the exchange {self.id} belongs to another asyncio loop")
        return loop

    def _signal(self, name: str, value: Any) -> None:
        self.kernel.sig(name, value)
        self._run()

    def _run(self) -> None:
        if self._running:  # a signal from inside the kernel: the run under way takes it
            return
        self._running = True
        try:
            self.kernel.run()
        finally:
            self._running = False
        self._arm()

    def _arm(self) -> None:
        due = self._router.next_deadline()
        if due is None or (self._timer is not None and self._timer_due <= due):
            return
        if self._loop is None or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = self._loop.call_at(due, self._tick), due

    def _tick(self) -> None:
        self._timer = None
        self._router.tick(self._now())
        self._run()

    async def close(self) -> None:
        """Let running handlers end (within 10 s), say goodbye to all peers, and leave nothing behind."""
        if self._closed or self._loop is None:
            self._closed = True
            self._follow_log()
            return
        self._enter()
        for listener in self._listeners:
            await listener.stopping()
        for mirror in self._mirrors:
            mirror.stop()
            await mirror.stopped()
        self._changes.close(Refused(f"{self.id} stops", code=Code.UNAVAILABLE, reason="STOPPING"))
        await self._handlers.wait(STOP_SECONDS)
        await self._close_links()
        for listener in self._listeners:
            await listener.close()
        self._closed = True
        await self._close_links()  # those that came in meanwhile
        await self._handlers.close()  # and what they asked
        await self._observers.close()
        self._follow_log()
        if self._timer is not None:
            self._timer.cancel()
        self._emitter.close(Unavailable(f"the exchange {self.id} was closed", at=self.id))
        if self._accepting:
            await asyncio.wait(self._accepting)

    async def _close_links(self) -> None:
        await asyncio.gather(*(line.close(retry_after_ms=RETRY_AFTER_MS) for line in list(self._links.lines)))

    def run(self, *, connect: str | Iterable[str] = (), listen: str | Iterable[str] = ()) -> None:
        """Run this exchange as the main thing of the process: `app.run(connect="grpc://127.0.0.1:50051")`.

        It listens and connects at these URLs and goes on until SIGTERM or Ctrl-C; then it lets running handlers
        end, and closes. A link that breaks is made again. If it cannot begin, or a peer tells it to stay away, it
        raises SystemExit with a sentence. Within a loop, use `connect` and `listen` instead.
        """
        run(self, [connect] if isinstance(connect, str) else connect, [listen] if isinstance(listen, str) else listen)

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _held(message: Message) -> None:
    """It waits for its handler: whoever sent it may send the less meanwhile."""
    message.hold()
    if message.keeper is not None:
        message.keeper.retain(len(message.payload))


def _released(message: Message) -> None:
    if message.keeper is not None:
        message.keeper.release(len(message.payload))
    message.let_go()


def _current_id() -> str | None:
    invocation = current.get()
    return None if invocation is None else invocation.message.id


def _with_scheme(url: str, transport: str | None) -> str:
    if transport is None or url.startswith(f"{transport}:"):
        return url
    if transport == "websocket" and url.startswith(("ws:", "wss:")):
        return url
    raise AddressError(f"the transport {transport!r} does not take {url!r}")
