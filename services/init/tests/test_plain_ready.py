"""When the runner says that the tree is ready: with all its roles, and not only if every tenant does well."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pyttpd import service
from pyttpd.config.loader import load
from pyttpd.health import HealthFile
from pyttpd.log import Log
from pyttpd.roles import Role

from pyttpd_init import plain

TENANT = '[vhost.{0}]\nhosts = ["{0}.example"]\nuid = {1}\nkind = "static"\nroot = "{2}"\n'


class Tree:
    """A runner that has started nothing: its children's health files are written by the test."""

    def __init__(self, folder: Path) -> None:
        file = folder / "pyttpd.toml"
        file.write_text(
            f'runtime_dir = "{folder}/run"\n[listen.http]\naddress = "127.0.0.1:8080"\n'
            + TENANT.format("good", 20001, folder)
            + TENANT.format("bad", 20002, folder)
        )
        self.log: list[str] = []
        options = service.parse(Role.INIT, ["--plain", "--config", str(file)])
        self.runner = plain.Runner(
            options, load(str(file)), Log("init", "run", write=lambda line: self.log.append(line.decode()))
        )

    def well(self, *names: str) -> None:
        """All roles, and the tenants `names`, are ready."""
        for child in self.runner.children:
            if child.role is not Role.VHOST or child.name in names:
                path = self.runner.health_file(child)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                HealthFile(path).write("ready")

    def look(self) -> bool:
        self.runner._look_ready()
        return self.runner._phase is plain.Phase.READY


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("pyttpd_init.plain.time.monotonic", lambda: now[0])
    return now


def test_ready_with_all(tree: Tree) -> None:
    assert not tree.look()
    tree.well("good", "bad")
    assert not tree.look()  # the founders first
    assert tree.look()
    assert [line.partition("info: ")[2] for line in tree.log] == [
        "ready listening=http://127.0.0.1:8080/ tenants=2 stop=Ctrl-C\n"
    ]


def test_a_tenant_that_does_not_run_keeps_nobody_from_having_started(
    tree: Tree, clock: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        tree.well("good")
        assert not tree.look() and not tree.look()
        clock[0] += plain.TENANTS_PATIENCE - 0.1
        assert not tree.look()
        with pytest.raises(BlockingIOError):
            systemd.recv(64)
        clock[0] += 0.1
        assert tree.look()
        assert systemd.recv(64) == b"READY=1"
    late, ready = tree.log
    assert "warning: tenants that don't run yet; they are tried again names=bad" in late
    assert "ready listening=http://127.0.0.1:8080/ tenants=1 " in ready


def test_a_role_is_waited_for(tree: Tree, clock: list[float]) -> None:
    tree.well("good")
    assert not tree.look() and not tree.look()
    (umaster,) = [child for child in tree.runner.children if child.role is Role.UMASTER]
    HealthFile(tree.runner.health_file(umaster)).write("restarting")
    clock[0] += plain.TENANTS_PATIENCE
    assert not tree.look()
    tree.well("good")
    clock[0] += plain.TENANTS_PATIENCE
    assert not tree.look()  # the patience begins anew
    clock[0] += plain.TENANTS_PATIENCE
    assert tree.look()


@pytest.mark.parametrize(
    ("environment", "interval"),
    [
        ({}, float("inf")),
        ({"WATCHDOG_USEC": "3000000"}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, float("inf")),
        ({"WATCHDOG_USEC": "soon"}, float("inf")),
    ],
)
def test_a_watchdog_hears_three_times_as_often_as_it_wants(
    environment: dict[str, str],
    interval: float,
    clock: list[float],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    address = str(tmp_path / "notify")
    for key, value in {"NOTIFY_SOCKET": address, **environment}.items():
        monkeypatch.setenv(key, value)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        watchdog = plain.Watchdog()
        assert watchdog.interval == interval
        heard = 0
        for _ in range(4):
            watchdog.turn()
            watchdog.turn()
            clock[0] += 1.0
            try:
                while systemd.recv(64) == b"WATCHDOG=1":
                    heard += 1
            except BlockingIOError:
                pass
        assert heard == (4 if interval == 1.0 else 0)
