"""Long turns: what the kernel says that a process has, and what is done on a kernel that doesn't know them."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pyttpd import turns

from support.play import play


def scene() -> Any:
    os.nice(3)
    before = turns.length()
    turns.take_long_turns()
    return before, turns.length(), os.sched_getscheduler(0), os.nice(0)


def test_turns_are_long_and_nothing_else_has_changed() -> None:
    before, after, policy, nice = play(scene)
    if not before:
        assert policy == os.SCHED_BATCH  # before Linux 6.12
    else:
        assert before < after == turns.LONG
        assert policy == os.SCHED_OTHER
    assert nice - os.nice(0) == 3


def refused(*_: object) -> int:
    raise PermissionError(1, "sched_setattr")


def ignored(name: str, *args: Any) -> int:
    return 0  # an old kernel: it takes the length, and has none


@pytest.mark.parametrize("answer", [refused, ignored])
def test_where_nobody_knows_of_it(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "syscall", answer)

    def take() -> int:
        turns.take_long_turns()
        return os.sched_getscheduler(0)

    assert play(take) == os.SCHED_BATCH
