"""Run in .venv-compiled only: what follows in that run (scripts/test) says nothing if it isn't compiled there."""

from __future__ import annotations

import importlib
import subprocess

import pytest

from support.native import compiled


@pytest.mark.parametrize("module", sorted(compiled()))
def test_is_compiled(module: str) -> None:
    assert str(importlib.import_module(module).__file__).endswith(".so")


def test_is_hardened() -> None:
    library = importlib.import_module("pyttpd__mypyc").__file__
    assert library is not None
    shown = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--dyn-syms", library], capture_output=True, text=True, check=True
    ).stdout
    assert "BIND_NOW" in shown
    assert "__stack_chk_fail" in shown
