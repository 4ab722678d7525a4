"""The issue's bar: "Hello, world!" by WSGI through the whole tree, beside the same worker accepting by
itself, and granian.

    .venv-bench/bin/python bench/spine.py [--rounds 5] [--seconds 3] [--close]

All servers on core 1 (all processes of the tree as well), the client (wrk, 32 connections) on core 0; one worker, one
thread each, access logs off, in turns within one run. Answers are checked before they are counted. `--close`
makes a new connection for each request. Prints medians and the tree's ratio to each of the others.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from suite import household
from suite.machine import free_ports

HERE = Path(__file__).resolve().parent
SERVER_CORE, CLIENT_CORE = "1", "0"
READY_WITHIN = 20.0
CONFIG = """
runtime_dir = "{folder}/run"
[log]
level = "warning"
[listen.http]
address = "127.0.0.1:{port}"
[metrics]
base_port = {metrics}
[vhost.hello]
hosts = ["127.0.0.1"]
uid = 20001
kind = "wsgi"
root = "{root}"
application = "hello:app"
access_log = "{access_log}"
pool = {{ max_workers = 1 }}
"""


def wait_for(port: int) -> bytes:
    """Return the first answer on `port`."""
    end = time.monotonic() + READY_WITHIN
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                return bytes(answer.read())
        except OSError:
            if time.monotonic() > end:
                raise SystemExit(f"nobody answers on port {port}") from None
            time.sleep(0.1)


def measure(port: int, seconds: int, *, close: bool) -> float:
    """Return requests per second."""
    command = [
        "taskset",
        "-c",
        CLIENT_CORE,
        "wrk",
        "-t1",
        "-c32",
        f"-d{seconds}s",
        f"http://127.0.0.1:{port}/",
    ]
    if close:
        command[-1:-1] = ["-H", "Connection: close"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in output.splitlines():
        if "Non-2xx" in line or "Socket errors" in line:
            print(f"port {port}: {line.strip()}", file=sys.stderr)
    found = re.search(r"Requests/sec:\s+([\d.]+)", output)
    assert found is not None, output
    return float(found[1])


def main() -> None:
    """Start the servers, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--close", action="store_true", help="a new connection for each request")
    options = parser.parse_args()
    first = free_ports(16)
    tree, alone, granian = first, first + 1, first + 2
    folder = str(household.new_folder())
    shutil.copy(HERE / "hello.py", folder)
    Path(folder, "bench.toml").write_text(
        CONFIG.format(folder=folder, port=tree, metrics=first + 4, root=folder, access_log="off")
    )
    pinned = ["taskset", "-c", SERVER_CORE, sys.executable]
    commands = {
        "tree": [*pinned, "-I", "-m", "pyttpd_init", "--plain", "--config", f"{folder}/bench.toml"],
        "alone": [*pinned, str(HERE / "standalone.py"), "--path", folder, "--port", str(alone)],
        "granian": [
            *(*pinned, "-m", "granian", "--interface", "wsgi", "--workers", "1", "--host", "127.0.0.1"),
            *("--port", str(granian), "--no-access-log", "--log-level", "error", "hello:app"),
        ],
    }
    servers = {name: subprocess.Popen(command, cwd=folder) for name, command in commands.items()}
    ports = {"tree": tree, "alone": alone, "granian": granian}
    try:
        answers = {name: wait_for(port) for name, port in ports.items()}
        assert len(set(answers.values())) == 1, answers
        results: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(options.rounds):
            for name, port in ports.items():
                results[name].append(measure(port, options.seconds, close=options.close))
            print(f"round {number + 1}:", *(f"{name} {values[-1]:.0f}" for name, values in results.items()))
        medians = {name: statistics.median(values) for name, values in results.items()}
        print("median:", *(f"{name} {value:.0f}" for name, value in medians.items()))
        for name in ("alone", "granian"):
            print(f"tree / {name}: {medians['tree'] / medians[name]:.2f}")
    finally:
        for server in servers.values():
            server.send_signal(signal.SIGTERM)
        for server in servers.values():
            server.wait(35)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with household.kept():
        main()
