"""One client's socket, non-blocking: what was read ahead, what is still to be sent, and waiting for either.

Rules:
- Memory is bounded: what is read ahead is at most one head or one read; pending output is at most one block
  that a kind gave us, by reference; files go out by sendfile(2).
- Writing in the middle of a response waits (`write`): PEP 3333 wants a block to be with the system before the
  application goes on. The last block is not (`send_last`): its tail (TAIL_LIMIT), and a file, are finished by
  the worker's epoll (`flush`).
- A file that is written to while it is sent ends the connection: rather a cut body than one of two halves. What is
  in the socket's buffer already can't be held back (sendfile(2) lends it the file's own pages).
- Whoever takes nothing for `write_timeout`, or less than `min_read_rate`, has gone away; whoever sends nothing
  for `read_timeout`, or less than `min_body_rate`, gets 408 (http/patience.py). Nobody is waited for in the middle
  of a body without being looked at every LOOK.
- What the client has *taken* is what the system has acknowledged: a socket becomes writable only when a third of
  its buffer is free, and for a slow client that can take longer than any reasonable deadline, although it reads
  all the time.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Sequence
from time import monotonic, sleep
from typing import TYPE_CHECKING

from pyttpd_vhost.http.errors import ClientGone, RequestError
from pyttpd_vhost.http.patience import LOOK, Pace

if TYPE_CHECKING:
    from pyttpd_vhost.site import Site

#: One recv(2). A head fits into a page or two; bodies ask for more (`receive`'s argument).
HEAD_READ = 8192
BODY_READ = 65536

#: Up to here head and body are joined into one buffer: a small copy is cheaper than an iovec. Above,
#: sendmsg(2) takes both as they are.
JOIN_LIMIT = 16384

#: What a finished response may leave to epoll. More of it would let slow clients keep a worker's memory
#: (10,000 of them: 2.5 GB).
TAIL_LIMIT = 256 * 1024

#: Of send(2): what is sent waits for what comes next, a file's first bytes or the FIN, and shares its packet: one
#: instead of two through both ends' TCP.
MORE = int(socket.MSG_MORE)

#: Bytes in the socket's send queue, not yet acknowledged (tcp(7), linux/sockios.h).
_SIOCOUTQ = 0x5411

#: One sendfile(2) call, so that one fast client with a large file doesn't hold the worker.
SENDFILE_STEP = 1 << 20

#: sendfile(2) calls per turn of the loop.
SENDFILE_BURST = 4


#: What is compared of a file that has grown while it was sent: so many bytes of its beginning, and of its old end.
SAMPLE = 4096
#: write(2) gives a file another time first, and its size when it is done: one that has only another time is looked at
#: so many times more, GROWING_FOR (s) apart.
GROWING_LOOKS = 5
GROWING_FOR = 0.001


class OpenFile:
    """A regular file that is open for reading, for as long as anybody has this: several answers may be sending it."""

    __slots__ = ("_sample", "_size", "_stamp", "fd")

    def __init__(self, fd: int, status: os.stat_result | None = None) -> None:
        """Own `fd`. With `status`, which is what fstat(2) says, changes from here on are noticed (`changed`)."""
        self.fd = fd
        self._stamp = None
        if status is not None:
            self._stamp = status.st_mtime_ns, status.st_size
            self._size = status.st_size
            self._sample = self._look()

    def __del__(self) -> None:
        os.close(self.fd)

    def changed(self) -> bool:
        """Whether what it was has been written to. Being renamed or unlinked doesn't matter.

        Nor does having grown: logs and recordings are sent as far as they went. But a file that is overwritten with a
        longer one has grown as well, so its beginning and its old end must be what they were.
        """
        if self._stamp is None:
            return False
        status = os.fstat(self.fd)
        stamp = status.st_mtime_ns, status.st_size
        if stamp == self._stamp:
            return False
        looks = GROWING_LOOKS
        while status.st_size == self._size and looks:
            looks -= 1
            sleep(GROWING_FOR)
            status = os.fstat(self.fd)
            stamp = status.st_mtime_ns, status.st_size
        if status.st_size <= self._size or self._look() != self._sample:
            return True
        self._stamp = stamp
        return False

    def _look(self) -> bytes:
        return os.pread(self.fd, SAMPLE, 0) + os.pread(self.fd, SAMPLE, max(0, self._size - SAMPLE))


#: A piece of a body: bytes, or so many bytes of a file from an offset (file, offset, count; count > 0).
Part = bytes | tuple[OpenFile, int, int]


class Stream:
    """Owns `sock`, and a share in each file being sent. `site` says how long we wait."""

    __slots__ = (
        "_file",
        "_file_at",
        "_file_left",
        "_looked",
        "_pace",
        "_parts",
        "_pending",
        "_site",
        "_taken",
        "ahead",
        "sent",
        "sock",
        "waited",
        "waiting",
    )

    def __init__(self, sock: socket.SocketType, site: Site) -> None:
        self.sock = sock
        self._site = site
        self.ahead = b""  # received, not yet used
        self.sent = 0  # bytes taken by the system since somebody last set it to 0
        self._pending: Sequence[bytes | memoryview] = ()
        # How the client takes this response; None until we have to wait for it.
        self._pace: Pace | None = None
        self._looked = 0.0
        self._taken = 0
        #: How long a thread has waited for the client (s), and since when one does now (0.0: none does).
        self.waited = 0.0
        self.waiting = 0.0
        self._parts: list[Part] = []  # what follows `_pending` and `_file`, the last one first
        self._file: OpenFile | None = None
        self._file_at = 0
        self._file_left = 0

    @property
    def pending(self) -> bool:
        """Something is still to be sent."""
        return bool(self._pending) or self._file is not None

    # Output

    def send_whole(self, data: bytes, flags: int = 0) -> None:
        """`send_last` of one part and no file: what nearly all answers are. `flags` are send(2)'s."""
        try:
            # write(2) is the same without flags, and no filter looks at its arguments (pyttpd.confine)
            count = self.sock.send(data, flags) if flags else os.write(self.sock.fileno(), data)
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise ClientGone from error
        self.sent += count
        if count != len(data):
            self._pending = (memoryview(data)[count:],)

    def send_last(self, parts: tuple[bytes, ...]) -> None:
        """Send `parts` as one, what the socket takes now; the rest stays pending, by reference.

        Nothing may be pending before. Raises ClientGone.
        """
        try:
            count = self.sock.sendmsg(parts)
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise ClientGone from error
        self.sent += count
        self._pending = _rest(parts, count)

    def send_after(self, data: bytes) -> None:
        """`send_whole`, behind what is pending if anything is. Raises ClientGone."""
        if self._pending:
            self._pending = (*self._pending, data)
        else:
            self.send_whole(data)

    def send_parts(self, head: bytes, parts: Sequence[Part]) -> None:
        """Send `head` and `parts`, what the socket takes now; `flush` sends the rest. At least one part is a file.

        Nothing may be pending before. Raises ClientGone.
        """
        if len(parts) == 1:  # the file, as nearly always
            self._file, self._file_at, self._file_left = parts[0]  # type: ignore[assignment]  # it is no bytes
            self.send_whole(head, MORE)
        else:
            self._pending = (head,)
            self._parts = list(reversed(parts))
            self._next_part()
        self.flush()

    def _next_part(self) -> None:
        """Go on to the next file, with the bytes that come before it."""
        self._file = None
        parts = self._parts
        while parts:
            part = parts.pop()
            if isinstance(part, tuple):
                self._file, self._file_at, self._file_left = part
                return
            self._pending = (*self._pending, part)

    def flush(self) -> bool:
        """Send more of what is pending. True: all is sent.

        Raises ClientGone, also when a file has changed.
        """
        burst = SENDFILE_BURST
        try:
            while True:
                if self._pending:
                    more = 0 if self._file is None else MORE
                    count = self.sock.sendmsg(self._pending, (), more)
                    self.sent += count
                    self._pending = _rest(self._pending, count)
                    if self._pending:
                        return False
                file = self._file
                if file is None:
                    return True
                if not burst:
                    return False
                burst -= 1
                if file.changed():
                    raise ClientGone("the file was changed while it was sent")
                count = os.sendfile(
                    self.sock.fileno(), file.fd, self._file_at, min(self._file_left, SENDFILE_STEP)
                )
                if count == 0:
                    raise ClientGone("the file became shorter while it was sent")
                self.sent += count
                self._file_at += count
                self._file_left -= count
                if not self._file_left:
                    self._next_part()
        except BlockingIOError:
            return False
        except ClientGone:
            raise
        except OSError as error:
            raise ClientGone from error

    def write(self, parts: tuple[bytes, ...]) -> None:
        """Send `parts`, waiting for the client as long as it is quick enough. Raises ClientGone."""
        self.wait_sent()
        self.send_last(parts)
        self.wait_sent()

    def wait_sent(self, *, tail: int = 0) -> None:
        """Wait until at most `tail` bytes are pending. Raises ClientGone."""
        if not self._pending or (tail and sum(map(len, self._pending)) <= tail):
            return
        waiter = select.poll()
        waiter.register(self.sock, select.POLLOUT)
        left = self.watch()
        while sum(map(len, self._pending)) > tail:
            if self._wait(waiter, min(left, LOOK)):
                self.flush()
            left = self.look()

    def wait_tail(self) -> None:
        """Wait until no more is pending than may be left to epoll. Raises ClientGone."""
        self.wait_sent(tail=TAIL_LIMIT)

    def begin(self) -> None:
        """What is sent from here on is another response: its pace counts anew."""
        self._pace = None

    def watch(self) -> float:
        """From here on we wait for the client to take what is pending. Returns for how long, if it takes nothing."""
        self._looked = monotonic()
        self._taken = self._count_taken()
        if self._pace is None:
            self._pace = Pace()
        return self._left(self._pace)

    def look(self) -> float:
        """See what it has taken since `watch` or the last look, and return as `watch`.

        Raises ClientGone if it is too slow.
        """
        pace = self._pace
        assert pace is not None
        now, taken = monotonic(), self._count_taken()
        pace.add(now - self._looked, taken - self._taken, self._site.patience.read_rate)
        self._looked, self._taken = now, taken
        left = self._left(pace)
        if left <= 0:
            # an application may catch this and go on: nothing more may be sent behind the gap
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # ENOTCONN: the client was faster
            raise ClientGone(
                pace.slow(self._site.patience.write, "the client took", "write_timeout", "min_read_rate")
            )
        return left

    def _left(self, pace: Pace) -> float:
        patience = self._site.patience
        return pace.left(patience.write, patience.read_rate, patience.grace)

    def _count_taken(self) -> int:
        """Bytes that the client has acknowledged, from an arbitrary zero."""
        try:
            unsent: int = struct.unpack("i", fcntl.ioctl(self.sock, _SIOCOUTQ, bytes(4)))[0]
        except OSError:
            return self._taken
        return self.sent - unsent

    def _wait(self, waiter: select.poll, timeout: float) -> bool:
        """Wait up to `timeout` s for the client. What that takes isn't the application's time (audit.py)."""
        began = self.waiting = monotonic()
        ready = waiter.poll(timeout * 1000)
        self.waited += monotonic() - began
        self.waiting = 0.0
        return bool(ready)

    # Input

    def receive(self, size: int) -> bytes:
        """Receive up to `size` bytes without waiting; b"" at the end of the stream.

        Raises BlockingIOError and ClientGone.
        """
        try:
            return self.sock.recv(size)
        except BlockingIOError:
            raise
        except OSError as error:
            raise ClientGone from error

    def wait_received(self, size: int, pace: Pace) -> bytes:
        """Receive up to `size` bytes of a body, waiting as long as `pace`, which is the body's, isn't too slow.

        Raises RequestError(408) and ClientGone.
        """
        try:
            return self.receive(size)
        except BlockingIOError:
            pass
        waiter = select.poll()
        waiter.register(self.sock, select.POLLIN)
        began = monotonic()
        while True:
            patience = self._site.patience
            left = pace.left(patience.read, patience.body_rate, patience.grace)
            if left <= 0:
                raise RequestError(
                    408, pace.slow(patience.read, "of the body came", "read_timeout", "min_body_rate")
                )
            self._wait(waiter, min(left, LOOK))
            now = monotonic()
            try:
                data = self.receive(size)
            except BlockingIOError:
                pace.add(now - began, 0, patience.body_rate)
                began = now
                continue
            pace.add(now - began, len(data), patience.body_rate)
            return data

    def charge(self, pace: Pace, seconds: float, count: int) -> float:
        """Let a body pay for having been waited for elsewhere, while `count` bytes of it came.

        Returns how long (s) it is waited for yet if nothing moves. Raises RequestError(408).
        """
        patience = self._site.patience
        pace.add(seconds, count, patience.body_rate)
        left = pace.left(patience.read, patience.body_rate, patience.grace)
        if left <= 0:
            raise RequestError(
                408, pace.slow(patience.read, "of the body came", "read_timeout", "min_body_rate")
            )
        return left

    # End

    def forget(self) -> None:
        """Let go of everything but the socket."""
        self._pending = ()
        self.ahead = b""
        self._parts = []
        self._file = None


def _rest(parts: Sequence[bytes | memoryview], count: int) -> Sequence[bytes | memoryview]:
    """Return what is left of `parts` after `count` bytes of them, without copying."""
    for index, part in enumerate(parts):
        if count < len(part):
            return [memoryview(part)[count:], *parts[index + 1 :]]
        count -= len(part)
    return ()
