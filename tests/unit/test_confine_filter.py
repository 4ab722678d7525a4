"""The seccomp filter without a kernel: its program is run here, for both architectures, call by call."""

from __future__ import annotations

import errno
import re
import socket
import struct
from pathlib import Path

import pytest

from pyttpd.confine import kernel, seccomp
from pyttpd.confine.kernel import MACHINES, SYSCALLS, ConfineError, Machine
from pyttpd.confine.seccomp import Switches

TENANT = Switches(allow_exec=True, allow_fork=True, allow_connect=True, allow_bind=True)
#: A tenant with a database: one with an IPv4 address and a uid of its own, one with both families and everybody's uid.
REACHING = Switches(
    allow_exec=True, allow_fork=True, allow_connect=True, allow_bind=True, tcp=frozenset({socket.AF_INET})
)
ONE_OF_MANY = Switches(
    allow_exec=True,
    allow_fork=True,
    allow_connect=True,
    allow_bind=True,
    tcp=frozenset({socket.AF_INET, socket.AF_INET6}),
    unix=False,
)
ROLE = Switches(allow_exec=False, allow_fork=False, allow_connect=False, allow_bind=False)
ALLOW = 0x7FFF0000
KILL = 0x80000000
ON = list(MACHINES.values())


def refused(code: int = errno.EPERM) -> int:
    return 0x00050000 | code


def verdict(program: bytes, arch: int, number: int, *args: int) -> int:
    """Run a classic BPF program on a struct seccomp_data; return what it answers."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *(*args, *(0,) * 6)[:6])
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at, accumulator = 0, 0
    while True:
        op, jt, jf, k = code[at]
        at += 1
        match op:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x15:
                at += jt if accumulator == k else jf
            case 0x25:
                at += jt if accumulator > k else jf
            case 0x35:
                at += jt if accumulator >= k else jf
            case 0x45:
                at += jt if accumulator & k else jf
            case 0x06:
                return int(k)
            case _:
                raise AssertionError(f"no such instruction: {op:#x}")


def ask(on: Machine, switches: Switches, name: str, *args: int) -> int:
    number = SYSCALLS[name][on.column]
    assert number is not None
    return verdict(seccomp.assemble(switches, on), on.audit, number, *args)


#: A call, its arguments, and what the filter says.
Case = tuple[str, tuple[int, ...], int]

TENANT_CASES: list[Case] = [
    ("socket", (socket.AF_UNIX, 1), ALLOW),
    ("socket", (socket.AF_INET, 1), refused(errno.EACCES)),
    ("socket", (socket.AF_INET6, 2), refused(errno.EACCES)),
    ("socket", (socket.AF_NETLINK, 3), refused(errno.EACCES)),
    # The kernel takes an int: what is above it must not make an AF_INET of an AF_UNIX, nor hide one.
    ("socket", (1 << 32 | socket.AF_INET, 1), refused(errno.EACCES)),
    ("socket", (1 << 32 | socket.AF_UNIX, 1), ALLOW),
    ("socketpair", (socket.AF_UNIX, 5), ALLOW),
    ("socketpair", (30, 5), refused(errno.EACCES)),
    ("sendto", (3, 0, 0, socket.MSG_NOSIGNAL), ALLOW),
    ("sendto", (3, 0, 0, seccomp.MSG_FASTOPEN), refused()),
    ("sendto", (3, 0, 0, 1 << 32 | seccomp.MSG_FASTOPEN | socket.MSG_DONTWAIT), refused()),
    ("sendmsg", (3, 0, socket.MSG_DONTWAIT), ALLOW),
    ("sendmsg", (3, 0, seccomp.MSG_FASTOPEN | socket.MSG_MORE), refused()),
    ("sendmmsg", (3, 0, 1, 0), ALLOW),
    ("sendmmsg", (3, 0, 1, seccomp.MSG_FASTOPEN), refused()),
    ("setsockopt", (3, socket.IPPROTO_TCP, socket.TCP_NODELAY), ALLOW),
    ("setsockopt", (3, socket.IPPROTO_TCP, socket.TCP_CORK), ALLOW),
    ("setsockopt", (3, socket.IPPROTO_TCP, 30), refused()),
    ("setsockopt", (3, socket.IPPROTO_TCP, 31), refused()),
    ("setsockopt", (3, socket.IPPROTO_TCP, 19), refused()),
    ("setsockopt", (3, socket.SOL_SOCKET, 30), ALLOW),
    ("setsockopt", (3, socket.SOL_SOCKET, socket.SO_LINGER), refused()),
    (
        "setsockopt",
        (3, socket.IPPROTO_TCP, socket.SO_LINGER),
        ALLOW,
    ),  # TCP_CONGESTION, which has the same number
    ("prlimit64", (0, 7), ALLOW),
    ("prlimit64", (1, 7), refused()),
    ("prlimit64", (1 << 32, 7), ALLOW),
    ("sched_setaffinity", (0,), ALLOW),
    ("sched_setaffinity", (1,), refused()),
    ("sched_setattr", (1,), refused()),
    ("sched_setparam", (1,), refused()),
    ("sched_setscheduler", (0, 3), ALLOW),
    ("sched_setscheduler", (1, 3), refused()),
    ("setpriority", (0, 0, 19), ALLOW),
    ("setpriority", (0, 1, 19), refused()),
    ("setpriority", (2, 0, 19), refused()),  # PRIO_USER: all of one's uid
    ("ioprio_set", (1, 0, 0), ALLOW),
    ("ioprio_set", (1, 1, 0), refused()),
    ("ioprio_set", (3, 0, 0), refused()),  # IOPRIO_WHO_USER
    ("ioctl", (3, 0x541B), ALLOW),  # FIONREAD
    ("ioctl", (3, 0x5411), ALLOW),  # TIOCOUTQ
    ("ioctl", (3, 0x5412), refused()),
    ("ioctl", (3, 0x541C), refused()),
    ("ioctl", (3, 0x8905), ALLOW),  # SIOCATMARK
    ("ioctl", (3, 0x8912), refused()),  # SIOCGIFCONF
    ("ioctl", (3, 0x894C), refused()),  # SIOCGSKNS
    ("ioctl", (3, 0x89FF), refused()),
    ("ioctl", (3, 0x8A00), ALLOW),
    ("clone", (17,), ALLOW),
    ("clone", (0x4111,), ALLOW),  # vfork, as subprocess asks for it
    ("clone", (0x3D0F00,), ALLOW),  # a thread
    ("clone", (0x10000000 | 17,), refused()),
    ("clone", (0x40000000 | 17,), refused()),
    ("clone", (0x00020000 | 17,), refused()),
    ("clone3", (), refused(errno.ENOSYS)),
    ("connect", (3,), ALLOW),
    ("bind", (3,), ALLOW),
    ("execve", (), ALLOW),
    ("listen", (3,), refused()),
    *((name, (), refused()) for name in seccomp.REFUSED),
]


ROLE_CASES: list[Case] = [
    ("connect", (3,), refused()),
    ("bind", (3,), refused()),
    ("execve", (), refused()),
    ("execveat", (), refused()),
    ("fork", (), refused()),
    ("vfork", (), refused()),
    ("clone", (17,), refused()),
    ("clone", (0x3D0F00,), ALLOW),
    ("sendmsg", (3, 0, 0), ALLOW),
]


STREAM, DATAGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
NO_SOCKET = refused(errno.EACCES)
REACHING_CASES: list[Case] = [
    ("socket", (socket.AF_UNIX, DATAGRAM), ALLOW),
    ("socket", (socket.AF_INET, STREAM), ALLOW),
    ("socket", (socket.AF_INET, STREAM | FLAGS, socket.IPPROTO_TCP), ALLOW),
    ("socket", (socket.AF_INET, 1 << 32 | STREAM | socket.SOCK_CLOEXEC, 1 << 32), ALLOW),
    ("socket", (socket.AF_INET, STREAM | 0x100), NO_SOCKET),
    ("socket", (socket.AF_INET, STREAM, 262), NO_SOCKET),  # MPTCP
    ("socket", (socket.AF_INET, STREAM, 132), NO_SOCKET),  # SCTP
    ("socket", (socket.AF_INET, DATAGRAM), NO_SOCKET),
    ("socket", (socket.AF_INET, DATAGRAM | FLAGS), NO_SOCKET),
    ("socket", (socket.AF_INET, 3, 1), NO_SOCKET),  # raw
    ("socket", (socket.AF_INET, SEQPACKET, 132), NO_SOCKET),
    ("socket", (socket.AF_INET6, STREAM), NO_SOCKET),
    ("socket", (socket.AF_NETLINK, 3), NO_SOCKET),
    ("socketpair", (socket.AF_UNIX, DATAGRAM), ALLOW),
    ("connect", (3,), ALLOW),
    ("listen", (3,), refused()),
    ("sendto", (3, 0, 0, seccomp.MSG_FASTOPEN), refused()),
]
ONE_OF_MANY_CASES: list[Case] = [
    ("socket", (socket.AF_INET, STREAM), ALLOW),
    ("socket", (socket.AF_INET6, STREAM | FLAGS), ALLOW),
    ("socket", (socket.AF_INET6, DATAGRAM), NO_SOCKET),
    ("socket", (socket.AF_UNIX, STREAM), NO_SOCKET),
    ("socket", (socket.AF_UNIX, DATAGRAM), NO_SOCKET),
    ("socketpair", (socket.AF_UNIX, STREAM | FLAGS), ALLOW),
    ("socketpair", (socket.AF_UNIX, SEQPACKET), ALLOW),
    ("socketpair", (socket.AF_UNIX, DATAGRAM | socket.SOCK_CLOEXEC), NO_SOCKET),
    ("socketpair", (socket.AF_INET, STREAM), NO_SOCKET),
]


def on_each(cases: list[Case]) -> pytest.MarkDecorator:
    """Try each case on each architecture that has the call."""
    there = [(on, *case) for on in ON for case in cases if SYSCALLS[case[0]][on.column] is not None]
    ids = [f"{on.name}-{name}-{'-'.join(f'{arg:x}' for arg in args)}" for on, name, args, _ in there]
    return pytest.mark.parametrize(("on", "name", "args", "expected"), there, ids=ids)


@on_each(TENANT_CASES)
def test_a_tenant_may(on: Machine, name: str, args: tuple[int, ...], expected: int) -> None:
    assert ask(on, TENANT, name, *args) == expected


@on_each(REACHING_CASES)
def test_a_tenant_with_a_database_may(on: Machine, name: str, args: tuple[int, ...], expected: int) -> None:
    assert ask(on, REACHING, name, *args) == expected


@on_each(ONE_OF_MANY_CASES)
def test_one_without_a_uid_of_its_own_may(
    on: Machine, name: str, args: tuple[int, ...], expected: int
) -> None:
    assert ask(on, ONE_OF_MANY, name, *args) == expected


@on_each(ROLE_CASES)
def test_a_role_may(on: Machine, name: str, args: tuple[int, ...], expected: int) -> None:
    assert ask(on, ROLE, name, *args) == expected


@pytest.mark.parametrize("on", ON, ids=lambda on: on.name)
def test_other_entries_are_closed(on: Machine) -> None:
    program = seccomp.assemble(TENANT, on)
    assert verdict(program, 0x40000003, 102) == KILL  # AUDIT_ARCH_I386
    assert verdict(program, on.audit, kernel.LAST_SYSCALL) == ALLOW
    assert verdict(program, on.audit, kernel.LAST_SYSCALL + 1) == refused(errno.ENOSYS)
    x32 = verdict(program, on.audit, 0x40000000 | 45)
    assert x32 == (refused() if on.foreign_bit else refused(errno.ENOSYS))
    # A number is 32 bits, whatever the sign.
    assert verdict(program, on.audit, -1) in (refused(), refused(errno.ENOSYS))


@pytest.mark.parametrize("on", ON, ids=lambda on: on.name)
def test_calls_of_every_request_are_allowed_without_a_look_at_arguments(on: Machine) -> None:
    """So the kernel skips the program for them: see the module's text. Numbers: read, write, recvfrom, accept4,
    epoll_pwait, close, openat, sendfile.
    """
    program = seccomp.assemble(TENANT, on)
    everyday = ((0, 1, 45, 288, 281, 3, 257, 40), (63, 64, 207, 242, 22, 57, 56, 71))[on.column]
    for number in everyday:
        assert verdict(program, on.audit, number, *(0xFFFFFFFF,) * 6) == ALLOW
        assert verdict(program, on.audit, number) == ALLOW


def test_a_block_longer_than_a_jump_is_our_own_fault() -> None:
    too_long = seccomp._ALLOW * 256
    with pytest.raises(ConfineError, match="longer than a jump"):
        seccomp._if_equal(1, too_long)


HEADERS = {
    "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "aarch64": "/usr/include/asm-generic/unistd.h",
}
#: Only in headers newer than some that tests run with.
NEW = {"open_tree_attr"}


@pytest.mark.parametrize("on", ON, ids=lambda on: on.name)
def test_the_numbers_are_the_kernels(on: Machine) -> None:
    header = Path(HEADERS[on.name])
    if not header.exists():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    found = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in found}
    ours = {name: columns[on.column] for name, columns in SYSCALLS.items()}
    assert {name: number for name, number in ours.items() if number is not None and name not in numbers} in (
        {name: ours[name] for name in NEW},
        {},
    )
    assert {name: numbers[name] for name in ours if name in numbers} == {
        name: number for name, number in ours.items() if name in numbers
    }


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    there = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*there[:4], "riscv64")))
    with pytest.raises(ConfineError, match="riscv64"):
        kernel.machine()
