"""A client's socket in an event loop: nothing here waits, what the socket doesn't take is finished by the line.

Rules:
- What is sent while something is pending queues up behind it. How much that may be is who sends' affair: it is told by
  `size`, and stops (line.py).
- A body is read as far as it is there; BlockingIOError says that the rest isn't.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyttpd_vhost.http.body import Body
from pyttpd_vhost.http.errors import ClientGone, RequestError
from pyttpd_vhost.http.stream import JOIN_LIMIT, Stream, _rest

#: Pieces given to one sendmsg(2): the system takes 1024 (IOV_MAX), and a socket's buffer is full long before.
PIECES = 64


class LoopStream(Stream):
    """`Stream` without waiting: who has sent something sees by `pending` whether anything is left for `flush`."""

    __slots__ = ()

    @property
    def size(self) -> int:
        """Bytes that are pending."""
        return sum(map(len, self._pending))

    def send_whole(self, data: bytes, flags: int = 0) -> None:
        """See `Stream.send_whole`; something may be pending."""
        if self._pending:
            self._queue((data,))
        else:
            super().send_whole(data, flags)

    def send_last(self, parts: tuple[bytes, ...]) -> None:
        """See `Stream.send_last`; something may be pending."""
        if self._pending:
            self._queue(parts)
        else:
            super().send_last(parts)

    def write(self, parts: tuple[bytes, ...]) -> None:
        """See `Stream.write`; doesn't wait."""
        self.send_last(parts)

    def wait_sent(self, *, tail: int = 0) -> None:
        """Nobody waits here."""

    def flush(self) -> bool:
        """Send more of what is pending. True: all is sent. Raises ClientGone."""
        pending = self._pending
        while pending:
            try:
                count = self.sock.sendmsg(pending[:PIECES])
            except BlockingIOError:
                return False
            except OSError as error:
                raise ClientGone from error
            self.sent += count
            pending = self._pending = _rest(pending, count)
        return True

    def _queue(self, parts: Sequence[bytes]) -> None:
        """Put `parts` behind what is pending, small ones as one."""
        if len(parts) > 1 and sum(map(len, parts)) <= JOIN_LIMIT:
            parts = (b"".join(parts),)
        self._pending = [*self._pending, *[part for part in parts if part]]


class LoopBody(Body):
    """`Body` without waiting: `read` raises BlockingIOError where the other one would wait. Says nothing of 100: the
    cycle does that (cycle.py).
    """

    __slots__ = ()

    def drain(self) -> None:
        """See `Body.drain`."""
        try:
            super().drain()
        except BlockingIOError:
            pass

    def _more(self, size: int) -> bytes:
        data = self._stream.receive(size)
        self._expect = False
        if not data:
            raise RequestError(400, "the client closed in the middle of the body")
        return data
