"""Bytes handed over as a sealed memfd (memfd_create(2), fcntl(2) F_ADD_SEALS): nobody can change them any more."""

from __future__ import annotations

import fcntl
import hashlib
import os

from pyttpd.wire.errors import RemoteProtocolError

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
#: 100,000 host names of the longest kind, and every share, stay below this.
MAX_SIZE = 64 * 1024 * 1024


def digest_of(data: bytes) -> bytes:
    """Return the SHA-256 of `data` (32 bytes)."""
    return hashlib.sha256(data).digest()


def make(name: str, data: bytes) -> int:
    """Return a sealed memfd that holds `data`; the caller owns it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int, size: int, digest: bytes) -> bytes:
    """Return the `size` bytes of the sealed memfd `fd`, which stays the caller's.

    Raises RemoteProtocolError if it is no memfd, isn't sealed, or is not what was announced.
    """
    if size > MAX_SIZE:
        raise RemoteProtocolError("oversized", f"a memfd of {size} bytes, {MAX_SIZE} at most")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        raise RemoteProtocolError("descriptors", f"no memfd ({error.strerror})") from None
    if seals & _SEALS != _SEALS:
        raise RemoteProtocolError("descriptors", "a memfd that isn't sealed")
    if os.fstat(fd).st_size != size:
        raise RemoteProtocolError("bad-field", "a memfd of another size than announced")
    data = os.pread(fd, size, 0)
    if digest_of(data) != digest:
        raise RemoteProtocolError("bad-field", "a memfd with other content than announced")
    return data
