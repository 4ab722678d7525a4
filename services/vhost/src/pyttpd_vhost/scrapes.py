"""Who asks for a tenant's metrics: connections from umaster, like any other, each answered by a child forked for it.

So the supervisor never touches a scraper's bytes, and a scraper that is slow keeps nobody waiting. The child has
everything that it tells by fork.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import NoReturn

from pyttpd import metrics, privileges, tcp
from pyttpd.channel import Channel
from pyttpd.service import Service
from pyttpd.wire.messages import Credit, Dispatch, Message, Taken, Worker
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost import report
from pyttpd_vhost.processes import keep_only

#: As a worker of ours it has number 0; those that serve clients count from 1.
METRICS_WORKER = 0
#: Scrapes answered at a time, each by a child.
MAX_SCRAPES = 2


class Scrapes:
    """The supervisor's own channel for scrapes. `pids` are the children that answer; who reaps one says `done`."""

    def __init__(self, service: Service, pool: Callable[[], report.Pool]) -> None:
        self._service = service
        self._pool = pool
        self._channel: Channel | None = None
        self.pids: set[int] = set()

    def attach(self, umaster: Channel) -> None:
        """Announce ourselves to a umaster that has just let us in."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if not umaster.send(Worker(METRICS_WORKER, "metrics"), theirs.fileno()):
                ours.close()
                return
        self._channel = Channel(
            ours,
            Kind.WORKER,
            Side.CONNECTOR,
            loop=self._service.loop,
            log=self._service.log,
            faults=self._service.faults,
            peer="umaster",
            version=umaster.version,
            on_message=self._on_scrape,
            on_close=self._lost,
        )
        self._channel.send(Credit(max(1, MAX_SCRAPES - len(self.pids))))

    def _lost(self, _channel: Channel, _reason: str) -> None:
        self._channel = None

    def done(self, pid: int) -> None:
        self.pids.discard(pid)
        self._give_credit()

    def _give_credit(self) -> None:
        if self._channel is not None and not self._service.draining:
            self._channel.send(Credit(1))

    def _on_scrape(self, channel: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Dispatch(id_, _, _, mark):
                assert fd is not None
                told = channel.send(Taken(id_))
                with socket.socket(fileno=os.dup(fd)) as sock:
                    ours = told and tcp.claim(sock, mark)
                if not ours:
                    os.close(fd)
                    if told:
                        self._give_credit()
                    return
                who = metrics.About.me()
                try:
                    pid = os.fork()
                except OSError:
                    # No process to be had: this scrape is lost, the next may find one.
                    os.close(fd)
                    self._give_credit()
                    return
                if pid == 0:
                    self._answer(fd, who)
                os.close(fd)
                self.pids.add(pid)
            case _:
                pass

    def _answer(self, fd: int, who: metrics.About) -> NoReturn:
        try:
            keep_only(fd)
            privileges.set_process_name(f"m:{self._service.options.name}")
            pool = self._pool()
            families = [*self._service.about(who), *report.collect(pool)]
            metrics.answer(socket.socket(fileno=fd), metrics.render(families, report.notes(pool)))
        finally:
            os._exit(0)
