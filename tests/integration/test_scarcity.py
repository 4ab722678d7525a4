"""What a tree does with too little: few descriptors for each of its processes; a disk without room for its logs."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.tree import METRICS_PORTS, TENANTS, Tree, free_port, free_ports, plain_environment

Plant = Callable[..., Tree]
#: Roles themselves need some thirty, and keep as many in reserve.
NOFILE = 64
KEPT = {"Connection": "keep-alive"}
#: Larger than what a full pool logs when it starts, and smaller than what one that flaps logs in a second.
QUIET = 12_000
BIG = """
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
access_log = "off"
[vhost.wsgi.pool]
mode = "static"
max_workers = 40
"""


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.root
def test_a_tree_with_few_descriptors_works_and_says_so(plant: Plant, few_descriptors: None) -> None:
    tree = plant()
    for _ in range(100):
        for host in ("static.localhost", "wsgi.localhost"):
            assert tree.get(host).status == 200
    for role in ("umaster", "listener.http", "vhost.wsgi"):
        tree.wait_for(lambda role=role: f" {role}[" in tree.log() and "few descriptors" in tree.log())  # type: ignore[misc]
    assert tree.log().count("few descriptors") >= 3
    assert tree.samples("umaster")["pyttpd_umaster_descriptors_limit",] < NOFILE


def enough_for_us() -> None:
    """The tree has its descriptors by now; clients need more."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))


def nobody_is_closed(tree: Tree) -> None:
    """Who had to wait may have been offered again: of a packet of many offers umaster gives back what it can't hold."""
    listener = tree.samples("listener")
    assert not listener["pyttpd_listener_dropped_total",]
    assert not [value for (name, *_), value in listener.items() if "evicted_total" in name and value]
    tree.expect("offered again")


def ask(tree: Tree, host: str, times: int, within: float = 60.0) -> Counter[int]:
    """Ask so often, on a connection each; return how often each status came. Whatever isn't an answer raises."""
    seen: Counter[int] = Counter()
    for _ in range(times):
        with tree.connect(within) as client:
            client.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while piece := client.recv(65536):
                answer += piece
        seen[int(answer.split(b" ", 2)[1])] += 1
    return seen


def crowd(tree: Tree, host: str, clients: int, times: int) -> Counter[int]:
    """The same for many clients at once."""
    with ThreadPoolExecutor(clients) as pool:
        return sum(pool.map(lambda _: ask(tree, host, times), range(clients)), Counter[int]())


@pytest.mark.root
def test_with_few_descriptors_clients_wait_and_none_is_refused(plant: Plant, few_descriptors: None) -> None:
    """As with any server: who is too many waits in the kernel's queue, and no listener has closed any."""
    tree = plant()
    tree.expect("offered again")  # what comes in a packet behind the last for which there was room
    enough_for_us()
    assert crowd(tree, "static.localhost", 20, 20) == {200: 400}
    assert crowd(tree, "wsgi.localhost", 400, 2) == {200: 800}
    assert tree.samples("listener")["pyttpd_listener_full_total",] > 0
    nobody_is_closed(tree)
    assert [found for found in tree.faults() if "_reoffered_" not in found] == []


def converse(tree: Tree, host: str, times: int) -> Counter[int]:
    """Ask so often, on one connection for as long as the server keeps it. One that closes unannounced raises."""
    seen: Counter[int] = Counter()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", tree.port, timeout=60.0)) as connection:
        for _ in range(times):
            connection.request("GET", "/", headers={"Host": host})
            answer = connection.getresponse()
            answer.read()
            seen[answer.status] += 1
    return seen


@pytest.mark.root
def test_with_few_descriptors_kept_connections_take_turns(plant: Plant, few_descriptors: None) -> None:
    """More clients than the workers can keep, and none is idle: whoever must go is told so in an answer."""
    tree = plant()
    enough_for_us()
    with ThreadPoolExecutor(80) as pool:
        seen = sum(pool.map(lambda _: converse(tree, "wsgi.localhost", 20), range(80)), Counter[int]())
    assert seen == {200: 1600}
    nobody_is_closed(tree)
    # That is over with the rush: the next ones keep theirs.
    tree.wait_for(
        lambda: "connection" not in tree.request("GET", "wsgi.localhost", "/", headers=KEPT).headers
    )


HANGING = """
def application(environ, start_response):
    with open("gate"):
        pass
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
NEIGHBOUR = """
[vhost.hanging]
hosts = ["hanging.localhost"]
uid = 20003
kind = "wsgi"
root = "hanging"
application = "app:application"
[vhost.hanging.pool]
request_timeout = 0
"""


@pytest.mark.root
def test_with_few_descriptors_one_that_hangs_is_refused_and_its_neighbour_served(
    plant: Plant, few_descriptors: None
) -> None:
    """A hundred clients wait for a tenant that answers nobody, and come again when they are refused."""
    tree = plant(tenants=TENANTS + NEIGHBOUR, files={"hanging/app.py": HANGING})
    tree.expect("slow request")
    gate = tree.folder / "hanging" / "gate"
    os.mkfifo(gate, 0o644)
    enough_for_us()
    refused = threading.Semaphore(0)
    over = threading.Event()

    def insist(_: int) -> Counter[int]:
        seen: Counter[int] = Counter()
        while not over.is_set():
            seen += ask(tree, "hanging.localhost", 1)
            refused.release()
        return seen

    with ThreadPoolExecutor(100) as pool:
        insisting = [pool.submit(insist, number) for number in range(100)]
        try:
            for _ in range(100):
                assert refused.acquire(timeout=60.0)
            assert crowd(tree, "wsgi.localhost", 20, 10) == {200: 200}
            assert crowd(tree, "static.localhost", 20, 10) == {200: 200}
        finally:
            over.set()
            with contextlib.closing(
                os.fdopen(os.open(gate, os.O_RDWR))
            ):  # from now on everybody goes through
                seen = sum((each.result(60.0) for each in insisting), Counter[int]())
    assert set(seen) == {200, 503}
    umaster = tree.samples("umaster")
    assert umaster["pyttpd_umaster_refusals_total", ("reason", "over-share"), ("vhost", "hanging")] > 0
    assert not [key for key in umaster if "pyttpd_umaster_refusals_total" in key and ("vhost", "wsgi") in key]


#: As many as there are descriptors for, two each; compose gives a tree as many.
MANY = 10_000


@pytest.fixture
def many() -> Iterator[int]:
    """As many descriptors as this machine allows, for us and the tree; returns how many clients there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MANY if hard == resource.RLIM_INFINITY else min(2 * MANY, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield wanted // 2
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.root
def test_ten_thousand_who_ask_at_one_instant_are_all_answered(plant: Plant, many: int) -> None:
    """They connect first, and then all say what they want. How long the last one waits is the machine's affair."""
    patience = "[vhost.wsgi.queue]\ntimeout = 300\n"
    tree = plant(tenants=TENANTS + patience, listen="head_timeout = 300\nhandover_timeout = 300")
    with contextlib.ExitStack() as clients:
        waiting: dict[int, socket.socket] = {}
        for _ in range(many):
            client = clients.enter_context(tree.connect(60.0))
            waiting[client.fileno()] = client
        for client in waiting.values():
            client.sendall(b"GET / HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n")
        poll = clients.enter_context(select.epoll())
        for number in waiting:
            poll.register(number, select.EPOLLIN)
        seen: Counter[bytes] = Counter()
        deadline = time.monotonic() + 120.0
        while waiting and time.monotonic() < deadline:
            for number, _ in poll.poll(1.0):
                client = waiting.pop(number)
                poll.unregister(number)
                seen[client.recv(12)] += 1
    assert seen == {b"HTTP/1.1 200": many}


@pytest.mark.root
def test_a_pool_that_is_too_large_for_few_descriptors_is_as_large_as_they_allow(
    plant: Plant, few_descriptors: None
) -> None:
    """Neither its supervisor nor umaster flaps: what has no room is told of once, and tried again after a while."""
    tree = plant(tenants=BIG, hosts=("wsgi.localhost",))
    tree.expect("no descriptor is left", "no room for another worker")
    tree.wait_for(lambda: "no descriptor is left" in tree.log() or "no room for another" in tree.log())
    for _ in range(200):
        assert tree.get("wsgi.localhost").status == 200
    assert len(tree.log()) < QUIET, tree.log()[-2000:]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few lines. Below /tmp its tenant couldn't see it."""
    folder = Path("/srv") / f"pyttpd-full-{os.getpid()}"
    folder.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,mode=1777", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


@pytest.mark.root
def test_a_full_runtime_dir_is_said_and_nothing_is_left(full_disk: Path, tmp_path: Path) -> None:
    full_disk.chmod(0o755)
    with contextlib.suppress(OSError), open(full_disk / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))
    config = tmp_path / "pyttpd.toml"
    config.write_text(
        f'runtime_dir = "{full_disk}"\n[metrics]\nbase_port = {free_ports(METRICS_PORTS)}\n'
        f'[listen.http]\naddress = "127.0.0.1:{free_port()}"\n'
        f'[vhost.static]\nhosts = ["static.localhost"]\nuid = 20001\nkind = "static"\nroot = "{tmp_path}"\n'
    )
    command = [sys.executable, "-I", "-m", "pyttpd_init", "--plain", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=plain_environment())
    assert done.returncode == 2, done.stderr
    assert "cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.root
def test_a_full_disk_for_logs_costs_lines_and_no_answer(plant: Plant, full_disk: Path) -> None:
    tenants = BIG.replace('access_log = "off"', f'access_log_file = "{full_disk}/access.log"')
    tree = plant(tenants=tenants.replace("= 40", "= 2"), hosts=("wsgi.localhost",))
    tree.expect("access.log")
    for _ in range(300):
        assert tree.get("wsgi.localhost").status == 200
    assert (full_disk / "access.log").stat().st_size <= 8192
    tree.wait_for(
        lambda: any(
            value
            for (name, *_), value in tree.samples("vhost", "wsgi").items()
            if "lost" in name and "lines" in name
        )
    )
