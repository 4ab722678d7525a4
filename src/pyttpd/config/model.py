"""The configuration as a whole, as init, master and the operator's command see it; and how it is cut into shares."""

from __future__ import annotations

import os.path
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyttpd.config import limits
from pyttpd.config.shares import (
    HostMap,
    HttpSettings,
    ListenerPeer,
    ListenerShare,
    LogSettings,
    PoolSettings,
    TenantLogs,
    UmasterShare,
    VhostPeer,
    VhostShare,
)
from pyttpd.roles import METRICS_LISTENER_OFFSET, ROLES, TENANT_METRICS_OFFSET, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyttpd.address import Address
    from pyttpd.config.kinds import Mount


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Where metrics are served: one address, ports counted from `base_port`."""

    address: str
    base_port: int

    def port_of(self, role: Role) -> int:
        """Return the port of a role's own metrics (a listener's: the first one's). ValueError for vhosts."""
        offset = ROLES[role].metrics_offset
        if offset is None:
            raise ValueError("tenants share one port")
        return self.base_port + offset

    @property
    def listener_port(self) -> int:
        """The port of the metrics listener's own metrics."""
        return self.base_port + METRICS_LISTENER_OFFSET

    @property
    def tenants_port(self) -> int:
        """The tenants' shared port: /metrics/NAME."""
        return self.base_port + TENANT_METRICS_OFFSET


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening socket and the process that accepts from it. `mode` is "http" or "metrics"; times in seconds."""

    name: str
    mode: str
    address: Address
    backlog: int
    uid: int
    head_limit: int
    request_line_limit: int
    max_headers: int
    head_timeout: float
    linger_timeout: float
    max_connections: int
    max_unnamed_per_client: int
    stress_factor: float
    handover_timeout: float
    proxy_protocol: tuple[str, ...]
    metrics_port: int


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """A vhost's quotas in umaster: waiting connections, how long (s), and those given to a worker but not yet taken."""

    limit: int
    timeout: float
    handovers: int


@dataclass(frozen=True, slots=True)
class Vhost:
    """One tenant. Paths are absolute; `hosts` are in the head scanner's normal form, wildcards as "*.suffix".
    `shorthand`: its one mount was written in its own table.
    """

    name: str
    hosts: tuple[str, ...]
    default: bool
    uid: int
    gid: int
    share_uid: bool
    root: str
    mounts: tuple[Mount, ...]
    python_path: tuple[str, ...]
    env: Mapping[str, str]
    writable: tuple[str, ...]
    access_log: str
    access_log_file: str | None
    error_log_file: str | None
    log_file_limit: int
    log_level: str | None
    allow: tuple[Address, ...]
    pool: PoolSettings
    queue: QueueSettings
    http: HttpSettings
    virtualenv: str | None = None
    preload: bool = True
    trusted_proxies: tuple[str, ...] = ()
    proxy_headers: str = limits.PROXY_HEADERS[0]
    error_pages: Mapping[str, str] = field(default_factory=dict)
    slow_log_file: str | None = None
    shorthand: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """What its mounts read or reach that is not below `root` or `writable`: their own folders, and sockets'."""
        found = [getattr(mount.options, "root", None) for mount in self.mounts]
        found += [
            os.path.dirname(path) for mount in self.mounts if (path := getattr(mount.options, "socket", None))
        ]
        known = [f"{path}/" for path in (self.root, *self.writable)]
        return tuple(
            {folder: None for folder in found if folder and not f"{folder}/".startswith(tuple(known))}
        )

    @property
    def log_files(self) -> tuple[str, ...]:
        """Its log files, as far as there are any: the tenant's supervisor writes them."""
        files = (self.access_log_file, self.error_log_file, self.slow_log_file)
        return tuple([file for file in files if file is not None])


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration. Made by loader.load(); never sent to a role that isn't init or master.

    `listeners` are in the order of the file; the last one is the tenants' metrics listener. `digest` is the SHA-256
    (hex) of the files, `generation` what the shares are stamped with.
    """

    file: str
    generation: int
    digest: str
    runtime_dir: str
    grace: float
    log: LogSettings
    metrics: MetricsSettings
    listeners: tuple[Listener, ...]
    vhosts: tuple[Vhost, ...]
    admin_gid: int | None = None
    _listeners: dict[str, Listener] = field(init=False, repr=False, compare=False)
    _vhosts: dict[str, Vhost] = field(init=False, repr=False, compare=False)
    _foreign: dict[str, list[str]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_listeners", {listener.name: listener for listener in self.listeners})
        object.__setattr__(self, "_vhosts", {vhost.name: vhost for vhost in self.vhosts})
        object.__setattr__(self, "_foreign", foreign_names(self.host_map()))

    def listener(self, name: str) -> Listener:
        """Return the listener of that name. KeyError if there is none."""
        return self._listeners[name]

    def vhost(self, name: str) -> Vhost:
        """Return the vhost of that name. KeyError if there is none."""
        return self._vhosts[name]

    def foreign(self, name: str) -> tuple[str, ...]:
        """Return the names directly below that vhost's wildcards that belong to others."""
        return tuple(self._foreign.get(name, ()))

    def share_for_listener(self, name: str) -> ListenerShare:
        """Return what the listener of that name may know. KeyError if there is none."""
        listener = self._listeners[name]
        return ListenerShare(
            generation=self.generation,
            name=name,
            mode=listener.mode,
            head_limit=listener.head_limit,
            request_line_limit=listener.request_line_limit,
            max_headers=listener.max_headers,
            head_timeout=listener.head_timeout,
            linger_timeout=listener.linger_timeout,
            max_connections=listener.max_connections,
            max_unnamed_per_client=listener.max_unnamed_per_client,
            stress_factor=listener.stress_factor,
            handover_timeout=listener.handover_timeout,
            proxy_protocol=listener.proxy_protocol,
            log=self.log,
            grace=self.grace,
        )

    def share_for_umaster(self) -> UmasterShare:
        """Return what umaster may know; the host map goes beside it."""
        return UmasterShare(
            generation=self.generation,
            listeners=tuple(
                [
                    ListenerPeer(each.name, each.uid, each.mode, each.max_connections)
                    for each in self.listeners
                ]
            ),
            vhosts=tuple(
                [
                    VhostPeer(each.name, each.uid, each.queue.limit, each.queue.timeout, each.queue.handovers)
                    for each in self.vhosts
                ]
            ),
            log=self.log,
            grace=self.grace,
        )

    def share_for_vhost(self, name: str) -> VhostShare:
        """Return what the vhost of that name may know. KeyError if there is none."""
        vhost = self._vhosts[name]
        return VhostShare(
            generation=self.generation,
            name=name,
            uid=vhost.uid,
            gid=vhost.gid,
            hosts=vhost.hosts,
            foreign=self.foreign(name),
            default=vhost.default,
            root=vhost.root,
            mounts=vhost.mounts,
            python_path=vhost.python_path,
            env=vhost.env,
            writable=vhost.writable,
            allow=tuple([str(address) for address in vhost.allow]),
            pool=vhost.pool,
            http=vhost.http,
            logs=TenantLogs(
                vhost.access_log,
                vhost.access_log_file,
                vhost.error_log_file,
                vhost.slow_log_file,
                vhost.log_file_limit,
            ),
            log=LogSettings(vhost.log_level or self.log.level, self.log.format),
            grace=self.grace,
            virtualenv=vhost.virtualenv,
            preload=vhost.preload,
            trusted_proxies=vhost.trusted_proxies,
            proxy_headers=vhost.proxy_headers,
            error_pages=vhost.error_pages,
        )

    def host_map(self) -> HostMap:
        """Return who gets which host."""
        exact: dict[str, str] = {}
        wildcard: dict[str, str] = {}
        default = None
        for vhost in self.vhosts:
            for host in vhost.hosts:
                if host.startswith("*."):
                    wildcard[host[2:]] = vhost.name
                else:
                    exact[host] = vhost.name
            if vhost.default:
                default = vhost.name
        return HostMap(self.generation, exact, wildcard, default)


def foreign_names(hosts: HostMap) -> dict[str, list[str]]:
    """Return, for each vhost with wildcards, the names directly under them that belong to others.

    Directly: what lies under somebody else's wildcard is covered by that wildcard. So there is at most one entry for
    each name, and all lists together are no longer than the host map.
    """
    enclosing = HostMap(hosts.generation, {}, hosts.wildcard, None)
    foreign: dict[str, list[str]] = {}
    if hosts.wildcard:
        for names, prefix in ((hosts.exact, ""), (hosts.wildcard, "*.")):
            for name, owner in names.items():
                around = enclosing.find(name)
                if around is not None and around != owner:
                    foreign.setdefault(around, []).append(prefix + name)
    return foreign
