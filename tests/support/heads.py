"""What a worker's reader makes of a head, for comparing two of them."""

from __future__ import annotations

from pyttpd.head import Refused

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.heads import HeadReader


def said(reader: HeadReader, data: bytes) -> object:
    """Return all that `reader` says of `data`."""
    try:
        request = reader.read(data)
    except Refused as refused:
        return refused.status, refused.reason
    if request is None:
        return None
    return {name: getattr(request, name) for name in Request.__slots__ if name not in ("known", "kept")}
