"""The machine: which cores are whose, what a server's processes cost, and what is written down beside each figure."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import socket
import subprocess
import time
from pathlib import Path

#: With two cores or more the client has the first, and all servers share the last: one core for each side.
CLIENT_CORE, SERVER_CORE = "0", str(max(1, (os.cpu_count() or 2) - 1))
TICKS = os.sysconf("SC_CLK_TCK")
READY_WITHIN = 30.0


def children() -> dict[int, list[int]]:
    """All processes, by parent."""
    found: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                found.setdefault(int(fields[1]), []).append(int(entry))
    return found


def family(*pids: int, parents: dict[int, list[int]] | None = None) -> list[int]:
    """`pids` and all below them. Who asks for many says what `children` has found."""
    below, found = [*pids], list[int]()
    parents = children() if parents is None else parents
    while below:
        found.append(below.pop())
        below += parents.get(found[-1], [])
    return found


def own_time(pid: int, *, dead_children: bool = False) -> float:
    """Seconds of processor time that `pid` has used; none if it isn't there any more.

    The kernel says it of a process in whole ticks, less what is over: of thousands that have used a few milliseconds
    each it would leave out half. So what its threads say themselves counts, if it is more.
    """
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own, dead = (sum(map(int, some)) / TICKS for some in (fields[11:13], fields[13:15]))
        return max(own, running_time([pid])) + (dead if dead_children else 0.0)
    return 0.0


def processor_time(*pids: int) -> float:
    """Seconds that `pids` and all below them have used, those of their dead children included."""
    return sum(own_time(each, dead_children=True) for each in family(*pids))


class Others:
    """What everybody else used of the machine's processors since this was made: how quiet it was."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Of all cores' time; what was stolen from a virtual machine is in it."""
        whole, busy, ours = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, busy - ours) / whole if whole else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of all cores, of those the busy ones, and of the busy ones our family's (proc(5), stat)."""
        ticks = [int(each) for each in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
        idle = sum(ticks[3:5])
        return sum(ticks) / TICKS, (sum(ticks) - idle) / TICKS, processor_time(os.getpid())


def named(pids: list[int]) -> dict[str, list[int]]:
    """`pids` and all below them, by the name that they have in `ps`."""
    found: dict[str, list[int]] = {}
    for each in family(*pids):
        with contextlib.suppress(OSError):
            found.setdefault(Path(f"/proc/{each}/comm").read_text().rstrip("\n"), []).append(each)
    return found


def running_time(pids: list[int]) -> float:
    """Seconds that the threads of `pids` which are still there have run, to the nanosecond: ticks are too coarse for a
    role that does little (proc(5), schedstat).
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{pid}/task").iterdir():
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def private_memory(pids: list[int]) -> int:
    """Bytes that `pids` have for themselves (smaps_rollup's Private_*)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1]) * 1024
    return total


def free_ports(count: int) -> int:
    """Return the first of `count` neighbouring ports that are free now. Another run begins to look somewhere else."""
    places = range(21_000, 30_000 - count, count)
    first = os.getpid() % len(places)
    for number in range(len(places)):
        begin = places[(first + number) % len(places)]
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(begin, begin + count):
                probe = probes.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return begin
    raise SystemExit("bench: no free ports")


def wait_for_port(port: int, process: subprocess.Popen[bytes], what: str) -> None:
    """Wait until somebody accepts on `port`."""
    end = time.monotonic() + READY_WITHIN
    while True:
        if process.poll() is not None:
            raise SystemExit(f"bench: {what} ended with {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > end:
            raise SystemExit(f"bench: {what} isn't there after {READY_WITHIN:g} s")
        time.sleep(0.05)


def describe() -> dict[str, str]:
    """What the figures were measured on."""
    model = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "day": time.strftime("%d %B %Y, %H:%M UTC", time.gmtime()),
        "processor": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pyttpd's hot path": hot_path(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "scheduler": scheduler(),
    }


def hot_path() -> str:
    """Whether it is compiled in this environment (scripts/native.py), as it is where it serves."""
    found = importlib.util.find_spec("pyttpd.loop")
    compiled = found is not None and str(found.origin).endswith(".so")
    return (
        "compiled, as in the images"
        if compiled
        else "not compiled: no C compiler, or no header files of Python"
    )


def scheduler() -> str:
    """Whether the kernel shares a core between sessions (each server here is one or several) or between processes:
    sched(7), autogroup. With it, what others run is as heavy as a server, however nice it is.
    """
    with contextlib.suppress(OSError):
        if int(Path("/proc/sys/kernel/sched_autogroup_enabled").read_text()):
            return "shares a core between sessions (autogroup)"
    return "shares a core between processes"


def version(command: list[str]) -> str:
    """The first line of what a program says of its version."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "not here"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0][:80] if lines else "unknown"
