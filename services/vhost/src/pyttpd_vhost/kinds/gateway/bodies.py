"""A request's body on its way to an application in another process.

CGI, FastCGI and SCGI tell the length before the body. Where the client has told it (Content-Length), the body is passed
on as it comes, a piece at a time. A chunked one has no length before its end: it is first read to its end, as nginx
does it, into memory as far as SPOOL_MEMORY and then into a file without a name in the tenant's own temporary folder. It
is bounded as every chunked body is, by http.body_limit.
"""

from __future__ import annotations

import io
import os
import tempfile
from typing import Protocol

from pyttpd_vhost.http.body import Body
from pyttpd_vhost.http.engine import CHUNKED
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault

#: One piece; a FastCGI record has room for 65535.
PIECE = 32768
#: A chunked body that is longer goes into a file.
SPOOL_MEMORY = 65536


class Source(Protocol):
    """What is passed on."""

    #: Bytes in all.
    length: int
    #: It can be read (once more) from its beginning.
    whole: bool

    @property
    def done(self) -> bool:
        """All of it was read."""
        ...

    def read(self) -> bytes | None:
        """Return the next piece, b"" at the end; None: the client hasn't sent it yet. Raises RequestError."""
        ...

    def waited(self, seconds: float) -> float:
        """The client was waited for so long; return how long (s) it may take yet. Raises RequestError(408)."""
        ...

    def rewind(self) -> None:
        """Begin again. Only if it is `whole`."""
        ...

    def close(self) -> None: ...


class Nothing:
    """No body."""

    length = 0
    done = True
    whole = True

    def read(self) -> bytes | None:
        return b""

    def waited(self, seconds: float) -> float:
        return 0.0

    def rewind(self) -> None: ...

    def close(self) -> None: ...


class Passed:
    """A body of known length, from the client's hand into the application's."""

    __slots__ = ("_body", "length", "whole")

    def __init__(self, body: Body, length: int) -> None:
        self._body = body
        self.length = length
        self.whole = True

    @property
    def done(self) -> bool:
        return self._body.done

    def read(self) -> bytes | None:
        data = self._body.read_now(PIECE)
        if data:
            self.whole = False
        return data

    def waited(self, seconds: float) -> float:
        return self._body.waited(seconds)

    def rewind(self) -> None: ...

    def close(self) -> None: ...


class Spooled:
    """A chunked body, read to its end when this is made. Waits for the client as long as it is quick enough."""

    __slots__ = ("_at", "_file", "_memory", "done", "length", "whole")

    def __init__(self, body: Body) -> None:
        self.whole = True
        self.length = 0
        self._memory = bytearray()
        #: Unbuffered, so that nothing is left to go wrong when it is closed.
        self._file: io.FileIO | None = None
        try:
            while data := body.read(PIECE):
                self._write(data)
        except BaseException:
            self.close()
            raise
        self.rewind()

    def _write(self, data: bytes) -> None:
        self.length += len(data)
        if self._file is None and self.length <= SPOOL_MEMORY:
            self._memory += data
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close`
                data = bytes(self._memory) + data
                self._memory.clear()
            left = memoryview(data)
            while left:
                left = left[os.write(self._file.fileno(), left) :]
        except OSError as error:
            raise BackendError(
                Fault.NO_SPACE,
                f"a chunked body doesn't fit into {tempfile.gettempdir()}: {os.strerror(error.errno or 0)}",
            ) from None

    def read(self) -> bytes | None:
        if self._file is None:
            data = bytes(self._memory[self._at : self._at + PIECE])
        else:
            data = os.pread(self._file.fileno(), PIECE, self._at)
        self._at += len(data)
        self.done = self._at >= self.length
        return data

    def waited(self, seconds: float) -> float:
        return 0.0

    def rewind(self) -> None:
        self._at = 0
        self.done = not self.length

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Whole:
    """A body that is there already."""

    __slots__ = ("_data", "done", "length", "whole")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)
        self.whole = True
        self.done = False

    def read(self) -> bytes | None:
        self.done = True
        return self._data

    def waited(self, seconds: float) -> float:
        return 0.0

    def rewind(self) -> None:
        self.done = False

    def close(self) -> None: ...


NOTHING = Nothing()


def source(exchange: Exchange) -> Source:
    """Return what is to be passed on of the request's body. Raises RequestError, and BackendError(NO_SPACE)."""
    body = exchange.body
    if body is None:
        return NOTHING
    length = exchange.request.length
    return Spooled(body) if length == CHUNKED else Passed(body, length)
