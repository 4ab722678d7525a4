"""FastCGI and SCGI in a whole tree: PHP by processes of the supervisor's, somebody else's socket, counted faults."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.leaks import arguments, descendants
from support.tree import Tree

Plant = Callable[..., Tree]
BOTH = pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)
HOST = "php.localhost"
TENANT = """
[vhost.php]
hosts = ["php.localhost"]
uid = 20002
root = "web"
[vhost.php.pool]
max_workers = 2
[[vhost.php.mount]]
path = "/"
kind = "fastcgi"
command = ["php-cgi", "-d", "log_errors=1", "-d", "error_log="]
processes = 2
scripts = [".php"]
front_controller = "index.php"
[[vhost.php.mount]]
path = "/files"
kind = "static"
root = "files"
[[vhost.php.mount]]
path = "/socket"
kind = "scgi"
socket = "elsewhere/scgi.sock"
"""
FILES = {
    "web/index.php": "<?php echo 'front ', $_SERVER['REQUEST_URI'];",
    "web/style.css": "body {}",
    "web/info.php": (
        "<?php session_start(); $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1; error_log('said');"
        "echo json_encode([$_SERVER['PATH_INFO'] ?? '', $_SESSION['n'], $_FILES['f']['size'] ?? -1]);"
    ),
    "files/a.txt": "a file",
    "elsewhere/keep": "",
}


def processes(tree: Tree) -> list[int]:
    return [pid for pid in descendants(tree.process.pid) if arguments(pid)[:1] == ["php-cgi"]]


def faults(tree: Tree, mount: str, reason: str) -> float:
    key = ("pyttpd_vhost_backend_errors_total", ("mount", mount), ("reason", reason), ("vhost", "php"))
    return tree.samples("vhost", "php").get(key, -1)


@contextlib.contextmanager
def scgi(path: Path) -> Iterator[None]:
    """An SCGI application that answers one request with its PATH_INFO."""

    def answer() -> None:
        with listener.accept()[0] as sock:
            data = b""
            while not data.endswith(b","):
                data += sock.recv(65536)
            sock.sendall(b"Status: 201 Made\n\n" + data.split(b"\0PATH_INFO\0")[1].split(b"\0")[0])

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        listener.settimeout(20)
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            thread.join()
            path.unlink()


@BOTH
@pytest.mark.program("php-cgi")
def test_php_and_two_more_kinds(plant: Plant, ordinary: bool) -> None:
    tree = plant(tenants=TENANT, files=FILES, hosts=(HOST,), ordinary=ordinary)
    assert tree.get(HOST, "/a/b?c").body == b"front /a/b?c"
    assert tree.get(HOST, "/style.css").headers["content-type"].startswith("text/css")
    assert tree.get(HOST, "/files/a.txt").body == b"a file"
    assert tree.get(HOST, "/files/../web/index.php").body.startswith(b"front ")
    # a session, and an upload: files in the tenant's own /tmp
    first = tree.get(HOST, "/info.php/x")
    cookie = first.headers["set-cookie"].partition(";")[0]
    content = b'Content-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + bytes(1_000_000)
    form = b"--X\r\n" + content + b"\r\n--X--\r\n"
    headers = {"Cookie": cookie, "Content-Type": "multipart/form-data; boundary=X"}
    second = tree.request("POST", HOST, "/info.php/y", form, headers)
    assert json.loads(first.body) == ["/x", 1, -1]
    assert json.loads(second.body) == ["/y", 2, 1_000_000]
    tree.wait_for(lambda: "info: output /: said" in tree.log())
    # somebody else's socket: nobody there, then somebody
    assert tree.get(HOST, "/socket/x").status == 503
    tree.wait_for(lambda: faults(tree, "/socket", "unreachable") == 1)
    with scgi(tree.folder / "elsewhere" / "scgi.sock"):
        answer = tree.get(HOST, "/socket/%61/b")
    assert (answer.status, answer.body) == (201, b"/a/b")
    assert faults(tree, "/", "died") == 0


@pytest.mark.root
@pytest.mark.program("php-cgi")
def test_php_does_not_end_by_itself(plant: Plant) -> None:
    """php-cgi by itself does after 500 requests: under load that would look like a crash, and clients would wait."""
    tree = plant(
        tenants=TENANT.replace("processes = 2", "processes = 1", 1),
        files=FILES | {"web/pid.php": "<?php echo getmypid();"},
        hosts=(HOST,),
    )
    answers = {tree.get(HOST, "/pid.php").body for _ in range(520)}
    assert len(answers) == 1, answers


@pytest.mark.root
@pytest.mark.program("php-cgi")
@pytest.mark.parametrize("workers", [2, 1])
def test_a_process_that_is_killed(plant: Plant, workers: int) -> None:
    """Its request gets 502, the next one is served; the count outlives the worker that has made it."""
    tree = plant(
        tenants=TENANT.replace("max_workers = 2", f"max_workers = {workers}"),
        files=FILES | {"web/die.php": "<?php exec('kill -9 ' . getmypid());"},
        hosts=(HOST,),
    )
    assert tree.get(HOST, "/die.php").status == 502
    tree.wait_for(lambda: faults(tree, "/", "died") == 1)
    tree.wait_for(lambda: tree.get(HOST, "/").status == 200)
    tree.wait_for(lambda: len(processes(tree)) == 2)
    for pid in tree.pids("vhost", "php"):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().startswith("w"):
                os.kill(pid, signal.SIGKILL)
    tree.wait_for(lambda: tree.log().count("worker ended") == workers)
    tree.wait_for(lambda: tree.get(HOST, "/").status == 200)
    assert faults(tree, "/", "died") == 1
