"""Plays every peer of one real role: its process is started as in a tree, all the others are this test.

Rules. A test speaks the wire by hand: well-formed by `End.send`, anything at all by `End.raw`. Its uid is a real one:
the kernel takes the effective uid at connect(), listen() and socketpair() for SO_PEERCRED, so `as_uid` around one of
these is enough, and takes root. Every wait has a bound (`PATIENCE`), and waits for an event where there is one.

    with Stage() as stage:
        umaster = stage.umaster()                       # the real one, configured by a played init and master
        listener = stage.listener()                     # a played one, greeted
        listener.send(Route(1, CLIENT, "a.test"), stage.connection())

`Role.unharmed()` is what every attack ends with: the same process, without a descriptor more than before.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import pytest

from pyttpd import memfd
from pyttpd.config.shares import HostMap, ListenerPeer, ListenerShare, LogSettings, UmasterShare, VhostPeer
from pyttpd.roles import ROLES
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role as RoleName
from pyttpd.wire import packets
from pyttpd.wire.messages import (
    BY_CLASS,
    HAS_DESCRIPTOR,
    HEADER,
    VERSION,
    Client,
    Hello,
    Message,
    Share,
    ShareOk,
    Socket,
    SocketsEnd,
    Welcome,
    Worker,
    encode,
)

#: Bound (s) of every wait: much more than a loaded machine needs, much less than a test may take.
PATIENCE = 15.0
CLIENT = Client("192.0.2.7", 4711)
LOG = LogSettings("debug", "text")
UMASTER_UID = ROLES[RoleName.UMASTER].uid
MASTER_UID = ROLES[RoleName.MASTER].uid
LISTENER_UID = ROLES[RoleName.LISTENER].uid
#: Two tenants, and what listens for them.
TENANTS = {"a": 20_101, "b": 20_102}
STRANGER_UID = 29_998
BINDER_UIDS = {
    Directory.INIT: 0,
    Directory.MASTER: MASTER_UID,
    Directory.ADMIN: MASTER_UID,
    Directory.ROUTE: UMASTER_UID,
    Directory.VHOST: UMASTER_UID,
}

M = TypeVar("M")
Samples = dict[tuple[str, *tuple[tuple[str, str], ...]], float]


@contextlib.contextmanager
def as_uid(uid: int) -> Iterator[None]:
    """Be `uid` for the kernel's SO_PEERCRED."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def wait_for(what: Callable[[], Any], why: str = "", within: float = PATIENCE) -> None:
    """Wait for what has no event: counters, a log, /proc."""
    deadline = time.monotonic() + within
    while not what():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within} s: {why}")
        time.sleep(0.01)


class Heard(NamedTuple):
    message: Message
    fd: int | None


class End:
    """One end of a channel. Owns its socket and every descriptor that has come in."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fds: list[int] = []
        self._heard: deque[Heard] = deque()
        sock.settimeout(PATIENCE)

    def send(self, message: Message, fd: int | socket.socket | None = None) -> Self:
        """Send `message`; a given socket is closed afterwards, as by one who hands it over."""
        number = fd.fileno() if isinstance(fd, socket.socket) else fd
        self.raw(encode(message), *(() if number is None else (number,)))
        if isinstance(fd, socket.socket):
            fd.close()
        return self

    def raw(self, data: bytes, *fds: int) -> Self:
        """Send anything. That the other side has closed already is no error here."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            if fds:
                socket.send_fds(self.sock, [data], list(fds))
            else:
                self.sock.send(data)
        return self

    def receive(self, within: float = PATIENCE) -> Heard | None:
        """Return the next frame; None when the other side has closed. Fails when nothing comes."""
        if self._heard:
            return self._heard.popleft()
        self.sock.settimeout(within)
        try:
            data, fds, flags, _ = socket.recv_fds(self.sock, packets.MAX_PACKET, packets.MAX_FRAMES)
        except TimeoutError:
            pytest.fail(f"nothing came within {within} s")
        except ConnectionResetError:
            return None
        self.fds += fds
        assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if not data:
            return None
        several = data[0] >= packets.SEVERAL_SINCE
        came = iter(fds)
        for message in packets.unpack(data, data[0], several=several):
            self._heard.append(
                Heard(message, next(came) if BY_CLASS[type(message)].descriptor is not None else None)
            )
        return self._heard.popleft()

    def expect(self, cls: type[M], within: float = PATIENCE) -> M:
        """Return the next frame's message, which has to be a `cls`; its descriptor is the last of `fds`."""
        heard = self.receive(within)
        assert heard is not None, f"closed instead of {cls.__name__}"
        assert isinstance(heard.message, cls), heard
        return heard.message

    def wait_read(self) -> Self:
        """Wait until the other side has read all that was sent (unix(7), SIOCOUTQ)."""
        wait_for(
            lambda: not struct.unpack("i", fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)))[0],
            "what was sent is read",
        )
        return self

    def quiet(self, seconds: float = 0.3) -> bool:
        """Say whether nothing comes for so long."""
        return not self._heard and not select.select([self.sock], [], [], seconds)[0]

    def is_closed(self) -> bool:
        """Read to the end, and say whether there is one."""
        while self.receive() is not None:
            pass
        return True

    def socket(self) -> socket.socket:
        """Return the last descriptor that came, as a socket of the caller's."""
        return socket.socket(fileno=self.fds.pop())

    def close(self) -> None:
        self.sock.close()
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


class Role:
    """A real role's process: `keeper` is what was started, `pid` the role itself."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, role: str) -> None:
        self.process = process
        self.role = role
        self.logged = log
        self.metrics: tuple[str, int] | None = None
        self._pid = 0
        self.descriptors = 0

    @property
    def keeper(self) -> int:
        return self.process.pid

    @property
    def pid(self) -> int:
        """The role's process, as it is now."""
        children = Path(f"/proc/{self.keeper}/task/{self.keeper}/children")
        wait_for(lambda: children.read_text().split(), f"{self.role} has no process\n{self.last_words()}")
        return int(children.read_text().split()[0])

    def fds(self) -> list[str]:
        found = []
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{self.pid}/fd/{name}"))
        return found

    def remember(self) -> None:
        """What it has now is what it must have after an attack."""
        self._pid = self.pid
        self.descriptors = len(self.fds())

    def unharmed(self) -> None:
        """Fail unless this is the process that it was, with as many descriptors."""
        assert self.pid == self._pid, f"{self.role} has died:\n{self.last_words()}"
        wait_for(
            lambda: len(self.fds()) <= self.descriptors,
            f"{len(self.fds())} descriptors, {self.descriptors} before: {self.fds()}",
        )
        assert self.pid == self._pid, f"{self.role} has died:\n{self.last_words()}"
        assert "] error:" not in self.log() and "Traceback" not in self.log(), self.last_words()

    def log(self) -> str:
        return self.logged.read_text(errors="replace")

    def last_words(self) -> str:
        return self.log()[-3000:]

    def logs(self, pattern: str) -> None:
        wait_for(lambda: re.search(pattern, self.log()), f"{pattern!r} in the log:\n{self.last_words()}")

    def samples(self) -> Samples:
        from prometheus_client.parser import text_string_to_metric_families

        assert self.metrics is not None
        connection = http.client.HTTPConnection(*self.metrics, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        return {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def sample(self, name: str, **labels: str) -> float:
        """Return one sample of this role's; 0 for a counter that isn't there yet."""
        return self.samples().get((f"pyttpd_{self.role}_{name}", *sorted(labels.items())), 0.0)

    def faults(self, peer: str, reason: str) -> float:
        return self.sample("channel_faults_total", peer=peer, reason=reason)

    def wait_sample(self, value: float, name: str, **labels: str) -> None:
        wait_for(
            lambda: self.sample(name, **labels) == value,
            f"{name}{labels} = {value}, not {self.sample(name, **labels)}",
        )

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stage:
    """A runtime directory, one real role, and ends for everybody else. Ends all of it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pyttpd-peers-", dir="/tmp"))
        self.folder.chmod(0o755)
        self._open = contextlib.ExitStack()
        self._bound: dict[Directory, socket.socket] = {}
        self._door = self._open.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.roles: list[Role] = []
        for directory, uid in BINDER_UIDS.items():
            (self.folder / directory.value).mkdir()
            os.chown(self.folder / directory.value, uid, uid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for role in self.roles:
            role.end()
        self._open.close()
        shutil.rmtree(self.folder)

    def keep(self, end: End) -> End:
        self._open.callback(end.close)
        return end

    @contextlib.contextmanager
    def scene(self) -> Iterator[Self]:
        """What is opened within, ends with it; the real role goes on, and has to be unharmed."""
        for role in self.roles:
            role.remember()
        with self.scene_of_peers():
            yield self
        for role in self.roles:
            role.unharmed()

    @contextlib.contextmanager
    def scene_of_peers(self) -> Iterator[None]:
        """What is opened within, ends with it."""
        before, self._open = self._open, contextlib.ExitStack()
        try:
            yield
        finally:
            self._open.close()
            self._open = before

    # ---- connections -------------------------------------------------------------------------------------------------

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Return a client's end and the server's end of a new TCP connection, both the caller's."""
        client = socket.create_connection(self._door.getsockname(), PATIENCE)
        server, _ = self._door.accept()
        return client, server

    def connection(self) -> socket.socket:
        """Return the server's end of a connection whose client stays until the stage ends. The caller closes it."""
        client, server = self.pair()
        self._open.callback(client.close)
        return server

    # ---- processes ---------------------------------------------------------------------------------------------------

    def bind(self, directory: Directory) -> socket.socket:
        """Bind a directory in the place of its role; what connects is accepted by `accept`."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = self.folder / directory.value / "sock"
        with as_uid(BINDER_UIDS[directory]):
            sock.bind(str(path))
            path.chmod(0o666)
            sock.listen(1024)
        sock.settimeout(PATIENCE)
        self._bound[directory] = self._open.enter_context(sock)
        return sock

    def opened(self, sock: socket.socket) -> socket.socket:
        """Close `sock` when the scene ends."""
        return self._open.enter_context(sock)

    def accept_raw(self, directory: Directory) -> socket.socket:
        """Accept a connector, and say nothing yet. The caller closes it."""
        return self._bound[directory].accept()[0]

    def accept(self, directory: Directory, credits: int = 0) -> End:
        """Accept a connector and welcome it."""
        end = self.keep(End(self.accept_raw(directory)))
        end.expect(Hello)
        return end.send(Welcome(VERSION, credits))

    def start(self, role: RoleName, name: str, uid: int, *arguments: str, nofile: int = 0) -> Role:
        """Start the real role."""
        log = self.folder / f"log-{role.value}"
        health = self.folder / f"health-{role.value}"
        health.mkdir()
        os.chown(health, uid, uid)
        command = [sys.executable, "-I", "-m", f"pyttpd_{role.value}", "--runtime-dir", str(self.folder)]
        command += [
            "--health-file",
            str(health / "state"),
            "--die-with",
            str(os.getpid()),
        ]
        command += ["--name", name] if name else []
        command += ["--uid", str(uid), "--gid", str(uid)] if uid else []

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd="/",
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                preexec_fn=limit if nofile else None,  # noqa: PLW1509 - there are no threads here
                start_new_session=True,
            )
        self.roles.append(Role(process, log, role.value))
        return self.roles[-1]

    def give_sockets(self, role: Role, name: str, listen: socket.socket | None = None) -> End:
        """Be init: give a real role its metrics socket, and `listen` if it is a listener."""
        end = self.accept(Directory.INIT)
        with socket.create_server(("127.0.0.1", 0)) as metrics:
            end.send(Socket("metrics", name), metrics.fileno())
            role.metrics = metrics.getsockname()
        if listen is not None:
            end.send(Socket("listen", name), listen.fileno())
        return end.send(SocketsEnd(1 if listen is None else 2))

    def give_shares(self, *shares: tuple[str, bytes], generation: int = 1, answered: bool = True) -> End:
        """Be master: give a real role its shares, and wait until they are in force (a tenant's needs umaster first)."""
        end = self.accept(Directory.MASTER)
        for part, data in shares:
            self.share(end, part, data, generation)
        for _ in shares if answered else ():
            assert end.expect(ShareOk) == ShareOk(generation)
        return end

    @staticmethod
    def share(end: End, part: str, data: bytes, generation: int = 1) -> None:
        fd = memfd.make("share", data)
        end.send(Share(generation, part, len(data), memfd.digest_of(data)), fd)
        os.close(fd)

    # ---- umaster -----------------------------------------------------------------------------------------------------

    def umaster(
        self,
        *,
        nofile: int = 0,
        queue_limit: int = 256,
        queue_timeout: float = 10.0,
        handovers: int = 256,
    ) -> Role:
        """Start the real umaster with tenants a (a.test) and b (b.test), and be its init and master."""
        self.bind(Directory.INIT)
        self.bind(Directory.MASTER)
        role = self.start(RoleName.UMASTER, "", UMASTER_UID, nofile=nofile)
        share = UmasterShare(
            1,
            (
                ListenerPeer("http", LISTENER_UID, "http", 16384),
                ListenerPeer("other", LISTENER_UID + 1, "http", 16384),
            ),
            tuple(
                VhostPeer(name, uid, queue_limit, queue_timeout, handovers) for name, uid in TENANTS.items()
            ),
            LOG,
            5.0,
        )
        hosts = HostMap(1, {f"{name}.test": name for name in TENANTS}, {}, None)
        self.give_sockets(role, "umaster")
        self.give_shares(("share", share.to_json()), ("map", hosts.to_json()))
        role.remember()
        return role

    def wait_bound(self, directory: Directory) -> None:
        """Wait until a real role has bound its directory."""
        path = self.folder / directory.value / "sock"
        wait_for(path.is_socket, f"{path} is bound")

    def connect(self, directory: Directory, uid: int) -> End:
        """Connect to a real role under `uid`, and say nothing yet."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with as_uid(uid):
            sock.connect(str(self.folder / directory.value / "sock"))
        return self.keep(End(sock))

    def greet(self, directory: Directory, uid: int, role: str, name: str) -> End:
        """Connect under `uid`, say hello, and be welcomed."""
        end = self.connect(directory, uid).send(Hello(role, name))
        end.expect(Welcome)
        return end

    def listener(self, name: str = "http") -> End:
        """Be a listener of umaster's."""
        return self.greet(Directory.ROUTE, LISTENER_UID + ("http", "other").index(name), "listener", name)

    def supervisor(self, tenant: str = "a") -> End:
        """Be a tenant's supervisor of umaster's."""
        return self.greet(Directory.VHOST, TENANTS[tenant], "vhost", tenant)

    def worker(self, supervisor: End, tenant: str = "a", number: int = 1) -> End:
        """Announce a worker, and be it."""
        with as_uid(TENANTS[tenant]):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor.send(Worker(number, "requests"), theirs)
        return self.keep(End(ours))


def frame(
    code: int,
    body: bytes = b"",
    *,
    id_: int = 0,
    flags: int = 0,
    version: int = VERSION,
    length: int | None = None,
) -> bytes:
    """Return a frame that needn't be one."""
    return HEADER.pack(version, code, flags, 0, len(body) if length is None else length, id_) + body


def as_version(data: bytes, version: int) -> bytes:
    """Return `data`, but if it is a frame of ours, then of this version."""
    return bytes((version,)) + data[1:] if data[:1] == bytes((VERSION,)) else data


def with_header(message: Message, **changes: int) -> bytes:
    """Return `message` as it is sent, with other values in its header."""
    data = encode(message)
    fields = dict(
        zip(("version", "code", "flags", "reserved", "length", "id"), HEADER.unpack_from(data), strict=True)
    )
    return HEADER.pack(*(fields | changes).values()) + data[HEADER.size :]


#: What no peer may ever send, whatever its role and phase: name, frame, reason for which the channel is closed.
JUNK: tuple[tuple[str, bytes, str], ...] = (
    ("a byte", b"\x01", "truncated"),
    ("half a header", b"\x01\x1e\0\0\0\0\0\0", "truncated"),
    ("text", b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "bad-version"),
    ("unknown type", frame(200), "unknown-type"),
    ("type 0", frame(0), "unknown-type"),
    ("version 0", frame(1, version=0), "bad-version"),
    ("version 255", frame(1, version=255), "bad-version"),
    ("a length that lies", frame(3, b"bye", length=4), "bad-length"),
    ("a length of 4 GiB", frame(3, b"bye", length=2**32 - 1), "bad-length"),
    ("oversized", frame(3, b"x" * 60_000), "oversized"),
    ("one byte too long", b"x" * (packets.MAX_PACKET + 1), "oversized"),
    ("unknown flags", frame(3, b"bye", flags=0x80), "bad-field"),
    ("a descriptor that is only announced", frame(3, b"bye", flags=HAS_DESCRIPTOR), "bad-field"),
    ("an id where none belongs", frame(3, b"bye", id_=7), "bad-field"),
    ("a text that isn't printable", frame(3, b"\x1b[2Jbye"), "bad-field"),
)
JUNK_NAMES = [name for name, _, _ in JUNK]


def listener_share(**changes: Any) -> bytes:
    """Return a listener's share."""
    values: dict[str, Any] = {
        "generation": 1,
        "name": "http",
        "mode": "http",
        "head_limit": 32_768,
        "request_line_limit": 8192,
        "max_headers": 128,
        "head_timeout": 10.0,
        "linger_timeout": 2.0,
        "max_connections": 1024,
        "max_unnamed_per_client": 0,
        "stress_factor": 1.0,
        "handover_timeout": 5.0,
        "proxy_protocol": [],
        "log": LOG,
        "grace": 5.0,
    }
    return ListenerShare(**(values | changes)).to_json()
