"""Who is at the other end of a unix socket (unix(7), SO_PEERCRED)."""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

_UCRED = struct.Struct("iII")


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
