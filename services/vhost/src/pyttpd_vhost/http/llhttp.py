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
from pyttpd_vhost.http.engine import SPECIAL, Fields, Request

#: Names as clients send them that aren't in SPECIAL in any case: one look-up for each header. Clients choose the
#: names, so the set is bounded; browsers and libraries together use fewer than a hundred.
_OTHER: set[bytes] = set()
_MAX_OTHER = 1024

#: What HTTP/1.1 does anyway; browsers say it all the time. llhttp is ready for another head then.
_KEEP_ALIVE: tuple[Fields, ...] = ([(b"connection", b"keep-alive")], [(b"connection", b"Keep-Alive")])


class LlhttpEngine:
    """`Engine` on llhttp."""

    __slots__ = ("_fields", "_parser", "_special")

    def __init__(self) -> None:
        self._fields: Fields = []
        self._special: Fields = []
        self._parser: HttpRequestParser | None = None

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header: the parser's callback. (The others are absent: the scanner's head has the rest.)"""
        self._fields.append((name, value))
        if name not in _OTHER:
            lower = name.lower()
            if lower in SPECIAL:
                self._special.append((lower, value.rstrip(b" \t")))
            elif len(_OTHER) < _MAX_OTHER:
                _OTHER.add(name)

    def read(self, data: bytes, head: Head) -> Request:
        """See `Engine.read`."""
        parser = self._parser
        used = parser is not None
        if parser is None:
            parser = self._parser = HttpRequestParser(self)
        fields = self._fields = []
        special = self._special = []
        end = head.end
        try:
            parser.feed_data(data if len(data) == end else data[:end])
        except HttpParserUpgrade:
            self._parser = None
        except HttpParserError as error:
            self._parser = None
            if used:
                return self.read(data, head)
            if isinstance(error, HttpParserInvalidMethodError):
                raise Refused(501, "method not served") from None
            raise Refused(400, "malformed head") from None
        if b" \r\n" in data or b"\t\r\n" in data:
            # llhttp leaves the blanks behind a value, which RFC 9112 section 5.1 takes away
            fields = [(name, value.rstrip(b" \t")) for name, value in fields]
        if head.version == 11 and special in _KEEP_ALIVE:
            special = []
        elif special or head.version != 11:
            self._parser = None
        return Request(head, fields, special)

    def chunked(self) -> ChunkedDecoder:
        """See `Engine.chunked`."""
        return ChunkedDecoder()
