"""What mortality costs, and what a bad neighbour does: the throughput of a tenant whose workers die all the time beside
one whose workers don't; and that of a neighbour beside an application that leaks, dies, deadlocks or loses children, as
a share of what it has beside one plain busy loop.

    .venv-bench/bin/python bench/pools.py [--rounds 3] [--seconds 5] [--max-requests 500] [--max-age 5]

All of the tree on core 1, so that all tenants have the same CPU limit; the clients (wrk) on core 0. In turns.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass

from suite import household, peers
from suite.clients import Target, wrk
from suite.peers import Peer, Setting, running

CONNECTIONS = 32
TENANT = """
[vhost.{name}]
hosts = ["{host}"]
uid = {uid}
kind = "wsgi"
root = "{folder}"
application = "{application}"
access_log = "off"
[vhost.{name}.pool]
max_workers = 2
{pool}
"""
EVIL = """
import os, threading, time
kept = []
def app(environ, start_response):
    match environ["PATH_INFO"]:
        case "/loop":
            until = time.monotonic() + 60
            while time.monotonic() < until: pass
        case "/leak": kept.append(bytes(1 << 20))
        case "/die": os._exit(1)
        case "/lose":
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        case "/deadlock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@dataclass(frozen=True)
class Tenant:
    """What stands in its table."""

    name: str
    host: str
    uid: int
    application: str
    pool: str


def tree(*tenants: Tenant) -> Peer:
    """A tree with these tenants."""

    def start(setting: Setting) -> list[list[str]]:
        folder = peers.applications(setting)
        (folder / "evil.py").write_text(EVIL)
        commands = peers.tree(
            setting, "".join(TENANT.format(folder=folder, **asdict(each)) for each in tenants)
        )
        path = setting.folder / "pyttpd.toml"
        path.write_text("grace = 1.0\n" + path.read_text())  # what hangs is killed soon
        return commands

    return Peer("pyttpd", start, peers.OUR_VERSION)


def measure(port: int, seconds: float) -> float:
    """Return requests per second of the tenant that is measured."""
    target = Target(port, "/", {"127.0.0.1": b"Hello, world!"})
    target.wait()
    load = wrk(target, seconds, CONNECTIONS, close=False)
    if load.errors:
        print(f"{load.errors} wrong answers", flush=True)
    return load.rate


def mortality(options: argparse.Namespace) -> None:
    """Print the throughput with mortal workers as a share of that with immortal ones."""
    pools = {
        "immortal": "max_age = 0",
        "mortal": f"max_requests = {options.max_requests}\nmax_age = {options.max_age}",
    }
    results: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(options.rounds):
        for name, pool in pools.items():
            tenant = Tenant(name, "127.0.0.1", 20001, "hello:app", pool)
            with running(tree(tenant), log=False) as (port, _):
                results[name].append(measure(port, options.seconds))
        print("requests/s:", *(f"{name} {values[-1]:.0f}" for name, values in results.items()), flush=True)
    medians = {name: statistics.median(values) for name, values in results.items()}
    print(f"mortal / immortal: {medians['mortal'] / medians['immortal']:.2f}")


class Nuisance(threading.Thread):
    """Asks the evil tenant for one thing, ten times a second."""

    def __init__(self, port: int, path: str) -> None:
        super().__init__(daemon=True)
        self.request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": "evil"})
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.1):
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(self.request, timeout=1).close()


def neighbours(options: argparse.Namespace) -> None:
    """Print a neighbour's throughput beside each kind of evil, as a share of that beside a busy loop."""
    results: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for path in ("/loop", "/leak", "/die", "/lose", "/deadlock"):
            limits = "max_memory = 67_108_864\nrequest_timeout = 2.0"
            if path == "/loop":
                limits = "max_age = 0\nrequest_timeout = 0"
            good = Tenant("good", "127.0.0.1", 20001, "hello:app", "")
            evil = Tenant("evil", "evil", 20002, "evil:app", limits)
            with running(tree(good, evil), log=False) as (port, _):
                nuisance = Nuisance(port, path)
                nuisance.start()
                results.setdefault(path, []).append(measure(port, options.seconds))
                nuisance.over.set()
                nuisance.join()
    loop = statistics.median(results["/loop"])
    for path, values in results.items():
        print(
            f"beside {path[1:]}: {statistics.median(values):.0f} requests/s, {statistics.median(values) / loop:.2f}"
        )


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--max-requests", type=int, default=500)
    parser.add_argument("--max-age", type=float, default=5.0)
    options = parser.parse_args()
    mortality(options)
    neighbours(options)


if __name__ == "__main__":
    with household.kept():
        main()
