"""Servers on one core, wrk on another, in turns: what compare_wsgi and compare_asgi have in common."""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVER_CORE, CLIENT_CORE = "1", "0"
CONNECTIONS = 32
PORT = 18101
READY_WITHIN = 10.0
TICKS = os.sysconf("SC_CLK_TCK")

UNLIKE = 'n = 0\nrequest = function() n = n + 1 return wrk.format(nil, "/?" .. n) end\n'
BROWSER = {
    "Connection": "keep-alive",
    "Cache-Control": "max-age=0",
    "Upgrade-Insecure-Requests": "1",
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8",
    "Sec-Fetch-Site": "none",
    "Sec-Fetch-Mode": "navigate",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Accept-Language": "en-GB,en;q=0.9,de;q=0.8",
    "Cookie": "session=0123456789abcdef0123456789abcdef; theme=dark",
}


class Server:
    """A server on its core, checked to answer."""

    def __init__(self, name: str, port: int, command: list[str]) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}/"
        self.rates: list[float] = []
        self.costs: list[float] = []
        self._process = subprocess.Popen(["taskset", "-c", SERVER_CORE, *command], cwd=HERE)
        end = time.monotonic() + READY_WITHIN
        while True:
            try:
                with urllib.request.urlopen(self.url, timeout=2) as answer:
                    assert answer.read() == b"Hello, world!"
                return
            except urllib.error.URLError:
                if time.monotonic() > end:
                    self.stop()
                    raise SystemExit(f"{name} doesn't answer") from None
                time.sleep(0.1)

    def measure(self, seconds: int, options: list[str]) -> None:
        """One round of wrk."""
        before = self._ticks()
        command = [
            "taskset",
            "-c",
            CLIENT_CORE,
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds}s",
            *options,
            self.url,
        ]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        if "Non-2xx" in text or "Socket errors" in text:
            raise SystemExit(f"{self.name}: {text}")
        requests = re.search(r"(\d+) requests in", text)
        rate = re.search(r"Requests/sec:\s*([\d.]+)", text)
        assert requests is not None
        assert rate is not None
        self.rates.append(float(rate[1]))
        self.costs.append((self._ticks() - before) / TICKS / int(requests[1]) * 1e6)

    def _ticks(self) -> int:
        """Processor time of the server and its children."""
        pids = [self._process.pid]
        for pid in pids:
            pids += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
        return sum(int(stat[11]) + int(stat[12]) for stat in stats)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


Start = Callable[[str, int], list[str]]


def compare(description: str, commands: dict[str, Start]) -> None:
    """Read the arguments; start the servers of `commands` (name: a function of the interpreter and the port), measure
    them in turns, print. The first one is ours.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", default=str(HERE.parent / ".venv-bench/bin/python"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--unlike", action="store_true")
    parser.add_argument("--browser", action="store_true")
    arguments = parser.parse_args()
    servers: list[Server] = []
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(UNLIKE)
        script.flush()
        options = ["-s", script.name] if arguments.unlike else []
        if arguments.browser:
            options += [option for name, value in BROWSER.items() for option in ("-H", f"{name}: {value}")]
        try:
            for port, (name, command) in enumerate(commands.items(), PORT):
                servers.append(Server(name, port, command(arguments.python, port)))
            for number in range(arguments.rounds):
                for server in servers:
                    server.measure(arguments.seconds, options)
                said = (f"{s.name} {s.rates[-1]:7.0f}/s {s.costs[-1]:5.1f} us" for s in servers)
                print(f"round {number + 1}: {'   '.join(said)}", flush=True)
        finally:
            for server in servers:
                server.stop()
    ours = servers[0]
    for other in servers[1:]:
        for what, mine, theirs in (
            ("requests/s", statistics.median(ours.rates), statistics.median(other.rates)),
            (
                "requests per processor second",
                1e6 / statistics.median(ours.costs),
                1e6 / statistics.median(other.costs),
            ),
        ):
            print(f"{what}: pyttpd {mine:.0f}, {other.name} {theirs:.0f}, ratio {mine / theirs:.2f}")
