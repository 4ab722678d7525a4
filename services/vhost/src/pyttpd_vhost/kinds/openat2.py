"""Opening a file below a root, and nowhere else.

openat2(2) with RESOLVE_BENEATH walks the path in the kernel and refuses to leave the root at any step: by
"..", by an absolute symbolic link, by a race with somebody who renames. Where a kernel or a seccomp filter
hasn't got it, each component is opened by itself with O_NOFOLLOW: the same, except that symbolic links are
refused altogether.
"""

from __future__ import annotations

import ctypes
import errno
import os

_SYS_OPENAT2 = 437  # the same on every architecture (linux/include/uapi/asm-generic/unistd.h)
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
#: The kernel asks for another try when somebody renamed in the tree meanwhile; after this many it's an attack
#: or a fault.
_TRIES = 8

#: Non-blocking, or opening a FIFO would wait for a writer; for a regular file it means nothing.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# O_NOFOLLOW isn't among its flags: links that stay below the root are the tenant's own affair
_HOW = _OpenHow(FLAGS & ~os.O_NOFOLLOW, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_HOW))
_HOW_POINTER = ctypes.byref(_HOW)
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def _open_by_openat2(root: int, path: bytes) -> int:
    error = errno.EAGAIN
    for _ in range(_TRIES):
        fd: int = _syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root), ctypes.c_char_p(path), _HOW_POINTER, _HOW_SIZE
        )
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        if error not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(error, os.strerror(error))


def _open_by_steps(root: int, path: bytes) -> int:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    for component in path.split(b"/"):
        if component in (b"", b"."):
            continue
        try:
            if component == b"..":
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            deeper = os.open(component, FLAGS, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def has_openat2(root: int) -> bool:
    """Whether this process may use openat2(2)."""
    try:
        os.close(_open_by_openat2(root, b"."))
    except OSError:
        return False
    return True


def open_beneath(root: int, path: bytes, *, by_openat2: bool = True) -> int:
    """Open `path` (relative, no NUL) below the directory `root` for reading; the caller owns the result.

    Raises OSError.
    """
    return _open_by_openat2(root, path) if by_openat2 else _open_by_steps(root, path)
