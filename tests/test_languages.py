"""Programs in all languages as peers of one mesh: they share work, lose each other, and find back.

The programs are the processes under test of the conformance suite, each linked to one hub by its own transport.
"""

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from conformance.drive import Died, Process
from conformance.implementation import Implementation, Missing, implementations, required
from faults import Proxy, steady_port
from processes import Child, child
from roles import Tally
from world import until

from exchange_grpc import Exchange

pytestmark = [pytest.mark.drill, pytest.mark.timeout(900)]  # they may have to be built

HANDLERS = ("Go", "Rust", "Python")
SOON = 30.0  # seconds, which nothing here should ever take
CUTS = 20
HUB = """
from processes import obey, play
from exchange_grpc import Exchange

async def hub(grpc, websocket, page):
    async with Exchange("hub") as app:
        await app.listen(f"grpc://127.0.0.1:{grpc}")
        await app.listen(f"ws://127.0.0.1:{websocket}", origins=[f"http://127.0.0.1:{page}"])
        await obey({}, peers=lambda: [peer.id for peer in app.peers])

play(hub)
"""
NAMES = [implementation.name for implementation in implementations()]


class Refused(Exception):
    """A command ended in an error that the client has a word for: its code and its reason."""


class Client:
    """A program of some language, which is an exchange with the id of that language in small letters."""

    def __init__(self, implementation: Implementation, process: Process) -> None:
        self.language = implementation.name
        self.id = implementation.name.lower()
        self.process = process
        self._seen = 0

    async def do(self, verb: str, **given: Any) -> Any:
        """What the answer to a command has. Raises Refused."""
        async with asyncio.timeout(SOON):
            answer = await self.process.answer(await self.process.tell(verb, given))
        if "error" in answer:
            raise Refused(answer["error"])
        return answer["value"]

    def events(self, name: str) -> list[Any]:
        """Those of that name that have happened so far."""
        return [value for event, value in self.process.events if event == name]


class Hub:
    """A hub in a process of its own, on ports that it comes back to."""

    def __init__(self, process: Child, ports: dict[str, int]) -> None:
        self.process = process
        self.ports = ports

    @property
    def environment(self) -> dict[str, str]:
        """What a program must know so that the hub lets it in: pages of this origin may link to it."""
        return {"PAGE_PORT": str(self.ports["page"])}

    def url(self, transport: str, port: int = 0) -> str:
        """Where it is, or where a proxy before it is."""
        port = port or self.ports[transport]
        return f"grpc://127.0.0.1:{port}" if transport == "grpc" else f"ws://127.0.0.1:{port}/v1/peer"


@asynccontextmanager
async def hub_of_all() -> AsyncIterator[Hub]:
    ports = {"grpc": steady_port(), "websocket": steady_port(), "page": steady_port()}
    async with child(HUB, "hub", **ports) as process:
        yield Hub(process, ports)


def found(*names: str) -> list[Implementation]:
    """These, built; without what cannot be here, unless everything has to be."""
    ready, missing = [], []
    for implementation in implementations():
        if names and implementation.name not in names:
            continue
        try:
            implementation.prepare()
            ready.append(implementation)
        except Missing as lacks:
            missing.append(str(lacks))
    if missing and required():
        pytest.fail("; ".join(missing))
    if missing and (names or len(ready) < 2):
        pytest.skip("; ".join(missing))
    return ready


@asynccontextmanager
async def client(implementation: Implementation, hub: Hub, *, id: str = "", port: int = 0) -> AsyncIterator[Client]:
    """One that is linked to the hub, or to what stands before it at `port`."""
    environment = {**dict(implementation.environment), **hub.environment}
    process = Process(implementation.command, str(implementation.place), environment)
    await process.start()
    try:
        one = Client(implementation, process)
        one.id = id or one.id
        limits = {"reconnect_min_seconds": 0.1, "reconnect_max_seconds": 0.5}
        await one.do("start", id=one.id, limits=limits)
        await one.do("connect", url=hub.url(implementation.transport, port))
        yield one
    finally:
        if process.code is None:
            with contextlib.suppress(Died):
                await one.do("close")
        await process.stop()


# ------------------------------------------------------------------------------------------------- shared work


async def language_of(asker: Client, exchange: str) -> str:
    told = await asker.do("request", name="exchange.describe", to=exchange)
    return told["value"]["agent"].partition("/")[0]


async def test_handlers_of_three_languages_share_a_name() -> None:
    ready = found()
    handling = [implementation for implementation in ready if implementation.name in HANDLERS]
    async with hub_of_all() as hub, AsyncExitStack() as stack:

        async def start(implementation: Implementation, what: str) -> Client:
            id = f"{what}-{implementation.name.lower()}"
            return await stack.enter_async_context(client(implementation, hub, id=id))

        workers = {f"worker-{one.name.lower()}": await start(one, "worker") for one in handling}
        for worker in workers.values():
            await worker.do("handle", name="work", do="see")
        askers = [await start(one, "asker") for one in ready]

        async def ask(asker: Client, number: int) -> dict[str, Any]:
            return (await asker.do("request", name="work", value=number, timeout=10))["value"]

        # Each has its share.
        answers = await asyncio.gather(*(ask(asker, n) for asker in askers for n in range(30)))
        share = Counter(answer["trace"][-1] for answer in answers)
        fair = len(answers) / len(workers)
        assert set(share) == set(workers)
        assert all(0.8 * fair <= count <= 1.2 * fair for count in share.values()), share

        # The trace of an answer names the languages it went through.
        spoken = {id: await language_of(askers[0], id) for id in [*workers, "hub", *(asker.id for asker in askers)]}
        for asker in askers:
            for answer in {answer["trace"][-1]: answer for answer in answers if answer["from"] == asker.id}.values():
                trace = await asker.do("trace", id=answer["id"])
                request = next(span for span in trace["spans"] if span["id"] == answer["id"])
                went = [hop["exchange"] for hop in request["hops"]]
                assert went == [asker.id, "hub", answer["trace"][-1]]
                assert [spoken[id] for id in went] == [spoken[asker.id], "python", spoken[answer["trace"][-1]]]
                assert any(event["exchange"] == went[-1] for event in request["events"]), request["events"]
                assert trace["missing"] == []

        # One of them is killed while all ask: every request ends in an answer or in a clear error.
        ended: list[Any] = []
        over = asyncio.Event()

        async def keep_asking(asker: Client) -> None:
            for number in itertools.count():
                if over.is_set():
                    return
                try:
                    ended.append((await ask(asker, number))["trace"][-1])
                except Refused as error:
                    ended.append(error.args[0])

        async with asyncio.TaskGroup() as group:
            for asker in askers:
                for _ in range(4):
                    group.create_task(keep_asking(asker))
            await asyncio.sleep(1.0)
            doomed = "worker-rust" if "worker-rust" in workers else next(iter(workers))
            workers[doomed].process.kill()
            await asyncio.sleep(3.0)
            over.set()
        errors = [end for end in ended if isinstance(end, dict)]
        assert all(error["code"] == "UNAVAILABLE" for error in errors), errors
        print(f"{len(answers)} requests: {dict(share)}; with a kill {len(ended)}, of which {len(errors)} UNAVAILABLE")
        late = Counter(end for end in ended[-200:] if isinstance(end, str))
        assert doomed not in late
        assert set(late) == set(workers) - {doomed}


# --------------------------------------------------------------------------------------------- broken links


async def known(names: tuple[str, ...], hub: str, app: Exchange) -> None:
    """Until the hub has heard who handles these."""
    async with asyncio.timeout(SOON):
        for name in names:
            while not (await app.request("exchange.routes", {"target": name}, to=hub))["routes"]:
                await asyncio.sleep(0.01)


async def send_at_last(one: Client, number: int) -> None:
    """Send it, and again if it surely was not delivered: whom to send it to may be asked while the link is cut."""
    while True:
        try:
            await one.do("send", name="there", value=number)
            return
        except Refused as error:
            if error.args[0].get("delivered") != "no":
                raise
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", NAMES)
async def test_a_link_that_is_cut_again_and_again_loses_nothing(name: str) -> None:
    (implementation,) = found(name)
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(hub_of_all())
        proxy = await stack.enter_async_context(Proxy(hub.url("grpc", hub.ports[implementation.transport])))
        one = await stack.enter_async_context(client(implementation, hub, port=proxy.port))
        async with Exchange("other") as other:
            await other.connect(hub.url("grpc"))
            there, sent = Tally(), {"there": 0, "back": 0}
            other.handle("there", there.take)
            await one.do("handle", name="back", do="nothing")
            await known(("there", "back"), "hub", other)
            over = asyncio.Event()

            async def keep_sending() -> None:
                while not over.is_set():
                    number, sent["there"] = sent["there"], sent["there"] + 1
                    await send_at_last(one, number)

            async def keep_sending_back() -> None:
                while not over.is_set():
                    number, sent["back"] = sent["back"], sent["back"] + 1
                    await other.send("back", number)
                    await asyncio.sleep(0.001)

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(keep_sending())
                group.create_task(keep_sending_back())
                for cut in range(1, CUTS + 1):
                    await proxy.cut_after(random.randrange(1, 20_000), reset=cut % 2 == 0)
                    await until(lambda cut=cut: len(one.events("resumed")) >= cut, SOON)
                over.set()
            resumed = one.events("resumed")
            assert [event["recovered"] for event in resumed] == [True] * len(resumed)
            assert len(resumed) >= CUTS
            report = await there.report(sent["there"], SOON)
            assert {**report, "disordered": 0} == {"missing": 0, "doubled": 0, "disordered": 0}
            await until(lambda: len(one.events("handling")) >= sent["back"], SOON)
            # Sorted: the goroutines of Go say that they begin in an order of their own.
            assert sorted(event["value"] for event in one.events("handling")) == list(range(sent["back"]))
            print(f"{name}: {len(resumed)} breaks, {sent['there']} sent and {sent['back']} taken, none lost or doubled")


@pytest.mark.parametrize("name", NAMES)
async def test_of_a_hub_that_is_killed_all_that_is_lost_is_told(name: str) -> None:
    (implementation,) = found(name)
    async with hub_of_all() as hub, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client(implementation, hub))
        async with Exchange("other") as other:
            await other.connect(hub.url("grpc"))
            taken: set[str] = set()
            other.handle("there", lambda msg: taken.add(msg.id))
            await known(("there",), "hub", other)
            over = asyncio.Event()
            ids: list[str] = []
            errors: list[Any] = []

            async def keep_sending() -> None:
                while not over.is_set():
                    try:
                        ids.append((await one.do("send", name="there", value=len(ids)))["id"])
                    except Refused as error:
                        errors.append(error.args[0])
                        await asyncio.sleep(0.02)

            async with asyncio.TaskGroup() as group:
                for _ in range(8):
                    group.create_task(keep_sending())
                for kills in range(1, 4):
                    await asyncio.sleep(0.5)
                    await hub.process.kill()
                    await hub.process.restart()
                    await until(lambda kills=kills: len(one.events("resumed")) >= kills, SOON)
                    before = len(taken)
                    await until(lambda before=before: len(taken) > before + 50, SOON)
                over.set()
            await asyncio.sleep(1.0)
            resumed = one.events("resumed")
            assert [event["recovered"] for event in resumed] == [False] * 3
            told = {id for event in resumed for id in event["uncertain"]}
            told |= {event["id"] for event in one.events("unhandled")}
            lost = set(ids) - taken
            assert lost <= told, f"{len(lost - told)} of {len(ids)} were lost, and nobody was told"
            assert all(error["code"] in ("UNAVAILABLE", "UNIMPLEMENTED") for error in errors), errors
            print(f"{name}: 3 kills, {len(ids)} sent, {len(lost)} lost, {len(lost - told)} of them untold")
