"""What mortality costs, and what a bad neighbour does: the throughput of a tenant whose workers die all the time beside
one whose workers don't; and that of a neighbour beside an application that leaks, dies, deadlocks or loses children, as
a share of what it has beside one plain busy loop.

    .venv-bench/bin/python bench/pools.py [--rounds 3] [--seconds 5] [--max-requests 500] [--max-age 5]

All of the tree on core 1, so that all tenants have the same CPU limit; the clients (wrk) on core 0. In turns.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from spine import HERE, SERVER_CORE, measure, wait_for
from suite import household
from suite.machine import free_ports

CONFIG = """
runtime_dir = "{folder}/run"
grace = 1.0
[log]
level = "error"
[listen.http]
address = "127.0.0.1:{port}"
[metrics]
base_port = {metrics}
"""
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


@contextlib.contextmanager
def tree(config: str, folder: str) -> Iterator[None]:
    """Run a tree with this configuration."""
    Path(folder, "bench.toml").write_text(config)
    command = ["taskset", "-c", SERVER_CORE, sys.executable, "-I", "-m", "pyttpd_init", "--plain"]
    server = subprocess.Popen([*command, "--config", f"{folder}/bench.toml"], cwd=folder)
    try:
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def mortality(options: argparse.Namespace, folder: str) -> None:
    """Print the throughput with mortal workers as a share of that with immortal ones."""
    pools = {
        "immortal": "max_age = 0",
        "mortal": f"max_requests = {options.max_requests}\nmax_age = {options.max_age}",
    }
    results: dict[str, list[float]] = {name: [] for name in pools}
    for _ in range(options.rounds):
        for name, pool in pools.items():
            port = free_ports(16)
            config = CONFIG.format(folder=folder, port=port, metrics=port + 4) + TENANT.format(
                name=name, host="127.0.0.1", uid=20001, folder=folder, application="hello:app", pool=pool
            )
            with tree(config, folder):
                wait_for(port)
                results[name].append(measure(port, options.seconds, close=False))
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


def neighbours(options: argparse.Namespace, folder: str) -> None:
    """Print a neighbour's throughput beside each kind of evil, as a share of that beside a busy loop."""
    Path(folder, "evil.py").write_text(EVIL)
    results: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for path in ("/loop", "/leak", "/die", "/lose", "/deadlock"):
            port = free_ports(16)
            config = CONFIG.format(folder=folder, port=port, metrics=port + 4)
            for name, host, uid, application, pool in (
                ("good", "127.0.0.1", 20001, "hello:app", ""),
                ("evil", "evil", 20002, "evil:app", "max_memory = 67_108_864\nrequest_timeout = 2.0"),
            ):
                config += TENANT.format(
                    name=name,
                    host=host,
                    uid=uid,
                    folder=folder,
                    application=application,
                    pool=pool if path != "/loop" else "max_age = 0\nrequest_timeout = 0",
                )
            with tree(config, folder):
                wait_for(port)
                nuisance = Nuisance(port, path)
                nuisance.start()
                results.setdefault(path, []).append(measure(port, options.seconds, close=False))
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
    folder = str(household.new_folder())
    shutil.copy(HERE / "hello.py", folder)
    try:
        mortality(options, folder)
        neighbours(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with household.kept():
        main()
