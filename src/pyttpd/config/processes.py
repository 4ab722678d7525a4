"""The options that all kinds have whose applications are processes of their own (fastcgi, scgi, handoff): what is
started, how many, and when one goes. A kind's options inherit from `ProcessOptions` and add `FIELDS` to their own.

The words are those of a vhost's `pool` (docs/pools.md), and mean the same.

In step with: kind_keys.py (`PROCESS_KEYS`), docs/processes.md. Lean: every role process imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyttpd.config import checks, limits
from pyttpd.config.checks import Check, ShareError


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessOptions:
    """How an application's processes are kept. `command`: the program and its arguments; none: somebody else runs it.

    processes: how many there are, or at most. Times in s, memory in bytes; 0 in `max_...` is "off" or, for `max_spare`,
    "as the others say".
    """

    command: tuple[str, ...] = ()
    processes: int = 4
    mode: str = "static"
    min_spare: int = 1
    max_spare: int = 0
    idle_timeout: float = 60.0
    max_requests: int = 0
    max_age: float = 3600.0
    max_memory: int = 0

    def contradictions(self) -> list[tuple[str, str]]:
        """Return what can't all be meant: the key to look at, and a sentence."""
        found = []
        if self.mode != "static":
            found += [
                (key, f"must be at most processes, which is {self.processes}, and not {value}")
                for key in ("min_spare", "max_spare")
                if (value := getattr(self, key)) > self.processes
            ]
        if self.mode == "dynamic" and 0 < self.max_spare < self.min_spare:
            found.append(("max_spare", f"must be at least min_spare, which is {self.min_spare}"))
        if 0 < self.max_memory < limits.MIN_MEMORY:
            found.append(("max_memory", f"must be 0 or at least {limits.MIN_MEMORY} bytes"))
        return found

    def misfits(self, workers: int, threads: int) -> list[tuple[str, str]]:
        """Return what can't be meant with so many workers, and so many threads in each; as `contradictions`."""
        return []


def argument(value: object, where: str) -> str:
    """Check one word of a command (see checks.py)."""
    if not isinstance(value, str) or "\0" in value or len(checks.utf8(value, where)) > limits.MAX_ARGUMENT:
        raise ShareError(f"{where}: must be texts of at most {limits.MAX_ARGUMENT} bytes without NUL")
    return value


#: The check of each field.
FIELDS: Final[Mapping[str, Check]] = {
    "command": checks.tuple_of(argument, limits.MAX_COMMAND),
    "processes": checks.integer(limits.WORKERS),
    "mode": checks.choice(limits.POOL_MODES),
    "min_spare": checks.integer(limits.SPARE),
    "max_spare": checks.integer(limits.SPARE),
    "idle_timeout": checks.number(limits.AGE),
    "max_requests": checks.integer(limits.COUNT),
    "max_age": checks.number(limits.AGE),
    "max_memory": checks.integer(limits.MEMORY),
}
