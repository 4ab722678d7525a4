"""Opening a file below a root, and nowhere else; and knowing it again.

openat2(2) with RESOLVE_BENEATH walks the path in the kernel and refuses to leave the root at any step: by
"..", by an absolute symbolic link, by a race with somebody who renames. Where a kernel or a seccomp filter
hasn't got it, each component is opened by itself with O_NOFOLLOW: the same, except that symbolic links are
refused altogether.

A file that was opened once is known again by name without opening it: `identity` of a stat is the same as long as
nobody has replaced it or written to it. Only a file that was changed a moment ago can't be trusted so far (`settled`):
it may be changed once more before the kernel's clock has moved on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time

_SYS_OPENAT2 = 437  # the same on every architecture (linux/include/uapi/asm-generic/unistd.h)
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
#: The kernel asks for another try when somebody renamed in the tree meanwhile; after this many it's an attack
#: or a fault.
_TRIES = 8

#: How long (ns) a file must have been left alone before its time of change tells one state from the next: file
#: systems count in steps of up to two seconds.
_SETTLED_NS = 2_000_000_000

#: Non-blocking, or opening a FIFO would wait for a writer; for a regular file it means nothing.
FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


# O_NOFOLLOW isn't among the flags: links that stay below the root are the tenant's own affair
_RESOLVE = _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS
_WITH_LINKS = _OpenHow(FLAGS & ~os.O_NOFOLLOW, 0, _RESOLVE)
_WITHOUT_LINKS = _OpenHow(FLAGS, 0, _RESOLVE | _RESOLVE_NO_SYMLINKS)
_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def identity(status: os.stat_result) -> tuple[int, int, int]:
    """Return what a file is known by: device, inode, and when it, or its inode, was last changed (ns)."""
    return status.st_dev, status.st_ino, status.st_ctime_ns


def settled(status: os.stat_result) -> bool:
    """Whether a further change would give the file another `identity`."""
    return time.time_ns() - status.st_ctime_ns > _SETTLED_NS


class Root:
    """A directory, held open for as long as anybody has this: renaming it doesn't change what is served."""

    fd = -1

    def __init__(self, path: str, *, symlinks: bool = True) -> None:
        """Open the directory `path`. Raises OSError."""
        self._how = ctypes.byref(_WITH_LINKS if symlinks else _WITHOUT_LINKS)
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        #: Whether this process may use openat2(2).
        self.by_openat2 = True
        try:
            os.close(self._open_by_openat2(b"."))
        except OSError:
            self.by_openat2 = False

    def close(self) -> None:
        """Give the directory back now."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    __del__ = close

    def open(self, path: bytes) -> int:
        """Open `path` (relative, no NUL) below the root for reading; the caller owns the result. Raises OSError."""
        return self._open_by_openat2(path) if self.by_openat2 else self._open_by_steps(path)

    def _open_by_openat2(self, path: bytes) -> int:
        error = errno.EAGAIN
        for _ in range(_TRIES):
            fd: int = _syscall(
                ctypes.c_long(_SYS_OPENAT2),
                ctypes.c_int(self.fd),
                ctypes.c_char_p(path),
                self._how,
                _HOW_SIZE,
            )
            if fd >= 0:
                return fd
            error = ctypes.get_errno()
            if error not in (errno.EAGAIN, errno.EINTR):
                break
        raise OSError(error, os.strerror(error))

    def _open_by_steps(self, path: bytes) -> int:
        if path[:1] == b"/":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
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
