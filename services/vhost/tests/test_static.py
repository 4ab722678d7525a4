"""Static files: what is served, what isn't, and what a hostile path gets."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pyttpd_vhost.kinds.static import clean_path
from pyttpd_vhost.openat2 import Root

from .conftest import Answer, Client, Serve, Server, descriptors

INDEX = b"<html>index</html>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"outside")
    root = tmp_path / "root"
    (root / "sub/empty").mkdir(parents=True)
    (root / "index.html").write_bytes(INDEX)
    (root / "sub/index.html").write_bytes(b"sub")
    (root / "sub/file.txt").write_bytes(b"text")
    (root / "a b\u00e9%.txt").write_bytes(b"odd name")
    (root / ".hidden").write_bytes(b"hidden")
    (root / ".git").mkdir()
    (root / ".git/config").write_bytes(b"hidden")
    (root / "big.bin").write_bytes(bytes(range(256)) * 400)
    (root / "nothing.css").write_bytes(b"")
    (root / "link_out").symlink_to("../secret")
    (root / "link_absolute").symlink_to(tmp_path / "secret")
    (root / "link_dir_out").symlink_to("..")
    (root / "link_in").symlink_to("sub/file.txt")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(root)  # sun_path is short
        sock.bind("socket")
        os.chdir(here)
    return root


@pytest.fixture(params=["openat2", "steps"])
def server(
    serve: Serve, root: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Server:
    if request.param == "steps":
        monkeypatch.setattr(Root, "_open_by_openat2", _refused)
    return serve(root=root)


def _refused(_root: Root, _path: bytes) -> int:
    raise PermissionError  # as a seccomp filter does


def ask(server: Server, target: str, method: str = "GET", headers: str = "") -> Answer:
    with server.connect() as sock:
        sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: a.test\r\n{headers}\r\n".encode("latin-1"))
        client = Client(sock)
        answer = client.answer(method)
        # and the connection goes on
        sock.sendall(b"HEAD /sub/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert client.answer("HEAD").status == 200
        return answer


@pytest.mark.parametrize(
    ("target", "body", "kind"),
    [
        ("/", INDEX, "text/html; charset=utf-8"),
        ("/index.html", INDEX, "text/html; charset=utf-8"),
        ("/?query=/../..", INDEX, "text/html; charset=utf-8"),
        ("/sub/", b"sub", "text/html; charset=utf-8"),
        ("/sub/file.txt", b"text", "text/plain; charset=utf-8"),
        ("/%73ub%2Ffile.txt", b"text", "text/plain; charset=utf-8"),
        ("/a%20b%C3%A9%25.txt", b"odd name", "text/plain; charset=utf-8"),
        ("/big.bin", bytes(range(256)) * 400, "application/octet-stream"),
        ("/nothing.css", b"", "text/css; charset=utf-8"),
        ("http://a.test/sub/", b"sub", "text/html; charset=utf-8"),
    ],
)
def test_files(server: Server, target: str, body: bytes, kind: str) -> None:
    answer = ask(server, target)
    assert (answer.status, answer.body, answer["Content-Type"]) == (200, body, kind)
    head = ask(server, target, "HEAD")
    assert (head.status, head["Content-Length"]) == (200, str(len(body)))
    assert sorted(name for name, _ in head.headers) == sorted(name for name, _ in answer.headers)


def test_links_below_the_root(serve: Serve, root: Path) -> None:
    server = serve(root=root)
    if not server.site.kind._root.by_openat2:  # type: ignore[attr-defined]
        pytest.skip("no openat2 here")
    assert ask(server, "/link_in").body == b"text"


@pytest.mark.parametrize(
    "target",
    [
        "/none",
        "/none/",
        "/index.html/",
        "/index.html/x",
        "/sub/empty/",
        "/.hidden",
        "/%2ehidden",
        "/.git/config",
        "/sub/../index.html",
        "/../secret",
        "/..%2fsecret",
        "/%2e%2e/secret",
        "/%2e%2e%2fsecret",
        "/sub/..%2f..%2fsecret",
        "/.",
        "/..",
        "/sub/.",
        "//sub/",
        "/sub//file.txt",
        "///etc/passwd",
        "/%2fetc/passwd",
        "/index.html%00",
        "/%00",
        "/sub/file.txt%00.html",
        "/%252e%252e/secret",
        "/link_out",
        "/link_absolute",
        "/link_dir_out/secret",
        "/link_dir_out/",
        "/loop",
        "/fifo",
        "/socket",
        "/" + "a" * 300,
        "/" + "a/" * 2000,
    ],
)
def test_not_found(server: Server, target: str) -> None:
    answer = ask(server, target)
    assert answer.status == 404
    assert b"outside" not in answer.body
    assert answer.body == b"404 Not Found\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(server: Server, root: Path) -> None:
    (root / "index.html").chmod(0)
    assert ask(server, "/").status == 404


def test_the_root_is_held(server: Server, root: Path) -> None:
    root.rename(root.with_name("moved"))
    root.mkdir()
    assert ask(server, "/").body == INDEX


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/sub", "/sub/"),
        ("/sub?a=b", "/sub/?a=b"),
        ("/%73ub", "/%73ub/"),
        ("http://a.test/sub", "/sub/"),
    ],
)
def test_redirect_to_the_slash(server: Server, target: str, location: str) -> None:
    answer = ask(server, target)
    assert (answer.status, answer["Location"]) == (301, location)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods(server: Server, method: str) -> None:
    answer = ask(server, "/", method, "Content-Length: 0\r\n")
    assert (answer.status, answer["Allow"]) == (405, "GET, HEAD")


def test_conditions(server: Server) -> None:
    first = ask(server, "/")
    etag, modified = first["ETag"], first["Last-Modified"]
    for headers, status in (
        (f"If-None-Match: {etag}\r\n", 304),
        (f'If-None-Match: "x", W/{etag}\r\n', 304),
        ("If-None-Match: *\r\n", 304),
        ('If-None-Match: "x"\r\n', 200),
        (f'If-None-Match: "x"\r\nIf-Modified-Since: {modified}\r\n', 200),
        (f"If-Modified-Since: {modified}\r\n", 304),
        ("If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n", 200),
        ("If-Modified-Since: yesterday\r\n", 200),
        ("If-Modified-Since: Thu, 99 Foo 1970 00:00:00 GMT\r\n", 200),
        ("If-Modified-Since: Thu, 01 Jan 1970 77:00:00 GMT\r\n", 200),
    ):
        answer = ask(server, "/", "GET", headers)
        assert answer.status == status, headers
        assert answer["ETag"] == etag
        assert answer["Last-Modified"] == modified
        assert answer.body == (INDEX if status == 200 else b"")


def test_a_replaced_file_has_another_etag(server: Server, root: Path) -> None:
    before = ask(server, "/")["ETag"]
    (root / "new").write_bytes(INDEX)
    (root / "new").rename(root / "index.html")
    assert ask(server, "/")["ETag"] != before


def test_a_file_that_shrinks_while_it_is_sent_ends_the_connection(serve: Serve, root: Path) -> None:
    big = root / "shrinking.bin"
    big.write_bytes(bytes(30_000_000))
    server = serve(root=root)
    with server.connect() as sock:
        sock.sendall(b"GET /shrinking.bin HTTP/1.1\r\nHost: a.test\r\n\r\n" * 2)
        got = len(sock.recv(1000))
        os.truncate(big, 1000)
        while data := sock.recv(1 << 20):
            got += len(data)
    assert got < 30_000_000
    assert server.site.stats.gone == 1


def test_descriptors_are_given_back(server: Server) -> None:
    ask(server, "/")
    server.wait_closed()
    before = descriptors()
    for target in ("/", "/big.bin", "/sub", "/none", "/fifo", "/link_out", "/nothing.css"):
        for method in ("GET", "HEAD"):
            ask(server, target, method)
    with server.connect() as sock:
        sock.sendall(b"GET /big.bin HTTP/1.1\r\nHost: a.test\r\n\r\n" * 100)
    server.wait_closed()
    assert descriptors(before) == before


def test_clean_path_needs_a_slash() -> None:
    assert clean_path(b"*") is None
    assert clean_path(b"/") == b""


def test_both_ways_to_open_refuse_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_openat2 = Root(str(root))
    monkeypatch.setattr(Root, "_open_by_openat2", _refused)
    by_steps = Root(str(root))
    monkeypatch.undo()
    assert not by_steps.by_openat2
    for way in (by_openat2, by_steps):
        for path in (
            b"../secret",
            b"sub/../../secret",
            b"/etc/passwd",
            b"link_out",
            b"link_absolute",
            b"link_dir_out/secret",
            b"none",
        ):
            with pytest.raises(OSError):
                os.close(way.open(path))
        got = way.open(b"sub/file.txt")
        assert os.read(got, 100) == b"text"
        os.close(got)
