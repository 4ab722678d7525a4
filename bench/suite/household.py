"""What a run has on the machine besides itself, its servers' processes and folders, and that nothing of it stays.

    with household.kept():                  # once, around everything
        folder = household.new_folder()     # removed at the end, if nobody has before

A server may outlive the process that was started (Apache's children, daemons in sessions of their own). So the run is
the subreaper of all below it: whoever loses its parent becomes our child, and who has no child has no family any more.

The first signal ends the family at once, wherever the run is, and is a KeyboardInterrupt then; those after it are
ignored. timeout(1) sends its signal twice, and `make` may pass on a third: the second one would end the cleaning up.
Only SIGKILL leaves something behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from pyttpd import privileges

from suite.machine import children, family

#: How long (s) servers may take to end once the run is over, and how long those that were killed then.
GRACE, KILLED_WITHIN = 5.0, 5.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_folders: list[Path] = []


def new_folder() -> Path:
    """Make a temporary folder that every uid can read."""
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-bench-"))
    _folders.append(folder)
    folder.chmod(0o755)
    return folder


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Whatever was started and made within is ended and removed, however it ends. Who was interrupted exits, as a
    shell has it, with 128 and the signal's number.
    """
    came: list[int] = []

    def end(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        ignore()
        end_family()
        raise KeyboardInterrupt

    def ignore() -> None:
        for each in ours:
            signal.signal(each, signal.SIG_IGN)

    privileges.adopt_orphans()
    # what is ignored stays so, as under nohup(1)
    ours = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(each, end) for each in ours]
    try:
        yield
    except BaseException:  # or whatever came of it that all servers ended at once
        if not came:
            raise
        raise SystemExit(128 + came[0]) from None
    finally:
        ignore()
        end_family()
        while _folders:
            shutil.rmtree(_folders.pop(), ignore_errors=True)
        for each, handler in zip(ours, before, strict=True):
            signal.signal(each, handler)


def end_family() -> None:
    """End all processes below this one: asked first, in the order in which they come to be our children."""
    asked: set[int] = set()
    late = time.monotonic() + GRACE
    while (now := time.monotonic()) < late + KILLED_WITHIN:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        me = os.getpid()
        whom = set(children().get(me, ())) - asked if now < late else set(family(me)) - {me}
        for pid in whom:
            with contextlib.suppress(OSError):  # it has just ended
                os.kill(pid, signal.SIGTERM if now < late else signal.SIGKILL)
        asked |= whom
        time.sleep(0.02)
    print(f"bench: processes that can't be ended: {family(os.getpid())[1:]}", flush=True)
