"""A tenant's supervisor: keeps a prototype and its workers. It never touches a client and never imports the
application.

Theory of operation. The supervisor gets its share from master, forks the prototype, and asks it for workers until there
are `max_workers`. For each worker it makes a channel and hands the far end to umaster; when umaster is
replaced, it makes new ones. It reaps all (it is the subreaper of what the prototype forks twice), tells
umaster who is buried, and kills whoever gives no sign of life.

    worker: SPAWNING ── Ready ──> SERVING ── max_requests, its replacement is ready ──> LEAVING ──> reaped
    any of these: no Beat for BEAT_LIMIT, or Stuck: SIGKILL ──> reaped

What its children say is the tenant's word: a pid is believed only if the kernel says that it is our child,
numbers on the scoreboard are for people, and a broken control channel costs the child its life.

Its metrics are a "worker" of their own, for umaster: the supervisor takes the connection and forks a child
that answers.
"""

from __future__ import annotations

import enum
import os
import signal
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass

from pyttpd import confine, metrics, privileges
from pyttpd.address import Address, parse
from pyttpd.channel import Channel
from pyttpd.config.shares import VhostShare
from pyttpd.log import Log, write
from pyttpd.rendezvous import LEFT
from pyttpd.roles import Channel as Directory
from pyttpd.service import Service
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import (
    Attach,
    Beat,
    Credit,
    Demand,
    Detached,
    Dispatch,
    Failed,
    Gone,
    Goodbye,
    Message,
    Ready,
    Spawn,
    Spawned,
    Stuck,
    Taken,
    Welcome,
    Worker,
)
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost import prototype
from pyttpd_vhost.commons import Commons
from pyttpd_vhost.logfile import LOOK_INTERVAL, LogFile
from pyttpd_vhost.output import Entries, Output
from pyttpd_vhost.scoreboard import Scoreboard
from pyttpd_vhost.stress import Stress

#: A worker or prototype that hasn't said Beat for so long (s) is stopped, or its interpreter is.
BEAT_LIMIT = 10.0
#: An application may take so long (s) to import.
LOAD_TIMEOUT = 60.0
#: A worker that has been asked for and isn't ready after so long (s) is given up.
SPAWN_TIMEOUT = 30.0
#: Delays (s) before what crashed is started again; what lived for STABLE_AFTER counts as healthy.
FIRST_DELAY, LAST_DELAY, STABLE_AFTER = 0.1, 5.0, 10.0
SWEEP_INTERVAL = 0.5
#: Numbered 0; the workers count from 1.
METRICS_WORKER = 0
#: In `WorkerChild.replaced_by`: somebody is to be, and nobody is yet.
REPLACEMENT_WANTED = -1
#: Ends of processes that are remembered until the prototype has said whether one was a worker.
MAX_REAPED_EARLY = 64
#: Scrapes answered at a time, each by a child.
MAX_SCRAPES = 2
_LAST_DESCRIPTOR = 2**31 - 1
#: What the system keeps to itself even before the tenant's own, narrower rules stand.
_NOT_FOR_TENANTS = ("proc", "sys", "run", "dev", "boot", "lost+found")


class State(enum.Enum):
    """See the module's text."""

    SPAWNING = "spawning"
    SERVING = "serving"
    LEAVING = "leaving"


@dataclass(slots=True, eq=False)
class WorkerChild:
    """A worker as its supervisor knows it. `pid` is 0 until the prototype has said it and the kernel has
    confirmed it.
    """

    number: int
    slot: int
    control: Channel
    born: float
    last_beat: float
    state: State = State.SPAWNING
    pid: int = 0
    replaced_by: int = 0
    killed: bool = False
    doomed: bool = False
    overdue: bool = False


@dataclass(slots=True, eq=False)
class PrototypeChild:
    """The prototype as its supervisor knows it."""

    pid: int
    control: Channel
    born: float
    last_beat: float
    ready: bool = False
    killed: bool = False


def stage_one_policy(tmp: str, reach: tuple[Address, ...] = ()) -> confine.Policy:
    """Return what the supervisor itself may do: no network at all, and of the files what its uid may, less
    the system's.

    reach: what its tenant will be allowed. No more can be opened later, so it has to be said when the process is
    started; the share may only ask for as much.

    The tenant's own rules come on top of it, in the prototype: before the share has come nobody knows its root.
    """
    tops = tuple(f"/{name}" for name in sorted(os.listdir("/")) if name not in _NOT_FOR_TENANTS)
    devices = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/shm")
    return confine.Policy(
        write=(*tops, *devices, tmp),
        execute=tops,
        allow_exec=True,
        allow_fork=True,
        allow_connect=True,
        allow_bind=True,
        connects_late=True,
        reach=reach,
    )


def serve(service: Service) -> None:
    """Run a vhost's supervisor in this process."""
    privileges.adopt_orphans()
    service.confine(stage_one_policy(service.options.tmp, service.options.allow))
    Supervisor(service)
    service.run()


class Supervisor:
    """The role."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = service.loop
        self._log = service.log
        self._output = Output(service.loop, service.log)
        self._entries: Entries | None = None
        self._log_files: dict[str, LogFile] = {}
        self._share: VhostShare | None = None
        self._scoreboard: Scoreboard | None = None
        self._commons: Commons | None = None
        self._stress = Stress()
        self._prototype: PrototypeChild | None = None
        self._workers: dict[int, WorkerChild] = {}
        self._next_number = METRICS_WORKER
        self._start_prototype_at = float("inf")
        self._prototype_crashes = 0
        self._spawn_at = 0.0
        self._worker_crashes = 0
        self._failure = ""
        self._umaster: Channel | None = None
        self._metrics: Channel | None = None
        self._scrapers: set[int] = set()
        self._reaped_early: dict[int, int] = {}

        self.starts = 0
        self.exits: dict[str, int] = {}
        self._link = service.link(
            Directory.VHOST,
            on_open=self._on_umaster,
            on_message=self._from_umaster,
            on_lost=self._umaster_lost,
        )
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        service.on_drain(self._drain)
        service.fetch_shares(self._on_share)
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def _on_share(self, _: str, data: bytes) -> None:
        share = VhostShare.from_json(data)
        if share.name != self._service.options.name:
            raise ValueError("the share of another vhost")
        first = self._share is None
        self._share = share
        self._log.level, self._log.format = share.log.level, share.log.format
        if first:
            # One more of each for replacements that are ready before their predecessor leaves.
            rows = 2 * share.pool.max_workers + 2
            self._scoreboard = Scoreboard(rows)
            self._commons = Commons(rows, limit=share.http.max_connections_per_client)
            self._open_logs(share)
            self._link.start()
            if self._was_started_for(share):
                self._service.when_sealed(self._start_prototype)

    def _was_started_for(self, share: VhostShare) -> bool:
        """Whether this process may reach what its tenant is allowed; say what is missing, if not.

        What isn't open from the start can't be opened any more. Without it the application would fail later, somewhere.
        """
        shut = [each for each in share.allow if parse(each) not in self._service.options.allow]
        if shut:
            options = " ".join(f"--allow {each}" for each in shut)
            self._failure = f"started without {options}"
            self._log.error(
                "the configuration allows an address that this container was started without: add the option to its "
                "command in the compose file, and bring it up again",
                missing=options,
            )
        return not shut

    # ---- the tenant's logs ----

    def _open_logs(self, share: VhostShare) -> None:
        """Open the tenant's log files, if it has any, and what its workers send their access log to."""
        logs, options = share.logs, self._service.options
        paths = (
            ("access", logs.access_log_file if logs.access_log != "off" else None),
            ("error", logs.error_log_file),
            ("slow", logs.slow_log_file),
        )
        for which, path in paths:
            if path is not None:
                self._log_files[which] = LogFile(path, logs.log_file_limit, self._log)
        if logs.access_log != "off":
            self._entries = Entries(
                self._loop,
                self._log,
                form=logs.access_log,
                vhost=share.name,
                file=self._log_files.get("access"),
                shared=options.shared_output,
            )
        if (error := self._log_files.get("error")) is not None:
            self._output.log = self._log_to(error, share)
        if (slow := self._log_files.get("slow")) is not None:
            self._output.slow = self._log_to(slow, share)
        if self._entries is not None or self._log_files:
            self._loop.call_later(LOOK_INTERVAL, self._look_at_logs)

    def _log_to(self, file: LogFile, share: VhostShare) -> Log:
        """Return what writes to `file`, or to the role's log as long as that can't be opened."""

        def write_printed(line: bytes) -> None:
            (file.write if file.is_open else write)(line)

        log = Log(self._service.role.value, share.name, write=write_printed)
        log.level, log.format = share.log.level, share.log.format
        return log

    def _look_at_logs(self) -> None:
        for file in self._log_files.values():
            file.look()
        if self._entries is not None:
            self._entries.tell()
        self._loop.call_later(LOOK_INTERVAL, self._look_at_logs)

    # ---- the prototype ----

    def _channel(self, sock: socket.socket, peer: str, number: int) -> Channel:
        return Channel(
            sock,
            Kind.CONTROL,
            Side.BINDER,
            loop=self._loop,
            log=self._log,
            faults=self._service.faults,
            peer=peer,
            peer_name=str(number),
            on_message=self._from_prototype if peer == "prototype" else self._from_worker,
            on_close=self._control_lost,
        )

    def _start_prototype(self) -> None:
        assert self._share is not None
        assert self._scoreboard is not None
        assert self._commons is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            entries = self._entries.fd if self._entries is not None else -1
            self._keep_only(*(fd for fd in (theirs.fileno(), self._output.fd, entries) if fd >= 0))
            options = self._service.options
            prototype.main(
                self._share,
                theirs,
                self._scoreboard,
                self._commons,
                self._log,
                printed=self._output.fd,
                entries=entries,
                tmp=options.tmp,
                one_uid=options.one_uid,
            )
        theirs.close()
        now = time.monotonic()
        self._prototype = PrototypeChild(pid, self._channel(ours, "prototype", 0), now, now)
        self._prototype.control.owner = self._prototype

    def _keep_only(self, *wanted: int) -> None:
        """In a forked child: close every descriptor but standard ones and `wanted`: channels, doors, the
        loop's, the beat.

        By number and not object by object, so that nothing can be forgotten here that is added elsewhere.
        """
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        first = 3
        for fd in sorted(wanted):
            os.closerange(first, fd)
            first = fd + 1
        os.closerange(first, _LAST_DESCRIPTOR)

    def _from_prototype(self, channel: Channel, message: Message, _: int | None) -> None:
        child = channel.owner
        assert isinstance(child, PrototypeChild)
        child.last_beat = self._loop.now
        match message:
            case Ready():
                child.ready = True
                assert self._share is not None
                if self._share.preload:
                    self._failure = ""
                    self._log.info("application loaded", seconds=round(time.monotonic() - child.born, 3))
                else:
                    self._log.info("prototype is there: each worker imports the application")
                self._fill()
            case Spawned(number, pid):
                self._spawned(number, pid)
            case Failed(reason):
                self._failed(reason)

    def _failed(self, reason: str) -> None:
        self._failure = reason
        self._log.error("application does not load", reason=reason)

    def _spawned(self, number: int, pid: int) -> None:
        worker = self._workers.get(number)
        if worker is None or worker.pid:
            raise RemoteProtocolError("forged-id", f"worker {number} was not asked for")
        if pid in self._reaped_early:
            worker.pid = pid
            self._worker_gone(worker, self._reaped_early.pop(pid))
            return
        try:
            # Only of a child of ours does the kernel know an answer; the status stays to be reaped.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except (OSError, OverflowError):
            raise RemoteProtocolError("bad-field", f"process {pid} is no child of ours") from None
        taken = {other.pid for other in self._workers.values()} | self._scrapers
        if self._prototype is not None:
            taken.add(self._prototype.pid)
        if pid in taken:
            raise RemoteProtocolError("replayed-id", f"process {pid} is somebody else's")
        worker.pid = pid
        if worker.doomed:
            self._kill(worker)

    # ---- workers ----

    def _fill(self) -> None:
        """Ask for workers until there are as many as there should be, and for replacements of those that are
        to leave.
        """
        child, share, board = self._prototype, self._share, self._scoreboard
        if child is None or not child.ready or share is None or board is None or self._service.draining:
            return
        if time.monotonic() < self._spawn_at:
            return
        wanted = share.pool.max_workers + sum(
            worker.replaced_by != 0 and worker.state is State.SERVING for worker in self._workers.values()
        )
        there = sum(worker.state is not State.LEAVING for worker in self._workers.values())
        for _ in range(wanted - there):
            if not board.free:
                return
            self._spawn(child, board)

    def _spawn(self, child: PrototypeChild, board: Scoreboard) -> WorkerChild | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._next_number = self._next_number % 0x7FFFFFFF + 1
        now = time.monotonic()
        worker = WorkerChild(
            self._next_number, board.take(), self._channel(ours, "worker", self._next_number), now, now
        )
        worker.control.owner = worker
        self._workers[worker.number] = worker
        with theirs:
            sent = child.control.send(Spawn(worker.number, worker.slot), theirs.fileno())
        if not sent:
            self._bury(worker, "never-started")
            return None
        self.starts += 1
        return worker

    def _from_worker(self, channel: Channel, message: Message, _: int | None) -> None:
        worker = channel.owner
        assert isinstance(worker, WorkerChild)
        worker.last_beat = self._loop.now
        match message:
            case Ready() if worker.state is State.SPAWNING:
                worker.state = State.SERVING
                self._failure = ""
                self._worker_crashes = 0
                self._attach(worker)
                self._service.ready()
                for other in self._workers.values():
                    if other.replaced_by == REPLACEMENT_WANTED and other.state is State.SERVING:
                        other.replaced_by = worker.number
                        self._retire(other)
                        break
            case Ready() if worker.state is State.LEAVING:
                pass  # asked to leave before it was there
            case Failed(reason) if worker.state is State.SPAWNING:
                self._failed(reason)  # without preload it is the workers who import
            case Beat():
                self._consider(worker)
            case Detached():
                self._attach_again(worker)
            case Goodbye(reason):
                self._leaves(worker, reason)
            case _:
                raise RemoteProtocolError("not-permitted", f"{type(message).__name__} from a worker")

    def _leaves(self, worker: WorkerChild, reason: str) -> None:
        """A worker leaves by itself, since a request in it doesn't end; its others get `grace`."""
        self._log.warning("worker leaves", worker=worker.number, reason=reason)
        worker.overdue = True
        if worker.state is not State.LEAVING:
            worker.state = State.LEAVING
            worker.born = time.monotonic()
        self._fill()

    def _consider(self, worker: WorkerChild) -> None:
        """A worker that has served its share of requests is replaced: first the new one, then the old one leaves."""
        assert self._share is not None
        assert self._scoreboard is not None
        most = self._share.pool.max_requests
        if not most or worker.state is not State.SERVING or worker.replaced_by:
            return
        if self._scoreboard.read(worker.slot, worker.number).requests >= most:
            worker.replaced_by = REPLACEMENT_WANTED
            self._fill()

    def _retire(self, worker: WorkerChild) -> None:
        worker.state = State.LEAVING
        worker.born = time.monotonic()  # from here on it counts how long it has been leaving
        worker.control.send(Goodbye("retire"))

    def _attach(self, worker: WorkerChild) -> None:
        """Give `worker` a channel to umaster, if umaster is there."""
        if self._umaster is None or self._umaster.closed:
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            if self._umaster.send(Worker(worker.number, "requests"), theirs.fileno()):
                worker.control.send(Attach(), ours.fileno())

    def _attach_again(self, worker: WorkerChild) -> None:
        """The worker has closed its channel; what was in it is gone with it, which umaster may not have noticed yet."""
        if worker.state is State.SERVING and self._umaster is not None:
            self._umaster.send(Gone(worker.number))
            self._attach(worker)

    def _bury(self, worker: WorkerChild, reason: str) -> None:
        """The worker is reaped, or never was."""
        assert self._scoreboard is not None
        assert self._commons is not None
        del self._workers[worker.number]
        worker.control.close()
        self._scoreboard.give_back(worker.slot, worker.number)
        self._commons.clear(worker.slot)
        self.exits[reason] = self.exits.get(reason, 0) + 1
        if self._umaster is not None:
            self._umaster.send(Gone(worker.number))
        for other in self._workers.values():
            if other.replaced_by == worker.number and other.state is State.SERVING:
                other.replaced_by = REPLACEMENT_WANTED

    def _control_lost(self, channel: Channel, _: str) -> None:
        """A child has closed its control channel, or broken the protocol: it is of no more use."""
        match channel.owner:
            case PrototypeChild() as child:
                self._kill(child)
            case WorkerChild() as worker:
                if worker.state is not State.LEAVING:
                    self._kill(worker)

    def _kill(self, child: PrototypeChild | WorkerChild) -> None:
        if isinstance(child, WorkerChild) and not child.pid:
            child.doomed = True  # the prototype has yet to say which process it is
        elif not child.killed:
            child.killed = True
            try:
                # Not reaped, so the pid is still the child's; the pidfd makes sure that it stays so.
                pidfd = os.pidfd_open(child.pid)
            except OSError:
                return
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            finally:
                os.close(pidfd)

    # ---- reaping ----

    def _reap(self) -> None:
        for pid, code in privileges.ended():
            if self._prototype is not None and pid == self._prototype.pid:
                self._prototype_gone(self._prototype, code)
            elif pid in self._scrapers:
                self._scrapers.discard(pid)
                self._metrics_credit()
            else:
                self._reaped(pid, code)

    def _reaped(self, pid: int, code: int) -> None:
        """A worker has ended, or something that one has left behind."""
        for worker in self._workers.values():
            if worker.pid == pid:
                self._worker_gone(worker, code)
                return
        # It may be a worker that the prototype hasn't told of yet.
        self._reaped_early[pid] = code
        if len(self._reaped_early) > MAX_REAPED_EARLY:
            del self._reaped_early[next(iter(self._reaped_early))]

    def _prototype_gone(self, child: PrototypeChild, code: int) -> None:
        self._prototype = None
        child.control.close()
        now = time.monotonic()
        self._prototype_crashes = 0 if now - child.born > STABLE_AFTER else self._prototype_crashes + 1
        delay = min(LAST_DELAY, FIRST_DELAY * 2 ** min(self._prototype_crashes, 16))
        self._start_prototype_at = now + delay
        # Workers it has forked and not told of are nobody's: they end when they find their control channel closed.
        for worker in [worker for worker in self._workers.values() if not worker.pid]:
            self._bury(worker, "never-started")
        if not self._service.draining:
            self._log.warning("prototype ended and is started again", status=code, delay=round(delay, 2))

    def _worker_gone(self, worker: WorkerChild, code: int) -> None:
        now = time.monotonic()
        left = worker.state is State.LEAVING and code == 0
        reason = (
            "request-timeout"
            if worker.overdue
            else "retired"
            if left
            else "killed"
            if worker.killed
            else "crashed"
            if code
            else "left"
        )
        self._bury(worker, reason)
        if not left and not worker.overdue and not self._service.draining:
            if now - worker.born > STABLE_AFTER:
                self._worker_crashes = 0
            else:
                self._worker_crashes += 1
                self._spawn_at = now + min(LAST_DELAY, FIRST_DELAY * 2 ** min(self._worker_crashes, 16))
            self._log.warning("worker ended", worker=worker.number, status=code, reason=reason)
        if not any(other.state is State.SERVING for other in self._workers.values()):
            self._service.not_ready()
        self._fill()
        self._leave_when_empty()

    # ---- umaster ----

    def _on_umaster(self, channel: Channel, _: Welcome) -> None:
        self._umaster = channel
        for worker in self._workers.values():
            if worker.state is State.SERVING:
                self._attach(worker)
        self._attach_metrics()

    def _from_umaster(self, channel: Channel, message: Message, _: int | None) -> None:
        match message:
            case Stuck(number):
                worker = self._workers.get(number)
                if worker is None:
                    channel.send(Gone(number))
                else:
                    self._log.warning("worker takes nothing and is killed", worker=number)
                    self._kill(worker)
            case Demand(waiting):
                if waiting:
                    self._stress.press(self._loop.now)
            case Goodbye():
                pass  # it closes when it has settled what is open; the link comes back to its successor

    def _umaster_lost(self, reason: str) -> None:
        self._umaster = None
        (self._log.info if reason == LEFT else self._log.warning)("umaster is gone", reason=reason)

    # ---- metrics ----

    def _attach_metrics(self) -> None:
        assert self._umaster is not None
        if self._metrics is not None:
            self._metrics.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            if not self._umaster.send(Worker(METRICS_WORKER, "metrics"), theirs.fileno()):
                ours.close()
                return
        self._metrics = Channel(
            ours,
            Kind.WORKER,
            Side.CONNECTOR,
            loop=self._loop,
            log=self._log,
            faults=self._service.faults,
            peer="umaster",
            on_message=self._on_scrape,
            on_close=self._metrics_lost,
        )
        self._metrics.send(Credit(max(1, MAX_SCRAPES - len(self._scrapers))))

    def _metrics_lost(self, _channel: Channel, _reason: str) -> None:
        self._metrics = None

    def _metrics_credit(self) -> None:
        if self._metrics is not None and not self._service.draining:
            self._metrics.send(Credit(1))

    def _on_scrape(self, channel: Channel, message: Message, fd: int | None) -> None:
        match message:
            case Dispatch(id_):
                assert fd is not None
                if not channel.send(Taken(id_)):
                    os.close(fd)
                    return
                who = metrics.About.me()
                pid = os.fork()
                if pid == 0:
                    self._answer_scrape(fd, who)
                os.close(fd)
                self._scrapers.add(pid)
            case _:
                pass

    def _answer_scrape(self, fd: int, who: metrics.About) -> None:
        try:
            self._keep_only(fd)
            privileges.set_process_name(f"m:{self._service.options.name}")
            metrics.answer(socket.socket(fileno=fd), metrics.render(self._collect(who)))
        finally:
            os._exit(0)

    def _collect(self, who: metrics.About) -> Iterable[metrics.Metric]:
        assert self._share is not None
        assert self._scoreboard is not None
        name = self._share.name
        yield from self._service.about(who)
        row = self._scoreboard.total([(worker.slot, worker.number) for worker in self._workers.values()])
        counter, gauge = metrics.CounterMetricFamily, metrics.GaugeMetricFamily
        requests = counter("pyttpd_vhost_requests", "Requests answered.", labels=["vhost", "code"])
        for code, count in zip(("1xx", "2xx", "3xx", "4xx", "5xx"), row[1:6], strict=True):
            requests.add_metric([name, code], count)
        yield requests
        for family, title, text, value in (
            (counter, "errors", "Faults of the application.", row.errors),
            (counter, "bytes_sent", "Bytes sent to clients.", row.bytes_sent),
            (counter, "worker_starts", "Workers started.", self.starts),
            (gauge, "connections", "Connections that workers have open.", row.connections),
            (gauge, "stress", "1 while clients are waited for less patiently.", int(self._stress.on)),
            (counter, "stress_episodes", "Times that this has begun.", self._stress.episodes),
            (gauge, "application_failed", "1 while the application does not load.", int(bool(self._failure))),
        ):
            metric = family(f"pyttpd_vhost_{title}", text, labels=["vhost"])
            metric.add_metric([name], value)
            yield metric
        workers = gauge("pyttpd_vhost_workers", "Workers by state.", labels=["vhost", "state"])
        for state in State:
            workers.add_metric(
                [name, state.value], sum(worker.state is state for worker in self._workers.values())
            )
        yield workers
        lost = counter("pyttpd_vhost_log_lines_lost", "Lines that are in no log.", labels=["vhost", "log"])
        files = {which: file.lost for which, file in self._log_files.items()}
        access = self._entries.lost if self._entries is not None else 0
        lost.add_metric([name, "access"], access + files.get("access", 0))
        lost.add_metric([name, "error"], files.get("error", 0))
        lost.add_metric([name, "slow"], files.get("slow", 0))
        yield lost
        exits = counter("pyttpd_vhost_worker_exits", "Workers that ended.", labels=["vhost", "reason"])
        for reason, count in sorted(self.exits.items()):
            exits.add_metric([name, reason], count)
        yield exits

    # ---- time ----

    def _sweep(self) -> None:
        now = self._loop.now
        child = self._prototype
        if child is None:
            if now >= self._start_prototype_at and not self._service.draining:
                self._start_prototype()
        elif now - child.last_beat > (BEAT_LIMIT if child.ready else LOAD_TIMEOUT):
            self._log.error("prototype gives no sign of life and is killed", pid=child.pid)
            self._kill(child)
        for worker in list(self._workers.values()):
            if not worker.pid and now - worker.born > SPAWN_TIMEOUT:
                self._bury(worker, "never-started")
            elif now - worker.last_beat > self._patience(worker) and not worker.killed:
                self._log.error("worker gives no sign of life and is killed", worker=worker.number)
                self._kill(worker)
            elif worker.state is State.LEAVING and now - worker.born > self._service.options.grace:
                self._kill(worker)
        self._fill()
        self._weigh_stress(now)
        self._loop.call_later(SWEEP_INTERVAL, self._sweep)

    def _weigh_stress(self, now: float) -> None:
        """Tell the workers when stress begins and ends, and the operator."""
        if self._scoreboard is None or self._commons is None:
            return
        serving = [worker for worker in self._workers.values() if worker.state is State.SERVING]
        rows = [self._scoreboard.read(worker.slot, worker.number) for worker in serving]
        if rows and all(row.busy_threads >= row.threads for row in rows) and any(row.waiting for row in rows):
            self._stress.press(now)
        began = self._stress.since
        if self._stress.weigh(now):
            self._commons.stressed = int(self._stress.on)
            if self._stress.on:
                self._log.warning(
                    "stress begins: all workers are busy, and clients wait", workers=len(serving)
                )
            else:
                self._log.info("stress ends", seconds=round(now - began, 1))

    def _patience(self, worker: WorkerChild) -> float:
        """How long `worker` may give no sign of life (s): without preload it imports before its first one."""
        assert self._share is not None
        loads = worker.state is State.SPAWNING and not self._share.preload
        return LOAD_TIMEOUT if loads else BEAT_LIMIT

    def _drain(self) -> None:
        for worker in self._workers.values():
            if worker.state is not State.LEAVING:
                worker.state = State.LEAVING
                worker.born = time.monotonic()
                worker.control.send(Goodbye("stop"))
        if self._umaster is not None:
            self._umaster.send(Goodbye("leaving"))
        self._leave_when_empty()

    def _leave_when_empty(self) -> None:
        if self._service.draining and not any(worker.pid for worker in self._workers.values()):
            if self._prototype is not None:
                self._kill(self._prototype)
            self._link.close()
            self._output.finish()
            if self._entries is not None:
                self._entries.finish()
            self._service.leave()
