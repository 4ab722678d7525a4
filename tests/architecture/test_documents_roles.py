"""README's role table and ARCHITECTURE's states, held to the code and to compose.yaml beyond uids and binders."""

from __future__ import annotations

import enum
import re
from pathlib import Path

import pytest

from pyttpd.roles import METRICS_LISTENER_OFFSET, METRICS_LISTENER_UID, ROLES, TENANT_METRICS_OFFSET, Role

from pyttpd_listener.listener import State as Offered
from pyttpd_vhost.http.connection import State as Served
from pyttpd_vhost.policy import State as Worker

TOP = Path(__file__).resolve().parents[2]
BASE_PORT = 9100


def role_table() -> dict[str, dict[str, str]]:
    """Return the rows of README's role table: by role, each cell by its column's title."""
    section = (TOP / "README.md").read_text(encoding="utf-8").partition("## Roles, rights and sockets")[2]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    titles = lines[0]
    return {
        cells[0].strip("* "): dict(zip(titles, cells, strict=True))
        for cells in lines[2:]
        if len(cells) == len(titles)
    }


def capabilities() -> dict[str, str]:
    """Return cap_add by service, of compose.yaml and of the templates that it extends."""
    found, service = {}, ""
    texts = [(TOP / name).read_text(encoding="utf-8") for name in ("compose.yaml", "tenant.yaml")]
    for line in "".join(texts).splitlines():
        if match := re.match(r"  ([a-z-]+):$", line):
            service = match[1]
        elif match := re.match(r"    cap_add: \[(.*)\]", line):
            found[service] = match[1]
    return found


@pytest.mark.parametrize("role", list(Role), ids=lambda role: role.value)
def test_the_role_tables_row_is_the_codes(role: Role) -> None:
    row = role_table()[role.value]
    entry = ROLES[role]
    assert set(re.findall(r"`([a-z]+)`", row["binds channels"])) == {each.value for each in entry.binds}
    assert set(re.findall(r"`([a-z]+)`", row["connects to"])) == {each.value for each in entry.connects}
    offset = TENANT_METRICS_OFFSET if entry.metrics_offset is None else entry.metrics_offset
    assert str(BASE_PORT + offset) in row["listens on (made by init)"]
    added = capabilities().get(role.value)
    assert row["capabilities in containers"] == (added or "none")


def test_the_metrics_listener_and_the_holder_are_in_the_table() -> None:
    table = role_table()
    assert str(METRICS_LISTENER_UID) in table["listener"]["uid"]
    assert str(BASE_PORT + METRICS_LISTENER_OFFSET) in table["listener"]["listens on (made by init)"]
    assert capabilities()["holder"] in table["holder (`net`)"]["capabilities in containers"]


@pytest.mark.parametrize(
    "state",
    [*(each.value for each in (*Offered, *Worker)), *(each.name for each in Served)],
)
def test_architecture_names_every_state_of_a_connection_and_a_worker(state: str) -> None:
    text = (TOP / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert f"`{state}`" in text


def test_architecture_names_no_state_that_there_is_not() -> None:
    text = (TOP / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## 7. The life of a connection")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([A-Za-z]+)` \|", section, re.MULTILINE))
    known: set[str] = set()
    for states in (Offered, Served):
        known |= values(states)
    assert documented == known


def values(states: type[enum.Enum]) -> set[str]:
    return {each.value if isinstance(each.value, str) else each.name for each in states}
