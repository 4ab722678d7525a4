"""Who the client is when a trusted proxy stands in front: the one place that believes forwarding headers.

The rules:
- Only a connection that comes from an address in `trusted_proxies` has an origin other than itself. From everybody
  else forwarding headers reach no application (`is_forwarding`): whoever relies on them there relies on the client.
- The operator says which family of headers the proxies write (`proxy_headers`); the other one may be the client's,
  passed on unseen, and is dropped.
- A list grows at its end: each proxy appends whom it was asked by. So it is walked from the end, as long as the
  addresses are trusted proxies' (at most MAX_HOPS). The first other one is the client. What stands before it is the
  client's own word and is cut off. Something that is no address (junk, "unknown", "_hidden") ends the walk: then the
  client is the hop that said it.
- X-Forwarded-Proto, -Host and -Port: the last value counts, the one that the nearest proxy wrote. Forwarded's proto and
  host come from the first believed element, or a later one if that says nothing.
- A host given by a proxy takes the place of Host. It must be well-formed, and a name of this vhost (who calls this
  checks that). A Forwarded header that can't be parsed is refused, not ignored: an open quote of the client's would
  otherwise swallow what the proxy has appended, and the client would pass for the proxy.

Sources: RFC 7239; nginx's realip module with real_ip_recursive; Traefik's forwardedHeaders.trustedIPs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

from pyttpd.head import Refused, authority
from pyttpd.networks import Networks

Fields = list[tuple[bytes, bytes]]

#: A longer chain of proxies that we trust is a loop, or somebody's game. Empty entries count.
MAX_HOPS = 32
#: Elements of one Forwarded field: those of the chain, and what the client has put before them.
MAX_ELEMENTS = 256

FORWARDED = b"forwarded"
_FOR, _PROTO, _HOST, _PORT = (
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-port",
)
_REAL_IP = b"x-real-ip"

#: What proxies say, and what it means to an application; WebSockets are HTTP at first.
_SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_DEFAULT_PORTS = {"http": 80, "https": 443}

_PORT_NUMBER = re.compile(rb"[0-9]{1,5}")
#: An address in any of the forms that are found: with a port or without, IPv6 with brackets or without. A port may be
#: hidden, too (RFC 7239 section 6.3).
_ADDRESS = re.compile(
    rb"(?:([0-9.]{7,15})|\[([0-9A-Fa-f:.]{2,45})\])(?::(?:([0-9]{1,5})|_[0-9A-Za-z._\-]+))?|([0-9A-Fa-f:.]{2,45})"
)
#: A pair of Forwarded, with what ends it. More lenient than section 4 about blanks, and about characters outside of
#: quotes ("for=1.2.3.4:80" is often seen). Blanks are taken once and not given back: no quadratic time.
_PAIR = re.compile(
    rb'[ \t]*+(?:([!#$%&\'*+\-.^_`|~0-9A-Za-z]+)=(?:([^",;\\ \t]+)|"((?:[^"\\]|\\.)*)"))?[ \t]*+([,;]|\Z)'
)
_QUOTED_PAIR = re.compile(rb"\\(.)")


class Origin(NamedTuple):
    """What a trusted proxy says of a request.

    `address` and `port` are the client's (port "0": not known), `scheme` "http" or "https". `host` is the host's normal
    form, "" if the request's own Host counts; `authority` is the same as the client wrote it. `server_port` is the port
    that the client asked, 0 if only Host says it. `believed` are the forwarding headers that may be shown to the
    application, with what is believed of them.
    """

    address: str
    port: str
    scheme: str
    host: str
    authority: str
    server_port: int
    believed: tuple[tuple[str, str], ...]


def is_forwarding(name: bytes) -> bool:
    """Whether a header of this name (lower case) is a proxy's word about the client."""
    return name.startswith(b"x-forwarded-") or name in (FORWARDED, _REAL_IP)


class Proxies:
    """A vhost's trusted proxies: `networks` in normal form; `headers` is one of limits.PROXY_HEADERS."""

    def __init__(self, networks: Iterable[str], headers: str) -> None:
        self._networks = Networks(networks)
        self._read = self._forwarded if headers == "forwarded" else self._x_forwarded

    def trusts(self, address: str) -> bool:
        """Whether `address` (normal form) is a trusted proxy's."""
        return address in self._networks

    def origin(self, peer: tuple[str, str], fields: Fields) -> Origin:
        """Return the origin of a request with these header `fields` that came from `peer`, which is trusted.

        Raises Refused for what must not be guessed at.
        """
        return self._read(peer, fields)

    # X-Forwarded-*

    def _x_forwarded(self, peer: tuple[str, str], fields: Fields) -> Origin:
        found: dict[bytes, bytes] = {}
        names: dict[bytes, str] = {}
        for name, value in fields:
            lower = name.lower()
            if is_forwarding(lower) and lower != FORWARDED:
                # several fields of one name are one list (RFC 9110 section 5.3)
                found[lower] = b"%b, %b" % (found[lower], value) if lower in found else value
                names.setdefault(lower, name.decode("ascii"))
        (address, port), hops = self._walk(peer, _addresses_from_the_end(found.pop(_FOR, b"")))
        believed = {_FOR: ", ".join(reversed(hops))} if hops else {}
        if found.pop(_REAL_IP, None) is not None:
            believed[_REAL_IP] = address
        scheme = _SCHEMES.get(proto := _last(found.pop(_PROTO, b"")).lower())
        if scheme is not None:
            believed[_PROTO] = proto.decode()
        asked = _last(found.pop(_PORT, b""))
        server_port = int(asked) if _PORT_NUMBER.fullmatch(asked) and 0 < int(asked) <= 65535 else 0
        if server_port:
            believed[_PORT] = str(server_port)
        host, written, host_port = _host(_last(found.pop(_HOST, b"")))
        if written:
            believed[_HOST] = written
        believed |= {name: value.decode("latin-1") for name, value in found.items()}
        return Origin(
            address,
            port,
            scheme or "http",
            host,
            written,
            server_port or host_port,
            tuple((names[name], value) for name, value in believed.items()),
        )

    # Forwarded

    def _forwarded(self, peer: tuple[str, str], fields: Fields) -> Origin:
        lines = [value for name, value in fields if name.lower() == FORWARDED]
        elements: list[_Element] = []

        def from_the_end() -> Iterator[tuple[str, tuple[str, str] | None]]:
            for line in reversed(lines):
                for element in reversed(_elements(line)):
                    elements.insert(0, element)
                    yield element.text, _address(element.pairs.get(b"for", b""))

        (address, port), _ = self._walk(peer, from_the_end())
        schemes = (_SCHEMES.get(element.pairs.get(b"proto", b"").lower()) for element in elements)
        hosts = (element.pairs.get(b"host", b"") for element in elements)
        host, written, host_port = _host(next(filter(None, hosts), b""))
        believed = ", ".join(element.text for element in elements)
        return Origin(
            address,
            port,
            next(filter(None, schemes), "http"),
            host,
            written,
            host_port,
            (("Forwarded", believed),) if believed else (),
        )

    # Both

    def _walk(
        self, peer: tuple[str, str], hops: Iterator[tuple[str, tuple[str, str] | None]]
    ) -> tuple[tuple[str, str], list[str]]:
        """Walk `hops`, (text, address and port or None) from the last to the first; return who is believed to be the
        client, and the texts of the hops that led there.
        """
        client, believed = peer, []
        for text, address in hops:
            if address is None:
                break
            client = address
            believed.append(text)
            if len(believed) >= MAX_HOPS or not self.trusts(address[0]):
                break
        return client, believed


def default_port(scheme: str) -> int:
    """Return the port that a URL of this scheme means if it names none."""
    return _DEFAULT_PORTS[scheme]


def _last(values: bytes) -> bytes:
    return values.rpartition(b",")[2].strip(b" \t")


def _addresses_from_the_end(values: bytes) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """Yield the list's entries from the last to the first, as many as may be believed: the rest may be long."""
    for entry in reversed(values.rsplit(b",", MAX_HOPS)[-MAX_HOPS:]):
        entry = entry.strip(b" \t")
        if entry:
            yield entry.decode("latin-1"), _address(entry)


def _address(text: bytes) -> tuple[str, str] | None:
    """Return an IP address in normal form, and its port ("0": none given); None if `text` is none."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return None
    four, bracketed, port, six = match.groups()
    if port is not None and int(port) > 65535:
        return None
    try:
        ip = ip_address((four or bracketed or six).decode())
    except ValueError:
        return None
    if isinstance(ip, IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
    elif bracketed is not None:
        return None
    return str(ip), str(int(port)) if port is not None else "0"


def _host(text: bytes) -> tuple[str, str, int]:
    """Return a host's normal form, the text itself and its port (0: none given). Raises Refused(400)."""
    if not text:
        return "", "", 0
    host, port = authority(text)
    return host, text.decode("ascii"), port


class _Element(NamedTuple):
    """One element of Forwarded: names in lower case, values without quotes, and all as it was written."""

    pairs: dict[bytes, bytes]
    text: str


def _elements(line: bytes) -> list[_Element]:
    """Return the elements of one field line. Raises Refused(400)."""
    elements = []
    pairs: dict[bytes, bytes] = {}
    start = at = 0
    while True:
        match = _PAIR.match(line, at)
        if match is None:
            raise Refused(400, "malformed Forwarded")
        name, token, quoted, end = match.groups()
        if name is not None:
            lower = name.lower()
            if lower in pairs:
                raise Refused(400, "malformed Forwarded")  # section 4: each parameter once
            pairs[lower] = token if token is not None else _QUOTED_PAIR.sub(rb"\1", quoted)
        at = match.end()
        if end != b";":
            if pairs:
                elements.append(_Element(pairs, line[start : match.start(4)].strip(b" \t").decode("latin-1")))
            if not end:
                return elements
            if len(elements) >= MAX_ELEMENTS:
                raise Refused(400, "too many elements in Forwarded")
            pairs, start = {}, at
