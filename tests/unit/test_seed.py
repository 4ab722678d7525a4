"""What a seed is asked for, and a seed itself with a program of the test's."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyttpd import fdpass, privileges, seed
from pyttpd.namespaces import TenantFiles

from support.leaks import arguments
from support.play import play

#: Its children write what they were told into the door that they are given.
PROGRAM = """
import os, random, sys
from pyttpd import seed

def main(arguments):
    door = int(arguments[-1].rpartition(":")[2])
    child = os.fork()
    if child == 0:
        os._exit(7)
    forks = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    who = f"{os.getpid()} {os.getppid()} {os.getsid(0)} {os.getcwd()} {' '.join(arguments)}"
    os.write(door, f"{who} {forks} {random.random()}".encode())
    return 3

seed.run(main, "module", sys.argv[1:])
"""
#: How long (s) anything may take.
PATIENCE = 30


@pytest.mark.parametrize(
    "request_",
    [
        seed.Request(("--name", "a")),
        seed.Request(("--name", "b"), ("vhost:umaster:", "master:master:")),
        seed.Request(
            (), files=TenantFiles("/srv/\udcff", writable=("/a", "/b"), hidden=("/etc/x",)), joins=True
        ),
    ],
)
def test_a_request_arrives_as_it_was(request_: seed.Request) -> None:
    assert seed.Request.unpack(request_.pack()) == request_
    assert len(request_.pack()) < seed.MAX_REQUEST


def test_a_process_shows_another_command_line() -> None:
    def act() -> object:
        own = Path("/proc/self/cmdline").read_bytes()
        privileges.set_command_line(["a", "b c", "\udcff"])
        short = Path("/proc/self/cmdline").read_bytes()
        privileges.set_command_line(["x" * 2 * len(own)])
        return [
            len(own),
            list(short.rstrip(b"\0")),
            len(short),
            Path("/proc/self/cmdline").read_bytes().count(b"x"),
        ]

    room, short, shown, long = play(act)
    assert bytes(short) == b"a\0b c\0\xff"
    assert shown <= room and long == room - 1


@pytest.fixture
def planted() -> Iterator[tuple[socket.socket, int]]:
    """A running seed: our end of its pair, and its pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM, seed.OPTION, str(theirs.fileno()), " " * seed.PADDING],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        ours.settimeout(PATIENCE)
        try:
            assert seed.ANSWER.unpack(ours.recv(64)) == (seed.READY,)
            yield ours, process.pid
        finally:
            ours.close()
            process.wait(PATIENCE)


def asked(sock: socket.socket, *words: str) -> tuple[int, list[str]]:
    """Ask for a keeper with a door; return its pid, and what it says."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, its:
        fdpass.send_fds(sock, seed.Request(words, ("vhost:umaster:",)).pack(), [its.fileno()])
        its.close()
        (pid,) = seed.ANSWER.unpack(sock.recv(64))
        assert select.select([mine], [], [], PATIENCE)[0]
        return pid, mine.recv(4096).decode().split()


def test_a_keeper_is_the_child_of_who_asked(planted: tuple[socket.socket, int]) -> None:
    privileges.adopt_orphans()
    sock, pid = planted
    assert arguments(pid)[-1] == seed.OPTION
    keeper, said = asked(sock, "--name", "a")
    assert said[:4] == [str(keeper), str(os.getpid()), str(keeper), "/"]
    assert said[4:9] == ["--name", "a", "--die-with", str(os.getpid()), "--door"]
    assert os.waitstatus_to_exitcode(os.waitpid(keeper, 0)[1]) == 3
    other, of_other = asked(sock, "--name", "b")
    assert other != keeper
    os.waitpid(other, 0)
    assert said[-2] == of_other[-2] == "7"  # it can fork as anybody else
    assert said[-1] != of_other[-1]  # Python knows of the fork: random numbers begin anew


def test_a_seed_ends_with_its_pair(planted: tuple[socket.socket, int]) -> None:
    sock, pid = planted
    sock.close()
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # the fixture reaps it
    assert found is not None and (found.si_code, found.si_status) == (os.CLD_EXITED, 0)
