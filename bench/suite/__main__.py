"""Measure pyttpd and its peers: `make bench`, or one case: `make bench BENCH=wsgi-close`.

    .venv-bench/bin/python -m suite [--case NAME ...] [--peer NAME ...] [--rounds 5] [--seconds 0.5]

All peers of a case run at the same time and are measured in turns. In the first table servers have one core and the
client another, and all write access logs; in the second nobody writes them, in the third both cores are free. All
cases and peers are in the first one. The others have those cases that a bar is about, and the peers that it names:
all of everything takes three quarters of an hour. What is asked for by its name is measured in every table, with all
of its peers.

What comes out is in build/bench: results.json, tables.md, a plot of each case. It is written after each case, so a run
that was stopped leaves what it has. `make bench-docs` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from suite import household, machine, report
from suite.cases import CASES, Case, measure
from suite.figures import Options, Row, Study
from suite.peers import HERE


@dataclass(frozen=True, slots=True)
class Setting:
    """A table: whether all servers share one core, whether all write access logs, and the cases; None: all of them."""

    name: str
    pin: bool
    log: bool
    cases: tuple[str, ...] | None = None


SETTINGS = (
    Setting("one core, access logs", pin=True, log=True),
    Setting("one core, no logs", pin=True, log=False, cases=("wsgi", "wsgi-close", "asgi", "static-1k")),
    Setting("all cores, access logs", pin=False, log=True, cases=("wsgi", "wsgi-close")),
)


def versions(case: Case | Study) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Who is measured, and the commands that say of which version."""
    if isinstance(case, Case):
        return tuple((peer.name, peer.version) for peer in case.peers)
    return case.versions


def study(case: Study, options: Options) -> list[Row]:
    """Run a study. One that fails costs nobody else's figures."""
    try:
        return case.run(options)
    except (Exception, SystemExit) as error:
        print(f"    not measured: {error!r}", flush=True)
        return [Row("all", "pyttpd", "", failed=f"{type(error).__name__}: {error}")]


def main() -> None:
    """Measure, and write what was found."""
    cases = {case.name: case for case in CASES}
    settings = {setting.name: setting for setting in SETTINGS}
    peers = sorted({peer.name for case in CASES if isinstance(case, Case) for peer in case.peers})
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=list(cases), help="only these, in every table")
    parser.add_argument("--peer", nargs="+", choices=peers, help="only these, of wrk's cases")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a peer in a round")
    parser.add_argument("--setting", nargs="+", choices=list(settings), default=list(settings))
    parser.add_argument("--into", type=Path, default=HERE.parent / "build" / "bench")
    asked = parser.parse_args()
    with household.kept():
        run(asked, cases, settings)


def run(asked: argparse.Namespace, cases: dict[str, Case | Study], settings: dict[str, Setting]) -> None:
    """Measure what is asked for."""
    began = time.monotonic()
    results = report.Results(machine.describe() | SOURCE | {"client": machine.version(["wrk", "-v"])}, {})
    results.about |= {"rounds": str(asked.rounds), "seconds of a peer in a round": f"{asked.seconds:g}"}
    names = asked.case or list(cases)
    for name in names:
        for what, command in versions(cases[name]):
            results.about.setdefault(what, machine.version(list(command)))
    for setting in map(settings.__getitem__, asked.setting):
        options = Options(asked.rounds, asked.seconds, pin=setting.pin, log=setting.log)
        found = results.runs.setdefault(setting.name, {})
        for name in names:
            case = cases[name]
            first = setting.name == asked.setting[0]
            if isinstance(case, Study):
                if first:
                    print(f"{time.monotonic() - began:.0f} s: {case.title}", flush=True)
                    found[name] = study(case, options)
            elif asked.case or setting.cases is None or name in setting.cases:
                print(f"{time.monotonic() - began:.0f} s: {setting.name}: {case.title}", flush=True)
                whole = asked.case or setting.cases is None
                chosen = case.peers if whole else case.among(case.in_bars)
                if asked.peer:
                    chosen = tuple(peer for peer in chosen if peer.name in asked.peer)
                found[name] = measure(case, options, chosen, common_rate=case.common_rate and first)
            results.about["took"] = f"{time.monotonic() - began:.0f} s"
            report.write(asked.into, results)
    print((asked.into / "tables.md").read_text())
    print(f"written to {asked.into} after {results.about['took']}")


def commit() -> str:
    """The commit that is measured, if it is one."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


SOURCE = {"commit": commit()}


if __name__ == "__main__":
    main()
