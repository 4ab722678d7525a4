"""A listener on a stage: for its tests (services/listener), which run where no other role is."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from pyttpd import memfd
from pyttpd.config.shares import ListenerShare, LogSettings
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role
from pyttpd.wire import messages as m

from pyttpd_listener.answers import answer
from pyttpd_listener.listener import Listener
from support.wired import PATIENCE, Stage, stage

SHARE = ListenerShare(
    generation=1,
    name="http",
    mode="http",
    head_limit=4096,
    request_line_limit=2048,
    max_headers=64,
    head_timeout=10.0,
    linger_timeout=2.0,
    max_connections=500,
    max_unnamed_per_client=0,
    stress_factor=1.0,
    handover_timeout=10.0,
    proxy_protocol=(),
    log=LogSettings(),
    grace=30.0,
)
HEAD = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"
DATE = re.compile(rb"Date: ([^\r]*)\r\n")


def undated(status: int, *, head_only: bool = False) -> bytes:
    """The listener's answer, as `Front.answer_to` returns it."""
    return DATE.sub(b"", answer(status, head_only=head_only), count=1)


class Front:
    """A listener on a stage: its clients, and the umaster, init and master that it meets."""

    def __init__(
        self, on: Stage, *, budget: int = 1000, credits: int = 64, umaster: bool = True, **share: Any
    ) -> None:
        self.on = on
        self.share = replace(SHARE, **share)
        self.umaster = on.play(Directory.ROUTE, credits=credits)
        if not umaster:
            self.umaster.entrance.close()
        self.init = on.play(Directory.INIT)
        self.master = on.play(Directory.MASTER)
        self.service = on.service(Role.LISTENER, "http", budget=budget)
        self.listener = Listener(self.service)
        on.until(lambda: self.init.channels and self.master.channels)
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        on.stack.enter_context(self.socket)
        self.address = self.socket.getsockname()
        self.give_share(self.share)
        self.init.channel.send(m.Socket("listen", "http"), self.socket.fileno())
        self.init.channel.send(m.SocketsEnd(1))
        on.until(lambda: self.listener._accepting and (not umaster or self.umaster.channels))
        on.stack.callback(self._clear)

    def give_share(self, share: ListenerShare) -> None:
        data = share.to_json()
        fd = memfd.make("share", data)
        self.master.channel.send(m.Share(share.generation, "share", len(data), memfd.digest_of(data)), fd)
        os.close(fd)

    def _clear(self) -> None:
        # What a process would leave to the kernel.
        one = self.listener
        for connection in (
            *one._peeking._started,
            *one._lingering._started,
            *one._waiting,
            *one._offered.values(),
        ):
            connection.sock.close()  # type: ignore[attr-defined]
        for sock in one._sockets:
            sock.close()

    # ---- clients ----------------------------------------------------------------------------------------------------

    def connect(self, data: bytes = b"", *, source: str = "127.0.0.1") -> socket.socket:
        client = socket.create_connection(self.address, PATIENCE, (source, 0))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.on.stack.callback(client.close)
        if data:
            client.sendall(data)
        return client

    def answer_to(self, client: socket.socket) -> bytes:
        """Return all that the listener answers, to the end of the connection."""
        client.setblocking(False)
        got = b""

        def ended() -> bool:
            nonlocal got
            try:
                while data := client.recv(65_536):
                    got += data
            except BlockingIOError:
                return False
            return True

        self.on.until(ended)
        return DATE.sub(b"", got, count=1)

    # ---- umaster ----------------------------------------------------------------------------------------------------

    @property
    def offers(self) -> list[m.Route]:
        return self.umaster.record.of(m.Route)

    def offered(self, count: int = 1) -> m.Route:
        """Wait until so many were offered in all on the latest channel; return the last one."""
        self.on.until(lambda: self.umaster.records and len(self.offers) >= count)
        return self.offers[-1]

    def tell(self, message: m.Message) -> None:
        self.umaster.channel.send(message)

    def umaster_dies(self) -> None:
        """Close the channel, with all that it holds."""
        self.umaster.record.close()
        self.umaster.channel.close()

    @property
    def open(self) -> int:
        return self.listener._open()


Make = Callable[..., Front]


@pytest.fixture
def make() -> Iterator[Make]:
    with stage() as on:
        yield lambda **options: Front(on, **options)
