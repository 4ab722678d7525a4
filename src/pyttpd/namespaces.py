"""Plain mode as root: a child's own network and its own view of the files, made before its program starts.

Theory of operation. These functions run in a child that was forked and has not called exec yet, as root and with one
thread; what they make belongs to the child and what it starts, and vanishes with them. Without containers they stand
for what `network_mode: none`, a read-only root and private volumes do there (DESIGN section 8).

The network: a namespace with nothing in it but `lo`, which is brought up (applications look for 127.0.0.1; there is
nobody on it). A tenant with a database gets no more than that: its namespace is made beforehand, the database's
address becomes one of `lo`'s, and a *gate* (gate.py), which works outside, listens there. So there is no route, no
bridge and no rule by which anything else could be reached.

The files: everything that is mounted becomes read-only, set-uid files and device nodes lose their meaning; the
directories in which processes meet by accident or on purpose (/tmp, /run, shared memory) are covered by empty ones
of our own; and what the child needs from below a covered directory is put back in its place. What is put back is
taken hold of *before* anything is covered (open_tree), so it may lie anywhere: a clone, a virtual environment or
`runtime_dir` below /tmp or /run works like any other.

In step with it: pyttpd.confine, which refuses the same again by Landlock; the two are tested alone and together.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pyttpd.address import Address
from pyttpd.confine import python_paths
from pyttpd.confine.kernel import syscall

# --- linux/sched.h, linux/mount.h, linux/fcntl.h, linux/if.h ------------------------------------------------------
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWNET: Final = 0x40000000
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_MS_NOEXEC: Final = 8
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_MOUNT_ATTR_RDONLY: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
# --- linux/rtnetlink.h, linux/if_addr.h ---------------------------------------------------------------------------
_NLMSG_ERROR: Final = 2
_NLM_F_REQUEST_ACK: Final = 0x5
_NLM_F_CREATE: Final = 0x400
_RTM_NEWADDR: Final = 20
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
#: No search for others who have the address: it would take a second, and nobody is there.
_IFA_F_NODAD: Final = 2
_SCOPE_HOST: Final = 254
_LO: Final = 1

#: Where processes of different users meet. Covered, for each child by a directory of its own.
MEETING_PLACES: Final = ("/tmp", "/var/tmp", "/run", "/var/run", "/var/lock")
#: The device nodes that programs expect; nothing else of /dev is left.
DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
#: One per covered directory; a tenant that needs more writes into its own paths. Memory is taken as it is used.
COVER_BYTES: Final = 64 * 1024 * 1024
COVER_FILES: Final = 16_384


class NamespaceError(Exception):
    """A namespace could not be made or filled: what was tried, and why the kernel refused."""


@dataclass(frozen=True, slots=True)
class MountView:
    """What a child sees of the files. Absolute paths of directories or files that exist.

    writable: as it is, mode and owner decide. read_only: to be seen although it may lie below a covered directory
    (elsewhere everything is visible and read-only anyway); it wins over a `writable` above it and loses to one below
    it. hidden: covered by an empty directory, besides the meeting places: the configuration, for one.
    """

    read_only: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for path in (*self.read_only, *self.writable, *self.hidden):
            if not os.path.isabs(path) or "\0" in path:
                raise ValueError(f"a view's path must be absolute: {path!r}")
        if any(os.path.normpath(path) == "/" for path in (*self.writable, *self.hidden)):
            raise ValueError("a view with / writable or hidden is none")


def role_view(
    *, channels: tuple[str, ...] = (), own: tuple[str, ...] = (), hidden: tuple[str, ...] = ()
) -> MountView:
    """Return the view of one of our own roles: Python and its packages, the `channels` that it connects to, and its
    `own` directories, which it binds in or writes to.
    """
    return MountView(read_only=(*python_paths(), *channels), writable=own, hidden=hidden)


@dataclass(frozen=True, slots=True)
class TenantFiles:
    """What a tenant's view is made of, as the configuration names it: nothing of it has been looked at."""

    root: str
    channels: tuple[str, ...] = ()
    python_path: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()


def tenant_view(files: TenantFiles, python: tuple[str, ...] = ()) -> MountView:
    """Return the view of a tenant: its `root` and `python_path` read-only, its `writable` paths writable, a /tmp and
    shared memory of its own, and the `channels` that it connects to. Who names `root` itself as writable means it.

    python: what python_paths() says, for who has asked it already: it looks at every module.
    """
    open_for_writing = {os.path.realpath(path) for path in files.writable}
    named = (*files.python_path, files.root)
    own = tuple(path for path in named if os.path.realpath(path) not in open_for_writing)
    return MountView((*(python or python_paths()), *files.channels, *own), files.writable, files.hidden)


def enter_network_namespace() -> None:
    """Give this process a network namespace of its own with only `lo`, up. Raises NamespaceError."""
    try:
        syscall("unshare", _CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
            # struct ifreq: the name in 16 bytes, then a union whose first two are the flags here.
            request = struct.pack("16sH22x", b"lo", 0)
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request)
            (flags,) = struct.unpack_from("H", answer, 16)
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | _IFF_UP))
    except OSError as error:
        raise NamespaceError(f"no network namespace of its own: {error}") from error


def make_network_namespace(addresses: Iterable[Address]) -> int:
    """Make a network namespace with only `lo`, up, which has the hosts of `addresses`; return a descriptor of it.

    This process, which must have one thread, goes there and comes back. The namespace lasts as long as the descriptor
    and those inside. Raises NamespaceError.
    """
    outside = _network_namespace()
    try:
        enter_network_namespace()
        try:
            for host in sorted({address.host for address in addresses}):
                if not ipaddress.ip_address(host).is_loopback:
                    _add_to_lo(host)
            return _network_namespace()
        finally:
            _go(outside)
    finally:
        os.close(outside)


def join_network_namespace(namespace: int) -> None:
    """Enter a network namespace that was made before. Raises NamespaceError."""
    _go(namespace)


def listen_inside(namespace: int, addresses: Iterable[Address], backlog: int) -> list[socket.socket]:
    """Return a listening socket of another network namespace for each of `addresses`, in order; the caller owns them.

    This process, which must have one thread, goes there and comes back. Raises NamespaceError.
    """
    outside = _network_namespace()
    found: list[socket.socket] = []
    try:
        _go(namespace)
        try:
            found.extend(_listen(address, backlog) for address in addresses)
        finally:
            _go(outside)
    except BaseException:
        for sock in found:
            sock.close()
        raise
    finally:
        os.close(outside)
    return found


def _listen(address: Address, backlog: int) -> socket.socket:
    try:
        sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address.host, address.port))
            sock.listen(backlog)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise NamespaceError(f"{address}: cannot listen in a tenant's network namespace: {error}") from error
    return sock


def _network_namespace() -> int:
    try:
        return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(f"no descriptor of the network namespace: {error}") from error


def _go(namespace: int) -> None:
    try:
        syscall("setns", namespace, _CLONE_NEWNET)
    except OSError as error:
        raise NamespaceError(f"the network namespace can't be entered: {error}") from error


def _add_to_lo(host: str) -> None:
    """Give `lo` one more address, with nothing around it (rtnetlink(7), RTM_NEWADDR)."""
    family = Address(host, 0).family
    raw = socket.inet_pton(family, host)
    message = struct.pack("=BBBBI", family, 8 * len(raw), _IFA_F_NODAD, _SCOPE_HOST, _LO)
    for kind in (_IFA_LOCAL, _IFA_ADDRESS):
        message += struct.pack("=HH", 4 + len(raw), kind) + raw
    flags = _NLM_F_REQUEST_ACK | _NLM_F_CREATE
    message = struct.pack("=IHHII", 16 + len(message), _RTM_NEWADDR, flags, 1, 0) + message
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as netlink:
            netlink.sendto(message, (0, 0))
            kind, code = struct.unpack_from("=4xH10xi", netlink.recv(1024))
        if kind != _NLMSG_ERROR or code:
            raise OSError(-code, os.strerror(-code))
    except OSError as error:
        raise NamespaceError(
            f"{host} can't be an address of a tenant's network namespace: {error}"
        ) from error


def enter_mount_namespace(view: MountView) -> None:
    """Give this process `view` as its files, with System V IPC of its own. Its directory becomes /.

    Descriptors opened before keep what they were opened on. Raises NamespaceError; the process must then end, it may
    be half inside. Source: mount_namespaces(7), mount_setattr(2), open_tree(2).
    """
    try:
        syscall("unshare", _CLONE_NEWNS | _CLONE_NEWIPC)
        # Otherwise what we mount here would appear in the namespace that we come from.
        _mount(b"none", "/", None, _MS_REC | _MS_PRIVATE, None)
        covered = _existing((*MEETING_PLACES, *view.hidden))
        kept = _take_hold(view)
        devices = {name: _clone_tree(f"/dev/{name}") for name in DEVICES if os.path.exists(f"/dev/{name}")}
        _set_attributes(_AT_FDCWD, "/", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV)
        for path in covered:
            _cover(path)
        _make_devices(devices)
        _make_proc()
        for path in sorted(kept, key=lambda path: path.count("/")):
            fd, is_directory = kept[path]
            _put_back(path, fd, is_directory=is_directory)
        # The old working directory would still lead below what was covered.
        os.chdir("/")
    except OSError as error:
        raise NamespaceError(f"no view of its own: {error}") from error


def _mount(source: bytes, target: str, kind: bytes | None, flags: int, data: bytes | None) -> None:
    try:
        syscall("mount", source, os.fsencode(target), kind, flags, data)
    except OSError as error:
        raise NamespaceError(f"mount on {target}: {error}") from error


def _existing(paths: tuple[str, ...]) -> list[str]:
    """Return real paths, each once, without those below another of them: these are covered along with it."""
    real = sorted({os.path.realpath(path) for path in paths if os.path.isdir(path)})
    return [path for path in real if not any(_below(path, other) for other in real)]


def _below(path: str, other: str) -> bool:
    return path.startswith(other.rstrip("/") + "/")


def _clone_tree(path: str) -> int:
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    try:
        return syscall("open_tree", _AT_FDCWD, os.fsencode(path), flags)
    except OSError as error:
        raise NamespaceError(f"{path} can't be kept in view: {error}") from error


def _set_attributes(directory: int, path: str, to_set: int, to_clear: int = 0) -> None:
    flags = _AT_RECURSIVE | (0 if path else _AT_EMPTY_PATH)
    # struct mount_attr: set, clear, propagation, user namespace.
    attr = struct.pack("<4Q", to_set, to_clear, 0, 0)
    try:
        syscall("mount_setattr", directory, os.fsencode(path), flags, attr, len(attr))
    except OSError as error:
        raise NamespaceError(f"mount attributes of {path or 'a kept path'}: {error}") from error


def _take_hold(view: MountView) -> dict[str, tuple[int, bool]]:
    """Return a detached copy of the mount at each path of the view, with its final attributes: {real path: (fd, is a
    directory)}. A path named twice is writable only if nobody wants it read-only.
    """
    wanted: dict[str, bool] = {}
    for paths, writable in ((view.writable, True), (view.read_only, False)):
        for path in paths:
            real = os.path.realpath(path)
            if real != "/":
                wanted[real] = writable
    kept: dict[str, tuple[int, bool]] = {}
    for path, writable in wanted.items():
        is_directory = stat.S_ISDIR(_stat(path).st_mode)
        fd = _clone_tree(path)
        if writable:
            _set_attributes(fd, "", _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, _MOUNT_ATTR_RDONLY)
        else:
            _set_attributes(fd, "", _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | _MOUNT_ATTR_RDONLY)
        kept[path] = (fd, is_directory)
    return kept


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise NamespaceError(f"{path}: {error.strerror} (`pyttpd check` says which key names it)") from error


def _cover(path: str) -> None:
    """Mount an empty directory over `path`, with the mode that the covered one had."""
    mode = stat.S_IMODE(os.stat(path).st_mode)
    data = f"size={COVER_BYTES},nr_inodes={COVER_FILES},mode={mode:o}".encode()
    _mount(b"pyttpd", path, b"tmpfs", _MS_NOSUID | _MS_NODEV, data)


def _make_devices(devices: dict[str, int]) -> None:
    """Cover /dev by one that holds the given nodes and shared memory of our own."""
    _mount(b"pyttpd", "/dev", b"tmpfs", _MS_NOSUID | _MS_NOEXEC, b"size=64k,nr_inodes=64,mode=755")
    for name, fd in devices.items():
        target = f"/dev/{name}"
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        _attach(fd, target)
    for name, source in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(source, f"/dev/{name}")
    os.mkdir("/dev/shm")
    data = f"size={COVER_BYTES},nr_inodes={COVER_FILES},mode=1777".encode()
    _mount(b"pyttpd", "/dev/shm", b"tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, data)
    _set_attributes_of_one("/dev", _MOUNT_ATTR_RDONLY)


def _set_attributes_of_one(path: str, to_set: int) -> None:
    attr = struct.pack("<4Q", to_set, 0, 0, 0)
    syscall("mount_setattr", _AT_FDCWD, os.fsencode(path), 0, attr, len(attr))


def _make_proc() -> None:
    """Mount a /proc that shows nobody else's processes. A kernel before 5.8 has one /proc for all: left as it is."""
    try:
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        syscall("mount", b"proc", b"/proc", b"proc", flags, b"hidepid=invisible")
    except OSError:
        return


def _attach(fd: int, target: str) -> None:
    try:
        syscall("move_mount", fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    except OSError as error:
        raise NamespaceError(f"{target} can't be put back in view: {error}") from error
    finally:
        os.close(fd)


def _put_back(path: str, fd: int, *, is_directory: bool) -> None:
    if not os.path.lexists(path):
        # Below something covered: its place has to be made. Everything on the way may be passed through.
        os.makedirs(path if is_directory else os.path.dirname(path), mode=0o755, exist_ok=True)
        if not is_directory:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _attach(fd, path)


__all__ = [
    "MountView",
    "NamespaceError",
    "TenantFiles",
    "enter_mount_namespace",
    "enter_network_namespace",
    "join_network_namespace",
    "listen_inside",
    "make_network_namespace",
    "role_view",
    "tenant_view",
]
