"""What scripts/native.py compiles."""

from __future__ import annotations

import ast
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/native.py"


def compiled() -> set[str]:
    """Return the modules that are compiled. (The script itself needs mypyc and setuptools to be imported.)"""
    for node in ast.parse(SCRIPT.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES":
            found: dict[str, tuple[str, ...]] = ast.literal_eval(node.value)
            return {f"{package}.{module}" for package, modules in found.items() for module in modules}
    raise AssertionError("scripts/native.py has no MODULES")
