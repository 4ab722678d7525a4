"""The event loop that every role runs: epoll, timers, signals. One thread, no tasks.

Theory of operation: each turn waits for events or the next timer, reads the clock once, calls the callbacks of what is
ready, then those of timers that are due, then the `after_turn` hooks (where roles send in few packets what a turn has
come to). A callback may add and remove anything, itself included. A descriptor number that is closed and used again
within one turn may get its predecessor's event, so every callback takes "nothing to read" as an answer.

All times are CLOCK_MONOTONIC, in seconds.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

#: Events taken per turn: enough to amortise the turn, few enough that timers stay punctual.
_MAX_EVENTS = 256
#: A turn comes at least this often (s), so that a signal that slipped in between is never stuck.
_MAX_WAIT = 60.0


class Timer:
    """A callback at a time. `cancel()` may be called at any time, also after it has run."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


def _leave_to_loop(_number: int, _frame: object) -> None:
    """A signal's handler: the kernel doesn't do what it does by itself, and our end of the pipe has a byte."""


class Loop:
    """An event loop. `now` is the time at which the current turn began."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.after_turn: list[Callable[[], None]] = []
        self._epoll = select.epoll(flags=select.EPOLL_CLOEXEC)
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._removed: set[int] = set()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = False
        self._signals: dict[int, Callable[[], None]] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    def add(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` whenever `fd` is ready for one of `events`. The descriptor stays the caller's."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events on `fd` from now on."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget `fd`, which must still be open. Nothing happens if it isn't known."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._removed.add(fd)

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        return self.call_at(time.monotonic() + delay, callback)

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop when signal `number` has come. For the process's main thread."""
        if self._wakeup is None:
            self._wakeup = socket.socketpair()
            for end in self._wakeup:
                end.setblocking(False)
            signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
            self.add(self._wakeup[0].fileno(), READ, self._take_signals)
        self._signals[number] = callback
        signal.signal(number, _leave_to_loop)

    def _take_signals(self, _: int) -> None:
        assert self._wakeup is not None
        try:
            numbers = self._wakeup[0].recv(256)
        except BlockingIOError:
            return
        for number in numbers:
            callback = self._signals.get(number)
            if callback is not None:
                callback()

    def stop(self) -> None:
        """Leave run() at the end of this turn."""
        self._running = False

    def run(self) -> None:
        """Serve until stop()."""
        self._running = True
        poll = self._epoll.poll
        callbacks, removed = self._callbacks, self._removed
        while self._running:
            removed.clear()
            ready = poll(self._wait(), _MAX_EVENTS)
            self.now = time.monotonic()
            for fd, events in ready:
                callback = callbacks.get(fd)
                # What was removed in this turn may be back as something else, to which nothing has happened yet.
                if callback is not None and fd not in removed:
                    callback(events)
            if self._timers:
                self._run_timers()
            for hook in self.after_turn:
                hook()

    def _wait(self) -> float:
        while self._timers:
            when, _, timer = self._timers[0]
            if timer.callback is not None:
                self.now = time.monotonic()
                return min(max(0.0, when - self.now), _MAX_WAIT)
            heapq.heappop(self._timers)
        return _MAX_WAIT

    def _run_timers(self) -> None:
        due = self.now
        while self._timers and self._timers[0][0] <= due:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def close(self) -> None:
        """Give back the loop's own descriptors (for tests, and for a child that makes a loop of its own)."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            for end in self._wakeup:
                end.close()
            self._wakeup = None
        self._epoll.close()
        self._callbacks.clear()
        self._timers.clear()


class Deadlines:
    """Deadlines that all lie the same `span` (s) after their start: O(1) each, for thousands of connections.

    Insertion order is deadline order, so only the first entry has to be looked at.
    """

    __slots__ = ("_started", "span")

    def __init__(self, span: float) -> None:
        self.span = span
        self._started: dict[object, float] = {}

    def __len__(self) -> int:
        return len(self._started)

    def start(self, key: object, now: float) -> None:
        """Begin, or begin again, the deadline of `key`."""
        self._started.pop(key, None)
        self._started[key] = now

    def stop(self, key: object) -> None:
        self._started.pop(key, None)

    def expired(self, now: float) -> list[object]:
        """Remove and return the keys whose deadline has passed, oldest first."""
        limit = now - self.span
        keys = []
        for key, started in self._started.items():
            if started > limit:
                break
            keys.append(key)
        for key in keys:
            del self._started[key]
        return keys

    def oldest(self) -> object | None:
        """Return the key that will expire first, or None."""
        return next(iter(self._started), None)

    def age(self, now: float) -> float:
        """Return how long (s) the oldest key has been waiting; 0 without one."""
        started = next(iter(self._started.values()), None)
        return 0.0 if started is None else now - started


def soft_descriptor_limit() -> int:
    """Return how many descriptors this process may have open (getrlimit(2), RLIMIT_NOFILE, soft)."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


#: Descriptors that are never given to connections: links, epoll, a share being read, imports, and all the scrapers
#: that are served at a time (metrics.MAX_SCRAPERS). Of these a packet may borrow, when the last free one is used up by
#: its first (wire.packets.MAX_FRAMES); should that ever be one too many, who has lost its own is told to offer again.
RESERVE = 32


class Budget:
    """How many descriptors a role may still open for its peers.

    At EMFILE the kernel destroys a descriptor in flight, so a role stops reading before it gets there: `exhausted` says
    when, and `on_free` is called once there is room again. Counted, not measured: /proc is out of a role's reach.
    """

    __slots__ = ("_waiting", "limit", "on_free", "used")

    def __init__(self, limit: int | None = None) -> None:
        if limit is None:
            limit = soft_descriptor_limit() - len(os.listdir("/proc/self/fd")) - RESERVE
        self.limit = max(1, limit)
        self.used = 0
        self.on_free: list[Callable[[], None]] = []
        self._waiting = False

    @property
    def exhausted(self) -> bool:
        if self.used < self.limit:
            return False
        self._waiting = True
        return True

    def take(self, count: int = 1) -> None:
        self.used += count

    def give(self, count: int = 1) -> None:
        self.used -= count
        # Some room, not one: otherwise a full role would switch its sources on and off with every connection.
        if self._waiting and self.used <= self.limit - max(1, self.limit // 32):
            self._waiting = False
            for callback in self.on_free:
                callback()
