"""Everything that starts programs for a tenant: the exec service (service.py, with a reaper for each program), and the
manager of the tenant's application processes (manager.py), which uses it like anybody else.
"""

from __future__ import annotations

from pyttpd.config.shares import VhostShare

#: The kinds of mounts that run programs.
KINDS = ("cgi", "fastcgi", "scgi", "handoff")


def wanted(share: VhostShare) -> bool:
    """Whether anything of the tenant's asks for a program to be run."""
    return any(mount.kind in KINDS for mount in share.mounts)
