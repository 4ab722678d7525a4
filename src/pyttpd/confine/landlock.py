"""Landlock (landlock(7)): what a process may open, run and connect to, and whom it may signal.

Theory of operation: a ruleset names the rights it *handles*; what is handled is refused unless a rule allows
it. We handle every right the kernel knows, up to the ABI this file was written for. Paths get rules; TCP
bind gets none and is refused for good, and so is connect, but to the ports that a policy names (a tenant's database:
the kernel asks for the port only; the address is a matter of namespace and egress rule). The kernel's scopes
(abstract Unix sockets, signals)
keep a process from reaching out of its own domain; who is *outside* may still signal it, as a supervisor
must.

connect(AF_UNSPEC) is always allowed by Landlock (it dissolves an association), listen() and MSG_FASTOPEN are
not covered at all: these are the seccomp filter's (seccomp.py). The two are one lock and must stay in step.
"""

from __future__ import annotations

import enum
import errno
import os
import stat
import struct
from functools import cache
from typing import TYPE_CHECKING, Final

from pyttpd.confine.kernel import ConfineError, syscall

if TYPE_CHECKING:
    from collections.abc import Iterable

#: What this file knows. A newer kernel's further rights are not handled, exactly as on an older kernel.
NEWEST_ABI: Final = 7
#: The first ABI that handles TCP connect and bind; below it seccomp refuses both calls outright.
NETWORK_ABI: Final = 4
SCOPE_ABI: Final = 6

_CREATE_RULESET_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_RULE_NET_PORT: Final = 2


class Fs(enum.IntFlag):
    """Rights on files and directories (LANDLOCK_ACCESS_FS_*)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


class Net(enum.IntFlag):
    """Rights on TCP ports (LANDLOCK_ACCESS_NET_*)."""

    BIND_TCP = 1 << 0
    CONNECT_TCP = 1 << 1


class Scope(enum.IntFlag):
    """What may not leave the domain (LANDLOCK_SCOPE_*)."""

    ABSTRACT_UNIX_SOCKET = 1 << 0
    SIGNAL = 1 << 1


_FS_OF_ABI_1: Final = Fs((1 << 13) - 1)
#: Rights that a rule on something that is no directory may name; others make the kernel say EINVAL.
_FS_OF_A_FILE: Final = int(Fs.EXECUTE | Fs.WRITE_FILE | Fs.READ_FILE | Fs.TRUNCATE | Fs.IOCTL_DEV)

READ: Final = Fs.READ_FILE | Fs.READ_DIR
RUN: Final = READ | Fs.EXECUTE
#: Everything but device nodes and ioctl on devices.
WRITE: Final = (
    READ
    | Fs.WRITE_FILE
    | Fs.REMOVE_DIR
    | Fs.REMOVE_FILE
    | Fs.MAKE_DIR
    | Fs.MAKE_REG
    | Fs.MAKE_SOCK
    | Fs.MAKE_FIFO
    | Fs.MAKE_SYM
    | Fs.REFER
    | Fs.TRUNCATE
)


def kernel_abi() -> int:
    """Return the kernel's Landlock ABI, at most NEWEST_ABI; 0 where there is none or a sandbox hides it."""
    try:
        return min(syscall("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION), NEWEST_ABI)
    except OSError as error:
        # EOPNOTSUPP: built in, switched off at boot. EPERM: a container engine's older seccomp profile.
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def handled_fs(abi: int) -> Fs:
    """Return the file system rights that ABI `abi` can handle."""
    handled = _FS_OF_ABI_1
    for since, right in ((2, Fs.REFER), (3, Fs.TRUNCATE), (5, Fs.IOCTL_DEV)):
        if abi >= since:
            handled |= right
    return handled


@cache
def _handled_fs(abi: int) -> int:
    return int(handled_fs(abi))


def handled_net(abi: int) -> Net:
    """Return the TCP rights that ABI `abi` can handle."""
    return Net.BIND_TCP | Net.CONNECT_TCP if abi >= NETWORK_ABI else Net(0)


def scopes(abi: int) -> Scope:
    """Return the scopes that ABI `abi` has."""
    return Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL if abi >= SCOPE_ABI else Scope(0)


@cache
def ruleset_attr(abi: int) -> bytes:
    """Return struct landlock_ruleset_attr as long as ABI `abi` knows it: files, then TCP, then scopes."""
    fields = [int(handled_fs(abi))]
    if abi >= NETWORK_ABI:
        fields.append(int(handled_net(abi)))
    if abi >= SCOPE_ABI:
        fields.append(int(scopes(abi)))
    return struct.pack(f"<{len(fields)}Q", *fields)


def restrict(rules: Iterable[tuple[str, Fs]], abi: int, *, ports: Iterable[int] = ()) -> tuple[str, ...]:
    """Put the calling thread, and what it starts, into a domain with `rules`: pairs of path and rights.

    ports: TCP may be connected to these, and to no others; needs NETWORK_ABI.

    no_new_privs must stand. Returns the paths that were not there (or not to be seen): they got no rule.
    Raises ConfineError when the kernel refuses. Source: landlock(7), linux/landlock.h.
    """
    attr = ruleset_attr(abi)
    handled = _handled_fs(abi)
    try:
        ruleset = syscall("landlock_create_ruleset", attr, len(attr), 0)
    except OSError as error:
        raise ConfineError(f"Landlock (ABI {abi}) takes no ruleset: {error}") from error
    missing: list[str] = []
    try:
        for path, rights in rules:
            if not _add_path(ruleset, path, int(rights) & handled):
                missing.append(path)
        for port in ports:
            # struct landlock_net_port_attr: both in the host's byte order.
            rule = struct.pack("<QQ", Net.CONNECT_TCP, port)
            syscall("landlock_add_rule", ruleset, _RULE_NET_PORT, rule, 0)
        syscall("landlock_restrict_self", ruleset, 0)
    except OSError as error:
        raise ConfineError(f"Landlock (ABI {abi}): {error}") from error
    finally:
        os.close(ruleset)
    return tuple(missing)


def keep_signals(abi: int) -> bool:
    """Put the calling thread, and what it starts, into a domain of their own, out of which no signal of theirs gets;
    nothing else is taken away. Say whether ABI `abi` can do that.

    No_new_privs must stand. Raises ConfineError when the kernel refuses (it nests 16 domains).
    """
    if abi < SCOPE_ABI:
        return False
    # REFER is what a domain takes away even if it handles no files: without it no program here could move or link a
    # file from one folder to another (git does). What the domains around this one say of that stays in force.
    attr = struct.pack("<3Q", Fs.REFER, 0, Scope.SIGNAL)
    try:
        ruleset = syscall("landlock_create_ruleset", attr, len(attr), 0)
        try:
            _add_path(ruleset, "/", Fs.REFER)
            syscall("landlock_restrict_self", ruleset, 0)
        finally:
            os.close(ruleset)
    except OSError as error:
        raise ConfineError(f"Landlock (ABI {abi}) makes no domain: {error}") from error
    return True


def _add_path(ruleset: int, path: str, rights: int) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FS_OF_A_FILE
        if rights:
            # struct landlock_path_beneath_attr is packed: u64, s32.
            syscall("landlock_add_rule", ruleset, _RULE_PATH_BENEATH, struct.pack("<Qi", rights, fd), 0)
    finally:
        os.close(fd)
    return True
