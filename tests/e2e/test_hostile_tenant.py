"""A hostile tenant in the compose tree: every attempt of tests/hostile, made by the application of vhost-wsgi.

What it finds out is left in build/hostile-compose.json, a column for the matrix in SECURITY.md:
`cd tests && python -m hostile.matrix --column compose=../build/hostile-compose.json`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hostile import attempts
from hostile.attempts import ATTEMPTS
from hostile.stage import Outcomes
from hostile.test_tree import assail
from support.compose import Deployment, running
from support.images import TOP

pytestmark = [pytest.mark.docker, pytest.mark.root, pytest.mark.program("nsenter"), pytest.mark.timeout(600)]

#: What must not be reached: in the namespace that clients' connections belong to, on its loopback. It says who came.
TARGET = """
import socket, threading
tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(tcp.getsockname())
print(tcp.getsockname()[1], flush=True)
def echo():
    while True:
        data, client = udp.recvfrom(64)
        print("UDP", data, client, flush=True)
        udp.sendto(data, client)
threading.Thread(target=echo, daemon=True).start()
while True:
    print("TCP", tcp.accept()[1], flush=True)
"""
CONFIGURATION = """
[listen.http]
address = "0.0.0.0:80"
max_connections = 12000

[metrics]
address = "0.0.0.0"

[vhost.static]
hosts = ["static.localhost"]
uid = 20001
kind = "static"
root = "/srv/static"

[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "/srv/hostile"
application = "attempts:application"
writable = ["/tmp"]

[vhost.wsgi.pool]
max_workers = 1
"""
HOST = "wsgi.localhost"
#: What the tenant's container has that is not the tenant's, and what it must not have at all.
PLAN = {
    "sibling": 1,  # the keeper, in the container's numbers
    "files": [
        "/srv/static/index.html",
        "/etc/pyttpd/pyttpd.toml",
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/1/maps",
    ],
    "frozen": ["/", "/srv/hostile", "/etc", "/usr", "/run", "/run/health", "/run/pyttpd/vhost"],
    "sockets": [f"/run/pyttpd/{name}/sock" for name in ("init", "route")],
    "channels": [f"/run/pyttpd/{name}" for name in ("init", "master", "route", "vhost")],
}


@dataclass(frozen=True, slots=True)
class Assault:
    """What came of it: the attacker's word, and the target's."""

    outcomes: Outcomes
    visitors: bytes


@pytest.fixture(scope="module")
def hostile_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A tree whose application is the attacker."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "etc").mkdir()
    # The other tenants are there as well, and are what they always are.
    example = (TOP / "examples/compose/pyttpd.toml").read_text()
    (folder / "etc/pyttpd.toml").write_text(CONFIGURATION + example[example.index("[vhost.asgi]") :])
    (folder / "etc/pyttpd.toml").chmod(0o644)
    mounted = f"{Path(attempts.__file__)}:/srv/hostile/attempts.py:ro"
    (folder / "override.yaml").write_text(json.dumps({"services": {"vhost-wsgi": {"volumes": [mounted]}}}))
    variables = {
        "PYTTPD_CONFIG": str(folder / "etc"),
        "COMPOSE_FILE": f"{TOP}/compose.yaml:{folder}/override.yaml",
    }
    with running("hostile", **variables) as tree:
        yield tree


@pytest.fixture(scope="module")
def assault(hostile_tree: Deployment) -> Assault:
    namespace = f"--net=/proc/{hostile_tree.processes('net')[0].pid}/ns/net"
    target = subprocess.Popen(["nsenter", namespace, sys.executable, "-c", TARGET], stdout=subprocess.PIPE)
    with target:
        assert target.stdout is not None
        try:
            port = int(target.stdout.readline())
            outcomes = assail(
                lambda method, path, body: hostile_tree.request(method, HOST, path, body).body,
                {**PLAN, "target": ["127.0.0.1", port]},
            )
        finally:
            target.kill()
        visitors = target.stdout.read()
    (TOP / "build").mkdir(exist_ok=True)
    (TOP / "build/hostile-compose.json").write_text(json.dumps(outcomes, indent=1))
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
    assert wanted <= tried, {name: assault.outcomes.get(name) for name in wanted - tried}


def test_the_neighbour_is_none_the_worse(hostile_tree: Deployment, assault: Assault) -> None:
    assert assault.outcomes
    assert hostile_tree.get("static.localhost").status == 200
    assert hostile_tree.get(HOST, "/outcome").status == 200
    assert all(container["RestartCount"] == 0 for container in hostile_tree.containers().values())
