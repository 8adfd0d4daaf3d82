"""`app.run`: an exchange as the main thing of a process, which ends well when it is told to."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest
from world import soon, until

from exchange_grpc import Exchange

WORKER = """
import asyncio, sys
from exchange_grpc import Exchange

app = Exchange("worker")

@app.handle("slow")
async def slow(msg):
    print("working", flush=True)
    await asyncio.sleep(0.3)
    return "done"

app.run(connect=sys.argv[1])
"""


async def worker(url: str) -> Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, url, stdout=PIPE, stderr=PIPE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_well_when_it_is_told_to(number: signal.Signals) -> None:
    async with Exchange("hub") as hub:
        process = await worker(await hub.listen("grpc://127.0.0.1:0"))
        await until(lambda: [peer.id for peer in hub.peers] == ["worker"])
        await until(lambda: "slow" in hub.peers[0].handles)
        asking = asyncio.create_task(hub.request("slow"))
        assert process.stdout is not None
        assert await soon(process.stdout.readline()) == b"working\n"
        process.send_signal(number)
        assert await soon(asking) == "done"  # what runs may end
        _, err = await soon(process.communicate())
        assert (process.returncode, err) == (0, b"")
        await until(lambda: not hub.peers)


async def test_it_is_there_again_when_its_hub_is() -> None:
    async with Exchange("hub") as hub:
        url = await hub.listen("grpc://127.0.0.1:0")
        process = await worker(url)
        await until(lambda: bool(hub.peers))
    async with Exchange("hub") as hub:
        await hub.listen(url)
        await until(lambda: bool(hub.peers))
        assert await hub.request("slow") == "done"
        await hub.peers[0].close()
        _, err = await soon(process.communicate())
    assert (process.returncode, err) == (1, b"the link to hub is over\n")


async def test_it_says_in_a_sentence_why_it_cannot_begin() -> None:
    async with Exchange("hub") as hub, Exchange("worker") as worker_too:
        url = await hub.listen("grpc://127.0.0.1:0")
        await worker_too.connect(url)
        process = await worker(url)
        _, err = await soon(process.communicate())
        assert process.returncode == 1
        assert err.decode().splitlines() == ["the link was refused or lost: worker is linked to hub already"]
    for url, said in (("grpc://127.0.0.1:1", "nobody answers at"), ("nonsense", "no transport takes 'nonsense'")):
        process = await worker(url)
        _, err = await soon(process.communicate())
        assert process.returncode == 1
        assert err.decode().startswith(said)
        assert len(err.splitlines()) == 1


async def test_it_listens_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a path of a socket is short
    code = (
        "from exchange_grpc import Exchange; Exchange('server', handlers={'n': lambda: 1}).run(listen='unix:run.sock')"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    try:
        await until(Path("run.sock").exists, 10)
        async with Exchange("client") as client:
            await client.connect("unix:run.sock")
            assert await client.request("n") == 1
    finally:
        process.terminate()
        assert await soon(process.wait()) == 0
