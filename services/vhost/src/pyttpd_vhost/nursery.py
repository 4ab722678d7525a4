"""Where workers come from: the prototype, and what happens when it, or what it makes, dies young.

Rules
  1. There is one prototype or none. It is made when workers are wanted and gone when a tenant sleeps.
  2. What dies young is tried again with a delay that grows from FIRST_DELAY to LAST_DELAY (backoff.py); who has
     lived for STABLE_AFTER was healthy, and the count starts anew.
  3. The tenant is *failing* when its application has failed to load, or YOUNG_DEATHS workers in a row have died
     young, and no worker serves. The supervisor tells umaster, which then refuses at once. It ends with the next
     worker that serves.
  4. What a child says of why it failed is kept, bounded, for the operator.

What the prototype says is the tenant's word: a pid is believed only if the kernel says that it is our child, and nobody
else's.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from pyttpd.channel import Channel
from pyttpd.wire.errors import RemoteProtocolError

from pyttpd_vhost.backoff import FIRST_DELAY, STABLE_AFTER, Backoff
from pyttpd_vhost.processes import PrototypeChild, WorkerChild, resident

#: Ends of processes that are remembered until the prototype has said whether one was a worker.
MAX_REAPED_EARLY = 64
#: Lines of a traceback that are kept: the last ones say the most.
MAX_DETAIL = 40
#: Upper bounds (s) of the buckets of what an import, and a worker's start, took.
SPAWN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0)


@dataclass(slots=True)
class Failure:
    """Why a child has failed, in its own words: printable, and bounded by the wire (`Failed`, `Detail`)."""

    reason: str
    detail: tuple[str, ...]
    at: float


class Histogram:
    """Counts by bucket, for Prometheus."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.sum += value
        index = next((index for index, bound in enumerate(self.bounds) if value <= bound), len(self.bounds))
        self.counts[index] += 1

    def cumulative(self) -> list[tuple[str, float]]:
        total, result = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            result.append((bound, float(total)))
        return result


class Nursery:
    """The prototype, births, and young deaths.

    become(control) is run in the forked prototype, and owns `control`; channel(sock) makes our end of that.
    """

    def __init__(
        self,
        become: Callable[[socket.socket], NoReturn],
        channel: Callable[[socket.socket], Channel],
    ) -> None:
        self._become = become
        self._channel = channel
        self.prototype: PrototypeChild | None = None
        self.failure: Failure | None = None
        self.starts = 0
        self.loads = 0
        self.refused = 0
        self.spawn_time = Histogram(SPAWN_BUCKETS)
        self._backoff = Backoff()
        self._load_failed = False
        self._detail: deque[str] = deque(maxlen=MAX_DETAIL)
        self._reaped_early: dict[int, int] = {}

    def can_spawn(self, now: float) -> bool:
        return (
            self.prototype is not None
            and self.prototype.ready
            and not self.prototype.killed
            and self._backoff.may_try(now)
        )

    def retry_in(self, now: float) -> float:
        """How long (s) until the next try; 0 if nothing is waited for."""
        return self._backoff.remaining(now)

    def wake(self, now: float) -> bool:
        """Start the prototype, if there is none and it is time; say whether it was started."""
        if self.prototype is not None or not self._backoff.may_try(now):
            return False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                # No process to be had: the tenant has used up its own, or the machine's are.
                ours.close()
                self.refused += 1
                self._backoff.died_young(now)
                return False
            if pid == 0:
                self._become(theirs)
        self.prototype = child = PrototypeChild(pid, self._channel(ours), now, now)
        child.control.owner = child
        self.loads += 1
        return True

    def loaded(self, child: PrototypeChild, now: float, *, imported: bool = True) -> None:
        """The prototype is ready; without preload that says nothing of the application."""
        child.ready = True
        child.loaded_in = now - child.born
        child.resident = resident(child.pid)
        self._load_failed = self._load_failed and not imported

    # ---- failures ----

    def crash_loop(self) -> bool:
        """Say whether what was tried lately has failed. Whether the tenant is failing depends on who still serves."""
        return self._load_failed or self._backoff.looping

    def detail(self, text: str) -> None:
        self._detail.append(text)

    def failed(self, reason: str, now: float, *, loading: bool) -> None:
        """A child has said why it ends; `loading`: it was importing the application."""
        self.failure = Failure(reason, tuple(self._detail), now)
        self._detail.clear()
        self._load_failed = self._load_failed or loading

    def blame(self, reason: str, now: float) -> None:
        """A child has died young without a word: what its exit says has to do."""
        if self.failure is None or now - self.failure.at > FIRST_DELAY:
            self.failure = Failure(reason, (), now)

    def serves(self) -> None:
        """A worker is ready: the application loads, whatever comes of it."""
        self._load_failed = False

    def healthy(self) -> None:
        """A worker has lived for STABLE_AFTER."""
        self._backoff.healthy()
        self.failure = None

    def worker_died(self, lived: float, now: float) -> float:
        """A worker has ended that nobody had asked to; return the delay before the next (s)."""
        return self._backoff.died(lived, now)

    def prototype_died(self, child: PrototypeChild, now: float) -> float:
        """Return the delay before the next one (s)."""
        self.prototype = None
        if child.dismissed:
            return 0.0
        if child.ready and now - child.born > STABLE_AFTER:
            return self._backoff.pause(now)
        return self._backoff.died_young(now)

    # ---- births ----

    def reaped_early(self, pid: int, code: int) -> None:
        """Somebody has ended whom we don't know: maybe a worker that the prototype hasn't told of yet."""
        self._reaped_early[pid] = code
        if len(self._reaped_early) > MAX_REAPED_EARLY:
            del self._reaped_early[next(iter(self._reaped_early))]

    def born(self, worker: WorkerChild | None, number: int, pid: int, taken: set[int]) -> int | None:
        """The prototype says that `worker` is process `pid`; `taken` are the pids of our other children.

        Returns the exit status if that one has ended already, else None. Raises RemoteProtocolError for what can't be.
        """
        if worker is None or worker.pid:
            raise RemoteProtocolError("forged-id", f"worker {number} was not asked for")
        if pid in self._reaped_early:
            worker.pid = pid
            return self._reaped_early.pop(pid)
        try:
            # Only of a child of ours does the kernel know an answer; the status stays to be reaped.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (OSError, OverflowError):
            raise RemoteProtocolError("bad-field", f"process {pid} is no child of ours") from None
        if pid in taken:
            raise RemoteProtocolError("replayed-id", f"process {pid} is somebody else's")
        worker.pid = pid
        return None

    def ready(self, worker: WorkerChild) -> None:
        """`worker` serves for the first time."""
        worker.ready = time.monotonic()
        self.starts += 1
        self.spawn_time.add(worker.ready - worker.born)
