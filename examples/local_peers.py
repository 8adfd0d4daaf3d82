"""Two exchanges in one process: ask, tell, publish, broadcast.

    python examples/local_peers.py

Nothing here knows that the two share a process. Give `connect` a URL instead of an Exchange, and the
same code runs between two machines.
"""

import asyncio

from exchange_grpc import Exchange


async def main() -> None:
    shop, kitchen = Exchange("shop"), Exchange("kitchen")
    heard = asyncio.Queue()

    @kitchen.handle("pizza.price")
    async def price(msg):
        return {"margherita": 8, "marinara": 7}[msg.value]

    @kitchen.handle("pizza.order")
    async def bake(msg, sig):
        sig("pizza.ready", msg.value)  # goes back to whoever ordered

    shop.on("pizza.ready", heard.put)
    shop.subscribe("menu.**", heard.put)
    shop.on("kitchen.closing", heard.put)

    async with shop, kitchen:
        peer = await shop.connect(kitchen)

        print("request:", await shop.request("pizza.price", "margherita"))

        await peer.send("pizza.order", "margherita")
        show("send", await heard.get())

        await kitchen.publish("menu.today.changed", ["margherita", "marinara"])
        show("publish", await heard.get())

        await kitchen.broadcast("kitchen.closing", {"in_minutes": 10})
        show("broadcast", await heard.get())


def show(how, msg):
    print(f"{how}: {msg.name} {msg.value} by {' -> '.join(msg.trace)}")


if __name__ == "__main__":
    asyncio.run(main())
