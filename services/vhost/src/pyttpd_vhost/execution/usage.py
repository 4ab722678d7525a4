"""How much the tenant's application processes have to do, in memory that workers and supervisor share.

Rules
  1. A *pool* is one mount's processes. Each worker has a row with two numbers for each pool, and writes in no other:
     how many requests it has with them now, and how many it has begun. The supervisor has a row of its own, which the
     workers read: how many processes serve, and whether they fail.
  2. The memory is the tenant's as much as ours: the supervisor bounds what it reads, and uses it for what harms nobody
     but the tenant, how many processes there are.
  3. A worker that begins a request with a pool in which nobody serves wakes the supervisor (`wake`, an eventfd).
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import Final

from pyttpd_vhost.scoreboard import MAX_NUMBER

_CELL: Final = struct.Struct("@QQ")
#: What the supervisor says of a pool that fails: its processes end as soon as they live, and none serves.
_FAILS: Final = 1


class Usage:
    """Shared by `rows` workers at most. Made before anything is forked."""

    def __init__(self, rows: int, pools: int) -> None:
        self._pools = pools
        self._rows = rows
        self._map = mmap.mmap(-1, max(1, (rows + 1) * pools) * _CELL.size)
        self._begun = [0] * pools  # by workers that have ended
        self._lock = threading.Lock()
        self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def _at(self, row: int, pool: int) -> int:
        return ((row + 1) * self._pools + pool) * _CELL.size

    # ---- the workers ----

    def begin(self, row: int, pool: int) -> None:
        """A request is with `pool` from now on. Any thread of the worker that has `row`."""
        with self._lock:
            active, begun = _CELL.unpack_from(self._map, self._at(row, pool))
            _CELL.pack_into(self._map, self._at(row, pool), active + 1, begun + 1)
        if not self.serving(pool):
            try:
                os.eventfd_write(self.wake, 1)
            except BlockingIOError:
                pass  # it is awake

    def end(self, row: int, pool: int) -> None:
        with self._lock:
            active, begun = _CELL.unpack_from(self._map, self._at(row, pool))
            _CELL.pack_into(self._map, self._at(row, pool), max(1, active) - 1, begun)

    def serving(self, pool: int) -> int:
        """Return how many processes serve."""
        return int(_CELL.unpack_from(self._map, self._at(-1, pool))[0])

    def fails(self, pool: int) -> bool:
        """Whether its processes end as soon as they live, so that nobody need wait for one."""
        return bool(_CELL.unpack_from(self._map, self._at(-1, pool))[1] & _FAILS)

    # ---- the supervisor ----

    def tell(self, pool: int, serving: int, *, fails: bool) -> None:
        _CELL.pack_into(self._map, self._at(-1, pool), serving, _FAILS if fails else 0)

    def read(self, pool: int) -> tuple[int, int]:
        """Return how many requests are with `pool` now, and how many ever were."""
        active, begun = 0, self._begun[pool]
        for row in range(self._rows):
            here, ever = _CELL.unpack_from(self._map, self._at(row, pool))
            active += min(here, MAX_NUMBER)
            begun += min(ever, MAX_NUMBER)
        return min(active, MAX_NUMBER), min(begun, MAX_NUMBER)

    def clear(self, row: int) -> None:
        """The worker that had `row` has ended."""
        for pool in range(self._pools):
            self._begun[pool] += min(_CELL.unpack_from(self._map, self._at(row, pool))[1], MAX_NUMBER)
            _CELL.pack_into(self._map, self._at(row, pool), 0, 0)

    def close(self) -> None:
        self._map.close()
        os.close(self.wake)
