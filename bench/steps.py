"""Where a request's time goes in a worker: each step by itself, in microseconds, the least of many rounds.

    python bench/steps.py

First a request on a kept connection, then the steps of a connection that is taken, answered and closed (the lower
quartile of 2,000, on real TCP connections). Nothing else should run meanwhile; docs/benchmarks.md has what came out.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

from micro.heads import BROWSER
from standalone import make_site

from pyttpd import fdpass, head, tcp
from pyttpd.wire.messages import BY_CLASS, MAX_FRAME, VERSION, Client, Dispatch, Taken, decode, encode

from pyttpd_vhost.access import Combined
from pyttpd_vhost.http.connection import Want
from pyttpd_vhost.http.llhttp import LlhttpEngine
from pyttpd_vhost.parking import Parked

HERE = Path(__file__).resolve().parent
LIMIT = 32768
CALLS, ROUNDS, CONNECTIONS = 50, 200, 2000  # short rounds, so that some are not interrupted
#: What a browser sends after the host.
FIELDS = BROWSER.decode().split("\r\n", 2)[2].removesuffix("\r\n")

now = time.perf_counter


def request(number: int, fields: str = "") -> bytes:
    return f"GET /?{number} HTTP/1.1\r\nHost: 127.0.0.1:18101\r\n{fields}\r\n".encode()


def show(name: str, seconds: float) -> None:
    print(f"{name:50}{seconds * 1e6:8.2f}", flush=True)


def least(name: str, call: Callable[[], object]) -> None:
    found = float("inf")
    for _ in range(ROUNDS):
        began = now()
        for _ in range(CALLS):
            call()
        found = min(found, (now() - began) / CALLS)
    show(name, found)


def kept() -> None:
    """A request on a kept connection."""
    site = make_site("wsgi", "hello:app", HERE, HERE)
    read, short, browser = site.heads.read, request(0), request(0, FIELDS)
    for _ in range(3):
        read(short)
        read(browser)
    for name, tail in (("short", ""), ("a browser's", FIELDS)):
        heads = map(read, [request(number, tail) for number in range(CALLS * ROUNDS)])
        least(f"read: other path, known fields, {name}", partial(next, heads))
    heads = map(read, [request(0, f"{FIELDS}X: {number}\r\n") for number in range(CALLS * ROUNDS)])
    least("read: a browser's, never seen", partial(next, heads))
    for _ in range(3):
        read(short)
    least("read: the same short head", partial(read, short))
    for name, data in (("short", short), ("a browser's", browser)):
        found = head.scan(data, LIMIT)
        assert found is not None
        engine = LlhttpEngine()
        least(f"  of it the scanner, {name}", partial(head.scan, data, LIMIT))
        least(f"  of it llhttp, {name}", partial(engine.read, data, found))
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    log = Combined("hello", here)
    variables = site.kind.variables  # type: ignore[attr-defined]  # it is a WsgiKind
    for name, data in (
        ("the same", short),
        ("known fields", request(-1, FIELDS)),
        ("never seen", request(-1, FIELDS + "Y: 1\r\n")),
    ):
        made = read(data)
        assert made is not None
        least(f"environ, {name}", partial(variables.of_head, made))
        least(f"entry of the access log, {name}", partial(log.add, "127.0.0.1", made, 200, 13, 0.0))
        log.lines.clear()
    here.close()
    there.close()


def new() -> None:
    """The steps of a connection."""
    site = make_site("wsgi", "hello:app", HERE, HERE)
    listener = socket.create_server(("127.0.0.1", 0))
    far, near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    frame = encode(Dispatch(7, Client("127.0.0.1", 1234), "127.0.0.1"), VERSION)
    kind = BY_CLASS[Dispatch].descriptor
    assert kind is not None
    steps: dict[str, list[float]] = {}
    for _ in range(CONNECTIONS):
        client = socket.create_connection(listener.getsockname())
        accepted = listener.accept()[0]
        accepted.setblocking(False)
        client.sendall(request(0, "Connection: close\r\n"))
        fdpass.send_fd(far, frame, accepted.fileno())
        accepted.close()
        times = [("", now())]
        data, fd = fdpass.recv_fd(near, MAX_FRAME)
        assert fd is not None
        times.append(("recvmsg", now()))
        decode(data, VERSION)
        times.append(("decode", now()))
        assert fdpass.check(fd, kind)
        times.append(("check what it is", now()))
        sock = socket.SocketType(int(socket.AF_INET), int(socket.SOCK_STREAM), 0, fd)
        assert tcp.claim(sock, 0)
        sock.setblocking(False)
        times.append(("socket, claim, setblocking", now()))
        fdpass.send(near, encode(Taken(7), VERSION))
        times.append(("say Taken", now()))
        client_address = Client("127.0.0.1", 1234)
        connection = site.connection(sock, ("127.0.0.1", 1234), "127.0.0.1", site)
        one = Parked(connection, client_address, "127.0.0.1", fd)
        times.append(("objects", now()))
        assert one.connection.on_readable() is Want.CLOSED
        times.append(("recv, answer, send, shutdown", now()))
        sock.close()
        times.append(("close", now()))
        far.recv(MAX_FRAME)
        client.close()
        for (_, before), (name, after) in pairwise(times):
            steps.setdefault(name, []).append(after - before)
        steps.setdefault("all", []).append(times[-1][1] - times[0][1])
    for name, taken in steps.items():
        show(name, sorted(taken)[CONNECTIONS // 4])


if __name__ == "__main__":
    print("a request on a kept connection (us)")
    kept()
    print("a connection for one request (us)")
    new()
