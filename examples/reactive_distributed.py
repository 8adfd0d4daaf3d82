"""A message from another exchange sets a value, and what is computed from it follows.

    python examples/reactive_distributed.py

The app has two values: `data` is set, `doubled` follows. The server knows neither of them, it only
sends `server.data`. Each change of the state says which message caused it.
"""

import asyncio

from exchange_grpc import Exchange

app = Exchange(
    "app",
    state={
        "data": None,
        "doubled": lambda s: [2 * item for item in s.data["items"]] if s.data else [],
    },
)


@app.handle("server.data")
async def take(msg, sig):
    sig("set", {"name": "data", "value": msg.value})


async def main() -> None:
    changes: asyncio.Queue = asyncio.Queue()
    app.state.on_commit(changes.put_nowait)
    app.state.subscribe("doubled", lambda value: print("doubled is", value))

    async with app, Exchange("server") as server:
        peer = await server.connect(app)
        for items in ([1, 2, 3], [1, 2, 3], [5, 8]):  # the second changes nothing
            await peer.request("server.data", {"items": items})

    while not changes.empty():
        change = changes.get_nowait()
        print(*change.sets, "was set,", *change.updates, "recomputed, because of", change.cause.rpartition(".")[0])


if __name__ == "__main__":
    asyncio.run(main())
