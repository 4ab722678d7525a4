"""A log file of a tenant's, written by its supervisor: opened anew when it has been renamed, and bounded.

Rules:
- It is opened under the tenant's uid, in the tenant's view of the files, never as root. No part of its path may
  be a symbolic link, it must be a regular file and have one name only: whatever the tenant puts in its place,
  the supervisor, which is less confined than the tenant's code, writes nowhere else for it.
- Who rotates renames the file (and may create the new one). That is seen within LOOK_INTERVAL; until then the old
  file is written, so no line is lost. No signal is needed. A file that was truncated goes on at its new end.
- If it can't be opened anew, the old one is kept, and the log says why.
- Beyond its limit, and when the disk is full, lines are counted instead of written, and told.
"""

from __future__ import annotations

import os
import stat
from typing import Final

from pyttpd.log import Log

#: How often (s) it is looked whether the file is still the one with this name.
LOOK_INTERVAL: Final = 1.0
#: The same reason why it can't be opened is told again after so many looks.
_TELL_AGAIN: Final = 60
#: The tenant's group may read it: a collector's user can be put into that.
_MODE: Final = 0o640
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def open_log(path: str) -> int:
    """Open the absolute `path` for appending, made if it isn't there; the caller owns the result.

    Raises OSError, also for what isn't a regular file with one name.
    """
    *folders, name = path.strip("/").split("/")
    folder = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for each in folders:
            # O_PATH and O_DIRECTORY: a symbolic link is ENOTDIR, also one that leads to a folder
            deeper = os.open(each, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = deeper
        try:
            fd = os.open(name, _FLAGS, dir_fd=folder)
        except FileNotFoundError:
            fd = os.open(name, _FLAGS | os.O_CREAT | os.O_EXCL, _MODE, dir_fd=folder)
    finally:
        os.close(folder)
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(fd)
        raise OSError(f"must be a regular file with one name, not {stat.filemode(found.st_mode)}")
    return fd


class LogFile:
    """The file at `path`, at most `limit` bytes long. What happens to it is told to `log`, the role's."""

    def __init__(self, path: str, limit: int, log: Log) -> None:
        self.path = path
        #: Lines that were not written, since the start.
        self.lost = 0
        self._limit = limit
        self._log = log
        self._fd = -1
        self._size = 0
        self._broken = False  # the last line hasn't got its end
        self._full = False  # has been told
        self._reason = ""
        self._looks = 0
        self._open()

    @property
    def is_open(self) -> bool:
        return self._fd >= 0

    def write(self, lines: bytes) -> None:
        """Write whole lines, or count them."""
        if self._fd < 0 or self._size + len(lines) > self._limit:
            if self._fd >= 0 and not self._full:
                self._full = True
                self._log.warning("log file is full: rotate it", file=self.path, limit=self._limit)
            self.lost += lines.count(b"\n")
            return
        if self._broken:
            lines = b"\n" + lines
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._fd, lines[written:] if written else lines)
            self._broken = False
        except OSError as error:
            if not self._full:
                self._full = True
                self._log.error("log file can't be written", file=self.path, error=error.strerror)
            self.lost += lines.count(b"\n", written)
            self._broken = (lines[written - 1 : written] or b"\n") != b"\n" if written else self._broken
        self._size += written

    def look(self) -> None:
        """See whether it is still the file of that name, and how long it is; to be called every LOOK_INTERVAL."""
        self._looks += 1
        if self._fd >= 0:
            ours = os.fstat(self._fd)
            try:
                named = os.stat(self.path, follow_symlinks=False)
            except OSError:
                named = None
            if named is not None and (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
                if ours.st_size < self._size:
                    self._full = False
                self._size = ours.st_size
                return
        self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            fd = open_log(self.path)
        except OSError as error:
            reason = error.strerror or str(error)
            if reason != self._reason:
                self._reason = reason
                # Who rotates renames first and makes the new file then, which we may not do: the next look decides.
                self._looks = -1 if self._fd >= 0 else 0
            if self._looks % _TELL_AGAIN == 0:
                self._log.error("log file can't be opened", file=self.path, error=reason)
            return
        if self._fd >= 0:
            self._log.info("log file is opened anew", file=self.path)
        self.close()
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._broken = self._full = False
        self._reason = ""
