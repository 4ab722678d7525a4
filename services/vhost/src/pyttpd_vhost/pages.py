"""The bodies of errors, as the tenant wants them: `error_pages`, for every kind and for refusals.

Rules:
- The status, and what else is in the head, isn't the page's affair: it is a body with a type, no more. It has no
  validators of its own.
- The file is looked at each time (a stat), read only when it has changed, and opened below the root only.
- A page that isn't there, or can't be read, costs nobody the answer: the plain one stands in, and the log says so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyttpd.config.kinds import StaticOptions
from pyttpd.config.limits import MAX_ERROR_PAGE_BYTES

from pyttpd_vhost.http.response import Fields, plain_page
from pyttpd_vhost.media import ContentTypes
from pyttpd_vhost.openat2 import Root, identity, settled

if TYPE_CHECKING:
    from pyttpd.config.shares import VhostShare

    from pyttpd_vhost.site import SiteLog

#: What was read, and of which file.
_Read = tuple[tuple[int, int, int], bytes]


class ErrorPages:
    """The configured pages of one tenant, by status. Any thread may ask."""

    def __init__(self, share: VhostShare, log: SiteLog) -> None:
        self._root = Root(share.root)
        self._log = log
        # as the site's own files have them
        static = next(
            (mount.options for mount in share.mounts if isinstance(mount.options, StaticOptions)),
            StaticOptions(share.root),
        )
        self._types = ContentTypes(static.types, static.charset)
        self._files = {status: os.fsencode(path) for status, path in share.error_pages.items()}
        self._read: dict[bytes, _Read] = {}
        self._missing: set[bytes] = set()
        for path in self._files.values():
            self._content(path)  # so that what is missing is told at the start

    def page(self, code: int, headers: Iterable[tuple[str, str]] = ()) -> tuple[Fields, bytes]:
        """Return fields, `headers` among them, and body of the answer for `code`."""
        path = self._files.get(str(code)) or self._files.get(f"{code // 100}xx")
        content = None if path is None else self._content(path)
        if path is None or content is None:
            return plain_page(code, headers)
        return Fields([("Content-Type", self._types.of(path)), *headers]), content

    def _content(self, path: bytes) -> bytes | None:
        read = self._read.get(path)
        if read is not None:
            try:
                status = os.stat(path, dir_fd=self._root.fd)
                if identity(status) == read[0]:
                    return read[1]
            except OSError:
                pass  # opening says why
        try:
            fd = self._root.open(path)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise OSError("not a regular file")
                if status.st_size > MAX_ERROR_PAGE_BYTES:
                    raise OSError(f"more than {MAX_ERROR_PAGE_BYTES} bytes")
                content = os.pread(fd, MAX_ERROR_PAGE_BYTES, 0)
            finally:
                os.close(fd)
        except OSError as error:
            self._read.pop(path, None)
            if path not in self._missing:  # once, not with each answer
                self._missing.add(path)
                self._log.warning("error page not read", path=os.fsdecode(path), error=str(error))
            return None
        self._missing.discard(path)
        if settled(status):
            self._read[path] = identity(status), content
        return content
