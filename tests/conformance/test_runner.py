"""The runner itself: its wires, and how it reads and compares."""

import asyncio

import pytest

from exchange.v1.frame_pb2 import Frame
from exchange.v1.message_pb2 import Message

from . import wires
from .case import BadCase, _cases_of
from .frames import Differs, build, fill, match, shown
from .wires import Wire

# ---------------------------------------------------------------------------------------------------------- wires


@pytest.fixture(params=["grpc", "websocket"])
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def pair(transport: str) -> tuple[Wire, Wire, wires.Server]:
    accepted: asyncio.Queue[Wire] = asyncio.Queue()
    server = await wires.serve(transport, accepted.put_nowait)
    dialled = await wires.dial(transport, server.url)
    if transport == "grpc":
        await dialled.send(b"first")  # gRPC opens the stream with the first frame
        there = await accepted.get()
        assert await there.frames.get() == b"first"
        return dialled, there, server
    return dialled, await accepted.get(), server


async def test_frames_go_both_ways(transport: str) -> None:
    here, there, server = await pair(transport)
    for frame in (b"a", b"", bytes(2**20)):
        await here.send(frame)
        assert await there.frames.get() == frame
        await there.send(frame)
        assert await here.frames.get() == frame
    await here.cut()
    await server.close()


@pytest.mark.parametrize("how", ["cut", "end"])
@pytest.mark.parametrize("by", ["dialled", "accepted"])
async def test_the_other_side_sees_the_end(transport: str, how: str, by: str) -> None:
    here, there, server = await pair(transport)
    ending, other = (here, there) if by == "dialled" else (there, here)
    await getattr(ending, how)()
    async with asyncio.timeout(5):
        assert await other.frames.get() is None
    await here.cut()
    await server.close()


async def test_nobody_there(transport: str) -> None:
    server = await wires.serve(transport, lambda wire: None)
    await server.close()
    with pytest.raises(wires.CANNOT_DIAL):
        async with asyncio.timeout(5):
            await wires.dial(transport, server.url)


# ------------------------------------------------------------------------------------------------- what is written


def test_a_frame_there_and_back() -> None:
    spec = {
        "batch": {
            "seq": 3,
            "messages": [
                {
                    "name": "a.b",
                    "kind": "REPLY",
                    "json": {"a": [1, None]},
                    "headers": {"k": "v"},
                    "unknown": "x",
                    "error": {"code": "NOT_FOUND", "message": "no", "reason": "GONE", "at": "hub"},
                }
            ],
        }
    }
    frame = Frame.FromString(build(Frame(), spec).SerializeToString())
    match(spec["batch"]["messages"][0] | {"unknown": {"$absent": True}}, shown(frame.batch.messages[0]), {})  # type: ignore[index]
    assert shown(frame.batch)["seq"] == 3


def test_what_was_bound_stands_in_its_place() -> None:
    bound = {"id": "a.1.1", "n": 4}
    assert fill({"x": "$id", "y": "is ${id}", "z": ["$n"]}, bound) == {"x": "a.1.1", "y": "is a.1.1", "z": [4]}
    assert fill({"$each": ["n${i}", 2]}, {}) == ["n1", "n2"]
    assert fill({"$deep": 3}, {}) == [[[]]]


def test_a_new_name_binds_and_a_known_one_compares() -> None:
    bound: dict[str, object] = {}
    match({"id": "$id", "again": "$id"}, {"id": 7, "again": 7}, bound)
    assert bound == {"id": 7}
    with pytest.raises(Differs, match="id is 8, not 7"):
        match({"id": "$id"}, {"id": 8}, bound)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (3, 3.0), (0, False), ("a", "b"), ([1], [1, 2]), ({"a": 1}, {}), ({"a": {"$absent": True}}, {"a": 1}),
        ({"$gt": 3}, 3), ({"$has": [1, 4]}, [1, 2]), ({"$not": 1}, 1), ({"$match": "^x"}, "ax"), ({"$size": 2}, "abc"),
        ({"$without": ["secret"]}, ["a secret"]), ({"$any": True}, ""), ({"$one_of": [1, 2]}, 3),
    ],
)  # fmt: skip
def test_what_differs_is_seen(expected: object, actual: object) -> None:
    with pytest.raises(Differs):
        match(expected, actual, {})


def test_json_is_compared_as_what_it_says() -> None:
    match({"json": {"a": 1}}, shown(Message(json=b' {"a" : 1} ')), {})
    with pytest.raises(Differs):
        match({"json": {"$text": '{"a":1}'}}, shown(Message(json=b' {"a" : 1} ')), {})


# ----------------------------------------------------------------------------------------------------------- cases

WHOLE = {"name": "x", "rule": "r", "source": "s", "feature": "limits", "steps": [{"wait": 1}]}


@pytest.mark.parametrize("wrong", [{"steps": []}, {"steps": [{"says": 1}]}, {"rule": ""}, {"peer": {}}])
def test_a_case_that_is_written_wrongly_is_refused(wrong: dict[str, object]) -> None:
    assert len(list(_cases_of("limits", WHOLE))) == 1
    with pytest.raises(BadCase):
        list(_cases_of("limits", {**WHOLE, **wrong}))
