"""What a path leads to: open files, their validators and heads, as they were at one moment.

Rules:
- Nothing here changes once it is made. What an answer says and what it sends come from one `File`, so a file that is
  replaced can't lend its head to the body of another.
- Of a file, everything comes from its descriptor. It is read between two looks at it that say the same.
- ETag: inode, time of modification (ns) and size, strong; with the coding's name, so that variants never share one.
- Last-Modified is never later than now (RFC 9110 section 8.8.2.1).
- `checks` are names with the identities that were found under them. As long as `os.stat` finds the same there, the
  entry is as good as a new one: the file's own name, those of its variants, and, where a name that wasn't there might
  have come, the folder's.
- An entry isn't `settled` if something of it was changed a moment ago: it serves the one request that it was made for.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pyttpd_vhost.http.dates import http_date
from pyttpd_vhost.http.response import STATUS, Fields, Prepared
from pyttpd_vhost.http.stream import JOIN_LIMIT, OpenFile
from pyttpd_vhost.kinds.static.negotiation import SUFFIXES, choose
from pyttpd_vhost.openat2 import Root, identity, settled

if TYPE_CHECKING:
    from pyttpd.config.kinds import StaticOptions

    from pyttpd_vhost.kinds.static.patterns import CacheControl
    from pyttpd_vhost.media import ContentTypes

#: Up to here a file is read, sent with its head in one packet, and kept in memory; above, sendfile(2) saves the copy.
READ_LIMIT = 32768

#: A variant may be so much older (s) than its original: copies and archives keep times in steps of up to two seconds.
VARIANT_AGE = 2.0

#: Somebody who writes into a file while we read it is waited for so often; then it is taken as it is.
_READS = 3

#: A path with its identity.
Check = tuple[bytes, tuple[int, int, int]]


class NotAFileError(Exception):
    """There is something, but no regular file. `folder`: a directory."""

    def __init__(self, *, folder: bool) -> None:
        self.folder = folder


class File:
    """One regular file: its bytes (`content`) if they are few, else its descriptor (`opened`)."""

    __slots__ = ("content", "modified", "opened", "size", "status")

    def __init__(self, root: Root, path: bytes) -> None:
        """Open `path` below `root`. Raises OSError, and NotAFileError."""
        fd = root.open(path)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NotAFileError(folder=stat.S_ISDIR(status.st_mode))
            content: bytes | None = None
            if status.st_size <= READ_LIMIT:
                for _ in range(_READS):
                    content = os.pread(fd, READ_LIMIT + 1, 0)
                    before, status = status, os.fstat(fd)
                    if identity(before) == identity(status):
                        break
                if content is not None and len(content) > READ_LIMIT:
                    content = None  # it has grown meanwhile
        except BaseException:
            os.close(fd)
            raise
        self.status = status
        self.content = content
        self.modified = min(int(status.st_mtime), int(time.time()))
        self.opened: OpenFile | None = None
        if content is None:
            self.size = status.st_size
            self.opened = OpenFile(fd, status)
        else:
            self.size = len(content)
            os.close(fd)


class Representation:
    """One form of a resource: a file, its coding ("": none), and the heads of answers with it."""

    __slots__ = ("_prepared", "content_type", "etag", "file", "partial", "unchanged", "whole")

    def __init__(self, file: File, coding: str, content_type: str, common: Sequence[tuple[str, str]]) -> None:
        """`common`: what all forms of the resource say as well."""
        self.file = file
        self.content_type = content_type
        status = file.status
        name = f"-{coding}" if coding else ""
        self.etag = f'"{status.st_ino:x}-{status.st_mtime_ns:x}-{file.size:x}{name}"'
        validators = [("Last-Modified", http_date(file.modified)), *common, ("ETag", self.etag)]
        encoding = [("Content-Encoding", coding)] if coding else []
        #: Of 200, of 304; and of 206, where Content-Type and Content-Range are to be added.
        self.whole = Fields(
            [("Content-Type", content_type), *validators, *encoding, ("Accept-Ranges", "bytes")]
        )
        self.unchanged = Fields(validators)
        self.partial = [*validators, *encoding]
        self._prepared: dict[tuple[int, bool], Prepared] = {}

    def prepared(self, code: int, *, head_only: bool) -> Prepared | None:
        """Return a whole answer, 200 or 304, that is ready to be sent. None: this one is better made each time."""
        answer = self._prepared.get((code, head_only))
        if answer is None:
            file = self.file
            content: bytes | None = b""
            part = None
            if code == 200 and not head_only:
                if file.opened is not None and file.size:
                    part = ((file.opened, 0, file.size),)
                else:
                    content = file.content
            if content is None or len(content) > JOIN_LIMIT:
                return None
            if code == 304:
                head = f"HTTP/1.1 {STATUS[304]}\r\n{self.unchanged.text}"
            else:
                head = f"HTTP/1.1 {STATUS[200]}\r\n{self.whole.text}Content-Length: {self.file.size}\r\n"
            answer = self._prepared[code, head_only] = Prepared(code, head, content, part)
        return answer


class Entry:
    """All forms of a resource. `turn` and `used` are the cache's."""

    __slots__ = (
        "_codings",
        "_plain",
        "_variants",
        "checks",
        "content_bytes",
        "descriptors",
        "modified",
        "settled",
        "turn",
        "used",
    )

    def __init__(
        self,
        plain: Representation,
        variants: Mapping[str, Representation],
        checks: tuple[Check, ...],
        *,
        settled: bool,
    ) -> None:
        """`variants`: by coding, best first."""
        self._plain = plain
        self._variants = variants
        self._codings = tuple(variants)
        self.checks = checks
        self.settled = settled
        self.turn: object = None
        self.used = False
        files = [plain.file, *[variant.file for variant in variants.values()]]
        self.content_bytes = sum([len(file.content) for file in files if file.content is not None])
        self.descriptors = sum([file.opened is not None for file in files])
        self.modified = max([file.modified for file in files])

    def representation(self, accept_encoding: bytes | None) -> Representation:
        """Return the form for a client with that Accept-Encoding."""
        if not self._codings:
            return self._plain
        coding = choose(accept_encoding, self._codings)
        return self._plain if coding is None else self._variants[coding]


class Folder:
    """The files below a root, as the settings want them. Has no state: any thread may load."""

    def __init__(
        self, root: Root, options: StaticOptions, types: ContentTypes, cache_control: CacheControl
    ) -> None:
        self._root = root
        self._types = types
        self._cache_control = cache_control
        self._index = [os.fsencode(name) for name in options.index]
        self._codings = [(coding, SUFFIXES[coding]) for coding in options.precompressed]
        self._packed = tuple([suffix for _, suffix in self._codings])

    def load(self, path: bytes) -> Entry:
        """Open the file at `path`. Raises OSError, and NotAFileError."""
        folder = self._look(path) if self._codings else None
        return self._entry(path, File(self._root, path), folder)

    def load_index(self, folder: bytes) -> Entry | None:
        """Open the index of `folder` (b"", or with its slash); None: it has none. Raises OSError."""
        looked = self._look(folder)
        for name in self._index:
            path = folder + name
            try:
                return self._entry(path, File(self._root, path), looked)
            except NotAFileError:
                continue
            except OSError as error:
                if error.errno not in NOT_THERE:
                    raise
        return None

    def _look(self, path: bytes) -> tuple[bytes, os.stat_result]:
        """Return the folder that `path` is in, and its status, before anything in it is opened."""
        folder = path.rpartition(b"/")[0] or b"."
        return folder, os.stat(folder, dir_fd=self._root.fd)

    def _entry(self, path: bytes, file: File, folder: tuple[bytes, os.stat_result] | None) -> Entry:
        calm = settled(file.status)
        checks = [(path, identity(file.status))]
        if folder is not None:
            checks.append((folder[0], identity(folder[1])))
            calm = calm and settled(folder[1])
        files: list[tuple[str, File]] = []
        if not path.endswith(self._packed):
            for coding, suffix in self._codings:
                try:
                    # by name first: most files have none, and opening takes twice as long to say so
                    os.stat(path + suffix, dir_fd=self._root.fd, follow_symlinks=False)
                    variant = File(self._root, path + suffix)
                except FileNotFoundError:
                    continue
                except (OSError, NotAFileError):
                    calm = False  # no name that could be watched
                    continue
                checks.append((path + suffix, identity(variant.status)))
                calm = calm and settled(variant.status)
                if variant.status.st_mtime >= file.status.st_mtime - VARIANT_AGE:
                    files.append((coding, variant))
        common = [("Vary", "Accept-Encoding")] if files else []
        if cache_control := self._cache_control.of(path):
            common.append(("Cache-Control", cache_control))
        kind = self._types.of(path)
        return Entry(
            Representation(file, "", kind, common),
            {coding: Representation(variant, coding, kind, common) for coding, variant in files},
            tuple(checks),
            settled=calm,
        )


#: What open(2) says of a path that isn't there: links in circles or out of the root, names too long, sockets,
#: devices without a driver.
NOT_THERE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.EXDEV,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
        errno.EINVAL,
    }
)
#: And of one that may not be read.
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
