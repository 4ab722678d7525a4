"""The keeper at its worst moments: a signal during a fork, successors that crash, crashes without end."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyttpd import keeper
from pyttpd.health import HealthFile
from pyttpd.keeper import ALIVE, READY, Keeper
from pyttpd.log import Log

PATIENCE = 20.0


def keep(
    serve: Callable[[socket.socket], None], health: str = "", *, grace: float = 60.0, max_age: float = 0.0
) -> int:
    """Run a keeper in a child and return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(60)
        os._exit(Keeper(serve, Log("test", write=lambda _: None), HealthFile(health), grace, max_age).run())
    finally:
        os._exit(1)


def ended(pid: int, within: float = PATIENCE) -> int:
    deadline = time.monotonic() + within
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            pytest.fail("the keeper has not ended")
        time.sleep(0.01)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lives(beat: socket.socket) -> None:
    beat.send(READY)
    while True:
        beat.send(ALIVE)
        time.sleep(0.05)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_signal_that_comes_while_a_role_is_forked_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fork = os.fork

    def with_signal() -> int:
        if moment == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        pid = fork()
        if pid and moment == "after":
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    pid = fork()
    if pid == 0:
        try:
            os.fork = with_signal
            os._exit(Keeper(lives, Log("test", write=lambda _: None), HealthFile(""), 60.0, 0.0).run())
        finally:
            os._exit(1)
    assert ended(pid, 5.0) == 0


def test_a_signal_that_comes_when_all_is_over_is_no_error(tmp_path: Path) -> None:
    said = tmp_path / "said"
    pid = os.fork()
    if pid == 0:
        try:
            sys.stderr = said.open("w", buffering=1)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            status = Keeper(lives, Log("test", write=lambda _: None), HealthFile(""), 5.0, 0.0).run()
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(status)
        finally:
            os._exit(1)
    assert ended(pid) == 0
    assert said.read_bytes() == b""


def test_successors_that_crash_are_not_started_without_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "FIRST_DELAY", 0.2)
    count = tmp_path / "lives"

    def serve(beat: socket.socket) -> None:
        with count.open("ab") as file:
            file.write(b"x")
            first = file.tell() == 1
        if first:
            lives(beat)

    pid = keep(serve, max_age=0.2)
    until(lambda: count.exists() and count.stat().st_size >= 2)
    time.sleep(0.5)  # time enough for hundreds
    assert count.stat().st_size <= 4
    os.kill(pid, signal.SIGTERM)
    assert ended(pid) == 0


def test_delays_grow_and_the_state_says_restarting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_DELAY", 0.05)
    times = tmp_path / "times"
    state = tmp_path / "state"

    def serve(_: socket.socket) -> None:
        with times.open("a") as file:
            file.write(f"{time.monotonic()}\n")

    pid = keep(serve, str(state))
    until(lambda: times.exists() and len(times.read_text().split()) >= 4)
    until(lambda: state.read_text().strip() == "restarting")
    os.kill(pid, signal.SIGTERM)  # while nothing runs, or something just begins
    assert ended(pid) == 0
    born = [float(text) for text in times.read_text().split()][:4]
    for number, (before, after) in enumerate(itertools.pairwise(born)):
        assert after - before >= 0.05 * 2 ** (number + 1) - 0.02
