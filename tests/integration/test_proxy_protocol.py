"""A tree behind a load balancer that speaks the PROXY protocol: a real haproxy, in both versions."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from support.tree import Tree, free_port

pytestmark = pytest.mark.program("haproxy")

TENANTS = """
[vhost.who]
hosts = ["who.localhost"]
uid = 20001
kind = "wsgi"
root = "who"
application = "app:application"
"""
APPLICATION = """
import json

def application(environ, start_response):
    body = json.dumps([environ["REMOTE_ADDR"], int(environ["REMOTE_PORT"])]).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""
#: Where the balancer comes from; the tests themselves are nobody whom the listener believes.
BALANCER = "127.0.0.9"
HAPROXY = """
global
    maxconn 100
defaults
    mode {mode}
    timeout connect 5s
    timeout client 10s
    timeout server 10s
frontend in
    bind 127.0.0.1:{front}
    default_backend tree
backend tree
    {check}
    server tree 127.0.0.1:{port} source {balancer} {option} {often}
"""


@pytest.fixture
def behind(plant: Callable[..., Tree]) -> tuple[Tree, int]:
    port = free_port()
    extra = f'[listen.behind]\naddress = "127.0.0.1:{port}"\nproxy_protocol = ["{BALANCER}"]\n'
    tree = plant(
        tenants=TENANTS,
        files={"who/app.py": APPLICATION},
        extra=extra,
        hosts=("who.localhost",),
        ordinary=True,
    )
    return tree, port


@contextlib.contextmanager
def haproxy(tree: Tree, port: int, mode: str, option: str, *, check: bool = False) -> Iterator[int]:
    """A haproxy in front of the tree; yields its port."""
    front = free_port()
    path = tree.folder / "haproxy.cfg"
    path.write_text(
        HAPROXY.format(
            mode=mode,
            front=front,
            port=port,
            balancer=BALANCER,
            option=option,
            check="option httpchk GET / HTTP/1.1\\r\\nHost:\\ who.localhost" if check else "",
            often="check inter 50ms" if check else "",
        )
    )
    with open(tree.folder / "haproxy.log", "wb") as log:
        process = subprocess.Popen(["haproxy", "-db", "-f", str(path)], stdout=log, stderr=log)
    try:
        tree.wait_for(lambda: who(front)[0] == 200)
        yield front
    finally:
        process.terminate()
        process.wait(10)


def who(port: int, source: str = "127.0.0.1") -> tuple[int, list[object], int]:
    """Ask the tree behind `port`; return the status, whom it takes us for, and our own port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20, source_address=(source, 0))
    with contextlib.closing(connection):
        connection.connect()
        mine = connection.sock.getsockname()[1]
        connection.request("GET", "/", headers={"Host": "who.localhost"})
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.status == 200 else [], mine


def count(tree: Tree, name: str, **labels: str) -> float:
    """A counter of the listener behind the balancer: it is the first in the file."""
    return tree.samples("listener")[name, *sorted(labels.items())]


@pytest.mark.parametrize(
    ("mode", "option"), [("tcp", "send-proxy"), ("tcp", "send-proxy-v2"), ("http", "send-proxy-v2")]
)
def test_the_tenant_sees_the_balancers_client(behind: tuple[Tree, int], mode: str, option: str) -> None:
    tree, port = behind
    with haproxy(tree, port, mode, option) as front:
        for source in ("127.0.0.1", "127.0.0.77"):
            status, seen, mine = who(front, source)
            assert (status, seen) == (200, [source, mine])
    # around the balancer: closed, whatever it says
    with socket.create_connection(("127.0.0.1", port), 20) as liar, contextlib.suppress(ConnectionError):
        liar.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 80\r\nGET / HTTP/1.1\r\nHost: who.localhost\r\n\r\n")
        assert liar.recv(100) == b""
    assert count(tree, "pyttpd_listener_proxy_refused_total", reason="untrusted") == 1
    # and the other listener believes nobody, and refuses nobody
    assert who(tree.port)[1][0] == "127.0.0.1"


def test_a_balancers_own_checks_find_the_tree_well(behind: tuple[Tree, int]) -> None:
    """haproxy checks with LOCAL: no client stands behind that, and the tree sees the balancer itself."""
    tree, port = behind
    with haproxy(tree, port, "http", "send-proxy-v2", check=True) as front:
        before = count(tree, "pyttpd_listener_settled_total")
        tree.wait_for(lambda: count(tree, "pyttpd_listener_settled_total") >= before + 5)
        assert who(front)[0] == 200
    reasons = ("untrusted", "missing", "malformed", "timeout")
    assert not any(count(tree, "pyttpd_listener_proxy_refused_total", reason=reason) for reason in reasons)
