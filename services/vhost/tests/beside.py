"""The test server (conftest.py) with an event loop beside it: real connections, real uvicorn, one process."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

from pyttpd.config.kinds import AsgiOptions, Mount
from pyttpd.wire.messages import Client

from pyttpd_vhost.http.connection import Want
from pyttpd_vhost.kinds.asgi import AsgiKind
from pyttpd_vhost.kinds.asgi.eventloop import EventLoop
from pyttpd_vhost.parking import Parked
from pyttpd_vhost.site import Site

from .conftest import HOST, ListLog, Server, make_share

Asgi = Callable[..., Any]


class BesideServer(Server):
    """Serves ASGI applications until `stop`. `loop_thread` is the event loop's."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._back: queue.SimpleQueue[tuple[Parked, Want]] = queue.SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._away: dict[int, Parked] = {}
        self.credits = 0
        assert isinstance(site.aside, EventLoop)
        self.aside = site.aside
        self._begun = threading.Event()
        self.startup_error: BaseException | None = None
        self.loop_thread = threading.Thread(target=self._run_loop, daemon=True)
        self.loop_thread.start()
        assert self._begun.wait(20)

    def _run_loop(self) -> None:
        try:
            self.aside.begin(self)
        except BaseException as error:
            self.startup_error = error
            self._close_loop()
            self._begun.set()
            return
        self._begun.set()
        try:
            self.aside.run()
        finally:
            self._close_loop()

    def _close_loop(self) -> None:
        loop = self.aside.loop
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
        asyncio.set_event_loop(None)

    # Host

    def settle(self, one: Parked, want: Want) -> None:
        self._back.put((one, want))
        with contextlib.suppress(OSError):
            self._ringer.send(b"x")

    def give_credit(self) -> None:
        self.credits += 1

    # the worker's part

    def _extra(self, epoll: select.epoll) -> None:
        epoll.register(self._bell, select.EPOLLIN)

    def _settle(self, epoll: select.epoll, wants: dict[int, Want], fd: int, want: Want) -> None:
        if want is Want.AWAY:
            epoll.unregister(fd)
            one = Parked(self.connections[fd], Client("127.0.0.1", 0), HOST, fd)
            self._away[fd] = one
            del wants[fd]
            self.aside.take(one)
            return
        super()._settle(epoll, wants, fd, want)

    def _other(self, epoll: select.epoll, wants: dict[int, Want], fd: int) -> bool:
        if fd != self._bell.fileno():
            return False
        self._bell.recv(4096)
        while not self._back.empty():
            one, want = self._back.get()
            del self._away[one.fd]
            if want is Want.CLOSED:
                one.connection.sock.close()
                del self.connections[one.fd]
            else:
                wants[one.fd] = want
                epoll.register(one.fd, {Want.READ: select.EPOLLIN, Want.WRITE: select.EPOLLOUT}[want])
        return True

    def shut_down(self, within: float = 10.0) -> None:
        """What a worker does when it leaves: everything beside it ends, the application too."""
        if self.startup_error is None and self.loop_thread.is_alive():
            self.aside.leave()
            self.wait_for(lambda: not self.aside.busy and self.aside.finish(), within)
            self.aside.end()
        self.loop_thread.join(within)
        assert not self.loop_thread.is_alive()

    def wait_for(self, what: Callable[[], object], within: float = 10.0) -> None:
        waiting = threading.Event()
        for _ in range(int(within / 0.005)):
            if what():
                return
            waiting.wait(0.005)
        raise AssertionError("not within the time")

    def stop(self) -> None:
        try:
            self.shut_down()
        finally:
            super().stop()
            self._bell.close()
            self._ringer.close()


def serve_asgi(
    application: Asgi, *, share: dict[str, Any] | None = None, log: ListLog | None = None, **options: Any
) -> BesideServer:
    """Start a server for `application`, with these AsgiOptions; `share`: what else its vhost has."""
    made = AsgiOptions("app:app", **options)
    site = Site(make_share(**{"mounts": (Mount("/", made),), **(share or {})}), log or ListLog())
    site.kind = AsgiKind(application, made, site)
    server = BesideServer(site)
    server.start()
    return server
