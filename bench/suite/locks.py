"""What isolation costs: the whole tree beside the same worker accepting by itself, and each of the three locks.

All serve "Hello, world!" by WSGI and are measured in turns, on kept connections and on new ones, in another order in
each round. Nobody writes an access log, in whatever table this stands: what that costs is no lock's, and has a study of
its own. Each has a network namespace of its own, made for this: a rule of nftables holds for all packets
of a namespace, so that trees side by side would pay for each other's. A tree without a lock is the same program in an
environment that takes it away (unlocked.py); the egress rule is deleted when the tree stands. That a lock is there, or
isn't, is looked at before anything is measured.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

from pyttpd import namespaces

from pyttpd_init import egress
from suite import peers, unlocked
from suite.clients import Target, WrongAnswer, wrk
from suite.figures import OURS, Limit, Options, Row, Study
from suite.machine import named, processor_time
from suite.peers import Peer, Setting, running

ALONE = "the same worker by itself"
CONNECTIONS = 32
HELLO = {"127.0.0.1": b"Hello, world!"}
LOCKS = (unlocked.NAMESPACE, unlocked.CONFINEMENT, unlocked.EGRESS, unlocked.ALL)
KEPT, NEW = "kept connections", "a connection for each request"
#: The bar of the whole tree (issue 9).
BAR = Limit(ALONE, least=0.95)
WORKER = "w1:t0"


def without(lock: str) -> Callable[[Setting], list[list[str]]]:
    """A tree whose every process runs without `lock`."""

    def start(setting: Setting) -> list[list[str]]:
        (command,) = peers.pyttpd_wsgi(setting)
        return [[str(environment(setting.folder, lock)), *command[1:]]]

    return start


def environment(folder: Path, lock: str) -> Path:
    """Make an environment with all that is in ours, in which `lock` is left out; return its Python."""
    where = folder / "environment"
    venv.EnvBuilder(symlinks=True).create(where)
    (packages,) = (where / "lib").glob("python*/site-packages")
    ours = Path(next(path for path in sys.path if path.endswith("site-packages")))
    shutil.copy(unlocked.__file__, packages / "pyttpd_unlocked.py")
    (packages / unlocked.NAME).write_text(lock)
    line = f"import site; site.addsitedir({str(ours)!r}); import pyttpd_unlocked"
    (packages / "pyttpd_unlocked.pth").write_text(line + "\n")
    return where / "bin" / "python"


SERVERS = (
    Peer(OURS, peers.pyttpd_wsgi, peers.OUR_VERSION),
    Peer(ALONE, peers.worker_alone, peers.OUR_VERSION),
    *(Peer(f"pyttpd without {lock}", without(lock), peers.OUR_VERSION) for lock in LOCKS),
)


@contextlib.contextmanager
def inside(network: int) -> Iterator[None]:
    """Be in that network namespace, and so is what is started meanwhile."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.join_network_namespace(network)
        try:
            yield
        finally:
            namespaces.join_network_namespace(home)
    finally:
        os.close(home)


def standing(pids: list[int]) -> set[str]:
    """The locks of a tree's worker, in whose network namespace we are."""
    (worker,) = named(pids)[WORKER]
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{worker}/status").read_text().splitlines() if ":" in line
    )
    found = set()
    if os.readlink(f"/proc/{worker}/ns/net") != os.readlink("/proc/self/ns/net"):
        found.add(unlocked.NAMESPACE)
    if status["Seccomp"].strip() == "2":
        found.add(unlocked.CONFINEMENT)
    if egress.tables():
        found.add(unlocked.EGRESS)
    return found


def look(name: str, pids: list[int]) -> None:
    """Take the egress rule away if it is to be, and see that the locks are those that `name` says."""
    lock = name.removeprefix("pyttpd without ")
    if lock in (unlocked.EGRESS, unlocked.ALL):
        for table in egress.tables():
            egress.remove_egress(table=table)
    expected = set(LOCKS[:3]) - (set(LOCKS[:3]) if lock == unlocked.ALL else {lock})
    if (found := standing(pids)) != expected:
        raise SystemExit(f"bench: {name}: these locks stand: {', '.join(sorted(found)) or 'none'}")


def measure(options: Options) -> list[Row]:
    """All at the same time, in turns."""
    rows: dict[tuple[str, str], Row] = {}
    for figure in (KEPT, NEW):
        for peer in SERVERS:
            bars = (BAR,) if (figure, peer.name) == (KEPT, OURS) else ()
            rate, cost = f"{figure}: requests/s", f"{figure}: processor time of 1,000"
            rows[rate, peer.name] = Row(rate, peer.name, "1/s", bars=bars)
            rows[cost, peer.name] = Row(cost, peer.name, "ms")
    with contextlib.ExitStack() as stack:
        servers = {}
        for peer in SERVERS:
            network = namespaces.make_network_namespace(())
            stack.callback(os.close, network)
            with inside(network):
                port, pids = stack.enter_context(running(peer, log=False, pin=options.pin))
                target = Target(port, "/", HELLO)
                target.wait()
                if peer.name != ALONE:
                    look(peer.name, pids)
            servers[peer.name] = (network, target, pids)
        for number in range(options.rounds + 1):  # the first round warms up
            for figure in (KEPT, NEW):
                order = list(servers)
                random.Random(number).shuffle(order)
                for name in order:
                    network, target, pids = servers[name]
                    before = processor_time(*pids)
                    with inside(network):
                        load = wrk(
                            target, options.turn(number), CONNECTIONS, close=figure == NEW, pin=options.pin
                        )
                        target.check()
                    used = processor_time(*pids) - before
                    if load.errors:
                        raise WrongAnswer(f"{name}: {load.errors} wrong answers")
                    if number:
                        rows[f"{figure}: requests/s", name].values.append(load.rate)
                        rows[f"{figure}: processor time of 1,000", name].values.append(
                            1e6 * used / load.requests
                        )
                if number:
                    said = (
                        f"{name} {rows[f'{figure}: requests/s', name].values[-1]:,.0f}" for name in servers
                    )
                    print(f"    round {number}: {figure}: {', '.join(said)}", flush=True)
    return list(rows.values())


STUDY = Study(
    "locks", "What isolation costs, and each lock, without logs", measure, ((OURS, peers.OUR_VERSION),)
)
