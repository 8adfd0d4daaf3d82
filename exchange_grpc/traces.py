"""A trace put together of what several exchanges know of it.

Law: sans-IO, plain JSON in the shape of `TraceResponse`. An answer is read as a stranger's: what is not of
that shape is left out, and each exchange tells only what happened at itself. The result does not depend on
who asked, nor on the order of the answers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InvalidMessage
from .limits import CAUSES, HOPS, LEDGER_EVENTS, MESSAGE_BYTES, TRACE_EXCHANGES
from .message import Kind, Outcome
from .patterns import check_id
from .payload import encode_json

Span = dict[str, Any]
_WHOLE = MESSAGE_BYTES // 2  # of all that is told of one trace, so that an answer can carry it
_KINDS = frozenset(f"KIND_{kind.name}" for kind in Kind)
_OUTCOMES = frozenset(f"OUTCOME_{outcome.name}" for outcome in Outcome)


def origin(id: str) -> str:
    """The exchange that made the message `id`, or an empty text if that is no id of a message."""
    exchange, _, rest = id.partition(".")
    digits = rest.replace(".", "", 1)
    try:
        return check_id(exchange) if digits.isascii() and digits.isdigit() else ""
    except InvalidMessage:
        return ""


def read(answer: Any, exchange: str) -> dict[str, Any] | None:
    """What `exchange` answered to `exchange.trace`, as far as it can be believed; None if that is no trace."""
    if not isinstance(answer, dict) or not isinstance(answer.get("spans"), list) or not _text(answer, "root"):
        return None
    spans = [_span(span, exchange) for span in answer["spans"] if isinstance(span, dict) and _text(span, "id")]
    return {"root": answer["root"], "spans": spans, "cut": answer.get("cut") is True}


def merge(root: str, answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One trace of all that was answered about `root`."""
    spans: dict[str, Span] = {}
    cut = False
    for answer in answers:
        if answer["root"] != root:
            continue
        cut = cut or answer["cut"]
        for span in answer["spans"]:
            known = spans.get(span["id"])
            if known is None:
                spans[span["id"]] = {**span, "events": list(span["events"])}
                continue
            events = known["events"] + span["events"]
            if _claim(span) > _claim(known):
                known.update(span)
            known["events"] = events
    for span in spans.values():
        span["events"].sort(key=lambda event: (event["at_us"], event["exchange"], event["outcome"], event["by"]))

    told: list[Span] = []
    size = 0
    for span in sorted(spans.values(), key=_order):  # what began first explains the rest
        size += len(encode_json(span)) + 1
        if size > _WHOLE:
            return {"root": root, "spans": told, "cut": True}
        told.append(span)
    return {"root": root, "spans": told, "cut": cut}


def _claim(span: Span) -> tuple[int, str]:
    return len(span["hops"]), repr([span[key] for key in span if key != "events"])


def passed(trace: Mapping[str, Any]) -> list[str]:
    """The exchanges where these messages were, or to which they were passed on."""
    found: dict[str, None] = {}
    for span in trace["spans"]:
        found.update((hop["exchange"], None) for hop in span["hops"])
        found.update((event["by"], None) for event in span["events"] if event["outcome"] == "OUTCOME_FORWARDED")
    found.pop("", None)
    return list(found)[: 4 * TRACE_EXCHANGES]


def lineage(trace: Mapping[str, Any], id: str) -> list[Span]:
    """The message `id` and what caused it, along the newest causes, back to where it began, as far as it is known."""
    spans = {span["id"]: span for span in trace["spans"]}
    line: list[Span] = []
    while id in spans:
        line.append(spans.pop(id))
        id = next((cause for cause in reversed(line[-1]["causes"]) if cause in spans), "")
    return line


def _order(span: Span) -> tuple[int, int, str]:
    began = span["hops"][0]["at_us"] if span["hops"] else 0
    number = span["id"].rpartition(".")[2]
    return began, int(number) if number.isascii() and number.isdigit() and len(number) < 20 else 0, span["id"]


def _span(span: Span, exchange: str) -> Span:
    hops = [
        {"exchange": _text(hop, "exchange"), "at_us": _number(hop, "at_us")} for hop in _dicts(span, "hops", HOPS + 1)
    ]
    return {
        "id": _text(span, "id"),
        "name": _text(span, "name"),
        "kind": _word(span, "kind", _KINDS, "KIND_UNSPECIFIED"),
        "from": _text(span, "from"),
        "to": _text(span, "to"),
        "causes": [cause for cause in _list(span, "causes", CAUSES) if isinstance(cause, str)],
        "hops": hops if hops and hops[-1]["exchange"] == exchange else [],  # it came as far as there
        "reply_to": _text(span, "reply_to"),
        "events": [
            {
                "exchange": exchange,  # whatever it says: nobody speaks for another
                "at_us": _number(event, "at_us"),
                "outcome": _word(event, "outcome", _OUTCOMES, "OUTCOME_UNSPECIFIED"),
                "by": _text(event, "by"),
                "duration_us": _number(event, "duration_us"),
                "reason": _text(event, "reason"),
            }
            for event in _dicts(span, "events", LEDGER_EVENTS)
        ],
    }


def _text(of: Mapping[str, Any], key: str) -> str:
    value = of.get(key)
    return value[:1_000] if isinstance(value, str) else ""


def _number(of: Mapping[str, Any], key: str) -> int:
    value = of.get(key)
    return value if type(value) is int and abs(value) < 2**63 else 0


def _word(of: Mapping[str, Any], key: str, words: frozenset[str], otherwise: str) -> str:
    value = of.get(key)
    return value if isinstance(value, str) and value in words else otherwise


def _list(of: Mapping[str, Any], key: str, most: int) -> list[Any]:
    value = of.get(key)
    return value[:most] if isinstance(value, list) else []


def _dicts(of: Mapping[str, Any], key: str, most: int) -> list[dict[str, Any]]:
    return [item for item in _list(of, key, most) if isinstance(item, dict)]
