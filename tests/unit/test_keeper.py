"""The keeper with real processes: a role that serves, crashes, falls silent, won't leave, grows old, leaves strays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyttpd import keeper
from pyttpd.health import HealthFile
from pyttpd.log import Log

from support.leaks import descendants, state

#: Times are a tenth of the product's, so that the tests are quick.
PROGRAM = """
import os, signal, socket, sys, time
from pyttpd import keeper, privileges
from pyttpd.health import HealthFile
from pyttpd.log import Log

mode, folder = sys.argv[1:3]
keeper.BEAT_INTERVAL, keeper.BEAT_LIMIT, keeper.SUCCESSION_TIMEOUT = 0.05, 0.4, 0.4

def life():
    with open(folder + "/lives", "ab+") as file:
        file.write(b"%d\\n" % os.getpid())
        file.flush()
        file.seek(0)
        return len(file.readlines())

def serve(beat):
    number = life()
    leaving = []
    signal.signal(signal.SIGTERM, lambda *_: leaving.append(1))
    if mode == "crashes" and number <= 2:
        sys.exit(7) if number == 1 else 1 / 0
    if mode == "strays" and number == 1:
        if os.fork() == 0:
            time.sleep(60)
        os._exit(1)
    if mode == "sleeps" and number == 1:
        beat.send(keeper.READY + keeper.WAKE)
        return
    if mode == "sleeps" and number == 1:
        beat.send(keeper.READY + keeper.WAKE)
        return
    if mode == "wordy":
        beat.send(b"j1")  # what the share said of logs
    hesitates = mode in ("hesitant", "fails") and number == 2
    beat.send(keeper.ALIVE if hesitates else keeper.READY)
    if mode == "silent" and number == 1:
        time.sleep(60)
    if mode == "renews" and number <= 2:
        beat.send(keeper.RENEW)
    if mode == "fails" and number == 1:
        beat.send(keeper.RENEW)
    if mode == "fails" and number == 2:
        beat.send(keeper.FAILED)
    while mode == "stubborn" or not leaving:
        time.sleep(0.05)
        beat.send(keeper.ALIVE)
    beat.send(keeper.DRAINING)
    time.sleep(0.2)

privileges.STOP_LIMIT = 0.3
max_age = 0.3 if mode in ("old", "hesitant") else 0.0

def become(beat, renewing):
    with open(folder + "/apart", "a") as file:
        file.write(f"{os.getpid()} {renewing} ")
    serve(beat)
    os._exit(0)

kept = keeper.Keeper(serve, Log("test"), HealthFile(folder + "/health"), 0.5, max_age)
kept.become = become if mode in ("sleeps", "renews", "steady") else None
sys.exit(kept.run())
"""


#: A tenth of the product's, as in PROGRAM.
STOP_LIMIT = 0.3


class Kept:
    """A keeper under test, and what it has written."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder

    @property
    def lives(self) -> list[int]:
        try:
            return [int(line) for line in (self.folder / "lives").read_text().split()]
        except FileNotFoundError:
            return []

    @property
    def health(self) -> str:
        try:
            return (self.folder / "health").read_text().strip()
        except FileNotFoundError:
            return ""

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not what():
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.01)


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[[str], Kept]]:
    processes = []

    def kept(mode: str) -> Kept:
        with open(tmp_path / "log", "wb") as log:
            command = [sys.executable, "-I", "-c", PROGRAM, mode, str(tmp_path)]
            process = subprocess.Popen(command, stderr=log, stdout=log)
        processes.append(process)
        return Kept(process, tmp_path)

    yield kept
    for process in processes:
        for pid in (*descendants(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def ended(kept: Kept, number: signal.Signals = signal.SIGTERM) -> int:
    kept.process.send_signal(number)
    return kept.process.wait(5)


def test_a_role_is_ready_and_leaves_when_asked(keep: Callable[[str], Kept]) -> None:
    kept = keep("steady")
    kept.until(lambda: kept.health == "ready")
    (role,) = kept.lives
    kept.process.terminate()
    kept.until(lambda: kept.health == "draining")
    assert kept.process.wait(5) == 0
    assert state(role) == "X"
    assert kept.health == ""
    assert kept.lives == [role]


def test_a_role_that_crashes_is_started_again(keep: Callable[[str], Kept]) -> None:
    kept = keep("crashes")
    kept.until(lambda: len(kept.lives) == 3 and kept.health == "ready")
    assert "status 7" not in kept.log  # SystemExit is an error like any other in a role
    assert "SystemExit(7)" in kept.log
    assert "ZeroDivisionError" in kept.log
    assert kept.log.count("role died and is started again") == 2
    assert ended(kept, signal.SIGINT) == 0


def test_a_role_that_is_killed_is_started_again(keep: Callable[[str], Kept]) -> None:
    kept = keep("steady")
    kept.until(lambda: kept.health == "ready")
    os.kill(kept.lives[0], signal.SIGKILL)
    kept.until(lambda: len(kept.lives) == 2 and kept.health == "ready")
    assert 'reason="signal 9"' in kept.log
    assert ended(kept) == 0


def test_a_keeper_logs_as_its_role_says(keep: Callable[[str], Kept]) -> None:
    kept = keep("wordy")
    kept.until(lambda: kept.health == "ready")
    os.kill(kept.lives[0], signal.SIGKILL)
    kept.until(lambda: len(kept.lives) == 2 and kept.health == "ready")
    entries = [json.loads(line) for line in kept.log.splitlines()]
    assert [(entry["event"], entry["reason"]) for entry in entries] == [
        ("role died and is started again", "signal 9")
    ]
    assert ended(kept) == 0


def test_who_wakes_is_followed_by_an_interpreter_of_its_own(keep: Callable[[str], Kept]) -> None:
    kept = keep("sleeps")
    kept.until(lambda: len(kept.lives) == 2 and kept.health == "ready")
    asleep, awake = kept.lives
    assert (kept.folder / "apart").read_text() == f"{awake} False "
    assert "died" not in kept.log and state(asleep) == "X"
    os.kill(awake, signal.SIGTERM)  # asked to leave: who follows sleeps
    kept.until(lambda: len(kept.lives) == 3 and kept.health == "ready" and state(awake) == "X")
    os.kill(kept.lives[2], signal.SIGKILL)
    kept.until(lambda: len(kept.lives) == 4 and kept.health == "ready")
    assert (kept.folder / "apart").read_text() == f"{awake} False "
    assert ended(kept) == 0


def test_who_succeeds_somebody_because_that_was_asked_for_is_an_interpreter_of_its_own(
    keep: Callable[[str], Kept],
) -> None:
    kept = keep("renews")
    kept.until(lambda: len(kept.lives) == 3 and kept.health == "ready")
    kept.until(lambda: state(kept.lives[1]) == "X")
    assert (kept.folder / "apart").read_text() == f"{kept.lives[1]} True {kept.lives[2]} True "
    assert ended(kept) == 0


def test_a_role_without_a_sign_of_life_is_killed(keep: Callable[[str], Kept]) -> None:
    kept = keep("silent")
    kept.until(lambda: len(kept.lives) == 2 and kept.health == "ready")
    assert "no sign of life" in kept.log
    assert ended(kept) == 0


def test_one_that_does_not_leave_is_killed_after_grace(keep: Callable[[str], Kept]) -> None:
    kept = keep("stubborn")
    kept.until(lambda: kept.health == "ready")
    begin = time.monotonic()
    assert ended(kept) == 0
    assert 0.5 <= time.monotonic() - begin < 3
    assert "has not left within grace" in kept.log


def test_the_second_signal_kills_at_once(keep: Callable[[str], Kept]) -> None:
    kept = keep("stubborn")
    kept.until(lambda: kept.health == "ready")
    begin = time.monotonic()
    kept.process.terminate()
    kept.until(lambda: kept.health == "draining")
    assert ended(kept) == 0
    assert time.monotonic() - begin < 0.5


def test_an_old_role_leaves_when_its_successor_is_ready(keep: Callable[[str], Kept]) -> None:
    kept = keep("old")
    kept.until(lambda: len(kept.lives) >= 3)
    assert kept.health == "ready"  # never anything else in between
    assert "reached its age" in kept.log
    assert "died" not in kept.log
    kept.until(lambda: state(kept.lives[0]) in "XZ")
    assert ended(kept) == 0


def test_a_successor_that_is_not_ready_is_given_up(keep: Callable[[str], Kept]) -> None:
    kept = keep("hesitant")
    kept.until(lambda: "given up" in kept.log)
    first, second, *_ = kept.lives
    kept.until(lambda: state(second) in "XZ")
    assert state(first) not in "XZ"
    assert kept.health == "ready"
    assert ended(kept) == 0


def test_a_role_that_asks_for_a_successor_leaves_when_that_is_ready(keep: Callable[[str], Kept]) -> None:
    kept = keep("renews")
    kept.until(lambda: len(kept.lives) == 3)
    kept.until(lambda: all(state(pid) in "XZ" for pid in kept.lives[:2]))
    assert kept.health == "ready"
    assert kept.log.count('reason="was asked for"') == 2
    assert "died" not in kept.log
    assert ended(kept) == 0


def test_a_successor_that_says_that_it_fails_makes_way_at_once_and_for_good(
    keep: Callable[[str], Kept],
) -> None:
    kept = keep("fails")
    kept.until(lambda: "given up" in kept.log)
    first, second = kept.lives
    kept.until(lambda: state(second) in "XZ")
    assert "it says so itself" in kept.log
    assert (state(first) not in "XZ", kept.health) == (True, "ready")
    kept.process.send_signal(signal.SIGHUP)  # and only who asks again gets another
    kept.until(lambda: len(kept.lives) == 3)
    kept.until(lambda: state(first) in "XZ")
    assert ended(kept) == 0


def test_what_a_dead_role_has_left_is_killed_after_grace(keep: Callable[[str], Kept]) -> None:
    kept = keep("strays")
    kept.until(lambda: len(kept.lives) == 2 and kept.health == "ready")
    kept.until(lambda: [pid for pid in descendants(kept.process.pid) if pid != kept.lives[1]] == [])
    assert "have not ended within grace" in kept.log
    assert ended(kept) == 0


def test_a_role_that_is_stopped_is_killed_and_one_that_is_continued_soon_is_not(
    keep: Callable[[str], Kept],
) -> None:
    kept = keep("steady")
    kept.until(lambda: kept.health == "ready")
    (first,) = kept.lives
    begin = time.monotonic()
    while time.monotonic() - begin < 2 * STOP_LIMIT:
        os.kill(first, signal.SIGSTOP)
        os.kill(first, signal.SIGCONT)
        time.sleep(0.01)
    assert kept.lives == [first]
    os.kill(first, signal.SIGSTOP)
    kept.until(lambda: len(kept.lives) == 2 and kept.health == "ready")
    assert "process is stopped and is killed" in kept.log
    assert ended(kept) == 0


def test_a_role_that_is_to_be_replaced_leaves_when_its_successor_is_ready(
    keep: Callable[[str], Kept],
) -> None:
    kept = keep("steady")
    kept.until(lambda: kept.health == "ready")
    kept.process.send_signal(signal.SIGUSR2)
    kept.until(lambda: len(kept.lives) == 2 and state(kept.lives[0]) in "XZ")
    assert kept.health == "ready"
    assert 'reason="was asked for"' in kept.log
    assert ended(kept) == 0


def test_a_role_that_somebody_has_asked_to_leave_has_a_successor_at_once(keep: Callable[[str], Kept]) -> None:
    kept = keep("steady")
    kept.until(lambda: kept.health == "ready")
    os.kill(kept.lives[0], signal.SIGTERM)
    kept.until(lambda: len(kept.lives) == 2 and kept.health == "ready")
    assert "was asked to leave: a successor is started" in kept.log
    assert "died" not in kept.log
    assert ended(kept) == 0


def test_a_role_dies_with_its_keeper(keep: Callable[[str], Kept]) -> None:
    kept = keep("steady")
    kept.until(lambda: kept.health == "ready")
    kept.process.kill()
    kept.process.wait()
    deadline = time.monotonic() + 5
    while state(kept.lives[0]) not in "XZ":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_role_that_sleeps_wakes_its_keeper_not_the_clock() -> None:
    """Thousands may sleep: keeper and role are up once for each beat, and silence is noticed as ever."""

    def kept(*, sleeps: bool) -> float:
        become = (lambda _beat, _renewing: sys.exit()) if sleeps else None
        keep = keeper.Keeper(lambda _beat: None, Log("vhost"), HealthFile(""), 1.0, 0.0, become=become)
        keep._start_at = None
        ours, theirs = socket.socketpair()
        with ours, theirs:
            keep.children.append(keeper.Child(1, ours, 100.0, 100.0, float("inf")))
            return keep._wait(100.0)

    assert kept(sleeps=False) == pytest.approx(keeper.BEAT_INTERVAL, abs=0.01)
    assert keeper.ASLEEP_BEATS * keeper.BEAT_INTERVAL < kept(sleeps=True) < keeper.BEAT_LIMIT / 2
