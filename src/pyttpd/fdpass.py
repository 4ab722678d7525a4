"""Descriptors over unix sockets: how they travel, and what a received one must prove before it is let in.

socket.recv_fds() ignores its flags, so descriptors would arrive inheritable; this uses recvmsg(2) with
MSG_CMSG_CLOEXEC. When the receiver has no free descriptor the kernel *destroys* the one in flight and sets MSG_CTRUNC
(unix(7)): that is load on our side and not an attack, and is told apart from a peer that sends too many.
"""

from __future__ import annotations

import array
import os
import socket
import sys
from collections.abc import Sequence

from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import DescriptorKind

_FD_SIZE = array.array("i").itemsize
#: The kernel's bound for the descriptors of one packet (SCM_MAX_FD), and the room that so many take.
_MAX_FDS = 253
_SPACE = [socket.CMSG_SPACE(count * _FD_SIZE) for count in range(_MAX_FDS + 1)]

# Plain integers: socket's flags are enums, whose arithmetic costs more than the system call.
_TRUNCATED = int(socket.MSG_TRUNC)
_CUT = int(socket.MSG_CTRUNC) | _TRUNCATED
#: Said with each call: O_NONBLOCK belongs to the open file. A peer that has sent us our end shares it with us, and can
#: change it at any time (fcntl(2), F_SETFL).
DONT_WAIT = int(socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_NOSIGNAL) | DONT_WAIT
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC) | DONT_WAIT

_RIGHTS, _SOCKET = int(socket.SCM_RIGHTS), int(socket.SOL_SOCKET)
_INET, _STREAM = int(socket.AF_INET), int(socket.SOCK_STREAM)
_TCP, _TCP_INFO = int(socket.IPPROTO_TCP), int(socket.TCP_INFO)
_Socket = socket.SocketType
_SCM_PIDFD = 4  # linux/socket.h; since Linux 6.5
_TCP_LISTEN = b"\x0a"  # include/net/tcp_states.h


def send_fd(sock: socket.socket, data: bytes, fd: int) -> None:
    """Send `data` as one packet with a copy of `fd`. The caller keeps `fd`. Raises OSError (EAGAIN,
    ETOOMANYREFS, EPIPE).
    """
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, fd.to_bytes(_FD_SIZE, sys.byteorder))
    sock.sendmsg([data], [rights], _SEND)


def send(sock: socket.socket, data: bytes) -> None:
    """Send `data` as one packet. Raises OSError (EAGAIN, EPIPE)."""
    sock.send(data, _SEND)


class DescriptorLost(Exception):
    """We had no free descriptor, and the kernel destroyed the one that came. `data` is the packet."""

    def __init__(self, data: bytes) -> None:
        super().__init__("no free descriptor: the one in flight is lost")
        self.data = data


def recv_fd(sock: socket.socket, size: int) -> tuple[bytes, int | None]:
    """Receive one packet of at most `size` bytes and the descriptor that came with it, which the caller owns.

    Raises RemoteProtocolError for a longer packet or more than one descriptor, DescriptorLost, or OSError. All
    descriptors that came are closed then.
    """
    data, fds = recv_fds(sock, size, 1)
    return data, fds[0] if fds else None


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send `data` as one packet with copies of `fds`, which stay the caller's. Raises OSError."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    sock.sendmsg([data], [rights] if fds else [], _SEND)


def recv_fds(sock: socket.socket, size: int, most: int, *, peek: bool = False) -> tuple[bytes, list[int]]:
    """Receive one packet of at most `size` bytes and the up to `most` descriptors that came with it, which the caller
    owns; `peek`: the packet stays where it is, and the caller gets copies. Raises what recv_fd raises.
    """
    data, fds, cut = recv_some(sock, size, most, peek=peek)
    if cut:
        _close(fds)
        raise DescriptorLost(data)
    return data, fds


def recv_some(
    sock: socket.socket, size: int, most: int, *, peek: bool = False
) -> tuple[bytes, list[int], bool]:
    """Receive one packet of at most `size` bytes, the up to `most` descriptors that came with it, which the caller
    owns, and whether more came than we have free numbers for: then the last ones are lost. `peek`: see recv_fds.

    Raises RemoteProtocolError for a longer packet or more descriptors, which are closed then, or OSError.
    """
    # Room for one more than may come, so that it is seen and not merely cut off.
    data, ancillary, flags, _ = sock.recvmsg(
        size, _SPACE[most + 1], _RECEIVE | int(socket.MSG_PEEK) if peek else _RECEIVE
    )
    if not flags & _CUT:
        if not ancillary:
            return data, [], False
        level, kind, payload = ancillary[0]
        if kind == _RIGHTS and level == _SOCKET and len(ancillary) == 1 and len(payload) <= most * _FD_SIZE:
            return data, memoryview(payload).cast("i").tolist(), False  # as it should be
    fds, foreign = _descriptors(ancillary)
    if foreign:
        fault = RemoteProtocolError("descriptors", "a packet with something beside data and descriptors")
    elif flags & _TRUNCATED:
        fault = RemoteProtocolError("oversized", f"a packet of more than {size} bytes")
    elif len(fds) > most:
        many = "one descriptor" if most == 1 else f"{most} descriptors"
        fault = RemoteProtocolError("descriptors", f"more than {many} in a packet")
    else:
        return data, fds, bool(flags & _CUT)
    _close(fds)
    raise fault


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], bool]:
    """Return the descriptors in `ancillary`, and whether there is anything else."""
    fds: list[int] = []
    foreign = False
    for level, kind, payload in ancillary:
        # Who has made our end can have the kernel add to it what nobody has sent (SO_PASSPIDFD, SO_PASSCRED,
        # SO_TIMESTAMP): a pidfd is one more descriptor, and what is longer cuts off the one that belongs here.
        foreign |= kind != socket.SCM_RIGHTS or level != socket.SOL_SOCKET
        if level == socket.SOL_SOCKET and kind in (socket.SCM_RIGHTS, _SCM_PIDFD):
            whole = array.array("i")
            whole.frombytes(payload[: len(payload) - len(payload) % _FD_SIZE])
            fds.extend(whole)
    return fds, foreign


def _close(fds: list[int]) -> None:
    for fd in fds:
        if fd >= 0:  # the kernel had no pidfd to give
            os.close(fd)


def _is_listener(sock: socket.SocketType) -> bool:
    """Say whether a TCP socket is a listening one, by its state: struct tcp_info's first byte, for one system call
    where type, protocol, domain and SO_ACCEPTCONN took four. Who isn't TCP (or MPTCP) has no such option: OSError.
    """
    return sock.getsockopt(_TCP, _TCP_INFO, 1) == _TCP_LISTEN


def _is_channel(sock: socket.SocketType) -> bool:
    if (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) != socket.AF_UNIX
        or sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_SEQPACKET
        or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        return False
    sock.getpeername()  # ENOTCONN: an end that nobody can ever send to
    return True


# Looking a member up in its class, or asking for its value, takes as long as half of a check.
_CONNECTION, _LISTENER, _MEMFD = DescriptorKind.CONNECTION, DescriptorKind.LISTENER, DescriptorKind.MEMFD


def check(fd: int, kind: DescriptorKind) -> bool:
    """Say whether `fd` is what `kind` asks for. The caller keeps `fd`. A memfd is checked where it is read
    (`memfd.read`).

    A connection whose client has left already is still one (getpeername() isn't asked).
    """
    if kind is _MEMFD:
        return True
    try:
        # Family and type are given so that the constructor asks the kernel little; they are only names here. What is no
        # socket at all it refuses. socket.socket itself is a class around this one, which takes four times as long.
        sock = _Socket(_INET, _STREAM, 0, fd)
    except OSError:
        return False
    try:
        if kind is _CONNECTION:
            return not _is_listener(sock)
        if kind is _LISTENER:
            return _is_listener(sock)
        return _is_channel(sock)
    except OSError:
        return False
    finally:
        sock.detach()
