"""docs/first-tenant.md, followed command by command in a copy of what a clone holds, and compared with what it shows.

With containers the site with a database is then replaced by one that tries all of tests/hostile: what that finds out is
left in build/hostile-compose-database.json, a column of the matrix in SECURITY.md.

Ports are replaced, since the default ones may be taken, and with them the database's: it is this test's.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from e2e.test_hostile_tenant import PLAN, TARGET
from hostile import attempts
from hostile.test_tree import assail
from support import postgres
from support.compose import TAG, UP_WITHIN
from support.guide import Command, Text, section, steps, write
from support.leaks import descendants
from support.tree import GONE_WITHIN, METRICS_PORTS, READY_WITHIN, free_port, free_ports, plain_environment

TOP = Path(__file__).resolve().parents[2]
GUIDE = (TOP / "docs/first-tenant.md").read_text(encoding="utf-8")
#: pip's word about a place that this machine, and nobody's document, has it look at.
OF_THIS_MACHINE = "WARNING: Location 'file:"
#: A database's first connection, and a tenant's word to the metrics, which is up to a second old, take a moment (s).
SOON = 10.0
ASKED_AGAIN = {"curl", "status"}
#: Ports of the roles' and of the tenants' metrics, counted from the first.
ROLES_PORTS, TENANTS_PORTS = (0, 3), (9, 10)


@dataclass(slots=True)
class Newcomer:
    """Somebody in a clone. `replaced`: what the guide's text becomes here; environment: what the shell has."""

    folder: Path
    replaced: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=plain_environment)
    patience: float = 60.0
    #: The command that shows what the tree has said, for who looks into a failure.
    log: str = "cat log"

    def here(self, text: str) -> str:
        for old, new in self.replaced.items():
            text = text.replace(old, new)
        return text

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", self.here(command)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=self.patience,
        )
        lines = (done.stdout + done.stderr).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(OF_THIS_MACHINE))

    def follow_all(self, text: str) -> list[Command | Text]:
        """Do all that a part of the guide says; return it."""
        found = steps(text)
        for step in found:
            self.follow(step)
        return found

    def follow(self, step: Command | Text) -> None:
        """Do one step, and see what the guide says that one sees; what answers a request may take a moment."""
        if isinstance(step, Text):
            write(self.folder, Text(step.path, self.here(step.text), step.add))
            return
        deadline = time.monotonic() + SOON
        while (seen := self.run(step.command)) != self.here(step.output):
            if not set(step.command.split()) & ASKED_AGAIN or time.monotonic() > deadline:
                told = self.run(f"{self.log} 2>&1")[-6000:]
                assert seen == self.here(step.output), f"$ {self.here(step.command)}\n{told}"
            time.sleep(0.2)


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-guide-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copytree(
        TOP / "examples", folder / "examples", ignore=shutil.ignore_patterns(".wheels", "__pycache__")
    )
    # The environment that runs this test was made as `make venv` makes one; in a clone it stands here.
    (folder / ".venv/bin").mkdir(parents=True)
    for name, arguments in (("pyttpd", "-I -m pyttpd_ctl"), ("python", "")):
        command = folder / ".venv/bin" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        command.chmod(0o755)
    # pip keeps what it has downloaded at home.
    yield Newcomer(folder, environment=plain_environment() | {"HOME": os.environ.get("HOME", str(folder))})
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def newcomer_with_docker(newcomer: Newcomer) -> Iterator[Newcomer]:
    """Somebody whose clone has everything that git knows, and an engine: other names for what it makes there."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout
    for name in names.rstrip("\0").split("\0"):
        target = newcomer.folder / name
        if (TOP / name).is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TOP / name, target)
    if (TOP / ".cache/wheels").is_dir():
        shutil.copytree(TOP / ".cache/wheels", newcomer.folder / ".cache/wheels")
    port, first = free_port(), free_ports(METRICS_PORTS)
    newcomer.replaced = {":8080": f":{port}", "pyttpd status": f"pyttpd status --metrics 127.0.0.1:{first}"}
    newcomer.environment = os.environ | {
        "COMPOSE_PROJECT_NAME": f"pyttpd-guide-{os.getpid()}",
        "PYTTPD_TAG": TAG,
        "PYTTPD_HEALTH_INTERVAL": "2s",
        "PYTTPD_HTTP_PORT": str(port),
        "PYTTPD_METRICS_PORTS": "-".join(str(first + offset) for offset in ROLES_PORTS),
        "PYTTPD_TENANT_METRICS_PORTS": "-".join(str(first + offset) for offset in TENANTS_PORTS),
    }
    newcomer.patience = UP_WITHIN
    newcomer.log = "docker compose logs --no-color --tail 30"
    try:
        yield newcomer
    finally:
        ended = newcomer.run("docker compose down --volumes --remove-orphans --rmi local")
    left = newcomer.run("docker ps -aq --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")
    assert not left, ended


@pytest.mark.docker
@pytest.mark.root
@pytest.mark.program("curl")
@pytest.mark.program("nsenter")
@pytest.mark.timeout(900)
def test_with_docker(newcomer_with_docker: Newcomer) -> None:
    """Three sites: Flask from its lock, plain files, PostgreSQL on a network of its own; then that one turns evil."""
    someone = newcomer_with_docker
    done = someone.follow_all(section(GUIDE, "With Docker"))
    assert len([step for step in done if isinstance(step, Text)]) == 6
    assert len([step for step in done if isinstance(step, Command) and "make up" in step.command]) == 3

    (someone.folder / "sites/guests/app.py").write_text(Path(attempts.__file__).read_text(encoding="utf-8"))
    with open(someone.folder / "sites/etc/pyttpd.toml", "a", encoding="utf-8") as file:
        file.write("pool = { max_workers = 1 }\n")
    # Quicker than `make up`, which has been tried: what is concerned, and nothing else.
    someone.run("docker compose build --quiet --build-arg PYTTPD_TAG=$PYTTPD_TAG vhost-guests")
    someone.run("docker compose restart master")
    someone.run("docker compose up --detach --wait vhost-guests")

    def request(method: str, path: str, body: bytes) -> bytes:
        connection = http.client.HTTPConnection(
            "127.0.0.1", int(someone.environment["PYTTPD_HTTP_PORT"]), timeout=20
        )
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Host": "guests.localhost", "Connection": "close"})
            return connection.getresponse().read()

    with target_in(someone, "net") as of_clients, target_in(someone, "net-guests") as of_its_own:
        outcomes = assail(
            request, {**PLAN, "frozen": ["/srv/site", "/etc", "/run"], "target": ["127.0.0.1", 5432]}
        )
    (TOP / "build").mkdir(exist_ok=True)
    (TOP / "build/hostile-compose-database.json").write_text(json.dumps(outcomes, indent=1), encoding="utf-8")
    succeeded = {name: one["detail"] for name, one in outcomes.items() if one["outcome"] == "SUCCEEDED"}
    assert succeeded == {}
    assert (of_clients.read_bytes(), of_its_own.read_bytes()) == (b"", b"")
    # The port was right, and only the address was not: elsewhere the same is let through.
    assert outcomes["client: connect"]["outcome"] == outcomes["new socket: TCP"]["outcome"] == "refused"
    assert (
        "timed out" in outcomes["new socket: TCP"]["detail"]
        or "came back" in outcomes["new socket: TCP"]["detail"]
    )
    # Ending the tree is no way to lose what a site has written.
    someone.run("make down")
    volumes = someone.run(
        "docker volume ls -q --filter label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"
    )
    assert volumes.split() == [f"{someone.environment['COMPOSE_PROJECT_NAME']}_guests-data"]


@contextlib.contextmanager
def target_in(someone: Newcomer, service: str) -> Iterator[Path]:
    """Have somebody on port 5432 of the loopback of a service's network; yields the file that says who came there."""
    pid = someone.run(f"docker inspect -f '{{{{.State.Pid}}}}' $(docker compose ps -q {service})").strip()
    visitors = someone.folder / f"visitors-{service}"
    program = TARGET.replace('"127.0.0.1", 0', '"127.0.0.1", 5432')
    with open(visitors, "wb") as output:
        command = ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", program]
        target = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output)
        with target:
            assert target.stdout is not None
            try:
                assert target.stdout.readline() == b"5432\n"
                yield visitors
            finally:
                target.kill()
            output.write(target.stdout.read())


@pytest.mark.program("curl")
@pytest.mark.program("pg_ctlcluster")
@pytest.mark.timeout(180)
def test_without_docker(newcomer: Newcomer) -> None:
    """As root each site has a uid of its own and reaches the database by its gate; as an ordinary user all have one."""
    guide = section(GUIDE, "Without Docker")
    before, start, after = guide.partition("Start it with `.venv/bin/pyttpd run sites/plain`")
    assert start
    with postgres.running("guests", "change-me") as database:
        port, metrics_port = free_port(), free_ports(METRICS_PORTS)
        newcomer.replaced = {
            "[listen.http]": f'runtime_dir = "../run"\n[metrics]\nbase_port = {metrics_port}\n[listen.http]',
            ":8080": f":{port}",
            "127.0.0.1:5432": f"127.0.0.1:{database}",
            "127.0.0.1/guests": f"127.0.0.1:{database}/guests",
        }
        done = newcomer.follow_all(before)
        assert len([step for step in done if isinstance(step, Text)]) == 1
        assert len(done) >= 10
        with running(newcomer):
            assert len(newcomer.follow_all(after)) == 4


@contextlib.contextmanager
def running(newcomer: Newcomer) -> Iterator[None]:
    """The tree of sites/plain, as it is started in a terminal, ended by Ctrl-C."""
    log = newcomer.folder / "log"
    with open(log, "wb") as output:
        tree = subprocess.Popen(
            [".venv/bin/pyttpd", "run", "sites/plain"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=plain_environment(),
            cwd=newcomer.folder,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_WITHIN
        while "ready listening=" not in log.read_text(errors="replace"):
            assert tree.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.05)
        yield
        tree.send_signal(signal.SIGINT)
        assert tree.wait(GONE_WITHIN) == 0
    finally:
        for pid in [*descendants(tree.pid), tree.pid] if tree.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        tree.wait()


def test_what_the_guide_quotes_is_what_is_said() -> None:
    """In its table of what can go wrong: texts of logs and of status are looked for in the code."""
    table = section(GUIDE, "When it doesn't work")
    first_cells = re.findall(r"^\| (.*?) \|", table, re.MULTILINE)
    quoted = [
        text
        for cell in first_cells
        if "log" in cell or "status" in cell
        for text in re.findall("`(.+?)`", cell)
    ]
    assert len(quoted) >= 6
    files = [*TOP.glob("src/**/*.py"), *TOP.glob("services/*/src/**/*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    # A text over several lines is one text.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert [text for text in quoted if text not in code] == []
