"""What a tree does with too little: few descriptors for each of its processes; a disk without room for its logs."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.tree import Tree

Plant = Callable[..., Tree]
#: Roles themselves need some thirty, and keep as many in reserve.
NOFILE = 64
#: Larger than what a full pool logs when it starts, and smaller than what one that flaps logs in a second.
QUIET = 12_000
BIG = """
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
access_log = "off"
[vhost.wsgi.pool]
mode = "static"
max_workers = 40
"""


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (NOFILE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.root
def test_a_tree_with_few_descriptors_works_and_says_so(plant: Plant, few_descriptors: None) -> None:
    tree = plant()
    for _ in range(100):
        for host in ("static.localhost", "wsgi.localhost"):
            assert tree.get(host).status == 200
    for role in ("umaster", "listener.http", "vhost.wsgi"):
        tree.wait_for(lambda role=role: f" {role}[" in tree.log() and "few descriptors" in tree.log())  # type: ignore[misc]
    assert tree.log().count("few descriptors") >= 3
    assert tree.samples("umaster")["pyttpd_umaster_descriptors_limit",] < NOFILE


@pytest.mark.root
def test_a_pool_that_is_too_large_for_few_descriptors_is_as_large_as_they_allow(
    plant: Plant, few_descriptors: None
) -> None:
    """Neither its supervisor nor umaster flaps: what has no room is told of once, and tried again after a while."""
    tree = plant(tenants=BIG, hosts=("wsgi.localhost",))
    tree.expect("no descriptor is left", "no room for another worker")
    tree.wait_for(lambda: "no descriptor is left" in tree.log() or "no room for another" in tree.log())
    for _ in range(200):
        assert tree.get("wsgi.localhost").status == 200
    assert len(tree.log()) < QUIET, tree.log()[-2000:]


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a few lines. Below /tmp its tenant couldn't see it."""
    folder = Path("/srv") / f"pyttpd-full-{os.getpid()}"
    folder.mkdir(mode=0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k,mode=1777", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()


@pytest.mark.root
def test_a_full_disk_for_logs_costs_lines_and_no_answer(plant: Plant, full_disk: Path) -> None:
    tenants = BIG.replace('access_log = "off"', f'access_log_file = "{full_disk}/access.log"')
    tree = plant(tenants=tenants.replace("= 40", "= 2"), hosts=("wsgi.localhost",))
    tree.expect("access.log")
    for _ in range(300):
        assert tree.get("wsgi.localhost").status == 200
    assert (full_disk / "access.log").stat().st_size <= 8192
    tree.wait_for(
        lambda: any(
            value
            for (name, *_), value in tree.samples("vhost", "wsgi").items()
            if "lost" in name and "lines" in name
        )
    )
