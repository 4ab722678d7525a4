"""The example tree as plain processes: its pages, forms, upload, streams and download, for root and for everybody."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import pytest

from support.leaks import arguments, descendants, state
from support.tree import ANSWER_WITHIN, GONE_WITHIN, READY_WITHIN, TENANTS, Tree, plain_environment

TOP = Path(__file__).resolve().parents[2]
EXAMPLES = TOP / "examples"
BOTH = pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)
Plant = Callable[..., Tree]
WSGI = {"hosts": ("wsgi.localhost",)}
EXAMPLE_TENANTS = TENANTS.replace(
    'root = "site"\n',
    'root = "site"\nerror_pages = { 404 = "404.html" }\n[vhost.static.static]\nlisting = true\n',
)


def example_files() -> dict[str, str | bytes]:
    """The example tenants, with the download that is made by a program."""
    files: dict[str, str | bytes] = {
        f"site/{path.relative_to(EXAMPLES / 'static/site')}": path.read_bytes()
        for path in (EXAMPLES / "static/site").rglob("*")
        if path.is_file()
    }
    files["site/download.bin"] = download()
    files["site/style.css.gz"] = gzip.compress((EXAMPLES / "static/site/style.css").read_bytes())
    files["application/app.py"] = (EXAMPLES / "wsgi/app.py").read_bytes()
    return files


def download() -> bytes:
    return b"".join(b"%010d " % number + b"." * 52 + b"\n" for number in range(10 * 1024 * 1024 // 64))


@BOTH
def test_the_example_tree_serves_what_it_promises(plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary, files=example_files(), tenants=EXAMPLE_TENANTS)
    pages(tree)
    forms(tree)
    uploads(tree)
    streams(tree)
    downloads(tree)
    tree.wait_for(lambda: not tree.busy())
    # What was said and done a moment ago is counted a turn, or a worker's second, later.
    tree.wait_for(lambda: counted(tree))


def pages(tree: Tree) -> None:
    for path in ("/", "/about.html", "/docs/", "/style.css", "/robots.txt"):
        name = path.lstrip("/") + ("index.html" if path.endswith("/") else "")
        answer = tree.get("static.localhost", path)
        assert answer.status == 200, path
        assert answer.body == (EXAMPLES / "static/site" / name).read_bytes()
    image = tree.get("static.localhost", "/logo.png")
    assert (image.headers["content-type"], image.body[:4]) == ("image/png", b"\x89PNG")
    head = tree.request("HEAD", "static.localhost", "/")
    assert (head.status, head.body) == (200, b"")
    for path in ("/../pyttpd.toml", "/%2e%2e/pyttpd.toml"):
        assert tree.get("static.localhost", path).status == 400
    missing = tree.get("static.localhost", "/no")
    assert (missing.status, missing.body) == (404, (EXAMPLES / "static/site/404.html").read_bytes())
    closed = tree.folder / "site/closed.txt"
    closed.touch(0)
    assert tree.get("static.localhost", "/closed.txt").status == 403
    listed = tree.get("static.localhost", "/files/")
    assert listed.status == 200
    assert b'<a href="tenants.csv">' in listed.body
    packed = tree.request("GET", "static.localhost", "/style.css", b"", {"Accept-Encoding": "gzip"})
    assert gzip.decompress(packed.body) == (EXAMPLES / "static/site/style.css").read_bytes()
    part = tree.request("GET", "static.localhost", "/download.bin", b"", {"Range": "bytes=-64"})
    assert (part.status, part.body) == (206, download()[-64:])
    assert tree.get("wsgi.localhost", "/no").status == 404
    for host in ("nobody.localhost", "static.localhost.evil", "10.0.0.1"):
        assert tree.get(host).status == 421


def forms(tree: Tree) -> None:
    fields = urlencode({"name": "J\u00f6rg", "message": "<b>"})
    got = tree.get("wsgi.localhost", f"/form?{fields}")
    sent = tree.request(
        "POST",
        "wsgi.localhost",
        "/form",
        fields.encode(),
        {"Content-Type": "application/x-www-form-urlencoded"},
    )
    for answer in (got, sent):
        assert answer.status == 200
        assert "J\u00f6rg: &lt;b&gt;" in answer.body.decode()


def uploads(tree: Tree) -> None:
    body = os.urandom(3_000_000)
    answer = tree.request("PUT", "wsgi.localhost", "/upload", body)
    assert answer.status == 200
    assert hashlib.sha256(body).hexdigest() in answer.body.decode()
    boundary = "x" * 30
    form = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'.encode()
        + body
        + f"\r\n--{boundary}--\r\n".encode()
    )
    answer = tree.request(
        "POST",
        "wsgi.localhost",
        "/upload",
        form,
        {"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    assert hashlib.sha256(body).hexdigest() in answer.body.decode()
    assert "name: a.bin" in answer.body.decode()


def streams(tree: Tree) -> None:
    """The lines come as they are made, and a slow answer comes in the end."""
    with tree.connect() as client:
        client.sendall(b"GET /stream HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n")
        got, first = b"", 0.0
        while data := client.recv(65_536):
            got += data
            if b"line 1 of" in got and not first:
                first = time.monotonic()
                assert b"line 10 of" not in got
    assert b"line 10 of 10" in got
    slow = tree.get("wsgi.localhost", "/slow?seconds=0.5")
    assert (slow.status, b"It took 0.5 s" in slow.body) == (200, True)


def downloads(tree: Tree) -> None:
    wanted = hashlib.sha256(download()).hexdigest()
    whole = tree.get("static.localhost", "/download.bin")
    assert whole.headers["content-length"] == str(10 * 1024 * 1024)
    assert hashlib.sha256(whole.body).hexdigest() == wanted
    # A client that reads slowly at first gets every byte as well.
    with tree.connect() as client:
        client.sendall(b"GET /download.bin HTTP/1.1\r\nHost: static.localhost\r\nConnection: close\r\n\r\n")
        got = client.recv(1000)
        time.sleep(0.3)
        while data := client.recv(1 << 20):
            got += data
    assert hashlib.sha256(got.partition(b"\r\n\r\n")[2]).hexdigest() == wanted


def counted(tree: Tree) -> bool:
    """Metrics of every role say what has happened."""
    init = tree.samples("init")
    assert init["pyttpd_init_hellos_total", ("result", "answered")] >= 4
    assert init["pyttpd_init_accept_queue_limit", ("listener", "http")] > 0
    assert init["pyttpd_init_accept_queue_depth", ("listener", "http")] == 0
    assert tree.samples("master")["pyttpd_master_shares_total", ("peer", "vhost")] >= 2
    listener = tree.samples("listener")
    assert listener["pyttpd_listener_answers_total", ("status", "421")] >= 3
    assert listener["pyttpd_listener_accepted_total",] >= listener["pyttpd_listener_settled_total",] > 0
    umaster = tree.samples("umaster")
    for name in ("static", "wsgi"):
        label = ("vhost", name)
        dispatched = umaster["pyttpd_umaster_dispatched_total", label]
        assert dispatched == umaster["pyttpd_umaster_taken_total", label] > 0
        assert umaster["pyttpd_umaster_queue_wait_seconds_count", label] == dispatched
    assert tree.samples("vhost", "wsgi")["pyttpd_vhost_bytes_sent_total", ("vhost", "wsgi")] > 1000
    return tree.samples("metrics")["pyttpd_listener_settled_total",] >= 1


def test_a_client_that_sends_byte_by_byte_is_served(plant: Plant) -> None:
    tree = plant(ordinary=True)
    with tree.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /x HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n":
            client.sendall(bytes([byte]))
        assert received(client).endswith(b"\r\n\r\n/x")


# ---- starting, and what is wrong then ----


def run(config: Path, as_user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-m", "pyttpd_init", "--plain", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd="/",
        env=plain_environment(),
        user=as_user,
        group=as_user,
        extra_groups=None if as_user is None else [],
    )


def test_a_second_start_says_what_is_wrong(plant: Plant) -> None:
    tree = plant(ordinary=True)
    user = os.stat(tree.folder).st_uid
    second = run(tree.folder / "pyttpd.toml", user if user != os.geteuid() else None)
    assert second.returncode == 2
    assert "another pyttpd runs with runtime_dir" in second.stderr
    assert tree.get("static.localhost").status == 200


def test_a_port_that_is_taken_is_said(plant: Plant) -> None:
    tree = plant(ordinary=True)
    user = os.stat(tree.folder).st_uid
    text = (tree.folder / "pyttpd.toml").read_text().replace('runtime_dir = "run"', 'runtime_dir = "run2"')
    other = tree.folder / "other.toml"
    other.write_text(text)
    other.chmod(0o644)
    second = run(other, user if user != os.geteuid() else None)
    assert second.returncode == 2
    assert (
        f"cannot listen on 127.0.0.1:{tree.port}" in second.stderr
        or "Address already in use" in second.stderr
    )
    assert not (tree.folder / "run2").exists()
    assert tree.get("static.localhost").status == 200


def test_a_configuration_that_is_wrong_is_said(tmp_path: Path) -> None:
    config = tmp_path / "pyttpd.toml"
    config.write_text("[listen.http]\naddres = 1\n")
    done = run(config)
    assert done.returncode == 2
    assert "addres" in done.stderr
    assert "Traceback" not in done.stderr


# ---- leaving ----

SLOW = """
import os, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/slow":
        time.sleep(float(environ["QUERY_STRING"]))
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
ONE_TENANT = """
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
"""


@pytest.mark.root
def test_a_killed_runner_leaves_nothing_as_root(plant: Plant) -> None:
    tree = plant()
    below = list(descendants(tree.process.pid))
    tree.process.kill()
    tree.process.wait()
    deadline = time.monotonic() + ANSWER_WITHIN
    while any(state(pid) not in "XZ" for pid in below):
        assert time.monotonic() < deadline, [arguments(pid) for pid in below]
        time.sleep(0.05)
    # Its lock is free again, and what it left in its folder is in nobody's way: the same tree can be started anew.
    with open(tree.folder / "log", "ab") as log:
        again = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-m",
                "pyttpd_init",
                "--plain",
                "--config",
                str(tree.folder / "pyttpd.toml"),
            ],
            stdout=log,
            stderr=log,
            cwd="/",
            env=plain_environment(),
            start_new_session=True,
        )
    tree.process = again
    tree.wait_for(lambda: tree.get("static.localhost").status == 200, 30.0)


def test_a_busy_tree_leaves_when_grace_is_over(plant: Plant) -> None:
    tree = plant(files={"application/app.py": SLOW}, extra="", tenants=ONE_TENANT, **WSGI, ordinary=True)
    tree.expect("grace", "gone", "killed", "ended", "died")
    with tree.connect() as client:
        client.sendall(b"GET /slow?60 HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n")
        tree.wait_for(lambda: tree.samples("umaster")["pyttpd_umaster_taken_total", ("vhost", "wsgi")] >= 2)
        tree.end(signal.SIGTERM, within=5.0 + 2.0 + GONE_WITHIN)


# ---- workers ----


def test_workers_that_retire_lose_no_request(plant: Plant) -> None:
    pool = "\n[vhost.wsgi.pool]\nmax_workers = 2\nmax_requests = 40\n"
    tree = plant(files={"application/app.py": SLOW}, tenants=ONE_TENANT + pool, **WSGI, ordinary=True)
    failures: list[str] = []
    pids: set[bytes] = set()
    done = [0]
    stop = threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", tree.port, timeout=ANSWER_WITHIN)
        with contextlib.closing(connection):
            while not stop.is_set():
                try:
                    # A request that a server may have closed its idle connection on can be repeated (RFC 9112, 9.3.1),
                    # but here that is exactly what must not be needed: connections are handed to siblings.
                    connection.request("GET", "/", headers={"Host": "wsgi.localhost"})
                    response = connection.getresponse()
                    pids.add(response.read())
                    done[0] += 1
                    if response.status != 200:
                        failures.append(f"status {response.status}")
                except (OSError, http.client.HTTPException) as error:
                    failures.append(repr(error))
                    connection.close()
                time.sleep(0.002)

    threads = [threading.Thread(target=client) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        tree.wait_for(lambda: len(pids) >= 6, 30.0)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:5]
    retired = ("pyttpd_vhost_worker_exits_total", ("reason", "requests"), ("vhost", "wsgi"))
    tree.wait_for(lambda: tree.samples("vhost", "wsgi").get(retired, 0) >= 2)
    # Counters of workers that ended are not lost.
    tree.wait_for(
        lambda: (
            tree.samples("vhost", "wsgi")["pyttpd_vhost_requests_total", ("code", "2xx"), ("vhost", "wsgi")]
            >= done[0]
        )
    )


def test_a_busy_workers_parked_connections_are_served_by_siblings(plant: Plant) -> None:
    pool = "\n[vhost.wsgi.pool]\nmax_workers = 2\n"
    tree = plant(files={"application/app.py": SLOW}, tenants=ONE_TENANT + pool, **WSGI, ordinary=True)
    tree.wait_for(
        lambda: tree.samples("umaster")["pyttpd_umaster_workers", ("vhost", "wsgi")] == 2, READY_WITHIN
    )
    with contextlib.ExitStack() as stack:
        by_pid: dict[bytes, list[socket.socket]] = {}
        for _ in range(40):
            sock = stack.enter_context(tree.connect())
            by_pid.setdefault(ask(sock), []).append(sock)
            if len(by_pid) == 2 and all(len(found) >= 3 for found in by_pid.values()):
                break
        assert len(by_pid) == 2, "one worker has got them all"
        busy, (slow, *parked) = next(iter(by_pid.items()))
        slow.sendall(b"GET /slow?4 HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n")
        time.sleep(0.2)
        begin = time.monotonic()
        for sock in parked:
            assert ask(sock) != busy
        assert time.monotonic() - begin < 3.0
        new = stack.enter_context(tree.connect())
        assert ask(new) != busy
        assert body_of(slow) == busy


def test_a_killed_worker_is_replaced_and_the_others_are_served(plant: Plant) -> None:
    tree = plant(files={"application/app.py": SLOW}, tenants=ONE_TENANT, **WSGI, ordinary=True)
    tree.expect("ended", "gone")
    first = int(tree.get("wsgi.localhost").body)
    os.kill(first, signal.SIGKILL)
    for _ in range(20):
        assert tree.get("wsgi.localhost").status == 200
    tree.wait_for(lambda: tree.samples("umaster")["pyttpd_umaster_workers", ("vhost", "wsgi")] == 2)


def test_a_stopped_worker_holds_nobody_up_for_long(plant: Plant) -> None:
    tree = plant(files={"application/app.py": SLOW}, tenants=ONE_TENANT, **WSGI, ordinary=True)
    tree.expect("is stopped and is killed", "takes nothing", "no sign of life", "ended")
    first = int(tree.get("wsgi.localhost").body)
    os.kill(first, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(tree.connect(30.0)) for _ in range(6)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: wsgi.localhost\r\nConnection: close\r\n\r\n")
        answers = [received(client) for client in clients]
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers), answers
    tree.wait_for(lambda: state(first) == "X")


def test_an_application_that_does_not_load_costs_its_neighbours_nothing(plant: Plant) -> None:
    tree = plant(
        files={"application/app.py": "raise RuntimeError('no')\n"},
        hosts=("static.localhost",),
        ordinary=True,
        extra="",
    )
    tree.expect("application does not load", "failed to load", "Traceback", "RuntimeError", "prototype")
    tree.wait_for(
        lambda: tree.samples("vhost", "wsgi")["pyttpd_vhost_application_failed", ("vhost", "wsgi")] == 1
    )
    assert tree.get("static.localhost").status == 200
    # It is tried again and again; the traceback is said once, and once more when there is another reason.
    tree.wait_for(lambda: tree.log().count("application does not load") >= 3)
    assert tree.log().count("Traceback (most recent call last)") == 1
    (tree.folder / "application/app.py").write_text("raise RuntimeError('still not')\n")
    tree.wait_for(lambda: tree.log().count("Traceback (most recent call last)") == 2)


def ask(sock: socket.socket) -> bytes:
    """Return the pid of the worker that answers on this connection."""
    sock.sendall(b"GET / HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n")
    return body_of(sock)


def body_of(sock: socket.socket) -> bytes:
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = sock.recv(65_536)
        assert data, f"the end, after {answer!r}"
        answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    assert b"connection: close" not in head.lower()
    return body


def received(client: socket.socket) -> bytes:
    answer = b""
    while data := client.recv(65_536):
        answer += data
    return answer
