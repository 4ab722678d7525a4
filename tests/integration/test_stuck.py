"""Requests that don't end, in a running tree: sleeps, deadlocks, and C code that holds the interpreter's lock."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from support.rawhttp import Client
from support.tree import ANSWER_WITHIN, Tree

Plant = Callable[..., Tree]

HOST = "wsgi.localhost"
#: It takes two workers a while each to be found out, on a busy machine.
WITHIN = 30.0
TENANT = """
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
slow_log_file = "logs/slow.log"
[vhost.wsgi.pool]
max_workers = 2
max_threads = 4
thread_idle = 0.5
slow_request = 0.5
request_timeout = 2
"""
APPLICATION = """
import os, re, threading, time
def waits_for_ever():
    time.sleep(1000)
def deadlock():
    lock = threading.Lock()
    with lock, lock:
        pass
def backtracks():
    re.match(r"(a|a)*b", "a" * 80)
STUCK = {"/sleep": waits_for_ever, "/deadlock": deadlock, "/re": backtracks}
def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path in STUCK:
        STUCK[path]()
    if path == "/wait":
        time.sleep(0.1)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def exits(tree: Tree) -> dict[str, float]:
    """How many workers have ended, by reason."""
    return {
        dict(labels)["reason"]: value
        for (name, *labels), value in tree.samples("vhost", "wsgi").items()
        if name == "pyttpd_vhost_worker_exits_total"
    }


def total(tree: Tree, name: str) -> float:
    return tree.samples("vhost", "wsgi")[f"pyttpd_vhost_{name}", ("vhost", "wsgi")]


@contextlib.contextmanager
def traffic(tree: Tree) -> Iterator[list[str]]:
    """Ask for quick things all the time; yield what went wrong."""
    wrong: list[str] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", tree.port, timeout=ANSWER_WITHIN)
            with contextlib.closing(connection):
                try:
                    for _ in range(20):
                        connection.request("GET", "/", headers={"Host": HOST})
                        response = connection.getresponse()
                        response.read()
                        if response.status != 200:
                            wrong.append(f"status {response.status}")
                        if response.will_close or stop.wait(0.01):
                            break
                except (OSError, http.client.HTTPException) as error:
                    wrong.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask(tree: Tree, path: str) -> socket.socket:
    sock = tree.connect(timeout=WITHIN)
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    return sock


def test_requests_that_do_not_end(plant: Plant) -> None:
    tree = plant(files={"application/app.py": APPLICATION, "logs/.keep": ""}, tenants=TENANT, ordinary=True)
    tree.expect("gives no sign of life", "takes nothing", "ended")
    slow = tree.folder / "logs/slow.log"

    # Several threads of a worker, as far as they are needed.
    began = [ask(tree, "/wait") for _ in range(8)]
    for sock in began:
        with sock:
            assert Client(sock).answer().status == 200
    tree.wait_for(lambda: total(tree, "threads") > 2)
    tree.wait_for(lambda: total(tree, "threads") == 2)

    # Sleeps and deadlocks: 504 from inside, and nobody else notices.
    with traffic(tree) as wrong:
        for path in ("/sleep", "/deadlock"):
            with ask(tree, path) as sock:
                client = Client(sock)
                assert client.answer().status == 504
                assert client.at_end()
        tree.wait_for(lambda: exits(tree).get("request-timeout") == 2, WITHIN)
    assert not wrong
    assert total(tree, "slow_requests_total") >= 2  # on a busy machine the traffic may be slow, too
    assert total(tree, "request_timeouts_total") == 2
    text = slow.read_text()
    for path, function in (("/sleep", "waits_for_ever"), ("/deadlock", "deadlock")):
        assert re.search(rf"slow request method=GET host={HOST} path={path} seconds=", text)
        assert f", in {function}" in text

    # C code that holds the lock: seen from outside. Who is in that worker loses its connection, the others nothing.
    with ask(tree, "/re") as sock:
        assert sock.recv(1) == b""
    tree.wait_for(lambda: "no sign of life: where it stands" in slow.read_text(), WITHIN)
    assert re.search(r"File .*app\.py.*, line \d+ in backtracks", slow.read_text())
    tree.wait_for(lambda: sum(exits(tree).get(reason, 0) for reason in ("silent", "stuck")) == 1, WITHIN)
    assert tree.get(HOST, "/").status == 200


@pytest.mark.root
def test_the_signal_is_answered_in_confinement_too(plant: Plant) -> None:
    tenant = TENANT.replace('slow_log_file = "logs/slow.log"\n', "")
    tree = plant(files={"application/app.py": APPLICATION}, tenants=tenant)
    tree.expect("gives no sign of life", "takes nothing", "ended")
    with ask(tree, "/re") as sock:
        assert sock.recv(1) == b""
    tree.wait_for(lambda: "in backtracks" in tree.log(), WITHIN)
