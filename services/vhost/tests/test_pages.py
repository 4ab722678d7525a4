"""Error pages: whose words a refusal or a fault is told in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pyttpd.config.limits import MAX_ERROR_PAGE_BYTES

from pyttpd_vhost import openat2
from pyttpd_vhost.kinds.wsgi import WsgiKind
from pyttpd_vhost.pages import ErrorPages
from pyttpd_vhost.site import Site

from .conftest import Client, ListLog, Server, close, descriptors, make_share, serves

PAGES = {"404": "errors/404.html", "5xx": ".sorry.txt", "502": "missing.html", "400": "errors/400.json"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "errors").mkdir(parents=True)
    (root / "errors/404.html").write_bytes(b"<p>not here")
    (root / "errors/400.json").write_bytes(b"{}")
    (root / ".sorry.txt").write_bytes(b"sorry")
    return root


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files count as left alone although they are new."""
    monkeypatch.setattr(openat2, "_SETTLED_NS", -(10**18))


def make(root: Path, log: ListLog) -> ErrorPages:
    return ErrorPages(make_share(root=str(root), error_pages=PAGES), log)


def test_which_page(root: Path) -> None:
    log = ListLog()
    pages = make(root, log)
    assert log.events() == ["error page not read"]  # at the start already
    fields, content = pages.page(404, [("Allow", "GET")])
    assert (fields.text, content) == (
        "Content-Type: text/html; charset=utf-8\r\nAllow: GET\r\n",
        b"<p>not here",
    )
    assert pages.page(500)[1] == b"sorry"
    assert pages.page(503)[1] == b"sorry"
    assert pages.page(502)[1] == b"502 Bad Gateway\n"  # its own is missing; that is told once
    assert pages.page(502)[1] == b"502 Bad Gateway\n"
    assert pages.page(405)[1] == b"405 Method Not Allowed\n"
    assert pages.page(400)[0].text == "Content-Type: application/json; charset=utf-8\r\n"
    assert log.events() == ["error page not read"]


@pytest.mark.parametrize("settled", [False, True])
def test_pages_that_change(root: Path, settled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if settled:
        settle(monkeypatch)
    log = ListLog()
    pages = make(root, log)
    page = root / "errors/404.html"
    before = descriptors()
    for round_ in range(3):
        (root / "new").write_bytes(b"%d" % round_)
        (root / "new").rename(page)
        assert pages.page(404)[1] == b"%d" % round_
        assert pages.page(404)[1] == b"%d" % round_
        page.unlink()
        assert pages.page(404)[1] == b"404 Not Found\n"
        assert log.events().count("error page not read") == 2 + round_
    assert descriptors() == before


def test_a_page_is_not_read_again_for_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(monkeypatch)
    pages = make(root, ListLog())
    monkeypatch.setattr(os, "pread", None)
    assert pages.page(404)[1] == b"<p>not here"
    assert pages.page(404)[1] is pages.page(404)[1]


def test_what_is_no_page(root: Path, tmp_path: Path) -> None:
    page = root / "errors/404.html"
    (tmp_path / "secret").write_bytes(b"secret")

    def link_out() -> None:
        page.symlink_to(tmp_path / "secret")

    def folder() -> None:
        page.mkdir()

    def fifo() -> None:
        os.mkfifo(page)

    def large() -> None:
        page.touch()
        os.truncate(page, MAX_ERROR_PAGE_BYTES + 1)

    pages = make(root, ListLog())
    for number, wrong in enumerate((link_out, folder, fifo, large)):
        page.rename(root / str(number))
        wrong()
        assert pages.page(404)[1] == b"404 Not Found\n", wrong


def test_refusals_and_faults_have_them(root: Path) -> None:
    def application(environ: object, start_response: object) -> list[bytes]:
        raise RuntimeError

    site = Site(make_share(root=str(root), error_pages=PAGES), ListLog())
    site.page = make(root, ListLog()).page
    site.kind = WsgiKind(application, site)
    server = Server(site)
    server.start()
    try:
        with server.connect() as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            client = Client(sock)
            answer = client.answer()
            assert (answer.status, answer.body) == (500, b"sorry")
            sock.sendall(b"HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert client.answer("HEAD")["Content-Length"] == "5"
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a.test\r\nBad Name: x\r\n\r\n")
            answer = client.answer()
            assert (answer.status, answer.body) == (400, b"{}")
    finally:
        server.stop()


def test_the_site_makes_them(root: Path) -> None:
    share = make_share(**serves(root), error_pages=PAGES)
    site = Site(share, ListLog())
    site.load()
    assert site.page(404)[1] == b"<p>not here"
    close(site)


def test_settled() -> None:
    class Status:
        st_ctime_ns = 0

    assert openat2.settled(Status)  # type: ignore[arg-type]
    for age in (0, 1_000_000_000, -5):
        Status.st_ctime_ns = time.time_ns() - age
        assert not openat2.settled(Status)  # type: ignore[arg-type]
