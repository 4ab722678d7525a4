"""The exec service: the process of a vhost that starts programs, so that none with threads or with an application ever
forks for that.

Rules
  1. It has one thread, is forked by the supervisor before the prototype, is confined as the tenant's code is, and
     holds nothing but its doors, its control channel and what waits. It imports nothing of the tenant's.
  2. There are two doors, each a pair of sockets of which the supervisor keeps both ends, so that a successor goes on
     with what waits in it: the tenant's, whose other end all workers have, and the supervisor's, for the application
     processes (manager.py), which are not kept waiting by the tenant's requests.
  3. What comes in at a door is judged by frames.py. A request that waits is bounded in number and in age; what can't be
     had is refused at once, and a worker answers 503.
  4. Each program has a reaper of its own (reaper.py), a fork of this process, which answers its requester. So this
     process waits for nobody.
  5. A fork that finds no process left is tried again with a delay that grows; what waits meanwhile grows old.

Whoever talks to us may be the tenant's code: it gets programs run that it could run itself, with the rights that it has
itself, and can spoil the service for nobody but itself.

In step with: host.py (the supervisor's side), frames.py, reaper.py, client.py.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from pyttpd import fdpass, privileges
from pyttpd.channel import Channel, Faults
from pyttpd.config.shares import VhostShare
from pyttpd.confine import landlock, seccomp
from pyttpd.confine.kernel import machine
from pyttpd.log import Log
from pyttpd.loop import READ, Loop
from pyttpd.wire.errors import RemoteProtocolError
from pyttpd.wire.messages import Beat, DescriptorKind, Message, Ready
from pyttpd.wire.permits import Kind, Side

from pyttpd_vhost.backoff import Backoff
from pyttpd_vhost.execution import frames, reaper
from pyttpd_vhost.execution.frames import Connect, Connected, Refusal, Refused, Run
from pyttpd_vhost.execution.places import connect_without_links
from pyttpd_vhost.execution.reaper import Surroundings
from pyttpd_vhost.execution.tally import Tally
from pyttpd_vhost.output import redirect
from pyttpd_vhost.tenant import confine_tenant

BEAT_INTERVAL: Final = 1.0
#: Programs of the tenant's that may run at a time. Each has two processes, and a thread of a worker that waits for it.
MAX_RUNNING: Final = 256
#: Requests that wait, and for how long (s). A client's patience ends before a minute does; what is older isn't started.
MAX_QUEUED: Final = 128
MAX_AGE: Final = 10.0
#: Application processes that the supervisor may have: its mounts bound them, this is only the net below.
MAX_PROCESSES: Final = 4096
#: Descriptors that a request which waits may hold, and those of this process itself.
_EACH, _OWN = frames.MAX_DESCRIPTORS, 64
#: Requests taken from a door in one turn of the loop, so that no door keeps the other waiting.
_BURST: Final = 16
#: Connections to a backend are local, and made or refused at once; only a full backlog takes so long (s).
_CONNECT_TIMEOUT: Final = 0.2


@dataclass(slots=True)
class Waiting:
    """A request that is still to be started."""

    run: Run
    reply: socket.socket
    given: list[int]
    since: float

    def close(self) -> None:
        self.reply.close()
        for fd in self.given:
            os.close(fd)

    def left(self) -> bool:
        """Whether who wanted it has closed its end."""
        poll = select.poll()
        poll.register(self.reply, 0)
        return bool(poll.poll(0))


class Desk:
    """One door: what waits there, and what of it runs."""

    def __init__(self, door: socket.socket, *, running: int, queued: int) -> None:
        self.door = door
        self.waiting: deque[Waiting] = deque()
        self.running: set[int] = set()
        self.most_running = running
        self.most_waiting = queued


def main(
    share: VhostShare,
    control: socket.socket,
    doors: tuple[socket.socket, socket.socket],
    tally: Tally,
    log: Log,
    *,
    printed: int,
    tmp: str,
    one_uid: bool,
    backends: Mapping[int, tuple[int, str]],
) -> NoReturn:
    """Be the exec service of `share`; ends with the process.

    doors: the supervisor's and the tenant's. printed: the pipe of what the tenant's processes print. backends: the
    sockets of mounts (type and path), for workers that may not connect themselves.
    """
    status = 1
    try:
        redirect(printed)
        log.bare = True
        privileges.set_process_name(f"x:{share.name}")
        confine_tenant(share, log, tmp, one_uid=one_uid, connects=True)
        gc.collect()
        gc.freeze()
        ExecService(share.name, control, doors, tally, log, one_uid=one_uid, backends=backends).loop.run()
        status = 0
    except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
        log.error("exec service ended by an error", error=repr(error), traceback=traceback.format_exc())
    finally:
        sys.stdout.flush()
        os._exit(status)


class ExecService:
    """See the module's text. Owns `control` and the doors."""

    def __init__(
        self,
        name: str,
        control: socket.socket,
        doors: tuple[socket.socket, socket.socket],
        tally: Tally,
        log: Log,
        *,
        one_uid: bool,
        backends: Mapping[int, tuple[int, str]],
    ) -> None:
        self.loop = Loop()
        self._log = log
        self._tally = tally
        self._backends = backends
        self._backoff = Backoff()
        self._told = False
        self._again_at = 0.0
        life, self._alive = os.pipe2(os.O_CLOEXEC)
        filter_ = None
        if one_uid:
            # This process may connect to the tenant's own backends; what it starts may connect to nothing.
            switches = seccomp.Switches(
                allow_exec=True, allow_fork=True, allow_connect=False, allow_bind=True
            )
            filter_ = seccomp.assemble(switches, machine())
        self._around = Surroundings(name, life, landlock.kernel_abi(), filter_)
        room = max(1, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OWN) // (2 * _EACH))
        ours, tenants = doors
        self._desks = (
            Desk(ours, running=MAX_PROCESSES, queued=min(MAX_QUEUED, room)),
            Desk(tenants, running=MAX_RUNNING, queued=min(MAX_QUEUED, room)),
        )
        self._control = Channel(
            control,
            Kind.CONTROL,
            Side.CONNECTOR,
            loop=self.loop,
            log=log,
            faults=Faults(),
            peer="supervisor",
            on_message=self._on_message,
            on_close=lambda _channel, _reason: self.loop.stop(),
        )
        for desk in self._desks:
            self.loop.add(desk.door.fileno(), READ, lambda _, desk=desk: self._take(desk))  # type: ignore[misc]
        self.loop.on_signal(signal.SIGCHLD, self._reap)
        self._control.send(Ready())
        self._beat()

    def _on_message(self, _: Channel, message: Message, fd: int | None) -> None:
        """The supervisor has nothing to say but that we are to go."""
        if fd is not None:
            os.close(fd)
        self.loop.stop()

    def _beat(self) -> None:
        self._control.send(Beat())
        now = time.monotonic()
        for desk in self._desks:
            self._drop_old(desk, now)
        self._count()
        self.loop.call_later(BEAT_INTERVAL, self._beat)

    # ---- what comes in ----

    def _take(self, desk: Desk) -> None:
        for _ in range(_BURST):
            try:
                data, fds = fdpass.recv_fds(desk.door, frames.MAX_FRAME, frames.MAX_DESCRIPTORS)
            except BlockingIOError:
                break
            except (RemoteProtocolError, fdpass.DescriptorLost) as error:
                self._fault(str(error))
                continue
            except OSError as error:
                self._closed(desk, error.strerror or "")
                break
            if not data:
                for fd in fds:
                    os.close(fd)
                # A packet of no bytes looks like the end of the channel (recv(2)); the tenant's code can send both.
                if self._has_ended(desk.door):
                    self._closed(desk, "shut down")
                    break
                self._fault("an empty packet")
                continue
            try:
                self._admit(desk, data, fds)
            except RemoteProtocolError as error:
                for fd in fds:
                    os.close(fd)
                self._fault(str(error))
        self._start(desk)

    def _admit(self, desk: Desk, data: bytes, fds: list[int]) -> None:
        """Take a request in; `fds` are this function's once it returns. Raises RemoteProtocolError."""
        frame = frames.decode(data, len(fds), frames.Side.REQUESTER)
        if not isinstance(frame, Run | Connect):
            raise RemoteProtocolError("not-permitted", f"{type(frame).__name__} at a door")
        if not fdpass.check(fds[0], DescriptorKind.CHANNEL):
            raise RemoteProtocolError("descriptors", "a requester's end that is no SOCK_SEQPACKET socket")
        reply = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fds.pop(0))
        if isinstance(frame, Connect):
            with reply:
                self._connect(frame.mount, reply)
            return
        waiting = Waiting(frame, reply, list(fds), time.monotonic())
        if len(desk.waiting) >= desk.most_waiting:
            self._refuse(waiting, Refusal.BUSY, "too many programs are waiting to be started")
        else:
            desk.waiting.append(waiting)

    @staticmethod
    def _has_ended(door: socket.socket) -> bool:
        poll = select.poll()
        poll.register(door, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _closed(self, desk: Desk, reason: str) -> None:
        """The supervisor holds every door open: only the tenant's own code can have shut its own."""
        self.loop.remove(desk.door.fileno())
        self._log.error(
            "a process of the tenant's has shut the exec service's door: nothing is started any more",
            reason=reason,
        )

    def _fault(self, text: str) -> None:
        """Somebody has sent what it may not. Told once: the tenant's code could go on for ever."""
        self._tally.add("faults")
        if not self._told:
            self._told = True
            self._log.warning(
                "exec service: a request was wrong in itself; further ones are only counted", fault=text
            )

    def _refuse(self, waiting: Waiting, reason: Refusal, text: str, code: int = 0) -> None:
        self._tally.add(reason.name.lower())
        self._say(waiting.reply, Refused(reason, code, text))
        waiting.close()

    def _say(self, reply: socket.socket, frame: frames.Frame, fds: tuple[int, ...] = ()) -> None:
        try:
            fdpass.send_fds(reply, frames.encode(frame), fds)
        except OSError:
            pass  # it is gone, or doesn't read: nobody misses it

    def _connect(self, mount: int, reply: socket.socket) -> None:
        kind, path = self._backends.get(mount, (0, ""))
        if not path:
            self._say(reply, Refused(Refusal.BACKEND, 0, "that mount has no socket"))
            return
        with socket.socket(socket.AF_UNIX, kind) as sock:
            sock.settimeout(_CONNECT_TIMEOUT)
            try:
                connect_without_links(sock, path)
            except OSError as error:
                self._say(reply, Refused(Refusal.BACKEND, error.errno or 0, error.strerror or str(error)))
            else:
                self._say(reply, Connected(), (sock.fileno(),))

    # ---- what is started ----

    def _start(self, desk: Desk) -> None:
        """Start of what waits as much as may run."""
        now = time.monotonic()
        while desk.waiting and len(desk.running) < desk.most_running and self._backoff.may_try(now):
            waiting = desk.waiting.popleft()
            if now - waiting.since > MAX_AGE:
                self._refuse(waiting, Refusal.BUSY, "it has waited for too long to be started")
            elif waiting.left():
                waiting.close()
            elif not self._fork(desk, waiting):
                desk.waiting.appendleft(waiting)
                delay = self._backoff.died_young(now)
                self._tally.add("processes")
                self._log.warning("exec service: no process can be forked", delay=round(delay, 2))
                self._try_again(now + delay)
        self._count()

    def _try_again(self, when: float) -> None:
        if self._again_at < when:
            self._again_at = when
            self.loop.call_at(when, self._start_all)

    def _start_all(self) -> None:
        for desk in self._desks:
            self._start(desk)

    def _fork(self, desk: Desk, waiting: Waiting) -> bool:
        try:
            pid = os.fork()
        except OSError:
            return False
        if pid == 0:
            reaper.main(waiting.run, waiting.reply, waiting.given, self._around)
        self._backoff.healthy()
        desk.running.add(pid)
        self._tally.add("started")
        waiting.close()
        return True

    def _drop_old(self, desk: Desk, now: float) -> None:
        while desk.waiting and (now - desk.waiting[0].since > MAX_AGE):
            self._refuse(desk.waiting.popleft(), Refusal.BUSY, "it has waited for too long to be started")

    def _reap(self) -> None:
        for pid, _ in privileges.ended():
            for desk in self._desks:
                desk.running.discard(pid)
        self._start_all()

    def _count(self) -> None:
        self._tally.set("running", sum(len(desk.running) for desk in self._desks))
        self._tally.set("waiting", sum(len(desk.waiting) for desk in self._desks))
