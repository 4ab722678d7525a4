"""PEP 3333, and what an application can do wrong."""

from __future__ import annotations

import gzip
import io
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from pyttpd.config.shares import PoolSettings

from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.kinds.python import load_application, prepare
from pyttpd_vhost.kinds.wsgi import Application, Input

from .conftest import HOST, Answer, Client, ListLog, Serve, Server, make_share

TEXT = [("Content-Type", "text/plain")]
SEND_FILE = Exchange.send_file


def ask(
    server: Server,
    method: str = "GET",
    target: str = "/",
    body: bytes | None = None,
    headers: str = "",
    version: str = "1.1",
) -> Answer:
    """One request on a connection of its own; a body that ends early is `whole` False."""
    with server.connect() as sock:
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        sock.sendall(
            f"{method} {target} HTTP/{version}\r\nHost: {HOST}\r\n{length}{headers}\r\n".encode("latin-1")
            + (body or b"")
        )
        return Client(sock).answer(method)


def tracebacks(server: Server) -> str:
    """What the log says of the application's faults."""
    lines = server.site.log.lines  # type: ignore[attr-defined]
    return "\n".join(fields["traceback"] for _, event, fields in lines if event == "application failed")


def answering(
    *pieces: bytes, headers: list[tuple[str, str]] | None = None, status: str = "200 OK"
) -> Application:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, TEXT if headers is None else headers)
        return list(pieces)

    return application


# ---- environ -------------------------------------------------------------------------------------------------------


def test_environ(serve: Serve) -> None:
    seen: list[dict[str, Any]] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        start_response("204 No Content", [])
        return []

    server = serve(application)
    ask(
        server,
        "POST",
        "/caf%C3%A9%20/?a=%20b",
        b"x",
        "Content-Type: text/x\r\nX-Two: 1\r\nx-two: 2\r\nCookie: a=1\r\nCookie: b=2\r\n"
        "X_Forwarded_For: evil\r\nProxy: evil\r\nX-Empty:\r\n",
    )
    environ = seen[0]
    expected = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/caf\xc3\xa9 /",
        "QUERY_STRING": "a=%20b",
        "CONTENT_TYPE": "text/x",
        "CONTENT_LENGTH": "1",
        "SERVER_NAME": HOST,
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": HOST,
        "HTTP_X_TWO": "1, 2",
        "HTTP_COOKIE": "a=1; b=2",
        "HTTP_X_EMPTY": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    assert {key: environ.get(key) for key in expected} == expected
    assert environ["REMOTE_PORT"].isdecimal()
    assert not {"HTTP_X_FORWARDED_FOR", "HTTP_PROXY", "HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH"} & set(
        environ
    )


def test_environ_is_a_new_one_each_time(serve: Serve) -> None:
    """Also for heads that are remembered: what one request puts in, the next one doesn't find."""
    found = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        found.append("mine" in environ)
        environ["mine"] = environ["HTTP_HOST"] = environ["PATH_INFO"] = "changed"
        start_response("204 No Content", [])
        return []

    server = serve(application)
    for _ in range(3):
        ask(server)
    assert found == [False, False, False]


def test_load_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tenants_module.py").write_text(
        "import os\nclass Box:\n    app = staticmethod(lambda e, s: os.environ['X_TENANT'])\n"
    )
    monkeypatch.setenv("X_TENANT", "before")
    monkeypatch.setattr(sys, "path", [*sys.path])
    share = make_share(root=str(tmp_path), env={"X_TENANT": "set"})
    prepare(share, ListLog())
    application: Any = load_application("some_tenants_module:Box.app")
    assert application({}, None) == "set"
    with pytest.raises(TypeError):
        load_application("some_tenants_module:os")
    del sys.modules["some_tenants_module"]


# ---- the framing of answers ----------------------------------------------------------------------------------------


def test_one_piece_gets_a_length(serve: Serve) -> None:
    answer = ask(serve(answering(b"hello")))
    assert (answer["Content-Length"], answer.body) == ("5", b"hello")


def test_pieces_are_chunked(serve: Serve) -> None:
    answer = ask(serve(answering(b"a", b"", b"bc")))
    assert (answer["Transfer-Encoding"], answer.body) == ("chunked", b"abc")


def test_pieces_to_1_0_end_with_the_connection(serve: Serve) -> None:
    answer = ask(serve(answering(b"a", b"bc")), version="1.0", headers="Connection: keep-alive\r\n")
    assert (answer["Connection"], answer.body) == ("close", b"abc")


@pytest.mark.parametrize("pieces", [(b"hello",), (b"he", b"llo"), ()])
def test_head_has_no_body(serve: Serve, pieces: tuple[bytes, ...]) -> None:
    server = serve(answering(*pieces))
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):
            sock.sendall(b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            answer = client.answer("HEAD")
            assert answer.status == 200
            assert len(pieces) != 1 or answer["Content-Length"] == "5"
        assert client.data == b""


def test_head_of_an_endless_stream_ends(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        while True:
            yield b"x"

    assert ask(serve(application), "HEAD").status == 200


@pytest.mark.parametrize("code", [204, 304])
def test_statuses_without_a_body(serve: Serve, code: int) -> None:
    server = serve(answering(b"ignored", headers=[], status=f"{code} X"))
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            answer = client.answer()
            assert answer.status == code
            assert "Content-Length" not in answer
            assert "Transfer-Encoding" not in answer
        assert client.data == b""


@pytest.mark.parametrize("pieces", [(b"hello world",), (b"hello", b" world"), (b"hell", b"o world", b"!")])
def test_longer_than_its_length_is_cut_and_closed(serve: Serve, pieces: tuple[bytes, ...]) -> None:
    server = serve(answering(*pieces, headers=[("Content-Length", "5")]))
    with server.connect() as sock:
        client = Client(sock)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.answer().body == b"hello"
        assert client.at_end()
    assert "response longer than its Content-Length" in server.site.log.events()  # type: ignore[attr-defined]


@pytest.mark.parametrize("pieces", [(b"hell",), (b"he", b"ll"), ()])
def test_shorter_than_its_length_is_closed(serve: Serve, pieces: tuple[bytes, ...]) -> None:
    server = serve(answering(*pieces, headers=[("Content-Length", "5")]))
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        data = b""
        while piece := sock.recv(1000):
            data += piece
    assert b"Content-Length: 5\r\n" in data
    assert data.endswith(b"\r\n\r\n" + b"".join(pieces))
    assert "response shorter than its Content-Length" in server.site.log.events()  # type: ignore[attr-defined]


def test_dates(serve: Serve) -> None:
    answer = ask(serve(answering(b"x")))
    then = time.mktime(time.strptime(answer["Date"], "%a, %d %b %Y %H:%M:%S GMT")) - time.timezone
    assert abs(then - time.time()) < 3
    assert ask(serve(answering(b"x", headers=[("date", "Thu, 01 Jan 1970 00:00:00 GMT")])))["Date"].endswith(
        "00:00:00 GMT"
    )


# ---- streaming -----------------------------------------------------------------------------------------------------


def test_a_piece_is_sent_before_the_next_is_made(serve: Serve) -> None:
    made = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for number in range(3):
            made.append(number)
            yield b"%d" % number
            time.sleep(0.1)

    server = serve(application)
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        data = b""
        while b"\r\n\r\n1\r\n0\r\n" not in data:
            data += sock.recv(1000)
        assert made == [0]
        assert not data.endswith(b"0\r\n\r\n")
        client = Client(sock)
        client.data = data
        assert client.answer().body == b"012"


def test_write_and_iterable(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        write(b"one ")
        write(b"")
        write(b"two ")
        return [b"three"]

    assert ask(serve(application)).body == b"one two three"


def test_start_response_in_the_generator(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        yield b""
        start_response("201 Created", TEXT, (None, None, None))
        yield b"x"

    assert ask(serve(application)).status == 201


class Closing:
    """An iterable that knows whether it was closed."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        self.closed += 1


def failing(pieces: Iterable[bytes]) -> Iterator[bytes]:
    yield from pieces
    raise RuntimeError("the application's fault")


@pytest.mark.parametrize(
    "pieces", [[b"a", b"b"], [], failing([]), failing([b"x"])], ids=["ok", "empty", "fails", "fails_later"]
)
def test_iterables_are_closed(serve: Serve, pieces: Iterable[bytes]) -> None:
    made = Closing(pieces)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return made

    server = serve(application)
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n")
        while sock.recv(1000):
            pass
    assert made.closed == 1


def test_a_client_that_goes_away_closes_the_iterable(serve: Serve) -> None:
    made = Closing(b"x" * 100_000 for _ in range(10_000))

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return made

    server = serve(application)
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        sock.recv(100)
    server.wait_closed()
    assert made.closed == 1
    assert server.site.stats.gone == 1
    assert server.site.stats.errors == 0


def test_a_client_that_takes_nothing_is_given_up(serve: Serve) -> None:
    """And an application that doesn't believe it can't send anything behind the gap."""
    caught = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        for _ in range(2):
            try:
                write(b"x" * 50_000_000)
            except OSError as error:
                caught.append(error)
        return [b"more"]

    server = serve(application, write_timeout=0.2)
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
        size = len(sock.recv(100))
        server.wait_closed()
        while data := sock.recv(1 << 20):
            size += len(data)
            assert b"more" not in data
    assert size < 50_000_000
    assert len(caught) == 2


# ---- input ---------------------------------------------------------------------------------------------------------


def test_input_is_read_as_it_comes(serve: Serve) -> None:
    """The first half is answered before the second is sent."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        for _ in range(2):
            yield environ["wsgi.input"].read(5)

    server = serve(application, body_buffer=0)
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nhello")
        data = b""
        while b"hello" not in data:
            data += sock.recv(1000)
        sock.sendall(b"world")
        client = Client(sock)
        client.data = data
        assert client.answer().body == b"helloworld"


LINES = b"one\ntwo\n\nlast without"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    "read",
    [
        lambda f: [f.read()],
        lambda f: [f.read(0), f.read(3), f.read(100), f.read(1)],
        lambda f: [
            f.readline(),
            f.read(2),
            f.readline(),
            f.readline(),
            f.readline(4),
            f.readline(),
            f.readline(),
        ],
        lambda f: f.readlines(),
        lambda f: f.readlines(5),
        list,
        lambda f: [f.readline(), *iter(lambda: f.read(3), b"")],
    ],
    ids=["all", "sizes", "lines", "readlines", "hint", "iter", "mixed"],
)
def test_input_is_a_file(serve: Serve, read: Any, chunked: bool) -> None:
    got = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        got.append(read(environ["wsgi.input"]))
        start_response("204 No Content", [])
        return []

    server = serve(application)
    if chunked:
        parts = (LINES[at : at + 2] for at in range(0, len(LINES), 2))
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        with server.connect() as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
            Client(sock).answer()
    else:
        ask(server, "POST", body=LINES)
    assert got == [read(io.BytesIO(LINES))]


def test_no_input() -> None:
    from pyttpd_vhost.kinds.wsgi import NO_INPUT

    assert (NO_INPUT.read(), NO_INPUT.read(5), NO_INPUT.readline(), NO_INPUT.readlines(), list(NO_INPUT)) == (
        b"",
        b"",
        b"",
        [],
        [],
    )


def test_input_kept_for_later_reads_nothing_of_the_next_request(serve: Serve) -> None:
    kept: list[Input] = []
    errors = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        for old in kept:
            try:
                old.read(1)
            except OSError as error:
                errors.append(error)
        kept.append(environ["wsgi.input"])
        body = environ["wsgi.input"].read()
        start_response("200 OK", TEXT)
        return [body]

    server = serve(application)
    with server.connect() as sock:
        client = Client(sock)
        for body in (b"first", b"second"):
            sock.sendall(
                b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            assert client.answer().body == body
    assert len(errors) == 1


# ---- what an application does wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("200 OK\r\nX: y", []),
        ("200", []),
        ("99 Low", []),
        ("100 Continue", []),
        ("600 High", []),
        (200, []),
        ("200 OK", [("X\r\nY", "z")]),
        ("200 OK", [("X", "y\r\nZ: 1")]),
        ("200 OK", [("X", "y\nZ: 1")]),
        ("200 OK", [("X", "y\0")]),
        ("200 OK", [("X", "y\x7f")]),
        ("200 OK", [("X", "\u20ac")]),
        ("200 OK", [("X", b"y")]),
        ("200 OK", [("X", None)]),
        ("200 OK", [(b"X", "y")]),
        ("200 OK", [("", "y")]),
        ("200 OK", [("X Y", "z")]),
        ("200 OK", [("X:", "z")]),
        ("200 OK", [("Transfer-Encoding", "chunked")]),
        ("200 OK", [("Content-Length", "-1")]),
        ("200 OK", [("Content-Length", "1"), ("content-length", "1")]),
        ("200 OK", [("Content-Length", "1, 1")]),
        ("200 OK", ["X: y"]),
        ("200 OK", None),
    ],
)
def test_responses_that_are_none(serve: Serve, status: Any, headers: Any) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, headers)
        return [b"x"]

    server = serve(application)
    for _ in range(2):  # the second time it could come from a table of checked ones
        answer = ask(server)
        assert answer.status == 500
        assert {name for name, _ in answer.headers} == {"Content-Type", "Content-Length", "Date"}
        assert answer.body == b"500 Internal Server Error\n"
    assert server.site.stats.errors == 2
    assert "Error" in tracebacks(server)


class Liar(str):
    """A string that compares as another one."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("harmless")


def test_a_string_that_lies_is_not_sent(serve: Serve) -> None:
    headers: list[list[tuple[str, str]]] = [
        [("X", "harmless")],
        [("X", Liar("a\r\nY: b"))],
        [(Liar("a\r\nY"), "b")],
    ]

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", headers.pop(0))
        return [b"x"]

    server = serve(application)
    for _ in range(3):
        assert "Y" not in ask(server)


def nothing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    return [b"x"]


def raising(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise RuntimeError("boom in the application")


def exiting(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    sys.exit("an application that exits")


def twice(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    start_response("200 OK", TEXT)
    return [b"x"]


def text(environ: dict[str, Any], start_response: Any) -> Iterable[Any]:
    start_response("200 OK", TEXT)
    return ["x"]


def text_pieces(environ: dict[str, Any], start_response: Any) -> Iterable[Any]:
    start_response("200 OK", TEXT)
    return iter(["x"])


def none(environ: dict[str, Any], start_response: Any) -> Any:
    start_response("200 OK", TEXT)


@pytest.mark.parametrize("application", [nothing, raising, exiting, twice, text, text_pieces, none])
def test_applications_that_fail(serve: Serve, application: Application) -> None:
    server = serve(application)
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):  # the connection stays usable
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            answer = client.answer()
            assert answer.status == 500
            assert b"boom" not in answer.body
    assert "Traceback" in tracebacks(server)
    assert server.site.stats.errors == 2


def test_a_failure_in_the_middle_cuts_the_body(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return failing([b"half"])

    server = serve(application)
    with server.connect() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n" * 2)
        data = b""
        while piece := sock.recv(1000):
            data += piece
    assert data.endswith(b"\r\n4\r\nhalf\r\n")  # and no last chunk: the client knows
    assert "RuntimeError" in tracebacks(server)


def test_exc_info(serve: Serve) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        write = start_response("200 OK", TEXT)
        if environ["PATH_INFO"] == "/late":
            write(b"x")
        try:
            raise ValueError("for exc_info")
        except ValueError:
            start_response("503 Service Unavailable", TEXT, sys.exc_info())
        return [b"sorry"]

    server = serve(application)
    answer = ask(server)
    assert (answer.status, answer.body) == (503, b"sorry")
    with server.connect() as sock:
        sock.sendall(b"GET /late HTTP/1.1\r\nHost: a.test\r\n\r\n")
        data = b""
        while piece := sock.recv(1000):
            data += piece
    assert data.endswith(b"\r\n1\r\nx\r\n")
    assert "for exc_info" in tracebacks(server)


def test_start_response_kept_for_later_does_nothing(serve: Serve) -> None:
    kept: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if kept and environ["PATH_INFO"] == "/start":
            kept[0]("200 OK", TEXT)
        if kept and environ["PATH_INFO"] == "/write":
            kept[1](b"smuggled")
        kept[:] = [start_response, start_response("200 OK", TEXT)]
        return [b"fine"]

    server = serve(application)
    with server.connect() as sock:
        client = Client(sock)
        for path, status in (("/", 200), ("/start", 500), ("/", 200), ("/write", 500), ("/", 200)):
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
            answer = client.answer()
            assert answer.status == status
            assert b"smuggled" not in answer.body


# ---- file_wrapper --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "middle", "length", "bytesio"])
def test_file_wrapper(serve: Serve, kind: str) -> None:
    content = bytes(range(256)) * 1000
    files: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        file: Any = io.BytesIO(content) if kind == "bytesio" else tempfile.TemporaryFile()  # noqa: SIM115
        files.append(file)
        if kind != "bytesio":
            file.write(content)
            file.flush()
            file.seek(1000 if kind == "middle" else 0)
        start_response("200 OK", [*TEXT, *([("Content-Length", "5000")] if kind == "length" else [])])
        result: Iterable[bytes] = environ["wsgi.file_wrapper"](file, 1000)
        return result

    server = serve(application)
    expected = {"middle": content[1000:], "length": content[:5000]}.get(kind, content)
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert client.answer().body == expected
    server.wait_closed()
    assert all(file.closed for file in files)


# ---- validate ------------------------------------------------------------------------------------------------------


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Use everything that wsgiref.validate looks at."""
    stream = environ["wsgi.input"]
    body = b"".join([stream.read(3), stream.readline(), *stream.readlines(10), *iter(stream)])
    environ["wsgi.errors"].write("")
    environ["wsgi.errors"].flush()
    start_response("200 OK", TEXT)
    return iter([b"", body])


def test_validate(serve: Serve) -> None:
    server = serve(validator(echo))
    for body in (b"", b"x", LINES * 10):
        answer = ask(server, "POST", "/a%20b?c", body, "Content-Type: text/plain\r\n")
        assert (answer.status, answer.body) == (200, body)
    assert ask(server).status == 200
    assert ask(server, "HEAD").status == 200
    assert server.site.stats.errors == 0


# ---- names ---------------------------------------------------------------------------------------------------------


def seen_by_application(serve: Serve, request: bytes, **share: Any) -> dict[str, Any]:
    """Return the environ of a request, sent three times, so that it also comes from memory."""
    seen: list[dict[str, Any]] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.append(environ)
        start_response("204 No Content", [])
        return []

    server = serve(application, share=share)
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(3):
            sock.sendall(request)
            assert client.answer().status == 204
    first, second, third = ({key: environ[key] for key in environ if key != "wsgi.input"} for environ in seen)
    assert first == second == third
    return first


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", ("/", "", "/")),
        ("/a%2Fb//c/../d?x=%41&y", ("/a/b//c/../d", "x=%41&y", "/a%2Fb//c/../d?x=%41&y")),
        ("/%E2%82%AC%00%ff", ("/\xe2\x82\xac\x00\xff", "", "/%E2%82%AC%00%ff")),
        ("/?", ("/", "", "/?")),
        ("/?a?b", ("/", "a?b", "/?a?b")),
        ("http://a.test", ("/", "", "http://a.test")),
        ("http://a.test/x?y", ("/x", "y", "http://a.test/x?y")),
        ("*", ("", "", "*")),
    ],
)
def test_targets(serve: Serve, target: str, expected: tuple[str, str, str]) -> None:
    method = "OPTIONS" if target == "*" else "GET"
    seen = seen_by_application(serve, f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"], seen["QUERY_STRING"]) == ("", *expected[:2])
    assert seen["REQUEST_URI"] == seen["RAW_URI"] == expected[2]


@pytest.mark.parametrize(
    ("request_line", "host", "expected"),
    [
        ("GET / HTTP/1.1", "A.Test", ("a.test", "80", "A.Test")),
        ("GET / HTTP/1.1", "a.test:81", ("a.test", "81", "a.test:81")),
        # Host doesn't count then, and must not get to the application: it could be anybody's
        ("GET http://a.test/ HTTP/1.1", "evil.test", ("a.test", "80", "a.test")),
        ("GET http://a.test:81/ HTTP/1.1", "evil.test:82", ("a.test", "81", "a.test:81")),
        ("GET / HTTP/1.0\r\nConnection: keep-alive", "", ("first.test", "80", None)),
        ("GET http://a.test/ HTTP/1.0\r\nConnection: keep-alive", "", ("a.test", "80", None)),
    ],
)
def test_hosts(serve: Serve, request_line: str, host: str, expected: tuple[str, str, str | None]) -> None:
    lines = f"Host: {host}\r\n" if host else ""
    share = {"hosts": ("*.wild.test", "first.test", HOST)}
    seen = seen_by_application(serve, f"{request_line}\r\n{lines}\r\n".encode(), **share)
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"], seen.get("HTTP_HOST")) == expected


def test_names_that_could_pass_for_others(serve: Serve) -> None:
    """Each key has one header that can set it; whatever the others do, it keeps the value of that."""
    real = {"X-User": "real", "Content-Type": "real/type", "Cookie": "a=real"}
    forged = (
        *("X_User", "x_user", "X_USER", "Content_Type", "CONTENT_TYPE", "Content_Length", "COOKIE_", "Proxy"),
        *("proxy", "PROXY", "REMOTE_ADDR", "Remote_User", "HTTP_X_USER", "wsgi_input"),
    )
    # harmless, and different from all that are real
    odd = (
        "HTTP-Cookie",
        "X.User",
        "X~User",
        "Remote-User",
        "HTTP-Content-Type",
        "Script-Name",
        "HTTPS",
        "Auth-Type",
    )
    twice = [item for item in real.items() if item[0] != "Content-Type"]  # that one twice is a 400
    fields = [*twice, *((name, "forged") for name in (*forged, *odd)), *real.items()]
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    seen = seen_by_application(serve, f"GET / HTTP/1.1\r\nHost: {HOST}\r\n{head}\r\n".encode())
    assert seen["HTTP_X_USER"] == "real, real"
    assert seen["CONTENT_TYPE"] == "real/type"
    assert seen["HTTP_COOKIE"] == "a=real; a=real"
    assert {key for key, value in seen.items() if value == "forged"} == {
        "HTTP_HTTP_COOKIE",
        "HTTP_X.USER",
        "HTTP_X~USER",
        "HTTP_REMOTE_USER",
        "HTTP_HTTP_CONTENT_TYPE",
        "HTTP_SCRIPT_NAME",
        "HTTP_HTTPS",
        "HTTP_AUTH_TYPE",
    }
    for key in ("HTTPS", "REMOTE_USER", "AUTH_TYPE", "CONTENT_LENGTH", "HTTP_PROXY"):
        assert key not in seen


@pytest.mark.parametrize(("threads", "says"), [(1, False), (4, True)])
def test_what_runs_beside_it_is_told_truthfully(serve: Serve, threads: int, says: bool) -> None:
    seen = seen_by_application(
        serve,
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
        pool=PoolSettings(max_threads=threads, max_workers=1),
    )
    # with one worker, too: its replacement serves while it finishes
    assert (seen["wsgi.multithread"], seen["wsgi.multiprocess"], seen["wsgi.run_once"]) == (says, True, False)


# ---- bodies that say how many pieces they have, and those that have no end -----------------------------------------


class Sized:
    """An iterable with a length that isn't a list, and a close()."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.closed = 0

    def __len__(self) -> int:
        return len(self._pieces)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pieces)

    def close(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("pieces", [(b"hello",), (b"",), (), (b"hel", b"lo")])
@pytest.mark.parametrize("make", [tuple, lambda pieces: Sized(*pieces)], ids=["tuple", "sized"])
def test_one_piece_of_any_iterable_gets_a_length(serve: Serve, pieces: tuple[bytes, ...], make: Any) -> None:
    made = make(pieces)

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        result: Iterable[bytes] = made
        return result

    server = serve(application)
    answer = ask(server)
    server.wait_closed()  # close() is called after the answer
    assert answer.body == b"".join(pieces)
    assert ("Content-Length" in answer) == (len(pieces) < 2)
    assert getattr(made, "closed", 1) == 1


@pytest.mark.parametrize(
    ("status", "headers", "method"),
    [
        ("204 No Content", [], "GET"),
        ("304 Not Modified", [], "GET"),
        ("200 OK", [("Content-Length", "3")], "GET"),
        ("200 OK", [("Content-Length", "3")], "HEAD"),
    ],
)
def test_an_endless_body_ends_where_the_answer_does(
    serve: Serve, status: str, headers: list[tuple[str, str]], method: str
) -> None:
    made = Closing(iter(lambda: b"x", b""))

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, headers)
        return made

    server = serve(application)
    assert ask(server, method).body in (b"", b"xxx")
    server.wait_closed()
    assert made.closed == 1


def test_what_comes_after_the_last_piece_is_run(serve: Serve) -> None:
    """Applications do their accounting there."""
    done = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", "3")])
        yield b"abc"
        done.append("after")

    server = serve(application)
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert client.answer().body == b"abc"
    server.wait_closed()
    assert done == ["after", "after"]


# ---- exceptions of every kind --------------------------------------------------------------------------------------


class Mute(Exception):
    """An exception that can't be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


class Last(BaseException):
    """Not even an Exception."""


def recurse() -> None:
    recurse()


def long_chain() -> None:
    error: Exception | None = None
    for number in range(200):
        new = ValueError("x" * 10_000 + str(number))
        new.__cause__ = error
        error = new
    assert error is not None
    raise error


def throw(error: type[BaseException] | BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    "fail",
    [
        lambda: throw(SystemExit(3)),
        lambda: throw(KeyboardInterrupt),
        lambda: throw(GeneratorExit),
        lambda: throw(MemoryError),
        lambda: throw(Mute("x")),
        lambda: throw(Last("x")),
        lambda: throw(OSError(32, "Broken pipe")),
        lambda: throw(ConnectionError("the database's")),
        lambda: throw(RuntimeError("\x1b[31m \ud800 \u20ac")),
        recurse,
        long_chain,
    ],
    ids=[
        "exit",
        "interrupt",
        "generator",
        "memory",
        "mute",
        "base",
        "pipe",
        "connection",
        "text",
        "recursion",
        "causes",
    ],
)
@pytest.mark.parametrize("where", ["call", "before", "half", "close"])
def test_exceptions(serve: Serve, where: str, fail: Any) -> None:
    """Whatever it is: a plain 500, or a cut body, its traceback in the log once, and the next request is served."""

    class Body(Closing):
        def __next__(self) -> bytes:
            piece = super().__next__()
            if piece == b"fail":
                fail()
            return piece

        def close(self) -> None:
            super().close()
            if where == "close":
                fail()

    made: list[Body] = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/fine":
            start_response("200 OK", TEXT)
            return [b"fine"]
        if where == "call":
            fail()
        start_response("200 OK", [*TEXT, ("X-Secret", "not for a 500")])
        made.append(Body({"before": [b"fail"], "half": [b"half", b"fail"], "close": [b"whole"]}[where]))
        return made[0]

    server = serve(application)
    with server.connect() as sock:
        sock.sendall(b"GET /bad HTTP/1.1\r\nHost: a.test\r\n\r\n")
        client = Client(sock)
        if where == "half":
            while client._more():
                pass
            assert b"\r\n4\r\nhalf\r\n" in client.data
            assert not client.data.endswith(b"0\r\n\r\n")
        elif where == "close":
            assert client.answer().body == b"whole"
        else:
            answer = client.answer()
            assert (answer.status, answer.body) == (500, b"500 Internal Server Error\n")
            assert "X-Secret" not in answer
    assert ask(server, target="/fine").body == b"fine"
    server.wait_closed()
    assert [body.closed for body in made] in ([], [1])
    assert server.site.stats.errors == 1
    (line,) = [fields for _, event, fields in server.site.log.lines if event == "application failed"]  # type: ignore[attr-defined]
    assert (line["method"], line["target"], line["client"]) == ("GET", "/bad", "127.0.0.1")
    assert line["traceback"].startswith(("Traceback", "ValueError"))


def test_a_client_that_left_isnt_the_applications_fault(serve: Serve) -> None:
    """Also if close() fails on top of it; the traceback is there all the same."""
    fails = [False, True]

    class Body(Closing):
        def close(self) -> None:
            super().close()
            if fails.pop(0):
                raise RuntimeError("in close()")

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", TEXT)
        return Body(b"x" * 100_000 for _ in range(10_000))

    server = serve(application)
    for errors in (0, 1):
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            sock.recv(100)
        server.wait_closed()
        assert server.site.stats.errors == errors
    assert "in close()" in tracebacks(server)


@pytest.mark.parametrize("how", ["itself", "from", "while", "twice", "other"])
def test_a_client_that_breaks_off_isnt_the_applications_fault(serve: Serve, how: str) -> None:
    """Whatever a framework makes of it. What the application does wrong by itself is its fault all the same."""

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            if how == "itself":
                raise
            if how == "from":
                raise ValueError("unreadable") from error
            if how == "twice":
                try:
                    raise ValueError("unreadable") from error
                except ValueError as outer:
                    raise RuntimeError("no view") from outer
            if how == "while":
                environ["not there"]
        raise RuntimeError("by itself")

    server = serve(application, body_buffer=0)  # else it isn't even called
    with server.connect() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nhalf")
        sock.shutdown(socket.SHUT_WR)
        assert Client(sock).answer().status == 400
    server.wait_closed()
    assert server.site.stats.errors == (how == "other")
    assert bool(tracebacks(server)) == (how == "other")


def test_made_up_header_names_keep_nobody_out(serve: Serve) -> None:
    """The table of names starts anew when a client has filled it."""
    server = serve(answering(b"x"))
    keys = server.site.kind.variables.keys  # type: ignore[attr-defined]
    for start in range(0, 1500, 100):
        ask(server, headers="".join(f"X-{number}: 1\r\n" for number in range(start, start + 100)))
    assert 0 < len(keys) <= 1024
    ask(server, headers="X-New: 1\r\n")
    assert keys[b"X-New"] == "HTTP_X_NEW"


# ---- file_wrapper: what isn't a file's own bytes -------------------------------------------------------------------


CONTENT = bytes(range(256)) * 400


def gzipped(path: Path) -> Any:
    path.write_bytes(gzip.compress(CONTENT))
    return gzip.open(path)  # it has a descriptor, whose bytes aren't its own


def plain(path: Path) -> Any:
    path.write_bytes(CONTENT)
    return path.open("rb")


def unbuffered(path: Path) -> Any:
    path.write_bytes(CONTENT)
    return path.open("rb", buffering=0)


def unflushed(path: Path) -> Any:
    file = path.open("w+b")
    file.write(CONTENT)
    file.seek(0)
    return file


def named(path: Path) -> Any:
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115 - the application closes it
    file.write(CONTENT)
    file.seek(0)
    return file


def spooled(path: Path) -> Any:
    file = tempfile.SpooledTemporaryFile(max_size=100)  # noqa: SIM115 - the application closes it
    file.write(CONTENT)
    file.seek(0)
    return file


def piped(path: Path) -> Any:
    reader, writer = os.pipe()
    os.write(writer, CONTENT[:30_000])
    os.close(writer)
    return os.fdopen(reader, "rb")


def read_ahead(path: Path) -> Any:
    file = plain(path)
    assert file.read(10) == CONTENT[:10]  # the descriptor is further on
    return file


class Upper:
    """A file of somebody's own, which passes on everything but what it reads."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        return data.upper()


class OnlyRead:
    """The least that a file must have: no close(), no fileno()."""

    def __init__(self, content: bytes) -> None:
        self.read = io.BytesIO(content).read


FILES: dict[str, tuple[Any, bytes, bool]] = {
    "plain": (plain, CONTENT, True),
    "unbuffered": (unbuffered, CONTENT, True),
    "unflushed": (unflushed, CONTENT, True),
    "named": (named, CONTENT, True),
    "read_ahead": (read_ahead, CONTENT[10:], True),
    "gzip": (gzipped, CONTENT, False),
    "spooled": (spooled, CONTENT, False),
    "pipe": (piped, CONTENT[:30_000], False),
    "wrapped": (lambda path: Upper(plain(path)), CONTENT.upper(), False),
    "only_read": (lambda path: OnlyRead(CONTENT), CONTENT, False),
    "bytes": (lambda path: io.BytesIO(CONTENT), CONTENT, False),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("length", [None, "shorter", "exact", "longer"])
def test_files(
    serve: Serve,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    method: str,
    length: str | None,
) -> None:
    """By sendfile(2) where the descriptor's bytes are the file's, by read() elsewhere; the same answer."""
    make, content, by_descriptor = FILES[name]
    sent = []

    def send_file(*args: Any) -> None:
        sent.append(args)
        SEND_FILE(*args)

    monkeypatch.setattr(Exchange, "send_file", send_file)
    made: list[Any] = []
    wanted = {None: None, "shorter": 1000, "exact": len(content), "longer": len(content) + 5}[length]

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        headers = [] if wanted is None else [("Content-Length", str(wanted))]
        start_response("200 OK", headers)
        made.append(make(tmp_path / "file"))
        result: Iterable[bytes] = environ["wsgi.file_wrapper"](made[-1], 1000)
        return result

    server = serve(application)
    with server.connect() as sock:
        sock.sendall(f"{method} / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while piece := sock.recv(1 << 16):
            data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if wanted is not None:
        assert f"Content-Length: {wanted}\r\n".encode() in head
    if method == "HEAD":
        assert body == b""
    elif b"chunked" in head:
        client = Client(socket.socket())
        client.sock.close()
        client.data = data
        assert client.answer().body == content
    else:
        assert body == content[:wanted]
    assert bool(sent) == (by_descriptor and length != "longer")
    server.wait_closed()
    assert getattr(made[0], "closed", True)


# ---- validate: applications of every shape ------------------------------------------------------------------------


def shapes() -> dict[str, Application]:
    """Correct applications, each returning its body in another way."""

    def as_list(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [b"shape"]

    def as_pieces(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return [b"sh", b"", b"ape"]

    def as_tuple(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        return (b"shape",)

    def as_generator(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        yield b"sh"
        yield b"ape"

    def as_late_generator(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        yield b""
        yield b"shape"

    def as_class(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        return Closing([b"sh", b"ape"])

    def as_written(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        write(b"sh")
        write(b"ape")
        return []

    def as_written_and_returned(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)(b"sh")
        return [b"ape"]

    def as_file(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
        file.write(b"shape")
        file.seek(0)
        return environ["wsgi.file_wrapper"](file)

    def as_second_thought(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("500 Internal Server Error", [("X-First", "1"), *TEXT])
        try:
            raise ValueError
        except ValueError:
            start_response("200 OK", TEXT, sys.exc_info())
        return [b"shape"]

    def as_object(environ: dict[str, Any], start_response: Any) -> Any:
        return Object()(environ, start_response)

    class Object:
        def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
            start_response("200 OK", TEXT)
            return iter([b"shape"])

    def as_echo(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"].read(5) or b"shape"
        start_response("200 OK", TEXT)
        return [body]

    return {name: made for name, made in locals().items() if name.startswith("as_")}


@pytest.mark.parametrize("name", shapes())
@pytest.mark.parametrize(
    ("method", "version", "headers", "body"),
    [
        ("GET", "1.1", "", None),
        ("GET", "1.0", "", None),
        ("GET", "1.0", "Connection: keep-alive\r\n", None),
        ("HEAD", "1.1", "", None),
        ("OPTIONS", "1.1", "", None),
        ("DELETE", "1.1", "", None),
        ("PATCH", "1.1", "X-A: \xe9\r\nCookie: a=b\r\n", None),
        ("POST", "1.1", "Content-Type: text/plain\r\n", b"shape"),
        ("PUT", "1.1", "Content-Type: text/plain\r\nExpect: 100-continue\r\n", b"shape"),
    ],
)
def test_validated_applications(
    serve: Serve, name: str, method: str, version: str, headers: str, body: bytes | None
) -> None:
    """wsgiref.validate looks at both sides: what it doesn't like of ours would be an AssertionError, and a 500."""
    server = serve(validator(shapes()[name]))
    target = "*" if method == "OPTIONS" else "/p%C3%A4th?q=1"
    with server.connect() as sock:
        client = Client(sock)
        for _ in range(2):
            length = "" if body is None else f"Content-Length: {len(body)}\r\n"
            sock.sendall(
                f"{method} {target} HTTP/{version}\r\nHost: {HOST}\r\n{length}{headers}\r\n".encode("latin-1")
                + (body or b"")
            )
            answer = client.answer(method)
            assert answer.status == 200
            assert answer.body == (b"" if method == "HEAD" else b"shape")
            if version == "1.0" and answer["Connection"] == "close":
                break
    assert server.site.stats.errors == 0
    assert server.site.log.events() == []  # type: ignore[attr-defined]


def test_lines_of_a_large_body_take_time_by_its_length(serve: Serve) -> None:
    """Not by its length times the block's."""
    count = []

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        begin = time.thread_time()
        lines = sum(1 for _ in environ["wsgi.input"])
        count.append((lines, time.thread_time() - begin))
        start_response("204 No Content", [])
        return []

    ask(serve(application), "POST", body=b"\n" * 1_000_000)
    ((lines, seconds),) = count
    assert lines == 1_000_000
    assert seconds < 5  # about 1; cutting each line off would be more than 60
