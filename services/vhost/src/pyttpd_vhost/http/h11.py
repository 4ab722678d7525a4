"""The strict reference engine: h11.

Theory of operation: h11 judges what others have measured. It gets exactly one head, and its reading of it must be
the scanner's: method, target, version, as many fields as lines, and whether a body follows. Of a chunked body it gets
exactly the bytes that `chunked` has taken, and must see the same data and the same end in them. So a message passes
only if both readers accept it and agree, and how far it goes is never h11's to say: what was read ahead stays with the
caller.

Reading a head takes twenty times as long as with llhttp. It is for those who would rather have a second opinion, and
for our tests.
"""

from __future__ import annotations

import re

import h11

from pyttpd.head import Head, Refused

from pyttpd_vhost.http.chunked import ChunkedDecoder, State
from pyttpd_vhost.http.engine import SPECIAL, Known, Request
from pyttpd_vhost.http.errors import RequestError

#: h11 need not bound what it keeps: both get bytes that somebody has bounded before.
_UNBOUNDED = 1 << 30

#: Before a chunk extension; in a quoted string it is no different to h11, which looks into none.
_BLANKS = re.compile(rb"[ \t]++;")

#: What stands before a chunked body, so that h11 reads one: the real head was read by itself.
_BEFORE_CHUNKS = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


class H11Engine:
    """`Engine` on h11."""

    __slots__ = ()

    def read(self, data: bytes, head: Head) -> Request:
        """See `Engine.read`."""
        # h11 refuses the empty line before a request line, which RFC 9112 section 2.2 wants ignored
        lines = data[2 if data[:2] == b"\r\n" else 0 : head.end]
        try:
            connection, seen = _receive(lines)
            whole = type(connection.next_event()) is h11.EndOfMessage
        except h11.RemoteProtocolError as error:
            raise Refused(error.error_status_hint, "h11 refuses the head") from None
        version = b"1.1" if head.version == 11 else b"1.0"
        if (seen.method, seen.target, seen.http_version) != (head.method, head.target, version):
            raise Refused(400, "h11 reads another request line")
        fields = seen.headers.raw_items()
        if len(fields) != lines.count(b"\r\n") - 2:  # the request line and the empty one are no fields
            raise Refused(400, "h11 reads other fields")
        special = [(name, value) for name, value in seen.headers if name in SPECIAL]
        request = Request(head, fields, special)
        if whole is not (request.length == 0) or connection.trailing_data[0]:
            raise Refused(400, "h11 sees another end of the message")
        return request

    def again(self, data: bytes, end: int, method: bytes, target: bytes, known: Known) -> Request | None:
        """See `Engine.again`. This engine reads everything, always."""
        return None

    def chunked(self) -> ChunkedDecoder:
        """See `Engine.chunked`."""
        return CheckedDecoder()


class CheckedDecoder(ChunkedDecoder):
    """A decoder whose every step h11 must agree to.

    But for blanks before the semicolon of a chunk extension: RFC 9112 section 7.1.1 wants them read (BWS), h11 has no
    place for them. So it sees those lines without them.
    """

    __slots__ = ("_blank", "_connection")

    def __init__(self) -> None:
        super().__init__()
        self._connection, _ = _receive(_BEFORE_CHUNKS)
        #: Where lines with such blanks are in what is being fed.
        self._blank: list[tuple[int, int]] = []

    def _match(self, data: bytes, start: int, end: int) -> re.Match[bytes] | None:
        match = super()._match(data, start, end)
        if match is not None and _BLANKS.search(data, start, match.end()):
            self._blank.append(match.span())
        return match

    def feed(self, data: bytes, size: int) -> tuple[bytes, int]:
        """See `ChunkedDecoder.feed`."""
        self._blank.clear()
        piece, used = super().feed(data, size)
        if used:
            seen = b""
            ended = False
            try:
                self._connection.receive_data(self._without_blanks(data[:used]))
                while (event := self._connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                    if type(event) is h11.Data:
                        seen += event.data
                    else:
                        ended = type(event) is h11.EndOfMessage
            except h11.RemoteProtocolError:
                raise RequestError(400, "h11 refuses the chunked body") from None
            if seen != piece or ended is not (self.state is State.DONE):
                raise RequestError(400, "h11 reads another chunked body")
        return piece, used

    def _without_blanks(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        at = 0
        for start, end in self._blank:
            parts += data[at:start], _BLANKS.sub(b";", data[start:end])
            at = end
        return b"".join((*parts, data[at:]))


def _receive(head: bytes) -> tuple[h11.Connection, h11.Request]:
    """Give a head to h11. Raises h11.RemoteProtocolError."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_UNBOUNDED)
    connection.receive_data(head)
    seen = connection.next_event()
    if type(seen) is not h11.Request:
        raise h11.RemoteProtocolError("h11 wants more than the head")
    return connection, seen
