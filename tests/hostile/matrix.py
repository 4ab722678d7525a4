"""The matrix of SECURITY.md, attempt x lock x form: `cd tests && python -m hostile.matrix [--write FILE]`.

The columns of the locks are made by trying, here and now: the tenant behind none, behind each alone, behind all,
and our own roles behind all. Those of the forms are what a tenant of a running tree has found out (attempts.py,
`application`); the tests that run one leave them in build/hostile-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from hostile.attempts import ATTEMPTS
from hostile.stage import ALL, EVERYBODY, NONE, TENANT, WITH_DATABASE, Lock, Outcomes, play

BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
MARKS = {"SUCCEEDED": "**yes**", "refused": "no", "not applicable": "-"}
#: The worst of several outcomes comes first.
WORST = tuple(MARKS)
GROUPS = {
    "descriptors": "Descriptors that were handed over, turned round",
    "sockets": "Sockets of one's own",
    "entries": "Other ways into the kernel",
    "processes": "Other processes",
    "files": "Files, sockets and channel directories",
    "privileges": "Privileges",
}
INTRODUCTION = """\
Made by `make test` and then `cd tests && python -m hostile.matrix --write ../SECURITY.md`. A cell says whether the
attempt succeeds: **yes**, no, or - where there is nothing to try it on. The first columns are a tenant's process behind
only that lock (and an ordinary uid), then behind all; then a tenant that is allowed a database, whose port is the
target's and whose address isn't; then our own roles, taken over, behind all; then a tenant in a running tree of each
form of deployment. In the pod a tenant has no namespace of its own and, as it was tried here, there is no policy:
what is refused there is refused by Landlock and seccomp alone."""
#: What the tests of running trees leave (tests/hostile/test_tree.py, tests/e2e/test_hostile_tenant.py,
#: tests/pod/test_hostile_pod.py).
FORMS = {
    "plain, root": "hostile-plain-root.json",
    "plain, root, with a database": "hostile-plain-root-database.json",
    "plain, ordinary user": "hostile-plain-ordinary-user.json",
    "compose": "hostile-compose.json",
    "compose, with a database": "hostile-compose-database.json",
    "pod": "hostile-pod.json",
}
BUILD = Path(__file__).parents[2] / "build"


def columns() -> dict[str, Outcomes]:
    """Try everything as a tenant: behind nothing, each lock alone, and all of them."""
    tried = {"no lock": play(TENANT, NONE)}
    for lock in Lock:
        tried[lock.value] = play(TENANT, frozenset({lock}))
    tried["all"] = play(TENANT, ALL)
    return tried


def roles() -> Outcomes:
    """Try everything as each of our own roles behind all locks; return the worst of it."""
    outcomes = [play(who, ALL) for who in EVERYBODY if who not in (TENANT, WITH_DATABASE)]
    return {
        name: min((each[name] for each in outcomes), key=lambda each: WORST.index(each["outcome"]))
        for name in ATTEMPTS
    }


def forms() -> dict[str, Outcomes]:
    """Return what tenants of running trees have found out, as far as the tests have been run."""
    files = {name: BUILD / file for name, file in FORMS.items()}
    return {
        name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()
    }


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
    parser = argparse.ArgumentParser(
        prog="python -m hostile.matrix",
        description="Try every attempt behind each lock; print what came of it.",
    )
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
    tried = columns()
    closed = {
        "all": tried["all"],
        "all, with a database": play(WITH_DATABASE, ALL),
        "our roles, all": roles(),
        **forms(),
    }
    for name, _, file in (column.partition("=") for column in options.column):
        closed[name] = json.loads(Path(file).read_text(encoding="utf-8"))
    table = render(tried | closed)
    print(table)
    if options.write:
        write(options.write, table)
    through = [
        f"{column}: {name}"
        for column, outcomes in closed.items()
        for name, each in outcomes.items()
        if each["outcome"] == "SUCCEEDED"
    ]
    for each in through:
        print(f"succeeded behind all locks: {each}", file=sys.stderr)
    return 1 if through else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
