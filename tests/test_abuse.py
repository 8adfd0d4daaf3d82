"""What strangers may send: each gets a clear error, and nobody else notices.

A healthy pair of exchanges works on beside every abuse (`undisturbed`): a request every few
milliseconds, all of them answered.
"""

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Value

from exchange.v1 import frame_pb2, message_pb2, service_pb2
from exchange_grpc import (
    DeadlineExceeded,
    Exchange,
    HandlerFailed,
    InvalidMessage,
    LimitExceeded,
    LinkError,
    Refused,
    RequestError,
)
from exchange_grpc.limits import CREDIT_MESSAGES, MESSAGE_BYTES, NAMES_PER_PEER, Limits

SERVICE = "/exchange.v1.ExchangeService/"
BAD_NAMES = {
    "empty": "",
    "nul": "a\0b",
    "newline": "a\nb",
    "space": "a b",
    "long": "a" * 10_000,
    "star": "a.*",
    "dots": "a..b",
}


@pytest.fixture
async def hub() -> AsyncIterator[tuple[Exchange, str]]:
    async with Exchange("hub") as hub:
        hub.handle("echo", echo)
        yield hub, await hub.listen("grpc://127.0.0.1:0")


async def echo(msg: Any) -> Any:
    return msg.value


@asynccontextmanager
async def undisturbed(url: str) -> AsyncIterator[None]:
    """Two exchanges that talk through the hub all the while, and are answered every time."""
    answered = 0
    async with Exchange("healthy-client") as client, Exchange("healthy-worker") as worker:
        worker.handle("healthy.echo", echo)
        await worker.connect(url)
        await client.connect(url)

        async def talk() -> None:
            nonlocal answered
            while True:
                assert await client.request("healthy.echo", answered, timeout=5) == answered
                answered += 1
                await asyncio.sleep(0.002)

        talking = asyncio.ensure_future(talk())
        try:
            yield
            now = answered
            while answered < now + 5 and not talking.done():  # it goes on afterwards
                await asyncio.sleep(0.005)
        finally:
            talking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await talking
    assert answered >= 5


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(url.removeprefix("grpc://"), options=options) as channel:
        yield channel


async def conversation(channel: grpc.aio.Channel, *frames: bytes) -> list[frame_pb2.Frame]:
    """What a Peer call answers to these frames, until it ends."""

    async def say() -> AsyncIterator[bytes]:
        for frame in frames:
            yield frame

    async with asyncio.timeout(10):
        return [frame_pb2.Frame.FromString(data) async for data in channel.stream_stream(SERVICE + "Peer")(say())]


def hello(id: str, **fields: Any) -> bytes:
    return frame_pb2.Frame(hello=frame_pb2.Hello(exchange=id, **fields)).SerializeToString()


def batch(*messages: message_pb2.Message) -> bytes:
    return frame_pb2.Frame(batch=frame_pb2.Batch(messages=messages)).SerializeToString()


def request(name: str, **fields: Any) -> message_pb2.Message:
    return message_pb2.Message(name=name, kind=message_pb2.KIND_REQUEST, **fields)


def field(tag: int, content: bytes) -> bytes:
    """One length-delimited field, as it is on the wire: protobuf itself builds nothing that it would not parse."""
    size, length = len(content), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([tag << 3 | 2, *length]) + content


def asking_with_value(levels: int) -> bytes:
    """A request to `echo` whose `value` is so many lists in each other."""
    value = Value(number_value=1).SerializeToString()
    for _ in range(levels):
        value = field(6, field(1, value))  # Value.list_value, ListValue.values
    return request("echo").SerializeToString() + field(8, value)


def kinds(frames: list[frame_pb2.Frame]) -> list[str]:
    return [str(frame.WhichOneof("kind")) for frame in frames]


async def test_ten_thousand_frames_of_random_bytes(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    dice = random.Random(2026)
    async with undisturbed(url), raw(url) as channel:
        tasks = len(asyncio.all_tasks())

        async def vandal(number: int) -> int:
            sent = 0
            while sent < 500:
                frames = [dice.randbytes(dice.randrange(1, 200)) for _ in range(25)]
                if dice.random() < 0.5:
                    frames.insert(0, hello(f"vandal-{number}"))
                answers = await conversation(channel, *frames)
                assert kinds(answers)[-1:] == ["goodbye"], "a session ends with a reason"
                sent += len(frames)
            return sent

        assert sum(await asyncio.gather(*map(vandal, range(20)))) >= 10_000
        while len(asyncio.all_tasks()) > tasks:
            await asyncio.sleep(0.01)
    assert exchange.peers == ()


def every_frame() -> list[bytes]:
    """One of each kind, with something in every field that matters."""
    credit = frame_pb2.Credit(seq=5, bytes=10_000)
    interest = frame_pb2.InterestSet(revision=1, handles=["a", "b"], subscribes=["c.*"], exports=["d"])
    return [
        frame.SerializeToString()
        for frame in (
            frame_pb2.Frame(
                hello=frame_pb2.Hello(exchange="x", epoch=7, features=["resume", "ping"], interest=interest)
            ),
            frame_pb2.Frame(hello=frame_pb2.Hello(session="s", resume_token=b"t" * 16, received=3, credit=credit)),
            frame_pb2.Frame(welcome=frame_pb2.Welcome(exchange="x", recovered=True, credit=credit)),
            frame_pb2.Frame(batch=frame_pb2.Batch(seq=1, messages=[request("echo", json=b"[1]"), request("echo")])),
            frame_pb2.Frame(ack=frame_pb2.Ack(seq=1, settled=1)),
            frame_pb2.Frame(credit=credit),
            frame_pb2.Frame(interest=frame_pb2.Interest(revision=1, added=interest, relay=True)),
            frame_pb2.Frame(query=frame_pb2.Query(id="x.7.q1", name="echo", ttl=3)),
            frame_pb2.Frame(answer=frame_pb2.Answer(id="x.7.q1", name="echo", found=frame_pb2.FOUND_YES)),
            frame_pb2.Frame(ping=frame_pb2.Ping(nonce=2**63)),
            frame_pb2.Frame(pong=frame_pb2.Pong(nonce=1)),
            frame_pb2.Frame(reject=frame_pb2.Reject(seq=1, id="hub.7.1")),
            frame_pb2.Frame(goodbye=frame_pb2.Goodbye(retry_after_ms=5, exchange="x", received=9)),
        )
    ]


async def test_ten_thousand_mutated_frames(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    dice = random.Random(2027)
    originals = every_frame()

    def mutated() -> bytes:
        frame = bytearray(dice.choice(originals))
        for _ in range(dice.randrange(1, 4)):
            act, at = dice.randrange(3), dice.randrange(len(frame))
            if act == 0:
                frame[at] = dice.randrange(256)
            elif act == 1:
                frame[at:at] = dice.randbytes(dice.randrange(1, 4))
            elif len(frame) > 1:
                del frame[at]
        return bytes(frame)

    async with undisturbed(url), raw(url) as channel:

        async def vandal(number: int) -> int:
            sent = 0
            while sent < 500:
                frames = [hello(f"vandal-{number}", features=["resume"]), *(mutated() for _ in range(24))]
                answers = await conversation(channel, *frames)
                assert set(kinds(answers)) <= {
                    "welcome",
                    "batch",
                    "answer",
                    "pong",
                    "reject",
                    "goodbye",
                    "ack",
                    "query",
                }
                sent += len(frames)
            return sent

        assert sum(await asyncio.gather(*map(vandal, range(20)))) >= 10_000
        async with asyncio.timeout(5):
            while any(peer.connected for peer in exchange.peers if peer.id.startswith("vandal")):
                await asyncio.sleep(0.01)


async def test_streams_that_never_say_hello() -> None:
    async with Exchange("hub", limits=Limits(handshake_seconds=0.5)) as hub:
        url = await hub.listen("grpc://127.0.0.1:0")
        async with undisturbed(url), raw(url) as channel:
            calls = [channel.stream_stream(SERVICE + "Peer")() for _ in range(200)]
            for call in calls:
                goodbye = frame_pb2.Frame.FromString(await asyncio.wait_for(call.read(), 5)).goodbye
                assert goodbye.status.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
                call.cancel()


async def test_whoever_sends_more_than_he_was_given_credit_for_is_sent_away(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    never = asyncio.Event()

    @exchange.handle("stuck")
    async def stuck() -> None:
        await never.wait()

    flood = [message_pb2.Message(name="stuck") for _ in range(3 * CREDIT_MESSAGES)]
    credit = frame_pb2.Credit(seq=1_000, bytes=2**20)
    async with undisturbed(url), raw(url) as channel:
        answers = await conversation(channel, hello("greedy", credit=credit), batch(*flood))
        assert answers[-1].goodbye.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        never.set()


async def test_forged_hops_are_refused_and_cost_their_sender_alone(hub: tuple[Exchange, str]) -> None:
    _, url = hub
    forged = {
        "another made it": request("echo", id="healthy-client.1.1"),
        "it came by another": request("echo"),
        "it was at the hub": request("echo"),
        "it makes a circle": request("echo"),
    }
    setattr(forged["another made it"], "from", "healthy-client")
    for what, way in (("it came by another", ["forger", "x"]), ("it was at the hub", ["forger", "hub"])):
        for exchange in way:
            forged[what].trace.hops.add(exchange=exchange)
    for exchange in ("forger", "x", "forger"):
        forged["it makes a circle"].trace.hops.add(exchange=exchange)
    async with undisturbed(url), raw(url) as channel:
        answers = await conversation(channel, hello("forger"), batch(*forged.values(), request("echo", json=b"1")))
        rejected = [frame.reject for frame in answers if frame.WhichOneof("kind") == "reject"]
        assert [reject.seq for reject in rejected] == [1, 2, 3, 4]
        replies = [message for frame in answers for message in frame.batch.messages]
        assert [message.json for message in replies] == [b"1"]


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_hundred_thousand_names(hub: tuple[Exchange, str], at_once: bool) -> None:
    exchange, url = hub
    names = [f"name.{n}" for n in range(100_000)]
    async with undisturbed(url), raw(url) as channel:
        if at_once:
            frames = [hello("boaster", interest=frame_pb2.InterestSet(handles=names))]
        else:
            parts = [names[n : n + 1_000] for n in range(0, len(names), 1_000)]
            changes = [
                frame_pb2.Interest(revision=n, added=frame_pb2.InterestSet(handles=part))
                for n, part in enumerate(parts, 1)
            ]
            frames = [hello("boaster"), *(frame_pb2.Frame(interest=change).SerializeToString() for change in changes)]
        answers = await conversation(channel, *frames)
        assert f"more than {NAMES_PER_PEER} names" in answers[-1].goodbye.status.message
        async with asyncio.timeout(5):
            while "boaster" in {peer.id for peer in exchange.peers}:
                await asyncio.sleep(0.01)
    assert not exchange._router._offered.keys() & set(names)


async def test_links_from_one_address_are_bounded() -> None:
    async with Exchange("hub", limits=Limits(links_per_address=2)) as hub, Exchange("two") as two:
        url = await hub.listen("grpc://127.0.0.1:0")
        async with undisturbed(url):
            with pytest.raises(LinkError, match="hub has 2 links from this address already"):
                await two.connect(url)
        async with asyncio.timeout(5):
            while hub._links.lines:
                await asyncio.sleep(0.01)
        await two.connect(url)


async def test_a_peer_that_is_too_fast_is_read_more_slowly() -> None:
    async with Exchange("hub", limits=Limits(messages_per_second=1_000)) as hub, Exchange("fast") as fast:
        taken = 0

        @hub.handle("take")
        async def take() -> None:
            nonlocal taken
            taken += 1

        await fast.connect(await hub.listen("grpc://127.0.0.1:0"))
        began = asyncio.get_running_loop().time()
        for _ in range(4_000):
            await fast.send("take")
        async with asyncio.timeout(10):
            while taken < 4_000:
                await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - began > 0.9
        (peer,) = (await fast.request("exchange.peers", to="hub"))["peers"]
        assert peer["slowed"] > 0


async def test_a_frame_that_is_no_frame_ends_with_a_reason(hub: tuple[Exchange, str]) -> None:
    _, url = hub
    async with raw(url) as channel:
        (goodbye,) = await conversation(channel, b"\xff\xff\xff")
        assert goodbye.goodbye.status.message == "the frame cannot be parsed"
        welcome, goodbye = await conversation(channel, hello("me"), b"\xff\xff\xff")
        assert welcome.welcome.exchange == "hub"
        assert goodbye.goodbye.status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_a_message_of_5_mib(hub: tuple[Exchange, str]) -> None:
    _, url = hub
    large = b"x" * (5 * 2**20)
    async with undisturbed(url), Exchange("client") as client, raw(url) as channel:
        await client.connect(url)
        with pytest.raises((LimitExceeded, RequestError), match=f"larger than {MESSAGE_BYTES} bytes"):
            await client.request("echo", large)
        assert await client.request("echo", b"x" * (4 * 2**20 - 1_000)) == b"x" * (4 * 2**20 - 1_000)

        json = b'"' + large + b'"'
        frames = await conversation(
            channel, hello("raw"), batch(request("echo", json=json), request("echo", json=b"1"))
        )
        assert sorted(kinds(frames)) == ["batch", "goodbye", "reject", "welcome"]
        rejected = next(frame.reject for frame in frames if frame.HasField("reject"))
        assert (rejected.seq, rejected.status.message) == (1, f"the message is larger than {MESSAGE_BYTES} bytes")
        (reply,) = next(frame.batch for frame in frames if frame.HasField("batch")).messages
        assert reply.json == b"1", "the other message of the batch stands"


@pytest.mark.parametrize("levels", [31, 200])
async def test_a_payload_that_is_nested_too_deeply(hub: tuple[Exchange, str], levels: int) -> None:
    _, url = hub
    json = b"[" * levels + b"1" + b"]" * levels
    async with undisturbed(url), Exchange("client") as client, raw(url) as channel:
        await client.connect(url)
        value: Any = 1
        for _ in range(levels):
            value = [value]
        with pytest.raises(LimitExceeded, match="nested deeper than 30 levels"):
            await client.request("echo", value)

        frames = await conversation(channel, hello("raw"), batch(request("echo", json=json)))
        assert kinds(frames) == ["welcome", "batch", "goodbye"]
        assert "nested deeper than 30 levels" in frames[1].batch.messages[0].error.message

        frames = await conversation(channel, hello("raw"), field(3, field(2, asking_with_value(levels))))
        if levels == 31:
            assert kinds(frames) == ["welcome", "reject", "goodbye"]
            assert "nested deeper than 30 levels" in frames[1].reject.status.message
        else:  # beyond what protobuf parses: the frame as a whole is lost, and only this session with it
            assert kinds(frames) == ["welcome", "goodbye"]

        door = channel.unary_unary(SERVICE + "Request")
        for message in (request("echo", json=json).SerializeToString(), asking_with_value(levels)):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await door(field(1, message))
            assert refused.value.code() in (grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.INVALID_ARGUMENT)
            assert "nested" in str(refused.value.details())


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
async def test_a_name_that_is_none(hub: tuple[Exchange, str], name: str) -> None:
    exchange, url = hub
    async with undisturbed(url), Exchange("client") as client, raw(url) as channel:
        peer = await client.connect(url)
        for emit in (client.send, client.request, client.publish, client.broadcast, peer.send, peer.request):
            with pytest.raises(InvalidMessage, match="name"):
                await emit(name)
        with pytest.raises(InvalidMessage, match="name"):
            exchange.handle(name, echo)

        frames = await conversation(channel, hello("raw"), batch(request(name), request("echo", json=b"7")))
        assert sorted(kinds(frames)) == ["batch", "goodbye", "reject", "welcome"]
        assert "name" in next(frame.reject.status.message for frame in frames if frame.HasField("reject"))
        refusing = {
            "Send": service_pb2.SendRequest(message=request(name)),
            "Publish": service_pb2.PublishRequest(message=request(name)),
            "Request": service_pb2.RequestRequest(message=request(name)),
        }
        for door, body in refusing.items():
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(SERVICE + door)(body.SerializeToString())
            assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
            assert "name" in str(refused.value.details())


async def test_handlers_that_raise_hang_or_answer_what_cannot_be_said(
    hub: tuple[Exchange, str], caplog: pytest.LogCaptureFixture
) -> None:
    exchange, url = hub

    @exchange.handle("raises")
    async def raises() -> None:
        raise RuntimeError("the password is hunter2")

    @exchange.handle("exits")
    def exits() -> None:
        raise SystemExit(3)

    @exchange.handle("hangs")
    async def hangs() -> None:
        await asyncio.Event().wait()

    @exchange.handle("unsayable")
    async def unsayable() -> Any:
        return {"socket": object()}

    @exchange.handle("not.a.number")
    async def not_a_number() -> Any:
        return float("nan")

    @exchange.handle("says")
    async def says() -> None:
        raise Refused("no such user", reason="NO_SUCH_USER")

    async with undisturbed(url), Exchange("client") as client:
        await client.connect(url)
        for name in ("raises", "exits"):
            with pytest.raises(HandlerFailed, match=f"^the handler of {name} failed$") as failed:
                await client.request(name)
            assert failed.value.at == "hub"
        assert "hunter2" in caplog.text, "the log of the hub has the details"
        with pytest.raises(DeadlineExceeded):
            await client.request("hangs", timeout=0.2)
        for name in ("unsayable", "not.a.number"):
            with pytest.raises(HandlerFailed, match="cannot be said in JSON"):
                await client.request(name)
        with pytest.raises(Refused, match="no such user") as told:
            await client.request("says")
        assert (told.value.reason, told.value.at) == ("NO_SUCH_USER", "hub")


async def test_a_client_that_vanishes_leaves_nothing(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    began, ended = asyncio.Event(), asyncio.Event()

    @exchange.handle("hangs")
    async def hangs() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    before = len(asyncio.all_tasks())
    async with raw(url) as channel:
        call = channel.stream_stream(SERVICE + "Peer")()
        await call.write(hello("ghost"))
        await call.write(batch(request("hangs")))
        await asyncio.wait_for(began.wait(), 5)
        call.cancel()
        await asyncio.wait_for(ended.wait(), 5)
        while exchange.peers:
            await asyncio.sleep(0.005)
    gc.collect()
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)


async def test_a_link_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.links.LINKS", 1)
    async with Exchange("hub") as hub, Exchange("one") as one, Exchange("two") as two:
        await one.connect(hub)
        with pytest.raises(LinkError, match="hub has 1 links already"):
            await two.connect(hub)
        assert [peer.id for peer in hub.peers] == ["one"]
