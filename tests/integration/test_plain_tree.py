"""The tree as plain processes: it serves, tells its state, keeps what it answers for, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyttpd import turns
from pyttpd.roles import METRICS_LISTENER_UID, ROLES, Role

from support.leaks import descendants, state
from support.tree import GONE_WITHIN, Tree

AS_ROOT = pytest.param(False, id="as-root", marks=pytest.mark.root)
ORDINARY = pytest.param(True, id="ordinary-user")
BOTH = pytest.mark.parametrize("ordinary", [AS_ROOT, ORDINARY])
SLOW = """
import time

def application(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(float(environ["QUERY_STRING"]))
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]
"""


def uid_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}").st_uid


@BOTH
def test_each_tenant_answers_for_its_own_host(plant: Callable[..., Tree], ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    static = tree.get("static.localhost")
    assert (static.status, static.headers["content-type"].partition(";")[0]) == (200, "text/html")
    assert b"<title>static</title>" in static.body
    wsgi = tree.get("WSGI.localhost.", "/a%20b")
    assert (wsgi.status, wsgi.body) == (200, b"/a b")
    assert tree.get("nobody.localhost").status == 421


@BOTH
def test_every_role_serves_metrics(plant: Callable[..., Tree], ordinary: bool) -> None:
    tree = plant(ordinary=ordinary)
    for role in ("init", "master", "umaster", "listener"):
        names = {key[0] for key in tree.samples(role)}
        assert {f"pyttpd_{role}_info", f"pyttpd_{role}_start_time_seconds"} <= names
    tree.get("static.localhost")
    for name in ("static", "wsgi"):
        samples = tree.samples("vhost", name)
        assert any(key[0] == "pyttpd_vhost_requests_total" for key in samples)
    umaster = tree.samples("umaster")
    assert umaster["pyttpd_umaster_workers", ("vhost", "static")] >= 1
    assert umaster["pyttpd_umaster_dispatched_total", ("vhost", "static")] >= 2


@BOTH
def test_who_hands_on_gives_way_to_who_serves(plant: Callable[..., Tree], ordinary: bool) -> None:
    """What wakes up a listener or umaster takes no core from a worker: by long turns, before Linux 6.12 by a policy."""
    tree = plant(ordinary=ordinary)
    for role in ("master", "umaster", "listener", "vhost"):
        found = {(os.sched_getscheduler(pid), turns.length(pid) == turns.LONG) for pid in tree.pids(role)}
        usual = os.SCHED_OTHER, False
        gives_way = (os.SCHED_OTHER, True) if turns.length() else (os.SCHED_BATCH, False)
        # Keepers are as everybody: they have to notice that a role hangs.
        assert found == {usual, gives_way if role in ("umaster", "listener") else usual}


@pytest.mark.root
def test_as_root_each_role_and_tenant_has_its_own_uid_and_no_network(plant: Callable[..., Tree]) -> None:
    tree = plant()
    uids = {
        ("master", ""): ROLES[Role.MASTER].uid,
        ("umaster", ""): ROLES[Role.UMASTER].uid,
        ("listener", "http"): ROLES[Role.LISTENER].uid,
        ("listener", "metrics"): METRICS_LISTENER_UID,
        ("vhost", "static"): 20_001,
        ("vhost", "wsgi"): 20_002,
    }
    ours = os.stat("/proc/self/ns/net").st_ino
    for (role, name), uid in uids.items():
        pids = tree.pids(role, name)
        assert pids, (role, name)
        assert {uid_of(pid) for pid in pids} == {uid}
        for pid in pids:
            assert os.stat(f"/proc/{pid}/ns/net").st_ino != ours
            status = Path(f"/proc/{pid}/status").read_text()
            assert "CapEff:\t0000000000000000" in status
            assert "NoNewPrivs:\t1" in status
            assert "Groups:\t \n" in status


@BOTH
def test_an_idle_tree_is_gone_within_three_seconds_of_ctrl_c(
    plant: Callable[..., Tree], ordinary: bool
) -> None:
    tree = plant(ordinary=ordinary)
    below = list(descendants(tree.process.pid))
    assert tree.end(signal.SIGINT, GONE_WITHIN) == 0
    assert all(state(pid) == "X" for pid in below)
    assert not any(stat.S_ISSOCK(path.lstat().st_mode) for path in tree.folder.rglob("*"))


def test_a_busy_tree_finishes_what_it_has_in_hand(plant: Callable[..., Tree]) -> None:
    tree = plant(files={"application/app.py": SLOW}, ordinary=True)
    with tree.connect() as client:
        in_hand(tree, client, b"/slow?1.5")
        tree.process.send_signal(signal.SIGTERM)
        answer = received(client)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"done")
    assert tree.process.wait(5) == 0


def test_the_second_signal_ends_a_busy_tree_at_once(plant: Callable[..., Tree]) -> None:
    tree = plant(files={"application/app.py": SLOW}, ordinary=True)
    with tree.connect() as client:
        in_hand(tree, client, b"/slow?60")
        tree.process.send_signal(signal.SIGINT)
        tree.wait_for(lambda: not tree.pids("listener", "http"))  # it has heard the first signal
        tree.end(signal.SIGINT, GONE_WITHIN)


def runner_was_killed(tree: Tree, below: list[int]) -> None:
    """Wait until all that was below it has ended, and remove the sockets that it can't any more."""
    tree.process.wait()
    deadline = time.monotonic() + GONE_WITHIN
    while any(state(pid) not in "XZ" for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for path in list(tree.folder.rglob("*")):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()


def test_nothing_survives_a_killed_runner(plant: Callable[..., Tree]) -> None:
    tree = plant(ordinary=True)
    below = list(descendants(tree.process.pid))
    tree.process.kill()
    runner_was_killed(tree, below)


WATCHED = """#!/bin/sh
export NOTIFY_SOCKET={address} WATCHDOG_USEC={limit}
exec {python} "$@"
"""


def test_systemd_hears_from_a_runner_until_it_is_stopped(plant: Callable[..., Tree], tmp_path: Path) -> None:
    """WatchdogSec: who is silent for so long is killed (WatchdogSignal), and all below it ends. systemd is played."""
    address, script, limit = tmp_path / "notify", tmp_path / "python", 3.0
    script.write_text(WATCHED.format(address=address, limit=int(limit * 1e6), python=sys.executable))
    for path in (script, tmp_path, *tmp_path.parents):
        if path.is_relative_to("/tmp/pytest-of-root"):
            path.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(address))
        address.chmod(0o777)
        tree = plant(ordinary=True, python=str(script))
        systemd.settimeout(10 * limit)  # this machine has much else to do
        # Of those before, there may be more than the kernel keeps.
        heard = [systemd.recv(64) for _ in range(15)]
        assert set(heard) <= {b"READY=1", b"WATCHDOG=1"}
        below = list(descendants(tree.process.pid))
        tree.process.send_signal(signal.SIGSTOP)
        tree.wait_for(lambda: state(tree.process.pid) == "T")
        systemd.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while systemd.recv(64):
                pass
        systemd.settimeout(limit)
        with pytest.raises(TimeoutError):
            systemd.recv(64)
        assert tree.get("static.localhost").status == 200  # which needs no runner
        tree.process.kill()
    runner_was_killed(tree, below)


@pytest.mark.parametrize("role", ["init", "master", "umaster", "listener", "vhost"])
def test_a_role_that_crashes_is_started_again(plant: Callable[..., Tree], role: str) -> None:
    tree = plant(ordinary=True)
    name = {"listener": "http", "vhost": "wsgi"}.get(role, "")
    keeper, *_ = tree.pids(role, name)
    (child,) = [pid for pid in tree.pids(role, name) if parent_of(pid) == keeper]
    tree.expect("died", "lost", "away", "ended")
    os.kill(child, signal.SIGKILL)
    tree.wait_for(lambda: any(parent_of(pid) == keeper and pid != child for pid in tree.pids(role, name)))
    for host in ("wsgi.localhost", "static.localhost"):
        tree.wait_for(lambda host=host: tree.get(host).status == 200)  # type: ignore[misc]


@pytest.mark.parametrize("role", ["init", "master", "umaster", "listener", "vhost"])
def test_a_keeper_that_is_killed_takes_its_role_along_and_is_started_again(
    plant: Callable[..., Tree], role: str
) -> None:
    tree = plant(ordinary=True)
    name = {"listener": "http", "vhost": "wsgi"}.get(role, "")
    before = tree.pids(role, name)
    tree.expect("died", "lost", "away", "ended")
    os.kill(before[0], signal.SIGKILL)
    tree.wait_for(lambda: all(state(pid) in "XZ" for pid in before))
    tree.wait_for(lambda: bool(tree.pids(role, name)))
    for host in ("wsgi.localhost", "static.localhost"):
        tree.wait_for(lambda host=host: tree.get(host).status == 200)  # type: ignore[misc]
    if role != "vhost":
        tree.wait_for(lambda: bool(tree.samples(role)))


def in_hand(tree: Tree, client: socket.socket, target: bytes) -> None:
    """Ask for `target`, and wait until a worker has taken the connection."""

    def taken() -> float:
        return tree.samples("umaster")["pyttpd_umaster_taken_total", ("vhost", "wsgi")]

    before = taken()
    client.sendall(b"GET %b HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n" % target)
    tree.wait_for(lambda: taken() > before)


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def received(client: socket.socket) -> bytes:
    """Return what comes until the peer closes."""
    answer = b""
    while data := client.recv(65_536):
        answer += data
    return answer
