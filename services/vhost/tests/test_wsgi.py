"""PEP 3333, and what an application can do wrong."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from pyttpd_vhost.kinds.wsgi import Application, Input, load_application

from .conftest import HOST, Answer, Client, ListLog, Serve, Server, make_share

TEXT = [("Content-Type", "text/plain")]


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
    share = make_share(root=str(tmp_path), application="some_tenants_module:Box.app", env={"X_TENANT": "set"})
    application: Any = load_application(share, ListLog())
    assert application({}, None) == "set"
    with pytest.raises(TypeError):
        load_application(make_share(root=str(tmp_path), application="some_tenants_module:os"), ListLog())
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

    server = serve(application)
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
