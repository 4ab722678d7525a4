"""What the documents say of the code: compared with the tables that the code goes by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyttpd.roles import METRICS_LISTENER_UID, ROLES, Channel, Role

TOP = Path(__file__).resolve().parents[2]


def document(name: str) -> str:
    path = TOP / name
    if not path.exists():
        pytest.fail(f"there is no {name}")
    return path.read_text()


def rows(text: str) -> dict[str, str]:
    """Return the rows of all Markdown tables by their first cell, without its emphasis."""
    found = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first = line.strip("|").split("|")[0].strip().strip("*`")
            found[first] = line
    return found


@pytest.mark.parametrize("role", list(Role))
def test_readmes_role_table_is_the_codes(role: Role) -> None:
    row = rows(document("README.md")).get(role.value)
    assert row, f"README.md has no row for {role.value}"
    assert re.search(rf"\b{ROLES[role].uid}\b", row), f"{role.value} has uid {ROLES[role].uid}: {row}"


@pytest.mark.parametrize("channel", list(Channel))
def test_architecture_names_every_channel_and_its_binder(channel: Channel) -> None:
    text = document("ARCHITECTURE.md")
    row = rows(text).get(channel.value)
    assert row, f"ARCHITECTURE.md has no row for the channel {channel.value}"
    binder = next(role for role, entry in ROLES.items() if channel in entry.binds)
    assert binder.value in row
    for role, entry in ROLES.items():
        if channel in entry.connects:
            assert role.value in row, f"{role.value} connects to {channel.value}: {row}"


def test_compose_has_every_role_under_its_uid() -> None:
    text = document("compose.yaml")
    for role in Role:
        assert re.search(rf"^  {role.value}(-[a-z]+)?:", text, re.MULTILINE), f"no service for {role.value}"
    for uid in (*(ROLES[role].uid for role in Role), METRICS_LISTENER_UID):
        assert re.search(rf"\b{uid}\b", text), f"nobody has uid {uid}"


@pytest.mark.parametrize("role", list(Role))
def test_each_role_has_a_contract_that_names_its_channels(role: Role) -> None:
    text = document(f"services/{role.value}/README.md")
    for channel in (*ROLES[role].binds, *ROLES[role].connects):
        assert f"`{channel.value}`" in text or f"{channel.value}/" in text, f"{channel.value} is not named"


def test_contributing_says_why_for_every_dependency() -> None:
    import tomllib

    text = document("CONTRIBUTING.md")
    for path in (TOP / "pyproject.toml", *TOP.glob("services/*/pyproject.toml")):
        for requirement in tomllib.loads(path.read_text())["project"]["dependencies"]:
            name = re.split(r"[<>=]", requirement)[0]
            assert name == "pyttpd" or f"**{name}**" in text, name
    for path in TOP.glob("requirements/*.in"):
        for line in path.read_text().splitlines():
            name = re.split(r"[<>=;]", line.partition("#")[0])[0].strip()
            assert not name or f"**{name}**" in text, name


def test_architecture_names_every_module_of_a_vhost() -> None:
    """The role with the most modules; a name in the table without a module is as wrong as a module without one."""
    text = document("ARCHITECTURE.md")
    listed = text[text.index("And of a vhost, below `services/vhost") :]
    package = TOP / "services/vhost/src/pyttpd_vhost"
    assert set(re.findall(r"`(\w+\.py)`", listed)) == {
        path.name for path in package.rglob("*.py") if not path.name.startswith("__")
    }


def test_readme_leads_to_every_page_of_docs() -> None:
    pages = {path.name for path in (TOP / "docs").glob("*.md")}
    assert pages
    assert set(re.findall(r"\]\(docs/(\w[\w-]*\.md)\)", document("README.md"))) == pages


def test_every_link_to_a_file_leads_somewhere() -> None:
    for path in [*TOP.glob("*.md"), *TOP.glob("docs/*.md"), *TOP.glob("services/*/README.md")]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.relative_to(TOP)}: {target}"
