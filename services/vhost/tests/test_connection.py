"""Deadlines, slow clients, the end of connections, and what the worker's loop asks of a connection."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyttpd.config.shares import HttpSettings

from pyttpd_vhost.http import connection as module
from pyttpd_vhost.http.connection import Connection, State, Want
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.response import STATUS
from pyttpd_vhost.kinds.wsgi import WsgiKind
from pyttpd_vhost.site import Site

from .conftest import HOST, Client, ListLog, Serve, descriptors, make_share
from .echo import PLAIN

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def hello(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def read_all(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    size = len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % size]


# ---- deadlines -----------------------------------------------------------------------------------------------------


def test_a_slow_head_gets_408(serve: Serve) -> None:
    server = serve(hello, head_timeout=0.3)
    with server.connect() as sock:
        start = time.monotonic()
        for byte in GET[:6]:
            sock.sendall(bytes([byte]))
            time.sleep(0.03)  # bytes don't move the deadline
        client = Client(sock)
        assert client.answer().status == 408
        assert 0.2 < time.monotonic() - start < 1
        assert client.at_end()


def test_a_slow_second_head_gets_408(serve: Serve) -> None:
    server = serve(hello, head_timeout=0.3, idle_timeout=5.0)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(GET + GET[:10])
        assert client.answer().status == 200
        assert client.answer().status == 408


def test_idle_ends_without_a_word(serve: Serve) -> None:
    server = serve(hello, idle_timeout=0.2)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(GET)
        assert client.answer().status == 200
        start = time.monotonic()
        assert client.at_end()
        assert 0.1 < time.monotonic() - start < 1


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 10\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"]
)
def test_a_slow_body_gets_408(serve: Serve, framing: bytes) -> None:
    server = serve(read_all, read_timeout=0.2)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\n" + framing)
        assert client.answer().status == 408
        assert client.at_end()
    assert server.site.stats.errors == 0


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 10\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel"]
)
def test_a_body_that_ends_early_gets_400(serve: Serve, framing: bytes) -> None:
    server = serve(read_all)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\n" + framing)
        sock.shutdown(socket.SHUT_WR)
        assert client.answer().status == 400
        assert client.at_end()


# ---- Expect --------------------------------------------------------------------------------------------------------

EXPECTING = b"POST %s HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"


def test_continue_is_said_when_the_application_reads(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read() if environ["PATH_INFO"] == "/read" else b""
        start_response("200 OK", [])
        return [body]

    server = serve(application)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(EXPECTING % b"/read")
        assert client.answer().status == 100
        sock.sendall(b"hello")
        assert client.answer().body == b"hello"
        # the client didn't wait: nothing to be said
        sock.sendall(EXPECTING % b"/read" + b"hello")
        assert client.answer().body == b"hello"
        # nobody reads: nobody knows whether a body comes, so this is the end
        sock.sendall(EXPECTING % b"/")
        answer = client.answer()
        assert (answer.status, answer["Connection"]) == (200, "close")
        assert client.at_end()


def test_no_continue_behind_the_head_of_the_answer(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"first"
        yield environ["wsgi.input"].read()

    server = serve(application)
    with server.connect() as sock:
        sock.sendall(EXPECTING % b"/")
        data = b""
        while b"first" not in data:
            data += sock.recv(1000)
        sock.sendall(b"hello")
        client = Client(sock)
        client.data = data
        assert client.answer().body == b"firsthello"


def test_no_continue_for_1_0(serve: Serve) -> None:
    server = serve(read_all, read_timeout=0.2)
    with server.connect() as sock:
        sock.sendall((EXPECTING % b"/").replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert Client(sock).answer().status == 408


def test_a_large_expected_body_is_refused_before_it_comes(serve: Serve) -> None:
    server = serve(read_all, body_limit=4)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(EXPECTING % b"/")
        assert client.answer().status == 413
        assert client.at_end()


# ---- large bodies and slow readers ---------------------------------------------------------------------------------


def test_a_refused_upload_hears_why(serve: Serve) -> None:
    """A lingering close: the answer isn't lost to a reset while the client is still sending."""
    server = serve(hello, body_limit=1000)
    with server.connect() as sock:
        size = 20_000_000
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(20):
            sock.sendall(bytes(size // 20))
        client = Client(sock)
        assert client.answer().status == 413
        assert client.at_end()


def test_lingering_has_an_end(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_TIMEOUT", 0.2)
    server = serve(hello)
    with server.connect() as sock:
        sock.sendall(b"garbage\r\n\r\n")
        client = Client(sock)
        assert client.answer().status == 400
        assert client.at_end()
        server.wait_closed()


def test_lingering_with_a_client_that_goes_on_has_an_end(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_TOTAL", 0.3)
    server = serve(hello)
    with server.connect() as sock:
        sock.sendall(b"garbage\r\n\r\n")
        start = time.monotonic()
        try:
            while time.monotonic() - start < 5:
                sock.sendall(b"more")
                time.sleep(0.01)
        except ConnectionError:
            pass
        assert time.monotonic() - start < 3


def test_upload_at_flat_memory(serve: Serve) -> None:
    size = 50_000_000

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        got, largest = 0, 0
        while data := environ["wsgi.input"].read(65536):
            got += len(data)
            largest = max(largest, len(data))
        start_response("200 OK", [])
        return [b"%d %d" % (got, largest)]

    server = serve(application, body_limit=size)
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n" % size)
        piece = bytes(1_000_000)
        for _ in range(size // len(piece)):
            sock.sendall(piece)
        assert Client(sock).answer().body == b"%d 65536" % size


@pytest.mark.parametrize("kind", ["file", "bytes", "pieces"])
def test_a_slow_reader_gets_it_all_and_a_fast_one_does_not_wait(
    serve: Serve, tmp_path: Path, kind: str
) -> None:
    """With a file, or a body of which TAIL_LIMIT or less is left, only epoll waits for the slow one."""
    content = os.urandom(1 << 20) * 8
    path = tmp_path / "big"
    path.write_bytes(content)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] != "/big":
            return [b"small"]
        if kind == "file":
            result: Iterable[bytes] = environ["wsgi.file_wrapper"](path.open("rb"))
            return result
        if kind == "bytes":
            return [content]
        return (content[at : at + 100_000] for at in range(0, len(content), 100_000))

    server = serve(application)
    with server.connect() as slow, server.connect() as fast:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n" + GET)
        if kind == "file":
            time.sleep(0.1)
            fast.sendall(GET)
            assert Client(fast).answer().body == b"small"
        client = Client(slow)
        assert client.answer().body == content
        assert client.answer().body == b"small"
    server.wait_closed()
    assert server.site.stats.bytes_sent > len(content)


def test_the_tail_of_a_large_answer_is_left_to_epoll(serve: Serve) -> None:
    """The application is done although the client has read nothing: the socket's buffers and TAIL_LIMIT hold it."""
    content = bytes(200_000)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [b"small"] if environ["PATH_INFO"] == "/" else [content]

    server = serve(application)
    with server.connect() as slow, server.connect() as fast:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        slow.sendall(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n" * 40)
        time.sleep(0.1)
        fast.sendall(GET)
        assert Client(fast).answer().body == b"small"
        client = Client(slow)
        for _ in range(40):
            assert client.answer().body == content


def test_a_reader_that_stops_during_the_tail_is_given_up(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20_000_000))
    server = serve(root=tmp_path, write_timeout=0.3)
    with server.connect() as sock:
        sock.sendall(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n")
        sock.recv(100)
        server.wait_closed()
    assert server.site.stats.gone == 1


# ---- the number of requests, retiring ------------------------------------------------------------------------------


def test_max_keepalive_requests(serve: Serve) -> None:
    server = serve(hello, max_keepalive_requests=3)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(GET * 4)
        assert ["Connection" in client.answer() for _ in range(3)] == [False, False, True]
        assert client.at_end()


def test_keepalive_off(serve: Serve) -> None:
    server = serve(hello, keepalive=False)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(GET)
        assert client.answer()["Connection"] == "close"
        assert client.at_end()


def test_retiring(serve: Serve) -> None:
    server = serve(hello)
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(GET)
        assert "Connection" not in client.answer()
        server.site.retiring = True
        sock.sendall(GET)
        assert client.answer()["Connection"] == "close"
        assert client.at_end()


def test_half_closed_clients_are_answered(serve: Serve) -> None:
    server = serve(hello)
    with server.connect() as sock:
        sock.sendall(GET * 3)
        sock.shutdown(socket.SHUT_WR)
        client = Client(sock)
        for _ in range(3):
            assert client.answer().body == b"hello"
        assert client.at_end()


# ---- what the worker's loop asks -----------------------------------------------------------------------------------


class Pair:
    """A connection without a loop, and its client."""

    def __init__(self, application: Any = hello, **http: Any) -> None:
        from pyttpd.config.shares import HttpSettings

        self.site = Site(make_share(http=HttpSettings(**http)), ListLog())
        self.site.kind = WsgiKind(application, self.site)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.sock = socket.create_connection(listener.getsockname())
            server, address = listener.accept()
        self.sock.settimeout(5)
        server.setblocking(False)
        self.connection = Connection(server, address, HOST, self.site)
        self.client = Client(self.sock)

    def close(self) -> None:
        self.connection.abort()
        self.connection.sock.close()
        self.sock.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def test_who_says_nothing_at_first_was_idle_at_a_sibling(pair: Pair) -> None:
    """Listeners hand on whole heads; workers that retire, connections between two requests. These aren't late."""
    assert pair.connection.on_readable() is Want.READ
    assert pair.connection.idle
    assert pair.connection.deadline > time.monotonic() + HttpSettings().head_timeout
    assert pair.connection.on_timeout() is Want.CLOSED
    pair.connection.sock.close()
    assert pair.sock.recv(100) == b""


def test_what_came_while_the_thread_was_busy_is_not_late(pair: Pair) -> None:
    """The deadline of a head that is there is no reason to refuse it."""
    pair.sock.sendall(GET[:9])
    pair.connection.on_readable()
    pair.sock.sendall(GET[9:])
    assert pair.connection.on_timeout() is Want.READ
    assert pair.client.answer().status == 200
    assert pair.connection.idle


def test_a_head_that_goes_on_but_is_not_whole_is_late(pair: Pair) -> None:
    pair.sock.sendall(GET[:9])
    pair.connection.on_readable()
    pair.sock.sendall(GET[9:-1])
    pair.connection.on_timeout()
    assert pair.client.answer().status == 408


def test_a_further_head_has_a_deadline_of_its_own(pair: Pair) -> None:
    pair.sock.sendall(GET[:9])
    pair.connection.on_readable()
    pair.sock.sendall(GET[9:] + GET[:9])
    assert pair.connection.on_timeout() is Want.READ
    assert pair.client.answer().status == 200
    assert pair.connection.deadline > time.monotonic() + 5
    pair.connection.on_timeout()
    assert pair.client.answer().status == 408


def test_a_short_body_that_came_while_the_thread_was_busy_is_not_late() -> None:
    pair = Pair(read_all, read_timeout=0.1)
    try:
        pair.sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n")
        assert pair.connection.on_readable() is Want.READ
        pair.sock.sendall(b"hello")
        assert pair.connection.on_timeout() is Want.READ
        assert pair.client.answer().body == b"5"
    finally:
        pair.close()


def test_idle_and_detach(pair: Pair) -> None:
    pair.sock.sendall(GET)
    assert pair.connection.on_readable() is Want.READ
    assert pair.connection.idle
    assert pair.connection.deadline > time.monotonic() + 50
    sock = pair.connection.detach()
    assert pair.connection.state is State.CLOSED
    assert sock.fileno() >= 0
    assert pair.connection.on_readable() is Want.CLOSED
    pair.client.answer()
    sock.sendall(b"still open")
    assert pair.sock.recv(100) == b"still open"


def test_closing_an_idle_one(pair: Pair) -> None:
    pair.sock.sendall(GET)
    pair.connection.on_readable()
    assert pair.connection.close() is Want.CLOSED
    assert pair.client.answer().status == 200
    assert pair.client.at_end()


def test_closing_an_idle_one_whose_next_request_has_come(pair: Pair) -> None:
    """It is answered, and told that this was the last."""
    pair.sock.sendall(GET)
    pair.connection.on_readable()
    pair.sock.sendall(GET)
    assert pair.connection.close() is Want.READ
    assert pair.connection.state is State.LINGER
    pair.client.answer()
    assert pair.client.answer()["Connection"] == "close"
    assert pair.client.at_end()
    pair.sock.close()
    assert pair.connection.on_readable() is Want.CLOSED


def test_closing_in_a_head(pair: Pair) -> None:
    pair.sock.sendall(GET[:5])
    pair.connection.on_readable()
    assert pair.connection.close() is Want.READ
    assert pair.client.at_end()
    assert pair.connection.close() is Want.READ
    assert pair.connection.on_timeout() is Want.CLOSED
    assert pair.connection.close() is Want.CLOSED
    assert pair.connection.on_timeout() is Want.CLOSED
    assert pair.connection.on_writable() is Want.CLOSED


def test_closing_while_sending() -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        result: Iterable[bytes] = environ["wsgi.file_wrapper"](open("/proc/self/exe", "rb"))  # noqa: SIM115
        return result

    pair = Pair(application)
    size = Path("/proc/self/exe").stat().st_size
    pair.sock.sendall(GET * 2)
    time.sleep(0.02)
    assert pair.connection.on_readable() is Want.WRITE
    assert pair.connection.state is State.SENDING
    assert not pair.connection.idle
    assert pair.connection.close() is Want.WRITE
    pair.sock.setblocking(False)
    got = 0
    want = Want.WRITE
    while want is Want.WRITE:
        want = pair.connection.on_writable()
        try:
            while data := pair.sock.recv(1 << 20):
                got += len(data)
        except BlockingIOError:
            pass
    pair.sock.settimeout(5)
    while data := pair.sock.recv(1 << 20):
        got += len(data)
    assert size < got < size + 500  # one answer, not two
    pair.close()


def test_a_client_that_resets(pair: Pair) -> None:
    pair.sock.sendall(GET)
    pair.connection.on_readable()
    pair.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair.sock.close()
    assert pair.connection.on_readable() is Want.CLOSED


def test_shutdown_reaches_the_client_although_a_duplicate_exists(pair: Pair) -> None:
    with socket.fromfd(pair.connection.sock.fileno(), socket.AF_INET, socket.SOCK_STREAM):
        pair.sock.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert pair.connection.on_readable() is Want.CLOSED
        pair.connection.sock.close()
        assert pair.client.answer().status == 200
        assert pair.client.at_end()


def test_a_burst_is_bounded(pair: Pair) -> None:
    """One turn serves PIPELINE_BURST requests, then others have theirs; the socket is writable, so ours is next."""
    pair.sock.sendall(GET * 40)
    time.sleep(0.05)
    assert pair.connection.on_readable() is Want.WRITE
    assert pair.site.stats.requests == module.PIPELINE_BURST
    while pair.connection.on_writable() is Want.WRITE:
        pass
    assert pair.site.stats.requests == 40
    assert pair.connection.idle


def test_stats(pair: Pair) -> None:
    pair.sock.sendall(GET * 2 + b"nonsense\r\n\r\n")
    pair.connection.on_readable()
    stats = pair.site.stats
    assert stats.bytes_sent > 100
    assert stats.responses == [0, 0, 2, 0, 1, 0]
    assert (stats.requests, stats.gone, stats.errors) == (3, 0, 0)


def test_nothing_leaks(serve: Serve) -> None:
    """Descriptors and connections after all kinds of ends."""
    server = serve(hello)
    with server.connect() as sock:
        sock.sendall(GET)
        assert sock.recv(1)  # from here on the server's thread has opened all that it needs
    server.wait_closed()
    before = descriptors()
    for ending in (
        b"",
        GET,
        GET[:9],
        b"x\r\n",
        GET * 20,
        GET.replace(b"\r\n\r\n", b"\r\nContent-Length: 9\r\n\r\n"),
    ):
        for orderly in (True, False):
            with server.connect() as sock:
                sock.sendall(ending)
                if not orderly:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    server.wait_closed()
    assert descriptors(before) == before


# ---- a kind that meets what it doesn't handle -----------------------------------------------------------------------


class Faulty:
    """A kind with a fault: before anything of an answer is sent, or in the middle of one."""

    def __init__(self, *, begun: bool) -> None:
        self.begun = begun

    def handle(self, request: Request, exchange: Exchange) -> None:
        if self.begun:
            exchange.begin(STATUS[200], 200, PLAIN)
            exchange.write(b"half")
        raise ZeroDivisionError("a fault of ours")


@pytest.mark.parametrize("begun", [False, True])
def test_a_fault_of_a_kind_costs_its_request_and_nothing_else(serve: Serve, begun: bool) -> None:
    server = serve(hello)
    kind, server.site.kind = server.site.kind, Faulty(begun=begun)
    with server.connect() as sock:
        sock.sendall(GET + GET)
        answer = b""
        while data := sock.recv(65536):
            answer += data
    if begun:
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert not answer.endswith(b"0\r\n\r\n")  # the client sees that it isn't whole
    else:
        assert answer.startswith(b"HTTP/1.1 500 ")
        assert b"Connection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert server.site.stats.errors == 1
    assert isinstance(server.site.log, ListLog)
    ((_, _, fields),) = [line for line in server.site.log.lines if line[0] == "error"]
    assert "ZeroDivisionError: a fault of ours" in str(fields["traceback"])
    server.site.kind = kind
    with server.connect() as sock:
        sock.sendall(GET)
        assert Client(sock).answer().status == 200
