"""The health file, and the program that reads it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyttpd import health
from pyttpd.health import HealthFile


def test_only_ready_and_fresh_is_healthy(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    file = HealthFile(path)
    assert health.read(path)[0] is False
    for state in health.STATES:
        file.write(state)
        assert health.read(path) == (state == "ready", state)
    file.write("ready")
    old = time.time() - health.STALE_AFTER - 5
    os.utime(path, (old, old))
    ready, why = health.read(path)
    assert not ready
    assert "no heartbeat" in why
    file.write("ready")  # the next beat
    assert health.read(path)[0]
    file.remove()
    file.remove()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"fine\n", b"\xff\xfe", b"ready and more than that" * 10])
def test_anything_else_is_not_healthy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state"
    path.write_bytes(content)
    assert not health.read(str(path))[0]


def test_a_file_that_somebody_else_has_removed_is_no_error(tmp_path: Path) -> None:
    file = HealthFile(str(tmp_path / "state"))
    file.write("ready")
    (tmp_path / "state").unlink()
    file.remove()


def test_what_is_put_in_its_place_is_not_healthy_and_holds_nobody_up(tmp_path: Path) -> None:
    """The runner reads as root what lies in a folder of a tenant's uid."""
    (tmp_path / "true").write_text("ready\n")
    (tmp_path / "link").symlink_to("true")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("link", "fifo", "folder"):
        assert not health.read(str(tmp_path / name))[0]


def test_a_trap_in_its_way_is_not_stepped_into(tmp_path: Path) -> None:
    file = HealthFile(str(tmp_path / "state"))
    file.write("starting")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "state.new").symlink_to("precious")
    file.write("ready")
    (tmp_path / "state.new").unlink()
    os.mkfifo(tmp_path / "state.new")
    file.write("ready")
    assert (tmp_path / "precious").read_text() == "precious"
    assert health.read(str(tmp_path / "state")) == (False, "starting")
    (tmp_path / "state.new").unlink()
    file.write("ready")
    assert health.read(str(tmp_path / "state"))[0]


def test_a_folder_that_is_taken_away_later_ends_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = HealthFile(str(folder / "state"))
    file.write("starting")
    folder.rename(tmp_path / "elsewhere")
    file.write("starting")
    file.write("ready")
    file.remove()


def test_nobody_asks() -> None:
    file = HealthFile("")
    file.write("ready")
    file.remove()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        HealthFile(str(tmp_path / "none" / "state")).write("ready")


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "state")
    assert health.main(["--file", path]) == 1
    HealthFile(path).write("ready")
    assert health.main(["--file", path]) == 0
    assert capsys.readouterr().out.endswith("ready\n")
    assert health.main(["--wrong"]) == 2
    assert health.main([]) in (0, 1)


def test_alive_asks_for_signs_of_life_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    file = HealthFile(path)
    assert health.main(["--alive", "--file", path]) == 1
    for state in health.STATES:
        file.write(state)
        assert health.main(["--alive", "--file", path]) == 0
    old = time.time() - health.STALE_AFTER - 5
    os.utime(path, (old, old))
    assert health.main(["--alive", "--file", path]) == 1


DAY = 86_400.0


@pytest.mark.parametrize("step", [-DAY, DAY])
@pytest.mark.parametrize("lives", ["beats", "changes", "dead"])
def test_a_clock_that_is_set_makes_nobody_unwell_and_nobody_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float, lives: str
) -> None:
    path = str(tmp_path / "state")
    file = HealthFile(path)
    file.write("ready")
    before = time.time() - step
    os.utime(path, (before, before))

    def meanwhile(_: float) -> None:
        if lives != "dead":
            file.write("ready" if lives == "beats" else "draining")

    monkeypatch.setattr(time, "sleep", meanwhile)
    ready, why = health.read(path, look_again=0.1)
    assert ready == (lives == "beats")
    assert why.startswith("draining" if lives == "changes" else "ready")
    if lives == "dead":
        assert "no heartbeat" in why


def test_a_keeper_that_is_stopped_is_woken() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert not health.wake(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert health.wake(process.pid)
        assert os.WIFCONTINUED(os.waitpid(process.pid, os.WCONTINUED)[1])
        assert not health.wake(process.pid)
    finally:
        process.kill()
        process.wait()
    assert not health.wake(process.pid)


def test_a_startup_is_waited_for_so_long_and_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "state")
    HealthFile(path).write("starting")
    for age, status in ((59.0, 1), (61.0, 0)):
        monkeypatch.setattr(health, "age_of", lambda _pid, age=age: age)
        assert health.main(["--within", "60", "--file", path]) == status
    assert "not waited for any longer" in capsys.readouterr().out
    HealthFile(path).write("ready")
    monkeypatch.setattr(health, "age_of", lambda _pid: 0.0)
    assert health.main(["--within", "60", "--file", path]) == 0


@pytest.mark.parametrize("arguments", [["--within"], ["--within", "long"], ["--file"], ["more"]])
def test_what_it_does_not_understand_is_an_error(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert health.main(arguments) == 2
    assert "usage" in capsys.readouterr().err


def test_the_age_of_a_process() -> None:
    before = health.age_of(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with child:
        # Ticks of the system's clock are hundredths of a second.
        assert -0.02 <= health.age_of(child.pid) <= health.age_of(os.getpid()) - before + 0.02
    assert health.age_of(1) > health.age_of(os.getpid())


def test_the_program_as_containers_call_it(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    HealthFile(path).write("ready")
    command = [sys.executable, "-I", "-m", "pyttpd.health", "--file", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "ready\n")


def test_a_role_that_can_not_say_how_it_is_does_not_start(tmp_path: Path) -> None:
    path = tmp_path / "none" / "state"
    command = [sys.executable, "-I", "-m", "pyttpd_master", "--health-file", str(path), "--config", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"{path}: cannot be written: No such file or directory" in done.stderr


def test_what_a_predecessor_said_is_not_believed(tmp_path: Path) -> None:
    """In a pod the volume outlives the container; a role that doesn't start takes its word back."""
    path = tmp_path / "state"
    HealthFile(str(path)).write("ready")
    command = [sys.executable, "-I", "-m", "pyttpd_master", "--health-file", str(path), "--config", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert not path.exists()
