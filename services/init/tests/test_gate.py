"""The gate: joins what connects inside to the address outside, keeps its bounds, and reaches nothing else."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd import health, privileges
from pyttpd.address import Address
from pyttpd.confine import ConfineError, confine
from pyttpd.log import Log
from pyttpd.loop import Loop
from pyttpd.namespaces import (
    NamespaceError,
    enter_network_namespace,
    join_network_namespace,
    listen_inside,
    make_network_namespace,
)

from pyttpd_init import gate
from support.play import outcome, play

LOCAL = ("127.0.0.1", 0)


class Stage:
    """A gate in this process, turned by hand; an address outside, and a way in."""

    def __init__(self, most: int = gate.MAX_PAIRS) -> None:
        self.lines: list[str] = []
        self.outside = socket.create_server(LOCAL)
        self.outside.settimeout(5)
        for_accepted = (socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.outside.setsockopt(*for_accepted)
        self.inside = socket.create_server(LOCAL)
        self.inside.setsockopt(*for_accepted)
        self.inside.setblocking(False)
        self.loop = Loop()
        log = Log("gate", "shop", write=lambda line: self.lines.append(line.decode()))
        address = Address(*self.outside.getsockname())
        self.gate = gate.Gate(self.loop, log, [(address, self.inside)], most)
        self.gate.start()

    def turn(self, until: Callable[[], object]) -> None:
        """Turn the loop until something is so, for five seconds at most."""
        deadline = time.monotonic() + 5

        while not until():
            assert time.monotonic() < deadline
            self.turn_once()

    def turn_once(self) -> None:
        self.loop.call_later(0.005, self.loop.stop)
        self.loop.run()

    def enter(self) -> socket.socket:
        sock = socket.create_connection(self.inside.getsockname(), 5)
        sock.setblocking(False)
        return sock

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return a tenant's end and the database's."""
        count = len(self.gate.pairs)
        ours = self.enter()
        self.turn(lambda: len(self.gate.pairs) > count and all(pair.connected for pair in self.gate.pairs))
        theirs, _ = self.outside.accept()
        theirs.setblocking(False)
        return ours, theirs

    def close(self) -> None:
        self.gate.close()
        self.loop.close()
        self.outside.close()


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.close()


def received(sock: socket.socket) -> bytes | None:
    """Return what has come, b"" at the end, None if there is nothing."""
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return None


def test_each_way_by_itself(stage: Stage) -> None:
    ours, theirs = stage.pair()
    got: list[bytes] = []

    def heard(sock: socket.socket, what: bytes) -> bool:
        data = received(sock)
        if data is not None:
            got.append(data)
        return bool(got) and got[-1] == what

    with ours, theirs:
        ours.sendall(b"question")
        stage.turn(lambda: heard(theirs, b"question"))
        ours.shutdown(socket.SHUT_WR)
        stage.turn(lambda: heard(theirs, b""))
        # The other half is still open, as it is without a gate.
        theirs.sendall(b"answer")
        stage.turn(lambda: heard(ours, b"answer"))
        theirs.close()
        stage.turn(lambda: heard(ours, b""))
        stage.turn(lambda: not stage.gate.pairs)
    assert not stage.lines


def test_who_does_not_read_is_not_read_from(stage: Stage) -> None:
    ours, theirs = stage.pair()
    amount = 16 << 20
    sent = 0
    whole = bytes(range(256)) * (amount // 256)
    with ours, theirs:
        # Until nothing more goes: two sockets' buffers and the gate's own are full, and it holds no more than that.
        deadline = time.monotonic() + 5
        still = 0
        while still < 20 and time.monotonic() < deadline:
            try:
                sent += ours.send(whole[sent:])
                still = 0
            except BlockingIOError:
                still += 1
                stage.turn_once()
        assert 0 < sent < amount
        (pair,) = stage.gate.pairs
        assert len(pair.outside.pending) <= gate.BUFFER
        heard = bytearray()

        def drained() -> bool:
            nonlocal sent
            data = received(theirs)
            heard.extend(data or b"")
            if sent < amount:
                try:
                    sent += ours.send(whole[sent:])
                except BlockingIOError:
                    pass
            return len(heard) == amount

        stage.turn(drained)
        assert heard == whole


@pytest.mark.parametrize("side", [0, 1])
def test_a_reset_ends_both(stage: Stage, side: int) -> None:
    pair = stage.pair()
    with pair[0], pair[1]:
        pair[side].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        pair[side].close()
        stage.turn(lambda: not stage.gate.pairs)
        other = pair[1 - side]
        # It has no more to say to anybody, nor anybody to it.
        stage.turn(lambda: over(other))


def over(sock: socket.socket) -> bool:
    try:
        return sock.recv(16) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_nobody_there_is_told_in_the_log_and_ends_the_connection(stage: Stage) -> None:
    stage.outside.close()
    with stage.enter() as ours:
        stage.turn(lambda: received(ours) == b"")
    assert "allowed address cannot be reached" in stage.lines[0]
    assert "Connection refused" in stage.lines[0]
    assert not stage.gate.pairs


def test_an_address_that_does_not_answer_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "CONNECT_TIMEOUT", 0.05)
    # A queue that is full: the kernel lets nobody else in, and says nothing.
    stage.outside.close()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        full_address = Address(*full.getsockname())
        fill = [socket.socket() for _ in range(3)]
        for each in fill:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        stage.gate.doors[0] = (full_address, stage.inside)
        stage.loop.remove(stage.inside.fileno())
        stage.gate._accepting = False
        stage.gate.start()
        with stage.enter() as ours:
            stage.turn(lambda: received(ours) == b"")
        for each in fill:
            each.close()
    assert "no answer" in stage.lines[0]


def test_further_ones_wait(stage: Stage) -> None:
    stage.gate.most = 2
    first, second = stage.pair(), stage.pair()
    assert "as many connections as there may be" in stage.lines[0]
    third = stage.enter()
    stage.turn_once()
    assert len(stage.gate.pairs) == 2
    for end in first:
        end.close()
    stage.turn(lambda: select.select([stage.outside], [], [], 0)[0])
    theirs, _ = stage.outside.accept()
    for end in (*second, third, theirs):
        end.close()


def test_what_it_may_do(tmp_path: Path) -> None:
    """No file, no program, no other port, no other kind of socket."""

    def scene() -> Any:
        with socket.create_server(LOCAL) as allowed, socket.create_server(LOCAL) as other:
            confine(gate.policy([Address(*allowed.getsockname())], str(tmp_path / "state")))
            return [
                outcome(socket.create_connection, allowed.getsockname()),
                outcome(socket.create_connection, other.getsockname()),
                outcome(socket.socket, socket.AF_UNIX),
                outcome(socket.socket, socket.AF_INET6),
                outcome(socket.socket, socket.AF_INET, socket.SOCK_DGRAM),
                outcome(lambda: socket.socket().listen()),
                outcome(open, "/etc/passwd"),
                outcome(os.fork),
                outcome(os.execv, "/bin/true", ["true"]),
            ]

    assert play(scene) == ["done", *["PermissionError"] * 8]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the tenant's, where its uid can get to."""
    made = Path(tempfile.mkdtemp(prefix="pyttpd-gate-", dir="/tmp"))
    made.chmod(0o777)
    yield made
    shutil.rmtree(made)


@pytest.mark.root
def test_a_tenants_network_has_the_address_and_nothing_behind_it(folder: Path) -> None:
    """The whole of it: a namespace, listening sockets inside, a gate outside with the tenant's uid."""
    addresses = [Address("192.0.2.7", 5432), Address("127.0.0.2", 5433), Address("2001:db8::7", 5434)]
    state = folder / "state"

    def scene() -> Any:
        enter_network_namespace()
        # "The machine": it has the addresses too, and on each somebody who says which it is.
        outside = make_network_namespace(addresses)
        join_network_namespace(outside)
        doors = [
            socket.create_server((each.host, each.port), family=each.family)
            for each in (*addresses, Address("192.0.2.7", 9999))
        ]
        network = make_network_namespace(addresses)
        inside = listen_inside(network, addresses, gate.BACKLOG)
        command = [
            sys.executable,
            "-I",
            "-m",
            "pyttpd_init.gate",
            "--name",
            "shop",
            "--uid",
            "20001",
            "--gid",
            "20001",
        ]
        command += ["--health-file", str(state), "--die-with", str(os.getpid())]
        for address, sock in zip(addresses, inside, strict=True):
            command += ["--door", gate.door_argument(address, sock)]
        numbers = [sock.fileno() for sock in inside]
        with subprocess.Popen(
            command, pass_fds=numbers, stderr=subprocess.PIPE, text=True, cwd="/"
        ) as process:
            for sock in inside:
                sock.close()
            deadline = time.monotonic() + 10
            while not health.read(str(state))[0] and time.monotonic() < deadline:
                time.sleep(0.02)
            assert process.poll() is None, process.communicate()
            uid = os.stat(f"/proc/{process.pid}").st_uid
            threads = [threading.Thread(target=_say, args=(door,)) for door in doors[:3]]
            for thread in threads:
                thread.start()
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                join_network_namespace(network)
                found = [
                    _hear(each)
                    for each in (*addresses, Address("192.0.2.7", 9999), Address("192.0.2.8", 5432))
                ]
                os.write(write, "\n".join(found).encode())
                os._exit(0)
            os.waitpid(child, 0)
            found = os.read(read, 4096).decode().split("\n")
            for thread in threads:
                thread.join()
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=5)[1]
        return found, uid, process.returncode, said, state.exists()

    found, uid, code, said, left = play(scene)
    assert found[:3] == ["5432", "5433", "5434"]
    assert found[3] == "ConnectionRefusedError"
    assert found[4] == "OSError"  # there is no way there
    assert (uid, code, left) == (20_001, 0, False)
    assert "open to=" in said


def _say(door: socket.socket) -> None:
    caller, _ = door.accept()
    with caller:
        caller.sendall(str(door.getsockname()[1]).encode())


def _hear(address: Address) -> str:
    try:
        with socket.create_connection((address.host, address.port), 5) as sock:
            return sock.recv(16).decode()
    except OSError as error:
        return type(error).__name__


@pytest.mark.root
def test_what_cannot_be_made_is_said() -> None:
    def scene() -> Any:
        enter_network_namespace()
        network = make_network_namespace([])
        said = []
        for action in (
            lambda: listen_inside(network, [Address("127.0.0.1", 1), Address("192.0.2.9", 1)], 1),
            lambda: make_network_namespace([Address("2001:db8::1", 1), Address("203.0.113.300", 1)]),
            lambda: join_network_namespace(os.open("/dev/null", os.O_RDONLY)),
        ):
            try:
                action()
            except (NamespaceError, ValueError) as error:
                said.append(str(error))
        return said

    listening, _, joined = play(scene)
    assert "192.0.2.9:1: cannot listen in a tenant's network namespace" in listening
    assert "can't be entered" in joined


@pytest.mark.parametrize("failing", ["become", "confine"])
def test_one_that_cannot_be_locked_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], failing: str
) -> None:
    def fail(*_: object) -> None:
        raise ConfineError("it can't")

    monkeypatch.setattr(privileges, "become", fail if failing == "become" else lambda *_: None)
    for name in ("die_with_parent", "set_process_name"):
        monkeypatch.setattr(privileges, name, lambda *_: None)
    monkeypatch.setattr(gate, "set_no_new_privs", lambda: None)
    monkeypatch.setattr(gate, "confine", fail)
    with socket.create_server(LOCAL) as door:
        argument = f"127.0.0.1:5432={os.dup(door.fileno())}"
        arguments = [
            "--name",
            "shop",
            "--uid",
            "1",
            "--gid",
            "1",
            "--health-file",
            "/nowhere/state",
            "--die-with",
            "1",
        ]
        assert gate.main([*arguments, "--door", argument]) == 2
    assert 'cannot start error="it can\'t"' in capfd.readouterr().err
