"""The text of a response's head: status lines, header fields, the date. Bytes and strings only.

Rules: a name is a token (RFC 9110 section 5.6.2), a value visible text, blanks and tabs (5.5): nothing that a
tenant's application passes can start a new line. Connection, Transfer-Encoding and the other hop-by-hop
fields are ours alone.
"""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Iterable
from http import HTTPStatus

from pyttpd_vhost.http.errors import ResponseError

STATUS: dict[int, str] = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}

CLOSE = "Connection: close\r\n"
KEEP_ALIVE = "Connection: keep-alive\r\n"

#: RFC 9110 section 7.6.1, and PEP 3333's "hop-by-hop" (RFC 2616 section 13.5.1). An application may not send
#: them.
HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
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
        line: str | int = f"{name}: {value}\r\n"
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


def _check_name(name: str) -> str:
    if type(name) is not str or _NAME.fullmatch(name) is None:
        raise ResponseError(f"not a header name: {name!r:.100}")
    lower = name.lower()
    if lower in HOP_BY_HOP:
        raise ResponseError(f"the header {name} is the server's")
    if len(_names) < _MAX_CHECKED:
        _names[name] = lower
    return lower


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(seconds: float) -> str:
    """Return an IMF-fixdate (RFC 9110 section 5.6.7), whatever the locale."""
    t = time.gmtime(seconds)
    date = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04}"
    return f"{date} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"


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


_IMF_FIXDATE = re.compile(
    rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT"
)


def parse_http_date(value: bytes) -> int | None:
    """Return an IMF-fixdate's seconds since the epoch, None for anything else.

    The obsolete forms aren't read: a condition with one is ignored.
    """
    match = _IMF_FIXDATE.fullmatch(value)
    month = match[2].decode("ascii") if match else ""
    if match is None or month not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(match[group]) for group in (1, 3, 4, 5, 6))
    if not 1 <= day <= 31 or hour > 23 or minute > 59 or second > 60 or year < 1:
        return None
    return timegm((year, _MONTHS.index(month) + 1, day, hour, minute, second, 0, 0, 0))


def plain_page(code: int, headers: Iterable[tuple[str, str]] = ()) -> tuple[Fields, bytes]:
    """Return fields, `headers` among them, and body of the plain answer for `code`."""
    return Fields([("Content-Type", "text/plain; charset=utf-8"), *headers]), f"{STATUS[code]}\n".encode()
