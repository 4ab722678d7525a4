"""Each role is asked to leave, or killed, while clients ask without a pause: what may be lost then, and what never."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.leaks import state
from support.tree import ANSWER_WITHIN, Tree

Plant = Callable[..., Tree]
REQUEST = b"GET /x HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n"
ANSWERED = b"\r\n\r\n/x"
CLIENTS = 4
WORDS = ("died", "lost", "away", "ended", "gone", "asked back", "keeper ended")


class Load:
    """Clients that ask again and again, each time on a new connection, and note what they got instead of an answer."""

    def __init__(self, tree: Tree, clients: int) -> None:
        self._tree = tree
        self._stop = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._tree.port), ANSWER_WITHIN) as client:
                    client.sendall(REQUEST)
                    answer = b""
                    while data := client.recv(65_536):
                        answer += data
                if answer.endswith(ANSWERED):
                    self.answered += 1
                else:
                    self.failures.append(repr(answer[:60]))
            except OSError as error:
                self.failures.append(repr(error))
            time.sleep(0.005)

    def more(self, count: int) -> None:
        """Wait until so many more are answered."""
        wanted = self.answered + count
        self._tree.wait_for(lambda: self.answered >= wanted, 30.0)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def load(tree: Tree) -> Iterator[Load]:
    one = Load(tree, CLIENTS)
    try:
        yield one
    finally:
        one.stop()


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def is_metrics_child(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "init-metrics"
    except OSError:
        return False


def role_process(tree: Tree, role: str, name: str) -> tuple[int, int]:
    """Return the keeper of a role, and the role's process below it."""
    pids = tree.pids(role, name)
    # init's own runner has the same words in its command line, but is not below itself. Its metrics child is below its
    # keeper as well, for a moment, when init has been killed.
    pairs = [(parent_of(pid), pid) for pid in pids if parent_of(pid) in pids and not is_metrics_child(pid)]
    assert pairs, f"no {role} {name}"
    return pairs[0]


def all_ready(tree: Tree) -> bool:
    """Say whether every role is ready, by its health file: a new init has got its sockets back then."""
    states = [path.read_text().strip() for path in (tree.folder / "run/health").glob("*/state")]
    return len(states) == 7 and set(states) == {"ready"}


ROLES = {"init": "", "master": "", "umaster": "", "listener": "http", "vhost": "wsgi"}
BOTH = pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)


def end_one(tree: Tree, clients: Load, role: str, number: int) -> list[str]:
    """Send a signal to a role's process while clients ask; return what they got instead of answers."""
    name = ROLES[role]
    keeper, process = role_process(tree, role, name)
    clients.more(40)
    os.kill(process, number)
    tree.wait_for(lambda: state(process) in "XZ", 20.0)
    tree.wait_for(lambda: role_process(tree, role, name)[1] != process, 20.0)
    tree.wait_for(lambda: all_ready(tree), 20.0)
    clients.more(40)
    assert role_process(tree, role, name)[0] == keeper
    failures, clients.failures = clients.failures, []
    return failures


@BOTH
def test_a_role_that_is_asked_to_leave_loses_no_request(plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    tree.expect(*WORDS)
    tree.wait_for(lambda: all_ready(tree), 20.0)
    with load(tree) as clients:
        for role in ROLES:
            assert (role, end_one(tree, clients, role, signal.SIGTERM)) == (role, [])


@BOTH
def test_a_role_that_is_killed_loses_at_most_what_it_had_in_hand(plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    tree.expect(*WORDS)
    tree.wait_for(lambda: all_ready(tree), 20.0)
    with load(tree) as clients:
        for role in ("init", "master", "umaster", "vhost"):
            assert (role, end_one(tree, clients, role, signal.SIGKILL)) == (role, [])
        assert len(end_one(tree, clients, "listener", signal.SIGKILL)) <= CLIENTS  # one of each client


@BOTH
def test_a_keeper_that_is_killed_is_back_with_its_role(plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    tree.expect(*WORDS)
    tree.wait_for(lambda: all_ready(tree), 20.0)
    for role, name in ROLES.items():
        keeper, process = role_process(tree, role, name)
        os.kill(keeper, signal.SIGKILL)
        tree.wait_for(lambda process=process: state(process) in "XZ")  # type: ignore[misc]

        def is_another(role: str = role, name: str = name, keeper: int = keeper) -> bool:
            return role_process(tree, role, name)[0] != keeper

        tree.wait_for(is_another, 20.0)
        tree.wait_for(lambda: all_ready(tree), 20.0)
        for host in ("static.localhost", "wsgi.localhost"):
            tree.wait_for(lambda host=host: tree.get(host).status == 200, 20.0)  # type: ignore[misc]
    for role in ("init", "master", "umaster", "listener"):
        tree.wait_for(lambda role=role: bool(tree.samples(role)), 20.0)  # type: ignore[misc]
