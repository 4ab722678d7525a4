"""A worker's loop in a thread, around the real Connection and Site, for tests with real sockets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.kinds import Mount, StaticOptions, WsgiOptions
from pyttpd.config.shares import HttpSettings, LogSettings, PoolSettings, TenantLogs, VhostShare

from pyttpd_vhost.http.connection import Connection, Want
from pyttpd_vhost.kinds.static import StaticKind
from pyttpd_vhost.kinds.wsgi import Application, WsgiKind
from pyttpd_vhost.site import Site
from support.rawhttp import Answer, Client

__all__ = ["Answer", "Client"]

HOST = "a.test"
EVENTS = {Want.READ: select.EPOLLIN, Want.WRITE: select.EPOLLOUT}
#: How often the test loop looks at deadlines: fine enough for tests with deadlines of a tenth of a second.
TICK = 0.02


class ListLog:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def debug(self, event: str, **fields: object) -> None:
        self.lines.append(("debug", event, fields))

    def info(self, event: str, **fields: object) -> None:
        self.lines.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.lines.append(("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.lines.append(("error", event, fields))

    def output(self, line: str) -> None:
        self.lines.append(("info", "output", {"line": line}))

    def events(self) -> list[str]:
        return [event for _, event, _ in self.lines]


def serves(root: Path, **options: Any) -> dict[str, Any]:
    """Return what a share says of static files below `root`."""
    return {"root": str(root), "mounts": (Mount("/", StaticOptions(str(root), **options)),)}


def make_share(**changes: Any) -> VhostShare:
    share = VhostShare(
        generation=1,
        name="test",
        uid=20001,
        gid=20001,
        hosts=(HOST, "*.wild.test"),
        foreign=("theirs.wild.test", "*.deep.wild.test"),
        default=True,
        root="/",
        mounts=(Mount("/", WsgiOptions("app:app")),),
        python_path=(),
        env={},
        writable=(),
        allow=(),
        pool=PoolSettings(),
        http=HttpSettings(),
        logs=TenantLogs(access_log="off"),
        log=LogSettings(),
        grace=30.0,
    )
    return replace(share, **changes)


class Server(threading.Thread):
    """Serves `site` on a loopback port until `stop`."""

    def __init__(self, site: Site) -> None:
        super().__init__(daemon=True)
        self.site = site
        self.connections: dict[int, Connection] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._stopping = False
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            self._loop()
        except BaseException as fault:
            self.fault = fault
        finally:
            for connection in self.connections.values():
                connection.abort()
                connection.sock.close()
            self._listener.close()

    def _loop(self) -> None:
        wants: dict[int, Want] = {}
        with contextlib.closing(select.epoll()) as epoll:
            epoll.register(self._listener, select.EPOLLIN)
            self._extra(epoll)
            while not self._stopping:
                events = epoll.poll(TICK)
                self.site.turn = object()
                for fd, _ in events:
                    if fd == self._listener.fileno():
                        sock, address = self._listener.accept()
                        sock.setblocking(False)
                        fd = sock.fileno()
                        self.connections[fd] = self.site.connection(sock, address, HOST, self.site)
                        wants[fd] = Want.READ
                        epoll.register(fd, select.EPOLLIN)
                        continue
                    if self._other(epoll, wants, fd):
                        continue
                    connection = self.connections[fd]
                    turn = connection.on_readable if wants[fd] is Want.READ else connection.on_writable
                    self._settle(epoll, wants, fd, turn())
                now = time.monotonic()
                for fd, connection in list(self.connections.items()):
                    if fd in wants and connection.deadline <= now:
                        self._settle(epoll, wants, fd, connection.on_timeout())

    def _extra(self, epoll: select.epoll) -> None:
        """Register what else there is (beside.py)."""

    def _other(self, epoll: select.epoll, wants: dict[int, Want], fd: int) -> bool:
        """Whether `fd` is that, and was seen to."""
        return False

    def _settle(self, epoll: select.epoll, wants: dict[int, Want], fd: int, want: Want) -> None:
        if want is Want.CLOSED:
            epoll.unregister(fd)
            self.connections[fd].sock.close()
            del self.connections[fd], wants[fd]
        elif want is not wants[fd]:
            epoll.modify(fd, EVENTS[want])
            wants[fd] = want

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def stop(self) -> None:
        self._stopping = True
        self.join(10)
        assert not self.is_alive()
        if self.fault is not None:
            raise self.fault

    def wait_closed(self) -> None:
        """Wait until the server has no connection left."""
        end = time.monotonic() + 5
        while self.connections and time.monotonic() < end:
            time.sleep(0.005)
        assert not self.connections


def descriptors(wanted: int | None = None) -> int:
    """How many descriptors the process has; waits until there are `wanted` (the server may still have to accept)."""
    end = time.monotonic() + 5
    while (
        (count := len(os.listdir("/proc/self/fd"))) != wanted
        and wanted is not None
        and time.monotonic() < end
    ):
        time.sleep(0.01)
    return count


def close(site: Site) -> None:
    """Give back what a static site holds: it is a circle, which the collector finds when it likes."""
    site.kind.close()  # type: ignore[attr-defined]
    pages = getattr(site.page, "__self__", None)
    if pages is not None:
        pages._root.close()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers: serve(application, **http settings), serve(root=folder, ...), or serve(kind=what makes one of a
    site); `share`: other keys.
    """
    with contextlib.ExitStack() as stack:

        def start(
            application: Application | None = None,
            *,
            root: Path | None = None,
            kind: Callable[[Site], Any] | None = None,
            share: dict[str, Any] | None = None,
            **http: Any,
        ) -> Server:
            made = make_share(http=HttpSettings(**http), **(share or {}))
            if root is not None:
                made = replace(made, **serves(root))
            site = Site(made, ListLog())
            if root is not None or kind is not None:
                asked = StaticKind(StaticOptions(str(root)), site) if kind is None else kind(site)
                site.kind = asked
                stack.callback(asked.close)
            else:
                assert application is not None
                site.kind = WsgiKind(application, site)
            server = Server(site)
            server.start()
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start real workers behind a played umaster: front(application, workers=1, **pool settings); see front.py."""
    from .front import Front

    with contextlib.ExitStack() as stack:

        def start(application: Application, **settings: Any) -> Front:
            started = Front(application, tmp_path / "log", **settings)
            stack.callback(started.close)
            return started

        yield start
