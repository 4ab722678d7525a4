"""The machine's clock is set a day forward, and back, under load: nobody notices but who reads a date.

It is not the machine's that is set, which others work with: in a mount namespace of the tree's own every program is
given a library (support/clock.c, by /etc/ld.so.preload) that adds to the wall clock what the test has put on a page.
Monotonic clocks are the kernel's, as they are when a clock is set.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from support.leaks import descendants
from support.tree import TENANTS as TWO_TENANTS
from support.tree import Tree

pytestmark = [pytest.mark.root, pytest.mark.program("gcc")]

DAY, HOUR = 86_400, 3600
SOURCE = Path(__file__).parent.parent / "support/clock.c"
#: What a date may be off (s): answers are read on a machine that has much else to do.
LATE = 20.0
WRAPPER = """#!/bin/sh
exec unshare --mount --propagation private sh -c '
mount -t tmpfs tmpfs {folder}/over && mkdir {folder}/over/upper {folder}/over/work
mount -t overlay overlay -o lowerdir=/etc,upperdir={folder}/over/upper,workdir={folder}/over/work /etc
mkdir /etc/pyttpd-clock && cp {folder}/clock.so /etc/pyttpd-clock/
head -c 8 /dev/zero >/etc/pyttpd-clock/offset
echo /etc/pyttpd-clock/clock.so >/etc/ld.so.preload
exec "$@"' sh {python} "$@"
"""
#: A worker that lived by the wall clock would be too old after a day: each of these limits is shorter.
TENANTS = (
    TWO_TENANTS
    + """
[vhost.static.pool]
mode = "static"
max_workers = 1
max_age = 7200

[vhost.wsgi.pool]
mode = "static"
max_workers = 2
max_age = 7200
"""
)
#: Keeps a connection for longer than the test takes; but not for a day.
HTTP = "\n[vhost.wsgi.http]\nidle_timeout = 300\n"


class Clock:
    """The tree's wall clock."""

    def __init__(self, tree: Tree) -> None:
        self._page = Path(f"/proc/{tree.process.pid}/root/etc/pyttpd-clock/offset")
        self.offset = 0

    def set(self, offset: int) -> None:
        with open(self._page, "r+b") as page:
            page.write(struct.pack("@l", offset))
        self.offset = offset

    def is_about(self, seconds: float) -> bool:
        return abs(seconds - time.time() - self.offset) < LATE


@contextlib.contextmanager
def asking(ask: Callable[[], None]) -> Iterator[None]:
    """Call `ask` again and again beside the test; what it raises fails the test."""
    stop, problems = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            while not stop.is_set():
                ask()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not problems, problems[0]


def read_answer(client: socket.socket) -> bytes:
    """Read one answer of a kept connection."""
    text = b""
    while b"\r\n\r\n" not in text:
        data = client.recv(65_536)
        assert data, text
        text += data
    head, _, body = text.partition(b"\r\n\r\n")
    size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
    while len(body) < size:
        body += client.recv(65_536)
    return head


def field(head: bytes, name: str) -> float:
    found = re.search(rf"(?i)\r\n{name}: ([^\r]*)".encode(), head)
    assert found, head
    return parsedate_to_datetime(found[1].decode()).timestamp()


def ask(tree: Tree, host: str, *more: str) -> bytes:
    with tree.connect() as client:
        lines = [
            f"GET /{'index.html' if host.startswith('static') else 'x'} HTTP/1.1",
            f"Host: {host}",
            *more,
        ]
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        text = b""
        while data := client.recv(65_536):
            text += data
    return text.partition(b"\r\n\r\n")[0]


def processes(tree: Tree) -> set[tuple[int, str]]:
    """Return all of the tree: keepers, roles, prototypes, workers."""
    found = set()
    for pid in descendants(tree.process.pid):
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            found.add((pid, name))
    return found


def health(tree: Tree) -> list[str]:
    """Ask each role's health as an engine does, with a program that sees the tree's clock; return who isn't ready."""
    bad = []
    for file in sorted((tree.folder / "run/health").glob("*/state")):
        command = ["nsenter", "--mount", "--target", str(tree.process.pid)]
        command += [sys.executable, "-I", "-m", "pyttpd.health", "--file", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if done.returncode:
            bad.append(f"{file.parent.name}: {done.stdout}{done.stderr}")
    return bad


@pytest.fixture
def wrapper(tmp_path: Path) -> str:
    (tmp_path / "over").mkdir()
    for path in (tmp_path, *tmp_path.parents):
        if path.is_relative_to("/tmp/pytest-of-root"):
            path.chmod(0o755)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-o", tmp_path / "clock.so", SOURCE, "-ldl"], check=True
    )
    script = tmp_path / "python"
    script.write_text(WRAPPER.format(folder=tmp_path, python=sys.executable))
    script.chmod(0o755)
    return str(script)


@pytest.mark.timeout(240)
def test_the_clock_is_set_under_load_and_nobody_notices(plant: Callable[..., Tree], wrapper: str) -> None:
    tree = plant(tenants=TENANTS + HTTP, python=wrapper)
    clock = Clock(tree)
    file = tree.folder / "site/index.html"
    tree.wait_for(lambda: not health(tree), 60.0)
    before = processes(tree)

    def answered() -> None:
        assert ask(tree, "wsgi.localhost").startswith(b"HTTP/1.1 200 ")

    def kept() -> None:
        busy.sendall(b"GET /x HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n")
        assert read_answer(busy).startswith(b"HTTP/1.1 200 ")

    def all_is_well() -> None:
        """Dates are those of the clock; nothing else has changed."""
        for host, status in (("static.localhost", 200), ("wsgi.localhost", 200), ("nobody.localhost", 421)):
            head = ask(tree, host)
            assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
            assert clock.is_about(field(head, "Date")), head
        head = ask(tree, "static.localhost")
        modified = field(head, "Last-Modified")
        assert modified <= field(head, "Date")
        text = re.search(rb"Last-Modified: ([^\r]*)", head)[1].decode()  # type: ignore[index]
        assert ask(tree, "static.localhost", f"If-Modified-Since: {text}").startswith(b"HTTP/1.1 304 ")
        assert not health(tree)
        # The idle one was opened before the clock was set.
        idle.sendall(b"GET /x HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n")
        assert clock.is_about(field(read_answer(idle), "Date"))
        assert processes(tree) == before
        tree.wait_for(lambda: clock.is_about(last_access(tree)))

    with tree.connect() as idle, tree.connect() as busy, asking(answered), asking(kept):
        idle.sendall(b"GET /x HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n")
        read_answer(idle)
        all_is_well()
        clock.set(DAY)
        all_is_well()
        # A file of that day; it is served again when the day is yet to come.
        os.utime(file, (time.time() + DAY, time.time() + DAY))
        assert clock.is_about(field(ask(tree, "static.localhost"), "Last-Modified"))
        clock.set(DAY - HOUR)
        all_is_well()
        clock.set(0)
        all_is_well()
        clock.set(-HOUR)
        all_is_well()


def last_access(tree: Tree) -> float:
    """Return the time of the newest line in the access log."""
    stamps = re.findall(r"\[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d) \+0000\]", tree.log())
    return calendar.timegm(time.strptime(stamps[-1], "%d/%b/%Y:%H:%M:%S"))
