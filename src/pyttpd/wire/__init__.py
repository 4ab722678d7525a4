"""The wire protocol between roles: frames, messages, permit tables. Sans-I/O: bytes in, messages out.

`messages` has one class a message and the only codec; `permits` says who may send which message when. The I/O is in
`pyttpd.channel`. PROTOCOL.md is made from these tables (tests/architecture holds them together).
"""

from pyttpd.wire.errors import LocalProtocolError, ProtocolError, RemoteProtocolError

__all__ = ["LocalProtocolError", "ProtocolError", "RemoteProtocolError"]
