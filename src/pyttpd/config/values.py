"""Values of the configuration: from what TOML gives to what the dataclasses carry, or a sentence on what is wrong.

Every function returns the value in its final form, or reports at least one problem and returns INVALID.
"""

from __future__ import annotations

import enum
import ipaddress
import math
import os.path
import re
from collections.abc import Callable
from typing import TypeAlias

from pyttpd.address import Address, normal_ip, unreachable
from pyttpd.config import limits
from pyttpd.config.errors import printable
from pyttpd.config.keys import Key, Kind
from pyttpd.config.kinds import path_problem
from pyttpd.head import Refused, authority

#: Takes the message, and the text within the value that it is about (for its line), if any.
Report: TypeAlias = Callable[[str, str | None], None]


class Invalid(enum.Enum):
    """What a conversion returns after it has reported why."""

    INVALID = "invalid"


INVALID = Invalid.INVALID


def convert(key: Key, value: object, folder: str, report: Report) -> object:
    """Return `value` as `key` demands it; relative paths are relative to `folder` (absolute). INVALID: reported."""
    if key.kind in _WITH_FOLDER:
        return _WITH_FOLDER[key.kind](key, value, folder, report)
    return _CONVERSIONS[key.kind](key, value, report)


def describe(value: object) -> str:
    """Say what a TOML value is, fit for an error message."""
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            # str() of a huge integer raises; nobody reads its digits anyway
            return f"the number {value}" if abs(value) < 10**18 else "a number far too large"
        case float():
            return f"the number {value}"
        case str():
            return f'the text "{printable(value)}"'
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"


def _integer(key: Key, value: object, report: Report) -> object:
    if type(value) is not int:
        hint = _number_meant(key, value) or _such_as(key)
        report(f"must be a whole number{_within(key.bounds)}{hint}, not {describe(value)}", None)
        return INVALID
    if key.bounds is not None and value not in key.bounds:
        report(
            f"must be{_within(key.bounds)}{_unit(key)}, not {describe(value).removeprefix('the number ')}",
            None,
        )
        return INVALID
    return value


def _number(key: Key, value: object, report: Report) -> object:
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or (isinstance(value, float) and math.isnan(value))
    ):
        hint = _number_meant(key, value) or _such_as(key)
        report(f"must be {key.kind.value}{_within(key.bounds)}{hint}, not {describe(value)}", None)
        return INVALID
    if key.bounds is not None and value not in key.bounds:
        unit = " seconds" if key.kind is Kind.SECONDS else ""
        report(f"must be{_within(key.bounds)}{unit}, not {describe(value).removeprefix('the number ')}", None)
        return INVALID
    return float(value)


def _number_meant(key: Key, value: object) -> str:
    """Propose the number to write for one with a unit or in quotes, if it is clear and within the bounds."""
    match = _WITH_UNIT.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        number: float = float(match[1]) * _UNITS.get((key.unit, match[2].lower()), 0 if match[2] else 1)
    elif isinstance(value, float) and math.isfinite(value):
        number = value
    else:
        return ""
    if not number or number != int(number) or (key.bounds is not None and number not in key.bounds):
        return ""
    return f": write {int(number)}"


#: "10M", "30 s", "8": a number of few digits, and perhaps a unit.
_WITH_UNIT = re.compile(r"([0-9]{1,12})[ ]?([A-Za-z]{0,3})", re.ASCII)
#: By the key's unit and the one that was written.
_UNITS = {
    **{
        ("bytes", f"{letter}{end}"): 1024**power
        for power, letter in enumerate("kmgt", 1)
        for end in ("", "b", "ib")
    },
    ("bytes", "b"): 1,
    **{("s", unit): 1 for unit in ("s", "sec")},
    **{("s", unit): 60 for unit in ("m", "min")},
    ("s", "h"): 3600,
}


def _flag(_key: Key, value: object, report: Report) -> object:
    if isinstance(value, bool):
        return value
    hint = ""
    if isinstance(value, str) and value.lower() in _WORDS_FOR_FLAGS:
        hint = f" (write {_WORDS_FOR_FLAGS[value.lower()]}, without quotes)"
    report(f"must be true or false, not {describe(value)}{hint}", None)
    return INVALID


_WORDS_FOR_FLAGS = {
    "on": "true",
    "yes": "true",
    "true": "true",
    "off": "false",
    "no": "false",
    "false": "false",
}


def _choice(key: Key, value: object, report: Report) -> object:
    if isinstance(value, str) and value in key.choices:
        return value
    words = [f'"{choice}"' for choice in key.choices]
    wanted = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
    report(f"must be {wanted}, not {describe(value)}", None)
    return INVALID


def _ip(key: Key, value: object, report: Report) -> object:
    host = normal_ip(value.removeprefix("[").removesuffix("]")) if isinstance(value, str) else None
    if host is None:
        report(f"must be an IP address{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    return host


def _address(_key: Key, value: object, report: Report) -> object:
    wanted = 'must be an IP address and a port, such as "0.0.0.0:80" or "[::]:80"'
    return _ip_and_port(wanted, value, report, _address_meant)


def _ip_and_port(
    wanted: str, value: object, report: Report, meant: Callable[[str, str], str] = lambda _host, _port: ""
) -> Address | Invalid:
    if not isinstance(value, str):
        report(f"{wanted}, not {describe(value)}", None)
        return INVALID
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    ip = normal_ip(host[1:-1] if bracketed else host)
    if not colon or ip is None or (":" in ip) != bracketed:
        report(f"{wanted}, not {describe(value)}{meant(host, port)}", None)
        return INVALID
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) not in limits.PORT:
        report(f"{wanted}; the port must be{_within(limits.PORT)}, not {describe(port)}", None)
        return INVALID
    return Address(ip, int(port))


def _address_meant(host: str, port: str) -> str:
    """Propose the address to write for what other servers understand: "80", ":80", "*:80", "localhost:80", "::1:80"."""
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) not in limits.PORT:
        return ""
    ip = {"": "0.0.0.0", "*": "0.0.0.0", "localhost": "127.0.0.1"}.get(host) or normal_ip(host)
    return f' (write "{Address(ip, int(port))}")' if ip is not None else ""


def _addresses(key: Key, value: object, report: Report) -> object:
    items = _list(key, value, report, "IP addresses with ports", limits.MAX_ALLOWED, "addresses")
    if items is None:
        return INVALID
    found: list[Address] = []
    for item in items:
        text = item if isinstance(item, str) else None
        address = _ip_and_port(
            'must hold IP addresses with ports, such as "10.5.0.2:5432" or "[fd00::2]:5432"',
            item,
            lambda message, _, text=text: report(message, text),  # type: ignore[misc]
        )
        if address is INVALID:
            continue
        problem = unreachable(address.host)
        shown = printable(str(text))
        if problem:
            report(f'"{shown}": the address {problem}; each must be one machine\'s', text)
        elif address in found:
            report(f'"{shown}" is there twice', text)
        else:
            found.append(address)
    return tuple(found) if len(found) == len(items) else INVALID


def _networks(key: Key, value: object, report: Report) -> object:
    """Addresses become networks of one, so that there is one form to look in."""
    items = _list(
        key, value, report, "IP addresses and networks", limits.MAX_PROXIES, "addresses and networks"
    )
    if items is None:
        return INVALID
    networks = []
    for item in items:
        if not isinstance(item, str):
            report(f"must hold IP addresses and networks, not {describe(item)}", None)
            continue
        try:
            networks.append(str(ipaddress.ip_network(item)))
        except ValueError:
            report(_network_problem(item), item)
    return tuple(networks) if len(networks) == len(items) else INVALID


def _network_problem(text: str) -> str:
    shown = f'"{printable(text)}"'
    if text == "*":
        return f'{shown} must be written as networks; everybody is ["0.0.0.0/0", "::/0"]'
    try:
        return f'{shown} is an address within a network: write "{ipaddress.ip_network(text, strict=False)}"'
    except ValueError:
        return f'{shown} must be an IP address or a network, such as "10.0.0.5" or "10.0.0.0/8"'


def _path(key: Key, value: object, folder: str, report: Report) -> object:
    if not isinstance(value, str):
        report(f"must be a path{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    problem = _path_problem(value, folder)
    if problem:
        report(problem, None)
        return INVALID
    return absolute(value, folder)


def _paths(key: Key, value: object, folder: str, report: Report) -> object:
    if not isinstance(value, list):
        report(f"must be a list of paths{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    if len(value) > limits.MAX_PATHS:
        report(f"must be at most {limits.MAX_PATHS} paths, not {len(value)}", None)
        return INVALID
    paths = []
    for item in value:
        problem = (
            _path_problem(item, folder) if isinstance(item, str) else f"must hold paths, not {describe(item)}"
        )
        if problem:
            report(problem, item if isinstance(item, str) else None)
        else:
            paths.append(absolute(item, folder))
    return tuple(paths) if len(paths) == len(value) else INVALID


def _path_problem(text: str, folder: str) -> str | None:
    if not text:
        return "must be a path, not empty"
    path = absolute(text, folder)
    # The folder's name counts as well: it may have come from anywhere, and be no UTF-8 even.
    if not text.isprintable() or not path.isprintable():
        return f"must be a path of printable characters, not {describe(text if not text.isprintable() else path)}"
    if len(path.encode()) >= limits.MAX_PATH_LENGTH:
        return f"must be a path of fewer than {limits.MAX_PATH_LENGTH} bytes"
    return 'must be a folder of its own, not "/"' if path == "/" else None


def absolute(path: str, folder: str) -> str:
    """Return `path` without "." and "..", absolute; relative ones start at `folder`."""
    # normpath keeps two leading slashes, which POSIX allows to mean something else; Linux gives them no meaning
    return "/" + os.path.normpath(os.path.join(folder, path)).lstrip("/")


def _patterns(key: Key, value: object, report: Report) -> object:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list) or not all(isinstance(item, str) for item in patterns):
        report(f"must be a file name pattern or a list of them{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    for pattern in patterns:
        problem = "must be a path, not empty" if not pattern else None
        if not pattern.isprintable():
            problem = f"must be a path of printable characters, not {describe(pattern)}"
        if problem:
            report(problem, pattern)
            return INVALID
    return tuple(patterns)


def _mount_path(key: Key, value: object, report: Report) -> object:
    problem = path_problem(value) if isinstance(value, str) else "must be a path"
    if problem is None:
        return value
    shorter = value.rstrip("/") or "/" if isinstance(value, str) else ""
    hint = f' (write "{shorter}")' if shorter and shorter != value and path_problem(shorter) is None else ""
    report(f"{problem}{'' if hint else _such_as(key)}, not {describe(value)}{hint}", None)
    return INVALID


def _fallback(key: Key, value: object, report: Report) -> object:
    if isinstance(value, str) and value.startswith("@"):
        problem = path_problem(value)
    elif isinstance(value, str):
        problem = _below_root_problem(value)
    else:
        problem = "must be text"
    if problem is None:
        return value
    report(f"{problem}{_such_as(key)}, not {describe(value)}", None)
    return INVALID


def _below_root_problem(text: str) -> str | None:
    if not text.isprintable() or not {"", ".", ".."}.isdisjoint(text.split("/")):
        return 'must be "@" and a mount\'s name, or the path of a file below the root'
    if len(text.encode()) >= limits.MAX_PATH_LENGTH:
        return f"must be a path of fewer than {limits.MAX_PATH_LENGTH} bytes"
    return None


def _application(key: Key, value: object, report: Report) -> object:
    if (
        isinstance(value, str)
        and len(value) <= limits.MAX_APPLICATION_LENGTH
        and limits.APPLICATION.fullmatch(value) is not None
    ):
        return value
    report(f'must be "module:attribute"{_such_as(key)}, not {describe(value)}', None)
    return INVALID


def _env(key: Key, value: object, report: Report) -> object:
    if not isinstance(value, dict):
        report(f"must be a table of texts{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    valid = True
    size = 0
    for name, text in value.items():
        if limits.ENV_NAME.fullmatch(name) is None:
            report(f'a variable\'s name must be letters, digits and "_", not "{printable(name)}"', None)
            valid = False
        elif not isinstance(text, str):
            form = f' (write "{text}")' if type(text) is int and abs(text) < 10**18 else ""
            report(f"the value of {printable(name)} must be text, not {describe(text)}{form}", None)
            valid = False
        elif "\0" in text:
            report(f"the value of {printable(name)} must not contain NUL", None)
            valid = False
        else:
            size += len(name) + len(text.encode()) + 2
    if len(value) > limits.MAX_ENV_ENTRIES or size > limits.MAX_ENV_BYTES:
        report(
            f"must be at most {limits.MAX_ENV_ENTRIES} variables and {limits.MAX_ENV_BYTES} bytes in all",
            None,
        )
        valid = False
    return dict(value) if valid else INVALID


# --- lists and tables of texts ------------------------------------------------------------------------------
def _choices(key: Key, value: object, report: Report) -> object:
    words = ", ".join([f'"{choice}"' for choice in key.choices])
    if not isinstance(value, list):
        hint = f" (write [{value!r:.100}])".replace("'", '"') if value in key.choices else _such_as(key)
        report(f"must be a list of {words}, not {describe(value)}{hint}", None)
        return INVALID
    valid = True
    for number, item in enumerate(value):
        if not isinstance(item, str) or item not in key.choices:
            report(f"must hold {words} only, not {describe(item)}", item if isinstance(item, str) else None)
            valid = False
        elif item in value[:number]:
            report(f'"{item}" is there twice', item)
            valid = False
    return tuple(value) if valid else INVALID


def _names(key: Key, value: object, report: Report) -> object:
    if not isinstance(value, list):
        report(f"must be a list of file names{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    if len(value) > limits.MAX_INDEX_NAMES:
        report(f"must be at most {limits.MAX_INDEX_NAMES} names, not {len(value)}", None)
        return INVALID
    valid = True
    for item in value:
        problem = _name_of_file_problem(item)
        if problem:
            report(problem, item if isinstance(item, str) else None)
            valid = False
    return tuple(value) if valid else INVALID


def _command(key: Key, value: object, report: Report) -> object:
    if isinstance(value, str):
        words = ", ".join(f'"{printable(word)}"' for word in value.split())
        report(f"must be a list, since no shell takes it apart: [{words}]", value)
        return INVALID
    if not isinstance(value, list):
        report(f"must be a list of a program and its arguments{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    if not 0 < len(value) <= limits.MAX_COMMAND:
        report(
            f"must hold a program and at most {limits.MAX_COMMAND - 1} arguments, not {len(value)} texts",
            None,
        )
        return INVALID
    valid = True
    for item in value:
        problem = _argument_problem(item)
        if problem:
            report(problem, item if isinstance(item, str) else None)
            valid = False
    if valid and not (value[0].startswith("/") or ("/" not in value[0] and value[0])):
        report(
            f'"{printable(value[0])}" must be a whole path, or the name of a program that is looked for in PATH',
            value[0],
        )
        valid = False
    return tuple(value) if valid else INVALID


def _argument_problem(item: object) -> str | None:
    if not isinstance(item, str):
        return f"must hold texts only, not {describe(item)}"
    if "\0" in item:
        return f'"{printable(item)}" has a NUL in it, which no program can be given'
    if len(item.encode("utf-8", "surrogatepass")) > limits.MAX_ARGUMENT:
        return f"an argument must be at most {limits.MAX_ARGUMENT} bytes"
    return None


def _name_of_file_problem(item: object) -> str | None:
    if not isinstance(item, str) or not item.isprintable() or not item:
        return f"must hold names of files, not {describe(item)}"
    if "/" in item:
        return f'"{printable(item)}" must be a file\'s name, without folders'
    if item.startswith("."):
        return f'"{printable(item)}" is hidden: files whose names start with a dot are not served'
    if len(item.encode()) > limits.MAX_FILE_NAME:
        return f"a file's name must be at most {limits.MAX_FILE_NAME} bytes"
    return None


#: Takes a table's key and its value (text): returns what is wrong with them, or None; and the key in its final form.
_Rule: TypeAlias = Callable[[str, str], tuple[str | None, str]]


def _texts(rule: _Rule, most: int) -> Callable[[Key, object, Report], object]:
    """Return the conversion of a table of texts, each of which `rule` judges."""

    def conversion(key: Key, value: object, report: Report) -> object:
        if not isinstance(value, dict):
            report(f"must be a table{_such_as(key)}, not {describe(value)}", None)
            return INVALID
        if len(value) > most:
            report(f"must have at most {most} entries, not {len(value)}", None)
            return INVALID
        table: dict[str, str] = {}
        valid = True
        for name, text in value.items():
            if not isinstance(text, str):
                problem: str | None = (
                    f'the value of "{printable(name)}" must be text{_such_as(key)}, not {describe(text)}'
                )
                final = name
            else:
                problem, final = rule(name, text)
                if problem is None and final in table:
                    problem = f'"{printable(final)}" is there twice'
            if problem:
                report(problem, name)
                valid = False
            else:
                table[final] = text
        return table if valid else INVALID

    return conversion


def _cache_rule(pattern: str, text: str) -> tuple[str | None, str]:
    if not pattern.isprintable() or not 0 < len(pattern) <= limits.MAX_PATTERN_LENGTH:
        return f"a pattern must be 1 to {limits.MAX_PATTERN_LENGTH} printable characters", pattern
    if len(limits.WILDCARD.findall(pattern)) > limits.MAX_WILDCARDS:
        return f'"{printable(pattern)}" must have at most {limits.MAX_WILDCARDS} times "*" or "**"', pattern
    if text and limits.HEADER_VALUE.fullmatch(text) is None:
        return (
            (
                f'the value for "{printable(pattern)}" must be a value of Cache-Control, such as "no-cache" or '
                f'"max-age=3600", not {describe(text)}'
            ),
            pattern,
        )
    return None, pattern


def _type_rule(suffix: str, text: str) -> tuple[str | None, str]:
    final = ("." + suffix.removeprefix(".")).lower()
    if limits.SUFFIX.fullmatch(final) is None:
        return f'"{printable(suffix)}" must be the end of a file\'s name, such as ".md"', final
    if limits.MEDIA_TYPE.fullmatch(text) is None:
        rule = 'must be a media type in lower case, such as "text/markdown"'
        return f'the value of "{printable(suffix)}" {rule}, not {describe(text)}', final
    return None, final


def _handler_rule(suffix: str, text: str) -> tuple[str | None, str]:
    final = "." + suffix.removeprefix(".")
    if limits.SUFFIX.fullmatch(final) is None:
        return f'"{printable(suffix)}" must be the end of a file\'s name, such as ".pl"', final
    if not text.startswith("/") or not text.isprintable() or len(text.encode()) >= limits.MAX_PATH_LENGTH:
        rule = 'must be the whole path of a program, such as "/usr/bin/perl"'
        return f'the value of "{printable(suffix)}" {rule}, not {describe(text)}', final
    return None, final


def _page_rule(status: str, text: str) -> tuple[str | None, str]:
    if limits.ERROR_STATUS.fullmatch(status) is None:
        return f'"{printable(status)}" must be a status from 400 to 599, or "4xx" or "5xx"', status
    parts = text.split("/")
    if not text.isprintable() or not {"", ".", ".."}.isdisjoint(parts):
        rule = 'must be a path below the root, such as "errors/404.html"'
        return f"the value of {status} {rule}, not {describe(text)}", status
    if len(text.encode()) >= limits.MAX_PATH_LENGTH:
        return f"the value of {status} must be a path of fewer than {limits.MAX_PATH_LENGTH} bytes", status
    return None, status


def _suffixes(key: Key, value: object, report: Report) -> object:
    if not isinstance(value, list):
        report(f"must be a list of file name suffixes{_such_as(key)}, not {describe(value)}", None)
        return INVALID
    if len(value) > limits.MAX_SUFFIXES:
        report(f"must be at most {limits.MAX_SUFFIXES} suffixes, not {len(value)}", None)
        return INVALID
    valid = True
    for item in value:
        if not isinstance(item, str) or limits.SUFFIX.fullmatch(item) is None:
            shown = f'"{printable(item)}"' if isinstance(item, str) else describe(item)
            report(
                f'must hold ends of file names, such as ".php", not {shown}',
                item if isinstance(item, str) else None,
            )
            valid = False
    return tuple(value) if valid else INVALID


def _file(key: Key, value: object, report: Report) -> object:
    if (
        isinstance(value, str)
        and (not value or {"", ".", ".."}.isdisjoint(value.split("/")))
        and value.isprintable()
        and len(value.encode()) < limits.MAX_PATH_LENGTH
    ):
        return value
    report(f"must be a file below the root{_such_as(key)}, without dots, not {describe(value)}", None)
    return INVALID


def _charset(key: Key, value: object, report: Report) -> object:
    if value == "" or (isinstance(value, str) and limits.CHARSET.fullmatch(value) is not None):
        return value
    report(f'must be the name of a character set{_such_as(key)}, or "", not {describe(value)}', None)
    return INVALID


# --- host names ---------------------------------------------------------------------------------------------
def _hosts(key: Key, value: object, report: Report) -> object:
    items = _list(key, value, report, "host names", limits.MAX_HOSTS_PER_VHOST, "names")
    if items is None:
        return INVALID
    hosts = []
    seen: set[str] = set()
    for item in items:
        if not isinstance(item, str):
            report(f"must hold host names only, not {describe(item)}", None)
            continue
        host = item.lower() if item.isascii() else item
        problem = f'"{printable(item)}" is there twice' if host in seen else host_problem(host)
        seen.add(host)
        if problem:
            report(problem, item)
        else:
            hosts.append(host)
    return tuple(hosts) if len(hosts) == len(items) else INVALID


def host_problem(host: str) -> str | None:
    """Say why `host` (lower case) can't be in a vhost's `hosts`, or None: a name, an IP address, "*.suffix"."""
    shown = f'"{printable(host)}"'
    name = host.removeprefix("*.")
    if not host:
        return "a host name must not be empty (write default = true for all hosts that nobody owns)"
    if not host.isascii():
        return f"{shown} must be written as punycode{_punycode(host)}"
    if host in ("*", "*.", "_"):
        return f"{shown} is no host name (write default = true for all hosts that nobody owns)"
    if "*" in name:
        return f'{shown}: a wildcard must be "*." and a name, such as "*.blog.example"'
    if "/" in host:
        return f"{shown} must be a host name, without scheme and path"
    if host.startswith("["):
        return _ipv6_problem(host, shown)
    if ":" in host:
        ip = normal_ip(host)
        return f'{shown} must be written "[{ip}]"' if ip else f"{shown} must be written without the port"
    return _name_problem(host, name, shown)


def _name_problem(host: str, name: str, shown: str) -> str | None:
    if host.endswith("."):
        return f'{shown} must be written without the final dot: "{printable(host[:-1])}"'
    if len(name) > limits.MAX_HOST_LENGTH:
        return f"{shown} must have at most {limits.MAX_HOST_LENGTH} characters"
    for label in name.split("."):
        if not label:
            return f"{shown} is no host name: there must be something before and between the dots"
        if limits.HOST_LABEL.fullmatch(label) is None:
            rule = 'must be 1 to 63 letters, digits, "-" or "_"'
            return f'{shown} is no host name: "{printable(label)}" {rule}'
    try:
        # What the scanner never finds in a request can't be configured; the label is for "*.1", which is no wildcard.
        authority(f"x.{name}".encode() if host != name else name.encode())
    except Refused:
        return f"{shown} is no host name: one that ends in a number must be an IPv4 address"
    return None


def _ipv6_problem(host: str, shown: str) -> str | None:
    try:
        normal, port = authority(host.encode())
    except Refused:
        return f'{shown} must be an IPv6 address in brackets, such as "[2001:db8::1]"'
    if port:
        return f'{shown} must be written without the port: "{normal}"'
    return None if host == normal else f'{shown} must be written "{normal}"'


def _punycode(host: str) -> str:
    """Propose the form to write, if the old IDNA of the standard library is sure of it."""
    star = "*." if host.startswith("*.") else ""
    try:
        form = host.removeprefix("*.").encode("idna").decode()
        sure = form.isprintable() and form.encode().decode("idna") == host.removeprefix("*.").lower()
    except UnicodeError:
        form, sure = "", False
    return f': "{star}{printable(form)}"' if sure else ' (a name that starts with "xn--")'


# --- phrases ------------------------------------------------------------------------------------------------
def _within(bounds: limits.Range | None) -> str:
    return f" from {bounds.low} to {bounds.high}" if bounds else ""


def _unit(key: Key) -> str:
    return f" {key.unit}" if key.unit not in ("", "uid", "gid", "port") else ""


def _such_as(key: Key) -> str:
    return f", such as {key.example}" if key.example else ""


def _list(key: Key, value: object, report: Report, things: str, most: int, short: str) -> list[object] | None:
    """Return `value` if it is a list of at most `most` items; else report that, and return None.

    What the items are is `things`, or, where it is plain what is meant, `short`.
    """
    if not isinstance(value, list):
        hint = f' (write ["{printable(value)}"])' if isinstance(value, str) else _such_as(key)
        report(f"must be a list of {things}, not {describe(value)}{hint}", None)
        return None
    if len(value) > most:
        report(f"must be at most {most} {short}, not {len(value)}", None)
        return None
    return value


_CONVERSIONS: dict[Kind, Callable[[Key, object, Report], object]] = {
    Kind.INTEGER: _integer,
    Kind.SECONDS: _number,
    Kind.NUMBER: _number,
    Kind.FLAG: _flag,
    Kind.CHOICE: _choice,
    Kind.IP: _ip,
    Kind.ADDRESS: _address,
    Kind.ADDRESSES: _addresses,
    Kind.PATTERNS: _patterns,
    Kind.HOSTS: _hosts,
    Kind.NETWORKS: _networks,
    Kind.MOUNT_PATH: _mount_path,
    Kind.FALLBACK: _fallback,
    Kind.APPLICATION: _application,
    Kind.ENV: _env,
    Kind.CHOICES: _choices,
    Kind.NAMES: _names,
    Kind.COMMAND: _command,
    Kind.SUFFIXES: _suffixes,
    Kind.FILE: _file,
    Kind.CACHE_CONTROL: _texts(_cache_rule, limits.MAX_CACHE_PATTERNS),
    Kind.TYPES: _texts(_type_rule, limits.MAX_TYPES),
    Kind.CHARSET: _charset,
    Kind.HANDLERS: _texts(_handler_rule, limits.MAX_HANDLERS),
    Kind.ERROR_PAGES: _texts(_page_rule, limits.MAX_ERROR_PAGES),
}
_WITH_FOLDER: dict[Kind, Callable[[Key, object, str, Report], object]] = {
    Kind.PATH: _path,
    Kind.PATHS: _paths,
}
