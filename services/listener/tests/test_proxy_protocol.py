"""The PROXY protocol: its parser by a table, and the listener with real connections that speak it."""

from __future__ import annotations

import contextlib
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd.wire import messages as m
from pyttpd.wire.messages import Client

from pyttpd_listener.proxy_protocol import MAX_HEADER, Header, Malformed, parse
from support.front import HEAD, Front, Make, make

__all__ = ["make"]

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("192.0.2.1") + struct.pack("!HH", 4711, 80)
V6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 4711, 80)
)
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:192.0.2.7") + V6[16:]


def v2(command: int, family: int, body: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body) if length is None else length) + body


FOUR = Client("192.0.2.7", 4711)
SIX = Client("2001:db8::7", 4711)
TLV = b"\x04\x00\x08" + bytes(8)

WHOLE = {
    "v1 IPv4": (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\r\n", FOUR),
    "v1 IPv4, the longest": (
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Client("255.255.255.255", 65535),
    ),
    "v1 IPv6": (b"PROXY TCP6 2001:db8::7 2001:DB8::1 4711 80\r\n", SIX),
    "v1 IPv6, the longest": (
        b"PROXY TCP6 " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
        Client("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    ),
    "v1 IPv4 as IPv6": (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:192.0.2.1 4711 80\r\n", FOUR),
    "v1 port 0": (b"PROXY TCP4 192.0.2.7 192.0.2.1 0 80\r\n", Client("192.0.2.7", 0)),
    "v1 unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1 unknown, with addresses": (
        b"PROXY UNKNOWN " + b"ffff:" * 7 + b"ffff " + b"ffff:" * 7 + b"ffff 65535 65535\r\n",
        None,
    ),
    "v2 IPv4": (v2(0x21, 0x11, V4), FOUR),
    "v2 IPv4, with TLVs": (v2(0x21, 0x11, V4 + TLV), FOUR),
    "v2 IPv6": (v2(0x21, 0x21, V6), SIX),
    "v2 IPv4 as IPv6": (v2(0x21, 0x21, MAPPED), FOUR),
    "v2 unix": (v2(0x21, 0x31, bytes(216)), None),
    "v2 unspecified": (v2(0x21, 0x00, b""), None),
    "v2 unspecified, with TLVs": (v2(0x21, 0x00, TLV), None),
    "v2 local": (v2(0x20, 0x00, b""), None),
    "v2 local, with an address to be ignored": (v2(0x20, 0x11, V4), None),
    "v2 local, of no known family": (v2(0x20, 0x7F, b"x"), None),
    "v2 as long as may be": (v2(0x21, 0x11, V4 + bytes(MAX_HEADER - 16 - 12)), FOUR),
}  # fmt: skip

BROKEN = {
    "a request": (b"GET / HTTP/1.1\r\n", "missing"),
    "TLS": (b"\x16\x03\x01", "missing"),
    "another case": (b"proxy TCP4 192.0.2.7 192.0.2.1 4711 80\r\n", "missing"),
    "half of a name": (b"PROXZ", "missing"),
    "v1 a bare LF": (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\n" + bytes(107), "malformed"),
    "v1 a bare LF, then CRLF": (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80\nGET / HTTP/1.1\r\n", "malformed"),
    "v1 without an end": (b"PROXY TCP4 " + b"1" * 96, "malformed"),
    "v1 too long by one": (b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "malformed"),
    "v1 two blanks": (b"PROXY  TCP4 192.0.2.7 192.0.2.1 4711 80\r\n", "malformed"),
    "v1 a blank at the end": (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 80 \r\n", "malformed"),
    "v1 no port": (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711\r\n", "malformed"),
    "v1 no family": (b"PROXY \r\n", "malformed"),
    "v1 another family": (b"PROXY UDP4 192.0.2.7 192.0.2.1 4711 80\r\n", "malformed"),
    "v1 IPv4 called IPv6": (b"PROXY TCP6 192.0.2.7 192.0.2.1 4711 80\r\n", "malformed"),
    "v1 IPv6 called IPv4": (b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 80\r\n", "malformed"),
    "v1 an octet too large": (b"PROXY TCP4 192.0.2.256 192.0.2.1 4711 80\r\n", "malformed"),
    "v1 three octets": (b"PROXY TCP4 192.0.200 192.0.2.1 4711 80\r\n", "malformed"),
    "v1 an octal octet": (b"PROXY TCP4 192.0.02.7 192.0.2.1 4711 80\r\n", "malformed"),
    "v1 a zone": (b"PROXY TCP6 fe80::1%1 fe80::2 4711 80\r\n", "malformed"),
    "v1 a port too large": (b"PROXY TCP4 192.0.2.7 192.0.2.1 65536 80\r\n", "malformed"),
    "v1 the other port too large": (b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 99999\r\n", "malformed"),
    "v1 a port with a sign": (b"PROXY TCP4 192.0.2.7 192.0.2.1 +471 80\r\n", "malformed"),
    "v1 a port with a zero before": (b"PROXY TCP4 192.0.2.7 192.0.2.1 04711 80\r\n", "malformed"),
    "v1 a port in other digits": ("PROXY TCP4 192.0.2.7 192.0.2.1 ٤ 80\r\n".encode(), "malformed"),
    "v1 a control character": (b"PROXY UNKNOWN \x1b[2J\r\n", "malformed"),
    "v2 another version": (v2(0x11, 0x11, V4), "malformed"),
    "v2 another command": (v2(0x22, 0x11, V4), "malformed"),
    "v2 datagrams": (v2(0x21, 0x12, V4), "malformed"),
    "v2 an unknown family": (v2(0x21, 0x41, V4), "malformed"),
    "v2 shorter than its addresses": (v2(0x21, 0x21, V4), "malformed"),
    "v2 no addresses": (v2(0x21, 0x11, b""), "malformed"),
    "v2 longer than may be": (v2(0x21, 0x11, V4, MAX_HEADER - 15), "malformed"),
    "v2 the longest there is": (v2(0x20, 0x00, b"", 0xFFFF), "malformed"),
    "v2 a signature that isn't": (SIGNATURE[:-1] + b"X" + bytes(4), "missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE)
def test_a_header_is_read_however_it_comes(case: str) -> None:
    header, client = WHOLE[case]
    for end in range(len(header)):
        assert parse(header[:end]) is None
    assert parse(header) == Header(len(header), client)
    assert parse(header + HEAD) == Header(len(header), client)
    assert parse(header + header) == Header(len(header), client)


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_header_is_refused(case: str) -> None:
    data, reason = BROKEN[case]
    with pytest.raises(Malformed, match=reason):
        parse(data)
    # and not later, for it must not be waited for: with each byte it may be refused, and is never taken
    for end in range(len(data)):
        try:
            assert parse(data[:end]) is None
        except Malformed:
            break


@given(
    st.binary(max_size=64),
    st.sampled_from((b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11\0")),
)
def test_anything_is_read_or_refused(data: bytes, start: bytes) -> None:
    with contextlib.suppress(Malformed):
        header = parse(start + data)
        assert header is None or header.size <= len(start + data)


# ---- the listener ---------------------------------------------------------------------------------------------------

PROXY = ("127.0.0.1/32",)


def refused(front: Front) -> dict[str, int]:
    return {reason: count for reason, count in front.listener.proxy_refused.items() if count}


def closed(front: Front, peer: socket.socket) -> None:
    """Wait for the end of a connection that gets no answer: a reset, if the kernel has bytes that nobody has read."""
    with contextlib.suppress(ConnectionResetError):
        assert front.answer_to(peer) == b""


@pytest.mark.parametrize("case", WHOLE)
def test_the_header_is_taken_and_no_byte_more(make: Make, case: str) -> None:
    header, client = WHOLE[case]
    front = make(proxy_protocol=PROXY)
    peer = front.connect(header + HEAD)
    route = front.offered()
    assert route.client == (client or Client(*peer.getsockname()))
    assert route.authority == "a.example"
    with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
        worker.setblocking(True)
        assert worker.recv(65_536) == HEAD


def in_pieces(front: Front, peer: socket.socket, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        assert not front.umaster.record.messages
        peer.sendall(data[start : start + size])
        front.on.turns(0.002)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("case", ["v1 IPv4", "v2 IPv6"])
def test_in_pieces(make: Make, case: str, size: int) -> None:
    header, client = WHOLE[case]
    front = make(proxy_protocol=PROXY)
    in_pieces(front, front.connect(), header + HEAD, size)
    assert front.offered().client == client


@pytest.mark.parametrize("case", BROKEN)
def test_a_connection_without_a_header_is_closed_unanswered(make: Make, case: str) -> None:
    data, reason = BROKEN[case]
    front = make(proxy_protocol=PROXY)
    closed(front, front.connect(data))
    assert refused(front) == {reason: 1}
    assert front.service.budget.used == 0
    assert not front.umaster.record.messages


def test_others_are_closed_at_once(make: Make) -> None:
    front = make(proxy_protocol=("127.0.0.2/32", "2001:db8::/32"))
    header, client = WHOLE["v1 IPv4"]
    liar = front.connect(source="127.0.0.1")
    closed(front, liar)
    assert refused(front) == {"untrusted": 1}
    front.connect(header + HEAD, source="127.0.0.2")
    assert front.offered().client == client


@pytest.mark.parametrize("sent", [b"", b"PROXY TCP4 ", SIGNATURE])
def test_a_header_that_does_not_come_in_time(make: Make, sent: bytes) -> None:
    front = make(proxy_protocol=PROXY, head_timeout=0.1)
    closed(front, front.connect(sent))
    assert refused(front) == {"timeout": 1}
    assert not front.open


def test_a_header_and_then_no_head_is_answered_as_ever(make: Make) -> None:
    front = make(proxy_protocol=PROXY, head_timeout=0.1)
    assert front.answer_to(front.connect(WHOLE["v1 IPv4"][0] + HEAD[:9])).startswith(b"HTTP/1.1 408 ")


def test_a_second_header_is_a_bad_request(make: Make) -> None:
    """A client behind the proxy that begins with a header of its own must not be somebody else."""
    front = make(proxy_protocol=PROXY)
    forged = b"PROXY TCP4 198.51.100.1 192.0.2.1 1 80\r\n"
    assert front.answer_to(front.connect(WHOLE["v1 IPv4"][0] + forged + HEAD)).startswith(b"HTTP/1.1 400 ")


def test_a_health_check_that_leaves_is_nobodys_fault(make: Make) -> None:
    front = make(proxy_protocol=PROXY)
    for sent in (b"", b"PROXY", WHOLE["v2 local"][0]):
        front.connect(sent).close()
    front.on.until(lambda: front.listener.accepted == 3 and not front.open)
    assert not refused(front)
    assert front.service.budget.used == 0


def test_clients_are_counted_by_their_own_address(make: Make) -> None:
    """All come from one proxy, which must not use up what one client may have."""
    front = make(proxy_protocol=PROXY, max_unnamed_per_client=2)
    line = "PROXY TCP4 192.0.2.{} 192.0.2.1 4711 80\r\n".format
    silent = [front.connect() for _ in range(4)]
    others = [front.connect(line(number).encode()) for number in range(4)]
    mine = [front.connect() for _ in range(3)]
    for one in mine:
        one.sendall(line(99).encode())
    front.on.until(lambda: front.listener.evicted["client"] == 1)
    assert front.answer_to(mine[0]) == b""
    assert len(front.listener._peeking) == len(silent) + len(others) + 2


def test_it_is_offered_again_if_nothing_but_the_header_has_been_read(make: Make) -> None:
    front = make(proxy_protocol=PROXY)
    header, client = WHOLE["v2 IPv4, with TLVs"]
    front.connect(header + HEAD)
    front.tell(m.Retry(front.offered().id))
    assert front.offered(2).client == client
    with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
        worker.setblocking(True)
        worker.recv(1)
    front.tell(m.Retry(front.offers[-1].id))
    front.on.until(lambda: front.listener.dropped == 1)


def test_without_the_setting_a_header_is_a_bad_request(make: Make) -> None:
    front = make()
    assert front.answer_to(front.connect(WHOLE["v1 IPv4"][0] + HEAD)).startswith(b"HTTP/1.1 400 ")
