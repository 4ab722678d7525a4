"""init: binds, listens, keeps every socket for the life of the tree, and hands each to the one uid that it is for.

It parses nothing that a client or a tenant wrote: from its peers it reads a hello of fixed size, and who may say it is on
its list; everybody else is refused, root too. The keeper holds the sockets, so they outlive the process that answers.

Its metrics are answered by a child without any right, which also asks the kernel how full the accept queues are
(sock_diag(7)); what it serves of init itself are counters in a page that both share.
"""

from __future__ import annotations

import mmap
import os
import signal
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
from pyttpd.wire.messages import Hello, Message, Socket, SocketsEnd
from pyttpd_init.queues import AcceptQueues
from pyttpd_init.sockets import Plan, bind, plans

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
        self._sockets: list[tuple[Plan, socket.socket]] = []

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
        self._sockets = [(plan, bind(plan)) for plan in plans(config)]
        for plan, _ in self._sockets:
            log.info("listening", socket=plan)

    def serve(self, service: Service) -> None:
        """Run init in this process."""
        self._service = service
        self._counters = Counters()
        self._channels: set[Channel] = set()
        self._start_metrics_child()
        confine.confine(confine.role_policy(allow_connect=False))
        entrance = service.entrance(Directory.INIT, credits=0, authorise=self._authorise, on_open=self._on_open)
        entrance.open()
        service.ready()
        service.run()

    # ---- handing sockets out ----------------------------------------------------------------------------------------

    def _of(self, role: str, name: str) -> list[tuple[Plan, socket.socket]]:
        return [(plan, sock) for plan, sock in self._sockets if (plan.role, plan.name) == (role, name)]

    def _authorise(self, caller: Caller, hello: Hello) -> bool:
        name = "" if hello.name == hello.role else hello.name
        theirs = self._of(hello.role, hello.name)
        if hello.role != "init" and theirs and all(caller.is_a(hello.role, name, plan.uid) for plan, _ in theirs):
            return True
        self._counters.refused()
        return False

    def _on_open(self, channel: Channel, hello: Hello) -> None:
        channel.on_message = self._nothing_more
        channel.on_close = lambda channel, _: self._channels.discard(channel)
        self._channels.add(channel)
        theirs = self._of(hello.role, hello.name)
        for plan, sock in theirs:
            # A new channel has room for its few sockets: False means that it is closed again already.
            channel.send(Socket(plan.use, plan.name), sock.fileno())
        channel.send(SocketsEnd(len(theirs)))
        self._counters.answered()

    @staticmethod
    def _nothing_more(_: Channel, message: Message, _fd: int | None) -> None:
        raise RemoteProtocolError("not-permitted", f"{type(message).__name__} after hello")

    # ---- metrics ----------------------------------------------------------------------------------------------------

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
        own = [sock for plan, sock in self._sockets if (plan.role, plan.use) == ("init", "metrics")]
        queues = AcceptQueues([(plan, sock.getsockname()) for plan, sock in self._sockets])
        for plan, sock in self._sockets:
            if sock not in own:
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
        privileges.die_with_parent(parent, signal.SIGKILL)
        confine.confine(confine.role_policy(allow_connect=False))
        loop = Loop()
        metrics.Server(loop, own[0], lambda: self._collect(queues))
        loop.run()

    def _collect(self, queues: AcceptQueues) -> Iterable[metrics.Metric]:
        yield from metrics.about("init", "")
        yield metrics.faults("init", Faults())
        answered, refused = self._counters.read()
        hellos = metrics.CounterMetricFamily("pyttpd_init_hellos", "Peers that asked for sockets.", labels=["result"])
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

