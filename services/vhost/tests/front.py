"""Real workers in processes of their own, with a supervisor and an umaster played by the test: `front` (conftest.py).

    front = front(application, workers=2, max_threads=4)
    client = front.connect()              # accepted by the test, given to the worker with the most credit
    front.row(1).busy_threads             # what worker 1 says of itself

The played umaster does what the real one does with credits: a connection goes to the worker with the most of it that
isn't the one who passes it on; without any it waits, and what was passed on is refused.
"""

from __future__ import annotations

import collections
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyttpd import fdpass
from pyttpd.config.kinds import AsgiOptions
from pyttpd.config.shares import HttpSettings, PoolSettings
from pyttpd.log import Log
from pyttpd.wire import messages as m
from pyttpd.wire import packets

from pyttpd_vhost.kinds.base import Kind
from pyttpd_vhost.kinds.wsgi import Application, WsgiKind
from pyttpd_vhost.scoreboard import Row, Scoreboard
from pyttpd_vhost.site import Site
from pyttpd_vhost.worker import Worker

from .conftest import HOST, make_share

#: What a test waits for comes within (s): far more than it takes, on a machine that does a lot else.
PATIENCE = 20.0


@dataclass(eq=False)
class Played:
    """A worker as the played supervisor and umaster know it."""

    number: int
    slot: int
    pid: int
    control: socket.socket
    channel: socket.socket
    credit: int = 0
    given: dict[int, tuple[socket.socket, int | None]] = field(default_factory=dict)
    said: list[m.Message] = field(default_factory=list)
    beats: int = 0
    taken: int = 0
    offered: int = 0


Fronts = Callable[..., "Front"]


class Front:
    """See the module's text."""

    def __init__(
        self,
        application: Application | None,
        log: Path,
        *,
        workers: int = 1,
        kind: Callable[[Site], Kind] | None = None,
        http: HttpSettings | None = None,
        asgi: AsgiOptions | None = None,
        grace: float = 30.0,
        **pool: Any,
    ) -> None:
        share = make_share(pool=PoolSettings(**pool), http=http or HttpSettings(), grace=grace)
        self._asgi = asgi
        self._kind = kind
        self.board = Scoreboard(workers)
        self._log = log
        self.workers: list[Played] = []
        for number in range(1, workers + 1):
            self.workers.append(self._start(number, share, application))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._queue: collections.deque[socket.socket] = collections.deque()
        self._next_id = 0
        self.refused = 0
        self._clients: list[socket.socket] = []
        self._stopping, self._stop = socket.socketpair()
        self.fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _start(self, number: int, share: Any, application: Application | None) -> Played:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        slot = self.board.take()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            try:
                control.close()
                channel.close()
                fd = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                for output in (1, 2):
                    os.dup2(fd, output)
                log = Log("vhost", "test")
                log.level = "debug"
                site = Site(share, log)
                if self._kind is not None:
                    site.kind = self._kind(site)
                    site.places["/"].row = slot
                elif application is None:
                    raise AssertionError("neither a kind nor an application")
                elif self._asgi is None:
                    site.kind = WsgiKind(application, site)
                else:
                    from pyttpd_vhost.kinds.asgi import AsgiKind

                    site.kind = AsgiKind(application, self._asgi, site)
                worker = Worker(site, theirs, self.board, slot, number, log)
                worker.run()
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                sys.__stderr__.flush()  # type: ignore[union-attr]
            finally:
                os._exit(1)
        theirs.close()
        with far:
            fdpass.send_fd(control, m.encode(m.Attach(m.VERSION)), far.fileno())
        return Played(number, slot, pid, control, channel)

    # ---- what a test asks ----

    def connect(self) -> socket.socket:
        """Return a new connection, which is closed with the front at the latest."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._clients.append(sock)
        return sock

    def ask(self, path: str = "/", sock: socket.socket | None = None) -> socket.socket:
        """Send a request, on a new connection or on `sock`; the answer is still to be read."""
        sock = self.connect() if sock is None else sock
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        return sock

    def row(self, number: int = 1) -> Row:
        return self.board.read(self.workers[number - 1].slot, number)

    def cpu_seconds(self, number: int = 1) -> float:
        """Processor time that a worker has used."""
        fields = Path(f"/proc/{self.workers[number - 1].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def tell(self, message: m.Message, number: int = 1) -> None:
        """Let the played supervisor say something."""
        fdpass.send(self.workers[number - 1].control, m.encode(message))

    def wait_for(self, what: Callable[[], object], within: float = PATIENCE) -> None:
        end = time.monotonic() + within
        while not what():
            if self.fault is not None:
                raise self.fault
            assert time.monotonic() < end, f"not within {within} s; the log:\n{self.log()[-4000:]}"
            time.sleep(0.005)

    def wait_ended(self, number: int = 1, within: float = PATIENCE) -> int:
        """Wait until a worker has ended; return its exit status."""
        worker = self.workers[number - 1]
        ended: list[int] = []

        def look() -> bool:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                ended.append(os.waitstatus_to_exitcode(status))
                worker.pid = 0
            return bool(pid)

        self.wait_for(look, within)
        return ended[0]

    # ---- the played umaster ----

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as fault:
            self.fault = fault

    def _loop(self) -> None:
        poll = select.poll()
        sources: dict[int, Callable[[], bool]] = {self._listener.fileno(): self._accept}
        for worker in self.workers:
            sources[worker.channel.fileno()] = lambda worker=worker: self._from_worker(worker)  # type: ignore[misc]
            sources[worker.control.fileno()] = lambda worker=worker: self._from_control(worker)  # type: ignore[misc]
        for fd in (*sources, self._stopping.fileno()):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._stopping.fileno():
                    return
                if not sources[fd]():
                    poll.unregister(fd)

    def _accept(self) -> bool:
        self._queue.append(self._listener.accept()[0])
        self._serve_queue()
        return True

    def _give(self, sock: socket.socket, source: tuple[Played, int] | None) -> bool:
        best = max(
            (worker for worker in self.workers if source is None or worker is not source[0]),
            key=lambda worker: worker.credit,
            default=None,
        )
        if best is None or best.credit <= 0:
            return False
        self._next_id += 1
        try:
            host, port = sock.getpeername()[:2]
        except OSError:
            host, port = "127.0.0.1", 0  # it has gone meanwhile
        try:
            fdpass.send_fd(
                best.channel, m.encode(m.Dispatch(self._next_id, m.Client(host, port), HOST)), sock.fileno()
            )
        except OSError:
            best.credit = 0
            return False
        best.credit -= 1
        best.given[self._next_id] = sock, None if source is None else source[1]
        if source is not None:
            fdpass.send(source[0].channel, m.encode(m.Settled((source[1],))))
        return True

    def _serve_queue(self) -> None:
        while self._queue and self._give(self._queue[0], None):
            self._queue.popleft()

    def _from_worker(self, worker: Played) -> bool:
        try:
            packet, fds = fdpass.recv_fds(worker.channel, packets.MAX_PACKET, packets.MAX_FRAMES)
        except OSError:
            packet, fds = b"", []
        if not packet:
            worker.credit = 0
            for sock, _ in worker.given.values():
                self._queue.append(sock)
            worker.given.clear()
            self._serve_queue()
            return False
        for message in packets.unpack(packet, m.VERSION, several=True):
            self._heard(worker, message, fds)
        self._serve_queue()
        return True

    def _heard(self, worker: Played, message: m.Message, fds: list[int]) -> None:
        match message:
            case m.Credit(more):
                worker.credit += more
            case m.Taken(id_):
                worker.taken += 1
                worker.given.pop(id_)[0].close()
            case m.Pass(id_):
                worker.offered += 1
                sock = socket.socket(fileno=fds.pop(0))
                if not self._give(sock, (worker, id_)):
                    sock.close()
                    self.refused += 1
                    fdpass.send(worker.channel, m.encode(m.Refuse(id_, 503)))
            case m.Goodbye():
                worker.credit = -1000
            case other:
                raise AssertionError(f"from a worker: {other}")

    def _from_control(self, worker: Played) -> bool:
        try:
            frame, _ = fdpass.recv_fd(worker.control, m.MAX_FRAME)
        except OSError:
            return False
        if not frame:
            return False
        message = m.decode(frame)
        if isinstance(message, m.Beat):
            worker.beats += 1
        else:
            worker.said.append(message)
        return True

    # ---- the end ----

    def close(self) -> None:
        """Kill what is left."""
        self._stop.close()
        self._thread.join(PATIENCE)
        for worker in self.workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)
                os.waitpid(worker.pid, 0)
            worker.control.close()
            worker.channel.close()
            for sock, _ in worker.given.values():
                sock.close()
        for sock in (*self._queue, *self._clients):
            sock.close()
        self._listener.close()
        self._stopping.close()
        with contextlib.suppress(AttributeError):
            self.board._map.close()
        if self.fault is not None:
            raise self.fault
