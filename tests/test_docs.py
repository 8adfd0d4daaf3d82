"""README.md, docs/ and clients/: every Python block runs, every command is typed in, every link leads somewhere.

How a page is read:

* A `python` block is a program; top-level `await` is allowed. With `python continued` it goes on in the
  namespace and on the loop of the block before it. What it prints stands behind `  # ` on the lines
  that print, and nothing else is printed.
* In a `console` block `$ ` begins a command and `> ` continues it; the lines below are what it prints,
  stdout and stderr. `…` stands for anything within a line, and alone on a line for any number of lines.
  How much white space separates two words is not compared. One shell runs the whole block; a `console continued`
  block goes on in the shell of the one before it.
* Where a page says 127.0.0.1:50051 or ws://127.0.0.1:8080, a real `exchange serve --demo` listens, on ports of its own
  here.
* `make` is left to CI, which runs it. A page's `pip install` is a drill: it needs a minute and a network.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = [ROOT / "clients" / "README.md", ROOT / "clients" / "python" / "README.md"]  # others have tests of their own
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *CLIENTS]
ADDRESS = "127.0.0.1:50051"
WEB_ADDRESS = "ws://127.0.0.1:8080"
CI_ONLY = ("make",)
PATH = os.pathsep.join((str(Path(sys.executable).parent), str(ROOT / ".tools" / "bin"), os.environ["PATH"]))


class Block(NamedTuple):
    """A fenced block: the words behind the fence, where it begins, and what is in it."""

    page: Path
    line: int
    words: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    start, words, lines = 0, (), []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            lines.append(line)
        elif start:
            yield Block(page, start, words, "\n".join(lines))
            start = 0
        else:
            start, words, lines = number, tuple(line[3:].split()), []
    assert not start, f"{page.name}:{start}: the fence is never closed"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def sessions(kind: str, blocks: list[Block]) -> list[list[Block]]:
    """The blocks of a kind, those that continue another one together with it."""
    found: list[list[Block]] = []
    for block in blocks:
        if block.words == (kind, "continued"):
            assert found[-1][0].page == block.page, f"{block} continues nothing"
            found[-1].append(block)
        elif block.words == (kind,):
            found.append([block])
    return found


def consoles() -> list[list[Block]]:
    """The sessions with commands, but for what CI runs, and what a drill installs."""
    found = [block for block in BLOCKS if "pip install" not in block.text]
    return [
        session
        for session in sessions("console", found)
        if not all(command.split()[0] in CI_ONLY for command, _ in commands(session[0]))
    ]


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    printed: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            printed = []
            found.append((line[2:], printed))
        elif (line == ">" or line.startswith("> ")) and not printed:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", printed)
        elif line or printed:
            printed.append(line)
    assert found, f"{block} has no command"
    return found


@pytest.fixture(scope="module")
def ready() -> Iterator[str]:
    """The line that a real `exchange serve --demo` prints when it is ready."""
    command = [shutil.which("exchange", path=PATH), "serve", "--demo", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    assert command[0] is not None
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline()
        process.terminate()
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def served(ready: str) -> str:
    """Where it listens."""
    where = re.search(r"grpc://(127\.0\.0\.1:\d+)", ready)
    assert where is not None, ready
    return where[1]


@pytest.fixture(scope="module")
def web(ready: str) -> str:
    """... for WebSockets."""
    where = re.search(r"ws://127\.0\.0\.1:\d+", ready)
    assert where is not None, ready
    return where[0]


# ---------------------------------------------------------------------------------------------------- Python

RUNNER = """
import ast, asyncio, inspect, json, logging, sys
logging.getLogger("exchange_grpc").setLevel(logging.ERROR)  # that nobody handles a name is a warning
namespace = {"__name__": "__main__"}
with asyncio.Runner() as runner:
    for where, text in json.load(sys.stdin):
        code = compile(text, where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if code.co_flags & inspect.CO_COROUTINE:
            runner.run(eval(code, namespace))
        else:
            exec(code, namespace)
"""
PRINTS = re.compile(r"\bprint\(.*\)  # (.*)")


@pytest.mark.parametrize("program", sessions("python", BLOCKS), ids=lambda program: str(program[0]))
def test_python_prints_what_it_says(program: list[Block], served: str, web: str) -> None:
    source = [(str(block), block.text.replace(ADDRESS, served).replace(WEB_ADDRESS, web)) for block in program]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUNNER],
        input=json.dumps(source), capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [said for block in program for said in PRINTS.findall(block.text)]


# -------------------------------------------------------------------------------------------------- commands

BETWEEN = "\x1e"


@pytest.mark.parametrize("session", consoles(), ids=lambda session: str(session[0]))
def test_commands_print_what_is_shown(session: list[Block], served: str, require_tool: Callable[[str], str]) -> None:
    for tool in ("grpcurl", "jq"):
        if any(tool in block.text for block in session):
            require_tool(tool)
    assert_printed(session, type_in(session, ROOT, served))


@pytest.mark.drill
def test_a_copy_can_be_installed_as_the_readme_says(tmp_path: Path) -> None:
    [block] = [block for block in BLOCKS if block.words == ("console",) and "pip install" in block.text]
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    assert_printed([block], type_in([block], copy, ADDRESS, seconds=300))


def type_in(session: list[Block], directory: Path, served: str, seconds: float = 60) -> list[str]:
    """What each command of the session prints, in one shell; what it leaves running ends with it."""
    typed = [command for block in session for command, _ in commands(block)]
    script = "".join(f"{command}\nprintf '{BETWEEN}'\n" for command in typed)
    with subprocess.Popen(
        ["bash", "-c", f"exec 2>&1\n{script}".replace(ADDRESS, served)],
        stdout=subprocess.PIPE, text=True, cwd=directory, start_new_session=True,
        env={**os.environ, "PATH": PATH, "EXCHANGE_URL": f"grpc://{served}", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    ) as shell:  # fmt: skip
        try:
            printed, _ = shell.communicate(timeout=seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    return printed.replace(served, ADDRESS).split(BETWEEN)[: len(typed)]


def assert_printed(session: list[Block], printed: list[str]) -> None:
    typed = [(block, command, shown) for block in session for command, shown in commands(block)]
    for (block, command, shown), really in zip(typed, printed, strict=True):
        pattern = "".join(map(line_pattern, shown))
        lines = "".join(f"{words(line)}\n" for line in really.splitlines())
        assert re.fullmatch(pattern, lines), f"{block}: $ {command}\nprints\n{really}"


def line_pattern(shown: str) -> str:
    if shown.strip() == "…":
        return r"(?:.*\n)*?"
    return re.escape(words(shown)).replace("…", ".*?") + r"\n"


def words(line: str) -> str:
    return " ".join(line.split())


# ----------------------------------------------------------------------------------------- links and the rest

LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    kinds = {("python",), ("python", "continued"), ("console",), ("console", "continued"), ("text",)}
    assert [str(block) for block in BLOCKS if block.words not in kinds] == []


def test_nothing_is_left_to_ci_but_make() -> None:
    for block in BLOCKS:
        if block.words == ("console",):
            first = [command.split()[0] in CI_ONLY for command, _ in commands(block)]
            assert all(one is other for one, other in pairwise(first)), f"{block} mixes make with other commands"
