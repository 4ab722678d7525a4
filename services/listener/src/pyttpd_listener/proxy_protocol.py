"""The PROXY protocol, versions 1 and 2: what a proxy says of a connection before its first byte.

The rules (haproxy.org, doc/proxy-protocol.txt, section 2):
- The operator says who speaks it (`proxy_protocol`). From these every connection begins with a header, or it is closed;
  from everybody else every connection is closed. Nothing is guessed: a receiver that takes both forms is one to which
  any client can lie.
- The header is consumed before anybody looks for a request; what follows stays in the kernel.
- LOCAL (a proxy's own check of our health) and UNKNOWN leave the connection its own addresses.
- What is said of the destination, and in TLVs, isn't used; TLVs are skipped by their length.
- Stricter than most: a header that isn't what the text says in every byte is refused.
"""

from __future__ import annotations

import re
import socket
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from pyttpd.wire.messages import Client

#: The whole header at most: nginx's bound (NGX_PROXY_PROTOCOL_MAX_HEADER). The text's is 65,551; no more than some
#: hundred bytes of TLVs are seen.
MAX_HEADER = 4096
#: "PROXY UNKNOWN", and two addresses and ports as long as they get: "worst case" of section 2.1.
_MAX_LINE = 107
_V1 = b"PROXY "
_V2 = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD = 16
_LINE = re.compile(
    rb"PROXY (?:TCP4 ([0-9.]{7,15}) ([0-9.]{7,15})|TCP6 ([0-9A-Fa-f:.]{2,39}) ([0-9A-Fa-f:.]{2,39}))"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})"
)
_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [ -~]*)?")
_LOCAL, _PROXY = 0x20, 0x21
#: Family and transport: what the addresses are, and how many bytes they take.
_UNSPEC, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESSES = {_UNSPEC: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}


class Malformed(Exception):
    """It isn't a header; the text is the reason."""


class Header(NamedTuple):
    """A whole header of `size` bytes. `client` is who it says connected; None: the connection's own other end."""

    size: int
    client: Client | None


def parse(data: bytes) -> Header | None:
    """Read the header that `data` begins with; None: it isn't whole yet. Raises Malformed."""
    if data.startswith(_V1):
        return _parse_line(data)
    if data.startswith(_V2):
        return _parse_binary(data)
    if _V1.startswith(data) or _V2.startswith(data):
        return None
    raise Malformed("missing")


def _parse_line(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, _MAX_LINE)
    if end < 0:
        if len(data) >= _MAX_LINE:
            raise Malformed("malformed")
        return None
    line, size = data[:end], end + 2
    found = _LINE.fullmatch(line)
    if found is None:
        if _UNKNOWN.fullmatch(line):
            return Header(size, None)
        raise Malformed("malformed")
    version = 4 if found[1] else 6
    try:
        source = ip_address((found[1] or found[3]).decode("ascii"))
        destination = ip_address((found[2] or found[4]).decode("ascii"))
    except ValueError:
        raise Malformed("malformed") from None
    port = int(found[5])
    if source.version != version or destination.version != version or port > 65535 or int(found[6]) > 65535:
        raise Malformed("malformed")
    return Header(size, _client(str(source), port))


def _parse_binary(data: bytes) -> Header | None:
    if len(data) < _V2_HEAD:
        return None
    command, family = data[12], data[13]
    length = int.from_bytes(data[14:16])
    addresses = _ADDRESSES.get(family)
    if command not in (_LOCAL, _PROXY) or (addresses is None and command == _PROXY):
        raise Malformed("malformed")
    size = _V2_HEAD + length
    if size > MAX_HEADER or (command == _PROXY and addresses is not None and length < addresses):
        raise Malformed("malformed")
    if len(data) < size:
        return None
    if command == _LOCAL:  # "the receiver must discard the protocol block, including the family"
        return Header(size, None)
    body = data[_V2_HEAD:size]
    if family == _TCP4:
        return Header(size, _client(socket.inet_ntop(socket.AF_INET, body[:4]), int.from_bytes(body[8:10])))
    if family == _TCP6:
        return Header(
            size, _client(socket.inet_ntop(socket.AF_INET6, body[:16]), int.from_bytes(body[32:34]))
        )
    return Header(size, None)


def _client(host: str, port: int) -> Client:
    """An IPv4 address is one however it is written: otherwise all of them would be one /64 (`Client.network`)."""
    ip = ip_address(host)
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        return Client(str(ip.ipv4_mapped), port)
    return Client(host, port)
