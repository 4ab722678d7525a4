"""On which line of a TOML text a table or key stands: a light scan, for error messages only.

tomllib keeps no positions. This finds headers and keys at the start of a line, which is where people write them; what
it can't find (keys within inline tables) gets the line of the nearest thing around it. A wrong line can only come from
text that looks like a key within a multi-line array; multi-line strings are skipped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PART = r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'"""
_DOTTED = rf"(?:{_PART})(?:[ \t]*\.[ \t]*(?:{_PART}))*"
_HEADER = re.compile(rf"[ \t]*(\[?)\[[ \t]*({_DOTTED})[ \t]*\]")
_KEY = re.compile(rf"[ \t]*({_DOTTED})[ \t]*=")
_EACH = re.compile(_PART)
#: Lines looked at for literals, for all errors of a file together: thousands of errors must not take minutes.
_LITERAL_BUDGET = 500_000
_LONG_QUOTE = re.compile(r'"""|' + "'''")


class LineIndex:
    """The lines of one file's tables and keys. Keys are paths of names: ("vhost", "blog", "uid"); a table of a list has
    its position behind its name: ("vhost", "blog", "mount", "0").
    """

    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()
        self._budget = _LITERAL_BUDGET
        self._index = dict(reversed(list(_scan(self._lines))))  # the first of several wins

    def __contains__(self, path: tuple[str, ...]) -> bool:
        return path in self._index

    def find(self, path: tuple[str, ...], literal: str | None = None) -> int | None:
        """Return the line (from 1) of the thing at `path`, or of the nearest thing around it; None if there is none.

        With `literal`, the line at or after it, before the next table, where that text stands in quotes, in
        lower or upper case.
        """
        for length in range(len(path), 0, -1):
            line = self._index.get(path[:length])
            if line is not None:
                return self._literal(line, literal) if length == len(path) and literal else line
        return None

    def _literal(self, line: int, literal: str) -> int:
        quoted = (f'"{literal.lower()}"', f"'{literal.lower()}'")
        for number in range(line, len(self._lines) + 1):
            if self._budget == 0:
                break
            self._budget -= 1
            text = self._lines[number - 1]
            if any(form in text.lower() for form in quoted):
                return number
            if number > line and (_HEADER.match(text) or _KEY.match(text)):
                break
        return line


def _scan(lines: list[str]) -> Iterator[tuple[tuple[str, ...], int]]:
    table: tuple[str, ...] = ()
    lists: dict[tuple[str, ...], int] = {}  # the position of the last table of each
    closing = ""  # of the multi-line string that we are in
    for number, line in enumerate(lines, 1):
        if closing:
            closing = "" if closing in line else closing
            continue
        if header := _HEADER.match(line):
            table = _resolved(_names(header[2]), lists, another=bool(header[1]))
            for length in range(1, len(table) + 1):
                yield table[:length], number
        elif key := _KEY.match(line):
            names = _names(key[1])
            for length in range(1, len(names) + 1):
                yield table + names[:length], number
            if (quote := _LONG_QUOTE.search(line, key.end())) and line.count(quote[0], quote.end()) == 0:
                closing = quote[0]


def _resolved(names: tuple[str, ...], lists: dict[tuple[str, ...], int], *, another: bool) -> tuple[str, ...]:
    """Put the positions of lists into the name of a table; `another`: it is one more of a list itself."""
    path: tuple[str, ...] = ()
    for number, name in enumerate(names, 1):
        path += (name,)
        if another and number == len(names):
            lists[path] = lists.get(path, -1) + 1
        if path in lists:
            path += (str(lists[path]),)
    return path


def _names(dotted: str) -> tuple[str, ...]:
    return tuple([part[1:-1] if part[0] in "\"'" else part for part in _EACH.findall(dotted)])
