"""Measure pyttpd and its peers: `make bench`, or one case: `make bench BENCH=wsgi-close`.

    .venv-bench/bin/python -m suite [--case NAME ...] [--rounds 5] [--seconds 3] [--settings pinned unpinned ...]

All peers of a case run at the same time and are measured in turns. Servers have one core, the client another
(`pinned`); a second table has both free; each with access logs of all, and of none. What comes out is in
build/bench: results.json, tables.md, a plot of each case.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from suite import machine, report
from suite.cases import CASES, Case, measure
from suite.figures import Options, Study
from suite.peers import HERE

#: The tables: whether all servers share one core, and whether all write access logs.
SETTINGS = {
    "one core, access logs": (True, True),
    "one core, no logs": (True, False),
    "all cores, access logs": (False, True),
}


def versions(case: Case | Study) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Who is measured, and the commands that say of which version."""
    if isinstance(case, Case):
        return tuple((peer.name, peer.version) for peer in case.peers)
    return case.versions


def main() -> None:
    """Measure, and write what was found."""
    cases = {case.name: case for case in CASES}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=list(cases), default=list(cases))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--into", type=Path, default=HERE.parent / "build" / "bench")
    options = parser.parse_args()
    about = machine.describe()
    runs: report.Runs = {}
    for setting in options.settings:
        pin, log = SETTINGS[setting]
        asked = Options(options.rounds, options.seconds, pin=pin, log=log)
        found = runs.setdefault(setting, {})
        for name in options.case:
            case = cases[name]
            if isinstance(case, Case):
                print(f"{setting}: {case.title}", flush=True)
                found[name] = measure(case, asked)
            elif setting == options.settings[0]:
                print(f"{setting}: {case.title}", flush=True)
                found[name] = case.run(asked)
    for name in options.case:
        for what, command in versions(cases[name]):
            about.setdefault(what, machine.version(list(command)))
    about |= {
        "client": machine.version(["wrk", "-v"]),
        "rounds": str(options.rounds),
        "seconds": f"{options.seconds}",
    }
    report.write(options.into, runs, cases, about)
    print(f"written to {options.into}")
    print((options.into / "tables.md").read_text())


if __name__ == "__main__":
    main()
