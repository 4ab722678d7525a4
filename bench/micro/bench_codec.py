"""The codec: each frame that a hand-over takes, and the largest batch of them, made and read."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pyttpd.wire import messages as m

CLIENT = m.Client("192.0.2.7", 4711)
MESSAGES: dict[str, m.Message] = {
    "Route": m.Route(7, CLIENT, "blog.example"),
    "Dispatch": m.Dispatch(7, CLIENT, "blog.example"),
    "Taken": m.Taken(7),
    "Credit": m.Credit(8),
    "Settled, one": m.Settled((7,)),
    "Settled, as many as go": m.Settled(tuple(range(1, m.MAX_BATCH + 1))),
    "Refuse": m.Refuse(7, 503),
}


@pytest.mark.parametrize("name", MESSAGES)
def bench_encode(benchmark: BenchmarkFixture, name: str) -> None:
    assert m.decode(benchmark(m.encode, MESSAGES[name])) == MESSAGES[name]


@pytest.mark.parametrize("name", MESSAGES)
def bench_decode(benchmark: BenchmarkFixture, name: str) -> None:
    assert benchmark(m.decode, m.encode(MESSAGES[name])) == MESSAGES[name]
