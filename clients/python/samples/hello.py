"""Link to an exchange, and say hello to it."""

import asyncio
import os

from exchange_grpc import Exchange

URL = os.environ.get("EXCHANGE_URL", "grpc://127.0.0.1:50051")


async def main() -> None:
    async with Exchange() as app:
        peer = await app.connect(URL)
        await app.send("echo", "hello")
        print(f"hello from {peer.id}")


asyncio.run(main())
