"""init: binds, listens, keeps every socket for the life of the tree, and hands each to the one uid that it is for.

It parses nothing that a client or a tenant wrote: from its peers it reads a hello of fixed size and sockets that come
back, from master a configuration's hash. Who may say so is on its list; everybody else is refused, root too. The keeper
holds the sockets, so they outlive the process that answers.

Its metrics are answered by a child without any right, which also asks the kernel how full the accept queues are
(sock_diag(7)); what it serves of init itself lies on a page that both share.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from pyttpd import confine, metrics, privileges
from pyttpd.channel import Channel
from pyttpd.config import startup
from pyttpd.log import Log
from pyttpd.loop import READ, Loop
from pyttpd.office import Outcome
from pyttpd.rendezvous import Caller
from pyttpd.roles import UNPRIVILEGED_INIT_UID
from pyttpd.roles import Channel as Directory
from pyttpd.service import Options, Service, StartError
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    Abort,
    Commit,
    Hello,
    Holds,
    Message,
    Prepare,
    Prepared,
    Return,
    Socket,
    SocketsEnd,
    Unprepared,
    Wanted,
)

from pyttpd_init import deposit
from pyttpd_init.holding import Holding
from pyttpd_init.queues import AcceptQueues
from pyttpd_init.sockets import AddressInUse, Plan, bind, is_planned, netns_cookie, plans

#: How often (s) the metrics child is looked at.
WATCH_INTERVAL = 0.5
#: Who has a socket of our predecessor's brings it back within this (s), or it is tried to bind it anew.
TAKE_BACK_TIMEOUT = 5.0
#: A socket that couldn't be handed over, since too many descriptors are in flight, is tried again after so long (s).
HAND_OUT_AGAIN = 0.1


class Snapshot(NamedTuple):
    """What init counts, for its metrics child."""

    uid: int = 0
    started: float = 0.0
    cpu_seconds: float = 0.0
    answered: int = 0
    refused: int = 0
    open: int = 0
    limit: int = 0
    faults: tuple[tuple[str, str, int], ...] = ()


class Page:
    """A page that init writes its snapshot on, and its metrics child reads: JSON, with its length in front."""

    _LENGTH = struct.Struct("@I")

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._last = Snapshot()

    def write(self, snapshot: Snapshot) -> None:
        # Roles and reasons are few and short: a page holds them all. If it didn't, numbers would be missing, not wrong.
        data = json.dumps(snapshot).encode()
        if len(data) <= mmap.PAGESIZE - self._LENGTH.size:
            self._page[:] = (self._LENGTH.pack(len(data)) + data).ljust(mmap.PAGESIZE, b"\0")

    def read(self) -> Snapshot:
        """Return what was written last. One that is being written is passed over for the one before."""
        page = self._page[:]
        (length,) = self._LENGTH.unpack_from(page)
        try:
            *numbers, faults = json.loads(page[self._LENGTH.size : self._LENGTH.size + length])
            counts = tuple((peer, reason, count) for peer, reason, count in faults)
            self._last = Snapshot(*numbers)._replace(faults=counts)
        except ValueError:
            pass
        return self._last


class Init:
    """The role. prepare() binds in the keeper, serve() answers in the role's own process."""

    def __init__(self) -> None:
        self.held = Holding()
        #: What master has had prepared, and by which channel; and whether who is being let in was ours once.
        self._prepared = ""
        self._asker: Channel | None = None
        self._was_ours = False

    def prepare(self, options: Options, log: Log) -> None:
        config = startup.read(options.config, log)
        held = self.held
        held.path, held.log = options.config, log
        held.digest, held.plans = config.digest, plans(config)
        held.deposit = deposit.of(options.deposit, log)
        held.find()
        for plan in held.plans:
            if plan in held.sockets:
                continue
            try:
                held.sockets[plan] = bind(plan)
            except AddressInUse as error:
                if not options.take_back or plan.role == "init":
                    raise
                log.info("socket is still open and asked back", socket=plan, reason=error)
            else:
                log.info("listening", socket=plan)
        held.lay()

    def serve(self, service: Service) -> None:
        """Run init in this process."""
        self._service = service
        self.held.deposit.close()
        self._page = Page()
        self._answered = self._refused = 0
        self._channels: set[Channel] = set()
        for plan in self.held.plans:
            if plan not in self.held.sockets:
                with contextlib.suppress(StartError):
                    sock = self.held.sockets[plan] = bind(plan)
                    self._let_outlive_us(plan, sock)
        with socket.socket() as any_socket:
            self._cookie = netns_cookie(any_socket)
        self._start_metrics_child()
        confine.confine(confine.role_policy(allow_connect=False))
        entrance = service.entrance(
            Directory.INIT, credits=0, authorise=self._authorise, on_open=self._on_open
        )
        entrance.open()
        if len(self.held.sockets) < len(self.held.plans):
            service.loop.call_later(TAKE_BACK_TIMEOUT, self._give_up)
        service.loop.after_turn.append(self._publish)  # the heartbeat makes a turn every second
        self._tell_ready()
        service.run()

    def _give_up(self) -> None:
        """Nobody brings back what is missing: who had it may have died with it. Then a new try can bind it."""
        missing = [str(plan) for plan in self.held.plans if plan not in self.held.sockets]
        if missing:
            self._service.log.warning("sockets are not brought back: tried anew", missing=", ".join(missing))
            self._service.leave()

    def _tell_ready(self) -> None:
        if len(self.held.sockets) == len(self.held.plans):
            self._service.ready()

    # ---- handing sockets out ----

    def _of(self, role: str, name: str) -> list[Plan]:
        return [plan for plan in self.held.plans if (plan.role, plan.name) == (role, name)]

    def _authorise(self, caller: Caller, hello: Hello) -> bool:
        name = "" if hello.name == hello.role else hello.name
        former = [plan for plan in self.held.former if (plan.role, plan.name) == (hello.role, hello.name)]
        for theirs, once in ((self._of(hello.role, hello.name), False), (former, True)):
            if (
                hello.role != "init"
                and theirs
                and all(caller.is_a(hello.role, name, plan.uid) for plan in theirs)
            ):
                self._was_ours = once
                return True
        self._refused += 1
        return False

    def _on_open(self, channel: Channel, hello: Hello) -> None:
        channel.on_message = self._from_peer
        channel.on_close = self._peer_gone
        self._channels.add(channel)
        if hello.role == "master":
            channel.send(Holds(bytes.fromhex(self.held.digest)))
        # Whose sockets have been given to somebody else, or are closed, hears that it has none any more.
        theirs = [] if self._was_ours else self._of(hello.role, hello.name)
        self._hand_out(channel, deque(theirs), len(theirs))

    def _hand_out(self, channel: Channel, plans: deque[Plan], total: int) -> None:
        """Give a peer its `total` sockets, of which `plans` are left.

        A new channel has room for them. But descriptors in flight are counted by uid (unix(7), ETOOMANYREFS), and root
        is others as well: then the rest follows when that may have changed.
        """
        while plans and not channel.closed:
            plan = plans[0]
            sock = self.held.sockets.get(plan)
            if sock is None:
                channel.send(Wanted(plan.use, plan.name))
            elif not channel.send(Socket(plan.use, plan.name), sock.fileno()):
                self._service.loop.call_later(HAND_OUT_AGAIN, lambda: self._hand_out(channel, plans, total))
                return
            plans.popleft()
        if channel.send(SocketsEnd(total)):
            self._answered += 1

    def _from_peer(self, channel: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Return(use, name):
                assert fd is not None
                self._take_back(channel, use, name, socket.socket(fileno=fd))
            case _ if channel.peer != "master":
                raise RemoteProtocolError("not-permitted", f"{type(message).__name__} from {channel.peer}")
            case Prepare(digest):
                self._read_again(channel, digest)
            case Commit(digest):
                self._commit(channel, digest)
            case Abort():
                self._abort()

    def _peer_gone(self, channel: Channel, _: str) -> None:
        self._channels.discard(channel)
        if channel is self._asker:
            self._abort()  # master has died before it could say so

    # ---- another configuration ----

    def _read_again(self, channel: Channel, digest: bytes) -> None:
        """Have the configuration read, and what is new in it bound, if it is the one that master has."""
        self._abort()
        self._asker = channel
        counter = self._service.counter
        assert counter is not None

        def answer(outcome: Outcome) -> None:
            if outcome.errors:
                channel.send(Unprepared(outcome.errors[0]))
            elif outcome.digest != digest.hex():
                assert counter is not None
                counter.drop()
                channel.send(Unprepared("the files have been changed since master has read them"))
            else:
                self._prepared = outcome.digest
                channel.send(Prepared(digest))

        counter.prepare(answer)

    def _commit(self, channel: Channel, digest: bytes) -> None:
        if not self._prepared or self._prepared != digest.hex():
            raise RemoteProtocolError("bad-field", "a configuration that was never prepared")
        assert self._service.counter is not None
        self._prepared = ""
        self._asker = None
        self._service.counter.adopt()
        self._service.renew()

    def _abort(self) -> None:
        if self._asker is not None and self._service.counter is not None:
            self._service.counter.drop()
        self._asker = None
        self._prepared = ""

    def _take_back(self, channel: Channel, use: str, name: str, sock: socket.socket) -> None:
        """Keep a socket that our predecessor had given to this role, if it is what we would have bound ourselves.

        Nobody else ever gets it: it is handed only to the uid that brought it, since only that one's plan fits.
        """
        plans_of_peer = [
            plan for plan in self._of(channel.peer, channel.peer_name) if (plan.use, plan.name) == (use, name)
        ]
        if not plans_of_peer or not is_planned(sock, plans_of_peer[0], self._cookie):
            sock.close()
            raise RemoteProtocolError(
                "descriptors", f"a socket brought back that isn't the {use} socket of {name}"
            )
        plan = plans_of_peer[0]
        if plan in self.held.sockets:
            sock.close()
            return
        self.held.sockets[plan] = sock
        self._service.log.info("socket taken back", socket=plan)
        self._let_outlive_us(plan, sock)
        self._tell_ready()

    def _let_outlive_us(self, plan: Plan, sock: socket.socket) -> None:
        """Give our keeper a copy, so that it outlives this process, and whoever has brought it."""
        if self._service.counter is not None:
            self._service.counter.keep(str(plan).encode(), sock.fileno())

    # ---- metrics ----

    def _start_metrics_child(self) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                privileges.set_process_name("init-metrics")
                self._serve_metrics(parent)
                status = 0
            finally:
                os._exit(status)
        pidfd = os.pidfd_open(pid)
        # Without its child init's metrics are silent, which the keeper mends by starting both anew.
        self._service.loop.add(pidfd, READ, lambda _: self._service.leave())
        self._watch_child({})

    def _watch_child(self, stopped: dict[int, float]) -> None:
        """Leave when a signal has stopped the metrics child: we may have no right to kill it, but our keeper has."""
        for _ in privileges.ended(stopped):
            pass
        if privileges.stopped_for_good(stopped, self._service.loop.now):
            self._service.log.error("process is stopped and is killed", child="init-metrics")
            self._service.leave()
        self._service.loop.call_later(WATCH_INTERVAL, lambda: self._watch_child(stopped))

    def _serve_metrics(self, parent: int) -> None:
        own = next(plan for plan in self.held.plans if plan.role == "init")
        queues = AcceptQueues(self.held.plans)
        for plan, sock in self.held.sockets.items():
            if plan is not own:
                sock.close()
        self._service.beat.close()
        self._service.loop.close()
        for bound in self._service.bound.values():
            bound.close()
        if os.geteuid() == 0:
            try:
                # In plain mode as root; in a container it has no right to, and none to lose.
                privileges.become(UNPRIVILEGED_INIT_UID, UNPRIVILEGED_INIT_UID)
            except privileges.PrivilegeError as error:
                # In a container root has no right to change its uid, and after confine() none at all.
                self._service.log.debug("metrics child keeps its uid", reason=error)
        # Not PR_SET_PDEATHSIG: a parent without CAP_KILL has, when it dies, no right to signal another uid.
        parents_end = os.pidfd_open(parent)
        confine.confine(confine.role_policy(allow_connect=False))
        loop = Loop()
        loop.add(parents_end, READ, lambda _: loop.stop())
        metrics.Server(loop, self.held.sockets[own], lambda: self._collect(queues))
        loop.run()

    def _publish(self) -> None:
        service = self._service
        counted = tuple((peer, reason, count) for (peer, reason), count in service.faults.counts.items())
        me = metrics.About.me()
        self._page.write(
            Snapshot(
                uid=me.uid,
                started=me.started,
                cpu_seconds=me.cpu_seconds,
                answered=self._answered,
                refused=self._refused,
                open=service.budget.used,
                limit=service.budget.limit,
                faults=counted,
            )
        )

    def _collect(self, queues: AcceptQueues) -> Iterable[metrics.Metric]:
        snapshot = self._page.read()
        # In this process the service's own counters stand still: those of the page take their place.
        self._service.faults.counts = {(peer, reason): count for peer, reason, count in snapshot.faults}
        self._service.budget.used, self._service.budget.limit = snapshot.open, snapshot.limit
        yield from self._service.about(metrics.About(snapshot.uid, snapshot.started, snapshot.cpu_seconds))
        hellos = metrics.CounterMetricFamily(
            "pyttpd_init_hellos", "Peers that asked for sockets.", labels=["result"]
        )
        hellos.add_metric(["answered"], snapshot.answered)
        hellos.add_metric(["refused"], snapshot.refused)
        yield hellos
        depth = metrics.GaugeMetricFamily(
            "pyttpd_init_accept_queue_depth", "Connections that wait to be accepted.", labels=["listener"]
        )
        limit = metrics.GaugeMetricFamily(
            "pyttpd_init_accept_queue_limit", "Connections that may wait to be accepted.", labels=["listener"]
        )
        for name, waiting, most in queues.read():
            depth.add_metric([name], waiting)
            limit.add_metric([name], most)
        yield depth
        yield limit
