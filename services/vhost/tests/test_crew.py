"""The parts of a worker's threads, each by itself: who waits, who leads, whose a connection is."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyttpd import fdpass, tcp
from pyttpd.config.shares import PoolSettings
from pyttpd.log import Log
from pyttpd.wire.messages import MAX_FRAME, VERSION, Dispatch, Taken, decode, encode
from pyttpd.wire.messages import Client as Address

from pyttpd_vhost.audit import Audit, stack, tracebacks
from pyttpd_vhost.crew import Crew, Server
from pyttpd_vhost.http.connection import Connection, State, Want
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.response import Fields
from pyttpd_vhost.kinds.wsgi import WsgiKind
from pyttpd_vhost.parking import Parked, Parking
from pyttpd_vhost.scoreboard import Scoreboard
from pyttpd_vhost.site import Site
from pyttpd_vhost.waits import Processor, Usage, Waits
from pyttpd_vhost.worker import SWEEP_INTERVAL, SWEEP_WITHIN, Worker

from .conftest import HOST, Client, ListLog, make_share


def until(what: Callable[[], bool]) -> None:
    """Wait until `what` is true."""
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


# --- who waits --------------------------------------------------------------------------------------------------------


def test_who_is_ready_at_every_look_has_waited_since_the_first() -> None:
    waits = Waits()
    waits.look({5: "a", 6: "b"}, 10.0)
    assert waits.longer_than(0.1, 10.0) == []
    waits.look({5: "a", 7: "c"}, 10.2)
    assert waits.longer_than(0.1, 10.2) == [5]
    assert len(waits) == 2
    waits.look({5: "the next one", 7: "c"}, 10.4)
    assert waits.longer_than(0.1, 10.4) == [7]
    waits.forget()
    assert len(waits) == 0


@pytest.mark.parametrize(
    ("used", "at_work"),
    [
        (Usage(0.9, 0, 5), True),  # of one second
        (Usage(0.2, 0, 5), False),  # it has waited for something
        (Usage(0.2, 7, 5), True),  # it would have worked more, if others had let it
    ],
)
def test_a_process_is_at_work_if_it_works_or_would(used: Usage, at_work: bool) -> None:
    usages = iter([Usage(0.0, 0, 0), Usage(0.0, 0, 0), used])
    processor = Processor(lambda: next(usages))
    processor.at_work(100.0)
    assert processor.at_work(101.0) is at_work


# --- who leads --------------------------------------------------------------------------------------------------------


@pytest.fixture
def crew() -> Iterator[Crew]:
    made = Crew(Site(make_share(), ListLog()), most=3, idle_after=60.0)
    before = threading.active_count()
    yield made
    made.end()
    until(lambda: threading.active_count() <= before)


def test_one_leads_at_a_time_and_the_main_thread_comes_first(crew: Crew) -> None:
    turns: list[str] = []
    go = threading.Semaphore(0)
    told = threading.Semaphore(0)

    def serve(me: Server) -> None:
        while crew.await_turn(me):
            turns.append(me.name)
            told.release()
            go.acquire()
            crew.hand_over(me)

    assert crew.await_turn(crew.main)
    assert crew.recruit(5, serve) == 2  # three is the most
    until(lambda: crew.idle == 2)
    crew.hand_over(crew.main)
    told.acquire()
    assert crew.busy() == 0
    assert not crew.main_waits
    waiter = threading.Thread(target=lambda: turns.append(f"main {crew.await_turn(crew.main)}"))
    waiter.start()
    until(lambda: crew.main_waits)
    crew.depose()  # the one that leads is stuck: the main thread, though another one has waited longer
    waiter.join()
    assert turns[1:] == ["main True"]
    go.release()  # it is back, and hands over nothing that it hasn't
    until(lambda: crew.idle == 2)
    assert crew.leader is crew.main
    go.release(10)


def test_when_the_system_has_no_thread_to_give_the_crew_goes_on(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuses)
    assert crew.recruit(2, lambda _: None) == 0
    assert crew.servers == [crew.main]
    monkeypatch.undo()
    assert crew.recruit(1, lambda _: None) == 1
    assert len(crew.sites) == 2  # the site that was made for nobody is the next one's
    assert threading.stack_size() == 0


def test_a_connection_is_in_somebodys_hand_wherever_it_is(crew: Crew) -> None:
    """A worker that leaves ends when nothing is: what it had then would be lost."""
    one, stuck = object(), object()
    other = Server("other", crew.main.site)
    crew.servers.append(other)

    def in_hand(open_: Callable[[], bool] = lambda: False) -> bool:
        return crew.in_hand(open_, but=crew.main)

    def passes_through() -> bool:
        """It is taken, and put back where we have already looked."""
        other.take()
        other.taking = False
        return False

    assert not in_hand()
    assert in_hand(lambda: True)
    other.take()
    assert in_hand()  # it may have one that nobody sees
    assert not crew.in_hand(lambda: False, but=other)
    other.one = one  # type: ignore[assignment]
    assert in_hand()
    other.taking = False
    assert in_hand()
    other.one = None
    assert in_hand(passes_through)
    assert not in_hand()
    other.one = other.condemned = stuck  # type: ignore[assignment]
    other.taking = True  # the only thread, stuck
    assert not in_hand()


def test_an_ended_crew_takes_nobody(crew: Crew) -> None:
    crew.end()
    assert not crew.await_turn(crew.main)
    assert crew.recruit(1, lambda _: None) == 0


# --- whose a connection is --------------------------------------------------------------------------------------------


@pytest.fixture
def place() -> Iterator[tuple[Parking, Parked, socket.socket, select.epoll]]:
    """A connection that somebody is serving, its client, and the epoll it is in."""
    client, sock = socket.socketpair()
    sock.setblocking(False)
    epoll = select.epoll()
    parking = Parking(epoll)
    connection = Connection(sock, ("127.0.0.1", 1), HOST, Site(make_share(), ListLog()))
    one = Parked(connection, Address("127.0.0.1", 1), HOST, sock.fileno())
    parking.settle(one, Want.READ)
    del parking.parked[one.fd]
    yield parking, one, client, epoll
    client.close()
    connection.sock.close()
    epoll.close()


Place = tuple[Parking, Parked, socket.socket, select.epoll]


def test_what_is_served_can_be_ignored_and_is_back_when_it_is_settled(place: Place) -> None:
    parking, one, client, epoll = place
    client.send(b"!")
    assert epoll.poll(0)
    parking.ignore(one.fd + 1000, [one, None])
    assert epoll.poll(0)
    parking.ignore(one.fd, [None, one])
    assert not epoll.poll(0)
    parking.ignore(one.fd, [one])  # by somebody else, meanwhile
    parking.settle(one, Want.READ)
    assert epoll.poll(0)
    parking.ignore(one.fd, [one])  # too late: it is served no longer
    assert epoll.poll(0)


def test_what_is_taken_away_reaches_nobody_and_frees_no_number(place: Place) -> None:
    parking, one, client, epoll = place
    ours, dead = socket.socketpair()
    with ours, dead:
        dead.shutdown(socket.SHUT_RDWR)
        kept = parking.take_away(one, dead)
    assert kept is not None
    assert os.fstat(one.fd)
    with pytest.raises(BrokenPipeError):
        one.connection.sock.send(b"from the one that is stuck")
    assert one.connection.sock.recv(10) == b""
    client.send(b"x")
    assert not epoll.poll(0)
    assert kept.recv(10) == b"x"
    kept.send(b"from the audit")
    kept.close()
    assert client.recv(100) == b"from the audit"
    assert client.recv(100) == b""
    parking.settle(one, Want.READ)  # it comes back: an event, for a connection that is at its end
    assert epoll.poll(0)
    parking.parked.pop(one.fd)
    parking.settle(one, one.connection.on_readable())
    assert one.connection.sock.fileno() == -1


def test_what_is_settled_or_closed_is_not_taken_away(place: Place) -> None:
    parking, one, client, _ = place
    with client.dup() as dead:
        parking.settle(one, Want.READ)
        assert parking.take_away(one, dead) is None
        del parking.parked[one.fd]
        parking.settle(one, Want.CLOSED)
        assert parking.take_away(one, dead) is None


def test_who_comes_late_takes_nobody_else(place: Place) -> None:
    """Its number may be another connection's by now: that stays where it is, or nobody would ever serve it."""
    parking, one, _, _ = place
    assert not parking.take(one)
    client, other = socket.socketpair()
    with client, other:
        connection = Connection(other, ("127.0.0.1", 2), HOST, Site(make_share(), ListLog()))
        now = Parked(connection, Address("127.0.0.1", 2), HOST, one.fd)
        parking.parked[one.fd] = now
        assert not parking.take(one)
        assert parking.parked == {one.fd: now}
        assert parking.take(now)
        assert parking.parked == {}
        parking.parked[one.fd] = now
        client.send(b"GET / HT")
        now.connection.on_readable()
        assert not parking.take(now, unread=True)  # somebody has begun to read it
        assert parking.parked.pop(one.fd) is now


class Offered:
    """A connection that somebody offers."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.mark = tcp.mark(sock)


def test_what_comes_after_the_end_is_closed_unclaimed() -> None:
    """Umaster, or whoever offered it, gives it to somebody else then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = Worker(Site(make_share(), ListLog()), theirs, Scoreboard(1), 0, 1, Log("vhost", "test"))
    with (
        ours,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()),
        server.accept()[0] as sock,
    ):
        one = Offered(sock)
        worker.stop()
        given = os.dup(sock.fileno())
        worker._from_umaster(worker._control, Dispatch(1, Address("127.0.0.1", 1), HOST), given)
        assert tcp.recall(one) is tcp.Whose.OURS
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(given)
    assert not worker._has_connections()
    worker._control.close()
    worker.close()


def test_one_connection_that_two_workers_are_given_is_taken_by_one_of_them() -> None:
    """Umaster lives, and the listener that lost its channel has offered the connection again."""
    with (
        contextlib.ExitStack() as stack,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
        server.accept()[0] as sock,
    ):
        client.sendall(b"GET / HTTP/1.1\r\n")
        one = Offered(sock)
        workers = []
        for number in (1, 2):
            offer = Dispatch(7, Address("127.0.0.1", 1), HOST, one.mark)
            if number == 1:
                assert tcp.recall(one) is tcp.Whose.OURS
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            umaster, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for each in (ours, umaster):
                stack.enter_context(each)
            worker = Worker(
                Site(make_share(), ListLog()), theirs, Scoreboard(2), 0, number, Log("vhost", "test")
            )
            stack.callback(worker.close)
            stack.callback(worker._control.close)
            worker._running = True
            worker._attach(its.detach(), VERSION)
            assert worker._channel is not None
            stack.callback(worker._channel.close)
            umaster.recv(MAX_FRAME)  # its credit
            fdpass.send_fd(umaster, encode(offer, VERSION), sock.fileno())
            workers.append((worker, umaster))
        for worker, umaster in workers:
            assert worker._channel is not None
            worker._channel.receive(1)
            assert decode(umaster.recv(MAX_FRAME), VERSION) == Taken(7)  # so that no offer of it stays open
        assert [len(worker._fresh) for worker, _ in workers] == [0, 1]
        assert not workers[0][0]._has_connections()
        workers[1][0]._fresh.pop().connection.sock.close()


@pytest.mark.parametrize("hears", [True, False])
def test_what_it_cannot_say_taken_of_a_worker_closes_unread_and_unclaimed(hears: bool) -> None:
    """umaster has died with the packet on its way: whoever has a copy offers these connections again."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    umaster, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = Worker(Site(make_share(), ListLog()), theirs, Scoreboard(1), 0, 1, Log("vhost", "test"))
    worker._running = True
    worker._attach(its.detach(), VERSION)
    channel = worker._channel
    assert channel is not None
    with (
        ours,
        umaster,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        socket.create_connection(server.getsockname()) as two,
        server.accept()[0] as first,
        server.accept()[0] as second,
    ):
        umaster.recv(MAX_FRAME)  # its credit; unread, it would end the channel before the packet is seen
        copies = (first, second)
        offered = [Offered(each) for each in copies]
        for client in (one, two):
            client.sendall(b"GET / HTTP/1.1\r\n")
        frames = [encode(Dispatch(id_, Address("127.0.0.1", 1), HOST), VERSION) for id_ in (7, 8)]
        fdpass.send_fds(umaster, b"".join(frames), [each.fileno() for each in copies])
        if not hears:
            umaster.close()
        channel.receive(1)
        assert [tcp.consumed(each) for each in copies] == [0, 0]
        whose = tcp.Whose.CLAIMED if hears else tcp.Whose.OURS
        assert [tcp.recall(each) for each in offered] == [whose] * 2
        if hears:
            said = umaster.recv(4 * MAX_FRAME)
            half = len(said) // 2
            assert [decode(said[:half], VERSION), decode(said[half:], VERSION)] == [Taken(7), Taken(8)]
            assert len(worker._fresh) == 2
        else:
            assert not worker._has_connections()
        while worker._fresh:
            worker._fresh.pop().connection.sock.close()
    channel.close()
    worker._control.close()
    worker.close()


def test_a_sweep_that_takes_a_while_loses_nobody() -> None:
    """While it serves a request that came at the last moment, another connection goes to a sibling, and a new one comes
    that gets its number: nothing happens to that.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    site, log = Site(make_share(), ListLog()), Log("vhost", "test")
    worker = Worker(site, theirs, Scoreboard(1), 0, 1, log)
    ends: list[socket.socket] = []

    def park(in_place_of: Parked | None = None) -> Parked:
        client, sock = socket.socketpair()
        if in_place_of is not None:
            assert worker._parking.take(in_place_of)
            in_place_of.connection.detach().close()
            with sock:
                sock = socket.socket(fileno=os.dup2(sock.fileno(), in_place_of.fd))
        sock.setblocking(False)
        ends.append(client)
        one = Parked(
            Connection(sock, ("127.0.0.1", 1), HOST, site), Address("127.0.0.1", 1), HOST, sock.fileno()
        )
        worker._parking.settle(one, Want.READ)
        return one

    class Kind:
        def handle(self, _: Request, exchange: Exchange) -> None:
            new.append(park(second))
            exchange.respond("204 No Content", 204, Fields([]), b"")

    site.kind = Kind()
    first, second = park(), park()
    new: list[Parked] = []
    ends[0].send(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    worker.now = time.monotonic() + 1000
    worker._sweep(worker._crew.main)
    assert worker._parked == {first.fd: first, new[0].fd: new[0]}
    worker._control.close()
    worker.close()
    for end in (*ends, ours, *(one.connection.sock for one in (first, *new))):
        end.close()


def test_a_sweep_lets_those_go_first_who_want_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """But all are looked at in the end, however many come in between."""
    monkeypatch.setattr("pyttpd_vhost.worker.SWEEP_PART", 2)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    site, log = Site(make_share(), ListLog()), Log("vhost", "test")
    worker = Worker(site, theirs, Scoreboard(1), 0, 1, log)
    me = worker._crew.main
    ends: list[socket.socket] = []
    for _ in range(7):
        client, sock = socket.socketpair()
        sock.setblocking(False)
        ends += client, sock
        connection = Connection(sock, ("127.0.0.1", 1), HOST, site)
        worker._parking.settle(Parked(connection, Address("127.0.0.1", 1), HOST, sock.fileno()), Want.READ)
    (first, *_) = worker._parked.values()
    ends[0].send(b"GET ")  # it is ready to be read, all the time
    began = worker.now = time.monotonic()
    parts = []
    while not worker._sweep_at:
        worker._sweep(me)
        parts.append(len(worker._unswept))
    assert parts == [5, 3, 1, 0]

    for worker.now in (began + 1000, began + 1000 + SWEEP_WITHIN):
        worker._sweep(me)
    assert not worker._unswept
    others = [one.connection.state for one in worker._parked.values() if one is not first]
    assert others == [State.IDLE] * 6  # they were waited for in their heads before
    assert first.connection.state is State.LINGER
    assert worker._sweep_at == worker.now + SWEEP_INTERVAL
    worker._control.close()
    worker.close()
    for end in (*ends, ours):
        end.close()


# --- the end of a request ---------------------------------------------------------------------------------------------


@pytest.fixture
def stuck() -> Iterator[tuple[Audit, Server, socket.socket, threading.Event, ListLog]]:
    """A thread that is stuck in a request, its audit, its client, and what lets it go on."""
    log = ListLog()
    site = Site(make_share(pool=PoolSettings(slow_request=5.0, request_timeout=10.0)), log)
    inside, go_on = threading.Event(), threading.Event()

    def application(environ: Any, start_response: Any) -> list[bytes]:
        inside.set()
        go_on.wait()
        start_response("200 OK", [])
        return [b"late"]

    site.kind = WsgiKind(application, site)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=10)
        sock = listener.accept()[0]
    sock.setblocking(False)
    client.sendall(f"GET /a HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    select.select([sock], [], [])
    epoll = select.epoll()
    parking = Parking(epoll)
    server = Server("serving-1", site)
    server.one = one = Parked(
        Connection(sock, ("127.0.0.1", 1), HOST, site), Address("127.0.0.1", 1), HOST, sock.fileno()
    )

    def serve() -> None:
        server.ident = threading.get_ident()
        parking.settle(one, one.connection.on_readable())

    thread = threading.Thread(target=serve)
    thread.start()
    inside.wait()
    yield Audit(site, log, parking), server, client, go_on, log
    go_on.set()
    thread.join()
    parking.parked.pop(one.fd, None)
    client.close()
    one.connection.sock.close()
    epoll.close()


Stuck = tuple[Audit, Server, socket.socket, threading.Event, ListLog]


def test_a_request_grows_old_from_the_first_look_on(stuck: Stuck) -> None:
    audit, server, client, _, log = stuck
    assert audit.look(100.0, [server]) == []
    assert audit.look(104.9, [server]) == []
    assert audit.slow == 0
    assert audit.look(105.0, [server]) == audit.look(109.9, [server]) == []
    assert (audit.slow, log.events()) == (1, ["slow request"])
    assert audit.look(110.0, [server]) == [server]
    assert audit.condemn(server, 110.0)
    assert Client(client).answer().status == 504
    assert audit.look(1000.0, [server]) == []  # it is not condemned twice
    assert not audit.lingering  # and its client has had its time to close
    assert (audit.timed_out, audit.answered) == (1, 1)


def test_who_lingers_is_not_a_forked_child_s(stuck: Stuck) -> None:
    audit, server, _, _, _ = stuck
    audit.look(100.0, [server])
    before = len(os.listdir("/proc/self/fd"))
    assert audit.condemn(server, 110.0)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    audit.fork()
    assert not audit.lingering
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_client_that_has_left_is_answered_no_more_but_its_thread_is_condemned(stuck: Stuck) -> None:
    audit, server, client, _, _ = stuck
    audit.look(100.0, [server])
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert server.one is not None
    select.select([server.one.fd], [], [])
    assert audit.condemn(server, 110.0)
    assert (audit.timed_out, audit.answered, audit.lingering) == (1, 0, False)


def test_without_a_free_descriptor_the_connection_ends_without_an_answer(stuck: Stuck) -> None:
    audit, server, client, _, _ = stuck
    audit.look(100.0, [server])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        assert audit.condemn(server, 110.0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert client.recv(100) == b""
    assert (audit.timed_out, audit.answered) == (1, 0)


def test_who_has_finished_meanwhile_is_not_condemned(stuck: Stuck) -> None:
    audit, server, client, go_on, _ = stuck
    assert audit.look(100.0, [server]) == []
    go_on.set()
    assert Client(client).answer().status == 200
    assert server.one is not None
    one = server.one
    until(lambda: one.want is not None)
    assert not audit.condemn(server, 110.0)
    server.one = None
    assert not audit.condemn(server, 110.0)
    assert audit.look(200.0, [server]) == []
    assert audit.timed_out == 0


# --- what they are doing ----------------------------------------------------------------------------------------------


def test_a_stack_shows_the_innermost_frames() -> None:
    def deep(depth: int) -> list[str]:
        import sys

        return deep(depth - 1) if depth else stack(sys._getframe(), 5)

    lines = deep(20)
    assert len(lines) == 6
    assert lines[0] == "  ..."
    assert "in test_a_stack_shows_the_innermost_frames.<locals>.deep" in lines[-1]


def test_a_stack_begins_with_the_application_s_frames(stuck: Stuck) -> None:
    _, server, *_ = stuck
    *_, first, wait, condition = tracebacks(server.ident)
    assert first.endswith("in stuck.<locals>.application")
    assert wait.endswith("in Event.wait")
    assert condition.endswith("in Condition.wait")
    lines = list(tracebacks(server.ident))
    assert lines[lines.index(first) - 1].endswith("which is slow:")


def test_tracebacks_name_the_threads_and_end_with_the_slow_one() -> None:
    done = threading.Event()
    begun: list[int] = []

    def wait() -> None:
        begun.append(1)
        done.wait()

    threads = [threading.Thread(target=wait, name=f"t{number}") for number in range(15)]
    for thread in threads:
        thread.start()
    until(lambda: len(begun) == len(threads))
    ident = threads[3].ident
    assert ident is not None
    lines = list(tracebacks(ident))
    done.set()
    for thread in threads:
        thread.join()
    last = max(index for index, line in enumerate(lines) if line.startswith("Thread "))
    assert lines[last] == "Thread t3, which is slow:"
    assert sum(line.startswith("Thread ") for line in lines) == 11
    assert any(line.endswith("more threads)") for line in lines)
    assert list(tracebacks(0))[-1] == "  (it has ended)"
