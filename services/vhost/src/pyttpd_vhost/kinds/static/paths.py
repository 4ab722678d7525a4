"""From the path of a request to a path below the root.

Rules:
- It is normal (http/paths.py). What comes out has no empty component, so that no redirect that is made of it can start
  with "//" and be taken for another host's.
- A component that starts with a dot is hidden (404): .git, .htpasswd, .env. But ".well-known" may be the first one
  (RFC 8615): certificates are asked for by it.

The kernel keeps the walk below the root as well (openat2.py): this is about names, not about safety alone.
"""

from __future__ import annotations

from urllib.parse import quote

WELL_KNOWN = b".well-known"

#: What may stand in a path as it is (RFC 3986 section 3.3).
_SAFE = "/!$&'()*+,;=:@~"


def relative(path: bytes) -> bytes | None:
    """Return a normal path relative to the root; b"" is the root, a slash at the end is kept. None if it is hidden."""
    if b"/." in path:
        for number, component in enumerate(path.split(b"/")[1:]):
            if is_hidden(component, number):
                return None
    return path[1:]


def is_hidden(component: bytes, number: int) -> bool:
    """Whether the component `number` (from 0) of a path is one that nobody is shown."""
    return component[:1] == b"." and (number > 0 or component != WELL_KNOWN)


def location(prefix: str, path: bytes, query: bytes) -> str:
    """Return the target of a redirect to the folder `path` (of `relative`, without the slash) below the mount `prefix`
    (of `Request.mount`: each byte is a character).
    """
    target = quote(prefix, safe=_SAFE, encoding="latin-1") + (f"/{quote(path, safe=_SAFE)}/" if path else "/")
    return f"{target}?{query.decode('latin-1')}" if query else target
