"""Chunked transfer coding (RFC 9112 section 7.1), decoded without I/O.

Theory of operation: the decoder is a table of three line states and one data state. Lines (chunk size, the
CRLF after the data, trailers) are consumed whole or not at all; data is handed out as slices, never
collected. A chunk that is there as a whole is taken in one step, without its states. Nothing is consumed after the
end of the message: what follows belongs to the next request.

The grammar to the letter, and no more of it than its limits: no blanks around a size or at a line's end, extensions
as section 7.1.1 has them (blanks within them included), sizes of at most 15 hex digits, no bare CR or LF, no control
characters. Extensions are dropped; trailers are kept for the kind, apart from the head's fields, so that nothing in
them changes what was decided by these. Trailers that would try (FORBIDDEN) are an error (RFC 9110 section 6.5.1).
"""

from __future__ import annotations

import enum
import re

from pyttpd_vhost.http.errors import RequestError

#: A size line with its extensions. Nobody sends more; the loop of "1;aaaa..." chunks would cost us more than
#: the sender.
MAX_SIZE_LINE = 256
#: What a body may carry around its data beyond ALLOWANCE bytes a chunk and twice the data: enough for signatures on
#: chunks of any sensible size, too little for who sends extensions instead of data (Go's bounds, after
#: CVE-2023-39326).
MAX_EXCESS = 16384
ALLOWANCE = 16
#: All trailers together, the bound that proxies use for a head's single line.
MAX_TRAILERS = 8192

#: What a trailer must not say: how long the message is, and whose it is. No client sends that by accident.
FORBIDDEN = frozenset({b"content-length", b"transfer-encoding", b"host"})

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb"[ \t]*+;[ \t]*+%b(?:[ \t]*+=[ \t]*+(?:%b|%b))?" % (_TOKEN, _TOKEN, _QUOTED)
SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:%b)*\r\n" % _EXTENSION)
_TRAILER = re.compile(rb"(?:(%b):[ \t]*+([\t\x20-\x7e\x80-\xff]*+))?\r\n" % _TOKEN)


class State(enum.Enum):
    """What the next byte belongs to."""

    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILER = enum.auto()
    DONE = enum.auto()


class ChunkedDecoder:
    """Decodes one message. `state` is DONE after the last CRLF; errors are RequestError(400)."""

    __slots__ = ("_excess", "_left", "_trailers_size", "state", "trailers")

    def __init__(self) -> None:
        self.state = State.SIZE
        #: Names as sent, values without blanks around them; complete when DONE.
        self.trailers: list[tuple[bytes, bytes]] = []
        self._excess = 0
        self._left = 0
        self._trailers_size = 0

    def _match(self, data: bytes, start: int, end: int) -> re.Match[bytes] | None:
        """Read a size line; group 1 is the size."""
        return SIZE_LINE.match(data, start, end)

    def feed(self, data: bytes, size: int) -> tuple[bytes, int]:
        """Return at most `size` (> 0) bytes of the body that `data` holds, and how many bytes of `data` that took.

        What it didn't take must be offered again, with more behind it if b"" was returned before DONE.
        """
        at = 0
        pieces: list[bytes] = []
        while True:
            match self.state:
                case State.SIZE:
                    at, size = self._chunks(data, at, size, pieces)
                    if self.state is State.SIZE:
                        break
                case State.DATA:
                    piece = data[at : at + min(self._left, size)]
                    if not piece:
                        break
                    pieces.append(piece)
                    at += len(piece)
                    size -= len(piece)
                    self._left -= len(piece)
                    if not self._left:
                        self.state = State.DATA_END
                case State.DATA_END:
                    line_end = data[at : at + 2]
                    if line_end != b"\r\n":
                        if b"\r\n".startswith(line_end):
                            break
                        raise RequestError(400, "chunk data longer than its size")
                    at += 2
                    self.state = State.SIZE
                case State.TRAILER:
                    line = _line(data, at, MAX_TRAILERS - self._trailers_size)
                    if not line:
                        break
                    at += len(line)
                    self._trailers_size += len(line)
                    self._trailer(line)
                case State.DONE:
                    break
        return b"".join(pieces), at

    def _chunks(self, data: bytes, at: int, size: int, pieces: list[bytes]) -> tuple[int, int]:
        """Read a size line, and as long as the whole chunk is there, the chunk and the next line.

        Bodies in tiny chunks cost a third so. Returns where the data of the first chunk that isn't whole begins, and
        what is left of `size`; still in SIZE if its line isn't whole.
        """
        while True:
            match = self._match(data, at, at + MAX_SIZE_LINE)
            if match is None:
                if _line(data, at, MAX_SIZE_LINE):
                    raise RequestError(400, "malformed chunk size")
                return at, size
            begin = match.end()
            left = int(match[1], 16)
            self._excess = max(0, self._excess + begin - at - ALLOWANCE - 2 * left)
            if self._excess > MAX_EXCESS:
                raise RequestError(400, "too much around too little data")
            end = begin + left
            if not 0 < left <= size or not data.startswith(b"\r\n", end):
                self._left = left
                self.state = State.DATA if left else State.TRAILER
                return begin, size
            pieces.append(data[begin:end])
            size -= left
            at = end + 2

    def _trailer(self, line: bytes) -> None:
        """Keep a trailer, or end with the empty line."""
        match = _TRAILER.fullmatch(line)
        if match is None:
            raise RequestError(400, "malformed trailer")
        name, value = match.groups()
        if name is None:
            self.state = State.DONE
        elif name.lower() in FORBIDDEN:
            raise RequestError(400, "forbidden trailer")
        else:
            self.trailers.append((name, value.rstrip(b" \t")))


def _line(data: bytes, start: int, limit: int) -> bytes:
    """Return the line at `start` with its LF, b"" when it isn't complete yet; too long is an error."""
    end = data.find(b"\n", start, start + limit)
    if end >= 0:
        return data[start : end + 1]
    if len(data) - start >= limit:
        raise RequestError(400, "line in a chunked body too long")
    return b""
