"""The blocking client: against a real exchange, and a fake channel for what a real one cannot do on demand."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc_testing
import pytest
from google.protobuf.any_pb2 import Any as AnyPb
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from exchange.v1 import message_pb2, service_pb2
from exchange_grpc import (
    AddressError,
    Cancelled,
    Code,
    DeadlineExceeded,
    Exchange,
    ExchangeError,
    HandlerFailed,
    InvalidMessage,
    Kind,
    LimitExceeded,
    LinkError,
    Message,
    Refused,
    RequestError,
    Seen,
    Unavailable,
    Unhandled,
    blocking,
)
from exchange_grpc.blocking import Client, connect

SOON = 15.0  # seconds that nothing here should ever take
DETAILS = "grpc-status-details-bin"

T = TypeVar("T")


class Hub:
    """An exchange on a loop and a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.began, self.ended = threading.Event(), threading.Event()
        self.got: list[Message] = []
        self.app, self.url = self.run(self._open())

    def run(self, work: Awaitable[T]) -> T:
        return asyncio.run_coroutine_threadsafe(self._as_coroutine(work), self._loop).result(SOON)

    async def _as_coroutine(self, work: Awaitable[T]) -> T:
        return await work

    async def _open(self) -> tuple[Exchange, str]:
        app = Exchange(
            "hub",
            state={"total": 0, "target": 3, "secret": 1, "a b": 0, "double": lambda s: s.total * 2},
            exports=("total", "target", "double"),
            accepts=("target",),
        )

        @app.handle("echo")
        async def echo(msg: Message) -> Any:
            self.got.append(msg)
            return msg.value

        @app.handle("hang")
        async def hang() -> None:
            self.began.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.set()

        @app.handle("fail")
        async def fail() -> None:
            raise RuntimeError("a secret")

        @app.handle("refuse")
        async def refuse() -> None:
            raise Refused("not today", reason="CLOSED")

        @app.handle("add")
        async def add(msg: Message, sig: Any, state: Any) -> None:
            state.total += msg.value

        return app, await app.listen("grpc://127.0.0.1:0")

    async def behind(self) -> Exchange:
        """An exchange that is linked to it."""
        app = Exchange("behind", state={"deep": 1}, exports=["deep"], accepts=["deep"])
        await app.connect(self.app)
        return app

    def observers(self) -> int:
        """How many observe it now."""
        return int(self.run(self.app.request("exchange.stats"))["observers"])

    def close(self) -> None:
        self.run(self.app.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SOON)
        self._loop.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def ex(hub: Hub) -> Iterator[Client]:
    with connect(hub.url) as ex:
        yield ex


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


# ------------------------------------------------------------------------------------------------- connect


def test_connect_says_whom_it_reached(hub: Hub) -> None:
    with connect(hub.url) as ex:
        assert ex.id == "hub"
        assert repr(ex) == f"<Client of hub at {hub.url}>"
        assert repr(ex.state) == "<state of hub>"
    assert repr(ex) == f"<Client of hub at {hub.url}, closed>"


def test_connect_by_a_unix_socket(hub: Hub, tmp_path: Path) -> None:
    url = hub.run(hub.app.listen(f"unix:{tmp_path}/hub.sock"))
    with connect(url) as ex:
        assert ex.request("echo", 1) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:50051", "grpc://127.0.0.1", "http://127.0.0.1:1", "unix:", ""])
def test_connect_refuses_what_is_no_url(url: str) -> None:
    with pytest.raises(AddressError):
        connect(url)


def test_connect_to_nobody_fails_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        for url in (f"grpc://127.0.0.1:{taken.getsockname()[1]}", f"unix:{tmp_path}/nobody.sock"):
            with pytest.raises(LinkError, match="no exchange answers at") as failed:
                connect(url)
            assert url in str(failed.value)


def test_connect_to_somebody_silent_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocking, "HANDSHAKE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(LinkError, match="no exchange answers"):
        connect(f"grpc://127.0.0.1:{silent.getsockname()[1]}")


def test_connect_to_another_grpc_server_says_that_it_is_no_exchange(pool: ThreadPoolExecutor) -> None:
    server = grpc.server(pool)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(LinkError, match="no exchange answers"):
            connect(f"grpc://127.0.0.1:{port}")
    finally:
        server.stop(None).wait(SOON)


def test_a_closed_client_says_so(hub: Hub) -> None:
    ex = connect(hub.url)
    ex.close()
    ex.close()
    for call in (lambda: ex.request("echo"), lambda: ex.observe(), lambda: ex.state.watch("total")):
        with pytest.raises(ExchangeError, match="client of hub is closed"):
            call()


def test_a_lost_connection_is_made_anew(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    url = f"unix:{tmp_path}/hub.sock"
    with served(url, "first") as process, connect(url) as ex:
        waiting = pool.submit(ex.request, "demo.wait", {"seconds": 60})
        with ex.observe("demo.**") as seen:
            ex.request("demo.items", {"limit": 1})
            assert next(seen)[0].name == "demo.items"
            process.kill()
            with pytest.raises(Unavailable) as lost:
                list(seen)
        assert lost.value.delivered is None
        with pytest.raises(Unavailable) as lost:
            waiting.result(SOON)
        assert lost.value.delivered is None
        process.wait(SOON)
        with pytest.raises(Unavailable):
            ex.request("echo", 1)
        Path(f"{tmp_path}/hub.sock").unlink(missing_ok=True)
        with served(url, "second"):
            eventually(lambda: ex.request("echo", 1) == 1)
            state = ex.state.get("total")
            assert (state.exchange, state.value) == ("second", 0)
            assert ex.id == "second"


@contextmanager
def served(url: str, id: str) -> Iterator[subprocess.Popen[str]]:
    """A real `exchange serve --demo`."""
    command = [str(Path(sys.executable).with_name("exchange")), "serve", "--demo", "--id", id, "--grpc", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert "is ready at" in process.stdout.readline()
            yield process
        finally:
            process.terminate()


def eventually(true: Callable[[], bool]) -> None:
    """Try again while the connection is being made."""
    pause = threading.Event()
    for _ in range(int(SOON / 0.02)):
        try:
            assert true()
            return
        except Unavailable:
            pause.wait(0.02)
    pytest.fail("it did not become true")


# ------------------------------------------------------------------------------------- messages and values


@pytest.mark.parametrize(
    "value", [None, True, 8, 2**64 - 1, -(2**63), 2**53 + 1, 1.0, 0.1, "größe 🚀", [1, [2.5, None]], {"a": {"b": []}}]
)
def test_values_come_back_exactly(ex: Client, value: Any) -> None:
    answer = ex.request("echo", value)
    assert (answer, type(answer)) == (value, type(value))


def test_bytes_come_back_as_bytes(ex: Client) -> None:
    assert ex.request("echo", b"\x00\xff") == b"\x00\xff"
    assert ex.request("echo", bytearray(b"[1]")) == b"[1]"


def test_a_request_is_addressed_and_has_headers(ex: Client, hub: Hub) -> None:
    assert ex.request("echo", 1, to="hub", headers={"tenant": "blue"}) == 1
    (msg,) = hub.got
    assert (msg.kind, msg.to, dict(msg.headers)) == (Kind.REQUEST, "hub", {"tenant": "blue"})


def test_a_request_may_wait_longer_than_messages_live_by_default(ex: Client, hub: Hub) -> None:
    for timeout in (100, float("inf")):
        assert ex.request("echo", timeout=timeout) is None
        assert hub.got[-1].deadline - hub._loop.time() > 90


def test_send_and_publish_return_ids_that_can_be_traced(ex: Client, hub: Hub) -> None:
    arrived: Future[Message] = Future()

    async def subscribe() -> None:
        hub.app.subscribe("news.**", arrived.set_result)

    hub.run(subscribe())
    id = ex.send("echo", 7, headers={"k": "v"})
    news = ex.publish("news.today", {"n": 1})
    assert (arrived.result(SOON).id, arrived.result().value) == (news, {"n": 1})
    trace = ex.trace(id)
    assert (trace["exchange"], trace["root"]) == ("hub", id)
    (span,) = trace["spans"]
    assert (span["name"], span["kind"]) == ("echo", "KIND_SEND")
    assert type(span["hops"][0]["at_us"]) is int


def test_what_cannot_be_sent_is_refused_here(fake: "Fake") -> None:
    ex = fake.client
    bad: list[tuple[type[Exception], Callable[[], Any]]] = [
        (InvalidMessage, lambda: ex.request("a b")),
        (InvalidMessage, lambda: ex.request("")),
        (InvalidMessage, lambda: ex.send("echo", float("nan"))),
        (InvalidMessage, lambda: ex.send("echo", {1, 2})),
        (InvalidMessage, lambda: ex.send("echo", 2**64)),
        (InvalidMessage, lambda: ex.request("echo", to="not an id")),
        (InvalidMessage, lambda: ex.publish("echo", headers={"": "x"})),
        (LimitExceeded, lambda: ex.publish("echo", headers={"k": "x" * 10_000})),
        (LimitExceeded, lambda: ex.request("echo", "x" * 2**22)),
        (InvalidMessage, lambda: ex.observe("a..b")),
        (InvalidMessage, lambda: ex.state.set("target", b"bytes")),
        (InvalidMessage, lambda: ex.state.set("target", 1, expected=-1)),
        (InvalidMessage, lambda: ex.state.get("\ud800")),
        (InvalidMessage, lambda: ex.state.watch("\ud800")),
        (ValueError, lambda: ex.request("echo", timeout=float("nan"))),
    ]
    for kind, call in bad:  # the fake answers nothing: whatever was sent would wait for ever
        with pytest.raises(kind):
            call()


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("name", "how", "kind", "code", "reason"),
    [
        ("nobody.home", {}, Unhandled, Code.UNIMPLEMENTED, "UNHANDLED"),
        ("echo", {"to": "nobody"}, Unhandled, Code.UNIMPLEMENTED, "UNHANDLED"),
        ("fail", {}, HandlerFailed, Code.INTERNAL, "HANDLER_FAILED"),
        ("refuse", {}, Refused, Code.INVALID_ARGUMENT, "CLOSED"),
    ],
)
def test_errors_are_those_of_the_tree(
    ex: Client, name: str, how: dict[str, Any], kind: type[RequestError], code: Code, reason: str
) -> None:
    with pytest.raises(kind) as failed:
        ex.request(name, **how)
    error = failed.value
    assert (type(error), error.code, error.reason, error.at) == (kind, code, reason, "hub")
    assert "secret" not in str(error)
    assert error.__cause__ is None  # nothing of gRPC is shown
    assert error.__suppress_context__


@pytest.mark.parametrize("timeout", [0.2, 0, -1])
def test_a_deadline_ends_the_request_and_the_handler(ex: Client, hub: Hub, timeout: float) -> None:
    with pytest.raises(DeadlineExceeded):
        ex.request("hang", timeout=timeout)
    if timeout > 0:
        assert hub.ended.wait(SOON)


def test_a_send_to_nobody_is_unhandled(ex: Client) -> None:
    with pytest.raises(Unhandled):
        ex.send("nobody.home")


def test_an_unknown_id_or_name_is_refused(ex: Client) -> None:
    for ask in (ex.trace, ex.why, ex.state.get):
        with pytest.raises(Refused) as failed:
            ask("nobody.1.1")
        assert failed.value.code is Code.NOT_FOUND


class Fake:
    """A client of a server that is played by the test."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.service = service_pb2.DESCRIPTOR.services_by_name["ExchangeService"]
        self.channel = grpc_testing.channel([self.service], grpc_testing.strict_real_time())
        self.client = Client("grpc://fake", self.channel)
        self.client.id = "fake"
        self.pool = pool

    def answer(self, door: str, call: Callable[[], T], response: Any, **status: Any) -> T:
        """What `call` gives, if the server answers it so."""
        waiting = self.pool.submit(call)
        _, self.request, rpc = self.channel.take_unary_unary(self.service.methods_by_name[door])
        rpc.terminate(response, *ended(**status))
        return waiting.result(SOON)

    def stream(self, door: str, call: Callable[[], T]) -> tuple[Future[T], Any]:
        """A stream that `call` begins, and the server's end of it."""
        waiting = self.pool.submit(call)
        _, self.request, rpc = self.channel.take_unary_stream(self.service.methods_by_name[door])
        rpc.send_initial_metadata(())
        return waiting, rpc


def ended(
    code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", metadata: tuple[tuple[str, bytes], ...] = ()
) -> tuple[Any, ...]:
    return metadata, code, details


@pytest.fixture
def fake(pool: ThreadPoolExecutor) -> Fake:
    return Fake(pool)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, Unhandled),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.INTERNAL, HandlerFailed),
        (grpc.StatusCode.UNKNOWN, RequestError),
        (grpc.StatusCode.NOT_FOUND, Refused),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Refused),
        (grpc.StatusCode.UNAUTHENTICATED, Refused),
    ],
)
@pytest.mark.parametrize("details", ["", "first line\nsecond line"])
def test_a_bare_status_becomes_an_error(fake: Fake, code: grpc.StatusCode, kind: type, details: str) -> None:
    with pytest.raises(RequestError) as failed:
        fake.answer("Request", lambda: fake.client.request("echo"), None, code=code, details=details)
    error = failed.value
    assert (type(error), error.code.name, error.reason, error.delivered) == (kind, code.name, code.name, None)
    assert str(error)
    assert "second" not in str(error)


def rich(code: Code, message: str, **info: Any) -> tuple[tuple[str, bytes], ...]:
    detail = AnyPb()
    detail.Pack(ErrorInfo(domain="exchange", **info))
    return ((DETAILS, Status(code=int(code), message=message, details=[detail]).SerializeToString()),)


def test_details_say_whether_it_was_delivered(fake: Fake) -> None:
    for said, delivered in (("no", False), ("unknown", None)):
        metadata = rich(Code.UNAVAILABLE, "gone", reason="LOST", metadata={"at": "hub", "delivered": said})
        with pytest.raises(Unavailable, match="gone") as failed:
            fake.answer(
                "Request", lambda: fake.client.request("echo"), None,
                code=grpc.StatusCode.UNAVAILABLE, details="gone", metadata=metadata,
            )  # fmt: skip
        assert (failed.value.reason, failed.value.at, failed.value.delivered) == ("LOST", "hub", delivered)


@pytest.mark.parametrize(
    "metadata",
    [
        ((DETAILS, b"\xff\xff garbage"),),
        rich(Code.NOT_FOUND, "gone"),  # another code than the status
        rich(Code.ABORTED, "something else"),
        (
            (
                DETAILS,
                Status(code=10, message="gone", details=[AnyPb(type_url="x/y", value=b"\xff")]).SerializeToString(),
            ),
        ),
    ],
)
def test_details_that_cannot_be_read_do_not_hide_the_status(fake: Fake, metadata: Any) -> None:
    with pytest.raises(Refused, match="gone") as failed:
        fake.answer(
            "Send", lambda: fake.client.send("echo"), None,
            code=grpc.StatusCode.ABORTED, details="gone", metadata=metadata,
        )  # fmt: skip
    assert (failed.value.code, failed.value.reason) == (Code.ABORTED, "ABORTED")


def reply(**payload: Any) -> service_pb2.RequestResponse:
    return service_pb2.RequestResponse(
        message=message_pb2.Message(name="echo", kind=message_pb2.KIND_REPLY, reply_to="fake.1.1", **payload)
    )


def test_an_answer_that_cannot_be_read_is_an_error(fake: Fake) -> None:
    ex = fake.client
    with pytest.raises(InvalidMessage):
        fake.answer("Request", lambda: ex.request("echo"), reply(json=b"{"))
    for answer in (b"1", b"{}", b'{"exchange": 1}'):
        with pytest.raises(ExchangeError, match=r"the answer to exchange\.describe"):
            fake.answer("Request", ex.describe, reply(json=answer))


# -------------------------------------------------------------------------------------------------- observe


def test_observe_shows_messages_and_why(ex: Client) -> None:
    with ex.observe("echo") as seen:
        ex.request("echo", {"n": 1}, headers={"k": "v"})
        request, why = next(seen)
        answer, _ = next(seen)
    assert (why, request.kind, request.value, dict(request.headers)) == (
        Seen.EMITTED,
        Kind.REQUEST,
        {"n": 1},
        {"k": "v"},
    )
    assert (answer.kind, answer.reply_to, answer.from_) == (Kind.REPLY, request.id, "hub")
    assert list(seen) == []
    assert seen.missed == 0
    assert repr(seen) == "<Observation of 'echo' at hub, closed>"


def test_observe_shows_the_state_even_under_names_that_are_none(ex: Client, hub: Hub) -> None:
    async def change() -> None:
        hub.app.state.update({"a b": 5})

    with ex.observe() as seen:
        hub.run(change())
        message, why = next(seen)
    assert (why, message.name, message.value) == (Seen.SET, "a b", 5)


def test_what_was_left_out_is_counted(fake: Fake) -> None:
    waiting, rpc = fake.stream("Observe", lambda: fake.client.observe("**"))
    seen = waiting.result(SOON)
    good = message_pb2.Message(name="echo", id="hub.1.1", json=b"1")
    for response in (
        service_pb2.ObserveResponse(seen=service_pb2.SEEN_EMITTED, message=good, missed=3),
        service_pb2.ObserveResponse(seen=99, message=good),  # type: ignore[arg-type]  # of a later version
        service_pb2.ObserveResponse(seen=service_pb2.SEEN_EMITTED, message=message_pb2.Message(name="a b")),
        service_pb2.ObserveResponse(seen=service_pb2.SEEN_RECEIVED, message=good),
    ):
        rpc.send_response(response)
    assert fake.request.pattern == "**"
    assert (next(seen)[1], seen.missed) == (Seen.EMITTED, 3)
    assert (next(seen)[1], seen.missed) == (Seen.RECEIVED, 5)


def test_a_stream_that_breaks_raises_and_one_that_ends_says_who_stopped(fake: Fake) -> None:
    waiting, rpc = fake.stream("Observe", fake.client.observe)
    rpc.terminate(*ended(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
    with pytest.raises(Unavailable, match="Socket closed"):
        next(waiting.result(SOON))
    waiting, rpc = fake.stream("Observe", fake.client.observe)
    rpc.terminate(*ended())
    with pytest.raises(Unavailable, match="fake has stopped"):
        next(waiting.result(SOON))


@pytest.mark.parametrize("what", ["observe", "watch"])
def test_an_exchange_that_stops_ends_what_observes_it(pool: ThreadPoolExecutor, what: str) -> None:
    hub = Hub()
    with connect(hub.url) as ex, ex.observe() if what == "observe" else ex.state.watch("total") as stream:
        waiting = pool.submit(list, stream)
        hub.close()
        with pytest.raises(Unavailable):
            waiting.result(SOON)


@pytest.mark.parametrize("what", ["stream", "client"])
def test_closing_ends_a_loop_that_waits_in_another_thread(
    ex: Client, hub: Hub, pool: ThreadPoolExecutor, what: str
) -> None:
    seen = ex.observe("echo")
    got: list[Any] = []
    first = threading.Event()

    def read() -> None:
        for message, _ in seen:
            got.append(message.value)
            first.set()

    reading = pool.submit(read)
    ex.send("echo", 1)
    assert first.wait(SOON)
    (seen if what == "stream" else ex).close()
    reading.result(SOON)
    assert got == [1]
    assert list(seen) == []


def test_closing_fails_a_request_that_waits_in_another_thread(ex: Client, hub: Hub, pool: ThreadPoolExecutor) -> None:
    waiting = pool.submit(ex.request, "hang")
    assert hub.began.wait(SOON)
    ex.close()
    with pytest.raises(Cancelled):
        waiting.result(SOON)
    assert hub.ended.wait(SOON)


def test_what_is_closed_is_observed_no_more(ex: Client, hub: Hub) -> None:
    with ex.observe("echo"), ex.observe("**"):
        assert hub.observers() == 2
    eventually_true(lambda: hub.observers() == 0)


def eventually_true(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(SOON / 0.02)):
        if true():
            return
        pause.wait(0.02)
    pytest.fail("it did not become true")


# ---------------------------------------------------------------------------------------------------- state


def test_state_is_read_with_its_cause(ex: Client, hub: Hub) -> None:
    id = ex.send("add", 2**53 + 1)
    eventually_true(lambda: ex.state.get("total").value != 0)
    state = ex.state.get("total")
    assert state == ("hub", "total", 2**53 + 1, 1, hub.app.epoch, id, state.transaction, True)
    double = ex.state.get("double")
    assert (double.value, double.cause, double.transaction) == (2**54 + 2, id, state.transaction)


def test_state_is_set_if_it_is_as_expected(ex: Client) -> None:
    before = ex.state.get("target")
    after = ex.state.set("target", {"n": [2**63]}, expected=before.revision)
    assert (after.value, after.revision) == ({"n": [2**63]}, before.revision + 1)
    assert ex.state.get("target") == after
    with pytest.raises(Refused) as failed:
        ex.state.set("target", 1, expected=before.revision)
    assert (failed.value.code, failed.value.reason) == (Code.ABORTED, "REVISION")
    assert ex.state.set("target", None).value is None


def test_state_that_is_not_ours_is_refused(ex: Client) -> None:
    with pytest.raises(Refused) as failed:
        ex.state.get("secret")
    assert (failed.value.code, failed.value.reason) == (Code.NOT_FOUND, "NOT_EXPORTED")
    with pytest.raises(Refused) as failed:
        ex.state.set("total", 1)
    assert (failed.value.code, failed.value.reason) == (Code.NOT_FOUND, "NOT_ACCEPTED")
    with pytest.raises(Refused) as failed:
        ex.state.watch("total", "secret")
    assert (failed.value.code, failed.value.reason) == (Code.NOT_FOUND, "NOT_EXPORTED")


def test_watch_begins_with_a_snapshot_and_leaves_nothing_out(ex: Client) -> None:
    with ex.state.watch("total", "double") as changes:
        assert repr(changes) == "<Changes of total, double at hub>"
        first = {change.name: (change.value, change.snapshot) for change in (next(changes), next(changes))}
        assert first == {"total": (0, True), "double": (0, True)}
        ids = [ex.send("add", 1) for _ in range(100)]
        totals = []
        for change in changes:
            assert not change.snapshot
            if change.name == "total":
                totals.append((change.value, change.revision, change.cause))
            if len(totals) == 100:
                break
        assert totals == [(n + 1, n + 1, id) for n, id in enumerate(ids)]


def test_watch_without_names_is_all_that_is_exported(ex: Client) -> None:
    with ex.state.watch() as changes:
        assert {next(changes).name for _ in range(3)} == {"total", "target", "double"}


def test_a_watch_that_breaks_raises(fake: Fake) -> None:
    waiting, rpc = fake.stream("WatchState", lambda: fake.client.state.watch("total"))
    value = service_pb2.StateValue(
        name="total", json=b"18446744073709551615", revision=2, cause="hub.1.1", transaction=4
    )
    rpc.send_response(service_pb2.WatchStateResponse(states=[value], snapshot=True))
    changes = waiting.result(SOON)
    assert (list(fake.request.names), fake.request.as_json) == (["total"], True)
    assert next(changes) == ("fake", "total", 2**64 - 1, 2, 0, "hub.1.1", 4, True)
    rpc.terminate(
        *ended(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow", rich(Code.RESOURCE_EXHAUSTED, "slow", reason="SLOW"))
    )
    with pytest.raises(Refused, match="slow") as failed:
        next(changes)
    assert failed.value.reason == "SLOW"


def test_an_exchange_that_was_started_anew_is_asked_who_it_is(fake: Fake) -> None:
    waiting = fake.pool.submit(fake.client.state.get, "total")
    state = service_pb2.StateValue(name="total", json=b"1", epoch=7)
    _, asked, rpc = fake.channel.take_unary_unary(fake.service.methods_by_name["GetState"])
    rpc.terminate(service_pb2.GetStateResponse(state=state), *ended())
    _, described, rpc = fake.channel.take_unary_unary(fake.service.methods_by_name["Request"])
    rpc.terminate(reply(json=b'{"exchange": "other", "epoch": 7}'), *ended())
    assert waiting.result(SOON)[:5] == ("other", "total", 1, 0, 7)
    assert fake.client.id == "other"
    assert (asked.name, asked.as_json) == ("total", True)
    assert described.message.name == "exchange.describe"


# --------------------------------------------------------------------------------------------- explanations


def test_another_exchange_is_reached_behind_the_one_we_are_connected_to(hub: Hub, ex: Client) -> None:
    behind = hub.run(hub.behind())
    try:
        state = ex.state_of("behind")
        assert repr(state) == "<state of behind>"
        assert (state.get("deep").exchange, state.get("deep").value) == ("behind", 1)
        with state.watch() as changes:
            assert next(changes).value == 1
            assert state.set("deep", 2, expected=0).revision == 1
            assert (next(changes).exchange, state.get("deep").value) == ("behind", 2)
        assert ex.why("deep", of="behind")["value"] == 2
        assert ex.describe(of="behind")["accepts"] == ["deep"]
        with pytest.raises(Refused):
            ex.state.get("deep")
        with pytest.raises(Unhandled):
            ex.state_of("nobody").get("deep")
        with pytest.raises(InvalidMessage):
            ex.state_of("no id")
    finally:
        hub.run(behind.close())


def test_why_and_describe_are_plain_and_exact(ex: Client) -> None:
    id = ex.send("add", 2**53 + 1)
    eventually_true(lambda: ex.state.get("total").value != 0)
    why = ex.why("total")
    assert (why["exchange"], why["key"], why["value"], why["revision"]) == ("hub", "total", 2**53 + 1, 1)
    assert why["transaction"]["cause"] == id
    assert isinstance(why["answer"], str)
    about = ex.describe()
    assert (about["exchange"], about["accepts"]) == ("hub", ["target"])
    assert "echo" in about["interest"]["handles"]
    assert sorted(about["interest"]["exports"]) == ["double", "target", "total"]
    assert json.loads(json.dumps(about)) == about


# ---------------------------------------------------------------------------------------- threads and Ctrl-C


def test_one_client_serves_many_threads(ex: Client, pool: ThreadPoolExecutor) -> None:
    def work(thread: int) -> list[Any]:
        with ex.observe("nobody.*"):
            return [ex.request("echo", [thread, n]) for n in range(50)]

    for thread, answers in enumerate(pool.map(work, range(8))):
        assert answers == [[thread, n] for n in range(50)]


def test_two_threads_may_share_one_observation(ex: Client, pool: ThreadPoolExecutor) -> None:
    got: list[Any] = []
    done = threading.Event()

    def read() -> None:
        for message, _ in seen:
            got.append(message.value)
            if len(got) == 100:
                done.set()

    with ex.observe("echo") as seen:
        readers = [pool.submit(read) for _ in range(2)]
        for n in range(100):
            ex.send("echo", n)
        assert done.wait(SOON)
    for reader in readers:
        reader.result(SOON)
    assert sorted(got) == list(range(100))


INTERRUPTED = """
import os, signal, sys, threading, time, traceback
from exchange_grpc import Cancelled
from exchange_grpc.blocking import connect

def interrupt():
    # Once the main thread has stood still in gRPC for a while.
    before, looks = [], 0
    while looks < 10:
        time.sleep(0.02)
        frames = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident])
        now = [(frame.name, frame.lineno) for frame in frames if frame.filename.endswith("grpc/_channel.py")]
        looks = looks + 1 if now and now == before else 0
        before = now
    os.kill(os.getpid(), signal.SIGINT)

ex = connect(sys.argv[1])
seen = ex.observe("nobody")
threading.Thread(target=interrupt).start()
try:
    ex.request("hang") if sys.argv[2] == "request" else next(seen)
except KeyboardInterrupt as error:
    kept = error  # as a notebook keeps the last traceback, with all that stands in it
print("interrupted", flush=True)
sys.stdin.readline()
if sys.argv[2] == "observe":
    try:
        next(seen)
    except Cancelled:
        print("withdrawn")
print(ex.request("echo", "still here"))
"""


@pytest.mark.parametrize("what", ["request", "observe"])
def test_ctrl_c_withdraws_what_is_waited_for(hub: Hub, what: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, hub.url, what],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "interrupted\n"
            if what == "request":
                assert hub.ended.wait(SOON)
            else:
                eventually_true(lambda: hub.observers() == 0)
            out, err = process.communicate("\n", timeout=SOON)
        finally:
            process.kill()
    assert (out.splitlines()[-1], err, process.returncode) == ("still here", "", 0)
    assert ("withdrawn" in out) == (what == "observe")


def test_a_script_ends_though_it_closes_nothing(hub: Hub) -> None:
    script = "import sys; from exchange_grpc.blocking import connect; ex = connect(sys.argv[1]); seen = ex.observe()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, hub.url], capture_output=True, text=True, timeout=SOON
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
