"""Where the time goes: `make profile`, or under another case: `make profile BENCH=wsgi-close`.

    .venv-bench/bin/python -m suite.profile [--case wsgi] [--seconds 5] [--no-logs] [--native]

A whole tree under the case's load; while it lasts, py-spy looks 200 times a second at each of its processes, one after
another. It reads them from outside (process_vm_readv, as root): confinement stays as it is, and the process isn't
stopped. What comes out is in build/profile/CASE: a flame graph of each process (open it in a browser, click to
zoom), and summary.txt: the processor time that each one used, and its lines by their own time, system calls in
them included.

`--native` names system calls and other C functions. For that py-spy stops a process each time it looks, which costs
most of its speed, and a process that is stopped looks busy wherever it was waiting. So its shares are worth less.
"""

from __future__ import annotations

import argparse
import linecache
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from suite import household
from suite.cases import CASES, Case
from suite.clients import Target, pinned, wrk
from suite.figures import OURS
from suite.machine import CLIENT_CORE, children, own_time
from suite.peers import HERE, Peer, running

SPY = Path(sys.executable).with_name("py-spy")
SAMPLES_PER_SECOND = 200
#: py-spy reads symbols first; the load lasts so much longer than what is looked at (s).
LEAD = 1
LINES = 20
NOTHING_SEEN = "No stack counts found"
#: Where the sources are that py-spy names.
SOURCES = (HERE.parent / "src", *sorted(HERE.parent.glob("services/*/src")))

#: What privileges.set_process_name was given, and the file that a process's graph is put into.
NAMES = (
    (re.compile(r"w\d+:(.+)"), r"worker-\1"),
    (re.compile(r"v:(.+)"), r"supervisor-\1"),
    (re.compile(r"p:(.+)"), r"prototype-\1"),
    (re.compile(r"x:(.+)"), r"exec-\1"),
    (re.compile(r"l:(.+)"), r"listener-\1"),
    (re.compile(r"(?:pyttpd-)?(.+)"), r"\1"),
)
_TITLE = re.compile(r"(.*) \(([\d,]+) samples?, [\d.]+%\)", re.DOTALL)
_PYTHON = re.compile(r" \(([^()]+\.py):(\d+)\)$")
_SVG = "{http://www.w3.org/2000/svg}"
_OFFSET, _WIDTH = (f"{{http://github.com/jonhoo/inferno}}{name}" for name in "xw")

SUMMARY = """{title}: {alone:,.0f} requests/s before, {least:,.0f} or more while a process was looked at.
Percentages are of a process's samples: taken where it ran, or was about to. All of them share a core, so one that has
woken another (in a send) often waits right there until that has run. Who does little has few samples.

"""


@dataclass(slots=True)
class Seen:
    """What was seen of one process: how much it did, and samples by line."""

    name: str
    cores: float
    samples: int
    own: Counter[str]

    def text(self) -> str:
        """Its lines, by their own time, with what stands there."""
        lines = [f"{self.name}: {100 * self.cores:.1f} % of a core, {self.samples} samples"]
        for where, count in self.own.most_common(LINES):
            lines.append(f"  {100 * count / self.samples:5.1f} %  {where}  {source(where)}".rstrip())
        return "\n".join(lines) + "\n"


def source(where: str) -> str:
    """What stands in a line, if it is Python's and can be found."""
    place = _PYTHON.search(where)
    if place is None:
        return ""
    found = (Path(folder) / place[1] for folder in (*sys.path, *map(str, SOURCES)))
    path = next((str(path) for path in found if path.is_file()), "")
    return linecache.getline(path, int(place[2])).strip()


def roles(runner: int) -> Iterator[tuple[str, int]]:
    """Name and pid of each process that serves: all but the runner and the keepers below it."""
    parents = children()
    waiting = [pid for keeper in parents.get(runner, []) for pid in parents.get(keeper, [])]
    while waiting:
        pid = waiting.pop(0)
        waiting += parents.get(pid, [])
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        pattern, form = next((pattern, form) for pattern, form in NAMES if pattern.fullmatch(name))
        yield pattern.sub(form, name), pid


@dataclass(frozen=True, slots=True)
class Frame:
    """A rectangle of a flame graph: samples from `begin` to `end`, so deep in the stack."""

    depth: float
    begin: int
    end: int
    title: str


def frames(graph: Path) -> list[Frame]:
    """The rectangles of a flame graph by inferno (py-spy's), from the outermost function inwards."""
    found = []
    for group in ElementTree.parse(graph).iter(f"{_SVG}g"):
        title, rect = group.findtext(f"{_SVG}title"), group.find(f"{_SVG}rect")
        parts = _TITLE.fullmatch(title or "")
        if parts is None or rect is None:
            continue
        begin = int(rect.attrib[_OFFSET])
        found.append(Frame(float(rect.attrib["y"]), begin, begin + int(rect.attrib[_WIDTH]), parts[1]))
    return sorted(found, key=lambda frame: (frame.begin, frame.depth))


def summed(graph: Path) -> Counter[str]:
    """Samples by line, or by C function and the line that called it."""
    own: Counter[str] = Counter()
    stack: list[Frame] = []
    names: list[str] = []
    for frame in frames(graph):
        while stack and stack[-1].end <= frame.begin:
            stack.pop()
            names.pop()
        python = _PYTHON.search(frame.title) is not None
        above = names[-1] if names else ""
        names.append(frame.title if python or not above else f"{frame.title} < {above.rpartition(' < ')[2]}")
        if stack:
            own[above] -= frame.end - frame.begin
        own[names[-1]] += frame.end - frame.begin
        stack.append(frame)
    return +own


def look(name: str, pid: int, seconds: int, folder: Path, *, native: bool) -> Seen:
    """Sample `pid` for `seconds`."""
    graph = folder / f"{name}.svg"
    command = [str(SPY), "record", "--pid", str(pid), "--native" if native else "--nonblocking"]
    command += ["--rate", str(SAMPLES_PER_SECOND), "--duration", str(seconds), "--output", str(graph)]
    before, begin = own_time(pid), time.monotonic()
    done = subprocess.run(pinned(command, CLIENT_CORE), capture_output=True, text=True, check=False)
    cores = (own_time(pid) - before) / (time.monotonic() - begin)
    if NOTHING_SEEN in done.stderr:  # it hasn't done anything: what it waits in, then
        command.append("--idle")
        done = subprocess.run(pinned(command, CLIENT_CORE), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"profile: {name} (pid {pid}): {done.stderr.strip()[-500:]}")
    own = summed(graph)
    return Seen(name, cores, own.total(), own)


def profile(case: Case, peer: Peer, folder: Path, *, seconds: int, log: bool, native: bool) -> str:
    """Leave a flame graph of each process of `peer` under `case` in `folder`; return the summary."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    with running(peer, log=log) as (port, pids), ThreadPoolExecutor(1) as pool:
        target = Target(port, case.path, case.bodies)
        target.wait()
        undisturbed = wrk(target, LEAD, case.connections, close=case.close, script=case.script).rate
        seen, rates = [], []
        for name, pid in roles(pids[0]):
            load = pool.submit(
                wrk, target, seconds + LEAD, case.connections, close=case.close, script=case.script
            )
            seen.append(look(name, pid, seconds, folder, native=native))
            rates.append(load.result().rate)
            print(f"    {seen[-1].text().splitlines()[0]}", flush=True)
        target.check()
    text = SUMMARY.format(
        title=case.title + (", access log" if log else ""), alone=undisturbed, least=min(rates)
    )
    text += "\n".join(each.text() for each in sorted(seen, key=lambda each: -each.cores))
    (folder / "summary.txt").write_text(text)
    return text


def main() -> None:
    """Profile one or several cases."""
    cases = {
        case.name: case
        for case in CASES
        if isinstance(case, Case) and any(peer.name == OURS for peer in case.peers)
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", nargs="+", choices=list(cases), default=["wsgi"])
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--no-logs", action="store_true", help="access logs off")
    parser.add_argument("--native", action="store_true", help="C functions and system calls by name")
    parser.add_argument("--into", type=Path, default=HERE.parent / "build" / "profile")
    options = parser.parse_args()
    with household.kept():
        for name in options.case:
            print(f"profile: {cases[name].title}", flush=True)
            ours = next(peer for peer in cases[name].peers if peer.name == OURS)
            folder = options.into / name
            text = profile(
                cases[name],
                ours,
                folder,
                seconds=options.seconds,
                log=not options.no_logs,
                native=options.native,
            )
            print(f"\n{text}\nwritten to {folder}")


if __name__ == "__main__":
    main()
