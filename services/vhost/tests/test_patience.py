"""Slow clients: minimum rates, stress, connections per client; and clients that go away, who is told of it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.shares import HttpSettings
from pyttpd.wire.messages import Client as Address

from pyttpd_vhost import commons as module
from pyttpd_vhost import worker
from pyttpd_vhost.commons import Commons
from pyttpd_vhost.http.connection import State, Want
from pyttpd_vhost.http.patience import MOST_AT_ONCE, Pace, Patience
from pyttpd_vhost.scoreboard import Row
from pyttpd_vhost.stress import AFTER, GAP, UNTIL, Stress

from .conftest import Client, Serve, Server
from .front import Fronts

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n"


def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def read_all(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    size = 0
    while data := environ["wsgi.input"].read(65536):
        size += len(data)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % size]


def wait_until(condition: Callable[[], object], within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.005)


# ---- a pace ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([], 5.0),  # the timeout is shorter than the grace
        ([(1.0, 0)], 4.0),
        ([(1.0, 0)] * 4, 1.0),
        ([(1.0, 0)] * 4 + [(1.0, 1)], 5.0),  # anything that moves begins the timeout anew
        ([(1.0, 1)] * 16, 20.0 - 16 * 0.99),
        ([(1.0, 1)] * 20, 0.2),  # the grace is used up, and a byte is worth a hundredth of a second
        ([(1.0, 1)] * 20 + [(0.3, 0)], -0.1),
        ([(1.0, 1)] * 20 + [(1.0, 2000)], 5.0),  # it has caught up
        ([(1.0, 100)] * 500, 5.0),  # as quick as the rate, for as long as it takes
        ([(0.0, 1 << 30), (1.0, 0)], 4.0),
        ([(0.0, 1 << 30)] + [(1.0, 1)] * 20, 0.2),  # nothing is saved up
        ([(3600.0, 0)], 5.0 - MOST_AT_ONCE),  # nobody looked: our fault
    ],
)
def test_pace(steps: list[tuple[float, int]], left: float) -> None:
    pace = Pace()
    for seconds, count in steps:
        pace.add(seconds, count, 100)
    assert pace.left(5.0, 100, 20.0) == pytest.approx(left)


def test_without_a_rate_only_the_timeout_counts() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.add(1.0, 1, 0)
    assert pace.left(5.0, 0, 0.0) == 5.0


def test_stress_shrinks_everything_by_its_factor() -> None:
    http = HttpSettings()
    calm, stressed = Patience.of(http), Patience.of(http, 0.2)
    assert calm == Patience(10.0, 60.0, 30.0, 30.0, 500, 500, 30.0)
    assert stressed == Patience(2.0, 12.0, 6.0, 6.0, 2500, 2500, 6.0)


# ---- bodies ----------------------------------------------------------------------------------------------------------

RATES = {"min_body_rate": 1000, "min_read_rate": 20_000, "rate_grace": 0.3}


def drip(sock: socket.socket, size: int, every: float, stop: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while not stop.wait(every):
            sock.sendall(bytes(size))


@pytest.fixture
def dripping() -> Iterator[Callable[[socket.socket, int, float], None]]:
    """Send so many bytes every so many seconds, until the test ends."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def begin(sock: socket.socket, size: int, every: float) -> None:
        threads.append(threading.Thread(target=drip, args=(sock, size, every, stop)))
        threads[-1].start()

    yield begin
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_trickles_gets_408(serve: Serve, dripping: Any, chunked: bool) -> None:
    server = serve(read_all, read_timeout=30.0, **RATES)
    with server.connect() as sock:
        head = POST % 1_000_000
        if chunked:
            head = head.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked") + b"fffff\r\n"
        sock.sendall(head)
        start = time.monotonic()
        dripping(sock, 1, 0.02)  # 50 bytes/s: never still for read_timeout, and much too slow
        client = Client(sock)
        assert client.answer().status == 408
        assert 0.25 < time.monotonic() - start < 5
    assert server.site.stats.errors == 0


def test_a_body_that_comes_fast_enough_may_take_long(serve: Serve, dripping: Any) -> None:
    server = serve(read_all, min_body_rate=1000, rate_grace=1.0)
    with server.connect() as sock:
        sock.sendall(POST % 6000)
        start = time.monotonic()
        dripping(sock, 150, 0.05)  # 3000 bytes/s for two seconds: twice the grace
        assert Client(sock).answer().body == b"6000"
        assert time.monotonic() - start > 1.5


def test_the_time_that_the_application_takes_is_not_the_clients(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        size = len(environ["wsgi.input"].read(1))
        time.sleep(0.6)  # twice the grace
        return [*read_all(environ, start_response), b"%d" % size]

    server = serve(application, body_buffer=0, **RATES)
    with server.connect() as sock:
        sock.sendall(POST % 20 + bytes(10))
        time.sleep(0.7)
        sock.sendall(bytes(10))
        assert Client(sock).answer().body == b"191"


# ---- responses -------------------------------------------------------------------------------------------------------


class Closing:
    """An application whose iterator says when it was closed, and how much it was asked for."""

    def __init__(self, piece: int, pause: float = 0.0) -> None:
        self.piece = piece
        self.pause = pause
        self.pieces = 0
        self.closed = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return self

    def __iter__(self) -> Iterator[bytes]:
        while not self.closed.wait(self.pause):
            self.pieces += 1
            yield bytes(self.piece)

    def close(self) -> None:
        self.closed.set()


def small_window(server: Server) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(10)
    sock.connect(("127.0.0.1", server.port))
    return sock


def test_a_reader_that_trickles_in_the_middle_of_a_response_is_given_up(serve: Serve) -> None:
    application = Closing(65536)
    server = serve(application, **RATES)
    with small_window(server) as sock:
        sock.sendall(GET)
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while not application.closed.is_set():  # about 2000 bytes/s: never still, and much too slow
                sock.recv(100)
                time.sleep(0.05)
                assert time.monotonic() - start < 10
        assert time.monotonic() - start > 0.25
    server.wait_closed()
    assert server.site.stats.gone == 1
    assert server.site.stats.errors == 0


def test_a_reader_that_trickles_through_the_tail_is_given_up(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20_000_000))
    server = serve(root=tmp_path, **RATES)
    with small_window(server) as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n")
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while server.connections or time.monotonic() - start < 0.2:
                sock.recv(100)
                time.sleep(0.05)
                assert time.monotonic() - start < 10
    assert server.site.stats.gone == 1


@pytest.mark.parametrize("kind", ["pieces", "file"])
def test_a_reader_that_is_fast_enough_may_take_long(serve: Serve, tmp_path: Path, kind: str) -> None:
    """Quicker than the rate, with many a pause; more than the buffers hold, for longer than the grace."""
    size = 6_000_000
    (tmp_path / "big").write_bytes(bytes(size))

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(size))])
        if kind == "file":
            result: Iterable[bytes] = environ["wsgi.file_wrapper"]((tmp_path / "big").open("rb"))
            return result
        return (bytes(60_000) for _ in range(size // 60_000))

    server = serve(application, min_read_rate=100_000, rate_grace=1.0, write_timeout=5.0)
    with small_window(server) as sock:
        sock.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        start, got = time.monotonic(), 0
        while data := sock.recv(16_384):
            got += len(data)
            time.sleep(0.004)
        assert got > size
        assert time.monotonic() - start > 1.2
    assert server.site.stats.gone == 0


def test_a_short_body_is_waited_for_without_a_thread(serve: Serve) -> None:
    server = serve(read_all, body_buffer=1000)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(5)]
        for number, sock in enumerate(slow):
            sock.sendall(POST % 1000 + bytes(number))
        fast = stack.enter_context(server.connect())
        fast.sendall(POST % 3 + b"abc" + POST % 2)
        client = Client(fast)
        assert client.answer().body == b"3"
        wait_until(lambda: [c.state for c in server.connections.values()] == [State.BODY] * 6)
        fast.sendall(b"ab" + GET.replace(b"GET", b"POST"))  # what follows is another request
        assert [client.answer().body for _ in range(2)] == [b"2", b"0"]
        for number, sock in enumerate(slow):
            for _ in range(1000 - number - 1):
                sock.sendall(b"x")
            sock.sendall(b"x" + POST % 1 + b"y")
            client = Client(sock)
            assert [client.answer().body for _ in range(2)] == [b"1000", b"1"]


def test_a_short_body_that_ends_early_or_comes_too_slowly(serve: Serve, dripping: Any) -> None:
    server = serve(read_all, **RATES)
    for status in (400, 408):
        with server.connect() as sock:
            sock.sendall(POST % 10_000 + b"some")
            if status == 400:
                sock.shutdown(socket.SHUT_WR)
            else:
                dripping(sock, 1, 0.02)
            assert Client(sock).answer().status == status
    with server.connect() as sock:
        sock.sendall(POST % 10_000 + b"some")
        wait_until(lambda: State.BODY in [c.state for c in server.connections.values()])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.wait_closed()
    assert server.site.stats.gone == 1


def test_a_worker_that_leaves_waits_for_a_short_body_and_it_is_the_last(serve: Serve) -> None:
    server = serve(read_all)
    with server.connect() as sock:
        sock.sendall(POST % 4 + b"so")
        wait_until(lambda: [c.state for c in server.connections.values()] == [State.BODY])
        assert next(iter(server.connections.values())).close() is Want.READ
        sock.sendall(b"me")
        client = Client(sock)
        answer = client.answer()
        assert (answer.body, answer["Connection"]) == (b"4", "close")
        assert client.at_end()


def test_a_slow_body_costs_a_thread_and_a_slow_head_none(serve: Serve) -> None:
    """The loop of this server has one thread: who waits in a head, idle, or in a tail doesn't hold it."""
    content = bytes(200_000)
    reading = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            reading.set()
            return read_all(environ, start_response)
        start_response("200 OK", [])
        return [content] if environ["PATH_INFO"] == "/tail" else [b"small"]

    server = serve(application, read_timeout=1.0, min_read_rate=0, body_buffer=0)
    with contextlib.ExitStack() as stack:
        for data in (GET[:-2], GET, GET.replace(b"/ ", b"/tail ") * 30):
            for _ in range(3):
                stack.enter_context(small_window(server)).sendall(data)
        fast = stack.enter_context(server.connect())
        fast.sendall(GET)
        start = time.monotonic()
        assert Client(fast).answer().body == b"small"
        assert time.monotonic() - start < 2
        slow = stack.enter_context(server.connect())
        slow.sendall(POST % 10)
        assert reading.wait(5)
        fast.sendall(GET)
        start = time.monotonic()
        assert Client(fast).answer().body == b"small"  # when read_timeout has freed the thread
        assert 0.2 < time.monotonic() - start < 5
        assert Client(slow).answer().status == 408


def test_a_reader_isnt_to_blame_for_a_busy_worker(serve: Serve, tmp_path: Path) -> None:
    """It takes what it gets at once; it got nothing, because the only thread was in the application."""
    (tmp_path / "big").write_bytes(bytes(8_000_000))

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/sleep":
            time.sleep(3.0)
            return [b""]
        result: Iterable[bytes] = environ["wsgi.file_wrapper"]((tmp_path / "big").open("rb"))
        return result

    server = serve(application, write_timeout=2.5, rate_grace=2.5)
    with server.connect() as sock, server.connect() as other:
        sock.sendall(GET)
        other.sendall(b"GET /sleep HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert len(Client(sock).answer().body) == 8_000_000
    assert server.site.stats.gone == 0


# ---- a worker's memory, and who waits for it -------------------------------------------------------------------------


def test_requests_that_are_not_whole_hold_a_bounded_part_of_a_workers_memory(
    front: Fronts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who have sent the most go. Others, whole or not, aren't touched."""
    monkeypatch.setattr(worker, "HELD_LIMIT", 200_000)
    ours = front(hello, http=HttpSettings(body_buffer=100_000))
    small, largest, idle = ours.connect(), ours.connect(), ours.ask()
    small.sendall(GET[:10])
    largest.sendall(POST % 99_000 + bytes(60_000))
    for _ in range(3):  # the worker's loop turns, and reads all that
        assert Client(idle).answer().status == 200
        ours.ask(sock=idle)
    assert Client(idle).answer().status == 200
    for _ in range(8):
        ours.connect().sendall(GET[:-2] + b"X: " + b"x" * 30_000)
    ours.wait_for(lambda: "too much memory" in ours.log())
    with contextlib.suppress(ConnectionResetError):
        assert largest.recv(100) == b""
    small.sendall(GET[10:])
    idle.sendall(GET)
    assert [Client(sock).answer().status for sock in (small, idle)] == [200, 200]


def test_a_worker_with_one_thread_says_that_somebody_waits(front: Fronts) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        time.sleep(0.4)
        return hello(environ, start_response)

    ours = front(application)
    socks = [ours.ask() for _ in range(3)]
    ours.wait_for(lambda: ours.row().waiting and ours.row().busy_threads == ours.row().threads == 1)
    assert [Client(sock).answer().status for sock in socks] == [200] * 3
    ours.wait_for(lambda: not ours.row().waiting)


# ---- back pressure, and clients that go away -------------------------------------------------------------------------


def test_back_pressure_reaches_the_application(serve: Serve) -> None:
    """An application is asked for the next piece when the one before is with the system: no more than buffers hold."""
    application = Closing(100_000)
    server = serve(application)
    with small_window(server) as sock:
        sock.sendall(GET)
        seen = -1
        while seen != application.pieces or not seen:
            seen = application.pieces
            time.sleep(0.1)
        assert seen < 60  # 6 MB: what the kernel takes for a socket (tcp_wmem), and one piece
        got = 0
        while got < 10_000_000:
            got += len(sock.recv(65536))
        wait_until(lambda: application.pieces > seen)
    assert application.closed.wait(5)


def test_back_pressure_reaches_the_uploading_client(serve: Serve) -> None:
    begin = threading.Event()

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        begin.wait(10)
        return read_all(environ, start_response)

    size = 60_000_000
    server = serve(application, body_limit=size)
    with server.connect() as sock:
        sock.sendall(POST % size)
        sock.setblocking(False)
        piece, sent = bytes(1 << 20), 0
        quiet = 0
        while quiet < 10:
            try:
                sent += sock.send(piece[: size - sent])
                quiet = 0
            except BlockingIOError:
                quiet += 1
                time.sleep(0.02)
        assert sent < size // 2
        begin.set()
        sock.settimeout(10)
        while sent < size:
            sent += sock.send(piece[: size - sent])
        assert Client(sock).answer().body == b"%d" % size


@pytest.mark.parametrize("orderly", [True, False], ids=["closed", "reset"])
@pytest.mark.parametrize("where", ["waiting to write", "between writes"])
def test_a_client_that_goes_away_ends_the_applications_iterator(
    serve: Serve, orderly: bool, where: str
) -> None:
    application = Closing(1 << 20) if where == "waiting to write" else Closing(10, pause=0.02)
    server = serve(application)
    with small_window(server) as sock:
        sock.sendall(GET)
        sock.recv(100)
        if where == "waiting to write":
            seen = -1
            while seen != application.pieces:
                seen = application.pieces
                time.sleep(0.05)
        assert not application.closed.is_set()
        if not orderly:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    before = application.pieces
    assert application.closed.wait(5)
    assert (
        application.pieces - before <= 8
    )  # it had pauses of 0.02 s: noticed by the second write after the end
    server.wait_closed()
    assert (server.site.stats.gone, server.site.stats.errors) == (1, 0)


def test_a_client_that_only_half_closes_has_not_gone(serve: Serve) -> None:
    application = Closing(10, pause=0.01)
    server = serve(application)
    with server.connect() as sock:
        sock.sendall(GET)
        sock.shutdown(socket.SHUT_WR)
        wait_until(lambda: application.pieces > 10)
        assert not application.closed.is_set()


# ---- stress ----------------------------------------------------------------------------------------------------------


def test_stress_takes_a_while_to_begin_and_to_end() -> None:
    stress, now = Stress(), 1000.0
    stress.press(now)
    assert not stress.weigh(now + 0.1)
    assert not stress.weigh(now + AFTER)  # pressed once: a burst that was worked off at once
    stress.press(now + AFTER)
    assert stress.weigh(now + AFTER)
    assert (stress.on, stress.since, stress.episodes) == (True, now + AFTER, 1)
    assert not stress.weigh(now + AFTER + UNTIL - 0.1)
    stress.press(now + AFTER + UNTIL - 0.1)
    assert not stress.weigh(now + AFTER + UNTIL)  # and one press keeps it on
    assert stress.weigh(now + AFTER + 2 * UNTIL)
    assert (stress.on, stress.episodes) == (False, 1)


def test_presses_far_apart_are_no_stress() -> None:
    stress = Stress()
    for number in range(100):
        now = 1000.0 + number * (GAP + 0.1)
        stress.press(now)
        assert not stress.weigh(now)


def test_stress_seconds_after_the_last_press_does_not_begin() -> None:
    stress = Stress()
    stress.press(1000.0)
    stress.press(1001.0)
    assert not stress.weigh(1001.0 + GAP + 0.1)


FREE, BUSY = Row(threads=2, busy_threads=1), Row(threads=2, busy_threads=2)
WAITS = BUSY._replace(waiting=1)


@pytest.mark.parametrize(
    ("rows", "waiting", "stressed"),
    [
        ([], 9, False),  # there is no worker yet: no client's fault
        ([BUSY, FREE], 1, True),
        ([BUSY, WAITS], 0, True),
        ([WAITS, FREE], 0, False),  # a sibling is free, and will be given it
        ([BUSY, BUSY], 0, False),  # busy, and nobody waits
    ],
)
def test_stress_is_when_all_are_busy_and_somebody_waits(
    rows: list[Row], waiting: int, stressed: bool
) -> None:
    stress = Stress()
    changes = [stress.look(rows, waiting, 1000.0 + tick / 2) for tick in range(6)]
    assert stress.on is stressed
    assert changes.count(True) == stressed


@pytest.mark.parametrize("where", ["head", "idle", "body", "reading", "tail"])
def test_stress_shortens_what_has_begun_before(serve: Serve, tmp_path: Path, where: str) -> None:
    (tmp_path / "big").write_bytes(bytes(30_000_000))

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        match where:
            case "body":
                return read_all(environ, start_response)
            case "reading":
                start_response("200 OK", [])
                return (bytes(100_000) for _ in range(10_000))
            case "tail":
                start_response("200 OK", [])
                result: Iterable[bytes] = environ["wsgi.file_wrapper"]((tmp_path / "big").open("rb"))
                return result
        return hello(environ, start_response)

    server = serve(application, stress_factor=0.01)  # 0.1 s for a head, 0.6 idle, 0.3 for the others
    with small_window(server) as sock:
        sock.sendall({"head": GET[:9], "body": POST % 10}.get(where, GET))
        if where == "idle":
            assert Client(sock).answer().status == 200
        time.sleep(0.3)
        assert server.connections  # ordinarily there is much time yet
        start = time.monotonic()
        server.site.commons.stressed = 1
        match where:
            case "head" | "body":
                assert Client(sock).answer().status == 408
            case "idle":
                assert Client(sock).at_end()
            case _:
                server.wait_closed()
        assert time.monotonic() - start < 5


# ---- connections per client ------------------------------------------------------------------------------------------


def key(number: int) -> bytes:
    return Address(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 1).network


def test_clients_are_counted_over_all_workers() -> None:
    commons = Commons(4, limit=3)
    one, two = commons.clients(0), commons.clients(3)
    assert one is not None
    assert two is not None
    assert [one.enter(key(1)), two.enter(key(1)), one.enter(key(1))] == [True] * 3
    assert not one.enter(key(1))
    assert not two.enter(key(1))
    assert two.enter(key(2))
    assert (one.count(key(1)), two.count(key(1)), one.count(key(2))) == (3, 3, 1)
    one.leave(key(1))
    assert two.enter(key(1))
    commons.clear(0)  # that worker has died with its connection
    assert two.count(key(1)) == 2
    for client in (key(1), key(1), key(2)):
        two.leave(client)
    two.leave(key(1))  # once too often: nothing
    assert (two.count(key(1)), two.count(key(2))) == (0, 0)
    assert commons._table is not None
    assert not any(commons._table[:])


def test_the_table_is_bounded_and_whom_it_has_no_place_for_is_let_in() -> None:
    commons = Commons(2, limit=1)
    commons._sets = 1
    clients = commons.clients(1)
    assert clients is not None
    for number in range(1, 1 + 5 * module.WAYS):
        assert clients.enter(key(number))
    assert [clients.enter(key(number)) for number in range(1, 1 + module.WAYS)] == [False] * module.WAYS
    assert clients.enter(key(module.WAYS + 1))  # was not counted either
    clients.leave(key(module.WAYS + 1))
    clients.leave(key(1))
    assert clients.enter(key(999))
    assert not clients.enter(key(999))


def test_the_table_stays_small_however_many_workers_there_are() -> None:
    for rows in (2, 66, 2050):
        commons = Commons(rows, limit=1)
        assert commons._table is not None
        assert len(commons._table) <= module.MAX_TABLE
        clients = commons.clients(rows - 1)
        assert clients is not None
        assert clients.enter(key(7))
        assert not clients.enter(key(7))


def test_junk_in_the_table_harms_nobody() -> None:
    """It is the tenant's memory: whatever is in there, the numbers are numbers, and nothing is raised."""
    commons = Commons(2, limit=5)
    clients = commons.clients(0)
    assert clients is not None
    assert commons._table is not None
    commons._table[:] = os.urandom(len(commons._table))
    for number in range(1, 1000):
        clients.enter(key(number))
        clients.leave(key(number))
    place = key(1) + b"\xff" * 8
    commons._table[:] = place * (len(commons._table) // len(place))
    assert not clients.enter(key(1))
    assert clients.enter(key(2))
    clients.leave(key(1))


def test_without_a_limit_there_is_no_table() -> None:
    commons = Commons(2)
    assert commons.clients(0) is None
    commons.clear(0)


def test_one_connection_too_many_gets_429(serve: Serve) -> None:
    server = serve(hello, max_connections_per_client=2)
    server.site.clients = server.site.commons.clients(0)
    clients = server.site.clients
    assert clients is not None
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect()) for _ in range(2)]
        for sock in socks:
            sock.sendall(GET)
            assert Client(sock).answer().status == 200
        surplus = stack.enter_context(server.connect())
        surplus.sendall(GET * 2)
        client = Client(surplus)
        answer = client.answer()
        assert (answer.status, answer["Connection"]) == (429, "close")
        assert client.at_end()
        socks[0].close()
        wait_until(lambda: clients.count(Address("127.0.0.1", 1).network) == 1)
        again = stack.enter_context(server.connect())
        again.sendall(GET)
        assert Client(again).answer().status == 200
    server.wait_closed()
    assert clients.count(Address("127.0.0.1", 1).network) == 0
