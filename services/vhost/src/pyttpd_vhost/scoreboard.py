"""The scoreboard: what each worker has done, in memory that supervisor and workers share.

One row per slot, one writer per row. The supervisor believes none of it beyond its use as numbers for people: a row is
tenant's memory. What a worker had counted when it ended is added to the totals, so counters survive their worker.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

ROW = struct.Struct("@10Q")


class Row(NamedTuple):
    """One worker's counters since it began; `connections` and `parked` are what it has open now."""

    requests: int = 0
    informational: int = 0
    success: int = 0
    redirect: int = 0
    client_error: int = 0
    server_error: int = 0
    errors: int = 0
    bytes_sent: int = 0
    connections: int = 0
    parked: int = 0


#: How many of Row's fields only ever grow.
COUNTERS = 8


class Scoreboard:
    """`slots` rows in an anonymous shared mapping, made before the workers are forked."""

    def __init__(self, slots: int) -> None:
        self._map = mmap.mmap(-1, slots * ROW.size)
        self._ended = [0] * COUNTERS
        self.free = list(range(slots - 1, -1, -1))

    def write(self, slot: int, row: Row) -> None:
        """For the slot's worker."""
        ROW.pack_into(self._map, slot * ROW.size, *row)

    def read(self, slot: int) -> Row:
        return Row(*ROW.unpack_from(self._map, slot * ROW.size))

    def take(self) -> int:
        """Return a free slot, empty. Raises IndexError when there is none."""
        slot = self.free.pop()
        self.write(slot, Row())
        return slot

    def give_back(self, slot: int) -> None:
        """The slot's worker has ended: keep what it counted."""
        for index, value in enumerate(self.read(slot)[:COUNTERS]):
            self._ended[index] += value
        self.write(slot, Row())
        self.free.append(slot)

    def total(self, slots: list[int]) -> Row:
        """Return the sum over the living workers' slots and all that have ended."""
        sums = [*self._ended, 0, 0]
        for slot in slots:
            for index, value in enumerate(self.read(slot)):
                sums[index] += value
        return Row(*sums)
