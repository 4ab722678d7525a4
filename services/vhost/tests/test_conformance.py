"""Raw requests and what must come back, whole and byte by byte: one table for every engine.

A case: the bytes, the answers (status, and the body unless None), and the end. OPEN: the connection serves a
further request, so the boundary was right. CLOSED: an orderly end (no reset) without a further byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, NamedTuple

import pytest

from .conftest import Client, Serve, Server


class End(Enum):
    OPEN = "open"
    CLOSED = "closed"


OPEN, CLOSED = End


class Case(NamedTuple):
    name: str
    raw: bytes
    answers: Sequence[tuple[int, bytes | None]]
    end: End
    method: str = "GET"


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Say what was asked; read the body only below /body."""
    path = environ["PATH_INFO"] or environ["REQUEST_URI"]
    body = environ["wsgi.input"].read() if path == "/body" else b""
    query = "?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else ""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REQUEST_METHOD']} {path}{query} ".encode("latin-1") + body]


H = b"Host: a.test\r\n"
PROBE = b"GET /probe HTTP/1.1\r\n" + H + b"\r\n"

OK = [(200, b"GET / ")]
REFUSED = [(400, b"400 Bad Request\n")]

CASES = [
    # keep-alive and close, both versions
    Case("get", b"GET / HTTP/1.1\r\n" + H + b"\r\n", OK, OPEN),
    Case("close", b"GET / HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n", OK, CLOSED),
    Case("close_in_a_list", b"GET / HTTP/1.1\r\n" + H + b"Connection: x, Close\r\n\r\n", OK, CLOSED),
    Case(
        "close_and_keep_alive",
        b"GET / HTTP/1.1\r\n" + H + b"Connection: keep-alive\r\nConnection: close\r\n\r\n",
        OK,
        CLOSED,
    ),
    Case("1_0", b"GET / HTTP/1.0\r\n\r\n", OK, CLOSED),
    Case("1_0_with_host", b"GET / HTTP/1.0\r\n" + H + b"\r\n", OK, CLOSED),
    Case("1_0_keep_alive", b"GET / HTTP/1.0\r\n" + H + b"Connection: keep-alive\r\n\r\n", OK, OPEN),
    # targets
    Case("query", b"GET /a?b=c?d HTTP/1.1\r\n" + H + b"\r\n", [(200, b"GET /a?b=c?d ")], OPEN),
    Case("encoded", b"GET /%41%2f%3f HTTP/1.1\r\n" + H + b"\r\n", [(200, b"GET /A/? ")], OPEN),
    Case(
        "absolute", b"GET http://a.test/x?y HTTP/1.1\r\nHost: other.test\r\n\r\n", [(200, b"GET /x?y ")], OPEN
    ),
    Case("absolute_without_path", b"GET http://a.test HTTP/1.1\r\n" + H + b"\r\n", OK, OPEN),
    Case(
        "absolute_with_query_only",
        b"GET http://a.test?x=/ HTTP/1.1\r\n" + H + b"\r\n",
        [(200, b"GET /?x=/ ")],
        OPEN,
    ),
    Case("asterisk", b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n", [(200, b"OPTIONS * ")], OPEN),
    Case("connect", b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\n\r\n", [(501, None)], CLOSED),
    # hosts
    Case("other_host", b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n", [(421, None)], CLOSED),
    Case(
        "other_host_later",
        PROBE + b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n" + PROBE,
        [(200, None), (421, None)],
        CLOSED,
    ),
    Case("wildcard_host", b"GET / HTTP/1.1\r\nHost: x.wild.test\r\n\r\n", OK, OPEN),
    Case("foreign_host", b"GET / HTTP/1.1\r\nHost: theirs.wild.test\r\n\r\n", [(421, None)], CLOSED),
    Case("foreign_wildcard", b"GET / HTTP/1.1\r\nHost: x.deep.wild.test\r\n\r\n", [(421, None)], CLOSED),
    Case("no_host", b"GET / HTTP/1.1\r\n\r\n", REFUSED, CLOSED),
    Case("two_hosts", b"GET / HTTP/1.1\r\n" + H + H + b"\r\n", REFUSED, CLOSED),
    # bodies
    Case(
        "post",
        b"POST /body HTTP/1.1\r\n" + H + b"Content-Length: 5\r\n\r\nhello",
        [(200, b"POST /body hello")],
        OPEN,
    ),
    Case(
        "post_empty",
        b"POST /body HTTP/1.1\r\n" + H + b"Content-Length: 0\r\n\r\n",
        [(200, b"POST /body ")],
        OPEN,
    ),
    Case(
        "length_in_blanks",
        b"POST /body HTTP/1.1\r\n" + H + b"Content-Length: \t5 \t\r\n\r\nhello",
        [(200, b"POST /body hello")],
        OPEN,
    ),
    Case(
        "chunked_in_blanks",
        b"POST /body HTTP/1.1\r\n" + H + b"Transfer-Encoding:  chunked \r\n\r\n0\r\n\r\n",
        [(200, b"POST /body ")],
        OPEN,
    ),
    Case(
        "get_with_body",
        b"GET /body HTTP/1.1\r\n" + H + b"Content-Length: 2\r\n\r\nhi",
        [(200, b"GET /body hi")],
        OPEN,
    ),
    Case(
        "chunked",
        b"POST /body HTTP/1.1\r\n"
        + H
        + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: x\r\n\r\n",
        [(200, b"POST /body hello world")],
        OPEN,
    ),
    Case(
        "body_not_read",
        b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 5\r\n\r\nhello" + PROBE,
        [(200, None), (200, b"GET /probe ")],
        OPEN,
    ),
    Case(
        "chunked_not_read",
        b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + PROBE,
        [(200, None), (200, b"GET /probe ")],
        OPEN,
    ),
    Case("pipeline", PROBE * 3, [(200, b"GET /probe ")] * 3, OPEN),
    Case("long_pipeline", PROBE * 50, [(200, b"GET /probe ")] * 50, OPEN),
    Case(
        "pipeline_after_bodies",
        (b"POST /body HTTP/1.1\r\n" + H + b"Content-Length: 1\r\n\r\nx" + PROBE) * 2,
        [(200, b"POST /body x"), (200, b"GET /probe ")] * 2,
        OPEN,
    ),
    Case("after_close_nothing", b"GET / HTTP/1.1\r\n" + H + b"Connection: close\r\n\r\n" + PROBE, OK, CLOSED),
    # ignored: Upgrade; served as if it weren't there
    Case(
        "upgrade",
        b"GET / HTTP/1.1\r\n" + H + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + PROBE,
        [*OK, (200, b"GET /probe ")],
        OPEN,
    ),
    Case(
        "upgrade_with_body",
        b"POST /body HTTP/1.1\r\n"
        + H
        + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi",
        [(200, b"POST /body hi")],
        OPEN,
    ),
    Case("empty_line_first", b"\r\nGET / HTTP/1.1\r\n" + H + b"\r\n", OK, OPEN),
    Case("head", b"HEAD / HTTP/1.1\r\n" + H + b"\r\n", [(200, b"")], OPEN, "HEAD"),
    # what could smuggle
    Case(
        "length_twice",
        b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx" + PROBE,
        REFUSED,
        CLOSED,
    ),
    Case(
        "length_list", b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 1, 1\r\n\r\nx" + PROBE, REFUSED, CLOSED
    ),
    Case(
        "length_signed", b"POST / HTTP/1.1\r\n" + H + b"Content-Length: +1\r\n\r\nx" + PROBE, REFUSED, CLOSED
    ),
    Case("length_hex", b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 0x1\r\n\r\nx" + PROBE, REFUSED, CLOSED),
    Case(
        "length_huge",
        b"POST / HTTP/1.1\r\n" + H + b"Content-Length: 99999999999999999999\r\n\r\n",
        REFUSED,
        CLOSED,
    ),
    Case(
        "length_and_chunked",
        b"POST / HTTP/1.1\r\n"
        + H
        + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        + PROBE,
        REFUSED,
        CLOSED,
    ),
    Case(
        "chunked_twice",
        b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        CLOSED,
    ),
    Case(
        "identity", b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: identity\r\n\r\n", [(400, None)], CLOSED
    ),
    Case(
        "gzip_chunked",
        b"POST / HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        [(501, None)],
        CLOSED,
    ),
    Case(
        "chunked_1_0",
        b"POST / HTTP/1.0\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        REFUSED,
        CLOSED,
    ),
    Case("blank_before_colon", b"POST / HTTP/1.1\r\n" + H + b"Content-Length : 1\r\n\r\nx", REFUSED, CLOSED),
    Case("obs_fold", b"GET / HTTP/1.1\r\n" + H + b"A: b\r\n c\r\n\r\n", REFUSED, CLOSED),
    Case("bare_lf", b"GET / HTTP/1.1\n" + H + b"\r\n", REFUSED, CLOSED),
    Case("bare_cr", b"GET / HTTP/1.1\r\n" + H + b"A: b\rc\r\n\r\n", REFUSED, CLOSED),
    Case("nul", b"GET / HTTP/1.1\r\n" + H + b"A: \0\r\n\r\n", REFUSED, CLOSED),
    *(
        Case(
            f"chunk_{name}",
            b"POST /body HTTP/1.1\r\n" + H + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + PROBE,
            REFUSED,
            CLOSED,
        )
        for name, chunks in {
            "size_signed": b"+1\r\nx\r\n0\r\n\r\n",
            "size_0x": b"0x1\r\nx\r\n0\r\n\r\n",
            "size_empty": b"\r\nx\r\n0\r\n\r\n",
            "size_huge": b"1" * 17 + b"\r\nx\r\n0\r\n\r\n",
            "size_blank": b"1 \r\nx\r\n0\r\n\r\n",
            "size_bare_lf": b"1\nx\r\n0\r\n\r\n",
            "extension_bare_cr": b"1;a\rb\r\nx\r\n0\r\n\r\n",
            "extension_endless": b"1;" + b"a" * 300 + b"\r\nx\r\n0\r\n\r\n",
            "data_too_long": b"1\r\nxy\r\n0\r\n\r\n",
            "trailer_bad": b"1\r\nx\r\n0\r\nbad trailer\r\n\r\n",
            "trailer_bare_lf": b"1\r\nx\r\n0\r\na: b\n\r\n",
            "trailers_endless": b"1\r\nx\r\n0\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
        }.items()
    ),
    # versions, methods, expectations, sizes
    Case("version_2", b"GET / HTTP/2.0\r\n" + H + b"\r\n", [(505, None)], CLOSED),
    Case("version_0_9", b"GET /\r\n", [(400, None)], CLOSED),
    Case("unknown_method", b"FROB / HTTP/1.1\r\n" + H + b"\r\n", [(501, None)], CLOSED),
    Case("unknown_expectation", b"GET / HTTP/1.1\r\n" + H + b"Expect: cake\r\n\r\n", [(417, None)], CLOSED),
    Case(
        "head_too_large",
        b"GET / HTTP/1.1\r\n" + H + b"A: " + b"a" * 40000 + b"\r\n\r\n",
        [(431, None)],
        CLOSED,
    ),
    Case("line_too_long", b"GET /" + b"a" * 40000 + b" HTTP/1.1\r\n" + H + b"\r\n", [(414, None)], CLOSED),
    Case(
        "body_too_large",
        b"POST /body HTTP/1.1\r\n" + H + b"Content-Length: 1001\r\n\r\n" + b"x" * 1001,
        [(413, None)],
        CLOSED,
    ),
    Case(
        "chunked_too_large",
        b"POST /body HTTP/1.1\r\n"
        + H
        + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n"
        + b"x" * 1001
        + b"\r\n0\r\n\r\n",
        [(413, None)],
        CLOSED,
    ),
    Case("garbage", bytes(range(256)), REFUSED, CLOSED),
    Case("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", REFUSED, CLOSED),
]


@pytest.fixture(params=["llhttp", "h11"])
def server(serve: Serve, request: pytest.FixtureRequest) -> Server:
    return serve(echo, body_limit=1000, idle_timeout=5.0, engine=request.param)


def check(server: Server, case: Case, pieces: Iterable[bytes]) -> None:
    with server.connect() as sock:
        client = Client(sock)
        for piece in pieces:
            try:
                sock.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break  # it has refused, lingered and gone: what it said is still to be read
        for status, body in case.answers:
            answer = client.answer(case.method)
            assert answer.status == status
            if body is not None:
                assert answer.body == body
        if case.end is OPEN:
            sock.sendall(PROBE)
            assert client.answer().body == b"GET /probe "
            assert client.data == b""
        else:
            assert client.at_end()
    server.wait_closed()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_whole(server: Server, case: Case) -> None:
    check(server, case, [case.raw])


#: A body that nobody reads saves the connection only if it is there when the answer is.
TOGETHER = {"body_not_read", "chunked_not_read"}


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in TOGETHER], ids=lambda case: case.name)
def test_byte_by_byte(server: Server, case: Case) -> None:
    if len(case.raw) > 5000:
        step = 1000
    else:
        step = 1
    check(server, case, (case.raw[at : at + step] for at in range(0, len(case.raw), step)))
