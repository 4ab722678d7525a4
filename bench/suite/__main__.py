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
from suite.cases import CASES, Figures, Options, measure
from suite.peers import HERE

#: The tables: whether all servers share one core, and whether all write access logs.
SETTINGS = {
    "one core, access logs": (True, True),
    "one core, no logs": (True, False),
    "all cores, access logs": (False, True),
}


def main() -> None:
    """Measure, and write what was found."""
    cases = {case.name: case for case in CASES}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=list(cases), default=list(cases))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--into", type=Path, default=HERE.parent / "build" / "bench")
    options = parser.parse_args()
    about = machine.describe()
    runs: dict[str, dict[str, dict[str, Figures]]] = {}
    for setting in options.settings:
        pin, log = SETTINGS[setting]
        found = runs.setdefault(setting, {})
        for name in options.case:
            print(f"{setting}: {cases[name].title}", flush=True)
            found[name] = measure(cases[name], Options(options.rounds, options.seconds, pin=pin, log=log))
    for name in options.case:
        for peer in cases[name].peers:
            about.setdefault(peer.name, machine.version(list(peer.version)))
    about |= {
        "client": machine.version(["wrk", "-v"]),
        "rounds": str(options.rounds),
        "seconds": f"{options.seconds:g}",
    }
    report.write(options.into, runs, cases, about)
    print(f"written to {options.into}")
    print((options.into / "tables.md").read_text())


if __name__ == "__main__":
    main()
