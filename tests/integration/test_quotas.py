"""umaster's quotas: a tenant that takes nothing, or everything, does not slow its neighbour.

The real umaster; its listener, supervisors and workers are played (hostile/peers.py says how).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from pyttpd.wire.messages import (
    Credit,
    Dispatch,
    Drop,
    Gone,
    Pass,
    Refuse,
    Retry,
    Route,
    Settled,
    Stuck,
    Taken,
)

from hostile.peers import CLIENT, End, Role, Stage, wait_for
from pyttpd_umaster.router import BURY_TIMEOUT, TAKE_TIMEOUT

pytestmark = pytest.mark.root

QUEUE_LIMIT, QUEUE_TIMEOUT, HANDOVERS = 8, 0.6, 5
#: What a neighbour notices (s): much less than any of the timeouts that the other tenant runs into.
AT_ONCE = 0.3


@pytest.fixture(scope="module")
def house() -> Iterator[Stage]:
    with Stage() as stage:
        stage.umaster(queue_limit=QUEUE_LIMIT, queue_timeout=QUEUE_TIMEOUT, handovers=HANDOVERS)
        yield stage


@pytest.fixture
def stage(house: Stage) -> Iterator[Stage]:
    with house.scene():
        yield house


@pytest.fixture
def umaster(stage: Stage) -> Role:
    return stage.roles[0]


def offer(stage: Stage, listener: End, ids: range, host: str = "a.test") -> None:
    for number in ids:
        listener.send(Route(number, CLIENT, host), stage.connection())


def neighbour(stage: Stage) -> End:
    return stage.worker(stage.supervisor("b"), "b").send(Credit(1))


def assert_served_at_once(stage: Stage, listener: End, worker: End, number: int = 1000) -> None:
    """`worker` is tenant b's: an offer through the same listener reaches it, and its answer comes back, quickly.

    The best of three counts: this machine may be busy with something else.
    """
    best = 60.0
    for attempt in range(number, number + 3):
        connection = stage.connection()
        began = time.monotonic()
        listener.send(Route(attempt, CLIENT, "b.test"), connection)
        given = worker.expect(Dispatch)
        best = min(best, time.monotonic() - began)
        worker.send(Taken(given.id)).send(Credit(1))
        while (heard := listener.receive()) is not None and heard.message != Settled((attempt,)):
            assert isinstance(heard.message, Refuse | Retry | Drop)
    assert best < AT_ONCE


# ---- length and age --------------------------------------------------------------------------------------------------


def test_a_queue_has_a_length(stage: Stage, umaster: Role) -> None:
    """Nobody takes: so many wait, the rest is refused at once, in the order in which they came."""
    before = umaster.sample("refusals_total", vhost="a", reason="queue-full")
    listener = stage.listener()
    offer(stage, listener, range(QUEUE_LIMIT + 3))
    for number in range(QUEUE_LIMIT, QUEUE_LIMIT + 3):
        assert listener.expect(Refuse) == Refuse(number, 503)
    assert umaster.sample("refusals_total", vhost="a", reason="queue-full") == before + 3
    for number in range(QUEUE_LIMIT):
        assert listener.expect(Refuse) == Refuse(number, 503)


def test_a_queue_has_an_age(stage: Stage, umaster: Role) -> None:
    before = umaster.sample("refusals_total", vhost="a", reason="queue-timeout")
    listener = stage.listener()
    began = time.monotonic()
    offer(stage, listener, range(2))
    umaster.wait_sample(2, "queue_depth", vhost="a")
    assert [listener.expect(Refuse) for _ in range(2)] == [Refuse(0, 503), Refuse(1, 503)]
    assert time.monotonic() - began >= QUEUE_TIMEOUT
    umaster.wait_sample(0, "queue_depth", vhost="a")
    assert umaster.sample("refusals_total", vhost="a", reason="queue-timeout") == before + 2


def test_what_waits_is_served_in_order_as_soon_as_there_is_credit(stage: Stage) -> None:
    listener = stage.listener()
    worker = stage.worker(stage.supervisor())
    offer(stage, listener, range(4))
    given = []
    for _ in range(4):
        worker.send(Credit(1))
        given.append(worker.expect(Dispatch).id)
        worker.send(Taken(given[-1]))
    assert settled(listener, 4) == [0, 1, 2, 3]
    assert given == sorted(given)


def settled(listener: End, count: int) -> list[int]:
    """Return the next `count` ids, however many frames they come in."""
    ids: list[int] = []
    while len(ids) < count:
        ids += listener.expect(Settled).ids
    return ids


# ---- a tenant that takes nothing -------------------------------------------------------------------------------------


def test_without_workers(stage: Stage) -> None:
    listener = stage.listener()
    worker = neighbour(stage)
    offer(stage, listener, range(3 * QUEUE_LIMIT))
    assert_served_at_once(stage, listener, worker)


def test_without_taken(stage: Stage, umaster: Role) -> None:
    """It has credit for everything and takes nothing: so many are given to it, so many wait, the rest is refused."""
    listener = stage.listener()
    supervisor = stage.supervisor("a")
    workers = [stage.worker(supervisor, "a", number).send(Credit(64)) for number in (1, 2, 3)]
    umaster.wait_sample(3, "workers", vhost="a")
    worker = neighbour(stage)
    offer(stage, listener, range(HANDOVERS + QUEUE_LIMIT + 4))
    umaster.wait_sample(HANDOVERS, "handovers_open", vhost="a")
    assert_served_at_once(stage, listener, worker)
    assert umaster.sample("handovers_open", vhost="a") == HANDOVERS
    given = [
        end for end in workers for _ in range(HANDOVERS) if not end.quiet(0) and end.receive() is not None
    ]
    assert len(given) == HANDOVERS


def test_one_that_takes_lets_the_next_one_come(stage: Stage, umaster: Role) -> None:
    """At the quota of open hand-overs each Taken makes room for one."""
    listener = stage.listener()
    worker = stage.worker(stage.supervisor()).send(Credit(64))
    offer(stage, listener, range(HANDOVERS + 2))
    given = [worker.expect(Dispatch) for _ in range(HANDOVERS)]
    assert worker.quiet(0.1)
    worker.send(Taken(given[0].id))
    worker.expect(Dispatch)
    assert settled(listener, 1) == [0]
    assert worker.quiet(0.1)


def test_without_reading(stage: Stage, umaster: Role) -> None:
    """It says nothing more and reads nothing: what it was given stays in the kernel, within the quota."""
    listener = stage.listener()
    stage.worker(stage.supervisor("a")).send(Credit(64))
    worker = neighbour(stage)
    offer(stage, listener, range(HANDOVERS + QUEUE_LIMIT))
    assert_served_at_once(stage, listener, worker)


# ---- a tenant that takes everything ----------------------------------------------------------------------------------


def test_a_flood_for_one_tenant(stage: Stage, umaster: Role) -> None:
    """One takes and takes as fast as it can, the other one isn't kept waiting."""
    listener, others = stage.listener("http"), stage.listener("other")
    busy = stage.worker(stage.supervisor("a")).send(Credit(64))
    worker = neighbour(stage)
    for number in range(200):
        listener.send(Route(number, CLIENT, "a.test"), stage.connection())
        busy.send(Taken(busy.expect(Dispatch).id)).send(Credit(1))
        if number % 50 == 25:
            assert_served_at_once(stage, others, worker, number)
    assert settled(listener, 200) == list(range(200))


# ---- a worker that is stuck ------------------------------------------------------------------------------------------


def test_stuck_then_buried_then_offered_again(stage: Stage, umaster: Role) -> None:
    """Its supervisor kills it and says so: then nobody reads any more, and the listener may offer it again."""
    listener = stage.listener()
    supervisor = stage.supervisor("a")
    stage.worker(supervisor, "a", 1).send(Credit(1)).wait_read()
    offer(stage, listener, range(1))
    began = time.monotonic()
    assert supervisor.expect(Stuck) == Stuck(1)
    assert time.monotonic() - began >= TAKE_TIMEOUT - 0.5
    assert listener.quiet(0)  # never on a timer alone
    supervisor.send(Gone(1))
    assert listener.expect(Retry) == Retry(0)
    umaster.logs("worker takes nothing vhost=a worker=1")
    sibling = stage.worker(supervisor, "a", 2).send(Credit(1))
    offer(stage, listener, range(1))
    sibling.expect(Dispatch)


def test_stuck_and_never_buried(stage: Stage, umaster: Role) -> None:
    """Nobody can prove that it is dead: the connection is dropped, and the worker is no longer one."""
    listener = stage.listener()
    supervisor = stage.supervisor("a")
    stuck = stage.worker(supervisor, "a", 1).send(Credit(2)).wait_read()
    neighbour_worker = neighbour(stage)
    offer(stage, listener, range(1))
    assert supervisor.expect(Stuck) == Stuck(1)
    assert_served_at_once(stage, listener, neighbour_worker)
    # What it still has credit for goes to others.
    offer(stage, listener, range(5, 6))
    assert listener.expect(Refuse) == Refuse(5, 503)
    assert listener.expect(Drop, BURY_TIMEOUT + 10) == Drop(0)
    stuck.expect(Dispatch)
    assert stuck.is_closed()
    assert umaster.faults("worker", "takes-nothing") == 1
    umaster.wait_sample(0, "handovers_open", vhost="a")


def test_stuck_without_a_supervisor(stage: Stage, umaster: Role) -> None:
    """The supervisor has gone, the worker goes on: it is served as long as it takes."""
    listener = stage.listener()
    supervisor = stage.supervisor("a")
    worker = stage.worker(supervisor, "a", 1).send(Credit(2))
    umaster.wait_sample(1, "workers", vhost="a")
    supervisor.close()
    offer(stage, listener, range(1))
    worker.send(Taken(worker.expect(Dispatch).id))
    assert settled(listener, 1) == [0]


# ---- passing on ------------------------------------------------------------------------------------------------------


def test_a_passed_connection_goes_to_a_sibling_only(stage: Stage) -> None:
    supervisor = stage.supervisor("a")
    one = stage.worker(supervisor, "a", 1).send(Credit(8))
    two = stage.worker(supervisor, "a", 2)
    b = neighbour(stage)
    one.send(Pass(4, CLIENT, "b.test"), stage.connection())  # whatever it claims that it is for
    assert one.expect(Refuse) == Refuse(4, 503)
    two.send(Credit(1))
    wait_for(lambda: stage.roles[0].sample("credits", vhost="a") == 9)
    one.send(Pass(5, CLIENT, "b.test"), stage.connection())
    two.send(Taken(two.expect(Dispatch).id))
    assert one.expect(Settled) == Settled((5,))
    assert b.quiet(0.1)
