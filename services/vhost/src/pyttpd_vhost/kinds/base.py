"""The interface of a kind, and where it is mounted."""

from __future__ import annotations

from typing import Protocol

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange


class Kind(Protocol):
    """Answers requests. Made once in the prototype, used by every worker.

    Where it is, a request says: `request.mount` is the prefix that belongs to the mount (SCRIPT_NAME; "" at the root),
    `request.path_info` the rest of the path (PATH_INFO).
    """

    def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer `request` through `exchange`: a whole response, or one begun and ended.

        Its own faults are answered and logged here; it raises only ClientGone.
        """
        ...


class Placed:
    """Which mount a request belongs to: its kind, its prefix ("" or "/app"), and the rest of the path, decoded and
    normal.
    """

    __slots__ = ("info", "kind", "mount")

    def __init__(self, kind: Kind, mount: str, info: bytes) -> None:
        self.kind = kind
        self.mount = mount
        self.info = info
