"""Whatever a connection brings: both engines answer it with the same bytes, however it is cut."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyttpd.config.shares import HttpSettings

from conformance.messages import streams
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import RequestError
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.response import STATUS
from pyttpd_vhost.site import Site
from support.rawhttp import Client

from .conftest import ListLog, Server, make_share
from .echo import PLAIN, pairs, read

#: Those of conformance/heads.py that are names.
HOSTS = ("a", "a.example", "127.0.0.1", "[2001:db8::1]", "a_b-c", "xn--bcher-kva.example")
#: What differs for good reasons: the time, and whether a body that was expected had come already.
VARYING = re.compile(rb"Date: [^\r]*\r\n|HTTP/1\.1 100 Continue\r\n\r\n")


class ReadingKind:
    """Says all that it was asked, the body included."""

    def handle(self, request: Request, exchange: Exchange) -> None:
        try:
            body = read(exchange.body)
            trailers = exchange.body.trailers if exchange.body is not None else []
        except RequestError as error:
            exchange.fail(error.status)
            return
        fields = [
            (name, value.lower() if name.lower() == b"transfer-encoding" else value)
            for name, value in request.fields
        ]
        said = [request.method.encode(), request.target, pairs(fields), body, pairs(trailers)]
        exchange.respond(STATUS[200], 200, PLAIN, b" ".join(said))


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, Server]]:
    with contextlib.ExitStack() as stack:
        found = {}
        for engine in ("llhttp", "h11"):
            site = Site(make_share(hosts=HOSTS, foreign=(), http=HttpSettings(engine=engine)), ListLog())
            site.kind = ReadingKind()
            server = found[engine] = Server(site)
            server.start()
            stack.callback(server.stop)
            ask(server, [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])  # it has all that it will leave open
            server.wait_closed()
        yield found


def ask(server: Server, pieces: list[bytes]) -> bytes:
    """Send, close our side, and return all that comes, but for what varies."""
    got = b""
    with server.connect() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                sock.sendall(piece)
            Client(sock).close()
        while data := sock.recv(65536):
            got += data
    return VARYING.sub(b"", got)


@settings(max_examples=150, deadline=None)
@given(streams(), st.lists(st.integers(0, 400), max_size=6))
def test_any_stream(servers: dict[str, Server], data: bytes, cuts: list[int]) -> None:
    places = sorted({0, *(cut for cut in cuts if cut < len(data)), len(data)})
    pieces = [data[start:end] for start, end in pairwise(places)]
    whole = ask(servers["llhttp"], [data])
    assert ask(servers["llhttp"], pieces) == whole
    assert ask(servers["h11"], [data]) == whole
    assert ask(servers["h11"], pieces) == whole
