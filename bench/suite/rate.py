"""A client that asks at a constant rate, whatever the server does: each request is due at its time, and what it took
counts from then, so that a server that stalls isn't asked less meanwhile (no "coordinated omission").

One process, epoll. A connection is opened when a request is due and none is free (which counts: it is a part of what
that request took), and kept while the server keeps it; with `close` each request has one of its own. None is opened
before it is needed: a server with a process for each connection would wait for it. Good for some thousand requests/s,
which is more than the slowest peers can do.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import deque

#: After the last request is due, answers are waited for so long (s).
PATIENCE = 10.0


class Asking:
    """One connection, and when what it asks for was due."""

    __slots__ = ("due", "got", "sock")

    def __init__(self, sock: socket.socket, due: float) -> None:
        self.sock = sock
        self.due = due
        self.got = b""


class Client:
    """Ask `address` for `request`, and expect an answer whose body is `body`."""

    def __init__(self, address: tuple[str, int], request: bytes, body: bytes, *, close: bool = False) -> None:
        self._address = address
        self._close = close
        self._request = request
        self._body = body
        self._epoll = select.epoll()
        self._asking: dict[int, Asking] = {}
        self._free: list[socket.socket] = []
        self.took: list[float] = []
        self.errors = 0

    def run(self, rate: float, seconds: float, connections: int) -> None:
        """Ask `rate` times a second for `seconds`."""
        self._free = [socket.socket() for _ in range(connections)]  # not connected: see _ask
        began, asked, due = time.monotonic(), 0, deque[float]()
        total = int(rate * seconds)
        while (now := time.monotonic()) < began + seconds + PATIENCE:
            while asked < total and began + asked / rate <= now:
                due.append(began + asked / rate)
                asked += 1
            while due and self._free:
                self._ask(self._free.pop(), due.popleft())
            if asked == total and not due and not self._asking:
                break
            wait = began + asked / rate - now if asked < total else PATIENCE
            # epoll waits for whole milliseconds, rounded up: as that would be in each figure, the last one is spun
            for fd, _ in self._epoll.poll(max(0, int(1000 * wait)) / 1000):
                self._receive(self._asking[fd])
        self.errors += len(due) + len(self._asking)
        for sock in [*self._free, *(one.sock for one in self._asking.values())]:
            sock.close()
        self._epoll.close()

    def _ask(self, sock: socket.socket, due: float) -> None:
        for _ in range(2):
            try:
                sock.send(self._request)
                break
            except OSError:  # it was never open, or was closed while it was idle
                sock.close()
                sock = socket.create_connection(self._address, 10)
                sock.setblocking(False)
        self._asking[sock.fileno()] = Asking(sock, due)
        self._epoll.register(sock, select.EPOLLIN)

    def _receive(self, one: Asking) -> None:
        ended = False
        try:
            data = one.sock.recv(1 << 20)
            one.got += data
            ended = not data
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return
            ended = True
        head, separator, rest = one.got.partition(b"\r\n\r\n")
        whole = bool(separator) and len(rest) >= len(self._body)
        if not whole and not ended:
            return
        self._epoll.unregister(one.sock)
        del self._asking[one.sock.fileno()]
        if not whole and not one.got:  # closed between two requests: asked anew, and it counts from then
            one.sock.close()
            self._ask(one.sock, one.due)
            return
        if whole and rest == self._body and head.split(b" ", 2)[1:2] == [b"200"]:
            self.took.append(time.monotonic() - one.due)
        else:
            self.errors += 1
        if ended or self._close or b"connection: close" in head.lower():
            one.sock.close()
        self._free.append(one.sock)
