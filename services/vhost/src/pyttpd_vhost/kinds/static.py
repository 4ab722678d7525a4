"""Static files: GET and HEAD of what lies below one directory.

Rules:
- The path is percent-decoded once. A NUL, an empty or a dot-first component (".", "..", ".git") is not found,
  before any file is looked at; below the root the kernel keeps the walk (`openat2`).
- What is sent is what was opened: size, time and type come from the open descriptor, never from the name
  again.
- The validators are made from the descriptor too: ETag from inode, time (ns) and size, so that a replaced
  file has another one.
- Only regular files are served. Directories serve their index.html, under the name with the slash.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from pyttpd_vhost.http.dates import http_date, parse_http_date
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.response import STATUS, Fields
from pyttpd_vhost.media import ContentTypes
from pyttpd_vhost.openat2 import Root

if TYPE_CHECKING:
    from pyttpd_vhost.site import Site

INDEX = b"index.html"
ALLOW = "GET, HEAD"

#: Up to here a file is read and sent with its head in one packet; above, sendfile(2) saves the copy.
READ_LIMIT = 32768


def clean_path(path: bytes) -> bytes | None:
    """Return a request's path decoded and relative ("" is the root itself), None if no file may have it."""
    if b"%" in path:
        path = unquote_to_bytes(path)
    if path[:1] != b"/" or b"\0" in path:
        return None
    relative = path[1:]
    components = relative.split(b"/")
    if relative[-1:] == b"/" or not relative:
        components.pop()
    for component in components:
        if component[:1] in (b"", b"."):
            return None
    return relative


class StaticKind:
    """Serves the files below one directory."""

    def __init__(self, root: str, site: Site) -> None:
        self._site = site
        self._root = Root(root)
        self._types = ContentTypes(site.share.static.types, site.share.static.charset)

    def close(self) -> None:
        """Give the root back (tests; a worker's ends with it)."""
        self._root.close()

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        if request.method not in ("GET", "HEAD"):
            self._page(exchange, 405, [("Allow", ALLOW)])
            return
        path = clean_path(request.path)
        if path is None:
            self._page(exchange, 404)
            return
        try:
            fd = self._open(path)
        except FileNotFoundError:
            self._page(exchange, 404)
        except IsADirectoryError:
            # of the path as it was sent: still encoded, so it can't hold a line's end; one slash, or a
            # browser takes a name for a host
            location = b"/" + request.path.strip(b"/") + b"/"
            if request.query:
                location += b"?" + request.query
            self._page(exchange, 301, [("Location", location.decode("latin-1"))])
        except OSError as error:
            # EMFILE and such: ours, not the client's
            self._site.stats.errors += 1
            self._site.log.warning("file not opened", path=path.decode("latin-1"), error=str(error))
            self._page(exchange, 503)
        else:
            self._send(request, exchange, fd, path)

    def _open(self, path: bytes) -> int:
        """Open the regular file for `path`.

        Raises FileNotFoundError for whatever isn't one, IsADirectoryError if a slash is missing.
        """
        if path[-1:] == b"/" or not path:
            path += INDEX
        try:
            fd = self._root.open(path)
        except OSError as error:
            if (
                isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
                or error.errno in _NOT_FOUND
            ):
                raise FileNotFoundError from error
            raise
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        os.close(fd)
        if stat.S_ISDIR(mode) and not path.endswith(b"/" + INDEX) and path != INDEX:
            raise IsADirectoryError
        raise FileNotFoundError

    def _send(self, request: Request, exchange: Exchange, fd: int, path: bytes) -> None:
        status = os.fstat(fd)
        etag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"'
        headers = [("ETag", etag), ("Last-Modified", http_date(status.st_mtime))]
        if len(request.fields) > 1 and _not_modified(request, etag, int(status.st_mtime)):
            os.close(fd)
            exchange.respond(STATUS[304], 304, Fields(headers), b"")
            return
        name = path.rpartition(b"/")[2] or INDEX
        headers.append(("Content-Type", self._types.of(name)))
        fields = Fields(headers)
        if status.st_size > READ_LIMIT:
            exchange.send_file(STATUS[200], 200, fields, fd, 0, status.st_size)
            return
        try:
            content = os.pread(fd, status.st_size, 0)
        finally:
            os.close(fd)
        exchange.respond(STATUS[200], 200, fields, content)

    def _page(self, exchange: Exchange, code: int, headers: list[tuple[str, str]] | None = None) -> None:
        fields, content = self._site.page(code, headers or [])
        exchange.respond(STATUS[code], code, fields, content)


#: What a path can do to an open(2) that is the path's own fault: links in circles or out of the root, names
#: too long, sockets, devices.
_NOT_FOUND = frozenset(
    {errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV, errno.EINVAL}
)


def _not_modified(request: Request, etag: str, mtime: int) -> bool:
    """Decide If-None-Match, or If-Modified-Since without it (RFC 9110 section 13.2.2)."""
    none_match = request.get(b"if-none-match")
    if none_match is not None:
        if none_match.strip() == b"*":
            return True
        tags = {tag.strip().removeprefix(b"W/") for tag in none_match.split(b",")}
        return etag.encode("ascii") in tags
    since = request.get(b"if-modified-since")
    if since is None:
        return False
    seconds = parse_http_date(since)
    return seconds is not None and mtime <= seconds
