"""The access log: what stands in it for which request, that no byte forges a line, what becomes of it under load."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd_vhost.access import ACCESS_LOGS, LOST, MAX_LINE, MAX_RECORD, MAX_UNSENT, line_pattern
from pyttpd_vhost.http.heads import HeadReader
from pyttpd_vhost.http.llhttp import LlhttpEngine
from pyttpd_vhost.http.proxies import Proxies

from .conftest import Client, Serve, Server

STAMP = (
    r"\[[0-3]\d/(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)/20\d\d:[0-2]\d:[0-5]\d:[0-6]\d \+0000\]"
)
FORMS = ("combined", "json")


class Reader:
    """The supervisor's end of an access log."""

    def __init__(self, form: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock = ours
        self.sock.settimeout(10)
        self.log = ACCESS_LOGS[form]("blog", theirs)
        self._theirs = theirs
        self.form = form

    def record(self) -> bytes:
        return self.sock.recv(2 * MAX_RECORD)

    def lines(self, count: int) -> list[str]:
        """Return the next `count` lines, which must be all that there is in their records."""
        data = b""
        while data.count(b"\n") < count:
            data += self.record()
        assert line_pattern(self.form, "blog").fullmatch(data), data
        lines = data.decode("ascii").splitlines()
        assert len(lines) == count, lines
        return lines

    def close(self) -> None:
        self.sock.close()
        self._theirs.close()


@pytest.fixture
def reader() -> Iterator[Callable[[str], Reader]]:
    readers: list[Reader] = []

    def make(form: str) -> Reader:
        readers.append(Reader(form))
        return readers[-1]

    yield make
    for each in readers:
        each.close()


def read_head(head: bytes) -> Any:
    request = HeadReader(LlhttpEngine(), 65536).read(head)
    assert request is not None
    return request


def parts(line: str) -> tuple[str, ...]:
    """Take a line of `combined` apart, as every reader of such logs does."""
    match = re.fullmatch(rf'(\S+) - - {STAMP} "([^"]*)" (\d+) (\d+) "([^"]*)" "([^"]*)"', line)
    assert match is not None, line
    return match.groups()


# --- one entry ------------------------------------------------------------------------------------------------
#: name: (head, request line, Referer and User-Agent in `combined`; target, Referer and User-Agent in JSON)
HEADS: dict[str, tuple[bytes, tuple[str, str, str], tuple[str, str, str]]] = {
    "nothing": (b"", ("GET / HTTP/1.1", "-", "-"), ("/", "", "")),
    "both": (
        b"Referer: https://a.example/?q=1\r\nUser-Agent: curl/8.0\r\n",
        ("GET / HTTP/1.1", "https://a.example/?q=1", "curl/8.0"),
        ("/", "https://a.example/?q=1", "curl/8.0"),
    ),
    "any_case_and_the_first": (
        b"REFERER: one\r\nreferer: two\r\nuser-AGENT: x\r\n",
        ("GET / HTTP/1.1", "one", "x"),
        ("/", "one", "x"),
    ),
    "quotes": (
        b'User-Agent: a" 200 5 "-" "-"\r\n',
        ("GET / HTTP/1.1", "-", r"a\x22 200 5 \x22-\x22 \x22-\x22"),
        ("/", "", 'a" 200 5 "-" "-"'),
    ),
    "backslashes": (
        b"User-Agent: \\x22 \\\r\n",
        ("GET / HTTP/1.1", "-", r"\x5Cx22 \x5C"),
        ("/", "", "\\x22 \\"),
    ),
    "tab": (b"User-Agent: a\tb\r\n", ("GET / HTTP/1.1", "-", r"a\x09b"), ("/", "", "a\tb")),
    "utf8": (
        "User-Agent: Bj\u00f6rn\r\n".encode(),
        ("GET / HTTP/1.1", "-", r"Bj\xC3\xB6rn"),
        ("/", "", "Bj\u00f6rn"),
    ),
    "no_utf8": (
        b"User-Agent: \xff\x9b2J\r\n",
        ("GET / HTTP/1.1", "-", r"\xFF\x9B2J"),
        ("/", "", "\\xff\\x9b2J"),
    ),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("form", FORMS)
def test_an_entry(form: str, name: str, reader: Callable[[str], Reader]) -> None:
    fields, combined, as_json = HEADS[name]
    there = reader(form)
    there.log.worker = 3
    there.log.add(
        "192.0.2.1",
        read_head(b"GET / HTTP/1.1\r\nHost: a.test\r\n" + fields + b"\r\n"),
        200,
        13,
        time.monotonic() - 0.25,
    )
    there.log.flush()
    (line,) = there.lines(1)
    if form == "combined":
        assert parts(line) == ("192.0.2.1", combined[0], "200", "13", *combined[1:])
    else:
        entry = json.loads(line)
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry.pop("time"))
        assert 0.25 <= entry.pop("duration") < 10
        assert entry == {
            "vhost": "blog",
            "worker": 3,
            "client": "192.0.2.1",
            "host": "a.test",
            "method": "GET",
            "target": as_json[0],
            "protocol": "HTTP/1.1",
            "status": 200,
            "bytes": 13,
            "referer": as_json[1],
            "agent": as_json[2],
        }


@pytest.mark.parametrize("form", FORMS)
def test_what_is_long_is_cut_and_a_line_fits_a_pipe(form: str, reader: Callable[[str], Reader]) -> None:
    there = reader(form)
    there.log.worker = 2**31 - 1
    for filling in (b"a", b'"', b"\\", b"\xff", b"\xc3\xb6", b"\xf0\x9f\x98\x80"):
        target = b"/" + (filling if filling.isalnum() else b"%22") * 2600
        long = (filling * 8000)[:8000]
        head = b"%b %b HTTP/1.1\r\nHost: %b\r\nReferer: %b\r\nUser-Agent: %b\r\n\r\n"
        host = b".".join([b"a" * 63] * 3 + [b"a" * 61])
        request = read_head(head % (b"PROPFIND", target, host, long, long))
        request.method = "M" * 100
        there.log.add("f" * 45, request, 599, 10**18 - 1, time.monotonic() - 999_999.0)
        there.log.flush()
        (line,) = there.lines(1)
        assert 3000 < len(line) < MAX_LINE
        if form == "json":
            assert json.loads(line)["agent"].endswith("...")
        else:
            assert all(part.endswith("...") for part in parts(line)[4:])
            assert parts(line)[1].endswith("... HTTP/1.1")


@pytest.mark.parametrize(
    ("head", "combined", "as_json"),
    [
        (b"", "-", ""),
        (b"GET", "GET", "GET"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n", "GET / HTTP/1.1", "GET / HTTP/1.1"),
        (b"\r\n\r\nGET / HTTP/9.9\n", "GET / HTTP/9.9", "GET / HTTP/9.9"),
        (b'\x16\x03\x01"\x00\xff', r"\x16\x03\x01\x22\x00\xFF", '\x16\x03\x01"\x00\\xff'),
        (b"a" * 5000, "a" * 1957 + "...", "a" * 1957 + "..."),
        (b'"' * 5000, r"\x22" * 489 + "...", '"' * 978 + "..."),
    ],
)
def test_what_is_no_request(
    head: bytes, combined: str, as_json: str, reader: Callable[[str], Reader]
) -> None:
    for form in FORMS:
        there = reader(form)
        there.log.add_refused("::1", head, 400, 12)
        there.log.flush()
        (line,) = there.lines(1)
        if form == "combined":
            assert parts(line) == ("::1", combined, "400", "12", "-", "-")
        else:
            entry = json.loads(line)
            assert (entry["target"], entry["method"], entry["host"], entry["status"]) == (
                as_json,
                "",
                "",
                400,
            )


@given(data=st.binary(max_size=300))
def test_no_byte_of_a_client_breaks_a_line(data: bytes) -> None:
    for form in FORMS:
        there = Reader(form)
        try:
            there.log.add_refused("::1", data, 400, 0)
            there.log.flush()
            there.lines(1)
        finally:
            there.close()


# --- what the supervisor takes --------------------------------------------------------------------------------
def test_the_pattern_takes_whole_lines_of_this_tenant_only(reader: Callable[[str], Reader]) -> None:
    for form in FORMS:
        there = reader(form)
        there.log.add("::1", read_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 200, 0, 0.0)
        there.log.flush()
        line = there.record()
        pattern = line_pattern(form, "blog")
        assert pattern.fullmatch(line * 3)
        forged = [
            line[:-1],
            line + b"x",
            b"\x1b[2J" + line,
            line.replace(b"GET", b"G\nT"),
            line.replace(b"/", b"\xff"),
        ]
        forged += [
            line.replace(b"/ ", b'/" 200 1 "') if form == "combined" else line.replace(b'"/"', b'"/"x"')
        ]
        if form == "json":
            forged += [line.replace(b'"blog"', b'"shop"'), line.replace(b'"GET"', b'"GET","vhost":"shop"')]
            forged += [line.replace(b'"GET"', b'"G\\ET"'), line.replace(b'"GET"', b'"\\"')]
        for wrong in forged:
            assert pattern.fullmatch(wrong) is None, wrong


# --- sending --------------------------------------------------------------------------------------------------
def test_records_are_whole_lines_and_bounded(reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    request = read_head(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 1000))
    for _ in range(100):
        there.log.add("::1", request, 200, 0, 0.0)
    there.log.flush()
    assert there.log.lines == []
    count = 0
    while count < 100:
        record = there.record()
        assert len(record) <= MAX_RECORD
        assert line_pattern("combined", "blog").fullmatch(record)
        count += record.count(b"\n")
    assert count == 100


def test_nobody_waits_and_what_is_lost_is_told(reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    request = read_head(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 1000))
    added = 4 * MAX_UNSENT // 1000
    for _ in range(added):
        there.log.add("::1", request, 200, 0, 0.0)
        there.log.flush()
    kept = 0
    there.sock.setblocking(False)
    while True:
        try:
            record = there.record()
        except BlockingIOError:
            there.log.flush()
            record = there.record()
        if record.startswith(LOST):
            break
        assert line_pattern("combined", "blog").fullmatch(record)
        kept += record.count(b"\n")
    lost = int(record[1:])
    assert lost > 0
    assert kept + lost == added
    there.log.add("::1", request, 200, 0, 0.0)
    there.log.flush()
    there.lines(1)
    assert there.log.finish() == 0


def test_the_end_waits_a_moment_for_the_supervisor(reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    request = read_head(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 1000))
    for _ in range(500):
        there.log.add("::1", request, 200, 0, 0.0)
    there.log.flush()
    read = threading.Thread(target=there.lines, args=(500,))
    read.start()
    assert there.log.finish(10.0) == 0
    read.join()


def test_a_supervisor_that_takes_nothing_is_not_waited_for_long(reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    request = read_head(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 1000))
    for _ in range(500):
        there.log.add("::1", request, 200, 0, 0.0)
    lost = there.log.finish(0.05)
    assert 0 < lost <= 500


def test_a_supervisor_that_is_gone_stops_nobody(reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    there.sock.close()
    there.log.add("::1", read_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 200, 0, 0.0)
    there.log.flush()
    there.log.flush()
    assert there.log.lines == []


def test_threads_lose_nothing_and_mix_nothing(reader: Callable[[str], Reader]) -> None:
    there = reader("json")
    request = read_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")

    def add() -> None:
        for _ in range(500):
            there.log.add("::1", request, 200, 0, 0.0)
            there.log.flush()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    read = threading.Thread(target=there.lines, args=(2000,))
    read.start()
    for thread in threads:
        thread.join()
    assert there.log.finish(10.0) == 0
    read.join()


# --- through a connection -------------------------------------------------------------------------------------
def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    match environ["PATH_INFO"]:
        case "/fails":
            raise RuntimeError("on purpose")
        case "/read":
            environ["wsgi.input"].read()
            start_response("200 OK", [("Content-Length", "2")])
            return [b"ok"]
        case "/chunked":
            start_response("200 OK", [])
            return iter([b"abc", b"defg"])
        case "/empty":
            start_response("204 No Content", [])
            return []
        case "/large":
            start_response("200 OK", [("Content-Length", "8000000")])
            return [b"x" * 8000000]
        case _:
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"Hello, world!"]


HOST = b" HTTP/1.1\r\nHost: a.test\r\n"
#: name: (what the client sends, [(request line, status, bytes) of each entry])
EXCHANGES: dict[str, tuple[bytes, list[tuple[str, int, int]]]] = {
    "get": (b"GET /" + HOST + b"\r\n", [("GET / HTTP/1.1", 200, 13)]),
    "old": (b"GET / HTTP/1.0\r\n\r\n", [("GET / HTTP/1.0", 200, 13)]),
    "head": (b"HEAD /" + HOST + b"\r\n", [("HEAD / HTTP/1.1", 200, 0)]),
    "204": (b"GET /empty" + HOST + b"\r\n", [("GET /empty HTTP/1.1", 204, 0)]),
    "pipelined": (
        (b"GET /1" + HOST + b"\r\n") * 20 + b"GET /2" + HOST + b"\r\n",
        [("GET /1 HTTP/1.1", 200, 13)] * 20 + [("GET /2 HTTP/1.1", 200, 13)],
    ),
    # as nginx counts: with the chunks' frames
    "chunked": (b"GET /chunked" + HOST + b"\r\n", [("GET /chunked HTTP/1.1", 200, 22)]),
    "fails": (b"GET /fails" + HOST + b"\r\n", [("GET /fails HTTP/1.1", 500, 26)]),
    "no_100_in_the_bytes": (
        b"POST /read" + HOST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        [("POST /read HTTP/1.1", 200, 2)],
    ),
    "malformed": (b"GET  / HTTP/1.1\r\n\r\n", [("GET  / HTTP/1.1", 400, 16)]),
    "control characters": (b"GET /\x1b[2J\x07 HTTP/1.1\r\n\r\n", [(r"GET /\x1B[2J\x07 HTTP/1.1", 400, 16)]),
    "not_ours": (b"GET /x HTTP/1.1\r\nHost: b.test\r\n\r\n", [("GET /x HTTP/1.1", 421, 24)]),
    "too_long": (
        b"POST /x" + HOST + b"Content-Length: 99999\r\nUser-Agent: t\r\n\r\n",
        [("POST /x HTTP/1.1", 413, 29)],
    ),
}


def served(serve: Serve, reader: Reader, **http: Any) -> Server:
    server = serve(application, **http)
    server.site.access = reader.log
    return server


@pytest.mark.parametrize("name", EXCHANGES)
def test_exchanges(name: str, serve: Serve, reader: Callable[[str], Reader]) -> None:
    sent, expected = EXCHANGES[name]
    there = reader("combined")
    server = served(serve, there, body_limit=1000, head_timeout=5.0)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(sent)
        for index, (line, status, _) in enumerate(expected):
            answer = client.answer(line.partition(" ")[0])
            if answer.status == 100:
                sock.sendall(b"abc")
                answer = client.answer()
            assert answer.status == status, index
    server.wait_closed()
    there.log.flush()
    entries = [parts(line) for line in there.lines(len(expected))]
    assert [(line, int(status), int(sent)) for _, line, status, sent, *_ in entries] == expected
    assert {entry[0] for entry in entries} == {"127.0.0.1"}


def test_a_refused_request_has_its_agent(serve: Serve, reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    server = served(serve, there, body_limit=1000)
    with server.connect() as sock:
        sock.sendall(EXCHANGES["too_long"][0])
        assert Client(sock).answer().status == 413
    server.wait_closed()
    there.log.flush()
    assert parts(there.lines(1)[0])[-1] == "t"


def test_a_head_that_never_ends(serve: Serve, reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    server = served(serve, there, head_timeout=0.1)
    with server.connect() as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHo")
        assert Client(sock).answer().status == 408
    with server.connect() as sock:
        sock.sendall(b"GET /gone HTTP/1.1\r\nHo")
        while not any(connection.state.name == "HEAD" for connection in list(server.connections.values())):
            pass
    server.wait_closed()
    there.log.flush()
    found = [parts(line)[1:4] for line in there.lines(2)]
    assert found[0] == ("GET /slow HTTP/1.1", "408", "20")
    assert found[1][0] == "GET /gone HTTP/1.1"
    assert found[1][1] in ("408", "499")


def test_a_client_that_leaves_in_the_middle_of_an_answer(
    serve: Serve, reader: Callable[[str], Reader]
) -> None:
    there = reader("combined")
    server = served(serve, there)
    with server.connect() as sock:
        sock.sendall(b"GET /large" + HOST + b"\r\n")
        assert sock.recv(100)
    server.wait_closed()
    there.log.flush()
    _, line, status, sent, *_ = parts(there.lines(1)[0])
    assert (line, status) == ("GET /large HTTP/1.1", "200")
    assert 0 < int(sent) < 8000000


def test_a_client_that_is_gone_before_the_answer(serve: Serve, reader: Callable[[str], Reader]) -> None:
    there = reader("combined")
    entered, left = threading.Event(), threading.Event()

    def slow(_environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        entered.set()
        assert left.wait(10)
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = serve(slow)
    server.site.access = there.log
    with server.connect() as sock:
        sock.sendall(b"GET /gone" + HOST + b"\r\n")
        assert entered.wait(10)
        # a reset instead of an end: then the answer can't be sent
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    left.set()
    server.wait_closed()
    there.log.flush()
    assert parts(there.lines(1)[0])[1:4] == ("GET /gone HTTP/1.1", "499", "0")


def test_a_large_answer_is_noted_when_it_is_sent(serve: Serve, reader: Callable[[str], Reader]) -> None:
    there = reader("json")
    server = served(serve, there)
    with server.connect() as sock:
        sock.sendall(b"GET /large" + HOST + b"\r\n")
        assert len(Client(sock).answer().body) == 8000000
    server.wait_closed()
    there.log.flush()
    entry = json.loads(there.lines(1)[0])
    assert (entry["bytes"], entry["status"], entry["host"]) == (8000000, 200, "a.test")
    assert 0 < entry["duration"] < 10


def test_behind_a_trusted_proxy_it_is_the_client_s_address(
    serve: Serve, reader: Callable[[str], Reader]
) -> None:
    there = reader("combined")
    server = serve(application)
    server.site.access = there.log
    server.site.proxies = Proxies(("127.0.0.0/8",), "x-forwarded")
    with server.connect() as sock:
        for sender in (b"203.0.113.9", b"2001:db8::7", None):
            forwarded = b"X-Forwarded-For: %b\r\n" % sender if sender else b""
            sock.sendall(b"GET /" + HOST + forwarded + b"\r\n")
            assert Client(sock).answer().status == 200
    server.wait_closed()
    there.log.flush()
    assert [parts(line)[0] for line in there.lines(3)] == ["203.0.113.9", "2001:db8::7", "127.0.0.1"]


def test_off_is_off(serve: Serve) -> None:
    server = serve(application)
    assert server.site.access is None
    with server.connect() as sock:
        sock.sendall(b"GET /" + HOST + b"\r\nBAD\r\n\r\n")
        client = Client(sock)
        assert client.answer().status == 200
        assert client.answer().status == 400
