"""Responses: header fields checked, and a whole answer written, with no socket in it; then a request from the socket to
the answer in it (a socket pair, both ends in this process), by both engines and for heads as they are.
"""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path

import pytest
from micro.heads import BROWSER, WRK
from pytest_benchmark.fixture import BenchmarkFixture
from standalone import make_site

from pyttpd_vhost.http.connection import Connection
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.heads import HeadReader
from pyttpd_vhost.http.llhttp import LlhttpEngine
from pyttpd_vhost.http.response import Fields
from pyttpd_vhost.http.stream import Stream

BENCH = Path(__file__).resolve().parent.parent
HELLO = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", "13")]
PAGE = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("X-Frame-Options", "DENY"),
    ("Content-Length", "13"),
    ("Vary", "Cookie"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]


NULL = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


class Sink(socket.socket):
    """Takes everything, at once, and forgets it."""

    def fileno(self) -> int:
        return NULL


@pytest.mark.parametrize("what", ["hello", "page", "page with a new cookie"])
def bench_fields(benchmark: BenchmarkFixture, what: str) -> None:
    numbers = count()

    def check() -> Fields:
        if what == "page with a new cookie":
            return Fields([*PAGE, ("Set-Cookie", f"session={next(numbers):032x}; Path=/; HttpOnly")])
        return Fields(HELLO if what == "hello" else PAGE)

    assert benchmark(check).length == 13


@pytest.mark.parametrize("size", [13, 8 * 1024])
def bench_respond(benchmark: BenchmarkFixture, size: int) -> None:
    site = make_site("wsgi", "hello:app", BENCH, BENCH)
    request = HeadReader(LlhttpEngine(), 32768).read(WRK)
    assert request is not None
    content, headers = bytes(size), [HELLO[0], ("Content-Length", str(size))]
    with Sink(socket.AF_UNIX, socket.SOCK_STREAM) as sink:
        stream = Stream(sink, site)
        exchange = Exchange(stream, site, ("127.0.0.1", "1"))

        def respond() -> None:
            exchange.start(request, None, keep=True)
            exchange.respond("200 OK", 200, Fields(headers), content)

        benchmark(respond)
    assert stream.sent > size


HEADS = {
    "wrk's": WRK.replace(b"127.0.0.1:8080", b"localhost"),
    "wrk's, no two alike": WRK.replace(b"127.0.0.1:8080", b"localhost").replace(b"GET /", b"GET /?%d"),
    "a browser's": BROWSER.replace(b"blog.example:8080", b"localhost"),
}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("engine", ["llhttp", "h11"])
def bench_request(benchmark: BenchmarkFixture, engine: str, head: str) -> None:
    site = make_site("wsgi", "hello:app", BENCH, BENCH, engine)
    data, numbers = HEADS[head], count()
    ours, client = socket.socketpair()
    with ours, client:
        ours.setblocking(False)
        connection = Connection(ours, ("127.0.0.1", 1), "localhost", site)

        def request() -> bytes:
            client.send(data % next(numbers) if b"%d" in data else data)
            site.turn = object()
            connection.on_readable()
            return client.recv(65536)

        answer = benchmark(request)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
    assert answer.endswith(b"\r\n\r\nHello, world!"), answer
