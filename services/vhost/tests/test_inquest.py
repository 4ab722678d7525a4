"""Processes whose interpreter stands still, and what can be found out about them all the same."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from pyttpd.config.shares import PoolSettings
from pyttpd.log import Log
from pyttpd.loop import Loop

from pyttpd_vhost.evictor import BEAT_LIMIT
from pyttpd_vhost.inquest import LAST_WORDS, SLACK, Inquest, answer, asked_after, killed_after


def regular_expression() -> None:
    """Hold the interpreter's lock for longer than any test takes."""
    re.match(r"(a|a)*b", "a" * 60)


def power() -> None:
    """The same by another part of C."""
    10 ** (10**10)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def deaf() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(1000)


class Place:
    """An inquest with children, and what it has logged."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.children: list[int] = []
        log = Log("vhost", "test", write=self.written.append)
        self.loop = Loop()
        self.inquest = Inquest(self.loop, lambda: log, os.kill)

    def child(self, what: Callable[[], object]) -> int:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                answer(self.inquest.fd)
                os.write(writer, b"!")
                what()
            finally:
                os._exit(0)
        self.children.append(pid)
        os.read(reader, 1)
        os.close(reader)
        os.close(writer)
        time.sleep(0.05)  # until it stands still; if it doesn't yet, the dump shows it on its way
        return pid

    def run(self, entries: int) -> str:
        """Let the loop turn until so many entries are written."""

        def look() -> None:
            if len(self.written) >= entries:
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        look()
        self.loop.call_later(10, self.loop.stop)
        self.loop.run()
        return b"".join(self.written).decode()


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        made = Place()
        stack.callback(made.inquest.close)
        stack.callback(made.loop.close)
        yield made
        for pid in made.children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("what", [regular_expression, power])
def test_c_code_that_holds_the_lock_is_found(place: Place, what: Callable[[], object]) -> None:
    place.inquest.hear(place.child(what), 7.0, 5.0, worker=3)
    log = place.run(1)
    assert "warning: no sign of life: where it stands worker=3 seconds=7.0" in log
    assert f" in {what.__name__}\n" in log


@pytest.mark.parametrize("what", [stopped, deaf])
def test_who_does_not_answer_is_told_of_as_well(place: Place, what: Callable[[], object]) -> None:
    place.inquest.hear(place.child(what), 7.0, 5.0, worker=3)
    assert "(no answer: it is stopped, or doesn't listen)" in place.run(1)


def test_a_silence_is_asked_about_once_and_the_next_one_again(place: Place) -> None:
    pid = place.child(power)
    for silence in (1.0, 5.0, 6.0, 7.0):
        place.inquest.hear(pid, silence, 5.0)
    assert place.inquest.asked == 1
    place.inquest.hear(pid, 0.5, 5.0)
    place.inquest.hear(pid, 5.5, 5.0)
    assert place.inquest.asked == 2
    assert place.run(2).count("seconds=") == 2


def test_one_is_asked_at_a_time_and_not_too_many(place: Place) -> None:
    for number, what in enumerate((power, regular_expression)):
        place.inquest.hear(place.child(what), 9.0, 5.0, worker=number)
    for pid in range(1, 100):
        place.inquest.hear(-pid, 9.0, 5.0)
        place.inquest.forget(-pid)
    log = place.run(2)
    first, second = log.split("warning: ")[1:]
    assert "in power" in first
    assert "in regular_expression" in second


def test_junk_in_the_pipe_is_bounded_and_moves_no_cursor(place: Place) -> None:
    def floods() -> None:
        signal.signal(signal.SIGRTMIN + 7, signal.SIG_IGN)
        while True:
            try:
                os.write(place.inquest.fd, b"\x1b[2J\nForged: yes\r" * 100)
            except BlockingIOError:
                time.sleep(0.001)

    place.inquest.hear(place.child(floods), 9.0, 5.0)
    log = place.run(1)
    assert "\x1b" not in log
    assert "\r" not in log
    assert all(line.startswith(("    | ", "20")) for line in log.splitlines())
    assert len(log) < 10_000


@pytest.mark.parametrize(
    ("slow", "timeout", "asked", "killed"),
    [
        (5.0, 60.0, 5.0 + SLACK, BEAT_LIMIT),
        (0.0, 0.0, BEAT_LIMIT - LAST_WORDS, BEAT_LIMIT),
        (30.0, 60.0, BEAT_LIMIT - LAST_WORDS, BEAT_LIMIT),
        (1.0, 3.0, 1.0 + SLACK, 3.0 + SLACK),
    ],
)
def test_how_long_a_silence_may_be(slow: float, timeout: float, asked: float, killed: float) -> None:
    pool = PoolSettings(slow_request=slow, request_timeout=timeout)
    assert (asked_after(pool), killed_after(pool)) == (asked, killed)
