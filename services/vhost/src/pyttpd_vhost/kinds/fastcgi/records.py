"""FastCGI's records (FastCGI 1.0, sections 3 to 5), as a server with one request per connection needs them. Sans-I/O.

    we say            BEGIN_REQUEST, PARAMS..., PARAMS (empty), STDIN..., STDIN (empty); ABORT_REQUEST
    it says           STDOUT..., STDERR..., END_REQUEST

Rules
- Version 1, the id of our request, and the types that an application may say: anything else is malformed. Records about
  the connection itself (id 0) are skipped: we have asked for nothing, so they answer nothing.
- A record's content is passed on as it comes, not when it is whole: who flushes is seen.
- STDOUT that was ended by an empty record says no more. The end is END_REQUEST alone.
- After it nothing may come but its padding; else the connection isn't kept (`clean`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault
from pyttpd_vhost.kinds.gateway.relay import Event, Said

VERSION = 1
BEGIN_REQUEST, ABORT_REQUEST, END_REQUEST, PARAMS, STDIN, STDOUT, STDERR, DATA = range(1, 9)
RESPONDER = 1
KEEP_CONN = 1
REQUEST_COMPLETE, CANT_MPX_CONN, OVERLOADED, UNKNOWN_ROLE = range(4)

#: One request per connection, so one id will do.
ID = 1
#: version, type, request id, content length, padding length, reserved.
HEADER = struct.Struct(">BBHHBx")
_END_BODY = struct.Struct(">IB3x")
#: A record's content: 16 bits, and a multiple of 8, as the specification recommends.
MAX_CONTENT = 65528
#: A name or value as long as this has four bytes of length.
_SHORT = 128

ABORT = HEADER.pack(VERSION, ABORT_REQUEST, ID, 0, 0)
_BEGIN = HEADER.pack(VERSION, BEGIN_REQUEST, ID, 8, 0) + struct.pack(">HB5x", RESPONDER, 0)
_BEGIN_KEPT = HEADER.pack(VERSION, BEGIN_REQUEST, ID, 8, 0) + struct.pack(">HB5x", RESPONDER, KEEP_CONN)
_NO_PARAMS = HEADER.pack(VERSION, PARAMS, ID, 0, 0)
_NO_STDIN = HEADER.pack(VERSION, STDIN, ID, 0, 0)
#: How an answer begins, and how it ends if all went well.
_OUTPUT = HEADER.pack(VERSION, STDOUT, ID, 0, 0)[:4]
_ENDED = HEADER.pack(VERSION, END_REQUEST, ID, _END_BODY.size, 0) + _END_BODY.pack(0, REQUEST_COMPLETE)
#: A short length, as a character: its byte in latin-1.
_LENGTHS = tuple(map(chr, range(_SHORT)))


def pairs(variables: Mapping[str, str]) -> bytes:
    """Return `variables` as PARAMS have them."""
    text = []
    for name, value in variables.items():
        if len(name) < _SHORT and len(value) < _SHORT:
            text.append(f"{_LENGTHS[len(name)]}{_LENGTHS[len(value)]}{name}{value}")
        else:
            text.append(f"{_length(len(name))}{_length(len(value))}{name}{value}")
    return "".join(text).encode("latin-1")


def _length(length: int) -> str:
    return _LENGTHS[length] if length < _SHORT else struct.pack(">I", length | 0x80000000).decode("latin-1")


def begin(params: bytes, *, keep: bool) -> bytes:
    """Return the records that begin a request with these `pairs`: all but its body."""
    begin = _BEGIN_KEPT if keep else _BEGIN
    if 0 < len(params) <= MAX_CONTENT:
        return b"".join((begin, HEADER.pack(VERSION, PARAMS, ID, len(params), 0), params, _NO_PARAMS))
    parts = [begin]
    for start in range(0, len(params), MAX_CONTENT):
        piece = params[start : start + MAX_CONTENT]
        parts += HEADER.pack(VERSION, PARAMS, ID, len(piece), 0), piece
    parts.append(_NO_PARAMS)
    return b"".join(parts)


class Conversation:
    """One request's `Codec`."""

    __slots__ = ("_end", "_held", "_left", "_padding", "_stdout_over", "_type", "clean")

    def __init__(self) -> None:
        self._held = b""  # the beginning of a header
        self._type = 0
        self._left = 0  # of a record's content
        self._padding = 0
        self._stdout_over = False
        self._end = b""  # END_REQUEST's content
        #: The answer has ended, and nothing followed it.
        self.clean = False

    def body(self, data: bytes) -> bytes:
        """See `Codec.body`."""
        return HEADER.pack(VERSION, STDIN, ID, len(data), 0) + data if data else _NO_STDIN

    def whole(self, data: bytes) -> bytes | None:
        """See `Codec.whole`."""
        if data[:4] != _OUTPUT or len(data) < HEADER.size:
            return None
        end = HEADER.size + (data[4] << 8 | data[5])
        if data[end + data[6] :] != _ENDED:
            return None
        self.clean = True
        return data[HEADER.size : end]

    def receive(self, data: bytes) -> list[Event]:
        """See `Codec.receive`."""
        events: list[Event] = []
        if self._held:
            data, self._held = self._held + data, b""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                if self._type == STDOUT:
                    events.append((Said.OUTPUT, piece))
                elif self._type == STDERR:
                    events.append((Said.ERRORS, piece))
                elif self._type == END_REQUEST:
                    self._end += piece
                    if not self._left:
                        self._ended()
                        events.append((Said.END, b""))
                        self.clean = at == end and not self._padding
                        break
            elif self._padding:
                skipped = min(self._padding, end - at)
                at += skipped
                self._padding -= skipped
            elif end - at < HEADER.size:
                self._held = data[at:]
                break
            else:
                self._begin(*HEADER.unpack_from(data, at))
                at += HEADER.size
        return events

    def _begin(self, version: int, type_: int, id_: int, length: int, padding: int) -> None:
        """Look at a record's header."""
        if version != VERSION:
            raise BackendError(Fault.MALFORMED, f"not FastCGI: version {version}")
        if id_ == 0:
            type_ = 0  # about the connection: skipped
        elif id_ != ID:
            raise BackendError(Fault.MALFORMED, f"a record of request {id_}, which was never begun")
        elif type_ not in (STDOUT, STDERR, END_REQUEST):
            raise BackendError(Fault.MALFORMED, f"a record of type {type_}")
        if type_ == STDOUT:
            if self._stdout_over and length:
                raise BackendError(Fault.MALFORMED, "STDOUT after its end")
            self._stdout_over = not length
        if type_ == END_REQUEST and length != _END_BODY.size:
            raise BackendError(Fault.MALFORMED, f"END_REQUEST of {length} bytes")
        self._type, self._left, self._padding = type_, length, padding

    def _ended(self) -> None:
        """Look at how the request has ended. The application's own exit status is its own affair."""
        _, status = _END_BODY.unpack(self._end)
        if status == REQUEST_COMPLETE:
            return
        if status == OVERLOADED:
            raise BackendError(Fault.FULL, "it says that it is overloaded")
        names = {CANT_MPX_CONN: "it can't multiplex connections", UNKNOWN_ROLE: "it is no responder"}
        raise BackendError(Fault.MALFORMED, names.get(status, f"END_REQUEST with status {status}"))

    def closed(self) -> list[Event]:
        """See `Codec.closed`."""
        raise BackendError(Fault.DIED, "it closed the connection before its answer was over")
