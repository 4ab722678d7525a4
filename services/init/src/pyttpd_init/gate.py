"""A tenant's gate: `python -I -m pyttpd_init.gate`, in plain mode as root, for a tenant with `allow` in its table.

Theory of operation. The tenant's network namespace has nothing but `lo`, and `lo` has the address of, say, its
database. The gate's listening sockets are in there (the runner's child made them before it became this program); the
gate itself is outside, in the machine's namespace. Whoever connects inside is joined to a connection that the gate
opens outside, to the same address and port. So the tenant's application connects to its database as on any other
machine, and there is nothing else that it could reach: no route leads out.

    accepted ── connecting outside ──> open: what comes from one side goes to the other, each way by itself
    open     ── one side's end is passed on by shutdown(); both ended, or an error ──> closed

The gate looks at no byte. It has the tenant's uid, for which the egress rule lets through these addresses and no
others, and is confined: no file, no program, no socket but TCP to these ports, no listening. What its tenant can do to
it is use it: connections are bounded, buffers are too, and who doesn't read is not read from.

In step with it: namespaces.py (makes its sockets), plain.py (starts it), egress.py (the exception).
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from pyttpd import privileges
from pyttpd.address import Address, parse
from pyttpd.confine import ConfineError, Policy, confine, python_paths
from pyttpd.confine.kernel import set_no_new_privs
from pyttpd.health import STALE_AFTER, HealthFile
from pyttpd.log import Log
from pyttpd.loop import READ, WRITE, Loop, Timer, soft_descriptor_limit

#: Connections at a time, of all addresses together. PostgreSQL itself takes 100 unless told otherwise.
MAX_PAIRS = 512
#: Waiting in the kernel until the gate accepts them.
BACKLOG = 64
#: Bytes in hand, each way; more stay with the sender.
BUFFER = 65_536
#: Until the address outside must have answered (s).
CONNECT_TIMEOUT = 10.0
#: A peer that is gone without a word is noticed after so long (s) of silence: tcp(7), TCP_KEEPIDLE.
KEEPALIVE_IDLE = 60
#: How often (s) the gate says that it is alive.
HEARTBEAT = STALE_AFTER / 5
#: Descriptors that are no connection's.
RESERVE = 32


@dataclass(slots=True, eq=False)
class End:
    """One side of a pair. pending: what the other side has sent and this one hasn't taken. ended: it sends no more.
    shut: it is sent no more.
    """

    sock: socket.socket
    pending: bytes = b""
    ended: bool = False
    shut: bool = False
    events: int = 0


@dataclass(slots=True, eq=False)
class Pair:
    """A connection of the tenant's and the one outside that belongs to it."""

    address: Address
    inside: End
    outside: End
    timer: Timer | None = None
    connected: bool = False

    def other(self, end: End) -> End:
        return self.outside if end is self.inside else self.inside


@dataclass(slots=True)
class Gate:
    """Owns `doors`, the listening sockets inside, and all connections."""

    loop: Loop
    log: Log
    doors: list[tuple[Address, socket.socket]]
    most: int = MAX_PAIRS
    pairs: set[Pair] = field(default_factory=set)
    _accepting: bool = False

    def start(self) -> None:
        self._accept_more()

    def close(self) -> None:
        for pair in list(self.pairs):
            self._end(pair)
        for _, door in self.doors:
            self.loop.remove(door.fileno())
            door.close()

    def _accept_more(self) -> None:
        wanted = len(self.pairs) < self.most
        if wanted == self._accepting:
            return
        self._accepting = wanted
        for address, door in self.doors:
            if wanted:
                self.loop.add(door.fileno(), READ, self._acceptor(address, door))
            else:
                self.loop.remove(door.fileno())
        if not wanted:
            self.log.warning("as many connections as there may be: further ones wait", limit=self.most)

    def _acceptor(self, address: Address, door: socket.socket) -> Callable[[int], None]:
        return lambda _events: self._accept(address, door)

    def _accept(self, address: Address, door: socket.socket) -> None:
        if not self._accepting:
            return
        try:
            inside, _ = door.accept()
        except OSError:
            return  # it has gone again
        inside.setblocking(False)
        outside = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        for sock in (inside, outside):
            # What each side sends has been put together by its own kernel already.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        outside.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        outside.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
        pair = Pair(address, End(inside), End(outside))
        self.pairs.add(pair)
        self._accept_more()
        try:
            outside.connect((address.host, address.port))
        except BlockingIOError:
            pass
        except OSError as error:
            self._unreachable(pair, error)
            return
        pair.timer = self.loop.call_later(
            CONNECT_TIMEOUT, lambda: self._unreachable(pair, TimeoutError("no answer"))
        )
        self._watch(pair)

    def _unreachable(self, pair: Pair, error: OSError) -> None:
        """What the application sees is a connection that ends at once; why is told here."""
        if pair in self.pairs:
            self.log.warning(
                "allowed address cannot be reached", address=pair.address, error=error.strerror or error
            )
            self._end(pair)

    def _watch(self, pair: Pair) -> None:
        """Wait for what can go on: reading where the other side has taken everything, writing where something waits."""
        for end in (pair.inside, pair.outside):
            other = pair.other(end)
            events = 0
            if pair.connected:
                events |= READ if not end.ended and not other.pending else 0
                events |= WRITE if end.pending else 0
            elif end is pair.outside:
                events = WRITE
            if events == end.events:
                continue
            number = end.sock.fileno()
            if not end.events:
                self.loop.add(number, events, self._turn(pair, end))
            elif events:
                self.loop.modify(number, events)
            else:
                self.loop.remove(number)  # an error would be told without end, and is found at the next call
            end.events = events

    def _turn(self, pair: Pair, end: End) -> Callable[[int], None]:
        return lambda _events: self._on_ready(pair, end)

    def _on_ready(self, pair: Pair, end: End) -> None:
        if pair not in self.pairs:
            return
        try:
            if not pair.connected:
                code = pair.outside.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    self._unreachable(pair, OSError(code, os.strerror(code)))
                    return
                pair.connected = True
                if pair.timer is not None:
                    pair.timer.cancel()
            else:
                self._write(end)
                self._read(pair, end)
        except BlockingIOError:
            pass
        except OSError:
            self._end(pair)
            return
        if pair.inside.shut and pair.outside.shut:
            self._end(pair)
        else:
            self._watch(pair)

    def _read(self, pair: Pair, end: End) -> None:
        other = pair.other(end)
        if end.ended or other.pending:
            return
        data = end.sock.recv(BUFFER)
        if data:
            other.pending = data
            self._write(other)
            return
        end.ended = True
        self._pass_end(other)

    def _write(self, end: End) -> None:
        if end.pending:
            try:
                end.pending = end.pending[end.sock.send(end.pending) :]
            except BlockingIOError:
                return

    def _pass_end(self, end: End) -> None:
        """The other side has ended, and everything that it sent is delivered: it is only read on when that is so."""
        end.shut = True
        try:
            end.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # gone already, which its own side will find

    def _end(self, pair: Pair) -> None:
        self.pairs.discard(pair)
        if pair.timer is not None:
            pair.timer.cancel()
        for end in (pair.inside, pair.outside):
            self.loop.remove(end.sock.fileno())
            end.sock.close()
        self._accept_more()


def policy(addresses: list[Address], health_file: str) -> Policy:
    """Return what a gate may do: TCP to these ports, and what Python may import late."""
    return Policy(
        read=python_paths(),
        write=(os.path.dirname(os.path.abspath(health_file)),),
        allow_connect=True,
        reach=tuple(addresses),
        own_unix_sockets=False,
    )


def _door(text: str) -> tuple[Address, socket.socket]:
    address, _, number = text.rpartition("=")
    return parse(address), socket.socket(fileno=int(number))


def door_argument(address: Address, sock: socket.socket) -> str:
    """Return the command line argument from which a gate has a listening socket and the address behind it."""
    return f"{address}={sock.fileno()}"


def main(arguments: list[str]) -> int:
    """Be a gate until SIGTERM or SIGINT; return the exit status: 0, or 2 if it can't be started as asked."""
    parser = argparse.ArgumentParser(
        prog="python -I -m pyttpd_init.gate", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--name", required=True, help="the tenant's")
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("--gid", type=int, required=True)
    parser.add_argument("--health-file", required=True)
    parser.add_argument("--die-with", type=int, required=True)
    parser.add_argument("--door", dest="doors", type=_door, action="append", required=True)
    options = parser.parse_args(arguments)
    log = Log("gate", options.name)
    try:
        privileges.become(options.uid, options.gid)
        set_no_new_privs()
        privileges.die_with_parent(options.die_with)
        privileges.set_process_name(f"g:{options.name}")
        confine(policy([address for address, _ in options.doors], options.health_file))
    except (privileges.PrivilegeError, ConfineError) as error:
        log.error("cannot start", error=error)
        for _, door in options.doors:
            door.close()
        return 2
    serve(options.doors, HealthFile(options.health_file), log)
    return 0


def serve(doors: list[tuple[Address, socket.socket]], health: HealthFile, log: Log) -> None:
    """Join connections until told to leave."""
    loop = Loop()
    loop.on_signal(signal.SIGTERM, loop.stop)
    loop.on_signal(signal.SIGINT, loop.stop)
    gate = Gate(loop, log, doors, max(1, min(MAX_PAIRS, (soft_descriptor_limit() - RESERVE) // 2)))
    gate.start()

    def beat() -> None:
        health.write("ready")
        loop.call_later(HEARTBEAT, beat)

    beat()
    log.info("open", to=" ".join(str(address) for address, _ in doors))
    loop.run()
    gate.close()
    loop.close()
    health.remove()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
