"""What each kind of process may still do once it is confined: the values that the locks are built from."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Final

from pyttpd.address import Address

#: Where the interpreter finds shared libraries and its standard library, whatever its prefix. Absent ones
#: don't count.
LIBRARIES: Final = (
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
)
#: Time zones, for log lines in local time.
TIME_ZONES: Final = ("/usr/share/zoneinfo", "/etc/localtime", "/etc/timezone")
DEVICES_TO_READ: Final = ("/dev/zero", "/dev/random", "/dev/urandom")
DEVICES_TO_WRITE: Final = ("/dev/null",)
#: What programs are run from, and their data.
PROGRAMS: Final = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin")
#: The files of /etc that ordinary programs look up. Not /etc as a whole: on a machine without containers it
#: also holds the configuration of everybody else, ours among it.
ETC: Final = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    *("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/shells", "/etc/protocols", "/etc/services"),
    *("/etc/hosts", "/etc/hostname", "/etc/host.conf", "/etc/resolv.conf"),
    *("/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/ca-certificates"),
    *("/etc/locale.alias", "/etc/locale.conf", "/etc/terminfo", "/etc/inputrc", "/etc/fonts"),
    *("/etc/mime.types", "/etc/magic", "/etc/os-release", "/etc/debian_version"),
    *("/etc/python3", "/etc/perl", "/etc/php"),
)
#: On sys.path only by accident (the directory of a script); too wide to be opened for that.
NOBODYS: Final = frozenset({"/", "/tmp", "/var/tmp", "/run", "/home", "/root", "/etc", "/dev/shm"})
#: POSIX semaphores and shared memory lie here (multiprocessing). A file system of the tenant's own in
#: containers and under root; for an ordinary user all tenants have one uid, and the mode of its files is all
#: there is.
SHARED_MEMORY: Final = "/dev/shm"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a process may do, for confine(). Paths are absolute, each with all that lies below it; one that does
    not exist gets no rule. `write` and `execute` include reading; opened descriptors are not affected by any.

    allow_exec: start other programs.
    allow_fork: make processes; threads are always allowed.
    allow_connect, allow_bind: call these at all (never on anything but Unix sockets, and `reach`).
    reach: addresses to which TCP connections may be opened. What stands here is the port and the family; that it is
        this address and no other, the network namespace and the egress rule see to.
    own_unix_sockets: make Unix sockets other than connected pairs; off where connect() must be open for `reach` and
        other programs of the same user would take this one's word.
    connects_late: the process has yet to connect its channels, and calls seal() when they stand; this matters
        only without Landlock's TCP rights.
    dumpable: processes of the same uid may look into this one's memory and /proc entries.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    execute: tuple[str, ...] = ()
    allow_exec: bool = False
    allow_fork: bool = False
    allow_connect: bool = False
    allow_bind: bool = False
    connects_late: bool = False
    reach: tuple[Address, ...] = ()
    own_unix_sockets: bool = True
    dumpable: bool = False

    def __post_init__(self) -> None:
        for path in (*self.read, *self.write, *self.execute):
            if not os.path.isabs(path) or "\0" in path:
                raise ValueError(f"a policy's path must be absolute: {path!r}")
            if os.path.normpath(path) == "/":
                raise ValueError("a policy that opens / confines nothing")
        if self.connects_late and not self.allow_connect:
            raise ValueError("a policy that lets a process connect late must let it connect")
        if self.reach and not self.allow_connect:
            raise ValueError("a policy with addresses to reach must allow to connect")
        if self.execute and not self.allow_exec:
            raise ValueError("a policy with programs to run must allow to run them")


def python_paths() -> tuple[str, ...]:
    """Return what the running interpreter needs for imports that come late: its prefixes, the standard
    library, the directories on sys.path, and those that our own packages were imported from (editable
    installs).
    """
    found = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__)]
    found += sys.path
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.startswith("pyttpd") and "." not in name and file:
            found.append(os.path.dirname(os.path.dirname(file)))
    usable = (os.path.abspath(path) for path in found if os.path.isabs(path))
    return tuple(sorted({path for path in usable if path not in NOBODYS and os.path.exists(path)}))


def role_policy(
    *,
    read: tuple[str, ...] = (),
    write: tuple[str, ...] = (),
    allow_connect: bool = True,
    allow_bind: bool = False,
) -> Policy:
    """Return the policy of our own processes that meet foreign bytes: master, umaster, listener, a vhost's
    supervisor's helpers, init's metrics child. They run nothing, fork nothing, and read what Python may
    import late and `read`.

    It connects late: the process calls seal() before it takes the first foreign byte.

    allow_connect: to the Unix sockets of the channel directories, for as long as the process may have to come
    back to a peer that was replaced. (Landlock up to ABI 7 does not judge connect() by path, so these need no
    rule.) allow_bind: leave it off; a role binds before it is confined.
    """
    return Policy(
        read=(*python_paths(), *LIBRARIES, *TIME_ZONES, *DEVICES_TO_READ, *read),
        write=(*DEVICES_TO_WRITE, *write),
        allow_connect=allow_connect,
        allow_bind=allow_bind,
        connects_late=allow_connect,
    )


def tenant_policy(
    root: str,
    *,
    python_path: tuple[str, ...] = (),
    writable: tuple[str, ...] = (),
    tmp: tuple[str, ...] = ("/tmp",),
    readable: tuple[str, ...] = (),
    shared_memory: str | None = SHARED_MEMORY,
    reach: tuple[Address, ...] = (),
    one_uid: bool = False,
    allow_bind: bool = True,
) -> Policy:
    """Return the policy of a vhost's prototype and workers, which run the tenant's code.

    It may run programs (subprocess, CGI), reads its `root`, its `python_path` and `readable`, writes
    `writable`, `tmp` and shared memory. Nothing of /proc, /sys, /run or other tenants' roots; the tenant's
    own `root` is written only where `writable` says so. It may connect and bind Unix sockets below what it
    writes; it can't listen.

    reach: addresses that somebody wrote down for it. one_uid: its uid isn't its alone. Then it connects to no Unix
    socket: Landlock doesn't judge these by path, and those of the same user would take its word.
    """
    return Policy(
        read=(*ETC, *TIME_ZONES, *DEVICES_TO_READ, *readable),
        write=(*DEVICES_TO_WRITE, *writable, *tmp, *((shared_memory,) if shared_memory else ())),
        # The root too: a script that the tenant brought along may be run.
        execute=(*PROGRAMS, *LIBRARIES, *python_paths(), *python_path, root),
        allow_exec=True,
        allow_fork=True,
        allow_connect=bool(reach) or not one_uid,
        allow_bind=allow_bind,
        reach=reach,
        own_unix_sockets=not (reach and one_uid),
    )
