"""What a tenant's processes print, on its way into the log: one pipe, read by the supervisor.

A tenant's standard output is the tenant's word. It gets into the operator's terminal or log only line by
line, each with the tenant's name in front and without control characters, so that it can neither forge
another role's line nor move a cursor. A tenant that prints faster than it is read waits in its own write().
"""

from __future__ import annotations

import os
import sys
import time

from pyttpd.log import Log
from pyttpd.loop import READ, Loop

#: A longer line is cut into several.
MAX_LINE = 4096
#: Read in one turn of the loop.
_CHUNK = 16384
#: What gets into the log in a second, in bytes; who prints more waits. Each line is counted with what is put in front.
MAX_RATE = 1 << 20
_PER_LINE = 64
_PAUSE = 0.1


class Output:
    """The pipe. `fd` is the end for the children; both are closed with the process."""

    def __init__(self, loop: Loop, log: Log) -> None:
        self._read, self.fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read, False)
        self._log = log
        self._rest = b""
        self._loop = loop
        self._due = 0.0
        loop.add(self._read, READ, lambda _: self._turn())

    def _turn(self) -> None:
        """Take some; then leave the rest to the pipe for as long as that much may fill the log."""
        now = time.monotonic()
        self._due = max(now, self._due) + self.take() / MAX_RATE
        if self._due - now > 1.0:
            self._loop.modify(self._read, 0)
            self._loop.call_later(_PAUSE, self._go_on)

    def _go_on(self) -> None:
        if self._due - time.monotonic() > 1.0:
            self._loop.call_later(_PAUSE, self._go_on)
        else:
            self._loop.modify(self._read, READ)

    def take(self) -> int:
        """Log what has been printed; return how many bytes that made, about."""
        try:
            data = self._rest + os.read(self._read, _CHUNK)
        except BlockingIOError:
            return 0
        *lines, self._rest = data.split(b"\n")
        while len(self._rest) > MAX_LINE:
            lines.append(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]
        for line in lines:
            self._log.output(line.decode("utf-8", "replace"))
        return len(data) + _PER_LINE * len(lines)

    def finish(self) -> None:
        """Log also a last line without an end."""
        self.take()
        if self._rest:
            self._log.output(self._rest.decode("utf-8", "replace"))
            self._rest = b""


def redirect(fd: int) -> None:
    """In a child: print to `fd` from now on, line by line, and close it."""
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
