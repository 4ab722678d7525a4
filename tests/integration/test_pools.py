"""Pools of a running tree: on demand, growing, retiring under load, crash loops, what happens when members are killed.

The soak is 12 seconds here; PYTTPD_SOAK=60 (`make soak`) makes it as long as one likes, and prints what it found.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.leaks import descendants
from support.tree import ANSWER_WITHIN, Key, Tree

Plant = Callable[..., Tree]

SOAK = float(os.environ.get("PYTTPD_SOAK", "12"))
HOST = "wsgi.localhost"
TENANT = """
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
writable = ["data"]
[vhost.wsgi.pool]
"""
NEIGHBOUR = """
[vhost.neighbour]
hosts = ["neighbour.localhost"]
uid = 20003
kind = "static"
root = "site"
"""
#: Says its pid; /sleep?S sleeps; /die?STATUS ends the process; /leak?BYTES keeps them.
APPLICATION = """
import os, time
kept = []
def application(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/sleep":
        time.sleep(float(query))
    elif path == "/die":
        os._exit(int(query))
    elif path == "/leak":
        kept.append(b"x" * int(query))
    elif path == "/spin":
        until = time.process_time() + float(query)
        while time.process_time() < until:
            pass
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def start(
    plant: Plant,
    pool: str,
    application: str = APPLICATION,
    *,
    hosts: tuple[str, ...] = (HOST,),
    **options: object,
) -> Tree:
    return plant(
        tenants=TENANT + pool + options.pop("more", ""),  # type: ignore[operator]
        hosts=hosts,
        files={"application/app.py": application, "data/nothing": ""},
        **options,
    )


def sample(tree: Tree, name: str, *labels: tuple[str, str], vhost: str = "wsgi") -> float:
    """A number of the tenant's, 0 if there is none yet."""
    key: Key = (f"pyttpd_vhost_{name}", *sorted([("vhost", vhost), *labels]))
    return tree.samples("vhost", vhost).get(key, 0.0)


def exits(tree: Tree, reason: str) -> float:
    return sample(tree, "worker_exits_total", ("reason", reason))


def serving(tree: Tree) -> float:
    return sample(tree, "workers", ("state", "serving"))


def named(tree: Tree, name: str) -> list[int]:
    """Processes of the tree whose name (ps -o comm) begins so: "p:wsgi" is the prototype, "w" a worker."""
    found = []
    for pid in descendants(tree.process.pid):
        with contextlib.suppress(OSError):
            if re.match(name, Path(f"/proc/{pid}/comm").read_text()):
                found.append(pid)
    return found


def worker_pids(tree: Tree) -> list[int]:
    return named(tree, r"w\d+:wsgi")


def zombies(tree: Tree) -> list[int]:
    found = []
    for pid in descendants(tree.process.pid):
        with contextlib.suppress(OSError, IndexError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                found.append(pid)
    return found


# ---- modes ----


def test_on_demand_the_first_connection_waits_and_the_last_process_goes(plant: Plant) -> None:
    tree = start(plant, 'mode = "ondemand"\nmax_workers = 2\nidle_timeout = 0.5\n')
    tree.wait_for(lambda: not named(tree, "[pw].*:wsgi"))  # what start() has asked is over, and it sleeps
    started = sample(tree, "worker_starts_total")
    assert sample(tree, "workers", ("state", "serving")) == 0
    answer = tree.get(HOST)
    assert answer.status == 200
    assert sample(tree, "worker_starts_total") >= started + 1
    tree.wait_for(lambda: not named(tree, "[pw].*:wsgi"))
    assert exits(tree, "idle") >= 2
    refusals = [key for key in tree.samples("umaster") if key[0] == "pyttpd_umaster_refusals_total"]
    assert not [key for key in refusals if ("vhost", "wsgi") in key], refusals


def test_nobody_meets_a_cold_tenant(plant: Plant) -> None:
    """Workers are announced when all are there."""
    slow = "import time\ntime.sleep(0.5)\n" + APPLICATION
    tree = start(plant, "max_workers = 3\n", slow)
    assert serving(tree) == 3


def test_a_dynamic_pool_grows_under_load_and_says_when_it_may_not(plant: Plant) -> None:
    tree = start(plant, 'mode = "dynamic"\nmax_workers = 3\nmax_spare = 1\nidle_timeout = 0.5\n')
    assert serving(tree) == 1
    threads = []
    for size in (2, 3, 3):  # each keeps one worker busy, and another one comes, up to max_workers
        threads.append(threading.Thread(target=tree.get, args=(HOST, "/sleep?4")))
        threads[-1].start()
        tree.wait_for(lambda size=size: serving(tree) == size)  # type: ignore[misc]
    for thread in threads:
        thread.join()
    tree.wait_for(lambda: serving(tree) == 1, 20.0)
    assert exits(tree, "idle") == 2


# ---- departures ----


def test_a_leak_is_found_from_outside(plant: Plant) -> None:
    tree = start(plant, "max_workers = 1\nmax_memory = 16777216\n")
    first = tree.get(HOST).body
    for _ in range(24):
        assert tree.get(HOST, "/leak?1048576").status == 200
    tree.wait_for(lambda: exits(tree, "memory") == 1)
    assert tree.get(HOST).body != first


def test_processor_time_is_a_limit(plant: Plant) -> None:
    tree = start(plant, "max_workers = 1\nmax_cpu = 0.5\n")
    first = tree.get(HOST).body
    assert tree.get(HOST, "/spin?0.7").body == first
    tree.wait_for(lambda: exits(tree, "cpu") == 1)
    assert tree.get(HOST).body != first


# ---- crash loops ----


@pytest.mark.parametrize("mode", ["static", "ondemand"])
def test_an_application_that_does_not_load_is_refused_at_once_and_comes_back(plant: Plant, mode: str) -> None:
    broken = "import os\nif not os.path.exists('data/well'):\n    raise RuntimeError('not \\x1b[31mwell')\n"
    pool = f'mode = "{mode}"\nmax_workers = 1\n'
    tree = start(plant, pool, broken + APPLICATION, hosts=(), more=NEIGHBOUR)
    tree.expect("application", "prototype ended")
    tree.wait_for(lambda: tree.get(HOST).status == 503)  # on demand, it is tried when somebody comes
    tree.wait_for(lambda: sample(tree, "application_failed") == 1)
    tree.wait_for(lambda: tree.get("neighbour.localhost").status == 200)
    begun = time.monotonic()
    answer = tree.get(HOST)
    assert (answer.status, answer.headers.get("retry-after")) == (503, "1")
    assert time.monotonic() - begun < 5.0  # queue.timeout is 10 s
    text = notes(tree)
    assert "RuntimeError: not ?[31mwell" in text and "app.py" in text
    assert "\x1b" not in text
    (tree.folder / "application/data").mkdir(exist_ok=True)
    (tree.folder / "application/data/well").touch()
    tree.wait_for(lambda: tree.get(HOST).status == 200, 20.0)
    tree.wait_for(lambda: sample(tree, "application_failed") == 0)


def notes(tree: Tree) -> str:
    """The lines of the tenant's metrics that are for our own tools."""
    address, _, path = tree.metrics_url("vhost", "wsgi").removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=ANSWER_WITHIN)
    with contextlib.closing(connection):
        connection.request("GET", f"/{path}")
        text = connection.getresponse().read().decode()
    return "\n".join(line for line in text.splitlines() if line.startswith("# pyttpd "))


def test_workers_that_die_at_once_are_a_crash_loop(plant: Plant) -> None:
    dying = APPLICATION + "\nimport threading\nif os.path.exists('data/ill'): threading.Thread.start = None\n"
    tree = start(plant, "max_workers = 1\n", dying)
    tree.expect("worker ended", "application", "prototype ended")
    (tree.folder / "application/data").mkdir(exist_ok=True)
    ill = tree.folder / "application/data/ill"
    ill.touch()
    for pid in named(tree, "p:wsgi"):  # the next prototype imports an application that workers die of
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(http.client.HTTPException, OSError):
        tree.get(HOST, "/die?7")
    tree.wait_for(lambda: sample(tree, "application_failed") == 1, 20.0)
    tree.wait_for(lambda: tree.get(HOST).status == 503)
    assert "NoneType" in notes(tree)
    ill.unlink()
    for pid in named(tree, "p:wsgi"):
        os.kill(pid, signal.SIGKILL)
    tree.wait_for(lambda: tree.get(HOST).status == 200, 20.0)


# ---- kills ----


def test_who_is_killed_takes_only_its_own_connections_along(plant: Plant) -> None:
    """kill -9 of a worker, then of the prototype, with a connection to each of three workers open."""
    tree = start(plant, "max_workers = 3\n")
    tree.expect("worker ended", "prototype ended")
    held: dict[int, list[http.client.HTTPConnection]] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            connection = http.client.HTTPConnection("127.0.0.1", tree.port, timeout=ANSWER_WITHIN)
            stack.enter_context(contextlib.closing(connection))
            held.setdefault(ask(connection), []).append(connection)
        assert len(held) == 3, held
        victim = next(iter(held))
        os.kill(victim, signal.SIGKILL)
        for pid in named(tree, "p:wsgi"):
            os.kill(pid, signal.SIGKILL)
        lost, kept = [], []
        for pid, connections in held.items():
            for connection in connections:
                try:
                    assert ask(connection) in held
                    kept.append(pid)
                except (http.client.HTTPException, OSError):
                    lost.append(pid)
        assert set(lost) == {victim} and len(lost) == len(held[victim]), (lost, kept)
        assert victim not in kept
    tree.wait_for(lambda: serving(tree) == 3)
    assert victim not in worker_pids(tree)


def ask(connection: http.client.HTTPConnection, path: str = "/") -> int:
    connection.request("GET", path, headers={"Host": HOST})
    return int(connection.getresponse().read())


# ---- the soak ----


class Client(threading.Thread):
    """A keep-alive client that counts every failure: nothing is asked twice."""

    def __init__(self, tree: Tree, stop: threading.Event) -> None:
        super().__init__()
        self._tree = tree
        self._stop_event = stop
        self.done = 0
        self.pids: set[int] = set()
        self.failures: list[str] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._tree.port, timeout=ANSWER_WITHIN)
        with contextlib.closing(connection):
            while not self._stop_event.is_set():
                try:
                    self.pids.add(ask(connection))
                    self.done += 1
                except (OSError, http.client.HTTPException, ValueError) as error:
                    self.failures.append(repr(error))
                    connection.close()


@pytest.fixture
def clients() -> Iterator[Callable[[Tree, int], list[Client]]]:
    stop = threading.Event()
    running: list[Client] = []

    def begin(tree: Tree, count: int) -> list[Client]:
        running.extend(Client(tree, stop) for _ in range(count))
        for client in running:
            client.start()
        return running

    yield begin
    stop.set()
    for client in running:
        client.join()


def descriptors(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += len(os.listdir(f"/proc/{pid}/fd"))
    return total


def resident(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    return total


@pytest.mark.program("wrk")
def test_a_soak_in_which_every_worker_dies_many_times(
    plant: Plant, clients: Callable[[Tree, int], list[Client]]
) -> None:
    """max_requests 500 and an age of 5 s under load: no request fails, no connection is reset, nothing is left."""
    tree = start(plant, "max_workers = 2\nmax_requests = 500\nmax_age = 5.0\n")
    wrk = shutil.which("wrk")
    assert wrk is not None
    command = [wrk, "-t1", "-c8", f"-d{SOAK:g}s", "--timeout", "10s", "-H", f"Host: {HOST}"]
    staying = [*tree.pids("vhost", "wsgi"), *tree.pids("umaster"), *tree.pids("listener")]
    staying = [pid for pid in staying if pid not in worker_pids(tree)]
    begun = time.monotonic()
    with subprocess.Popen(
        [*command, f"http://127.0.0.1:{tree.port}/"], stdout=subprocess.PIPE, text=True
    ) as process:
        running = clients(tree, 2)
        tree.wait_for(lambda: exits(tree, "requests") + exits(tree, "age") >= 4, 30.0)
        before = (descriptors(staying), resident(staying))
        assert process.stdout is not None
        said = process.stdout.read()
    after = (descriptors(staying), resident(staying))
    seconds = time.monotonic() - begun
    failures = [failure for client in running for failure in client.failures]
    assert not failures, failures[:5]
    assert "Non-2xx" not in said and "Socket errors" not in said, said
    replaced = sum(exits(tree, reason) for reason in ("requests", "age"))
    rate = re.search(r"Requests/sec: *([\d.]+)", said)
    print(
        f"{seconds:.0f} s: {replaced:.0f} workers replaced, {rate and rate[1]} requests/s; "
        f"descriptors and memory of those that stay: {before} then {after}"
    )
    assert replaced >= SOAK / 2, said
    assert exits(tree, "crashed") + exits(tree, "left") + exits(tree, "silent") == 0
    assert len(set.union(*[client.pids for client in running])) > 4
    tree.wait_for(lambda: serving(tree) == 2)
    tree.wait_for(lambda: not zombies(tree))
    # A little is opened for a replacement that is on its way at the moment of counting; a leak would be hundreds.
    assert after[0] - before[0] < 40, (before, after)
    assert after[1] - before[1] < 16 << 20, (before, after)
