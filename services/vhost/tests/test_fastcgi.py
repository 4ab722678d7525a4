"""The kind fastcgi against applications that do every wrong thing, and a few that are merely unusual."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd.config.shares import PoolSettings

from pyttpd_vhost.kinds.fastcgi import records
from pyttpd_vhost.kinds.gateway import relay
from pyttpd_vhost.kinds.gateway.errors import MAX_TOTAL
from pyttpd_vhost.kinds.gateway.faults import BackendError
from pyttpd_vhost.kinds.gateway.relay import Said

from . import backends as b
from .backends import COMPLETE, END, STDERR, STDIN, STDOUT, Played, record
from .conftest import HOST, Client, Serve, Server
from .test_wsgi import ask

HEAD = b"Content-Type: text/plain\r\n\r\n"
Play = Callable[..., Server]


@pytest.fixture
def play(serve: Serve, tmp_path: Path) -> Iterator[Play]:
    """Serve what `answer` (of a connection) plays; `server.played` is the application."""
    with contextlib.ExitStack() as stack:

        def start(
            answer: Callable[[socket.socket], None], http: Any = None, pool: Any = None, **settings: Any
        ) -> Server:
            played = Played(tmp_path / "app.sock", answer)
            stack.callback(played.close)
            settings.setdefault("read_timeout", 20.0)
            server = serve(
                kind=b.fastcgi(played.path, **settings),
                share={"pool": PoolSettings(**(pool or {}))},
                **(http or {}),
            )
            server.played = played  # type: ignore[attr-defined]
            return server

        yield start


def says(*pieces: bytes, close: bool = True) -> Callable[[socket.socket], None]:
    """An application that reads one request, says `pieces`, and closes, or waits for the server to do so."""

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        for piece in pieces:
            sock.sendall(piece)
        while not close and sock.recv(65536):
            pass

    return answer


def faults(server: Server) -> list[object]:
    lines = server.site.log.lines  # type: ignore[attr-defined]
    found = [fields["reason"] for _, event, fields in lines if event == "application failed"]
    assert sum(server.site.stats.faults.values()) == len(found) == server.site.stats.errors
    return found


def raw(server: Server, method: str = "GET") -> bytes:
    """All bytes of an answer, up to the connection's end."""
    with server.connect() as sock:
        sock.sendall(f"{method} / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
        return data


def drain(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


# ---- what is right -----------------------------------------------------------------------------------------------

WHOLE = record(STDOUT, HEAD + b"body") + record(STDOUT) + record(END, COMPLETE)
#: Unusual, and right.
RIGHT: dict[str, tuple[bytes, ...]] = {
    "one piece": (WHOLE,),
    "byte by byte": tuple(bytes((byte,)) for byte in WHOLE),
    "padding": (
        record(STDOUT, HEAD, padding=255)
        + record(STDOUT, b"body", padding=7)
        + record(END, COMPLETE, padding=3),
    ),
    "without the end of STDOUT": (record(STDOUT, HEAD + b"body") + record(END, COMPLETE),),
    "a byte a record": (*(record(STDOUT, bytes((byte,))) for byte in HEAD + b"body"), record(END, COMPLETE)),
    "STDERR between": (
        record(STDERR, b"oh") + record(STDOUT, HEAD) + record(STDERR) + record(STDOUT, b"body"),
        record(STDERR) + record(END, COMPLETE),
    ),
    "about the connection": (
        record(10, b"\x0f\x01FCGI_MPXS_CONNS0", id_=0) + record(11, bytes(8), id_=0) + WHOLE + b"junk",
    ),
    "an exit status": (record(STDOUT, HEAD + b"body") + record(END, b"\0\0\0\x07\0\0\0\0"),),
}


@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("case", RIGHT)
def test_right(play: Play, case: str, keep: int) -> None:
    server = play(says(*RIGHT[case]), keep_connections=keep)
    for _ in range(2):
        answer = ask(server)
        assert (answer.status, answer.body) == (200, b"body")
    assert ask(server, "HEAD").status == 200
    assert faults(server) == []


def test_what_it_is_told(play: Play) -> None:
    seen = []

    def answer(sock: socket.socket) -> None:
        seen.append(b.read_request(sock))
        sock.sendall(WHOLE)

    server = play(answer, params={"APP_ENV": "live", "SERVER_SOFTWARE": "other"})
    long = "x" * 5000
    ask(server, "POST", "/a%2Fb?c", b"body", f"X-Long: {long}\r\nX-Empty:\r\n")
    keep, params, body = seen[0]
    assert (keep, body) == (False, b"body")
    assert {
        key: params.get(key) for key in ("SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "CONTENT_LENGTH")
    } == {
        "SCRIPT_NAME": "",
        "PATH_INFO": "/a/b",
        "QUERY_STRING": "c",
        "CONTENT_LENGTH": "4",
    }
    assert (params["HTTP_X_LONG"], params["HTTP_X_EMPTY"]) == (long, "")
    assert (params["APP_ENV"], params["SERVER_SOFTWARE"]) == ("live", "other")
    assert "CONTENT_LENGTH" not in read_again(server, seen)
    assert ask(server, target="/a%00b").status == 400


def read_again(server: Server, seen: list[b.Asked]) -> dict[str, str]:
    ask(server)
    return seen[-1].params


@pytest.mark.parametrize("params", [{}, {"REMOTE_ADDR": "192.0.2.1", "X": "1"}], ids=["ours", "configured"])
def test_a_head_that_comes_again(play: Play, params: dict[str, str]) -> None:
    """It is remembered with its variables, but for those of its connection; what the configuration says goes first."""
    seen: list[b.Asked] = []

    def answer(sock: socket.socket) -> None:
        seen.append(b.read_request(sock))
        sock.sendall(WHOLE)

    server = play(answer, params=params)
    ports = []
    with server.connect() as one, server.connect() as another:
        for sock in (one, another) * 3:
            sock.sendall(f"GET /again?x=1 HTTP/1.1\r\nHost: {HOST}\r\nX-Y: z\r\n\r\n".encode())
            assert Client(sock).answer().body == b"body"
            ports.append(str(sock.getsockname()[1]))
    first = seen[0].params
    assert first["HTTP_X_Y"] == "z"
    assert first["REMOTE_ADDR"] == params.get("REMOTE_ADDR", "127.0.0.1")
    assert [asked.params for asked in seen] == [{**first, **params, "REMOTE_PORT": port} for port in ports]


def test_many_variables(play: Play) -> None:
    """More than one record holds."""
    seen = []

    def answer(sock: socket.socket) -> None:
        seen.append(b.read_request(sock).params)
        sock.sendall(WHOLE)

    server = play(answer, params={"LARGE": "y" * 65_000})
    assert ask(server, headers=f"X-Long: {'z' * 10_000}\r\n").status == 200
    assert (seen[0]["LARGE"], seen[0]["HTTP_X_LONG"]) == ("y" * 65_000, "z" * 10_000)


# ---- what is wrong -----------------------------------------------------------------------------------------------


def end(status: int) -> bytes:
    return record(END, struct.pack(">IB3x", 0, status))


#: What it says, the client's status, the reason in log and metric.
WRONG: dict[str, tuple[tuple[bytes, ...], int, str]] = {
    "nothing, and closes": ((), 502, "died"),
    "the end alone": ((record(END, COMPLETE),), 502, "empty"),
    "STDERR alone": ((record(STDERR, b"oh\n"), record(END, COMPLETE)), 502, "empty"),
    "half a header": ((b"\1\6\0",), 502, "died"),
    "half a record": ((record(STDOUT, HEAD)[:-3],), 502, "died"),
    "half a head": ((record(STDOUT, HEAD[:-2]), record(END, COMPLETE)), 502, "malformed"),
    "half a head, and closes": ((record(STDOUT, HEAD[:-2]),), 502, "died"),
    "garbage": ((b"\xff" * 1000,), 502, "malformed"),
    "HTTP": ((b"HTTP/1.1 200 OK\r\n\r\n",), 502, "malformed"),
    "another version": ((record(STDOUT, HEAD, version=2),), 502, "malformed"),
    "another request's id": ((record(STDOUT, HEAD, id_=2),), 502, "malformed"),
    "an id of 65535": ((record(END, COMPLETE, id_=65535),), 502, "malformed"),
    "a server's type": ((record(STDIN, b"x"),), 502, "malformed"),
    "an unknown type": ((record(99, b"x"),), 502, "malformed"),
    "a type of nought": ((record(0, b"x"),), 502, "malformed"),
    "STDOUT after its end": ((record(STDOUT) + record(STDOUT, HEAD),), 502, "malformed"),
    "an end too short": ((record(END, b"\0\0\0\0"),), 502, "malformed"),
    "an end too long": ((record(END, bytes(9)),), 502, "malformed"),
    "can't multiplex": ((end(1),), 502, "malformed"),
    "overloaded": ((end(2),), 503, "full"),
    "no responder": ((end(3),), 502, "malformed"),
    "a status of its own": ((end(9),), 502, "malformed"),
    "no head": ((b.answer(b"hello\n\n"),), 502, "malformed"),
    "endless head": (
        (record(STDOUT, b"X: " + b"y" * 60000), record(STDOUT, b"y" * 60000)),
        502,
        "head-too-large",
    ),
    "header injection": ((b.answer(b"Content-Type: a/b\rX-Evil: 1\n\n"),), 502, "malformed"),
    "too short": ((b.answer(b"Content-Type: a/b\nContent-Length: 5\n\n1234"),), 502, "length"),
    "too long": ((b.answer(b"Content-Type: a/b\nContent-Length: 3\n\n1234"),), 502, "length"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong(play: Play, case: str) -> None:
    pieces, status, reason = WRONG[case]
    server = play(says(*pieces, close=reason == "died"))
    assert ask(server).status == status
    assert faults(server) == [reason]
    server.wait_closed()


#: What it says once its head is with the client; what the client sees of the body.
CUT: dict[str, tuple[tuple[bytes, ...], str]] = {
    "closes": ((), "died"),
    "garbage": ((b"\xff" * 100,), "malformed"),
    "half a record": ((record(STDOUT, b"more")[:-1],), "died"),
    "overloaded": ((end(2),), "full"),
}


@pytest.mark.parametrize("case", CUT)
def test_wrong_in_the_middle(play: Play, case: str) -> None:
    """The client sees a body that is cut: a chunk, and no last one."""
    pieces, reason = CUT[case]
    go_on = threading.Event()

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        sock.sendall(record(STDOUT, HEAD + b"half"))
        assert go_on.wait(b.PATIENCE)
        for piece in pieces:
            sock.sendall(piece)

    server = play(answer)
    with server.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        data = b""
        while b"half" not in data:
            data += sock.recv(65536)
        go_on.set()
        while piece := sock.recv(65536):
            data += piece
    assert data.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"0\r\n\r\n" not in data
    assert faults(server) == [reason]


@pytest.mark.parametrize(("length", "said"), [(10, b"12345"), (3, b"12345")], ids=["short", "long"])
def test_a_wrong_length_once_the_head_is_out(play: Play, length: int, said: bytes) -> None:
    """Too short: a body that is cut. Too long: the client gets what it was promised, and the connection ends."""
    go_on = threading.Event()

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        sock.sendall(record(STDOUT, b"Content-Type: a/b\nContent-Length: %d\n\n1" % length))
        assert go_on.wait(b.PATIENCE)
        sock.sendall(record(STDOUT, said[1:]) + record(END, COMPLETE))

    server = play(answer)
    with server.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        data = sock.recv(65536)
        go_on.set()
        while piece := sock.recv(65536):
            data += piece
    assert data.partition(b"\r\n\r\n")[2] == said[:length]
    assert faults(server) == ["length"]


def test_nobody_there(serve: Serve, tmp_path: Path) -> None:
    """No socket, a file in its place, a socket that nobody listens on."""
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
        for name in ("missing", "file", "dead"):
            path = str(tmp_path / name)
            server = serve(kind=b.fastcgi(path))
            assert ask(server).status == 503
            assert faults(server) == ["unreachable"]


def test_full(serve: Serve, tmp_path: Path) -> None:
    """Its queue is full: it is waited for, and not for long."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "full"))
        listener.listen(0)
        while True:
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            try:
                waiting.connect(str(tmp_path / "full"))
            except BlockingIOError:
                break
        server = serve(kind=b.fastcgi(str(tmp_path / "full"), connect_timeout=0.1))
        assert ask(server).status == 503
        assert faults(server) == ["full"]


@pytest.mark.parametrize("how", ["reads nothing", "says nothing", "half a head", "STDERR for ever"])
def test_too_slow(play: Play, how: str) -> None:
    """504 after read_timeout; what goes on saying something else, after pool.request_timeout."""
    over = threading.Event()

    def answer(sock: socket.socket) -> None:
        if how != "reads nothing":
            b.read_request(sock)
        if how == "half a head":
            sock.sendall(record(STDOUT, HEAD[:5]))
        while how == "STDERR for ever":
            sock.sendall(record(STDERR, b"oh\n"))
        assert over.wait(b.PATIENCE)

    slow = {"read_timeout": 20.0} if how == "STDERR for ever" else {"read_timeout": 0.2}
    server = play(answer, http={"body_limit": 1 << 24}, pool={"request_timeout": 0.5}, **slow)
    body = bytes(1 << 22) if how == "reads nothing" else None
    with server.connect() as sock:
        head = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body or b'')}\r\n\r\n"
        sock.sendall(head.encode())
        with contextlib.suppress(OSError):
            sock.sendall(body or b"")
        assert Client(sock).answer().status == 504
    over.set()
    assert faults(server) == ["timeout"]
    if how == "STDERR for ever":
        log = server.site.log.lines  # type: ignore[attr-defined]
        lines = [str(fields["line"]) for _, event, fields in log if event == "output"]
        assert 0 < sum(len(line) for line in lines) < 10 * MAX_TOTAL


def test_a_short_answer_before_the_body_is_read(play: Play) -> None:
    """As who refuses uploads does: the client gets the answer, although nobody wants its body."""

    def answer(sock: socket.socket) -> None:
        b.read_params(sock)
        sock.sendall(b.answer(b"Status: 413\n\nno"))

    server = play(answer, http={"body_limit": 1 << 24})
    with server.connect() as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {1 << 23}\r\n\r\n".encode())
        sock.sendall(bytes(100_000))
        answer_ = Client(sock).answer()
    assert (answer_.status, answer_.body) == (413, b"no")
    assert faults(server) == []


def test_writes_before_it_reads(play: Play) -> None:
    """An echo with both directions full at once: whoever waited for one of them alone would stand still."""
    size = 8_000_000

    def answer(sock: socket.socket) -> None:
        b.read_params(sock)
        sock.sendall(record(STDOUT, HEAD) + record(STDOUT, bytes(60000)) * 20)
        for type_, content in b.records(sock):
            assert type_ == STDIN
            if not content:
                break
            sock.sendall(record(STDOUT, content))
        sock.sendall(record(END, COMPLETE))

    server = play(answer, http={"body_limit": size})
    with server.connect() as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {size}\r\n\r\n".encode())
        sender = threading.Thread(target=sock.sendall, args=(b"x" * size,))
        sender.start()
        answer_ = Client(sock).answer()
        sender.join()
    assert answer_.body == bytes(1_200_000) + b"x" * size


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_an_answer_that_is_whole_and_does_not_end(
    play: Play, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client has what it may have; the application is left a moment to come to its end, and then left alone."""
    monkeypatch.setattr(relay, "REST_TIME", 0.1)
    over = threading.Event()

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        sock.sendall(record(STDOUT, b"Content-Type: a/b\nContent-Length: 4\n\nbody"))
        with contextlib.suppress(OSError):
            drain(sock)
        over.set()

    server = play(answer)
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):
            sock.sendall(f"{method} / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            assert client.answer(method).body == (b"body" if method == "GET" else b"")
            assert over.wait(b.PATIENCE)
            over.clear()
    assert faults(server) == []


def test_head_of_an_answer_without_end(play: Play) -> None:
    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        sock.sendall(record(STDOUT, HEAD))
        while True:
            sock.sendall(record(STDOUT, bytes(60000)))

    server = play(answer)
    assert ask(server, "HEAD").status == 200
    assert faults(server) == []


def test_a_client_that_is_asked_for_its_body(play: Play) -> None:
    """Expect: 100-continue is answered when the application is there, and a body is wanted."""

    def answer(sock: socket.socket) -> None:
        assert b.read_request(sock).body == b"body"
        sock.sendall(WHOLE)

    server = play(answer)
    for framing, body in (
        ("Content-Length: 4", b"body"),
        ("Transfer-Encoding: chunked", b"4\r\nbody\r\n0\r\n\r\n"),
    ):
        with server.connect() as sock:
            sock.sendall(
                f"PUT / HTTP/1.1\r\nHost: {HOST}\r\nExpect: 100-continue\r\n{framing}\r\n\r\n".encode()
            )
            client = Client(sock)
            assert client.answer().status == 100
            sock.sendall(body)
            assert client.answer().body == b"body"


def test_a_client_that_stops_in_its_body(play: Play) -> None:
    """It has read_timeout, and the application isn't blamed."""

    def answer(sock: socket.socket) -> None:
        for _ in b.records(sock):
            pass

    server = play(answer, http={"read_timeout": 0.2}, read_timeout=0.1)
    with server.connect() as sock:
        sock.sendall(f"PUT / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\nhalf".encode())
        assert Client(sock).answer().status == 408
    assert faults(server) == []


def test_a_client_that_takes_nothing(play: Play) -> None:
    """It has write_timeout, and the application's connection ends with it."""
    ended = threading.Event()

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        sock.sendall(record(STDOUT, HEAD))
        try:
            while True:
                sock.sendall(record(STDOUT, bytes(60000)))
        finally:
            ended.set()

    server = play(answer, http={"write_timeout": 0.2}, read_timeout=0.1)
    with server.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert ended.wait(b.PATIENCE)
    server.wait_closed()
    assert faults(server) == []
    assert server.site.stats.gone == 1


def test_what_a_trusted_proxy_says(serve: Serve, tmp_path: Path) -> None:
    seen = []

    def answer(sock: socket.socket) -> None:
        seen.append(b.read_request(sock).params)
        sock.sendall(WHOLE)

    played = Played(tmp_path / "app.sock", answer)
    server = serve(kind=b.fastcgi(played.path), share={"trusted_proxies": ("127.0.0.0/8",)})
    headers = "X-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Foo.Bar: x\r\n"
    for _ in range(3):  # heads are remembered from the second time on
        assert ask(server, headers=headers).status == 200
    played.close()
    expected = {
        "REMOTE_ADDR": "192.0.2.7",
        "HTTPS": "on",
        "REQUEST_SCHEME": "https",
        "SERVER_PORT": "443",
        "HTTP_X_FORWARDED_FOR": "192.0.2.7",
    }
    for params in seen:
        assert {key: params.get(key) for key in expected} == expected
        assert not [key for key in params if "FOO" in key]


# ---- kept connections --------------------------------------------------------------------------------------------


def keeps(
    requests: int, *, then: Callable[[socket.socket], None] = lambda _: None
) -> Callable[[socket.socket], None]:
    """Answers so many requests on a connection, with their number."""

    def answer(sock: socket.socket) -> None:
        for number in range(requests):
            asked = b.read_request(sock)
            assert asked.keep
            sock.sendall(b.answer(HEAD + b"%d %d" % (number, len(asked.body))))
        then(sock)

    return answer


def test_a_kept_connection_is_used_again(play: Play) -> None:
    server = play(keeps(3, then=drain), keep_connections=1)
    assert [ask(server).body for _ in range(3)] == [b"0 0", b"1 0", b"2 0"]
    assert server.played.connections == 1  # type: ignore[attr-defined]


def test_one_that_was_closed_meanwhile_is_none(play: Play) -> None:
    closed = threading.Semaphore(0)

    def then(sock: socket.socket) -> None:
        sock.close()
        closed.release()

    server = play(keeps(1, then=then), keep_connections=2)
    for _ in range(3):
        assert ask(server, "POST", "/", b"x").body == b"0 1"
        assert closed.acquire(timeout=b.PATIENCE)
    assert faults(server) == []


@pytest.mark.parametrize(
    ("method", "body", "status"),
    [("GET", None, 200), ("PUT", b"", 200), ("POST", b"", 502), ("PUT", b"x" * 50000, 502)],
)
def test_one_that_closes_when_it_is_asked(play: Play, method: str, body: bytes | None, status: int) -> None:
    """Asked once more on a new one, if that can't do any harm, and nothing of the body is gone."""
    count = 0

    def answer(sock: socket.socket) -> None:
        nonlocal count
        count += 1
        b.read_request(sock)
        sock.sendall(WHOLE)
        if count == 1:
            b.exactly(sock, 8)  # asked once more, and no answer

    server = play(answer, keep_connections=1)
    assert ask(server).status == 200
    assert ask(server, method, "/", body).status == status
    assert faults(server) == ["died"] * (status == 502)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "junk", [b"x", record(STDOUT, b"late"), record(END, COMPLETE)], ids=["a byte", "a record", "an end"]
)
def test_nobody_gets_the_rest_of_another_answer(play: Play, junk: bytes, *, late: bool) -> None:
    """Whatever comes behind an answer, in the same breath or later: the connection isn't used again."""
    said = threading.Semaphore(0)

    def answer(sock: socket.socket) -> None:
        b.read_request(sock)
        if late:
            sock.sendall(WHOLE)
        sock.sendall(junk if late else WHOLE + junk)
        said.release()
        drain(sock)

    server = play(answer, keep_connections=1)
    for _ in range(3):
        assert ask(server).body == b"body"
        assert said.acquire(timeout=b.PATIENCE)
    assert server.played.connections == 3  # type: ignore[attr-defined]
    assert faults(server) == []


# ---- clients that leave ------------------------------------------------------------------------------------------

PHASES = ("in the body", "before the head", "in the answer", "half-closed")


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_leaves(play: Play, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application is told, and its connection ends."""
    monkeypatch.setattr(relay, "ABANDONED_AFTER", 0.1)
    aborted, ready, over = threading.Event(), threading.Event(), threading.Event()

    def answer(sock: socket.socket) -> None:
        if phase == "in the body":
            b.read_params(sock)
            ready.set()
            for type_, _ in b.records(sock):
                if type_ == b.ABORT:
                    aborted.set()
        else:
            b.read_request(sock)
            if phase == "in the answer":
                sock.sendall(record(STDOUT, HEAD + b"half"))
            ready.set()
            for type_, _ in b.records(sock):
                assert type_ == b.ABORT
                aborted.set()
        over.set()

    server = play(lambda sock: run_to(over, answer, sock))
    length = 100_000 if phase == "in the body" else 4
    with server.connect() as sock:
        sock.sendall(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {length}\r\n\r\nbody".encode())
        assert ready.wait(b.PATIENCE)
        if phase == "in the answer":
            sock.recv(1000)
        if phase == "half-closed":
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.close()
        assert over.wait(b.PATIENCE)
        assert aborted.is_set()
    server.wait_closed()
    assert faults(server) == []


def run_to(over: threading.Event, answer: Callable[[socket.socket], None], sock: socket.socket) -> None:
    try:
        answer(sock)
    finally:
        over.set()


def test_who_only_half_closes_is_answered(play: Play) -> None:
    server = play(says(WHOLE))
    with server.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        sock.shutdown(socket.SHUT_WR)
        assert Client(sock).answer().body == b"body"


# ---- local redirects ---------------------------------------------------------------------------------------------


def test_local_redirects(play: Play) -> None:
    """The client gets the answer of the other path, asked for with GET and without the body."""
    seen = []

    def answer(sock: socket.socket) -> None:
        asked = b.read_request(sock)
        path = asked.params["PATH_INFO"]
        seen.append((asked.params["REQUEST_METHOD"], path, asked.params["QUERY_STRING"], asked.body))
        if path == "/end":
            assert "CONTENT_TYPE" not in asked.params
            sock.sendall(WHOLE)
        elif path == "/loop":
            sock.sendall(b.answer(b"Location: /loop\n\n"))
        elif path == "/odd":
            sock.sendall(b.answer(b"Location: /a b\n\n"))
        else:
            sock.sendall(b.answer(b"Location: /end?x=1\n\n"))

    server = play(answer)
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):
            sock.sendall(
                f"POST /start HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: a/b\r\nContent-Length: 4\r\n\r\nbody".encode()
            )
            assert client.answer().body == b"body"
    assert seen == [("POST", "/start", "", b"body"), ("GET", "/end", "x=1", b"")] * 2
    assert ask(server, target="/loop").status == 502
    assert ask(server, target="/odd").status == 502
    assert faults(server) == ["malformed"] * 2
    assert len(seen) == 4 + 11 + 1


# ---- the parser alone --------------------------------------------------------------------------------------------


def understood(pieces: list[bytes]) -> tuple[bytes, bytes, bool, str]:
    """What the parser makes of them: output, complaints, whether it ended, its fault."""
    conversation = records.Conversation()
    out = {Said.OUTPUT: b"", Said.ERRORS: b""}
    for piece in pieces:
        try:
            for what, data in conversation.receive(piece):
                if what == Said.END:
                    return out[Said.OUTPUT], out[Said.ERRORS], True, ""
                out[what] += data
        except BackendError as error:
            return out[Said.OUTPUT], out[Said.ERRORS], False, error.detail
    return out[Said.OUTPUT], out[Said.ERRORS], False, ""


some_record = st.builds(
    record,
    st.sampled_from([STDOUT, STDERR, STDOUT, END, 3, 5, 11, 200]),
    st.binary(max_size=40),
    id_=st.sampled_from([1, 1, 1, 1, 0, 2]),
    padding=st.integers(0, 20),
    version=st.sampled_from([1, 1, 1, 1, 1, 2]),
)


@given(st.lists(some_record, max_size=8), st.binary(max_size=12), st.data())
def test_pieces_make_no_difference(said: list[bytes], tail: bytes, data: st.DataObject) -> None:
    whole = b"".join(said) + tail
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = understood([whole]) if whole else understood([])
    found = understood([piece for piece in pieces if piece])
    # a fault in the same breath takes what was said before with it
    assert found[2:] == expected[2:]
    if not expected[3]:
        assert found == expected


@given(st.lists(st.one_of(some_record, st.just(record(END, COMPLETE))), max_size=3), st.binary(max_size=2))
def test_what_is_taken_for_whole_is(said: list[bytes], tail: bytes) -> None:
    data = b"".join(said) + tail
    conversation = records.Conversation()
    whole = conversation.whole(data)
    assert conversation.clean == (whole is not None)
    if whole is not None:
        assert understood([data]) == (whole, b"", True, "")
        assert not tail
        for cut in range(len(data)):
            assert records.Conversation().whole(data[:cut]) is None


def test_a_usual_answer_is_taken_as_a_whole() -> None:
    """By php-cgi and PHP-FPM, that is."""
    for length, padding in ((1, 7), (65528, 0), (65535, 1), (0, 0)):
        said = record(STDOUT, b"x" * length, padding=padding) + record(END, COMPLETE)
        assert records.Conversation().whole(said) == b"x" * length
    for status in range(1, 5):
        assert records.Conversation().whole(record(STDOUT, HEAD) + record(END, end(status)[-8:])) is None


@given(st.binary(max_size=300))
def test_garbage_is_a_fault_or_a_beginning(said: bytes) -> None:
    understood([said])


@given(
    st.dictionaries(st.text("ABC_", min_size=1, max_size=200), st.text("abc\xff", max_size=300), max_size=30)
)
def test_variables_arrive(variables: dict[str, str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        ours.sendall(records.begin(records.pairs(variables), keep=True))
        assert b.read_params(theirs) == (True, variables)
