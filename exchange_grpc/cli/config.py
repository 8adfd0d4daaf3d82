"""What `exchange serve` runs with: defaults, a TOML file, environment variables and flags, in rising order.

    id = "hub"
    grpc = "0.0.0.0:50051"
    http = "0.0.0.0:8080"
    origins = ["https://app.example.com"]
    connect = ["grpc://10.0.0.2:50051"]
    exports = ["total", "target"]
    accepts = ["target"]

    [limits]
    away_seconds = 3

    [state]
    total = 0
    target = 100

What is wrong is said with the file and the key, the variable or the flag that says it. Values of the
state are never shown.
"""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from .. import Exchange, ExchangeError, Limits
from ..transports.origins import Origins
from . import demo
from .console import DEFAULT, USAGE, fail
from .logs import FORMATS, LEVELS

Given = Mapping[str, tuple[Any, str]]  # a setting's key -> its value, and the variable or the flag that says it


@dataclass
class Config:
    """The settings, each with where it comes from in `sources`."""

    id: str | None = None
    grpc: str | None = None  # DEFAULT, if there is no `http` either
    http: str | None = None
    origins: list[str] = field(default_factory=list)
    demo: bool = False
    relay: bool = True
    balance: str = "round_robin"
    when_full: str = "wait"
    connect: list[str] = field(default_factory=list)
    log_level: str = "info"
    log_format: str = "auto"
    exports: list[str] = field(default_factory=list)
    accepts: list[str] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def told(self) -> Iterator[str]:
        """A line for each setting, with where it comes from."""
        for key in _TYPES:
            chosen = getattr(self, key)
            text = ", ".join(chosen) if isinstance(chosen, list | dict) else str(chosen)  # of the state the names only
            if key == "limits":
                text = ", ".join(f"{name} = {value}" for name, value in chosen.items())
            text = text.lower() if isinstance(chosen, bool) else text
            absent = "made up" if key == "id" else "none"
            shown = absent if chosen is None else text or "none"
            yield f"{key}: {shown} ({self.sources.get(key, 'default')})"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "a text"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _texts(value: Any) -> str | None:
    good = isinstance(value, list) and all(isinstance(item, str) and item for item in value)
    return None if good else 'a list of texts, such as ["one", "two"]'


def _one_of(*words: str) -> Callable[[Any], str | None]:
    return lambda value: None if value in words else f"one of {', '.join(words)}"


def _limits(value: Any) -> str | None:
    known = [limit.name for limit in fields(Limits)]
    good = isinstance(value, dict) and all(name in known for name in value)
    return None if good else f"a table of limits, which are {', '.join(known)}"


def _state(value: Any) -> str | None:
    try:
        json.dumps(value, allow_nan=False)  # a date of TOML is nothing that JSON can say
    except (TypeError, ValueError):
        return "a table of names and of values that JSON can say"
    return None if isinstance(value, dict) else "a table of names and values"


# What a setting is, or None if the value is of that kind.
_TYPES: dict[str, Callable[[Any], str | None]] = {
    "id": _text,
    "grpc": _text,
    "http": _text,
    "origins": _texts,
    "demo": _flag,
    "relay": _flag,
    "balance": _text,
    "when_full": _text,
    "connect": _texts,
    "log_level": _one_of(*LEVELS),
    "log_format": _one_of(*FORMATS),
    "exports": _texts,
    "accepts": _texts,
    "limits": _limits,
    "state": _state,
}


def load(path: str | None, given: Given) -> Config:
    """The settings of the file at `path`, if there is one, and over them those `given`."""
    config = Config()
    for key, value in (_read(path) if path is not None else {}).items():
        _check(key, value, path or "")
        setattr(config, key, value)
        config.sources[key] = path or ""
    for key, (value, source) in given.items():
        setattr(config, key, value)
        config.sources[key] = source
    if config.grpc is None and config.http is None:
        config.grpc = DEFAULT
    if config.demo:
        config.state = {**demo.STATE, **config.state}
        config.sources["state"] = " and ".join(filter(None, ("demo", config.sources.get("state"))))
        for key, names in (("exports", demo.EXPORTS), ("accepts", demo.ACCEPTS)):
            if key not in config.sources:
                setattr(config, key, list(names))
                config.sources[key] = "demo"
    _try(config)
    return config


def _read(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        fail(USAGE, f"{path}: {error.strerror or error}")
    except ValueError as error:  # no UTF-8, or no TOML: it says in which line
        fail(USAGE, f"{path}: {error}")


def _check(key: str, value: Any, path: str) -> None:
    kind = _TYPES.get(key)
    if kind is None:
        near = get_close_matches(key, _TYPES, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_TYPES)}"
        fail(USAGE, f"{path}: {key}: there is no such setting; {hint}")
    wanted = kind(value)
    if wanted is not None:
        fail(USAGE, f"{path}: {key}: it is {wanted}")


def _try(config: Config) -> None:
    """Let an exchange look at each: what it will not take is wrong, and we know who said it."""
    trials: dict[str, Callable[[], Exchange]] = {
        "id": lambda: Exchange(config.id),
        "balance": lambda: Exchange(balance=config.balance),
        "when_full": lambda: Exchange(when_full=config.when_full),
        "limits": lambda: Exchange(limits=Limits(**config.limits)),
        "state": lambda: Exchange(state=config.state),
        "exports": lambda: Exchange(state=config.state, exports=config.exports),
        "accepts": lambda: Exchange(state=config.state, accepts=config.accepts),
    }
    for key, make in trials.items():
        try:
            make()
        except (ExchangeError, TypeError, ValueError) as error:
            blame(config, key, str(error))
    try:
        Origins(config.origins, "")
    except ExchangeError as error:
        blame(config, "origins", str(error))
    if config.origins and config.http is None:
        blame(config, "origins", "it is for pages that connect to the address that `http` says, and there is none")


def blame(config: Config, key: str, text: str) -> NoReturn:
    """End, and say where the setting comes from that is wrong."""
    source = config.sources.get(key, "")
    of_file = source and not source.startswith(("--", "EXCHANGE_"))
    fail(USAGE, f"{source}: {key}: {text}" if of_file else f"{source or key}: {text}")
