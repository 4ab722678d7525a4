"""init: binds, listens, keeps every socket for the life of the tree, and hands each to the one uid that it is for.

It parses nothing that a client or a tenant wrote: from its peers it reads a hello of fixed size, and who may
say it is on its list; everybody else is refused, root too. The keeper holds the sockets, so they outlive the
process that answers.

Its metrics are answered by a child without any right, which also asks the kernel how full the accept queues are
(sock_diag(7)); what it serves of init itself are counters in a page that both share.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterable

from pyttpd import confine, metrics, privileges
from pyttpd.channel import Channel, Faults
from pyttpd.config.errors import ConfigErrors
from pyttpd.config.loader import load
from pyttpd.config.model import Config
from pyttpd.log import Log
from pyttpd.loop import READ, Loop
from pyttpd.rendezvous import Caller
from pyttpd.roles import Channel as Directory
from pyttpd.service import Options, Service, StartError
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import Hello, Message, Return, Socket, SocketsEnd, Wanted

from pyttpd_init.queues import AcceptQueues
from pyttpd_init.sockets import AddressInUse, Plan, bind, is_planned, netns_cookie, plans

#: In plain mode as root the metrics child becomes this uid; in a container it has no right to, and none to lose.
METRICS_UID = 10_000

_COUNTERS = struct.Struct("@QQ")


class Counters:
    """Two counters in shared memory: one writer (init), one reader (its metrics child)."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._answered = self._refused = 0

    def answered(self) -> None:
        self._answered += 1
        _COUNTERS.pack_into(self._page, 0, self._answered, self._refused)

    def refused(self) -> None:
        self._refused += 1
        _COUNTERS.pack_into(self._page, 0, self._answered, self._refused)

    def read(self) -> tuple[int, int]:
        """Return how many hellos were answered, and how many refused."""
        answered, refused = _COUNTERS.unpack_from(self._page)
        return answered, refused


class Init:
    """The role. prepare() binds in the keeper, serve() answers in the role's own process."""

    def __init__(self) -> None:
        self._plans: list[Plan] = []
        self._sockets: dict[Plan, socket.socket] = {}

    def prepare(self, options: Options, log: Log) -> None:
        if not options.config:
            raise StartError("--config FILE is missing")
        try:
            config: Config = load(options.config)
        except ConfigErrors as errors:
            for error in errors.errors:
                log.error("configuration", error=error)
            raise StartError(f"{options.config}: {len(errors.errors)} errors; see `pyttpd check`") from None
        log.level, log.format = config.log.level, config.log.format
        self._plans = plans(config)
        for plan in self._plans:
            try:
                self._sockets[plan] = bind(plan)
            except AddressInUse as error:
                if not options.take_back or plan.role == "init":
                    raise
                log.info("socket is still open and asked back", socket=plan, reason=error)
            else:
                log.info("listening", socket=plan)

    def serve(self, service: Service) -> None:
        """Run init in this process."""
        self._service = service
        self._counters = Counters()
        self._channels: set[Channel] = set()
        with socket.socket() as any_socket:
            self._cookie = netns_cookie(any_socket)
        self._start_metrics_child()
        confine.confine(confine.role_policy(allow_connect=False))
        entrance = service.entrance(
            Directory.INIT, credits=0, authorise=self._authorise, on_open=self._on_open
        )
        entrance.open()
        self._tell_ready()
        service.run()

    def _tell_ready(self) -> None:
        if len(self._sockets) == len(self._plans):
            self._service.ready()

    # ---- handing sockets out ----

    def _of(self, role: str, name: str) -> list[Plan]:
        return [plan for plan in self._plans if (plan.role, plan.name) == (role, name)]

    def _authorise(self, caller: Caller, hello: Hello) -> bool:
        name = "" if hello.name == hello.role else hello.name
        theirs = self._of(hello.role, hello.name)
        if (
            hello.role != "init"
            and theirs
            and all(caller.is_a(hello.role, name, plan.uid) for plan in theirs)
        ):
            return True
        self._counters.refused()
        return False

    def _on_open(self, channel: Channel, hello: Hello) -> None:
        channel.on_message = self._from_peer
        channel.on_close = lambda channel, _: self._channels.discard(channel)
        self._channels.add(channel)
        theirs = self._of(hello.role, hello.name)
        for plan in theirs:
            sock = self._sockets.get(plan)
            # A new channel has room for its few sockets: if they can't be sent it is closed again already.
            if sock is None:
                channel.send(Wanted(plan.use, plan.name))
            else:
                channel.send(Socket(plan.use, plan.name), sock.fileno())
        channel.send(SocketsEnd(len(theirs)))
        self._counters.answered()

    def _from_peer(self, channel: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Return(use, name):
                assert fd is not None
                self._take_back(channel, use, name, socket.socket(fileno=fd))

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
        if plan in self._sockets:
            sock.close()
            return
        self._sockets[plan] = sock
        self._service.log.info("socket taken back", socket=plan)
        self._tell_ready()

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

    def _serve_metrics(self, parent: int) -> None:
        own = next(plan for plan in self._plans if plan.role == "init")
        queues = AcceptQueues(self._plans)
        for plan, sock in self._sockets.items():
            if plan is not own:
                sock.close()
        self._service.beat.close()
        self._service.loop.close()
        for bound in self._service.bound.values():
            bound.close()
        if os.geteuid() == 0:
            try:
                privileges.become(METRICS_UID, METRICS_UID)
            except privileges.PrivilegeError as error:
                # In a container root has no right to change its uid, and after confine() none at all.
                self._service.log.debug("metrics child keeps its uid", reason=error)
        # Not PR_SET_PDEATHSIG: a parent without CAP_KILL has, when it dies, no right to signal another uid.
        parents_end = os.pidfd_open(parent)
        confine.confine(confine.role_policy(allow_connect=False))
        loop = Loop()
        loop.add(parents_end, READ, lambda _: loop.stop())
        metrics.Server(loop, self._sockets[own], lambda: self._collect(queues))
        loop.run()

    def _collect(self, queues: AcceptQueues) -> Iterable[metrics.Metric]:
        yield from metrics.about("init", "")
        yield metrics.faults("init", Faults())
        answered, refused = self._counters.read()
        hellos = metrics.CounterMetricFamily(
            "pyttpd_init_hellos", "Peers that asked for sockets.", labels=["result"]
        )
        hellos.add_metric(["answered"], answered)
        hellos.add_metric(["refused"], refused)
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
