"""What the kernel knows of a TCP connection: how much of it has been read, and written (tcp(7) TCP_INFO, SIOCINQ,
SIOCOUTQ), and whose it is.

Copies of a connection may be in several processes at once, and when a channel ends while both of its ends live, two
workers may be given one. So that one of them reads it, and one process answers, a connection has two numbers that all
see who have a descriptor of it. Everybody sets one of them, and *then* looks at the other:

    mark     (TCP_SYNCNT)        Each offer says for which mark it counts. Who offers the connection anew, takes it
                                 back, or answers it after all, changes the mark (`recall`), and then looks whether it
                                 is claimed: if it isn't, it is his, and no earlier offer counts.
    claimed  (TCP_DEFER_ACCEPT)  A worker that has said Taken sets it, and then looks at the mark (`claim`): if that is
                                 the offer's, the connection is the worker's. Otherwise it takes its claim back, and
                                 closes its copy unread.

Two who do so at the same moment don't both find what they want, wherever they are interrupted. They may both find that
it is the other's: so who sees a claim looks again after UNCLAIMED_WITHIN (`SecondLook`), when a claim that failed is
gone. (One that fails in the same microseconds in which the next worker claims takes that claim back with its own. It
matters only if umaster dies before it has heard of the next one's Taken, and that one hasn't read by then, which
listeners look at as well.) Both options mean nothing on a connection that stands.

In step with: `wire.messages` (Route, Dispatch, Pass), pyttpd_init.sockets (`fix_mark`).
"""

from __future__ import annotations

import enum
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from functools import partial
from typing import Generic, Protocol, TypeVar

#: struct tcp_info (linux/tcp.h): tcpi_state is its first byte, tcpi_bytes_acked lies at 120, tcpi_bytes_received at
#: 128.
_TCP_INFO_SIZE = 136
_BYTES = struct.Struct("@Q")
_COUNT = struct.Struct("@i")
_NONE = bytes(_COUNT.size)
_BACKLOG_AT = 24
_BYTES_ACKED_AT = 120
_BYTES_RECEIVED_AT = 128
#: States (net/tcp_states.h) after the other side's FIN, which tcpi_bytes_received counts as a byte.
_AFTER_FIN = frozenset({6, 7, 8, 9, 11})  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING

#: Between a claim and its end lies one system call; on a busy machine it may take so long (s).
UNCLAIMED_WITHIN = 0.25

#: Not in the socket module (asm-generic/socket.h).
_SO_COOKIE = 57
#: Of TCP_SYNCNT (tcp(7); MAX_TCP_SYNCNT in net/tcp.h): marks are 1 to this one, and then 1 again.
_MOST = 127
# Names of the module: they are looked up for each connection.
_TCP, _SYNCNT, _CLAIMED = socket.IPPROTO_TCP, socket.TCP_SYNCNT, socket.TCP_DEFER_ACCEPT
_FIONREAD = termios.FIONREAD


class Marked(Protocol):
    """A connection that is offered to others, for the mark `mark`."""

    mark: int

    @property
    def sock(self) -> socket.SocketType: ...


T = TypeVar("T", bound=Marked)


class Whose(enum.Enum):
    """Whose a connection is that we have recalled."""

    OURS = "nobody has claimed it, and nobody can any more by what we have offered"
    CLAIMED = "somebody has claimed it, who may not have seen yet that he can't have it"
    THEIRS = "somebody had it, or has it"


def mark(sock: socket.SocketType) -> int:
    """Return the mark of a connection; of a listening socket, that of those which it accepts. Raises OSError."""
    return sock.getsockopt(_TCP, _SYNCNT)


def fix_mark(sock: socket.SocketType) -> None:
    """Give a listening socket, and so what it accepts, a mark that stays when net.ipv4.tcp_syn_retries changes."""
    _set_mark(sock, mark(sock))


def claim(sock: socket.SocketType, offered: int) -> bool:
    """Claim a connection that was offered for the mark `offered` (0: for any). False: the offer counts no longer."""
    sock.setsockopt(_TCP, _CLAIMED, 1)
    if not offered or sock.getsockopt(_TCP, _SYNCNT) == offered:
        return True
    _set_free(sock)
    return False


def offer(sock: socket.SocketType) -> int:
    """Let others claim our connection; return the mark to offer it for, a new one."""
    new = _next(mark(sock))
    _set_mark(sock, new)
    _set_free(sock)
    return new


def recall(one: Marked) -> Whose:
    """Let no offer of `one` count any more; `one.mark` is the new mark then."""
    sock = one.sock
    try:
        if mark(sock) != one.mark:
            return Whose.THEIRS  # who had claimed it has offered it on
        one.mark = _next(one.mark)
        _set_mark(sock, one.mark)
        consumed(sock)  # takes the connection's lock, which keeps what we set and what we see in this order
        claimed = sock.getsockopt(_TCP, _CLAIMED)
    except OSError:
        return Whose.THEIRS
    return Whose.CLAIMED if claimed else Whose.OURS


def _next(before: int) -> int:
    return before % _MOST + 1


def _set_mark(sock: socket.SocketType, new: int) -> None:
    sock.setsockopt(_TCP, _SYNCNT, new)


def _set_free(sock: socket.SocketType) -> None:
    sock.setsockopt(_TCP, _CLAIMED, 0)


class SecondLook(Generic[T]):
    """Who gets back what he has offered recalls it, and looks once more before he takes a claim for the last word.

    end(one, ours) is called at once, or after UNCLAIMED_WITHIN by later(seconds, what). Holds those that are to be
    looked at again.
    """

    def __init__(
        self,
        end: Callable[[T, bool], None],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self._end = end
        self._later = later
        self._again: set[T] = set()

    def __len__(self) -> int:
        return len(self._again)

    def __iter__(self) -> Iterator[T]:
        return iter(self._again)

    def look(self, one: T) -> None:
        """Recall `one`, and find out whether it is ours."""
        found = recall(one)
        if found is Whose.CLAIMED:
            self._again.add(one)
            self._later(UNCLAIMED_WITHIN, partial(self._look_again, one))
        else:
            self._end(one, found is Whose.OURS)

    def clear(self) -> None:
        """Forget all: nothing of it is ours."""
        self._again.clear()

    def _look_again(self, one: T) -> None:
        if one in self._again:
            self._again.discard(one)
            self._end(one, recall(one) is Whose.OURS)


def backlog(listener: socket.socket) -> int:
    """Return how many connections wait to be accepted (of a listening socket, tcpi_unacked)."""
    (count,) = _COUNT.unpack_from(
        listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG_AT + _COUNT.size), _BACKLOG_AT
    )
    return int(count)


def accept(listener: socket.socket) -> tuple[socket.SocketType, tuple[str, int]]:
    """Accept a connection; the caller owns it. Raises OSError.

    socket.accept() makes an object of the class around this one, asks for family, type and protocol by enumerations,
    and sets it blocking: that takes as long as the system call. Who has this one says MSG_DONTWAIT with each call.
    """
    fd, address = listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
    # Family and type are only names here.
    return socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, fd), address


def cookie(fd: int) -> int:
    """Return what identifies the connection that `fd` refers to, whoever has it (socket(7), SO_COOKIE)."""
    sock = socket.socket(fileno=fd)
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)
    finally:
        sock.detach()


def is_unread(sock: socket.SocketType) -> bool:
    """Say whether bytes have come that nobody has read yet; not at the end of the stream. Raises OSError."""
    return fcntl.ioctl(sock, _FIONREAD, _NONE) != _NONE


def consumed(sock: socket.SocketType) -> int:
    """Return how many bytes anybody has read from this connection since it was made.

    Processes share a connection, so this tells what a worker that is dead has read before. Raises OSError.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    (received,) = _BYTES.unpack_from(info, _BYTES_RECEIVED_AT)
    (unread,) = _COUNT.unpack(fcntl.ioctl(sock, _FIONREAD, _NONE))
    read: int = received - unread
    return read - 1 if read and info[0] in _AFTER_FIN else read


def written(sock: socket.SocketType) -> int:
    """Return how many bytes anybody has written to this connection, from an arbitrary zero (a FIN is one, too).

    Raises OSError.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    (acknowledged,) = _BYTES.unpack_from(info, _BYTES_ACKED_AT)
    (unsent,) = _COUNT.unpack(fcntl.ioctl(sock, termios.TIOCOUTQ, _NONE))
    count: int = acknowledged + unsent
    return count
