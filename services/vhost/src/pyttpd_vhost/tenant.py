"""The locks and surroundings of every process that runs what a tenant has brought: prototype, workers, exec service."""

from __future__ import annotations

import os
import resource
from dataclasses import replace

from pyttpd import confine
from pyttpd.address import parse
from pyttpd.config.kinds import KINDS
from pyttpd.config.processes import ProcessOptions
from pyttpd.config.shares import VhostShare
from pyttpd.confine.policy import SHARED_MEMORY
from pyttpd.log import Log

#: What of the environment the tenant's code sees besides its own `env`.
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ")
#: Where programs are looked for if nobody has said so.
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"

#: What an application process, or a request that runs a program, may have by itself where nobody says: its reaper, and
#: a few of its own (php-cgi's children, a shell's pipeline).
EACH_PROGRAM = 8


def most_processes(share: VhostShare) -> int:
    """Return how many processes and threads there may be of the tenant's uid."""
    pool = share.pool
    if pool.max_processes:
        return pool.max_processes
    programs = 0
    for mount in share.mounts:
        if isinstance(mount.options, ProcessOptions) and mount.options.command:
            programs += mount.options.processes
        elif KINDS[mount.kind].programs:
            programs += pool.max_workers * pool.max_threads
    return pool.processes + EACH_PROGRAM * programs


def confine_tenant(share: VhostShare, log: Log, tmp: str, *, one_uid: bool, connects: bool = False) -> None:
    """Lock this process, and so all that comes of it, before the tenant's code is seen.

    connects: this process itself runs none of that, and may connect to the tenant's own Unix sockets where what it
    starts may not.
    """
    if not one_uid:
        # Of the uid's processes and threads together; the supervisor and its keeper have no such limit.
        most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        wanted = most_processes(share)
        limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
    policy = confine.tenant_policy(
        share.root,
        python_path=(
            *share.python_path,
            *((share.virtualenv,) if share.virtualenv else ()),
            *share.folders(runs=True),
        ),
        readable=share.folders(runs=False),
        writable=share.writable,
        tmp=(tmp,),
        reach=tuple([parse(address) for address in share.allow]),
        one_uid=one_uid,
        shared_memory=None if one_uid else SHARED_MEMORY,
    )
    if connects and one_uid:
        policy = replace(policy, allow_connect=True, own_unix_sockets=True)
    report = confine.confine(policy)
    log.debug("tenant confined", locks=report)
    kept = {key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ}
    os.environ.clear()
    os.environ.update(kept | {"HOME": share.root, "TMPDIR": tmp})
