"""The event loop, deadlines and the budget of descriptors."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from pyttpd.loop import READ, WRITE, Budget, Deadlines, Loop, soft_descriptor_limit


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


def test_timers_run_in_order_and_not_before_their_time(loop: Loop) -> None:
    ran: list[tuple[str, float]] = []
    begin = time.monotonic()
    for name, delay in (("b", 0.03), ("a", 0.01), ("c", 0.03)):
        loop.call_later(delay, lambda name=name: ran.append((name, time.monotonic() - begin)))  # type: ignore[misc]
    loop.call_later(0.04, loop.stop)
    loop.run()
    assert [name for name, _ in ran] == ["a", "b", "c"]
    assert all(when >= due for (_, when), due in zip(ran, (0.01, 0.03, 0.03), strict=True))


def test_a_cancelled_timer_does_not_run(loop: Loop) -> None:
    ran: list[str] = []
    first = loop.call_later(0.0, lambda: ran.append("first"))
    late = loop.call_later(0.01, lambda: ran.append("late"))
    loop.call_later(0.0, late.cancel)
    first.cancel()
    loop.call_later(0.03, loop.stop)
    loop.run()
    late.cancel()  # any number of times
    assert ran == []


def test_a_callback_hears_of_events_with_the_time_of_its_turn(loop: Loop) -> None:
    one, other = socket.socketpair()
    seen: list[tuple[int, float]] = []

    def on_event(events: int) -> None:
        seen.append((events, loop.now))
        loop.modify(one.fileno(), READ)
        loop.stop()

    with one, other:
        loop.add(one.fileno(), READ, on_event)
        loop.call_later(0.05, lambda: other.sendall(b"x"))
        before = time.monotonic()
        loop.run()
        ((events, now),) = seen
        assert events & READ
        assert now >= before + 0.05  # not the time at which it went to sleep
        loop.remove(one.fileno())
        loop.remove(one.fileno())


def test_a_callback_may_remove_another_that_is_ready(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    seen: list[int] = []

    def on_event(number: int) -> None:
        seen.append(number)
        for one, _ in pairs:
            loop.remove(one.fileno())
        loop.stop()

    for number, (one, other) in enumerate(pairs):
        other.send(b"x")
        loop.add(one.fileno(), READ | WRITE, lambda _, number=number: on_event(number))  # type: ignore[misc]
    loop.run()
    assert len(seen) == 1
    for one, other in pairs:
        one.close()
        other.close()


def test_hooks_run_after_each_turn(loop: Loop) -> None:
    ran: list[str] = []
    loop.after_turn.append(lambda: ran.append("hook"))
    loop.call_later(0.0, lambda: ran.append("timer"))
    loop.call_later(0.0, loop.stop)
    loop.run()
    assert ran[-2:] == ["timer", "hook"]


def test_signals_are_heard_in_the_loop() -> None:
    loop = Loop()
    heard: list[int] = []

    def last() -> None:
        heard.append(2)
        loop.stop()

    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGUSR2)
    try:
        loop.on_signal(signal.SIGUSR1, lambda: heard.append(1))
        loop.on_signal(signal.SIGUSR2, last)
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.call_later(0.01, lambda: os.kill(os.getpid(), signal.SIGUSR2))
        loop.run()
        assert heard == [1, 2]
    finally:
        loop.close()
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGUSR2, before[1])


def test_deadlines_end_in_the_order_of_their_start() -> None:
    deadlines = Deadlines(10.0)
    assert deadlines.oldest() is None
    assert deadlines.age(5.0) == 0.0
    for at, key in enumerate("abc"):
        deadlines.start(key, float(at))
    deadlines.start("a", 5.0)  # again
    deadlines.stop("c")
    deadlines.stop("nobody")
    assert (deadlines.oldest(), len(deadlines), deadlines.age(4.0)) == ("b", 2, 3.0)
    assert deadlines.expired(10.9) == []
    assert deadlines.expired(11.0) == ["b"]
    assert deadlines.expired(100.0) == ["a"]
    assert len(deadlines) == 0


def test_a_budget_tells_once_when_there_is_some_room_again() -> None:
    budget = Budget(64)
    told: list[int] = []
    budget.on_free.append(lambda: told.append(budget.used))
    budget.take(63)
    assert not budget.exhausted
    budget.take()
    exhausted: bool = budget.exhausted
    assert exhausted
    budget.give()
    assert not told  # not for one place
    budget.give()
    assert told == [62]
    budget.give(10)
    assert told == [62]


def test_nobody_is_told_who_never_was_refused() -> None:
    budget = Budget(1)
    told: list[int] = []
    budget.on_free.append(lambda: told.append(budget.used))
    budget.take()
    budget.give()
    assert not told


def test_a_budget_is_what_the_process_may_open() -> None:
    assert 0 < Budget().limit < soft_descriptor_limit()


def test_what_is_new_gets_no_event_of_what_had_its_number_before() -> None:
    """All in one turn: one that is ready is removed, and another, to which nothing has happened, takes its place."""
    loop = Loop()
    first, second, quiet = socket.socketpair(), socket.socketpair(), socket.socketpair()
    wrong: list[int] = []
    number = second[0].fileno()

    def swap(_: int) -> None:
        loop.remove(number)
        os.dup2(quiet[0].fileno(), number, inheritable=False)
        loop.add(number, READ, wrong.append)
        loop.remove(first[0].fileno())
        loop.call_later(0.01, loop.stop)

    for pair, callback in ((first, swap), (second, wrong.append)):
        loop.add(pair[0].fileno(), READ, callback)
    for pair in (first, second):
        pair[1].send(b"!")
    loop.run()
    assert wrong == []
    loop.remove(number)
    loop.close()
    for end in (*first, *second, *quiet):
        end.close()
