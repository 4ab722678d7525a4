"""ASGI 3 (and 2, as uvicorn takes it). The kind only gives exchanges away; the event loop serves them (eventloop.py).

Nothing of asyncio or uvicorn is imported for a vhost that has no mount of this kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.kinds.asgi.eventloop import Application, EventLoop

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyttpd.config.kinds import AsgiOptions

    from pyttpd_vhost.site import Site


class AsgiKind:
    """Serves one application."""

    def __init__(self, application: Callable[..., Any], options: AsgiOptions, site: Site) -> None:
        if site.aside is None:
            site.aside = EventLoop(site)
        assert isinstance(site.aside, EventLoop)
        self._app = Application(application, options, site.aside, self)
        site.aside.applications.append(self._app)

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        exchange.give_away(request, self._app)
