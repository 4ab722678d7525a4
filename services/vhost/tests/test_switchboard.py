"""Many requests at once in one worker, with applications in other processes: kinds/gateway/switchboard.py, in a real
worker. What the kinds fastcgi and scgi do with one request at a time is in test_fastcgi.py and test_scgi.py.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.shares import HttpSettings
from pyttpd.wire import messages as m

from pyttpd_vhost.kinds.fastcgi.kind import FastcgiKind
from pyttpd_vhost.kinds.gateway import switchboard
from pyttpd_vhost.site import Site

from . import backends as b
from .backends import COMPLETE, END, STDOUT, Played, record
from .conftest import HOST, Client
from .front import PATIENCE, Front
from .test_fastcgi import HEAD, RIGHT

Start = Callable[..., Front]


def says(body: bytes) -> bytes:
    return record(STDOUT, HEAD + body) + record(STDOUT) + record(END, COMPLETE)


@pytest.fixture
def start(front: Callable[..., Front], tmp_path: Path) -> Iterator[Start]:
    """Start a worker in front of what `answer` plays; `front.played` is the application. most: connections to it."""
    with contextlib.ExitStack() as stack:

        def begin(
            answer: Callable[[socket.socket], None],
            *,
            most: int = 0,
            options: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Front:
            played = Played(tmp_path / "app.sock", answer)
            stack.callback(played.close)
            make = b.fastcgi(played.path, **{"read_timeout": PATIENCE, **(options or {})})

            def kind(site: Site) -> FastcgiKind:
                made = make(site)
                made.most = most or made.most
                return made

            started = front(None, kind=kind, max_workers=1, **settings)
            started.played = played  # type: ignore[attr-defined]
            return started

        yield begin


def path(asked: b.Asked) -> bytes:
    return asked.params["REQUEST_URI"].encode()


class Meeting:
    """An application that answers nobody before `count` requests are there at once."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=PATIENCE)

    def __call__(self, sock: socket.socket) -> None:
        asked = b.read_request(sock)
        self._barrier.wait()
        sock.sendall(says(path(asked)))


class Held:
    """An application that answers /held only once `free` is set, and everybody else at once. `most`: at a time."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.held = threading.Event()
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self, sock: socket.socket) -> None:
        while True:
            try:
                asked = b.read_request(sock)
            except ConnectionError:
                return
            with self._lock:
                self.now += 1
                self.most = max(self.most, self.now)
            if path(asked) == b"/held":
                self.held.set()
                assert self.free.wait(PATIENCE)
            with self._lock:
                self.now -= 1
            sock.sendall(says(path(asked)))
            if not asked.keep:
                return


@pytest.fixture
def held() -> Iterator[Held]:
    one = Held()
    yield one
    one.free.set()


def body(sock: socket.socket) -> tuple[int, bytes]:
    answer = Client(sock).answer()
    return answer.status, answer.body


def test_one_thread_waits_for_many(start: Start) -> None:
    front = start(Meeting(8))
    clients = [front.ask(f"/{number}") for number in range(8)]
    assert [body(client) for client in clients] == [(200, b"/%d" % number) for number in range(8)]
    front.wait_for(lambda: front.row().requests == 8)
    assert front.row().threads == 1


def test_kept_connections_on_both_sides(start: Start, held: Held) -> None:
    front = start(held, options={"keep_connections": 2})
    client = front.ask("/0")
    assert body(client) == (200, b"/0")
    for number in range(1, 20):
        front.ask(f"/{number}", client)
        assert body(client) == (200, b"/%d" % number)
    assert front.played.connections == 1  # type: ignore[attr-defined]
    front.wait_for(lambda: front.row().requests == 20)


def test_who_was_idle_for_long_is_served_as_before(
    start: Start, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchboard, "IDLE_FOR", 0.0)
    monkeypatch.setattr(switchboard, "KEEP_FOR", 0.0)
    front = start(held, options={"keep_connections": 2})
    client = front.ask("/0")
    assert body(client) == (200, b"/0")
    front.wait_for(lambda: front.row().parked == 1)
    front.ask("/1", client)
    assert body(client) == (200, b"/1")
    assert front.played.connections == 2  # type: ignore[attr-defined]  # the first one was given back as well


def test_a_kept_connection_that_the_application_has_closed(start: Start) -> None:
    def answer(sock: socket.socket) -> None:
        sock.sendall(says(path(b.read_request(sock))))

    front = start(answer, options={"keep_connections": 2})
    client = front.connect()
    for number in range(5):
        front.ask(f"/{number}", client)
        assert body(client) == (200, b"/%d" % number)
    assert front.played.connections == 5  # type: ignore[attr-defined]


def test_no_more_connections_than_there_may_be(start: Start, held: Held) -> None:
    front = start(held, most=1, options={"keep_connections": 1})
    first = front.ask("/held")
    assert held.held.wait(PATIENCE)
    others = [front.ask(f"/{number}") for number in range(5)]
    front.wait_for(lambda: front.row().waiting == 5)
    held.free.set()
    assert body(first) == (200, b"/held")
    assert [body(other) for other in others] == [(200, b"/%d" % number) for number in range(5)]
    assert (held.most, front.played.connections) == (1, 1)  # type: ignore[attr-defined]


def test_a_connection_isn_t_kept_while_another_may_wait_for_its_process(start: Start, held: Held) -> None:
    """How many processes somebody else has for it, nobody knows here."""
    front = start(held, options={"keep_connections": 1})
    slow = front.ask("/held")
    assert held.held.wait(PATIENCE)
    client = front.connect()
    for number in range(3):
        front.ask(f"/{number}", client)
        assert body(client) == (200, b"/%d" % number)
    assert front.played.connections == 4  # type: ignore[attr-defined]
    held.free.set()
    assert body(slow) == (200, b"/held")


def test_who_waits_for_too_long(start: Start) -> None:
    """While another request has the only process, and that isn't silent."""
    held, free = threading.Event(), threading.Event()

    def answer(sock: socket.socket) -> None:
        sock.sendall(record(STDOUT, HEAD))
        asked = b.read_request(sock)
        if path(asked) == b"/held":
            held.set()
            while not free.wait(0.05):
                sock.sendall(record(STDOUT, b"."))
        sock.sendall(record(END, COMPLETE))

    front = start(answer, most=1, options={"keep_connections": 1, "read_timeout": 1.0})
    slow = front.ask("/held")
    assert held.wait(PATIENCE)
    assert body(front.ask("/0"))[0] == 504
    free.set()
    assert body(slow)[0] == 200
    assert body(front.ask("/1")) == (200, b"")
    front.wait_for(lambda: front.row().errors == 1)


def test_too_many_wait(start: Start, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switchboard, "MAX_WAITING", 2)
    front = start(held, most=1, options={"keep_connections": 1})
    slow = front.ask("/held")
    assert held.held.wait(PATIENCE)
    waiting = [front.ask("/0"), front.ask("/1")]
    front.wait_for(lambda: front.row().waiting == 2)
    assert body(front.ask("/2"))[0] == 503
    held.free.set()
    assert [body(each)[0] for each in (slow, *waiting)] == [200, 200, 200]


def test_a_client_that_waits_leaves(start: Start, held: Held) -> None:
    front = start(held, most=1, options={"keep_connections": 1})
    client = front.ask("/0")
    assert body(client) == (200, b"/0")
    slow = front.ask("/held")
    assert held.held.wait(PATIENCE)
    front.ask("/1", client)
    front.wait_for(lambda: front.row().waiting == 1)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    front.wait_for(lambda: front.row().waiting == 0)
    other = front.ask("/2")
    held.free.set()
    assert body(slow) == (200, b"/held")
    assert body(other) == (200, b"/2")
    front.wait_for(lambda: front.row().requests == 3)


@pytest.mark.parametrize("keep", [0, 2])
def test_right(start: Start, keep: int) -> None:
    """Each case of what is unusual and right, one behind the other on one worker."""
    cases = iter([*RIGHT.values(), *RIGHT.values()])

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        for piece in next(cases):
            sock.sendall(piece)

    front = start(answer, options={"keep_connections": keep})
    client = front.connect()
    for number in range(2 * len(RIGHT)):
        front.ask(f"/{number}", client if number % 2 else None) if number % 2 else front.ask("/", client)
        assert body(client) == (200, b"body")


WRONG: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 502),
    "no FastCGI": (b"HTTP/1.1 200 OK\r\n\r\n", 502),
    "no head": (record(STDOUT, b"hello") + record(END, COMPLETE), 502),
    "half a record": (record(STDOUT, HEAD)[:-3], 502),
    "another's request": (record(STDOUT, HEAD, id_=7), 502),
    "overloaded": (record(END, b"\0\0\0\0\x02\0\0\0"), 503),
}


def test_wrong(start: Start) -> None:
    """Whatever an application says wrong costs its request, and nobody else's."""
    cases = iter(WRONG.values())

    def answer(sock: socket.socket) -> None:
        asked = b.read_request(sock)
        sock.sendall(says(b"right") if path(asked) == b"/right" else next(cases)[0])

    front = start(answer, options={"keep_connections": 2})
    client = front.connect()
    for _, status in WRONG.values():
        front.ask("/wrong", client)
        assert body(client)[0] == status
        front.ask("/right", client)
        assert body(client) == (200, b"right")
    front.wait_for(lambda: front.row().errors == len(WRONG))


def test_bodies(start: Start) -> None:
    """A short body comes with its request, a longer one by a thread of the worker's, beside which others are served."""

    def answer(sock: socket.socket) -> None:
        while True:
            try:
                asked = b.read_request(sock)
            except ConnectionError:
                return
            sock.sendall(says(b"%d" % len(asked.body)))
            if not asked.keep:
                return

    front = start(answer, most=1, options={"keep_connections": 1}, http=HttpSettings(body_buffer=1000))
    client = front.connect()
    for length in (1, 1000, 1001, 200_000, 5, 0):
        head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\n"
        client.sendall(head.encode() + bytes(length))
        assert body(client) == (200, b"%d" % length)
    client.sendall(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    client.sendall(b"3\r\nabc\r\n0\r\n\r\n")
    assert body(client) == (200, b"3")


@pytest.mark.parametrize("threads", [1, 2])
def test_an_upload_keeps_nobody_waiting(start: Start, held: Held, threads: int) -> None:
    """A thread waits for its client. Where there is no other one, the watcher goes on with what the switchboard has."""
    front = start(
        held,
        most=2,
        options={"keep_connections": 2},
        max_threads=threads,
        http=HttpSettings(body_buffer=1000),
    )
    kept = [front.ask("/0"), front.ask("/1")]
    assert sorted(body(each) for each in kept) == [(200, b"/0"), (200, b"/1")]
    upload = front.connect()
    upload.sendall(
        f"POST /upload HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 2000\r\n\r\n".encode() + bytes(1000)
    )
    for number in range(20):
        front.ask(f"/{number}", kept[number % 2])
        assert body(kept[number % 2]) == (200, b"/%d" % number)
        if threads == 2:
            assert body(front.ask("/new")) == (200, b"/new")
    upload.sendall(bytes(1000))
    assert body(upload) == (200, b"/upload")


def test_pipelined(start: Start, held: Held) -> None:
    front = start(held, options={"keep_connections": 1})
    client = front.connect()
    client.sendall(
        b"".join(f"GET /{number} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() for number in range(40))
    )
    answers = Client(client)
    assert [answers.answer().body for _ in range(40)] == [b"/%d" % number for number in range(40)]


def test_what_is_no_request_for_us(start: Start, held: Held) -> None:
    """On a connection that was served here before."""
    front = start(held, options={"keep_connections": 1})
    for said, status in ((b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n", 421), (b"nonsense\r\n\r\n", 400)):
        client = front.ask("/0")
        assert body(client) == (200, b"/0")
        client.sendall(said)
        assert body(client)[0] == status
        assert client.recv(1) == b""
    client = front.ask("/0")
    assert body(client) == (200, b"/0")
    slowly = f"GET /slowly HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    for byte in slowly:
        client.sendall(bytes((byte,)))
    assert body(client) == (200, b"/slowly")


def test_a_connection_for_one_request(start: Start, held: Held) -> None:
    front = start(held, options={"keep_connections": 1})
    for _ in range(3):
        client = front.connect()
        client.sendall(f"GET /x HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        assert body(client) == (200, b"/x")
        assert client.recv(1) == b""
    front.wait_for(lambda: front.row().connections == 0)


def test_the_client_leaves(start: Start) -> None:
    """The application hears of it, and the worker has nothing of it any more."""
    heard, ended = threading.Event(), threading.Event()

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        heard.set()
        while sock.recv(1000):
            pass
        ended.set()

    front = start(answer)
    client = front.ask("/")
    assert heard.wait(PATIENCE)
    client.close()
    assert ended.wait(PATIENCE)
    front.wait_for(lambda: front.row().connections == 0)


def test_a_client_that_takes_nothing_keeps_nobody_waiting(start: Start) -> None:
    large = b"x" * 60_000  # times 200: more than the sockets between us hold

    def answer(sock: socket.socket) -> None:
        asked = b.read_request(sock)
        if path(asked) == b"/small":
            sock.sendall(says(b"small"))
            return
        sock.sendall(record(STDOUT, HEAD))
        for _ in range(200):
            sock.sendall(record(STDOUT, large))
        sock.sendall(record(END, COMPLETE))

    front = start(answer)
    client = front.connect()
    front.ask("/large", client)
    for _ in range(5):
        assert body(front.ask("/small")) == (200, b"small")
    count = client.recv(65536).count(b"x")
    while count < 200 * len(large):
        piece = client.recv(65536)
        assert piece
        count += piece.count(b"x")


def test_a_local_redirect(start: Start) -> None:
    def answer(sock: socket.socket) -> None:
        asked = b.read_request(sock)
        if path(asked) == b"/old":
            sock.sendall(record(STDOUT, b"Location: /new\n\n") + record(STDOUT) + record(END, COMPLETE))
        elif path(asked) == b"/round":
            sock.sendall(record(STDOUT, b"Location: /round\n\n") + record(STDOUT) + record(END, COMPLETE))
        else:
            sock.sendall(says(path(asked)))

    front = start(answer)
    client = front.ask("/old")
    assert body(client) == (200, b"/new")
    front.ask("/round", client)
    assert body(client)[0] == 502


def test_it_leaves_when_all_is_answered(start: Start, held: Held) -> None:
    front = start(held, options={"keep_connections": 1})
    idle = front.ask("/0")
    assert body(idle) == (200, b"/0")
    slow = front.ask("/held")
    assert held.held.wait(PATIENCE)
    front.tell(m.Goodbye("stop"))
    assert idle.recv(1) == b""
    held.free.set()
    assert body(slow) == (200, b"/held")
    assert front.wait_ended() == 0


def test_a_slow_request_is_told(start: Start, held: Held) -> None:
    front = start(held, slow_request=0.1)
    client = front.ask("/held")
    assert held.held.wait(PATIENCE)  # there is a log now
    front.wait_for(lambda: "slow request" in front.log())
    held.free.set()
    assert body(client) == (200, b"/held")
    front.wait_for(lambda: front.row().slow == 1)
