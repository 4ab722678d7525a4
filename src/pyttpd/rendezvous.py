"""How two roles find each other, and prove who they are before a byte is read.

Two ways, chosen by the form of deployment and the same for all above:

* **paths** (containers; plain mode as root): the binder's keeper has bound `<runtime_dir>/<directory>/sock` (in a pod
  `<runtime_dir>/<directory>/own/sock`, see service.py), the connector connects. Both ask the kernel for the other's uid
  (SO_PEERCRED) before anything else.
* **doors** (plain mode as an ordinary user): every process has the same uid, so a uid says nothing. There,
  init has made
  one socketpair per pair of roles before it started them; a connector makes a fresh socketpair and sends one
  end through its door. Who holds the door's far end is known, because it was inherited.

`Entrance` is the binder's side and `Link` the connector's. An entrance denies by default: the role's
`authorise` says who may come in, after a hello of fixed size.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass

from pyttpd import fdpass, peercred
from pyttpd.channel import Channel, Faults
from pyttpd.log import Log
from pyttpd.loop import READ, Budget, Loop, Timer
from pyttpd.roles import Channel as Directory
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import OLDEST_VERSION, VERSION, DescriptorKind, Hello, Message, Welcome
from pyttpd.wire.permits import Kind, Side

SOCKET_NAME = "sock"
BACKLOG = 1024

#: A peer that connects says hello within this (s), or is closed.
HELLO_TIMEOUT = 5.0
#: Who is turned away comes again every second or two: a container with a typing error, mostly. The log has it once in
#: so long (s); the counter has each. Of more than so many at a time all are told anew.
TOLD_FOR = 600.0
MAX_TOLD = 256
#: Channels of one uid (or door) that have not said hello yet: a tenant's application can connect as well as its
#: supervisor can, and must not use up the role's descriptors.
MAX_UNGREETED = 16
#: Channels that one name may have open at an entrance: its process, a predecessor that leaves, and some that haven't
#: been found dead yet. Without a bound a tenant's application, which has its supervisor's uid, could use up the role's
#: descriptors.
MAX_GREETED = 8
#: Delays (s) of a connector that finds nobody, growing and jittered so that ten thousand don't come at once.
FIRST_DELAY = 0.02
LAST_DELAY = 2.0

#: The reason for the end of a channel whose peer had said Goodbye before.
LEFT = "left"

_KINDS = {
    Directory.INIT: Kind.INIT,
    Directory.MASTER: Kind.MASTER,
    Directory.ADMIN: Kind.ADMIN,
    Directory.ROUTE: Kind.ROUTE,
    Directory.VHOST: Kind.VHOST,
}


@dataclass(frozen=True, slots=True)
class Door:
    """One end of an inherited socketpair to or from role `role`, instance `name` (empty where there is only one)."""

    directory: Directory
    role: str
    name: str
    fd: int


@dataclass(frozen=True, slots=True)
class Caller:
    """Who stands at an entrance: a uid, or the door it came through."""

    uid: int | None
    door: Door | None
    #: Where people come in; empty elsewhere.
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return (
            f"uid {self.uid}" if self.door is None else f"door of {self.door.role} {self.door.name}".rstrip()
        )

    def is_a(self, role: str, name: str, uid: int) -> bool:
        """Say whether this caller is instance `name` of `role`, which runs under `uid`."""
        if self.door is not None:
            return (self.door.role, self.door.name) == (role, name)
        return self.uid == uid


def _tell_of_older(log: Log, peer: str, name: str, version: int) -> None:
    log.info("an older version of the protocol is spoken with", peer=peer, name=name or "-", version=version)


class Entrance:
    """Lets peers in. Owns the sockets it is given.

    authorise(caller, hello) says whether this caller may be who it says it is; on_open(channel, hello) takes the
    channel over after the welcome, and sets its on_message and on_close.
    """

    def __init__(
        self,
        directory: Directory,
        listener: socket.socket | None,
        doors: list[Door],
        *,
        loop: Loop,
        log: Log,
        faults: Faults,
        budget: Budget,
        credits: int,
        authorise: Callable[[Caller, Hello], bool],
        on_open: Callable[[Channel, Hello], None],
    ) -> None:
        self._directory = directory
        self._loop = loop
        self._log = log
        self._faults = faults
        self._budget = budget
        self._credits = credits
        self._authorise = authorise
        self._on_open = on_open
        self._ungreeted: dict[object, int] = {}
        self._greeted: dict[tuple[str, str], list[Channel]] = {}
        self._silent: dict[Channel, None] = {}
        self._told: dict[str, float] = {}
        self._open = False
        self._sources: list[tuple[socket.socket, Door | None]] = []
        if listener is not None:
            listener.setblocking(False)
            self._sources.append((listener, None))
        for door in doors:
            self.add_door(door)
        budget.on_free.append(self._resume)

    def add_door(self, door: Door) -> None:
        """Let its far end in as well. Takes over its descriptor."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=door.fd)
        sock.setblocking(False)
        self._sources.append((sock, door))
        if self._open:
            self._watch(sock, door)

    def open(self) -> None:
        """Begin to let peers in (the role knows now whom to let in)."""
        if not self._open:
            self._open = True
            for sock, door in self._sources:
                self._watch(sock, door)

    def _watch(self, sock: socket.socket, door: Door | None) -> None:
        take = self._accept if door is None else self._through
        self._loop.add(sock.fileno(), READ, lambda _: take(sock, door))

    def close(self) -> None:
        """Let nobody in any more. The sockets stay open: the keeper holds them for a successor anyway."""
        if self._open:
            self._open = False
            for sock, _ in self._sources:
                self._loop.remove(sock.fileno())

    def _resume(self) -> None:
        if self._open:
            for sock, _ in self._sources:
                self._loop.modify(sock.fileno(), READ)

    def _exhausted(self, sock: socket.socket) -> bool:
        if not self._budget.exhausted:
            return False
        if self._silent:
            # A role says hello at once: who has been silent the longest makes room, and may come again.
            next(iter(self._silent)).fault("silent", "others have to come in")
            return False
        self._loop.modify(sock.fileno(), 0)
        return True

    def _accept(self, listener: socket.socket, _: Door | None) -> None:
        if self._exhausted(listener):
            return
        try:
            sock, _address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            self._log.error("cannot accept a peer", directory=self._directory.value, error=error.strerror)
            return
        try:
            groups = peercred.groups(sock) if self._directory is Directory.ADMIN else frozenset()
            caller = Caller(peercred.peer(sock).uid, None, groups)
        except OSError:
            sock.close()
            return
        self._greet(sock, caller)

    def _through(self, door_sock: socket.socket, door: Door | None) -> None:
        assert door is not None
        if self._exhausted(door_sock):
            return
        try:
            data, fd = fdpass.recv_fd(door_sock, 1)
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError, fdpass.DescriptorLost) as error:
            self._log.warning(
                "nothing usable came through a door", role=door.role, name=door.name, error=error
            )
            return
        if fd is None:
            if not data:
                # The far end's keeper is gone for good, and so is the door.
                self._loop.remove(door_sock.fileno())
                self._sources.remove((door_sock, door))
                door_sock.close()
            return
        if not fdpass.check(fd, DescriptorKind.CHANNEL):
            os.close(fd)
            self._faults.add(door.role, "descriptors")
            return
        self._greet(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd), Caller(None, door))

    def _told_of(self, who: str) -> bool:
        """Say whether the log has been told lately that `who` was turned away; from now on it has."""
        now = self._loop.now
        if now - self._told.get(who, -TOLD_FOR) < TOLD_FOR:
            return True
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[who] = now
        return False

    def _greet(self, sock: socket.socket, caller: Caller) -> None:
        key = caller.uid if caller.door is None else caller.door
        if self._ungreeted.get(key, 0) >= MAX_UNGREETED:
            self._faults.add("unknown", "too-many-ungreeted")
            self._log.warning("peer refused: too many channels without a hello", caller=caller)
            sock.close()
            return
        self._ungreeted[key] = self._ungreeted.get(key, 0) + 1
        timer: Timer | None = None
        settled = False

        def settle() -> None:
            nonlocal settled
            assert timer is not None
            if settled:
                return  # the welcome found nobody any more
            settled = True
            timer.cancel()
            self._silent.pop(channel, None)
            self._ungreeted[key] -= 1
            if not self._ungreeted[key]:
                del self._ungreeted[key]

        def on_close(_: Channel, _reason: str) -> None:
            settle()

        def on_message(channel: Channel, message: Message, _fd: int | None) -> None:
            assert isinstance(message, Hello)  # the permit table lets nothing else come first
            channel.peer, channel.peer_name = message.role, message.name
            who = f"{caller} as {message.role} {message.name}"
            if not self._authorise(caller, message):
                raise RemoteProtocolError("not-authorised", who, told=self._told_of(who))
            version = min(VERSION, message.newest)
            if version < max(OLDEST_VERSION, message.oldest):
                channel.send(Welcome(VERSION, 0))  # not one that it knows, so that its log says why as well
                raise RemoteProtocolError(
                    "bad-version",
                    f"{who} speaks versions {message.oldest} to {message.newest}, {OLDEST_VERSION} to {VERSION} "
                    "are understood here",
                    told=self._told_of(f"{who} version"),
                )
            self._count_greeted(channel, message)
            settle()
            if channel.send(Welcome(version, self._credits)):
                channel.version = version
                if version < VERSION:
                    _tell_of_older(self._log, message.role, message.name, version)
                self._on_open(channel, message)
            else:
                channel.close()  # it is gone; what it has said beside its hello is nobody's to hear

        channel = Channel(
            sock,
            _KINDS[self._directory],
            Side.BINDER,
            loop=self._loop,
            log=self._log,
            faults=self._faults,
            peer="unknown",
            peer_name=str(caller),
            on_message=on_message,
            on_close=on_close,
        )
        self._budget.take()
        channel.budget = self._budget
        self._silent[channel] = None
        timer = self._loop.call_later(HELLO_TIMEOUT, lambda: channel.fault("silent", "no hello"))

    def _count_greeted(self, channel: Channel, hello: Hello) -> None:
        # The names are those of the configuration, as authorise() has let this one in.
        others = [other for other in self._greeted.get((hello.role, hello.name), ()) if not other.closed]
        if len(others) >= MAX_GREETED:
            raise RemoteProtocolError(
                "too-many", f"{hello.role} {hello.name} has {MAX_GREETED} channels already"
            )
        self._greeted[hello.role, hello.name] = [*others, channel]


class Link:
    """Keeps a channel to a binder: connects, says hello, connects again with growing, jittered delay when it is lost.

    on_open(channel, welcome), on_message(channel, message, fd) and on_lost(reason) are the role's. `binder_uid` is whom
    SO_PEERCRED must name at the other end of a path; None with a door.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        folder: str,
        door: Door | None,
        binder: str,
        binder_uid: int,
        hello: Hello,
        loop: Loop,
        log: Log,
        faults: Faults,
        on_open: Callable[[Channel, Welcome], None],
        on_message: Callable[[Channel, Message, int | None], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._directory = directory
        self._path = f"{folder}/{SOCKET_NAME}"
        self._door = None
        if door is not None:
            self._door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=door.fd)
            self._door.setblocking(False)
        self._binder = binder
        self._binder_uid = binder_uid
        self._hello = hello
        self._loop = loop
        self._log = log
        self._faults = faults
        self._on_open = on_open
        self._on_message = on_message
        self._on_lost = on_lost
        self._delay = FIRST_DELAY
        self._timer: Timer | None = None
        self._told = False
        self._told_version = 0
        self.channel: Channel | None = None
        self.is_open = False

    def start(self) -> None:
        """Connect now, and again until it works."""
        self._timer = None
        try:
            sock = self._connect()
        except OSError as error:
            if not self._told and self._delay >= LAST_DELAY:
                self._told = True
                self._log.warning("peer is away", peer=self._binder, error=error.strerror)
            self._again()
            return
        self.channel = Channel(
            sock,
            _KINDS[self._directory],
            Side.CONNECTOR,
            loop=self._loop,
            log=self._log,
            faults=self._faults,
            peer=self._binder,
            on_message=self._welcome,
            on_close=self._closed,
        )
        self.channel.send(self._hello)

    def _connect(self) -> socket.socket:
        if self._door is not None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    fdpass.send_fd(self._door, b"\0", theirs.fileno())
                except OSError:
                    ours.close()
                    raise
            return ours
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(self._path)
            uid = peercred.peer(sock).uid
            if uid != self._binder_uid:
                self._faults.add(self._binder, "not-authorised")
                self._log.error(
                    "a wrong uid has bound the socket", path=self._path, uid=uid, expected=self._binder_uid
                )
                raise PermissionError(1, "a wrong uid has bound the socket")
        except OSError:
            sock.close()
            raise
        return sock

    def _again(self) -> None:
        delay = self._delay * random.uniform(0.5, 1.5)
        self._delay = min(LAST_DELAY, self._delay * 2)
        self._timer = self._loop.call_later(delay, self.start)

    def _welcome(self, channel: Channel, message: Message, _: int | None) -> None:
        assert isinstance(message, Welcome)  # the permit table lets nothing else come first
        oldest, newest, spoken = self._hello.oldest, self._hello.newest, message.version
        if not oldest <= spoken <= newest:
            told, self._told_version, self._told = self._told_version == spoken, spoken, True
            raise RemoteProtocolError(
                "bad-version",
                f"{self._binder} speaks version {spoken}, {oldest} to {newest} are understood here",
                told=told,
            )
        channel.version = spoken
        if spoken < newest:
            _tell_of_older(self._log, self._binder, "", spoken)
        channel.on_message = self._on_message
        self.is_open = True
        self._delay = FIRST_DELAY
        self._told = False
        self._told_version = 0
        self._on_open(channel, message)

    def _closed(self, channel: Channel, reason: str) -> None:
        if channel.leaving:
            reason = LEFT
        was_open, self.is_open, self.channel = self.is_open, False, None
        if not was_open and not self._told and self._delay >= LAST_DELAY:
            # Time and again, so it isn't a binder that was just replaced. The binder's own log says more.
            self._told = True
            self._log.warning(
                "turned away: the configuration has another uid for this name, or doesn't have the name",
                peer=self._binder,
                name=self._hello.name,
                uid=os.geteuid(),
            )
        self._again()
        if was_open:
            self._on_lost(reason)

    def drop(self) -> None:
        """Close the channel and connect anew (the peer said goodbye)."""
        if self.channel is not None:
            self.channel.close()
            self._closed(self.channel, "replaced")

    def close(self) -> None:
        """Close the channel for good."""
        if self._timer is not None:
            self._timer.cancel()
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.is_open = False
