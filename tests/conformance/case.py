"""A case as data: read from cases/*.yaml, and refused if it is not of the shape that README.md says."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

CASES = Path(__file__).parent / "cases"
SUITES = ("wire", "session", "routing", "requests", "state", "trace", "limits")
KEYS = {
    "name", "rule", "source", "feature", "needs", "both", "limits", "handles", "on", "subscribes", "observes",
    "peers", "linked", "steps",
}  # fmt: skip
STEPS = {
    "do", "answer", "answers", "error", "cancel", "event", "event_in_turn", "no_event", "exit",  # the process
    "say", "tell", "reply", "raw", "hear", "hear_last", "get", "get_all", "get_many", "never", "silence",  # a link
    "synchronise", "mute", "check", "check_all", "wait", "repeat",
    "accept", "dial", "resume", "open", "cut", "end", "ended", "no_answer", "no_dial", "end_server",  # connections
}  # fmt: skip
MODIFIERS = {"with", "as", "of", "by", "within", "times"}


class BadCase(Exception):
    """A case that is not written as it should be."""


@dataclass(frozen=True)
class Case:
    """One case. `side` is who dials: the process (`dial`), or the runner (`listen`)."""

    suite: str
    name: str
    rule: str
    source: str
    features: tuple[str, ...]
    steps: list[dict[str, Any]]
    needs: frozenset[str] = frozenset()
    side: str = "dial"
    limits: dict[str, Any] = field(default_factory=dict)
    setup: dict[str, Any] = field(default_factory=dict)
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)
    linked: bool = True

    @property
    def id(self) -> str:
        """What it is called everywhere."""
        return f"{self.suite}/{self.name}"


def cases(suite: str | None = None) -> list[Case]:
    """All cases, or those of a suite, in their order."""
    found = [case for each in ([suite] if suite else SUITES) for case in _read(each)]
    names = [case.id for case in found]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadCase(f"there are two cases {', '.join(sorted(twice))}")
    return found


def _read(suite: str) -> Iterator[Case]:
    text = (CASES / f"{suite}.yaml").read_text(encoding="utf-8")
    for spec in yaml.load(text, _Loader) or []:
        yield from _cases_of(suite, spec)


class _Loader(yaml.SafeLoader):
    """YAML without its traps: `on`, `off`, `yes` and `no` are words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))


def _cases_of(suite: str, spec: dict[str, Any]) -> Iterator[Case]:
    name = spec.get("name", "a case without a name")
    if unknown := spec.keys() - KEYS:
        raise BadCase(f"{suite}/{name}: unknown {', '.join(sorted(unknown))}")
    for key in ("name", "rule", "source", "feature", "steps"):
        if not spec.get(key):
            raise BadCase(f"{suite}/{name}: it says no {key}")
    for step in spec["steps"]:
        if not isinstance(step, dict) or not step.keys() <= STEPS | MODIFIERS or len(step.keys() & STEPS) < 1:
            raise BadCase(f"{suite}/{name}: no step: {step}")
    feature = spec["feature"]
    needs = frozenset(spec.get("needs", ()))
    case = Case(
        suite=suite,
        name=name,
        rule=spec["rule"],
        source=spec["source"],
        features=tuple(feature) if isinstance(feature, list) else (feature,),
        steps=spec["steps"],
        needs=needs,
        side="listen" if "listen" in needs and not spec.get("both") else "dial",
        limits=spec.get("limits", {}),
        setup={key: spec[key] for key in ("handles", "on", "subscribes", "observes") if key in spec},
        peers={id: said or {} for id, said in (spec.get("peers") or {"peer": {}}).items()},
        linked=spec.get("linked", True),
    )
    yield case
    if spec.get("both"):
        yield replace(case, name=f"{name}-listening", side="listen", needs=needs | {"listen"})
