"""Run in .venv-compiled only: what follows in that run (scripts/test) says nothing if it isn't compiled there."""

from __future__ import annotations

import importlib

import pytest

from support.native import compiled


@pytest.mark.parametrize("module", sorted(compiled()))
def test_is_compiled(module: str) -> None:
    assert str(importlib.import_module(module).__file__).endswith(".so")
