"""A client's address, as it travels in the messages about its connection. (`messages` has the name, too.)

Apart from them because a class that is made of bytes can't be compiled (scripts/native.py).
"""

from __future__ import annotations

import socket
import struct

from pyttpd.wire.errors import RemoteProtocolError

_CLIENT = struct.Struct("!BH16s")
CLIENT_SIZE = _CLIENT.size
_IPV4_REST = bytes(12)


class Client(bytes):
    """A client's address, kept as it travels: umaster hands it on without looking.

    `host` is numeric, `port` 0 to 65535.
    """

    __slots__ = ()

    def __new__(cls, host: str, port: int) -> Client:
        if ":" in host:
            raw = _CLIENT.pack(6, port, socket.inet_pton(socket.AF_INET6, host.partition("%")[0]))
        else:
            raw = _CLIENT.pack(4, port, socket.inet_pton(socket.AF_INET, host))
        return bytes.__new__(cls, raw)

    @classmethod
    def from_wire(cls, raw: bytes) -> Client:
        """Take CLIENT_SIZE bytes as they came. Raises RemoteProtocolError."""
        if len(raw) != CLIENT_SIZE:
            raise RemoteProtocolError("bad-length", f"{len(raw)} bytes of address")
        if raw[0] != 4 and raw[0] != 6:
            raise RemoteProtocolError("bad-field", f"address family {raw[0]}")
        if raw[0] == 4 and raw[7:] != _IPV4_REST:
            raise RemoteProtocolError("bad-field", "an IPv4 address of more than four bytes")
        return bytes.__new__(cls, raw)

    @property
    def host(self) -> str:
        if self[0] == 6:
            return socket.inet_ntop(socket.AF_INET6, self[3:])
        return socket.inet_ntop(socket.AF_INET, self[3:7])

    @property
    def port(self) -> int:
        return self[1] << 8 | self[2]

    @property
    def network(self) -> bytes:
        """Whom to count as one client, in 8 bytes: an IPv4 address, or an IPv6 /64, which is the least that a customer
        is given (RFC 6177) and can choose addresses from at will. The two can't be equal: ::/32 is nobody's.
        """
        return self[3:11] if self[0] == 6 else b"\0\0\0\0" + self[3:7]

    def __repr__(self) -> str:
        return f"Client({self.host!r}, {self.port})"
