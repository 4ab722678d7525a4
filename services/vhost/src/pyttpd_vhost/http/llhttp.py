"""The default engine: llhttp (Node.js' parser) through httptools.

Theory of operation: httptools can't say where in a buffer a message ended, and a parser that has eaten a part
of the next request can't give it back. So llhttp gets exactly one head, and never a body: Content-Length
bodies are counted, chunked ones decoded by `chunked`, both by the caller. After a head with a body, or one
that ends the connection, the parser waits for bytes it will never see: it is thrown away. After all others
(nearly all) it is ready for the next head, of any connection.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from pyttpd.head import Head, Refused

from pyttpd_vhost.http.chunked import ChunkedDecoder
from pyttpd_vhost.http.engine import FRAMING, Headers, Request

#: Lower-case forms of names as clients send them: a dict look-up costs less than lower() and a second object
#: per header.
_LOWER: dict[bytes, bytes] = {}
#: Clients choose the names, so the table is bounded; browsers and libraries together use fewer than a
#: hundred.
_MAX_LOWER = 1024


class LlhttpEngine:
    """`Engine` on llhttp."""

    __slots__ = ("_headers", "_parser", "_special")

    def __init__(self) -> None:
        self._headers: Headers = []
        self._special: Headers = []
        self._parser: HttpRequestParser | None = None

    # The parser's callbacks. (on_url is absent: the scanner's head already has the target.)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header."""
        lower = _LOWER.get(name)
        if lower is None:
            lower = name.lower()
            if len(_LOWER) < _MAX_LOWER:
                _LOWER[name] = lower
        header = (lower, value.rstrip(b" \t"))  # llhttp leaves what RFC 9112 section 5.1 takes away
        self._headers.append(header)
        if lower in FRAMING:
            self._special.append(header)

    # Engine

    def read(self, data: bytes, head: Head) -> Request:
        """See `Engine.read`."""
        parser = self._parser
        if parser is None:
            parser = self._parser = HttpRequestParser(self)
        headers = self._headers = []
        special = self._special = []
        end = head.end
        try:
            parser.feed_data(data if len(data) == end else data[:end])
        except HttpParserUpgrade:
            self._parser = None
        except HttpParserInvalidMethodError:
            self._parser = None
            raise Refused(501, "method not served") from None
        except HttpParserError:
            self._parser = None
            raise Refused(400, "malformed head") from None
        if special or head.version != 11:
            self._parser = None
        return Request(head, headers, special)

    def chunked(self) -> ChunkedDecoder:
        """See `Engine.chunked`."""
        return ChunkedDecoder()
