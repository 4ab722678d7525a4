"""What of a share asks for programs, and what they get."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pyttpd.config.kinds import CgiOptions, FastcgiOptions, HandoffOptions, Mount, ScgiOptions, StaticOptions
from pyttpd.config.processes import ProcessOptions
from pyttpd.config.shares import PoolSettings

from pyttpd_vhost.execution.places import Listeners
from pyttpd_vhost.execution.plan import environment, plan, settings, wanted
from pyttpd_vhost.tenant import EACH_PROGRAM, most_processes

from .conftest import make_share

STATIC = Mount("/", StaticOptions("/srv"))
SERVED = Mount(
    "/a", FastcgiOptions(root="/srv/a", command=("php-cgi",), processes=3, mode="dynamic", max_spare=2)
)
ASKED = Mount("/b", ScgiOptions(socket="/run/b.sock"))
GIVEN = Mount("/c", HandoffOptions(command=("/srv/c", "-x"), processes=1))
CGI = Mount("/d", CgiOptions("/srv/d"))


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ((STATIC,), False),
        ((STATIC, ASKED), False),
        ((CGI,), True),
        ((STATIC, SERVED), True),
        ((GIVEN,), True),
    ],
)
def test_whether_anything_asks_for_programs(mounts: tuple[Mount, ...], expected: bool) -> None:
    assert wanted(make_share(mounts=mounts)) is expected


def test_pools_in_the_order_of_their_mounts(tmp_path: Path) -> None:
    listeners = Listeners.make(str(tmp_path))
    try:
        share = make_share(mounts=(STATIC, SERVED, ASKED, GIVEN, CGI), env={"A": "1"})
        applications, backends, without = plan(share, listeners, str(tmp_path))
        assert not without
        assert [(each.mount, each.command, each.directory) for each in applications] == [
            ("/a", ("php-cgi",), "/srv/a"),
            ("/c", ("/srv/c", "-x"), share.root),
        ]
        assert [(each.mount, each.name, each.kind, each.pool) for each in backends] == [
            (1, "/a", socket.SOCK_STREAM, 0),
            (2, "/b", socket.SOCK_STREAM, None),
            (3, "/c", socket.SOCK_SEQPACKET, 1),
        ]
        assert backends[1].path == "/run/b.sock"
        assert applications[0].settings == PoolSettings(
            max_workers=3, mode="dynamic", max_spare=2, max_age=3600.0
        )
    finally:
        listeners.close()


def test_a_mount_without_a_socket_is_asked_where_nobody_is(tmp_path: Path) -> None:
    listeners = Listeners.make(str(tmp_path / "none"))
    applications, backends, without = plan(make_share(mounts=(STATIC, SERVED)), listeners, str(tmp_path))
    assert not applications
    assert without == ["/a"]
    assert not os.path.exists(backends[0].path)
    listeners.close()


@pytest.mark.parametrize(
    ("scripts", "env", "requests", "folder"),
    [
        ((), {}, "0", False),
        ((".php",), {}, "0", True),
        ((".php",), {"PHP_FCGI_MAX_REQUESTS": "9", "PHP_INI_SCAN_DIR": "/srv/ini"}, "9", False),
    ],
    ids=["one program", "scripts", "the tenant's own word"],
)
def test_what_php_is_told(
    tmp_path: Path, scripts: tuple[str, ...], env: dict[str, str], requests: str, folder: bool
) -> None:
    """It doesn't end by itself, and finds the tenant's own folder for temporary files."""
    mount = Mount("/", FastcgiOptions(root="/srv/a", command=("php-cgi",), scripts=scripts))
    listeners = Listeners.make(str(tmp_path))
    try:
        [application], _, _ = plan(make_share(mounts=(mount,), env=env), listeners, str(tmp_path))
    finally:
        listeners.close()
    assert application.environment["PHP_FCGI_MAX_REQUESTS"] == requests
    assert application.environment.get("PHP_INI_SCAN_DIR", "").endswith("/execution/php") is folder


def test_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PATH", "/usr/bin")
    found = environment(make_share(env={"A": "1", "HOME": "/elsewhere"}, virtualenv="/srv/venv"), "/tmp/t")
    assert "SECRET" not in found
    assert found["PATH"] == "/srv/venv/bin:/usr/bin"
    assert (found["A"], found["HOME"], found["TMPDIR"], found["VIRTUAL_ENV"]) == (
        "1",
        "/elsewhere",
        "/tmp/t",
        "/srv/venv",
    )
    monkeypatch.delenv("PATH")
    assert environment(make_share(), "/tmp")["PATH"] == "/usr/local/bin:/usr/bin:/bin"


def test_settings_are_the_policys_words() -> None:
    options = ProcessOptions(command=("x",), processes=9, mode="ondemand", max_requests=5, max_memory=1 << 30)
    found = settings(options)
    assert (found.max_workers, found.mode, found.max_requests, found.max_memory) == (
        9,
        "ondemand",
        5,
        1 << 30,
    )
    assert found.first == 0


def test_there_is_room_for_them_among_a_tenants_processes() -> None:
    none = most_processes(make_share(mounts=(STATIC,)))
    assert most_processes(make_share(mounts=(STATIC, SERVED, GIVEN))) == none + 4 * EACH_PROGRAM
    assert most_processes(make_share(mounts=(STATIC, CGI))) > none
    assert most_processes(make_share(mounts=(SERVED,), pool=PoolSettings(max_processes=77))) == 77


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"mode": "dynamic", "processes": 2, "min_spare": 3}, "min_spare"),
        ({"mode": "dynamic", "processes": 9, "min_spare": 3, "max_spare": 2}, "max_spare"),
        ({"max_memory": 5}, "max_memory"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, int], key: str) -> None:
    assert [found for found, _ in ProcessOptions(command=("x",), **options).contradictions()] == [key]  # type: ignore[arg-type]
