"""Descriptors over sockets: what arrives, what doesn't, and what each must be."""

from __future__ import annotations

import fcntl
import os
import socket

import pytest

from pyttpd import fdpass
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import DescriptorKind

from support.wired import connection, descriptor, pair, send_raw


def test_one_descriptor_goes_over_and_is_not_inherited() -> None:
    ours, theirs = pair()
    with ours, theirs, connection() as (server, client):
        fdpass.send_fd(ours, b"hello", server.fileno())
        data, fd = fdpass.recv_fd(theirs, 64)
        assert data == b"hello"
        assert fd is not None
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with socket.socket(fileno=fd) as copy:
            copy.sendall(b"x")
        assert client.recv(1) == b"x"


def test_none_goes_over() -> None:
    ours, theirs = pair()
    with ours, theirs:
        ours.send(b"hello")
        assert fdpass.recv_fd(theirs, 64) == (b"hello", None)


@pytest.mark.parametrize(("count", "size"), [(2, 64), (3, 64), (50, 64), (1, 4), (2, 4), (0, 4)])
def test_more_than_one_or_a_longer_packet_is_refused_and_closed(count: int, size: int) -> None:
    ours, theirs = pair()
    with ours, theirs, connection() as (server, _):
        send_raw(ours, b"hello", *[server.fileno()] * count)
        with pytest.raises(RemoteProtocolError) as caught:
            fdpass.recv_fd(theirs, size)
    assert caught.value.reason == ("oversized" if size < 5 else "descriptors")


@pytest.mark.parametrize("option", [16, 29, 76], ids=["SO_PASSCRED", "SO_TIMESTAMP", "SO_PASSPIDFD"])
def test_what_the_kernel_adds_because_the_peer_asked_it_to_is_refused_and_closed(option: int) -> None:
    """Who has made both ends and kept a copy of ours can set its options: a pidfd with each packet would use us up."""
    ours, theirs = pair()
    with ours, theirs, theirs.dup() as kept:
        try:
            kept.setsockopt(socket.SOL_SOCKET, option, 1)
        except OSError as error:
            pytest.skip(f"this kernel has no such option: {error}")
        for _ in range(4):
            ours.send(b"hello")
            free = os.dup(0)
            os.close(free)
            with pytest.raises(RemoteProtocolError, match="something beside"):
                fdpass.recv_fd(theirs, 64)
            again = os.dup(0)
            os.close(again)
            assert again == free


KINDS = [DescriptorKind.CONNECTION, DescriptorKind.LISTENER, DescriptorKind.CHANNEL]


@pytest.mark.parametrize("wanted", KINDS)
@pytest.mark.parametrize("there", KINDS)
def test_each_kind_is_itself_and_no_other(wanted: DescriptorKind, there: DescriptorKind) -> None:
    with descriptor(there) as fd:
        assert fd is not None
        assert fdpass.check(fd, wanted) is (wanted is there)
        os.fstat(fd)  # still ours


def test_a_connection_whose_client_has_left_is_still_one() -> None:
    with connection() as (server, client):
        client.close()
        server.recv(1)
        assert fdpass.check(server.fileno(), DescriptorKind.CONNECTION)


def test_ipv6_is_tcp_too() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
        assert fdpass.check(sock.fileno(), DescriptorKind.CONNECTION)
        assert not fdpass.check(sock.fileno(), DescriptorKind.LISTENER)


def test_other_sockets_and_files_are_nothing_of_it() -> None:
    one, other = socket.socketpair()
    with (
        one,
        other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as alone,
        open("/dev/null") as file,
    ):
        for fd in (one.fileno(), udp.fileno(), alone.fileno(), file.fileno()):
            for kind in KINDS:
                assert not fdpass.check(fd, kind), kind


def test_an_end_whose_other_end_is_closed_is_no_channel() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(b"\0pyttpd-test-%d" % os.getpid())
        listening.listen()
        assert not fdpass.check(listening.fileno(), DescriptorKind.CHANNEL)


def test_a_memfd_is_judged_where_it_is_read() -> None:
    with open("/dev/null") as file:
        assert fdpass.check(file.fileno(), DescriptorKind.MEMFD)
