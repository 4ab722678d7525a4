"""A connection that is given to two workers, as its listener's channel has ended in between, is read by one of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from support.rawhttp import Client
from support.tree import TENANTS, Tree

Plant = Callable[..., Tree]

HOST = "wsgi.localhost"
POOL = """
[vhost.wsgi.pool]
mode = "static"
max_workers = 2
"""
#: /hold?NAME is in C code that keeps the interpreter's lock, until the test lets go of the pipe NAME.
APPLICATION = """
import ctypes, os
def application(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        pipe = os.open(os.path.join(os.path.dirname(__file__), environ["QUERY_STRING"]), os.O_RDONLY)
        ctypes.PyDLL(None).read(pipe, ctypes.create_string_buffer(1), 1)
        os.close(pipe)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
SYS_PIDFD_GETFD = 438


def copies(pid: int) -> Iterator[socket.socket]:
    """Yield a copy of each socket of another process, to be used until the next one comes."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    process = os.pidfd_open(pid)
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            fd = syscall(SYS_PIDFD_GETFD, process, int(name), 0)
            if fd < 0:
                continue
            try:
                sock = socket.socket(fileno=fd)
            except OSError:
                os.close(fd)
                continue
            with sock:
                yield sock
    finally:
        os.close(process)


def end_channel(tree: Tree, end: Callable[[socket.socket], object]) -> None:
    """Do something to the listener's channel to umaster."""
    found = 0
    for pid in tree.pids("listener", "http"):
        for sock in copies(pid):
            with contextlib.suppress(OSError):
                if sock.family == socket.AF_UNIX and "/route/" in str(sock.getpeername()):
                    found += 1
                    end(sock)
    assert found == 1


def hold(tree: Tree, name: str, stack: contextlib.ExitStack) -> contextlib.ExitStack:
    """Have a worker that hears nothing any more until what is returned is closed."""
    client = stack.enter_context(tree.connect())
    client.sendall(f"GET /hold?{name} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    pipes: list[int] = []

    def reads() -> bool:
        pipes.append(os.open(tree.folder / "application" / name, os.O_WRONLY | os.O_NONBLOCK))
        return True

    tree.wait_for(reads)
    held = stack.enter_context(contextlib.ExitStack())
    held.callback(os.close, pipes[0])
    return held


@pytest.mark.root
@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (lambda sock: sock.shutdown(socket.SHUT_RDWR), "umaster is gone"),
        (lambda sock: sock.send(b"no frame at all"), "protocol"),
    ],
    ids=["it has ended", "it was cut off"],
)
def test_a_connection_that_is_offered_twice_is_read_once(
    plant: Plant, end: Callable[[socket.socket], object], expected: str
) -> None:
    tree = plant(files={"application/app.py": APPLICATION}, tenants=TENANTS + POOL)
    tree.expect(expected)
    for name in ("one", "two"):
        os.mkfifo(tree.folder / "application" / name)

    def umaster(name: str) -> float:
        return tree.samples("umaster")[f"pyttpd_umaster_{name}", ("vhost", "wsgi")]

    with contextlib.ExitStack() as stack:
        tree.wait_for(lambda: umaster("workers") == 2)
        held = [hold(tree, name, stack) for name in ("one", "two")]
        tree.wait_for(lambda: umaster("handovers_open") == 0)
        taken = umaster("taken_total")
        client = Client(stack.enter_context(tree.connect()))
        request = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        client.sock.sendall(request)
        tree.wait_for(lambda: umaster("handovers_open") == 1)
        end_channel(tree, end)
        tree.wait_for(lambda: umaster("handovers_open") == 2)
        for each in held:
            each.close()
        tree.wait_for(lambda: umaster("handovers_open") == 0)
        assert umaster("taken_total") >= taken + 2
        # Did both read, each would have some of these.
        readers = {client.answer().body}
        for _ in range(300):
            client.sock.sendall(request)
            readers.add(client.answer().body)
        assert len(readers) == 1
