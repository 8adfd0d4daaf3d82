"""Two workers handle a name, behind the exchange that all are linked to: each does its share."""

import asyncio
import os
import secrets
from collections import Counter

from exchange_grpc import Exchange

URL = os.environ.get("EXCHANGE_URL", "grpc://127.0.0.1:50051")
RUN = secrets.token_hex(4)  # an id is there once in a mesh


def worker(name: str) -> Exchange:
    app = Exchange(f"{name}-{RUN}")

    @app.handle("pool.work")
    async def work() -> str:
        return name

    return app


async def main() -> None:
    async with worker("worker-1") as one, worker("worker-2") as two, Exchange(f"boss-{RUN}") as boss:
        for app in (one, two, boss):
            await app.connect(URL)
        done = Counter([await boss.request("pool.work", number) for number in range(10)])
        for name, count in sorted(done.items()):
            print(f"{name}: {count}")


asyncio.run(main())
