"""Any process of a tree is killed, stopped, asked to leave, replaced or reloaded under load: nothing more is lost than
what a killed process alone held.

`make chaos SECONDS=600 SEED=7` runs longer, with another schedule. In CI it is CI_SECONDS, and always the same one.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable

import pytest

from chaos import clients, schedule, sums
from chaos.content import files
from chaos.stage import NotWhole, Stage, crowd, report, table
from support.tree import TENANTS as TWO_TENANTS
from support.tree import Tree

#: Long enough for all kinds of events.
CI_SECONDS = 120.0
SECONDS = float(os.environ.get("PYTTPD_CHAOS_SECONDS") or CI_SECONDS)
SEED = int(os.environ.get("PYTTPD_CHAOS_SEED") or 1)
#: So many violations are printed.
MOST_SHOWN = 40
#: For trying one thing: part of an action's name and its target's.
ONLY = os.environ.get("PYTTPD_CHAOS_ONLY", "")

#: What has no successor any more is gone, and pools have as many workers as in the beginning, within this (s).
SETTLED_WITHIN = 30.0

#: Who leaves has half of it for its idle connections; that is to be enough on a busy machine as well.
GRACE = 20.0

HOSTS = ("wsgi.localhost", "static.localhost")
TENANTS = (
    re.sub("^root = .*$", r'\g<0>\naccess_log = "off"', TWO_TENANTS, flags=re.MULTILINE)
    + """
[vhost.static.pool]
max_workers = 2
max_requests = 500

[vhost.wsgi.pool]
max_workers = 3
max_threads = 4
max_requests = 300
"""
)
#: What the log says of all this at level error; everything else there is unexpected.
EXPECTED = (
    "gives no sign of life",
    "is stopped",
    "has not left within grace",
    "reload refused",  # of a pair: init or master was away, and the operator asks again
)


def tables() -> str:
    """Return what is set in this machine's firewall."""
    return subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


def retired(tree: Tree) -> int:
    """Return how many workers have left since they had served max_requests, by the tree's log."""
    return len(re.findall(r"worker left .*reason=requests", tree.log()))


@pytest.mark.root
@pytest.mark.program("nft")
@pytest.mark.timeout(SECONDS + 300)
def test_nothing_is_lost(plant: Callable[..., Tree]) -> None:
    memory = set(os.listdir("/dev/shm"))
    tree = plant(tenants=TENANTS, files=files(), hosts=(), grace=GRACE)
    tree.expect(*EXPECTED)
    stage = Stage(tree, HOSTS, tenants=2)
    assert tree.table in tables()
    events = schedule.plan(SEED)
    count = pairs = 0
    broken: list[str] = []
    with crowd(tree.port, SEED, HOSTS, HOSTS[:1]) as seen:
        until = time.monotonic() + SECONDS
        try:
            with stage.urgent():
                while time.monotonic() < until:
                    event = next(events)
                    if ONLY and not any(ONLY in str(deed) for deed in event.deeds):
                        continue
                    pairs += len(stage.do(event)) > 1
                    count += 1
        except NotWhole as error:
            broken = [f"the tree was not whole again {error}"]
        finally:
            time.sleep(clients.IDLE)  # who sleeps finds out what has become of its connection
    violations = broken + stage.judge(seen.failures)
    found = report(stage.done, seen.summaries, seen.failures, retired(tree))
    found |= {"seconds": SECONDS, "events": count, "pairs": pairs, "violations": violations}
    sums.write(found, f"plain-{SEED}", tree.log())
    print(f"\nseed {SEED}, {SECONDS:g} s, {count} events, {pairs} of them pairs\n")
    print(table(found))
    print()
    for text in violations[:MOST_SHOWN]:
        print("VIOLATION", text)
    tree.wait_for(lambda: not tree.busy())
    tree.wait_for(lambda: not stage.zombies(), why=stage.zombies)
    assert not violations, f"{len(violations)} violations, the first: {violations[0]}"
    assert all(summary.answered for summary in seen.summaries)
    tree.wait_for(lambda: not stage.grown(), SETTLED_WITHIN, why=stage.grown)
    tree.end(within=SETTLED_WITHIN)
    assert not stage.stragglers()
    assert set(os.listdir("/dev/shm")) <= memory
    assert tree.table not in tables()
