"""Connections to an application that listens on a Unix socket, and those that are kept for the next request.

Rules
- A connection serves one request at a time. It is kept if the application may keep it (FastCGI), has said all of its
  answer and not a byte more, and was told all of the request; at most `keep` of them are, for `KEEP_FOR` seconds.
- One that has become readable while it was kept is closed (or says something out of turn), and isn't used.
- connect(2) waits while the application's queue is full, for up to `connect_timeout` (execution/places.py).
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING

from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault
from pyttpd_vhost.kinds.gateway.relay import Wires

if TYPE_CHECKING:
    from pyttpd_vhost.execution.places import Place

#: Idle connections of an application that serves one at a time keep others out; who has traffic uses them at once.
KEEP_FOR = 5.0

#: How often this process is a fork of another one since this module was imported: what tells them apart, without asking
#: the kernel for each request.
_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_forked)


class Line(Wires):
    """A connection to an application. Owns `sock`, which is non-blocking."""

    __slots__ = ("_waiter", "since", "sock")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock.fileno(), sock.fileno())
        self.sock = sock
        #: When it was last used (CLOCK_MONOTONIC, s).
        self.since = 0.0
        self.waiter = self._waiter = select.poll()
        self._waiter.register(self.reading, select.POLLIN)

    @property
    def quiet(self) -> bool:
        """Nothing has come, and it isn't closed."""
        return not self._waiter.poll(0)

    def close(self) -> None:
        """Give it back."""
        self.sock.close()


class Backend:
    """One application's socket. For all threads of a process; made before it is forked. `patience` in s."""

    def __init__(self, place: Place, *, keep: int, patience: float) -> None:
        self.place = place
        self.most_kept = keep
        self.patience = patience
        self._kept: list[Line] = []
        self._forks = -1
        self._lock = threading.Lock()

    def kept(self) -> Line | None:
        """Return a connection that was kept and is still good; the caller owns it. None: there is none."""
        while True:
            with self._lock:
                if self._forks != _forks:
                    # Forked: they are the other process's. Closing our copies tells the application nothing.
                    self._forks = _forks
                    self._close_all()
                if not self._kept:
                    return None
                line = self._kept.pop()
            if monotonic() - line.since < KEEP_FOR and line.quiet:
                return line
            line.close()

    def keep(self, line: Line) -> None:
        """Keep `line` for another request, or close it. Owns it from now on."""
        now = line.since = monotonic()
        with self._lock:
            while self._kept and now - self._kept[0].since >= KEEP_FOR:
                self._kept.pop(0).close()
            if len(self._kept) < self.most_kept and self._forks == _forks:
                self._kept.append(line)
                return
        line.close()

    @property
    def keeps(self) -> bool:
        """Whether connections are kept at all."""
        return self.most_kept > 0

    def close(self) -> None:
        """Give back what is kept."""
        with self._lock:
            self._close_all()

    def _close_all(self) -> None:
        for line in self._kept:
            line.close()
        self._kept.clear()

    def connect(self, patience: float) -> Line:
        """Return a new connection, waiting up to `patience` s for a place in its queue; the caller owns it. Raises
        BackendError.
        """
        if self.place.fails:
            raise BackendError(Fault.UNREACHABLE, "its processes end as soon as they are started")
        try:
            sock = self.place.connect(patience)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise BackendError(Fault.FULL, f"nobody took a connection for {self.patience:g} s") from None
            raise BackendError(
                Fault.UNREACHABLE, f"{self.place.path}: {os.strerror(error.errno or errno.EINVAL)}"
            ) from None
        sock.setblocking(False)
        return Line(sock)
