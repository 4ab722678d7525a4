"""Static files: what is served, what isn't, and what a hostile path gets."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

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
    (root / 'o\r\nX: dd "\u00e9\\').mkdir()
    (root / "\\evil.example").mkdir()
    (root / "link_out").symlink_to("../secret")
    (root / "link_absolute").symlink_to(tmp_path / "secret")
    (root / "link_dir_out").symlink_to("..")
    (root / "link_in").symlink_to("sub/file.txt")
    (root / "link_to_itself_outside").symlink_to(root / "index.html")
    (root / "loop").symlink_to("loop")
    (root / ".well-known").mkdir()
    (root / ".well-known/token").write_bytes(b"token")
    (root / ".well-known/.secret").write_bytes(b"hidden")
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
        end = "" if "\r\n\r\n" in headers else "\r\n"
        sock.sendall(f"{method} {target} HTTP/1.1\r\nHost: a.test\r\n{headers}{end}".encode("latin-1"))
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
        ("/sub/../index.html", INDEX, "text/html; charset=utf-8"),
        ("/.git/../index.html", INDEX, "text/html; charset=utf-8"),
        ("/.", INDEX, "text/html; charset=utf-8"),
        ("//", INDEX, "text/html; charset=utf-8"),
        ("/sub/.", b"sub", "text/html; charset=utf-8"),
        ("//sub/", b"sub", "text/html; charset=utf-8"),
        ("/sub//file.txt", b"text", "text/plain; charset=utf-8"),
        ("/.well-known/token", b"token", "application/octet-stream"),
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
    ("target", "status"),
    [
        ("/none", 404),
        ("/none/", 404),
        ("/index.html/", 404),
        ("/index.html/x", 404),
        ("/sub/empty/", 403),
        ("/.hidden", 404),
        ("/%2ehidden", 404),
        ("/.git/config", 404),
        ("/.git/", 404),
        ("/sub/.well-known/x", 404),
        ("/.well-known/.secret", 404),
        ("/.well-knownx", 404),
        ("/../secret", 400),
        ("/..%2fsecret", 400),
        ("/%2e%2e/secret", 400),
        ("/%2e%2e%2fsecret", 400),
        ("/%2E%2E%2Fsecret", 400),
        ("/sub/..%2f..%2fsecret", 400),
        ("/sub/../../secret", 400),
        ("/..", 400),
        ("/sub/../..", 400),
        ("/./../secret", 400),
        ("//../secret", 400),
        ("/...", 404),
        ("/.../secret", 404),
        ("/..;/secret", 404),
        ("/..%5csecret", 404),
        ("/sub%5c..%5c..%5csecret", 404),
        ("///etc/passwd", 404),
        ("/%2fetc/passwd", 404),
        ("/index.html%00", 400),
        ("/%00", 400),
        ("/sub/file.txt%00.html", 400),
        ("/%252e%252e/secret", 404),
        ("/%252e%252e%252fsecret", 404),
        ("/%c0%ae%c0%ae/secret", 404),
        ("/%ef%bc%8e%ef%bc%8e/secret", 404),
        ("/link_out", 404),
        ("/link_absolute", 404),
        ("/link_dir_out/secret", 404),
        ("/link_dir_out/", 404),
        ("/link_dir_out", 404),
        ("/link_to_itself_outside", 404),
        ("/loop", 404),
        ("/loop/", 404),
        ("/fifo", 404),
        ("/fifo/", 404),
        ("/socket", 404),
        ("/" + "a" * 300, 404),
        ("/" + "a/" * 2000, 404),
    ],
)
def test_what_is_not_served(server: Server, target: str, status: int) -> None:
    for method in ("GET", "HEAD"):
        answer = ask(server, target, method)
        assert answer.status == status
        assert b"outside" not in answer.body
    assert (
        ask(server, target).body
        == {400: b"400 Bad Request\n", 403: b"403 Forbidden\n", 404: b"404 Not Found\n"}[status]
    )


@pytest.mark.root
def test_devices(server: Server, root: Path) -> None:
    os.mknod(root / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
    assert ask(server, "/device").status == 404


def test_the_root_is_held(server: Server, root: Path) -> None:
    root.rename(root.with_name("moved"))
    root.mkdir()
    assert ask(server, "/").body == INDEX


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/sub", "/sub/"),
        ("/sub?a=b", "/sub/?a=b"),
        ("/%73ub", "/sub/"),
        ("//sub", "/sub/"),
        ("///sub?a=%2f%0d%0ab", "/sub/?a=%2f%0d%0ab"),
        ("//evil.example%2f..%2fsub", "/sub/"),
        ("/sub/empty", "/sub/empty/"),
        ("/sub/.%2fempty?", "/sub/empty/"),
        ("/o%0d%0aX:%20dd%20%22%C3%A9%5c", "/o%0D%0AX:%20dd%20%22%C3%A9%5C/"),
        ("/%5cevil.example", "/%5Cevil.example/"),
        ("http://a.test/sub", "/sub/"),
    ],
)
def test_redirect_to_the_slash(server: Server, target: str, location: str) -> None:
    answer = ask(server, target)
    assert (answer.status, answer["Location"]) == (301, location)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods(server: Server, method: str) -> None:
    for target in ("/", "/none", "/sub"):
        answer = ask(server, target, method, "Content-Length: 0\r\n")
        assert (answer.status, answer["Allow"]) == (405, "GET, HEAD, OPTIONS")
        assert "ETag" not in answer


def test_options(server: Server) -> None:
    for target in ("/", "*", "/none"):
        answer = ask(server, target, "OPTIONS")
        assert (answer.status, answer["Allow"], answer.body) == (204, "GET, HEAD, OPTIONS", b"")


def test_a_body_of_get_is_read_and_ignored(server: Server) -> None:
    assert ask(server, "/", "GET", "Content-Length: 5\r\n\r\nhello").body == INDEX


def test_a_replaced_file_has_another_etag(server: Server, root: Path) -> None:
    assert ask(server, "/")["ETag"] == ask(server, "/")["ETag"]
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
