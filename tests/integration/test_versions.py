"""Roles of two releases in one tree: one wire version apart works in both directions, two apart is refused and told.

"One role at a time" is how docs/upgrading.md replaces a tree. The other release is made (support/versions.py), as
none has been published yet.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator

import pytest

from pyttpd.wire.messages import VERSION

from integration import test_tree_replacement as replacement
from support.tree import Tree, reload
from support.versions import Releases, releases

Plant = Callable[..., Tree]
OLDER = "an older version of the protocol is spoken with"
#: With whom a role that is a version ahead has to agree on the older one.
MEETS = {
    "init": {"master", "umaster", "listener"},
    "master": {"init", "umaster", "listener", "vhost"},
    "umaster": {"init", "master", "listener", "vhost"},
    "listener": {"init", "master", "umaster"},
    "vhost": {"master", "umaster"},
}
#: In this order a release is rolled out (docs/upgrading.md).
ORDER = ("init", "master", "umaster", "listener", "vhost")
BOTH = pytest.mark.parametrize(
    "ordinary",
    [pytest.param(False, id="as-root", marks=pytest.mark.root), pytest.param(True, id="ordinary-user")],
)


@pytest.fixture
def some() -> Iterator[Releases]:
    with releases() as made:
        yield made


def keepers(tree: Tree, role: str) -> set[int]:
    """Return the keepers of a role: a tenant's and a listener's are several."""
    return {pid for pid in tree.pids(role) if os.getpgid(pid) == pid and pid != tree.process.pid}


def replace(tree: Tree, role: str) -> None:
    """Ask all keepers of `role` to leave; the tree's runner starts others, of the release that is chosen now."""
    before = keepers(tree, role)
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    tree.wait_for(lambda: len(keepers(tree, role) - before) == len(before), 20.0)
    tree.wait_for(lambda: not keepers(tree, role) & before, 20.0)


def told(tree: Tree, role: str, mark: int = 0) -> set[str]:
    """Return with whom `role` has said in the log to speak an older version than it could."""
    found = re.findall(rf" {role}(?:\.\w+)?\[\d+\] info: {OLDER} peer=(\w+)", tree.log()[mark:])
    return set(found)


def nobody_is_at_fault(tree: Tree) -> None:
    assert "broke the protocol" not in tree.log()
    assert [line for line in tree.faults() if "_channel_faults_total" in line] == []


def works(tree: Tree, clients: replacement.Load, number: int) -> None:
    """Requests are answered, and a changed configuration gets from master to all."""
    tree.wait_for(lambda: replacement.all_ready(tree), 20.0)
    clients.more(20)
    file = tree.folder / "pyttpd.toml"
    hosts = f'hosts = ["wsgi.localhost", "n{number}.localhost"]'
    file.write_text(re.sub(r'hosts = \["wsgi.*\]', hosts, file.read_text()))
    # Health says nothing of master's channels to a new init, without which it reloads nothing: it is asked again.
    tree.wait_for(lambda: reload(tree)[0] == 0, 20.0)
    # Who came back to a new master after that was asked gets it then.
    tree.wait_for(lambda: tree.get(f"n{number}.localhost", "/x").body == b"/x")
    assert clients.failures == []


@BOTH
def test_each_role_may_be_a_version_ahead_and_go_back(some: Releases, plant: Plant, ordinary: bool) -> None:
    tree = plant(ordinary=ordinary, python=some.python)
    tree.expect("keeper ended", "away")
    with replacement.load(tree) as clients:
        for number, role in enumerate(ORDER):
            some.choose({role: 1})
            replace(tree, role)
            tree.wait_for(lambda role=role: told(tree, role) >= MEETS[role])  # type: ignore[misc]
            works(tree, clients, 2 * number)
            assert told(tree, role) == MEETS[role] | ({"operator"} if role == "master" else set())
            some.choose({})
            replace(tree, role)
            works(tree, clients, 2 * number + 1)
    nobody_is_at_fault(tree)


@pytest.mark.root
def test_each_role_that_connections_pass_may_be_a_version_behind(some: Releases, plant: Plant) -> None:
    """As while a tree is taken back to the release before: what that doesn't know is not said to it."""
    tree = plant(python=some.python)
    tree.expect("keeper ended", "away")
    with replacement.load(tree) as clients:
        for number, role in enumerate(("umaster", "listener", "vhost")):
            some.choose({role: -1})
            replace(tree, role)
            tree.wait_for(lambda: tree.log().count(f"{OLDER} peer=") > 0)
            works(tree, clients, 2 * number)
            some.choose({})
            replace(tree, role)
            works(tree, clients, 2 * number + 1)
    nobody_is_at_fault(tree)


@pytest.mark.root
def test_a_release_is_rolled_out_and_then_the_newer_version_is_spoken(some: Releases, plant: Plant) -> None:
    tree = plant(python=some.python)
    tree.expect("keeper ended", "away")
    ahead: dict[str, int] = {}
    with replacement.load(tree) as clients:
        for number, role in enumerate(ORDER):
            ahead[role] = 1
            some.choose(ahead)
            replace(tree, role)
            works(tree, clients, number)
        mark = len(tree.log())
        replace(tree, "umaster")  # which meets everybody but the operator
        works(tree, clients, len(ORDER))
    for role in ORDER:
        assert told(tree, role, mark) - {"operator"} == set(), role
    nobody_is_at_fault(tree)


@pytest.mark.root
def test_two_versions_apart_is_refused_told_by_both_counted_and_ends_with_the_right_release(
    some: Releases, plant: Plant
) -> None:
    tree = plant(python=some.python)
    tree.expect("keeper ended", "away", "broke the protocol", "turned away")
    some.choose({"vhost": 2})
    replace(tree, "vhost")
    counter = ("pyttpd_master_channel_faults_total", ("peer", "vhost"), ("reason", "bad-version"))
    tree.wait_for(lambda: tree.samples("master").get(counter, 0) >= 8, 30.0)
    newest, oldest = VERSION + 2, VERSION + 1
    log = tree.log()
    for name in ("static", "wsgi"):
        theirs = f"master speaks version {VERSION}, {oldest} to {newest} are understood here"
        ours = f"as vhost {name} speaks versions {oldest} to {newest}, 1 to {VERSION} are understood here"
        said = [line for line in log.splitlines() if "broke the protocol" in line]
        assert len([line for line in said if f" vhost.{name}[" in line and theirs in line]) == 1, log
        assert len([line for line in said if " master[" in line and ours in line]) == 1, log
    some.choose({})
    replace(tree, "vhost")
    for host in ("static.localhost", "wsgi.localhost"):
        tree.wait_for(lambda host=host: tree.get(host).status == 200, 20.0)  # type: ignore[misc]
