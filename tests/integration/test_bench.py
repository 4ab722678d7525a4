"""The benchmarks work: that there are figures is checked here, never their size. `make bench`, `make profile`, `make
bench-micro` run the same programs for longer, with all peers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
        *("suite", "--case", "static-1k", "--peer", "pyttpd", "nginx", "--rounds", "1", "--seconds", "0.3"),
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


@pytest.mark.root
@pytest.mark.program("wrk", "taskset")
def test_a_profile_has_a_graph_of_each_role(tmp_path: Path) -> None:
    run("suite.profile", "--case", "wsgi-close", "--seconds", "1", "--into", str(tmp_path))
    folder = tmp_path / "wsgi-close"
    summary = (folder / "summary.txt").read_text()
    for name, frame in OURS.items():
        assert frame in (folder / f"{name}.svg").read_text(), name
        assert f"\n{name}: " in summary
    assert "self.sock.send(" in summary, "no line of a source in it"


def test_the_micro_benchmarks_run() -> None:
    assert " passed" in run("pytest", "-c", "micro/pytest.toml", "micro", "--benchmark-disable")
