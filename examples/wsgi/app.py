"""A WSGI application (PEP 3333) from the standard library alone: forms, an upload, streamed and slow answers.

Works under any WSGI server: `application` is the callable. It reads uploads as they come and keeps nothing of
them.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from html import escape
from typing import Any
from urllib.parse import parse_qs, unquote

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Page = Callable[[Environ, StartResponse], Iterable[bytes]]

MAX_FORM = 64 * 1024
PIECE = 64 * 1024
MAX_PART_HEAD = 8 * 1024
STREAM_LINES = 10
STREAM_PAUSE = 0.3  # s
MAX_SLEEP = 10.0  # s

#: What /environ shows: the connection's and the request's, no header that could be a secret.
SHOWN = (
    *(
        "REQUEST_METHOD",
        "SCRIPT_NAME",
        "PATH_INFO",
        "QUERY_STRING",
        "SERVER_PROTOCOL",
        "SERVER_NAME",
        "SERVER_PORT",
    ),
    *("REMOTE_ADDR", "REMOTE_PORT", "HTTP_HOST", "HTTP_USER_AGENT", "SERVER_SOFTWARE"),
    *("wsgi.version", "wsgi.url_scheme", "wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once"),
)

STYLE = (
    "body{font:1.05rem/1.6 system-ui,sans-serif;max-width:42rem;margin:0 auto;padding:2rem 1rem}"
    "pre,output{background:#8882;padding:.5rem;display:block;overflow-x:auto}label{display:block;margin:.5rem 0}"
)


class TooLarge(Exception):
    """A body, or a part of it, is larger than this application wants."""


class Malformed(Exception):
    """A body isn't what its Content-Type says."""


# ---- pages -------------------------------------------------------------------------------------------------


def html(start_response: StartResponse, title: str, body: str, status: str = "200 OK") -> Iterable[bytes]:
    """Answer with a page. `title` is text, `body` is HTML."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    ).encode()
    headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(page)))]
    start_response(status, headers)
    return [page]


def index(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The front page."""
    return html(
        start_response,
        "A WSGI application",
        "<p>This tenant is of the kind <strong>wsgi</strong>: a pure PEP 3333 application, run by a worker that"
        " can reach no network.</p>"
        '<ul><li><a href="/form">A form</a></li><li><a href="/upload">An upload</a></li>'
        f'<li><a href="/stream">A streamed answer</a>: {STREAM_LINES} lines, one every {STREAM_PAUSE} s</li>'
        '<li><a href="/slow?seconds=2">A slow answer</a>: 2 s</li>'
        '<li><a href="/environ">What the application knows about your request</a></li></ul>',
    )


def form(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Ask for a name and a message by GET or POST, and repeat them."""
    if environ["REQUEST_METHOD"] == "POST":
        fields = parse_qs(
            read_all(environ, MAX_FORM).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100
        )
    else:
        fields = parse_qs(environ["QUERY_STRING"], keep_blank_values=True, max_num_fields=100)
    said = ""
    if fields:
        name, message = (escape(fields.get(key, [""])[0]) for key in ("name", "message"))
        said = f"<p>{escape(environ['REQUEST_METHOD'])} said:</p><output>{name}: {message}</output>"
    inputs = (
        '<label>Name <input name="name"></label><label>Message <textarea name="message"></textarea></label>'
    )
    return html(
        start_response,
        "A form",
        f'{said}<form method="post" accept-charset="utf-8">{inputs}<button>Send by POST</button> '
        f'<button formmethod="get">Send by GET</button></form><p><a href="/">Back</a></p>',
    )


def upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Take one file (POST, multipart/form-data) or a raw body (PUT), and show name, size and SHA-256."""
    shown = ""
    if environ["REQUEST_METHOD"] == "PUT":
        shown = describe("the body", pieces(environ))
    elif environ["REQUEST_METHOD"] == "POST":
        name, content = multipart_file(environ)
        shown = describe(name, content)
    return html(
        start_response,
        "An upload",
        f'{shown}<form method="post" enctype="multipart/form-data"><input type="file" name="file" required> '
        '<button>Upload</button></form><p><a href="/">Back</a></p>',
    )


def describe(name: str, content: Iterable[bytes]) -> str:
    """Read `content` to its end, keeping only its size and digest."""
    size = 0
    digest = hashlib.sha256()
    for piece in content:
        size += len(piece)
        digest.update(piece)
    return f"<pre>name: {escape(name)}\nsize: {size}\nsha256: {digest.hexdigest()}</pre>"


def stream(_: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Numbered lines, each sent when it is made."""
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")])
    return lines()


def lines() -> Iterator[bytes]:
    for number in range(1, STREAM_LINES + 1):
        if number > 1:
            time.sleep(STREAM_PAUSE)
        yield b"line %d of %d\n" % (number, STREAM_LINES)


def slow(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer after ?seconds=N."""
    try:
        seconds = float(parse_qs(environ["QUERY_STRING"]).get("seconds", ["1"])[0])
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_SLEEP:
        return html(
            start_response, "Not so long", f"<p>seconds is from 0 to {MAX_SLEEP:.0f}.</p>", "400 Bad Request"
        )
    time.sleep(seconds)
    return html(start_response, "A slow answer", f'<p>It took {seconds:g} s.</p><p><a href="/">Back</a></p>')


def show_environ(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """What the server says about the request: the client's real address among it."""
    text = "".join(f"{key}: {environ.get(key, '')}\n" for key in SHOWN).encode("utf-8", "replace")
    start_response(
        "200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(text)))]
    )
    return [text]


# ---- bodies ------------------------------------------------------------------------------------------------


def pieces(environ: Environ) -> Iterator[bytes]:
    """The body, a piece at a time. A body of unknown length (chunked) is read if the server says where it
    ends."""
    source = environ["wsgi.input"]
    length = environ.get("CONTENT_LENGTH")
    if not length:
        if environ.get("wsgi.input_terminated"):
            yield from iter(lambda: source.read(PIECE), b"")
        return
    left = int(length)
    while left:
        piece = source.read(min(PIECE, left))
        if not piece:
            raise Malformed("the body is shorter than its length")
        left -= len(piece)
        yield piece


def read_all(environ: Environ, limit: int) -> bytes:
    """A body that is known to be small. Raises TooLarge."""
    body = b""
    for piece in pieces(environ):
        body += piece
        if len(body) > limit:
            raise TooLarge
    return body


def multipart_file(environ: Environ) -> tuple[str, Iterator[bytes]]:
    """The name and the content of the first file of a multipart/form-data body (RFC 7578), the content as it
    comes.

    Raises Malformed, and the content's iterator as well.
    """
    kind, _, parameters = environ.get("CONTENT_TYPE", "").partition(";")
    boundary = re.search(r'boundary="?([\x20-\x7e]{1,70}?)"?\s*(?:;|$)', parameters)
    if kind.strip().lower() != "multipart/form-data" or boundary is None:
        raise Malformed("no multipart/form-data with a boundary")
    delimiter = b"\r\n--" + boundary[1].encode("ascii")
    source = pieces(environ)
    # the first delimiter has no line's end before it
    data = b"\r\n"
    while True:
        data = skip_past(source, data, delimiter)
        head, data = part_head(source, data)
        if head is None:
            raise Malformed("no file in the form")
        name = re.search(rb'filename\*?=(?:"((?:[^"\\]|\\.)*)"|([^;\s]+))', head, re.IGNORECASE)
        if name is not None:
            text = (name[1] if name[1] is not None else name[2]).decode("utf-8", "replace")
            text = unquote(text.removeprefix("UTF-8''")) if name[2] is not None else text
            return text, part_content(source, data, delimiter)


def skip_past(source: Iterator[bytes], data: bytes, delimiter: bytes) -> bytes:
    """Drop everything up to `delimiter` and itself; return what follows it."""
    while (at := data.find(delimiter)) < 0:
        data = data[-len(delimiter) + 1 :] + next_piece(source)
    return data[at + len(delimiter) :]


def part_head(source: Iterator[bytes], data: bytes) -> tuple[bytes | None, bytes]:
    """The head of a part and what follows it; None behind the last one."""
    while len(data) < 2:
        data += next_piece(source)
    if data.startswith(b"--"):
        return None, data
    while b"\r\n\r\n" not in data:
        if len(data) > MAX_PART_HEAD:
            raise Malformed("the head of a part is too long")
        data += next_piece(source)
    # the blank line's end stays: if the part is empty, it starts the next delimiter
    end = data.index(b"\r\n\r\n")
    return data[:end], data[end + 2 :]


def part_content(source: Iterator[bytes], data: bytes, delimiter: bytes) -> Iterator[bytes]:
    """A part's content as it comes, and then the rest of the body, unseen. `data` starts with the blank
    line's end."""
    keep = len(delimiter) - 1
    skip = 2
    while (at := data.find(delimiter)) < 0:
        if len(data) > keep + skip:
            yield data[skip:-keep]
            data = data[-keep:]
            skip = 0
        data += next_piece(source)
    yield data[skip:at]
    for _ in source:
        pass


def next_piece(source: Iterator[bytes]) -> bytes:
    piece = next(source, None)
    if piece is None:
        raise Malformed("the body ends too early")
    return piece


# ---- the application ---------------------------------------------------------------------------------------

PAGES: dict[str, tuple[Page, tuple[str, ...]]] = {
    "/": (index, ("GET",)),
    "/form": (form, ("GET", "POST")),
    "/upload": (upload, ("GET", "POST", "PUT")),
    "/stream": (stream, ("GET",)),
    "/slow": (slow, ("GET",)),
    "/environ": (show_environ, ("GET",)),
}


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """The WSGI callable."""
    page, methods = PAGES.get(environ["PATH_INFO"], (None, ()))
    if page is None:
        return html(start_response, "Not found", '<p><a href="/">Back</a></p>', "404 Not Found")
    method = environ["REQUEST_METHOD"]
    if method not in methods and not (method == "HEAD" and "GET" in methods):
        start_response(
            "405 Method Not Allowed",
            [
                ("Allow", ", ".join((*methods, "HEAD"))),
                ("Content-Type", "text/plain"),
                ("Content-Length", "0"),
            ],
        )
        return [b""]
    try:
        return page(environ, start_response)
    except TooLarge:
        return html(start_response, "Too large", f"<p>At most {MAX_FORM} bytes.</p>", "413 Content Too Large")
    except (Malformed, ValueError) as error:
        return html(start_response, "Bad request", f"<p>{escape(str(error))}</p>", "400 Bad Request")
