"""The compose tree for a test: under its own project name, on free ports, taken down again with nothing left.

What is asked of containers is asked from outside, of this machine's /proc: what a process says of itself is no proof.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.images import TOP
from support.tree import Answer, Key, free_port, free_ports

TAG = "test"
#: For the images to be built where they aren't yet, and all containers to become healthy (s).
UP_WITHIN = 400.0
#: An idle tree stops within 3 s; the engine needs time of its own for thirteen containers.
DOWN_WITHIN = 30.0
ANSWER_WITHIN = 10.0
#: Consecutive ports: init to the first listener, and the tenants' metrics listener with the tenants.
METRICS_PORTS, TENANT_METRICS_PORTS = 4, 2


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a container, from this machine's /proc."""

    pid: int
    status: dict[str, str]

    @classmethod
    def of(cls, pid: int) -> Process:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return cls(pid, {name: value.strip() for name, _, value in (line.partition(":") for line in lines)})

    @classmethod
    def tree(cls, first: int) -> list[Process]:
        """Return process `first` and all below it."""
        found, todo = [], [first]
        while todo:
            pid = todo.pop(0)
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append(cls.of(pid))
                for task in Path(f"/proc/{pid}/task").glob("*/children"):
                    todo.extend(map(int, task.read_text().split()))
        return found

    def ids(self, what: str) -> set[int]:
        """Return the real, effective, saved and file system id of `what` (Uid, Gid), as a set."""
        return set(map(int, self.status[what].split()))

    def capabilities(self, which: str) -> int:
        """Return one of the sets CapInh, CapPrm, CapEff, CapBnd, CapAmb as a number of bits."""
        return int(self.status[which], 16)

    def namespace(self, kind: str) -> str:
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def interfaces(self) -> set[str]:
        """Return the names of the network interfaces that the process sees."""
        return set(re.findall(r"^\s*(\S+):", Path(f"/proc/{self.pid}/net/dev").read_text(), re.MULTILINE))

    def command(self) -> list[str]:
        return Path(f"/proc/{self.pid}/cmdline").read_text().rstrip("\0").split("\0")


#: Tenants whose workers keep Unix connections to the application's processes.
KEEPING = ("vhost-fastcgi", "vhost-handoff")


def unix_sockets(pid: int) -> set[str]:
    """Return the Unix sockets of a process's network namespace, as links in /proc name them."""
    lines = Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]
    return {f"socket:[{line.split()[6]}]" for line in lines}


@dataclass(slots=True)
class Deployment:
    """A running compose tree."""

    project: str
    port: int
    metrics_port: int
    tenant_metrics_port: int
    environment: dict[str, str] = field(default_factory=dict)

    def compose(self, *arguments: str, check: bool = True, timeout: float = 120.0) -> str:
        """Run `docker compose` on this project and return what it printed to standard output."""
        command = ["docker", "compose", "--project-name", self.project, *arguments]
        done = subprocess.run(
            command, cwd=TOP, env=self.environment, capture_output=True, text=True, timeout=timeout
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}\n{self.logs()[-6000:]}"
            )
        return done.stdout

    @staticmethod
    def docker(*arguments: str) -> str:
        """Run `docker` and return what it printed to standard output."""
        return subprocess.run(
            ["docker", *arguments], capture_output=True, text=True, check=True, timeout=30
        ).stdout

    def logs(self, service: str = "") -> str:
        """Return what all containers, or one service's, have logged, each line with its container's name."""
        names = [service] if service else []
        command = ["docker", "compose", "--project-name", self.project, "logs", "--no-color", *names]
        done = subprocess.run(
            command, cwd=TOP, env=self.environment, capture_output=True, text=True, timeout=30
        )
        # Compose moves a cursor even where there is no terminal.
        return done.stdout.replace("\x1b[2K", "")

    def services(self) -> list[str]:
        return sorted(self.compose("config", "--services").split())

    def containers(self) -> dict[str, dict[str, Any]]:
        """Return what the engine knows about each service's container, by service."""
        ids = self.compose("ps", "--all", "--quiet").split()
        found = json.loads(
            subprocess.run(["docker", "inspect", *ids], capture_output=True, check=True).stdout
        )
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in found}

    def healthy(self, service: str) -> bool:
        """Return whether the engine's last health check of a service's container was good."""
        return bool(self.containers()[service]["State"]["Health"]["Status"] == "healthy")

    def processes(self, service: str) -> list[Process]:
        """Return all processes of a service's container, its PID 1 first."""
        return Process.tree(self.containers()[service]["State"]["Pid"])

    def descriptors(self) -> dict[str, int]:
        """Return how many descriptors all processes of each service have open. Root only.

        Without what is kept on purpose, as many as there may be: `vhost-static` keeps the files that it has served, and
        the workers of KEEPING their connections to the application.
        """
        found = {}
        for service in self.containers():
            processes = self.processes(service)
            own = unix_sockets(processes[0].pid) if service in KEEPING else set()
            found[service] = sum(
                not (service == "vhost-static" and os.path.isfile(fd)) and os.readlink(fd) not in own
                for process in processes
                for fd in Path(f"/proc/{process.pid}/fd").iterdir()
            )
        return found

    # ---- asking it --------------------------------------------------------------------------------------------------

    def connect(self, timeout: float = ANSWER_WITHIN) -> socket.socket:
        """Return a new connection to the published HTTP port. The caller closes it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def client(self, port: int, timeout: float) -> http.client.HTTPConnection:
        """Return a client of one of the published ports."""
        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def within(self) -> list[str]:
        """Return what has to stand in front of a program that is to reach the tree."""
        return []

    def request(
        self,
        method: str,
        host: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        port: int = 0,
        timeout: float = ANSWER_WITHIN,
    ) -> Answer:
        """Return the answer to one request on a connection of its own."""
        connection = self.client(port or self.port, timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Host": host, "Connection": "close"} | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, host: str, path: str = "/") -> Answer:
        return self.request("GET", host, path)

    def curl(self, url: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Ask as a person would. `url` has no port: ours is put in, and every name is this machine."""
        scheme, host, path = re.fullmatch(r"(\w+)://([^/]+)(/.*)", url).groups()  # type: ignore[union-attr]
        resolve = f"{host}:{self.port}:127.0.0.1"
        command = ["curl", "-sS", "--max-time", "20", "--resolve", resolve, *arguments]
        return subprocess.run(
            [*self.within(), *command, f"{scheme}://{host}:{self.port}{path}"],
            capture_output=True,
            timeout=30,
        )

    def tenants(self) -> tuple[str, ...]:
        """Return the names of the tenants; each answers for NAME.localhost."""
        return ("static", "wsgi", "asgi", "cgi", "fastcgi", "scgi", "handoff")

    def targets(self) -> dict[str, tuple[str, str]]:
        """Return the address and path of everybody's metrics, by the name of the compose service."""
        first, tenants = self.metrics_port, self.tenant_metrics_port
        return {
            "init": (f"127.0.0.1:{first}", "/metrics"),
            "master": (f"127.0.0.1:{first + 1}", "/metrics"),
            "umaster": (f"127.0.0.1:{first + 2}", "/metrics"),
            "listener-http": (f"127.0.0.1:{first + 3}", "/metrics"),
            "listener-metrics": (f"127.0.0.1:{tenants}", "/metrics"),
            **{f"vhost-{name}": (f"127.0.0.1:{tenants + 1}", f"/metrics/{name}") for name in self.tenants()},
        }

    def samples(self, service: str) -> dict[Key, float]:
        """Return all samples of a service's metrics: (name, (label, value), ...) in the order of labels, to value."""
        from prometheus_client.parser import text_string_to_metric_families

        address, path = self.targets()[service]
        answer = self.request("GET", address, path, port=int(address.rpartition(":")[2]))
        assert answer.status == 200, f"{service}: {answer.status} {answer.body[:200]!r}"
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }

    def faults(self) -> list[str]:
        """Return the counters that should be zero in a tree where nobody does anything wrong."""
        return [
            f"{service}: {name}{dict(labels)} = {value:g}"
            for service in self.targets()
            for (name, *labels), value in self.samples(service).items()
            if value and name.endswith("_channel_faults_total")
        ]

    def busy(self) -> list[str]:
        """Return the gauges that should be back at zero when nobody asks for anything."""
        gauges = (
            "pyttpd_umaster_queue_depth",
            "pyttpd_umaster_handovers_open",
            "pyttpd_listener_connections",
        )
        return [
            f"{service}: {name}{dict(labels)} = {value:g}"
            for service in ("umaster", "listener-http")
            for (name, *labels), value in self.samples(service).items()
            if value and name in gauges
        ]

    def wait_for(
        self,
        what: Callable[[], bool],
        within: float = ANSWER_WITHIN,
        *,
        why: Callable[[], object] = lambda: "",
    ) -> None:
        """Wait until `what` is true; else say `why`. OSError and AssertionError within it count as not yet."""
        deadline = time.monotonic() + within
        while True:
            with contextlib.suppress(OSError, AssertionError, http.client.HTTPException):
                if what():
                    return
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within} s: {why()}; the tree's log:\n{self.logs()[-6000:]}")
            time.sleep(0.1)

    def serves(self) -> bool:
        """Return whether all tenants answer."""
        return all(self.get(f"{name}.localhost").status == 200 for name in self.tenants())

    # ---- starting and ending it --------------------------------------------------------------------------------------

    def up(self) -> None:
        """Build and start it as `make up` does."""
        self._script("up", UP_WITHIN)

    def down(self) -> None:
        """End it as `make down` does. What it leaves is `left()`."""
        self._script("down", DOWN_WITHIN)

    def _script(self, name: str, within: float) -> None:
        environment = {**self.environment, "COMPOSE_PROJECT_NAME": self.project}
        try:
            done = subprocess.run(
                [TOP / "scripts" / name], env=environment, capture_output=True, text=True, timeout=within
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"scripts/{name} takes longer than {within} s:\n{self.logs()[-6000:]}")
        if done.returncode:
            pytest.fail(f"scripts/{name} ended with {done.returncode}:\n{done.stderr}\n{self.logs()[-6000:]}")

    def left(self) -> list[str]:
        """Return the containers, volumes and networks of this project that the engine knows."""
        label = f"label=com.docker.compose.project={self.project}"
        return [
            f"{words[0]} {name}"
            for words in (["ps", "--all"], ["volume", "ls"], ["network", "ls"])
            for name in self.docker(*words, "--quiet", "--filter", label).split()
        ]

    def alerts(self) -> list[str]:
        """Return the lines of all logs that say error, and anything that Python says on its own."""
        pattern = re.compile(r'\] error: |"level": "error"|Traceback|Warning: |Exception ')
        return [line for line in self.logs().splitlines() if pattern.search(line)]


def deployment(name: str, **variables: str) -> Deployment:
    """Return a tree that isn't started yet, with ports that are free. `variables` are compose.yaml's, or Compose's."""
    port, first = free_port(), free_ports(METRICS_PORTS + TENANT_METRICS_PORTS)
    tenants = first + METRICS_PORTS
    environment = os.environ | {
        "PYTTPD_TAG": TAG,
        "PYTTPD_HEALTH_INTERVAL": "2s",
        "PYTTPD_HTTP_PORT": str(port),
        "PYTTPD_METRICS_PORTS": f"{first}-{tenants - 1}",
        "PYTTPD_TENANT_METRICS_PORTS": f"{tenants}-{tenants + TENANT_METRICS_PORTS - 1}",
        **variables,
    }
    return Deployment(f"pyttpd-{name}-{os.getpid()}", port, first, tenants, environment)


@contextlib.contextmanager
def running(name: str, expected: tuple[str, ...] = (), /, **variables: str) -> Iterator[Deployment]:
    """Build the images, bring a tree up, and take it down with checks of what it leaves and has logged.

    expected: parts of lines at level error that are none.
    """
    tree = deployment(name, **variables)
    try:
        tree.up()
        yield tree
        alerts = [line for line in tree.alerts() if not any(part in line for part in expected)]
    finally:
        tree.down()
    assert not tree.left(), f"left behind: {tree.left()}"
    assert not alerts, "in the log: " + "\n".join(alerts)
