"""Listening sockets that lie in a pair's queue: found by whoever comes next, and by nobody else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd import fdpass, health, office
from pyttpd.log import Log
from pyttpd.namespaces import enter_network_namespace
from pyttpd.office import Outcome
from pyttpd.service import Options

from pyttpd_init import deposit
from pyttpd_init.deposit import ADDRESS, HOLDER, Deposit
from pyttpd_init.holding import Holding
from pyttpd_init.init import Init
from pyttpd_init.sockets import Plan, bind
from support.play import play

STRANGER = 20_001
HOLDER_COMMAND = [sys.executable, "-I", "-m", "pyttpd_init.holder", "--keep-sockets", "--health-file"]


def plan(port: int, backlog: int = 8) -> Plan:
    return Plan("listener", "http", 10010, "listen", "127.0.0.1", port, backlog)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10.0)


class Pair:
    """What runner and holder have; each keeper of init gets copies of both ends."""

    def __init__(self) -> None:
        self.ends = office.pair()
        self.said: list[bytes] = []
        self._made: list[Deposit] = []

    def deposit(self) -> Deposit:
        log = Log("test", write=self.said.append)
        made = Deposit((self.ends[0].dup(), self.ends[1].dup()), log)
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close()
        for end in self.ends:
            end.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    one = Pair()
    yield one
    one.close()


def holding(pair: Pair, *plans: Plan) -> Holding:
    held = Holding()
    held.log = Log("test", write=lambda _: None)
    held.plans = list(plans)
    held.deposit = pair.deposit()
    return held


def close(held: Holding) -> None:
    held.deposit.close()
    for sock in held.sockets.values():
        sock.close()


def test_who_comes_next_finds_the_sockets_and_what_waits_in_them(pair: Pair) -> None:
    port = free_port()
    first = holding(pair, plan(port))
    first.sockets = {plan(port): bind(plan(port))}
    first.lay()
    with connect(port) as client:
        client.sendall(b"y")  # who says nothing isn't shown yet
        close(first)  # nobody holds it now
        second = holding(pair, plan(port, backlog=9))
        second.find()
        (found,) = second.sockets.values()
        server, _ = found.accept()
        with server:
            server.sendall(b"x")
            assert client.recv(1) == b"x"
        close(second)
        third = holding(pair, plan(port))
        third.find()
        assert list(third.sockets) == [plan(port)]
        close(third)


def test_what_is_asked_for_no_more_is_kept_no_longer(pair: Pair) -> None:
    ports = free_port(), free_port()
    first = holding(pair, *map(plan, ports))
    first.sockets = {plan(port): bind(plan(port)) for port in ports}
    first.lay()
    close(first)
    second = holding(pair, plan(ports[0]))
    second.find()
    assert list(second.sockets) == [plan(ports[0])]
    with pytest.raises(ConnectionRefusedError):
        connect(ports[1])
    # A reload that closes the other one as well.
    second._candidate = None
    assert not second.prepare(Outcome(digest="ab", more=[plan(ports[1])])).errors
    second.adopt()
    with pytest.raises(ConnectionRefusedError):
        connect(ports[0])
    close(second)
    third = holding(pair, *map(plan, ports))
    third.find()
    assert list(third.sockets) == [plan(ports[1])]
    close(third)


def test_a_socket_that_comes_back_is_kept_as_well(pair: Pair) -> None:
    port = free_port()
    first = holding(pair, plan(port))
    first.keep(str(plan(port)).encode(), bind(plan(port)).detach())
    close(first)
    second = holding(pair, plan(port))
    second.find()
    assert list(second.sockets) == [plan(port)]
    close(second)


def test_a_keeper_that_died_between_two_packets_has_lost_nothing(pair: Pair) -> None:
    port = free_port()
    with bind(plan(port)) as sock:
        fdpass.send_fds(pair.ends[0], b"1" * 8, [sock.fileno()])
        fdpass.send_fds(pair.ends[0], b"2" * 8, [sock.fileno()])
    held = holding(pair, plan(port))
    held.find()
    assert list(held.sockets) == [plan(port)]
    (again,) = held.deposit.look()
    again.close()
    pair.ends[1].recv(8)
    with pytest.raises(BlockingIOError):
        pair.ends[1].recv(8)
    close(held)


def test_what_is_no_listening_socket_is_not_used(pair: Pair) -> None:
    port = free_port()
    with bind(plan(port)) as sock, connect(port) as client, open("/dev/null", "rb") as file:
        fdpass.send_fds(pair.ends[0], b"1" * 8, [client.fileno(), file.fileno(), sock.fileno()])
        found = pair.deposit().look()
        assert [each.getsockname()[1] for each in found] == [port]
        for each in found:
            each.close()


@pytest.mark.parametrize("count", [deposit._MOST, deposit._MOST + 1])
def test_as_many_as_a_tree_can_have_and_no_more(pair: Pair, count: int) -> None:
    one = pair.deposit()
    with bind(plan(free_port())) as sock:
        one.lay([sock] * count)
        found = one.look()
    assert len(found) == (count if count == deposit._MOST else 0)
    assert bool(pair.said) == (count > deposit._MOST)
    for each in found:
        each.close()


def test_a_deposit_that_takes_nothing_more_keeps_nothing_old(pair: Pair) -> None:
    one = pair.deposit()
    with bind(plan(free_port())) as sock:
        one.lay([sock])
        pair.ends[0].shutdown(socket.SHUT_WR)
        one.lay([sock])
    assert b"aren't kept a second time" in b"".join(pair.said)
    assert one.look() == []


# ---- the holder's side ----


@pytest.mark.root
def test_the_holder_keeps_inits_sockets_and_tells_nobody_else(tmp_path: Path) -> None:
    """In a network namespace: two inits one after the other, a stranger, and many who ask and don't listen."""
    state, config = tmp_path / "state", tmp_path / "pyttpd.toml"
    config.write_text(
        '[listen.http]\naddress = "127.0.0.1:80"\n'
        '[metrics]\naddress = "127.0.0.1"\n'
        f'[vhost.a]\nhosts = ["a"]\nuid = 20001\nkind = "static"\nroot = "{tmp_path}"\n'
    )

    def stranger() -> bytes:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setresuid(STRANGER, STRANGER, STRANGER)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visit:
                visit.connect(ADDRESS)
                os.write(write, b"<" + visit.recv(8) + b">")
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        try:
            return os.read(read, 64)
        finally:
            os.close(read)

    def init(said: list[str]) -> Init:
        one = Init()
        log = Log("init", write=lambda line: said.append(line.decode()))
        one.prepare(Options(config=str(config), deposit=HOLDER), log)
        return one

    def inodes(one: Init) -> list[int]:
        return sorted(os.fstat(sock.fileno()).st_ino for sock in one.held.sockets.values())

    def scene() -> Any:
        enter_network_namespace()
        said: list[str] = []
        without = init(said)
        close(without.held)
        with subprocess.Popen([*HOLDER_COMMAND, str(state)], stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 10
            while not health.read(str(state))[0] and time.monotonic() < deadline:
                time.sleep(0.02)
            told = stranger()
            for _ in range(20):
                with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visit:
                    visit.connect(ADDRESS)
            first = init(said)
            before = inodes(first)
            close(first.held)
            second = init(said)
            after = inodes(second)
            close(second.held)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=5)
        # Nobody has a copy any more: all of it can be bound again.
        last = init([])
        close(last.held)
        return told.decode(), before, after, process.returncode, said

    told, before, after, code, said = play(scene)
    assert told == "<>"
    assert "the namespace's holder keeps no sockets" in said[0] + said[1]
    assert len(before) > 3
    assert before == after
    assert sum("still listening" in line for line in said) == len(after)
    assert code == 0


@pytest.mark.root
def test_a_second_holder_of_a_namespace_says_so(tmp_path: Path) -> None:
    def scene() -> Any:
        enter_network_namespace()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as taken:
            taken.bind(ADDRESS)
            found = subprocess.run(
                [*HOLDER_COMMAND, str(tmp_path / "state")], capture_output=True, text=True, check=False
            )
            return found.returncode, found.stderr

    code, said = play(scene)
    assert code == 1
    assert "cannot keep sockets" in said


@pytest.mark.root
def test_who_has_taken_the_holders_address_is_not_believed(tmp_path: Path) -> None:
    def scene() -> Any:
        enter_network_namespace()
        ready, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setresuid(STRANGER, STRANGER, STRANGER)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as fake:
                fake.bind(ADDRESS)
                fake.listen(1)
                os.write(tell, b"x")
                visitor, _ = fake.accept()
                visitor.recv(1)
            os._exit(0)
        os.read(ready, 1)
        said: list[bytes] = []
        found = deposit.of(HOLDER, Log("init", write=said.append))
        os.waitpid(pid, 0)
        return found._ends is None, said[0].decode()

    nothing, said = play(scene)
    assert nothing
    assert "somebody else's" in said
