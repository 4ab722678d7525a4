"""From the path of a request to a path below the root.

Rules (those of nginx, which RFC 3986 section 5.2.4 allows):
- It is percent-decoded once. What is a slash then, is one; a second encoding ("%252e") is a name like any other.
- Empty components and "." go, ".." takes the one before it with it. One too many, or a NUL, is no path (400).
- A component that starts with a dot is hidden (404): .git, .htpasswd, .env. But ".well-known" may be the first one
  (RFC 8615): certificates are asked for by it.
- What comes out has no empty component, so that no redirect that is made of it can start with "//" and be taken for
  another host's.

The kernel keeps the walk below the root as well (openat2.py): this is about names, not about safety alone.
"""

from __future__ import annotations

from urllib.parse import quote, unquote_to_bytes

WELL_KNOWN = b".well-known"

#: What may stand in a path as it is (RFC 3986 section 3.3).
_SAFE = "/!$&'()*+,;=:@~"


class BadPathError(ValueError):
    """No path at all: answered 400."""


def relative(path: bytes) -> bytes | None:
    """Return a request's path decoded, relative and normal; b"" is the root, a slash at the end is kept.

    None if it is hidden. Raises BadPathError.
    """
    if b"%" in path:
        path = unquote_to_bytes(path)
    if path[:1] != b"/" or b"\0" in path:
        raise BadPathError
    if b"/." not in path and b"//" not in path:
        return path[1:]
    kept: list[bytes] = []
    components = path.split(b"/")
    for component in components:
        if component == b"..":
            if not kept:
                raise BadPathError
            kept.pop()
        elif component not in (b"", b"."):
            kept.append(component)
    for number, component in enumerate(kept):
        if component[:1] == b"." and (number or component != WELL_KNOWN):
            return None
    if kept and components[-1] in (b"", b".", b".."):
        kept.append(b"")
    return b"/".join(kept)


def location(path: bytes, query: bytes) -> str:
    """Return the target of a redirect to the folder `path` (of `relative`, without the slash)."""
    target = f"/{quote(path, safe=_SAFE)}/"
    return f"{target}?{query.decode('latin-1')}" if query else target
