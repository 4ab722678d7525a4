"""The text of a response's head: status lines, header fields, the date. Bytes and strings only.

Rules: a name is a token (RFC 9110 section 5.6.2), a value visible text, blanks and tabs (5.5): nothing that a
tenant's application passes can start a new line. Connection, Transfer-Encoding and the other hop-by-hop
fields are ours alone: what an application says of the connection is dropped, the others are errors.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from pyttpd_vhost.http.dates import http_date
from pyttpd_vhost.http.errors import ResponseError

if TYPE_CHECKING:
    from pyttpd_vhost.http.stream import Part

STATUS: dict[int, str] = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}

CLOSE = "Connection: close\r\n"
KEEP_ALIVE = "Connection: keep-alive\r\n"

#: RFC 9110 section 7.6.1, and PEP 3333's "hop-by-hop" (RFC 2616 section 13.5.1). An application may not send
#: them.
HOP_BY_HOP = frozenset(
    {
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

#: Hop-by-hop as well, but applications that were written for one certain server send them and mean no harm (event
#: streams, above all, with `Connection: keep-alive`). gunicorn and mod_wsgi drop them, too.
DROPPED = frozenset({"connection", "keep-alive", "proxy-connection"})

#: What can't be a trailer, besides these: framing, routing, and what is needed before the content (RFC 9110 section
#: 6.5.1).
_NO_TRAILER = frozenset(
    {
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "host",
        "location",
        "set-cookie",
        "www-authenticate",
    }
)

_STATUS = re.compile(r"[2-5][0-9][0-9] [\t\x20-\x7e\x80-\xff]*")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_LENGTH = re.compile(r"[0-9]{1,18}")

#: Checked fields with their lines (Content-Length's: its value; no Date). The same ones come again and again;
#: when the table is full of others, it starts anew.
_MAX_LINES = 512
_MAX_LINE_VALUE = 128
_lines: dict[tuple[str, str], str | int] = {}

#: Checked names with their lower-case forms, and checked status lines with their codes. An application uses
#: few of them; the bounds are for one that makes them up.
_MAX_CHECKED = 512
_names: dict[str, str] = {}
_statuses: dict[str, int] = {}


def status_code(status: str) -> int:
    """Return the code of a status line's end ("200 OK"). Raises ResponseError."""
    code = _statuses.get(status)
    if code is None:
        if type(status) is not str or _STATUS.fullmatch(status) is None:
            raise ResponseError(f"not a status: {status!r:.100}")
        code = int(status[:3])
        if len(_statuses) < _MAX_CHECKED:
            _statuses[status] = code
    return code


class Fields:
    """Checked header fields, ready to be sent.

    `text` is lines with CRLF, without Content-Length, which is in `length` (None: not given); `date`: a Date
    is among them.
    """

    __slots__ = ("date", "length", "text")

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        """Check `headers`. Raises ResponseError."""
        self.length: int | None = None
        self.date = False
        text = ""
        for field in headers:
            try:
                line = _lines[field]
            except (KeyError, TypeError):
                line = self._check(field)
            if type(line) is not int:
                text += line  # type: ignore[operator]  # mypy doesn't narrow by "is not"; isinstance costs more
            elif self.length is None:
                self.length = line
            else:
                raise ResponseError("a second Content-Length")
        self.text = text

    def _check(self, field: tuple[str, str]) -> str | int:
        """Return the line of a field, of Content-Length the value."""
        try:
            name, value = field
        except (TypeError, ValueError):
            raise ResponseError(f"not a header field: {field!r:.100}") from None
        lower = _names.get(name) or _check_name(name)
        if type(value) is not str or _VALUE.fullmatch(value) is None:
            raise ResponseError(f"not a value of the header {name}: {value!r:.100}")
        line: str | int = f"{name}: {value}\r\n" if lower not in DROPPED else ""
        if lower == "date":
            self.date = True
            return line
        if lower == "content-length":
            if _LENGTH.fullmatch(value) is None:
                raise ResponseError(f"not a Content-Length: {value!r:.100}")
            line = int(value)
        if len(value) <= _MAX_LINE_VALUE:
            if len(_lines) >= _MAX_LINES:
                _lines.clear()
            _lines[name, value] = line
        return line


class Trailers:
    """Checked trailers, ready to be sent: `text` is lines with CRLF."""

    __slots__ = ("text",)

    def __init__(self, trailers: Iterable[tuple[str, str]]) -> None:
        """Check `trailers`. Raises ResponseError."""
        trailers = list(trailers)
        for name, _ in trailers:
            if type(name) is str and name.lower() in _NO_TRAILER:
                raise ResponseError(f"the header {name} can't be a trailer")
        self.text = Fields(trailers).text


def _check_name(name: str) -> str:
    if type(name) is not str or _NAME.fullmatch(name) is None:
        raise ResponseError(f"not a header name: {name!r:.100}")
    lower = name.lower()
    if lower in HOP_BY_HOP:
        raise ResponseError(f"the header {name} is the server's")
    if len(_names) < _MAX_CHECKED:
        _names[name] = lower
    return lower


_date_second = -1
_date_line = ""


def date_line() -> str:
    """Return the Date field's line, made once a second."""
    global _date_line, _date_second
    now = int(time.time())
    if now != _date_second:
        _date_line = f"Date: {http_date(now)}\r\n"
        _date_second = now
    return _date_line


class Prepared:
    """A whole answer with its framing, ready but for the date. Made once, sent often, by any thread."""

    __slots__ = ("_content", "_head", "_made", "code", "file", "head_size")

    def __init__(self, code: int, head: str, content: bytes, file: tuple[Part] | None = None) -> None:
        """`head`: the status line and the header lines, each with its CRLF, without Date and the empty line. With
        `file` that is the content, and nothing is in `content`.
        """
        self.code = code
        self.file = file
        self._head = head
        self._content = content
        self.head_size = len(head) + len(date_line()) + 2  # bytes: the empty line, too
        # the date's line, and all bytes with it: one object, so that no thread sees half
        self._made = ("", b"")

    def dated(self, date: str) -> bytes:
        """Return all of it but `file`, with `date_line()`'s line."""
        made = self._made
        if made[0] is not date:
            made = self._made = (date, f"{self._head}{date}\r\n".encode("latin-1") + self._content)
        return made[1]


def plain_page(code: int, headers: Iterable[tuple[str, str]] = ()) -> tuple[Fields, bytes]:
    """Return fields, `headers` among them, and body of the plain answer for `code`."""
    return Fields([("Content-Type", "text/plain; charset=utf-8"), *headers]), f"{STATUS[code]}\n".encode()
