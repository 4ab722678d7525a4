"""The kind scgi: an application that listens on a Unix socket answers, one request per connection.

The request is a netstring of names and values, each ended by a NUL, CONTENT_LENGTH first, and then its body. The answer
is what CGI says (gateway/answers.py), and ends with the connection: an application that dies in the middle of an answer
without a Content-Length can't be told from one that has finished.

Source: "SCGI: A Simple Common Gateway Interface alternative", Neil Schemenauer, 2008. How an application is asked:
gateway/sockets.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyttpd_vhost.kinds.gateway import sockets
from pyttpd_vhost.kinds.gateway.relay import Event, Said

#: What the netstring says itself.
_OURS = ("CONTENT_LENGTH", "SCGI")
_END: Sequence[Event] = ((Said.END, b""),)


class ScgiKind(sockets.SocketKind):
    """Asks an SCGI application."""

    def conversation(self) -> sockets.Conversation:
        """See `SocketKind.conversation`."""
        return Conversation()

    def encode(self, variables: Mapping[str, str]) -> bytes:
        """See `SocketKind.encode`."""
        return encode(variables)

    def first(self, encoded: bytes, length: int) -> bytes:
        """See `SocketKind.first`."""
        return head(encoded, length)


def encode(variables: Mapping[str, str]) -> bytes:
    """Return `variables` as the netstring has them. No value has a NUL: neither fields nor paths may have one."""
    pairs = [f"{name}\0{value}\0" for name, value in variables.items() if name not in _OURS]
    return "".join(pairs).encode("latin-1")


def head(encoded: bytes, length: int) -> bytes:
    """Return the netstring that begins a request."""
    text = b"CONTENT_LENGTH\0%d\0SCGI\x001\0%b" % (length, encoded)
    return b"%d:%b," % (len(text), text)


class Conversation:
    """One request's `Codec`. The connection ends with it."""

    __slots__ = ()

    clean = False

    def body(self, data: bytes) -> bytes:
        """See `Codec.body`."""
        return data

    def whole(self, data: bytes) -> bytes | None:
        """See `Codec.whole`."""
        return None

    def receive(self, data: bytes) -> Sequence[Event]:
        """See `Codec.receive`."""
        return ((Said.OUTPUT, data),)

    def closed(self) -> Sequence[Event]:
        """See `Codec.closed`."""
        return _END
