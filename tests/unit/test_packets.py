"""Packets, sans-I/O: how frames are put into them and taken out, and which descriptors may come with them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd.wire import messages as m
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.packets import (
    MAX_FRAMES,
    MAX_PACKET,
    PACKED,
    holds_several,
    largest,
    match_descriptors,
    pack,
    unpack,
)
from pyttpd.wire.permits import Kind

CLIENT = m.Client("192.0.2.7", 4711)
OFFER = m.Route(1, CLIENT, "a.example")
LONGEST = m.Pass(2**64 - 1, m.Client("2001:db8::7", 65_535), "x" * 255)
#: What may come in one packet: short, long, with bodies and without, with descriptors and without.
CASES: dict[str, list[m.Message]] = {
    "one": [m.Taken(1)],
    "one with a descriptor": [OFFER],
    "two": [m.Taken(1), m.Credit(4)],
    "with and without": [OFFER, m.Goodbye("leaving"), m.Taken(7)],
    "a full one": [m.Dispatch(number, CLIENT, "a.example") for number in range(MAX_FRAMES)],
    "a full one of the longest": [LONGEST] * MAX_FRAMES,
    "batches": [m.Settled(tuple(range(m.MAX_BATCH))), m.Refuse(9, 503), m.Settled((1,))],
}


def packed(messages: Sequence[m.Message], version: int = m.VERSION) -> bytes:
    return b"".join(m.encode(message, version) for message in messages)


def fault(packet: bytes, *, several: bool = True, version: int = m.VERSION) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        unpack(packet, version, several=several)
    return caught.value.reason


@pytest.mark.parametrize("messages", CASES.values(), ids=CASES)
def test_whole(messages: list[m.Message]) -> None:
    frames = [m.encode(message) for message in messages]
    assert [b"".join(packet) for packet in pack(frames, several=True)] == [packed(messages)]
    assert unpack(packed(messages), m.VERSION, several=True) == messages


@pytest.mark.parametrize("messages", CASES.values(), ids=CASES)
def test_byte_by_byte(messages: list[m.Message]) -> None:
    whole = packed(messages)
    ends = {len(packed(messages[:count])): count for count in range(1, len(messages) + 1)}
    for end in range(1, len(whole) + 1):
        if end in ends:
            assert unpack(whole[:end], m.VERSION, several=True) == messages[: ends[end]]
        else:
            assert fault(whole[:end]) in ("truncated", "bad-length")


@pytest.mark.parametrize("junk", [b"\0", b"\xff" * 15, bytes(16), b"\xff" * 16, bytes(64)])
@pytest.mark.parametrize("messages", CASES.values(), ids=CASES)
def test_trailing_junk(messages: list[m.Message], junk: bytes) -> None:
    assert fault(packed(messages) + junk) in ("truncated", "bad-version")


def test_one_frame_too_many() -> None:
    assert fault(packed([m.Taken(1)] * (MAX_FRAMES + 1))) == "oversized"
    assert fault(packed([m.Taken(1)] * (MAX_PACKET // m.HEADER.size))) == "oversized"


def test_one_bad_frame_spoils_the_packet_wherever_it_is() -> None:
    good, bad = m.encode(m.Taken(1)), b"\x02\xff" + bytes(14)
    for at in range(MAX_FRAMES):
        frames = [good] * MAX_FRAMES
        frames[at] = bad
        assert fault(b"".join(frames)) == "unknown-type"


def test_a_body_may_not_be_longer_than_in_a_packet_of_its_own() -> None:
    long = m.HEADER.pack(m.VERSION, 3, 0, 0, m.MAX_BODY + 1, 0) + b"x" * (m.MAX_BODY + 1)
    assert fault(m.encode(m.Taken(1)) + long) == "bad-length"


def test_frames_of_another_version_are_refused_in_the_middle_too() -> None:
    assert fault(m.encode(m.Taken(1)) + m.encode(m.Taken(2), 1)) == "bad-version"


def test_what_version_1_had_is_one_frame() -> None:
    assert unpack(packed([OFFER], 1), 1, several=False) == [OFFER]
    assert fault(packed([m.Taken(1), m.Taken(2)], 1), several=False, version=1) == "bad-length"
    frames = [m.encode(m.Taken(number), 1) for number in range(3)]
    assert [b"".join(packet) for packet in pack(frames, several=False)] == frames
    assert largest(several=False) == (m.MAX_FRAME, 1)


def test_only_where_connections_travel_and_from_version_2_on() -> None:
    assert {Kind.ROUTE, Kind.WORKER} == PACKED
    for kind in Kind:
        assert not holds_several(kind, 1)
        assert holds_several(kind, 2) == holds_several(kind, 3) == (kind in PACKED)


def test_packets_are_full_before_another_begins_and_keep_the_order() -> None:
    messages = [m.Taken(number) for number in range(2 * MAX_FRAMES + 3)]
    found = list(pack([m.encode(message) for message in messages], several=True))
    assert [len(packet) for packet in found] == [MAX_FRAMES, MAX_FRAMES, 3]
    assert [
        each for packet in found for each in unpack(b"".join(packet), m.VERSION, several=True)
    ] == messages


def test_packets_are_no_longer_than_they_may_be() -> None:
    frames = [m.encode(m.Settled(tuple(range(m.MAX_BATCH)))) for _ in range(MAX_FRAMES)]
    found = list(pack(frames, several=True))
    assert len(found) == 2
    assert all(len(b"".join(packet)) <= MAX_PACKET for packet in found)
    assert [frame for packet in found for frame in packet] == frames


def test_nothing_is_no_packet() -> None:
    assert list(pack([], several=True)) == list(pack([], several=False)) == []


@pytest.mark.parametrize(
    ("messages", "count", "cut", "right"),
    [
        ([m.Taken(1)], 0, False, True),
        ([m.Taken(1)], 1, False, False),
        (
            [m.Taken(1)],
            0,
            True,
            False,
        ),  # it has sent one where none belongs; that we had no number is no excuse
        ([OFFER], 1, False, True),
        ([OFFER], 0, False, False),
        ([OFFER], 2, False, False),
        ([OFFER], 0, True, True),
        ([OFFER], 1, True, False),
        ([OFFER, m.Taken(1), OFFER], 2, False, True),
        ([OFFER, m.Taken(1), OFFER], 1, False, False),
        ([OFFER, m.Taken(1), OFFER], 3, False, False),
        ([OFFER] * MAX_FRAMES, MAX_FRAMES, False, True),
        *(([OFFER] * MAX_FRAMES, count, True, True) for count in range(MAX_FRAMES)),
        ([OFFER] * MAX_FRAMES, MAX_FRAMES, True, False),
    ],
)
def test_descriptors_are_those_that_the_frames_take(
    messages: list[m.Message], count: int, cut: bool, right: bool
) -> None:
    if right:
        match_descriptors(messages, count, cut=cut)
    else:
        with pytest.raises(RemoteProtocolError, match="descriptors"):
            match_descriptors(messages, count, cut=cut)


# ---- properties ----


@given(st.binary(min_size=1, max_size=MAX_PACKET))
def test_random_bytes_are_messages_or_refused(data: bytes) -> None:
    try:
        messages = unpack(data, m.VERSION, several=True)
    except RemoteProtocolError:
        return
    assert 1 <= len(messages) <= MAX_FRAMES


OFFERS = st.builds(
    m.Dispatch,
    st.integers(0, 2**64 - 1),
    st.builds(m.Client, st.ip_addresses().map(str), st.integers(0, 65_535)),
    st.from_regex(r"[a-z0-9_.\[\]:-]{0,255}", fullmatch=True),
    st.integers(0, 255),
)
ANYTHING = st.lists(
    OFFERS
    | st.builds(m.Taken, st.integers(0, 2**64 - 1))
    | st.builds(m.Credit, st.integers(0, 65_535))
    | st.builds(m.Settled, st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=m.MAX_BATCH).map(tuple)),
    max_size=40,
)


@given(ANYTHING)
def test_what_is_packed_comes_out_again(messages: list[m.Message]) -> None:
    found = [b"".join(packet) for packet in pack([m.encode(one) for one in messages], several=True)]
    assert all(len(packet) <= MAX_PACKET for packet in found)
    assert [one for packet in found for one in unpack(packet, m.VERSION, several=True)] == messages


@given(ANYTHING.filter(bool), st.data())
def test_a_packet_with_one_byte_changed_is_messages_or_refused(
    messages: list[m.Message], data: st.DataObject
) -> None:
    whole = bytearray(packed(messages[:MAX_FRAMES]))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = unpack(bytes(whole), m.VERSION, several=True)
    except RemoteProtocolError:
        return
    assert packed(found)
