"""File name patterns: which Cache-Control a file has.

A pattern without "/" is compared with the last component of the path, one with it with the whole path below the root;
a slash at its beginning changes nothing but that. "*": anything but "/"; "**": anything; "**/": any folders, or
none; "?": one character but "/"; "{a,b}": a or b. Everything else stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_TOKEN = re.compile(r"\*{2,}/|\*{2,}|\*|\?|\{[^{}]*\}|.", re.DOTALL)
_MEANING = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
#: More stars than two mean no more than two.
_STARS = re.compile(r"\*{3,}")


def compiled(pattern: str) -> re.Pattern[bytes]:
    """Return the regular expression for a path's whole, or, of a pattern without "/", for its last component."""
    source = "" if "/" in pattern else "(?:.*/)?"
    for token in _TOKEN.findall(_STARS.sub("**", pattern.removeprefix("/"))):
        if token in _MEANING:
            source += _MEANING[token]
        elif len(token) > 1:
            source += f"(?:{'|'.join([re.escape(each) for each in token[1:-1].split(',')])})"
        else:
            source += re.escape(token)
    # bytes, because names may be no UTF-8; "?" is one byte of theirs
    return re.compile(source.encode(), re.DOTALL)


class CacheControl:
    """The values of Cache-Control for one tenant's files."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._rules = [(compiled(pattern), value) for pattern, value in table.items()]

    def of(self, path: bytes) -> str:
        """Return the value for the file at `path` below the root; "": no such field."""
        return next((value for pattern, value in self._rules if pattern.fullmatch(path)), "")
