"""WebSocket beyond what every transport does: who may connect, what is spoken, JSON, and how it stops.

The other end is the client of `websockets`, or a plain socket where that would not do what is tested. What strangers
may do to it is in `test_abuse.py`.
"""

import asyncio
import base64
import json
import logging
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from faults import Proxy
from roles import echo
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from world import soon, until

from exchange.v1 import frame_pb2, message_pb2
from exchange_grpc import AddressError, Exchange, LinkError
from exchange_grpc.limits import TEXT_TURN_BYTES
from exchange_grpc.transports import websocket
from exchange_grpc.transports.origins import Origins


@pytest.fixture
async def hub() -> AsyncIterator[tuple[Exchange, str]]:
    async with Exchange("hub", handlers={"echo": echo}) as hub:
        yield hub, await hub.listen("ws://127.0.0.1:0")


def page(url: str, origin: str, host: str = "") -> connect:
    """A client that connects as the page of a browser would."""
    return connect(
        url, subprotocols=[websocket.BINARY], origin=origin, additional_headers={"Host": host} if host else {}
    )  # type: ignore[arg-type]


async def asked(url: str, *lines: str) -> tuple[str, dict[str, str], str]:
    """The status, the headers and the body that a plain HTTP request gets."""
    host, port, path = websocket.address_of(url)
    reader, writer = await soon(asyncio.open_connection(host, port))
    said = lines or (f"GET {path} HTTP/1.1", f"Host: {host}:{port}")
    ends = () if any(line.startswith("Connection") for line in said) else ("Connection: close",)
    writer.write("\r\n".join((*said, *ends, "", "")).encode())
    head, _, body = (await soon(reader.read())).decode().partition("\r\n\r\n")
    writer.close()
    status, *headers = head.split("\r\n")
    return status, dict(line.lower().split(": ", 1) for line in headers), body


def hello(id: str, **fields: Any) -> bytes:
    return frame_pb2.Frame(hello=frame_pb2.Hello(exchange=id, **fields)).SerializeToString()


async def heard(client: ClientConnection) -> frame_pb2.Frame:
    data = await soon(client.recv())
    assert isinstance(data, bytes)
    return frame_pb2.Frame.FromString(data)


async def read(client: ClientConnection) -> Any:
    text = await soon(client.recv())
    assert isinstance(text, str)
    return json.loads(text)


async def say(client: ClientConnection, **frame: Any) -> None:
    await client.send(json.dumps(frame))


async def closed(client: ClientConnection) -> int | None:
    """The code it was closed with, whatever else comes before."""
    with suppress(ConnectionClosed):
        while True:
            await soon(client.recv())
    return client.close_code


# -------------------------------------------------------------------------------------------------------- origins

LISTED = ("https://app.example.com", "http://localhost:3000")
MATRIX = [
    # Origin, Host, and whether that may
    ([], ["127.0.0.1:8080"], True),
    ([], [], True),
    (["http://127.0.0.1:8080"], ["127.0.0.1:8080"], True),
    (["http://localhost:8080"], ["localhost:8080"], True),
    (["http://localhost:8080"], ["LOCALHOST:8080"], True),
    (["http://[::1]:8080"], ["[::1]:8080"], True),
    (["http://192.0.2.7"], ["192.0.2.7"], True),
    (["http://hub.internal:8080"], ["hub.internal:8080"], True),
    (["https://app.example.com"], ["127.0.0.1:8080"], True),
    (["http://localhost:3000"], ["127.0.0.1:8080"], True),
    (["http://127.0.0.1:8081"], ["127.0.0.1:8080"], False),
    (["http://127.0.0.1"], ["127.0.0.1:8080"], False),
    (["http://localhost:8080"], ["127.0.0.1:8080"], False),
    (["https://127.0.0.1:8080"], ["127.0.0.1:8080"], False),
    (["http://127.0.0.1:8080/"], ["127.0.0.1:8080"], False),
    (["http://evil.example:8080"], ["evil.example:8080"], False),  # whose name leads here
    (["http://evil.example"], ["127.0.0.1:8080"], False),
    (["null"], ["127.0.0.1:8080"], False),
    ([""], ["127.0.0.1:8080"], False),
    ([""], [""], False),
    (["http://"], [""], False),
    (["http://127.0.0.1:8080"], [], False),
    (["http://127.0.0.1:8080"], ["127.0.0.1:8080", "x"], False),
    (["http://127.0.0.1:8080", "http://evil.example"], ["127.0.0.1:8080"], False),
    (["https://app.example.com", "https://app.example.com"], ["127.0.0.1:8080"], False),
    (["https://APP.example.com"], ["127.0.0.1:8080"], False),
    (["https://app.example.com:443"], ["127.0.0.1:8080"], False),
    (["http://app.example.com"], ["127.0.0.1:8080"], False),
    (["https://sub.app.example.com"], ["127.0.0.1:8080"], False),
    (["https://app.example.com.evil.example"], ["127.0.0.1:8080"], False),
]


@pytest.mark.parametrize(("origins", "hosts", "may"), MATRIX)
def test_origins(origins: list[str], hosts: list[str], may: bool) -> None:
    assert Origins(LISTED, "hub.internal").permit(origins, hosts) is may


@pytest.mark.parametrize(
    "bad",
    ["*", "", "null", "app.example.com", "https://app.example.com/", "https://APP.example.com", "https://x:443",
     "http://x:80", "https://*.example.com", "https://x y"],
)  # fmt: skip
async def test_what_is_no_origin_cannot_be_listed(bad: str) -> None:
    async with Exchange("e") as e:
        with pytest.raises(AddressError, match="is no origin as browsers send it"):
            await e.listen("ws://127.0.0.1:0", origins=[bad])


async def test_origins_are_for_pages() -> None:
    async with Exchange("e") as e:
        with pytest.raises(AddressError, match="origins are for ws://"):
            await e.listen("grpc://127.0.0.1:0", origins=["https://app.example.com"])


async def test_a_page_of_a_strange_origin_is_refused_before_the_upgrade(caplog: pytest.LogCaptureFixture) -> None:
    async with Exchange("hub") as hub:
        url = await hub.listen("ws://127.0.0.1:0", origins=["https://app.example.com"])
        own = url.replace("ws://", "http://").removesuffix("/v1/peer")
        for origin in ("https://app.example.com", own):
            async with page(url, origin) as client:
                await client.send(hello("page"))
                assert (await heard(client)).welcome.exchange == "hub"
            await until(lambda: not hub.peers)
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            with pytest.raises(InvalidStatus) as refused:
                async with page(url, origin):
                    pass
            assert refused.value.response.status_code == 403
            assert refused.value.response.body == b"pages of this origin may not talk to this exchange"
    said = [record.getMessage() for record in caplog.records if "refused a page" in record.getMessage()]
    assert said[0] == "refused a page of 'https://evil.example': its origin is not listed (--origin)"
    assert len(said) == 3


# ---------------------------------------------------------------------------------------------------- subprotocols


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, None),
        (["exchange.v1"], "exchange.v1"),
        (["exchange.v1.json"], "exchange.v1.json"),
        (["exchange.v1", "exchange.v1.json"], "exchange.v1"),
        (["exchange.v1.json", "exchange.v1"], "exchange.v1.json"),
        (["exchange.v2", "exchange.v1.json"], "exchange.v1.json"),
    ],
)
async def test_the_first_that_is_known_is_spoken(
    hub: tuple[Exchange, str], offered: list[Any] | None, chosen: str | None
) -> None:
    async with connect(hub[1], subprotocols=offered) as client:
        assert client.subprotocol == chosen
        await client.send(hello("c"))  # both are always understood
        if chosen == "exchange.v1.json":
            assert (await read(client))["welcome"]["exchange"] == "hub"
        else:
            assert (await heard(client)).welcome.exchange == "hub"


@pytest.mark.parametrize("offered", [["exchange.v2"], ["EXCHANGE.V1"], ["graphql-ws", "mqtt"]])
async def test_none_that_is_known_is_refused(hub: tuple[Exchange, str], offered: list[Any]) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(hub[1], subprotocols=offered):
            pass
    assert refused.value.response.status_code == 400
    assert b"exchange.v1 and exchange.v1.json" in (refused.value.response.body or b"")


async def test_compression_is_declined(hub: tuple[Exchange, str]) -> None:
    async with connect(hub[1], compression="deflate") as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


# ------------------------------------------------------------------------------------------------------------ JSON


async def test_a_conversation_in_text(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    async with connect(url, subprotocols=[websocket.TEXT]) as client:
        await say(client, hello={"exchange": "me", "features": ["value"], "of_the_future": [1]})
        welcome = (await read(client))["welcome"]
        assert (welcome["exchange"], welcome["relay"], "echo" in welcome["interest"]["handles"]) == ("hub", True, True)
        await say(
            client,
            batch={
                "messages": [
                    {"kind": "KIND_REQUEST", "name": "echo", "value": {"a": 5, "b": [0.5, None, "ü"]}, "x": 1},
                    {"name": "a name with spaces"},
                    {"name": "nobody.home"},
                ]
            },
        )
        got = [await read(client)]
        while len(found := {message["name"]: message for frame in got for message in _messages(frame)}) < 2:
            got.append(await read(client))
        assert found["echo"]["value"] == {"a": 5, "b": [0.5, None, "ü"]}
        assert found["echo"]["reply_to"] == "me.0.1"
        assert found["nobody.home"]["error"]["code"] == 12
        (reject,) = [frame["reject"] for frame in got if "reject" in frame]
        assert (reject["seq"], reject["status"]["code"]) == ("2", 3)
        assert reject["status"]["details"][0]["reason"] == "INVALID_MESSAGE"

        answer = asyncio.create_task(exchange.request("echo", "later"))
        assert await answer == "later"
        await say(client, goodbye={})
        assert await closed(client) == 1000
    await until(lambda: not exchange.peers)


def _messages(frame: Any) -> Any:
    return frame.get("batch", {}).get("messages", [])


async def test_bytes_of_a_payload_are_base64_in_text_and_camels_are_understood(hub: tuple[Exchange, str]) -> None:
    async with connect(hub[1], subprotocols=[websocket.TEXT]) as client:
        await say(client, hello={"exchange": "me"})
        await read(client)
        packed = base64.b64encode(b"[1, 2]").decode()
        await say(
            client, batch={"messages": [{"kind": "KIND_REQUEST", "name": "echo", "json": packed, "ttlUs": "5000000"}]}
        )
        (reply,) = _messages(await read(client))
        assert base64.b64decode(reply["json"]) == b"[1,2]"


async def test_a_large_text_is_read_and_written_too(hub: tuple[Exchange, str]) -> None:
    large = "x" * (4 * TEXT_TURN_BYTES)
    async with connect(hub[1], subprotocols=[websocket.TEXT]) as client:
        await say(client, hello={"exchange": "me", "features": ["value"]})
        await read(client)
        for n in range(3):
            await say(client, batch={"messages": [{"kind": "KIND_REQUEST", "name": "echo", "value": [n, large]}]})
        assert [message["value"] for _ in range(3) for message in _messages(await read(client))] == [
            [n, large] for n in range(3)
        ]


@pytest.mark.parametrize(
    "text",
    ["", "hello", "[]", "null", "7", '{"hello": 7}', '{"hello": {"exchange": ["x"]}}', '{"hello": {"epoch": -1}}',
     '{"a": 1', "[" * 100_000, '{"batch": {"messages": [' + "{}," * 100_000 + "{}]}}",
     '{"batch": {"messages": [{"value": ' + "[" * 500 + "]" * 500 + "}]}}", "\n\x00"],
)  # fmt: skip
@pytest.mark.parametrize("greeted", [False, True])
async def test_a_text_that_is_no_frame_ends_with_a_reason(hub: tuple[Exchange, str], text: str, greeted: bool) -> None:
    exchange, url = hub
    async with connect(url, subprotocols=[websocket.TEXT]) as client:
        if greeted:
            await say(client, hello={"exchange": "me"})
            await read(client)
        await client.send(text)
        goodbye = (await read(client))["goodbye"]
        assert goodbye["status"]["code"] == 3
        assert goodbye["status"]["message"] == "the frame cannot be parsed"
        assert await closed(client) == 1000
    await until(lambda: not exchange.peers)


async def test_a_text_that_is_no_utf8_ends_with_a_reason(hub: tuple[Exchange, str]) -> None:
    async with connect(hub[1]) as client:
        await client.send(b'{"hello": {"exchange": "\xff"}}', text=True)
        assert (await heard(client)).goodbye.status.message == "the frame cannot be parsed"


async def test_bytes_that_are_no_frame_end_with_a_reason(hub: tuple[Exchange, str]) -> None:
    async with connect(hub[1]) as client:
        await client.send(b"\xff\xff\xff")
        assert (await heard(client)).goodbye.status.message == "the frame cannot be parsed"
        assert await closed(client) == 1000


async def test_an_error_with_foreign_details_reaches_who_speaks_text(hub: tuple[Exchange, str]) -> None:
    async with connect(hub[1], subprotocols=[websocket.TEXT]) as client, connect(hub[1]) as worker:
        await worker.send(hello("worker", interest=frame_pb2.InterestSet(handles=["odd"])))
        await heard(worker)
        await say(
            client,
            hello={"exchange": "me"},
        )
        await read(client)
        await say(client, batch={"messages": [{"kind": "KIND_REQUEST", "name": "odd"}]})
        request = (await heard(worker)).batch.messages[0]
        reply = message_pb2.Message(kind=message_pb2.KIND_REPLY, name="odd", reply_to=request.id)
        reply.error.code, reply.error.message = 3, "odd"
        reply.error.details.add(type_url="type.googleapis.com/made.up", value=b"\xff")
        await worker.send(frame_pb2.Frame(batch=frame_pb2.Batch(messages=[reply])).SerializeToString())
        (answer,) = _messages(await read(client))
        assert answer["error"] == {"code": 3, "message": "odd"}


# ------------------------------------------------------------------------------------------------------ plain HTTP


async def test_other_requests_get_a_clear_answer(hub: tuple[Exchange, str]) -> None:
    _, url = hub
    status, headers, body = await asked(url)
    assert (status, headers["upgrade"]) == ("HTTP/1.1 426 Upgrade Required", "websocket")
    assert "exchange.v1" in body
    for path in ("/", "/v1", "/v1/peer/", "/v1/peers", "/%00", "//v1/peer"):
        status, headers, body = await asked(url, f"GET {path} HTTP/1.1", "Host: x")
        assert (status, body) == ("HTTP/1.1 404 Not Found", "Not Found")
        assert not {"server", "date", "x-powered-by"} & headers.keys()
        with pytest.raises(InvalidStatus) as refused:
            async with connect(url.replace("/v1/peer", path)):
                pass
        assert refused.value.response.status_code == 404
    assert (await asked(url, "POST /v1/peer HTTP/1.1", "Host: x", "Content-Length: 0"))[0].startswith("HTTP/1.1 405")
    assert (await asked(url, "nonsense"))[0].startswith("HTTP/1.1 400")
    with suppress(ConnectionResetError):  # for it does not read all of that
        assert (await asked(url, "GET / HTTP/1.1", "Host: x", "X: " + "y" * 600_000))[0].startswith("HTTP/1.1 400")


@pytest.mark.parametrize(
    "wrong",
    ["Sec-WebSocket-Version: 8", "Sec-WebSocket-Key: short", "Sec-WebSocket-Protocol: ,;"],
)
async def test_a_wrong_handshake_is_refused(hub: tuple[Exchange, str], wrong: str) -> None:
    fields = {"Host": "x", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "A" * 22 + "=="}
    fields |= dict([wrong.split(": ")])
    lines = [f"{key}: {value}" for key, value in fields.items()]
    status, _, _ = await asked(hub[1], "GET /v1/peer HTTP/1.1", *lines, "Connection: Upgrade")
    assert status.startswith("HTTP/1.1 400")


# ------------------------------------------------------------------------------------------------------- addresses


async def test_addresses() -> None:
    async with Exchange("a", handlers={"echo": echo}) as a, Exchange("b") as b:
        url = await a.listen(transport="websocket", port=0)
        host, port, path = websocket.address_of(url)
        assert (host, path) == ("127.0.0.1", "/v1/peer")
        for spelled in (f"ws://127.0.0.1:{port}", f"ws://127.0.0.1:{port}/", url):
            assert (await b.connect(transport="websocket", url=spelled)).id == "a"
        with pytest.raises(LinkError, match=r"no exchange answers at ws://.*/other: HTTP 404"):
            await b.connect(f"ws://127.0.0.1:{port}/other")
        for bad in ("ws:", "ws://", "ws://:1", "ws://a b:1", "ws://h:99999", "ws://h:1?q", "ws://h:1/p?q", "ws://u:p@h:1",
                    "ws://h:1/#f", "http://h:1", "ws://h:1/ü"):  # fmt: skip
            for way in (b.connect, b.listen):
                with pytest.raises(AddressError):
                    await way(bad)
        for bad in ("ws://127.0.0.1", "wss://127.0.0.1:0", "ws://127.0.0.1:0/other"):
            with pytest.raises(AddressError, match="it takes ws://HOST:PORT"):
                await b.listen(bad)
        for away in ("ws://192.0.2.1:50051", "ws://nowhere.invalid:1", url):
            with pytest.raises(AddressError, match="cannot listen at"):
                await b.listen(away)
        named = await b.listen("ws://localhost:0")
        assert (await a.connect(named)).id == "b"


async def test_whoever_is_no_websocket_is_a_link_error() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.com ESMTP\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with Exchange("dialling") as dialling:
        with pytest.raises(LinkError, match="it speaks no WebSocket"):
            await soon(dialling.connect(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    server.close()
    await server.wait_closed()


# ------------------------------------------------------------------------------------------------------------- TLS


@asynccontextmanager
async def behind_tls(url: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A proxy that ends TLS before `url`, as a web server would."""
    host, port, _ = websocket.address_of(url)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(host, port)
        await asyncio.gather(pass_on(reader, there[1]), pass_on(there[0], writer), return_exceptions=True)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def test_wss_is_dialled_with_a_look_at_the_certificate(
    hub: tuple[Exchange, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    async with behind_tls(hub[1], context) as port, Exchange("client") as client:
        websocket._tls.cache_clear()
        with pytest.raises(LinkError, match="its certificate is not trusted"):
            await soon(client.connect(f"wss://localhost:{port}"))
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        websocket._tls.cache_clear()
        with pytest.raises(LinkError, match="its certificate is not trusted"):
            await soon(client.connect(f"wss://127.0.0.1:{port}"))  # it is for another name
        peer = await soon(client.connect(f"wss://localhost:{port}"))
        large = "x" * 3_000_000
        assert await peer.request("echo", large) == large
        await client.close()
        websocket._tls.cache_clear()


# ------------------------------------------------------------------------------------------------ breaks and stops


async def test_nothing_is_lost_or_doubled_when_a_link_is_cut_twenty_times_under_load() -> None:
    taken: list[int] = []
    resumed: list[dict[str, Any]] = []
    async with Exchange("hub") as hub, Exchange("source") as source:

        @hub.handle("take")
        async def take(msg: Any) -> None:
            taken.append(msg.value)

        source.observe("exchange.event.peer.resumed", lambda msg: resumed.append(msg.value))
        async with Proxy(await hub.listen("ws://127.0.0.1:0")) as proxy:
            await source.connect(proxy.url)
            sent, over = 0, False

            async def load() -> None:
                nonlocal sent
                while not over:
                    for _ in range(50):
                        await source.send("take", sent)
                        sent += 1
                    await asyncio.sleep(0.001)

            loading = asyncio.create_task(load())
            for n in range(20):
                await soon(proxy.cut_after(20_000 + 1_000 * n, reset=n % 2 == 1))  # most likely inside a message
                await until(lambda n=n: len(resumed) == n + 1, 20)  # type: ignore[misc]
            over = True
            await loading
            await until(lambda: len(taken) >= sent, 20)
    assert taken == list(range(sent))
    assert sent > 1_000
    assert [(event["recovered"], event["uncertain"]) for event in resumed] == [(True, [])] * 20


async def test_it_stops_with_goodbye_and_says_that_it_goes_away() -> None:
    began = asyncio.Event()

    async def slow() -> str:
        began.set()
        await asyncio.sleep(0.1)
        return "done"

    tasks = asyncio.all_tasks()
    async with Exchange("hub", handlers={"slow": slow}) as hub:
        url = await hub.listen("ws://127.0.0.1:0")
        async with connect(url) as client, connect(url) as silent:
            await client.send(hello("client"))
            await heard(client)
            request = message_pb2.Message(kind=message_pb2.KIND_REQUEST, name="slow")
            await client.send(frame_pb2.Frame(batch=frame_pb2.Batch(messages=[request])).SerializeToString())
            await soon(began.wait())
            closing = asyncio.create_task(hub.close())
            late = await connect(url)  # it is still there
            assert (await heard(client)).batch.messages[0].json == b'"done"'  # what runs is ended
            goodbye = await heard(client)
            assert (goodbye.WhichOneof("kind"), goodbye.goodbye.retry_after_ms) == ("goodbye", 500)
            assert await closed(client) == 1001
            assert (await heard(silent)).WhichOneof("kind") == "goodbye"
            assert await closed(silent) == 1001
            assert await closed(late) == 1001
            await soon(closing)
        with pytest.raises(OSError, match="Connect"):
            await connect(url)
    await until(lambda: asyncio.all_tasks() <= tasks)


async def test_who_comes_too_late_is_told(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    host, port, path = websocket.address_of(url)
    reader, writer = await asyncio.open_connection(host, port)
    deaf, deaf_writer = await asyncio.open_connection(host, port)
    upgrade = (
        f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    )
    upgrade += "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    deaf_writer.write(upgrade.encode())
    assert b" 101 " in await soon(deaf.readuntil(b"\r\n\r\n"))
    closing = asyncio.create_task(exchange._listeners[0].close())
    await soon(deaf.readexactly(1))  # it says that it goes away, and waits for us to say so too
    writer.write(upgrade.encode())
    assert b" 503 " in await soon(reader.readuntil(b"\r\n\r\n"))
    await soon(closing)
    for one in (writer, deaf_writer):
        one.close()


async def test_it_stops_with_plain_connections_open(hub: tuple[Exchange, str]) -> None:
    exchange, url = hub
    host, port, _ = websocket.address_of(url)
    idle, leaves = await asyncio.open_connection(host, port)
    halfway, writer = await asyncio.open_connection(host, port)
    writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    await soon(halfway.readuntil(b"\r\n\r\n"))
    await soon(exchange.close())
    assert await soon(idle.read()) == b""
    leaves.close()
    writer.close()


async def test_neither_signals_nor_loggers_are_touched() -> None:
    names = ("uvicorn", "uvicorn.error", "uvicorn.access", "")
    before = [(log.level, list(log.handlers), log.propagate) for log in map(logging.getLogger, names)]
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with Exchange("hub") as hub:
        await asked(await hub.listen("ws://127.0.0.1:0"), "nonsense")
        assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        assert before == [(log.level, list(log.handlers), log.propagate) for log in map(logging.getLogger, names)]


def test_any_loop_will_do() -> None:
    async def main() -> None:
        async with Exchange("hub", handlers={"echo": echo}) as hub:
            async with Proxy(await hub.listen("ws://127.0.0.1:0")) as proxy, Exchange("client") as client:
                peer = await client.connect(proxy.url)
                large = "x" * 3_000_000
                assert await peer.request("echo", large) == large
                assert await asyncio.gather(*(peer.request("echo", n) for n in range(200))) == list(range(200))
                proxy.reset()
                assert await soon(peer.request("echo", "again")) == "again"
            await until(lambda: not any(peer.connected for peer in hub.peers))
        await until(lambda: len(asyncio.all_tasks()) == 1)

    uvloop.run(main())
