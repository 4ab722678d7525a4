"""Descriptors over unix sockets: send_fd and recv_fd, and what a received one must prove before it is let in.

socket.recv_fds() ignores its flags, so descriptors would arrive inheritable; this uses recvmsg(2) with
MSG_CMSG_CLOEXEC. When the receiver has no free descriptor the kernel *destroys* the one in flight and sets MSG_CTRUNC
(unix(7)): that is load on our side and not an attack, and is told apart from a peer that sends too many.
"""

from __future__ import annotations

import array
import os
import socket
import sys
from collections.abc import Callable, Sequence

from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import DescriptorKind

_FD_SIZE = array.array("i").itemsize
#: Room for two: one is what the protocol allows, so the second one is seen and not merely cut off. (CMSG_SPACE of one
#: rounds up to two on 64 bit anyway.)
_ANCILLARY = socket.CMSG_SPACE(2 * _FD_SIZE)

# Plain integers: socket's flags are enums, whose arithmetic costs more than the system call.
_CUT = int(socket.MSG_CTRUNC | socket.MSG_TRUNC)
#: Said with each call: O_NONBLOCK belongs to the open file. A peer that has sent us our end shares it with us, and can
#: change it at any time (fcntl(2), F_SETFL).
DONT_WAIT = int(socket.MSG_DONTWAIT)
_SEND = int(socket.MSG_NOSIGNAL) | DONT_WAIT
_RECEIVE = int(socket.MSG_CMSG_CLOEXEC) | DONT_WAIT

_RIGHTS, _SOCKET = int(socket.SCM_RIGHTS), int(socket.SOL_SOCKET)
_SCM_PIDFD = 4  # linux/socket.h; since Linux 6.5
_TCP_LISTEN = 10  # include/net/tcp_states.h


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
    data, ancillary, flags, _ = sock.recvmsg(size, _ANCILLARY, _RECEIVE)
    if not flags & _CUT:
        if not ancillary:
            return data, None
        level, kind, payload = ancillary[0]
        if kind == _RIGHTS and level == _SOCKET and len(payload) == _FD_SIZE and len(ancillary) == 1:
            return data, int.from_bytes(
                payload, sys.byteorder
            )  # as it should be: one descriptor and nothing else
    fds, foreign = _descriptors(ancillary)
    if not flags & _CUT and len(fds) <= 1 and not foreign:
        return data, fds[0] if fds else None
    raise _refuse(data, fds, flags, size, 1, foreign=foreign)


def send_fds(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send `data` as one packet with copies of `fds`, which stay the caller's. Raises OSError."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
    sock.sendmsg([data], [rights] if fds else [], _SEND)


def recv_fds(sock: socket.socket, size: int, most: int, *, peek: bool = False) -> tuple[bytes, list[int]]:
    """Receive one packet of at most `size` bytes and the up to `most` descriptors that came with it, which the caller
    owns; `peek`: the packet stays where it is, and the caller gets copies. Raises what recv_fd raises.
    """
    how = _RECEIVE | int(socket.MSG_PEEK) if peek else _RECEIVE
    data, ancillary, flags, _ = sock.recvmsg(size, socket.CMSG_SPACE((most + 1) * _FD_SIZE), how)
    fds, foreign = _descriptors(ancillary)
    if flags & _CUT or len(fds) > most or foreign:
        raise _refuse(data, fds, flags, size, most, foreign=foreign)
    return data, fds


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


def _refuse(data: bytes, fds: list[int], flags: int, size: int, most: int, *, foreign: bool) -> Exception:
    """Close the descriptors of a packet that can't be taken; return what is to be raised."""
    for fd in fds:
        if fd >= 0:  # the kernel had no pidfd to give
            os.close(fd)
    if foreign:
        return RemoteProtocolError("descriptors", "a packet with something beside data and a descriptor")
    if flags & int(socket.MSG_TRUNC):
        return RemoteProtocolError("oversized", f"a packet of more than {size} bytes")
    if len(fds) > most:
        many = "one descriptor" if most == 1 else f"{most} descriptors"
        return RemoteProtocolError("descriptors", f"more than {many} in a packet")
    return DescriptorLost(data)


def _state(sock: socket.socket) -> int:
    """Return the state of a TCP socket: struct tcp_info's first byte, for one system call where type, protocol, domain
    and SO_ACCEPTCONN took four. Who isn't TCP (or MPTCP) has no such option: OSError.
    """
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def _is_connection(sock: socket.socket) -> bool:
    return _state(sock) != _TCP_LISTEN


def _is_listener(sock: socket.socket) -> bool:
    return _state(sock) == _TCP_LISTEN


def _is_channel(sock: socket.socket) -> bool:
    if (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) != socket.AF_UNIX
        or sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != socket.SOCK_SEQPACKET
        or sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        return False
    sock.getpeername()  # ENOTCONN: an end that nobody can ever send to
    return True


_SOCKET_CHECKS: dict[str, Callable[[socket.socket], bool]] = {
    DescriptorKind.CONNECTION.value: _is_connection,
    DescriptorKind.LISTENER.value: _is_listener,
    DescriptorKind.CHANNEL.value: _is_channel,
}


def check(fd: int, kind: DescriptorKind) -> bool:
    """Say whether `fd` is what `kind` asks for. The caller keeps `fd`. A memfd is checked where it is read
    (`memfd.read`).

    A connection whose client has left already is still one (getpeername() isn't asked).
    """
    test = _SOCKET_CHECKS.get(kind.value)
    if test is None:
        return True
    try:
        # Family and type are given so that the constructor asks the kernel little; they are only names here. What is no
        # socket at all it refuses.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:
        return False
    try:
        return test(sock)
    except OSError:
        return False
    finally:
        sock.detach()
