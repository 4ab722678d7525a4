"""PROTOCOL.md, and every constant that a document quotes, against the code."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from pyttpd.wire import document, messages

TOP = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md"), *TOP.glob("services/*/README.md")])
#: A row of a table whose first cell is a constant of ours and whose second is what it is said to be.
CONSTANT = re.compile(r"^\| `(pyttpd[a-z_.]*)\.([A-Z][A-Z_]+)` \| ([^|]+) \|", re.MULTILINE)
QUOTED = [
    (path.relative_to(TOP), *match.groups())
    for path in DOCUMENTS
    for match in CONSTANT.finditer(path.read_text(encoding="utf-8"))
]


def test_protocols_tables_are_the_codes() -> None:
    text = (TOP / "PROTOCOL.md").read_text(encoding="utf-8")
    assert text == document.fill(text), "run: python -m pyttpd.wire.document --write PROTOCOL.md"


def test_protocols_frame_is_the_codes() -> None:
    text = (TOP / "PROTOCOL.md").read_text(encoding="utf-8")
    assert f"a header of {messages.HEADER.size} bytes, a body of at most {messages.MAX_BODY} bytes" in text
    assert f"Now: {messages.VERSION}." in text


def test_constants_are_quoted() -> None:
    assert len(QUOTED) > 20


@pytest.mark.parametrize(("path", "module", "name", "value"), QUOTED, ids=str)
def test_a_quoted_constant_is_the_codes(path: Path, module: str, name: str, value: str) -> None:
    found = getattr(importlib.import_module(module), name)
    assert value.strip() == str(found), f"{path}: {module}.{name} is {found}"


def test_every_fault_has_a_line() -> None:
    """What the code raises as a reason stands in section 10."""
    text = (TOP / "PROTOCOL.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", text.partition("\n## 10.")[2], re.MULTILINE))
    pattern = re.compile(r'(?:RemoteProtocolError\(|\.fault\(|faults\.add\([^)"]*"?[a-z]*"?,)\s*"([a-z-]+)"')
    raised = {
        reason
        for source in (TOP / "src", *TOP.glob("services/*/src"))
        for path in source.rglob("*.py")
        for reason in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert raised == documented
