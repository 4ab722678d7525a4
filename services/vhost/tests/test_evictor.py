"""The evictor: its clock, its signals, and what it finds left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from pyttpd import privileges
from pyttpd.wire.messages import Goodbye

from pyttpd_vhost.evictor import (
    BEAT_LIMIT,
    LOAD_TIMEOUT,
    SPAWN_TIMEOUT,
    STRAY_AFTER,
    TERM_TIMEOUT,
    UNBORN_TIMEOUT,
    Evictor,
)
from pyttpd_vhost.policy import Limits, Reason, State
from pyttpd_vhost.processes import WorkerChild, below, cpu_seconds, end_family, resident, send_signal

from .conftest import ListLog


@pytest.mark.parametrize(
    ("preload", "state", "patience"),
    [
        (True, State.SPAWNING, BEAT_LIMIT),
        (False, State.SPAWNING, LOAD_TIMEOUT),
        (False, State.SERVING, BEAT_LIMIT),
    ],
)
def test_patience_with_a_worker_that_imports(preload: bool, state: State, patience: float) -> None:
    """Without preload it says nothing before it has imported; a stuck one is killed all the same."""
    nobody: Any = None
    log: Any = ListLog()
    evictor = Evictor(log, nobody, scoped=False)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        worker = WorkerChild.new(7, 0, nobody, Limits(), 0.0)
        worker.pid, worker.state = child.pid, state
        evictor.watch([worker], 30.0, patience - 0.1, preload=preload)
        assert child.poll() is None
        assert log.events() == []
        evictor.watch([worker], 30.0, patience + 0.1, preload=preload)
        assert child.wait(10) == -signal.SIGKILL
    assert log.events() == ["worker gives no sign of life and is killed"]


class Control:
    """In place of a worker's channel."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    def send(self, message: Any) -> bool:
        self.said.append(message)
        return True


def test_who_was_asked_gets_sigterm_after_grace_and_sigkill_after_that() -> None:
    log: Any = ListLog()
    control: Any = Control()
    evictor = Evictor(log, lambda *_: None, scoped=False)
    code = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        worker = WorkerChild.new(7, 0, control, Limits(), 0.0)
        worker.pid, worker.state = child.pid, State.SERVING
        evictor.mark(worker, Reason.AGE)
        evictor.retire(worker, 100.0)
        assert (worker.state, worker.why, control.said) == (State.LEAVING, "age", [Goodbye("retire")])
        worker.last_beat = 105.0
        evictor.watch([worker], 5.0, 104.9)
        assert not evictor.counts.signals
        for now in (105.1, 106.0):
            evictor.watch([worker], 5.0, now)
        assert evictor.counts.signals == {"SIGTERM": 1}
        assert child.poll() is None
        for now in (105.1 + TERM_TIMEOUT, 108.0):
            evictor.watch([worker], 5.0, now)
        assert child.wait(10) == -signal.SIGKILL
    assert evictor.counts.signals == {"SIGTERM": 1, "SIGKILL": 1}
    assert worker.why == "age"


def test_one_that_was_never_born_is_buried() -> None:
    buried: list[tuple[int, str]] = []
    log: Any = ListLog()
    evictor = Evictor(log, lambda worker, reason: buried.append((worker.number, reason)), scoped=False)
    lost, late = (WorkerChild.new(number, 0, Control(), Limits(), 0.0) for number in (1, 2))  # type: ignore[arg-type]
    evictor.kill(lost, "mute")  # its control channel has ended
    assert lost.doomed
    evictor.watch([lost, late], 5.0, UNBORN_TIMEOUT + 0.1)
    assert buried == [(1, "never-started")]
    late.last_beat = SPAWN_TIMEOUT
    evictor.watch([late], 5.0, SPAWN_TIMEOUT + 0.1)
    assert buried == [(1, "never-started"), (2, "never-started")]


def test_postponing_and_overruling_are_counted() -> None:
    log: Any = ListLog()
    evictor = Evictor(log, lambda *_: None, scoped=False)
    worker = WorkerChild.new(7, 0, Control(), Limits(), 0.0)  # type: ignore[arg-type]
    evictor.postpone(worker)
    evictor.mark(worker, Reason.HARD_AGE)
    assert worker.postponed and worker.due is Reason.HARD_AGE
    assert (evictor.counts.postponed, evictor.counts.overruled) == (1, 1)


def test_a_worker_that_is_killed_takes_its_children_along() -> None:
    code = "import subprocess, sys; c = subprocess.Popen(['sleep', '600']); print(c.pid, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert end_family([child.pid]) == 2
        assert child.wait(10) == -signal.SIGKILL
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{grandchild}") and time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(grandchild, os.WNOHANG)  # it has come to us, where tests are subreapers
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{grandchild}")


def test_strays_are_killed_at_the_second_look() -> None:
    log: Any = ListLog()
    evictor = Evictor(log, lambda *_: None, scoped=False)
    known = set(privileges.children())
    with subprocess.Popen(["sleep", "600"]) as stray:
        evictor.clear_strays(known, 10.0)
        evictor.clear_strays(known, 10.0 + STRAY_AFTER / 2)  # too soon
        assert stray.poll() is None
        evictor.clear_strays(known, 10.1 + STRAY_AFTER)
        assert stray.wait(10) == -signal.SIGKILL
    assert evictor.counts.strays == 1


def test_numbers_of_the_kernel() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * 30_000_000; input()"], stdin=subprocess.PIPE
    ) as child:
        deadline = time.monotonic() + 10
        while resident(child.pid) < 30_000_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert resident(child.pid) >= 30_000_000
        assert 0.0 < cpu_seconds(child.pid) < 60.0
        child.kill()
    assert (resident(child.pid), cpu_seconds(child.pid), list(below(child.pid))) == (0, 0.0, [])
    assert not send_signal(child.pid, signal.SIGTERM)
