"""A guide of docs/, read as what somebody does who follows it: files to write, commands to run and what they print.

    Write `PATH`...:       and a block: the file is made
    Add to `PATH`...:      and a block: the file is made longer
    ```console             "$ " begins a command, the lines below it are its output

Prose between is not looked at, and what stands in another block, such as a command with a choice in it, isn't done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
#: In the paragraph before a block that is a file's.
_FILE = re.compile(r".*\b(Write|Add to) `([^`]+)`", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Text:
    """Something to write into a file, or to add to it."""

    path: str
    text: str
    add: bool


@dataclass(frozen=True, slots=True)
class Command:
    """A command, and what the guide says that it prints."""

    command: str
    output: str


Step = Text | Command


def steps(text: str) -> list[Step]:
    """Return what a part of a guide has somebody do, in order."""
    found: list[Step] = []
    end = 0
    for fence in _FENCE.finditer(text):
        before, end = text[end : fence.start()], fence.end()
        kind, block = fence.groups()
        if kind == "console":
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append(Command(command, output))
        elif kind:
            file = _FILE.match(_paragraph(before))
            assert file is not None, f"which file is this? {block}"
            found.append(Text(file[2], block, file[1] == "Add to"))
    return found


def _paragraph(text: str) -> str:
    return text.rstrip().rpartition("\n\n")[2]


def section(text: str, title: str) -> str:
    """Return what stands below the heading `## title`, up to the next one of that level."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def write(folder: Path, text: Text) -> None:
    """Do what a Text says, below `folder`."""
    path = folder / text.path
    assert path.exists() == text.add, f"{text.path}: {'add to' if text.add else 'write'} it?"
    # A file of several parts is easier to read with a line between them.
    with open(path, "a", encoding="utf-8") as file:
        file.write(("\n" if text.add else "") + text.text)
