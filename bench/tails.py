"""Whose pauses are in the latencies at a common rate: the server's own, or those of whoever else is on its core?

    .venv-bench/bin/python bench/tails.py [--case asgi] [--peer NAME ...] [--rate 2400] [--rounds 9] [--stall 4]

As root. All peers of a case run and are asked in turns at one rate, as in `make bench`: first as they are; then,
started anew, with real-time priority, theirs and the client's (sched(7), SCHED_RR). Then nobody else on the machine
takes a core from them, so what is left is their own, on a busy machine too. With `--stall` somebody with a higher one
takes the servers' core for so many milliseconds ten times a second: what a pause that is none of their own does to
each.

Processes with real-time priority that wait for each other take turns otherwise than without: nobody who is woken up
takes the core from who runs. So of how a server's own processes get in each other's way this doesn't say all.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from suite import household
from suite.cases import CASES, Case, all_running
from suite.clients import Target, constant_rate, quantiles
from suite.figures import Options
from suite.machine import SERVER_CORE, family
from suite.peers import Peer

#: Real-time priorities.
SERVER, CLIENT, STALL = 20, 21, 22
#: A round, and how long the client rests afterwards (s): the kernel leaves one who spins with real-time priority 95 %
#: of a second, and what it takes then would be in the figures.
ROUND, REST = 0.4, 0.1
#: How often somebody takes the core with --stall (s).
STALL_EVERY = 0.1


def real_time(pids: list[int]) -> None:
    """Give `pids` and all below them real-time priority, all their threads."""
    for pid in family(*pids):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            for thread in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setscheduler(int(thread.name), os.SCHED_RR, os.sched_param(SERVER))


@contextlib.contextmanager
def first() -> Iterator[None]:
    """Be before everybody else for a round."""
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(CLIENT))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def stall(seconds: float) -> None:
    """Take the servers' core for so long, again and again."""
    os.sched_setaffinity(0, {int(SERVER_CORE)})
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(STALL))
    while True:
        time.sleep(STALL_EVERY - seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass


def measure(case: Case, peers: list[Peer], options: argparse.Namespace, *, alone: bool) -> None:
    """Ask each of `peers` in turns, and print how long its answers took (ms)."""
    took: dict[str, list[list[float]]] = {peer.name: [] for peer in peers}
    with all_running(peers, Options(options.rounds, ROUND, pin=True, log=True)) as servers:
        for name, why in servers.failed.items():
            print(f"    {name}: not measured: {why}")
        targets = {name: Target(one.port, case.path, case.bodies) for name, one in servers.there.items()}
        for target in targets.values():
            target.wait()
        for _ in range(options.rounds):
            for name, target in targets.items():
                if alone:
                    real_time(servers.there[name].pids)
                with first() if alone else contextlib.nullcontext():
                    found = constant_rate(target, options.rate, ROUND, case.connections, close=case.close)
                took[name].append(found.took)
                time.sleep(REST)
    print(
        f"{case.title}, {options.rate:.0f} requests/s, {'with real-time priority' if alone else 'as they are'} (ms):"
    )
    print(f"    {'':26} {'p50':>7} {'p99':>7} {'p99.9':>7}   p99 of each round: median, most")
    for name in targets:
        whole = [1000 * value for value in quantiles([each for one in took[name] for each in one]).values()]
        rounds = [1000 * quantiles(one)["p99"] for one in took[name]]
        print(f"    {name:26}", *(f"{value:7.2f}" for value in whole), end="   ")
        print(f"{statistics.median(rounds):.2f} {max(rounds):.2f}")


def main() -> None:
    """Measure, and print."""
    cases = {case.name: case for case in CASES if isinstance(case, Case)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=list(cases), default="asgi")
    parser.add_argument("--peer", nargs="+", help="only these")
    parser.add_argument("--rate", type=float, default=2400.0, help="requests/s")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stall", type=float, default=0.0, help="milliseconds")
    options = parser.parse_args()
    case = cases[options.case]
    peers = [peer for peer in case.peers if not options.peer or peer.name in options.peer]
    if not peers or not 0 <= options.stall < 1000 * STALL_EVERY:
        parser.error(
            f"peers are {', '.join(peer.name for peer in case.peers)}; a stall is shorter than 100 ms"
        )
    measure(case, peers, options, alone=False)
    measure(case, peers, options, alone=True)
    if options.stall:
        print(
            f"and somebody takes their core for {options.stall:g} ms, {1 / STALL_EVERY:.0f} times a second:"
        )
        other = multiprocessing.Process(target=stall, args=(options.stall / 1000,), daemon=True)
        other.start()
        measure(case, peers, options, alone=True)
        other.kill()
        other.join()


if __name__ == "__main__":
    with household.kept():
        main()
