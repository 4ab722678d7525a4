"""The matrix of SECURITY.md: attempt x lock, made by trying. `cd tests && python -m hostile.matrix [--write FILE] ...`

Each column is a set of outcomes: the tenant behind no lock, behind each alone, behind all; and further ones from JSON
files (`--column "compose=outcomes.json"`), as a running tree's tenant has found them out (attempts.py, `application`).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hostile.attempts import ATTEMPTS
from hostile.stage import ALL, EVERYBODY, NONE, TENANT, Lock, Outcomes, play

BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
MARKS = {"SUCCEEDED": "**yes**", "refused": "no", "not applicable": "-"}
GROUPS = {
    "descriptors": "Descriptors that were handed over, turned round",
    "sockets": "Sockets of one's own",
    "entries": "Other ways into the kernel",
    "processes": "Other processes",
    "files": "Files, sockets and channel directories",
    "privileges": "Privileges",
}
INTRODUCTION = """\
Made by `cd tests && python -m hostile.matrix --write ../SECURITY.md`. A cell says whether the attempt succeeds for a
tenant's process behind only that lock: **yes**, no, or - where the kernel offers nothing to try it on."""


def columns() -> dict[str, Outcomes]:
    """Try everything as a tenant: behind nothing, each lock alone, and all of them."""
    tried = {"no lock": play(TENANT, NONE)}
    for lock in Lock:
        tried[lock.value] = play(TENANT, frozenset({lock}))
    tried["all"] = play(TENANT, ALL)
    return tried


def roles() -> dict[str, Outcomes]:
    """Try everything as each of our own roles behind all locks."""
    return {f"{who.name}, all": play(who, ALL) for who in EVERYBODY if who is not TENANT}


def render(tried: dict[str, Outcomes]) -> str:
    """Return the table in Markdown."""
    lines = [f"| attempt | {' | '.join(tried)} |", "| --- |" + " :-: |" * len(tried)]
    for group, title in GROUPS.items():
        lines.append(f"| *{title}* |" + " |" * len(tried))
        for attempt in (each for each in ATTEMPTS.values() if each.group == group):
            cells = []
            for outcomes in tried.values():
                outcome = outcomes.get(attempt.name)
                cells.append(MARKS[outcome["outcome"]] if outcome else "-")
            lines.append(f"| {attempt.name}: {attempt.text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(file: Path, table: str) -> None:
    """Put the table between the markers of `file`. Raises ValueError if it has none."""
    text = file.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{file} has no {BEGIN} ... {END}")
    file.write_text(f"{before}{BEGIN}\n{INTRODUCTION}\n\n{table}\n{END}{after}", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Print the matrix; return 1 if an attempt succeeds behind all locks."""
    parser = argparse.ArgumentParser(prog="python -m hostile.matrix", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="put it between the markers of FILE as well"
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="a further column, outcomes as JSON",
    )
    options = parser.parse_args(arguments)
    tried = columns() | roles()
    for name, _, file in (column.partition("=") for column in options.column):
        tried[name] = json.loads(Path(file).read_text(encoding="utf-8"))
    table = render(tried)
    print(table)
    if options.write:
        write(options.write, table)
    closed = [name for name in tried if name.endswith("all")] + [c.partition("=")[0] for c in options.column]
    through = [
        f"{name}: {a}" for name in closed for a, o in tried[name].items() if o["outcome"] == "SUCCEEDED"
    ]
    for each in through:
        print(f"succeeded behind all locks: {each}", file=sys.stderr)
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
