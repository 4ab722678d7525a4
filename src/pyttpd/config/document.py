"""The configuration's reference, made from the schema: `make docs`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pyttpd.config import limits
from pyttpd.config.keys import REQUIRED, Key, Kind
from pyttpd.config.kind_keys import KIND_TABLES, MOUNT_ONLY, SHORTHAND
from pyttpd.config.schema import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterable


_INTRODUCTION = f"""\
# Configuration

<!-- Made from the schema by `make docs`; a test holds the two together. -->

pyttpd reads one TOML file, or a folder with a `pyttpd.toml` in it; `include` brings in more files (at most
{limits.MAX_CONFIG_FILES:,}, and {limits.MAX_CONFIG_BYTES >> 20} MiB in all). Each named table stands in one of them,
once. Relative paths start at the folder of the file that they are written in. A key that is not in the tables below is
an error, and so is a value out of its bounds: `pyttpd check FILE` tells all errors at once, with file and line, and
starts nothing.

Editors can complete keys, show their meaning and mark mistakes while you write: `pyttpd schema` prints a JSON schema
([pyttpd.schema.json](pyttpd.schema.json)). Put it beside the configuration, and `#:schema pyttpd.schema.json` into its
first line; Taplo ("Even Better TOML" in VS Code, `taplo lsp` elsewhere) reads that.

Names of listeners and vhosts are {limits.NAME_RULE}.
Host names are written without port and final dot, in lower case or not; other than ASCII ones as punycode (`xn--...`).

```toml
[listen.http]
address = "0.0.0.0:80"

[vhost.blog]
hosts = ["blog.example", "*.blog.example"]
uid = 20001
kind = "wsgi"
root = "/srv/blog"
application = "site:app"
env = {{ DEBUG = "0" }}

[vhost.blog.pool]
max_workers = 8
max_requests = 10000

[vhost.shop]
hosts = ["shop.example"]
uid = 20002
root = "/srv/shop"

[[vhost.shop.mount]]
path = "/"
kind = "wsgi"
application = "shop:app"

[[vhost.shop.mount]]
path = "/assets"
kind = "static"
root = "/srv/shop/assets"
```
"""


def document() -> str:
    """Return the reference as Markdown."""
    parts = [_INTRODUCTION]
    for path, table in SCHEMA.walk():
        header = f"[[{path}]]" if table.listed else f"[{path}]"
        title = f"`{header}`" if path else "At the top of the main file"
        parts.append(f"## {title}\n\n{table.doc}\n\n{_rows(table.keys)}")
        if table.listed:
            parts.append(_kinds())
    return "\n".join(parts)


def _rows(keys: Iterable[Key]) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{key.name}` | {_value(key)} | {_default(key)} | {key.doc} |" for key in keys]
    return "\n".join(lines) + "\n"


def _kinds() -> str:
    """Say which keys a mount of each kind has beside its own."""
    parts = []
    for kind, table in KIND_TABLES.items():
        own = [key for key in table.keys if key in SHORTHAND or key.name in MOUNT_ONLY]
        others = [key for key in table.keys if key not in own]
        section = f"[vhost.NAME.{kind}]"
        link = section.lower().replace(".", "").strip("[]")
        more = f" The keys of [`{section}`](#{link}) as well." if others else ""
        parts.append(
            f'### With `kind = "{kind}"`\n\n{table.doc}{more}\n' + (f"\n{_rows(own)}" if own else "")
        )
    return "\n".join(parts)


def _value(key: Key) -> str:
    if key.kind is Kind.CHOICE:
        return " or ".join([f'`"{choice}"`' for choice in key.choices])
    text: str = key.kind.value
    if key.choices:
        text += ": " + ", ".join([f'`"{choice}"`' for choice in key.choices])
    if key.bounds is not None:
        text += f", {key.bounds.low} to {key.bounds.high}"
    if key.unit not in ("", "uid", "gid", "port", "s"):
        text += f" ({key.unit})"
    if key.default is REQUIRED or key.default_text:
        text += f", such as `{key.example}`" if key.example and key.bounds is None else ""
    return text


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "required"
    if key.default_text:
        return key.default_text
    if isinstance(key.default, bool):
        return "`true`" if key.default else "`false`"
    return f'`"{key.default}"`' if isinstance(key.default, str) else f"`{key.default}`"


if __name__ == "__main__":
    sys.stdout.write(document())
