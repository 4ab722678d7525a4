"""A worker's channels to a program, and the handing over of one connection on one of them.

Theory of operation. A channel is one SOCK_SEQPACKET connection to the program's socket. It is made when a connection is
to be handed over and no other channel has credit, up to `max_channels`; so a program of many processes, each of which
takes the channels that it accepts, gets as many as it has use for. A channel with credit is used by one thread at a
time: the last one that was used comes first, so that idle processes stay idle.

    connect ── Hello ──> GREETED ── Welcome ──> OPEN <── Accepted, Busy ── OFFERED
                                                  └───── Connection ─────────^

A thread that hands over waits for the answer (`deadline`). What a program says otherwise, Credit above all, stays in
the socket until somebody wants to use the channel: a program can have no more unread messages there than it had credit.

What may be done again: a connection that a program has refused, or of which it has read and written nothing when it
died, is offered once more to another channel. After that, and where it isn't certain, its client gets an error
(kind.py). A program that has been given a connection and answers nothing, or garbage, has a copy of it that can't be
taken back; so the client's connection is ended with the answer, and what the program still writes reaches nobody.
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from pyttpd import peercred, tcp

from pyttpd_vhost.kinds.gateway.faults import BackendError, Fault
from pyttpd_vhost.kinds.handoff import frames
from pyttpd_vhost.kinds.handoff.frames import PERMITTED, BadMessage, State

if TYPE_CHECKING:
    from pyttpd_vhost.site import SiteLog

#: Messages that are read from one channel in one go. More than a program that keeps to the rules can have sent.
BURST = 4 * frames.MAX_CREDIT
#: Whom a connection is offered to, at the most: the second time only if nothing has happened to it.
OFFERS = 2
#: Channels that are opened for one connection, at the most: a program that ends each of them needn't be asked for ever.
TRIES = 3
_SEND = int(socket.MSG_NOSIGNAL) | int(socket.MSG_DONTWAIT)
_RECEIVE = int(socket.MSG_DONTWAIT) | int(socket.MSG_CMSG_CLOEXEC)
_CUT = int(socket.MSG_TRUNC) | int(socket.MSG_CTRUNC)


class NotHandedOver(BackendError):
    """Nobody has taken the connection. touched: somebody has read from it or written to it, so nothing can be answered
    any more.
    """

    def __init__(self, fault: Fault, detail: str, *, touched: bool = False) -> None:
        super().__init__(fault, detail)
        self.touched = touched


class ChannelEnded(Exception):
    """The channel is of no use any more. `fault` is the program's; None: it has said goodbye."""

    def __init__(self, fault: Fault | None, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class Channel:
    """One channel. Owns `sock`. Used by one thread at a time."""

    __slots__ = ("credit", "leaving", "name", "sock", "state")

    def __init__(self, sock: socket.socket, vhost: str) -> None:
        """Say Hello. Raises OSError."""
        self.sock = sock
        self.state = State.GREETED
        self.credit = 0
        self.name = ""
        #: The program has said Goodbye.
        self.leaving = False
        sock.send(frames.encode(frames.Hello(frames.VERSION, vhost)), _SEND)

    @property
    def usable(self) -> bool:
        """A connection may be offered now."""
        return self.state is State.OPEN and self.credit > 0

    def read(self) -> frames.Incoming | None:
        """Take one message; None: none is there. Raises ChannelEnded."""
        try:
            # no room for descriptors: the kernel gives back what nobody wants, and says so
            packet, _, flags, _ = self.sock.recvmsg(frames.MAX_ANSWER, 0, _RECEIVE)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ChannelEnded(Fault.DIED, f"the channel broke: {error.strerror}") from None
        if not packet:
            raise ChannelEnded(None if self.leaving else Fault.DIED, "the program has closed the channel")
        try:
            if flags & _CUT:
                raise BadMessage("size", "a packet that is too long, or has a descriptor with it")
            message = frames.decode(packet)
            following = PERMITTED[self.state].get(type(message))
            if following is None:
                raise BadMessage("state", f"{type(message).__name__} is not for this moment")
            self._heed(message)
        except BadMessage as error:
            self.state = State.CLOSED
            raise ChannelEnded(Fault.MALFORMED, str(error)) from None
        self.state = following
        if following is State.CLOSED:
            raise ChannelEnded(None, "the program has said goodbye")
        return message

    def _heed(self, message: frames.Incoming) -> None:
        match message:
            case frames.Welcome(credit, name):
                self.credit, self.name = credit, name
            case frames.Credit(count):
                self.credit += count
                if self.credit > frames.MAX_CREDIT:
                    raise BadMessage("credit", f"more than {frames.MAX_CREDIT} in all")
            case frames.Goodbye():
                self.leaving = True
                self.credit = 0
            case frames.Accepted() | frames.Busy():
                pass

    def drain(self) -> None:
        """Take all that is there. Raises ChannelEnded."""
        for _ in range(BURST):
            if self.read() is None:
                return
        raise ChannelEnded(Fault.MALFORMED, "more messages than any program has to say")

    def offer(self, message: frames.Connection, client: socket.SocketType) -> None:
        """Send a connection, which stays the caller's as well. Raises BlockingIOError and ChannelEnded."""
        rights = array.array("i", [client.fileno()])
        try:
            self.sock.sendmsg(
                [frames.encode(message)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)], _SEND
            )
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:
                raise BlockingIOError from error
            self.drain()  # it may have said goodbye before
            raise ChannelEnded(Fault.DIED, f"the channel broke: {error.strerror}") from None
        self.credit -= 1
        self.state = State.OFFERED

    def await_answer(self, id_: int, deadline: float) -> bool:
        """Wait for the answer to the connection `id_`. True: accepted. Raises ChannelEnded, TimeoutError."""
        waiter = select.poll()
        waiter.register(self.sock, select.POLLIN)
        burst = BURST
        while True:
            message = self.read()
            if isinstance(message, frames.Accepted | frames.Busy):
                if message.id != id_:
                    self.state = State.CLOSED
                    raise ChannelEnded(Fault.MALFORMED, "an answer to a connection that wasn't offered")
                return isinstance(message, frames.Accepted)
            if message is not None:
                burst -= 1
                if burst:
                    continue
                raise ChannelEnded(Fault.MALFORMED, "more messages than any program has to say")
            left = deadline - monotonic()
            if left <= 0:
                raise TimeoutError
            waiter.poll(left * 1000)

    def close(self, reason: str = "") -> None:
        """End it, with a Goodbye if there is a `reason`."""
        if reason and self.state is not State.CLOSED:
            with contextlib.suppress(OSError):
                self.sock.send(frames.encode(frames.Goodbye(reason)), _SEND)
        self.state = State.CLOSED
        self.sock.close()


class Channels:
    """All channels of one worker to one program, for any thread.

    connect(seconds): returns a new connection to the program's socket, or raises OSError.
    """

    def __init__(
        self, connect: Callable[[float], socket.socket], vhost: str, log: SiteLog, *, most: int
    ) -> None:
        self._connect = connect
        self._vhost = vhost
        self._log = log
        self._most = most
        self._free: list[Channel] = []
        self._count = 0
        self._next_id = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._count

    def hand_over(
        self, client: socket.SocketType, make: Callable[[int], frames.Connection], within: float
    ) -> None:
        """Give `client` to the program, within so many seconds. The caller still has to close its copy, unread.

        make(id): the message. Raises NotHandedOver.
        """
        deadline = monotonic() + within
        before = _state_of(client)
        failure = _full()
        for _ in range(OFFERS):
            channel = self._take(deadline, failure)
            with self._changed:
                self._next_id = self._next_id % 0xFFFFFFFF + 1
                id_ = self._next_id
            try:
                channel.offer(make(id_), client)
                if channel.await_answer(id_, deadline):
                    self._give_back(channel)
                    return
            except BlockingIOError:
                self._drop(channel, Fault.SLOW, "it has credit, and reads nothing")
                failure = NotHandedOver(Fault.SLOW, "the program reads nothing")
                continue
            except ChannelEnded as ended:
                fault = ended.fault or Fault.DIED
                self._drop(channel, ended.fault, str(ended))
                failure = NotHandedOver(fault, str(ended), touched=_state_of(client) != before)
                if failure.touched or fault is Fault.MALFORMED:
                    raise failure from None
                continue
            except TimeoutError:
                self._drop(channel, Fault.SLOW, "no answer to a connection")
                touched = _state_of(client) != before
                raise NotHandedOver(Fault.SLOW, "the program has not answered", touched=touched) from None
            if _state_of(client) != before:
                self._drop(channel, Fault.MALFORMED, "a connection that was refused had been used")
                raise NotHandedOver(Fault.MALFORMED, "used, and then refused", touched=True)
            failure = _full()
            self._give_back(channel)
        raise failure

    def close(self, reason: str) -> None:
        """End all that nobody is using."""
        with self._changed:
            free, self._free = self._free, []
            self._count -= len(free)
        for channel in free:
            channel.close(reason)

    # Which channel

    def _take(self, deadline: float, failure: NotHandedOver) -> Channel:
        """Return a channel with credit, which is the caller's to give back. Raises NotHandedOver."""
        mine: list[Channel] = []
        tries = TRIES
        try:
            while True:
                with self._changed:
                    mine += reversed(self._free)
                    self._free = []
                for channel in list(mine):
                    try:
                        channel.drain()
                    except ChannelEnded as ended:
                        mine.remove(channel)
                        self._drop(channel, ended.fault, str(ended))
                        if ended.fault is not None:
                            failure = NotHandedOver(ended.fault, str(ended))
                for channel in mine:
                    if channel.usable:
                        mine.remove(channel)
                        return channel
                left = deadline - monotonic()
                if left <= 0 or (not mine and not tries):
                    raise _refusal(mine, failure)
                if tries and all(channel.state is not State.GREETED for channel in mine):
                    opened = self._open(left)
                    if opened is not None:
                        tries -= 1
                        mine.append(opened)
                        continue
                self._wait(mine, left)
        finally:
            with self._changed:
                self._free += reversed(mine)
                self._changed.notify_all()

    def _open(self, left: float) -> Channel | None:
        """Make one more channel; None: as many as may be there are. Raises NotHandedOver."""
        with self._changed:
            if self._count >= self._most:
                return None
            self._count += 1
        sock = None
        try:
            sock = self._connect(left)
            if peercred.peer(sock).uid not in (os.geteuid(), 0):
                raise NotHandedOver(Fault.UNREACHABLE, "the socket belongs to somebody else")
            sock.setblocking(False)
            return Channel(sock, self._vhost)
        except BaseException as error:
            with self._changed:
                self._count -= 1
            if sock is not None:
                sock.close()
            if isinstance(error, BlockingIOError | TimeoutError):
                raise NotHandedOver(Fault.FULL, "the program's socket has no room") from None
            if isinstance(error, OSError):
                raise NotHandedOver(
                    Fault.UNREACHABLE, f"no connection to the program: {error.strerror}"
                ) from None
            raise

    def _wait(self, mine: list[Channel], left: float) -> None:
        """Wait until one of `mine` says something; without any, until another thread gives one back."""
        if not mine:
            with self._changed:
                if not self._free:
                    self._changed.wait(left)
            return
        waiter = select.poll()
        for channel in mine:
            waiter.register(channel.sock, select.POLLIN)
        waiter.poll(left * 1000)

    def _give_back(self, channel: Channel) -> None:
        if channel.leaving:
            self._drop(channel, None)
            return
        with self._changed:
            self._free.append(channel)
            self._changed.notify_all()

    def _drop(self, channel: Channel, fault: Fault | None, text: str = "") -> None:
        channel.close()
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
        if fault is not None:
            self._log.warning(
                "hand-off: channel ended", program=channel.name, reason=fault.reason, detail=text
            )


def _full() -> NotHandedOver:
    return NotHandedOver(Fault.FULL, "the program takes no more connections")


def _refusal(channels: list[Channel], failure: NotHandedOver) -> NotHandedOver:
    """Say why no channel could be had: nobody answers, or all are busy."""
    if channels and all(channel.state is State.GREETED for channel in channels):
        return NotHandedOver(Fault.SLOW, "the program does not answer to Hello")
    return failure


def _state_of(client: socket.SocketType) -> tuple[int, int]:
    """Return what changes when anybody reads from the connection or writes to it."""
    try:
        return tcp.consumed(client), tcp.written(client)
    except OSError:
        return 0, 0  # its client is gone, and nobody can answer anything
