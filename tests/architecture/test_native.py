"""What scripts/native.py compiles has to be such that it can be."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType

from support.native import compiled

PACKAGES = (
    "pyttpd",
    "pyttpd_init",
    "pyttpd_master",
    "pyttpd_umaster",
    "pyttpd_listener",
    "pyttpd_vhost",
    "pyttpd_ctl",
)


def modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                yield importlib.import_module(found.name)


def test_what_is_compiled_is_there() -> None:
    assert compiled() <= {module.__name__ for module in modules()}


def test_no_interpreted_class_inherits_from_a_compiled_one() -> None:
    """It could be made, but none of its objects: TypeError, "interpreted classes cannot inherit from compiled"."""
    names = compiled()
    for module in modules():
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if cls.__module__ == module.__name__ and module.__name__ not in names:
                bases = {
                    f"{base.__module__}.{base.__name__}"
                    for base in cls.__mro__[1:]
                    if base.__module__ in names
                }
                assert not bases, (
                    f"{module.__name__}.{cls.__name__} inherits from {bases}, and isn't compiled"
                )
