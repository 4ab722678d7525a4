"""A run of `make bench` that is interrupted, or fails, leaves neither servers nor folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from suite import household

#: A server that outlives whoever started it: in a session of its own, and it doesn't mind SIGTERM.
SERVER = """
import os, signal, sys, time
if os.fork():
    os._exit(0)
os.setsid()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(1000)
"""
#: Who runs the tests may ignore the signals: nohup, or a shell without job control whatever it runs by "&".
RUN = """
import signal, subprocess, sys, time
from pathlib import Path
from suite import household

for number in household.SIGNALS:
    signal.signal(number, signal.SIG_DFL)
household.GRACE = 0.3
note, how = sys.argv[1:3]
with household.kept():
    folder = household.new_folder()
    (folder / "log").touch()
    subprocess.run([sys.executable, "-c", sys.argv[3], note + ".new"], check=True)
    while not (pid := Path(note + ".new")).exists() or not pid.read_text():
        time.sleep(0.01)
    Path(note + ".new").write_text(f"{pid.read_text()} {folder}")
    Path(note + ".new").rename(note)
    if how == "error":
        raise ValueError("a fault of the bench")
    if how == "signal":
        try:
            time.sleep(1000)
        finally:  # a server that is long in ending: the signal that comes twice doesn't cut this short
            time.sleep(0.2)
            print("cleaned up", flush=True)
"""
WITHIN = 30.0


def begin(note: Path, how: str) -> subprocess.Popen[str]:
    bench = Path(household.__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(note), how, SERVER],
        env=os.environ | {"PYTHONPATH": str(bench)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def started(note: Path, run: subprocess.Popen[str]) -> tuple[int, Path]:
    """Wait for the run's server and return its pid, and the run's folder."""
    end = time.monotonic() + WITHIN
    while not note.exists():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.01)
    pid, folder = note.read_text().split()
    return int(pid), Path(folder)


def assert_nothing_left(pid: int, folder: Path) -> None:
    assert not Path(f"/proc/{pid}").exists()
    assert not folder.exists()


@pytest.mark.parametrize("number", household.SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_comes_twice(tmp_path: Path, number: signal.Signals) -> None:
    run = begin(tmp_path / "note", "signal")
    pid, folder = started(tmp_path / "note", run)
    assert folder.is_dir()
    os.kill(pid, 0)
    run.send_signal(number)
    run.send_signal(number)
    time.sleep(0.1)  # while it cleans up: the next one comes at another moment of that
    run.send_signal(number)
    output, _ = run.communicate(timeout=WITHIN)
    assert output == "cleaned up\n"
    assert run.returncode == 128 + number
    assert_nothing_left(pid, folder)


@pytest.mark.parametrize(("how", "status"), [("error", 1), ("end", 0)])
def test_an_error_and_the_end(tmp_path: Path, how: str, status: int) -> None:
    run = begin(tmp_path / "note", how)
    output, _ = run.communicate(timeout=WITHIN)
    assert run.returncode == status, output
    assert ("ValueError: a fault of the bench" in output) == (how == "error")
    pid, folder = (tmp_path / "note").read_text().split()
    assert_nothing_left(int(pid), Path(folder))
