"""Applications that do their pool every wrong thing: it goes on, and the neighbour doesn't notice."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.leaks import descendants
from support.tree import Tree

pytestmark = pytest.mark.root

Plant = Callable[..., Tree]
HOST, NEIGHBOUR = "evil.localhost", "neighbour.localhost"
TENANTS = """
[vhost.evil]
hosts = ["evil.localhost"]
uid = 20005
kind = "wsgi"
access_log = "off"
root = "evil"
application = "app:application"
[vhost.evil.pool]
max_workers = 2
request_timeout = {request_timeout}
max_processes = 100
{pool}
[vhost.neighbour]
hosts = ["neighbour.localhost"]
uid = 20006
kind = "static"
access_log = "off"
root = "site"
"""
EVIL = """
import os, signal, sys, threading, time

def worker():
    frame = sys._getframe()
    while frame is not None:
        me = frame.f_locals.get("self")
        if hasattr(me, "_scoreboard"):
            return me
        frame = frame.f_back

def lose():
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    os.wait()

def bomb():
    while True:
        try:
            os.fork()
        except OSError:
            time.sleep(0.02)

def application(environ, start_response):
    match environ["PATH_INFO"]:
        case "/descriptors":
            os.closerange(0, 1 << 16)
        case "/junk":
            board = worker()._scoreboard._map
            board[:] = os.urandom(len(board))
        case "/ones":
            board = worker()._scoreboard._map
            board[:] = bytes([255]) * len(board)
        case "/deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(60)
        case "/lose":
            lose()
        case "/deadlock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        case "/bomb":
            bomb()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def start(plant: Plant, pool: str = "", *, request_timeout: float = 2.0) -> Tree:
    tree = plant(
        tenants=TENANTS.format(pool=pool, request_timeout=request_timeout),
        hosts=(HOST, NEIGHBOUR),
        files={"evil/app.py": EVIL, "site/index.html": "neighbour"},
    )
    tree.expect("worker", "request", "prototype", "application", "processes", "they come", "Traceback")
    return tree


def do(tree: Tree, path: str) -> int:
    """Ask for something evil; return the status, 0 if there is no answer."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return tree.get(HOST, path).status
    return 0


def sample(tree: Tree, name: str, *labels: tuple[str, str]) -> float:
    samples = tree.samples("vhost", "evil")
    return sum(
        value
        for (found, *have), value in samples.items()
        if found == f"pyttpd_vhost_{name}" and set(labels) <= set(have)
    )


def of_tenant(tree: Tree) -> list[int]:
    """The living processes of the evil tenant's uid, below this tree."""
    found = []
    for pid in descendants(tree.process.pid):
        with contextlib.suppress(OSError):
            if (
                os.stat(f"/proc/{pid}").st_uid == 20005
                or b"20005" in Path(f"/proc/{pid}/status").read_bytes()
            ):
                found.append(pid)
    return found


@pytest.fixture
def neighbour() -> Iterator[Callable[[Tree], list[str]]]:
    """Ask the neighbour all the time; what it found wrong is in the list."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def begin(tree: Tree) -> list[str]:
        wrong: list[str] = []

        def run() -> None:
            while not stop.wait(0.02):
                try:
                    status = tree.get(NEIGHBOUR).status
                    if status != 200:
                        wrong.append(f"status {status}")
                except (OSError, http.client.HTTPException) as error:
                    wrong.append(repr(error))

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return wrong

    yield begin
    stop.set()
    for thread in threads:
        thread.join()


def test_one_thing_after_the_other(plant: Plant, neighbour: Callable[[Tree], list[str]]) -> None:
    """Closed descriptors, junk in the scoreboard, a deadlock, children that are lost."""
    tree = start(plant)
    wrong = neighbour(tree)
    supervisor = tree.pids("vhost", "evil")[:2]
    for path in ("/descriptors", "/junk", "/ones", "/deadlock", "/lose"):
        do(tree, path)
        tree.wait_for(lambda: do(tree, "/") == 200, 20.0)
        assert sample(tree, "workers") >= 1, path  # its metrics can be read
    tree.wait_for(lambda: sample(tree, "strays_killed_total") >= 1, 20.0)
    tree.wait_for(lambda: sample(tree, "workers", ("state", "serving")) == 2, 20.0)
    assert tree.pids("vhost", "evil")[:2] == supervisor
    assert not wrong, wrong[:5]


def test_one_that_is_deaf_to_sigterm_is_killed(plant: Plant) -> None:
    tree = start(plant, "max_age = 1.0\nhard_age = 1.0\n", request_timeout=60.0)
    before = time.monotonic()
    assert do(tree, "/deaf") == 0
    tree.wait_for(lambda: sample(tree, "worker_signals_total", ("signal", "SIGKILL")) >= 1, 30.0)
    assert sample(tree, "worker_signals_total", ("signal", "SIGTERM")) >= 1
    assert time.monotonic() - before < 25.0
    tree.wait_for(lambda: do(tree, "/") == 200)


def test_a_fork_bomb_fills_its_own_limit_only_and_ends(
    plant: Plant, neighbour: Callable[[Tree], list[str]]
) -> None:
    tree = start(plant)
    wrong = neighbour(tree)
    most = [0]
    keeper_and_supervisor = tree.pids("vhost", "evil")[:2]
    do(tree, "/bomb")

    def over() -> bool:
        there = len(of_tenant(tree))
        most[0] = max(most[0], there)
        return there < 20 and do(tree, "/") == 200

    tree.wait_for(over, 60.0)
    assert 20 < most[0] <= 110, most
    assert tree.pids("vhost", "evil")[:2] == keeper_and_supervisor
    assert not wrong, wrong[:5]
    tree.wait_for(lambda: sample(tree, "workers", ("state", "serving")) == 2, 20.0)
