"""What a test needs from the machine, said by a marker: `root`, `docker`, `program("wrk")`.

On a machine that doesn't have it the test is skipped, with the reason. In a complete run (scripts/test sets
PYTTPD_TEST_COMPLETE) that is an error: what was to be set up has not been, and a green run would hide it.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

COMPLETE = "PYTTPD_TEST_COMPLETE"


@functools.cache
def docker_answers() -> bool:
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def missing(item: pytest.Item) -> str | None:
    """Return what `item` needs and this machine doesn't have, or None."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        return "must be root"
    if item.get_closest_marker("docker") and not docker_answers():
        return "needs a Docker engine (scripts/docker-engine)"
    for marker in item.iter_markers("program"):
        for name in marker.args:
            if not (Path(name).is_file() if name.startswith("/") else shutil.which(name)):
                return f"needs the program {name}"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if why := missing(item):
        if os.environ.get(COMPLETE):
            pytest.fail(f"{why}, and a complete run must have it", pytrace=False)
        pytest.skip(why)
