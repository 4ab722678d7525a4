"""Prometheus metrics of a role, on a listening socket that init has bound.

Nothing is parsed: what a scraper sends is read and dropped (8 KiB and a second at most), the answer is written, the
connection is closed. The numbers are plain integers in the roles' own objects, collected when somebody asks, so that
counting costs the hot path an addition.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyttpd import __version__
from pyttpd.channel import Faults
from pyttpd.loop import READ, WRITE, Loop, Timer

if TYPE_CHECKING:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )

__all__ = [
    "About",
    "CounterMetricFamily",
    "GaugeMetricFamily",
    "HistogramMetricFamily",
    "Metric",
    "Server",
    "about",
    "answer",
    "faults",
    "load",
    "render",
]

#: What is read from a scraper at most, in bytes and seconds.
MAX_REQUEST = 8192
READ_TIMEOUT = 1.0
#: An answer that isn't taken in so long (s) is given up.
WRITE_TIMEOUT = 5.0
#: Scrapers served at a time; more wait in the kernel's queue.
MAX_SCRAPERS = 16

Collect = Callable[[], "Iterable[Metric]"]


def load() -> None:
    """Import the library that knows the format: a quarter of what a role imports in all.

    Roles do so before they are confined and forked (service.main); a supervisor that somebody waits for does it later.
    """
    import prometheus_client.core  # noqa: F401


def __getattr__(name: str) -> object:
    """The families, from the library."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from prometheus_client import core

    return getattr(core, name)


class _Once:
    """A collector for one rendering."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def render(families: Iterable[Metric], notes: Iterable[str] = ()) -> bytes:
    """Return a whole HTTP response with the families in Prometheus' text format.

    notes: lines of printable ASCII for our own tools; for everybody else they are comments.
    """
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(list(families)))
    body = generate_latest(registry) + b"".join([b"# %s\n" % note.encode("ascii") for note in notes])
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nConnection: close\r\n"
        b"Cache-Control: no-store\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body


_START = time.time()


@dataclass(frozen=True, slots=True)
class About:
    """What a process says of itself: taken by the role itself, also where a child of it answers the scraper."""

    uid: int
    started: float
    cpu_seconds: float

    @classmethod
    def me(cls) -> About:
        """Return this process's."""
        return cls(os.getuid(), _START, time.process_time())


def about(role: str, name: str, who: About) -> Iterable[Metric]:
    """Yield the families that every role has."""
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    info = InfoMetricFamily(f"pyttpd_{role}", "What this process is.")
    info.add_metric([], {"version": __version__, "uid": str(who.uid), "name": name})
    yield info
    yield GaugeMetricFamily(
        f"pyttpd_{role}_start_time_seconds", "When this process was started, Unix time.", who.started
    )
    yield GaugeMetricFamily(
        f"pyttpd_{role}_cpu_seconds", "CPU time that this process has used, in seconds.", who.cpu_seconds
    )


def faults(role: str, counted: Faults) -> Metric:
    """Return the family of what peers did wrong."""
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(
        f"pyttpd_{role}_channel_faults", "Channels closed for what the peer did.", labels=["peer", "reason"]
    )
    for (peer, reason), count in sorted(counted.counts.items()):
        family.add_metric([peer, reason], count)
    return family


class Server:
    """Answers scrapers in a role's event loop. Owns `listener`, which is listening already."""

    def __init__(self, loop: Loop, listener: socket.socket, collect: Collect) -> None:
        listener.setblocking(False)
        self._loop = loop
        self._listener = listener
        self._collect = collect
        self._open: set[_Scraper] = set()
        loop.add(listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # it left again
        except OSError:
            # No descriptor is free, which the kernel would go on saying: try again a little later.
            self._loop.modify(self._listener.fileno(), 0)
            self._loop.call_later(READ_TIMEOUT, self._resume)
            return
        self._open.add(_Scraper(self, sock, self._loop))
        if len(self._open) >= MAX_SCRAPERS:
            self._loop.modify(self._listener.fileno(), 0)

    def answer(self) -> bytes:
        return render(self._collect())

    def _resume(self) -> None:
        if self._listener.fileno() >= 0 and len(self._open) < MAX_SCRAPERS:
            self._loop.modify(self._listener.fileno(), READ)

    def forget(self, scraper: _Scraper) -> None:
        self._open.discard(scraper)
        self._loop.modify(self._listener.fileno(), READ)

    def close(self) -> None:
        for scraper in list(self._open):
            scraper.end()
        self._loop.remove(self._listener.fileno())
        self._listener.close()


class _Scraper:
    """One connection: waits for a first byte (or READ_TIMEOUT), writes, reads what is left until the other
    side closes.
    """

    def __init__(self, server: Server, sock: socket.socket, loop: Loop) -> None:
        sock.setblocking(False)
        self._server = server
        self._sock = sock
        self._loop = loop
        self._answer = memoryview(b"")
        self._read = 0
        self._started = False
        self._silent = False
        self._timer: Timer = loop.call_later(READ_TIMEOUT, self._begin)
        loop.add(sock.fileno(), READ, self._on_event)

    def _on_event(self, events: int) -> None:
        try:
            if events & ~WRITE:
                data = self._sock.recv(MAX_REQUEST)
                self._read += len(data)
                self._silent = not data
                if not self._started:
                    self._begin()
                    return
                if self._read > 2 * MAX_REQUEST or (self._silent and not self._answer):
                    self.end()
                    return
                if self._silent:
                    # It has closed its half, and still waits for the answer.
                    self._loop.modify(self._sock.fileno(), WRITE)
            if self._answer:
                self._write()
        except BlockingIOError:
            return
        except OSError:
            self.end()

    def _begin(self) -> None:
        if not self._started:
            self._started = True
            self._answer = memoryview(self._server.answer())
            self._timer.cancel()
            self._timer = self._loop.call_later(WRITE_TIMEOUT, self.end)
            self._write()

    def _write(self) -> None:
        try:
            while self._answer:
                self._answer = self._answer[self._sock.send(self._answer, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            self._loop.modify(self._sock.fileno(), WRITE if self._silent else READ | WRITE)
            return
        except OSError:
            self.end()
            return
        try:
            # The other side may still be sending: its end is waited for, or our close would reset the answer away.
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.end()
            return
        self._timer.cancel()
        self._timer = self._loop.call_later(READ_TIMEOUT, self.end)
        self._loop.modify(self._sock.fileno(), READ)

    def end(self) -> None:
        if self._sock.fileno() < 0:
            return
        self._timer.cancel()
        self._loop.remove(self._sock.fileno())
        self._sock.close()
        self._server.forget(self)


def answer(sock: socket.socket, response: bytes) -> None:
    """Answer one scraper, for a process that does nothing else (a tenant's metrics child). Closes `sock`.

    Bounded like Server: bytes and seconds to read, seconds to write.
    """
    with sock:
        sock.setblocking(False)
        try:
            _wait(sock, select.POLLIN, READ_TIMEOUT)
            try:
                sock.recv(MAX_REQUEST)
            except BlockingIOError:
                pass  # it sent nothing in time, and gets its answer all the same
            deadline = time.monotonic() + WRITE_TIMEOUT
            rest = memoryview(response)
            while rest:
                try:
                    rest = rest[sock.send(rest, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    if not _wait(sock, select.POLLOUT, deadline - time.monotonic()):
                        return
            sock.shutdown(socket.SHUT_WR)
            if _wait(sock, select.POLLIN, READ_TIMEOUT):
                sock.recv(MAX_REQUEST)
            # A duplicate may exist in another process: close() alone would not end the connection.
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return


def _wait(sock: socket.socket, events: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(max(0.0, seconds) * 1000))
