"""After every test: is anything left? Descriptors, processes, threads, network namespaces, mounts, sockets.

What NGINX Unit's fixture looks for after each of its tests. Processes that lose their parent come to the test process
(it is made a subreaper), so that nothing a test has started can get away; those that belong to somebody else on this
machine are none of our business.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

#: What is on its way out gets so long (s).
PATIENCE = 3.0
PR_SET_CHILD_SUBREAPER = 36
#: Where named network namespaces lie.
NAMESPACES = Path("/run/netns")
#: Where a tree's channels lie when nobody says otherwise: a test must not leave, or use, anything there.
RUNTIME_DIR = Path("/run/pyttpd")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the test process has at one moment."""

    descriptors: frozenset[tuple[int, str]]
    processes: frozenset[int]
    threads: frozenset[threading.Thread]
    namespaces: frozenset[str]
    mounts: frozenset[str]
    sockets: frozenset[str]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            frozenset(descriptors()),
            frozenset(descendants(os.getpid())),
            frozenset(threading.enumerate()),
            frozenset(os.listdir(NAMESPACES) if NAMESPACES.is_dir() else ()),
            frozenset(mounts()),
            frozenset(map(str, sockets(RUNTIME_DIR)) if not in_use(RUNTIME_DIR) else ()),
        )

    def left(self) -> list[str]:
        """Return what is there now and wasn't then, a sentence each."""
        now = Snapshot.take()
        return [
            *(f"descriptor {fd} ({target})" for fd, target in sorted(now.descriptors - self.descriptors)),
            *(
                f"process {pid} ({' '.join(arguments(pid))[:200]})"
                for pid in sorted(now.processes - self.processes)
            ),
            *(f"thread {thread.name}" for thread in now.threads - self.threads),
            *(f"network namespace {name}" for name in sorted(now.namespaces - self.namespaces)),
            *(f"mount {path}" for path in sorted(now.mounts - self.mounts)),
            *(f"socket {path}" for path in sorted(now.sockets - self.sockets)),
        ]


def descriptors() -> Iterator[tuple[int, str]]:
    """The test process's descriptors, each with what it refers to."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of this listing itself
            yield int(name), os.readlink(f"/proc/self/fd/{name}")


#: Folders of engines of containers: whoever names one of them in its command line, and all below it, come and go as the
#: engine wants. The fixture that has started the engine sees to it that nothing is left of it.
engines: set[str] = set()


def of_an_engine(pid: int) -> bool:
    """Say whether `pid` belongs to one of `engines`."""
    return bool(engines) and any(folder in argument for argument in arguments(pid) for folder in engines)


def descendants(pid: int) -> Iterator[int]:
    """All living processes below `pid`, but an engine's.

    By each one's parent: /proc/PID/task/TID/children may leave out some while others end (proc(5)).
    """
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                letter, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                if letter not in "ZX":
                    children.setdefault(int(parent), []).append(int(entry.name))
    below = [pid]
    while below:
        found = [child for child in sorted(children.get(below.pop(0), ())) if not of_an_engine(child)]
        yield from found
        below += found


def everybody() -> list[int]:
    """All processes of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def state(pid: int) -> str:
    """The letter of proc(5) for the state of `pid`; X (dead) when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def passes(pid: int) -> bool:
    """Say whether a prototype has forked `pid`: it forks the worker, or is one that has no name yet."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        parent = Path(f"/proc/{rest.split()[1]}/comm").read_text().rstrip("\n")
    except OSError:
        return True  # gone
    return name == parent and name.startswith("p:")


def arguments(pid: int) -> list[str]:
    """The command line of `pid`, empty when it is gone."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).rstrip("\0").split("\0")
    except OSError:
        return []


def mounts() -> Iterator[str]:
    """Mount points where tests and trees make theirs."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = line.split()[4]
        if path.startswith(("/tmp/", str(RUNTIME_DIR), str(NAMESPACES) + "/")):
            yield path


def sockets(folder: Path) -> Iterator[Path]:
    """Socket files anywhere below `folder`."""
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(path.lstat().st_mode):
                    yield path


def in_use(folder: Path) -> bool:
    """Say whether a tree runs there (plain.py's lock): somebody else's, or it is found as a process that is left."""
    try:
        with open(folder / "lock", "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def end(pids: set[int]) -> None:
    """Kill processes that a test has left, so that the next one doesn't suffer."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def pytest_sessionstart() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = Snapshot.take()
    yield
    deadline = time.monotonic() + PATIENCE
    collected = False
    while left := before.left():
        if not collected:
            gc.collect()
            collected = True
        elif time.monotonic() > deadline:
            end(set(descendants(os.getpid())) - before.processes)
            pytest.fail("left behind: " + "; ".join(left), pytrace=False)
        else:
            time.sleep(0.05)
