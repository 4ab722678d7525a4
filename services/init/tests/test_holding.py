"""Sockets that come, stay, move and go with another configuration; and that nobody is reset who had come before."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyttpd.log import Log
from pyttpd.office import Outcome

from pyttpd_init.closing import let_nobody_in
from pyttpd_init.holding import Holding
from pyttpd_init.sockets import Plan, bind

#: What a connection gets (s) to come about, or to be refused.
PATIENCE = 10.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def plan(
    port: int, name: str = "http", *, host: str = "127.0.0.1", uid: int = 10010, backlog: int = 8
) -> Plan:
    return Plan("listener", name, uid, "listen", host, port, backlog)


@pytest.fixture
def hold() -> Iterator[Callable[..., Holding]]:
    made = []

    def holding(*plans: Plan) -> Holding:
        held = Holding()
        held.log = Log("test", write=lambda _: None)
        held.plans = list(plans)
        held.sockets = {each: bind(each) for each in plans}
        made.append(held)
        return held

    yield holding
    for held in made:
        held.drop()
        for sock in held.sockets.values():
            sock.close()


def connects(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(PATIENCE)
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_what_is_new_is_bound_and_what_stays_is_kept(hold: Callable[..., Holding]) -> None:
    old, new = plan(free_port()), plan(free_port(), "more")
    held = hold(old)
    kept = held.sockets[old]
    assert held.prepare(Outcome("d", more=[old, new])) == Outcome("d")
    assert connects(new.port)
    assert held.plans == [old]  # nobody is given it yet
    held.adopt()
    assert (held.digest, held.plans, held.former) == ("d", [old, new], [])
    assert held.sockets[old] is kept


def test_what_is_dropped_leaves_nothing(hold: Callable[..., Holding]) -> None:
    old, new = plan(free_port()), plan(free_port(), "more")
    held = hold(old)
    held.prepare(Outcome("d", more=[old, new]))
    held.drop()
    assert not connects(new.port)
    held.drop()
    assert held.plans == [old]


def test_one_that_is_taken_leaves_nothing_of_the_others(hold: Callable[..., Holding]) -> None:
    old, new = plan(free_port()), plan(free_port(), "more")
    held = hold(old)
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        taken = plan(somebody.getsockname()[1], "taken")
        outcome = held.prepare(Outcome("d", more=[old, new, taken]))
    assert outcome.count == 1
    assert "Address already in use" in outcome.errors[0]
    assert "close it first" not in outcome.errors[0]
    assert not connects(new.port)
    wide = plan(old.port, "http", host="0.0.0.0")
    assert "close it first" in held.prepare(Outcome("d", more=[wide])).errors[0]


def test_another_owner_of_an_address_gets_the_same_socket(hold: Callable[..., Holding]) -> None:
    old = plan(free_port())
    held = hold(old)
    with socket.create_connection(("127.0.0.1", old.port)) as waits:
        waits.sendall(b"x")  # who says nothing isn't shown yet
        new = plan(old.port, "renamed", uid=10011, backlog=64)
        held.prepare(Outcome("d", more=[new]))
        held.adopt()
        assert held.former == [old]
        accepted, _ = held.sockets[new].accept()
        with accepted:
            assert accepted.getpeername() == waits.getsockname()
    assert connects(old.port)


def test_nobody_is_reset_who_came_before_and_nobody_comes_after(hold: Callable[..., Holding]) -> None:
    """The listener has a copy: what waits in its queue outlives ours, and a new client doesn't get in."""
    old = plan(free_port())
    held = hold(old)
    copy = held.sockets[old].dup()
    with copy, socket.create_connection(("127.0.0.1", old.port)) as waits, socket.socket() as late:
        held.prepare(Outcome("d", more=[]))
        held.adopt()
        late.setblocking(False)
        assert late.connect_ex(("127.0.0.1", old.port)) == errno.EINPROGRESS
        copy.settimeout(PATIENCE)
        accepted, _ = copy.accept()
        with accepted:
            waits.sendall(b"hello")
            assert accepted.recv(10) == b"hello"
            assert accepted.getpeername() == waits.getsockname()
        copy.setblocking(False)
        with pytest.raises(BlockingIOError):
            copy.accept()
        copy.close()
        late.setblocking(True)
        late.settimeout(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while late.connect_ex(("127.0.0.1", old.port)) not in (errno.ECONNREFUSED, errno.ECONNABORTED):
            assert time.monotonic() < deadline


def test_what_is_asked_back_is_not_bound(hold: Callable[..., Holding]) -> None:
    """A role that has a socket of a predecessor's hasn't brought it back yet; the reload doesn't wait for that."""
    old = plan(free_port())
    held = hold()
    held.plans = [old]
    assert held.prepare(Outcome("d", more=[old])) == Outcome("d")
    held.adopt()
    assert held.sockets == {}


@pytest.mark.parametrize("what", ["asked back", "another plan", "another address", "no socket"])
def test_only_what_is_missing_and_as_planned_is_kept(hold: Callable[..., Holding], what: str) -> None:
    """What init's process was brought back, its keeper holds from then on."""
    wanted, other = plan(free_port()), plan(free_port())
    holding = hold()
    holding.plans = [wanted]
    if what == "no socket":
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    else:
        fd = bind(other if what == "another address" else wanted).detach()
    holding.keep(str(other if what == "another plan" else wanted).encode(), fd)
    if what == "asked back":
        assert holding.sockets[wanted].fileno() == fd
        holding.keep(str(wanted).encode(), os.dup(fd))  # once is enough
        assert list(holding.sockets) == [wanted]
    else:
        assert not holding.sockets
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_it_reads_the_files_that_it_was_started_with(tmp_path: Path) -> None:
    held = Holding()
    held.path = str(tmp_path / "pyttpd.toml")
    assert held.read().count == 1
    (tmp_path / "pyttpd.toml").write_text('[listen.http]\naddress = "127.0.0.1:8080"\n')
    outcome = held.read()
    assert len(outcome.digest) == 64
    assert isinstance(outcome.more, list)
    assert {each.name for each in outcome.more} == {"init", "master", "umaster", "http", "metrics"}
    held.retire()


def test_the_filter_lets_what_is_open_go_on() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        server, _ = listener.accept()
        let_nobody_in(listener)
        with server:
            client.sendall(b"x" * 100_000)
            client.shutdown(socket.SHUT_WR)
            size = 0
            while data := server.recv(65_536):
                size += len(data)
            assert size == 100_000
