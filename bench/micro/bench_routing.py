"""Routing: a name looked up among 10 and among 100,000; and umaster's whole part in a hand-over, with played channels.

Names are asked for in turns, each a string of its own as from the wire, so that no look-up finds its hash already made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from itertools import count, cycle

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pyttpd.config.shares import HostMap, LogSettings, UmasterShare, VhostPeer
from pyttpd.loop import Budget
from pyttpd.wire.messages import Client, Dispatch, Message

from pyttpd_umaster.router import Router

FEW, MANY = 10, 100_000
#: So many are asked for in turns, so that what the processor's caches don't hold counts.
ASKED = 1000
WORKERS, OPEN = 4, 32


def names(number: int, form: str) -> HostMap:
    """`number` names of as many vhosts as a map may have, all exact, or all wildcards."""
    owned = {f"host-{each}.example": f"t{each % 1000}" for each in range(number)}
    empty: dict[str, str] = {}
    return HostMap(1, owned, empty, None) if form == "exact" else HostMap(1, empty, owned, None)


@pytest.mark.parametrize("form", ["exact", "wildcard"])
@pytest.mark.parametrize("number", [FEW, MANY])
def bench_find(benchmark: BenchmarkFixture, number: int, form: str) -> None:
    host_map = names(number, form)
    prefix = b"" if form == "exact" else b"www."
    asked = cycle([prefix + b"host-%d.example" % (each * number // ASKED) for each in range(ASKED)])

    def find() -> str | None:
        return host_map.find(next(asked).decode("ascii"))

    assert benchmark(find) is not None


class Played:
    """A channel whose other end takes everything."""

    closed = False

    def __init__(self) -> None:
        self.last: Message | None = None

    def send(self, message: Message, fd: int | None = None) -> bool:
        self.last = message
        return True

    def send_all(self, messages: Sequence[Message], fds: Sequence[int] | None = None) -> int:
        self.last = messages[-1]
        return len(messages)

    def close(self) -> None:
        self.closed = True

    def fault(self, reason: str, detail: str) -> None:
        raise AssertionError(f"{reason}: {detail}")


def hand_over() -> Callable[[], None]:
    """Return what offers a connection, has its worker take it and grant a credit, and settles it."""
    router = Router(Budget(10_000))
    router.configure(UmasterShare(1, (), (VhostPeer("t0", 20_001, 100, 10.0, 100),), LogSettings(), 30.0))
    router.set_map(names(FEW, "exact"))
    source = router.add_source(Played(), "http")
    supervisor = router.add_supervisor(Played(), "t0")
    workers = {}
    for number in range(1, WORKERS + 1):
        router.may_add_worker(supervisor, number)
        channel = Played()
        worker = workers[number] = router.add_worker(supervisor, channel, number, "requests")
        router.credit(worker, OPEN, 100.0)
    fd, ids, client = os.open("/dev/null", os.O_RDONLY), count(1), Client("192.0.2.7", 4711)

    def one() -> None:
        router.route(source, next(ids), client, "host-0.example", os.dup(fd), metrics=False, now=100.0)
        router.flush()
        for worker in workers.values():
            if worker.given:
                dispatched = worker.channel.last  # type: ignore[attr-defined]
                assert isinstance(dispatched, Dispatch)
                router.taken(worker, dispatched.id, 100.0)
                router.credit(worker, 1, 100.0)
        router.flush()

    return one


def bench_hand_over(benchmark: BenchmarkFixture) -> None:
    benchmark(hand_over())
