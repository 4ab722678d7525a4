"""The router, sans-I/O: played channels, real descriptors. Each arrow of its diagram, then anything in any order."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from pyttpd.config.shares import HostMap, LogSettings, UmasterShare, VhostPeer
from pyttpd.loop import Budget
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    MAX_BATCH,
    Client,
    Demand,
    Dispatch,
    Drop,
    Message,
    Refuse,
    Retry,
    Settled,
    Stuck,
)

from pyttpd_umaster import router as module
from pyttpd_umaster.router import MAX_CREDIT, Router, Source, Supervisor, WorkerState

CLIENT = Client("192.0.2.7", 4711)
LIMIT, TIMEOUT, HANDOVERS = 4, 10.0, 3


class Peer:
    """A played channel. `full` has no room for descriptors; `dead` is gone, which only sending finds out."""

    def __init__(self, gone: Callable[[], None] = lambda: None) -> None:
        self.closed = False
        self.full = False
        self.dead = False
        self.said: list[Message] = []
        self.gone = gone
        self.faults: list[str] = []

    def send(self, message: Message, fd: int | None = None) -> bool:
        if self.closed:
            return False
        if self.dead:
            self.end()
            return False
        if fd is not None:
            os.fstat(fd)
            if self.full:
                return False
        self.said.append(message)
        return True

    def send_all(self, messages: Sequence[Message], fds: Sequence[int] | None = None) -> int:
        sent = 0
        for message, fd in zip_longest(messages, fds or ()):
            if not self.send(message, fd):
                break
            sent += 1
        return sent

    def end(self) -> None:
        """What Channel does when it finds its peer gone: it closes, and its role hears of it within the call."""
        if not self.closed:
            self.closed = True
            self.gone()

    def close(self) -> None:
        self.closed = True

    def fault(self, reason: str, _: str) -> None:
        self.faults.append(reason)
        self.end()

    def take(self) -> list[Message]:
        said, self.said = self.said, []
        return said


def share(*names: str, limit: int = LIMIT, handovers: int = HANDOVERS) -> UmasterShare:
    vhosts = tuple(
        VhostPeer(name, 20_001 + number, limit, TIMEOUT, handovers) for number, name in enumerate(names)
    )
    return UmasterShare(1, (), vhosts, LogSettings(), 30.0)


class OneByOne(Router):
    """A router for which everything that happens has a turn of the loop to itself."""

    def route(self, *args: Any, **options: Any) -> None:
        super().route(*args, **options)
        self.send_assigned()

    def pass_on(self, *args: Any) -> None:
        super().pass_on(*args)
        self.send_assigned()

    def credit(self, *args: Any) -> None:
        super().credit(*args)
        self.send_assigned()

    def taken(self, *args: Any) -> None:
        super().taken(*args)
        self.send_assigned()

    def sweep(self, now: float) -> list[WorkerState]:
        found = super().sweep(now)
        self.send_assigned()
        return found


class World:
    """A router with vhosts a and b, and who plays around it."""

    def __init__(self, budget: int = 1000, kind: type[Router] = OneByOne, **limits: int) -> None:
        self.budget = Budget(budget)
        self.router = kind(self.budget)
        self.router.configure(share("a", "b", **limits))
        self.router.set_map(HostMap(1, {"a.example": "a", "b.example": "b"}, {"a.example": "a"}, None))
        self.now = 100.0
        self.ids = 0
        self.peers: list[Peer] = []

    def listener(self, room: int = module.ROUTE_WINDOW) -> Source:
        peer = Peer()
        source = self.router.add_source(peer, "http", room)
        peer.gone = lambda: self.router.source_gone(source)
        self.peers.append(peer)
        return source

    def supervisor(self, vhost: str = "a") -> Supervisor:
        peer = Peer()
        supervisor = self.router.add_supervisor(peer, vhost)
        peer.gone = lambda: self.router.supervisor_gone(supervisor)
        self.peers.append(peer)
        return supervisor

    def worker(
        self, supervisor: Supervisor, number: int = 1, credit: int = 0, work: str = "requests"
    ) -> WorkerState:
        peer = Peer()
        self.router.may_add_worker(supervisor, number)
        worker = self.router.add_worker(supervisor, peer, number, work)
        peer.gone = lambda: self.router.worker_gone(worker)
        self.peers.append(peer)
        if credit:
            self.router.credit(worker, credit, self.now)
        return worker

    def offer(self, source: Source, name: str = "a.example", *, metrics: bool = False, id_: int = 0) -> int:
        self.ids += 1
        id_ = id_ or self.ids
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.router.route(source, id_, CLIENT, name, fd, metrics=metrics, now=self.now)
        return id_

    def pass_on(self, worker: WorkerState) -> int:
        self.ids += 1
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.router.pass_on(worker, self.ids, CLIENT, "a.example", fd, self.now)
        return self.ids

    def heard(self, source: Source) -> list[Message]:
        self.router.flush()
        return said_by(source.channel).take()

    def end(self) -> None:
        for peer in self.peers:
            peer.end()
        self.router.flush()
        for vhost in ("a", "b"):
            for work in ("requests", "metrics"):
                pool = self.router.pools.get((vhost, work))
                if pool is not None:
                    assert (len(pool.queue), pool.handovers, pool.credits, len(pool.workers)) == (0, 0, 0, 0)
        assert self.router.travelling == 0
        assert self.budget.used == 0


def said_by(channel: module.Peer) -> Peer:
    assert isinstance(channel, Peer)
    return channel


def dispatched(worker: WorkerState) -> list[int]:
    """Return the ids of what this worker has been given since we last asked."""
    return [message.id for message in said_by(worker.channel).take() if isinstance(message, Dispatch)]


def marks(worker: WorkerState) -> list[int]:
    """As `dispatched`, the marks."""
    return [message.mark for message in said_by(worker.channel).take() if isinstance(message, Dispatch)]


def only(worker: WorkerState) -> int:
    """Return the id of the one connection that this worker has been given and hasn't taken."""
    (id_,) = worker.given
    return id_


@pytest.fixture
def world() -> Iterator[World]:
    one = World()
    yield one
    one.end()


@contextlib.contextmanager
def fault(reason: str) -> Iterator[None]:
    with pytest.raises(RemoteProtocolError) as caught:
        yield
    assert caught.value.reason == reason


# ---- the diagram ----


def test_no_such_name_is_421(world: World) -> None:
    source = world.listener()
    id_ = world.offer(source, "nobody.example")
    assert world.heard(source) == [Refuse(id_, 421)]
    assert world.router.unnamed_refusals == 1
    assert world.budget.used == 0


def test_no_such_metrics_are_404(world: World) -> None:
    source = world.listener()
    id_ = world.offer(source, "nobody", metrics=True)
    assert world.heard(source) == [Refuse(id_, 404)]


def test_dispatched_and_taken_is_settled(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=1)
    id_ = world.offer(source)
    (given,) = dispatched(worker)
    assert world.heard(source) == []
    assert (world.router.pools["a", "requests"].handovers, world.budget.used) == (1, 0)
    world.router.taken(worker, given, world.now)
    assert world.heard(source) == [Settled((id_,))]
    assert world.heard(source) == []


def test_a_subdomain_goes_where_its_wildcard_says(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=1)
    world.offer(source, "x.a.example")
    assert len(dispatched(worker)) == 1


def test_a_worker_that_is_gone_before_it_took_is_a_retry(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=2)
    first, second = world.offer(source), world.offer(source)
    said_by(worker.channel).end()
    assert world.heard(source) == [Retry(first), Retry(second)]


def test_what_a_worker_was_given_does_not_go_to_the_names_next_owner(world: World) -> None:
    """The worker is the tenant's: it may have kept a copy, and read what the next tenant's client says."""
    source, worker = world.listener(), world.worker(world.supervisor(), credit=2)
    moved, stays = world.offer(source), world.offer(source, "x.a.example")
    assert len(dispatched(worker)) == 2
    world.router.set_map(HostMap(2, {"a.example": "b"}, {"a.example": "a"}, None))
    world.router.worker_gone(worker)
    assert world.heard(source) == [Refuse(moved, 421), Retry(stays)]


def test_a_buried_worker_is_a_retry_and_its_channel_is_closed(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    worker = world.worker(supervisor, credit=1)
    id_ = world.offer(source)
    world.router.buried(supervisor, worker.number)
    assert worker.channel.closed
    assert world.heard(source) == [Retry(id_)]
    world.router.buried(supervisor, worker.number)  # twice is no fault


def test_a_stuck_worker_is_told_of_and_dropped_when_nobody_buries_it(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    worker = world.worker(supervisor, number=7, credit=3)
    id_ = world.offer(source)
    world.now += module.TAKE_TIMEOUT - 0.1
    assert world.router.sweep(world.now) == []
    world.now += 0.2
    assert world.router.sweep(world.now) == [worker]
    assert said_by(supervisor.channel).take() == [Stuck(7)]
    assert world.router.sweep(world.now) == []  # told once
    waiting = world.offer(source)  # gets nothing any more, in spite of its credit
    assert len(world.router.pools["a", "requests"].queue) == 1
    assert world.heard(source) == []
    world.now += module.BURY_TIMEOUT + 0.1
    world.router.sweep(world.now)
    assert worker.channel.closed
    assert said_by(worker.channel).faults == ["takes-nothing"]
    assert world.heard(source) == [Refuse(waiting, 503), Drop(id_)]


def test_a_worker_that_takes_one_by_one_is_not_stuck(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=3)
    for _ in range(3):
        world.offer(source)
    for given in dispatched(worker):
        world.now += module.TAKE_TIMEOUT * 0.9
        world.router.taken(worker, given, world.now)
        assert world.router.sweep(world.now) == []


def test_a_full_queue_is_503(world: World) -> None:
    source = world.listener()
    ids = [world.offer(source) for _ in range(LIMIT + 2)]
    assert world.heard(source) == [Refuse(ids[-2], 503), Refuse(ids[-1], 503)]
    assert world.router.pools["a", "requests"].refusals == {"queue-full": 2}


def test_what_waits_too_long_is_503(world: World) -> None:
    source = world.listener()
    old = world.offer(source)
    world.now += TIMEOUT / 2
    young = world.offer(source)
    world.now += TIMEOUT / 2
    world.router.sweep(world.now)
    assert world.heard(source) == [Refuse(old, 503)]
    worker = world.worker(world.supervisor(), credit=1)
    assert len(dispatched(worker)) == 1
    world.router.taken(worker, only(worker), world.now)
    assert world.heard(source) == [Settled((young,))]


def test_a_queue_is_served_in_order_as_credit_comes(world: World) -> None:
    source = world.listener()
    ids = [world.offer(source) for _ in range(4)]
    worker = world.worker(world.supervisor(), credit=3)
    for given in dispatched(worker):
        world.router.taken(worker, given, world.now)
    assert world.heard(source) == [Settled(tuple(ids[:3]))]
    world.router.credit(worker, 1, world.now)
    world.router.taken(worker, only(worker), world.now)
    assert world.heard(source) == [Settled((ids[3],))]


def test_no_more_than_the_quota_of_handovers_is_open(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    one, other = world.worker(supervisor, 1, credit=4), world.worker(supervisor, 2, credit=4)
    for _ in range(5):
        world.offer(source)
    pool = world.router.pools["a", "requests"]
    assert (pool.handovers, len(pool.queue)) == (HANDOVERS, 2)
    giver = one if one.given else other
    world.router.taken(giver, next(iter(giver.given)), world.now)
    assert (pool.handovers, len(pool.queue)) == (HANDOVERS, 1)


def test_another_vhosts_load_is_not_ones_own(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor("b"), credit=1)
    for _ in range(20):
        world.offer(source, "a.example")
    world.offer(source, "b.example")
    assert len(dispatched(worker)) == 1


def test_metrics_go_to_the_metrics_worker_alone(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    requests, metrics = (
        world.worker(supervisor, 1, credit=1),
        world.worker(supervisor, 0, credit=1, work="metrics"),
    )
    world.offer(source, "a", metrics=True)
    assert (len(dispatched(requests)), len(dispatched(metrics))) == (0, 1)


# ---- a listener that dies, or only loses its channel ----


@pytest.fixture
def client() -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


def offered(world: World, source: Source, client: socket.socket, mark: int = 0) -> int:
    world.ids += 1
    fd = os.dup(client.fileno())
    world.router.route(source, world.ids, CLIENT, "a.example", fd, metrics=False, now=world.now, mark=mark)
    return world.ids


def test_what_a_dead_listener_has_queued_is_served(world: World, client: socket.socket) -> None:
    source = world.listener()
    offered(world, source, client)
    world.router.listener_gone(source)
    worker = world.worker(world.supervisor(), credit=1)
    assert len(dispatched(worker)) == 1
    world.router.taken(worker, only(worker), world.now)
    assert world.heard(source) == []
    assert not world.router._orphaned.open


def test_what_nobody_takes_of_a_dead_listener_is_closed(world: World, client: socket.socket) -> None:
    source = world.listener()
    offered(world, source, client)
    world.router.listener_gone(source)
    world.now += TIMEOUT
    world.router.sweep(world.now)
    assert world.heard(source) == []


def test_a_listener_that_lives_has_what_it_left_in_the_queue_again(
    world: World, client: socket.socket
) -> None:
    source = world.listener()
    offered(world, source, client, mark=6)
    world.router.listener_gone(source)
    worker = world.worker(world.supervisor(), credit=0)
    again = world.listener()
    id_ = offered(world, again, client, mark=7)
    assert world.heard(again) == []
    world.router.credit(worker, 2, world.now)
    assert marks(worker) == [7]
    world.router.taken(worker, only(worker), world.now)
    assert world.heard(again) == [Settled((id_,))]
    assert not world.router._orphaned.open


@pytest.mark.parametrize("when", ["given", "taken"])
def test_what_a_worker_has_been_sent_meanwhile_is_dispatched_anew_for_its_new_mark(
    world: World, client: socket.socket, when: str
) -> None:
    """The worker sees by the mark that its first one counts no longer."""
    source = world.listener()
    offered(world, source, client, mark=6)
    world.router.listener_gone(source)
    supervisor = world.supervisor()
    worker = world.worker(supervisor, credit=1)
    first = only(worker)
    if when == "taken":
        world.router.taken(worker, first, world.now)
    again = world.listener()
    id_ = offered(world, again, client, mark=7)
    other = world.worker(supervisor, 2, credit=1)
    assert marks(other) == [7]
    if when == "given":
        world.router.taken(worker, first, world.now)
    assert world.heard(again) == []  # not Settled, upon which its last copy would be closed
    world.router.taken(other, only(other), world.now)
    assert world.heard(again) == [Settled((id_,))]


def test_an_orphan_whose_worker_has_died_is_nobodys_and_may_be_offered_anew(
    world: World, client: socket.socket
) -> None:
    source, supervisor = world.listener(), world.supervisor()
    offered(world, source, client)
    world.router.listener_gone(source)
    worker = world.worker(supervisor, credit=1)
    only(worker)
    world.router.worker_gone(worker)
    again = world.listener()
    id_ = offered(world, again, client)
    assert world.heard(again) == []  # not Settled, upon which its last copy would be closed
    successor = world.worker(supervisor, 2, credit=1)
    world.router.taken(successor, only(successor), world.now)
    assert world.heard(again) == [Settled((id_,))]


# ---- who gets it ----


def test_the_idlest_worker_is_first_and_equals_take_turns(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    workers = [world.worker(supervisor, number, credit=credit) for number, credit in ((1, 1), (2, 3), (3, 1))]
    order = []
    for _ in range(5):
        world.offer(source)
        for worker in workers:
            for given in dispatched(worker):
                order.append(worker.number)
                world.router.taken(worker, given, world.now)
    assert order[:2] == [2, 2]
    assert Counter(order) == {1: 1, 2: 3, 3: 1}


def test_a_passed_connection_goes_to_a_sibling_and_never_back(world: World) -> None:
    supervisor = world.supervisor()
    one = world.worker(supervisor, 1, credit=4)
    refused = world.pass_on(one)
    assert world.heard(one.source) == [Refuse(refused, 503)]
    sibling = world.worker(supervisor, 2, credit=1)
    passed = world.pass_on(one)
    (given,) = dispatched(sibling)
    world.router.taken(sibling, given, world.now)
    assert world.heard(one.source) == [Settled((passed,))]
    assert world.router.pools["a", "requests"].refusals == {"no-sibling": 1}


def test_a_passed_connection_comes_back_when_the_sibling_dies(world: World) -> None:
    supervisor = world.supervisor()
    one, sibling = world.worker(supervisor, 1), world.worker(supervisor, 2, credit=1)
    passed = world.pass_on(one)
    said_by(sibling.channel).end()
    assert world.heard(one.source) == [Retry(passed)]


def test_a_worker_that_leaves_gets_nothing_more_but_keeps_what_it_has(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=3)
    id_ = world.offer(source)
    world.router.leave(worker)
    world.offer(source)
    (given,) = dispatched(worker)
    world.router.taken(worker, given, world.now)
    assert world.heard(source) == [Settled((id_,))]


def test_a_full_kernel_buffer_costs_a_worker_no_credit(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    worker = world.worker(supervisor, 1, credit=2)
    said_by(worker.channel).full = True
    world.offer(source)
    pool = world.router.pools["a", "requests"]
    assert (len(pool.queue), worker.credit, worker.blocked) == (1, 2, True)
    world.router.sweep(world.now)  # looks again, in vain
    assert len(pool.queue) == 1
    said_by(worker.channel).full = False
    world.router.sweep(world.now)
    assert (len(pool.queue), worker.credit, len(dispatched(worker))) == (0, 1, 1)


def test_room_again_is_told_by_the_channel(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=1)
    said_by(worker.channel).full = True
    world.offer(source)
    said_by(worker.channel).full = False
    world.router.credit(worker, 0, world.now)
    assert len(dispatched(worker)) == 1


def test_a_worker_found_dead_while_dispatching_leaves_the_offer_to_the_next(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    dead, well = world.worker(supervisor, 1, credit=3), world.worker(supervisor, 2, credit=1)
    first = world.offer(source)
    said_by(dead.channel).dead = True
    second = world.offer(source)
    assert len(dispatched(well)) == 1
    assert world.heard(source) == [Retry(first)]
    world.router.taken(well, only(well), world.now)
    assert world.heard(source) == [Settled((second,))]


# ---- demand, and vhosts that are failing ----


def demands(world: World, supervisor: Supervisor) -> list[Message]:
    world.router.flush()
    return [message for message in said_by(supervisor.channel).take() if isinstance(message, Demand)]


def test_demand_is_told_when_it_begins_and_while_it_lasts_and_when_it_ends(world: World) -> None:
    source, supervisor, other = world.listener(), world.supervisor(), world.supervisor("b")
    world.offer(source)
    assert demands(world, supervisor) == [Demand(1, 0)]
    world.offer(source)
    assert demands(world, supervisor) == []  # the next sweep says it
    world.now += 0.25
    world.router.sweep(world.now)
    assert demands(world, supervisor) == [Demand(2, 250)]
    worker = world.worker(supervisor, credit=2)
    world.router.sweep(world.now)
    assert len(dispatched(worker)) == 2
    assert demands(world, supervisor) == [Demand(0, 0)]
    world.router.sweep(world.now)
    assert demands(world, supervisor) == demands(world, other) == []


def test_a_queue_that_comes_and_goes_costs_one_message_a_sweep(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    worker = world.worker(supervisor)
    for _ in range(10):
        world.offer(source)
        world.router.credit(worker, 1, world.now)
        world.router.taken(worker, dispatched(worker)[0], world.now)
        world.router.flush()
    assert len(demands(world, supervisor)) <= 1
    world.router.sweep(world.now)
    assert demands(world, supervisor) == [Demand(0, 0)]


def test_a_supervisor_that_comes_later_hears_of_what_waits(world: World) -> None:
    source = world.listener()
    world.offer(source)
    supervisor = world.supervisor()
    world.now += 1.0
    world.router.sweep(world.now)
    assert demands(world, supervisor) == [Demand(1, 1000)]


def test_scrapes_that_wait_are_no_demand(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    world.offer(source, "a", metrics=True)
    world.router.sweep(world.now)
    assert demands(world, supervisor) == []


def test_who_is_failing_has_no_queue_and_is_waited_for_again_when_it_is_not(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    waiting = world.offer(source)
    world.router.standing(supervisor, failing=True)
    assert world.heard(source) == [Refuse(waiting, 503)]
    at_once = world.offer(source)
    assert world.heard(source) == [Refuse(at_once, 503)]
    neighbour = world.offer(source, "b.example")
    assert world.heard(source) == []
    world.router.standing(supervisor, failing=False)
    kept = world.offer(source)
    assert world.heard(source) == []
    worker = world.worker(supervisor, credit=1)
    world.router.taken(worker, only(worker), world.now)
    assert world.heard(source) == [Settled((kept,))]
    assert neighbour
    assert world.router.pools["a", "requests"].refusals == {"failing": 2}


def test_a_worker_that_still_serves_is_used_though_its_supervisor_is_failing(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    worker = world.worker(supervisor, credit=1)
    world.router.standing(supervisor, failing=True)
    world.offer(source)
    assert len(dispatched(worker)) == 1


# ---- an old supervisor and its successor ----


def open_(world: World, supervisor: Supervisor) -> None:
    world.router.standing(supervisor, failing=False)


def test_from_the_moment_when_a_successor_is_open_only_its_workers_are_given_anything(world: World) -> None:
    source, old = world.listener(), world.supervisor()
    open_(world, old)
    before = world.worker(old, credit=9)
    new = world.supervisor()
    after = world.worker(new, credit=1)
    world.offer(source)
    (given,) = dispatched(before)  # which is idler, and nobody has said anything yet
    world.router.taken(before, given, world.now)
    open_(world, new)
    world.router.credit(before, 1, world.now)
    for _ in range(2):
        world.offer(source)
    (given,) = dispatched(after)
    world.router.taken(after, given, world.now)
    assert dispatched(before) == []  # who has to wait for the new one waits
    world.router.credit(after, 2, world.now)
    (given,) = dispatched(after)
    world.router.taken(after, given, world.now)
    # Idle connections go from the old to the new.
    world.router.pass_on(before, 1, CLIENT, "a.example", os.open("/dev/null", os.O_RDONLY), world.now)
    assert len(dispatched(after)) == 1
    assert dispatched(before) == []


@pytest.mark.parametrize("how", ["leave", "gone"])
def test_if_a_successor_has_nobody_left_it_is_the_old_ones_turn_again(world: World, how: str) -> None:
    source, old, new = world.listener(), world.supervisor(), world.supervisor()
    before, after = world.worker(old, credit=9), world.worker(new, credit=9)
    open_(world, old)
    open_(world, new)
    world.offer(source)
    (given,) = dispatched(after)
    world.router.taken(after, given, world.now)
    world.router.supervisor_gone(new)  # its workers finish
    world.offer(source)
    assert len(dispatched(after)) == 1
    (world.router.leave if how == "leave" else world.router.worker_gone)(after)
    world.offer(source)
    assert len(dispatched(before)) == 1
    late = world.worker(new, credit=1, number=2)  # it has another one after all
    world.offer(source)
    assert (len(dispatched(before)), len(dispatched(late))) == (0, 1)


def test_a_supervisor_without_workers_takes_nothing_from_anybody(world: World) -> None:
    source, old = world.listener(), world.supervisor()
    before = world.worker(old, credit=9)
    for _ in range(2):
        open_(world, world.supervisor())
    world.offer(source)
    assert len(dispatched(before)) == 1
    neighbour = world.supervisor("b")
    other = world.worker(neighbour, credit=1)
    open_(world, neighbour)
    world.offer(source)
    world.offer(source, "b.example")
    assert (len(dispatched(before)), len(dispatched(other))) == (1, 1)


def test_a_vhost_is_failing_only_if_all_its_supervisors_are(world: World) -> None:
    source, old = world.listener(), world.supervisor()
    world.router.standing(old, failing=True)
    new = world.supervisor()
    world.offer(source)
    assert world.heard(source) == []
    said_by(new.channel).end()  # only the failing one is left
    assert [type(message) for message in world.heard(source)] == [Refuse]
    said_by(old.channel).end()  # nobody is: it is away, which may end soon
    world.offer(source)
    assert world.heard(source) == []


# ---- shares ----


def test_all_queues_together_are_bounded_and_the_longest_makes_room() -> None:
    world = World(budget=8, limit=100)  # of which queues get four, besides the one that comes
    source = world.listener()
    many = [world.offer(source, "a.example") for _ in range(4)]
    over = world.offer(source, "a.example")
    assert world.heard(source) == [Refuse(over, 503)]
    few = world.offer(source, "b.example")
    assert world.heard(source) == [Refuse(many[-1], 503)]
    second = world.offer(source, "b.example")
    assert world.heard(source) == [Refuse(second, 503)] or len(world.router.pools["b", "requests"].queue) == 2
    assert world.router.pools["a", "requests"].refusals["over-share"] >= 2
    assert few in source.open
    world.end()


def test_all_queues_together_leave_a_listener_a_part_of_what_it_may_hold() -> None:
    """When it is full the listener waits, whomever its next connection is for: a few idle tenants would suffice."""
    world = World(limit=100)
    source, other = world.listener(room=7), world.listener()
    many = [world.offer(source, "a.example") for _ in range(4)]
    over = world.offer(source, "a.example")
    assert world.heard(source) == [Refuse(over, 503)]
    world.offer(source, "b.example")
    assert world.heard(source) == [Refuse(many[-1], 503)]
    assert len(source.open) == 4
    for _ in range(6):
        world.offer(other, "a.example")  # which has more room
    assert world.heard(other) == []
    late = world.offer(source, "b.example")
    assert world.heard(source) == [Refuse(late, 503)]  # no room is made for it at another listener's cost
    world.end()


def test_what_waits_for_one_listener_costs_another_none_of_its_room() -> None:
    """A hostile tenant keeps clients of a large listener waiting; the small one's aren't refused for that."""
    world = World(limit=100)
    large, small = world.listener(), world.listener(room=16)  # of which slow ones may have ten
    for _ in range(40):
        world.offer(large, "a.example")
    ids = [world.offer(small, "b.example") for _ in range(5)]
    own = [world.offer(small, "a.example") for _ in range(5)]  # the last in a long queue, but it is no matter
    world.now += module.PROMPT
    world.router.sweep(world.now)
    assert world.heard(small) == world.heard(large) == []
    assert sorted(small.open) == sorted(ids + own)
    over = world.offer(
        small, "b.example"
    )  # what its own have waiting does count; the longest queue makes room
    assert world.heard(small) == [Refuse(own[-1], 503)]
    assert over in small.open
    small.room = 8  # configured anew
    world.router.sweep(world.now)
    assert [type(message) for message in world.heard(small)] == [Refuse] * 5
    assert len(small.open) == 5
    assert world.heard(large) == []
    world.end()


def promptly_served(world: World, source: Source, worker: WorkerState) -> None:
    """Let somebody come to the vhost of `worker`, and be taken at once."""
    world.router.credit(worker, 1, world.now)
    world.offer(source)
    world.router.taken(worker, only(worker), world.now)
    world.heard(source)


def test_who_is_prompt_is_refused_nothing_until_it_no_longer_is() -> None:
    world = World(budget=17, limit=100)  # of which queues get sixteen, or those that are slow ten
    source, worker = world.listener(), world.worker(world.supervisor())
    slow = [world.offer(source, "b.example") for _ in range(4)]
    promptly_served(world, source, worker)
    quick = []
    while not world.router.crowded:
        quick.append(world.offer(source))
    assert len(slow) + len(quick) == 14
    assert world.heard(source) == []
    world.now += module.PROMPT / 2
    world.router.sweep(world.now)
    assert world.heard(source) == []
    for number in range(4):  # who has come first has its turn; the queue stays young
        world.router.credit(worker, 1, world.now)
        world.router.taken(worker, only(worker), world.now)
        assert world.heard(source) == [Settled((quick[number],))]
    quick = quick[4:] + [world.offer(source) for _ in range(4)]
    world.now += module.PROMPT / 2
    world.router.sweep(world.now)  # now the first has waited too long
    told = world.heard(source)
    assert [message.id for message in told if isinstance(message, Refuse)] == quick[:5:-1]
    assert len(world.router.pools["a", "requests"].queue) == 6
    assert all(id_ in source.open for id_ in slow)
    over = world.offer(source)
    assert world.heard(source) == [Refuse(over, 503)]
    assert world.router.pools["a", "requests"].refusals == {"over-share": 5}
    world.end()


def test_who_was_waited_for_in_vain_is_not_prompt_because_nobody_waits_now() -> None:
    world = World(budget=8, limit=100)
    source, worker = world.listener(), world.worker(world.supervisor())
    promptly_served(world, source, worker)
    world.offer(source)
    world.now += TIMEOUT
    world.router.sweep(world.now)
    assert not world.router.pools["a", "requests"].queue
    ids = [world.offer(source) for _ in range(5)]
    assert world.heard(source)[1:] == [Refuse(ids[-1], 503)]
    promptly_served(world, world.listener(), worker)  # the oldest; it hasn't waited
    assert world.router.pools["a", "requests"].prompt(world.now)
    world.end()


def test_the_way_is_cleared_by_the_longest_queues_first() -> None:
    world = World(budget=33, limit=100)
    source, supervisor, other = world.listener(), world.supervisor(), world.supervisor("b")
    promptly_served(world, source, world.worker(supervisor))
    world.router.credit(world.worker(other), 1, world.now)
    world.offer(source, "b.example")
    for name, count in (("a.example", 20), ("b.example", 6)):
        for _ in range(count):
            world.offer(source, name)
    world.now += module.PROMPT
    world.router.sweep(world.now)
    assert [len(world.router.pools[name, "requests"].queue) for name in "ab"] == [14, 6]
    world.end()


def test_a_source_that_dies_while_room_is_made_takes_nothing_down() -> None:
    world = World(budget=8, limit=100)
    source, other = world.listener(), world.listener()
    for _ in range(4):
        world.offer(source, "a.example")
    said_by(source.channel).dead = True
    world.offer(source, "b.example")  # a's last is refused, to a listener that isn't there any more
    world.router.flush()
    assert world.budget.used == 0
    world.offer(other, "b.example")
    assert len(world.router.pools["b", "requests"].queue) == 1
    world.end()


# ---- peers that break the rules ----


def test_a_replayed_id_is_a_fault_and_its_descriptor_is_closed(world: World) -> None:
    source = world.listener()
    id_ = world.offer(source)
    with fault("replayed-id"):
        world.offer(source, id_=id_)
    worker = world.worker(world.supervisor())
    worker.source.open[world.ids + 1] = source.open[id_]
    with fault("replayed-id"):
        world.pass_on(worker)
    worker.source.open.clear()


def test_more_open_offers_than_the_window_are_a_fault(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTE_WINDOW", 2)
    source, _ = world.listener(), world.worker(world.supervisor(), credit=1)
    world.offer(source)
    world.offer(source)
    with fault("over-credit"):
        world.offer(source)


def test_a_forged_taken_is_a_fault(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    one, other = world.worker(supervisor, 1, credit=1), world.worker(supervisor, 2)
    world.offer(source)
    (given,) = dispatched(one)
    for worker, id_ in ((other, given), (one, given + 1), (one, 0)):
        with fault("forged-id"):
            world.router.taken(worker, id_, world.now)
    world.router.taken(one, given, world.now)
    with fault("forged-id"):
        world.router.taken(one, given, world.now)


def test_credit_beyond_the_limit_is_a_fault(world: World) -> None:
    worker = world.worker(world.supervisor(), credit=MAX_CREDIT)
    with fault("over-credit"):
        world.router.credit(worker, 1, world.now)


def test_workers_and_supervisors_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WORKERS", 2)
    first = world.supervisor()
    world.worker(first, 1)
    with fault("replayed-id"):
        world.worker(first, 1)
    world.worker(first, 2)
    with fault("too-many"):
        world.worker(first, 3)
    for _ in range(module.MAX_SUPERVISORS - 1):
        world.supervisor()
    with fault("too-many"):
        world.supervisor()
    world.supervisor("b")


# ---- configuration, and leaving ----


def test_a_vhost_that_is_gone_loses_workers_and_queue(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor("b")
    worker = world.worker(supervisor, credit=1)
    given, *queued = [world.offer(source, "b.example") for _ in range(3)]
    world.router.configure(share("a"))
    assert worker.channel.closed
    assert sorted(map(str, world.heard(source))) == sorted(
        map(str, [Retry(given), *(Refuse(id_, 421) for id_ in queued)])
    )
    with fault("no-vhost"):
        world.worker(supervisor, 2)
    id_ = world.offer(source, "b.example")
    assert world.heard(source) == [Refuse(id_, 421)]


def test_a_vhost_that_stays_keeps_its_workers_with_new_quotas(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=1)
    world.router.configure(share("a", limit=1))
    world.offer(source)
    assert len(dispatched(worker)) == 1
    world.offer(source)
    refused = world.offer(source)
    assert world.heard(source) == [Refuse(refused, 503)]


def test_a_queue_whose_listener_is_gone_is_refused_to_nobody(world: World) -> None:
    source = world.listener()
    for _ in range(3):
        world.offer(source, "b.example")
    said_by(source.channel).dead = True
    world.router.configure(share("a"))
    world.router.flush()
    assert world.budget.used == 0


def test_leaving_gives_back_what_is_queued_and_what_still_comes(world: World) -> None:
    source, supervisor = world.listener(), world.supervisor()
    worker = world.worker(supervisor, credit=1)
    given, queued = world.offer(source), world.offer(source)
    world.router.give_back()
    assert world.heard(source) == [Retry(queued)]
    late = world.offer(source)
    world.router.credit(worker, 1, world.now)
    assert world.heard(source) == [Retry(late)]
    passed = world.pass_on(worker)
    assert world.heard(worker.source)[1:] == [Retry(passed)]  # the first is what it was given before
    assert world.router.travelling == 1
    world.router.taken(worker, only(worker), world.now)
    assert world.heard(source) == [Settled((given,))]
    assert world.router.travelling == 0


def test_few_that_are_settled_can_wait(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=2)
    ids = [world.offer(source), world.offer(source)]
    first, second = dispatched(worker)
    world.router.taken(worker, first, world.now)
    assert world.router.flush(hold=True)
    assert said_by(source.channel).take() == []
    world.router.taken(worker, second, world.now)
    assert world.router.flush(hold=True)
    assert not world.router.flush()
    assert said_by(source.channel).take() == [Settled(tuple(ids))]
    assert not world.router.flush(hold=True)


def test_what_is_settled_does_not_wait_with_an_answer(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=1)
    id_ = world.offer(source)
    world.router.taken(worker, dispatched(worker)[0], world.now)
    unknown = world.offer(source, "nobody.example")
    assert not world.router.flush(hold=True)
    assert said_by(source.channel).take() == [Settled((id_,)), Refuse(unknown, 421)]


@pytest.mark.parametrize("room", [1, 16, 31])
def test_a_listener_that_may_have_few_connections_hears_of_each(world: World, room: int) -> None:
    source, worker = world.listener(room), world.worker(world.supervisor(), credit=1)
    id_ = world.offer(source)
    world.router.taken(worker, dispatched(worker)[0], world.now)
    assert not world.router.flush(hold=True)
    assert said_by(source.channel).take() == [Settled((id_,))]


def test_a_worker_hears_at_once_that_a_sibling_has_what_it_passed_on(world: World) -> None:
    supervisor = world.supervisor()
    passes, takes = world.worker(supervisor), world.worker(supervisor, 2, credit=1)
    id_ = world.pass_on(passes)
    world.router.taken(takes, dispatched(takes)[0], world.now)
    assert not world.router.flush(hold=True)
    assert said_by(passes.channel).take() == [Settled((id_,))]


def test_many_settled_do_not_wait() -> None:
    world = World(handovers=200)
    source, worker = world.listener(), world.worker(world.supervisor(), credit=MAX_CREDIT)
    ids = [world.offer(source) for _ in range(MAX_BATCH)]
    for given in dispatched(worker):
        world.router.taken(worker, given, world.now)
    assert not world.router.flush(hold=True)
    assert said_by(source.channel).take() == [Settled(tuple(ids))]
    world.end()


def test_who_is_gone_holds_nothing(world: World) -> None:
    source, worker = world.listener(), world.worker(world.supervisor(), credit=1)
    world.offer(source)
    world.router.taken(worker, dispatched(worker)[0], world.now)
    source.channel.close()
    world.router.source_gone(source)
    assert not world.router.flush(hold=True)


def test_many_settled_travel_in_few_frames() -> None:
    world = World(handovers=200)
    source, supervisor = world.listener(), world.supervisor()
    workers = [world.worker(supervisor, number, credit=MAX_CREDIT) for number in (1, 2)]
    ids = [world.offer(source) for _ in range(100)]
    for worker in workers:
        for given in dispatched(worker):
            world.router.taken(worker, given, world.now)
    first, second = world.heard(source)
    assert isinstance(first, Settled)
    assert isinstance(second, Settled)
    assert len(first.ids) == MAX_BATCH
    assert sorted((*first.ids, *second.ids)) == ids
    world.end()


def test_what_is_told_to_one_that_is_gone_reaches_the_others() -> None:
    world = World()
    supervisor = world.supervisor()
    listener = world.listener()
    giver, sibling = world.worker(supervisor, 1, credit=1), world.worker(supervisor, 2, credit=1)
    waiting = world.offer(listener)
    first = giver if giver.given else sibling
    second = sibling if first is giver else giver
    world.pass_on(first)
    world.router.taken(second, only(second), world.now)
    said_by(first.channel).dead = True  # found out when Settled is told, in the middle of flush()
    assert world.heard(listener) == [Retry(waiting)]
    world.end()


# ---- anything in any order ----


# ---- what a turn gives to a worker ----


@pytest.fixture
def busy() -> Iterator[World]:
    """Where a turn is more than one call."""
    one = World(kind=Router, limit=20, handovers=20)
    yield one
    one.end()


def test_a_turn_gives_all_at_once_and_nobody_has_it_before(busy: World) -> None:
    source, worker = busy.listener(), busy.worker(busy.supervisor(), credit=3)
    ids = [busy.offer(source) for _ in range(4)]
    assert dispatched(worker) == []
    assert (worker.credit, busy.budget.used, len(busy.router.pools["a", "requests"].queue)) == (0, 4, 1)
    with fault("forged-id"):
        busy.router.taken(worker, min(worker.given), busy.now)
    busy.router.flush()
    given = dispatched(worker)
    assert [worker.given[id_].source_id for id_ in given] == ids[:3]
    assert busy.budget.used == 1
    for id_ in given:
        busy.router.taken(worker, id_, busy.now)
    assert busy.heard(source) == [Settled(tuple(ids[:3]))]


def test_what_cannot_be_sent_goes_to_others_in_its_order_or_waits_in_front(busy: World) -> None:
    source, supervisor = busy.listener(), busy.supervisor()
    full, other = busy.worker(supervisor, 1, credit=4), busy.worker(supervisor, 2)
    said_by(full.channel).full = True
    ids = [busy.offer(source) for _ in range(4)]
    busy.router.credit(other, 1, busy.now)
    ids.append(busy.offer(source))  # goes to the other at once
    busy.router.flush()
    assert [other.given[id_].source_id for id_ in dispatched(other)] == ids[4:]
    assert (full.blocked, full.credit, len(full.given)) == (True, 4, 0)
    queue = busy.router.pools["a", "requests"].queue
    assert [offer.source_id for offer in queue] == ids[:4]
    busy.router.credit(other, 2, busy.now)
    busy.router.flush()
    assert [other.given[id_].source_id for id_ in dispatched(other)] == ids[:2]
    said_by(full.channel).full = False
    busy.router.credit(full, 0, busy.now)
    busy.router.flush()
    assert [full.given[id_].source_id for id_ in dispatched(full)] == ids[2:4]


def test_a_pass_that_cannot_be_sent_is_refused_and_its_worker_keeps_it(busy: World) -> None:
    supervisor = busy.supervisor()
    passing, full = busy.worker(supervisor, 1), busy.worker(supervisor, 2, credit=1)
    said_by(full.channel).full = True
    id_ = busy.pass_on(passing)
    assert busy.heard(passing.source) == [Refuse(id_, 503)]
    assert busy.budget.used == 0


@pytest.mark.parametrize("how", ["gone", "buried", "found dead"])
def test_a_worker_that_goes_before_the_turn_ends_has_had_nothing(busy: World, how: str) -> None:
    source, supervisor = busy.listener(), busy.supervisor()
    worker, other = busy.worker(supervisor, 1, credit=2), busy.worker(supervisor, 2)
    ids = [busy.offer(source) for _ in range(2)]
    busy.router.credit(other, 2, busy.now)
    if how == "gone":
        said_by(worker.channel).end()
    elif how == "buried":
        busy.router.buried(supervisor, 1)
    else:
        said_by(worker.channel).dead = True
    assert busy.heard(source) == []
    assert [other.given[id_].source_id for id_ in dispatched(other)] == ids


def test_a_source_that_goes_before_the_turn_ends_leaves_what_was_given(busy: World) -> None:
    source, worker = busy.listener(), busy.worker(busy.supervisor(), credit=2)
    ids = [busy.offer(source) for _ in range(3)]
    busy.router.source_gone(source)
    assert [worker.given[id_].source_id for id_ in dispatched(worker)] == ids[:2]
    assert busy.budget.used == 0


def test_a_vhost_that_is_removed_before_the_turn_ends_refuses_what_was_given(busy: World) -> None:
    source, worker = busy.listener(), busy.worker(busy.supervisor(), credit=1)
    id_ = busy.offer(source)
    busy.router.configure(share("b"))
    assert busy.heard(source) == [Refuse(id_, 421)]
    assert dispatched(worker) == []


def test_who_leaves_gives_back_what_could_not_be_sent(busy: World) -> None:
    source, worker = busy.listener(), busy.worker(busy.supervisor(), credit=1)
    said_by(worker.channel).full = True
    id_ = busy.offer(source)
    busy.router.give_back()
    assert busy.heard(source) == [Retry(id_)]
    assert busy.router.travelling == 0


class Anything(RuleBasedStateMachine):
    """Offers, credits, takes, passes, deaths found at once or late, in any order."""

    listeners = Bundle("listeners")
    supervisors = Bundle("supervisors")
    workers = Bundle("workers")

    #: One call is one turn, or several are.
    kind: type[Router] = OneByOne

    def __init__(self) -> None:
        super().__init__()
        self.world = World(budget=8, kind=self.kind, limit=6, handovers=3)
        self.steps, self.turn = 0, 1
        #: What each source was told about each of its offers, over all time.
        self.ends: dict[Source, Counter[int]] = {}
        self.offered: dict[Source, set[int]] = {}

    # -- who is there

    @initialize(target=supervisors)
    def first_supervisor(self) -> Supervisor:
        return self.world.supervisor("a")

    @rule(target=listeners)
    def new_listener(self) -> Source:
        source = self.world.listener()
        self._watch(source)
        return source

    @rule(target=supervisors, vhost=st.sampled_from("ab"))
    def new_supervisor(self, vhost: str) -> Supervisor:
        if len(self.world.router.supervisors.get(vhost, ())) >= module.MAX_SUPERVISORS:
            with fault("too-many"):
                self.world.supervisor(vhost)
            vhost = "b" if vhost == "a" else "a"
            for one in list(self.world.router.supervisors.get(vhost, ())):
                said_by(one.channel).end()
        return self.world.supervisor(vhost)

    @rule(target=workers, supervisor=supervisors, credit=st.integers(0, 4))
    def new_worker(self, supervisor: Supervisor, credit: int) -> WorkerState:
        worker = self.world.worker(supervisor, max(supervisor.workers, default=0) + 1, credit)
        self._watch(worker.source)
        return worker

    def _watch(self, source: Source) -> None:
        self.ends[source] = Counter()
        self.offered[source] = set()

    # -- what they do

    @rule(source=listeners, name=st.sampled_from(["a.example", "b.example", "x.a.example", "nobody.example"]))
    def offers(self, source: Source, name: str) -> None:
        if not source.channel.closed and not self.world.router.crowded:
            self.offered[source].add(self.world.offer(source, name))

    @rule(worker=workers)
    def passes(self, worker: WorkerState) -> None:
        if not worker.channel.closed:
            self.offered[worker.source].add(self.world.pass_on(worker))

    @rule(worker=workers, data=st.data())
    def takes(self, worker: WorkerState, data: st.DataObject) -> None:
        sent = sorted(id_ for id_, offer in worker.given.items() if offer.fd < 0)
        if sent and not worker.channel.closed:
            self.world.router.taken(worker, data.draw(st.sampled_from(sent)), self.world.now)

    @rule(worker=workers, id_=st.integers(0, 50))
    def forges(self, worker: WorkerState, id_: int) -> None:
        if id_ not in worker.given or worker.given[id_].fd >= 0:
            with fault("forged-id"):
                self.world.router.taken(worker, id_, self.world.now)

    @rule(worker=workers, count=st.integers(0, 3))
    def grants(self, worker: WorkerState, count: int) -> None:
        if not worker.channel.closed and not worker.leaving:
            self.world.router.credit(worker, count, self.world.now)

    @rule(worker=workers)
    def leaves(self, worker: WorkerState) -> None:
        if not worker.channel.closed:
            self.world.router.leave(worker)

    @rule(worker=workers, full=st.booleans())
    def is_full(self, worker: WorkerState, full: bool) -> None:
        said_by(worker.channel).full = full

    # -- how they end

    @rule(source=consumes(listeners), noticed=st.booleans())
    def listener_dies(self, source: Source, noticed: bool) -> None:
        self._die(source.channel, noticed)

    @rule(worker=workers, noticed=st.booleans())
    def worker_dies(self, worker: WorkerState, noticed: bool) -> None:
        self._die(worker.channel, noticed)

    @rule(supervisor=supervisors, failing=st.booleans())
    def standing(self, supervisor: Supervisor, failing: bool) -> None:
        if not supervisor.channel.closed:
            self.world.router.standing(supervisor, failing=failing)

    @rule(supervisor=consumes(supervisors))
    def supervisor_dies(self, supervisor: Supervisor) -> None:
        self._die(supervisor.channel, True)

    def _die(self, channel: module.Peer, noticed: bool) -> None:
        peer = said_by(channel)
        if noticed:
            peer.end()
        else:
            peer.dead = True

    @rule(worker=workers)
    def worker_is_buried(self, worker: WorkerState) -> None:
        self.world.router.buried(worker.supervisor, worker.number)

    # -- and time

    @rule(seconds=st.sampled_from([0.0, 0.25, 4.0, 6.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.router.sweep(self.world.now)
        self._listen()
        slow = [pool for pool in self.world.router.pools.values() if not pool.prompt(self.world.now)]
        assert sum(len(pool.queue) for pool in slow) <= 5
        for pool in self.world.router.pools.values():
            if pool.queue and pool.handovers < pool.peer.handovers:
                for worker in pool.workers:
                    idle = worker.credit and not (worker.leaving or worker.stuck_at or worker.blocked)
                    assert not idle, "an idle worker, and connections that wait for one"

    @rule(both=st.booleans())
    def configuration_changes(self, both: bool) -> None:
        self.world.router.configure(share("a", "b", limit=6, handovers=3 if both else 2))

    # -- what must always hold

    def _listen(self) -> None:
        self.world.router.flush()
        for source, ends in self.ends.items():
            for message in said_by(source.channel).take():
                match message:
                    case Settled(ids):
                        ends.update(ids)
                    case Refuse(id_, _) | Retry(id_) | Drop(id_):
                        ends[id_] += 1

    @invariant()
    def all_is_well_between_turns(self) -> None:
        self.steps += 1
        if self.steps % self.turn == 0:
            self._listen()
            self.every_offer_ends_once()
            self.the_books_are_right()

    def every_offer_ends_once(self) -> None:
        for source, ends in self.ends.items():
            assert max(ends.values(), default=1) == 1
            assert set(ends) <= self.offered[source]
            if not source.channel.closed:
                assert set(source.open) == self.offered[source] - set(ends)

    def the_books_are_right(self) -> None:
        router = self.world.router
        assert not router._assigned
        queued = [offer for pool in router.pools.values() for offer in pool.queue]
        assert router._queued == len(queued)
        assert router._queues == {pool for pool in router.pools.values() if pool.queue}
        assert self.world.budget.used == len(queued) <= 7
        for offer in queued:
            os.fstat(offer.fd)
            assert offer.source_id in offer.source.open
        for pool in router.pools.values():
            assert pool.handovers == sum(len(worker.given) for worker in pool.workers) <= 3
            assert not (pool.failing and pool.queue)
            known = router.supervisors.get(pool.peer.name, ())
            if pool.work == "requests":
                assert pool.failing == (bool(known) and all(one.failing for one in known))
                assert not pool.told or pool in router._demanding
            assert sum(pool.wait_counts) == pool.dispatched >= pool.taken
            for worker in pool.workers:
                assert 0 <= worker.credit <= MAX_CREDIT
                assert not worker.channel.closed
                assert (worker in router._untaken) == bool(worker.given)

    def teardown(self) -> None:
        self.world.end()
        router = self.world.router
        assert not (
            router._untaken
            or router._blocked
            or router._sources
            or router._unsent
            or router.supervisors
            or router._to_tell
            or router._assigned
        )


class SeveralInATurn(Anything):
    """The same, but what is dispatched and said travels only after several of them."""

    kind = Router

    @initialize(turn=st.integers(2, 8))
    def turns(self, turn: int) -> None:
        self.turn = turn


TestAnything = Anything.TestCase
TestSeveralInATurn = SeveralInATurn.TestCase
TestAnything.settings = TestSeveralInATurn.settings = settings(
    max_examples=80,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
