"""Who holds which client's connection: a moment's picture of a tree's processes, as the kernel has it.

A connection is known by the inode of the server's socket: /proc/PID/fd says who has a descriptor of it, the lists of
/proc/PID/fdinfo who waits for it in epoll, and sock_diag(7) which client's port is at its other end.

Who alone has a connection loses it by dying. Two may have one on its way from one to the other, and only the reader of
the two loses it. Who has offered a connection has taken it out of epoll before (pyttpd_vhost.offers, parking); so who
still has it there reads it. Where that says nothing, the connection is *passing*: it may be lost, and the table of the
test counts these by themselves.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

_SOCKET, _EPOLL = "socket:[", "anon_inode:[eventpoll]"
_WATCHED = re.compile(r"^tfd:.* ino:([0-9a-f]+)", re.MULTILINE)
#: netlink(7), sock_diag(7): struct nlmsghdr, struct inet_diag_req_v2, and what is wanted of struct inet_diag_msg.
_HEADER, _REQUEST, _ANSWER = struct.Struct("=IHHII"), struct.Struct("=BBBxI2s46s"), struct.Struct("=6x2s60xI")
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLMSG_DONE, _NLM_F_DUMP_REQUEST = 4, 20, 3, 0x301
_LARGEST = 1 << 16
#: States (net/tcp_states.h): all but TIME_WAIT, CLOSE and LISTEN.
_STANDING = 0x1FFF & ~(1 << 6 | 1 << 7 | 1 << 10 | 1)


@dataclass(frozen=True, slots=True)
class Holdings:
    """Sockets are inodes. `has` and `polls` are by pid; `ports` are the clients', by socket.

    unaccepted: ports of connections that nobody has accepted yet. since: when the look at all this began.
    """

    since: float
    names: dict[int, str]
    has: dict[int, frozenset[int]]
    polls: dict[int, frozenset[int]]
    ports: dict[int, int]
    unaccepted: frozenset[int]

    @classmethod
    def look(cls, names: dict[int, str], port: int, first: Iterable[int] = ()) -> Holdings:
        """Look at the processes in `names`, at `first` first: those that have been stopped."""
        since = time.monotonic()
        ports, unaccepted = _connections(port)
        has, polls = {}, {}
        order = dict.fromkeys([*(pid for pid in first if pid in names), *names])
        for pid in order:
            has[pid], polls[pid] = _sockets(pid)
        return cls(since, names, has, polls, ports, unaccepted)

    def lost_with(self, victims: Collection[int]) -> tuple[dict[int, int], set[int]]:
        """Return the ports of the connections that may end with `victims`, by socket, and which are passing."""
        found: dict[int, int] = {}
        passing = set()
        others = [pid for pid in self.names if pid not in victims]
        for victim in victims:
            for inode in self.has.get(victim, frozenset()) & self.ports.keys():
                shared = any(inode in self.has[pid] for pid in others)
                if self._is_worker(victim):
                    # What it has taken is its own, although the listener's copy may not be closed yet.
                    if any(inode in self.polls[pid] for pid in others if self._is_worker(pid)):
                        continue
                    if shared and inode not in self.polls[victim]:
                        passing.add(inode)
                elif shared:
                    continue
                found[inode] = self.ports[inode]
        return found, passing

    def rescued(self, lost: Iterable[int], victims: Collection[int], dying: Collection[int]) -> set[int]:
        """Return those of `lost`, which `victims` had, that somebody has who is not dying: they were on their way."""
        workers = any(self._is_worker(pid) for pid in victims)
        held: set[int] = set()
        for pid in self.names:
            if pid not in dying and (not workers or self._is_worker(pid)):
                held |= (self.polls if workers else self.has)[pid]
        return held.intersection(lost)

    def who(self, port: int) -> str:
        """Say in words who has the connection of a client's `port`."""
        sockets = {inode for inode, its_port in self.ports.items() if its_port == port}
        if port in self.unaccepted:
            return "nobody yet"
        return ", ".join(
            f"{name} ({pid}{', in epoll' if sockets & self.polls[pid] else ''})"
            for pid, name in self.names.items()
            if sockets & self.has[pid]
        )

    def _is_worker(self, pid: int) -> bool:
        return is_worker(self.names.get(pid, ""))


def is_worker(name: str) -> bool:
    """Say whether a process calls itself so: w1:NAME."""
    return name.startswith("w") and ":" in name


def wait_stopped(pids: Iterable[int], within: float = 5.0) -> None:
    """Wait until no thread of `pids`, which have been sent SIGSTOP, does anything any more."""
    deadline = time.monotonic() + within
    for pid in pids:
        while _runs(pid) and time.monotonic() < deadline:
            time.sleep(0.0005)


def _runs(pid: int) -> bool:
    for task in _list(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError):
            letter = Path(f"/proc/{pid}/task/{task}/stat").read_text().rpartition(")")[2].split()[0]
            if letter not in "TtZX":
                return True
    return False


def _list(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _sockets(pid: int) -> tuple[frozenset[int], frozenset[int]]:
    """Return the sockets that a process has, and those that it waits for."""
    has, polls = set(), set()
    for name in _list(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith(_SOCKET):
                has.add(int(target[len(_SOCKET) : -1]))
            elif target == _EPOLL:
                text = Path(f"/proc/{pid}/fdinfo/{name}").read_text()
                polls |= {int(inode, 16) for inode in _WATCHED.findall(text)}
    return frozenset(has), frozenset(polls)


def _connections(server_port: int) -> tuple[dict[int, int], frozenset[int]]:
    """Return the clients' ports of all connections to `server_port`: by socket, and of those without one yet.

    By sock_diag(7): /proc/net/tcp takes seconds where others have left ten thousands of connections in TIME_WAIT.
    """
    found: dict[int, int] = {}
    unaccepted: set[int] = set()
    request = _REQUEST.pack(
        socket.AF_INET, socket.IPPROTO_TCP, 0, _STANDING, server_port.to_bytes(2), bytes(46)
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        header = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_DUMP_REQUEST, 1, 0)
        netlink.sendall(header + request)
        while True:
            data = netlink.recv(_LARGEST)
            while data:
                size, kind, _, _, _ = _HEADER.unpack_from(data)
                if kind == _NLMSG_DONE:
                    return found, frozenset(unaccepted)
                if kind != _SOCK_DIAG_BY_FAMILY:
                    raise OSError(f"sock_diag: {data[:64]!r}")
                port, inode = _ANSWER.unpack_from(data, _HEADER.size)
                if inode:
                    found[inode] = int.from_bytes(port)
                else:
                    unaccepted.add(int.from_bytes(port))
                data = data[size + 3 & ~3 :]
