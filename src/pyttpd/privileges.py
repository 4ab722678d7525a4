"""Becoming somebody with fewer rights, for good (setresuid(2); OpenSSH's permanently_set_uid)."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36

#: A child that a signal has stopped (kill -STOP) is killed when it is still stopped after so long (s): who waits for it
#: must be given to somebody else, and it must not wake up then. Short of it a continued process goes on as if nothing
#: had been.
STOP_LIMIT = 1.0

_libc = ctypes.CDLL(None, use_errno=True)


class PrivilegeError(Exception):
    """A privilege could not be given up, or could be had again."""


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0):
        error = ctypes.get_errno()
        raise PrivilegeError(f"prctl({option}): {os.strerror(error)}")


def become(uid: int, gid: int) -> None:
    """Become `uid` and `gid` without supplementary groups, and prove that there is no way back.

    Does nothing if the process is that already and isn't root. Raises PrivilegeError.
    """
    if os.getresuid() == (uid, uid, uid) and os.getresgid() == (gid, gid, gid) and uid != 0:
        return
    if uid == 0 or gid == 0:
        raise PrivilegeError("uid and gid 0 are no fewer rights")
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except PermissionError:
        raise PrivilegeError(f"not allowed to become uid {uid}, gid {gid}: that takes root") from None
    for regain in (os.setresuid, os.setresgid):
        try:
            regain(0, 0, 0)
        except PermissionError:
            continue
        raise PrivilegeError("root can be had again after it was given up")
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or os.getgroups():
        raise PrivilegeError(f"became {os.getresuid()}, {os.getresgid()} instead of uid {uid}, gid {gid}")


def set_process_name(name: str) -> None:
    """Set what `ps -o comm` shows; the kernel keeps 15 bytes (prctl(2), PR_SET_NAME)."""
    _prctl(_PR_SET_NAME, name.encode("ascii", "replace")[:15] + b"\0")


def set_command_line(words: list[str]) -> None:
    """Set what `ps -f` shows, as far as there is room where our own command line was (proc(5), arg_start).

    What was there must not be needed any more: Python has copied it.
    """
    stat = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fields = os.read(stat, 4096).rpartition(b")")[2].split()
    finally:
        os.close(stat)
    start, end = int(fields[45]), int(fields[46])  # fields 48 and 49, counted from the third
    line = b"\0".join(os.fsencode(word) for word in words)[: end - start - 1]
    ctypes.memmove(start, line.ljust(end - start, b"\0"), end - start)


def die_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send `number` to this process when `parent`, which forked it, ends.

    To be called after the last change of uid, which resets it (prctl(2), PR_SET_PDEATHSIG).
    """
    _prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Have descendants whose parent ended become our children, so that we can reap and end them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def let_signal_end(number: int) -> None:
    """Give signal `number` its default action again, in any thread: signal.signal() does so in the main one only."""
    _libc.signal(number, 0)


def ended(stopped: dict[int, float] | None = None) -> Iterator[tuple[int, int]]:
    """Reap children that have ended; yield each pid and its exit status, negative for a signal (waitpid(2)).

    `stopped`, if given, is kept up to date: the pids of those that a signal has stopped, each with the time (s) since
    when. The kernel tells a parent of it at once, so nobody has to wait for a heartbeat that doesn't come.
    """
    options = os.WNOHANG
    if stopped is None:
        stopped = {}
    else:
        options |= os.WUNTRACED | os.WCONTINUED
    while True:
        try:
            pid, status = os.waitpid(-1, options)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if os.WIFSTOPPED(status):
            stopped.setdefault(pid, time.monotonic())
        elif os.WIFCONTINUED(status):
            stopped.pop(pid, None)
        else:
            stopped.pop(pid, None)
            yield pid, os.waitstatus_to_exitcode(status)


def is_stopped(pid: int) -> bool:
    """Say whether a signal has stopped a process (proc(5), stat): for who became its parent only afterwards."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read(512).rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def stopped_for_good(stopped: dict[int, float], now: float) -> list[int]:
    """Return who of `stopped` has been so for STOP_LIMIT, and forget that: they are to be killed."""
    late = [pid for pid, since in stopped.items() if now - since >= STOP_LIMIT]
    for pid in late:
        del stopped[pid]
    return late


def children() -> list[int]:
    """Return the pids of this process's children (proc(5), /proc/[pid]/task/[tid]/children).

    While one of them ends the kernel may leave out others, so what counts is what it says twice.
    """
    before: bytes | None = None
    try:
        while True:
            with open(f"/proc/self/task/{os.getpid()}/children", "rb") as listing:
                found = listing.read()
            if found == before:
                return [int(pid) for pid in found.split()]
            before = found
    except FileNotFoundError:
        return []
