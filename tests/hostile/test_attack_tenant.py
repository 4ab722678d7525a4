"""A tenant's code against what it shares with others: sockets, uids, files. Each test is an attack that once worked."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest

from support.tree import Tree

HOST = "evil.localhost"
TENANTS = """
[vhost.evil]
hosts = ["evil.localhost"]
uid = 20001
kind = "wsgi"
root = "evil"
application = "app:application"
pool = { max_workers = 1 }

[vhost.neighbour]
hosts = ["neighbour.localhost"]
uid = 20002
kind = "static"
root = "neighbour"
"""
#: Runs what it is sent; what that leaves in `told` is the answer.
APPLICATION = """
import json

def application(environ, start_response):
    names = {}
    exec(environ["wsgi.input"].read(), names)
    body = json.dumps(names["told"]).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
FILES = {"evil/app.py": APPLICATION, "neighbour/index.html": "neighbour\n"}

FORMS = pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)


@pytest.fixture
def evil(plant: Callable[..., Tree]) -> Callable[..., Tree]:
    return lambda *, ordinary: plant(
        tenants=TENANTS, files=FILES, hosts=("neighbour.localhost",), ordinary=ordinary
    )


def tell(tree: Tree, code: str) -> object:
    """Have the tenant run `code`; return what it leaves in `told`."""
    answer = tree.request("POST", HOST, "/", code.encode())
    assert answer.status == 200, answer
    return json.loads(answer.body)


#: Makes close() wait for the client, in whoever closes last: gives the connection away and keeps none.
LINGER = """
import errno, os, socket, struct
told = []
for fd in range(3, 64):
    try:
        one = socket.socket(fileno=os.dup(fd))
    except OSError:
        continue
    if one.family in (socket.AF_INET, socket.AF_INET6):
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            told.append("done")
        except OSError as error:
            told.append(errno.errorcode[error.errno])
    one.close()
"""


@FORMS
def test_no_connection_is_made_one_whose_close_waits(evil: Callable[..., Tree], ordinary: bool) -> None:
    """The listener (by Taken) and umaster (by Pass) would close the last copy, and stop until a client has read all."""
    assert tell(evil(ordinary=ordinary), LINGER) == ["EPERM"]


OTHERS = """
import os, resource
told = []
def attempt(name, what, *arguments):
    try:
        what(*arguments)
    except PermissionError:
        return
    told.append(name)
for pid in PIDS:
    attempt(f"limit {pid}", resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1))
    attempt(f"affinity {pid}", os.sched_setaffinity, pid, {0})
    attempt(f"scheduler {pid}", os.sched_setscheduler, pid, os.SCHED_IDLE, os.sched_param(0))
    attempt(f"nice {pid}", os.setpriority, os.PRIO_PROCESS, pid, 19)
attempt("nice user", os.setpriority, os.PRIO_USER, os.getuid(), 19)
resource.prlimit(0, resource.RLIMIT_CORE, (0, 0))
os.nice(1)
os.sched_setaffinity(0, os.sched_getaffinity(0))
"""


@FORMS
def test_nobody_elses_limits_are_set(evil: Callable[..., Tree], ordinary: bool) -> None:
    """Keeper and supervisor have the tenant's uid, and under an ordinary user everybody has: that is all it takes."""
    tree = evil(ordinary=ordinary)
    pids = [*tree.pids("vhost", "evil")[:2], *tree.pids("umaster"), *tree.pids("vhost", "neighbour")]
    assert tell(tree, OTHERS.replace("PIDS", repr(pids))) == []
    with socket.create_connection(("127.0.0.1", tree.port), 10):
        assert tree.get("neighbour.localhost").status == 200
