"""The wire: one table of frames drives encoder and decoder; whatever else comes is refused."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd.wire import messages as m
from pyttpd.wire.errors import LocalProtocolError, RemoteProtocolError

V4, V6 = m.Client("192.0.2.7", 4711), m.Client("2001:db8::7", 65_535)
RAW_V4 = b"\x04\x12\x67" + bytes([192, 0, 2, 7]) + bytes(12)
RAW_V6 = b"\x06\xff\xff" + socket.inet_pton(socket.AF_INET6, "2001:db8::7")
ID = 0x0102030405060708
DIGEST = bytes(range(32))


def name(text: bytes) -> bytes:
    return text.ljust(m.NAME_SIZE, b"\0")


def u16(*values: int) -> bytes:
    return struct.pack(f"!{len(values)}H", *values)


def u32(*values: int) -> bytes:
    return struct.pack(f"!{len(values)}I", *values)


def u64(*values: int) -> bytes:
    return struct.pack(f"!{len(values)}Q", *values)


#: Message, type on the wire, whether a descriptor travels with it, body as it must be, byte for byte.
CASES: list[tuple[m.Message, int, bool, bytes]] = [
    (m.Hello("listener", "http"), 1, False, b"\x01\x02\x03\0" + name(b"http")),
    (m.Hello("vhost", "a" * 63, 1, 9), 1, False, b"\x01\x09\x04\0" + name(b"a" * 63)),
    (m.Welcome(1, 4096), 2, False, b"\x01\0\0\0" + u32(4096)),
    (m.Goodbye("leaving"), 3, False, b"leaving"),
    (m.Goodbye(""), 3, False, b""),
    (m.Socket("listen", "http"), 10, True, b"\0\0\0\0" + name(b"http")),
    (m.Socket("metrics", "umaster"), 10, True, b"\x01\0\0\0" + name(b"umaster")),
    (m.SocketsEnd(2), 11, False, u32(2)),
    (m.Wanted("listen", "http"), 12, False, b"\0\0\0\0" + name(b"http")),
    (m.Return("metrics", "http"), 13, True, b"\x01\0\0\0" + name(b"http")),
    (m.Prepare(DIGEST), 14, False, DIGEST),
    (m.Prepared(DIGEST), 15, False, DIGEST),
    (m.Unprepared("cannot listen"), 16, False, b"cannot listen"),
    (m.Commit(DIGEST), 17, False, DIGEST),
    (m.Abort(), 18, False, b""),
    (m.Holds(DIGEST), 19, False, DIGEST),
    (m.Share(7, "share", 1000, DIGEST), 20, True, u64(7) + b"\0\0\0\0" + u32(1000) + DIGEST),
    (m.Share(2**64 - 1, "map", 0, DIGEST), 20, True, u64(2**64 - 1) + b"\x01\0\0\0" + u32(0) + DIGEST),
    (m.ShareOk(7), 21, False, u64(7)),
    (m.ShareFailed(7, "ImportError: no"), 22, False, u64(7) + b"ImportError: no"),
    (m.Renew(), 23, False, b""),
    (m.Command("reload", ""), 24, False, bytes(68)),
    (m.Command("plan", "blog"), 24, False, b"\x01\0\0\0" + name(b"blog")),
    (m.Told("reading"), 25, False, b"reading"),
    (m.Answer("failed", 9, DIGEST), 26, True, b"\x01\0\0\0" + u32(9) + DIGEST),
    (m.Route(ID, V4, "a.example", 6), 30, True, RAW_V4 + b"\x06a.example"),
    (m.Route(ID, V6, ""), 30, True, RAW_V6 + b"\0"),
    (m.Route(ID, V6, "[2001:db8::1]"), 30, True, RAW_V6 + b"\0[2001:db8::1]"),
    (m.Route(ID, V4, "x" * 255), 30, True, RAW_V4 + b"\0" + b"x" * 255),
    (m.Settled((1,)), 31, False, u64(1)),
    (m.Settled(tuple(range(m.MAX_BATCH))), 31, False, u64(*range(m.MAX_BATCH))),
    (m.Refuse(ID, 421), 32, False, u16(421)),
    (m.Retry(ID), 33, False, b""),
    (m.Drop(ID), 34, False, b""),
    (m.Worker(3, "requests"), 40, True, u32(3) + b"\0\0\0\0"),
    (m.Worker(0, "metrics"), 40, True, u32(0) + b"\x01\0\0\0"),
    (m.Gone(3), 41, False, u32(3)),
    (m.Stuck(3), 42, False, u32(3)),
    (m.Demand(7, 250), 43, False, u32(7, 250)),
    (m.Standing("open"), 44, False, b"\0\0\0\0"),
    (m.Standing("failing"), 44, False, b"\x01\0\0\0"),
    (m.Credit(4), 50, False, u16(4)),
    (m.Dispatch(ID, V4, "a.example", 255), 51, True, RAW_V4 + b"\xffa.example"),
    (m.Taken(ID), 52, False, b""),
    (m.Pass(ID, V6, "b.example"), 53, True, RAW_V6 + b"\0b.example"),
    (m.Spawn(5, 6), 60, True, u32(5, 6)),
    (m.Spawned(5, 4711), 61, False, u32(5, 4711)),
    (m.Attach(1), 62, True, b"\x01\0\0\0"),
    (m.Ready(), 63, False, b""),
    (m.Beat(), 64, False, b""),
    (m.Detached(), 66, False, b""),
    (m.Failed("ImportError: no module named x"), 65, False, b"ImportError: no module named x"),
    (m.Detail('  File "app.py", line 3'), 67, False, b'  File "app.py", line 3'),
]
IDS = [f"{type(message).__name__}-{number}" for number, (message, *_) in enumerate(CASES)]
#: Of these the body may have any length up to a limit, so that a shorter or longer one is another valid message.
ELASTIC = (m.Goodbye, m.Unprepared, m.Told, m.ShareFailed, m.Failed, m.Detail, m.Route, m.Dispatch, m.Pass)


def frame(
    code: int, flags: int, body: bytes, id_: int = 0, version: int = 0, reserved: int = 0, length: int = -1
) -> bytes:
    version = version or (m.GREETING_VERSION if code in (1, 2) else m.VERSION)
    return (
        struct.pack("!BBBBIQ", version, code, flags, reserved, len(body) if length < 0 else length, id_)
        + body
    )


def expected(case: tuple[m.Message, int, bool, bytes]) -> bytes:
    message, code, descriptor, body = case
    return frame(code, int(descriptor), body, ID if m.BY_CLASS[type(message)].about_one else 0)


def fault(data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as caught:
        m.decode(data)
    return caught.value.reason


def test_the_table_has_every_message() -> None:
    assert {type(message) for message, *_ in CASES} == {row.cls for row in m.MESSAGES}
    assert len(m.BY_CODE) == len(m.BY_CLASS) == len(m.MESSAGES)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_whole(case: tuple[m.Message, int, bool, bytes]) -> None:
    assert m.encode(case[0]) == expected(case)
    assert m.decode(expected(case)) == case[0]
    assert len(expected(case)) <= m.MAX_FRAME


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_truncation_is_refused(case: tuple[m.Message, int, bool, bytes]) -> None:
    whole = expected(case)
    for end in range(len(whole)):
        assert fault(whole[:end]) == ("truncated" if end < m.HEADER.size else "bad-length")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_every_shorter_body_of_honest_length_is_refused_or_another_message(
    case: tuple[m.Message, int, bool, bytes],
) -> None:
    message, code, descriptor, body = case
    id_ = ID if m.BY_CLASS[type(message)].about_one else 0
    for end in range(len(body)):
        data = frame(code, int(descriptor), body[:end], id_)
        if isinstance(message, ELASTIC) and (
            end >= (8 if isinstance(message, m.ShareFailed) else m.CLIENT_SIZE + 1)
            or isinstance(message, m.Goodbye | m.Unprepared | m.Told | m.Failed | m.Detail)
        ):
            assert m.encode(m.decode(data)) == data
        elif isinstance(message, m.Settled) and end and end % 8 == 0:
            assert m.decode(data) == m.Settled(message.ids[: end // 8])
        else:
            assert fault(data) == "bad-length"


@pytest.mark.parametrize("junk", [b"\0", b"\xff", b"\0" * 7, b"\xff" * m.MAX_BODY])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_trailing_junk_is_refused(case: tuple[m.Message, int, bool, bytes], junk: bytes) -> None:
    message, code, descriptor, body = case
    assert fault(expected(case) + junk) == "bad-length"
    id_ = ID if m.BY_CLASS[type(message)].about_one else 0
    assert fault(frame(code, int(descriptor), body + junk, id_)) in ("bad-length", "bad-field")


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_a_wrong_header_is_refused(case: tuple[m.Message, int, bool, bytes]) -> None:
    message, code, descriptor, body = case
    about_one = m.BY_CLASS[type(message)].about_one
    id_ = ID if about_one else 0
    for version in {1, 2, 3, 255} - {expected(case)[0]}:
        assert fault(frame(code, int(descriptor), body, id_, version=version)) == "bad-version"
    for flags in {0, 1, 2, 3, 128, 255} - {int(descriptor)}:
        assert fault(frame(code, flags, body, id_)) == "bad-field"
    for reserved in (1, 255):
        assert fault(frame(code, int(descriptor), body, id_, reserved=reserved)) == "bad-field"
    if not about_one:
        for foreign in (1, ID, 2**64 - 1):
            assert fault(frame(code, int(descriptor), body, foreign)) == "bad-field"
    for length in {0, len(body) + 1, 2**32 - 1} - {len(body)}:
        assert fault(frame(code, int(descriptor), body, id_, length=length)) == "bad-length"


def test_types_that_are_not_in_the_table_are_refused() -> None:
    for code in set(range(256)) - set(m.BY_CODE):
        assert fault(frame(code, 0, b"")) == "unknown-type"


HELLO = b"\x01\x01\x03\0" + name(b"http")
BAD_FIELDS = {
    "a role that there isn't": (1, 0, b"\x01\x01\x06\0" + name(b"http")),
    "no versions": (1, 0, b"\x00\x01\x03\0" + name(b"http")),
    "versions the wrong way round": (1, 0, b"\x02\x01\x03\0" + name(b"http")),
    "no name": (1, 0, b"\x01\x01\x03\0" + name(b"")),
    "a name with capitals": (1, 0, b"\x01\x01\x03\0" + name(b"Http")),
    "a name with a slash": (1, 0, b"\x01\x01\x03\0" + name(b"a/b")),
    "a name that begins with a dot": (1, 0, b"\x01\x01\x03\0" + name(b"..")),
    "a name with a NUL within": (1, 0, b"\x01\x01\x03\0" + name(b"a\0b")),
    "a name with a line's end": (1, 0, b"\x01\x01\x03\0" + name(b"a\n")),
    "a name of full width": (1, 0, b"\x01\x01\x03\0" + b"a" * 64),
    "a goodbye that moves the cursor": (3, 0, b"\x1b[2J"),
    "a goodbye of two lines": (3, 0, b"a\nb"),
    "a goodbye that ends with a line's end": (3, 0, b"a\n"),
    "a goodbye that is too long": (3, 0, b"a" * 201),
    "a use that there isn't": (10, 1, b"\x02\0\0\0" + name(b"http")),
    "a part that there isn't": (20, 1, u64(1) + b"\x02\0\0\0" + u32(1) + DIGEST),
    "an address family that there isn't": (30, 1, b"\x05" + RAW_V4[1:] + b"\0a.example"),
    "an authority with capitals": (30, 1, RAW_V4 + b"\0A.example"),
    "an authority with a space": (51, 1, RAW_V4 + b"\0a example"),
    "an authority with a line's end": (53, 1, RAW_V4 + b"\0a.example\n"),
    "an authority that is too long": (30, 1, RAW_V4 + b"\0" + b"a" * 256),
    "a refusal without an error": (32, 0, u16(399)),
    "a refusal beyond errors": (32, 0, u16(600)),
    "work that there isn't": (40, 1, u32(1) + b"\x02\0\0\0"),
    "a failure of two lines": (65, 0, b"a\r\nb"),
}


@pytest.mark.parametrize("what", BAD_FIELDS)
def test_a_wrong_field_is_refused(what: str) -> None:
    assert fault(frame(*BAD_FIELDS[what])) == "bad-field"


def test_an_offer_without_a_mark_is_refused() -> None:
    assert fault(frame(30, 1, RAW_V4)) == "bad-length"


@pytest.mark.parametrize("cls", [m.Route, m.Dispatch, m.Pass])
def test_in_version_1_an_offer_has_no_mark(cls: type[m.Route]) -> None:
    code = m.BY_CLASS[cls].code
    without = frame(code, 1, RAW_V4 + b"a.example", ID, version=1)
    assert m.encode(cls(ID, V4, "a.example", 6), 1) == without
    assert m.decode(without, 1) == cls(ID, V4, "a.example", 0)


def test_an_empty_settled_or_one_too_long_is_refused() -> None:
    assert fault(frame(31, 0, b"")) == "bad-length"
    assert fault(frame(31, 0, u64(*range(m.MAX_BATCH + 1)))) == "bad-length"


@pytest.mark.parametrize(
    "message",
    [
        m.Hello("listener", "Not a name"),
        m.Route(1, V4, "not an authority"),
        m.Dispatch(1, V4, "UPPER.example"),
        m.Pass(1, V4, "a" * 256),
    ],
)
def test_what_we_must_not_send_is_our_own_fault(message: m.Message) -> None:
    with pytest.raises(LocalProtocolError):
        m.encode(message)


def test_a_frame_that_is_too_long_is_our_own_fault() -> None:
    with pytest.raises(LocalProtocolError):
        m.encode(m.Settled(tuple(range(m.MAX_BODY // 8 + 1))))


def test_texts_are_made_printable_and_short_before_they_are_sent() -> None:
    assert m.decode(m.encode(m.Failed("a\nb\x1b\u20ac" + "c" * 300))) == m.Failed("a?b??" + "c" * 195)


def test_an_address_with_a_zone_travels_without_it() -> None:
    assert m.Client("fe80::1%eth0", 80).host == "fe80::1"
    assert repr(V6) == "Client('2001:db8::7', 65535)"
    assert (V4.host, V4.port) == ("192.0.2.7", 4711)


def test_one_client_is_an_address_or_a_network_of_64_bits() -> None:
    assert V4.network == m.Client("192.0.2.7", 1).network != m.Client("192.0.2.8", 4711).network
    assert V6.network == m.Client("2001:db8::1:2:3:4", 1).network != m.Client("2001:db8:0:1::7", 1).network
    assert {len(V4.network), len(V6.network)} == {8}
    assert m.Client("c000:207::1", 1).network != V4.network  # the same bits at the same place


def test_an_address_of_another_length_is_refused() -> None:
    with pytest.raises(RemoteProtocolError):
        m.Client.from_wire(RAW_V4 + b"\0")


# ---- properties ----


@given(st.binary(max_size=m.MAX_FRAME))
def test_random_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        message = m.decode(data)
    except RemoteProtocolError:
        return
    assert m.decode(m.encode(message)) == message


@given(
    st.sampled_from(m.MESSAGES),
    st.binary(max_size=m.MAX_BODY),
    st.integers(0, 2**64 - 1),
)
def test_random_bodies_are_a_message_or_refused(row: m.Row, body: bytes, id_: int) -> None:
    data = frame(row.code, int(row.descriptor is not None), body, id_ if row.about_one else 0)
    try:
        message = m.decode(data)
    except RemoteProtocolError:
        return
    assert type(message) is row.cls
    assert m.decode(m.encode(message)) == message


@given(st.data())
def test_a_frame_with_one_byte_changed_is_a_message_or_refused(data: st.DataObject) -> None:
    whole = bytearray(expected(data.draw(st.sampled_from(CASES))))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        message = m.decode(bytes(whole))
    except RemoteProtocolError:
        return
    m.encode(message)


NAMES = st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,62}", fullmatch=True)
AUTHORITIES = st.from_regex(r"[a-z0-9_.\[\]:-]{0,255}", fullmatch=True)
TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200)
U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
MARKS = st.integers(0, 255)
CLIENTS = st.builds(m.Client, st.ip_addresses().map(str), U16)
DIGESTS = st.binary(min_size=32, max_size=32)
ROUND_TRIPS: dict[m.MessageType, st.SearchStrategy[m.Message]] = {
    m.Hello: st.tuples(st.sampled_from(m.ROLE_NAMES), NAMES, st.integers(1, 255), st.integers(1, 255)).map(
        lambda t: m.Hello(t[0], t[1], min(t[2:]), max(t[2:]))
    ),
    m.Welcome: st.builds(m.Welcome, st.integers(0, 255), U32),
    m.Goodbye: st.builds(m.Goodbye, TEXTS),
    m.Socket: st.builds(m.Socket, st.sampled_from(m.SOCKET_USES), NAMES),
    m.Wanted: st.builds(m.Wanted, st.sampled_from(m.SOCKET_USES), NAMES),
    m.Return: st.builds(m.Return, st.sampled_from(m.SOCKET_USES), NAMES),
    m.SocketsEnd: st.builds(m.SocketsEnd, U32),
    m.Prepare: st.builds(m.Prepare, DIGESTS),
    m.Prepared: st.builds(m.Prepared, DIGESTS),
    m.Unprepared: st.builds(m.Unprepared, TEXTS),
    m.Commit: st.builds(m.Commit, DIGESTS),
    m.Abort: st.just(m.Abort()),
    m.Holds: st.builds(m.Holds, DIGESTS),
    m.Share: st.builds(
        m.Share, U64, st.sampled_from(m.SHARE_PARTS), U32, st.binary(min_size=32, max_size=32)
    ),
    m.ShareOk: st.builds(m.ShareOk, U64),
    m.ShareFailed: st.builds(m.ShareFailed, U64, TEXTS),
    m.Renew: st.just(m.Renew()),
    m.Command: st.builds(m.Command, st.sampled_from(m.VERBS), st.just("") | NAMES),
    m.Told: st.builds(m.Told, TEXTS),
    m.Answer: st.builds(m.Answer, st.sampled_from(m.OUTCOMES), U32, DIGESTS),
    m.Route: st.builds(m.Route, U64, CLIENTS, AUTHORITIES, MARKS),
    m.Settled: st.builds(m.Settled, st.lists(U64, min_size=1, max_size=m.MAX_BATCH).map(tuple)),
    m.Refuse: st.builds(m.Refuse, U64, st.integers(400, 599)),
    m.Retry: st.builds(m.Retry, U64),
    m.Drop: st.builds(m.Drop, U64),
    m.Worker: st.builds(m.Worker, U32, st.sampled_from(m.WORK)),
    m.Gone: st.builds(m.Gone, U32),
    m.Stuck: st.builds(m.Stuck, U32),
    m.Demand: st.builds(m.Demand, U32, U32),
    m.Standing: st.builds(m.Standing, st.sampled_from(m.STANDINGS)),
    m.Credit: st.builds(m.Credit, U16),
    m.Dispatch: st.builds(m.Dispatch, U64, CLIENTS, AUTHORITIES, MARKS),
    m.Taken: st.builds(m.Taken, U64),
    m.Pass: st.builds(m.Pass, U64, CLIENTS, AUTHORITIES, MARKS),
    m.Spawn: st.builds(m.Spawn, U32, U32),
    m.Spawned: st.builds(m.Spawned, U32, U32),
    m.Attach: st.builds(m.Attach, st.integers(0, 255)),
    m.Ready: st.just(m.Ready()),
    m.Beat: st.just(m.Beat()),
    m.Detached: st.just(m.Detached()),
    m.Failed: st.builds(m.Failed, TEXTS),
    m.Detail: st.builds(m.Detail, TEXTS),
}


def test_every_message_goes_round() -> None:
    assert set(ROUND_TRIPS) == set(m.BY_CLASS)


@given(st.one_of(*ROUND_TRIPS.values()))
def test_round_trip(message: m.Message) -> None:
    data = m.encode(message)
    assert m.decode(data) == message
    assert len(data) <= m.MAX_FRAME
