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

    def first(self, variables: Mapping[str, str], length: int) -> bytes:
        """See `SocketKind.first`."""
        return head(variables, length)


def head(variables: Mapping[str, str], length: int) -> bytes:
    """Return the netstring that begins a request. No value has a NUL: neither fields nor paths may have one."""
    pairs = [("CONTENT_LENGTH", str(length)), ("SCGI", "1")]
    pairs += [pair for pair in variables.items() if pair[0] not in _OURS]
    text = "".join([f"{name}\0{value}\0" for name, value in pairs]).encode("latin-1")
    return b"%d:%b," % (len(text), text)


class Conversation:
    """One request's `Codec`. The connection ends with it."""

    __slots__ = ()

    clean = False

    def body(self, data: bytes) -> bytes:
        """See `Codec.body`."""
        return data

    def receive(self, data: bytes) -> Sequence[Event]:
        """See `Codec.receive`."""
        return ((Said.OUTPUT, data),)

    def closed(self) -> Sequence[Event]:
        """See `Codec.closed`."""
        return _END
