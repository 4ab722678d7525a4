"""Several kinds in one vhost: which of them a request is for.

Rules:
- The path is made decoded and normal first (http/paths.py), and that alone is looked at, by us and by the kind: so the
  two can't disagree about where "/app/%2e%2e/admin" leads. What is no path is answered 400.
- The longest mount wins, by whole segments: "/app" gets /app and /app/x, and never /application.
- One with a name ("@php") has no place here: a static mount asks it for what isn't there (kinds/static/kind.py).
- What is below no mount is answered 404. `OPTIONS *` is for the server: the mount at "/" answers, or we do.
- Where a path leads depends on the path alone, so it is remembered, for short ones and for a bounded number of them.

A vhost with a single mount at "/" has none of this: its kind is asked itself (site.py), and gets the path as it was
sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.paths import BadPathError, normal
from pyttpd_vhost.http.response import STATUS, Fields
from pyttpd_vhost.kinds.base import Kind, Placed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyttpd.config.kinds import Mount

    from pyttpd_vhost.site import Site

#: Paths that are remembered, and the longest of them: 200 KB at the most. Clients choose them: full, it starts anew.
_MAX_REMEMBERED = 512
_LONGEST_REMEMBERED = 256


class Mounts:
    """The mounts of one vhost, behind the interface of a kind. Any thread may ask."""

    def __init__(self, mounts: Iterable[tuple[Mount, Kind]], site: Site) -> None:
        self._kinds: dict[bytes, tuple[str, Kind]] = {}
        self._nowhere = Refusal(site, 404)
        self._no_path = Refusal(site, 400)
        self._named: list[Kind] = []
        self._places: dict[bytes, Placed] = {}
        for mount, kind in mounts:
            if mount.named:
                self._named.append(kind)
                continue
            path = mount.prefix.encode()
            # each byte a character, as WSGI and CGI have it
            self._kinds[path] = path.decode("latin-1"), kind
        #: Segments of the longest path.
        self._depth = max(prefix.count(b"/") for prefix in self._kinds)

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        placed = request.placed
        if placed is None:
            path = request.path
            placed = self._places.get(path)
            if placed is None:
                placed = self.place(path)
                if len(path) <= _LONGEST_REMEMBERED:
                    if len(self._places) >= _MAX_REMEMBERED:
                        self._places.clear()
                    self._places[path] = placed
            request.placed = placed
        placed.kind.handle(request, exchange)

    def place(self, path: bytes) -> Placed:
        """Return where a path belongs, as a request has it."""
        if path == b"*":
            mount, kind = self._kinds.get(b"", ("", _ANYBODY))
            return Placed(kind, mount, b"")
        try:
            path = normal(path)
        except BadPathError:
            return Placed(self._no_path, "", b"")
        # no further than the longest mount reaches: the client chooses how many segments there are
        segments = path.split(b"/", self._depth + 1)
        for count in range(min(self._depth, len(segments) - 1), -1, -1):
            prefix = b"/".join(segments[: count + 1])
            found = self._kinds.get(prefix)
            if found is not None:
                mount, kind = found
                return Placed(kind, mount, path[len(prefix) :])
        return Placed(self._nowhere, "", path)

    def close(self) -> None:
        """Give back what the kinds hold (tests; a worker's end with it)."""
        for kind in (*self._named, *[kind for _, kind in self._kinds.values()]):
            close = getattr(kind, "close", None)
            if close is not None:
                close()


class Refusal:
    """Answers everything with an error's page."""

    def __init__(self, site: Site, code: int) -> None:
        self._site = site
        self._code = code

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        fields, content = self._site.page(self._code)
        exchange.respond(STATUS[self._code], self._code, fields, content)


class Anybody:
    """Answers `OPTIONS *` where nobody is mounted at "/": the server is there (RFC 9110 section 9.3.7)."""

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        exchange.respond(STATUS[204], 204, Fields([]), b"")


_ANYBODY = Anybody()
