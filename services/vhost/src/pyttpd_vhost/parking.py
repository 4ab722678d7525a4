"""The connections that nobody is serving right now, and epoll, which says when one of them can go on.

Rules:
- Who takes a connection out of `parked` (dict.pop is atomic) owns it, until it settles it: back, or closed. Who has got
  it from a list of them, or has done anything in between, takes it by `take`.
- `Parked.want` is what epoll waits for; None: epoll doesn't know the connection.
- While a connection is served it stays in epoll: two system calls for each request would be the price of taking it
  out. That does no harm as long as who serves it is the one who polls. When another thread polls meanwhile, it would be
  told of that connection again and again; it takes it out (`ignore`), and settling puts it back.
- All of that happens under `_lock`, with one exception: the worker's quick path puts a connection back that waits for
  the same as before without it. Between its look at `want` and its write to `parked` it calls nothing and jumps
  nowhere, so no other thread can run (CPython looks for one only there); the worker's sweep finds what is left if that
  ever changes.
- A served connection's descriptor is closed under `_lock` only. So who holds it can tell whether a number still means
  that connection (`take_away`).
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterable

from pyttpd.loop import READ, WRITE
from pyttpd.wire.messages import Client

from pyttpd_vhost.http.connection import Connection, Want

_EVENTS = {Want.READ: READ, Want.WRITE: WRITE}
# Looking a member up in its class takes a while, and is done for each connection.
_CLOSED, _AWAY = Want.CLOSED, Want.AWAY


class Parked:
    """A connection of ours with what leads back to it. `mark`: it is offered for that one."""

    __slots__ = ("authority", "client", "connection", "fd", "mark", "want")
    mark: int

    def __init__(self, connection: Connection, client: Client, authority: str, fd: int) -> None:
        self.connection = connection
        self.client = client
        self.authority = authority
        self.fd = fd
        self.want: Want | None = None

    @property
    def sock(self) -> socket.SocketType:
        return self.connection.sock


class Parking:
    """See the module's text. `epoll` is the loop's, and stays its."""

    __slots__ = ("_epoll", "_lock", "parked")

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._lock = threading.Lock()
        self.parked: dict[int, Parked] = {}

    def take(self, one: Parked, *, unread: bool = False) -> bool:
        """Take `one` out of `parked`, for who has seen it there a while ago. False: it isn't there any more.

        Its number alone doesn't say that it is still the same: closed or passed on meanwhile, it may be another one's.
        unread: only if it (still) is; who had it meanwhile may have read the beginning of a request.
        """
        found = self.parked.pop(one.fd, None)
        if found is None:
            return False
        if found is one and (one.connection.unread or not unread):
            return True
        self.parked[one.fd] = found
        return False

    def settle(self, one: Parked, want: Want) -> None:
        """Wait for `want` on `one`, which is out of `parked`, or close it, or leave it to who serves it elsewhere."""
        with self._lock:
            if want is _CLOSED:
                # Out of epoll first: while the listener still has its copy, close() alone would leave it registered
                # (epoll(7)).
                if one.want is not None:
                    self._forget(one)
                one.connection.sock.close()
                return
            if want is _AWAY:
                self._forget(one)
                return
            if one.want is None:
                self._epoll.register(one.fd, _EVENTS[want])
            elif want is not one.want:
                self._epoll.modify(one.fd, _EVENTS[want])
            one.want = want
            self.parked[one.fd] = one

    def forget(self, one: Parked) -> None:
        """Take `one` out of epoll; it is out of `parked`, and goes on its way."""
        with self._lock:
            self._forget(one)

    def _forget(self, one: Parked) -> None:
        if one.want is not None:
            one.want = None
            self._epoll.unregister(one.fd)

    def ignore(self, fd: int, served: Iterable[Parked | None]) -> None:
        """Let epoll be silent about `fd` if it is one of the connections that are being `served`."""
        with self._lock:
            if fd in self.parked:
                return
            for one in served:
                if one is not None and one.fd == fd and one.want is not None:
                    self._forget(one)

    def take_away(self, one: Parked, dead: socket.socket) -> socket.socket | None:
        """Take a connection from whoever is stuck with it: what that one does from now on, it does to `dead`.

        The number isn't closed, so nobody can get it anew; it only means something else. Returns the client's socket,
        which the caller owns, or None if `one` isn't being served any more. Raises OSError without a free descriptor.
        """
        with self._lock:
            sock = one.connection.sock
            if sock.fileno() < 0 or self.parked.get(one.fd) is one:
                return None
            kept = socket.socket(sock.family, sock.type, sock.proto, os.dup(one.fd))
            kept.setblocking(False)
            self._forget(one)
            os.dup2(dead.fileno(), one.fd, inheritable=False)
            return kept

    def fork(self) -> None:
        """In a forked child: nobody else holds the lock any more."""
        self._lock = threading.Lock()
