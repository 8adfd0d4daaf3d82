"""The outgoing half of a session: numbers, credit, what is kept, and what leaves again."""

from typing import Any

import pytest

from exchange_grpc import wire
from exchange_grpc.errors import InvalidMessage
from exchange_grpc.frames import Batch, Credit
from exchange_grpc.inbox import Inbox
from exchange_grpc.limits import Limits
from exchange_grpc.message import Context, Kind, Message, Origin
from exchange_grpc.outbox import AROUND, POLICIES, Outbox, QueueFull

NOW = 100.0
ROOM = 2**20
PLENTY = Credit(1_000, 2**30)
ORIGIN = Origin("me", 7)


def made(name: str, kind: Kind = Kind.SEND, **more: Any) -> Message:
    return ORIGIN.make(kind, name, Context(), NOW, **more)


def cancel(request: Message, name: str = "c") -> Message:
    return made(name, Kind.CANCEL, reply_to=request.id)


def put(out: Outbox, *messages: Message) -> list[Message]:
    """Queue the messages: those that made room for them."""
    made_room = []
    for message in messages:
        data = wire.pack_bytes(message)
        made_room += out.put(message, data, len(data) + AROUND)
    return made_room


def outbox(credit: Credit | None = PLENTY, *, keeps: bool = True, policy: str = "wait") -> Outbox:
    out = Outbox(policy)
    out.keeps, out.credit = keeps, credit
    return out


def filled(names: str, credit: Credit | None = PLENTY, **more: Any) -> Outbox:
    out = outbox(credit, **more)
    put(out, *map(made, names))
    return out


def frame(out: Outbox, now: float = NOW, room: int = ROOM) -> tuple[int, str] | None:
    """The next Batch: its number, and the names in it."""
    data, _ = out.batch(room, now)
    if data is None:
        return None
    batch = wire.decode(data, now)
    assert isinstance(batch, Batch)
    return batch.seq, "".join(message.name for message in batch.messages if isinstance(message, Message))


def frames(out: Outbox, now: float = NOW, room: int = ROOM) -> list[tuple[int, str]]:
    result = []
    while (found := frame(out, now, room)) is not None:
        result.append(found)
    return result


def names(messages: list[Message]) -> str:
    return "".join(message.name for message in messages)


# ----------------------------------------------------------------------------------------- numbers and credit


def test_numbers_begin_at_1_and_have_no_gap() -> None:
    out = filled("abc")
    assert frame(out) == (1, "abc")
    assert frame(out) is None
    put(out, made("d"))
    assert frame(out) == (4, "d")


def test_what_expires_before_it_leaves_takes_no_number() -> None:
    out = outbox()
    put(out, made("a"), made("b", seconds=1), made("c"))
    data, expired = out.batch(ROOM, NOW + 1)
    assert data is not None
    assert names(expired) == "b"
    put(out, made("d"))
    assert frame(out) == (3, "d")


def test_what_expires_leaves_the_queue_although_there_is_no_credit() -> None:
    out = outbox(Credit(0, 0))
    put(out, made("a", seconds=1), made("b"))
    assert out.batch(ROOM, NOW + 0.999) == (None, [])
    data, expired = out.batch(ROOM, NOW + 1)
    assert (data, names(expired)) == (None, "a")
    assert out.load()[0] == 1


def test_credit_in_messages() -> None:
    out = filled("abcd", Credit(2, 2**20))
    assert frames(out) == [(1, "ab")]
    assert out.waits
    out.credited(Credit(3, 2**20))
    assert frames(out) == [(3, "c")]
    out.credited(Credit(1, 2**20))
    assert out.credit == Credit(3, 2**20), "it never becomes less"
    assert frames(out) == []
    out.credited(Credit(4, 0))
    assert out.credit == Credit(4, 2**20)
    assert frames(out) == [(4, "d")]
    assert not out.waits


def test_credit_in_bytes_counts_frames_as_they_are() -> None:
    out, into = filled("", Credit(100, 1_000)), 0
    for n in range(20):
        put(out, made("a", payload=b'"%s"' % (b"x" * 50 * (n % 3))))
    while True:
        data, _ = out.batch(ROOM, NOW)
        if data is None:
            break
        into += len(data)
        out.credited(Credit(100, into + 500))
        assert into <= out.credit.bytes  # type: ignore[union-attr]
    assert not out.waits


def test_no_more_leaves_than_there_is_credit_for_in_bytes() -> None:
    out = filled("ab")
    data, _ = out.batch(ROOM, NOW)
    assert data is not None
    size = out.load()[1]
    assert size == 0
    for less, leaves in ((1, False), (0, True)):
        out = outbox()
        put(out, made("a"))
        out.credit = Credit(100, out.load()[1] + AROUND - less)
        assert (frame(out) == (1, "a")) is leaves


def test_without_credit_from_the_peer_there_is_no_limit() -> None:
    out = filled("abc", None)
    out.credited(Credit(1, 1))
    assert out.credit is None, "one who gave none in Hello gives none"
    assert frames(out) == [(1, "abc")]


def test_a_frame_is_as_large_as_there_is_room_for() -> None:
    out = filled("abcd")
    size = out.load()[1] // 4
    assert frames(out, room=2 * size) == [(1, "ab"), (3, "cd")]
    out = filled("abcd")
    assert frames(out, room=2 * size - 1) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]
    out = filled("ab")
    assert frames(out, room=1) == [(1, "a"), (2, "b")], "one at least"


def test_a_frame_has_so_many_messages_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.BATCH_MESSAGES", 2)
    out = filled("abcde")
    assert frames(out) == [(1, "ab"), (3, "cd"), (5, "e")]
    out.resumed(0, 0)
    assert frames(out) == [(1, "ab"), (3, "cd"), (5, "e")]


# ------------------------------------------------------------------------------------------------- cancels


def test_a_cancel_leaves_without_credit() -> None:
    out = outbox(Credit(1, 2**20))
    request = made("r", Kind.REQUEST)
    put(out, request, made("a"), cancel(request), made("b"))
    assert frames(out) == [(1, "r"), (2, "c")]
    assert out.load()[0] == 2
    out.credited(Credit(4, 2**20))
    assert frames(out) == [(3, "ab")]


def test_a_cancel_takes_with_it_the_request_that_waits_as_well() -> None:
    out = outbox(Credit(0, 0))
    request, other = made("r", Kind.REQUEST), made("o", Kind.REQUEST)
    put(out, request, other, cancel(request))
    assert frames(out) == []
    assert out.load()[0] == 1
    out.credited(Credit(9, 2**20))
    assert frames(out) == [(1, "o")]


def test_with_credit_a_cancel_waits_for_its_turn() -> None:
    out = outbox()
    request = made("r", Kind.REQUEST)
    put(out, request, made("a"), cancel(request))
    assert frames(out) == [(1, "rac")]


def test_cancels_without_credit_keep_to_the_size_of_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = [made("r", Kind.REQUEST) for _ in range(5)]
    out = outbox(Credit(0, 0))
    put(out, made("a"), *map(cancel, sent))
    size = max(len(wire.pack_bytes(cancel(request))) + AROUND for request in sent)
    assert frames(out, room=2 * size) == [(1, "cc"), (3, "cc"), (5, "c")]
    assert out.load()[0] == 1
    monkeypatch.setattr("exchange_grpc.outbox.BATCH_MESSAGES", 3)
    put(out, *map(cancel, sent))
    assert frames(out) == [(6, "ccc"), (9, "cc")]
    out.credited(PLENTY)
    assert frames(out) == [(11, "a")]


def test_what_left_without_credit_is_not_counted_with_what_needs_it_when_both_leave_again() -> None:
    out, inbox = outbox(), Inbox(Limits())
    request = made("r", Kind.REQUEST)
    put(out, request, made("a"))
    out.credit = Credit(9, out.load()[1] + AROUND)
    inbox.given = out.credit
    assert frame(out) == (1, "ra")
    put(out, *[cancel(request) for _ in range(50)])
    assert frame(out) == (3, "c" * 50)
    out.resumed(0, 0)
    data, _ = out.batch(ROOM, NOW)
    assert data is not None
    inbox.take(1, list("ra"), len(data), NOW)
    inbox.check_credit(2)
    assert frames(out) == [(3, "c" * 50)]


# ---------------------------------------------------------------------------------- what is kept, and leaves again


def test_what_is_not_acknowledged_leaves_again_before_anything_new() -> None:
    out = filled("abcd")
    assert frame(out) == (1, "abcd")
    out.acknowledged(1)
    assert out.unacknowledged == 3
    put(out, made("e"))
    out.resumed(2, 500)
    assert out.waits
    assert frames(out) == [(3, "cd"), (5, "e")]
    assert out.unacknowledged == 3


def test_what_has_expired_leaves_again_for_its_number_is_taken() -> None:
    out = outbox()
    put(out, made("a", seconds=1), made("b"))
    assert frame(out) == (1, "ab")
    out.resumed(0, 0)
    data, expired = out.batch(ROOM, NOW + 2)
    assert expired == []
    batch = wire.decode(data or b"", NOW + 2)
    assert isinstance(batch, Batch)
    assert [message.id for message in batch.messages] == out.take_uncertain()


def test_acknowledged_while_it_leaves_again() -> None:
    out = filled("abcdef")
    assert frame(out) == (1, "abcdef")
    out.resumed(1, 0)
    assert frame(out, room=1) == (2, "b")
    out.acknowledged(4)
    assert frames(out) == [(5, "ef")]
    assert out.unacknowledged == 2


def test_bytes_are_counted_on_from_what_the_peer_has_taken() -> None:
    out = filled("a", Credit(9, 10_000))
    assert frame(out) == (1, "a")
    out.resumed(1, 9_900)
    put(out, made("b"))
    assert frame(out) is None
    out.credited(Credit(9, 20_000))
    assert frame(out) == (2, "b")


@pytest.mark.parametrize(("seq", "fits"), [(3, True), (4, False)])
def test_nobody_can_acknowledge_what_was_not_sent(seq: int, fits: bool) -> None:
    for tell in (Outbox.acknowledged, lambda out, seq: out.resumed(seq, 0), Outbox.refused_after):
        out = filled("abc")
        assert frame(out) == (1, "abc")
        if fits:
            tell(out, seq)
            assert out.unacknowledged == 0
        else:
            with pytest.raises(InvalidMessage, match="message 4 is acknowledged, and 3 were sent"):
                tell(out, seq)
            assert out.unacknowledged == 3


def test_nobody_can_take_back_an_acknowledgement() -> None:
    out = filled("abc")
    frame(out)
    out.acknowledged(2)
    out.acknowledged(1)
    assert out.unacknowledged == 1
    with pytest.raises(InvalidMessage, match="had acknowledged more"):
        out.resumed(1, 0)
    out.resumed(2, 0)
    assert frame(out) == (3, "c")


@pytest.mark.parametrize(("what", "most"), [("UNACKED_MESSAGES", 2), ("UNACKED_BYTES", 1)])
def test_what_is_kept_is_bounded(what: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"exchange_grpc.outbox.{what}", most)
    out = filled("abcde")
    (first,) = frames(out)
    assert first == (1, "ab"[:most])
    out.acknowledged(1)
    assert frames(out) == [(most + 1, "abc"[most])]
    out.resumed(1, 0)
    frames(out)
    assert out.unacknowledged == most


def test_nothing_is_kept_for_a_peer_that_does_not_acknowledge() -> None:
    out = filled("abc", keeps=False)
    assert frame(out) == (1, "abc")
    assert out.unacknowledged == 0
    assert out.take_uncertain() == []


@pytest.mark.parametrize("keeps", [True, False])
def test_a_message_is_found_by_its_number(keeps: bool) -> None:
    out = outbox(keeps=keeps)
    messages = [made(name) for name in "abcd"]
    put(out, *messages)
    frame(out, room=1)
    frame(out)
    assert [out.id_of(n) for n in range(1, 5)] == [message.id for message in messages]
    assert out.id_of(0) == out.id_of(5) == ""
    if keeps:
        out.acknowledged(1)
        out.resumed(2, 0)
        assert [out.id_of(n) for n in range(1, 5)] == ["", "", messages[2].id, messages[3].id]
        frame(out, room=1)
        assert out.id_of(4) == messages[3].id
    out.take_uncertain()
    out.begin()
    assert [out.id_of(n) for n in range(6)] == [""] * 6


# ----------------------------------------------------------------------------------------------------- the end


def test_uncertain_is_what_left_and_unsent_what_did_not() -> None:
    out, sent = outbox(Credit(3, 2**20)), [made(name) for name in "abcde"]
    put(out, *sent)
    frame(out)
    out.acknowledged(2)
    out.settled(1)
    assert out.take_uncertain() == [message.id for message in sent[1:3]], "also what the peer has not settled"
    assert out.take_uncertain() == []
    assert names(out.take_unsent()) == "de"
    assert out.load() == (0, 0)
    assert not out.waits
    put(out, made("e"))
    out.begin()
    assert frame(out) == (1, "e")


def test_what_is_uncertain_may_be_about_to_leave_again() -> None:
    out, sent = outbox(), [made(name) for name in "abc"]
    put(out, *sent)
    frame(out)
    out.resumed(0, 0)
    frame(out, room=1)
    assert out.take_uncertain() == [message.id for message in sent]
    assert not out.waits


@pytest.mark.parametrize("keeps", [True, False])
def test_what_waits_is_settled_when_it_has_gone_on(keeps: bool) -> None:
    inbox = Inbox(Limits())
    inbox.acknowledges = True
    for name, how in (("acknowledged", lambda out: out.acknowledged(1)), ("lost", Outbox.take_uncertain)):
        out, message = outbox(keeps=keeps), made("a")
        message.keeper, message.seq = inbox, inbox.take(0, [message], 1, NOW)[0]
        put(out, message)
        assert len(inbox._unsettled) == 1
        frame(out)
        assert len(inbox._unsettled) == keeps
        how(out)
        assert not inbox._unsettled, name


def test_what_is_dropped_expired_or_withdrawn_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.LINK_HIGH_WATER", 1)
    inbox = Inbox(Limits())
    inbox.acknowledges = True
    request = made("r", Kind.REQUEST)
    out = outbox(Credit(0, 0), policy="drop_oldest")
    for message in (made("a"), made("b", seconds=1), request, cancel(request)):
        message.keeper, message.seq = inbox, inbox.take(0, [message], 1, NOW)[0]
        put(out, message)
    assert list(inbox._unsettled) == [2, 3, 4]
    _, (expired,) = out.batch(ROOM, NOW + 1)
    assert expired.name == "b"
    assert not inbox._unsettled


def test_what_is_to_be_settled_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.UNSETTLED_IDS", 2)
    out = filled("abcd")
    frame(out)
    out.acknowledged(4)
    assert len(out.take_uncertain()) == 2


def test_after_a_goodbye_what_was_not_taken_counts_as_never_sent() -> None:
    out, inbox = filled("ab"), Inbox(Limits())
    request = made("r", Kind.REQUEST)
    request.keeper = inbox
    put(out, request, cancel(request))
    frame(out)
    put(out, made("d"))
    before = out.load()
    out.refused_after(1)
    assert out.load()[0] == before[0] + 3
    assert out.load()[1] > before[1]
    assert inbox._retained == 1, "what waits here again counts"
    assert out._cancels == 1
    assert out.unacknowledged == 0
    assert names(out.take_unsent()) == "brcd"
    assert out.load() == (0, 0)
    assert (inbox._retained, inbox._retained_bytes, out._cancels) == (0, 0, 0)


def test_what_waits_is_retained_by_the_link_it_came_by() -> None:
    inbox = Inbox(Limits())
    out = outbox(Credit(1, 2**20))
    for name in "abc":
        message = made(name)
        message.keeper = inbox
        put(out, message)
    assert (inbox._retained, inbox._retained_bytes) == out.load()
    frame(out)
    assert (inbox._retained, inbox._retained_bytes) == out.load()
    assert out.load()[0] == 2
    out.take_unsent()
    assert (inbox._retained, inbox._retained_bytes) == (0, 0)


# ----------------------------------------------------------------------------------------------------- policies


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox is full beyond two messages."""
    monkeypatch.setattr("exchange_grpc.outbox.LINK_HIGH_WATER", 2)


def test_policies_have_names() -> None:
    for policy in POLICIES:
        assert Outbox(policy).policy == policy
    with pytest.raises(ValueError, match="when_full is one of wait, drop_oldest, drop_newest, disconnect, not 'x'"):
        Outbox("x")


@pytest.mark.usefixtures("low")
def test_to_wait_takes_all_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_MESSAGES", 4)
    out = filled("abcd")
    assert out.full
    with pytest.raises(QueueFull, match="more than 4 messages or"):
        put(out, made("e"))
    assert out.load()[0] == 4
    assert out.dropped == 0


def test_the_limit_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    out = filled("ab")
    size = out.load()[1] // 2
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_BYTES", 3 * size)
    put(out, made("c"))
    with pytest.raises(QueueFull):
        put(out, made("d"))
    monkeypatch.setattr("exchange_grpc.outbox.LINK_HIGH_WATER_BYTES", 3 * size)
    assert not out.full
    monkeypatch.setattr("exchange_grpc.outbox.LINK_HIGH_WATER_BYTES", 3 * size - 1)
    assert out.full


@pytest.mark.usefixtures("low")
def test_the_oldest_make_room() -> None:
    out = filled("abc", policy="drop_oldest")
    assert out.dropped == 0
    assert names(put(out, made("d"))) == "a"
    assert names(put(out, made("e"), made("f"))) == "bc"
    assert out.dropped == 3
    assert frames(out) == [(1, "def")]
    assert out.load() == (0, 0)


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("policy", ["drop_newest", "disconnect"])
def test_the_newest_is_refused(policy: str) -> None:
    out = filled("abc", policy=policy)
    with pytest.raises(QueueFull, match=f"the policy of the link is {policy}"):
        put(out, made("d"))
    assert out.dropped == 1
    assert frames(out) == [(1, "abc")]


@pytest.mark.usefixtures("low")
@pytest.mark.parametrize("kind", [Kind.REPLY, Kind.CANCEL, Kind.OUTCOME])
def test_what_ends_the_wait_of_somebody_is_not_dropped(kind: Kind) -> None:
    more = {"to": "you", "reply_to": "you.1.1"}
    for policy in POLICIES:
        out = outbox(policy=policy)
        put(out, *[made(name, kind, **more) for name in "abcd"])
        assert out.load()[0] == 4
    out = outbox(policy="drop_oldest")
    put(out, made("a", kind, **more), made("b"), made("c", kind, **more))
    assert names(put(out, made("d"))) == "b"
    put(out, made("e", kind, **more))
    assert names(put(out, made("f"))) == "d"


@pytest.mark.usefixtures("low")
def test_where_nothing_can_make_room_nothing_counts_as_dropped() -> None:
    out = outbox(policy="drop_oldest")
    put(out, *[made(name, Kind.REPLY, to="you", reply_to="you.1.1") for name in "abc"])
    assert put(out, made("d")) == []
    assert out.dropped == 0
    assert frames(out) == [(1, "abcd")]


@pytest.mark.usefixtures("low")
def test_nothing_makes_room_for_what_is_refused_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    out = filled("abc", policy="drop_oldest")
    monkeypatch.setattr("exchange_grpc.outbox.LINK_QUEUE_BYTES", out.load()[1] + 100)
    with pytest.raises(QueueFull):
        put(out, made("d", payload=b'"%s"' % (b"x" * 1_000)))
    assert (out.load()[0], out.dropped) == (3, 0)


def test_what_leaves_is_counted_in_bytes_over_all_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    out = filled("ab")
    first, second = (len(out.batch(1, NOW)[0] or b"") for _ in range(2))
    assert out._sent_bytes == first + second
    out.resumed(0, 0)
    size = sum(entry.size for entry in out._again) // 2
    assert frames(out, room=2 * size) == [(1, "ab")], "both fit exactly"
    monkeypatch.setattr("exchange_grpc.outbox.UNACKED_BYTES", 2 * size)
    put(out, made("c"))
    assert frame(out) is None, "what has left again is kept as well"


def test_a_session_begins_without_a_peer() -> None:
    out = Outbox()
    put(out, made("a"))
    frame(out)
    assert out.unacknowledged == 0, "nothing is kept for one who has not said that he acknowledges"
