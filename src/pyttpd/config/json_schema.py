"""The configuration's JSON schema (draft 2020-12), for editors: made from the schema by `pyttpd schema`, or

    python -m pyttpd.config.json_schema > docs/pyttpd.schema.json

It knows what one key and one table can know: names, types, bounds, choices, what is required. What several tables
must agree on, and the finer points of a value, are `pyttpd check`'s; so what the loader accepts is valid here, but not
the other way round.

In step with: values.py, which decides what each kind is.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pyttpd.config import limits
from pyttpd.config.keys import REQUIRED, Key, Kind, Table
from pyttpd.config.kind_keys import KIND_TABLES
from pyttpd.config.schema import SCHEMA, mount_table
from pyttpd.roles import METRICS_LISTENER

_TEXT = {"type": "string"}
_PATH = {"type": "string", "minLength": 1, "maxLength": limits.MAX_PATH_LENGTH - 1}
_TEXTS = {"type": "object", "additionalProperties": _TEXT}

#: What a value of each kind is; bounds, choices and the rest come from its key.
_KINDS: dict[Kind, dict[str, Any]] = {
    Kind.INTEGER: {"type": "integer"},
    Kind.SECONDS: {"type": "number"},
    Kind.NUMBER: {"type": "number"},
    Kind.FLAG: {"type": "boolean"},
    Kind.CHOICE: {},
    Kind.CHOICES: {"type": "array"},
    Kind.IP: _TEXT,
    Kind.ADDRESS: {"type": "string", "pattern": r":[0-9]{1,5}$"},
    Kind.ADDRESSES: {"type": "array", "items": {"type": "string", "pattern": r":[0-9]{1,5}$"}},
    Kind.NETWORKS: {"type": "array", "items": _TEXT},
    Kind.PATH: _PATH,
    Kind.PATHS: {"type": "array", "items": _PATH, "maxItems": limits.MAX_PATHS},
    Kind.PATTERNS: {"anyOf": [_PATH, {"type": "array", "items": _PATH}]},
    Kind.NAMES: {"type": "array", "items": _TEXT},
    Kind.SUFFIXES: {
        "type": "array",
        "items": {"type": "string", "pattern": "^[.]"},
        "maxItems": limits.MAX_SUFFIXES,
    },
    Kind.FILE: _TEXT,
    Kind.COMMAND: {
        "type": "array",
        "items": {"type": "string", "maxLength": limits.MAX_ARGUMENT},
        "minItems": 1,
        "maxItems": limits.MAX_COMMAND,
    },
    Kind.HOSTS: {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "uniqueItems": True,
        "maxItems": limits.MAX_HOSTS_PER_VHOST,
    },
    Kind.MOUNT_PATH: {"type": "string", "pattern": "^[/@][^%?# \\\\]*$", "maxLength": limits.MAX_MOUNT_PATH},
    Kind.FALLBACK: _TEXT,
    Kind.APPLICATION: {"type": "string", "pattern": "^[^:]+:[^:]+$"},
    Kind.ENV: _TEXTS | {"propertyNames": {"pattern": f"^{limits.ENV_NAME.pattern}$"}},
    Kind.CACHE_CONTROL: _TEXTS,
    Kind.TYPES: _TEXTS,
    Kind.HANDLERS: _TEXTS,
    Kind.ERROR_PAGES: _TEXTS,
    Kind.CHARSET: _TEXT,
}


def json_schema() -> dict[str, Any]:
    """Return the schema of one file: the main one, or one that it includes."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of pyttpd",
        **_table(SCHEMA),
    }


def document() -> str:
    """Return it as the text of docs/pyttpd.schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    properties = {key.name: _key(key) for key in table.keys}
    for below in table.tables:
        properties[below.name] = (
            _named(below) if below.named else _mounts(below) if below.listed else _table(below)
        )
    schema = {
        "description": table.doc,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
    required = [key.name for key in table.keys if key.default is REQUIRED]
    return schema | ({"required": required} if required else {})


def _mounts(table: Table) -> dict[str, Any]:
    """Return the schema of a list of mounts, each of which has the keys of its kind."""
    kinds = []
    for kind in KIND_TABLES:
        mount = _table(mount_table(kind))
        mount["properties"]["kind"] = mount["properties"]["kind"] | {"const": kind}
        kinds.append(mount)
    return {
        "description": f"{table.doc} Written as [[vhost.NAME.{table.name}]], once for each.",
        "type": "array",
        "items": {"oneOf": kinds},
        "maxItems": limits.MAX_MOUNTS,
    }


def _named(table: Table) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "description": f"{table.doc} Written as [{table.name}.NAME], once for each; a name is {limits.NAME_RULE}.",
        "type": "object",
        "patternProperties": {f"^{limits.NAME.pattern}$": _table(table)},
        "additionalProperties": False,
    }
    return schema | (
        {"propertyNames": {"not": {"const": METRICS_LISTENER}}} if table.name == "listen" else {}
    )


def _key(key: Key) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": _description(key)} | _KINDS[key.kind]
    if key.kind is Kind.CHOICE:
        schema["enum"] = list(key.choices)
    elif key.kind is Kind.CHOICES:
        schema["items"] = {"enum": list(key.choices)}
    if key.bounds is not None:
        schema |= {"minimum": key.bounds.low, "maximum": key.bounds.high}
    if key.default is not REQUIRED and key.default is not None and not key.default_text:
        schema["default"] = list(key.default) if isinstance(key.default, tuple) else key.default
    return schema


def _description(key: Key) -> str:
    unit = f" Unit: {key.unit}." if key.unit not in ("", "uid", "gid", "port") else ""
    default = f" Default: {key.default_text}." if key.default_text else ""
    example = f" Example: {key.name} = {key.example}" if key.example else ""
    return f"{key.doc}{unit}{default}{example}"


if __name__ == "__main__":
    sys.stdout.write(document())
