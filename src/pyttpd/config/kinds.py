"""What a vhost serves, and where: its mounts, and the options of each kind.

A kind is declared here once: a frozen dataclass of its options, with a check for each, in `KINDS`. schema.py says the
same to people (`KIND_TABLES`), pyttpd_vhost.site makes the kind of it (`Site.load`).

Rules
  1. Options validate themselves on construction, as shares do: a worker believes nothing of what master sent.
  2. A field has the name of its key. `root`, where a kind has it, is the mount's folder; in the configuration it may be
     left out, and is then the vhost's.
  3. Two mounts of one vhost never have the same path. One whose path is "@name" has no place among the paths: it is
     asked by a static mount whose `fallback` it is, and by nobody else.

Lean: every role process imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pyttpd.config import asked, checks, limits, processes
from pyttpd.config.asked import AskedOptions, ScriptOptions
from pyttpd.config.checks import Check, ShareError
from pyttpd.config.processes import ProcessOptions


class KindOptions:
    """What all kinds' options have in common."""

    __slots__ = ()

    #: The kind's name.
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        checks.validate(self, KINDS[self.kind].fields)
        for _, wrong in self.contradictions():
            raise ShareError(f"{self.kind}: {wrong}")

    def contradictions(self) -> list[tuple[str, str]]:
        """See `ProcessOptions.contradictions`."""
        return []


@dataclass(frozen=True, slots=True)
class StaticOptions(KindOptions):
    """How files below `root` are served; see the schema. `types` by suffix (".md"), `cache_control` by file name
    pattern, the first that fits; `cache` in paths; `fallback`, who is asked for what isn't there: "@name", a mount;
    else a file below `root`; "": nobody.
    """

    kind: ClassVar[str] = "static"

    root: str
    index: tuple[str, ...] = ("index.html",)
    listing: bool = False
    precompressed: tuple[str, ...] = limits.CODINGS
    cache_control: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    charset: str = "utf-8"
    symlinks: bool = True
    cache: int = 1024
    fallback: str = ""

    def __post_init__(self) -> None:
        KindOptions.__post_init__(self)
        checks.distinct(list(self.precompressed), "precompressed")


@dataclass(frozen=True, slots=True)
class WsgiOptions(KindOptions):
    """A WSGI application: "module:attribute"."""

    kind: ClassVar[str] = "wsgi"

    application: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FastcgiOptions(ScriptOptions, KindOptions):
    """A FastCGI application."""

    kind: ClassVar[str] = "fastcgi"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScgiOptions(AskedOptions, KindOptions):
    """An SCGI application."""

    kind: ClassVar[str] = "scgi"


@dataclass(frozen=True, slots=True)
class AsgiOptions(KindOptions):
    """An ASGI application: "module:attribute"; see the schema. Times in s, sizes in bytes, 0 is "none"."""

    kind: ClassVar[str] = "asgi"

    application: str
    lifespan: str = "auto"
    event_loop: str = "asyncio"
    max_concurrency: int = 1000
    websockets: bool = True
    websocket_max_size: int = 1048576
    websocket_ping: float = 20.0
    websocket_idle: float = 0.0
    websocket_compression: bool = True


@dataclass(frozen=True, slots=True)
class CgiOptions(KindOptions):
    """Programs below `root`, or one `script` for all paths; see the schema. `handlers`: by suffix (".pl") the program
    that runs such files. Times in s, sizes in bytes; 0 is no limit.
    """

    kind: ClassVar[str] = "cgi"

    root: str
    script: str | None = None
    index: tuple[str, ...] = ()
    handlers: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    suexec: bool = True
    timeout: float = 60.0
    max_time: float = 3600.0
    max_cpu: int = 60
    max_memory: int = 2 << 30
    max_processes: int = 0
    max_output: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffOptions(ProcessOptions, KindOptions):
    """A program that takes over connections: ours (`command`), or somebody else's, who listens on `socket`.
    `accept_timeout` in s.
    """

    kind: ClassVar[str] = "handoff"

    socket: str | None = None
    accept_timeout: float = 5.0
    max_channels: int = 16

    def contradictions(self) -> list[tuple[str, str]]:
        """See `ProcessOptions.contradictions`."""
        found = ProcessOptions.contradictions(self)
        if bool(self.command) == bool(self.socket):
            found.append(("command", "must be there, or socket in its place, and not both"))
        return found


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind. `python`: its application is imported into the workers, so that what a vhost says of Python counts;
    `runs`: it runs code of the tenant's at all; `programs`: one for each request, and every file below its `root`
    may be one.
    """

    options: type[KindOptions]
    fields: Mapping[str, Check]
    python: bool = False
    runs: bool = True
    programs: bool = False

    @property
    def elsewhere(self) -> bool:
        """Whether its application is another process than a worker, and so can be gone, full or slow."""
        return self.runs and not self.python


def _fallback(value: object, where: str) -> str:
    if isinstance(value, str) and value[:1] == "@":
        return checks.matching(limits.NAMED_MOUNT, "a mount's name or a file")(value, where)  # type: ignore[no-any-return]
    return checks.or_empty(checks.below_root)(value, where)  # type: ignore[no-any-return]


#: All kinds.
KINDS: Mapping[str, Entry] = {
    "static": Entry(
        StaticOptions,
        {
            "root": checks.path,
            "index": checks.tuple_of(checks.file_name, limits.MAX_INDEX_NAMES),
            "listing": checks.flag,
            "precompressed": checks.tuple_of(checks.choice(limits.CODINGS), len(limits.CODINGS)),
            "cache_control": checks.table_of(
                checks.pattern,
                checks.or_empty(checks.matching(limits.HEADER_VALUE, "a header's value")),
                limits.MAX_CACHE_PATTERNS,
            ),
            "types": checks.table_of(
                checks.matching(limits.SUFFIX, "a file name's suffix"),
                checks.matching(limits.MEDIA_TYPE, "a media type"),
                limits.MAX_TYPES,
            ),
            "charset": checks.or_empty(checks.matching(limits.CHARSET, "a character set's name")),
            "symlinks": checks.flag,
            "cache": checks.integer(limits.STATIC_CACHE),
            "fallback": _fallback,
        },
        runs=False,
    ),
    "wsgi": Entry(WsgiOptions, {"application": checks.application}, python=True),
    "asgi": Entry(
        AsgiOptions,
        {
            "application": checks.application,
            "lifespan": checks.choice(limits.LIFESPANS),
            "event_loop": checks.choice(limits.EVENT_LOOPS),
            "max_concurrency": checks.integer(limits.MAX_CONCURRENCY),
            "websockets": checks.flag,
            "websocket_max_size": checks.integer(limits.WEBSOCKET_MAX_SIZE),
            "websocket_ping": checks.number(limits.WEBSOCKET_TIME),
            "websocket_idle": checks.number(limits.WEBSOCKET_TIME),
            "websocket_compression": checks.flag,
        },
        python=True,
    ),
    "cgi": Entry(
        CgiOptions,
        {
            "root": checks.path,
            "script": checks.path_or_none,
            "index": checks.tuple_of(checks.file_name, limits.MAX_INDEX_NAMES),
            "handlers": checks.table_of(
                checks.matching(limits.SUFFIX, "a file name's suffix"), checks.path, limits.MAX_HANDLERS
            ),
            "env": checks.env,
            "suexec": checks.flag,
            "timeout": checks.number(limits.TIMEOUT),
            "max_time": checks.number(limits.PROGRAM_TIME),
            "max_cpu": checks.integer(limits.PROGRAM_CPU),
            "max_memory": checks.integer(limits.MEMORY),
            "max_processes": checks.integer(limits.PROCESSES),
            "max_output": checks.integer(limits.PROGRAM_OUTPUT),
        },
        programs=True,
    ),
    "handoff": Entry(
        HandoffOptions,
        {
            **processes.FIELDS,
            "socket": checks.path_or_none,
            "accept_timeout": checks.number(limits.TIMEOUT),
            "max_channels": checks.integer(limits.CHANNELS),
        },
    ),
    "fastcgi": Entry(FastcgiOptions, asked.SCRIPT_FIELDS),
    "scgi": Entry(ScgiOptions, asked.FIELDS),
}


@dataclass(frozen=True, slots=True)
class Mount:
    """A kind below a path of a vhost: "/" is everything, "/app" is /app and what is below it, "@name" nothing."""

    path: str
    options: KindOptions

    def __post_init__(self) -> None:
        _mount_path(self.path, "path")
        if type(self.options) is not KINDS[self.options.kind].options:
            raise ShareError("options: must be those of a kind")

    @property
    def kind(self) -> str:
        """The kind's name."""
        return self.options.kind

    @property
    def named(self) -> bool:
        """Whether it is asked by another mount only."""
        return self.path[0] == "@"

    @property
    def prefix(self) -> str:
        """What the paths of requests that belong here start with: SCRIPT_NAME."""
        return "" if self.path == "/" else self.path


def path_problem(path: str) -> str | None:
    """Say why `path` can't be a mount's, in words for the operator; None if it can."""
    if path.startswith("@"):
        named = limits.NAMED_MOUNT.fullmatch(path) is not None
        return None if named else f'behind "@" there must be {limits.NAME_RULE}'
    if not path.startswith("/"):
        return 'must start with "/"'
    if len(path.encode()) > limits.MAX_MOUNT_PATH:
        return f"must be at most {limits.MAX_MOUNT_PATH} bytes"
    if "%" in path:
        return 'must be written as it is, without "%"'
    if not path.isprintable() or not limits.NOT_IN_MOUNT_PATH.isdisjoint(path):
        return 'must not have blanks, "?", "#" or a backslash in it'
    segments = path[1:].split("/")
    if path != "/" and not segments[-1]:
        return "must not end in a slash"
    if path != "/" and not {"", ".", ".."}.isdisjoint(segments):
        return 'must not have "//", "/./" or "/../" in it'
    return None


def _mount_path(value: object, where: str) -> str:
    if not isinstance(value, str) or path_problem(checks.text(value, where)) is not None:
        raise ShareError(f"{where}: must be a path in normal form, decoded")
    return value


def _mount(value: object, where: str) -> Mount:
    if isinstance(value, Mount):
        return value
    if not isinstance(value, dict) or value.keys() != {"path", "kind", "options"}:
        raise ShareError(f"{where}: must be objects of path, kind and options")
    kind = value["kind"]
    entry = KINDS.get(kind) if isinstance(kind, str) else None
    if entry is None:
        raise ShareError(f"{where}: must be of a known kind")
    options: Any = checks.from_object(entry.options, entry.fields, value["options"], where)
    return Mount(value["path"], options)


def mounts(value: object, where: str) -> tuple[Mount, ...]:
    """Check all mounts of a vhost (see checks.py)."""
    found: tuple[Mount, ...] = checks.tuple_of(_mount, limits.MAX_MOUNTS)(value, where)
    if not found:
        raise ShareError(f"{where}: must be one at least")
    checks.distinct([mount.path for mount in found], where)
    named = {mount.path for mount in found if mount.named and mount.kind != StaticOptions.kind}
    asked = {fallback for mount in found if (fallback := getattr(mount.options, "fallback", ""))[:1] == "@"}
    if named != asked or len(named) != len([mount for mount in found if mount.named]):
        raise ShareError(f"{where}: those with a name must be a fallback, and a fallback must be there")
    return found
