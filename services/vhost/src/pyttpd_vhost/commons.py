"""What all workers of a vhost share besides the scoreboard: whether they are under stress, and how many connections
each client has open. In shared memory, made by the supervisor before anything is forked.

Why here, and not in umaster, which sees the address of every connection: umaster doesn't see a connection's end, and
telling it would cost a message for each, whether anybody limits clients or not; a new umaster would know of none that
is open. The workers know both ends. So they count for themselves, and a worker that lies (the memory is the tenant's)
harms nobody but its own tenant.

Theory of operation of the table (`Clients`). Each worker has a row and writes in no other, so there is no lock between
processes; how many connections a client has is the sum over all rows. A client's key (8 bytes, `Client.network`) leads
to one of `sets` sets, and there each row has WAYS places of key and count. The places of all rows in one set lie
together, so that one bytes.find() over them finds the client in all rows.

    set 0: | row 0: 8 places | row 1: 8 places | ...     set 1: | row 0: 8 places | ...

`enter` first counts, then sums up: two workers at the same moment may both refuse the last place, never both take it.
Whoever finds its row's places of a set taken by other clients isn't counted: the table is bounded, and a limit per
client says nothing about those who come from thousands of addresses.

A row whose worker has died is cleared by the supervisor (`clear`).
"""

from __future__ import annotations

import mmap
import struct
import threading

_PLACE = struct.Struct("@8sQ")
#: Places that a row has in a set: with 8,000 clients in a row, two in a set on average, one set in 4,000 overflows.
WAYS = 8
#: The table's size in bytes at most; untouched pages cost nothing.
MAX_TABLE = 16 << 20
#: Sets at most: with 8 places each, more clients than a worker has descriptors for.
MAX_SETS = 4096
_FREE = bytes(8)


class Commons:
    """Shared by `rows` workers at most. `limit`: connections that a client may have, 0: any number, and no table."""

    def __init__(self, rows: int, *, limit: int = 0) -> None:
        self._flags = mmap.mmap(-1, mmap.PAGESIZE)
        self.limit = limit
        self._rows = rows
        self._sets = max(1, min(MAX_SETS, MAX_TABLE // (rows * WAYS * _PLACE.size)))
        self._table = mmap.mmap(-1, self._sets * rows * WAYS * _PLACE.size) if limit else None

    @property
    def stressed(self) -> int:
        """1 while the vhost is under stress (supervisor: `pyttpd_vhost.stress`), else 0."""
        return self._flags[0]

    @stressed.setter
    def stressed(self, value: int) -> None:
        self._flags[0] = value

    def clients(self, row: int) -> Clients | None:
        """Return the table as worker `row` sees it; None if nobody limits clients."""
        return (
            Clients(self._table, self._sets, self._rows, row, self.limit) if self._table is not None else None
        )

    def clear(self, row: int) -> None:
        """For the supervisor: the worker of `row` has ended."""
        if self._table is not None:
            size = WAYS * _PLACE.size
            for at in range(row * size, len(self._table), self._rows * size):
                self._table[at : at + size] = bytes(size)


class Clients:
    """One worker's row in the table, and its view of the others'. For all threads of the worker."""

    def __init__(self, table: mmap.mmap, sets: int, rows: int, row: int, limit: int) -> None:
        self._table = table
        self._sets = sets
        self._own = WAYS * _PLACE.size
        self._set = rows * self._own
        self._row = row
        self._limit = limit
        self._lock = threading.Lock()

    def enter(self, client: bytes) -> bool:
        """Count one connection more of `client` (8 bytes, not all zero). False: it has too many, and isn't counted."""
        with self._lock:
            if not self._add(client, 1):
                return True  # no place to count it
            if self.count(client) <= self._limit:
                return True
            self._add(client, -1)
            return False

    def leave(self, client: bytes) -> None:
        """Count one connection less."""
        with self._lock:
            self._add(client, -1)

    def count(self, client: bytes) -> int:
        """Return how many connections `client` has, over all workers."""
        # hash() of bytes is keyed, so that nobody can choose whom to share a set with; equal in all that are forked
        at = hash(client) % self._sets * self._set
        places = self._table[at : at + self._set]
        total = 0
        found = places.find(client)
        while found >= 0:
            if found % _PLACE.size == 0:
                total += int(_PLACE.unpack_from(places, found)[1])
            found = places.find(client, found + 1)
        return total

    def _add(self, client: bytes, change: int) -> bool:
        """Add `change` to our own count of `client`. False: there is no place, or nothing to take from."""
        first = hash(client) % self._sets * self._set + self._row * self._own
        free = -1
        for at in range(first, first + self._own, _PLACE.size):
            key, count = _PLACE.unpack_from(self._table, at)
            if key == client:
                count = max(0, min(count, 1 << 32) + change)
                _PLACE.pack_into(self._table, at, client if count else _FREE, count)
                return True
            if key == _FREE and free < 0:
                free = at
        if free < 0 or change < 0:
            return False
        _PLACE.pack_into(self._table, free, client, change)
        return True
