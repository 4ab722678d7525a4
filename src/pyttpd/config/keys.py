"""What a configuration key is, and a table of them: the words that schema.py and kind_keys.py are written in."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyttpd.config import limits

if TYPE_CHECKING:
    from collections.abc import Iterator


class Kind(enum.Enum):
    """What a value must be; the text says so to a person ("must be ...")."""

    INTEGER = "a whole number"
    SECONDS = "a number of seconds"
    NUMBER = "a number"
    FLAG = "true or false"
    CHOICE = "one of a few words"
    IP = "an IP address"
    ADDRESS = "an IP address and a port"
    ADDRESSES = "a list of IP addresses with ports"
    PATH = "a path"
    PATHS = "a list of paths"
    NETWORKS = "a list of IP addresses and networks"
    PATTERNS = "a file name pattern, or a list of them"
    HOSTS = "a list of host names"
    MOUNT_PATH = "a path of URLs"
    FALLBACK = "a file below the root, or a mount's name"
    APPLICATION = "a module and the application in it"
    ENV = "a table of texts"
    CHOICES = "a list of some of a few words"
    NAMES = "a list of file names"
    CACHE_CONTROL = "a table of file name patterns, each with a value of Cache-Control"
    TYPES = "a table of file name suffixes, each with a media type"
    SUFFIXES = "a list of file name suffixes"
    FILE = "a file below the root"
    CHARSET = "the name of a character set"
    COMMAND = "a list of texts: a program and its arguments"
    HANDLERS = "a table of file name suffixes, each with a program"
    ERROR_PAGES = "a table of statuses, each with a file below the root"


class Required(enum.Enum):
    """The default of a key that has none."""

    REQUIRED = "required"


REQUIRED = Required.REQUIRED


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table. `default` is REQUIRED, a value, or None where it is computed or means "none": then
    `default_text` says how. `example` is what an error message proposes.
    """

    name: str
    kind: Kind
    default: object
    doc: str
    unit: str = ""
    bounds: limits.Range | None = None
    choices: tuple[str, ...] = ()
    default_text: str = ""
    example: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One table. `named`: it is written once for each instance, as [name.INSTANCE], and its sub-tables below that.
    `listed`: any number of times, as [[name]]. `kind`: only in a vhost of this kind.
    """

    name: str
    doc: str
    keys: tuple[Key, ...]
    tables: tuple[Table, ...] = ()
    named: bool = False
    listed: bool = False
    kind: str = ""

    def key(self, name: str) -> Key | None:
        """Return the key of that name, or None."""
        return next((key for key in self.keys if key.name == name), None)

    def table(self, name: str) -> Table | None:
        """Return the sub-table of that name, or None."""
        return next((table for table in self.tables if table.name == name), None)

    def walk(self, path: str = "") -> Iterator[tuple[str, Table]]:
        """Yield this table and all below it, each with its path as documentation writes it ("vhost.NAME.http")."""
        yield path, self
        for table in self.tables:
            below = f"{path}.{table.name}".lstrip(".") + (".NAME" if table.named else "")
            yield from table.walk(below)


def seconds(name: str, default: float, doc: str, bounds: limits.Range = limits.TIMEOUT) -> Key:
    """Return a key that is a number of seconds."""
    return Key(name, Kind.SECONDS, default, doc, "s", bounds, example=str(default))


def count(name: str, default: int, doc: str, bounds: limits.Range, unit: str = "") -> Key:
    """Return a key that is a whole number."""
    return Key(name, Kind.INTEGER, default, doc, unit, bounds, example=str(default))
