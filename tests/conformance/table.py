"""The table of clients/README.md: features by language, out of what the cases have shown."""

from collections.abc import Mapping
from pathlib import Path

from .case import cases
from .implementation import ROOT, implementations, known_failures
from .play import Verdict

PAGE = ROOT / "clients" / "README.md"
BEGIN, END = "<!-- conformance: begin -->", "<!-- conformance: end -->"
NEVER = "no"  # its platform cannot
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


def of(results: Mapping[str, list[Verdict]]) -> str:
    """The table, in Markdown. A case that needs what a platform cannot do does not count against its language."""
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for feature, title in FEATURES.items():
        cells = [_cell([v for v in verdicts if feature in v.case.features]) for verdicts in results.values()]
        if any(cell != NEVER for cell in cells):
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    counts = (f"{sum(verdict.passed for verdict in verdicts)} of {len(verdicts)}" for verdicts in results.values())
    lines.append("| cases passed | " + " | ".join(counts) + " |")
    return "\n".join(lines)


def _cell(verdicts: list[Verdict]) -> str:
    passed = sum(verdict.passed for verdict in verdicts)
    if not verdicts:
        return NEVER
    return "yes" if passed == len(verdicts) else f"{passed} of {len(verdicts)}"


def expected() -> str:
    """The table of the clients that are here, if each passes what it is not known to fail: other tests see to that."""
    results = {}
    for one in implementations():
        if one.place.is_dir():
            known = known_failures().get(one.name, {})
            results[one.name] = [Verdict(case, known.get(case.id, "")) for case in cases() if one.takes(case)]
    return of(results)


def committed(page: Path = PAGE) -> str:
    """The table that the page has."""
    return page.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()


def write(table: str, page: Path = PAGE) -> None:
    """Put the table into the page, in place of the one there."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
