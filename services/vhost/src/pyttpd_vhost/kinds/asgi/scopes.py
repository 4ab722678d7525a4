"""Connection scopes (ASGI's specification of HTTP & WebSocket) of requests that our head reader has read.

Rules:
- `path` is the whole path, decoded, with `root_path` (the mount) at its beginning; `raw_path` the same as it was
  sent. Where a vhost has several mounts it is in normal form, too (mounts.py).
- Headers are as sent, names in lower case, several of one name apart. But none with an underscore in its name, no
  `Proxy`, and what proxies say of the client only as far as a trusted one is believed (http/proxies.py): frameworks
  make variables of them (Django does), and there "x_user" and "x-user" are one.
- A scope is the application's to change: nothing of it is shared with another request's but immutable values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.proxies import is_forwarding

if TYPE_CHECKING:
    from pyttpd_vhost.http.exchange import Exchange
    from pyttpd_vhost.site import Site

Headers = list[tuple[bytes, bytes]]
Scope = dict[str, Any]

#: What we do of the specification: 2.4 says that send() raises OSError when the client has gone.
SPEC_VERSION = "2.4"

#: Names as sent with those that the application sees; None: it doesn't. Clients choose them: full, it starts anew.
_names: dict[bytes, bytes | None] = {}
_MAX_NAMES = 1024

_VERSIONS = {11: "1.1", 10: "1.0"}


class Scopes:
    """Makes the scopes of one application."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._told_of_proxies = False

    def of(
        self, request: Request, exchange: Exchange, server: tuple[str, int | None], state: dict[str, Any]
    ) -> Scope:
        """Return the scope of `request`, which came to the address `server`; `state` is the lifespan's."""
        scope = self._of_line(request)
        known = request.known
        if known is None:
            headers = self._headers(request)
        else:
            kept = known.kept.get(self)
            if kept is None:
                kept = known.kept[self] = self._headers(request)
            headers = kept.copy()
        address, port = exchange.client
        scope["client"] = (address, int(port))
        scope["server"] = server
        scope["headers"] = headers
        scope["asgi"] = {"version": "3.0", "spec_version": SPEC_VERSION}
        scope["state"] = state.copy()
        scope["extensions"] = {"http.response.trailers": {}}
        if exchange.origin is not None:
            self._apply_origin(scope, exchange)
        return scope

    def _of_line(self, request: Request) -> Scope:
        """Return what the request line says: a scope's first entries."""
        raw = request.path
        if request.placed is None or raw == b"*":
            path = unquote(raw.decode("ascii")) if b"%" in raw else raw.decode("ascii")
            root = request.mount
        else:
            # decoded and normal: what it was found by
            mount = request.mount.encode("latin-1")
            path = (mount + request.path_info).decode("utf-8", "replace") or "/"
            root = mount.decode("utf-8", "replace")
        return {
            "type": "http",
            "http_version": _VERSIONS[request.version],
            "method": request.method,
            "scheme": "http",
            "path": path,
            "raw_path": raw,
            "query_string": request.query,
            "root_path": root,
        }

    def _headers(self, request: Request) -> Headers:
        headers: Headers = []
        for name, value in request.fields:
            try:
                lower = _names[name]
            except KeyError:
                lower = self._new_name(name)
            if lower is not None:
                headers.append((lower, value))
        if request.target[:1] != b"/" and request.host:
            # absolute-form: Host doesn't count, and may say anything (RFC 9112 section 3.2.2)
            host = (f"{request.host}:{request.port}" if request.port else request.host).encode("ascii")
            headers = [(name, host if name == b"host" else value) for name, value in headers]
        return headers

    def _new_name(self, name: bytes) -> bytes | None:
        lower: bytes | None = name.lower()
        assert lower is not None
        if is_forwarding(lower):
            lower = None
            if self._site.proxies is None and not self._told_of_proxies:
                self._told_of_proxies = True
                self._site.log.info(
                    "a forwarding header was dropped: trusted_proxies names nobody",
                    header=name.decode("ascii"),
                )
        elif b"_" in lower or lower == b"proxy":
            lower = None
        if len(_names) >= _MAX_NAMES:
            _names.clear()
        _names[name] = lower
        return lower

    def _apply_origin(self, scope: Scope, exchange: Exchange) -> None:
        """Put in what a trusted proxy says of the client, its scheme and host."""
        origin = exchange.origin
        assert origin is not None
        scope["scheme"] = origin.scheme
        headers: Headers = scope["headers"]
        if origin.host:
            host = origin.authority.encode("ascii")
            headers = [(name, host if name == b"host" else value) for name, value in headers]
        headers += [
            (name.lower().encode("ascii"), value.encode("latin-1"))
            for name, value in origin.believed
            if "_" not in name
        ]
        scope["headers"] = headers
