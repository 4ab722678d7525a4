"""The default engine: llhttp (Node.js' parser) through httptools.

Theory of operation: httptools can't say where in a buffer a message ended, and a parser that has eaten a part of
the next request can't give it back. So llhttp gets exactly one head, and never a body: Content-Length bodies are
counted, chunked ones decoded by `chunked`, both by the caller. After a head with a body, or one that ends the
connection, the parser waits for bytes it will never see: it is thrown away. After all others (nearly all) it is
ready for the next head, of any connection. Since llhttp has more reasons to refuse what follows than the standards
give (it takes Proxy-Connection for Connection), a head that a used parser refuses is put before a new one.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from pyttpd.head import Head, Refused

from pyttpd_vhost.http.chunked import ChunkedDecoder
from pyttpd_vhost.http.engine import SPECIAL, Fields, Known, Request

#: Names as clients send them that aren't in SPECIAL in any case: one look-up for each header. Clients choose the
#: names, so the set is bounded; browsers and libraries together use fewer than a hundred.
_OTHER: set[bytes] = set()
_MAX_OTHER = 1024

#: What HTTP/1.1 does anyway; browsers say it all the time. llhttp is ready for another head then.
_KEEP_ALIVE: tuple[Fields, ...] = ([(b"connection", b"keep-alive")], [(b"connection", b"Keep-Alive")])


class LlhttpEngine:
    """`Engine` on llhttp."""

    __slots__ = ("_fields", "_parser")

    def __init__(self) -> None:
        self._fields: Fields = []
        self._parser: HttpRequestParser | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header: the parser's callback. (The others are absent: the scanner's head has the rest.)"""
        self._fields.append((name, value))

    def read(self, data: bytes, head: Head) -> Request:
        """See `Engine.read`."""
        end = head.end
        self._feed(data if len(data) == end else data[:end])
        fields = self._fields
        if b" \r\n" in data or b"\t\r\n" in data:
            # llhttp leaves the blanks behind a value, which RFC 9112 section 5.1 takes away
            fields = [(name, value.rstrip(b" \t")) for name, value in fields]
        special = _special(fields)
        if head.version == 11 and special in _KEEP_ALIVE:
            special = []
        elif special or head.version != 11:
            self._parser = None
        return Request(head, fields, special)

    def again(self, data: bytes, end: int, method: bytes, target: bytes, known: Known) -> Request | None:
        """See `Engine.again`."""
        try:
            self._feed(data[:end] + b"\r\n")
        except Refused:
            return None
        if known.request.version != 11:
            self._parser = None
        return Request.of(known, method, target, len(data))

    def _feed(self, head: bytes) -> None:
        """Let llhttp read one head. Raises Refused."""
        parser = self._parser
        used = parser is not None
        if parser is None:
            parser = self._parser = HttpRequestParser(self)
        self._fields = []
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:
            self._parser = None
        except HttpParserError as error:
            self._parser = None
            if used:
                self._feed(head)
            elif isinstance(error, HttpParserInvalidMethodError):
                raise Refused(501, "method not served") from None
            else:
                raise Refused(400, "malformed head") from None

    def chunked(self) -> ChunkedDecoder:
        """See `Engine.chunked`."""
        return ChunkedDecoder()


def _special(fields: Fields) -> Fields:
    """Return those of `fields` that are in SPECIAL, with names in lower case."""
    special: Fields = []
    for name, value in fields:
        if name not in _OTHER:
            lower = name.lower()
            if lower in SPECIAL:
                special.append((lower, value))
            elif len(_OTHER) < _MAX_OTHER:
                _OTHER.add(name)
    return special
