"""The shares: what master gives to each role, and nothing else of the configuration.

Rules
  1. A share is a frozen dataclass that validates itself on construction; `to_json` and `from_json` are each other's
     inverse. `from_json` believes nothing: size, syntax, keys (all of them, no others), types, limits. What is wrong
     raises ShareError, whose text is safe for logs (it never repeats what was received).
  2. One table per class (`_..._FIELDS`, of checks.py's checks) drives construction and decoding.
  3. Lean: every role process imports this module; no TOML, no file access, no error prose.

The host map has a form of its own, grouped by vhost, because 100,000 names must be read in less than 0.1 s:
    {"generation": 1, "default": "blog", "vhosts": {"blog": ["blog.example", "*.blog.example"]}}

In step with: kinds.py (a vhost's mounts), loader.py (makes them), schema.py (documents the same values), limits.py (the
bounds).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

from pyttpd.config import checks, limits
from pyttpd.config.checks import Check, ShareError
from pyttpd.config.kinds import KINDS, Mount, mounts
from pyttpd.roles import MAX_NAMES, MAX_VHOSTS

Buffer: TypeAlias = bytes | bytearray | memoryview


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ShareError("share: a key is there twice")
    return result


def _no_constant(_text: str) -> float:
    raise ShareError("share: NaN and infinity are not numbers here")


def parse(data: Buffer, limit: int) -> object:
    """Return the JSON value in `data`. Raises ShareError."""
    if len(data) > limit:
        raise ShareError(f"share: must be at most {limit} bytes")
    try:
        text = str(data, "utf-8")  # not json's guess, which would take UTF-16 as well
        value: object = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except ShareError:
        raise
    except (ValueError, RecursionError):
        raise ShareError("share: must be JSON in UTF-8") from None
    return value


def _dump(value: object, limit: int) -> bytes:
    return _bounded(_json(value).encode(), limit)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _bounded(data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise ShareError(f"share: must be at most {limit} bytes")
    return data


#: How the two end that have a vhost on each line (`pieces`).
MAP_END, SHARE_END = b"}}", b"]}"


# --- settings that are the same in the configuration and in shares ------------------------------------------
@dataclass(frozen=True, slots=True)
class LogSettings:
    """What a role logs: the least level, and whether a line is text or JSON."""

    level: str = "info"
    format: str = "text"

    def __post_init__(self) -> None:
        checks.validate(self, _LOG_FIELDS)


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """A vhost's workers: how many, when one goes, its threads, and how long a request may take. Times in s; bytes.

    0 in a criterion is "off"; in `start_workers`, `max_spare` and `hard_age` "as the others say" (properties below).
    """

    max_workers: int = 2
    max_requests: int = 0
    max_threads: int = 1
    thread_wait: float = 0.01
    thread_idle: float = 30.0
    slow_request: float = 5.0
    request_timeout: float = 60.0
    mode: str = "static"
    start_workers: int = 0
    min_spare: int = 1
    max_spare: int = 0
    idle_timeout: float = 60.0
    max_age: float = 3600.0
    hard_age: float = 0.0
    max_memory: int = 0
    max_cpu: float = 0.0
    max_processes: int = 0

    def __post_init__(self) -> None:
        checks.validate(self, _POOL_FIELDS)
        for _, wrong in self.contradictions():
            raise ShareError(f"pool: {wrong}")

    @property
    def first(self) -> int:
        """How many workers there are before the vhost registers."""
        match self.mode:
            case "static":
                return self.max_workers
            case "dynamic":
                return self.start_workers or max(1, self.min_spare)
            case _:
                return self.start_workers

    @property
    def most_spare(self) -> int:
        """How many may be without work before some leave."""
        return self.max_spare or min(self.max_workers, max(1, self.min_spare) + 3)

    @property
    def processes(self) -> int:
        """How many processes and threads there may be of the tenant's uid."""
        return self.max_processes or 128 + 4 * (self.max_workers + 1) * (self.max_threads + 2)

    @property
    def oldest(self) -> float:
        """The age up to which a retirement may be postponed."""
        return self.hard_age or 2 * self.max_age or 7200.0

    def contradictions(self) -> list[tuple[str, str]]:
        """Return what can't all be meant: the key to look at, and a sentence."""
        found = []
        if self.start_workers and self.mode == "static" and self.start_workers != self.max_workers:
            found.append(
                (
                    "start_workers",
                    'mode = "static" starts max_workers: remove it, or write mode = "dynamic"',
                )
            )
        for key in ("start_workers", "min_spare", "max_spare"):
            value = getattr(self, key)
            if self.mode != "static" and value > self.max_workers:
                found.append(
                    (key, f"must be at most max_workers, which is {self.max_workers}, and not {value}")
                )
        if self.mode == "dynamic" and 0 < self.max_spare < self.min_spare:
            found.append(("max_spare", f"must be at least min_spare, which is {self.min_spare}"))
        if 0 < self.hard_age < self.max_age:
            found.append(("hard_age", f"must be at least max_age, which is {self.max_age:g}"))
        if 0 < self.max_memory < limits.MIN_MEMORY:
            found.append(("max_memory", f"must be 0 or at least {limits.MIN_MEMORY}: it counts bytes"))
        return found


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """A vhost's HTTP: sizes in bytes, times in seconds, rates in bytes/s; 0 is no limit for rates, requests and
    connections.
    """

    head_limit: int = 32768
    request_line_limit: int = 8192
    max_headers: int = 128
    body_limit: int = 10485760
    body_buffer: int = 16384
    head_timeout: float = 10.0
    idle_timeout: float = 60.0
    write_timeout: float = 30.0
    read_timeout: float = 30.0
    min_body_rate: int = 500
    min_read_rate: int = 500
    rate_grace: float = 30.0
    stress_factor: float = 0.2
    max_connections_per_client: int = 0
    max_keepalive_requests: int = 0
    keepalive: bool = True
    engine: str = "llhttp"

    def __post_init__(self) -> None:
        checks.validate(self, _HTTP_FIELDS)


@dataclass(frozen=True, slots=True)
class TenantLogs:
    """A vhost's own logs: the access log's form, files instead of the standard output and the role's log, and how many
    bytes each may grow to.
    """

    access_log: str = "combined"
    access_log_file: str | None = None
    error_log_file: str | None = None
    slow_log_file: str | None = None
    log_file_limit: int = 1 << 30

    def __post_init__(self) -> None:
        checks.validate(self, _TENANT_LOGS_FIELDS)


_LOG_FIELDS: dict[str, Check] = {
    "level": checks.choice(limits.LOG_LEVELS),
    "format": checks.choice(limits.LOG_FORMATS),
}
_POOL_FIELDS: dict[str, Check] = {
    "max_workers": checks.integer(limits.WORKERS),
    "max_requests": checks.integer(limits.COUNT),
    "max_threads": checks.integer(limits.THREADS),
    "thread_wait": checks.number(limits.THREAD_WAIT),
    "thread_idle": checks.number(limits.TIMEOUT),
    "slow_request": checks.number(limits.REQUEST_AGE),
    "request_timeout": checks.number(limits.REQUEST_AGE),
    "mode": checks.choice(limits.POOL_MODES),
    "start_workers": checks.integer(limits.SPARE),
    "min_spare": checks.integer(limits.SPARE),
    "max_spare": checks.integer(limits.SPARE),
    "idle_timeout": checks.number(limits.TIMEOUT),
    "max_age": checks.number(limits.AGE),
    "hard_age": checks.number(limits.AGE),
    "max_memory": checks.integer(limits.MEMORY),
    "max_cpu": checks.number(limits.CPU_SECONDS),
    "max_processes": checks.integer(limits.PROCESSES),
}
_HTTP_FIELDS: dict[str, Check] = {
    "head_limit": checks.integer(limits.HEAD_LIMIT),
    "request_line_limit": checks.integer(limits.REQUEST_LINE_LIMIT),
    "max_headers": checks.integer(limits.MAX_HEADERS),
    "body_limit": checks.integer(limits.BODY_LIMIT),
    "body_buffer": checks.integer(limits.BODY_BUFFER),
    "head_timeout": checks.number(limits.TIMEOUT),
    "idle_timeout": checks.number(limits.TIMEOUT),
    "write_timeout": checks.number(limits.TIMEOUT),
    "read_timeout": checks.number(limits.TIMEOUT),
    "min_body_rate": checks.integer(limits.RATE),
    "min_read_rate": checks.integer(limits.RATE),
    "rate_grace": checks.number(limits.RATE_GRACE),
    "stress_factor": checks.number(limits.STRESS_FACTOR),
    "max_connections_per_client": checks.integer(limits.PER_CLIENT),
    "max_keepalive_requests": checks.integer(limits.COUNT),
    "keepalive": checks.flag,
    "engine": checks.choice(limits.ENGINES),
}
_TENANT_LOGS_FIELDS: dict[str, Check] = {
    "access_log": checks.choice(limits.ACCESS_LOGS),
    "access_log_file": checks.path_or_none,
    "error_log_file": checks.path_or_none,
    "slow_log_file": checks.path_or_none,
    "log_file_limit": checks.integer(limits.LOG_FILE_LIMIT),
}


# --- the shares ---------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ListenerShare:
    """A listener's share. Times in seconds, `head_limit` in bytes; `max_connections` counts accepted connections that
    no worker has taken; `handover_timeout` is how long umaster may be away before clients get 503;
    `max_unnamed_per_client` 0 is no limit; `proxy_protocol` are the networks from which every connection has a PROXY
    header, empty if none has.
    """

    generation: int
    name: str
    mode: str
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
    log: LogSettings
    grace: float

    def __post_init__(self) -> None:
        checks.validate(self, _LISTENER_FIELDS)

    def to_json(self) -> bytes:
        """Return the share as JSON in UTF-8."""
        return _dump(asdict(self), limits.MAX_SHARE_BYTES)

    @classmethod
    def from_json(cls, data: Buffer) -> ListenerShare:
        """Read what `to_json` made. Raises ShareError."""
        return checks.from_object(cls, _LISTENER_FIELDS, parse(data, limits.MAX_SHARE_BYTES), "share")


@dataclass(frozen=True, slots=True)
class ListenerPeer:
    """A listener as umaster knows it: who may connect to `route`, whether it sends host names or vhosts' names, and how
    many connections it may hold.
    """

    name: str
    uid: int
    mode: str
    max_connections: int

    def __post_init__(self) -> None:
        checks.validate(self, _LISTENER_PEER_FIELDS)


@dataclass(frozen=True, slots=True)
class VhostPeer:
    """A vhost as umaster knows it: who may register, and its quotas (connections; seconds; connections)."""

    name: str
    uid: int
    queue_limit: int
    queue_timeout: float
    handovers: int

    def __post_init__(self) -> None:
        checks.validate(self, _VHOST_PEER_FIELDS)


@dataclass(frozen=True, slots=True)
class UmasterShare:
    """umaster's share. The host map comes beside it, in a sealed memfd."""

    generation: int
    listeners: tuple[ListenerPeer, ...]
    vhosts: tuple[VhostPeer, ...]
    log: LogSettings
    grace: float

    def __post_init__(self) -> None:
        checks.validate(self, _UMASTER_FIELDS)
        checks.distinct([peer.name for peer in self.listeners], "listeners")
        checks.distinct([peer.name for peer in self.vhosts], "vhosts")

    def to_json(self) -> bytes:
        """Return the share as JSON in UTF-8, with one vhost on each line."""
        value = asdict(replace(self, vhosts=()))
        del value["vhosts"]
        lines = ",\n".join([_json(asdict(peer)) for peer in self.vhosts])
        text = f'{_json(value)[:-1]},"vhosts":[\n{lines}\n{SHARE_END.decode()}'
        return _bounded(text.encode(), limits.MAX_SHARE_BYTES)

    def filled(self, vhosts: tuple[VhostPeer, ...]) -> UmasterShare:
        """Return this share with `vhosts`, which have been checked one by one."""
        other = object.__new__(UmasterShare)
        for name in _UMASTER_FIELDS:
            object.__setattr__(other, name, vhosts if name == "vhosts" else getattr(self, name))
        return other

    @classmethod
    def from_json(cls, data: Buffer) -> UmasterShare:
        """Read what `to_json` made. Raises ShareError."""
        return checks.from_object(cls, _UMASTER_FIELDS, parse(data, limits.MAX_SHARE_BYTES), "share")


@dataclass(frozen=True, slots=True)
class VhostShare:
    """A tenant's share: itself and nobody else, except `foreign`: the names (exact, or "*.suffix") under its own
    wildcards that belong to others, without which it could not know what it does not own.
    """

    generation: int
    name: str
    uid: int
    gid: int
    hosts: tuple[str, ...]
    foreign: tuple[str, ...]
    default: bool
    root: str
    mounts: tuple[Mount, ...]
    python_path: tuple[str, ...]
    env: Mapping[str, str]
    writable: tuple[str, ...]
    allow: tuple[str, ...]
    pool: PoolSettings
    http: HttpSettings
    logs: TenantLogs
    log: LogSettings
    grace: float
    virtualenv: str | None = None
    preload: bool = True
    trusted_proxies: tuple[str, ...] = ()
    proxy_headers: str = limits.PROXY_HEADERS[0]
    error_pages: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.validate(self, _VHOST_FIELDS)

    @property
    def python(self) -> bool:
        """Whether the tenant's Python code is imported into its workers."""
        return any(KINDS[mount.kind].python for mount in self.mounts)

    def folders(self, *, runs: bool) -> tuple[str, ...]:
        """Return the mounts' own folders, beside `root`: of those that run what lies in them, or of the others."""
        own = {
            folder: None
            for mount in self.mounts
            if KINDS[mount.kind].runs is runs
            and (folder := getattr(mount.options, "root", self.root)) != self.root
        }
        return tuple(own)

    def to_json(self) -> bytes:
        """Return the share as JSON in UTF-8. Raises ShareError if `foreign` makes it too large."""
        value = asdict(self)
        for mount, written in zip(self.mounts, value["mounts"], strict=True):
            written["kind"] = mount.kind
        return _dump(value, limits.MAX_SHARE_BYTES)

    @classmethod
    def from_json(cls, data: Buffer) -> VhostShare:
        """Read what `to_json` made. Raises ShareError."""
        return checks.from_object(cls, _VHOST_FIELDS, parse(data, limits.MAX_SHARE_BYTES), "share")


_GENERATION = checks.integer(limits.GENERATION)
_GRACE = checks.number(limits.GRACE)
_LOG = checks.object_of(LogSettings, _LOG_FIELDS)
_LISTENER_FIELDS: dict[str, Check] = {
    "generation": _GENERATION,
    "name": checks.name,
    "mode": checks.choice(limits.MODES),
    "head_limit": checks.integer(limits.HEAD_LIMIT),
    "request_line_limit": checks.integer(limits.REQUEST_LINE_LIMIT),
    "max_headers": checks.integer(limits.MAX_HEADERS),
    "head_timeout": checks.number(limits.TIMEOUT),
    "linger_timeout": checks.number(limits.LINGER),
    "max_connections": checks.integer(limits.MAX_CONNECTIONS),
    "max_unnamed_per_client": checks.integer(limits.PER_CLIENT),
    "stress_factor": checks.number(limits.STRESS_FACTOR),
    "handover_timeout": checks.number(limits.TIMEOUT),
    "proxy_protocol": checks.tuple_of(checks.network, limits.MAX_PROXIES),
    "log": _LOG,
    "grace": _GRACE,
}
_LISTENER_PEER_FIELDS: dict[str, Check] = {
    "name": checks.name,
    "uid": checks.integer(limits.ANY_LISTENER_UID),
    "mode": checks.choice(limits.MODES),
    "max_connections": checks.integer(limits.MAX_CONNECTIONS),
}
_VHOST_PEER_FIELDS: dict[str, Check] = {
    "name": checks.name,
    "uid": checks.integer(limits.VHOST_UID),
    "queue_limit": checks.integer(limits.QUEUE),
    "queue_timeout": checks.number(limits.QUEUE_TIMEOUT),
    "handovers": checks.integer(limits.HANDOVERS),
}
vhost_peer = checks.object_of(VhostPeer, _VHOST_PEER_FIELDS)
_UMASTER_FIELDS: dict[str, Check] = {
    "generation": _GENERATION,
    "listeners": checks.tuple_of(
        checks.object_of(ListenerPeer, _LISTENER_PEER_FIELDS), limits.MAX_LISTENER_PEERS
    ),
    "vhosts": checks.tuple_of(vhost_peer, MAX_VHOSTS),
    "log": _LOG,
    "grace": _GRACE,
}
_VHOST_FIELDS: dict[str, Check] = {
    "generation": _GENERATION,
    "name": checks.name,
    "uid": checks.integer(limits.VHOST_UID),
    "gid": checks.integer(limits.VHOST_UID),
    "hosts": checks.hosts(limits.MAX_HOSTS_PER_VHOST),
    "foreign": checks.hosts(MAX_NAMES),
    "default": checks.flag,
    "root": checks.path,
    "mounts": mounts,
    "python_path": checks.tuple_of(checks.path, limits.MAX_PATHS),
    "env": checks.env,
    "writable": checks.tuple_of(checks.path, limits.MAX_PATHS),
    "virtualenv": checks.path_or_none,
    "preload": checks.flag,
    "trusted_proxies": checks.tuple_of(checks.network, limits.MAX_PROXIES),
    "proxy_headers": checks.choice(limits.PROXY_HEADERS),
    "allow": checks.tuple_of(checks.address, limits.MAX_ALLOWED),
    "pool": checks.object_of(PoolSettings, _POOL_FIELDS),
    "http": checks.object_of(HttpSettings, _HTTP_FIELDS),
    "logs": checks.object_of(TenantLogs, _TENANT_LOGS_FIELDS),
    "log": _LOG,
    "grace": _GRACE,
    "error_pages": checks.table_of(
        checks.matching(limits.ERROR_STATUS, "an error's status"), checks.below_root, limits.MAX_ERROR_PAGES
    ),
}


# --- the host map -------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class HostMap:
    """Who gets which host: `exact` name -> vhost, `wildcard` suffix (without "*.") -> vhost, `default` vhost or None.

    Looking up costs the same for ten names and for 100,000: one dictionary access, then at most one for each label.
    """

    generation: int
    exact: dict[str, str]
    wildcard: dict[str, str]
    default: str | None
    #: Labels of the longest suffix: longer tails need not be looked at.
    _depth: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _GENERATION(self.generation, "generation")
        if len(self.exact) + len(self.wildcard) > MAX_NAMES:
            raise ShareError(f"host map: must be at most {MAX_NAMES} names")
        checks.check_hosts(self.exact, "exact")
        checks.check_hosts(self.wildcard, "wildcard")
        if any(name.startswith("*") for name in self.exact) or any(name[0] in "*[" for name in self.wildcard):
            raise ShareError("host map: a wildcard among exact names, or a suffix that can't be one")
        owners = {*self.exact.values(), *self.wildcard.values()}
        if self.default is not None:
            owners.add(self.default)
        if len(owners) > MAX_VHOSTS:
            raise ShareError(f"host map: must be at most {MAX_VHOSTS} vhosts")
        for owner in owners:
            checks.name(owner, "host map")
        object.__setattr__(self, "_depth", 1 + max((name.count(".") for name in self.wildcard), default=-1))

    def find(self, host: str) -> str | None:
        """Return the vhost that owns `host`, which must be in the head scanner's normal form ("": none was sent)."""
        owner = self.exact.get(host)
        if owner is None:
            suffix = self._suffix(host)
            owner = self.default if suffix is None else self.wildcard[suffix]
        return owner

    def lookup(self, host: str) -> tuple[str | None, str]:
        """Return what `find` returns and why, in words for a person."""
        owner = self.exact.get(host)
        if owner is not None:
            return owner, "exact name"
        suffix = self._suffix(host)
        if suffix is not None:
            return self.wildcard[suffix], f"wildcard *.{suffix}"
        if self.default is not None:
            return self.default, "default vhost"
        return None, "nobody owns this name and there is no default vhost"

    def _suffix(self, host: str) -> str | None:
        """Return the longest wildcard suffix of `host`. The host itself is none: "*.a" does not own "a"."""
        if not self._depth:
            return None
        labels = host.rsplit(".", self._depth)
        for first in range(1, len(labels)):
            suffix = ".".join(labels[first:])
            if suffix in self.wildcard:
                return suffix
        return None

    def to_json(self) -> bytes:
        """Return the map in the form that the module's docstring shows, as JSON in UTF-8."""
        vhosts: dict[str, list[str]] = {}
        for name, owner in self.exact.items():
            vhosts.setdefault(owner, []).append(name)
        for suffix, owner in self.wildcard.items():
            vhosts.setdefault(owner, []).append(f"*.{suffix}")
        lines = ",\n".join([f"{_json(owner)}:{_json(names)}" for owner, names in vhosts.items()])
        head = _json({"generation": self.generation, "default": self.default})[:-1]
        text = f'{head},"vhosts":{{\n{lines}\n{MAP_END.decode()}'
        return _bounded(text.encode(), limits.MAX_HOST_MAP_BYTES)

    @property
    def depth(self) -> int:
        """How many labels the longest wildcard suffix has; 0 without any."""
        return self._depth

    def filled(self, exact: dict[str, str], wildcard: dict[str, str], depth: int) -> HostMap:
        """Return this map with these names, which have been checked piece by piece."""
        other = object.__new__(HostMap)
        for name, value in (("exact", exact), ("wildcard", wildcard), ("_depth", depth)):
            object.__setattr__(other, name, value)
        for name in ("generation", "default"):
            object.__setattr__(other, name, getattr(self, name))
        return other

    @classmethod
    def from_json(cls, data: Buffer) -> HostMap:
        """Read what `to_json` made. Raises ShareError."""
        value = parse(data, limits.MAX_HOST_MAP_BYTES)
        if not isinstance(value, dict) or value.keys() != {"generation", "default", "vhosts"}:
            raise ShareError("host map: wrong keys")
        vhosts = value["vhosts"]
        if not isinstance(vhosts, dict):
            raise ShareError("host map: vhosts must be an object")
        exact: dict[str, str] = {}
        wildcard: dict[str, str] = {}
        count = 0
        for owner, names in vhosts.items():
            if not isinstance(names, list):
                raise ShareError("host map: a vhost's names must be a list")
            count += len(names)
            for name in names:
                if not isinstance(name, str) or not name:
                    raise ShareError("host map: host names must be text")
                if name[0] == "*":
                    wildcard[name[2:]] = owner
                    if name[1:2] != "." or len(name) == 2:
                        raise ShareError("host map: a wildcard must be *.suffix")
                else:
                    exact[name] = owner
        if len(exact) + len(wildcard) != count:
            raise ShareError("host map: a name is there twice")
        default = value["default"]
        if default is not None:
            checks.name(default, "host map")
        return cls(value["generation"], exact, wildcard, default)
