"""The deposit: a copy of every listening socket, for init's next keeper, where no process can lose it.

Whoever holds a listening socket holds what waits in its queue. init's keeper and the listener do; if both are killed at
one moment, whoever has connected and wasn't accepted yet would be reset. So the keeper also sends the sockets into a
socketpair that nobody reads, and what lies in its queue belongs to no process:

    plain mode   the runner makes the pair, and gives both ends to each keeper of init that it starts (`--deposit A:B`)
    compose      the namespace's holder makes it, and gives both ends to who comes with its own uid from its own network
                 namespace, in which nobody lives but init (`--deposit holder`): only from there is an abstract unix
                 socket seen
    a pod        has neither: there a listener's and init's container that end at one moment lose what waited

Neither runner nor holder reads a byte of it or ever holds a socket itself. The deposit is one packet: a random mark,
and the sockets. The next keeper looks at it without taking it out (MSG_PEEK), and uses what its configuration asks for,
if it is a listening TCP socket with that address in this network namespace. A new packet is sent before the old one is
taken out, so there is no moment without one.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable

from pyttpd import fdpass, office, peercred
from pyttpd.log import Log
from pyttpd.roles import MAX_LISTENERS
from pyttpd.service import StartError
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import DescriptorKind

#: What `--deposit` says where the namespace's holder has it, and the holder's address.
HOLDER = "holder"
ADDRESS = "\0pyttpd-deposit"
#: Visitors that wait for the holder to look; there is one init.
BACKLOG = 8
#: The holder answers at once (s), or isn't one that has a deposit.
HOLDER_ANSWERS = 5

#: Of init, master and umaster, and two for each listener (the one of metrics, too).
_MOST = 3 + 2 * (MAX_LISTENERS + 1)
_MARK = 8
_TIMEVAL = struct.Struct("@ll")
_LOOK = socket.MSG_PEEK | socket.MSG_DONTWAIT


class Deposit:
    """Both ends of the pair; owns them. Without any, nothing is kept and nothing found."""

    def __init__(self, ends: tuple[socket.socket, socket.socket] | None, log: Log) -> None:
        self._ends = ends
        self._log = log

    def close(self) -> None:
        """For who isn't the keeper."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()

    def look(self) -> list[socket.socket]:
        """Return copies of the listening sockets that are kept, which the caller owns."""
        if self._ends is None:
            return []
        try:
            _, fds = fdpass.recv_fds(self._ends[1], _MARK, _MOST, peek=True)
        except BlockingIOError:
            return []
        except (OSError, RemoteProtocolError, fdpass.DescriptorLost) as error:
            self._log.warning("the kept sockets can't be had", error=error)
            return []
        found = []
        for fd in fds:
            if fdpass.check(fd, DescriptorKind.LISTENER):
                found.append(socket.socket(fileno=fd))
            else:
                os.close(fd)
        return found

    def lay(self, sockets: Iterable[socket.socket]) -> None:
        """Keep copies of these, and of no others any more."""
        if self._ends is None:
            return
        put, take = self._ends
        mark = os.urandom(_MARK)
        try:
            fdpass.send_fds(put, mark, [sock.fileno() for sock in sockets])
        except OSError as error:
            # What lies there may hold what is to be closed, so it doesn't stay either.
            self._log.warning("listening sockets aren't kept a second time", error=error.strerror)
            mark = b""
        try:
            while take.recv(_MARK, _LOOK) != mark:
                take.recv(_MARK, fdpass.DONT_WAIT)
        except BlockingIOError:
            pass


def of(where: str, log: Log) -> Deposit:
    """Return the deposit that `where` says: two descriptors, the holder, or none."""
    if not where:
        return Deposit(None, log)
    if where != HOLDER:
        put, take = (socket.socket(fileno=int(number)) for number in where.split(":"))
        return Deposit((put, take), log)
    try:
        return Deposit(_from_holder(), log)
    except (OSError, RemoteProtocolError, fdpass.DescriptorLost) as error:
        # One that was started by an older version, say: all is as it was then.
        log.warning("the namespace's holder keeps no sockets", error=error)
        return Deposit(None, log)


def _from_holder() -> tuple[socket.socket, socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as visit:
        # Not settimeout(): then a connect() that finds others waiting fails at once (unix(7), EAGAIN).
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            visit.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(HOLDER_ANSWERS, 0))
        visit.connect(ADDRESS)
        if peercred.peer(visit).uid != os.geteuid():
            raise RemoteProtocolError("not-permitted", "the address is somebody else's")
        visit.recv(1, socket.MSG_PEEK)
        _, fds = fdpass.recv_fds(visit, _MARK, 2)
    ends = [socket.socket(fileno=fd) for fd in fds]
    if len(ends) != 2:
        for end in ends:
            end.close()
        raise RemoteProtocolError("descriptors", "no two ends")
    return ends[0], ends[1]


class Desk:
    """The holder's side: gives both ends to each visitor with its own uid, and never reads. Made before confinement."""

    def __init__(self) -> None:
        self._ends = office.pair()
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.sock.bind(ADDRESS)
        except OSError as error:
            raise StartError(f"cannot keep sockets: {error.strerror}") from None
        self.sock.listen(BACKLOG)
        self.sock.setblocking(False)

    def serve(self) -> None:
        """Answer whoever waits."""
        while True:
            try:
                visitor, _ = self.sock.accept()
            except OSError:
                return  # nobody waits, or has left already
            with visitor:
                try:
                    if peercred.peer(visitor).uid == os.geteuid():
                        fdpass.send_fds(visitor, b"ends", [end.fileno() for end in self._ends])
                except OSError:
                    pass  # it has left
