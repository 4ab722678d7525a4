"""What fastcgi and scgi have in common: the application listens on a Unix socket, and may be scripts below a root.

Theory of operation: the request's variables (variables.py), with the script that its path means (scripts.py) and what
the configuration adds; its body (bodies.py); a connection, kept or new (backends.py); then bytes both ways (relay.py).
Who does that is the vhost's switchboard (switchboard.py), for many requests at once; or, where there is none, and for
long and chunked bodies, the thread that serves the request, which waits.
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
from collections import deque
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

from pyttpd.config.asked import AskedOptions, ScriptOptions
from pyttpd.config.kinds import StaticOptions

from pyttpd_vhost.http.engine import Request
from pyttpd_vhost.http.exchange import Exchange
from pyttpd_vhost.http.paths import BadPathError, normal
from pyttpd_vhost.kinds.gateway.backends import Backend, Line
from pyttpd_vhost.kinds.gateway.bodies import PIECE, Source, source
from pyttpd_vhost.kinds.gateway.errors import Errors
from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault
from pyttpd_vhost.kinds.gateway.kind import IDEMPOTENT, GatewayKind
from pyttpd_vhost.kinds.gateway.relay import Codec, Relay
from pyttpd_vhost.kinds.gateway.scripts import File, Moved, Rules, Script, Scripts
from pyttpd_vhost.kinds.gateway.switchboard import Call, Given, Switchboard, serves
from pyttpd_vhost.kinds.gateway.variables import of_connection
from pyttpd_vhost.kinds.static.programs import Programs

if TYPE_CHECKING:
    from pyttpd_vhost.kinds.static import StaticKind
    from pyttpd_vhost.site import Site

#: Connections of a worker to an application that is asked on a new one each time: they may wait in its queue (511).
MOST_LINES = 128


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
        self.read_timeout = options.read_timeout
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
        self.backend = Backend(site.places[path or "/"], keep=keep, patience=options.connect_timeout)
        #: How many connections the switchboard may have to the application, and has.
        self.most = max(options.processes, keep) if options.command and keep else MOST_LINES
        self.lines = 0
        #: Requests for which there is none.
        self.waiting: deque[Call] = deque()
        #: Threads of the worker's that need a connection.
        self.wanted = 0
        #: Those of its connections that are kept.
        self.idle: list[Line] = []
        self._board: Switchboard | None = None
        if serves(share) and self.backend.place.direct:
            if site.aside is None:
                site.aside = Switchboard(site)
            assert isinstance(site.aside, Switchboard)
            self._board = site.aside
            self._board.kinds.append(self)
        self._root = os.fsencode(root).decode("latin-1")  # as all variables are: a byte is a character
        self._params: dict[str, str] = {
            "DOCUMENT_ROOT": self._root,
            # php-cgi wants to know that a server has sent it here and no browser
            "REDIRECT_STATUS": "200",
            **{name: value.encode().decode("latin-1") for name, value in options.params.items()},
        }

    def handle(self, request: Request, exchange: Exchange) -> None:
        """See `Kind.handle`."""
        if self._switched is not None:
            data = self._short_body(request, exchange)
            if data is not None:
                # By the request that came: what the access log is to have.
                exchange.give_away(exchange.request, Given(self, request, data))
                return
        GatewayKind.handle(self, request, exchange)

    @property
    def _switched(self) -> Switchboard | None:
        """Who asks for us, if somebody does: not before there is a worker."""
        return self._board if self._board is not None and self._board.begun else None

    def _short_body(self, request: Request, exchange: Exchange) -> bytes | None:
        """Return the request's body, if it has come whole; None: it is to be passed on as it comes."""
        body = exchange.body
        if body is None:
            return b""
        if not 0 < request.length <= self.site.settings.body_buffer or request.expect:
            return None
        pieces = []
        while not body.done:
            pieces.append(body.read(PIECE))
        exchange.body = None
        return b"".join(pieces)

    def close(self) -> None:
        """Give all descriptors back (tests; a worker's end with it)."""
        self.backend.close()
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
        mine, script = self._look(request, exchange)
        if not mine:
            return ""
        body = source(exchange)
        try:
            variables = self._variables(request, exchange, script, body)
            return self._converse(request, exchange, self.first(variables, body.length), body)
        finally:
            body.close()

    def question(self, request: Request, exchange: Exchange, body: Source) -> bytes | None:
        """Return what begins the request to the application; None: it isn't for that, and is answered.

        Raises BadPathError and ClientGone.
        """
        mine, script = self._look(request, exchange)
        return self.first(self._variables(request, exchange, script, body), body.length) if mine else None

    def _look(self, request: Request, exchange: Exchange) -> tuple[bool, Script | None]:
        """Return whether the request is for the application, with its script if there are any; else it is answered."""
        if b"%" in request.path and b"\0" in request.path_info:
            raise BadPathError
        if self._scripts is None or request.path == b"*":
            return True, None
        script = self._find(self._scripts, request, exchange)
        return script is not None, script

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
        place = self.backend.place
        place.begin()
        try:
            kept = self.backend.kept() if self.backend.keeps else None
            if kept is not None:
                try:
                    return self._once(kept, request, exchange, first, body, kept=True)
                except _StaleError:
                    body.rewind()
            board = self._switched
            with nullcontext() if board is None else board.room_for(self):
                line = self.backend.connect(self.backend.patience)
                return self._once(line, request, exchange, first, body)
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
        relay = self.relay(line, conversation, exchange, first, body)
        try:
            return relay.run()
        except BackendError as error:
            if kept and self.may_ask_again(error, relay, request, body):
                raise _StaleError from None
            raise
        finally:
            if self._switched is None and self.may_keep(relay, conversation):
                self.backend.keep(line)
            else:
                self.give_up(line, relay)

    def relay(
        self, line: Line, conversation: Conversation, exchange: Exchange, first: bytes, body: Source
    ) -> Relay:
        """Return what passes the request and its answer on by `line`."""
        errors = Errors(self.site.log, self.path)
        return Relay(exchange, conversation, line, body, first, errors, self.read_timeout)

    def may_ask_again(self, error: BackendError, relay: Relay, request: Request, body: Source) -> bool:
        """Whether a kept connection may simply have been none any more: see the module's text."""
        return (
            error.fault is Fault.DIED
            and not relay.heard
            and body.whole
            and (not relay.begun or request.method in IDEMPOTENT)
        )

    def may_keep(self, relay: Relay, conversation: Conversation) -> bool:
        """Whether the request's connection may serve another one."""
        return relay.ended and relay.told and conversation.clean and self.backend.keeps

    def give_up(self, line: Line, relay: Relay) -> None:
        """Close the request's connection."""
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
