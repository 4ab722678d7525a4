"""Giving up rights for good, and dying with one's parent. In forked children: this process keeps its rights."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from pyttpd import peercred, privileges
from pyttpd.privileges import PrivilegeError

from support.leaks import state
from support.play import outcome, play

UID = 31_234


@pytest.mark.root
def test_root_becomes_somebody_for_good() -> None:
    def act() -> object:
        os.setgroups([0, 4])
        privileges.become(UID, UID + 1)
        privileges.become(UID, UID + 1)
        regained = [outcome(call, 0, 0, 0) for call in (os.setresuid, os.setresgid)] + [
            outcome(os.setuid, 0),
            outcome(os.setgroups, [0]),
        ]
        return [os.getresuid(), os.getresgid(), os.getgroups(), regained]

    assert play(act) == [[UID] * 3, [UID + 1] * 3, [], ["PermissionError"] * 4]


@pytest.mark.root
def test_an_ordinary_user_can_become_nobody_else() -> None:
    def act() -> object:
        privileges.become(UID, UID)
        return [outcome(privileges.become, UID + 1, UID), outcome(privileges.become, UID, UID)]

    assert play(act) == ["PrivilegeError", "done"]


@pytest.mark.parametrize("ids", [(0, 0), (0, 5), (5, 0)])
def test_root_is_no_fewer_rights(ids: tuple[int, int]) -> None:
    with pytest.raises(PrivilegeError):
        privileges.become(*ids)


@pytest.mark.root
def test_a_root_that_can_be_had_again_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def act() -> object:
        def only_effective(uid: int, _effective: int, _saved: int) -> None:
            os.seteuid(uid)

        os.setresuid = only_effective
        return outcome(privileges.become, UID, UID)

    assert play(act) == "PrivilegeError"


def test_a_name_for_ps() -> None:
    def act() -> object:
        privileges.set_process_name("pyttpd-a-rather-long-name")
        return Path("/proc/self/comm").read_text()

    assert play(act) == "pyttpd-a-rather\n"


def test_a_wrong_option_is_said() -> None:
    with pytest.raises(PrivilegeError):
        privileges._prctl(-1, 0)


def test_a_child_dies_with_its_parent() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        middle = os.getpid()
        if os.fork() == 0:
            privileges.die_with_parent(middle)
            os.write(write, b"%d\n" % os.getpid())
            time.sleep(60)
        time.sleep(60)
        os._exit(0)
    child = int(os.read(read, 100))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 10
    while state(child) not in "XZ":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.close(read)
    os.close(write)


def test_a_child_whose_parent_is_gone_already_dies_at_once() -> None:
    pid = os.fork()
    if pid == 0:
        privileges.die_with_parent(1 if os.getppid() != 1 else 2, signal.SIGKILL)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert peercred.peer(one) == (os.geteuid(), os.getegid())
    with socket.socket() as tcp:
        assert peercred.peer(tcp).uid == 2**32 - 1  # nobody's
