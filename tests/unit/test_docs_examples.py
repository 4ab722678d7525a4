"""The configurations in docs/fastcgi.md and docs/scgi.md are valid, each with what it leaves out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyttpd.config.loader import load

DOCS = Path(__file__).parents[2] / "docs"
BLOCKS = [
    pytest.param(page, block, id=f"{page}-{number}")
    for page in ("fastcgi", "scgi")
    for number, block in enumerate(
        re.findall(r"^```toml\n(.*?)^```$", (DOCS / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize(("kind", "block"), BLOCKS)
def test_examples_are_valid(kind: str, block: str, tmp_path: Path) -> None:
    if block[0] != "[":
        block = f"[vhost.wiki.{kind}]\n{block}"
    if (
        name := re.search(r"^\[+vhost\.([a-z]+)", block, re.MULTILINE)
    ) and f"[vhost.{name[1]}]\n" not in block:
        own = f'[vhost.{name[1]}]\nhosts = ["a.example"]\nuid = 20001\nroot = "/srv/a"\n'
        block = own + ("" if ".mount]]" in block else f'kind = "{kind}"\n') + block
    (tmp_path / "pyttpd.toml").write_text('[listen.http]\naddress = "0.0.0.0:80"\n' + block)
    mounts = {mount.path: mount.kind for mount in load(tmp_path).vhosts[0].mounts}
    # Others beside it are files, and folders that nobody may fetch.
    assert [each for each in mounts.values() if each != "static"] == [kind]


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 7
