"""The metrics that each role's contract lists, against those that a running tree serves."""

from __future__ import annotations

import http.client
import re
from collections.abc import Callable
from pathlib import Path

from pyttpd.roles import Role

from support.tree import Tree

TOP = Path(__file__).resolve().parents[2]


def served(tree: Tree, role: Role) -> set[str]:
    """Return the names of all families that `role` serves, also of those that have no sample yet."""
    url = tree.metrics_url(role.value, "static" if role is Role.VHOST else "")
    address, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", f"/{path}")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    return set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))


def documented(role: Role) -> set[str]:
    text = (TOP / f"services/{role.value}/README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `pyttpd_")]
    return {name for row in rows for name in re.findall(r"`(pyttpd_[a-z_]+)", row)}


def test_every_contract_lists_the_metrics_that_are_served(plant: Callable[..., Tree]) -> None:
    tree = plant(ordinary=True)
    for role in Role:
        assert documented(role) == served(tree, role), role
