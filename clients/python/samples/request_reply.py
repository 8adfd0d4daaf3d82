"""Ask for a sum: whoever handles the name answers, however far away."""

import asyncio
import os

from exchange_grpc import Exchange

URL = os.environ.get("EXCHANGE_URL", "grpc://127.0.0.1:50051")


async def main() -> None:
    async with Exchange() as app:
        await app.connect(URL)
        print("compute.sum:", await app.request("compute.sum", {"a": 5, "b": 3}))


asyncio.run(main())
