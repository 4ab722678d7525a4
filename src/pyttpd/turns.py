"""How a process shares a core with others: by long turns, which come late (sched(7), EEVDF).

Who asks for longer turns than others has a later deadline: it is woken up behind who has a turn to come, and before who
has had more than its share. SCHED_BATCH says less: such a process waits for a tick of the scheduler (4 ms at 250 Hz)
behind whatever runs, also behind strangers who have had far more than theirs. It is what is left before Linux 6.12,
where nobody can say how long turns are to be.
"""

from __future__ import annotations

import contextlib
import os
import struct
from ctypes import create_string_buffer
from typing import Final

from pyttpd.confine.kernel import syscall

#: What we ask for (ns): several times of what others have (1 to 3 ms), and less than the most that there is (100 ms).
LONG: Final = 20_000_000

#: struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period (sched_setattr(2)).
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")


def length(pid: int = 0) -> int:
    """Return how long (ns) a turn of a process is, 0 where the kernel doesn't say. Raises OSError."""
    runtime: int = _attributes(pid)[5]
    return runtime


def take_long_turns() -> None:
    """Have turns of LONG from now on, this thread and what it forks; else be SCHED_BATCH. Raises OSError."""
    with contextlib.suppress(OSError):  # a kernel, or an engine's filter, that doesn't know the call
        size, policy, flags, nice, priority, _, deadline, period = _attributes(0)
        asked = _ATTRIBUTES.pack(size, policy, flags, nice, priority, LONG, deadline, period)
        syscall("sched_setattr", 0, asked, 0)
        if length() == LONG:
            return
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _attributes(pid: int) -> tuple[int, ...]:
    buffer = create_string_buffer(_ATTRIBUTES.size)
    syscall("sched_getattr", pid, buffer, _ATTRIBUTES.size, 0)
    return _ATTRIBUTES.unpack(buffer.raw)
