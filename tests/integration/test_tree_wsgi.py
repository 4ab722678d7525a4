"""WSGI in a whole tree: virtual environments, applications that each worker imports, and what they do wrong."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyttpd.virtualenv import version

from support.tree import READY_WITHIN, Tree

Plant = Callable[..., Tree]
BOTH = pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)
WSGI = {"hosts": ("wsgi.localhost",), "ordinary": True}
TENANT = """
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
"""
PACKAGES = f"venv/lib/python{version()}/site-packages"


def counted(tree: Tree, name: str, *labels: tuple[str, str]) -> float:
    return tree.samples("vhost", "wsgi").get((name, *sorted([("vhost", "wsgi"), *labels])), 0)


# ---- what leaves ----

AT_WORK = """
import os, time

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/work":
        yield str(os.getpid()).encode()
        while not os.path.exists("go"):
            time.sleep(0.01)
    yield b" done"
"""


def test_a_worker_that_drains_is_seen_and_how_long(plant: Plant) -> None:
    tree = plant(tenants=TENANT, files={"application/app.py": AT_WORK}, **WSGI)
    with tree.connect() as client:
        client.sendall(b"GET /work HTTP/1.0\r\nHost: wsgi.localhost\r\n\r\n")
        answer = b""
        while not (begun := answer.partition(b"\r\n\r\n")[2]):
            answer += client.recv(65536)
        os.kill(int(begun), signal.SIGTERM)
        tree.wait_for(lambda: counted(tree, "pyttpd_vhost_workers", ("state", "leaving")) == 1)
        tree.wait_for(lambda: counted(tree, "pyttpd_vhost_leaving_seconds") > 0)
        assert tree.get("wsgi.localhost").body == b" done"
        (tree.folder / "application/go").touch()
        while data := client.recv(65536):
            answer += data
    assert answer.endswith(b" done")
    tree.wait_for(lambda: counted(tree, "pyttpd_vhost_workers", ("state", "leaving")) == 0)
    assert counted(tree, "pyttpd_vhost_leaving_seconds") == 0


# ---- virtual environments ------------------------------------------------------------------------------------------

INSTALLED = """
import os
import shared

def application(environ, start_response):
    try:
        import hidden
        found = "found"
    except ImportError:
        found = "closed"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{__file__} {shared.__file__} {found}".encode()]
"""


@BOTH
def test_a_virtual_environment(plant: Plant, ordinary: bool) -> None:
    """Its packages are found, and what its .pth files name if the operator has opened it; nothing else."""
    tree = plant(
        tenants=TENANT.replace("app:", "installed:") + 'virtualenv = "venv"\npython_path = ["shared"]\n',
        files={
            "venv/pyvenv.cfg": f"home = /usr/bin\nversion = {version()}.0\n",
            f"{PACKAGES}/installed.py": INSTALLED,
            f"{PACKAGES}/x.pth": "../../../../hidden\n../../../../shared\n",
            "hidden/hidden.py": "",
            "shared/shared.py": "",
        },
        hosts=("wsgi.localhost",),
        ordinary=ordinary,
    )
    answer = tree.get("wsgi.localhost").body.decode()
    assert answer == f"{tree.folder}/{PACKAGES}/installed.py {tree.folder}/shared/shared.py closed"


# ---- preload = false -----------------------------------------------------------------------------------------------

IMPORTED = """
import os, threading, time

IMPORTED_BY = os.getpid()
END = threading.Event()
threading.Thread(target=END.wait, daemon=True, name="pumps").start()

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    alive = "pumps" in [thread.name for thread in threading.enumerate()]
    return [f"{IMPORTED_BY == os.getpid()} {alive}".encode()]
"""
#: Says that it is being imported, and waits for a word.
SLOW = """
import os, time
print("importing")
while not os.path.exists("go"):
    time.sleep(0.01)
print("imported")
"""


@BOTH
def test_without_preload_each_worker_imports(plant: Plant, ordinary: bool) -> None:
    tree = plant(
        tenants=TENANT + "preload = false\n",
        files={"application/app.py": IMPORTED},
        hosts=("wsgi.localhost",),
        ordinary=ordinary,
    )
    assert tree.get("wsgi.localhost").body == b"True True"
    assert "threads that the application has started" not in tree.log()


def test_with_preload_threads_of_the_import_are_missing_and_that_is_told(plant: Plant) -> None:
    tree = plant(tenants=TENANT, files={"application/app.py": IMPORTED}, **WSGI)
    assert tree.get("wsgi.localhost").body == b"False False"
    assert "threads that the application has started" in tree.log()


def test_a_vhost_is_not_ready_before_a_worker_has_imported(plant: Plant) -> None:
    tree = plant(
        tenants=TENANT + "preload = false\n",
        files={"application/app.py": SLOW + IMPORTED},
        hosts=(),
        ordinary=True,
    )
    tree.wait_for(lambda: "output importing" in tree.log(), READY_WITHIN)
    (health,) = (tree.folder / "run/health").glob("vhost*wsgi")
    assert (health / "state").read_text().split()[0] == "starting"
    assert counted(tree, "pyttpd_vhost_workers", ("state", "serving")) == 0
    (tree.folder / "application/go").touch()
    tree.wait_for(lambda: tree.get("wsgi.localhost").body == b"True True")
    tree.wait_for(lambda: (health / "state").read_text().split()[0] == "ready")


@pytest.mark.parametrize("how", ["raise RuntimeError('no')", "import sys; sys.exit('no')", "1/"])
def test_without_preload_an_import_that_fails_is_tried_again(plant: Plant, how: str) -> None:
    tree = plant(
        tenants=TENANT + "preload = false\n", files={"application/app.py": how}, hosts=(), ordinary=True
    )
    tree.expect("application does not load", "application failed to load", "worker ended")
    tree.wait_for(lambda: counted(tree, "pyttpd_vhost_application_failed") == 1, READY_WITHIN)
    # The traceback is in the tenant's log.
    tree.wait_for(lambda: "Traceback (most recent call last)" in tree.log())
    new = tree.folder / "application/new.py"
    new.write_text(IMPORTED)
    new.chmod(0o644)
    os.rename(new, tree.folder / "application/app.py")
    tree.wait_for(lambda: tree.get("wsgi.localhost").body == b"True True", READY_WITHIN)
    tree.wait_for(lambda: counted(tree, "pyttpd_vhost_application_failed") == 0)


# ---- an application that ends its process --------------------------------------------------------------------------

ENDING = """
import os

def application(environ, start_response):
    if environ["PATH_INFO"] == "/exit":
        os._exit(3)
    if environ["PATH_INFO"] == "/half":
        start_response("200 OK", [("Content-Type", "text/plain")])(b"half")
        os._exit(0)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"fine"]
"""


def test_an_application_that_ends_its_process(plant: Plant) -> None:
    """Its client loses the connection, without a complete answer; the worker is counted, and another one serves."""
    tree = plant(tenants=TENANT, files={"application/app.py": ENDING}, **WSGI)
    tree.expect("worker ended")
    for number, (path, sent) in enumerate((("/exit", b""), ("/half", b"half")), 1):
        with tree.connect() as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n".encode())
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while data := client.recv(65536):
                    answer += data
        assert sent in answer
        assert not answer.endswith(b"0\r\n\r\n")
        assert tree.get("wsgi.localhost").body == b"fine"
        tree.wait_for(lambda number=number: ended(tree) == number)  # type: ignore[misc]


def ended(tree: Tree) -> float:
    samples = tree.samples("vhost", "wsgi")
    return sum(value for key, value in samples.items() if key[0] == "pyttpd_vhost_worker_exits_total")


# ---- threads -------------------------------------------------------------------------------------------------------

MEETING = """
import os, threading

MEETING = threading.Barrier(2, timeout=8)

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/meet":
        MEETING.wait()
    return [f"{os.getpid()} {environ['wsgi.multithread']}".encode()]
"""


def test_what_is_said_of_threads_is_true(plant: Plant) -> None:
    """Two requests that wait for each other are answered by one process that says so."""
    pool = "[vhost.wsgi.pool]\nmax_workers = 1\nmax_threads = 2\n"
    tree = plant(tenants=TENANT + pool, files={"application/app.py": MEETING}, **WSGI)
    with ThreadPoolExecutor(2) as clients:
        one, two = clients.map(lambda path: tree.get("wsgi.localhost", path).body, ["/meet", "/meet"])
    assert one == two
    assert one.endswith(b" True")
