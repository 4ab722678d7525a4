"""A keeper's office for a role that is played on a test's loop (support.wired): the reader is a real process."""

from __future__ import annotations

import contextlib
import os
import select
import time

from pyttpd.office import Counter, Desk, Office
from pyttpd.service import Service

from support.wired import Stage

#: How often (s) the office has its turn; a keeper sleeps in select() instead.
INTERVAL = 0.005
#: What the role's process is to its office.
PID = 1


def furnish(on: Stage, service: Service, desk: Desk) -> Office:
    """Give `service` an office with `desk`, which has its turn as the stage's loop turns."""
    office = Office(desk, on.log)
    ours = office.before_fork()
    theirs = office.theirs
    assert theirs is not None
    office.theirs = None  # the role's end, which stays open here
    office.forked(PID, ours)
    service.counter = Counter(on.loop, theirs)
    readers: set[int] = set()

    def turn() -> None:
        readers.update(office.pids)
        office.turn(select.select(office.sources(), [], [], 0)[0], time.monotonic())
        for pid in list(readers):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    readers.discard(pid)
        on.loop.call_later(INTERVAL, turn)

    def clear() -> None:
        theirs.close()
        office.gone(PID)
        for pid in readers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)

    turn()
    on.stack.callback(clear)
    return office
