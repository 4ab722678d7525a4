"""Who is at the other end of a unix socket (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_UCRED = struct.Struct("iII")
#: Not in the socket module (asm-generic/socket.h).
_SO_PEERGROUPS = 59
_GID = struct.Struct("I")
#: A person is in a few groups; socket.getsockopt() takes no more than these.
_MAX_GROUPS = 256


class Credentials(NamedTuple):
    """uid and gid of the process that called connect(), listen() or socketpair(), as it was then.

    There is no pid: across pid namespaces it is 0, and it may have been used again.
    """

    uid: int
    gid: int


def peer(sock: socket.socket) -> Credentials:
    """Return the credentials of `sock`'s peer. Raises OSError if it is no connected unix socket."""
    _, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Credentials(uid, gid)


def groups(sock: socket.socket) -> frozenset[int]:
    """Return all groups of `sock`'s peer, its own gid among them; of somebody with more than 256 only that.

    Raises OSError as `peer` does.
    """
    gid = peer(sock).gid
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS * _GID.size)
    except OSError:
        return frozenset({gid})
    return frozenset({gid, *(group for (group,) in _GID.iter_unpack(raw))})
