"""The kernel's calls that confinement needs and Python does not offer: prctl, capset, and calls by number.

Theory of operation: ctypes on the C library that is loaded already, nothing else; no libseccomp, no libcap.
Numbers come from one table with a column for each architecture we know; on any other we refuse to start
(ConfineError) rather than guess. In step with it: tests/unit/test_confine_filter.py compares the table with
the kernel's headers where these are installed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from dataclasses import dataclass
from typing import Final


class ConfineError(Exception):
    """A lock that must stand can't stand, or the process is not in a state in which it could."""


# --- prctl(2) -----------------------------------------------------------------------------------------------
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_GET_SECCOMP: Final = 21
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

#: NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE, each with its lock (capabilities(7)): uid 0 means nothing
#: any more.
SECUREBITS_ROOT_IS_NOBODY: Final = 0b11_00_11_11

#: _LINUX_CAPABILITY_VERSION_3 (linux/capability.h): two words of 32 capabilities in each set.
CAPABILITY_VERSION_3: Final = 0x20080522
#: More than any kernel has (41 in 6.18); PR_CAPBSET_READ says EINVAL beyond the last one.
CAPABILITIES_TO_TRY: Final = 64


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between the architectures: column of the table of calls, audit number, the older ABIs'
    mark.
    """

    name: str
    column: int
    audit: int
    #: Calls with this bit in their number belong to the x32 ABI; None where there is no such thing.
    foreign_bit: int | None


#: linux/audit.h: EM_X86_64 and EM_AARCH64, each | __AUDIT_ARCH_64BIT | __AUDIT_ARCH_LE.
MACHINES: Final = {
    "x86_64": Machine("x86_64", 0, 0xC000003E, 0x40000000),
    "aarch64": Machine("aarch64", 1, 0xC00000B7, None),
}

#: name: (x86_64, aarch64); None where the architecture has no such call.
SYSCALLS: Final[dict[str, tuple[int | None, int | None]]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bind": (49, 200),
    "bpf": (321, 280),
    "capset": (126, 91),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "connect": (42, 203),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fork": (57, None),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "ioprio_set": (251, 30),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "landlock_add_rule": (445, 445),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "listen": (50, 201),
    "lookup_dcookie": (212, 18),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "prlimit64": (302, 261),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "sched_getattr": (315, 275),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "seccomp": (317, 277),
    "sendmmsg": (307, 269),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "setpriority": (141, 140),
    "setsockopt": (54, 208),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vfork": (58, None),
    "vhangup": (153, 58),
}

#: The last call this table was checked against (file_setattr, Linux 6.17; same number everywhere).
LAST_SYSCALL: Final = 469

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.prctl.restype = ctypes.c_int


def machine() -> Machine:
    """Return this machine's row. Raises ConfineError on an architecture without one, and for a 32-bit
    interpreter.
    """
    name = os.uname().machine
    row = MACHINES.get(name)
    if row is None or sys.maxsize < 2**32 or sys.byteorder != "little":
        known = ", ".join(sorted(MACHINES))
        raise ConfineError(f"confinement knows the 64-bit architectures {known}; this is {name}")
    return row


def number(name: str) -> int | None:
    """Return the number of the call `name` here, None if this architecture has no such call."""
    return SYSCALLS[name][machine().column]


def syscall(name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Make the call `name` (syscall(2)). Integers are passed as longs, bytes and buffers as pointers.

    Raises OSError with the call's errno; ENOSYS where the architecture has no such call.
    """
    nr = number(name)
    if nr is None:
        raise OSError(errno.ENOSYS, f"{name}: {os.strerror(errno.ENOSYS)}")
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = _libc.syscall(ctypes.c_long(nr), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def address_of(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Return the address of a buffer, for a structure that holds a pointer. The caller keeps the buffer
    alive.
    """
    return ctypes.addressof(buffer)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """Ask for one of the process's properties, or set it; return the answer. Raises OSError."""
    result: int = _libc.prctl(option, *(ctypes.c_ulong(arg) for arg in (arg2, arg3, arg4, arg5)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")
    return result


def set_no_new_privs() -> None:
    """No exec from here on gains a uid, a gid or a capability (PR_SET_NO_NEW_PRIVS). Raises ConfineError."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if prctl(PR_GET_NO_NEW_PRIVS) != 1:
        raise ConfineError("the kernel took PR_SET_NO_NEW_PRIVS but does not show it")


def set_dumpable(dumpable: bool) -> None:
    """Say whether processes of the same uid may look into this one: core files, ptrace,
    /proc/PID/{mem,fd,environ}.

    execve sets it back to 1 (prctl(2)).
    """
    prctl(PR_SET_DUMPABLE, int(dumpable))


def capability_sets() -> tuple[int, int, int, int]:
    """Return the calling thread's (effective, permitted, inheritable, bounding) sets as bit masks.

    Asks the kernel itself: /proc may not be there (capget would do for three; the bounding set is by prctl).
    """
    bounding = 0
    for capability in range(CAPABILITIES_TO_TRY):
        try:
            bounding |= prctl(PR_CAPBSET_READ, capability) << capability
        except OSError:
            break
    return *_held_capabilities(), bounding


def _held_capabilities() -> tuple[int, int, int]:
    """Return the sets that a thread has, effective, permitted and inheritable (capget(2))."""
    header = ctypes.create_string_buffer(
        CAPABILITY_VERSION_3.to_bytes(4, "little") + (0).to_bytes(4, "little"), 8
    )
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"capget: {os.strerror(code)}")
    words = [int.from_bytes(data.raw[at : at + 4], "little") for at in range(0, 24, 4)]
    return words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32


def drop_capabilities() -> None:
    """Give up every capability in every set, for good, and make uid 0 an ordinary uid where we still may.

    The bounding set and the securebits need CAP_SETPCAP; a process that never had it can't gain anything by
    them either, once no_new_privs stands. Raises ConfineError when a capability is left in a set that counts.
    """
    try:
        prctl(PR_SET_SECUREBITS, SECUREBITS_ROOT_IS_NOBODY)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
    for capability in range(CAPABILITIES_TO_TRY):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            # EINVAL: beyond the kernel's last one. EPERM: no CAP_SETPCAP.
            if error.errno in (errno.EINVAL, errno.EPERM):
                break
            raise
    try:
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel before 4.3 has no ambient set
            raise
    header = ctypes.create_string_buffer(
        CAPABILITY_VERSION_3.to_bytes(4, "little") + (0).to_bytes(4, "little"), 8
    )
    syscall("capset", header, ctypes.create_string_buffer(24))
    effective, permitted, inheritable = _held_capabilities()
    if effective or permitted or inheritable:
        raise ConfineError(f"capabilities are left: {effective | permitted | inheritable:#x}")
