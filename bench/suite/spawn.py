"""How long a worker takes from the moment its prototype is asked for one, how long its first answer, and its memory.

A pool of one whose workers leave after their first request: each request is answered by a worker that has answered
none. How long that took to be ready is what its supervisor has measured (`pyttpd_vhost_worker_spawn_seconds`): the sum
is read before and after each.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import statistics
import time
from pathlib import Path

from suite import peers, tenants
from suite.clients import WrongAnswer
from suite.figures import OURS, Limit, Options, Row, Study
from suite.machine import READY_WITHIN, named, private_memory

#: So many workers are born in a round: a supervisor takes half a second until it orders the next one.
BIRTHS = 10
READY = Limit(most=10.0)
P99 = "worker ready, p99 of all rounds"
#: Where the tenants' metrics are, counted from the base port (pyttpd.roles, TENANT_METRICS_OFFSET).
TENANTS_METRICS = 10
KINDS = {"files": 'kind = "static"', "WSGI": 'kind = "wsgi"\napplication = "hello:app"'}

TENANT = """
[vhost.t0]
hosts = ["127.0.0.1"]
uid = 20001
{kind}
root = "{root}"
access_log = "{log}"
pool = {{ max_workers = 1, max_requests = 1 }}
"""


def starter(kind: str) -> peers.Peer:
    """A tree of one tenant of this kind."""

    def start(setting: peers.Setting) -> list[list[str]]:
        folder = peers.applications(setting)
        (folder / "index.html").write_bytes(tenants.HELLO)
        log = "combined" if setting.log else "off"
        return peers.tree(setting, TENANT.format(kind=KINDS[kind], root=folder, log=log))

    return peers.Peer(OURS, start, tenants.STUDY.versions[0][1])


def born(port: int) -> tuple[float, float]:
    """Return how many workers have become ready so far, and how long (s) all of them took together."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics/t0")
        text = connection.getresponse().read().decode()
    found = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        for part in ("count", "sum"):
            if name.startswith(f"pyttpd_vhost_worker_spawn_seconds_{part}"):
                found[part] = float(value)
    if len(found) != 2:
        raise WrongAnswer(f"no pyttpd_vhost_worker_spawn_seconds: {text[:200]!r}")
    return found["count"], found["sum"]


def workers(parents: list[int]) -> list[int]:
    """The workers that are children of these: of the tenant's supervisor (its keeper has the same name)."""
    found = []
    for parent in parents:
        for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            with contextlib.suppress(OSError):
                name = Path(f"/proc/{pid}/comm").read_text()
                if name[0] == "w" and name.strip().endswith(":t0"):
                    found.append(int(pid))
    return found


def measure(options: Options) -> list[Row]:
    """Births, one after the other, of each kind in turns."""
    figures = {
        f"{figure}: {kind}": Row(f"{figure}: {kind}", OURS, unit, bars=bars)
        for kind in KINDS
        for figure, unit, bars in (
            ("worker ready, median", "ms", (READY,)),
            (P99, "ms", (READY,)),
            ("first answer of a worker", "ms", ()),
            ("a worker that has answered, private", "MB", ()),
        )
    }
    all_ready: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with contextlib.ExitStack() as stack:
        trees = {
            kind: stack.enter_context(peers.running(starter(kind), log=options.log, pin=options.pin))
            for kind in KINDS
        }
        for _ in range(options.rounds):
            for kind, (port, pids) in trees.items():
                one = births(port, port + 1 + TENANTS_METRICS, pids)
                for figure, values in one.items():
                    figures[f"{figure}: {kind}"].values.append(statistics.median(values))
                all_ready[kind] += one["worker ready, median"]
                figures[f"{P99}: {kind}"].values = [percentile(all_ready[kind], 0.99)]
            said = (f"{name} {row.values[-1]:.3g} {row.unit}" for name, row in figures.items())
            print("    " + ", ".join(said), flush=True)
    return list(figures.values())


def percentile(values: list[float], share: float) -> float:
    """The least of `values` that so great a share of them doesn't exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def births(port: int, metrics: int, pids: list[int]) -> dict[str, list[float]]:
    """Let a number of workers be born, answer once, and go."""
    ready, answered, memory = [], [], []
    end = time.monotonic() + READY_WITHIN
    while not workers(family := named(pids).get("v:t0", [])):  # its port is open before the tenant is there
        if time.monotonic() > end:
            raise SystemExit("bench: there is no worker")
        time.sleep(0.02)
    count, took = born(metrics)
    for _ in range(BIRTHS):
        old = workers(family)
        answered.append(tenants.first_byte(port, "127.0.0.1") * 1000)
        memory += [private_memory([pid]) / tenants.MEGABYTE for pid in old[:1]]
        end = time.monotonic() + READY_WITHIN
        # Asked for when there is another one: a supervisor forks for who asks, which would be in what is measured.
        while not set(workers(family)) - set(old) or (now := born(metrics))[0] == count:
            if time.monotonic() > end:
                raise SystemExit("bench: no worker has followed the one that had answered")
            time.sleep(0.02)
        ready.append((now[1] - took) / (now[0] - count) * 1000)
        count, took = now
    return {
        "worker ready, median": ready,
        "first answer of a worker": answered,
        "a worker that has answered, private": memory,
    }


STUDY = Study("spawn", "A worker is born", measure, tenants.STUDY.versions)
