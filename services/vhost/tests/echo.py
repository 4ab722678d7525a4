"""A kind that says what it was asked, for the conformance suite. Its path says what it does:

/             "METHOD path?query"; the body isn't read
/body         the same, a blank, and the body
/swallow      like /body, but whatever goes wrong with the body is swallowed; /swallow/out: in pieces
/fields       each header field, as "name=value;"
/trailers     each trailer of the body
/204 ...      that status, with a body that may not be sent with some
/out          "pieces" in two pieces, without a length, with a trailer
/out/204 ...  the same with that status
/long         more than the length it gives; /short: less; /out/long, /out/short: in pieces
"""

from __future__ import annotations

import contextlib

from pyttpd_vhost.http.body import Body
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import RequestError
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.response import STATUS, Fields, Trailers

PLAIN = Fields([("Content-Type", "text/plain")])
FIVE = Fields([("Content-Type", "text/plain"), ("Content-Length", "5")])


class EchoKind:
    """`Kind`."""

    def handle(self, request: Request, exchange: Exchange) -> None:
        said = (
            request.method.encode() + b" " + request.path + (b"?" + request.query if request.query else b"")
        )
        first, _, last = request.path[1:].partition(b"/")
        try:
            match first:
                case b"body":
                    exchange.respond(STATUS[200], 200, PLAIN, said + b" " + read(exchange.body))
                case b"swallow":
                    with contextlib.suppress(RequestError):
                        said += b" " + read(exchange.body)
                    if last:
                        self.pieces(exchange, last)
                    else:
                        exchange.respond(STATUS[200], 200, PLAIN, said)
                case b"fields":
                    exchange.respond(STATUS[200], 200, PLAIN, pairs(request.fields))
                case b"trailers":
                    read(exchange.body)
                    assert exchange.body is not None
                    exchange.respond(STATUS[200], 200, PLAIN, pairs(exchange.body.trailers))
                case b"long":
                    exchange.respond(STATUS[200], 200, FIVE, b"1234567")
                case b"short":
                    exchange.respond(STATUS[200], 200, FIVE, b"123")
                case b"out":
                    self.pieces(exchange, last)
                case _:
                    code = int(first) if first.isdigit() else 200
                    exchange.respond(STATUS[code], code, PLAIN, said)
        except RequestError as error:
            exchange.fail(error.status)

    def pieces(self, exchange: Exchange, what: bytes) -> None:
        code = int(what) if what.isdigit() else 200
        fields = FIVE if what in (b"long", b"short") else PLAIN
        pieces = {b"long": (b"123", b"4567"), b"short": (b"12", b"3")}.get(what, (b"pie", b"ces"))
        exchange.begin(STATUS[code], code, fields, pieces[0])
        exchange.write(pieces[1])
        exchange.end(Trailers([("X-Sum", "1")]))


def read(body: Body | None) -> bytes:
    content = b""
    while body is not None and (piece := body.read(65536)):
        content += piece
    return content


def pairs(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b=%b;" % pair for pair in fields)
