"""What routing notices of a reload of 10,000 vhosts and 100,000 names under load: the longest pause.

    .venv-bench/bin/python bench/reload.py [--vhosts 10000] [--names 10] [--seconds 6] [--clients 4]

As root. init, master, umaster, a listener and one tenant are started as containers would be, each by itself; the other
9,999 tenants have tables and no processes, as before their containers are brought up. Clients open a connection for
each request and ask for the one tenant, without a pause. Then every other vhost's names, quotas or both change, a
thousand vhosts go and a thousand others come; the tree is reloaded. Told are: how long each part of it took, the
latencies while nothing changed and while it did, and what clients got that wasn't the answer, which must be nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from suite import household
from suite.machine import free_ports

from pyttpd.config.loader import load
from pyttpd.roles import ROLES, Role

READY_WITHIN = 120.0
REQUEST = b"GET / HTTP/1.1\r\nHost: v0.test\r\nConnection: close\r\n\r\n"
#: The issue's bar (s).
BAR = 0.1


def configuration(folder: Path, port: int, metrics: int, vhosts: range, names: int, mark: str) -> str:
    """Return a configuration in which all but the first vhost have names with `mark`."""
    tables = [
        f"""
[log]
level = "warning"
[listen.http]
address = "127.0.0.1:{port}"
[metrics]
base_port = {metrics}
[vhost.v0]
hosts = ["v0.test"]
uid = 20001
kind = "static"
root = "{folder}/site"
access_log = "off"
"""
    ]
    for number in vhosts:
        hosts = ", ".join(f'"{mark}{each}.v{number}.customers.example"' for each in range(names))
        tables.append(
            f'[vhost.v{number}]\nhosts = [{hosts}]\nuid = {20001 + number}\nkind = "static"\nroot = "{folder}/site"\n'
            f"queue = {{ limit = {len(mark) + 100} }}\n"
        )
    return "\n".join(tables)


class Clients:
    """Ask again and again; note each latency with its time, and whatever isn't the answer."""

    def __init__(self, port: int, count: int) -> None:
        self.port = port
        self.times: list[tuple[float, float]] = []
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            begin = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self.port), 20) as client:
                    client.sendall(REQUEST)
                    answer = b""
                    while data := client.recv(65_536):
                        answer += data
            except OSError as error:
                answer = repr(error).encode()
            if not answer.startswith(b"HTTP/1.1 200"):
                self.wrong.append(repr(answer[:60]))
            self.times.append((begin, time.monotonic() - begin))
            time.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def between(self, begin: float, end: float) -> list[float]:
        return sorted(took for at, took in self.times if begin <= at <= end)


def start(folder: Path, role: Role, name: str = "", uid: int = 0, *options: str) -> subprocess.Popen[bytes]:
    health = folder / f"health-{role.value}{name}"
    health.mkdir()
    os.chown(health, uid, uid)
    command = [sys.executable, "-I", "-m", f"pyttpd_{role.value}", "--runtime-dir", f"{folder}/run"]
    command += ["--health-file", f"{health}/state", "--die-with", str(os.getpid()), *options]
    command += ["--name", name] if name else []
    command += ["--uid", str(uid), "--gid", str(uid)] if uid else []
    return subprocess.Popen(command, cwd="/", stdin=subprocess.DEVNULL, start_new_session=True)


def wait_for(port: int) -> None:
    end = time.monotonic() + READY_WITHIN
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(REQUEST)
            if client.recv(12) == b"HTTP/1.1 200":
                return
        time.sleep(0.1)
    raise SystemExit("the tree doesn't answer")


def shown(name: str, times: list[float]) -> float:
    if not times:
        raise SystemExit(f"{name}: nobody was answered")
    middle, late = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(
        f"{name:24} {len(times):6} requests   median {1000 * middle:6.2f} ms   99 % {1000 * late:6.1f} ms   "
        f"longest {1000 * times[-1]:6.1f} ms"
    )
    return times[-1]


def measure(folder: Path, options: argparse.Namespace) -> int:
    first = free_ports(16)
    config = folder / "etc/pyttpd.toml"
    config.parent.mkdir()
    (folder / "site").mkdir()
    (folder / "site/index.html").write_text("hello\n")
    before = range(1, options.vhosts)
    after = range(1 + options.vhosts // 10, options.vhosts + options.vhosts // 10)
    config.write_text(configuration(folder, first, first + 1, before, options.names, "a"))
    begin = time.monotonic()
    load(str(config))
    print(
        f"{options.vhosts} vhosts, {options.vhosts * options.names} names: read in {time.monotonic() - begin:.1f} s"
    )
    (folder / "run").mkdir()
    for role, row in ROLES.items():
        for directory in row.binds:
            (folder / "run" / directory.value).mkdir()
            os.chown(folder / "run" / directory.value, ROLES[role].uid, ROLES[role].uid)
    for path in (folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    processes = [start(folder, Role.INIT, "", 0, "--config", str(config))]
    processes.append(start(folder, Role.MASTER, "", ROLES[Role.MASTER].uid, "--config", str(config)))
    processes.append(start(folder, Role.UMASTER, "", ROLES[Role.UMASTER].uid))
    processes.append(start(folder, Role.LISTENER, "http", ROLES[Role.LISTENER].uid))
    processes.append(start(folder, Role.VHOST, "v0", 20_001))
    clients = None
    try:
        wait_for(first)
        clients = Clients(first, options.clients)
        quiet = time.monotonic()
        time.sleep(options.seconds)
        config.write_text(configuration(folder, first, first + 1, after, options.names, "bb"))
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-I", "-m", "pyttpd.admin", "reload", "--runtime-dir", f"{folder}/run"],
            capture_output=True,
            text=True,
            check=False,
        )
        end = time.monotonic()
        time.sleep(1)
        clients.stop()
        print(
            f"pyttpd reload: {end - begin:.1f} s, status {done.returncode}: {done.stdout.splitlines()[-1:]}"
        )
        shown("before", clients.between(quiet, begin))
        longest = shown("while it was reloaded", clients.between(begin, end + 1))
        print(f"answers that weren't: {len(clients.wrong)} {clients.wrong[:3]}")
        return 0 if longest <= BAR and not clients.wrong and not done.returncode else 1
    finally:
        if clients is not None:
            clients.stop()
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vhosts", type=int, default=10_000)
    parser.add_argument("--names", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    folder = household.new_folder()
    try:
        return measure(folder, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with household.kept():
        sys.exit(main())
