"""Two exchanges in one process: ask, tell, publish, broadcast.

    python examples/local_peers.py

Nothing here knows that the two are in one process. Give `connect` a URL instead of an Exchange and
the same code runs between two machines.
"""

import asyncio

from exchange_grpc import Exchange, Unhandled


async def main() -> None:
    shop, kitchen = Exchange("shop"), Exchange("kitchen")
    heard: asyncio.Queue = asyncio.Queue()

    @kitchen.handle("compute.sum")
    async def compute_sum(msg):
        return msg.value["a"] + msg.value["b"]

    @kitchen.handle("pizza.order")
    async def bake(msg, sig):
        sig("pizza.ready", {"pizza": msg.value["pizza"]})  # goes back to whoever ordered

    shop.on("pizza.ready", heard.put)
    shop.subscribe("menu.**", heard.put)
    shop.on("kitchen.closing", heard.put)

    async with shop, kitchen:
        peer = await shop.connect(kitchen)
        print("linked:", shop.id, "and", peer.id)

        print("request:", await shop.request("compute.sum", {"a": 5, "b": 3}))

        await peer.send("pizza.order", {"pizza": "margherita"})
        show("send", await heard.get())

        await kitchen.publish("menu.today.changed", ["margherita", "marinara"])
        show("publish", await heard.get())

        await kitchen.broadcast("kitchen.closing", {"in_minutes": 10})
        show("broadcast", await heard.get())

        try:
            await shop.request("compute.product", {"a": 5, "b": 3})
        except Unhandled as error:
            print("nobody:", error)


def show(how, msg) -> None:
    print(f"{how}: {msg.name} {msg.value} by {' -> '.join(msg.trace)}")


if __name__ == "__main__":
    asyncio.run(main())
