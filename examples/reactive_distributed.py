"""A message from another exchange sets a value, and what is computed from it follows.

    python examples/reactive_distributed.py

`data` is a plain value, `doubled` is computed from it. The server knows neither: it sends
`server.data`, and the app decides what that means. Every change of the state knows the message that
caused it, and a message knows its way.
"""

import asyncio

from exchange_grpc import Exchange


async def main() -> None:
    app = Exchange(
        "app",
        state={
            "data": None,
            "doubled": lambda s: [2 * item for item in s.data["items"]] if s.data else [],
        },
    )
    changes = asyncio.Queue()
    app.state.on_commit(changes.put_nowait)
    app.state.subscribe("doubled", lambda value: print("doubled is", value))

    @app.handle("server.data")
    async def take(msg, sig):
        sig("set", {"name": "data", "value": msg.value})

    async with app, Exchange("server") as server:
        peer = await server.connect(app)
        for items in ([1, 2, 3], [1, 2, 3], [5, 8]):  # the second is equal: nothing changes
            await peer.send("server.data", {"items": items})

        for _ in range(2):
            change = await changes.get()
            trace = await app.request("exchange.trace", {"id": change.cause}, to="app")
            cause = trace["spans"][0]
            way = " -> ".join(hop["exchange"] for hop in cause["hops"])
            print(f"set {[*change.sets]}, recomputed {[*change.updates]}, because of {cause['name']} by {way}")


if __name__ == "__main__":
    asyncio.run(main())
