"""The hand-off protocol, byte by byte: the worker's codec and the reference client say and understand the same."""

from __future__ import annotations

import importlib.util
import os
import socket
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pyttpd.wire.errors import LocalProtocolError

from pyttpd_vhost.kinds.handoff import frames
from pyttpd_vhost.kinds.handoff.frames import (
    Accepted,
    BadMessage,
    Busy,
    Connection,
    Credit,
    Flags,
    Goodbye,
    Hello,
    Welcome,
)

TOP = Path(__file__).resolve().parents[3]


def load_client() -> ModuleType:
    """Import the reference client, which is a file to be copied and no part of any package."""
    name = "pyttpd_handoff"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOP / "examples/handoff/pyttpd_handoff.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


reference = load_client()

#: What a program says: the message, and its bytes.
SAID: list[tuple[frames.Incoming, bytes]] = [
    (Welcome(1, "app"), b"\x01\x02\0\0\0\0\0\0\0\x01\0\x03app"),
    (Welcome(0, ""), b"\x01\x02\0\0\0\0\0\0\0\0\0\0"),
    (Welcome(128, "ä"), b"\x01\x02\0\0\0\0\0\0\0\x80\0\x02\xc3\xa4"),
    (Accepted(7), b"\x01\x04\0\0\0\0\0\x07"),
    (Busy(0xFFFFFFFF), b"\x01\x05\0\0\xff\xff\xff\xff"),
    (Credit(2), b"\x01\x06\0\0\0\0\0\0\0\x02"),
    (Goodbye("ends"), b"\x01\x07\0\0\0\0\0\0\0\x04ends"),
]


@pytest.mark.parametrize(("message", "packet"), SAID)
def test_what_a_program_says(message: frames.Incoming, packet: bytes) -> None:
    assert frames.decode(packet) == message
    for size in range(len(packet)):
        with pytest.raises(BadMessage):
            frames.decode(packet[:size])
    with pytest.raises(BadMessage):
        frames.decode(packet + b"x")
    for at, wrong in ((0, 0), (0, 2), (1, 0), (1, 99), (2, 1), (3, 1)):
        with pytest.raises(BadMessage):
            frames.decode(packet[:at] + bytes([wrong]) + packet[at + 1 :])


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"", "size"),
        (b"GET / HTTP/1.1\r\n\r\n", "version"),
        (b"\x01\x07\0\0\0\0\0\0\0\x02\xff\xff", "text"),
        (b"\x01\x07\0\0\0\0\0\0\x01\0" + b"x" * 256, "text"),
        (b"\x01\x02\0\0\0\0\0\0\0\x81\0\0", "credit"),
        (b"\x01\x06\0\0\0\0\0\0\xff\xff", "credit"),
        (b"\x01\x06\0\0\0\0\0\x01\0\x01", "id"),
        # what only a worker may say
        (b"\x01\x01\0\0\0\0\0\0\x01\0\0", "type"),
        (b"\x01\x03\0\0\0\0\0\x01", "id"),
        (b"\x01\x07\0\0\0\0\0\0\0\xff" + b"x" * 600, "size"),
    ],
)
def test_what_a_program_may_not_say(packet: bytes, reason: str) -> None:
    with pytest.raises(BadMessage) as error:
        frames.decode(packet)
    assert error.value.reason == reason


def test_a_text_of_ours_that_is_too_long_is_our_fault() -> None:
    with pytest.raises(LocalProtocolError):
        frames.encode(Hello(1, "x" * (frames.MAX_OWN_TEXT + 1)))


def test_every_state_says_what_it_permits() -> None:
    assert frames.PERMITTED.keys() == set(frames.State)
    permitted = {kind for table in frames.PERMITTED.values() for kind in table}
    assert permitted == {Welcome, Accepted, Busy, Credit, Goodbye}


def test_the_reference_client_understands_a_worker() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client, given = socket.socketpair()
    with ours, client, given:
        channel = reference.Channel(theirs, credit=3, name="app")
        ours.send(frames.encode(Hello(frames.VERSION, "blog")))
        assert channel.receive() is None
        assert channel.vhost == "blog"
        assert frames.decode(ours.recv(512)) == Welcome(3, "app")
        message = Connection(9, Flags.SECURE, "2001:db8::1", 4711, "a.test", "/ü", b"GET / HTTP/1.1\r\n")
        socket.send_fds(ours, [frames.encode(message)], [given.fileno()])
        found = channel.receive()
        assert (found.address, found.port, found.host, found.mount, found.data) == (
            *("2001:db8::1", 4711, "a.test", "/ü"),
            b"GET / HTTP/1.1\r\n",
        )
        assert (found.whole, found.secure) == (False, True)
        assert not os.get_inheritable(found.sock.fileno())
        assert frames.decode(ours.recv(512)) == Accepted(9)
        client.sendall(b"Host: a.test\r\n\r\n")
        with found.makefile() as file:
            assert file.readline() == b"GET / HTTP/1.1\r\n"
            assert file.readline() == b"Host: a.test\r\n"
        found.close()
        found.release()
        assert frames.decode(ours.recv(512)) == Credit(1)
        assert client.recv(10) == b""
        # one that crosses the goodbye is refused
        socket.send_fds(ours, [frames.encode(message)], [given.fileno()])
        channel.leave("ends")
        channel.leave("ends")
        assert frames.decode(ours.recv(512)) == Goodbye("ends")
        assert channel.receive() is None
        assert frames.decode(ours.recv(512)) == Busy(9)
        with pytest.raises(BrokenPipeError):
            ours.send(frames.encode(Goodbye("the worker retires")))
        assert channel.receive() is None
        assert channel.closed
        channel.close()


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"\x02\x01\0\0\0\0\0\0\x02\0\0",
        b"\x01\x63\0\0\0\0\0\0",
        b"\x01\x03\0\0\0\0\0\x01",
        struct.pack("!BBHIBH", 1, 1, 0, 0, 1, 500) + b"x",
        b"\x01\x01\0\0\0\0\0\0\x01\0\x01\xff",
    ],
)
def test_the_reference_client_takes_no_garbage(packet: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        channel = reference.Channel(theirs, credit=3, name="app")
        ours.send(packet)
        with pytest.raises(reference.ProtocolError):
            channel.receive()
        with pytest.raises(BlockingIOError):
            channel.receive()
