"""What a person clicks through on the example tenants, one function for each kind: for the tree of plain processes and
for the one in containers alike.

    TOURS["fastcgi"](tree)                  # asks fastcgi.localhost
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from support.tree import Answer

UPLOAD_BYTES = 2_000_000


class Asked(Protocol):
    """What a tree and a deployment have in common."""

    def connect(self) -> socket.socket: ...

    def get(self, host: str, path: str = "/") -> Answer: ...

    def request(
        self,
        method: str,
        host: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer: ...


def front_page(tree: Asked, kind: str, *, least: int = 4) -> None:
    """Every first page names its kind, and what it links to is there."""
    host = f"{kind}.localhost"
    answer = tree.get(host)
    text = answer.body.decode()
    assert answer.status == 200, text
    assert answer.headers["content-type"].startswith("text/html")
    assert f"<strong>{kind}</strong>" in text
    links = re.findall(r'<a href="([^":]+)"', text)
    assert len(links) >= least
    for link in links:
        if "stream" not in link:  # takes its time, and is asked below
            found = tree.get(host, link if link.startswith("/") else f"/{link}")
            assert found.status in (200, 302), f"{link}: {found.status}"
    assert tree.request("HEAD", host, "/").body == b""


def form(tree: Asked, host: str, path: str) -> None:
    """What is written into the form comes back, and does no harm."""
    fields = b"name=Ada&message=a%20%3Cb%3E%20%C3%A9"
    posted = tree.request(
        "POST", host, path, fields, {"Content-Type": "application/x-www-form-urlencoded"}
    ).body.decode()
    assert "<p>POST said:</p><output>Ada: a &lt;b&gt; \u00e9</output>" in posted
    asked = tree.get(host, f"{path}?{fields.decode()}").body.decode()
    assert "<p>GET said:</p><output>Ada: a &lt;b&gt; \u00e9</output>" in asked


def upload(tree: Asked, host: str, path: str, *, method: str = "PUT") -> None:
    """A file arrives whole."""
    content = os.urandom(UPLOAD_BYTES)
    body, headers = content, {}
    if method == "POST":
        body = (
            b'--edge\r\nContent-Disposition: form-data; name="file"; filename="some.bin"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n" + content + b"\r\n--edge--\r\n"
        )
        headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    text = tree.request(method, host, path, body, headers).body.decode()
    assert f"size: {UPLOAD_BYTES}" in text
    assert f"sha256: {hashlib.sha256(content).hexdigest()}" in text


def stream(tree: Asked, host: str, path: str) -> None:
    """Lines come while they are made. A client that has seen enough of them leaves, and nobody minds."""
    with tree.connect() as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        text = b""
        for number in (1, 3):
            while b"line %d of 10" % number not in text:
                data = client.recv(65536)
                assert data, text
                text += data
            assert b"line 10 of 10" not in text, "all at once"


# ---- WebSockets (RFC 6455), as much of them as it takes --------------------------------------------------------------


class WebSocket:
    """A client of a WebSocket, for short texts."""

    def __init__(self, sock: socket.socket, host: str, path: str) -> None:
        self._sock = sock
        self._data = b""
        key = base64.b64encode(os.urandom(16)).decode()
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        while b"\r\n\r\n" not in self._data:
            self._more()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        assert base64.b64encode(digest) in head

    def _more(self) -> None:
        data = self._sock.recv(65536)
        assert data, self._data
        self._data += data

    def _take(self, count: int) -> bytes:
        while len(self._data) < count:
            self._more()
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def say(self, text: str) -> None:
        self._send(0x1, text.encode())

    def hear(self) -> str:
        """Return the next text."""
        while True:
            first, length = self._take(2)
            assert not length & 0x80, "a server masks nothing"
            if length == 126:
                (length,) = struct.unpack("!H", self._take(2))
            content = self._take(length)
            match first & 0x0F:
                case 0x1:
                    return content.decode()
                case 0x9:
                    self._send(0xA, content)
                case other:
                    raise AssertionError(f"a frame of type {other}: {content!r}")

    def leave(self) -> int:
        """Close in order, and return the code that comes back."""
        self._send(0x8, struct.pack("!H", 1000))
        while True:
            first, length = self._take(2)
            content = self._take(length)
            if first & 0x0F == 0x8:
                return int(struct.unpack("!H", content[:2])[0])

    def _send(self, kind: int, content: bytes) -> None:
        assert len(content) < 126
        mask = os.urandom(4)
        masked = bytes([byte ^ mask[number % 4] for number, byte in enumerate(content)])
        self._sock.sendall(bytes([0x80 | kind, 0x80 | len(content)]) + mask + masked)


@contextmanager
def websocket(tree: Asked, host: str, path: str) -> Iterator[WebSocket]:
    with tree.connect() as sock:
        yield WebSocket(sock, host, path)


# ---- the tours -----------------------------------------------------------------------------------------------------


def asgi(tree: Asked) -> None:
    host = "asgi.localhost"
    front_page(tree, "asgi")
    form(tree, host, "/form")
    upload(tree, host, "/upload")
    stream(tree, host, "/stream")
    scope = json.loads(tree.get(host, "/scope").body)
    assert (scope["type"], scope["method"], scope["path"], scope["started"]) == ("http", "GET", "/scope", 1)
    with websocket(tree, host, "/room") as one:
        assert one.hear().startswith("somebody came; ")
        one.say("hello \u00e9")
        assert one.hear() == "hello \u00e9"
        assert one.leave() == 1000


def cgi(tree: Asked) -> None:
    host = "cgi.localhost"
    front_page(tree, "cgi")
    form(tree, host, "/form.pl")
    upload(tree, host, "/upload.py")
    stream(tree, host, "/stream.pl")
    told = tree.get(host, "/environment.pl/some/p%61th?red+green").body.decode()
    assert "\nSCRIPT_NAME: /environment.pl\n" in told
    assert "\nPATH_INFO: /some/path\n" in told
    assert "\nwords: red green\n" in told
    away = tree.get(host, "/away.pl")
    assert (away.status, away.headers["location"]) == (302, f"http://{host}/")
    local = tree.get(host, "/away.pl?local")
    assert (local.status, b"<strong>cgi</strong>" in local.body) == (200, True)
    for path in ("/", "/form.pl", "/upload.py"):
        assert b"#!/usr/bin" not in tree.get(host, path).body, "a program's source"
    assert tree.get(host, "/none.pl").status == 404


def fastcgi(tree: Asked) -> None:
    host = "fastcgi.localhost"
    front_page(tree, "fastcgi")
    form(tree, host, "/form.php")
    upload(tree, host, "/upload.php", method="POST")
    stream(tree, host, "/stream.php")
    told = tree.get(host, "/server.php/some/p%61th?a=b").body.decode()
    assert "\nSCRIPT_NAME: /server.php\n" in told
    assert "\nPATH_INFO: /some/path\n" in told
    # the front controller, and files that are files
    assert b"Hello, you!" in tree.get(host, "/hello/you").body
    assert tree.get(host, "/none").status == 404
    style = tree.get(host, "/style.css")
    assert (style.headers["content-type"], style.status) == ("text/css; charset=utf-8", 200)
    # a session is kept by whichever process is asked
    first = tree.get(host, "/visits.php")
    assert b"<output>1</output>" in first.body
    cookie = first.headers["set-cookie"].partition(";")[0]
    for number in (2, 3, 4):
        again = tree.request("GET", host, "/visits.php", headers={"Cookie": cookie})
        assert b"<output>%d</output>" % number in again.body
    # nobody sees the source
    for path in (
        "/index.php",
        "/INDEX.PHP",
        "/index.php%20",
        "/index.php.",
        "/lib.inc.php",
        "/index.php/x.php",
        "/x/..%2findex.php",
    ):
        assert b"<?php" not in tree.get(host, path).body, path


def scgi(tree: Asked) -> None:
    host = "scgi.localhost"
    front_page(tree, "scgi")
    form(tree, host, "/form")
    upload(tree, host, "/upload")
    stream(tree, host, "/stream")
    told = tree.get(host, "/variables?a=b").body.decode()
    assert "\nSCGI: 1\n" in told
    assert "\nQUERY_STRING: a=b\n" in told
    assert tree.get(host, "/none").status == 404
    assert tree.request("DELETE", host, "/").status == 405


def handoff(tree: Asked) -> None:
    """A clock that ticks on a connection that is the program's own."""
    host = "handoff.localhost"
    front_page(tree, "handoff", least=0)
    with tree.connect() as client:
        client.sendall(f"GET /clock HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        text = b""
        while text.count(b"data: ") < 2:
            data = client.recv(65536)
            assert data, text
            text += data
    assert b"text/event-stream" in text
    assert tree.get(host, "/none").status == 404


TOURS: dict[str, Callable[[Asked], None]] = {
    "asgi": asgi,
    "cgi": cgi,
    "fastcgi": fastcgi,
    "scgi": scgi,
    "handoff": handoff,
}
