"""What a hostile tenant, or a role that was taken over, tries: one program, standard library only.

Three ways to run it, the same attempts in each:

- in a test: `run(Plan(...))` in a process that was confined (test_matrix.py);
- by hand: `python attempts.py < plan.json`, the plan as JSON (fields of Plan), the outcome as JSON on
  standard output;
- as a tenant: `application` below is a WSGI application. /attempts tries what leaves the connection alone,
  /attempt?NAME one that may destroy it, /outcome says all that is known. The plan is in the environment variable
  PYTTPD_ATTEMPTS and in the request's body.

The result is {attempt: {"outcome": "refused" | "SUCCEEDED" | "not applicable", "detail": why}}. An attempt
succeeds only if it got what it wanted: a connection that stands, a descriptor, bytes of somebody else. It
sends nothing to anywhere but the plan's target, which the test has made.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

#: Nothing that the target answers takes longer; what is dropped on the way out takes for ever (s).
PATIENCE: Final = 0.25
MSG_FASTOPEN: Final = 0x20000000
TCP_FASTOPEN_CONNECT: Final = 30
TCP_REPAIR: Final = 19
TCP_ULP: Final = 31
AF_UNSPEC: Final = struct.pack("<H14x", socket.AF_UNSPEC)
#: Read from victims, which were forked from the same image and so have it at the same address.
SECRET = ctypes.create_string_buffer(b"a secret of the process that it lies in", 64)

X86_64: Final = os.uname().machine == "x86_64"
#: (x86_64, aarch64)
NUMBERS: Final = {
    "add_key": (248, 217), "bpf": (321, 280), "chroot": (161, 51), "clone": (56, 220), "clone3": (435, 435),
    "fsopen": (430, 430), "io_uring_enter": (426, 426), "io_uring_setup": (425, 425), "kcmp": (312, 272),
    "keyctl": (250, 219), "mount": (165, 40), "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "open_tree": (428, 428), "perf_event_open": (298, 241), "personality": (135, 92), "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "process_vm_readv": (310, 270), "ptrace": (101, 117),
    "sendmmsg": (307, 269), "setns": (308, 268), "unshare": (272, 97), "userfaultfd": (323, 282),
}  # fmt: skip


class NotApplicable(Exception):
    """There is nothing to try it on here, or the kernel has no such thing at all."""


@dataclass(slots=True)
class Plan:
    """What to try the attempts on. Everything is optional; what is not given is "not applicable".

    client, listening, channel: descriptors to abuse, each used up by one attempt. target: (address, port)
    with TCP accepted and UDP echoed. sibling, stranger: pids of processes of the same and of another uid that
    are none of ours. files: of other tenants, not to be read. frozen: directories (our own root among them)
    not to be written in. sockets, abstract: other tenants' Unix sockets, by path and by abstract name.
    channels: channel directories; ours holds `sock`. may_run, may_fork: what the policy allows is no attempt.
    alone: this process has nothing else to do, and may be killed or replaced.
    """

    client: list[int] = field(default_factory=list)
    listening: list[int] = field(default_factory=list)
    channel: list[int] = field(default_factory=list)
    target: tuple[str, int] | None = None
    sibling: int | None = None
    stranger: int | None = None
    files: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    sockets: list[str] = field(default_factory=list)
    abstract: list[str] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    may_run: bool = False
    may_fork: bool = False
    alone: bool = False

    def address(self) -> tuple[str, int]:
        if self.target is None:
            raise NotApplicable("no target was given")
        return (self.target[0], self.target[1])

    def take(self, kind: str) -> socket.socket:
        """Return the next descriptor of that kind as a socket; it is closed with it."""
        pool: list[int] = getattr(self, kind)
        if not pool:
            raise NotApplicable(f"no {kind} descriptor was given")
        return socket.socket(fileno=pool.pop(0))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One thing to try: it returns what it got, or raises OSError, or NotApplicable.

    network: without any lock it reaches the target (so that the test can fail). own_process: it may end the
    process.
    """

    name: str
    group: str
    text: str
    action: Callable[[Plan], str]
    network: bool = False
    own_process: bool = False

    @property
    def own_connection(self) -> bool:
        """Whether it takes a descriptor that a tenant only has while it serves a request."""
        return self.group == "descriptors" or self.name in (
            "int 0x80: listen",
            "x32: listen",
            "setns: init's network",
        )


ATTEMPTS: dict[str, Attempt] = {}


def require_harmless() -> None:
    """What a privileged root tries at the machine itself would succeed, and be a change of it. So it is not tried."""
    header = ctypes.create_string_buffer(struct.pack("<Ii", 0x20080522, 0), 8)
    sets = ctypes.create_string_buffer(24)
    if libc.capget(header, sets) or any(sets.raw):
        raise NotApplicable("this process has capabilities: it might really do it")


def attempt(
    name: str, group: str, text: str, *, network: bool = False, own_process: bool = False
) -> Callable[[Callable[[Plan], str]], Callable[[Plan], str]]:
    def register(action: Callable[[Plan], str]) -> Callable[[Plan], str]:
        ATTEMPTS[name] = Attempt(name, group, text, action, network, own_process)
        return action

    return register


# --- tools --------------------------------------------------------------------------------------------------
def syscall(name: str | int, *args: Any) -> int:
    number = NUMBERS[name][0 if X86_64 else 1] if isinstance(name, str) else name
    converted = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result: int = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def sockaddr(address: tuple[str, int]) -> bytes:
    return (
        struct.pack("<H", socket.AF_INET)
        + struct.pack(">H", address[1])
        + socket.inet_aton(address[0])
        + bytes(8)
    )


def dissolve(sock: socket.socket) -> None:
    """connect(AF_UNSPEC): the connection is gone, the socket is as good as new, and still in its old
    namespace."""
    code = libc.connect(sock.fileno(), AF_UNSPEC, len(AF_UNSPEC))
    if code < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"connect(AF_UNSPEC): {os.strerror(code)}")


def wait_connected(sock: socket.socket) -> str:
    """Return to whom `sock` is connected, once it is."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    if not poll.poll(PATIENCE * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "nothing came back")
    code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
    return f"connected to {sock.getpeername()}"


def connect(sock: socket.socket, address: tuple[str, int]) -> str:
    sock.settimeout(PATIENCE)
    sock.connect(address)
    return f"connected to {sock.getpeername()}"


def in_child(action: Callable[[], str], *, alone: bool) -> str:
    """Run `action` in a child, which it may spoil or end; here, if there can be no children and nothing is
    lost."""
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        if not alone:
            raise NotApplicable("no child to try it in") from None
        return action()
    if pid == 0:
        try:
            os.write(write, json.dumps(["SUCCEEDED", action()]).encode())
        except NotApplicable as reason:
            os.write(write, json.dumps(["not applicable", str(reason)]).encode())
        except OSError as error:
            os.write(write, json.dumps(["refused", error.strerror or str(error)]).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answers:
        answer = answers.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return killed(os.WTERMSIG(status))
    if not answer:
        return "it ran"
    outcome, detail = json.loads(answer)
    if outcome == "refused":
        raise PermissionError(detail)
    if outcome == "not applicable":
        raise NotApplicable(detail)
    return str(detail)


def killed(number: int) -> str:
    """Say what it means that the process of an attempt was ended by a signal."""
    if number == signal.SIGSYS:
        raise PermissionError("killed by the filter (SIGSYS)")
    if number in (signal.SIGSEGV, signal.SIGILL, signal.SIGBUS):
        raise NotApplicable(f"the kernel has no such entry ({signal.Signals(number).name})")
    raise PermissionError(f"ended by signal {number}")


# --- a connection that was handed over, turned round --------------------------------------------------------
@attempt("client: connect", "descriptors", "connect(AF_UNSPEC), then connect to the target", network=True)
def client_connect(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        return connect(sock, plan.address())


@attempt("client: bind", "descriptors", "connect(AF_UNSPEC), then bind a port of init's namespace")
def client_bind(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        sock.bind(("127.0.0.1", 0))
        return f"bound to {sock.getsockname()}"


@attempt("client: listen", "descriptors", "connect(AF_UNSPEC), then listen in init's namespace")
def client_listen(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        sock.listen()
        return f"listens on {sock.getsockname()}"


@attempt(
    "client: sendto MSG_FASTOPEN",
    "descriptors",
    "connect(AF_UNSPEC), then sendto with MSG_FASTOPEN",
    network=True,
)
def client_fastopen_sendto(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.sendto(b"x", MSG_FASTOPEN, plan.address())
        return wait_connected(sock)


@attempt("client: sendmsg MSG_FASTOPEN", "descriptors", "the same with sendmsg", network=True)
def client_fastopen_sendmsg(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.sendmsg([b"x"], [], MSG_FASTOPEN, plan.address())
        return wait_connected(sock)


@attempt("client: sendmmsg MSG_FASTOPEN", "descriptors", "the same with sendmmsg", network=True)
def client_fastopen_sendmmsg(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        sock.setblocking(False)
        name = ctypes.create_string_buffer(sockaddr(plan.address()), 16)
        data = ctypes.create_string_buffer(b"x", 1)
        vector = ctypes.create_string_buffer(struct.pack("<QQ", ctypes.addressof(data), 1), 16)
        # struct msghdr: name, its length, vector, its length, control, its length, flags; then mmsghdr's
        # length.
        header = struct.pack(
            "<QIxxxxQQQQIxxxx", ctypes.addressof(name), 16, ctypes.addressof(vector), 1, 0, 0, 0
        )
        message = ctypes.create_string_buffer(header + bytes(8), len(header) + 8)
        with contextlib.suppress(BlockingIOError):
            syscall("sendmmsg", sock.fileno(), message, 1, MSG_FASTOPEN)
        return wait_connected(sock)


@attempt(
    "client: TCP_FASTOPEN_CONNECT",
    "descriptors",
    "connect(AF_UNSPEC), TCP_FASTOPEN_CONNECT, connect, send",
    network=True,
)
def client_fastopen_connect(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(plan.address())
            sock.send(b"x")
        return wait_connected(sock)


@attempt(
    "client: io_uring connect", "descriptors", "connect(AF_UNSPEC), then connect by io_uring", network=True
)
def client_io_uring(plan: Plan) -> str:
    with plan.take("client") as sock:
        dissolve(sock)
        name = ctypes.create_string_buffer(sockaddr(plan.address()), 16)
        IoUring().submit(16, sock.fileno(), ctypes.addressof(name), 16, 0)
        return wait_connected(sock)


@attempt("client: TCP_REPAIR", "descriptors", "make it any other connection")
def client_repair(plan: Plan) -> str:
    with plan.take("client") as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        return "in repair mode"


@attempt("client: SO_LINGER", "descriptors", "make whoever closes it last wait")
def client_linger(plan: Plan) -> str:
    with plan.take("client") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0)
        )  # the last close() is ours
        return "the last close() would wait for a minute"


@attempt("client: TCP_ULP", "descriptors", "put kernel TLS under it")
def client_ulp(plan: Plan) -> str:
    with plan.take("client") as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except FileNotFoundError:
            raise NotApplicable("the kernel has no TLS") from None
        return "kernel TLS is on"


@attempt("client: list interfaces", "descriptors", "SIOCGIFCONF: the interfaces of init's namespace")
def client_interfaces(plan: Plan) -> str:
    with plan.take("client") as sock:
        buffer = ctypes.create_string_buffer(1024)
        request = struct.pack("<ixxxxQ", 1024, ctypes.addressof(buffer))
        (length,) = struct.unpack_from("<i", fcntl.ioctl(sock, 0x8912, request))
        return f"{length} bytes of interfaces"


@attempt(
    "listening: connect",
    "descriptors",
    "turn a listening socket (a door, metrics) round and connect",
    network=True,
)
def listening_connect(plan: Plan) -> str:
    with plan.take("listening") as sock:
        dissolve(sock)
        return connect(sock, plan.address())


@attempt(
    "listening: sendto MSG_FASTOPEN",
    "descriptors",
    "turn a listening socket round with MSG_FASTOPEN",
    network=True,
)
def listening_fastopen(plan: Plan) -> str:
    with plan.take("listening") as sock:
        dissolve(sock)
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.sendto(b"x", MSG_FASTOPEN, plan.address())
        return wait_connected(sock)


@attempt("channel: connect elsewhere", "descriptors", "turn a channel to another tenant")
def channel_connect(plan: Plan) -> str:
    if not plan.sockets:
        raise NotApplicable("no other tenant's socket was given")
    with plan.take("channel") as sock:
        sock.settimeout(PATIENCE)
        sock.connect(plan.sockets[0])
        return "connected"


@attempt("channel: listen", "descriptors", "make a channel a door of one's own")
def channel_listen(plan: Plan) -> str:
    with plan.take("channel") as sock:
        sock.listen()
        return "listens"


# --- sockets of one's own -----------------------------------------------------------------------------------
@attempt("new socket: TCP", "sockets", "a new AF_INET socket, connected to the target", network=True)
def new_tcp(plan: Plan) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return connect(sock, plan.address())


@attempt("new socket: UDP", "sockets", "a new AF_INET datagram to the target, answered", network=True)
def new_udp(plan: Plan) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.sendto(b"echo", plan.address())
        return f"answered: {sock.recv(16)!r}"


@attempt("new socket: MPTCP", "sockets", "a new multipath TCP socket, connected to the target")
def new_mptcp(plan: Plan) -> str:
    with open_socket(socket.AF_INET, socket.SOCK_STREAM, 262) as sock:
        return connect(sock, plan.address())


@attempt(
    "new socket: TCP, MSG_FASTOPEN", "sockets", "a new AF_INET socket, connected by sendto", network=True
)
def new_fastopen(plan: Plan) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.sendto(b"x", MSG_FASTOPEN, plan.address())
        return wait_connected(sock)


@attempt("new socket: listen", "sockets", "a new AF_INET socket that listens")
def new_listen(plan: Plan) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        return f"listens on {sock.getsockname()}"


def open_socket(family: int, kind: int, protocol: int = 0) -> socket.socket:
    try:
        return socket.socket(family, kind, protocol)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
            raise NotApplicable(f"the kernel has none: {error.strerror}") from None
        raise


def _family(name: str, family: int, kind: int, protocol: int = 0) -> None:
    @attempt(f"new socket: {name}", "sockets", f"a new {name} socket")
    def new_socket(plan: Plan) -> str:
        with open_socket(family, kind, protocol) as sock:
            return f"descriptor {sock.fileno()}"


for _name, _number, _kind in (
    ("AF_INET6", socket.AF_INET6, socket.SOCK_STREAM),
    ("AF_NETLINK", socket.AF_NETLINK, socket.SOCK_RAW),
    ("AF_PACKET", socket.AF_PACKET, socket.SOCK_RAW),
    ("AF_VSOCK", 40, socket.SOCK_STREAM),
    ("AF_ALG", 38, socket.SOCK_SEQPACKET),
    ("AF_XDP", 44, socket.SOCK_RAW),
):
    _family(_name, _number, _kind)


class IoUring:
    """As much of io_uring(7) as one submission takes."""

    def __init__(self) -> None:
        params = ctypes.create_string_buffer(120)
        try:
            self.fd = syscall("io_uring_setup", 4, params)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise NotApplicable("the kernel has no io_uring") from None
            raise
        self.sq = struct.unpack_from("<10I", params, 40)
        self.cq = struct.unpack_from("<10I", params, 80)
        sq_entries, cq_entries = struct.unpack_from("<2I", params, 0)
        self.sq_ring = mmap.mmap(self.fd, self.sq[6] + sq_entries * 4, offset=0)
        self.cq_ring = mmap.mmap(self.fd, self.cq[5] + cq_entries * 16, offset=0x8000000)
        self.sqes = mmap.mmap(self.fd, sq_entries * 64, offset=0x10000000)

    def submit(self, opcode: int, fd: int, addr: int, off: int, length: int) -> int:
        """Return the operation's result; 0 if there is none yet after a while."""
        self.sqes[:64] = struct.pack("<BBHiQQIIQ24x", opcode, 0, 0, fd, off, addr, length, 0, 1)
        struct.pack_into("<I", self.sq_ring, self.sq[6], 0)
        struct.pack_into("<I", self.sq_ring, self.sq[1], 1)
        syscall("io_uring_enter", self.fd, 1, 0, 0, None, 0)
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "nothing came back")
        _, result, _ = struct.unpack_from("<QiI", self.cq_ring, self.cq[5])
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return int(result)


@attempt("io_uring: socket", "sockets", "a socket made by io_uring itself, connected by it", network=True)
def io_uring_socket(plan: Plan) -> str:
    ring = IoUring()
    sock = socket.socket(fileno=ring.submit(45, socket.AF_INET, 0, socket.SOCK_STREAM, 0))
    with sock:
        name = ctypes.create_string_buffer(sockaddr(plan.address()), 16)
        ring = IoUring()
        ring.submit(16, sock.fileno(), ctypes.addressof(name), 16, 0)
        return wait_connected(sock)


# --- other ways into the kernel -----------------------------------------------------------------------------
def int80(number: int, *args: int) -> int:
    """Enter the kernel as a 32-bit program would: eax, ebx, ecx, edx, int 0x80."""
    if not X86_64:
        raise NotApplicable("x86_64 only")
    code = bytes.fromhex("53 8b07 8b5f04 8b4f08 8b570c cd80 5b c3")
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    entry = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(
        ctypes.addressof(ctypes.c_char.from_buffer(page))
    )
    registers = struct.pack("<4I", *(arg & 0xFFFFFFFF for arg in (number, *args, 0, 0, 0)[:4]))
    result = int(entry(ctypes.cast(ctypes.c_char_p(registers), ctypes.c_void_p)))
    if result < 0:
        if result == -errno.ENOSYS:
            raise NotApplicable("the kernel has no 32-bit calls")
        raise OSError(-result, os.strerror(-result))
    return result


@attempt("int 0x80: socket", "entries", "an AF_INET socket by the 32-bit entry", own_process=True)
def int80_socket(plan: Plan) -> str:
    return in_child(
        lambda: f"descriptor {int80(359, socket.AF_INET, socket.SOCK_STREAM, 0)}", alone=plan.alone
    )


@attempt("int 0x80: listen", "entries", "listen on a turned connection by the 32-bit entry", own_process=True)
def int80_listen(plan: Plan) -> str:
    with plan.take("client") as sock:

        def turn() -> str:
            low = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)
            low.write(AF_UNSPEC)
            int80(362, sock.fileno(), ctypes.addressof(ctypes.c_char.from_buffer(low)), len(AF_UNSPEC))
            int80(363, sock.fileno(), 1)
            return "listens"

        return in_child(turn, alone=plan.alone)


@attempt("x32: socket", "entries", "an AF_INET socket by an x32 call")
def x32_socket(plan: Plan) -> str:
    if not X86_64:
        raise NotApplicable("x86_64 only")
    try:
        return f"descriptor {syscall(0x40000000 + 41, socket.AF_INET, socket.SOCK_STREAM, 0)}"
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise NotApplicable("the kernel has no x32") from None
        raise


@attempt("x32: listen", "entries", "listen on a turned connection by an x32 call")
def x32_listen(plan: Plan) -> str:
    if not X86_64:
        raise NotApplicable("x86_64 only")
    with plan.take("client") as sock:
        try:
            syscall(0x40000000 + 42, sock.fileno(), AF_UNSPEC, len(AF_UNSPEC))
            syscall(0x40000000 + 50, sock.fileno(), 1)
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise NotApplicable("the kernel has no x32") from None
            raise
        return "listens"


# --- other processes ----------------------------------------------------------------------------------------
def _victim(plan: Plan, who: str) -> int:
    pid: int | None = getattr(plan, who)
    if pid is None:
        raise NotApplicable(f"no {who} was given")
    return pid


def _steal_descriptor(pid: int) -> str:
    with os.fdopen(syscall("pidfd_open", pid, 0), "rb", closefd=True) as pidfd:
        return f"its descriptor 0 as {syscall('pidfd_getfd', pidfd.fileno(), 0, 0)}"


def _trace(pid: int) -> str:
    syscall("ptrace", 0x4206, pid, 0, 0)
    return "traced"


def _read_memory(pid: int) -> str:
    local = ctypes.create_string_buffer(len(SECRET))
    ours = struct.pack("<QQ", ctypes.addressof(local), len(SECRET))
    theirs = struct.pack("<QQ", ctypes.addressof(SECRET), len(SECRET))
    try:
        syscall("process_vm_readv", pid, ours, 1, theirs, 1, 0)
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return "allowed, but another address"
    return f"read {local.value[:8]!r}"


def _proc_mem(pid: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        try:
            memory.seek(ctypes.addressof(SECRET))
            return f"read {memory.read(8)!r}"
        except OSError:
            return "opened"


def _proc_environ(pid: int) -> str:
    with open(f"/proc/{pid}/environ", "rb") as environment:
        return f"{len(environment.read())} bytes of its environment"


def _compare(pid: int) -> str:
    try:
        return f"compared: {syscall('kcmp', os.getpid(), pid, 1, 0, 0)}"
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise NotApplicable("the kernel has no kcmp") from None
        raise


def _signal(pid: int) -> str:
    os.kill(pid, signal.SIGURG)
    return "sent"


def _signal_by_pidfd(pid: int) -> str:
    with os.fdopen(syscall("pidfd_open", pid, 0), "rb", closefd=True) as pidfd:
        syscall("pidfd_send_signal", pidfd.fileno(), signal.SIGURG, None, 0)
        return "sent"


for _what, _text, _act in (
    ("pidfd_getfd", "take a descriptor of", _steal_descriptor),
    ("ptrace", "trace", _trace),
    ("process_vm_readv", "read the memory of", _read_memory),
    ("kcmp", "compare the files of", _compare),
    ("/proc/PID/mem", "open the memory of", _proc_mem),
    (
        "/proc/PID/fd",
        "list the descriptors of",
        lambda pid: f"{len(os.listdir(f'/proc/{pid}/fd'))} descriptors",
    ),
    ("/proc/PID/environ", "read the environment of", _proc_environ),
    (
        "/proc/PID/root",
        "enter the file system of",
        lambda pid: f"{len(os.listdir(f'/proc/{pid}/root'))} entries",
    ),
    ("signal", "send a signal to", _signal),
    ("signal by pidfd", "send a signal to", _signal_by_pidfd),
):
    for _who, _whom in (
        ("sibling", "a process of the same uid outside"),
        ("stranger", "a process of another uid"),
    ):

        def _register(what: str, text: str, act: Callable[[int], str], who: str, whom: str) -> None:
            @attempt(f"{what}: {who}", "processes", f"{text} {whom}")
            def on_victim(plan: Plan) -> str:
                return act(_victim(plan, who))

        _register(_what, _text, _act, _who, _whom)


# --- files, sockets, channel directories --------------------------------------------------------------------
def first_that_works(things: Iterable[str], action: Callable[[str], str]) -> str:
    """Try `action` on each; the first that works is a success, if none does the last error counts."""
    last: OSError | None = None
    for thing in things:
        try:
            return action(thing)
        except OSError as error:
            last = error
    if last is None:
        raise NotApplicable("nothing was given to try it on")
    raise last


@attempt("files: read another tenant's", "files", "open a file of another tenant's root")
def read_others(plan: Plan) -> str:
    def read(path: str) -> str:
        with open(path, "rb") as file:
            return f"{path}: {file.read(8)!r}"

    return first_that_works(plan.files, read)


@attempt("files: write what is only to be read", "files", "create a file in the own root, /etc, /usr")
def write_frozen(plan: Plan) -> str:
    def write(path: str) -> str:
        name = f"{path}/written-by-a-tenant"
        with open(name, "x", encoding="ascii"):
            pass
        os.unlink(name)
        return name

    return first_that_works(plan.frozen, write)


@attempt("sockets: another tenant's, by path", "files", "connect to a Unix socket of another tenant")
def connect_others(plan: Plan) -> str:
    def reach(path: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(path)
            return path

    return first_that_works(plan.sockets, reach)


@attempt(
    "sockets: another tenant's, abstract", "files", "connect to an abstract Unix socket of another tenant"
)
def connect_abstract(plan: Plan) -> str:
    def reach(name: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(f"\0{name}")
            return name

    return first_that_works(plan.abstract, reach)


@attempt("channel directory: create", "files", "bind a socket of one's own beside a role's")
def channel_create(plan: Plan) -> str:
    def create(path: str) -> str:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.bind(f"{path}/intruder")
        os.unlink(f"{path}/intruder")
        return path

    return first_that_works(plan.channels, create)


@attempt("channel directory: replace", "files", "put a file of one's own in the place of a role's socket")
def channel_replace(plan: Plan) -> str:
    def replace(path: str) -> str:
        os.symlink("/nowhere", f"{path}/intruder")
        os.unlink(f"{path}/intruder")
        return path

    return first_that_works(plan.channels, replace)


@attempt("channel directory: unlink", "files", "take a role's socket away")
def channel_unlink(plan: Plan) -> str:
    def unlink(path: str) -> str:
        os.unlink(f"{path}/sock")
        return path

    return first_that_works(plan.channels, unlink)


# --- privileges ---------------------------------------------------------------------------------------------
def _plain(name: str, text: str, number: str, *args: Any) -> None:
    @attempt(name, "privileges", text)
    def call(plan: Plan) -> str:
        def make() -> str:
            require_harmless()
            try:
                return f"it returned {syscall(number, *args)}"
            except OSError as error:
                if error.errno == errno.ENOSYS and number != "clone3":
                    raise NotApplicable("the kernel has no such call") from None
                raise

        return in_child(make, alone=True)


_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_CLONE_NEWNS: Final = 0x00020000
_plain("personality", "switch off the randomisation of addresses", "personality", 0x0040000)
_plain("bpf", "load a program into the kernel", "bpf", 5, struct.pack("<IIQQ", 1, 0, 0, 0) + bytes(104), 128)
_plain(
    "perf_event_open",
    "watch the kernel's counters",
    "perf_event_open",
    struct.pack("<IIQ", 1, 112, 0) + bytes(96),
    0,
    -1,
    -1,
    0,
)
_plain("userfaultfd", "handle page faults (of the kernel's own accesses too)", "userfaultfd", 1)
_plain("add_key", "leave a key for others", "add_key", b"user", b"pyttpd", b"x", 1, -4)
_plain("keyctl", "join a session of keys", "keyctl", 1, b"pyttpd")
_plain("mount", "mount a file system", "mount", b"none", b"/tmp", b"tmpfs", 0, None)
_plain("fsopen", "the same by the newer calls", "fsopen", b"tmpfs", 0)
_plain("open_tree", "take a copy of a mount", "open_tree", -100, b"/", 1)
_plain("chroot", "another root", "chroot", b"/tmp")
_plain(
    "open_by_handle_at", "open a file by its handle", "open_by_handle_at", -100, struct.pack("<Ii8x", 8, 1), 0
)
_plain("unshare: user namespace", "be root in a user namespace", "unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
_plain("unshare: mount namespace", "another view of files", "unshare", _CLONE_NEWNS)


@attempt("clone: user namespace", "privileges", "the same by clone")
def clone_namespace(plan: Plan) -> str:
    def clone() -> str:
        pid = syscall("clone", _CLONE_NEWUSER | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return f"process {pid}"

    return in_child(clone, alone=True)


@attempt("clone3: user namespace", "privileges", "the same by clone3, whose flags a filter can't see")
def clone3_namespace(plan: Plan) -> str:
    def clone() -> str:
        arguments = struct.pack("<8Q", _CLONE_NEWUSER, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        pid = syscall("clone3", arguments, len(arguments))
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return f"process {pid}"

    return in_child(clone, alone=True)


@attempt(
    "setns: init's network",
    "privileges",
    "enter the namespace that a connection belongs to (SIOCGSKNS, setns)",
)
def enter_namespace(plan: Plan) -> str:
    with plan.take("client") as sock:
        fd = fcntl.ioctl(sock, 0x894C)
        syscall("setns", fd, _CLONE_NEWNET)
        return "entered"


@attempt("setuid: root", "privileges", "take back uid 0")
def become_root(plan: Plan) -> str:
    if os.getuid() == 0:
        raise NotApplicable("this is uid 0, without its capabilities")

    def become() -> str:
        os.setresuid(0, 0, 0)
        return "is root"

    return in_child(become, alone=True)


@attempt("run a program", "privileges", "execve", own_process=True)
def run_program(plan: Plan) -> str:
    if plan.may_run:
        raise NotApplicable("allowed")

    def run_true() -> str:
        os.execv("/bin/true", ["true"])

    return in_child(run_true, alone=plan.alone)


@attempt("fork", "privileges", "make a process that outlives this one")
def make_process(plan: Plan) -> str:
    if plan.may_fork:
        raise NotApplicable("allowed")
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return f"process {pid}"


# --- running them -------------------------------------------------------------------------------------------
def run_one(name: str, plan: Plan) -> dict[str, str]:
    """Try one attempt; return its outcome and detail."""
    try:
        return {"outcome": "SUCCEEDED", "detail": ATTEMPTS[name].action(plan)}
    except NotApplicable as reason:
        return {"outcome": "not applicable", "detail": str(reason)}
    except OSError as error:
        return {"outcome": "refused", "detail": error.strerror or str(error)}


def run(plan: Plan, only: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Try `only` these, or all; those that may end the process only if they are named."""
    chosen = (
        list(only)
        if only is not None
        else [a.name for a in ATTEMPTS.values() if not a.own_process or plan.may_fork]
    )
    return {name: run_one(name, plan) for name in chosen}


def discover() -> dict[str, list[int]]:
    """Find the descriptors of this process that are worth abusing, without /proc."""
    found: dict[str, list[int]] = {"client": [], "listening": [], "channel": []}
    for fd in range(3, 1024):
        try:
            with socket.socket(fileno=os.dup(fd)) as sock:
                if sock.family == socket.AF_UNIX:
                    found["channel"].append(fd)
                elif sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    found["listening"].append(fd)
                elif sock.family in (socket.AF_INET, socket.AF_INET6):
                    found["client"].append(fd)
        except OSError:
            continue
    return found


#: What the tenant below has found out, over all its requests (it has one worker).
KNOWN: dict[str, dict[str, str]] = {}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    """Try it as a tenant: see the module's text."""
    asked = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    plan = Plan(**json.loads(os.environ.get("PYTTPD_ATTEMPTS", "{}")) | json.loads(asked or "{}"))
    plan.may_run = plan.may_fork = True
    status = "200 OK"
    match environ["PATH_INFO"]:
        case "/attempts":
            KNOWN.update(run(plan, [each.name for each in ATTEMPTS.values() if not each.own_connection]))
        case "/attempt":
            # As this process has them; they are duplicated, so that the worker finds out what became of its own.
            for kind, fds in discover().items():
                setattr(plan, kind, [os.dup(fd) for fd in fds])
            try:
                name = unquote(environ["QUERY_STRING"])
                KNOWN[name] = run_one(name, plan)
            finally:
                for fd in (*plan.client, *plan.listening, *plan.channel):
                    os.close(fd)
        case "/outcome":
            pass
        case _:
            status = "404 Not Found"
    body = json.dumps(KNOWN).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    print(json.dumps(run(Plan(**json.load(sys.stdin)), sys.argv[1:] or None), indent=1))
