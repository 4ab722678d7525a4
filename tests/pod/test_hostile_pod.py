"""A hostile tenant in the pod: every attempt of tests/hostile, where all containers share one network.

The first lock, no network of one's own, isn't there in a pod; the third, the NetworkPolicy, podman hasn't. So what is
refused here the second alone refuses: Landlock and seccomp. The outcome is left in build/hostile-pod.json, a column of
the matrix in SECURITY.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from pyttpd.roles import Channel
from pyttpd.service import OWN_DIRECTORY

from e2e.test_hostile_tenant import PLAN, TARGET
from hostile.attempts import ATTEMPTS
from hostile.stage import Outcomes
from hostile.test_tree import assail
from support.images import TOP
from support.pod import Pod

pytestmark = [
    pytest.mark.docker,
    pytest.mark.root,
    pytest.mark.program("podman", "nsenter", "unshare", "runc"),
    pytest.mark.timeout(600),
]

HOST = "evil.localhost"
ABSTRACT = "a-neighbour-s"
#: Another tenant's abstract socket: these belong to the network namespace, and so to the whole pod.
NEIGHBOUR = f"""
import socket, threading
abstract = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
abstract.bind("\\0{ABSTRACT}")
abstract.listen()
def greet():
    while True:
        print("UNIX", abstract.accept(), flush=True)
threading.Thread(target=greet, daemon=True).start()
"""
#: Compose's, with the places of a pod's channels: each in a directory of its binder's in the volume.
POD_PLAN = PLAN | {
    "frozen": ["/", "/srv/evil", "/etc", "/usr", "/run", "/run/health", "/run/pyttpd/vhost"],
    "files": [
        "/srv/static/index.html",
        "/etc/pyttpd/pyttpd.toml",
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/1/maps",
    ],
    "sockets": [f"/run/pyttpd/{name}/{OWN_DIRECTORY}/sock" for name in ("init", "route")],
    "channels": [
        path
        for one in Channel
        for path in (f"/run/pyttpd/{one.value}", f"/run/pyttpd/{one.value}/{OWN_DIRECTORY}")
    ],
    "abstract": [ABSTRACT],
}


@dataclass(frozen=True, slots=True)
class Assault:
    """What came of it: the attacker's word, and the target's."""

    outcomes: Outcomes
    visitors: bytes


@contextmanager
def target(pod: Pod) -> Iterator[subprocess.Popen[bytes]]:
    command = [*pod.within(), sys.executable, "-c", NEIGHBOUR + TARGET]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as found:
        try:
            yield found
        finally:
            found.kill()


@pytest.fixture(scope="module")
def assault(shared_pod: Pod) -> Assault:
    with target(shared_pod) as listening:
        assert listening.stdout is not None
        port = int(listening.stdout.readline())
        outcomes = assail(
            lambda method, path, body: shared_pod.request(method, HOST, path, body).body,
            {**POD_PLAN, "target": ["127.0.0.1", port]},
        )
        listening.kill()
        visitors = listening.stdout.read()
    (TOP / "build").mkdir(exist_ok=True)
    (TOP / "build/hostile-pod.json").write_text(json.dumps(outcomes, indent=1))
    return Assault(outcomes, visitors)


def test_no_attempt_succeeds(assault: Assault) -> None:
    succeeded = {
        name: one["detail"] for name, one in assault.outcomes.items() if one["outcome"] == "SUCCEEDED"
    }
    assert succeeded == {}
    assert assault.visitors == b""


def test_each_way_to_the_network_was_tried(assault: Assault) -> None:
    tried = {name for name, one in assault.outcomes.items() if one["outcome"] == "refused"}
    # A tenant's worker holds no listening socket.
    wanted = {a.name for a in ATTEMPTS.values() if a.network and not a.name.startswith("listening:")}
    wanted.add("sockets: another tenant's, abstract")
    assert wanted <= tried, {name: assault.outcomes.get(name) for name in wanted - tried}


def test_the_target_can_be_reached_by_who_is_not_confined(shared_pod: Pod) -> None:
    """Otherwise the test above would prove nothing."""
    reach = f"""
import socket, sys
with socket.socket(socket.AF_UNIX) as abstract, socket.create_connection(("127.0.0.1", int(sys.argv[1]))):
    abstract.connect("\\0{ABSTRACT}")
"""
    with target(shared_pod) as listening:
        assert listening.stdout is not None
        port = listening.stdout.readline().decode()
        uid = ["setpriv", "--reuid=20003", "--regid=20003", "--clear-groups", "--bounding-set=-all"]
        subprocess.run([*shared_pod.within(), *uid, "/usr/bin/python3", "-c", reach, port], check=True)
        assert {listening.stdout.readline().split()[0] for _ in range(2)} == {b"TCP", b"UNIX"}


def test_the_neighbours_are_none_the_worse(shared_pod: Pod, assault: Assault) -> None:
    assert assault.outcomes
    assert shared_pod.serves()
    assert shared_pod.get(HOST, "/outcome").status == 200
    before = dict(shared_pod.pids)
    shared_pod.refresh()
    assert shared_pod.pids == before, "a container was started again"
    # Whoever connected to a channel without saying who it is was counted; nobody else was at fault.
    assert {fault.partition(":")[0] for fault in shared_pod.faults()} <= {"master", "umaster"}
