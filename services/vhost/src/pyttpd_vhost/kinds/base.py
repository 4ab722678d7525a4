"""The interface of a kind."""

from __future__ import annotations

from typing import Protocol

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange


class Kind(Protocol):
    """Answers requests. Made once in the prototype, used by every worker."""

    def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer `request` through `exchange`: a whole response, or one begun and ended.

        Its own faults are answered and logged here; it raises only ClientGone.
        """
        ...
