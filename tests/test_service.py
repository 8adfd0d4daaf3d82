"""The doors, from reflection alone, with the tools that people use: grpcurl and buf curl.

And with plain stubs, where a tool cannot say what is needed: slow readers, deadlines, cancelling.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from exchange.v1 import message_pb2, service_pb2, service_pb2_grpc
from exchange_grpc import Exchange, Message

SERVICE = "exchange.v1.ExchangeService"
Tool = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
async def hub() -> AsyncIterator[Exchange]:
    state = {"total": 0, "twice": lambda s: s.total * 2, "goal": 10, "big": 2**60, "secret": "hidden"}
    shares = {"exports": ("total", "twice", "goal", "big"), "accepts": ("goal", "total")}
    async with Exchange("hub", state=state, **shares) as hub:

        @hub.handle("echo")
        async def echo(msg: Message) -> Any:
            return msg.value

        @hub.handle("compute.sum")
        async def compute_sum(msg: Message) -> Any:
            return msg.value["a"] + msg.value["b"]

        yield hub


@pytest.fixture
async def address(hub: Exchange) -> str:
    return (await hub.listen("grpc://127.0.0.1:0")).removeprefix("grpc://")


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield service_pb2_grpc.ExchangeServiceStub(channel)


async def run(*command: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def grpcurl(require_tool: Callable[[str], str], address: str) -> Tool:
    """grpcurl, against the hub: `grpcurl(method, data)`, or other words."""
    tool = require_tool("grpcurl")

    async def call(verb: str, data: str | None = None, *more: str) -> tuple[int, str, str]:
        words = [address, verb, *more] if data is None else ["-d", data, address, verb, *more]
        return await run(tool, "-plaintext", *words)

    return call


@pytest.fixture
def buf_curl(require_tool: Callable[[str], str], address: str) -> Tool:
    tool = require_tool("buf")

    async def call(method: str, data: str) -> tuple[int, str, str]:
        url = f"http://{address}/{method}"
        return await run(tool, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", data, url)

    return call


async def answered(call: Awaitable[tuple[int, str, str]]) -> Any:
    code, out, err = await call
    assert code == 0, err
    return json.loads(out)


async def refused(call: Awaitable[tuple[int, str, str]]) -> str:
    code, _, err = await call
    assert code != 0
    assert "Traceback" not in err
    assert ".py" not in err
    return err


def objects(text: str) -> list[Any]:
    """The JSON objects that stand one after another."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


# ---------------------------------------------------------------------------------------------------- by tool


async def test_list_and_describe(grpcurl: Tool) -> None:
    _, out, _ = await grpcurl("list")
    assert out.split() == [SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
    _, out, _ = await grpcurl("list", None, SERVICE)
    assert len(out.split()) == 11
    for symbol in (SERVICE, f"{SERVICE}.Request", "exchange.v1.Message", "exchange.v1.Frame", "exchange.v1.Kind"):
        code, out, err = await grpcurl("describe", None, symbol)
        assert (code, err) == (0, "")
        assert out.startswith(f"{symbol} is a")
    assert "not found" in await refused(grpcurl("describe", None, "exchange.v1.Nothing"))


async def test_health(grpcurl: Tool) -> None:
    for service in ("", SERVICE):
        data = json.dumps({"service": service})
        assert await answered(grpcurl("grpc.health.v1.Health/Check", data)) == {"status": "SERVING"}


@pytest.mark.parametrize("tool", ["grpcurl", "buf_curl"])
async def test_a_request_is_asked_and_answered_as_value(tool: str, grpcurl: Tool, buf_curl: Tool) -> None:
    call = {"grpcurl": grpcurl, "buf_curl": buf_curl}[tool]
    data = '{"message": {"name": "compute.sum", "value": {"a": 5, "b": 3}}}'
    answer = (await answered(call(f"{SERVICE}/Request", data)))["message"]
    assert (answer["value"], answer["kind"], answer["last"]) == (8, "KIND_REPLY", True)


@pytest.mark.parametrize(
    "value", [None, True, "text", 0.5, [], {}, [1, [2, {"three": None}]], 2**53, -(2**53), 2**53 - 1]
)
async def test_a_value_comes_back_as_it_went(grpcurl: Tool, value: Any) -> None:
    data = json.dumps({"message": {"name": "echo", "value": value}})
    answer = (await answered(grpcurl(f"{SERVICE}/Request", data)))["message"]
    assert answer.get("value") == value


@pytest.mark.parametrize("value", ["9007199254740994", "-9007199254740994", "1e300"])
async def test_a_number_that_value_cannot_tell_is_refused(grpcurl: Tool, value: str) -> None:
    err = await refused(grpcurl(f"{SERVICE}/Request", f'{{"message": {{"name": "echo", "value": {value}}}}}'))
    assert "InvalidArgument" in err
    assert "beyond 2^53" in err
    assert "INVALID_MESSAGE" in err


async def test_an_answer_that_value_cannot_say_is_refused_too(grpcurl: Tool, hub: Exchange) -> None:
    hub.handle("large", lambda: 2**53 + 1)
    err = await refused(grpcurl(f"{SERVICE}/Request", '{"message": {"name": "large"}}'))
    assert "OutOfRange" in err
    assert "beyond 2^53" in err
    assert await hub.request("large") == 2**53 + 1


async def test_send_publish_and_trace(grpcurl: Tool, hub: Exchange) -> None:
    got: asyncio.Queue[Message] = asyncio.Queue()
    hub.on("order.placed", got.put)
    hub.subscribe("news.*", got.put)
    sent = await answered(grpcurl(f"{SERVICE}/Send", '{"message": {"name": "order.placed", "value": {"n": 1}}}'))
    msg = await asyncio.wait_for(got.get(), 5)
    assert (msg.id, msg.value) == (sent["id"], {"n": 1})
    published = await answered(grpcurl(f"{SERVICE}/Publish", '{"message": {"name": "news.today", "value": "rain"}}'))
    msg = await asyncio.wait_for(got.get(), 5)
    assert (msg.id, msg.value) == (published["id"], "rain")

    trace = await answered(grpcurl(f"{SERVICE}/Trace", json.dumps({"id": sent["id"]})))
    assert trace["root"] == sent["id"]
    (span,) = trace["spans"]
    assert (span["name"], span["from"]) == ("order.placed", "hub")
    assert span["events"][0]["outcome"] == "OUTCOME_HANDLED"
    assert "NotFound" in await refused(grpcurl(f"{SERVICE}/Trace", '{"id": "nobody.1.1"}'))


async def test_nobody_handles_it(grpcurl: Tool) -> None:
    for door in ("Send", "Request"):
        err = await refused(grpcurl(f"{SERVICE}/{door}", '{"message": {"name": "nobody.home"}}'))
        assert "Unimplemented" in err
        assert "nobody handles nobody.home within reach of hub" in err
        assert "UNHANDLED" in err


async def test_describe(grpcurl: Tool, hub: Exchange) -> None:
    said = await answered(grpcurl(f"{SERVICE}/Describe", "{}"))
    assert (said["exchange"], said["relay"], said["protocol"]) == ("hub", True, 1)
    assert said["agent"].startswith("python/")
    assert said["interest"]["handles"] == ["compute.sum", "echo"]
    assert said["interest"]["exports"] == ["big", "goal", "total", "twice"]
    assert said["accepts"] == ["goal", "total"]
    assert int(said["epoch"]) == hub.epoch
    async with Exchange("guest") as guest:
        await guest.connect(hub)
        assert (await answered(grpcurl(f"{SERVICE}/Describe", "{}")))["peers"] == ["guest"]


async def test_state_is_read_set_and_watched(
    grpcurl: Tool, require_tool: Callable[[str], str], address: str, hub: Exchange
) -> None:
    state = (await answered(grpcurl(f"{SERVICE}/GetState", '{"name": "goal"}')))["state"]
    assert (state["name"], state["value"], state["epoch"]) == ("goal", 10, str(hub.epoch))
    assert "revision" not in state  # 0: it was never set
    data = '{"name": "goal", "value": {"far": [1, 2]}, "expected_revision": 0}'
    state = (await answered(grpcurl(f"{SERVICE}/SetState", data)))["state"]
    assert (state["value"], state["revision"], state["transaction"]) == ({"far": [1, 2]}, "1", "1")
    assert state["cause"].startswith("hub.")
    assert hub.state["goal"] == {"far": [1, 2]}
    err = await refused(grpcurl(f"{SERVICE}/SetState", data))
    assert "Aborted" in err
    assert "goal is at revision 1, not 0" in err
    assert "REVISION" in err
    assert hub.state["goal"] == {"far": [1, 2]}

    process = await asyncio.create_subprocess_exec(
        require_tool("grpcurl"), "-plaintext", "-d", '{"names": ["total", "twice"]}',
        address, f"{SERVICE}/WatchState", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    text = ""
    async with asyncio.timeout(15):
        while not (found := objects_so_far(text)):
            text += (await process.stdout.readline()).decode()
        hub.state["total"] = 4
        while len(found := objects_so_far(text)) < 2:
            text += (await process.stdout.readline()).decode()
        process.terminate()
        await process.wait()
    snapshot, change = found
    assert snapshot["snapshot"]
    assert [(state["name"], state["value"]) for state in snapshot["states"]] == [("total", 0), ("twice", 0)]
    assert [(state["name"], state["value"], state["revision"]) for state in change["states"]] == [
        ("total", 4, "1"),
        ("twice", 8, "1"),
    ]


@pytest.mark.parametrize(
    ("door", "data", "code", "text", "reason"),
    [
        ("GetState", '{"name": "secret"}', "NotFound", "hub exports no state 'secret'", "NOT_EXPORTED"),
        ("GetState", '{"name": "nothing"}', "NotFound", "hub exports no state 'nothing'", "NOT_EXPORTED"),
        ("GetState", "{}", "NotFound", "hub exports no state ''", "NOT_EXPORTED"),
        ("GetState", '{"name": "big"}', "OutOfRange", "beyond 2^53", "ANSWER"),
        ("SetState", '{"name": "secret", "value": 1}', "NotFound", "hub accepts no state 'secret'", "NOT_ACCEPTED"),
        ("SetState", '{"name": "twice", "value": 1}', "NotFound", "hub accepts no state 'twice'", "NOT_ACCEPTED"),
        ("SetState", '{"name": "goal", "value": 1e300}', "InvalidArgument", "beyond 2^53", "INVALID_MESSAGE"),
        ("SetState", '{"name": "goal", "json": "bm9uZQ=="}', "InvalidArgument", "no JSON", "INVALID_MESSAGE"),
        ("SetState", '{"name": "total", "value": {}}', "Internal", "the handler of exchange.state.set failed",
         "HANDLER_FAILED"),
        ("WatchState", '{"names": ["total", "secret"]}', "NotFound", "exports no state 'secret'", "NOT_EXPORTED"),
        ("WatchState", '{"names": ["big"]}', "OutOfRange", "beyond 2^53", "ANSWER"),
        ("Why", '{"key": "secret"}', "NotFound", "hub exports no state 'secret'", "NOT_EXPORTED"),
        ("Why", '{"key": "nothing"}', "NotFound", "hub exports no state 'nothing'", "NOT_EXPORTED"),
        ("Why", '{"key": "hub.1.1"}', "NotFound", "hub knows no message 'hub.1.1'", "NOT_FOUND"),
        ("Trace", '{"id": "nobody.1.1"}', "NotFound", "hub knows no message 'nobody.1.1'", "NOT_FOUND"),
        ("Trace", "{}", "NotFound", "hub knows no message ''", "NOT_FOUND"),
        ("Send", "{}", "InvalidArgument", "the name is empty", "INVALID_MESSAGE"),
        ("Publish", '{"message": {"name": "a..b"}}', "InvalidArgument", "'a..b' is no name", "INVALID_MESSAGE"),
        ("Request", '{"message": {"name": "echo", "to": "no one"}}', "InvalidArgument", "no exchange id",
         "INVALID_MESSAGE"),
        ("Observe", '{"pattern": "a.*b"}', "InvalidArgument", "no pattern", "INVALID_MESSAGE"),
    ],
)  # fmt: skip
async def test_what_a_door_refuses_has_a_status_and_a_reason(
    grpcurl: Tool, hub: Exchange, door: str, data: str, code: str, text: str, reason: str
) -> None:
    err = await refused(grpcurl(f"{SERVICE}/{door}", data))
    assert f"Code: {code}" in err
    assert text in err
    assert f'"reason": "{reason}"' in err
    assert '"domain": "exchange"' in err
    assert (hub.state["total"], hub.state["goal"], hub.state["secret"]) == (0, 10, "hidden")


async def test_why_a_value_is_what_it_is(grpcurl: Tool, hub: Exchange) -> None:
    said = await answered(grpcurl(f"{SERVICE}/Why", '{"key": "twice"}'))
    assert (said["value"], said["answer"]) == (0, "twice is 0: hub started with that")
    assert "transaction" not in said
    await answered(grpcurl(f"{SERVICE}/SetState", '{"name": "total", "value": 4}'))
    said = await answered(grpcurl(f"{SERVICE}/Why", '{"key": "twice"}'))
    assert (said["value"], said["revision"], said["exchange"], said["key"]) == (8, "1", "hub", "twice")
    twice, total = said["transaction"]["changes"]
    assert (twice["name"], twice["old"], twice["new"], twice["computed"], twice["because"]) == (
        "twice", 0, 8, True, ["total"],
    )  # fmt: skip
    assert (total["name"], total["old"], total["new"]) == ("total", 0, 4)
    assert (said["transaction"]["number"], said["transaction"]["handler"]) == ("1", "exchange.state.set")
    (span, reply) = said["trace"]["spans"]
    assert (span["id"], span["name"]) == (said["transaction"]["cause"], "exchange.state.set")
    assert reply["reply_to"] == span["id"]
    hub.state["total"] = 2**60
    said = await answered(grpcurl(f"{SERVICE}/Why", '{"key": "total"}'))
    assert "value" not in said  # `Value` cannot say it; its text can
    assert said["transaction"]["changes"][0]["new"] == str(2**60)


async def test_why_of_a_message(grpcurl: Tool) -> None:
    sent = await answered(grpcurl(f"{SERVICE}/Send", '{"message": {"name": "echo"}}'))
    said = await answered(grpcurl(f"{SERVICE}/Why", json.dumps({"key": sent["id"]})))
    assert said["answer"].startswith("echo from hub was handled by ")
    assert [span["id"] for span in said["trace"]["spans"]] == [sent["id"]]


async def test_a_conversation_typed_by_hand(grpcurl: Tool) -> None:
    hello = {"hello": {"exchange": "me"}}
    message = {"name": "compute.sum", "kind": "KIND_REQUEST", "value": {"a": 5, "b": 3}}
    code, out, err = await grpcurl(
        f"{SERVICE}/Peer", f"{json.dumps(hello)} {json.dumps({'batch': {'messages': [message]}})}"
    )
    assert (code, err) == (0, "")
    welcome, batch, goodbye = objects(out)
    assert welcome["welcome"]["exchange"] == "hub"
    (reply,) = batch["batch"]["messages"]
    assert (reply["value"], reply["to"], reply["kind"]) == (8, "me", "KIND_REPLY")
    assert reply["reply_to"] == "me.0.1"
    assert "goodbye" in goodbye


async def test_observe_by_tool(grpcurl: Tool, require_tool: Callable[[str], str], address: str, hub: Exchange) -> None:
    process = await asyncio.create_subprocess_exec(
        require_tool("grpcurl"), "-plaintext", "-d", '{"pattern": "echo", "as_value": true}',
        address, f"{SERVICE}/Observe", stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    text = ""
    async with asyncio.timeout(15):
        while not hub._observers:
            await asyncio.sleep(0.01)
        await hub.request("echo", {"seen": True})
        while len(found := objects_so_far(text)) < 2:
            text += (await process.stdout.readline()).decode()
        process.terminate()
        await process.wait()
    assert [(seen["seen"], seen["message"]["kind"]) for seen in found] == [
        ("SEEN_EMITTED", "KIND_REQUEST"),
        ("SEEN_EMITTED", "KIND_REPLY"),
    ]
    assert found[0]["message"]["value"] == {"seen": True}


def objects_so_far(text: str) -> list[Any]:
    try:
        return objects(text)
    except json.JSONDecodeError:
        return []


# ---------------------------------------------------------------------------------------------------- by stub


def asking(name: str, **payload: Any) -> service_pb2.RequestRequest:
    return service_pb2.RequestRequest(message=message_pb2.Message(name=name, **payload))


async def test_who_asks_with_json_is_answered_with_json(stub: Any) -> None:
    answer = await stub.Request(asking("echo", json=b'{"n": 18446744073709551615}'))
    assert json.loads(answer.message.json) == {"n": 2**64 - 1}
    answer = await stub.Request(asking("echo", data=message_pb2.Data(content=b"\xff", content_type="image/png")))
    assert answer.message.data.content == b"\xff"


async def test_what_a_caller_says_of_itself_is_not_looked_at(stub: Any, hub: Exchange) -> None:
    got: list[Message] = []

    @hub.handle("who")
    async def who(msg: Message) -> None:
        got.append(msg)

    message = message_pb2.Message(id="victim.1.1", name="who", headers={"k": "v"})
    message.trace.hops.add(exchange="victim")
    setattr(message, "from", "victim")
    await stub.Request(service_pb2.RequestRequest(message=message))
    (msg,) = got
    assert (msg.from_, msg.trace, dict(msg.headers)) == ("hub", ["hub"], {"k": "v"})
    assert msg.id.startswith("hub.")


async def test_a_status_has_its_reason_and_no_internals(stub: Any, hub: Exchange) -> None:
    @hub.handle("fails")
    async def fails() -> None:
        raise RuntimeError("secret")

    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await stub.Request(asking("fails"))
    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert failed.value.details() == "the handler of fails failed"
    status = rpc_status.from_call(failed.value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["at"]) == ("HANDLER_FAILED", "exchange", "hub")


@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_a_call_that_ends_cancels_the_handler(stub: Any, hub: Exchange, how: str) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @hub.handle("hangs")
    async def hangs() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    call = stub.Request(asking("hangs"), timeout=0.3 if how == "deadline" else None)
    await asyncio.wait_for(began.wait(), 5)
    if how == "cancel":
        call.cancel()
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await call
    await asyncio.wait_for(ended.wait(), 5)


async def test_observers_see_the_same_and_a_slow_one_is_told_what_it_missed(
    stub: Any, hub: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exchange_grpc.service.OBSERVER_RATE", 1e9)
    fast, slow = (stub.Observe(service_pb2.ObserveRequest(pattern="echo")) for _ in range(2))
    for call in (fast, slow):
        await call.initial_metadata()
    large = "x" * 50_000
    seen = 0
    for n in range(500):
        await hub.request("echo", large)
        for _ in range(2):
            response = await asyncio.wait_for(fast.read(), 5)
            seen += 1 + response.missed
        assert response.missed == 0, n
    assert seen == 1_000
    await hub.request("echo", "last")  # of the slow one's queue, if not more, this is missed
    got, missed = 0, 0
    async with asyncio.timeout(20):
        while got + missed < 1_000:
            response = await slow.read()
            got += 1
            missed += response.missed
            if got % 100 == 0:
                await hub.request("echo", "more")
    assert missed > 0
    for call in (fast, slow):
        call.cancel()


async def test_observe_shows_changes_of_the_state_and_nothing_of_the_system(stub: Any, hub: Exchange) -> None:
    call = stub.Observe(service_pb2.ObserveRequest(as_value=True))
    await call.initial_metadata()
    await hub.request("exchange.peers")
    hub.state.total = 7
    response = await asyncio.wait_for(call.read(), 5)
    assert response.seen == service_pb2.SEEN_SET
    assert (response.message.name, response.message.value.number_value) == ("total", 7)
    call.cancel()


async def test_streams_end_when_the_exchange_does(stub: Any, hub: Exchange) -> None:
    call = stub.Observe(service_pb2.ObserveRequest())
    await call.initial_metadata()
    async with asyncio.timeout(10):
        await hub.close()
        assert await call.read() is grpc.aio.EOF


async def test_a_pattern_that_is_none(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="is no pattern") as failed:
        await stub.Observe(service_pb2.ObserveRequest(pattern="a b")).read()
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("ttl_us", "timeout", "expected"),
    [(0, None, 30), (0, 5, 5), (0, 500, 500), (2_000_000, 500, 2), (7_000_000, None, 7)],
)
async def test_a_request_has_the_time_of_its_call(
    stub: Any, hub: Exchange, ttl_us: int, timeout: float | None, expected: float
) -> None:
    hub.handle("left", lambda msg: msg.deadline - hub._now())
    message = message_pb2.Message(name="left", ttl_us=ttl_us)
    answer = await stub.Request(service_pb2.RequestRequest(message=message), timeout=timeout)
    assert expected - 1 < answer.message.value.number_value < expected + 2  # gRPC rounds long ones up
