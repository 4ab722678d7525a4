"""The evictor's clock: how long a worker may be silent."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from pyttpd_vhost.evictor import BEAT_LIMIT, LOAD_TIMEOUT, Evictor
from pyttpd_vhost.policy import Limits, State
from pyttpd_vhost.processes import WorkerChild

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
    evictor = Evictor(log, nobody)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        worker = WorkerChild.new(7, 0, nobody, Limits(), 0.0)
        worker.pid, worker.state = child.pid, state
        evictor.watch([worker], 30.0, patience - 0.1, preload=preload)
        assert child.poll() is None
        assert log.events() == []
        evictor.watch([worker], 30.0, patience + 0.1, preload=preload)
        assert child.wait(10) == -signal.SIGKILL
    assert log.events() == ["worker gives no sign of life and is killed"]
