"""Heads of applications' answers (RFC 3875 section 6): every one whole, byte by byte, and with what follows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd_vhost.kinds.gateway import answers
from pyttpd_vhost.kinds.gateway.answers import HEAD_LIMIT, MAX_FIELDS, Answer, HeadParser
from pyttpd_vhost.kinds.gateway.errors import MAX_LINE, MAX_TOTAL, Errors
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault

from .conftest import ListLog

TYPE = "Content-Type: text/plain\r\n"

#: What is said; status line, header lines, Content-Length, local redirect.
GOOD: dict[str, tuple[bytes, str, str, int | None, str]] = {
    "document": (b"Content-Type: text/plain\r\n\r\n", "200 OK", TYPE, None, ""),
    "line feeds alone": (b"Content-Type: text/plain\n\n", "200 OK", TYPE, None, ""),
    "both": (b"Content-Type: text/plain\r\nX: 1\n\r\n", "200 OK", TYPE + "X: 1\r\n", None, ""),
    "status": (b"Status: 404 Not Found\nContent-Type: text/plain\n\n", "404 Not Found", TYPE, None, ""),
    "a status of its own": (b"status: 299 As you like\n\n", "299 As you like", "", None, ""),
    "status without words": (b"Status: 404\n\n", "404 Not Found", "", None, ""),
    "status that nobody knows": (b"Status: 599\n\n", "599 ", "", None, ""),
    "status alone": (b"Status: 204 No Content\n\n", "204 No Content", "", None, ""),
    "status line of HTTP": (b"HTTP/1.1 403 Forbidden\r\nX: 1\r\n\r\n", "403 Forbidden", "X: 1\r\n", None, ""),
    "HTTP/2 without words": (b"HTTP/2 403\r\n\r\n", "403 Forbidden", "", None, ""),
    "length": (b"Content-Length: 5\nContent-Type: text/plain\n\n", "200 OK", TYPE, 5, ""),
    "blanks": (b"Content-Type: \t text/plain \t\r\n\r\n", "200 OK", TYPE, None, ""),
    "no blanks": (b"Content-Type:text/plain\n\n", "200 OK", TYPE, None, ""),
    "the same twice": (
        b"Content-Type: text/plain\ncontent-type: text/plain\nContent-Length: 1\nContent-Length: 1\n\n",
        "200 OK",
        TYPE,
        1,
        "",
    ),
    "many of one name": (
        b"Status: 200 OK\nSet-Cookie: a=1\nSet-Cookie: b=2\nset-cookie: a=1\nVary: a\nVary: b\n\n",
        "200 OK",
        "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nset-cookie: a=1\r\nVary: a\r\nVary: b\r\n",
        None,
        "",
    ),
    "local redirect": (b"Location: /a/b?c=d\n\n", "200 OK", "Location: /a/b?c=d\r\n", None, "/a/b?c=d"),
    "client redirect": (
        b"Location: http://a.test/\n\n",
        "302 Found",
        "Location: http://a.test/\r\n",
        None,
        "",
    ),
    "client redirect with a document": (
        b"Status: 301 Moved\nLocation: http://a.test/\nContent-Type: text/plain\n\n",
        "301 Moved",
        "Location: http://a.test/\r\n" + TYPE,
        None,
        "",
    ),
    "a path with a status": (b"Status: 302\nLocation: /a\n\n", "302 Found", "Location: /a\r\n", None, ""),
    "a path with a cookie": (
        b"Location: /a\nSet-Cookie: a=1\n\n",
        "302 Found",
        "Location: /a\r\nSet-Cookie: a=1\r\n",
        None,
        "",
    ),
    "another host": (b"Location: //evil.test/\n\n", "302 Found", "Location: //evil.test/\r\n", None, ""),
    "ours": (
        b"Content-Type: text/plain\nConnection: keep-alive\nKeep-Alive: 5\n\n",
        "200 OK",
        TYPE,
        None,
        "",
    ),
    "latin-1": (b"Status: 200 d'accord \xe9\nX: \xff\n\n", "200 d'accord é", "X: ÿ\r\n", None, ""),
}

BAD: dict[str, tuple[bytes, Fault]] = {
    "an empty line": (b"\n", Fault.MALFORMED),
    "nothing that counts": (b"X-A: 1\n\n", Fault.MALFORMED),
    "no colon": (b"Content-Type: text/plain\nhello\n\n", Fault.MALFORMED),
    "a page without a head": (b"<html>\n\n", Fault.MALFORMED),
    "blank before the colon": (b"Content-Type : text/plain\n\n", Fault.MALFORMED),
    "folded": (b"Content-Type: text/plain\n charset=x\n\n", Fault.MALFORMED),
    "no name": (b": text/plain\n\n", Fault.MALFORMED),
    "CR within": (b"Content-Type: text/plain\rX-Evil: 1\n\n", Fault.MALFORMED),
    "NUL": (b"Content-Type: text\0plain\n\n", Fault.MALFORMED),
    "escape": (b"Content-Type: text\x1bplain\n\n", Fault.MALFORMED),
    "name of another kind": (b"Content-Type: text/plain\nX\xe9: 1\n\n", Fault.MALFORMED),
    "status of words": (b"Status: fine\n\n", Fault.MALFORMED),
    "status 1xx": (b"Status: 100 Continue\n\n", Fault.MALFORMED),
    "status 600": (b"Status: 600\n\n", Fault.MALFORMED),
    "status of two digits": (b"Status: 20\n\n", Fault.MALFORMED),
    "status twice": (b"Status: 200\nStatus: 404\n\n", Fault.MALFORMED),
    "type twice": (b"Content-Type: a/b\nContent-Type: c/d\n\n", Fault.MALFORMED),
    "length twice": (b"Content-Type: a/b\nContent-Length: 1\nContent-Length: 2\n\n", Fault.MALFORMED),
    "length of words": (b"Content-Type: a/b\nContent-Length: five\n\n", Fault.MALFORMED),
    "length below zero": (b"Content-Type: a/b\nContent-Length: -1\n\n", Fault.MALFORMED),
    "chunked": (b"Content-Type: a/b\nTransfer-Encoding: chunked\n\n", Fault.MALFORMED),
    "upgrade": (b"Status: 200\nUpgrade: x\n\n", Fault.MALFORMED),
    "empty location": (b"Location:\n\n", Fault.MALFORMED),
    "two locations": (b"Location: /a\nLocation: /b\n\n", Fault.MALFORMED),
    "endless line": (b"X: " + b"x" * HEAD_LIMIT, Fault.OVERSIZE),
    "a head too long that ends": (b"X: " + b"x" * HEAD_LIMIT + b"\n\n", Fault.OVERSIZE),
    "endless fields": (b"X: 1\n" * (HEAD_LIMIT // 5 + 1), Fault.OVERSIZE),
    "too many fields": (b"X: 1\n" * (MAX_FIELDS + 1) + b"\n", Fault.OVERSIZE),
}


def read(pieces: list[bytes]) -> tuple[Answer, bytes] | None:
    """Feed the pieces; what comes after the head is followed by those that are left."""
    parser = HeadParser()
    for number, piece in enumerate(pieces):
        found = parser.feed(piece)
        if found is not None:
            return found[0], found[1] + b"".join(pieces[number + 1 :])
    return None


def check(case: str, pieces: list[bytes], rest: bytes) -> None:
    _, status, text, length, local = GOOD[case]
    found = read(pieces)
    assert found is not None
    answer, follows = found
    assert (answer.status, answer.fields.text, answer.fields.length, answer.local) == (
        status,
        text,
        length,
        local,
    )
    assert answer.code == int(status[:3])
    assert follows == rest


@pytest.mark.parametrize("rest", [b"", b"\n", b"\r\n\r\nbody\n\n"], ids=["alone", "a line", "a body"])
@pytest.mark.parametrize("case", GOOD)
def test_good(case: str, rest: bytes) -> None:
    data = GOOD[case][0]
    check(case, [data + rest], rest)
    check(case, [bytes((byte,)) for byte in data + rest], rest)


@pytest.mark.parametrize("case", BAD)
def test_bad(case: str) -> None:
    data, fault = BAD[case]
    for pieces in ([data], [bytes((byte,)) for byte in data]):
        with pytest.raises(BackendError) as raised:
            read(pieces)
        assert raised.value.fault is fault
        assert len(raised.value.detail) < 300


@pytest.mark.parametrize(
    ("said", "fault"),
    [(b"", Fault.EMPTY), (b"Content-Type: text/plain\n", Fault.MALFORMED), (b"\x00\x01", Fault.MALFORMED)],
)
def test_no_end(said: bytes, fault: Fault) -> None:
    parser = HeadParser()
    assert parser.feed(said) is None
    assert parser.end().fault is fault


def test_heads_are_remembered_and_not_without_end() -> None:
    said = b"Content-Type: text/plain\r\nX: once\r\n\r\n"
    first, again = read([said + b"one"]), read([said + b"two"])
    assert first is not None and again is not None
    assert first[0] is again[0]
    assert (first[1], again[1]) == (b"one", b"two")
    for number in range(1000):
        found = read([b"Content-Type: text/plain\r\nX: %d\r\n\r\n" % number])
        assert found is not None and f"X: {number}\r\n" in found[0].fields.text
    assert len(answers._remembered) <= answers._MAX_REMEMBERED
    answers._remembered.clear()
    read([b"Content-Type: text/plain\r\nX: " + b"x" * 600 + b"\r\n\r\n"])
    assert not answers._remembered


@given(st.binary(max_size=200), st.data())
def test_pieces_make_no_difference(tail: bytes, data: st.DataObject) -> None:
    """Whatever is said, in whatever pieces: the same answer or the same fault; and no line of its own making."""
    said = data.draw(st.sampled_from([GOOD[case][0] for case in GOOD] + [b"Status: ", b"X:"])) + tail
    at = data.draw(st.integers(0, len(said)))
    outcomes = []
    for pieces in ([said], [said[:at], said[at:]]):
        try:
            found = read(pieces)
        except BackendError as error:
            outcomes.append(error.fault.reason)
        else:
            outcomes.append("" if found is None else found[0].fields.text + found[0].status)
            if found is not None:
                lines = found[0].fields.text.split("\r\n")
                assert all(":" in line and "\n" not in line and "\r" not in line for line in lines[:-1])
    assert outcomes[0] == outcomes[1]


def logged(log: ListLog) -> list[str]:
    return [str(fields["line"]) for _, event, fields in log.lines if event == "output"]


def test_errors_line_by_line() -> None:
    log = ListLog()
    errors = Errors(log, "/app")
    for piece in (b"one\r\ntw", b"o\n\n", b"thr", b"ee"):
        errors.feed(piece)
    errors.end()
    assert logged(log) == ["/app: one", "/app: two", "/app: three"]


def test_errors_without_end() -> None:
    """In lines or in one line: the log gets MAX_TOTAL, and is told that there was more."""
    for piece in (b"x" * 1000, b"line\n" * 200):
        log = ListLog()
        errors = Errors(log, "")
        for _ in range(1000):
            errors.feed(piece)
        errors.end()
        assert sum(len(line) - 3 for line in logged(log)) <= MAX_TOTAL
        assert max(map(len, logged(log))) <= MAX_LINE + 3
        assert log.events().count("application says more than is logged of one request") == 1
