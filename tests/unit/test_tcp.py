"""How much of a connection has been read, whoever has read it."""

from __future__ import annotations

import os
import socket
import struct
import time

import pytest

from pyttpd import tcp

from support.wired import connection


def settled(sock: socket.socket, count: int) -> None:
    """Wait until so many bytes have come."""
    deadline = time.monotonic() + 10
    while len(sock.recv(65_536, socket.MSG_PEEK)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_nothing_peeked_and_read() -> None:
    with connection() as (server, client):
        assert tcp.consumed(server) == 0
        client.sendall(b"hello world")
        settled(server, 11)
        assert tcp.consumed(server) == 0
        server.recv(5)
        assert tcp.consumed(server) == 5
        server.recv(100)
        assert tcp.consumed(server) == 11


@pytest.mark.parametrize("read", [0, 5, 11])
def test_a_fin_is_no_byte(read: int) -> None:
    with connection() as (server, client):
        client.sendall(b"hello world")
        settled(server, 11)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.05)
        if read:
            server.recv(read)
        assert tcp.consumed(server) == read


def test_what_another_process_has_read_counts() -> None:
    with connection() as (server, client):
        client.sendall(b"hello world")
        settled(server, 11)
        pid = os.fork()
        if pid == 0:
            server.recv(3)
            os._exit(0)
        os.waitpid(pid, 0)
        assert tcp.consumed(server) == 3


def test_no_connection_is_an_error() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(OSError):
        tcp.consumed(one)


def test_after_a_reset_it_still_answers_or_says_that_it_can_not() -> None:
    with connection() as (server, client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        time.sleep(0.02)
        assert tcp.consumed(server) == 0
