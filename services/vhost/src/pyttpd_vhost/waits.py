"""Who waits for a thread, and whether one more would help: what the watcher decides by. No I/O.

A request *waits* from the first look at which its connection could be served to the first at which it isn't so any
more. `mark` is what tells it from the next request of the same connection, so one that is served again and again
between the looks of a busy worker never seems to wait.

More threads help those that wait behind others that wait themselves (for a database, for a file, for a lock). Where
the processor is what all of them want, one thread does as much as twenty (they share the interpreter's lock), and does
it quicker: `Processor` tells.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from typing import NamedTuple

#: From this share of the time on, the process is held to be at work and not waiting.
AT_WORK = 0.8


class Usage(NamedTuple):
    """What the process has used so far: processor time (s); how often a thread had to give the processor up because
    others wanted it, and how often because it waited (getrusage(2)).
    """

    seconds: float
    interrupted: int
    waited: int


def _usage() -> Usage:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(used.ru_utime + used.ru_stime, used.ru_nivcsw, used.ru_nvcsw)


class Waits:
    """What could be served at the last look, and since when."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: dict[int, tuple[object, float]] = {}

    def look(self, ready: Mapping[int, object], now: float) -> None:
        """`ready` are the descriptors that could be served at `now`, each with its mark."""
        before = self._since
        self._since = {}
        for fd, mark in ready.items():
            old = before.get(fd)
            self._since[fd] = old if old is not None and old[0] == mark else (mark, now)

    def longer_than(self, seconds: float, now: float) -> list[int]:
        """Return who has waited for `seconds` at least."""
        return [fd for fd, (_, since) in self._since.items() if now - since >= seconds]

    def forget(self) -> None:
        """Nobody waits: somebody is looking."""
        self._since.clear()

    def __len__(self) -> int:
        return len(self._since)


class Processor:
    """Whether this process was at work between two looks, or waited for something else than a processor."""

    __slots__ = ("_then", "_usage", "_used")

    def __init__(self, usage: Callable[[], Usage] = _usage) -> None:
        self._usage = usage
        self._then = 0.0
        self._used = usage()

    def at_work(self, now: float) -> bool:
        """Whether it was at work since the last call: it used a processor, or was kept from one by others."""
        used, before = self._usage(), self._used
        passed, self._then, self._used = now - self._then, now, used
        return (
            used.seconds - before.seconds >= AT_WORK * passed
            or used.interrupted - before.interrupted >= used.waited - before.waited
        )
