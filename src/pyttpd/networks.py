"""Lists of networks, and which addresses are in them: whose word about a client is believed."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address, ip_network

#: Addresses whose verdict is remembered; then all are forgotten.
MAX_KNOWN = 1024


class Networks:
    """A list of networks, in the normal form of a share. An IPv4 address is the same in IPv6's form (::ffff:0:0/96)."""

    __slots__ = ("_known", "_networks")

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(network) for network in networks]
        self._known: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        """Whether `address` (normal form) is in one of them."""
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            ip = ip_address(address)
            if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
                ip = ip.ipv4_mapped
            known = self._known[address] = any(ip in network for network in self._networks)
        return known
