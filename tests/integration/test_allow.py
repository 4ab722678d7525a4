"""A tenant that is allowed an address: it reaches that, and nothing and nobody else does more than before."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from pyttpd.address import Address

from pyttpd_init.egress import Allowed, EgressError, verify_egress
from support.leaks import arguments, descendants, state
from support.tree import GONE_WITHIN, Tree, reload

APPLICATION = """
import json, os, socket

def reach(host, port):
    try:
        with socket.create_connection((host, port), 2) as sock:
            sock.sendall(b"hello")
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    except OSError as error:
        return type(error).__name__

def application(environ, start_response):
    wanted = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or "[]")
    body = json.dumps([reach(*each) for each in wanted]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""


@dataclass(slots=True)
class Server:
    """Somebody on an address of this machine's loopback: says who it is, and repeats what it hears."""

    host: str
    port: int
    callers: list[tuple[str, int]] = field(default_factory=list)

    def serve(self, door: socket.socket) -> None:
        while True:
            try:
                caller, address = door.accept()
            except OSError:
                return
            self.callers.append(address)
            with caller:
                while data := caller.recv(65_536):
                    caller.sendall(f"{self.host} ".encode() + data)


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server, Server]]:
    """Two databases and something else, on one port and three addresses."""
    found, doors, threads = [], [], []
    port = 0
    for number in (2, 3, 1):
        door = socket.create_server((f"127.0.0.{number}", port))
        host, port = door.getsockname()
        server = Server(host, port)
        thread = threading.Thread(target=server.serve, args=(door,))
        thread.start()
        found.append(server)
        doors.append(door)
        threads.append(thread)
    yield found[0], found[1], found[2]
    for door, thread in zip(doors, threads, strict=True):
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join()


def tenants(first: Server, second: Server) -> str:
    return f"""
[vhost.shop]
hosts = ["shop.localhost"]
uid = 24001
kind = "wsgi"
root = "shop"
application = "app:application"
allow = ["{first.host}:{first.port}"]
pool = {{ max_workers = 1 }}

[vhost.wiki]
hosts = ["wiki.localhost"]
uid = 24002
kind = "wsgi"
root = "shop"
application = "app:application"
allow = ["{second.host}:{second.port}"]
pool = {{ max_workers = 1 }}

[vhost.blog]
hosts = ["blog.localhost"]
uid = 24003
kind = "wsgi"
root = "shop"
application = "app:application"
pool = {{ max_workers = 1 }}
"""


HOSTS = ("shop.localhost", "wiki.localhost", "blog.localhost")


def ask(tree: Tree, host: str, *wanted: Server) -> list[str]:
    body = json.dumps([[each.host, each.port] for each in wanted]).encode()
    answer: list[str] = json.loads(tree.request("POST", host, "/", body).body)
    return answer


@pytest.mark.root
def test_each_reaches_what_it_is_allowed(
    plant: Callable[..., Tree], servers: tuple[Server, Server, Server]
) -> None:
    first, second, other = servers
    tree = plant(tenants=tenants(first, second), hosts=HOSTS, files={"shop/app.py": APPLICATION})
    assert ask(tree, "shop.localhost", *servers) == [
        "127.0.0.2 hello",
        "ConnectionRefusedError",
        "ConnectionRefusedError",
    ]
    assert ask(tree, "wiki.localhost", *servers) == [
        "ConnectionRefusedError",
        "127.0.0.3 hello",
        "ConnectionRefusedError",
    ]
    assert ask(tree, "blog.localhost", *servers) == ["PermissionError"] * 3
    assert (len(first.callers), len(second.callers), len(other.callers)) == (1, 1, 0)


@pytest.mark.root
def test_an_exception_comes_and_goes_with_a_reload(
    plant: Callable[..., Tree], servers: tuple[Server, Server, Server]
) -> None:
    """In all three locks: the tenant gets new processes, in another namespace, and the rule follows."""
    first, second, _ = servers
    tree = plant(tenants=tenants(first, second), hosts=HOSTS, files={"shop/app.py": APPLICATION})
    table = f"pyttpd_{hashlib.sha256(f'{tree.folder}/run'.encode()).hexdigest()[:8]}"
    verify_egress(by_uid=True, allowed=allowed(first, 24001) + allowed(second, 24002), table=table)
    file = tree.folder / "pyttpd.toml"
    allow = f'allow = ["{first.host}:{first.port}"]\n'
    file.write_text(file.read_text().replace(allow, "").replace("uid = 24003\n", f"uid = 24003\n{allow}"))
    # who only asks what would change opens nothing, or not for long
    status, text = reload(tree, "--dry-run")
    assert (status, "allow" in text) == (0, True), text
    tree.wait_for(lambda: holds(table, allowed(first, 24001) + allowed(second, 24002)))
    status, text = reload(tree)
    assert (status, "all its processes are started anew" in text) == (0, True), text
    tree.wait_for(lambda: ask(tree, "shop.localhost", first) == ["PermissionError"])
    tree.wait_for(
        lambda: ask(tree, "blog.localhost", first, second) == ["127.0.0.2 hello", "ConnectionRefusedError"]
    )
    tree.wait_for(lambda: not gates(tree, "shop"))

    tree.wait_for(lambda: holds(table, allowed(first, 24003) + allowed(second, 24002)))


def holds(table: str, exceptions: list[Allowed]) -> bool:
    """Whether the egress rule has these exceptions, and no others."""
    try:
        verify_egress(by_uid=True, allowed=exceptions, table=table)
    except EgressError:
        return False
    return True


def allowed(server: Server, uid: int) -> list[Allowed]:
    return [Allowed(Address(server.host, server.port), uid)]


@pytest.mark.root
def test_a_gate_that_was_killed_comes_back(
    plant: Callable[..., Tree], servers: tuple[Server, Server, Server]
) -> None:
    first, second, _ = servers
    tree = plant(tenants=tenants(first, second), hosts=HOSTS, files={"shop/app.py": APPLICATION})
    (before,) = gates(tree, "shop")
    assert os.stat(f"/proc/{before}").st_uid == 24001
    os.kill(before, signal.SIGKILL)
    tree.wait_for(lambda: ask(tree, "shop.localhost", first) == ["127.0.0.2 hello"])
    assert gates(tree, "shop") != [before]
    assert "keeper ended and is started again child=gate.shop" in tree.log()


@pytest.mark.root
def test_a_gate_does_not_outlive_its_runner(
    plant: Callable[..., Tree], servers: tuple[Server, Server, Server]
) -> None:
    first, second, _ = servers
    tree = plant(tenants=tenants(first, second), hosts=HOSTS, files={"shop/app.py": APPLICATION})
    below = list(descendants(tree.process.pid))
    assert {*gates(tree, "shop"), *gates(tree, "wiki")} <= set(below)
    tree.process.kill()
    tree.process.wait()
    deadline = time.monotonic() + GONE_WITHIN
    while any(state(pid) not in "XZ" for pid in below):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # What a killed runner can't take away.
    for path in list(tree.folder.rglob("*")):
        if stat.S_ISSOCK(path.lstat().st_mode):
            path.unlink()
    tree.forget_rule()


@pytest.mark.root
def test_nobody_at_the_allowed_address_is_told_in_the_log(
    plant: Callable[..., Tree], servers: tuple[Server, Server, Server]
) -> None:
    nobody = Server("192.0.2.1", servers[0].port)
    here = Server("127.0.0.99", servers[0].port)
    tree = plant(tenants=tenants(here, nobody), hosts=HOSTS, files={"shop/app.py": APPLICATION})
    # A connection that ends at once, at whatever the application does with it first.
    assert ask(tree, "shop.localhost", here)[0] in ("", "ConnectionResetError", "BrokenPipeError", "OSError")
    reason = f'allowed address cannot be reached address={here.host}:{here.port} error="Connection refused"'
    tree.wait_for(lambda: reason in tree.log())


def test_as_an_ordinary_user_the_port_is_open_and_nothing_else(
    plant: Callable[..., Tree], servers: tuple[Server, Server, Server]
) -> None:
    """One uid for all: no Unix socket may be connected to, since programs of that user would take its word."""
    first, second, other = servers
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        tree = plant(
            tenants=tenants(first, second), hosts=HOSTS, files={"shop/app.py": APPLICATION}, ordinary=True
        )
        host, port = elsewhere.getsockname()
        wanted = (first, other, Server(host, port))
        assert ask(tree, "shop.localhost", *wanted) == [
            "127.0.0.2 hello",
            "127.0.0.1 hello",
            "PermissionError",
        ]
        assert ask(tree, "blog.localhost", *wanted) == ["PermissionError"] * 3
    assert "`allow` opens its ports at every address" in tree.log()


def gates(tree: Tree, name: str) -> list[int]:
    return [pid for pid in descendants(tree.process.pid) if {"pyttpd_init.gate", name} <= set(arguments(pid))]
