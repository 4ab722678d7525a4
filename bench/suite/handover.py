"""What a hand-over costs, by role: processor time for a connection with one request, from accept to close.

Beside the tree, the same worker accepting by itself (what it takes less is what handing over takes), and nginx in front
of granian. The supervisor's part is the access log's; where nobody writes one, it is nothing.
"""

from __future__ import annotations

import contextlib

from suite import peers
from suite.clients import Target, WrongAnswer, wrk
from suite.figures import OURS, Options, Row, Study
from suite.machine import named, running_time
from suite.peers import Peer, running

CONNECTIONS = 32
HELLO = {"127.0.0.1": b"Hello, world!"}
ALONE = "the same worker by itself"
SERVERS = (
    Peer(OURS, peers.pyttpd_wsgi, peers.OUR_VERSION),
    Peer(ALONE, peers.worker_alone, peers.OUR_VERSION),
    peers.NGINX_GRANIAN,
)
#: The tree's roles, by the names that they have in `ps`.
ROLES = {"l:http": "listener", "pyttpd-umaster": "umaster", "w1:t0": "worker", "v:t0": "supervisor"}
TOTAL, RATE = "a connection with one request: all processes", "connections/s"


def measure(options: Options) -> list[Row]:
    """All at the same time, in turns."""
    rows: dict[tuple[str, str], Row] = {}

    def note(figure: str, server: str, unit: str, value: float) -> None:
        rows.setdefault((figure, server), Row(figure, server, unit)).values.append(value)

    with contextlib.ExitStack() as stack:
        servers = {}
        for peer in SERVERS:
            port, pids = stack.enter_context(running(peer, log=options.log, pin=options.pin))
            target = Target(port, "/", HELLO)
            target.wait()
            servers[peer.name] = (target, pids)
        for number in range(options.rounds + 1):  # the first round warms up
            for name, (target, pids) in servers.items():
                processes = named(pids)
                before = {role: running_time(each) for role, each in processes.items()}
                load = wrk(target, options.turn(number), CONNECTIONS, close=True, pin=options.pin)
                used = {role: running_time(each) - before[role] for role, each in processes.items()}
                target.check()
                if load.errors:
                    raise WrongAnswer(f"{name}: {load.errors} wrong answers")
                if not number:
                    continue
                note(RATE, name, "1/s", load.rate)
                note(TOTAL, name, "us", 1e6 * sum(used.values()) / load.requests)
                if name == OURS:
                    for process, role in ROLES.items():
                        note(f"... {role}", name, "us", 1e6 * used[process] / load.requests)
            if number:
                said = (
                    f"{row.figure} ({row.server}) {row.values[-1]:,.0f} {row.unit}" for row in rows.values()
                )
                print(f"    round {number}: {', '.join(said)}", flush=True)
    return sorted(rows.values(), key=lambda row: (row.figure != RATE, row.figure != TOTAL))


STUDY = Study(
    "handover",
    "The hand-over of a connection, by role",
    measure,
    tuple((peer.name, peer.version) for peer in SERVERS),
)
