"""The checks of the shares' fields: each takes a value and the field's name, and returns the value in its final form or
raises ShareError. One table of them per class drives construction and decoding (shares.py, kinds.py).

Lean: every role process imports this module; no TOML, no file access, no error prose.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypeVar

from pyttpd.address import parse
from pyttpd.config import limits

Check: TypeAlias = Callable[[object, str], Any]
T = TypeVar("T")


class ShareError(ValueError):
    """A share is not what it must be. The text names the field and the rule, never the value."""


def integer(bounds: limits.Range) -> Check:
    """A whole number within `bounds`."""

    def check(value: object, where: str) -> int:
        if type(value) is not int or value not in bounds:
            raise ShareError(f"{where}: must be a whole number from {bounds.low} to {bounds.high}")
        return value

    return check


def number(bounds: limits.Range) -> Check:
    """A number within `bounds`; it becomes a float."""

    def check(value: object, where: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or value not in bounds:  # type: ignore[arg-type,operator]
            raise ShareError(f"{where}: must be a number from {bounds.low} to {bounds.high}")
        return float(value)  # type: ignore[arg-type]

    return check


def flag(value: object, where: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ShareError(f"{where}: must be true or false")
    return value


def choice(choices: tuple[str, ...]) -> Check:
    """One of `choices`."""

    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ShareError(f"{where}: must be one of {', '.join(choices)}")
        return value

    return check


def name(value: object, where: str) -> str:
    """A name of a vhost or listener."""
    if not isinstance(value, str) or limits.NAME.fullmatch(value) is None:
        raise ShareError(f"{where}: must be a name: {limits.NAME_RULE}")
    return value


def path(value: object, where: str) -> str:
    """An absolute path."""
    if (
        not isinstance(value, str)
        or not value.startswith("/")
        or not value.isprintable()
        or len(utf8(value, where)) >= limits.MAX_PATH_LENGTH
    ):
        raise ShareError(f"{where}: must be an absolute path of printable characters")
    return value


def path_or_none(value: object, where: str) -> str | None:
    """An absolute path, or None."""
    return None if value is None else path(value, where)


def network(value: object, where: str) -> str:
    """A network of IP addresses, in normal form."""
    from ipaddress import ip_network  # only tenants behind a proxy need it

    try:
        if isinstance(value, str) and str(ip_network(value)) == value:
            return value
    except ValueError:
        pass
    raise ShareError(f"{where}: must be a network in normal form")


def address(value: object, where: str) -> str:
    """An address stays text here: nobody needs it but who opens it, and text is the same in JSON."""
    try:
        if isinstance(value, str) and str(parse(value)) == value:
            return value
    except ValueError:
        pass
    raise ShareError(f"{where}: must be an IP address and a port in normal form")


def application(value: object, where: str) -> str:
    """A module and an attribute of it, with a colon between."""
    if (
        not isinstance(value, str)
        or len(value) > limits.MAX_APPLICATION_LENGTH
        or limits.APPLICATION.fullmatch(value) is None
    ):
        raise ShareError(f'{where}: must be "module:attribute"')
    return value


def env(value: object, where: str) -> dict[str, str]:
    """Environment variables."""
    if not isinstance(value, Mapping) or len(value) > limits.MAX_ENV_ENTRIES:
        raise ShareError(f"{where}: must be an object of at most {limits.MAX_ENV_ENTRIES} texts")
    size = 0
    for key, text in value.items():
        if not isinstance(key, str) or limits.ENV_NAME.fullmatch(key) is None:
            raise ShareError(f"{where}: a variable's name must be letters, digits and underscores")
        if not isinstance(text, str) or "\0" in text:
            raise ShareError(f"{where}: a variable's value must be text without NUL")
        size += len(key) + len(utf8(text, where)) + 2
    if size > limits.MAX_ENV_BYTES:
        raise ShareError(f"{where}: must be at most {limits.MAX_ENV_BYTES} bytes")
    return dict(value)


def table_of(check_key: Check, check_value: Check, most: int) -> Check:
    """Texts by texts, each checked; at most so many."""

    def check(value: object, where: str) -> dict[str, str]:
        if not isinstance(value, Mapping) or len(value) > most:
            raise ShareError(f"{where}: must be an object of at most {most} texts")
        return {check_key(key, where): check_value(text, where) for key, text in value.items()}

    return check


def matching(pattern: re.Pattern[str], what: str) -> Check:
    """Text that `pattern` matches; `what` says so."""

    def check(value: object, where: str) -> str:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            raise ShareError(f"{where}: must be {what}")
        return value

    return check


def or_empty(check_text: Check) -> Check:
    """What `check_text` wants, or ""."""
    return lambda value, where: value if value == "" else check_text(value, where)


def file_name(value: object, where: str) -> str:
    """A file's name, not hidden."""
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or "/" in value
        or value[:1] in ("", ".")
        or len(utf8(value, where)) > limits.MAX_FILE_NAME
    ):
        raise ShareError(f"{where}: must be a file's name, not hidden, without folders")
    return value


def below_root(value: object, where: str) -> str:
    """A path below a root."""
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not {"", ".", ".."}.isdisjoint(value.split("/"))
        or len(utf8(value, where)) >= limits.MAX_PATH_LENGTH
    ):
        raise ShareError(f"{where}: must be a path below the root, without dots")
    return value


def pattern(value: object, where: str) -> str:
    """A file name pattern."""
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 0 < len(value) <= limits.MAX_PATTERN_LENGTH
        or len(limits.WILDCARD.findall(value)) > limits.MAX_WILDCARDS
    ):
        raise ShareError(f"{where}: must be a pattern of printable characters with a few stars")
    return value


def text(value: str, where: str) -> str:
    """Text that UTF-8 can express."""
    utf8(value, where)
    return value


def utf8(value: str, where: str) -> bytes:
    """Return the text in UTF-8."""
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ShareError(f"{where}: must be text that UTF-8 can express") from None


def tuple_of(check_item: Check, most: int) -> Check:
    """A list of checked items, at most so many; it becomes a tuple."""

    def check(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise ShareError(f"{where}: must be a list of at most {most}")
        return tuple([check_item(item, where) for item in value])

    return check


def hosts(most: int) -> Check:
    """A list of host names in normal form, at most so many."""

    def check(value: object, where: str) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or len(value) > most:
            raise ShareError(f"{where}: must be a list of at most {most} host names")
        check_hosts(value, where)
        return tuple(value)

    return check


def check_hosts(names: Any, where: str) -> None:
    """Check many host names in one pass of the regular expression engine: a loop costs three times as much."""
    try:
        lines = "\n".join(names)
    except TypeError:
        raise ShareError(f"{where}: host names must be text") from None
    count = len(names)
    if count and (lines.count("\n") != count - 1 or limits.HOST_LINES.fullmatch(lines + "\n") is None):
        raise ShareError(f"{where}: not every one is a host name in normal form")


def object_of(cls: type[T], fields: Mapping[str, Check]) -> Check:
    """An object of `cls`, or what `from_object` makes one of."""

    def check(value: object, where: str) -> T:
        return value if isinstance(value, cls) else from_object(cls, fields, value, where)

    return check


def from_object(cls: type[T], fields: Mapping[str, Check], value: object, where: str) -> T:
    """Return a `cls`, made of its fields as JSON has them: all of them, and no others."""
    if not isinstance(value, dict):
        raise ShareError(f"{where}: must be an object")
    if value.keys() != fields.keys():
        missing = ", ".join(sorted(fields.keys() - value.keys())) or "none"
        raise ShareError(
            f"{where}: wrong keys ({missing} missing, {len(value.keys() - fields.keys())} unknown)"
        )
    return cls(**value)


def validate(instance: object, fields: Mapping[str, Check]) -> None:
    """Check all fields of an instance, and put their final form in."""
    for name, check in fields.items():
        object.__setattr__(instance, name, check(getattr(instance, name), name))


def distinct(values: list[Any], where: str) -> None:
    """Nothing is in it twice."""
    if len(set(values)) != len(values):
        raise ShareError(f"{where}: one of them is there twice")
