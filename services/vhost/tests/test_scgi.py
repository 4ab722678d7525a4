"""The kind scgi: a real application by uWSGI, which is written in C; and played ones that do every wrong thing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd_vhost.kinds.scgi import encode, head

from . import backends as b
from .backends import Played
from .conftest import HOST, Client, Serve, Server
from .test_fastcgi import faults
from .test_wsgi import ask

#: uWSGI is one in C.
PYTHON = """
import hashlib
def application(environ, start_response):
    digest, left = hashlib.sha1(), int(environ["CONTENT_LENGTH"] or 0)
    while left > 0 and (data := environ["wsgi.input"].read(min(left, 65536))):
        digest.update(data); left -= len(data)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    yield f"{environ['PATH_INFO']} {left} {digest.hexdigest()}".encode()
    for _ in range(int(environ["QUERY_STRING"] or 0)):
        yield bytes(1000)
"""


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "app.sock"))
        listener.listen()
        yield listener


@contextlib.contextmanager
def running(command: list[str], stdin: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=stdin, start_new_session=True, env={"PATH": os.environ["PATH"]})
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def serve_scgi(serve: Serve, path: str, http: Any = None, **settings: Any) -> Server:
    return serve(kind=b.scgi(path, **settings), **(http or {}))


@pytest.mark.program("uwsgi_python3")
def test_an_application_in_c(serve: Serve, listening: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PYTHON)
    command = [
        "uwsgi",
        "--plugin",
        "python3",
        "--scgi-socket",
        "fd://0",
        "--wsgi-file",
        str(tmp_path / "app.py"),
    ]
    with running([*command, "--die-on-term", "--disable-logging", "--processes", "1"], listening.fileno()):
        server = serve_scgi(serve, listening.getsockname(), {"body_limit": 1 << 25})
        large = bytes(10_000_000)
        answer = ask(server, "POST", "/x?3000", large)
        assert answer.body.startswith(b"/x 0 " + hashlib.sha1(large).hexdigest().encode())
        assert len(answer.body) == 45 + 3_000_000
        assert [value for key, value in answer.headers if key == "Set-Cookie"] == ["a=1", "b=2"]


# ---- played ---------------------------------------------------------------------------------------------------


@pytest.fixture
def play(serve: Serve, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:

        def start(answer: Callable[[socket.socket], None], http: Any = None, **settings: Any) -> Server:
            played = Played(tmp_path / "played.sock", answer)
            stack.callback(played.close)
            return serve_scgi(serve, played.path, http, **settings)

        yield start


def says(*pieces: bytes) -> Callable[[socket.socket], None]:
    def answer(sock: socket.socket) -> None:
        variables = b.read_netstring(sock)
        b.exactly(sock, int(variables["CONTENT_LENGTH"]))
        for piece in pieces:
            sock.sendall(piece)

    return answer


WHOLE = b"Content-Type: text/plain\r\n\r\nbody"


@pytest.mark.parametrize(
    "pieces", [(WHOLE,), tuple(bytes((byte,)) for byte in WHOLE)], ids=["whole", "byte by byte"]
)
def test_right(play: Callable[..., Server], pieces: tuple[bytes, ...]) -> None:
    server = play(says(*pieces))
    for _ in range(2):
        assert ask(server).body == b"body"
    assert ask(server, "HEAD").status == 200
    assert faults(server) == []


WRONG = {
    "nothing": ((), 502, "empty"),
    "garbage": ((b"\xff\0" * 100,), 502, "malformed"),
    "half a head": ((WHOLE[:20],), 502, "malformed"),
    "endless head": ((b"X: " + b"x" * 100_000,), 502, "head-too-large"),
    "too short": ((b"Content-Type: a/b\nContent-Length: 5\n\n1234",), 502, "length"),
    "too long": ((b"Content-Type: a/b\nContent-Length: 3\n\n1234",), 502, "length"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong(play: Callable[..., Server], case: str) -> None:
    pieces, status, reason = WRONG[case]
    server = play(says(*pieces))
    with server.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(65536):
            data += piece
    if reason == "length" and data.startswith(b"HTTP/1.1 200 OK\r\n"):
        # its end wasn't there yet: cut to what was promised
        assert data.partition(b"\r\n\r\n")[2] == (b"1234" if case == "too short" else b"123")
    else:
        assert data.startswith(b"HTTP/1.1 %d " % status)
    assert faults(server) == [reason]


def test_an_answer_before_the_body_is_read(play: Callable[..., Server]) -> None:
    """And then the connection is closed with bytes unread: the answer counts, the reset doesn't."""

    def answer(sock: socket.socket) -> None:
        b.read_netstring(sock)
        sock.sendall(b"Status: 413\n\nno")

    server = play(answer, {"body_limit": 1 << 24})
    with server.connect() as sock:
        sock.sendall(
            f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {1 << 23}\r\n\r\n".encode() + bytes(99_999)
        )
        found = Client(sock).answer()
    assert (found.status, found.body) == (413, b"no")
    assert faults(server) == []


def test_a_chunked_body_has_its_length(play: Callable[..., Server]) -> None:
    seen = []

    def answer(sock: socket.socket) -> None:
        variables = b.read_netstring(sock)
        seen.append(b.exactly(sock, int(variables["CONTENT_LENGTH"])))
        sock.sendall(WHOLE)

    server = play(answer)
    with server.connect() as sock:
        client = Client(sock)
        for pieces in ([b"a"], [b"x" * 32768], [b"y" * 65536, b"z" * 65536, b"!"], []):
            sock.sendall(f"PUT / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            for piece in pieces:
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sock.sendall(b"0\r\n\r\n")
            assert client.answer().body == b"body"
            assert seen[-1] == b"".join(pieces)


@given(
    st.dictionaries(st.text("ABC_", min_size=1, max_size=50), st.text("abc:,\xff", max_size=100), max_size=30)
)
def test_variables_arrive(variables: dict[str, str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(head(encode(variables), 7))
        assert b.read_netstring(theirs) == {"CONTENT_LENGTH": "7", "SCGI": "1"} | variables
