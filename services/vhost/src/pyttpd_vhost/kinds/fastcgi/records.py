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
from collections.abc import Iterable, Mapping

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


def begin(variables: Mapping[str, str], *, keep: bool) -> bytes:
    """Return the records that begin a request: all but its body."""
    parts = [
        HEADER.pack(VERSION, BEGIN_REQUEST, ID, 8, 0),
        struct.pack(">HB5x", RESPONDER, KEEP_CONN if keep else 0),
    ]
    params = b"".join(_pairs(variables.items()))
    for start in range(0, len(params), MAX_CONTENT):
        piece = params[start : start + MAX_CONTENT]
        parts += HEADER.pack(VERSION, PARAMS, ID, len(piece), 0), piece
    parts.append(HEADER.pack(VERSION, PARAMS, ID, 0, 0))
    return b"".join(parts)


def _pairs(variables: Iterable[tuple[str, str]]) -> Iterable[bytes]:
    for name, value in variables:
        key, data = name.encode("latin-1"), value.encode("latin-1")
        yield _length(len(key)) + _length(len(data)) + key + data


def _length(length: int) -> bytes:
    return bytes((length,)) if length < _SHORT else struct.pack(">I", length | 0x80000000)


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
        return HEADER.pack(VERSION, STDIN, ID, len(data), 0) + data

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
