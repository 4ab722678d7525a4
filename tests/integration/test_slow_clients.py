"""Slow clients against a real tree: slowhttptest in all its modes, many idle connections, streams without end.

What each may cost is in docs/limits.md: a slow head, a short body, an idle connection and the tail of a response a
descriptor; a long body, and a reader in the middle of a response, one thread for as long as the rates allow.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.tree import Tree, start

pytestmark = pytest.mark.root

APPLICATION = """
PIECE = bytes(65536)

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if environ["REQUEST_METHOD"] == "POST":
        size = 0
        while data := environ["wsgi.input"].read(65536):
            size += len(data)
        start_response("200 OK", [])
        return [b"%d" % size]
    start_response("200 OK", [("Content-Type", "text/plain")])
    if path == "/page":
        return [bytes(200_000)]
    if path.startswith("/pieces/"):
        return (PIECE for _ in range(int(path[8:])))
    return [b"small"]
"""
TENANTS = """
[vhost.slow]
hosts = ["slow.localhost"]
default = true
uid = 20001
kind = "wsgi"
root = "application"
application = "app:application"
[vhost.slow.http]
body_limit = 2_000_000_000
rate_grace = 5
stress_factor = 0.1

# Whose connections are kept as long as a test lasts: no stress, not even what a test before has left, makes it shorter.
[vhost.kept]
hosts = ["kept.localhost"]
uid = 20004
kind = "wsgi"
root = "application"
application = "app:application"
[vhost.kept.http]
idle_timeout = 600
stress_factor = 1
max_connections_per_client = 12_000

[vhost.files]
hosts = ["files.localhost"]
uid = 20002
kind = "static"
root = "site"
"""
HOSTS = ("slow.localhost", "files.localhost")
KEPT = "kept.localhost"
#: What an active client notices at most (s) of what others do. This machine may be busy with other tests.
PROMPT = 2.5
MIB = 1 << 20
#: Over the loopback that takes about a second.
GIGABYTE = 1000 * MIB


@pytest.fixture(scope="module")
def descriptors() -> Iterator[int]:
    """As many descriptors as this machine allows, for us and the tree; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = hard if hard != resource.RLIM_INFINITY else 20_000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(allowed, 20_000)), hard))
    yield resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def tree(descriptors: int) -> Iterator[Tree]:
    tree = start(
        tenants=TENANTS,
        hosts=(*HOSTS, KEPT),
        files={"application/app.py": APPLICATION, "site/index.html": "small", "site/big": bytes(5_000_000)},
    )
    (tree.folder / "site/huge").touch(0o644)
    os.truncate(tree.folder / "site/huge", GIGABYTE // 4)  # all holes, which take their time to be read
    try:
        yield tree
        tree.check_and_end()
    finally:
        if tree.process.poll() is None:
            tree.kill()
        shutil.rmtree(tree.folder, ignore_errors=True)


class Active:
    """A client that asks all the time, for each of some hosts, on a new connection each time."""

    def __init__(self, tree: Tree, hosts: tuple[str, ...] = HOSTS) -> None:
        self.tree = tree
        self.longest = 0.0
        self.answers = 0
        self.faults: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(host,)) for host in hosts]

    def _ask(self, host: str) -> None:
        while not self._stop.wait(0.05):
            began = time.monotonic()
            try:
                status = self.tree.get(host).status
            except OSError as error:
                self.faults.append(f"{host}: {error!r}")
                continue
            self.longest = max(self.longest, time.monotonic() - began)
            self.answers += 1
            if status != 200:
                self.faults.append(f"{host}: {status}")

    def __enter__(self) -> Active:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def assert_well(self) -> None:
        assert not self.faults, self.faults[:5]
        assert self.answers > 10
        assert self.longest < PROMPT


def attack(tree: Tree, path: str, *options: str, seconds: int = 3) -> subprocess.Popen[bytes]:
    """slowhttptest with 300 connections; a new one each 3 ms, another piece each second, for some seconds in all."""
    url = f"http://127.0.0.1:{tree.port}{path}"
    command = ["slowhttptest", "-c", "300", "-r", "300", "-i", "1", "-l", str(seconds), "-p", "3", "-u", url]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


# ---- slowhttptest ----------------------------------------------------------------------------------------------------

MODES = {
    "slow headers": ("/", "-H", "-x", "24"),
    "slow body": ("/", "-B", "-s", "8192", "-x", "10"),
    "slow read": ("/page", "-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3"),
    "ranges": ("/", "-R", "-a", "5", "-b", "2000"),
}


@pytest.mark.program("slowhttptest")
@pytest.mark.parametrize("mode", MODES)
def test_slowhttptest_does_not_keep_others_waiting(tree: Tree, mode: str) -> None:
    """300 of them at a tenant with two workers: its own clients don't notice."""
    with Active(tree) as active:
        output = attack(tree, *MODES[mode]).communicate()[0].decode(errors="replace")
    active.assert_well()
    assert "service available" in output
    assert "NO" not in output, output
    tree.wait_for(lambda: not tree.busy())


def stress(tree: Tree, name: str) -> float:
    return tree.samples("vhost", "slow")[f"pyttpd_vhost_{name}", ("vhost", "slow")]


@pytest.mark.program("slowhttptest")
def test_what_costs_threads_costs_the_neighbour_nothing(tree: Tree) -> None:
    """Long bodies, and responses in pieces: each holds a thread for as long as the rates allow, of this tenant only.

    There it is stress; and when it is over, all is as before.
    """
    # Where a test before has left stress, none could begin.
    tree.wait_for(lambda: not stress(tree, "stress"), within=30)
    before = stress(tree, "stress_episodes_total")
    with Active(tree, ("files.localhost",)) as active:
        attacks = [
            attack(tree, "/", "-B", "-s", "1000000", "-x", "10", seconds=60),
            attack(tree, "/pieces/500", "-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", seconds=60),
        ]
        try:
            tree.wait_for(lambda: stress(tree, "stress") == 1, within=40)
            tree.wait_for(lambda: active.answers > 10)
        finally:
            for one in attacks:
                one.terminate()
            for one in attacks:
                one.communicate()
    active.assert_well()
    episodes = stress(tree, "stress_episodes_total")
    assert episodes > before
    assert tree.log().count("stress begins") == episodes
    tree.wait_for(lambda: tree.get("slow.localhost").status == 200, within=20)
    tree.wait_for(lambda: not tree.busy())


# ---- threads are given back ------------------------------------------------------------------------------------------


def test_each_of_many_slow_readers_gives_its_thread_back(tree: Tree) -> None:
    """More of them than there are threads, all stopped in the middle: the rates end it, and somebody else is served."""
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            sock = stack.enter_context(tree.connect())
            sock.sendall(b"GET /pieces/500 HTTP/1.1\r\nHost: slow.localhost\r\n\r\n")
        began = time.monotonic()
        tree.wait_for(lambda: tree.get("slow.localhost").status == 200, within=30)
        # ordinarily each has rate_grace, 5 seconds, one after the other; stress makes it half a second
        assert time.monotonic() - began < 20


# ---- idle connections ------------------------------------------------------------------------------------------------


def workers_memory(tree: Tree, name: str) -> dict[int, int]:
    """Return the private memory (bytes) of each worker of a tenant."""
    found = {}
    for pid in tree.pids("vhost", name):
        with contextlib.suppress(OSError):
            comm = Path(f"/proc/{pid}/comm").read_text().strip()
            if comm.startswith("w") and comm.endswith(f":{name}"):
                found[pid] = private(pid)
    return found


def private(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return 1024 * sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))


def test_ten_thousand_idle_connections(tree: Tree, descriptors: int) -> None:
    """10,000 kept connections to one tenant: an active client is served as if they weren't there.

    (Fewer where the machine doesn't allow so many descriptors: our ends are in one process.)
    """
    count = min(10_000, descriptors - 500)
    before = sum(workers_memory(tree, "kept").values())
    request = b"GET / HTTP/1.1\r\nHost: kept.localhost\r\n\r\n"
    with contextlib.ExitStack() as stack:
        socks: list[socket.socket] = []
        for number in range(count):
            # twenty addresses, so that ports are no concern; a queue of 256 is the tenant's, so not all at once
            sock = socket.create_connection(("127.0.0.1", tree.port), 10, (f"127.0.0.{number % 20 + 2}", 0))
            stack.enter_context(sock)
            sock.sendall(request)
            socks.append(sock)
            if number >= 100:
                assert socks[number - 100].recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        for sock in socks[-100:]:
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        grown = sum(workers_memory(tree, "kept").values()) - before
        with Active(tree, (*HOSTS, KEPT)) as active:
            time.sleep(1.5)
        active.assert_well()
        each = grown / count
        print(f"memory for each idle connection: {each:.0f} bytes")
        assert each < 4096
        assert not any(line for line in tree.faults() if "channel_faults" in line)
        poll = select.poll()
        for sock in socks:
            poll.register(sock, select.POLLIN)
        assert not poll.poll(0)  # they are all still there
        for sock in socks[::97]:
            sock.sendall(request)
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    tree.wait_for(lambda: not tree.busy())


# ---- connections per client ------------------------------------------------------------------------------------------

FEW = """
[vhost.few]
hosts = ["few.localhost"]
uid = 20003
kind = "wsgi"
root = "application"
application = "app:application"
[vhost.few.http]
max_connections_per_client = 3
"""


def ask_few(sock: socket.socket) -> int:
    """Return the status of one more request on this connection."""
    sock.sendall(b"GET / HTTP/1.1\r\nHost: few.localhost\r\n\r\n")
    response = http.client.HTTPResponse(sock)
    response.begin()
    response.read()
    return response.status


def test_connections_per_client_are_counted_over_all_workers_also_when_these_die(
    plant: Callable[..., Tree],
) -> None:
    tree = plant(tenants=FEW, hosts=("few.localhost",), files={"application/app.py": APPLICATION})
    tree.wait_for(lambda: len(workers_memory(tree, "few")) == 2)
    with contextlib.ExitStack() as stack:

        def connect(source: str = "127.0.0.1") -> socket.socket:
            sock = socket.create_connection(("127.0.0.1", tree.port), 10, (source, 0))
            return stack.enter_context(sock)

        def three() -> bool:
            """The answer to the connection before may still be on its way out."""
            kept[:] = [connect() for _ in range(3)]
            if [ask_few(sock) for sock in kept] == [200] * 3:
                return True
            for sock in kept:
                sock.close()
            return False

        kept: list[socket.socket] = []
        tree.wait_for(three)  # the workers take turns, so both have some
        assert [ask_few(connect()) for _ in range(3)] == [429] * 3
        assert ask_few(connect("127.0.0.9")) == 200  # somebody else
        assert [ask_few(sock) for sock in kept] == [200] * 3
        kept.pop().close()
        tree.wait_for(lambda: ask_few(connect()) == 200)
        # workers that are killed take their connections with them, and their counts
        tree.expect("worker ended")
        for pid in workers_memory(tree, "few"):
            os.kill(pid, signal.SIGKILL)
        tree.wait_for(three)
        assert ask_few(connect()) == 429


# ---- streams ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched_memory(tree: Tree, name: str) -> Iterator[Callable[[], int]]:
    """Sample the workers' memory; the function returns by how much any of them has grown at most."""
    before = workers_memory(tree, name)
    assert before
    most = dict.fromkeys(before, 0)
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(0.05):
            for pid, size in workers_memory(tree, name).items():
                most[pid] = max(most.get(pid, 0), size - before.get(pid, 0))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield lambda: max(most.values())
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_gigabyte_up_at_flat_memory(tree: Tree, chunked: bool) -> None:
    size = GIGABYTE
    piece = os.urandom(MIB)
    with watched_memory(tree, "slow") as grown, tree.connect(60) as sock:
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        sock.sendall(b"POST / HTTP/1.1\r\nHost: slow.localhost\r\n" + framing + b"\r\n\r\n")
        whole = b"%x\r\n" % MIB + piece + b"\r\n" if chunked else piece
        for _ in range(size // MIB):
            sock.sendall(whole)
        if chunked:
            sock.sendall(b"0\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.read() == b"%d" % size
        assert grown() < 8 * MIB


@pytest.mark.parametrize(
    ("host", "path", "version", "size"),
    [
        ("slow", "/pieces/16000", "1.0", GIGABYTE),
        ("slow", "/pieces/16000", "1.1", GIGABYTE),
        ("files", "/huge", "1.1", GIGABYTE // 4),
    ],
    ids=["to the end of the connection", "chunked", "file"],
)
def test_a_gigabyte_down_at_flat_memory(tree: Tree, host: str, path: str, version: str, size: int) -> None:
    with watched_memory(tree, host) as grown, tree.connect(60) as sock:
        head = f"GET {path} HTTP/{version}\r\nHost: {host}.localhost\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode())
        buffer = bytearray(MIB)
        got = 0
        while count := sock.recv_into(buffer):
            got += count
        assert got > size
        assert grown() < 8 * MIB


def test_a_client_that_goes_away_in_a_stream_frees_its_worker(tree: Tree) -> None:
    """It is noticed at once, not when some timeout is over: the tenant's threads serve others."""
    for _ in range(40):
        with tree.connect() as sock:
            sock.sendall(b"GET /pieces/1000000 HTTP/1.1\r\nHost: slow.localhost\r\n\r\n")
            assert sock.recv(1000)
    began = time.monotonic()
    tree.wait_for(lambda: tree.get("slow.localhost").status == 200)
    assert time.monotonic() - began < PROMPT
