"""What an application writes to its standard error: line by line into the tenant's log, and not without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyttpd_vhost.site import SiteLog

#: A line that is longer is cut into several (pyttpd.log shows no longer ones).
MAX_LINE = 4000
#: What one request may put into the log: a stack trace of a large framework, ten times over.
MAX_TOTAL = 65536


class Errors:
    """Takes the words of one request's application, in pieces of any size."""

    __slots__ = ("_log", "_mount", "_rest", "_total")

    def __init__(self, log: SiteLog, mount: str) -> None:
        self._log = log
        self._mount = mount
        self._rest = b""
        self._total = 0

    def feed(self, data: bytes) -> None:
        """Log the lines that are whole. What isn't printable is escaped by the log."""
        if self._total > MAX_TOTAL:
            return
        *lines, rest = (self._rest + data[: MAX_TOTAL + 1]).split(b"\n")
        for line in lines:
            self._tell(line)
        while len(rest) > MAX_LINE:
            self._tell(rest[:MAX_LINE])
            rest = rest[MAX_LINE:]
        self._rest = rest

    def end(self) -> None:
        """Log a last line without an end."""
        if self._rest:
            self._tell(self._rest)
            self._rest = b""

    def _tell(self, line: bytes) -> None:
        if self._total > MAX_TOTAL:
            return
        line = line.rstrip(b"\r")
        for start in range(0, len(line), MAX_LINE):
            piece = line[start : start + MAX_LINE]
            self._total += len(piece)
            if self._total > MAX_TOTAL:
                self._rest = b""
                self._log.warning("application says more than is logged of one request", mount=self._mount)
                return
            self._log.output(f"{self._mount or '/'}: {piece.decode('utf-8', 'replace')}")
