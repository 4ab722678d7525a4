"""A role with few descriptors, flooded: who floods waits, its neighbours are served, no connection is lost for good."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from pyttpd.roles import Channel as Directory
from pyttpd.wire.messages import (
    Credit,
    Dispatch,
    Gone,
    Hello,
    Refuse,
    Retry,
    Route,
    Settled,
    Taken,
    Worker,
    encode,
)

from hostile.peers import CLIENT, LISTENER_UID, TENANTS, End, Stage, as_uid, wait_for, with_header

pytestmark = pytest.mark.root

#: umaster itself needs some thirty of them.
NOFILE = 64


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        stage.umaster(nofile=NOFILE, queue_timeout=1.5)
        with stage.scene():
            yield stage


@pytest.fixture
def patient() -> Iterator[Stage]:
    """One on which who waits does so for longer than any test."""
    with Stage() as stage:
        stage.umaster(nofile=NOFILE, queue_timeout=300.0)
        with stage.scene():
            yield stage


def served(stage: Stage, listener: End, worker: End, id_: int) -> None:
    """b's worker gets an offer and its listener hears of it; refusals of a's offers may come in between."""
    listener.send(Route(id_, CLIENT, "b.test"), stage.connection())
    worker.send(Taken(worker.expect(Dispatch).id)).send(Credit(1))
    while (heard := listener.receive()) is not None and heard.message != Settled((id_,)):
        assert isinstance(heard.message, Refuse | Retry)
    assert heard is not None


def test_offers_for_a_tenant_without_workers(stage: Stage) -> None:
    """More than umaster can hold: its queue takes half of what is free; the other tenant's offers go on as ever."""
    umaster = stage.roles[0]
    worker = stage.worker(stage.supervisor("b"), "b").send(Credit(1))
    listener, other = stage.listener("http"), stage.listener("other")
    with stage.connection() as one:
        for number in range(400):
            listener.raw(with_header(Route(0, CLIENT, "a.test"), id=number), one.fileno())
    for id_ in range(1000, 1010):
        served(stage, other, worker, id_)
    served(stage, listener, worker, 2000)
    assert umaster.sample("refusals_total", vhost="a", reason="over-share") > 0
    assert umaster.sample("refusals_total", vhost="b", reason="over-share") == 0
    umaster.wait_sample(0, "queue_depth", vhost="a")
    answered = umaster.sample("refusals_total", vhost="a", reason="over-share")
    answered += umaster.sample("refusals_total", vhost="a", reason="queue-timeout")
    answered += umaster.sample("refusals_total", vhost="a", reason="queue-full")
    assert answered == 400  # each of them heard of its end


def test_a_long_queue_makes_room_for_a_short_one(stage: Stage) -> None:
    """Both have nobody who takes: the one that came first, with everything, gives up what is over its share."""
    listener = stage.listener()
    with stage.connection() as one:
        for number in range(60):
            listener.raw(with_header(Route(0, CLIENT, "a.test"), id=number), one.fileno())
        for number in range(100, 103):
            listener.raw(with_header(Route(0, CLIENT, "b.test"), id=number), one.fileno())
    umaster = stage.roles[0]
    umaster.wait_sample(3, "queue_depth", vhost="b")
    assert umaster.sample("queue_depth", vhost="a") > 3
    worker = stage.worker(stage.supervisor("b"), "b").send(Credit(3))
    for _ in range(3):
        worker.send(Taken(worker.expect(Dispatch).id))


def test_a_tenant_that_was_prompt_and_hangs(patient: Stage) -> None:
    """It may have all there is while it is prompt. When it no longer is, it stands in others' way for a moment."""
    stage, umaster = patient, patient.roles[0]
    quick = stage.worker(stage.supervisor("a"), "a").send(Credit(1))
    worker = stage.worker(stage.supervisor("b"), "b").send(Credit(1))
    listener, other = stage.listener("http"), stage.listener("other")
    listener.send(Route(1, CLIENT, "a.test"), stage.connection())
    quick.send(Taken(quick.expect(Dispatch).id))
    assert listener.expect(Settled) == Settled((1,))
    with stage.connection() as one:
        for number in range(1000, 1060):
            listener.raw(with_header(Route(0, CLIENT, "a.test"), id=number), one.fileno())
    wait_for(lambda: umaster.sample("waits_total") > 0, "its listener to be kept waiting")
    for id_ in range(10):
        served(stage, other, worker, id_)
    assert umaster.sample("refusals_total", vhost="a", reason="over-share") > 0
    assert umaster.sample("refusals_total", vhost="b", reason="over-share") == 0
    waiting = umaster.sample("queue_depth", vhost="a")
    assert 0 < waiting == 60 - umaster.sample("refusals_total", vhost="a", reason="over-share")
    for _ in range(int(waiting)):
        quick.send(Credit(1))
        quick.send(Taken(quick.expect(Dispatch).id))


def test_workers_that_are_none(stage: Stage) -> None:
    """A tenant announces more workers than there are descriptors: it keeps its share, the other tenant gets in."""
    umaster = stage.roles[0]
    with as_uid(TENANTS["a"]):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stage.keep(End(ours))
    announced = 0
    with theirs:
        for _ in range(3):
            supervisor = stage.supervisor("a")
            for number in range(1, 100):
                supervisor.raw(encode(Worker(number, "requests")), theirs.fileno())
                announced += 1
        # Who finds no room loses that worker's channel, and nothing else.
        wait_for(
            lambda: umaster.sample("workers", vhost="a") + umaster.faults("vhost", "no-room") == announced,
            "all to be let in, or turned away",
        )
        assert 0 < umaster.sample("workers", vhost="a") < announced
        worker = stage.worker(stage.supervisor("b"), "b").send(Credit(1))
        served(stage, stage.listener("other"), worker, 1)


def test_channels_that_say_nothing(stage: Stage) -> None:
    """Everybody who may connect does, and says nothing: whoever comes then has to wait for them, and is let in."""
    for uid in (TENANTS["a"], TENANTS["b"], LISTENER_UID, LISTENER_UID + 1, 31_001, 31_002):
        for directory in (Directory.VHOST, Directory.ROUTE):
            for _ in range(20):
                stage.connect(directory, uid)
    began = time.monotonic()
    end = stage.connect(Directory.ROUTE, LISTENER_UID).send(Hello("listener", "http"))
    # In the kernel's queue until there is room; or refused, as its uid has too many: then it comes again.
    while end.receive() is None:
        assert time.monotonic() - began < 30
        end = stage.connect(Directory.ROUTE, LISTENER_UID).send(Hello("listener", "http"))
        time.sleep(0.05)


def test_credit_outlives_a_moment_without_room(stage: Stage) -> None:
    """One tenant's connections fill what the kernel lets umaster have in flight; its neighbour's credit stays."""
    umaster = stage.roles[0]
    supervisor = stage.supervisor("a")
    hog = stage.worker(supervisor, "a", 1).send(Credit(64))
    stage.worker(supervisor, "a", 2).send(Credit(64))
    worker = stage.worker(stage.supervisor("b"), "b").send(Credit(2))
    umaster.wait_sample(2, "credits", vhost="b")
    listener = stage.listener("http")
    with stage.connection() as one:
        for number in range(300):
            listener.raw(with_header(Route(0, CLIENT, "a.test"), id=number), one.fileno())
    wait_for(lambda: umaster.sample("handovers_open", vhost="a") >= 4)
    assert umaster.sample("handovers_open", vhost="a") <= NOFILE // 2
    other = stage.listener("other")
    for id_ in range(10):
        served(stage, other, worker, id_)
    while not hog.quiet(0):
        hog.expect(Dispatch)
    supervisor.send(Gone(1)).send(Gone(2))
    umaster.wait_sample(0, "handovers_open", vhost="a")
    umaster.wait_sample(0, "queue_depth", vhost="a")
    served(stage, other, worker, 100)
