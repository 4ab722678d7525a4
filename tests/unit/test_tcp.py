"""How much of a connection has been read, whoever has read it; and whose it is."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from pyttpd import tcp

from support.wired import connection


@pytest.fixture
def free() -> Iterator[One]:
    with connection() as (server, _):
        yield One(server)


def settled(sock: socket.socket, count: int) -> None:
    """Wait until so many bytes have come."""
    deadline = time.monotonic() + 10
    while len(sock.recv(65_536, socket.MSG_PEEK)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_nothing_peeked_and_read() -> None:
    with connection() as (server, client):
        assert tcp.consumed(server) == 0
        client.sendall(b"hello world")
        settled(server, 11)
        assert tcp.consumed(server) == 0
        server.recv(5)
        assert tcp.consumed(server) == 5
        server.recv(100)
        assert tcp.consumed(server) == 11


@pytest.mark.parametrize("read", [0, 5, 11])
def test_a_fin_is_no_byte(read: int) -> None:
    with connection() as (server, client):
        client.sendall(b"hello world")
        settled(server, 11)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.05)
        if read:
            server.recv(read)
        assert tcp.consumed(server) == read


def test_what_another_process_has_read_counts() -> None:
    with connection() as (server, client):
        client.sendall(b"hello world")
        settled(server, 11)
        pid = os.fork()
        if pid == 0:
            server.recv(3)
            os._exit(0)
        os.waitpid(pid, 0)
        assert tcp.consumed(server) == 3


def test_no_connection_is_an_error() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(OSError):
        tcp.consumed(one)


def test_after_a_reset_it_still_answers_or_says_that_it_can_not() -> None:
    with connection() as (server, client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        time.sleep(0.02)
        assert tcp.consumed(server) == 0


# ---- whose it is ----


class One:
    """A connection that was offered for its mark."""

    def __init__(self, sock: socket.SocketType) -> None:
        self.sock = sock
        self.mark = tcp.mark(sock)


def test_an_offer_is_claimed_for_its_mark(free: One) -> None:
    offered = free.mark
    assert tcp.claim(free.sock, offered)
    assert tcp.recall(free) is tcp.Whose.CLAIMED


def test_an_offer_that_was_recalled_counts_no_longer_and_the_next_one_does(free: One) -> None:
    before = free.mark
    assert tcp.recall(free) is tcp.Whose.OURS
    assert free.mark == tcp.mark(free.sock) != before
    assert not tcp.claim(free.sock, before)
    assert tcp.claim(free.sock, free.mark)
    assert tcp.recall(free) is tcp.Whose.CLAIMED


def test_a_claim_that_failed_is_gone(free: One) -> None:
    before = free.mark
    tcp.recall(free)
    assert not tcp.claim(free.sock, before)
    assert tcp.recall(free) is tcp.Whose.OURS


def test_whoever_does_not_say_for_which_mark_has_it(free: One) -> None:
    tcp.recall(free)
    assert tcp.claim(free.sock, 0)


def test_what_its_claimant_has_offered_on_is_not_whose_it_was_before(free: One) -> None:
    first = One(free.sock)
    assert tcp.claim(free.sock, first.mark)
    free.mark = tcp.offer(free.sock)  # the second one's
    for _ in range(2):
        assert tcp.recall(first) is tcp.Whose.THEIRS
    assert tcp.recall(free) is tcp.Whose.OURS


def test_marks_begin_anew_and_are_never_what_they_were(free: One) -> None:
    for _ in range(300):
        before = free.mark
        assert tcp.recall(free) is tcp.Whose.OURS
        assert free.mark == tcp.mark(free.sock) != before
        assert 1 <= free.mark <= 127


def test_what_is_no_connection_is_nobodys() -> None:
    unix, other = socket.socketpair()
    with unix, other, connection() as (server, _):
        one = One(server)
        one.sock = unix
        assert tcp.recall(one) is tcp.Whose.THEIRS


def test_who_claims_and_who_recalls_never_both_have_it(free: One) -> None:
    """Two processes at the same moment, again and again; a third one has a copy, as umaster's or init's might be."""
    both_yielded = 0
    for _ in range(400):
        start, begin = os.pipe()
        offered = free.mark
        pid = os.fork()
        if pid == 0:
            os.close(begin)
            os.read(start, 1)
            os._exit(int(tcp.claim(free.sock, offered)))
        os.close(start)
        os.close(begin)
        found = tcp.recall(free)
        claimed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert not (claimed and found is tcp.Whose.OURS)
        again = tcp.recall(free)
        assert again is (tcp.Whose.CLAIMED if claimed else tcp.Whose.OURS)  # a second look tells for sure
        both_yielded += not claimed and found is tcp.Whose.CLAIMED
        free.mark = tcp.offer(free.sock)
    assert both_yielded < 400


def looks(answers: list[tuple[One, bool]], later: list[Callable[[], None]]) -> tcp.SecondLook[One]:
    return tcp.SecondLook(
        lambda one, ours: answers.append((one, ours)),
        lambda _seconds, what: later.append(what),
    )


@pytest.mark.parametrize("whose", ["ours", "a claim that fails", "theirs", "offered on"])
def test_who_sees_a_claim_looks_again(free: One, whose: str) -> None:
    ends: list[tuple[One, bool]] = []
    later: list[Callable[[], None]] = []
    look = looks(ends, later)
    if whose != "ours":
        assert tcp.claim(free.sock, free.mark)
    if whose == "offered on":
        tcp.offer(free.sock)
    look.look(free)
    if whose in ("ours", "offered on"):
        assert ends == [(free, whose == "ours")]
        assert not later
        assert len(look) == 0
        return
    assert (list(look), ends) == ([free], [])
    if whose == "a claim that fails":
        assert not tcp.claim(free.sock, tcp.mark(free.sock) + 1)
    (what,) = later
    what()
    assert ends == [(free, whose == "a claim that fails")]
    assert len(look) == 0


def test_what_is_forgotten_has_no_end(free: One) -> None:
    ends: list[tuple[One, bool]] = []
    later: list[Callable[[], None]] = []
    look = looks(ends, later)
    assert tcp.claim(free.sock, free.mark)
    look.look(free)
    look.clear()
    later.pop()()
    assert ends == []


def test_a_new_connection_is_not_claimed_although_its_listening_socket_defers() -> None:
    """The claim is kept in what init has set on the listening socket; a connection doesn't inherit it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"x")
            accepted, _ = tcp.accept(listener)
            one = One(accepted)
            assert tcp.recall(one) is tcp.Whose.OURS
            accepted.close()


def test_who_waits_to_be_accepted_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert tcp.backlog(listener) == 0
        with (
            socket.create_connection(listener.getsockname()),
            socket.create_connection(listener.getsockname()),
        ):
            assert tcp.backlog(listener) == 2
            listener.accept()[0].close()
            assert tcp.backlog(listener) == 1
