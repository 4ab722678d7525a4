"""What of a tenant's share asks for programs: which mounts have processes of their own, and which only a socket.

Rules
  1. Made from the share alone, so that supervisor, exec service and workers come to the same: pools are numbered in the
     order of their mounts.
  2. A mount without a `command` has no processes of ours; one with a `socket` is asked there.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pyttpd.config.asked import ScriptOptions
from pyttpd.config.kinds import KINDS
from pyttpd.config.processes import ProcessOptions
from pyttpd.config.shares import PoolSettings, VhostShare

from pyttpd_vhost.execution.manager import Application
from pyttpd_vhost.tenant import DEFAULT_PATH, KEPT_ENVIRONMENT

if TYPE_CHECKING:
    from pyttpd_vhost.execution.places import Listeners

#: No socket's name: where there is none.
NOBODY: Final = ".pyttpd-none"
#: Of a kind's socket: whole packets where the kind passes descriptors, else bytes.
_SOCKET_TYPES: Final = {"handoff": socket.SOCK_SEQPACKET}
#: Folders with settings for PHP; an empty one is the system's.
_PHP_INI: Final = "PHP_INI_SCAN_DIR"
#: php-cgi ends by itself after 500 requests unless told otherwise: within seconds under load, as if it had crashed.
#: When one is replaced is our `max_requests`, and before its successor serves it doesn't go. 0: never.
_PHP_REQUESTS: Final = "PHP_FCGI_MAX_REQUESTS"


@dataclass(frozen=True, slots=True)
class Backend:
    """A mount that is asked over a socket. `path`: of the socket, "" if there is none; `pool`: its processes' number in
    the tables, None if somebody else runs them.
    """

    mount: int
    name: str
    kind: int
    path: str
    pool: int | None


def wanted(share: VhostShare) -> bool:
    """Whether anything of the tenant's asks for a program to be run."""
    return any(KINDS[mount.kind].programs or _command(mount.options) for mount in share.mounts)


def plan(
    share: VhostShare, listeners: Listeners, tmp: str
) -> tuple[list[Application], list[Backend], list[str]]:
    """Return the applications, in the order of their numbers, all backends, and the mounts for which no socket is left.

    Takes the listening sockets from `listeners`, which keeps them.
    """
    applications: list[Application] = []
    backends: list[Backend] = []
    without: list[str] = []
    for index, mount in enumerate(share.mounts):
        kind = _SOCKET_TYPES.get(mount.kind, socket.SOCK_STREAM)
        command = _command(mount.options)
        if not command:
            if path := getattr(mount.options, "socket", None):
                backends.append(Backend(index, mount.path, kind, path, None))
            continue
        taken = listeners.take(kind)
        if taken is None:
            # Asked all the same, where nobody is: that is 503.
            backends.append(Backend(index, mount.path, kind, f"{tmp}/{NOBODY}", None))
            without.append(mount.path)
            continue
        sock, path = taken
        backends.append(Backend(index, mount.path, kind, path, len(applications)))
        options = mount.options
        assert isinstance(options, ProcessOptions)
        applications.append(
            Application(
                mount.path,
                mount.kind,
                command,
                getattr(options, "root", None) or share.root,
                {**environment(share, tmp), **_for_php(share, options)},
                settings(options),
                sock.fileno(),
            )
        )
    return applications, backends, without


def _command(options: object) -> tuple[str, ...]:
    return options.command if isinstance(options, ProcessOptions) else ()


def _for_php(share: VhostShare, options: ProcessOptions) -> dict[str, str]:
    """Return what PHP needs to leave its end to us, and to find the tenant's own folder for temporary files; the
    tenant's own word goes first.
    """
    if not isinstance(options, ScriptOptions):
        return {}
    wanted = {_PHP_REQUESTS: "0"}
    if ".php" in options.scripts:
        wanted[_PHP_INI] = f":{os.path.dirname(__file__)}/php"
    return {key: value for key, value in wanted.items() if key not in share.env}


def settings(options: ProcessOptions) -> PoolSettings:
    """Return the options in the words of the policy."""
    return PoolSettings(
        max_workers=options.processes,
        mode=options.mode,
        min_spare=options.min_spare,
        max_spare=options.max_spare,
        idle_timeout=options.idle_timeout,
        max_requests=options.max_requests,
        max_age=options.max_age,
        max_memory=options.max_memory,
    )


def environment(share: VhostShare, tmp: str) -> dict[str, str]:
    """Return the variables of an application process: what the prototype has as well, and the tenant's own."""
    kept = {key: os.environ[key] for key in KEPT_ENVIRONMENT if key in os.environ}
    path = kept.get("PATH") or DEFAULT_PATH
    if share.virtualenv:
        kept["VIRTUAL_ENV"] = share.virtualenv
        path = f"{share.virtualenv}/bin:{path}"
    return {**kept, "PATH": path, "HOME": share.root, "TMPDIR": tmp, **share.env}
