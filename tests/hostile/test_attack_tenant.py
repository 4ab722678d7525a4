"""A tenant's code against what it shares with others: sockets, uids, files. Each test is an attack that once worked."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyttpd.config.loader import load
from pyttpd.log import Log
from pyttpd.service import Options, StartError

from pyttpd_init.plain import Runner
from pyttpd_vhost import output
from support.leaks import state
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


DAEMON = """
import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if (pid := os.fork()) != 0:
        os.write(writer, str(pid).encode())
        os._exit(0)
    os.closerange(0, 100)
    time.sleep(600)
    os._exit(0)
os.wait()
told = int(os.read(reader, 20))
os.close(reader)
os.close(writer)
"""


@FORMS
def test_what_an_application_has_started_dies_with_its_keeper(
    evil: Callable[..., Tree], ordinary: bool
) -> None:
    """A role dies with its keeper; a daemon of the tenant's would live on, confined but nobody's, after the tree."""
    tree = evil(ordinary=ordinary)
    daemon = tell(tree, DAEMON)
    assert isinstance(daemon, int)
    assert state(daemon) not in "XZ"
    tree.expect("died", "lost", "away", "ended")
    os.kill(tree.pids("vhost", "evil")[0], signal.SIGKILL)
    tree.wait_for(lambda: state(daemon) in "XZ")
    tree.wait_for(lambda: tree.request("POST", HOST, "/", b"told = 1").status == 200)


CHMOD = """
import os
told = []
os.chmod(FOLDER, 0)
"""


@pytest.mark.root
def test_a_health_folder_that_a_tenant_closes_is_the_end_of_nobody(evil: Callable[..., Tree]) -> None:
    tree = evil(ordinary=False)
    before = tree.pids("vhost", "evil")
    folder = tree.folder / "run" / "health" / "vhost.evil"
    tell(tree, CHMOD.replace("FOLDER", repr(str(folder))))
    tree.wait_for(lambda: os.stat(folder).st_mode & 0o777 == 0)
    for _ in range(20):
        assert tree.request("POST", HOST, "/", b"import time; time.sleep(0.1); told = 1").status == 200
    # nobody who was there has ended; a worker may have come since
    assert set(before) <= set(tree.pids("vhost", "evil"))


# ---- the runner's directory -----------------------------------------------------------------------------------------

CONFIGURATION = """
runtime_dir = "{folder}"
[listen.http]
address = "127.0.0.1:28999"
[vhost.a]
hosts = ["a.example"]
uid = {uid}
kind = "static"
root = "{root}"
"""


def runner(tmp_path: Path, folder: Path) -> Runner:
    (tmp_path / "root").mkdir(exist_ok=True)
    file = tmp_path / "pyttpd.toml"
    file.write_text(CONFIGURATION.format(folder=folder, root=tmp_path / "root", uid=20_001))
    return Runner(Options(config=str(file)), load(str(file)), Log("init", "run"))


def test_cleaning_up_takes_away_what_it_made_and_nothing_else(tmp_path: Path) -> None:
    """runtime_dir = "/srv" is a mistake that must not cost what is there."""
    folder = tmp_path / "srv"
    for name in ("site", "init", "health/vhost.a"):
        (folder / name).mkdir(parents=True)
        (folder / name / "precious").write_text("precious")
    (folder / "health" / "vhost.a" / "state").write_text("ready\n")
    (folder / "lock").touch()
    one = runner(tmp_path, folder)
    one.as_root = False  # no egress rule was set
    one._clean()
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert left == ["health/vhost.a/precious", "init/precious", "site/precious"]


@pytest.mark.parametrize("kind", ["writable", "link"])
def test_a_directory_that_others_can_change_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    (tmp_path / "other").mkdir()
    if kind == "link":
        folder.symlink_to("other")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(StartError, match="nobody else can write in"):
        runner(tmp_path, folder).prepare()
    assert os.listdir(tmp_path / "other") == []


PRINT = """
import os, time
told = 0
end = time.monotonic() + 3
while time.monotonic() < end:
    told += os.write(1, bytes([10]) * 4096)
"""


@FORMS
def test_who_prints_without_end_fills_no_log(evil: Callable[..., Tree], ordinary: bool) -> None:
    """An empty line is one byte for its tenant, and sixty in the log of all."""
    tree = evil(ordinary=ordinary)
    log = tree.folder / "log"
    before = log.stat().st_size
    tell(tree, PRINT)
    assert log.stat().st_size - before < 8 * output.MAX_RATE
    assert tree.get("neighbour.localhost").status == 200


@FORMS
def test_what_its_caller_left_open_reaches_no_role(
    evil: Callable[..., Tree], monkeypatch: pytest.MonkeyPatch, ordinary: bool
) -> None:
    """A descriptor of the operator's shell, a directory say, would lead out of every namespace."""
    monkeypatch.setattr(subprocess, "Popen", functools.partial(subprocess.Popen, close_fds=False))
    with open("/etc/hostname", "rb") as left_open:
        os.set_inheritable(left_open.fileno(), True)
        tree = evil(ordinary=ordinary)
        for role, name in (("listener", "http"), ("umaster", ""), ("vhost", "evil")):
            held = {pid: files(pid) for pid in tree.pids(role, name)}
            assert not any(os.path.realpath("/etc/hostname") in names for names in held.values())
            assert sum(map(bool, held.values())) >= 2  # the keeper and the role


def files(pid: int) -> list[str]:
    """Return what the process has open beside the standard ones; of one that has ended, nothing."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            # descriptors come and go while we look
            with contextlib.suppress(FileNotFoundError):
                if fd.name not in "012":
                    found.append(os.readlink(fd))
    return found
