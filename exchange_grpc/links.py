"""The links of one exchange: dialled, accepted, one for each peer, and gone.

Whoever owns them is told by signals of `routing.py` what comes over a link (`route`, `peer.connect`,
`peer.disconnect`, `peer.interest`, ...), and puts messages on one with `send`. What this exchange says
of itself to a peer is put together here as well.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .errors import Code, LinkError
from .frames import PROTOCOL, Answer, Interest, Introduction, Query, Reject
from .kernel import Kernel
from .limits import LINKS
from .message import Message
from .patterns import RESERVED
from .peer import Event, Opened, Received, Rejected, Session
from .routing import Arrival, Lost, Neighbour, Rejection, Router
from .transports import Transport
from .transports.link import Link
from .version import AGENT

P = TypeVar("P")  # what stands for a peer


class Links(Generic[P]):
    """All links of one exchange.

    `linked(link, introduction)` makes what stands for a peer in `peers`, `unlinked(id, reason)` hears that it
    is gone, and `run` runs what was signalled on the kernel.
    """

    def __init__(
        self,
        id: str,
        epoch: int,
        exports: tuple[str, ...],
        *,
        kernel: Kernel,
        router: Router,
        now: Callable[[], float],
        linked: Callable[[Link, Introduction], P],
        unlinked: Callable[[str, str], None],
        run: Callable[[], None],
    ) -> None:
        self.id = id
        self.epoch = epoch
        self.exports = exports
        self.revision = 0  # of what we handle, subscribe to and export
        self.by_peer: dict[str, Link] = {}  # open, the handshake done
        self.peers: dict[str, P] = {}
        self.all: set[Link] = set()
        self._linked = linked
        self._unlinked = unlinked
        self._run = run
        self._kernel = kernel
        self._router = router
        self._now = now
        self._opening: dict[Link, asyncio.Future[P]] = {}

    # --------------------------------------------------------------------------------------- making and ending

    async def dial(self, transport: Transport, check: Callable[[], object]) -> P:
        """Link by a transport of ours; the peer, which may be linked already. Raises LinkError.

        `check` is called once the transport is connected, and may raise.
        """
        link = self._link(transport, dialled=True)
        try:
            await transport.connect()
            check()
        except BaseException:
            await transport.disconnect()
            raise
        future: asyncio.Future[P] = asyncio.get_running_loop().create_future()
        self._opening[link] = future
        self.all.add(link)
        link.start()
        try:
            return await future
        except asyncio.CancelledError:
            await link.close()
            raise
        finally:
            self._opening.pop(link, None)

    async def accept(self, transport: Transport) -> None:
        """Run a connection that came in, until it is over."""
        link = self._link(transport, dialled=False)
        if len(self.all) >= LINKS:
            link.session.goodbye(Code.RESOURCE_EXHAUSTED, f"{self.id} has {LINKS} links already")
        self.all.add(link)
        link.start()
        await link.over.wait()

    async def close(self) -> None:
        """Say goodbye to all."""
        await asyncio.gather(*(link.close() for link in list(self.all)))

    def _link(self, transport: Transport, *, dialled: bool) -> Link:
        return Link(transport, Session(self.introduction(), dialled=dialled, now=self._now()), self, self._now)

    # ------------------------------------------------------------------------------------------ what goes out

    def introduction(self, protocol: int = PROTOCOL) -> Introduction:
        """What we say of ourselves."""
        router = self._router
        return Introduction(
            self.id,
            self.epoch,
            min(protocol, PROTOCOL),
            agent=AGENT,
            relay=router.relay,
            revision=self.revision,
            handles=tuple(sorted(name for name in router.offers if not name.startswith(RESERVED))),
            subscribes=tuple(sorted(router.subscriptions)),
            exports=self.exports,
        )

    def introduction_of(self, id: str) -> Introduction:
        """What a peer has said of itself."""
        peer = self.by_peer[id].session.peer
        assert peer is not None  # only who has introduced himself is there
        return peer

    def announce(self, **change: Any) -> None:
        """Tell all peers what has changed of that."""
        self.revision += 1
        for link in self.by_peer.values():
            link.session.announce(**change)
            link.wake()

    def send(self, to: str, message: Message) -> None:
        """Put a message on a link. Raises InvalidMessage if that cannot be."""
        link = self.by_peer[to]
        link.session.send(message)
        link.wake()
        if link.read_all:
            self.half_closed(link)

    def control(self, to: str, frame: Query | Answer | Reject) -> bool:
        """Put a question or an answer on a link; False if it takes no more."""
        link = self.by_peer[to]
        link.wake()
        return link.session.control(frame)

    # ----------------------------------------------------------------------------------- what links say to us

    def heard(self, link: Link, events: list[Event]) -> None:
        """See `link.Owner`."""
        now = self._now()
        sig = self._kernel.sig
        for event in events:
            if isinstance(event, Received):
                sig("route", Arrival(event.message, self._id_of(link), now))
            elif isinstance(event, Opened):
                self._opened(link, event.peer)
            elif isinstance(event, Interest):
                sig("peer.interest", (self._id_of(link), event, now))
            elif isinstance(event, Query):
                sig("peer.asked", (self._id_of(link), event, now))
            elif isinstance(event, Answer):
                sig("peer.answered", (self._id_of(link), event, now))
            elif isinstance(event, Rejected):
                sig("rejected", Rejection(self._id_of(link), event.id, event.error, now))
        self._run()

    def _id_of(self, link: Link) -> str:
        peer = link.session.peer
        return peer.exchange if peer is not None and self.by_peer.get(peer.exchange) is link else ""

    def _opened(self, link: Link, peer: Introduction) -> None:
        known = self.by_peer.get(peer.exchange)
        session = link.session
        if known is not None:
            # Two who dial each other at the same time keep the link that the smaller id dialled.
            if session.dialled and not known.session.dialled and self.id < peer.exchange:
                self._part(known, "a link that was dialled at the same time takes its place")
            else:
                session.goodbye(Code.ALREADY_EXISTS, f"{peer.exchange} is linked to {self.id} already")
                self._settle(link, peer.exchange)
                return
        if not session.dialled:
            session.welcome(self.introduction(peer.protocol))
        elif session.me.revision != self.revision:  # what changed since the Hello was written
            self._catch_up(session)
        self.by_peer[peer.exchange] = link
        self.peers[peer.exchange] = self._linked(link, peer)
        self._kernel.sig(
            "peer.connect", Neighbour(peer.exchange, peer.relay, peer.handles, peer.subscribes, self._now())
        )
        self._settle(link, peer.exchange)

    def _catch_up(self, session: Session) -> None:
        said, now = session.me, self.introduction()
        session.announce(
            handles=sorted({*now.handles} - {*said.handles}),
            subscribes=sorted({*now.subscribes} - {*said.subscribes}),
            no_longer_handles=sorted({*said.handles} - {*now.handles}),
            no_longer_subscribes=sorted({*said.subscribes} - {*now.subscribes}),
            relay=now.relay,
        )

    def _settle(self, link: Link, peer: str) -> None:
        future = self._opening.get(link)
        if future is not None and not future.done():
            future.set_result(self.peers[peer])

    def _part(self, link: Link, reason: str) -> None:
        link.session.goodbye(Code.ALREADY_EXISTS, reason)
        self._gone(link, reason)
        link.wake()

    def late(self, link: Link, expired: list[Message]) -> None:
        """See `link.Owner`."""
        self._kernel.sig("expired", (expired, self._now()))
        self._run()

    def half_closed(self, link: Link) -> None:
        """See `link.Owner`: what it asked is still answered, then the link ends."""
        peer = link.session.peer
        routed = self._router.links.get(peer.exchange) if peer is not None else None
        if routed is None or self.by_peer.get(routed.id) is not link or not routed.came:
            link.session.goodbye()
            link.wake()

    def lost(self, link: Link, reason: str) -> None:
        """See `link.Owner`."""
        future = self._opening.get(link)
        if future is not None and not future.done():
            ended = link.ended
            if ended is not None and ended.code is Code.ALREADY_EXISTS and ended.by in self.by_peer:
                future.set_result(self.peers[ended.by])
            else:
                future.set_exception(LinkError(f"the link was refused or lost: {reason}"))
        self._gone(link, reason)

    def over(self, link: Link) -> None:
        """See `link.Owner`."""
        self.all.discard(link)

    def _gone(self, link: Link, reason: str) -> None:
        peer = link.session.peer
        if peer is not None and self.by_peer.get(peer.exchange) is link:
            del self.by_peer[peer.exchange], self.peers[peer.exchange]
            self._unlinked(peer.exchange, reason)
            self._kernel.sig("peer.disconnect", Lost(peer.exchange, link.session.unsent(), self._now()))
            self._run()
