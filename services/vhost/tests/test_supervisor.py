"""The supervisor's books when its prototype's word comes late: after the worker's end, or after its sentence."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from pyttpd.wire.errors import RemoteProtocolError

from pyttpd_vhost import supervisor as module
from pyttpd_vhost.supervisor import Supervisor, WorkerChild

from .conftest import make_share

NUMBER = 7


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    """A supervisor without a tree, that has asked for one worker; what it is told of ends is in `gone`."""
    made: Any = object.__new__(Supervisor)
    now = time.monotonic()
    made._workers = {NUMBER: WorkerChild(NUMBER, 0, None, now, now)}  # type: ignore[arg-type]
    made._scrapers = set()
    made._reaped_early = {}
    made._prototype = None
    made.gone = []
    monkeypatch.setattr(
        Supervisor, "_worker_gone", lambda self, worker, code: self.gone.append((worker.number, code))
    )
    checked: Supervisor = made
    return checked


def sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid


def test_a_worker_that_ended_before_it_was_told_of_is_buried(books: Any) -> None:
    books._reaped(12345, -9)
    books._spawned(NUMBER, 12345)
    assert books.gone == [(NUMBER, -9)]
    assert not books._reaped_early


def test_a_worker_that_was_to_be_killed_before_it_was_told_of_is_killed_then(books: Any) -> None:
    books._kill(books._workers[NUMBER])
    pid = sleeper()
    books._spawned(NUMBER, pid)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    books._reaped(pid, -9)
    assert books.gone == [(NUMBER, -9)]


def test_what_others_leave_behind_is_forgotten_after_a_while(books: Any) -> None:
    for pid in range(1000, 1000 + 2 * module.MAX_REAPED_EARLY):
        books._reaped(pid, 0)
    assert len(books._reaped_early) == module.MAX_REAPED_EARLY
    assert books.gone == []


def test_a_process_that_is_no_child_is_not_believed(books: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="no child of ours"):
        books._spawned(NUMBER, 1)


def test_patience_with_a_worker_that_imports(books: Supervisor) -> None:
    """Without preload it says nothing before it has imported; a stuck one is noticed all the same."""
    made: Any = books
    worker = made._workers[NUMBER]
    for preload, state, patience in (
        (True, module.State.SPAWNING, module.BEAT_LIMIT),
        (False, module.State.SPAWNING, module.LOAD_TIMEOUT),
        (False, module.State.SERVING, module.BEAT_LIMIT),
    ):
        made._share = make_share(preload=preload)
        worker.state = state
        assert made._patience(worker) == patience
