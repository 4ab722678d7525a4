"""umaster on a stage: listeners, supervisors and workers come in through doors, init and master are played."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyttpd import channel as channel_module
from pyttpd import memfd
from pyttpd.channel import Channel
from pyttpd.config.shares import HostMap, ListenerPeer, LogSettings, UmasterShare, VhostPeer
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role
from pyttpd.wire import messages as m
from pyttpd.wire.permits import Kind, Side

from pyttpd_umaster import umaster as module
from pyttpd_umaster.router import ROUTE_WINDOW, Router
from pyttpd_umaster.umaster import Umaster
from support.wired import CLIENT, Recorder, Stage, Visitor, connection, descriptor, pair, stage

SHARE = UmasterShare(
    1,
    (ListenerPeer("http", 10_010, "http", 16384), ListenerPeer("metrics", 10_009, "metrics", 16384)),
    (VhostPeer("a", 20_001, 8, 10.0, 8), VhostPeer("b", 20_002, 8, 10.0, 8)),
    LogSettings(),
    30.0,
)
MAP = HostMap(1, {"a.example": "a", "b.example": "b"}, {}, None)


class Middle:
    """umaster and all who meet it."""

    def __init__(self, on: Stage, *, budget: int = 1000, configured: bool = True) -> None:
        self.on = on
        self.init, self.master = on.play(Directory.INIT), on.play(Directory.MASTER)
        self.listen = on.knock(Directory.ROUTE, "listener", "http")
        self.scrape = on.knock(Directory.ROUTE, "listener", "metrics")
        self.supervise = {name: on.knock(Directory.VHOST, "vhost", name) for name in "ab"}
        self.service = on.service(Role.UMASTER, budget=budget)
        self.umaster = Umaster(self.service)
        on.stack.callback(self._clear)
        on.until(lambda: self.init.channels and self.master.channels)
        if configured:
            self.give("share", SHARE.to_json())
            self.give("map", MAP.to_json())
            on.until(lambda: len(self.master.record.messages) == 2)

    def _clear(self) -> None:
        self.umaster._router.give_back()
        for channel in list(self.umaster._channels):
            channel.close()
        for entrance in (self.umaster._route, self.umaster._vhost):
            for sock, _ in entrance._sources:
                sock.close()

    def give(self, part: str, data: bytes, generation: int = 1) -> None:
        fd = memfd.make(part, data)
        self.master.channel.send(m.Share(generation, part, len(data), memfd.digest_of(data)), fd)
        os.close(fd)

    def listener(self) -> Visitor:
        return self.here(self.listen())

    def supervisor(self, name: str = "a") -> Visitor:
        return self.here(self.supervise[name]())

    def here(self, visitor: Visitor) -> Visitor:
        self.on.until(lambda: visitor.welcomes)
        return visitor

    def worker(self, supervisor: Visitor, number: int = 1, credit: int = 4) -> tuple[Channel, Recorder]:
        ours, theirs = pair()
        before = len(self.umaster._channels)
        supervisor.send(m.Worker(number, "requests"), theirs.fileno())
        theirs.close()
        worker, record = self.on.channel(ours, Kind.WORKER, Side.CONNECTOR)
        worker.send(m.Credit(credit))
        self.on.until(lambda: len(self.umaster._channels) > before)
        return worker, record

    def offer(self, listener: Visitor, id_: int, name: str = "a.example") -> None:
        with connection() as (server, client):
            client.sendall(b"x")
            assert listener.send(m.Route(id_, CLIENT, name), server.fileno())

    def samples(self) -> dict[tuple[str, ...], float]:
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in self.umaster._collect()
            for sample in family.samples
        }


Make = Callable[..., Middle]


@pytest.fixture
def make() -> Iterator[Make]:
    with stage() as on:
        yield lambda **options: Middle(on, **options)


def test_a_connection_travels(make: Make) -> None:
    middle = make()
    listener = middle.listener()
    assert listener.welcomes == [m.Welcome(m.VERSION, ROUTE_WINDOW)]
    worker, given = middle.worker(middle.supervisor())
    middle.offer(listener, 7)
    middle.on.until(lambda: given.messages)
    (dispatch,) = given.messages
    assert isinstance(dispatch, m.Dispatch)
    assert (dispatch.client, dispatch.authority) == (CLIENT, "a.example")
    with socket.socket(fileno=given.fds.pop()) as sock:
        assert sock.recv(10) == b"x"
    worker.send(m.Taken(dispatch.id))
    middle.on.until(lambda: listener.record.messages)
    assert listener.record.messages == [m.Settled((7,))]
    samples = middle.samples()
    assert samples["pyttpd_umaster_dispatched_total", "a"] == samples["pyttpd_umaster_taken_total", "a"] == 1
    assert samples["pyttpd_umaster_workers", "a"] == 1
    assert samples["pyttpd_umaster_credits", "a"] == 3
    assert samples["pyttpd_umaster_queue_wait_seconds_bucket", "a", "+Inf"] == 1
    assert samples["pyttpd_umaster_generation",] == 1


def test_what_this_turn_has_dispatched_goes_before_goodbye(make: Make) -> None:
    middle = make()
    listener = middle.listener()
    _, given = middle.worker(middle.supervisor())
    take = middle.umaster._router.route

    def leave_at_once(*args: Any, **options: Any) -> None:
        take(*args, **options)
        middle.umaster._drain()

    middle.umaster._router.route = leave_at_once  # type: ignore[method-assign]
    middle.offer(listener, 7)
    middle.on.until(lambda: len(given.messages) == 2)
    assert [type(message) for message in given.messages] == [m.Dispatch, m.Goodbye]


def test_a_worker_that_is_cut_off_by_our_goodbye_gives_nobody_anything_to_do(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing and was its vhost's newest: its predecessors' turn would come, who have heard Goodbye."""
    middle = make()
    listener = middle.listener()
    _, before = middle.worker(old := middle.supervisor(), 1)
    old.send(m.Standing("open"))
    middle.offer(listener, 6)  # travels, so we don't leave at once
    middle.on.until(lambda: before.messages)
    new = middle.supervisor()
    ours, theirs = pair()
    new.send(m.Worker(2, "requests"), theirs.fileno())
    theirs.close()
    new.send(m.Standing("open"))
    middle.on.until(lambda: m.Standing("open") in new.record.messages)
    middle.offer(listener, 7)
    middle.on.until(lambda: middle.samples()["pyttpd_umaster_queue_depth", "a"] == 1)
    (deaf,) = (each for each in middle.umaster._channels if each.peer_name == "a/2")
    with ours:
        while not deaf.backlog:
            deaf.send(m.Settled((1,)))
        monkeypatch.setattr(channel_module, "MAX_OUTBOX", deaf.backlog)
        middle.umaster._drain()
        middle.on.until(lambda: len(listener.record.messages) == 2)
        middle.on.until(lambda: len(before.messages) == 2)
    assert deaf.closed
    assert listener.record.messages == [m.Goodbye("leaving"), m.Retry(7)]
    assert before.messages[1:] == [m.Goodbye("leaving")]


def test_nobody_comes_in_before_the_configuration(make: Make) -> None:
    middle = make(configured=False)
    early = middle.listen()
    middle.on.turns(0.05)
    assert not early.welcomes
    assert b"R" not in middle.on.said()
    middle.give("share", SHARE.to_json())
    middle.give("map", MAP.to_json())
    middle.on.until(lambda: early.welcomes)
    assert b"R" in middle.on.said()


@pytest.mark.parametrize(
    "hello",
    [
        m.Hello("listener", "metrics"),
        m.Hello("listener", "nobody"),
        m.Hello("vhost", "a"),
        m.Hello("umaster", "http"),
        m.Hello("operator", "http"),
    ],
)
def test_who_says_to_be_somebody_else_is_not_let_in(make: Make, hello: m.Hello) -> None:
    middle = make()
    middle.listen(hello)
    middle.on.until(lambda: middle.service.faults.counts)
    assert [reason for _, reason in middle.service.faults.counts] == ["not-authorised"]
    assert middle.listener().welcomes


def test_a_version_that_nobody_speaks_is_refused(make: Make) -> None:
    middle = make()
    middle.listen(m.Hello("listener", "http", m.VERSION + 1, m.VERSION + 2))
    middle.on.until(lambda: middle.service.faults.counts)
    assert [reason for _, reason in middle.service.faults.counts] == ["bad-version"]


def test_unknown_names_are_refused(make: Make) -> None:
    middle = make()
    listener, scraper = middle.listener(), middle.here(middle.scrape())
    middle.offer(listener, 1, "nobody.example")
    middle.offer(scraper, 1, "nobody")
    middle.on.until(lambda: listener.record.messages and scraper.record.messages)
    assert listener.record.messages == [m.Refuse(1, 421)]
    assert scraper.record.messages == [m.Refuse(1, 404)]


def test_a_listener_that_breaks_the_rules_is_cut_off_and_others_are_served(make: Make) -> None:
    middle = make()
    bad, good = middle.listener(), middle.here(middle.scrape())
    middle.offer(bad, 1)
    middle.offer(bad, 1)
    middle.on.until(lambda: bad.lost)
    middle.offer(good, 1, "nobody")
    middle.on.until(lambda: good.record.messages)
    assert middle.service.faults.counts == {("listener", "replayed-id"): 1}
    assert not any(pool.queue for pool in middle.umaster._router.pools.values())


def test_a_worker_that_passes_on_and_on_and_reads_no_answer_is_cut_off(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers wait in our memory: with thousands of channels a tenant would take all of it."""
    monkeypatch.setattr(module, "MIN_BEHIND", 4)
    monkeypatch.setattr(module, "MAX_BEHIND", 8)
    middle = make()
    supervisor = middle.supervisor()
    ours, theirs = pair()
    supervisor.send(m.Worker(1, "requests"), theirs.fileno())
    theirs.close()
    with ours, connection() as (server, _):
        ours.setblocking(False)
        passed = 0

        def cut_off() -> bool:
            nonlocal passed
            try:
                while passed < 20_000:
                    socket.send_fds(
                        ours, [m.encode(m.Pass(passed + 1, CLIENT, "a.example"))], [server.fileno()]
                    )
                    passed += 1
            except BlockingIOError:
                return False
            except (BrokenPipeError, ConnectionResetError):
                return True
            raise AssertionError("never cut off")

        middle.on.until(cut_off)
    assert middle.service.faults.counts["worker", "does-not-read"] == 1


def test_a_worker_that_passes_a_pipe_is_cut_off_and_nobody_else(make: Make) -> None:
    middle = make()
    supervisor = middle.supervisor()
    ours, theirs = pair()
    supervisor.send(m.Worker(1, "requests"), theirs.fileno())
    theirs.close()
    _, well = middle.worker(supervisor, 2)
    read, write = os.pipe()
    with ours:
        socket.send_fds(ours, [m.encode(m.Pass(1, CLIENT, "a.example"))], [read])
        middle.on.until(lambda: middle.service.faults.counts)
    os.close(read)
    os.close(write)
    assert middle.service.faults.counts == {("worker", "descriptors"): 1}
    middle.offer(middle.listener(), 1)
    middle.on.until(lambda: well.messages)


def test_a_supervisor_that_announces_no_channel_is_cut_off(make: Make) -> None:
    middle = make()
    supervisor = middle.supervisor()
    with descriptor(m.DescriptorKind.CONNECTION) as fd:
        supervisor.send(m.Worker(1, "requests"), fd)
        middle.on.until(lambda: supervisor.lost)
    assert middle.service.faults.counts == {("vhost", "descriptors"): 1}


def test_a_worker_that_is_announced_twice_costs_its_supervisor_the_channel(make: Make) -> None:
    middle = make()
    supervisor = middle.supervisor()
    _, first = middle.worker(supervisor, 1)
    with descriptor(m.DescriptorKind.CHANNEL) as fd:
        supervisor.send(m.Worker(1, "requests"), fd)
        middle.on.until(lambda: supervisor.lost)
    middle.offer(middle.listener(), 1)
    middle.on.until(lambda: first.messages)  # its workers go on


def test_more_supervisors_than_one_vhost_may_have_are_sent_away(make: Make) -> None:
    middle = make()
    for _ in range(4):
        middle.supervisor()
    fifth = middle.supervise["a"]()
    middle.on.until(lambda: middle.service.faults.counts)
    fifth.link.close()
    assert {reason for _, reason in middle.service.faults.counts} <= {"too-many"}
    assert middle.supervisor("b").welcomes


def test_a_buried_workers_connections_are_to_be_offered_again(make: Make) -> None:
    middle = make()
    listener, supervisor = middle.listener(), middle.supervisor()
    _, given = middle.worker(supervisor, 1)
    middle.offer(listener, 3)
    middle.on.until(lambda: given.messages)
    supervisor.send(m.Gone(1))
    supervisor.send(m.Gone(99))
    middle.on.until(lambda: listener.record.messages)
    assert listener.record.messages == [m.Retry(3)]


def test_a_worker_that_leaves_gets_nothing_more(make: Make) -> None:
    middle = make()
    listener, supervisor = middle.listener(), middle.supervisor()
    worker, given = middle.worker(supervisor, 1)
    worker.send(m.Goodbye("leaving"))
    middle.on.until(lambda: middle.samples()["pyttpd_umaster_credits", "a"] == 0)
    middle.offer(listener, 1)
    middle.on.until(lambda: middle.samples()["pyttpd_umaster_queue_depth", "a"] == 1)
    assert not given.messages


def test_below_the_floor_of_descriptors_sources_wait_unharmed(make: Make) -> None:
    middle = make(budget=4)
    listener = middle.listener()
    for id_ in range(1, 8):
        middle.offer(listener, id_)
    middle.on.turns(0.1)
    assert middle.service.budget.used <= 5
    assert not listener.lost
    assert not middle.service.faults.counts


def test_full_queues_keep_listeners_waiting_and_not_those_who_make_room(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = True
    monkeypatch.setattr(Router, "crowded", property(lambda _: full))
    middle = make()
    listener, supervisor = middle.listener(), middle.supervisor()
    worker, given = middle.worker(supervisor, 1)
    middle.worker(supervisor, 2, credit=1)
    for id_ in (1, 2):
        with connection() as (server, _):
            assert worker.send(m.Pass(id_, CLIENT, "a.example"), server.fileno())
    middle.on.until(lambda: m.Refuse(2, 503) in given.messages)  # the sibling had credit for one
    middle.offer(listener, 1)
    middle.on.until(lambda: given.of(m.Dispatch))
    middle.offer(listener, 2)
    worker.send(m.Taken(given.of(m.Dispatch)[0].id))
    middle.on.until(lambda: listener.record.messages)
    assert listener.record.messages == [m.Settled((1,))]
    assert len(given.of(m.Dispatch)) == 1
    assert middle.samples()["pyttpd_umaster_waits_total",] == 1
    full = False
    middle.offer(listener, 3)
    middle.on.until(lambda: len(given.of(m.Dispatch)) == 3)


@pytest.mark.parametrize(("budget", "room"), [(1000, 8), (5, 4)])
def test_of_a_packet_only_what_finds_no_descriptor_comes_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, budget: int, room: int
) -> None:
    """Where only the queues are full it stays: who went back would be behind those who have come later."""
    monkeypatch.setattr(Router, "crowded", property(lambda _: True))
    monkeypatch.setattr(Router, "_make_room", lambda *_: True)
    middle = make(budget=budget)
    listener = middle.listener()
    channel = listener.link.channel
    assert channel is not None
    with connection() as (server, _):
        routes = [m.Route(id_, CLIENT, "a.example") for id_ in range(1, 9)]
        assert channel.send_all(routes, [server.fileno()] * 8) == 8
        middle.on.until(lambda: middle.samples()["pyttpd_umaster_queue_depth", "a"] == room)
        middle.on.until(lambda: len(listener.record.messages) == 8 - room)
    assert listener.record.messages == [m.Retry(id_) for id_ in range(room + 1, 9)]
    assert middle.samples()["pyttpd_umaster_waits_total",] == 1


def test_a_stuck_worker_is_told_of(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyttpd_umaster import router

    monkeypatch.setattr(router, "TAKE_TIMEOUT", 0.05)
    monkeypatch.setattr(router, "BURY_TIMEOUT", 0.3)
    middle = make()
    listener, supervisor = middle.listener(), middle.supervisor()
    worker, _ = middle.worker(supervisor, 9)
    middle.offer(listener, 1)
    middle.on.until(lambda: supervisor.record.messages)
    assert supervisor.record.messages == [m.Stuck(9)]
    middle.on.until(lambda: listener.record.messages)
    assert listener.record.messages == [m.Drop(1)]
    middle.on.until(lambda: worker.closed)
    assert any("worker takes nothing" in line for line in middle.on.lines)


def test_which_listeners_are_here_is_told(make: Make) -> None:
    """A pod's containers wait for their end by it (pyttpd.prestop)."""
    middle = make()
    assert middle.samples()["pyttpd_umaster_listeners", "http"] == 0
    listener, _ = middle.listener(), middle.here(middle.scrape())
    samples = middle.samples()
    assert samples["pyttpd_umaster_listeners", "http"] == samples["pyttpd_umaster_listeners", "metrics"] == 1
    listener.link.close()
    middle.on.until(lambda: not middle.samples()["pyttpd_umaster_listeners", "http"])
    assert middle.samples()["pyttpd_umaster_listeners", "metrics"] == 1


def test_leaving_says_goodbye_gives_back_and_waits_for_what_travels(make: Make) -> None:
    middle = make()
    listener, supervisor = middle.listener(), middle.supervisor()
    worker, given = middle.worker(supervisor, 1, credit=1)
    middle.offer(listener, 1)
    middle.offer(listener, 2)
    middle.on.until(lambda: given.messages)
    middle.service._leave()
    middle.offer(listener, 3)  # it had not heard yet
    middle.on.until(lambda: len(listener.record.messages) >= 3)
    assert listener.record.messages == [m.Goodbye("leaving"), m.Retry(2), m.Retry(3)]
    assert m.Goodbye("leaving") in supervisor.record.messages
    worker.send(m.Taken(given.of(m.Dispatch)[0].id))
    middle.on.loop.run()  # ends by itself
    assert middle.umaster._router.travelling == 0


def test_who_opens_while_we_leave_is_answered_by_our_successor(make: Make) -> None:
    middle = make()
    listener, supervisor = middle.listener(), middle.supervisor()
    worker, given = middle.worker(supervisor, 1, credit=1)
    middle.offer(listener, 1)
    middle.on.until(lambda: given.messages)
    middle.service._leave()
    middle.on.until(lambda: m.Goodbye("leaving") in supervisor.record.messages)
    supervisor.send(m.Standing("open"))
    worker.send(m.Taken(given.of(m.Dispatch)[0].id))
    middle.on.loop.run()  # ends by itself
    assert m.Standing("open") not in supervisor.record.messages


def test_leaving_does_not_wait_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVE_TIMEOUT", 0.1)
    middle = make()
    listener = middle.listener()
    _, given = middle.worker(middle.supervisor(), 1)
    middle.offer(listener, 1)
    middle.on.until(lambda: given.messages)
    middle.service._leave()
    middle.on.loop.run()


def test_a_socket_to_listen_on_is_not_umasters_to_have(make: Make) -> None:
    middle = make()
    with descriptor(m.DescriptorKind.LISTENER) as fd:
        middle.init.channel.send(m.Socket("listen", "umaster"), fd)
        middle.on.until(lambda: any("not ours to have" in line for line in middle.on.lines))
