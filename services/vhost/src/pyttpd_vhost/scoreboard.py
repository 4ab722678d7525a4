"""The scoreboard: what each worker says of itself, in memory that supervisor and workers share.

Rules
  1. One row per slot, one writer per row: the worker that the slot was given to, which says so in `number`. What
     somebody else has written there (a predecessor that is late, a tenant that writes junk) is no row: `read` doesn't
     return it.
  2. The supervisor believes none of it beyond its use as numbers for people, and for decisions that harm nobody but the
     tenant itself. Every number is bounded where it is read, every text made printable.
  3. What a worker had counted when it ended is added to the totals, so counters survive their worker.
  4. Beside its row each worker has cells: counters whose number the configuration decides (faults by mount and reason).
     The same rules hold for them; a worker that has nothing to count there never touches them.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

#: Bytes of the last host and path that are kept; longer ones are cut.
HOST_SIZE, PATH_SIZE = 64, 128
#: The largest number that is believed: above it, sums of rows would be nonsense even for people.
MAX_NUMBER = 2**53


class Row(NamedTuple):
    """One worker's row. The counters first (they begin at 0 with the worker), then how it is now.

    slow: requests written to the slow log. timed_out: ended by request_timeout. passed: connections that siblings took.
    busy_ms: thread-milliseconds in the application: what it grows by in a second, in thousands, is how many threads are
    busy on average. state: one of the `STATE_` numbers. generation: of the configuration. born: Unix time in ms.
    memory: bytes that became resident since it was forked, at the most, by its own reading. threads: those that serve;
    waiting: connections ready that no thread has yet. last_host, last_path: of the last request begun.
    """

    requests: int = 0
    informational: int = 0
    success: int = 0
    redirect: int = 0
    client_error: int = 0
    server_error: int = 0
    errors: int = 0
    bytes_sent: int = 0
    slow: int = 0
    timed_out: int = 0
    passed: int = 0
    busy_ms: int = 0
    connections: int = 0
    parked: int = 0
    threads: int = 0
    busy_threads: int = 0
    waiting: int = 0
    state: int = 0
    number: int = 0
    generation: int = 0
    born: int = 0
    memory: int = 0
    last_host: bytes = b""
    last_path: bytes = b""


#: How many of Row's fields only ever grow.
COUNTERS = 12
#: And how many are numbers at all.
NUMBERS = len(Row._fields) - 2
STATE_NONE, STATE_SERVING, STATE_LEAVING = range(3)

ROW = struct.Struct(f"@{NUMBERS}Q{HOST_SIZE}s{PATH_SIZE}s")


def printable(raw: bytes) -> str:
    """Return a row's text as a terminal may see it: printable ASCII, without what pads it."""
    return "".join([chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in raw.rstrip(b"\0")])


class Scoreboard:
    """`slots` rows, with `cells` counters beside each, in anonymous shared mappings, made before anything is forked."""

    def __init__(self, slots: int, *, cells: int = 0) -> None:
        self._map = mmap.mmap(-1, slots * ROW.size)
        self._ended = [0] * COUNTERS
        # the worker's number, and then its cells
        self._cells_of = struct.Struct(f"@{1 + cells}Q")
        self._cells = mmap.mmap(-1, slots * self._cells_of.size)
        self._cells_ended = [0] * cells
        self.free = list(range(slots - 1, -1, -1))

    def write(self, slot: int, row: Row) -> None:
        """For the slot's worker."""
        ROW.pack_into(self._map, slot * ROW.size, *row)

    def read(self, slot: int, number: int) -> Row:
        """Return the row of worker `number`, or an empty one if what is there isn't that worker's."""
        *numbers, host, path = ROW.unpack_from(self._map, slot * ROW.size)
        row = Row._make([*[min(value, MAX_NUMBER) for value in numbers], host, path])
        return row if row.number == number else Row()

    def write_cells(self, slot: int, number: int, cells: dict[int, int]) -> None:
        """For the slot's worker: what it has counted in some of its cells; the others are 0."""
        values = [cells.get(cell, 0) for cell in range(len(self._cells_ended))]
        self._cells_of.pack_into(self._cells, slot * self._cells_of.size, number, *values)

    def _read_cells(self, slot: int, number: int) -> list[int]:
        owner, *values = self._cells_of.unpack_from(self._cells, slot * self._cells_of.size)
        return [min(value, MAX_NUMBER) for value in values] if owner == number else [0] * len(values)

    def cells(self, slots: list[tuple[int, int]]) -> list[int]:
        """Return the sums of all cells, as `total` does."""
        rows = [self._cells_ended, *[self._read_cells(slot, number) for slot, number in slots]]
        return [sum(values) for values in zip(*rows, strict=True)]

    def take(self) -> int:
        """Return a free slot, empty. Raises IndexError when there is none."""
        slot = self.free.pop()
        self._clear(slot)
        return slot

    def _clear(self, slot: int) -> None:
        self.write(slot, Row())
        self.write_cells(slot, 0, {})

    def give_back(self, slot: int, number: int) -> None:
        """The slot's worker has ended: keep what it counted."""
        for index, value in enumerate(self.read(slot, number)[:COUNTERS]):
            self._ended[index] += int(value)
        for index, value in enumerate(self._read_cells(slot, number)):
            self._cells_ended[index] += value
        self._clear(slot)
        self.free.append(slot)

    def total(self, slots: list[tuple[int, int]]) -> Row:
        """Return the sum over the living workers (slot and number) and, for the counters, all that have ended."""
        sums = [*self._ended, *[0] * (NUMBERS - COUNTERS)]
        for slot, number in slots:
            for index, value in enumerate(self.read(slot, number)[:NUMBERS]):
                sums[index] += int(value)
        return Row._make([*sums, b"", b""])
