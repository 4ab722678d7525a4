"""The benchmarks work: that there are figures is checked here, never their size. `make bench`, `make profile`, `make
bench-micro` run the same programs for longer, with all peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from suite import cases, clients, peers
from suite.figures import Options

BENCH = Path(__file__).resolve().parents[2] / "bench"
#: A function that each role's process is in all the time that it serves.
OURS = {
    "listener-http": "serve (pyttpd_listener/listener.py:",
    "umaster": "serve (pyttpd_umaster/umaster.py:",
    "supervisor-t0": "serve (pyttpd_vhost/supervisor.py:",
    "prototype-t0": "(pyttpd_vhost/prototype.py:",
    "worker-t0": "(pyttpd_vhost/worker.py:",
    "master": "serve (pyttpd_master/",
    "init": "serve (pyttpd_init/",
}


def run(*arguments: str) -> str:
    """Run a program of bench/ as `make` does."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=BENCH, capture_output=True, text=True, timeout=110
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.mark.root
@pytest.mark.program("wrk", "taskset", "nginx")
def test_a_case_has_figures_of_each_peer(tmp_path: Path) -> None:
    said = run(
        *("suite", "--case", "static-1k", "--peer", "pyttpd", "nginx", "--rounds", "1", "--seconds", "1"),
        *("--setting", "one core, access logs", "--into", str(tmp_path)),
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"processor", "kernel", "python", "pyttpd", "nginx", "client", "commit", "took"} <= set(
        results["about"]
    )
    found = results["results"]["one core, access logs"]["static-1k"]
    assert set(found) == {"pyttpd", "nginx"}
    for name, figures in found.items():
        assert not figures["failed"], figures
        assert figures["errors"] == 0, name
        assert all(len(figures[key]) == 1 and figures[key][0] > 0 for key in ("rate", "cost")), figures
        assert all(figures["latency"][key][0] > 0 for key in ("p50", "p99", "p99.9")), figures
    assert (tmp_path / "tables.md").read_text() in said
    assert ">nginx</text>" in (tmp_path / "static-1k.svg").read_text()


#: Answers with `body`; with `last` it is gone after that many connections.
SERVER = """
import os, socketserver, sys
port, body, last = int(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3])
served = 0
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        global served
        served += 1
        if last and served > last:
            os._exit(1)
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n" % len(body))
        self.wfile.write(body)
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def played(name: str, body: str, last: int = 0) -> peers.Peer:
    def start(setting: peers.Setting) -> list[list[str]]:
        return [[sys.executable, "-I", "-c", SERVER, str(setting.port), body, str(last)]]

    return peers.Peer(name, start, ("true",))


@pytest.mark.program("wrk", "taskset", "timeout")
def test_who_does_not_start_answers_wrongly_or_dies_is_out_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "READY_WITHIN", 1.0)
    case = cases.Case(
        "it",
        "A case",
        (
            played("good", "Hello, world!"),
            peers.Peer("ends", lambda _: [["false"]], ("true",)),
            played("wrong", "Hello, World!"),
            played("dies", "Hello, world!", last=20),
        ),
        close=True,
        common_rate=True,
    )
    found = cases.measure(case, Options(2, 0.3), case.peers, common_rate=True)
    assert list(found) == ["good", "ends", "wrong", "dies"]
    assert "ended with 1" in found["ends"].failed
    assert "Hello, World!" in found["wrong"].failed
    assert found["dies"].failed
    good = found["good"]
    assert not good.failed
    assert len(good.rate) == 2
    # on a busy machine a short round may be over before the first answer: such a one has no cost for each
    assert len(good.cost) == sum(rate > 0 for rate in good.rate)
    assert all(len(good.latency[key]) == 2 for key in ("p50", "p99", "p99.9"))
    assert good.common == max(good.rate) / 2


@pytest.mark.root
@pytest.mark.program("wrk", "taskset")
def test_a_profile_has_a_graph_of_each_role(tmp_path: Path) -> None:
    run("suite.profile", "--case", "wsgi-close", "--seconds", "1", "--into", str(tmp_path))
    folder = tmp_path / "wsgi-close"
    summary = (folder / "summary.txt").read_text()
    for name, frame in OURS.items():
        assert frame in (folder / f"{name}.svg").read_text(), name
        assert f"\n{name}: " in summary
    # Where coverage measures, what waits is the line of its own that it puts between (tests/support/measure.py).
    waits = ("  ready = poll(", "  return self._real.poll(")
    assert any(line in summary for line in waits), "who waits is seen there, with what stands in the line"


def test_the_micro_benchmarks_run() -> None:
    assert " passed" in run("pytest", "-c", "micro/pytest.toml", "micro", "--benchmark-disable")
