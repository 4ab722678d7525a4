"""A supervisor's children as it knows them, and how one is signalled."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pyttpd.channel import Channel

from pyttpd_vhost.policy import Limits, Member

#: CPUCLOCK_SCHED of another process's clock (clock_getcpuclockid(3): the id is made of the inverted pid).
_CPU_CLOCK = 2
_LAST_DESCRIPTOR = 2**31 - 1


@dataclass(slots=True, eq=False)
class PrototypeChild:
    """The prototype. `dismissed`: its end was asked for, because its tenant sleeps."""

    pid: int
    control: Channel
    born: float
    last_beat: float
    ready: bool = False
    killed: bool = False
    dismissed: bool = False
    loaded_in: float = 0.0
    resident: int = 0


@dataclass(slots=True, eq=False)
class WorkerChild(Member):
    """A worker: what the policy knows of it, and what its supervisor has to do with it.

    `attached` is when it got its channel to umaster, `attach_delay` how long (s) it waits for the next one if that is
    closed at once. `pid` is 0 until the prototype has said it and the kernel has confirmed it. `left` is when it was
    asked to leave, `why` for what its exit will be counted; `sentence` is the worst signal sent to it so far.
    """

    slot: int = 0
    control: Channel = None  # type: ignore[assignment]  # given by who makes one, always
    last_beat: float = 0.0
    pid: int = 0
    ready: float = 0.0
    left: float = 0.0
    why: str = ""
    sentence: int = 0
    doomed: bool = False
    counted: float = 0.0
    busy_ms: int = 0
    cpu_before: float = 0.0
    measured: float = 0.0
    at_birth: int = 0
    attached: float = 0.0
    attach_delay: float = 0.0
    attach_pending: bool = False

    @classmethod
    def new(cls, number: int, slot: int, control: Channel, limits: Limits, now: float) -> WorkerChild:
        return cls(number, now, limits, active=now, slot=slot, control=control, last_beat=now, counted=now)


def keep_only(*wanted: int) -> None:
    """In a forked child: close every descriptor but standard ones and `wanted`: channels, doors, the loop's, the beat.

    By number and not object by object, so that nothing can be forgotten here that is added elsewhere.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    first = 3
    for fd in sorted(wanted):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, _LAST_DESCRIPTOR)


def send_signal(pid: int, number: int) -> bool:
    """Send a signal to a child that hasn't been reaped; say whether there was somebody to get it.

    Not reaped, so the pid is still the child's; the pidfd makes sure that it stays so.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a child of ours (s), 0 if it is gone: the kernel's word, without /proc."""
    try:
        return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
    except OSError:
        return 0.0


def resident(pid: int) -> int:
    """Return a child's resident memory that is no file's (bytes), 0 if it can't be told (proc(5), statm)."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as statm:
            fields = statm.read(256).split()
        return max(0, int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def below(pid: int) -> Iterator[int]:
    """Yield the children of `pid`, whichever of its threads has forked them (proc(5), /proc/PID/task/TID/children)."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as children:
                found = children.read().split()
        except OSError:
            continue
        for child in found:
            yield int(child)


def end_all() -> None:
    """Kill every process that we may signal, but us, in one go: the kernel holds its table of processes meanwhile.

    Only for who is sure that nobody else's can be reached (kill(2), pid -1).
    """
    try:
        os.kill(-1, signal.SIGKILL)
    except OSError:
        pass  # there was nobody left


def end_family(roots: list[int], rounds: int = 64) -> int:
    """Kill `roots`, children of ours, and all that they have forked; return how many processes that were.

    First everybody is stopped, again and again until no new one is found, so that who forks faster than we kill comes
    to an end; then all are killed. Whoever is among them has our uid and was forked from what we have forked.
    """
    family = dict.fromkeys(roots)
    for _ in range(rounds):
        for pid in family:
            send_signal(pid, signal.SIGSTOP)
        found = [child for pid in list(family) for child in below(pid) if child not in family]
        if not found:
            break
        family.update(dict.fromkeys(found))
    for pid in family:
        send_signal(pid, signal.SIGKILL)
    return len(family)


def family(pid: int, most: int) -> list[int]:
    """Return `pid` and what is below it, up to `most` processes."""
    found = [pid]
    for each in found:
        if len(found) >= most:
            break
        found += list(below(each))[: most - len(found)]
    return found
