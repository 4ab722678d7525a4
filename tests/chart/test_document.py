"""docs/kubernetes.md is for copying: its values are rendered, and pass every check that others have to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from pyttpd.roles import ROLES, Role

from support import podsecurity
from support.chart import Helm, Values
from support.images import TOP

TEXT = (TOP / "docs/kubernetes.md").read_text()
EXAMPLES: list[Values] = [
    yaml.safe_load(block.replace("REGISTRY", "registry.example"))
    for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_its_values_make_a_valid_pod(helm: Helm, number: int, tmp_path: Path) -> None:
    values = EXAMPLES[number]
    assert helm.lint(values, "v1.35.0") == []
    release = helm.render(values)
    assert {one.name for one in release.config(tmp_path).vhosts} == set(values["tenants"])
    assert podsecurity.evaluate(release.pod) == []


def test_it_has_the_chart_s_requests_and_limits(helm: Helm) -> None:
    """The table of what was measured is the values' reason, and must not lag behind them."""
    rows = {
        row[0].strip("` ").split("`")[0]: row[2:]
        for row in (
            line.strip("| ").split(" | ") for line in TEXT.splitlines() if re.match(r"\|.*MiB \|", line)
        )
    }
    containers = helm.render(EXAMPLES[0]).containers()
    names = {
        "init": "init",
        "master": "master",
        "umaster": "umaster",
        "a listener": "listener-http",
        "a tenant: supervisor, prototype, two workers, before its application needs any": "vhost-blog",
    }
    assert set(rows) == set(names)
    for name, container in names.items():
        resources = containers[container]["resources"]
        requested, limit = (text.split(" (")[0] for text in rows[name])
        assert requested == f"{resources['requests']['cpu']}, {resources['requests']['memory']}"
        assert limit == resources["limits"]["memory"]


def test_its_table_has_the_uids() -> None:
    for role in (Role.MASTER, Role.UMASTER):
        assert f"| `{role.value}` | {ROLES[role].uid} |" in TEXT
