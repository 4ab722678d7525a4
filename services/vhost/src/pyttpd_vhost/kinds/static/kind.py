"""Static files: GET and HEAD of what lies below one directory, as RFC 9110 has it and nginx does it.

A request's way: its path, made normal (paths.py); what that leads to (files.py), remembered (cache.py); the variant
that the client accepts (negotiation.py); its conditions (conditions.py); the part that it wants (ranges.py). What the
client's fields say of the last three is kept with them, where they are remembered (http/heads.py); and with a whole
head that is remembered what came out of all that: it gets the same bytes again for as long as the file stays what it
is.

What isn't a file: a folder without a slash is redirected to it; with one it is its index, a list of its files
(listing.py), or 403. What may not be read is 403; what isn't there, is hidden, leads out of the root or is no regular
file, 404. OPTIONS says what there is; other methods, 405. Refusals have the tenant's error pages (pages.py).

With a fallback, what would be 404 is asked of another kind, or answered with another file; so is a folder that has
nothing to show, even without its slash (the redirect to it would lead nowhere), and a request of any method: only what
is a file is ours.

What other mounts of the vhost run is no file here, whatever it is called (programs.py): somebody's source code is
never sent as text because two mounts have one folder.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import ClientGone
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.paths import BadPathError, normal
from pyttpd_vhost.http.response import STATUS, Fields, Prepared
from pyttpd_vhost.http.stream import Part
from pyttpd_vhost.kinds.base import Kind, Placed
from pyttpd_vhost.kinds.static import ranges
from pyttpd_vhost.kinds.static.cache import Cache
from pyttpd_vhost.kinds.static.conditions import Outcome, evaluate, gather, range_counts
from pyttpd_vhost.kinds.static.files import (
    FORBIDDEN,
    NOT_THERE,
    Entry,
    Folder,
    NotAFileError,
    Representation,
)
from pyttpd_vhost.kinds.static.paths import location, relative
from pyttpd_vhost.kinds.static.patterns import CacheControl
from pyttpd_vhost.kinds.static.programs import Programs
from pyttpd_vhost.media import ContentTypes
from pyttpd_vhost.openat2 import Root

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyttpd.config.kinds import StaticOptions

    from pyttpd_vhost.site import Site

ALLOW = "GET, HEAD, OPTIONS"

#: Of the list of a folder's files.
LISTING = Fields(
    [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Cache-Control", "no-cache"),
        ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
    ]
)


class StaticKind:
    """Serves the files below one directory. Any thread may ask it."""

    def __init__(self, options: StaticOptions, site: Site) -> None:
        self._site = site
        self._root = Root(options.root, symlinks=options.symlinks)
        self._render: Callable[[Root, bytes, int], bytes] | None = None
        if options.listing:
            # imported here, and once for all workers: most sites have none
            from pyttpd_vhost.kinds.static.listing import render

            self._render = render
        self._programs = Programs(site.share.mounts, options.root, site.share.root)
        index = tuple([name for name in options.index if not self._programs.has(name.encode())])
        types = ContentTypes(options.types, options.charset)
        self._folder = Folder(
            self._root, replace(options, index=index), types, CacheControl(options.cache_control)
        )
        self._cache = Cache(self._root, options.cache, site)
        self._instead = b"" if options.fallback[:1] == "@" else options.fallback.encode()
        if self._programs.has(self._instead):
            self._instead = b""
        self._other_kind: Kind | None = None

    def falls_back_on(self, kind: Kind) -> None:
        """Name who is asked for what isn't there."""
        self._other_kind = kind

    def close(self) -> None:
        """Give all descriptors back (tests; a worker's end with it)."""
        self._cache.clear()
        self._root.close()

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        kept: tuple[Entry, Prepared] | None = None if request.kept is None else request.kept.get(self)
        if kept is not None and exchange.keep and self._cache.valid(kept[0]):
            kept[0].used = True
            exchange.respond_prepared(kept[1])
            return
        plain = request.method in ("GET", "HEAD")
        if not plain and (self._other_kind is None or request.path == b"*"):
            self._other(request, exchange)
            return
        path = request.path if request.placed is None else request.placed.info
        entry = self._cache.get(path)
        if entry is None:
            try:
                entry = self._find(request, exchange)
            except ClientGone:
                raise  # an OSError, too, but none of opening
            except OSError as error:
                self._refuse(request, exchange, error)
                return
            if entry is None:
                return
            self._cache.put(path, entry)
        if plain:
            self._answer(entry, request, exchange)
        else:
            self._other(request, exchange)

    # What isn't a file

    def _other(self, request: Request, exchange: Exchange) -> None:
        if request.method == "OPTIONS":
            exchange.respond(STATUS[204], 204, Fields([("Allow", ALLOW)]), b"")
        else:
            self._page(exchange, 405, [("Allow", ALLOW)])

    def _page(self, exchange: Exchange, code: int, headers: list[tuple[str, str]] | None = None) -> None:
        fields, content = self._site.page(code, headers or [])
        exchange.respond(STATUS[code], code, fields, content)

    def _missing(self, request: Request, exchange: Exchange, code: int = 404) -> None:
        """There is nothing to show: ask the fallback, or answer `code`."""
        if self._other_kind is not None:
            placed = request.placed
            info = normal(request.path) if placed is None else placed.info
            self._other_kind.handle(request.again(Placed(self._other_kind, request.mount, info)), exchange)
        elif self._instead and (entry := self._load_instead()) is not None:
            # not to be remembered: something may be there the next time
            self._answer(entry, request.again(Placed(self, request.mount, b"")), exchange)
        else:
            self._page(exchange, code)

    def _load_instead(self) -> Entry | None:
        path = b"/" + self._instead
        entry = self._cache.get(path)
        if entry is None:
            try:
                entry = self._folder.load(self._instead)
            except (OSError, NotAFileError):
                return None
            self._cache.put(path, entry)
        return entry

    def _refuse(self, request: Request, exchange: Exchange, error: OSError) -> None:
        """Answer a path that open(2) wouldn't open."""
        if error.errno in NOT_THERE:
            self._missing(request, exchange)
        elif error.errno in FORBIDDEN:
            self._page(exchange, 403)
        else:
            # EMFILE, EIO and such: ours, not the client's
            self._site.stats.errors += 1
            target = exchange.request.target.decode("latin-1")
            self._site.log.warning("file not opened", target=target, error=str(error))
            self._page(exchange, 503)

    def _find(self, request: Request, exchange: Exchange) -> Entry | None:
        """Return what the path leads to; None: it was answered. Raises OSError."""
        placed = request.placed
        try:
            path = relative(normal(request.path) if placed is None else placed.info)
        except BadPathError:
            self._page(exchange, 400)
            return None
        if path is None or self._programs.has(path):
            self._missing(request, exchange)
            return None
        if placed is not None and not placed.info:  # the mount's own folder, without its slash
            self._page(exchange, 301, [("Location", location(placed.mount, b"", request.query))])
            return None
        if path and path[-1:] != b"/":
            try:
                return self._folder.load(path)
            except NotAFileError as error:
                if error.folder and self._has_something(path + b"/"):
                    self._page(exchange, 301, [("Location", location(request.mount, path, request.query))])
                else:
                    self._missing(request, exchange)
                return None
        entry = self._folder.load_index(path)
        if entry is None:
            self._list(path, request, exchange)
        return entry

    def _has_something(self, folder: bytes) -> bool:
        """Whether a redirect to `folder` would lead to something of ours, and not to the fallback."""
        if self._other_kind is None or self._render is not None:
            return True
        return self._folder.load_index(folder) is not None

    def _list(self, path: bytes, request: Request, exchange: Exchange) -> None:
        """Answer for a folder without an index. Raises OSError."""
        fd = self._root.open(path or b".")
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                self._missing(request, exchange)  # a file's name with a slash
                return
            if self._render is None:
                self._missing(request, exchange, 403)
                return
            page = self._render(self._root, path, fd)
        finally:
            os.close(fd)
        exchange.respond(STATUS[200], 200, LISTING, page)

    # What is one

    def _answer(self, entry: Entry, request: Request, exchange: Exchange) -> None:
        accepted, fields = _deciding(request)
        form = entry.representation(accepted)
        if not fields:
            self._send(entry, form, 200, request, exchange)
            return
        etag = form.etag.encode("ascii")
        file = form.file
        match evaluate(fields, etag, file.modified):
            case Outcome.FAILED:
                self._page(exchange, 412)
                return
            case Outcome.NOT_MODIFIED:
                self._send(entry, form, 304, request, exchange)
                return
            case Outcome.PROCEED:
                pass
        wanted = fields.get(b"range")
        if (
            wanted is not None
            and request.method == "GET"
            and range_counts(fields, etag, file.modified, time.time())
        ):
            try:
                parts = ranges.parse(wanted, file.size)
            except ranges.UnsatisfiableError:
                self._page(exchange, 416, [("Content-Range", f"bytes */{file.size}")])
                return
            if parts is not None:
                _send_parts(form, parts, exchange)
                return
        self._send(entry, form, 200, request, exchange)

    def _send(
        self, entry: Entry, form: Representation, code: int, request: Request, exchange: Exchange
    ) -> None:
        """Answer 200 with all of it, or 304; and keep what the same head will get again, if it may."""
        if exchange.keep and request.version == 11 and exchange.body is None:
            answer = form.prepared(code, head_only=request.method == "HEAD")
            if answer is not None:
                exchange.respond_prepared(answer)
                # what holds descriptors is held by the cache alone, which bounds them
                if request.kept is not None and entry.settled and not entry.descriptors:
                    request.kept[self] = entry, answer
                return
        file = form.file
        if code == 304:
            exchange.respond(STATUS[304], 304, form.unchanged, b"")
        elif file.opened is None:
            assert file.content is not None
            exchange.respond(STATUS[200], 200, form.whole, file.content, last=True)
        else:
            exchange.send_parts(STATUS[200], 200, form.whole, ((file.opened, 0, file.size),), file.size)


def _deciding(request: Request) -> tuple[bytes | None, dict[bytes, bytes]]:
    """Return what decides what is answered: Accept-Encoding, and the conditions and the range with their names."""
    kept = request.kept if request.known is None else request.known.kept
    if kept is None:
        return gather(request.fields)
    found: tuple[bytes | None, dict[bytes, bytes]] | None = kept.get(_deciding)
    if found is None:
        found = kept[_deciding] = gather(request.fields)
    return found


def _send_parts(form: Representation, parts: list[tuple[int, int]], exchange: Exchange) -> None:
    """Answer 206 with `parts`, offsets of the first byte and behind the last."""
    file = form.file

    def piece(first: int, end: int) -> Part:
        if file.opened is not None:
            return file.opened, first, end - first
        assert file.content is not None
        return file.content[first:end]

    if len(parts) == 1:
        first, end = parts[0]
        content_type = form.content_type
        about = [("Content-Range", ranges.content_range(first, end, file.size))]
        pieces = [piece(first, end)]
        length = end - first
    else:
        multipart = ranges.Multipart(parts, file.size, form.content_type)
        content_type = multipart.content_type
        about = []
        pieces = []
        for head, (first, end) in zip(multipart.heads, parts, strict=True):
            pieces += head, piece(first, end)
        pieces.append(multipart.end)
        length = multipart.length
    fields = Fields([("Content-Type", content_type), *form.partial, *about])
    if file.opened is None:
        exchange.respond(STATUS[206], 206, fields, b"".join(pieces))  # type: ignore[arg-type]  # all of them are bytes
    else:
        exchange.send_parts(STATUS[206], 206, fields, pieces, length)
