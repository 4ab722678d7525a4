"""Channels, descriptors and played peers for tests that put a role, or a part of one, on a loop of their own.

Everything runs in the test's process and thread: `Stage` owns one loop, a role's `Service` is made on it, and the peers
that the role would meet are played by entrances on the same loop, reached through doors. `Stage.until(condition)` turns
the loop until the condition holds, and fails when it doesn't in time: no test sleeps.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from pyttpd import memfd
from pyttpd.channel import Channel, Faults
from pyttpd.log import Log
from pyttpd.loop import Budget, Loop
from pyttpd.rendezvous import Caller, Door, Entrance, Link
from pyttpd.roles import Channel as Directory
from pyttpd.roles import Role
from pyttpd.service import Options, Service
from pyttpd.wire import messages as m
from pyttpd.wire.messages import DescriptorKind, Hello, Message

#: What a condition gets (s), on a machine that has much else to do.
PATIENCE = 20.0
DIGEST = bytes(range(32))
CLIENT = m.Client("192.0.2.7", 4711)
#: One message of each class, valid as it is.
SAMPLES: dict[m.MessageType, Message] = {
    type(message): message
    for message in (
        m.Hello("listener", "http"),
        m.Welcome(1, 64),
        m.Goodbye("leaving"),
        m.Socket("listen", "http"),
        m.SocketsEnd(1),
        m.Wanted("listen", "http"),
        m.Return("listen", "http"),
        m.Prepare(DIGEST),
        m.Prepared(DIGEST),
        m.Unprepared("address in use"),
        m.Commit(DIGEST),
        m.Abort(),
        m.Holds(DIGEST),
        m.Share(1, "share", 3, DIGEST),
        m.ShareOk(1),
        m.ShareFailed(1, "ImportError"),
        m.Renew(),
        m.Command("reload", "blog"),
        m.Told("reading the configuration"),
        m.Answer("done", 3, DIGEST),
        m.Route(1, CLIENT, "a.example"),
        m.Settled((1, 2)),
        m.Refuse(1, 503),
        m.Retry(1),
        m.Drop(1),
        m.Worker(1, "requests"),
        m.Gone(1),
        m.Stuck(1),
        m.Demand(3, 250),
        m.Standing("failing"),
        m.Credit(4),
        m.Dispatch(1, CLIENT, "a.example"),
        m.Taken(1),
        m.Pass(1, CLIENT, "a.example"),
        m.Spawn(1, 0),
        m.Spawned(1, 4711),
        m.Attach(1),
        m.Ready(),
        m.Beat(),
        m.Detached(),
        m.Failed("ImportError"),
        m.Detail("Traceback"),
    )
}


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel, neither of which blocks for longer than PATIENCE."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.settimeout(PATIENCE)
    return ends


@contextlib.contextmanager
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection: the server's end and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), PATIENCE)
        server, _ = listener.accept()
    with server, client:
        yield server, client


@contextlib.contextmanager
def descriptor(kind: DescriptorKind | None) -> Iterator[int | None]:
    """A descriptor that is what `kind` asks for; None for None."""
    with contextlib.ExitStack() as stack:
        match kind:
            case None:
                yield None
            case DescriptorKind.CONNECTION:
                yield stack.enter_context(connection())[0].fileno()
            case DescriptorKind.LISTENER:
                yield stack.enter_context(socket.create_server(("127.0.0.1", 0))).fileno()
            case DescriptorKind.CHANNEL:
                ends = pair()
                for end in ends:
                    stack.enter_context(end)
                yield ends[0].fileno()
            case DescriptorKind.MEMFD:
                fd = memfd.make("test", b"abc")
                stack.callback(os.close, fd)
                yield fd


def send_raw(sock: socket.socket, data: bytes, *fds: int) -> None:
    """Send one packet with any number of descriptors."""
    if fds:
        socket.send_fds(sock, [data], list(fds), socket.MSG_NOSIGNAL)
    else:
        sock.send(data, socket.MSG_NOSIGNAL)


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end of a channel is closed and nothing more to be read. Doesn't wait."""
    try:
        return not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


class Recorder:
    """Takes a channel's messages and its end. Keeps the descriptors until close()."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.fds: list[int] = []
        self.ends: list[str] = []

    def on_message(self, _: Channel, message: Message, fd: int | None) -> None:
        self.messages.append(message)
        if fd is not None:
            self.fds.append(fd)

    def on_close(self, _: Channel, reason: str) -> None:
        self.ends.append(reason)

    def of(self, cls: type[Any]) -> list[Any]:
        """Return the messages of one class."""
        return [message for message in self.messages if isinstance(message, cls)]

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


@dataclass(eq=False)
class Played:
    """A played binder: who has come in, and what each says. Its entrance is open as long as its role would be there."""

    entrance: Entrance
    channels: list[Channel] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    records: list[Recorder] = field(default_factory=list)

    @property
    def channel(self) -> Channel:
        """The latest channel."""
        return self.channels[-1]

    @property
    def record(self) -> Recorder:
        return self.records[-1]


class Visitor:
    """Who comes in through a door: its link, what it was welcomed with, what it hears."""

    link: Link

    def __init__(self) -> None:
        self.record = Recorder()
        self.welcomes: list[m.Welcome] = []
        self.lost: list[str] = []

    def on_open(self, _: Channel, welcome: m.Welcome) -> None:
        self.welcomes.append(welcome)

    def send(self, message: Message, fd: int | None = None) -> bool:
        assert self.link.channel is not None
        return self.link.channel.send(message, fd)


class Stage:
    """One loop with a log that is kept, and what plays on it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.lines: list[str] = []
        self.log = Log("test", write=lambda line: self.lines.append(line.decode()))
        self.log.level = "debug"
        self.faults = Faults()
        self.budget = Budget(1000)
        self.stack = contextlib.ExitStack()
        #: What a role believes to be confined by: nothing that it would have to wait for.
        self.unconfined: Any = SimpleNamespace(network=None)
        self._entries: list[Door] = []
        self._doors: dict[Directory, tuple[socket.socket, socket.socket]] = {}

    def close(self) -> None:
        self.stack.close()
        self.loop.close()

    def until(self, condition: Callable[[], object], within: float = PATIENCE) -> None:
        """Turn the loop until `condition` holds; fail if it doesn't `within` so many seconds."""
        deadline = time.monotonic() + within
        done = False

        def look() -> None:
            nonlocal done
            done = done or bool(condition())
            if done or time.monotonic() > deadline:
                self.loop.stop()

        def tick() -> None:
            timers[0] = self.loop.call_later(0.01, tick)

        timers = [self.loop.call_later(0.0, tick)]
        self.loop.after_turn.append(look)
        try:
            self.loop.run()
        finally:
            timers[0].cancel()
            self.loop.after_turn.remove(look)
        assert done, f"not within {within} s; the log:\n" + "".join(self.lines[-30:])

    def turns(self, seconds: float) -> None:
        """Turn the loop for so long: only to show that something does *not* happen."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + PATIENCE)

    def channel(
        self, sock: socket.socket, kind: Any, side: Any, *, peer: str = "peer"
    ) -> tuple[Channel, Recorder]:
        """Return a channel on `sock`, and what records it."""
        record = Recorder()
        channel = Channel(
            sock,
            kind,
            side,
            loop=self.loop,
            log=self.log,
            faults=self.faults,
            peer=peer,
            on_message=record.on_message,
            on_close=record.on_close,
        )
        self.stack.callback(record.close)
        self.stack.callback(channel.close)
        return channel, record

    # ---- a role and the peers that it meets -------------------------------------------------------------------------

    def play(
        self,
        directory: Directory,
        *,
        credits: int = 64,
        authorise: Callable[[Caller, Hello], bool] | None = None,
    ) -> Played:
        """Play the binder of `directory` for the role that `service` makes afterwards."""
        theirs, ours = pair()
        for end in (theirs, ours):
            self.stack.callback(end.close)
        self._doors[directory] = (theirs, ours)

        def on_open(channel: Channel, hello: Hello) -> None:
            record = Recorder()
            channel.on_message, channel.on_close = record.on_message, record.on_close
            played.channels.append(channel)
            played.hellos.append(hello)
            played.records.append(record)
            self.stack.callback(record.close)
            self.stack.callback(channel.close)

        entrance = Entrance(
            directory,
            None,
            [Door(directory, "tested", "", os.dup(theirs.fileno()))],
            loop=self.loop,
            log=self.log,
            faults=Faults(),
            budget=Budget(1000),
            credits=credits,
            authorise=authorise or (lambda _caller, _hello: True),
            on_open=on_open,
        )
        for sock, _ in entrance._sources:
            self.stack.callback(sock.close)
        played = Played(entrance)
        entrance.open()
        return played

    def service(self, role: Role, name: str = "", *, budget: int = 1000, **options: Any) -> Service:
        """Return the service of a role on this loop, with doors to the played binders."""
        beat, keeper = socket.socketpair()
        for end in (beat, keeper):
            end.setblocking(False)
            self.stack.callback(end.close)
        doors = tuple(
            Door(directory, "played", "", os.dup(ours.fileno()))
            for directory, (_, ours) in self._doors.items()
        )
        service = Service(
            role,
            Options(name=name, doors=(*doors, *self._entries), **options),
            {},
            beat,
            self.log,
            loop=self.loop,
            faults=self.faults,
            budget=Budget(budget),
        )
        service._report = self.unconfined
        self.keeper = keeper
        self.stack.callback(lambda: _close_links(service._links.values()))
        return service

    def knock(self, directory: Directory, role: str, name: str) -> Callable[..., Visitor]:
        """Make a door for instance `name` of `role` into the role that `service` makes afterwards.

        Returns what opens a link through it; a link says who it is as its door does, unless it is told otherwise.
        """
        theirs, ours = pair()
        for end in (theirs, ours):
            self.stack.callback(end.close)
        self._entries.append(Door(directory, role, name, os.dup(theirs.fileno())))

        def visit(hello: Hello | None = None) -> Visitor:
            visitor = Visitor()
            visitor.link = Link(
                directory,
                folder="",
                door=Door(directory, "tested", "", os.dup(ours.fileno())),
                binder="tested",
                binder_uid=0,
                hello=hello or Hello(role, name or role),
                loop=self.loop,
                log=self.log,
                faults=Faults(),
                on_open=visitor.on_open,
                on_message=visitor.record.on_message,
                on_lost=visitor.lost.append,
            )
            visitor.link.start()
            self.stack.callback(visitor.record.close)
            self.stack.callback(_close_links, [visitor.link])
            return visitor

        return visit

    def said(self) -> bytes:
        """Return what the role has told its keeper since we last asked."""
        with contextlib.suppress(BlockingIOError):
            return self.keeper.recv(1024)
        return b""


def _close_links(links: Iterable[Link]) -> None:
    for link in links:
        link.close()
        if link._door is not None:
            link._door.close()


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """A stage that is cleared afterwards."""
    one = Stage()
    try:
        yield one
    finally:
        one.close()
