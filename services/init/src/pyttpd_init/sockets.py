"""The listening sockets of a tree: which there are, whose each is, and how it is bound."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from pyttpd import tcp
from pyttpd.config.model import Config
from pyttpd.roles import ROLES, Role
from pyttpd.service import StartError

from pyttpd_init import egress

#: Scrapers are few.
METRICS_BACKLOG = 64


#: Not in the socket module (asm-generic/socket.h).
_SO_NETNS_COOKIE = 71


class AddressInUse(StartError):
    """Somebody listens there already: a stranger, or a role that has the socket from our predecessor."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One socket to bind: for `role` instance `name` (running under `uid`), for `use` "listen" or "metrics"."""

    role: str
    name: str
    uid: int
    use: str
    host: str
    port: int
    backlog: int

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        owner = self.role if self.name == self.role else f"{self.role} {self.name}"
        return f"{host}:{self.port} ({owner if self.use == 'listen' else f'{self.use} of {owner}'})"


def plans(config: Config) -> list[Plan]:
    """Return every socket that the configuration asks for."""
    address = config.metrics.address
    found = [
        Plan(
            role.value,
            role.value,
            ROLES[role].uid,
            "metrics",
            address,
            config.metrics.port_of(role),
            METRICS_BACKLOG,
        )
        for role in (Role.INIT, Role.MASTER, Role.UMASTER)
    ]
    for each in config.listeners:
        found.append(
            Plan(
                "listener", each.name, each.uid, "listen", each.address.host, each.address.port, each.backlog
            )
        )
        found.append(
            Plan("listener", each.name, each.uid, "metrics", address, each.metrics_port, METRICS_BACKLOG)
        )
    return found


def bind(plan: Plan) -> socket.socket:
    """Bind and listen; the caller owns the socket. Raises StartError.

    init listens itself: some security modules refuse listen() on a socket that was handed over.
    """
    family = socket.AF_INET6 if ":" in plan.host else socket.AF_INET
    sock = _make(family, plan.uid)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Answers are written in one go, and interim ones must not wait for an acknowledgement; accepted
        # sockets inherit it.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Urgent data stays in line: otherwise a peek and a read would see different bytes, and counts of them differ.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        # The listener hears of a client when its first bytes are there, and of one that says nothing a second later.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tcp.fix_mark(sock)  # before anybody comes
        sock.bind((plan.host, plan.port))
        sock.listen(plan.backlog)
    except OSError as error:
        sock.close()
        hint = (
            " (a port below 1024 takes root or NET_BIND_SERVICE)"
            if isinstance(error, PermissionError)
            else ""
        )
        kind = AddressInUse if error.errno == errno.EADDRINUSE else StartError
        raise kind(f"cannot listen on {plan}: {error.strerror}{hint}") from None
    sock.setblocking(False)
    return sock


def netns_cookie(sock: socket.socket) -> bytes:
    """Return what identifies the network namespace that `sock` was made in (socket(7), SO_NETNS_COOKIE)."""
    return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)


def is_planned(sock: socket.socket, plan: Plan, cookie: bytes) -> bool:
    """Say whether `sock`, a listening TCP socket that somebody brought back, is the one of `plan`, made in
    our namespace.
    """
    try:
        address = sock.getsockname()
        return (address[0], address[1]) == (plan.host, plan.port) and netns_cookie(sock) == cookie
    except OSError:
        return False


def _make(family: int, uid: int) -> socket.socket:
    """Return a TCP socket that counts as made by `uid` where we may say so (plain mode as root: the egress
    rule goes by it).
    """
    try:
        return egress.socket_made_by(uid, family, socket.SOCK_STREAM)
    except PermissionError:
        return socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
