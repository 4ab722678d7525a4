"""From files to a valid Config, or to everything that is wrong with them.

Theory of operation
  1. Read: the main file and those that its `include` matches, bounded in number and size, each parsed by tomllib. A
     file that can't be read or parsed is an error; the others are still looked at.
  2. Walk: each table against schema.SCHEMA, which yields a Record of converted values for each.
  3. Compare: what one table alone can't know (two vhosts with one host, one uid, one default; ports that clash).
  4. Build: only if nothing was wrong; so the dataclasses' own validation can't fail but by a fault of ours.

Nothing here looks whether paths exist: files may lie in another container. `filesystem.check_filesystem` does.
In step with: schema.py (keys), model.py and shares.py (fields have the keys' names).
"""

from __future__ import annotations

import difflib
import errno
import glob
import hashlib
import os
import re
import stat
import sys
import tomllib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pyttpd.address import Address
from pyttpd.config import limits
from pyttpd.config.errors import ConfigError, ConfigErrors, printable
from pyttpd.config.keys import REQUIRED, Key, Table
from pyttpd.config.kind_keys import KIND_TABLES, SHORTHAND
from pyttpd.config.kinds import KINDS, KindOptions, Mount
from pyttpd.config.lines import LineIndex
from pyttpd.config.model import Config, Listener, MetricsSettings, QueueSettings, Vhost
from pyttpd.config.processes import ProcessOptions
from pyttpd.config.schema import MOUNT, SCHEMA, mount_table
from pyttpd.config.shares import HttpSettings, LogSettings, PoolSettings
from pyttpd.config.values import INVALID, convert, describe
from pyttpd.roles import (
    MAX_LISTENERS,
    MAX_NAMES,
    MAX_VHOSTS,
    METRICS_LISTENER,
    METRICS_LISTENER_OFFSET,
    METRICS_LISTENER_UID,
    MIN_VHOST_UID,
    ROLES,
    TENANT_METRICS_OFFSET,
    UNPRIVILEGED_INIT_UID,
    Role,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    #: Takes the path of a table or key, ("vhost", "blog", "root"); returns its file, as shown, and line.
    Locate = Callable[[tuple[str, ...]], tuple[str, int | None]]

#: The keys of a vhost that name files which its supervisor writes.
LOG_FILES = ("access_log_file", "error_log_file", "slow_log_file")

#: What `load` reads if it is given a folder.
MAIN_FILE = "pyttpd.toml"


@dataclass(frozen=True, slots=True)
class Source:
    """One file: how errors name it, the folder that its relative paths start at, its content, its lines."""

    shown: str
    folder: str
    data: dict[str, Any]
    lines: LineIndex


@dataclass(slots=True)
class Record:
    """One table as it was written: where, and its converted values (without those that were wrong)."""

    table: Table
    path: tuple[str, ...]
    source: Source
    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The tables of a list, each with its position as the last part of its path.
    mounts: list[Record] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The instance's name: "blog" of [vhost.blog]."""
        return self.path[-1]

    def place(self, key: str = "", literal: str | None = None) -> str:
        """Return "file:line" for a message about another table."""
        line = self.source.lines.find((*self.path, key) if key else self.path, literal)
        return self.source.shown if line is None else f"{self.source.shown}:{line}"


class _Errors:
    """Gathers what is wrong, to be told in the order of files and lines."""

    def __init__(self) -> None:
        self._found: list[ConfigError] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def at_file(self, shown: str, message: str, line: int | None = None) -> None:
        self._found.append(ConfigError(shown, line, "", message))

    def at(
        self, source: Source, path: tuple[str, ...], key: str, message: str, literal: str | None = None
    ) -> None:
        full = (*path, key) if key else path
        table = _table(path) if path else ""
        where = " ".join([part for part in (table, printable(key)) if part])
        if literal is not None and (*full, literal) in source.lines:  # a key of a table that is a value
            full, literal = (*full, literal), None
        self._found.append(ConfigError(source.shown, source.lines.find(full, literal), where, message))

    def on(self, record: Record, key: str, message: str, literal: str | None = None) -> None:
        self.at(record.source, record.path, key, message, literal)

    def raise_if_any(self, order: Iterable[str]) -> None:
        if self._found:
            rank = {shown: number for number, shown in enumerate(order)}
            raise ConfigErrors(
                sorted(self._found, key=lambda e: (rank.get(e.file, len(rank)), e.line or sys.maxsize))
            )


def load(path: str | os.PathLike[str], *, generation: int = 1) -> Config:
    """Read and validate the configuration in `path`: a file, or a folder with a "pyttpd.toml" in it.

    Raises ConfigErrors with everything that is wrong. `generation` is what the shares will be stamped with.
    """
    return load_located(path, generation=generation)[0]


def load_located(path: str | os.PathLike[str], *, generation: int = 1) -> tuple[Config, Locate]:
    """Do what `load` does, and return as well a function that says where a table or key was written."""
    errors = _Errors()
    reader = _Reader(errors)
    reader.read_main(os.fspath(path))
    if not reader.sources:
        errors.raise_if_any(reader.order)
    tree = _walk(reader.sources, errors)
    _compare(tree, errors)
    errors.raise_if_any(reader.order)

    config = _build(tree, reader, generation)
    _check_shares(config, tree, errors)
    errors.raise_if_any(reader.order)

    def locate(where: tuple[str, ...]) -> tuple[str, int | None]:
        record = tree.named.get(where[0], {}).get(where[1]) if len(where) > 1 else None
        source = (record or tree.single.get(where[0]) or tree.single[""]).source
        return source.shown, source.lines.find(where)

    return config, locate


# --- 1. read ------------------------------------------------------------------------------------------------
class _Reader:
    """Reads and parses the main file and the included ones, within the bounds of limits.py."""

    def __init__(self, errors: _Errors) -> None:
        self.sources: list[Source] = []
        self.order: list[str] = []
        self.main = ""
        self._errors = errors
        self._digest = hashlib.sha256()
        self._left = limits.MAX_CONFIG_BYTES

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def read_main(self, path: str) -> None:
        self.main = os.path.abspath(os.path.join(path, MAIN_FILE) if os.path.isdir(path) else path)
        shown = os.path.join(path, MAIN_FILE) if os.path.isdir(path) else path
        source = self._read(self.main, printable(shown, limits.MAX_PATH_LENGTH))
        if source is None:
            return
        include = SCHEMA.key("include")
        if include is None or "include" not in source.data:
            return

        def report(message: str, literal: str | None) -> None:
            self._errors.at(source, (), "include", message, literal)

        patterns = convert(include, source.data["include"], source.folder, report)
        if patterns is INVALID or not isinstance(patterns, tuple):
            return
        self._read_included(source, patterns, os.path.dirname(source.shown))

    def _read_included(self, main: Source, patterns: tuple[str, ...], shown_folder: str) -> None:
        files: list[str] = []
        for pattern in patterns:
            # Hidden files don't match "*": editors' copies of a file being written stay out.
            is_folder = not glob.has_magic(pattern) and os.path.isdir(os.path.join(main.folder, pattern))
            path = os.path.join(glob.escape(main.folder), pattern, *(["*.toml"] if is_folder else []))
            matched = sorted(glob.glob(path))
            if not matched and not glob.has_magic(path):
                self._errors.at(
                    main, (), "include", f'the file "{printable(pattern)}" does not exist', pattern
                )
            files += [file for file in matched if file not in files and os.path.abspath(file) != self.main]
        if len(files) > limits.MAX_CONFIG_FILES - 1:
            message = f"matches {len(files)} files; at most {limits.MAX_CONFIG_FILES - 1} can be included"
            self._errors.at(main, (), "include", message)
            return
        for file in files:
            shown = os.path.join(shown_folder, os.path.relpath(file, main.folder))
            included = self._read(os.path.abspath(file), printable(shown, limits.MAX_PATH_LENGTH))
            if included is not None and "include" in included.data:
                self._errors.at(included, (), "include", "must be in the main file only")

    def _read(self, file: str, shown: str) -> Source | None:
        self.order.append(shown)
        data = self._bytes(file, shown)
        if data is None:
            return None
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            self._errors.at_file(shown, "must be UTF-8 text; this line is not", line)
            return None
        try:
            parsed = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            message, line_number = _syntax_error(error, text)
            self._errors.at_file(shown, message, line_number)
        except RecursionError:
            self._errors.at_file(shown, "must be TOML, with lists and tables not so deep in each other")
        except ValueError:
            self._errors.at_file(shown, "must be TOML, with numbers and dates that exist")
        else:
            source = Source(shown, os.path.dirname(file), parsed, LineIndex(text))
            self.sources.append(source)
            return source
        return None

    def _bytes(self, file: str, shown: str) -> bytes | None:
        try:
            # Non-blocking: a FIFO in the folder must not hang us.
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    self._errors.at_file(shown, "must be a regular file")
                    return None
                with open(descriptor, "rb", closefd=False) as stream:
                    data = stream.read(self._left + 1)
            finally:
                os.close(descriptor)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else "unknown error"
            hint = " (the configuration is a .toml file)" if error.errno == errno.ENOENT else ""
            self._errors.at_file(shown, f"can't be read: {reason}{hint}")
            return None
        except ValueError:  # a NUL in the path
            self._errors.at_file(shown, "can't be read: this is no file name")
            return None
        if len(data) > self._left:
            self._errors.at_file(shown, f"all files together must be at most {limits.MAX_CONFIG_BYTES} bytes")
            return None
        self._left -= len(data)
        # Length and name are in the hash so that text can't move from one file to another unnoticed.
        name = os.path.relpath(file, os.path.dirname(self.main))
        self._digest.update(f"{len(name)}:{name}:{len(data)}:".encode("utf-8", "surrogateescape"))
        self._digest.update(data)
        return data


_AT_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)\Z")


def _syntax_error(error: tomllib.TOMLDecodeError, text: str) -> tuple[str, int | None]:
    """Split tomllib's message into its sentence and the line."""
    message = str(error)
    match = _AT_LINE.search(message)
    line = None
    if match is not None:
        line = int(match[1]) if match[1] else max(1, len(text.splitlines()))
        message = message[: match.start()]
    for start, hint in _SYNTAX_HINTS.items():
        if message.startswith(start):
            return f"must be TOML: {hint}", line
    return f"must be TOML: {printable(message)}", line


#: What tomllib says, by its beginning, in words for somebody who has never written a parser.
_SYNTAX_HINTS = {
    "Invalid value": 'this is no value; texts stand in quotes, such as root = "/srv/blog"',
    "Illegal character '\\n'": "a text isn't closed: a quote is missing at the end of this line",
    "Illegal character": "a control character in a text; write it as \\uXXXX",
    "Unclosed array": 'a list isn\'t closed: "]" is missing, here or on a line before',
    "Unclosed inline table": 'a table isn\'t closed: "}" is missing, here or on a line before',
    "Unterminated string": "a text isn't closed: a quote is missing",
    'Expected "\'"': "a text isn't closed: a quote is missing",
    "Unescaped '\\'": "a backslash in a text is written twice, or the text in single quotes",
    "Cannot overwrite a value": "this key, or table, is there already",
    "Duplicate inline table key": "a key is there twice in this table",
    "Expected '='": 'behind a key there must be "=" and its value',
    "Expected newline": "there is something behind the value; each key stands on a line of its own, texts in quotes",
    "Expected ']' at the end of a table": 'the name of a table isn\'t closed: "]" is missing',
    "Invalid statement": "a line must be a key with its value, such as grace = 10, or a table's name, such as [log]",
}


# --- 2. walk ------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _Tree:
    """All records: of the tables that exist once, by path; of listeners and vhosts, in order."""

    single: dict[str, Record] = field(default_factory=dict)
    named: dict[str, dict[str, Record]] = field(default_factory=dict)


def _walk(sources: list[Source], errors: _Errors) -> _Tree:
    tree = _Tree(
        {"": Record(SCHEMA, (), sources[0])}, {table.name: {} for table in SCHEMA.tables if table.named}
    )
    for source in sources:
        _read_top(source, tree, errors)
    for table in (SCHEMA, *[table for table in SCHEMA.tables if not table.named]):
        record = tree.single.setdefault(table.name, Record(table, (table.name,), sources[0]))
        _fill_defaults(record.table, record.values, {})
    return tree


def _read_top(source: Source, tree: _Tree, errors: _Errors) -> None:
    top = tree.single[""]
    for name, value in source.data.items():
        key, table = SCHEMA.key(name), SCHEMA.table(name)
        if key is not None:
            if name == "include":
                continue  # read before
            if source is not top.source:
                errors.at(source, (), name, f"must be in the main file ({top.source.shown})")
            else:
                _read_key(key, value, source, (), top.values, errors)
        elif table is None:
            errors.at(source, (), name, _unknown(name, value, SCHEMA, ()))
        elif table.named:
            _read_named(table, value, source, tree.named[name], errors)
        elif name in tree.single:
            errors.at(source, (name,), "", f"is there already ({tree.single[name].place()})")
        else:
            record = tree.single[name] = Record(table, (name,), source)
            _read_table(record, value, errors)


def _read_named(
    table: Table, value: object, source: Source, records: dict[str, Record], errors: _Errors
) -> None:
    if not isinstance(value, dict):
        errors.at(source, (table.name,), "", f"must be written as [{table.name}.NAME], once for each")
        return
    for name, inner in value.items():
        path = (table.name, name)
        if not isinstance(inner, dict):
            message = f"is in no table: write it below [{table.name}.NAME], with a name of your choice"
            known = name in [key.name for key in table.keys]
            errors.at(
                source, (table.name,), name, message if known else f"must be a table, not {describe(inner)}"
            )
        elif (wrong := _wrong_name(table, name)) is not None:
            errors.at(source, path, "", wrong)
            _read_table(Record(table, path, source), inner, errors)  # for what else is wrong in it
        elif name in records:
            errors.at(source, path, "", f"is there already ({records[name].place()})")
        else:
            record = records[name] = Record(table, path, source)
            _read_table(record, inner, errors)


def _wrong_name(table: Table, name: str) -> str | None:
    """Return why a table `table` can't be called `name`."""
    if limits.NAME.fullmatch(name) is None:
        return f"the name must be {limits.NAME_RULE}"
    if table.name == "listen" and name == METRICS_LISTENER:
        return "this name is taken by the tenants' metrics listener: choose another"
    return None


def _read_table(record: Record, value: object, errors: _Errors) -> None:
    """Read one table and those below it into `record`; missing keys get their defaults."""
    if not isinstance(value, dict):
        errors.on(record, "", f"must be a table, not {describe(value)}")
        return
    table = record.table
    seen = {"": value}
    _read_keys(table, value, record, record.path, record.values, errors)
    for below in table.tables:
        if below.listed:
            _read_mounts(record, value.get(below.name, []), errors)
            continue
        values = record.tables.setdefault(below.name, {})
        inner = value.get(below.name, {})
        path = (*record.path, below.name)
        if isinstance(inner, dict):
            _read_keys(below, inner, record, path, values, errors)
            seen[below.name] = inner
        else:
            errors.at(record.source, path, "", f"must be a table, not {describe(inner)}")
        _fill_defaults(below, values, inner if isinstance(inner, dict) else {})
    for key in table.keys:
        if key.default is REQUIRED and key.name not in value:
            errors.on(record, "", f"{key.name} is missing{_proposal(key)}")
    _fill_defaults(table, record.values, value)


def _read_mounts(record: Record, value: object, errors: _Errors) -> None:
    """Read the mounts of a vhost, each by the table of its kind."""
    path = (*record.path, MOUNT.name)
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        errors.at(record.source, path, "", f"must be written as [{_table(path)}], once for each")
        return
    if len(value) > limits.MAX_MOUNTS:
        errors.at(record.source, path, "", f"must be at most {limits.MAX_MOUNTS} mounts, not {len(value)}")
        return
    for number, inner in enumerate(value):
        kind = inner.get("kind")
        table = mount_table(kind) if isinstance(kind, str) and kind in KIND_TABLES else _ANY_MOUNT
        mount = Record(table, (*path, str(number)), record.source)
        _read_table(mount, inner, errors)
        record.mounts.append(mount)


#: For a mount of no kind that we know: whatever one of them has.
_ANY_MOUNT = replace(
    MOUNT,
    keys=MOUNT.keys
    + tuple(
        [
            replace(key, default=None)
            for key in {key.name: key for table in KIND_TABLES.values() for key in table.keys}.values()
        ]
    ),
)


def _read_keys(
    table: Table,
    value: dict[str, Any],
    record: Record,
    path: tuple[str, ...],
    into: dict[str, Any],
    errors: _Errors,
) -> None:
    for name, inner in value.items():
        key = table.key(name)
        if key is not None:
            _read_key(key, inner, record.source, path, into, errors)
        elif table.listed and (
            kinds := [each for each in KIND_TABLES.values() if each.key(name) is not None]
        ):
            errors.at(record.source, path, name, _for_kinds([each.name for each in kinds]))
        elif table.table(name) is None:
            errors.at(record.source, path, name, _unknown(name, inner, table, path, value.get("kind")))


def _for_kinds(kinds: Iterable[str]) -> str:
    shown = " or ".join([f'"{kind}"' for kind in kinds])
    return f"is for kind = {shown}: remove it, or change the kind"


def _read_key(
    key: Key, value: object, source: Source, path: tuple[str, ...], into: dict[str, Any], errors: _Errors
) -> None:
    def report(message: str, literal: str | None) -> None:
        errors.at(source, path, key.name, message, literal)

    converted = convert(key, value, source.folder, report)
    if converted is not INVALID:
        into[key.name] = converted


def _fill_defaults(table: Table, values: dict[str, Any], written: dict[str, Any]) -> None:
    """Give the keys that were not written their defaults; those that were written but wrong stay out."""
    for key in table.keys:
        if key.name not in values and key.name not in written and key.default is not REQUIRED:
            values[key.name] = key.default


def _proposal(key: Key) -> str:
    example = key.example or (f'"{key.choices[0]}"' if key.choices else "")
    return f": write, for example, {key.name} = {example}" if example else ""


def _unknown(name: str, value: object, table: Table, path: tuple[str, ...], vhost_kind: object = None) -> str:
    """Say that a key or table is unknown, and where or what it might have been meant to be. vhost_kind: what the
    table says of its `kind`, if it is a vhost's: of the kinds' tables that one is meant.
    """
    what = "table" if isinstance(value, dict) else "key"
    if name in _NOT_TO_BE_HAD:
        return _NOT_TO_BE_HAD[name]
    homes = _homes(path)
    exact = [home for home, keys in homes.items() if name in keys]
    exact.sort(key=lambda home: not home.endswith(f".{vhost_kind}]"))
    if exact:
        return f"is not known here: it belongs {exact[0]}"
    if isinstance(value, dict) and name in KIND_TABLES and len(path) > 1:
        # Kinds without a table of their own: all that they have stands in the vhost's.
        its = " and ".join([key.name for key in KIND_TABLES[name].keys])
        return f"there is no such table: {its} of kind {name} stands in {_table(path)} itself"
    near = difflib.get_close_matches(
        name, [*[key.name for key in table.keys], *[below.name for below in table.tables]], 1
    )
    if near:
        return f'unknown {what}; did you mean "{near[0]}"?'
    meant = _CALLED_ELSEWHERE.get(name.lower().replace("-", "_"), "")
    for home, keys in homes.items():
        if meant in keys:
            return f'unknown {what}; what you mean may be "{meant}" {home}'
    for home, keys in homes.items():
        near = difflib.get_close_matches(name, keys, 1)
        if near:
            return f'unknown {what}; did you mean "{near[0]}" {home}?'
    names = [key.name for key in table.keys] + [f"[{below.name}]" for below in table.tables]
    return f"unknown {what}; known here: {', '.join(names)}"


#: What no form of deployment can give, and what to do instead.
_NOT_TO_BE_HAD = {
    "permission_set": "can't be had: no process of a tenant has the privilege to run a program under another uid, in "
    "containers or without; give such programs a vhost of their own, with a uid and a root of its own",
}

#: What our keys are called in Apache, nginx, gunicorn, uWSGI and PHP-FPM, where it doesn't look alike.
_CALLED_ELSEWHERE = {
    **dict.fromkeys(
        ("server_name", "servername", "serveralias", "domain", "domains", "server_names"), "hosts"
    ),
    **dict.fromkeys(("document_root", "documentroot", "docroot", "directory", "folder", "chdir"), "root"),
    **dict.fromkeys(("user", "owner"), "uid"),
    "group": "gid",
    **dict.fromkeys(("wsgi", "module", "app", "wsgi_file", "callable"), "application"),
    **dict.fromkeys(("venv", "home", "virtual_env"), "virtualenv"),
    "pythonpath": "python_path",
    **dict.fromkeys(("environment", "setenv", "raw_env", "variables"), "env"),
    **dict.fromkeys(("processes", "workers", "max_children", "startservers"), "max_workers"),
    "threads": "max_threads",
    **dict.fromkeys(("client_max_body_size", "limitrequestbody", "max_body", "post_max_size"), "body_limit"),
    **dict.fromkeys(("keepalive_timeout", "keepalivetimeout"), "idle_timeout"),
    **dict.fromkeys(("error_log", "errorlog"), "error_log_file"),
    **dict.fromkeys(("slow_log", "slowlog", "request_slowlog"), "slow_log_file"),
    **dict.fromkeys(("customlog", "accesslog"), "access_log"),
    **dict.fromkeys(("error_page", "errordocument"), "error_pages"),
    **dict.fromkeys(("bind", "http_socket", "host"), "address"),
    "loglevel": "level",
    **dict.fromkeys(("location", "prefix", "script_name"), "path"),
    "alias": "root",
}


def _homes(path: tuple[str, ...]) -> dict[str, list[str]]:
    """Return all tables' keys and sub-tables, each table named as seen from `path` ("in [vhost.blog.http]")."""
    homes = {}
    for where, table in SCHEMA.walk():
        names = [key.name for key in table.keys] + [below.name for below in table.tables]
        if not where:
            homes["at the top of the main file, before all tables"] = names
            continue
        parts = where.split(".")
        if len(path) > 1 and parts[0] == path[0]:
            parts[1] = printable(path[1])
        header = f"[{'.'.join(parts)}]"
        homes[f"in [{header}]" if table.listed else f"in {header}"] = names
    # those of the same top table first
    return dict(sorted(homes.items(), key=lambda item: not (path and item[0].startswith(f"in [{path[0]}."))))


# --- 3. compare ---------------------------------------------------------------------------------------------
def _compare(tree: _Tree, errors: _Errors) -> None:
    listeners, vhosts = list(tree.named["listen"].values()), list(tree.named["vhost"].values())
    main = tree.single[""]
    if not listeners and not errors:  # with errors, it may be in a file that could not be read
        errors.on(main, "", 'there is no listener: add a table [listen.http] with address = "0.0.0.0:80"')
    if len(listeners) > MAX_LISTENERS:
        errors.on(listeners[MAX_LISTENERS], "", f"is one too many: at most {MAX_LISTENERS} listeners")
    if len(vhosts) > MAX_VHOSTS:
        errors.on(vhosts[MAX_VHOSTS], "", f"is one too many: at most {MAX_VHOSTS} vhosts")
    _compute_listeners(tree, listeners)
    _compare_sockets(tree, listeners, errors)
    _compare_listener_uids(listeners, errors)
    for record in vhosts:
        _check_vhost(record, errors)
        _check_pool(record, errors)
        _check_options(record, errors)
    _compare_hosts(vhosts, errors)
    _compare_defaults(vhosts, errors)
    _compare_uids(vhosts, errors)
    _check_admin_gid(main, vhosts, errors)
    _compare_log_files(vhosts, errors)


def _compute_listeners(tree: _Tree, listeners: list[Record]) -> None:
    """Fill in the values that depend on a listener's position, or on others of its own."""
    base_port = tree.single["metrics"].values.get("base_port")
    first = ROLES[Role.LISTENER]
    for position, record in enumerate(listeners):
        if record.values.get("uid", 0) is None:
            record.values["uid"] = first.uid + position
        if record.values.get("metrics_port", 0) is None:
            if base_port is None or first.metrics_offset is None:
                del record.values["metrics_port"]
            else:
                record.values["metrics_port"] = base_port + first.metrics_offset + position
        if record.values.get("max_unnamed_per_client", 0) is None and "max_connections" in record.values:
            record.values["max_unnamed_per_client"] = max(1, record.values["max_connections"] * 3 // 4)


def _compare_sockets(tree: _Tree, listeners: list[Record], errors: _Errors) -> None:
    """No two sockets may want the same address: listeners', and all metrics ports."""
    metrics = tree.single["metrics"]
    taken: list[tuple[Address, str]] = []

    def claim(address: Address, what: str, record: Record, key: str) -> None:
        for other, whose in taken:
            if _overlap(address, other):
                errors.on(
                    record, key, f"{what} {address} clashes with {whose} ({other}): choose another port"
                )
                return
        taken.append((address, f"{what} of {record.place(key)}"))

    host = metrics.values.get("address")
    if host is not None and "base_port" in metrics.values:
        base = metrics.values["base_port"]
        roles = ((Role.INIT.value, 0), (Role.MASTER.value, 1), (Role.UMASTER.value, 2))
        for name, offset in (
            *roles,
            ("metrics listener", METRICS_LISTENER_OFFSET),
            ("tenants", TENANT_METRICS_OFFSET),
        ):
            taken.append((Address(host, base + offset), f"the metrics port of {name}"))
    for record in listeners:
        if host is not None and "metrics_port" in record.values:
            key = "metrics_port" if (*record.path, "metrics_port") in record.source.lines else ""
            claim(Address(host, record.values["metrics_port"]), "the metrics port", record, key)
    for record in listeners:
        if "address" in record.values:
            claim(record.values["address"], "the address", record, "address")


def _overlap(one: Address, other: Address) -> bool:
    """Whether the kernel would refuse to bind both. IPv6 sockets are IPv6 only, so the families don't meet."""
    if one.port != other.port or (":" in one.host) != (":" in other.host):
        return False
    return one.host == other.host or one.host in ("0.0.0.0", "::") or other.host in ("0.0.0.0", "::")


def _compare_listener_uids(listeners: list[Record], errors: _Errors) -> None:
    seen: dict[int, Record] = {}
    for record in listeners:
        uid = record.values.get("uid")
        if uid is None:
            continue
        if uid in seen:
            other = f"{_table(seen[uid].path)} as well ({seen[uid].place('uid')})"
            errors.on(record, "uid", f"{uid} is the uid of {other}: each listener needs its own")
        seen.setdefault(uid, record)


def _check_vhost(record: Record, errors: _Errors) -> None:
    """What the keys of one vhost demand of each other."""
    values = record.values
    if values.get("hosts") == () and values.get("default") is False:
        errors.on(
            record, "", 'hosts is missing: write, for example, hosts = ["blog.example"] (or default = true)'
        )
    if record.mounts:
        _check_mounts(record, errors)
        kinds = [mount.values["kind"] for mount in record.mounts if "kind" in mount.values]
        whole = len(kinds) == len(record.mounts)
    else:
        _check_kind(record, errors)
        kinds = [values["kind"]] if values.get("kind") is not None else []
        whole = bool(kinds)
    if whole:
        for needed, keys in (("python", PYTHON_KEYS), ("runs", RUNNING_KEYS)):
            if not any(getattr(KINDS[kind], needed) for kind in kinds):
                for key in keys:
                    if values.get(key) not in (None, (), True):
                        errors.on(
                            record,
                            key,
                            _for_kinds([name for name, each in KINDS.items() if getattr(each, needed)]),
                        )
    if values.get("gid", 0) is None and "uid" in values:
        values["gid"] = values["uid"]
    reach = [("root", each.values.get("root")) for each in (record, *record.mounts)]
    reach += [("writable", path) for path in values.get("writable", ())]
    for key in LOG_FILES:
        for what, folder in reach:
            if folder and (values.get(key) or "").startswith(f"{folder}/"):
                shown = printable(folder)
                errors.on(
                    record, key, f"must not be in the tenant's own reach ({what}: {shown}): {_HARM[what]}"
                )


def _check_kind(record: Record, errors: _Errors) -> None:
    """What a vhost without mounts says of its kind."""
    values = record.values
    if values.get("kind", "") is None and (*record.path, MOUNT.name) not in record.source.lines:
        errors.on(
            record,
            "",
            f"kind is missing{_proposal(MOUNT.keys[1])} (or mounts: [[{'.'.join(record.path)}.mount]])",
        )
    if values.get("kind") is None:
        return
    own = KIND_TABLES[values["kind"]]
    for key in SHORTHAND:
        if key not in own.keys:
            if values.get(key.name) is not None:
                errors.on(
                    record,
                    key.name,
                    _for_kinds([each.name for each in KIND_TABLES.values() if key in each.keys]),
                )
        elif key.default is REQUIRED and values.get(key.name, "") is None:
            errors.on(record, "", f"{key.name} is missing{_proposal(key)}")
    fallback = record.tables.get(own.name, {}).get("fallback") or ""
    if fallback[:1] == "@":
        errors.at(
            record.source,
            (*record.path, own.name),
            "fallback",
            f'there is no mount with path = "{fallback}": write both as mounts',
        )
    for table in record.table.tables:
        path = (*record.path, table.name)
        if table.kind not in ("", own.name) and path in record.source.lines:
            errors.at(record.source, path, "", _for_kinds([table.kind]))


def _check_mounts(record: Record, errors: _Errors) -> None:
    """What a vhost's mounts demand of each other, and of the vhost."""
    for key in ("kind", *[key.name for key in SHORTHAND]):
        if record.values.get(key) is not None:
            errors.on(record, key, _WITHOUT_MOUNTS)
    for table in record.table.tables:
        path = (*record.path, table.name)
        if table.kind and path in record.source.lines:
            errors.at(record.source, path, "", _WITHOUT_MOUNTS)
    with_processes = [mount for mount in record.mounts if mount.values.get("command")]
    for mount in with_processes[limits.MAX_COMMANDS :]:
        errors.on(
            mount,
            "command",
            f"at most {limits.MAX_COMMANDS} mounts of a vhost may have processes of their own",
        )
    taken: dict[str, Record] = {}
    for mount in record.mounts:
        where = mount.values.get("path")
        if where is None:
            continue
        other = taken.setdefault(where, mount)
        if other is not mount:
            errors.on(mount, "path", f'"{printable(where)}" is there already ({other.place("path")})')
    for mount in record.mounts:
        where = mount.values.get("path", "")
        if where[:1] == "@" and mount.values.get("kind") == "static":
            errors.on(mount, "path", "is for another kind: what a static mount has no file for, no other has")
        elif where[:1] == "@" and not any(each.values.get("fallback") == where for each in record.mounts):
            errors.on(mount, "path", f"nobody asks {where}: it must be the fallback of a static mount")
        _check_fallback(mount, taken, errors)
    _check_code(record, errors)


def _check_fallback(record: Record, mounts: dict[str, Record], errors: _Errors) -> None:
    """A fallback that is a mount must be there."""
    fallback = record.values.get("fallback") or ""
    if fallback[:1] == "@" and fallback not in mounts:
        errors.on(record, "fallback", f'there is no mount with path = "{fallback}" in this vhost')


def _check_code(record: Record, errors: _Errors) -> None:
    """No static mount may give away the code of an application beside it.

    (What lies in a folder of its own below the mount's is no file there: pyttpd_vhost.kinds.static.programs.)
    """
    values = record.values
    kinds = [(mount, mount.values["kind"]) for mount in record.mounts if mount.values.get("kind")]
    code: list[str] = []
    if any(KINDS[kind].python for _, kind in kinds):
        code = [
            each
            for each in (values.get("root"), values.get("virtualenv"), *values.get("python_path", ()))
            if each
        ]
    programs = [
        folder
        for mount, kind in kinds
        if KINDS[kind].programs and not mount.values.get("script") and (folder := _folder_of(mount, record))
    ]
    for mount, kind in kinds:
        folder = _folder_of(mount, record) if kind == "static" else None
        if folder is None:
            continue
        where = "root" if mount.values["root"] else ""
        for each in code:
            if f"{each}/".startswith(f"{folder}/"):
                errors.on(
                    mount,
                    where,
                    f"{printable(folder)} holds the application's code ({printable(each)}){_OPEN}",
                )
                break
        else:
            if any(f"{folder}/".startswith(f"{each}/") for each in programs):
                errors.on(
                    mount, where, f"{printable(folder)} is a folder of programs, by another mount{_OPEN}"
                )


def _folder_of(mount: Record, record: Record) -> str | None:
    """Return the folder of a mount whose kind has one; None where it is wrong, and that is said already."""
    if "root" not in mount.values:
        return None
    return mount.values["root"] or record.values.get("root")


#: What comes of files that shouldn't be served.
_OPEN = ', which anybody could then read: write a folder for what is served, such as root = "public"'

#: Of what belongs to a vhost of one kind.
_WITHOUT_MOUNTS = "is for a vhost without mounts: write it in the [[mount]] that it is meant for"

#: The keys of a vhost that say how its Python code is imported, and those that matter to any code of the tenant's.
PYTHON_KEYS = ("python_path", "virtualenv", "preload")
RUNNING_KEYS = ("allow",)

#: What comes of a log below a folder of the tenant's.
_HARM = {"root": "it would be served, or read by its code", "writable": "its code could change it"}


def _check_pool(record: Record, errors: _Errors) -> None:
    """What the keys of one vhost's pool demand of each other; where one is wrong by itself, that is said already."""
    pool = record.table.table("pool")
    values = record.tables.get("pool", {})
    if pool is None or len(values) != len(pool.keys):
        return
    # Without validation, which would raise at the first.
    settings = object.__new__(PoolSettings)
    for name, value in values.items():
        object.__setattr__(settings, name, value)
    for key, wrong in settings.contradictions():
        errors.at(record.source, (*record.path, "pool"), key, wrong)


def _check_options(record: Record, errors: _Errors) -> None:
    """What the keys of each mount's kind demand of each other; where one is wrong by itself, that is said already."""
    places = [(mount.values.get("kind"), mount.values, mount.path) for mount in record.mounts]
    if not record.mounts and (kind := record.values.get("kind")) is not None:
        places = [(kind, record.tables.get(kind, {}), (*record.path, kind))]
    for kind, values, path in places:
        entry = KINDS.get(kind or "")
        if entry is None or not issubclass(entry.options, ProcessOptions):
            continue
        if any(name not in values for name in entry.fields if name != "root"):
            continue
        # Without validation, which would raise at the first.
        options = object.__new__(entry.options)
        for name in entry.fields:
            object.__setattr__(options, name, values.get(name))
        for key, wrong in options.contradictions():
            errors.at(record.source, path, key, wrong)
        pool = record.tables.get("pool", {})
        if "max_workers" in pool and "max_threads" in pool:
            for key, wrong in options.misfits(pool["max_workers"], pool["max_threads"]):
                errors.at(record.source, path, key, wrong)


def _compare_hosts(vhosts: list[Record], errors: _Errors) -> None:
    owners: dict[str, Record] = {}
    for record in vhosts:
        for host in record.values.get("hosts", ()):
            owner = owners.setdefault(host, record)
            if owner is not record:
                message = f'"{host}" belongs to {_table(owner.path)} already ({owner.place("hosts", host)})'
                errors.on(record, "hosts", message, host)
    if len(owners) > MAX_NAMES:
        errors.on(
            vhosts[-1],
            "hosts",
            f"all vhosts together must have at most {MAX_NAMES} host names, not {len(owners)}",
        )


def _compare_defaults(vhosts: list[Record], errors: _Errors) -> None:
    defaults = [record for record in vhosts if record.values.get("default") is True]
    for record in defaults[1:]:
        first = f"{_table(defaults[0].path)} already ({defaults[0].place('default')})"
        errors.on(record, "default", f"there can be one default vhost only: it is {first}")


def _compare_uids(vhosts: list[Record], errors: _Errors) -> None:
    uids: dict[int, list[Record]] = {}
    gids: dict[int, Record] = {}
    for record in vhosts:
        if "uid" in record.values:
            uids.setdefault(record.values["uid"], []).append(record)
    for uid, sharing in uids.items():
        for record in sharing if len(sharing) > 1 else ():
            if record.values.get("share_uid") is False:
                other = next(each for each in sharing if each is not record)
                errors.on(
                    record,
                    "uid",
                    f"{uid} is the uid of {_table(other.path)} as well ({other.place('uid')}): give each its own, or "
                    "write share_uid = true in all of them, if they may read each other's files and memory",
                )
    for record in vhosts:
        gid = record.values.get("gid")
        if gid is None or "uid" not in record.values:
            continue
        other = gids.setdefault(gid, record)
        if other.values["uid"] != record.values["uid"]:
            errors.on(
                record,
                "gid",
                f"{gid} is the gid of {_table(other.path)} as well ({other.place('gid')}), which has another uid: "
                "leave gid out (it is then the uid)",
            )


def _check_admin_gid(main: Record, vhosts: list[Record], errors: _Errors) -> None:
    """An operator's group is for people: with a tenant's or a role's own, its processes would be operators."""
    gid = main.values.get("admin_gid")
    if gid is None:
        return
    owner = next(
        (record for record in vhosts if gid in (record.values.get("gid"), record.values.get("uid"))), None
    )
    if owner is not None:
        errors.on(
            main, "admin_gid", f"{gid} is the group of {_table(owner.path)}, whose code could reload then"
        )
    elif UNPRIVILEGED_INIT_UID <= gid < MIN_VHOST_UID:
        errors.on(
            main, "admin_gid", f"{gid} is among the groups of pyttpd's own parts: write a group of people's"
        )


def _compare_log_files(vhosts: list[Record], errors: _Errors) -> None:
    """Two writers would rotate each other's file away."""
    taken: dict[str, tuple[Record, str]] = {}
    for record in vhosts:
        for key in LOG_FILES:
            file = record.values.get(key)
            if file is None:
                continue
            if file in taken:
                other, its_key = taken[file]
                whose = f"{_table(other.path)} {its_key} ({other.place(its_key)})"
                errors.on(record, key, f"is the file of {whose} as well: each log needs its own")
            else:
                taken[file] = record, key


def _table(path: tuple[str, ...]) -> str:
    """Return a table's header as it is written."""
    listed = len(path) > 3 and path[2] == MOUNT.name and path[3].isdigit()
    shown = ".".join([printable(part) for number, part in enumerate(path) if not (listed and number == 3)])
    return f"[[{shown}]]" if listed and len(path) == 4 else f"[{shown}]"


# --- 4. build -----------------------------------------------------------------------------------------------
def _build(tree: _Tree, reader: _Reader, generation: int) -> Config:
    top, metrics = tree.single[""].values, MetricsSettings(**tree.single["metrics"].values)
    listeners = [
        Listener(name=record.name, mode="http", **record.values) for record in tree.named["listen"].values()
    ]
    return Config(
        file=reader.main,
        generation=generation,
        digest=reader.digest,
        runtime_dir=top["runtime_dir"],
        grace=top["grace"],
        admin_gid=top["admin_gid"],
        log=LogSettings(**tree.single["log"].values),
        metrics=metrics,
        listeners=(*listeners, _metrics_listener(metrics)),
        vhosts=tuple([_vhost(record) for record in tree.named["vhost"].values()]),
    )


def _check_shares(config: Config, tree: _Tree, errors: _Errors) -> None:
    """No vhost may know so many names that its share can't be sent."""
    for vhost in config.vhosts:
        foreign = config.foreign(vhost.name)
        size = sum([len(name) + len('"",') for names in (vhost.hosts, foreign) for name in names])
        if size > limits.MAX_SHARE_NAMES_BYTES:
            errors.on(
                tree.named["vhost"][vhost.name],
                "hosts",
                f"{len(vhost.hosts)} names, and {len(foreign)} of other vhosts below them, are {size} bytes; they "
                f"must be at most {limits.MAX_SHARE_NAMES_BYTES} bytes",
            )


def _vhost(record: Record) -> Vhost:
    values = dict(record.values)
    kind = values.pop("kind")
    shorthand = {key.name: values.pop(key.name) for key in SHORTHAND}
    if record.mounts:
        mounts = [
            Mount(each.values["path"], _options(each.values["kind"], each.values, values["root"]))
            for each in record.mounts
        ]
    else:
        mounts = [Mount("/", _options(kind, shorthand | record.tables.get(kind, {}), values["root"]))]
    return Vhost(
        name=record.name,
        mounts=tuple(mounts),
        shorthand=not record.mounts,
        pool=PoolSettings(**record.tables["pool"]),
        queue=QueueSettings(**record.tables["queue"]),
        http=HttpSettings(**record.tables["http"]),
        **values,
    )


def _options(kind: str, values: dict[str, Any], root: str) -> KindOptions:
    """Return the options of a kind, of all the values that there are; its folder is `root` if it names none."""
    own = {name: values.get(name) for name in KINDS[kind].fields}
    if "root" in own and own["root"] is None:
        own["root"] = root
    return KINDS[kind].options(**own)


def _metrics_listener(metrics: MetricsSettings) -> Listener:
    """The listener of the tenants' metrics: scrapers are few and quick, so it takes little."""
    return Listener(
        name=METRICS_LISTENER,
        mode="metrics",
        address=Address(metrics.address, metrics.tenants_port),
        backlog=128,
        uid=METRICS_LISTENER_UID,
        head_limit=8192,
        request_line_limit=1024,
        max_headers=64,
        head_timeout=5.0,
        linger_timeout=1.0,
        max_connections=1024,
        max_unnamed_per_client=64,
        stress_factor=0.2,
        handover_timeout=5.0,
        proxy_protocol=(),
        metrics_port=metrics.listener_port,
    )
