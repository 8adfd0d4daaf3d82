"""What tests of every module share: the tools beside Python, real input, and a world of exchanges."""

import json
import os
import random
import shutil
import string
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from world import World, world_of

ROOT = Path(__file__).resolve().parent.parent
TOOLS = (ROOT / ".tools" / "bin", Path(sys.executable).parent)  # asked before PATH: here the versions are pinned


@pytest.fixture(scope="session")
def require_tool() -> Callable[[str], str]:
    """`require_tool("grpcurl")` is its path. Where there is none the test is skipped and says so; with
    EXCHANGE_REQUIRE_ALL=1 it fails instead, so that nothing goes unseen where everything should be there."""
    return _require_tool


def _require_tool(name: str) -> str:
    path = shutil.which(name, path=os.pathsep.join([*map(str, TOOLS), os.environ.get("PATH", "")]))
    if path is not None:
        return path
    hint = " (`make test` builds it where there is Go)" if name == "grpcurl" else ""
    missing = f"{name} is not in .tools/bin, beside python or on PATH{hint}"
    if os.environ.get("EXCHANGE_REQUIRE_ALL") == "1":
        pytest.fail(f"EXCHANGE_REQUIRE_ALL=1, and {missing}", pytrace=False)
    pytest.skip(missing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How fast seeds were played, by all workers together."""
    passed = terminalreporter.stats.get("passed", [])
    played = [value for report in passed for name, value in report.user_properties if name == "seeds"]
    if played:
        seeds, seconds = map(sum, zip(*played, strict=True))
        terminalreporter.write_line(f"{seeds} seeds, {seeds / seconds:.0f} for each second of a core")


@pytest.fixture(params=["local", "grpc", "ws"])
async def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world whose links are of one kind, then of another."""
    monkeypatch.setattr("exchange_grpc.exchange.STOP_SECONDS", 0.5)  # some handlers hang on purpose
    async with world_of(request.param) as made:
        yield made


@pytest.fixture
async def local(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """A world within the process, where the kind of link does not matter."""
    monkeypatch.setattr("exchange_grpc.exchange.STOP_SECONDS", 0.5)
    async with world_of("local") as made:
        yield made


WEBHOOKS = 200


@pytest.fixture(scope="session")
def webhooks() -> list[tuple[str, Any]]:
    """200 webhook messages as (name, value): real ones from the file that EXCHANGE_WEBHOOKS names, one
    `{"name": ..., "value": ...}` per line, or look-alikes, the same ones each time. Not to be changed."""
    path = os.environ.get("EXCHANGE_WEBHOOKS")
    if not path:
        return _lookalikes(WEBHOOKS)
    lines = Path(path).read_text(encoding="utf-8").splitlines()[:WEBHOOKS]
    assert len(lines) == WEBHOOKS, f"{path} has {len(lines)} of {WEBHOOKS} messages"
    return [(entry["name"], entry["value"]) for entry in map(json.loads, lines)]


EVENTS = {
    "check_run": ("completed", "created", "rerequested"),
    "deployment_status": ("created",),
    "discussion_comment": ("created", "deleted", "edited"),
    "issues": ("assigned", "closed", "labeled", "opened", "transferred"),
    "pull_request": ("closed", "edited", "opened", "review_requested", "synchronize"),
    "push": (),
    "release": ("prereleased", "published"),
    "team": ("added_to_repository", "edited"),
    "workflow_job": ("completed", "in_progress", "queued"),
}
RESOURCES = (
    "blobs",
    "branches",
    "commits",
    "compare",
    "events",
    "forks",
    "hooks",
    "keys",
    "labels",
    "refs",
    "tags",
    "trees",
)
SENTENCES = (
    "The naïve façade of größe 日本語 🚀 fails upstream.",
    'Closes #42: `None` where "null" was meant.',
    "Flaky since the merge, reproduces on C:\\temp only.\r\n",
    "<details><summary>log</summary>timeout after 30 s</details>",
    "- [ ] rebase\n- [x] cherry-pick\n",
    "LGTM",
)


def _lookalikes(count: int) -> list[tuple[str, Any]]:
    """Webhooks as GitHub shapes them: 5 to 20 KB, nested, full of links, nulls, large ids and prose."""
    rng = random.Random(20230513)
    kinds = [(event, action) for event, actions in EVENTS.items() for action in actions or ("",)]
    return [_lookalike(rng, *kinds[i % len(kinds)]) for i in range(count)]


def _lookalike(rng: random.Random, event: str, action: str) -> tuple[str, Any]:
    value = {
        event: _subject(rng),
        "changes": {"title": {"from": _prose(rng, 1)}} if action == "edited" else {},
        "repository": _repository(rng),
        "organization": _user(rng),
        "installation": {"id": rng.randrange(2**26), "node_id": _token(rng, 44)},
        "sender": _user(rng),
    }
    if action:
        value["action"] = action
    size = rng.randrange(5_500, 19_000)
    comments: list[Any] = []
    value["comments"] = comments
    left = size - len(json.dumps(value, ensure_ascii=False).encode())
    while left > 0:
        comment = {"user": _user(rng), "body": _prose(rng, rng.randrange(1, 16)), "reactions": {"+1": rng.randrange(9)}}
        comments.append(comment)
        left -= len(json.dumps(comment, ensure_ascii=False).encode())
    return f"github.{event}.{action}" if action else f"github.{event}", value


def _subject(rng: random.Random) -> dict[str, Any]:
    return {
        "id": rng.randrange(2**53),  # the largest integers that every JSON reader keeps
        "number": rng.randrange(1, 9999),
        "title": _prose(rng, 1),
        "body": rng.choice((None, "", _prose(rng, 12))),
        "draft": rng.random() < 0.5,
        "score": rng.choice((0, -1, 1.5, 0.1, 1e-7, 12345678.9)),
        "labels": [{"name": _token(rng, 6), "default": False} for _ in range(rng.randrange(4))],
        "assignees": [_user(rng) for _ in range(rng.randrange(3))],
        "milestone": None,
        "user": _user(rng),
        "created_at": f"2023-05-{rng.randrange(1, 29):02}T{rng.randrange(24):02}:09:38.000-04:00",
        "_links": {kind: {"href": _link(rng, kind)} for kind in ("self", "html", "commits", "statuses")},
    }


def _repository(rng: random.Random) -> dict[str, Any]:
    return {
        "id": rng.randrange(2**40),
        "node_id": _token(rng, 20),
        "full_name": f"{_token(rng, 8)}/{_token(rng, 10)}",
        "private": False,
        "owner": _user(rng),
        "description": None,
        "topics": [],
        "license": {"key": "apache-2.0", "spdx_id": "Apache-2.0"},
        "stargazers_count": rng.randrange(10**5),
        **{f"{kind}_url": _link(rng, kind) for kind in RESOURCES},
    }


def _user(rng: random.Random) -> dict[str, Any]:
    login = _token(rng, 9)
    return {
        "login": login,
        "id": rng.randrange(2**31),
        "gravatar_id": "",
        "type": rng.choice(("User", "Bot")),
        "site_admin": False,
        **{f"{kind}_url": f"https://api.example.com/users/{login}/{kind}" for kind in ("repos", "gists", "events")},
    }


def _link(rng: random.Random, kind: str) -> str:
    return f"https://api.example.com/repos/{_token(rng, 8)}/{kind}{{/sha}}"


def _token(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(string.ascii_letters + string.digits, k=length))


def _prose(rng: random.Random, sentences: int) -> str:
    return " ".join(rng.choices(SENTENCES, k=sentences))
