"""The nursery's books: births that are told late, young deaths, crash loops, processes that can't be had."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pyttpd.wire.errors import RemoteProtocolError

from pyttpd_vhost import nursery as module
from pyttpd_vhost.backoff import FIRST_DELAY, LAST_DELAY, STABLE_AFTER, YOUNG_DEATHS
from pyttpd_vhost.nursery import Histogram, Nursery
from pyttpd_vhost.policy import Limits
from pyttpd_vhost.processes import PrototypeChild, WorkerChild

NUMBER = 7
NOBODY: Any = None


def worker(number: int = NUMBER) -> WorkerChild:
    return WorkerChild.new(number, 0, NOBODY, Limits(), 0.0)


def sleeper() -> int:
    pid = os.fork()
    if pid == 0:
        signal.pause()
    return pid


class Control:
    """In place of the prototype's channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.owner: object = None


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    def become(control: socket.socket) -> Any:
        signal.pause()

    made: Any = Nursery(become, Control)  # type: ignore[arg-type]
    yield made
    if made.prototype is not None:
        os.kill(made.prototype.pid, signal.SIGKILL)
        os.waitpid(made.prototype.pid, 0)
        made.prototype.control.sock.close()


# ---- births ----


def test_a_worker_that_ended_before_it_was_told_of_is_buried(nursery: Nursery) -> None:
    nursery.reaped_early(12345, -9)
    assert nursery.born(worker(), NUMBER, 12345, set()) == -9
    # The number is of no use a second time: news of a pid that was used again.
    with pytest.raises(RemoteProtocolError, match="no child of ours"):
        nursery.born(worker(), NUMBER, 12345, set())


def test_what_others_leave_behind_is_forgotten_after_a_while(nursery: Nursery) -> None:
    for pid in range(1000, 1000 + 2 * module.MAX_REAPED_EARLY):
        nursery.reaped_early(pid, 0)
    assert len(nursery._reaped_early) == module.MAX_REAPED_EARLY


def test_only_a_child_of_ours_and_of_nobody_else_is_believed(nursery: Nursery) -> None:
    with pytest.raises(RemoteProtocolError, match="no child of ours"):
        nursery.born(worker(), NUMBER, 1, set())
    with pytest.raises(RemoteProtocolError, match="not asked for"):
        nursery.born(None, NUMBER, 1, set())
    pid = sleeper()
    try:
        with pytest.raises(RemoteProtocolError, match="somebody else's"):
            nursery.born(worker(), NUMBER, pid, {pid})
        one = worker()
        assert nursery.born(one, NUMBER, pid, set()) is None
        assert one.pid == pid
        with pytest.raises(RemoteProtocolError, match="not asked for"):
            nursery.born(one, NUMBER, pid, set())
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---- the prototype ----


def test_one_prototype_at_a_time_and_none_before_it_is_time(nursery: Nursery) -> None:
    assert nursery.wake(0.0)
    first = nursery.prototype
    assert first is not None and not nursery.can_spawn(0.0)
    assert not nursery.wake(0.0)
    nursery.loaded(first, 0.5)
    assert nursery.can_spawn(0.5) and first.loaded_in == 0.5
    first.killed = True
    assert not nursery.can_spawn(0.5)


def test_a_fork_that_is_refused_is_tried_again_later(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fork", refuse)
        assert not nursery.wake(0.0)
    assert nursery.refused == 1
    assert not nursery.wake(0.0)
    assert nursery.wake(nursery.retry_in(0.0))


def child(born: float, *, ready: bool = False) -> PrototypeChild:
    return PrototypeChild(1, NOBODY, born, born, ready=ready)


def test_delays_grow_to_a_bound_and_a_healthy_life_starts_anew(nursery: Nursery) -> None:
    now, delays = 0.0, []
    for _ in range(12):
        delays.append(nursery.prototype_died(child(now), now))
        now += delays[-1]
    assert delays[0] == 2 * FIRST_DELAY
    assert delays == sorted(delays) and delays[-1] == LAST_DELAY
    assert nursery.crash_loop()
    old = child(now, ready=True)
    now += 2 * STABLE_AFTER
    assert nursery.prototype_died(old, now) == FIRST_DELAY
    assert not nursery.crash_loop()


def test_one_that_was_sent_to_sleep_is_no_crash(nursery: Nursery) -> None:
    slept = child(0.0, ready=True)
    slept.dismissed = True
    assert nursery.prototype_died(slept, 1.0) == 0.0
    assert nursery.retry_in(1.0) == 0.0


# ---- crash loops ----


def test_workers_that_die_at_once_are_a_crash_loop_until_one_lives(nursery: Nursery) -> None:
    for _ in range(YOUNG_DEATHS - 1):
        nursery.worker_died(0.0, 1.0)
        nursery.serves()  # the next one began to serve, which says nothing of how long
        assert not nursery.crash_loop()
    nursery.worker_died(0.0, 1.0)
    assert nursery.crash_loop()
    nursery.healthy()
    assert not nursery.crash_loop() and nursery.failure is None
    for _ in range(10):
        assert nursery.worker_died(2 * STABLE_AFTER, 2.0) == 0.0
    assert not nursery.crash_loop()


def test_a_failed_import_is_one_at_the_first_time(nursery: Nursery) -> None:
    for line in range(100):
        nursery.detail(f"line {line}")
    nursery.failed("ImportError: no", 5.0, loading=True)
    assert nursery.crash_loop()
    assert nursery.failure is not None
    assert nursery.failure.reason == "ImportError: no"
    assert len(nursery.failure.detail) == module.MAX_DETAIL and nursery.failure.detail[-1] == "line 99"
    nursery.blame("the prototype ended with status 1", 5.0)  # it said why itself
    assert nursery.failure.reason == "ImportError: no"
    nursery.blame("the prototype ended with status -9", 9.0)
    assert nursery.failure.reason == "the prototype ended with status -9" and not nursery.failure.detail
    nursery.serves()
    assert not nursery.crash_loop()


def test_the_histogram() -> None:
    histogram = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.add(value)
    assert histogram.cumulative() == [("0.1", 2.0), ("1.0", 3.0), ("+Inf", 4.0)]
    assert histogram.sum == pytest.approx(7.65)
