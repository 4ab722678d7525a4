"""Range requests (RFC 9110 section 14) for bytes.

Rules:
- What asks for more bytes than there are, or in more pieces than MAX_RANGES, is answered with the whole (section
  14.2): overlapping ranges are a way to let a server send a file a thousand times (CVE-2011-3192). As nginx does it.
- What is no range, or begins behind the end, isn't sent. If nothing is left of a set: 416.
- Another unit than bytes is ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

#: Video players and viewers of PDF ask for a handful; each costs a line of the head, and a head of a part.
MAX_RANGES = 64

#: One range: first and last byte, or the length of a suffix. Numbers as long as file sizes can be.
_SPEC = re.compile(rb"(?:0*([0-9]{1,19})-(?:0*([0-9]{1,19}))?|-0*([0-9]{1,19}))")


class UnsatisfiableError(ValueError):
    """Nothing of what is asked for is there: answered 416."""


def parse(value: bytes, size: int) -> list[tuple[int, int]] | None:
    """Return the offsets (first, end) that a Range field asks for of `size` bytes; None: it is ignored.

    Raises UnsatisfiableError.
    """
    if value[:6].lower() != b"bytes=" or not value[6:].strip(b", \t"):
        return None
    ranges = []
    total = 0
    for element in value[6:].split(b","):
        spec = element.strip(b" \t")
        if not spec:
            continue
        match = _SPEC.fullmatch(spec)
        if match is None:
            raise UnsatisfiableError
        if match[3] is not None:
            first, end = max(0, size - int(match[3])), size
        else:
            first = int(match[1])
            end = size if match[2] is None else min(size, int(match[2]) + 1)
        if first < end:
            ranges.append((first, end))
            total += end - first
            if len(ranges) > MAX_RANGES:
                return None
        elif first == 0:
            return None  # of nothing, all: the empty file
    if not ranges:
        raise UnsatisfiableError
    return ranges if total <= size else None


def content_range(first: int, end: int, size: int) -> str:
    """Return the value of Content-Range."""
    return f"bytes {first}-{end - 1}/{size}"


class Multipart:
    """What stands around the parts of a multipart/byteranges body (section 14.6)."""

    def __init__(self, ranges: Sequence[tuple[int, int]], size: int, content_type: str) -> None:
        # as long as it can't be guessed, no file can hold it
        boundary = os.urandom(12).hex()
        self.content_type = f"multipart/byteranges; boundary={boundary}"
        before = f"\r\n--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: "
        self.heads = [
            f"{before}{content_range(first, end, size)}\r\n\r\n".encode("latin-1") for first, end in ranges
        ]
        self.end = f"\r\n--{boundary}--\r\n".encode("ascii")
        self.length = sum(map(len, self.heads)) + len(self.end) + sum([end - first for first, end in ranges])
