"""The head scanner: one scan each. The budget (the scanner's own, head.py): a microsecond for wrk's head, three for a
browser's. `match` is the part that the compiled expression takes.
"""

from __future__ import annotations

import pytest
from micro.heads import HEADS
from pytest_benchmark.fixture import BenchmarkFixture

from pyttpd import head

LIMIT = 32768


def scan(data: bytes) -> object:
    try:
        return head.scan(data, LIMIT)
    except head.Refused as refused:
        return refused


@pytest.mark.parametrize("name", HEADS)
def bench_scan(benchmark: BenchmarkFixture, name: str) -> None:
    found = benchmark(scan, HEADS[name])
    assert isinstance(found, head.Refused) == name.startswith("refused")


@pytest.mark.parametrize("name", HEADS)
def bench_match(benchmark: BenchmarkFixture, name: str) -> None:
    benchmark(head.DEFAULT_BOUNDS.head.match, HEADS[name], 0, LIMIT)
