"""The scoreboard: rows that processes share, and counters that outlive their worker."""

from __future__ import annotations

import os

import pytest

from pyttpd_vhost.scoreboard import COUNTERS, MAX_NUMBER, NUMBERS, ROW, Row, Scoreboard, printable

NUMBER = 18
WHOLE = Row._make([*range(1, NUMBERS + 1), b"host.example", b"/path"])._replace(number=NUMBER)


def padded(row: Row) -> Row:
    return Row._make(ROW.unpack(ROW.pack(*row)))


def test_what_a_worker_writes_its_supervisor_reads() -> None:
    board = Scoreboard(2)
    slot = board.take()
    pid = os.fork()
    if pid == 0:
        board.write(slot, WHOLE)
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.read(slot, NUMBER) == padded(WHOLE)
    assert printable(board.read(slot, NUMBER).last_host) == "host.example"


def test_slots_are_given_once_and_empty() -> None:
    board = Scoreboard(2)
    first, second = board.take(), board.take()
    assert first != second
    with pytest.raises(IndexError):
        board.take()
    board.write(first, WHOLE)
    board.give_back(first, NUMBER)
    assert board.take() == first
    assert board.read(first, 0) == padded(Row())


def test_counters_outlive_their_worker_and_gauges_do_not() -> None:
    board = Scoreboard(3)
    dead, alive = board.take(), board.take()
    board.write(dead, WHOLE)
    board.write(alive, WHOLE)
    board.give_back(dead, NUMBER)
    total = board.total([(alive, NUMBER)])
    assert total[:COUNTERS] == tuple(2 * int(value) for value in WHOLE[:COUNTERS])
    assert total[COUNTERS:NUMBERS] == WHOLE[COUNTERS:NUMBERS]
    board.give_back(alive, NUMBER)
    assert not any(board.total([])[COUNTERS:NUMBERS])
    assert board.total([])[:COUNTERS] == total[:COUNTERS]


def test_cells_are_kept_as_counters_are() -> None:
    board = Scoreboard(3, cells=3)
    dead, alive = board.take(), board.take()
    board.write_cells(dead, 7, {0: 1, 2: 5})
    board.write_cells(alive, 8, {2: 2**64 - 1})
    assert board.cells([(dead, 7), (alive, 8)]) == [1, 0, 5 + MAX_NUMBER]
    assert board.cells([(dead, 9)]) == [0, 0, 0]  # somebody else's
    board.give_back(dead, 7)
    assert board.cells([]) == [1, 0, 5]
    assert board.take() == dead
    assert board.cells([(dead, 0)]) == [1, 0, 5]
    board.give_back(dead, 9)
    assert board.cells([]) == [1, 0, 5]


def test_late_news_of_a_predecessor_is_no_row() -> None:
    board = Scoreboard(1)
    slot = board.take()
    board.give_back(slot, NUMBER)
    assert board.take() == slot
    board.write(slot, WHOLE)  # by the predecessor, which nobody has seen end
    assert board.read(slot, NUMBER + 1) == Row()
    assert board.total([(slot, NUMBER + 1)]) == Row()
    board.give_back(slot, NUMBER + 1)
    assert board.total([]) == Row()


def test_junk_is_bounded_and_printable() -> None:
    board = Scoreboard(1)
    slot = board.take()
    junk = Row._make([*[2**64 - 1] * NUMBERS, b"\x1b[2J\xff" * 20, b"\n" * 200])
    board.write(slot, junk._replace(number=NUMBER))
    row = board.read(slot, NUMBER)
    assert all(int(value) <= MAX_NUMBER for value in row[:NUMBERS])
    assert printable(row.last_host).startswith("?[2J??[2J?")
    assert printable(row.last_path) == "?" * 128
