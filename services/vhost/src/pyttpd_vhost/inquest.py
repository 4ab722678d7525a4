"""What the supervisor finds out about a process of the tenant's whose interpreter stands still.

Theory of operation. A worker audits its own requests (audit.py), as long as any thread of it can run Python. Where C
code holds the interpreter's lock, none can, and what is to be seen from outside is that no Beat comes. Then a signal
still works: faulthandler answers it from C, without the lock, and writes where each thread is into a pipe that all
processes of the tenant's have from the start. The supervisor asks one at a time, reads for COLLECT, and logs what came.

What comes through the pipe is the tenant's word, as what it prints is: bounded, made printable by the log, and believed
by nobody. Whoever doesn't answer is stopped, or has done away with its handler; the signal may have ended it.

Rules:
- A silent worker is asked once in each silence: when that has lasted for slow_request, and before it is killed at the
  latest. It is killed when that has lasted for request_timeout, or for BEAT_LIMIT: what it has in hand can't be
  finished by anybody.
- A Beat is up to a second old when a request begins, so SLACK comes on top.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from pyttpd.log import Log
from pyttpd.loop import Loop

from pyttpd_vhost.evictor import BEAT_LIMIT, LOAD_TIMEOUT
from pyttpd_vhost.scoreboard import printable

if TYPE_CHECKING:
    from pyttpd.config.shares import PoolSettings

    from pyttpd_vhost.processes import PrototypeChild, WorkerChild
    from pyttpd_vhost.scoreboard import Scoreboard

#: Not one that an application may want for itself: those have names.
SIGNAL = signal.SIGRTMIN + 7
#: Beats come every second; a busy machine may make one wait for another.
SLACK = 2.0
#: faulthandler writes for so long (s) at the most; it takes milliseconds.
COLLECT = 0.3
#: So long (s) before it is killed a process is asked at the latest: the supervisor looks twice a second.
LAST_WORDS = 1.5
#: What a pipe holds (pipe(7)): no more is read of one dump.
MAX_DUMP = 65536
#: Lines that are kept of it, the first ones: faulthandler begins with the innermost frame of each thread.
MAX_LINES = 60
#: Who is waiting to be asked; more are not.
MAX_WAITING = 8


def answer(fd: int) -> None:
    """In a process of the tenant's, and all that it forks: write tracebacks to `fd` when the signal comes."""
    os.set_blocking(fd, False)
    faulthandler.register(SIGNAL, file=fd, all_threads=True, chain=False)


def asked_after(pool: PoolSettings) -> float:
    """Return how long (s) a silence is before somebody asks."""
    latest = killed_after(pool) - LAST_WORDS
    return min(latest, pool.slow_request + SLACK) if pool.slow_request else latest


def killed_after(pool: PoolSettings) -> float:
    """Return how long (s) a silence may be."""
    return min(BEAT_LIMIT, pool.request_timeout + SLACK) if pool.request_timeout else BEAT_LIMIT


class Inquest:
    """A supervisor's. `fd` is the end for the children; `log` returns where the tenant's output goes."""

    def __init__(self, loop: Loop, log: Callable[[], Log], send: Callable[[int, int], object]) -> None:
        self._read, self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._loop = loop
        self._log = log
        self._send = send
        self._silent: set[int] = set()
        self._waiting: deque[tuple[int, dict[str, object]]] = deque()
        self._collecting = False
        #: Silences that were asked about.
        self.asked = 0

    def hear(self, pid: int, silence: float, after: float, **fields: object) -> bool:
        """Process `pid`, a child not yet reaped, has been silent for `silence` s; from `after` on it is asked, once.

        Returns whether it is asked now.
        """
        if silence < after:
            self._silent.discard(pid)
            return False
        if pid in self._silent:
            return False
        self._silent.add(pid)
        self.asked += 1
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append((pid, fields | {"seconds": round(silence, 1)}))
            self._next()
        return True

    def listen(
        self,
        pool: PoolSettings,
        workers: Iterable[WorkerChild],
        prototype: PrototypeChild | None,
        board: Scoreboard,
        now: float,
    ) -> None:
        """Ask who has been silent for too long where it stands, before it is killed."""
        after = asked_after(pool)
        for worker in workers:
            if worker.pid and worker.ready:
                self.ask(worker, board, now - worker.last_beat, after)
        if prototype is not None:
            limit = BEAT_LIMIT if prototype.ready else LOAD_TIMEOUT
            silence = now - prototype.last_beat
            self.hear(prototype.pid, silence, limit - LAST_WORDS, process="prototype")

    def ask(self, worker: WorkerChild, board: Scoreboard, silence: float, after: float) -> bool:
        """The same as hear, of a worker: with its last request."""
        row = board.read(worker.slot, worker.number)
        host, path = printable(row.last_host), printable(row.last_path)
        return self.hear(worker.pid, silence, after, worker=worker.number, last_host=host, last_path=path)

    def forget(self, pid: int) -> None:
        """Process `pid` has been reaped."""
        self._silent.discard(pid)
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != pid)

    def close(self) -> None:
        """Give both ends back."""
        os.close(self._read)
        os.close(self.fd)

    def _next(self) -> None:
        if self._collecting or not self._waiting:
            return
        pid, fields = self._waiting.popleft()
        self._take()  # whatever somebody has written there unasked
        self._send(pid, SIGNAL)
        self._collecting = True
        self._loop.call_later(COLLECT, lambda: self._tell(fields))

    def _tell(self, fields: dict[str, object]) -> None:
        self._collecting = False
        lines = self._take().decode("utf-8", "replace").splitlines()
        if len(lines) > MAX_LINES:
            lines[MAX_LINES:] = [f"({len(lines) - MAX_LINES} more lines)"]
        text = "\n".join(lines) or "(no answer: it is stopped, or doesn't listen)"
        self._log().warning("no sign of life: where it stands", **fields, traceback=text)
        self._next()

    def _take(self) -> bytes:
        try:
            return os.read(self._read, MAX_DUMP)
        except BlockingIOError:
            return b""
