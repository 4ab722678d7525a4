"""A child's own network and its own view of the files, as root, in children that end with the test."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.namespaces import (
    MountView,
    NamespaceError,
    TenantFiles,
    enter_mount_namespace,
    enter_network_namespace,
    role_view,
    tenant_view,
)

from support.play import outcome, play

#: Nobody else's on this machine.
TENANT = 29_877
root = pytest.mark.root


@pytest.fixture(params=["/tmp", "/run", "/opt"])
def top(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder that other uids can enter: below covered directories and elsewhere."""
    path = Path(tempfile.mkdtemp(prefix="pyttpd-view-", dir=request.param))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def seen(view: MountView, action: Callable[[], Any], uid: int = TENANT) -> Any:
    """Return what `action` returns to a process of `uid` in `view`."""

    def scene() -> Any:
        enter_mount_namespace(view)
        if uid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        return action()

    return play(scene)


@root
def test_a_network_with_nobody_else_on_it() -> None:
    def scene() -> Any:
        enter_network_namespace()
        with (
            socket.create_server(("127.0.0.1", 0)) as door,
            socket.create_connection(door.getsockname(), timeout=5),
            socket.create_server(("::1", 0), family=socket.AF_INET6),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            return [name for _, name in socket.if_nameindex()], outcome(udp.connect, ("192.0.2.1", 9))

    assert play(scene) == [["lo"], "OSError"]


@root
def test_a_tenant_sees_and_writes_its_own(top: Path) -> None:
    for name in ("site", "site/uploads", "secret", "channel", "lib"):
        (top / name).mkdir()
    (top / "site/uploads").chmod(0o777)
    (top / "site/page").write_text("hello")
    (top / "lib/module.py").write_text("x = 1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.bind(str(top / "channel/sock"))
        channel.listen()
        (top / "channel/sock").chmod(0o666)
        view = tenant_view(
            TenantFiles(
                str(top / "site"),
                channels=(str(top / "channel"),),
                python_path=(str(top / "lib/module.py"),),
                writable=(str(top / "site/uploads"),),
                hidden=(str(top / "secret"),),
            )
        )

        def look() -> Any:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                connected = outcome(sock.connect, str(top / "channel/sock"))
            return {
                "page": (top / "site/page").read_text(),
                "module": (top / "lib/module.py").read_text(),
                "connect": connected,
                "write": [
                    outcome((top / name).write_text, "x")
                    for name in ("site/uploads/new", "site/new", "channel/new")
                ],
                "secret": os.listdir(top / "secret") if (top / "secret").exists() else [],
                "etc": outcome(Path("/etc/written").write_text, "x"),
                "tmp": outcome(Path("/tmp/own").write_text, "x"),
                "shm": outcome(Path("/dev/shm/own").write_text, "x"),
                "var/tmp": outcome(Path("/var/tmp/own").write_text, "x"),
                "run": outcome(Path("/run/own").write_text, "x"),
                "cwd": os.getcwd(),
            }

        told = seen(view, look)
    assert told == {
        "page": "hello",
        "module": "x = 1",
        "connect": "done",
        "write": ["done", "OSError", "OSError"],
        "secret": [],
        "etc": "OSError",
        "tmp": "done",
        "shm": "done",
        "var/tmp": "done",
        "run": "PermissionError",
        "cwd": "/",
    }
    assert (top / "site/uploads/new").read_text() == "x"
    assert not Path("/tmp/own").exists()
    assert not Path("/dev/shm/own").exists()


@root
def test_meeting_places_are_empty_but_for_what_is_put_back() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        view = MountView(read_only=(name,))
        told = seen(view, lambda: [os.listdir("/tmp"), os.listdir("/run"), os.listdir("/dev/shm")])
    assert told == [[os.path.basename(name)], [], []]


@root
def test_devices_are_those_that_programs_expect(top: Path) -> None:
    def look() -> Any:
        return {
            "names": sorted(os.listdir("/dev")),
            "null": outcome(Path("/dev/null").write_text, "x"),
            "random": len(os.read(os.open("/dev/urandom", os.O_RDONLY), 4)),
            "new": outcome(Path("/dev/new").write_text, "x"),
            "node": outcome(os.mknod, "/tmp/node", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
            "used": outcome(os.open, "/tmp/node", os.O_RDONLY),
        }

    told = seen(role_view(own=(str(top),)), look, uid=0)
    names = told.pop("names")
    expected = {"null", "zero", "full", "random", "urandom", "tty", "fd", "stdin", "stdout", "stderr", "shm"}
    assert set(names) <= expected
    # Root can make a node, and it is none.
    assert told == {"null": "done", "random": 4, "new": "OSError", "node": "done", "used": "PermissionError"}


@root
def test_other_processes_are_not_shown() -> None:
    told = seen(MountView(), lambda: [name for name in os.listdir("/proc") if name.isdecimal()])
    assert len(told) == 1


@root
def test_set_uid_files_mean_nothing(top: Path) -> None:
    program = top / "id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 0, 0)
    program.chmod(0o4755)

    def look() -> Any:
        import subprocess

        return subprocess.check_output([str(program), "-u"], text=True).strip()

    assert seen(MountView(read_only=(str(top),)), look) == str(TENANT)


@root
def test_nothing_of_it_is_seen_outside(top: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    inside = seen(MountView(writable=(str(top),)), lambda: Path("/proc/self/mountinfo").read_text(), uid=0)
    assert inside != before
    assert Path("/proc/self/mountinfo").read_text() == before


@root
def test_a_path_that_is_not_there_is_an_error(top: Path) -> None:
    def scene() -> Any:
        try:
            enter_mount_namespace(MountView(read_only=(str(top / "nowhere"),)))
        except NamespaceError as error:
            return str(error)
        return "entered"

    assert "nowhere" in play(scene)


@root
def test_only_root_can(top: Path) -> None:
    def scene() -> Any:
        os.setresuid(TENANT, TENANT, TENANT)
        return [outcome(enter_network_namespace), outcome(enter_mount_namespace, MountView())]

    assert play(scene) == ["NamespaceError", "NamespaceError"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"read_only": ("relative",)}, "absolute"),
        ({"writable": ("/a\0",)}, "absolute"),
        ({"writable": ("/",)}, "is none"),
        ({"hidden": ("/tmp/..",)}, "is none"),
    ],
)
def test_no_view(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MountView(**fields)
