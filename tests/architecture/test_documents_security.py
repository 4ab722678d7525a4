"""SECURITY.md: each promise names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
TEXT = (TOP / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:tests|services)/[a-z0-9_/]+\.py(?:::[A-Za-z0-9_]+)?)`", TEXT)))


def promises() -> list[list[str]]:
    """Return the rows of the table of promises, as cells."""
    section = TEXT.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return rows[2:]


def test_every_promise_names_a_test() -> None:
    assert len(promises()) > 15
    for promise, *shown in promises():
        assert any(".py" in cell for cell in shown), promise


@pytest.mark.parametrize("name", NAMED)
def test_a_named_test_exists(name: str) -> None:
    path, _, function = name.partition("::")
    tree = ast.parse((TOP / path).read_text(encoding="utf-8"))
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert not function or function in functions, f"{path} has no {function}"


def test_the_matrix_has_its_markers() -> None:
    assert TEXT.count("<!-- matrix:begin -->") == TEXT.count("<!-- matrix:end -->") == 1
