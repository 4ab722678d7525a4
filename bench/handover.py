"""What a hand-over costs, by role: processor time for a connection with one request, beside nginx in front of granian.

    .venv-bench/bin/python bench/handover.py [--rounds 5] [--seconds 3] [--connections 32] [--unpinned] [--no-log]

Both sides serve at the same time and are measured in turns by the same client, as in `make bench BENCH=wsgi-close`: all
servers on one core, wrk on the other. Prints microseconds of processor time for each connection (user and system time
of the processes, by the name that they have in `ps`), medians, and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from suite import peers
from suite.cases import HELLO
from suite.clients import Target, wrk
from suite.machine import TICKS, family
from suite.peers import running

#: How the processes of a tree are called in `ps`, and which role that is.
ROLES = {"pyttpd-umaster": "umaster", "l:http": "listener", "w1:t0": "worker", "v:t0": "supervisor"}


def by_role(pids: list[int]) -> dict[str, float]:
    """Seconds of processor time of `pids` and all below them."""
    used: dict[str, float] = {}
    for each in [each for pid in pids for each in family(pid)]:
        try:
            text = Path(f"/proc/{each}/stat").read_text()
        except OSError:
            continue
        name = text[text.index("(") + 1 : text.rindex(")")]
        fields = text.rpartition(")")[2].split()
        role = ROLES.get(name, "others")
        used[role] = used.get(role, 0.0) + (int(fields[11]) + int(fields[12])) / TICKS
    return used


def main() -> None:
    """Start both, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--unpinned", action="store_true", help="servers and client on all cores")
    parser.add_argument("--no-log", action="store_true", help="without access logs")
    options = parser.parse_args()
    pin, log = not options.unpinned, not options.no_log
    costs: dict[str, list[dict[str, float]]] = {}
    rates: dict[str, list[float]] = {}
    with (
        running(peers.PYTTPD_WSGI, log=log, pin=pin) as ours,
        running(peers.NGINX_GRANIAN, log=log, pin=pin) as theirs,
    ):
        servers = {"pyttpd": ours, "nginx + granian": theirs}
        for port, _ in servers.values():
            Target(port, "/", HELLO).wait()
        for number in range(options.rounds + 1):  # the first one warms up
            for name, (port, pids) in servers.items():
                before = by_role(pids)
                load = wrk(
                    Target(port, "/", HELLO), options.seconds, options.connections, close=True, pin=pin
                )
                used = by_role(pids)
                if load.errors:
                    print(f"{name}: {load.errors} errors")
                if number:
                    requests = load.rate * options.seconds
                    cost = {role: 1e6 * (used[role] - before.get(role, 0.0)) / requests for role in used}
                    costs.setdefault(name, []).append(cost)
                    rates.setdefault(name, []).append(load.rate)
            if number:
                print(
                    f"round {number}: "
                    + "; ".join(
                        f"{name} {rates[name][-1]:,.0f}/s {sum(costs[name][-1].values()):.1f} us"
                        for name in servers
                    ),
                    flush=True,
                )
    for name in servers:
        total = statistics.median(sum(cost.values()) for cost in costs[name])
        parts = {role: statistics.median(cost[role] for cost in costs[name]) for role in costs[name][0]}
        shown = ", ".join(
            f"{role} {parts[role]:.1f}" for role in sorted(parts, key=lambda role: -parts[role])
        )
        print(f"{name}: {statistics.median(rates[name]):,.0f} connections/s, {total:.1f} us each ({shown})")
    for what, value in (
        (
            "connections/s",
            statistics.median(a / b for a, b in zip(rates["pyttpd"], rates["nginx + granian"], strict=True)),
        ),
        (
            "connections for a second of processor time",
            statistics.median(
                sum(b.values()) / sum(a.values())
                for a, b in zip(costs["pyttpd"], costs["nginx + granian"], strict=True)
            ),
        ),
    ):
        print(f"ratio of {what}: {value:.2f}")


if __name__ == "__main__":
    main()
