"""What the exec service counts, in memory that the supervisor sees: nothing has to be asked or sent for it.

Only the service writes (a reaper, which is its fork, doesn't; a program that was started no longer has the memory).
"""

from __future__ import annotations

import mmap
import struct
from typing import Final

from pyttpd_vhost.execution.frames import Refusal

_CELL: Final = struct.Struct("@Q")
#: running and waiting are what is, the others count from the start of the supervisor: a successor goes on with them.
NAMES: Final = ("running", "waiting", "started", "faults", *(reason.name.lower() for reason in Refusal))
_AT: Final = {name: index * _CELL.size for index, name in enumerate(NAMES)}


class Tally:
    """Counters by name. Made before the fork."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, len(NAMES) * _CELL.size)

    def __getitem__(self, name: str) -> int:
        return int(_CELL.unpack_from(self._memory, _AT[name])[0])

    def add(self, name: str) -> None:
        self.set(name, self[name] + 1)

    def set(self, name: str, value: int) -> None:
        _CELL.pack_into(self._memory, _AT[name], value)

    def refusals(self) -> dict[str, int]:
        """Return how many requests were refused, by reason."""
        return {reason.name.lower(): self[reason.name.lower()] for reason in Refusal}

    def close(self) -> None:
        self._memory.close()
