"""Three exchanges: a browser asks a server, which asks a worker. The answer knows its whole way.

    browser -- items.fetch -->  server -- db.query -->  worker
    browser <-- items.result -- server <-- db.result -- worker

    python examples/browser_server_worker.py          both of these, in turn:
    python examples/browser_server_worker.py local    links within the process
    python examples/browser_server_worker.py grpc     gRPC, on a free port of this machine

The exchanges do not notice the difference: only the address they connect to is another.
"""

import asyncio
import sys

from exchange_grpc import Exchange

TABLES = {"items": [{"id": 1, "name": "anvil"}, {"id": 2, "name": "rocket skates"}]}


async def run(transport: str) -> None:
    browser = Exchange("browser", state={"items": [], "count": lambda s: len(s.items)})
    server = Exchange("server")
    worker = Exchange("worker")
    results: asyncio.Queue = asyncio.Queue()

    @browser.handle("items.result")
    async def show(msg, sig, state):
        state.items = msg.value
        await results.put(msg)

    @server.handle("items.fetch")
    async def fetch(msg, sig):
        items = await server.request("db.query", {"table": "items"})
        sig("items.result", items)  # goes back to the browser

    @worker.handle("db.query")
    async def query(msg, sig):
        sig("db.result", TABLES[msg.value["table"]])  # is the reply to the server's request

    async with browser, server, worker:
        address = server if transport == "local" else await server.listen("grpc://127.0.0.1:0")
        await worker.connect(address)
        peer = await browser.connect(address)

        await peer.send("items.fetch")
        result = await results.get()
        print(f"{transport}: the browser has {browser.state.count} items")
        print(result.trace)


async def main() -> None:
    for transport in sys.argv[1:] or ["local", "grpc"]:
        await run(transport)


if __name__ == "__main__":
    asyncio.run(main())
