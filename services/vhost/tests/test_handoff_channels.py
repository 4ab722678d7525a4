"""Handing over one connection: to programs that keep to the protocol, and to those that do every wrong thing.

The programs are threads behind real sockets; the connections are TCP.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyttpd_vhost.kinds.gateway.faults import Fault
from pyttpd_vhost.kinds.handoff.channels import Channel, ChannelEnded, Channels, NotHandedOver
from pyttpd_vhost.kinds.handoff.frames import HEADER, Connection, Flags, State
from support.wired import connection

from .conftest import ListLog
from .test_handoff_frames import reference

PATIENCE = 20.0
#: What a handing over may take in tests of programs that don't answer.
SHORT = 0.2

Script = Callable[[socket.socket], None]
HELLO = 8 + 1 + 2 + 4


def said(kind: int, body: bytes = b"", id_: int = 0, version: int = 1) -> bytes:
    return HEADER.pack(version, kind, 0, id_) + body


def welcome(credit: int = 1) -> bytes:
    return said(reference.WELCOME, struct.pack("!H", credit) + b"\0\x04fake")


class Program:
    """A program's socket, and a thread that serves each channel with the next of `scripts`, the last one again."""

    def __init__(self, folder: Path, *scripts: Script) -> None:
        self.path = str(folder / "socket")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self._scripts = list(scripts)
        self.channels = 0
        self._stopping = False
        self._threads = [threading.Thread(target=self._run)]
        self._threads[0].start()

    def _run(self) -> None:
        while True:
            sock, _ = self.listener.accept()
            if self._stopping:
                sock.close()
                return
            script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
            self.channels += 1
            thread = threading.Thread(target=self._serve, args=(script, sock))
            self._threads.append(thread)
            thread.start()

    @staticmethod
    def _serve(script: Script, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            script(sock)

    def connect(self, within: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(within)
            sock.connect(self.path)
        except BaseException:
            sock.close()
            raise
        return sock

    def close(self) -> None:
        self._stopping = True
        with self.connect(PATIENCE):
            pass
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        self.listener.close()


def greet(channels: Channels) -> None:
    """Have a channel that is greeted, so that what is measured from here on is something else."""
    channel = channels._open(PATIENCE)
    assert channel is not None
    end = time.monotonic() + PATIENCE
    while channel.state is State.GREETED:
        assert time.monotonic() < end
        time.sleep(0.005)
        channel.drain()
    channels._give_back(channel)


class Stage:
    def __init__(self, folder: Path, *scripts: Script, most: int = 4) -> None:
        self.log = ListLog()
        self.program = Program(folder, *scripts)
        self.channels = Channels(self.program.connect, "test", self.log, most=most)

    def give(self, sock: socket.socket, within: float = PATIENCE, data: bytes = b"") -> None:
        self.channels.hand_over(
            sock, lambda id_: Connection(id_, Flags.WHOLE, "192.0.2.7", 4711, "a.test", "", data), within
        )


Make = Callable[..., Stage]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def make(*scripts: Script, most: int = 4) -> Stage:
            made = Stage(tmp_path, *scripts, most=most)
            stack.callback(made.program.close)
            stack.callback(made.channels.close, "the test ends")
            return made

        yield make


def greeted(credit: int = 1) -> Script:
    """Answer the greeting, and wait for the end."""

    def run(sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(welcome(credit))
        while sock.recv(70000):
            pass

    return run


def taking(
    after: Callable[[socket.socket, socket.socket, int], None], credit: int = 1, times: int = 1000
) -> Script:
    """Answer the greeting; for each connection call after(channel, connection, id)."""

    def run(sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(welcome(credit))
        for _ in range(times):
            packet, fds, _, _ = socket.recv_fds(sock, 70000, 1)
            if not packet or packet[1] == reference.GOODBYE:
                return
            with socket.socket(fileno=fds[0]) as client:
                after(sock, client, HEADER.unpack_from(packet)[3])

    return run


def answering(text: bytes) -> Script:
    def after(sock: socket.socket, client: socket.socket, id_: int) -> None:
        sock.send(said(reference.ACCEPTED, id_=id_))
        # before the answer, so that the next connection finds it
        sock.send(said(reference.CREDIT, b"\0\x01"))
        client.setblocking(True)
        client.sendall(text)

    return taking(after)


def busy(sock: socket.socket, _: socket.socket, id_: int) -> None:
    sock.send(said(reference.BUSY, id_=id_))


def test_given_and_answered_many_times_over_one_channel(stage: Make) -> None:
    made = stage(answering(b"hello"))
    for _ in range(300):
        with connection() as (server, client):
            made.give(server)
            server.close()
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert made.program.channels == len(made.channels) == 1
    assert not made.log.lines


def test_the_reference_client_serves(stage: Make, tmp_path: Path) -> None:
    ended = threading.Event()
    listener = reference.listener(str(tmp_path / "reference"))
    log = ListLog()

    def connect(_: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(str(tmp_path / "reference"))
        return sock

    def handle(client: object) -> None:
        with client.makefile() as file:  # type: ignore[attr-defined]
            client.sock.sendall(file.readline())  # type: ignore[attr-defined]

    thread = threading.Thread(
        target=reference.serve_threads, args=(handle, listener), kwargs={"threads": 4, "stop": ended.is_set}
    )
    thread.start()
    channels = Channels(connect, "test", log, most=2)
    try:
        for number in range(20):
            with connection() as (server, client):
                client.sendall(b"%d\n" % number)
                data = b"read already " if number % 2 else b""
                channels.hand_over(
                    server,
                    lambda id_, data=data: Connection(id_, Flags.WHOLE, "::1", 1, "a.test", "", data),  # type: ignore[misc]
                    PATIENCE,
                )
                server.close()
                with client.makefile("rb") as file:
                    assert file.readline() == data + b"%d\n" % number
                    assert file.read() == b""
    finally:
        ended.set()
        channels.close("the test ends")
        thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not log.lines


def test_a_busy_program_gets_a_further_channel_up_to_the_most(stage: Make) -> None:
    made = stage(greeted(0), greeted(0), answering(b"hello"), most=3)
    with connection() as (server, client):
        made.give(server)
        server.close()
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert made.program.channels == 3
    with connection() as (server, client):
        made.give(server)
        server.close()
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert made.program.channels == 3


def test_credit_that_comes_while_somebody_waits(stage: Make) -> None:
    given = threading.Event()

    def late(sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(welcome(0))
        given.wait(PATIENCE)
        sock.send(said(reference.CREDIT, b"\0\x01"))
        _, fds, _, _ = socket.recv_fds(sock, 70000, 1)
        with socket.socket(fileno=fds[0]) as client:
            sock.send(said(reference.ACCEPTED, id_=1))
            client.sendall(b"x")
        sock.recv(512)

    made = stage(late, most=1)
    threading.Timer(0.05, given.set).start()
    with connection() as (server, client):
        made.give(server)
        assert client.recv(1) == b"x"


def test_many_threads(stage: Make) -> None:
    made = stage(answering(b"hello"), most=3)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(25):
                with connection() as (server, client):
                    made.give(server)
                    server.close()
                    assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failures
    assert 1 <= made.program.channels == len(made.channels) <= 3


def refused(
    made: Stage, fault: Fault, *, touched: bool = False, within: float = PATIENCE, channels: int = 0
) -> NotHandedOver:
    with connection() as (server, client):
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        while not server.recv(100, socket.MSG_PEEK):
            pass
        with pytest.raises(NotHandedOver) as failure:
            made.give(server, within)
        assert (failure.value.fault, failure.value.touched) == (fault, touched)
    assert len(made.channels) == channels
    return failure.value


def test_nobody_listens(tmp_path: Path) -> None:
    def connect(_: float) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.closing(sock):
            sock.connect(str(tmp_path / "none"))
        raise AssertionError

    channels = Channels(connect, "test", ListLog(), most=1)
    with connection() as (server, _), pytest.raises(NotHandedOver) as failure:
        channels.hand_over(server, lambda _: pytest.fail("nobody listens"), PATIENCE)
    assert failure.value.fault is Fault.UNREACHABLE
    assert len(channels) == 0


def test_a_socket_of_somebody_elses(stage: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(greeted())
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr("pyttpd.peercred.peer", lambda _: type("", (), {"uid": 12345})())
    refused(made, Fault.UNREACHABLE)


def test_one_that_never_answers_to_hello(stage: Make) -> None:
    def silent(sock: socket.socket) -> None:
        sock.recv(512)
        sock.recv(512)

    made = stage(silent)
    # the channel stays: it may be waiting for a process that is busy now
    assert "Hello" in refused(made, Fault.SLOW, within=SHORT, channels=1).detail


def test_one_without_credit(stage: Make) -> None:
    made = stage(greeted(0), most=1)
    greet(made.channels)
    refused(made, Fault.FULL, within=SHORT, channels=1)


def test_one_that_refuses(stage: Make) -> None:
    made = stage(taking(busy), most=2)
    refused(made, Fault.FULL, within=PATIENCE, channels=2)


def test_refused_by_one_and_taken_by_the_other(stage: Make) -> None:
    made = stage(taking(busy), answering(b"hello"), most=2)
    with connection() as (server, client):
        made.give(server)
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"


def test_one_that_never_answers_to_a_connection(stage: Make) -> None:
    made = stage(greeted())
    greet(made.channels)
    refused(made, Fault.SLOW, within=SHORT)
    assert [fields["reason"] for _, _, fields in made.log.lines] == ["timeout"]


def test_one_that_dies_with_a_connection_and_another_takes_it(stage: Make) -> None:
    def dies(sock: socket.socket, client: socket.socket, _: int) -> None:
        client.close()
        sock.shutdown(socket.SHUT_RDWR)

    made = stage(taking(dies, times=1), answering(b"hello"))
    with connection() as (server, client):
        made.give(server)
        server.close()
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert [fields["reason"] for _, _, fields in made.log.lines] == ["died"]


def test_all_die_with_it(stage: Make) -> None:
    def dies(sock: socket.socket, _: socket.socket, __: int) -> None:
        sock.shutdown(socket.SHUT_RDWR)

    made = stage(taking(dies, times=1))
    refused(made, Fault.DIED)
    assert made.program.channels == 2


@pytest.mark.parametrize(
    "use", [lambda client: client.recv(3), lambda client: client.send(b"HTTP")], ids=["read", "written"]
)
def test_what_was_touched_is_given_to_nobody_else(
    stage: Make, use: Callable[[socket.socket], object]
) -> None:
    def dies(sock: socket.socket, client: socket.socket, _: int) -> None:
        client.setblocking(True)
        use(client)
        client.close()
        sock.shutdown(socket.SHUT_RDWR)

    made = stage(taking(dies, times=1))
    refused(made, Fault.DIED, touched=True)
    assert made.program.channels == 1


def test_refused_after_it_was_read(stage: Make) -> None:
    def after(sock: socket.socket, client: socket.socket, id_: int) -> None:
        client.setblocking(True)
        client.recv(1)
        sock.send(said(reference.BUSY, id_=id_))

    refused(stage(taking(after)), Fault.MALFORMED, touched=True)


GARBAGE = {
    "http": b"HTTP/1.1 200 OK\r\n\r\n",
    "short": b"\x01",
    "long": b"\x01" * 4096,
    "other-version": said(reference.ACCEPTED, id_=1, version=2),
    "other-id": said(reference.ACCEPTED, id_=77),
    "welcome-twice": welcome(),
    "credit-of-too-many": said(reference.CREDIT, b"\0\x80"),
    "a-workers-word": said(reference.HELLO, b"\x01\0\0"),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_in_answer(stage: Make, garbage: bytes) -> None:
    def after(sock: socket.socket, _: socket.socket, __: int) -> None:
        if garbage.startswith(b"\x01\x06"):
            sock.send(garbage)
        sock.send(garbage)

    made = stage(taking(after, times=1))
    refused(made, Fault.MALFORMED)
    assert [fields["reason"] for _, _, fields in made.log.lines] == ["malformed"]


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"\x01", said(reference.ACCEPTED, id_=1), said(reference.CREDIT, b"\0\x01")],
)
def test_garbage_in_greeting(stage: Make, garbage: bytes) -> None:
    def run(sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(garbage)
        sock.recv(512)

    made = stage(run, run, answering(b"hello"), most=1)
    with connection() as (server, client):
        made.give(server)
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert [fields["reason"] for _, _, fields in made.log.lines] == ["malformed", "malformed"]


def test_one_that_ends_every_channel_is_not_asked_for_ever(stage: Make) -> None:
    def ends(sock: socket.socket) -> None:
        sock.recv(512)

    made = stage(ends)
    refused(made, Fault.DIED)
    assert made.program.channels == 3
    assert len(made.log.lines) == 3


def test_a_descriptor_that_nobody_wants(stage: Make) -> None:
    def after(sock: socket.socket, client: socket.socket, id_: int) -> None:
        socket.send_fds(sock, [said(reference.ACCEPTED, id_=id_)], [client.fileno()])

    before = len(os.listdir("/proc/self/fd"))
    refused(stage(taking(after, times=1)), Fault.MALFORMED)
    assert len(os.listdir("/proc/self/fd")) <= before + 4  # the stage's own sockets


def test_a_flood(stage: Make) -> None:
    """It says more than there is to say: its channel ends, and it can't keep a thread."""

    def after(sock: socket.socket, _: socket.socket, __: int) -> None:
        while True:
            sock.send(said(reference.CREDIT, b"\0\0"))

    refused(stage(taking(after, times=1)), Fault.MALFORMED)


def test_one_that_says_goodbye_is_let_go_without_a_word(stage: Make) -> None:
    def leaves(sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(said(reference.GOODBYE, b"\0\0"))
        sock.recv(512)

    made = stage(leaves, answering(b"hello"))
    with connection() as (server, client):
        made.give(server)
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert not made.log.lines


@pytest.mark.parametrize(
    ("reads", "goodbye", "fault"),
    [(True, True, None), (True, False, Fault.DIED), (False, False, Fault.DIED)],
    ids=["with a goodbye", "without", "with our words unread"],
)
def test_one_that_has_left_when_it_is_offered_a_connection(
    *, reads: bool, goodbye: bool, fault: Fault | None
) -> None:
    """Nobody is told of one that has said goodbye; the others have died."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = Channel(ours, "test")
    theirs.send(welcome())
    channel.drain()
    if reads:
        theirs.recv(512)
    if goodbye:
        theirs.send(said(reference.GOODBYE, b"\0\0"))
    theirs.close()
    with connection() as (client, _), pytest.raises(ChannelEnded) as ended:
        channel.offer(Connection(1, Flags.WHOLE, "192.0.2.7", 4711, "a.test", "", b""), client)
    assert ended.value.fault is fault
    channel.close()


def test_one_that_reads_nothing_is_let_go_and_another_takes_it(stage: Make) -> None:
    over = threading.Event()

    def deaf(sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(welcome())
        over.wait(PATIENCE)

    made = stage(deaf, answering(b"here"))
    greet(made.channels)
    (channel,) = made.channels._free
    with contextlib.suppress(BlockingIOError):
        while True:
            channel.sock.send(bytes(1000), socket.MSG_DONTWAIT)
    with connection() as (server, client):
        made.give(server)
        client.settimeout(PATIENCE)
        assert client.recv(100) == b"here"
    over.set()
    assert [
        fields["reason"] for _, event, fields in made.log.lines if event == "hand-off: channel ended"
    ] == ["timeout"]


def test_a_goodbye_that_crosses_a_connection(stage: Make) -> None:
    def after(sock: socket.socket, _: socket.socket, id_: int) -> None:
        sock.send(said(reference.GOODBYE, b"\0\0"))
        sock.send(said(reference.BUSY, id_=id_))

    made = stage(taking(after, times=1), answering(b"hello"))
    with connection() as (server, client):
        made.give(server)
        assert client.recv(5, socket.MSG_WAITALL) == b"hello"
    assert not made.log.lines
    assert len(made.channels) == 1


def test_a_client_that_has_left_is_given_all_the_same(stage: Make) -> None:
    made = stage(answering(b"hello"))
    with connection() as (server, client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        end = time.monotonic() + PATIENCE
        while not server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and time.monotonic() < end:
            time.sleep(0.005)
        made.give(server)


def test_a_worker_that_leaves_says_goodbye(stage: Make) -> None:
    heard: list[bytes] = []
    done = threading.Event()

    def run(sock: socket.socket) -> None:
        sock.recv(512)
        sock.send(welcome())
        _, fds, _, _ = socket.recv_fds(sock, 70000, 1)
        os.close(fds[0])
        sock.send(said(reference.ACCEPTED, id_=1))
        while packet := sock.recv(512):
            heard.append(packet)
        done.set()

    made = stage(run)
    with connection() as (server, _):
        made.give(server)
    made.channels.close("the worker retires")
    assert done.wait(PATIENCE)
    assert heard == [said(reference.GOODBYE, b"\0\x12the worker retires")]
    assert len(made.channels) == 0
