"""The tests' own instruments: coverage out of every kind of process, and the fixture that finds what is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from support import leaks, measure

MODULE = """
def ended():
    return 1

def killed():
    return 2

def left():
    return 3

def never():
    return 4
"""
PROGRAM = """
import os, select, signal, sys
sys.path[:0] = sys.argv[1:5]
import measure
measure._start(sys.argv[5], sys.argv[6])
import measured_module as m
if os.fork() == 0:
    m.ended()
    os._exit(0)
if os.fork() == 0:
    m.killed()
    select.epoll().poll(0)
    os.kill(os.getpid(), signal.SIGKILL)
os.wait(); os.wait()
if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", sys.argv[7], *sys.argv[1:7]])
os.wait()
"""
AFTER_EXEC = """
import os, sys
sys.path[:0] = sys.argv[1:5]
import measure
measure._start("/nonexistent", sys.argv[6])
import measured_module as m
m.left()
"""


def test_processes_that_end_are_killed_or_exec_are_all_measured(tmp_path: Path) -> None:
    from coverage import CoverageData

    source, data = tmp_path / "src/pyttpd", tmp_path / "data"
    source.mkdir(parents=True)
    data.mkdir()
    module = source / "measured_module.py"
    module.write_text(MODULE)
    (source / "other.py").write_text("pass\n")
    paths = [
        str(Path(measure.__file__).parent),
        str(source),
        sysconfig.get_path("purelib"),
        sysconfig.get_path("platlib"),
    ]
    # Without site (-S), so that a measuring that is going on already doesn't come in between.
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, *paths, str(data), str(tmp_path), AFTER_EXEC]
    subprocess.run(command, check=True, timeout=30)
    result = tmp_path / "united"
    assert measure.collect(data, tmp_path, result) >= 4
    united = CoverageData(basename=str(result))
    united.read()
    lines = MODULE.splitlines()
    covered = {lines[number - 1].strip() for number in united.lines(str(module)) or ()}
    assert {"return 1", "return 2", "return 3"} <= covered
    assert "return 4" not in covered
    assert united.lines(str(source / "other.py")) == []
    united.close()


def test_a_frame_that_was_torn_is_passed_over() -> None:
    import json
    import zlib

    def frame(lines: dict[str, list[int]]) -> bytes:
        body = zlib.compress(json.dumps(lines).encode())
        return measure.MARK + len(body).to_bytes(measure.LENGTH_BYTES, "little") + body

    first, second, third = (frame({"x": [number]}) for number in (1, 2, 3))
    assert list(measure.frames(first + second[:-3] + third)) == [{"x": [1]}, {"x": [3]}]
    assert list(measure.frames(first[:5] + second + third[:20])) == [{"x": [2]}]
    assert list(measure.frames(b"")) == []


def test_a_descriptor_that_is_left_is_found() -> None:
    before = leaks.Snapshot.take()
    with socket.socket() as sock:
        assert [line for line in before.left() if line.startswith(f"descriptor {sock.fileno()} (socket:")]
    assert before.left() == []


def test_a_process_that_lost_its_parent_is_found_and_ended() -> None:
    before = leaks.Snapshot.take()
    subprocess.run(["sh", "-c", "sleep 60 & exit 0"], check=True, stdout=subprocess.DEVNULL)
    (left,) = before.left()
    assert left.startswith("process ")
    assert "sleep 60" in left
    leaks.end(set(leaks.descendants(os.getpid())) - before.processes)
    assert before.left() == []


def test_a_thread_that_is_left_is_found() -> None:
    before = leaks.Snapshot.take()
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="left")
    thread.start()
    assert before.left() == ["thread left"]
    go.set()
    thread.join()
    assert before.left() == []


def test_a_socket_file_is_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
    assert list(leaks.sockets(tmp_path)) == [tmp_path / "s"]
