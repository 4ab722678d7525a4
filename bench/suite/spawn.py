"""How long a worker takes from the moment its prototype is asked for one, how long its first answer, and its memory.

What births take is what their supervisor has measured, and says of each in its log (`log_level = "debug"`). They follow
each other without a pause, as in a pool whose workers have all reached their age: one is asked for when the one that
the last has replaced is gone. Nobody asks anything of that tree, its metrics neither: its supervisor would fork for
that. A log tells 20 of its births a second, the first ones; so it goes on until it has told of enough.

Beside them, on the same core and in the same rounds, a Python that has imported as much forks a child that says at once
that it runs: what the machine takes for that, which nobody can be quicker than.

First answers and memory are of a pool of one, whose workers leave after their first request; and so are births after a
pause of half a second, in which others have had the caches.
"""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from suite import peers, tenants
from suite.figures import OURS, Limit, Options, Row, Study
from suite.machine import READY_WITHIN, SERVER_CORE, named, private_memory

#: So many workers are born in a round: of five rounds' births three are beyond p99.
BIRTHS = 60
#: A pool whose workers are replaced, one at a time, as soon as they are there; and one whose worker is replaced when it
#: has answered.
AGED = "max_workers = 2, max_age = 0.01, hard_age = 60"
SINGLE = "max_workers = 1, max_requests = 1"
#: First answers in a round: a supervisor takes half a second until it replaces who has given one.
ANSWERS = 1
READY = Limit(most=10.0)
BARE = "a bare fork of as large a Python"
KINDS = {"files": 'kind = "static"', "WSGI": 'kind = "wsgi"\napplication = "hello:app"'}
#: What is read of a log, and how often (s) it is looked at.
SAID = re.compile(rb" worker is ready worker=\d+ seconds=([\d.]+)\n")
LOOK = 0.005

TENANT = """
[vhost.t0]
hosts = ["127.0.0.1"]
uid = 20001
{kind}
root = "{root}"
access_log = "{log}"
log_level = "debug"
pool = {{ mode = "static", {pool} }}
"""
#: For each byte that it reads it forks, and writes how long (s) it was until its child had run.
FORKER = """
import gc, os, sys, time
import hello, pyttpd_vhost.prototype, pyttpd_vhost.kinds.static.kind, pyttpd_vhost.kinds.wsgi
gc.collect()
gc.freeze()
reader, writer = os.pipe()
while os.read(0, 1):
    began = time.monotonic()
    if not (pid := os.fork()):
        os.write(writer, b".")
        os._exit(0)
    os.read(reader, 1)
    print(time.monotonic() - began, flush=True)
    os.waitpid(pid, 0)
"""


@dataclass(slots=True)
class Tree:
    """A tree of one tenant: its port, its processes, and where it says what."""

    port: int
    pids: list[int]
    log: Path
    read: int = 0
    births: list[float] = field(default_factory=list)

    def look(self) -> None:
        """Add what its log says since the last time to `births` (ms)."""
        with open(self.log, "rb") as log:
            log.seek(self.read)
            text = log.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.read += len(whole)
        self.births += [1000 * float(each) for each in SAID.findall(whole)]


@contextlib.contextmanager
def tree(kind: str, options: Options, pool: str) -> Iterator[Tree]:
    """Run one with such a pool; some of its workers are there."""
    where: list[Path] = []

    def start(setting: peers.Setting) -> list[list[str]]:
        folder = peers.applications(setting)
        (folder / "index.html").write_bytes(tenants.HELLO)
        where.append(setting.folder / "output")
        log = "combined" if setting.log else "off"
        return peers.tree(setting, TENANT.format(kind=KINDS[kind], root=folder, log=log, pool=pool))

    peer = peers.Peer(OURS, start, peers.OUR_VERSION)
    with peers.running(peer, log=options.log, pin=options.pin) as (port, pids):
        one = Tree(port, pids, where[0])
        await_births(one, 2 if pool is AGED else 1)
        yield one


def await_births(one: Tree, count: int) -> None:
    """Wait until `one` has said of so many births."""
    end = time.monotonic() + READY_WITHIN
    one.look()
    while len(one.births) < count:
        if time.monotonic() > end:
            raise SystemExit(f"bench: {len(one.births)} workers of {count} were born")
        time.sleep(LOOK)
        one.look()


def births(kind: str, options: Options) -> list[float]:
    """Let a number of workers be born, one after the other; return what each took (ms)."""
    with tree(kind, options, AGED) as one:
        count = len(one.births)  # those that have been made at once
        await_births(one, count + BIRTHS)
        return one.births[count : count + BIRTHS]


def answers(one: Tree) -> tuple[list[float], list[float], list[float]]:
    """Let a number of workers answer once; return how long that took (ms), the memory of each then (MB), and how long
    the births of their successors took (ms).
    """
    answered, memory, first = [], [], len(one.births)
    for _ in range(ANSWERS):
        worker = only_worker(one)
        count = len(one.births)
        answered.append(tenants.first_byte(one.port, "127.0.0.1") * 1000)
        memory.append(private_memory([worker]) / tenants.MEGABYTE)
        await_births(one, count + 1)
    return answered, memory, one.births[first:]


def only_worker(one: Tree) -> int:
    """Wait until the predecessor of a pool's only worker is gone; return its pid."""
    end = time.monotonic() + READY_WITHIN
    while True:
        found = [pids for name, pids in named(one.pids).items() if re.fullmatch(r"w\d+:t0", name)]
        if len(found) == 1:
            return found[0][0]
        if time.monotonic() > end:
            raise SystemExit(f"bench: there are {len(found)} workers in a pool of one")
        time.sleep(LOOK)


@contextlib.contextmanager
def forker(options: Options) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Python that forks when it is asked to."""
    command = [peers.PYTHON, "-c", FORKER]
    with subprocess.Popen(
        ["taskset", "-c", SERVER_CORE, *command] if options.pin else command,
        cwd=peers.HERE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as process:
        yield process  # its end of input is the end of it


def forks(process: subprocess.Popen[bytes]) -> list[float]:
    """Let it fork as often as workers are born; return what each took (ms)."""
    assert process.stdin is not None
    assert process.stdout is not None
    took = []
    for _ in range(BIRTHS):
        process.stdin.write(b".")
        took.append(1000 * float(process.stdout.readline()))
    return took


def percentile(values: list[float], share: float) -> float:
    """The least of `values` that so great a share of them doesn't exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def measure(options: Options) -> list[Row]:
    """All of it in turns, round by round."""
    rows: dict[tuple[str, str], Row] = {}
    everything: dict[tuple[str, str], list[float]] = {}

    def note(figure: str, server: str, unit: str, values: list[float], bars: tuple[Limit, ...] = ()) -> None:
        row = rows.setdefault((figure, server), Row(figure, server, unit, bars=bars))
        row.values.append(statistics.median(values))

    def note_times(kind: str, server: str, values: list[float], bars: tuple[Limit, ...] = ()) -> None:
        note(f"worker ready, median: {kind}", server, "ms", values, bars)
        so_far = everything.setdefault((kind, server), [])
        so_far += values
        figure = f"worker ready, p99 of {options.rounds * BIRTHS}: {kind}"
        row = rows.setdefault((figure, server), Row(figure, server, "ms", bars=bars))
        row.values = [percentile(so_far, 0.99)]

    with contextlib.ExitStack() as stack:
        single = {kind: stack.enter_context(tree(kind, options, SINGLE)) for kind in KINDS}
        bare = stack.enter_context(forker(options))
        for _ in range(options.rounds):
            for kind in KINDS:
                note_times(kind, OURS, births(kind, options), (READY,))
                note_times(kind, BARE, forks(bare))
                answered, memory, alone = answers(single[kind])
                note(f"worker ready after a pause, median: {kind}", OURS, "ms", alone, (READY,))
                note(f"first answer of a worker: {kind}", OURS, "ms", answered)
                note(f"a worker that has answered, private: {kind}", OURS, "MB", memory)
            said = (f"{row.figure} ({row.server}) {row.values[-1]:.3g} {row.unit}" for row in rows.values())
            print("    " + ", ".join(said), flush=True)
    return list(rows.values())


STUDY = Study("spawn", "A worker is born", measure, ((OURS, peers.OUR_VERSION),))
