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


class Backend:
    """One application's socket. For all threads of a process; made before it is forked. `patience` in s."""

    def __init__(self, place: Place, *, keep: int, patience: float) -> None:
        self.place = place
        self._keep = keep
        self._patience = patience
        self._kept: list[tuple[socket.socket, float]] = []
        self._forks = -1
        self._lock = threading.Lock()

    def kept(self) -> socket.socket | None:
        """Return a connection that was kept and is still good; the caller owns it. None: there is none."""
        while True:
            with self._lock:
                if self._forks != _forks:
                    # Forked: they are the other process's. Closing our copies tells the application nothing.
                    self._forks = _forks
                    self._close_all()
                if not self._kept:
                    return None
                sock, since = self._kept.pop()
            if monotonic() - since < KEEP_FOR and _is_quiet(sock):
                return sock
            sock.close()

    def keep(self, sock: socket.socket) -> None:
        """Keep `sock` for another request, or close it. Owns it from now on."""
        with self._lock:
            now = monotonic()
            while self._kept and now - self._kept[0][1] >= KEEP_FOR:
                self._kept.pop(0)[0].close()
            if len(self._kept) < self._keep and self._forks == _forks:
                self._kept.append((sock, now))
                return
        sock.close()

    @property
    def keeps(self) -> bool:
        """Whether connections are kept at all."""
        return self._keep > 0

    def close(self) -> None:
        """Give back what is kept."""
        with self._lock:
            self._close_all()

    def _close_all(self) -> None:
        for sock, _ in self._kept:
            sock.close()
        self._kept.clear()

    def connect(self) -> socket.socket:
        """Return a new connection, non-blocking; the caller owns it. Raises BackendError."""
        if self.place.fails:
            raise BackendError(Fault.UNREACHABLE, "its processes end as soon as they are started")
        try:
            sock = self.place.connect(self._patience)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                raise BackendError(Fault.FULL, f"nobody took a connection for {self._patience:g} s") from None
            raise BackendError(
                Fault.UNREACHABLE, f"{self.place.path}: {os.strerror(error.errno or errno.EINVAL)}"
            ) from None
        sock.setblocking(False)
        return sock


def _is_quiet(sock: socket.socket) -> bool:
    waiter = select.poll()
    waiter.register(sock, select.POLLIN | select.POLLRDHUP)
    return not waiter.poll(0)
