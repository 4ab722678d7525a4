"""The shares: what master gives to each role, and nothing else of the configuration.

Rules
  1. A share is a frozen dataclass that validates itself on construction; `to_json` and `from_json` are each other's
     inverse. `from_json` believes nothing: size, syntax, keys (all of them, no others), types, limits. What is wrong
     raises ShareError, whose text is safe for logs (it never repeats what was received).
  2. One table per class (`_..._FIELDS`) drives construction and decoding.
  3. Lean: every role process imports this module; no TOML, no file access, no error prose.

The host map has a form of its own, grouped by vhost, because 100,000 names must be read in less than 0.1 s:
    {"generation": 1, "default": "blog", "vhosts": {"blog": ["blog.example", "*.blog.example"]}}

In step with: loader.py (makes them), schema.py (documents the same values), limits.py (the bounds).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias, TypeVar

from pyttpd.address import parse
from pyttpd.config import limits
from pyttpd.roles import MAX_NAMES, MAX_VHOSTS

Buffer: TypeAlias = bytes | bytearray | memoryview
Check: TypeAlias = Callable[[object, str], Any]
T = TypeVar("T")


class ShareError(ValueError):
    """A share is not what it must be. The text names the field and the rule, never the value."""


# --- checks: each takes a value and the field's name, returns the value in its final form or raises ShareError
def _integer(bounds: limits.Range) -> Check:
    def check(value: object, where: str) -> int:
        if type(value) is not int or value not in bounds:
            raise ShareError(f"{where}: must be a whole number from {bounds.low} to {bounds.high}")
        return value

    return check


def _number(bounds: limits.Range) -> Check:
    def check(value: object, where: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or value not in bounds:  # type: ignore[arg-type,operator]
            raise ShareError(f"{where}: must be a number from {bounds.low} to {bounds.high}")
        return float(value)  # type: ignore[arg-type]

    return check


def _flag(value: object, where: str) -> bool:
    if type(value) is not bool:
        raise ShareError(f"{where}: must be true or false")
    return value


def _choice(choices: tuple[str, ...]) -> Check:
    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ShareError(f"{where}: must be one of {', '.join(choices)}")
        return value

    return check


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or limits.NAME.fullmatch(value) is None:
        raise ShareError(f"{where}: must be a name: {limits.NAME_RULE}")
    return value


def _path(value: object, where: str) -> str:
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or not value.isprintable()
        or len(_utf8(value, where)) >= limits.MAX_PATH_LENGTH
    ):
        raise ShareError(f"{where}: must be an absolute path of printable characters")
    return value


def _path_or_none(value: object, where: str) -> str | None:
    return None if value is None else _path(value, where)


def _network(value: object, where: str) -> str:
    from ipaddress import ip_network  # only tenants behind a proxy need it

    try:
        if isinstance(value, str) and str(ip_network(value)) == value:
            return value
    except ValueError:
        pass
    raise ShareError(f"{where}: must be a network in normal form")


def _address(value: object, where: str) -> str:
    """An address stays text here: nobody needs it but who opens it, and text is the same in JSON."""
    try:
        if isinstance(value, str) and str(parse(value)) == value:
            return value
    except ValueError:
        pass
    raise ShareError(f"{where}: must be an IP address and a port in normal form")


def _application(value: object, where: str) -> str | None:
    if value is None:
        return None
    if (
        not isinstance(value, str)
        or len(value) > limits.MAX_APPLICATION_LENGTH
        or limits.APPLICATION.fullmatch(value) is None
    ):
        raise ShareError(f'{where}: must be null or "module:attribute"')
    return value


def _env(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or len(value) > limits.MAX_ENV_ENTRIES:
        raise ShareError(f"{where}: must be an object of at most {limits.MAX_ENV_ENTRIES} texts")
    size = 0
    for key, text in value.items():
        if not isinstance(key, str) or limits.ENV_NAME.fullmatch(key) is None:
            raise ShareError(f"{where}: a variable's name must be letters, digits and underscores")
        if not isinstance(text, str) or "\0" in text:
            raise ShareError(f"{where}: a variable's value must be text without NUL")
        size += len(key) + len(_utf8(text, where)) + 2
    if size > limits.MAX_ENV_BYTES:
        raise ShareError(f"{where}: must be at most {limits.MAX_ENV_BYTES} bytes")
    return dict(value)


def _table(check_key: Check, check_value: Check, most: int) -> Check:
    def check(value: object, where: str) -> dict[str, str]:
        if not isinstance(value, Mapping) or len(value) > most:
            raise ShareError(f"{where}: must be an object of at most {most} texts")
        return {check_key(key, where): check_value(text, where) for key, text in value.items()}

    return check


def _matching(pattern: re.Pattern[str], what: str) -> Check:
    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise ShareError(f"{where}: must be {what}")
        return value

    return check


def _or_empty(check_text: Check) -> Check:
    return lambda value, where: value if value == "" else check_text(value, where)


def _file_name(value: object, where: str) -> str:
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or "/" in value
        or value[:1] in ("", ".")
        or len(_utf8(value, where)) > limits.MAX_FILE_NAME
    ):
        raise ShareError(f"{where}: must be a file's name, not hidden, without folders")
    return value


def _below_root(value: object, where: str) -> str:
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not {"", ".", ".."}.isdisjoint(value.split("/"))
        or len(_utf8(value, where)) >= limits.MAX_PATH_LENGTH
    ):
        raise ShareError(f"{where}: must be a path below the root, without dots")
    return value


def _pattern(value: object, where: str) -> str:
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 0 < len(value) <= limits.MAX_PATTERN_LENGTH
        or len(limits.WILDCARD.findall(value)) > limits.MAX_WILDCARDS
    ):
        raise ShareError(f"{where}: must be a pattern of printable characters with a few stars")
    return value


def _utf8(value: str, where: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ShareError(f"{where}: must be text that UTF-8 can express") from None


def _tuple(check_item: Check, most: int) -> Check:
    def check(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise ShareError(f"{where}: must be a list of at most {most}")
        return tuple([check_item(item, where) for item in value])

    return check


def _hosts(most: int) -> Check:
    def check(value: object, where: str) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise ShareError(f"{where}: must be a list of at most {most} host names")
        _check_hosts(value, where)
        return tuple(value)

    return check


def _check_hosts(names: Any, where: str) -> None:
    """Check many host names in one pass of the regular expression engine: a loop costs three times as much."""
    try:
        lines = "\n".join(names)
    except TypeError:
        raise ShareError(f"{where}: host names must be text") from None
    count = len(names)
    if count and (lines.count("\n") != count - 1 or limits.HOST_LINES.fullmatch(lines + "\n") is None):
        raise ShareError(f"{where}: not every one is a host name in normal form")


def _object(cls: type[T], fields: Mapping[str, Check]) -> Check:
    def check(value: object, where: str) -> T:
        return value if isinstance(value, cls) else _from_object(cls, fields, value, where)

    return check


def _from_object(cls: type[T], fields: Mapping[str, Check], value: object, where: str) -> T:
    if not isinstance(value, dict):
        raise ShareError(f"{where}: must be an object")
    if value.keys() != fields.keys():
        missing = ", ".join(sorted(fields.keys() - value.keys())) or "none"
        raise ShareError(
            f"{where}: wrong keys ({missing} missing, {len(value.keys() - fields.keys())} unknown)"
        )
    return cls(**value)


def _validate(instance: object, fields: Mapping[str, Check]) -> None:
    for name, check in fields.items():
        object.__setattr__(instance, name, check(getattr(instance, name), name))


def _distinct(values: list[Any], where: str) -> None:
    if len(set(values)) != len(values):
        raise ShareError(f"{where}: one of them is there twice")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ShareError("share: a key is there twice")
    return result


def _no_constant(_text: str) -> float:
    raise ShareError("share: NaN and infinity are not numbers here")


def _parse(data: Buffer, limit: int) -> object:
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
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    if len(data) > limit:
        raise ShareError(f"share: must be at most {limit} bytes")
    return data


# --- settings that are the same in the configuration and in shares ------------------------------------------
@dataclass(frozen=True, slots=True)
class LogSettings:
    """What a role logs: the least level, and whether a line is text or JSON."""

    level: str = "info"
    format: str = "text"

    def __post_init__(self) -> None:
        _validate(self, _LOG_FIELDS)


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
        _validate(self, _POOL_FIELDS)
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
        _validate(self, _HTTP_FIELDS)


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
        _validate(self, _TENANT_LOGS_FIELDS)


@dataclass(frozen=True, slots=True)
class StaticSettings:
    """How a vhost of kind static serves its files; see the schema. `types` by suffix (".md"), `cache_control` by file
    name pattern, the first that fits; `cache` in paths.
    """

    index: tuple[str, ...] = ("index.html",)
    listing: bool = False
    precompressed: tuple[str, ...] = limits.CODINGS
    cache_control: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    charset: str = "utf-8"
    symlinks: bool = True
    cache: int = 1024

    def __post_init__(self) -> None:
        _validate(self, _STATIC_FIELDS)
        _distinct(list(self.precompressed), "precompressed")


_LOG_FIELDS: dict[str, Check] = {"level": _choice(limits.LOG_LEVELS), "format": _choice(limits.LOG_FORMATS)}
_POOL_FIELDS: dict[str, Check] = {
    "max_workers": _integer(limits.WORKERS),
    "max_requests": _integer(limits.COUNT),
    "max_threads": _integer(limits.THREADS),
    "thread_wait": _number(limits.THREAD_WAIT),
    "thread_idle": _number(limits.TIMEOUT),
    "slow_request": _number(limits.REQUEST_AGE),
    "request_timeout": _number(limits.REQUEST_AGE),
    "mode": _choice(limits.POOL_MODES),
    "start_workers": _integer(limits.SPARE),
    "min_spare": _integer(limits.SPARE),
    "max_spare": _integer(limits.SPARE),
    "idle_timeout": _number(limits.TIMEOUT),
    "max_age": _number(limits.AGE),
    "hard_age": _number(limits.AGE),
    "max_memory": _integer(limits.MEMORY),
    "max_cpu": _number(limits.CPU_SECONDS),
    "max_processes": _integer(limits.PROCESSES),
}
_HTTP_FIELDS: dict[str, Check] = {
    "head_limit": _integer(limits.HEAD_LIMIT),
    "request_line_limit": _integer(limits.REQUEST_LINE_LIMIT),
    "max_headers": _integer(limits.MAX_HEADERS),
    "body_limit": _integer(limits.BODY_LIMIT),
    "body_buffer": _integer(limits.BODY_BUFFER),
    "head_timeout": _number(limits.TIMEOUT),
    "idle_timeout": _number(limits.TIMEOUT),
    "write_timeout": _number(limits.TIMEOUT),
    "read_timeout": _number(limits.TIMEOUT),
    "min_body_rate": _integer(limits.RATE),
    "min_read_rate": _integer(limits.RATE),
    "rate_grace": _number(limits.RATE_GRACE),
    "stress_factor": _number(limits.STRESS_FACTOR),
    "max_connections_per_client": _integer(limits.PER_CLIENT),
    "max_keepalive_requests": _integer(limits.COUNT),
    "keepalive": _flag,
    "engine": _choice(limits.ENGINES),
}
_TENANT_LOGS_FIELDS: dict[str, Check] = {
    "access_log": _choice(limits.ACCESS_LOGS),
    "access_log_file": _path_or_none,
    "error_log_file": _path_or_none,
    "slow_log_file": _path_or_none,
    "log_file_limit": _integer(limits.LOG_FILE_LIMIT),
}
_STATIC_FIELDS: dict[str, Check] = {
    "index": _tuple(_file_name, limits.MAX_INDEX_NAMES),
    "listing": _flag,
    "precompressed": _tuple(_choice(limits.CODINGS), len(limits.CODINGS)),
    "cache_control": _table(
        _pattern, _or_empty(_matching(limits.HEADER_VALUE, "a header's value")), limits.MAX_CACHE_PATTERNS
    ),
    "types": _table(
        _matching(limits.SUFFIX, "a file name's suffix"),
        _matching(limits.MEDIA_TYPE, "a media type"),
        limits.MAX_TYPES,
    ),
    "charset": _or_empty(_matching(limits.CHARSET, "a character set's name")),
    "symlinks": _flag,
    "cache": _integer(limits.STATIC_CACHE),
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
        _validate(self, _LISTENER_FIELDS)

    def to_json(self) -> bytes:
        """Return the share as JSON in UTF-8."""
        return _dump(asdict(self), limits.MAX_SHARE_BYTES)

    @classmethod
    def from_json(cls, data: Buffer) -> ListenerShare:
        """Read what `to_json` made. Raises ShareError."""
        return _from_object(cls, _LISTENER_FIELDS, _parse(data, limits.MAX_SHARE_BYTES), "share")


@dataclass(frozen=True, slots=True)
class ListenerPeer:
    """A listener as umaster knows it: who may connect to `route`, and whether it sends host names or vhosts' names."""

    name: str
    uid: int
    mode: str

    def __post_init__(self) -> None:
        _validate(self, _LISTENER_PEER_FIELDS)


@dataclass(frozen=True, slots=True)
class VhostPeer:
    """A vhost as umaster knows it: who may register, and its quotas (connections; seconds; connections)."""

    name: str
    uid: int
    queue_limit: int
    queue_timeout: float
    handovers: int

    def __post_init__(self) -> None:
        _validate(self, _VHOST_PEER_FIELDS)


@dataclass(frozen=True, slots=True)
class UmasterShare:
    """umaster's share. The host map comes beside it, in a sealed memfd."""

    generation: int
    listeners: tuple[ListenerPeer, ...]
    vhosts: tuple[VhostPeer, ...]
    log: LogSettings
    grace: float

    def __post_init__(self) -> None:
        _validate(self, _UMASTER_FIELDS)
        _distinct([peer.name for peer in self.listeners], "listeners")
        _distinct([peer.name for peer in self.vhosts], "vhosts")

    def to_json(self) -> bytes:
        """Return the share as JSON in UTF-8."""
        return _dump(asdict(self), limits.MAX_SHARE_BYTES)

    @classmethod
    def from_json(cls, data: Buffer) -> UmasterShare:
        """Read what `to_json` made. Raises ShareError."""
        return _from_object(cls, _UMASTER_FIELDS, _parse(data, limits.MAX_SHARE_BYTES), "share")


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
    kind: str
    root: str
    application: str | None
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
    static: StaticSettings = field(default_factory=StaticSettings)

    def __post_init__(self) -> None:
        _validate(self, _VHOST_FIELDS)
        if (self.application is None) != (self.kind == "static"):
            raise ShareError("application: every kind but static must have one")

    def to_json(self) -> bytes:
        """Return the share as JSON in UTF-8. Raises ShareError if `foreign` makes it too large."""
        return _dump(asdict(self), limits.MAX_SHARE_BYTES)

    @classmethod
    def from_json(cls, data: Buffer) -> VhostShare:
        """Read what `to_json` made. Raises ShareError."""
        return _from_object(cls, _VHOST_FIELDS, _parse(data, limits.MAX_SHARE_BYTES), "share")


_GENERATION = _integer(limits.GENERATION)
_GRACE = _number(limits.GRACE)
_LOG = _object(LogSettings, _LOG_FIELDS)
_LISTENER_FIELDS: dict[str, Check] = {
    "generation": _GENERATION,
    "name": _name,
    "mode": _choice(limits.MODES),
    "head_limit": _integer(limits.HEAD_LIMIT),
    "request_line_limit": _integer(limits.REQUEST_LINE_LIMIT),
    "max_headers": _integer(limits.MAX_HEADERS),
    "head_timeout": _number(limits.TIMEOUT),
    "linger_timeout": _number(limits.LINGER),
    "max_connections": _integer(limits.MAX_CONNECTIONS),
    "max_unnamed_per_client": _integer(limits.PER_CLIENT),
    "stress_factor": _number(limits.STRESS_FACTOR),
    "handover_timeout": _number(limits.TIMEOUT),
    "proxy_protocol": _tuple(_network, limits.MAX_PROXIES),
    "log": _LOG,
    "grace": _GRACE,
}
_LISTENER_PEER_FIELDS: dict[str, Check] = {
    "name": _name,
    "uid": _integer(limits.ANY_LISTENER_UID),
    "mode": _choice(limits.MODES),
}
_VHOST_PEER_FIELDS: dict[str, Check] = {
    "name": _name,
    "uid": _integer(limits.VHOST_UID),
    "queue_limit": _integer(limits.QUEUE),
    "queue_timeout": _number(limits.QUEUE_TIMEOUT),
    "handovers": _integer(limits.HANDOVERS),
}
_UMASTER_FIELDS: dict[str, Check] = {
    "generation": _GENERATION,
    "listeners": _tuple(_object(ListenerPeer, _LISTENER_PEER_FIELDS), limits.MAX_LISTENER_PEERS),
    "vhosts": _tuple(_object(VhostPeer, _VHOST_PEER_FIELDS), MAX_VHOSTS),
    "log": _LOG,
    "grace": _GRACE,
}
_VHOST_FIELDS: dict[str, Check] = {
    "generation": _GENERATION,
    "name": _name,
    "uid": _integer(limits.VHOST_UID),
    "gid": _integer(limits.VHOST_UID),
    "hosts": _hosts(limits.MAX_HOSTS_PER_VHOST),
    "foreign": _hosts(MAX_NAMES),
    "default": _flag,
    "kind": _choice(limits.KINDS),
    "root": _path,
    "application": _application,
    "python_path": _tuple(_path, limits.MAX_PATHS),
    "env": _env,
    "writable": _tuple(_path, limits.MAX_PATHS),
    "virtualenv": _path_or_none,
    "preload": _flag,
    "trusted_proxies": _tuple(_network, limits.MAX_PROXIES),
    "proxy_headers": _choice(limits.PROXY_HEADERS),
    "allow": _tuple(_address, limits.MAX_ALLOWED),
    "pool": _object(PoolSettings, _POOL_FIELDS),
    "http": _object(HttpSettings, _HTTP_FIELDS),
    "logs": _object(TenantLogs, _TENANT_LOGS_FIELDS),
    "log": _LOG,
    "grace": _GRACE,
    "error_pages": _table(
        _matching(limits.ERROR_STATUS, "an error's status"), _below_root, limits.MAX_ERROR_PAGES
    ),
    "static": _object(StaticSettings, _STATIC_FIELDS),
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
        _check_hosts(self.exact, "exact")
        _check_hosts(self.wildcard, "wildcard")
        if any(name.startswith("*") for name in self.exact) or any(name[0] in "*[" for name in self.wildcard):
            raise ShareError("host map: a wildcard among exact names, or a suffix that can't be one")
        owners = {*self.exact.values(), *self.wildcard.values()}
        if self.default is not None:
            owners.add(self.default)
        if len(owners) > MAX_VHOSTS:
            raise ShareError(f"host map: must be at most {MAX_VHOSTS} vhosts")
        for owner in owners:
            _name(owner, "host map")
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
        value = {"generation": self.generation, "default": self.default, "vhosts": vhosts}
        return _dump(value, limits.MAX_HOST_MAP_BYTES)

    @classmethod
    def from_json(cls, data: Buffer) -> HostMap:
        """Read what `to_json` made. Raises ShareError."""
        value = _parse(data, limits.MAX_HOST_MAP_BYTES)
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
            _name(default, "host map")
        return cls(value["generation"], exact, wildcard, default)
