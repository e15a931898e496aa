"""What is written is read back, what is not ours is refused, and what was damaged is noticed."""

import contextlib
from dataclasses import fields
from typing import Any, get_args

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire

QUERY = wire.QueryRecord(2**63, 1_000, 2_000, 3, 80.5, -1, 784, 0xFFFFFFFF, stored=True)
MESSAGES: list[wire.Message] = [
    wire.Pack("gateway-1", [QUERY, QUERY._replace(id=1, stored=False)]),
    wire.Hello("worker-1", {"format": 1, "subnets": [{"id": "a"}]}, {"name": "m", "labels": ["Hemd", "Schuh é"]}),
    wire.Heartbeat("worker-1"),
    wire.Draining("worker-1"),
    wire.Done("worker-1", 7, 1, 2, 3),
    wire.WorkBatch(7, "d1-w12", "slackfit", "slack", 9, [wire.WorkRecord("gateway-1", 2, QUERY)]),
    wire.Introduce("scheduler-1"),
    wire.Answers(
        *("w", "torch", "d1-w12", "slackfit", 91.5, 4, 10, 20, 7, None, 9),
        [wire.Answer(1, 48, ""), wire.Answer(2, 0, "no")],
    ),
    wire.Rejections([wire.Rejection(1, "late"), wire.Rejection(2, "poison")]),
    wire.Status("s", "slackfit", 5, 6, None, [{"name": "w", "idle_us": {"p50": 1}}], ["w: no such subnet"]),
    wire.Dismissed("scheduler-1"),
    wire.SchedulerCounts(3, -1_500, [{"name": "w", "state": "busy"}], {"d1-w12": 7}, 2, 9, 40_000, 2),
    wire.GatewayCounts("gateway-1", 9, 5, 1, {"expired": 2, "invalid": 0}, 8, 467.5),
]

uint = st.integers(0, 2**64 - 1)
text = st.text(max_size=20)
query = st.builds(
    wire.QueryRecord,
    *(uint, uint, uint, uint, st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1), uint, uint, st.booleans()),
)
batched = st.one_of(
    st.builds(wire.Pack, text, st.lists(query, max_size=4)),
    st.builds(
        wire.WorkBatch,
        uint,
        text,
        text,
        st.none() | text,
        uint,
        st.lists(st.builds(wire.WorkRecord, text, uint, query), max_size=4),
    ),
    st.builds(
        wire.Answers,
        *(text, text, text, text, st.floats(allow_nan=False), uint, uint, uint, uint, st.none() | text, uint),
        st.lists(st.builds(wire.Answer, uint, uint, text), max_size=4),
    ),
)
leaf = st.one_of(st.none(), st.booleans(), uint, st.floats(), text, st.binary(max_size=10))
document = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=10) | st.dictionaries(text, inner, max_size=3),
    max_leaves=30,
)


def kind_name(message: wire.Message) -> str:
    return type(message).__name__


def test_every_kind_is_tried() -> None:
    """The messages of this suite are one of each kind that the wire knows."""
    assert {type(message) for message in MESSAGES} == set(wire.TAGS) == set(get_args(wire.Message))


@pytest.mark.parametrize("message", MESSAGES, ids=kind_name)
def test_every_kind_comes_back_equal(message: wire.Message) -> None:
    """Decoding what was encoded gives an equal message, its records named tuples again."""
    assert repr(wire.decode(wire.encode(message))) == repr(message)


@settings(deadline=None)  # a loaded machine pauses
@given(batched)
def test_batched_messages_come_back_equal(message: wire.Message) -> None:
    """Any content of the messages that carry records survives the way there and back."""
    assert repr(wire.decode(wire.encode(message))) == repr(message)


def test_tags_are_for_ever() -> None:
    """Version and tags as first released: a renumbered tag would be read as another message by an older process."""
    assert wire.VERSION == 1
    assert {kind.__name__: tag for kind, tag in wire.TAGS.items()} == {
        "Pack": 1,
        "Hello": 2,
        "Heartbeat": 3,
        "Draining": 4,
        "Done": 5,
        "WorkBatch": 6,
        "Introduce": 7,
        "Answers": 8,
        "Rejections": 9,
        "Status": 10,
        "Dismissed": 11,
        "SchedulerCounts": 12,
        "GatewayCounts": 13,
    }


def test_layout_that_changed_says_so_and_the_former_is_read() -> None:
    """A batch and its answers bear version 2; of version 1, which told no reason, they are read as telling none."""
    for message in MESSAGES:
        assert msgpack.unpackb(wire.encode(message))[0] == (
            2 if isinstance(message, wire.WorkBatch | wire.Answers) else 1
        )
    records = [["gateway-1", 2, list(QUERY)]]
    batch = wire.decode(msgpack.packb([1, 6, 7, "d1-w12", "slackfit", records]))
    assert batch == wire.WorkBatch(7, "d1-w12", "slackfit", None, 0, [wire.WorkRecord("gateway-1", 2, QUERY)])
    answers = wire.decode(msgpack.packb([1, 8, "w", "torch", "a", "p", 91.5, 4, 10, 20, [[1, 48, ""]]]))
    assert answers == wire.Answers("w", "torch", "a", "p", 91.5, 4, 10, 20, 0, None, 0, [wire.Answer(1, 48, "")])


def test_layout_of_a_header() -> None:
    """A header is ``[version, tag, *fields]`` in msgpack, records as arrays: other languages can read it."""
    document = msgpack.unpackb(wire.encode(wire.Pack("g", [QUERY])))
    assert document == [1, 1, "g", [[2**63, 1_000, 2_000, 3, 80.5, -1, 784, 0xFFFFFFFF, True]]]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([2, 3, "worker"], "wire version 2"),
        ([3, 6, 7, "d1-w12", "slackfit", None, 0, []], "WorkBatch of wire version 3; this process reads up to 2"),
        (["1", 3, "worker"], "wire version '1'"),
        ([1, 14, "worker"], "unknown message tag 14"),
        ([1, 0], "unknown message tag 0"),
        ([1, -1], "unknown message tag -1"),
        ([1, None], "unknown message tag None"),
        ([1, [3], "worker"], "unknown message tag [3]"),
        ([1, {}, "worker"], "unknown message tag {}"),
        ([1], "not a message"),
        ({"version": 1}, "not a message"),
        (7, "not a message"),
    ],
)
def test_foreign_headers_are_refused_in_words(document: Any, words: str) -> None:
    """Another version, an unknown tag and a document of another shape are each refused by what is wrong with them."""
    with pytest.raises(wire.WireError) as caught:
        wire.decode(msgpack.packb(document))
    assert words in caught.value.message


@pytest.mark.parametrize("header", [b"", b"\xc1", b"GET / HTTP/1.1", b"\x93\x01\x03", b"\x93\x01\x03\xa1\xff"])
def test_garbage_is_refused(header: bytes) -> None:
    """Nothing, a byte that msgpack does not know, text, a truncated message and a string that is no UTF-8."""
    with pytest.raises(wire.WireError, match="not a message"):
        wire.decode(header)


@pytest.mark.parametrize("message", MESSAGES, ids=kind_name)
def test_missing_and_surplus_fields_are_refused(message: wire.Message) -> None:
    """A message of this version has exactly its fields: fewer or more are malformed, and the kind is named."""
    document = msgpack.unpackb(wire.encode(message))
    for wrong in (document[:-1], [*document, "more"]):
        with pytest.raises(wire.WireError, match=f"malformed {kind_name(message)}"):
            wire.decode(msgpack.packb(wrong))


@pytest.mark.parametrize("message", [m for m in MESSAGES if isinstance(m, wire.Pack | wire.WorkBatch | wire.Answers)])
def test_malformed_records_are_refused(message: wire.Message) -> None:
    """A record with a field too few, or that is none, makes its message malformed."""
    document = msgpack.unpackb(wire.encode(message))
    for wrong in ([document[-1][0][:-1]], [5], 5, None):
        with pytest.raises(wire.WireError, match="malformed"):
            wire.decode(msgpack.packb([*document[:-1], wrong]))


@settings(deadline=None)  # a loaded machine pauses
@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_break_a_reader(header: bytes) -> None:
    """Decoding bytes from anywhere gives a message or WireError, never another error."""
    with contextlib.suppress(wire.WireError):
        assert type(wire.decode(header)) in wire.TAGS


@settings(deadline=None)  # a loaded machine pauses
@given(st.integers(-1, 15) | document, st.lists(document, max_size=12))
def test_arbitrary_documents_never_break_a_reader(tag: Any, values: list[Any]) -> None:
    """Nor does well-formed msgpack that claims to be one of our messages."""
    with contextlib.suppress(wire.WireError):
        assert type(wire.decode(msgpack.packb([wire.VERSION, tag, *values]))) in wire.TAGS


@settings(deadline=None)  # a loaded machine pauses
@given(st.binary(min_size=1, max_size=1_000), st.data())
def test_checksum_sees_a_flipped_bit(payload: bytes, data: st.DataObject) -> None:
    """One bit flipped anywhere changes the checksum; the same bytes in a memoryview do not."""
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    damaged = bytearray(payload)
    damaged[bit // 8] ^= 1 << bit % 8
    assert wire.checksum(memoryview(damaged)) != wire.checksum(payload) == wire.checksum(memoryview(payload))


def test_messages_are_frozen() -> None:
    """A message cannot be changed after it was made."""
    for message in MESSAGES:
        with pytest.raises(AttributeError):
            setattr(message, fields(message)[0].name, "other")
