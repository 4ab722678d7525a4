"""Where the sockets of application processes are, and how a worker gets to them.

Rules
  1. Nobody who is confined may listen(2). So a supervisor makes the listening sockets before it is, as many as a vhost
     may need, of each type; once it knows its share it gives back what that doesn't need.
  2. They lie in the tenant's own folder for temporary files, under names that hold the supervisor's pid: while a
     supervisor is succeeded by another, each one's workers find its own processes. Whoever can write there is the
     tenant. The name itself is bound and removed, and nothing below it, so that no link can lead us elsewhere.
  3. What a supervisor that was killed has left is removed by the next one.
  4. A worker connects by path. Where it may connect to nothing (an ordinary user's tree: one uid for all), the exec
     service does it for it, and to nothing but what the configuration names: `connect_without_links`. The tenant's code
     can put a link in the place of a socket in its own folder, and that must not lead to what else its user may
     connect to: master's admin channel, an agent with keys.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from pyttpd.config.limits import MAX_COMMANDS

if TYPE_CHECKING:
    from pyttpd_vhost.execution.client import Client
    from pyttpd_vhost.execution.usage import Usage

#: Connections that wait for an application (nginx and PHP-FPM use 511; the kernel cuts it to net.core.somaxconn).
BACKLOG: Final = 511
#: Short: sun_path has 108 bytes, and the folder may lie deep.
_NAME: Final = ".pyttpd-{pid}-{number}"
_NAMED: Final = re.compile(r"\.pyttpd-([1-9][0-9]{0,9})-[0-9]{1,2}")
#: struct timeval.
_TIMEVAL: Final = struct.Struct("@ll")
_FOR_EVER: Final = _TIMEVAL.pack(0, 0)
#: Looking at one component of a path, whatever it is.
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES: Final = (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)


class Listeners:
    """The listening sockets of one supervisor, made by `make`. Owns them, and their names."""

    def __init__(self) -> None:
        self._free: dict[int, list[tuple[socket.socket, str]]] = {kind: [] for kind in _TYPES}
        self._used: list[tuple[socket.socket, str]] = []
        #: Why there are none, or fewer than there should be.
        self.problem = ""

    @classmethod
    def make(cls, tmp: str) -> Listeners:
        """Make them in the folder `tmp`. Where that can't be done, `problem` says why, for who needs one."""
        made = cls()
        try:
            _sweep(tmp)
            for number in range(len(_TYPES) * MAX_COMMANDS):
                kind = _TYPES[number // MAX_COMMANDS]
                made._free[kind].append(
                    _listen(kind, f"{tmp}/{_NAME.format(pid=os.getpid(), number=number)}")
                )
        except OSError as error:
            made.problem = f"{tmp}: {error.strerror or error}"
        return made

    def take(self, kind: int) -> tuple[socket.socket, str] | None:
        """Return a socket of type `kind` and its path; it stays ours. None: there is none left."""
        if not self._free[kind]:
            return None
        self._used.append(self._free[kind].pop(0))
        return self._used[-1]

    def release(self) -> None:
        """Give back what wasn't taken."""
        for free in self._free.values():
            _remove(free)

    def close(self) -> None:
        """Give back all of them."""
        self.release()
        _remove(self._used)


def _listen(kind: int, path: str) -> tuple[socket.socket, str]:
    sock = socket.socket(socket.AF_UNIX, kind)
    # The tenant's own uid, and nobody else: where that isn't its alone, the folder's mode has to do.
    previous = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(previous)
    return sock, path


def _remove(sockets: list[tuple[socket.socket, str]]) -> None:
    for sock, path in sockets:
        sock.close()
        _unlink(path)
    sockets.clear()


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # the tenant may have done so


def _sweep(tmp: str) -> None:
    """Remove what a supervisor has left that is there no more (or was us, in a container's life before)."""
    for name in os.listdir(tmp):
        found = _NAMED.fullmatch(name)
        if found is not None and (int(found[1]) == os.getpid() or not _lives(int(found[1]))):
            _unlink(f"{tmp}/{name}")


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def without_links(path: str, tmp: str) -> str:
    """Return the path of a socket for `connect_without_links`. Links above the tenant's own folder `tmp` are not the
    tenant's: they may stand in it.
    """
    folder, _, name = path.rpartition("/")
    return f"{os.path.realpath(tmp)}/{name}" if folder == tmp else path


def connect_without_links(sock: socket.socket, path: str) -> None:
    """Connect to the socket at the absolute `path`, no component of which is a symbolic link. Raises OSError."""
    *folders, name = path.split("/")[1:]
    fd = os.open("/", _LOOK | os.O_DIRECTORY)
    try:
        for each in folders:
            deeper = os.open(each, _LOOK | os.O_DIRECTORY, dir_fd=fd)  # of a link: ENOTDIR
            os.close(fd)
            fd = deeper
        found = os.open(name, _LOOK, dir_fd=fd)
    finally:
        os.close(fd)
    try:
        if stat.S_ISLNK(os.fstat(found).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        # By the descriptor: what has the name now may be something else already.
        sock.connect(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


class Place:
    """An application's socket as a worker sees it. `mount` is its mount's index in the share, `pool` the number of its
    processes in `usage`; None: somebody else runs them.
    """

    __slots__ = ("_client", "_usage", "kind", "mount", "path", "pool", "row")

    def __init__(
        self,
        mount: int,
        path: str,
        *,
        kind: int = socket.SOCK_STREAM,
        pool: int | None = None,
        usage: Usage | None = None,
        client: Client | None = None,
    ) -> None:
        self.mount = mount
        self.path = path
        self.kind = kind
        self.pool = pool
        #: The worker's row in `usage`, once it has one.
        self.row = -1
        self._usage = usage
        self._client = client

    def connect(self, within: float) -> socket.socket:
        """Return a new connection (blocking), waiting up to `within` s for a place in the backlog. Raises OSError:
        EAGAIN if none was free, ECONNREFUSED also if its processes end as soon as they live.
        """
        if self.fails:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "none of its processes stays")
        if self._client is not None:
            from pyttpd_vhost.execution.client import SpawnError

            try:
                return self._client.connect(self.mount, patience=within)
            except SpawnError as error:
                raise OSError(error.code or errno.ECONNREFUSED, str(error)) from None
        sock = socket.socket(socket.AF_UNIX, self.kind)
        try:
            # Not settimeout(): a socket that doesn't block is told at once that the backlog is full (unix(7)).
            seconds, rest = divmod(within, 1.0)
            waits = _TIMEVAL.pack(int(seconds), max(1, int(rest * 1e6)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, waits)
            sock.connect(self.path)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _FOR_EVER)
        except BaseException:
            sock.close()
            raise
        return sock

    @property
    def direct(self) -> bool:
        """Whether the worker connects by itself: then connecting waits for nothing but a place in the queue."""
        return self._client is None

    @property
    def serving(self) -> int | None:
        """How many processes serve; None if nobody knows (they aren't ours)."""
        return self._usage.serving(self.pool) if self._usage is not None and self.pool is not None else None

    @property
    def fails(self) -> bool:
        """Whether its processes end as soon as they live: nobody need wait for one."""
        return self._usage is not None and self.pool is not None and self._usage.fails(self.pool)

    def begin(self) -> None:
        """A request is with the application from now on, until `end`."""
        if self._usage is not None and self.pool is not None and self.row >= 0:
            self._usage.begin(self.row, self.pool)

    def end(self) -> None:
        """See `begin`."""
        if self._usage is not None and self.pool is not None and self.row >= 0:
            self._usage.end(self.row, self.pool)

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is with the application for the time of this block."""
        self.begin()
        try:
            yield
        finally:
            self.end()
