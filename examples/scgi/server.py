#!/usr/bin/python3
"""An SCGI server from the standard library alone: a form, an upload, a streamed answer.

It accepts connections on its standard input, a listening Unix socket, and serves one at a time: how many processes
there are is for who starts it to say. `fields`, `Body` and `serve` are all that a Python program needs to speak SCGI.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from html import escape
from typing import BinaryIO
from urllib.parse import parse_qs

Variables = dict[str, str]
Answer = Iterator[bytes]

MAX_HEAD = 256 * 1024
MAX_FORM = 64 * 1024
PIECE = 64 * 1024
STREAM_LINES = 10
STREAM_PAUSE = 0.3  # s

STYLE = (
    "body{font:1.05rem/1.6 system-ui,sans-serif;max-width:42rem;margin:0 auto;padding:2rem 1rem}"
    "pre,output{background:#8882;padding:.5rem;display:block;overflow-x:auto}label{display:block;margin:.5rem 0}"
)


# ---- the protocol ------------------------------------------------------------------------------------------


class MalformedError(Exception):
    """What came is no SCGI request."""


def fields(stream: BinaryIO) -> Variables:
    """Read a request's variables: a netstring of names and values, each ended by a NUL."""
    digits = b""
    while (digit := stream.read(1)) != b":":
        digits += digit
        if not digit.isdigit() or len(digits) > len(str(MAX_HEAD)):
            raise MalformedError("no length")
    length = int(digits or b"0")
    data = stream.read(length + 1)
    if not 0 < length <= MAX_HEAD or len(data) != length + 1 or data[-2:] != b"\0,":
        raise MalformedError("no netstring")
    parts = data[:-2].decode("latin-1").split("\0")
    return dict(zip(parts[::2], parts[1::2], strict=True))


class Body:
    """A request's body, CONTENT_LENGTH bytes of the connection."""

    def __init__(self, stream: BinaryIO, variables: Variables) -> None:
        self._stream = stream
        self.left = int(variables.get("CONTENT_LENGTH") or 0)

    def __iter__(self) -> Iterator[bytes]:
        while self.left and (piece := self._stream.read(min(self.left, PIECE))):
            self.left -= len(piece)
            yield piece


def serve(answer: Callable[[Variables, Body], Answer]) -> None:
    """Accept and answer, one connection after the other, until we are asked to end (SIGTERM)."""
    listener = socket.socket(fileno=0)
    asked = False
    busy = False

    def end(_signal: int, _frame: object) -> None:
        nonlocal asked
        asked = True
        if not busy:
            sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    while not asked:
        sock, _ = listener.accept()
        busy = True
        with sock, sock.makefile("rb") as stream:
            try:
                variables = fields(stream)
                for piece in answer(variables, Body(stream, variables)):
                    sock.sendall(piece)
            except (MalformedError, ValueError) as error:
                print(f"refused: {error}", file=sys.stderr)
            except OSError:
                pass  # the client has left
        busy = False


# ---- pages -------------------------------------------------------------------------------------------------


def head(kind: str, status: str = "200 OK", *more: str) -> bytes:
    """Return an answer's head."""
    return "\r\n".join([f"Status: {status}", f"Content-Type: {kind}", *more, "", ""]).encode()


def page(title: str, body: str, status: str = "200 OK") -> Answer:
    """Return a page. `title` is text, `body` is HTML."""
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    ).encode()
    yield head("text/html; charset=utf-8", status, f"Content-Length: {len(text)}") + text


def index(_variables: Variables, _body: Body) -> Answer:
    """The front page."""
    return page(
        "An SCGI server",
        "<p>This tenant is of the kind <strong>scgi</strong>: a server of its own behind a Unix socket, whose "
        "processes the tenant's supervisor starts and watches.</p>"
        '<ul><li><a href="form">A form</a></li><li><a href="upload">An upload</a></li>'
        f'<li><a href="stream">A streamed answer</a>: {STREAM_LINES} lines, one every {STREAM_PAUSE} s</li>'
        '<li><a href="variables">What the server is told</a></li></ul>',
    )


def form(variables: Variables, body: Body) -> Answer:
    """Ask for a name and a message by GET or POST, and repeat them."""
    text = variables["QUERY_STRING"]
    if variables["REQUEST_METHOD"] == "POST":
        if body.left > MAX_FORM:
            return page("Too large", f"<p>At most {MAX_FORM} bytes.</p>", "413 Content Too Large")
        text = b"".join(body).decode("utf-8", "replace")
    found = parse_qs(text, keep_blank_values=True, max_num_fields=100)
    said = ""
    if found:
        name, message = (escape(found.get(key, [""])[0]) for key in ("name", "message"))
        said = f"<p>{escape(variables['REQUEST_METHOD'])} said:</p><output>{name}: {message}</output>"
    return page(
        "A form",
        f'{said}<form method="post" accept-charset="utf-8"><label>Name <input name="name"></label>'
        '<label>Message <textarea name="message"></textarea></label><button>Send by POST</button> '
        '<button formmethod="get">Send by GET</button></form><p><a href=".">Back</a></p>',
    )


def upload(variables: Variables, body: Body) -> Answer:
    """Take a file as the browser's script sends it (PUT), and show its size and SHA-256."""
    if variables["REQUEST_METHOD"] == "PUT":
        size, digest = 0, hashlib.sha256()
        for piece in body:
            size += len(piece)
            digest.update(piece)
        text = f"size: {size}\nsha256: {digest.hexdigest()}\n".encode()
        return iter([head("text/plain", "200 OK", f"Content-Length: {len(text)}") + text])
    return page(
        "An upload",
        '<label>A file <input type="file" id="file"></label><output id="said"></output>'
        "<script>file.onchange = async () => {said.textContent = 'on its way ...';"
        "const answer = await fetch('upload', {method: 'PUT', body: file.files[0]});"
        'said.textContent = await answer.text()}</script><p><a href=".">Back</a></p>',
    )


def stream(_variables: Variables, _body: Body) -> Answer:
    """Numbered lines, each sent when it is made."""
    yield head("text/plain; charset=utf-8", "200 OK", "Cache-Control: no-store")
    for number in range(1, STREAM_LINES + 1):
        if number > 1:
            time.sleep(STREAM_PAUSE)
        yield b"line %d of %d\n" % (number, STREAM_LINES)


def show(variables: Variables, _body: Body) -> Answer:
    """What we are told, and who we are."""
    yield head("text/plain; charset=utf-8")
    yield "".join([f"{key}: {variables[key]}\n" for key in sorted(variables)]).encode("latin-1")
    yield f"uid: {os.geteuid()}\n".encode()


PAGES = {
    "/": (index, ("GET", "HEAD")),
    "/form": (form, ("GET", "HEAD", "POST")),
    "/upload": (upload, ("GET", "HEAD", "PUT")),
    "/stream": (stream, ("GET", "HEAD")),
    "/variables": (show, ("GET", "HEAD")),
}


def application(variables: Variables, body: Body) -> Answer:
    """Answer one request."""
    found, methods = PAGES.get(variables["PATH_INFO"] or "/", (None, ()))
    if found is None:
        return page("Not found", '<p><a href="/">Back</a></p>', "404 Not Found")
    if variables["REQUEST_METHOD"] not in methods:
        return iter([head("text/plain", "405 Method Not Allowed", f"Allow: {', '.join(methods)}")])
    return found(variables, body)


if __name__ == "__main__":
    serve(application)
