"""Tenants that sleep: their keepers and supervisors come from one seed, and nothing that meets a client or a tenant's
code does. What is forked from one process has its layout of memory and its key of hash().
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.leaks import arguments, descendants
from support.tree import Tree

Plant = Callable[..., Tree]

TENANTS = "".join(
    f"""
[vhost.{name}]
hosts = ["{name}.localhost"]
uid = {uid}
kind = "wsgi"
root = "application"
application = "app:application"
[vhost.{name}.pool]
mode = "ondemand"
max_workers = 1
idle_timeout = {idle}
"""
    for name, uid, idle in (("one", 20001, 60.0), ("two", 20002, 0.5))
)
#: What a tenant's code can find out that would help it against another tenant's process.
APPLICATION = """
import json
def application(environ, start_response):
    body = json.dumps({"hash": hash("pyttpd"), "address": id(application)}).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def start(plant: Plant, **options: object) -> Tree:
    """A tree of two tenants that nobody has asked for anything."""
    tree = plant(tenants=TENANTS, hosts=(), files={"application/app.py": APPLICATION}, **options)
    tree.wait_for(lambda: all(health(tree, name) == "ready" for name in ("one", "two")), 30.0)
    return tree


def health(tree: Tree, name: str) -> str:
    return (tree.folder / f"run/health/vhost.{name}/state").read_text().strip()


def named(tree: Tree, name: str) -> list[int]:
    """Processes of the tree with this name, parents first."""
    found = []
    for pid in descendants(tree.process.pid):
        with contextlib.suppress(OSError):
            if re.fullmatch(name, Path(f"/proc/{pid}/comm").read_text().strip()):
                found.append(pid)
    return sorted(found, key=lambda pid: len([other for other in found if pid in descendants(other)]))


def layout(pid: int) -> str:
    """Where a process has its C library. (Python itself may be built for one address: Debian's is.)"""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return next(line.partition("-")[0] for line in lines if "/libc.so" in line)


def told(tree: Tree, name: str) -> dict[str, int]:
    answer = tree.get(f"{name}.localhost")
    assert answer.status == 200
    found: dict[str, int] = json.loads(answer.body)
    return found


@pytest.mark.root
def test_who_meets_strangers_is_like_nobody_else(plant: Plant) -> None:
    tree = start(plant)
    asleep = {name: named(tree, f"v:{name}") for name in ("one", "two")}
    assert [len(pids) for pids in asleep.values()] == [2, 2], asleep
    (seed,) = named(tree, "pyttpd-seed")
    alike = {layout(pid) for pids in asleep.values() for pid in pids}
    assert alike == {layout(seed)}
    assert not named(tree, "[pw][0-9]*:.*")
    one, two = told(tree, "one"), told(tree, "two")
    assert one["hash"] != two["hash"] and one["address"] != two["address"]
    layouts: list[str] = []
    for name, keeper in (("one", asleep["one"][0]), ("two", asleep["two"][0])):
        _, supervisor = named(tree, f"v:{name}")
        assert supervisor not in asleep[name] and keeper in named(tree, f"v:{name}")
        of_tenant = {layout(pid) for pid in (supervisor, *named(tree, f"[pw][0-9]*:{name}"))}
        assert len(of_tenant) == 1  # the prototype and workers are forks of it, as ever
        layouts += of_tenant
    assert len({*layouts, layout(seed)}) == 3


@pytest.mark.root
def test_a_seed_has_nothing(plant: Plant) -> None:
    tree = start(plant)
    (seed,) = named(tree, "pyttpd-seed")
    told(tree, "one")
    descriptors = sorted(int(fd) for fd in os.listdir(f"/proc/{seed}/fd"))
    assert descriptors[:3] == [0, 1, 2]
    ((pair,), rest) = descriptors[3:4], descriptors[4:]
    assert os.readlink(f"/proc/{seed}/fd/{pair}").startswith("socket:")
    assert rest in ([], [990]), rest  # that one is coverage's (support/measure.py)
    names = {
        word.split(b"=")[0].decode()
        for word in Path(f"/proc/{seed}/environ").read_bytes().split(b"\0")
        if word
    }
    assert names <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ"}


def test_without_root_each_gets_its_doors(plant: Plant) -> None:
    tree = start(plant, ordinary=True)
    assert told(tree, "one")["hash"] != told(tree, "two")["hash"]


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_keepers_outlive_their_seed_and_get_another(plant: Plant, number: signal.Signals) -> None:
    tree = start(plant)
    tree.expect("keeper is stopped", "a keeper can't be asked for")
    (seed,) = named(tree, "pyttpd-seed")
    keeper, supervisor = named(tree, "v:one")
    os.kill(seed, number)
    assert told(tree, "one")["hash"]
    assert keeper in named(tree, "v:one")
    os.kill(keeper, signal.SIGKILL)
    tree.wait_for(lambda: len(pids := named(tree, "v:one")) == 2 and keeper not in pids, 40.0)
    assert supervisor not in named(tree, "v:one")
    assert named(tree, "pyttpd-seed") not in ([], [seed])
    assert told(tree, "one")["hash"]


@pytest.mark.root
def test_who_is_replaced_while_awake_sleeps_again_and_wakes_again(plant: Plant) -> None:
    tree = start(plant)
    (seed,) = named(tree, "pyttpd-seed")
    first = told(tree, "one")
    _, awake = named(tree, "v:one")
    assert "--beat" in arguments(awake)
    os.kill(awake, signal.SIGTERM)
    tree.wait_for(lambda: len(pids := named(tree, "v:one")) == 2 and layout(pids[1]) == layout(seed))
    assert told(tree, "one")["hash"] not in (first["hash"], told(tree, "two")["hash"])


@pytest.mark.root
def test_who_has_been_left_alone_for_long_sleeps_as_before(plant: Plant) -> None:
    tree = start(plant)
    (seed,) = named(tree, "pyttpd-seed")
    told(tree, "two")
    assert layout(named(tree, "v:two")[1]) != layout(seed)
    tree.wait_for(lambda: len(pids := named(tree, "v:two")) == 2 and layout(pids[1]) == layout(seed), 40.0)
    told(tree, "two")


@pytest.mark.root
def test_a_killed_supervisor_that_slept_is_there_again(plant: Plant) -> None:
    tree = start(plant)
    keeper, supervisor = named(tree, "v:one")
    os.kill(supervisor, signal.SIGKILL)
    tree.wait_for(lambda: named(tree, "v:one")[1:] not in ([], [supervisor]))
    assert keeper in named(tree, "v:one")
    assert told(tree, "one")["hash"]


#: Tenants that import until somebody lets them go on, by a FIFO.
HELD = "".join(
    f"""
[vhost.{name}]
hosts = ["{name}.localhost"]
uid = {uid}
kind = "wsgi"
root = "application"
application = "app:application"
env = {{ GATE = "{name}.gate" }}
queue = {{ timeout = 120.0 }}
pool = {{ mode = "ondemand", max_workers = 1 }}
"""
    for uid, name in enumerate(("one", "two", "three"), 20001)
)
GATE = """
import os
with open(os.environ["GATE"]) as gate:
    gate.read()
"""


@pytest.mark.root
def test_who_waits_for_a_tenant_that_wakes_is_answered_whoever_is_killed(plant: Plant) -> None:
    names = ("one", "two", "three")
    tree = plant(tenants=HELD, hosts=(), files={"application/app.py": GATE + APPLICATION})
    tree.wait_for(lambda: all(health(tree, name) == "ready" for name in names), 30.0)
    gates = {name: tree.folder / f"application/{name}.gate" for name in names}
    for gate in gates.values():
        os.mkfifo(gate, 0o644)
        gate.chmod(0o644)

    def visit(name: str) -> bytes:
        with tree.connect(timeout=120.0) as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {name}.localhost\r\nConnection: close\r\n\r\n".encode())
            with sock.makefile("rb") as answer:
                return answer.read()

    def let_go(name: str) -> bool:
        os.close(os.open(gates[name], os.O_WRONLY | os.O_NONBLOCK))  # an error, as long as nobody reads
        return True

    with ThreadPoolExecutor(len(names)) as visitors:
        answers = [visitors.submit(visit, name) for name in names]
        tree.wait_for(lambda: all(named(tree, f"p:{name}") for name in names), 40.0)
        first = {name: named(tree, f"p:{name}") for name in names}
        os.kill(named(tree, "v:one")[0], signal.SIGKILL)  # the keeper
        os.kill(named(tree, "v:two")[1], signal.SIGKILL)  # the supervisor that was woken
        os.kill(first["three"][0], signal.SIGKILL)
        # What a killed supervisor leaves behind has some time, and must not be who is let go.
        tree.wait_for(
            lambda: all((pids := named(tree, f"p:{name}")) and first[name][0] not in pids for name in names),
            60.0,
        )
        for name in names:
            tree.wait_for(lambda name=name: let_go(name), 40.0)  # type: ignore[misc]
        for answer in answers:
            assert answer.result().startswith(b"HTTP/1.1 200 "), answer.result()
