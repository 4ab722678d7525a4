"""What a tree's processes run without one of their locks, so that suite/locks.py can say what that lock costs.

The product has no switch for it, and this isn't one: suite/locks.py makes a Python environment in which this file is
imported by every interpreter that starts (a .pth file, beside which the lock's name stands), and starts a tree with
that. Not for anything else: tenants in such a tree aren't kept apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyttpd import confine

#: Beside this file, in the environment: which lock is left out.
NAME = "pyttpd_unlocked.txt"
NAMESPACE, CONFINEMENT, EGRESS, ALL = "network namespace", "Landlock and seccomp", "egress rule", "all three"


def leave_out(lock: str) -> None:
    """Do without `lock` in this process. The egress rule isn't here: it is taken away from outside."""
    if lock in (CONFINEMENT, ALL):
        # `locks` is there for the matrix of tests/hostile, which shows each lock alone.
        defaults = confine.confine.__kwdefaults__
        assert defaults is not None
        defaults["locks"] = frozenset({confine.Lock.CAPABILITIES})
    if lock in (NAMESPACE, ALL) and "--plain" in sys.orig_argv:  # the runner, who makes them
        from pyttpd import namespaces

        namespaces.enter_network_namespace = lambda: None


if __name__ == "pyttpd_unlocked":
    leave_out(Path(__file__).with_name(NAME).read_text())
