"""The health of a role, as a file that its keeper writes and that `python -I -m pyttpd.health` reads.

The keeper writes the role's state and touches the file with every heartbeat, so an old file means that the
keeper, or the role's event loop, doesn't turn any more. A file needs no network, no listening socket and no
other role.

    python -I -m pyttpd.health                is it ready? (0, or 1 and why not)
    python -I -m pyttpd.health --alive        does it turn at all, ready or not? (a pod's liveness)
    python -I -m pyttpd.health --within 60    is it ready, or had it 60 seconds for that? (a tenant's startup in a pod:
                                              one whose application doesn't load must not keep the others from serving)
"""

from __future__ import annotations

import math
import os
import signal
import stat
import sys
import time

DEFAULT_FILE = "/run/health/state"
#: Heartbeats come every second; a role that has missed so many seconds of them is not healthy.
STALE_AFTER = 15.0
#: Two heartbeats and a bit, or one of who sleeps: by then a file has been touched whose keeper lives (s). Probes may
#: take twice that.
LOOK_AGAIN = 2.5
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
            fd = os.open(temporary, flags, 0o644)
            try:
                os.write(fd, b"%s\n" % state.encode("ascii"))
            finally:
                os.close(fd)
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


def read(path: str, *, alive: bool = False, look_again: float = 0.0) -> tuple[bool, str]:
    """Return whether the role is ready (or `alive`, whatever its state), and a sentence that says why.

    look_again: a file that looks old, or comes from the future, is looked at once more after so long (s). If it was
    touched meanwhile, it is the machine's clock that was set.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | _OPEN)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return False, "no state: not a regular file"
            state = os.read(fd, 64).decode("ascii").strip()
            age = time.time() - found.st_mtime
            if abs(age) > STALE_AFTER and look_again:
                time.sleep(look_again)
                now = os.fstat(fd)
                if not now.st_nlink:
                    return read(path, alive=alive)  # another state, in a file of its own
                age = math.inf if now.st_mtime_ns == found.st_mtime_ns else 0.0
        finally:
            os.close(fd)
    except (OSError, UnicodeDecodeError) as error:
        return False, f"no state: {error}"
    if state not in STATES:
        return False, f"unknown state {state!r}"
    if age > STALE_AFTER:
        return False, f"{state}, but no heartbeat for {'long' if age == math.inf else f'{age:.0f} s'}"
    return alive or state == "ready", state


def wake(pid: int) -> bool:
    """Continue a keeper that a signal has stopped, and say whether it was. It sees then to what it has missed.

    In a container it is PID 1, which nobody inside can kill (pid_namespaces(7)), and engines don't notice.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            if file.read().rpartition(b")")[2].split()[0] != b"T":
                return False
        os.kill(pid, signal.SIGCONT)
    except OSError:
        return False
    return True


def age_of(pid: int) -> float:
    """Return how long ago (s) the process was started (proc(5): its starttime, in ticks since the machine's start)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # Behind the last parenthesis, since a name may have some: starttime is the 22nd field, the state the third.
        started = int(file.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def main(arguments: list[str]) -> int:
    # By hand: argparse would cost more than all the rest, and probes come every few seconds in every container.
    path, alive, within = DEFAULT_FILE, False, math.inf
    given = iter(arguments)
    try:
        for option in given:
            match option:
                case "--file":
                    path = next(given)
                case "--alive":
                    alive = True
                case "--within":
                    within = float(next(given))
                case _:
                    raise ValueError(option)
    except (StopIteration, ValueError):
        print("usage: python -I -m pyttpd.health [--file FILE] [--alive] [--within SECONDS]", file=sys.stderr)
        return 2
    ready, why = read(path, alive=alive, look_again=LOOK_AGAIN)
    if not ready and path == DEFAULT_FILE and wake(1):
        why = f"{why}; it was stopped by a signal, and is continued"
    if not ready and within < math.inf and age_of(1) > within:
        ready, why = True, f"{why}; not ready within {within:.0f} s, and not waited for any longer"
    print(why)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
