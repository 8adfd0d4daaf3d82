"""The clients that are put to the test, as implementations.yaml declares them."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import yaml

from .case import Case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD_SECONDS = 900
LANES = 8  # cases at once: most of the time a case waits


class Missing(Exception):
    """It cannot be put to the test here, for want of a tool."""


@dataclass(frozen=True)
class Implementation:
    """One client, and how its process under test is built and started."""

    name: str
    command: tuple[str, ...]
    transport: str
    can: frozenset[str] = frozenset()
    reuse: bool = False
    lanes: int = LANES
    tool: str = ""
    made: str = ""
    build: tuple[str, ...] = ()
    place: Path = ROOT
    environment: tuple[tuple[str, str], ...] = ()

    def with_command(self, command: tuple[str, ...]) -> "Implementation":
        """The same, started in another way."""
        return replace(self, command=command)

    def takes(self, case: Case) -> bool:
        """The case is for it."""
        return case.needs <= self.can

    def prepare(self) -> None:
        """Build it. Raises Missing where that cannot be."""
        if not self.place.is_dir():
            raise Missing(f"{self.name}: there is no {self.place.relative_to(ROOT)}")
        if self.tool and subprocess.run([ROOT / "scripts" / "has", self.tool], env=_environment()).returncode:
            raise Missing(f"{self.name}: there is no {self.tool} that is new enough")
        if self.made and not (self.place / self.made).exists():
            raise Missing(f"{self.name}: there is no {self.made} in {self.place.relative_to(ROOT)}, which make makes")
        if self.build:
            self._build()

    def _build(self) -> None:
        """Once in a run, whichever of its processes comes first: others may be running what is built."""
        run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
        stamp = ROOT / ".build" / f"{self.place.name}-built-for"
        stamp.parent.mkdir(exist_ok=True)
        with stamp.open("a+", encoding="utf-8") as built:
            flock(built, LOCK_EX)
            built.seek(0)
            if built.read() == run:
                return
            done = subprocess.run(
                self.build, cwd=self.place, capture_output=True, text=True, timeout=BUILD_SECONDS,
                env=_environment(),
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{self.name} cannot be built:\n{done.stdout[-2_000:]}{done.stderr[-4_000:]}")
            built.truncate(0)
            built.write(run)


def _environment() -> dict[str, str]:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**os.environ, "PATH": path}


def implementations() -> list[Implementation]:
    """All that are declared."""
    return [_of(spec) for spec in yaml.safe_load((HERE / "implementations.yaml").read_text(encoding="utf-8"))]


def _of(spec: dict[str, Any]) -> Implementation:
    return Implementation(
        name=spec["name"],
        command=tuple(spec["command"]),
        transport=spec["transport"],
        can=frozenset(spec.get("can", ())),
        reuse=spec.get("reuse", False),
        lanes=spec.get("lanes", LANES),
        tool=spec.get("tool", ""),
        made=spec.get("made", ""),
        build=tuple(spec.get("build", ())),
        place=ROOT / spec.get("in", "."),
    )


def known_failures() -> dict[str, dict[str, str]]:
    """By implementation, the cases that it is known to fail, and why."""
    found: dict[str, dict[str, str]] = yaml.safe_load((HERE / "known_failures.yaml").read_text(encoding="utf-8"))
    return found


def required() -> bool:
    """Everything should be there."""
    return os.environ.get("EXCHANGE_REQUIRE_ALL") == "1"
