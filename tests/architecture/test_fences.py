"""The fences between roles: which package may import what (pyproject.toml's contracts), and how packages lie."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pyttpd
from pyttpd.roles import Role

TOP = Path(__file__).resolve().parents[2]
SERVICES = sorted(path.parent.name for path in TOP.glob("services/*/pyproject.toml"))
#: Third-party packages, and the only project that may depend on each.
OWNERS = {
    "prometheus-client": "pyttpd",
    "pyroute2": "pyttpd-init",
    "httptools": "pyttpd-vhost",
    "uvicorn": "pyttpd-vhost",
    "websockets": "pyttpd-vhost",
    "h11": "pyttpd-vhost",
    "click": "pyttpd-ctl",
    "rich": "pyttpd-ctl",
}


def project(folder: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def name_of(requirement: str) -> str:
    return re.split(r"[<>=~! ]", requirement, maxsplit=1)[0]


def test_no_fence_is_crossed() -> None:
    """import-linter, with the contracts of pyproject.toml; they are also part of `make lint`."""
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=TOP, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_service_for_each_role_and_the_operators_command() -> None:
    assert sorted([*(role.value for role in Role), "ctl"]) == SERVICES


@pytest.mark.parametrize("service", SERVICES)
class TestService:
    def test_folder_program_and_project_have_one_name(self, service: str) -> None:
        assert project(TOP / "services" / service)["name"] == f"pyttpd-{service}"
        packages = [path.parent.name for path in (TOP / "services" / service / "src").glob("*/__init__.py")]
        assert packages == [f"pyttpd_{service}"]
        assert (TOP / "services" / service / "src" / f"pyttpd_{service}" / "py.typed").exists()

    def test_it_can_be_started_as_a_module(self, service: str) -> None:
        main = "main" if service == "ctl" else "__main__"
        assert (TOP / "services" / service / "src" / f"pyttpd_{service}" / f"{main}.py").exists()

    def test_it_has_the_librarys_version_and_depends_on_exactly_that(self, service: str) -> None:
        table = project(TOP / "services" / service)
        assert table["version"] == pyttpd.__version__
        dependencies = table["dependencies"]
        assert isinstance(dependencies, list)
        assert f"pyttpd=={pyttpd.__version__}" in dependencies

    def test_it_has_what_a_maintainer_looks_for(self, service: str) -> None:
        for name in ("README.md", "requirements.lock", "tests"):
            assert (TOP / "services" / service / name).exists(), f"services/{service}/{name}"

    def test_its_own_tests_import_no_other_role(self, service: str) -> None:
        others = {f"pyttpd_{other}" for other in SERVICES if other != service}
        for path in (TOP / "services" / service / "tests").rglob("*.py"):
            assert not imported(path) & others, path


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a file imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_each_dependency_has_one_owner() -> None:
    for folder in (TOP, *(TOP / "services" / service for service in SERVICES)):
        table = project(folder)
        dependencies = table["dependencies"]
        assert isinstance(dependencies, list)
        for requirement in map(name_of, dependencies):
            assert requirement == "pyttpd" or OWNERS.get(requirement) == table["name"], (
                f"{table['name']}: {requirement}"
            )


def test_only_metrics_needs_the_librarys_dependency() -> None:
    """A role's process that serves no metrics itself (a worker) doesn't pay for it."""
    users = {
        str(path.relative_to(TOP / "src"))
        for path in (TOP / "src").rglob("*.py")
        if "prometheus_client" in imported(path)
    }
    assert users <= {"pyttpd/metrics.py"}


def test_no_package_is_without_an_init_file_and_no_stray_one_lies_above_a_package() -> None:
    """A namespace package would be found by accident, and a stray __init__.py breaks editable installs."""
    for source in (TOP / "src", *TOP.glob("services/*/src")):
        assert not (source / "__init__.py").exists(), source
        for path in source.rglob("*.py"):
            folder = path.parent
            while folder != source:
                assert (folder / "__init__.py").exists(), (
                    f"{folder} is no package, but {path.name} lies in it"
                )
                folder = folder.parent
    for above in (TOP, TOP / "services", *TOP.glob("services/*")):
        assert not (above / "__init__.py").exists(), above


def test_the_product_does_not_know_its_tests() -> None:
    for source in (TOP / "src", *TOP.glob("services/*/src")):
        for path in source.rglob("*.py"):
            assert not imported(path) & {"pytest", "support", "tests", "coverage", "hypothesis"}, path
