"""Confinement: what stands between a role or tenant and all that is not its business (DESIGN section 6).

The rules:

1. Called by our own code, before the process sees a foreign byte or imports foreign code, after its channels
   stand and its uid is the final one. Not voluntary for a tenant, not switched by environment or
   configuration.
2. For good: none of it can be undone, everything the process starts inherits it, and a second confine() can
   only take more away. So a supervisor is confined by what all its children need, each child by less.
3. In this order, because each needs the one before it: no_new_privs, capabilities (needs no filter in the
   way), Landlock (opens paths), seccomp (would refuse the others' calls in a later kernel).
4. One thread. Landlock and capabilities are a thread's, and a thread that was there before would keep its
   own.

What it costs: 40 ns for the way in of any system call as soon as there is a filter, and nothing else for those that
are allowed without looking at an argument (read, recv, epoll_wait, accept); 20 ns for each filter where one is looked
at (sendto, sendmsg); a walk up the path per open(). So a small request on a kept connection pays a hundredth.
"""

from __future__ import annotations

import enum
import os
import sys
from dataclasses import dataclass, replace

from pyttpd.address import Address
from pyttpd.confine import kernel, landlock, seccomp
from pyttpd.confine.kernel import ConfineError
from pyttpd.confine.policy import Policy, python_paths, role_policy, tenant_policy


class Lock(enum.Enum):
    """The parts of confine(). Leaving one out is for the matrix of tests/hostile, which shows each alone."""

    CAPABILITIES = "capabilities"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"


ALL_LOCKS = frozenset(Lock)


class NetworkGuard(enum.Enum):
    """What refuses TCP connect and bind on a socket that was handed over."""

    LANDLOCK = "Landlock, for TCP"
    SECCOMP = "seccomp, for every socket"
    PENDING = "nothing until the channels stand, then seccomp"
    NONE = "nothing"


@dataclass(frozen=True, slots=True)
class Report:
    """What stands after confine(). abi: Landlock's, 0 if the kernel has none (then files are guarded by uids
    and mount namespaces only). missing: paths of the policy that were not there. connect: connect() can be
    called on Unix sockets, so that a channel can be opened again. reach: whom TCP connections may be opened to.
    """

    abi: int
    locks: frozenset[Lock]
    network: NetworkGuard
    connect: bool
    missing: tuple[str, ...]
    reach: tuple[Address, ...] = ()

    def __str__(self) -> str:
        names = ", ".join(sorted(lock.value for lock in self.locks)) or "no_new_privs only"
        but = f", but to {', '.join(map(str, self.reach))}" if self.reach else ""
        return f"{names}; Landlock ABI {self.abi}; TCP connect and bind refused by {self.network.value}{but}"


def confine(policy: Policy, *, locks: frozenset[Lock] = ALL_LOCKS) -> Report:
    """Confine this process for good by `policy`; return what stands.

    `locks` is for tests only: production code never names it. Raises ConfineError when seccomp, no_new_privs
    or the dropping of capabilities fails, when Landlock fails on a kernel that has it or can't judge what the policy
    lets it reach, with more than one thread, or when a uid or gid could be taken back; the process must then end, it
    may be half confined.
    """
    _require_one_thread()
    if Lock.CAPABILITIES in locks:
        _require_final_ids()
    kernel.set_no_new_privs()
    if Lock.CAPABILITIES in locks:
        kernel.drop_capabilities()
    kernel.set_dumpable(policy.dumpable)
    abi = landlock.kernel_abi() if Lock.LANDLOCK in locks else 0
    if policy.reach and Lock.LANDLOCK in locks and abi < landlock.NETWORK_ABI:
        raise ConfineError(
            "an allowed address takes a kernel whose Landlock judges TCP ports "
            f"(Linux 6.7, ABI {landlock.NETWORK_ABI}); this one's ABI is {abi}: remove `allow` from the configuration"
        )
    missing: tuple[str, ...] = ()
    stands = set(locks)
    if abi:
        rules = [
            *((path, landlock.READ) for path in policy.read),
            *((path, landlock.WRITE) for path in policy.write),
            *((path, landlock.RUN) for path in policy.execute),
        ]
        missing = landlock.restrict(rules, abi, ports=sorted({address.port for address in policy.reach}))
    else:
        stands.discard(Lock.LANDLOCK)
    # Without Landlock's TCP rights only the filter can refuse to turn a connection round, and it can't tell a
    # Unix socket from another: both calls go, connect at the latest with seal(). In a test that left
    # Landlock out on purpose, the filter is to stand alone.
    tcp_by_landlock = abi >= landlock.NETWORK_ABI
    connect = policy.allow_connect and (tcp_by_landlock or policy.connects_late or bool(policy.reach))
    network = NetworkGuard.LANDLOCK if tcp_by_landlock else NetworkGuard.NONE
    if Lock.SECCOMP in locks:
        seccomp.install(_switches(policy, connect=connect, tcp_by_landlock=tcp_by_landlock))
        if not tcp_by_landlock:
            late = NetworkGuard.PENDING if policy.connects_late else NetworkGuard.NONE
            network = late if connect else NetworkGuard.SECCOMP
    may_connect = connect if Lock.SECCOMP in locks else True
    return Report(abi, frozenset(stands), network, may_connect, missing, policy.reach)


def prepare(policy: Policy) -> None:
    """Make what confine() will need that looks the same in many processes, in the one that they are forked from.

    For kernels whose Landlock judges TCP connections; on others it is made for nothing.
    """
    if abi := landlock.kernel_abi():
        landlock.ruleset_attr(abi)
    seccomp.assemble(_switches(policy, connect=policy.allow_connect, tcp_by_landlock=True), kernel.machine())


def _switches(policy: Policy, *, connect: bool, tcp_by_landlock: bool) -> seccomp.Switches:
    return seccomp.Switches(
        allow_exec=policy.allow_exec,
        allow_fork=policy.allow_fork,
        allow_connect=connect,
        allow_bind=policy.allow_bind and tcp_by_landlock,
        tcp=frozenset(address.family for address in policy.reach),
        unix=policy.own_unix_sockets,
    )


def seal(report: Report) -> Report:
    """Close what confine() had to leave open so that channels could be connected; return what stands now.

    Does nothing where Landlock judges TCP connections. Elsewhere nobody can tell a Unix socket from another, so this
    process connects to nothing any more: if a channel is lost, its successor has to open the next one. To be called
    before the first foreign byte. Raises ConfineError.
    """
    if report.network is not NetworkGuard.PENDING:
        return report
    seccomp.install(seccomp.Switches(allow_exec=True, allow_fork=True, allow_connect=False, allow_bind=False))
    return replace(report, network=NetworkGuard.SECCOMP, connect=False)


def _require_one_thread() -> None:
    try:
        count = len(os.listdir("/proc/self/task"))
    except OSError:
        # No /proc in this view. Then at least Python's own threads are known.
        threading = sys.modules.get("threading")
        count = threading.active_count() if threading is not None else 1
    if count != 1:
        raise ConfineError(f"a process is confined before it starts threads; this one has {count}")


def _require_final_ids() -> None:
    if len(set(os.getresuid())) != 1 or len(set(os.getresgid())) != 1:
        raise ConfineError(
            f"real, effective and saved ids differ (uid {os.getresuid()}, gid {os.getresgid()}):"
            " one could be taken back"
        )


__all__ = [
    "ALL_LOCKS",
    "ConfineError",
    "Lock",
    "NetworkGuard",
    "Policy",
    "Report",
    "confine",
    "prepare",
    "python_paths",
    "role_policy",
    "seal",
    "tenant_policy",
]
