"""Other people's clients notice nothing of anything that may cost no connection: wrk, h2load, curl, slowhttptest.

They say how many of their requests failed, and not which. So nothing is done here to who may lose what it has: workers,
listeners and supervisors' keepers aren't killed or stopped, only asked to leave, replaced and reloaded.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import clients, schedule
from chaos.content import files
from chaos.schedule import Action
from chaos.stage import Stage
from chaos.test_chaos_plain import EXPECTED, GRACE, HOSTS, SETTLED_WITHIN, TENANTS
from support.tree import Tree

CI_SECONDS = 30.0
SECONDS = float(os.environ.get("PYTTPD_CHAOS_SECONDS") or CI_SECONDS)
SEED = int(os.environ.get("PYTTPD_CHAOS_SEED") or 1)
#: Connections of wrk and h2load, each.
CONNECTIONS = 4
#: Who has clients' connections that nobody else has.
OWNERS = ("worker", "listener", "keeper listener", "keeper supervisor")
#: Of what each program says at its end, what is shown.
LAST_LINES = 10
PATH = "/pattern/3/5000"


def costs_nothing(event: schedule.Event) -> bool:
    return not any(
        deed.action in (Action.KILL, Action.STOP) and deed.target in OWNERS for deed in event.deeds
    )


class Program:
    """A client of somebody else's, until it ends by itself."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def said(self) -> str:
        return self._process.communicate(timeout=60)[0]


class Uploads(threading.Thread):
    """curl, again and again: a file goes up, chunked or with its length, and its digest comes back."""

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__()
        self._url = f"http://wsgi.localhost:{port}/digest"
        self._resolve = f"wsgi.localhost:{port}:127.0.0.1"
        self._file = folder / "upload"
        self._file.write_bytes(clients.pattern(9, 1 << 20))
        self._digest = hashlib.sha256(self._file.read_bytes()).hexdigest()
        self.stop = threading.Event()
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        common = ["curl", "-sS", "--max-time", "30", "--limit-rate", "4M", "--resolve", self._resolve]
        while not self.stop.is_set():
            how = ["-H", "Transfer-Encoding: chunked"] if self.done % 2 else []
            command = [*common, *how, "-T", str(self._file), "-X", "POST", self._url]
            ended = subprocess.run(command, capture_output=True, text=True)
            self.done += 1
            if ended.returncode or ended.stdout != self._digest:
                self.failures.append(f"status {ended.returncode}: {ended.stdout[:200]} {ended.stderr[:200]}")


@pytest.mark.root
@pytest.mark.program("wrk")
@pytest.mark.program("h2load")
@pytest.mark.program("curl")
@pytest.mark.program("slowhttptest")
@pytest.mark.timeout(SECONDS + 200)
def test_others_notice_nothing(plant: Callable[..., Tree], tmp_path: Path) -> None:
    tree = plant(tenants=TENANTS, files=files(), hosts=(), grace=GRACE)
    tree.expect(*EXPECTED)
    stage = Stage(tree, HOSTS, tenants=2)
    seconds, url = str(int(SECONDS) + 2), f"http://127.0.0.1:{tree.port}{PATH}"
    wrk = ("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s")
    running = {
        "wrk": Program(*wrk, "-H", "Host: static.localhost", url),
        "wrk, a connection per request": Program(
            *wrk, "-H", "Host: wsgi.localhost", "-H", "Connection: close", url
        ),
        "h2load": Program(
            *("h2load", "--h1", f"-c{CONNECTIONS}", f"-D{seconds}s", "-m1"),
            *(f"--connect-to=127.0.0.1:{tree.port}", f"http://wsgi.localhost:{tree.port}{PATH}"),
        ),
        "slowhttptest": Program(
            *("slowhttptest", "-H", "-c", "20", "-r", "10", "-i", "2", "-l", seconds, "-u", url)
        ),
    }
    uploads = Uploads(tree.port, tmp_path)
    uploads.start()
    until = time.monotonic() + SECONDS
    try:
        with stage.urgent():
            for event in filter(costs_nothing, schedule.plan(SEED)):
                stage.do(event)
                if time.monotonic() > until:
                    break
    finally:
        uploads.stop.set()
        said = {name: program.said() for name, program in running.items()}
        uploads.join()
    print(f"\nseed {SEED}, {SECONDS:g} s: " + ", ".join(str(one.deed) for one in stage.done))
    said = {name: re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", text) for name, text in said.items()}
    for name, text in said.items():
        print("\n".join([f"--- {name}", *text.strip().splitlines()[-LAST_LINES:]]))
    print(f"--- curl\n{uploads.done} uploads, {len(uploads.failures)} failures")
    assert not uploads.failures
    for name in ("wrk", "wrk, a connection per request"):
        assert re.search(r"[1-9]\d* requests in", said[name])
        assert not re.search(r"Socket errors|Non-2xx", said[name]), f"{name}: {said[name]}"
    found = re.search(r"(\d+) done, (\d+) succeeded, 0 failed, 0 errored, 0 timeout", said["h2load"])
    assert found, said["h2load"]
    assert 0 < int(found[2]) == int(found[1])
    assert set(re.findall(r"service available:\s+(\w+)", said["slowhttptest"])) == {"YES"}
    assert not [text for one in stage.done for text in one.violations]
    tree.end(within=SETTLED_WITHIN)
