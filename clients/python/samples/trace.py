"""Ask something, then ask where it has been: each message of it, and each exchange on its way."""

import asyncio
import os
import secrets

from exchange_grpc import Exchange, Message

URL = os.environ.get("EXCHANGE_URL", "grpc://127.0.0.1:50051")
ME = f"tracer-{secrets.token_hex(4)}"


async def main() -> None:
    async with Exchange(ME) as app:
        await app.connect(URL)
        asked: asyncio.Queue[Message] = asyncio.Queue()
        app.observe("compute.sum", asked.put)
        await app.request("compute.sum", {"a": 5, "b": 3})
        trace = await app.trace((await asked.get()).id)
        for span in trace["spans"]:
            way = [hop["exchange"].replace(ME, "tracer") for hop in span["hops"]]
            print(f"{span['name']}: {' -> '.join(way)}")


asyncio.run(main())
