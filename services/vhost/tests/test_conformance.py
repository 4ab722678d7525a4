"""The conformance suite (tests/conformance/cases.py) on both engines: whole, byte by byte, and in random pieces.

Over real sockets, against the real Connection, with a kind that echoes (echo.py). So no answer may depend on how the
bytes were cut, and none on the engine.
"""

from __future__ import annotations

import contextlib
import random
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

import pytest

from pyttpd.config.shares import HttpSettings

from conformance.cases import (
    BODY_LIMIT,
    HEAD_LIMIT,
    OPEN,
    PROBE,
    SECTIONS,
    WAITING,
    Case,
    H,
    chunked,
    head,
    post,
)
from pyttpd_vhost.site import Site

from .conftest import Client, ListLog, Server, make_share
from .echo import EchoKind

ROWS = [(title, case) for title, cases in SECTIONS.items() for case in cases]
#: What is longer is cut into so many pieces, not into bytes.
MAX_PIECES = 5000

DATE = re.compile(r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")


@pytest.fixture(scope="module", params=["llhttp", "h11"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def server(engine: str) -> Iterator[Server]:
    settings = HttpSettings(body_limit=BODY_LIMIT, head_limit=HEAD_LIMIT, idle_timeout=5.0, engine=engine)
    site = Site(make_share(http=settings), ListLog())
    site.kind = EchoKind()
    server = Server(site)
    server.start()
    with server.connect() as sock:  # it serves, and has all that it will leave open
        sock.sendall(PROBE)
        assert Client(sock).answer().status == 200
    server.wait_closed()
    yield server
    server.stop()


def check(server: Server, case: Case, pieces: Iterable[bytes]) -> None:
    with server.connect() as sock:
        client = Client(sock)
        try:
            for piece in pieces:
                sock.sendall(piece)
            if case.end is WAITING:
                client.close()
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has refused, lingered and gone: what it said is still to be read
        for expected in case.answers:
            answer = client.answer(case.method)
            assert answer.status == expected.status
            if expected.body is not None:
                assert answer.body == expected.body
            if answer.status >= 200:
                assert DATE.fullmatch(answer["Date"])
            for name, value in expected.headers.items():
                assert [there for key, there in answer.headers if key == name] == (
                    [] if value is None else [value]
                )
            assert answer.trailers == list(expected.trailers)
        if case.end is OPEN:
            sock.sendall(PROBE)
            assert client.answer().body == b"GET /probe"
            assert client.data == b""
        else:
            assert client.at_end()
    server.wait_closed()


def whole(case: Case) -> Iterable[bytes]:
    return [case.raw]


def byte_by_byte(case: Case) -> Iterable[bytes]:
    step = 1 + len(case.raw) // MAX_PIECES * 1000
    return (case.raw[at : at + step] for at in range(0, len(case.raw), step))


def random_pieces(case: Case) -> Iterable[bytes]:
    rng = random.Random(case.name)
    cuts = sorted(rng.sample(range(len(case.raw) + 1), min(len(case.raw), rng.randrange(1, 8))))
    return (case.raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(case.raw)], strict=True))


@pytest.mark.parametrize(("title", "case"), ROWS, ids=[f"{title}: {case.name}" for title, case in ROWS])
def test_row(server: Server, engine: str, title: str, case: Case) -> None:
    for cut in (whole, byte_by_byte, random_pieces):
        if cut is whole or not case.together:
            try:
                check(server, case, cut(case))
            except AssertionError as fault:
                fault.add_note(f"{engine}, {cut.__name__}")
                raise


def test_names_are_unique() -> None:
    for title, cases in SECTIONS.items():
        assert len({case.name for case in cases}) == len(cases), title


@pytest.mark.parametrize("path", ["/short", "/out/short"])
def test_a_body_shorter_than_said_is_cut_by_the_end(server: Server, path: str) -> None:
    log = server.site.log
    assert isinstance(log, ListLog)
    log.lines.clear()
    with server.connect() as sock:
        sock.sendall(head(f"GET {path} HTTP/1.1", H) + PROBE)
        data = b""
        while more := sock.recv(65536):
            data += more
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nContent-Length: 5\r\n" in data
    assert data.endswith(b"\r\n\r\n123")
    assert "response shorter than its Content-Length" in log.events()


@pytest.mark.parametrize(("chosen", "other"), [("llhttp", "h11"), ("h11", "httptools")])
def test_only_the_chosen_engine_is_imported(chosen: str, other: str) -> None:
    program = f"""
import sys
from pyttpd_vhost import site
site._engine({chosen!r})
sys.exit({other!r} in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_what_is_not_finished_gets_408(engine: str) -> None:
    """All at once, so that the deadline is waited for once."""
    settings = HttpSettings(head_timeout=0.5, read_timeout=0.5, engine=engine)
    site = Site(make_share(http=settings), ListLog())
    site.kind = EchoKind()
    server = Server(site)
    server.start()
    raws = [case.raw for case in SECTIONS["not finished"] if case.raw]
    raws += [raw[:-1] for raw in (post(b"12", "Content-Length: 2"), chunked(b"1\r\nx\r\n0\r\n\r\n"))]
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        clients = []
        for before in (b"", PROBE):
            for raw in raws:
                client = Client(stack.enter_context(server.connect()))
                client.sock.sendall(before + raw)
                if before:
                    assert client.answer().status == 200
                clients.append(client)
        for client in clients:
            answer = client.answer()
            assert (answer.status, answer["Connection"]) == (408, "close")
            assert client.at_end()


# ---- families: what tools that look for smuggling try, any byte at a place ------------------------------------------

SMUGGLED = head("GET /smuggled HTTP/1.1", H)
REFUSED = [(400, b"400 Bad Request\n")]
#: What a field is read as, said once more in another way.
LENGTH = re.compile(r"(?i:content-length):[ \t]*([0-9]{1,18})[ \t]*")
HARMLESS = re.compile(
    r"(?!(?i:content-length|transfer-encoding|host):)[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*"
)


def ask(server: Server, raw: bytes) -> list[tuple[int, bytes]]:
    """Send it, close our side, and read all answers."""
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(raw)
        client.close()
        answers = []
        while not client.at_end():
            answer = client.answer()
            answers.append((answer.status, answer.body))
        return answers


@pytest.mark.parametrize(
    "field",
    [
        *("Transfer-Encoding:%cchunked", "Transfer-Encoding%c: chunked", "%cTransfer-Encoding: chunked"),
        *("Transfer-Encoding: chunked%c", "Transfer%cEncoding: chunked", "X: y%cTransfer-Encoding: chunked"),
    ],
)
def test_a_transfer_encoding_with_any_byte_in_it_smuggles_nothing(server: Server, field: str) -> None:
    """Beside a length: refused, unless it is another field; then the length counts."""
    body = b"0\r\n\r\n" + SMUGGLED
    for code in range(256):
        there = field % chr(code)
        answers = ask(server, head("POST /body HTTP/1.1", H, there, f"Content-Length: {len(body)}") + body)
        assert answers == ([(200, b"POST /body " + body)] if HARMLESS.fullmatch(there) else REFUSED), there


@pytest.mark.parametrize(
    "field",
    [
        *("Content-Length:%c5", "Content-Length%c: 5", "%cContent-Length: 5", "Content-Length: 5%c"),
        *("Content-Length: %c5", "Content%cLength: 5", "X: y%cContent-Length: 5"),
    ],
)
def test_a_length_with_any_byte_in_it_smuggles_nothing(server: Server, field: str) -> None:
    sent = b"hello" + SMUGGLED + b"x" * 100
    for code in range(256):
        there = field % chr(code)
        first, *others = ask(server, head("POST /body HTTP/1.1", H, there) + sent)
        if match := LENGTH.fullmatch(there):
            assert first == (200, b"POST /body " + sent[: int(match[1])]), there
            assert ((200, b"GET /smuggled") in others) is (match[1].lstrip("0") == "5"), there
        elif HARMLESS.fullmatch(there):
            assert [first, *others] == [(200, b"POST /body "), (501, b"501 Not Implemented\n")], there
        else:
            assert [first, *others] == REFUSED, there


@pytest.mark.parametrize(
    "chunks",
    [
        *(b"%c5\r\nhello\r\n0\r\n\r\n", b"5%c\r\nhello\r\n0\r\n\r\n", b"5\r\nhello%c\r\n0\r\n\r\n"),
        *(b"5\r\nhello\r%c\n0\r\n\r\n", b"5\r\nhello\r\n0%c\r\n\r\n", b"5\r\nhello\r\n0\r\n%c\r\n"),
    ],
)
def test_chunks_with_any_byte_in_them_smuggle_nothing(server: Server, chunks: bytes) -> None:
    for code in range(256):
        there = chunks % code
        answers = ask(server, head("POST /body HTTP/1.1", H, "Transfer-Encoding: chunked") + there + SMUGGLED)
        if there.startswith((b"05", b"5\r\nhello\r\n00")):
            assert answers == [(200, b"POST /body hello"), (200, b"GET /smuggled")]
        else:
            assert [status for status, _ in answers] == [400], there


def test_proxy_connection_leaves_no_trace(server: Server) -> None:
    """llhttp takes it for Connection, and would refuse the next head, whoever sends it."""
    for _ in range(3):
        assert ask(server, head("GET / HTTP/1.1", H, "Proxy-Connection: close")) == [(200, b"GET /")]
