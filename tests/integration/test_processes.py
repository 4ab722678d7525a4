"""Application processes of a running tree: they serve, are seen, end in every bad way, and nothing of them is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.leaks import arguments, descendants
from support.tree import ANSWER_WITHIN, Tree

Plant = Callable[..., Tree]
PYTTPD = [sys.executable, "-I", "-m", "pyttpd_ctl"]
CLIENT = (Path(__file__).parents[2] / "examples/handoff/pyttpd_handoff.py").read_text()
HOST = "app.localhost"
#: Says its pid; /die ends it with half an answer, /leak keeps memory, /fork leaves somebody with a session of his own.
SERVER = """
import os, signal, sys, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from pyttpd_handoff import listen
print("process", os.getpid(), "is there", flush=True)
if "ignores-term" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
kept = []
def fork():
    if os.fork():
        os.wait()
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.setsid()
    with open("data/pid", "w") as note:
        note.write(str(os.getpid()))
    os.rename("data/pid", "data/left-behind")
    time.sleep(1000)
for client in listen():
    with client:
        data = client.data
        while b"\\r\\n\\r\\n" not in data:
            data += client.sock.recv(65536)
        path = data.split()[1]
        if path.endswith(b"/fork"):
            fork()
        if path.endswith(b"/leak"):
            kept.append(bytearray(b"x" * (100 << 20)))
        body = str(os.getpid()).encode()
        head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: "
        if path.endswith(b"/die"):
            client.sock.sendall(head + b"1000\\r\\n\\r\\nhalf")
            os._exit(3)
        client.sock.sendall(head + str(len(body)).encode() + b"\\r\\n\\r\\n" + body)
"""
FILES = {
    "app/server.py": SERVER,
    "app/pyttpd_handoff.py": CLIENT,
    "app/data/.keep": "",
    "app/page.html": "a page",
}
TENANT = """
[vhost.app]
hosts = ["app.localhost"]
uid = 20005
root = "app"
writable = ["app/data"]
[[vhost.app.mount]]
path = "/"
kind = "static"
[[vhost.app.mount]]
path = "/app"
kind = "handoff"
command = ["python3", "server.py"]
processes = 2
"""
BAD = """
[[vhost.app.mount]]
path = "/bad"
kind = "handoff"
command = ["{program}"]
processes = 1
"""


def tree_of(plant: Plant, tenants: str = TENANT, **options: object) -> Tree:
    tree = plant(tenants=tenants, hosts=(HOST,), files=FILES, **options)
    (tree.folder / "app/data").chmod(0o777)
    return tree


def serving(tree: Tree, mount: str = "/app") -> float:
    key = ("pyttpd_vhost_processes", ("mount", mount), ("state", "serving"), ("vhost", "app"))
    return tree.samples("vhost", "app").get(key, -1.0)


def answering(tree: Tree) -> int:
    answer = tree.get(HOST, "/app/x")
    assert answer.status == 200, answer
    return int(answer.body)


def servers(tree: Tree) -> set[int]:
    return {pid for pid in descendants(tree.process.pid) if "server.py" in arguments(pid)}


def supervisor(tree: Tree) -> int:
    (found,) = [
        pid
        for pid in tree.pids("vhost", "app")
        if Path(f"/proc/{pid}/comm").read_text().startswith("v:") and os.getpgid(pid) != pid
    ]
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def pyttpd(tree: Tree, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTTPD, *words, "--metrics", f"127.0.0.1:{tree.metrics_port}"],
        capture_output=True,
        text=True,
        timeout=ANSWER_WITHIN,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )


@pytest.mark.parametrize("ordinary", [False, True])
def test_processes_serve_and_are_seen(plant: Plant, ordinary: bool) -> None:
    if not ordinary and os.geteuid() != 0:
        pytest.skip("needs root")
    tree = tree_of(plant, ordinary=ordinary)
    tree.wait_for(lambda: serving(tree) == 2)
    assert tree.get(HOST, "/page.html").body == b"a page"
    there = servers(tree)
    assert len(there) == 2
    assert answering(tree) in there
    # each has a reaper, and all are below the exec service
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(tree.process.pid)}
    assert sorted(name for name in names.values() if name[:2] in ("x:", "r:")) == ["r:app", "r:app", "x:app"]
    for pid in there:
        assert {"0", "1", "2"} <= set(os.listdir(f"/proc/{pid}/fd"))
        assert os.readlink(f"/proc/{pid}/fd/1").startswith("pipe:")
    tree.wait_for(lambda: tree.log().count("is there") == 2)
    assert re.search(rf"vhost\.app\[\d+\] info: output process {min(there)} is there", tree.log())

    shown = pyttpd(tree, "status")
    assert shown.returncode == 0, shown
    (row,) = [line for line in shown.stdout.splitlines() if "/app" in line]
    assert row.split()[:7] == ["app", "/app", "handoff", "yes", "2", "of", "2"]
    top = pyttpd(tree, "top", "--once").stdout
    assert len([line for line in top.splitlines() if "handoff at /app" in line]) == 2
    samples = tree.samples("vhost", "app")
    assert samples["pyttpd_vhost_process_starts_total", ("mount", "/app"), ("vhost", "app")] == 2
    tree.wait_for(
        lambda: (
            tree.samples("vhost", "app")[
                "pyttpd_vhost_process_memory_bytes", ("mount", "/app"), ("vhost", "app")
            ]
            > 1 << 20
        )
    )
    if ordinary:
        return
    assert {os.stat(f"/proc/{pid}").st_uid for pid in there} == {20005}


@pytest.mark.root
def test_one_that_dies_half_way_is_replaced_and_the_others_serve(plant: Plant) -> None:
    tree = tree_of(plant)
    tree.wait_for(lambda: serving(tree) == 2)
    before = servers(tree)
    with tree.connect() as connection:
        connection.sendall(b"GET /app/die HTTP/1.1\r\nHost: app.localhost\r\n\r\n")
        said = b""
        while piece := connection.recv(1000):
            said += piece
    assert said.endswith(b"half")
    tree.wait_for(lambda: len(servers(tree)) == 2 and servers(tree) != before and serving(tree) == 2)
    assert len(servers(tree) & before) == 1
    assert answering(tree) in servers(tree)
    exits = ("pyttpd_vhost_process_exits_total", ("mount", "/app"), ("reason", "crashed"), ("vhost", "app"))
    assert tree.samples("vhost", "app")[exits] == 1
    assert "application process ended" in tree.log()


@pytest.mark.root
def test_what_it_has_forked_ends_with_it(plant: Plant) -> None:
    """A daemon with a session of its own, whose parent has ended."""
    tree = tree_of(plant)
    tree.wait_for(lambda: serving(tree) == 2)
    by = answering_fork(tree)
    note = tree.folder / "app/data/left-behind"
    tree.wait_for(note.exists)
    left = int(note.read_text())
    assert not gone(left)
    os.kill(by, signal.SIGKILL)
    tree.wait_for(lambda: gone(left) and gone(by))
    tree.wait_for(lambda: serving(tree) == 2)


def answering_fork(tree: Tree) -> int:
    answer = tree.get(HOST, "/app/fork")
    assert answer.status == 200
    return int(answer.body)


@pytest.mark.root
@pytest.mark.parametrize(
    ("program", "why"), [("/bin/false", "ended with status 1"), ("/no/such", "No such file or directory")]
)
def test_one_that_never_runs_costs_its_mount_and_nothing_else(plant: Plant, program: str, why: str) -> None:
    began = time.monotonic()
    tree = tree_of(plant, TENANT + BAD.format(program=program))
    tree.expect("no process of a mount stays", "application failed")
    tree.wait_for(lambda: "no process of a mount stays" in tree.log())
    assert why in tree.log()
    tree.wait_for(lambda: tree.get(HOST, "/bad/x").status == 503)
    tree.wait_for(lambda: serving(tree) == 2)
    assert answering(tree) in servers(tree)
    assert tree.get(HOST, "/page.html").status == 200
    shown = pyttpd(tree, "status", "--json")
    assert shown.returncode == 1
    (tenant,) = json.loads(shown.stdout)["tenants"]
    states = {mount["mount"]: (mount["up"], mount["serving"]) for mount in tenant["mounts"]}
    assert states == {"/app": (True, 2), "/bad": (False, 0)}
    # the delay grows to 5 s: it isn't tried again and again
    assert tree.log().count(why) < 10 + (time.monotonic() - began) / 2


@pytest.mark.root
def test_one_that_leaks_is_replaced(plant: Plant) -> None:
    tree = tree_of(plant, TENANT + "max_memory = 80_000_000\n")
    tree.wait_for(lambda: serving(tree) == 2)
    leaky = int(tree.get(HOST, "/app/leak").body)
    tree.wait_for(lambda: gone(leaky), within=30)
    exits = ("pyttpd_vhost_process_exits_total", ("mount", "/app"), ("reason", "memory"), ("vhost", "app"))
    tree.wait_for(lambda: tree.samples("vhost", "app").get(exits) == 1 and serving(tree) == 2)


@pytest.mark.root
@pytest.mark.parametrize("who", ["supervisor", "exec service", "keeper"])
def test_none_outlives_who_has_started_it(plant: Plant, who: str) -> None:
    """Not even one that ignores SIGTERM; and others come."""
    tree = tree_of(plant, TENANT.replace('"server.py"]', '"server.py", "ignores-term"]'))
    tree.expect("gives no sign of life")
    tree.wait_for(lambda: serving(tree) == 2)
    answering(tree)
    before = servers(tree)
    names = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in descendants(tree.process.pid)}
    victim = {
        "supervisor": lambda: supervisor(tree),
        "exec service": lambda: names["x:app"],
        "keeper": lambda: next(pid for pid in tree.pids("vhost", "app") if os.getpgid(pid) == pid),
    }[who]()
    os.kill(victim, signal.SIGKILL)
    tree.wait_for(lambda: all(gone(pid) for pid in before), within=20)
    tree.wait_for(lambda: serving(tree) == 2 and answering(tree) > 0, within=30)
    assert not servers(tree) & before


@pytest.mark.root
def test_a_changed_command_takes_over_and_one_that_does_not_run_does_not(plant: Plant) -> None:
    tree = tree_of(plant)
    tree.expect("given up", "no process of a mount stays")
    tree.wait_for(lambda: serving(tree) == 2)
    before = servers(tree)
    keeper = next(pid for pid in tree.pids("vhost", "app") if os.getpgid(pid) == pid)
    server = tree.folder / "app/server.py"
    good = server.read_text()
    server.write_text("raise SystemExit(4)\n")
    os.kill(keeper, signal.SIGHUP)
    tree.wait_for(lambda: "given up" in tree.log(), within=30)
    assert servers(tree) == before
    assert answering(tree) in before
    server.write_text(good)
    os.kill(keeper, signal.SIGHUP)
    tree.wait_for(lambda: bool(servers(tree)) and not servers(tree) & before, within=30)
    assert answering(tree) in servers(tree)


@pytest.mark.root
def test_the_end_of_the_tree_is_theirs(plant: Plant) -> None:
    tree = tree_of(plant, TENANT.replace('"server.py"]', '"server.py", "ignores-term"]'))
    tree.wait_for(lambda: serving(tree) == 2)
    answering(tree)
    there = servers(tree)
    began = time.monotonic()
    tree.end(within=30)
    assert time.monotonic() - began < 30
    assert all(gone(pid) for pid in there)
