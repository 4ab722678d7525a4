"""The seccomp filter: which system calls a process under a role's or tenant's uid can still make.

Theory of operation: a program in classic BPF sees each call's number, architecture and six arguments (struct
seccomp_data), and answers allow, refuse with an errno, or kill. It can't follow pointers; so flags and
families can be judged, addresses can't (those are Landlock's). Ours is a list of what is refused, with three
nets below it: a foreign architecture kills, x32 is refused, and a call newer than the table in kernel.py
"does not exist".

The kernel works out beforehand which calls are allowed without looking at an argument, and skips the program
for those (since 5.11). So what is looked at stands in front and ends in its own verdict, and read, recv,
epoll_wait and so on are never run through it.

Every rule is a *block*: a list of instructions that is left only by a verdict, or by falling out of its end
when it does not apply. Blocks nest by relative jumps, so there are no labels to resolve.
"""

from __future__ import annotations

import errno
import socket
import struct
from ctypes import create_string_buffer
from dataclasses import dataclass
from functools import cache
from typing import Final

from pyttpd.confine.kernel import (
    LAST_SYSCALL,
    PR_GET_SECCOMP,
    SYSCALLS,
    ConfineError,
    Machine,
    address_of,
    machine,
    prctl,
    syscall,
)

# --- linux/bpf_common.h, linux/seccomp.h --------------------------------------------------------------------
_LD_W_ABS: Final = 0x20
_JMP_JEQ_K: Final = 0x15
_JMP_JGT_K: Final = 0x25
_JMP_JGE_K: Final = 0x35
_JMP_JSET_K: Final = 0x45
_RET_K: Final = 0x06
#: A conditional jump's offsets are one byte.
_LONGEST_JUMP: Final = 255
#: BPF_MAXINSNS.
_LONGEST_PROGRAM: Final = 4096

_RET_KILL_PROCESS: Final = 0x80000000
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000

_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1
_MODE_FILTER: Final = 2

_AT_NR: Final = 0
_AT_ARCH: Final = 4
_AT_ARGS: Final = 16

# --- what the arguments mean --------------------------------------------------------------------------------
MSG_FASTOPEN: Final = 0x20000000
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET (sched.h). NEWTIME can't be asked of
#: clone().
CLONE_NEW_NAMESPACE: Final = 0x7E020000
CLONE_THREAD: Final = 0x00010000
#: linux/ioprio.h.
_IOPRIO_WHO_PROCESS: Final = 1
#: linux/tcp.h. ULP would put kernel TLS or worse under a connection; REPAIR turns it into any other one.
TCP_REFUSED: Final = {
    "TCP_REPAIR": 19,
    "TCP_REPAIR_QUEUE": 20,
    "TCP_FASTOPEN": 23,
    "TCP_REPAIR_WINDOW": 29,
    "TCP_FASTOPEN_CONNECT": 30,
    "TCP_ULP": 31,
}
#: What socket() and socketpair() may be told beside a type (socket.h); the kernel refuses all else.
_SOCKET_FLAGS: Final = tuple(
    nonblock | cloexec for nonblock in (0, socket.SOCK_NONBLOCK) for cloexec in (0, socket.SOCK_CLOEXEC)
)
#: Typing on somebody's terminal.
IOCTLS_REFUSED: Final = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C}
#: From SIOCGSTAMP on: the interfaces, routes and the namespace (SIOCGSKNS) behind a received connection are
#: init's. SIOCINQ and SIOCOUTQ, which workers need, are terminal numbers (FIONREAD, TIOCOUTQ) and not in it.
IOCTLS_OF_SOCKETS: Final = (0x8906, 0x89FF)

#: Refused whatever their arguments, for everybody. Grouped by what they would be used for.
REFUSED: Final = (
    # a socket of one's own, without the calls that are watched
    "listen",
    "io_uring_setup",
    "io_uring_enter",
    "io_uring_register",
    # other processes: their memory, descriptors, secrets
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "process_madvise",
    "process_mrelease",
    "kcmp",
    "pidfd_getfd",
    # wide doors into the kernel
    "bpf",
    "perf_event_open",
    "userfaultfd",
    "fanotify_init",
    "lookup_dcookie",
    "modify_ldt",
    "personality",
    "uselib",
    "_sysctl",
    "sysfs",
    "ustat",
    "nfsservctl",
    # keys are shared over namespaces
    "add_key",
    "request_key",
    "keyctl",
    # another view of files
    "mount",
    "umount2",
    "pivot_root",
    "chroot",
    "open_tree",
    "open_tree_attr",
    "move_mount",
    "fsopen",
    "fsconfig",
    "fsmount",
    "fspick",
    "mount_setattr",
    "open_by_handle_at",
    # other namespaces
    "unshare",
    "setns",
    # the machine itself
    "init_module",
    "finit_module",
    "delete_module",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "kexec_load",
    "kexec_file_load",
    "reboot",
    "swapon",
    "swapoff",
    "quotactl",
    "quotactl_fd",
    "acct",
    "settimeofday",
    "clock_settime",
    "clock_adjtime",
    "adjtimex",
    "sethostname",
    "setdomainname",
    "syslog",
    "vhangup",
    "iopl",
    "ioperm",
)


@dataclass(frozen=True, slots=True)
class Switches:
    """What differs between the processes that we confine; the rest is the same for all.

    tcp: the address families of which it may make TCP sockets. unix: it may make Unix sockets; if not, pairs of them
    that are connected to each other for good.
    """

    allow_exec: bool
    allow_fork: bool
    allow_connect: bool
    allow_bind: bool
    tcp: frozenset[int] = frozenset()
    unix: bool = True


@dataclass(frozen=True, slots=True)
class Instruction:
    """struct sock_filter."""

    code: int
    jt: int
    jf: int
    k: int

    def encode(self) -> bytes:
        """Return the eight bytes that the kernel reads."""
        return struct.pack("<HBBI", self.code, self.jt, self.jf, self.k)


Block = tuple[Instruction, ...]


def _load(offset: int) -> Block:
    return (Instruction(_LD_W_ABS, 0, 0, offset),)


def _load_arg(index: int) -> Block:
    """Load the low half of an argument: the kernel itself takes no more of an int, and may be sent anything
    above.
    """
    return _load(_AT_ARGS + 8 * index)


def _verdict(value: int) -> Block:
    return (Instruction(_RET_K, 0, 0, value),)


def _refuse(code: int = errno.EPERM) -> Block:
    return _verdict(_RET_ERRNO | code)


_ALLOW: Final = _verdict(_RET_ALLOW)


def _jump(code: int, k: int, body: Block, *, negate: bool = False) -> Block:
    """Run `body` if the comparison holds (or, negated, if it does not), else go on behind it."""
    if len(body) > _LONGEST_JUMP:
        raise ConfineError("a block of the filter is longer than a jump")
    jt, jf = (len(body), 0) if negate else (0, len(body))
    return (Instruction(code, jt, jf, k), *body)


def _if_equal(k: int, body: Block) -> Block:
    return _jump(_JMP_JEQ_K, k, body)


def _unless_equal(k: int, body: Block) -> Block:
    return _jump(_JMP_JEQ_K, k, body, negate=True)


def _if_any_bit(mask: int, body: Block) -> Block:
    return _jump(_JMP_JSET_K, mask, body)


def _unless_any_bit(mask: int, body: Block) -> Block:
    return _jump(_JMP_JSET_K, mask, body, negate=True)


def _if_above(k: int, body: Block) -> Block:
    return _jump(_JMP_JGT_K, k, body)


def _if_at_least(k: int, body: Block) -> Block:
    return _jump(_JMP_JGE_K, k, body)


def _flag_refused(arg: int, mask: int) -> Block:
    return (*_load_arg(arg), *_if_any_bit(mask, _refuse()), *_ALLOW)


#: EACCES is what socket(2) promises for "permission to create a socket of this type is denied".
_NO_SUCH_SOCKET: Final = _refuse(errno.EACCES)


def _of_types(types: tuple[int, ...], body: Block) -> Block:
    """Run `body` if the second argument is one of the socket types, whatever flags go with it; else refuse."""
    wanted = [i for kind in types for flags in _SOCKET_FLAGS for i in _if_equal(kind | flags, body)]
    return (*_load_arg(1), *wanted, *_NO_SUCH_SOCKET)


def _socket(switches: Switches) -> Block:
    # No other protocol (MPTCP, SCTP, SMC), no datagrams, no raw packets.
    plain_tcp: Block = (
        *_load_arg(2),
        *_if_equal(0, _ALLOW),
        *_if_equal(socket.IPPROTO_TCP, _ALLOW),
        *_NO_SUCH_SOCKET,
    )
    allowed = list(_if_equal(socket.AF_UNIX, _ALLOW)) if switches.unix else []
    for family in sorted(switches.tcp):
        allowed += _if_equal(family, _of_types((socket.SOCK_STREAM,), plain_tcp))
    return (*_load_arg(0), *allowed, *_NO_SUCH_SOCKET)


def _socketpair(switches: Switches) -> Block:
    # The two ends of a datagram pair can be connected to somebody else; those of the others say EISCONN.
    pair = _ALLOW if switches.unix else _of_types((socket.SOCK_STREAM, socket.SOCK_SEQPACKET), _ALLOW)
    return (*_load_arg(0), *_if_equal(socket.AF_UNIX, pair), *_NO_SUCH_SOCKET)


def _setsockopt() -> Block:
    options = [i for number in TCP_REFUSED.values() for i in _if_equal(number, _refuse())]
    of_tcp: Block = (*_load_arg(2), *options, *_ALLOW)
    # SO_LINGER is the connection's, not the descriptor's: whoever closes it last would wait as long as a tenant likes.
    of_any: Block = (*_load_arg(2), *_if_equal(socket.SO_LINGER, _refuse()), *_ALLOW)
    return (
        *_load_arg(1),
        *_if_equal(socket.IPPROTO_TCP, of_tcp),
        *_if_equal(socket.SOL_SOCKET, of_any),
        *_ALLOW,
    )


def _zero_only(*indices: int) -> Block:
    """Allow the call if these arguments are all 0."""
    return (*(i for index in indices for i in (*_load_arg(index), *_unless_equal(0, _refuse()))), *_ALLOW)


def _ioctl() -> Block:
    first, last = IOCTLS_OF_SOCKETS
    single = [i for number in IOCTLS_REFUSED.values() for i in _if_equal(number, _refuse())]
    of_sockets = _if_at_least(first, (*_if_above(last, _ALLOW), *_refuse()))
    return (*_load_arg(1), *single, *of_sockets, *_ALLOW)


def _clone(switches: Switches) -> Block:
    fork = () if switches.allow_fork else _unless_any_bit(CLONE_THREAD, _refuse())
    return (*_load_arg(0), *_if_any_bit(CLONE_NEW_NAMESPACE, _refuse()), *fork, *_ALLOW)


def rules(switches: Switches) -> list[tuple[str, Block]]:
    """Return the filter's rules in order: a call's name and what is done with it. What is not named is
    allowed.
    """
    table: list[tuple[str, Block]] = [
        # Those with arguments first, the most frequent at the head: see the module's text.
        ("sendto", _flag_refused(3, MSG_FASTOPEN)),
        ("sendmsg", _flag_refused(2, MSG_FASTOPEN)),
        ("setsockopt", _setsockopt()),
        ("ioctl", _ioctl()),
        ("sendmmsg", _flag_refused(3, MSG_FASTOPEN)),
        ("socket", _socket(switches)),
        ("socketpair", _socketpair(switches)),
        ("clone", _clone(switches)),
        # clone3 takes its flags by pointer, where no filter sees them. The C library goes back to clone on
        # ENOSYS.
        ("clone3", _refuse(errno.ENOSYS)),
        # Limits and priorities of others: the kernel asks for the same uid only, which our keepers and supervisors
        # have (and, for an ordinary user, every role); Landlock isn't asked. A limit of processor time kills.
        ("prlimit64", _zero_only(0)),
        ("sched_setaffinity", _zero_only(0)),
        ("sched_setattr", _zero_only(0)),
        ("sched_setparam", _zero_only(0)),
        ("sched_setscheduler", _zero_only(0)),
        ("setpriority", _zero_only(0, 1)),
        ("ioprio_set", (*_load_arg(0), *_unless_equal(_IOPRIO_WHO_PROCESS, _refuse()), *_zero_only(1))),
    ]
    table.extend((name, _refuse()) for name in REFUSED)
    if not switches.allow_exec:
        table.extend((name, _refuse()) for name in ("execve", "execveat"))
    if not switches.allow_fork:
        table.extend((name, _refuse()) for name in ("fork", "vfork"))
    if not switches.allow_connect:
        table.append(("connect", _refuse()))
    if not switches.allow_bind:
        table.append(("bind", _refuse()))
    return table


@cache
def assemble(switches: Switches, on: Machine) -> bytes:
    """Return the filter as an array of struct sock_filter for the architecture `on`: made once, and kept for whoever is
    forked. Nobody has more than a few kinds of children.
    """
    program: list[Instruction] = [
        *_load(_AT_ARCH),
        # int 0x80 enters as i386, with other numbers: nothing of ours does that.
        *_unless_equal(on.audit, _verdict(_RET_KILL_PROCESS)),
        *_load(_AT_NR),
    ]
    if on.foreign_bit is not None:
        program += _if_at_least(on.foreign_bit, _refuse())
    program += _if_above(LAST_SYSCALL, _refuse(errno.ENOSYS))
    for name, body in rules(switches):
        number = SYSCALLS[name][on.column]
        if number is not None:
            program += _if_equal(number, body)
    program += _ALLOW
    if len(program) > _LONGEST_PROGRAM:
        raise ConfineError("the filter is longer than the kernel takes")
    return b"".join(instruction.encode() for instruction in program)


def install(switches: Switches) -> None:
    """Put the filter on every thread of this process (seccomp(2), TSYNC) and prove that it holds.

    no_new_privs must stand. Raises ConfineError.
    """
    install_filter(assemble(switches, machine()))
    kind = socket.SOCK_DGRAM if switches.tcp else socket.SOCK_STREAM
    try:
        socket.socket(socket.AF_INET, kind).close()
    except PermissionError:
        return
    raise ConfineError("the seccomp filter stands, but an AF_INET socket could be made")


def install_filter(program: bytes) -> None:
    """Put what `assemble` has made on every thread of this process (seccomp(2), TSYNC). Raises ConfineError."""
    array = create_string_buffer(program, len(program))
    # struct sock_fprog: u16 length in instructions, padding, pointer.
    fprog = struct.pack("<HxxxxxxQ", len(program) // 8, address_of(array))
    try:
        result = syscall("seccomp", _SET_MODE_FILTER, _FLAG_TSYNC, fprog)
    except OSError as error:
        raise ConfineError(f"the kernel takes no seccomp filter: {error}") from error
    if result != 0:
        raise ConfineError(
            f"thread {result} has a seccomp filter of its own: confine before starting threads"
        )
    if prctl(PR_GET_SECCOMP) != _MODE_FILTER:
        raise ConfineError("the kernel took the seccomp filter but does not show it")
