"""The benchmarks work: that there are figures is checked here, never their size. `make bench`, `make profile`, `make
bench-micro` run the same programs for longer, with all peers.
"""

from __future__ import annotations

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
