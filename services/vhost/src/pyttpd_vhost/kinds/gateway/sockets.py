"""What fastcgi and scgi have in common: the application listens on a Unix socket, and may be scripts below a root.

Theory of operation: the request's variables (variables.py), with the script that its path means (scripts.py) and what
the configuration adds; its body (bodies.py); a connection, kept or new (backends.py); then bytes both ways (relay.py).
Of a head that comes again and again (http/heads.py) the variables are remembered as they are sent; the connection's
are added each time.

A kept connection that the application has closed meanwhile is no fault: the request is asked once more on a new one, if
the application can't have done anything with it yet. It can't if not a byte got there; and where the method may be
repeated (RFC 9110 section 9.2.2) it doesn't matter, as long as it has said nothing and nothing of the body is gone.
"""

from __future__ import annotations

import contextlib
import os
import socket
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from pyttpd.config.asked import AskedOptions, ScriptOptions
from pyttpd.config.kinds import StaticOptions

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.paths import BadPathError, normal
from pyttpd_vhost.kinds.gateway.backends import Backend, Line
from pyttpd_vhost.kinds.gateway.bodies import Source, source
from pyttpd_vhost.kinds.gateway.errors import Errors
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault
from pyttpd_vhost.kinds.gateway.kind import GatewayKind
from pyttpd_vhost.kinds.gateway.relay import Codec, Relay
from pyttpd_vhost.kinds.gateway.scripts import File, Moved, Rules, Script, Scripts
from pyttpd_vhost.kinds.gateway.variables import of_connection
from pyttpd_vhost.kinds.static.programs import Programs

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.static import StaticKind
    from pyttpd_vhost.site import Site

#: Methods whose requests may be made twice (RFC 9110 section 9.2.2).
_IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


class Conversation(Codec, Protocol):
    """A codec that knows whether the connection can be used again."""

    clean: bool


class _StaleError(Exception):
    """A kept connection was none any more."""


class SocketKind(GatewayKind):
    """See the module's text."""

    def __init__(self, options: AskedOptions, site: Site, mount: int = 0, path: str = "") -> None:
        super().__init__(site, mount, path)
        share = site.share
        self._read_timeout = options.read_timeout
        root = share.root
        self._scripts: Scripts | None = None
        self._files: StaticKind | None = None
        keep = 0
        if isinstance(options, ScriptOptions):
            keep = options.kept(share.pool.max_workers, share.pool.max_threads)
            root = options.root.rstrip("/")
            if options.scripts:
                self._scripts = Scripts(options.root, _rules(options, site))
                if options.files:
                    self._files = _files(options, site)
        self._backend = Backend(site.places[path or "/"], keep=keep, patience=options.connect_timeout)
        self._root = os.fsencode(root).decode("latin-1")  # as all variables are: a byte is a character
        self._params: dict[str, str] = {
            "DOCUMENT_ROOT": self._root,
            # php-cgi wants to know that a server has sent it here and no browser
            "REDIRECT_STATUS": "200",
            **{name: value.encode().decode("latin-1") for name, value in options.params.items()},
        }

    def close(self) -> None:
        """Give all descriptors back (tests; a worker's end with it)."""
        self._backend.close()
        if self._scripts is not None:
            self._scripts.close()
        if self._files is not None:
            self._files.close()

    @abstractmethod
    def conversation(self) -> Conversation:
        """Return the protocol for one request."""

    @abstractmethod
    def encode(self, variables: Mapping[str, str]) -> bytes:
        """Return `variables` as they are sent; those of two such pieces are told by both, one behind the other."""

    @abstractmethod
    def first(self, encoded: bytes, length: int) -> bytes:
        """Return what begins a request with the variables `encoded`, and a body of `length` bytes."""

    def abort(self, sock: socket.socket) -> None:
        """The request is given up: say so, if there is a way. The connection is closed afterwards."""

    def ask(self, request: Request, exchange: Exchange) -> str:
        """See `GatewayKind.ask`."""
        if b"%" in request.path and b"\0" in request.path_info:
            raise BadPathError
        script = None
        if self._scripts is not None and request.path != b"*":
            script = self._find(self._scripts, request, exchange)
            if script is None:
                return ""
        body = source(exchange)
        try:
            variables = self._variables(request, exchange, script, body)
            return self._converse(request, exchange, self.first(variables, body.length), body)
        finally:
            body.close()

    def _variables(self, request: Request, exchange: Exchange, script: Script | None, body: Source) -> bytes:
        """Return all variables, as they are sent."""
        mine = of_connection(exchange)
        for name in mine.keys() & self._params.keys():
            del mine[name]
        kept = request.kept if exchange.origin is None and not request.length else None
        known: tuple[Script | None, bytes] | None = None if kept is None else kept.get(self)
        if known is not None and known[0] == script:
            return known[1] + self.encode(mine)
        variables = self.variables.of(request, exchange)
        for name in mine:
            del variables[name]
        if script is not None:
            self._of_script(variables, script)
        variables.update(self._params)
        if request.length:
            variables["CONTENT_LENGTH"] = str(body.length)
        encoded = self.encode(variables)
        if kept is not None:
            kept[self] = script, encoded
        return encoded + self.encode(mine)

    def _find(self, scripts: Scripts, request: Request, exchange: Exchange) -> Script | None:
        """Return the script that the path means; None: it means something else, which is answered."""
        placed = request.placed
        match scripts.find(normal(request.path) if placed is None else placed.info):
            case Script() as script:
                return script
            case File():
                assert self._files is not None
                self._files.handle(request, exchange)
            case Moved(path):
                self.to_folder(path, request, exchange)
            case None:
                exchange.fail(404)
        return None

    def _of_script(self, variables: dict[str, str], script: Script) -> None:
        name = script.path.decode("latin-1")
        variables["SCRIPT_NAME"] += f"/{name}"
        variables["SCRIPT_FILENAME"] = f"{self._root}/{name}"
        rest = variables["PATH_INFO"] = script.info.decode("latin-1")
        if rest:
            variables["PATH_TRANSLATED"] = self._root + rest

    def _converse(self, request: Request, exchange: Exchange, first: bytes, body: Source) -> str:
        place = self._backend.place
        place.begin()
        try:
            kept = self._backend.kept() if self._backend.keeps else None
            if kept is not None:
                try:
                    return self._once(kept, request, exchange, first, body, kept=True)
                except _StaleError:
                    body.rewind()
            return self._once(self._backend.connect(), request, exchange, first, body)
        finally:
            place.end()

    def _once(
        self,
        line: Line,
        request: Request,
        exchange: Exchange,
        first: bytes,
        body: Source,
        *,
        kept: bool = False,
    ) -> str:
        """Ask on this connection. Owns `line`. Raises _StaleError if it was `kept` and is none any more."""
        conversation = self.conversation()
        relay = Relay(
            exchange,
            conversation,
            line,
            body,
            first,
            Errors(self.site.log, self.path),
            self._read_timeout,
        )
        try:
            return relay.run()
        except BackendError as error:
            if (
                kept
                and error.fault is Fault.DIED
                and not relay.heard
                and body.whole
                and (not relay.begun or request.method in _IDEMPOTENT)
            ):
                raise _StaleError from None
            raise
        finally:
            if relay.ended and relay.told and conversation.clean and self._backend.keeps:
                self._backend.keep(line)
            else:
                if relay.at_a_boundary and not relay.ended:
                    with contextlib.suppress(OSError):
                        self.abort(line.sock)
                line.close()


def _rules(options: ScriptOptions, site: Site) -> Rules:
    return Rules(
        tuple([suffix.encode() for suffix in options.scripts]),
        tuple([name.encode() for name in options.index]),
        options.front_controller.encode(),
        Programs(site.share.mounts, options.root, site.share.root) if options.files else None,
    )


def _files(options: ScriptOptions, site: Site) -> StaticKind:
    """Make what sends the files that are no scripts."""
    from pyttpd_vhost.kinds.static import StaticKind

    index = tuple([name for name in options.index if not name.endswith(options.scripts)])
    return StaticKind(StaticOptions(options.root, index=index), site)
