"""Watch a value of another exchange, and set it."""

import asyncio
import os
from contextlib import aclosing

from exchange_grpc import Exchange

URL = os.environ.get("EXCHANGE_URL", "grpc://127.0.0.1:50051")


async def main() -> None:
    async with Exchange() as app:
        demo = (await app.connect(URL)).state
        async with aclosing(demo.watch("goal")) as changes:
            async for change in changes:
                if not change.snapshot:
                    print(f"goal: {change.value}")
                    break
                await demo.set("goal", 50 if change.value != 50 else 100)


asyncio.run(main())
