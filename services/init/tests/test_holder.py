"""The namespace holder as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyttpd import health
from pyttpd.address import Address
from pyttpd.namespaces import enter_network_namespace

from pyttpd_init import holder
from pyttpd_init.egress import Allowed, verify_egress
from support.play import play

COMMAND = [sys.executable, "-I", "-m", "pyttpd_init.holder", "--health-file"]


def until(condition: Callable[[], bool]) -> bool:
    """Wait up to five seconds."""
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_locks_and_holds_and_leaves(tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "state"

    def scene() -> Any:
        enter_network_namespace()
        with subprocess.Popen([*COMMAND, str(state)], stderr=subprocess.PIPE, text=True) as process:
            ready = until(lambda: health.read(str(state))[0])
            status = Path(f"/proc/{process.pid}/status").read_text()
            verify_egress()
            process.send_signal(number)
            said = process.communicate(timeout=5)[1]
        return ready, status, process.returncode, said, state.exists()

    ready, status, code, said, left = play(scene)
    assert ready
    fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert code == 0
    assert "nothing opens a connection from here" in said
    assert not left


@pytest.mark.root
def test_it_lets_through_what_somebody_wrote_down(tmp_path: Path) -> None:
    state = tmp_path / "state"
    allowed = Address("127.0.0.2", 5432)

    def scene() -> Any:
        enter_network_namespace()
        command = [*COMMAND, str(state), "--allow", str(allowed)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            ready = until(lambda: health.read(str(state))[0])
            verify_egress(allowed=[Allowed(allowed)])
            process.terminate()
            said = process.communicate(timeout=5)[1]
        wrong = subprocess.run(
            [*COMMAND, str(state), "--allow", "db:5432"], capture_output=True, text=True, check=False
        )
        return ready, process.returncode, said, wrong.returncode, wrong.stderr

    ready, code, said, wrong, usage = play(scene)
    assert ready
    assert code == 0
    assert "from here but_to=127.0.0.2:5432" in said
    assert (wrong, "--allow" in usage, "Traceback" in usage) == (2, True, False)


@pytest.mark.root
def test_without_the_rule_it_does_not_start(tmp_path: Path) -> None:
    state = tmp_path / "state"

    def scene() -> Any:
        enter_network_namespace()
        done = subprocess.run(
            [*COMMAND, str(state)],
            stderr=subprocess.PIPE,
            text=True,
            timeout=10,
            check=False,
            user=20_001,
            cwd="/",
        )
        return done.returncode, done.stderr, state.exists()

    code, said, ready = play(scene)
    assert code == 1
    assert "CAP_NET_ADMIN" in said
    assert "Traceback" not in said
    assert not ready


@pytest.mark.root
def test_the_lock_and_the_vigil_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without an interpreter of its own: a beat, a child to reap, an end."""
    monkeypatch.setattr(holder, "HEARTBEAT", 0.05)
    state = tmp_path / "state"

    def scene() -> Any:
        enter_network_namespace()
        child = os.fork()
        if child == 0:
            os._exit(0)
        parent = os.getpid()
        if os.fork() == 0:
            time.sleep(0.3)
            os.kill(parent, signal.SIGTERM)
            os._exit(0)
        code = holder.main(["--health-file", str(state)])
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return code, True, state.exists()
        return code, False, state.exists()

    assert play(scene) == [0, True, False]
