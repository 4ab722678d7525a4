"""The configuration's reference, made from the schema: `make docs`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pyttpd.config import limits
from pyttpd.config.schema import REQUIRED, SCHEMA, Key, Kind

if TYPE_CHECKING:
    from pyttpd.config.schema import Table

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
```
"""


def document() -> str:
    """Return the reference as Markdown."""
    parts = [_INTRODUCTION]
    for path, table in SCHEMA.walk():
        parts.append(
            f"## {f'`[{path}]`' if path else 'At the top of the main file'}\n\n{table.doc}\n\n{_rows(table)}"
        )
    return "\n".join(parts)


def _rows(table: Table) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{key.name}` | {_value(key)} | {_default(key)} | {key.doc} |" for key in table.keys]
    return "\n".join(lines) + "\n"


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
