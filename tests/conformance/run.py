"""Plays many cases against one implementation, several at once, each lane with a process of its own."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace

from .case import Case
from .drive import Process
from .implementation import Implementation
from .play import WITHIN, Verdict, play

CASE_SECONDS = 60.0


def run(
    implementation: Implementation, cases: Iterable[Case], *, lanes: int = 0, within: float = WITHIN
) -> list[Verdict]:
    """How each case went."""
    return asyncio.run(_run(implementation, list(cases), lanes or implementation.lanes, within))


async def _run(implementation: Implementation, cases: list[Case], lanes: int, within: float) -> list[Verdict]:
    waiting = iter(sorted(cases, key=lambda case: "exit" in str(case.steps)))  # those that end a process come last
    verdicts: dict[str, Verdict] = {}

    async def lane() -> None:
        process: Process | None = None
        for case in waiting:
            if process is None or process.code is not None:
                process = Process(implementation.command, str(implementation.place), dict(implementation.environment))
                await process.start()
            began = time.perf_counter()
            verdict = replace(
                await _played(case, process, implementation.transport, within), seconds=time.perf_counter() - began
            )
            verdicts[case.id] = verdict
            # What a failed case leaves behind must not spoil the next.
            if not implementation.reuse or not verdict.passed:
                await _stop(process)
                process = None
        if process is not None:
            await _stop(process)

    await asyncio.gather(*(lane() for _ in range(min(lanes, len(cases)))))
    return [verdicts[case.id] for case in cases]


async def _played(case: Case, process: Process, transport: str, within: float) -> Verdict:
    try:
        async with asyncio.timeout(CASE_SECONDS):
            return await play(case, process, transport, within)
    except TimeoutError:
        process.kill()
        return Verdict(case, f"{case.id}: it was not over after {CASE_SECONDS:g} s")


async def _stop(process: Process) -> None:
    if process.code is None:
        await process.stop()
