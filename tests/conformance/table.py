"""The table of clients/README.md: features by language, out of what the cases have shown."""

from collections.abc import Iterable
from pathlib import Path

from .case import Case
from .implementation import ROOT
from .play import Verdict

PAGE = ROOT / "clients" / "README.md"
BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"
# In the order of the table.
FEATURES = {
    "payloads": "JSON, bytes and `value`",
    "messages": "ids, names, headers, unknown fields",
    "hello": "Hello and Welcome, with their limits",
    "listen": "listening",
    "resume": "resuming: nothing lost, nothing twice",
    "credit": "credit and acknowledgement",
    "heartbeat": "heartbeat and dialling again",
    "goodbye": "Goodbye, Reject, and who is told what",
    "routing": "routing: by interest, in turn, by `to`, by `via`",
    "questions": "questions to relays",
    "publish": "publications, broadcasts, subscriptions",
    "requests": "requests and replies",
    "many": "requests to many",
    "errors": "typed errors that tell nothing they should not",
    "cancel": "cancelling and deadlines, both ways",
    "state": "state of a peer: get, set, watch",
    "trace": "causes, traces and why",
    "system": "answers about itself",
    "limits": "limits and bad input",
}


def of(results: dict[str, list[Verdict]], chosen: Iterable[Case]) -> str:
    """The table, in Markdown."""
    chosen = list(chosen)
    names = list(results)
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for feature, title in FEATURES.items():
        ids = {case.id for case in chosen if feature in case.features}
        if ids:
            cells = (_cell([v for v in results[name] if v.case.id in ids], len(ids)) for name in names)
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    total = len(chosen)
    counts = (f"{sum(verdict.passed for verdict in results[name])} of {total}" for name in names)
    lines.append("| cases passed | " + " | ".join(counts) + " |")
    return "\n".join(lines)


def _cell(verdicts: list[Verdict], total: int) -> str:
    passed = sum(verdict.passed for verdict in verdicts)
    if not verdicts:
        return "no"  # it cannot, and says so
    return "yes" if passed == total else f"{passed} of {total}"


def write(results: dict[str, list[Verdict]], chosen: Iterable[Case], page: Path = PAGE) -> None:
    """Put the table into the page, in place of the one there."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{of(results, chosen)}\n{END}{after}", encoding="utf-8")


def committed(page: Path = PAGE) -> str:
    """The table that the page has."""
    return page.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
