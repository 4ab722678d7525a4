"""The meta-variables of a request (RFC 3875 section 4.1): what CGI, FastCGI and SCGI applications are told, and what
a WSGI environ begins with.

Rules:
- A header gets a variable only if no other header could get the same one, so none with an underscore in its name does.
  For other processes also none with anything but letters, digits and "-": PHP makes an underscore of "." and "[",
  shells choke on the rest. (nginx and Apache drop these as well.)
- `Proxy` gets none: programs take HTTP_PROXY for their proxy's address ("httpoxy", CVE-2016-5385).
- What proxies say of the client is there if a trusted proxy says it (http/proxies.py), else not at all.
- Several fields of one name are a list (RFC 9110 section 5.3); cookies have their own comma (RFC 6265 section 5.4).
- Nothing is there that the client could have made up about who it is: no REMOTE_USER, no AUTH_TYPE (nobody here has
  asked for a password), no REMOTE_IDENT, no REMOTE_HOST. `Authorization` is passed on as HTTP_AUTHORIZATION: the
  application is the tenant's, and the only one who can judge it.

Values are text in latin-1, as in PEP 3333: a byte is a character.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from pyttpd_vhost.http.engine import CHUNKED, Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.proxies import Origin, default_port, is_forwarding

if TYPE_CHECKING:
    from pyttpd_vhost.site import Site

#: The names that a header may have, to get a variable; and to get one in a dictionary of Python's.
_PLAIN = re.compile(rb"[0-9A-Za-z\-]+")
_NO_UNDERSCORE = re.compile(rb"[^_]+")

_ODD_KEYS: dict[bytes, str | None] = {
    b"content-type": "CONTENT_TYPE",
    b"content-length": "CONTENT_LENGTH",
    b"proxy": None,
}
#: The client chooses the names. When the table is full of some that it made up, it starts anew.
MAX_KEYS = 1024

#: Every request has these, in this order; empty until they are known.
COMMON = {
    "REQUEST_METHOD": "",
    "SCRIPT_NAME": "",
    "PATH_INFO": "",
    "QUERY_STRING": "",
    # as sent, not decoded: Apache's and uWSGI's name for it
    "REQUEST_URI": "",
    "SERVER_NAME": "",
    "SERVER_PORT": "",
    "SERVER_PROTOCOL": "",
    "SERVER_SOFTWARE": "pyttpd",
    "REMOTE_ADDR": "",
    "REMOTE_PORT": "",
}


class Variables:
    """Makes the variables of a site's requests, each time of a copy of `template`, which begins with COMMON."""

    #: Header names that get a variable.
    names = _NO_UNDERSCORE

    def __init__(self, site: Site, template: dict[str, Any]) -> None:
        self._site = site
        self._template = template
        #: The variables of header names; None: it gets none.
        self.keys: dict[bytes, str | None] = {}
        self._told_of_proxies = False
        #: For HTTP/1.0 without Host.
        self._server_name = next((host for host in site.share.hosts if host[:1] != "*"), site.share.name)

    def of_head(self, request: Request) -> dict[str, Any]:
        """Return a new dictionary with what the head says. The connection's part is the caller's."""
        if request.kept is None:
            return self._of_head(request)
        kept: dict[str, Any] | None = request.kept.get(self)
        if kept is None:
            kept = request.kept[self] = self._of_head(request)
        return kept.copy()

    def _of_head(self, request: Request) -> dict[str, Any]:
        known = request.known
        if known is None:
            variables = self._of_fields(request)
        else:
            kept = known.kept.get(self)
            if kept is None:
                kept = known.kept[self] = self._of_fields(request)
            variables = kept.copy()
        variables["REQUEST_METHOD"] = request.method
        target = variables["REQUEST_URI"] = request.target.decode("latin-1")
        path = request.path
        placed = request.placed
        if placed is not None:
            variables["SCRIPT_NAME"] = placed.mount
            variables["PATH_INFO"] = placed.info.decode("latin-1")
        elif b"%" in path:
            variables["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1")
        elif len(path) != len(target):
            variables["PATH_INFO"] = path.decode("latin-1")
        elif target != "*":  # OPTIONS * is for the server, and no path (RFC 3875 section 4.1.5)
            variables["PATH_INFO"] = target
        if request.query:
            variables["QUERY_STRING"] = request.query.decode("latin-1")
        if target[0] != "/" and "HTTP_HOST" in variables:
            # absolute-form: Host doesn't count, and may say anything (RFC 9112 section 3.2.2)
            variables["HTTP_HOST"] = f"{request.host}:{request.port}" if request.port else request.host
        return variables

    def _of_fields(self, request: Request) -> dict[str, Any]:
        """Return a new dictionary with what the fields, the host and the version say."""
        variables = self._template.copy()
        variables["SERVER_NAME"] = request.host or self._server_name
        variables["SERVER_PORT"] = str(request.port) if request.port else "80"
        variables["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version == 11 else "HTTP/1.0"
        keys = self.keys
        for name, value in request.fields:
            try:
                key = keys[name]
            except KeyError:
                key = self._new_key(name)
            if key in variables:
                comma = "; " if key == "HTTP_COOKIE" else ", "
                variables[key] = f"{variables[key]}{comma}{value.decode('latin-1')}"
            elif key is not None:
                variables[key] = value.decode("latin-1")
        return variables

    def _new_key(self, name: bytes) -> str | None:
        """Return the variable for a header's name that is new here, None if it gets none."""
        lower = name.lower()
        if lower in _ODD_KEYS:
            key = _ODD_KEYS[lower]
        elif is_forwarding(lower):
            key = None
            if self._site.proxies is None and not self._told_of_proxies:
                self._told_of_proxies = True
                self._site.log.info(
                    "a forwarding header was dropped: trusted_proxies names nobody",
                    header=name.decode("ascii"),
                )
        else:
            key = self._ordinary(name)
        if len(self.keys) >= MAX_KEYS:
            self.keys.clear()
        self.keys[name] = key
        return key

    def _ordinary(self, name: bytes) -> str | None:
        if self.names.fullmatch(name) is None:
            return None
        return "HTTP_" + name.decode("ascii").upper().replace("-", "_")

    def apply_origin(self, variables: dict[str, Any], origin: Origin, request: Request) -> None:
        """Put in what a trusted proxy says of the client, its scheme, host and port."""
        if origin.scheme == "https":
            variables["HTTPS"] = "on"
        if origin.host:
            variables["SERVER_NAME"] = origin.host
            variables["HTTP_HOST"] = origin.authority
        own_port = 0 if origin.host else request.port
        variables["SERVER_PORT"] = str(origin.server_port or own_port or default_port(origin.scheme))
        for name, value in origin.believed:
            key = self._ordinary(name.encode("ascii"))
            if key is not None:
                variables[key] = value


def of_connection(exchange: Exchange) -> dict[str, str]:
    """Return the variables that tell one connection from another."""
    address, port = exchange.client
    return {"REMOTE_ADDR": address, "REMOTE_PORT": port, "SERVER_ADDR": exchange.server_address}


class MetaVariables(Variables):
    """The whole set for an application in another process, which gets text and nothing else."""

    names = _PLAIN

    def __init__(self, site: Site) -> None:
        super().__init__(
            site, {"GATEWAY_INTERFACE": "CGI/1.1", **COMMON, "REQUEST_SCHEME": "http", "SERVER_ADDR": ""}
        )

    def of(self, request: Request, exchange: Exchange) -> dict[str, str]:
        """Return the variables of `request`: a dictionary that is the caller's.

        CONTENT_LENGTH is there if the request has a body whose length is known; of a chunked one who asks has to find
        out (gateway/bodies.py).
        """
        variables: dict[str, str] = self.of_head(request)
        variables.update(of_connection(exchange))
        if exchange.origin is not None:
            self.apply_origin(variables, exchange.origin, request)
            variables["REQUEST_SCHEME"] = exchange.origin.scheme
        if request.length == CHUNKED:
            variables.pop("CONTENT_LENGTH", None)
        return variables
