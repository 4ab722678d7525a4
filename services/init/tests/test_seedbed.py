"""The runner's end of a seed: who comes from one, and what becomes of one that doesn't answer, or ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyttpd import seed, service
from pyttpd.config.loader import load
from pyttpd.log import Log
from pyttpd.roles import Role

from pyttpd_init import plain, seedbed
from pyttpd_init.seedbed import Seedbed

TENANT = '[vhost.{0}]\nhosts = ["{0}.example"]\nuid = {1}\nkind = "static"\nroot = "{2}"\npool.mode = "{3}"\n'
TREE = 'runtime_dir = "{0}/run"\n[listen.http]\naddress = "127.0.0.1:8080"\n'
#: Answers as it is told: a number for each answer, then nothing any more.
PROGRAM = """
import socket, struct, sys
with socket.socket(fileno=int(sys.argv[1])) as sock:
    for answer in sys.argv[2:]:
        sock.send(struct.pack("=i", int(answer)))
        if not sock.recv(65536):
            break
    sock.recv(65536)
"""


@pytest.fixture
def runner(tmp_path: Path) -> plain.Runner:
    """A runner that has started nothing, of one tenant that sleeps and one that doesn't."""
    file = tmp_path / "pyttpd.toml"
    file.write_text(
        TREE.format(tmp_path)
        + TENANT.format("asleep", 20001, tmp_path, "ondemand")
        + TENANT.format("awake", 20002, tmp_path, "static")
    )
    options = service.parse(Role.INIT, ["--plain", "--config", str(file)])
    return plain.Runner(options, load(str(file)), Log("init", "run", write=lambda _line: None))


def sleepers(runner: plain.Runner) -> list[str]:
    return [child.name for child in runner.children if runner._may_sleep(child)]


def test_who_may_sleep_comes_from_a_seed(runner: plain.Runner) -> None:
    runner._judged = True
    assert sleepers(runner) == ["asleep"]
    runner._judged = False  # a kernel on which who is to be woken may not give up connecting
    assert sleepers(runner) == []


def test_whose_table_has_gone_ends_nobody(runner: plain.Runner, tmp_path: Path) -> None:
    runner._judged = True
    other = tmp_path / "other.toml"
    other.write_text(TREE.format(tmp_path) + TENANT.format("awake", 20002, tmp_path, "static"))
    runner.config = load(str(other))
    assert sleepers(runner) == []


def test_who_has_too_many_paths_is_started_as_others_are(
    runner: plain.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (child,) = [child for child in runner.children if child.name == "asleep"]
    monkeypatch.setattr(seed, "MAX_REQUEST", 10)
    assert not runner._ask_for(child)
    assert child.pid == 0


class Bed:
    """A seedbed whose seeds answer what they are told to."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.answers: tuple[int, ...] = ()
        self.bed = Seedbed(Log("init", "run", write=lambda line: self.log.append(line.decode())), self._exec)

    def _exec(self, _words: list[str], fd: int) -> None:
        os.set_inheritable(fd, True)
        os.execv(sys.executable, [sys.executable, "-I", "-c", PROGRAM, str(fd), *map(str, self.answers)])

    def ready(self) -> None:
        deadline = time.monotonic() + 30
        while not self.bed.ready(time.monotonic()):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def reap(self) -> int:
        pid = self.bed.pid
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert self.bed.gone(pid) and not self.bed.gone(pid)
        return status


@pytest.fixture
def bed() -> Iterator[Bed]:
    # The kernel says by SIGIO that an answer has come, which ends whoever doesn't expect it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
    made = Bed()
    yield made
    if made.bed.pid:
        made.bed.end()
        made.reap()
    while signal.sigtimedwait({signal.SIGIO}, 0):
        pass
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_pid_for_each_request(bed: Bed) -> None:
    bed.answers = (seed.READY, 1234, 0)
    bed.ready()
    assert [bed.bed.keeper(b"request", []) for _ in range(2)] == [1234, 0]
    assert bed.bed.pid, "one for whom there is no process is no fault of the seed's"


def test_a_seed_that_does_not_answer_is_killed(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seedbed, "PATIENCE", 0.2)
    bed.answers = (seed.READY,)
    bed.ready()
    assert bed.bed.keeper(b"request", []) == 0
    assert not bed.bed.ready(time.monotonic())
    assert bed.reap() == -signal.SIGKILL
    monkeypatch.setattr(seedbed, "AGAIN_AFTER", 0.0)
    bed.ready()


def test_one_that_has_ended_is_no_error_of_ours(bed: Bed) -> None:
    bed.answers = (seed.READY,)
    bed.ready()
    os.kill(bed.bed.pid, signal.SIGKILL)
    os.waitid(os.P_PID, bed.bed.pid, os.WEXITED | os.WNOWAIT)
    assert bed.bed.keeper(b"request", []) == 0
    assert bed.reap() == -signal.SIGKILL
    assert not bed.bed.ready(time.monotonic())  # not at once
    assert bed.bed.pid == 0
