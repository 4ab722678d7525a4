"""The kind fastcgi: see gateway/sockets.py for how an application is asked, records.py for the protocol."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from pyttpd_vhost.kinds.fastcgi import records
from pyttpd_vhost.kinds.gateway.sockets import Conversation, SocketKind


class FastcgiKind(SocketKind):
    """Asks a FastCGI responder."""

    def conversation(self) -> Conversation:
        """See `SocketKind.conversation`."""
        return records.Conversation()

    def encode(self, variables: Mapping[str, str]) -> bytes:
        """See `SocketKind.encode`."""
        return records.pairs(variables)

    def first(self, encoded: bytes, length: int) -> bytes:
        """See `SocketKind.first`."""
        return records.begin(encoded, keep=self.backend.keeps)

    def abort(self, sock: socket.socket) -> None:
        """See `SocketKind.abort`."""
        sock.send(records.ABORT)
