"""Containers are replaced and killed one at a time; the tree serves again by itself."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.compose import Deployment, running

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.timeout(600)]

#: For the others to find a container that has come back (s): their links try again after at most a few seconds.
BACK_WITHIN = 20.0
#: How long a tenant's queue keeps a connection (s), and the listener's own patience on top.
QUEUE_WITHIN = 20.0
REPLACEABLE = [
    "master",
    "umaster",
    "listener-http",
    "listener-metrics",
    "vhost-static",
    "vhost-fastcgi",
    "init",
]


@pytest.fixture(scope="module")
def own_tree() -> Iterator[Deployment]:
    """A tree of its own: the shared one's containers are never started again."""
    with running("replaced") as tree:
        yield tree


@pytest.mark.parametrize("service", REPLACEABLE)
def test_the_tree_serves_after_a_container_was_restarted(own_tree: Deployment, service: str) -> None:
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)
    own_tree.compose("restart", service)
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)
    own_tree.wait_for(lambda: own_tree.healthy(service), BACK_WITHIN)
    # Its metrics are back as well: it was given its socket anew.
    own_tree.wait_for(lambda: bool(own_tree.samples(service)), BACK_WITHIN)


@pytest.mark.parametrize("service", ["umaster", "vhost-static"])
def test_the_tree_serves_after_a_container_was_killed(own_tree: Deployment, service: str) -> None:
    """PID 1 dies and the whole container with it; the engine starts it again."""
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)
    before = own_tree.containers()[service]
    # Not by `docker kill`, which counts as a wish of the operator's that the restart policy respects.
    subprocess.run(["kill", "-KILL", str(before["State"]["Pid"])], check=True)
    deadline = time.monotonic() + BACK_WITHIN
    while own_tree.containers()[service]["RestartCount"] == before["RestartCount"]:
        assert time.monotonic() < deadline, "the engine has not started it again"
        time.sleep(0.2)
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)


def test_the_last_tenant_standing_is_no_neighbours_problem(own_tree: Deployment) -> None:
    """A tenant whose container is stopped gets 503 by the queue's age, its neighbour is served as ever."""
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)
    own_tree.compose("stop", "vhost-wsgi")
    try:
        started = time.monotonic()
        assert own_tree.get("static.localhost").status == 200
        assert time.monotonic() - started < 1
        assert own_tree.request("GET", "wsgi.localhost", "/", timeout=QUEUE_WITHIN).status == 503
        assert own_tree.get("static.localhost").status == 200
    finally:
        own_tree.compose("start", "vhost-wsgi")
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)


def test_an_init_that_was_killed_gets_its_sockets_back(own_tree: Deployment) -> None:
    """A new init in the same namespace is brought the sockets by those who hold them: no port is ever closed."""
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)
    own_tree.compose("kill", "init")
    assert own_tree.serves()
    own_tree.compose("start", "init")
    own_tree.wait_for(lambda: own_tree.healthy("init"), BACK_WITHIN)
    own_tree.wait_for(lambda: all(own_tree.samples(service) for service in own_tree.targets()), BACK_WITHIN)
    assert own_tree.serves()


def waiting(pid: int, port: int) -> int:
    """Return how many connections wait to be accepted from `port`, in the network namespace of `pid` (proc(5))."""
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].partition(":")[2], 16) == port and fields[3] == "0A":
            return int(fields[4].partition(":")[2], 16)
    return 0


@pytest.mark.parametrize("order", [("init", "listener-http"), ("listener-http", "init")])
def test_who_waits_is_served_although_init_and_listener_were_killed(
    own_tree: Deployment, order: tuple[str, str]
) -> None:
    """Both containers that hold the listening socket die at one moment; copies of it lie in the holder's pair."""
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)
    own_tree.wait_for(lambda: own_tree.healthy("init"), BACK_WITHIN)
    before = own_tree.containers()
    first = {service: before[service]["State"]["Pid"] for service in order}
    # The listener stands still, so that whoever connects waits in the queue.
    for process in own_tree.processes("listener-http"):
        os.kill(process.pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(8):
            client = stack.enter_context(own_tree.connect(BACK_WITHIN * 2))
            client.sendall(b"GET / HTTP/1.1\r\nHost: static.localhost\r\nConnection: close\r\n\r\n")
            clients.append(client)
        own_tree.wait_for(lambda: waiting(first["init"], 80) >= len(clients), BACK_WITHIN)
        for service in order:
            os.kill(first[service], signal.SIGKILL)
        answers = [read_all(client) for client in clients]
    assert [answer[:15] for answer in answers] == [b"HTTP/1.1 200 OK"] * len(clients)
    for service in order:
        assert own_tree.containers()[service]["State"]["Pid"] != first[service]
    own_tree.wait_for(own_tree.serves, BACK_WITHIN)
    own_tree.wait_for(lambda: own_tree.healthy("init"), BACK_WITHIN)


def read_all(client: socket.socket) -> bytes:
    answer = b""
    while data := client.recv(65_536):
        answer += data
    return answer
