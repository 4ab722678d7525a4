"""The README as a newcomer follows it: its commands are run as they stand there, and its output is compared.

Ports are replaced, since the default ones may be taken; so are numbers in the output where they differ from run to run.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.leaks import descendants
from support.tree import (
    GONE_WITHIN,
    METRICS_PORTS,
    READY_WITHIN,
    free_port,
    free_ports,
    plain_environment,
)

TOP = Path(__file__).resolve().parents[2]
TEXT = (TOP / "README.md").read_text(encoding="utf-8")
#: The blocks that show commands ("$ ...") and what they print, and those that start something.
BLOCKS = re.findall(r"^```console\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
STARTS = re.findall(r"^```\n((?:make|docker) .*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Example:
    command: str
    output: str


def examples() -> list[Example]:
    found = []
    for block in BLOCKS:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append(Example(command, output))
    return found


def normalised(text: str) -> list[str]:
    """Return the lines without empty ones, without numbers, and without a table's width."""
    lines = (
        re.sub(r"\s+", " ", re.sub(r"─+", "─", re.sub(r"\d+", "0", line))).strip()
        for line in text.splitlines()
    )
    return [re.sub(r"\b0[smhd]( 0[smhd])*\b", "0s", line) for line in lines if line]


@dataclass(slots=True)
class Newcomer:
    """Somebody in a clone of the repository: the examples, with other ports, and a tree that was started by hand."""

    folder: Path
    port: int
    metrics_port: int

    def run(self, command: str) -> str:
        """Run a command of the README in a shell; return what it prints."""
        command = command.replace(".localhost:8080", f".localhost:{self.port}")
        for offset in range(METRICS_PORTS):
            command = command.replace(f":{9100 + offset}/", f":{self.metrics_port + offset}/")
        command = command.replace("pyttpd status", f"pyttpd status --metrics 127.0.0.1:{self.metrics_port}")
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=plain_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        return done.stdout + done.stderr


@pytest.fixture
def newcomer() -> Iterator[Newcomer]:
    folder = Path(tempfile.mkdtemp(prefix="pyttpd-readme-", dir="/tmp"))
    folder.chmod(0o755)
    shutil.copytree(TOP / "examples", folder / "examples")
    # The environment that runs this test was made as `make venv` makes one; in a clone its command stands here.
    (folder / ".venv/bin").mkdir(parents=True)
    command = folder / ".venv/bin/pyttpd"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -I -m pyttpd_ctl "$@"\n')
    command.chmod(0o755)
    someone = Newcomer(folder, free_port(), free_ports(METRICS_PORTS))
    file = folder / "examples/pyttpd.toml"
    text = file.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{someone.port}")
    text = text.replace("base_port = 9100", f"base_port = {someone.metrics_port}")
    file.write_text('runtime_dir = "../run"\ngrace = 5.0\n' + text)
    with open(folder / "log", "wb") as log:
        tree = subprocess.Popen(
            [command, "run", file],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=plain_environment(),
            cwd=folder,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + READY_WITHIN
        while "ready listening=" not in (folder / "log").read_text(errors="replace"):
            assert tree.poll() is None, (folder / "log").read_text(errors="replace")
            assert time.monotonic() < deadline, (folder / "log").read_text(errors="replace")
            time.sleep(0.05)
        yield someone
        # Ctrl-C, as the README has it.
        tree.send_signal(signal.SIGINT)
        assert tree.wait(GONE_WITHIN) == 0
    finally:
        for pid in [*descendants(tree.pid), tree.pid] if tree.poll() is None else []:
            subprocess.run(["kill", "-KILL", str(pid)], check=False)
        tree.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.program("curl")
def test_what_the_readme_shows_is_what_one_sees(newcomer: Newcomer) -> None:
    """In order, as somebody would type them; a tenant's counters are up to a second old."""
    shown = examples()
    assert len(shown) >= 7
    for example in shown:
        deadline = time.monotonic() + 5
        while (seen := normalised(newcomer.run(example.command))) != normalised(example.output):
            if time.monotonic() > deadline:
                log = (newcomer.folder / "log").read_text(errors="replace")
                assert seen == normalised(example.output), f"{example.command}\n{log[-4000:]}"
            time.sleep(0.3)


def test_every_word_of_make_in_the_readme_is_one() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (TOP / "Makefile").read_text(), re.MULTILINE))
    named = {word for block in STARTS for word in re.findall(r"^make ([a-z]+)", block, re.MULTILINE)}
    named |= set(re.findall(r"`(?:[A-Z_]+=\S+ )?make ([a-z]+)`", TEXT))
    assert {"up", "down", "venv", "run"} <= named
    assert named <= targets


def test_make_run_starts_what_the_readme_says() -> None:
    """`make run` itself holds the terminal; what it does is looked at, not run."""
    done = subprocess.run(["make", "-n", "run"], cwd=TOP, capture_output=True, text=True, check=True)
    assert ".venv/bin/pyttpd run examples/pyttpd.toml" in done.stdout


def test_the_example_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    file = tmp_path / "pyttpd.toml"
    file.write_text(block)
    command = [sys.executable, "-I", "-m", "pyttpd_ctl", "check", "--no-files", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
