"""What `exchange serve` and `exchange handle` log, on stderr.

On a terminal a line of text for each record, elsewhere a line of JSON:

    {"time": "2025-01-31T12:00:00.000+00:00", "level": "INFO", "logger": "exchange_grpc", "text": "stopping"}

An exception is there from ERROR upwards only, as `exception`: its type, and the traceback.

Law: at `info` and above nothing of a payload or a header is logged.
"""

import json
import logging
import sys
import traceback
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

import click

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "text", "json")

C = TypeVar("C", bound=Callable[..., Any])


def set_up(level: str, form: str) -> None:
    """Log from `level` upwards, in the form `auto`, `text` or `json`."""
    handler = logging.StreamHandler()
    as_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    handler.setFormatter(Text() if as_text else Json())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)  # of other libraries
    logging.getLogger("exchange_grpc").setLevel(level.upper())


def options(command: C) -> C:
    """`--log-level` and `--log-format`."""
    level = click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        envvar="EXCHANGE_LOG_LEVEL",
        help="From here upwards; info if not given.",
    )
    form = click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        envvar="EXCHANGE_LOG_FORMAT",
        help="auto, if not given: text on a terminal, else json.",
    )
    return level(form(command))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def _exception(record: logging.LogRecord) -> dict[str, str] | None:
    if record.exc_info is None or record.exc_info[0] is None or record.levelno < logging.ERROR:
        return None
    return {"type": record.exc_info[0].__qualname__, "traceback": "".join(traceback.format_exception(*record.exc_info))}


class Json(logging.Formatter):
    """One object for each record, on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "text": record.getMessage(),
        }
        exception = _exception(record)
        if exception is not None:
            line["exception"] = exception
        return json.dumps(line)  # ASCII: no line separator of any alphabet is in it


class Text(logging.Formatter):
    """Time, level, logger and text; a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging."""
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}"
        exception = _exception(record)
        return line if exception is None else f"{line}\n{exception['traceback'].rstrip()}"
