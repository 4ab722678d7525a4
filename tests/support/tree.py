"""A whole tree of plain processes for a test: `python -I -m pyttpd_init --plain`, as root or as an ordinary user.

    def test_something(plant):
        tree = plant()                      # the default tenants: static.localhost and wsgi.localhost
        assert tree.get("static.localhost", "/").status == 200
        tree.samples("umaster")["pyttpd_umaster_credits", ("vhost", "static")]

`plant` stops each tree after the test and checks that nothing is left, that no role has logged an error and that no
peer was found at fault, except for what the test has announced with tree.expect("part of the log line").
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyttpd.roles import METRICS_LISTENER_OFFSET, ROLES, TENANT_METRICS_OFFSET, Role

from support.leaks import arguments, descendants, passes, sockets

#: Somebody without an account and without rights.
ORDINARY_UID = 31_234
#: Bounds (s) for a tree to answer for all tenants, and for an idle one to be gone after SIGTERM (the README's promise).
READY_WITHIN = 30.0
GONE_WITHIN = 3.0
#: An answer within a test takes so long at most (s).
ANSWER_WITHIN = 10.0
#: Ports that metrics need, one after the other, and where they are looked for.
METRICS_PORTS = TENANT_METRICS_OFFSET + 1
FIRST_PORT, LAST_PORT = 20_000, 30_000

APPLICATION = """
def application(environ, start_response):
    body = environ["PATH_INFO"].encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
TENANTS = """
[vhost.static]
hosts = ["static.localhost"]
uid = 20001
kind = "static"
root = "site"

[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
"""

#: Counters of what happens only when something has died or is overloaded.
LOSSES = ("pyttpd_listener_dropped_total", "pyttpd_listener_evicted_total", "pyttpd_listener_reoffered_total")

Key = tuple[str, *tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Tree:
    """A running tree. `folder` holds its configuration, tenants, channels and log."""

    folder: Path
    port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    expected: list[str] = field(default_factory=list)

    # ---- asking it --------------------------------------------------------------------------------------------------

    def connect(self, timeout: float = ANSWER_WITHIN) -> socket.socket:
        """Return a new connection to the HTTP listener. The caller closes it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def request(
        self,
        method: str,
        host: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Return the answer to one request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_WITHIN)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Host": host, "Connection": "close"} | (headers or {}))
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, host: str, path: str = "/") -> Answer:
        return self.request("GET", host, path)

    def metrics_url(self, role: str, name: str = "") -> str:
        """Where `role` (a name of roles.Role, or "metrics" for the tenants' metrics listener) serves its metrics."""
        path = ""
        if role == "metrics":
            offset = METRICS_LISTENER_OFFSET
        elif role == "vhost":
            offset, path = TENANT_METRICS_OFFSET, f"/{name}"
        else:
            found = ROLES[Role(role)].metrics_offset
            assert found is not None
            offset = found
        return f"http://127.0.0.1:{self.metrics_port + offset}/metrics{path}"

    def samples(self, role: str, name: str = "") -> dict[Key, float]:
        """Return all samples of a role's metrics: (name, (label, value), ...) in the order of labels, to value."""
        from prometheus_client.parser import text_string_to_metric_families

        url = self.metrics_url(role, name)
        address, _, path = url.removeprefix("http://").partition("/")
        connection = http.client.HTTPConnection(address, timeout=ANSWER_WITHIN)
        with contextlib.closing(connection):
            connection.request("GET", f"/{path}")
            response = connection.getresponse()
            text = response.read().decode()
        assert response.status == 200, f"{url}: {response.status} {text[:200]}"
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

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
            if self.process.poll() is not None:
                pytest.fail(f"the tree ended with {self.process.returncode}:\n{self.log()[-4000:]}")
            with contextlib.suppress(OSError, AssertionError, http.client.HTTPException):
                if what():
                    return
            if time.monotonic() > deadline:
                pytest.fail(f"not within {within} s: {why()}; the tree's log:\n{self.log()[-4000:]}")
            time.sleep(0.02)

    # ---- looking at it ----------------------------------------------------------------------------------------------

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def pids(self, role: str, name: str = "") -> list[int]:
        """Return the living processes whose command line says so: a role's keeper and what it has forked.

        What a prototype forks to be the parent of a worker for a moment isn't counted: it is about to end.
        """
        wanted = [f"pyttpd_{role}", *([name] if name else [])]
        below = [(pid, arguments(pid)) for pid in descendants(self.process.pid)]
        return [pid for pid, words in below if all(word in words for word in wanted) and not passes(pid)]

    def expect(self, *parts: str) -> None:
        """Announce errors in the log that contain one of `parts`; faults of peers are then expected as well."""
        self.expected.extend(parts)

    def alerts(self) -> list[str]:
        """Return the lines of the log that nobody has announced: errors, and anything Python says on its own."""
        pattern = re.compile(r'\] error: |: output error: |"level": "error"|^Traceback|Warning: |^Exception ')
        lines = [line for line in self.log().splitlines() if pattern.search(line)]
        return [line for line in lines if not any(part in line for part in self.expected)]

    def faults(self) -> list[str]:
        """Return the counters that should be zero in a tree where nobody does anything wrong."""
        found = []
        for role in ("init", "master", "umaster", "listener"):
            for (name, *labels), value in self.samples(role).items():
                if value and (name.endswith("_channel_faults_total") or name in LOSSES):
                    found.append(f"{name}{dict(labels)} = {value:g}")
        return found

    def busy(self) -> list[str]:
        """Return the gauges that should be back at zero when nobody asks for anything."""
        gauges = (
            "pyttpd_umaster_queue_depth",
            "pyttpd_umaster_handovers_open",
            "pyttpd_listener_connections",
        )
        return [
            f"{name}{dict(labels)} = {value:g}"
            for role in ("umaster", "listener")
            for (name, *labels), value in self.samples(role).items()
            if value and name in gauges
        ]

    # ---- ending it --------------------------------------------------------------------------------------------------

    def end(self, number: signal.Signals = signal.SIGTERM, within: float = GONE_WITHIN) -> int:
        """Ask the tree to leave and return its exit status; kill it and fail if it isn't gone `within` seconds."""
        if self.process.poll() is None:
            below = set(descendants(self.process.pid))
            self.process.send_signal(number)
            try:
                self.process.wait(within)
            except subprocess.TimeoutExpired:
                stack = [
                    f"{pid} {' '.join(arguments(pid))}"
                    for pid in (self.process.pid, *descendants(self.process.pid))
                ]
                self.kill(below)
                pytest.fail(f"not gone after {within} s: {stack}\n{self.log()[-4000:]}")
        return self.process.returncode

    def kill(self, pids: set[int] | None = None) -> None:
        for pid in {self.process.pid, *(pids or ()), *descendants(self.process.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.forget_rule()

    @property
    def table(self) -> str:
        """The name of the egress rule's table in this machine's firewall."""
        return f"pyttpd_{hashlib.sha256(f'{self.folder}/run'.encode()).hexdigest()[:8]}"

    def forget_rule(self) -> None:
        """Take away what a killed runner leaves in this machine's firewall: it would hold back later trees' uids."""
        if os.geteuid() == 0:
            from pyttpd_init.egress import remove_egress

            remove_egress(table=self.table)

    def check_and_end(self) -> None:
        """What `plant` does after the test."""
        alive = self.process.poll() is None
        if alive and not self.expected:
            assert not self.faults(), f"peers at fault: {self.faults()}\n{self.log()[-4000:]}"
            self.wait_for(lambda: not self.busy())
        status = self.end()
        assert not alive or status == 0, f"the tree ended with {status}:\n{self.log()[-4000:]}"
        assert not self.alerts(), "in the log: " + "\n".join(self.alerts())
        left = list(sockets(self.folder))
        assert not left, f"sockets are left: {left}"


def plain_environment() -> dict[str, str]:
    """The environment that a tree under test is started with: nothing of pytest's."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports."""
    begin = FIRST_PORT + os.getpid() * 97 % (LAST_PORT - FIRST_PORT)
    for first in itertools.chain(range(begin, LAST_PORT, count), range(FIRST_PORT, begin, count)):
        with contextlib.ExitStack() as probes, contextlib.suppress(OSError):
            for port in range(first, first + count):
                probes.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise RuntimeError("no free ports")


def start(
    *,
    tenants: str = TENANTS,
    hosts: tuple[str, ...] = ("static.localhost", "wsgi.localhost"),
    extra: str = "",
    listen: str = "",
    ordinary: bool = False,
    files: dict[str, str | bytes] | None = None,
    python: str = sys.executable,
    grace: float = 5.0,
) -> Tree:
    """Start a tree and wait until each of `hosts` is answered for by its tenant.

    tenants: the [vhost] tables. extra: further tables, and keys of the top table first. listen: further keys of
    [listen.http]. files: further files, by path below the tree's folder. ordinary: as a user who isn't root.
    """
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-tree-", dir="/tmp"))
    port, metrics_port = free_port(), free_ports(METRICS_PORTS)
    contents: dict[str, str | bytes] = {
        "pyttpd.toml": f"""
            runtime_dir = "run"
            grace = {grace}
            {extra}
            [metrics]
            base_port = {metrics_port}
            [listen.http]
            address = "127.0.0.1:{port}"
            {listen}
            {tenants}""",
        "site/index.html": "<!doctype html><title>static</title>\n",
        "application/app.py": APPLICATION,
        **(files or {}),
    }
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "run").mkdir()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.read_bytes()[:2] == b"#!" else 0o644)
        if ordinary and os.geteuid() == 0:
            os.chown(path, ORDINARY_UID, ORDINARY_UID)
    who = ORDINARY_UID if ordinary and os.geteuid() == 0 else None
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [python, "-I", "-m", "pyttpd_init", "--plain", "--config", str(folder / "pyttpd.toml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=plain_environment(),
            user=who,
            group=who,
            extra_groups=None if who is None else [],
            start_new_session=True,
        )
    tree = Tree(folder, port, metrics_port, process)
    try:
        for host in hosts:
            tree.wait_for(lambda host=host: tree.get(host).status not in (502, 503), READY_WITHIN)  # type: ignore[misc]
    except BaseException:
        tree.kill()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return tree


def reload(tree: Tree, *arguments: str) -> tuple[int, str]:
    """Run `pyttpd reload` for `tree`; return its exit status and what it has printed."""
    command = [
        sys.executable,
        "-I",
        "-m",
        "pyttpd.admin",
        "reload",
        "--runtime-dir",
        str(tree.folder / "run"),
    ]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def plant() -> Iterator[Callable[..., Tree]]:
    """Start trees (`start` says with what); each is checked and ended after the test."""
    trees: list[Tree] = []

    def planted(**options: object) -> Tree:
        tree = start(**options)  # type: ignore[arg-type]
        trees.append(tree)
        return tree

    yield planted
    try:
        for tree in trees:
            tree.check_and_end()
    finally:
        for tree in trees:
            if tree.process.poll() is None:
                tree.kill()
            shutil.rmtree(tree.folder, ignore_errors=True)
