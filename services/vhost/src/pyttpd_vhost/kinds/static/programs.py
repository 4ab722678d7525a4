"""What a static mount never sends, because another mount of the vhost runs it: its source code may hold passwords.

Rules:
- A file with a suffix that another mount has among its `scripts` or `handlers`, in upper or lower case, at the end of
  its name or before anything but a letter or digit: a.php, a.PHP, "a.php.", "a.php ", a.php.bak, a.php~, a.php.gz. With
  .php its other common names as well.
- Everything below another mount's own folder, where that runs what lies in it and the folder is below this root.
- A file that another mount names: its `script`, its `command`'s program, and files among that one's arguments (a script
  for an interpreter, a file of settings); and these put aside, as above.

So a static mount and PHP may have one root, and nothing has to be said for that. A vhost where nothing is run has no
programs: there every file is a file.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from pyttpd.config.kinds import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pyttpd.config.kinds import Mount

#: What else holds code in the language of such a suffix.
KINDRED = {".php": (".php3", ".php4", ".php5", ".php7", ".php8", ".phps", ".pht", ".phtml", ".phar", ".inc")}


class Programs:
    """What belongs to the other mounts of a vhost, whose own root is `home`, as seen from the `root` of one."""

    def __init__(self, mounts: Iterable[Mount], root: str, home: str = "") -> None:
        suffixes: set[str] = set()
        folders: set[str] = set()
        files: set[str] = set()
        for mount in mounts:
            if not KINDS[mount.kind].runs:
                continue
            for key in ("scripts", "handlers"):
                suffixes.update(getattr(mount.options, key, ()))
            files.update(
                [file[len(root) + 1 :] for file in _named(mount, home) if file.startswith(f"{root}/")]
            )
            folder = getattr(mount.options, "root", None)
            if folder is not None and folder.startswith(f"{root}/"):
                folders.add(folder[len(root) + 1 :])
        suffixes.update([more for suffix in tuple(suffixes) for more in KINDRED.get(suffix, ())])
        self._name: re.Pattern[bytes] | None = None
        if suffixes:
            any_of = "|".join([re.escape(suffix) for suffix in sorted(suffixes)])
            self._name = re.compile(f"(?:{any_of})(?![a-z0-9])".encode(), re.IGNORECASE)
        self._file: re.Pattern[bytes] | None = None
        if files:
            any_of = "|".join([re.escape(file) for file in sorted(files)])
            self._file = re.compile(f"(?:{any_of})(?![a-z0-9/])".encode(), re.IGNORECASE)
        self._folders = tuple([f"{folder}/".encode() for folder in sorted(folders)])

    def has(self, path: bytes) -> bool:
        """Whether `path` (below the root, normal) is one of them. A slash at its end doesn't matter."""
        if self._name is not None and self._name.search(path.rstrip(b"/").rpartition(b"/")[2]) is not None:
            return True
        if self._file is not None and self._file.match(path.rstrip(b"/")) is not None:
            return True
        return bool(self._folders) and (path + b"/").startswith(self._folders)


def _named(mount: Mount, home: str) -> Iterator[str]:
    """Yield the absolute paths of the files that `mount` runs by name, as far as one can see."""
    script = getattr(mount.options, "script", None)
    if script:
        yield script
    directory = getattr(mount.options, "root", None) or home
    for number, word in enumerate(getattr(mount.options, "command", ())):
        # A program without a slash is looked for elsewhere; an argument without a dot or slash is hardly a file.
        if "/" in word or ("." in word and number):
            file = os.path.normpath(os.path.join(directory, word))
            if not os.path.isdir(file):
                yield file
