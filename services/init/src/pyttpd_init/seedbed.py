"""The runner's end of a seed (pyttpd.seed): from where the keepers of tenants come that may sleep.

The seed is asked for one keeper at a time, and answers within milliseconds: it forks, and whatever takes longer or may
hang is done in the keeper. One that doesn't answer within PATIENCE is killed, as one that a signal has stopped; a
keeper of which it hasn't told is nobody that we know, and ends as a stray. A new seed takes its place. Keepers that are
there don't need it any more.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import Callable

from pyttpd import fdpass, seed
from pyttpd.log import Log

#: How long (s) an answer may take. Forking takes milliseconds; on a machine where it takes longer, nothing starts.
PATIENCE = 10.0
#: A seed that has ended is started again after so long (s).
AGAIN_AFTER = 1.0
MODULE = "pyttpd_vhost"


class Seedbed:
    """One seed at most. exec_(words, descriptor) replaces a forked child by a program that keeps that descriptor."""

    def __init__(self, log: Log, exec_: Callable[..., None]) -> None:
        self._log = log
        self._exec = exec_
        self._sock: socket.socket | None = None
        self._ready = False
        self._not_before = 0.0
        self.pid = 0

    def ready(self, now: float) -> bool:
        """Whether there is a seed that has imported everything; without one, start it."""
        if not self.pid and now >= self._not_before:
            self._start(now)
        if self._sock is not None and not self._ready and select.select([self._sock], [], [], 0)[0]:
            self._ready = self._answer() == seed.READY
        return self._ready and self.pid != 0

    def _start(self, now: float) -> None:
        self._not_before = now + AGAIN_AFTER
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    os.setsid()
                    self._exec(seed.command(MODULE, theirs.fileno()), theirs.fileno())
                except BaseException as error:  # noqa: BLE001 - the child ends here, whatever it was
                    self._log.error("cannot start", child="seed", error=error)
                finally:
                    os._exit(2)
        # The kernel says by a signal that something has come, which the runner waits for anyway.
        fcntl.fcntl(ours, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        self._sock = ours

    def _answer(self) -> int:
        """Return the next answer, -1 if there is none."""
        assert self._sock is not None
        try:
            data = self._sock.recv(seed.ANSWER.size)
        except OSError:
            data = b""
        return int(seed.ANSWER.unpack(data)[0]) if len(data) == seed.ANSWER.size else -1

    def keeper(self, request: bytes, fds: list[int]) -> int:
        """Return the pid of a keeper, our child; 0 if there is none, and somebody has to ask again. request: packed."""
        assert self._sock is not None
        try:
            fdpass.send_fds(self._sock, request, fds)
            answered = select.select([self._sock], [], [], PATIENCE)[0]
            pid = self._answer() if answered else -1
        except OSError as error:
            self._log.error("a keeper can't be asked for", error=error)
            pid = -1
        if pid < 0:
            self.end()
        return max(0, pid)

    def end(self) -> None:
        """Kill the seed; `gone` follows."""
        self._ready = False
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)  # not reaped yet, so the pid is still our child's

    def gone(self, pid: int) -> bool:
        """A child has been reaped; say whether it was the seed."""
        if pid != self.pid:
            return False
        self.pid = 0
        self._ready = False
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._not_before = time.monotonic() + AGAIN_AFTER
        return True
