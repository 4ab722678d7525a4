"""A tenant's site: what all its connections share in one process.

Made in the prototype from the tenant's share, before the tenant's code is seen; `load` imports that, after
the prototype has confined itself. Workers get it by fork.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Protocol

from pyttpd.config.kinds import (
    AsgiOptions,
    CgiOptions,
    FastcgiOptions,
    HandoffOptions,
    ScgiOptions,
    StaticOptions,
    WsgiOptions,
)
from pyttpd.head import bounds_of

from pyttpd_vhost.commons import Commons
from pyttpd_vhost.http.connection import Connection
from pyttpd_vhost.http.heads import HeadReader
from pyttpd_vhost.http.patience import Patience
from pyttpd_vhost.http.proxies import Proxies
from pyttpd_vhost.http.response import Fields, plain_page

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyttpd.config.kinds import KindOptions
    from pyttpd.config.shares import VhostShare

    from pyttpd_vhost.access import AccessLog
    from pyttpd_vhost.aside import Aside
    from pyttpd_vhost.commons import Clients
    from pyttpd_vhost.execution.client import Client
    from pyttpd_vhost.execution.places import Place
    from pyttpd_vhost.http.engine import Engine
    from pyttpd_vhost.kinds.base import Kind


class SiteLog(Protocol):
    """What is used of `pyttpd.log.Log`."""

    def debug(self, event: str, **fields: object) -> None: ...
    def info(self, event: str, **fields: object) -> None: ...
    def warning(self, event: str, **fields: object) -> None: ...
    def error(self, event: str, **fields: object) -> None: ...
    def output(self, line: str) -> None: ...


class Stats:
    """One process's counters since it started. Plain integers: the supervisor adds up its workers."""

    __slots__ = ("bytes_sent", "errors", "faults", "gone", "responses")

    def __init__(self) -> None:
        self.responses = [0] * 6  # by the status's first digit, refusals included
        self.gone = 0  # clients that left, or were left, before their answer was sent
        self.errors = 0  # faults of the application
        self.bytes_sent = 0
        #: Faults of applications in other processes, by the scoreboard's cells (kinds/gateway/faults.py).
        self.faults: dict[int, int] = {}

    @property
    def requests(self) -> int:
        """Requests answered, by the kind or by a refusal."""
        return sum(self.responses)


class Site:
    """One tenant's site. `retiring`: answers say `Connection: close`: the process is about to leave, or full.

    `commons` is what all workers of the vhost share; `clients` this worker's part of it, None where nothing is limited.
    """

    __slots__ = (
        "_calm",
        "_exact",
        "_foreign",
        "_foreign_suffixes",
        "_stressed",
        "_suffixes",
        "access",
        "aside",
        "at_end",
        "clients",
        "commons",
        "connection",
        "engine",
        "heads",
        "kind",
        "log",
        "page",
        "places",
        "programs",
        "proxies",
        "requests_per_connection",
        "retiring",
        "settings",
        "share",
        "stats",
        "turn",
    )

    def __init__(self, share: VhostShare, log: SiteLog, commons: Commons | None = None) -> None:
        self.share = share
        self.commons = commons or Commons(1, limit=share.http.max_connections_per_client)
        self.clients: Clients | None = None
        self._calm = Patience.of(share.http)
        self._stressed = Patience.of(share.http, share.http.stress_factor)
        self.settings = share.http
        self.log = log
        self.stats = Stats()
        self.retiring = False
        #: The access log; None: it is off. A worker's is set once its process is there.
        self.access: AccessLog | None = None
        #: Another object each time before requests are served that have all come already; None: nobody says so. What
        #: was looked at in this turn need not be looked at again in it (kinds/static/cache.py). No counter: threads
        #: would need a lock for it.
        self.turn: object = None
        #: Where programs are asked for; None: no mount of this tenant's runs any.
        self.programs: Client | None = None
        #: The sockets of mounts that are asked over one, by the mount's path.
        self.places: dict[str, Place] = {}
        #: Called when the process is about to end, by whoever ends it.
        self.at_end: list[Callable[[], None]] = []
        #: What a connection that is given to us becomes.
        self.connection: type[Connection] = Connection
        self.kind: Kind
        #: What serves connections beside the worker's threads, if a kind wants that; None: nothing does.
        self.aside: Aside | None = None
        #: Takes a status, and header fields; returns the fields and the body of an error's answer.
        self.page: Callable[..., tuple[Fields, bytes]] = plain_page
        self.engine = _engine(share.http.engine)
        self.proxies = Proxies(share.trusted_proxies, share.proxy_headers) if share.trusted_proxies else None
        self.heads = _reader(self.engine, share)
        self.requests_per_connection = (
            1 if not share.http.keepalive else share.http.max_keepalive_requests or sys.maxsize
        )
        self._exact, self._suffixes = _split(share.hosts)
        self._foreign, self._foreign_suffixes = _split(share.foreign)

    @property
    def patience(self) -> Patience:
        """How long clients are waited for, as things stand."""
        return self._stressed if self.commons.stressed else self._calm

    def owns(self, authority: str, routed: str) -> bool:
        """Whether a request for `authority` may be served on a connection that was routed here for `routed`."""
        if authority == routed or authority in self._exact:
            return True
        if not authority:
            return self.share.default  # HTTP/1.0 without Host: where umaster would have sent it
        if not self._suffixes or authority in self._foreign:
            return False
        # as in the host map: the longest suffix decides
        _, dot, suffix = authority.partition(".")
        while dot:
            if suffix in self._suffixes:
                return True
            if suffix in self._foreign_suffixes:
                return False
            _, dot, suffix = suffix.partition(".")
        return False

    def for_thread(self) -> Site:
        """Return the same site for another thread of this process: with an engine, memory and counters of its own."""
        other = copy.copy(self)
        other.stats = Stats()
        other.engine = _engine(self.share.http.engine)
        other.heads = _reader(other.engine, self.share)
        return other

    def flush(self) -> None:
        """Send what there is of the access log, without waiting. Any thread may do so."""
        if self.access is not None:
            self.access.flush()

    def finish(self) -> None:
        """Send all of it, waiting a moment if need be: the process ends."""
        for call in self.at_end:
            call()
        if self.access is not None and (lost := self.access.finish()):
            self.log.warning("entries of the access log are lost", count=lost)

    def load(self) -> None:
        """Make the kinds, importing the tenant's code. Call it confined. Raises whatever that code raises."""
        # imported here: a tenant's process holds the code of its own kinds only, and of what they use
        if self.share.error_pages:
            from pyttpd_vhost.pages import ErrorPages

            self.page = ErrorPages(self.share, self.log).page
        if self.share.python:
            from pyttpd_vhost.kinds.python import prepare

            prepare(self.share, self.log)
        mounts = self.share.mounts
        kinds = [self._kind(mount.options, number, mount.prefix) for number, mount in enumerate(mounts)]
        by_path = dict(zip([mount.path for mount in mounts], kinds, strict=True))
        for mount, kind in zip(mounts, kinds, strict=True):
            if isinstance(mount.options, StaticOptions) and mount.options.fallback[:1] == "@":
                kind.falls_back_on(by_path[mount.options.fallback])  # type: ignore[attr-defined]  # it is a StaticKind
        if [mount.path for mount in mounts] == ["/"]:
            self.kind = kinds[0]  # nothing in between
        else:
            from pyttpd_vhost.mounts import Mounts

            self.kind = Mounts(zip(mounts, kinds, strict=True), self)

    def _kind(self, options: KindOptions, number: int = 0, prefix: str = "") -> Kind:
        """Make what serves one mount: the vhost's `number`, below `prefix`."""
        match options:
            case WsgiOptions():
                from pyttpd_vhost.kinds.python import load_application
                from pyttpd_vhost.kinds.wsgi import WsgiKind

                return WsgiKind(load_application(options.application), self)
            case AsgiOptions():
                from pyttpd_vhost.kinds.asgi import AsgiKind
                from pyttpd_vhost.kinds.python import load_application

                return AsgiKind(load_application(options.application), options, self)
            case StaticOptions():
                from pyttpd_vhost.kinds.static import StaticKind

                return StaticKind(options, self)
            case CgiOptions():
                from pyttpd_vhost.kinds.cgi import CgiKind

                return CgiKind(options, self, number, prefix)
            case HandoffOptions():
                from pyttpd_vhost.kinds.handoff import HandoffKind

                return HandoffKind(
                    options,
                    self,
                    self.places.get(prefix or "/"),
                    mount=number,
                    prefix=prefix,
                    whole=len(self.share.mounts) == 1 and not prefix,
                )
            case FastcgiOptions():
                from pyttpd_vhost.kinds.fastcgi.kind import FastcgiKind

                return FastcgiKind(options, self, number, prefix)
            case ScgiOptions():
                from pyttpd_vhost.kinds.scgi import ScgiKind

                return ScgiKind(options, self, number, prefix)
            case _:
                raise ValueError(f"no such kind: {options.kind}")


def _engine(name: str) -> Engine:
    """Return a new engine. Only the one that the vhost chose is imported."""
    match name:
        case "llhttp":
            from pyttpd_vhost.http.llhttp import LlhttpEngine

            return LlhttpEngine()
        case "h11":
            from pyttpd_vhost.http.h11 import H11Engine

            return H11Engine()
        case other:
            raise ValueError(f"no such engine: {other}")


def _reader(engine: Engine, share: VhostShare) -> HeadReader:
    http = share.http
    return HeadReader(engine, http.head_limit, bounds_of(http.request_line_limit, http.max_headers))


def _split(hosts: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    """Split host names into exact ones and wildcards' suffixes."""
    return (
        frozenset(host for host in hosts if not host.startswith("*.")),
        frozenset(host[2:] for host in hosts if host.startswith("*.")),
    )
