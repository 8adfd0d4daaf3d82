"""Frames as a case writes them: proto in the shape of YAML, both ways.

Law: what is written is what is sent; what is usual is filled in by `partner.py`, where a step says so. What is shorter:

    json: {a: 5}            a value, for the bytes of its JSON; `json: {$text: '{"a":'}` for bytes as they are
    kind: SEND              the short names of the enums
    error: {code: UNIMPLEMENTED, message: ..., reason: UNHANDLED, at: hub, delivered: no}   a Status with its ErrorInfo
    unknown: text           a field that nobody knows, in any message
    $name, ${name}          what was bound before; `$name` in what is expected binds, if it is new
    {$times: [a, 300]}      a text so many times;  {$each: ["n${i}", 300]} a list;  {$deep: 31} nested lists

What is expected is a part: what is not named may be anything. Where a value stands there may be {$any: true},
{$absent: true}, {$gt: 1}, {$ge: 1}, {$lt: 1}, {$le: 1}, {$match: regex}, {$not: value}, {$has: [part of a list]},
{$one_of: [...]}, {$size: n}, {$text: bytes of json as they are}, {$without: [keys that a thing must not have]}.
"""

import json
import re
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Proto
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

DOMAIN = "exchange"
_UNKNOWN = 777  # a field number that no message of ours has
_PREFIXES = {"Kind": "KIND_", "Outcome": "OUTCOME_", "Found": "FOUND_"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_WHOLE = re.compile(r"\$(\w+)")


_MADE = {"$times", "$each", "$deep", "$add", "$hops"}


class Differs(Exception):
    """What came is not what the case says."""


# ---------------------------------------------------------------------------------------------------- variables


def fill(spec: Any, bound: dict[str, Any]) -> Any:
    """`spec` with everything that was bound before in its place."""
    if isinstance(spec, str):
        whole = _WHOLE.fullmatch(spec)
        if whole is not None:
            return bound[whole[1]]
        return _VARIABLE.sub(lambda found: str(bound[found[1]]), spec)
    if isinstance(spec, list):
        return [fill(item, bound) for item in spec]
    if not isinstance(spec, dict):
        return spec
    if "$times" in spec:
        return fill(spec["$times"][0], bound) * spec["$times"][1]
    if "$each" in spec:
        template, count = spec["$each"]
        return [fill(template, {**bound, "i": i}) for i in range(1, count + 1)]
    if "$deep" in spec:
        nested: list[Any] = []
        for _ in range(spec["$deep"] - 1):
            nested = [nested]
        return nested
    if "$hops" in spec:
        return [{"exchange": f"h{i}"} for i in range(1, spec["$hops"])] + [{"exchange": "peer"}]
    if "$add" in spec:
        return sum(fill(spec["$add"], bound))
    return {key if key.startswith("$") else fill(key, bound): fill(value, bound) for key, value in spec.items()}


# ----------------------------------------------------------------------------------------------------- to proto


def build(into: Proto, spec: Any) -> Any:
    """`into`, with what `spec` says in it."""
    if isinstance(into, Status):
        return _build_status(into, spec)
    if into.DESCRIPTOR.full_name == "google.protobuf.Value":
        return json_format.ParseDict(spec, into) if not isinstance(spec, float) else _build_number(into, spec)
    into.SetInParent()
    for key, value in spec.items():
        if key == "unknown":
            data = str(value).encode()
            into.MergeFromString(varint(_UNKNOWN << 3 | 2) + varint(len(data)) + data)
        else:
            _set(into, into.DESCRIPTOR.fields_by_name[key], value)
    return into


def _build_number(into: Any, number: float) -> Any:
    into.number_value = number  # json_format refuses NaN
    return into


def _set(into: Proto, field: Any, value: Any) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(into, field.name).update({str(key): str(item) for key, item in value.items()})
    elif field.is_repeated:
        items = getattr(into, field.name)
        for item in value:
            if field.message_type is not None:
                build(items.add(), item)
            else:
                items.append(item)
    elif field.message_type is not None:
        build(getattr(into, field.name), value)
    elif field.enum_type is not None:
        setattr(into, field.name, _enum(field, value))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        setattr(into, field.name, _bytes(field, value))
    else:
        setattr(into, field.name, value)


def _enum(field: Any, value: Any) -> int:
    if isinstance(value, int):
        return value
    numbers: int = field.enum_type.values_by_name[_PREFIXES[field.enum_type.name] + value].number
    return numbers


def _bytes(field: Any, value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and "$text" in value:
        return str(value["$text"]).encode()
    if isinstance(value, dict) and "$text_deep" in value:
        return b"[" * value["$text_deep"] + b"]" * value["$text_deep"]
    if isinstance(value, dict) and "$hex" in value:
        return bytes.fromhex(value["$hex"])
    if field.name == "json":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return str(value).encode()


def _build_status(into: Status, spec: Any) -> Status:
    into.SetInParent()
    code = spec.get("code", 0)
    into.code = code if isinstance(code, int) else Code.Value(code)
    into.message = spec.get("message", "")
    if "reason" in spec:
        info = ErrorInfo(reason=spec["reason"], domain=DOMAIN)
        for key in ("at", "delivered"):
            if key in spec:
                info.metadata[key] = spec[key]
        into.details.add().Pack(info)
    return into


def varint(number: int) -> bytes:
    """A number as protobuf writes it: a key, or a length."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


# --------------------------------------------------------------------------------------------------- from proto


def shown(message: Proto) -> dict[str, Any]:
    """`message` in the shape of YAML, with every field that has no presence of its own."""
    if isinstance(message, Status):
        return _shown_status(message)
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            found[field.name] = dict(value)
        elif field.is_repeated:
            found[field.name] = [shown(item) if field.message_type is not None else item for item in value]
        elif field.message_type is not None:
            if message.HasField(field.name):
                found[field.name] = _shown_message(value)
        elif field.has_presence and not message.HasField(field.name):
            continue
        elif field.enum_type is not None:
            known = field.enum_type.values_by_number.get(value)
            found[field.name] = value if known is None else known.name.removeprefix(_PREFIXES[field.enum_type.name])
        elif field.name == "json":
            found["json"] = _shown_json(value)
            found["$json"] = value
        else:
            found[field.name] = value
    return found


def _shown_message(message: Proto) -> Any:
    if message.DESCRIPTOR.full_name == "google.protobuf.Value":
        return json_format.MessageToDict(message)
    return shown(message)


def _shown_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return {"no json": data.decode(errors="replace")}


def _shown_status(status: Status) -> dict[str, Any]:
    code = Code.Name(status.code) if status.code in Code.values() else status.code
    found: dict[str, Any] = {"code": code, "message": status.message}
    for detail in status.details:
        info = ErrorInfo()
        if detail.Unpack(info):
            found.update({"reason": info.reason, "domain": info.domain, **dict(info.metadata)})
    return found


# --------------------------------------------------------------------------------------------------- comparing

_TESTS: dict[str, Any] = {
    "$gt": lambda actual, bound: actual > bound,
    "$ge": lambda actual, bound: actual >= bound,
    "$lt": lambda actual, bound: actual < bound,
    "$le": lambda actual, bound: actual <= bound,
    "$match": lambda actual, pattern: isinstance(actual, str) and re.search(pattern, actual) is not None,
    "$any": lambda actual, _: actual not in (None, "", 0, b"", [], {}),
    "$one_of": lambda actual, options: actual in options,
    "$size": lambda actual, size: len(actual) == size,
    "$without": lambda actual, keys: not any(str(key) in str(actual) for key in keys),
    "$sorted_as": lambda actual, wanted: sorted(actual, key=str) == sorted(wanted, key=str),
}


def match(expected: Any, actual: Any, bound: dict[str, Any], where: str = "") -> None:
    """Raises Differs if `actual` is not what is expected; binds the variables that are new."""
    if isinstance(expected, str):
        whole = _WHOLE.fullmatch(expected)
        if whole is not None and whole[1] not in bound:
            bound[whole[1]] = actual
            return
        expected = fill(expected, bound)
    if isinstance(expected, dict) and expected.keys() & _MADE:
        expected = fill(expected, bound)
    if isinstance(expected, dict):
        _match_dict(expected, actual, bound, where)
    elif isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            raise Differs(f"{where or 'it'} is {_short(actual)}, not {_short(expected)}")
        for at, (item, its) in enumerate(zip(expected, actual, strict=True)):
            match(item, its, bound, f"{where}[{at}]")
    elif not _equal(expected, actual):
        raise Differs(f"{where or 'it'} is {_short(actual)}, not {_short(expected)}")


def _match_dict(expected: dict[str, Any], actual: Any, bound: dict[str, Any], where: str) -> None:
    operators = [key for key in expected if isinstance(key, str) and key.startswith("$")]
    for operator in operators:
        _operate(operator, fill(expected[operator], bound), actual, bound, where)
    if operators:
        return
    if not isinstance(actual, dict):
        raise Differs(f"{where or 'it'} is {_short(actual)}, not {_short(expected)}")
    for key, value in expected.items():
        inner = f"{where}.{key}" if where else str(key)
        if isinstance(value, dict) and "$absent" in value:
            if actual.get(key) not in (None, "", 0, b"", [], {}, False):
                raise Differs(f"{inner} is {_short(actual[key])}, and should be absent")
        elif isinstance(value, dict) and "$text" in value:
            its = actual.get(f"${key}", actual.get(key))
            if its != str(value["$text"]).encode():
                raise Differs(f"{inner} is {_short(its)}, not {value['$text']}")
        elif key not in actual:
            raise Differs(f"{inner} is absent, and should be {_short(value)}; there is {_short(actual)}")
        else:
            match(value, actual[key], bound, inner)


def _operate(operator: str, wanted: Any, actual: Any, bound: dict[str, Any], where: str) -> None:
    if operator == "$size_of_frame":
        if actual["$size"] > wanted:
            raise Differs(f"the frame has {actual['$size']} bytes, more than {wanted}")
    elif operator == "$has":
        for item in wanted:
            if not any(_fits(item, its, bound) for its in actual):
                raise Differs(f"{where} has no {_short(item)}: {_short(actual)}")
    elif operator == "$not":
        if _fits(wanted, actual, bound):
            raise Differs(f"{where} is {_short(actual)}, and should not be")
    elif not _TESTS[operator](actual, wanted):
        raise Differs(f"{where} is {_short(actual)}, and should be {operator[1:]} {_short(wanted)}")


def _fits(expected: Any, actual: Any, bound: dict[str, Any]) -> bool:
    try:
        match(expected, actual, bound)
    except Differs:
        return False
    return True


def _equal(expected: Any, actual: Any) -> bool:
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, int) and isinstance(actual, float):
        return False  # 3 is not 3.0
    if isinstance(expected, str) and isinstance(actual, bytes):
        return expected.encode() == actual
    return bool(expected == actual)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."
