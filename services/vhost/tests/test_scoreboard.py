"""The scoreboard: rows that processes share, and counters that outlive their worker."""

from __future__ import annotations

import os

import pytest

from pyttpd_vhost.scoreboard import COUNTERS, Row, Scoreboard

ROW = Row(*range(1, 11))


def test_what_a_worker_writes_its_supervisor_reads() -> None:
    board = Scoreboard(2)
    slot = board.take()
    pid = os.fork()
    if pid == 0:
        board.write(slot, ROW)
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.read(slot) == ROW


def test_slots_are_given_once_and_empty() -> None:
    board = Scoreboard(2)
    first, second = board.take(), board.take()
    assert first != second
    with pytest.raises(IndexError):
        board.take()
    board.write(first, ROW)
    board.give_back(first)
    assert board.take() == first
    assert board.read(first) == Row()


def test_counters_outlive_their_worker_and_gauges_do_not() -> None:
    board = Scoreboard(3)
    dead, alive = board.take(), board.take()
    board.write(dead, ROW)
    board.write(alive, ROW)
    board.give_back(dead)
    total = board.total([alive])
    assert total[:COUNTERS] == tuple(2 * value for value in ROW[:COUNTERS])
    assert total[COUNTERS:] == ROW[COUNTERS:]
    board.give_back(alive)
    assert board.total([])[COUNTERS:] == (0, 0)
    assert board.total([])[:COUNTERS] == total[:COUNTERS]
