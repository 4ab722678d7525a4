"""The health of a role, as a file that its keeper writes and that `python -I -m pyttpd.health` reads.

The keeper writes the role's state and touches the file with every heartbeat, so an old file means that the
keeper, or the role's event loop, doesn't turn any more. A file needs no network, no listening socket and no
other role.
"""

from __future__ import annotations

import os
import stat
import sys
import time

DEFAULT_FILE = "/run/health/state"
#: Heartbeats come every second; a role that has missed so many seconds of them is not healthy.
STALE_AFTER = 15.0
#: The runner reads this as root in a folder of the tenant's: neither a link nor a FIFO leads it astray.
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK
STATES = ("starting", "ready", "draining", "restarting")


class HealthFile:
    """The keeper's end. An empty path means that nobody asks."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._state = ""

    def write(self, state: str) -> None:
        """Set the state (one of STATES) and the time. Raises OSError if the folder can't be written from the start.

        Later that is no reason to end: the folder has the uid of the role, and a tenant's application, which has it
        too, can take the folder's rights away (Landlock doesn't judge chmod). The file grows old, which says enough.
        """
        if not self._path:
            return
        try:
            self._write(state)
        except OSError:
            if not self._state:
                raise

    def _write(self, state: str) -> None:
        if state != self._state:
            temporary = f"{self._path}.new"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | _OPEN
            with open(os.open(temporary, flags, 0o644), "w", encoding="ascii") as file:
                file.write(state + "\n")
            os.replace(temporary, self._path)
            self._state = state
        else:
            os.utime(self._path)

    def remove(self) -> None:
        if self._path and self._state:
            try:
                os.unlink(self._path)
            except OSError:
                pass
            self._state = ""


def read(path: str) -> tuple[bool, str]:
    """Return whether the role is ready, and a sentence that says why."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _OPEN)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return False, "no state: not a regular file"
            state = os.read(fd, 64).decode("ascii").strip()
        finally:
            os.close(fd)
        age = time.time() - found.st_mtime
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
