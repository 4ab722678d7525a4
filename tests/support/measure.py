"""Coverage of every process of a test run, confined ones included.

Rules. This module is part of test environments only: scripts/venv copies it into their site-packages as
`pyttpd_measure` with a .pth file that calls `start()` in every process. It does nothing unless the file `measure` lies
in the environment's folder: its content is the folder that data goes to (scripts/test writes and removes it). It is a
file and not an environment variable, as init starts its roles with an environment of its own making.

Theory. Roles fork, exec, change their uid, mount things over /tmp, and give up opening files by Landlock and seccomp.
So nothing is opened late: a process opens its file when it starts (at a high number, out of the way of programs that
count or close descriptors) and what it forks or becomes by exec appends to the same file: init's children have a file
system of their own when they start. Whoever ends, by leaving the interpreter, by os._exit() or by exec, appends one
frame. As some are meant to be killed (a keeper's helpers die with it), a
frame is also appended when an event loop is about to wait and the last one is a moment old. A frame is a mark, the
length of the rest, and compressed JSON: {path: [line, ...]}. One that was torn by a kill is passed over.

A forked child goes on with what its parent had measured. It repeats its parent's lines, which doesn't matter: lines
are only ever united (scripts/test uses `collect()` for that).
"""

from __future__ import annotations

import os
import sys

# No more than that, as long as nothing is measured: some tests look at what a process has imported.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from coverage import Coverage

#: The descriptor of the file: those below are left to the program, and a soft limit of 1024 allows it.
FD = 990
MARK = b"\xffpyttpd\xfe"
LENGTH_BYTES = 8
#: A process that waits for events saves this often (s); it takes a millisecond.
INTERVAL = 0.2
PREFIX = "pyttpd-measured-"
#: What is measured, below the repository's top.
SOURCES = ("src/pyttpd", "services/*/src")
SWITCH = "measure"
#: For tests that look at a process's memory or modules: with this in its environment it isn't measured.
UNMEASURED = "PYTTPD_UNMEASURED"
#: Processes that import nothing of ours, or something before us, are no news.
SILENT = ["no-data-collected", "module-not-measured", "already-imported", "module-not-imported"]


def start() -> None:
    """Begin to measure, if this environment is told to. Never raises: a test must not fail for want of a figure."""
    if hasattr(sys, "_pyttpd_measured") or UNMEASURED in os.environ:
        return  # in a virtual environment site.py reads .pth files twice
    sys._pyttpd_measured = True  # type: ignore[attr-defined]
    try:
        with open(f"{sys.prefix}/{SWITCH}") as switch:
            folder, top = switch.read().splitlines()
    except OSError:
        return
    try:
        _start(folder, top)
    except Exception:
        return  # in a place where nothing can be opened, and saying so would end up in what a test reads


def _start(folder: str, top: str) -> None:
    import coverage

    if not _inherited():
        name = f"{folder}/{PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        low = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(low, FD)
        os.close(low)
    os.set_inheritable(FD, False)
    measured = coverage.Coverage(
        data_file=None, config_file=False, include=[f"{top}/{source}/*" for source in SOURCES]
    )
    measured.set_option("run:disable_warnings", SILENT)
    measured.get_data()  # imports everything that the last moment needs
    _save_at_the_end(measured)
    measured.start()


def _inherited() -> bool:
    """Say whether the process that became this one has left its file."""
    import stat

    try:
        return stat.S_ISREG(os.fstat(FD).st_mode) and PREFIX in os.readlink(f"/proc/self/fd/{FD}")
    except OSError:
        return False


def _save_at_the_end(measured: Coverage) -> None:
    import atexit
    import contextlib
    import json
    import select
    import threading
    import time
    import zlib

    last = b""
    next_save = 0.0
    # A child that is forked while another thread saves would find coverage's own lock held for ever.
    saving = threading.RLock()
    os.register_at_fork(before=saving.acquire, after_in_parent=saving.release, after_in_child=saving.release)

    def save() -> None:
        nonlocal last
        with saving, contextlib.suppress(Exception):
            measured.stop()
            data = measured.get_data()
            lines = {path: data.lines(path) for path in data.measured_files()}
            body = zlib.compress(json.dumps(lines).encode(), 1)
            if body != last:
                os.write(FD, MARK + len(body).to_bytes(LENGTH_BYTES, "little") + body)
                last = body

    def first_save(ending: Callable[..., Any]) -> Callable[..., Any]:
        def saved(*args: Any) -> Any:
            save()
            if args[0] == sys.executable and UNMEASURED not in (args[2] if len(args) > 2 else os.environ):
                with contextlib.suppress(OSError):
                    os.set_inheritable(FD, True)
            try:
                return ending(*args)
            finally:  # an exec can fail
                with contextlib.suppress(OSError):
                    os.set_inheritable(FD, False)
                measured.start()

        return saved

    class Epoll:
        """select.epoll, which can't be subclassed, with a moment for us before it waits."""

        real = select.epoll

        def __init__(self, *args: Any, **options: Any) -> None:
            self._real = self.real(*args, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def __enter__(self) -> Any:  # which Python looks for in the class only
            return self

        def __exit__(self, *_: object) -> None:
            self._real.close()

        def poll(self, *args: Any, **options: Any) -> Any:
            nonlocal next_save
            now = time.monotonic()
            if now > next_save:
                next_save = now + INTERVAL
                save()
                measured.start()
            return self._real.poll(*args, **options)

    def closerange(first: int, end: int) -> None:
        """Who closes what it has inherited leaves us ours."""
        close(first, min(end, FD))
        close(max(first, FD + 1), end)

    close, os.closerange = os.closerange, closerange
    atexit.register(save)
    for name in ("_exit", "execv", "execve"):
        setattr(os, name, first_save(getattr(os, name)))
    select.epoll = Epoll  # type: ignore[assignment, misc]


def collect(folder: Path, top: Path, result: Path) -> int:
    """Unite all frames below `folder` into coverage's data file `result`; return how many there were.

    A file that no process has imported counts as well, with nothing covered.
    """
    from coverage import CoverageData

    covered: dict[str, set[int]] = {
        str(path): set() for source in SOURCES for path in top.glob(f"{source}/**/*.py")
    }
    count = 0
    for file in sorted(folder.iterdir()):
        for frame in frames(file.read_bytes()):
            count += 1
            for path, lines in frame.items():
                covered.setdefault(path, set()).update(lines)
    united = CoverageData(basename=str(result))
    united.erase()
    united.add_lines(covered)
    united.write()
    united.close()
    return count


def frames(content: bytes) -> Iterator[dict[str, list[int]]]:
    """Yield the whole frames of a file."""
    import json
    import zlib

    at = content.find(MARK)
    while at >= 0:
        start = at + len(MARK) + LENGTH_BYTES
        end = start + int.from_bytes(content[at + len(MARK) : start], "little")
        try:
            yield json.loads(zlib.decompress(content[start:end]))
        except (ValueError, zlib.error):
            end = at + 1  # torn: whoever wrote it was killed
        at = content.find(MARK, end)


if __name__ == "__main__":
    from pathlib import Path

    print(collect(*map(Path, sys.argv[1:])), "processes measured")
