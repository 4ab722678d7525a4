"""From bytes to a `Request`: the scanner, then the engine, and a memory of what they have accepted.

Both are pure functions of a head's bytes, and what comes is seldom new:

- A client's requests differ in their first line, rarely in the fields behind it: a browser fetches all pictures of a
  page with the same ones, a program sends the same ones for years. So the *fields* (all behind the request line, byte
  for byte) are remembered with what was said of them, and with what others have made of them (`Known.kept`). When they
  come again, scanner and engine judge the line alone. No verdict on a field depends on anything of the line but its
  version and form (`pyttpd.head.scan_line`).
- Health checks, pollers and services that call services send the same short *head* over and over. That one's whole
  request is remembered.

What depends on the connection (whether the host is ours here) isn't part of a verdict and is asked every time. Nothing
is remembered of a request with a body, nor of one behind which more has come already; and only what comes a second
time, since most comes once.
"""

from __future__ import annotations

from pyttpd.head import DEFAULT_BOUNDS, Bounds, scan, scan_line

from pyttpd_vhost.http.engine import Engine, Known, Request

#: The longest head, and the longest fields, that are remembered: looking them up isn't free. Browsers send 500 to 1500
#: bytes of fields, most of it cookies.
MAX_HEAD = 384
MAX_FIELDS = 2048

#: How many of either are remembered; then all are forgotten. With what kinds make of them 1 MB a thread, and 4 MB where
#: clients do their worst.
MAX_MEMORY = 128

_CR, _SLASH = b"\r/"


class HeadReader:
    """Reads heads for all connections of a thread. Refused and malformed heads are never remembered.

    `last` is the last request, for the scoreboard.
    """

    __slots__ = ("_bounds", "_engine", "_heads", "_known", "_limit", "_once", "last")

    def __init__(self, engine: Engine, limit: int, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._engine = engine
        self._limit = limit
        self._bounds = bounds
        self._heads: dict[bytes, Request] = {}
        self._known: dict[bytes, Known] = {}
        #: Hashes of heads and fields that have come once. Two with the same one only mean that one is kept too early.
        self._once: set[int] = set()
        self.last: Request | None = None

    def read(self, data: bytes) -> Request | None:
        """Return the request whose head `data` starts with, None if it isn't complete. Raises Refused."""
        short = len(data) <= MAX_HEAD
        if short and (same := self._heads.get(data)) is not None:
            self.last = same
            return same
        line_end = data.find(b"\n") + 1
        fields = data[line_end:] if len(data) - line_end <= MAX_FIELDS else b""
        known = self._known.get(fields)
        request = None if known is None else self._read_line(data, line_end, known)
        if request is None:
            head = scan(data, self._limit, self._bounds)
            if head is None:
                return None
            request = self._engine.read(data, head)
            if request.length or head.end != len(data):
                short = False
            # Behind an empty line the request line would pass for a field.
            elif fields and data[0] != _CR and head.target[0] == _SLASH and self._again(fields):
                if len(self._known) >= MAX_MEMORY:
                    self._known.clear()
                self._known[fields] = Known(request)
        if short and self._again(data):
            if len(self._heads) >= MAX_MEMORY:
                self._heads.clear()
            self._heads[data] = request
            request.kept = {}
        self.last = request
        return request

    def _read_line(self, data: bytes, end: int, known: Known) -> Request | None:
        """Read a head whose fields are known, behind its line's `end`. None: there is something else about it."""
        line = scan_line(data, end, self._bounds)
        if line is None or len(data) > self._limit:
            return None
        method, target, version = line
        if version != known.request.version:
            return None
        return self._engine.again(data, end, method, target, known)

    def _again(self, data: bytes) -> bool:
        """Whether `data` has come before, as far as we remember."""
        number = hash(data)
        if number in self._once:
            return True
        if len(self._once) >= 2 * MAX_MEMORY:
            self._once.clear()
        self._once.add(number)
        return False
