"""The process under test of the Python package: what README.md asks for, over the public API alone."""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from math import inf
from typing import Any

from google.protobuf.any_pb2 import Any as Detail
from google.protobuf.internal.decoder import _DecodeVarint32
from google.protobuf.internal.encoder import _VarintBytes
from google.rpc.error_details_pb2 import ErrorInfo

from exchange.v1.message_pb2 import KIND_CANCEL, KIND_REPLY, KIND_SEND
from exchange.v1.message_pb2 import Message as Packed
from exchange_grpc import (
    AddressError,
    Code,
    Exchange,
    InvalidMessage,
    LimitExceeded,
    Limits,
    LinkError,
    Message,
    Refused,
    RequestError,
)  # fmt: skip

COLUMNS = ("name", "value", "revision", "epoch", "cause", "transaction")


def payload(given: dict[str, Any]) -> Any:
    return base64.b64decode(given["data"]) if "data" in given else given.get("value")


def said(value: Any) -> dict[str, Any]:
    if isinstance(value, bytes):
        return {"data": base64.b64encode(value).decode()}
    return {"value": value}


def seen(msg: Message) -> dict[str, Any]:
    kind = {"content_type": msg.content_type} if isinstance(msg.value, bytes) else {}
    return {
        "id": msg.id, "name": msg.name, "from": msg.from_, "to": msg.to, "kind": msg.kind.name, **said(msg.value), **kind,
        "headers": dict(msg.headers), "trace": msg.trace, "causes": list(msg.causes), "root": msg.root,
        "timestamp_us": round(msg.timestamp * 1e6),
    }  # fmt: skip


class Client:
    def __init__(self) -> None:
        self.running: dict[str, asyncio.Task[None]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------------------------------- stdin and stdout

    def write(self, **fields: Any) -> None:
        data = Packed(**fields).SerializeToString()
        sys.stdout.buffer.write(_VarintBytes(len(data)) + data)
        sys.stdout.buffer.flush()

    def event(self, name: str, value: dict[str, Any]) -> None:
        self.write(kind=KIND_SEND, name=name, json=json.dumps(value).encode())

    def reply(self, command: Packed, value: Any, last: bool = True, error: BaseException | None = None) -> None:
        reply = Packed(kind=KIND_REPLY, reply_to=command.id, last=last, json=json.dumps(value).encode())
        if error is not None:
            code, reason = Code.UNKNOWN, type(error).__name__
            info = ErrorInfo(domain="exchange")
            if isinstance(error, RequestError):
                code, reason = error.code, error.reason
                info.metadata["at"] = error.at
                if code is Code.UNAVAILABLE:
                    info.metadata["delivered"] = "no" if error.delivered is False else "unknown"
            elif isinstance(error, LimitExceeded):
                code, reason = Code.OUT_OF_RANGE, "LIMIT_EXCEEDED"
            elif isinstance(error, InvalidMessage):
                code, reason = Code.INVALID_ARGUMENT, "INVALID_MESSAGE"
            elif isinstance(error, LinkError):
                code, reason = Code.UNAVAILABLE, "LINK"
            elif isinstance(error, AddressError):
                code, reason = Code.INVALID_ARGUMENT, "ADDRESS"
            elif isinstance(error, asyncio.CancelledError):
                code, reason = Code.CANCELLED, "CANCELLED"
            info.reason = reason
            detail = Detail()
            detail.Pack(info)
            reply.error.code, reply.error.message = int(code), str(error)
            reply.error.details.append(detail)
        data = reply.SerializeToString()
        sys.stdout.buffer.write(_VarintBytes(len(data)) + data)
        sys.stdout.buffer.flush()

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=2**26)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while True:
                prefix = await reader.readexactly(1)
                while prefix[-1] & 128:
                    prefix += await reader.readexactly(1)
                command = Packed.FromString(await reader.readexactly(_DecodeVarint32(prefix, 0)[0]))
                if command.kind == KIND_CANCEL:
                    if command.reply_to in self.running:
                        self.running[command.reply_to].cancel()
                    continue
                task = self.running[command.id] = asyncio.create_task(self.obey(command))
                task.add_done_callback(lambda _, id=command.id: self.running.pop(id))  # type: ignore[misc]
        except asyncio.IncompleteReadError:
            if hasattr(self, "app"):
                await self.app.close()

    async def obey(self, command: Packed) -> None:
        given = json.loads(command.json)
        try:
            if command.name in ("request_many", "state.watch"):
                await (self.many if command.name == "request_many" else self.watch)(command, given)
            else:
                self.reply(command, await getattr(self, f"do_{command.name.replace('.', '_')}")(given))
        except (Exception, asyncio.CancelledError) as error:
            self.reply(command, None, error=error)

    # --------------------------------------------------------------------------------------------- the exchange

    async def do_start(self, given: dict[str, Any]) -> Any:
        self.app = app = Exchange(given["id"], relay=False, limits=Limits(**given.get("limits", {})))
        self.released = asyncio.Event()
        self.removes: dict[str, Any] = {}

        async def happened(msg: Message) -> None:
            self.event(msg.name.rpartition(".")[2], msg.value)

        app.observe("exchange.event.peer.*", happened)
        app.on("message.unhandled", happened)
        return {"agent": (await app.request("exchange.describe"))["agent"]}

    async def do_listen(self, given: dict[str, Any]) -> Any:
        return {"url": await self.app.listen(given["url"])}

    async def do_connect(self, given: dict[str, Any]) -> Any:
        return {"peer": (await self.app.connect(given["url"], retry=given.get("retry", inf))).id}

    async def do_disconnect(self, given: dict[str, Any]) -> Any:
        await self.via(given["peer"]).close()

    async def do_close(self, given: dict[str, Any]) -> Any:
        await self.app.close()

    async def do_peers(self, given: dict[str, Any]) -> Any:
        peers = (await self.app.request("exchange.peers"))["peers"]
        return {"peers": [{key: peer[key] for key in ("id", "relay", "handles", "subscribes")} for peer in peers]}

    def via(self, id: str) -> Any:
        return next(peer for peer in self.app.peers if peer.id == id)

    # ----------------------------------------------------------------------------------------------- handlers

    async def do_handle(self, given: dict[str, Any]) -> Any:
        self.removes[given["name"]] = self.app.handle(given["name"], self.handler(given["do"], given.get("with", {})))

    async def do_unhandle(self, given: dict[str, Any]) -> Any:
        self.removes.pop(given["name"])()

    async def do_release(self, given: dict[str, Any]) -> Any:
        self.released.set()
        self.released = asyncio.Event()

    def handler(self, do: str, given: dict[str, Any]) -> Any:
        async def handle(msg: Message) -> Any:
            self.event("handling", seen(msg))
            if do == "fail":
                raise RuntimeError("secret")
            if do == "refuse":
                raise Refused(given.get("text", ""), code=Code(given["code"]), reason=given["reason"])
            if do == "wait":
                try:
                    await self.released.wait()
                except asyncio.CancelledError:
                    self.event("cancelled", {"id": msg.id})
                    raise
                return "released"
            if do == "request":
                return await self.app.request(given["name"], given.get("value"))
            if do in ("send", "publish"):
                await getattr(self.app, do)(given["name"], given.get("value"))
            return {"echo": msg.value, "see": seen(msg)}.get(do)

        async def many(msg: Message) -> AsyncIterator[Any]:
            self.event("handling", seen(msg))
            for value in given["values"]:
                yield value

        return many if do == "many" else handle

    def heard(self, by: str) -> Any:
        async def hear(msg: Message) -> None:
            self.event("heard", {"by": by, **seen(msg)})

        return hear

    async def do_on(self, given: dict[str, Any]) -> Any:
        self.app.on(given["name"], self.heard("on"))

    async def do_subscribe(self, given: dict[str, Any]) -> Any:
        self.app.subscribe(given["pattern"], self.heard("subscribe"))

    async def do_observe(self, given: dict[str, Any]) -> Any:
        self.app.observe(given["pattern"], self.heard("observe"))

    # ------------------------------------------------------------------------------------------------- emitting

    async def do_send(self, given: dict[str, Any]) -> Any:
        sender = self.via(given["via"]) if "via" in given else self.app
        async with asyncio.timeout(given.get("timeout")):
            headers = given.get("headers", {})
            return {"id": await sender.send(given["name"], payload(given), to=given.get("to", ""), headers=headers)}

    async def do_publish(self, given: dict[str, Any]) -> Any:
        return {"id": await self.app.publish(given["name"], payload(given), headers=given.get("headers", {}))}

    async def do_broadcast(self, given: dict[str, Any]) -> Any:
        return {"id": await self.app.broadcast(given["name"], payload(given), headers=given.get("headers", {}))}

    def asking(self, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        how = {"to": given.get("to", ""), "timeout": given.get("timeout"), "headers": given.get("headers", {})}
        return self.via(given["via"]) if "via" in given else self.app, how

    async def do_request(self, given: dict[str, Any]) -> Any:
        asker, how = self.asking(given)
        return said(await asker.request(given["name"], payload(given), **how))

    async def many(self, command: Packed, given: dict[str, Any]) -> None:
        asker, how = self.asking(given)
        async with asker.request_many(given["name"], payload(given), **how) as replies:
            async for reply in replies:
                value = {} if reply.error is not None else said(reply.value)
                self.reply(command, {"from": reply.from_, **value}, last=False, error=reply.error)
        self.reply(command, {"lost": list(replies.lost)})

    async def do_state_get(self, given: dict[str, Any]) -> Any:
        state = await self.app.state_of(given["exchange"]).get(given["name"])
        return {key: getattr(state, key) for key in COLUMNS}

    async def do_state_set(self, given: dict[str, Any]) -> Any:
        shared = self.app.state_of(given["exchange"])
        state = await shared.set(given["name"], given["value"], expected=given.get("expected"))
        return {key: getattr(state, key) for key in COLUMNS}

    async def watch(self, command: Packed, given: dict[str, Any]) -> None:
        async with aclosing(self.app.state_of(given["exchange"]).watch(*given["names"])) as states:
            async for state in states:
                self.reply(command, {key: getattr(state, key) for key in (*COLUMNS, "snapshot")}, last=False)
        self.reply(command, None)

    async def do_trace(self, given: dict[str, Any]) -> Any:
        return await self.app.trace(given["id"])

    async def do_why(self, given: dict[str, Any]) -> Any:
        if "exchange" in given:
            return await self.app.request("exchange.why", {"key": given["key"]}, to=given["exchange"])
        return await self.app.why(given["key"])


asyncio.run(Client().run())
