"""docs/limits.md against the schema: every limit is there, with its default, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyttpd.config.keys import Key, Kind, Table
from pyttpd.config.schema import SCHEMA

TOP = Path(__file__).resolve().parents[2]
#: Keys that limit nothing.
NO_LIMITS = {"proxy_protocol", "keepalive", "engine", "address", "backlog", "uid", "metrics_port"}


def _table(*path: str) -> Table:
    table: Table | None = SCHEMA
    for name in path:
        assert table is not None
        table = table.table(name)
    assert table is not None
    return table


TABLES = {"The limits of a listener": _table("listen"), "The limits of a tenant": _table("vhost", "http")}


def _rows(title: str) -> dict[str, list[str]]:
    section = (TOP / "docs/limits.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {cells[0].strip().removesuffix(" S").strip("`"): cells for cells in lines}


def _limits(table: Table) -> list[Key]:
    return [key for key in table.keys if key.name not in NO_LIMITS]


@pytest.mark.parametrize("title", TABLES)
def test_every_limit_has_its_row_and_no_other(title: str) -> None:
    assert sorted(_rows(title)) == sorted(key.name for key in _limits(TABLES[title]))


@pytest.mark.parametrize("title", TABLES)
def test_the_defaults_are_the_schemas(title: str) -> None:
    rows = _rows(title)
    for key in _limits(TABLES[title]):
        default = f"{key.default:g}" if key.kind in (Kind.SECONDS, Kind.NUMBER) else f"{key.default}"
        assert rows[key.name][1].strip() == (key.default_text or f"{default} {key.unit}".strip()), key.name


@pytest.mark.parametrize("title", TABLES)
def test_every_limit_has_a_reason(title: str) -> None:
    for name, cells in _rows(title).items():
        assert re.search(r"\w{3}", cells[3]), name
