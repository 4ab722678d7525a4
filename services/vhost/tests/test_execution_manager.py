"""The execution manager with a real exec service and real processes on real sockets."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.shares import PoolSettings
from pyttpd.loop import Budget, Loop

from pyttpd_vhost.backoff import YOUNG_DEATHS
from pyttpd_vhost.execution import manager as module
from pyttpd_vhost.execution.client import Client
from pyttpd_vhost.execution.manager import Application, Manager, Pool
from pyttpd_vhost.execution.places import Listeners, Place
from pyttpd_vhost.execution.usage import Usage
from pyttpd_vhost.policy import State

from .conftest import ListLog
from .programs import PATIENCE, PYTHON, Running, alive

#: Answers each connection with its pid; the first line that it gets says what else it is to do.
SERVER = """
import os, signal, socket, sys
if "ignores-term" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "daemon" in sys.argv and os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        open(sys.argv[-1], "w").write(str(os.getpid()))
        signal.pause()
    os._exit(0)
listener = socket.socket(fileno=0)
print("serves", flush=True)
kept = []
while True:
    connection, _ = listener.accept()
    with connection:
        said = connection.recv(100)
        if said == b"leak":
            kept.append(bytearray(b"x" * (64 << 20)))
        if said == b"die":
            os._exit(7)
        connection.sendall(str(os.getpid()).encode())
"""


class Plant:
    """A manager in a loop of the test's own, with one exec service."""

    def __init__(self, tmp_path: Path) -> None:
        self.running = Running()
        self.running.start()
        self.loop = Loop()
        self.log = ListLog()
        self.listeners = Listeners.make(str(tmp_path))
        assert not self.listeners.problem
        self.usage = Usage(2, 4)
        self.reader, self.printed = os.pipe()
        os.set_blocking(self.reader, False)
        self.directory = str(tmp_path)
        self.manager: Any = None
        self.backends: list[Place] = []

    def start(self, *applications: tuple[list[str], PoolSettings], grace: float = 5.0) -> Pool:
        made = []
        for number, (command, settings) in enumerate(applications):
            taken = self.listeners.take(socket.SOCK_STREAM)
            assert taken is not None
            sock, path = taken
            backend = Place(number, path, pool=number, usage=self.usage)
            backend.row = 0
            self.backends.append(backend)
            made.append(
                Application(
                    f"/{number}",
                    "fastcgi",
                    tuple(command),
                    self.directory,
                    {"A": "1"},
                    settings,
                    sock.fileno(),
                )
            )
        log: Any = self.log
        self.manager = Manager(
            self.loop,
            log,
            Client(self.running.own.asks),
            self.usage,
            Budget(1000),
            made,
            printed=self.printed,
            grace=grace,
            may_start=lambda: True,
        )
        return self.manager.pools[0]  # type: ignore[no-any-return]

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Let the loop run until `condition` holds."""
        end = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < end, what
            self.loop.call_later(0.02, self.loop.stop)
            self.loop.run()
        return found

    def ask(self, word: bytes = b"hello", number: int = 0) -> bytes:
        backend = self.backends[number]
        with backend.request(), backend.connect(PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(word)
            return connection.recv(100)

    def close(self) -> None:
        if self.manager is not None:
            self.manager.close()
        self.running.close()
        self.listeners.close()
        self.usage.close()
        self.loop.close()
        os.close(self.reader)
        os.close(self.printed)


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    made = Plant(tmp_path)
    yield made
    made.close()


def server(*words: str) -> list[str]:
    return [PYTHON, "-I", "-S", "-c", SERVER, *words]


def static(processes: int = 2, **changes: Any) -> PoolSettings:
    return PoolSettings(max_workers=processes, max_age=0, **changes)


def pids(pool: Pool) -> set[int]:
    return {process.pid for process in pool.processes.values() if process.state is State.SERVING}


def test_as_many_as_there_should_be_serve_on_one_socket(plant: Plant) -> None:
    pool = plant.start((server(), static(2)))
    plant.until(lambda: pool.complete, "two processes")
    assert int(plant.ask()) in pids(pool)
    assert plant.backends[0].serving == 2
    assert not plant.backends[0].fails
    assert os.read(plant.reader, 100).startswith(b"serves\n")


def test_who_connects_before_anybody_serves_waits(plant: Plant) -> None:
    taken = plant.listeners.take(socket.SOCK_STREAM)
    assert taken is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
        early.connect(taken[1])
        early.sendall(b"x")
        plant.listeners._free[socket.SOCK_STREAM].insert(0, plant.listeners._used.pop())
        pool = plant.start((server(), static(1)))
        plant.until(lambda: pool.complete, "a process")
        early.settimeout(PATIENCE)
        assert int(early.recv(100)) in pids(pool)


def test_one_that_dies_is_started_again(plant: Plant) -> None:
    pool = plant.start((server(), static(2)))
    plant.until(lambda: pool.complete, "two processes")
    before = pids(pool)
    assert plant.ask(b"die") == b""
    plant.until(lambda: pool.complete and pids(pool) != before, "another one")
    assert len(pids(pool) & before) == 1
    assert pool.counts.exits == {"crashed": 1}
    assert "application process ended" in plant.log.events()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["/no/such/program"], "No such file or directory"),
        (["/bin/false"], "ended with status 1"),
        (["/bin/true"], "ended with status 0"),
    ],
)
def test_one_that_never_stays_is_tried_again_with_a_delay(
    plant: Plant, command: list[str], said: str
) -> None:
    pool = plant.start((command, static(1)))
    plant.until(lambda: pool.fails, "it to be said to fail")
    assert said in pool.failure
    assert pool._backoff.young >= YOUNG_DEATHS
    assert pool.retry_in(time.monotonic()) > 0
    plant.until(lambda: plant.backends[0].fails, "the workers to know")
    assert "no process of a mount stays: its requests get 503" in plant.log.events()


def test_one_that_fails_harms_no_other(plant: Plant) -> None:
    bad = plant.start((["/bin/false"], static(1)), (server(), static(1)))
    good = plant.manager.pools[1]
    plant.until(lambda: bad.fails and good.complete, "one to fail and one to serve")
    assert int(plant.ask(number=1)) in pids(good)


def test_what_it_has_forked_goes_with_it(plant: Plant, tmp_path: Path) -> None:
    note = tmp_path / "daemon"
    pool = plant.start((server("daemon", str(note)), static(1)))
    plant.until(lambda: pool.complete and note.exists() and note.read_text(), "the daemon")
    daemon = int(note.read_text())
    assert alive(daemon)
    plant.ask(b"die")
    plant.until(lambda: not alive(daemon), "the daemon to be gone")


def test_max_requests_in_equal_shares(plant: Plant) -> None:
    pool = plant.start((server(), static(2, max_requests=10)))
    plant.until(lambda: pool.complete, "two processes")
    before = pids(pool)
    for _ in range(20):
        plant.ask()
    plant.until(lambda: pool.complete and not pids(pool) & before, "two others")
    plant.until(lambda: pool.counts.exits == {"requests": 2}, "both to have ended")
    assert pool.requests == 20
    assert int(plant.ask()) in pids(pool)


def test_memory(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEASURE_INTERVAL", 0.05)
    pool = plant.start((server(), static(1, max_memory=50 << 20)))
    plant.until(lambda: pool.complete, "a process")
    before = pids(pool)
    plant.ask(b"leak")
    plant.until(lambda: pool.complete and not pids(pool) & before, "another one")
    plant.until(lambda: pool.counts.exits == {"memory": 1}, "the first to have ended")


def test_age(plant: Plant) -> None:
    pool = plant.start((server(), PoolSettings(max_workers=1, max_age=0.3)))
    plant.until(
        lambda: pool.counts.exits.get("age", 0) + pool.counts.exits.get("hard-age", 0) >= 2, "two to go"
    )
    assert int(plant.ask()) > 0  # the replacement serves before it goes


def test_sigterm_and_then_sigkill(plant: Plant) -> None:
    pool = plant.start((server("ignores-term"), static(1, max_requests=5)), grace=0.3)
    plant.until(lambda: pool.complete, "a process")
    (before,) = pids(pool)
    for _ in range(5):
        plant.ask()
    plant.until(lambda: not alive(before), "it to be killed")
    assert pool.counts.killed == 1
    plant.until(lambda: pool.complete, "another one")


def test_on_demand(plant: Plant) -> None:
    settings = PoolSettings(max_workers=2, mode="ondemand", idle_timeout=0.3, max_age=0)
    pool = plant.start((server(), settings))
    plant.until(lambda: plant.manager._looked, "a look")
    assert not pool.processes
    backend = plant.backends[0]
    with backend.request(), backend.connect(PATIENCE) as connection:
        connection.sendall(b"x")
        plant.until(lambda: pool.serving, "somebody to come")
        connection.settimeout(PATIENCE)
        assert int(connection.recv(100)) in pids(pool)
    plant.until(lambda: not pool.processes, "it to go")
    assert set(pool.counts.exits) == {"idle"}


def test_dynamic_grows_with_requests(plant: Plant) -> None:
    settings = PoolSettings(
        max_workers=4, mode="dynamic", min_spare=1, max_spare=1, idle_timeout=0.3, max_age=0
    )
    pool = plant.start((server(), settings))
    plant.until(lambda: pool.complete, "the first")
    for _ in range(3):
        plant.usage.begin(0, 0)
    plant.until(lambda: pool.serving == 4, "one spare beside three that are busy")
    for _ in range(3):
        plant.usage.end(0, 0)
    plant.until(lambda: pool.serving == 1 and len(pool.processes) == 1, "the others to go")


def test_the_end_of_a_worker_counts(plant: Plant) -> None:
    pool = plant.start((server(), static(1)))
    plant.usage.begin(0, 0)
    plant.until(lambda: pool.active == 1, "it to be seen")
    plant.usage.clear(0)
    plant.until(lambda: pool.active == 0, "it to be forgotten")
    assert pool.requests == 1


def test_the_exec_service_ends_and_comes_back(plant: Plant) -> None:
    pool = plant.start((server(), static(2)))
    plant.until(lambda: pool.complete, "two processes")
    before = pids(pool)
    plant.running.kill()
    plant.until(lambda: not any(map(alive, before)), "all to be gone")
    plant.running.start()
    plant.until(lambda: pool.complete and not pids(pool) & before, "two others")
    assert pool.counts.exits == {"service-ended": 2}
    assert not pool.failure  # which isn't the application's fault


def test_leaving_is_graceful_and_bounded(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TERM_TIMEOUT", 0.3)
    pool = plant.start((server(), static(1)), (server("ignores-term"), static(1)))
    other = plant.manager.pools[1]
    plant.until(lambda: pool.complete and other.complete, "both")
    plant.ask(number=1)  # from then on it ignores the signal
    there = pids(pool) | pids(other)
    done: list[bool] = []
    assert not plant.manager.leave(lambda: done.append(True))
    plant.until(lambda: done, "all to have left")
    assert plant.manager.leave(lambda: None)
    plant.until(lambda: not any(map(alive, there)), "all to be gone")
    assert pool.counts.killed == 0
    assert other.counts.killed == 1


def test_no_descriptor_but_its_three(plant: Plant) -> None:
    pool = plant.start((["/bin/sleep", "1000"], static(1)))
    plant.until(lambda: pool.complete, "a process")
    (pid,) = pids(pool)
    fds = {name: os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")}
    assert set(fds) == {"0", "1", "2"}
    assert fds["0"].startswith("socket:")
    assert fds["1"] == fds["2"]


def test_a_wake_up_that_nobody_needs_costs_little(plant: Plant) -> None:
    """The tenant's code may write there as often as it likes."""
    pool = plant.start((server(), static(1)))
    plant.until(lambda: pool.complete, "a process")
    looks = 0
    turn = pool.turn

    def counted(now: float, **rest: Any) -> bool:
        nonlocal looks
        looks += 1
        return turn(now, **rest)

    pool.turn = counted  # type: ignore[method-assign]
    end = time.monotonic() + 0.5

    def spam() -> bool:
        os.eventfd_write(plant.usage.wake, 1)
        return time.monotonic() > end

    plant.until(spam, "half a second")
    assert looks <= 7


def test_rows_that_say_nonsense_are_bounded(plant: Plant) -> None:
    pool = plant.start((server(), static(1, max_requests=100)))
    plant.until(lambda: pool.complete, "a process")
    plant.usage._map[:] = b"\xff" * len(plant.usage._map)
    plant.until(lambda: pool.active, "it to be seen")
    assert pool.active <= 2**53
    plant.until(lambda: pool.counts.postponed, "the process to be due, and kept by what seems to be load")
    plant.usage._map[:] = bytes(len(plant.usage._map))
    plant.until(lambda: pool.counts.exits.get("requests"), "its own process to be replaced")


# ---- the sockets ----


def test_names_hold_the_pid_and_old_ones_are_swept(tmp_path: Path) -> None:
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    old, others = tmp_path / f".pyttpd-{gone}-3", tmp_path / ".pyttpd-1-3"
    for path in (old, others, tmp_path / ".pyttpd-x-1", tmp_path / f".pyttpd-{gone}-3.txt"):
        path.touch()
    made = Listeners.make(str(tmp_path))
    try:
        assert not made.problem
        assert not old.exists()
        assert others.exists()  # process 1 lives
        taken = made.take(socket.SOCK_SEQPACKET)
        assert taken is not None
        sock, place = taken
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
        assert os.stat(place).st_mode & 0o777 == 0o600
        made.release()
        assert [name for name in os.listdir(tmp_path) if str(os.getpid()) in name] == [
            os.path.basename(place)
        ]
        assert made.take(socket.SOCK_STREAM) is None
    finally:
        made.close()
    assert sorted(os.listdir(tmp_path)) == sorted([".pyttpd-1-3", ".pyttpd-x-1", f".pyttpd-{gone}-3.txt"])


def test_a_link_in_a_sockets_place_leads_nowhere(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    folder = tmp_path / "tmp"
    folder.mkdir()
    (folder / f".pyttpd-{os.getpid()}-0").symlink_to(target)
    made = Listeners.make(str(folder))
    try:
        assert not made.problem
        assert target.read_text() == "kept"
    finally:
        made.close()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    made = Listeners.make(str(tmp_path / "none"))
    assert "none" in made.problem
    assert made.take(socket.SOCK_STREAM) is None
    made.close()


def test_connecting_says_why_not(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Place(0, str(tmp_path / "none")).connect(1.0)


def test_a_full_backlog_is_waited_for_and_no_longer(tmp_path: Path) -> None:
    path = str(tmp_path / "full")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(0)
        with Place(0, path).connect(1.0), pytest.raises(BlockingIOError):
            Place(0, path).connect(0.1)


def test_through_the_exec_service(tmp_path: Path) -> None:
    path = str(tmp_path / "here")
    running = Running({0: (socket.SOCK_SEQPACKET, path)})
    running.start()
    try:
        backend = Place(0, path, client=running.client)
        with pytest.raises(FileNotFoundError):
            backend.connect(PATIENCE)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(path)
            listener.listen(1)
            backend.connect(PATIENCE).close()
    finally:
        running.close()


def test_who_fails_is_believed_again_when_one_has_lived_for_a_while(plant: Plant, tmp_path: Path) -> None:
    """And nobody waits for it meanwhile."""
    mark = tmp_path / "mark"
    script = f"test -e {mark} || exit 1; exec sleep 1000"
    pool = plant.start((["/bin/sh", "-c", script], static(1)))
    plant.until(lambda: pool.fails, "it to be said to fail")
    with pytest.raises(ConnectionRefusedError):
        plant.backends[0].connect(PATIENCE)
    said = plant.log.events().count("no process of a mount stays: its requests get 503")
    mark.touch()
    plant.until(lambda: not pool.fails, "it to be said to run")
    assert plant.log.events().count("no process of a mount stays: its requests get 503") == said == 1
    assert plant.log.events().count("a mount's processes run again") == 1
    plant.backends[0].connect(PATIENCE).close()
