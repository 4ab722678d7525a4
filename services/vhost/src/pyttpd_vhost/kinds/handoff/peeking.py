"""A connection whose first request is looked at, and not taken out of the kernel: for vhosts that hand all of theirs
over.

The listener has peeked at the head before, so it is whole when the connection comes. What isn't (or is no request, or
none of ours) is read and answered as anywhere else.
"""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING

from pyttpd.head import Refused

from pyttpd_vhost.http.connection import Connection, State, Want
from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.errors import ClientGone
from pyttpd_vhost.http.exchange import State as Response

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.handoff.kind import HandoffKind


class PeekingConnection(Connection):
    """See the module's text. Its site's kind is a HandoffKind, and nothing else."""

    __slots__ = ()

    def on_readable(self) -> Want:
        """See `Connection.on_readable`."""
        if self._state is not State.HEAD or self._served or self._stream.ahead:
            return super().on_readable()
        try:
            data = self.sock.recv(self._site.settings.head_limit, socket.MSG_PEEK)
        except BlockingIOError:
            return Want.READ
        except OSError:
            return self.abort()
        request = self._look_at_head(data)
        return super().on_readable() if request is None else self._offer(request)

    def _look_at_head(self, data: bytes) -> Request | None:
        """Return the request that `data` begins with; None: it has to be read, or refused, in the ordinary way."""
        if not data:
            return None
        try:
            request = self._site.heads.read(data)
            if request is None:
                return None
            if self._proxy is not None:
                self._ask_proxy(self._proxy, request)
        except Refused:
            return None
        if request.host != self._authority and not self._site.owns(request.host, self._authority):
            return None
        return request

    def _offer(self, request: Request) -> Want:
        """Have the kind give the connection away, unread; or answer."""
        site, exchange = self._site, self._exchange
        kind: HandoffKind = site.kind  # type: ignore[assignment]
        self._served += 1
        self._stream.sent = 0
        exchange.start(request, None, keep=False)
        if site.access is not None:
            self._owed = True
            self._since = monotonic()
        try:
            kind.hand_over(request, exchange, self.sock, b"")
        except ClientGone as gone:
            return self._gone(gone)
        if exchange.state is Response.PARTED:
            return self._part(request)
        site.stats.bytes_sent += self._stream.sent
        site.stats.responses[exchange.code // 100] += 1
        # the request is still unread: it goes with what else the client may send
        return self._wind_up(request, None)
