"""A channel between two roles: packets in and out of a SOCK_SEQPACKET socket, by the tables of `pyttpd.wire`.

Theory of operation. The channel owns its socket. What comes in is decoded, checked against the permit table and, if a
descriptor travels with it, against the kind that its message asks for; only then does the role see it. Anything else
closes the channel, is logged and counted, and the role is told by `on_close`; the process lives on. What goes out is
checked against the same table: there a violation is our own fault and raises LocalProtocolError.

Sends never block. A message without a descriptor waits in a bounded outbox when the kernel's buffer is full
(a peer that doesn't read loses its channel when the outbox is full too). A message *with* a descriptor is
never queued here: send() says False, send_all() how many went, and the caller, who owns the descriptors anyway, keeps
the others and hears of room by `on_writable`.

Who has several messages for one peer says them with send_all(), at the end of its loop's turn: they travel in as few
packets as may be (`pyttpd.wire.packets`). A packet that comes is delivered message by message, then `on_packet` is
called.

Each end encodes and expects frames of `version`: the greeting's until both have agreed on another (rendezvous.py). A
channel without a greeting is made with the version that its two ends have agreed on elsewhere.

In step with: wire/permits.py, wire/packets.py, PROTOCOL.md.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from pyttpd import fdpass
from pyttpd.log import Log
from pyttpd.loop import READ, WRITE, Budget, Loop
from pyttpd.wire import packets
from pyttpd.wire.errors import LocalProtocolError, RemoteProtocolError
from pyttpd.wire.messages import BY_CLASS, GREETING_VERSION, VERSION, Message, MessageType, encode
from pyttpd.wire.permits import PERMITS, Kind, Phase, Side, first_phase

#: Frames after which no other packet is taken from one channel in a turn, so that a peer that floods can't keep others
#: waiting.
MAX_FRAMES_A_TURN = 16
#: Frames that may wait for a peer that doesn't read. A role's answers are bounded by what the peer has open (of a
#: listener: pyttpd_umaster.router.ROUTE_WINDOW).
MAX_OUTBOX = 20_000

#: The reason for the end of a channel that the peer, or its end, has closed.
GONE = "peer-gone"

_OTHER_SIDE = {Side.BINDER: Side.CONNECTOR, Side.CONNECTOR: Side.BINDER}
#: The kernel has no room now: the caller tries again later. ETOOMANYREFS: too many descriptors in flight (unix(7)).
_LATER = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class Faults:
    """Counts of what peers did wrong, by peer's role and reason: both come from small fixed sets."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}

    def add(self, peer: str, reason: str) -> None:
        self.counts[peer, reason] = self.counts.get((peer, reason), 0) + 1


class Channel:
    """One end of a channel. Owns `sock`.

    `peer` is the other side's role ("umaster") and `peer_name` which one; both go into logs. The callbacks:
    on_message(channel, message, fd): `fd` (or None) becomes the callee's; it may raise RemoteProtocolError.
    on_close(channel, reason): called once, unless close() was called by the role itself.
    on_lost(channel, message): we had no free descriptor, the message's is lost. Default: the channel is closed.
    on_packet(channel): all messages of a packet have been delivered, or what was left of it is dropped.
    on_writable(channel): there may be room again for a message with a descriptor.
    `version` is that of the frames, for a channel without a greeting (others agree on theirs: pyttpd.rendezvous);
    `budget`, if set, gets one descriptor back when the channel closes; `owner` is the role's to use;
    with `frames_a_turn` frames delivered an event takes no further packet.
    """

    __slots__ = (
        "_behind",
        "_burst",
        "_ending",
        "_loop",
        "_outbox",
        "_paused",
        "_recv_permits",
        "_recv_phase",
        "_registered",
        "_send_permits",
        "_send_phase",
        "_several",
        "_sock",
        "_version",
        "_want_write",
        "budget",
        "closed",
        "faults",
        "frames_a_turn",
        "kind",
        "log",
        "on_close",
        "on_lost",
        "on_message",
        "on_packet",
        "on_writable",
        "owner",
        "peer",
        "peer_name",
        "side",
    )

    def __init__(
        self,
        sock: socket.socket,
        kind: Kind,
        side: Side,
        *,
        loop: Loop,
        log: Log,
        faults: Faults,
        peer: str,
        peer_name: str = "",
        version: int = VERSION,
        on_message: Callable[[Channel, Message, int | None], None],
        on_close: Callable[[Channel, str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        # Packets, with how many frames each has; and how many there are in all.
        self._outbox: deque[tuple[bytes, int]] = deque()
        self._behind = 0
        # The table's rows for the phases that the two directions are in, so that a frame costs one look-up.
        self._recv_phase = self._send_phase = first_phase(kind)
        self._recv_permits = PERMITS[kind, _OTHER_SIDE[side], self._recv_phase]
        self._send_permits = PERMITS[kind, side, self._send_phase]
        self._burst = 1
        self._ending = False
        self._paused = False
        self._want_write = False
        self._registered = True
        self.kind = kind
        self.side = side
        self.version = GREETING_VERSION if self._send_phase is Phase.HELLO else version
        self.log = log
        self.faults = faults
        self.peer = peer
        self.peer_name = peer_name
        self.on_message = on_message
        self.on_close = on_close
        self.on_lost: Callable[[Channel, Message], None] | None = None
        self.on_packet: Callable[[Channel], None] | None = None
        self.on_writable: Callable[[Channel], None] | None = None
        self.budget: Budget | None = None
        self.owner: object = None
        self.frames_a_turn = MAX_FRAMES_A_TURN
        self.closed = False
        loop.add(sock.fileno(), READ, self._on_event)

    @property
    def sock(self) -> socket.socket:
        return self._sock

    @property
    def version(self) -> int:
        """That of the frames, in both directions."""
        return self._version

    @version.setter
    def version(self, version: int) -> None:
        self._version = version
        self._several = packets.holds_several(self.kind, version)

    @property
    def leaving(self) -> bool:
        """Whether the peer has said Goodbye: that it closes the channel then is no fault."""
        return self._recv_phase is Phase.LEAVING

    # ---- out ----

    @property
    def backlog(self) -> int:
        """How many frames wait for the peer to read."""
        return self._behind

    def send(self, message: Message, fd: int | None = None) -> bool:
        """Send `message`, with a copy of `fd` where it takes one; `fd` stays the caller's.

        Returns False when a message with a descriptor finds no room (nothing was sent), or the channel is closed.
        """
        return self._send((message,), None if fd is None else (fd,)) == 1

    def send_all(self, messages: Sequence[Message], fds: Sequence[int] | None = None) -> int:
        """Send `messages` in as few packets as may be; `fds` has a descriptor for each, or isn't given, as none of them
        takes one. What holds of send() holds of each.

        Returns how many were sent (or wait in the outbox), the first ones; as to the others nothing has happened.
        """
        return self._send(messages, fds)

    def _send(self, messages: Sequence[Message], fds: Sequence[int] | None) -> int:
        if self.closed:
            return 0
        with_fd = fds is not None
        frames = [self._frame(message, with_fd) for message in messages]
        sent = 0
        for some in packets.pack(frames, several=self._several):
            packet = some[0] if len(some) == 1 else b"".join(some)
            if not self._send_packet(
                packet, len(some), None if fds is None else fds[sent : sent + len(some)]
            ):
                break
            sent += len(some)
        return sent

    def _frame(self, message: Message, with_fd: bool) -> bytes:
        cls = type(message)
        after = self._send_permits.get(cls)
        if after is None:
            raise LocalProtocolError(
                f"{cls.__name__} from {self.side.value} of {self.kind.value} in {self._send_phase}"
            )
        if with_fd is (BY_CLASS[cls].descriptor is None):
            raise LocalProtocolError(f"{cls.__name__} with{'' if with_fd else 'out'} a descriptor")
        if after is not self._send_phase:  # none with a descriptor, so it is as good as sent
            self._send_phase = after
            self._send_permits = PERMITS[self.kind, self.side, after]
        return encode(message, self._version)

    def _send_packet(self, packet: bytes, count: int, fds: Sequence[int] | None) -> bool:
        if self._outbox:
            if fds is not None:
                return False
            self._enqueue(packet, count)
        else:
            try:
                if fds is None:
                    fdpass.send(self._sock, packet)
                else:
                    fdpass.send_fds(self._sock, packet, fds)
            except OSError as error:
                if error.errno not in _LATER and error.errno != errno.ETOOMANYREFS:
                    self._end_soon(error.strerror or "")
                    return False
                if fds is not None:
                    # ETOOMANYREFS has no event of its own; EPOLLOUT comes at once and the caller's retry is the poll.
                    if error.errno != errno.ETOOMANYREFS:
                        self._wait_for_room()
                    return False
                self._enqueue(packet, count)
        return not self.closed  # _enqueue closes the channel of a peer that doesn't read

    def _enqueue(self, packet: bytes, count: int) -> None:
        if self._behind + count > MAX_OUTBOX:
            self._fault(RemoteProtocolError("does-not-read", f"{self._behind} frames wait"))
            return
        self._outbox.append((packet, count))
        self._behind += count
        self._wait_for_room()

    def _wait_for_room(self) -> None:
        if not self._want_write:
            self._want_write = True
            self._set_events()

    def _set_events(self) -> None:
        events = (0 if self._paused else READ) | (WRITE if self._want_write else 0)
        if self._registered:
            self._loop.modify(self._sock.fileno(), events)
        elif not self._paused:
            self._registered = True
            self._loop.add(self._sock.fileno(), events, self._on_event)

    def _flush(self) -> None:
        while self._outbox:
            try:
                fdpass.send(self._sock, self._outbox[0][0])
            except OSError as error:
                if error.errno not in _LATER:
                    self._outbox.clear()
                    self._behind = 0
                    self._want_write = False
                    self._set_events()
                    self._end_soon(error.strerror or "")
                return
            self._behind -= self._outbox.popleft()[1]
        self._want_write = False
        self._set_events()
        if self.on_writable is not None:
            self.on_writable(self)

    # ---- in ----

    @property
    def paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """Take no other packet from this channel until resume(): we have no free descriptors, or no room. What is left
        of one that is being delivered comes all the same.
        """
        if not self._paused and not self.closed:
            self._paused = True
            self._set_events()

    def resume(self) -> None:
        if self._paused and not self.closed:
            self._paused = False
            self._set_events()

    def _on_event(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and not self.closed:
            if self._paused:
                # The peer is gone, which epoll would say again and again; what it sent before is read after resume().
                self._registered = False
                self._loop.remove(self._sock.fileno())
            else:
                # Asking once more than there are frames costs a system call and an exception, so how many are asked for
                # follows how many there were: doubled while the queue doesn't run dry, one again when it does.
                taken = self.receive(self._burst)
                self._burst = min(2 * self._burst, self.frames_a_turn) if taken >= self._burst else 1

    def receive(self, most: int) -> int:
        """Take and deliver packets that are there already, until they had `most` frames; return how many they had."""
        taken = 0
        size, descriptors = packets.largest(several=self._several)
        while taken < most:
            if self.closed or self._paused:
                break
            try:
                packet, fds, cut = fdpass.recv_some(self._sock, size, descriptors)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The peer left with frames of ours unread: said once, and before what it has sent, which still comes.
                continue
            except RemoteProtocolError as error:
                self._fault(error)
                break
            except OSError as error:
                self._end(GONE, error.strerror or "")
                break
            if not packet:
                # A packet of no bytes and the end of the channel look the same (recv(2)); neither leads on.
                for fd in fds:
                    os.close(fd)
                self._end(GONE, "end of channel")
                break
            taken += self._take(packet, fds, cut)
        return taken

    def _take(self, packet: bytes, fds: list[int], cut: bool) -> int:
        """Deliver what is in a packet, and return how many messages that are. Closes those of `fds` that aren't
        delivered. `cut`: the kernel has destroyed its last descriptors, since we have no free numbers.
        """
        given = count = 0
        try:
            messages = packets.unpack(packet, self._version, several=self._several)
            packets.match_descriptors(messages, len(fds), cut=cut)
            count = len(messages)
            for message in messages:
                if self.closed:
                    break
                cls = type(message)
                if self._recv_permits.get(cls) is not self._recv_phase:
                    self._permit(cls)
                wanted = BY_CLASS[cls].descriptor
                if wanted is None:
                    self.on_message(self, message, None)
                elif given == len(fds):
                    self._lost(message)
                else:
                    fd = fds[given]
                    if not fdpass.check(fd, wanted):
                        raise RemoteProtocolError(
                            "descriptors", f"{cls.__name__} with something else than {wanted.value}"
                        )
                    given += 1
                    self.on_message(self, message, fd)
        except RemoteProtocolError as error:
            self._fault(error)
        finally:
            for fd in fds[given:]:
                os.close(fd)
        if self.on_packet is not None:
            self.on_packet(self)
        return count

    def _permit(self, cls: MessageType) -> None:
        """See whether the peer may say this now, and which phase that leads to."""
        after = self._recv_permits.get(cls)
        if after is None:
            raise RemoteProtocolError("not-permitted", f"{cls.__name__} in {self._recv_phase.value}")
        if after is not self._recv_phase:
            self._recv_phase = after
            self._recv_permits = PERMITS[self.kind, _OTHER_SIDE[self.side], after]

    def _lost(self, message: Message) -> None:
        """The kernel destroyed the descriptor of `message`, since we have none free: our load, not the peer's fault."""
        self.faults.add(self.peer, "no-free-descriptor")
        if self.on_lost is None:
            self._end("no-free-descriptor", type(message).__name__)
        else:
            self.on_lost(self, message)

    # ---- the end ----

    def _fault(self, error: RemoteProtocolError) -> None:
        self.faults.add(self.peer, error.reason)
        if not error.told:
            self.log.warning("peer broke the protocol", peer=self.peer, name=self.peer_name, fault=str(error))
        self._end(error.reason, str(error))

    def fault(self, reason: str, detail: str) -> None:
        """Close the channel for something the role has found wrong outside of on_message (a deadline, say)."""
        self._fault(RemoteProtocolError(reason, detail))

    def _end_soon(self, detail: str) -> None:
        """Sending has found out that the peer is gone.

        What it has said before still counts: who said Taken has read from that connection. And nobody who sends has to
        reckon with what on_close does. It is heard in portions: one that has only shut its ear may go on talking.
        """
        left = MAX_OUTBOX

        def end() -> None:
            nonlocal left
            if not self._paused:
                taken = self.receive(self.frames_a_turn)
                left -= taken
                if taken >= self.frames_a_turn and left > 0:
                    self._loop.call_later(0.0, end)
                    return
                self._end(GONE, detail)
            self._ending = False

        if not self._ending:
            self._ending = True
            self._loop.call_later(0.0, end)

    def _end(self, reason: str, detail: str) -> None:
        if self.closed:
            return
        self.log.debug("channel closed", peer=self.peer, name=self.peer_name, reason=reason, detail=detail)
        self.close()
        self.on_close(self, reason)

    def close(self) -> None:
        """Close this end. Descriptors still in the kernel's queue are closed with it. on_close isn't called."""
        if not self.closed:
            self.closed = True
            self._loop.remove(self._sock.fileno())
            self._sock.close()
            self._outbox.clear()
            self._behind = 0
            if self.budget is not None:
                self.budget.give()
