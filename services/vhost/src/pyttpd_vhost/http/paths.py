"""The path of a request, decoded and normal: what decides which mount it belongs to, and which file it means.

Rules (those of nginx, which RFC 3986 section 5.2.4 allows):
- It is percent-decoded once. What is a slash then, is one; a second encoding ("%252e") is a name like any other.
- Empty components and "." go, ".." takes the one before it with it. One too many, or a NUL, is no path (400).
- Upper and lower case are different, and so are all other bytes: nothing else is made equal.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes


class BadPathError(ValueError):
    """No path at all: answered 400."""


def normal(path: bytes) -> bytes:
    """Return a request's path (as `Request.path` has it) decoded and normal, with its first slash; one at the end is
    kept. Raises BadPathError.
    """
    if b"%" in path:
        path = unquote_to_bytes(path)
    if path[:1] != b"/" or b"\0" in path:
        raise BadPathError
    if b"/." not in path and b"//" not in path:
        return path
    kept: list[bytes] = []
    components = path.split(b"/")
    for component in components:
        if component == b"..":
            if not kept:
                raise BadPathError
            kept.pop()
        elif component not in (b"", b"."):
            kept.append(component)
    if kept and components[-1] in (b"", b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)
