"""The head scanner: a table of heads, each tried whole, byte by byte and with something behind it; then properties."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttpd import head
from pyttpd.head import FIELDS_LIMIT, METHODS, REQUEST_LINE_LIMIT, Head, Refused, authority, bounds_of, scan

from conformance.heads import likely_heads, mutants, valid_heads

LIMIT = 32768

#: What is accepted: the head, and (method, target, version, host, port). `end` is where the bytes end.
ACCEPTED: list[tuple[bytes, tuple[bytes, bytes, int, str, int]]] = [
    # The plain forms.
    (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", (b"GET", b"/", 11, "a.example", 0)),
    (b"GET / HTTP/1.0\r\nHost: a.example\r\n\r\n", (b"GET", b"/", 10, "a.example", 0)),
    (b"GET / HTTP/1.0\r\n\r\n", (b"GET", b"/", 10, "", 0)),
    (b"GET / HTTP/1.0\r\nAccept: */*\r\n\r\n", (b"GET", b"/", 10, "", 0)),
    (b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", (b"GET", b"/", 11, "a", 0)),
    # Host: where it stands, how it is written, what it says.
    (b"GET / HTTP/1.1\r\nA: b\r\nhOST:a\r\nC: d\r\n\r\n", (b"GET", b"/", 11, "a", 0)),
    (b"GET / HTTP/1.1\r\nHost: \t A.EXAMPLE \t\r\n\r\n", (b"GET", b"/", 11, "a.example", 0)),
    (b"GET / HTTP/1.1\r\nHost: a.example.:8080\r\n\r\n", (b"GET", b"/", 11, "a.example", 8080)),
    (b"GET / HTTP/1.1\r\nHost: a:\r\n\r\n", (b"GET", b"/", 11, "a", 0)),
    (b"GET / HTTP/1.1\r\nHost: [2001:DB8:0::0:1]:80\r\n\r\n", (b"GET", b"/", 11, "[2001:db8::1]", 80)),
    (b"GET / HTTP/1.1\r\nHosts: x\r\nHos: x\r\nHost: a\r\nH: x\r\n\r\n", (b"GET", b"/", 11, "a", 0)),
    # Forms of the target.
    (
        b"GET http://B.example:81/c?d HTTP/1.1\r\nHost: a\r\n\r\n",
        (b"GET", b"http://B.example:81/c?d", 11, "b.example", 81),
    ),
    (b"GET http://b HTTP/1.1\r\nHost: a:80\r\n\r\n", (b"GET", b"http://b", 11, "b", 0)),
    (b"GET http://b?c HTTP/1.1\r\nHost: a\r\n\r\n", (b"GET", b"http://b?c", 11, "b", 0)),
    (b"GET HTTP://[::1]/ HTTP/1.1\r\nHost: a\r\n\r\n", (b"GET", b"HTTP://[::1]/", 11, "[::1]", 0)),
    (b"GET http://b/ HTTP/1.0\r\n\r\n", (b"GET", b"http://b/", 10, "b", 0)),
    (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", (b"OPTIONS", b"*", 11, "a", 0)),
    (b"OPTIONS * HTTP/1.0\r\n\r\n", (b"OPTIONS", b"*", 10, "", 0)),
    # What browsers and curl send although RFC 3986 has other ideas.
    (
        b'GET /a|b^c[d]{e}`f"?<g>|h^[i]{j}`k"\\l HTTP/1.1\r\nHost: a\r\n\r\n',
        (b"GET", b'/a|b^c[d]{e}`f"?<g>|h^[i]{j}`k"\\l', 11, "a", 0),
    ),
    (b"GET /100%25?q=100%&r=%zz HTTP/1.1\r\nHost: a\r\n\r\n", (b"GET", b"/100%25?q=100%&r=%zz", 11, "a", 0)),
    (b"GET //b/../%2e%2F%00;c=d HTTP/1.1\r\nHost: a\r\n\r\n", (b"GET", b"//b/../%2e%2F%00;c=d", 11, "a", 0)),
    # Fields.
    (b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY: \t \r\nZ:\xff\x80\tz \r\n\r\n", (b"GET", b"/", 11, "a", 0)),
    (b"GET / HTTP/1.1\r\nHost: a\r\n!#$%&'*+-.^_`|~09azAZ: x\r\n\r\n", (b"GET", b"/", 11, "a", 0)),
    # Framing.
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", (b"POST", b"/", 11, "a", 0)),
    (b"POST / HTTP/1.1\r\ncontent-length:\t0 \r\nHost: a\r\n\r\n", (b"POST", b"/", 11, "a", 0)),
    (b"POST / HTTP/1.0\r\nContent-Length: 999999999999999999\r\n\r\n", (b"POST", b"/", 10, "", 0)),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", (b"POST", b"/", 11, "a", 0)),
    (
        b"POST / HTTP/1.1\r\nA: b\r\ntransfer-encoding:CHUNKED \r\nC: d\r\nHost: a\r\nE: f\r\n\r\n",
        (b"POST", b"/", 11, "a", 0),
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Lengths: x\r\nTransfer-Encodings: x\r\nContent_Length: 1\r\n\r\n",
        (b"POST", b"/", 11, "a", 0),
    ),
]

_LINE = b"GET / HTTP/1.1\r\n"
_HOST = _LINE + b"Host: a\r\n"

#: What is refused, with status and reason. The fault is whole in what is given: further bytes don't change the verdict.
REFUSED: list[tuple[bytes, int, str]] = [
    # Nothing that could become a request: known from the first bytes.
    (b"\x16\x03\x01\x02\x00\x01\x00", 400, "control character"),  # a TLS ClientHello
    (b"\0", 400, "null byte"),
    (b"\n", 400, "bare line feed or line too short"),
    (b"\rG", 400, "bare carriage return or line too short"),
    (b"\r\n\r", 400, "bare carriage return or line too short"),
    (b"\r\n ", 400, "misplaced blank"),
    (b" ", 400, "misplaced blank"),
    (b"\x05\x01\x00", 400, "control character"),  # SOCKS
    (b"SSH-2.0-OpenSSH_9.6\r", 400, "bare carriage return or line too short"),
    (b"\xef\xbb\xbfGET", 400, "malformed line"),
    # Methods.
    (b"A" * 33, 501, "method too long"),
    (b"get / HTTP/1.1\r\n", 501, "unknown method"),
    (b"BREW / HTTP/1.1\r\n", 501, "unknown method"),
    (b"CONNECT a.example:443 HTTP/1.1\r\n", 501, "CONNECT"),
    (b"CONNECT a.example HTTP/1.1\r\n", 400, "CONNECT without a port"),
    (b"CONNECT / HTTP/1.1\r\n", 400, "malformed host"),
    (b"GET: / HTTP/1.1\r\n", 400, "malformed line"),
    (b"GET\t/ HTTP/1.1\r\n", 400, "misplaced blank"),
    (b"G\xc3\x89T /", 400, "malformed line"),
    # Request lines.
    (b"GET  / HTTP/1.1\r\n", 400, "misplaced blank"),
    (b"GET /\tHTTP/1.1\r\n", 400, "misplaced blank"),
    (b"GET /  HTTP/1.1\r\n", 400, "misplaced blank"),
    (b"GET / HTTP/1.1 \r\n", 400, "misplaced blank"),
    (b"GET / a HTTP/1.1\r\n", 400, "malformed line"),
    (b"GET / HTTP/1.1\n", 400, "bare line feed or line too short"),
    (b"GET / HTTP/1.1\r\r\n", 400, "bare carriage return or line too short"),
    (b"GET /\r\n", 400, "bare carriage return or line too short"),  # HTTP/0.9
    (b"GET\r\n", 400, "bare carriage return or line too short"),
    (b"GET / \r\n", 400, "malformed request line"),
    # Versions.
    (b"GET / HTTP/2.0\r\n", 505, "unknown version"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "unknown version"),
    (b"GET / HTTP/1.2\r\n", 505, "unknown version"),
    (b"GET / HTTP/0.9\r\n", 505, "unknown version"),
    (b"GET / HTTP/1.10\r\n", 400, "malformed request line"),
    (b"GET / HTTP/01.1\r\n", 400, "malformed request line"),
    (b"GET / HTTP/1\r\n", 400, "malformed request line"),
    (b"GET / http/1.1", 400, "malformed line"),
    (b"GET / RTSP/1.0", 400, "malformed line"),
    # Targets.
    (b"GET * HTTP/1.1\r\n", 400, "asterisk target without OPTIONS"),
    (b"GET a HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET a.example:80 HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET ?a HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /a#b HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /?a#b HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /% HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /%4 HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /%4g HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /a\\b HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /<a> HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET /\xc3\xa4", 400, "malformed line"),
    (b"GET /\0", 400, "null byte"),
    (b"GET /\x7f", 400, "control character"),
    (b"GET http:/a HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET http:///a HTTP/1.1\r\n", 400, "empty host"),
    (b"GET http://:80/a HTTP/1.1\r\n", 400, "malformed host"),
    (b"GET http://u@a/ HTTP/1.1\r\n", 400, "user information in the target"),
    (b"GET http://u:p@a:80/ HTTP/1.1\r\n", 400, "user information in the target"),
    (b"GET http://a:0/ HTTP/1.1\r\n", 400, "malformed port"),
    (b"GET http://a%2eb/ HTTP/1.1\r\n", 400, "malformed host"),
    (b"GET http://a\\@b/ HTTP/1.1\r\n", 400, "user information in the target"),
    (b"GET http://a\\b/ HTTP/1.1\r\n", 400, "malformed host"),
    (b"GET http://a/#b HTTP/1.1\r\n", 400, "malformed target"),
    (b"GET https://a/ HTTP/1.1\r\n", 421, "https target on an unsecured connection"),
    (b"GET ftp://a/ HTTP/1.1\r\n", 400, "malformed target"),
    (b"OPTIONS ** HTTP/1.1\r\n", 400, "malformed target"),
    # Host.
    (_LINE + b"\r\n", 400, "no Host"),
    (_LINE + b"A: b\r\nContent-Length: 5\r\n\r\n", 400, "no Host"),
    (b"GET http://a/ HTTP/1.1\r\n\r\n", 400, "no Host"),
    (_LINE + b"Host:\r\n", 400, "empty host"),
    (_LINE + b"Host: \t\r\n", 400, "empty host"),
    (b"GET / HTTP/1.0\r\nHost:\r\n", 400, "empty host"),
    (b"GET http://a/ HTTP/1.1\r\nHost:\r\n", 400, "empty host"),
    (b"GET http://a/ HTTP/1.1\r\nHost: b c\r\n", 400, "malformed host"),
    (_HOST + b"Host: a\r\n", 400, "more than one Host"),
    (_HOST + b"A: b\r\nhost: b\r\n", 400, "more than one Host"),
    (b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: a\r\n", 400, "more than one Host"),
    (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n", 400, "more than one Host"),
    (_LINE + b"Host: a\r\nContent-Length: 1\r\nHost: a\r\n", 400, "more than one Host"),
    (_LINE + b"Host: a b\r\n", 400, "malformed host"),
    (_LINE + b"Host: a, b\r\n", 400, "malformed host"),
    (_LINE + b"Host: a/b\r\n", 400, "malformed host"),
    (_LINE + b"Host: http://a\r\n", 400, "malformed host"),
    (_LINE + b"Host: u@a\r\n", 400, "malformed host"),
    (_LINE + b"Host: \xfc\r\n", 400, "malformed host"),
    # Field lines.
    (_HOST + b" a: b", 400, "misplaced blank"),
    (_LINE + b" Host: a", 400, "misplaced blank"),
    (_LINE + b"\tHost: a", 400, "misplaced blank"),
    (_HOST + b"A: b\r\n c", 400, "misplaced blank"),
    (_LINE + b"Host : a", 400, "misplaced blank"),
    (_HOST + b"Content-Length\t: 1", 400, "misplaced blank"),
    (_HOST + b"a b: c", 400, "misplaced blank"),
    (_HOST + b": b", 400, "malformed line"),
    (_HOST + b"nocolon\r", 400, "bare carriage return or line too short"),
    (_HOST + b"nocolon\n", 400, "bare line feed or line too short"),
    (_HOST + b"a: b\n", 400, "bare line feed or line too short"),
    (_HOST + b"a: b\r\r", 400, "bare carriage return or line too short"),
    (_HOST + b"a: b\rc", 400, "bare carriage return or line too short"),
    (_HOST + b"\n", 400, "bare line feed or line too short"),
    (_HOST + b"\r\r", 400, "bare carriage return or line too short"),
    (_HOST + b"a: \0", 400, "null byte"),
    (_HOST + b"a\0", 400, "null byte"),
    (_HOST + b"a: \x0b", 400, "control character"),
    (_HOST + b"a: \x7f", 400, "control character"),
    (_HOST + b"a\xe4: b", 400, "malformed line"),
    (_HOST + b"a(b): c", 400, "malformed line"),
    (_HOST + b"a@b: c", 400, "malformed line"),
    # Framing.
    (
        _HOST + b"Content-Length: 5\r\nContent-Length: 5\r\n",
        400,
        "more than one Content-Length or Transfer-Encoding",
    ),
    (
        _HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        400,
        "more than one Content-Length or Transfer-Encoding",
    ),
    (
        _LINE + b"Transfer-Encoding: chunked\r\nA: b\r\nContent-Length: 5\r\n",
        400,
        "more than one Content-Length or Transfer-Encoding",
    ),
    (
        _HOST + b"Transfer-Encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        400,
        "more than one Content-Length or Transfer-Encoding",
    ),
    (_HOST + b"Content-Length: 5, 5\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length:\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length: +5\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length: -5\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length: 0x5\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length: 5 5\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length: 1_0\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length: 1000000000000000000\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Content-Length: \xb2\r\n", 400, "malformed Content-Length"),
    (_HOST + b"Transfer-Encoding: gzip, chunked\r\n", 501, "unknown transfer coding"),
    (_HOST + b"Transfer-Encoding: gzip ,\tchunked\r\n", 501, "unknown transfer coding"),
    (_HOST + b"Transfer-Encoding: chunked, chunked\r\n", 400, "chunked is not the final transfer coding"),
    (_HOST + b"Transfer-Encoding: chunked, gzip\r\n", 400, "chunked is not the final transfer coding"),
    (_HOST + b"Transfer-Encoding: identity\r\n", 400, "chunked is not the final transfer coding"),
    (_HOST + b"Transfer-Encoding: xchunked\r\n", 400, "chunked is not the final transfer coding"),
    (_HOST + b"Transfer-Encoding:\r\n", 400, "malformed Transfer-Encoding"),
    (_HOST + b"Transfer-Encoding: chunked,\r\n", 400, "malformed Transfer-Encoding"),
    (_HOST + b"Transfer-Encoding: , chunked\r\n", 400, "malformed Transfer-Encoding"),
    (_HOST + b'Transfer-Encoding: "chunked"\r\n', 400, "malformed Transfer-Encoding"),
    (_HOST + b"Transfer-Encoding: chunked;a=b\r\n", 400, "malformed Transfer-Encoding"),
    (_HOST + b"Transfer-Encoding: chun ked\r\n", 400, "malformed Transfer-Encoding"),
    (_HOST + b"Transfer-Encoding: \xa0chunked\r\n", 400, "malformed Transfer-Encoding"),
    (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n", 400, "Transfer-Encoding with HTTP/1.0"),
    # The earliest fault counts.
    (_LINE + b"Host: a b\r\nContent-Length: x\r\nHost: c\r\n \0", 400, "malformed host"),
    (_LINE + b"Content-Length: x\r\nHost: a b\r\n", 400, "malformed Content-Length"),
    (b"FOO / HTTP/1.1\r\n\r\n", 501, "unknown method"),
]

#: Numbered, for a name that holds the bytes would be unreadable in a report.
_accepted = pytest.mark.parametrize(
    ("data", "fields"), ACCEPTED, ids=[f"accepted-{i}" for i in range(len(ACCEPTED))]
)
_refused = pytest.mark.parametrize(
    ("data", "status", "reason"),
    REFUSED,
    ids=[f"{s}-{r}-{i}".replace(" ", "-") for i, (_, s, r) in enumerate(REFUSED)],
)
_JUNK = [b"\0", b"\r\n", b"\n", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", b"Host: b\r\n\r\n", b"\xff" * 70000]


def verdict(data: bytes | bytearray, limit: int = LIMIT) -> Head | tuple[int, str] | None:
    try:
        return scan(data, limit)
    except Refused as refused:
        return refused.status, refused.reason


@_accepted
def test_accepted(data: bytes, fields: tuple[bytes, bytes, int, str, int]) -> None:
    expected = Head(*fields, end=len(data))
    got = scan(data, LIMIT)
    assert got == expected
    assert type(got) is Head
    assert [type(value) for value in got] == [bytes, bytes, int, str, int, int]
    assert scan(bytearray(data), LIMIT) == expected
    assert scan(data, len(data)) == expected


@_accepted
def test_accepted_byte_by_byte(data: bytes, fields: tuple[bytes, bytes, int, str, int]) -> None:
    for size in range(len(data)):
        assert verdict(data[:size]) is None, data[:size]


@_accepted
def test_accepted_with_something_behind(data: bytes, fields: tuple[bytes, bytes, int, str, int]) -> None:
    for junk in _JUNK:
        assert verdict(data + junk) == Head(*fields, end=len(data))


@_accepted
def test_accepted_only_within_the_limit(data: bytes, fields: tuple[bytes, bytes, int, str, int]) -> None:
    line_end = data.index(b"\r\n", 2) + 2
    for limit in range(1, len(data)):
        status, _ = verdict(data, limit)  # type: ignore[misc]
        assert status == (414 if limit < line_end else 431)
        assert verdict(data[:limit], limit) == verdict(data, limit)


@_refused
def test_refused(data: bytes, status: int, reason: str) -> None:
    assert verdict(data) == (status, reason)
    assert verdict(bytearray(data)) == (status, reason)


@_refused
def test_refused_byte_by_byte(data: bytes, status: int, reason: str) -> None:
    verdicts = [verdict(data[:size]) for size in range(len(data) + 1)]
    assert set(verdicts) == {None, (status, reason)}
    assert verdicts.index((status, reason)) == verdicts.count(None), "once refused is refused for good"


@_refused
def test_refused_with_something_behind(data: bytes, status: int, reason: str) -> None:
    for junk in _JUNK:
        assert verdict(data + junk) == (status, reason)


# --- limits --------------------------------------------------------------------------------------------------------


def test_request_line_limit() -> None:
    room = REQUEST_LINE_LIMIT - len(b"GET / HTTP/1.1\r\n")
    for filler in (b"a", b"%41", b"?%"):
        path = (filler * room)[:room].removesuffix(b"%").removesuffix(b"%4")
        path += b"a" * (room - len(path))
        longest = b"GET /" + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"
        for start in (b"", b"\r\n"):
            assert isinstance(verdict(start + longest), Head)
            assert verdict(start + longest[:-1]) is None
            too_long = start + longest.replace(b" HTTP", b"a HTTP")
            assert verdict(too_long) == (414, "request line too long")
            for size in (*range(0, len(too_long), 97), *range(8180, len(too_long))):
                assert verdict(too_long[:size]) in (None, (414, "request line too long"))
    assert verdict(b"GET /" + b"a" * REQUEST_LINE_LIMIT) == (414, "request line too long")
    assert verdict(b"GET http://a/" + b"a" * REQUEST_LINE_LIMIT + b" HTTP/1.1\r\nHost: a\r\n\r\n") == (
        414,
        "request line too long",
    )


@pytest.mark.parametrize("before", [0, 1, 41, 42, 43, 64, 127])
@pytest.mark.parametrize("framing", [b"", b"Content-Length: 1\r\n"])
def test_fields_limit(before: int, framing: bytes) -> None:
    def made(count: int) -> bytes:
        rest = count - 1 - bool(framing)
        first = min(before, rest)
        return _LINE + b"a:\r\n" * first + b"Host: a\r\n" + b"b:\r\n" * (rest - first) + framing + b"\r\n"

    for count in (2, 42, 43, 44, 45, 84, 85, 86, 87, FIELDS_LIMIT - 1, FIELDS_LIMIT):
        assert isinstance(verdict(made(count)), Head), count
        assert verdict(made(count)[:-1]) is None
        assert verdict(b"\r\n" + made(count)[:-2]) is None
    for count in (FIELDS_LIMIT + 1, FIELDS_LIMIT + 2, 3 * FIELDS_LIMIT, 4 * FIELDS_LIMIT):
        for data in (made(count), made(count)[:-1], made(count)[:-2], b"\r\n" + made(count)):
            assert verdict(data) == (431, "too many fields")
    assert verdict(made(FIELDS_LIMIT)[:-2] + b"x") is None  # one too many, as soon as it is whole
    assert verdict(made(FIELDS_LIMIT)[:-2] + b"x:\r\n") == (431, "too many fields")


@pytest.mark.parametrize(("line", "fields"), [(256, 8), (1000, 9), (1000, 10), (65536, 128), (8192, 1000)])
def test_configured_limits(line: int, fields: int) -> None:
    bounds = bounds_of(line, fields)

    def verdict_of(data: bytes) -> tuple[int, str] | Head | None:
        try:
            return scan(data, 70_000, bounds)
        except Refused as refused:
            return refused.status, refused.reason

    for extra, expected in ((0, Head), (1, (414, "request line too long"))):
        target = b"/" + b"a" * (line + extra - len(b"GET / HTTP/1.1\r\n"))
        found = verdict_of(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert isinstance(found, Head) if expected is Head else found == expected
        assert verdict_of(b"GET " + target + b" HTTP/1.1") in (None, expected)
    if line == 65536:  # percent-encoded, the longest has the most repetitions
        target = b"/" + b"%41" * ((line - len(b"GET / HTTP/1.1\r\n")) // 3)
        assert isinstance(verdict_of(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n"), Head)
    for where in (0, 1, fields // 2, fields - 1):
        for count in (fields - 1, fields, fields + 1):
            lines = [b"a:\r\n"] * (count - 1)
            lines.insert(min(where, count - 1), b"Host: a\r\n")
            found = verdict_of(b"GET / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n")
            assert isinstance(found, Head) if count <= fields else found == (431, "too many fields")


def test_fields_limit_without_host() -> None:
    line = b"GET / HTTP/1.0\r\n"
    assert isinstance(verdict(line + b"a:\r\n" * FIELDS_LIMIT + b"\r\n"), Head)
    assert verdict(line + b"a:\r\n" * (FIELDS_LIMIT + 1) + b"\r\n") == (431, "too many fields")


def test_large_heads() -> None:
    data = _HOST + b"a: " + b"x" * 32000 + b"\r\n\r\n"
    assert isinstance(verdict(data), Head)
    assert verdict(data, 32000) == (431, "head too long")
    assert verdict(data[:-1], len(data) - 1) == (431, "head too long")
    assert verdict(data[:-1], len(data)) is None


def test_host_limits() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(longest) == 253
    assert authority(longest.encode()) == (longest, 0)
    assert authority(longest.encode() + b".:65535") == (longest, 65535)
    for bad in (longest + "b", "a" * 64, "x." * 127 + "x"):
        with pytest.raises(Refused):
            authority(bad.encode())


# --- authority -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a", ("a", 0)),
        (b"A.b-C_d.E", ("a.b-c_d.e", 0)),
        (b"a.", ("a", 0)),
        (b"a.:1", ("a", 1)),
        (b"a:", ("a", 0)),
        (b"a:080", ("a", 80)),
        (b"_dmarc.a", ("_dmarc.a", 0)),
        (b"-a-.b", ("-a-.b", 0)),
        (b"1a.2b", ("1a.2b", 0)),
        (b"1.2.3.a", ("1.2.3.a", 0)),
        (b"127.0.0.1", ("127.0.0.1", 0)),
        (b"127.0.0.1.:8080", ("127.0.0.1", 8080)),
        (b"[::]", ("[::]", 0)),
        (b"[::1]:", ("[::1]", 0)),
        (b"[0:0:0:0:0:0:0:1]:443", ("[::1]", 443)),
        (b"[2001:DB8::A]", ("[2001:db8::a]", 0)),
        (b"[::FFFF:1.2.3.4]", ("[::ffff:1.2.3.4]", 0)),
    ],
)
def test_authority(raw: bytes, expected: tuple[str, int]) -> None:
    assert authority(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        *(
            b"",
            b".",
            b"..",
            b"a..",
            b".a",
            b"a..b",
            b":",
            b":80",
            b"a:0",
            b"a:00000",
            b"a:65536",
            b"a:123456",
            b"a:-1",
            b"a:+1",
            b"a: 1",
        ),
        *(
            b"a:1:2",
            b"a b",
            b" a",
            b"a ",
            b"a\t",
            b"a\n",
            b"a\r\n",
            b"a\0",
            b"a,b",
            b"a;b",
            b"a/b",
            b"a?b",
            b"a#b",
            b"a@b",
            b"a\\b",
            b"a%2eb",
        ),
        *(
            b"*",
            b"*.a",
            b"a*",
            b"a!b",
            b"a~b",
            b"\xfc",
            b"b\xc3\xbccher",
            b"a'b",
            b'a"b',
            b"a(b)",
            b"a=b",
            b"a&b",
            b"$a",
            b"a+b",
        ),
        *(
            b"1",
            b"1.2.3",
            b"1.2.3.4.5",
            b"256.1.1.1",
            b"01.2.3.4",
            b"1.2.3.0x4",
            b"0x7f000001",
            b"a.1",
            b"a.0x",
            b"999999999999",
        ),
        *(
            b"[",
            b"[]",
            b"[:]",
            b"[::",
            b"::1",
            b"[::1]]",
            b"[[::1]]",
            b"[::g]",
            b"[1::2::3]",
            b"[1:2:3:4:5:6:7:8:9]",
            b"[::1]a",
            b"[::1].a",
        ),
        *(
            b"[::1]:0",
            b"[::1%25eth0]",
            b"[::1%eth0]",
            b"[v1.a]",
            b"[1.2.3.4]",
            b"[::1.2.3]",
            b"[::12345]",
            b"[::1]80",
            b"a[::1]",
        ),
        *("\u0661.2.3.4".encode(), "a\uff0eb".encode(), "\u212a".encode()),
    ],
)
def test_authority_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        authority(raw)
    assert caught.value.status == 400


@given(st.binary(max_size=12))
def test_authority_is_its_own_normal_form(raw: bytes) -> None:
    try:
        host, port = authority(raw)
    except Refused:
        return
    assert authority(host.encode("ascii")) == (host, 0)
    assert (
        authority(f"{host}.:{port or 1}".encode() if "[" not in host else f"{host}:{port or 1}".encode())[0]
        == host
    )


# --- properties ----------------------------------------------------------------------------------------------------


def check(data: bytes) -> None:
    """What holds for any bytes: the earliest fault counts, and both readings of the grammar agree."""
    found = verdict(data)
    assert found != (400, "malformed head"), "the two readings of the grammar differ"
    if isinstance(found, Head):
        assert found.end <= len(data)
        assert data[found.end - 4 : found.end] == b"\r\n\r\n"
        assert found.method in METHODS
        with pytest.raises(Refused, match="malformed head"):  # its way to say that it has nothing to say
            head._explain(data, LIMIT, head.DEFAULT_BOUNDS)
    elif found is None:
        head._explain(data, LIMIT, head.DEFAULT_BOUNDS)
    final: object = None
    for size in range(len(data) + 1):
        now = verdict(data[:size])
        if final is None:
            final = now
        assert now == final, "the verdict changed"
    assert final == found


@settings(max_examples=300, deadline=None)
@given(valid_heads())
def test_valid_heads(data: bytes) -> None:
    assert isinstance(verdict(data), Head)
    check(data)


@settings(max_examples=300, deadline=None)
@given(likely_heads())
def test_likely_heads(data: bytes) -> None:
    check(data)


@settings(max_examples=500, deadline=None)
@given(mutants())
def test_mutants(data: bytes) -> None:
    check(data)


@given(st.binary(max_size=200))
def test_noise(data: bytes) -> None:
    check(data)


@settings(max_examples=200, deadline=None)
@given(mutants(), st.integers(1, 200))
def test_limits_keep_the_order(data: bytes, limit: int) -> None:
    final: object = None
    for size in range(len(data) + 1):
        now = verdict(data[:size], limit)
        if final is None:
            final = now
        assert now == final
        assert not isinstance(now, Head) or now.end <= limit
    if len(data) >= limit:
        assert final is not None
    assert final == verdict(bytearray(data), limit)


def test_every_byte_everywhere() -> None:
    """Each byte value put before and in place of each byte of a head that has all the parts."""
    data = b"\r\nPUT /a%20b?c HTTP/1.1\r\nH: x\r\nContent-Length: 5\r\nT: \xff\r\nHost: a.b:8\r\nC:\r\n\r\n"
    for at in range(len(data)):
        for value in range(256):
            for skip in (0, 1):
                changed = data[:at] + bytes([value]) + data[at + skip :]
                found = verdict(changed)
                assert found != (400, "malformed head")
                if isinstance(found, Head):
                    assert changed.lower().count(b"\r\nhost:") == 1
                    assert changed.lower().count(b"\r\ncontent-length:") <= 1
                    assert found.end in (len(changed), len(changed) - 1)  # the byte came behind the end
                    with pytest.raises(Refused, match="malformed head"):
                        head._explain(changed, LIMIT, head.DEFAULT_BOUNDS)
                elif found is None:
                    head._explain(changed, LIMIT, head.DEFAULT_BOUNDS)
