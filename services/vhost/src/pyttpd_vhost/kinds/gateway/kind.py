"""What the kinds have in common that ask an application in another process: its faults, and local redirects."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import ClientGone, RequestError
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.paths import BadPathError
from pyttpd_vhost.http.response import STATUS
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault, excerpt, report
from pyttpd_vhost.kinds.gateway.variables import MetaVariables
from pyttpd_vhost.kinds.static.paths import location

if TYPE_CHECKING:
    from pyttpd_vhost.site import Site

#: Local redirects in a row; Apache allows as many.
MAX_REDIRECTS = 10

#: Methods whose requests may be made twice (RFC 9110 section 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

#: The path and query of a local redirect: what may stand in a request's target.
_TARGET = re.compile(r"/[!\"$-~]*")
#: How the names of fields begin that are about a body.
_OF_THE_BODY = (b"content-", b"transfer-encoding", b"expect", b"trailer")


class Redirected(Request):
    """A request that an application's local redirect has made of another one."""

    __slots__ = ("redirects",)

    redirects: int


class GatewayKind(ABC):
    """Serves the mount number `mount` of the site, whose prefix is `path` ("" for "/")."""

    def __init__(self, site: Site, mount: int, path: str) -> None:
        self.site = site
        self.mount = mount
        self.path = path
        self.variables = MetaVariables(site)

    @abstractmethod
    def ask(self, request: Request, exchange: Exchange) -> str:
        """Let the application answer. Returns the path and query of a local redirect, or "".

        Raises BackendError, BadPathError, RequestError and ClientGone.
        """

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        try:
            target = self.ask(request, exchange)
            if not target:
                return
            redirected = redirect(request, target)
        except ClientGone:
            raise
        except BadPathError:
            exchange.fail(400)
            return
        except RequestError as error:
            exchange.fail(error.status)
            return
        except BackendError as error:
            report(exchange, self.mount, self.path, error)
            return
        if exchange.body is not None:
            # The application has had it; whoever answers now gets none. What of it hasn't come ends the connection.
            exchange.body.drain()
            exchange.keep = exchange.keep and exchange.body.done
            exchange.body = None
        exchange.site.kind.handle(redirected, exchange)

    def to_folder(self, path: bytes, request: Request, exchange: Exchange) -> None:
        """Redirect to the folder `path` (below the mount, decoded), which was asked for without its slash."""
        fields, content = self.site.page(301, [("Location", location(request.mount, path, request.query))])
        exchange.respond(STATUS[301], 301, fields, content)


def redirect(request: Request, target: str) -> Redirected:
    """Return the request that is answered instead of `request` (RFC 3875 section 6.2.2). Raises BackendError."""
    redirects = request.redirects + 1 if isinstance(request, Redirected) else 1
    if redirects > MAX_REDIRECTS:
        raise BackendError(Fault.MALFORMED, f"more than {MAX_REDIRECTS} local redirects")
    if _TARGET.fullmatch(target) is None:
        raise BackendError(Fault.MALFORMED, f"not a path: {excerpt(target)}")
    new: Redirected = object.__new__(Redirected)
    for name in Request.__slots__:
        setattr(new, name, getattr(request, name))
    new.method = "HEAD" if request.method == "HEAD" else "GET"
    new.target = target.encode("ascii")
    new.path, _, new.query = new.target.partition(b"?")
    new.fields = [field for field in request.fields if not field[0].lower().startswith(_OF_THE_BODY)]
    new.length = 0
    new.expect = False
    new.kept = new.known = new.placed = None
    new.redirects = redirects
    return new
