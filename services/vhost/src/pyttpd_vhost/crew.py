"""The threads of a worker that serve, and which of them waits for what comes next.

Theory of operation (leader and followers). One thread at a time leads: it waits in epoll. A worker begins with its main
thread, which leads all the time and serves what it finds itself: no request is handed from thread to thread. When a
request has waited for `thread_wait` while all were busy, the worker's watcher makes a crowd of it: it deposes the
leader and recruits a thread for each request that waits. In a crowd, who leads takes one connection, lets another one
lead, and serves it. When requests are quick again, whoever leads goes on alone; the others, idle, end after
`thread_idle`.

    IDLE ── nobody leads, or the leader takes something ──> LEADING ── found something ──> serving ──> IDLE or LEADING
     └── idle for too long: ends                               └── deposed by the watcher: stuck in the application

Rules:
- `leader` and the list of the idle change under `_lock`, which is held for a few instructions and never while
  something is called that can wait.
- The main thread comes first when somebody is to lead, then who became idle last: so the others get to end.
- Each thread has a `Site` of its own (parser, memory of heads, counters). A thread's site outlives it and goes to the
  next one: its counters count.
"""

from __future__ import annotations

import threading
from _queue import Empty, SimpleQueue
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyttpd_vhost.parking import Parked
    from pyttpd_vhost.site import Site

#: As large as the main thread's usually is, whatever `ulimit -s` says: templates and serialisers recurse in C. It is
#: address space; memory is used only as far down as a thread has been.
STACK_SIZE = 8 << 20


class Server:
    """One serving thread. `one` is the connection that it is serving; what follows `turns` is the audit's."""

    __slots__ = (
        "_call",
        "condemned",
        "ident",
        "name",
        "one",
        "reported",
        "seen",
        "since",
        "site",
        "taking",
        "turns",
        "waited",
    )

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.site = site
        self.ident = 0
        self.one: Parked | None = None
        #: It may have taken a connection that isn't `one` yet; how often it has begun to look for one.
        self.taking = False
        self.turns = 0
        #: What it was serving when the audit last looked, and since when (CLOCK_MONOTONIC, s).
        self.seen: object = None
        self.since = 0.0
        #: How long its client had been waited for then (s).
        self.waited = 0.0
        self.reported = False
        #: The connection that was taken away from it.
        self.condemned: Parked | None = None
        self._call: SimpleQueue[None] = SimpleQueue()

    def take(self) -> None:
        """From now on, until `taking` is false again, it may have a connection that nobody sees."""
        self.taking = True
        self.turns += 1

    def wake(self) -> None:
        self._call.put(None)

    def sleep(self, seconds: float | None) -> bool:
        """Wait to be woken. False: not within `seconds`."""
        try:
            self._call.get(timeout=seconds)
        except Empty:
            return False
        return True


class Crew:
    """See the module's text. `main` leads when it begins. `most` threads at a time."""

    def __init__(self, site: Site, *, most: int, idle_after: float) -> None:
        self.main = Server("main", site)
        self.main.ident = threading.get_ident()
        self.servers = [self.main]
        self.sites = [site]
        self.most = most
        self.leader: Server | None = self.main
        self._idle: list[Server] = []
        self._spare_sites: list[Site] = []
        self._idle_after = idle_after
        self._started = 0
        self._ended = False
        self._lock = threading.Lock()

    @property
    def main_waits(self) -> bool:
        """The main thread has nothing to do and doesn't lead."""
        return self.main in self._idle

    @property
    def idle(self) -> int:
        """How many have nothing to do and don't lead."""
        return len(self._idle)

    def served(self) -> Iterable[Parked | None]:
        """What each thread is serving."""
        return [server.one for server in self.servers]

    def busy(self, *, but: Server | None = None) -> int:
        """How many are serving something, without `but`."""
        return sum(server.one is not None for server in self.servers if server is not but)

    def await_turn(self, me: Server) -> bool:
        """Wait until `me` leads. False: it is to end instead; then it is one of the crew no longer."""
        with self._lock:
            if self._ended:
                return False
            if self.leader is None or self.leader is me:
                self.leader = me
                return True
            self._idle.append(me)
        main = me is self.main
        if not me.sleep(None if main else self._idle_after):
            with self._lock:
                if me in self._idle:
                    self._idle.remove(me)
                    self.servers.remove(me)
                    self._spare_sites.append(me.site)
                    return False
            me.sleep(None)  # somebody has just made it the leader
        return not self._ended

    def in_hand(self, open_: Callable[[], bool], *, but: Server | None) -> bool:
        """Say whether there is any connection: one that a thread (without `but`) has, or that `open_` knows of.

        Threads go on meanwhile. What one has is its `one`, or it is `taking`; what it had and has put back before we
        look at it, `open_` sees, unless somebody has taken that again, which `turns` tell. What was taken away from a
        thread that is stuck counts as nobody's.
        """
        others = [server for server in self.servers if server is not but]
        turns = [server.turns for server in others]
        if any(
            server.taking if server.one is None else server.one is not server.condemned for server in others
        ):
            return True
        return open_() or turns != [server.turns for server in others]

    def hand_over(self, me: Server) -> None:
        """`me`, if it leads, has something to do: another one leads, or nobody, until one is idle."""
        with self._lock:
            if self.leader is me:
                self._next()

    def depose(self) -> None:
        """The leader is stuck: another one leads."""
        with self._lock:
            self._next()

    def _next(self) -> None:
        if not self._idle:
            self.leader = None
            return
        if self.main in self._idle:
            self._idle.remove(self.main)
            self.leader = self.main
        else:
            self.leader = self._idle.pop()
        self.leader.wake()

    def recruit(self, count: int, serve: Callable[[Server], None]) -> int:
        """Start up to `count` threads that run `serve`; return how many there was room for (also in the system)."""
        started = 0
        before = threading.stack_size(STACK_SIZE)
        try:
            while started < count and len(self.servers) < self.most and self._start(serve):
                started += 1
        finally:
            threading.stack_size(before)
        return started

    def _start(self, serve: Callable[[Server], None]) -> bool:
        """Start a thread that runs `serve`. False: not after the end, or the system has none to give: processes are
        limited, too.
        """
        with self._lock:
            if self._ended:
                return False
            site = self._spare_sites.pop() if self._spare_sites else None
        if site is None:
            site = self.main.site.for_thread()
            self.sites.append(site)
        self._started += 1
        server = Server(f"serving-{self._started}", site)
        thread = threading.Thread(target=_body, args=(server, serve), name=server.name, daemon=True)
        with self._lock:
            self.servers.append(server)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self.servers.remove(server)
                self._spare_sites.append(site)
            return False
        return True

    def end(self) -> None:
        """Let nobody wait any longer."""
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
        for server in idle:
            server.wake()

    def fork(self) -> None:
        """In a forked child: the other threads are gone, and so is who held the lock."""
        self._lock = threading.Lock()
        self._idle = []
        self._ended = True


def _body(server: Server, serve: Callable[[Server], None]) -> None:
    server.ident = threading.get_ident()
    serve(server)
