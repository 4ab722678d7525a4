"""A stage for the attempts: init's network, other processes, an attacker behind some of the locks, all made new.

Rules. Everything is made in a child of the test: its own network namespace (init's, for the play), its own mount
namespace, its own processes. All of it ends with the child, and nothing is sent anywhere but to that namespace's
loopback. Root only.

    stage       the child: makes the rest, collects what the attackers say, ends them all
    target      accepts TCP and echoes UDP in the stage's namespace: "the network" that is not to be reached
    sibling     has the attacker's uid but is none of its children: a keeper, a supervisor
    stranger    has another uid: another tenant, with a file, a Unix socket and an abstract one
    attacker    has connections that were accepted in the stage's namespace, and tries
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from pyttpd import confine, privileges
from pyttpd.address import Address
from pyttpd.confine import Policy, kernel, role_policy, tenant_policy
from pyttpd.namespaces import (
    MountView,
    TenantFiles,
    enter_mount_namespace,
    enter_network_namespace,
    role_view,
    tenant_view,
)
from pyttpd.roles import ROLES, Role

from hostile.attempts import ATTEMPTS, NotApplicable, Plan, killed, run
from pyttpd_init.egress import Allowed, set_egress

#: All attempts of one attacker take a few seconds at most, when everything is dropped on the way out.
PATIENCE = 60
STRANGER_UID = 29_999
#: Connections for the attacker: each is used up by one attempt.
CLIENTS = 24
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 16384 | 1 << 18


class Lock(enum.Enum):
    """What can be put between the attacker and its aims; the value heads its column."""

    NAMESPACES = "own namespaces"
    LANDLOCK = "Landlock"
    SECCOMP = "seccomp"
    EGRESS = "egress rule"


ALL = frozenset(Lock)
NONE: frozenset[Lock] = frozenset()


@dataclass(frozen=True, slots=True)
class Who:
    """An attacker: its uid, and what its role is given. database: it is allowed an address, with the target's port."""

    name: str
    uid: int
    policy: Callable[[Path], Policy]
    view: Callable[[Path], MountView]
    database: bool = False


def _role(name: str, uid: int) -> Who:
    return Who(
        name, uid, lambda _: role_policy(), lambda top: role_view(channels=(str(top / "channels/vhost"),))
    )


def _tenant_policy(top: Path) -> Policy:
    return tenant_policy(str(top / "root"), tmp=(str(top / "tmp"),))


def _tenant_view(top: Path) -> MountView:
    return tenant_view(
        TenantFiles(str(top / "root"), channels=(str(top / "channels/vhost"),), writable=(str(top / "tmp"),))
    )


TENANT = Who("tenant", ROLES[Role.VHOST].uid, _tenant_policy, _tenant_view)
WITH_DATABASE = Who(
    "tenant with a database", ROLES[Role.VHOST].uid, _tenant_policy, _tenant_view, database=True
)
#: Where its database would be; the target is its neighbour.
DATABASE_HOST = "127.0.0.2"
LISTENER = _role("listener", ROLES[Role.LISTENER].uid)
EVERYBODY = (
    TENANT,
    WITH_DATABASE,
    LISTENER,
    _role("master", ROLES[Role.MASTER].uid),
    _role("umaster", ROLES[Role.UMASTER].uid),
    _role("init's metrics child", 0),
)

Outcomes = dict[str, dict[str, str]]


def play(who: Who, locks: frozenset[Lock]) -> Outcomes:
    """Let `who` try everything behind `locks`; return what came of it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _end_with(lambda: os.write(write, json.dumps(_stage(who, locks)).encode()))
    os.close(write)
    try:
        return _collect(read, pid)
    finally:
        os.close(read)


def _collect(read: int, pid: int) -> Outcomes:
    parts = []
    while part := os.read(read, 65_536):
        parts.append(part)
    _, status = os.waitpid(pid, 0)
    if status or not parts:
        raise AssertionError(f"the stage ended with status {status:#x}; see standard error")
    outcomes: Outcomes = json.loads(b"".join(parts))
    return outcomes


def _end_with(action: Callable[[], object]) -> NoReturn:
    """Run `action` as the whole life of a forked process."""
    status = 1
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


# --- the stage ------------------------------------------------------------------------------------------------------
def _stage(who: Who, locks: frozenset[Lock]) -> Outcomes:
    signal.alarm(PATIENCE)
    enter_network_namespace()
    kernel.syscall("unshare", CLONE_NEWNS)
    kernel.syscall("mount", b"none", b"/", None, MS_REC_PRIVATE, None)
    with (
        _folder() as top,
        _cast(who, top) as (sibling, stranger),
        socket.create_server(("127.0.0.1", 0)) as door,
    ):
        target = _target()
        connections = [_connection(door) for _ in range(CLIENTS)]
        clients = [ours.fileno() for ours, _ in connections]
        channels = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        if Lock.EGRESS in locks:
            set_egress(allowed=[Allowed(address) for address in _reach(who, target)])

        def plan() -> Plan:
            return Plan(
                client=clients,
                listening=[each.fileno() for each in doors],
                channel=[ours.fileno() for ours, _ in channels],
                target=target,
                sibling=sibling,
                stranger=stranger,
                files=[str(top / "other/file")],
                frozen=[str(top / "root"), "/etc", "/usr"],
                sockets=[str(top / "other/sock")],
                abstract=["pyttpd-stranger"],
                channels=[str(top / "channels/vhost")],
                may_run=who.policy(top).allow_exec,
                may_fork=who.policy(top).allow_fork,
            )

        outcomes = _attack(who, locks, top, plan(), None)
        for name in [
            each.name for each in ATTEMPTS.values() if each.own_process and each.name not in outcomes
        ]:
            clients = clients[-2:]
            alone = plan()
            alone.alone = True
            outcomes |= _attack(who, locks, top, alone, name)
        for pair in (*connections, *channels):
            for end in pair:
                end.close()
        for each in doors:
            each.close()
    return {name: outcomes[name] for name in ATTEMPTS}


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    top = Path(tempfile.mkdtemp(prefix="pyttpd-stage-"))
    top.chmod(0o755)
    try:
        for name in ("root", "other", "channels/vhost", "tmp"):
            (top / name).mkdir(parents=True)
        (top / "tmp").chmod(0o1777)
        # Careless of the other tenant, so that more than the file's mode is put to the test.
        os.chown(top / "other", STRANGER_UID, STRANGER_UID)
        (top / "other/file").write_text("what is another tenant's")
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
            bound.bind(str(top / "channels/vhost/sock"))
        (top / "channels/vhost/sock").chmod(0o666)
        yield top
    finally:
        shutil.rmtree(top)


@contextlib.contextmanager
def _cast(who: Who, top: Path) -> Iterator[tuple[int, int]]:
    """Start the sibling and the stranger; yield their pids once they are ready; end them."""
    pids = []
    read, write = os.pipe()
    stage = os.getpid()
    for uid, act in ((who.uid, _wait), (STRANGER_UID, lambda: _be_stranger(top))):
        pid = os.fork()
        if pid == 0:
            _end_with(lambda uid=uid, act=act: _extra(stage, uid, write, act))  # type: ignore[misc]
        pids.append(pid)
    assert os.read(read, 1), "the sibling did not start"
    assert os.read(read, 1), "the stranger did not start"
    try:
        yield pids[0], pids[1]
    finally:
        os.close(read)
        os.close(write)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _extra(stage: int, uid: int, ready: int, act: Callable[[], object]) -> None:
    if uid:
        privileges.become(uid, uid)
    privileges.die_with_parent(stage, signal.SIGKILL)
    # A change of uid hides a process from its own uid; these are to be in reach as far as that goes.
    kernel.set_dumpable(True)
    kept = act()
    os.write(ready, b".")
    while True:
        signal.pause()
        del kept


def _wait() -> None:
    """Do nothing: the sibling is there."""


def _be_stranger(top: Path) -> list[socket.socket]:
    """Return sockets of the stranger that listen: in its own folder, open to all, and an abstract one."""
    listening = []
    for address in (str(top / "other/sock"), "\0pyttpd-stranger"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.bind(address)
        sock.listen()
        listening.append(sock)
    (top / "other/sock").chmod(0o666)
    return listening


def _target() -> tuple[str, int]:
    """Start the target; return its address. It ends with the stage."""
    tcp = socket.create_server(("127.0.0.1", 0), backlog=64)
    address: tuple[str, int] = tcp.getsockname()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(address)
    # Also whoever asks for a fast open is answered.
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 64)
    stage = os.getpid()
    if os.fork() == 0:

        def echo() -> None:
            privileges.die_with_parent(stage, signal.SIGKILL)
            while True:
                data, sender = udp.recvfrom(64)
                udp.sendto(data, sender)

        _end_with(echo)
    tcp.detach()  # stays open here, for as long as the stage: the kernel accepts by itself
    udp.close()
    return address


def _connection(door: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return an accepted connection and the client's end of it."""
    client = socket.create_connection(door.getsockname())
    accepted, _ = door.accept()
    return accepted, client


# --- the attacker -----------------------------------------------------------------------------------------------------
def _attack(who: Who, locks: frozenset[Lock], top: Path, plan: Plan, only: str | None) -> Outcomes:
    read, write = os.pipe()
    stage = os.getpid()
    pid = os.fork()
    if pid == 0:

        def attack() -> None:
            privileges.die_with_parent(stage, signal.SIGKILL)
            assert plan.target is not None
            _lock_in(who, locks, top, plan.target)
            outcomes = run(plan, None if only is None else [only])
            os.write(write, json.dumps(outcomes).encode())

        _end_with(attack)
    os.close(write)
    with os.fdopen(read) as answers:
        text = answers.read()
    _, status = os.waitpid(pid, 0)
    if text:
        outcomes: Outcomes = json.loads(text)
        return outcomes
    assert only is not None, f"the attacker ended with status {status:#x}"
    if not os.WIFSIGNALED(status):
        return {only: {"outcome": "SUCCEEDED", "detail": "the process was replaced"}}
    return run_killed(only, os.WTERMSIG(status))


def run_killed(name: str, number: int) -> Outcomes:
    """Return the outcome of an attempt whose process was ended by signal `number`."""
    try:
        killed(number)
    except PermissionError as error:
        return {name: {"outcome": "refused", "detail": str(error)}}
    except NotApplicable as reason:
        return {name: {"outcome": "not applicable", "detail": str(reason)}}
    return {name: {"outcome": "SUCCEEDED", "detail": ""}}


def _reach(who: Who, target: tuple[str, int]) -> tuple[Address, ...]:
    return (Address(DATABASE_HOST, target[1]),) if who.database else ()


def _lock_in(who: Who, locks: frozenset[Lock], top: Path, target: tuple[str, int]) -> None:
    """Become `who` behind `locks`, in the order in which production does it."""
    policy = replace(who.policy(top), reach=_reach(who, target))
    if Lock.NAMESPACES in locks:
        enter_network_namespace()
        enter_mount_namespace(who.view(top))
    if who.uid:
        privileges.become(who.uid, who.uid)
    chosen = set()
    if not who.uid or locks == ALL:
        # Without its capabilities even in the column without locks: a container's init has none of these either.
        chosen.add(confine.Lock.CAPABILITIES)
    if Lock.LANDLOCK in locks:
        chosen.add(confine.Lock.LANDLOCK)
    if Lock.SECCOMP in locks:
        chosen.add(confine.Lock.SECCOMP)
    if chosen:
        confine.seal(confine.confine(policy, locks=frozenset(chosen)))
