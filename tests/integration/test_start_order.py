"""Start order does not matter: the roles as compose starts them, each by itself, in orders that put any before any.

There is no runner here: every process is started with the arguments of compose.yaml, as its own uid, in one runtime
directory, and what follows waits until what came before runs. Nobody is there for the first to meet; it tries again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyttpd.roles import ROLES, Role

from support.tree import (
    ANSWER_WITHIN,
    APPLICATION,
    METRICS_PORTS,
    Tree,
    free_port,
    free_ports,
    plain_environment,
)

LISTENER_UID, TENANT_UID = 10_010, 20_002
CONFIGURATION = """
runtime_dir = "{folder}/run"
grace = 5.0
[metrics]
base_port = {metrics_port}
[listen.http]
address = "127.0.0.1:{port}"
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "{folder}/application"
application = "app:application"
"""
#: Who there is, with what uid, and what compose.yaml tells it.
PARTS = {
    "init": (0, ["--config", "{folder}/pyttpd.toml", "--take-back"]),
    "master": (ROLES[Role.MASTER].uid, ["--config", "{folder}/pyttpd.toml"]),
    "umaster": (ROLES[Role.UMASTER].uid, []),
    "listener": (LISTENER_UID, ["--name", "http"]),
    "vhost": (TENANT_UID, ["--name", "wsgi", "--tmp", "{folder}/tmp"]),
}
SEED = 7
#: A part is there within this (s), and answers, on a busy machine.
WITHIN = 30.0


def orders() -> list[tuple[str, ...]]:
    """Return a seeded order, its rotations, and each of them backwards: every part comes first, last, and before each
    other.
    """
    parts = list(PARTS)
    random.Random(SEED).shuffle(parts)
    rotations = [(*parts[start:], *parts[:start]) for start in range(len(parts))]
    return [*rotations, *(order[::-1] for order in rotations)]


@dataclass(slots=True)
class Parts:
    """The processes of one start."""

    folder: Path
    port: int
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def health(self, part: str) -> str:
        try:
            return (self.folder / "health" / part / "state").read_text().strip()
        except OSError:
            return ""

    def start(self, part: str) -> None:
        uid, told = PARTS[part]
        command = [sys.executable, "-I", "-m", f"pyttpd_{part}"]
        command += [word.format(folder=self.folder) for word in told]
        command += [
            "--runtime-dir",
            f"{self.folder}/run",
            "--health-file",
            f"{self.folder}/health/{part}/state",
        ]
        command += ["--grace", "5", "--die-with", str(os.getpid())]
        with open(self.folder / "log", "ab") as log:
            self.started[part] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=plain_environment(),
                user=uid,
                group=uid,
                extra_groups=[],
                start_new_session=True,
            )

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WITHIN
        while not what():
            ended = {part: process.poll() for part, process in self.started.items()}
            if time.monotonic() > deadline or any(status is not None for status in ended.values()):
                pytest.fail(f"not within {WITHIN} s: {ended}\n{self.log()[-4000:]}")
            time.sleep(0.02)

    def is_answered(self) -> bool:
        """Say whether the tenant answers. Nobody is refused before: a client waits, or nobody listens yet."""
        tree = Tree(self.folder, self.port, 0, self.started["init"])
        with contextlib.suppress(OSError):
            return tree.get("wsgi.localhost", "/asked").body == b"/asked"
        return False

    def end(self) -> dict[str, int]:
        """Ask all to leave; return their exit statuses. Who hasn't gone is killed, and has a negative one."""
        for process in self.started.values():
            process.terminate()
        for process in self.started.values():
            try:
                process.wait(ANSWER_WITHIN)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return {part: process.returncode for part, process in self.started.items()}


@pytest.fixture
def parts() -> Iterator[Parts]:
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-parts-", dir="/tmp"))
    folder.chmod(0o755)
    one = Parts(folder, free_port())
    text = CONFIGURATION.format(folder=folder, metrics_port=free_ports(METRICS_PORTS), port=one.port)
    (folder / "pyttpd.toml").write_text(text)
    (folder / "application").mkdir()
    (folder / "application/app.py").write_text(APPLICATION)
    for row in ROLES.values():
        for directory in row.binds:  # compose.yaml's volumes
            (folder / "run" / directory.value).mkdir(mode=0o755, parents=True)
            os.chown(folder / "run" / directory.value, row.uid, row.uid)
    for part, (uid, _) in PARTS.items():
        (folder / "health" / part).mkdir(mode=0o755, parents=True)
        os.chown(folder / "health" / part, uid, uid)
    (folder / "tmp").mkdir(mode=0o700)
    os.chown(folder / "tmp", TENANT_UID, TENANT_UID)
    try:
        yield one
    finally:
        one.end()
        shutil.rmtree(folder)


def test_the_orders_put_each_part_first_and_last_and_before_each_other() -> None:
    found = orders()
    assert {order[0] for order in found} == {order[-1] for order in found} == set(PARTS)
    for one, other in itertools.permutations(PARTS, 2):
        assert any(order.index(one) < order.index(other) for order in found), (one, other)


def is_served_at_last(parts: Parts) -> None:
    parts.wait_for(parts.is_answered)
    parts.wait_for(lambda: {parts.health(part) for part in PARTS} == {"ready"})
    assert parts.end() == dict.fromkeys(PARTS, 0)
    assert "] error: " not in parts.log(), parts.log()
    assert "broke the protocol" not in parts.log(), parts.log()


@pytest.mark.root
@pytest.mark.parametrize("order", orders(), ids="-".join)
def test_a_request_is_answered_whoever_was_started_first(parts: Parts, order: tuple[str, ...]) -> None:
    for part in order:
        if part == order[-1] and part in ("init", "master", "umaster"):
            assert (
                parts.health("listener") != "ready"
            )  # it has no socket, no share, or nobody to give connections to
        parts.start(part)
        parts.wait_for(lambda part=part: parts.health(part) != "")  # type: ignore[misc]
    is_served_at_last(parts)


@pytest.mark.root
def test_who_is_started_long_after_those_that_wait_for_it_is_found(parts: Parts) -> None:
    """Whoever waits has said so in the log by then, and tries as seldom as it ever does."""
    waiting = [part for part in PARTS if part != "init"]
    for part in waiting:
        parts.start(part)
    for part in waiting:
        if part in ("master", "listener"):
            parts.wait_for(lambda part=part: bool(re.search(rf" {part}\b.*peer is away", parts.log())))  # type: ignore[misc]
    parts.start("init")
    is_served_at_last(parts)
