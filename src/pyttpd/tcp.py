"""What the kernel knows of a TCP connection: how much of it has been read, and written (tcp(7) TCP_INFO, SIOCINQ,
SIOCOUTQ), and who has it.

A connection's *mark* is a number that all who have a descriptor of it see. A worker changes it right before it says
Taken, so whoever has kept a copy can tell, when umaster has died with that message, whether the connection is somebody
else's now although not a byte of it has been read yet. A worker that finds umaster dead when it says Taken puts the
mark back; so whoever sees the mark changed, and nothing read, looks again after PUT_BACK_WITHIN. It is kept in
TCP_SYNCNT: how often a SYN is repeated, which means nothing once a connection stands.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios

#: struct tcp_info (linux/tcp.h): tcpi_state is its first byte, tcpi_bytes_acked lies at 120, tcpi_bytes_received at
#: 128.
_TCP_INFO_SIZE = 136
_BYTES = struct.Struct("@Q")
_COUNT = struct.Struct("@i")
_NONE = bytes(_COUNT.size)
_BYTES_ACKED_AT = 120
_BYTES_RECEIVED_AT = 128
#: States (net/tcp_states.h) after the other side's FIN, which tcpi_bytes_received counts as a byte.
_AFTER_FIN = frozenset({6, 7, 8, 9, 11})  # TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, CLOSING

#: Between claiming and putting back lies one system call; on a busy machine it may take so long (s).
PUT_BACK_WITHIN = 0.25

#: Not in the socket module (asm-generic/socket.h).
_SO_COOKIE = 57
#: Of TCP_SYNCNT (tcp(7); MAX_TCP_SYNCNT in net/tcp.h).
_MOST = 127
# Names of the module: they are looked up for each connection.
_TCP, _SYNCNT, _FIONREAD = socket.IPPROTO_TCP, socket.TCP_SYNCNT, termios.FIONREAD


def mark(sock: socket.SocketType) -> int:
    """Return the mark of a connection. Raises OSError."""
    return sock.getsockopt(_TCP, _SYNCNT)


def claim(sock: socket.SocketType) -> int:
    """Change the mark, and return what it was."""
    before = sock.getsockopt(_TCP, _SYNCNT)
    sock.setsockopt(_TCP, _SYNCNT, before % _MOST + 1)
    return before


def cookie(fd: int) -> int:
    """Return what identifies the connection that `fd` refers to, whoever has it (socket(7), SO_COOKIE)."""
    sock = socket.socket(fileno=fd)
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)
    finally:
        sock.detach()


def put_back(sock: socket.SocketType, before: int) -> None:
    """Set the mark to what claim() has returned: it was not taken after all."""
    sock.setsockopt(_TCP, _SYNCNT, before)


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
