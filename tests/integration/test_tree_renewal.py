"""A tenant's processes are made anew while clients ask: nothing is lost, and code that doesn't load changes nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from support.tree import APPLICATION, Tree

Plant = Callable[..., Tree]
REQUEST = b"GET /kept HTTP/1.1\r\nHost: wsgi.localhost\r\n\r\n"
BROKEN = "raise RuntimeError('not this time')\n"
TENANTS = """
[vhost.wsgi]
hosts = ["wsgi.localhost"]
uid = 20002
kind = "wsgi"
root = "application"
application = "app:application"
[vhost.wsgi.pool]
mode = "{mode}"
"""


def keeper_of(tree: Tree, role: str, name: str) -> int:
    (keeper,) = [pid for pid in tree.pids(role, name) if os.getpgid(pid) == pid]
    return keeper


@pytest.mark.root
@pytest.mark.parametrize("mode", ["static", "ondemand"])
def test_code_that_does_not_load_leaves_the_old_serving_and_new_code_takes_over(
    plant: Plant, mode: str
) -> None:
    tree = plant(tenants=TENANTS.format(mode=mode), hosts=("wsgi.localhost",))
    tree.expect("application", "given up")
    keeper = keeper_of(tree, "vhost", "wsgi")
    application = tree.folder / "application/app.py"
    application.write_text(BROKEN)
    before = set(tree.pids("vhost", "wsgi"))
    os.kill(keeper, signal.SIGHUP)
    tree.wait_for(lambda: "given up" in tree.log())
    assert "not this time" in tree.log()
    tree.wait_for(lambda: set(tree.pids("vhost", "wsgi")) == before)
    assert tree.get("wsgi.localhost", "/old").body == b"/old"

    application.write_text(APPLICATION.replace('environ["PATH_INFO"]', '"new"'))
    with tree.connect() as kept:
        kept.sendall(REQUEST)
        assert kept.recv(4096).endswith(b"/kept")
        os.kill(keeper, signal.SIGHUP)
        tree.wait_for(lambda: tree.get("wsgi.localhost").body == b"new")
        tree.wait_for(lambda: set(tree.pids("vhost", "wsgi")) & before == {keeper})
        kept.sendall(REQUEST)  # the old worker has handed it on
        assert kept.recv(4096).endswith(b"new")
