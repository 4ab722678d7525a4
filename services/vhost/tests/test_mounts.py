"""Several kinds in one vhost: who gets which path, and what it is told; also of somebody who tries to get around it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyttpd.config.kinds import (
    CgiOptions,
    HandoffOptions,
    KindOptions,
    Mount,
    ScgiOptions,
    StaticOptions,
    WsgiOptions,
)

from pyttpd_vhost.http.paths import BadPathError, normal
from pyttpd_vhost.kinds.base import Kind
from pyttpd_vhost.kinds.static.programs import Programs
from pyttpd_vhost.mounts import Mounts
from pyttpd_vhost.site import Site

from .conftest import HOST, Answer, Client, ListLog, Server, make_share

APPLICATION = """
import json

def named(name):
    def application(environ, start_response):
        keys = ("SCRIPT_NAME", "PATH_INFO", "REQUEST_URI", "QUERY_STRING", "REQUEST_METHOD", "wsgi.multithread")
        body = json.dumps({"name": name} | {key: environ[key] for key in keys}).encode()
        start_response("200 OK", [("Content-Type", "application/json")])
        return [body]
    return application

root, app, deep = named("root"), named("app"), named("deep")
"""

MOUNTS = {"/": "root", "/app": "app", "/app/deep/er": "deep", "/größe": "app"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, content in {
        "mounted.py": APPLICATION,
        "files/a.txt": "a",
        "files/index.html": "index",
        "files/sub/b.txt": "b",
        "files/.hidden": "hidden",
        "errors/404.html": "<p>not here",
        "errors/400.html": "<p>no path",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mounted", raising=False)
    yield tmp_path
    sys.modules.pop("mounted", None)


Start = Callable[..., Server]


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start a server with the given mounts: paths with the applications' names, or with options."""
    servers: list[Server] = []

    def start(mounts: dict[str, Any], **changes: Any) -> Server:
        made = tuple(
            [
                Mount(path, WsgiOptions(f"mounted:{what}") if isinstance(what, str) else what)
                for path, what in mounts.items()
            ]
        )
        site = Site(make_share(root=str(folder), mounts=made, **changes), ListLog())
        site.load()
        server = Server(site)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
        close: Any = getattr(server.site.kind, "close", None)
        if close is not None:
            close()
        pages = getattr(server.site.page, "__self__", None)
        if pages is not None:
            pages._root.close()


class Talk:
    """One connection, and another one when the server has closed it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._client: Client | None = None

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.sock.close()

    def ask(self, target: str, method: str = "GET") -> Answer:
        if self._client is None:
            self._client = Client(self._server.connect())
        self._client.sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        answer = self._client.answer(method)
        if "Connection" in answer:
            self._client.sock.close()
            self._client = None
        return answer


def ask(server: Server, target: str, method: str = "GET") -> Answer:
    with Talk(server) as client:
        return client.ask(target, method)


#: A target; the mount that answers; SCRIPT_NAME and PATH_INFO as WSGI has them; None: a status.
CASES: list[tuple[str, str, str, str]] = [
    ("/", "root", "", "/"),
    ("/?a=/app/", "root", "", "/"),
    ("/x/y/", "root", "", "/x/y/"),
    ("/app", "app", "/app", ""),
    ("/app?q", "app", "/app", ""),
    ("/app/", "app", "/app", "/"),
    ("/app/x", "app", "/app", "/x"),
    ("/app/x/", "app", "/app", "/x/"),
    ("/app/deep", "app", "/app", "/deep"),
    ("/app/deep/er", "deep", "/app/deep/er", ""),
    ("/app/deep/er/x", "deep", "/app/deep/er", "/x"),
    ("/app/deep/error", "app", "/app", "/deep/error"),
    # whole segments
    ("/application", "root", "", "/application"),
    ("/app.php", "root", "", "/app.php"),
    ("/app;x", "root", "", "/app;x"),
    ("/app%20", "root", "", "/app "),
    ("/app%00/x", "400", "", ""),
    ("/appx/../app/x", "app", "/app", "/x"),
    # upper and lower case are different
    ("/APP/x", "root", "", "/APP/x"),
    # encoded is the same as not
    ("/%61pp/x", "app", "/app", "/x"),
    ("/%61%70%70", "app", "/app", ""),
    ("/app%2Fx", "app", "/app", "/x"),
    ("/app%2f", "app", "/app", "/"),
    ("%2Fapp", "400-", "", ""),
    ("/%2Fapp/x", "app", "/app", "/x"),
    ("/app%2Fdeep%2Fer%2Fx", "deep", "/app/deep/er", "/x"),
    # once
    ("/%2561pp/x", "root", "", "/%61pp/x"),
    ("/app%252Fx", "root", "", "/app%2Fx"),
    # empty segments
    ("//app/x", "app", "/app", "/x"),
    ("/app//x", "app", "/app", "/x"),
    ("///app///deep//er///x", "deep", "/app/deep/er", "/x"),
    ("//", "root", "", "/"),
    # dots
    ("/./app/x", "app", "/app", "/x"),
    ("/x/../app/./y", "app", "/app", "/y"),
    ("/app/../x", "root", "", "/x"),
    ("/app/%2e%2e/x", "root", "", "/x"),
    ("/app/..%2Fx", "root", "", "/x"),
    ("/app%2F..%2Fx", "root", "", "/x"),
    ("/app/.%2e/app/x", "app", "/app", "/x"),
    ("/app/deep/er/../x", "app", "/app", "/deep/x"),
    ("/app/deep/er/..", "app", "/app", "/deep/"),
    ("/app/..", "root", "", "/"),
    ("/app/.", "app", "/app", "/"),
    ("/app/...", "app", "/app", "/..."),
    ("/app/..x", "app", "/app", "/..x"),
    ("/x/app", "root", "", "/x/app"),
    ("/..", "400", "", ""),
    ("/app/../../x", "400", "", ""),
    ("/%2e%2e/app", "400", "", ""),
    ("/app/%00", "400", "", ""),
    # other bytes
    ("/gr%C3%B6%C3%9Fe/x", "app", "/gr\xc3\xb6\xc3\x9fe", "/x"),
    ("/gr%F6%DFe/x", "root", "", "/gr\xf6\xdfe/x"),
    ("/app/%C3%A4", "app", "/app", "/\xc3\xa4"),
    ("/app/%ff", "app", "/app", "/\xff"),
    ("/app/a+b&c=d", "app", "/app", "/a+b&c=d"),
    ("/app/a%3Fb?c", "app", "/app", "/a?b"),
    ("/app|x", "root", "", "/app|x"),
    # absolute-form
    (f"http://{HOST}/app/x?y", "app", "/app", "/x"),
    (f"http://{HOST}", "root", "", "/"),
    (f"http://{HOST}?/app", "root", "", "/"),
]


def test_who_gets_which_path_and_what_it_is_told(start: Start) -> None:
    server = start(MOUNTS, error_pages={"400": "errors/400.html"})
    with Talk(server) as client:
        for target, name, script_name, path_info in CASES:
            for _ in range(3):  # the third time the head is remembered
                answer = client.ask(target)
                if name == "400-":  # refused before anybody was asked
                    assert answer.status == 400, target
                elif name == "400":
                    assert (answer.status, answer.body) == (400, b"<p>no path"), target
                else:
                    found = json.loads(answer.body)
                    assert (answer.status, found["name"], found["SCRIPT_NAME"], found["PATH_INFO"]) == (
                        *(200, name, script_name, path_info),
                    ), target
                    assert (found["REQUEST_URI"], found["wsgi.multithread"]) == (target, False)


def test_what_is_below_no_mount(start: Start) -> None:
    server = start({"/app": "app", "/b/c": "root"}, error_pages={"404": "errors/404.html"})
    for target in ("/", "/x", "/application", "/b", "/b/", "/b/cc", "/app/..", "/App"):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            answer = ask(server, target, method)
            expected = b"" if method == "HEAD" else b"<p>not here"
            assert (answer.status, answer.body, answer["Content-Length"]) == (404, expected, "11"), (
                target,
                method,
            )
    assert ask(server, "/b/c/").status == 200
    assert server.site.stats.responses[4] == 8 * 4
    answer = ask(server, "*", "OPTIONS")
    assert (answer.status, answer.body) == (204, b"")


def test_options_of_the_server(start: Start, folder: Path) -> None:
    server = start({"/": "root", "/app": "app"})
    found = json.loads(ask(server, "*", "OPTIONS").body)
    assert (found["name"], found["PATH_INFO"], found["SCRIPT_NAME"]) == ("root", "", "")
    server = start({"/": StaticOptions(str(folder / "files")), "/app": "app"})
    answer = ask(server, "*", "OPTIONS")
    assert (answer.status, answer["Allow"]) == (204, "GET, HEAD, OPTIONS")


def test_static_below_a_path(start: Start, folder: Path) -> None:
    files = StaticOptions(str(folder / "files"), listing=True)
    server = start({"/": "root", "/f": files, "/o/größe": files}, error_pages={"404": "errors/404.html"})
    with Talk(server) as client:
        for _ in range(3):
            for target, status, body in (
                ("/f/a.txt", 200, b"a"),
                ("/f/", 200, b"index"),
                ("/f/sub/b.txt", 200, b"b"),
                ("/f%2Fa.txt", 200, b"a"),
                ("/f//a.txt", 200, b"a"),
                ("/f/sub/../a.txt", 200, b"a"),
                ("/o/gr%C3%B6%C3%9Fe/a.txt", 200, b"a"),
                ("/f/nothing", 404, b"<p>not here"),
                ("/f/a.txt/", 404, b"<p>not here"),
                ("/f/.hidden", 404, b"<p>not here"),
                ("/f/f/a.txt", 404, b"<p>not here"),
                ("/f/.%2e/mounted.py", 200, None),  # the application's at the root, and no file
            ):
                answer = client.ask(target)
                assert answer.status == status, target
                if body is not None:
                    assert answer.body == body, target
        for target, location in (
            ("/f", "/f/"),
            ("/f?a=b", "/f/?a=b"),
            ("//f", "/f/"),
            ("/f/sub", "/f/sub/"),
            ("/f//sub?x", "/f/sub/?x"),
            ("/o/gr%C3%B6%C3%9Fe", "/o/gr%C3%B6%C3%9Fe/"),
        ):
            answer = client.ask(target)
            assert (answer.status, answer["Location"]) == (301, location), target
        assert client.ask("/f/a.txt", "HEAD")["Content-Length"] == "1"
        assert client.ask("/f/a.txt", "POST").status == 405
        listing = client.ask("/f/sub/").body
        assert b"b.txt" in listing
        assert b"/f/sub" in listing or b"sub" in listing


def test_one_mount_elsewhere_is_below_its_path(start: Start) -> None:
    server = start({"/app": "app"})
    found = json.loads(ask(server, "/app/x").body)
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/app", "/x")
    assert ask(server, "/").status == 404


def test_a_single_kind_is_asked_itself(start: Start, folder: Path) -> None:
    """It pays nothing for mounts, and gets the path as it was sent."""
    server = start({"/": "root"})
    assert type(server.site.kind).__name__ == "WsgiKind"
    found = json.loads(ask(server, "//a/../b").body)
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("", "//a/../b")
    server = start({"/": StaticOptions(str(folder / "files"))})
    assert type(server.site.kind).__name__ == "StaticKind"


def test_the_access_log_has_what_was_sent(start: Start) -> None:
    class Access:
        timed = False
        targets: list[bytes] = []

        def add(self, _client: str, request: Any, _status: int, _sent: int, _since: float) -> None:
            self.targets.append(request.target)

        def flush(self) -> None:
            pass

    server = start(MOUNTS)
    server.site.access = Access()  # type: ignore[assignment]
    for target in ("/app//x", "/..", "/app"):
        ask(server, target)
    server.wait_closed()  # an answer is noted when it has been sent
    assert Access.targets == [b"/app//x", b"/..", b"/app"]


FRONT = {"/": "files", "/f": "files", "@app": "app", "/api": "root"}


def with_fallback(folder: Path, fallback: str, **options: Any) -> dict[str, Any]:
    files = StaticOptions(str(folder / "files"), fallback=fallback, **options)
    return {path: files if what == "files" else what for path, what in FRONT.items()}


def test_what_is_no_file_is_asked_of_the_fallback(start: Start, folder: Path) -> None:
    (folder / "files" / "empty").mkdir()
    (folder / "files" / "own").mkdir()
    (folder / "files" / "own" / "index.html").write_text("own")
    server = start(with_fallback(folder, "@app"), error_pages={"404": "errors/404.html"})
    with Talk(server) as client:
        for _ in range(3):  # the third time the head is remembered
            for target, status, body in (
                ("/", 200, b"index"),
                ("/a.txt", 200, b"a"),
                ("/f/sub/b.txt", 200, b"b"),
                ("/own/", 200, b"own"),
                ("/own", 301, None),
                ("/x/../a.txt", 200, b"a"),
            ):
                answer = client.ask(target)
                assert answer.status == status, target
                assert body is None or answer.body == body, target
            for target, script_name, path_info in (
                ("/none", "", "/none"),
                ("/none/", "", "/none/"),
                ("/a.txt/", "", "/a.txt/"),
                ("/a.txt/more", "", "/a.txt/more"),
                ("/.hidden", "", "/.hidden"),
                ("/.well-known/x", "", "/.well-known/x"),
                ("/empty", "", "/empty"),  # a redirect would lead to the application as well
                ("/empty/", "", "/empty/"),
                ("/sub", "", "/sub"),
                ("/x//%2e/../y%20z", "", "/y z"),
                ("/f/none?a=b", "/f", "/none"),
                ("/f/sub/", "/f", "/sub/"),
                ("/@app", "", "/@app"),
                ("/%40app/x", "", "/@app/x"),
                (f"/{'x' * 300}", "", f"/{'x' * 300}"),  # longer than a file's name may be
            ):
                for method in ("GET", "POST", "OPTIONS", "DELETE"):
                    answer = client.ask(target, method)
                    found = json.loads(answer.body)
                    assert (found["name"], found["SCRIPT_NAME"], found["PATH_INFO"]) == (
                        *("app", script_name, path_info),
                    ), target
                    assert (found["REQUEST_METHOD"], found["REQUEST_URI"]) == (method, target)
        assert json.loads(client.ask("/api/a.txt").body)["name"] == "root"
        assert client.ask("/a.txt", "POST").status == 405
        assert client.ask("/a.txt", "OPTIONS")["Allow"] == "GET, HEAD, OPTIONS"
        assert client.ask("*", "OPTIONS")["Allow"] == "GET, HEAD, OPTIONS"
        assert client.ask("/../x").status == 400
        answer = client.ask("/none", "HEAD")
        assert (answer.status, answer["Content-Type"]) == (200, "application/json")


def test_a_file_that_comes_and_goes(start: Start, folder: Path) -> None:
    server = start(with_fallback(folder, "@app"))
    with Talk(server) as client:
        for _ in range(2):
            for _ in range(3):
                assert json.loads(client.ask("/new.txt").body)["name"] == "app"
            (folder / "files" / "new.txt").write_text("new")
            for _ in range(3):
                assert client.ask("/new.txt").body == b"new"
            (folder / "files" / "new.txt").unlink()


def test_a_list_of_files_comes_before_the_fallback(start: Start, folder: Path) -> None:
    server = start(with_fallback(folder, "@app", listing=True))
    with Talk(server) as client:
        assert b"b.txt" in client.ask("/sub/").body
        assert client.ask("/sub")["Location"] == "/sub/"
        assert json.loads(client.ask("/none").body)["name"] == "app"


def test_a_body_goes_to_the_fallback(start: Start, folder: Path) -> None:
    (folder / "mounted.py").write_text(
        "def app(environ, start_response):\n"
        "    body = environ['wsgi.input'].read()\n"
        "    start_response('200 OK', [])\n"
        "    return [body.upper()]\n"
        "root = app\n"
    )
    server = start(with_fallback(folder, "@app"))
    client = Client(server.connect())
    for framing, body in (
        ("Content-Length: 5", "hello"),
        ("Transfer-Encoding: chunked", "5\r\nhello\r\n0\r\n\r\n"),
    ):
        client.sock.sendall(f"POST /none HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n\r\n{body}".encode())
        assert client.answer().body == b"HELLO"
    client.sock.close()


@pytest.mark.parametrize("mounted", [False, True])
def test_a_file_instead(start: Start, folder: Path, mounted: bool) -> None:
    """As a single-page application wants it."""
    (folder / "files" / ".page.html").write_text("page")
    options = StaticOptions(str(folder / "files"), fallback=".page.html")
    server = start({"/": options, "/app": "app"} if mounted else {"/": options})
    with Talk(server) as client:
        for _ in range(3):
            for target in ("/users/7", "/x/", "/sub/", "/.page.html"):
                answer = client.ask(target)
                assert (answer.status, answer.body) == (200, b"page"), target
                assert answer["Content-Type"] == "text/html; charset=utf-8"
            assert client.ask("/a.txt").body == b"a"
        etag = client.ask("/users/7")["ETag"]
        assert client.ask("/users/7", "POST").status == 405
        assert client.ask("/users/7", "HEAD")["ETag"] == etag
        # what comes later is there at once
        (folder / "files" / "users").mkdir()
        (folder / "files" / "users" / "7").write_text("seven")
        assert client.ask("/users/7").body == b"seven"
        (folder / "files" / ".page.html").unlink()
        assert client.ask("/users/8").status == 404


# ---- what other mounts run -----------------------------------------------------------------------------------------


class Scripts(KindOptions):
    """Stands for a kind that runs files."""

    kind = "wsgi"

    def __init__(self, root: str, scripts: tuple[str, ...] = ()) -> None:
        self.root = root
        self.scripts = scripts


class Other:
    """Stands for its mount."""

    def __init__(self, options: KindOptions) -> None:
        self.kind = options.kind
        self.options = options


SOURCES = [
    *(
        "a.php",
        "A.PHP",
        "a.Php",
        "a.php.",
        "a.php ",
        "a.php~",
        "a.php.bak",
        "a.php.gz",
        "a.php/",
        "a.php::$DATA",
    ),
    *("sub/a.php", "a.phtml", "a.phar", "a.inc", "a.php5", "a.phps", "a.php.txt", "a.php\t", "a.php\xc2\xa0"),
    *("cgi", "cgi/", "cgi/run", "cgi/sub/readme.txt"),
]
FILES = [
    "a.txt",
    "php",
    "a.phpx",
    "phpinfo.html",
    "a.incl",
    "cgi-bin.txt",
    "sub/cgi/x",
    "cgis/x",
    "a.php/readme.txt",
    "",
]


def test_source_code_is_no_file() -> None:
    mounts: list[Any] = [Other(Scripts("/srv/site", (".php",))), Other(Scripts("/srv/site/cgi"))]
    programs = Programs(mounts, "/srv/site")
    for path in SOURCES:
        assert programs.has(path.encode("latin-1")), path
    for path in FILES:
        assert not programs.has(path.encode()), path
    nothing = Programs([Other(StaticOptions("/srv/site"))], "/srv/site")  # type: ignore[list-item]
    assert not any(nothing.has(path.encode("latin-1")) for path in (*SOURCES, *FILES))


def test_a_program_that_a_mount_names_is_no_file(tmp_path: Path) -> None:
    """`script` and `command` name single files, which may lie below a static mount's root."""
    root = str(tmp_path)
    (tmp_path / "public").mkdir()
    mounts: list[Any] = [
        Other(CgiOptions(f"{root}/elsewhere", script=f"{root}/app.cgi")),
        Other(
            ScgiOptions(command=("python3", "bin/serve.py", "--log", "settings.ini", "public", "/etc/hosts"))
        ),
        Other(HandoffOptions(command=("./run",))),
    ]
    programs = Programs(mounts, root, root)
    for path in (
        "app.cgi",
        "APP.cgi",
        "app.cgi/",
        "app.cgi~",
        "app.cgi.bak",
        "bin/serve.py",
        "settings.ini",
        "run",
    ):
        assert programs.has(path.encode()), path
    for path in (
        "app.cgix",
        "sub/app.cgi",
        "bin/",
        "bin/serve",
        "public",
        "public/a",
        "python3",
        "runs",
        "etc/hosts",
    ):
        assert not programs.has(path.encode()), path
    assert not Programs(mounts, f"{root}/public", root).has(b"app.cgi")


def test_applications_are_prepared_once(folder: Path) -> None:
    mounts = tuple([Mount(path, WsgiOptions("mounted:app")) for path in ("/", "/a", "/b")])
    before = len(sys.path)
    site = Site(make_share(root=str(folder), mounts=mounts), ListLog())
    site.load()
    assert len(sys.path) == before + 1


def test_unknown_options(folder: Path) -> None:
    class Odd(KindOptions):
        kind = "odd"

    with pytest.raises(ValueError, match="no such kind: odd"):
        Site(make_share(root=str(folder)), ListLog())._kind(Odd())


# ---- whatever is sent ----------------------------------------------------------------------------------------------


class _Nobody:
    def handle(self, request: Any, exchange: Any) -> None:
        raise AssertionError


def mounts_of(*paths: str) -> Mounts:
    kinds: list[tuple[Mount, Kind]] = [(Mount(path, WsgiOptions("a:b")), _Nobody()) for path in paths]
    return Mounts(kinds, Site(make_share(), ListLog()))


TABLE = mounts_of("/", "/a", "/a/b", "/..x", "/a/b/c/d")
_PIECES = st.sampled_from(
    [b"/", b"a", b"b", b"c", b"d", b".", b"..", b"%2e", b"%2F", b"%61", b"%25", b"A", b"//", b"..x", b"%00"]
)


@given(st.lists(_PIECES, max_size=12))
def test_prefix_and_rest_are_the_normal_path(pieces: list[bytes]) -> None:
    path = b"/" + b"".join(pieces)
    placed = TABLE.place(path)
    try:
        whole = normal(path)
    except BadPathError:
        assert placed.kind is TABLE._no_path
        return
    assert placed.mount.encode("latin-1") + placed.info == whole
    assert placed.info[:1] in (b"", b"/")
    # normal once, normal for good
    assert b"//" not in whole
    assert not {b".", b".."} & set(whole.split(b"/"))
    # no longer one would have fitted
    for prefix, (_, kind) in TABLE._kinds.items():
        if whole == prefix or whole.startswith(prefix + b"/"):
            assert len(prefix) < len(placed.mount) or kind is placed.kind


def test_the_longest_path_costs_no_more_than_reading_it() -> None:
    """A client chooses how many segments there are: the work grows with their bytes, not with their square."""
    deep = mounts_of("/", "/" + "/".join(["a"] * 127))

    def took(size: int) -> float:
        path = b"/a" * (size // 2)
        best = 10.0
        for _ in range(5):
            since = time.perf_counter()
            deep.place(path)
            best = min(best, time.perf_counter() - since)
        return best

    assert took(64000) < 300 * took(2000) + 0.05  # 32 times as long; its square: 1024
