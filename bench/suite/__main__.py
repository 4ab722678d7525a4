"""Measure pyttpd and its peers: `make bench`, or one case: `make bench BENCH=wsgi-close`.

    .venv-bench/bin/python -m suite [--case NAME ...] [--peer NAME ...] [--rounds 5] [--seconds 0.4]

All peers of a case run at the same time and are measured in turns. In the first table servers have one core and the
client another, and all write access logs; in the second nobody writes them, in the third both cores are free. All
cases and peers are in the first one. The others have those cases that a bar is about, and the peers that it names:
all of everything takes half an hour. What is asked for by its name is measured in every table, with all of its peers.

What comes out is in build/bench: results.json, tables.md, a plot of each case. It is written after each case, so a run
that was stopped leaves what it has, and says what is missing. `make bench-docs` puts it into docs/benchmarks.md and
README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from suite import household, machine, report
from suite.cases import CASES, Case, measured
from suite.figures import Figures, Options, Row, Study
from suite.peers import BODY, HELLO, HERE, Peer


@dataclass(frozen=True, slots=True)
class Setting:
    """A table: whether all servers share one core, whether all write access logs, and the cases; None: all of them."""

    name: str
    pin: bool
    log: bool
    cases: tuple[str, ...] | None = None

    def peers(self, case: Case) -> tuple[Peer, ...]:
        """Who of `case` is in it."""
        if self.cases is None:
            return case.peers
        return case.among(case.in_bars) if case.name in self.cases else ()


SETTINGS = (
    Setting("one core, access logs", pin=True, log=True),
    Setting("one core, no logs", pin=True, log=False, cases=("wsgi", "wsgi-close", "asgi", "static-1k")),
    # No ASGI: uvicorn with several processes on asyncio waits 40 ms in each answer (docs/benchmarks.md).
    Setting("all cores, access logs", pin=False, log=True, cases=("wsgi", "wsgi-close", "static-1k")),
)


def everything() -> list[str]:
    """All that `make bench` measures: where each part of it is found in the results. Studies are in the first table."""
    return [
        place(setting.name, case.name)
        for setting in SETTINGS
        for case in CASES
        if (setting.peers(case) if isinstance(case, Case) else setting is SETTINGS[0])
    ]


def place(setting: str, case: str) -> str:
    """A part of the results, in words."""
    return f"{case} ({setting})"


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
    parser.add_argument("--seconds", type=float, default=0.4, help="of a peer in a round")
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
    if BODY != HELLO:
        results.about["bytes of a WSGI or ASGI answer"] = f"{len(BODY):,}"
    results.missing = everything()
    others = machine.Others()
    names = asked.case or list(cases)
    for name in names:
        for what, command in versions(cases[name]):
            results.about.setdefault(what, machine.version(list(command)))

    def announce(what: Case | Study) -> None:
        print(f"{time.monotonic() - began:.0f} s: {setting.name}: {what.title}", flush=True)

    def keep(name: str, figures: dict[str, Figures] | list[Row]) -> None:
        results.runs.setdefault(setting.name, {})[name] = figures
        part = place(setting.name, name)
        results.missing = [each for each in results.missing if each != part or asked.peer or BODY != HELLO]
        write()

    def write() -> None:
        results.about |= {
            "took": f"{time.monotonic() - began:.0f} s",
            "used by others meanwhile": f"{others.share():.1%} of all cores",
        }
        report.write(asked.into, results)

    write()  # over what an earlier run has left
    for setting in map(settings.__getitem__, asked.setting):
        options = Options(asked.rounds, asked.seconds, pin=setting.pin, log=setting.log)
        first = setting.name == asked.setting[0]
        chosen = []
        for case in (cases[name] for name in names):
            if isinstance(case, Case):
                of_it = case.peers if asked.case else setting.peers(case)
                of_it = tuple(peer for peer in of_it if not asked.peer or peer.name in asked.peer)
                chosen += [(case, of_it)] if of_it else []
        for case, figures in measured(chosen, options, announce, common_rate=first):
            keep(case.name, figures)
        for case in (cases[name] for name in names):
            if isinstance(case, Study) and first:
                announce(case)
                keep(case.name, study(case, options))
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
