"""The health of a role, as a file that its keeper writes and that `python -I -m pyttpd.health` reads.

The keeper writes the role's state and touches the file with every heartbeat, so an old file means that the
keeper, or the role's event loop, doesn't turn any more. A file needs no network, no listening socket and no
other role.
"""

from __future__ import annotations

import os
import sys
import time

DEFAULT_FILE = "/run/health/state"
#: Heartbeats come every second; a role that has missed so many seconds of them is not healthy.
STALE_AFTER = 15.0
STATES = ("starting", "ready", "draining", "restarting")


class HealthFile:
    """The keeper's end. An empty path means that nobody asks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = ""

    def write(self, state: str) -> None:
        """Set the state (one of STATES) and the time. Raises OSError if the folder can't be written."""
        if not self._path:
            return
        if state != self._state:
            temporary = f"{self._path}.new"
            with open(temporary, "w", encoding="ascii") as file:
                file.write(state + "\n")
            os.replace(temporary, self._path)
            self._state = state
        else:
            os.utime(self._path)

    def remove(self) -> None:
        if self._path and self._state:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            self._state = ""


def read(path: str) -> tuple[bool, str]:
    """Return whether the role is ready, and a sentence that says why."""
    try:
        with open(path, encoding="ascii") as file:
            state = file.read(64).strip()
        age = time.time() - os.stat(path).st_mtime
    except (OSError, UnicodeDecodeError) as error:
        return False, f"no state: {error}"
    if state not in STATES:
        return False, f"unknown state {state!r}"
    if age > STALE_AFTER:
        return False, f"{state}, but no heartbeat for {age:.0f} s"
    return state == "ready", state


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            path = DEFAULT_FILE
        case ["--file", path]:
            pass
        case _:
            print("usage: python -I -m pyttpd.health [--file FILE]", file=sys.stderr)
            return 2
    ready, why = read(path)
    print(why)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
