"""The process under test of the Python package: what README.md asks for, over the public API alone."""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from math import inf
from typing import Any

from google.protobuf.internal.decoder import _DecodeVarint32  # type: ignore[attr-defined]
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from google.rpc.error_details_pb2 import ErrorInfo

import exchange_grpc as ex
from exchange.v1 import message_pb2 as pb

ERRORS = {  # what is no RequestError has no code of its own
    ex.LimitExceeded: (ex.Code.OUT_OF_RANGE, "LIMIT_EXCEEDED"),
    ex.InvalidMessage: (ex.Code.INVALID_ARGUMENT, "INVALID_MESSAGE"),
    ex.AddressError: (ex.Code.INVALID_ARGUMENT, "ADDRESS"),
    ex.LinkError: (ex.Code.UNAVAILABLE, "LINK"),
    asyncio.CancelledError: (ex.Code.CANCELLED, "CANCELLED"),
    BaseException: (ex.Code.UNKNOWN, "UNKNOWN"),
}


def write(message: pb.Message) -> None:
    data = message.SerializeToString()
    sys.stdout.buffer.write(_VarintBytes(len(data)) + data)
    sys.stdout.buffer.flush()


def tell(event: str, value: dict[str, Any]) -> None:
    write(pb.Message(kind=pb.KIND_SEND, name=event, json=json.dumps(value).encode()))


def reply(command: pb.Message, value: Any, *, last: bool = True, error: BaseException | None = None) -> None:
    message = pb.Message(kind=pb.KIND_REPLY, reply_to=command.id, last=last, json=json.dumps(value).encode())
    if error is not None:
        if not isinstance(error, ex.RequestError):
            code, reason = next(known for kind, known in ERRORS.items() if isinstance(error, kind))
            error = ex.RequestError(str(error), code=code, reason=reason)
        info = ErrorInfo(domain="exchange", reason=error.reason, metadata={"at": error.at})
        if error.code is ex.Code.UNAVAILABLE:
            info.metadata["delivered"] = "no" if error.delivered is False else "unknown"
        message.error.code, message.error.message = int(error.code), str(error)
        message.error.details.add().Pack(info)
    write(message)


def heard(by: str) -> Any:
    async def hear(msg: ex.Message) -> None:
        tell("heard", {"by": by, **seen(msg)})

    return hear


def said(value: Any) -> dict[str, Any]:
    return {"data": base64.b64encode(value).decode()} if isinstance(value, bytes) else {"value": value}


def seen(msg: ex.Message) -> dict[str, Any]:
    kind = {"content_type": msg.content_type} if isinstance(msg.value, bytes) else {}
    about = {"id": msg.id, "name": msg.name, "from": msg.from_, "to": msg.to, "kind": msg.kind.name}
    trace = {"trace": msg.trace, "causes": list(msg.causes), "root": msg.root}
    return {
        **about,
        **said(msg.value),
        **kind,
        **trace,
        "headers": dict(msg.headers),
        "timestamp_us": round(msg.timestamp * 1e6),
    }


class Client:
    def __init__(self) -> None:
        self.app = ex.Exchange()
        self.running: dict[str, asyncio.Task[None]] = {}
        self.removes: dict[str, Any] = {}
        self.released = asyncio.Event()

    async def run(self) -> None:
        reader = asyncio.StreamReader(limit=2**26)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while True:
                prefix = await reader.readexactly(1)
                while prefix[-1] & 128:
                    prefix += await reader.readexactly(1)
                command = pb.Message.FromString(await reader.readexactly(_DecodeVarint32(prefix, 0)[0]))
                if command.kind != pb.KIND_CANCEL:
                    self.running[command.id] = asyncio.create_task(self.obey(command))
                elif command.reply_to in self.running:
                    self.running[command.reply_to].cancel()
        except asyncio.IncompleteReadError:
            await self.app.close()

    async def obey(self, command: pb.Message) -> None:
        try:
            reply(command, await self.do(command, json.loads(command.json)))
        except (Exception, asyncio.CancelledError) as error:
            reply(command, None, error=error)
        del self.running[command.id]

    async def do(self, command: pb.Message, given: dict[str, Any]) -> Any:
        app, name, headers = self.app, given.get("name", ""), given.get("headers", {})
        value = base64.b64decode(given["data"]) if "data" in given else given.get("value")
        state = app.state_of(given.get("exchange", app.id))
        how = {"to": given.get("to", ""), "headers": headers}
        by = next(peer for peer in app.peers if peer.id == given["via"]) if "via" in given else app
        match command.name:
            case "start":
                return await self.start(given)
            case "listen":
                return {"url": await app.listen(given["url"])}
            case "connect":
                return {"peer": (await app.connect(given["url"], retry=given.get("retry", inf))).id}
            case "disconnect":
                return await next(peer for peer in app.peers if peer.id == given["peer"]).close()
            case "close":
                return await app.close()
            case "handle":
                self.removes[name] = app.handle(name, self.handler(given["do"], given.get("with", {})))
            case "unhandle":
                self.removes.pop(name)()
            case "release":
                self.released.set()
                self.released = asyncio.Event()
            case "on" | "subscribe" | "observe":
                getattr(app, command.name)(given.get("pattern", name), heard(command.name))
            case "send":
                async with asyncio.timeout(given.get("timeout")):
                    return {"id": await by.send(name, value, **how)}
            case "publish" | "broadcast":
                return {"id": await getattr(app, command.name)(name, value, headers=headers)}
            case "request":
                return said(await by.request(name, value, timeout=given.get("timeout"), **how))
            case "request_many":
                async with by.request_many(name, value, timeout=given.get("timeout"), **how) as replies:
                    async for msg in replies:
                        told = {"from": msg.from_, **({} if msg.error else said(msg.value))}
                        reply(command, told, last=False, error=msg.error)
                return {"lost": list(replies.lost)}
            case "state.get":
                return (await state.get(name))._asdict()
            case "state.set":
                return (await state.set(name, value, expected=given.get("expected")))._asdict()
            case "state.watch":
                async with aclosing(state.watch(*given["names"])) as changes:
                    async for change in changes:
                        reply(command, change._asdict(), last=False)
            case "trace":
                return await app.trace(given["id"])
            case "why":
                return await app.request("exchange.why", {"key": given["key"]}, to=state.exchange)
            case "peers":
                return await app.request("exchange.peers")

    async def start(self, given: dict[str, Any]) -> Any:
        async def happened(msg: ex.Message) -> None:
            tell(msg.name.rpartition(".")[2], msg.value)

        self.app = ex.Exchange(given["id"], relay=False, limits=ex.Limits(**given.get("limits", {})))
        self.app.observe("exchange.event.peer.*", happened)
        self.app.on("message.unhandled", happened)
        return {"agent": (await self.app.request("exchange.describe"))["agent"]}

    def handler(self, do: str, given: dict[str, Any]) -> Any:
        async def many(msg: ex.Message) -> AsyncIterator[Any]:
            tell("handling", seen(msg))
            for value in given["values"]:
                yield value

        async def handle(msg: ex.Message) -> Any:
            tell("handling", seen(msg))
            match do:
                case "fail":
                    raise RuntimeError("secret")
                case "refuse":
                    raise ex.Refused(given["text"], code=ex.Code(given["code"]), reason=given["reason"])
                case "wait":
                    try:
                        return await self.released.wait() and "released"
                    except asyncio.CancelledError:
                        tell("cancelled", {"id": msg.id})
                        raise
                case "request":
                    return await self.app.request(given["name"], given.get("value"))
                case "send" | "publish":
                    await getattr(self.app, do)(given["name"], given.get("value"))
            return {"echo": msg.value, "see": seen(msg)}.get(do)

        return many if do == "many" else handle


if __name__ == "__main__":
    asyncio.run(Client().run())
