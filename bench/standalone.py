"""One worker that accepts by itself: the vhost's Connection and Site without the tree, in the smallest epoll
loop.

    python bench/standalone.py [--kind wsgi] [--app hello:app] [--path bench] [--root .] [--port 8000] [--engine h11]
                               [--access-log FILE]

What the tree is compared with (suite/peers.py), and a quick way to look at an application. Not for production: no
confinement, one process. Its access log has the lines that a tree's has, and is written when a worker of a tree would
hand its lines over: there is nobody who would look at them, so it writes them itself.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import threading
import time
from pathlib import Path

from pyttpd.config.kinds import AsgiOptions, KindOptions, Mount, StaticOptions, WsgiOptions
from pyttpd.config.shares import HttpSettings, LogSettings, PoolSettings, TenantLogs, VhostShare
from pyttpd.log import Log
from pyttpd.wire.messages import Client

from pyttpd_vhost.access import BATCH, INTERVAL, Combined
from pyttpd_vhost.aside import Aside
from pyttpd_vhost.http.connection import Connection, Want
from pyttpd_vhost.parking import Parked
from pyttpd_vhost.site import Site

EVENTS = {Want.READ: select.EPOLLIN, Want.WRITE: select.EPOLLOUT}
TICK = 1.0


def make_site(
    kind: str,
    application: str | None,
    path: Path,
    root: Path,
    engine: str = "llhttp",
    event_loop: str = "asyncio",
) -> Site:
    """Return a loaded site for every host."""
    options: KindOptions = StaticOptions(str(root.resolve()))
    if kind != "static":
        name = application or ""
        options = WsgiOptions(name) if kind == "wsgi" else AsgiOptions(name, event_loop=event_loop)
    share = VhostShare(
        generation=1,
        name="bench",
        uid=20001,
        gid=20001,
        hosts=("localhost",),
        foreign=(),
        default=True,
        root=str(root.resolve()),
        mounts=(Mount("/", options),),
        python_path=(str(path.resolve()),),
        env={},
        writable=(),
        allow=(),
        pool=PoolSettings(),
        http=HttpSettings(engine=engine),
        logs=TenantLogs(access_log="off"),
        log=LogSettings(),
        grace=30.0,
    )
    site = Site(share, Log("vhost", "bench"))
    site.load()
    return site


class ToFile(Combined):
    """An access log that its worker writes to a file, whose end it is."""

    def __init__(self, path: Path) -> None:
        super().__init__("bench", socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))  # isn't used
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _sent(self, record: bytes) -> bool:
        if os.write(self._fd, record) != len(record):
            raise SystemExit("standalone: the access log can't be written")
        return True


def serve(listener: socket.socket, site: Site, authority: str) -> None:
    """Accept and serve until killed."""
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    connections: dict[int, Connection] = {}
    waiting: dict[int, Want] = {}
    if site.aside is not None and threading.current_thread() is threading.main_thread():
        site.aside.begin(Beside(epoll, connections, waiting))
        threading.Thread(target=turn, args=(epoll, listener, site, authority, connections, waiting)).start()
        site.aside.run()
    turn(epoll, listener, site, authority, connections, waiting)


def turn(
    epoll: select.epoll,
    listener: socket.socket,
    site: Site,
    authority: str,
    connections: dict[int, Connection],
    waiting: dict[int, Want],
) -> None:
    """The epoll loop."""
    listening = listener.fileno()
    now = time.monotonic()
    tick = now + TICK
    lines = [] if site.access is None else site.access.lines
    send_lines_at = 0.0
    while True:
        events = epoll.poll(max(0.0, send_lines_at - now) if lines else TICK)
        site.turn = object()
        for fd, _ in events:
            if fd == listening:
                try:
                    sock, address = listener.accept()
                except OSError:
                    continue
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = connections[sock.fileno()] = Connection(sock, address[:2], authority, site)
                waiting[sock.fileno()] = Want.READ
                epoll.register(sock, select.EPOLLIN)
                continue
            connection = connections[fd]
            want = connection.on_writable() if waiting[fd] is Want.WRITE else connection.on_readable()
            if want is not waiting[fd]:
                settle(epoll, connections, waiting, fd, want, site.aside)
        now = time.monotonic()
        if lines and (now >= send_lines_at or len(lines) >= BATCH):  # as Worker._serve_alone does
            site.flush()
            send_lines_at = now + INTERVAL
        if now >= tick:
            tick = now + TICK
            for fd in [fd for fd, connection in connections.items() if connection.deadline <= now]:
                settle(epoll, connections, waiting, fd, connections[fd].on_timeout(), site.aside)


class Beside:
    """What an event loop needs of its worker (`pyttpd_vhost.aside.Host`): the loop above, in another thread."""

    def __init__(
        self, epoll: select.epoll, connections: dict[int, Connection], waiting: dict[int, Want]
    ) -> None:
        self._epoll, self._connections, self._waiting = epoll, connections, waiting

    def settle(self, one: Parked, want: Want) -> None:
        """Take a connection back."""
        if want is Want.CLOSED:
            one.connection.sock.close()
            return
        self._connections[one.fd] = one.connection
        self._waiting[one.fd] = want
        self._epoll.register(one.fd, EVENTS[want])

    def give_credit(self) -> None:
        """Nobody gives us connections but the kernel."""


def settle(
    epoll: select.epoll,
    connections: dict[int, Connection],
    waiting: dict[int, Want],
    fd: int,
    want: Want,
    aside: Aside | None = None,
) -> None:
    """Wait for something else, or close."""
    if want is Want.CLOSED:
        epoll.unregister(fd)
        connections.pop(fd).sock.close()
        del waiting[fd]
    elif want is Want.AWAY:
        epoll.unregister(fd)
        connection = connections.pop(fd)
        del waiting[fd]
        assert aside is not None
        aside.take(Parked(connection, Client("127.0.0.1", 0), "", fd))
    else:
        epoll.modify(fd, EVENTS[want])
        waiting[fd] = want


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", default="wsgi", choices=("wsgi", "static", "asgi"))
    parser.add_argument("--app", default="hello:app")
    parser.add_argument("--path", type=Path, default=Path(__file__).parent)
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--engine", default="llhttp", choices=("llhttp", "h11"))
    parser.add_argument("--event-loop", default="asyncio", choices=("asyncio", "uvloop"))
    parser.add_argument("--access-log", type=Path)
    arguments = parser.parse_args()
    site = make_site(
        arguments.kind, arguments.app, arguments.path, arguments.root, arguments.engine, arguments.event_loop
    )
    if arguments.access_log is not None:
        site.access = ToFile(arguments.access_log)
    listener = socket.create_server(("127.0.0.1", arguments.port), backlog=1024)
    listener.setblocking(False)
    serve(listener, site, "127.0.0.1")


if __name__ == "__main__":
    main()
