"""How many connections to its processes each worker keeps, where nobody says it (`ScriptOptions.kept`)."""

from __future__ import annotations

import pytest

from pyttpd.config.kinds import FastcgiOptions


def options(**more: object) -> FastcgiOptions:
    return FastcgiOptions(root="/srv/app", command=("php-cgi",), **more)  # type: ignore[arg-type]


def test_whoever_keeps_any_never_needs_another_one() -> None:
    """Or its request would wait for a process that an idle worker's connection keeps from it."""
    some = 0
    for processes in range(1, 13):
        for workers in range(1, 9):
            for threads in range(1, 5):
                kept = options(processes=processes).kept(workers, threads)
                assert kept == 0 or threads <= kept
                assert kept * workers <= processes
                some += bool(kept)
    assert some


@pytest.mark.parametrize(
    ("workers", "threads", "kept"), [(4, 1, 1), (2, 1, 2), (2, 2, 2), (2, 3, 0), (1, 4, 4), (5, 1, 0)]
)
def test_of_four_processes(workers: int, threads: int, kept: int) -> None:
    assert options(processes=4).kept(workers, threads) == kept


def test_nobody_knows_how_many_there_are() -> None:
    assert options(processes=4, mode="dynamic").kept(1, 1) == 0
    assert FastcgiOptions(root="/srv/app", socket="/run/php.sock").kept(1, 1) == 0


def test_what_is_said_is_done() -> None:
    assert options(processes=4, keep_connections=3).kept(4, 8) == 3
