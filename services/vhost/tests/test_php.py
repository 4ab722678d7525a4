"""PHP itself, by php-cgi, behind the kind fastcgi."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .backends import fastcgi
from .conftest import HOST, Answer, Client, Serve, Server
from .test_wsgi import ask

pytestmark = [pytest.mark.program("php-cgi")]

Php = Callable[..., str]
#: Larger than any buffer on the way.
LARGE = 20_000_000


@pytest.fixture
def php(tmp_path: Path) -> Iterator[Php]:
    """Start php-cgi on a Unix socket as descriptor 0, as the execution manager does; return the socket's path."""
    with contextlib.ExitStack() as stack:

        def start(*options: str, children: int = 0) -> str:
            path = tmp_path / "php.sock"
            listener = socket.socket(socket.AF_UNIX)
            stack.callback(listener.close)
            listener.bind(str(path))
            listener.listen()
            process = subprocess.Popen(
                ["php-cgi", "-d", f"session.save_path={tmp_path}", "-d", "post_max_size=64M", *options],
                stdin=listener.fileno(),
                start_new_session=True,
                env={
                    "PATH": os.environ["PATH"],
                    "TMPDIR": str(tmp_path),
                    "PHP_FCGI_MAX_REQUESTS": "0",
                    "PHP_FCGI_CHILDREN": str(children),
                },
            )
            stack.callback(process.wait)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
            return str(path)

        yield start


@pytest.fixture
def site(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    root.mkdir()
    return root


def serve_php(
    serve: Serve, path: str, root: Path, http: Any = None, share: Any = None, **settings: Any
) -> Server:
    made: dict[str, Any] = {"scripts": (".php",), "index": ("index.php", "index.html"), **settings}
    return serve(kind=fastcgi(path, str(root), **made), share=share, **(http or {}))


def told(server: Server) -> list[tuple[str, str, dict[str, object]]]:
    """What the log says."""
    return server.site.log.lines  # type: ignore[attr-defined, no-any-return]


def said(server: Server) -> list[object]:
    """What the application has written to its standard error."""
    return [fields["line"] for _, event, fields in told(server) if event == "output"]


def every(answer: Answer, name: str) -> list[str]:
    return [value for key, value in answer.headers if key.lower() == name]


def test_variables(serve: Serve, php: Php, site: Path) -> None:
    """PHP sees what it sees behind nginx or Apache; and nothing that could pass for something else."""
    (site / "sub").mkdir()
    (site / "sub" / "page.php").write_text(
        "<?php echo json_encode([$_SERVER, $_GET, $_POST, getenv('HTTP_PROXY')]);"
    )
    server = serve_php(serve, php(), site)
    answer = ask(
        server,
        "POST",
        "/sub/page.php/a%20b/caf%C3%A9?x=1&y[]=2",
        b"z=3",
        "Content-Type: application/x-www-form-urlencoded\r\nX-Real: yes\r\nX_Real: no\r\nX.Real: no\r\nProxy: evil\r\n"
        "X-Forwarded-For: 6.6.6.6\r\nAuthorization: Basic YTpi\r\nCookie: a=1\r\nCookie: b=2\r\n",
    )
    seen, get, post, proxy = json.loads(answer.body)
    assert (get, post, proxy) == ({"x": "1", "y": ["2"]}, {"z": "3"}, False)
    expected = {
        "SCRIPT_NAME": "/sub/page.php",
        "PATH_INFO": "/a b/café",
        "PHP_SELF": "/sub/page.php/a b/café",
        "SCRIPT_FILENAME": f"{site}/sub/page.php",
        "PATH_TRANSLATED": f"{site}/a b/café",
        "DOCUMENT_ROOT": str(site),
        "REQUEST_URI": "/sub/page.php/a%20b/caf%C3%A9?x=1&y[]=2",
        "QUERY_STRING": "x=1&y[]=2",
        "REQUEST_METHOD": "POST",
        "CONTENT_LENGTH": "3",
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": HOST,
        "SERVER_PORT": "80",
        "SERVER_ADDR": "127.0.0.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REQUEST_SCHEME": "http",
        "HTTP_HOST": HOST,
        "HTTP_X_REAL": "yes",
        "HTTP_COOKIE": "a=1; b=2",
        "PHP_AUTH_USER": "a",
    }
    assert {key: seen.get(key) for key in expected} == expected
    assert not {"HTTP_PROXY", "HTTP_X_FORWARDED_FOR", "REMOTE_USER", "HTTPS", "HTTP_CONTENT_LENGTH"} & set(
        seen
    )


def test_a_root_of_any_letters(serve: Serve, php: Php, tmp_path: Path) -> None:
    root = tmp_path / "größe €"
    root.mkdir()
    (root / "index.php").write_text(
        "<?php echo json_encode([$_SERVER['DOCUMENT_ROOT'], $_SERVER['SCRIPT_FILENAME'], $_SERVER['PATH_TRANSLATED']]);"
    )
    answer = ask(serve_php(serve, php(), root), "GET", "/index.php/x")
    assert (answer.status, json.loads(answer.body)) == (200, [str(root), f"{root}/index.php", f"{root}/x"])


def test_paths(serve: Serve, php: Php, site: Path, tmp_path: Path) -> None:
    """Scripts run, and nothing else does."""
    for name in ("index.php", "page.php", "folder/index.php", ".hidden/x.php", "dir.php/inner.php"):
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(f"<?php echo '{name} ', $_SERVER['PATH_INFO'] ?? '';")
    (site / "image.jpg").write_text("<?php echo 'an image that runs';")
    for name in ("config.php~", "config.php.bak", "PAGE.PHP", ".htaccess", "plain/index.html"):
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text("plain")
    (tmp_path / "outside.php").write_text("<?php echo 'outside';")
    (site / "out").symlink_to(tmp_path)
    (site / "link.php").symlink_to("page.php")
    server = serve_php(serve, php(), site)
    cases = {
        "/": "index.php ",
        "/index.php": "index.php ",
        "/page.php/": "page.php /",
        "/page.php/x.php/y": "page.php /x.php/y",
        "/page.php/.NET": "page.php /.NET",
        "/folder/": "folder/index.php ",
        "/folder/../page.php": "page.php ",
        "//page.php": "page.php ",
        "/dir.php/inner.php/a": "dir.php/inner.php /a",
        "/link.php": "page.php ",
        "/image.jpg/x.php": 404,
        "/image.jpg": "<?php echo 'an image that runs';",
        "/config.php~": 404,
        "/config.php.bak": 404,
        "/PAGE.PHP": 404,
        "/plain/": "plain",
        "/.htaccess": 404,
        "/image.jpg%00.php": 400,
        "/page.php%00": 400,
        "/missing.php": 404,
        "/.hidden/x.php": 404,
        "/out/outside.php": 404,
        "/../outside.php": 400,
        "/%2e%2e/outside.php": 400,
        "/page.php.": 404,
        "/page.phps": 404,
        "/nothing/": 404,
    }
    for target, expected in cases.items():
        answer = ask(server, target=target)
        assert (answer.body.decode() if answer.status == 200 else answer.status) == expected, target
    for folder in ("folder", "plain"):
        moved = ask(server, target=f"/{folder}?a=b")
        assert (moved.status, moved["location"]) == (301, f"/{folder}/?a=b")
    assert ask(server, "POST", "/image.jpg", b"x").status == 405


def test_a_script_becomes_a_file_and_a_file_a_script(serve: Serve, php: Php, site: Path) -> None:
    """Also for heads that are remembered."""
    server = serve_php(serve, php(), site)
    for _ in range(2):
        (site / "index.php").write_text("<?php echo 'script';")
        assert [ask(server).body for _ in range(4)] == [b"script"] * 4
        (site / "index.php").unlink()
        (site / "index.html").write_text("file")
        assert [ask(server).body for _ in range(4)] == [b"file"] * 4


def test_front_controller(serve: Serve, php: Php, site: Path) -> None:
    """What no script is leads to the one that is for all paths, as under nginx's try_files."""
    (site / "index.php").write_text(
        "<?php echo $_SERVER['REQUEST_URI'], ' ', $_SERVER['SCRIPT_NAME'], ' ', $_GET['q'] ?? '';"
    )
    (site / "other.php").write_text("<?php echo 'other';")
    server = serve_php(serve, php(), site, front_controller="index.php")
    for target, expected in {
        "/blog/2024/?q=1": "/blog/2024/?q=1 /index.php 1",
        "/missing.php": "/missing.php /index.php ",
        "/.well-known/x": "/.well-known/x /index.php ",
        "/.git/config": "/.git/config /index.php ",
        "/other.php": "other",
        "/": "/ /index.php ",
    }.items():
        assert ask(server, target=target).body.decode() == expected


def test_status_headers_cookies_redirects(serve: Serve, php: Php, site: Path) -> None:
    (site / "status.php").write_text(
        "<?php http_response_code((int)$_GET['c']); header('X-A: 1'); header('X-A: 2', false);"
    )
    (site / "cookies.php").write_text("<?php setcookie('a', '1'); setcookie('b', '2'); echo 'x';")
    (site / "redirect.php").write_text("<?php header('Location: ' . $_GET['to']); ?>moved")
    (site / "inject.php").write_text(
        '<?php @header("X-A: 1\\r\\nX-Evil: 1"); @header("X-B: 1\\nX-Evil: 1"); echo \'x\';'
    )
    (site / "empty.php").write_text("")
    server = serve_php(serve, php(), site)
    for code in (200, 201, 204, 304, 404, 410, 418, 500, 503):
        answer = ask(server, target=f"/status.php?c={code}")
        assert (answer.status, answer.whole) == (code, True)
        assert every(answer, "x-a") == ["1", "2"]
    assert every(ask(server, target="/cookies.php"), "set-cookie") == ["a=1", "b=2"]
    for to in ("/page", "https://other.example/", "page"):
        answer = ask(server, target=f"/redirect.php?to={to}")
        assert (answer.status, answer["location"], answer.body) == (302, to, b"moved")
    answer = ask(server, target="/inject.php")
    assert "x-evil" not in answer
    assert ask(server, target="/empty.php").body == b""
    assert ask(server, "HEAD", "/cookies.php").status == 200


def test_sessions(serve: Serve, php: Php, site: Path) -> None:
    (site / "index.php").write_text("<?php session_start(); echo $_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1;")
    server = serve_php(serve, php(), site)
    first = ask(server)
    cookie = first["set-cookie"].partition(";")[0]
    bodies = [first.body, *(ask(server, headers=f"Cookie: {cookie}\r\n").body for _ in range(2))]
    assert bodies == [b"1", b"2", b"3"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_upload(serve: Serve, php: Php, site: Path, *, chunked: bool) -> None:
    """A form's file, passed on as it comes; a chunked one is kept until its length is known."""
    (site / "index.php").write_text(
        "<?php $f = $_FILES['f']; echo $f['name'], ' ', $f['size'], ' ', sha1_file($f['tmp_name']), ' ', $_POST['t'];"
    )
    server = serve_php(serve, php("-d", "upload_max_filesize=64M"), site, {"body_limit": 64_000_000})
    content = os.urandom(1000) * (LARGE // 1000)
    form = (
        b'--XX\r\nContent-Disposition: form-data; name="t"\r\n\r\ntext\r\n'
        b'--XX\r\nContent-Disposition: form-data; name="f"; filename="a.bin"\r\n\r\n'
        + content
        + b"\r\n--XX--\r\n"
    )
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(form)}"
    with server.connect() as sock:
        sock.sendall(
            f"POST / HTTP/1.1\r\nHost: {HOST}\r\n{framing}\r\n".encode()
            + b"Content-Type: multipart/form-data; boundary=XX\r\n\r\n"
        )
        if chunked:
            for start in range(0, len(form), 100_000):
                piece = form[start : start + 100_000]
                sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
            sock.sendall(b"0\r\n\r\n")
        else:
            sock.sendall(form)
        answer = Client(sock).answer()
    digest = hashlib.sha1(content).hexdigest()
    assert answer.body.decode() == f"a.bin {LARGE} {digest} text"


def test_a_large_answer(serve: Serve, php: Php, site: Path) -> None:
    (site / "index.php").write_text(
        "<?php for ($i = 0; $i < 2000; $i++) echo str_repeat(chr($i % 256), 10000);"
    )
    server = serve_php(serve, php(), site)
    answer = ask(server)
    assert answer.whole
    assert answer.body == b"".join(bytes([i % 256]) * 10000 for i in range(2000))


def test_what_is_flushed_is_sent(serve: Serve, php: Php, site: Path) -> None:
    """The second piece is said when the client has got the first one."""
    go_on = site / "go-on"
    (site / "index.php").write_text(
        "<?php echo 'first'; flush(); while (!file_exists('go-on')) { usleep(5000); clearstatcache(); } echo 'second';"
    )
    server = serve_php(serve, php("-d", "output_buffering=0"), site)
    with server.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while b"first" not in data:
            data += sock.recv(65536)
        go_on.touch()
        while piece := sock.recv(65536):
            data += piece
    assert b"second" in data


def test_errors_go_to_the_tenants_log(serve: Serve, php: Php, site: Path) -> None:
    (site / "index.php").write_text(
        "<?php error_log(\"line\\x1b[31m\"); trigger_error('oh', E_USER_WARNING); echo 'x';"
    )
    (site / "broken.php").write_text("<?php this is no PHP")
    server = serve_php(serve, php("-d", "log_errors=1", "-d", "error_log=", "-d", "display_errors=0"), site)
    assert ask(server).body == b"x"
    text = "\n".join(map(str, said(server)))
    assert "/: line" in text
    assert "oh" in text
    assert ask(server, target="/broken.php").status == 500
    assert "syntax error" in "\n".join(map(str, said(server)))


def test_a_process_that_dies(serve: Serve, php: Php, site: Path) -> None:
    """Before a word: 502. In the middle: a body that is cut."""
    (site / "before.php").write_text("<?php exec('kill -9 ' . getmypid());")
    wait = "while (!file_exists('go-on')) { usleep(5000); clearstatcache(); }"
    (site / "after.php").write_text(f"<?php echo 'half'; flush(); {wait} exec('kill -9 ' . getmypid());")
    server = serve_php(serve, php("-d", "output_buffering=0", children=2), site)
    assert ask(server, target="/before.php").status == 502
    with server.connect() as sock:
        sock.sendall(f"GET /after.php HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        data = b""
        while b"half" not in data:
            data += sock.recv(65536)
        (site / "go-on").touch()
        while piece := sock.recv(65536):
            data += piece
    assert data.startswith(b"HTTP/1.1 200 ")
    assert data.endswith(b"4\r\nhalf\r\n")
    assert [fields["reason"] for _, event, fields in told(server) if event == "application failed"] == [
        "died"
    ] * 2


def test_a_client_that_leaves(serve: Serve, php: Php, site: Path) -> None:
    """The script is told, and its process serves the next one."""
    mark = site / "aborted"
    (site / "index.php").write_text(
        "<?php register_shutdown_function(function () { touch(__DIR__ . '/aborted'); });"
        "while (true) { echo str_repeat('x', 10000); flush(); }"
    )
    (site / "next.php").write_text("<?php echo 'next';")
    server = serve_php(serve, php(), site)
    with server.connect() as sock:
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        sock.recv(1000)
    end = time.monotonic() + 20
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert mark.exists()
    assert ask(server, target="/next.php").body == b"next"
    assert "application failed" not in [event for _, event, _ in told(server)]


@pytest.mark.parametrize("keep", [0, 1])
def test_kept_connections(serve: Serve, php: Php, site: Path, keep: int) -> None:
    (site / "index.php").write_text("<?php echo getmypid();")
    server = serve_php(serve, php(), site, keep_connections=keep)
    with server.connect() as sock:
        client = Client(sock)
        pids = set()
        for _ in range(20):
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            pids.add(client.answer().body)
    assert len(pids) == 1
