"""Which script a path means, for applications that are files below a root (PHP, above all).

Rules
- The script is the first component of the path that has one of the suffixes and *is a regular file*; what follows is
  PATH_INFO. What isn't a file is none, so "upload.jpg/x.php" never runs upload.jpg, whatever a language's own guesses
  are (PHP: cgi.fix_pathinfo).
- It lies below the root, at every step of the way (openat2.py). Nothing below a name that starts with a dot runs; in
  PATH_INFO such names mean nothing and are left alone.
- A folder's script is the first of the `index` names that is there; a folder without a slash at its end is redirected
  to the one with it, or relative links would lead elsewhere.
- What is no script, but another file, may be sent as it is (`programs` says which may not): never one whose name could
  be a script's that somebody has put aside ("config.php~", "INDEX.PHP"), whose text is a secret.
- A file that is still the one that was opened before isn't opened again: lstat(2) of it and of the folders on its way
  tells, if none of them is a link. What isn't there is looked for each time.
- Whatever else is asked for leads to the front controller, if there is one: a script that reads REQUEST_URI. It has no
  PATH_INFO then, as with nginx's `try_files` and Apache's FallbackResource.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import NamedTuple

from pyttpd_vhost.kinds.static.paths import is_hidden
from pyttpd_vhost.kinds.static.programs import Programs
from pyttpd_vhost.openat2 import Root, identity, settled

#: Files that are remembered, and the longest of their paths: 200 KB at the most. Full, it starts anew.
_MAX_REMEMBERED = 512
_LONGEST_REMEMBERED = 256


class Script(NamedTuple):
    """A script to run: its path below the root, and what follows it in the request's path ("" or "/...")."""

    path: bytes
    info: bytes


class File(NamedTuple):
    """Nothing to run: a file, or a folder with one of the `index` names, for the kind static."""


class Moved(NamedTuple):
    """A folder that was asked for without the slash: its path."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Rules:
    """`suffixes`: of scripts, with their dots; `index`: names; `front`: the front controller, "" for none; `programs`:
    what of the other files must not be sent, None if none may.
    """

    suffixes: tuple[bytes, ...]
    index: tuple[bytes, ...]
    front: bytes = b""
    programs: Programs | None = None


class Scripts:
    """Finds the scripts below `root`. For all threads."""

    def __init__(self, root: str, rules: Rules, *, symlinks: bool = True) -> None:
        self._root = Root(root, symlinks=symlinks)
        self._rules = rules
        #: Regular files that were found below the root: the folders on the way, and what they are known by.
        self._known: dict[bytes, tuple[list[bytes], tuple[int, int, int]]] = {}
        #: Of these, by the request's path, the scripts before which no other name could be one's.
        self._plain: dict[bytes, Script] = {}

    def close(self) -> None:
        """Give the descriptor back."""
        self._root.close()

    def find(self, path: bytes) -> Script | File | Moved | None:
        """Return what a request's `path` (below the mount, normal: http/paths.py) means; None: nothing is there."""
        plain = self._plain.get(path)
        if plain is not None and self._is_file(plain.path):
            return plain
        components = path[1:].split(b"/")
        at: list[bytes] = []
        first = True
        for number, component in enumerate(components):
            if is_hidden(component, number):
                break
            at.append(component)
            if component.endswith(self._rules.suffixes):
                if self._is_file(b"/".join(at)):
                    rest = components[number + 1 :]
                    script = Script(b"/".join(at), b"".join([b"/" + name for name in rest]))
                    if first and not rest and script.path in self._known:
                        self._plain[path] = script
                    return script
                first = False
        else:
            found = self._folder(path)
            if found is not None:
                return found
            if self._may_be_sent(path[1:]) and self._is_file(path[1:]):
                return File()
        if self._rules.front and self._is_file(self._rules.front):
            return Script(self._rules.front, b"")
        return None

    def _may_be_sent(self, path: bytes) -> bool:
        programs = self._rules.programs
        return programs is not None and not programs.has(path)

    def _folder(self, path: bytes) -> Script | File | Moved | None:
        slash = path[-1:] == b"/"
        folder = path[1:]
        for name in self._rules.index:
            script = (folder if slash or not folder else folder + b"/") + name
            runs = name.endswith(self._rules.suffixes)
            if (runs or self._may_be_sent(script)) and self._is_file(script):
                if not slash:
                    return Moved(folder)
                return Script(script, b"") if runs else File()
        return None

    def _is_file(self, path: bytes) -> bool:
        known = self._known.get(path)
        if known is not None and self._is_still(path, *known):
            return True
        try:
            fd = self._root.open(path)
        except OSError:
            return False
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
        if not stat.S_ISREG(status.st_mode):
            return False
        if len(path) <= _LONGEST_REMEMBERED and settled(status):
            names = path.split(b"/")
            folders = [b"/".join(names[:count]) for count in range(1, len(names))]
            if self._is_still(path, folders, identity(status)):
                if len(self._known) >= _MAX_REMEMBERED:
                    self._known.clear()
                    self._plain.clear()
                self._known[path] = folders, identity(status)
        return True

    def _is_still(self, path: bytes, folders: list[bytes], known: tuple[int, int, int]) -> bool:
        """Whether the way to `path` is one of folders and no links, and leads to the file `known`."""
        root = self._root.fd
        try:
            for folder in folders:
                if not stat.S_ISDIR(os.lstat(folder, dir_fd=root).st_mode):
                    return False
            return identity(os.lstat(path, dir_fd=root)) == known
        except OSError:
            return False
