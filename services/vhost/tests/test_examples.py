"""The example tenants, as their visitors see them, under wsgiref's validator."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from wsgiref.validate import validator

import pytest

from .conftest import HOST, Answer, Client, Serve, Server

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_wsgi_app", EXAMPLES / "wsgi/app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(serve: Serve, example: ModuleType) -> Server:
    return serve(validator(example.application), body_limit=20_000_000)


def ask(server: Server, method: str, target: str, body: bytes = b"", kind: str = "") -> Answer:
    with server.connect() as sock:
        head = f"{method} {target} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n"
        sock.sendall((head + (f"Content-Type: {kind}\r\n" if kind else "") + "\r\n").encode() + body)
        return Client(sock).answer(method)


def multipart(name: str, content: bytes) -> bytes:
    return (
        b'--xyz\r\nContent-Disposition: form-data; name="text"\r\n\r\nx\r\n'
        b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="' + name.encode() + b'"\r\n\r\n'
        b"" + content + b"\r\n--xyz--\r\n"
    )


def test_every_link_of_the_front_page_works(server: Server) -> None:
    page = ask(server, "GET", "/").body.decode()
    links = [part.partition('"')[0] for part in page.split('href="')[1:]]
    assert len(links) == 5
    for link in links:
        assert ask(server, "HEAD", link).status == 200, link
    assert "wsgi" in page
    assert server.site.stats.errors == 0


def test_form(server: Server) -> None:
    for answer in (
        ask(server, "GET", "/form?name=%3Cb%3E&message=%22hi%22"),
        ask(server, "POST", "/form", b"name=%3Cb%3E&message=%22hi%22", "application/x-www-form-urlencoded"),
    ):
        assert answer.status == 200
        assert b"<output>&lt;b&gt;: &quot;hi&quot;</output>" in answer.body
    assert ask(server, "POST", "/form", b"x" * 70_000).status == 413
    assert ask(server, "DELETE", "/form")["Allow"] == "GET, POST, HEAD"


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_upload(server: Server, size: int) -> None:
    content = (b"\r\n--xy" * (size // 6 + 1))[:size]
    shown = f"size: {size}\nsha256: {hashlib.sha256(content).hexdigest()}".encode()
    answer = ask(
        server, "POST", "/upload", multipart("<a>.bin", content), "multipart/form-data; boundary=xyz"
    )
    assert answer.status == 200
    assert b"name: &lt;a&gt;.bin\n" + shown in answer.body
    assert shown in ask(server, "PUT", "/upload", content).body


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"x", "text/plain"),
        (b"x", "multipart/form-data"),
        (b"--xyz", "multipart/form-data; boundary=xyz"),
        (multipart("a", b"b")[:-10], "multipart/form-data; boundary=xyz"),
        (b"--xyz\r\n" + b"A: b\r\n" * 2000, "multipart/form-data; boundary=xyz"),
        (b"--xyz--\r\n", "multipart/form-data; boundary=xyz"),
    ],
)
def test_uploads_that_are_none(server: Server, body: bytes, kind: str) -> None:
    assert ask(server, "POST", "/upload", body, kind).status == 400


def test_stream(server: Server) -> None:
    with server.connect() as sock:
        start = time.monotonic()
        sock.sendall(b"GET /stream HTTP/1.1\r\nHost: a.test\r\n\r\n")
        data = b""
        while b"line 2" not in data:
            data += sock.recv(1000)
        assert 0.2 < time.monotonic() - start < 1.5


def test_slow(server: Server) -> None:
    start = time.monotonic()
    assert ask(server, "GET", "/slow?seconds=0.2").status == 200
    assert time.monotonic() - start >= 0.2
    for seconds in ("11", "-1", "x", "nan"):
        assert ask(server, "GET", f"/slow?seconds={seconds}").status == 400


def test_environ_shows_the_client(server: Server) -> None:
    assert b"REMOTE_ADDR: 127.0.0.1\n" in ask(server, "GET", "/environ").body
    assert ask(server, "GET", "/none").status == 404


def test_the_static_site(serve: Serve, tmp_path: Path) -> None:
    server = serve(root=EXAMPLES / "static/site")
    for target, kind in (
        ("/", "text/html; charset=utf-8"),
        ("/about.html", "text/html; charset=utf-8"),
        ("/docs/", "text/html; charset=utf-8"),
        ("/style.css", "text/css; charset=utf-8"),
        ("/logo.png", "image/png"),
        ("/robots.txt", "text/plain; charset=utf-8"),
        ("/404.html", "text/html; charset=utf-8"),
        ("/files/tenants.csv", "text/csv; charset=utf-8"),
    ):
        answer = ask(server, "GET", target)
        assert (answer.status, answer["Content-Type"]) == (200, kind)
    command = [sys.executable, str(EXAMPLES / "static/generate.py"), str(tmp_path)]
    subprocess.run(command, check=True)
    content = (tmp_path / "download.bin").read_bytes()
    assert len(content) == 10 * 1024 * 1024
    assert hashlib.sha256(content).hexdigest().startswith("1ac70c8beaaef0c2")
    shutil.copy(EXAMPLES / "static/site/style.css", tmp_path)
    subprocess.run(command, check=True)
    assert gzip.decompress((tmp_path / "style.css.gz").read_bytes()) == (tmp_path / "style.css").read_bytes()
    server = serve(root=tmp_path)
    assert ask(server, "GET", "/download.bin").body == content
