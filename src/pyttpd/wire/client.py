"""A client's address, as it travels in the messages about its connection. (`messages` has the name, too.)"""

from __future__ import annotations

import socket
import struct

from pyttpd.wire.errors import RemoteProtocolError

_CLIENT = struct.Struct("!BH16s")
CLIENT_SIZE = _CLIENT.size
_IPV4_REST = bytes(12)


class Client:
    """A client's address. `raw` is how it travels, CLIENT_SIZE bytes: umaster hands it on without looking.

    `host` is numeric, `port` 0 to 65535.
    """

    __slots__ = ("raw",)

    def __init__(self, host: str, port: int, raw: bytes = b"") -> None:
        if raw:
            pass  # what from_wire has looked at
        elif ":" in host:
            raw = _CLIENT.pack(6, port, socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
        else:
            raw = _CLIENT.pack(4, port, socket.inet_pton(socket.AF_INET, host))
        self.raw: bytes = raw

    @classmethod
    def from_wire(cls, raw: bytes) -> Client:
        """Take CLIENT_SIZE bytes as they came. Raises RemoteProtocolError."""
        if len(raw) != CLIENT_SIZE:
            raise RemoteProtocolError("bad-length", f"{len(raw)} bytes of address")
        family = raw[0]
        if family != 4 and family != 6:
            raise RemoteProtocolError("bad-field", f"address family {family}")
        if family == 4 and raw[7:] != _IPV4_REST:
            raise RemoteProtocolError("bad-field", "an IPv4 address of more than four bytes")
        return cls("", 0, raw)

    @property
    def host(self) -> str:
        raw = self.raw
        if raw[0] == 6:
            return socket.inet_ntop(socket.AF_INET6, raw[3:])
        return socket.inet_ntop(socket.AF_INET, raw[3:7])

    @property
    def port(self) -> int:
        return self.raw[1] << 8 | self.raw[2]

    @property
    def network(self) -> bytes:
        """Whom to count as one client, in 8 bytes: an IPv4 address, or an IPv6 /64, which is the least that a customer
        is given (RFC 6177) and can choose addresses from at will. The two can't be equal: ::/32 is nobody's.
        """
        raw = self.raw
        return raw[3:11] if raw[0] == 6 else b"\0\0\0\0" + raw[3:7]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Client) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"Client({self.host!r}, {self.port})"
