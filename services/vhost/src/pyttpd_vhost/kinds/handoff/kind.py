"""Hand-off: a client's connection becomes a program's, by its descriptor; nothing of it comes back.

Theory of operation. The request's head has said that the path is this mount's. Where the mount is the whole vhost, the
head was only looked at (peeking.py), and the program reads the connection from its first byte. Where other mounts are
beside it, the worker had to read in order to know: the program gets the head, as we have understood it, and what had
come behind it, with the descriptor. In both cases a program in the tenant's container takes it from there; channels.py
says how, docs/handoff.md what it owes to the client and to us.

    offered ── accepted ──> the worker's copy is closed, unread: logged with 101, as after any change of protocol
       └── not accepted, and untouched ──> 502, 503 or 504 from us, and the end
       └── not accepted, and somebody has read or written ──> the end: nothing that we could say would be understood

What no longer holds once a connection is a program's: limits and deadlines of this vhost, its count of a client's
connections, the access log. What still holds is what the tenant is confined to.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import ClientGone
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault, report
from pyttpd_vhost.kinds.gateway.kind import Redirected
from pyttpd_vhost.kinds.handoff.channels import Channels, NotHandedOver
from pyttpd_vhost.kinds.handoff.frames import Connection, Flags

if TYPE_CHECKING:
    import socket

    from pyttpd.config.kinds import HandoffOptions

    from pyttpd_vhost.execution.places import Place
    from pyttpd_vhost.site import Site


class _Nowhere:
    """Stands for a socket that could not be had: the supervisor has said why."""

    fails = False

    @staticmethod
    def connect(_: float) -> socket.socket:
        raise FileNotFoundError(2, "there is no socket for its processes")

    @staticmethod
    def request() -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


_NOWHERE = _Nowhere()


class HandoffKind:
    """Hands over the connections of one mount.

    mount, prefix: the mount's number, and its path ("" for all paths); whole: there is no other mount.
    place: the program's socket; None: there is none.
    """

    def __init__(
        self,
        options: HandoffOptions,
        site: Site,
        place: Place | None,
        *,
        mount: int = 0,
        prefix: str = "",
        whole: bool = True,
    ) -> None:
        self._mount = mount
        self._within = options.accept_timeout
        self._prefix = prefix
        self._flags = Flags.WHOLE if whole else Flags(0)
        self._place = place or _NOWHERE
        self._channels = Channels(self._place.connect, site.share.name, site.log, most=options.max_channels)
        site.at_end.append(self.close)
        if whole:
            from pyttpd_vhost.kinds.handoff.peeking import PeekingConnection

            site.connection = PeekingConnection

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`: the request was read."""
        if isinstance(request, Redirected):
            # what the connection goes on with is not this request's: its own body may still be on the way
            wrong = BackendError(Fault.MALFORMED, "a local redirect to a program that takes over connections")
            report(exchange, self._mount, self._prefix, wrong)
            return
        stream = exchange.stream
        self.hand_over(request, exchange, stream.sock, head_of(request) + stream.ahead)

    def hand_over(self, request: Request, exchange: Exchange, sock: socket.SocketType, data: bytes) -> None:
        """Give the connection `sock` away, from which `data` was read; or answer. Raises ClientGone."""
        origin = exchange.origin
        flags = self._flags
        if origin is not None and origin.scheme == "https":
            flags |= Flags.SECURE
        address, port = exchange.client

        def make(id_: int) -> Connection:
            return Connection(id_, flags, address, int(port or 0), request.host, self._prefix, data)

        try:
            if self._place.fails:
                raise NotHandedOver(Fault.UNREACHABLE, "its processes end as soon as they are started")
            with self._place.request():
                self._channels.hand_over(sock, make, self._within)
        except NotHandedOver as failure:
            exchange.keep = False
            if failure.touched:
                exchange.spoil()
            report(exchange, self._mount, self._prefix, failure)
            if failure.touched:
                raise ClientGone("a program has used the connection, and not accepted it") from None
        else:
            exchange.part()

    def close(self) -> None:
        """Say goodbye to the program: the worker leaves."""
        self._channels.close("the worker retires")


def head_of(request: Request) -> bytes:
    """Return the request's head in the one form that we have understood: without what the engine has made normal."""
    lines = [f"{request.method} ".encode("ascii") + request.target + b" HTTP/1.%d" % (request.version - 10)]
    lines += [name + b": " + value for name, value in request.fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"
