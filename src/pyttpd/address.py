"""An IP address and a port, as the configuration and the command line write them: "192.0.2.1:80", "[2001:db8::1]:80".

Lean: roles import it, and few of them ever meet an address; so `ipaddress` is imported where it is used.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass

#: A port has at most five digits.
_PORT_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and a port: the IP in normal form, IPv6 without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


def normal_ip(text: str) -> str | None:
    """Return an IP address in normal form, None if `text` is none. No scopes ("fe80::1%eth0"): they name an
    interface, which another network namespace doesn't have.
    """
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if "%" in text else str(address)


def parse(text: str) -> Address:
    """Return the address that `text` writes. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    ip = normal_ip(host[1:-1] if bracketed else host)
    if not colon or ip is None or (":" in ip) != bracketed:
        raise ValueError(f"no IP address and port: {text!r}")
    if not port.isascii() or not port.isdigit() or len(port) > _PORT_DIGITS or not 1 <= int(port) <= 65535:
        raise ValueError(f"the port must be from 1 to 65535: {text!r}")
    return Address(ip, int(port))


def unreachable(host: str) -> str | None:
    """Say why nobody can be connected to at `host` (in normal form), or None. What is left names one machine."""
    import ipaddress

    ip = ipaddress.ip_address(host)
    if ip.is_unspecified:
        return "stands for every address"
    if ip.is_multicast or ip == ipaddress.ip_address("255.255.255.255"):
        return "stands for many machines"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return f'must be written "{ip.ipv4_mapped}"'
        if ip.is_link_local:
            return "means something only on one interface"
    return None
