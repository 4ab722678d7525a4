"""Several runs of the chaos test in one table: `make chaos-sum`.

Each run writes `build/chaos/NAME.json` (what `stage.report` says), the same as text, with every connection that was
lost and whose it was, and the tree's log. The bar is for several runs together: at least BAR events of each kind, and
no violation in any run.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
FOLDER = TOP / "build/chaos"
#: Events of each kind that there have to be (issue "Nothing lost").
BAR = 200
#: What a run was of: these folders' content.
PRODUCT = ("src", "services")


def product() -> str:
    """Return what identifies the product's code: changes of tests and documents leave it as it is."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *words], cwd=TOP, capture_output=True, text=True)

    trees = git("rev-parse", *(f"HEAD:{folder}" for folder in PRODUCT))
    if trees.returncode:
        return "unknown"
    changed = git("diff", "--quiet", "HEAD", "--", *PRODUCT).returncode
    return " ".join(line[:8] for line in trees.stdout.split()) + (", changed" if changed else "")


def write(found: dict[str, Any], name: str, log: str) -> None:
    """Keep what a run has found, in FOLDER."""
    from chaos.stage import table

    FOLDER.mkdir(parents=True, exist_ok=True)
    found = {"name": name, "product": product(), **found}
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1))
    violations = "".join(f"VIOLATION {text}\n" for text in found["violations"])
    lost = "\n".join(found["lost"])
    (FOLDER / f"{name}.txt").write_text(
        f"{table(found)}\n\n{violations}\nlost, and whose they were:\n{lost}\n"
    )
    (FOLDER / f"{name}.log").write_text(log)


def add(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sum of several runs, in the form of one."""
    deeds: dict[str, dict[str, Any]] = {}
    clients: dict[str, dict[str, Any]] = {}
    for run in runs:
        for name, row in run["deeds"].items():
            into = deeds.setdefault(name, {"action": row["action"], "waits": []})
            _add(into, row)
        for kind, row in run["clients"].items():
            into = clients.setdefault(kind, {"longest": 0.0})
            longest = max(into["longest"], row["longest"])
            _add(into, row)
            into["longest"] = longest
    return {"deeds": deeds, "clients": clients, "retired": sum(run["retired"] for run in runs)}


def _add(into: dict[str, Any], row: dict[str, Any]) -> None:
    for name, value in row.items():
        if not isinstance(value, str):
            into[name] = into[name] + value if name in into else value


def short(total: dict[str, Any]) -> list[str]:
    """Return the kinds of events of which there are fewer than BAR, in words."""
    from chaos.schedule import Action

    counts = Counter({action.value: 0 for action in Action})
    for row in total["deeds"].values():
        counts[row["action"]] += row["times"]
    counts["retirement"] = total["retired"]
    return [f"{count} of {name}" for name, count in sorted(counts.items()) if count < BAR]


def main(names: list[str]) -> int:
    from chaos.stage import table

    files = [Path(name) for name in names] or sorted(FOLDER.glob("*.json"))
    runs = [json.loads(file.read_text()) for file in files]
    for run in runs:
        print(
            f"{run['name']:<16} {run['seconds']:>6g} s {run['events']:>5} events, {run['pairs']} of them pairs, "
            f"{len(run['violations'])} violations; code {run['product']}"
        )
    total = add(runs)
    print(f"\n{table(total)}\n")
    violations = [f"{run['name']}: {text}" for run in runs for text in run["violations"]]
    for text in violations:
        print("VIOLATION", text)
    few = short(total)
    for text in few:
        print(f"only {text}: {BAR} are the bar")
    print(f"{len(runs)} runs, {len(violations)} violations")
    return 1 if violations or few else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
