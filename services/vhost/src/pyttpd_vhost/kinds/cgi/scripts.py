"""Which program a request means, and with which words it is run (RFC 3875 sections 3.3, 4.1.5, 4.1.13, 4.4).

    /cgi-bin/shop/cart.pl/items/3?x=1           mount /cgi-bin, root /srv/a/cgi
             ^^^^^^^^^^^^                       folders and a file below the root: /srv/a/cgi/shop/cart.pl
    ^^^^^^^^^^^^^^^^^^^^^                       SCRIPT_NAME
                         ^^^^^^^^               PATH_INFO

Rules:
- A path comes decoded, once, and is cut into segments then. One that is "..", and a NUL, make the request a bad one
  (400) wherever they stand: section 4.1.5 leaves that to us, and no program has to be as careful. (Where a vhost has
  several mounts paths are normal already, mounts.py.)
- The first segment that is no folder is the program, whatever follows is PATH_INFO. What is hidden (".git"), a link, or
  not there, is 404: nothing is looked for elsewhere. A folder is its `index`, after a redirect to its slash.
- A file is run or refused, and never shown: one that may not be run is 403, with the reason in the log
  (execution/checks.py), and so is one that begins with "nph-": its output would have to be the connection's, whose
  framing is ours (section 5 leaves it to the server whether there are such scripts).
- With `script` one program answers for all paths of the mount: it is the operator's word, so links and other places are
  the operator's affair; what it is and who could write to it is checked all the same.
- A query without "=" becomes the program's words (section 4.4), but not if one of them begins with "-" and would be
  taken for an option (CVE-2012-1823), nor for an interpreter that `handlers` names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from pyttpd_vhost.execution import checks
from pyttpd_vhost.execution.checks import CheckFailed, Identity, NotThere
from pyttpd_vhost.http.paths import BadPathError

if TYPE_CHECKING:
    from pyttpd.config.kinds import CgiOptions

#: Words of a query, and their length together: what nobody types into a search form.
MAX_WORDS = 64
MAX_WORDS_SIZE = 4096


class ToFolder(Exception):
    """A folder was asked for without its slash. `path`: what it is below the mount, without a slash at either end."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


@dataclass(frozen=True, slots=True)
class Script:
    """What is run. `name` is the program's part of SCRIPT_NAME, `info` is PATH_INFO, both decoded; `file` is its
    absolute path, `directory` where it is run, `argv` the words.
    """

    argv: tuple[bytes, ...]
    file: bytes
    directory: bytes
    name: bytes
    info: bytes
    handled: bool = False


class Scripts:
    """The programs of one mount. `who` runs them. `loose`: the operator doesn't want owners and modes checked."""

    def __init__(self, options: CgiOptions, who: Identity) -> None:
        self._root = os.fsencode(options.root)
        self._who = who
        self._loose = not options.suexec
        self._index = tuple(os.fsencode(name) for name in options.index)
        self._handlers: Mapping[bytes, bytes] = {
            os.fsencode(suffix): os.fsencode(program) for suffix, program in options.handlers.items()
        }
        self._script = (
            None if options.script is None else os.path.join(self._root, os.fsencode(options.script))
        )

    def find(self, info: bytes, query: bytes) -> Script:
        """Return what a path, decoded and without the mount's part, means.

        Raises BadPathError, NotThere, ToFolder, CheckFailed, and OSError for what can't be looked at.
        """
        if b"\0" in info or b".." in info.split(b"/"):
            raise BadPathError
        if self._script is not None:
            return self._whole(self._script, info, query)
        components = info.split(b"/")[1:] or [b""]
        folder = not components[-1]
        base = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            walked = components[:-1] if folder else components
            found = checks.walk(base, walked, None if self._loose else self._who, os.fsdecode(self._root))
            try:
                if stat.S_ISDIR(found.status.st_mode):
                    if not self._index:
                        raise NotThere
                    if not folder or not info:
                        raise ToFolder(found.path)
                    return self._of_folder(base, found.path, query)
                rest = [*found.rest, b""] if folder else found.rest
                return self._script_at(found, rest, query)
            finally:
                found.close()
        finally:
            os.close(base)

    def _of_folder(self, base: int, folder: bytes, query: bytes) -> Script:
        """Return a folder's own program."""
        above = folder.split(b"/") if folder else []
        for name in self._index:
            try:
                found = checks.walk(
                    base, [*above, name], None if self._loose else self._who, os.fsdecode(self._root)
                )
            except NotThere:
                continue
            try:
                if not stat.S_ISDIR(found.status.st_mode):
                    return self._script_at(found, (), query)
            finally:
                found.close()
        raise NotThere

    def _script_at(self, found: checks.Found, rest: Sequence[bytes], query: bytes) -> Script:
        """Return the program that a walk has found, once it is checked."""
        if stat.S_ISLNK(found.status.st_mode):
            raise NotThere
        file = self._root + b"/" + found.path
        name = os.path.basename(found.path)
        if name.startswith(b"nph-"):
            raise CheckFailed(
                "nph", f"{os.fsdecode(file)} is a script that parses no headers: not served here"
            )
        handler = self._handlers.get(os.path.splitext(name)[1])
        self._check(found.status, file, handler)
        info = b"".join([b"/" + each for each in rest])
        return _made(file, b"/" + found.path, info, handler, query)

    def _whole(self, file: bytes, info: bytes, query: bytes) -> Script:
        """Return the mount's one program, once it is checked."""
        try:
            fd = os.open(file, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise CheckFailed("there", f"{os.fsdecode(file)}: {os.strerror(error.errno or 0)}") from None
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        handler = self._handlers.get(os.path.splitext(file)[1])
        if not self._loose:
            folder = os.path.dirname(os.path.realpath(file))
            try:
                checks.check(checks.DIRECTORY_RULES, os.stat(folder), self._who, os.fsdecode(folder))
            except OSError as error:
                if error.errno != errno.EACCES:
                    raise
        self._check(status, file, handler)
        return _made(file, b"", info, handler, query)

    def _check(self, status: os.stat_result, file: bytes, handler: bytes | None) -> None:
        checks.check_identity(self._who)
        if handler is None:
            rules = checks.LOOSE_RULES if self._loose else checks.PROGRAM_RULES
        else:
            rules = checks.LOOSE_SOURCE_RULES if self._loose else checks.SOURCE_RULES
        checks.check(rules, status, self._who, file.decode("utf-8", "backslashreplace"))


def _made(file: bytes, name: bytes, info: bytes, handler: bytes | None, query: bytes) -> Script:
    argv = (handler, file) if handler is not None else (file, *words(query))
    return Script(argv, file, os.path.dirname(file), name, info, handler is not None)


def words(query: bytes) -> tuple[bytes, ...]:
    """Return the words of an indexed query (RFC 3875 section 4.4), none if it is no such query."""
    if not query or b"=" in query or len(query) > MAX_WORDS_SIZE:
        return ()
    found = tuple(unquote_to_bytes(word) for word in query.split(b"+"))
    if len(found) > MAX_WORDS or any(not word or word[:1] == b"-" or b"\0" in word for word in found):
        return ()
    return found
