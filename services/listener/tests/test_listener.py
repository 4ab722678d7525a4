"""The listener with real clients and a played umaster: what it hands on, what it answers itself, what it never does."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from dataclasses import replace
from email.utils import parsedate_to_datetime

import pytest

from pyttpd import head, memfd, tcp
from pyttpd.keeper import NOBODY_FOLLOWS, RELIEVED
from pyttpd.wire import messages as m

from pyttpd_listener import listener as module
from pyttpd_listener.answers import answer
from support.front import DATE, HEAD, SHARE, Make, make, undated

__all__ = ["make"]


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# ---- handing on ----


def test_a_head_is_offered_unread_with_name_and_address(make: Make) -> None:
    front = make()
    client = front.connect(HEAD)
    route = front.offered()
    assert (route.authority, route.client.host) == ("a.example", "127.0.0.1")
    assert route.client.port == client.getsockname()[1]
    with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
        front.tell(m.Settled((route.id,)))
        front.on.until(lambda: not front.open)
        worker.setblocking(True)
        assert worker.recv(65_536) == HEAD
        worker.sendall(b"hello")
        assert client.recv(100) == b"hello"
        worker.shutdown(socket.SHUT_RDWR)
    assert client.recv(100) == b""
    assert front.service.budget.used == 0
    assert (front.listener.accepted, front.listener.routed, front.listener.settled) == (1, 1, 1)


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"GET http://B.example:80/x HTTP/1.1\r\nHost: a.example\r\n\r\n", "b.example"),
        (b"GET / HTTP/1.0\r\n\r\n", ""),
        (b"GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n", "[2001:db8::1]"),
        (b"POST / HTTP/1.1\r\nhost:\tA.Example.\r\nContent-Length: 5\r\n\r\nhello", "a.example"),
    ],
)
def test_the_name_is_the_heads(make: Make, head: bytes, name: str) -> None:
    front = make()
    front.connect(head)
    assert front.offered().authority == name


def test_byte_by_byte(make: Make) -> None:
    front = make()
    client = front.connect()
    for position in range(len(HEAD)):
        assert not front.umaster.record.messages
        client.sendall(HEAD[position : position + 1])
        front.on.turns(0.002)
    assert front.offered().authority == "a.example"


@pytest.mark.parametrize("cut", [1, 16, 20, len(HEAD) - 2, len(HEAD) - 1])
def test_in_two_segments(make: Make, cut: int) -> None:
    front = make()
    client = front.connect(HEAD[:cut])
    front.on.until(lambda: len(front.listener._peeking) == 1)
    assert not front.umaster.record.messages
    client.sendall(HEAD[cut:])
    assert front.offered().authority == "a.example"


def test_a_long_head_in_many_pieces_is_not_scanned_anew_with_each(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scanning costs by length: a client that adds byte after byte to a long head would take all our time."""
    scanned: list[int] = []
    scan = head.scan

    def count(data: bytes, limit: int, bounds: head.Bounds) -> object:
        scanned.append(len(data))
        return scan(data, limit, bounds)

    monkeypatch.setattr(head, "scan", count)
    front = make()
    client = front.connect(HEAD[:-2] + b"x: " + b"x" * 2000)
    front.on.until(lambda: scanned)
    for _ in range(100):
        client.sendall(b"x")
        front.on.turns(0.002)
    assert len(scanned) == 1
    for byte in b"\r\n\r\n":
        client.sendall(bytes((byte,)))
        front.on.turns(0.002)
    assert front.offered().authority == "a.example"
    assert len(scanned) == 2


def test_a_long_head_that_is_none_is_refused_before_it_ends(make: Make) -> None:
    front = make()
    client = front.connect(HEAD[:-2] + b"x: " + b"x" * 1200)
    front.on.until(lambda: len(front.listener._peeking) == 1)
    client.sendall(b"\0" * 1300)
    assert front.answer_to(client).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_half_closes_after_its_head_is_handed_on(make: Make) -> None:
    front = make()
    client = front.connect(HEAD)
    client.shutdown(socket.SHUT_WR)
    front.offered()


def test_many_at_once_all_arrive(make: Make) -> None:
    front = make()
    for _ in range(150):
        front.connect(HEAD)
    front.on.until(lambda: front.listener.accepted == 150)
    front.offered(64)  # the window
    front.tell(m.Settled(tuple(route.id for route in front.offers[:64])))
    front.offered(128)
    front.tell(m.Settled(tuple(route.id for route in front.offers[64:128])))
    front.offered(150)
    assert len({route.id for route in front.offers}) == 150
    front.tell(m.Settled(tuple(route.id for route in front.offers[128:])))
    front.on.until(lambda: not front.open)
    assert front.service.budget.used == 0


# ---- clients that leave, or say nothing ----


def test_half_a_head_and_a_half_close_is_the_end(make: Make) -> None:
    front = make()
    client = front.connect(HEAD[:10])
    front.on.until(lambda: len(front.listener._peeking))
    client.shutdown(socket.SHUT_WR)
    assert front.answer_to(client) == b""
    assert front.service.budget.used == 0


def test_a_client_that_connects_and_leaves(make: Make) -> None:
    front = make()
    front.connect().close()
    front.on.until(lambda: front.listener.accepted == 1 and not front.open)
    assert front.service.budget.used == 0


@pytest.mark.parametrize("sent", [b"", HEAD[:10]])
def test_a_reset_is_the_end(make: Make, sent: bytes) -> None:
    front = make()
    client = front.connect(sent)
    front.on.until(lambda: len(front.listener._peeking))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    front.on.until(lambda: not front.open)
    assert front.service.budget.used == 0


def test_too_slow_with_its_head_is_408(make: Make) -> None:
    front = make(head_timeout=0.1)
    got = front.answer_to(client := front.connect(HEAD[:-2]))
    assert status(got) == 408
    client.close()
    front.on.until(lambda: not front.open)


def test_too_slow_to_say_anything_gets_no_answer(make: Make) -> None:
    front = make(head_timeout=0.1)
    assert front.answer_to(front.connect()) == b""


# ---- answers of its own ----


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\nX: " + b"x" * 5000 + b"\r\n\r\n", 431),
    ],
)
def test_what_can_not_be_named_is_answered_and_closed(make: Make, head: bytes, expected: int) -> None:
    front = make()
    client = front.connect(head)
    got = front.answer_to(client)
    assert status(got) == expected
    assert got == undated(expected)
    assert not front.umaster.record.messages
    assert front.listener.answers == {expected: 1}
    client.close()
    front.on.until(lambda: not front.open)
    assert front.service.budget.used == 0


@pytest.mark.parametrize("refused", [421, 503, 404])
def test_a_refusal_is_answered(make: Make, refused: int) -> None:
    front = make()
    client = front.connect(HEAD)
    front.tell(m.Refuse(front.offered().id, refused))
    got = front.answer_to(client)
    assert got == undated(refused)
    assert (b"Retry-After:" in got) is (refused == 503)


def test_a_head_request_gets_no_body(make: Make) -> None:
    front = make()
    client = front.connect(b"HEAD" + HEAD[3:])
    front.tell(m.Refuse(front.offered().id, 421))
    got = front.answer_to(client)
    assert got.endswith(b"\r\n\r\n")
    assert re.search(rb"\r\nContent-Length: [1-9]", got)


@pytest.mark.parametrize("head", [b"HEAD / HTTP/1.1\r\n\r\n", b"\r\nHEAD / HTTP/1.1\r\nHost: a b\r\n\r\n"])
def test_a_malformed_head_request_gets_no_body_either(make: Make, head: bytes) -> None:
    front = make()
    assert front.answer_to(front.connect(head)) == undated(400, head_only=True)


def test_the_answer_arrives_though_the_client_still_sends(make: Make) -> None:
    front = make()
    client = front.connect(
        b"POST / HTTP/1.1\r\nHost: nobody\r\nContent-Length: 11030000\r\n\r\n" + b"x" * 30_000
    )
    front.tell(m.Refuse(front.offered().id, 421))
    client.setblocking(False)
    left = 11_000_000  # an upload of body_limit, at least

    def sent() -> bool:
        nonlocal left
        try:
            left -= client.send(b"x" * min(left, 500_000))
        except BlockingIOError:
            pass
        return not left

    front.on.until(sent)
    assert front.answer_to(client) == undated(421)
    assert front.open == 1  # still waits for our end
    client.close()
    front.on.until(lambda: not front.open)


def test_lingering_has_an_end_in_time(make: Make) -> None:
    front = make(linger_timeout=0.1)
    client = front.connect(b"nonsense\r\n\r\n")
    assert status(front.answer_to(client)) == 400
    front.on.until(lambda: not front.open)
    assert front.service.budget.used == 0


def test_lingering_has_an_end_in_bytes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINGER_BYTES", 1000)
    front = make()
    front.connect(b"nonsense\r\n\r\n" + b"x" * 5000)
    front.on.until(lambda: front.listener.accepted and not front.open)


def test_an_answer_that_nobody_is_there_for_costs_nothing(make: Make) -> None:
    front = make()
    client = front.connect(HEAD)
    route = front.offered()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    front.tell(m.Refuse(route.id, 503))
    front.on.until(lambda: not front.open)
    assert front.service.budget.used == 0


def test_statuses_that_it_has_no_words_for_are_503() -> None:
    assert undated(599) == undated(503)
    assert undated(599, head_only=True) == undated(503, head_only=True)


def test_every_answer_has_a_date() -> None:
    """RFC 9110 section 6.6.1."""
    match = DATE.search(answer(400))
    assert match is not None
    assert abs(parsedate_to_datetime(match[1].decode()).timestamp() - time.time()) < 60
    assert DATE.search(answer(400, head_only=True))


# ---- umaster is away, or loses something ----


def test_without_umaster_clients_wait_and_then_get_503(make: Make) -> None:
    front = make(umaster=False, handover_timeout=0.2)
    assert status(front.answer_to(front.connect(HEAD))) == 503
    assert front.listener._waiting_age.age(front.on.loop.now) == 0.0
    assert not front.listener._waiting


def test_who_waited_for_umaster_is_offered_when_it_comes(make: Make) -> None:
    front = make(umaster=False)
    front.connect(HEAD)
    front.connect(HEAD)
    front.on.until(lambda: len(front.listener._waiting) == 2)
    front.umaster.entrance.open()
    front.offered(2)
    assert not front.listener._waiting


def test_what_is_not_settled_is_offered_again_when_umaster_dies(make: Make) -> None:
    front = make()
    front.connect(HEAD)
    front.offered()
    front.umaster_dies()
    front.on.until(lambda: len(front.umaster.channels) == 2)
    front.offered()
    assert front.listener.reoffered == 1
    assert b"N" in front.on.said()


def test_what_somebody_has_read_from_is_not_offered_again(make: Make) -> None:
    """Whoever it is: a tenant's process may read what no worker has claimed."""
    front = make()
    client = front.connect(HEAD)
    front.offered()
    with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
        assert worker.recv(10)
    front.umaster_dies()
    front.on.until(lambda: not front.open)
    assert (front.listener.dropped, front.listener.reoffered) == (1, 0)
    with contextlib.suppress(ConnectionResetError):  # the rest of the head is unread
        assert client.recv(100) == b""


@pytest.mark.parametrize("fails", [True, False])
def test_what_a_worker_has_claimed_and_not_read_is_looked_at_again(make: Make, fails: bool) -> None:
    """Umaster died with its Taken; its claim is good, unless it came at the same moment as our look."""
    front = make()
    front.connect(HEAD)
    offered = front.offered()
    with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
        assert tcp.claim(worker, offered.mark)
        front.umaster_dies()
        front.on.until(lambda: front.listener._doubtful)
        assert front.open == 1
        if fails:
            assert not tcp.claim(worker, offered.mark)
    if fails:
        front.on.until(lambda: front.listener.reoffered and len(front.umaster.channels) == 2)
        front.offered()
    else:
        front.on.until(lambda: not front.open)
        assert (front.listener.dropped, front.listener.reoffered) == (1, 0)
    assert not front.listener._doubtful


def test_what_a_worker_hears_of_when_it_was_offered_again_is_not_its(make: Make) -> None:
    """Umaster lives and has dispatched it, but its channel to us has ended: two offers of it are on their way."""
    front = make()
    front.connect(HEAD)
    first = front.offered()
    with socket.socket(fileno=front.umaster.record.fds.pop()) as late:
        front.umaster_dies()
        front.on.until(lambda: len(front.umaster.channels) == 2)
        again = front.offered()
        with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
            assert not tcp.claim(late, first.mark)
            assert tcp.claim(worker, again.mark)


@pytest.mark.parametrize("how", ["refused", "too late"])
def test_what_a_worker_has_from_a_channel_that_has_ended_is_not_answered_by_us(make: Make, how: str) -> None:
    front = make(handover_timeout=0.5)
    client = front.connect(HEAD)
    front.offered()
    with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
        if how == "too late":
            front.umaster.entrance.close()
        front.umaster_dies()
        if how == "too late":
            front.on.until(lambda: front.listener._waiting)
            assert tcp.claim(worker, 0)
        else:
            front.on.until(lambda: len(front.umaster.channels) == 2)
            again = front.offered()
            assert tcp.claim(worker, again.mark)
            front.tell(m.Refuse(again.id, 503))
        front.on.until(lambda: not front.open)
        assert front.listener.dropped == 1
        assert not front.listener.answers
        worker.setblocking(True)
        assert worker.recv(65_536) == HEAD
        worker.sendall(b"hello")
        assert client.recv(100) == b"hello"


def test_what_we_answer_no_worker_takes_any_more(make: Make) -> None:
    front = make()
    client = front.connect(HEAD)
    route = front.offered()
    with socket.socket(fileno=front.umaster.record.fds.pop()) as worker:
        front.tell(m.Refuse(route.id, 503))
        assert status(front.answer_to(client)) == 503
        assert not tcp.claim(worker, route.mark)


def test_what_is_to_be_tried_again_is_offered_again(make: Make) -> None:
    front = make()
    client = front.connect(HEAD)
    client.shutdown(socket.SHUT_WR)  # a FIN counts as a byte received
    front.tell(m.Retry(front.offered().id))
    front.offered(2)
    assert front.listener.reoffered == 1


def test_what_is_dropped_is_closed_without_a_word_and_without_a_shutdown(make: Make) -> None:
    front = make()
    client = front.connect(HEAD)
    front.tell(m.Drop(front.offered().id))
    front.on.until(lambda: not front.open)
    with socket.socket(fileno=front.umaster.record.fds.pop()) as other:
        other.sendall(b"still there")
        assert client.recv(100) == b"still there"
    assert front.listener.dropped == 1


def test_to_an_umaster_that_leaves_nothing_new_is_offered(make: Make) -> None:
    front = make()
    front.connect(HEAD)
    first = front.offered()
    front.tell(m.Goodbye("leaving"))
    front.on.until(lambda: front.listener._leaving_umaster)
    front.connect(HEAD)
    front.on.until(lambda: len(front.listener._waiting) == 1)
    front.tell(m.Settled((first.id,)))
    front.on.until(lambda: front.listener.settled == 1)
    assert len(front.offers) == 1
    front.umaster_dies()
    front.on.until(lambda: len(front.umaster.channels) == 2)
    front.offered()
    assert not any("umaster is gone" in line and "warning" in line for line in front.on.lines)


@pytest.mark.parametrize(
    "message", [m.Settled((99,)), m.Refuse(99, 503), m.Retry(99), m.Drop(99), m.Settled((1, 99))]
)
def test_a_forged_id_costs_umaster_its_channel(make: Make, message: m.Message) -> None:
    front = make()
    front.connect(HEAD)
    front.offered()
    front.tell(message)
    front.on.until(lambda: len(front.umaster.channels) == 2)
    assert front.service.faults.counts == {("umaster", "forged-id"): 1}


def test_an_umaster_that_settles_twice_loses_its_channel(make: Make) -> None:
    front = make()
    front.connect(HEAD)
    id_ = front.offered().id
    front.tell(m.Settled((id_, id_)))
    front.on.until(lambda: len(front.umaster.channels) == 2)
    assert front.service.faults.counts == {("umaster", "forged-id"): 1}


# ---- full, and leaving ----


def test_when_full_who_has_said_nothing_the_longest_makes_room(make: Make) -> None:
    front = make(max_connections=3)
    silent = [front.connect() for _ in range(3)]
    front.on.until(lambda: len(front.listener._peeking) == 3)
    front.connect(HEAD)
    front.offered()
    assert front.listener.evicted == {"full": 1, "client": 0}
    assert silent[0].recv(100) == b""
    assert front.service.budget.used == 3


def test_when_full_of_answered_ones_the_oldest_of_these_makes_room(make: Make) -> None:
    front = make(max_connections=2)
    refused = [front.connect(b"no\r\n\r\n") for _ in range(2)]
    front.on.until(lambda: len(front.listener._lingering) == 2)
    front.connect(HEAD)
    front.offered()
    assert front.listener.evicted == {"full": 1, "client": 0}
    assert b" 400 " in front.answer_to(refused[0])
    assert front.service.budget.used == 2


def test_nobody_makes_room_before_it_had_a_chance_to_say_something(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients who connect and send at once: on a busy machine a moment passes in between, and all would be closed."""
    monkeypatch.setattr(module, "PATIENCE", 1000.0)
    front = make(max_connections=3)
    late = [front.connect() for _ in range(3)]
    front.on.until(lambda: len(front.listener._peeking) == 3)
    front.connect(HEAD)
    front.on.until(lambda: not front.listener._accepting)
    late[2].sendall(HEAD)
    front.tell(m.Settled((front.offered().id,)))
    front.offered(2)
    assert front.listener.evicted == {"full": 0, "client": 0}
    front.connect(HEAD)
    front.on.until(lambda: not front.listener._accepting)
    late[1].close()  # whoever goes makes room as well
    front.offered(3)
    front.connect(HEAD)
    front.on.until(lambda: not front.listener._accepting)
    assert front.listener.times_full >= 3
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    front.offered(4)  # time makes it, too
    assert front.listener.evicted == {"full": 1, "client": 0}


# ---- one client's share ----


def test_a_client_with_too_many_unnamed_connections_loses_its_oldest(make: Make) -> None:
    front = make(max_unnamed_per_client=3)
    silent = [front.connect() for _ in range(3)]
    front.on.until(lambda: len(front.listener._peeking) == 3)
    others = [front.connect(source="127.0.0.2") for _ in range(3)]  # somebody else has a share of his own
    front.on.until(lambda: len(front.listener._peeking) == 6)
    silent.append(front.connect(HEAD[:10]))
    front.on.until(lambda: front.listener.evicted["client"] == 1)
    assert silent[0].recv(100) == b""
    assert len(front.listener._peeking) == 6
    # who sends its head at once isn't counted, however many are silent; nor who sends the rest of it
    front.connect(HEAD)
    front.offered(1)
    silent[-1].sendall(HEAD[10:])
    front.offered(2)
    assert front.listener.evicted == {"full": 0, "client": 1}
    assert sorted(len(crowd) for crowd in front.listener._crowds.values()) == [2, 3]
    for client in (*silent, *others):
        client.close()
    front.on.until(lambda: not front.listener._peeking)
    assert not front.listener._crowds  # the table holds nobody who has no connection


def test_connections_that_are_being_refused_count_too(make: Make) -> None:
    front = make(max_unnamed_per_client=2, linger_timeout=60.0)
    refused = [front.connect(b"no\r\n\r\n") for _ in range(3)]
    front.on.until(lambda: front.listener.evicted["client"] == 1)
    assert all(b" 400 " in front.answer_to(client) for client in refused)
    assert len(front.listener._lingering) == 2


def test_an_unnamed_one_that_is_refused_is_counted_once(make: Make) -> None:
    front = make(max_unnamed_per_client=2, linger_timeout=60.0)
    one = front.connect(HEAD[:5])
    front.on.until(lambda: len(front.listener._peeking) == 1)
    one.sendall(b"\0")
    front.on.until(lambda: len(front.listener._lingering) == 1)
    two = front.connect()
    front.on.until(lambda: len(front.listener._peeking) == 1)
    assert front.listener.evicted["client"] == 0
    one.close()
    two.close()
    front.on.until(lambda: not front.listener._crowds)


# ---- stress ----


def test_stress_mode_shrinks_the_deadlines_and_ends(make: Make) -> None:
    front = make(max_connections=8, head_timeout=30.0, stress_factor=0.01)
    silent = [front.connect(HEAD[:5]) for _ in range(5)]
    front.on.until(lambda: len(front.listener._peeking) == 5)
    front.on.turns(0.6)  # more than a sweep or two: 5 of 8 is not yet stress
    assert front.listener.stress_episodes == 0
    silent.append(front.connect(HEAD[:5]))
    front.on.until(lambda: front.listener.stress_episodes == 1)
    # 0.3 s instead of 30: also those that began before
    assert all(b" 408 " in front.answer_to(client) for client in silent)
    for client in silent:
        client.close()
    front.on.until(lambda: not front.listener._stressed)
    assert front.listener._peeking.span == 30.0
    lines = [line for line in front.on.lines if "stress mode" in line]
    assert ["begins" in line for line in lines] == [True, False]  # a line each, not one for every sweep


def test_without_a_factor_stress_shrinks_nothing(make: Make) -> None:
    front = make(max_connections=4, head_timeout=30.0, stress_factor=1.0)
    for _ in range(4):
        front.connect()
    front.on.until(lambda: front.listener.stress_episodes == 1)
    assert front.listener._peeking.span == 30.0


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 2048 + b" HTTP/1.1\r\nHost: a.example\r\n\r\n", b" 414 "),
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n" + b"A: b\r\n" * 64 + b"\r\n", b" 431 "),
    ],
)
def test_configured_head_limits(make: Make, data: bytes, status: bytes) -> None:
    front = make()
    assert status in front.answer_to(front.connect(data))


def test_when_full_of_connections_on_their_way_new_ones_wait_in_the_kernel(make: Make) -> None:
    front = make(budget=2)
    front.connect(HEAD)
    front.connect(HEAD)
    front.offered(2)
    front.connect(HEAD)
    front.on.until(lambda: not front.listener._accepting)
    front.on.turns(0.05)
    assert front.listener.accepted == 2
    front.tell(m.Settled((front.offers[0].id,)))
    front.offered(3)


def test_draining_takes_nothing_new_and_leaves_when_all_is_settled(make: Make) -> None:
    front = make()
    front.connect(HEAD)
    id_ = front.offered().id
    front.on.said()
    front.service._leave()
    assert b"D" in front.on.said()
    late = front.connect(HEAD)
    front.on.turns(0.05)
    assert front.listener.accepted == 1
    front.tell(m.Settled((id_,)))
    front.on.until(lambda: not front.open)
    assert not front.listener._may_leave()  # nobody else may have the listening socket yet
    front.on.keeper.send(RELIEVED)
    front.on.loop.run()  # ends by itself
    assert not front.open
    late.close()


def test_draining_with_nothing_open_is_at_once(make: Make) -> None:
    front = make()
    front.on.keeper.send(NOBODY_FOLLOWS)
    front.service._leave()
    front.on.loop.run()


def test_draining_does_not_wait_long_for_heads(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_HEAD_TIMEOUT", 0.1)
    front = make()
    client = front.connect(HEAD[:10])
    front.on.until(lambda: len(front.listener._peeking))
    front.on.keeper.send(NOBODY_FOLLOWS)
    front.service._leave()
    front.on.loop.run()
    assert client.recv(100) == b""


# ---- metrics ----


def test_in_metrics_mode_the_path_names_the_tenant(make: Make) -> None:
    front = make(mode="metrics")
    front.connect(b"GET /metrics/blog HTTP/1.1\r\nHost: 10.0.0.1:9110\r\n\r\n")
    assert front.offered().authority == "blog"
    front.connect(b"GET http://x.example/metrics/blog-2 HTTP/1.1\r\nHost: 10.0.0.1:9110\r\n\r\n")
    front.on.turns(0.05)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/metrics", "/metrics/", "/metrics/Blog", "/metrics/a/b", "/metrics/../x"),
        *("/metrics/a%2f", "/metrics/a?x", "/metrics/" + "a" * 33),
    ],
)
def test_in_metrics_mode_other_paths_are_404(make: Make, path: str) -> None:
    front = make(mode="metrics")
    got = front.answer_to(front.connect(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    assert status(got) == 404


def test_its_own_metrics_count_what_it_did(make: Make) -> None:
    front = make()
    front.connect(HEAD)
    front.offered()
    front.answer_to(front.connect(b"nonsense\r\n\r\n"))
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in front.listener._collect()
        for sample in family.samples
    }
    assert samples["pyttpd_listener_accepted_total",] == 2
    assert samples["pyttpd_listener_routed_total",] == 1
    assert samples["pyttpd_listener_connections", "offered"] == 1
    assert samples["pyttpd_listener_answers_total", "400"] == 1
    assert samples["pyttpd_listener_open_descriptors",] == front.service.budget.used


# ---- what it is given ----


def test_anothers_socket_is_not_listened_on(make: Make) -> None:
    front = make()
    front.init.channel.send(m.Socket("listen", "other"), front.socket.fileno())
    front.on.until(lambda: any("another's socket" in line for line in front.on.lines))
    assert len(front.listener._sockets) == 1


def test_the_same_socket_again_is_not_taken_twice(make: Make) -> None:
    front = make()
    front.init.channel.send(m.Socket("listen", "http"), front.socket.fileno())
    front.init.channel.send(m.SocketsEnd(1))
    front.connect(HEAD)
    front.offered()
    assert len(front.listener._sockets) == 1


def test_a_share_that_is_none_changes_nothing(make: Make) -> None:
    front = make()
    fd = memfd.make("share", b"{}")
    front.master.channel.send(m.Share(2, "share", 2, memfd.digest_of(b"{}")), fd)
    os.close(fd)
    front.on.until(lambda: front.master.record.ends)
    assert front.service.faults.counts == {("master", "bad-share"): 1}
    front.connect(HEAD)
    front.offered()


def test_a_new_share_is_in_force_for_new_connections(make: Make) -> None:
    front = make()
    front.give_share(replace(SHARE, generation=2, head_limit=1024))
    front.on.until(lambda: m.ShareOk(2) in front.master.record.messages)
    got = front.answer_to(front.connect(b"GET / HTTP/1.1\r\nHost: a.example\r\nX: " + b"x" * 2000))
    assert status(got) == 431


def test_ready_is_said_when_all_has_come(make: Make) -> None:
    front = make()
    front.on.until(lambda: b"R" in front.on.said())
