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
from pyttpd_vhost.openat2 import Root


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

    def close(self) -> None:
        """Give the descriptor back."""
        self._root.close()

    def find(self, path: bytes) -> Script | File | Moved | None:
        """Return what a request's `path` (below the mount, normal: http/paths.py) means; None: nothing is there."""
        components = path[1:].split(b"/")
        at: list[bytes] = []
        for number, component in enumerate(components):
            if is_hidden(component, number):
                break
            at.append(component)
            if component.endswith(self._rules.suffixes) and self._is_file(b"/".join(at)):
                rest = components[number + 1 :]
                return Script(b"/".join(at), b"".join([b"/" + name for name in rest]))
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
        try:
            fd = self._root.open(path)
        except OSError:
            return False
        try:
            return stat.S_ISREG(os.fstat(fd).st_mode)
        finally:
            os.close(fd)
